"""A psycopg connection driven by trio, without threads and without asyncio.

Rules:

- One exchange at a time: `Connection.lock` is held for each, in order of arrival.
- If a cancel arrives in mid-query, the connection asks the server to stop, and then reads the same
  exchange to its end. If the server finished first, the caller gets the result, and the cancel at
  its next checkpoint: nothing that happened is concealed. So if an autocommitted statement raises
  `trio.Cancelled` and the connection is still open, the statement did not happen.
- All this happens under a shield of `INTERRUPT_SECONDS`. If the server is silent for that long, the
  connection is closed.
- If a cancel leaves a transaction, pipeline or COPY, it is ended on the server under the same
  bound, or the connection is closed. No connection is ever left inside of one.
"""

from __future__ import annotations

import logging
import secrets
from contextlib import aclosing, asynccontextmanager, suppress
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

import psycopg
import trio
from psycopg import errors, generators, pq
from psycopg._capabilities import capabilities
from psycopg._pipeline_async import AsyncPipeline
from psycopg.adapt import AdaptersMap
from psycopg.copy import AsyncCopy
from psycopg.rows import Row, TupleRow
from psycopg.transaction import AsyncTransaction

from pgnotifyq.model.errors import quietly
from pgnotifyq.wire import addresses, first, forks, waiting
from pgnotifyq.wire.loops import need_trio
from pgnotifyq.wire.ours import Awaited
from pgnotifyq.wire.refusals import UNDONE, is_stale_plan, may_repeat
from pgnotifyq.wire.sessions import For

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
    from types import TracebackType
    from typing import Self

    from psycopg.abc import AdaptContext, ConnParam, Params, PQGen, Query
    from psycopg.copy import AsyncWriter
    from psycopg.pq.abc import PGconn
    from psycopg.rows import AsyncRowFactory

Result = TypeVar("Result")

INTERRUPT_SECONDS = 2.0
"""How long a cancelled exchange, or the way out of a transaction, may still take.

A healthy server answers within a fraction of a second, even over a continent. Shutdown has to wait
for this, so it must stay well below the shortest grace."""

INTERRUPT_AGAIN_SECONDS = 0.25
"""When to ask the server again to stop. A request may arrive between two statements of one exchange
and hit neither."""

ACTIVE = pq.TransactionStatus.ACTIVE

_leaving: ContextVar[bool] = ContextVar("leaving", default=False)
"""Whether this task already says its last words. If nobody answers them either, nothing is left to
try. It belongs to the task: another task may be cancelled on the same connection meanwhile."""

logger = logging.getLogger("pgnotifyq.wire")

# If a `wait` takes too long, psycopg raises and catches this. 3.3.0 has no such class, and gives no
# wait a timeout.
_WaitTimeout: type[psycopg.OperationalError] = getattr(errors, "_WaitTimeout", psycopg.OperationalError)


@overload
async def connect(
    dsn: str,
    *,
    autocommit: bool = ...,
    application_name: str | None = ...,
    prepare_threshold: int | None = ...,
    row_factory: AsyncRowFactory[Row],
    context: AdaptContext | None = ...,
    used_for: For = ...,
    must_write: bool = ...,
    **parameters: ConnParam,
) -> Connection[Row]: ...


@overload
async def connect(
    dsn: str,
    *,
    autocommit: bool = ...,
    application_name: str | None = ...,
    prepare_threshold: int | None = ...,
    row_factory: None = ...,
    context: AdaptContext | None = ...,
    used_for: For = ...,
    must_write: bool = ...,
    **parameters: ConnParam,
) -> Connection[TupleRow]: ...


async def connect(
    dsn: str,
    *,
    autocommit: bool = True,
    application_name: str | None = None,
    prepare_threshold: int | None = None,
    row_factory: AsyncRowFactory[Any] | None = None,
    context: AdaptContext | None = None,
    used_for: For = For.ANYBODY,
    must_write: bool = False,
    **parameters: ConnParam,
) -> Connection[Any]:
    """Open a connection to the first address of `dsn` that answers.

    Its texts are UTF-8, whatever its role, its database, `dsn` and the environment say.

    Args:
        dsn: a libpq connection string or URI. Several hosts and `target_session_attrs` work as in
            libpq.
        autocommit: each statement is its own transaction unless `transaction()` says otherwise.
        application_name: what pg_stat_activity shows; the DSN's own wins.
        prepare_threshold: after how many uses a statement is prepared. None, the default: never.
            Prepared statements do not survive a pooler in transaction mode.
        row_factory: psycopg's; None: tuples.
        context: psycopg's adapters; None: its defaults.
        used_for: whose statements the connection is for. It decides what is set in the session
            (wire/sessions.py).
        must_write: whether a read-only session, as on a standby, is refused. If False, a session
            that can write is preferred. If the address has a `target_session_attrs` of its own,
            that counts instead.
        **parameters: further libpq parameters; they win over the DSN.

    Cancellation: the half-open connection is dropped.

    Raises:
        DatabaseUnreachable: no address could be connected to, or the DSN cannot be read.
        PgnotifyqError: trio does not run here.
    """
    need_trio("pgnotifyq.connect", "elsewhere use psycopg's own connections")
    wanted = addresses.readable(dsn, application_name, **parameters)
    choice = first.ANY
    if used_for is not For.ANYBODY and not addresses.says(wanted, "target_session_attrs"):
        choice = first.WRITABLE if must_write else first.RATHER_WRITABLE
    with addresses.explained(dsn, wanted):
        connection: Connection[Any] = await first.connect_first(
            wanted, Connection._connect_gen, partial(_enter, used_for), choice
        )
    connection._prepare_to_be_used(
        autocommit=autocommit, prepare_threshold=prepare_threshold, row_factory=row_factory, context=context
    )
    # If the server refuses one of our statements as a whole, the statement may be sent again.
    connection.repeats = used_for in {For.CALLER, For.WORKER}
    return connection


async def _enter(used_for: For, connection: Connection[Any]) -> bool:
    connection.used_for = used_for
    return await connection.enter()


@asynccontextmanager
async def open_connection(
    dsn: str, *, autocommit: bool = True, application_name: str | None = None, used_for: For = For.ANYBODY, **parameters: Any
) -> AsyncIterator[Connection[TupleRow]]:
    """Open a connection for the length of a block and close it at the end. See `connect`."""
    connection = await connect(dsn, autocommit=autocommit, application_name=application_name, used_for=used_for, **parameters)
    try:
        yield connection
    finally:
        await connection.close()


class Lock:
    """One exchange at a time, as psycopg wants it, in order of arrival.

    `trio.Lock` lets other tasks run at every acquire. The exchange that follows does so anyway, and
    to do it twice costs a tenth of a round trip. So this lock is taken at once if it is free.
    """

    def __init__(self) -> None:
        self._lock = trio.Lock()

    async def __aenter__(self) -> None:
        try:
            self._lock.acquire_nowait()
        except trio.WouldBlock:
            await self._lock.acquire()

    async def __aexit__(self, *_: object) -> None:
        self._lock.release()

    def locked(self) -> bool:
        """Return whether an exchange is under way."""
        return self._lock.locked()


class Connection(Awaited[Row]):
    """`psycopg.AsyncConnection` for trio. psycopg's documentation holds, but for `notifies()`.

    In the place of `notifies()`, use `pgnotifyq.wire.notifications.wait_notifications`. Do not use
    `AsyncQueuedLibpqWriter`: it starts asyncio tasks.
    """

    def __init__(self, pgconn: PGconn, row_factory: AsyncRowFactory[Any] | None = None) -> None:
        if row_factory is None:
            super().__init__(pgconn)
        else:
            super().__init__(pgconn, row_factory)
        self.lock = Lock()  # type: ignore[assignment]
        self.cursor_factory = Cursor
        self.become_ours()

    @classmethod
    async def connect(
        cls,
        conninfo: str = "",
        *,
        autocommit: bool = False,
        prepare_threshold: int | None = 5,
        context: AdaptContext | None = None,
        row_factory: AsyncRowFactory[Row] | None = None,
        cursor_factory: type[psycopg.AsyncCursor[Row]] | None = None,
        **kwargs: ConnParam,
    ) -> Self:
        """Open a connection as psycopg does, and raise psycopg's errors.

        The module's `connect` has better messages.

        Cancellation: the half-open connection is dropped.

        Raises:
            psycopg.OperationalError: no address could be connected to.
            psycopg.ProgrammingError: the connection string cannot be read.
        """
        parameters = addresses.parameters_from(conninfo, **kwargs)
        connection = await first.connect_first(parameters, cls._connect_gen)
        if cursor_factory:
            connection.cursor_factory = cursor_factory
        connection._prepare_to_be_used(
            autocommit=autocommit, prepare_threshold=prepare_threshold, row_factory=row_factory, context=context
        )
        return connection

    def _prepare_to_be_used(
        self,
        *,
        autocommit: bool,
        prepare_threshold: int | None,
        row_factory: AsyncRowFactory[Any] | None,
        context: AdaptContext | None,
    ) -> None:
        """Do what psycopg's `connect` does after it has connected."""
        self._autocommit = bool(autocommit)
        if row_factory:
            self.row_factory = row_factory
        if context:
            self._adapters = AdaptersMap(context.adapters)
        self.prepare_threshold = prepare_threshold
        # psycopg counts prepared statements from zero in every session. Behind a pooler that hands
        # a session from client to client, one client's `_pg3_0` would run as another's. A name that
        # no other client has may be missing there. It is never mistaken.
        self._prepared._prepared_idx = secrets.randbits(48)
        forks.connections.add(self)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        """Commit, or roll back after an error, and close in any case."""
        try:
            if not isinstance(exc_val, trio.Cancelled):
                await super().__aexit__(exc_type, exc_val, exc_tb)
        finally:
            await self.close()

    async def close(self) -> None:
        """Close the connection. Wake the tasks that wait on it with an error."""
        self.close_nowait()

    def close_nowait(self) -> None:
        """Do what `close` does, which never waits."""
        if not self.closed:
            self._closed = True
            self._finish()

    async def wait(self, gen: PQGen[Result], interval: float = 0.0, timeout: float | None = None) -> Result:  # noqa: ARG002, ASYNC109
        """Drive one exchange. The caller holds `lock`.

        psycopg passes `interval`. It has no meaning here.

        Cancellation: see the rules at the head of this file.
        """
        if timeout is None:
            return await self._drive(gen)
        with trio.move_on_after(timeout):
            return await self._drive(gen)
        raise _WaitTimeout("wait timeout expired")

    async def cancel_safe(self, *, timeout: float = INTERRUPT_SECONDS) -> None:  # noqa: ASYNC109
        """Ask the server to stop the running statement. The statement may still finish.

        Raises:
            psycopg.errors.CancellationTimeout: the request could not be delivered within `timeout`
                seconds.
        """
        if not self._should_cancel():
            return
        with trio.move_on_after(timeout):
            if capabilities.has_cancel_safe():
                # As psycopg's own generator does. It took a timeout in 3.3.0, and none later.
                request = self.pgconn.cancel_conn()
                request.start()
                await waiting.drive_connecting(generators.cancel(request))
            else:
                await trio.to_thread.run_sync(self.cancel, abandon_on_cancel=True)
            return
        raise errors.CancellationTimeout("cancellation timeout expired")

    @asynccontextmanager
    async def transaction(
        self, savepoint_name: str | None = None, force_rollback: bool = False
    ) -> AsyncIterator[AsyncTransaction]:
        """Run a block in a transaction, or in a savepoint of the one that is open.

        Cancellation: the block is rolled back before `trio.Cancelled` goes on, or the connection is
        closed. If the cancel comes during the commit, it counts only if the server has not
        committed.
        """
        block = Transaction(self, savepoint_name, force_rollback)
        if self._pipeline:
            async with self.pipeline(), block, self.pipeline():
                yield block
        else:
            async with block:
                yield block

    @asynccontextmanager
    async def pipeline(self) -> AsyncIterator[AsyncPipeline]:
        """Send the statements of a block without waiting for each one's answer.

        Cancellation: statements that were already handed over may have been executed. The
            connection leaves the pipeline, or it is closed.
        """
        async with self.lock:
            self._check_connection_ok()
            if (pipeline := self._pipeline) is None:
                pipeline = self._pipeline = Pipeline(self)
        try:
            async with pipeline:
                yield pipeline
        finally:
            if pipeline.level == 0:
                self._pipeline = None

    @asynccontextmanager
    async def _pipeline_nolock(self) -> AsyncIterator[AsyncPipeline]:
        """Do the same for a caller that holds the lock: `executemany`."""
        pipeline = self._pipeline = Pipeline(self, _no_lock=True)
        try:
            async with pipeline:
                yield pipeline
        finally:
            self._pipeline = None

    async def leave(self, say: Callable[[], Awaitable[Result]]) -> Result | None:
        """Say the last words of a cancelled block, under a shield.

        If the server does not answer, close the connection.

        Args:
            say: ends the block on the server. It is called if the connection is still open.

        Returns: what `say` returns; None if the connection had to be closed.
        """
        if self.closed:
            return None
        with trio.CancelScope(shield=True, deadline=trio.current_time() + INTERRUPT_SECONDS):
            token = _leaving.set(True)
            try:
                return await say()
            except psycopg.Error as error:
                quietly(logger.debug, "ignored while leaving a cancelled block on %s: %s", self, error)
                return None
            finally:
                _leaving.reset(token)
        self.abandon("it did not answer while a cancelled block was being left")
        return None

    def abandon(self, why: str) -> None:
        """Close the connection because its state is unknown. `broken` is true afterwards."""
        if not self.closed:
            quietly(logger.warning, "closing %s: %s", self, why)
            self._finish()

    async def _drive(self, gen: PQGen[Result]) -> Result:
        await waiting.meet_cancel()  # as long as nothing was begun, nothing has to be ended
        try:
            return await waiting.drive(gen, self.pgconn.socket)
        except errors.ReadOnlySqlTransaction:
            self.is_read_only = True
            raise
        except trio.Cancelled:
            if _leaving.get() or self.closed or self.pgconn.transaction_status != ACTIVE:
                raise
            late = await self._interrupt(gen)
            if late is None:
                raise
        # The server was faster than the cancel, so the result counts.
        return late[0]

    async def _interrupt(self, gen: PQGen[Result]) -> tuple[Result] | None:
        """Ask the server to stop, and read the exchange to its end.

        The connection is then in order again, or closed.

        Returns: the result, if the server finished after all; else None.
        """
        with trio.CancelScope(shield=True, deadline=trio.current_time() + INTERRUPT_SECONDS):
            while True:
                try:
                    await self.cancel_safe()
                except psycopg.Error as error:
                    quietly(logger.debug, "a request to cancel on %s failed: %s", self, error)
                with trio.move_on_after(INTERRUPT_AGAIN_SECONDS):
                    try:
                        return (await waiting.drive(gen, self.pgconn.socket),)
                    except psycopg.Error:
                        # QueryCanceled, as a rule. Another error no longer matters.
                        return None
        self.abandon(f"the server did not answer a cancel within {INTERRUPT_SECONDS} seconds")
        return None

    def _finish(self) -> None:
        # If libpq has closed the socket by itself, no task can be waiting on it.
        with suppress(psycopg.OperationalError):
            waiting.announce_closing(self.pgconn.socket)
        self.pgconn.finish()


class Transaction(AsyncTransaction):
    """A transaction block that is never left open by a cancel."""

    _conn: Connection[Any]

    async def __aenter__(self) -> Self:
        """Begin, or set a savepoint."""
        try:
            async with self._conn.lock:
                if self.status is not self.Status.NOT_STARTED:
                    raise TypeError("transaction blocks can be used only once")
                await self._conn.wait(self._enter_gen())
        except (trio.Cancelled, psycopg.Error) as error:
            if self.status is self.Status.ACTIVE:
                await self._leave(error)
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> bool:
        """Commit, or roll back after an error or a cancel."""
        if isinstance(exc_val, trio.Cancelled):
            await self._leave(exc_val)
            return False
        try:
            return await super().__aexit__(exc_type, exc_val, exc_tb)
        except trio.Cancelled as cancelled:
            if self.status is self.Status.ACTIVE:  # neither the commit nor the roll-back was sent
                await self._leave(cancelled)
            raise

    async def _leave(self, error: BaseException) -> None:
        async def roll_back() -> None:
            async with self._conn.lock:
                if self.status is self.Status.ACTIVE:
                    await self._conn.wait(self._exit_gen(type(error), error, None))

        await self._conn.leave(roll_back)
        if self.status is self.Status.ACTIVE:
            self.status = self.Status.FAILED
        connection = self._conn
        left = connection.closed or connection.pgconn.transaction_status == pq.TransactionStatus.IDLE
        if self._outer_transaction and not left and connection._pipeline is None:
            connection.abandon("a cancelled transaction could not be rolled back")


class Pipeline(AsyncPipeline):
    """A pipeline that is never left open by a cancel."""

    _conn: Connection[Any]

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        """Send what is left and collect all answers."""
        if isinstance(exc_val, trio.Cancelled):
            await self._leave(exc_val)
            return
        try:
            async with self._lock:
                await self._conn.wait(self._exit_gen())
        except trio.Cancelled as cancelled:
            await self._leave(cancelled)
            raise
        except psycopg.Error as error:
            self._exit(exc_val or error)
            if exc_val is None:
                raise
            quietly(logger.debug, "ignored while leaving %r after an error: %s", self, error)
        else:
            self._exit(exc_val)

    async def _leave(self, cancelled: trio.Cancelled) -> None:
        connection = self._conn

        async def collect() -> None:
            async with self._lock:
                if connection.pgconn.transaction_status == ACTIVE:
                    await connection.cancel_safe()
                await connection.wait(self._exit_gen())

        await connection.leave(collect)
        self._exit(cancelled)
        if self.level == 0 and not connection.closed and connection.pgconn.pipeline_status != pq.PipelineStatus.OFF:
            connection.abandon("a cancelled pipeline could not be left")


class Cursor(psycopg.AsyncCursor[Row]):
    """A cursor that no cancel leaves half-read, in a COPY or a stream.

    If prepared statements do not work, the cursor does without.
    """

    _conn: Connection[Any]

    async def execute(
        self, query: Query, params: Params | None = None, *, prepare: bool | None = None, binary: bool | None = None
    ) -> Self:
        """Run a statement. See psycopg.

        If the statement was a transaction of its own, nothing of it was done. Then it is run again
        after these errors:

        - A pooler in transaction mode has lost a prepared statement, or taken another for it. The
          connection prepares no more.
        - A table or function has changed since the statement was prepared. It is prepared anew.
        - The server has undone it for the sake of another transaction, and the connection
          `repeats`.
        """
        tries = 0
        while True:
            tries += 1
            try:
                return await super().execute(query, params, prepare=prepare, binary=binary)  # type: ignore[arg-type, misc]  # overloaded
            except (errors.InvalidSqlStatementName, errors.DuplicatePreparedStatement):
                self._conn.prepare_threshold = None
                prepare = False
                if tries > 1 or self._conn.pgconn.transaction_status != pq.TransactionStatus.IDLE:
                    raise
            except errors.FeatureNotSupported as error:
                if not is_stale_plan(error):
                    raise
                self._conn.forget_statements()
                if tries > 1 or self._conn.pgconn.transaction_status != pq.TransactionStatus.IDLE:
                    raise
            except UNDONE:
                if not may_repeat(self._conn, tries):
                    raise

    @asynccontextmanager
    async def copy(
        self, statement: Query, params: Params | None = None, *, writer: AsyncWriter | None = None
    ) -> AsyncIterator[AsyncCopy]:
        """Run a COPY. See psycopg.

        Cancellation: the server throws away the rows that were sent. The connection is in order
        again, or closed.
        """
        async with self._conn.lock:
            await self._conn.wait(self._start_copy_gen(statement, params))
            async with Copy(self, writer=writer) as copy:
                yield copy
        self._select_current_result(0)

    async def stream(
        self, query: Query, params: Params | None = None, *, binary: bool | None = None, size: int = 1
    ) -> AsyncGenerator[Row, None]:
        """Yield rows while the server still produces them. See psycopg.

        Cancellation: if rows are still to come, the connection is closed.
        """
        try:
            rows = cast("AsyncGenerator[Row, None]", super().stream(query, params, binary=binary, size=size))
            async with aclosing(rows):
                async for row in rows:
                    yield row
        finally:
            if not self._conn.closed and self._pgconn.transaction_status == ACTIVE:
                self._conn.abandon("a stream was cancelled in the middle")


Connection.own_cursor = Cursor


class Copy(AsyncCopy):
    """A COPY that is never left half-way by a cancel."""

    connection: Connection[Any]

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        """Say that this was all, or take it back after an error or a cancel."""
        if isinstance(exc_val, trio.Cancelled):
            await self._leave(exc_val)
            return
        try:
            await self.finish(exc_val)
        except trio.Cancelled as cancelled:
            await self._leave(cancelled)
            raise

    async def _leave(self, cancelled: trio.Cancelled) -> None:
        connection = self.connection
        if self._pgconn.transaction_status == ACTIVE:
            await connection.leave(lambda: self.finish(cancelled))
        if not connection.closed and self._pgconn.transaction_status == ACTIVE:
            connection.abandon("a cancelled COPY could not be left")
