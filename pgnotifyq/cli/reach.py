"""Whether a database that a command waits for is still there.

A server that stands still would hold a command for ever. A statement may take its time (a migration
waits for a lock, a count for a large table), so the length of a wait says nothing. A frozen server,
or one behind a frozen path, keeps its connections open, and its kernel answers; no TCP option sees
that. So while a command waits, another connection asks now and then, under a deadline: the
address's own `connect_timeout`, or ten seconds. If two looks in a row get no answer, the database
is out of reach.

The other connection also asks what the sessions are doing that this process waits for. If such a
session is idle at two looks in a row, it has answered, or it was never asked: a message was lost.
Behind a pooler sessions are not known by their pids, so there a loss is not noticed.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import psycopg
import trio
from psycopg import pq
from psycopg.conninfo import timeout_from_conninfo

from pgnotifyq.ledger import look
from pgnotifyq.model.errors import DatabaseUnreachable
from pgnotifyq.wire import addresses, forks
from pgnotifyq.wire.asking import ask
from pgnotifyq.wire.connection import open_connection

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

T = TypeVar("T")

LOOK_SECONDS = 2.0  # between two looks: most commands have ended before the first
SILENT_LOOKS_MAX = 2  # one look may meet a server that is only slow


async def answered(dsn: str, act: Callable[[], Awaitable[T]]) -> T:
    """Do something that waits for a database, for as long as the database answers.

    Cancellation: `act` is cancelled.

    Raises:
        DatabaseUnreachable: the database does not answer. Like what `act` raises, this error comes
        in an exception group.
    """
    results: list[T] = []

    async def watched(everything: trio.CancelScope) -> None:
        results.append(await act())
        everything.cancel(reason="pgnotifyq: it has been answered")

    with _wire_is_silent():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_look_for_ever, dsn)
            nursery.start_soon(watched, nursery.cancel_scope)
    return results[0]


@contextmanager
def _wire_is_silent() -> Iterator[None]:
    """Log no connections that had to be closed: the error says it, in one line."""
    logs = [logging.getLogger(name) for name in ("pgnotifyq.wire", "psycopg")]
    before = [log.disabled for log in logs]
    for log in logs:
        log.disabled = True
    try:
        yield
    finally:
        for log, was_disabled in zip(logs, before, strict=True):
            log.disabled = was_disabled


async def _look_for_ever(dsn: str) -> None:
    """Ask the database again and again whether it answers, until it does not.

    Raises:
        DatabaseUnreachable: after two looks in a row.
    """
    wanted = addresses.parameters_from(dsn)
    seconds = timeout_from_conninfo(wanted)
    silent = 0
    idle: set[tuple[object, ...]] = set()
    while True:
        await trio.sleep(LOOK_SECONDS)
        waited_for = _waited_for()
        try:
            # Connecting has a deadline of its own, for each address.
            async with open_connection(dsn, application_name="pgnotifyq look") as connection:
                with trio.fail_after(seconds):
                    was_idle, idle = idle, set(await ask(connection, look.idle_backends("pgnotifyq", waited_for)))
            silent = 0
        except (trio.TooSlowError, DatabaseUnreachable, psycopg.Error) as error:
            # Any other answer shows that the server is there: too many connections, a password that
            # was changed. If a server has gone, it has closed the open connections.
            silent = silent + 1 if _is_silence(error) else 0
            was_idle = idle = set()
        if silent >= SILENT_LOOKS_MAX or {pid for pid, _ in idle & was_idle} & set(_waited_for()):
            raise DatabaseUnreachable(addresses.explain(wanted, psycopg.OperationalError("it has stopped answering")))


def _waited_for() -> list[int]:
    """Return the pids of the sessions that were asked something and have not answered."""
    return [
        connection.info.backend_pid
        for connection in list(forks.connections)
        if not connection.closed and connection.pgconn.transaction_status == pq.TransactionStatus.ACTIVE
    ]


def _is_silence(error: BaseException) -> bool:
    return isinstance(error, trio.TooSlowError) or isinstance(error.__cause__, psycopg.errors.ConnectionTimeout)
