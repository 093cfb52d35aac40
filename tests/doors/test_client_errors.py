"""A client that is used where it cannot be, or no more: each door says the same, by the same class."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import anyio
import psycopg
import pytest
import trio

import pgnotifyq
import pgnotifyq.aio
import pgnotifyq.sync
from pgnotifyq.doors.gathering import IN_FLIGHT_MAX
from pgnotifyq.model.job import JobId

PATIENCE_SECONDS = 30.0
RUNS: dict[str, Any] = {"trio": trio.run, "asyncio": asyncio.run}
OPENS: dict[str, Any] = {"trio": pgnotifyq.open_client, "asyncio": pgnotifyq.aio.open_client}


def asked(job_id: JobId) -> dict[str, tuple[Any, ...]]:
    """Return a verb of each kind, with what it takes."""
    return {
        "enqueue": ("noop",),
        "enqueue_many": ([{"job_type": "noop"}],),
        "cancel": (job_id,),
        "wait": (job_id, PATIENCE_SECONDS),
        "get": (job_id,),
        "jobs": (),
    }


def run(loop: str, main: Any, *arguments: Any) -> None:
    """Run an async function on trio or on asyncio."""
    if loop == "trio":
        trio.run(main, *arguments)
    else:
        asyncio.run(main(*arguments))


@pytest.mark.parametrize("loop", RUNS)
def test_closed_client_of_a_loop(dsn: str, loop: str) -> None:
    """Each verb says that the client is closed."""

    async def main() -> None:
        async with OPENS[loop](dsn) as client:
            job_id = await client.enqueue("noop")
        for verb, given in asked(job_id).items():
            with pytest.raises(pgnotifyq.ClientClosed, match="inside of its"), anyio.fail_after(PATIENCE_SECONDS):
                await getattr(client, verb)(*given)

    run(loop, main)


def test_closed_client_that_blocks(dsn: str) -> None:
    """The same, in the same words."""
    with pgnotifyq.sync.open_client(dsn) as client:
        job_id = client.enqueue("noop")
    for verb, given in asked(job_id).items():
        with pytest.raises(pgnotifyq.ClientClosed, match="inside of its"):
            getattr(client, verb)(*given)


@pytest.mark.parametrize("loop", RUNS)
def test_another_loop_while_enqueues_gather(dsn: str, loop: str) -> None:
    """A task of another loop is refused, of its kind and of the other: it does not wait with those of this loop, which go on."""
    job_id = JobId(uuid4())

    async def strange(client: Any) -> None:
        for verb, given in asked(job_id).items():
            with pytest.raises(pgnotifyq.WrongLoop, match="this client"), anyio.fail_after(PATIENCE_SECONDS):
                await getattr(client, verb)(*given)

    def visit(client: Any) -> None:
        for other in RUNS:
            run(other, strange, client)

    async def main(holder: psycopg.Connection[Any]) -> None:
        async with OPENS[loop](dsn) as client, anyio.create_task_group() as tasks:
            for _ in range(IN_FLIGHT_MAX + 3):
                tasks.start_soon(client.enqueue, "noop")
            while not holder.execute("select count(*) = %s from pg_locks where not granted", (IN_FLIGHT_MAX,)).fetchone()[0]:  # type: ignore[index]
                await anyio.sleep(0.01)
            with ThreadPoolExecutor(1) as threads:
                ended = threads.submit(visit, client)
                while not ended.done():
                    await anyio.sleep(0.01)
                ended.result()
            holder.rollback()

    with psycopg.connect(dsn) as holder:
        holder.execute("lock table pgnotifyq.jobs in access exclusive mode")
        run(loop, main, holder)
        assert holder.execute("select count(*) from pgnotifyq.jobs").fetchone() == (IN_FLIGHT_MAX + 3,)
