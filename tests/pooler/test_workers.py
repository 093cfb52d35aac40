"""Workers whose statements go through a pooler: they poll and say so, or listen past it, and keep every promise."""

from __future__ import annotations

import signal
import uuid
from typing import TYPE_CHECKING, Any

import pytest
import trio

from pgnotifyq import EventName, JobContext, JobRegistry
from pgnotifyq.runtime import listener
from pgnotifyq.wire.connection import open_connection
from tests.asked import fetch, tenant_role, value
from tests.runtime.test_faults import Gate

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.pooler.support import Pooler
    from tests.runtime.support import Workplace

Payload = dict[str, Any]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have listeners give up sooner; the proof itself takes a millisecond."""
    monkeypatch.setattr(listener, "PROOF_DEADLINE_SECONDS", 0.5)


async def test_worker_that_cannot_listen(place: Workplace, pooler: Pooler) -> None:
    """It starts, finds that LISTEN does not work there, says so and what to do, and runs jobs by polling."""
    worker = await place.start(Gate().registry, dsn=pooler.dsn, is_heard=False, poll_seconds=0.05)
    told = await worker.log.wait(EventName.LISTENER_POLLING)
    assert "pooler in transaction mode" in told["why"]
    assert "--listen-dsn" in told["why"]
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=await place.enqueue("quick"))
    assert worker.log.find(EventName.LISTENER_CONNECTED) == []
    await place.until("not has_session from pgnotifyq.worker_heartbeats")


async def test_listener_that_is_given_the_same_session_each_time(
    place: Workplace, pool: Callable[..., Pooler], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not taken in by hearing itself, says it once however often it tries, and leaves no session listening."""
    monkeypatch.setattr(listener, "DEAF_RETRY_SECONDS", 0.05)
    pooler = pool(default_pool_size=1)
    worker = await place.start(Gate().registry, dsn=pooler.dsn, is_heard=False)
    async with open_connection(pooler.dsn) as pooled:
        await worker.log.wait(EventName.LISTENER_POLLING)
        # It listens again, and is deaf again.
        for is_listening in (True, False, True, False):
            with trio.fail_after(20):
                while bool(await value(pooled, "select exists (select from pg_listening_channels())")) is not is_listening:
                    await trio.sleep(0.001)
    assert worker.log.find(EventName.LISTENER_CONNECTED) == []
    assert len(worker.log.find(EventName.LISTENER_POLLING)) == 1


async def test_worker_that_listens_past_the_pooler(place: Workplace, pooler: Pooler) -> None:
    """With a direct address for LISTEN jobs and cancels are pushed: nothing else would bring them within the hour."""
    gate = Gate()
    worker = await place.start(gate.registry, dsn=pooler.dsn, listen_dsn=place.dsn, lease_seconds=600.0)
    await place.until_asleep(worker)
    job_id = await place.enqueue("work")
    await worker.log.wait(EventName.JOB_CLAIMED, job_id=job_id)
    await place.cancel(job_id)
    await worker.log.wait(EventName.JOB_CANCELLED, job_id=job_id)


async def test_listen_address_of_another_database(place: Workplace, pooler: Pooler, blank_dsn: str) -> None:
    """It is found out, though LISTEN works there, and told. The worker polls."""
    async with open_connection(blank_dsn) as wrong, open_connection(place.dsn) as right:
        # Enough of a schema for a listener to begin.
        source = await value(right, "select pg_get_functiondef('pgnotifyq.worker_channel'::regproc)")
        await wrong.execute("create schema pgnotifyq")
        await wrong.execute(source.encode())
        worker = await place.start(Gate().registry, dsn=pooler.dsn, listen_dsn=blank_dsn, is_heard=False, poll_seconds=0.05)
        told = await worker.log.wait(EventName.LISTENER_POLLING)
        assert "of the same database" in told["why"]
        await worker.log.wait(EventName.JOB_COMPLETED, job_id=await place.enqueue("quick"))


async def test_cancel_of_a_running_job(place: Workplace, pooler: Pooler) -> None:
    """Where no notification arrives the next heartbeat brings it."""
    worker = await place.start(
        Gate().registry, dsn=pooler.dsn, is_heard=False, poll_seconds=0.05, lease_seconds=600.0, heartbeat_seconds=0.1
    )
    job_id = await place.enqueue("work")
    await worker.log.wait(EventName.JOB_CLAIMED, job_id=job_id)
    await place.cancel(job_id)
    await worker.log.wait(EventName.JOB_CANCELLED, job_id=job_id)
    assert await place.history(job_id) == [(1, "cancelled")]


async def test_job_longer_than_its_lease(place: Workplace, pooler: Pooler) -> None:
    """Heartbeats keep it, though no session speaks for the worker and another watches."""
    gate = Gate()
    settings: dict[str, Any] = {"dsn": pooler.dsn, "is_heard": False, "poll_seconds": 0.05, "lease_seconds": 2.4}
    worker = await place.start(gate.registry, **settings)
    job_id = await place.enqueue("work")
    await worker.log.wait(EventName.JOB_CLAIMED, job_id=job_id)
    watcher = await place.start(JobRegistry(), queues=["elsewhere"], **settings)
    await place.until("started_at + interval '2.5 s' < clock_timestamp() from pgnotifyq.jobs where id = %s", job_id)
    gate.let_go.set()
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    assert await place.history(job_id) == [(1, "completed")]
    assert watcher.log.find(EventName.JOB_RECLAIMED) == []


async def test_idle_worker_gives_a_sign_of_life(place: Workplace, pooler: Pooler) -> None:
    """At every heartbeat, for only its beats speak of it."""
    await place.start(Gate().registry, dsn=pooler.dsn, is_heard=False, lease_seconds=0.6)
    await place.until("last_beat_at > started_at + interval '2 s' from pgnotifyq.worker_heartbeats")


async def test_worker_killed(place: Workplace, pooler: Pooler) -> None:
    """Its jobs run again when their leases have run out, and its row is forgotten after three of them."""
    process = await place.start_process(dsn=pooler.dsn, is_heard=False, poll_seconds=0.05, lease_seconds=1.5)
    registry = JobRegistry()

    @registry.handler("linger")
    async def linger(payload: Payload) -> None:
        await trio.lowlevel.checkpoint()

    job_id = await place.enqueue("linger")
    await process.log.wait(EventName.JOB_CLAIMED, job_id=job_id)
    other = await place.start(registry, dsn=pooler.dsn, is_heard=False, poll_seconds=0.05, lease_seconds=1.5)
    process.kill()
    assert await process.wait() == -signal.SIGKILL
    await other.log.wait(EventName.JOB_RECLAIMED, job_id=job_id, became="pending")
    await other.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    assert await place.history(job_id) == [(1, "lost"), (2, "completed")]
    await place.until("count(*) = 1 from pgnotifyq.worker_heartbeats")


async def test_many_jobs_on_two_workers(place: Workplace, pooler: Pooler) -> None:
    """Each runs once, whatever session each statement is given; the database is never called lost."""
    gate = Gate()
    workers = [await place.start(gate.registry, dsn=pooler.dsn, is_heard=False, poll_seconds=0.01) for _ in range(2)]
    await fetch(place.connection, "select pgnotifyq.enqueue('quick') from generate_series(1, 300)")
    await place.until("count(*) = 300 from pgnotifyq.jobs where status = 'completed'")
    assert await fetch(place.connection, "select attempt, outcome, count(*) from pgnotifyq.executions group by 1, 2") == [
        (1, "completed", 300)
    ]
    for worker in workers:
        assert worker.log.find(EventName.DATABASE_LOST) == []
        worker.handle.drain()
        await worker.ended.wait()
    assert await fetch(place.connection, "select from pgnotifyq.worker_heartbeats") == []


@pytest.mark.parametrize("ending", ["commits", "raises", "is cancelled"])
async def test_tenant_transaction_leaves_nothing_in_the_session(
    place: Workplace, pool: Callable[..., Pooler], ending: str
) -> None:
    """The role and the tenant of a handler's transaction end with it, in the one session that everybody shares."""
    pooler = pool(default_pool_size=1)
    registry = JobRegistry()
    seen: list[Any] = []
    inside = trio.Event()

    @registry.handler("tenant")
    async def tenant(payload: Payload, ctx: JobContext) -> None:
        async with ctx.transaction() as connection:
            seen.append(await fetch(connection, "select count(*) from pgnotifyq.jobs"))
        async with ctx.org.transaction() as connection:
            seen.append(
                await fetch(connection, "select current_user::text, pgnotifyq.current_org(), count(*) from pgnotifyq.jobs")
            )
            inside.set()
            if ending == "raises":
                raise ValueError("no luck")
            if ending == "is cancelled":
                await connection.execute("select pg_sleep(3600)")

    tenant_id, other_id = uuid.uuid4(), uuid.uuid4()
    worker = await place.start(registry, dsn=pooler.dsn, listen_dsn=place.dsn, lease_seconds=600.0, heartbeat_seconds=100.0)
    await place.enqueue("other", org_id=other_id, queue_name="elsewhere")
    job_id = await place.enqueue("tenant", org_id=tenant_id, max_attempts=1)
    await inside.wait()
    if ending == "is cancelled":
        await place.until("exists (select from pg_stat_activity where query like 'select pg_sleep%%' and state = 'active')")
        worker.handle.stop()
    ends = {"commits": EventName.JOB_COMPLETED, "raises": EventName.JOB_DEAD, "is cancelled": EventName.JOB_RELEASED}
    await worker.log.wait(ends[ending], job_id=job_id)
    assert seen == [[(2,)], [(await tenant_role(place.connection), tenant_id, 1)]]
    async with open_connection(pooler.dsn) as pooled:
        found = await fetch(pooled, "select current_user = session_user, pgnotifyq.current_org(), count(*) from pgnotifyq.jobs")
        assert found == [(True, None, 1 if ending == "raises" else 2)]
