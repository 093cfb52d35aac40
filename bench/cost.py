"""How much CPU does a job cost that comes in: the client's process, and its sessions on the server?

No worker serves. Other work on the machine changes the CPU time of a job by a few percent, where it
changes jobs a second by a factor of two, so this is what small differences are counted in. The
server must run on this machine: what its sessions have used is read from /proc.
"""

from __future__ import annotations

import functools
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import trio

from bench.enqueue import COPY_JOBS, INSERT
from bench.support import open_database, open_server, options, report
from pgnotifyq.doors.client import open_client
from pgnotifyq.ledger.enqueue import ONE_STATEMENT_JOBS_MAX
from pgnotifyq.wire.connection import open_connection

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

# What is enqueued: tasks of one client, jobs a call.
WAYS = {
    "client, 1 task": (1, 1),
    "client, 8 tasks": (8, 1),
    "client, 10 a call": (1, 10),
    "client, bulk by statement": (1, ONE_STATEMENT_JOBS_MAX),
    "client, bulk by COPY": (1, COPY_JOBS),
}
WARM_CALLS = 10  # of each task: what is prepared, planned and read for the first time


async def by_client(dsn: str, tasks: int, jobs_a_call: int, jobs: int) -> tuple[float, float]:
    """Return microseconds a job: of the client, and of its sessions."""
    async with open_client(dsn, connections_max=tasks) as client:
        many = [{"job_type": "noop", "payload": {"n": n}} for n in range(jobs_a_call)]
        one = functools.partial(client.enqueue, "noop", {"n": 1})
        return await cost(
            dsn, one if jobs_a_call == 1 else functools.partial(client.enqueue_many, many), tasks, jobs_a_call, jobs
        )


async def by_insert(dsn: str, jobs: int) -> tuple[float, float]:
    """Do the same by an insert a job."""
    async with open_connection(dsn) as connection:
        return await cost(dsn, functools.partial(connection.execute, INSERT), 1, 1, jobs)


async def cost(
    dsn: str, enqueue: Callable[[], Awaitable[object]], tasks: int, jobs_a_call: int, jobs: int
) -> tuple[float, float]:
    """Enqueue so many jobs, and return microseconds a job."""
    calls = max(jobs // jobs_a_call // tasks, 2)

    async def run(calls: int) -> None:
        async def produce() -> None:
            for _ in range(calls):
                await enqueue()

        async with trio.open_nursery() as nursery:
            for _ in range(tasks):
                nursery.start_soon(produce)

    await run(min(WARM_CALLS, calls))
    with psycopg.connect(dsn, autocommit=True) as session:
        query = "select pid from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
        sessions = [pid for (pid,) in session.execute(query).fetchall()]
        own, theirs = time.process_time(), seconds_used(sessions)
        await run(calls)
        own, theirs = time.process_time() - own, seconds_used(sessions) - theirs
    done = calls * tasks * jobs_a_call
    return own * 1e6 / done, theirs * 1e6 / done


def seconds_used(processes: list[int]) -> float:
    """Return how much CPU some processes have used so far."""
    used = 0
    for pid in processes:
        stat = Path(f"/proc/{pid}/schedstat")
        if stat.exists():  # an autovacuum worker may have ended
            used += int(stat.read_text(encoding="ascii").split()[0])
    return used / 1e9


def main() -> None:
    """Ask the question."""
    question = "microseconds of CPU that a job costs which comes in"
    asked = options(question, runs=5, jobs=2_000)
    runs, jobs = (1, 400) if asked.quick else (asked.runs, asked.jobs)
    taken: dict[str, list[tuple[float, float]]] = {}
    with open_server() as server_dsn:
        for _ in range(runs):  # interleaved: the machine drifts
            for name, (tasks, jobs_a_call) in WAYS.items():
                with open_database(server_dsn) as dsn:
                    many = max(jobs, 5 * jobs_a_call)
                    taken.setdefault(name, []).append(trio.run(by_client, dsn, tasks, jobs_a_call, many))
            with open_database(server_dsn) as dsn:
                taken.setdefault("plain SQL", []).append(trio.run(by_insert, dsn, jobs))
    medians = {
        name: {
            side: round(statistics.median(pair[place] for pair in pairs), 1) for place, side in enumerate(("client", "server"))
        }
        for name, pairs in taken.items()
    }
    line = "; ".join(f"{name} {each['client']:g} + {each['server']:g}" for name, each in medians.items())
    report(question, f"CPU a job, client + server, us: {line}", {"cpu_us": medians}, asked.out)


if __name__ == "__main__":
    main()
