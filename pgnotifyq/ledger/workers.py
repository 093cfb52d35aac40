"""What keeps workers honest about each other: registration, sleep, sessions, reclaim, prune."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import attrs

from pgnotifyq.ledger.statements import call, compose
from pgnotifyq.model.job import JobId, WorkerId

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pgnotifyq.wire.connection import Connection


@attrs.frozen(kw_only=True)
class Watch:
    """What a look at the other workers' sessions told."""

    others: int  # workers other than this one that seem alive
    dead: list[WorkerId]  # gone for longer than the grace
    suspected: bool  # some session is gone, but not for long enough


@attrs.frozen(kw_only=True)
class Reclaimed:
    """A job taken back from a worker that lost it."""

    job_id: JobId
    job_type: str
    queue_name: str
    worker_id: WorkerId
    attempt: int
    became: str  # pending, dead or cancelled; completed, where its worker could not write that; refused: put aside


async def register(
    connection: Connection,
    schema: str,
    *,
    worker_id: WorkerId,
    host: str,
    pid: int,
    queues: Sequence[str],
    slots: int,
    version: str,
    has_session: bool,
    lease_seconds: float,
    grace_seconds: float | None = None,
) -> None:
    """Publish a worker, or one that has come back and holds nothing of what it held. Source: sql/functions/worker/register_worker.sql."""
    await connection.execute(
        call("register_worker", "uuid text integer text[] integer text boolean float8 float8", schema),
        (worker_id, host, pid, list(queues), slots, version, has_session, lease_seconds, grace_seconds),
    )


async def unregister(connection: Connection, schema: str, worker_id: WorkerId) -> None:
    """Forget a worker that has ended, and wake others for what was on its way to it."""
    await connection.execute(call("unregister_worker", "uuid", schema), (worker_id,))


async def set_state(connection: Connection, schema: str, worker_id: WorkerId, state: str) -> None:
    """Show a worker as running or draining."""
    statement = compose("update {schema}.worker_heartbeats set state = %s where worker_id = %s", schema)
    await connection.execute(statement, (state, worker_id))


async def hold_session(connection: Connection, schema: str, worker_id: WorkerId) -> bool:
    """Have a connection tell others that this worker is alive, for as long as its session lasts.

    Returns: whether it does; False: others have given the worker up, or it is not registered.

    Source: sql/functions/worker/hold_session.sql
    """
    return await _is_so(connection, call("hold_session", "uuid", schema), worker_id)


async def beat(connection: Connection, schema: str, worker_id: WorkerId) -> bool:
    """Give a sign of life; False: others have given the worker up, or it is not registered. Source: sql/functions/worker/beat.sql."""
    return await _is_so(connection, call("beat", "uuid", schema), worker_id)


async def _is_so(connection: Connection, statement: bytes, worker_id: WorkerId) -> bool:
    cursor = await connection.execute(statement, (worker_id,))
    row = await cursor.fetchone()
    assert row is not None
    return bool(row[0])


async def worker_channel(connection: Connection, schema: str, worker_id: WorkerId) -> str:
    """Return the channel on which this worker, and no other, is told of work and of cancels."""
    cursor = await connection.execute(call("worker_channel", "uuid", schema), (worker_id,))
    row = await cursor.fetchone()
    assert row is not None
    return str(row[0])


async def publish_handlers(
    connection: Connection, schema: str, worker_id: WorkerId, handlers: Sequence[tuple[str, str | None, int | None]]
) -> None:
    """Publish what a worker has handlers for: job type, queue and max_attempts of each, null where it says nothing.

    Jobs that wait for their handler's queue are moved to it. A worker that is not registered publishes nothing.

    Source: sql/functions/worker/handlers.sql
    """
    types, queues, maxima = ([each[place] for each in handlers] for place in range(3))
    await connection.execute(call("publish_handlers", "uuid text[] text[] integer[]", schema), (worker_id, types, queues, maxima))


async def fall_asleep(
    connection: Connection, schema: str, worker_id: WorkerId, queues: Sequence[str], for_types: str | None = None
) -> int:
    """Publish that the worker sleeps on its queues, then return a transaction id taken after that was visible.

    `for_types`, an array written, is what it can be woken for; None: whatever the queues have.

    Source: sql/functions/worker/sleep.sql, runtime/sleep.py
    """
    await connection.execute(call("fall_asleep", "uuid text[] text[]", schema), (worker_id, list(queues), for_types))
    cursor = await connection.execute("select pg_current_xact_id()::text::int8")
    row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


async def wake_up(connection: Connection, schema: str, worker_id: WorkerId, hand_on: Sequence[str] = ()) -> None:
    """Publish that the worker does not sleep; wake another for the queues in `hand_on` that have due work."""
    await connection.execute(call("wake_up", "uuid text[]", schema), (worker_id, list(hand_on)))


async def watch(
    connection: Connection, schema: str, worker_id: WorkerId, grace_seconds: float, session_seconds: float = math.inf
) -> Watch:
    """Look whether the other workers are alive, and give up those that are not.

    Args:
        connection: of whoever looks.
        schema: the queue's.
        worker_id: who looks.
        grace_seconds: of workers of an older release, which do not publish theirs.
        session_seconds: for how long this connection has been open, at the least. Nobody judges in the first grace of its session.

    Source: sql/functions/worker/watch.sql
    """
    cursor = await connection.execute(call("watch", "uuid float8 float8", schema), (worker_id, grace_seconds, session_seconds))
    row = await cursor.fetchone()
    assert row is not None
    return Watch(others=row[0], dead=list(row[1]), suspected=row[2])


async def reclaim(
    connection: Connection, schema: str, *, worker_id: WorkerId, jobs_max: int, dead: Sequence[WorkerId] = ()
) -> tuple[list[Reclaimed], float | None, bool]:
    """Take back jobs whose lease ran out or whose worker is dead, at most `jobs_max`.

    Returns: the jobs; seconds until the next lease runs out (None: none is held); whether all there were are taken.

    Source: sql/functions/lease/reclaim.sql
    """
    cursor = await connection.execute(call("reclaim", "uuid integer uuid[]", schema), (worker_id, jobs_max, list(dead)))
    rows = await cursor.fetchall()
    next_seconds = None
    took_all = bool(rows) and rows[-1][0] is None
    if took_all:
        next_seconds = rows.pop()[6]
    jobs = [
        Reclaimed(job_id=row[0], job_type=row[1], queue_name=row[2], worker_id=row[3], attempt=row[4], became=row[5])
        for row in rows
    ]
    return jobs, next_seconds, took_all


async def prune(
    connection: Connection,
    schema: str,
    *,
    older_than_seconds: float,
    after_id: JobId | None,
    jobs_max: int,
    queues: Sequence[str] | None = None,
) -> tuple[int, JobId | None]:
    """Delete one batch of jobs that ended longer ago than they are kept, with their history.

    Those of `queues` (None: of all) are kept as long as given, where set_retention does not say otherwise.

    Returns: how many; the id to go on from, or None at the end of the pass.

    Source: sql/functions/end/prune.sql
    """
    cursor = await connection.execute(
        call("prune", "float8 uuid integer text[]", schema),
        (older_than_seconds, after_id, jobs_max, None if queues is None else list(queues)),
    )
    row = await cursor.fetchone()
    assert row is not None
    return row[0], row[1]
