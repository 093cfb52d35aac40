"""The registry: which handler runs which job type.

It is the allow-list of what a stored job can make a worker run.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
import typing
from collections.abc import AsyncGenerator, Generator
from typing import TYPE_CHECKING, Any, overload

import attrs

from pgnotifyq.model.errors import ConfigError, HandlerAlreadyRegistered, UnknownJobType, text_of
from pgnotifyq.model.job import Job
from pgnotifyq.model.names import check_job_type, check_queue_name
from pgnotifyq.model.payload import is_pydantic, is_structured, name_of, understood
from pgnotifyq.model.retry import RetryPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Function = typing.TypeVar("Function", bound="Callable[..., Any]")

TIMEOUT_SECONDS_MAX = 30 * 86_400.0


@attrs.frozen(kw_only=True)
class Handler:
    """How to run one job type."""

    job_type: str
    call: Callable[..., Any]  # takes the payload (or the job), and the context if `takes_context`
    is_async: bool  # else it runs in a thread
    takes_job: bool  # a class handler, and a function that asks for a Job, are given the whole job
    takes_context: bool
    # The type that payloads are structured into (model/payload.py, `understood`). None: as decoded.
    payload_type: Any
    name: str  # module:qualname, for people
    # `enqueue` uses it if its caller says nothing. None: the default.
    max_attempts: int | None = None
    timeout_seconds: float | None = None  # of one attempt; None: no limit
    retry: RetryPolicy | None = None  # None: the default policy
    cooperative: bool = False  # told of a cancel, and not cancelled before its grace is over
    queue: str | None = None  # `enqueue` uses it if its caller says nothing


class JobRegistry:
    """Handlers by job type."""

    def __init__(self) -> None:
        self._handlers: dict[str, Handler] = {}
        self.generation = 0  # grows when a handler comes
        # Each is called when a handler has come, in the thread that brought the handler.
        self.watchers: list[Callable[[], None]] = []

    @property
    def job_types(self) -> frozenset[str]:
        """The types that have a handler."""
        return frozenset(self._handlers)

    @property
    def handlers(self) -> tuple[Handler, ...]:
        """The handlers, in order of registration."""
        return tuple(self._handlers.values())

    @overload
    def handler(self, job_type: Function, /) -> Function: ...

    @overload
    def handler(
        self,
        job_type: str | None = None,
        *,
        max_attempts: int | None = None,
        timeout_seconds: float | None = None,
        retry: RetryPolicy | None = None,
        cooperative: bool = False,
        queue: str | None = None,
    ) -> Callable[[Function], Function]: ...

    def handler(
        self,
        job_type: str | Callable[..., Any] | None = None,
        *,
        max_attempts: int | None = None,
        timeout_seconds: float | None = None,
        retry: RetryPolicy | None = None,
        cooperative: bool = False,
        queue: str | None = None,
    ) -> Any:
        """Register the decorated function, async or not, for a job type.

        The job type is the function's own name by default; then the parentheses may be left out.

        The annotation of the first parameter is the payload's type. It may be:

        - an attrs class, a dataclass or a pydantic model;
        - a type that JSON has, or one that is written as text there (dates, UUID, Decimal, bytes,
          enums), and collections and optional ones of these;
        - dict, Any or nothing: the payload is given as decoded;
        - Job: the whole job is given.

        A second parameter is given the job's context. A function that is not async runs in a
        thread. If it returns an awaitable, that is awaited.

        Raises:
            HandlerAlreadyRegistered: the type has a handler.
            ConfigError: a setting is out of range, the function does not take one or two
                parameters, or an annotation cannot be read or honoured.
        """

        def register(function: Function, around: Mapping[str, Any] | None = None) -> Function:
            if inspect.isclass(function):
                raise ConfigError(
                    f"{function.__qualname__} is a class: register an object of it, registry.register({function.__name__}(...))"
                )
            inner, parameters = _signature(function)
            # A handler inside a function may name a class of that function: look among its locals.
            wanted = _annotations(inner, parameters, sys._getframe(1).f_locals if around is None else around)  # noqa: SLF001
            takes_job = wanted[0] is Job
            name = f"{inner.__module__}:{inner.__qualname__}"
            self._add(
                Handler(
                    job_type=check_job_type(getattr(function, "__name__", None) if job_type is None else job_type),
                    call=function,
                    is_async=_is_async(inner),
                    takes_job=takes_job,
                    takes_context=len(parameters) > 1,
                    payload_type=None if takes_job else _payload_type(name, wanted[0]),
                    name=name,
                    max_attempts=max_attempts,
                    timeout_seconds=timeout_seconds,
                    retry=retry,
                    cooperative=cooperative,
                    queue=queue,
                )
            )
            return function

        if callable(job_type):
            function, job_type = job_type, None
            return register(function, sys._getframe(1).f_locals)  # noqa: SLF001
        return register

    def register(self, instance: Any) -> None:
        """Register an object with a `job_type` and a method `handle(job, ctx)`, async or not.

        It may also have max_attempts, timeout_seconds, retry, cooperative and queue. Its
        dependencies were given to it when it was made, so it can be tested without a database.

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
        if wanted is not Job and _is_of_payloads(wanted):
            raise ConfigError(
                f"{name}: handle(job, ctx) is given the whole job, not a {name_of(wanted)}: its payload is job.payload"
            )
        self._add(
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
                retry=getattr(instance, "retry", None),
                cooperative=getattr(instance, "cooperative", False),
                queue=getattr(instance, "queue", None),
            )
        )

    def include(self, other: JobRegistry) -> None:
        """Take in every handler of another registry.

        Raises:
            HandlerAlreadyRegistered: a type is in both; nothing was taken in.
        """
        for handler in other._handlers.values():
            self._refuse_second(handler)
        self._handlers.update(other._handlers)
        self._tell()

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

    def _add(self, handler: Handler) -> None:
        self._refuse_second(handler)
        _check_settings(handler)
        self._handlers[handler.job_type] = handler
        self._tell()

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


def _check_settings(handler: Handler) -> None:
    if handler.max_attempts is not None and not (_is_number(handler.max_attempts, int) and 1 <= handler.max_attempts <= 1000):
        raise ConfigError(f"{handler.name}: max_attempts {handler.max_attempts!r} is out of range: use 1 to 1000")
    seconds = handler.timeout_seconds
    if seconds is not None and not (_is_number(seconds, (int, float)) and 0 < seconds <= TIMEOUT_SECONDS_MAX):
        message = (
            f"{handler.name}: timeout_seconds {handler.timeout_seconds!r} is out of range: above 0, to {TIMEOUT_SECONDS_MAX:g}"
        )
        raise ConfigError(message)
    if handler.retry is not None and not isinstance(handler.retry, RetryPolicy):
        raise ConfigError(f"{handler.name}: retry {handler.retry!r} is not a RetryPolicy")
    if handler.queue is not None:
        check_queue_name(handler.queue)


def _is_number(value: object, kind: type | tuple[type, ...]) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


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
        value = await value
    if isinstance(value, _NOT_RUN):
        raise TypeError(f"{handler.name} returned a {type(value).__name__}, which has not run: return the result instead")
    return value


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
    kind = typing.get_origin(wanted) or wanted
    return is_structured(kind) or is_pydantic(kind) or typing.is_typeddict(kind) or kind in _SIMPLE


_SIMPLE = (str, int, float, bool, bytes, dict, list, tuple, set)


def _read(inner: Any, annotation: Any, around: Mapping[str, Any] | None) -> Any:
    """Return an annotation as the type that it names."""
    globals_ = getattr(inspect.unwrap(inner), "__globals__", {})
    holder = type("_", (), {"__annotations__": {"it": annotation}})
    return typing.get_type_hints(holder, globals_, {**(around or {})})["it"]


def _payload_type(name: str, wanted: Any) -> Any:
    try:
        return understood(wanted)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error
