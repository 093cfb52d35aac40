"""A job's headers: what goes with a job and is not its payload.

Headers are a JSON object. They hold what a middleware reads and a handler need not know: a trace's
context, the id of a request, a language. A job has the same headers at each attempt, and in its
dead letter. A job that a handler enqueues takes over the headers of the handler's own job, unless
the handler gives it others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any


class Headers(Mapping[str, Any]):
    """Headers, to be read. `dict(headers)` is a copy to change."""

    __slots__ = ("_values", "text")

    def __init__(self, values: Mapping[str, Any], text: str | None = None) -> None:
        self._values = values
        self.text = text  # the JSON to send; None: there are no headers, or they were read

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return repr(dict(self._values))


NO_HEADERS = Headers({})

# Which schedule enqueued a job, and for which tick: {"name": ..., "tick": ...}. This header is the
# job's own: the jobs that its handler enqueues do not get it (`to_carry`).
SCHEDULE_KEY = "pgnotifyq_schedule"

# The headers of the job whose handler runs, for the jobs that this handler enqueues. None: no
# handler runs, or its job has no headers.
carried: ContextVar[Headers | None] = ContextVar("pgnotifyq_headers", default=None)


def headers_in(decoded: object) -> Headers:
    """Return decoded headers; none for what is no object, as raw SQL may store it."""
    return Headers(decoded) if isinstance(decoded, dict) else NO_HEADERS


def to_carry(headers: Headers) -> Headers:
    """Return those headers of a job that go on to the jobs that its handler enqueues."""
    if SCHEDULE_KEY not in headers:
        return headers
    return Headers({key: value for key, value in headers.items() if key != SCHEDULE_KEY})
