"""Awa: a core in Rust, handlers in Python."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit, urlunsplit

import awa

from bench.peers.protocol import Notes, main, ready, until_sigterm

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

WORKERS = {"throughput": 1000, "latency": 10}
CONNECTIONS = 20
LOOK_SECONDS = 0.001  # a cancel is a flag that the handler reads: this often, here


@dataclass
class Noop:
    """Counted."""

    n: int


@dataclass
class Stamp:
    """Says when it started."""

    n: int


@dataclass
class Sleep:
    """Sleeps until the flag is set."""

    n: int


TYPES: dict[str, Any] = {"noop": Noop, "stamp": Stamp, "sleep": Sleep}


def _open(dsn: str, connections: int) -> awa.AsyncClient:
    """Open a client; its driver wants a host before the slash, though the one after `host=`, a socket's folder, is taken."""
    parts = urlsplit(dsn)
    port = parse_qs(parts.query).get("port", ["5432"])[0]
    user, _, host = parts.netloc.rpartition("@")
    netloc = parts.netloc if host else f"{user}@localhost:{port}"
    return awa.AsyncClient(urlunsplit(parts._replace(netloc=netloc)), connections)


class _Client:
    def __init__(self, client: awa.AsyncClient) -> None:
        self._client = client

    async def enqueue(self, job_type: str, number: int) -> Any:
        return (await self._client.insert(TYPES[job_type](number))).id

    async def enqueue_many(self, job_type: str, numbers: Sequence[int]) -> None:
        await self._client.enqueue_many_copy([TYPES[job_type](number) for number in numbers])

    async def cancel(self, job_id: Any) -> None:
        await self._client.cancel(job_id)


class _App:
    async def setup(self, dsn: str) -> None:
        async with _open(dsn, 2) as client:
            await client.migrate()
            await client.install_queue_storage()

    async def work(self, dsn: str, notes: Notes, purpose: str) -> None:
        async with _open(dsn, CONNECTIONS) as client:

            @client.task(Noop)
            async def noop(job: Any) -> None:  # noqa: ARG001
                notes.count()

            @client.task(Stamp)
            async def stamp(job: Any) -> None:
                notes.write("start", job.args.n)

            @client.task(Sleep)
            async def sleep(job: Any) -> None:
                notes.write("start", job.args.n)
                while not job.is_cancelled():  # noqa: ASYNC110  # there is nothing else to wait for
                    await asyncio.sleep(LOOK_SECONDS)
                notes.write("stop", job.args.n)

            await client.start([{"name": "default", "max_workers": WORKERS[purpose]}])
            ready()
            await until_sigterm()
            await client.shutdown()

    @asynccontextmanager
    async def open_client(self, dsn: str, connections: int) -> AsyncIterator[_Client]:
        async with _open(dsn, connections) as client:
            yield _Client(client)


if __name__ == "__main__":
    main(_App())
