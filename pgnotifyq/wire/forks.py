"""What a forked child inherits of our connections: nothing.

A child that was made by fork, and goes on without exec, holds all its parent's sockets. It never reads or writes them, but the server sees a
connection end only when the last who holds it lets go: a worker killed with -9 would seem alive, its locks and transactions with it, for
as long as a child of one of its handlers lives. Close-on-exec does not help where there is no exec.

So in the child each socket's number is made to lead nowhere, before any code of the child's runs. The parent keeps what it has.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING
from weakref import WeakSet

if TYPE_CHECKING:
    import psycopg

_open: WeakSet[psycopg.AsyncConnection[object]] = WeakSet()


def keep_from_children(connection: psycopg.AsyncConnection[object]) -> None:
    """Have forked children let go of a connection."""
    _open.add(connection)


def _let_go() -> None:
    nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for connection in list(_open):
        # Not closed: the number would be given to the child's next file, and be closed again with the connection.
        with suppress(Exception):  # it is closed, or closing
            os.dup2(nowhere, connection.pgconn.socket, inheritable=False)
    os.close(nowhere)


os.register_at_fork(after_in_child=_let_go)
