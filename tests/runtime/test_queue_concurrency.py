"""Queues with a concurrency of their own: never more jobs at once, and no other queue waits for that."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import trio

from pgnotifyq import EventName, JobContext, JobRegistry, open_client
from pgnotifyq.ledger import claim as claim_verbs
from tests.asked import value
from tests.runtime.detours import detour

if TYPE_CHECKING:
    from pgnotifyq.model.job import JobId
    from tests.runtime.detours import Go
    from tests.runtime.support import Worker, Workplace

Payload = dict[str, Any]


class Shop:
    """Handlers that wait to be let go, and a count of what runs, by queue."""

    def __init__(self) -> None:
        self.registry = JobRegistry()
        self.running: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.let_go: Counter[str] = Counter()
        self.gate = trio.Event()
        self.registry.handler("work")(self.work)

    async def work(self, payload: Payload, ctx: JobContext) -> None:
        """Run until a job of its queue may end."""
        queue = ctx.job.queue_name
        self.running[queue] += 1
        self.most[queue] = max(self.most[queue], self.running[queue])
        try:
            while not self.let_go[queue]:
                await self.gate.wait()
            self.let_go[queue] -= 1
        finally:
            self.running[queue] -= 1

    def end(self, queue: str, count: int = 1) -> None:
        """Let jobs of a queue end."""
        self.let_go[queue] += count
        self.gate.set()
        self.gate = trio.Event()


async def claimed(worker: Worker, *jobs: JobId) -> None:
    """Wait until a worker has claimed jobs."""
    for job_id in jobs:
        await worker.log.wait(EventName.JOB_CLAIMED, job_id=job_id)


async def test_queue_at_its_limit(place: Workplace) -> None:
    """It is not claimed from, what is woken by name included; others are, and it goes on as soon as one of its jobs has ended."""
    shop = Shop()
    worker = await place.start(shop.registry, queues={"images": 1, "default": None}, concurrency=4)
    await place.until_asleep(worker)
    first = await place.enqueue("work", queue_name="images")
    await claimed(worker, first)
    waiting = [await place.enqueue("work", queue_name="images") for _ in range(2)]
    others = [await place.enqueue("work") for _ in range(3)]
    await claimed(worker, *others)
    for before, after in ((first, waiting[0]), (waiting[0], waiting[1])):
        assert worker.log.find(EventName.JOB_CLAIMED, job_id=after) == []
        shop.end("images")
        await worker.log.wait(EventName.JOB_COMPLETED, job_id=before)
        await claimed(worker, after)
    shop.end("images")
    shop.end("default", 3)
    await place.until("not exists (select from pgnotifyq.jobs where status <> 'completed')")
    assert shop.most == {"images": 1, "default": 3}


async def test_backlogs(place: Workplace) -> None:
    """Of queues with more than they may run, each is kept full, and never fuller; the others have the rest."""
    shop = Shop()
    jobs = Counter({"a": 30, "b": 30, "c": 30})
    for queue, count in jobs.items():
        for _ in range(count):
            await place.enqueue("work", queue_name=queue)
    worker = await place.start(shop.registry, queues={"a": 3, "c": 2, "b": None}, concurrency=7)
    for _ in range(30):
        await place.until(
            "count(*) filter (where queue_name = 'a') = least(3, (select count(*) from pgnotifyq.jobs where queue_name = 'a'"
            " and status <> 'completed')) from pgnotifyq.jobs where status = 'running'"
        )
        shop.end("a")
        shop.end("b")
        shop.end("c")
        await worker.log.wait(EventName.JOB_COMPLETED, queue="a", count=jobs["a"] - 29)
        jobs["a"] += 1
    await place.until("not exists (select from pgnotifyq.jobs where status <> 'completed')")
    assert (shop.most["a"], shop.most["c"]) == (3, 2)
    assert shop.most["b"] <= 7


async def test_wake_up_for_a_queue_at_its_limit(place: Workplace) -> None:
    """A worker that hears it hands it on: the job starts elsewhere, though both workers sleep and nobody looks for an hour."""
    full, other = Shop(), Shop()
    worker = await place.start(full.registry, queues={"images": 1, "default": None})
    await place.until_asleep(worker)
    first = await place.enqueue("work", queue_name="images")
    await claimed(worker, first)
    free = await place.start(other.registry, queues={"images": 1})
    await place.until_asleep(free)
    second = await place.enqueue("work", queue_name="images")
    await claimed(free, second)
    third = await place.enqueue("work", queue_name="images")
    other.end("images")
    await claimed(free, third)
    full.end("images")
    other.end("images")
    await place.until("not exists (select from pgnotifyq.jobs where status <> 'completed')")


@pytest.mark.parametrize("delay_seconds", [0.0, 0.3])
async def test_enqueued_in_the_same_program(place: Workplace, delay_seconds: float) -> None:
    """A job for a queue at its limit is not handed over; it waits, due or not, and starts when there is room."""
    shop = Shop()
    worker = await place.start(shop.registry, queues={"images": 1, "default": None})
    await place.until_idle(worker)
    async with open_client(place.dsn) as client:
        first = await client.enqueue("work", {}, queue="images")
        await claimed(worker, first)
        second = await client.enqueue("work", {}, queue="images", delay_seconds=delay_seconds)
        third = await client.enqueue("work", {}, queue="default")
        await claimed(worker, third)
        await place.until("scheduled_at < clock_timestamp() from pgnotifyq.jobs where id = %s", second)
        assert worker.log.find(EventName.JOB_CLAIMED, job_id=second) == []
        shop.end("images")
        await claimed(worker, second)
    shop.end("images")
    shop.end("default")
    await place.until("not exists (select from pgnotifyq.jobs where status <> 'completed')")


async def test_claim_of_a_look_that_fails(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the claims before it have brought runs all the same, and is not left to its lease; the next look finds the rest."""
    shop = Shop()
    worker = await place.start(shop.registry, queues={"images": 1, "default": None})
    await place.until_idle(worker)
    failed = trio.Event()

    async def claim(go: Go, **kwargs: Any) -> Any:
        if kwargs["queues"] == ["default"] and not failed.is_set():
            failed.set()
            raise trio.TooSlowError
        return await go()

    detour(monkeypatch, claim_verbs, "claim", claim)
    async with place.connection.transaction():
        first = await place.enqueue("work", queue_name="images")
        others = [await place.enqueue("work") for _ in range(2)]
    await claimed(worker, first, *others)
    assert failed.is_set()
    shop.end("images")
    shop.end("default", 2)
    await place.until("not exists (select from pgnotifyq.jobs where status <> 'completed')")
    assert await value(place.connection, "select max(attempts) from pgnotifyq.jobs") == 1
