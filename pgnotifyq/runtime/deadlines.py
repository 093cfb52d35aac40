"""Deadlines: what is told when a handler's time is over, by one rule for all handlers.

At its deadline a handler is interrupted: trio cancels its scope, and `job.interrupted` says so,
with the reason `timed_out`. An async handler mostly ends at once. A handler runs on if it sits in a
thread, holds a shield or does not look. After the grace it is reported as `job.unresponsive`.
Nobody would know of it otherwise: the handler holds its slot, and its outcome comes when it ends,
if ever.

One task looks at the earliest deadline there is. A job that ended before its deadline leaves
nothing behind; the look at that deadline is then in vain.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import attrs
import trio

from pgnotifyq.model.outcome import InterruptKind
from pgnotifyq.runtime.bell import Bell

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgnotifyq.model.outcome import Interrupt
    from pgnotifyq.runtime.executions import Executions
    from pgnotifyq.runtime.running import Running


@attrs.define(eq=False)
class Deadlines:
    """When to look, and how a handler is interrupted."""

    _interrupt: Callable[[Running, Interrupt], object]
    next_at: float = math.inf  # trio clock, seconds
    bell: Bell = attrs.field(factory=Bell)

    def note(self, at: float) -> None:
        """Take note of a deadline. Most are later than one that is known, and change nothing."""
        if at < self.next_at:
            self.next_at = at
            self.bell.ring()

    def tell(self, running: Running) -> None:
        """Interrupt an execution if its time is over, and tell; once."""
        why = running.why_stop()
        if running.interrupt is None and why is not None and why.kind is InterruptKind.TIMED_OUT:
            self._interrupt(running, why)


async def tell_deadlines_for_ever(deadlines: Deadlines, executions: Executions) -> None:
    """Interrupt the handlers that run on when their time is over, until cancelled."""
    while True:
        with trio.move_on_at(deadlines.next_at):
            await deadlines.bell.wait()
            continue
        await trio.lowlevel.checkpoint()  # the handlers first: one that ends tells of it by itself
        deadlines.next_at = math.inf
        for running in executions:
            deadlines.tell(running)
            if running.interrupt is None and (at := _deadline_of(running)) is not None:
                deadlines.note(at)


def _deadline_of(running: Running) -> float | None:
    if running.scope is None or running.handler is None or running.handler.timeout_seconds is None:
        return None
    return running.scope.deadline  # infinite: it has not begun, or waits for another process
