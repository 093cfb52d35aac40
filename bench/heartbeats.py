"""What do many long jobs cost? 10,000 that sleep 10 s, 2,000 at once in one process: heartbeats, leases lost, lag of the event loop.

Asked twice: with the default lease of a minute, under which a job of ten seconds needs no renewal, and with one so short that every
job is renewed a few times.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import time
from typing import Any

import psycopg
import trio

from bench.support import open_database, open_server, options, percentile, preload, report
from pgnotifyq.model.config import LEASE_SECONDS_DEFAULT
from pgnotifyq.model.events import Event, EventName
from pgnotifyq.model.registry import JobRegistry
from pgnotifyq.runtime.worker import run_worker

SHORT_LEASE_SECONDS = 9.0
TICK_SECONDS = 0.01  # how late a task wakes from this is the lag
LOOK_SECONDS = 0.5

HEARTBEATS = (
    "select coalesce(sum(calls), 0)::int from pg_stat_user_functions where schemaname = 'pgnotifyq' and funcname = 'heartbeat'"
)
LOST = "select count(*) from pgnotifyq.job_executions where outcome = 'lost'"
FINISHED = "select count(*) from pgnotifyq.jobs where status = 'completed' and attempts = 1"


def work(dsn: str, jobs: int, sleep_seconds: float, concurrency: int, lease_seconds: float) -> None:
    """Be the worker process: run all jobs, then print what it saw."""
    registry = JobRegistry()
    lags: list[float] = []
    ended = lost = 0

    @registry.handler("sleep")
    async def sleep(payload: dict[str, Any]) -> None:  # noqa: ARG001
        nonlocal ended
        await trio.sleep(sleep_seconds)
        ended += 1

    def hear(event: Event) -> None:
        nonlocal lost
        lost += event.name == EventName.LEASE_LOST

    async def feel() -> None:
        while True:
            due = time.monotonic() + TICK_SECONDS
            await trio.sleep(TICK_SECONDS)
            lags.append((time.monotonic() - due) * 1000)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            start = functools.partial(
                run_worker, registry, dsn, concurrency=concurrency, lease_seconds=lease_seconds, on_event=hear
            )
            handle = await nursery.start(start)
            async with trio.open_nursery() as beside:
                beside.start_soon(feel)
                while ended < jobs:  # noqa: ASYNC110  # nothing to wait on: the handlers are to be as they are in use
                    await trio.sleep(LOOK_SECONDS)
                beside.cancel_scope.cancel()
            handle.drain()

    began = time.monotonic()
    trio.run(main)
    seconds = time.monotonic() - began
    told = {"seconds": seconds, "lost_events": lost, "lag_p99_ms": percentile(lags, 0.99), "lag_max_ms": max(lags)}
    print(json.dumps(told))


def ask(server_dsn: str, jobs: int, sleep_seconds: float, concurrency: int, lease_seconds: float) -> dict[str, Any]:
    """Return what one run cost."""
    with open_database(server_dsn) as dsn:
        preload(dsn, jobs, job_type="sleep")
        code = "from bench.heartbeats import work; import sys; work(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5]))"
        arguments = [dsn, str(jobs), str(sleep_seconds), str(concurrency), str(lease_seconds)]
        done = subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True)
        told: dict[str, Any] = json.loads(done.stdout)
        with psycopg.connect(dsn, autocommit=True) as session:
            (beats,), (lost,), (finished,) = (session.execute(asked).fetchone() or (0,) for asked in (HEARTBEATS, LOST, FINISHED))
    return {
        "lease_seconds": lease_seconds,
        "heartbeats_per_second": round(beats / told["seconds"], 2),
        "leases_lost": max(lost, told["lost_events"]),
        "finished_at_the_first_attempt": finished,
        "lag_p99_ms": round(told["lag_p99_ms"], 2),
        "lag_max_ms": round(told["lag_max_ms"], 2),
        "seconds": round(told["seconds"], 1),
    }


def main() -> None:
    """Ask the question."""
    question = "heartbeats/s, leases lost and loop lag of one process with many jobs that sleep"
    asked = options(question, jobs=10_000, sleep_seconds=10.0, concurrency=2_000)
    jobs = asked.jobs // 5 if asked.quick else asked.jobs
    with open_server() as server_dsn:
        runs = [
            ask(server_dsn, jobs, asked.sleep_seconds, asked.concurrency, lease_seconds)
            for lease_seconds in (LEASE_SECONDS_DEFAULT, SHORT_LEASE_SECONDS)
        ]
    told = "; ".join(
        f"lease {run['lease_seconds']:g} s: {run['heartbeats_per_second']} heartbeats/s, {run['leases_lost']} leases lost, "
        f"loop lag p99 {run['lag_p99_ms']} ms"
        for run in runs
    )
    report(question, f"heartbeats: {told}", {"jobs": jobs, "concurrency": asked.concurrency, "runs": runs}, asked.out)


if __name__ == "__main__":
    main()
