"""The worker as a process: its log, its signals, its end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

APP = """
import os, signal, time, trio, pgnotifyq
registry = pgnotifyq.JobRegistry()

@registry.handler("quick")
async def quick(payload: dict) -> dict:
    return payload

@registry.handler("unlucky")
async def unlucky(payload: dict) -> None:
    raise ValueError("no luck")

@registry.handler("long")
async def long(payload: dict) -> None:
    await trio.sleep(3600)

@registry.handler("clinging")
async def clinging(payload: dict) -> None:
    with trio.CancelScope(shield=True):
        await trio.sleep(3600)

@registry.handler("blocking")
async def blocking(payload: dict) -> None:
    time.sleep(3600)

@registry.handler("deaf")
async def deaf(payload: dict) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    time.sleep(3600)

@registry.handler("full")
async def full(payload: dict) -> None:
    os.set_blocking(2, False)
    try:
        while True:
            os.write(2, b"." * 4096)
    except BlockingIOError:
        os.set_blocking(2, True)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(3600)

@registry.handler("thread")
def thread(payload: dict) -> None:
    time.sleep(3600)
"""


class Worker:
    """A worker process and what it says."""

    def __init__(self, dsn: str, folder: Any, *options: str) -> None:
        (folder / "an_app.py").write_text(APP)
        command = [sys.executable, "-m", "pgnotifyq", "worker", "--app", "an_app:registry", "--log-format", "json", *options]
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, "PGNOTIFYQ_DSN": dsn},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def until(self, event: str) -> dict[str, Any]:
        """Read the log up to an event."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            told: dict[str, Any] = json.loads(line)
            if told["event"] == event:
                return told
        raise AssertionError(f"the worker ended without {event}: {self.process.stderr and self.process.stderr.read()}")


@pytest.fixture
def start(dsn: str, tmp_path: Any) -> Iterator[Callable[..., Worker]]:
    """Starts a worker with options; what is left of it when the test ends, ends."""
    started: list[Worker] = []

    def start(*options: str) -> Worker:
        started.append(Worker(dsn, tmp_path, *options))
        return started[-1]

    yield start
    for worker in started:
        worker.process.kill()
        worker.process.communicate()


@pytest.fixture
def session(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(dsn, autocommit=True) as session:
        yield session


def wait_until_running(session: psycopg.Connection[Any]) -> None:
    while session.execute("select count(*) from pgnotifyq.jobs where status = 'running'").fetchone() != (1,):
        time.sleep(0.01)


@pytest.mark.parametrize(("signals", "job", "code"), [(1, "quick", 0), (2, "long", 4)])
def test_a_worker_ends_by_its_signals(
    start: Callable[..., Worker], session: psycopg.Connection[Any], signals: int, job: str, code: int
) -> None:
    """One signal lets jobs finish, a second cuts them off: released at once, uncharged; the exit code says which."""
    worker = start()
    worker.until("listener.connected")
    session.execute("select pgnotifyq.enqueue(%s, '{\"a\": 1}')", (job,))
    worker.until("job.completed" if job == "quick" else "job.claimed")
    worker.process.send_signal(signal.SIGTERM)
    worker.until("worker.stopping")
    while signals == 2 and worker.process.poll() is None:  # what comes at once is the first one's echo
        worker.process.send_signal(signal.SIGTERM)
        time.sleep(0.01)
    worker.until("worker.stopped")
    worker.process.communicate()
    assert worker.process.returncode == code
    expected = ("completed", 1) if job == "quick" else ("pending", 0)
    assert session.execute("select status, attempts from pgnotifyq.jobs").fetchone() == expected
    assert session.execute("select count(*) from pgnotifyq.worker_heartbeats").fetchone() == (0,)


def test_quiet(start: Callable[..., Worker], session: psycopg.Connection[Any]) -> None:
    """Told to be quiet, it says nothing of a job that goes as planned, and what is worth a look all the same."""
    worker = start("--quiet")
    worker.until("listener.connected")
    session.execute("select pgnotifyq.enqueue('quick')")
    while session.execute("select status from pgnotifyq.jobs").fetchone() != ("completed",):
        time.sleep(0.01)
    unlucky = session.execute("select pgnotifyq.enqueue('unlucky')").fetchone()
    assert unlucky is not None
    assert worker.process.stdout is not None
    told = json.loads(worker.process.stdout.readline())
    assert (told["event"], told["job_id"]) == ("job.retried", str(unlucky[0]))


@pytest.mark.parametrize("job", ["clinging", "blocking", "deaf", "thread"])
def test_a_handler_that_does_not_let_go_does_not_keep_the_process(
    start: Callable[..., Worker], session: psycopg.Connection[Any], job: str
) -> None:
    """It shields itself for ever, holds the event loop or sits in a thread: the process ends all the same, its job given back.

    The deaf one holds the event loop and no signal ever interrupts its sleep, as when one comes just before the sleep begins.
    """
    worker = start("--shutdown-seconds", "0.1", "--grace-seconds", "0.1")
    worker.until("listener.connected")
    session.execute("select pgnotifyq.enqueue(%s)", (job,))
    wait_until_running(session)
    worker.process.send_signal(signal.SIGTERM)
    worker.process.communicate(timeout=60)
    assert worker.process.returncode == 5
    assert session.execute("select status, attempts from pgnotifyq.jobs").fetchone() == ("pending", 0)
    assert session.execute("select outcome from pgnotifyq.job_executions").fetchall() == [("released",)]


def test_a_stuck_worker_ends_when_nobody_reads_what_it_says(
    start: Callable[..., Worker], session: psycopg.Connection[Any]
) -> None:
    """Its standard error is full: the last words wait for ever, the process does not."""
    worker = start("--shutdown-seconds", "0.1", "--grace-seconds", "0.1")
    worker.until("listener.connected")
    session.execute("select pgnotifyq.enqueue('full')")
    worker.process.wait(timeout=60)
    assert worker.process.returncode == 5
    assert session.execute("select status, attempts from pgnotifyq.jobs").fetchone() == ("pending", 0)


def test_a_handler_that_holds_the_loop_for_ever_is_named(start: Callable[..., Worker], session: psycopg.Connection[Any]) -> None:
    """On standard error, as JSON, with its stack: the loop, which tells events, never comes back."""
    worker = start("--shutdown-seconds", "0.1", "--grace-seconds", "0.1")
    worker.until("listener.connected")
    session.execute("select pgnotifyq.enqueue('blocking')")
    assert worker.process.stderr is not None
    told = next(told for told in map(json.loads, worker.process.stderr) if told["event"] == "loop.blocked")
    assert "handler an_app:blocking (job " in told["message"] and "has held the event loop for" in told["message"]
    assert "an_app.py" in told["stack"] and "time.sleep(3600)" in told["stack"]
    worker.process.send_signal(signal.SIGTERM)
    worker.process.communicate(timeout=60)
    assert worker.process.returncode == 5
