"""From what a handler's call returned to the handler's result.

Most calls return the result. If a plain decorator stands around an async handler, the call returns
a coroutine, which is awaited here. If the call returns a generator, nothing has run yet; the
generator is refused.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import AsyncGenerator, Generator
from typing import Any

from pgnotifyq.model.handler import Handler, RunsIn


async def finished(handler: Handler, value: Any) -> Any:
    """Return a handler's result, given what its call returned.

    If the call returned an awaitable, it is awaited: a plain decorator around an async handler
    returns a coroutine.
    Call this in the worker's loop, inside the handler's scope.

    Raises:
        TypeError: the call returned a generator or the like. It runs only when its items are asked
            for, so nothing was done.
    """
    for _ in range(AWAITED_MAX):
        if type(value) in PLAIN_RESULTS or not inspect.isawaitable(value):
            break
        if handler.home is RunsIn.ASYNCIO and handler.runs_in is RunsIn.THREAD:
            getattr(value, "close", lambda: None)()  # of a coroutine, which was never awaited
            raise TypeError(_WHOSE.format(handler.name, type(value).__name__))
        value = await value
    if (why := has_not_run(handler, value)) is not None:
        raise TypeError(why)
    return value


def has_not_run(handler: Handler, value: object) -> str | None:
    """Return what to say if a result is a generator or the like; None: it is not."""
    if isinstance(value, _NOT_RUN):
        return f"{handler.name} returned a {type(value).__name__}, which has not run: return the result instead"
    return None


_WHOSE = (
    "{} returned a {} from its thread, and its registry is for asyncio: use functools.wraps in the decorator around the async function,"
    ' or say runs_in="asyncio" or runs_in="trio"'
)
AWAITED_MAX = 8  # an awaitable may give another awaitable, without end
# Results of these types are final. `finished` need not be called for them. Each call of it costs a
# coroutine.
PLAIN_RESULTS = frozenset({dict, list, str, int, float, bool, type(None)})
_NOT_RUN = (
    Generator, AsyncGenerator, map, filter,
    contextlib._GeneratorContextManager, contextlib._AsyncGeneratorContextManager,  # noqa: SLF001  # they have no public name
)  # fmt: skip
