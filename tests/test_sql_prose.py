"""Comments under sql/ have lines that people can read."""

from __future__ import annotations

from pathlib import Path

import pytest

SQL = Path(__file__).parents[1] / "sql"
CHARS_MAX = 100  # as ruff's max-doc-length has it for Python
# The text of a released migration does not change: databases have noted its digest.
RELEASED = [f"migrations/{number:04d}_" for number in range(1, 6)]
# Their comments are still to be rewritten.
TO_DO = ["functions/claim/", "functions/end/", "functions/lease/", "queries/"]
FILES = sorted(
    name
    for path in SQL.rglob("*.sql")
    if not (name := path.relative_to(SQL).as_posix()).startswith(tuple(RELEASED + TO_DO))
)  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_comment_lines(name: str) -> None:
    """No line that is a comment is longer than 100 characters."""
    lines = (SQL / name).read_text(encoding="utf-8").splitlines()
    long = [
        f"{name}:{number}" for number, line in enumerate(lines, 1) if line.lstrip().startswith("--") and len(line) > CHARS_MAX
    ]
    assert not long


def test_files_there_are() -> None:
    """The check above looks at files, in folders and in migrations."""
    assert {"functions/worker/wake.sql", "functions/enqueue/enqueue.sql", "migrations/0010_fences.sql"} <= set(FILES)
