"""A handler is a value, and still the function that it was made of."""

from __future__ import annotations

import copy
import functools
import inspect
import json
import pickle
import typing
from typing import Any
from uuid import UUID, uuid4

import attrs
import pytest

from pgnotifyq.model.errors import ConfigError, InvalidJob, InvalidPayload, UnknownJobType
from pgnotifyq.model.handler import Handler
from pgnotifyq.model.job import Job, JobId
from pgnotifyq.model.new_job import JobSettings, NewJob
from pgnotifyq.model.payload import Encoded
from pgnotifyq.model.registry import JobRegistry, handler_of

registry = JobRegistry()
F = typing.TypeVar("F")


@attrs.frozen
class Resize:
    path: str
    width: int = 64


def marked(function: F) -> F:
    vars(function).update(mark="kept", queue="the function's own")
    return function


@registry.handler("resize", max_attempts=5, queue="images")
@marked
async def resize(payload: Resize, ctx: Any) -> str:
    """Resize a picture."""
    return f"{payload.path} at {payload.width} by {ctx}"


@registry.handler
def shout(payload: str) -> str:
    return payload.upper()


class Shelf:
    """Has a handler among its names."""

    shout = shout


async def test_call_of_a_handler() -> None:
    """It is the function's: by position or name, with its context."""
    assert await resize(Resize("a.png"), "me") == "a.png at 64 by me"
    assert await resize(payload=Resize("a.png"), ctx="me") == "a.png at 64 by me"
    assert shout("a") == Shelf.shout("a") == Shelf().shout("a") == "A"


def test_a_handler_looks_like_its_function() -> None:
    """Name, documentation, signature, annotations, whether it is async, and attributes; its settings go before those."""
    assert (resize.__name__, resize.__qualname__, resize.__module__) == ("resize", "resize", __name__)
    assert resize.__doc__ == "Resize a picture."
    assert inspect.signature(resize) == inspect.signature(resize.call)
    assert list(inspect.signature(resize).parameters) == ["payload", "ctx"]
    assert typing.get_type_hints(resize)["payload"] is Resize
    assert (inspect.iscoroutinefunction(resize), inspect.iscoroutinefunction(shout)) == (True, False)
    assert (vars(resize)["mark"], resize.queue) == ("kept", "images")
    assert inspect.getsource(resize).startswith('@registry.handler("resize"')


def test_a_handler_is_pickled_and_copied_by_its_name() -> None:
    """As a function is: it is the same one where it arrives."""
    assert pickle.loads(pickle.dumps(resize)) is resize
    assert copy.deepcopy({"task": resize})["task"] is resize
    nameless = JobRegistry().handler("x")(functools.partial(resize.call, Resize("a.png")))
    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(nameless)


def test_a_function_that_handles_two_types() -> None:
    """Each has a handler of its own, which calls the function and not the other."""

    async def work(payload: Resize) -> None: ...

    two = JobRegistry()
    first = two.handler("first", queue="a")(work)
    second = two.handler("second", queue="b")(first)
    assert (first.queue, second.queue) == ("a", "b")
    assert first.call is second.call is work
    assert first != second


def test_settings_of_a_decorator_add_up() -> None:
    """What several handlers have in common is said once."""
    images = JobRegistry().handler(queue="images", max_attempts=7)
    big = images("big", max_attempts=1)(shout)
    assert (big.job_type, big.queue, big.max_attempts) == ("big", "images", 1)


def test_an_object_that_is_registered_gives_its_handler() -> None:
    """It can be enqueued, too."""

    class SendEmail:
        job_type = "send_email"
        queue = "mail"

        async def handle(self, job: Job, ctx: Any) -> None: ...

    handler = JobRegistry().register(SendEmail())
    assert handler.job({"to": "ann"}) == NewJob(job_type="send_email", payload={"to": "ann"}, queue_name="mail")


def test_a_function_may_ask_for_a_job_with_a_result() -> None:
    """`Job[int]` is a job."""

    async def work(job: Job[int]) -> int:
        return job.result

    assert JobRegistry().handler("x")(work).takes_job


def test_a_job_of_a_handler() -> None:
    """It has the handler's type, queue and attempts, or those that are said; its payload is encoded once."""
    job = resize.job(Resize("a.png"), priority=5)
    assert (job.job_type, job.queue_name, job.max_attempts, job.priority) == ("resize", "images", 5, 5)
    assert isinstance(job.payload, Encoded)
    assert json.loads(job.payload.text) == {"path": "a.png", "width": 64}
    other = resize.job(Resize("a.png"), queue="slow", max_attempts=1)
    assert (other.queue_name, other.max_attempts) == ("slow", 1)
    assert shout.job("a").queue_name == "default"


def test_a_job_that_its_handler_would_refuse() -> None:
    """It is refused when it is made, by the handler's name; so is what no job has."""
    with pytest.raises(InvalidPayload, match=r"test_handler:resize"):
        resize.job({"path": 5})  # type: ignore[arg-type]
    with pytest.raises(InvalidJob, match=r"no prioritty: use .*priority"):
        resize.job(Resize("a.png"), prioritty=5)  # type: ignore[call-arg]


def test_the_handler_of_what_is_enqueued() -> None:
    """A handler is its own; a name is looked up where there is a registry."""
    assert handler_of(resize, None) is handler_of(resize, registry) is handler_of("resize", registry) is resize
    assert handler_of("resize", None) is None
    including = JobRegistry()
    including.include(registry)
    assert handler_of(resize, including) is resize


def test_a_handler_of_another_registry() -> None:
    """It is refused, whether the client's has none of the type or another one."""
    with pytest.raises(UnknownJobType, match=r"resize is a handler of another registry.*include.*registered: none"):
        handler_of(resize, JobRegistry())
    other = JobRegistry()

    @other.handler("resize")
    def mine(payload: Resize) -> None: ...

    with pytest.raises(InvalidJob, match=r"resize is a handler of another registry.*mine handles 'resize'"):
        handler_of(resize, other)


@pytest.mark.parametrize("given", [resize.call, Resize, print], ids=["function", "class", "of C"])
def test_what_is_no_handler(given: Any) -> None:
    """A function that was not decorated, or was decorated once more, is told from a name."""
    with pytest.raises(InvalidJob, match=r"is not a handler: .*@registry\.handler"):
        handler_of(given, None)


def test_settings_of_a_job_are_those_of_a_new_job() -> None:
    """What can be said beside the type and payload is said in one place: `queue` is a job's `queue_name`."""
    said = {"queue_name" if name == "queue" else name for name in JobSettings.__annotations__}
    assert said == set(attrs.fields_dict(NewJob)) - {"job_type", "payload"}


def test_ids_of_jobs_at_run_time() -> None:
    """They are UUIDs; what their handler returns is for checkers of types alone."""
    some: UUID = uuid4()
    made: UUID = JobId(some)
    assert made is some
    kind: object = JobId[int]
    assert kind is JobId
    assert pickle.loads(pickle.dumps(JobId)) is JobId


def test_handlers_are_equal_to_themselves_only() -> None:
    """As functions are; so they are found in dicts and sets."""
    twin = attrs.evolve(resize)
    assert twin != resize
    assert {resize: 1, twin: 2}[resize] == 1
    assert isinstance(resize, Handler)


def test_a_setting_that_is_no_setting() -> None:
    """It is refused where it is written."""
    with pytest.raises((TypeError, ConfigError), match="max_atempts"):
        registry.handler("x", max_atempts=3)  # type: ignore[call-overload]
