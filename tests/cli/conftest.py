"""Run the command line as anybody would: a process, an address in the environment, its output and exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from tests.cli.commands import ENDED_SECONDS_MAX, READ_AT_START, open_commands

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@attrs.frozen
class Ran:
    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        return json.loads(self.out)


@pytest.fixture(scope="session")
def commands() -> Iterator[Callable[..., tuple[int, str, str]]]:
    """A function that runs a command in a process that has imported the package already."""
    with open_commands() as run:
        yield run


@pytest.fixture
def run(dsn: str, commands: Callable[..., tuple[int, str, str]]) -> Callable[..., Ran]:
    """A function that runs `python -m pgnotifyq` with arguments, on the test's database."""

    def run_it(*arguments: str, stdin: str = "", **environment: str) -> Ran:
        if not any(name.startswith(READ_AT_START) for name in environment):
            code, out, err = commands(arguments, stdin, {**os.environ, "PGNOTIFYQ_DSN": dsn, **environment})
            assert "Traceback" not in err, err
            return Ran(code, out, err)
        ran = subprocess.run(
            [sys.executable, "-m", "pgnotifyq", *arguments],
            env={**os.environ, "PGNOTIFYQ_DSN": dsn, **environment},
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=ENDED_SECONDS_MAX,
        )
        assert "Traceback" not in ran.stderr, ran.stderr
        return Ran(ran.returncode, ran.stdout, ran.stderr)

    return run_it
