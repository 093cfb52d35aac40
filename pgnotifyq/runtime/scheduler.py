"""The scheduler: every worker enqueues the jobs of each schedule that is due. There is no leader.

The time of a schedule's next tick is data (sql/migrations/0017_schedules.sql). A worker looks which
schedules come next, and sleeps until the first of their ticks. Then it sends one statement, which
locks the schedules, enqueues their jobs, and moves them on to their next ticks, all in one
transaction (sql/functions/schedule/fire.sql). The worker that comes second finds them moved.

Nobody polls. A schedule that changes notifies every worker. If notifications may have been lost,
the listener has a new session, and rings for the scheduler. While notifications are not proven to
arrive, the worker looks as often as the claimer polls.

The ticks are computed here, by cronsim, and never while a row is locked. The statement names the
tick that was next when the ticks were computed. If another one is next by now, the statement does
nothing.

A worker sends the statement a little ahead of the tick. The statement does all but the commit, and
then waits in the database for the tick. So the job is not late because the statement takes long, or
because this worker does not know the time well.

Several workers wake at the same tick. With ticks in quick succession all but one would come in
vain, each time. So a worker whose statement has done nothing comes a moment later next time, and
looks before it fires: mostly it finds the work done. If the worker that comes first is gone,
another one fires, that moment later.

trio's clock measures elapsed time. The database says with each look what time it is. A sleep is
never longer than an hour. A long sleep ends a while before the tick, for another look: clocks
drift.
"""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import trio

from pgnotifyq.ledger import schedules
from pgnotifyq.ledger.errors import translated
from pgnotifyq.model.errors import MissingRights
from pgnotifyq.model.events import Event, EventName
from pgnotifyq.model.schedule import Overlap, move_of
from pgnotifyq.runtime.troubles import bear
from pgnotifyq.wire.asking import ask

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from uuid import UUID

    from pgnotifyq.ledger.schedules import Coming, Fired
    from pgnotifyq.model.schedule import Move
    from pgnotifyq.runtime.bell import Bell
    from pgnotifyq.runtime.identity import Identity
    from pgnotifyq.runtime.link import Link
    from pgnotifyq.runtime.wakeups import Push
    from pgnotifyq.wire.connection import Connection

AT_ONCE_MAX = 64  # schedules in one statement, which holds their locks
LOOK_SECONDS_MAX = 3600.0  # a clock that was set is noticed then, at the latest
# How long before a tick its statement is sent, and how much longer for each schedule of that tick.
# fire.sql allows 0.25 in all.
AHEAD_SECONDS = 0.01
AHEAD_SECONDS_EACH = 0.002
SOON_SECONDS = 60.0  # a longer sleep ends so much before the tick
QUICK_SECONDS = 2.0  # if ticks follow within that time, the worker that was first is first again
# How much later the other workers come: with a tick a second, each looks once a second.
STAGGER_SECONDS = (0.015, 0.06)
# Until a schedule that did not move is tried again: another session has locked its row.
AGAIN_SECONDS = 0.25
REST_SECONDS = 0.05  # between looks that notifications call for


async def publish_schedules(me: Identity, connection: Connection) -> None:
    """Create or change the schedules that the registry has; note those that it has no more."""
    by_owner: dict[str, list[str]] = {}
    for new in me.registry.schedules:
        became = await ask(connection, schedules.schedule(me.schema, new))
        if became == "refused":
            why = f"a schedule of this name is another program's than {new.owner}: give this one another name"
            me.emit(Event(name=EventName.SCHEDULE_FAILED, fields={"schedule": new.name, "why": why}))
        by_owner.setdefault(new.owner or "", []).append(new.name)
    for owner, names in by_owner.items():
        await ask(connection, schedules.unlist_schedules(me.schema, owner, names))


async def schedule_for_ever(me: Identity, quick: Link, ticking: Link, bell: Bell, push: Push) -> None:
    """Enqueue the jobs of schedules as they come due, until cancelled.

    Args:
        me: the worker.
        quick: the link by which schedules are looked at.
        ticking: the link by which their jobs are enqueued.
        bell: rung when schedules should be looked at at once.
        push: whether changes are heard of.
    """
    scheduler = _Scheduler(me, quick, ticking)
    is_rung = True
    try:
        with translated(me.schema):
            while True:
                seconds = await scheduler.look(starts_waiting=is_rung)
                seconds = min(seconds, LOOK_SECONDS_MAX if push.is_proven else me.config.poll_seconds)
                is_rung = await bell.wait(seconds)
                if is_rung:
                    # Anybody can ring. That must not keep this connection from its own work.
                    await trio.sleep_until(scheduler.seen_at + REST_SECONDS)
                elif not scheduler.is_late:
                    await scheduler.fire_due()
    except MissingRights as error:
        # The worker's rights were granted by hand, for an earlier release. The worker does all
        # else.
        me.emit(Event(name=EventName.SCHEDULE_FAILED, fields={"why": str(error)}))


@attrs.define(eq=False)
class _Scheduler:
    """What one worker knows of the schedules that come next."""

    me: Identity
    quick: Link
    ticking: Link
    coming: Coming = attrs.field(factory=lambda: schedules.Coming(now=None, pending=()))
    seen_at: float = 0.0  # when `coming` was read, on trio's clock
    is_late: bool = False  # other workers come first
    fired_at: float = -QUICK_SECONDS  # when this worker last fired, or tried
    # What was tried, and may not have moved.
    stuck: set[tuple[UUID, int, datetime | None]] = attrs.field(factory=set)

    @property
    def now(self) -> datetime | None:
        """The database's time, as far as we know; None: there is no schedule."""
        if self.coming.now is None:
            return None
        return self.coming.now + timedelta(seconds=trio.current_time() - self.seen_at)

    async def look(self, *, starts_waiting: bool) -> float:
        """Look which schedules come next, and fire those that are due; return how long to sleep."""
        while True:
            if starts_waiting:
                await self._start_waiting()
                starts_waiting = False
            self.coming = await self.quick.ask(schedules.due_schedules(self.me.schema, limit=AT_ONCE_MAX))
            # The database's clock has gone on since. So what we take for its time is never ahead of
            # it, and no tick is fired in vain.
            self.seen_at = trio.current_time()
            if self.now is None:
                return LOOK_SECONDS_MAX
            seconds = self._seconds_until_first(self.now)
            if seconds <= 0:
                if await self.fire_due():
                    continue
                return AGAIN_SECONDS
            return self._pause(seconds)

    def _seconds_until_first(self, now: datetime) -> float:
        """Return how long it is until the first schedules are to be fired, ahead of their tick."""
        due_at = self.coming.pending[0].due_at
        if due_at is None:
            return 0.0
        alike = sum(each.due_at == due_at for each in self.coming.pending)
        return (due_at - now).total_seconds() - AHEAD_SECONDS - alike * AHEAD_SECONDS_EACH

    def _pause(self, seconds: float) -> float:
        if seconds > 2 * SOON_SECONDS:
            return seconds - SOON_SECONDS
        # The ticks come in quick succession, and other workers see to them.
        if self.is_late and trio.current_time() + seconds - self.fired_at < QUICK_SECONDS:
            low, high = STAGGER_SECONDS
            return seconds + AHEAD_SECONDS + low + (high - low) * self.me.random.random()
        self.is_late = False
        return seconds

    async def fire_due(self) -> bool:
        """Fire what is due of what was seen; return whether to look again at once."""
        now = self.now
        if now is None:
            return True
        if (first_at := self.coming.pending[0].due_at) is not None and self._seconds_until_first(now) <= 0:
            now = max(now, first_at)
        due = [each for each in self.coming.pending if each.due_at is None or each.due_at <= now]
        keys = {(each.schedule_id, each.version, each.next_at) for each in due}
        if not due:
            return True
        if keys <= self.stuck:
            self.stuck = set()
            return False
        moves = []
        for each in due:
            moves.append(move_of(each, now))
            await trio.lowlevel.checkpoint()  # a rule may take a while
        # A move that locks jobs is sent alone: between schedules, jobs are not locked in one order.
        alone = [move for move in moves if move.of.overlap in {Overlap.QUEUE, Overlap.CANCEL_RUNNING} and move.ticks]
        together = [move for move in moves if move not in alone]
        has_fired = False
        for batch in ([together] if together else []) + [[move] for move in alone]:
            has_fired |= await self._fire(batch)
        self.stuck = keys
        self.fired_at = trio.current_time()
        self.is_late = not has_fired
        return True

    async def _fire(self, moves: Sequence[Move]) -> bool:
        """Send moves; return whether this worker was the first with any of them."""
        verb = schedules.fire_schedules(self.me.schema, moves)
        fired = await bear(self.me.emit, "schedule", partial(self.ticking.ask, verb))
        if fired is None:
            return False
        by_id = {move.of.schedule_id: move for move in moves}
        for each in fired:
            self._tell(by_id[each.schedule_id], each)
        told = {each.schedule_id for each in fired}
        for move in moves:
            name = move.of.name
            if move.error_message is not None:
                self.me.emit(Event(name=EventName.SCHEDULE_FAILED, fields={"schedule": name, "why": move.error_message}))
            elif move.missed_from is not None and (move.of.schedule_id in told or not move.ticks):
                fields = {"schedule": name, "missed_from": move.missed_from.isoformat()}
                self.me.emit(Event(name=EventName.SCHEDULE_MISSED, fields=fields))
        return bool(fired)

    def _tell(self, move: Move, fired: Fired) -> None:
        emit, name = self.me.emit, move.of.name
        if fired.tick is None:
            why = "its job was refused: schedules --json says why"
            emit(Event(name=EventName.SCHEDULE_FAILED, fields={"schedule": name, "why": why}))
        elif fired.became == "skipped":
            fields = {"schedule": name, "scheduled_for": fired.tick.isoformat()}
            emit(Event(name=EventName.SCHEDULE_SKIPPED, fields=fields))
        elif fired.became == "enqueued" and self.me.tells_routine:
            told: dict[str, Any] = {"schedule": name, "scheduled_for": fired.tick.isoformat(), "job_id": fired.job_id}
            emit(Event(name=EventName.SCHEDULE_FIRED, fields=told))

    async def _start_waiting(self) -> None:
        """Enqueue each run that waited for the run before it, if that one has ended."""
        for schedule_id in await self.quick.ask(schedules.waiting_schedules(self.me.schema, limit=AT_ONCE_MAX)):
            verb = schedules.start_waiting(self.me.schema, schedule_id)
            await bear(self.me.emit, "schedule", partial(self.ticking.ask, verb))
