"""Batches: a handler is given several jobs at once, and each is settled by itself."""

from __future__ import annotations

import time
import uuid
from typing import Any

import attrs
import pytest
import trio
from psycopg.types.json import Jsonb

from pgnotifyq import BatchItem, ConfigError, Discard, EventName, JobContext, JobRegistry, OrgId, Retry, Snooze
from pgnotifyq.doors.client import open_client
from pgnotifyq.model.job import JobId
from pgnotifyq.testing import drain, run_job
from tests.asked import fetch
from tests.runtime.support import Worker, Workplace


@attrs.frozen
class Word:
    """What to work on."""

    text: str


async def enqueue(place: Workplace, count: int, job_type: str = "embed") -> list[JobId]:
    """Enqueue jobs in one statement, so that one claim finds them all.

    Of two statements of one transaction the second may see the worker fall asleep, and name its own job to it alone.
    """
    statement = (
        "insert into pgnotifyq.jobs (job_type, payload)"
        " select %s, jsonb_build_object('text', n::text) from generate_series(0, %s - 1) as n order by n returning id"
    )
    return [job_id for (job_id,) in await fetch(place.connection, statement, job_type, count)]


async def settled(place: Workplace, ids: list[JobId]) -> list[str]:
    """Wait until none of these jobs is held or due; return their statuses, `dead` for a letter."""
    await place.until("not exists (select from pgnotifyq.jobs where id = any (%s) and is_held)", ids)
    found = dict(await fetch(place.connection, "select id, status from pgnotifyq.jobs where id = any (%s)", ids))
    return [found.get(job_id, "dead") for job_id in ids]


@pytest.mark.parametrize("kind", ["trio", "asyncio", "thread"])
async def test_jobs_come_together(place: Workplace, kind: str) -> None:
    """Those that wait come in one call, in order, `batch_size` at the most; each is completed with its own result."""
    registry = JobRegistry()
    calls: list[list[str]] = []

    def work(jobs: list[BatchItem[Word]]) -> list[str]:
        calls.append([item.payload.text for item in jobs])
        assert [item.ctx.job.payload["text"] for item in jobs] == calls[-1]
        return [item.payload.text * 2 for item in jobs]

    if kind == "thread":
        registry.handler("embed", batch_size=4)(work)
    else:

        @registry.handler("embed", batch_size=4, runs_in="trio" if kind == "trio" else "asyncio")
        async def embed(jobs: list[BatchItem[Word]]) -> list[str]:
            return work(jobs)

    ids = await enqueue(place, 10)
    worker = await place.start(registry, concurrency=20)
    await worker.log.wait(EventName.JOB_COMPLETED, count=10)
    assert sorted(calls, key=lambda call: int(call[0])) == [["0", "1", "2", "3"], ["4", "5", "6", "7"], ["8", "9"]]
    assert [(await place.job(job_id))["result"] for job_id in ids] == [str(n) * 2 for n in range(10)]
    assert [await place.history(job_id) for job_id in ids] == [[(1, "completed")]] * 10


async def test_a_job_alone_does_not_wait(place: Workplace) -> None:
    """An idle worker starts a single job at once, as a batch of one, whoever enqueued it."""
    registry = JobRegistry()
    sizes: list[int] = []

    @registry.handler("embed", batch_size=100)
    async def embed(jobs: list[BatchItem]) -> None:
        sizes.append(len(jobs))

    worker = await place.start(registry)
    await place.until_asleep(worker)
    (job_id,) = await enqueue(place, 1)
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    async with open_client(place.dsn) as client:
        await client.wait(await client.enqueue(embed, {"text": "a"}))
    assert sizes == [1, 1]


async def test_each_is_settled_by_itself(place: Workplace) -> None:
    """An outcome may be a result, a wish or an error; one that is said early is durable while the others go on."""
    registry = JobRegistry()
    go_on = trio.Event()

    @registry.handler("embed", batch_size=10, max_attempts=2)
    async def embed(jobs: list[BatchItem[Word]]) -> list[object]:
        jobs[0].settle("early")
        with pytest.raises(ValueError, match="settled already"):
            jobs[0].settle()
        with jobs[1]:
            raise RuntimeError("this one's own")
        await go_on.wait()
        return [None, None, Snooze(3600.0), Discard("no use"), Retry(3600.0, "later"), KeyError("missing"), 6]

    ids = await enqueue(place, 7)
    worker = await place.start(registry, concurrency=10)
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=ids[0])
    await worker.log.wait(EventName.JOB_RETRIED, job_id=ids[1])
    assert (await place.job(ids[0]))["result"] == "early"
    assert [(await place.job(each))["status"] for each in ids] == ["completed", "pending"] + ["running"] * 5
    go_on.set()
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=ids[6])
    assert await settled(place, ids) == ["completed", "pending", "pending", "dead", "pending", "pending", "completed"]
    outcomes = [(await place.history(each))[-1] for each in (*ids[:3], *ids[4:])]
    assert outcomes == [(1, "completed"), (1, "failed"), (1, "snoozed"), (1, "failed"), (1, "failed"), (1, "completed")]
    assert "this one's own" in (await place.job(ids[1]))["error_message"]
    assert "KeyError" in (await place.job(ids[5]))["error_message"]


async def test_a_handler_that_raises(place: Workplace) -> None:
    """It fails those that are not settled yet; so does a return value that is nobody's outcome."""
    registry = JobRegistry()

    @registry.handler("embed", batch_size=10, max_attempts=1)
    async def embed(jobs: list[BatchItem[Word]]) -> object:
        jobs[1].settle("well")
        if len(jobs) == 2:
            return ["one too few"]
        raise RuntimeError("the service is down")

    worker = await place.start(registry)
    for count, why in ((3, "the service is down"), (2, "a list with one outcome for each of its 2 jobs")):
        ids = await enqueue(place, count)
        await worker.log.wait(EventName.JOB_DEAD, job_id=ids[0])
        assert await settled(place, ids) == ["dead", "completed", "dead"][:count]
        assert why in (await place.dead_letter(ids[0]))["error_message"]


async def test_a_cancel_is_one_jobs(place: Workplace) -> None:
    """A cancel ends the job's own block, and the others go on; the last that is left ends the call."""
    registry = JobRegistry()
    begun = trio.Event()
    ends: list[str] = []

    @registry.handler("embed", batch_size=10)
    async def embed(jobs: list[BatchItem[Word]]) -> None:
        async def work(item: BatchItem[Word]) -> None:
            with item:
                if item.payload.text == "2":
                    begun.set()
                await trio.sleep_forever()
            ends.append(item.payload.text)

        async with trio.open_nursery() as nursery:
            for item in jobs[:2]:
                nursery.start_soon(work, item)
            begun.set()
            try:
                await trio.sleep_forever()
            finally:
                ends.append("the call")

    ids = await enqueue(place, 3)
    worker = await place.start(registry)
    await begun.wait()
    for job_id in ids[:2]:
        await place.cancel(job_id)
        await worker.log.wait(EventName.JOB_CANCELLED, job_id=job_id)
    assert ends == ["0", "1"]
    assert (await place.job(ids[2]))["status"] == "running"
    await place.cancel(ids[2])
    await worker.log.wait(EventName.JOB_CANCELLED, job_id=ids[2])
    assert ends == ["0", "1", "the call"]
    assert [await place.history(each) for each in ids] == [[(1, "cancelled")]] * 3


async def test_a_cancel_in_a_thread(place: Workplace) -> None:
    """In a thread a cancel is a flag of the one job; the others are completed."""
    registry = JobRegistry()
    begun = trio.Event()
    token = trio.lowlevel.current_trio_token()

    @registry.handler("embed", batch_size=10)
    def embed(jobs: list[BatchItem[Word]]) -> None:
        token.run_sync_soon(begun.set)
        while not jobs[0].ctx.is_cancelled():
            time.sleep(0.01)
        jobs[1].settle("there")
        assert not jobs[2].ctx.is_cancelled()

    ids = await enqueue(place, 3)
    worker = await place.start(registry)
    await begun.wait()
    await place.cancel(ids[0])
    await worker.log.wait(EventName.JOB_CANCELLED, job_id=ids[0])
    await worker.log.wait(EventName.JOB_COMPLETED, count=2)
    assert await settled(place, ids) == ["cancelled", "completed", "completed"]
    assert (await place.job(ids[1]))["result"] == "there"


async def test_time_and_shutdown(place: Workplace) -> None:
    """A time limit ends the call, and each job that is left has timed out; a shutdown releases them, uncharged.

    The shutdown gives no time, for the handler would not end in any.
    """
    registry = JobRegistry()
    begun = trio.Event()

    @registry.handler("slow", batch_size=10, max_attempts=1, timeout_seconds=0.2)
    async def slow(jobs: list[BatchItem]) -> None:
        jobs[0].settle()
        await trio.sleep_forever()

    @registry.handler("long", batch_size=10, max_attempts=1)
    async def long(jobs: list[BatchItem]) -> None:
        jobs[0].settle()
        begun.set()
        await trio.sleep_forever()

    ids = await enqueue(place, 3, "slow")
    worker = await place.start(registry, shutdown_seconds=0)
    for job_id in ids[1:]:
        await worker.log.wait(EventName.JOB_DEAD, job_id=job_id)
        assert "timed out after 0.2 s" in (await place.dead_letter(job_id))["error_message"]
    assert await settled(place, ids) == ["completed", "dead", "dead"]
    ids = await enqueue(place, 3, "long")
    await begun.wait()
    worker.handle.drain()
    await worker.ended.wait()
    assert await settled(place, ids) == ["completed", "pending", "pending"]
    assert (await place.job(ids[1]))["attempts"] == 0


async def test_one_tenant_and_one_type(place: Workplace) -> None:
    """A batch is one tenant's and one type's; others' jobs between its own stay in the line."""
    registry = JobRegistry()
    calls: list[tuple[str, set[Any], int]] = []

    def note(jobs: list[BatchItem]) -> None:
        calls.append((jobs[0].ctx.job.job_type, {item.ctx.job.org_id for item in jobs}, len(jobs)))

    @registry.handler("embed", batch_size=10)
    async def embed(jobs: list[BatchItem]) -> None:
        note(jobs)

    @registry.handler("other", batch_size=10)
    async def other(jobs: list[BatchItem]) -> None:
        note(jobs)

    orgs = [OrgId(uuid.UUID(int=n)) for n in (7, 8)]
    async with place.connection.transaction():
        for n in range(12):
            await place.enqueue(("embed", "other")[n % 3 == 0], org_id=orgs[n % 2])
    worker = await place.start(registry, concurrency=20)
    await worker.log.wait(EventName.JOB_COMPLETED, count=12)
    assert sorted((kind, size) for kind, _, size in calls) == [("embed", 4), ("embed", 4), ("other", 2), ("other", 2)]
    assert all(len(of) == 1 for _, of, _ in calls)


async def test_payload_that_cannot_be_read(place: Workplace) -> None:
    """It is its job's dead letter, and the others of the batch never see it."""
    registry = JobRegistry()

    @registry.handler("embed", batch_size=10)
    async def embed(jobs: list[BatchItem[Word]]) -> list[str]:
        return [item.payload.text for item in jobs]

    async with place.connection.transaction():
        bad = await place.enqueue("embed", payload=Jsonb({"text": 1}))
        good = await place.enqueue("embed", payload=Jsonb({"text": "a"}))
    worker = await place.start(registry)
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=good)
    await worker.log.wait(EventName.JOB_DEAD, job_id=bad)
    assert (await place.job(good))["result"] == "a"


async def test_lost_to_another_worker(place: Workplace) -> None:
    """A job of a batch that was reclaimed is settled by who has it now; the others are this worker's."""
    registry = JobRegistry()
    begun, go_on = trio.Event(), trio.Event()

    @registry.handler("embed", batch_size=10)
    async def embed(jobs: list[BatchItem]) -> None:
        begun.set()
        await go_on.wait()

    ids = await enqueue(place, 2)
    worker = await place.start(registry)
    await begun.wait()
    await place.take_away(ids[0])
    go_on.set()
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=ids[1])
    await worker.log.wait(EventName.LEASE_LOST, job_id=ids[0])
    assert (await place.job(ids[0]))["status"] == "running"


async def test_each_saves_and_commits_its_own(place: Workplace) -> None:
    """`item.ctx` is the job's own: what it saves, and the transaction that completes it."""
    registry = JobRegistry()

    @registry.handler("embed", batch_size=10)
    async def embed(jobs: list[BatchItem[Word]]) -> object:
        for item in jobs:
            if item.ctx.saved is None:
                await item.ctx.save(item.payload.text)
        if jobs[0].ctx.attempt == 1:
            return [Retry(0.0)] * len(jobs)
        async with jobs[0].ctx.transaction(complete=True, result="by itself"):
            pass
        return [item.ctx.saved for item in jobs]

    ids = await enqueue(place, 2)
    worker = await place.start(registry)
    await worker.log.wait(EventName.JOB_COMPLETED, count=2)
    assert [(await place.job(each))["result"] for each in ids] == ["by itself", "1"]


async def test_slots(place: Workplace) -> None:
    """Each job of a batch holds a slot: a batch is no larger than its worker."""
    registry = JobRegistry()
    sizes: list[int] = []

    @registry.handler("embed", batch_size=100)
    async def embed(jobs: list[BatchItem]) -> None:
        sizes.append(len(jobs))

    await enqueue(place, 12)
    worker: Worker = await place.start(registry, concurrency=5)
    await worker.log.wait(EventName.JOB_COMPLETED, count=12)
    assert max(sizes) <= 5
    assert sum(sizes) == 12


async def test_in_tests_of_ones_own(place: Workplace) -> None:
    """`run_job` is a batch of one; `drain` runs batches, and raises what a job of one failed with."""
    registry = JobRegistry()

    @registry.handler("embed", batch_size=10, max_attempts=1)
    async def embed(jobs: list[BatchItem[Word]]) -> None:
        for item in jobs:
            with item:
                if item.payload.text == "1":
                    raise KeyError("one")
                item.settle(item.payload.text)

    @registry.handler("on_asyncio", batch_size=10, runs_in="asyncio")
    async def on_asyncio(jobs: list[BatchItem[Word]]) -> list[str]:
        await jobs[0].ctx.progress(0.5)
        return [jobs[0].payload.text]

    assert (await run_job(registry, embed, Word("a"))).result == "a"
    assert (await run_job(registry, embed, Word("1"))).outcome == "failed"
    ran = await run_job(registry, on_asyncio, Word("b"))
    assert (ran.result, ran.progress) == ("b", ((0.5, None),))
    await enqueue(place, 3)
    with pytest.raises(KeyError, match="one"):
        await drain(registry, place.dsn)
    ids = await enqueue(place, 3)
    async with place.connection.transaction():
        endings = await drain(registry, connection=place.connection, raises=False)
        assert {ending.job_id: ending.outcome for ending in endings if ending.job_id in ids} == dict(
            zip(ids, ("completed", "dead", "completed"), strict=True)
        )


@pytest.mark.parametrize(
    ("settings", "annotation", "why"),
    [
        ({"batch_size": 0}, list[BatchItem[Word]], "use 1 to 1000"),
        ({"batch_size": True}, list[BatchItem[Word]], "use 1 to 1000"),
        ({"batch_size": 5}, Word, "given a list of BatchItem"),
        ({}, list[BatchItem[Word]], "batch_size=100"),
        ({"batch_size": 5, "runs_in": "process"}, list[BatchItem[Word]], "in a process"),
    ],
    ids=["none", "no number", "no list", "not said", "process"],
)
def test_what_is_no_batch(settings: Any, annotation: Any, why: str) -> None:
    """A function that does not take a batch, or a size that is none, is refused when it is declared."""

    def embed(jobs: Any) -> None: ...

    embed.__annotations__["jobs"] = annotation
    with pytest.raises(ConfigError, match=why):
        JobRegistry().handler("embed", **settings)(embed)


def test_a_batch_has_no_context() -> None:
    """Each job has its own, so a second parameter is refused."""

    def embed(jobs: list[BatchItem[Word]], ctx: JobContext) -> None: ...

    with pytest.raises(ConfigError, match=r"item\.ctx"):
        JobRegistry().handler("embed", batch_size=5)(embed)
