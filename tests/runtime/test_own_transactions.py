"""Handlers that do with their transactions what they should not: nest them, end them by hand, complete twice, leave things in the session.

Nothing is written that the execution may not write, and no job is completed whose work was not committed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any

import psycopg
import pytest
import trio

from pgnotifyq import (
    ConnectionsTaken,
    EventName,
    JobCancelled,
    JobContext,
    JobRegistry,
    LeaseLost,
    RetryPolicy,
    TransactionLeft,
    TransactionRefused,
)
from pgnotifyq.ledger.lease import heartbeat
from pgnotifyq.model.job import Lease
from pgnotifyq.wire.asking import ask
from tests.asked import fetch, tenant_role
from tests.ledger.support import SCHEMA
from tests.runtime.support import PATIENCE_SECONDS, Workplace

Payload = dict[str, Any]
Open = Callable[[JobContext], AbstractAsyncContextManager[Any]]
OPENERS: dict[str, Open] = {
    "plain": lambda ctx: ctx.transaction(),
    "tenant's": lambda ctx: ctx.org.transaction(),
    "completing": lambda ctx: ctx.transaction(complete=True),
}


@pytest.fixture
async def place(place: Workplace) -> Workplace:
    """Give a queue beside a table of a user's, which tenants may write."""
    await place.connection.execute(
        "drop table if exists marks; create table marks (what text);"
        f" grant all on marks to {await tenant_role(place.connection)}".encode()
    )
    return place


async def marks(place: Workplace) -> list[str]:
    return [what for (what,) in await fetch(place.connection, "select what from marks order by what")]


async def mark(connection: Any, what: str) -> None:
    await connection.execute("insert into marks values (%s)", (what,))


@pytest.mark.parametrize("inner", OPENERS)
@pytest.mark.parametrize("outer", OPENERS)
@pytest.mark.parametrize("task", ["same task", "child task"])
async def test_transaction_within_a_transaction(place: Workplace, outer: str, inner: str, task: str) -> None:
    """It is refused at once. Left to the worker, that is the job's failure, and nothing was written."""
    registry, refused = JobRegistry(), []

    @registry.handler()
    async def work(payload: Payload, ctx: JobContext) -> None:
        async def nested() -> None:
            try:
                async with OPENERS[inner](ctx) as second:
                    await mark(second, "inner")
            except TransactionRefused as error:
                refused.append(error)
                raise

        async with OPENERS[outer](ctx) as first:
            await mark(first, "outer")
            if task == "same task":
                await nested()
            else:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(nested)

    worker = await place.start(registry)
    job_id = await place.enqueue("work", max_attempts=1)
    await worker.log.wait(EventName.JOB_DEAD, job_id=job_id)
    assert (len(refused), await marks(place)) == (1, [])


async def test_transaction_after_one_that_was_refused(place: Workplace) -> None:
    """A handler that goes on after the refusal commits the outer one; and later it may open others."""
    registry = JobRegistry()

    @registry.handler()
    async def work(payload: Payload, ctx: JobContext) -> None:
        async with ctx.transaction() as first:
            await mark(first, "first")
            with suppress(TransactionRefused):
                async with ctx.transaction() as second:
                    await mark(second, "nested")
            async with first.transaction():
                await mark(first, "savepoint")
        async with ctx.org.transaction() as third:
            await mark(third, "third")

    worker = await place.start(registry)
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=await place.enqueue("work", max_attempts=1))
    assert await marks(place) == ["first", "savepoint", "third"]


@pytest.mark.parametrize("other", ["plain", "tenant's"])
async def test_transaction_beside_one_that_completes(place: Workplace, other: str) -> None:
    """One of another task commits what is its own, never the completion: when the work is rolled back, the job is not completed."""
    registry = JobRegistry()

    @registry.handler(retry=RetryPolicy(base_seconds=0.0))
    async def work(payload: Payload, ctx: JobContext) -> None:
        opened, audited = trio.Event(), trio.Event()

        async def audit() -> None:
            await opened.wait()
            async with OPENERS[other](ctx) as connection:
                await mark(connection, f"audit {ctx.attempt}")
            audited.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(audit)
            async with ctx.transaction(complete=True) as connection:
                await mark(connection, f"effect {ctx.attempt}")
                opened.set()
                await audited.wait()
                if ctx.attempt == 1:
                    raise ValueError("no luck")

    worker = await place.start(registry)
    job_id = await place.enqueue("work")
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    assert await marks(place) == ["audit 1", "audit 2", "effect 2"]
    assert await place.history(job_id) == [(1, "failed"), (2, "completed")]


async def test_two_that_complete(place: Workplace) -> None:
    """Only one can complete the job: a second one that begins meanwhile is refused."""
    registry, refused = JobRegistry(), []

    @registry.handler()
    async def work(payload: Payload, ctx: JobContext) -> None:
        opened, tried = trio.Event(), trio.Event()

        async def second() -> None:
            await opened.wait()
            try:
                async with ctx.transaction(complete=True) as connection:
                    await mark(connection, "second")
            except TransactionRefused as error:
                refused.append(error)
            tried.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(second)
            async with ctx.transaction(complete=True) as connection:
                await mark(connection, "first")
                opened.set()
                await tried.wait()

    worker = await place.start(registry)
    job_id = await place.enqueue("work")
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    assert (len(refused), await marks(place)) == (1, ["first"])


COMMITS = {
    "commit": ["commit"],
    "end": ["end"],
    "two statements at once": ["insert into marks values ('at once'); commit"],
    "commit and chain": ["commit and chain"],
    "constraints asked early, in a savepoint that is rolled back": [
        "savepoint s",
        "set constraints all immediate",
        "rollback to savepoint s",
        "commit",
    ],
    "constraints put off again": ["set constraints all deferred", "commit"],
    "prepared": ["prepare transaction 'mine'"],
}


@pytest.mark.parametrize("opener", OPENERS)
@pytest.mark.parametrize("statements", COMMITS.values(), ids=COMMITS)
@pytest.mark.parametrize("why", ["cancelled", "lost"])
async def test_commit_by_hand_without_the_job(place: Workplace, opener: str, statements: list[str], why: str) -> None:
    """However a handler says `commit`, the commit itself asks whether the execution holds the job, and is refused."""
    registry, inside, go_on, raised = JobRegistry(), trio.Event(), trio.Event(), list[Exception]()

    @registry.handler(cooperative=True)
    async def work(payload: Payload, ctx: JobContext) -> None:
        if inside.is_set():
            return
        try:
            async with OPENERS[opener](ctx) as connection:
                await mark(connection, "unfenced")
                inside.set()
                await go_on.wait()
                for statement in statements:
                    await connection.execute(statement.encode())
        except Exception as error:
            raised.append(error)
            raise

    worker = await place.start(registry)
    job_id = await place.enqueue("work")
    with trio.fail_after(PATIENCE_SECONDS):
        await inside.wait()
    if why == "cancelled":
        await place.cancel(job_id)
        await worker.log.wait(EventName.JOB_INTERRUPTED, job_id=job_id)
    else:
        await place.take_away(job_id)
    go_on.set()
    await worker.log.wait(EventName.JOB_CANCELLED if why == "cancelled" else EventName.LEASE_LOST, job_id=job_id)
    kinds = TransactionLeft if "prepare" in statements[0] else JobCancelled if why == "cancelled" else LeaseLost
    assert [type(error) for error in raised] == [kinds]
    assert (await marks(place), await fetch(place.connection, "select from pgnotifyq.fences")) == ([], [])


ENDS = {
    **COMMITS,
    "constraints asked early": ["set constraints all immediate", "commit"],
    "rollback": ["rollback"],
    "rollback and chain": ["rollback and chain"],
    "begun again": ["commit", "begin"],
}


@pytest.mark.parametrize("opener", OPENERS)
@pytest.mark.parametrize("statements", ENDS.values(), ids=ENDS)
async def test_ended_by_hand(place: Workplace, opener: str, statements: list[str]) -> None:
    """A handler that ends its transaction by hand, while it holds the job, is told so; what it does after that is not written."""
    registry, raised = JobRegistry(), list[Exception]()

    @registry.handler()
    async def work(payload: Payload, ctx: JobContext) -> None:
        try:
            async with OPENERS[opener](ctx) as connection:
                await mark(connection, "before")
                for statement in statements:
                    await connection.execute(statement.encode())
                await mark(connection, "after")
        except Exception as error:
            raised.append(error)
            raise

    worker = await place.start(registry)
    job_id = await place.enqueue("work", max_attempts=1)
    await worker.log.wait(EventName.JOB_DEAD, job_id=job_id)
    assert [type(error) for error in raised] == [TransactionLeft]
    found = await marks(place)
    assert "after" not in found
    assert ("before" in found) is (statements[0] not in {"rollback", "rollback and chain", "prepare transaction 'mine'"})
    assert await fetch(place.connection, "select from pgnotifyq.fences") == []


async def test_confined_for_one_transaction(place: Workplace) -> None:
    """Role and tenant are the transaction's, not the session's: behind a pooler, the next transaction there is somebody else's."""
    registry, seen = JobRegistry(), []
    look = "select current_user = session_user, coalesce(current_setting('pgnotifyq.org_id', true), '') <> ''"

    @registry.handler()
    async def work(payload: Payload, ctx: JobContext) -> None:
        async with ctx.org.transaction() as connection:
            seen.append(await fetch(connection, look))
            await connection.execute("commit and chain")
            seen.append(await fetch(connection, look))

    worker = await place.start(registry)
    await worker.log.wait(EventName.JOB_DEAD, job_id=await place.enqueue("work", max_attempts=1))
    assert seen == [[(False, True)], [(True, False)]]


async def test_ended_by_psycopg(place: Workplace) -> None:
    """psycopg's own ways out of the block are refused by psycopg, and the transaction goes on."""
    registry, refused = JobRegistry(), []

    @registry.handler()
    async def work(payload: Payload, ctx: JobContext) -> None:
        async with ctx.transaction(complete=True) as connection:
            await mark(connection, "once")
            for leave in (connection.commit, connection.rollback, lambda: connection.set_autocommit(False)):
                with suppress(psycopg.ProgrammingError):
                    await leave()
                    refused.append(leave)

    worker = await place.start(registry)
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=await place.enqueue("work"))
    assert (refused, await marks(place)) == ([], ["once"])


async def test_constraints_asked_early(place: Workplace) -> None:
    """The answer holds until the transaction ends: the job's row is locked, and the completion is written behind it."""
    registry, inside, go_on = JobRegistry(), trio.Event(), trio.Event()

    @registry.handler()
    async def work(payload: Payload, ctx: JobContext) -> None:
        async with ctx.transaction(complete=True) as connection:
            await mark(connection, "once")
            await connection.execute("set constraints all immediate")
            inside.set()
            await go_on.wait()

    worker = await place.start(registry)
    job_id = await place.enqueue("work")
    with trio.fail_after(PATIENCE_SECONDS):
        await inside.wait()
    assert await fetch(place.connection, "select from pgnotifyq.jobs for update skip locked") == []
    go_on.set()
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    assert await marks(place) == ["once"]


async def test_isolation(place: Workplace) -> None:
    """A transaction may have an isolation of its own, and the next one has the default again."""
    registry, seen = JobRegistry(), []

    @registry.handler()
    async def work(payload: Payload, ctx: JobContext) -> None:
        for isolation in (psycopg.IsolationLevel.SERIALIZABLE, None):
            async with ctx.transaction(isolation=isolation) as connection:
                seen.append(await fetch(connection, "show transaction_isolation"))
        async with ctx.org.transaction(isolation=psycopg.IsolationLevel.REPEATABLE_READ) as connection:
            seen.append(await fetch(connection, "show transaction_isolation"))

    worker = await place.start(registry)
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=await place.enqueue("work"))
    assert seen == [[("serializable",)], [("read committed",)], [("repeatable read",)]]


@pytest.mark.parametrize("isolation", [psycopg.IsolationLevel.REPEATABLE_READ, psycopg.IsolationLevel.SERIALIZABLE])
async def test_lease_renewed_beside_a_snapshot(place: Workplace, isolation: psycopg.IsolationLevel) -> None:
    """The block rolls back with PostgreSQL's own error, for its snapshot is older than the lease; the handler opens it again."""
    registry, told = JobRegistry(), []

    @registry.handler()
    async def work(payload: Payload, ctx: JobContext) -> None:
        assert ctx.job.locked_by is not None
        renew = heartbeat(SCHEMA, worker_id=ctx.job.locked_by, leases=[Lease(ctx.job.id, ctx.execution_id)], lease_seconds=60.0)
        try:
            async with ctx.transaction(complete=True, isolation=isolation) as connection:
                await connection.execute("insert into marks values ('first')")
                await ask(place.connection, renew)
        except psycopg.errors.SerializationFailure as error:
            told.append(error)
        async with ctx.transaction(complete=True, isolation=isolation) as connection:
            await connection.execute("insert into marks values ('second')")

    worker = await place.start(registry)
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=await place.enqueue("work"))
    assert len(told) == 1
    assert await marks(place) == ["second"]


LOOK = """
    select current_user = session_user, coalesce(current_setting('pgnotifyq.org_id', true), ''), current_setting('statement_timeout'),
        current_setting('search_path'), current_setting('default_transaction_isolation'), to_regclass('pg_temp.marks') is null,
        to_regtype('pg_temp.uuid') is null, (select count(*) from pg_prepared_statements), (select count(*) from pg_cursors),
        (select count(*) from pg_listening_channels()),
        (select count(*) from pg_locks where pid = pg_backend_pid() and locktype = 'advisory')
"""
LEAVES = {
    "role": "set role {tenant}",
    "session authorization": "set session authorization {tenant}",
    "tenant": "set pgnotifyq.org_id = '00000000-0000-0000-0000-00000000000a'",
    "setting": "set statement_timeout = '59s'",
    "search path": "set search_path = pg_temp, public",
    "isolation": "set default_transaction_isolation = 'serializable'",
    "temporary table": "create temporary table marks (what text)",
    "temporary domain": "create domain pg_temp.uuid as pg_catalog.uuid",
    "prepared statement": "prepare p as select 1",
    "held cursor": "declare leak cursor with hold for select 1",
    "listening": "listen leak",
    "advisory lock": "select pg_advisory_lock(42)",
}


@pytest.mark.parametrize("opener", ["plain", "tenant's"])
@pytest.mark.parametrize("statement", LEAVES.values(), ids=LEAVES)
async def test_left_in_the_session(place: Workplace, opener: str, statement: str) -> None:
    """What one job leaves in its session, the next one in that very session does not find."""
    registry, seen = JobRegistry(), []
    tenant = await tenant_role(place.connection)
    await place.connection.execute(f"grant temporary on database {place.connection.info.dbname} to {tenant}".encode())

    async def found(connection: Any) -> Any:
        return await fetch(connection, LOOK)

    @registry.handler()
    async def work(payload: Payload, ctx: JobContext) -> None:
        async with ctx.transaction() as connection:
            seen.append((connection.info.backend_pid, await found(connection)))
        async with OPENERS[opener](ctx) as connection:
            await connection.execute(statement.format(tenant=tenant).encode())

    worker = await place.start(registry, concurrency=1)
    for _ in range(2):
        job_id = await place.enqueue("work", max_attempts=1)
        await place.until("not exists (select from pgnotifyq.jobs where id = %s and status <> 'completed')", job_id)
    assert worker.log.find(EventName.JOB_RETRIED) == []
    assert len(seen) == 2
    assert seen[0] == seen[1]


async def test_left_in_the_connection(place: Workplace) -> None:
    """Each transaction has a connection object of its own. Who keeps one reaches nothing with it once the block is left."""
    registry, kept, refused = JobRegistry(), list[Any](), list[Exception]()

    @registry.handler()
    async def work(payload: Payload, ctx: JobContext) -> None:
        async with ctx.transaction() as connection:
            connection.row_factory = psycopg.rows.dict_row  # type: ignore[assignment]  # the misuse itself
            connection.prepare_threshold = 0
            connection.adapters.register_loader("int4", psycopg.types.string.TextLoader)
            connection.add_notify_handler(kept.append)
            cursor = connection.cursor()
            await cursor.execute("select 1")
            kept.extend((connection, cursor))

    @registry.handler()
    async def after(payload: Payload, ctx: JobContext) -> None:
        async with ctx.transaction() as connection:
            for old in kept:
                try:
                    await old.execute("insert into marks values ('smuggled')")
                except psycopg.OperationalError as error:
                    refused.append(error)
            assert await fetch(connection, "select 1") == [(1,)]
            kept.append(connection.info.backend_pid)

    worker = await place.start(registry, concurrency=1)
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=await place.enqueue("work"))
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=await place.enqueue("after", max_attempts=1))
    assert (len(refused), await marks(place)) == (2, [])


async def test_no_connection_in_time(place: Workplace) -> None:
    """A job that waits for one of the worker's connections in vain is put back, uncharged, and says which setting it was."""
    registry, let_go = JobRegistry(), trio.Event()

    @registry.handler()
    async def holds(payload: Payload, ctx: JobContext) -> None:
        async with ctx.transaction():
            await let_go.wait()

    @registry.handler()
    async def waits(payload: Payload, ctx: JobContext) -> None:
        async def one() -> None:
            async with ctx.transaction() as connection:
                await mark(connection, "waited")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one)

    @registry.handler()
    async def copes(payload: Payload, ctx: JobContext) -> str:
        try:
            async with ctx.org.transaction():
                return "had one"
        except ConnectionsTaken:
            return "had none"

    worker = await place.start(registry, handler_connections_max=1, handler_connection_seconds=0.05)
    await place.enqueue("holds")
    await place.until(
        "exists (select from pgnotifyq.fences) or exists (select from pg_locks where relation = 'pgnotifyq.fences'::regclass)"
    )
    job_id = await place.enqueue("copes")
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    assert (await place.job(job_id))["result"] == "had none"
    job_id = await place.enqueue("waits", max_attempts=1)
    told = await worker.log.wait(EventName.JOB_SNOOZED, job_id=job_id)
    assert "ExceptionGroup" in told["why"]
    ((message,),) = await fetch(place.connection, "select error_message from pgnotifyq.jobs where id = %s", job_id)
    assert "handler_connections_max" in message
    let_go.set()
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    job = await place.job(job_id)
    assert (job["attempts"], await marks(place)) == (1, ["waited"])
    assert (await place.history(job_id))[-1] == (1, "completed")
    assert {outcome for _, outcome in (await place.history(job_id))[:-1]} == {"snoozed"}


async def test_error_after_the_completion(place: Workplace) -> None:
    """It is told, also where routine events are not, and kept in the history; the job stays completed."""
    registry = JobRegistry()

    @registry.handler()
    async def work(payload: Payload, ctx: JobContext) -> None:
        async with ctx.transaction(complete=True) as connection:
            await mark(connection, "once")
        raise ValueError("after the commit")

    worker = await place.start(registry, routine_events=False)
    job_id = await place.enqueue("work")
    told = await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    assert told["why"] == "ValueError: after the commit"
    assert await place.history(job_id) == [(1, "completed")]
    ((message,),) = await fetch(place.connection, "select error_message from pgnotifyq.job_executions")
    assert message.startswith("ValueError: after the commit")
    assert ((await place.job(job_id))["status"], await marks(place)) == ("completed", ["once"])


async def test_progress_from_a_thread(place: Workplace) -> None:
    """A handler that runs in a thread reports by calling; its errors are raised there."""
    registry, raised = JobRegistry(), []

    @registry.handler()
    def work(payload: Payload, ctx: JobContext) -> None:
        ctx.progress(0.25, "a quarter")
        try:
            ctx.progress(2.0)
        except ValueError as error:
            raised.append(error)

    worker = await place.start(registry)
    job_id = await place.enqueue("work")
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    job = await place.job(job_id)
    assert (job["progress"], job["progress_message"], len(raised)) == (0.25, "a quarter", 1)
