"""What a program's tests ask beside the verbs that everybody has."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, cast

from pgnotifyq.ledger.ask import Aside, Ask, Plan, Script, array
from pgnotifyq.ledger.columns import rows
from pgnotifyq.ledger.errors import said_of
from pgnotifyq.ledger.statements import query, with_values

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import datetime

    from pgnotifyq.ledger.ask import Answer, Steps


def due_queues(schema: str, job_types: Collection[str], queues: Collection[str] | None = None) -> Ask[list[str]]:
    """Return the queues in which a job of these types is due or held.

    Source: sql/queries/testing/due.sql
    """

    def read(answer: Answer, encoding: str) -> list[str]:
        return [name for (name,) in rows(answer, encoding)]

    values = (array(job_types), None if queues is None else array(queues))
    return Ask(query("testing/due", schema), values, read, said_of(schema))


def clock(schema: str) -> Ask[datetime]:
    """Return what the queue's clock says. Source: sql/queries/testing/now.sql."""

    def read(answer: Answer, encoding: str) -> datetime:
        ((time,),) = rows(answer, encoding)
        return cast("datetime", time)

    return Ask(query("testing/now", schema), (), read, said_of(schema))


def stop_clock(schema: str, time: datetime | None) -> Plan[None]:
    """Let the clock of the database stand at a time; None: it goes on.

    Source: sql/queries/testing/stop_clock.sql
    """

    def steps() -> Steps[None]:
        yield Script(with_values(query("testing/stop_clock", schema), (None if time is None else time.isoformat(),)))

    return Plan(steps)


def set_clock(schema: str, time: str) -> Ask[str]:
    """Let the clock of the open transaction stand at a time; empty: it goes on.

    Returns: what it was set to before.

    Source: sql/queries/testing/set_clock.sql
    """

    def read(answer: Answer, encoding: str) -> str:
        ((was, _),) = rows(answer, encoding)
        return str(was)

    return Ask(query("testing/set_clock", schema), (time,), read)


def begin_part(schema: str) -> Plan[bool]:
    """Begin a part of the open transaction that can be undone by itself.

    Returns: False if there is no open transaction, and nothing was begun.
    """

    def steps() -> Steps[bool]:
        if (yield Aside.IS_ALONE):
            return False
        yield Script(query("testing/savepoint", schema))
        return True

    return Plan(steps)


def end_part(schema: str, *, undo: bool = False) -> Plan[bool]:
    """End that part: keep what it has written, unless an error has aborted the transaction.

    Returns: whether it was kept.
    """
    release, back = Script(query("testing/release", schema)), Script(query("testing/undo", schema))

    def steps() -> Steps[bool]:
        if not undo:
            with suppress(Exception):
                yield release
                return True
        yield back
        yield release
        return False

    return Plan(steps)
