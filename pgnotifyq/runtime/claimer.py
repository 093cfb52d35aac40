"""The claimer: asks for as many jobs as there are free slots, and sleeps if there is nothing to do.

At capacity the claimer makes no query. It takes the permits when it sends the claim, at each try
anew. While the claimer waited for the link or for the next try, a hand-over or a named job may have
taken permits, or an outcome may have freed some. A claim is shielded, under the link's deadline. If
a claim were cancelled half-way, it might be committed all the same, and its jobs would wait until
their leases run out.

The claimer does not ask for a queue that is at its own concurrency, and hands a wake-up for that
queue on to another worker. If a queue has less room than the worker, a look is several claims, one
after the other. None of them asks for more jobs than each of its queues has room for.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import attrs
import trio

from pgnotifyq.ledger import claim, workers
from pgnotifyq.model.events import Event, EventName
from pgnotifyq.runtime.claim_size import ClaimSize
from pgnotifyq.runtime.resuming import Resuming
from pgnotifyq.runtime.running import Running
from pgnotifyq.runtime.sleep import Stage
from pgnotifyq.wire.asking import ask

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pgnotifyq.ledger.ask import Plan
    from pgnotifyq.ledger.claimed import ClaimedJob
    from pgnotifyq.runtime.executions import Executions, Reserved
    from pgnotifyq.runtime.identity import Identity
    from pgnotifyq.runtime.link import Link
    from pgnotifyq.runtime.wakeups import Wakeups
    from pgnotifyq.wire.connection import Connection


@attrs.frozen(eq=False)
class _Claimer:
    """What the steps of one claimer share."""

    me: Identity
    quick: Link
    executions: Executions
    wakeups: Wakeups
    claim_size: ClaimSize = attrs.field(factory=ClaimSize)  # what a claim asks for, at the most


async def claim_for_ever(me: Identity, quick: Link, executions: Executions, wakeups: Wakeups) -> None:
    """Claim jobs and hand them to the slots, until cancelled. The cancel is how draining begins."""
    claimer = _Claimer(me, quick, executions, wakeups)
    sleep = wakeups.sleep
    resuming = Resuming()
    rung = False
    looked_at = executions.open_queues()
    while True:
        await _wait_for_a_slot(claimer, rung=rung)
        if executions.has_rooms:
            await _leave_closed_queues(claimer)
        if wakeups.is_listener_new():
            sleep.woken_up()  # what was published may be gone, too
        if me.served.is_news:
            # A handler was registered. Its jobs may be there already. A sleeper is woken only for
            # the handlers that it has published, so the worker publishes anew.
            await quick.run(me.served.publish)
            sleep.woken_up()

        # The last look has left out the queues that were closed then. If other queues are open now,
        # this look starts from the start.
        before, looked_at = looked_at, executions.open_queues()
        goes_on = sleep.stage is Stage.AWAKE and before == looked_at
        after = resuming.after(trio.current_time()) if goes_on else None
        claimed = await _claim(claimer, is_asleep=sleep.stage is not Stage.AWAKE, after=after)
        if claimed is None:
            continue  # the last slot is taken by now: wait for another; the wake-up still counts
        found, sent_at = claimed
        now = trio.current_time()
        resuming.note(found.jobs, ran_dry=found.ran_dry, after=after, began=sent_at, ended=now)
        for aside in found.put_aside:
            fields = {"job_id": aside.job_id, "verb": "claim", "why": aside.why.partition("\n")[0]}
            me.emit(Event(name=EventName.JOB_PUT_ASIDE, fields=fields))
        rung = False
        if after is not None:
            continue  # this look did not see the whole queue, so it says nothing of what is to come
        wakeups.note_look(now, ran_dry=found.ran_dry, is_contended=found.is_contended, next_due_seconds=found.next_due_seconds)
        if sleep.stage is Stage.ASLEEP and found.jobs and sleep.is_busy(now, lulled=wakeups.is_lulled):
            await _wake_up(claimer)
        pause = sleep.next_pause(
            ran_dry=found.ran_dry,
            found=bool(found.jobs),
            is_contended=found.is_contended,
            snapshot_xmin=found.snapshot_xmin,
        )
        if pause is None:
            pause = await _publish(claimer)
        rung = await wakeups.wait(min(pause, _backstop_seconds(claimer)), now)


async def _claim(claimer: _Claimer, *, is_asleep: bool, after: ClaimedJob | None) -> tuple[claim.Claim, float] | None:
    """Claim for the slots that are free when the claim is sent, and hand the jobs to them.

    Returns: what was found, and when the claim that found it was sent; None if no slot was free by
    then.
    """
    executions = claimer.executions

    async def once(connection: Connection) -> tuple[claim.Claim, float] | None:
        sent_at = trio.current_time()
        # A sleeper looks now and then, to be sure that there is nothing. It leaves one permit free
        # if there are more, so that a hand-over that comes meanwhile finds a slot.
        reserved = executions.reserve(is_sparing=is_asleep)
        if not reserved:
            return None
        claims: list[tuple[claim.Claim, Sequence[str]]] = []
        try:
            with claimer.claim_size.of(reserved.count) as asked:
                wanted = asked.rows
                for queues, most in _portions(reserved, asked.rows):
                    goes_on = after if after is not None and after.queue_name in queues else None
                    found = await _ask(
                        claimer, connection, queues, min(most, wanted), asked.bytes_max, is_asleep=is_asleep, after=goes_on
                    )
                    claims.append((found, queues))
                    wanted -= len(found.jobs)
                    if not wanted:
                        break
        finally:
            # If a claim failed, the jobs of the claims before it are taken up, too.
            claimed = [Running(job=job, renewed_at=sent_at) for found, _ in claims for job in found.jobs]
            executions.take_up(claimed, reserved)
        return _as_one(claimer, claims, is_full=not wanted), sent_at

    return await claimer.quick.run(once, shield=True)


def _portions(reserved: Reserved, wanted: int) -> list[tuple[Sequence[str], int]]:
    """Return what each claim of a look asks for: queues, in order of preference, and how many jobs.

    A queue with room for less than all that are wanted is asked for alone.
    """
    portions: list[tuple[list[str], int]] = []
    for queue in reserved.queues:
        room = min(reserved.rooms.get(queue, wanted), wanted)
        if portions and room == portions[-1][1] == wanted:
            portions[-1][0].append(queue)
        else:
            portions.append(([queue], room))
    return list(portions)


def _as_one(claimer: _Claimer, claims: list[tuple[claim.Claim, Sequence[str]]], *, is_full: bool) -> claim.Claim:
    """Return what the claims of one look have found together.

    A queue that has given all the jobs it had room for is not dry. But as a rule it is closed then,
    and the time of the next look does not depend on it: the bell is rung when the queue opens.
    """
    if len(claims) == 1 and claims[0][0].ran_dry:
        return claims[0][0]
    left = [queue for found, queues in claims if not found.ran_dry for queue in queues]
    is_left_open = claimer.executions.leave_out(left) if left else False
    dry = [found for found, _ in claims if found.ran_dry]
    dues = [found.next_due_seconds for found in dry if found.next_due_seconds is not None]
    marks = [found.snapshot_xmin for found in dry]
    ran_dry = bool(dry) and not is_full and not is_left_open
    return claim.Claim(
        jobs=[job for found, _ in claims for job in found.jobs],
        ran_dry=ran_dry,
        next_due_seconds=min(dues, default=None) if ran_dry else None,
        is_contended=ran_dry and any(found.is_contended for found in dry),
        snapshot_xmin=min((mark for mark in marks if mark is not None), default=None) if ran_dry and None not in marks else None,
        put_aside=[aside for found, _ in claims for aside in found.put_aside],
    )


async def _ask(
    claimer: _Claimer, connection: Connection, queues: Sequence[str], jobs_max: int, bytes_max: int, *,
    is_asleep: bool, after: ClaimedJob | None,
) -> claim.Claim:  # fmt: skip
    """Claim `jobs_max` jobs at the most; if a claim of a single job failed, claim one apart."""
    me = claimer.me
    schema = me.schema
    same: dict[str, Any] = {
        "worker_id": me.worker_id,
        "queues": queues,
        "lease_seconds": me.lease_seconds,
        "only": me.served.wanted,
    }
    if claimer.claim_size.is_stuck:
        return await ask(connection, claim.claim_apart(schema, jobs_max=1, **same))
    verb = claim.claim_surely(schema, jobs_max=jobs_max, bytes_max=bytes_max, is_asleep=is_asleep, after=after, **same)
    return await ask(connection, verb)


async def _wait_for_a_slot(claimer: _Claimer, *, rung: bool) -> None:
    """Wait until a slot is free.

    A wake-up that comes meanwhile, or has just come, is handed on to another worker.
    """
    executions, wakeups = claimer.executions, claimer.wakeups
    while not executions.wants_more:
        if rung and executions.is_full:
            await _wake_up(claimer, hand_on=True)
            rung = False
            continue  # a slot may have become free
        executions.ring_when_wanted(wakeups.bell)
        is_listed = wakeups.sleep.stage is not Stage.AWAKE
        rung = await wakeups.bell.wait(wakeups.expects_at - trio.current_time() if is_listed else math.inf) or is_listed


async def _leave_closed_queues(claimer: _Claimer) -> None:
    """Stop sleeping on closed queues, and hand their wake-ups on to other workers.

    The queues that a sleeper has published must be those that its next look asks for. If the two
    differ, the worker begins anew: it is taken off the list of sleepers, looks, and publishes the
    queues that are open then.
    """
    wakeups, queues = claimer.wakeups, claimer.executions.open_queues()
    heard, wakeups.heard_of = wakeups.heard_of, set()
    is_listed = wakeups.sleep.stage is not Stage.AWAKE
    lost = [queue for queue in claimer.me.queues
            if queue not in queues and (queue in heard or (is_listed and queue in wakeups.published))]  # fmt: skip
    if lost or (is_listed and list(wakeups.published) != list(queues)):
        await claimer.quick.ask(workers.wake_up(claimer.me.schema, claimer.me.worker_id, lost))
        wakeups.sleep.woken_up()


async def _wake_up(claimer: _Claimer, *, hand_on: bool = False) -> None:
    queues = claimer.me.queues if hand_on else ()
    claimer.wakeups.heard_of.clear()
    await claimer.quick.ask(workers.wake_up(claimer.me.schema, claimer.me.worker_id, queues))
    claimer.wakeups.sleep.woken_up()


async def _publish(claimer: _Claimer) -> float:
    """Publish the worker as a sleeper if notifications arrive; otherwise poll.

    Returns: seconds until the next look.
    """
    me = claimer.me
    if not claimer.wakeups.push.is_proven:
        return me.config.poll_seconds

    # A later look may find other queues open: see _leave_closed_queues.
    queues = claimer.wakeups.published = list(claimer.executions.open_queues())

    def publication() -> Plan[int]:
        return workers.fall_asleep(me.schema, me.worker_id, queues, me.served.wanted.types)

    claimer.wakeups.sleep.published(await claimer.quick.ask(publication))
    return 0.0


def _backstop_seconds(claimer: _Claimer) -> float:
    """Return how long to sleep at the most. It is jittered, so that workers do not look in step."""
    config = claimer.me.config
    longest = config.backstop_seconds if claimer.wakeups.push.is_proven else config.poll_seconds
    return longest * (0.75 + 0.5 * claimer.me.random.random())
