"""The bell: what was rung is heard, once, whether or not somebody waited, with a limit or without."""

from __future__ import annotations

import math

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from pgnotifyq.runtime.bell import Bell

LIMITS = pytest.mark.parametrize("seconds", [math.inf, 5.0])


@LIMITS
async def test_rung_before_the_wait(seconds: float, autojump_clock: MockClock) -> None:
    """Rings while nobody waits are kept as one; a wait hears and forgets them."""
    bell = Bell()
    bell.ring()
    bell.ring()
    assert await bell.wait(seconds)
    assert not bell.is_ringing
    assert not await bell.wait(1.0)


@LIMITS
async def test_rung_during_the_wait(seconds: float, autojump_clock: MockClock) -> None:
    """The waiter wakes at once, and hears it once."""
    bell = Bell()
    heard: list[bool] = []

    async def wait() -> None:
        heard.append(await bell.wait(seconds))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        bell.ring()
    assert heard == [True]
    assert not bell.is_ringing
    assert trio.current_time() == 0


@pytest.mark.parametrize("seconds", [5.0, 0.0, -1.0])
async def test_limit(seconds: float, autojump_clock: MockClock) -> None:
    """A wait that nobody rings for ends at its limit, and says so."""
    bell = Bell()
    assert not await bell.wait(seconds)
    assert trio.current_time() == max(seconds, 0.0)


@LIMITS
async def test_cancelled_wait(seconds: float) -> None:
    """A cancel takes no ring away."""
    bell = Bell()
    bell.ring()
    with trio.CancelScope() as scope:
        scope.cancel()
        await bell.wait(seconds)
    assert scope.cancelled_caught
    assert bell.is_ringing


async def test_hushed() -> None:
    """What was rung before is forgotten, what is rung later is heard."""
    bell = Bell()
    bell.ring()
    bell.hush()
    assert not bell.is_ringing
    bell.ring()
    assert await bell.wait()
