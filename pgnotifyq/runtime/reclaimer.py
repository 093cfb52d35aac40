"""The reclaimer: every worker looks after the others' jobs.

It sleeps until the earliest lease runs out, jittered. Meanwhile it looks at the other workers'
sessions. If a worker's session is gone, and the worker gave no sign of life within a short grace,
that worker is dead: its jobs are taken back at once.

How often it looks depends on how many workers share the duty: so a small cluster looks about once a
second, whatever its size. But each worker looks at least every WATCH_SECONDS_MAX. Workers that were
rung for together look in step, and then the first look comes as late as any other. A worker that is
alone has nobody to look at.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import attrs
import trio

from pgnotifyq.ledger import lease, workers
from pgnotifyq.ledger.look import list_troubles
from pgnotifyq.model.events import Event, EventName
from pgnotifyq.runtime.troubles import bear, tell_troubles
from pgnotifyq.wire.asking import ask

if TYPE_CHECKING:
    from pgnotifyq.ledger.look import TroubleRow
    from pgnotifyq.model.job import WorkerId
    from pgnotifyq.runtime.bell import Bell
    from pgnotifyq.runtime.identity import Identity
    from pgnotifyq.runtime.link import Link
    from pgnotifyq.runtime.wakeups import Wakeups
    from pgnotifyq.wire.connection import Connection

BATCH_MAX = 200  # jobs taken back in one statement: it holds their locks
WATCH_SECONDS_PER_OTHER = 0.7
# "killed to running again within about 3 s" is the sum of this, the grace (1.5 s), and the two
# statements that take back and claim.
WATCH_SECONDS_MAX = 1.2
# The share of the pause that is left to chance, so that workers do not stay in step.
WATCH_JITTER = 0.4
AFTER_GRACE_SHARE = 0.05  # jitter on top of the grace
# A worker that was alone is told when another comes. This is for the case that it did not hear.
ALONE_SECONDS = 60.0
AFTER_EXPIRY_SECONDS = 0.2  # jitter on top of an expiry, so that one of many is first
COMPANY_SECONDS_MIN = 0.05  # between two looks that news of other workers calls for
LOOK_SECONDS_MAX = 60.0  # a lease claimed after the last look is found then at the latest


async def reclaim_for_ever(
    me: Identity, quick: Link, durable: Link, grace_seconds: float, company: Bell, wakeups: Wakeups
) -> None:
    """Watch the other workers and take back what they lost, until cancelled.

    Args:
        me: the worker.
        quick: the link by which the others are looked at.
        durable: the link by which jobs are taken back.
        grace_seconds: how long a session must be gone.
        company: rung when other workers should be looked at at once.
        wakeups: its bell is rung for jobs that were taken back.
    """
    look_at = trio.current_time()  # for leases that ran out
    grace_ends_at = 0.0  # of a worker whose session is gone
    sight = _Sight()
    while True:
        watch = await _watch(me, quick, grace_seconds, sight)
        if watch.dead or trio.current_time() >= look_at:
            next_seconds = await bear(me.emit, "reclaim", partial(_reclaim, me, durable, wakeups, watch.dead))
            # No lease ends earlier than the last look has found. So the reclaimer can wait for the
            # earliest expiry.
            until_expiry = LOOK_SECONDS_MAX if next_seconds is None else max(next_seconds, 0.0)
            jitter = AFTER_EXPIRY_SECONDS * me.random.random()
            look_at = trio.current_time() + min(until_expiry + jitter, LOOK_SECONDS_MAX, me.lease_seconds)
        chance = me.random.random()
        if not watch.suspected:
            grace_ends_at = 0.0
        elif grace_ends_at <= trio.current_time():
            # This look or an earlier one has noted that a session is gone. Looks in between do not
            # begin the grace anew: there are such when a worker comes to replace the lost one.
            grace_ends_at = trio.current_time() + grace_seconds * (1 + AFTER_GRACE_SHARE * chance)
        if watch.suspected:
            wait_seconds = grace_ends_at - trio.current_time()
        elif watch.others:
            wait_seconds = min(watch.others * WATCH_SECONDS_PER_OTHER, WATCH_SECONDS_MAX) * (1 - WATCH_JITTER * chance)
        else:
            wait_seconds = ALONE_SECONDS
        wait_seconds = min(wait_seconds, max(look_at - trio.current_time(), 0.01))
        if await company.wait(wait_seconds):
            # Anybody can ring. That must not keep this connection from its own work.
            await trio.sleep(COMPANY_SECONDS_MIN)


@attrs.define
class _Sight:
    """Since when, at the least, this worker has had the session by which it looks at others."""

    connection: Connection | None = None
    since: float = 0.0  # trio clock, seconds


async def _watch(me: Identity, quick: Link, grace_seconds: float, sight: _Sight) -> workers.Watch:
    async def once(connection: Connection) -> workers.Watch:
        now = trio.current_time()
        if connection is not sight.connection:
            sight.connection, sight.since = connection, now
        return await ask(connection, workers.watch(me.schema, me.worker_id, grace_seconds, now - sight.since))

    return await quick.run(once)


async def _reclaim(me: Identity, durable: Link, wakeups: Wakeups, dead: list[WorkerId]) -> float | None:
    """Take back everything there is to take, batch after batch.

    Returns: seconds until the next lease runs out.
    """
    troubles: list[TroubleRow] = []
    tries = 0

    async def once(connection: Connection) -> tuple[list[lease.Reclaimed], float | None, bool]:
        nonlocal troubles, tries
        schema = me.schema
        # After a try that was late or failed, the next one asks for fewer jobs: a few large jobs
        # must not be asked for again and again.
        jobs_max = max(BATCH_MAX >> (2 * tries), 1)
        tries += 1
        found = await ask(connection, lease.reclaim(schema, worker_id=me.worker_id, jobs_max=jobs_max, dead=dead))
        refused = [job.job_id for job in found[0] if job.became == "refused"]
        troubles = await ask(connection, list_troubles(schema, job_ids=refused, limit=BATCH_MAX)) if refused else []
        return found

    while True:
        tries = max(tries - 2, 0)  # grows back, slowly
        jobs, next_seconds, took_all = await durable.run(once)
        tell_troubles(me.emit, troubles)
        for job in jobs:
            if job.became == "refused":
                continue
            fields = {
                "job_id": job.job_id,
                "job_type": job.job_type,
                "queue": job.queue_name,
                "attempt": job.attempt,
                "became": job.became,
                "from_worker": job.worker_id,
            }
            me.emit(Event(name=EventName.JOB_RECLAIMED, fields=fields))
        if any(job.became == "pending" for job in jobs):
            wakeups.bell.ring()
        if took_all:
            return next_seconds
