"""A cancel in the middle of anything leaves a connection that is in order, or closed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from psycopg import pq

from pgnotifyq.wire import connection as wire
from pgnotifyq.wire.connection import open_connection
from tests.proxy import Proxy, until

if TYPE_CHECKING:
    from psycopg.rows import TupleRow

    from pgnotifyq.wire.connection import Connection


RUNNING = "exists (select from pg_stat_activity where pid = %s and state = 'active' and query like '%%pg_sleep%%')"
NOT_RUNNING = f"not {RUNNING}"
BOUND_SECONDS = wire.INTERRUPT_SECONDS + 3  # the bound itself, and a slow machine


def assert_in_order(connection: Connection[TupleRow]) -> None:
    """Check that the connection is open and outside of everything."""
    assert not connection.closed
    assert connection.pgconn.transaction_status == pq.TransactionStatus.IDLE
    assert connection.pgconn.pipeline_status == pq.PipelineStatus.OFF
    assert not connection.lock.locked()


async def cancel_when_running(dsn: str, pid: int, scope: trio.CancelScope) -> None:
    """Cancel `scope` as soon as the server runs the statement."""
    await until(dsn, RUNNING, pid)
    scope.cancel()


async def test_in_the_middle_of_a_query(bare: Connection[TupleRow], blank_dsn: str, nursery: trio.Nursery) -> None:
    """The server stops the query, and the connection is usable right away."""
    pid = bare.info.backend_pid
    with trio.fail_after(BOUND_SECONDS), trio.CancelScope() as scope:
        nursery.start_soon(cancel_when_running, blank_dsn, pid, scope)
        await bare.execute("select pg_sleep(60)")
    assert scope.cancelled_caught
    assert_in_order(bare)
    assert await (await bare.execute("select 1")).fetchone() == (1,)
    await until(blank_dsn, NOT_RUNNING, pid)


async def test_before_the_query(bare: Connection[TupleRow]) -> None:
    """A cancel that is due already lets nothing begin."""
    await bare.execute("create table t ()")
    with trio.CancelScope() as scope:
        scope.cancel()
        await bare.execute("drop table t")
    assert scope.cancelled_caught
    assert await (await bare.execute("select to_regclass('t')::text")).fetchone() == ("t",)


async def test_query_between_prepare_and_execute(bare: Connection[TupleRow]) -> None:
    """A cancel that hits the first of an exchange's statements is asked for again at the second."""
    await bare.set_autocommit(False)
    with trio.fail_after(BOUND_SECONDS), trio.move_on_after(0) as scope:
        await bare.execute("select pg_sleep(60)")
    assert scope.cancelled_caught
    await bare.rollback()
    assert_in_order(bare)


async def test_server_faster_than_the_cancel(bare: Connection[TupleRow], monkeypatch: pytest.MonkeyPatch) -> None:
    """A statement that finished all the same gives its result: nothing that happened is concealed."""

    async def ask_nobody(**_: object) -> None:
        pass

    monkeypatch.setattr(bare, "cancel_safe", ask_nobody)
    with trio.CancelScope() as scope:
        scope.deadline = trio.current_time() + 0.05
        cursor = await bare.execute("select 7, pg_sleep(0.1)")
        row = await cursor.fetchone()
    assert row is not None
    assert row[0] == 7
    assert not scope.cancelled_caught
    assert_in_order(bare)


@pytest.mark.parametrize("nested", [False, True])
async def test_in_a_transaction(bare: Connection[TupleRow], blank_dsn: str, nursery: trio.Nursery, *, nested: bool) -> None:
    """A cancel in a transaction rolls it back, savepoints and all."""
    with trio.fail_after(BOUND_SECONDS), trio.CancelScope() as scope:
        nursery.start_soon(cancel_when_running, blank_dsn, bare.info.backend_pid, scope)
        async with bare.transaction():
            await bare.execute("create table t ()")
            if nested:
                async with bare.transaction():
                    await bare.execute("select pg_sleep(60)")
            await bare.execute("select pg_sleep(60)")
    assert scope.cancelled_caught
    assert_in_order(bare)
    assert await (await bare.execute("select to_regclass('t')")).fetchone() == (None,)


async def test_inner_transaction_only(bare: Connection[TupleRow]) -> None:
    """A cancel that ends with the inner block leaves the outer one usable."""
    async with bare.transaction():
        await bare.execute("create table kept ()")
        with trio.CancelScope() as scope:
            async with bare.transaction():
                await bare.execute("create table gone ()")
                scope.cancel()
                await trio.lowlevel.checkpoint()
    row = await (await bare.execute("select to_regclass('kept')::text, to_regclass('gone')::text")).fetchone()
    assert row == ("kept", None)


async def test_due_at_the_end_of_a_transaction(bare: Connection[TupleRow]) -> None:
    """A cancel that is due when the block ends rolls back: the commit was not sent."""
    with trio.CancelScope() as scope:
        async with bare.transaction():
            await bare.execute("create table t ()")
            scope.cancel()
    assert scope.cancelled_caught
    assert_in_order(bare)
    assert await (await bare.execute("select to_regclass('t')")).fetchone() == (None,)


async def test_in_the_commit(bare: Connection[TupleRow]) -> None:
    """A cancel during a slow commit leaves no transaction open."""
    await bare.execute("create table t (n int)")
    await bare.execute(
        "create function slow() returns trigger language plpgsql as 'begin perform pg_sleep(60); return null; end'"
    )
    await bare.execute(
        "create constraint trigger slow after insert on t deferrable initially deferred for each row execute function slow()"
    )
    with trio.fail_after(BOUND_SECONDS), trio.CancelScope() as scope:
        async with bare.transaction():
            await bare.execute("insert into t values (1)")
            scope.deadline = trio.current_time() + 0.1
    assert scope.cancelled_caught
    assert_in_order(bare)
    assert await (await bare.execute("select count(*) from t")).fetchone() == (0,)


async def test_in_a_pipeline(bare: Connection[TupleRow]) -> None:
    """A cancel in a pipeline leaves the pipeline and its transaction."""
    with trio.fail_after(BOUND_SECONDS), trio.move_on_after(0.1) as scope:
        async with bare.pipeline() as pipeline, bare.transaction():
            await bare.execute("create table t ()")
            await bare.execute("select pg_sleep(60)")
            await pipeline.sync()
    assert scope.cancelled_caught
    assert_in_order(bare)
    assert await (await bare.execute("select to_regclass('t')")).fetchone() == (None,)


async def test_due_at_the_end_of_a_pipeline(bare: Connection[TupleRow]) -> None:
    """A cancel that is due when the pipeline ends leaves the pipeline."""
    with trio.CancelScope() as scope:
        async with bare.pipeline():
            await bare.execute("select 1")
            scope.cancel()
    assert_in_order(bare)


async def test_in_executemany(bare: Connection[TupleRow]) -> None:
    """A cancel in `executemany` leaves the connection in order."""
    async with bare.cursor() as cursor:
        with trio.fail_after(BOUND_SECONDS), trio.move_on_after(0.1) as scope:
            await cursor.executemany("select pg_sleep(%s)", [(60,)] * 10)
    assert scope.cancelled_caught
    assert_in_order(bare)


async def test_in_a_copy_in(bare: Connection[TupleRow]) -> None:
    """A cancel in COPY FROM throws the rows away."""
    await bare.execute("create table t (n int)")
    with trio.fail_after(BOUND_SECONDS), trio.move_on_after(0.1) as scope:
        async with bare.cursor() as cursor, cursor.copy("copy t from stdin") as copy:
            n = 0
            while True:
                await copy.write_row((n := n + 1,))
    assert scope.cancelled_caught
    assert_in_order(bare)
    assert await (await bare.execute("select count(*) from t")).fetchone() == (0,)


async def test_in_a_copy_out(bare: Connection[TupleRow]) -> None:
    """A cancel in COPY TO stops the server."""
    with trio.fail_after(BOUND_SECONDS), trio.move_on_after(0.1) as scope:
        async with bare.cursor() as cursor, cursor.copy("copy (select generate_series(1, 1e9)) to stdout") as copy:
            async for _ in copy:
                pass
    assert scope.cancelled_caught
    assert_in_order(bare)


async def test_while_waiting_for_the_connection(bare: Connection[TupleRow]) -> None:
    """A cancelled task that only waits for its turn does not touch the statement of another."""
    answers: list[object] = []

    async def ask() -> None:
        answers.append(await (await bare.execute("select pg_sleep(0.2)::text")).fetchone())

    async with trio.open_nursery() as asking:
        asking.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked(0.01)
        with trio.move_on_after(0.02) as scope:
            await bare.execute("select 1")
    assert scope.cancelled_caught
    assert answers == [("",)]
    assert_in_order(bare)


@pytest.mark.parametrize("silence", ["freeze", "drop_replies"])
@pytest.mark.parametrize("in_transaction", [False, True])
async def test_silent_server(proxy: Proxy, *, silence: str, in_transaction: bool) -> None:
    """A server that does not answer a cancel costs the connection, within the bound."""

    async def sleep_in_server(connection: Connection[TupleRow]) -> None:
        if in_transaction:
            async with connection.transaction():
                getattr(proxy, silence)()
                await connection.execute("select pg_sleep(0)")
        else:
            getattr(proxy, silence)()
            await connection.execute("select pg_sleep(0)")

    async with open_connection(proxy.dsn) as connection:
        with trio.fail_after(BOUND_SECONDS), trio.move_on_after(0.05) as scope:
            await sleep_in_server(connection)
        assert scope.cancelled_caught
        assert connection.closed
        assert connection.broken
        proxy.thaw()


async def test_silent_server_at_the_end_of_a_transaction(proxy: Proxy) -> None:
    """A roll-back that is not answered costs the connection, within the bound."""
    async with open_connection(proxy.dsn) as connection:
        with trio.fail_after(BOUND_SECONDS), trio.CancelScope() as scope:
            async with connection.transaction():
                proxy.freeze()
                scope.cancel()
                await trio.lowlevel.checkpoint()
        assert connection.broken
        proxy.thaw()


async def test_two_tasks_cancelled_on_one_connection(bare: Connection[TupleRow]) -> None:
    """Leaving a transaction while another task's query is being stopped leaves no transaction open."""

    async def ask() -> None:
        await bare.execute("select pg_sleep(60)")

    with trio.fail_after(2 * BOUND_SECONDS), trio.move_on_after(0.1):
        async with trio.open_nursery() as asking, bare.transaction():
            asking.start_soon(ask)
            await trio.sleep_forever()
    assert bare.closed or bare.pgconn.transaction_status == pq.TransactionStatus.IDLE
