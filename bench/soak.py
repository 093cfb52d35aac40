"""Does it stay as it began? A million jobs at a steady rate with one worker: pick-up by tenths, sizes and dead tuples over time.

Eight hours compressed into four minutes: the rate is a hundred times that of 35 jobs/s, and what comes round by itself comes round
faster too, as far as PostgreSQL lets it: finished jobs are kept for seconds, pruned every second, vacuumed every second instead of
every minute, and checkpoints come each 30 s instead of five minutes. So the first tenth has seen all of it, as the first of
eight hours would. Where a server is given, it stays as it is set.
"""

from __future__ import annotations

import array
import functools
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psycopg
import trio

from bench.support import open_database, open_server, options, percentile, report
from pgnotifyq.doors.client import open_client
from pgnotifyq.model.registry import JobRegistry
from pgnotifyq.runtime import pruner
from pgnotifyq.runtime.worker import run_worker

TICK_SECONDS = 0.02  # of the producer: what is due of the rate goes in one call
PRUNE_EVERY_SECONDS = 1.0
SETTINGS = {"autovacuum_naptime": "1s", "checkpoint_timeout": "30s"}  # the least that PostgreSQL takes
TENTHS = 10
LAST_SECONDS_MAX = 60.0  # for the worker to catch up when the last job is in

SIZES = """
select pg_table_size('pgnotifyq.jobs'), pg_indexes_size('pgnotifyq.jobs'), pg_total_relation_size('pgnotifyq.job_executions'),
    (select n_dead_tup from pg_stat_user_tables where relid = 'pgnotifyq.jobs'::regclass),
    (select n_live_tup from pg_stat_user_tables where relid = 'pgnotifyq.jobs'::regclass)
"""
SIZE_NAMES = ("jobs_bytes", "jobs_indexes_bytes", "executions_bytes", "dead_tuples", "live_tuples")


def work(dsn: str, file: str, retention_seconds: float) -> None:
    """Be the worker process: note how long each job took from its enqueue's call to its handler; write it down when told to stop."""
    pruner.EVERY_SECONDS = PRUNE_EVERY_SECONDS
    registry = JobRegistry()
    taken = array.array("d")

    @registry.handler("stamp")
    async def stamp(payload: dict[str, Any]) -> None:
        taken.append((time.monotonic() - payload["t"]) * 1000)

    async def main() -> None:
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            async with trio.open_nursery() as nursery:
                start = functools.partial(run_worker, registry, dsn, concurrency=500, retention_seconds=retention_seconds)
                handle = await nursery.start(start)
                print("ready", flush=True)
                await anext(signals)
                handle.drain()

    trio.run(main)
    Path(file).write_bytes(taken.tobytes())


async def produce(dsn: str, jobs: int, rate: float) -> list[dict[str, Any]]:
    """Enqueue at a steady rate, whatever the worker does; return sizes after each tenth."""
    sizes, began, enqueued = [], time.monotonic(), 0
    async with open_client(dsn) as client:
        for tenth in range(1, TENTHS + 1):
            while enqueued < jobs * tenth // TENTHS:
                due = min(jobs * tenth // TENTHS, int((time.monotonic() - began + TICK_SECONDS) * rate)) - enqueued
                if due > 0:
                    await client.enqueue_many([{"job_type": "stamp", "payload": {"t": time.monotonic()}}] * due)
                    enqueued += due
                await trio.sleep(TICK_SECONDS)
            sizes.append(await trio.to_thread.run_sync(_sizes, dsn))
    return sizes


def _sizes(dsn: str) -> dict[str, Any]:
    with psycopg.connect(dsn, autocommit=True) as session:
        row = session.execute(SIZES).fetchone()
        assert row is not None
        return dict(zip(SIZE_NAMES, row, strict=True))


def _caught_up(dsn: str) -> None:
    deadline = time.monotonic() + LAST_SECONDS_MAX
    with psycopg.connect(dsn, autocommit=True) as session:
        while time.monotonic() < deadline:
            row = session.execute(
                "select exists (select from pgnotifyq.jobs where is_claimable) or exists (select from pgnotifyq.jobs where is_held)"
            ).fetchone()
            if row == (False,):
                return
            time.sleep(0.1)


def main() -> None:
    """Ask the question."""
    question = "pick-up by tenths, sizes and dead tuples of a million jobs at a steady rate"
    asked = options(question, jobs=1_000_000, rate=4_000.0, retention_seconds=5.0)
    jobs = asked.jobs // 20 if asked.quick else asked.jobs
    retention_seconds = asked.retention_seconds / 5 if asked.quick else asked.retention_seconds
    code = "from bench.soak import work; import sys; work(sys.argv[1], sys.argv[2], float(sys.argv[3]))"
    with open_server(SETTINGS) as server_dsn, open_database(server_dsn) as dsn, tempfile.TemporaryDirectory() as folder:
        notes = Path(folder) / "taken"
        command = [sys.executable, "-c", code, dsn, str(notes), str(retention_seconds)]
        worker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert worker.stdout is not None
            worker.stdout.readline()
            sizes = trio.run(produce, dsn, jobs, asked.rate)
            _caught_up(dsn)
        finally:
            worker.terminate()
            worker.wait()
        taken = array.array("d", notes.read_bytes())
    share = len(taken) // TENTHS
    tenths = [taken[share * index : share * (index + 1)] for index in range(TENTHS)]
    p50 = [round(percentile(tenth, 0.5), 2) for tenth in tenths]
    p99 = [round(percentile(tenth, 0.99), 2) for tenth in tenths]
    most_dead = max(size["dead_tuples"] for size in sizes)
    figures = {
        "jobs": jobs, "finished": len(taken), "rate": asked.rate, "p50_ms_by_tenth": p50, "p99_ms_by_tenth": p99,
        "ratio": round(p99[-1] / p99[0], 3), "by_tenth": sizes,
    }  # fmt: skip
    line = (
        f"soak: {len(taken):,} of {jobs:,} jobs at {asked.rate:,.0f}/s; pick-up p99 {p99[0]} ms in the first tenth, {p99[-1]} ms in the "
        f"last ({figures['ratio']} x); jobs table {sizes[TENTHS // 2]['jobs_bytes'] >> 20} MiB half-way, "
        f"{sizes[-1]['jobs_bytes'] >> 20} MiB at the end; at most {most_dead:,} dead tuples"
    )
    report(question, line, figures, asked.out)


if __name__ == "__main__":
    main()
