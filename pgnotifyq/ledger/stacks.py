"""Where a running handler stands: a client asks, and the worker that holds the job answers."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

import attrs

from pgnotifyq.ledger.ask import Ask, array
from pgnotifyq.ledger.columns import records, rows, truth
from pgnotifyq.ledger.errors import said_of
from pgnotifyq.ledger.statements import call, query
from pgnotifyq.model import stack
from pgnotifyq.model.job import ExecutionId, JobId, WorkerId
from pgnotifyq.model.stack import Stack, StackState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pgnotifyq.ledger.ask import Answer


@attrs.frozen(kw_only=True)
class StackRequest:
    """A request that was made, or why none was."""

    is_there: bool  # there is such a job
    request_id: UUID | None  # None: no worker holds it
    execution_id: ExecutionId | None
    worker_id: WorkerId | None
    host: str | None
    pid: int | None
    is_alive: bool | None

    def unanswered(self, job_id: JobId, seconds: float) -> Stack:
        """Return what is known although the worker has not answered."""
        who = "a worker that has left no trace" if self.host is None else f"host {self.host}, process {self.pid}"
        why = (
            f"its worker, {who}, has not answered within {seconds:g} s, and is alive: its process is stopped or busy, a handler"
            " holds its event loop (its log has loop.blocked), or it listens no more"
            if self.is_alive
            else f"its worker, {who}, is gone; others take the job back"
        )
        return Stack(job_id=job_id, execution_id=self.execution_id, state=StackState.UNRESPONSIVE, why=why)


def ask_stack(schema: str, job_id: JobId) -> Ask[StackRequest]:
    """Ask the worker that holds a job where its handler stands. `stack_of` has the answer.

    Source: sql/functions/lease/stack.sql
    """

    def read(answer: Answer, encoding: str) -> StackRequest:
        (found,) = records(answer, encoding)
        return StackRequest(**found)

    return Ask(call("ask_stack", "uuid", schema), (job_id.hex,), read, said_of(schema))


def stack_of(schema: str, job_id: JobId, request: StackRequest) -> Ask[Stack | None]:
    """Return the answer to a request, or None: there is none so far.

    Source: sql/queries/stack.sql
    """
    assert request.request_id is not None
    assert request.execution_id is not None
    execution_id = request.execution_id

    def read(answer: Answer, encoding: str) -> Stack | None:
        found = rows(answer, encoding)
        return stack.read(found[0][0], job_id, execution_id) if found and found[0][0] is not None else None

    return Ask(query("stack", schema), (request.request_id.hex,), read, said_of(schema))


def stacks_asked(
    schema: str, worker_id: WorkerId, request_ids: Sequence[UUID] | None = None
) -> Ask[list[tuple[UUID, JobId, ExecutionId]]]:
    """Return which of some requests are really made to a worker: the request, job and execution.

    If `request_ids` is None, all requests are meant.

    Source: sql/queries/stacks_asked.sql
    """

    def read(answer: Answer, encoding: str) -> list[tuple[UUID, JobId, ExecutionId]]:
        return [(request, JobId(job), ExecutionId(execution)) for request, job, execution in rows(answer, encoding)]

    values = (worker_id.hex, None if request_ids is None else array([each.hex for each in request_ids]))
    return Ask(query("stacks_asked", schema), values, read, said_of(schema))


def answer_stack(schema: str, worker_id: WorkerId, request_id: UUID, answer: str) -> Ask[bool]:
    """Answer a request in JSON; return whether the request still waited for an answer.

    Source: sql/functions/lease/stack.sql
    """
    values = (request_id.hex, worker_id.hex, answer)
    return Ask(call("answer_stack", "uuid uuid text", schema), values, truth, said_of(schema))
