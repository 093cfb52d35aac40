"""What every client promises, on trio, on asyncio and blocking: it hears, outlives, and says why it cannot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import trio
from psycopg.conninfo import make_conninfo

import pgnotifyq
from pgnotifyq.embedded import open_temporary_server
from pgnotifyq.ledger import claim as claim_verbs
from pgnotifyq.ledger import end
from pgnotifyq.model.errors import DatabaseUnreachable, PgnotifyqError, PoolTimeout, SchemaMissing, WaitTimeout
from pgnotifyq.model.job import JobId, Lease
from pgnotifyq.wire import pooling
from pgnotifyq.wire.asking import ask_blocking
from pgnotifyq.wire.connection import open_connection
from tests.doors.every_door import CLIENTS, Door
from tests.doors.support import AWAITED, LISTENER, LISTENING, SOON_SECONDS
from tests.ledger.support import ANN, ENDINGS, SCHEMA
from tests.runtime.test_failover import Pair, open_pair

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 30.0  # ends a test that fails


def until(dsn: str, condition: str, *parameters: object) -> None:
    """Wait until the SQL `condition` holds."""
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    with psycopg.connect(dsn, autocommit=True) as connection:
        while not connection.execute(f"select {condition}".encode(), parameters).fetchone()[0]:  # type: ignore[index]
            assert time.monotonic() < give_up_at, condition
            time.sleep(0.01)


def complete(dsn: str, count: int = 1) -> None:
    """Be the worker that takes jobs, and completes them."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        found = ask_blocking(
            connection, claim_verbs.claim(SCHEMA, worker_id=ANN, queues=["default"], jobs_max=count, lease_seconds=600.0)
        )
        assert len(found.jobs) == count
        leases = [(Lease(job.id, job.current_execution_id), ENDINGS["complete"]) for job in found.jobs]
        ask_blocking(connection, end.settle(SCHEMA, worker_id=ANN, settlements=leases))


@contextmanager
def worker_process(dsn: str) -> Iterator[None]:
    """Run a worker of the queue, on trio, in a process of its own."""
    command = [sys.executable, "-m", "tests.runtime.apps.worker", dsn, "{}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}) as process:
        assert process.stdout is not None
        rest = threading.Thread(target=process.stdout.read)
        try:
            for line in process.stdout:
                if json.loads(line)["event"] == "listener.connected":
                    break
            rest.start()
            yield
        finally:
            process.kill()
            rest.join()


@pytest.fixture(params=CLIENTS)
def open_door(request: pytest.FixtureRequest) -> Any:
    """A function that opens a client."""
    return CLIENTS[request.param]


@pytest.fixture
def door(open_door: Any, dsn: str) -> Iterator[Door]:
    with open_door(dsn) as door:
        yield door


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """Threads to wait in."""
    with ThreadPoolExecutor(20) as threads:
        yield threads


def test_a_worker_in_another_process(dsn: str, door: Door, no_backstop: None) -> None:
    """It takes what the client enqueues, alone and in a batch, and the client hears of each end; a running job is stopped."""
    with worker_process(dsn):
        ids = [door.do("enqueue", "short", {}), *door.do("enqueue_many", [{"job_type": "short", "payload": {}}] * 3)]
        assert {door.do("wait", job_id, PATIENCE_SECONDS).status for job_id in ids} == {"completed"}
        running = door.do("enqueue", "linger", {})
        until(dsn, "status = 'running' from pgnotifyq.jobs where id = %s", running)
        assert door.do("cancel", running, wait_seconds=PATIENCE_SECONDS) == "cancelled"
        assert [worker.state for worker in door.do("workers")] == ["running"]


def wait_for(threads: ThreadPoolExecutor, door: Door, ids: list[JobId]) -> list[Future[Any]]:
    """Wait in threads. What is not heard is found when time is up, long after `SOON_SECONDS`."""
    return [threads.submit(door.do, "wait", job_id, PATIENCE_SECONDS) for job_id in ids]


def test_many_wait_on_one_listener(dsn: str, door: Door, threads: ThreadPoolExecutor, no_backstop: None) -> None:
    """Each hears of its own job, two may wait for the same, and then nobody listens."""
    ids = door.do("enqueue_many", [{"job_type": "noop"}] * 8)
    waits = wait_for(threads, door, [*ids, ids[3]])
    until(dsn, "count(*) = 8 from pgnotifyq.jobs where awaited")
    until(dsn, "count(*) = 1 from pg_stat_activity where datname = current_database() and application_name = %s", LISTENER)
    for _ in ids:
        complete(dsn)
    assert [wait.result(SOON_SECONDS).id for wait in waits] == [*ids, ids[3]]
    until(
        dsn,
        "not exists (select from pg_stat_activity where datname = current_database() and application_name = %s"
        " and query not ilike 'unlisten%%')",
        LISTENER,
    )
    again = door.do("enqueue", "noop")
    (wait,) = wait_for(threads, door, [again])
    until(dsn, AWAITED)
    complete(dsn)
    assert wait.result(SOON_SECONDS).id == again


def test_the_leader_leaves(dsn: str, door: Door, threads: ThreadPoolExecutor, no_backstop: None) -> None:
    """Another waiter leads, and hears."""
    ids = door.do("enqueue_many", [{"job_type": "noop"}] * 3)
    leader = threads.submit(door.do, "wait", ids[0], 1.0)
    until(dsn, AWAITED)
    until(dsn, LISTENING, LISTENER)
    waits = wait_for(threads, door, ids[1:])
    with pytest.raises(WaitTimeout):
        leader.result()
    complete(dsn, 3)
    assert [wait.result(SOON_SECONDS).id for wait in waits] == ids[1:]


def test_the_listener_is_terminated(dsn: str, door: Door, threads: ThreadPoolExecutor, no_backstop: None) -> None:
    """It comes back, and what ends afterwards is heard."""
    ids = door.do("enqueue_many", [{"job_type": "noop"}] * 2)
    waits = wait_for(threads, door, ids)
    until(dsn, "count(*) = 2 from pgnotifyq.jobs where awaited")
    terminate = (
        "count(pg_terminate_backend(pid)) = 1 from pg_stat_activity where datname = current_database() and application_name = %s"
    )
    until(dsn, terminate, LISTENER)
    until(dsn, LISTENING, LISTENER)
    complete(dsn, 2)
    assert [wait.result(SOON_SECONDS).id for wait in waits] == ids


def test_a_wait_that_is_too_long(dsn: str, door: Door) -> None:
    """After the time given a typed error; the job goes on, and no session listens without being read."""
    job_id = door.do("enqueue", "noop")
    with pytest.raises(WaitTimeout, match=str(job_id)):
        door.do("wait", job_id, 0.2)
    until(
        dsn,
        "not exists (select from pg_stat_activity where datname = current_database() and application_name = %s"
        " and query not ilike 'unlisten%%')",
        LISTENER,
    )


def test_idle_sessions_that_are_terminated(dsn: str, door: Door) -> None:
    """The next verb does not meet one."""
    for _ in range(3):
        door.do("enqueue", "noop")
        until(dsn, "count(pg_terminate_backend(pid)) > 0 from pg_stat_activity where application_name = 'pgnotifyq client'")
        until(dsn, "count(*) = 0 from pg_stat_activity where application_name = 'pgnotifyq client'")
        assert len(door.do("jobs")) > 0


def test_all_connections_are_taken(
    open_door: Any, dsn: str, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A typed error says so, after a while; what held them goes on."""
    monkeypatch.setattr(pooling, "ACQUIRE_SECONDS", 0.3)
    monkeypatch.setattr("pgnotifyq.wire.pool.ACQUIRE_SECONDS", 0.3)
    monkeypatch.setitem(_kwdefaults(), "acquire_seconds", 0.3)
    with open_door(dsn, connections_max=1) as door, psycopg.connect(dsn) as other:
        other.execute("lock table pgnotifyq.jobs in exclusive mode")
        held = threads.submit(door.do, "enqueue", "noop", unique_key="k")
        until(
            dsn, "exists (select from pg_stat_activity where application_name = 'pgnotifyq client' and wait_event_type = 'Lock')"
        )
        with pytest.raises(PoolTimeout, match=r"0\.3 seconds"):
            door.do("get", JobId(ANN))
        other.rollback()
        assert door.do("get", held.result()).status == "pending"


def _kwdefaults() -> dict[str, Any]:
    from pgnotifyq.wire.pool import open_pool

    return open_pool.__wrapped__.__kwdefaults__  # type: ignore[attr-defined,no-any-return]


def test_nobody_answers(open_door: Any, dsn: str, caplog: pytest.LogCaptureFixture) -> None:
    """Told at once, by one error that says what to do; never with a password."""
    for address in ("host=/nowhere port=1", "postgresql://ann:sec%40ret@127.0.0.1:1/x", "nonsense nonsense"):
        with pytest.raises(DatabaseUnreachable) as caught, open_door(address):
            pass
        assert "sec" not in str(caught.value)
    with pytest.raises(DatabaseUnreachable, match="does not exist"), open_door(make_conninfo(dsn, dbname="nowhere")):
        pass
    assert "300" not in caplog.text  # seconds that psycopg_pool would try, and ours does not


def test_a_database_without_the_schema(open_door: Any, blank_dsn: str) -> None:
    """Refused when it is opened, and told what to do."""
    with pytest.raises(SchemaMissing, match="migrate"), open_door(blank_dsn):
        pass


def test_jobs_of_a_generator(dsn: str, door: Door) -> None:
    """Many jobs may come one by one; their ids are in order."""
    names = [f"noop{number}" for number in range(250)]
    ids = door.do("enqueue_many", ({"job_type": name} for name in names))
    assert [door.do("get", job_id).job_type for job_id in (ids[0], ids[-1])] == [names[0], names[-1]]
    assert len(ids) == len(names)


def test_a_client_that_is_closed(open_door: Any, dsn: str) -> None:
    """A verb after the block is refused."""
    with open_door(dsn) as door:
        door.do("enqueue", "noop")
    with pytest.raises((PgnotifyqError, RuntimeError)):
        door.do("enqueue", "noop")


def test_a_server_that_restarts(open_door: Any, threads: ThreadPoolExecutor, no_backstop: None) -> None:
    """A wait outlives it. What is asked meanwhile is told that nobody answers, and is answered again afterwards."""
    version = int(os.environ.get("PGNOTIFYQ_TEST_POSTGRES", "18"))
    with open_temporary_server(version=version, settings={"fsync": "off"}) as server:

        async def prepare() -> None:
            async with open_connection(server.dsn) as connection:
                await pgnotifyq.migrate(connection)

        trio.run(prepare)
        with open_door(server.dsn) as door:
            job_id = door.do("enqueue", "noop")
            (wait,) = wait_for(threads, door, [job_id])
            until(server.dsn, AWAITED)
            server.stop("immediate")
            for _ in range(3):
                with pytest.raises((DatabaseUnreachable, psycopg.OperationalError)):
                    door.do("enqueue", "noop")
            server.start()
            complete(server.dsn)
            assert wait.result(SOON_SECONDS).status == "completed"
            door.do("enqueue", "noop")


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """A primary, and a standby of it."""
    with open_pair() as pair:
        yield pair


def test_a_standby_is_read(open_door: Any, pair: Pair) -> None:
    """Looks are answered, if the address admits a standby; a write is refused as the server words it."""
    with open_door(pair.primary.dsn) as primary:
        job_id = primary.do("enqueue", "noop")
    trio.run(pair.standby_has_all)
    with pytest.raises(DatabaseUnreachable, match="read-only: a standby"), open_door(pair.standby):
        pass
    for wish in ("standby", "any"):
        with open_door(make_conninfo(pair.standby, target_session_attrs=wish)) as door:
            assert door.do("get", job_id).status == "pending"
            assert door.do("stats")[0].queue_name == "default"
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                door.do("enqueue", "noop")


def test_the_first_address_that_can_write(open_door: Any, pair: Pair) -> None:
    """A standby that comes first in the address is passed over."""
    there = [psycopg.conninfo.conninfo_to_dict(dsn) for dsn in (pair.standby, pair.primary.dsn)]
    both = make_conninfo(
        pair.primary.dsn, host=",".join(str(one["host"]) for one in there), port=",".join(str(one["port"]) for one in there)
    )
    with open_door(both) as door:
        assert door.do("get", door.do("enqueue", "noop")).status == "pending"
        with pytest.raises(WaitTimeout):
            door.do("wait", door.do("enqueue", "noop"), 0.2)
