"""What is the blocking client's own: threads, forks, and event loops that are in the same thread."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
import trio

import pgnotifyq.sync
from pgnotifyq.doors import ends
from pgnotifyq.model.errors import DatabaseUnreachable, PgnotifyqError, WaitTimeout
from pgnotifyq.wire.blocking import wait_notifications
from tests.doors.support import AWAITED, LISTENER, SOON_SECONDS
from tests.doors.test_every_client import complete, until
from tests.proxy import Proxy, run_proxy

ROOT = Path(__file__).resolve().parents[2]
SESSIONS = (
    "select array_agg(pid order by pid) from pg_stat_activity"
    " where datname = current_database() and application_name like 'pgnotifyq client%'"
)
Client = pgnotifyq.sync.Client


@pytest.fixture
def client(dsn: str) -> Iterator[Client]:
    with pgnotifyq.sync.open_client(dsn) as client:
        yield client


def sessions(dsn: str) -> Any:
    with psycopg.connect(dsn) as connection:
        return connection.execute(SESSIONS).fetchone()


# Threads


def test_many_threads(dsn: str, client: Client) -> None:
    """Thirty threads enqueue and look on four connections; each is told of its own job."""

    def ask(n: int) -> bool:
        job_id = client.enqueue("noop", {"n": n})
        return bool(client.get(job_id).payload == {"n": n})

    with ThreadPoolExecutor(30) as threads:
        assert all(threads.map(ask, range(300)))
    assert len(sessions(dsn)[0]) <= 4
    assert len(client.jobs(limit=1000)) == 300


def test_threads_that_wait_and_leave(dsn: str, client: Client, no_backstop: None) -> None:
    """Waits begin, give up and end at once, again and again: none is lost, and none is left."""
    ids = client.enqueue_many([{"job_type": "noop"}] * 24)

    def wait(n: int) -> str:
        try:
            return client.wait(ids[n], 0.02 * (n % 8) + 0.01 if n % 2 else 30.0).status
        except WaitTimeout:
            return client.wait(ids[n], 30.0).status

    with ThreadPoolExecutor(24) as threads:
        waits = [threads.submit(wait, n) for n in range(24)]
        for _ in range(24):
            complete(dsn)
        assert {one.result(SOON_SECONDS) for one in waits} == {"completed"}
    inside = client._inside().ends
    assert not inside._waiters and inside._connection is None and not inside._is_led


def test_a_client_that_is_closed_while_threads_wait(dsn: str) -> None:
    """Each of them is told, and no thread is left."""
    before = set(threading.enumerate())
    with ThreadPoolExecutor(3) as threads:
        with pgnotifyq.sync.open_client(dsn) as client:
            ids = client.enqueue_many([{"job_type": "noop"}] * 3)
            waits = [threads.submit(client.wait, job_id) for job_id in ids]
            until(dsn, "count(*) = 3 from pgnotifyq.jobs where awaited")
        for wait in waits:
            with pytest.raises(PgnotifyqError, match="closed"):
                wait.result()
    assert set(threading.enumerate()) == before
    with pytest.raises(PgnotifyqError, match="closed"):
        client.enqueue("noop")


def test_nothing_polls(dsn: str, client: Client, monkeypatch: pytest.MonkeyPatch, no_backstop: None) -> None:
    """A thread that waits asks its connection once, and is woken by what arrives."""
    waits: list[float] = []

    def count(connection: Any, seconds: float) -> Any:
        waits.append(seconds)
        return wait_notifications(connection, seconds)

    monkeypatch.setattr("pgnotifyq.doors.blocking_ends.wait_notifications", count)
    job_id = client.enqueue("noop")
    with ThreadPoolExecutor(1) as threads:
        wait = threads.submit(client.wait, job_id)
        until(dsn, AWAITED)
        complete(dsn)
        assert wait.result(SOON_SECONDS).id == job_id
    assert len(waits) == 1 and waits[0] > 60.0


def test_a_deaf_listener(dsn: str, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """The backstop finds the end that nobody told, and the deaf connection is replaced."""
    monkeypatch.setattr("pgnotifyq.doors.blocking_ends.listen", lambda *_: None)
    monkeypatch.setattr(ends, "LOOK_SECONDS", 0.2)
    job_id = client.enqueue("noop")
    with ThreadPoolExecutor(1) as threads:
        wait = threads.submit(client.wait, job_id)
        until(dsn, AWAITED)
        with psycopg.connect(dsn) as looks:
            (before,) = looks.execute("select pid from pg_stat_activity where application_name = %s", (LISTENER,)).fetchall()
        complete(dsn)
        assert wait.result(SOON_SECONDS).id == job_id
    until(dsn, "not exists (select from pg_stat_activity where pid = %s)", *before)


# Event loops


def test_in_the_thread_of_an_event_loop(dsn: str, client: Client) -> None:
    """It works, on asyncio and on trio; the loop stands still meanwhile."""

    async def ask() -> Any:
        job_id = client.enqueue("noop")
        complete(dsn)
        return client.wait(job_id, 30.0).status

    assert asyncio.run(ask()) == "completed"
    assert trio.run(ask) == "completed"


# Forks


def in_child(act: Any) -> int:
    """Fork, act in the child, and return its exit code."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            act()
            code = 0
        except BaseException as error:  # noqa: BLE001  # the child ends here, whatever it is
            print(repr(error), file=sys.stderr, flush=True)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_fork(dsn: str, client: Client, no_backstop: None) -> None:
    """The child opens connections of its own. The parent's go on, the one that listens too."""
    job_id = client.enqueue("noop", {"of": "parent"})
    with ThreadPoolExecutor(1) as threads:
        wait = threads.submit(client.wait, job_id)
        until(dsn, AWAITED)
        before = sessions(dsn)

        def act() -> None:
            client.enqueue("child", {"of": "child"}, queue="q")
            assert client.get(job_id).status == "pending"
            with pytest.raises(WaitTimeout):
                client.wait(job_id, 0.1)
            assert _pid(client) not in before[0]

        assert in_child(act) == 0
        assert sessions(dsn) == before
        complete(dsn)
        assert wait.result(SOON_SECONDS).id == job_id
    assert [job.payload for job in client.jobs(queue="q")] == [{"of": "child"}]
    assert sessions(dsn)[0][0] in before[0]


def _pid(client: Client) -> int:
    with client._inside().pool.connection() as connection:
        return connection.info.backend_pid


def test_a_fork_while_another_thread_asks(dsn: str, client: Client) -> None:
    """Whatever lock that thread holds in the parent, the child is not held up by it."""
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            client.enqueue("parent")

    def act() -> None:
        for _ in range(3):
            client.enqueue("child", queue="q")

    with ThreadPoolExecutor(3) as threads:
        asking = [threads.submit(ask) for _ in range(3)]
        try:
            assert [in_child(act) for _ in range(10)] == [0] * 10
        finally:
            stop.set()
        for one in asking:
            one.result()
    assert len(client.jobs(queue="q", limit=100)) == 30


_of_children: Any = None


def enqueue_in_child(n: int) -> str:
    return str(_of_children.enqueue("child", {"n": n}, queue="q"))


def test_multiprocessing(dsn: str, client: Client) -> None:
    """A pool of forked processes uses the client that its parent has opened."""
    global _of_children  # noqa: PLW0603  # what a program has in a module before it forks
    _of_children = client
    client.enqueue("parent")
    with multiprocessing.get_context("fork").Pool(3) as processes:
        ids = processes.map(enqueue_in_child, range(20))
        processes.close()
        processes.join()
    assert len(set(ids)) == 20
    assert sorted(job.payload["n"] for job in client.jobs(queue="q")) == list(range(20))
    client.enqueue("parent")


PRELOADED = """
import contextlib, os, signal, sys, threading
import pgnotifyq.sync

# What a server that preloads its application does: the module is imported in the master, which then forks its workers.
opened = contextlib.ExitStack()
client = opened.enter_context(pgnotifyq.sync.open_client(sys.argv[1]))
client.enqueue("master")

def serve(n):
    # A worker of gthread's: several threads, and a signal that ends it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    threads = [threading.Thread(target=client.enqueue, args=("worker", {"n": n})) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.kill(os.getpid(), signal.SIGTERM)
    signal.pause()

workers = []
for n in range(4):
    pid = os.fork()
    if pid == 0:
        serve(n)
    workers.append(pid)
codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in workers]
client.enqueue("master")
opened.close()
print(codes, [thread.name for thread in threading.enumerate()])
"""


def test_an_application_that_is_preloaded(dsn: str, client: Client) -> None:
    """Opened in the master, used in each worker by several threads, and by the master again; all end in order, and say nothing."""
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", PRELOADED, dsn], capture_output=True, text=True, cwd=ROOT, timeout=60, check=False
    )
    assert (ended.stdout.strip(), ended.stderr) == ("[0, 0, 0, 0] ['MainThread']", "")
    counted = {job_type: len(client.jobs(job_type=job_type)) for job_type in ("master", "worker")}
    assert counted == {"master": 2, "worker": 16}


# A server that does not answer


@pytest.fixture
async def proxy(dsn: str, nursery: trio.Nursery) -> Proxy:
    return await nursery.start(run_proxy, dsn)  # type: ignore[no-any-return]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up soon what is given up some time: the defaults are of seconds and minutes."""
    for name in ("LISTEN_DEADLINE_SECONDS", "LOOK_DEADLINE_SECONDS", "LOOK_SECONDS", "LISTEN_RETRY_SECONDS"):
        monkeypatch.setattr(ends, name, 0.2)


async def test_a_frozen_server(dsn: str, proxy: Proxy, impatient: None) -> None:
    """Nothing answers any more, and no error comes: a wait ends by its timeout all the same; when it thaws all is well."""

    def begin() -> Any:
        opened = pgnotifyq.sync.open_client(proxy.dsn)
        client = opened.__enter__()
        job_id = client.enqueue("noop")
        with pytest.raises(WaitTimeout):
            client.wait(job_id, 0.3)
        return opened, client, job_id

    opened, client, job_id = await trio.to_thread.run_sync(begin)
    proxy.freeze()

    def wait() -> None:
        with pytest.raises(WaitTimeout):
            client.wait(job_id, 1.5)

    await trio.to_thread.run_sync(wait)
    proxy.thaw()

    def go_on() -> None:
        complete(dsn)
        assert client.wait(job_id, 30.0).status == "completed"
        opened.__exit__(None, None, None)

    await trio.to_thread.run_sync(go_on)


async def test_a_database_that_stays_away(proxy: Proxy, impatient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a timeout a wait does not last for ever."""
    monkeypatch.setattr(ends, "OUTAGE_SECONDS_MAX", 0.2)

    def begin() -> Any:
        opened = pgnotifyq.sync.open_client(proxy.dsn)
        client = opened.__enter__()
        return opened, client, client.enqueue("noop")

    opened, client, job_id = await trio.to_thread.run_sync(begin)
    proxy.freeze()

    def wait() -> None:
        with pytest.raises(DatabaseUnreachable, match="not answered"):
            client.wait(job_id)

    await trio.to_thread.run_sync(wait)
    proxy.thaw()
    await trio.to_thread.run_sync(opened.__exit__, None, None, None)
