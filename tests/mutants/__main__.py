"""Break a copy of the product in each of the known ways, and see that the tests turn red: `python -m tests.mutants`.

A mutant is killed when one of its tests fails by what it asserts, or by what the database refuses. It is void when what fails is
that the code does not run at all: nobody learns from a mutant with a slip of the pen. First of all the same tests pass
without a mutant, in the same copy.

One database server serves all runs; it is `PGNOTIFYQ_DSN`, else an embedded one.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from pgnotifyq.embedded import open_temporary_server
from tests.conftest import SETTINGS
from tests.mutants.catalogue import MUTANTS, ROOT, Mutant

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

COPIED = ("pgnotifyq", "sql", "tests", "pyproject.toml", "README.md")
# A mutant makes tests wait in vain, so this bounds what it costs; the unmutated copy is held to it too.
PATIENCE_SECONDS = 8
TIMEOUT_SECONDS = 60
# A mutant can make a test stand still where its own timeout does not reach it: in another thread's loop, say. That is red, too.
STANDSTILL_SECONDS = 5 * TIMEOUT_SECONDS
# The code does not run: whatever these say, they say nothing of a promise.
_BROKEN = re.compile(
    r"\b(ImportError|ModuleNotFoundError|SyntaxError|IndentationError|NameError|UnboundLocalError|UndefinedColumn|UndefinedTable"
    r"|UndefinedFunction|SchemaMissing|InvalidSchemaName)\b"
)


@attrs.frozen
class Run:
    """What became of some tests."""

    seconds: float
    passed: int
    failed: dict[str, str]  # by name of the test: how
    errors: dict[str, str]  # of fixtures, and of the collection
    out: str


def main() -> int:
    """Run the mutants asked for; 0 when all were killed."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", metavar="NAME", action="append", help="those whose name contains this; may be repeated")
    parser.add_argument("--list", action="store_true", help="print their names, and run nothing")
    asked = parser.parse_args()
    mutants = [mutant for mutant in MUTANTS if not asked.only or any(part in mutant.name for part in asked.only)]
    if asked.list:
        print(*(mutant.name for mutant in mutants), sep="\n")
        return 0
    if not mutants:
        print(f"no mutant's name contains {' or '.join(asked.only)}: see --list", file=sys.stderr)
        return 2
    with _open_server() as dsn, tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        # Outside of a work tree's own folder, as somebody's checkout would be; readable for the server's user.
        copy = Path(folder) / "copy"
        _copy(copy)
        return _hunt(mutants, copy, dsn)


def _hunt(mutants: Sequence[Mutant], copy: Path, dsn: str) -> int:
    began_at = time.monotonic()
    sound = _run(copy, dsn, sorted({test for mutant in mutants for test in mutant.tests}))
    if sound.failed or sound.errors or not sound.passed:
        print(sound.out)
        print("without a mutant the tests are not green: nothing can be learned from them", file=sys.stderr)
        return 2
    print(f"{sound.passed} tests pass without a mutant, in {sound.seconds:.0f} s")
    print(f"{'mutant':<60}{'':<10}{'s':>4}  red")
    survivors = []
    for mutant in mutants:
        path = copy / mutant.file
        text = path.read_text(encoding="utf-8")
        assert mutant.count(text) == 1, f"{mutant.name}: its text is {mutant.count(text)} times in {mutant.file}"
        path.write_text(mutant.apply(text), encoding="utf-8")
        try:
            run = _run(copy, dsn, mutant.tests, "--exitfirst")
        finally:
            path.write_text(text, encoding="utf-8")
        verdict = _verdict(run)
        told = next(iter(run.failed), "")
        print(f"{mutant.name:<60}{verdict:<10}{run.seconds:>4.0f}  {told}", flush=True)
        if verdict != "killed":
            survivors.append(mutant.name)
            print(run.out)
    print(f"{len(mutants) - len(survivors)} of {len(mutants)} mutants killed, in {time.monotonic() - began_at:.0f} s")
    for name in survivors:
        print(f"not killed: {name}", file=sys.stderr)
    return 1 if survivors else 0


def _verdict(run: Run) -> str:
    if run.errors or any(_BROKEN.search(how) for how in run.failed.values()):
        return "void"
    return "killed" if run.failed else "SURVIVED"


def _run(copy: Path, dsn: str, tests: Sequence[str], *options: str) -> Run:
    """Run some tests of the copy, in a process of their own."""
    report = copy / "report.xml"
    report.unlink(missing_ok=True)
    environment = {
        **os.environ,
        "PGNOTIFYQ_DSN": dsn,
        "PGNOTIFYQ_TEST_PATIENCE_SECONDS": str(PATIENCE_SECONDS),
        # The copy, not what is installed; in the processes that tests start, too. And no file of bytes that outlives a change
        # made within the same second.
        "PYTHONPATH": str(copy),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", f"--timeout={TIMEOUT_SECONDS}",
        f"--junitxml={report}", *options, *(f"tests/{test}" for test in tests),
    ]  # fmt: skip
    began_at = time.monotonic()
    limit = STANDSTILL_SECONDS if "--exitfirst" in options else None
    try:
        ran = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False, timeout=limit)
    except subprocess.TimeoutExpired:
        return Run(time.monotonic() - began_at, 0, {"pytest": f"stood still for {limit} s"}, {}, "")
    seconds = time.monotonic() - began_at
    out = ran.stdout + ran.stderr
    if not report.exists():
        return Run(seconds, 0, {}, {"pytest": "wrote no report"}, out)
    cases = ET.parse(report).getroot().findall(".//testcase")
    return Run(
        seconds,
        sum(case.find("failure") is None and case.find("error") is None for case in cases),
        {case.get("name", ""): _how(case.find("failure")) for case in cases if case.find("failure") is not None},
        {case.get("name", ""): _how(case.find("error")) for case in cases if case.find("error") is not None},
        out,
    )


def _how(element: ET.Element | None) -> str:
    return "" if element is None else f"{element.get('message', '')}\n{element.text or ''}"


def _copy(copy: Path) -> None:
    """Copy what is tested, as it is in the work tree now."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, copy / name)


@contextmanager
def _open_server() -> Iterator[str]:
    given = os.environ.get("PGNOTIFYQ_DSN")
    if given:
        yield given
        return
    with open_temporary_server(version=int(os.environ.get("PGNOTIFYQ_TEST_POSTGRES", "18")), settings=SETTINGS) as server:
        yield server.dsn


if __name__ == "__main__":
    sys.exit(main())
