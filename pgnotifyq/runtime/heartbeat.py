"""Heartbeats, and the news they carry.

`beat_for_ever` renews, in one statement, every lease that was last renewed a heartbeat ago; shorter jobs never cost
a renewal. The other half is trust.py: when nothing is answered, it stops handlers on the worker's own clock before anybody else may
start their jobs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import trio

from pgnotifyq.ledger import lease
from pgnotifyq.model.events import Event, EventName
from pgnotifyq.model.outcome import Interrupt, InterruptKind
from pgnotifyq.wire.asking import ask

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pgnotifyq.model.job import JobId
    from pgnotifyq.runtime.parts import Parts
    from pgnotifyq.runtime.running import Running
    from pgnotifyq.wire.connection import Connection

RENEWED_AT_ONCE_MAX = 500  # bounds one statement, whose cost grows a little faster than its size
IDLE_BEAT_SECONDS = 60.0  # an idle worker's sign of life, for people; its session speaks for it otherwise
# A lease is renewed with those that fall due within this share of a heartbeat, so that they share a statement.
TOGETHER_SHARE = 0.25


async def beat_for_ever(parts: Parts) -> None:
    """Renew leases when they need it, and give a sign of life when none has needed it for a while."""
    every = parts.config.heartbeat_seconds
    beaten_at = trio.current_time()  # registering is a sign of life
    while True:
        now = trio.current_time()
        # Whether jobs come or not: short ones never need a beat, and a worker that has nothing else is not silent for that.
        idle_for = IDLE_BEAT_SECONDS if parts.push.has_session else min(IDLE_BEAT_SECONDS, every)
        oldest = parts.executions.oldest()
        wake_at = beaten_at + idle_for * (0.9 + 0.1 * parts.random.random())
        if oldest is not None:
            wake_at = min(wake_at, oldest.renewed_at + every)
        if wake_at > now:
            with trio.move_on_at(wake_at):
                if len(parts.executions):
                    # What is claimed meanwhile needs no beat before that; nor does anything where all that is held is lost.
                    await trio.sleep(every / 2)
                else:
                    await parts.executions.taken_up.wait()
                    await trio.lowlevel.checkpoint()  # the job first
            continue
        beaten_at = now
        if oldest is None and not parts.push.has_session:
            parts.trust.bell.ring()  # a beat that finds out whether others have forgotten this worker (trust.py)
        elif not await renew(parts, parts.executions.renewed_before(now - every * (1 - TOGETHER_SHARE))):
            await trio.sleep(every * TOGETHER_SHARE)  # some row cannot be written now


async def renew(parts: Parts, due: Sequence[Running]) -> bool:
    """Beat for some executions, and act on what the reply says of them; for none, give a sign of life.

    A cancel whose notification was lost is learned here; so is a lost lease.

    Returns: whether all were renewed that are still ours. Of the others somebody holds the row, or a trigger of the user's refuses.
    """
    is_whole = True
    for start in range(0, max(len(due), 1), RENEWED_AT_ONCE_MAX):
        is_whole &= await _renew_at_once(parts, due[start : start + RENEWED_AT_ONCE_MAX])
    return is_whole


async def _renew_at_once(parts: Parts, due: Sequence[Running]) -> bool:
    beat = _Beat(parts, due)
    missing, lost = await parts.quick.run(beat.once)
    for running, sent_at in beat.answered.items():
        surprise = beat.told.get(running.job.id)
        if surprise is not None and surprise.became == "unrenewed":
            continue
        if running.job.id not in lost:
            # What has ended, or was completed, has no lease any more, and nothing that one would protect; it was looked at.
            parts.executions.renew(running, sent_at)
        if surprise is not None and surprise.became == "cancelled":
            _interrupt_cancelled(parts, running, surprise.why)
    for running in missing:
        if not running.has_ended:
            _stop_without_lease(parts, running, is_lost=running.job.id in lost)
    return all(surprise.became != "unrenewed" for surprise in beat.told.values())


@attrs.define
class _Beat:
    """One beat for some executions, which may take several tries.

    The first is one statement for all of them. Is that late, one row may be at fault, whose trigger stands still: then each has a statement
    of its own, and what was answered is not asked again. A single one that is late is cancelled over itself (sql/functions/lease/heartbeat.sql).
    """

    _parts: Parts
    _due: Sequence[Running]
    told: dict[JobId, lease.Surprise] = attrs.field(factory=dict)
    answered: dict[Running, float] = attrs.field(factory=dict)  # trio clock, seconds: when that was sent
    _is_first: bool = True

    async def once(self, connection: Connection) -> tuple[list[Running], set[JobId]]:
        """Return those that hold no lease any more, and which of them were lost."""
        # Now, not before the wait for the link: what has ended and is written by now is nobody's to renew.
        held = [running for running in self._due if not running.is_gone and running not in self.answered]
        parts = [held] if self._is_first else [[running] for running in held]
        self._is_first = False
        for part in parts:
            sent_at = trio.current_time()
            surprises = await ask(
                connection,
                lease.heartbeat(
                    self._parts.config.schema,
                    worker_id=self._parts.worker_id,
                    leases=[running.lease for running in part],
                    lease_seconds=self._parts.config.lease_seconds,
                ),
            )
            self.told |= {surprise.job_id: surprise for surprise in surprises}
            self.answered |= dict.fromkeys(part, sent_at)
        missing = [one for one in self.answered if one.job.id in self.told and self.told[one.job.id].became == "lost"]
        # A beat that overtakes the reply to a settlement finds no lease any more, and knows nothing of why. What became of an
        # execution that has ended is for the settler to tell.
        missing = [running for running in missing if not running.has_ended]
        schema = self._parts.config.schema
        lost = await ask(connection, lease.lost(schema, [one.lease for one in missing])) if missing else set()
        return missing, lost


def _stop_without_lease(parts: Parts, running: Running, *, is_lost: bool) -> None:
    """Stop a handler whose job is not its own any more: lost, or completed by its own transaction.

    After the latter it has until the next beat to return: that commit may not even have been answered yet.
    """
    if is_lost:
        interrupt(parts, running, Interrupt(kind=InterruptKind.LEASE_LOST, why="somebody else holds the job"))
    elif running.outlives_job:
        why = "its own transaction has completed the job"
        interrupt(parts, running, Interrupt(kind=InterruptKind.LEASE_LOST, why=why))
    running.outlives_job = True


async def check_cancels(parts: Parts, told: Sequence[Running], connection: Connection) -> None:
    """Stop those executions, of some that a notification named, whose jobs were really cancelled.

    Asked by the connection that heard it: its session has just been awake.

    Raises:
        trio.TooSlowError, psycopg.Error: as for `named.answer`; whoever listens anew beats for all, and learns of the cancels.
    """
    for start in range(0, len(told), RENEWED_AT_ONCE_MAX):
        some = told[start : start + RENEWED_AT_ONCE_MAX]
        with trio.fail_after(parts.quick.deadline_seconds):
            surprises = await ask(connection, lease.cancelled(parts.config.schema, [running.lease for running in some]))
        why = {surprise.job_id: surprise.why for surprise in surprises}
        for running in some:
            if running.job.id in why:
                _interrupt_cancelled(parts, running, why[running.job.id])


def interrupt(parts: Parts, running: Running, reason: Interrupt) -> None:
    """Stop one execution, with a reason, and tell."""
    if not parts.executions.stop(running, reason):
        return
    fields: dict[str, object] = {
        "job_id": running.job.id,
        "job_type": running.job.job_type,
        "reason": reason.kind.value,
    }
    if reason.why:
        fields["why"] = reason.why
    parts.emit(Event(name=EventName.JOB_INTERRUPTED, fields=fields))


def _interrupt_cancelled(parts: Parts, running: Running, why: str | None) -> None:
    interrupt(parts, running, Interrupt(kind=InterruptKind.CANCELLED, by="status update", why=why))


async def count_grace_for_ever(parts: Parts) -> None:
    """Follow interrupted executions: after their grace, cancel cooperative ones and report the unresponsive."""
    async with trio.open_nursery() as nursery:
        while True:
            await parts.executions.stopped_bell.wait()
            await trio.lowlevel.checkpoint()  # the handlers first
            stopped, parts.executions.stopped = parts.executions.stopped, []
            for running in stopped:
                nursery.start_soon(_count_grace, parts, running)


async def _count_grace(parts: Parts, running: Running) -> None:
    await trio.sleep(parts.config.grace_seconds)
    if parts.executions.find(running.job.id, running.lease.execution_id) is not running or running.scope is None:
        return
    if running.is_cooperative:
        running.cancel_scope()
    fields = {
        "job_id": running.job.id,
        "job_type": running.job.job_type,
        "why": f"still running {parts.config.grace_seconds:g} s after it was interrupted",
    }
    parts.emit(Event(name=EventName.JOB_UNRESPONSIVE, fields=fields))
