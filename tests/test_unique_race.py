"""The short variant of `python -m tests.unique_race`."""

from __future__ import annotations

from uuid import UUID

import pytest

from pgnotifyq.model.unique import Unique
from tests.ledger.conftest import dsn, dsn_of_file
from tests.unique_race import POLICIES, Call, Race, bulks, judge, race_of

__all__ = ["dsn", "dsn_of_file"]


@pytest.mark.parametrize("policy", POLICIES)
async def test_one_key_for_many(dsn: str, policy: str) -> None:
    """While holders start, end, are cancelled and lost: never two at once, and each caller is told the truth."""
    race = await race_of(dsn, policy, 6, 15, seed=1)
    assert race.faults == []
    assert len(race.calls) == 90


async def test_bulks_of_the_same_keys(dsn: str) -> None:
    """In any order, with any policy, and beside a worker that ends their jobs: no deadlock, and all of them end."""
    told = await bulks(dsn, 4, 24, 40, seed=1)
    assert not any("deadlock" in word for word in told)
    assert sum(jobs for word, jobs in told.items() if word != "requeued") == 24 * 40


def test_checker_finds_what_is_untrue() -> None:
    """Each answer that is not true is found: this is how the race was seen red."""
    one, two = UUID(int=1), UUID(int=2)

    def judged(*calls: Call, ends: dict[UUID, float] | None = None, starts: list[tuple[UUID, int, float]] | None = None) -> int:
        race = Race("", Unique(key="k"), calls=list(calls), ends=ends or {}, starts=starts or [])
        judge(race, {one: ("completed", "")}, set())
        return len(race.faults)

    made = Call(0, 0.0, 1.0, one, "created")
    assert judged(made) == 0
    assert judged(made, Call(1, 0.0, 1.0, one, "created")) == 1
    assert judged(made, Call(1, 0.0, 1.0, two, "created")) == 1
    assert judged(made, Call(1, 3.0, 4.0, one, "kept"), ends={one: 2.0}) == 1
    assert judged(made, Call(1, 3.0, 4.0, two, "kept")) == 1
    assert judged(made, Call(1, 1.0, 2.0, one, "superseded")) == 2
    assert judged(made, Call(1, 2.0, 3.0, one, "replaced"), starts=[(one, 0, 4.0)]) == 1
    assert judged(made, Call(1, 2.0, 3.0, one, "replaced"), starts=[(one, 1, 4.0)]) == 0
