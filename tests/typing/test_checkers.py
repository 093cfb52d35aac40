"""mypy and pyright refuse each planted mistake, and nothing else.

They are in the extra `dev`, with which `.ci/run` runs this after the other checks of the source.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
MISTAKES = HERE / "mistakes.py"
CORRECT = [HERE / "tasks.py", HERE / "uses.py", *sorted((ROOT / "examples").glob("*.py"))]
MARK = "# refused: "

Errors = list[tuple[str, int, str]]  # file, line, what it says


def mypy(files: list[Path]) -> Errors:
    """Ask mypy with the project's settings, which are strict."""
    said = run("mypy", "--output=json", *map(str, files))
    found = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    return [(each["file"], each["line"], each["message"]) for each in found if each["severity"] == "error"]


def pyright(files: list[Path]) -> Errors:
    """Ask pyright; a file says itself how strictly."""
    said = json.loads(run("pyright", "--outputjson", "--pythonpath", sys.executable, *map(str, files)))
    assert said["summary"]["filesAnalyzed"] == len(files)
    found = [each for each in said["generalDiagnostics"] if each["severity"] == "error"]
    return [(each["file"], each["range"]["start"]["line"] + 1, each["message"]) for each in found]


def run(checker: str, *arguments: str) -> str:
    if importlib.util.find_spec(checker) is None:
        pytest.skip(f"{checker} is not installed: it is in the extra `dev`")
    # It would look for a newer pyright, and say so.
    environment = {**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    ran = subprocess.run(
        [sys.executable, "-m", checker, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode in {0, 1}, ran.stdout + ran.stderr  # 1: it has found errors; else it has not run
    return ran.stdout


CHECKERS = [pytest.param(mypy, id="mypy"), pytest.param(pyright, id="pyright")]


@pytest.mark.parametrize("check", CHECKERS)
def test_each_mistake_is_refused_and_nothing_else(check: Callable[[list[Path]], Errors]) -> None:
    """A line that is marked in mistakes.py has an error, and no other line has one."""
    lines = dict(enumerate(MISTAKES.read_text(encoding="utf-8").splitlines(), 1))
    marked = {number for number, line in lines.items() if MARK in line}
    refused: dict[int, list[str]] = {}
    for file, number, what in check([MISTAKES]):
        assert Path(ROOT, file) == MISTAKES, what
        refused.setdefault(number, []).append(what)
    assert {lines[number] for number in marked - refused.keys()} == set()
    assert {lines[number]: what for number, what in refused.items() if number not in marked} == {}


@pytest.mark.parametrize("check", CHECKERS)
def test_correct_programs_are_not_refused(check: Callable[[list[Path]], Errors]) -> None:
    """Handlers of every kind, what is done with them, and the examples."""
    assert check(CORRECT) == []


def test_every_mistake_says_what_it_is() -> None:
    """The kinds that were promised are among them: a payload, a field, a signature, settings, a status, a result, a job."""
    marked = [line for line in MISTAKES.read_text(encoding="utf-8").splitlines() if MARK in line]
    assert all(line.partition(MARK)[2].strip() for line in marked)
    for kind in (
        "enqueue(tasks.resize, ",
        "widht",
        "@registry.handler",
        "max_atempts",
        "concurency",
        "pendng",
        ".result",
        "NewJob(",
    ):
        assert any(kind in line for line in marked), kind


def test_the_package_says_that_it_is_typed() -> None:
    """Without the marker, checkers would look at none of its annotations."""
    assert (ROOT / "pgnotifyq" / "py.typed").exists()
