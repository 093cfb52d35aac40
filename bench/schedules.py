"""How late is a schedule's job, and what do schedules cost a worker that is idle?

Late: from the tick, by the machine's clock, to the first line of the handler. Schedules tick once a second; workers are processes.
Idle: statements that one worker sends in a while, without schedules and with a thousand daily ones; but for its listener's proofs,
which are alike.
"""

from __future__ import annotations

import functools
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
import trio

from bench.support import latencies, open_database, open_server, options, report
from pgnotifyq.model.registry import JobRegistry
from pgnotifyq.runtime.link import Link
from pgnotifyq.runtime.worker import run_worker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pgnotifyq.runtime.context import JobContext

SETTLE_SECONDS = 5.0  # for a worker to fall asleep
LONG_AGO_HOURS = 2  # when the daily schedules have their tick


def registry() -> JobRegistry:
    """Return a registry whose handler says how late it is, in milliseconds."""
    made = JobRegistry()

    @made.handler("stamp")
    async def stamp(payload: dict[str, Any], ctx: JobContext) -> float:  # noqa: ARG001
        now = time.time()
        assert ctx.scheduled_for is not None
        return (now - ctx.scheduled_for.timestamp()) * 1000

    return made


def work(dsn: str) -> None:
    """Be a worker process; say when ready."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(functools.partial(run_worker, registry(), dsn, concurrency=20))
            print("ready", flush=True)

    trio.run(main)


def lateness(dsn: str, *, workers: int, schedules: int, seconds: int) -> list[float]:
    """Return how late each job began, in milliseconds."""
    code = "from bench.schedules import work; import sys; work(sys.argv[1])"
    started = [subprocess.Popen([sys.executable, "-c", code, dsn], stdout=subprocess.PIPE, text=True) for _ in range(workers)]
    try:
        for process in started:
            assert process.stdout is not None
            process.stdout.readline()
        time.sleep(1.0)
        with psycopg.connect(dsn, autocommit=True) as session:
            session.execute(
                "select pgnotifyq.schedule('s' || n, 'every 1s', 'stamp', overlap => 'allow', missed => 'all') from generate_series(1, %s) as n",
                (schedules,),
            )
            time.sleep(2.0)
            session.execute("truncate pgnotifyq.jobs")
            time.sleep(float(seconds))
            session.execute("delete from pgnotifyq.schedules")
            time.sleep(1.0)
            rows = session.execute("select (result #>> '{}')::float8 from pgnotifyq.jobs where status = 'completed'").fetchall()
            session.execute("truncate pgnotifyq.jobs")
        return [late for (late,) in rows]
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait()


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Count what a worker of this process asks, by the connection that it asks over."""
    asked = Counter[str]()
    attempt = Link.attempt

    async def note(link: Any, *given: Any, **said: Any) -> Any:
        asked[link._name] += 1  # noqa: SLF001  # for a look
        return await attempt(link, *given, **said)

    Link.attempt = note  # type: ignore[assignment]
    try:
        yield asked
    finally:
        Link.attempt = attempt  # type: ignore[method-assign]


async def idle(dsn: str, *, schedules: int, seconds: float) -> int:
    """Return how many statements an idle worker sends, but for its listener's proofs."""
    async with trio.open_nursery() as nursery:
        handle = await nursery.start(functools.partial(run_worker, registry(), dsn, concurrency=10))
        with psycopg.connect(dsn, autocommit=True) as session, counted() as asked:
            session.execute(
                "insert into pgnotifyq.schedules (name, rule, job_type) select 'd' || n,"
                " (n %% 60) || ' ' || extract(hour from now() at time zone 'UTC' - %s * interval '1 hour') || ' * * *', 'stamp'"
                " from generate_series(1, %s) as n",
                (LONG_AGO_HOURS, schedules),
            )
            await trio.sleep(SETTLE_SECONDS)
            asked.clear()
            await trio.sleep(seconds)
            statements = asked.total()
            session.execute("delete from pgnotifyq.schedules")
        handle.drain()
    return statements


def main() -> None:
    """Ask the question."""
    question = "milliseconds from a schedule's tick to its handler, and statements of an idle worker"
    asked = options(question, seconds=100)
    seconds = asked.seconds // 10 if asked.quick else asked.seconds
    with open_server() as server_dsn, open_database(server_dsn) as dsn:
        one = lateness(dsn, workers=1, schedules=1, seconds=seconds)
        many = lateness(dsn, workers=4, schedules=1, seconds=seconds)
        crowd = lateness(dsn, workers=4, schedules=50, seconds=max(seconds // 5, 5))
        without = trio.run(functools.partial(idle, dsn, schedules=0, seconds=seconds / 2))
        with_them = trio.run(functools.partial(idle, dsn, schedules=1000, seconds=seconds / 2))
    figures = {
        "late_one_worker": latencies(one),
        "late_four_workers": latencies(many),
        "late_fifty_at_once": latencies(crowd),
        "idle_statements": {"without": without, "with_1000_daily": with_them, "seconds": seconds / 2},
    }
    line = "; ".join(
        f"{name} p50 {value['p50_ms']} ms p99 {value['p99_ms']} ms" for name, value in figures.items() if "p50_ms" in value
    )
    report(question, f"schedules: {line}; idle {without} and {with_them} statements", figures, asked.out)


if __name__ == "__main__":
    main()
