"""The pool: bounded, fair, and never handing out a dirty connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest
import trio
import trio.testing

from pgnotifyq.model.errors import DatabaseUnreachable, PgnotifyqError, PoolTimeout
from pgnotifyq.wire.connection import open_connection
from pgnotifyq.wire.pool import Pool, open_pool
from tests.proxy import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def pool(blank_dsn: str) -> AsyncIterator[Pool]:
    """Give a pool of two."""
    async with open_pool(blank_dsn, size_max=2, acquire_seconds=10, application_name="pool") as two:
        yield two


async def pid_of_next(pool: Pool) -> int:
    """Return which session the pool hands out next."""
    async with pool.connection() as connection:
        return connection.info.backend_pid


async def test_clean_return(pool: Pool) -> None:
    """A clean connection is used again."""
    assert await pid_of_next(pool) == await pid_of_next(pool)
    assert (pool.stats().open, pool.stats().idle, pool.stats().waiting) == (1, 1, 0)


async def test_bound(pool: Pool) -> None:
    """No more connections are open than allowed, however many tasks ask."""
    most = 0

    async def use() -> None:
        nonlocal most
        async with pool.connection() as connection:
            most = max(most, pool.stats().open)
            await connection.execute("select pg_sleep(0.005)")

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(use)
    assert most == 2
    assert pool.stats().idle == 2


async def test_order_of_service(blank_dsn: str) -> None:
    """Whoever waits longest is served first."""
    served: list[int] = []

    async def use(n: int) -> None:
        async with single.connection():
            served.append(n)

    async with open_pool(blank_dsn, size_max=1) as single, trio.open_nursery() as nursery, single.connection():
        for n in range(5):
            nursery.start_soon(use, n)
            await trio.testing.wait_all_tasks_blocked()
        assert single.stats().waiting == 5
    assert served == [0, 1, 2, 3, 4]


async def test_nothing_free(blank_dsn: str) -> None:
    """Waiting too long is an error with counts and a remedy."""
    async with open_pool(blank_dsn, size_max=1, acquire_seconds=0.02) as pool, pool.connection():
        with pytest.raises(PoolTimeout, match=r"all 1 are in use.*Raise the pool's size"):
            async with pool.connection():
                pass


async def test_cancelled_while_waiting(blank_dsn: str) -> None:
    """A cancelled waiter takes nothing with it."""
    async with open_pool(blank_dsn, size_max=1) as pool:
        async with pool.connection():
            with trio.move_on_after(0.02) as scope:
                await pid_of_next(pool)
            assert scope.cancelled_caught
        with trio.fail_after(5):
            assert await pid_of_next(pool) > 0


async def test_unreachable_server() -> None:
    """A connection that cannot be opened gives its place back."""
    async with open_pool("host=127.0.0.1 port=1", size_max=1, acquire_seconds=0.02) as pool:
        for _ in range(2):
            with pytest.raises(DatabaseUnreachable):
                await pid_of_next(pool)


async def test_transaction_left_open(pool: Pool, blank_dsn: str) -> None:
    """A transaction left open is rolled back before the block ends, and the session is not used again."""
    async with pool.connection() as connection:
        pid = connection.info.backend_pid
        await connection.execute("begin")
        await connection.execute("select pg_advisory_xact_lock(1)")
    assert connection.closed
    async with open_connection(blank_dsn) as other:
        assert await (await other.execute("select pg_try_advisory_lock(1)")).fetchone() == (True,)
    assert await pid_of_next(pool) != pid


async def test_failed_transaction_left_open(pool: Pool) -> None:
    """A failed transaction does not reach the next user."""
    async with pool.connection() as connection:
        await connection.execute("begin")
        with pytest.raises(psycopg.errors.DivisionByZero):
            await connection.execute("select 1/0")
    assert connection.closed


@pytest.mark.parametrize(
    "statement",
    ["set timezone = 'Asia/Tokyo'", "set application_name = 'me'", "set default_transaction_read_only = on"],
)
async def test_setting_changed(pool: Pool, statement: str) -> None:
    """A session whose settings were changed is not used again."""
    async with pool.connection() as connection:
        await connection.execute(statement)
    assert connection.closed


async def test_setting_changed_for_a_transaction(pool: Pool) -> None:
    """`set local` leaves nothing behind."""
    async with pool.connection() as connection, connection.transaction():
        await connection.execute("set local timezone = 'Asia/Tokyo'")
    assert not connection.closed


async def test_cancelled_in_a_query(pool: Pool) -> None:
    """A cancelled query leaves a connection that is fit for the next user."""
    with trio.move_on_after(0.05) as scope:
        async with pool.connection() as connection:
            await connection.execute("select pg_sleep(60)")
    assert scope.cancelled_caught
    assert await pid_of_next(pool) > 0


async def test_session_terminated_while_idle(pool: Pool, blank_dsn: str) -> None:
    """A session the server ended while it lay idle is not handed out."""
    pid = await pid_of_next(pool)
    async with open_connection(blank_dsn) as other:
        await other.execute("select pg_terminate_backend(%s, 5000)", (pid,))
    async with pool.connection() as connection:
        assert await (await connection.execute("select 1")).fetchone() == (1,)
        assert connection.info.backend_pid != pid


async def test_closed_pool(blank_dsn: str) -> None:
    """A closed pool refuses, and leaves no sessions."""
    async with open_pool(blank_dsn, size_max=1, application_name="leaver") as pool:
        await pid_of_next(pool)
    with pytest.raises(PgnotifyqError, match="closed"):
        await pid_of_next(pool)
    await until(blank_dsn, "not exists (select from pg_stat_activity where application_name = 'leaver')")


@pytest.fixture
async def lending(blank_dsn: str) -> AsyncIterator[Pool]:
    """Give a pool of one that lends to somebody else's code."""
    async with open_pool(blank_dsn, size_max=1, acquire_seconds=10, application_name="lender", is_for_others=True) as one:
        yield one


async def test_lent_again(lending: Pool) -> None:
    """The session is used again, in another connection object; the first one is closed for whoever kept it."""
    async with lending.connection() as first:
        pid = first.info.backend_pid
        await first.execute("set statement_timeout = '59s'")
    assert first.closed
    with pytest.raises(psycopg.OperationalError):
        await first.execute("select 1")
    async with lending.connection() as second:
        assert second is not first
        assert second.info.backend_pid == pid
        assert await (await second.execute("show statement_timeout")).fetchone() == ("0",)


async def test_lent_session_terminated_while_idle(lending: Pool, blank_dsn: str) -> None:
    """One that the server ended behind the answer to its discarding is not handed out."""
    pid = await pid_of_next(lending)
    async with open_connection(blank_dsn) as other:
        await other.execute("select pg_terminate_backend(%s, 5000)", (pid,))
    assert await pid_of_next(lending) != pid
    assert (lending.stats().open, lending.stats().idle) == (1, 1)


async def test_lent_and_left_in_a_transaction(lending: Pool) -> None:
    """What is open is rolled back, and the session is discarded like any other: a lock that outlives transactions is gone too."""
    async with lending.connection() as connection:
        pid = connection.info.backend_pid
        await connection.execute("select pg_advisory_lock(7)")
        await connection.execute("begin")
        await connection.execute("create temporary table mine (n integer)")
    async with lending.connection() as connection:
        ((held,),) = await (await connection.execute("select count(*) from pg_locks where locktype = 'advisory'")).fetchall()
        assert (held, connection.info.backend_pid) == (0, pid)


async def test_cancelled_when_handed_out(lending: Pool) -> None:
    """Whoever is cancelled before a session is theirs takes nothing with them."""
    await pid_of_next(lending)
    with trio.CancelScope() as scope:
        scope.cancel()
        await pid_of_next(lending)
    assert scope.cancelled_caught
    with trio.fail_after(5):
        assert await pid_of_next(lending) > 0
