"""What the runner asks of a queue's program, and the loops that measure, the same for every queue.

Standard library only: this file runs in the peers' own environments. `protocol.mjs` says the same for Node.

    setup DSN                            make the tables
    preload DSN JOBS                     enqueue no-op jobs, in the queue's own bulk call, 1,000 a call
    work DSN NOTES PURPOSE               be a worker until SIGTERM; PURPOSE is `throughput` or `latency`; print `ready`
    pickup DSN NOTES SAMPLES             enqueue jobs one by one, at rest in between
    cancel DSN NOTES SAMPLES             enqueue jobs that sleep; cancel each when it runs
    enqueue DSN PRODUCERS BATCH SECONDS  enqueue for a while; print `enqueued JOBS SECONDS`

Three types of job: `noop` is counted, `stamp` notes when it started, `sleep` notes when it started and when it was stopped.

Notes are lines of `event number seconds`, appended to one file by all processes of a run. Seconds are CLOCK_MONOTONIC, which
processes of one machine share (`time.monotonic` here, `process.hrtime` in Node).
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence
    from contextlib import AbstractAsyncContextManager

BULK_JOBS = 1000  # a call
NOTED_EVERY = 1000  # no-op jobs: a note each would cost more than the job
PAUSE_SECONDS = 0.02  # between two jobs of a latency: the worker is idle again
RUNNING_SECONDS = 0.01  # between a handler's start and its cancel: it is well asleep
STOP_SECONDS_MAX = 30.0


class Notes:
    """The file of a run, for writing."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._counted = 0
        self._noted = 0

    def close(self) -> None:
        """Close the file; a worker's is closed by the end of its process."""
        os.close(self._file)

    def write(self, event: str, number: int, seconds: float | None = None) -> None:
        """Append a line; now, if no time is given."""
        moment = time.monotonic() if seconds is None else seconds
        os.write(self._file, f"{event} {number} {moment:.6f}\n".encode())

    def count(self, jobs: int = 1) -> None:
        """Count no-op jobs that start: the first is noted, then every thousandth, with how many since the last note."""
        before = self._counted
        self._counted += jobs
        if before == 0 or before // NOTED_EVERY != self._counted // NOTED_EVERY:
            self.write("noop", self._counted - self._noted)
            self._noted = self._counted


class Heard:
    """The file of a run, for reading while others write."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._read = 0
        self._rest = b""
        self.lines: list[tuple[str, int, float]] = []
        self._first: dict[tuple[str, int], float] = {}

    def look(self) -> None:
        """Read what was appended, as far as lines are whole."""
        with open(self._path, "rb") as file:  # noqa: PTH123  # opened each millisecond: no need to make a path of it
            file.seek(self._read)
            appended = file.read()
        self._read += len(appended)
        *whole, self._rest = (self._rest + appended).split(b"\n")
        for line in whole:
            event, number, seconds = line.decode().split()
            self.lines.append((event, int(number), float(seconds)))
            self._first.setdefault((event, int(number)), float(seconds))

    def when(self, event: str, number: int) -> float | None:
        """Return when something happened first, or None if it has not."""
        return self._first.get((event, number))


class Client(Protocol):
    """A queue's client, as the loops use it."""

    async def enqueue(self, job_type: str, number: int) -> Any:
        """Enqueue one job, durably; return its id."""

    async def enqueue_many(self, job_type: str, numbers: Sequence[int]) -> None:
        """Enqueue jobs in one call of the queue's own for bulk."""

    async def cancel(self, job_id: Any) -> None:
        """Cancel a job; return when the queue has accepted it."""


class App(Protocol):
    """A queue, as its program gives it to `main`."""

    async def setup(self, dsn: str) -> None:
        """Make the tables."""

    async def work(self, dsn: str, notes: Notes, purpose: str) -> None:
        """Be a worker until SIGTERM; print `ready` when jobs would be taken."""

    def open_client(self, dsn: str, connections: int) -> AbstractAsyncContextManager[Client]:
        """Give a client with so many connections."""


@dataclass(frozen=True)
class Loop:
    """What the loops need of an event loop."""

    run: Callable[[Coroutine[Any, Any, None]], None]
    sleep: Callable[[float], Awaitable[Any]]
    together: Callable[[Sequence[Callable[[], Coroutine[Any, Any, None]]]], Awaitable[Any]]


async def _gather(tasks: Sequence[Callable[[], Coroutine[Any, Any, None]]]) -> None:
    await asyncio.gather(*(task() for task in tasks))


def asyncio_loop() -> Loop:
    """Return asyncio's loop: uvloop's where it is installed."""
    try:
        import uvloop

        run = uvloop.run
    except ImportError:
        run = asyncio.run
    return Loop(run=run, sleep=asyncio.sleep, together=_gather)


def ready() -> None:
    """Tell the runner that jobs would be taken now."""
    print("ready", flush=True)


async def sleep_until_cancelled(notes: Notes, number: int) -> None:
    """Be the handler of `sleep` under asyncio."""
    notes.write("start", number)
    try:
        await asyncio.sleep(3600)
    finally:
        notes.write("stop", number)


async def until_sigterm() -> None:
    """Wait for SIGTERM, under asyncio."""
    import signal

    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    await told.wait()


async def preload(client: Client, jobs: int) -> None:
    """Enqueue no-op jobs in bulk."""
    for first in range(0, jobs, BULK_JOBS):
        await client.enqueue_many("noop", range(first, min(first + BULK_JOBS, jobs)))


async def pickup(client: Client, notes: Notes, samples: int, loop: Loop) -> None:
    """Enqueue jobs one by one, noting the call and the commit of each."""
    for number in range(samples):
        called = time.monotonic()
        await client.enqueue("stamp", number)
        committed = time.monotonic()
        notes.write("call", number, called)
        notes.write("commit", number, committed)
        await loop.sleep(PAUSE_SECONDS)


async def cancel(client: Client, notes: Notes, heard: Heard, samples: int, loop: Loop) -> None:
    """Enqueue jobs that sleep; cancel each when it runs, noting the call and the return."""
    for number in range(samples):
        job_id = await client.enqueue("sleep", number)
        await _until(heard, "start", number, loop)
        await loop.sleep(RUNNING_SECONDS)
        called = time.monotonic()
        await client.cancel(job_id)
        returned = time.monotonic()
        notes.write("call", number, called)
        notes.write("commit", number, returned)
        await _until(heard, "stop", number, loop)
        await loop.sleep(RUNNING_SECONDS)


async def _until(heard: Heard, event: str, number: int, loop: Loop) -> None:
    deadline = time.monotonic() + STOP_SECONDS_MAX
    while heard.when(event, number) is None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"no {event} of job {number} within {STOP_SECONDS_MAX:.0f} s")
        await loop.sleep(0.001)
        heard.look()


async def enqueue(client: Client, producers: int, batch: int, seconds: float, loop: Loop) -> None:
    """Enqueue from so many tasks at once for a while, and print how many jobs it were in how long."""
    enqueued = 0
    began = time.monotonic()

    async def produce() -> None:
        nonlocal enqueued
        while time.monotonic() - began < seconds:
            if batch == 1:
                await client.enqueue("noop", enqueued)
            else:
                await client.enqueue_many("noop", range(batch))
            enqueued += batch

    await loop.together([produce] * producers)
    print(f"enqueued {enqueued} {time.monotonic() - began:.6f}", flush=True)


def main(app: App, loop: Loop | None = None) -> None:
    """Do the command that the program was started with."""
    chosen = asyncio_loop() if loop is None else loop
    command, dsn, *given = sys.argv[1:]

    async def with_client(connections: int, action: Callable[[Client], Awaitable[None]]) -> None:
        async with app.open_client(dsn, connections) as client:
            await action(client)

    match command, given:
        case "setup", []:
            todo = app.setup(dsn)
        case "preload", [jobs]:
            todo = with_client(1, lambda client: preload(client, int(jobs)))
        case "work", [path, purpose]:
            todo = app.work(dsn, Notes(path), purpose)
        case "pickup", [path, samples]:
            todo = with_client(1, lambda client: pickup(client, Notes(path), int(samples), chosen))
        case "cancel", [path, samples]:
            todo = with_client(1, lambda client: cancel(client, Notes(path), Heard(path), int(samples), chosen))
        case "enqueue", [producers, batch, seconds]:
            tasks = int(producers)
            todo = with_client(tasks, lambda client: enqueue(client, tasks, int(batch), float(seconds), chosen))
        case _:
            raise SystemExit(__doc__)
    chosen.run(todo)
