"""Shutdown: no more claims, running jobs to their end under a deadline, the rest released and not charged."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from pgnotifyq import EventName, Interrupt, InterruptKind, JobContext, JobRegistry
from pgnotifyq.doors.client import open_client
from pgnotifyq.ledger import claim as claim_verbs
from tests.asked import fetch
from tests.runtime.detours import Go, detour
from tests.runtime.support import PATIENCE_SECONDS, Worker, Workplace

Payload = dict[str, Any]


class Gate:
    """A handler that runs until it is let go, and tells why it was stopped before."""

    def __init__(self) -> None:
        self.registry = JobRegistry()
        self.begun = trio.Event()
        self.let_go = trio.Event()
        self.reasons: list[Interrupt | None] = []
        self.registry.handler()(self.work)

    async def work(self, payload: Payload, ctx: JobContext) -> None:
        """Wait until let go."""
        self.begun.set()
        try:
            await self.let_go.wait()
        except trio.Cancelled:
            self.reasons.append(ctx.cancel_reason)
            raise


async def begun(gate: Gate) -> None:
    """Wait until the handler runs: a job that was claimed, and no more, when the signal comes is given back."""
    with trio.fail_after(PATIENCE_SECONDS):
        await gate.begun.wait()


async def ended(worker: Worker) -> None:
    """Wait until run_worker has returned."""
    with trio.fail_after(PATIENCE_SECONDS):
        await worker.ended.wait()


async def nothing_left(place: Workplace) -> None:
    """Check that no row says of a worker that has left that it works, holds or sleeps."""
    for table in ("worker_heartbeats", "sleepers", "jobs where is_held"):
        assert await fetch(place.connection, f"select from pgnotifyq.{table}") == []


async def test_settlers_session_has_ended_unnoticed(place: Workplace) -> None:
    """A worker that leaves takes its row away all the same."""
    gate = Gate()
    worker = await place.start(gate.registry)
    first = await place.enqueue("work")
    await begun(gate)
    gate.let_go.set()
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=first)
    ends = "select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name = 'pgnotifyq settler'"
    ((count,),) = await fetch(place.connection, f"{ends} and datname = current_database()")
    assert count == 1
    worker.handle.drain()
    await ended(worker)
    await nothing_left(place)
    assert worker.log.find(EventName.DATABASE_LOST, connection="farewell") == []


async def test_drain(place: Workplace) -> None:
    """Running jobs are finished, no other is started, and the worker is gone from every table."""
    gate = Gate()
    worker = await place.start(gate.registry, concurrency=1)
    running, waiting = await place.enqueue("work"), await place.enqueue("work")
    await begun(gate)
    worker.handle.drain()
    await worker.log.wait(EventName.WORKER_STOPPING)
    await place.until("state = 'draining' from pgnotifyq.worker_heartbeats")
    later = await place.enqueue("work")
    gate.let_go.set()
    await ended(worker)
    await worker.log.wait(EventName.WORKER_STOPPED, interrupted=0)
    assert [(await place.job(job_id))["status"] for job_id in (running, waiting, later)] == ["completed", "pending", "pending"]
    assert gate.reasons == []
    await nothing_left(place)


async def test_second_signal(place: Workplace) -> None:
    """Told twice, the worker interrupts what runs, with the reason, and releases it: due at once, the attempt given back."""
    gate = Gate()
    worker = await place.start(gate.registry)
    job_id = await place.enqueue("work", max_attempts=1)
    await begun(gate)
    worker.handle.drain()
    await worker.log.wait(EventName.WORKER_STOPPING)
    assert gate.reasons == []
    worker.handle.drain()
    await ended(worker)
    assert [reason and reason.kind for reason in gate.reasons] == [InterruptKind.SHUTDOWN]
    job = await place.job(job_id)
    assert (job["status"], job["attempts"], job["is_held"]) == ("pending", 0, False)
    assert await place.history(job_id) == [(1, "released")]
    assert worker.handle.interrupted == 1
    await nothing_left(place)


async def test_deadline_of_the_shutdown(place: Workplace) -> None:
    """One signal is enough: at the deadline what still runs is interrupted and released."""
    gate = Gate()
    worker = await place.start(gate.registry, shutdown_seconds=0.1)
    job_id = await place.enqueue("work", max_attempts=1)
    await begun(gate)
    worker.handle.drain()
    await ended(worker)
    assert [reason and reason.kind for reason in gate.reasons] == [InterruptKind.SHUTDOWN]
    assert await place.history(job_id) == [(1, "released")]


async def test_worker_that_sleeps_is_told_to_stop(place: Workplace) -> None:
    """A sleeping worker ends at once: no sleep of its ignores the shutdown."""
    worker = await place.start(JobRegistry())
    await place.until_asleep(worker)
    worker.handle.drain()
    await ended(worker)
    await nothing_left(place)


async def test_nothing_starts_after_the_signal(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim that was under way when the signal came gives its jobs back: not one more job is started."""
    registry, started = JobRegistry(), []
    claimed, go_on = trio.Event(), trio.Event()

    @registry.handler()
    async def work(payload: Payload) -> None:
        started.append(True)

    async def claim(go: Go, **kwargs: Any) -> Any:
        found = await go()
        if found.jobs:
            claimed.set()
            await go_on.wait()
        return found

    detour(monkeypatch, claim_verbs, "claim", claim)
    worker = await place.start(registry)
    ids = [await place.enqueue("work", max_attempts=1) for _ in range(3)]
    with trio.fail_after(PATIENCE_SECONDS):
        await claimed.wait()
    worker.handle.drain()
    go_on.set()
    await ended(worker)
    assert started == []
    for job_id in ids:
        job = await place.job(job_id)
        assert (job["status"], job["attempts"]) == ("pending", 0)
    assert await place.history(ids[0]) == [(1, "released")]  # the claim may have come before the others were there
    await nothing_left(place)


async def test_heartbeats_go_on_while_draining(place: Workplace) -> None:
    """A job that takes longer than its lease to finish is not lost to a draining worker, nor taken by another."""
    gate = Gate()
    other = await place.start(Gate().registry, queues=["elsewhere"])
    worker = await place.start(gate.registry, lease_seconds=2.4, heartbeat_seconds=0.25)
    job_id = await place.enqueue("work")
    await begun(gate)
    worker.handle.drain()
    await place.until("started_at + interval '2.5 s' < clock_timestamp() from pgnotifyq.jobs")
    gate.let_go.set()
    await ended(worker)
    assert await place.history(job_id) == [(1, "completed")]
    assert other.log.find(EventName.JOB_RECLAIMED) == []


async def test_worker_cancelled_from_outside(place: Workplace) -> None:
    """A nursery that fails around a worker releases its jobs too: nothing is left to a lease."""
    gate = Gate()
    worker = await place.start(gate.registry)
    job_id = await place.enqueue("work", max_attempts=1)
    await begun(gate)
    await worker.leave()
    job = await place.job(job_id)
    assert (job["status"], job["attempts"]) == ("pending", 0)
    assert await place.history(job_id) == [(1, "released")]
    await nothing_left(place)


async def test_released_job_is_taken_by_another(place: Workplace) -> None:
    """What one worker releases another that sleeps is woken for."""
    gate, other_gate = Gate(), Gate()
    other_gate.let_go.set()
    worker = await place.start(gate.registry)
    job_id = await place.enqueue("work")
    await begun(gate)
    other = await place.start(other_gate.registry)
    await place.until_asleep(other)
    worker.handle.stop()
    await other.log.wait(EventName.JOB_COMPLETED, job_id=job_id)


async def test_cancelled_job_of_a_worker_that_stops(place: Workplace) -> None:
    """A job that was cancelled, and whose worker is stopped before its handler has ended, ends as cancelled."""
    registry, told, let_go = JobRegistry(), trio.Event(), trio.Event()

    @registry.handler()
    async def work(payload: Payload, ctx: JobContext) -> None:
        try:
            await trio.sleep_forever()
        finally:
            told.set()
            with trio.CancelScope(shield=True):
                await let_go.wait()

    worker = await place.start(registry)
    job_id = await place.enqueue("work")
    await worker.log.wait(EventName.JOB_CLAIMED, job_id=job_id)
    await place.cancel(job_id)
    with trio.fail_after(PATIENCE_SECONDS):
        await told.wait()
    worker.handle.stop()
    await worker.log.wait(EventName.WORKER_STOPPING)
    let_go.set()
    await ended(worker)
    assert (await place.job(job_id))["status"] == "cancelled"
    assert await place.history(job_id) == [(1, "cancelled")]


@pytest.mark.parametrize("how", ["signals", "cancelled"])
async def test_every_release_is_in_the_history(place: Workplace, how: str) -> None:
    """Whoever ends the worker, and however: what a handler saw of a job is not forgotten when the job goes on elsewhere."""
    gate = Gate()
    worker = await place.start(gate.registry)
    job_id = await place.enqueue("work", max_attempts=1)
    await begun(gate)
    if how == "signals":
        worker.handle.drain()
        worker.handle.drain()
        await ended(worker)
    else:
        await worker.leave()
    gate.let_go.set()
    worker = await place.start(gate.registry)
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    async with open_client(place.dsn) as client:
        history = await client.history(job_id)
    assert [(each.attempt, each.outcome) for each in history] == [(1, "released"), (1, "completed")]
    assert history[0].error_message in {"the worker is shutting down", "the worker was shut down"}
