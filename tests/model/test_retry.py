"""Backoff: exponential, jittered, bounded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgnotifyq.model.errors import ConfigError
from pgnotifyq.model.retry import RetryPolicy

policies = st.builds(
    RetryPolicy,
    base_seconds=st.floats(0, 1000),
    factor=st.floats(1, 100),
    cap_seconds=st.floats(0, 10_000),
    jitter=st.floats(0, 1),
)


@given(policies, st.integers(0, 10**6), st.floats(0, 1))
def test_no_delay_is_negative_or_above_the_cap(policy: RetryPolicy, attempt: int, random: float) -> None:
    """Defect 16: jitter beyond the cap, and an overflow of 2^n."""
    assert 0 <= policy.delay_seconds(attempt, random) <= policy.cap_seconds


@given(st.integers(1, 6), st.floats(0, 1))
def test_jitter_goes_both_ways(attempt: int, random: float) -> None:
    """Defect 16: plus or minus 25 %, as the text says, around 5, 10, 20, ... seconds."""
    delay = RetryPolicy().delay_seconds(attempt, random)
    middle = 5 * 2 ** (attempt - 1)
    assert middle * 0.75 - 1e-9 <= delay <= middle * 1.25 + 1e-9
    assert RetryPolicy().delay_seconds(attempt, 0.0) == pytest.approx(middle * 0.75)
    assert RetryPolicy().delay_seconds(attempt, 1.0) == pytest.approx(middle * 1.25)


@pytest.mark.parametrize("settings", [{"base_seconds": -1}, {"factor": 0.5}, {"jitter": 2}, {"cap_seconds": float("nan")}])
def test_a_setting_out_of_range_is_refused(settings: dict[str, float]) -> None:
    """The error names the setting and its range."""
    with pytest.raises(ConfigError, match=next(iter(settings))):
        RetryPolicy(**settings)
