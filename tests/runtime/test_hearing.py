"""What a worker is told by notifications: of queues of any name, by ours and by anybody."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
import trio
from psycopg.conninfo import make_conninfo

from pgnotifyq import EventName, JobRegistry, WorkerConfig
from pgnotifyq.migrating import migrate
from pgnotifyq.wire.connection import open_connection
from tests.asked import value
from tests.runtime.support import PATIENCE_SECONDS, Worker, Workplace, open_workplace

Payload = dict[str, Any]


@pytest.fixture
def registry() -> JobRegistry:
    """Give a handler that returns."""
    registry = JobRegistry()

    @registry.handler()
    async def noop(payload: Payload) -> None:
        await trio.lowlevel.checkpoint()

    return registry


@pytest.mark.parametrize("queue", ["nonce", "cancel", "work", "default"])
async def test_queue_that_is_called_like_a_word_of_ours(place: Workplace, registry: JobRegistry, queue: str) -> None:
    """A worker is woken for it: by those who name the job, and by those who tell everybody."""
    worker = await place.start(registry, queues=[queue])
    for isolation in ("read committed", "repeatable read"):
        await place.until_idle(worker)
        async with open_connection(place.dsn) as connection, connection.transaction():
            await connection.execute(f"set transaction isolation level {isolation}".encode())
            job_id = await value(connection, "select pgnotifyq.enqueue('noop', queue_name => %s)", queue)
        await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)


FORGED = (
    "work default",
    "work default {0}",
    "nonce x",
    "cancel {0} {0}",
    "cancel",
    "+company",
    "default",
    "\u00e4 \u20ac",
    "x" * 700,
    "",
)


async def flood(worker: Worker, dsn: str, stop: trio.Event) -> int:
    """Send what anybody may send to a worker and to all, as fast as it goes."""
    own = f"pgnotifyq_w_{worker.handle.worker_id.hex}"
    sent = 0
    async with open_connection(dsn) as connection:
        while not stop.is_set():
            for channel in (own, "pgnotifyq_work"):
                await connection.execute(
                    "select pg_notify(%s, format(f, gen_random_uuid()) || case when n %% 9 < 3 then '' else ' ' || n end)"
                    " from unnest(%s::text[]) as f, generate_series(1, 20) as n",
                    (channel, [text.format("%1$s") for text in FORGED]),
                )
                sent += 20 * len(FORGED)
    return sent


async def test_flood(place: Workplace, registry: JobRegistry) -> None:
    """However much anybody sends, a worker lives, takes its jobs, is told of cancels, and is not thought dead."""
    told = trio.Event()

    @registry.handler()
    async def lasts(payload: Payload) -> None:
        try:
            await trio.sleep_forever()
        finally:
            told.set()

    grace_seconds = WorkerConfig().session_grace_seconds
    worker = await place.start(registry, session_grace_seconds=grace_seconds)
    watcher = await place.start(registry, queues=["elsewhere"], session_grace_seconds=grace_seconds)
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(flood, worker, place.dsn, stop)
        nursery.start_soon(flood, watcher, place.dsn, stop)
        lasting = await place.enqueue("lasts")
        await worker.log.wait(EventName.JOB_CLAIMED, job_id=lasting)
        for _ in range(20):
            await worker.log.wait(EventName.JOB_COMPLETED, job_id=await place.enqueue("noop"))
        assert worker.log.find(EventName.JOB_INTERRUPTED) == []
        await place.cancel(lasting)
        with trio.fail_after(PATIENCE_SECONDS):
            await told.wait()
        stop.set()
    assert not worker.ended.is_set() and not watcher.ended.is_set()
    assert watcher.log.find(EventName.JOB_RECLAIMED) == []


async def test_text_that_is_none(server_dsn: str, registry: JobRegistry) -> None:
    """In a database without an encoding anybody can send bytes that are no text: a worker goes on all the same."""
    with psycopg.connect(server_dsn, autocommit=True) as server:
        server.execute("drop database if exists plain_bytes with (force)")
        server.execute("create database plain_bytes encoding 'SQL_ASCII' template template0 locale 'C'")
    dsn = make_conninfo(server_dsn, dbname="plain_bytes")
    try:
        async with open_connection(dsn) as connection:
            await migrate(connection)
        async with open_connection(dsn) as connection, open_workplace(dsn, connection) as place:
            worker = await place.start(registry)
            await place.until_idle(worker)
            await connection.execute("select pg_notify('pgnotifyq_work', convert_from('\\xfffe80'::bytea, 'SQL_ASCII'))")
            # The server cannot send such bytes to a session in UTF-8, and ends it; the listener is back before anybody misses it.
            await worker.log.wait(EventName.LISTENER_CONNECTED, count=2)
            await worker.log.wait(EventName.JOB_COMPLETED, job_id=await place.enqueue("noop"))
            assert not worker.ended.is_set()
    finally:
        with psycopg.connect(server_dsn, autocommit=True) as server:
            server.execute("drop database plain_bytes with (force)")
