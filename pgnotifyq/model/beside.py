"""What a program declares beside its handlers: middleware, lifespans, hooks and schedules.

A JobRegistry (registry.py) has these. around.py explains middleware and lifespans, schedule.py
explains schedules. A hook is a handler that runs, as a job of its own, after another job has ended.
"""

from __future__ import annotations

import sys
import typing
from typing import TYPE_CHECKING, Any, Literal, overload

from pgnotifyq.model.around import Lifespan, Middleware, lifespan_of, middleware_of
from pgnotifyq.model.errors import ConfigError
from pgnotifyq.model.handler import Handler, RunsIn, make_job
from pgnotifyq.model.job import NIL_ORG
from pgnotifyq.model.names import check_job_type
from pgnotifyq.model.retry import RetryPolicy
from pgnotifyq.model.schedule import NewSchedule, joined

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager
    from typing import Unpack
    from uuid import UUID

    from pgnotifyq.model.around import Around
    from pgnotifyq.model.job import OrgId
    from pgnotifyq.model.schedule import Excluded, When

F = typing.TypeVar("F", bound="Callable[..., AsyncIterator[Any] | AbstractAsyncContextManager[Any]]")
H = typing.TypeVar("H", bound="Callable[..., Any]")


class HookSettings(typing.TypedDict, total=False):
    """The settings that a hook may give its own jobs, as a handler does."""

    queue: str
    max_attempts: int
    timeout_seconds: float
    retry: RetryPolicy
    runs_in: Literal["trio", "asyncio", "thread"]


class BesideHandlers:
    """What a registry has beside its handlers."""

    runs_in: RunsIn
    _handlers: dict[str, Handler]

    def __init__(self, middleware: Iterable[Around]) -> None:
        self._middleware = [middleware_of(each, None) for each in middleware]
        # By job type, for handlers of an included registry: the middleware that they had there.
        self._inner: dict[str, tuple[Middleware, ...]] = {}
        self._lifespans: list[Lifespan] = []
        # The ending, the types of the jobs that end so (empty: all), and the hook's own type.
        self._hooks: list[tuple[str, tuple[str, ...], str]] = []
        self._schedules: dict[str, NewSchedule] = {}  # by name

    def _declare(self, function: Callable[..., Any], around: Mapping[str, Any], **settings: Any) -> Handler:
        """Register a function as a handler; `around` holds the local names where it is defined."""
        raise NotImplementedError

    def _tell(self) -> None:
        """Tell the registry's watchers that a handler or a hook has come."""
        raise NotImplementedError

    @overload
    def middleware(self, function: F, /) -> F: ...
    @overload
    def middleware(self, /, *, runs_in: Literal["trio", "asyncio"] | None = None) -> Callable[[F], F]: ...

    def middleware(self, function: Any = None, /, *, runs_in: str | None = None) -> Any:
        """Have the decorated function stand around each run of each handler.

        The function is an async generator function that takes the context (`ctx`) and yields once;
        or any function that takes a context and returns an async context manager. If the handler
        raises, the `yield` raises its error. If the middleware raises, that is the job's error.
        After the `yield`, `ctx.returned` is what the handler returned. Context variables that the
        middleware sets reach the handler, unless the handler runs in a process.

        Args:
            function: the middleware. What is declared first stands outside.
            runs_in: `trio`: in the worker's loop, around handlers of every kind. `asyncio`: around
                handlers on asyncio alone, on their loop. None: on asyncio's loop around handlers
                on asyncio, and on trio around the others.

        Raises:
            ConfigError: it is no such function.
        """

        def add(function: Any) -> Any:
            self._middleware.append(middleware_of(function, runs_in))
            return function

        return add if function is None else add(function)

    @overload
    def lifespan(self, function: F, /) -> F: ...
    @overload
    def lifespan(self, /, *, runs_in: Literal["trio", "asyncio"] | None = None) -> Callable[[F], F]: ...

    def lifespan(self, function: Any = None, /, *, runs_in: str | None = None) -> Any:
        """Have the decorated function make, once in each worker, what handlers share.

        The function is an async generator function without parameters that yields once. It runs
        before the worker claims, and goes on after the worker's last job. Handlers find the yielded
        value by its type: `ctx.resources[Pool]`. If the function raises, the worker ends.

        Args:
            function: the lifespan. What is declared first is entered first, and closed last.
            runs_in: `trio` or `asyncio`; None: as the registry's handlers. A value that is made on
                asyncio is given to handlers on asyncio and in threads. A value that is made on trio
                is given to all handlers.

        Raises:
            ConfigError: it is no such function.
        """

        def add(function: Any) -> Any:
            self._lifespans.append(lifespan_of(function, runs_in, self.runs_in))
            return function

        return add if function is None else add(function)

    @property
    def lifespans(self) -> tuple[Lifespan, ...]:
        """The lifespans, in the order in which they are entered."""
        return tuple(self._lifespans)

    def around(self, handler: Handler) -> Sequence[Middleware]:
        """Return what stands around a handler of this registry, the outermost first."""
        if not self._inner:
            return self._middleware
        return (*self._middleware, *self._inner.get(handler.job_type, ()))

    def on_completed(self, *of: str | Handler, **settings: Unpack[HookSettings]) -> Callable[[H], H]:
        """Have the decorated function run, as a job of its own, after each job that was completed.

        The statement that ends a job enqueues the job's hooks. So a hook runs at least once, and is
        tried again if it fails. It is seen like any other job, with the type `on_completed.NAME`. A
        hook is a handler: it takes an EndedJob, and a context if it asks for one. The hook's job
        has the tenant and the headers of the job that ended.

        Args:
            of: the handlers, or the names of their job types. None: all of this registry's.
            settings: as of `handler`: queue, max_attempts, timeout_seconds, retry, runs_in.

        Raises:
            HandlerAlreadyRegistered, ConfigError: as `handler` raises them.
        """
        return self._hook("completed", of, settings)

    def on_retried(self, *of: str | Handler, **settings: Unpack[HookSettings]) -> Callable[[H], H]:
        """Do what `on_completed` does, after each failure of a job that is tried again.

        An attempt that was lost with its worker does not count as a failure.
        """
        return self._hook("retried", of, settings)

    def on_dead(self, *of: str | Handler, **settings: Unpack[HookSettings]) -> Callable[[H], H]:
        """Do what `on_completed` does, after each job that became a dead letter, for any reason."""
        return self._hook("dead", of, settings)

    def on_cancelled(self, *of: str | Handler, **settings: Unpack[HookSettings]) -> Callable[[H], H]:
        """Do what `on_completed` does, after each job that ended as cancelled, for any reason."""
        return self._hook("cancelled", of, settings)

    def _hook(self, ending: str, of: Sequence[str | Handler], settings: Any) -> Callable[[H], H]:
        types = tuple(check_job_type(each.job_type if isinstance(each, Handler) else each) for each in of)

        def add(function: Any) -> Any:
            name = f"on_{ending}.{getattr(function, '__name__', 'hook')}"
            self._declare(function, sys._getframe(1).f_locals, job_type=name, **settings)  # noqa: SLF001
            self._hooks.append((ending, types, name))
            self._tell()
            return function

        return add

    @property
    def hooks(self) -> list[tuple[str, str, str]]:
        """What a job's end enqueues: the job's type, its ending, and the type of the hook."""
        own = {name for _, _, name in self._hooks}
        return [
            (job_type, ending, name)
            for ending, types, name in self._hooks
            for job_type in types or sorted(self._handlers.keys() - own)
        ]

    def every(
        self,
        when: When | Iterable[When],
        /,
        *,
        tz: str = "UTC",
        payload: object = None,
        name: str | None = None,
        missed: Literal["last", "none", "all"] = "last",
        window_seconds: float | None = None,
        overlap: Literal["skip", "queue", "cancel_running", "allow"] = "skip",
        jitter_seconds: float = 0.0,
        exclude: Excluded | Iterable[Excluded] = (),
        queue: str | None = None,
        priority: int = 0,
        max_attempts: int | None = None,
        org_id: OrgId | UUID | str | int = NIL_ORG,
        owner: str | None = None,
    ) -> Callable[[H], H]:
        """Have a schedule enqueue jobs of the decorated handler; workers publish it at their start.

        Write it above `@registry.handler`. A function that is no handler yet becomes one, with its
        own name as the job type. docs/schedules.md has the rules.

        Args:
            when: cron (`0 3 * * *`, or six fields with seconds first), `every 45m`, `09:00`, a
                time; or several of these.
            tz: the time zone of cron, of times of the day, and of exclusions.
            payload: what each job is given.
            name: the schedule's name; default: the handler's job type.
            missed: what happens to ticks at which no worker was there. `last`: the last of them
                runs, late; `none`: none of them runs; `all`: each of them runs.
            window_seconds: a tick that is late by more than this is missed for good. None: no
                limit; with `none`, 60.
            overlap: what happens to a tick while the run before has not ended. `skip` leaves the
                tick out, `queue` runs it after that run, `cancel_running` cancels that run, `allow`
                lets both run.
            jitter_seconds: each job is due up to this many seconds after its tick.
            exclude: dates, `2026-12-24/2027-01-02`, times, or cron: no tick falls on these.
            queue: of the jobs; default: the handler's.
            priority: of the jobs.
            max_attempts: of the jobs; default: the handler's.
            org_id: the tenant whose jobs they are.
            owner: the program that has the schedule; default: the handler's package.

        Raises:
            ConfigError: this registry has a schedule of that name.
            InvalidJob, InvalidName, InvalidPayload, PayloadTooLarge: schedule or job is refused.
        """

        def add(function: Any) -> Any:
            around = sys._getframe(1).f_locals  # noqa: SLF001  # for annotations
            handler = function
            if not isinstance(function, Handler):
                handler = self._declare(function, around)
            settings = {"queue": queue, "priority": priority, "max_attempts": max_attempts, "org_id": org_id}
            new = NewSchedule(
                name=handler.job_type if name is None else name,
                rule=joined(when),
                tz=tz,
                exclude=joined(exclude),
                missed=missed,
                window_seconds=window_seconds,
                overlap=overlap,
                jitter_seconds=jitter_seconds,
                owner=handler.name.partition(":")[0].partition(".")[0] if owner is None else owner,
                job=make_job(handler.job_type, payload, settings, handler),
            )
            self._add_schedules([new])
            return handler

        return add

    def _add_schedules(self, schedules: Iterable[NewSchedule]) -> None:
        for new in schedules:
            if new.name in self._schedules:
                raise ConfigError(f"this registry has a schedule {new.name!r} already: give one of them another name=")
        self._schedules.update({new.name: new for new in schedules})

    @property
    def schedules(self) -> tuple[NewSchedule, ...]:
        """The schedules that `every` has made, in order."""
        return tuple(self._schedules.values())

    def _include_beside(self, other: BesideHandlers) -> None:
        """Take in what another registry has beside its handlers.

        Raises:
            ConfigError: a schedule is in both; nothing was taken in.
        """
        self._add_schedules(other.schedules)
        for handler in other._handlers.values():
            if inner := other.around(handler):
                self._inner[handler.job_type] = tuple(inner)
        own = {name for _, _, name in other._hooks}
        # As its middleware does, a hook of the other registry stays with that registry's handlers.
        # Empty `types` would mean all handlers of this registry.
        for ending, types, name in other._hooks:
            if types or (types := tuple(sorted(other._handlers.keys() - own))):
                self._hooks.append((ending, types, name))
        self._lifespans += [each for each in other._lifespans if each not in self._lifespans]

    def _share_beside(self, other: BesideHandlers) -> None:
        """Have the same things around handlers, and the same hooks, as another registry."""
        self._middleware, self._inner, self._lifespans = other._middleware, other._inner, other._lifespans
        self._hooks = other._hooks
