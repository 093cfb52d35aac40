"""Oban for Python, on psycopg and uvloop."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from oban import Cancel, Job, Oban, worker
from oban.schema import install

from bench.peers.protocol import Notes, main, ready, until_sigterm

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

LIMIT = {"throughput": 1000, "latency": 10}
POOL_CONNECTIONS = 10
LOOK_SECONDS = 0.001  # a cancel is a flag that the handler reads: this often, here

_notes: Notes


@worker(queue="default")
class Noop:
    """Counted."""

    async def process(self, job: Job) -> None:  # noqa: ARG002
        """Be the handler."""
        _notes.count()


@worker(queue="default")
class Stamp:
    """Says when it started."""

    async def process(self, job: Job) -> None:
        """Be the handler."""
        _notes.write("start", job.args["n"])


@worker(queue="default")
class Sleep:
    """Sleeps until the flag is set."""

    async def process(self, job: Job) -> Any:
        """Be the handler."""
        _notes.write("start", job.args["n"])
        while not job.cancelled():  # noqa: ASYNC110  # there is nothing else to wait for
            await asyncio.sleep(LOOK_SECONDS)
        _notes.write("stop", job.args["n"])
        return Cancel("cancelled")


WORKERS: dict[str, Any] = {"noop": Noop, "stamp": Stamp, "sleep": Sleep}


class _Client:
    def __init__(self, oban: Oban) -> None:
        self._oban = oban

    async def enqueue(self, job_type: str, number: int) -> Any:
        return (await self._oban.enqueue(WORKERS[job_type].new({"n": number}))).id

    async def enqueue_many(self, job_type: str, numbers: Sequence[int]) -> None:
        await self._oban.enqueue_many([WORKERS[job_type].new({"n": number}) for number in numbers])

    async def cancel(self, job_id: Any) -> None:
        await self._oban.cancel_job(job_id)


class _App:
    async def setup(self, dsn: str) -> None:
        pool = await Oban.create_pool(dsn, max_size=1)
        await install(pool)
        await pool.close()

    async def work(self, dsn: str, notes: Notes, purpose: str) -> None:
        global _notes  # noqa: PLW0603  # handlers are classes, made by the queue
        _notes = notes
        pool = await Oban.create_pool(dsn, max_size=POOL_CONNECTIONS)
        async with Oban(pool=pool, queues={"default": LIMIT[purpose]}):
            ready()
            await until_sigterm()
        await pool.close()

    @asynccontextmanager
    async def open_client(self, dsn: str, connections: int) -> AsyncIterator[_Client]:
        pool = await Oban.create_pool(dsn, min_size=connections, max_size=connections)
        yield _Client(Oban(pool=pool))
        await pool.close()


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    main(_App())
