"""Cancel: a pending job never starts, a running one is stopped, and what is shown is what is."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

import pytest
import trio

from pgnotifyq import EventName, Interrupt, InterruptKind, JobContext, JobRegistry
from pgnotifyq.ledger import lease as lease_verbs
from tests.proxy import Proxy, run_proxy
from tests.runtime.detours import Go, detour
from tests.runtime.support import Workplace

Payload = dict[str, Any]


async def test_pending_job_never_starts(place: Workplace) -> None:
    """A job cancelled while it waited is never given to a handler."""
    registry, started, let_go = JobRegistry(), [], trio.Event()

    @registry.handler("work")
    async def work(payload: Payload, ctx: JobContext) -> None:
        started.append(ctx.job.id)
        await let_go.wait()

    worker = await place.start(registry, concurrency=1)
    first, second, third = [await place.enqueue("work") for _ in range(3)]
    await worker.log.wait(EventName.JOB_CLAIMED, job_id=first)
    await place.cancel(second)
    let_go.set()
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=third)
    assert started == [first, third]
    assert (await place.job(second))["status"] == "cancelled"


@pytest.mark.parametrize("door", ["update", "function"])
async def test_running_job_is_stopped_at_its_next_checkpoint(place: Workplace, door: str) -> None:
    """The handler sees trio.Cancelled where it waits, and the reason in its context; the job ends as cancelled."""
    registry = JobRegistry()
    reasons: list[Interrupt | None] = []

    @registry.handler("work")
    async def work(payload: Payload, ctx: JobContext) -> None:
        assert ctx.cancel_reason is None
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            reasons.append(ctx.cancel_reason)
            assert ctx.is_cancelled()
            raise

    worker = await place.start(registry)
    job_id = await place.enqueue("work")
    await worker.log.wait(EventName.JOB_CLAIMED, job_id=job_id)
    if door == "update":
        await place.cancel(job_id)
    else:
        await place.connection.execute("select pgnotifyq.cancel(%s, 'no longer wanted')", (job_id,))
    await worker.log.wait(EventName.JOB_CANCELLED, job_id=job_id)
    (reason,) = reasons
    assert reason is not None and reason.kind is InterruptKind.CANCELLED
    assert reason.why == (None if door == "update" else "no longer wanted")
    job = await place.job(job_id)
    assert (job["status"], job["is_held"]) == ("cancelled", False)
    assert await place.history(job_id) == [(1, "cancelled")]


async def test_cooperative_handler(place: Workplace) -> None:
    """A cooperative handler is told and stops where it likes: its checkpoints raise nothing."""
    registry, stopped = JobRegistry(), []

    @registry.handler("work", cooperative=True)
    async def work(payload: Payload, ctx: JobContext) -> None:
        reason = await ctx.cancelled()
        for _ in range(10):
            await trio.lowlevel.checkpoint()
        stopped.append((reason.kind, ctx.is_cancelled()))

    worker = await place.start(registry)
    job_id = await place.enqueue("work")
    await worker.log.wait(EventName.JOB_CLAIMED, job_id=job_id)
    await place.cancel(job_id)
    await worker.log.wait(EventName.JOB_CANCELLED, job_id=job_id)
    assert stopped == [(InterruptKind.CANCELLED, True)]
    assert (await place.job(job_id))["status"] == "cancelled"


async def test_cooperative_handler_that_does_not_stop(place: Workplace) -> None:
    """After its grace a cooperative handler is cancelled like any other."""
    registry = JobRegistry()
    reasons: list[Interrupt | None] = []

    @registry.handler("work", cooperative=True)
    async def work(payload: Payload, ctx: JobContext) -> None:
        try:
            await trio.sleep_forever()
        finally:
            reasons.append(ctx.cancel_reason)

    worker = await place.start(registry, grace_seconds=0.05)
    job_id = await place.enqueue("work")
    await worker.log.wait(EventName.JOB_CLAIMED, job_id=job_id)
    await place.cancel(job_id)
    await worker.log.wait(EventName.JOB_UNRESPONSIVE, job_id=job_id)
    await worker.log.wait(EventName.JOB_CANCELLED, job_id=job_id)
    assert [reason and reason.kind for reason in reasons] == [InterruptKind.CANCELLED]


@pytest.mark.parametrize("sees", ["is_cancelled", "check_cancelled"])
async def test_handler_in_a_thread(place: Workplace, sees: str) -> None:
    """A thread sees the cancel both ways, and its job is shown as stopping until the thread has ended."""
    registry, seen, may_end = JobRegistry(), threading.Event(), threading.Event()

    @registry.handler("work")
    def work(payload: Payload, ctx: JobContext) -> None:
        pause = threading.Event()
        try:
            while not (sees == "is_cancelled" and ctx.is_cancelled()):
                pause.wait(0.005)
                if sees == "check_cancelled":
                    trio.from_thread.check_cancelled()
        finally:
            seen.set()
            may_end.wait(20)

    worker = await place.start(registry)
    job_id = await place.enqueue("work")
    await worker.log.wait(EventName.JOB_CLAIMED, job_id=job_id)
    await place.cancel(job_id)
    assert await trio.to_thread.run_sync(seen.wait, 20)
    job = await place.job(job_id)
    assert (job["status"], job["is_held"]) == ("cancelled", True)
    assert worker.log.find(EventName.JOB_CANCELLED) == []
    may_end.set()
    await worker.log.wait(EventName.JOB_CANCELLED, job_id=job_id)
    assert await place.history(job_id) == [(1, "cancelled")]


async def test_handler_that_swallows_the_cancel(place: Workplace) -> None:
    """A deaf handler is reported, shown as stopping, keeps its slot and its lease, and still cannot complete."""
    registry, let_go, started = JobRegistry(), trio.Event(), []

    @registry.handler("deaf")
    async def deaf(payload: Payload, ctx: JobContext) -> str:
        with trio.CancelScope(shield=True):
            await let_go.wait()
        return "done all the same"

    @registry.handler("next")
    async def next_one(payload: Payload) -> None:
        started.append(True)

    worker = await place.start(registry, concurrency=1, grace_seconds=0.05, heartbeat_seconds=0.2)
    job_id, waiting = await place.enqueue("deaf"), await place.enqueue("next")
    await worker.log.wait(EventName.JOB_CLAIMED, job_id=job_id)
    await place.cancel(job_id)
    await worker.log.wait(EventName.JOB_UNRESPONSIVE, job_id=job_id)
    job = await place.job(job_id)
    assert (job["status"], job["is_held"], started) == ("cancelled", True, [])
    # Its lease goes on: nobody may start the job beside it.
    await place.until("lease_expires_at > %s::timestamptz from pgnotifyq.jobs where id = %s", job["lease_expires_at"], job_id)
    let_go.set()
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=waiting)
    job = await place.job(job_id)
    assert (job["status"], job["is_held"], job["result"]) == ("cancelled", False, None)
    assert worker.log.find(EventName.JOB_COMPLETED, job_id=job_id) == []
    assert await place.history(job_id) == [(1, "cancelled")]


async def test_clean_up_that_fails(place: Workplace) -> None:
    """A handler that raises while it is stopped is cancelled, not retried."""
    registry = JobRegistry()

    @registry.handler("work")
    async def work(payload: Payload, ctx: JobContext) -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise OSError("the disk is full")

    worker = await place.start(registry)
    job_id = await place.enqueue("work")
    await worker.log.wait(EventName.JOB_CLAIMED, job_id=job_id)
    await place.cancel(job_id)
    await worker.log.wait(EventName.JOB_CANCELLED, job_id=job_id)
    assert (await place.job(job_id))["status"] == "cancelled"
    assert await place.history(job_id) == [(1, "cancelled")]


async def test_cancel_whose_notification_is_lost(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lost notification costs at most one heartbeat: the first beat after the cancel carries the news."""
    registry, running = JobRegistry(), trio.Event()

    @registry.handler("work")
    async def work(payload: Payload) -> None:
        running.set()
        await trio.sleep_forever()

    beats: list[tuple[bool, bool]] = []  # of each: sent after the cancel had committed; brought the news
    committed = False

    async def heartbeat(go: Go, **kwargs: Any) -> Any:
        after = committed
        surprises = await go()
        if kwargs["leases"]:
            beats.append((after, bool(surprises)))
        return surprises

    detour(monkeypatch, lease_verbs, "heartbeat", heartbeat)
    cable: Proxy = await place.nursery.start(run_proxy, place.dsn)
    worker = await place.start(registry, listen_dsn=cable.dsn, heartbeat_seconds=0.2)
    job_id = await place.enqueue("work")
    await running.wait()
    cable.drop_replies()
    await place.cancel(job_id)
    committed = True
    await worker.log.wait(EventName.JOB_CANCELLED, job_id=job_id)
    assert [news for after, news in beats if after][:1] in ([True], [])


async def test_waiting_for_a_cancel_that_does_not_come(place: Workplace) -> None:
    """`ctx.cancelled()` does not return while nobody cancels: a race against it is won by the work."""
    registry, won = JobRegistry(), []

    @registry.handler("work")
    async def work(payload: Payload, ctx: JobContext) -> None:
        async with trio.open_nursery() as nursery:

            async def race(name: str, wait: Any) -> None:
                await wait()
                won.append(name)
                nursery.cancel_scope.cancel()

            nursery.start_soon(race, "cancelled", ctx.cancelled)
            nursery.start_soon(race, "work", partial(trio.sleep, 0.05))

    worker = await place.start(registry)
    job_id = await place.enqueue("work")
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    assert won == ["work"]


@pytest.mark.parametrize("kind", InterruptKind)
async def test_handler_can_tell_why_it_is_stopped(place: Workplace, kind: InterruptKind) -> None:
    """Cancelled, timed out, lease lost, shut down: four reasons, each told as itself, to whoever asks and whoever waits."""
    registry, running, told = JobRegistry(), trio.Event(), []

    @registry.handler("work", timeout_seconds=0.05 if kind is InterruptKind.TIMED_OUT else None)
    async def work(payload: Payload, ctx: JobContext) -> None:
        running.set()
        try:
            await trio.sleep_forever()
        finally:
            told.append(ctx.cancel_reason)

    worker = await place.start(registry, heartbeat_seconds=0.2)
    job_id = await place.enqueue("work", max_attempts=9)
    await running.wait()
    match kind:
        case InterruptKind.CANCELLED:
            await place.cancel(job_id)
            await worker.log.wait(EventName.JOB_CANCELLED, job_id=job_id)
        case InterruptKind.TIMED_OUT:
            await worker.log.wait(EventName.JOB_RETRIED, job_id=job_id)
        case InterruptKind.LEASE_LOST:
            await place.take_away(job_id)
            await worker.log.wait(EventName.LEASE_LOST, job_id=job_id)
        case InterruptKind.SHUTDOWN:
            worker.handle.stop()
            await worker.log.wait(EventName.JOB_RELEASED, job_id=job_id)
    assert [reason.kind for reason in told if isinstance(reason, Interrupt)] == [kind]


async def test_timeout_of_a_handler_in_a_thread(place: Workplace) -> None:
    """A thread that is past its time sees it by asking, with the reason, and the attempt counts as failed."""
    registry, told = JobRegistry(), []

    @registry.handler("work", timeout_seconds=0.05)
    def work(payload: Payload, ctx: JobContext) -> None:
        pause = threading.Event()
        while not ctx.is_cancelled():
            pause.wait(0.005)
        told.append(ctx.cancel_reason)
        trio.from_thread.check_cancelled()

    worker = await place.start(registry)
    job_id = await place.enqueue("work")
    await worker.log.wait(EventName.JOB_RETRIED, job_id=job_id)
    assert [reason.kind for reason in told if reason is not None] == [InterruptKind.TIMED_OUT]
    assert await place.history(job_id) == [(1, "timed_out")]
