"""The application that is deployed: its handlers and, as a program, its producer.

It is run by the old release and by the new one, so it uses what both have. SHOP_RELEASE says which
of its own releases it is: `new` has one job type more.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from typing import Any

import trio

import pgnotifyq

registry = pgnotifyq.JobRegistry()
Payload = dict[str, Any]


@registry.handler("charge", max_attempts=3)
async def charge(payload: Payload, ctx: pgnotifyq.JobContext) -> None:
    """Write in the job's own transaction, which completes the job."""
    await trio.sleep(0.03)
    async with ctx.transaction(complete=True) as connection:
        await connection.execute("insert into effects (job_id) values (%s)", (ctx.job.id,))
        await trio.sleep(0.02)


@registry.handler("mail", max_attempts=3)
async def mail(payload: Payload, ctx: pgnotifyq.JobContext) -> str:
    """Wait for somebody else, and return a result."""
    await trio.sleep(0.1)
    return "sent"


@registry.handler("thumbnail", max_attempts=3)
def thumbnail(payload: Payload, ctx: pgnotifyq.JobContext) -> None:
    """Work in a thread."""
    time.sleep(0.05)


@registry.handler("film", max_attempts=15)
async def film(payload: Payload, ctx: pgnotifyq.JobContext) -> None:
    """Take longer than a worker waits that is told to end: it is cut off, and released.

    A job that is killed with its worker is charged each time. This one is long enough to be killed at each deploy.
    """
    await trio.sleep(1.5)


if os.environ.get("SHOP_RELEASE") == "new":

    @registry.handler("report", max_attempts=3)
    async def report(payload: Payload, ctx: pgnotifyq.JobContext) -> None:
        """Do what only the new release can, as `charge` does."""
        await charge(payload, ctx)


async def produce(job_types: list[str], seconds_between: float) -> None:
    """Enqueue jobs until standard input is closed; print the id of each that was acknowledged."""
    async with pgnotifyq.open_client(os.environ["PGNOTIFYQ_DSN"]) as client, trio.open_nursery() as nursery:

        async def wait_for_the_end() -> None:
            await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
            nursery.cancel_scope.cancel()

        nursery.start_soon(wait_for_the_end)
        for number, job_type in enumerate(itertools.cycle(job_types)):
            with trio.CancelScope(shield=True):
                print(await client.enqueue(job_type, {"number": number}), job_type, flush=True)
            await trio.sleep(seconds_between)


if __name__ == "__main__":
    trio.run(produce, sys.argv[2:], float(sys.argv[1]))
