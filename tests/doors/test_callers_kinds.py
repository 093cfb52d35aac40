"""What a caller has is recognised, asked in its own way, and left as it was."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import asyncpg
import psycopg
import psycopg2
import psycopg2.extras
import pytest
import sqlalchemy
import trio
from django.core.exceptions import SynchronousOnlyOperation
from django.db import connections, transaction
from django.db.utils import Error as DjangoError
from django.utils.connection import ConnectionProxy
from psycopg import sql
from psycopg.conninfo import make_conninfo
from sqlalchemy import orm
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.pool import NullPool

import pgnotifyq.sync
from pgnotifyq.ledger import bulk, enqueue, look
from pgnotifyq.migrating import migrate
from pgnotifyq.model.errors import InvalidPayload, PgnotifyqError, SchemaMissing, TransactionAborted
from pgnotifyq.model.new_job import NewJob
from pgnotifyq.wire.callers import ask_on, ask_on_blocking
from pgnotifyq.wire.connection import open_connection
from pgnotifyq.wire.kinds import Kind, kind_of
from pgnotifyq.wire.words import in_psycopgs_words, sqlstate_of
from tests.doors.callers_support import KINDS, Theirs, Undo, django_at, drive, parts_of, theirs, url
from tests.doors.test_callers import MANY, SCHEMA, every_kind, ids_in, one
from tests.doors.test_every_verb import Plainly, _next, _plain, empty, name_of, story, tell_on_trio
from tests.proxy import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pgnotifyq.wire.connection import Connection

WIDE = "☃"  # LATIN1 has none


@every_kind
def test_recognised(kind: str, dsn: str) -> None:
    """Each by its own name."""
    wanted = {
        "trio": Kind.TRIO,
        "psycopg": Kind.PSYCOPG,
        "psycopg async": Kind.PSYCOPG_ASYNC,
        "psycopg2": Kind.PSYCOPG2,
        "asyncpg": Kind.ASYNCPG,
        "asyncpg pool": Kind.ASYNCPG,
        "sqlalchemy connection": Kind.SQLALCHEMY_CONNECTION,
        "sqlalchemy session": Kind.SQLALCHEMY_SESSION,
        "sqlalchemy scoped": Kind.SQLALCHEMY_SESSION,
        "sqlalchemy async connection": Kind.SQLALCHEMY_ASYNC_CONNECTION,
        "sqlalchemy async session": Kind.SQLALCHEMY_ASYNC_SESSION,
        "sqlalchemy async scoped": Kind.SQLALCHEMY_ASYNC_SESSION,
        "sqlalchemy async run_sync": Kind.SQLALCHEMY_ASYNC_SESSION,
        "django": Kind.DJANGO,
        "django alias": Kind.DJANGO,
    }

    async def one_of_them() -> None:
        async with theirs(kind, dsn) as mine:
            name = kind.rpartition(" ")[0] if kind.startswith("sqlalchemy") else kind
            assert kind_of(mine.connection) is wanted[name]

    drive(kind, one_of_them)


def test_of_another_kind(dsn: str) -> None:
    """Refused by name: an address, a pool, an engine, another database, another driver."""
    with pytest.raises(TypeError, match=r"builtins\.str: pass one of .*django"):
        kind_of(dsn)
    engine = sqlalchemy.create_engine("sqlite://")
    with pytest.raises(TypeError, match="Engine"):
        kind_of(engine)
    with engine.connect() as lite, pytest.raises(TypeError, match="driven by pysqlite: use psycopg"):
        ask_on_blocking(lite, one())
    engine.dispose()
    with django_at(dsn, "other"):
        connections.databases.update(
            connections.configure_settings({"default": {}, "lite": {"ENGINE": "django.db.backends.sqlite3"}})
        )
        with pytest.raises(TypeError, match="of sqlite"):
            kind_of(connections["lite"])
        del connections["lite"]
        with pytest.raises(TypeError, match="no database"):
            kind_of(ConnectionProxy({"default": object()}, "default"))


def test_at_the_wrong_door(dsn: str) -> None:
    """What another loop drives is refused by a name of the right door, and nothing is sent."""

    async def on_asyncio() -> None:
        async with await psycopg.AsyncConnection.connect(dsn) as mine:
            with pytest.raises(TypeError, match=r"pgnotifyq\.aio\.open_client"):
                ask_on_blocking(mine, one())

    async def on_trio() -> None:
        async with open_connection(dsn) as mine:
            with pytest.raises(TypeError, match=r"pgnotifyq\.open_client"):
                ask_on_blocking(mine, one())

            async def elsewhere() -> None:
                with pytest.raises(TypeError, match=r"pgnotifyq\.open_client"):
                    await ask_on(mine, one())

            await trio.to_thread.run_sync(asyncio.run, elsewhere())
        engine = create_async_engine(url(dsn, "asyncpg"), poolclass=NullPool)
        with pytest.raises(TypeError, match=r"pgnotifyq\.aio\.open_client"):
            await ask_on(AsyncSession(engine), one())

    asyncio.run(on_asyncio())
    trio.run(on_trio)
    assert ids_in(dsn) == set()


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_inner_side_of_what_is_async(driver: str, dsn: str) -> None:
    """Refused by the name of what to pass, and the session is as it was; within `run_sync` it is taken."""

    async def main() -> None:
        engine = create_async_engine(url(dsn, driver), poolclass=NullPool)
        async with AsyncSession(engine) as session, session.begin():
            with pytest.raises(TypeError, match="pass the AsyncSession itself"):
                await ask_on(session.sync_session, one())
            connection = (await session.connection()).sync_connection
            assert connection is not None
            with pytest.raises(TypeError, match="pass the AsyncConnection itself"):
                await ask_on(connection, one())
            kept = await session.run_sync(lambda inner: ask_on_blocking(inner, one()))
        assert ids_in(dsn) == {kept}

    asyncio.run(main())


@pytest.mark.parametrize("run", [asyncio.run, trio.run])
def test_blocking_one_in_a_loop(run: Any, dsn: str) -> None:
    """It is taken; the loop waits for it. Django's is not, on asyncio: Django refuses."""

    async def main() -> None:
        with psycopg.connect(dsn) as mine:
            await ask_on(mine, one())
        engine = sqlalchemy.create_engine(url(dsn, "psycopg"), poolclass=NullPool)
        with orm.Session(engine) as session, session.begin():
            await ask_on(session, one())
        if run is trio.run:
            await ask_on(connections["default"], one())
        else:
            with pytest.raises(SynchronousOnlyOperation):
                await ask_on(connections["default"], one())

    with django_at(dsn, "default"):
        run(main if run is trio.run else main())
    assert len(ids_in(dsn)) == (3 if run is trio.run else 2)


def test_nothing_is_imported_to_recognise() -> None:
    """What is not installed is not asked for."""
    program = (
        "import sys, pgnotifyq.wire.callers, pgnotifyq.wire.kinds as c\n"
        "try: c.kind_of(object())\n"
        "except TypeError: print(sorted({'asyncpg', 'sqlalchemy', 'django', 'psycopg2'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


@every_kind
def test_nothing_of_its_session_is_changed(kind: str, dsn: str) -> None:
    """Settings are what they were, and nothing is prepared but by pgnotifyq's own connection, and asyncpg's for its cache, as ever."""

    async def story() -> None:
        async with theirs(kind, dsn) as mine, mine.transaction():
            await mine.execute(f"create temp table before as {SESSION}")
            await mine.ask(one(unique_key="k"))
            await mine.ask(bulk.enqueue_many(SCHEMA, [NewJob(job_type="noop")] * MANY))
            await mine.execute(f"create temp table after as {SESSION}")
            differ = "select from before join after using (name) where before.value is distinct from after.value"
            if "asyncpg" in kind or kind == "trio":
                differ += " and name <> 'prepared'"
            await mine.execute(f"do $$begin assert not exists ({differ}); end$$")

    drive(kind, story)


SESSION = "select name, setting as value from pg_settings union all select 'prepared', count(*)::text from pg_prepared_statements"


def test_objects_of_the_drivers_are_not_changed(dsn: str) -> None:
    """psycopg's factories and autocommit, psycopg2's types, are as they were, and none of them is used."""

    def no_rows(cursor: Any) -> Any:
        raise AssertionError("a row factory of the caller's was asked")

    with psycopg.connect(dsn, row_factory=no_rows) as mine:
        psycopg.Cursor(mine, row_factory=psycopg.rows.tuple_row).execute("select 1")
        before = dict(vars(mine))
        ask_on_blocking(mine, one())
        ask_on_blocking(mine, bulk.enqueue_many(SCHEMA, [NewJob(job_type="noop", unique_key="k")] * MANY))
        assert {name for name, value in vars(mine).items() if before.get(name) is not value} == set()


def test_cursors_and_types_of_psycopg2(dsn: str) -> None:
    """A cursor factory of the owner's is not asked, and what the connection makes of a column is what it was."""
    mine = psycopg2.connect(dsn, cursor_factory=psycopg2.extras.RealDictCursor)
    with mine:
        made = [ask_on_blocking(mine, one()), ask_on_blocking(mine, one(unique_key="k"))]
        with mine.cursor() as cursor:
            cursor.execute("select 1::bigint as one, true as yes")
            assert dict(cursor.fetchone()) == {"one": 1, "yes": True}
    mine.close()
    assert ids_in(dsn) == set(made)


def test_codecs_of_the_callers(dsn: str) -> None:
    """asyncpg's connection may have codecs of its owner's: ids are ids all the same."""

    async def main() -> None:
        mine = await asyncpg.connect(**parts_of(dsn))
        await mine.set_type_codec("uuid", schema="pg_catalog", encoder=str, decoder=lambda text: f"{{{text}}}")
        await mine.set_type_codec("jsonb", schema="pg_catalog", encoder=json.dumps, decoder=json.loads)
        await mine.set_type_codec("int8", schema="pg_catalog", encoder=str, decoder=str, format="text")
        async with mine.transaction():
            made = [await ask_on(mine, one(payload={"a": [1, None]})), await ask_on(mine, one(unique_key="k"))]
            made += await ask_on(mine, bulk.enqueue_many(SCHEMA, [NewJob(job_type="noop")] * 3))
            job = await ask_on(mine, look.get_job(SCHEMA, made[0]))
        assert job is not None and job.payload == {"a": [1, None]}
        assert all(isinstance(job_id, uuid.UUID) for job_id in made)
        assert ids_in(dsn) == set(made)
        await mine.close()

    asyncio.run(main())


# Every verb, on the drivers that nobody else asks


@pytest.mark.parametrize("kind", ["psycopg async", "asyncpg", "psycopg2", "sqlalchemy connection psycopg", "django"])
def test_every_verb(kind: str, dsn: str) -> None:
    """What the ledger can ask is answered as it is on trio."""

    async def expected() -> list[Any]:
        async with open_connection(dsn) as connection:
            return await tell_on_trio(connection)

    told: list[Any] = []

    async def tell() -> None:
        async with theirs(kind, dsn, autocommit=True) as mine:
            plainly, answer, each = Plainly(), None, story()
            while (verb := _next(each, answer)) is not None:
                try:
                    answer = await mine.ask(verb)
                except Exception as error:  # noqa: BLE001  # each driver's own
                    answer = None
                    told.append(
                        (name_of(verb), plainly.raised(error if isinstance(error, PgnotifyqError) else in_psycopgs_words(error)))
                    )
                else:
                    told.append((name_of(verb), _plain(verb, answer, plainly)))

    on_trio = trio.run(expected)
    empty(dsn)
    drive(kind, tell)
    assert told == on_trio


# Errors


@pytest.fixture
def latin_dsn(server_dsn: str) -> Iterator[str]:
    """A database of ours in LATIN1."""
    name = sql.Identifier(f"latin_{uuid.uuid4().hex[:12]}")
    with psycopg.connect(server_dsn, autocommit=True) as server:
        server.execute(sql.SQL("create database {} encoding 'LATIN1' template template0 locale 'C'").format(name))
        try:
            dsn = make_conninfo(server_dsn, dbname=name.as_string(None).strip('"'))

            async def make() -> None:
                async with open_connection(dsn) as connection:
                    await migrate(connection)

            trio.run(make)
            yield dsn
        finally:
            server.execute(sql.SQL("drop database {} with (force)").format(name))


def test_refused_by_the_database(latin_dsn: str) -> None:
    """A payload with a character that the database's encoding lacks is refused as such; the transaction goes on, on every kind."""
    for kind in KINDS:

        async def story(kind: str = kind) -> None:
            async with theirs(kind, latin_dsn) as mine:
                with suppress(Undo):
                    async with mine.transaction():
                        for _ in range(2):
                            with pytest.raises(InvalidPayload, match="encoding"):
                                await mine.ask(one(payload=WIDE))
                        with pytest.raises(InvalidPayload, match="encoding"):
                            await mine.ask(bulk.enqueue_many(SCHEMA, [NewJob(job_type="noop", payload=WIDE)] * MANY))
                        raise Undo
                async with mine.transaction():
                    with pytest.raises(InvalidPayload, match="encoding"):
                        await mine.ask(one(payload=WIDE))
                    made = await mine.ask(one(payload="é"))
                assert made in ids_in(latin_dsn)

        drive(kind, story)
    assert len(ids_in(latin_dsn)) == len(KINDS)


@every_kind
def test_schema_that_is_not_there(kind: str, dsn: str) -> None:
    """What PostgreSQL says means the same whoever carries it; the library's own error is its cause."""

    async def story() -> None:
        async with theirs(kind, dsn) as mine:
            with suppress(Undo):
                async with mine.transaction():
                    with pytest.raises(SchemaMissing, match="elsewhere") as missing:
                        await mine.ask(enqueue.enqueue("elsewhere", NewJob(job_type="noop")))
                    assert sqlstate_of(missing.value) in {"3F000", "42P01"}
                    raise Undo

    drive(kind, story)


@every_kind
def test_what_a_trigger_says(kind: str, dsn: str) -> None:
    """An error that is not ours is the library's own: a program catches what it catches elsewhere."""
    families: dict[str, type[Exception]] = {"django": DjangoError, "asyncpg": asyncpg.PostgresError, "psycopg": psycopg.Error}

    async def story() -> None:
        async with theirs(kind, dsn, autocommit=True) as mine:
            await mine.execute(
                "create function refuse() returns trigger language plpgsql as $$begin"
                " raise 'no' using errcode = 'XX123', hint = 'try'; end$$;"
            )
            await mine.execute("create trigger refuse before insert on pgnotifyq.jobs execute function refuse()")
            with pytest.raises(Exception, match="no") as said:
                await mine.ask(one())
            assert sqlstate_of(said.value) == "XX123"
            assert not isinstance(said.value, PgnotifyqError)
            family = next((error for name, error in families.items() if name in kind and "psycopg2" not in kind), Exception)
            assert isinstance(said.value, family)

    drive(kind, story)


def test_session_whose_flush_has_failed(dsn: str) -> None:
    """SQLAlchemy has rolled back on its own, and wants to be told: so does ours."""
    base = orm.declarative_base()

    class Thing(base):  # type: ignore[misc,valid-type]
        __tablename__ = "things"
        id = sqlalchemy.Column(sqlalchemy.Integer, primary_key=True)

    engine = sqlalchemy.create_engine(url(dsn, "psycopg"), poolclass=NullPool)
    base.metadata.create_all(engine)
    with orm.Session(engine) as session:
        session.add(Thing(id=1))
        session.commit()
    with orm.Session(engine) as session:
        session.add(Thing(id=1))
        with pytest.raises(sqlalchemy.exc.IntegrityError):
            session.flush()
        with pytest.raises(TransactionAborted):
            ask_on_blocking(session, one())
        session.rollback()
        made = ask_on_blocking(session, one())
        session.commit()
    assert ids_in(dsn) == {made}


def test_connection_that_was_lost(dsn: str) -> None:
    """SQLAlchemy wants the transaction that went with it rolled back first: so does ours."""
    engine = sqlalchemy.create_engine(url(dsn, "psycopg"))
    with engine.connect() as mine:
        ask_on_blocking(mine, one())
        mine.invalidate()
        with pytest.raises(TransactionAborted):
            ask_on_blocking(mine, one())
        mine.rollback()
        made = ask_on_blocking(mine, one())
        mine.commit()
    engine.dispose()
    assert ids_in(dsn) == {made}


def test_block_of_djangos_that_is_to_be_rolled_back(dsn: str) -> None:
    """Django lets no statement into it, though PostgreSQL would: so does ours."""
    with django_at(dsn, "default"):
        with transaction.atomic():
            ask_on_blocking(connections["default"], one())
            transaction.set_rollback(True)
            with pytest.raises(TransactionAborted):
                ask_on_blocking(connections["default"], one())
        made = ask_on_blocking(connections["default"], one())
    assert ids_in(dsn) == {made}


def test_cancelled_on_asyncio(dsn: str) -> None:
    """A task that is cancelled while its enqueue waits enqueues nothing; once rolled back the connection is as good as before."""

    async def story(kind: str) -> None:
        async with theirs(kind, dsn) as mine:
            await mine.execute("set application_name = 'mine'")
            with suppress(Undo):
                async with mine.transaction():
                    raise Undo
            with psycopg.connect(dsn) as holder:
                holder.execute("lock table pgnotifyq.jobs in exclusive mode")
                with suppress(asyncio.CancelledError):
                    async with mine.transaction():
                        task = asyncio.create_task(waits(mine))
                        await asyncio.to_thread(trio.run, until, dsn, BLOCKED)
                        task.cancel()
                        await task
                holder.rollback()
            async with mine.transaction():
                made = await mine.ask(one())
            assert ids_in(dsn) == {made}
            async with mine.transaction():
                await mine.execute("delete from pgnotifyq.jobs")

    async def waits(mine: Theirs) -> None:
        await mine.ask(bulk.enqueue_many(SCHEMA, [NewJob(job_type="noop")] * MANY))

    for kind in KINDS:
        if "async" in kind and "scoped" not in kind:  # which gives another task another session
            asyncio.run(story(kind))


BLOCKED = "exists (select from pg_locks join pg_stat_activity using (pid) where not granted and datname = current_database())"


def test_savepoint_without_a_connection(dsn: str) -> None:
    """It would say nothing: refused, and nothing is enqueued."""
    with pgnotifyq.sync.open_client(dsn) as client:
        with pytest.raises(TypeError, match="goes with connection="):
            client.enqueue("noop", savepoint=True)
        with pytest.raises(TypeError, match="goes with connection="):
            client.enqueue_many([{"job_type": "noop"}], savepoint=True)
    assert ids_in(dsn) == set()


def test_savepoint_in_a_pipeline(dsn: str) -> None:
    """An error aborts a pipeline as a whole, whatever is in it: refused before anything is sent."""
    with psycopg.connect(dsn) as mine, mine.pipeline():
        with pytest.raises(TypeError, match="in a pipeline"):
            ask_on_blocking(mine, one(), savepoint=True)
        kept = ask_on_blocking(mine, one())
    assert ids_in(dsn) == {kept}


async def test_in_a_pipeline(dsn: str, connection: Connection[Any]) -> None:
    """psycopg's pipelines take enqueues among other statements; what would be copied goes in statements."""
    async with connection.pipeline():
        made = [
            await ask_on(connection, one()),
            *await ask_on(connection, bulk.enqueue_many(SCHEMA, [NewJob(job_type="noop")] * MANY)),
        ]
    with psycopg.connect(dsn) as mine, mine.pipeline():
        made += [
            ask_on_blocking(mine, one()),
            *ask_on_blocking(mine, bulk.enqueue_many(SCHEMA, [NewJob(job_type="noop")] * MANY)),
        ]

    async def on_asyncio() -> None:
        async with await psycopg.AsyncConnection.connect(dsn) as mine, mine.pipeline():
            made.append(await ask_on(mine, one()))
            made.extend(await ask_on(mine, bulk.enqueue_many(SCHEMA, [NewJob(job_type="noop")] * MANY)))

    await trio.to_thread.run_sync(lambda: asyncio.run(on_asyncio()))
    assert ids_in(dsn) == set(made)
