"""What users' tests use: a handler without a database, and a worker until nothing is due."""

from __future__ import annotations

import asyncio
import threading
import uuid
from typing import Any, Literal

import attrs
import pytest
import trio
from sqlalchemy import create_engine, text
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import NullPool

import pgnotifyq
from pgnotifyq.doors.client import open_client
from pgnotifyq.model.errors import InvalidPayload, SchemaMissing, UnknownJobType
from pgnotifyq.model.events import EventName
from pgnotifyq.model.job import Job, OrgId
from pgnotifyq.model.outcome import SettleKind
from pgnotifyq.model.registry import JobRegistry
from pgnotifyq.model.retry import RetryPolicy
from pgnotifyq.model.states import Status
from pgnotifyq.runtime.context import JobContext
from pgnotifyq.testing import NoDatabaseInTest, run_job, run_job_blocking, work_until_idle
from pgnotifyq.wire.connection import Connection
from tests.asked import value
from tests.doors.callers_support import url
from tests.runtime.own_ways import WAYS

Link = Connection[Any]
ORG = OrgId(uuid.UUID(int=4))


@attrs.frozen
class Resize:
    path: str
    width: int


@pytest.fixture
def registry() -> JobRegistry:
    registry = JobRegistry()

    @registry.handler("resize", max_attempts=2, retry=RetryPolicy(base_seconds=10, jitter=0.5))
    async def resize(payload: Resize, ctx: JobContext) -> object:
        await ctx.progress(0.5, "half")
        if payload.width < 0:
            raise ValueError("negative")
        return {"width": payload.width, "attempt": ctx.attempt, "org": str(ctx.org.id)}

    @registry.handler("thread")
    def thread(payload: dict[str, Any]) -> object:
        return threading.current_thread() is not threading.main_thread()

    @registry.handler("slow", timeout_seconds=0.01, max_attempts=1)
    async def slow(payload: dict[str, Any]) -> None:
        await trio.sleep_forever()

    @registry.handler("write")
    async def write(payload: dict[str, Any], ctx: JobContext) -> None:
        async with ctx.transaction(complete=True, result={"wrote": 1}) as connection:
            await connection.execute("create temporary table written as select 1")
        async with ctx.org.transaction() as connection:
            await connection.execute("select 1")

    @registry.handler("say")
    async def say(payload: dict[str, Any]) -> object:
        return {"snooze": pgnotifyq.Snooze(60), "retry": pgnotifyq.Retry(7, "later"), "discard": pgnotifyq.Discard("no")}[
            payload["what"]
        ]

    class Whole:
        job_type = "whole"

        async def handle(self, job: Job, ctx: JobContext) -> object:
            return [job.payload, job.status, ctx.is_cancelled(), job.id == ctx.job.id]

    registry.register(Whole())
    return registry


async def test_a_handler_that_returns(registry: JobRegistry) -> None:
    """Its payload is structured as a worker does, and its result, progress and attempt are told."""
    ran = await run_job(registry, "resize", {"path": "a", "width": 3}, org_id=ORG, attempt=2)
    assert (ran.outcome, ran.kind, ran.exception) == ("completed", SettleKind.COMPLETE, None)
    assert (ran.result, ran.progress) == ({"width": 3, "attempt": 2, "org": str(ORG)}, ((0.5, "half"),))
    assert (await run_job(registry, "resize", Resize("a", 3))).result == {"width": 3, "attempt": 1, "org": str(pgnotifyq.NIL_ORG)}


async def test_a_handler_that_raises(registry: JobRegistry) -> None:
    """It is retried as its policy says, without jitter, and dead-lettered at the last attempt; the exception is there."""
    ran = await run_job(registry, "resize", Resize("a", -1))
    assert (ran.outcome, ran.kind) == ("failed", SettleKind.RETRY)
    assert ran.delay_seconds == pytest.approx(10.0)
    assert isinstance(ran.exception, ValueError) and "negative" in str(ran.error_message)
    ran = await run_job(registry, "resize", Resize("a", -1), attempt=2)
    assert (ran.kind, ran.reason, ran.delay_seconds) == (SettleKind.BURY, "exhausted", None)


async def test_a_payload_that_does_not_fit(registry: JobRegistry) -> None:
    """undecodable, as in a worker; what could not be enqueued is refused."""
    ran = await run_job(registry, "resize", {"path": "a"})
    assert (ran.outcome, ran.kind, ran.reason) == ("undecodable", SettleKind.BURY, "undecodable")
    with pytest.raises(InvalidPayload):
        await run_job(registry, "thread", {"a": float("nan")})
    with pytest.raises(UnknownJobType, match="nope"):
        await run_job(registry, "nope")


@pytest.mark.parametrize(
    ("what", "kind", "delay"),
    [("snooze", SettleKind.SNOOZE, 60), ("retry", SettleKind.RETRY, 7), ("discard", SettleKind.BURY, None)],
)
async def test_a_handler_that_returns_an_ending(registry: JobRegistry, what: str, kind: SettleKind, delay: float | None) -> None:
    """Snooze, Retry and Discard are told as what they do."""
    ran = await run_job(registry, "say", {"what": what})
    assert (ran.kind, ran.delay_seconds) == (kind, delay)


async def test_handlers_of_other_kinds(registry: JobRegistry) -> None:
    """Threads, time limits and classes."""
    assert (await run_job(registry, "thread")).result is True
    ran = await run_job(registry, "slow")
    assert (ran.outcome, ran.kind) == ("timed_out", SettleKind.BURY)
    assert (await run_job(registry, "whole", {"a": 1})).result == [{"a": 1}, "running", False, True]


async def test_a_transaction_without_a_database(registry: JobRegistry) -> None:
    """The test is told what is missing; it is not taken for a failure of the handler."""
    with pytest.raises(NoDatabaseInTest, match="connection="):
        await run_job(registry, "write")


async def test_a_transaction_on_the_tests_connection(registry: JobRegistry, connection: Link) -> None:
    """The handler writes there, and completes the job in its transaction."""
    ran = await run_job(registry, "write", connection=connection)
    assert (ran.outcome, ran.result, ran.exception) == ("completed", {"wrote": 1}, None)
    assert await value(connection, "select count(*) from written") == 1


async def test_work_until_idle(dsn: str, connection: Link) -> None:
    """Due jobs are worked on, and those that they enqueue; later ones and other queues' are left; the worker is gone."""
    registry = JobRegistry()
    async with open_client(dsn) as client:

        @registry.handler("parent")
        async def parent(payload: dict[str, Any]) -> None:
            await client.enqueue("child", queue="other")

        @registry.handler("child")
        async def child(payload: dict[str, Any]) -> object:
            return "grown"

        job_id = await client.enqueue("parent")
        later = await client.enqueue("parent", delay_seconds=3600)
        elsewhere = await client.enqueue("parent", queue="elsewhere")
        events = await work_until_idle(registry, dsn, queues=["default", "other"])
        assert [event.name for event in events].count(EventName.JOB_COMPLETED) == 2
        assert (await client.get(job_id)).status == Status.COMPLETED
        assert [job.result for job in await client.jobs(job_type="child")] == ["grown"]
        assert {job.id for job in await client.jobs(status="scheduled") + await client.jobs(status="pending")} == {
            later,
            elsewhere,
        }
        assert await client.workers() == []


async def test_work_that_does_not_end(dsn: str) -> None:
    """An error after the time given; the job is back."""
    registry = JobRegistry()

    @registry.handler("for_ever")
    async def for_ever(payload: dict[str, Any]) -> None:
        await trio.sleep_forever()

    async with open_client(dsn) as client:
        job_id = await client.enqueue("for_ever")
        with pytest.raises(trio.TooSlowError):
            await work_until_idle(registry, dsn, timeout_seconds=0.5)
        job = await client.get(job_id)
        assert (job.status, job.attempts) == (Status.PENDING, 0)


async def test_work_without_a_schema(blank_dsn: str) -> None:
    """Told as such."""
    with pytest.raises(SchemaMissing):
        await work_until_idle(JobRegistry(), blank_dsn)


async def test_settings_that_contradict_or_are_not_known() -> None:
    """A worker refuses them before it connects, and so does a test's."""
    registry: Any = JobRegistry()
    with pytest.raises(pgnotifyq.ConfigError, match="config and queues"):
        await pgnotifyq.run_worker(registry, "host=/nowhere", config=pgnotifyq.WorkerConfig(), queues=["images"])
    for work in (pgnotifyq.run_worker, work_until_idle):
        with pytest.raises(pgnotifyq.ConfigError, match="did you mean concurrency"):
            await work(registry, "host=/nowhere", concurency=3)  # type: ignore[call-arg]


async def test_an_async_handler_behind_a_plain_decorator_and_a_wish_that_is_raised() -> None:
    """As in a worker."""
    registry = JobRegistry()

    async def deed(payload: dict[str, Any]) -> str:
        await trio.lowlevel.checkpoint()
        if payload:
            raise pgnotifyq.Snooze(60)
        return "done"

    registry.handler("deed")(lambda payload: deed(payload))
    assert (await run_job(registry, "deed")).result == "done"
    ran = await run_job(registry, "deed", {"later": True})
    assert (ran.kind, ran.delay_seconds) == (SettleKind.SNOOZE, 60)


async def test_what_a_worker_makes_of_it(connection: Link) -> None:
    """`run_job` runs the worker's own executor: Ctrl-C of a handler's own making, a result that cannot be stored, a job in vain."""
    registry = JobRegistry()

    @registry.handler("interrupt")
    def interrupt(payload: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    @registry.handler("cannot_store")
    async def cannot_store(payload: dict[str, Any], ctx: JobContext) -> None:
        async with ctx.transaction(complete=True, result=object()) as mine:
            await mine.execute("create temporary table written as select 1")

    @registry.handler("in_vain")
    async def in_vain(payload: dict[str, Any]) -> None:
        raise pgnotifyq.ConnectionsTaken("none was free")

    ran = await run_job(registry, "interrupt")
    assert (ran.outcome, ran.kind) == ("failed", SettleKind.RETRY)
    ran = await run_job(registry, "cannot_store", connection=connection)
    assert isinstance(ran.exception, InvalidPayload)
    assert await value(connection, "select to_regclass('written')") is None
    ran = await run_job(registry, "in_vain")
    assert (ran.outcome, ran.kind) == ("snoozed", SettleKind.SNOOZE)


@pytest.mark.parametrize("way", ["sqlalchemy psycopg", "sqlalchemy async asyncpg", "django", "psycopg", "asyncpg"])
async def test_own_connections(dsn: str, connection: Link, way: str) -> None:
    """`ctx.session()` and its like are not fenced: the library's transaction is the test's database's, and may be rolled back."""
    registry = JobRegistry()
    await connection.execute("drop table if exists marks; create table marks (what text)")

    async def body(ctx: JobContext, opened: Any) -> None:
        async with opened(complete=True, result={"wrote": 1}) as hand:
            await hand.mark("written")
            if ctx.attempt == 2:
                await hand.execute("commit")
                await hand.execute("select 1")

    WAYS[way].register(registry, dsn, body)
    ran = await run_job(registry, "work")
    assert (ran.outcome, ran.result) == ("completed", {"wrote": 1})
    ran = await run_job(registry, "work", attempt=2)
    assert isinstance(ran.exception, pgnotifyq.TransactionLeft)
    assert await value(connection, "select count(*) from marks") == 2


async def test_own_session_in_a_test_that_rolls_back(dsn: str, connection: Link) -> None:
    """A session that joins the test's own transaction is taken, and is undone with it."""
    registry = JobRegistry()
    await connection.execute("drop table if exists marks; create table marks (what text)")
    engine = create_engine(url(dsn, "psycopg"), poolclass=NullPool)

    with engine.connect() as mine, mine.begin() as outer:

        @registry.handler()
        def work(payload: dict[str, Any], ctx: JobContext) -> None:
            sessions = sessionmaker(mine, join_transaction_mode="create_savepoint")
            with ctx.session(sessions, complete=True) as session:
                session.execute(text("insert into marks values ('undone')"))

        assert (await run_job(registry, "work")).outcome == "completed"
        outer.rollback()
    assert await value(connection, "select count(*) from marks") == 0


async def test_a_handler_value(registry: JobRegistry) -> None:
    """In the place of its name; one of another registry is refused."""
    ran = await run_job(registry, registry.get("resize"), Resize("a", 3))
    assert ran.result == {"width": 3, "attempt": 1, "org": str(pgnotifyq.NIL_ORG)}
    other = JobRegistry()

    @other.handler("resize")
    async def resize(payload: Resize) -> None: ...

    with pytest.raises(pgnotifyq.InvalidJob, match="another registry"):
        await run_job(registry, resize, Resize("a", 3))


@pytest.mark.parametrize("seconds", [0.0, 60.0])
async def test_a_cancel_while_it_runs(autojump_clock: object, seconds: float) -> None:
    """The handler is cancelled at a checkpoint, at once or after a while, and cleans up; the job ends cancelled."""
    registry = JobRegistry()
    cleaned: list[float] = []

    @registry.handler
    async def waits(payload: dict[str, Any], ctx: JobContext) -> None:
        began = trio.current_time()
        try:
            await trio.sleep(1000)
        finally:
            assert ctx.cancel_reason is not None and ctx.cancel_reason.by == "run_job"
            cleaned.append(trio.current_time() - began)

    ran = await run_job(registry, waits, cancel_after=seconds)
    assert (ran.outcome, ran.kind) == ("cancelled", SettleKind.CANCEL)
    assert cleaned == [pytest.approx(seconds)]


@pytest.mark.parametrize("is_deaf", [False, True])
async def test_a_cancel_of_a_cooperative_handler(autojump_clock: object, is_deaf: bool) -> None:
    """It is told, and stops by itself; one that does not is cancelled when the worker's grace of 5 s is over."""
    registry = JobRegistry()

    @registry.handler(cooperative=True)
    async def steps(payload: dict[str, Any], ctx: JobContext) -> None:
        while is_deaf or not ctx.is_cancelled():
            await trio.sleep(1)

    began = trio.current_time()
    ran = await run_job(registry, steps, cancel_after=10)
    assert ran.outcome == "cancelled"
    assert trio.current_time() - began == pytest.approx(15 if is_deaf else 10, abs=1.1)


@pytest.mark.parametrize("runs_in", ["asyncio", "trio"])
async def test_a_cancel_of_asyncios_that_nobody_asked_for(runs_in: Literal["asyncio", "trio"]) -> None:
    """A handler that raises CancelledError by itself has failed, as in a worker; the test goes on."""
    registry = JobRegistry(runs_in=runs_in)

    @registry.handler
    async def gives_up(payload: dict[str, Any]) -> None:
        raise asyncio.CancelledError

    ran = await run_job(registry, gives_up)
    assert (ran.outcome, type(ran.exception)) == ("failed", asyncio.CancelledError)


async def test_a_lease_that_is_lost(connection: Link) -> None:
    """Nothing is written: what the handler does in a transaction is rolled back, its progress refused."""
    registry = JobRegistry()
    seen: list[type[BaseException]] = []

    @registry.handler
    async def writes(payload: dict[str, Any], ctx: JobContext) -> None:
        with trio.CancelScope(shield=True):
            try:
                async with ctx.transaction(complete=True) as mine:
                    await mine.execute("create temporary table written as select 1")
                    await ctx.cancelled()
            except pgnotifyq.LeaseLost as error:
                seen.append(type(error))
            with pytest.raises(pgnotifyq.LeaseLost):
                await ctx.progress(0.5)
        await trio.sleep(1)

    ran = await run_job(registry, writes, connection=connection, lose_lease_after=0)
    assert (ran.outcome, ran.kind, ran.result, seen) == ("lease_lost", None, None, [pgnotifyq.LeaseLost])
    assert await value(connection, "select to_regclass('written')") is None


def test_one_handler_in_a_plain_test(registry: JobRegistry) -> None:
    """Without an event loop, and within asyncio's."""

    async def within() -> None:
        await asyncio.sleep(0)
        assert run_job_blocking(registry, "whole", {"a": 1}).outcome == "completed"

    assert run_job_blocking(registry, "thread").result is True
    asyncio.run(within())
