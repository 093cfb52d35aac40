"""The schedule of a chaos run is a function of its seed."""

from __future__ import annotations

import pytest

from tests.chaos.nemesis import STRIKES
from tests.chaos.schedule import LONG, SHORT, Fault, plan, scaled


def test_same_seed() -> None:
    """The same seed gives the same schedule, another seed another."""
    assert plan(1, 90, SHORT) == plan(1, 90, SHORT) != plan(2, 90, SHORT)


@pytest.mark.parametrize("counts", [SHORT, LONG])
def test_every_kind_comes(counts: dict[Fault, int]) -> None:
    """Every kind of fault comes as often as asked for, at least once, and ends within the run."""
    planned = plan(7, 1200, counts)
    assert {fault: sum(one.fault is fault for one in planned) for fault in Fault} == counts
    assert min(counts.values()) >= 1
    assert all(one.at + one.seconds <= 1200 for one in planned)
    assert [one.at for one in planned] == sorted(one.at for one in planned)
    assert set(Fault) == set(STRIKES)


def test_shorter_run() -> None:
    """A shorter run has fewer faults, and every kind of them."""
    assert scaled(SHORT, 0.1) == dict.fromkeys(Fault, 1)
