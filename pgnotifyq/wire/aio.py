"""A connection of ours driven by asyncio, and a pool of them.

They are psycopg's and psycopg_pool's, with our rules.

Rules on cancels, as in connection.py but for one:

- If a cancel arrives in mid-query, the connection asks the server to stop, and then reads the same
  exchange to its end, under a shield of `INTERRUPT_SECONDS`. If the server is silent for that long,
  the connection is closed.
- If the server finished first, the exchange counts. The cancel is raised when the connection is
  next used, or given back. asyncio delivers a cancel once. So the connection keeps it, and it is
  never lost.
- So the server may have done what a cancelled caller asked for. If several callers share a
  statement, its leader (doors/gathering.py) always tells the others what happened.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar, cast

import anyio
import psycopg
from psycopg import errors, pq
from psycopg.rows import Row, TupleRow, tuple_row
from psycopg.waiting import Ready, Wait
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout

from pgnotifyq.model.errors import ClientClosed
from pgnotifyq.wire import addresses, forks, pooling
from pgnotifyq.wire.loops import another_loop, need_asyncio
from pgnotifyq.wire.names import check_psycopg
from pgnotifyq.wire.ours import Awaited
from pgnotifyq.wire.sessions import For

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from typing import Self

    from psycopg.abc import ConnDict, ConnParam, PQGen
    from psycopg.pq.abc import PGconn
    from psycopg.rows import AsyncRowFactory

check_psycopg(pooling.NAMES)

Result = TypeVar("Result")

INTERRUPT_SECONDS = 2.0
"""How long a cancelled exchange may still take: see connection.py."""

_ACTIVE = pq.TransactionStatus.ACTIVE

BUSY_SECONDS_MAX = 0.005
"""How long exchanges that never block may keep the other tasks waiting, as in waiting.py."""

_last_pause = 0.0


async def connect(
    dsn: str,
    *,
    application_name: str | None = None,
    used_for: For = For.ANYBODY,
    must_write: bool = False,
    prepare_threshold: int | None = None,
    **parameters: ConnParam,
) -> Connection[TupleRow]:
    """Open a connection in autocommit mode.

    Arguments and errors are those of connection.py's `connect`.

    Cancellation: the half-open connection is dropped.

    Raises:
        DatabaseUnreachable: no address could be connected to, or the DSN cannot be read.
    """
    wanted = addresses.readable(dsn, application_name, **parameters)
    with addresses.explained(dsn, wanted):
        connection = await _choose(wanted, used_for, must_write=must_write)
    connection.prepare_threshold = prepare_threshold
    connection._prepared._prepared_idx = secrets.randbits(48)  # see connection.py
    connection.repeats = used_for in {For.CALLER, For.WORKER}
    forks.connections.add(connection)
    return connection


async def _choose(wanted: ConnDict, used_for: For, *, must_write: bool) -> Connection[TupleRow]:
    """Connect to the first address that answers; if that cannot write, to the first that can.

    If the address says which sessions will do, that counts instead.
    """
    connection = await _open(wanted, used_for)
    if connection.can_write or used_for is For.ANYBODY or addresses.says(wanted, "target_session_attrs"):
        return connection
    try:
        better = await _open({**wanted, "target_session_attrs": "read-write"}, used_for)
    except psycopg.OperationalError:
        if not must_write:
            return connection
        connection.close_nowait()
        raise psycopg.OperationalError(f"it is {addresses.READ_ONLY}") from None
    except BaseException:
        connection.close_nowait()
        raise
    connection.close_nowait()
    return better


async def _open(wanted: ConnDict, used_for: For) -> Connection[TupleRow]:
    parameters: dict[str, Any] = wanted
    connection = await Connection.connect(**parameters)
    try:
        connection.used_for = used_for
        connection.can_write = await connection.enter()
    except BaseException:
        connection.close_nowait()
        raise
    return connection


class Connection(Awaited[Row]):
    """`psycopg.AsyncConnection`, ours, on asyncio."""

    own_cursor = psycopg.AsyncCursor

    def __init__(self, pgconn: PGconn, row_factory: AsyncRowFactory[Any] = tuple_row) -> None:
        super().__init__(pgconn, row_factory)
        self.become_ours()
        self.can_write = True
        # If a task waits for the socket, it waits for this.
        self._news: asyncio.Future[Ready] | None = None
        # A cancel that came too late for its exchange.
        self._owed: asyncio.CancelledError | None = None

    @classmethod
    async def connect(cls, conninfo: str = "", **parameters: Any) -> Self:
        """Open a connection as psycopg does, in autocommit mode."""
        return await super().connect(conninfo, **{"autocommit": True, **parameters})

    def close_nowait(self) -> None:
        """Close the connection, and wake the task that waits on it with an error."""
        if not self.closed:
            self._closed = True
            self._finish()

    def meet_cancel(self) -> None:
        """Raise a cancel that came too late for its exchange."""
        if (owed := self._owed) is not None:
            self._owed = None
            raise owed

    async def wait(self, gen: PQGen[Result], interval: float = 0.0, timeout: float | None = None) -> Result:  # noqa: ASYNC109
        """Drive one exchange. The caller holds `lock`.

        Cancellation: see the rules at the head of this file.
        """
        self.meet_cancel()
        if timeout is not None:
            return await super().wait(gen, interval or timeout, timeout)
        try:
            return await self._drive(gen)
        except errors.ReadOnlySqlTransaction:
            self.is_read_only = True
            raise
        except asyncio.CancelledError as cancelled:
            if self.closed or self.pgconn.transaction_status != _ACTIVE:
                raise
            late = await self._interrupt(gen)
            if late is None:
                raise
            self._owed = cancelled
        return late[0]

    async def _interrupt(self, gen: PQGen[Result]) -> tuple[Result] | None:
        """Ask the server to stop and read the exchange to its end.

        Returns: the result if there is one after all, else None. The connection is in order again,
            or closed.
        """
        is_over = False
        try:
            with anyio.move_on_after(INTERRUPT_SECONDS, shield=True):
                try:
                    await self.cancel_safe(timeout=INTERRUPT_SECONDS)
                    late = await self._drive(gen)
                except psycopg.Error:
                    is_over = self.pgconn.transaction_status != _ACTIVE
                    # QueryCanceled, as a rule. Another error no longer matters.
                    return None
                is_over = True
                return (late,)
        finally:
            if not is_over:  # the server was silent, or this task was cancelled a second time
                self._finish()
        return None

    async def _drive(self, gen: PQGen[Result]) -> Result:
        """Drive `gen` to its end, as `psycopg.waiting.wait_async` does.

        `wait_async` itself has two faults: a task that closes the connection cannot wake it, and it
        interrupts each wait at intervals.
        """
        global _last_pause  # noqa: PLW0603  # of this thread's exchanges, as in waiting.py
        has_paused = False
        try:
            wish = next(gen)
            while True:
                ready = await self._ready(wish)
                has_paused = True
                wish = gen.send(ready)
        except StopIteration as end:
            result: Result = end.value
        except OSError as error:
            raise psycopg.OperationalError("the connection's socket was closed while waiting for the server") from error
        if has_paused:
            _last_pause = time.monotonic()
        elif time.monotonic() - _last_pause >= BUSY_SECONDS_MAX:
            await asyncio.sleep(0)
            _last_pause = time.monotonic()
        return result

    async def _ready(self, wish: int) -> Ready:
        """Wait until the socket is as wished."""
        loop, fileno = asyncio.get_running_loop(), self.pgconn.socket
        news: asyncio.Future[Ready] = loop.create_future()
        self._news = news
        if wish & Wait.R:
            loop.add_reader(fileno, _tell, news, Ready.R)
        if wish & Wait.W:
            loop.add_writer(fileno, _tell, news, Ready.W)
        try:
            return await news
        finally:
            self._forget(news)

    def _forget(self, news: asyncio.Future[Ready]) -> None:
        """Wait for the socket no more.

        Call it before the socket is closed. Right after, another file may have the socket's number.
        """
        if self._news is news:
            self._news = None
            loop, fileno = news.get_loop(), self.pgconn.socket
            loop.remove_reader(fileno)
            loop.remove_writer(fileno)

    def _finish(self) -> None:
        if (news := self._news) is not None:
            with suppress(psycopg.OperationalError):  # libpq has closed the socket by itself
                self._forget(news)
            if not news.done():
                news.set_exception(psycopg.OperationalError("the connection was closed"))
        self.pgconn.finish()


def _tell(news: asyncio.Future[Ready], ready: Ready) -> None:
    if not news.done():
        news.set_result(ready)


class _Pool(AsyncConnectionPool[Connection[TupleRow]]):
    """psycopg_pool's pool, but it tells at once that a connection cannot be opened."""

    refusal: Exception

    async def _connect(self, timeout: float | None = None) -> Connection[TupleRow]:  # noqa: ASYNC109
        try:
            return await super()._connect(timeout)
        except Exception as error:
            self.refusal = error
            raise

    async def _add_connection(self, attempt: Any, growing: bool = False) -> None:
        await super()._add_connection(attempt or cast(Any, pooling.Once()), growing)

    async def reconnect_failed(self) -> None:
        """Tell the tasks that wait, if no other connection can come back to serve them."""
        async with self._lock:
            waiters = [] if self._nconns else list(self._waiting)
            if waiters:
                self._waiting.clear()
        for waiter in waiters:
            await waiter.fail(self.refusal)


class Pool:
    """At most so many connections, opened when they are needed."""

    def __init__(self, pool: _Pool) -> None:
        self._pool = pool
        self._loop = asyncio.get_running_loop()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection[TupleRow]]:
        """Lend a connection in autocommit mode for the length of a block.

        Cancellation: the connection is given back, or closed.

        Raises:
            PoolTimeout: none became free within `ACQUIRE_SECONDS`.
            DatabaseUnreachable: a new one was needed and could not be opened.
            WrongLoop: another loop runs here, perhaps in a child that was forked. psycopg_pool
                would wait for ever.
            ClientClosed: the block of the client has been left.
        """
        self.check()
        connection = await self._take()
        try:
            yield connection
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._give_back(connection)
            raise
        await self._give_back(connection)
        connection.meet_cancel()

    def check(self) -> None:
        """Refuse to go on where the pool cannot be used.

        Raises:
            ClientClosed: it is closed.
            WrongLoop: this is not the loop that opened it.
        """
        if need_asyncio("this client", "it belongs to the loop that opened it") is not self._loop:
            raise another_loop()
        if self._pool.closed:
            raise ClientClosed

    async def _take(self) -> Connection[TupleRow]:
        while True:
            try:
                connection = await self._pool.getconn()
            except (PoolTimeout, PoolClosed) as error:
                raise pooling.told(error, self._pool.max_size) from error
            if pooling.is_fit(connection):
                return connection
            await self._give_back(connection, is_fit=False)

    async def _give_back(self, connection: Connection[TupleRow], *, is_fit: bool = True) -> None:
        if not is_fit or not pooling.is_clean(connection):
            connection.close_nowait()
        await self._pool.putconn(connection)


@asynccontextmanager
async def open_pool(
    dsn: str, *, size_max: int, application_name: str, used_for: For, prepare_threshold: int | None
) -> AsyncIterator[Pool]:
    """Open a pool for the length of a block. Nothing is connected until somebody asks."""

    class Pooled(Connection[TupleRow]):
        """How psycopg_pool opens one of ours."""

        @classmethod
        async def connect(cls, conninfo: str = "", **_: Any) -> Any:
            """Open one."""
            return await connect(
                conninfo,
                application_name=application_name,
                used_for=used_for,
                must_write=True,
                prepare_threshold=prepare_threshold,
            )

    pool = _Pool(
        dsn,
        connection_class=Pooled,
        min_size=0,
        max_size=size_max,
        open=False,
        timeout=pooling.ACQUIRE_SECONDS,
        max_idle=pooling.IDLE_SECONDS_MAX,
        name=application_name,  # for psycopg_pool's log
        reconnect_timeout=0.0,  # its log says this number; the pool tries once (pooling.Once)
    )
    await pool.open()
    try:
        yield Pool(pool)
    finally:
        with anyio.CancelScope(shield=True):
            await pool.close()
