"""Ours, driven like a peer: the public client and worker, on trio."""

from __future__ import annotations

import functools
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import trio

import pgnotifyq
from bench.peers.protocol import Loop, Notes, main, ready
from pgnotifyq.cli.worker import spare_the_collector
from pgnotifyq.migrating import migrate
from pgnotifyq.wire.connection import open_connection

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Sequence

CONCURRENCY = {"throughput": 500, "latency": 10}


def registry(notes: Notes) -> pgnotifyq.JobRegistry:
    """Return a registry with the three types of job."""
    made = pgnotifyq.JobRegistry()

    @made.handler("noop")
    async def noop(payload: dict[str, Any]) -> None:  # noqa: ARG001
        notes.count()

    @made.handler("stamp")
    async def stamp(payload: dict[str, Any]) -> None:
        notes.write("start", payload["n"])

    @made.handler("sleep")
    async def sleep(payload: dict[str, Any]) -> None:
        notes.write("start", payload["n"])
        try:
            await trio.sleep_forever()
        finally:
            notes.write("stop", payload["n"])

    return made


class _Client:
    def __init__(self, client: pgnotifyq.Client) -> None:
        self._client = client

    async def enqueue(self, job_type: str, number: int) -> Any:
        return await self._client.enqueue(job_type, {"n": number})

    async def enqueue_many(self, job_type: str, numbers: Sequence[int]) -> None:
        await self._client.enqueue_many([{"job_type": job_type, "payload": {"n": number}} for number in numbers])

    async def cancel(self, job_id: Any) -> None:
        await self._client.cancel(job_id)


class _App:
    async def setup(self, dsn: str) -> None:
        async with open_connection(dsn) as connection:
            await migrate(connection)

    async def work(self, dsn: str, notes: Notes, purpose: str) -> None:
        import signal

        spare_the_collector()  # as `python -m pgnotifyq worker` does
        async with trio.open_nursery() as nursery:
            start = functools.partial(pgnotifyq.run_worker, registry(notes), dsn, concurrency=CONCURRENCY[purpose])
            handle = await nursery.start(start)
            ready()
            with trio.open_signal_receiver(signal.SIGTERM) as signals:
                async for _ in signals:
                    break
            handle.drain()

    @asynccontextmanager
    async def open_client(self, dsn: str, connections: int) -> AsyncIterator[_Client]:
        async with pgnotifyq.open_client(dsn, connections_max=connections) as client:
            yield _Client(client)


async def _together(tasks: Sequence[Callable[[], Coroutine[Any, Any, None]]]) -> None:
    async with trio.open_nursery() as nursery:
        for task in tasks:
            nursery.start_soon(task)


if __name__ == "__main__":

    async def _awaited(todo: Coroutine[Any, Any, None]) -> None:
        await todo

    main(_App(), Loop(run=lambda todo: trio.run(_awaited, todo), sleep=trio.sleep, together=_together))
