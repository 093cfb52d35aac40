"""What the workers under chaos run: `python -m pgnotifyq worker --app tests.chaos.app:registry`.

Each execution says that it has begun in a file of its process, before it does anything: an effect outside of the database, at
most once an execution. Most then write into `effects`, in the job's own transaction: exactly once a completed job.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

import trio

from pgnotifyq import JobContext, JobRegistry, LeaseLost, Retry, RetryPolicy, Snooze

registry = JobRegistry()
Payload = dict[str, Any]

QUICK = RetryPolicy(base_seconds=0.2, cap_seconds=1.0)
TOLD_SECONDS_MAX = 5.0  # a zombie has been told of its lost lease by then, or never will be
POISONED = 99  # the exit code of a process that a poison pill has ended
_file: int | None = None


def begin(payload: Payload, ctx: JobContext) -> None:
    """Say, outside of the database, that this execution has begun."""
    global _file  # noqa: PLW0603  # one file a process
    if _file is None:
        _file = os.open(os.environ["PGNOTIFYQ_CHAOS_EFFECTS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    assert ctx.job.started_at is not None
    told = {
        "token": payload["token"],
        "job_id": str(ctx.job.id),
        "execution_id": str(ctx.execution_id),
        "scheduled_at": ctx.job.scheduled_at.timestamp(),
        "started_at": ctx.job.started_at.timestamp(),
    }
    os.write(_file, json.dumps(told).encode() + b"\n")


async def write(payload: Payload, ctx: JobContext) -> None:
    """Work for a while, then write and complete in one commit."""
    await trio.sleep(payload["seconds"])
    async with ctx.transaction(complete=True) as connection:
        await connection.execute("insert into effects values (%s, %s)", (ctx.job.id, ctx.execution_id))
        await trio.sleep(payload["seconds"] / 4)  # so that faults find transactions open


@registry.handler(retry=QUICK)
async def inside(payload: Payload, ctx: JobContext) -> None:
    """Write in the job's own transaction."""
    begin(payload, ctx)
    await write(payload, ctx)


@registry.handler(retry=QUICK)
async def stubborn(payload: Payload, ctx: JobContext) -> None:
    """Heed no interrupt, and try to write all the same: what only the fence can prevent."""
    begin(payload, ctx)
    with trio.CancelScope(shield=True):
        await write(payload, ctx)


@registry.handler(retry=QUICK)
async def outside(payload: Payload, ctx: JobContext) -> dict[str, str]:
    """Return a result, which the worker stores."""
    begin(payload, ctx)
    await trio.sleep(payload["seconds"])
    return {"token": payload["token"]}


@registry.handler(retry=QUICK)
def threaded(payload: Payload, ctx: JobContext) -> None:
    """Do the same in a thread."""
    begin(payload, ctx)
    time.sleep(payload["seconds"])


@registry.handler(retry=QUICK)
async def flaky(payload: Payload, ctx: JobContext) -> Retry | None:
    """Fail twice, in two ways, then write."""
    begin(payload, ctx)
    if ctx.attempt == 1:
        raise RuntimeError("the first attempt fails")
    if ctx.attempt == 2:
        return Retry(seconds=0.1, reason="the second attempt too")
    await write(payload, ctx)
    return None


@registry.handler(retry=QUICK, timeout_seconds=1.0)
async def hasty(payload: Payload, ctx: JobContext) -> None:
    """Take too long at first, then write."""
    begin(payload, ctx)
    if ctx.attempt == 1:
        await trio.sleep_forever()
    await write(payload, ctx)


@registry.handler(retry=QUICK)
async def snoozing(payload: Payload, ctx: JobContext) -> Snooze | None:
    """Put off two executions of three, then write. A snooze gives the attempt back, so the execution's id decides."""
    begin(payload, ctx)
    if ctx.execution_id.int % 3:
        return Snooze(seconds=0.3)
    await write(payload, ctx)
    return None


@registry.handler(retry=QUICK)
async def hopeless(payload: Payload, ctx: JobContext) -> None:
    """Fail always."""
    begin(payload, ctx)
    raise RuntimeError("hopeless")


@registry.handler(retry=QUICK)
async def poison(payload: Payload, ctx: JobContext) -> None:
    """End the process, as a crash in a C extension does."""
    begin(payload, ctx)
    await trio.sleep(payload["seconds"])
    os._exit(POISONED)


@registry.handler(retry=QUICK)
async def zombie(payload: Payload, ctx: JobContext) -> str:
    """Heed no interrupt, then write in every way there is, and say what came of it. For tests.chaos.reach."""
    begin(payload, ctx)
    refused = []
    with trio.CancelScope(shield=True):
        await trio.sleep(payload["seconds"])
        try:
            await ctx.progress(0.5, "half-way")
        except LeaseLost:
            refused.append("progress")
        try:
            async with ctx.transaction() as connection:
                await connection.execute("insert into effects values (%s, %s)", (ctx.job.id, ctx.execution_id))
        except LeaseLost:
            refused.append("transaction")
        if refused:
            with trio.move_on_after(TOLD_SECONDS_MAX):
                await ctx.cancelled()
    reason = ctx.cancel_reason.kind.value if ctx.cancel_reason else None
    told = {"event": "handler", "execution_id": str(ctx.execution_id), "refused": refused, "reason": reason}
    print(json.dumps(told), flush=True)
    return "written"


@registry.handler(retry=QUICK)
async def shielding(payload: Payload, ctx: JobContext) -> None:
    """Never let go. For tests.chaos.reach."""
    begin(payload, ctx)
    with trio.CancelScope(shield=True):
        await trio.sleep_forever()
