"""How many jobs a second can be enqueued: one by one from one and from eight producers while a worker serves them, and in bulk?

Producers are tasks of one process. Those of one client share statements when they come at once
(pgnotifyq/doors/gathering.py); with a client each, as producers in programs of their own have, none
do. Beside them stands plain SQL: the insert alone, from the same process, and one statement that
makes its rows itself.
"""

from __future__ import annotations

import functools
import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import trio

from bench.support import noop_registry, open_database, open_server, options, preload, report
from pgnotifyq.doors.client import open_client
from pgnotifyq.ledger.enqueue import ONE_STATEMENT_JOBS_MAX
from pgnotifyq.runtime.worker import run_worker
from pgnotifyq.wire.connection import open_connection

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

COPY_JOBS = 10_000
INSERT = "insert into pgnotifyq.jobs (job_type, payload) values ('noop', '{}')"


async def jobs_per_second(enqueue: Callable[[], Awaitable[object]], producers: int, jobs_a_call: int, seconds: float) -> float:
    """Call something from so many tasks for a while."""
    calls, began = 0, time.monotonic()

    async def produce() -> None:
        nonlocal calls
        while time.monotonic() - began < seconds:
            await enqueue()
            calls += 1

    async with trio.open_nursery() as nursery:
        for _ in range(producers):
            nursery.start_soon(produce)
    return calls * jobs_a_call / (time.monotonic() - began)


async def by_client(dsn: str, producers: int, jobs_a_call: int, seconds: float) -> float:
    """Through `client.enqueue` or `client.enqueue_many`."""
    async with open_client(dsn, connections_max=producers) as client:
        many = [{"job_type": "noop", "payload": {"n": n}} for n in range(jobs_a_call)]
        one = functools.partial(client.enqueue, "noop", {"n": 1})
        return await jobs_per_second(
            one if jobs_a_call == 1 else functools.partial(client.enqueue_many, many), producers, jobs_a_call, seconds
        )


async def by_clients(dsn: str, producers: int, jobs_a_call: int, seconds: float) -> float:
    """Through a client each."""
    rates: list[float] = []

    async def produce() -> None:
        rates.append(await by_client(dsn, 1, jobs_a_call, seconds))

    async with trio.open_nursery() as nursery:
        for _ in range(producers):
            nursery.start_soon(produce)
    return sum(rates)


async def by_insert(dsn: str, producers: int, jobs_a_call: int, seconds: float) -> float:
    """By an insert a job, each task on a connection of its own."""
    total, began = 0, time.monotonic()

    async def produce() -> None:
        nonlocal total
        async with open_connection(dsn) as connection:
            while time.monotonic() - began < seconds:
                await connection.execute(INSERT)
                total += jobs_a_call

    async with trio.open_nursery() as nursery:
        for _ in range(producers):
            nursery.start_soon(produce)
    return total / (time.monotonic() - began)


def by_one_statement(dsn: str, jobs: int) -> float:
    """By one statement for all."""
    began = time.monotonic()
    preload(dsn, jobs)
    return jobs / (time.monotonic() - began)


def work(dsn: str) -> None:
    """Be the worker that serves them; say when ready."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(functools.partial(run_worker, noop_registry(), dsn, concurrency=500))
            print("ready", flush=True)

    trio.run(main)


def main() -> None:
    """Ask the question."""
    question = "jobs enqueued a second"
    asked = options(question, seconds=3.0, runs=3, jobs=200_000)
    seconds, runs, jobs = (1.0, 1, 20_000) if asked.quick else (asked.seconds, asked.runs, asked.jobs)
    served = [(1, "client", by_client), (1, "plain SQL", by_insert)]
    served += [(8, "one client", by_client), (8, "a client each", by_clients), (8, "plain SQL", by_insert)]
    taken: dict[str, list[float]] = {}
    with open_server() as server_dsn:
        for _ in range(runs):  # interleaved: the machine drifts
            for producers, name, by in served:
                with open_database(server_dsn) as dsn:
                    rate = _served(dsn, functools.partial(by, dsn, producers, 1, seconds))
                taken.setdefault(f"{name}, {producers} producer(s), served", []).append(rate)
            for name, jobs_a_call in (("client, bulk by statement", ONE_STATEMENT_JOBS_MAX), ("client, bulk by COPY", COPY_JOBS)):
                with open_database(server_dsn) as dsn:
                    taken.setdefault(name, []).append(trio.run(by_client, dsn, 1, jobs_a_call, seconds))
            with open_database(server_dsn) as dsn:
                taken.setdefault("plain SQL, one statement", []).append(by_one_statement(dsn, jobs))
    medians = {name: round(statistics.median(rates)) for name, rates in taken.items()}
    line = "enqueue, jobs/s: " + "; ".join(f"{name} {rate:,}" for name, rate in medians.items())
    report(question, line, {"jobs_per_second": medians}, asked.out)


def _served(dsn: str, enqueue: Callable[[], Awaitable[float]]) -> float:
    code = "from bench.enqueue import work; import sys; work(sys.argv[1])"
    worker = subprocess.Popen([sys.executable, "-c", code, dsn], stdout=subprocess.PIPE, text=True)
    try:
        assert worker.stdout is not None
        worker.stdout.readline()
        return trio.run(enqueue)
    finally:
        worker.terminate()
        worker.wait()


if __name__ == "__main__":
    main()
