"""A bell: rung by anybody, heard once by the one task that waits for it; rings while nobody waits are kept as one."""

from __future__ import annotations

import math

import trio


class Bell:
    """A coalescing wake-up for a single waiter."""

    def __init__(self) -> None:
        self._event = trio.Event()

    @property
    def is_ringing(self) -> bool:
        """Whether it was rung since it was last heard."""
        return self._event.is_set()

    def ring(self) -> None:
        """Wake the waiter, now or when it next waits."""
        self._event.set()

    def hush(self) -> None:
        """Forget the rings so far."""
        if self._event.is_set():
            self._event = trio.Event()

    async def wait(self, seconds: float = math.inf) -> bool:
        """Wait until rung or until `seconds` have passed; True when it was rung. Hears, and so forgets, the ring."""
        with trio.move_on_after(max(seconds, 0.0)):
            await self._event.wait()
        rung = self._event.is_set()
        self.hush()
        return rung
