"""Whether the server is away: proof that no process at all is connected to it.

A worker that hears nothing may be cut off; then others go on without it. Or the server may be down;
then nobody does anything. The worker cannot know which. But if the very address at which the server
listens refuses a connection, the server is down. It is down, too, if a server answers there that is
only starting.

If a relay, a pooler or a service address refuses, that proves nothing. So these are told apart
first, while all is well: the server says where it listens, and this end knows to which address it
is connected.

A firewall that refuses in the server's place is taken for the server.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import TYPE_CHECKING, Any

import attrs
import trio
from psycopg.conninfo import conninfo_to_dict

if TYPE_CHECKING:
    from pgnotifyq.wire.connection import Connection

STARTING = b"57P03"  # cannot_connect_now
ANSWER_BYTES_MAX = 4096


@attrs.frozen
class Postmaster:
    """Where a server listens. No relay is in between."""

    family: int
    address: Any  # a path, or host and port

    async def is_away(self, seconds: float) -> bool:
        """Tell whether the server is certainly down, or not up yet.

        If there is no answer within `seconds`, that is not certain.

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
            # An error message. Its fields end with a zero byte. The SQLSTATE's field begins with a
            # C.
            return answer[:1] == b"E" and b"\0C" + STARTING in answer
        return False


async def find_postmaster(connection: Connection, dsn: str) -> Postmaster | None:
    """Return where the server of this connection listens.

    None: something is in between, or `dsn` names more than one host.
    """
    info, named = connection.info, conninfo_to_dict(dsn)
    if any("," in str(named.get(name, os.environ.get(f"PG{name.upper()}", ""))) for name in ("host", "hostaddr")):
        return None
    cursor = await connection.execute("select pg_backend_pid(), host(inet_server_addr()), inet_server_port()")
    row = await cursor.fetchone()
    assert row is not None
    with socket.socket(fileno=os.dup(connection.pgconn.socket)) as mine:
        family, address = mine.family, mine.getpeername()
    if row[0] != info.backend_pid:
        return None  # a pooler tells process numbers that it made up
    if family == socket.AF_UNIX:
        return Postmaster(family, address) if row[1] is None and address else None
    return Postmaster(family, address) if (row[1], row[2]) == tuple(address[:2]) else None


def _hello() -> bytes:
    """Return a start-up message of version 3.0.

    A server that is up refuses the user, or asks for a password. Then the connection is closed.
    """
    told = struct.pack("!i", 3 << 16) + b"user\0pgnotifyq\0database\0pgnotifyq\0\0"
    return struct.pack("!i", len(told) + 4) + told


_HELLO = _hello()
