"""Slots: the permits of a worker.

One permit is one running job; it is taken before the claim is sent, given back when the claim brought no job for it, and free again
when the job's outcome is durable. Whoever asks what is free and then waits (for a link, for a reply) asks in vain: a hand-over may
have taken the last one meanwhile. So nobody asks; `reserve` takes what there is, in one step, and says how many. At any moment
`free + taken == count`, and neither is negative.

Slots are long-lived tasks (executor.py) that take jobs from a deque, not tasks spawned a job. A task that has run a job goes on to the next one
while the outcome is on its way to the database, so `free` counts permits, not tasks.

A batch wakes two idle tasks. Whoever takes a job and sees another wakes more before it runs its own, but never so that more
than two are on their way: when handlers wait, tasks start in a chain, a scheduler's step apart; when they do not, one task
runs sixteen jobs before the next has its turn, and few are woken for nothing.

While jobs wait in the deque this process is busy with itself, and small statements would only slow it down: claimer and
settler then hold back until half a batch has gathered (`is_backed_up`). Nothing waits on a timer for that: the deque empties
within a scheduler's pass or two, for every job in it has a task of its own.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import trio
import trio.lowlevel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pgnotifyq.runtime.bell import Bell
    from pgnotifyq.runtime.holdings import Running

# After this many handlers that never waited, other tasks get their turn: listener, heartbeat, settler.
IN_A_ROW_MAX = 16
# Idle tasks woken and not yet running. Each that arrives wakes as many again while jobs wait.
WAKING_MAX = 2
# So many free permits are worth a claim while other jobs wait to be started: with more slots than twice this, a batch is
# claimed while a second runs and a third is written.
ENOUGH_MAX = 250


class Slots:
    """How many slots are free, and the way of a job to one of them."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.free = count
        self._given: deque[Running] = deque()
        self._idle: list[trio.Event] = []
        self._waking = 0
        self._in_a_row = 0
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

    @property
    def is_closed(self) -> bool:
        """Whether no job will be started any more."""
        return self._is_closed

    @property
    def taken(self) -> int:
        """How many permits are taken: for jobs that run, or for a claim that is under way."""
        return self.count - self.free

    def reserve(self, wanted: int | None = None) -> int:
        """Take as many permits as are free, `wanted` at the most, for a claim that is about to be sent; return how many.

        Each of them is then spent by `give`, or comes back by `release`.
        """
        reserved = self.free if wanted is None else min(wanted, self.free)
        self.free -= reserved
        return reserved

    def give(self, claimed: Sequence[Running]) -> None:
        """Hand jobs to slots. Their permits were taken before they were claimed."""
        self._given.extend(claimed)
        self._wake()

    def release(self, count: int) -> None:
        """Free permits: outcomes are durable, their leases lost, or a claim brought no jobs for them."""
        assert 0 <= count <= self.taken, f"{count} permits of {self.taken} taken cannot be free again"
        self.free += count
        self._tell_if_wanted()

    def ring_when_wanted(self, bell: Bell) -> None:
        """Ring a bell, once, when `wants_more` comes true."""
        self._bell = bell

    async def take(self) -> Running | None:
        """Wait for a job and return it; None when there are no more and no more will come."""
        self._in_a_row += 1
        if self._in_a_row > IN_A_ROW_MAX:
            self._in_a_row = 0
            await trio.lowlevel.checkpoint()
        while not self._given:
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
        running = self._given.popleft()
        if self._given:
            self._wake()
        else:
            self._tell_if_wanted()
        return running

    def close(self) -> None:
        """Let every task end when its job has."""
        self._is_closed = True
        for woken in self._idle:
            self._waking += 1
            woken.set()
        self._idle.clear()

    def _forget(self, woken: trio.Event) -> None:
        """Take an idle task off the list that was cancelled; when it was woken already, another has to be."""
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
        while self._idle and self._waking < WAKING_MAX and self._waking < len(self._given):
            self._waking += 1
            self._idle.pop().set()
