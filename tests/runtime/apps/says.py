"""Handlers that say how far they have come, and log: one of each kind."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import trio

import pgnotifyq

registry = pgnotifyq.JobRegistry()
Payload = dict[str, Any]


async def numbers(count: int) -> AsyncIterator[int]:
    """Give numbers, asynchronously, on any event loop."""
    for n in range(count):
        yield n


@registry.handler("on_trio")
async def on_trio(payload: Payload, ctx: pgnotifyq.JobContext) -> int:
    """Go through numbers by `for`."""
    done = 0
    for done in ctx.track(range(payload["count"])):  # noqa: B007
        await trio.lowlevel.checkpoint()
    ctx.log.info("done %d", done)
    return done


@registry.handler("async_for")
async def async_for(payload: Payload, ctx: pgnotifyq.JobContext) -> int:
    """Go through them by `async for`."""
    done = 0
    async for done in ctx.track(numbers(payload["count"]), total=payload["count"]):  # noqa: B007
        pass
    ctx.log.info("done %d", done)
    return done


@registry.handler("on_asyncio", runs_in="asyncio")
async def on_asyncio(payload: Payload, ctx: pgnotifyq.JobContext) -> int:
    """The same on asyncio."""
    done = 0
    async for done in ctx.track(numbers(payload["count"]), total=payload["count"]):  # noqa: B007
        pass
    ctx.log.info("done %d", done)
    return done


@registry.handler("in_thread")
def in_thread(payload: Payload, ctx: pgnotifyq.JobContext) -> int:
    """The same in a thread."""
    done = 0
    for done in ctx.track(range(payload["count"])):  # noqa: B007
        pass
    ctx.log.info("done %d", done)
    return done


@registry.handler("in_process", runs_in="process")
def in_process(payload: Payload, ctx: pgnotifyq.JobContext) -> int:
    """The same in a process."""
    done = 0
    for done in ctx.track(range(payload["count"])):  # noqa: B007
        pass
    ctx.log.info("done %d", done)
    return done


@registry.handler("fails", max_attempts=2)
async def fails(_: Payload, ctx: pgnotifyq.JobContext) -> None:
    """Log, and fail."""
    ctx.log.warning("attempt %d", ctx.attempt)
    try:
        int("no luck")
    except ValueError:
        ctx.log.exception("it went wrong")
        raise


@registry.handler("late", timeout_seconds=0.05, max_attempts=1)
async def late(_: Payload, ctx: pgnotifyq.JobContext) -> None:
    """Log, and take too long."""
    ctx.log.info("before")
    await trio.sleep_forever()


@registry.handler("talks")
async def talks(payload: Payload, ctx: pgnotifyq.JobContext) -> None:
    """Log much."""
    for n in range(payload["lines"]):
        ctx.log.info("line %d %s", n, "x" * payload.get("chars", 0))


@registry.handler("reports")
async def reports(payload: Payload, ctx: pgnotifyq.JobContext) -> None:
    """Say very often how far it has come, and wait to be let go."""
    for n in range(payload["times"]):
        await ctx.progress(n / payload["times"], f"step {n}")
    ctx.log.info("all said")
    await trio.sleep_forever()


@registry.handler("holds")
async def holds(_: Payload, ctx: pgnotifyq.JobContext) -> None:
    """Log a line, and stay."""
    ctx.log.info("it is running")
    await trio.sleep_forever()


@registry.handler("silent")
async def silent(_: Payload) -> None:
    """Say nothing."""


if __name__ == "__main__":
    import functools
    import sys

    trio.run(functools.partial(pgnotifyq.run_worker, registry, sys.argv[1]))
