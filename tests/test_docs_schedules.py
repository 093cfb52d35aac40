"""The SQL and the registry of docs/schedules.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg

from tests.pages import DOCS, blocks, named

if TYPE_CHECKING:
    from typing import Any


def test_schedules_in_sql(dsn: str) -> None:
    """Each statement is right as it stands, and what it says is so."""
    statements = named(DOCS / "schedules.md")["schedules in SQL"].split(";\n")
    with psycopg.connect(dsn, autocommit=True) as connection:
        answers = [connection.execute(statement.encode()).fetchall() for statement in statements if statement.strip()]
    assert answers[:4] == [[("created",)], [("created",)], [(True,)], [(True,)]]
    assert sorted(row[0] for row in answers[5]) == ["nightly", "often"]
    assert answers[6] == [(True,)]


def test_registry_of_the_page() -> None:
    """It has the schedules that the page tells of."""
    (program,) = [block.text for block in blocks(DOCS / "schedules.md") if block.name == "reports.py"]
    names: dict[str, Any] = {"__name__": "reports"}
    exec(compile(program, "reports.py", "exec"), names)
    told = [(new.name, new.rule, new.owner) for new in names["registry"].schedules]
    assert told == [
        ("report", "0 3 * * *", "reports"),
        ("sweep.daily", "09:00; 17:30", "reports"),
        ("sweep", "every 2700s", "reports"),
    ]
