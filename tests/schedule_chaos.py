"""Schedules under kill -9 and restarts of the server: each tick has its job once. `python -m tests.schedule_chaos`.

Workers enqueue the jobs of many schedules, each of which ticks once a second and makes up for all that it missed. Every other
second a worker is killed and started again; once a minute the server is restarted, fast and immediate in turn. At the end the
schedules are paused, and the jobs are compared with the ticks that a clock gives: none is missing, and none is there twice.
The exit code is the verdict.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import psycopg
import trio

from pgnotifyq import JobContext, JobRegistry
from pgnotifyq.embedded import open_temporary_server
from pgnotifyq.migrating import migrate
from pgnotifyq.wire.connection import open_connection

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pgnotifyq.embedded import TemporaryServer

ROOT = Path(__file__).parents[1]
KILL_SECONDS = 2.0
RESTART_SECONDS = 60.0
PATIENCE_SECONDS = 60.0  # for the workers to make up for all, at the end

registry = JobRegistry()


@registry.handler
async def tick(payload: Any, ctx: JobContext) -> None:
    """Do nothing; a job without its tick fails."""
    assert ctx.scheduled_for is not None


@attrs.frozen(kw_only=True)
class Verdict:
    """What a run has shown."""

    ticks: int  # that the clock gives
    jobs: int
    missing: int
    twice: int
    kills: int
    restarts: int
    late_p50_ms: float
    late_p99_ms: float

    @property
    def is_green(self) -> bool:
        """Whether each tick has its job once, and something was done to the workers."""
        return self.ticks > 0 and not self.missing and not self.twice and self.kills > 0


@attrs.define(eq=False)
class Crew:
    """Worker processes, each in its place."""

    dsn: str
    processes: list[subprocess.Popen[bytes]] = attrs.field(factory=list)

    def start(self) -> subprocess.Popen[bytes]:
        """Start a worker."""
        command = [
            sys.executable, "-m", "pgnotifyq", "worker", "--app", "tests.schedule_chaos:registry", "--dsn", self.dsn,
            "--concurrency", "20", "--quiet",
        ]  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def kill(self, place: int) -> None:
        """Kill a worker, and start another in its place."""
        self.processes[place].kill()
        self.processes[place].wait()
        self.processes[place] = self.start()

    def revive(self) -> None:
        """Start those again that have ended by themselves: they found no server."""
        for place, process in enumerate(self.processes):
            if process.poll() is not None:
                self.processes[place] = self.start()


@contextmanager
def open_crew(dsn: str, workers: int) -> Iterator[Crew]:
    """Start workers, and kill them at the end."""
    crew = Crew(dsn)
    try:
        crew.processes += [crew.start() for _ in range(workers)]
        yield crew
    finally:
        for process in crew.processes:
            process.kill()
            process.wait()


def ask(dsn: str, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
    """Ask the server, which may be on its way back."""
    gives_up_at = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            with psycopg.connect(dsn, autocommit=True) as session:
                cursor = session.execute(statement.encode(), parameters or None)
                return cursor.fetchall() if cursor.description is not None else []
        except psycopg.OperationalError:
            if time.monotonic() > gives_up_at:
                raise
            time.sleep(0.1)


def run(*, minutes: float, workers: int, schedules: int, seed: int, restart_seconds: float = RESTART_SECONDS) -> Verdict:
    """Let it happen, and judge."""
    chance = random.Random(seed)
    kills = restarts = 0
    with ExitStack() as stack:
        server: TemporaryServer = stack.enter_context(open_temporary_server(settings={"max_connections": "200"}))
        trio.run(_migrate, server.dsn)
        crew = stack.enter_context(open_crew(server.dsn, workers))
        ask(
            server.dsn,
            "select pgnotifyq.schedule('s' || n, 'every 1s', 'tick', missed => 'all', overlap => 'allow')"
            " from generate_series(1, %s) as n",
            schedules,
        )
        started_at = time.monotonic()
        ask_until(server.dsn, "bool_and(last_at is not null) from pgnotifyq.schedules")
        restart_at = time.monotonic() + restart_seconds
        ends_at = started_at + 60.0 * minutes
        while time.monotonic() < ends_at:
            time.sleep(KILL_SECONDS)
            crew.kill(chance.randrange(workers))
            crew.revive()
            kills += 1
            if time.monotonic() >= restart_at:
                server.restart(("fast", "immediate")[restarts % 2])
                restarts += 1
                restart_at = time.monotonic() + restart_seconds
        # All is quiet now; what was missed is made up for.
        ask_until(server.dsn, "bool_and(last_at > clock_timestamp() - interval '2 s') from pgnotifyq.schedules")
        ask(server.dsn, "update pgnotifyq.schedules set paused_at = clock_timestamp()")
        return judge(server.dsn, kills=kills, restarts=restarts)


async def _migrate(dsn: str) -> None:
    async with open_connection(dsn) as connection:
        await migrate(connection)


def ask_until(dsn: str, condition: str) -> None:
    """Wait until a condition holds."""
    gives_up_at = time.monotonic() + PATIENCE_SECONDS
    while ask(dsn, f"select {condition}") != [(True,)]:
        if time.monotonic() > gives_up_at:
            raise TimeoutError(f"it never came true: {condition}")
        time.sleep(0.2)


# How late a job is that was claimed once. Its `created_at` says nothing: that is the tick, if a worker came ahead of it.
JOBS = """
select headers #>> '{pgnotifyq_schedule,name}', (headers #>> '{pgnotifyq_schedule,tick}')::timestamptz,
    case when attempts = 1 then started_at end
from pgnotifyq.jobs
union all
select headers #>> '{pgnotifyq_schedule,name}', (headers #>> '{pgnotifyq_schedule,tick}')::timestamptz, null
from pgnotifyq.dead_letter_jobs
"""


def judge(dsn: str, *, kills: int, restarts: int) -> Verdict:
    """Compare the jobs with the ticks that the clock gives."""
    found = Counter[tuple[str, datetime]]()
    late: list[float] = []
    for name, at, started_at in ask(dsn, JOBS):
        found[name, at.astimezone(UTC)] += 1
        if started_at is not None:
            late.append((started_at - at).total_seconds() * 1000)
    wanted: set[tuple[str, datetime]] = set()
    for name, created_at, last_at in ask(dsn, "select name, created_at, last_at from pgnotifyq.schedules"):
        at = created_at.astimezone(UTC).replace(microsecond=0) + timedelta(seconds=1)
        while at <= last_at:
            wanted.add((name, at))
            at += timedelta(seconds=1)
    late = sorted(late) or [0.0]
    return Verdict(
        ticks=len(wanted),
        jobs=found.total(),
        missing=len(wanted - found.keys()),
        twice=found.total() - len(wanted & found.keys()),
        kills=kills,
        restarts=restarts,
        late_p50_ms=round(late[len(late) // 2], 1),
        late_p99_ms=round(late[int(len(late) * 0.99)], 1),
    )


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--schedules", type=int, default=50, help="each ticks once a second")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    verdict = run(minutes=given.minutes, workers=given.workers, schedules=given.schedules, seed=given.seed)
    print(verdict)
    print("green" if verdict.is_green else "red")
    return 0 if verdict.is_green else 1


if __name__ == "__main__":
    sys.exit(main())
