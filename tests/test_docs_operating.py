"""The SQL of docs/operating.md, docs/dead_letters.md and docs/unique.md."""

from __future__ import annotations

import psycopg

from tests.pages import DOCS, named


def test_pauses_in_sql(dsn: str) -> None:
    """Each statement is right as it stands, and what it says is so."""
    statements = named(DOCS / "operating.md")["pauses in SQL"].split(";\n")
    with psycopg.connect(dsn, autocommit=True) as connection:
        answers = [connection.execute(statement.encode()).fetchall() for statement in statements if statement.strip()]
    assert answers[:3] == [[(True,)]] * 3
    assert sorted(row[0] for row in answers[3]) == ["everything", "job_type", "queue"]
    assert answers[4] == [(True,)]


def test_requeue_in_sql(dsn: str) -> None:
    """The statement of docs/dead_letters.md is right as it stands."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        assert connection.execute(named(DOCS / "dead_letters.md")["requeue in SQL"].encode()).fetchone() == (0,)


def test_edits_in_sql(dsn: str) -> None:
    """An edit, and both bulks, are right as they stand."""
    page = named(DOCS / "operating.md")
    with psycopg.connect(dsn, autocommit=True) as connection:
        assert connection.execute(page["edit in SQL"].encode()).fetchone() == ("unknown",)
        for statement in page["bulk in SQL"].strip().split("\n"):
            assert connection.execute(statement.encode()).fetchone() == (0, 0, None)


def test_unique_in_sql(dsn: str) -> None:
    """Both statements of docs/unique.md are right as they stand, and said twice they make no other job."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        for statement in named(DOCS / "unique.md")["sql"].strip().split(";\n"):
            first = connection.execute(statement.encode()).fetchone()
            assert connection.execute(statement.encode()).fetchone() == first
