"""A handler for a process of its own that stands where it is asked to."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from pgnotifyq import JobRegistry

registry = JobRegistry()


@registry.handler("in_process", runs_in="process")
def stand(payload: dict[str, Any]) -> None:
    wait_for_file(payload["until"], secret="not told")


def wait_for_file(path: str, *, secret: str) -> None:
    Path(f"{path}.begun").touch()
    while not Path(path).exists():
        time.sleep(0.01)
