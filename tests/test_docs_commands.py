"""docs/commands.md: its table is the application's, and the commands that its walk leaves to this file run."""

from __future__ import annotations

import inspect
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pgnotifyq.cli.app import EXIT_DATABASE, EXIT_FAILED, EXIT_USAGE, app
from pgnotifyq.embedded import stop_embedded
from tests.pages import DOCS, named

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cyclopts import App

PAGE = DOCS / "commands.md"


def rows(group: App, before: str = "") -> Iterator[str]:
    """Yield the rows that the table must have: a command, and the first line of its docstring."""
    for name in group:
        if name.startswith("-"):
            continue
        command = group[name]
        if command.default_command is None:
            yield from rows(command, f"{before}{name} ")
        else:
            summary = inspect.cleandoc(command.default_command.__doc__ or "").split("\n\n")[0].replace("\n", " ")
            yield f"| `{before}{name}` | {summary} |"


def test_every_command_has_its_line() -> None:
    """As the command says it itself; and no other command has one."""
    wanted = list(rows(app))
    table = PAGE.read_text(encoding="utf-8").split("|---|---|\n", 1)[1].split("\n\n", 1)[0].splitlines()
    assert sorted(table) == sorted(wanted), "the table's rows are, as the application has them:\n" + "\n".join(wanted)


def test_exit_codes() -> None:
    """The table has those of the code; the two of a worker's end are in its help."""
    from pgnotifyq.cli.worker import worker

    listed = [int(code) for code in re.findall(r"^\| (\d+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)]
    assert listed == [0, EXIT_FAILED, EXIT_USAGE, EXIT_DATABASE, 4, 5, 130]
    assert re.search(r"\b4\b.*\b5\b", worker.__doc__ or "", re.DOTALL)


@pytest.fixture
def home() -> Iterator[Path]:
    """A home of an embedded server that its own user can reach."""
    with tempfile.TemporaryDirectory(prefix="pgnotifyq-") as name:
        Path(name).chmod(0o755)
        yield Path(name)
        stop_embedded(Path(name))


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_embedded_server_and_completion(home: Path, tmp_path: Path) -> None:
    """What is printed of psql, of an address and of completion is typed into bash, and ends well."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PGNOTIFYQ_HOME": str(home),
    }
    environment.pop("PGNOTIFYQ_DSN", None)
    (tmp_path / "report.sql").write_text("select 'reported';\n")
    (tmp_path / "pg_dump").write_text('#!/bin/sh\nprintf "%s\\n" "$1"\n')
    (tmp_path / "pg_dump").chmod(0o755)
    blocks = named(PAGE)
    script = f"PATH={tmp_path}:$PATH\n{blocks['completion']}\ncomplete -p pgnotifyq\npython -m pgnotifyq enqueue x\n{blocks['psql']}\n{blocks['url']}\ncat queue.sql"
    ran = subprocess.run(["bash", "-e", "-c", script], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "complete -F _pgnotifyq pgnotifyq" in ran.stdout
    assert re.search(r"pending +\| +1\n.*\nreported\npostgresql://postgres@/postgres\?host=", ran.stdout, re.DOTALL)
