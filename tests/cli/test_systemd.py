"""What a worker tells systemd: readiness, its end, a status, and a watchdog that only progress feeds."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from typing import TYPE_CHECKING

import pytest
import trio

from pgnotifyq import Event, EventName, WorkerConfig
from pgnotifyq.cli.systemd import Progress, find_service_manager
from tests.cli.support import PATIENCE_SECONDS, open_floor
from tests.proxy import run_proxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.cli.support import Floor

APP = """
import os, subprocess, sys, time, trio, pgnotifyq
registry = pgnotifyq.JobRegistry()

@registry.handler("quick")
async def quick(payload: dict) -> dict:
    return {name: value for name, value in os.environ.items() if name in {"NOTIFY_SOCKET", "WATCHDOG_USEC", "PGNOTIFYQ_PROCESS"}}

@registry.handler("holds")
async def holds(payload: dict) -> None:
    time.sleep(3600)
"""


class Manager:
    """A service manager: a real socket, and what it was told."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.told: list[str] = []

    def hear(self, seconds: float = 0.0) -> bool:
        """Take what was told; False if nothing comes within this time."""
        self.socket.settimeout(seconds or None)
        try:
            self.told += self.socket.recv(4096).decode().split("\n")
        except TimeoutError:
            return False
        return True

    def until(self, condition: Callable[[list[str]], object]) -> None:
        """Hear until what was told is so."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition(self.told):
            assert time.monotonic() < deadline, sorted(set(self.told))
            self.hear(1.0)


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(str(tmp_path / "notify"))
    yield manager
    manager.socket.close()


@pytest.fixture
def floor(dsn: str, tmp_path: Path) -> Iterator[Floor]:
    (tmp_path / "an_app.py").write_text(APP)
    with open_floor(dsn, tmp_path) as floor:
        yield floor


def asked(manager: Manager, watchdog_seconds: float | None = None) -> dict[str, str]:
    """Return the environment of a service that is to tell a manager."""
    told = {"NOTIFY_SOCKET": manager.socket.getsockname()}
    return told if watchdog_seconds is None else {**told, "WATCHDOG_USEC": str(int(watchdog_seconds * 1e6))}


def test_life_of_a_worker(floor: Floor, manager: Manager) -> None:
    """Ready once, when it is heard; then its status; then that it stops. Handlers' programs cannot speak for it."""
    worker = floor.start("an_app", environment=asked(manager))
    manager.until(lambda told: "READY=1" in told)
    job_id = floor.enqueue("quick")
    floor.until_completed(job_id)
    assert floor.session.execute("select result from pgnotifyq.jobs where id = %s", (job_id,)).fetchone() == ({},)
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    manager.until(lambda told: "STOPPING=1" in told)
    assert manager.told.count("READY=1") == 1
    assert [line for line in manager.told if line.startswith("STATUS=working")]
    assert "WATCHDOG=1" not in manager.told  # it was not asked for


def test_held_loop_stops_the_watchdog(floor: Floor, manager: Manager) -> None:
    """While the loop turns it is fed three times a watchdog's time; once a handler holds the loop it is fed no more."""
    floor.start("an_app", environment=asked(manager, 3.0))
    manager.until(lambda told: told.count("WATCHDOG=1") >= 4)
    job_id = floor.enqueue("holds")
    floor.until("status = 'running' from pgnotifyq.jobs where id = %s", job_id)
    while manager.hear(0.2):  # what was said before the handler began
        pass
    assert not manager.hear(3.0)


def test_child_that_is_held(floor: Floor, manager: Manager) -> None:
    """Of several processes, that one is killed and started again; the parent goes on feeding, and its job is charged once."""
    out = (floor.folder / "events").open("ab")
    with out:
        parent = floor.start(
            "an_app", "--processes", "2", "--log-format", "json", is_heard=False, stdout=out,
            environment=asked(manager, 3.0),
        )  # fmt: skip
    manager.until(lambda told: "READY=1" in told)
    assert floor.session.execute("select count(*) from pgnotifyq.worker_heartbeats where has_session").fetchone() == (2,)
    floor.enqueue("holds")
    floor.until("count(*) = 1 from pgnotifyq.dead_letter_jobs", of=parent)
    told = (floor.folder / "events").read_text()
    assert "it said nothing for the watchdog's time, and was killed" in told
    floor.until("count(*) = 2 from pgnotifyq.worker_heartbeats where has_session and session_lost_at is null", of=parent)
    heard = len(manager.told)
    manager.until(lambda told: "WATCHDOG=1" in told[heard:])
    parent.signal(signal.SIGTERM)
    assert parent.wait() == 0
    manager.until(lambda told: "STOPPING=1" in told)


async def test_database_away_feeds_the_watchdog(floor: Floor, manager: Manager) -> None:
    """A restart brings no database back. The status says for what the worker waits, and that it is over."""

    async def hear(condition: Callable[[list[str]], object]) -> None:
        await trio.to_thread.run_sync(manager.until, condition)

    async with trio.open_nursery() as nursery:
        cable = await nursery.start(run_proxy, floor.dsn)
        floor.start("an_app", is_heard=False, environment={**asked(manager, 1.5), "PGNOTIFYQ_DSN": cable.dsn})
        await hear(lambda told: "READY=1" in told)
        cable.lead_to("host=127.0.0.1 port=1")
        cable.cut()
        await hear(lambda told: any(line.startswith("STATUS=waiting for the database") for line in told))
        fed = manager.told.count("WATCHDOG=1")
        await hear(lambda told: told.count("WATCHDOG=1") >= fed + 4)
        cable.lead_to(floor.dsn)
        told_before = len(manager.told)
        await hear(lambda told: any("is back" in line or "arrive" in line for line in told[told_before:]))
        nursery.cancel_scope.cancel()


class Worker:
    """What a watchdog knows of a worker."""

    def __init__(self, silent_seconds: float) -> None:
        self._silent_seconds = silent_seconds

    def silent_seconds(self) -> float:
        """Return it."""
        return self._silent_seconds


@pytest.mark.parametrize(
    ("silent_seconds", "heartbeat_seconds", "is_made"), [(0, 20, True), (29, 20, True), (31, 20, False), (21, 1, False)]
)
def test_statement_that_is_never_answered(
    manager: Manager, silent_seconds: float, heartbeat_seconds: float, is_made: bool
) -> None:
    """A loop that turns is not enough: what asks must be answered, or have given up, within one and a half heartbeats."""
    listener = find_service_manager({"NOTIFY_SOCKET": manager.socket.getsockname()})
    assert listener is not None
    progress = Progress(listener, WorkerConfig(lease_seconds=60.0, heartbeat_seconds=heartbeat_seconds))
    assert progress.is_made()
    progress.handle = Worker(silent_seconds)  # type: ignore[assignment]
    assert progress.is_made() == is_made


def test_who_asks(tmp_path: Path) -> None:
    """The variables are taken out; a watchdog that is for another process is none; an abstract socket is one."""
    environment = {"NOTIFY_SOCKET": "@pgnotifyq-test", "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid()), "HOME": "/"}
    manager = find_service_manager(environment)
    assert manager is not None
    assert (manager.address, manager.watchdog_seconds, environment) == ("\0pgnotifyq-test", 3.0, {"HOME": "/"})
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as hears:
        hears.bind(manager.address)
        manager.say("READY=1", "STATUS=x")
        assert hears.recv(99) == b"READY=1\nSTATUS=x"
    manager.say("nobody hears it")
    for odd in ({"WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "x"}):
        other = find_service_manager({"NOTIFY_SOCKET": "/s", "WATCHDOG_USEC": "3000000", **odd})
        assert other is not None and other.watchdog_seconds is None
    assert find_service_manager({}) is None
    assert find_service_manager({"NOTIFY_SOCKET": "vsock:2:1"}) is None


def test_status_is_one_line(manager: Manager) -> None:
    """Whatever the database said: no text of it becomes a message of the protocol."""
    listener = find_service_manager(asked(manager))
    assert listener is not None
    progress = Progress(listener, WorkerConfig())
    fields = {"connection": "claimer", "why": "gone\nREADY=1\n" + "x" * 999}
    progress.note(Event(name=EventName.DATABASE_LOST, fields=fields))
    manager.hear(1.0)
    (line,) = manager.told
    assert line.startswith("STATUS=waiting for the database: gone READY=1") and len(line) < 300


@pytest.mark.parametrize("processes", ["1", "2"])
def test_socket_that_is_not_there(floor: Floor, tmp_path: Path, processes: str) -> None:
    """The worker works all the same, and says once why its service will not be ready."""
    nowhere = str(tmp_path / "nowhere")
    asks = {"NOTIFY_SOCKET": nowhere, "WATCHDOG_USEC": "300000000"}
    worker = floor.start("an_app", "--processes", processes, "--log-format", "json", environment=asks, is_heard=False)
    floor.until("count(*) = %s from pgnotifyq.worker_heartbeats where has_session", int(processes), of=worker)
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    told = [line for line in worker.said.splitlines() if nowhere in line]
    assert [json.loads(line)["level"] for line in told] == ["warning"]
