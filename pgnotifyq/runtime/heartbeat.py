"""Heartbeats, and the news they carry.

`beat_for_ever` renews, in one statement, every lease that was last renewed a heartbeat ago. Jobs
that are shorter than that never cost a renewal. The other half is trust.py: if the database answers
nothing, it stops handlers by the worker's own clock, before any other worker may start their jobs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import trio

from pgnotifyq.ledger import lease
from pgnotifyq.model.outcome import Interrupt, InterruptKind
from pgnotifyq.runtime.cancels import interrupt, interrupt_cancelled
from pgnotifyq.wire.asking import ask

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pgnotifyq.model.job import JobId
    from pgnotifyq.runtime.bell import Bell
    from pgnotifyq.runtime.executions import Executions
    from pgnotifyq.runtime.identity import Identity
    from pgnotifyq.runtime.link import Link
    from pgnotifyq.runtime.running import Running
    from pgnotifyq.runtime.wakeups import Push
    from pgnotifyq.wire.connection import Connection

RENEWED_AT_ONCE_MAX = 500  # bounds one statement, whose cost grows a little faster than its size
IDLE_BEAT_SECONDS = 60.0  # an idle worker's sign of life, for people; its session speaks for it otherwise
# A lease that falls due within this share of a heartbeat is renewed with those that are due now, so
# that they share a statement.
TOGETHER_SHARE = 0.25


async def beat_for_ever(me: Identity, quick: Link, executions: Executions, push: Push, life: Bell) -> None:
    """Renew leases when they need it, and give a sign of life when none has needed it for a while.

    Args:
        me: the worker.
        quick: the connection that renews leases.
        executions: those that hold the leases.
        push: knows whether a session speaks for the worker's life.
        life: rung to ask trust.py for a sign of life, which finds out whether others have forgotten
            this worker.
    """
    every = me.config.heartbeat_seconds
    beaten_at = trio.current_time()  # registering is a sign of life
    while True:
        now = trio.current_time()
        # This does not depend on whether jobs come. Short jobs never need a beat, and a worker that
        # has only short jobs must not be silent for that.
        idle_for = IDLE_BEAT_SECONDS if push.has_session else min(IDLE_BEAT_SECONDS, every)
        oldest = executions.oldest()
        wake_at = beaten_at + idle_for * (0.9 + 0.1 * me.random.random())
        if oldest is not None:
            wake_at = min(wake_at, oldest.renewed_at + every)
        if wake_at > now:
            with trio.move_on_at(wake_at):
                if len(executions):
                    # A job that is claimed meanwhile needs no beat before this is over. If all
                    # leases that are held are lost, none of them needs a beat.
                    await trio.sleep(every / 2)
                else:
                    await executions.taken_up.wait()
                    await trio.lowlevel.checkpoint()  # let the job start first
            continue
        beaten_at = now
        if oldest is None and not push.has_session:
            life.ring()
        elif not await renew(me, quick, executions, executions.renewed_before(now - every * (1 - TOGETHER_SHARE))):
            await trio.sleep(every * TOGETHER_SHARE)  # some row cannot be written now


async def renew(me: Identity, quick: Link, executions: Executions, due: Sequence[Running]) -> bool:
    """Beat for some executions, and act on the reply; for none, give a sign of life.

    A cancel whose notification was lost is learned here; so is a lost lease.

    Returns: whether all leases were renewed that are still ours. If one was not, somebody holds its
        row, or a trigger of the user's refuses.
    """
    is_whole = True
    for start in range(0, max(len(due), 1), RENEWED_AT_ONCE_MAX):
        is_whole &= await _renew_at_once(me, quick, executions, due[start : start + RENEWED_AT_ONCE_MAX])
    return is_whole


async def _renew_at_once(me: Identity, quick: Link, executions: Executions, due: Sequence[Running]) -> bool:
    beat = _Beat(me, due)
    missing, lost = await quick.run(beat.once)
    for running, sent_at in beat.answered.items():
        surprise = beat.told.get(running.job.id)
        if surprise is not None and surprise.became == "unrenewed":
            continue
        if running.job.id not in lost:
            # An execution that has ended, or whose job was completed, has no lease any more, and
            # needs none. It is noted as renewed all the same: it was looked at.
            executions.renew(running, sent_at)
        if surprise is not None and surprise.became == "cancelled":
            interrupt_cancelled(me, executions, running, surprise.why)
    for running in missing:
        if not running.has_ended:
            _stop_without_lease(me, executions, running, is_lost=running.job.id in lost)
    return all(surprise.became != "unrenewed" for surprise in beat.told.values())


@attrs.define
class _Beat:
    """One beat for some executions, which may take several tries.

    The first try is one statement for all of them. If it is late, one row may be at fault, because
    its trigger stands still. So from then on each execution has a statement of its own, and those
    that were answered are not asked about again. If the statement of a single execution is late, it
    is cancelled, and that execution counts as not renewed (sql/functions/lease/heartbeat.sql).
    """

    _me: Identity
    _due: Sequence[Running]
    told: dict[JobId, lease.Surprise] = attrs.field(factory=dict)
    answered: dict[Running, float] = attrs.field(factory=dict)  # trio clock, seconds: when that was sent
    _is_first: bool = True

    async def once(self, connection: Connection) -> tuple[list[Running], set[JobId]]:
        """Return the executions that hold no lease any more, and the jobs that were lost."""
        # Looked at now, not before the wait for the link: an execution whose outcome is written by
        # now needs no renewal.
        held = [running for running in self._due if not running.is_gone and running not in self.answered]
        statements = [held] if self._is_first else [[running] for running in held]
        self._is_first = False
        for some in statements:
            sent_at = trio.current_time()
            surprises = await ask(
                connection,
                lease.heartbeat(
                    self._me.schema,
                    worker_id=self._me.worker_id,
                    leases=[running.lease for running in some],
                    lease_seconds=self._me.lease_seconds,
                ),
            )
            self.told |= {surprise.job_id: surprise for surprise in surprises}
            self.answered |= dict.fromkeys(some, sent_at)
        missing = [one for one in self.answered if one.job.id in self.told and self.told[one.job.id].became == "lost"]
        # A beat may overtake the reply to a settlement. It then finds no lease any more, and does
        # not know why. If an execution has ended, it is the settler that tells what became of it.
        missing = [running for running in missing if not running.has_ended]
        schema = self._me.schema
        lost = await ask(connection, lease.lost(schema, [one.lease for one in missing])) if missing else set()
        return missing, lost


def _stop_without_lease(me: Identity, executions: Executions, running: Running, *, is_lost: bool) -> None:
    """Stop a handler whose job is not its own any more: lost, or completed by its own transaction.

    If its own transaction has completed the job, the handler has until the next beat to return: the
    commit may not even have been answered yet.
    """
    if is_lost:
        interrupt(me, executions, running, Interrupt(kind=InterruptKind.LEASE_LOST, why="somebody else holds the job"))
    elif running.outlives_job:
        why = "its own transaction has completed the job"
        interrupt(me, executions, running, Interrupt(kind=InterruptKind.LEASE_LOST, why=why))
    running.outlives_job = True
