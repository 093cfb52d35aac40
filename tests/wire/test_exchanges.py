"""What psycopg can do, it can do under trio."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

import psycopg
import pytest
import trio
import trio.testing

from pgnotifyq.wire.connection import Cursor, open_connection

if TYPE_CHECKING:
    from psycopg.rows import TupleRow

    from pgnotifyq.wire.connection import Connection

# Has the server forget what was prepared, unseen by psycopg: as when a pooler has gone over to another backend.
FORGET = "do $$ begin execute 'deallocate all'; end $$"
MANY = 20_000  # enough to fill the socket's buffers


async def count(connection: Connection[TupleRow]) -> int:
    """Return the number of rows in the test's table."""
    row = await (await connection.execute("select count(*) from numbers")).fetchone()
    assert row is not None
    return int(row[0])


@pytest.fixture
async def numbers(bare: Connection[TupleRow]) -> Connection[TupleRow]:
    """Give a connection with a table of numbers."""
    await bare.execute("create table numbers (n int primary key)")
    return bare


async def test_error_in_a_statement(bare: Connection[TupleRow]) -> None:
    """An error of the server is psycopg's, and the connection stays usable."""
    with pytest.raises(psycopg.errors.DivisionByZero):
        await bare.execute("select 1/0")
    assert await (await bare.execute("select %s::int", (3,), binary=True)).fetchone() == (3,)


async def test_many_rows_at_once(numbers: Connection[TupleRow]) -> None:
    """`executemany` sends and reads at the same time, so large batches do not lock up."""
    async with numbers.cursor() as cursor:
        await cursor.executemany("insert into numbers values (%s)", [(n,) for n in range(MANY)])
    assert await count(numbers) == MANY


async def test_large_parameter_and_answer(bare: Connection[TupleRow]) -> None:
    """A statement larger than the socket's buffers arrives whole, and so does its answer."""
    text = "x" * 20_000_000
    row = await (await bare.execute("select %s::text", (text,))).fetchone()
    assert row is not None
    assert len(row[0]) == len(text)


async def test_pipeline(bare: Connection[TupleRow]) -> None:
    """Statements in a pipeline are answered in order."""
    async with bare.pipeline():
        cursors = [await bare.execute("select %s::int", (n,)) for n in range(100)]
    assert [await cursor.fetchone() for cursor in cursors] == [(n,) for n in range(100)]


async def test_error_in_a_pipeline(bare: Connection[TupleRow]) -> None:
    """An error in a pipeline is raised, and the connection has left the pipeline."""
    with pytest.raises(psycopg.errors.DivisionByZero):
        async with bare.pipeline():
            await bare.execute("select 1/0")
    assert await (await bare.execute("select 1")).fetchone() == (1,)


async def test_transaction_in_a_pipeline(numbers: Connection[TupleRow]) -> None:
    """A transaction in a pipeline commits."""
    async with numbers.pipeline(), numbers.transaction():
        await numbers.execute("insert into numbers values (1)")
    assert await count(numbers) == 1


async def test_copy_in_and_out(numbers: Connection[TupleRow]) -> None:
    """COPY works in both directions."""
    async with numbers.cursor() as cursor:
        async with cursor.copy("copy numbers from stdin") as copy:
            for n in range(MANY):
                await copy.write_row((n,))
        assert cursor.rowcount == MANY
        async with cursor.copy("copy (select n from numbers order by n) to stdout") as copy:
            rows = [row async for row in copy.rows()]
    assert rows == [(str(n),) for n in range(MANY)]


async def test_error_in_a_copy(numbers: Connection[TupleRow]) -> None:
    """A block that fails takes its COPY back."""

    async def copy_and_fail() -> None:
        async with numbers.cursor() as cursor, cursor.copy("copy numbers from stdin") as copy:
            await copy.write_row((1,))
            raise ValueError

    with pytest.raises(ValueError):
        await copy_and_fail()
    assert await count(numbers) == 0


async def test_stream(bare: Connection[TupleRow]) -> None:
    """Rows are streamed, also when the stream is left early."""
    stream = Cursor(bare).stream("select generate_series(1, 100000)")
    async with aclosing(stream) as rows:
        async for row in rows:
            assert row == (1,)
            break
    assert await (await bare.execute("select 1")).fetchone() == (1,)


async def test_nested_transactions(numbers: Connection[TupleRow]) -> None:
    """An inner block that fails takes back its own work only."""

    async def insert_and_fail() -> None:
        async with numbers.transaction():
            await numbers.execute("insert into numbers values (2)")
            raise ValueError

    async with numbers.transaction():
        await numbers.execute("insert into numbers values (1)")
        with pytest.raises(ValueError):
            await insert_and_fail()
    assert await (await numbers.execute("select n from numbers")).fetchall() == [(1,)]


async def test_rollback_asked_for(numbers: Connection[TupleRow]) -> None:
    """`psycopg.Rollback` ends the block silently."""
    async with numbers.transaction():
        await numbers.execute("insert into numbers values (1)")
        raise psycopg.Rollback
    assert await count(numbers) == 0  # type: ignore[unreachable]  # the block swallows it, which mypy cannot know


async def test_two_tasks_on_one_connection(bare: Connection[TupleRow]) -> None:
    """Statements of several tasks take turns."""
    answers: list[object] = []

    async def ask(n: int) -> None:
        answers.append(await (await bare.execute("select %s::int, pg_sleep(0.01)", (n,))).fetchone())

    async with trio.open_nursery() as nursery:
        for n in range(5):
            nursery.start_soon(ask, n)
    assert len(answers) == 5


async def test_long_copy_lets_others_run(numbers: Connection[TupleRow], nursery: trio.Nursery) -> None:
    """A COPY whose socket is always ready does not starve the other tasks."""
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    nursery.start_soon(take_turns)
    before = turns
    async with numbers.cursor() as cursor, cursor.copy("copy numbers from stdin") as copy:
        for n in range(100_000):
            await copy.write_row((n,))
    assert turns - before > 5
    nursery.cancel_scope.cancel()


async def test_closed_by_another_task(bare: Connection[TupleRow]) -> None:
    """Closing wakes the task that waits on the connection, with an error."""

    async def sleep_in_server() -> None:
        with pytest.raises(psycopg.OperationalError, match="closed"):
            await bare.execute("select pg_sleep(60)")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(sleep_in_server)
        await trio.testing.wait_all_tasks_blocked(0.05)
        await bare.close()


async def test_prepared_statement_that_a_pooler_lost(blank_dsn: str) -> None:
    """Outside of a transaction the statement is sent again without preparing; inside, the caller is told."""
    async with open_connection(blank_dsn, prepare_threshold=0) as connection:
        for _ in range(2):
            assert await (await connection.execute("select %s::int", (1,))).fetchall() == [(1,)]
        await connection.execute(FORGET, prepare=False)
        assert await (await connection.execute("select %s::int", (2,))).fetchall() == [(2,)]
        assert connection.prepare_threshold is None

    async with open_connection(blank_dsn, prepare_threshold=0) as connection:
        await connection.execute("select %s::int", (1,))
        async with connection.transaction(force_rollback=True):
            await connection.execute(FORGET, prepare=False)
            with pytest.raises(psycopg.errors.InvalidSqlStatementName):
                await connection.execute("select %s::int", (2,))
