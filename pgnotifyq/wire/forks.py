"""The connections of this process, and what a fork leaves of them to a child: nothing.

A forked child has its parent's sockets. If the child outlives the parent, the server still sees the
parent's sessions, and so do other workers. If the child uses a connection, two processes speak in
one session. If the child closes one, it says goodbye in the parent's name.

So in a child each socket is led to the null device, under the same number. It is not closed: the
next file that the child opens would get the number, and libpq would close that file. The child
sends nothing, nothing of TLS either, and the parent does not notice. If the child uses such a
connection, it gets an error.

A child that becomes another program needs none of this: `exec` closes libpq's sockets. If an
extension forks without Python's knowing, this module does not see it.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import psycopg

if TYPE_CHECKING:
    from pgnotifyq.wire.connection import Connection

connections: WeakSet[Connection[Any]] = WeakSet()
"""The connections that were opened and are not closed."""

connecting: set[int] = set()
"""The sockets of connections that are being opened, also of those that cancel a query."""


def _leave_to_child() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for fileno in [*map(_socket, list(connections)), *connecting]:
        if fileno is not None:
            with suppress(OSError):
                os.dup2(null, fileno, inheritable=False)
    os.close(null)
    connections.clear()
    connecting.clear()


def _socket(connection: Connection[Any]) -> int | None:
    if connection.closed:
        return None
    try:
        return connection.pgconn.socket
    except psycopg.Error:  # it is lost, and has none
        return None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_child)
