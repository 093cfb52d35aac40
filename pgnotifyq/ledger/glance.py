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
    """What sql/functions/look/top.sql says: rows by the names that it gives them."""

    queues: list[Facts]
    running: list[Facts]
    running_all: int  # more than `running` has, perhaps
    waiting: list[Facts]
    dead: list[Facts]
    counted: Facts  # enqueued and ended, since the server counts; `at`, in seconds since 1970


def top(schema: str, *, rows_max: int = 50) -> Ask[Glance]:
    """Return queues, what runs, what waits longest, and what died last.

    It reads some thousand entries of indexes, whatever waits.

    Source: sql/functions/look/top.sql
    """

    def read(answer: Answer, encoding: str) -> Glance:
        return Glance(**only(answer, encoding))

    return Ask(call("top", "integer", schema), (str(rows_max),), read, said_of(schema))
