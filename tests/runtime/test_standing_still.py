"""A row whose trigger stands still, as a user's lock or call to another server does: its own job is late, and nobody else's.

The deadline of a statement is five seconds, or a sixth of the lease if that is less. Each way to such a row costs a deadline or two, so
tests here have a lease of three seconds. That of outcomes has a twin at the defaults; those of claims and heartbeats have none, for they
would take 15 seconds and a minute.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import trio

from pgnotifyq import EventName, JobRegistry
from pgnotifyq.model.config import WorkerConfig
from tests.asked import clear, obstruct, value
from tests.ledger.obstacles import CLEAR, STANDS_STILL, STANDS_STILL_RUNNING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.runtime.support import Workplace

SHORT: dict[str, Any] = {"lease_seconds": 3.0}


@pytest.fixture(autouse=True)
def users_own(dsn: str) -> Iterator[None]:
    """Take away what a test put into the schema; what stands still there has to be ended first."""
    yield
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where wait_event = 'PgSleep' and datname = current_database()"
        )
        connection.execute(CLEAR)


def registry_of(ran: list[str], go_on: trio.Event) -> JobRegistry:
    """Return a handler that ends at once, and one that waits until it may."""
    registry = JobRegistry()

    @registry.handler()
    async def works(payload: dict[str, Any]) -> None:
        ran.append("works")

    @registry.handler()
    async def waits(payload: dict[str, Any]) -> None:
        ran.append("waits")
        await go_on.wait()

    return registry


@pytest.mark.parametrize("settings", [SHORT, {}], ids=["short", "as it comes"])
async def test_outcome(place: Workplace, settings: dict[str, Any]) -> None:
    """A completion that is late is put aside with its outcome; those beside it are written; it is completed later, and ran once."""
    ran: list[str] = []
    go_on = trio.Event()
    worker = await place.start(registry_of(ran, go_on), **settings)
    victim = await place.enqueue("waits")
    await worker.log.wait(EventName.JOB_CLAIMED, job_id=victim)
    beside = [await place.enqueue("waits") for _ in range(2)]
    for job_id in beside:
        await worker.log.wait(EventName.JOB_CLAIMED, job_id=job_id)
    await obstruct(place.connection, STANDS_STILL, victim)
    go_on.set()
    told = await worker.log.wait(EventName.JOB_PUT_ASIDE, job_id=victim)
    assert told["verb"] == "complete"
    for job_id in beside:
        await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    after = await place.enqueue("works")
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=after)
    await clear(place.connection)
    await place.connection.execute("update pgnotifyq.job_troubles set look_at = now()")
    await place.connection.execute("update pgnotifyq.jobs set lease_expires_at = now() where id = %s", (victim,))
    async with place.connection.transaction():
        await place.connection.execute("select * from pgnotifyq.reclaim(gen_random_uuid(), 10)")
    assert (await place.job(victim))["status"] == "completed"
    assert ran.count("waits") == 3
    assert not worker.ended.is_set()


async def test_claim(place: Workplace) -> None:
    """A job that cannot be taken in time is put aside, and the others behind it are taken."""
    ran: list[str] = []
    victim = await place.enqueue("works", priority=9, scheduled_at="2100-01-01")
    await obstruct(place.connection, STANDS_STILL_RUNNING, victim)
    await place.connection.execute("update pgnotifyq.jobs set scheduled_at = now()")
    others = [await place.enqueue("works") for _ in range(3)]
    worker = await place.start(registry_of(ran, trio.Event()), concurrency=2, **SHORT)
    told = await worker.log.wait(EventName.JOB_PUT_ASIDE, job_id=victim)
    assert told["verb"] == "claim"
    for job_id in others:
        await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    assert not worker.ended.is_set()


async def test_heartbeat(place: Workplace) -> None:
    """A lease that cannot be renewed in time costs those beside it nothing."""
    go_on = trio.Event()
    worker = await place.start(registry_of([], go_on), **SHORT)
    victim = await place.enqueue("waits")
    beside = [await place.enqueue("waits") for _ in range(2)]
    for job_id in (victim, *beside):
        await worker.log.wait(EventName.JOB_CLAIMED, job_id=job_id)
    await obstruct(place.connection, STANDS_STILL_RUNNING, victim)
    told = await worker.log.wait(EventName.JOB_INTERRUPTED, job_id=victim)
    assert told["reason"] == "lease_lost"
    # Longer than a lease: it was renewed meanwhile.
    renewed = "select min(lease_expires_at) > now() from pgnotifyq.jobs where id = any (%s)"
    for _ in range(2):
        await trio.sleep(SHORT["lease_seconds"])
        assert await value(place.connection, renewed, beside)
    for job_id in beside:
        assert worker.log.find(EventName.JOB_INTERRUPTED, job_id=job_id) == []
    go_on.set()
    for job_id in beside:
        await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)


def test_deadline_is_what_is_said_above() -> None:
    """The tests here count on it."""
    assert WorkerConfig().lease_seconds / 6 > 5
