"""Run the command line as anybody would: a process, an address in the environment, its output and exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import attrs
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable


@attrs.frozen
class Ran:
    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def run(dsn: str) -> Callable[..., Ran]:
    """A function that runs `python -m pgnotifyq` with arguments, on the test's database."""

    def run_it(*arguments: str, stdin: str = "", **environment: str) -> Ran:
        ran = subprocess.run(
            [sys.executable, "-m", "pgnotifyq", *arguments],
            env={**os.environ, "PGNOTIFYQ_DSN": dsn, **environment},
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=90,
        )
        assert "Traceback" not in ran.stderr, ran.stderr
        return Ran(ran.returncode, ran.stdout, ran.stderr)

    return run_it
