"""Every example of the README is run; its diagram and its two lines are what the project has."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import psycopg

from pgnotifyq.cli.app import app
from pgnotifyq.model.states import as_mermaid

README = Path(__file__).parent.parent / "README.md"


def example(name: str) -> str:
    found = re.search(rf"<!-- test: {name} -->\n```\w+\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None, name
    return found[1]


def test_the_program_runs_as_it_is_printed(dsn: str) -> None:
    """Copied into a file and run with an address, it prints what it promises."""
    environment = {**os.environ, "PGNOTIFYQ_DSN": dsn}
    ran = subprocess.run([sys.executable, "-c", example("program")], env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "completed {'thumbnail': 'a.png@64'}"


def test_the_sql_runs_as_it_is_printed(dsn: str) -> None:
    """The function enqueues, the update cancels."""
    with psycopg.connect(dsn, autocommit=True) as session:
        enqueue, cancel = example("sql").strip().split("\n\n")
        session.execute(enqueue)
        session.execute(cancel)
        assert session.execute("select status from pgnotifyq.jobs").fetchall() == [("cancelled",)]


def test_the_diagram_is_drawn_from_the_table() -> None:
    """The state diagram cannot lag behind model/states.py."""
    assert f"```mermaid\n{as_mermaid()}\n```" in README.read_text(encoding="utf-8")


def test_the_ci_runs_the_test_line() -> None:
    """What newcomers copy is what CI runs."""
    ci = (README.parent / ".ci" / "run").read_text(encoding="utf-8")
    line = next(line for line in README.read_text(encoding="utf-8").splitlines() if "-m pytest" in line)
    install, test = line.split(" && ")
    assert install.removeprefix("python -m pip install ") in ci
    assert test in ci


def test_every_command_is_named() -> None:
    """And no other."""
    named = re.search(r"`python -m pgnotifyq` with (.*?)\. Each", README.read_text(encoding="utf-8"), re.DOTALL)
    assert named is not None
    words = {word.split()[0] for word in re.findall(r"`([^`]+)`", named[1])}
    assert words == {name for name in app if not name.startswith("-")}
