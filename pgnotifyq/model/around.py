"""What stands around handlers: middleware around each run, lifespans around all runs of a worker.

Both are async context managers. A program declares them at its registry
(`@registry.middleware`, `@registry.lifespan`), most easily as an async generator that yields once.

Where they run:

- `runs_in="trio"`: in the worker's own loop, for handlers of every kind.
- `runs_in="asyncio"`: on the loop of the handlers on asyncio, and for those handlers alone.
- A middleware that names no place runs where its handler runs: on asyncio's loop around a handler
  on asyncio, else on trio. Such a middleware must wait for nothing, or wait by anyio.
- A lifespan that names no place runs where its registry has async functions run.

Middleware runs in the order of its declaration. Middleware on trio stands outside of middleware on
asyncio. A registry's middleware stands outside of that of a registry that it includes.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

import attrs

from pgnotifyq.model.converting import name_of
from pgnotifyq.model.errors import ConfigError, LifespanFailed, text_of
from pgnotifyq.model.handler import RunsIn

T = TypeVar("T")

_LOOPS = (RunsIn.TRIO, RunsIn.ASYNCIO)
Around = Callable[[Any], AsyncIterator[Any] | AbstractAsyncContextManager[Any]]  # what a program writes


@attrs.frozen(eq=False)
class Middleware:
    """What stands around each run of a handler."""

    open: Callable[[Any], AbstractAsyncContextManager[Any]]  # given the context
    runs_in: RunsIn | None  # trio or asyncio; None: as the handler
    name: str  # module:qualname, for people

    def is_on_asyncio(self, handler: RunsIn) -> bool:
        """Tell whether this middleware runs on asyncio's loop around a handler of this kind."""
        return handler is RunsIn.ASYNCIO and self.runs_in is not RunsIn.TRIO

    def is_on_trio(self, handler: RunsIn) -> bool:
        """Tell whether this middleware runs on trio around a handler of this kind."""
        return self.runs_in is RunsIn.TRIO or (self.runs_in is None and handler is not RunsIn.ASYNCIO)


@attrs.frozen(eq=False)
class Lifespan:
    """What a worker makes once, before it claims, and closes after its last job."""

    open: Callable[[], AbstractAsyncContextManager[Any]]
    runs_in: RunsIn  # trio or asyncio
    name: str  # module:qualname, for people


class Resources:
    """The values that the lifespans have yielded, found by their types.

    `ctx.resources[Pool]` is the yielded value that is a Pool.
    """

    __slots__ = ("_values",)

    def __init__(self, values: Iterable[object] = ()) -> None:
        self._values = tuple(value for value in values if value is not None)

    def __getitem__(self, kind: type[T]) -> T:
        """Return the resource of a type. If there are several, return that of the first lifespan.

        Raises:
            LookupError: no lifespan has made one; the message lists what there is.
        """
        for value in self._values:
            if isinstance(value, kind):
                return value
        there_are = ", ".join(name_of(type(value)) for value in self._values) or "none"
        raise LookupError(
            f"no lifespan has made a {name_of(kind)}; made were: {there_are}. Yield one from a function that is decorated with "
            "@registry.lifespan, which for a handler on trio runs on trio"
        )

    def __contains__(self, kind: object) -> bool:
        return isinstance(kind, type) and any(isinstance(value, kind) for value in self._values)

    def __add__(self, other: Resources) -> Resources:
        return Resources((*self._values, *other._values))


NO_RESOURCES = Resources()


def middleware_of(function: object, runs_in: str | None) -> Middleware:
    """Make a middleware of an async generator function, or of what returns a context manager.

    Raises:
        ConfigError: it is neither, or there is no such place.
    """
    return Middleware(_opening(function, "middleware", "(ctx)"), _place(runs_in, "a middleware"), _name(function))


def lifespan_of(function: object, runs_in: str | None, default: RunsIn) -> Lifespan:
    """Make a lifespan, as `middleware_of` makes a middleware."""
    return Lifespan(_opening(function, "lifespan", "()"), _place(runs_in, "a lifespan") or default, _name(function))


async def enter(stack: AsyncExitStack, lifespans: Iterable[Lifespan]) -> Resources:
    """Enter lifespans in order, on the loop that runs.

    Raises:
        LifespanFailed: a lifespan raised. The stack closes those that were entered before it.
    """
    made = []
    for lifespan in lifespans:
        try:
            made.append(await stack.enter_async_context(lifespan.open()))
        except Exception as error:
            raise LifespanFailed(
                f"the lifespan {lifespan.name} failed at its start: {type(error).__name__}: {text_of(error)}"
            ) from error
    return Resources(made)


def failed_at_end(error: Exception) -> LifespanFailed:
    """Return the error to raise if a lifespan raised when it was closed."""
    return LifespanFailed(f"a lifespan failed when it was closed: {type(error).__name__}: {text_of(error)}")


def _opening(function: Any, what: str, takes: str) -> Callable[..., AbstractAsyncContextManager[Any]]:
    if not callable(function):
        raise ConfigError(f"{function!r} is no {what}: pass an async generator function that takes {takes} and yields once")
    if inspect.isasyncgenfunction(function):
        return asynccontextmanager(function)
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        raise ConfigError(f"{_name(function)} is no {what}: write `async def` and yield once in it")
    opening: Callable[..., AbstractAsyncContextManager[Any]] = function
    return opening


def _place(runs_in: str | None, what: str) -> RunsIn | None:
    if runs_in is None:
        return None
    if runs_in not in _LOOPS:
        raise ConfigError(f"runs_in {runs_in!r} is no place for {what}: use trio or asyncio")
    return RunsIn(runs_in)


def _name(function: Any) -> str:
    kind = function if hasattr(function, "__qualname__") else type(function)
    return f"{kind.__module__}:{kind.__qualname__}"
