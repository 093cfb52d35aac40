"""What a job's transaction on a connection of the handler's own refuses, and says."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import asyncpg
import psycopg
import psycopg2
import pytest
from django.db import connections, transaction
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import NullPool

from pgnotifyq import EventName, JobContext, JobRegistry, MissingRights, TransactionAborted, TransactionRefused
from tests.asked import fetch, tenant_role
from tests.doors.callers_support import django_at, parts_of, url
from tests.runtime.own_ways import WAYS, Way

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.runtime.support import Workplace

Payload = dict[str, Any]


@pytest.fixture
async def place(place: Workplace) -> Workplace:
    """Give a queue beside a table of a user's."""
    await place.connection.execute("drop table if exists marks; create table marks (what text)")
    return place


async def marks(place: Workplace) -> list[str]:
    return [what for (what,) in await fetch(place.connection, "select what from marks order by what")]


async def outcome_of(place: Workplace, registry: JobRegistry, **fields: object) -> str:
    """Run the job `work` once; return what was told of its failure."""
    worker = await place.start(registry)
    job_id = await place.enqueue("work", max_attempts=1, **fields)
    told = await worker.log.wait(EventName.JOB_DEAD, job_id=job_id)
    return str(told["why"])


async def test_in_an_async_handler(place: Workplace) -> None:
    """What blocks, and what asyncio drives, is refused where the worker's trio runs; the message says what to use instead."""
    registry, told = JobRegistry(), []
    engine = create_engine(url(place.dsn, "psycopg"), poolclass=NullPool)
    async_engine = create_async_engine(url(place.dsn, "asyncpg"), poolclass=NullPool)

    @registry.handler()
    async def work(payload: Payload, ctx: JobContext) -> None:
        try:
            async with ctx.session(async_sessionmaker(async_engine)):
                pass
        except TypeError as error:
            told.append(str(error))
        for block in (ctx.session(sessionmaker(engine)), ctx.django()):
            try:
                with block:
                    pass
            except TypeError as error:
                told.append(str(error))
        with psycopg.connect(place.dsn) as mine:
            try:
                with ctx.connection(mine):
                    pass
            except TypeError as error:
                told.append(str(error))

    worker = await place.start(registry)
    with django_at(place.dsn, "default"):
        await worker.log.wait(EventName.JOB_COMPLETED, job_id=await place.enqueue("work"))
    assert len(told) == 4
    assert all("ctx.transaction()" in message and "plain function" in message for message in told)
    assert "asyncio" in told[0]


async def test_the_other_with(place: Workplace) -> None:
    """`with` for what is awaited, and `async with` for what is not, say so."""
    registry, told = JobRegistry(), []

    @registry.handler()
    def work(payload: Payload, ctx: JobContext) -> None:
        async def awaited(block: Any) -> None:
            async with block:
                pass

        with psycopg.connect(place.dsn) as mine:
            for wrong in (
                lambda: ctx.session(async_sessionmaker(create_async_engine(url(place.dsn, "asyncpg")))).__enter__(),
                lambda: asyncio.run(awaited(ctx.session(Session))),
                lambda: asyncio.run(awaited(ctx.connection(mine))),
            ):
                try:
                    wrong()
                except TypeError as error:
                    told.append(str(error))

    worker = await place.start(registry)
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=await place.enqueue("work"))
    assert ["`async with`" in told[0], "`with`" in told[1], "`with`" in told[2]] == [True] * 3


def _busy_psycopg(ctx: JobContext, dsn: str) -> None:
    with psycopg.connect(dsn) as mine:
        mine.execute("select 1")
        with ctx.connection(mine):
            mine.execute("insert into marks values ('unfenced')")


def _busy_asyncpg(ctx: JobContext, dsn: str) -> None:
    async def main() -> None:
        mine = await asyncpg.connect(**parts_of(dsn))
        try:
            async with mine.transaction(), ctx.connection(mine):
                await mine.execute("insert into marks values ('unfenced')")
        finally:
            await mine.close()

    asyncio.run(main())


def _busy_session(ctx: JobContext, dsn: str) -> None:
    engine = create_engine(url(dsn, "psycopg"), poolclass=NullPool)

    def begun() -> Session:
        session = Session(engine)
        session.execute(text("select 1"))
        return session

    with ctx.session(begun) as session:
        session.execute(text("insert into marks values ('unfenced')"))


def _busy_connection_of_a_session(ctx: JobContext, dsn: str) -> None:
    engine = create_engine(url(dsn, "psycopg"), poolclass=NullPool)
    with engine.begin() as connection, ctx.session(lambda: Session(connection)) as session:
        session.execute(text("insert into marks values ('unfenced')"))


def _busy_django(ctx: JobContext, dsn: str) -> None:
    with django_at(dsn, "default"), transaction.atomic(), ctx.django() as mine, mine.cursor() as cursor:
        cursor.execute("insert into marks values ('unfenced')")


def _committing_django(ctx: JobContext, dsn: str) -> None:
    with django_at(dsn, "default"):
        connections["default"].settings_dict["AUTOCOMMIT"] = False
        with ctx.django() as mine, mine.cursor() as cursor:
            cursor.execute("insert into marks values ('unfenced')")


def _committing_engine(ctx: JobContext, dsn: str) -> None:
    engine = create_engine(url(dsn, "psycopg"), poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with ctx.session(sessionmaker(engine)) as session:
        session.execute(text("insert into marks values ('unfenced')"))


def _committing_async_engine(ctx: JobContext, dsn: str) -> None:
    async def main() -> None:
        engine = create_async_engine(url(dsn, "asyncpg"), poolclass=NullPool, isolation_level="AUTOCOMMIT")
        async with ctx.session(async_sessionmaker(engine)) as session:
            await session.execute(text("insert into marks values ('unfenced')"))

    asyncio.run(main())


NOT_OURS_TO_COMMIT: dict[str, tuple[Callable[[JobContext, str], None], str]] = {
    "psycopg, in a transaction": (_busy_psycopg, "in a transaction already"),
    "asyncpg, in a transaction": (_busy_asyncpg, "in a transaction already"),
    "session that has begun": (_busy_session, "in a transaction already"),
    "session's connection, in a transaction": (_busy_connection_of_a_session, "in a transaction already"),
    "Django within atomic": (_busy_django, "in a transaction already"),
    "Django without autocommit": (_committing_django, "autocommit off"),
    "engine in autocommit": (_committing_engine, "AUTOCOMMIT"),
    "async engine in autocommit": (_committing_async_engine, "AUTOCOMMIT"),
}


@pytest.mark.parametrize("case", NOT_OURS_TO_COMMIT)
async def test_not_ours_to_commit(place: Workplace, case: str) -> None:
    """Where the fence would not be first, or the end of the block would commit nothing, it is refused, and nothing is written."""
    registry, told = JobRegistry(), []
    work, message = NOT_OURS_TO_COMMIT[case]

    @registry.handler("work")
    def handler(payload: Payload, ctx: JobContext) -> None:
        try:
            work(ctx, place.dsn)
        except TransactionRefused as error:
            told.append(str(error))
            raise

    assert "TransactionRefused" in await outcome_of(place, registry)
    assert len(told) == 1 and message in told[0]
    assert await marks(place) == []


async def test_rolled_back_without_an_error(place: Workplace) -> None:
    """Django can be told to roll back at the end of a block. Such a block does not complete its job, and says so."""
    registry = JobRegistry()

    @registry.handler()
    def work(payload: Payload, ctx: JobContext) -> None:
        with django_at(place.dsn, "default"), ctx.django(complete=True) as mine:
            with mine.cursor() as cursor:
                cursor.execute("insert into marks values ('undone')")
            transaction.set_rollback(True)

    assert TransactionAborted.__name__ in await outcome_of(place, registry)
    assert await marks(place) == []


async def test_of_no_kind(place: Workplace) -> None:
    """What is neither a driver's connection nor a pool, and a factory that makes no session, are refused by their names."""
    registry, told = JobRegistry(), []
    engine = create_engine(url(place.dsn, "psycopg"), poolclass=NullPool)

    @registry.handler()
    def work(payload: Payload, ctx: JobContext) -> None:
        second = psycopg2.connect(place.dsn)
        for block in (ctx.connection(engine), ctx.connection(second), ctx.connection(place.dsn), ctx.session(engine.connect)):
            try:
                with block:
                    pass
            except TypeError as error:
                told.append(str(error))
        second.close()

    worker = await place.start(registry)
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=await place.enqueue("work"))
    assert ["Engine" in told[0], "psycopg2" in told[1], "str" in told[2], "ctx.connection()" in told[3]] == [True] * 4


@pytest.fixture
async def role(place: Workplace) -> Any:
    """A role of the application's, which owns nothing."""
    await place.connection.execute("create role shop_of_orm login")
    await place.connection.execute("grant insert on marks to shop_of_orm")
    yield "shop_of_orm"
    await place.connection.execute("drop owned by shop_of_orm; drop role shop_of_orm")


SCHEMA_RIGHT = "grant usage on schema pgnotifyq to shop_of_orm; select pgnotifyq.keep_roles()"
COMPLETE_RIGHTS = (
    "grant usage on schema pgnotifyq to shop_of_orm;"
    "grant select, update on pgnotifyq.jobs to shop_of_orm;"
    "grant insert on pgnotifyq.job_executions to shop_of_orm"
)


@pytest.mark.parametrize("way", ["sqlalchemy psycopg", "sqlalchemy async asyncpg", "django", "psycopg", "asyncpg"])
async def test_rights(place: Workplace, role: str, way: str) -> None:
    """The message names the rights that are wanting; with them, and no others, the block commits."""
    registry, said = JobRegistry(), list[str]()

    async def body(ctx: JobContext, opened: Any) -> None:
        async with opened(complete=ctx.job.payload["complete"]) as hand:
            await hand.mark("written")

    register(WAYS[way], registry, psycopg.conninfo.make_conninfo(place.dsn, user=role), body, said)
    worker = await place.start(registry)
    for grants, complete, end in (
        ("select 1", "false", "needs usage on the schema"),
        (SCHEMA_RIGHT, "false", None),
        ("select 1", "true", "insert on pgnotifyq.job_executions"),
        (COMPLETE_RIGHTS, "true", None),
    ):
        await place.connection.execute(grants)
        job_id = await place.enqueue("work", payload=f'{{"complete": {complete}}}', max_attempts=1)
        await worker.log.wait(EventName.JOB_DEAD if end else EventName.JOB_COMPLETED, job_id=job_id)
        if end:
            assert end in said[-1]
    assert (len(said), await marks(place)) == (2, ["written"] * 2)


def register(way: Way, registry: JobRegistry, dsn: str, body: Any, said: list[str]) -> None:
    async def noting(ctx: JobContext, opened: Any) -> None:
        try:
            await body(ctx, opened)
        except MissingRights as error:
            said.append(str(error))
            raise

    way.register(registry, dsn, noting)


async def test_confined_to_another_tenant(place: Workplace) -> None:
    """A connection that does not see the job cannot complete it: nothing of the block is written, and the message says why."""
    registry = JobRegistry()

    @registry.handler()
    def work(payload: Payload, ctx: JobContext) -> None:
        with psycopg.connect(place.dsn, options="-c pgnotifyq.org_id=00000000-0000-0000-0000-00000000000a") as mine:
            mine.execute(f"set role {tenant}".encode())
            mine.commit()
            with ctx.connection(mine, complete=True):
                pass

    tenant = await tenant_role(place.connection)
    await place.connection.execute(f"grant update on pgnotifyq.jobs to {tenant}".encode())
    await place.connection.execute(f"grant insert on pgnotifyq.job_executions to {tenant}".encode())
    try:
        assert "pgnotifyq.org_id" in await outcome_of(place, registry)
    finally:
        await place.connection.execute(f"revoke update on pgnotifyq.jobs from {tenant}".encode())
        await place.connection.execute(f"revoke insert on pgnotifyq.job_executions from {tenant}".encode())
        await place.connection.execute(f"grant update (status, awaited, error_message) on pgnotifyq.jobs to {tenant}".encode())


@pytest.fixture
async def kept_row(place: Workplace) -> Any:
    """A trigger of a user's that keeps every job from being completed by a handler."""
    await place.connection.execute(
        """
        create function keep() returns trigger language plpgsql as $$
        begin if new.status = 'completed' then return null; end if; return new; end $$;
        create trigger keeps before update on pgnotifyq.jobs for each row execute function keep();
        """
    )
    yield
    await place.connection.execute("drop trigger keeps on pgnotifyq.jobs; drop function keep()")


@pytest.mark.parametrize("own", [True, False], ids=["own", "worker's"])
async def test_row_that_a_trigger_keeps(place: Workplace, kept_row: None, own: bool) -> None:
    """A completion that leaves the row as it was is no completion: what the block wrote is rolled back with it."""
    registry = JobRegistry()
    if own:

        @registry.handler("work")
        def in_thread(payload: Payload, ctx: JobContext) -> None:
            with psycopg.connect(place.dsn) as mine, ctx.connection(mine, complete=True):
                mine.execute("insert into marks values ('twice')")

    else:

        @registry.handler("work")
        async def on_trio(payload: Payload, ctx: JobContext) -> None:
            async with ctx.transaction(complete=True) as mine:
                await mine.execute("insert into marks values ('twice')")

    assert "TransactionRefused" in await outcome_of(place, registry)
    assert await marks(place) == []


async def test_connection_after_its_block(place: Workplace) -> None:
    """The connection is as it was: in no transaction, and free to be used."""
    registry = JobRegistry()

    @registry.handler()
    def work(payload: Payload, ctx: JobContext) -> None:
        with psycopg.connect(place.dsn) as mine:
            with ctx.connection(mine):
                mine.execute("insert into marks values ('within')")
            assert mine.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
            assert "wait" not in vars(mine)
            mine.execute("insert into marks values ('after')")

    worker = await place.start(registry)
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=await place.enqueue("work", max_attempts=1))
    assert await marks(place) == ["after", "within"]
