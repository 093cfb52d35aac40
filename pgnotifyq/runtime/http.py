"""Probes and metrics over HTTP, by threads of their own: they answer while the event loop is held.

A cluster's own machinery sends a few requests a minute. So the standard library's server will do.
But a client that reaches the port may be slow, and there may be many clients. So these bounds hold:

- GET and HEAD of three paths, one request a connection, without a body.
- `CONNECTIONS_MAX` connections at once; further ones are closed. A connection lasts
  `CONNECTION_SECONDS_MAX` at the most, whatever its client does.
- Only one scrape at a time is put into words: that takes the interpreter from the loop.

Nothing is told that is not in docs/metrics.md: no payload, no tenant, no address.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import socketserver
import sys
import threading
import weakref
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import trio

from pgnotifyq.model.errors import ConfigError, quietly
from pgnotifyq.model.http_address import HttpAddress
from pgnotifyq.runtime.metrics import CONTENT_TYPE
from pgnotifyq.runtime.probes import live, ready

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from pgnotifyq.model.config import WorkerConfig
    from pgnotifyq.runtime.meter import Meter
    from pgnotifyq.runtime.metrics import Metrics
    from pgnotifyq.runtime.probes import Check

_log = logging.getLogger("pgnotifyq")
CONNECTIONS_MAX = 16
CONNECTION_SECONDS_MAX = 10.0  # Prometheus gives up by itself after ten
# Between two looks at connections that have lasted too long, and at whether the worker has ended.
LOOK_SECONDS = 0.25
PAUSE_SECONDS = 0.1  # after a connection that could not be accepted
_PATHS = "/live, /ready (?polling=ok) and /metrics"


@asynccontextmanager
async def open_http(address: HttpAddress, meter: Meter, metrics: Metrics, config: WorkerConfig) -> AsyncIterator[str]:
    """Answer probes and scrapes for the length of a block.

    Gives: the address that answers. If `address` asks for any free port, it names the port that was
        found.

    Raises:
        ConfigError: nothing can be opened at this address; the message says why.
    """
    server = await trio.to_thread.run_sync(_open, address, meter, metrics, config)
    thread = threading.Thread(target=server.serve_forever, args=(LOOK_SECONDS,), name="pgnotifyq http", daemon=True)
    thread.start()
    try:
        yield str(HttpAddress(address.host, server.server_address[1]))
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(server.close)


def _open(address: HttpAddress, meter: Meter, metrics: Metrics, config: WorkerConfig) -> _Server:
    try:
        family, _, _, _, where = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
            0
        ]
        return _Server(family, where, meter, metrics, config)
    except UnicodeError as error:  # a part of the name is empty, or has more than 63 letters
        raise ConfigError(f"http {address} cannot be opened: {address.host!r} is no name of a host") from error
    except OSError as error:
        raise ConfigError(f"http {address} cannot be opened: {error.strerror or error}; is the port taken?") from error


class _Server(ThreadingHTTPServer):
    """The standard library's server, with bounds."""

    daemon_threads = True
    request_queue_size = 2 * CONNECTIONS_MAX

    def __init__(self, family: int, where: Any, meter: Meter, metrics: Metrics, config: WorkerConfig) -> None:
        self.address_family = family
        self.meter = meter
        self.metrics = metrics
        self.config = config
        self.wording = threading.Lock()
        self._open: dict[socket.socket, float] = {}
        super().__init__(where, _Answer)
        _servers.add(self)

    def server_bind(self) -> None:
        """Bind, without the look-up of the machine's name that the standard library makes."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]  # a host is text here

    def verify_request(self, request: Any, client_address: Any) -> bool:  # noqa: ARG002  # the library's
        """Take a connection if there are not too many."""
        return len(self._open) < CONNECTIONS_MAX

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread."""
        self._open[request] = monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """End a connection."""
        self._open.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """End connections that have lasted too long. Called at each look."""
        now = monotonic()
        for request, since in list(self._open.items()):
            if now - since > CONNECTION_SECONDS_MAX:
                with suppress(OSError):
                    request.shutdown(socket.SHUT_RDWR)

    def get_request(self) -> Any:
        """Accept a connection. If the process may open no more, look again a little later."""
        try:
            return super().get_request()
        except OSError:
            sleep(PAUSE_SECONDS)
            raise

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002  # the library's
        """Log a bug of ours. A client that went away is not worth a line."""
        if not isinstance(sys.exception(), OSError):
            quietly(_log.error, "a probe was not answered", exc_info=True)

    def forget(self) -> None:
        """Close the copies of a forked child. Otherwise it keeps the port when the worker ends."""
        for each in (self.socket, *self._open):
            each.close()

    def close(self) -> None:
        """Answer no more, and free the port."""
        self.shutdown()
        self.server_close()


_servers: weakref.WeakSet[_Server] = weakref.WeakSet()


def _forget_in_child() -> None:
    for server in list(_servers):
        quietly(server.forget)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)


class _Answer(BaseHTTPRequestHandler):
    """One request, and its answer."""

    server: _Server
    timeout = CONNECTION_SECONDS_MAX
    server_version = "pgnotifyq"
    sys_version = ""

    def do_GET(self) -> None:
        """Answer."""
        path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
        vitals, config = self.server.meter.vitals, self.server.config
        match path:
            case "/live":
                self._say_checks(live(vitals, config))
            case "/ready":
                self._say_checks(ready(vitals, config, polling_will_do=query.get("polling") == ["ok"]))
            case "/metrics":
                self._say_metrics()
            case _:
                self._say(HTTPStatus.NOT_FOUND, f"There are {_PATHS}.\n")

    do_HEAD = do_GET  # noqa: N815  # the library's

    def _say_checks(self, checks: Mapping[str, Check]) -> None:
        is_ok = all(check.is_ok for check in checks.values())
        told = {"ok": is_ok, "checks": {name: {"ok": check.is_ok, "says": check.says} for name, check in checks.items()}}
        status = HTTPStatus.OK if is_ok else HTTPStatus.SERVICE_UNAVAILABLE
        self._say(status, json.dumps(told) + "\n", "application/json")

    def _say_metrics(self) -> None:
        try:
            with self.server.wording:
                body, content_type = self.server.metrics.text(self.headers.get("Accept", ""))
        except ConfigError as error:
            self._say(HTTPStatus.NOT_IMPLEMENTED, f"{error}\n")
        else:
            self._say(HTTPStatus.OK, body, content_type)

    def _say(self, status: HTTPStatus, body: str | bytes, content_type: str = CONTENT_TYPE) -> None:
        raw = body.encode() if isinstance(body, str) else body
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(raw)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:  # noqa: ARG002
        """Refuse what is no request of ours, in plain text, and repeat nothing of it."""
        status = HTTPStatus(HTTPStatus.METHOD_NOT_ALLOWED if code == HTTPStatus.NOT_IMPLEMENTED else code)
        self._say(status, f"{status.phrase}: GET or HEAD {_PATHS}.\n")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the library's
        """Say nothing: a probe comes every few seconds."""
