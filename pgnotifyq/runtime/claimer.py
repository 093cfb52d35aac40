"""The claimer: asks for exactly as many jobs as there are free slots, and sleeps when there is nothing to do.

At capacity no query is made. The permits are taken as the claim is sent, at each try anew: while it waited for the link, or for the
next try, a hand-over or a named job may have taken them, or an outcome freed more. A claim is shielded, under the link's deadline: one
that was cancelled half-way might have been committed, and its jobs would wait for their leases to run out.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from pgnotifyq.ledger import claim, workers
from pgnotifyq.model.events import Event, EventName
from pgnotifyq.runtime.holdings import Running
from pgnotifyq.runtime.resuming import Resuming
from pgnotifyq.runtime.served import publish
from pgnotifyq.runtime.sleep import LULL_SECONDS, Sleep, Stage
from pgnotifyq.wire.asking import ask

if TYPE_CHECKING:
    from pgnotifyq.ledger.ask import Plan
    from pgnotifyq.ledger.claimed import ClaimedJob
    from pgnotifyq.runtime.claim_size import Asked
    from pgnotifyq.runtime.parts import Parts
    from pgnotifyq.wire.connection import Connection


async def claim_for_ever(parts: Parts) -> None:
    """Claim jobs and hand them to the slots, until cancelled, which is how draining begins."""
    sleep = Sleep()
    resuming = Resuming()
    expects_at = math.inf  # trio clock, seconds: when the next job known of falls due
    lulled, rung = True, False
    listening_since = parts.push.generation
    while True:
        await _wait_for_a_slot(parts, sleep, expects_at, rung=rung)
        if parts.push.generation != listening_since:
            # The listener has come back: what was published may be gone, and what was sent meanwhile is.
            listening_since = parts.push.generation
            sleep.woken_up()
        if parts.served.is_news:
            # A handler has come. What it is for may be there already, and sleepers are woken for what they have published.
            await parts.quick.run(partial(publish, parts))
            sleep.woken_up()

        after = resuming.after(trio.current_time()) if sleep.stage is Stage.AWAKE else None
        claimed = await _claim(parts, is_asleep=sleep.stage is not Stage.AWAKE, after=after)
        if claimed is None:
            continue  # somebody else took the last slot; wait for another, with the wake-up still to be heeded
        found, sent_at = claimed
        now = trio.current_time()
        resuming.note(found.jobs, ran_dry=found.ran_dry, after=after, began=sent_at, ended=now)
        for aside in found.put_aside:
            fields = {"job_id": aside.job_id, "verb": "claim", "why": aside.why.partition("\n")[0]}
            parts.emit(Event(name=EventName.JOB_PUT_ASIDE, fields=fields))
        rung = False
        if after is not None:
            continue  # it did not see the whole queue, and says nothing of what is to come
        parts.saw_queues_empty = found.ran_dry and not found.is_contended
        if found.ran_dry:
            expects_at = math.inf
            if found.next_due_seconds is not None and not found.is_contended:
                expects_at = now + found.next_due_seconds

        if sleep.stage is Stage.ASLEEP and found.jobs and sleep.is_busy(now, lulled=lulled):
            await _wake_up(parts, sleep)
        pause = sleep.next_pause(
            ran_dry=found.ran_dry,
            found=bool(found.jobs),
            is_contended=found.is_contended,
            snapshot_xmin=found.snapshot_xmin,
        )
        if pause is None:
            pause = await _publish(parts, sleep)
        rung = await parts.bell.wait(min(pause, _backstop_seconds(parts), expects_at - now))
        lulled = trio.current_time() - now > LULL_SECONDS


async def _claim(parts: Parts, *, is_asleep: bool, after: ClaimedJob | None) -> tuple[claim.Claim, float] | None:
    """Claim for the slots that are free when the claim is sent, and hand the jobs to them.

    Returns: what was found, and when the claim that found it was sent; None when no slot was free by then.
    """

    async def once(connection: Connection) -> tuple[claim.Claim, float] | None:
        sent_at = trio.current_time()
        # Who sleeps looks now and then, to be sure that there is nothing. A hand-over that comes meanwhile finds a slot.
        reserved = parts.slots.reserve(max(parts.slots.free - 1, 1) if is_asleep else None)
        if not reserved:
            return None
        spent = 0
        try:
            with parts.claim_size.of(reserved) as asked:
                found = await _ask(parts, connection, asked, is_asleep=is_asleep, after=after)
            parts.take_up([Running(job=job, renewed_at=sent_at) for job in found.jobs])
            spent = len(found.jobs)
        finally:
            parts.slots.release(reserved - spent)
        return found, sent_at

    return await parts.quick.run(once, shield=True)


async def _ask(parts: Parts, connection: Connection, asked: Asked, *, is_asleep: bool, after: ClaimedJob | None) -> claim.Claim:
    """Claim as many jobs as this try asks for; a single one that failed, apart."""
    schema = parts.config.schema
    same: dict[str, Any] = {
        "worker_id": parts.worker_id,
        "queues": parts.config.queues,
        "lease_seconds": parts.config.lease_seconds,
        "only": parts.served.wanted,
    }
    if parts.claim_size.is_stuck:
        return await ask(connection, claim.claim_apart(schema, jobs_max=1, **same))
    verb = claim.claim_surely(schema, jobs_max=asked.rows, bytes_max=asked.bytes_max, is_asleep=is_asleep, after=after, **same)
    return await ask(connection, verb)


async def _wait_for_a_slot(parts: Parts, sleep: Sleep, expects_at: float, *, rung: bool) -> None:
    """Wait until a slot is free. A wake-up that comes meanwhile, or has just come, is for somebody else: hand it on."""
    while not parts.slots.wants_more:
        if rung and not parts.slots.free:
            await _wake_up(parts, sleep, hand_on=True)
            rung = False
            continue  # a slot may have become free
        parts.slots.ring_when_wanted(parts.bell)
        is_listed = sleep.stage is not Stage.AWAKE
        rung = await parts.bell.wait(expects_at - trio.current_time() if is_listed else math.inf) or is_listed


async def _wake_up(parts: Parts, sleep: Sleep, *, hand_on: bool = False) -> None:
    queues = parts.config.queues if hand_on else ()
    await parts.quick.ask(workers.wake_up(parts.config.schema, parts.worker_id, queues))
    sleep.woken_up()


async def _publish(parts: Parts, sleep: Sleep) -> float:
    """Publish as a sleeper where notifications arrive; otherwise poll. Returns seconds until the next look."""
    if not parts.push.is_proven:
        return parts.config.poll_seconds

    def publication() -> Plan[int]:
        return workers.fall_asleep(parts.config.schema, parts.worker_id, parts.config.queues, parts.served.wanted.types)

    sleep.published(await parts.quick.ask(publication))
    return 0.0


def _backstop_seconds(parts: Parts) -> float:
    """Return how long to sleep at the most, jittered so that workers do not look in step."""
    longest = parts.config.backstop_seconds if parts.push.is_proven else parts.config.poll_seconds
    return longest * (0.75 + 0.5 * parts.random.random())
