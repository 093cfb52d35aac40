"""The connections of this process, and what a fork leaves of them to a child: nothing.

A forked child has its parent's sockets. If it lives longer than the parent, the server goes on seeing the parent's sessions, and so do
other workers. If it uses a connection, two processes speak in one session; if it closes one, it says goodbye in the parent's name.

So in a child each socket is led to the null device, under the number it had: a number that was closed would be given to what the child
opens next, and libpq would close that. Nothing is sent, nothing of TLS either, and the parent does not notice. What the
child says on such a connection fails.

A child that becomes another program has none of this: libpq's sockets are closed by `exec`. A fork that Python does not know of, an
extension's, is not seen.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import psycopg

if TYPE_CHECKING:
    from psycopg._connection_base import BaseConnection

connections: WeakSet[BaseConnection[Any]] = WeakSet()
"""Those that were opened and are not closed."""

connecting: set[int] = set()
"""The sockets of those that are being opened, for a connection or to cancel a query."""


def _leave_to_child() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for fileno in [*map(_socket, list(connections)), *connecting]:
        if fileno is not None:
            with suppress(OSError):
                os.dup2(null, fileno, inheritable=False)
    os.close(null)
    connections.clear()
    connecting.clear()


def _socket(connection: BaseConnection[Any]) -> int | None:
    if connection.closed:
        return None
    try:
        return connection.pgconn.socket
    except psycopg.Error:  # it is lost, and has none
        return None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_child)
