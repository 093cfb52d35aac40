"""What a role that may connect, and nothing else, can do to a queue that works: nothing that lasts."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import trio
from psycopg.conninfo import make_conninfo

from pgnotifyq import EventName, JobRegistry, WorkerConfig
from pgnotifyq.cli import doctor
from pgnotifyq.embedded import open_temporary_server
from pgnotifyq.migrating import migrate
from pgnotifyq.wire.connection import open_connection
from tests.asked import value
from tests.runtime.support import SETTINGS, Workplace, open_workplace

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

Payload = dict[str, Any]


@pytest.fixture(scope="module")
def dsn() -> Iterator[str]:
    """Give a server whose queue of notifications is small, with a role that may only connect."""
    with open_temporary_server(version=18, settings={"fsync": "off", "max_notify_queue_pages": "64"}) as server:

        async def make() -> None:
            async with open_connection(server.dsn) as connection:
                await migrate(connection)
                await connection.execute("create role plain login")

        trio.run(make)
        yield server.dsn


@pytest.fixture
async def place(dsn: str) -> AsyncIterator[Workplace]:
    """Give the queue, and means to start workers on it."""
    async with open_connection(dsn) as connection, open_workplace(dsn, connection) as place:
        yield place


def fill(dsn: str) -> psycopg.Connection[Any]:
    """Fill the server's queue of notifications; return the session that keeps it full."""
    keeper = psycopg.connect(dsn, autocommit=True)
    keeper.execute("listen flood")
    keeper.execute("begin; select 1")
    notify = "do $$ begin for n in 1 .. 50 loop perform pg_notify('flood', n || repeat('x', 7000)); commit; end loop; end $$"
    with psycopg.connect(dsn, autocommit=True) as flood:
        for _ in range(100):
            try:
                flood.execute(notify)
            except psycopg.OperationalError as error:
                assert "NOTIFY queue" in str(error)  # noqa: PT017
                return keeper
    raise AssertionError("the queue did not fill")


async def test_full_queue_of_notifications(place: Workplace) -> None:
    """Jobs are enqueued, cancelled and run by polling; doctor says it; and the worker is told again when the queue has drained.

    The worker has the default settings.
    """
    registry = JobRegistry()

    @registry.handler()
    async def work(payload: Payload) -> None:
        pass

    defaults = {name: getattr(WorkerConfig(), name) for name in SETTINGS}
    worker = await place.start(registry, **defaults)
    await place.until_asleep(worker)
    keeper = await trio.to_thread.run_sync(fill, make_conninfo(place.dsn, user="plain"))
    usage = "pg_notification_queue_usage() >= 0.9"
    await place.until(usage)
    waiting = await place.enqueue("work", queue_name="elsewhere")
    await place.cancel(waiting)
    # Its listener is cut off, and comes back to a queue that takes nothing.
    await place.connection.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'pgnotifyq listener'"
    )
    polling = await worker.log.wait(EventName.LISTENER_POLLING)
    assert polling["why"] == "the server's queue of notifications is full: see doctor"
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=await place.enqueue("work"))
    found = await trio.to_thread.run_sync(_doctor, place.dsn)
    assert [each.verdict for each in found if each.what.startswith("notification queue")] == ["fail"]
    keeper.close()
    await place.until(f"not ({usage})")
    await worker.log.wait(EventName.LISTENER_CONNECTED, count=2)
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=await place.enqueue("work"))


def _doctor(dsn: str) -> list[doctor.Finding]:
    async def main() -> list[doctor.Finding]:
        async with open_connection(dsn) as connection, open_connection(dsn) as other:
            return await doctor.examine(connection, other, "pgnotifyq")

    return trio.run(main)


async def test_lock_of_a_worker_that_is_gone(place: Workplace) -> None:
    """Whoever holds it, the worker's row leaves the list of sleepers: it would swallow what is meant for others."""
    ghost = uuid.uuid4()
    await place.connection.execute(
        "select pgnotifyq.register_worker(%s, 'here', 1, array['default'], 1, '0', true, 60, 1.5)", (ghost,)
    )
    async with open_connection(place.dsn) as session:
        assert await value(session, "select pgnotifyq.hold_session(%s)", ghost)
        await session.execute("select pgnotifyq.fall_asleep(%s, array['default'])", (ghost,))
        key = await value(session, "select session_lock from pgnotifyq.worker_heartbeats where worker_id = %s", ghost)
    with psycopg.connect(make_conninfo(place.dsn, user="plain"), autocommit=True) as plain:
        await place.until("not exists (select from pg_locks where locktype = 'advisory' and granted and mode = 'ExclusiveLock')")
        plain.execute("select pg_advisory_lock(%s)", (key,))
        await place.connection.execute("select * from pgnotifyq.watch(%s, 1.5)", (uuid.uuid4(),))
        assert await value(place.connection, "select count(*) from pgnotifyq.sleepers") == 0


async def test_lock_of_migrations(place: Workplace) -> None:
    """Whoever holds it, a schema that is there is migrated, and nobody waits."""
    with psycopg.connect(make_conninfo(place.dsn, user="plain"), autocommit=True) as plain:
        plain.execute("select pg_advisory_lock(hashtextextended('pgnotifyq migrate pgnotifyq', 0))")
        async with open_connection(place.dsn, options="-c lock_timeout=5s") as owner:
            assert await migrate(owner) == []


async def test_lock_of_claims(place: Workplace) -> None:
    """Whoever holds it, jobs start, where something was paused before, too. The worker has the default settings."""
    registry = JobRegistry()

    @registry.handler()
    async def work(payload: Payload) -> None:
        pass

    await place.connection.execute("select pgnotifyq.pause('other'), pgnotifyq.resume('other')")
    key = await value(place.connection, "select pgnotifyq.pauses_lock()")
    with psycopg.connect(make_conninfo(place.dsn, user="plain"), autocommit=True) as plain:
        plain.execute("select pg_advisory_lock(%s)", (key,))
        worker = await place.start(registry, **{name: getattr(WorkerConfig(), name) for name in SETTINGS})
        await worker.log.wait(EventName.JOB_COMPLETED, job_id=await place.enqueue("work"))
        await place.until_asleep(worker)
        await worker.log.wait(EventName.JOB_COMPLETED, job_id=await place.enqueue("work"))
