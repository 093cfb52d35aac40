"""What the comparison of two checkouts takes from a script's answer, and how it counts."""

from __future__ import annotations

from bench.against import figures_of, summary

ANSWER = {
    "question": "q",
    "machine": {"cores": 2},
    "jobs_per_second": {"client, 1 producer": 100, "plain": 50},
    "runs": [1, 2],
    "from_call": {"p50_ms": 2.0, "p99_ms": 9.0, "samples": 5},
}


def test_figures_of_an_answer() -> None:
    """Rates and median times are figures; what was asked, the machine and the tails are not."""
    assert figures_of(ANSWER) == {
        "jobs_per_second, client, 1 producer": 100,
        "jobs_per_second, plain": 50,
        "from_call, p50_ms": 2.0,
    }
    assert figures_of({"jobs_per_second": 7, "jobs": 9}) == {"jobs_per_second": 7}
    assert figures_of({"cpu_us": {"plain": {"client": 3.0}}}) == {"cpu_us, plain, client": 3.0}


def test_ratio_is_the_median_of_the_pairs() -> None:
    """More jobs and less time are both above one; a pair that stood still does not decide."""
    pairs = [
        {"jobs_per_second": (120.0, 100.0), "p50_ms": (1.0, 2.0), "cpu_us, plain, client": (4.0, 6.0)},
        {"jobs_per_second": (10.0, 100.0), "p50_ms": (9.0, 1.0)},
        {"jobs_per_second": (55.0, 50.0), "p50_ms": (1.0, 1.5)},
    ]
    found = summary(pairs)
    assert (found["jobs_per_second"]["ratio"], found["p50_ms"]["ratio"]) == (1.1, 1.5)
    assert found["cpu_us, plain, client"]["ratio"] == 1.5
    assert (found["jobs_per_second"]["here"], found["jobs_per_second"]["there"]) == (55.0, 100.0)
