"""A lease on its way: renewed, asked about, given back, and taken over when it has expired."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
from psycopg import errors

from pgnotifyq.ledger.ask import Ask, array, nothing, text
from pgnotifyq.ledger.columns import rows, truth, word
from pgnotifyq.ledger.errors import raise_translated
from pgnotifyq.ledger.statements import call
from pgnotifyq.model.checkpoint import too_large
from pgnotifyq.model.job import JobId, Lease, WorkerId

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pgnotifyq.ledger.ask import Answer


@attrs.frozen(kw_only=True)
class Surprise:
    """A job for which a worker's write did not simply succeed."""

    job_id: JobId
    # lost, cancelled, dead, completed; from a heartbeat also unrenewed; from `settle_apart` also
    # bare, busy, refused
    became: str
    why: str | None = None  # what the cancel said; or what the database said
    sqlstate: str | None = None  # of the database's error


def heartbeat(schema: str, *, worker_id: WorkerId, leases: Sequence[Lease], lease_seconds: float) -> Ask[list[Surprise]]:
    """Give a sign of life and renew leases.

    Returns: the jobs that are not simply renewed: `cancelled` (still held; stop the handler),
        `lost`, or `unrenewed` (still held, but its row cannot be written now: another transaction
        holds the row, say).

    Source: sql/functions/lease/heartbeat.sql
    """
    values = (worker_id.hex, *lease_arrays(sorted(leases, key=job_order)), str(lease_seconds))
    return Ask(call("heartbeat", "uuid uuid[] uuid[] float8", schema), values, read_surprises, is_durable=False)


def lost(schema: str, leases: Sequence[Lease]) -> Ask[set[JobId]]:
    """Return which of some executions have lost their jobs.

    Pass only executions that do not hold their jobs any more. An execution that ended because this
    worker wrote its end has not lost its job.

    Source: sql/functions/end/surprises.sql
    """
    return Ask(call("surprises", "uuid[] uuid[]", schema), lease_arrays(sorted(leases, key=job_order)), _lost)


def _lost(answer: Answer, encoding: str) -> set[JobId]:
    return {surprise.job_id for surprise in read_surprises(answer, encoding) if surprise.became == "lost"}


def cancelled(schema: str, leases: Sequence[Lease]) -> Ask[list[Surprise]]:
    """Return which of some executions shall stop because their jobs were cancelled.

    Source: sql/functions/lease/cancelled.sql
    """
    return Ask(call("cancelled", "uuid[] uuid[]", schema), lease_arrays(leases), _cancelled)


def _cancelled(answer: Answer, encoding: str) -> list[Surprise]:
    return [Surprise(job_id=job_id, became="cancelled", why=why) for job_id, why in rows(answer, encoding)]


def read_surprises(answer: Answer, encoding: str) -> list[Surprise]:
    """Read rows of a job's id, what became of it and, from some functions, why."""
    return [
        Surprise(job_id=job_id, became=became, why=rest[0] if rest else None) for job_id, became, *rest in rows(answer, encoding)
    ]


def job_order(lease: Lease) -> int:
    """Order as PostgreSQL orders uuids.

    Comparing the objects themselves takes five times as long.
    """
    return lease[0].int


def lease_arrays(leases: Sequence[Lease]) -> tuple[str, str]:
    """Write job ids and execution ids as two arrays."""
    return (
        "{" + ",".join([f"{lease[0].int:032x}" for lease in leases]) + "}",
        "{" + ",".join([f"{lease[1].int:032x}" for lease in leases]) + "}",
    )


def still_holds(schema: str, lease: Lease) -> Ask[str]:
    """Lock the job's row until the transaction ends, and tell whether the execution may write.

    Returns: `held`, `cancelled` or `lost`.

    Source: sql/functions/lease/still_holds.sql
    """
    return Ask(call("still_holds", "uuid uuid", schema), (lease.job_id.hex, lease.execution_id.hex), word)


def report_progress(schema: str, lease: Lease, *, fraction: float | None, message: str | None) -> Ask[bool]:
    """Store how far an execution has come; False when it no longer holds the job.

    Source: sql/functions/lease/report_progress.sql
    """
    values = (lease.job_id.hex, lease.execution_id.hex, text(fraction), message)
    return Ask(call("report_progress", "uuid uuid float4 text", schema), values, truth, is_durable=False)


def save(schema: str, lease: Lease, saved: str | None) -> Ask[bool]:
    """Keep the state of an execution, as JSON text; False when it no longer holds the job.

    If `saved` is None, there is no state any more.

    Raises:
        StateTooLarge: the state has too many bytes, as PostgreSQL writes it.

    Source: sql/functions/lease/save.sql
    """

    def on_error(error: Exception) -> bool:
        if isinstance(error, errors.CheckViolation) and error.diag.datatype_name == "saved":
            raise too_large() from error
        raise_translated(error, schema)

    return Ask(call("save", "uuid uuid text", schema), (lease.job_id.hex, lease.execution_id.hex, saved), truth, on_error)


@attrs.frozen(kw_only=True)
class Reclaimed:
    """A job taken back from a worker that lost it."""

    job_id: JobId
    job_type: str
    queue_name: str
    worker_id: WorkerId
    attempt: int
    # pending, dead or cancelled; completed, if its worker meant that and could not write it;
    # refused, if it was put aside
    became: str


def release_all(schema: str, worker_id: WorkerId) -> Ask[None]:
    """Give back what a worker holds, uncharged: its process is about to end.

    Source: sql/functions/lease/release_all.sql
    """
    return Ask(call("release_all", "uuid", schema), (worker_id.hex,), nothing)


def reclaim(
    schema: str, *, worker_id: WorkerId, jobs_max: int, dead: Sequence[WorkerId] = ()
) -> Ask[tuple[list[Reclaimed], float | None, bool]]:
    """Take back jobs whose lease ran out or whose worker is dead, at most `jobs_max`.

    Returns: the jobs; seconds until the next lease runs out (None: none is held); whether all such
        jobs were taken back.

    Source: sql/functions/lease/reclaim.sql
    """
    values = (worker_id.hex, str(jobs_max), array([each.hex for each in dead]))
    return Ask(call("reclaim", "uuid integer uuid[]", schema), values, _reclaimed)


def _reclaimed(answer: Answer, encoding: str) -> tuple[list[Reclaimed], float | None, bool]:
    found = rows(answer, encoding)
    next_seconds = None
    took_all = bool(found) and found[-1][0] is None
    if took_all:
        next_seconds = found.pop()[6]
    jobs = [
        Reclaimed(job_id=row[0], job_type=row[1], queue_name=row[2], worker_id=row[3], attempt=row[4], became=row[5])
        for row in found
    ]
    return jobs, next_seconds, took_all
