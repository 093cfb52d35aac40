"""Worker processes under test: what they are given, what they say, and how they end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE_SECONDS = 60.0
PGNOTIFYQ = (sys.executable, "-m", "pgnotifyq")


class Running:
    """A worker process in a session of its own, its standard error in a file."""

    def __init__(self, command: list[str], folder: Path, **options: Any) -> None:
        self._log = folder / f"stderr-{time.monotonic_ns()}"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(command, cwd=folder, **{"stderr": log, "start_new_session": True, **options})

    @property
    def said(self) -> str:
        """What it has said on standard error."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def signal(self, number: int) -> None:
        """Signal it alone."""
        self.process.send_signal(number)

    def wait(self) -> int:
        """Wait for its end; return its exit code."""
        return self.process.wait(PATIENCE_SECONDS)


class Floor:
    """A place where worker processes run on a database."""

    def __init__(self, dsn: str, folder: Path) -> None:
        self.dsn = dsn
        self.folder = folder
        self.session = psycopg.connect(dsn, autocommit=True)
        self.started: list[Running] = []

    def start(self, app: str, *options: str, prefix: tuple[str, ...] = (), is_heard: bool = True, **popen: Any) -> Running:
        """Start a worker on an app of this folder; it listens when this returns, unless `is_heard` is False."""
        command = [*prefix, *PGNOTIFYQ, "worker", "--app", f"{app}:registry", *options]
        environment = {**os.environ, "PGNOTIFYQ_DSN": self.dsn, **popen.pop("environment", {})}
        worker = Running(command, self.folder, **{"stdout": subprocess.DEVNULL, "env": environment, **popen})
        self.started.append(worker)
        if is_heard:
            self.until(
                "count(*) = %s from pgnotifyq.worker_heartbeats where has_session and state <> 'draining'",
                sum(one.process.poll() is None for one in self.started),
                of=worker,
            )
        return worker

    def enqueue(self, job_type: str, queue: str = "default", payload: object = None) -> Any:
        """Enqueue a job that is tried once."""
        row = self.session.execute(
            "select pgnotifyq.enqueue(%s, %s::jsonb, queue_name => %s, max_attempts => 1)",
            (job_type, json.dumps(payload or {}), queue),
        ).fetchone()
        assert row is not None
        return row[0]

    def status(self, job_id: object) -> Any:
        """Return a job's status; None when it has died."""
        row = self.session.execute("select status from pgnotifyq.jobs where id = %s", (job_id,)).fetchone()
        return None if row is None else row[0]

    def until(self, condition: str, *parameters: object, of: Running | None = None) -> None:
        """Wait until a condition in the database holds."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            row = self.session.execute(f"select {condition}".encode(), parameters).fetchone()
            if row is not None and row[0]:
                return
            assert of is None or of.process.poll() is None, f"the worker ended by itself: {of.said}"
            if time.monotonic() > deadline:
                told = self.session.execute("select job_type, status from pgnotifyq.jobs").fetchall()
                said = [one.said for one in self.started]
                raise AssertionError(
                    f"{condition} {parameters}: not within {PATIENCE_SECONDS:g} s; jobs: {told}; workers: {said}"
                )
            time.sleep(0.01)

    def until_completed(self, *jobs: object) -> None:
        """Wait until jobs are completed; they must not die."""
        self.until(
            "count(*) filter (where status = 'completed') + (select count(*) from pgnotifyq.dead_letter_jobs) >= %s"
            " from pgnotifyq.jobs where id = any(%s)",
            len(jobs),
            list(jobs),
        )
        died = self.session.execute("select job_type, error_message from pgnotifyq.dead_letter_jobs").fetchall()
        assert died == []


@contextmanager
def open_floor(dsn: str, folder: Path) -> Iterator[Floor]:
    """Give a floor; what is left of its workers and their children when the block ends, ends."""
    floor = Floor(dsn, folder)
    try:
        yield floor
    finally:
        floor.session.close()
        for worker in floor.started:
            with suppress(ProcessLookupError):
                os.killpg(worker.process.pid, signal.SIGKILL)
            worker.process.wait()
            for stream in (worker.process.stdout, worker.process.stderr):
                if stream is not None:
                    stream.close()
