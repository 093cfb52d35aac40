"""A queue at a glance, for a screen that looks again and again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from pgnotifyq.ledger.ask import Ask
from pgnotifyq.ledger.columns import only
from pgnotifyq.ledger.errors import said_of
from pgnotifyq.ledger.statements import call

if TYPE_CHECKING:
    from pgnotifyq.ledger.ask import Answer

Facts = dict[str, Any]


@attrs.frozen(kw_only=True)
class Glance:
    """What sql/functions/look/top.sql says. The names are those that it gives."""

    queues: list[Facts]
    running: list[Facts]
    running_all: int  # how many run; `running` may list fewer
    waiting: list[Facts]
    dead: list[Facts]
    # Jobs enqueued and attempts ended since the server counts; `at`, in seconds since 1970.
    counted: Facts


def top(schema: str, *, rows_max: int = 50) -> Ask[Glance]:
    """Return queues, what runs, what waits longest, and what died last.

    It reads some thousand entries of indexes, however many jobs wait.

    Source: sql/functions/look/top.sql
    """

    def read(answer: Answer, encoding: str) -> Glance:
        return Glance(**only(answer, encoding))

    return Ask(call("top", "integer", schema), (str(rows_max),), read, said_of(schema))
