"""Several worker processes under one parent: `worker --processes N`, and `--reload`."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import trio

from pgnotifyq import Event, WorkerConfig
from pgnotifyq.cli.processes import DRAIN, INTERRUPT, Parent, _Parent, worst
from tests.cli.support import PATIENCE_SECONDS, open_floor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from tests.cli.support import Floor, Running

APP = """
import os, time, trio, pgnotifyq
registry = pgnotifyq.JobRegistry()

@registry.handler("quick")
async def quick(payload: dict) -> str:
    return "VERSION"

@registry.handler("long")
async def long(payload: dict, ctx: pgnotifyq.JobContext) -> None:
    await trio.sleep(3600)

@registry.handler("short")
async def short(payload: dict) -> None:
    await trio.sleep(0.5)

@registry.handler("crash")
async def crash(payload: dict) -> None:
    os._exit(9)

@registry.handler("holds")
async def holds(payload: dict) -> None:
    time.sleep(3600)
"""


@pytest.fixture
def floor(dsn: str, tmp_path: Path) -> Iterator[Floor]:
    (tmp_path / "an_app.py").write_text(APP)
    with open_floor(dsn, tmp_path) as floor:
        yield floor


def start(floor: Floor, *options: str, is_heard: bool = True, **popen: Any) -> Running:
    """Start a parent of two; both listen when this returns."""
    out = (floor.folder / "events").open("ab")
    with out:
        parent = floor.start(
            "an_app", "--processes", "2", "--log-format", "json", *options, is_heard=False, **{"stdout": out, **popen}
        )
    if is_heard:
        until_two(floor, parent)
    return parent


def until_two(floor: Floor, parent: Running) -> None:
    """Wait until two processes work."""
    floor.until("count(*) = 2 from pgnotifyq.worker_heartbeats where has_session and state = 'running'", of=parent)


def events(floor: Floor, name: str) -> list[dict[str, Any]]:
    """Return what was told by parent and children."""
    lines = (floor.folder / "events").read_text().splitlines()
    return [told for told in map(json.loads, lines) if told["event"] == name]


def wait(condition: Callable[[], object]) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def children(parent: Running) -> list[psutil.Process]:
    """Return the processes of a parent."""
    found: list[psutil.Process] = psutil.Process(parent.process.pid).children()
    return found


def test_one_dies(floor: Floor) -> None:
    """It is told and started again, and the other goes on; the parent holds no session, and both are known by names of their own."""
    parent = start(floor)
    (pids,) = floor.session.execute("select array_agg(pid order by pid) from pgnotifyq.worker_heartbeats").fetchone() or [None]
    assert pids == sorted(child.pid for child in children(parent))
    lingering = floor.enqueue("long")
    floor.until("status = 'running' from pgnotifyq.jobs where id = %s", lingering)
    row = floor.session.execute(
        "select w.pid from pgnotifyq.jobs as j join pgnotifyq.worker_heartbeats as w on w.worker_id = j.locked_by"
    ).fetchone()
    assert row is not None
    (other,) = [child for child in children(parent) if child.pid != row[0]]
    other.kill()
    wait(lambda: events(floor, "process.ended"))
    (ended,) = events(floor, "process.ended")
    assert (ended["pid"], ended["exit_code"]) == (other.pid, -9)
    wait(lambda: len(events(floor, "process.started")) == 3)
    floor.until("count(*) = 2 from pgnotifyq.worker_heartbeats where has_session and pid <> %s", other.pid, of=parent)
    assert floor.session.execute("select attempts, status from pgnotifyq.jobs").fetchone() == (1, "running")
    assert floor.session.execute(
        "select bool_and(application_name like 'pgnotifyq%%') from pg_stat_activity where datname = current_database()"
        " and client_port is not null and pid <> pg_backend_pid() and application_name <> ''"
    ).fetchone() == (True,)
    parent.signal(signal.SIGTERM)
    wait(lambda: events(floor, "worker.stopping"))
    time.sleep(0.3)  # what comes sooner is an echo of the first
    parent.signal(signal.SIGTERM)
    assert parent.wait() == 4
    assert floor.session.execute("select attempts, status from pgnotifyq.jobs").fetchone() == (0, "pending")
    assert floor.session.execute("select count(*) from pgnotifyq.worker_heartbeats where pid <> %s", (other.pid,)).fetchone() == (
        0,
    )


@pytest.mark.parametrize(
    ("number", "by"), [(signal.SIGTERM, "parent"), (signal.SIGINT, "group")], ids=["SIGTERM to it", "Ctrl-C at a terminal"]
)
def test_one_signal(floor: Floor, number: signal.Signals, by: str) -> None:
    """It lets running jobs finish, once, whether the parent alone hears it, or a terminal's whole group: none is cut off."""
    parent = start(floor)
    jobs = [floor.enqueue("short") for _ in range(4)]
    floor.until("bool_and(status = 'running') from pgnotifyq.jobs")
    if by == "group":
        # The parent is late, so that its word comes when a child would take it for a second one.
        parent.signal(signal.SIGSTOP)
        os.killpg(parent.process.pid, number)
        wait(lambda: events(floor, "worker.stopping"))
        time.sleep(0.25)
        parent.signal(signal.SIGCONT)
    else:
        parent.signal(number)
    assert parent.wait() == 0, parent.said
    floor.until_completed(*jobs)
    assert floor.session.execute("select distinct outcome from pgnotifyq.job_executions").fetchall() == [("completed",)]


def test_parent_is_killed(floor: Floor) -> None:
    """Its processes drain and end: none is left alone, and none cuts a job off for it."""
    parent = start(floor)
    job_id = floor.enqueue("short")
    floor.until("status = 'running' from pgnotifyq.jobs where id = %s", job_id)
    left = children(parent)
    parent.signal(signal.SIGKILL)
    parent.wait()
    _, alive = psutil.wait_procs(left, PATIENCE_SECONDS)
    assert alive == []
    floor.until_completed(job_id)
    assert floor.session.execute("select count(*) from pgnotifyq.worker_heartbeats").fetchone() == (0,)


def test_crash_loop(floor: Floor) -> None:
    """Each end is told, with a pause that grows; nobody spins, and the job dies as it would without a parent."""
    start(floor, "--concurrency", "1")
    job_id = floor.session.execute("select pgnotifyq.enqueue('crash', max_attempts => 3)").fetchone()
    assert job_id is not None
    floor.until("exists (select from pgnotifyq.dead_letter_jobs where id = %s)", job_id[0])
    wait(lambda: len(events(floor, "process.ended")) == 3)
    seats: dict[int, list[float]] = {}
    for told in events(floor, "process.ended"):
        assert told["exit_code"] == 9
        seats.setdefault(told["process"], []).append(told["restart_seconds"])
    for pauses in seats.values():
        assert all(later > sooner for sooner, later in pairwise(pauses))
        assert pauses[0] > 0.3


async def test_machine_that_starts_no_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The parent tells it, tries again after a pause until the machine has recovered, and leaks no socket."""
    told: list[Event] = []
    monkeypatch.setattr(sys, "orig_argv", [sys.executable, "-c", "import sys; sys.exit(3)"])
    good = sys.executable
    monkeypatch.setattr(sys, "executable", str(tmp_path / "not_there"))

    def tell(event: Event) -> None:
        told.append(event)
        if len(told) == 2:
            monkeypatch.setattr(sys, "executable", good)

    parent = _Parent(1, reloads=False, config=WorkerConfig(), emit=tell, manager=None)
    before = psutil.Process().num_fds()
    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(parent.keep, 0)
            while len(told) < 4:
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
    assert [event.name.value for event in told] == ["process.ended", "process.ended", "process.started", "process.ended"]
    for event in told[:2]:
        assert "could not be started" in str(event.fields["why"])
        assert "exit_code" not in event.fields
    assert told[3].fields["exit_code"] == 3
    assert psutil.Process().num_fds() <= before


def test_socket_to_the_parent_that_is_closed_behind_our_back() -> None:
    """As a handler does that closes every descriptor: it counts as the parent's end, and no thread spins."""

    class Link:
        def __init__(self) -> None:
            self.said = [b"2"]

        def recv(self, _bytes_max: int) -> bytes:
            if self.said:
                return self.said.pop()
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    class Ears:
        def __init__(self) -> None:
            self.told: list[int] = []

        def be_told(self, level: int) -> None:
            self.told.append(level)
            if len(self.told) > 10:
                raise SystemExit  # ends the thread alone

    ears: Any = Ears()
    link: Any = Link()
    Parent(0, link, None).obey(ears)
    wait(lambda: "pgnotifyq parent" not in {thread.name for thread in threading.enumerate()})
    assert ears.told == [INTERRUPT, DRAIN]


def test_wrong_command(floor: Floor) -> None:
    """If no process has ever been ready and one says that the command is wrong, the parent gives up, with its exit code."""
    (floor.folder / "an_app.py").write_text("import nothing_of_this_name\n")
    parent = start(floor, is_heard=False)
    assert parent.wait() == 2
    assert "nothing_of_this_name" in parent.said


def test_database_away_at_start(dsn: str, tmp_path: Path) -> None:
    """A process that cannot reach it is started again, after pauses; a signal ends the wait at once."""
    (tmp_path / "an_app.py").write_text(APP)
    with open_floor(dsn, tmp_path) as floor:
        parent = start(floor, is_heard=False, environment={"PGNOTIFYQ_DSN": "postgresql://127.0.0.1:1/x"})
        wait(lambda: len(events(floor, "process.ended")) >= 3)
        assert {told["exit_code"] for told in events(floor, "process.ended")} == {3}
        parent.signal(signal.SIGTERM)
        assert parent.wait() in {0, 3}


def test_changed_file(floor: Floor) -> None:
    """The processes start anew with it, jobs released uncharged; one that cannot be imported waits for the next save."""
    parent = start(floor, "--reload", "--shutdown-seconds", "3600", "--lease-seconds", "60")
    long = floor.enqueue("long")
    floor.until("status = 'running' from pgnotifyq.jobs where id = %s", long)
    (floor.folder / "an_app.py").write_text("def broken(:\n")
    wait(lambda: len({told["process"] for told in events(floor, "process.ended")}) == 2)
    assert floor.session.execute("select status, attempts from pgnotifyq.jobs where id = %s", (long,)).fetchone() == (
        "pending",
        0,
    )
    assert {told["exit_code"] for told in events(floor, "process.ended")} == {2}
    (floor.folder / "an_app.py").write_text(APP.replace("VERSION", "second"))
    until_two(floor, parent)
    job_id = floor.enqueue("quick")
    floor.until_completed(job_id)
    assert floor.session.execute("select result from pgnotifyq.jobs where id = %s", (job_id,)).fetchone() == ("second",)
    assert len(events(floor, "code.changed")) >= 2
    assert all("an_app.py" in told["files"] for told in events(floor, "code.changed"))


def test_reload_without_its_library(dsn: str, tmp_path: Path) -> None:
    """It is said in one line, with what to install."""
    (tmp_path / "watchfiles.py").write_text("raise ImportError('not here')\n")
    ran = subprocess.run(
        [sys.executable, "-m", "pgnotifyq", "worker", "--app", "an_app:registry", "--reload"],
        env={**os.environ, "PYTHONPATH": str(tmp_path), "PGNOTIFYQ_DSN": dsn}, capture_output=True, text=True, check=False,
        timeout=PATIENCE_SECONDS,
    )  # fmt: skip
    assert (ran.returncode, len(ran.stderr.splitlines())) == (2, 1)
    assert "pgnotifyq[reload]" in ran.stderr


def test_worst_exit_code() -> None:
    """Done, cut off, stuck, and then anything else; a signal before the start is no failure."""
    assert worst([]) == worst([0, -signal.SIGTERM]) == 0
    assert worst([0, 4, 0]) == 4
    assert worst([4, 5, 0]) == worst([4, -signal.SIGKILL]) == 5
    assert worst([5, 3]) == 3
    assert worst([5, -signal.SIGSEGV]) == 139


def test_more_processes_than_ports(dsn: str, tmp_path: Path) -> None:
    """It is refused before any process is started: the last one could never answer."""
    ran = subprocess.run(
        [sys.executable, "-m", "pgnotifyq", "worker", "--app", "an_app:registry", "--processes", "3", "--http", "127.0.0.1:65534"],
        cwd=tmp_path, env={**os.environ, "PGNOTIFYQ_DSN": dsn}, capture_output=True, text=True, check=False,
        timeout=PATIENCE_SECONDS,
    )  # fmt: skip
    assert (ran.returncode, ran.stdout, len(ran.stderr.splitlines())) == (2, "", 1)
    assert "process 3 would have port 65536" in ran.stderr


async def test_files_that_cannot_be_watched(autojump_clock: object) -> None:
    """The machine has no watch left: it is told, the processes go on, and the watch is tried again."""
    told: list[Event] = []
    tries: list[int] = []

    async def changes() -> AsyncIterator[set[tuple[object, str]]]:
        tries.append(1)
        if len(tries) == 1:
            raise OSError(errno.ENOSPC, "OS file watch limit reached")
        if len(tries) == 2:
            raise RuntimeError
        yield {(1, f"{Path.cwd()}/an_app.py")}

    parent = _Parent(1, reloads=True, config=WorkerConfig(), emit=told.append, manager=None)
    with trio.fail_after(PATIENCE_SECONDS):
        await parent.reload_for_ever(changes)
    assert [event.name.value for event in told] == ["code.unwatched", "code.unwatched", "code.changed"]
    assert "OS file watch limit reached" in str(told[0].fields["why"])
    assert told[1].fields["why"] == "RuntimeError: RuntimeError"
    assert told[2].fields["files"] == "an_app.py"
