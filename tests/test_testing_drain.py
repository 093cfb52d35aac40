"""Users' tests run what is due to its end: by a worker, and within a transaction of their own, on every kind of connection."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import psycopg
import pytest
import trio
from sqlalchemy import create_engine, text
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import NullPool

import pgnotifyq
from pgnotifyq.ledger import enqueue as ledger
from pgnotifyq.model.new_job import NewJob
from pgnotifyq.sync import open_client
from pgnotifyq.testing import JobFailed, NoDatabaseInTest, assert_enqueued, at, drain, refute_enqueued
from pgnotifyq.wire.kinds import kind_of
from tests.asked import value
from tests.doors.callers_support import KINDS, Theirs, Undo, drive, theirs, url

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from pgnotifyq.testing import Ending

SCHEMA = "pgnotifyq"


class Boom(Exception):
    pass


def make_registry(dsn: str = "") -> pgnotifyq.JobRegistry:
    registry = pgnotifyq.JobRegistry()

    @registry.handler(max_attempts=2)
    async def echo(payload: dict[str, Any]) -> object:
        await trio.lowlevel.checkpoint()
        return payload

    @registry.handler
    def in_thread(payload: dict[str, Any], ctx: pgnotifyq.JobContext) -> str:
        ctx.progress(0.5, "half")
        return threading.current_thread().name

    @registry.handler(queue="other")
    async def boom(payload: dict[str, Any]) -> None:
        raise Boom(payload)

    @registry.handler
    async def late(payload: dict[str, Any]) -> None:
        await trio.sleep_forever()

    @registry.handler
    async def wish(payload: dict[str, Any]) -> object:
        raise {"snooze": pgnotifyq.Snooze(60), "retry": pgnotifyq.Retry(60), "discard": pgnotifyq.Discard("no")}[payload["what"]]

    @registry.handler
    async def write(payload: dict[str, Any], ctx: pgnotifyq.JobContext) -> None:
        await ctx.progress(0.5)
        async with ctx.transaction(complete=True, result={"wrote": 1}) as mine:
            await mine.execute("create table written as select 1 as n")

    return registry


def outcomes(endings: list[Ending]) -> dict[str, str]:
    return {ending.job_type: ending.outcome for ending in endings}


# By a worker


def test_what_is_due_and_what_it_enqueues(dsn: str) -> None:
    """On whatever queue; later jobs, and types of other programs, are left."""
    registry = make_registry()
    with open_client(dsn) as client:

        @registry.handler
        def parent(payload: dict[str, Any]) -> None:
            client.enqueue("echo", {"grown": True}, queue="unheard_of")

        parent_id = client.enqueue("parent")
        client.enqueue("echo", delay_seconds=3600)
        client.enqueue("strangers")
        drained = drain(registry, dsn)
        assert drained.outcomes == {"completed": 2}
        assert [ending.job_type for ending in drained] == ["parent", "echo"]
        assert client.get(parent_id).status is pgnotifyq.Status.COMPLETED
        assert [job.result for job in client.jobs(queue="unheard_of")] == [{"grown": True}]
        assert {job.job_type for job in client.jobs() if job.status is pgnotifyq.Status.PENDING} == {"echo", "strangers"}
        assert drain(registry, dsn) == []
        client.enqueue("echo", queue="a"), client.enqueue("echo", queue="b")
        assert drain(registry, dsn, queues=["a"]).outcomes == {"completed": 1}


def test_a_handler_that_raises(dsn: str) -> None:
    """Its own exception comes out, with a note of the job, which is settled; without `raises` it is in the ending."""
    registry = make_registry()
    with open_client(dsn) as client:
        job_id = client.enqueue("boom", {"a": 1}, queue="other")
        with pytest.raises(Boom) as told:
            drain(registry, dsn)
        assert f"in job {job_id} of type 'boom', which drain has run" in told.value.__notes__
        assert client.get(job_id).label == "retrying"
        client.enqueue("boom", max_attempts=1)
        (ending,) = drain(registry, dsn, raises=False)
        assert (ending.outcome, type(ending.exception), ending.is_failure) == ("dead", Boom, True)


def test_a_failure_without_an_exception(dsn: str) -> None:
    """A payload that does not fit is told as a failure of the job."""
    registry = make_registry()

    @registry.handler
    async def counts(payload: list[int]) -> None: ...

    with psycopg.connect(dsn, autocommit=True) as plain:
        plain.execute("select pgnotifyq.enqueue(job_type => 'counts', payload => '{}')")
    with pytest.raises(JobFailed, match=r"in job .* of type 'counts'"):
        drain(registry, dsn)


def test_wishes_are_no_failures(dsn: str) -> None:
    """Snooze, Retry and Discard, raised or returned."""
    with open_client(dsn) as client:
        for what in ("snooze", "retry", "discard"):
            client.enqueue("wish", {"what": what})
        assert drain(make_registry(), dsn).outcomes == {"snoozed": 1, "retried": 1, "dead": 1}


def test_a_job_that_never_ends(dsn: str) -> None:
    """An error after the time given; the job is back."""
    with open_client(dsn) as client:
        job_id = client.enqueue("late")
        with pytest.raises(trio.TooSlowError):
            drain(make_registry(), dsn, timeout_seconds=0.5)
        assert client.get(job_id).status is pgnotifyq.Status.PENDING


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_in_an_async_test(dsn: str, backend: str) -> None:
    """Awaited, it does the same on trio and on asyncio; a handler's exception comes out as itself."""
    registry = make_registry()

    async def test() -> None:
        with open_client(dsn) as client:
            client.enqueue("echo")
            client.enqueue("in_thread")
            assert (await drain(registry, dsn)).outcomes == {"completed": 2}
            client.enqueue("boom")
            with pytest.raises(Boom):
                await drain(registry, dsn)

    anyio.run(test, backend=backend)


def test_a_drain_that_nobody_awaits(dsn: str) -> None:
    """Python warns of it, as of any coroutine, and names it."""

    async def test() -> None:
        await anyio.lowlevel.checkpoint()
        drain(make_registry(), dsn)

    for backend in ("trio", "asyncio"):
        with pytest.warns(RuntimeWarning, match=r"drain.*never awaited"):
            anyio.run(test, backend=backend)


def test_neither_or_both(dsn: str) -> None:
    """It is told what is wanted, and settings that there are not are refused."""
    with pytest.raises(pgnotifyq.ConfigError, match="a database or a connection"):
        drain(make_registry())
    with pytest.raises(pgnotifyq.ConfigError, match="did you mean concurrency"):
        drain(make_registry(), dsn, concurency=3)  # type: ignore[call-arg]


# The clock


def test_the_clock_of_a_database(dsn: str) -> None:
    """What is scheduled falls due, in sessions that were open before, too; then the clock goes on."""
    registry = make_registry()
    with open_client(dsn) as client, psycopg.connect(dsn, autocommit=True) as plain:
        client.enqueue("echo", scheduled_at=pgnotifyq_time("2030-01-01T00:00:00"))
        refute_enqueued("echo", scheduled=False, connection=plain)
        assert drain(registry, dsn) == []
        with at("2029-12-31", dsn) as clock:
            assert drain(registry, dsn) == []
            clock.move(86_400)
            assert_enqueued("echo", scheduled=False, connection=plain)
            with at(pgnotifyq_time("2040-01-01T00:00:00"), dsn):
                client.enqueue("echo", delay_seconds=60)
            assert plain.execute("select pgnotifyq.clock()").fetchone() == (pgnotifyq_time("2030-01-01T00:00:00"),)
            assert drain(registry, dsn).outcomes == {"completed": 1}
        assert_enqueued("echo", scheduled="2040-01-01T00:01:00", connection=plain)
        assert plain.execute("select pgnotifyq.clock() - clock_timestamp() < '1 minute'").fetchone() == (True,)


# Within a transaction


async def enqueue(mine: Theirs, job_type: str, payload: object = None, **settings: Any) -> None:
    await mine.ask(ledger.enqueue(SCHEMA, NewJob(job_type=job_type, payload=payload, **settings)))


def every_kind(test: Callable[..., Awaitable[None]]) -> Callable[[str, str], None]:
    """Run a test in the open transaction of each kind of connection, which is rolled back; nothing of it is left."""

    @pytest.mark.parametrize("kind", [kind for kind in KINDS if "run_sync" not in kind])
    def run(kind: str, dsn: str) -> None:
        async def main() -> None:
            async with theirs(kind, dsn) as mine:
                with suppress(Undo):
                    async with mine.transaction():
                        await mine.execute("create temporary table mark as select 1")
                        await test(mine)
                        await mine.execute("select * from mark")  # it is the same transaction, and usable
                        raise Undo

        drive(kind, main)
        with psycopg.connect(dsn, autocommit=True) as plain:
            tables = "select (select count(*) from pgnotifyq.jobs), (select count(*) from pgnotifyq.job_executions)"
            assert plain.execute(tables).fetchone() == (0, 0)
            assert plain.execute("select to_regclass('written')").fetchone() == (None,)

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


@every_kind
async def test_the_jobs_of_a_transaction(mine: Theirs) -> None:
    """They are seen, run and settled in it: async handlers and others, a failure, a wish; later ones fall due by the clock."""
    registry = make_registry()
    connection = mine.connection
    for job_type in ("echo", "in_thread", "boom"):
        await enqueue(mine, job_type, {"a": 1})
    await enqueue(mine, "wish", {"what": "snooze"})
    await enqueue(mine, "echo", {"b": 1}, scheduled_at=pgnotifyq_time("2030-01-01T00:00:00"))
    await assert_enqueued("echo", a=1, connection=connection)
    drained = await drain(registry, connection=connection, raises=False)
    assert outcomes(drained) == {"echo": "completed", "in_thread": "completed", "boom": "retried", "wish": "snoozed"}
    assert [type(ending.exception) for ending in drained if ending.is_failure] == [Boom]
    await refute_enqueued("in_thread", connection=connection)
    async with at("2030-01-01", connection=connection):
        await assert_enqueued("echo", scheduled=False, connection=connection)
        assert (await drain(registry, connection=connection, raises=False)).outcomes.get("completed") == 1
    await enqueue(mine, "boom")
    with pytest.raises(Boom):
        await drain(registry, connection=connection)


@every_kind
async def test_a_handler_that_breaks_the_transaction(mine: Theirs) -> None:
    """It has failed, what it wrote is undone, and the rest goes on."""
    registry = make_registry()

    @registry.handler
    async def breaks(payload: dict[str, Any]) -> None:
        # By the library's own way, which is where the test is. An event loop's connection cannot be used from a handler.
        if kind_of(mine.connection).is_blocking:
            await mine.execute("create table broken as select 1")
            await mine.execute("select 1/0")

    await enqueue(mine, "breaks")
    await enqueue(mine, "echo")
    drained = await drain(registry, connection=mine.connection, raises=False)
    assert outcomes(drained)["echo"] == "completed"
    if kind_of(mine.connection).is_blocking:
        assert outcomes(drained)["breaks"] == "retried"
        await mine.execute("create table broken as select 1")


PSYCOPGS = [kind for kind in KINDS if "run_sync" not in kind and "asyncpg" not in kind and "psycopg2" not in kind]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "run_sync" not in kind])
def test_a_transaction_of_the_handler(kind: str, dsn: str) -> None:
    """On psycopg it is a savepoint of the test's, and completes the job; elsewhere the test is told so."""

    async def main() -> None:
        async with theirs(kind, dsn) as mine:
            with suppress(Undo):
                async with mine.transaction():
                    await enqueue(mine, "write")
                    if kind in PSYCOPGS:
                        assert outcomes(await drain(make_registry(), connection=mine.connection)) == {"write": "completed"}
                        await mine.execute("select n from written")
                    else:
                        with pytest.raises(NoDatabaseInTest, match="on psycopg alone"):
                            await drain(make_registry(), connection=mine.connection)
                    raise Undo
            async with mine.transaction():
                await mine.execute("select 1")

    drive(kind, main)
    with psycopg.connect(dsn, autocommit=True) as plain:
        assert plain.execute("select count(*), to_regclass('written') from pgnotifyq.jobs").fetchone() == (0, None)


def test_in_a_plain_test(dsn: str) -> None:
    """A blocking connection needs no event loop, and blocking handlers are called in the test's thread."""
    registry = make_registry()
    seen: list[object] = []

    @registry.handler
    def note(payload: dict[str, Any], ctx: pgnotifyq.JobContext) -> None:
        ctx.progress(0.5)
        seen.append(threading.current_thread())
        assert not ctx.is_cancelled()

    with psycopg.connect(dsn) as plain, open_client(dsn) as client:
        client.enqueue("note", connection=plain)
        (ending,) = drain(registry, connection=plain)
        assert ending.outcome == "completed"
        assert seen == [threading.current_thread()]
        notices: list[object] = []
        plain.add_notice_handler(notices.append)
        client.enqueue("write", connection=plain)
        drain(registry, connection=plain)
        plain.execute("do $$ begin raise notice 'heard'; end $$")
        assert len(notices) == 1  # the connection is as it was
        plain.rollback()
        assert client.jobs() == []


def test_a_session_of_the_handlers(dsn: str) -> None:
    """`ctx.session()` that joins the test's transaction is taken, completes the job, and is undone with it."""
    registry = make_registry()
    engine = create_engine(url(dsn, "psycopg"), poolclass=NullPool)
    with engine.connect() as mine, mine.begin() as outer, open_client(dsn) as client:

        @registry.handler
        def work(payload: dict[str, Any], ctx: pgnotifyq.JobContext) -> None:
            with ctx.session(sessionmaker(mine, join_transaction_mode="create_savepoint"), complete=True, result=7) as session:
                session.execute(text("create table written as select 1 as n"))

        client.enqueue("work", connection=mine)
        assert drain(registry, connection=mine).outcomes == {"completed": 1}
        assert mine.execute(text("select result, n from pgnotifyq.jobs, written")).fetchall() == [(7, 1)]
        outer.rollback()
        assert client.jobs() == []


def test_without_a_transaction(dsn: str) -> None:
    """It would commit, so it is refused."""
    with psycopg.connect(dsn, autocommit=True) as plain, pytest.raises(pgnotifyq.ConfigError, match="no open transaction"):
        drain(make_registry(), connection=plain)


def test_a_job_that_enqueues_itself(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test fails, rather than go on for ever. The bound is 1,000 jobs; it is lowered for the time that they take."""
    monkeypatch.setattr("pgnotifyq.testing.draining.JOBS_MAX", 5)
    registry = make_registry()
    with psycopg.connect(dsn) as plain, open_client(dsn) as client:

        @registry.handler
        def again(payload: dict[str, Any]) -> None:
            client.enqueue("again", connection=plain)

        client.enqueue("again", connection=plain)
        with pytest.raises(AssertionError, match="5 jobs were run"):
            drain(registry, connection=plain)


async def test_a_job_that_is_taken_away(connection: Any) -> None:
    """A handler whose job is cancelled within the transaction commits no savepoint; nor does a second one nest."""
    registry = make_registry()

    @registry.handler
    async def cancels(payload: dict[str, Any], ctx: pgnotifyq.JobContext) -> None:
        try:
            async with ctx.transaction() as mine:
                await mine.execute("create table written as select 1")
                with pytest.raises(pgnotifyq.TransactionRefused):
                    await ctx.transaction().__aenter__()
                await mine.execute("update pgnotifyq.jobs set status = 'cancelled' where id = %s", (ctx.job.id,))
        except pgnotifyq.JobCancelled:
            refused.append(ctx.job.id)

    refused: list[object] = []
    async with connection.transaction():
        await connection.execute("select pgnotifyq.enqueue(job_type => 'cancels')")
        assert outcomes(await drain(registry, connection=connection)) == {"cancels": "completed"}
        assert refused
        assert await value(connection, "select to_regclass('written')") is None


def pgnotifyq_time(text: str) -> Any:
    from pgnotifyq.testing.clocks import as_time

    return as_time(text)


def test_asyncio_without_a_loop(dsn: str) -> None:
    """A connection of an event loop's is awaited there, and nowhere else."""
    assert asyncio.iscoroutinefunction(psycopg.AsyncConnection.connect)
    connection = asyncio.run(_open(dsn))
    waiting = drain(make_registry(), connection=connection)
    with pytest.raises(TypeError, match="asyncio"):
        trio.run(partial(_wait, waiting))


async def _open(dsn: str) -> Any:
    connection = await psycopg.AsyncConnection.connect(dsn)
    await connection.close()
    return connection


async def _wait(waiting: Any) -> None:
    await waiting
