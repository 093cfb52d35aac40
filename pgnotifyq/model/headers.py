"""A job's headers: what goes with a job and is not its payload.

A trace's context, the id of a request, a language: what a middleware reads and a handler need not
know. A JSON object. A job has the same headers at each attempt, and in its dead letter. What a
handler enqueues takes over the headers of its own job, unless it says others.
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
        self.text = text  # as it is sent; None: there are none, or they were read

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return repr(dict(self._values))


NO_HEADERS = Headers({})

# Which schedule enqueued a job, and for which tick: {"name": ..., "tick": ...}. It is the job's
# own, and goes no further (`to_carry`).
SCHEDULE_KEY = "pgnotifyq_schedule"

# Those of the job whose handler runs, for what it enqueues. None: no handler runs, or its job has
# none.
carried: ContextVar[Headers | None] = ContextVar("pgnotifyq_headers", default=None)


def headers_in(decoded: object) -> Headers:
    """Return headers that were decoded. What is no object, as raw SQL may store it, is none."""
    return Headers(decoded) if isinstance(decoded, dict) else NO_HEADERS


def to_carry(headers: Headers) -> Headers:
    """Return what of a job's headers goes on to what its handler enqueues."""
    if SCHEDULE_KEY not in headers:
        return headers
    return Headers({key: value for key, value in headers.items() if key != SCHEDULE_KEY})
