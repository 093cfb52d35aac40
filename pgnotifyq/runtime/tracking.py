"""`ctx.track(items)`: a handler goes through items, and how far it has come is published."""

from __future__ import annotations

import operator
import time
from collections.abc import AsyncIterable, Iterable
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

T = TypeVar("T")

# Progress is told once in this time, at the most. Between two items a clock is read, and that is
# all.
TRACK_SECONDS = 0.1


class Track(Generic[T]):
    """Items that a handler goes through, by `for` or `async for`, once."""

    def __init__(
        self,
        items: Iterable[T] | AsyncIterable[T],
        total: int | None,
        message: str | None,
        note: Callable[[float | None, str | None], object],
    ) -> None:
        self._items = items
        self._total = total if total is not None else operator.length_hint(items) or None
        self._message = message
        self._note = note
        self._done = 0
        self._tell_at = -1.0

    def __iter__(self) -> Iterator[T]:
        """Go through the items.

        Raises:
            TypeError: they are asynchronous.
        """
        if not isinstance(self._items, Iterable):
            raise TypeError("ctx.track was given an asynchronous iterable: go through it by `async for`")
        self._tell()
        for item in self._items:
            yield item
            self._count()
        self._end()

    async def __aiter__(self) -> AsyncIterator[T]:
        """Go through the items, of either kind."""
        self._tell()
        if isinstance(self._items, AsyncIterable):
            async for item in self._items:
                yield item
                self._count()
        else:
            for item in self._items:
                yield item
                self._count()
        self._end()

    def _count(self) -> None:
        self._done += 1
        if time.monotonic() >= self._tell_at:
            self._tell()

    def _tell(self) -> None:
        self._tell_at = time.monotonic() + TRACK_SECONDS
        known = bool(self._total)
        fraction = min(self._done / self._total, 1.0) if self._total else None
        self._note(fraction, self._line(f"{self._done} of {self._total}" if known else str(self._done)))

    def _end(self) -> None:
        self._note(1.0, self._line(f"{self._done} of {max(self._done, self._total or 0)}" if self._total else str(self._done)))

    def _line(self, number: str) -> str:
        return number if self._message is None else f"{self._message}: {number}"
