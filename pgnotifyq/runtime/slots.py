"""Slots: the permits of a worker.

One permit is one running job; it is taken before claiming and free again when the outcome is durable. Slots are long-lived tasks that take jobs from a deque, not tasks spawned a job. A task that has run a job goes on to the next
one while the outcome is on its way to the database, so `free` counts permits, not tasks.

Only one idle task is woken for a batch. Whoever takes a job and sees another wakes the next before it runs its own: when
handlers wait, tasks start one after the other, a scheduler's step apart; when they do not, one task runs the whole
batch and nobody is woken for nothing.

While jobs wait in the deque this process is busy with itself, and small statements would only slow it down: claimer and
settler then hold back until half a batch has gathered (`is_backed_up`). Nothing waits on a timer for that: the deque empties
within a scheduler's pass or two, for every job in it has a task of its own.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import trio
import trio.lowlevel

from pgnotifyq.runtime.executor import execute

if TYPE_CHECKING:
    from pgnotifyq.runtime.bell import Bell
    from pgnotifyq.runtime.holdings import Running
    from pgnotifyq.runtime.parts import Parts

# After this many handlers that never waited, other tasks get their turn: listener, heartbeat, settler.
IN_A_ROW_MAX = 16
# So many free permits are worth a claim while other jobs wait to be started: with more slots than twice this, a batch is
# claimed while a second runs and a third is written.
ENOUGH_MAX = 250


class Slots:
    """How many slots are free, and the way of a job to one of them."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.free = count
        self._given: deque[Running] = deque()  # the claimer never gives more than `free`
        self._idle: list[trio.Event] = []
        self._bell: Bell | None = None
        self._is_closed = False
        self._enough = min(max(count // 2, 1), ENOUGH_MAX)

    @property
    def is_backed_up(self) -> bool:
        """Whether jobs wait for their task's turn."""
        return bool(self._given)

    @property
    def wants_more(self) -> bool:
        """Whether it is time to claim: there is a free permit, and nothing left to start or many permits."""
        return self.free > 0 and (not self._given or self.free >= self._enough)

    def give(self, running: Running) -> None:
        """Hand a claimed job to a free slot."""
        self.free -= 1
        self._given.append(running)
        if len(self._given) == 1:
            self._wake_one()

    def release(self) -> None:
        """Free a permit: an outcome is durable, or its lease is lost."""
        self.free += 1
        self._tell_if_wanted()

    def ring_when_wanted(self, bell: Bell) -> None:
        """Ring a bell, once, when `wants_more` comes true."""
        self._bell = bell

    async def work(self, parts: Parts) -> None:
        """Be one slot: run jobs one after the other until there are no more and no more will come."""
        in_a_row = 0
        while True:
            if not self._given:
                if self._is_closed:
                    return
                woken = trio.Event()
                self._idle.append(woken)
                await woken.wait()
                in_a_row = 0
                continue
            running = self._given.popleft()
            if self._given:
                self._wake_one()
            else:
                # The last one is about to start, and may run for long: what was held back goes now.
                self._tell_if_wanted()
                parts.settler.go_on()
            settlement = await execute(parts, running)
            parts.settler.add(running, settlement)
            in_a_row += 1
            if in_a_row >= IN_A_ROW_MAX:
                in_a_row = 0
                await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """Let every task end when its job has."""
        self._is_closed = True
        while self._idle:
            self._wake_one()

    def _tell_if_wanted(self) -> None:
        if self._bell is not None and self.wants_more:
            self._bell.ring()
            self._bell = None

    def _wake_one(self) -> None:
        if self._idle:
            self._idle.pop().set()
