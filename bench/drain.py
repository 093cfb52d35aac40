"""How many no-op jobs a second does a worker finish, audit rows on, outcomes durable?

Jobs are there before the worker starts. Counted from the first claim to the last completion, by the database's clock.
"""

from __future__ import annotations

import functools
import statistics
import subprocess
import sys

import psycopg
import trio

from bench.support import noop_registry, open_database, open_server, options, preload, report
from pgnotifyq.cli.worker import spare_the_collector
from pgnotifyq.runtime.worker import run_worker

LOOK_SECONDS = 0.05


def drain(server_dsn: str, jobs: int, concurrency: int, processes: int, extra: str = "") -> float:
    """Return jobs a second for one run in a fresh database."""
    with open_database(server_dsn) as dsn:
        preload(dsn, jobs)
        if extra:
            with psycopg.connect(dsn, autocommit=True) as session:
                session.execute(extra)
        code = "from bench.drain import work; import sys; work(sys.argv[1], int(sys.argv[2]))"
        workers = [subprocess.Popen([sys.executable, "-c", code, dsn, str(concurrency)]) for _ in range(processes)]
        if any(worker.wait() for worker in workers):
            raise RuntimeError("a worker failed")
        with psycopg.connect(dsn) as session:
            row = session.execute(
                "select count(*), extract(epoch from max(completed_at) - min(started_at))::float8 "
                "from pgnotifyq.jobs where job_type = 'noop' and status = 'completed' and started_at is not null"
            ).fetchone()
        assert row is not None
        assert row[0] == jobs, f"{row[0]} of {jobs} completed"
        return jobs / float(row[1])


def work(dsn: str, concurrency: int) -> None:
    """Be one worker process: run until nothing is due."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            handle = await nursery.start(functools.partial(run_worker, noop_registry(), dsn, concurrency=concurrency))
            while True:
                await trio.sleep(LOOK_SECONDS)
                if await trio.to_thread.run_sync(_is_dry, dsn):
                    break
            handle.drain()

    spare_the_collector()
    trio.run(main)


def _is_dry(dsn: str) -> bool:
    with psycopg.connect(dsn) as session:
        row = session.execute(
            "select not exists (select from pgnotifyq.jobs where is_claimable and queue_name = 'default') "
            "and not exists (select from pgnotifyq.jobs where is_held)"
        ).fetchone()
        return bool(row and row[0])


def main() -> None:
    """Ask the question."""
    question = "jobs/s, no-op handler, preloaded queue"
    asked = options(question, jobs=100_000, concurrency=500, processes=1, runs=3)
    jobs, runs = (asked.jobs // 10, 1) if asked.quick else (asked.jobs, asked.runs)
    with open_server() as server_dsn:
        rates = [drain(server_dsn, jobs, asked.concurrency, asked.processes) for _ in range(runs)]
    median = statistics.median(rates)
    figures = {
        "jobs_per_second": round(median),
        "runs": [round(rate) for rate in rates],
        "jobs": jobs,
        "concurrency": asked.concurrency,
        "processes": asked.processes,
    }
    line = (
        f"drain: {median:,.0f} jobs/s ({jobs:,} jobs, {asked.concurrency} slots, {asked.processes} process(es), median of {runs})"
    )
    report(question, line, figures, asked.out)


if __name__ == "__main__":
    main()
