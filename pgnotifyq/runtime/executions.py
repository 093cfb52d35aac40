"""Executions: the permits and the leases of a worker, as one invariant.

One permit is one execution. It is taken before the claim is sent. It is free again when the claim
brought no job for it, when the outcome of its job is durable, or when its lease is lost. At any
moment `free + taken == count`, and each permit taken belongs to a claim that is under way or to a
lease. Whatever changes permits and leases together is one method here:

| what happened | method | permits | leases |
|---|---|---|---|
| a claim is about to be sent | `reserve` | free -> taken | |
| it was answered, or failed | `take_up` | those without a job: free again | one for each job |
| a job came that must not start | `hold` | its permit stays taken | one |
| an outcome is durable, a lease is lost | `let_go` | free again, once | given up |

A queue may have permits of its own, beside the worker's. A claim reserves both kinds: the worker's
permits, and as many of each such queue's as it could use. Permits that it brought no job for are
free again. So no queue runs more jobs than it may, however they come: by a look, by name, or by
hand-over. A queue without a free permit is closed: the claimer does not ask for it, and asks for
the others. If a claim has left a queue out, the claimer's bell is rung as soon as the queue opens.

Naively, a task asks how many permits are free, and then waits for a link or a reply. Meanwhile a
hand-over may take the last permit, and the task has asked in vain. So no task asks. `reserve` takes
the permits that are free, in one step, and says how many they were.

A worker stops trusting a lease on its own monotonic clock: `sent_at(last answered beat) +
lease_seconds - margin_seconds`. The database's clock is never compared with it. Leases stay in the
order of their last renewal, the oldest first, so the lease that needs attention next is always the
first.

Slots are long-lived tasks (slots.py) that take jobs from a line, not one task spawned for each job.
A task that has run a job goes on to the next one while the outcome is on its way to the database,
so `free` counts permits, not tasks.

When jobs come, two idle tasks are woken. A task that takes a job and sees another one in the line
wakes further tasks before it runs its own job. But never more than two woken tasks are on their
way. If handlers wait, tasks start in a chain, a scheduler's step apart. If handlers do not wait,
one task runs sixteen jobs before the next task has its turn, and few tasks are woken for nothing.

While jobs wait in the line, this process is busy with itself, and small statements would only slow
it down. So the claimer and the settler then hold back until half a batch has gathered
(`is_backed_up`). Neither waits on a timer for that. The line empties within a scheduler's pass or
two, because every job in it has a task of its own.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import attrs
import trio
import trio.lowlevel

from pgnotifyq.model.events import Event, EventName
from pgnotifyq.model.outcome import Interrupt, InterruptKind
from pgnotifyq.runtime.bell import Bell

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from pgnotifyq.model.job import ExecutionId, JobId
    from pgnotifyq.runtime.meter import Meter
    from pgnotifyq.runtime.running import Running

# After this many handlers that never waited, other tasks get their turn: listener, heartbeat,
# settler.
IN_A_ROW_MAX = 16
# Idle tasks that are woken and not yet running, at the most. While jobs wait, each task that
# arrives wakes others, up to this number again.
WAKING_MAX = 2
# If so many permits are free, a claim is worth it although other jobs wait to be started. With more
# slots than twice this, one batch is claimed while a second runs and a third is written.
ENOUGH_MAX = 250


@attrs.frozen
class Reserved:
    """Permits that a claim has taken, before it is sent."""

    count: int  # of the worker's
    queues: Sequence[str] = ()  # that may be asked for, in the order of preference
    rooms: Mapping[str, int] = attrs.field(factory=dict)  # of queues that have permits of their own

    def __bool__(self) -> bool:
        return self.count > 0


class Executions:
    """The executions of one worker: permits, leases, and the way of a job to a slot."""

    def __init__(
        self,
        count: int,
        tell: Callable[[Event], None] | None = None,
        *,
        meter: Meter | None = None,
        queues: Sequence[str] = (),
        permits: Mapping[str, int] | None = None,
        opened: Bell | None = None,
    ) -> None:
        """Begin with all permits free.

        Args:
            count: the worker's permits.
            tell: is told of each job that is taken up.
            meter: counts the jobs that are taken up.
            queues: the worker's queues.
            permits: of queues that have permits of their own.
            opened: is rung when a queue opens that a claim has left out.
        """
        self.count = count
        self.free = count
        self.queues = tuple(queues)
        self._rooms = dict(permits or {})  # permits that are free, of each such queue
        self._opened = opened
        # Closed queues that a claim has left out, or not seen to the end.
        self._left_out: set[str] = set()
        # The first signal came: jobs still claimed are given back, and no job is started any more.
        self.is_draining = False
        self._tell = tell
        self._meter = meter
        # The key is the job's id as a number: the id itself is hashed in Python, four times a job.
        self._held: dict[int, Running] = {}
        # Set when the first lease appears: heartbeat and trust wait for it.
        self.taken_up = trio.Event()
        self.emptied = trio.Event()
        self.emptied.set()
        # Executions that were interrupted just now, for the task that counts their grace.
        self.stopped: list[Running] = []
        self.stopped_bell = Bell()
        # Executions that were given up and have ended, for the task that gives them back.
        self.given_up: list[Running] = []
        self.given_up_bell = Bell()
        # The line: jobs that wait for a slot's task.
        self._line: deque[Running] = deque()
        self._idle: list[trio.Event] = []
        self._waking = 0
        self._in_a_row = 0
        self._bell: Bell | None = None
        self._is_closed = False
        self._enough = min(max(count // 2, 1), ENOUGH_MAX)

    # Permits and leases.

    @property
    def taken(self) -> int:
        """How many permits are taken: for executions, or for a claim that is under way."""
        return self.count - self.free

    @property
    def wants_more(self) -> bool:
        """Whether it is time to claim: a permit is free, and the line is empty or many are free."""
        return self.free > 0 and (not self._line or self.free >= self._enough) and not self.is_full

    @property
    def is_full(self) -> bool:
        """Whether no job could be taken: no permit is free, or every queue is closed."""
        return self.free == 0 or (bool(self._rooms) and not self.open_queues())

    @property
    def has_rooms(self) -> bool:
        """Whether some queue has permits of its own."""
        return bool(self._rooms)

    def open_queues(self) -> Sequence[str]:
        """Return the queues that are not closed, in order of preference."""
        if not self._rooms:
            return self.queues
        return [queue for queue in self.queues if self._rooms.get(queue, 1) > 0]

    def reserve(self, wanted: int | None = None, *, is_sparing: bool = False) -> Reserved:
        """Take permits for a claim about to be sent: all that are free, `wanted` at the most.

        Each permit is then spent by `take_up` or `hold`, or `take_up` makes it free again. With
        `is_sparing`, a claim leaves one permit of the worker free, and one of each queue, if there
        is more than one.

        Returns: the permits; none if every queue is closed.
        """
        queues = self.open_queues()
        self._left_out.update(queue for queue in self._rooms if queue not in queues)
        if self.free == 0 or not queues:
            return Reserved(0)
        count = self.free if wanted is None else min(wanted, self.free)
        if is_sparing:
            count = min(count, max(self.free - 1, 1))
        self.free -= count
        rooms = {}
        for queue, room in self._rooms.items():
            if room > 0:
                rooms[queue] = min(max(room - 1, 1) if is_sparing else room, count)
                self._rooms[queue] = room - rooms[queue]
        return Reserved(count, queues, rooms)

    def leave_out(self, queues: Collection[str]) -> bool:
        """Note queues in which a claim has left jobs for want of permits.

        Returns: whether one of them is open by now. The bell is rung when a closed one opens.
        """
        closed = {queue for queue in queues if self._rooms.get(queue, 1) <= 0}
        self._left_out |= closed
        return len(closed) < len(set(queues))

    def reserve_one(self, queue: str) -> Reserved:
        """Take a permit for one job of a queue; none if none is free, or the queue is closed."""
        room = self._rooms.get(queue)
        if self.free == 0 or (room is not None and room <= 0):
            return Reserved(0)
        self.free -= 1
        if room is None:
            return Reserved(1, [queue])
        self._rooms[queue] = room - 1
        return Reserved(1, [queue], {queue: 1})

    def take_up(self, claimed: Sequence[Running], reserved: Reserved) -> None:
        """Take up the jobs that a claim brought. These permits were reserved for the claim.

        The jobs are held and stand in the line. The permits that no job came for are free again:
        all of them if the claim failed.
        """
        if claimed:
            self._hold(claimed)
            self._line.extend(claimed)
            self._wake()
        self._change_rooms(reserved.rooms, claimed)
        self._free(reserved.count - len(claimed))
        if self._meter is not None:
            self._meter.note_claimed(claimed)
        if self._tell is not None:
            for running in claimed:
                self._tell(Event(name=EventName.JOB_CLAIMED, fields=running.names()))

    def hold(self, running: Running, reserved: Reserved) -> None:
        """Hold an execution that shall not start; a permit was reserved for it."""
        running.has_ended = True
        self._hold([running])
        self._change_rooms(reserved.rooms, [running])

    def let_go(self, gone: Sequence[Running]) -> None:
        """Let go of executions whose outcome is durable or whose lease is lost.

        Their permits are free again. Each permit is freed only once.
        """
        count = 0
        rooms: dict[str, int] = {}
        for running in gone:
            if running.is_gone:
                continue
            running.is_gone = True
            count += 1
            if self._rooms:
                rooms[running.job.queue_name] = rooms.get(running.job.queue_name, 0) + 1
            number = running.job.id.int
            if self._held.get(number) is running:
                del self._held[number]
            if running.is_given_up:
                running.is_given_up = False
                self.given_up.append(running)
                self.given_up_bell.ring()
        if not self._held:
            self.emptied.set()
            if self.taken_up.is_set():
                self.taken_up = trio.Event()
        self._change_rooms(rooms)
        self._free(count)

    def ring_when_wanted(self, bell: Bell) -> None:
        """Ring a bell, once, when `wants_more` becomes true."""
        self._bell = bell

    def _hold(self, claimed: Sequence[Running]) -> None:
        # An earlier execution of the same job may still run here, after its lease was lost and
        # reclaimed while this worker did not know. No task would find the earlier one any more, so
        # it is stopped now. The new one goes to the end of the order.
        for running in claimed:
            number = running.job.id.int
            before = self._held.pop(number, None)
            if before is not None:
                self.stop(before, Interrupt(kind=InterruptKind.LEASE_LOST, why="this worker claimed the job again"))
            self._held[number] = running
        self.taken_up.set()
        if self.emptied.is_set():
            self.emptied = trio.Event()

    def _change_rooms(self, freed: Mapping[str, int], taken: Iterable[Running] = ()) -> None:
        """Give permits back to queues, and take one permit for each execution in `taken`."""
        if not self._rooms:
            return
        changes = dict(freed)
        for running in taken:
            changes[running.job.queue_name] = changes.get(running.job.queue_name, 0) - 1
        for queue, change in changes.items():
            if queue in self._rooms:
                self._rooms[queue] += change
                if self._rooms[queue] > 0 and queue in self._left_out:
                    self._left_out.remove(queue)
                    if self._opened is not None:
                        self._opened.ring()

    def _free(self, count: int) -> None:
        assert 0 <= count <= self.taken, f"{count} permits of {self.taken} taken cannot be free again"
        self.free += count
        self._tell_if_wanted()

    # Leases.

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[Running]:
        return iter(list(self._held.values()))

    def find(self, job_id: JobId, execution_id: ExecutionId | None = None) -> Running | None:
        """Return a job's execution, if it is held here (and has this `execution_id`)."""
        running = self._held.get(job_id.int)
        if running is None or (execution_id is not None and running.lease.execution_id != execution_id):
            return None
        return running

    def oldest(self) -> Running | None:
        """Return the execution whose lease was renewed longest ago, of those still trusted."""
        for running in self._held.values():
            if not running.is_lost:
                return running
        return None

    def renewed_before(self, time: float) -> list[Running]:
        """Return the trusted executions whose lease was renewed before a time, oldest first."""
        found = []
        for running in self._held.values():
            if running.renewed_at > time:
                break
            if not running.is_lost:
                found.append(running)
        return found

    def renew(self, running: Running, sent_at: float) -> None:
        """Note that a beat sent at `sent_at` was answered for this lease."""
        number = running.job.id.int
        if self._held.get(number) is running:
            del self._held[number]
            running.renewed_at = sent_at
            self._held[number] = running

    def stop(self, running: Running, interrupt: Interrupt) -> bool:
        """Interrupt one execution and have its grace counted; True if this is news."""
        if not running.stop(interrupt):
            return False
        self.stopped.append(running)
        self.stopped_bell.ring()
        return True

    # The line, and the slots' tasks.

    @property
    def is_backed_up(self) -> bool:
        """Whether jobs wait for their task's turn."""
        return bool(self._line)

    @property
    def is_closed(self) -> bool:
        """Whether no job will be started any more."""
        return self._is_closed

    async def take(self) -> Running | None:
        """Wait for a job and return it; None if there are no more and no more will come."""
        self._in_a_row += 1
        if self._in_a_row > IN_A_ROW_MAX:
            self._in_a_row = 0
            await trio.lowlevel.checkpoint()
        while not self._line:
            if self._is_closed:
                return None
            woken = trio.Event()
            self._idle.append(woken)
            try:
                await woken.wait()
            except trio.Cancelled:
                self._forget(woken)
                raise
            self._waking -= 1
            self._in_a_row = 0
        running = self._line.popleft()
        if self._line:
            self._wake()
        else:
            self._tell_if_wanted()
        return running

    def take_more(self, first: Running, count: int) -> list[Running]:
        """Take the jobs out of the line that may be in one batch with `first`, in their order.

        They have the same type and tenant as `first`.

        Returns: `count` jobs at the most, of those that wait already. No other job is waited for.
        """
        if not self._line or count < 1:
            return []
        found: list[Running] = []
        left: deque[Running] = deque()
        job_type, org_id = first.job.job_type, first.job.org_id
        for running in self._line:
            fits = len(found) < count and running.job.job_type == job_type and running.job.org_id == org_id
            (found if fits and running.interrupt is None else left).append(running)
        self._line = left
        if not left:
            self._tell_if_wanted()
        return found

    def close(self) -> None:
        """Let the task of every slot end when it finds no more jobs."""
        self._is_closed = True
        for woken in self._idle:
            self._waking += 1
            woken.set()
        self._idle.clear()

    def _forget(self, woken: trio.Event) -> None:
        """Forget an idle task that was cancelled; if it was woken already, wake another."""
        if woken in self._idle:
            self._idle.remove(woken)
        else:
            self._waking -= 1
            self._wake()

    def _tell_if_wanted(self) -> None:
        if self._bell is not None and self.wants_more:
            self._bell.ring()
            self._bell = None

    def _wake(self) -> None:
        while self._idle and self._waking < WAKING_MAX and self._waking < len(self._line):
            self._waking += 1
            self._idle.pop().set()
