"""SAQ with its PostgreSQL queue, on psycopg and uvloop."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from saq import Job, Queue, Worker

from bench.peers.protocol import Notes, main, ready, sleep_until_cancelled, until_sigterm

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

CONCURRENCY = {"throughput": 100, "latency": 10}


class _Client:
    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    async def enqueue(self, job_type: str, number: int) -> Any:
        return await self._queue.enqueue(Job(job_type, kwargs={"n": number}, timeout=0))

    async def enqueue_many(self, job_type: str, numbers: Sequence[int]) -> None:
        # It has no bulk call; what comes nearest is a call each, all at once over its pool.
        await asyncio.gather(*(self.enqueue(job_type, number) for number in numbers))

    async def cancel(self, job_id: Any) -> None:
        await self._queue.abort(job_id, "cancelled")


class _App:
    async def setup(self, dsn: str) -> None:
        queue = Queue.from_url(dsn)
        await queue.connect()
        await queue.disconnect()

    async def work(self, dsn: str, notes: Notes, purpose: str) -> None:
        async def noop(_: Any, *, n: int) -> None:  # noqa: ARG001
            notes.count()

        async def stamp(_: Any, *, n: int) -> None:
            notes.write("start", n)

        async def sleep(_: Any, *, n: int) -> None:
            await sleep_until_cancelled(notes, n)

        queue = Queue.from_url(dsn, max_size=20)
        await queue.connect()
        handlers = [("noop", noop), ("stamp", stamp), ("sleep", sleep)]
        worker: Any = Worker(queue, handlers, concurrency=CONCURRENCY[purpose])
        worker.SIGNALS = []
        running = asyncio.create_task(worker.start())
        ready()
        await until_sigterm()
        worker.event.set()
        await running
        await queue.disconnect()

    @asynccontextmanager
    async def open_client(self, dsn: str, connections: int) -> AsyncIterator[_Client]:
        queue = Queue.from_url(dsn, min_size=connections, max_size=max(connections, 4))
        await queue.connect()
        yield _Client(queue)
        await queue.disconnect()


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    main(_App())
