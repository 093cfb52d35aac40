"""How soon does a handler of each kind stop after a plain status update, and do 10,000 on asyncio wait at once in one worker?"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import psycopg
import trio

from bench.support import latencies, open_database, open_server, options, report
from pgnotifyq import JobContext
from pgnotifyq.model.registry import JobRegistry
from pgnotifyq.runtime.worker import run_worker

KINDS = ("trio", "asyncio", "thread")
LOOK_SECONDS = 0.001  # between two looks of the handler in a thread


def work(dsn: str, report_file: str, concurrency: str) -> None:
    """Be the worker process: its handlers wait, and note when they are stopped."""
    made = JobRegistry()
    stops = Path(report_file).open("a", buffering=1, encoding="utf-8")  # noqa: SIM115  # for the life of the process

    @made.handler("trio")
    async def on_trio(payload: dict[str, Any]) -> None:
        try:
            await trio.sleep_forever()
        finally:
            stops.write(f"{payload['n']} {time.monotonic()}\n")

    @made.handler("asyncio", runs_in="asyncio")
    async def on_asyncio(payload: dict[str, Any]) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            stops.write(f"{payload['n']} {time.monotonic()}\n")

    @made.handler("thread")
    def in_thread(payload: dict[str, Any], ctx: JobContext) -> None:
        while not ctx.is_cancelled():
            time.sleep(LOOK_SECONDS)
        stops.write(f"{payload['n']} {time.monotonic()}\n")

    go = asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    @made.handler("crowd", runs_in="asyncio")
    async def crowd(_: dict[str, Any]) -> None:
        loops.append(asyncio.get_running_loop())
        if len(loops) == int(concurrency):
            stops.write(f"crowd {time.monotonic()}\n")
        await go.wait()

    def let_go() -> None:
        sys.stdin.read()  # until it is closed; all wait by then, or the worker is about to end
        if not loops:
            return
        loops[0].call_soon_threadsafe(go.set)

    threading.Thread(target=let_go, daemon=True).start()

    trio.run(lambda: run_worker(made, dsn, concurrency=int(concurrency)))


def main() -> None:
    """Ask the question."""
    question = "milliseconds from a status update to the stop of a handler of each kind"
    asked = options(question, samples=300, crowd=10_000)
    samples, crowd = (asked.samples // 10, asked.crowd // 10) if asked.quick else (asked.samples, asked.crowd)
    figures: dict[str, Any] = {}
    code = "from bench.kinds import work; import sys; work(*sys.argv[1:])"
    with open_server() as server_dsn, open_database(server_dsn) as dsn, tempfile.NamedTemporaryFile("r") as stops:
        for kind in KINDS:
            worker = subprocess.Popen([sys.executable, "-c", code, dsn, stops.name, "10"], stdin=subprocess.PIPE)
            try:
                figures[kind] = _cancel(dsn, kind, samples, stops)
            finally:
                worker.terminate()
                worker.wait()
        worker = subprocess.Popen([sys.executable, "-c", code, dsn, stops.name, str(crowd)], stdin=subprocess.PIPE)
        try:
            figures["crowd"] = _crowd(dsn, crowd, worker, stops)
        finally:
            worker.terminate()
            worker.wait()
    told = "; ".join(f"{kind} p50 {figures[kind]['p50_ms']} ms, p99 {figures[kind]['p99_ms']} ms" for kind in KINDS)
    many = figures["crowd"]
    line = (
        f"kinds: stopped after the update's call: {told}. {crowd} on asyncio: all wait after {many['all_wait_s']} s, "
        f"{many['rss_mib']} MiB, all completed {many['all_completed_s']} s after they were told"
    )
    report(question, line, figures, asked.out)


def _cancel(dsn: str, kind: str, samples: int, stops: Any) -> dict[str, float]:
    called = []
    with psycopg.connect(dsn, autocommit=True) as session:
        for n in range(samples):
            row = session.execute("select pgnotifyq.enqueue(%s, jsonb_build_object('n', %s::int))", (kind, n)).fetchone()
            assert row is not None
            _until(session, "select status = 'running' from pgnotifyq.jobs where id = %s", row[0])
            time.sleep(0.02)  # the handler waits
            called.append(time.monotonic())
            session.execute("update pgnotifyq.jobs set status = 'cancelled' where id = %s", row)
            _until(session, "select not is_held from pgnotifyq.jobs where id = %s", row[0])
    stopped = dict(line.split() for line in stops.read().splitlines())
    return latencies([(float(stopped[str(n)]) - when) * 1000 for n, when in enumerate(called)])


def _crowd(dsn: str, count: int, worker: subprocess.Popen[bytes], stops: Any) -> dict[str, float]:
    began = time.monotonic()
    with psycopg.connect(dsn, autocommit=True) as session:
        session.execute("select count(pgnotifyq.enqueue('crowd', '{}')) from generate_series(1, %s)", (count,))
        while not (told := stops.readline()):
            time.sleep(0.01)
        wait_seconds = float(told.split()[1]) - began
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
