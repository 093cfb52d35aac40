"""What does an enqueue cost by each door: on trio, on asyncio, blocking; and beside them a bare insert by psycopg?

The doors take turns, a slice of a second each, on one server and one table, for the machine drifts.
A slice is followed by the next of another door; medians of a door's slices are compared. The bare
insert is a prepared one of the same row into the table of jobs, by a cursor of psycopg's in
autocommit: a program that writes the row by hand pays for its indexes and triggers too. `client` is
the CPU of the client's own process.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import attrs
import psycopg
from anyio.from_thread import start_blocking_portal
from psycopg.types.json import Jsonb

import pgnotifyq
import pgnotifyq.aio
import pgnotifyq.sync
from bench.support import open_database, open_server, options, report

PAYLOAD = {"n": 1, "path": "a.png"}
BARE = "insert into pgnotifyq.jobs (job_type, payload) values (%s, %s)"
Slice = Callable[[float], int]  # for so many seconds: how many were enqueued


@attrs.define
class Taken:
    """What a door's slices showed."""

    rates: list[float] = attrs.field(factory=list)  # a second
    cpu: list[float] = attrs.field(factory=list)  # microseconds of the client's, an enqueue


async def for_a_while(enqueue: Callable[[], Any], seconds: float) -> int:
    """Call something again and again."""
    count, until = 0, time.monotonic() + seconds
    while time.monotonic() < until:
        await enqueue()
        count += 1
    return count


async def on_trio(client: Any, producers: int, seconds: float) -> int:
    """Enqueue from so many tasks."""
    import trio

    counts: list[int] = []

    async def produce() -> None:
        counts.append(await for_a_while(partial(client.enqueue, "noop", PAYLOAD), seconds))

    async with trio.open_nursery() as nursery:
        for _ in range(producers):
            nursery.start_soon(produce)
    return sum(counts)


async def on_asyncio(client: Any, producers: int, seconds: float) -> int:
    """Enqueue from so many tasks."""
    ones = [for_a_while(partial(client.enqueue, "noop", PAYLOAD), seconds) for _ in range(producers)]
    return sum(await asyncio.gather(*ones))


@contextmanager
def open_awaited(backend: str, open_client: Any, produce: Any, dsn: str, producers: int) -> Iterator[Slice]:
    """Open a client on an event loop of its own."""
    with (
        start_blocking_portal(backend) as portal,
        portal.wrap_async_context_manager(open_client(dsn)) as client,
    ):
        yield lambda seconds: portal.call(produce, client, producers, seconds)


@contextmanager
def open_sync(dsn: str) -> Iterator[Slice]:
    """Open the blocking client, and enqueue from one thread."""
    with pgnotifyq.sync.open_client(dsn) as client:
        yield partial(_again, partial(client.enqueue, "noop", PAYLOAD))


@contextmanager
def open_bare(dsn: str) -> Iterator[Slice]:
    """Insert the same row by a cursor."""
    with psycopg.connect(dsn, autocommit=True, prepare_threshold=0) as connection:
        cursor = connection.cursor()
        yield partial(_again, lambda: cursor.execute(BARE, ("noop", Jsonb(PAYLOAD))))


def _again(enqueue: Callable[[], object], seconds: float) -> int:
    count, until = 0, time.monotonic() + seconds
    while time.monotonic() < until:
        enqueue()
        count += 1
    return count


def doors(dsn: str) -> dict[str, Any]:
    """Return what takes turns."""
    return {
        "trio, 1 task": open_awaited("trio", pgnotifyq.open_client, on_trio, dsn, 1),
        "aio, 1 task": open_awaited("asyncio", pgnotifyq.aio.open_client, on_asyncio, dsn, 1),
        "sync": open_sync(dsn),
        "bare insert": open_bare(dsn),
        "trio, 8 tasks": open_awaited("trio", pgnotifyq.open_client, on_trio, dsn, 8),
        "aio, 8 tasks": open_awaited("asyncio", pgnotifyq.aio.open_client, on_asyncio, dsn, 8),
    }


def main() -> None:
    """Ask the question."""
    question = "an enqueue by each door"
    asked = options(question, seconds=0.4, rounds=40)
    rounds = 6 if asked.quick else asked.rounds
    taken: dict[str, Taken] = {}
    with open_server({}) as server_dsn, open_database(server_dsn) as dsn:
        for number in range(rounds):
            for name, opened in doors(dsn).items():
                with opened as run:
                    run(0.1)  # connected, and prepared
                    cpu, began = time.process_time(), time.monotonic()
                    count = run(asked.seconds)
                    seconds, cpu = time.monotonic() - began, time.process_time() - cpu
                if number:
                    found = taken.setdefault(name, Taken())
                    found.rates.append(count / seconds)
                    found.cpu.append(1e6 * cpu / count)
    figures = {
        name: {"a_second": round(statistics.median(one.rates)), "client_us": round(statistics.median(one.cpu))}
        for name, one in taken.items()
    }

    def ratio(one: str, other: str) -> float:
        """Return the median of the rounds' ratios: two slices that lie side by side compare best."""
        return round(statistics.median(a / b for a, b in zip(taken[one].rates, taken[other].rates, strict=True)), 2)

    ratios = {
        "aio to trio, 1 task": ratio("aio, 1 task", "trio, 1 task"),
        "aio to trio, 8 tasks": ratio("aio, 8 tasks", "trio, 8 tasks"),
        "time of sync to that of a bare insert": ratio("bare insert", "sync"),
    }
    line = "; ".join(f"{name} {figure['a_second']:,}/s" for name, figure in figures.items()) + f"; {ratios}"
    report(question, line, {"doors": figures, "ratios": ratios}, asked.out)


if __name__ == "__main__":
    main()
