"""A TCP proxy before PostgreSQL that lets a test pull the cable, in the test's own trio loop."""

from __future__ import annotations

import socket
import struct
from functools import partial
from typing import Any

import psycopg
import trio
from psycopg.conninfo import conninfo_to_dict, make_conninfo

CHUNK_BYTES = 65536
RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER with no time: closing sends a reset


class Proxy:
    """Forwards connections made to `dsn`, until told otherwise. Made by `run_proxy`."""

    def __init__(self, server_dsn: str) -> None:
        self._server = conninfo_to_dict(server_dsn)
        self._flowing = trio.Event()
        self._flowing.set()
        self._dropping_replies = False
        self._streams: set[trio.SocketStream] = set()
        self.port = 0

    @property
    def dsn(self) -> str:
        """The server's DSN, by way of this proxy."""
        direct = {name: value for name, value in self._server.items() if name not in {"host", "hostaddr", "port"}}
        return make_conninfo(**{**direct, "host": "127.0.0.1", "port": self.port})  # type: ignore[arg-type]

    @property
    def connections(self) -> int:
        """How many connections are open through this proxy."""
        return len(self._streams) // 2

    def freeze(self) -> None:
        """Forward nothing any more, in either direction. All stays open; new connections are silent."""
        if self._flowing.is_set():
            self._flowing = trio.Event()

    def thaw(self) -> None:
        """Forward again, what was held back first."""
        self._flowing.set()
        self._dropping_replies = False

    def drop_replies(self) -> None:
        """Deliver what clients say, and lose what the server answers."""
        self._dropping_replies = True

    def cut(self) -> None:
        """Break all connections at once, with a reset. New ones are forwarded."""
        for stream in list(self._streams):
            if stream.socket.family != socket.AF_UNIX:
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            stream.socket.close()

    async def _forward(self, client: trio.SocketStream) -> None:
        async with client, await self._dial() as server:
            self._streams |= {client, server}
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(partial(self._pump, client, server, nursery.cancel_scope, replies=False))
                    nursery.start_soon(partial(self._pump, server, client, nursery.cancel_scope, replies=True))
            finally:
                self._streams -= {client, server}

    async def _pump(self, source: trio.SocketStream, sink: trio.SocketStream, both: trio.CancelScope, *, replies: bool) -> None:
        try:
            while data := await source.receive_some(CHUNK_BYTES):
                await self._flowing.wait()
                if not (replies and self._dropping_replies):
                    await sink.send_all(data)
            await self._flowing.wait()  # a frozen cable does not tell of the end either
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        both.cancel()

    async def _dial(self) -> trio.SocketStream:
        host, port = str(self._server.get("host") or ""), int(self._server.get("port") or 5432)
        if host.startswith("/"):
            return await trio.open_unix_socket(f"{host}/.s.PGSQL.{port}")
        return await trio.open_tcp_stream(host or "127.0.0.1", port)


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
