"""What handlers want counts for whoever enqueues, and a row that cannot be claimed or sent stops no worker."""

from __future__ import annotations

from typing import Any

import trio

from pgnotifyq import EventName, JobRegistry, RetryPolicy, open_client
from tests.runtime.support import Workplace

Payload = dict[str, Any]


async def test_client_without_a_registry(place: Workplace) -> None:
    """A job that says nothing has its handler's attempts and goes to its handler's queue, whoever enqueued it and when."""
    registry = JobRegistry()

    @registry.handler(max_attempts=5, queue="images", retry=RetryPolicy(base_seconds=0.0))
    async def resize(payload: Payload) -> None:
        raise ValueError("no luck")

    async with open_client(place.dsn) as client:
        before = await client.enqueue("resize")
        worker = await place.start(registry, queues=["images"])
        after = await client.enqueue("resize")
        by_sql = await place.enqueue("resize")
    for job_id in (before, after, by_sql):
        await worker.log.wait(EventName.JOB_DEAD, job_id=job_id)
        letter = await place.dead_letter(job_id)
        assert (letter["queue_name"], letter["attempts"], letter["max_attempts"]) == ("images", 5, 5)


async def test_rows_that_cannot_be_claimed_or_sent(place: Workplace) -> None:
    """One is told and put aside, one is buried; the worker lives, and nobody else's job waits."""
    registry = JobRegistry()

    @registry.handler()
    async def noop(payload: Payload) -> None:
        await trio.lowlevel.checkpoint()

    await place.connection.execute(
        "alter table pgnotifyq.jobs add constraint refuse check (priority <> 7 or status <> 'running')"
    )
    try:
        bad = await place.enqueue(priority=7)
        never = await place.enqueue(priority=9)
        await place.connection.execute("update pgnotifyq.jobs set scheduled_at = 'infinity' where id = %s", (never,))
        await place.connection.execute(
            "insert into pgnotifyq.jobs (job_type, priority, payload) values ('noop', 8, to_jsonb(repeat('x', 17 * 1048576)))"
        )
        good = [await place.enqueue() for _ in range(6)]
        worker = await place.start(registry)
        await worker.log.wait(EventName.JOB_PUT_ASIDE, job_id=bad)
        for job_id in good:
            await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
        dead = await worker.log.wait(EventName.JOB_DEAD)
        assert "too large" in dead["why"]
        assert (await place.job(bad))["attempts"] == 0
        assert not worker.ended.is_set()
    finally:
        await place.connection.execute("alter table pgnotifyq.jobs drop constraint refuse")
