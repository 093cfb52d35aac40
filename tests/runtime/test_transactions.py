"""The transactions a handler is given: fenced, exactly once, and confined to the job's tenant through `ctx.org`."""

from __future__ import annotations

import uuid
from typing import Any

import psycopg
import pytest
import trio

from pgnotifyq import EventName, JobCancelled, JobContext, JobRegistry, RetryPolicy
from tests.asked import fetch, tenant_role
from tests.runtime.support import PATIENCE_SECONDS, Workplace

Payload = dict[str, Any]
OURS, THEIRS = uuid.UUID(int=1), uuid.UUID(int=2)


@pytest.fixture
async def place(place: Workplace) -> Workplace:
    """Give a queue beside the tables of a user: one plain, one whose rows belong to tenants."""
    await place.connection.execute(
        f"""
        drop table if exists marks, notes;
        create table marks (what text);
        create table notes (org_id uuid not null default pgnotifyq.current_org(), what text);
        alter table notes enable row level security;
        create policy one_tenant on notes
            using (org_id = pgnotifyq.current_org()) with check (org_id = pgnotifyq.current_org());
        grant select, insert, update, delete on notes to {await tenant_role(place.connection)};
        """.encode()
    )
    await place.connection.execute("insert into notes values (%s, 'ours'), (%s, 'theirs')", (OURS, THEIRS))
    return place


async def marks(place: Workplace) -> list[str]:
    return [what for (what,) in await fetch(place.connection, "select what from marks")]


async def test_effect_and_completion_in_one_commit(place: Workplace) -> None:
    """With `complete` the job ends in the very commit of what it wrote; what the handler does after cannot undo it."""
    registry = JobRegistry()

    @registry.handler()
    async def work(payload: Payload, ctx: JobContext) -> None:
        async with ctx.transaction(complete=True, result={"n": 1}) as connection:
            await connection.execute("insert into marks values ('once')")
        raise ValueError("after the commit")

    worker = await place.start(registry)
    job_id = await place.enqueue("work")
    told = await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    assert told["why"] == "ValueError: after the commit"
    job = await place.job(job_id)
    assert (job["status"], job["result"], await marks(place)) == ("completed", {"n": 1}, ["once"])
    assert await place.history(job_id) == [(1, "completed")]


async def test_handler_that_goes_on_after_its_completion(place: Workplace) -> None:
    """A handler that lives on after it has completed its job has no lease any more; the job is told as completed all the same."""
    registry = JobRegistry()

    @registry.handler()
    async def work(payload: Payload, ctx: JobContext) -> None:
        async with ctx.transaction(complete=True) as connection:
            await connection.execute("insert into marks values ('once')")
        await trio.sleep_forever()

    worker = await place.start(registry, heartbeat_seconds=0.1)
    job_id = await place.enqueue("work")
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    assert worker.log.find(EventName.LEASE_LOST) == []
    assert await place.history(job_id) == [(1, "completed")]


async def test_block_that_raises(place: Workplace) -> None:
    """A block that raises is rolled back, completion and all; the next attempt starts afresh."""
    registry = JobRegistry()

    @registry.handler(retry=RetryPolicy(base_seconds=0.0))
    async def work(payload: Payload, ctx: JobContext) -> None:
        async with ctx.transaction(complete=True) as connection:
            await connection.execute("insert into marks values (%s)", (str(ctx.attempt),))
            if ctx.attempt == 1:
                raise ValueError("before the commit")

    worker = await place.start(registry)
    job_id = await place.enqueue("work")
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    assert await marks(place) == ["2"]
    assert await place.history(job_id) == [(1, "failed"), (2, "completed")]


async def test_transaction_of_a_cancelled_job(place: Workplace) -> None:
    """A cancel that came first rolls the transaction back, and says so."""
    registry, inside, go_on, raised = JobRegistry(), trio.Event(), trio.Event(), []

    @registry.handler(cooperative=True)
    async def work(payload: Payload, ctx: JobContext) -> None:
        try:
            async with ctx.transaction(complete=True) as connection:
                await connection.execute("insert into marks values ('cancelled')")
                inside.set()
                await go_on.wait()
        except JobCancelled as error:
            raised.append(error)
            raise

    worker = await place.start(registry)
    job_id = await place.enqueue("work")
    with trio.fail_after(PATIENCE_SECONDS):
        await inside.wait()
    await place.cancel(job_id)
    await worker.log.wait(EventName.JOB_INTERRUPTED, job_id=job_id)
    go_on.set()
    await worker.log.wait(EventName.JOB_CANCELLED, job_id=job_id)
    assert (len(raised), await marks(place), (await place.job(job_id))["status"]) == (1, [], "cancelled")


async def test_handler_cancelled_in_the_middle_of_a_query(place: Workplace) -> None:
    """A cancel in the middle of a query stops it on the server, and the next handler is given a clean connection."""
    registry, dirty = JobRegistry(), []

    @registry.handler()
    async def slow(payload: Payload, ctx: JobContext) -> None:
        async with ctx.transaction() as connection:
            await connection.execute("insert into marks values ('slow')")
            await connection.execute("select pg_sleep(600)")

    @registry.handler()
    async def look(payload: Payload, ctx: JobContext) -> None:
        async with ctx.transaction() as connection:
            dirty.append(await fetch(connection, "select what from marks"))

    worker = await place.start(registry, concurrency=1)
    job_id = await place.enqueue("slow")
    await place.until("exists (select from pg_stat_activity where query like %s)", "select pg_sleep%")
    await place.cancel(job_id)
    await worker.log.wait(EventName.JOB_CANCELLED, job_id=job_id)
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=await place.enqueue("look"))
    assert dirty == [[]]
    await place.until("not exists (select from pg_stat_activity where query like %s)", "select pg_sleep%")


async def test_tenant_sees_its_own_rows(place: Workplace) -> None:
    """`ctx.org.transaction()` sees and writes only the job's tenant's rows, in our tables and in the user's."""
    registry, seen = JobRegistry(), []

    @registry.handler()
    async def work(payload: Payload, ctx: JobContext) -> None:
        assert ctx.org.id == OURS
        async with ctx.org.transaction() as connection:
            await connection.execute("insert into notes (what) values ('new')")
            await connection.execute("update notes set what = what || '!'")
            seen.append(await fetch(connection, "select what from notes order by what"))
            seen.append(await fetch(connection, "select distinct org_id from pgnotifyq.jobs"))

    worker = await place.start(registry)
    await place.enqueue("elsewhere", org_id=THEIRS, scheduled_at="2100-01-01")
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=await place.enqueue("work", org_id=OURS))
    assert seen == [[("new!",), ("ours!",)], [(OURS,)]]
    found = await fetch(place.connection, "select org_id, what from notes order by what")
    assert found == [(OURS, "new!"), (OURS, "ours!"), (THEIRS, "theirs")]


@pytest.mark.parametrize(
    "statement",
    [
        f"insert into notes values ('{THEIRS}', 'smuggled')",
        f"select pgnotifyq.enqueue('work', org_id => '{THEIRS}')",
        "insert into marks values ('no grant')",
    ],
)
async def test_tenant_writes_for_another(place: Workplace, statement: str) -> None:
    """What is not the tenant's is refused by the server; the job fails and nothing was written."""
    registry, refused = JobRegistry(), []

    @registry.handler()
    async def work(payload: Payload, ctx: JobContext) -> None:
        try:
            async with ctx.org.transaction() as connection:
                await connection.execute("insert into notes (what) values ('with it')")
                await connection.execute(statement.encode())
        except psycopg.errors.InsufficientPrivilege as error:
            refused.append(error)
            raise

    worker = await place.start(registry)
    await worker.log.wait(EventName.JOB_DEAD, job_id=await place.enqueue("work", org_id=OURS, max_attempts=1))
    assert len(refused) == 1
    found = await fetch(place.connection, "select what from notes order by what")
    assert (found, await marks(place)) == ([("ours",), ("theirs",)], [])


async def test_connection_after_a_tenant(place: Workplace) -> None:
    """A connection that served one tenant carries nothing of it into the next job, whether it ended well or badly."""
    registry, seen = JobRegistry(), []

    @registry.handler(retry=RetryPolicy(base_seconds=0.0))
    async def confined(payload: Payload, ctx: JobContext) -> None:
        async with ctx.org.transaction() as connection:
            await connection.execute("select from notes")
            if payload["fails"]:
                raise ValueError("no luck")

    @registry.handler()
    async def free(payload: Payload, ctx: JobContext) -> None:
        async with ctx.transaction() as connection:
            seen.append(await fetch(connection, "select current_user = session_user, pgnotifyq.current_org()"))

    worker = await place.start(registry, concurrency=1)
    for fails, event in (("false", EventName.JOB_COMPLETED), ("true", EventName.JOB_DEAD)):
        job_id = await place.enqueue("confined", org_id=OURS, payload=f'{{"fails": {fails}}}', max_attempts=1)
        await worker.log.wait(event, job_id=job_id)
        await worker.log.wait(EventName.JOB_COMPLETED, job_id=await place.enqueue("free", org_id=THEIRS))
    assert seen == [[(True, None)]] * 2


async def test_cursor_that_is_filled_in_the_commit(place: Workplace) -> None:
    """A cursor `with hold` is filled when its transaction commits, and holds the tenant's rows alone, though only a role confines."""
    registry, held = JobRegistry(), list[Any]()

    @registry.handler()
    async def work(payload: Payload, ctx: JobContext) -> None:
        async with ctx.org.transaction() as connection:
            await connection.execute("declare c cursor with hold for select distinct org_id from pgnotifyq.jobs")
            cursor = await connection.execute("commit; fetch all from c")
            assert cursor.nextset()
            held.extend(await cursor.fetchall())

    await place.enqueue("elsewhere", org_id=THEIRS, scheduled_at="2100-01-01")
    worker = await place.start(registry)
    assert worker.log.find(EventName.WORKER_STARTED)[0]["tenants"].startswith("confined against mistakes, not against SQL")
    told = await worker.log.wait(EventName.JOB_DEAD, job_id=await place.enqueue("work", org_id=OURS, max_attempts=1))
    assert "TransactionLeft" in told["why"]
    assert held == [(OURS,)]


async def test_progress(place: Workplace) -> None:
    """Progress can be seen while the job runs."""
    registry, let_go = JobRegistry(), trio.Event()

    @registry.handler()
    async def work(payload: Payload, ctx: JobContext) -> None:
        await ctx.progress(0.25, "a quarter\x00")
        await let_go.wait()

    worker = await place.start(registry)
    job_id = await place.enqueue("work")
    await place.until("progress = 0.25 and progress_message = %s from pgnotifyq.jobs", "a quarter\\x00")
    let_go.set()
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)


async def test_handler_enqueues(place: Workplace) -> None:
    """A job enqueued in the job's own transaction exists only if that commits, and starts without polling."""
    registry, seen = JobRegistry(), []

    @registry.handler()
    async def parent(payload: Payload, ctx: JobContext) -> None:
        async with ctx.transaction(complete=True) as connection:
            await connection.execute("select pgnotifyq.enqueue('child')")

    @registry.handler()
    async def child(payload: Payload) -> None:
        seen.append(True)

    worker = await place.start(registry)
    await place.enqueue("parent")
    await worker.log.wait(EventName.JOB_COMPLETED, job_type="child")
    assert seen == [True]
