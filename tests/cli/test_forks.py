"""Handlers that fork: their children are not the worker, and the worker is not ended by what they get."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli.support import PATIENCE_SECONDS, Floor, open_floor

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

APP = """
import concurrent.futures, ctypes, multiprocessing, os, signal, subprocess, sys, time
import pgnotifyq, trio
from pgnotifyq.wire import forks

registry = pgnotifyq.JobRegistry()
mp = multiprocessing.get_context("fork")

def square(n):
    return n * n

def sleep():
    time.sleep(600)

def begin():
    open("begun-" + str(os.getpid()), "w").close()
    time.sleep(600)

def code_of(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def ended(process, end):
    process.start()
    end(process)
    process.join(30)
    return process.exitcode

@registry.handler("quick")
async def quick(payload: dict) -> int:
    return 1

@registry.handler("pool")
def pool(payload: dict) -> list:
    with mp.Pool(2) as pool:
        return pool.map(square, range(4))

@registry.handler("executor")
def executor(payload: dict) -> list:
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=mp) as pool:
        return list(pool.map(square, range(4)))

@registry.handler("terminate")
def terminate(payload: dict) -> list:
    # At once: most get the signal before they are out of fork.
    return [ended(mp.Process(target=sleep), lambda process: process.terminate()) for _ in range(20)]

@registry.handler("terminate_from_the_loop")
async def terminate_from_the_loop(payload: dict) -> list:
    return [ended(mp.Process(target=sleep), lambda process: process.terminate())]

@registry.handler("hang_up")
def hang_up(payload: dict) -> list:
    return [ended(mp.Process(target=sleep), lambda process: os.kill(process.pid, signal.SIGHUP))]

@registry.handler("interrupt")
def interrupt(payload: dict) -> list:
    if (pid := os.fork()) == 0:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            os._exit(7)
        os._exit(0)
    return [code_of(pid)]

@registry.handler("grandchild")
def grandchild(payload: dict) -> list:
    if (pid := os.fork()) == 0:
        if (inner := os.fork()) == 0:
            signal.raise_signal(signal.SIGTERM)
            os._exit(0)
        os._exit(-code_of(inner))
    return [code_of(pid)]

@registry.handler("program")
def program(payload: dict) -> list:
    ways = [{}, {"preexec_fn": lambda: None}]
    processes = [subprocess.Popen(["sleep", "600"], **way) for way in ways]
    for process in processes:
        process.terminate()
    return [process.wait(30) for process in processes]

@registry.handler("extension")
def extension(payload: dict) -> list:
    # Python knows nothing of this fork.
    if (pid := ctypes.PyDLL(None).fork()) == 0:
        signal.raise_signal(signal.SIGTERM)
        os._exit(0)
    return [code_of(pid)]

@registry.handler("own_handler")
async def own_handler(payload: dict) -> list:
    before = signal.signal(signal.SIGTERM, lambda number, frame: os._exit(9))
    if (pid := os.fork()) == 0:
        signal.raise_signal(signal.SIGTERM)
        os._exit(0)
    signal.signal(signal.SIGTERM, before)
    return [code_of(pid)]

@registry.handler("sockets")
async def sockets(payload: dict) -> list:
    ours = {os.readlink(f"/proc/self/fd/{one.pgconn.socket}") for one in forks.connections if not one.closed}
    if (pid := os.fork()) == 0:
        found = set()
        for fileno in os.listdir("/proc/self/fd"):
            try:
                found.add(os.readlink(f"/proc/self/fd/{fileno}"))
            except OSError:
                pass
        os._exit(len(ours & found))
    return [len(ours) > 0, code_of(pid)]

@registry.handler("closes")
async def closes(payload: dict) -> list:
    if (pid := os.fork()) == 0:
        for one in list(map(lambda ref: ref(), payload_connections())):
            one.pgconn.finish()  # says goodbye, as `close` does
        os._exit(0)
    return [code_of(pid)]

def payload_connections():
    import gc, weakref
    from pgnotifyq.wire.connection import Connection
    return [weakref.ref(one) for one in gc.get_objects() if isinstance(one, Connection) and not one.closed]

@registry.handler("returns")
async def returns(payload: dict) -> list:
    if (pid := os.fork()) == 0:
        return ["child"]
    return [await trio.to_thread.run_sync(code_of, pid)]

@registry.handler("raises")
async def raises(payload: dict) -> list:
    if (pid := os.fork()) == 0:
        sys.exit(0)
    return [await trio.to_thread.run_sync(code_of, pid)]

@registry.handler("waits")
async def waits(payload: dict) -> list:
    if (pid := os.fork()) == 0:
        await trio.sleep(0)
        os._exit(0)
    return [await trio.to_thread.run_sync(code_of, pid)]

@registry.handler("returns_in_thread")
def returns_in_thread(payload: dict) -> str:
    return "child" if os.fork() == 0 else "parent"

@registry.handler("survivor")
async def survivor(payload: dict) -> None:
    mp.Process(target=begin).start()
    await trio.sleep_forever()

@registry.handler("gate")
async def gate(payload: dict) -> str:
    while not os.path.exists("gate"):
        await trio.sleep(0.01)
    return "finished"

@registry.handler("crowd")
def crowd(payload: dict) -> None:
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=mp) as pool:
        pool.submit(begin)
        waited_for = pool.submit(begin)
        raise RuntimeError(repr(waited_for.exception()))
"""

SIGNALLED = {
    "terminate": [-15] * 20,
    "terminate_from_the_loop": [-15],
    "hang_up": [-1],
    "interrupt": [7],  # the child's Python raises KeyboardInterrupt, as any does
    "grandchild": [15],
    "program": [-15, -15],
    "extension": [0],  # nobody gave it back its signals; but what it gets is not the worker's
    "own_handler": [9],
    "pool": [0, 1, 4, 9],
    "executor": [0, 1, 4, 9],
}
COPIES = {"sockets": [True, 0], "closes": [0], "returns": [1], "raises": [1], "waits": [1], "returns_in_thread": "parent"}


@pytest.fixture
def floor(dsn: str, tmp_path: Path) -> Iterator[Floor]:
    (tmp_path / "forking.py").write_text(APP)
    with open_floor(dsn, tmp_path) as floor:
        yield floor


def results(floor: Floor) -> dict[str, Any]:
    return dict(floor.session.execute("select job_type, result from pgnotifyq.jobs").fetchall())


def test_children_get_their_own_signals(floor: Floor) -> None:
    """However they were made, they heed what ends any process; the worker heeds none of it, and goes on."""
    worker = floor.start("forking", "--concurrency", "1")
    floor.until_completed(*[floor.enqueue(job_type) for job_type in SIGNALLED])
    floor.until_completed(floor.enqueue("quick"))
    assert results(floor) == {**SIGNALLED, "quick": 1}
    assert floor.session.execute("select state from pgnotifyq.worker_heartbeats").fetchall() == [("running",)]
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0


def test_children_are_no_second_worker(floor: Floor) -> None:
    """They hold no session of the worker's, can end none, and one that comes back from its handler ends and is told of."""
    worker = floor.start("forking", "--concurrency", "1")
    sessions = "array_agg(pid order by pid) from pg_stat_activity where application_name like 'pgnotifyq %' and datname = current_database()"
    before = floor.session.execute(f"select {sessions}".encode()).fetchone()
    for job_type in COPIES:
        floor.until_completed(floor.enqueue(job_type))
    floor.until_completed(floor.enqueue("quick"))
    assert results(floor) == {**COPIES, "quick": 1}
    assert floor.session.execute(f"select {sessions}".encode()).fetchone() == before
    assert floor.session.execute("select count(*), count(distinct job_id) from pgnotifyq.job_executions").fetchone() == (7, 7)
    assert worker.said.count("came back from it") == 3
    assert "Traceback" not in worker.said
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0


def test_child_that_outlives_its_worker(floor: Floor) -> None:
    """The worker is killed, the child lives on: the server sees the worker's sessions end."""
    worker = floor.start("forking")
    floor.enqueue("survivor")
    while not (begun := list(floor.folder.glob("begun-*"))):
        floor.until("pg_sleep(0.01) is not null", of=worker)
    worker.signal(signal.SIGKILL)
    floor.until(
        "not exists (select from pg_stat_activity where application_name like 'pgnotifyq %%' and datname = current_database())"
    )
    os.kill(int(begun[0].name.removeprefix("begun-")), 0)  # it is there


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_to_the_whole_group(floor: Floor, number: signal.Signals) -> None:
    """What systemd, `kill -- -PGID`, Ctrl-C and a closed terminal send, once to each process: it counts once, and jobs may finish."""
    worker = floor.start("forking")
    gate = floor.enqueue("gate")
    crowd = floor.enqueue("crowd")
    floor.until("count(*) = 2 from pgnotifyq.jobs where status = 'running'", of=worker)
    while len(list(floor.folder.glob("begun-*"))) < 2:
        floor.until("pg_sleep(0.01) is not null", of=worker)
    os.killpg(worker.process.pid, number)
    floor.until("exists (select from pgnotifyq.dead_letter_jobs where id = %s)", crowd)  # its children have got it as well
    (floor.folder / "gate").touch()
    assert worker.wait() == 0
    assert floor.status(gate) == "completed"


@pytest.mark.skipif(sys.platform != "linux", reason="GNU's timeout")
def test_signal_that_is_passed_on_twice(floor: Floor) -> None:
    """`timeout` passes on a signal to the worker, and to the group that the worker is in: it counts once."""
    worker = floor.start("forking", prefix=("timeout", str(PATIENCE_SECONDS)))
    gate = floor.enqueue("gate")
    floor.until("count(*) = 1 from pgnotifyq.jobs where status = 'running'", of=worker)
    worker.signal(signal.SIGTERM)
    floor.until("state = 'draining' from pgnotifyq.worker_heartbeats", of=worker)
    (floor.folder / "gate").touch()
    assert worker.wait() == 0
    assert floor.status(gate) == "completed"
