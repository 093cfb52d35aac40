"""What is paused: a queue, a job type, or everything; and what still runs of it."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import attrs

from pgnotifyq.ledger.ask import Ask, text
from pgnotifyq.ledger.columns import only, records, truth
from pgnotifyq.ledger.errors import said_of
from pgnotifyq.ledger.statements import call, query
from pgnotifyq.model.job import JobId

if TYPE_CHECKING:
    from pgnotifyq.ledger.ask import Answer

_SCOPE = "text text boolean"


@attrs.frozen(kw_only=True)
class Scope:
    """What is paused: one of the three."""

    queue: str | None = None
    job_type: str | None = None
    everything: bool = False

    def __str__(self) -> str:
        """Return it for people."""
        if self.queue is not None:
            return f"queue {self.queue}"
        return "everything" if self.job_type is None else f"job type {self.job_type}"

    @property
    def values(self) -> tuple[str | None, str | None, str | None]:
        """What SQL is given."""
        return self.queue, self.job_type, text(self.everything)


@attrs.frozen(kw_only=True)
class PauseRow:
    """What is paused, by whom and why."""

    scope: str  # queue, job_type or everything
    name: str  # the queue's or the job type's; of everything it is empty
    who: str
    why: str | None
    paused_at: datetime


def pause(schema: str, scope: Scope, *, why: str | None = None, who: str | None = None) -> Ask[bool]:
    """Let no job of a scope start; return whether the scope was not paused before.

    Raises:
        InvalidJob: a value is out of range, or the scope is not one of the three.

    Source: sql/functions/claim/pause.sql
    """
    return Ask(call("pause", _SCOPE + " text text", schema), (*scope.values, why, who), truth, said_of(schema))


def resume(schema: str, scope: Scope) -> Ask[bool]:
    """Let jobs of a scope start again, and wake workers for them; return whether it was paused.

    Raises: as `pause` does.

    Source: sql/functions/claim/pause.sql
    """
    return Ask(call("resume", _SCOPE, schema), scope.values, truth, said_of(schema))


def list_pauses(schema: str) -> Ask[list[PauseRow]]:
    """Return what is paused, the oldest first.

    Source: sql/queries/pauses.sql
    """
    return Ask(query("pauses", schema), (), _pauses, said_of(schema))


def _pauses(answer: Answer, encoding: str) -> list[PauseRow]:
    return [PauseRow(**row) for row in records(answer, encoding)]


def await_claims(schema: str) -> Ask[bool]:
    """Wait until all claims that may not have seen a pause have committed; False: ask again.

    Source: sql/functions/claim/admit.sql
    """
    return Ask(call("await_claims", "", schema), (), truth, said_of(schema))


def first_held(schema: str, scope: Scope) -> Ask[JobId | None]:
    """Return a job of a scope that a worker holds, and have the end of that hold announced.

    Source: sql/functions/claim/pause.sql
    """
    return Ask(call("first_held", "text text", schema), (scope.queue, scope.job_type), _job_id, said_of(schema))


def _job_id(answer: Answer, encoding: str) -> JobId | None:
    found = only(answer, encoding)
    return None if found is None else JobId(found)


def let_go(schema: str, job_id: JobId) -> Ask[bool | None]:
    """Return True if no worker holds a job; else have the end of the hold announced, return None.

    Source: sql/functions/claim/pause.sql
    """

    def read(answer: Answer, encoding: str) -> bool | None:
        return None if truth(answer, encoding) else True

    return Ask(call("await_release", "uuid", schema), (job_id.hex,), read, said_of(schema))
