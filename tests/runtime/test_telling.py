"""Sinks that raise: an event is lost, and the worker goes on."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import trio

from pgnotifyq import EventName, JobRegistry, run_worker
from pgnotifyq.model.errors import ConfigError
from pgnotifyq.model.events import Event
from pgnotifyq.runtime.telling import Telling
from tests.asked import fetch
from tests.runtime.support import PATIENCE_SECONDS, Workplace

Payload = dict[str, Any]
EVENT = Event(name=EventName.JOB_COMPLETED)


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


ERRORS: list[BaseException] = [
    ConnectionError("the metrics are away"),
    UnicodeEncodeError("ascii", "é", 0, 1, "ordinal not in range"),
    Unspeakable(),
    SystemExit(0),
    KeyboardInterrupt("nobody pressed anything"),
    asyncio.CancelledError(),
    BaseExceptionGroup("several", [ValueError(), SystemExit(0)]),
]


class Broken(logging.Handler):
    """A handler of the application's that does not do what logging asks of handlers."""

    def __init__(self) -> None:
        super().__init__()
        self.was_told_of_the_loop = threading.Event()

    def handle(self, record: logging.LogRecord) -> bool:
        if "held the event loop" in record.getMessage():
            self.was_told_of_the_loop.set()
        raise OSError(28, "No space left on device")


class Heard(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


@pytest.fixture
def log() -> Iterator[logging.Logger]:
    """Give this package's log, as it was before, afterwards."""
    log = logging.getLogger("pgnotifyq")
    before = (log.level, list(log.handlers))
    yield log
    log.setLevel(before[0])
    log.handlers[:] = before[1]


def working() -> JobRegistry:
    """Return a handler that ends at once."""
    registry = JobRegistry()

    @registry.handler()
    async def work(payload: Payload) -> None:
        await trio.lowlevel.checkpoint()

    return registry


async def test_sinks_that_raise_at_every_event(place: Workplace) -> None:
    """Whatever they raise, each worker starts, completes its job and drains; it told everything it had to."""
    tried: dict[str, list[EventName]] = {}

    def make(queue: str, error: BaseException) -> Callable[[Event], None]:
        def sink(event: Event) -> None:
            tried.setdefault(queue, []).append(event.name)
            raise error

        return sink

    async with trio.open_nursery() as nursery:
        for number, error in enumerate(ERRORS):
            queue = f"q{number}"
            start = partial(run_worker, working(), place.dsn, queues=[queue], on_event=make(queue, error))
            handle = await nursery.start(start)
            job_id = await place.enqueue("work", queue_name=queue)
            await place.until("status = 'completed' from pgnotifyq.jobs where id = %s", job_id)
            handle.drain()
    for names in tried.values():
        assert [names[0], names[-1]] == [EventName.WORKER_STARTED, EventName.WORKER_STOPPED]
        assert EventName.JOB_COMPLETED in names
    assert len(tried) == len(ERRORS)


async def test_log_that_raises(place: Workplace, log: logging.Logger) -> None:
    """Without a sink events go to logging, and a handler of the application's that raises ends neither worker nor watchdog."""
    broken = Broken()
    log.setLevel(logging.DEBUG)
    log.addHandler(broken)
    registry = working()

    @registry.handler()
    async def hold(payload: Payload) -> bool:
        broken.was_told_of_the_loop.clear()
        return broken.was_told_of_the_loop.wait(PATIENCE_SECONDS)

    async with trio.open_nursery() as nursery:
        handle = await nursery.start(partial(run_worker, registry, place.dsn, loop_blocked_seconds=0.05))
        for job_type in ("work", "hold", "hold"):
            job_id = await place.enqueue(job_type)
            await place.until("status = 'completed' from pgnotifyq.jobs where id = %s", job_id)
        handle.drain()
    assert [row["result"] for row in await everything_of(place)] == [None, True, True]


async def everything_of(place: Workplace) -> list[dict[str, Any]]:
    """Return the jobs, the oldest first."""
    return [await place.job(row[0]) for row in await fetch(place.connection, "select id from pgnotifyq.jobs order by id")]


def test_losses_are_told_more_and_more_seldom(log: logging.Logger) -> None:
    """The first, the tenth, the hundredth: with the sink's name, the event's, and why."""
    heard = Heard()
    log.addHandler(heard)
    log.setLevel(logging.INFO)

    def metrics(event: Event) -> None:
        raise ConnectionError("away")

    tell = Telling(metrics)
    for _ in range(150):
        tell(EVENT)
    assert [said.split(", ")[1] for said in heard.said] == ["1 lost so far: ConnectionError: away"] + [
        f"{count} lost so far: ConnectionError: away" for count in (10, 100)
    ]
    assert all("metrics" in said and "job.completed" in said for said in heard.said)
    assert tell.lost == 150


@pytest.mark.parametrize("form", ["async", "async callable", "no callable"])
def test_sink_that_could_never_hear(form: str) -> None:
    """It is refused when the worker starts: it would be told nothing, without a word."""

    async def asynchronous(event: Event) -> None:
        raise AssertionError

    class Asynchronous:
        async def __call__(self, event: Event) -> None:
            raise AssertionError

    sinks: dict[str, Any] = {"async": asynchronous, "async callable": Asynchronous(), "no callable": "print"}
    with pytest.raises(ConfigError, match="on_event"):
        Telling(sinks[form])


@pytest.mark.filterwarnings("error")
def test_sink_that_returns_what_is_to_be_awaited(log: logging.Logger) -> None:
    """A lambda around an async function is not seen to be one beforehand: it is told as a loss."""
    heard = Heard()
    log.addHandler(heard)

    async def asynchronous(event: Event) -> None:
        raise AssertionError

    sink: Any = lambda event: asynchronous(event)  # noqa: E731  # what is tested
    tell = Telling(sink)
    tell(EVENT)
    assert len(heard.said) == 1
    assert "nobody awaits" in heard.said[0]


def test_ctrl_c_while_a_sink_runs() -> None:
    """It is the program's, not the sink's: the sink ends undisturbed, and the program is interrupted after it."""
    ended: list[str] = []

    def sink(event: Event) -> None:
        signal.raise_signal(signal.SIGINT)
        ended.append("sink")

    async def main() -> None:
        Telling(sink)(EVENT)
        ended.append("tell")
        await trio.sleep(PATIENCE_SECONDS)

    with pytest.raises(KeyboardInterrupt):
        trio.run(main)
    assert ended == ["sink", "tell"]
