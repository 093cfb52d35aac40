"""How much a claim asks for: less after one that failed, more again after one that did not, never nothing and never too much."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgnotifyq.ledger.claim import CLAIM_BYTES_MAX
from pgnotifyq.runtime.claim_size import CLAIM_BYTES_MIN, SMALLER, ClaimSize


class LateError(Exception):
    """A claim did not come back."""


def claim(size: ClaimSize, free: int, *, succeeds: bool) -> tuple[int, int]:
    """Make a claim; return what it asked for."""
    asked = size.of(free)
    asked.__exit__(*(None, None, None) if succeeds else (LateError, LateError(), None))
    return asked.rows, asked.bytes_max


@given(st.lists(st.tuples(st.integers(1, 10_000), st.booleans()), max_size=60))
def test_any_course_of_claims(course: list[tuple[int, bool]]) -> None:
    """A claim asks for one job at least and for the free slots at most; after a failure the next asks for an eighth, in rows and bytes."""
    size = ClaimSize()
    failed: tuple[int, int] | None = None
    for free, succeeds in course:
        rows, size_in_bytes = claim(size, free, succeeds=succeeds)
        assert 1 <= rows <= free
        assert CLAIM_BYTES_MIN <= size_in_bytes <= CLAIM_BYTES_MAX
        if failed is not None:
            assert rows <= max(failed[0] // SMALLER, 1)
            assert size_in_bytes == max(failed[1] // SMALLER, CLAIM_BYTES_MIN)
        failed = None if succeeds else (rows, size_in_bytes)


@given(st.integers(1, 10_000), st.integers(1, 40))
def test_failures_end_at_one_job_and_are_forgotten(free: int, failures: int) -> None:
    """A claim that never succeeds comes down to a single job; as many that succeed bring back what was asked for before."""
    size = ClaimSize()
    for _ in range(failures):
        claim(size, free, succeeds=False)
    rows, _ = claim(size, free, succeeds=False)
    assert rows == max(free // SMALLER**failures, 1)
    for _ in range(20):
        claim(size, free, succeeds=True)
    assert claim(size, free, succeeds=True) == (free, CLAIM_BYTES_MAX)


def test_cancelled_claim() -> None:
    """What ends a claim at its deadline is no Exception, and counts all the same."""
    size = ClaimSize()
    with pytest.raises(KeyboardInterrupt), size.of(8):
        raise KeyboardInterrupt
    assert claim(size, 8, succeeds=True)[0] == 1


def test_single_job_that_fails_is_stuck_until_a_claim_succeeds() -> None:
    """Then it is asked for apart."""
    size = ClaimSize()
    seen = []
    for succeeds in (False, False, True):
        claim(size, 2, succeeds=succeeds)
        seen.append(size.is_stuck)
    assert seen == [False, True, False]
