"""What tests of waiting share: a worker, tasks that wait, and how the database shows what clients do."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio

import pgnotifyq
from pgnotifyq.doors.client import Client
from pgnotifyq.model.job import Job, JobId
from pgnotifyq.model.registry import JobRegistry
from pgnotifyq.wire.connection import Connection
from tests.asked import value

Link = Connection[Any]
LISTENER = "pgnotifyq client listener"
# Other people's tests may run on the same server: only this database counts.
LISTENING = "exists (select from pg_stat_activity where datname = current_database() and application_name = %s)"
AWAITED = "exists (select from pgnotifyq.jobs where awaited)"
# Longer than anything here takes, and far shorter than the backstop that some tests put out of reach.
SOON_SECONDS = 10.0


@attrs.frozen
class Resize:
    """A payload."""

    path: str
    width: int


@asynccontextmanager
async def worker(dsn: str, registry: JobRegistry, **settings: Any) -> AsyncIterator[None]:
    """Run a worker for the length of a block."""
    async with trio.open_nursery() as nursery:
        await nursery.start(functools.partial(pgnotifyq.run_worker, registry, dsn, **{"shutdown_seconds": 0, **settings}))
        yield
        nursery.cancel_scope.cancel()


async def listeners(connection: Link) -> int:
    """Return how many listener connections clients have."""
    return int(
        await value(
            connection,
            "select count(*) from pg_stat_activity where datname = current_database() and application_name = %s",
            LISTENER,
        )
    )


async def wait_all(client: Client, ids: list[JobId], ended: list[Job]) -> None:
    """Wait for jobs, each in a task of its own, and note each as it ends."""

    async def one(job_id: JobId) -> None:
        ended.append(await client.wait(job_id))

    async with trio.open_nursery() as nursery:
        for job_id in ids:
            nursery.start_soon(one, job_id)
