"""Losing a lease: the handler is told, by this worker's own clock if need be, and nothing of it is written."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from pgnotifyq import EventName, Interrupt, InterruptKind, JobContext, JobRegistry, LeaseLost
from pgnotifyq.ledger import lease as lease_verbs
from pgnotifyq.model.errors import ConfigError
from tests.asked import everything
from tests.ledger.support import BOB
from tests.proxy import Proxy, run_proxy
from tests.runtime.detours import Go, detour
from tests.runtime.support import PATIENCE_SECONDS, Workplace

Payload = dict[str, Any]


async def test_job_claimed_again_by_the_same_worker(place: Workplace) -> None:
    """An execution whose job was reclaimed, and claimed anew by this very worker, is stopped as one that lost its lease."""
    registry, told = JobRegistry(), trio.Event()

    @registry.handler("work")
    async def work(payload: Payload, ctx: JobContext) -> None:
        if ctx.attempt == 2:
            return
        try:
            await trio.sleep_forever()
        finally:
            assert ctx.cancel_reason is not None and ctx.cancel_reason.kind is InterruptKind.LEASE_LOST
            told.set()

    worker = await place.start(registry)
    job_id = await place.enqueue("work")
    await worker.log.wait(EventName.JOB_CLAIMED, job_id=job_id)
    await place.lose(job_id)
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    with trio.fail_after(PATIENCE_SECONDS):
        await told.wait()
    await worker.log.wait(EventName.LEASE_LOST, job_id=job_id)
    assert await place.history(job_id) == [(1, "lost"), (2, "completed")]


async def test_database_out_of_reach_for_longer_than_the_lease(place: Workplace) -> None:
    """A worker that hears nothing stops its handlers on its own clock, and has written nothing when it is back."""
    registry, ended = JobRegistry(), trio.Event()
    reasons: list[Interrupt | None] = []

    @registry.handler("work")
    async def work(payload: Payload, ctx: JobContext) -> None:
        try:
            await trio.sleep_forever()
        finally:
            reasons.append(ctx.cancel_reason)
            ended.set()

    @registry.handler("next")
    async def next_one(payload: Payload) -> None:
        await trio.lowlevel.checkpoint()

    cable: Proxy = await place.nursery.start(run_proxy, place.dsn)
    worker = await place.start(registry, dsn=cable.dsn, lease_seconds=0.9)
    job_id = await place.enqueue("work")
    await worker.log.wait(EventName.JOB_CLAIMED, job_id=job_id)
    cable.freeze()
    with trio.fail_after(PATIENCE_SECONDS):
        await ended.wait()
    # Before the lease has run out for others.
    assert [reason and reason.kind for reason in reasons] == [InterruptKind.LEASE_LOST]
    await place.until("lease_expires_at < clock_timestamp() from pgnotifyq.jobs")
    await place.take_away(job_id)
    before = await everything(place.connection)
    cable.cut()
    cable.thaw()
    after = await place.enqueue("next")
    # It may take two attempts: on a machine that stands still for a second, its lease is lost as well.
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=after)
    assert (await place.job(job_id))["locked_by"] == str(BOB)
    await place.connection.execute("delete from pgnotifyq.jobs where id = %s", (after,))
    await place.connection.execute("delete from pgnotifyq.job_executions where job_id = %s", (after,))
    assert await everything(place.connection) == before


async def test_outcome_written_late(place: Workplace) -> None:
    """An outcome that could not be written while the lease was trusted costs no permit, and is told once it is durable."""
    registry, go_on = JobRegistry(), trio.Event()

    @registry.handler("work")
    async def work(payload: Payload) -> None:
        await go_on.wait()

    cable: Proxy = await place.nursery.start(run_proxy, place.dsn)
    # Trusted for three seconds of a lease that nobody else may take for a minute.
    worker = await place.start(registry, dsn=cable.dsn, lease_seconds=60.0, margin_seconds=57.0, heartbeat_seconds=1.0)
    job_id = await place.enqueue("work")
    await worker.log.wait(EventName.JOB_CLAIMED, job_id=job_id)
    cable.freeze()
    go_on.set()
    await worker.log.wait(EventName.LEASE_LOST, job_id=job_id)
    assert worker.log.find(EventName.JOB_COMPLETED) == []
    cable.cut()
    cable.thaw()
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    assert await place.history(job_id) == [(1, "completed")]


async def test_handler_is_told_before_anybody_else_may_start(place: Workplace) -> None:
    """A worker's trust in a lease ends before the lease does: the handler has stopped while the job is still its own.

    A grace of an hour, so that the lease alone is what stops it; test_promises.py has the grace, and the defaults.
    """
    registry, told = JobRegistry(), trio.Event()

    @registry.handler("work")
    async def work(payload: Payload, ctx: JobContext) -> None:
        try:
            await trio.sleep_forever()
        finally:
            told.set()

    cable: Proxy = await place.nursery.start(run_proxy, place.dsn)
    worker = await place.start(
        registry, dsn=cable.dsn, lease_seconds=4.0, heartbeat_seconds=1.0, margin_seconds=2.0, session_grace_seconds=3600.0
    )
    job_id = await place.enqueue("work")
    await worker.log.wait(EventName.JOB_CLAIMED, job_id=job_id)
    cable.freeze()
    with trio.fail_after(PATIENCE_SECONDS):
        await told.wait()
    assert (await place.job(job_id))["locked_by"] == str(worker.handle.worker_id)
    cursor = await place.connection.execute("select lease_expires_at > clock_timestamp() from pgnotifyq.jobs")
    assert await cursor.fetchone() == (True,)


async def test_execution_without_its_lease_writes_nothing(place: Workplace) -> None:
    """A handler that goes on after its job was taken away changes no byte of it: not by transaction, progress or outcome."""
    registry, go_on = JobRegistry(), trio.Event()
    raised: list[str] = []

    @registry.handler("work")
    async def work(payload: Payload, ctx: JobContext) -> str:
        await go_on.wait()
        with trio.CancelScope(shield=True):
            try:
                async with ctx.transaction() as connection:
                    await connection.execute("insert into marks values ('stale')")
            except LeaseLost:
                raised.append("transaction")
            try:
                await ctx.progress(0.5)
            except LeaseLost:
                raised.append("progress")
        return "done"

    await place.connection.execute("create table if not exists marks (what text)")
    worker = await place.start(registry)
    job_id = await place.enqueue("work")
    await worker.log.wait(EventName.JOB_CLAIMED, job_id=job_id)
    await place.take_away(job_id)
    before = await everything(place.connection)
    go_on.set()
    await worker.log.wait(EventName.LEASE_LOST, job_id=job_id)
    assert raised == ["transaction", "progress"]
    assert worker.log.find(EventName.JOB_COMPLETED) == []
    assert await everything(place.connection) == before
    cursor = await place.connection.execute("select count(*) from marks")
    assert await cursor.fetchone() == (0,)


async def test_lease_is_renewed_only_while_its_handler_runs(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler that raised is not kept alive by heartbeats: its lease is in none of the beats that follow."""
    registry, go_on = JobRegistry(), trio.Event()
    beaten: list[set[object]] = []
    many = trio.Event()

    async def heartbeat(go: Go, **kwargs: Any) -> Any:
        beaten.append({lease.job_id for lease in kwargs["leases"]})
        if len(beaten) >= 4:
            many.set()
        return await go()

    @registry.handler("fails")
    async def fails(payload: Payload) -> None:
        await go_on.wait()
        raise ValueError("no luck")

    @registry.handler("lasts")
    async def lasts(payload: Payload) -> None:
        await trio.sleep_forever()

    worker = await place.start(registry, heartbeat_seconds=0.1)
    failed, lasting = await place.enqueue("fails"), await place.enqueue("lasts")
    for job_id in (failed, lasting):
        await worker.log.wait(EventName.JOB_CLAIMED, job_id=job_id)
    go_on.set()
    await worker.log.wait(EventName.JOB_RETRIED, job_id=failed)
    detour(monkeypatch, lease_verbs, "heartbeat", heartbeat)
    with trio.fail_after(PATIENCE_SECONDS):
        await many.wait()
    assert {job_id for leases in beaten for job_id in leases} == {lasting}
    assert (await place.job(failed))["lease_expires_at"] is None


async def test_job_longer_than_its_lease(place: Workplace) -> None:
    """Heartbeats keep a lease for as long as its handler runs, however short the lease."""
    registry, go_on = JobRegistry(), trio.Event()

    @registry.handler("work")
    async def work(payload: Payload) -> None:
        await go_on.wait()

    worker = await place.start(registry, lease_seconds=2.4, heartbeat_seconds=0.25)
    await place.start(registry, queues=["elsewhere"])  # a reclaimer that would take it
    job_id = await place.enqueue("work")
    await worker.log.wait(EventName.JOB_CLAIMED, job_id=job_id)
    await place.until("started_at + interval '2.5 s' < clock_timestamp() from pgnotifyq.jobs")
    go_on.set()
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    assert await place.history(job_id) == [(1, "completed")]


async def test_heartbeat_too_seldom(place: Workplace) -> None:
    """A worker whose heartbeat leaves less than two to spare does not start."""
    with pytest.raises(ExceptionGroup) as caught:
        await place.start(JobRegistry(), lease_seconds=60.0, heartbeat_seconds=30.0)
    assert caught.group_contains(ConfigError, match="at most 20")
