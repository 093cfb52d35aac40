"""The reclaimer: every worker looks after the others' jobs.

It sleeps until the earliest lease runs out, jittered, and looks at the other workers' sessions meanwhile: a worker whose
session is gone, and that gave no sign of life within a short grace, is dead, and its jobs are taken back at once.

How often it looks depends on how many share the duty, so that a small cluster looks about once a second whatever its size. No
worker looks more seldom than every WATCH_SECONDS_MAX all the same: workers that were rung for together look in step, and then
the first look comes as late as any. A worker that is alone looks at nothing.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, TypeVar

import attrs
import trio

from pgnotifyq.ledger import lease, workers
from pgnotifyq.ledger.errors import Whose, whose
from pgnotifyq.ledger.look import list_troubles
from pgnotifyq.model.events import Event, EventName
from pgnotifyq.wire.asking import ask

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from pgnotifyq.ledger.look import TroubleRow
    from pgnotifyq.model.job import WorkerId
    from pgnotifyq.runtime.parts import Parts
    from pgnotifyq.wire.connection import Connection

T = TypeVar("T")

BATCH_MAX = 200  # jobs taken back in one statement: it holds their locks
WATCH_SECONDS_PER_OTHER = 0.7
# "killed to running again within about 3 s": this, the grace (1.5 s), and the two statements that take back and claim.
WATCH_SECONDS_MAX = 1.2
WATCH_JITTER = 0.4  # the share of the pause that is left to chance, so that workers do not stay in step
AFTER_GRACE_SHARE = 0.05  # jitter on top of the grace
ALONE_SECONDS = 60.0  # a worker that was alone is told when another comes; this is for the case that it did not hear
AFTER_EXPIRY_SECONDS = 0.2  # jitter on top of an expiry, so that one of many is first
COMPANY_SECONDS_MIN = 0.05  # between looks that news of company calls for
LOOK_SECONDS_MAX = 60.0  # a lease claimed after the last look is found then at the latest


async def reclaim_for_ever(parts: Parts) -> None:
    """Watch the other workers and take back what they lost, until cancelled."""
    look_at = trio.current_time()  # for leases that ran out
    grace_ends_at = 0.0  # of a worker whose session is gone
    sight = _Sight()
    while True:
        watch = await _watch(parts, sight)
        if watch.dead or trio.current_time() >= look_at:
            next_seconds = await bear(parts, "reclaim", partial(_reclaim, parts, watch.dead))
            # Leases are never shorter than they were when last looked at, so the earliest expiry can wait.
            until_expiry = LOOK_SECONDS_MAX if next_seconds is None else max(next_seconds, 0.0)
            jitter = AFTER_EXPIRY_SECONDS * parts.random.random()
            look_at = trio.current_time() + min(until_expiry + jitter, LOOK_SECONDS_MAX, parts.config.lease_seconds)
        chance = parts.random.random()
        if not watch.suspected:
            grace_ends_at = 0.0
        elif grace_ends_at <= trio.current_time():
            # Noted by this look or an earlier one. Looks in between, as when a worker comes to replace the lost one, do not
            # begin the grace anew.
            grace_ends_at = trio.current_time() + parts.trust.grace_seconds * (1 + AFTER_GRACE_SHARE * chance)
        if watch.suspected:
            wait_seconds = grace_ends_at - trio.current_time()
        elif watch.others:
            wait_seconds = min(watch.others * WATCH_SECONDS_PER_OTHER, WATCH_SECONDS_MAX) * (1 - WATCH_JITTER * chance)
        else:
            wait_seconds = ALONE_SECONDS
        wait_seconds = min(wait_seconds, max(look_at - trio.current_time(), 0.01))
        if await parts.company.wait(wait_seconds):
            # Anybody can ring: that must not keep this connection from its own.
            await trio.sleep(COMPANY_SECONDS_MIN)


@attrs.define
class _Sight:
    """Since when this worker has had the session by which it looks at others, at the least."""

    connection: Connection | None = None
    since: float = 0.0  # trio clock, seconds


async def _watch(parts: Parts, sight: _Sight) -> workers.Watch:
    async def once(connection: Connection) -> workers.Watch:
        now = trio.current_time()
        if connection is not sight.connection:
            sight.connection, sight.since = connection, now
        return await ask(
            connection, workers.watch(parts.config.schema, parts.worker_id, parts.trust.grace_seconds, now - sight.since)
        )

    return await parts.quick.run(once)


async def _reclaim(parts: Parts, dead: list[WorkerId]) -> float | None:
    """Take back everything there is to take, batch after batch; return seconds until the next lease runs out."""
    troubles: list[TroubleRow] = []
    tries = 0

    async def once(connection: Connection) -> tuple[list[lease.Reclaimed], float | None, bool]:
        nonlocal troubles, tries
        schema = parts.config.schema
        # What was late or failed is asked for smaller: a few large jobs must not be asked for again and again.
        jobs_max = max(BATCH_MAX >> (2 * tries), 1)
        tries += 1
        found = await ask(connection, lease.reclaim(schema, worker_id=parts.worker_id, jobs_max=jobs_max, dead=dead))
        refused = [job.job_id for job in found[0] if job.became == "refused"]
        troubles = await ask(connection, list_troubles(schema, job_ids=refused, limit=BATCH_MAX)) if refused else []
        return found

    while True:
        tries = max(tries - 2, 0)  # grows back, slowly
        jobs, next_seconds, took_all = await parts.durable.run(once)
        tell_news(parts, troubles)
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
            parts.emit(Event(name=EventName.JOB_RECLAIMED, fields=fields))
        if any(job.became == "pending" for job in jobs):
            parts.bell.ring()
        if took_all:
            return next_seconds


async def bear(parts: Parts, verb: str, operation: Callable[[], Awaitable[T]]) -> T | None:
    """Do what is done for others; None where some row stands in the way that could not even be put aside, which is told.

    Raises: what is not a row's fault.
    """
    try:
        return await operation()
    except Exception as error:
        if whose(error) is not Whose.JOB:
            raise
        fields = {"verb": verb, "sqlstate": getattr(error, "sqlstate", None), "why": str(error).partition("\n")[0]}
        parts.emit(Event(name=EventName.JOB_PUT_ASIDE, fields=fields))
        return None


def tell_news(parts: Parts, troubles: Sequence[TroubleRow]) -> None:
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
        parts.emit(Event(name=EventName.JOB_PUT_ASIDE, fields=fields))
