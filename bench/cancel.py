"""How soon does a running handler stop after a plain status update, and how much of that is the update's own commit?"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psycopg
import trio

from bench.support import latencies, open_database, open_server, options, report
from pgnotifyq.model.registry import JobRegistry
from pgnotifyq.runtime.worker import run_worker


def work(dsn: str, report_file: str) -> None:
    """Be the worker process: its handler sleeps, and notes when it is stopped."""
    made = JobRegistry()
    stops = Path(report_file).open("a", buffering=1, encoding="utf-8")  # noqa: SIM115  # for the life of the process

    @made.handler("sleep")
    async def sleep(payload: dict[str, Any]) -> None:
        try:
            await trio.sleep_forever()
        finally:
            stops.write(f"{payload['n']} {time.monotonic()}\n")

    trio.run(run_worker, made, dsn)


def main() -> None:
    """Ask the question."""
    question = "milliseconds from a status update to the handler's stop"
    asked = options(question, samples=500)
    samples = asked.samples // 10 if asked.quick else asked.samples
    code = "from bench.cancel import work; import sys; work(*sys.argv[1:])"
    with open_server() as server_dsn, open_database(server_dsn) as dsn, tempfile.NamedTemporaryFile("r") as stops:
        worker = subprocess.Popen([sys.executable, "-c", code, dsn, stops.name])
        try:
            called, commits = [], []
            with psycopg.connect(dsn, autocommit=True) as session:
                for n in range(samples):
                    row = session.execute("select pgnotifyq.enqueue('sleep', jsonb_build_object('n', %s::int))", (n,)).fetchone()
                    assert row is not None
                    _until(session, "select status = 'running' from pgnotifyq.jobs where id = %s", row[0])
                    time.sleep(0.01)  # the handler sleeps
                    called.append(time.monotonic())
                    session.execute("update pgnotifyq.jobs set status = 'cancelled' where id = %s", row)
                    commits.append((time.monotonic() - called[-1]) * 1000)
                    _until(session, "select not is_held from pgnotifyq.jobs where id = %s", row[0])
            stopped = dict(line.split() for line in stops.read().splitlines())
        finally:
            worker.terminate()
            worker.wait()
    taken = [(float(stopped[str(n)]) - when) * 1000 for n, when in enumerate(called)]
    figures = {"from_call": latencies(taken), "commit_alone": latencies(commits)}
    over = statistics.median(taken) - statistics.median(commits)
    line = (
        f"cancel: p50 {figures['from_call']['p50_ms']} ms, p99 {figures['from_call']['p99_ms']} ms from the update's call; "
        f"the commit alone p50 {figures['commit_alone']['p50_ms']} ms, so {over:.2f} ms over it"
    )
    report(question, line, figures, asked.out)


def _until(session: psycopg.Connection[Any], condition: str, job_id: Any) -> None:
    while True:
        row = session.execute(condition, (job_id,)).fetchone()
        if row is not None and row[0]:
            return
        time.sleep(0.001)


if __name__ == "__main__":
    main()
