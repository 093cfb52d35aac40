"""A TCP proxy before PostgreSQL that lets a test pull the cable, in the test's own trio loop."""

from __future__ import annotations

import socket
import struct
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg
import trio
from psycopg.conninfo import conninfo_to_dict, make_conninfo

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

CHUNK_BYTES = 65536
NOTIFICATION = ord("A")  # the type byte of PostgreSQL's message NotificationResponse
RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER with no time: closing sends a reset


class Proxy:
    """Forwards connections made to `dsn`, until told otherwise. Made by `run_proxy`."""

    def __init__(self, server_dsn: str) -> None:
        self._server = conninfo_to_dict(server_dsn)
        self._flowing = trio.Event()
        self._flowing.set()
        self._dropping_replies = False
        self._dropping_notifications = False
        self._streams: set[trio.SocketStream] = set()
        self.port = 0
        self.delay_seconds = 0.0  # before each piece is forwarded, in either direction
        self.dropped_bytes = 0  # replies that were lost so far, notifications included

    @property
    def dsn(self) -> str:
        """The server's DSN, by way of this proxy."""
        direct = {name: value for name, value in self._server.items() if name not in {"host", "hostaddr", "port"}}
        # In plain text, so that the server's messages can be told apart.
        plain = {"host": "127.0.0.1", "port": self.port, "sslmode": "disable", "gssencmode": "disable"}
        return make_conninfo(**{**direct, **plain})  # type: ignore[arg-type]

    @property
    def connections(self) -> int:
        """How many connections are open through this proxy."""
        return len(self._streams) // 2

    def lead_to(self, server_dsn: str) -> None:
        """Forward what is opened from now on to another server. What is open stays."""
        self._server = conninfo_to_dict(server_dsn)

    def freeze(self) -> None:
        """Forward nothing any more, in either direction. All stays open; new connections are silent."""
        if self._flowing.is_set():
            self._flowing = trio.Event()

    def thaw(self) -> None:
        """Forward again, what was held back first."""
        self._flowing.set()
        self._dropping_replies = False
        self._dropping_notifications = False
        self.delay_seconds = 0.0

    def drop_replies(self) -> None:
        """Deliver what clients say, and lose what the server answers."""
        self._dropping_replies = True

    def drop_notifications(self) -> None:
        """Lose the notifications, and nothing else: a listener that is connected, answered, and deaf."""
        self._dropping_notifications = True

    def cut(self) -> None:
        """Break all connections at once, with a reset. New ones are forwarded."""
        for stream in list(self._streams):
            if stream.socket.family != socket.AF_UNIX:
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            stream.socket.close()

    async def _forward(self, client: trio.SocketStream) -> None:
        async with client:
            try:
                server = await self._dial()
            except OSError:  # it is down, and the client learns that from the end of its connection
                return
            async with server:
                self._streams |= {client, server}
                try:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._pump_requests, client, server, nursery.cancel_scope)
                        nursery.start_soon(self._pump_replies, server, client, nursery.cancel_scope)
                finally:
                    self._streams -= {client, server}

    async def _pump_requests(self, client: trio.SocketStream, server: trio.SocketStream, both: trio.CancelScope) -> None:
        async def forward() -> None:
            while data := await client.receive_some(CHUNK_BYTES):
                await self._let_pass()
                await server.send_all(data)

        await self._pump(forward, both)

    async def _pump_replies(self, server: trio.SocketStream, client: trio.SocketStream, both: trio.CancelScope) -> None:
        async def forward() -> None:
            messages = Messages()
            while data := await server.receive_some(CHUNK_BYTES):
                whole = messages.cut(data)
                await self._let_pass()
                kept = b"".join(message for message in whole if not self._is_lost(message))
                self.dropped_bytes += sum(map(len, whole)) - len(kept)
                if kept:
                    await client.send_all(kept)

        await self._pump(forward, both)

    async def _pump(self, forward: Callable[[], Awaitable[None]], both: trio.CancelScope) -> None:
        try:
            await forward()
            await self._flowing.wait()  # a frozen cable does not tell of the end either
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        both.cancel()

    async def _let_pass(self) -> None:
        if self.delay_seconds:
            await trio.sleep(self.delay_seconds)
        await self._flowing.wait()

    def _is_lost(self, message: bytes) -> bool:
        return self._dropping_replies or (self._dropping_notifications and message[0] == NOTIFICATION)

    async def _dial(self) -> trio.SocketStream:
        host, port = str(self._server.get("host") or ""), int(self._server.get("port") or 5432)
        if host.startswith("/"):
            return await trio.open_unix_socket(f"{host}/.s.PGSQL.{port}")
        return await trio.open_tcp_stream(host or "127.0.0.1", port)


class Messages:
    """Cuts what a server says into messages: a type byte, then a length of four bytes that counts itself."""

    def __init__(self) -> None:
        self._rest = b""

    def cut(self, data: bytes) -> list[bytes]:
        """Return the messages that are whole by now."""
        self._rest += data
        start, whole = 0, []
        while len(self._rest) >= start + 5:
            end = start + 1 + int.from_bytes(self._rest[start + 1 : start + 5], "big")
            if len(self._rest) < end:
                break
            whole.append(self._rest[start:end])
            start = end
        self._rest = self._rest[start:]
        return whole


async def run_proxy(server_dsn: str, *, task_status: trio.TaskStatus[Proxy] = trio.TASK_STATUS_IGNORED) -> None:
    """Serve a proxy to `server_dsn` until cancelled: `proxy = await nursery.start(run_proxy, server_dsn)`."""
    proxy = Proxy(server_dsn)
    async with trio.open_nursery() as nursery:
        listeners: list[Any] = await nursery.start(partial(trio.serve_tcp, proxy._forward, 0, host="127.0.0.1"))
        proxy.port = listeners[0].socket.getsockname()[1]
        task_status.started(proxy)


async def until(dsn: str, condition: str, *parameters: object) -> None:
    """Wait until the SQL `condition` holds, asked on a connection of its own; give up after 10 s."""
    connection = await trio.to_thread.run_sync(partial(psycopg.connect, dsn, autocommit=True))
    with connection, trio.fail_after(10):
        while True:
            row = connection.execute(f"select {condition}".encode(), parameters).fetchone()
            if row is not None and row[0]:
                return
            await trio.sleep(0.01)
