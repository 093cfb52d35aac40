"""When a failed attempt is tried again."""

from __future__ import annotations

import math
from collections.abc import Iterable

import attrs

from pgnotifyq.model.errors import ConfigError

Errors = type[Exception] | tuple[type[Exception], ...]  # what `except` takes


def _as_errors(given: Errors | None) -> tuple[type[Exception], ...] | None:
    if given is None:
        return None
    errors = given if isinstance(given, tuple) else (given,)
    for each in errors:
        if not (isinstance(each, type) and issubclass(each, Exception)):
            raise ConfigError(f"{each!r} is no class of exceptions: name classes that a handler raises, as after `except`")
    return errors


def _as_errors_or_none(given: Errors) -> tuple[type[Exception], ...]:
    return _as_errors(given) or ()


@attrs.frozen(kw_only=True)
class RetryPolicy:
    """Exponential backoff with jitter: base * factor ** (attempt - 1), never above the cap.

    By default the delays are 5, 10, 20, 40, ... seconds. From the eleventh on, a delay is an hour.
    So 15 attempts take five hours and a half, and outlive an outage of some hours.

    Raises:
        ConfigError: a number is out of its bounds.
    """

    base_seconds: float = 5.0  # after the first attempt
    factor: float = 2.0
    cap_seconds: float = 3600.0  # no delay is longer, jitter included
    # Plus or minus this share of the delay. So jobs that failed together do not return together.
    jitter: float = 0.25
    # The errors of a handler after which the job is tried again. An attempt that ends with another
    # error is the last. None: all errors.
    retry_on: tuple[type[Exception], ...] | None = attrs.field(default=None, converter=_as_errors)
    # The errors after which the job is not tried again, even if `retry_on` has them.
    discard_on: tuple[type[Exception], ...] = attrs.field(default=(), converter=_as_errors_or_none)

    def __attrs_post_init__(self) -> None:
        for name, value, low, high in (
            ("base_seconds", self.base_seconds, 0.0, 86_400.0),
            ("factor", self.factor, 1.0, 100.0),
            ("cap_seconds", self.cap_seconds, 0.0, 30 * 86_400.0),
            ("jitter", self.jitter, 0.0, 1.0),
        ):
            if not (isinstance(value, (int, float)) and math.isfinite(value) and low <= value <= high):
                raise ConfigError(f"retry {name} {value!r} is out of range: use {low:g} to {high:g}")

    def tries_again(self, raised: Iterable[type[BaseException]]) -> bool:
        """Tell whether a job is tried again after an attempt that ended with such errors.

        The errors are given by their classes. There are several if a group held them. If one is in
        `discard_on`, the job is not tried again. Else the job is tried again if one is in
        `retry_on`, or if `retry_on` is None.
        """
        # Ask as `except` does: ask the classes themselves, and not what a class says of itself.
        kinds = {kind for each in raised for kind in type.__dict__["__mro__"].__get__(each)}
        if not kinds.isdisjoint(self.discard_on):
            return False
        return self.retry_on is None or not kinds.isdisjoint(self.retry_on)

    def delay_seconds(self, attempt: int, random: float) -> float:
        """Return how long to wait after a failed attempt.

        Args:
            attempt: which one failed; 1 is the first.
            random: from 0 to 1, drawn by the caller.
        """
        if self.base_seconds <= 0 or self.cap_seconds <= 0:
            return 0.0
        # Compared as logarithms: 2.0 ** 1100 overflows.
        logarithm = math.log(self.base_seconds) + (max(attempt, 1) - 1) * math.log(self.factor)
        delay = math.exp(logarithm) if logarithm < math.log(self.cap_seconds) else self.cap_seconds
        spread = 1 + self.jitter * (2 * random - 1)
        return min(max(delay * spread, 0.0), self.cap_seconds)
