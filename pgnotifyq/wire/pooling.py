"""What the asyncio pool (aio.py) and the blocking pool (blocking.py) share.

Both are psycopg_pool's, with three habits of ours:

- If a connection cannot be opened, the callers that wait for one are told at once, as on trio.
  psycopg_pool alone tries again for minutes, and tells its callers of a timeout.
- An idle connection has nothing to read. If it has, the server has ended it, and it is not lent.
- A connection whose server refused to write is closed: it leads to a standby by now.
"""

from __future__ import annotations

import select
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import pq
from psycopg_pool import PoolClosed, PoolTimeout

from pgnotifyq.model import errors

if TYPE_CHECKING:
    from psycopg._connection_base import BaseConnection

ACQUIRE_SECONDS = 30.0
"""How long to wait for a free connection before saying that the pool is too small."""

IDLE_SECONDS_MAX = 300.0
"""A connection that has rested this long is closed: firewalls forget silent flows after about so
long."""

# By owner, as in names.py.
NAMES = {
    "psycopg_pool:AsyncConnectionPool": ("_add_connection", "_connect", "reconnect_failed"),
    "psycopg_pool:ConnectionPool": ("_add_connection", "_connect", "reconnect_failed"),
}


class Once:
    """How often psycopg_pool tries to connect before it gives up: once."""

    delay = 0.0

    def time_to_give_up(self, now: float) -> bool:  # noqa: ARG002  # psycopg_pool's
        """Tell that it is time."""
        return True


def is_fit(connection: BaseConnection[Any]) -> bool:
    """Tell whether an idle connection can be lent."""
    if connection.closed:
        return False
    try:
        return not _is_readable(connection.pgconn.socket)
    except (psycopg.OperationalError, OSError, ValueError):  # the socket is gone
        return False


def is_clean(connection: Any) -> bool:
    """Tell whether a connection of ours can be lent again."""
    return (
        not connection.closed
        and connection.pgconn.transaction_status == pq.TransactionStatus.IDLE
        and connection.pgconn.pipeline_status == pq.PipelineStatus.OFF
        and not connection.is_read_only
    )


def told(error: psycopg.Error, size_max: int) -> errors.PgnotifyqError:
    """Return our error for an error of psycopg_pool's."""
    if isinstance(error, PoolClosed):
        return errors.ClientClosed()
    assert isinstance(error, PoolTimeout)
    return errors.PoolTimeout(
        f"No database connection became free within {ACQUIRE_SECONDS:g} seconds: all {size_max} are in use."
        " Raise the pool's size, or hold connections for a shorter time."
    )


if hasattr(select, "poll"):

    def _is_readable(fileno: int) -> bool:
        poll = select.poll()
        poll.register(fileno, select.POLLIN)
        return bool(poll.poll(0))

else:

    def _is_readable(fileno: int) -> bool:
        return bool(select.select([fileno], [], [], 0)[0])
