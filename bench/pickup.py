"""How soon does an idle worker start a job: from the commit, from the call, and with everything in one process?

Worker and producer are processes of one machine, and the clock is the monotonic one they share. "From the commit" begins
when the producer's statement has returned, so it can be shorter than what another session would see.
"""

from __future__ import annotations

import functools
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import psycopg
import trio

from bench.support import latencies, open_database, open_server, options, report
from pgnotifyq.client import open_client
from pgnotifyq.model.registry import JobRegistry
from pgnotifyq.runtime.worker import run_worker

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


def across_processes(dsn: str, samples: int) -> tuple[list[float], list[float]]:
    """Return milliseconds from the commit, and from the call, to the handler's start."""
    code = "from bench.pickup import work; import sys; work(sys.argv[1])"
    worker = subprocess.Popen([sys.executable, "-c", code, dsn], stdout=subprocess.PIPE, text=True)
    try:
        assert worker.stdout is not None
        worker.stdout.readline()
        from_commit, from_call = [], []
        with psycopg.connect(dsn, autocommit=True) as session:
            time.sleep(0.5)  # noqa: S311, RUF100  # the listener connects
            for job_id, called, committed in _enqueue(session, samples):
                started = _result(session, job_id)
                from_call.append((started - called) * 1000)
                from_commit.append((started - committed) * 1000)
        return from_commit, from_call
    finally:
        worker.terminate()
        worker.wait()


def _enqueue(session: psycopg.Connection[Any], samples: int) -> Iterator[tuple[Any, float, float]]:
    for _ in range(samples):
        called = time.monotonic()
        row = session.execute("select pgnotifyq.enqueue('stamp')").fetchone()
        committed = time.monotonic()
        assert row is not None
        time.sleep(PAUSE_SECONDS)
        yield row[0], called, committed


def _result(session: psycopg.Connection[Any], job_id: Any) -> float:
    while True:
        row = session.execute("select status, result from pgnotifyq.jobs where id = %s", (job_id,)).fetchone()
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
        from_commit, from_call = across_processes(dsn, samples)
        together, inserts = trio.run(in_process, dsn, samples)
    figures = {
        "from_commit": latencies(from_commit),
        "from_call": latencies(from_call),
        "in_process_from_call": latencies(together),
        "in_process_enqueue_alone": latencies(inserts),
    }
    line = "pickup: " + "; ".join(f"{name} p50 {value['p50_ms']} ms p99 {value['p99_ms']} ms" for name, value in figures.items())
    report(question, line, figures, asked.out)


if __name__ == "__main__":
    main()
