"""How soon does an idle worker start a job: from the commit, from the call, and with everything in one process?

Worker and producer are processes of one machine, and the clock is the monotonic one they share. "From the commit" begins
when the producer's statement has returned, so it can be shorter than what another session would see.

The floor is the least that the same tools can do: a trigger that notifies, a task on the same trio that listens, and one plain
`update ... returning` of a table of three columns. No order, no lease, no fence, no tenant, nobody else.
"""

from __future__ import annotations

import functools
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import attrs
import psycopg
import trio

from bench.support import latencies, open_database, open_server, options, report
from pgnotifyq.doors.client import open_client
from pgnotifyq.model.registry import JobRegistry
from pgnotifyq.runtime.worker import run_worker
from pgnotifyq.wire.connection import open_connection
from pgnotifyq.wire.notifications import listen, wait_notifications

if TYPE_CHECKING:
    from collections.abc import Iterator

PAUSE_SECONDS = 0.02  # between jobs: the worker is idle again


def registry() -> JobRegistry:
    """Return a registry whose handler says when it started."""
    made = JobRegistry()

    @made.handler("stamp")
    async def stamp(payload: dict[str, Any]) -> float:  # noqa: ARG001
        return time.monotonic()

    return made


def work(dsn: str) -> None:
    """Be the worker process; say when ready."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(functools.partial(run_worker, registry(), dsn, concurrency=10))
            print("ready", flush=True)

    trio.run(main)


@attrs.frozen
class Way:
    """A way to get a job started: who works, and the statements to enqueue one and to see that it started, and when."""

    work: str  # a function of this file
    enqueue: str
    result: str


OURS = Way(
    work="work",
    enqueue="select pgnotifyq.enqueue('stamp')",
    result="select status, result from pgnotifyq.jobs where id = %s",
)
FLOOR = Way(
    work="work_on_floor",
    enqueue="insert into floor default values returning id",
    result="select status, result from floor where id = %s",
)
FLOOR_TABLE = """
create table floor (id bigint generated always as identity primary key, status text not null default 'pending', result double precision);
create index on floor (id) where status = 'pending';
create function floor_notify() returns trigger language plpgsql as 'begin perform pg_notify(''floor'', null); return null; end';
create trigger floor_notify after insert on floor for each statement execute function floor_notify();
"""
FLOOR_CLAIM = """
update floor set status = 'running'
where id = (select id from floor where status = 'pending' order by id for update skip locked limit 1)
returning id
"""


def work_on_floor(dsn: str) -> None:
    """Be the least worker there can be; say when ready."""

    async def main() -> None:
        async with open_connection(dsn) as ear, open_connection(dsn, prepare_threshold=0) as hand:
            await listen(ear, "floor")
            await hand.execute("set synchronous_commit = off")
            print("ready", flush=True)
            while True:
                await wait_notifications(ear)
                row = await (await hand.execute(FLOOR_CLAIM)).fetchone()
                started = time.monotonic()
                if row is not None:
                    await hand.execute("update floor set status = 'completed', result = %s where id = %s", (started, row[0]))

    trio.run(main)


def across_processes(dsn: str, samples: int, way: Way) -> tuple[list[float], list[float]]:
    """Return milliseconds from the commit, and from the call, to the handler's start."""
    code = f"from bench.pickup import {way.work} as work; import sys; work(sys.argv[1])"
    worker = subprocess.Popen([sys.executable, "-c", code, dsn], stdout=subprocess.PIPE, text=True)
    try:
        assert worker.stdout is not None
        worker.stdout.readline()
        from_commit, from_call = [], []
        with psycopg.connect(dsn, autocommit=True) as session:
            time.sleep(0.5)  # noqa: S311, RUF100  # the listener connects
            for job_id, called, committed in _enqueue(session, samples, way):
                started = _result(session, job_id, way)
                from_call.append((started - called) * 1000)
                from_commit.append((started - committed) * 1000)
        return from_commit, from_call
    finally:
        worker.terminate()
        worker.wait()


def _enqueue(session: psycopg.Connection[Any], samples: int, way: Way) -> Iterator[tuple[Any, float, float]]:
    for _ in range(samples):
        called = time.monotonic()
        row = session.execute(way.enqueue).fetchone()
        committed = time.monotonic()
        assert row is not None
        time.sleep(PAUSE_SECONDS)
        yield row[0], called, committed


def _result(session: psycopg.Connection[Any], job_id: Any, way: Way) -> float:
    while True:
        row = session.execute(way.result, (job_id,)).fetchone()
        assert row is not None
        if row[0] == "completed":
            return float(row[1])
        time.sleep(PAUSE_SECONDS)


async def in_process(dsn: str, samples: int) -> tuple[list[float], list[float]]:
    """Return milliseconds from the call to the handler's start, and of the enqueue alone, in one program."""
    taken, inserts = [], []
    async with trio.open_nursery() as nursery, open_client(dsn) as client:
        handle = await nursery.start(functools.partial(run_worker, registry(), dsn, concurrency=10))
        await trio.sleep(0.5)
        for _ in range(samples):
            called = time.monotonic()
            job_id = await client.enqueue("stamp")
            inserts.append((time.monotonic() - called) * 1000)
            job = await client.wait(job_id, timeout_seconds=60)
            taken.append((float(job.result) - called) * 1000)
            await trio.sleep(PAUSE_SECONDS)
        handle.drain()
    return taken, inserts


def main() -> None:
    """Ask the question."""
    question = "milliseconds until an idle worker starts a job"
    asked = options(question, samples=1000)
    samples = asked.samples // 10 if asked.quick else asked.samples
    with open_server() as server_dsn, open_database(server_dsn) as dsn:
        from_commit, from_call = across_processes(dsn, samples, OURS)
        with psycopg.connect(dsn, autocommit=True) as session:
            session.execute(FLOOR_TABLE)
        floor, _ = across_processes(dsn, samples, FLOOR)
        together, inserts = trio.run(in_process, dsn, samples)
    figures = {
        "from_commit": latencies(from_commit),
        "floor_from_commit": latencies(floor),
        "from_call": latencies(from_call),
        "in_process_from_call": latencies(together),
        "in_process_enqueue_alone": latencies(inserts),
    }
    line = "pickup: " + "; ".join(f"{name} p50 {value['p50_ms']} ms p99 {value['p99_ms']} ms" for name, value in figures.items())
    report(question, line, figures, asked.out)


if __name__ == "__main__":
    main()
