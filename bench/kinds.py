"""How soon does a handler of each kind stop: after a plain status update, at its timeout, when its lease is lost?

What does a no-op of each kind cost, and do 10,000 on asyncio wait at once in one worker?
A handler in a process is stopped when its process is gone: the kernel says when, by a pidfd.
"""

from __future__ import annotations

import asyncio
import os
import select
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import psycopg
import trio

from bench.support import latencies, open_database, open_server, options, report
from pgnotifyq import JobContext
from pgnotifyq.ledger.claimed import ClaimedJob
from pgnotifyq.model.events import EventName
from pgnotifyq.model.job import NIL_ORG
from pgnotifyq.model.registry import JobRegistry
from pgnotifyq.runtime.asyncio_loop import open_loop
from pgnotifyq.runtime.deadlines import Deadlines
from pgnotifyq.runtime.executor import Executor
from pgnotifyq.runtime.processes import Processes
from pgnotifyq.runtime.running import Running
from pgnotifyq.runtime.worker import run_worker
from pgnotifyq.testing import alone

if TYPE_CHECKING:
    from pgnotifyq.model.events import Event

KINDS = ("trio", "asyncio", "thread", "process")
CAUSES = ("cancel", "timeout", "lost")
EXPIRE = "update pgnotifyq.jobs set lease_expires_at = clock_timestamp() - interval '1 s'"
# Each stop of a process is followed by the start of another one: fewer samples.
STARTS = {"process": 4}
LOOK_SECONDS = 0.001  # between two looks of the handler in a thread
TIMEOUT_SECONDS = 0.1
# Of `lost`: what is measured begins when the worker knows, and it learns by the next heartbeat.
BEAT_SECONDS = 0.05

computing = JobRegistry()


def _compute(payload: dict[str, Any]) -> None:
    note(payload, "begins", os.getpid())
    while True:
        pass


@computing.handler("process_cancel", runs_in="process")
def process_cancel(payload: dict[str, Any]) -> None:
    """Compute for ever."""
    _compute(payload)


@computing.handler("process_timeout", runs_in="process", timeout_seconds=TIMEOUT_SECONDS)
def process_timeout(payload: dict[str, Any]) -> None:
    """Compute for ever."""
    _compute(payload)


@computing.handler("process_lost", runs_in="process")
def process_lost(payload: dict[str, Any]) -> None:
    """Compute for ever, once."""
    _compute(payload)


@computing.handler("noop_process", runs_in="process")
def noop_process(_: dict[str, Any]) -> None:
    """Do nothing."""


@computing.handler("noop_thread")
def noop_thread(_: dict[str, Any]) -> None:
    """Do nothing."""


@computing.handler("noop_asyncio", runs_in="asyncio")
async def noop_asyncio(_: dict[str, Any]) -> None:
    """Do nothing."""


@computing.handler("noop_trio")
async def noop_trio(_: dict[str, Any]) -> None:
    """Do nothing."""


def note(payload: dict[str, Any], what: str, number: object = 0) -> None:
    """Add to the report what has happened, and when."""
    with Path(payload["file"]).open("a", encoding="utf-8") as file:
        file.write(f"{payload['n']} {what} {time.monotonic()} {number}\n")


def work(dsn: str, report_file: str, concurrency: str, beat_seconds: str) -> None:
    """Be the worker process: its handlers wait, and note when they are stopped."""
    made = JobRegistry()
    made.include(computing)
    stops = Path(report_file).open("a", buffering=1, encoding="utf-8")  # noqa: SIM115  # for the life of the process

    for cause in CAUSES:
        timeout_seconds = TIMEOUT_SECONDS if cause == "timeout" else None

        @made.handler(f"trio_{cause}", timeout_seconds=timeout_seconds)
        async def on_trio(payload: dict[str, Any]) -> None:
            note(payload, "begins")
            try:
                await trio.sleep_forever()
            finally:
                note(payload, "stops")

        @made.handler(f"asyncio_{cause}", runs_in="asyncio", timeout_seconds=timeout_seconds)
        async def on_asyncio(payload: dict[str, Any]) -> None:
            note(payload, "begins")
            try:
                await asyncio.Event().wait()
            finally:
                note(payload, "stops")

        @made.handler(f"thread_{cause}", timeout_seconds=timeout_seconds)
        def in_thread(payload: dict[str, Any], ctx: JobContext) -> None:
            note(payload, "begins")
            while not ctx.is_cancelled():
                time.sleep(LOOK_SECONDS)
            note(payload, "stops")

    def told(event: Event) -> None:
        if event.name is EventName.JOB_INTERRUPTED:
            stops.write(f"{event.fields['job_id']} interrupted {time.monotonic()} 0\n")

    go = asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    @made.handler("crowd", runs_in="asyncio")
    async def crowd(_: dict[str, Any]) -> None:
        loops.append(asyncio.get_running_loop())
        if len(loops) == int(concurrency):
            stops.write(f"crowd all {time.monotonic()} 0\n")
        await go.wait()

    def let_go() -> None:
        sys.stdin.read()  # until it is closed; all wait by then, or the worker is about to end
        if not loops:
            return
        loops[0].call_soon_threadsafe(go.set)

    threading.Thread(target=let_go, daemon=True).start()

    beat = {} if not float(beat_seconds) else {"heartbeat_seconds": float(beat_seconds)}
    trio.run(lambda: run_worker(made, dsn, concurrency=int(concurrency), on_event=told, routine_events=False, **beat))  # type: ignore[arg-type]


def main() -> None:
    """Ask the question."""
    question = "milliseconds from a status update, a timeout and a lost lease to the stop of a handler of each kind"
    asked = options(question, samples=200, crowd=10_000)
    samples, crowd = (asked.samples // 10, asked.crowd // 10) if asked.quick else (asked.samples, asked.crowd)
    figures: dict[str, Any] = {"noop_us": trio.run(_noops, samples * 10)}
    with open_server() as server_dsn, open_database(server_dsn) as dsn:
        for cause in CAUSES:
            figures[cause] = {}
            for kind in KINDS:
                with tempfile.NamedTemporaryFile("r") as stops:
                    worker = _start(dsn, stops.name, 10, BEAT_SECONDS if cause == "lost" else 0)
                    try:
                        figures[cause][kind] = _stop(dsn, kind, cause, samples // STARTS.get(kind, 1), stops.name)
                        print(f"{cause} {kind} {figures[cause][kind]}", file=sys.stderr)
                    finally:
                        worker.kill()
                        worker.wait()
        with tempfile.NamedTemporaryFile("r") as stops:
            worker = _start(dsn, stops.name, crowd, 0)
            try:
                figures["crowd"] = _crowd(dsn, crowd, worker, stops)
            finally:
                worker.kill()
                worker.wait()
    told = ". ".join(
        f"{cause}: " + "; ".join(f"{kind} p50 {of[kind]['p50_ms']} ms, p99 {of[kind]['p99_ms']} ms" for kind in KINDS)
        for cause, of in ((cause, figures[cause]) for cause in CAUSES)
    )
    many = figures["crowd"]
    line = (
        f"kinds: {told}. A no-op, us: {figures['noop_us']}. {crowd} on asyncio: all wait after {many['all_wait_s']} s, "
        f"{many['rss_mib']} MiB, all completed {many['all_completed_s']} s after they were told"
    )
    report(question, line, figures, asked.out)


def _start(dsn: str, file: str, concurrency: int, beat_seconds: float) -> subprocess.Popen[bytes]:
    code = "from bench.kinds import work; import sys; work(*sys.argv[1:])"
    return subprocess.Popen([sys.executable, "-c", code, dsn, file, str(concurrency), str(beat_seconds)], stdin=subprocess.PIPE)


async def _noops(count: int) -> dict[str, float]:
    """Return the median of a no-op of each kind, in microseconds, one after the other, without a database."""
    processes = Processes(count=1)
    medians: dict[str, float] = {}
    async with open_loop() as loop:
        executor = Executor(
            registry=computing,
            reach=alone.Reach(None, computing),
            deadlines=Deadlines(Running.stop),
            loop=loop,
            processes=processes,
            random=lambda: 0.5,
        )
        for kind in KINDS:
            handler = computing.get(f"noop_{kind}")
            took = []
            for _ in range(count):
                job = ClaimedJob.from_job(alone._job(handler, {}, NIL_ORG, 1, None))  # noqa: SLF001  # as run_job makes it
                began = time.perf_counter()
                with trio.CancelScope() as scope:
                    await executor.run(Running(job=job, renewed_at=0.0), scope)
                took.append(time.perf_counter() - began)
            medians[kind] = round(statistics.median(took) * 1e6)
    await processes.aclose()
    return medians


def _stop(dsn: str, kind: str, cause: str, samples: int, file: str) -> dict[str, float]:
    took = []
    with psycopg.connect(dsn, autocommit=True) as session:
        for n in range(samples):
            row = session.execute(
                "select pgnotifyq.enqueue(%s, jsonb_build_object('n', %s::int, 'file', %s::text), max_attempts => 2)",
                (f"{kind}_{cause}", n, file),
            ).fetchone()
            assert row is not None
            job_id = str(row[0])
            begins, pid = _told(file, str(n), "begins")
            gone = os.pidfd_open(int(pid)) if kind == "process" else None
            if cause != "timeout":
                time.sleep(0.02)  # the handler waits
            since = begins + TIMEOUT_SECONDS
            if cause == "cancel":
                since = time.monotonic()
                session.execute("update pgnotifyq.jobs set status = 'cancelled' where id = %s", row)
            elif cause == "lost":
                with session.transaction():  # nobody else may take the job
                    session.execute(f"{EXPIRE} where id = %s", row)
                    session.execute("select pgnotifyq.reclaim(gen_random_uuid(), 10)")
                    session.execute("update pgnotifyq.jobs set status = 'cancelled' where id = %s", row)
            if gone is not None:
                select.select([gone], [], [])
                stopped = time.monotonic()
                os.close(gone)
            else:
                stopped, _ = _told(file, str(n), "stops")
            if cause == "lost":
                since, _ = _told(file, job_id, "interrupted")
            took.append((stopped - since) * 1000)
            _until(session, "select count(*) = 0 from pgnotifyq.jobs where id = %s and is_held", row[0])
            session.execute("update pgnotifyq.jobs set status = 'cancelled' where id = %s and status = 'pending'", row)
    return latencies(took)


def _told(file: str, who: str, what: str) -> tuple[float, str]:
    """Wait until the report says so; return when, and the number beside it."""
    while True:
        for line in Path(file).read_text(encoding="utf-8").splitlines()[-8:]:
            words = line.split()
            if words[:2] == [who, what] and len(words) == 4:
                return float(words[2]), words[3]
        time.sleep(0.001)


def _crowd(dsn: str, count: int, worker: subprocess.Popen[bytes], stops: Any) -> dict[str, float]:
    began = time.monotonic()
    with psycopg.connect(dsn, autocommit=True) as session:
        session.execute("select count(pgnotifyq.enqueue('crowd', '{}')) from generate_series(1, %s)", (count,))
        while not (told := stops.readline()):
            time.sleep(0.01)
        wait_seconds = float(told.split()[2]) - began
        rss = psutil.Process(worker.pid).memory_info().rss / 2**20
        began = time.monotonic()
        assert worker.stdin is not None
        worker.stdin.close()
        _until(session, "select count(*) = %s from pgnotifyq.jobs where job_type = 'crowd' and status = 'completed'", count)
    return {"all_wait_s": round(wait_seconds, 1), "rss_mib": round(rss), "all_completed_s": round(time.monotonic() - began, 1)}


def _until(session: psycopg.Connection[Any], condition: str, value: Any) -> None:
    while True:
        row = session.execute(condition, (value,)).fetchone()
        if row is not None and row[0]:
            return
        time.sleep(0.005)


if __name__ == "__main__":
    main()
