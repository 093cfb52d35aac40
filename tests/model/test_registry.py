"""The registry: one handler a type, found by its declaration."""

from __future__ import annotations

import contextlib
import functools
import re
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio

from pgnotifyq.model.converting import make_converter
from pgnotifyq.model.credentials import CredentialKeys
from pgnotifyq.model.errors import ConfigError, HandlerAlreadyRegistered, InvalidName, UnknownJobType
from pgnotifyq.model.job import Job
from pgnotifyq.model.registry import JobRegistry
from pgnotifyq.model.retry import RetryPolicy
from pgnotifyq.model.returned import finished

if TYPE_CHECKING:
    from collections.abc import Callable
    from fractions import Fraction

    from pgnotifyq.runtime.context import JobContext


@attrs.frozen
class Resize:
    path: str


class SendEmail:
    job_type = "send_email"
    max_attempts = 7

    async def handle(self, job: Any, ctx: Any) -> None:
        """Send it."""


def unchecked(value: Any) -> Any:
    """Return a value as one that type checkers ask nothing of: they refuse what these tests do."""
    return value


def test_a_function_declares_what_it_takes() -> None:
    """The payload's type comes from the first parameter, also when the context's is for type checkers only."""
    registry = JobRegistry()

    @registry.handler("resize", max_attempts=5, timeout_seconds=30.0)
    async def resize(payload: Resize, ctx: JobContext) -> object:
        return payload

    @registry.handler()
    def plain(payload: dict[str, object]) -> None: ...

    handler = registry.get("resize")
    assert (handler.payload_type, handler.is_async, handler.takes_context, handler.max_attempts) == (Resize, True, True, 5)
    assert (registry.get("plain").is_async, registry.get("plain").takes_context) == (False, False)
    assert registry.job_types == {"resize", "plain"}


def test_an_object_declares_its_type_and_takes_the_job() -> None:
    """As in the published design; what it needs it was given when it was made."""
    registry = JobRegistry()
    registry.register(SendEmail())
    handler = registry.get("send_email")
    assert (handler.takes_job, handler.takes_context, handler.is_async, handler.max_attempts) == (True, True, True, 7)


def test_a_second_handler_of_a_type_is_refused_and_the_first_stays() -> None:
    """Defect 13: the error names both."""
    registry, other = JobRegistry(), JobRegistry()
    first = registry.handler("send_email")(lambda payload: payload)
    with pytest.raises(HandlerAlreadyRegistered, match=r"lambda.*SendEmail"):
        registry.register(SendEmail())
    other.register(SendEmail())
    other.handler("more")(lambda payload: payload)
    with pytest.raises(HandlerAlreadyRegistered):
        registry.include(other)
    assert registry.get("send_email") is first
    assert registry.job_types == {"send_email"}


def test_an_unknown_type_lists_the_known() -> None:
    """Defect 12: it is an error, and one that helps."""
    registry = JobRegistry()
    registry.register(SendEmail())
    with pytest.raises(UnknownJobType, match=r"'resize'.*send_email"):
        registry.get("resize")


@pytest.mark.parametrize("name", ["", "a b", "-x", "é", "x" * 128, "a\n", 5])
def test_a_bad_job_type_is_refused(name: Any) -> None:
    """With the pattern in words."""
    with pytest.raises(InvalidName, match="letters"):
        JobRegistry().handler(name)(lambda payload: payload)


def test_a_function_that_cannot_be_a_handler_is_refused() -> None:
    """No parameter, or three that are needed; a class instead of an object."""
    with pytest.raises(ConfigError):
        unchecked(JobRegistry().handler("x"))(lambda: None)
    with pytest.raises(ConfigError):
        unchecked(JobRegistry().handler("x"))(lambda a, b, c: None)
    with pytest.raises(ConfigError):
        JobRegistry().register(SendEmail)


def test_dependencies_may_be_bound_with_a_partial_or_an_object_that_is_called() -> None:
    """The name, the payload's type and whether it is async are those of the function inside."""

    async def send(server: str, payload: Resize, ctx: Any) -> None: ...

    class Sender:
        async def __call__(self, payload: Resize) -> None: ...

    registry = JobRegistry()
    registry.handler("partial")(functools.partial(send, "smtp"))
    registry.handler("called")(Sender())
    partial, called = registry.get("partial"), registry.get("called")
    assert (partial.payload_type, partial.is_async, partial.takes_context) == (Resize, True, True)
    assert (called.payload_type, called.is_async, called.takes_context) == (Resize, True, False)
    assert "send" in partial.name and "Sender" in called.name


def test_a_generator_is_refused() -> None:
    """Called, it runs nothing: its jobs would be completed without having been done."""

    def lines(payload: Any) -> Any:
        yield payload

    async def pages(payload: Any) -> Any:
        yield payload

    for function in (lines, pages):
        with pytest.raises(ConfigError, match="yields"):
            JobRegistry().handler("x")(function)


def test_a_parameter_that_a_worker_cannot_pass_is_refused() -> None:
    """When it is registered, not when its first job fails."""

    def work(payload: Any, *, ctx: Any) -> None: ...

    with pytest.raises(ConfigError, match="must take"):
        unchecked(JobRegistry().handler("x"))(work)


@pytest.mark.parametrize(
    "settings",
    [
        {"max_attempts": "5"},
        {"max_attempts": 2.5},
        {"max_attempts": 0},
        {"max_attempts": True},
        {"timeout_seconds": "5"},
        {"timeout_seconds": 0},
        {"timeout_seconds": float("nan")},
        {"retry": 3},
    ],
    ids=str,
)
def test_a_setting_out_of_range_is_refused(settings: dict[str, Any]) -> None:
    """The error names the setting."""
    with pytest.raises(ConfigError, match=next(iter(settings))):
        JobRegistry().handler("x", **settings)(lambda payload: payload)


def test_errors_that_are_named_beside_a_policy() -> None:
    """They become the handler's policy, in either style; a policy's numbers and its own errors stay."""
    registry = JobRegistry()
    slow = RetryPolicy(base_seconds=60, discard_on=KeyError)

    @registry.handler(retry_on=(OSError,), retry=slow)
    async def charge(payload: dict[str, Any]) -> None: ...

    @registry.handler(discard_on=LookupError)
    async def look(payload: dict[str, Any]) -> None: ...

    class Send(SendEmail):
        retry_on = OSError

    assert charge.retry == RetryPolicy(base_seconds=60, retry_on=OSError, discard_on=KeyError)
    assert look.retry == RetryPolicy(discard_on=LookupError)
    assert registry.register(Send()).retry == RetryPolicy(retry_on=OSError)
    with pytest.raises(ConfigError, match=r"test_registry:.*'OSError' is no class of exceptions"):
        registry.handler("x", retry_on=unchecked("OSError"))(charge)


def test_a_decorator_without_parentheses_registers_the_function() -> None:
    """Its own name is the type; before, nothing was registered, and the job had no handler."""
    registry = JobRegistry()

    @attrs.frozen
    class Local:
        path: str

    @registry.handler
    async def resize(payload: Local) -> str:
        return payload.path

    assert registry.get("resize") is resize
    assert resize.payload_type is Local


def test_a_class_is_refused_where_a_function_is_decorated() -> None:
    """It would be made of a payload, and that be all."""
    for register in (JobRegistry().handler, JobRegistry().handler("send_email")):
        with pytest.raises(ConfigError, match=r"registry.register\(SendEmail"):
            unchecked(register)(SendEmail)


def test_an_annotation_that_cannot_be_read_is_refused() -> None:
    """The payload's; it says what to do. The context's asks for nothing else."""

    async def hidden(payload: Fraction, ctx: JobContext) -> None: ...

    with pytest.raises(ConfigError, match=r"hidden.*Fraction.*TYPE_CHECKING"):
        unchecked(JobRegistry().handler("x"))(hidden)


def test_an_annotation_that_cannot_be_honoured_is_refused_with_the_handlers_name() -> None:
    """A dict would reach it without a word."""

    async def work(payload: complex) -> None: ...

    with pytest.raises(ConfigError, match=r"test_registry:.*work.*complex"):
        unchecked(JobRegistry().handler("x"))(work)


def test_a_function_may_ask_for_the_whole_job() -> None:
    """As a class handler does."""
    registry = JobRegistry()

    @registry.handler()
    async def work(job: Job) -> None: ...

    assert (registry.get("work").takes_job, registry.get("work").payload_type) == (True, None)


def test_a_class_handler_that_asks_for_a_payload_is_refused() -> None:
    """It is given the job."""

    class Wrong:
        job_type = "wrong"

        async def handle(self, job: Resize) -> None: ...

    with pytest.raises(ConfigError, match=r"whole job, not a Resize"):
        JobRegistry().register(Wrong())


@pytest.mark.parametrize("wanted", [Resize, int, dict[str, int], Job])
def test_a_second_parameter_that_asks_for_something_else_is_refused(wanted: Any) -> None:
    """It is given the context."""

    async def work(payload: dict[str, Any], other: Any) -> None: ...

    work.__annotations__["other"] = wanted
    with pytest.raises(ConfigError, match="context"):
        JobRegistry().handler("x")(work)


def test_a_context_with_a_default_is_given_all_the_same() -> None:
    """By its name or its annotation; another parameter with a default keeps it."""
    registry = JobRegistry()

    async def named(payload: Any, ctx: Any = None) -> None: ...
    async def annotated(payload: Any, c: JobContext | None = None) -> None: ...
    async def other(payload: Any, tries: int = 3) -> None: ...

    for function in (named, annotated, other):
        registry.handler()(function)
    assert [registry.get(name).takes_context for name in ("named", "annotated", "other")] == [True, True, False]


def logged(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate as most do."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def given_more(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate with something that the handler is given besides."""

    @functools.wraps(function)
    def wrapper(payload: Any) -> Any:
        return function(payload, "database")

    return wrapper


def test_a_decorators_own_parameters_count() -> None:
    """What it passes on is its affair."""
    registry = JobRegistry()

    @registry.handler()
    @logged
    async def plain(payload: Resize, ctx: JobContext) -> None: ...

    @registry.handler()
    @given_more
    async def more(payload: Resize, database: str) -> None: ...

    assert (registry.get("plain").payload_type, registry.get("plain").takes_context) == (Resize, True)
    assert (registry.get("more").payload_type, registry.get("more").takes_context) == (Resize, False)


async def deed(payload: Any) -> str:
    await trio.lowlevel.checkpoint()
    return "done"


def lines(payload: Any) -> Any:
    yield payload


async def pages(payload: Any) -> Any:
    yield payload


@pytest.mark.parametrize(
    "call", [logged(deed), lambda payload: deed(payload), logged(logged(deed))], ids=["plain", "lambda", "two"]
)
async def test_what_a_plain_decorator_makes_of_an_async_handler(call: Callable[..., Any]) -> None:
    """Its call gives a coroutine, which is awaited."""
    registry = JobRegistry()
    registry.handler("x")(call)
    assert await finished(registry.get("x"), call({})) == "done"


@pytest.mark.parametrize(
    "call",
    [
        logged(lines),
        logged(pages),
        contextlib.contextmanager(lines),
        contextlib.asynccontextmanager(pages),
        lambda payload: map(print, [payload]),
        lambda payload: (item for item in [payload]),
    ],
    ids=["generator", "async generator", "context manager", "async context manager", "map", "generator expression"],
)
async def test_a_result_that_has_not_run_is_a_failure(call: Callable[..., Any]) -> None:
    """Nothing was done, whatever decorators the generator hides behind; the handler is named, not what we call it by."""
    registry = JobRegistry()
    registry.handler("x")(call)
    handler = registry.get("x")
    with pytest.raises(TypeError, match=re.escape(handler.name) + ".*has not run"):
        await finished(handler, call({}))


@pytest.mark.parametrize("value", [None, 1, {"a": 1}, "text", [1], object()])
async def test_a_result_is_left_as_it_is(value: object) -> None:
    """Whether it can be stored is asked elsewhere."""
    registry = JobRegistry()
    registry.handler("x")(deed)
    assert await finished(registry.get("x"), value) is value


def test_where_a_handler_runs() -> None:
    """A function that is not async runs in a thread, the others where they say, or where their registry does: on trio by default."""
    registry, of_asyncio = JobRegistry(), JobRegistry(runs_in="asyncio")

    async def awaits(payload: dict[str, Any]) -> None: ...
    def blocks(payload: dict[str, Any]) -> None: ...

    assert registry.handler("a")(awaits).runs_in == "trio"
    assert registry.handler("b", runs_in="asyncio")(awaits).runs_in == "asyncio"
    assert registry.handler("c")(blocks).runs_in == "thread"
    assert registry.handler("d", runs_in="thread")(blocks).runs_in == "thread"
    assert of_asyncio.handler("e")(awaits).runs_in == "asyncio"
    assert of_asyncio.handler("f", runs_in="trio")(awaits).runs_in == "trio"
    assert of_asyncio.handler("g")(blocks).runs_in == "thread"
    registry.include(of_asyncio)
    assert registry.get("e").runs_in == "asyncio", "what its own registry said holds"


def test_place_where_a_handler_cannot_run() -> None:
    """It is refused when it is registered, and the error says why."""
    registry = JobRegistry()

    async def awaits(payload: dict[str, Any]) -> None: ...
    def blocks(payload: dict[str, Any]) -> None: ...

    for place in ("asyncio", "trio"):
        with pytest.raises(ConfigError, match=f"blocks cannot run in {place}, where it would hold the loop"):
            registry.handler("work", runs_in=place)(blocks)
    with pytest.raises(ConfigError, match="is an async function, and cannot run in a thread"):
        registry.handler("work", runs_in="thread")(awaits)
    with pytest.raises(ConfigError, match="'gevent' is not a place for a handler"):
        registry.handler("work", runs_in="gevent")(awaits)  # type: ignore[call-overload]
    with pytest.raises(ConfigError, match="'thread' of a registry"):
        JobRegistry(runs_in="thread")  # type: ignore[arg-type]
    assert registry.handlers == ()


def test_a_registry_of_changed_handlers() -> None:
    """It is as the first one in all else: a test that drains gives handlers the credentials that a worker gives."""
    keys = CredentialKeys([bytes(32)])
    registry = JobRegistry(converter=make_converter(), unknown_keys="refuse", runs_in="asyncio", credentials=keys)
    copy = registry.mapped(lambda handler: handler)
    for name in ("converter", "unknown_keys", "runs_in", "credentials"):
        assert getattr(copy, name) is getattr(registry, name), name
