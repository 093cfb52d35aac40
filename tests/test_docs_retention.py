"""The SQL of docs/retention.md."""

from __future__ import annotations

import psycopg

from tests.pages import DOCS, named


def test_retention_in_sql(dsn: str) -> None:
    """Each statement is right as it stands, and what is left is what the last of them leave."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        statements = [each for each in named(DOCS / "retention.md")["retention in SQL"].split(";\n") if each.strip()]
        answers = [connection.execute(statement.encode()).fetchall() for statement in statements]
    assert answers[-1] == [], "nothing is said of the queue any more, of any ending"


def test_erasing_in_sql(dsn: str) -> None:
    """The statement is right as it stands."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("select pgnotifyq.enqueue('greet', payload => '{\"user\": 17}')")
        row = connection.execute(named(DOCS / "retention.md")["erasing in SQL"].encode()).fetchone()
        assert row is not None and row[:4] == (1, 0, 0, 0)
