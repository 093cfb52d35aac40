"""What the documentation names is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCS = sorted((ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("page", DOCS, ids=[page.name for page in DOCS])
def test_files_that_are_named_exist(page: Path) -> None:
    """Every path in code spans, below the package or at the top, and every link."""
    text = page.read_text(encoding="utf-8")
    named = {name for name in re.findall(r"`([\w./]+/[\w./]*|\w+\.py)`", text) if "::" not in name}
    assert named
    for name in sorted(named):
        assert (ROOT / name).exists() or (ROOT / "pgnotifyq" / name).exists(), name
    for link in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (page.parent / link).exists(), link
