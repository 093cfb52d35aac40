"""Idle: whether a job that is new now is the first of its queue, asked in one place."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import trio

from pgnotifyq.runtime.sleep import LULL_SECONDS
from pgnotifyq.runtime.wakeups import Wakeups

if TYPE_CHECKING:
    from trio.testing import MockClock


@pytest.mark.parametrize(
    ("ran_dry", "is_contended", "is_idle"),
    [(True, False, True), (True, True, False), (False, False, False), (False, True, False)],
)
async def test_look_at_the_queues(ran_dry: bool, is_contended: bool, is_idle: bool) -> None:
    """A worker is idle when its last look left nothing that is due: nothing untaken, and nothing that others held."""
    wakeups = Wakeups()
    assert not wakeups.is_idle
    wakeups.note_look(0.0, ran_dry=ran_dry, is_contended=is_contended, next_due_seconds=None)
    assert wakeups.is_idle == is_idle


async def test_bell_that_nobody_has_heard() -> None:
    """A worker that was rung for is not idle, until the claimer has looked."""
    wakeups = Wakeups()
    wakeups.note_look(0.0, ran_dry=True, is_contended=False, next_due_seconds=None)
    wakeups.bell.ring()
    assert not wakeups.is_idle
    assert await wakeups.wait(math.inf, trio.current_time())
    assert wakeups.is_idle


async def test_job_that_falls_due(autojump_clock: MockClock) -> None:
    """The claimer waits no longer than until the next job known of falls due, and counts that as no ring."""
    wakeups = Wakeups()
    began_at = trio.current_time()
    wakeups.note_look(began_at, ran_dry=True, is_contended=False, next_due_seconds=5.0)
    assert not await wakeups.wait(60.0, began_at)
    assert trio.current_time() == began_at + 5.0
    assert wakeups.is_lulled
    wakeups.note_look(began_at, ran_dry=True, is_contended=True, next_due_seconds=5.0)
    assert wakeups.expects_at == math.inf  # what others hold may come back sooner


async def test_wake_ups_one_upon_the_other(autojump_clock: MockClock) -> None:
    """The first after a while may be answered by its name; the others are the claimer's."""
    wakeups = Wakeups()
    assert wakeups.is_first_after_lull()
    assert not wakeups.is_first_after_lull()
    await trio.sleep(LULL_SECONDS / 2)
    assert not wakeups.is_first_after_lull()
    await trio.sleep(LULL_SECONDS * 1.5)
    assert wakeups.is_first_after_lull()


async def test_listener_that_comes_back() -> None:
    """The claimer is told once of each connection of the listener's."""
    wakeups = Wakeups()
    assert not wakeups.is_listener_new()
    wakeups.push.generation += 1
    assert wakeups.is_listener_new()
    assert not wakeups.is_listener_new()
