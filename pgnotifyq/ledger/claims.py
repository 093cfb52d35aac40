"""Claim, heartbeat and settle: the verbs of a worker that touch jobs it holds or is about to hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from pgnotifyq.ledger import claimed
from pgnotifyq.ledger.claimed import ClaimedJob
from pgnotifyq.ledger.statements import call
from pgnotifyq.model.job import JobId, Lease, WorkerId
from pgnotifyq.model.outcome import PLAIN_COMPLETION

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pgnotifyq.model.outcome import Settlement
    from pgnotifyq.wire.connection import Connection


@attrs.frozen(kw_only=True)
class Claim:
    """What one claim found."""

    jobs: list[ClaimedJob]  # in the order of claiming: preference of queue, priority, time, id
    ran_dry: bool  # fewer were found than asked for
    next_due_seconds: float | None  # until the next job of these queues falls due, when dry; None: none known
    is_contended: bool  # a due job was left because somebody else's transaction holds its row
    snapshot_xmin: int | None  # when dry: transactions below it had ended before the claim looked; None: a promise has passed


@attrs.frozen(kw_only=True)
class Surprise:
    """A job for which a worker's write did not simply succeed."""

    job_id: JobId
    became: str  # lost, cancelled, dead, or completed
    why: str | None = None  # the message left by whoever cancelled


async def claim(
    connection: Connection,
    schema: str,
    *,
    worker_id: WorkerId,
    queues: Sequence[str],
    jobs_max: int,
    lease_seconds: float,
    is_asleep: bool = False,
    after: ClaimedJob | None = None,
) -> Claim:
    """Claim up to `jobs_max` due jobs, each with a new execution and a lease.

    With `after`, the look goes on behind that job and does not see what comes before it (runtime/resuming.py).

    Cancellation: the claim may have been committed; its leases then run out. Shield it.

    Source: sql/functions/claim.sql
    """
    types, values = "uuid text[] integer float8 boolean", [worker_id, list(queues), jobs_max, lease_seconds, is_asleep]
    if after is not None:
        whole = after.whole
        types = f"{types} text integer timestamptz uuid"
        values += [whole.queue_name, whole.priority, whole.scheduled_at, whole.id]
    cursor = connection.cursor(binary=True)
    await cursor.execute(call("claim", types, schema), values)
    result, encoding = cursor.pgresult, connection.info.encoding
    assert result is not None
    count = result.ntuples
    next_due_seconds = snapshot_xmin = None
    ran_dry = count > 0 and result.get_value(count - 1, claimed.ID) is None
    if ran_dry:
        count -= 1
        next_due_seconds = claimed.float_from(result.get_value(count, claimed.NEXT_DUE_SECONDS))
        snapshot_xmin = claimed.integer_from(result.get_value(count, claimed.SNAPSHOT_XMIN))
    return Claim(
        jobs=[ClaimedJob.from_row(result, row, encoding, worker_id) for row in range(count)],
        ran_dry=ran_dry,
        next_due_seconds=next_due_seconds,
        is_contended=next_due_seconds is not None and next_due_seconds <= 0,
        snapshot_xmin=snapshot_xmin,
    )


async def heartbeat(
    connection: Connection, schema: str, *, worker_id: WorkerId, leases: Sequence[Lease], lease_seconds: float
) -> list[Surprise]:
    """Give a sign of life and renew leases.

    Returns: the jobs that are not simply renewed: `cancelled` (still held; stop the handler) or `lost`.

    Source: sql/functions/heartbeat.sql
    """
    cursor = await connection.execute(
        call("heartbeat", "uuid uuid[] uuid[] float8", schema),
        (worker_id, *_as_arrays(sorted(leases, key=_by_job)), lease_seconds),
    )
    return [Surprise(job_id=row[0], became=row[1], why=row[2]) for row in await cursor.fetchall()]


async def cancelled(connection: Connection, schema: str, leases: Sequence[Lease]) -> list[Surprise]:
    """Return which of some executions shall stop because their jobs were cancelled. Source: sql/functions/cancelled.sql."""
    cursor = await connection.execute(call("cancelled", "uuid[] uuid[]", schema), _as_arrays(leases))
    return [Surprise(job_id=row[0], became="cancelled", why=row[1]) for row in await cursor.fetchall()]


async def settle(
    connection: Connection, schema: str, *, worker_id: WorkerId, settlements: Sequence[tuple[Lease, Settlement]]
) -> list[Surprise]:
    """End executions, each fenced by job id and execution id; durable when this returns.

    Repeating a batch whose reply was lost is safe: an execution that ended is recognised by its id.

    Returns: the jobs that did not end as asked: `lost`, `cancelled` (a cancel had committed first), `dead`, `completed` (by the
        handler's own transaction, whose commit it was not told of).

    Source: sql/functions/complete.sql, sql/functions/settle.sql
    """
    plain, rest = [], []
    for lease, settlement in settlements:
        if settlement is PLAIN_COMPLETION:
            plain.append(lease)
        else:
            rest.append((lease, settlement))
    plain.sort(key=_by_job)
    rest.sort(key=lambda pair: _by_job(pair[0]))
    rows: list[tuple[JobId, str]] = []
    if plain:
        cursor = await connection.execute(
            call("complete", "uuid uuid[] uuid[]", schema), (worker_id, *_as_arrays(plain)), binary=True
        )
        rows += await cursor.fetchall()
    if rest:
        cursor = await connection.execute(
            call("settle", "uuid uuid[] uuid[] text[] text[] float8[] text[] text[] text[]", schema),
            (
                worker_id,
                *_as_arrays([lease for lease, _ in rest]),
                [settlement.kind.value for _, settlement in rest],
                [settlement.outcome for _, settlement in rest],
                [float(settlement.delay_seconds) for _, settlement in rest],
                [settlement.error_message for _, settlement in rest],
                [settlement.result_json for _, settlement in rest],
                [settlement.reason for _, settlement in rest],
            ),
            binary=True,
        )
        rows += await cursor.fetchall()
    return [Surprise(job_id=row[0], became=row[1]) for row in rows]


def _by_job(lease: Lease) -> int:
    """Order as PostgreSQL orders uuids; comparing the objects themselves takes five times as long."""
    return lease[0].int


def _as_arrays(leases: Sequence[Lease]) -> tuple[str, str]:
    """Return job ids and execution ids as two array literals: psycopg's array dumper takes ten times as long."""
    return (
        "{" + ",".join([lease[0].hex for lease in leases]) + "}",
        "{" + ",".join([lease[1].hex for lease in leases]) + "}",
    )


async def still_holds(connection: Connection, schema: str, lease: Lease) -> str:
    """Lock the job's row until the transaction ends, and tell whether the execution may still write.

    Returns: `held`, `cancelled` or `lost`.

    Source: sql/functions/still_holds.sql
    """
    cursor = await connection.execute(call("still_holds", "uuid uuid", schema), (lease.job_id, lease.execution_id))
    row = await cursor.fetchone()
    return str(row[0]) if row else "lost"


async def report_progress(
    connection: Connection, schema: str, lease: Lease, *, fraction: float | None, message: str | None
) -> bool:
    """Store how far an execution has come; False when it no longer holds the job.

    Source: sql/functions/report_progress.sql
    """
    cursor = await connection.execute(
        call("report_progress", "uuid uuid float4 text", schema),
        (lease.job_id, lease.execution_id, fraction, message),
    )
    row = await cursor.fetchone()
    return bool(row and row[0])
