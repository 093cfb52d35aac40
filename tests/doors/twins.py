"""The blocking door's verbs are made from the awaited ones: `python -m tests.doors.twins` writes those files anew.

A verb is a value, so what a door adds to it is a signature, a docstring and how to wait. The two of a pair differ in `async` and `await`,
in a few names, and in what is said of cancellation and of loops; kept by hand they would drift. test_twins.py compares them. What differs
in more than that (connections, waiting, following) has two files that are written by hand, and every_door.py.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

DOORS = Path(__file__).resolve().parents[2] / "pgnotifyq" / "doors"
# The awaited file, and the one that is made from it.
PAIRS = {
    "jobs.py": "jobs_blocking.py",
    "operating.py": "operating_blocking.py",
    "schedules.py": "schedules_blocking.py",
    "for_org.py": "for_org_blocking.py",
}
MADE = "Made from {source} by `python -m tests.doors.twins`: change that, not this."
# Patterns, and what stands in their place; in this order.
RULES = (
    (r"\n\n +(?:Cancellation|On an event loop): (?:.+\n)+?(?=\n| +\"\"\")", "\n"),
    (r"\bof a door that is awaited, on trio and on asyncio\b", "of a door that blocks"),
    (r", on trio and on asyncio\b", ", blocking"),
    (r"\basync def\b", "def"),
    (r"\bawait ", ""),
    (r"\bAwaited(?=[A-Z])", "Blocking"),
    (r"\bAwaitable\[(\w+(?: \| \w+)*|\w+\[\w+\])\]", r"\1"),
    (r"\bimport Awaitable, ", "import "),
    (r"\bpgnotifyq\.doors\.schedules\b", "pgnotifyq.doors.schedules_blocking"),
    (r"\bpgnotifyq\.doors\.watching import Following, Watching\b", "pgnotifyq.doors.blocking_watching import BlockingWatching"),
    (r"\b_watching: Watching\b", "_watching: BlockingWatching"),
    (r"\bFollowing\[", "Iterator["),
    (r"\bmake_all\b", "make_all_blocking"),
)


def made(source: str) -> str:
    """Return the blocking file's text, but for its layout, from the awaited one's name."""
    text = (DOORS / source).read_text(encoding="utf-8")
    for pattern, instead in RULES:
        text = re.sub(pattern, instead, text)
    if "Iterator[" in text:
        text = re.sub(r"(from collections\.abc import .*)Iterable, ", r"\1Iterable, Iterator, ", text)
    docstring = ast.get_docstring(ast.parse(text), clean=False) or ""
    lines = [docstring.rstrip(), "", MADE.format(source=source), ""]
    return text.replace(f'"""{docstring}"""', '"""' + "\n".join(lines) + '"""', 1)


def laid_out(text: str) -> str:
    """Return the text as the linter wants it."""
    for command in (["check", "--select", "I", "--fix", "--quiet"], ["format"]):
        ran = subprocess.run(
            ["ruff", *command, "--stdin-filename", str(DOORS / "made.py"), "-"],
            input=text,
            capture_output=True,
            text=True,
            check=True,
        )
        text = ran.stdout
    return text


def main() -> int:
    """Write the files."""
    for source, target in PAIRS.items():
        (DOORS / target).write_text(laid_out(made(source)), encoding="utf-8")
        print(f"{target} made from {source}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
