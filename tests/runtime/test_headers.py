"""Headers: they go with a job to each attempt, into its dead letter and back, and to what its handler enqueues."""

from __future__ import annotations

import asyncio
import json
import pickle
import uuid
from typing import Any

import psycopg
import pytest
import trio

import pgnotifyq
import pgnotifyq.aio
import pgnotifyq.sync
from pgnotifyq import EventName, JobContext, JobRegistry, Retry
from pgnotifyq.doors.client import open_client
from pgnotifyq.model.headers import Headers
from pgnotifyq.testing import run_job
from tests.pages import DOCS, named
from tests.runtime.support import Workplace

TRACE = {"traceparent": "00-ab-cd-01", "locale": "de", "deep": {"é": [1, None]}}
MANY = 101  # more than one statement takes


async def test_every_attempt_has_them(place: Workplace) -> None:
    """A retry, a dead letter and what is brought back by requeue have the headers that the job was enqueued with."""
    registry = JobRegistry()
    seen: list[Any] = []

    @registry.handler("work", max_attempts=2)
    async def work(payload: Any, ctx: JobContext) -> object:
        seen.append(dict(ctx.job.headers))
        return Retry(0.0)

    worker = await place.start(registry)
    async with open_client(place.dsn) as client:
        job_id = await client.enqueue(work, {}, headers=TRACE)
        await worker.log.wait(EventName.JOB_DEAD, job_id=job_id)
        assert dict((await client.get_dead(job_id)).headers) == TRACE
        await client.requeue(job_id)
        await worker.log.wait(EventName.JOB_DEAD, job_id=job_id, count=2)
    assert seen == [TRACE] * 4


async def test_children_take_them_over(place: Workplace) -> None:
    """What a handler of any kind enqueues, by whatever door, has the headers of its job; what says others has those."""
    registry = JobRegistry()

    @registry.handler("on_trio")
    async def on_trio(payload: Any, ctx: JobContext) -> None:
        await ctx.enqueue("child", {"by": "trio's context"})
        async with ctx.transaction() as connection:
            await ctx.enqueue("child", {"by": "trio's transaction"}, connection=connection)
        async with open_client(place.dsn) as client:
            await client.enqueue("child", {"by": "trio's client"})
            await client.enqueue_many([pgnotifyq.NewJob(job_type="child", payload={"by": "many"})])
            await client.enqueue("child", {"by": "other headers"}, headers={"other": 1})
            await client.enqueue("child", {"by": "no headers"}, headers={})

    @registry.handler("on_asyncio", runs_in="asyncio")
    async def on_asyncio(payload: Any, ctx: JobContext) -> None:
        await ctx.enqueue("child", {"by": "asyncio's context"})
        async with pgnotifyq.aio.open_client(place.dsn) as client:
            await client.enqueue("child", {"by": "asyncio's client"})
            await asyncio.gather(client.enqueue("child", {"by": "a task of asyncio's"}))

    @registry.handler("in_thread")
    def in_thread(payload: Any, ctx: JobContext) -> None:
        ctx.enqueue_blocking("child", {"by": "a thread's context"})
        with psycopg.connect(place.dsn) as theirs:
            ctx.enqueue_blocking("child", {"by": "a thread's connection"}, connection=theirs)
        with pgnotifyq.sync.open_client(place.dsn) as client:
            client.enqueue("child", {"by": "a thread's client"})

    worker = await place.start(registry)
    async with open_client(place.dsn) as client:
        org = pgnotifyq.OrgId(uuid.UUID(int=7))
        for parent in (on_trio, on_asyncio, in_thread):
            job_id = await client.enqueue(parent, {}, headers=TRACE, org_id=org)
            await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
        children = {job.payload["by"]: job for job in await client.jobs(job_type="child")}
        unrelated = await client.get(await client.enqueue("child", {}))
    assert len(children) == 12
    assert dict(children.pop("other headers").headers) == {"other": 1}
    assert not children.pop("no headers").headers
    assert {name: dict(child.headers) for name, child in children.items()} == dict.fromkeys(children, TRACE)
    assert {child.org_id for name, child in children.items() if "context" in name} == {org}
    assert not unrelated.headers


async def test_the_next_job_has_its_own(place: Workplace) -> None:
    """A job without headers, run by the slot that ran one with headers, hands none on."""
    registry = JobRegistry()

    @registry.handler("work")
    async def work(payload: Any, ctx: JobContext) -> None:
        await ctx.enqueue("child", {"of": payload["n"]})
        async with open_client(place.dsn) as client:
            await client.enqueue("child", {"of": payload["n"]})

    worker = await place.start(registry, concurrency=1)
    async with open_client(place.dsn) as client:
        for n, headers in enumerate((TRACE, None, {"a": 1})):
            await client.enqueue(work, {"n": n}, headers=headers)
        await worker.log.wait(EventName.JOB_COMPLETED, count=3)
        found = sorted((job.payload["of"], dict(job.headers)) for job in await client.jobs(job_type="child"))
    assert [headers for _, headers in found] == [TRACE, TRACE, {}, {}, {"a": 1}, {"a": 1}]


async def test_a_child_is_not_enqueued_by_a_job_that_was_lost(place: Workplace) -> None:
    """`ctx.enqueue` commits only while the execution owns the job."""
    registry = JobRegistry()
    refused: list[Exception] = []
    begun, go_on = trio.Event(), trio.Event()

    @registry.handler("work", max_attempts=3)
    async def work(payload: Any, ctx: JobContext) -> None:
        with trio.CancelScope(shield=True):
            begun.set()
            await go_on.wait()
            try:
                await ctx.enqueue("child", {})
            except pgnotifyq.LeaseLost as error:
                refused.append(error)

    await place.start(registry)
    job_id = await place.enqueue("work")
    await begun.wait()
    await place.take_away(job_id)
    go_on.set()
    with trio.fail_after(20):
        while not refused:
            await trio.sleep(0.01)
    async with open_client(place.dsn) as client:
        assert await client.jobs(job_type="child") == []


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ([1], "no mapping"),
        ("text", "no mapping"),
        ({1: 2}, "cannot be stored"),
        ({"a": object()}, "cannot be stored"),
        ({"nul": "\0"}, "cannot be stored"),
        ({"long": "x" * 8192}, "put it into the payload"),
    ],
    ids=["list", "text", "key", "object", "nul", "long"],
)
def test_refused(headers: Any, said: str) -> None:
    """What is no JSON object, or longer than 8 KiB, is refused where it comes in, and the error says what to do."""
    with pytest.raises(pgnotifyq.InvalidJob, match=said):
        pgnotifyq.NewJob(job_type="work", headers=headers)


@pytest.mark.parametrize(
    "statement",
    [
        "insert into pgnotifyq.jobs (job_type, headers) values ('work', '[1]')",
        "insert into pgnotifyq.jobs (job_type, headers) values ('work', jsonb_build_object('a', repeat('x', 16400)))",
        "update pgnotifyq.jobs set headers = '3'",
        "select pgnotifyq.enqueue('work', headers => '7')",
        "select pgnotifyq.enqueue('work', headers => jsonb_build_object('a', repeat('x', 8192)))",
    ],
)
async def test_refused_by_the_database(place: Workplace, statement: str) -> None:
    """Raw SQL stores no headers that are no object, or too long."""
    await place.enqueue("work")
    with pytest.raises((psycopg.errors.CheckViolation, psycopg.errors.DatabaseError)) as caught:
        await place.connection.execute(statement.encode())
    assert caught.value.sqlstate in {"23514", "PNQ02"}


async def test_many_at_once(place: Workplace) -> None:
    """Copied, or in one statement, each job has its own headers, and those without have none."""
    jobs = [
        {"job_type": "work", "payload": {"n": n}, "headers": {"n": n, "text": 'a\t"\\b'} if n % 2 else None} for n in range(MANY)
    ]
    keyed = [job | {"unique_key": str(n)} for n, job in enumerate(jobs)]
    async with open_client(place.dsn) as client:
        for given in (jobs, jobs[:7], keyed, keyed[:7]):
            await place.connection.execute("truncate pgnotifyq.jobs cascade")
            await client.enqueue_many(given)
            for job in await client.jobs(limit=1000):
                n = job.payload["n"]
                assert dict(job.headers) == ({"n": n, "text": 'a\t"\\b'} if n % 2 else {})


async def test_no_headers_are_null(place: Workplace) -> None:
    """A job without headers has null in its row, whatever door it came by."""
    async with open_client(place.dsn) as client:
        await client.enqueue("work")
        await client.enqueue("work", headers={})
        await client.enqueue_many([{"job_type": "work", "headers": {}}, {"job_type": "work"}])
    await place.connection.execute("select pgnotifyq.enqueue('work'), pgnotifyq.enqueue('work', headers => '{}')")
    found = await (await place.connection.execute("select count(*), count(headers) from pgnotifyq.jobs")).fetchone()
    assert found == (6, 0)


async def test_a_handler_under_test() -> None:
    """`run_job` gives its job the headers that it is told."""
    registry = JobRegistry()

    @registry.handler("work")
    async def work(payload: Any, ctx: JobContext) -> Any:
        return dict(ctx.job.headers)

    assert (await run_job(registry, work, {}, headers=TRACE)).result == TRACE
    assert (await run_job(registry, work, {})).result == {}


def test_to_be_read() -> None:
    """They are a mapping that cannot be changed, is pickled, and is equal to another with the same values."""
    headers = Headers(json.loads(json.dumps(TRACE)))
    assert pickle.loads(pickle.dumps(headers)) == headers == TRACE
    with pytest.raises(TypeError):
        headers["a"] = 1  # type: ignore[index]


async def test_the_page(place: Workplace) -> None:
    """What docs/headers.md says in SQL is so."""
    enqueue, look = named(DOCS / "headers.md")["sql"].strip().splitlines()
    await place.connection.execute(enqueue.encode())
    assert await (await place.connection.execute(look.encode())).fetchall() == [({"order_id": 9},)]
