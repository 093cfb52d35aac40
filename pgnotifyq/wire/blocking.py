"""A blocking connection of ours, and a pool of them: psycopg's and psycopg_pool's.

A pool has four threads of psycopg_pool's, which open and close connections. A fork leaves nothing
of a pool to the child (forks.py); see `Pool.forget`.
"""

from __future__ import annotations

import os
import secrets
import select
import socket
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar, cast

import psycopg
from psycopg import errors, generators
from psycopg.rows import Row, TupleRow, tuple_row
from psycopg.waiting import Ready, Wait
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout

from pgnotifyq.ledger.statements import session
from pgnotifyq.wire import addresses, forks, pooling, sessions
from pgnotifyq.wire.names import check_psycopg
from pgnotifyq.wire.notifications import keep_notifications, listen_to, take_notifications_nowait, unlisten_to
from pgnotifyq.wire.ours import Ours
from pgnotifyq.wire.sessions import For

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    from psycopg.abc import ConnDict, ConnParam, PQGen
    from psycopg.pq.abc import PGconn
    from psycopg.rows import RowFactory

check_psycopg(pooling.NAMES)

Result = TypeVar("Result")

_LEFT: list[object] = []  # what was opened before a fork, so that no destructor runs in the child


def connect(
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

    Raises:
        DatabaseUnreachable: no address could be connected to, or the DSN cannot be read.
    """
    wanted = addresses.readable(dsn, application_name, **parameters)
    with addresses.explained(dsn, wanted):
        connection = _choose(wanted, used_for, must_write=must_write)
    connection.prepare_threshold = prepare_threshold
    connection._prepared._prepared_idx = secrets.randbits(48)  # see connection.py
    connection.repeats = used_for in {For.CALLER, For.WORKER}
    forks.connections.add(connection)
    return connection


def _choose(wanted: ConnDict, used_for: For, *, must_write: bool) -> Connection[TupleRow]:
    """Connect to the first address that answers; if that cannot write, to the first that can.

    If the address says which sessions will do, that counts instead.
    """
    connection = _open(wanted, used_for)
    if connection.can_write or used_for is For.ANYBODY or addresses.says(wanted, "target_session_attrs"):
        return connection
    try:
        better = _open({**wanted, "target_session_attrs": "read-write"}, used_for)
    except psycopg.OperationalError:
        if not must_write:
            return connection
        connection.close()
        raise psycopg.OperationalError(f"it is {addresses.READ_ONLY}") from None
    connection.close()
    return better


def _open(wanted: ConnDict, used_for: For) -> Connection[TupleRow]:
    parameters: dict[str, Any] = wanted
    connection = Connection.connect(**parameters)
    try:
        connection.used_for = used_for
        connection.can_write = connection.enter()
    except BaseException:
        connection.close()
        raise
    return connection


class Connection(Ours, psycopg.Connection[Row]):
    """`psycopg.Connection`, ours. A statement may have a deadline: see `bounded`."""

    own_cursor = psycopg.Cursor

    def __init__(self, pgconn: PGconn, row_factory: RowFactory[Any] = tuple_row) -> None:
        super().__init__(pgconn, row_factory)
        self.become_ours()
        self.can_write = True
        self._deadline: float | None = None  # on the monotonic clock

    @classmethod
    def connect(cls, conninfo: str = "", **parameters: Any) -> Self:
        """Open a connection as psycopg does, in autocommit mode."""
        return super().connect(conninfo, **{"autocommit": True, **parameters})

    def enter(self) -> bool:
        """Set what the session needs; return whether it can write (True if nobody asks)."""
        if self.used_for is For.ANYBODY:
            return True
        with self.lock:
            can_write, self.was_set = self.wait(sessions.enter(self.pgconn, self.used_for, self.info.encoding))
            return can_write

    @contextmanager
    def bounded(self, seconds: float) -> Iterator[None]:
        """Have the statements of a block answered within so many seconds, all together.

        Raises:
            psycopg.OperationalError: they were not; the connection is closed.
        """
        self._deadline = time.monotonic() + seconds
        try:
            yield
        finally:
            self._deadline = None

    def wait(self, gen: PQGen[Result], *arguments: Any, **named: Any) -> Result:
        """Drive one exchange. The caller holds `lock`."""
        try:
            if self._deadline is None:
                return super().wait(gen, *arguments, **named)
            return self._drive(gen, self._deadline)
        except errors.ReadOnlySqlTransaction:
            self.is_read_only = True
            raise

    def _drive(self, gen: PQGen[Result], deadline: float) -> Result:
        try:
            wish = next(gen)
            while True:
                ready = wait_ready(self.pgconn.socket, wish, deadline - time.monotonic())
                if not ready:
                    self.pgconn.finish()
                    raise errors.OperationalError("the server did not answer in time; the connection was closed")
                wish = gen.send(ready)
        except StopIteration as end:
            result: Result = end.value
            return result

    def hang_up(self) -> None:
        """End the session and leave the socket open.

        The thread that waits on the socket is woken with an error, and closes the connection.
        """
        with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(self.pgconn.socket)) as other:
            other.shutdown(socket.SHUT_RDWR)


def listen(connection: Connection[Any], channel: str) -> None:
    """Do what `notifications.listen` does."""
    keep_notifications(connection)
    connection.execute(listen_to(channel))


def unlisten(connection: Connection[Any], channel: str) -> None:
    """Do what `notifications.unlisten` does."""
    connection.execute(unlisten_to(channel))


def owns_session(connection: Connection[Any]) -> bool:
    """Do what `notifications.owns_session` does."""
    row = connection.execute(session("backend")).fetchone()
    return row is not None and bool(row[0] == connection.info.backend_pid)


def wait_notifications(connection: Connection[Any], seconds: float) -> list[psycopg.Notify]:
    """Wait until there are notifications, and return them in order of arrival.

    If none comes within so many seconds, return none.

    Raises:
        psycopg.OperationalError: the connection was closed, by the server or by another thread.
    """
    until = time.monotonic() + seconds
    with connection.lock:
        while not (arrived := take_notifications_nowait(connection)):
            connection._check_connection_ok()
            if not wait_ready(connection.pgconn.socket, Wait.R, until - time.monotonic()):
                break
            connection.wait(generators.notifies(connection.pgconn))
    return arrived


class _Pool(ConnectionPool[Connection[TupleRow]]):
    """psycopg_pool's pool, but it tells at once that a connection cannot be opened."""

    refusal: Exception

    def _connect(self, timeout: float | None = None) -> Connection[TupleRow]:
        try:
            return super()._connect(timeout)
        except Exception as error:
            self.refusal = error
            raise

    def _add_connection(self, attempt: Any, growing: bool = False) -> None:
        super()._add_connection(attempt or cast(Any, pooling.Once()), growing)

    def reconnect_failed(self) -> None:
        """Tell the threads that wait, if no other connection can come back to serve them."""
        with self._lock:
            waiters = [] if self._nconns else list(self._waiting)
            if waiters:
                self._waiting.clear()
        for waiter in waiters:
            waiter.fail(self.refusal)


class Pool:
    """At most so many connections, opened when they are needed. For any number of threads.

    Args:
        dsn: a libpq connection string or URI.
        size_max: the most connections open at once.
        application_name: what pg_stat_activity shows.
        used_for: whose statements the connections are for (sessions.py).
        prepare_threshold: 0 prepares what verbs ask, None nothing.
    """

    def __init__(self, dsn: str, *, size_max: int, application_name: str, used_for: For, prepare_threshold: int | None) -> None:
        class Pooled(Connection[TupleRow]):
            """How psycopg_pool opens one of ours."""

            @classmethod
            def connect(cls, conninfo: str = "", **_: Any) -> Any:
                """Open one."""
                return connect(
                    conninfo,
                    application_name=application_name,
                    used_for=used_for,
                    must_write=True,
                    prepare_threshold=prepare_threshold,
                )

        self._pool = _Pool(
            dsn,
            connection_class=Pooled,
            min_size=0,
            max_size=size_max,
            open=True,
            timeout=pooling.ACQUIRE_SECONDS,
            max_idle=pooling.IDLE_SECONDS_MAX,
            name=application_name,  # for psycopg_pool's log
            reconnect_timeout=0.0,  # its log says this number; the pool tries once (pooling.Once)
        )

    @contextmanager
    def connection(self, seconds: float = pooling.ACQUIRE_SECONDS) -> Iterator[Connection[TupleRow]]:
        """Lend a connection in autocommit mode for the length of a block.

        Raises:
            PoolTimeout: none became free within `seconds`.
            DatabaseUnreachable: a new one was needed and could not be opened.
        """
        connection = self._take(seconds)
        try:
            yield connection
        finally:
            self._give_back(connection)

    def close(self) -> None:
        """Close the idle connections, refuse everybody else, and end the threads."""
        self._pool.close()

    def forget(self) -> None:
        """Leave the pool alone: this is a child, and the pool was opened before the fork.

        The pool's locks may be held, and its threads are gone.
        """
        _LEFT.append(self._pool)
        self._pool._closed = True

    def _take(self, seconds: float) -> Connection[TupleRow]:
        until = time.monotonic() + seconds
        while True:
            try:
                connection = self._pool.getconn(timeout=until - time.monotonic())
            except (PoolTimeout, PoolClosed) as error:
                raise pooling.told(error, self._pool.max_size) from error
            if pooling.is_fit(connection):
                return connection
            connection.close()
            self._pool.putconn(connection)

    def _give_back(self, connection: Connection[TupleRow]) -> None:
        if not pooling.is_clean(connection):
            connection.close()
        self._pool.putconn(connection)


if hasattr(select, "poll"):

    def wait_ready(fileno: int, wish: int, seconds: float) -> Ready:
        """Wait until a socket is as wished, for so many seconds at most; return what it is."""
        poll = select.poll()
        poll.register(fileno, (select.POLLIN if wish & Wait.R else 0) | (select.POLLOUT if wish & Wait.W else 0))
        ready = 0
        for _, event in poll.poll(max(0.0, seconds) * 1000):
            if event & ~select.POLLOUT:  # readable, hung up or in error: reading says which
                ready |= Ready.R
            if event & select.POLLOUT:
                ready |= Ready.W
        return Ready(ready)

else:

    def wait_ready(fileno: int, wish: int, seconds: float) -> Ready:
        """Wait until a socket is as wished, for so many seconds at most; return what it is."""
        reads, writes = [fileno] if wish & Wait.R else [], [fileno] if wish & Wait.W else []
        readable, writable, _ = select.select(reads, writes, [], max(0.0, seconds))
        return Ready((Ready.R if readable else Ready.NONE) | (Ready.W if writable else Ready.NONE))
