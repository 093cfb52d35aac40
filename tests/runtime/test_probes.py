"""Probes of real workers under real faults, at the settings that workers have when nobody sets any.

Each probe is asked from a thread, as a cluster asks from outside: also while the loop of the worker, which is the test's own, is held.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio
from psycopg.conninfo import make_conninfo

from pgnotifyq import ConfigError, EventName, JobRegistry, WorkerConfig, run_worker
from pgnotifyq.embedded import open_temporary_server
from pgnotifyq.migrating import migrate
from pgnotifyq.runtime import http
from pgnotifyq.runtime.meter import BEAT_SECONDS, Vitals
from pgnotifyq.runtime.probes import live, ready
from pgnotifyq.wire.connection import open_connection
from tests.cli.support import open_floor
from tests.proxy import Proxy, run_proxy
from tests.runtime.probing import Answer, ask, get, parsed, refused, until
from tests.runtime.support import PATIENCE_SECONDS, Log, Worker, Workplace, _work, open_workplace

if TYPE_CHECKING:
    from pathlib import Path

Payload = dict[str, Any]
FREE = "127.0.0.1:0"


def is_ok(answer: Answer) -> bool:
    """A probe that succeeded."""
    return answer.status == 200


async def start(place: Workplace, registry: JobRegistry | None = None, dsn: str | None = None, **settings: Any) -> Worker:
    """Start a worker as it comes, with probes."""
    own = JobRegistry()
    own.handler("noop")(noop)
    worker: Worker = await place.nursery.start(
        partial(_work, registry or own, dsn or place.dsn, log=Log(), **{"http": FREE, **settings})
    )
    return worker


async def noop(payload: Payload) -> None: ...


async def test_worker_that_is_well(place: Workplace) -> None:
    """Both probes succeed, and say by name what was looked at."""
    worker = await start(place)
    answer = await until(worker, "/ready", is_ok)
    assert list(answer.told["checks"]) == ["worker", "loop", "database", "listener"]
    assert answer.told["ok"] is True and answer.failed == {}
    assert answer.headers["content-type"] == "application/json" and answer.headers["cache-control"] == "no-store"
    well = {"ok": True, "checks": {"loop": {"ok": True, "says": "turning"}}}
    await until(worker, "/live", lambda answer: answer.told == well)
    assert worker.log.find(EventName.WORKER_STARTED)[0]["http"] == worker.handle.http


async def test_loop_that_is_held(place: Workplace) -> None:
    """The worker lives, for what it holds is still its own; it is not ready, and says why; and it is again when the loop turns."""
    registry = JobRegistry()
    answers: dict[str, Answer] = {}
    seen = threading.Event()

    def probe(address: str) -> None:
        if (answer := refused(address, "/ready")) is not None:
            answers.update(ready=answer, live=get(address, "/live"), metrics=get(address, "/metrics"))
            seen.set()

    @registry.handler()
    async def hold(payload: Payload) -> None:
        threading.Thread(target=probe, args=(worker.handle.http,)).start()
        assert seen.wait(PATIENCE_SECONDS)  # nothing else ends it

    worker = await start(place, registry)
    await until(worker, "/ready", is_ok)
    job_id = await place.enqueue("hold")
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    assert answers["ready"].status == 503 and answers["ready"].failed["loop"].startswith("held for ")
    assert answers["live"].status == 200
    assert "worker_loop_held_seconds 1." in answers["metrics"].body
    await until(worker, "/ready", is_ok)


async def test_loop_that_is_held_until_its_leases_are_lost(place: Workplace) -> None:
    """Then it does not live. Tuned, for a lease of a minute would take one; at the defaults `test_when_a_worker_lives` says when."""
    registry = JobRegistry()
    answers: list[Answer] = []
    seen = threading.Event()

    def probe(address: str) -> None:
        if (answer := refused(address, "/live")) is not None:
            answers.append(answer)
            seen.set()

    @registry.handler()
    async def hold(payload: Payload) -> None:
        threading.Thread(target=probe, args=(worker.handle.http,)).start()
        assert seen.wait(PATIENCE_SECONDS)

    worker = await start(place, registry, lease_seconds=4.0)
    await place.enqueue("hold")
    await until(worker, "/live", lambda answer: bool(answers) and is_ok(answer))
    assert answers[0].status == 503 and answers[0].failed["loop"].startswith("held for ")


async def test_listener_that_is_deaf(place: Workplace) -> None:
    """It is not ready, unless the prober says that polling will do; and it lives, for it works."""
    cable: Proxy = await place.nursery.start(run_proxy, place.dsn)
    cable.drop_notifications()
    worker = await start(place, dsn=cable.dsn)
    await worker.log.wait(EventName.LISTENER_POLLING)
    answer = await until(worker, "/ready", lambda answer: list(answer.failed) == ["listener"])
    assert answer.status == 503 and answer.failed == {"listener": "polling"}
    await until(worker, "/ready?polling=ok", is_ok)
    assert (await ask(worker, "/ready?polling=yes")).status == 503
    assert (await ask(worker, "/live")).status == 200
    job_id = await place.enqueue("noop")
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)


async def test_server_that_is_stopped_and_started() -> None:
    """Not ready while it is away, ready when it is back; and never dead, or every worker would be restarted for it."""
    opened = open_temporary_server()
    server = await trio.to_thread.run_sync(opened.__enter__)
    try:
        async with open_connection(server.dsn) as connection:
            await migrate(connection)
        async with open_connection(server.dsn) as connection, open_workplace(server.dsn, connection) as place:
            worker = await start(place)
            await until(worker, "/ready", is_ok)
            await trio.to_thread.run_sync(server.stop)
            answer = await until(worker, "/ready?polling=ok", lambda answer: list(answer.failed) == ["database"])
            assert answer.failed["database"].startswith("away; answered ")
            await until(worker, "/ready", lambda answer: list(answer.failed) == ["database", "listener"])
            assert (await ask(worker, "/live")).status == 200
            await trio.to_thread.run_sync(server.start)
            await until(worker, "/ready", is_ok)
            await worker.leave()
    finally:
        await trio.to_thread.run_sync(opened.__exit__, None, None, None)


async def test_worker_that_drains(place: Workplace) -> None:
    """It is not ready any more, and lives until its last job has ended."""
    registry = JobRegistry()
    let_go = trio.Event()

    @registry.handler()
    async def work(payload: Payload) -> None:
        await let_go.wait()

    worker = await start(place, registry)
    await until(worker, "/ready", is_ok)
    job_id = await place.enqueue("work")
    await worker.log.wait(EventName.JOB_CLAIMED, job_id=job_id)
    worker.handle.drain()
    await until(worker, "/ready", lambda answer: answer.failed == {"worker": "draining"})
    assert (await ask(worker, "/live")).status == 200
    let_go.set()
    await worker.ended.wait()
    with pytest.raises(ConnectionRefusedError):
        await ask(worker, "/live")


async def test_database_that_is_away_from_the_start(place: Workplace) -> None:
    """A worker that cannot start says so by its end, and its port is free."""
    with pytest.raises(Exception, match=r"refused|unreachable|not answer"):
        await run_worker(JobRegistry(), make_conninfo(place.dsn, host="127.0.0.1", port=1), http="127.0.0.1:0")


def vitals(**fields: Any) -> Vitals:
    """How a worker that is well says it is."""
    well = Vitals(
        at=time.monotonic(), state="working", is_listening=True, is_database_up=True, database_seconds=0.1, concurrency=10
    )
    return attrs.evolve(well, **fields)


@pytest.mark.parametrize(("held_seconds", "lives"), [(0, True), (1, True), (54, True), (56, False), (3600, False)])
def test_when_a_worker_lives(held_seconds: float, *, lives: bool) -> None:
    """At the defaults: until the leases of its jobs are lost, which is 55 s after the loop last turned."""
    config = WorkerConfig()
    silent = vitals(at=time.monotonic() - held_seconds - BEAT_SECONDS)
    assert all(check.is_ok for check in live(silent, config).values()) is lives


def test_worker_that_starts_lives() -> None:
    """However long its lifespans take: it holds no lease, and a restart would begin anew. It is not ready."""
    starting = vitals(at=time.monotonic() - 3600, state="starting", database_seconds=None)
    assert all(check.is_ok for check in live(starting, WorkerConfig()).values())
    assert not ready(starting, WorkerConfig())["worker"].is_ok


@pytest.mark.parametrize(
    ("fields", "failed"),
    [
        ({}, []),
        ({"state": "starting", "database_seconds": None, "is_listening": False}, ["worker", "database", "listener"]),
        ({"state": "draining"}, ["worker"]),
        ({"is_listening": False}, ["listener"]),
        ({"is_database_up": False}, ["database"]),
        # A listener that proves itself asks every 12 s and waits 2.5 s; a full worker that polls asks every 20 s.
        ({"database_seconds": 14.5}, []),
        ({"database_seconds": 29.0}, []),
        ({"database_seconds": 31.0}, ["database"]),
    ],
    ids=str,
)
def test_when_a_worker_is_ready(fields: dict[str, Any], failed: list[str]) -> None:
    """At the defaults."""
    checks = ready(vitals(**fields), WorkerConfig())
    assert [name for name, check in checks.items() if not check.is_ok] == failed


def test_loop_that_is_held_is_not_ready() -> None:
    """At the defaults, after a second; what is known of the database ages meanwhile."""
    config = WorkerConfig()
    assert ready(vitals(at=time.monotonic() - 0.9), config)["loop"].is_ok
    old = ready(vitals(at=time.monotonic() - 40), config)
    assert not old["loop"].is_ok and not old["database"].is_ok


# What a port that anybody may reach has to bear.


async def test_only_get_and_head_of_three_paths(place: Workplace) -> None:
    """Everything else is refused, and nothing of it is repeated."""
    worker = await start(place)
    address = str(worker.handle.http)

    def asked(method: str, path: str) -> Answer:
        return get(address, path, method)

    run = trio.to_thread.run_sync
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE", "BREW"):
        answer = await run(asked, method, "/live")
        assert answer.status == 405 and method not in answer.body
    for path in ("/", "/liveness", "/live/", "/metrics/../live", "/<script>", "/%6cive"):
        answer = await run(asked, "GET", path)
        assert answer.status == 404 and "script" not in answer.body
    head, whole = await run(asked, "HEAD", "/live"), await run(asked, "GET", "/live")
    assert head.status == 200 and head.body == ""
    assert head.headers["content-length"] == whole.headers["content-length"] == str(len(whole.body))
    assert "python" not in whole.headers["server"].lower()


@pytest.mark.parametrize(
    "sent",
    [b"\r\n\r\n", b"nonsense\r\n\r\n", b"GET\r\n\r\n", b"GET /live HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00", b"GET /live HTTP/1.1\r\n" + b"a: b\r\n" * 500 + b"\r\n",
     b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", b"GET /live HTTP/1.1\r\nContent-Length: 9999999\r\n\r\n", b"GET //[ HTTP/1.0\r\n\r\n"],
    ids=lambda sent: repr(sent[:20]),
)  # fmt: skip
async def test_requests_that_are_none(place: Workplace, sent: bytes) -> None:
    """Each is answered or cut off, and the next is answered as ever."""
    worker = await start(place)
    host, _, port = str(worker.handle.http).rpartition(":")
    async with await trio.open_tcp_stream(host, int(port)) as stream:
        with trio.fail_after(PATIENCE_SECONDS):
            try:
                await stream.send_all(sent)
                await stream.send_eof()
                while await stream.receive_some():
                    pass
            except trio.BrokenResourceError:
                pass  # it was cut off
    assert (await ask(worker, "/live")).status == 200


async def test_clients_that_say_nothing(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are cut off after ten seconds; here after less, for the bound is a constant and no setting. Then probes are answered."""
    monkeypatch.setattr(http, "CONNECTION_SECONDS_MAX", 0.5)
    worker = await start(place)
    host, _, port = str(worker.handle.http).rpartition(":")
    async with trio.open_nursery() as nursery:
        for _ in range(3 * http.CONNECTIONS_MAX):

            async def linger() -> None:
                async with await trio.open_tcp_stream(host, int(port)) as stream:
                    try:
                        for _ in range(1000):  # a piece now and then keeps the time of one read from passing
                            await stream.send_all(b"a")
                            with trio.move_on_after(0.05):
                                if not await stream.receive_some():
                                    return
                    except trio.BrokenResourceError:
                        return
                raise AssertionError("nobody cut it off")

            nursery.start_soon(linger)
    assert (await ask(worker, "/live")).status == 200


async def test_address_that_is_taken(place: Workplace) -> None:
    """A worker does not start without its probes, and says which address it could not have."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{port}.*taken"):
            await run_worker(JobRegistry(), place.dsn, http=f"127.0.0.1:{port}")
    for host in ("nowhere.invalid", "worker..internal", "a" * 64):
        with pytest.raises(ConfigError, match=rf"{host}:1 cannot be opened"):
            await run_worker(JobRegistry(), place.dsn, http=f"{host}:1")


async def test_worker_without_probes(place: Workplace) -> None:
    """Nothing is opened, counted or published: what is not used costs nothing."""
    worker = await start(place, http=None)
    job_id = await place.enqueue("noop")
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    assert worker.handle.http is None
    assert not [thread for thread in threading.enumerate() if thread.name == "pgnotifyq http"]
    assert "http" not in worker.log.find(EventName.WORKER_STARTED)[0]


async def test_child_that_outlives_its_worker(place: Workplace) -> None:
    """A process that a handler has forked does not keep the port: the next worker can have it."""
    worker = await place.start_process(http=FREE)
    address = worker.log.find(EventName.WORKER_STARTED)[0]["http"]
    await place.enqueue("forks")
    with trio.fail_after(PATIENCE_SECONDS):
        while not (told := [fields for name, fields in worker.log.told if name == "child"]):
            await trio.sleep(0.01)
    child = int(told[0]["pid"])
    try:
        worker.kill()
        await worker.wait()
        os.kill(child, 0)  # it is there
        with pytest.raises(ConnectionRefusedError):
            await trio.to_thread.run_sync(get, address, "/live")
        await start(place, http=address)
    finally:
        os.kill(child, signal.SIGKILL)


def test_worker_process(dsn: str, tmp_path: Path) -> None:
    """`--http` of the command: where it answers is in the log, and IPv6 is spoken where there is any."""
    (tmp_path / "app.py").write_text(
        "import pgnotifyq\nregistry = pgnotifyq.JobRegistry()\nregistry.handler('noop')(lambda p: None)\n"
    )
    host = "[::1]" if has_ipv6() else "127.0.0.1"
    with open_floor(dsn, tmp_path) as floor:
        worker = floor.start("app", "--http", f"{host}:0", stdout=subprocess.PIPE, text=True)
        assert worker.process.stdout is not None
        line = next(line for line in worker.process.stdout if "worker.started" in line)
        (address,) = [word.removeprefix("http=") for word in line.split() if word.startswith("http=")]
        assert address.startswith(host) and not address.endswith(":0")
        wait_ready(address)
        worker.process.stdout.close()


def test_several_processes(dsn: str, tmp_path: Path) -> None:
    """Each of `--processes` answers at a port of its own: the one that is given, and the next."""
    (tmp_path / "app.py").write_text(
        "import pgnotifyq\nregistry = pgnotifyq.JobRegistry()\nregistry.handler('noop')(lambda p: None)\n"
    )
    first = two_free_ports()
    with open_floor(dsn, tmp_path) as floor:
        floor.start("app", "--processes", "2", "--http", f"127.0.0.1:{first}", is_heard=False)
        workers = set()
        for port in (first, first + 1):
            address = f"127.0.0.1:{port}"
            wait_ready(address)
            (labels,) = [dict(labels) for name, labels in parsed(get(address, "/metrics").body) if name == "worker_info"]
            workers.add(labels["worker_id"])
        assert len(workers) == 2


def two_free_ports() -> int:
    """Return a port that is free, as the next one is."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as one:
            port: int = one.getsockname()[1]
            try:
                socket.create_server(("127.0.0.1", port + 1)).close()
            except (OSError, OverflowError):
                continue
            return port


def wait_ready(address: str) -> None:
    """Wait until a worker process is ready, from before its port is there."""
    deadline = time.monotonic() + 3 * PATIENCE_SECONDS
    while True:
        try:
            if get(address, "/ready").status == 200:
                return
        except OSError:
            pass
        assert time.monotonic() < deadline
        time.sleep(0.05)


def has_ipv6() -> bool:
    """Whether this machine can listen at ::1."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True
