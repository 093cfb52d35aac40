"""What is asyncio's own: cancels, timeouts, tasks and threads that are not there."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any

import anyio
import psycopg
import pytest
import trio

import pgnotifyq
import pgnotifyq.aio
from pgnotifyq.doors import gathering
from pgnotifyq.model.errors import PgnotifyqError, WaitTimeout
from pgnotifyq.wire import aio as wire
from tests.doors.support import AWAITED, LISTENER
from tests.doors.test_every_client import until

Client = pgnotifyq.aio.Client
AT_A_LOCK = (
    "count(*) = {} from pg_stat_activity"
    " where datname = current_database() and application_name = 'pgnotifyq client' and wait_event_type = 'Lock'"
)


def on_asyncio(dsn: str, main: Callable[[Client], Coroutine[Any, Any, None]], **options: Any) -> None:
    """Run a program with a client, and see that it leaves no task and no session behind."""

    async def run() -> None:
        async with pgnotifyq.aio.open_client(dsn, **options) as client:
            await main(client)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())
    until(
        dsn,
        "not exists (select from pg_stat_activity where datname = current_database() and application_name like 'pgnotifyq%%')",
    )


async def soon(dsn: str, condition: str, *parameters: object) -> None:
    """Wait until the SQL `condition` holds, and let this loop go on meanwhile."""
    await asyncio.to_thread(until, dsn, condition, *parameters)


def locked(dsn: str) -> psycopg.Connection[Any]:
    """Return a session that keeps enqueues waiting until it ends its transaction."""
    connection = psycopg.connect(dsn)
    connection.execute("lock table pgnotifyq.jobs in exclusive mode")
    return connection


async def cancel_task(enqueue: Awaitable[Any], is_waiting: Awaitable[None]) -> None:
    task = asyncio.ensure_future(enqueue)
    await is_waiting
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def cancel_scope(enqueue: Awaitable[Any], is_waiting: Awaitable[None]) -> None:
    async with anyio.create_task_group() as group:

        async def ask() -> None:
            await enqueue

        group.start_soon(ask)
        await is_waiting
        group.cancel_scope.cancel()


async def time_out(enqueue: Awaitable[Any], is_waiting: Awaitable[None]) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await asyncio.gather(enqueue, is_waiting)


@pytest.mark.parametrize("leave", [cancel_task, cancel_scope, time_out])
def test_an_enqueue_that_is_left_in_mid_statement(dsn: str, leave: Any) -> None:
    """Nothing is enqueued, and the one connection of the pool serves on."""

    async def main(client: Client) -> None:
        await client.stats()
        pids = "array_agg(pid) from pg_stat_activity where application_name = 'pgnotifyq client' and datname = current_database()"
        with psycopg.connect(dsn, autocommit=True) as looks:
            before = looks.execute(f"select {pids}").fetchone()
            with locked(dsn):
                await leave(client.enqueue("noop"), soon(dsn, AT_A_LOCK.format(1)))
            assert await client.jobs() == []
            await client.enqueue("noop")
            assert looks.execute(f"select {pids}").fetchone() == before

    on_asyncio(dsn, main, connections_max=1)


def test_a_transaction_that_is_left(dsn: str) -> None:
    """A batch that goes in several statements leaves none of its jobs."""

    async def main(client: Client) -> None:
        jobs = [{"job_type": "noop", "unique_key": str(n)} for n in range(600)]
        with locked(dsn):
            await cancel_task(client.enqueue_many(jobs), soon(dsn, AT_A_LOCK.format(1)))
        assert await client.jobs() == []
        assert len(await client.enqueue_many(jobs)) == 600

    on_asyncio(dsn, main, connections_max=1)


def test_a_cancel_that_is_too_late(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The task is cancelled; what the server had done is done once, and the connection serves on."""

    async def main(client: Client) -> None:
        await client.stats()
        theirs = locked(dsn)

        async def let_go(*_: Any, **__: Any) -> None:
            await asyncio.to_thread(theirs.close)

        monkeypatch.setattr(wire.Connection, "cancel_safe", let_go)
        await cancel_task(client.enqueue("noop"), soon(dsn, AT_A_LOCK.format(1)))
        assert len(await client.jobs()) == 1

    on_asyncio(dsn, main, connections_max=1)


@pytest.mark.parametrize("is_late", [False, True])
def test_one_of_those_that_share_a_statement_is_cancelled(dsn: str, monkeypatch: pytest.MonkeyPatch, is_late: bool) -> None:
    """The others are enqueued once each; its own job only if the cancel came too late."""
    monkeypatch.setattr(gathering, "PATIENCE_SECONDS", 3600.0)

    async def main(client: Client) -> None:
        gate = psycopg.connect(dsn, autocommit=True)
        gate.execute("select pg_advisory_lock(1)")
        first = [asyncio.create_task(client.enqueue("stuck")) for _ in range(2)]
        await soon(dsn, "count(*) = 2 from pg_locks where locktype = 'advisory' and not granted")
        shared = [asyncio.create_task(client.enqueue("stuck" if n == 0 else "good", {"n": n})) for n in range(4)]
        await asyncio.sleep(0)
        # The two let go, and the four go as one, which waits for the other gate.
        gate.execute("select pg_advisory_lock(2)")
        gate.execute("select pg_advisory_unlock(1)")
        await asyncio.gather(*first)
        await soon(dsn, "count(*) = 1 from pg_locks where locktype = 'advisory' and not granted")

        async def let_go(*_: Any, **__: Any) -> None:
            await asyncio.to_thread(gate.execute, "select pg_advisory_unlock(2)")

        if is_late:
            monkeypatch.setattr(wire.Connection, "cancel_safe", let_go)
        shared[1].cancel()
        if not is_late:
            await asyncio.wait([shared[1]])
            await let_go()
        told = await asyncio.gather(*shared, return_exceptions=True)
        assert isinstance(told[1], asyncio.CancelledError)
        others = {one for one in told if not isinstance(one, BaseException)}
        assert len(others) == 3
        there = {job.id: job.payload for job in await client.jobs() if job.payload}
        assert others <= there.keys() | {job.id for job in await client.jobs()}
        assert sorted(payload["n"] for payload in there.values()) == ([0, 1, 2, 3] if is_late else [0, 2, 3])
        gate.close()

    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(TROUBLE)
    on_asyncio(dsn, main)


# A job of type `stuck` waits in its insert for whoever holds the lock 1, then for whoever holds the lock 2.
TROUBLE = """
    create function trouble() returns trigger language plpgsql as $$
    begin
        if new.job_type = 'stuck' then
            perform pg_advisory_xact_lock_shared(case when new.payload = '{}' then 1 else 2 end);
        end if;
        return new;
    end $$;
    create trigger trouble before insert on pgnotifyq.jobs for each row execute function trouble();
"""


def test_a_wait_that_is_cancelled(dsn: str) -> None:
    """The job goes on; no session listens without being read, and no task is left."""

    async def main(client: Client) -> None:
        job_id = await client.enqueue("noop")
        await cancel_task(client.wait(job_id), soon(dsn, AWAITED))
        await soon(dsn, "not exists (select from pg_stat_activity where application_name = %s)", LISTENER)
        with pytest.raises(WaitTimeout):
            await client.wait(job_id, 0.2)
        assert (await client.get(job_id)).status == "pending"

    on_asyncio(dsn, main)


def test_a_wait_for_a_connection_that_is_cancelled(dsn: str) -> None:
    """The connection goes to the next."""

    async def main(client: Client) -> None:
        with locked(dsn):
            holder = asyncio.create_task(client.enqueue("noop", unique_key="k"))
            await soon(dsn, AT_A_LOCK.format(1))
            waiting = asyncio.create_task(client.stats())
            next_one = asyncio.create_task(client.stats())
            await asyncio.sleep(0.05)
            waiting.cancel()
        with suppress(asyncio.CancelledError):
            await waiting
        await holder
        assert len(await next_one) == 1

    on_asyncio(dsn, main, connections_max=1)


def test_tasks_that_are_cancelled_at_random(dsn: str) -> None:
    """After three hundred of them, each job that a caller was told of is there, and the pool serves on."""

    async def main(client: Client) -> None:
        told: list[Any] = []

        async def ask(n: int) -> None:
            with anyio.move_on_after((n % 17) / 2000):
                told.append(await client.enqueue("noop", {"n": n}))

        for _ in range(3):
            await asyncio.gather(*[ask(n) for n in range(100)])
        ids = await asyncio.gather(*[client.enqueue("noop") for _ in range(20)])
        there = {job.id for job in await client.jobs(limit=5000)}
        assert {*told, *ids} <= there and len(set(told)) == len(told)

    on_asyncio(dsn, main)


def test_no_thread(dsn: str) -> None:
    """None is started by a client that asks, shares statements, waits and copies."""

    async def main(client: Client) -> None:
        await asyncio.gather(*[client.enqueue("noop") for _ in range(20)])
        await client.enqueue_many([{"job_type": "noop"}] * 200)
        with pytest.raises(WaitTimeout):
            await client.wait(await client.enqueue("noop"), 0.1)
        assert set(threading.enumerate()) == before

    before = set(threading.enumerate())

    async def run() -> None:
        async with pgnotifyq.aio.open_client(dsn) as client:
            await main(client)

    asyncio.run(run())


def test_a_connection_of_the_other_loop(dsn: str) -> None:
    """Refused by name, not by a hang, on both sides."""

    async def main(client: Client) -> None:
        async def borrow() -> Any:
            return await pgnotifyq.connect(dsn)

        theirs = await asyncio.to_thread(trio.run, borrow)
        with pytest.raises(TypeError, match="Connection"):
            await client.enqueue("noop", connection=theirs)
        theirs.pgconn.finish()

    on_asyncio(dsn, main)

    async def other() -> None:
        theirs = await trio.to_thread.run_sync(asyncio.run, psycopg.AsyncConnection.connect(dsn))
        async with pgnotifyq.open_client(dsn) as client:
            with pytest.raises(TypeError, match=r"psycopg\.AsyncConnection"):
                await client.enqueue("noop", connection=theirs)
        theirs.pgconn.finish()

    trio.run(other)


def test_a_client_in_another_loop(dsn: str) -> None:
    """Refused, and not left waiting: in a loop of another thread, as after a fork, and on trio."""

    async def main(client: Client) -> None:
        async def enqueue() -> None:
            with pytest.raises(PgnotifyqError, match=r"the loop that opened it|another event loop"):
                await client.enqueue("noop")
            with pytest.raises(PgnotifyqError, match=r"the loop that opened it|another event loop"):
                await client.jobs()

        await asyncio.to_thread(asyncio.run, enqueue())
        await asyncio.to_thread(trio.run, enqueue)
        await client.enqueue("noop")

    on_asyncio(dsn, main)


def test_a_door_of_the_other_loop(dsn: str) -> None:
    """Refused by an error that names the right door."""

    async def open_trio() -> None:
        with pytest.raises(PgnotifyqError, match=r"use pgnotifyq\.aio\.open_client"):
            async with pgnotifyq.open_client(dsn):
                pass
        with pytest.raises(PgnotifyqError, match="run_worker needs trio"):
            await pgnotifyq.run_worker(pgnotifyq.JobRegistry(), dsn)
        with pytest.raises(PgnotifyqError, match="connect needs trio"):
            await pgnotifyq.connect(dsn)

    async def open_asyncio() -> None:
        with pytest.raises(PgnotifyqError, match=r"use pgnotifyq\.open_client"):
            async with pgnotifyq.aio.open_client(dsn):
                pass

    asyncio.run(open_trio())
    trio.run(open_asyncio)


def test_the_loop_goes_on(dsn: str) -> None:
    """While a large batch is made and copied, other tasks run."""

    async def main(client: Client) -> None:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0)
                ticks += 1

        ticker = asyncio.create_task(tick())
        await client.enqueue_many([{"job_type": "noop", "payload": {"n": n}} for n in range(20_000)])
        ticker.cancel()
        assert ticks > 40

    on_asyncio(dsn, main)
