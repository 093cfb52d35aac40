"""A job enqueued in the worker's own program is claimed by the statement that inserts it, when nothing comes before it.

A job that was handed over has one time for all: what was created was started, in one statement. One that was claimed later has two.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import psycopg
import pytest
import trio

from pgnotifyq import Client, EventName, JobRegistry, open_client
from pgnotifyq.ledger import claim as claim_verbs
from pgnotifyq.ledger import enqueue as enqueue_verbs
from pgnotifyq.model.job import JobId
from pgnotifyq.wire.connection import open_connection
from tests.proxy import run_proxy
from tests.runtime.detours import Go, detour
from tests.runtime.support import PATIENCE_SECONDS, Worker, Workplace

Payload = dict[str, Any]


class Gate:
    """Two job types: `quick` returns at once, `work` when it is let go."""

    def __init__(self) -> None:
        self.registry = JobRegistry()
        self.let_go = trio.Event()
        self.ran: list[Payload] = []
        self.registry.handler()(self.work)
        self.registry.handler()(self.quick)

    async def work(self, payload: Payload) -> None:
        """Wait until let go."""
        await self.let_go.wait()

    async def quick(self, payload: Payload) -> None:
        """Return."""
        self.ran.append(payload)


async def idle(place: Workplace, gate: Gate, **settings: Any) -> Worker:
    """Start a worker that has seen its queues empty."""
    worker = await place.start(gate.registry, **settings)
    await place.until_asleep(worker)
    return worker


async def was_handed_over(place: Workplace, worker: Worker, job_id: JobId) -> bool:
    """Wait for a job's end, and tell whether it was claimed as it was inserted."""
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    job = await place.job(job_id)
    assert (job["attempts"], await place.history(job_id)) == (1, [(1, "completed")])
    return bool(job["created_at"] == job["started_at"])


async def test_idle_worker_of_the_same_program(place: Workplace) -> None:
    """The job is claimed as it is inserted, and runs as any other."""
    gate = Gate()
    worker = await idle(place, gate)
    async with open_client(place.dsn) as client:
        job_id = await client.enqueue("quick", {"n": 1}, priority=3, max_attempts=7)
        assert await was_handed_over(place, worker, job_id)
    job = await place.job(job_id)
    assert (job["priority"], job["max_attempts"], job["payload"], gate.ran) == (3, 7, {"n": 1}, [{"n": 1}])


async def test_handler_that_enqueues(place: Workplace) -> None:
    """A handler's own jobs are handed over too, while there is a slot for them."""
    gate = Gate()
    made: list[JobId] = []

    @gate.registry.handler()
    async def parent(payload: Payload) -> None:
        made.append(await client.enqueue("quick"))

    worker = await idle(place, gate)
    async with open_client(place.dsn) as client:
        assert await was_handed_over(place, worker, await client.enqueue("parent"))
        assert await was_handed_over(place, worker, made[0])


async def test_due_job_comes_first(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was there before, and that the worker has not seen, is not overtaken."""
    gate = Gate()
    may_claim = trio.Event()
    may_claim.set()
    under_way = 0

    async def claim(go: Go, **kwargs: Any) -> Any:
        nonlocal under_way
        await may_claim.wait()
        under_way += 1
        try:
            return await go()
        finally:
            under_way -= 1

    detour(monkeypatch, claim_verbs, "claim", claim)
    worker = await idle(place, gate, concurrency=1)
    may_claim = trio.Event()
    with trio.fail_after(PATIENCE_SECONDS):
        while under_way:
            await trio.sleep(0.01)
    async with open_client(place.dsn) as client:
        first = await client.enqueue_many([{"job_type": "quick"}, {"job_type": "quick"}])  # of several none is named
        second = await client.enqueue("quick")
        may_claim.set()
        assert not await was_handed_over(place, worker, second)
    completed = [event["job_id"] for event in worker.log.find(EventName.JOB_COMPLETED)]
    assert completed == [str(job_id) for job_id in (*first, second)]


async def test_jobs_of_the_future_do_not_come_first(place: Workplace) -> None:
    """A queue that holds only delayed jobs is empty for now."""
    gate = Gate()
    await place.enqueue("quick", scheduled_at="2100-01-01")
    worker = await idle(place, gate)
    async with open_client(place.dsn) as client:
        assert await was_handed_over(place, worker, await client.enqueue("quick"))


REFUSED: dict[str, dict[str, Any]] = {
    "another queue": {"queue": "elsewhere"},
    "a type nobody handles": {"job_type": "unheard_of"},
    "a delay": {"delay_seconds": 3600},
    "a unique key": {"unique_key": "k"},
}


@pytest.mark.parametrize("fields", REFUSED.values(), ids=REFUSED)
async def test_job_that_is_not_for_now_or_not_for_it(place: Workplace, fields: dict[str, Any]) -> None:
    """Another queue's, a delayed one, one with a key: they are enqueued as from any other program."""
    gate = Gate()
    await idle(place, gate)
    async with open_client(place.dsn) as client:
        job_type = fields.pop("job_type", "work")
        job_id = await client.enqueue(job_type, **fields)
    job = await place.job(job_id)
    assert job["started_at"] is None or job["started_at"] > job["created_at"]


async def test_full_worker(place: Workplace) -> None:
    """Without a free slot the job waits its turn."""
    gate = Gate()
    worker = await idle(place, gate, concurrency=1)
    async with open_client(place.dsn) as client:
        first, second = await client.enqueue("work"), await client.enqueue("quick")
        assert (await place.job(second))["status"] == "pending"
        gate.let_go.set()
        assert await was_handed_over(place, worker, first)
        assert not await was_handed_over(place, worker, second)


async def test_transaction_of_the_caller(place: Workplace) -> None:
    """A job enqueued in a transaction does not start before its commit, and never when there is none."""
    gate = Gate()
    await idle(place, gate)
    async with open_client(place.dsn) as client, open_connection(place.dsn) as connection:
        async with connection.transaction(force_rollback=True):
            job_id = await client.enqueue("quick", connection=connection)
        assert gate.ran == []
        assert await client.jobs() == []
        async with connection.transaction():
            job_id = await client.enqueue("quick", connection=connection)
        assert (await client.wait(job_id, timeout_seconds=20)).started_at is not None


async def test_worker_that_has_drained_meanwhile(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that was claimed for a worker that has left when the reply comes is released to others, uncharged."""
    gate = Gate()
    worker = await idle(place, gate)

    async def slow(go: Go, **kwargs: Any) -> Any:
        found = await go()
        worker.handle.stop()
        await worker.ended.wait()
        return found

    detour(monkeypatch, enqueue_verbs, "enqueue_claimed", slow)
    async with open_client(place.dsn) as client:
        job_id = await client.enqueue("quick")
    job = await place.job(job_id)
    assert (job["status"], job["attempts"], job["locked_by"], gate.ran) == ("pending", 0, None, [])


async def test_reply_to_the_enqueue_is_lost(place: Workplace) -> None:
    """The caller is told that it failed; the job, which exists, is released at once and runs, once, uncharged for the first claim."""
    gate = Gate()
    proxy = await place.nursery.start(run_proxy, place.dsn)
    worker = await idle(place, gate, dsn=proxy.dsn)
    told: list[BaseException] = []

    async def enqueue(client: Client) -> None:
        try:
            await client.enqueue("quick")
        except psycopg.OperationalError as error:
            told.append(error)

    async with open_client(proxy.dsn) as client:
        assert await was_handed_over(place, worker, await client.enqueue("quick"))  # the statement is prepared
        await place.connection.execute("delete from pgnotifyq.jobs")
        async with trio.open_nursery() as nursery:
            proxy.drop_replies()
            nursery.start_soon(partial(enqueue, client))
            await place.until("exists (select from pgnotifyq.jobs where job_type = 'quick')")
            proxy.cut()
            proxy.thaw()
    await worker.log.wait(EventName.JOB_COMPLETED, count=2)
    ((job_id,),) = await (await place.connection.execute("select id from pgnotifyq.jobs")).fetchall()
    assert (len(told), len(gate.ran)) == (1, 2)
    assert await place.history(job_id) == [(1, "released"), (1, "completed")]


async def test_enqueue_that_fails(place: Workplace) -> None:
    """Nothing was sent, or nothing was done: the permit is free again."""
    gate = Gate()
    worker = await idle(place, gate, concurrency=1)
    async with open_client(place.dsn) as client:
        for _ in range(3):
            with trio.CancelScope() as scope:
                scope.cancel()
                await client.enqueue("quick")
        assert await was_handed_over(place, worker, await client.enqueue("quick"))
