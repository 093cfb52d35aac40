"""The registry: which handler runs which job type. It is the allow-list of what a stored job can make a worker run."""

from __future__ import annotations

import functools
import inspect
import typing
from typing import TYPE_CHECKING, Any

import attrs

from pgnotifyq.model.errors import ConfigError, HandlerAlreadyRegistered, UnknownJobType
from pgnotifyq.model.names import check_job_type, check_queue_name
from pgnotifyq.model.payload import is_structured
from pgnotifyq.model.retry import RetryPolicy

if TYPE_CHECKING:
    from collections.abc import Callable

Function = typing.TypeVar("Function", bound="Callable[..., Any]")

TIMEOUT_SECONDS_MAX = 30 * 86_400.0


@attrs.frozen(kw_only=True)
class Handler:
    """How to run one job type."""

    job_type: str
    call: Callable[..., Any]  # takes the payload (or the job), and the context if `takes_context`
    is_async: bool  # else it runs in a thread
    takes_job: bool  # a class handler is given the whole job
    takes_context: bool
    payload_type: type | None  # attrs class or dataclass that payloads are structured into; None: as decoded
    name: str  # module:qualname, for people
    max_attempts: int | None = None  # what `enqueue` uses when its caller says nothing; None: the default
    timeout_seconds: float | None = None  # of one attempt; None: no limit
    retry: RetryPolicy | None = None  # None: the default policy
    cooperative: bool = False  # told of a cancel, and not cancelled before its grace is over
    queue: str | None = None  # what `enqueue` uses when its caller says nothing


class JobRegistry:
    """Handlers by job type."""

    def __init__(self) -> None:
        self._handlers: dict[str, Handler] = {}
        self.generation = 0  # grows when a handler comes
        self.watchers: list[Callable[[], None]] = []  # called when a handler has come, in whatever thread

    @property
    def job_types(self) -> frozenset[str]:
        """The types that have a handler."""
        return frozenset(self._handlers)

    @property
    def handlers(self) -> tuple[Handler, ...]:
        """The handlers, in order of registration."""
        return tuple(self._handlers.values())

    def handler(
        self,
        job_type: str | None = None,
        *,
        max_attempts: int | None = None,
        timeout_seconds: float | None = None,
        retry: RetryPolicy | None = None,
        cooperative: bool = False,
        queue: str | None = None,
    ) -> Callable[[Function], Function]:
        """Register the decorated function, async or not, for a job type (default: its own name).

        Its first parameter's annotation is the payload's type: an attrs class, a dataclass, or dict. A second parameter
        is given the job's context. A function that is not async runs in a thread.

        Raises:
            HandlerAlreadyRegistered: the type has a handler.
            ConfigError: a setting is out of range, or the function takes other than one or two parameters.
        """

        def register(function: Function) -> Function:
            parameters = _parameters(function)
            inner = _inner(function)
            wanted = _hints(inner).get(parameters[0].name)
            self._add(
                Handler(
                    job_type=check_job_type(job_type if job_type is not None else getattr(function, "__name__", None)),
                    call=function,
                    is_async=_is_async(inner),
                    takes_job=False,
                    takes_context=len(parameters) > 1,
                    payload_type=_payload_type(wanted),
                    name=f"{inner.__module__}:{inner.__qualname__}",
                    max_attempts=max_attempts,
                    timeout_seconds=timeout_seconds,
                    retry=retry,
                    cooperative=cooperative,
                    queue=queue,
                )
            )
            return function

        return register

    def register(self, instance: Any) -> None:
        """Register an object with a `job_type` and a method `handle(job, ctx)`, async or not.

        It may also have max_attempts, timeout_seconds, retry, cooperative and queue. What it needs it was given when it
        was made, so it can be tested without a database.

        Raises:
            HandlerAlreadyRegistered: the type has a handler.
            ConfigError: it is not such an object.
        """
        kind = type(instance)
        if isinstance(instance, type) or not callable(getattr(instance, "handle", None)):
            raise ConfigError(f"{instance!r} is not a handler: pass an object with job_type and a method handle(job, ctx)")
        self._add(
            Handler(
                job_type=check_job_type(getattr(instance, "job_type", None)),
                call=instance.handle,
                is_async=_is_async(_inner(instance.handle)),
                takes_job=True,
                takes_context=len(_parameters(instance.handle)) > 1,
                payload_type=None,
                name=f"{kind.__module__}:{kind.__qualname__}",
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


def _inner(function: Any) -> Any:
    """Return the function inside a functools.partial or an object with `__call__`: it has the name and the annotations."""
    while isinstance(function, functools.partial):
        function = function.func
    if not hasattr(function, "__qualname__") and callable(function):
        return type(function).__call__
    return function


def _is_async(inner: Any) -> bool:
    """Tell whether a handler is async.

    Raises:
        ConfigError: it is a generator. Called, it runs nothing; its jobs would be completed without having been done.
    """
    if inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner):
        raise ConfigError(f"{inner.__qualname__} cannot be a handler: it yields; return the result instead")
    return inspect.iscoroutinefunction(inner)


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    everything = inspect.signature(function).parameters.values()
    parameters = [p for p in everything if p.kind in kinds]
    needed = [p for p in parameters if p.default is inspect.Parameter.empty]
    by_name_only = [p for p in everything if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    if not parameters or len(needed) > 2 or by_name_only:
        name = getattr(_inner(function), "__qualname__", repr(function))
        raise ConfigError(f"{name} cannot be a handler: it must take (payload) or (payload, ctx)")
    return parameters[:2] if len(needed) != 1 else parameters[:1] + [p for p in parameters[1:2] if p in needed]


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except Exception:  # noqa: BLE001  # reading an annotation runs the program's own source
        # An annotation that only type checkers see; perhaps the context's. The payload's is taken alone.
        hints = {}
        for name, annotation in getattr(function, "__annotations__", {}).items():
            try:
                hints[name] = eval(annotation, function.__globals__) if isinstance(annotation, str) else annotation  # noqa: S307  # the program's own source
            except Exception:  # noqa: BLE001, S112  # an annotation that cannot be read asks for nothing
                continue
        return hints


def _payload_type(wanted: Any) -> type | None:
    if wanted is dict or typing.get_origin(wanted) is dict:
        return dict
    if is_structured(wanted) or typing.is_typeddict(wanted):
        return typing.cast("type", wanted)
    if wanted in {str, int, float, bool, list}:
        return typing.cast("type", wanted)
    return None
