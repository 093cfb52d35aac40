"""How a worker process ends: by which signals, when it is still starting, and whatever its handlers did to signals."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pgnotifyq.cli.ending import ECHO_SECONDS, SIGNALS, Ear
from tests.cli.support import PATIENCE_SECONDS, PGNOTIFYQ, Floor, Running, open_floor

if TYPE_CHECKING:
    from collections.abc import Iterator

APP = """
import asyncio, os, signal, sys, time
import pgnotifyq, trio
registry = pgnotifyq.JobRegistry()

@registry.handler("quick")
async def quick(payload: dict) -> int:
    return 1

@registry.handler("defaults")
async def defaults(payload: dict) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)

@registry.handler("ignores")
async def ignores(payload: dict) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

@registry.handler("another_loop")
async def another_loop(payload: dict) -> None:
    async def main():
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, print)
    asyncio.run(main())  # takes the socket away, and leaves none

@registry.handler("own_handler")
async def own_handler(payload: dict) -> None:
    signal.signal(signal.SIGTERM, lambda number, frame: None)

@registry.handler("raises_signal")
async def raises_signal(payload: dict) -> None:
    signal.raise_signal(signal.SIGTERM)

@registry.handler("exits")
def exits(payload: dict) -> None:
    sys.exit(0)

@registry.handler("dies")
async def dies(payload: dict) -> None:
    os._exit(0)
"""
OWN_SIGHUP = """
import signal
signal.signal(signal.SIGHUP, lambda number, frame: open("reloaded", "w").close())
signal.signal(signal.SIGTERM, lambda number, frame: None)
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
from app import registry
"""


@pytest.fixture
def floor(dsn: str, tmp_path: Path) -> Iterator[Floor]:
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "reloading.py").write_text(OWN_SIGHUP)
    with open_floor(dsn, tmp_path) as floor:
        yield floor


def test_signal_and_its_echo() -> None:
    """What comes within a moment counts for nothing, whichever of them it is; what comes later is a second thought."""
    ear = Ear()
    ear.before = dict.fromkeys(SIGNALS)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
        ear.heed(number)
        ear.last_at += PATIENCE_SECONDS  # no moment ends while this test is held up
    assert ear.count == 1
    ear.last_at -= 3 * PATIENCE_SECONDS + ECHO_SECONDS
    ear.heed(signal.SIGTERM)
    assert ear.count == 2


def test_closed_terminal(floor: Floor) -> None:
    """SIGHUP drains; one that was ignored from the start (nohup) stays so, and so does an application's own handler."""
    plain, ignoring, reloading = (
        floor.start("app", "--queue", "plain"),
        floor.start("app", "--queue", "ignoring", prefix=("nohup",)),
        floor.start("reloading", "--queue", "reloading"),
    )
    for worker in (plain, ignoring, reloading):
        worker.signal(signal.SIGHUP)
    assert plain.wait() == 0
    floor.until_completed(*[floor.enqueue("quick", queue) for queue in ("ignoring", "reloading")])
    assert (floor.folder / "reloaded").exists()
    for worker in (ignoring, reloading):
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0


@pytest.mark.parametrize("job_type", ["another_loop", "own_handler"])
def test_handler_that_listens_to_signals_itself(floor: Floor, job_type: str) -> None:
    """The worker hears the next one all the same, at once."""
    worker = floor.start("app")
    floor.until_completed(floor.enqueue(job_type))
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="what a process catches is read in /proc")
def test_handlers_that_leave_signals_to_their_defaults(floor: Floor) -> None:
    """Libraries do. It is put right by itself: the worker drains again, and is not cut off."""
    workers = {job_type: floor.start("app", "--queue", job_type) for job_type in ("defaults", "ignores")}
    for job_type, worker in workers.items():
        floor.until_completed(floor.enqueue(job_type, job_type))
        while not catches(worker, signal.SIGTERM):
            floor.until("pg_sleep(0.01) is not null", of=worker)
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0


def test_handlers_that_end_the_process(floor: Floor) -> None:
    """One that signals its own process asks for an end; `sys.exit` is its job's failure; `os._exit` is what a kill is."""
    signals, exits, dies = (floor.start("app", "--queue", queue) for queue in ("signals", "exits", "dies"))
    told = floor.enqueue("raises_signal", "signals")
    failed = floor.enqueue("exits", "exits")
    floor.enqueue("dies", "dies")
    assert signals.wait() == 0
    assert floor.status(told) == "completed"
    assert dies.wait() == 0  # the handler's own code
    floor.until("reason = 'exhausted' from pgnotifyq.dead_letter_jobs where id = %s", failed)
    exits.signal(signal.SIGTERM)
    assert exits.wait() == 0


def test_signals_while_it_starts(tmp_path: Path) -> None:
    """A server that says nothing holds it up: it ends at once, as a process does that takes no signals; also as the first of a container."""
    (tmp_path / "app.py").write_text(APP)
    expected: dict[tuple[str, ...], dict[int, int]] = {(): {signal.SIGTERM: -15, signal.SIGINT: 130, signal.SIGHUP: -1}}
    if sys.platform == "linux" and os.geteuid() == 0 and can_be_first():
        expected[("unshare", "--pid", "--fork", "--mount-proc")] = {signal.SIGTERM: 143}
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PATIENCE_SECONDS)
        dsn = f"postgresql://nobody@127.0.0.1:{server.getsockname()[1]}/nothing?connect_timeout=60"
        for prefix, codes in expected.items():
            for number, code in codes.items():
                command = [*prefix, *PGNOTIFYQ, "worker", "--app", "app:registry", "--dsn", dsn]
                worker = Running(command, tmp_path, stdout=subprocess.DEVNULL)
                with server.accept()[0]:
                    os.kill(child_of(worker) if prefix else worker.process.pid, number)
                    assert worker.wait() == code
                assert worker.said == ""


def catches(worker: Running, number: int) -> bool:
    """Tell whether a process has a handler for a signal."""
    status = Path(f"/proc/{worker.process.pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(line.split()[1], 16) >> (number - 1) & 1)


def can_be_first() -> bool:
    """Tell whether this machine lets us make the first process of a container."""
    return (
        subprocess.run(["unshare", "--pid", "--fork", "--mount-proc", "true"], capture_output=True, check=False).returncode == 0
    )


def child_of(worker: Running) -> int:
    """Return the pid of a process's only child."""
    pid = worker.process.pid
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text())
