"""What does a batch save? Jobs one by one and in batches, where a call takes a while, and where it takes none.

`python -m bench batches [--quick]`. One worker in this process; the jobs wait when it starts.
"""

from __future__ import annotations

import functools
import statistics
from typing import Any

import trio

from bench.support import open_database, open_server, options, report
from pgnotifyq import BatchItem, JobRegistry, NewJob, run_worker
from pgnotifyq.doors.client import open_client
from pgnotifyq.wire.connection import open_connection

SIZE = 100
SLOTS = 250
CALL_SECONDS = 0.005  # of a call that goes elsewhere: a model's, an API's


async def rate(dsn: str, jobs: int, size: int | None, call_seconds: float) -> float:
    """Return jobs a second."""
    registry = JobRegistry()
    one_at_a_time = trio.Lock()  # as a model on one device has it

    async def call() -> None:
        if call_seconds:
            async with one_at_a_time:
                await trio.sleep(call_seconds)

    if size is None:

        @registry.handler("embed")
        async def embed(_: dict[str, Any]) -> None:
            await call()
    else:

        @registry.handler("embed", batch_size=size)
        async def embed_many(_: list[BatchItem[dict[str, Any]]]) -> None:
            await call()

    async with open_connection(dsn) as connection:
        await connection.execute("truncate pgnotifyq.jobs, pgnotifyq.job_executions")
        async with open_client(dsn) as client, trio.open_nursery() as nursery:
            await client.enqueue_many([NewJob(job_type="embed", payload={})] * jobs)
            began = trio.current_time()
            handle = await nursery.start(functools.partial(run_worker, registry, dsn, concurrency=SLOTS))
            while True:
                cursor = await connection.execute("select count(*) from pgnotifyq.job_executions")
                if (await cursor.fetchone()) == (jobs,):
                    break
                await trio.sleep(0.02)
            seconds = trio.current_time() - began
            handle.drain()
    return jobs / seconds


def main() -> None:
    """Ask the question."""
    question = "jobs/s, one by one and in batches"
    asked = options(question, jobs=10_000, runs=3)
    jobs, runs = (asked.jobs // 10, 1) if asked.quick else (asked.jobs, asked.runs)
    figures: dict[str, Any] = {"jobs": jobs, "batch_size": SIZE, "slots": SLOTS, "call_seconds": CALL_SECONDS}
    lines = []
    with open_server() as server_dsn, open_database(server_dsn) as dsn:
        for name, seconds, count in (("no-op", 0.0, jobs), ("call", CALL_SECONDS, jobs // 10)):
            for way, size in (("one by one", None), ("batches", SIZE)):
                many = count if size is None else jobs
                median = statistics.median(trio.run(rate, dsn, many, size, seconds) for _ in range(runs))
                figures[f"{name}, {way}"] = round(median)
                lines.append(f"{name}, {way}: {median:,.0f} jobs/s")
    report(question, "; ".join(lines), figures, asked.out)


if __name__ == "__main__":
    main()
