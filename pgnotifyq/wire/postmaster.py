"""Whether the server is away: proof that nobody at all is connected to it.

A worker that hears nothing cannot know whether it is cut off, and others go on without it, or whether the server is down, and nobody
does anything. When the very address at which the server listens refuses, or is answered by a server that is only starting, it is
down. A relay, a pooler or a service address that refuses says nothing of the kind, so they are told apart first, while all is well: the
server says where it listens, and this end knows whom it is connected to.

A firewall that refuses in the server's place is taken for it.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import TYPE_CHECKING, Any

import attrs
import trio
from psycopg.conninfo import conninfo_to_dict

from pgnotifyq.ledger.statements import session

if TYPE_CHECKING:
    from pgnotifyq.wire.connection import Connection

STARTING = b"57P03"  # cannot_connect_now
ANSWER_BYTES_MAX = 4096


@attrs.frozen
class Postmaster:
    """Where a server listens; no relay is in between."""

    family: int
    address: Any  # a path, or host and port

    async def is_away(self, seconds: float) -> bool:
        """Tell whether the server is certainly down, or not up yet. Unanswered for `seconds` it is not certain.

        Cancellation: at any moment.
        """
        with trio.move_on_after(seconds):
            try:
                with trio.socket.socket(self.family, socket.SOCK_STREAM) as stream:
                    await stream.connect(self.address)
                    await stream.send(_HELLO)
                    answer = await stream.recv(ANSWER_BYTES_MAX)
            except (ConnectionRefusedError, FileNotFoundError):
                return True
            except OSError:
                return False
            # An error message: its fields end with a zero byte, and that of the SQLSTATE begins with a C.
            return answer[:1] == b"E" and b"\0C" + STARTING in answer
        return False


async def find_postmaster(connection: Connection, dsn: str) -> Postmaster | None:
    """Return where the server of this connection listens; None when something is in between, or `dsn` names more than one host."""
    info, named = connection.info, conninfo_to_dict(dsn)
    if any("," in str(named.get(name, os.environ.get(f"PG{name.upper()}", ""))) for name in ("host", "hostaddr")):
        return None
    cursor = await connection.execute(session("address"))
    row = await cursor.fetchone()
    assert row is not None
    with socket.socket(fileno=os.dup(connection.pgconn.socket)) as mine:
        family, address = mine.family, mine.getpeername()
    if row[0] != info.backend_pid:
        return None  # a pooler tells numbers of its own
    if family == socket.AF_UNIX:
        return Postmaster(family, address) if row[1] is None and address else None
    return Postmaster(family, address) if (row[1], row[2]) == tuple(address[:2]) else None


def _hello() -> bytes:
    """Return a start-up message of version 3.0; whoever is up refuses the user, or asks for a password, and is left."""
    told = struct.pack("!i", 3 << 16) + b"user\0pgnotifyq\0database\0pgnotifyq\0\0"
    return struct.pack("!i", len(told) + 4) + told


_HELLO = _hello()
