"""LISTEN, and waiting for notifications without polling.

Any exchange may read a notification from the socket. psycopg puts each of them into the
connection's backlog. Here the backlog is the only source: a waiter reads the socket, and then takes
what lies in the backlog. So no notification is lost if it arrives during another statement, or if
the waiter is cancelled. None is seen twice. Add no notify handler of psycopg's: it would take them
away.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import ref

import psycopg
from psycopg import generators, sql

from pgnotifyq.ledger.statements import session

if TYPE_CHECKING:
    from psycopg._connection_base import BaseConnection
    from psycopg.pq import PGnotify


async def listen(connection: psycopg.AsyncConnection[Any], channel: str) -> None:
    """Subscribe the session to `channel`, any name of at most 63 bytes.

    Scan the table after this has returned. A scan before would miss what happens between the two.
    """
    keep_notifications(connection)
    await connection.execute(listen_to(channel))


def listen_to(channel: str) -> sql.Composed:
    """Return the statement that subscribes to a channel."""
    return sql.SQL("listen {}").format(sql.Identifier(channel))


def unlisten_to(channel: str) -> sql.Composed:
    """Return the statement that unsubscribes from a channel."""
    return sql.SQL("unlisten {}").format(sql.Identifier(channel))


def keep_notifications(connection: BaseConnection[Any]) -> None:
    """Have what is heard, in whatever bytes, go to the connection's backlog."""
    connection.pgconn.notify_handler = partial(_keep, ref(connection))


def _keep(connection_ref: ref[BaseConnection[Any]], note: PGnotify) -> None:
    """Do what psycopg's own handler does, whatever the bytes.

    In a database without an encoding, any role can send bytes that are no text.
    """
    connection = connection_ref()
    if connection is None or connection._notifies_backlog is None:
        return
    channel, payload = (raw.decode("utf-8", errors="replace") for raw in (note.relname, note.extra))
    connection._notifies_backlog.append(psycopg.Notify(channel, payload, note.be_pid))


async def owns_session(connection: psycopg.AsyncConnection[Any]) -> bool:
    """Tell whether the connection has a session of the server to itself, for as long as it lives.

    A pooler tells its clients a process number that it made up. In transaction mode it accepts
    LISTEN, and nothing is ever heard. In session mode LISTEN works, but this end cannot see which
    mode it is.
    """
    cursor = await connection.execute(session("backend"))
    row = await cursor.fetchone()
    return row is not None and bool(row[0] == connection.info.backend_pid)


async def unlisten(connection: psycopg.AsyncConnection[Any], channel: str | None = None) -> None:
    """Unsubscribe the session from `channel`; None: from all."""
    await connection.execute(sql.SQL("unlisten {}").format(sql.SQL("*")) if channel is None else unlisten_to(channel))


async def wait_notifications(connection: psycopg.AsyncConnection[Any]) -> list[psycopg.Notify]:
    """Wait until there are notifications and return them, at least one, in order of arrival.

    The connection is busy meanwhile: statements of other tasks wait. Let one task own a listening
    connection. If that task wants to send something itself, let it bound this call by a cancel
    scope.

    Cancellation: at any moment, without loss; what arrived is returned by the next call.

    Raises:
        psycopg.OperationalError: the connection was closed, by the server or by another task.
    """
    async with connection.lock:
        while not (arrived := take_notifications_nowait(connection)):
            connection._check_connection_ok()
            await connection.wait(generators.notifies(connection.pgconn))
    return arrived


def take_notifications_nowait(connection: BaseConnection[Any]) -> list[psycopg.Notify]:
    """Return the notifications that other statements brought along, oldest first.

    The server is not asked.
    """
    pgconn = connection.pgconn
    if not connection.closed:
        # libpq may hold notifications that it read behind the last result. The socket does not
        # announce those.
        while (late := pgconn.notifies()) is not None:
            if pgconn.notify_handler is not None:
                pgconn.notify_handler(late)
    backlog = connection._notifies_backlog
    if backlog is None:
        return []
    arrived = list(backlog)
    backlog.clear()
    return arrived
