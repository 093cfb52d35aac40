"""The registry: which handler runs which job type.

It is the allow-list of what a stored job can make a worker run. This module keeps the job types,
and makes handlers of functions and objects. signature.py reads a function's signature. beside.py
has what is declared beside handlers (middleware, lifespans, hooks, schedules). returned.py makes a
result of what a call returned.
"""

from __future__ import annotations

import inspect
import sys
import typing
from typing import TYPE_CHECKING, Any, Literal, overload

import attrs
import cattrs

from pgnotifyq.model.batch import BatchItem
from pgnotifyq.model.beside import BesideHandlers
from pgnotifyq.model.converting import converter_that, name_of
from pgnotifyq.model.credentials import CredentialKeys, CredentialsProvider
from pgnotifyq.model.errors import ConfigError, HandlerAlreadyRegistered, InvalidJob, UnknownJobType
from pgnotifyq.model.handler import Handler as Handler  # noqa: PLC0414  # what a registry has
from pgnotifyq.model.handler import RunsIn
from pgnotifyq.model.job import Job
from pgnotifyq.model.names import check_job_type
from pgnotifyq.model.retry import Errors, RetryPolicy
from pgnotifyq.model.signature import (
    ASYNC,
    annotations_of,
    is_async_handler,
    is_job,
    is_of_payloads,
    item_of,
    listed,
    payload_of_batch,
    payload_type_of,
    place_of,
    saved_type_of,
    signature_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Mapping

    from cattrs import Converter

    from pgnotifyq.model.around import Around
    from pgnotifyq.model.typed import Async, Ctx, Fits

Returned = typing.TypeVar("Returned")
UnknownKeys = typing.Literal["drop", "refuse"]


class JobRegistry(BesideHandlers):
    """Handlers by job type.

    Args:
        converter: a cattrs Converter that writes and reads the payloads and results of these
            handlers, instead of pgnotifyq's own. Register its hooks before the handlers.
            `make_converter` gives a copy of pgnotifyq's own, to add hooks to.
        unknown_keys: what is done with keys that a payload's type does not have: `drop`, so that
            old code runs what new code enqueued, or `refuse`. None: as the converter does;
            pgnotifyq's own drops them. A handler may have a setting of its own.
        runs_in: where async functions run that do not say it themselves: trio or asyncio.
        middleware: what stands around each handler, in order, as `@registry.middleware` takes it.
        credentials: who gives `ctx.org.credentials`: a provider of the program's, or the keys of
            the built-in store. None: the built-in store, with the keys that the environment has.

    Raises:
        ConfigError: `converter` is no converter, or another setting has a word that is not known.
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
        if runs_in not in ASYNC:
            raise ConfigError(f"runs_in {runs_in!r} of a registry is for its async functions: use {listed(ASYNC)}")
        self.converter = converter
        self.unknown_keys = unknown_keys
        self.runs_in = RunsIn(runs_in)
        if credentials is not None and not isinstance(credentials, (CredentialKeys, CredentialsProvider)):
            raise ConfigError(f"credentials is a {name_of(type(credentials))}: pass an object with get(org_id, name), or keys")
        self.credentials = credentials
        self._handlers: dict[str, Handler] = {}
        self.generation = 0  # grows when a handler comes
        # Each is called when a handler was registered, in the thread that registered it.
        self.watchers: list[Callable[[], None]] = []
        super().__init__(middleware)

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

        Write `@registry.handler`, or `@registry.handler("resize", max_attempts=5, ...)`;
        HandlerDecorator has the settings. The result is a Handler, which is still the function.
        """
        return HandlerDecorator(registry=self)

    def register(self, instance: Any) -> Handler:
        """Register an object with a `job_type` and a method `handle(job, ctx)`, async or not.

        The object may also have max_attempts, timeout_seconds, retry, retry_on, discard_on,
        cooperative, queue, saved_type and runs_in. The object got its dependencies when it was
        made, so it can be tested without a database.

        Returns: its handler, which `enqueue` takes.

        Raises:
            HandlerAlreadyRegistered: the type has a handler.
            ConfigError: it is not such an object.
        """
        kind = type(instance)
        if isinstance(instance, type) or not callable(getattr(instance, "handle", None)):
            raise ConfigError(f"{instance!r} is not a handler: pass an object with job_type and a method handle(job, ctx)")
        name = f"{kind.__module__}:{kind.__qualname__}"
        inner, parameters = signature_of(instance.handle)
        wanted = annotations_of(inner, parameters, None)[0]
        if not is_job(wanted) and is_of_payloads(wanted):
            raise ConfigError(
                f"{name}: handle(job, ctx) is given the whole job, not a {name_of(wanted)}: its payload is job.payload"
            )
        return self._add(
            Handler(
                job_type=check_job_type(getattr(instance, "job_type", None)),
                call=instance.handle,
                is_async=is_async_handler(inner),
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
                saved_type=saved_type_of(name, getattr(instance, "saved_type", None), self.converter),
                home=self.runs_in,
                runs_in=place_of(name, instance.handle, inner, getattr(instance, "runs_in", None), self.runs_in),
            )
        )

    def include(self, other: JobRegistry) -> None:
        """Take in every handler of another registry, with its middleware and its lifespans.

        The other registry's middleware stands around the other registry's handlers alone, inside of
        the middleware of this registry.

        Raises:
            HandlerAlreadyRegistered: a type is in both; nothing was taken in.
            ConfigError: a schedule is in both; nothing was taken in.
        """
        for handler in other._handlers.values():
            self._refuse_second(handler)
        self._include_beside(other)
        self._handlers.update(other._handlers)
        self._tell()

    def mapped(self, change: Callable[[Handler], Handler]) -> JobRegistry:
        """Return a registry of changed handlers. For tests.

        It has the same middleware, lifespans and hooks.
        """
        copy = JobRegistry(converter=self.converter, unknown_keys=self.unknown_keys, credentials=self.credentials)
        copy.runs_in = self.runs_in
        for handler in self._handlers.values():
            copy._add(change(handler))
        copy._share_beside(self)
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

    def _declare(self, function: Callable[..., Any], around: Mapping[str, Any], **settings: Any) -> Handler:
        return HandlerDecorator(registry=self, **settings)._declare(function, around)  # noqa: SLF001  # this module's own

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
        thread. If that function returns an awaitable, the awaitable is awaited on trio; in a
        registry for asyncio, it is an error.

        Settings:
            max_attempts, queue: what `enqueue` uses if its caller says nothing.
            timeout_seconds: of one attempt.
            retry: when a failed attempt is tried again.
            retry_on: the exceptions that are tried again; default: all.
            discard_on: the exceptions that are not. The job is a dead letter at once.
            cooperative: the handler is told of a cancel, and is not cancelled before its grace is
                over.
            unknown_keys: as for JobRegistry, for this handler.
            version: of the handler's payloads. A payload that is enqueued with the handler says it,
                by the key `$version`. A payload that says none is of version 1.
            upgrade: a function of (payload, version), both as they are stored. It gives the payload
                as of this version, as JSON. Needed above version 1.
            saved_type: the type of `ctx.saved`, made of what `ctx.save` was given. It may be any
                type that a payload's annotation may be. None: JSON as it is decoded.
            batch_size: the function is given a list of at most so many BatchItem, and nothing else.
                It returns None, or a list with one outcome a job.
            runs_in: trio, asyncio, thread or process. By default, async functions run where the
                registry says (on trio, if it says nothing), and other functions run in a thread.

        Returns: the handler. If it is called with a name or settings: a decorator that has them.

        Raises:
            HandlerAlreadyRegistered: the type has a handler.
            ConfigError: a setting is out of range, the function does not take one or two
                parameters or cannot run there, or an annotation cannot be read or honoured.
        """
        if not callable(job_type):
            return attrs.evolve(self, job_type=job_type, **settings)
        # A handler inside a function may have a class of that function as an annotation: look among
        # the function's locals.
        return self._declare(job_type, sys._getframe(1).f_locals)  # noqa: SLF001

    def _declare(self, function: Callable[..., Any], around: Mapping[str, Any]) -> Handler:
        if inspect.isclass(function):
            raise ConfigError(
                f"{function.__qualname__} is a class: register an object of it, registry.register({function.__name__}(...))"
            )
        if isinstance(function, Handler):
            function = function.call
        inner, parameters = signature_of(function)
        wanted = annotations_of(inner, parameters, around)
        name = f"{inner.__module__}:{inner.__qualname__}"
        if self.batch_size is not None:
            wanted[0] = payload_of_batch(name, wanted[0], parameters)
        elif item_of(wanted[0]) is not None:
            raise ConfigError(f"{name} takes a list of BatchItem: say how many at the most, batch_size=100")
        takes_job = is_job(wanted[0])
        converter = self._converter(name)
        return self.registry._add(  # noqa: SLF001  # this module's own
            Handler(
                job_type=check_job_type(getattr(function, "__name__", None) if self.job_type is None else self.job_type),
                call=function,
                is_async=is_async_handler(inner),
                takes_job=takes_job,
                takes_context=len(parameters) > 1,
                payload_type=None if takes_job else payload_type_of(name, wanted[0], converter),
                name=name,
                max_attempts=self.max_attempts,
                timeout_seconds=self.timeout_seconds,
                retry=_policy(name, self.retry, self.retry_on, self.discard_on),
                cooperative=self.cooperative,
                queue=self.queue,
                converter=converter,
                version=self.version,
                upgrade=self.upgrade,
                saved_type=saved_type_of(name, self.saved_type, converter),
                batch_size=self.batch_size,
                home=self.registry.runs_in,
                runs_in=place_of(
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


def _policy(name: str, retry: RetryPolicy | None, retry_on: Errors | None, discard_on: Errors) -> RetryPolicy | None:
    """Return a handler's policy, with the errors that the handler names beside the policy."""
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


def handler_of(job_type: object, registry: JobRegistry | None) -> Handler | None:
    """Return the handler of a job that is to be enqueued.

    It is the one that was given, or the one that the registry has by that name.

    Returns: None if a name was given and there is no registry.

    Raises:
        UnknownJobType: the registry has no such handler.
        InvalidJob: what was given is no handler, or another handler has the type in the registry.
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
