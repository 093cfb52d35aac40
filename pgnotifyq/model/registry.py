"""The registry: which handler runs which job type.

It is the allow-list of what a stored job can make a worker run.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import inspect
import os
import sys
import typing
from collections.abc import AsyncGenerator, Generator
from collections.abc import Sequence as Sequence_
from typing import TYPE_CHECKING, Any, Literal, overload

import attrs
import cattrs

from pgnotifyq.model.around import Lifespan, Middleware, lifespan_of, middleware_of
from pgnotifyq.model.batch import BatchItem
from pgnotifyq.model.converting import bare, converter_that, is_pydantic, is_structured, name_of
from pgnotifyq.model.credentials import CredentialKeys, CredentialsProvider
from pgnotifyq.model.errors import ConfigError, HandlerAlreadyRegistered, InvalidJob, UnknownJobType, text_of
from pgnotifyq.model.handler import Handler as Handler  # noqa: PLC0414  # what a registry has
from pgnotifyq.model.handler import RunsIn, make_job
from pgnotifyq.model.job import NIL_ORG, Job
from pgnotifyq.model.names import check_job_type
from pgnotifyq.model.retry import Errors, RetryPolicy
from pgnotifyq.model.schedule import NewSchedule, joined
from pgnotifyq.model.structuring import understood

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager
    from typing import Unpack
    from uuid import UUID

    from cattrs import Converter

    from pgnotifyq.model.job import OrgId
    from pgnotifyq.model.schedule import Excluded, When
    from pgnotifyq.model.typed import Async, Ctx, Fits

    Around = Callable[[Any], AsyncIterator[Any] | AbstractAsyncContextManager[Any]]

Returned = typing.TypeVar("Returned")
F = typing.TypeVar("F", bound="Callable[..., AsyncIterator[Any] | AbstractAsyncContextManager[Any]]")
H = typing.TypeVar("H", bound="Callable[..., Any]")
UnknownKeys = typing.Literal["drop", "refuse"]


class HookSettings(typing.TypedDict, total=False):
    """What a hook may say of its own jobs, as a handler says it."""

    queue: str
    max_attempts: int
    timeout_seconds: float
    retry: RetryPolicy
    runs_in: Literal["trio", "asyncio", "thread"]


class JobRegistry:
    """Handlers by job type.

    Args:
        converter: a cattrs Converter that writes and reads the payloads and results of these
            handlers, instead of pgnotifyq's own. Register its hooks before the handlers.
            `make_converter` gives a copy of pgnotifyq's own, to add hooks to.
        unknown_keys: what is done with keys that a payload's type does not have: `drop`, so that
            old code runs what new code enqueued, or `refuse`. None: as the converter does;
            pgnotifyq's own drops them. A handler may say it for itself.
        runs_in: where its async functions run that say nothing: trio or asyncio.
        middleware: what stands around each handler, in order, as `@registry.middleware` takes it.
        credentials: who gives `ctx.org.credentials`: a provider of the program's, or the keys of
            the built-in store. None: the built-in store, with the keys that the environment has.

    Raises:
        ConfigError: `converter` is no converter, or another setting is none of its words.
    """

    def __init__(
        self,
        *,
        converter: Converter | None = None,
        unknown_keys: UnknownKeys | None = None,
        runs_in: Literal["trio", "asyncio"] = "trio",
        middleware: Iterable[Around] = (),
        credentials: CredentialsProvider | CredentialKeys | None = None,
    ) -> None:
        _check_converting(converter, unknown_keys)
        if runs_in not in _ASYNC:
            raise ConfigError(f"runs_in {runs_in!r} of a registry is for its async functions: use {_listed(_ASYNC)}")
        self.converter = converter
        self.unknown_keys = unknown_keys
        self.runs_in = RunsIn(runs_in)
        if credentials is not None and not isinstance(credentials, (CredentialKeys, CredentialsProvider)):
            raise ConfigError(f"credentials is a {name_of(type(credentials))}: pass an object with get(org_id, name), or keys")
        self.credentials = credentials
        self._handlers: dict[str, Handler] = {}
        self.generation = 0  # grows when a handler comes
        # Each is called when a handler has come, in the thread that brought the handler.
        self.watchers: list[Callable[[], None]] = []
        self._middleware = [middleware_of(each, None) for each in middleware]
        # Of handlers that came with another registry: what stands around them there.
        self._inner: dict[str, tuple[Middleware, ...]] = {}
        self._lifespans: list[Lifespan] = []
        self._hooks: list[tuple[str, tuple[str, ...], str]] = []  # ending, of which types (none: all), own type
        self._schedules: dict[str, NewSchedule] = {}  # by name

    @property
    def job_types(self) -> frozenset[str]:
        """The types that have a handler."""
        return frozenset(self._handlers)

    @property
    def handlers(self) -> tuple[Handler, ...]:
        """The handlers, in order of registration."""
        return tuple(self._handlers.values())

    @property
    def handler(self) -> HandlerDecorator:
        """Register the decorated function, async or not, for a job type.

        `@registry.handler`, or `@registry.handler("resize", max_attempts=5, ...)`: HandlerDecorator
        says what there is. What it gives is a Handler, which is still the function.
        """
        return HandlerDecorator(registry=self)

    @overload
    def middleware(self, function: F, /) -> F: ...
    @overload
    def middleware(self, /, *, runs_in: Literal["trio", "asyncio"] | None = None) -> Callable[[F], F]: ...

    def middleware(self, function: Any = None, /, *, runs_in: str | None = None) -> Any:
        """Have the decorated function stand around each run of each handler.

        It is an async generator function of the context (`ctx`) that yields once; or any function
        that takes a context and returns an async context manager. What the handler raises, it
        raises at the `yield`. What a middleware raises is the job's error. After the `yield`,
        `ctx.returned` is what the handler returned. Context variables that it sets reach the
        handler, but one in a process.

        Args:
            function: the middleware. Those declared first stand outside.
            runs_in: `trio`: in the worker's loop, around handlers of every kind. `asyncio`: around
                handlers on asyncio alone, on their loop. None: on asyncio's loop around those, and
                on trio around the others.

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
        """Have the decorated function make what handlers share: once a worker.

        It is an async generator function without parameters that yields once. It runs before the
        worker claims, and goes on after the worker's last job. Handlers find what it yields by its
        type: `ctx.resources[Pool]`. If it raises, the worker ends.

        Args:
            function: the lifespan. Those declared first are entered first, and closed last.
            runs_in: `trio` or `asyncio`; None: as the registry's handlers. What is made on asyncio
                is given to handlers on asyncio and in threads; what is made on trio to all.

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

        The statement that ends a job enqueues its hooks. So a hook runs at least once, is tried
        again if it fails, and is seen as any other job, of the type `on_completed.NAME`. It is a
        handler: of an EndedJob, and of a context if it takes one. Its job has the tenant and the
        headers of the job that ended.

        Args:
            of: the handlers, or the names of their job types. None: all of this registry's.
            settings: as of `handler`: queue, max_attempts, timeout_seconds, retry, runs_in.

        Raises:
            HandlerAlreadyRegistered, ConfigError: as `handler` raises them.
        """
        return self._hook("completed", of, settings)

    def on_retried(self, *of: str | Handler, **settings: Unpack[HookSettings]) -> Callable[[H], H]:
        """Do what `on_completed` does, after each failure of a job that is tried again.

        An attempt that was lost with its worker is none.
        """
        return self._hook("retried", of, settings)

    def on_dead(self, *of: str | Handler, **settings: Unpack[HookSettings]) -> Callable[[H], H]:
        """Do what `on_completed` does, of each job that became a dead letter, however it died."""
        return self._hook("dead", of, settings)

    def on_cancelled(self, *of: str | Handler, **settings: Unpack[HookSettings]) -> Callable[[H], H]:
        """Do what `on_completed` does, of each job that has ended as cancelled, whoever said so."""
        return self._hook("cancelled", of, settings)

    def _hook(self, ending: str, of: Sequence[str | Handler], settings: Any) -> Callable[[H], H]:
        types = tuple(check_job_type(each.job_type if isinstance(each, Handler) else each) for each in of)

        def add(function: Any) -> Any:
            name = f"on_{ending}.{getattr(function, '__name__', 'hook')}"
            HandlerDecorator(registry=self, job_type=name, **settings)._declare(function, sys._getframe(1).f_locals)  # noqa: SLF001
            self._hooks.append((ending, types, name))
            self._tell()
            return function

        return add

    @property
    def hooks(self) -> list[tuple[str, str, str]]:
        """What is enqueued when: job type, ending, and the type of the hook."""
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
        """Have a job of the decorated handler enqueued at times; workers publish it at their start.

        It stands above `@registry.handler`. A function that is no handler yet becomes one, of its
        own name. docs/schedules.md has the rules.

        Args:
            when: cron (`0 3 * * *`, or six fields with seconds first), `every 45m`, `09:00`, a
                time; or several of these.
            tz: the time zone of cron, of times of the day, and of exclusions.
            payload: what each job is given.
            name: by which the schedule is known; default: the handler's job type.
            missed: what becomes of ticks that no worker was there for: the `last` of them runs
                late, `none` or `all` do.
            window_seconds: a tick that is later than this is missed for good; None: however late it
                is, or 60 with `none`.
            overlap: what becomes of a tick while the run before has not ended: `skip` leaves it
                out, `queue` runs it after that, `cancel_running` cancels that, `allow` runs both.
            jitter_seconds: each job is due up to so much after its tick.
            exclude: dates, `2026-12-24/2027-01-02`, times, or cron: no tick falls on these.
            queue: of the jobs; default: the handler's.
            priority: of the jobs.
            max_attempts: of the jobs; default: the handler's.
            org_id: the tenant whose jobs they are.
            owner: the program that has the schedule; default: the handler's package.

        Raises:
            ConfigError: this registry has a schedule of that name.
            InvalidJob, InvalidName, InvalidPayload, PayloadTooLarge: it is refused.
        """

        def add(function: Any) -> Any:
            around = sys._getframe(1).f_locals  # noqa: SLF001  # for annotations
            handler = function
            if not isinstance(function, Handler):
                handler = HandlerDecorator(registry=self)._declare(function, around)  # noqa: SLF001  # this module's own
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

    def register(self, instance: Any) -> Handler:
        """Register an object with a `job_type` and a method `handle(job, ctx)`, async or not.

        It may also have max_attempts, timeout_seconds, retry, retry_on, discard_on, cooperative,
        queue, saved_type and runs_in. Its dependencies were given to it when it was made, so it can
        be tested without a database.

        Returns: its handler, which `enqueue` takes.

        Raises:
            HandlerAlreadyRegistered: the type has a handler.
            ConfigError: it is not such an object.
        """
        kind = type(instance)
        if isinstance(instance, type) or not callable(getattr(instance, "handle", None)):
            raise ConfigError(f"{instance!r} is not a handler: pass an object with job_type and a method handle(job, ctx)")
        name = f"{kind.__module__}:{kind.__qualname__}"
        inner, parameters = _signature(instance.handle)
        wanted = _annotations(inner, parameters, None)[0]
        if not _is_job(wanted) and _is_of_payloads(wanted):
            raise ConfigError(
                f"{name}: handle(job, ctx) is given the whole job, not a {name_of(wanted)}: its payload is job.payload"
            )
        return self._add(
            Handler(
                job_type=check_job_type(getattr(instance, "job_type", None)),
                call=instance.handle,
                is_async=_is_async(inner),
                takes_job=True,
                takes_context=len(parameters) > 1,
                payload_type=None,
                name=name,
                max_attempts=getattr(instance, "max_attempts", None),
                timeout_seconds=getattr(instance, "timeout_seconds", None),
                retry=_policy(
                    name,
                    getattr(instance, "retry", None),
                    getattr(instance, "retry_on", None),
                    getattr(instance, "discard_on", ()),
                ),
                cooperative=getattr(instance, "cooperative", False),
                queue=getattr(instance, "queue", None),
                converter=self.converter,
                saved_type=_saved_type(name, getattr(instance, "saved_type", None), self.converter),
                home=self.runs_in,
                runs_in=_runs_in(name, instance.handle, inner, getattr(instance, "runs_in", None), self.runs_in),
            )
        )

    def include(self, other: JobRegistry) -> None:
        """Take in every handler of another registry, with its middleware and its lifespans.

        Its middleware stands around its own handlers alone, inside of that of this registry.

        Raises:
            HandlerAlreadyRegistered: a type is in both; nothing was taken in.
            ConfigError: so is a schedule.
        """
        for handler in other._handlers.values():
            self._refuse_second(handler)
        self._add_schedules(other.schedules)
        self._handlers.update(other._handlers)
        for handler in other._handlers.values():
            if inner := other.around(handler):
                self._inner[handler.job_type] = tuple(inner)
        own = {name for _, _, name in other._hooks}
        for ending, types, name in other._hooks:  # of its own handlers, as the middleware
            if types or (types := tuple(sorted(other._handlers.keys() - own))):  # none: would be all of this registry's
                self._hooks.append((ending, types, name))
        self._lifespans += [each for each in other._lifespans if each not in self._lifespans]
        self._tell()

    def mapped(self, change: Callable[[Handler], Handler]) -> JobRegistry:
        """Return a registry of changed handlers, with the same things around them. For tests."""
        copy = JobRegistry(converter=self.converter, unknown_keys=self.unknown_keys, credentials=self.credentials)
        copy.runs_in = self.runs_in
        for handler in self._handlers.values():
            copy._add(change(handler))
        copy._middleware, copy._inner, copy._lifespans = self._middleware, self._inner, self._lifespans
        copy._hooks = self._hooks
        return copy

    def get(self, job_type: str) -> Handler:
        """Return the handler of a type.

        Raises:
            UnknownJobType: there is none; the message lists those there are.
        """
        handler = self._handlers.get(job_type)
        if handler is None:
            raise UnknownJobType(self.explain_unknown(job_type))
        return handler

    def find(self, job_type: str) -> Handler | None:
        """Return the handler of a type, or None."""
        return self._handlers.get(job_type)

    def explain_unknown(self, job_type: str) -> str:
        """Return what to say of a type that has no handler."""
        known = ", ".join(sorted(self._handlers)) or "none"
        return f"no handler is registered for job type {job_type!r}; registered: {known}"

    def _add(self, handler: Handler) -> Handler:
        self._refuse_second(handler)
        handler.check_settings()
        self._handlers[handler.job_type] = handler
        self._tell()
        return handler

    def _tell(self) -> None:
        self.generation += 1
        for watcher in list(self.watchers):
            watcher()

    def _refuse_second(self, handler: Handler) -> None:
        first = self._handlers.get(handler.job_type)
        if first is not None:
            message = (
                f"job type {handler.job_type!r} is handled by {first.name} already, {handler.name} was not registered: "
                "give one of them another type"
            )
            raise HandlerAlreadyRegistered(message)


@attrs.frozen(kw_only=True)
class HandlerDecorator:
    """Makes a handler of a function, and registers it.

    It is what `registry.handler` is, with or without settings.
    """

    registry: JobRegistry
    job_type: str | None = None  # None: the function's own name
    max_attempts: int | None = None
    timeout_seconds: float | None = None
    retry: RetryPolicy | None = None
    retry_on: Errors | None = None
    discard_on: Errors = ()
    cooperative: bool = False
    queue: str | None = None
    unknown_keys: UnknownKeys | None = None
    version: int = 1
    upgrade: Callable[[Any, int], Any] | None = None
    saved_type: Any = None
    batch_size: int | None = None
    runs_in: Literal["trio", "asyncio", "thread", "process"] | None = None

    # A checker takes the first form that fits. Job comes first: a handler that takes the whole job
    # says nothing of its payload.

    @overload
    def __call__(self, function: Callable[[Job], Coroutine[Any, Any, Returned]], /) -> Async[Any, Returned]: ...
    @overload
    def __call__(self, function: Callable[[Job, Ctx], Coroutine[Any, Any, Returned]], /) -> Async[Any, Returned]: ...
    @overload
    def __call__(self, function: Callable[[Job], Returned], /) -> Handler[Any, Returned, Returned]: ...
    @overload
    def __call__(self, function: Callable[[Job, Ctx], Returned], /) -> Handler[Any, Returned, Returned]: ...
    @overload
    def __call__(self, function: Callable[[list[BatchItem[Fits]]], Coroutine[Any, Any, Any]], /) -> Async[Fits, Any]: ...
    @overload
    def __call__(self, function: Callable[[list[BatchItem[Fits]]], Any], /) -> Handler[Fits, Any, Any]: ...
    @overload
    def __call__(self, function: Callable[[Fits], Coroutine[Any, Any, Returned]], /) -> Async[Fits, Returned]: ...
    @overload
    def __call__(self, function: Callable[[Fits, Ctx], Coroutine[Any, Any, Returned]], /) -> Async[Fits, Returned]: ...
    @overload
    def __call__(self, function: Callable[[Fits], Returned], /) -> Handler[Fits, Returned, Returned]: ...
    @overload
    def __call__(self, function: Callable[[Fits, Ctx], Returned], /) -> Handler[Fits, Returned, Returned]: ...
    @overload
    def __call__(
        self,
        job_type: str | None = None,
        /,
        *,
        max_attempts: int | None = None,
        timeout_seconds: float | None = None,
        retry: RetryPolicy | None = None,
        retry_on: Errors | None = None,
        discard_on: Errors = (),
        cooperative: bool = False,
        queue: str | None = None,
        unknown_keys: UnknownKeys | None = None,
        version: int = 1,
        upgrade: Callable[[Any, int], Any] | None = None,
        saved_type: Any = None,
        batch_size: int | None = None,
        runs_in: Literal["trio", "asyncio", "thread", "process"] | None = None,
    ) -> HandlerDecorator: ...

    def __call__(self, job_type: Any = None, **settings: Any) -> Any:
        """Register the decorated function, async or not, for a job type.

        The job type is the function's own name by default; then the parentheses may be left out.

        The annotation of the first parameter is the payload's type. It may be:

        - an attrs class, a dataclass, a TypedDict, a named tuple or a pydantic model;
        - a type that JSON has, or one that is written as text there (dates, UUID, Decimal, bytes,
          enums);
        - collections, optional ones, and unions of these that JSON can tell apart;
        - what the registry's converter has a hook for;
        - dict, Any or nothing: the payload is given as decoded;
        - Job: the whole job is given.

        A second parameter is given the job's context. A function that is not async runs in a
        thread. If it returns an awaitable, that is awaited on trio; in a registry for asyncio that
        is an error.

        Settings:
            max_attempts, queue: what `enqueue` uses if its caller says nothing.
            timeout_seconds: of one attempt.
            retry: when a failed attempt is tried again.
            retry_on: the exceptions that are tried again; default: all.
            discard_on: those that are not. The job is a dead letter at once.
            cooperative: the handler is told of a cancel, and is not cancelled before its grace is
                over.
            unknown_keys: as for JobRegistry, for this handler.
            version: of its payloads. What is enqueued with the handler says it, by the key
                `$version`; a payload that says none is of version 1.
            upgrade: a function of (payload, version), both as they are stored. It gives the payload
                as of this version, as JSON. Needed above version 1.
            saved_type: what `ctx.saved` gives, of what `ctx.save` was given; any type that a
                payload's annotation may be. None: JSON as it is decoded.
            batch_size: the function is given a list of BatchItem, so many at the most, and nothing
                else. What it returns is None, or a list with one outcome a job.
            runs_in: trio, asyncio, thread or process. By default async functions run where the
                registry says, on trio if it says nothing, and the others in a thread.

        Returns: the handler. If it is called with a name or settings: a decorator that has them.

        Raises:
            HandlerAlreadyRegistered: the type has a handler.
            ConfigError: a setting is out of range, the function does not take one or two
                parameters or cannot run there, or an annotation cannot be read or honoured.
        """
        if not callable(job_type):
            return attrs.evolve(self, job_type=job_type, **settings)
        # A handler inside a function may name a class of that function: look among its locals.
        return self._declare(job_type, sys._getframe(1).f_locals)  # noqa: SLF001

    def _declare(self, function: Callable[..., Any], around: Mapping[str, Any]) -> Handler:
        if inspect.isclass(function):
            raise ConfigError(
                f"{function.__qualname__} is a class: register an object of it, registry.register({function.__name__}(...))"
            )
        if isinstance(function, Handler):
            function = function.call
        inner, parameters = _signature(function)
        wanted = _annotations(inner, parameters, around)
        name = f"{inner.__module__}:{inner.__qualname__}"
        if self.batch_size is not None:
            wanted[0] = _of_batch(name, wanted[0], parameters)
        elif _item_of(wanted[0]) is not None:
            raise ConfigError(f"{name} takes a list of BatchItem: say how many at the most, batch_size=100")
        takes_job = _is_job(wanted[0])
        converter = self._converter(name)
        return self.registry._add(  # noqa: SLF001  # this module's own
            Handler(
                job_type=check_job_type(getattr(function, "__name__", None) if self.job_type is None else self.job_type),
                call=function,
                is_async=_is_async(inner),
                takes_job=takes_job,
                takes_context=len(parameters) > 1,
                payload_type=None if takes_job else _payload_type(name, wanted[0], converter),
                name=name,
                max_attempts=self.max_attempts,
                timeout_seconds=self.timeout_seconds,
                retry=_policy(name, self.retry, self.retry_on, self.discard_on),
                cooperative=self.cooperative,
                queue=self.queue,
                converter=converter,
                version=self.version,
                upgrade=self.upgrade,
                saved_type=_saved_type(name, self.saved_type, converter),
                batch_size=self.batch_size,
                home=self.registry.runs_in,
                runs_in=_runs_in(
                    name, function, inner, self.runs_in, self.registry.runs_in, is_batch=self.batch_size is not None
                ),
            )
        )

    def _converter(self, name: str) -> Converter | None:
        unknown_keys = self.registry.unknown_keys if self.unknown_keys is None else self.unknown_keys
        try:
            _check_converting(None, unknown_keys)
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from error
        return self.registry.converter if unknown_keys is None else converter_that(unknown_keys, self.registry.converter)


def _check_converting(converter: object, unknown_keys: object) -> None:
    if converter is not None and not isinstance(converter, cattrs.Converter):
        raise ConfigError(f"converter {converter!r} is not a cattrs Converter: pgnotifyq.make_converter() makes one")
    if unknown_keys not in (None, "drop", "refuse"):  # it may be unhashable
        raise ConfigError(f"unknown_keys {unknown_keys!r} is neither: use 'drop' or 'refuse'")


_ASYNC = (RunsIn.TRIO, RunsIn.ASYNCIO)


def _listed(kinds: Iterable[RunsIn]) -> str:
    return " or ".join(kinds)


def _runs_in(name: str, function: Any, inner: Any, wanted: str | None, default: RunsIn, *, is_batch: bool = False) -> RunsIn:
    """Return where a handler runs.

    Raises:
        ConfigError: there is no such place, or the function cannot run there.
    """
    is_async = inspect.iscoroutinefunction(inner)
    # A plain decorator: a call of it returns a coroutine.
    wraps_async = _wraps_async(inner)
    if wanted is None:
        return default if is_async or (wraps_async and default is RunsIn.ASYNCIO) else RunsIn.THREAD
    if wanted not in RunsIn.__members__.values():
        raise ConfigError(f"{name}: runs_in {wanted!r} is not a place for a handler: use {_listed(RunsIn)}")
    kind = RunsIn(wanted)
    if kind is RunsIn.PROCESS and is_batch:
        raise ConfigError(f"{name} cannot take a batch in a process, which is given one job: use a thread, or batch_size=None")
    if kind in _ASYNC and not (is_async or wraps_async):
        raise ConfigError(f"{name} cannot run in {kind}, where it would hold the loop: write `async def`, or leave runs_in out")
    if kind not in _ASYNC and is_async:
        raise ConfigError(
            f"{name} is an async function, and cannot run in a {kind}: use runs_in={_listed(_ASYNC)}, or write `def`"
        )
    if kind is RunsIn.PROCESS and (why := _why_not_importable(function, inner)) is not None:
        raise ConfigError(f"{name} cannot run in a process, which imports it by its name: {why}")
    return kind


def _wraps_async(function: Any, depth: int = 0) -> bool:
    """Tell whether a function is a decorator's around an async one, as far as can be seen.

    By `functools.wraps`, or by the variables of the decorator that it uses.
    """
    function = inspect.unwrap(function)
    if inspect.iscoroutinefunction(function):
        return True
    for cell in getattr(function, "__closure__", None) or ():
        with contextlib.suppress(ValueError):  # an empty one
            if inspect.isfunction(cell.cell_contents) and depth < AWAITED_MAX and _wraps_async(cell.cell_contents, depth + 1):
                return True
    return False


def _why_not_importable(function: Any, inner: Any) -> str | None:
    """Return why another process would not find a function; None: nothing is known against it."""
    if os.name != "posix":
        return f"processes are for POSIX, and this is {sys.platform}; a plain function may run in a thread"
    if not inspect.isfunction(function):
        return "it is no plain function at the top of a module; write one that makes what it needs"
    if "<" in function.__qualname__:  # <lambda>, <locals>
        return "it is made inside another function; move it to the top of a module"
    module = sys.modules.get(inner.__module__)
    if inner.__module__ == "__mp_main__":
        return None  # of a program's main module, in the process itself
    if inner.__module__ == "__main__":
        if getattr(module, "__spec__", None) is None and not os.path.isfile(getattr(module, "__file__", "")):  # noqa: PTH113
            return "its main module is no file; move it to a module"
        return None
    try:
        found = module is not None and importlib.util.find_spec(inner.__module__) is not None
    except (ImportError, ValueError):
        found = False
    return None if found else f"there is no module {inner.__module__!r} to import"


def _policy(name: str, retry: RetryPolicy | None, retry_on: Errors | None, discard_on: Errors) -> RetryPolicy | None:
    """Return a handler's policy, with the errors that it names beside it."""
    if retry_on is None and discard_on == ():
        return retry
    try:
        policy = RetryPolicy() if retry is None else retry
        return attrs.evolve(
            policy,
            retry_on=policy.retry_on if retry_on is None else retry_on,
            discard_on=policy.discard_on if discard_on == () else discard_on,
        )
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error


def _is_job(wanted: Any) -> bool:
    wanted = bare(wanted)
    return wanted is Job or typing.get_origin(wanted) is Job


def handler_of(job_type: object, registry: JobRegistry | None) -> Handler | None:
    """Return the handler of a job that is to be enqueued.

    It is the one that was given, or the one that the registry has by that name.

    Returns: None if a name was given and no registry.

    Raises:
        UnknownJobType: the registry has no such handler.
        InvalidJob: what was given is no handler; or another one handles the type in the registry.
    """
    if isinstance(job_type, str):
        return None if registry is None else registry.get(job_type)
    if not isinstance(job_type, Handler):
        if not callable(job_type):
            check_job_type(job_type)
        raise InvalidJob(
            f"{job_type!r} is not a handler: name a job type, or pass what @registry.handler makes of a function, "
            "or what registry.register gives back"
        )
    if registry is not None:
        known = registry.find(job_type.job_type)
        if known is None:
            raise UnknownJobType(
                f"{job_type.name} is a handler of another registry than the client's: take it in, "
                f"registry.include(...); {registry.explain_unknown(job_type.job_type)}"
            )
        if known is not job_type:
            raise InvalidJob(
                f"{job_type.name} is a handler of another registry than the client's, where {known.name} handles "
                f"{job_type.job_type!r}: pass that one, or give one of them another type"
            )
    return job_type


async def finished(handler: Handler, value: Any) -> Any:
    """Return a handler's result, given what its call returned.

    An awaitable is awaited: behind a plain decorator, an async handler's call returns a coroutine.
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
    """Return what to say of a result that is a generator or the like; None: it is none."""
    if isinstance(value, _NOT_RUN):
        return f"{handler.name} returned a {type(value).__name__}, which has not run: return the result instead"
    return None


_WHOSE = (
    "{} returned a {} from its thread, and its registry is for asyncio: use functools.wraps in the decorator around the async function,"
    ' or say runs_in="asyncio" or runs_in="trio"'
)
AWAITED_MAX = 8  # an awaitable may give another awaitable, without end
# Results of these types are final. `finished` need not be called for them: each call costs a
# coroutine.
PLAIN_RESULTS = frozenset({dict, list, str, int, float, bool, type(None)})
_NOT_RUN = (
    Generator, AsyncGenerator, map, filter,
    contextlib._GeneratorContextManager, contextlib._AsyncGeneratorContextManager,  # noqa: SLF001  # they have no public name
)  # fmt: skip


def _inner(function: Any) -> Any:
    """Return the function inside a functools.partial or an object with `__call__`.

    That function has the name and the annotations.
    """
    while isinstance(function, functools.partial):
        function = function.func
    if not hasattr(function, "__qualname__") and callable(function):
        return type(function).__call__
    return function


def _is_async(inner: Any) -> bool:
    """Tell whether a handler is async.

    An async function inside a plain decorator does not count: its call returns a coroutine, which
    `finished` awaits.

    Raises:
        ConfigError: the handler is a generator. A call of it runs nothing, so its jobs would be
            completed without having been done.
    """
    if inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner):
        raise ConfigError(f"{inner.__qualname__} cannot be a handler: it yields; return the result instead")
    return inspect.iscoroutinefunction(inner)


def _signature(function: Callable[..., Any]) -> tuple[Any, list[inspect.Parameter]]:
    """Return the function inside, and its parameters that a worker fills: (payload[, ctx]).

    If a decorator's function takes `*args`, the function that it wraps is read instead. If it names
    its parameters, those count.
    """
    inner = _inner(function)
    try:
        signature = inspect.signature(function, follow_wrapped=False)
        if any(p.kind is p.VAR_POSITIONAL for p in signature.parameters.values()):
            signature = inspect.signature(function)
    except (TypeError, ValueError) as error:  # of C
        raise ConfigError(f"{function!r} cannot be a handler: what it takes cannot be read ({error})") from error
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    everything = signature.parameters.values()
    parameters = [p for p in everything if p.kind in kinds]
    needed = [p for p in parameters if p.default is p.empty]
    by_name_only = [p for p in everything if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    if not parameters or len(needed) > 2 or by_name_only:
        name = getattr(inner, "__qualname__", repr(function))
        raise ConfigError(f"{name} cannot be a handler: it must take (payload) or (payload, ctx)")
    takes_context = len(needed) == 2 or (len(parameters) > 1 and _asks_for_context(parameters[1]))
    return inner, parameters[:2] if takes_context else parameters[:1]


def _asks_for_context(parameter: inspect.Parameter) -> bool:
    """Tell whether a parameter with a default is the context, by its name or by its annotation."""
    return parameter.name in {"ctx", "context"} or "JobContext" in str(parameter.annotation)


def _annotations(inner: Any, parameters: list[inspect.Parameter], around: Mapping[str, Any] | None) -> list[Any]:
    """Return the types that a handler's parameters are annotated with.

    Any stands for no annotation, and for one of the context that cannot be read. `around` holds the
    local names of the function in which the handler is defined.

    Raises:
        ConfigError: the payload's annotation cannot be read, or the second parameter's annotation
            is not the context.
    """
    wanted = []
    for place, parameter in enumerate(parameters):
        annotation = parameter.annotation
        try:
            wanted.append(Any if annotation is parameter.empty else _read(inner, annotation, around))
        except Exception as error:  # reading an annotation runs the program's own source
            if place == 0 and around is not None:
                raise ConfigError(
                    f"{inner.__module__}:{inner.__qualname__}: the annotation {annotation!r} of its payload cannot be read "
                    f"({type(error).__name__}: {text_of(error)}): import it outside of `if TYPE_CHECKING:`, above the handler"
                ) from error
            wanted.append(Any)
    if len(wanted) > 1 and _is_of_payloads(wanted[1]):
        raise ConfigError(
            f"{inner.__module__}:{inner.__qualname__}: its second parameter is given the job's context, not a {name_of(wanted[1])}"
        )
    return wanted


def _is_of_payloads(wanted: Any) -> bool:
    """Tell whether a type is plainly a payload's: neither a job nor a context."""
    wanted = bare(wanted)
    kind = typing.get_origin(wanted) or wanted
    return is_structured(kind) or is_pydantic(kind) or typing.is_typeddict(kind) or kind in _SIMPLE


_SIMPLE = (str, int, float, bool, bytes, dict, list, tuple, set)


def _read(inner: Any, annotation: Any, around: Mapping[str, Any] | None) -> Any:
    """Return an annotation as the type that it names."""
    globals_ = getattr(inspect.unwrap(inner), "__globals__", {})
    holder = type("_", (), {"__annotations__": {"it": annotation}})
    return typing.get_type_hints(holder, globals_, {**(around or {})}, include_extras=True)["it"]


def _payload_type(name: str, wanted: Any, converter: Converter | None) -> Any:
    try:
        return understood(wanted, converter)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error


def _item_of(wanted: Any) -> Any:
    """Return the BatchItem that a list is annotated to have; None: it is not annotated so."""
    item = (
        bare(typing.get_args(wanted)[0]) if typing.get_origin(wanted) in (list, Sequence_) and typing.get_args(wanted) else None
    )
    return item if (typing.get_origin(item) or item) is BatchItem else None


def _of_batch(name: str, wanted: Any, parameters: list[inspect.Parameter]) -> Any:
    """Return what one payload of a batch is annotated to be.

    Raises:
        ConfigError: the function does not take a batch.
    """
    if len(parameters) > 1:
        raise ConfigError(
            f"{name} takes a batch, and each job of that has a context of its own: take (jobs) alone, and use item.ctx"
        )
    wanted = bare(wanted)
    item = _item_of(wanted)
    if item is None and wanted not in (Any, object, list, Sequence_):
        raise ConfigError(f"{name}: with batch_size it is given a list of BatchItem, and not a {name_of(wanted)}")
    payload = (*typing.get_args(item), Any)[0] if item is not None else Any
    if _is_job(payload):
        raise ConfigError(f"{name}: each job of a batch is item.ctx.job: say BatchItem alone, or BatchItem of the payload's type")
    return payload


def _saved_type(name: str, wanted: Any, converter: Converter | None) -> Any:
    try:
        return None if wanted is None else understood(wanted, converter)
    except ConfigError as error:
        raise ConfigError(f"{name}: saved_type: {error}") from error
