"""SECURITY.md names the test that tries each of its promises, and each is there."""

from __future__ import annotations

import re
from pathlib import Path

from pgnotifyq.runtime.tenants import AGAINST_INTENT, AGAINST_MISTAKES

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "SECURITY.md").read_text(encoding="utf-8")


def test_each_test_is_there() -> None:
    """A test that is renamed is renamed there."""
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT)
    assert len(named) >= 10
    missing = [
        f"{path}::{name}"
        for path, name in named
        if not re.search(rf"^(?:async )?def {name}\(", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert missing == []


def test_each_line_has_a_test() -> None:
    """But the owner's, who can do everything."""
    rows = [line for line in TEXT.splitlines() if line.startswith("| ") and not line.startswith(("| who", "| the owner"))]
    assert len(rows) >= 8
    assert [row for row in rows if "tests/" not in row] == []


def test_grades_are_said_in_one_way() -> None:
    """The worker's start and doctor take their words from one place, and the page has the same."""
    for grade in (AGAINST_INTENT, AGAINST_MISTAKES):
        assert f"**{grade[0].upper()}{grade[1:]}.**" in TEXT
