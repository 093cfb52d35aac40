"""Troubles: a row in the way of what a worker does for others, and what is told of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from pgnotifyq.ledger.errors import Whose, whose
from pgnotifyq.model.events import Event, EventName

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from pgnotifyq.ledger.look import TroubleRow
    from pgnotifyq.model.events import EventSink

T = TypeVar("T")


async def bear(emit: EventSink, verb: str, operation: Callable[[], Awaitable[T]]) -> T | None:
    """Do something for others. If a row in the way could not even be put aside, tell of it.

    Returns: what the operation returned; None if such a row stood in its way.

    Raises: what is not a row's fault.
    """
    try:
        return await operation()
    except Exception as error:
        if whose(error) is not Whose.JOB:
            raise
        fields = {"verb": verb, "sqlstate": getattr(error, "sqlstate", None), "why": str(error).partition("\n")[0]}
        emit(Event(name=EventName.JOB_PUT_ASIDE, fields=fields))
        return None


def tell_troubles(emit: EventSink, troubles: Sequence[TroubleRow]) -> None:
    """Tell of jobs that were put aside for the first time; not again at each look."""
    for trouble in troubles:
        if trouble.tries > 1:
            continue
        fields = {
            "job_id": trouble.job_id,
            "job_type": trouble.job_type,
            "queue": trouble.queue_name,
            "verb": trouble.verb,
            "sqlstate": trouble.sqlstate,
            "why": trouble.error_message,
        }
        emit(Event(name=EventName.JOB_PUT_ASIDE, fields=fields))
