"""Chancy, on psycopg and uvloop."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from chancy import Chancy, Job, Queue, Worker

from bench.peers.protocol import Notes, main, ready, sleep_until_cancelled, until_sigterm

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

CONCURRENCY = {"throughput": 1000, "latency": 10}

_notes: Notes


async def noop(*, n: int) -> None:  # noqa: ARG001
    """Count."""
    _notes.count()


async def stamp(*, n: int) -> None:
    """Say when it started."""
    _notes.write("start", n)


async def sleep(*, n: int) -> None:
    """Sleep until cancelled."""
    await sleep_until_cancelled(_notes, n)


HANDLERS: dict[str, Any] = {"noop": noop, "stamp": stamp, "sleep": sleep}


def _job(job_type: str, number: int) -> Job:
    return Job.from_func(HANDLERS[job_type], queue="work", kwargs={"n": number})


class _Client:
    def __init__(self, chancy: Chancy) -> None:
        self._chancy = chancy

    async def enqueue(self, job_type: str, number: int) -> Any:
        return await self._chancy.push(_job(job_type, number))

    async def enqueue_many(self, job_type: str, numbers: Sequence[int]) -> None:
        async for _ in self._chancy.push_many([_job(job_type, number) for number in numbers]):
            pass

    async def cancel(self, job_id: Any) -> None:
        await self._chancy.cancel_job(job_id)


class _App:
    async def setup(self, dsn: str) -> None:
        async with Chancy(dsn) as chancy:
            await chancy.migrate()

    async def work(self, dsn: str, notes: Notes, purpose: str) -> None:
        global _notes  # noqa: PLW0603  # handlers are found by their import path
        _notes = notes
        # Eager polling: the next fetch follows a job's end at once, not the polling interval.
        queue = Queue(
            "work", concurrency=CONCURRENCY[purpose], executor=Chancy.Executor.Async, eager_polling=True, polling_interval=1
        )
        async with Chancy(dsn) as chancy:
            await chancy.declare(queue, upsert=True)
            async with Worker(chancy, register_signal_handlers=False, shutdown_timeout=5):
                ready()
                await until_sigterm()

    @asynccontextmanager
    async def open_client(self, dsn: str, connections: int) -> AsyncIterator[_Client]:
        async with Chancy(dsn, min_connection_pool_size=connections, max_connection_pool_size=connections) as chancy:
            yield _Client(chancy)


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    main(_App())
