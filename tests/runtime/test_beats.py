"""What a beat tells, when it is given, and what it leaves to the settler."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from pgnotifyq import EventName, JobContext, JobRegistry
from pgnotifyq.ledger import end as end_verbs
from pgnotifyq.ledger import lease
from pgnotifyq.ledger import lease as lease_verbs
from pgnotifyq.runtime import heartbeat
from tests.asked import fetch
from tests.runtime.detours import Go, detour
from tests.runtime.support import PATIENCE_SECONDS, Workplace
from tests.runtime.test_executions import workers_of

Payload = dict[str, Any]


class Beats:
    """Counts beats that were answered, and lets a test wait for the next ones."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: list[tuple[set[object], list[lease.Surprise]]] = []
        self._news = trio.Event()

        async def beat(go: Go, **kwargs: Any) -> Any:
            surprises = await go()
            self.told.append(({lease.job_id for lease in kwargs["leases"]}, surprises))
            self._news.set()
            self._news = trio.Event()
            return surprises

        detour(monkeypatch, lease_verbs, "heartbeat", beat)

    async def pass_by(self, count: int = 3) -> None:
        """Wait for some more."""
        enough = len(self.told) + count
        with trio.fail_after(PATIENCE_SECONDS):
            while len(self.told) < enough:
                await self._news.wait()


async def test_beat_that_overtakes_a_settlement(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beats that find a lease gone, because its job has been completed and the reply is on its way, tell nothing of it."""
    registry, let_go, arrived, reply = JobRegistry(), trio.Event(), trio.Event(), trio.Event()

    @registry.handler()
    async def work(payload: Payload) -> None:
        await let_go.wait()

    async def settle(go: Go, **kwargs: Any) -> Any:
        told = await go()
        arrived.set()
        await reply.wait()
        return told

    worker = await place.start(registry, heartbeat_seconds=0.1)
    job_id = await place.enqueue("work")
    await worker.log.wait(EventName.JOB_CLAIMED, job_id=job_id)
    detour(monkeypatch, end_verbs, "settle", settle)
    beats = Beats(monkeypatch)
    let_go.set()
    with trio.fail_after(PATIENCE_SECONDS):
        await arrived.wait()
    await beats.pass_by()
    assert any(surprises for _, surprises in beats.told)  # they did find it gone
    reply.set()
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    assert worker.log.find(EventName.JOB_INTERRUPTED) == worker.log.find(EventName.LEASE_LOST) == []


async def test_beat_that_overtakes_a_handlers_own_commit(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor of a job that its handler's transaction has completed, when the handler does not know of the commit yet."""
    registry, beats = JobRegistry(), Beats(monkeypatch)
    began = trio.Event()

    @registry.handler()
    async def work(payload: Payload, ctx: JobContext) -> None:
        # As a commit that was applied, and whose reply is late: the fence, the completion, and no `is_settled`.
        async with ctx.transaction(complete=True):
            pass
        ctx._running.is_settled = False
        began.set()
        await beats.pass_by(1)
        await trio.testing.wait_all_tasks_blocked(0.01)  # whatever the beat has told is acted on
        ctx._running.is_settled = True

    worker = await place.start(registry, heartbeat_seconds=0.1)
    job_id = await place.enqueue("work")
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    assert began.is_set()
    assert worker.log.find(EventName.JOB_INTERRUPTED) == worker.log.find(EventName.LEASE_LOST) == []


async def test_job_that_ended_while_its_beat_waited(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A beat says what is held when it is sent, not what was held when it began to wait for its turn."""
    registry, let_go = JobRegistry(), trio.Event()

    @registry.handler()
    async def work(payload: Payload) -> None:
        await let_go.wait()

    worker = await place.start(registry)
    (taker,) = workers_of(place.dsn)
    job_id = await place.enqueue("work")
    await worker.log.wait(EventName.JOB_CLAIMED, job_id=job_id)
    beats = Beats(monkeypatch)
    held, free = trio.Event(), trio.Event()

    async def hold(connection: object) -> None:
        held.set()
        await free.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(taker.quick.run, hold)
        await held.wait()
        nursery.start_soon(heartbeat.renew, taker.me, taker.quick, taker.executions, list(taker.executions))
        let_go.set()
        await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
        free.set()
    assert beats.told[0] == (set(), [])


async def test_outcome_on_its_way_at_the_deadline(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that has ended, and whose outcome is being written when the worker's time is up, was not interrupted."""
    registry, let_go, asked, go_on = JobRegistry(), trio.Event(), trio.Event(), trio.Event()

    @registry.handler()
    async def work(payload: Payload) -> None:
        await let_go.wait()

    @registry.handler()
    async def lasts(payload: Payload) -> None:
        await trio.sleep_forever()

    async def settle(go: Go, **kwargs: Any) -> Any:
        asked.set()
        await go_on.wait()
        return await go()

    worker = await place.start(registry)
    ends, lasting = await place.enqueue("work"), await place.enqueue("lasts")
    for job_id in (ends, lasting):
        await worker.log.wait(EventName.JOB_CLAIMED, job_id=job_id)
    detour(monkeypatch, end_verbs, "settle", settle)
    let_go.set()
    with trio.fail_after(PATIENCE_SECONDS):
        await asked.wait()
        worker.handle.stop()
        await worker.log.wait(EventName.JOB_INTERRUPTED, job_id=lasting)
        go_on.set()
        await worker.ended.wait()
    assert worker.handle.interrupted == 1
    assert worker.log.find(EventName.JOB_INTERRUPTED, job_id=ends) == []
    assert await place.history(ends) == [(1, "completed")]


@pytest.mark.parametrize("has_session", [True, False])
async def test_worker_that_has_only_short_jobs(place: Workplace, monkeypatch: pytest.MonkeyPatch, has_session: bool) -> None:
    """Jobs that need no beat do not keep a worker from beating: it is not taken for silent, nor, without a session, for dead."""
    registry = JobRegistry()

    @registry.handler()
    async def short(payload: Payload) -> None:
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(heartbeat, "IDLE_BEAT_SECONDS", 0.5)
    settings: dict[str, Any] = {} if has_session else {"is_heard": False, "listen_dsn": "host=/nowhere"}
    worker = await place.start(registry, heartbeat_seconds=20.0 if has_session else 0.5, poll_seconds=0.02, **settings)
    statement = "select last_beat_at from pgnotifyq.worker_heartbeats"
    count = 0
    with trio.fail_after(PATIENCE_SECONDS):
        # One upon the other, each sooner than the beat that an idle worker would give. Three times: the first may be of the start.
        for _ in range(3):
            before = await fetch(place.connection, statement)
            while await fetch(place.connection, statement) == before:
                count += 1
                await worker.log.wait(EventName.JOB_COMPLETED, job_id=await place.enqueue("short"))
    assert count > 0


async def test_worker_that_was_forgotten(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle worker whose row others have taken away, while it could not listen, is back with its next beat."""
    monkeypatch.setattr(heartbeat, "IDLE_BEAT_SECONDS", 0.2)
    worker = await place.start(JobRegistry(), is_heard=False, listen_dsn="host=/nowhere")
    await place.connection.execute("delete from pgnotifyq.worker_heartbeats")
    await place.until("exists (select from pgnotifyq.worker_heartbeats where worker_id = %s)", worker.handle.worker_id)
