"""Procrastinate, on psycopg and uvloop."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import procrastinate

from bench.peers.protocol import Notes, main, ready, sleep_until_cancelled, until_sigterm

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

# Each running job holds a connection while it is fetched and finished, so the pool matters as much as the concurrency.
CONCURRENCY = 100
POOL_CONNECTIONS = 50


def _open(dsn: str, connections: int) -> procrastinate.App:
    connector = procrastinate.PsycopgConnector(conninfo=dsn, min_size=1, max_size=connections)
    return procrastinate.App(connector=connector)


class _Client:
    def __init__(self, app: procrastinate.App) -> None:
        self._app = app

    async def enqueue(self, job_type: str, number: int) -> Any:
        return await self._app.configure_task(job_type).defer_async(n=number)

    async def enqueue_many(self, job_type: str, numbers: Sequence[int]) -> None:
        await self._app.configure_task(job_type).batch_defer_async(*({"n": number} for number in numbers))

    async def cancel(self, job_id: Any) -> None:
        await self._app.job_manager.cancel_job_by_id_async(job_id, abort=True)


class _App:
    async def setup(self, dsn: str) -> None:
        app = _open(dsn, 1)
        async with app.open_async():
            await app.schema_manager.apply_schema_async()

    async def work(self, dsn: str, notes: Notes, purpose: str) -> None:  # noqa: ARG002  # one setting is best at both
        app = _open(dsn, POOL_CONNECTIONS + 2)

        @app.task(name="noop")
        async def noop(n: int) -> None:  # noqa: ARG001
            notes.count()

        @app.task(name="stamp")
        async def stamp(n: int) -> None:
            notes.write("start", n)

        @app.task(name="sleep")
        async def sleep(n: int) -> None:
            await sleep_until_cancelled(notes, n)

        async with app.open_async():
            running = asyncio.create_task(
                app.run_worker_async(concurrency=CONCURRENCY, install_signal_handlers=False, listen_notify=True)
            )
            ready()
            await until_sigterm()
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    @asynccontextmanager
    async def open_client(self, dsn: str, connections: int) -> AsyncIterator[_Client]:
        app = _open(dsn, connections)
        async with app.open_async():
            yield _Client(app)


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    main(_App())
