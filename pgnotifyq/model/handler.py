"""A handler: how to run one job type. It is a value, and still the function that it was made of.

A checker of types sees three things of a handler, as in `Handler[Payload, Result, Returned]`:

- Payload: what `enqueue` takes.
- Result: what `wait` gives back, if JSON does not change it.
- Returned: what a call returns. It is a coroutine if the function is async.
"""

from __future__ import annotations

import inspect
import json
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Generic, overload

import attrs

from pgnotifyq.model.batch import BATCH_SIZE_MAX
from pgnotifyq.model.errors import ConfigError, InvalidJob, InvalidPayload, PayloadUndecodable
from pgnotifyq.model.names import check_queue_name
from pgnotifyq.model.new_job import QUEUE_DEFAULT, JobSettings, NewJob
from pgnotifyq.model.payload import VERSION_KEY, Encoded, encoded, mark, upgraded
from pgnotifyq.model.retry import RetryPolicy
from pgnotifyq.model.structuring import may_be_none, structure

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import ClassVar, Unpack

    from cattrs import Converter
    from typing_extensions import TypeVar  # with defaults, which typing has from Python 3.13 on

    Payload = TypeVar("Payload", default=Any)
    Result_co = TypeVar("Result_co", covariant=True, default=Any)
    Returned_co = TypeVar("Returned_co", covariant=True, default=Any)
else:
    from typing import TypeVar

    Payload = TypeVar("Payload")
    Result_co = TypeVar("Result_co", covariant=True)
    Returned_co = TypeVar("Returned_co", covariant=True)


# For the overloads of functions that take a handler.
P = TypeVar("P")
R = TypeVar("R")
V = TypeVar("V")
# Results that `wait` gives back with the type that the handler returned: those that JSON has.
Plain = TypeVar("Plain", bound="bool | int | float | str | list[Any] | Mapping[str, object] | None")


class RunsIn(StrEnum):
    """Where a handler runs. docs/handlers.md says what that means for its cancellation."""

    TRIO = "trio"  # in the worker's own loop
    ASYNCIO = "asyncio"  # in a loop of asyncio's, in a thread of the worker
    THREAD = "thread"  # a plain function, in a thread of its own
    PROCESS = "process"  # a plain function that computes, in a process that can be killed


TIMEOUT_SECONDS_MAX = 30 * 86_400.0
VERSION_MAX = 1_000_000

# What a handler takes over from its function, for programs that look at functions. A handler has
# the code and the defaults, so `inspect.iscoroutinefunction` takes it for a function.
_OF_A_FUNCTION = (
    "__module__", "__name__", "__qualname__", "__doc__", "__annotations__", "__type_params__",
    "__code__", "__defaults__", "__kwdefaults__",
)  # fmt: skip


@attrs.frozen(kw_only=True, eq=False, slots=False)
class Handler(Generic[Payload, Result_co, Returned_co]):
    """How to run one job type, as a value that is still the function that was declared.

    A handler may be called as the function. It has the function's name and signature. It is pickled
    by its name. `client.enqueue(resize, Resize("a.png", 64))` takes its queue and its attempts.
    """

    job_type: str
    call: Callable[..., Any]  # takes the payload (or the job), and the context if `takes_context`
    is_async: bool  # else a call of it blocks, or returns an awaitable
    takes_job: bool  # a class handler, and a function that asks for a Job, are given the whole job
    takes_context: bool
    # What payloads are structured into (model/structuring.py, `understood`). None: as decoded.
    payload_type: Any
    name: str  # module:qualname, for people
    # `enqueue` uses it if its caller says nothing. None: the default.
    max_attempts: int | None = None
    timeout_seconds: float | None = None  # of one attempt; None: no limit
    retry: RetryPolicy | None = None  # None: the default policy
    cooperative: bool = False  # it is told of a cancel, and cancelled only after its grace
    queue: str | None = None  # `enqueue` uses it if its caller says nothing
    converter: Converter | None = None  # of its payloads; None: pgnotifyq's own, which drops unknown keys
    version: int = 1  # of its payloads
    # Makes a payload of this version from an older one. It is given that payload and its version.
    upgrade: Callable[[Any, int], Any] | None = None
    # The function is given a list of at most so many jobs, each a BatchItem. None: one job a call.
    batch_size: int | None = None
    # The type of `ctx.saved`, as `understood` gave it. None: as decoded.
    saved_type: Any = None
    # Where its registry's async functions run. On asyncio, an awaitable that a plain function
    # returns is an error: nobody can tell for which loop it was made.
    home: RunsIn = RunsIn.TRIO
    runs_in: RunsIn = attrs.field()

    @runs_in.default
    def _runs_in(self) -> RunsIn:
        return RunsIn.TRIO if self.is_async else RunsIn.THREAD

    # The same as of the function, if it has them.
    __name__: ClassVar[str]
    __qualname__: ClassVar[str]
    __wrapped__: ClassVar[Callable[..., Any]]
    _takes_plain: ClassVar[bool]  # whether the function is given a dict as decoded

    def __attrs_post_init__(self) -> None:
        function = self.call
        own = self.__dict__
        for name, value in getattr(function, "__dict__", {}).items():
            own.setdefault(name, value)
        for name in _OF_A_FUNCTION:
            if hasattr(function, name):
                own[name] = getattr(function, name)
        own["__wrapped__"] = function
        own["_takes_plain"] = self.version == 1 and (self.payload_type is None or self.payload_type is dict)

    @overload
    def __call__(self, payload: Payload, /, *args: Any, **kwargs: Any) -> Returned_co: ...

    @overload
    def __call__(self, **kwargs: Any) -> Returned_co: ...

    def __call__(self, *args: Any, **kwargs: Any) -> Returned_co:
        """Call the function, with a payload and, if it takes one, a context."""
        returned: Returned_co = self.call(*args, **kwargs)
        return returned

    def __reduce__(self) -> str:
        """Return the name by which unpickling finds the handler, as for a function."""
        name = getattr(self, "__qualname__", None)
        if not isinstance(name, str):
            raise TypeError(f"{self.name} has no name of its own, and cannot be pickled: name its job type {self.job_type!r}")
        return name

    @overload
    def job(self, payload: Payload, **settings: Unpack[JobSettings]) -> NewJob: ...

    @overload
    def job(self: Handler[P | None], payload: None = None, **settings: Unpack[JobSettings]) -> NewJob: ...

    def job(self, payload: Any = None, **settings: Unpack[JobSettings]) -> NewJob:
        """Make a job to enqueue, for `enqueue_many`. The job has the handler's queue and attempts.

        Args:
            payload: what the function takes.
            settings: as for `enqueue`: queue, priority, scheduled_at, delay_seconds, max_attempts,
                unique_key, org_id, headers.

        Raises:
            InvalidName, InvalidJob, InvalidPayload, PayloadTooLarge: it could not be enqueued.
        """
        return make_job(self.job_type, payload, {**settings}, self)

    def checked(self, payload: object) -> Any:
        """Return a payload as it is to be enqueued. Refuse what would not fit the function later.

        Raises:
            InvalidPayload, PayloadTooLarge: it does not fit, or cannot be stored.
        """
        if self.version == 1 and self.converter is None:
            if self.payload_type is None:
                return payload
            if self.payload_type is dict and type(payload) is dict and VERSION_KEY not in payload:
                return encoded(payload)  # a dict that can be written fits
        text = self.written(payload)
        try:
            self.read(json.loads(text.text))
        except PayloadUndecodable as error:
            raise InvalidPayload(f"{error}; the handler is {self.name}") from error
        return text

    def written(self, payload: object) -> Any:
        """Return a payload as text, written by the handler's converter.

        The text says the handler's version, unless the payload says one itself.

        Returns: an `Encoded` of model/payload.py.

        Raises:
            InvalidPayload, PayloadTooLarge: it cannot be stored.
        """
        if payload is None and may_be_none(self.payload_type):
            text = Encoded("null", 4)  # an empty object might be taken for a class whose fields have defaults
        else:
            text = encoded(payload, self.converter, self.payload_type)
        return text if self.version == 1 else mark(text, self.version)

    def read(self, payload: Any) -> Any:
        """Return a stored payload as what the function takes: upgraded, and of its type.

        Args:
            payload: as `decode` of model/payload.py gave it.

        Raises:
            PayloadTooNew: it is of a later version than the handler's.
            PayloadUndecodable: it does not fit, and why.
        """
        if self._takes_plain and type(payload) is dict and VERSION_KEY not in payload:
            return payload  # as most payloads are, at no cost
        if (self.version != 1 or (type(payload) is dict and VERSION_KEY in payload)) and not self.takes_job:
            payload = upgraded(payload, self.version, self.upgrade)
        return structure(payload, self.payload_type, self.converter)

    def check_settings(self) -> None:
        """Refuse settings that are out of range.

        Raises:
            ConfigError: a setting is out of range; the error names it.
            InvalidName: the queue's name does not fit.
        """
        if self.max_attempts is not None and not (_is_number(self.max_attempts, int) and 1 <= self.max_attempts <= 1000):
            raise ConfigError(f"{self.name}: max_attempts {self.max_attempts!r} is out of range: use 1 to 1000")
        seconds = self.timeout_seconds
        if seconds is not None and not (_is_number(seconds, (int, float)) and 0 < seconds <= TIMEOUT_SECONDS_MAX):
            raise ConfigError(f"{self.name}: timeout_seconds {seconds!r} is out of range: above 0, to {TIMEOUT_SECONDS_MAX:g}")
        if self.retry is not None and not isinstance(self.retry, RetryPolicy):
            raise ConfigError(f"{self.name}: retry {self.retry!r} is not a RetryPolicy")
        if self.queue is not None:
            check_queue_name(self.queue)
        if not (_is_number(self.version, int) and 1 <= self.version <= VERSION_MAX):
            raise ConfigError(f"{self.name}: version {self.version!r} is out of range: use 1 to {VERSION_MAX}")
        if self.batch_size is not None and not (_is_number(self.batch_size, int) and 1 <= self.batch_size <= BATCH_SIZE_MAX):
            raise ConfigError(f"{self.name}: batch_size {self.batch_size!r} is out of range: use 1 to {BATCH_SIZE_MAX}")
        if (self.version > 1) != (self.upgrade is not None):
            raise ConfigError(
                f"{self.name}: version {self.version} with upgrade {self.upgrade!r}: above version 1 say "
                "upgrade=a function of (payload, version) that gives the payload as of this version; at version 1 say none"
            )
        if self.upgrade is not None and (not callable(self.upgrade) or inspect.iscoroutinefunction(self.upgrade)):
            raise ConfigError(f"{self.name}: upgrade {self.upgrade!r} is not a plain function of (payload, version)")
        if self.upgrade is not None and self.takes_job:
            raise ConfigError(f"{self.name}: it is given the whole job as it is stored: upgrade job.payload in the handler")


def _is_number(value: object, kind: type | tuple[type, ...]) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


_SETTINGS = frozenset(JobSettings.__annotations__)


def make_job(job_type: str, payload: object, settings: dict[str, Any], handler: Handler[Any] | None) -> NewJob:
    """Make a job of what `enqueue` takes.

    Args:
        job_type: which handler runs it.
        payload: what the handler takes.
        settings: JobSettings, in a dict that is used up.
        handler: its queue and attempts are the defaults, and the payload has to fit it. None: the
            handler is not known here.

    Raises:
        InvalidName, InvalidJob, InvalidPayload, PayloadTooLarge: it could not be enqueued.
    """
    if not settings.keys() <= _SETTINGS:
        unknown = ", ".join(sorted(map(str, settings.keys() - _SETTINGS)))
        raise InvalidJob(f"a job has no {unknown}: use {', '.join(sorted(_SETTINGS | {'job_type', 'payload'}))}")
    queue, max_attempts = settings.pop("queue", None), settings.pop("max_attempts", None)
    if handler is not None:
        queue = handler.queue or QUEUE_DEFAULT if queue is None else queue
        max_attempts = handler.max_attempts if max_attempts is None else max_attempts
        payload = handler.checked(payload)
    return NewJob(job_type=job_type, payload=payload, queue_name=queue, max_attempts=max_attempts, **settings)
