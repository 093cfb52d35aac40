"""Backoff: exponential, jittered, bounded."""

from __future__ import annotations

from typing import Any

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
        RetryPolicy(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("errors", [5, "ValueError", (ValueError, "x"), KeyboardInterrupt, [ValueError]], ids=repr)
@pytest.mark.parametrize("setting", ["retry_on", "discard_on"])
def test_what_is_no_class_of_exceptions_is_refused(setting: str, errors: Any) -> None:
    """Also what no `except Exception` would take: such errors are not the handler's."""
    with pytest.raises(ConfigError, match="no class of exceptions"):
        RetryPolicy(**{setting: errors})


@pytest.mark.parametrize(
    ("policy", "raised", "again"),
    [
        (RetryPolicy(), [ValueError], True),
        (RetryPolicy(retry_on=OSError), [ConnectionResetError], True),
        (RetryPolicy(retry_on=(OSError, KeyError)), [ValueError], False),
        (RetryPolicy(retry_on=()), [ValueError], False),
        (RetryPolicy(discard_on=LookupError), [KeyError], False),
        (RetryPolicy(discard_on=(LookupError,)), [ValueError], True),
        (RetryPolicy(retry_on=OSError, discard_on=FileNotFoundError), [FileNotFoundError], False),
        (RetryPolicy(retry_on=OSError, discard_on=FileNotFoundError), [TimeoutError], True),
        (RetryPolicy(retry_on=OSError), [ValueError, TimeoutError], True),
        (RetryPolicy(discard_on=KeyError), [ValueError, KeyError], False),
        (RetryPolicy(retry_on=Exception), [SystemExit], False),
    ],
)
def test_which_errors_are_tried_again(policy: RetryPolicy, raised: list[type[BaseException]], again: bool) -> None:
    """As `except` would take them. Of several in a group, one to be discarded decides, else one to be tried again does."""
    assert policy.tries_again(raised) is again
