"""The SQL of docs/explain.md, and its table of answers."""

from __future__ import annotations

import re

import psycopg

from pgnotifyq.ledger.explaining import SAYINGS
from tests.pages import DOCS, named

PAGE = DOCS / "explain.md"


def test_statements(dsn: str) -> None:
    """Each is right as it stands."""
    page = named(PAGE)
    with psycopg.connect(dsn, autocommit=True) as connection:
        assert connection.execute(page["explain in SQL"].encode()).fetchone() == ("unknown", ["pruned"], None)
        row = connection.execute(page["top in SQL"].encode()).fetchone()
        assert row is not None and '"queues": [' in row[0]


def test_answers() -> None:
    """The page lists those that there are, in the order in which they are told."""
    lines = PAGE.read_text(encoding="utf-8").partition("| answer |")[2].partition("\n\n")[0].splitlines()
    cells = [line.split("|")[1] for line in lines if line.startswith("| `")]
    assert [word for cell in cells for word in re.findall(r"`(\w+)`", cell)] == list(SAYINGS)
