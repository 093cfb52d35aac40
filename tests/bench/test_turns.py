"""Two checkouts by samples in turn: the ratio is that of the medians, and each part of the run has its own."""

from __future__ import annotations

from bench.turns import compared


def test_twice_as_quick() -> None:
    told = compared(here=[1.0, 1.0, 9.0] * 3, there=[2.0, 2.0, 2.0] * 3)
    assert told["ratio"] == 2.0
    assert (told["here"]["p50_ms"], told["there"]["p50_ms"]) == (1.0, 2.0)


def test_a_machine_that_was_busy_for_a_part() -> None:
    told = compared(here=[1.0] * 4 + [3.0] * 4 + [1.0] * 8, there=[1.0] * 4 + [6.0] * 4 + [0.5] * 8)
    assert told["ratios"] == [1.0, 2.0, 0.5, 0.5]


def test_fewer_samples_than_parts() -> None:
    assert compared(here=[2.0], there=[1.0])["ratios"] == [0.5]
