"""A worker as a process: `python -m tests.runtime.apps.worker DSN SETTINGS`. Tells its events as lines of JSON.

SIGTERM drains; a second one interrupts. What its handlers do is what tests need of a process that is killed or stopped.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import trio

from pgnotifyq import Event, JobContext, JobRegistry, WorkerHandle, run_worker
from pgnotifyq.model.events import as_json
from pgnotifyq.runtime import shortcuts
from pgnotifyq.runtime.context import WorkerReach

registry = JobRegistry()


def tell(event: Event) -> None:
    """Print an event."""
    print(as_json(event, dt.datetime.now(tz=dt.UTC)), flush=True)


@registry.handler()
async def linger(payload: dict[str, Any], ctx: JobContext) -> None:
    """Go on until interrupted, and leave a mark of why."""
    print(json.dumps({"event": "begun"}), flush=True)
    try:
        await trio.sleep_forever()
    finally:
        assert ctx.cancel_reason is not None
        print(json.dumps({"event": "handler", "reason": ctx.cancel_reason.kind.value}), flush=True)


@registry.handler()
async def walk(payload: dict[str, Any], ctx: JobContext) -> None:
    """Save each of three steps, and stay on the last one."""
    for step in (1, 2, 3):
        await ctx.save({"step": step})
    await trio.sleep_forever()


@registry.handler()
async def stubborn(payload: dict[str, Any], ctx: JobContext) -> None:
    """Wait, deaf to interrupts, until it may go on; then write and return as if nothing had happened."""
    print(json.dumps({"event": "begun"}), flush=True)
    with trio.CancelScope(shield=True):
        reach = ctx._reach
        assert isinstance(reach, WorkerReach)
        async with reach.databases.pool.connection() as connection:
            while True:
                cursor = await connection.execute("select exists (select from gate)")
                if (await cursor.fetchone()) == (True,):
                    break
                await trio.sleep(0.02)
        try:
            async with ctx.transaction() as connection:
                await connection.execute("insert into marks values ('stubborn')")
        except Exception as error:
            print(json.dumps({"event": "handler", "reason": type(error).__name__}), flush=True)
            raise


async def has_session(ctx: JobContext) -> None:
    """Wait until the worker's listener speaks for its life: a process that dies sooner is missed when its lease ends."""
    (taker,) = [one for takers in (shortcuts._takers.get() or {}).values() for one in takers]
    while not taker.wakeups.push.has_session:
        await trio.sleep(0.01)


@registry.handler()
async def poison(payload: dict[str, Any], ctx: JobContext) -> None:
    """End the process, as a crash in a C extension does."""
    await has_session(ctx)
    os._exit(9)


@registry.handler()
async def effect(payload: dict[str, Any], ctx: JobContext) -> None:
    """Write in the job's own transaction; die before its commit on the first attempt, and after it on the second."""
    await has_session(ctx)
    async with ctx.transaction(complete=True) as connection:
        await connection.execute("insert into marks values ('effect')")
        if ctx.attempt == 1:
            os._exit(9)
    os._exit(9)


@registry.handler()
async def forks(payload: dict[str, Any], ctx: JobContext) -> None:
    """Make a child that lives on, as multiprocessing does where it forks."""
    await has_session(ctx)
    child = os.fork()
    if child == 0:
        time.sleep(120)  # noqa: ASYNC251  # in the child
        os._exit(0)
    print(json.dumps({"event": "child", "pid": child}), flush=True)
    await trio.sleep_forever()


@registry.handler()
async def hold(payload: dict[str, Any]) -> None:
    """Hold the event loop until a file is there, and then for longer than another thread needs to wake up."""
    print(json.dumps({"event": "handler", "reason": "holds"}), flush=True)
    while not Path(payload["until"]).exists():  # noqa: ASYNC240  # that is the point
        time.sleep(0.01)  # noqa: ASYNC251  # and that
    time.sleep(0.3)  # noqa: ASYNC251  # and that


@registry.handler()
async def short(payload: dict[str, Any]) -> None:
    """Do next to nothing."""
    await trio.sleep(0.2)


async def main(dsn: str, settings: dict[str, Any]) -> None:
    """Work until told to stop."""
    async with trio.open_nursery() as signals:
        async with trio.open_nursery() as work:
            handle: WorkerHandle = await work.start(partial(run_worker, registry, dsn, on_event=tell, **settings))
            await signals.start(heed_signals, handle)
        signals.cancel_scope.cancel()


async def heed_signals(handle: WorkerHandle, *, task_status: trio.TaskStatus[None]) -> None:
    """Drain at the first signal, interrupt at the second."""
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        task_status.started()
        async for _ in signals:
            handle.drain()


if __name__ == "__main__":
    trio.run(main, sys.argv[1], json.loads(sys.argv[2]))
