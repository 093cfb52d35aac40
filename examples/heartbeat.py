"""A schedule, its worker and its ticks, in one program: something is done each second, once.

It ends after three ticks, and deletes its schedule.
"""

from __future__ import annotations

import functools
import itertools
import os
from datetime import datetime, timedelta
from typing import Any

import trio

import pgnotifyq

registry = pgnotifyq.JobRegistry()
TICKS = 3
beats: list[datetime] = []
done = trio.Event()


@registry.every("every 1s", name="example.heartbeat", missed="none")
@registry.handler("example.beat")
async def beat(_: dict[str, Any], ctx: pgnotifyq.JobContext) -> None:
    """Note when it should have come."""
    assert ctx.scheduled_for is not None
    beats.append(ctx.scheduled_for)
    if len(beats) == TICKS:
        done.set()


async def main() -> None:
    """Work until three ticks have come."""
    dsn = os.environ["PGNOTIFYQ_DSN"]
    async with trio.open_nursery() as nursery, pgnotifyq.open_client(dsn) as client:
        quiet = functools.partial(pgnotifyq.run_worker, registry, dsn, on_event=lambda _: None)
        worker = await nursery.start(quiet)
        await done.wait()
        await client.unschedule("example.heartbeat")
        worker.drain()
    whole = all(tick.microsecond == 0 for tick in beats)
    print(f"{TICKS} ticks, on whole seconds: {whole}, in order: {beats == sorted(set(beats))}")
    print(f"no two in one second: {all(b - a >= timedelta(seconds=1) for a, b in itertools.pairwise(beats))}")


if __name__ == "__main__":
    trio.run(main)
