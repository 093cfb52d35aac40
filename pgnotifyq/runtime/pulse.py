"""The pulse: a worker's loop says at each beat that it turns, and how the worker is.

Probes and gauges read that in other threads, and do not ask the loop: a loop that is held answers
nobody. What is published is one frozen value (`meter.Vitals`), so a reader never sees half of it.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

import attrs
import trio

from pgnotifyq.runtime.meter import BEAT_SECONDS, Vitals

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pgnotifyq.runtime.executions import Executions
    from pgnotifyq.runtime.link import Link
    from pgnotifyq.runtime.meter import Meter
    from pgnotifyq.runtime.settler import Settler
    from pgnotifyq.runtime.wakeups import Push
    from pgnotifyq.wire.pool import Pool


@attrs.frozen(eq=False, kw_only=True)
class Pulse:
    """What a beat looks at."""

    meter: Meter
    executions: Executions
    settler: Settler
    push: Push
    links: Sequence[Link]
    pool: Pool

    async def beat_for_ever(self) -> None:
        """Publish how the worker is, again and again, and count how late each beat was."""
        while True:
            self.publish()
            planned = trio.current_time() + BEAT_SECONDS
            await trio.sleep_until(planned)
            self.meter.lags.note(trio.current_time() - planned)

    def publish(self) -> None:
        """Publish how the worker is now."""
        answered_at = max(self.push.answered_at, *(link.answered_at for link in self.links))
        stats = self.pool.stats()
        self.meter.vitals = Vitals(
            at=monotonic(),
            state="draining" if self.executions.is_draining else "working",
            is_listening=self.push.is_proven,
            is_database_up=not any(link.is_down for link in self.links),
            database_seconds=trio.current_time() - answered_at,
            concurrency=self.executions.count,
            running=self.meter.active,
            unwritten=len(self.settler.unwritten()),
            connections=(stats.size_max, stats.open - stats.idle, stats.idle, stats.waiting),
        )
