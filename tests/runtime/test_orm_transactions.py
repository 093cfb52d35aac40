"""A job's fenced transaction as the handler's own libraries have it: SQLAlchemy, Django, psycopg, asyncpg."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from django.db import transaction
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker
from sqlalchemy.pool import NullPool

import pgnotifyq.sync
from pgnotifyq import EventName, JobCancelled, JobContext, JobRegistry, LeaseLost, TransactionLeft, TransactionRefused
from tests.asked import fetch
from tests.doors.callers_support import django_at, url
from tests.runtime.own_ways import WAYS, Gate

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.runtime.support import Workplace

each_way = pytest.mark.parametrize("way", WAYS)


@pytest.fixture
async def place(place: Workplace) -> Workplace:
    """Give a queue beside a table of a user's."""
    await place.connection.execute("drop table if exists marks; create table marks (what text)")
    return place


async def marks(place: Workplace) -> list[str]:
    return [what for (what,) in await fetch(place.connection, "select what from marks order by what")]


async def nothing_left(place: Workplace) -> bool:
    return await fetch(place.connection, "select from pgnotifyq.fences") == []


@each_way
async def test_effect_and_completion_in_one_commit(place: Workplace, way: str) -> None:
    """With `complete` the job ends in the very commit of what it wrote; what the handler does after cannot undo it."""
    registry, seen = JobRegistry(), []

    async def body(ctx: JobContext, opened: Any) -> None:
        async with opened(complete=True, result={"n": 1}) as hand:
            await hand.mark("once")
        seen.append(ctx.job.id)
        raise ValueError("after the commit")

    WAYS[way].register(registry, place.dsn, body)
    worker = await place.start(registry)
    job_id = await place.enqueue("work")
    told = await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    assert (told["why"], seen) == ("ValueError: after the commit", [job_id])
    job = await place.job(job_id)
    assert (job["status"], job["result"], await marks(place)) == ("completed", {"n": 1}, ["once"])
    assert (await place.history(job_id), await nothing_left(place)) == ([(1, "completed")], True)


@each_way
async def test_several_blocks(place: Workplace, way: str) -> None:
    """A handler may open one after the other, and the job ends as ever when none of them completes it."""
    registry = JobRegistry()

    async def body(ctx: JobContext, opened: Any) -> str:
        for what in ("first", "second"):
            async with opened() as hand:
                await hand.mark(what)
        return "both"

    WAYS[way].register(registry, place.dsn, body)
    worker = await place.start(registry)
    job_id = await place.enqueue("work")
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    assert ((await place.job(job_id))["result"], await marks(place)) == ("both", ["first", "second"])


@each_way
async def test_block_that_raises(place: Workplace, way: str) -> None:
    """A block that raises is rolled back, completion and all; the next attempt starts afresh."""
    registry = JobRegistry()

    async def body(ctx: JobContext, opened: Any) -> None:
        async with opened(complete=True) as hand:
            await hand.mark(str(ctx.attempt))
            if ctx.attempt == 1:
                raise ValueError("before the commit")

    WAYS[way].register(registry, place.dsn, body)
    worker = await place.start(registry)
    job_id = await place.enqueue("work", max_attempts=2)
    await worker.log.wait(EventName.JOB_RETRIED, job_id=job_id)
    await place.connection.execute("update pgnotifyq.jobs set scheduled_at = clock_timestamp() where id = %s", (job_id,))
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    assert (await marks(place), await place.history(job_id)) == (["2"], [(1, "failed"), (2, "completed")])


@each_way
@pytest.mark.parametrize("complete", [False, True], ids=["", "complete"])
@pytest.mark.parametrize("how", ["block's end", "commit by hand"])
@pytest.mark.parametrize("why", ["lost", "cancelled"])
async def test_job_lost_in_the_middle(place: Workplace, way: str, why: str, how: str, complete: bool) -> None:
    """Whoever says commit, and however: when the execution holds the job no more, nothing of it is written, and it is told why."""
    registry, gate, raised = JobRegistry(), Gate(), list[Exception]()

    async def body(ctx: JobContext, opened: Any) -> None:
        if raised:
            return
        try:
            async with opened(complete=complete) as hand:
                await hand.mark("unfenced")
                await gate.hold()
                if how == "commit by hand":
                    await hand.execute("commit")
        except Exception as error:
            raised.append(error)
            raise

    WAYS[way].register(registry, place.dsn, body)
    worker = await place.start(registry)
    job_id = await place.enqueue("work")
    await gate.reached()
    if why == "cancelled":
        await place.cancel(job_id)
        await worker.log.wait(EventName.JOB_INTERRUPTED, job_id=job_id)
    else:
        await place.take_away(job_id)
    gate.open()
    await worker.log.wait(EventName.JOB_CANCELLED if why == "cancelled" else EventName.LEASE_LOST, job_id=job_id)
    assert [type(error) for error in raised] == [JobCancelled if why == "cancelled" else LeaseLost]
    assert (await marks(place), await nothing_left(place)) == ([], True)
    if why == "lost":
        assert (await place.job(job_id))["status"] == "running"  # BOB's


@each_way
@pytest.mark.parametrize("statement", ["commit", "rollback", "commit and chain"])
async def test_ended_by_hand(place: Workplace, way: str, statement: str) -> None:
    """A handler that ends its transaction in the middle is told so, and its job is not completed by it."""
    registry, raised = JobRegistry(), list[Exception]()

    async def body(ctx: JobContext, opened: Any) -> None:
        try:
            async with opened(complete=True) as hand:
                await hand.mark("before")
                await hand.execute(statement)
                await hand.mark("after")
        except Exception as error:
            raised.append(error)
            raise

    WAYS[way].register(registry, place.dsn, body)
    worker = await place.start(registry)
    job_id = await place.enqueue("work", max_attempts=1)
    await worker.log.wait(EventName.JOB_DEAD, job_id=job_id)
    assert [type(error) for error in raised] == [TransactionLeft]
    found = await marks(place)
    assert ("before" in found) is (statement != "rollback")
    assert "after" not in found
    assert await nothing_left(place)


SENDS: dict[str, Callable[[Any, Any], Awaitable[Any]]] = {
    "execute": lambda mine, _: mine.execute(AFTER),
    "execute with a value": lambda mine, _: mine.execute("insert into marks values ($1)", "after"),
    "fetch": lambda mine, _: mine.fetch(f"{AFTER} returning 1"),
    "executemany": lambda mine, _: mine.executemany("insert into marks values ($1)", [("after",)]),
    "prepare": lambda mine, _: mine.prepare(AFTER),
    "prepared before": lambda _, prepared: prepared.fetch(),
    "copy": lambda mine, _: mine.copy_records_to_table("marks", records=[("after",)]),
    "transaction": lambda mine, _: mine.transaction().start(),
}
AFTER = "insert into marks values ('after')"


@pytest.mark.parametrize("way", ["asyncpg", "asyncpg pool"])
async def test_asyncpg_sends_nothing_after_a_commit_by_hand(place: Workplace, way: str) -> None:
    """Whichever of its methods is called; after the block it works again."""
    registry, raised = JobRegistry(), dict[str, type]()

    async def body(ctx: JobContext, opened: Any) -> None:
        for name, send in SENDS.items():
            try:
                async with opened() as hand:
                    prepared = await hand.mine.prepare(AFTER)
                    await hand.execute("commit")
                    await send(hand.mine, prepared)
            except Exception as error:  # noqa: BLE001  # what is looked at
                raised[name] = type(error)
        async with opened(complete=True) as hand:
            await hand.mark("at last")

    WAYS[way].register(registry, place.dsn, body)
    worker = await place.start(registry)
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=await place.enqueue("work"))
    assert raised == dict.fromkeys(SENDS, TransactionLeft)
    assert await marks(place) == ["at last"]


@pytest.mark.parametrize("way", [name for name in WAYS if "sqlalchemy" in name])
@pytest.mark.parametrize("leave", ["commit", "rollback", "close"])
async def test_ended_by_the_session(place: Workplace, way: str, leave: str) -> None:
    """So it is when the session itself says commit; and SQLAlchemy's refusal of what comes after is told as ours."""
    registry, raised = JobRegistry(), list[Exception]()

    async def body(ctx: JobContext, opened: Any) -> None:
        for goes_on in (False, True):
            try:
                async with opened(complete=True) as hand:
                    await hand.mark("before")
                    answer = getattr(hand.mine, leave)()
                    if answer is not None:
                        await answer
                    if goes_on:
                        await hand.mark("after")
            except Exception as error:  # noqa: BLE001  # what is looked at
                raised.append(error)
        raise ValueError("not completed")

    WAYS[way].register(registry, place.dsn, body)
    worker = await place.start(registry)
    await worker.log.wait(EventName.JOB_DEAD, job_id=await place.enqueue("work", max_attempts=1))
    assert [type(error) for error in raised] == [TransactionLeft] * 2
    assert await marks(place) == (["before"] * 2 if leave == "commit" else [])


@each_way
async def test_block_within_a_block(place: Workplace, way: str) -> None:
    """It is refused at once; the outer one goes on, and commits."""
    registry = JobRegistry()

    async def body(ctx: JobContext, opened: Any) -> None:
        async with opened(complete=True) as hand:
            await hand.mark("outer")
            with suppress(TransactionRefused):
                async with opened() as second:
                    await second.mark("inner")

    WAYS[way].register(registry, place.dsn, body)
    worker = await place.start(registry)
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=await place.enqueue("work", max_attempts=1))
    assert await marks(place) == ["outer"]


@each_way
async def test_savepoint(place: Workplace, way: str) -> None:
    """A savepoint that is rolled back takes its own along, and the fence stays."""
    registry, gate, raised = JobRegistry(), Gate(), list[Exception]()

    async def body(ctx: JobContext, opened: Any) -> None:
        try:
            async with opened(complete=True) as hand:
                await hand.mark("kept")
                for statement in ("savepoint mine", "insert into marks values ('undone')", "rollback to savepoint mine"):
                    await hand.execute(statement)
                if ctx.job.payload["is_lost"]:
                    await gate.hold()
        except LeaseLost as error:
            raised.append(error)
            raise

    WAYS[way].register(registry, place.dsn, body)
    worker = await place.start(registry)
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=await place.enqueue("work", payload='{"is_lost": false}'))
    assert await marks(place) == ["kept"]
    job_id = await place.enqueue("work", payload='{"is_lost": true}')
    await gate.reached()
    await place.take_away(job_id)
    gate.open()
    await worker.log.wait(EventName.LEASE_LOST, job_id=job_id)
    assert (len(raised), await marks(place)) == (1, ["kept"])


async def test_error_after_djangos_commit(place: Workplace) -> None:
    """A hook that Django calls after the commit may fail: the job is completed, and stays so. So it is under another alias."""
    registry = JobRegistry()

    @registry.handler()
    def work(payload: dict[str, Any], ctx: JobContext) -> None:
        with django_at(place.dsn, "other"), ctx.django("other", complete=True) as mine:
            with mine.cursor() as cursor:
                cursor.execute("insert into marks values ('once')")
            transaction.on_commit(lambda: 1 / 0, using="other")

    worker = await place.start(registry)
    job_id = await place.enqueue("work")
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    assert ((await place.job(job_id))["status"], await marks(place)) == ("completed", ["once"])
    assert await place.history(job_id) == [(1, "completed")]


async def test_what_makes_a_session(place: Workplace) -> None:
    """A function, a class with its engine, and a registry of sessions will do; a flush that is due is the block's."""
    registry = JobRegistry()
    engine = create_engine(url(place.dsn, "psycopg"), poolclass=NullPool)

    class Base(DeclarativeBase):
        pass

    class Mark(Base):
        __tablename__ = "marks"
        what: Mapped[str] = mapped_column(primary_key=True)

    @registry.handler()
    def work(payload: dict[str, Any], ctx: JobContext) -> None:
        factories: dict[str, Callable[[], Session]] = {
            "function": lambda: Session(engine),
            "maker": sessionmaker(engine),
            "scoped": scoped_session(sessionmaker(engine)),
        }
        for name, factory in factories.items():
            with ctx.session(factory, complete=name == "scoped") as session:
                session.add(Mark(what=name))

    worker = await place.start(registry)
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=await place.enqueue("work", max_attempts=1))
    assert await marks(place) == ["function", "maker", "scoped"]


async def test_what_cannot_be_opened_there(place: Workplace) -> None:
    """An engine in the place of a factory, and trio's transaction in a thread: each error says what to use."""
    registry = JobRegistry()
    engine = create_engine(url(place.dsn, "psycopg"), poolclass=NullPool)
    told: list[str] = []

    @registry.handler()
    def work(payload: dict[str, Any], ctx: JobContext) -> None:
        no_factory: Any = engine
        with pytest.raises(TypeError) as refused, ctx.session(no_factory):
            pass
        told.append(str(refused.value))
        trios: Any = ctx.transaction()
        with pytest.raises(TransactionRefused) as refused_by_trio, trios:
            pass
        told.append(str(refused_by_trio.value))

    worker = await place.start(registry)
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=await place.enqueue("work", max_attempts=1))
    assert "as sessionmaker(engine) does, and this is a sqlalchemy.engine.base.Engine" in told[0]
    assert "ctx.session(...) for SQLAlchemy" in told[1]


async def test_job_enqueued_in_the_block(place: Workplace) -> None:
    """It commits with the block, and is undone with it."""
    registry = JobRegistry()
    engine = create_engine(url(place.dsn, "psycopg"), poolclass=NullPool)

    @registry.handler()
    def work(payload: dict[str, Any], ctx: JobContext) -> None:
        with pgnotifyq.sync.open_client(place.dsn) as client, ctx.session(sessionmaker(engine), complete=True) as session:
            client.enqueue("child", connection=session)
            if payload["fails"]:
                raise ValueError("undone")

    @registry.handler()
    async def child(payload: dict[str, Any]) -> None:
        pass

    worker = await place.start(registry)
    await worker.log.wait(EventName.JOB_DEAD, job_id=await place.enqueue("work", payload='{"fails": true}', max_attempts=1))
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=await place.enqueue("work", payload='{"fails": false}', max_attempts=1))
    await worker.log.wait(EventName.JOB_COMPLETED, job_type="child")
    assert len(await fetch(place.connection, "select from pgnotifyq.jobs where job_type = 'child'")) == 1
