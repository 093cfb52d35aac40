"""A small bounded pool of connections for trio.

Rules:

- At most `size_max` connections; they are opened when needed, and nothing runs in the background.
- The task that waits longest is served first. It waits at most `acquire_seconds`.
- A connection goes back only if it is idle outside any transaction, and if its session looks as it
  did when it was opened. Otherwise the pool rolls back and closes the connection. One connect costs
  milliseconds; a leaked setting costs somebody else's data.
- Much of a session cannot be seen from here: `set role`, LISTEN, temporary objects, prepared
  statements, held cursors, session-level advisory locks. A pool that lends to others' code discards
  all of it at each return. The pool sends that statement and does not wait. It reads the answer
  when it next hands out the connection; the answer has come by then. The statement does not reach
  connections made by dblink, the seed of `random()`, and variables of procedural languages.
- If a connection's server refused to write, the connection is closed, whatever the session says. It
  may lead to a standby, or to a server that has become one.
- An idle connection has nothing to read, but for that answer. If it has more, the server has closed
  or terminated it, and it is never handed out.
"""

from __future__ import annotations

from collections import deque
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import attrs
import psycopg
import trio
from psycopg import pq
from psycopg.rows import tuple_row

from pgnotifyq.ledger.statements import session
from pgnotifyq.model.errors import ClientClosed, PoolTimeout
from pgnotifyq.wire import asking, waiting
from pgnotifyq.wire.connection import INTERRUPT_SECONDS, Connection, connect
from pgnotifyq.wire.lent import Lent
from pgnotifyq.wire.loops import another_loop, need_trio
from pgnotifyq.wire.sessions import For

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from psycopg.rows import TupleRow

ACQUIRE_SECONDS = 30.0
"""How long to wait for a free connection before saying that the pool is too small."""

IDLE_SECONDS_MAX = 300.0
"""A connection that has rested longer is replaced: firewalls forget silent flows after about this
long."""

REPORTED_SETTINGS = (
    b"application_name",
    b"client_encoding",
    b"DateStyle",
    b"default_transaction_read_only",
    b"IntervalStyle",
    b"is_superuser",
    b"search_path",
    b"session_authorization",
    b"standard_conforming_strings",
    b"TimeZone",
)
"""Settings that the server reports by itself, so to compare them costs no round trip. `search_path`
is reported from version 18 on."""

_DISCARD = session("discard")
_IN_TRANSACTION = (pq.TransactionStatus.INTRANS, pq.TransactionStatus.INERROR)


@attrs.frozen(kw_only=True)
class PoolStats:
    """A pool's counts at one moment."""

    size_max: int
    """The bound on open connections."""
    open: int
    """Connections that are lent or idle."""
    idle: int
    """Connections ready to be handed out."""
    waiting: int
    """Tasks that wait for a connection."""


@asynccontextmanager
async def open_pool(
    dsn: str,
    *,
    size_max: int,
    acquire_seconds: float = ACQUIRE_SECONDS,
    application_name: str | None = None,
    is_for_others: bool = False,
    used_for: For = For.ANYBODY,
    **parameters: Any,
) -> AsyncIterator[Pool]:
    """Open a pool for the length of a block. Nothing is connected until somebody asks.

    Args:
        dsn: a libpq connection string or URI.
        size_max: the most connections open at once.
        acquire_seconds: how long `Pool.connection` waits for a free one.
        application_name: what pg_stat_activity shows.
        is_for_others: whether connections are lent to others' code. Then the session is discarded
            at each return.
        used_for: whose statements the connections are for (wire/sessions.py). Unless it is ANYBODY,
            they must be able to write.
        **parameters: further libpq parameters.

    Cancellation: idle connections are closed. Lent connections are closed when they come back.
    """
    pool = Pool(
        dsn,
        size_max=size_max,
        acquire_seconds=acquire_seconds,
        application_name=application_name,
        is_for_others=is_for_others,
        parameters={**parameters, "used_for": used_for, "must_write": True},
    )
    try:
        yield pool
    finally:
        pool.close_nowait()


class Pool:
    """Connections that outlive their users. Made by `open_pool`."""

    def __init__(
        self,
        dsn: str,
        *,
        size_max: int,
        acquire_seconds: float,
        application_name: str | None,
        is_for_others: bool,
        parameters: dict[str, Any],
    ) -> None:
        self._dsn = dsn
        self._size_max = size_max
        self._acquire_seconds = acquire_seconds
        self._application_name = application_name
        self._is_for_others = is_for_others
        self._parameters = parameters
        self._permits = trio.Semaphore(size_max, max_value=size_max)
        # The last connection that came back is the first that is lent.
        self._idle: deque[tuple[Connection[TupleRow], float]] = deque()
        # What the session of each open connection reported when it was opened.
        self._settings: dict[Connection[TupleRow], tuple[bytes | None, ...]] = {}
        # Idle connections whose answer to the discarding statement has not been read.
        self._unanswered: set[Connection[TupleRow]] = set()
        self._closed = False
        self._loop = trio.lowlevel.current_trio_token()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection[TupleRow]]:
        """Lend a connection in autocommit mode for the length of a block.

        Cancellation: a task that waits gives up its place. In the block, an open transaction is
        rolled back, within `INTERRUPT_SECONDS`.

        Raises:
            PoolTimeout: none became free within `acquire_seconds`.
            DatabaseUnreachable: a new one was needed and could not be opened.
        """
        await self._take_permit()
        try:
            connection = await self._take_idle() or await self._open()
            if self._is_for_others:
                lent = Lent.of(connection)
                try:
                    yield lent
                finally:
                    await self._take_back_lent(connection, lent)
            else:
                try:
                    yield connection
                finally:
                    await self._take_back(connection)
        finally:
            self._permits.release()

    def stats(self) -> PoolStats:
        """Return the counts of this moment."""
        return PoolStats(
            size_max=self._size_max,
            open=len(self._settings),
            idle=len(self._idle),
            waiting=self._permits.statistics().tasks_waiting,
        )

    def close_nowait(self) -> None:
        """Close the idle connections and refuse everybody else."""
        self._closed = True
        while self._idle:
            connection, _ = self._idle.pop()
            self._discard_nowait(connection)

    async def _take_permit(self) -> None:
        """Wait for a permit.

        A free one is taken at once: the exchange that follows lets other tasks run.
        """
        self.check()
        await waiting.meet_cancel()
        try:
            self._permits.acquire_nowait()
        except trio.WouldBlock:
            await self._wait_for_a_permit()

    async def _wait_for_a_permit(self) -> None:
        with trio.move_on_after(self._acquire_seconds):
            await self._permits.acquire()
            if self._closed:
                self._permits.release()
            self.check()
            return
        stats = self.stats()
        raise PoolTimeout(
            f"No database connection became free within {self._acquire_seconds:g} seconds:"
            f" all {stats.size_max} are in use and {stats.waiting} other tasks wait."
            " Raise the pool's size, or hold connections for a shorter time."
        )

    async def _take_idle(self) -> Connection[TupleRow] | None:
        now = trio.current_time()
        while self._idle:
            connection, since = self._idle.pop()
            is_fit = not connection.closed and now - since < IDLE_SECONDS_MAX
            if is_fit and connection in self._unanswered:
                is_fit = await self._is_discarded(connection)
            if is_fit and not waiting.is_readable_nowait(connection.pgconn.socket):
                return connection
            self._discard_nowait(connection)
        return None

    async def _is_discarded(self, connection: Connection[TupleRow]) -> bool:
        """Read the answer to the statement that discards a session.

        Cancellation: the connection is closed.
        """
        is_answered = False
        try:
            with trio.move_on_after(INTERRUPT_SECONDS), suppress(psycopg.Error):
                async with connection.lock:
                    await connection.wait(asking.answer(connection.pgconn))
                if connection.was_set:
                    await connection.enter()
                is_answered = True
        finally:
            if not is_answered:
                self._discard_nowait(connection)
        self._unanswered.discard(connection)
        return is_answered and _reported(connection) == self._settings[connection]

    async def _open(self) -> Connection[TupleRow]:
        connection: Connection[TupleRow] = await connect(
            self._dsn, autocommit=True, application_name=self._application_name, **self._parameters
        )
        self._settings[connection] = _reported(connection)
        return connection

    async def _take_back(self, connection: Connection[TupleRow]) -> None:
        if self._is_clean(connection):
            self._idle.append((connection, trio.current_time()))
            return
        status = connection.pgconn.transaction_status
        if status in _IN_TRANSACTION and not connection.lock.locked():
            # To close rolls back too, but some time later. When the block is left, the caller's
            # locks should be gone.
            await connection.leave(connection.rollback)
        self._discard_nowait(connection)

    async def _take_back_lent(self, connection: Connection[TupleRow], lent: Lent[TupleRow]) -> None:
        if lent.pgconn.transaction_status in _IN_TRANSACTION and not (lent.closed or lent.lock.locked()):
            await lent.leave(lent.rollback)
        if lent.give_back() and not (self._closed or lent.is_read_only):
            with suppress(psycopg.Error):
                connection.pgconn.send_query(_DISCARD)
                connection.pgconn.flush()
                self._unanswered.add(connection)
                self._idle.append((connection, trio.current_time()))
                return
        self._discard_nowait(connection)

    def _is_clean(self, connection: Connection[TupleRow]) -> bool:
        return (
            not self._closed
            and not connection.closed
            and connection.pgconn.transaction_status == pq.TransactionStatus.IDLE
            and connection.pgconn.pipeline_status == pq.PipelineStatus.OFF
            and not connection.lock.locked()
            and connection.autocommit
            and connection.row_factory is tuple_row
            and not connection._notifies_backlog
            and not connection.is_read_only
            and _reported(connection) == self._settings[connection]
        )

    def _discard_nowait(self, connection: Connection[TupleRow]) -> None:
        self._settings.pop(connection, None)
        self._unanswered.discard(connection)
        connection.close_nowait()

    def check(self) -> None:
        """Refuse to go on where the pool cannot be used.

        Raises:
            ClientClosed: it is closed.
            WrongLoop: this is not the loop that opened it.
        """
        try:
            is_here = trio.lowlevel.current_trio_token() is self._loop
        except RuntimeError:
            need_trio("this client", "it belongs to the loop that opened it")
            raise
        if not is_here:
            raise another_loop()
        if self._closed:
            raise ClientClosed


def _reported(connection: Connection[TupleRow]) -> tuple[bytes | None, ...]:
    return tuple(map(connection.pgconn.parameter_status, REPORTED_SETTINGS))
