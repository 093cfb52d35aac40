"""PgQueuer, on asyncpg and uvloop."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import asyncpg
from pgqueuer import PgQueuer
from pgqueuer.models import Job
from pgqueuer.queries import Queries

from bench.peers.protocol import Notes, main, ready, sleep_until_cancelled, until_sigterm

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

BATCH = {"throughput": 500, "latency": 10}
POOL_CONNECTIONS = 10


class _Client:
    def __init__(self, queries: Queries) -> None:
        self._queries = queries

    async def enqueue(self, job_type: str, number: int) -> Any:
        (job_id,) = await self._queries.enqueue(job_type, str(number).encode())
        return job_id

    async def enqueue_many(self, job_type: str, numbers: Sequence[int]) -> None:
        count = len(numbers)
        await self._queries.enqueue([job_type] * count, [str(number).encode() for number in numbers], [0] * count)

    async def cancel(self, job_id: Any) -> None:
        await self._queries.mark_job_as_cancelled([job_id])


class _App:
    async def setup(self, dsn: str) -> None:
        async with asyncpg.create_pool(dsn, min_size=1, max_size=1) as pool:
            await Queries.from_asyncpg_pool(pool).install()

    async def work(self, dsn: str, notes: Notes, purpose: str) -> None:
        async with asyncpg.create_pool(dsn, min_size=POOL_CONNECTIONS, max_size=POOL_CONNECTIONS) as pool:
            worker = PgQueuer.from_asyncpg_pool(pool)

            @worker.entrypoint("noop")
            async def noop(job: Job) -> None:  # noqa: ARG001
                notes.count()

            @worker.entrypoint("stamp")
            async def stamp(job: Job) -> None:
                notes.write("start", int(job.payload or b"0"))

            @worker.entrypoint("sleep")
            async def sleep(job: Job) -> None:
                with worker.qm.get_context(job.id).cancellation:
                    await sleep_until_cancelled(notes, int(job.payload or b"0"))

            running = asyncio.create_task(worker.run(dequeue_timeout=timedelta(seconds=30), batch_size=BATCH[purpose]))
            ready()
            await until_sigterm()
            worker.shutdown.set()
            await running

    @asynccontextmanager
    async def open_client(self, dsn: str, connections: int) -> AsyncIterator[_Client]:
        async with asyncpg.create_pool(dsn, min_size=connections, max_size=connections) as pool:
            yield _Client(Queries.from_asyncpg_pool(pool))


if __name__ == "__main__":
    main(_App())
