"""Only wake sleepers: every interleaving of a worker that falls asleep and of inserters that look for sleepers.

A small explicit-state model of the steps that runtime/sleep.py lists, with the real `Sleep` deciding. A step is what one session
does in one snapshot; transaction ids and snapshots follow PostgreSQL's rules. The search visits every reachable state.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

import attrs
import pytest

from pgnotifyq.runtime.sleep import HOT_SECONDS, Sleep, Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

INSERTERS = 3


@attrs.frozen
class Inserter:
    step: str = "begin"  # begin, inserted, looked, done
    xid: int = 0
    saw_sleeper: bool = False


@attrs.frozen
class World:
    """The database and everybody in it."""

    next_xid: int = 10
    active: frozenset[int] = frozenset()  # transaction ids in progress
    published: bool = False  # the sleeper's row is committed
    visible_jobs: frozenset[int] = frozenset()  # committed, not claimed; by the ids of their transactions
    rung: frozenset[int] = frozenset()  # jobs named by notifications that have come since the worker last looked
    inserters: tuple[Inserter, ...] = (Inserter(),) * INSERTERS
    # The worker.
    at: str = "claim"  # claim, looking, publish, barrier, barrier commit, asleep
    sleep: tuple[str, int | None, int] = (Stage.AWAKE.value, None, len(HOT_SECONDS))
    seen_xmin: int = 0

    @property
    def xmin(self) -> int:
        return min(self.active, default=self.next_xid)


def steps(world: World, barrier: Callable[[World, int], int], *, has_barrier: bool = True) -> Iterator[World]:
    """Yield the worlds one step away."""
    for place, inserter in enumerate(world.inserters):
        after = _insert(world, inserter)
        if after is not None:
            changed, moved = after
            others = (*world.inserters[:place], moved, *world.inserters[place + 1 :])
            yield attrs.evolve(changed, inserters=others)
    yield from _work(world, barrier, has_barrier=has_barrier)


def _insert(world: World, inserter: Inserter) -> tuple[World, Inserter] | None:
    match inserter.step:
        case "begin":  # the row is inserted, so the transaction has an id
            xid = world.next_xid
            moved = attrs.evolve(inserter, step="inserted", xid=xid)
            return attrs.evolve(world, next_xid=xid + 1, active=world.active | {xid}), moved
        case "inserted":  # the trigger's own statement looks for sleepers
            return world, attrs.evolve(inserter, step="looked", saw_sleeper=world.published)
        case "looked":  # commit; the notification goes out with it
            changed = attrs.evolve(
                world,
                active=world.active - {inserter.xid},
                visible_jobs=world.visible_jobs | {inserter.xid},
                rung=world.rung | ({inserter.xid} if inserter.saw_sleeper else set()),
            )
            return changed, attrs.evolve(inserter, step="done")
    return None


def _work(world: World, barrier: Callable[[World, int], int], *, has_barrier: bool) -> Iterator[World]:
    sleep = Sleep(stage=Stage(world.sleep[0]), barrier=world.sleep[1], tries=world.sleep[2])

    def kept() -> tuple[str, int | None, int]:
        # How often it has tried changes only how long it pauses: folded, so that the states are finitely many.
        return sleep.stage.value, sleep.barrier, len(HOT_SECONDS) if sleep.stage is Stage.AWAKE else 0

    if len(world.rung) == 1:
        # One wake-up may be answered by its name, whatever the claimer does (runtime/shortcuts.py, which does so more seldom).
        yield attrs.evolve(world, visible_jobs=world.visible_jobs - world.rung, rung=frozenset())
    match world.at:
        case "claim":  # the claim reads xmin first
            yield attrs.evolve(world, at="looking", seen_xmin=world.xmin, rung=frozenset())
        case "looking":  # and looks for jobs in a later snapshot
            found = bool(world.visible_jobs)
            pause = sleep.next_pause(
                ran_dry=True,
                found=found,
                is_contended=False,
                snapshot_xmin=world.seen_xmin if has_barrier else math.inf,  # type: ignore[arg-type]
            )
            at = "publish" if pause is None else "asleep" if pause == math.inf else "claim"
            if sleep.stage is Stage.AWAKE and found:
                at = "claim"
            yield attrs.evolve(world, visible_jobs=frozenset(), at=at, sleep=kept())
        case "publish":
            yield attrs.evolve(world, published=True, at="barrier")
        case "barrier":  # a transaction id of its own, in a new transaction
            xid = world.next_xid
            sleep.published(barrier(world, xid))
            yield attrs.evolve(
                world, next_xid=xid + 1, active=world.active | {xid}, at="barrier commit", sleep=kept(), seen_xmin=xid
            )
        case "barrier commit":
            yield attrs.evolve(world, active=world.active - {world.seen_xmin}, at="claim", seen_xmin=0)
        case "asleep" if world.rung:
            yield attrs.evolve(world, at="claim")


def search(barrier: Callable[[World, int], int], *, has_barrier: bool = True) -> tuple[int, World | None]:
    """Return how many states there are, and one in which a job waits while the worker sleeps and nothing will come."""
    start = World()
    seen, waiting = {start}, deque([start])
    while waiting:
        world = waiting.popleft()
        following = list(steps(world, barrier, has_barrier=has_barrier))
        if not following and world.visible_jobs:
            return len(seen), world
        for after in following:
            if after not in seen:
                seen.add(after)
                waiting.append(after)
    return len(seen), None


def test_no_interleaving_loses_a_wake_up() -> None:
    """With an id of the worker's own as the barrier, every job is claimed or rung for."""
    states, lost = search(lambda _, xid: xid)
    assert lost is None
    assert states > 5_000, "the search did not reach much"


@pytest.mark.parametrize("mutant", ["xmax", "none"])
def test_the_search_finds_what_is_wrong_with_less(mutant: str) -> None:
    """Seen red: the snapshot's xmax for the barrier, or none at all, loses a wake-up."""

    def xmax(world: World, _: int) -> int:
        # One past the highest completed id: an active inserter may lie beyond it.
        completed = [xid for xid in range(10, world.next_xid) if xid not in world.active]
        return max(completed, default=9)

    _, lost = search(xmax) if mutant == "xmax" else search(lambda _, xid: xid, has_barrier=False)
    assert lost is not None
    assert lost.visible_jobs
