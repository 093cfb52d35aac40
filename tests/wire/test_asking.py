"""Statements that go straight through libpq do what a cursor would do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from psycopg import errors
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row

from pgnotifyq.ledger.ask import Ask, Copy, Plan, Script, array, nothing
from pgnotifyq.ledger.columns import rows
from pgnotifyq.wire import asking
from pgnotifyq.wire.asking import ask, ask_blocking
from pgnotifyq.wire.connection import Connection, open_connection
from pgnotifyq.wire.notifications import listen, take_notifications_nowait

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pgnotifyq.ledger.ask import Steps

Link = Connection[Any]
PREPARED = "select count(*) from pg_prepared_statements where name like 'pgnotifyq%'"


async def texts(connection: Link, statement: str, *values: str | None) -> list[list[str | None]]:
    """Run a statement whose columns are texts."""
    result = await asking.run(connection, statement.encode(), values)
    raw = [[result.get_value(row, column) for column in range(result.nfields)] for row in range(result.ntuples)]
    return [[None if each is None else each.decode(connection.info.encoding) for each in row] for row in raw]


async def prepared(connection: Link) -> int:
    """Return how many statements the session has prepared for us."""
    cursor = await connection.execute(PREPARED.encode(), prepare=False)
    row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


@pytest.fixture
async def preparing(blank_dsn: str) -> Any:
    """Give a connection that prepares at once."""
    async with open_connection(blank_dsn, prepare_threshold=0) as connection:
        yield connection


async def test_values_and_rows(bare: Link) -> None:
    """Values arrive as they are, null and empty apart; several rows come back."""
    assert await texts(bare, "select $1::text, $2::text, $3::text", 'it\'s; \\ "so" é', None, "") == [
        ['it\'s; \\ "so" é', None, ""]
    ]
    assert await texts(bare, "select n::text from generate_series($1::integer, 3) as n", "1") == [["1"], ["2"], ["3"]]
    assert await texts(bare, "select 'x' where $1::boolean", "False") == []


# What is quoted, what is read as null without quotes, what separates.
hostile = st.text(st.sampled_from("ab\\\",{} \n\tNUL()é;'"), max_size=8) | st.sampled_from(["NULL", "null", "", "{}"])


@given(st.lists(st.none() | hostile, max_size=6))
def test_arrays(server_dsn: str, values: Sequence[str | None]) -> None:
    """The server reads the array that was written."""
    with psycopg.connect(server_dsn, autocommit=True) as connection:
        row = connection.execute("select %s::text[]", (array(values),)).fetchone()
    assert row == (list(values),)


async def test_nul(bare: Link) -> None:
    """libpq would cut a text at its NUL; it is refused, and the connection is in order."""
    with pytest.raises(psycopg.DataError, match="NUL"):
        await texts(bare, "select $1::text", "cut\0here")
    with pytest.raises(psycopg.DataError, match="NUL"):
        await texts(bare, "select cardinality($1::text[])", array(["cut\0here", "b"]))
    assert await texts(bare, "select $1::text", "whole") == [["whole"]]


async def test_errors(preparing: Link) -> None:
    """What the server refuses is raised as psycopg's error, with its details; the connection is in order."""
    with pytest.raises(errors.UndefinedFunction, match="nowhere"):
        await texts(preparing, "select nowhere($1::text)", "x")
    with pytest.raises(errors.InvalidTextRepresentation) as caught:
        await texts(preparing, "select $1::integer::text", "é")
    assert caught.value.diag.message_primary == 'invalid input syntax for type integer: "é"'
    assert await texts(preparing, "select $1::integer::text", "7") == [["7"]]


async def test_what_is_prepared(preparing: Link, bare: Link) -> None:
    """A statement is prepared once, in a session that prepares, and not within a longer transaction."""
    for _ in range(3):
        await texts(preparing, "select $1::text", "x")
    assert await prepared(preparing) == 1
    async with preparing.transaction():
        await texts(preparing, "select $1::text || 'y'", "x")
    assert await prepared(preparing) == 1
    await texts(bare, "select $1::text", "x")
    assert await prepared(bare) == 0


async def test_statement_that_the_session_has_lost(preparing: Link) -> None:
    """As behind a pooler: it is run all the same, alone or in a transaction, and from then on nothing is prepared."""
    for statement in ("select $1::text", "select $1::text || ''"):
        await texts(preparing, statement, "x")
    await preparing.execute("deallocate all", prepare=False)
    async with preparing.transaction():
        assert await texts(preparing, "select $1::text", "in a transaction") == [["in a transaction"]]
    assert await texts(preparing, "select $1::text", "alone") == [["alone"]]
    assert await texts(preparing, "select $1::text || ''", "another") == [["another"]]
    assert await prepared(preparing) == 0


async def test_transaction_of_a_connection_that_is_not_in_autocommit(bare: Link, blank_dsn: str) -> None:
    """It begins one, as a cursor does."""
    await bare.execute("create table made (n integer)")
    async with open_connection(blank_dsn, autocommit=False) as connection:
        await texts(connection, "insert into made values ($1::integer) returning 'done'", "1")
        assert connection.pgconn.transaction_status == TransactionStatus.INTRANS
        await connection.rollback()
    assert await texts(bare, "select count(*)::text from made") == [["0"]]


async def test_cancel_in_mid_query(preparing: Link) -> None:
    """The server is asked to stop, and the connection is in order; what was not begun did not happen."""
    with trio.move_on_after(0.1) as scope:
        await texts(preparing, "select pg_sleep($1::integer)::text", "60")
    assert scope.cancelled_caught
    assert await texts(preparing, "select $1::text", "alive") == [["alive"]]
    with trio.CancelScope() as scope:
        scope.cancel()
        await texts(preparing, "select set_config('a.b', $1::text, false)", "done")
    assert await texts(preparing, "select current_setting('a.b', true)") != [["done"]]


async def test_notification_that_comes_with_an_answer(bare: Link) -> None:
    """It is kept for whoever waits for notifications."""
    await listen(bare, "news")
    await texts(bare, "select pg_notify('news', $1::text)::text", "heard")
    assert [note.payload for note in take_notifications_nowait(bare)] == ["heard"]


async def test_other_encoding(blank_dsn: str) -> None:
    """Text goes and comes in the client's encoding."""
    async with open_connection(blank_dsn, client_encoding="latin1") as connection:
        assert await texts(connection, "select $1::text, length($1::text)::text", "é") == [["é", "1"]]


async def test_closed_connection(blank_dsn: str) -> None:
    """It is told as a cursor tells it."""
    async with open_connection(blank_dsn) as connection:
        await connection.close()
        with pytest.raises(psycopg.OperationalError, match="closed"):
            await texts(connection, "select $1::text", "x")


def failing(told: list[str]) -> Plan[str]:
    """Return a plan that makes a table, fails, and goes on."""

    def steps() -> Steps[str]:
        yield Script(b"create table half (n integer); insert into half values (1)")
        try:
            yield Ask(b"select nowhere()", (), nothing)
        except errors.UndefinedFunction:
            told.append("was told")
        yield Ask(b"select nowhere()", (), nothing, lambda error: told.append(type(error).__name__))
        return "done"

    return Plan(steps)


async def test_plan_is_told_of_errors(bare: Link, blank_dsn: str) -> None:
    """An error is thrown into the plan, which may go on; a verb that says what an error means is answered with that."""
    told: list[str] = []
    assert await ask(bare, failing(told)) == "done"
    await bare.execute("drop table half")
    with psycopg.connect(blank_dsn, autocommit=True) as blocking:
        assert ask_blocking(blocking, failing(told)) == "done"
    assert told == ["was told", "UndefinedFunction"] * 2


async def test_plan_that_is_whole(bare: Link, blank_dsn: str) -> None:
    """It is undone as a whole, and a transaction around it goes on."""

    def steps() -> Steps[None]:
        yield Script(b"create table half (n integer)")
        yield Copy(b"copy half from stdin", ["1\n", "no number\n"])

    whole = Plan(steps, is_whole=True)
    async with bare.transaction():
        with pytest.raises(errors.InvalidTextRepresentation):
            await ask(bare, whole)
        assert await texts(bare, "select to_regclass('half')::text") == [[None]]
    with psycopg.connect(blank_dsn) as blocking:
        with pytest.raises(errors.InvalidTextRepresentation):
            ask_blocking(blocking, whole)
        assert blocking.execute("select to_regclass('half')").fetchone() == (None,)


async def test_in_a_pipeline_of_its_owner(bare: Link, blank_dsn: str) -> None:
    """A verb is answered there too, behind what was sent before it."""
    verb = Ask(b"select $1::integer + 1, $2::text, $3::text[]", ("6", None, '{"a, b"}'), rows)
    async with bare.pipeline():
        await bare.execute("select 1")
        assert await ask(bare, verb) == [(7, None, ["a, b"])]
    with psycopg.connect(blank_dsn) as blocking, blocking.pipeline():
        blocking.execute("select 1")
        assert ask_blocking(blocking, verb) == [(7, None, ["a, b"])]


def test_blocking_connection_of_somebody_else(blank_dsn: str) -> None:
    """Neither its row factory nor its encoding matters, and what it is asked stands in its owner's transaction."""
    with psycopg.connect(blank_dsn, row_factory=dict_row, client_encoding="latin1") as connection:
        assert ask_blocking(connection, Ask(b"select $1::text, length($1::text)", ("é",), rows)) == [("é", 1)]
        assert connection.info.transaction_status == TransactionStatus.INTRANS
