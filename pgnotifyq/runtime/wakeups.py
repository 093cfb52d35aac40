"""Wake-ups: what a worker knows of the work that it was told of, and whether it is idle.

The claimer looks at the queues when the bell was rung, when the next job known of falls due, or
when the backstop's time has come. The bell is rung by the listener, by a settlement or a reclaim
that made a job due, by a permit that became free, and by a new handler.

A worker is idle when its last look left no due job behind, and the bell was not rung since. Only
then may a job start without a look at the queues (shortcuts.py): the job is the first of its queue.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import attrs
import trio

from pgnotifyq.runtime.bell import Bell
from pgnotifyq.runtime.sleep import LULL_SECONDS, Sleep

if TYPE_CHECKING:
    from collections.abc import Sequence


@attrs.define(eq=False)
class Push:
    """What the worker knows of its listener.

    With `trio_util.move_on_when`, the wait for notifications could end when the session is asked,
    and no scope would be needed in here. But that takes a nursery and a task each time, 48 µs, and
    a wake-up would wait for them. The flags are read and never waited for.
    """

    is_proven: bool = False  # notifications arrive: sleep; otherwise poll
    has_session: bool = False  # the session speaks for the worker's life
    generation: int = 0  # grows with every connection; what was published before may be gone
    answered_at: float = -math.inf  # when the session last answered, or heard, on trio's clock
    is_asked: bool = False  # the session was asked to show that it is there; see trust.py
    waiting: trio.CancelScope | None = None  # around the wait for notifications

    def ask(self) -> None:
        """Have the session show that it is there."""
        self.is_asked = True
        if self.waiting is not None:
            self.waiting.cancel(reason="pgnotifyq: asked for a proof of life")


@attrs.define(eq=False)
class Wakeups:
    """The bell of one worker's claimer, its sleep, and whether the worker is idle.

    Times are trio's, in seconds.
    """

    push: Push = attrs.field(factory=Push)
    bell: Bell = attrs.field(factory=Bell)  # rung when there may be work
    sleep: Sleep = attrs.field(factory=Sleep)
    expects_at: float = math.inf  # when the next job known of falls due
    # If queues have permits of their own: the queues that wake-ups named since the claimer last
    # looked, and the queues that the worker is published for.
    heard_of: set[str] = attrs.field(factory=set)
    published: Sequence[str] = ()
    is_lulled: bool = True  # the claimer's last wait was a long one
    # The last look found less than it asked for, and nothing due was left behind: a job that is
    # enqueued now is first.
    _saw_queues_empty: bool = False
    _heard_at: float = -math.inf  # when a wake-up was last heard
    _generation: int = 0  # of the listener's connection that the claimer knows

    @property
    def is_idle(self) -> bool:
        """Whether nothing is due that this worker knows of."""
        return self._saw_queues_empty and not self.bell.is_ringing

    def is_first_after_lull(self) -> bool:
        """Note a wake-up, and tell whether it is the first after a while.

        Wake-ups in quick succession go to the claimer: it takes many jobs at once.
        """
        now = trio.current_time()
        before, self._heard_at = self._heard_at, now
        return now - before > LULL_SECONDS

    def is_listener_new(self) -> bool:
        """Tell, once, that the listener has come back: what was sent meanwhile is gone."""
        before, self._generation = self._generation, self.push.generation
        return before != self._generation

    def note_look(self, now: float, *, ran_dry: bool, is_contended: bool, next_due_seconds: float | None) -> None:
        """Note what a look at the whole of the queues has told."""
        self._saw_queues_empty = ran_dry and not is_contended
        if ran_dry:
            self.expects_at = math.inf
            if next_due_seconds is not None and not is_contended:
                self.expects_at = now + next_due_seconds

    async def wait(self, seconds: float, now: float) -> bool:
        """Wait until the bell rings, a job falls due, or `seconds` have passed since `now`.

        Returns: whether the bell rang.
        """
        rung = await self.bell.wait(min(seconds, self.expects_at - now))
        self.is_lulled = trio.current_time() - now > LULL_SECONDS
        return rung
