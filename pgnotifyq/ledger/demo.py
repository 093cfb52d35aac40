"""What the demo asks beside the verbs that everybody has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pgnotifyq.ledger.ask import Ask, nothing
from pgnotifyq.ledger.columns import number, rows, truth
from pgnotifyq.ledger.statements import bookkeeping, query

if TYPE_CHECKING:
    from pgnotifyq.ledger.ask import Answer
    from pgnotifyq.model.job import JobId


def progress(schema: str, job_type: str) -> Ask[tuple[int, int]]:
    """Return how many jobs of a type are completed, and how many are running."""

    def read(answer: Answer, encoding: str) -> tuple[int, int]:
        ((completed, running),) = rows(answer, encoding)
        return completed, running

    return Ask(query("demo/progress", schema), (job_type,), read)


def recovered(schema: str) -> Ask[tuple[int, JobId | None]]:
    """Return how many lost executions belong to jobs that are completed, and one such job."""

    def read(answer: Answer, encoding: str) -> tuple[int, JobId | None]:
        ((count, job_id),) = rows(answer, encoding)
        return count, job_id

    return Ask(query("demo/recovered", schema), (), read)


def held(schema: str, pid: int, job_type: str) -> Ask[int]:
    """Return how many jobs of a type a worker process runs."""
    return Ask(query("demo/held", schema), (str(pid), job_type), number)


def results(schema: str, job_type: str) -> Ask[dict[JobId, Any]]:
    """Return what the handlers of a job type returned, by job."""

    def read(answer: Answer, encoding: str) -> dict[JobId, Any]:
        return dict(rows(answer, encoding))

    return Ask(query("demo/results", schema), (job_type,), read)


def cancel(schema: str, job_id: JobId) -> Ask[None]:
    """Cancel a job as anybody may, by a plain status update."""
    return Ask(query("demo/cancel", schema), (job_id.hex,), nothing)


def take_stage(schema: str) -> Ask[bool]:
    """Keep other demos out; False if another demo is under way.

    The other demos stay out until this session leaves the stage or ends.
    """
    return Ask(bookkeeping("take_stage", schema), (), truth, may_repeat=False)


def leave_stage(schema: str) -> Ask[None]:
    """Let the next demo in."""
    return Ask(bookkeeping("leave_stage", schema), (), nothing, may_repeat=False)


def strike(schema: str) -> Ask[None]:
    """Drop a schema of ours with all that is in it."""
    return Ask(bookkeeping("strike", schema), (), nothing)


def strike_role(schema: str) -> Ask[None]:
    """Drop the role of a schema's tenants. The server refuses if another database needs it."""
    return Ask(bookkeeping("strike_role", schema), (), nothing)
