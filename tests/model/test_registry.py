"""The registry: one handler a type, found by its declaration."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from pgnotifyq.model.errors import ConfigError, HandlerAlreadyRegistered, InvalidName, UnknownJobType
from pgnotifyq.model.registry import JobRegistry

if TYPE_CHECKING:
    from pgnotifyq.runtime.context import JobContext


@attrs.frozen
class Resize:
    path: str


class SendEmail:
    job_type = "send_email"
    max_attempts = 7

    async def handle(self, job: Any, ctx: Any) -> None:
        """Send it."""


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
    assert registry.get("send_email").call is first
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
        JobRegistry().handler("x")(lambda: None)
    with pytest.raises(ConfigError):
        JobRegistry().handler("x")(lambda a, b, c: None)
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
        JobRegistry().handler("x")(work)


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
