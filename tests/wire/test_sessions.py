"""What is set in a session of ours, what is left as it is, and what is said again when the server refuses it."""

from __future__ import annotations

from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import trio
from psycopg import errors, sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import TransactionStatus

from pgnotifyq.model.errors import DatabaseUnreachable
from pgnotifyq.wire import asking
from pgnotifyq.wire.connection import Connection, open_connection
from pgnotifyq.wire.pool import open_pool
from pgnotifyq.wire.sessions import For
from tests.proxy import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

OURS = {For.CALLER, For.WORKER}
LENT = {For.HANDLER, *OURS}
BLOCKED = "exists (select from pg_stat_activity where application_name = %s and wait_event_type = 'Lock')"

# A setting, what people set it to, what a session of ours has instead, and which of them.
SETTINGS = [
    ("client_encoding", "latin1", "UTF8", set(For)),
    ("row_security", "off", "on", LENT),
    ("array_nulls", "off", "on", LENT),
    ("DateStyle", "SQL, DMY", "ISO, DMY", OURS),
    ("default_transaction_isolation", "serializable", "read committed", OURS),
    ("synchronous_commit", "off", "on", OURS),
    ("synchronous_commit", "remote_write", "remote_write", OURS),
    ("search_path", "public, pg_catalog", "pg_catalog, public, pg_catalog", OURS),
    ("search_path", "public", "public", OURS),
    ("statement_timeout", "1min", "0", {For.WORKER}),
    ("lock_timeout", "1min", "0", {For.WORKER}),
    ("idle_session_timeout", "1min", "0", {For.WORKER}),
    ("idle_in_transaction_session_timeout", "1min", "0", {For.WORKER}),
    ("jit", "on", "off", {For.WORKER}),
    ("TimeZone", "America/St_Johns", "America/St_Johns", set(For)),
    ("default_transaction_deferrable", "on", "on", set(For)),
]


@pytest.fixture
def given(blank_dsn: str) -> Iterator[Any]:
    """A function that gives the database a setting; and the database back as it was."""
    name = sql.Identifier(str(conninfo_to_dict(blank_dsn)["dbname"]))
    with psycopg.connect(blank_dsn, autocommit=True) as session:

        def give(setting: str, value: str) -> None:
            values = value.split(", ") if setting == "search_path" else [value]
            items = sql.SQL(", ").join(map(sql.Literal, values))
            session.execute(sql.SQL("alter database {} set {} = {}").format(name, sql.SQL(setting), items))

        yield give


async def shown(connection: Connection[Any], setting: str) -> str:
    """Return a session's value of a setting."""
    row = await (await connection.execute("select current_setting(%s)", (setting,))).fetchone()
    assert row is not None
    return str(row[0])


async def test_settings_of_the_database(blank_dsn: str, given: Any) -> None:
    """What our statements depend on is ours; the rest is theirs."""
    with psycopg.connect(blank_dsn) as session:
        is_there = session.info.server_version >= 170_000
    newer = [("transaction_timeout", "1min", "0", {For.WORKER})] if is_there else []
    for setting, value, ours, whose in [*SETTINGS, *newer]:
        given(setting, value)
        for used_for in For:
            async with open_connection(blank_dsn, used_for=used_for) as connection:
                found = await shown(connection, setting)
                assert found == (ours if used_for in whose else value), (setting, used_for)


async def test_session_after_discard_all(blank_dsn: str, given: Any) -> None:
    """It has its own settings again when it has entered again."""
    given("array_nulls", "off")
    async with open_connection(blank_dsn, used_for=For.HANDLER) as connection:
        await connection.execute("discard all")
        assert await shown(connection, "array_nulls") == "off"
        assert await connection.enter()
        assert (await shown(connection, "array_nulls"), await shown(connection, "client_encoding")) == ("on", "UTF8")


async def test_address_and_environment_say_another_encoding(blank_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts are UTF-8 all the same."""
    monkeypatch.setenv("PGCLIENTENCODING", "latin1")
    async with open_connection(make_conninfo(blank_dsn, client_encoding="latin1")) as connection:
        row = await (await connection.execute("select %s", ("日本",))).fetchone()
        assert row == ("日本",)


async def test_functions_that_stand_in_for_the_servers(blank_dsn: str, given: Any) -> None:
    """A search_path with pg_catalog at its end has functions and operators of another schema found first; not in our sessions."""
    with psycopg.connect(blank_dsn, autocommit=True) as session:
        session.execute("create function public.now() returns timestamptz language sql as $$ select 'epoch'::timestamptz $$")
        session.execute("create function public.differ(uuid, uuid) returns boolean language sql as 'select false'")
        session.execute("create operator public.= (leftarg = uuid, rightarg = uuid, function = public.differ)")
    given("search_path", "public, pg_catalog")
    look = "select extract(year from now())::integer, gen_random_uuid() = gen_random_uuid(), u = u from gen_random_uuid() as u"
    async with open_connection(blank_dsn, used_for=For.WORKER) as connection:
        row = await (await connection.execute(look)).fetchone()
        assert row is not None and row[0] > 2000 and row[1:] == (False, True)


async def test_session_that_cannot_write(blank_dsn: str, given: Any) -> None:
    """It is refused where somebody must write, and given to those who look; the address has the last word."""
    given("default_transaction_read_only", "on")
    for used_for in OURS:
        with pytest.raises(DatabaseUnreachable, match=r"read-only: a standby, or .*target_session_attrs=any"):
            async with open_connection(blank_dsn, used_for=used_for, must_write=True):
                pass
        async with open_connection(make_conninfo(blank_dsn, target_session_attrs="any"), used_for=used_for, must_write=True):
            pass
    async with open_connection(blank_dsn, used_for=For.CALLER) as connection:
        assert await shown(connection, "transaction_read_only") == "on"


@asynccontextmanager
async def held_row(dsn: str) -> AsyncIterator[psycopg.Connection]:
    """A row of `counter` that another transaction has changed and not committed."""
    with psycopg.connect(dsn) as other:
        other.execute("create table if not exists counter (n integer)")
        other.execute("insert into counter select 0 where not exists (select from counter)")
        other.commit()
        other.execute("update counter set n = n + 1")
        yield other


@pytest.mark.parametrize("by", ["direct", "cursor"])
@pytest.mark.parametrize("is_given", [True, False], ids=["serializable by the pooler's role", "read committed"])
async def test_statement_of_its_own_that_meets_another(blank_dsn: str, by: str, is_given: bool) -> None:
    """Where a session is serializable all the same, as behind a pooler, what the server has undone is said again."""
    async with (
        held_row(blank_dsn) as other,
        open_connection(blank_dsn, used_for=For.CALLER, application_name="second") as connection,
    ):
        if is_given:
            await connection.execute("set default_transaction_isolation = serializable")

        async def add() -> None:
            if by == "direct":
                await asking.run(connection, b"update counter set n = n + $1::integer", ["10"])
            else:
                await connection.execute("update counter set n = n + %s", (10,))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(add)
            await until(blank_dsn, BLOCKED, "second")
            other.commit()
        assert other.execute("select n from counter").fetchone() == (11,)


async def test_statement_of_a_longer_transaction_is_not_said_again(blank_dsn: str) -> None:
    """It is told; nor is anything said again for others than ourselves."""
    for used_for, is_long in ((For.CALLER, True), (For.ANYBODY, False)):
        async with (
            held_row(blank_dsn) as other,
            open_connection(blank_dsn, used_for=used_for, application_name="second") as connection,
        ):
            await connection.execute("set default_transaction_isolation = serializable")

            async def add(connection: Connection[Any] = connection, is_long: bool = is_long) -> None:
                async with connection.transaction() if is_long else nullcontext():
                    await connection.execute("update counter set n = n + 10")

            async def be_told(add: Any = add) -> None:
                with pytest.raises(errors.SerializationFailure):
                    await add()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(be_told)
                await until(blank_dsn, BLOCKED, "second")
                other.commit()


CHANGES = [
    ("create or replace function told() returns integer language sql as 'select 1'", "select * from told()"),
    (
        "drop function told; create function told(out a integer, out b integer) language sql as 'select 1, 2'",
        "select * from told()",
    ),
]


@pytest.mark.parametrize("by", ["direct", "cursor"])
async def test_function_that_gets_a_column(blank_dsn: str, by: str) -> None:
    """Its statement is prepared anew, once, and what else was prepared goes on; so does preparing."""
    async with open_connection(blank_dsn, used_for=For.WORKER, prepare_threshold=0) as connection:

        async def columns(statement: str) -> int:
            if by == "direct":
                return (await asking.run(connection, statement.encode(), [])).nfields
            return len((await connection.execute(statement)).description or ())

        for count, (change, look) in enumerate(CHANGES, 1):
            with psycopg.connect(blank_dsn, autocommit=True) as other:
                other.execute(change.encode())
            assert await columns(look) == count
            assert await columns("select 1") == 1
            await connection.execute("select 2")
            await asking.run(connection, b"select 3", [])
        assert (await columns(look), await columns("select 1")) == (2, 1)
        assert connection.prepare_threshold == 0


async def test_function_that_gets_a_column_in_a_transaction(blank_dsn: str) -> None:
    """A statement of ours is not prepared in one, so nothing is lost; one that a user has prepared is told as it is."""
    async with open_connection(blank_dsn, used_for=For.CALLER, prepare_threshold=0) as connection:
        with psycopg.connect(blank_dsn, autocommit=True) as other:
            other.execute(CHANGES[0][0].encode())
            await asking.run(connection, CHANGES[0][1].encode(), [])
            await connection.execute(CHANGES[0][1])
            other.execute(CHANGES[1][0].encode())
        async with connection.transaction():
            assert (await asking.run(connection, CHANGES[0][1].encode(), [])).nfields == 2
        with pytest.raises(errors.FeatureNotSupported):
            async with connection.transaction():
                await connection.execute(CHANGES[0][1])
        assert (await connection.execute(CHANGES[0][1])).description is not None


async def test_pool_of_a_server_that_refuses_to_write(blank_dsn: str, given: Any) -> None:
    """A session that has said so is not lent again, also where its address admits it; one that can write is opened."""
    given("default_transaction_read_only", "on")
    dsn = make_conninfo(blank_dsn, target_session_attrs="any")
    async with open_pool(dsn, size_max=1, used_for=For.CALLER) as pool:
        async with pool.connection() as connection:
            with pytest.raises(errors.ReadOnlySqlTransaction):
                await connection.execute("create table t ()")
            assert connection.info.transaction_status == TransactionStatus.IDLE
        given("default_transaction_read_only", "off")
        async with pool.connection() as connection:
            await connection.execute("create table t ()")


async def test_session_lent_again(blank_dsn: str, given: Any) -> None:
    """What a pool discards after a handler is not what it had set for the next one."""
    given("array_nulls", "off")
    async with open_pool(blank_dsn, size_max=1, is_for_others=True, used_for=For.HANDLER) as pool:
        pids = set()
        for _ in range(3):
            async with pool.connection() as connection:
                pids.add(connection.info.backend_pid)
                assert await shown(connection, "array_nulls") == "on"
        assert len(pids) == 1
