"""Trio's own traps: what a handler can raise, swallow, leave behind or do to what it was lent, and who bears it.

Here are those that test_cancelling.py (deaf and shielded handlers, threads), test_endings.py (odd errors) and
test_transactions.py (a cancel in the middle of a query, a block that raises) do not have.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import psycopg
import pytest
import trio

from pgnotifyq import EventName, JobContext, JobRegistry, LeaseLost, RetryPolicy
from tests.asked import everything, fetch
from tests.runtime.support import PATIENCE_SECONDS, Log, Workplace, _work

Payload = dict[str, Any]
AT_ONCE = RetryPolicy(base_seconds=0.0)


class Stop(BaseException):
    """What a library raises that does not want to be caught."""


def stray_cancelled() -> BaseException:
    """Return a trio.Cancelled that belongs to no scope any more."""
    caught: list[BaseException] = []

    async def main() -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            try:
                await trio.lowlevel.checkpoint()
            except trio.Cancelled as error:
                caught.append(error)
                raise

    thread = threading.Thread(target=trio.run, args=(main,))
    thread.start()
    thread.join()
    return caught[0]


def group(*errors: BaseException) -> BaseException:
    return BaseExceptionGroup("several", errors)


ODD: dict[str, Callable[[], BaseException]] = {
    "group": lambda: group(ValueError("no luck"), OSError("the disk is full")),
    "group of groups": lambda: group(ValueError("no luck"), group(OSError("the disk is full"))),
    "group with SystemExit": lambda: group(ValueError("no luck"), SystemExit(3)),
    "group with Cancelled": lambda: group(ValueError("no luck"), stray_cancelled()),
    "Cancelled": stray_cancelled,
    "GeneratorExit": lambda: GeneratorExit(),
    "StopAsyncIteration": lambda: StopAsyncIteration(),
    "asyncio.CancelledError": lambda: asyncio.CancelledError(),
    "a BaseException of somebody's own": lambda: Stop(),
}


@pytest.mark.parametrize("kind", ["task", "thread"])
@pytest.mark.parametrize("make", ODD.values(), ids=ODD)
async def test_error_that_is_none_of_the_workers(place: Workplace, make: Callable[[], BaseException], kind: str) -> None:
    """Whatever a handler raises is its job's failure: not the worker's end, nor that of its neighbours."""
    registry, let_go, error = JobRegistry(), trio.Event(), make()

    @registry.handler("task")
    async def task(payload: Payload) -> None:
        raise error

    @registry.handler("thread")
    def thread(payload: Payload) -> None:
        raise error

    @registry.handler()
    async def neighbour(payload: Payload) -> None:
        await let_go.wait()

    worker = await place.start(registry)
    beside = await place.enqueue("neighbour")
    await worker.log.wait(EventName.JOB_CLAIMED, job_id=beside)
    job_id = await place.enqueue(kind, max_attempts=1)
    await worker.log.wait(EventName.JOB_DEAD, job_id=job_id)
    letter = await place.dead_letter(job_id)
    assert [(attempt["attempt"], attempt["outcome"]) for attempt in letter["history"]] == [(1, "failed")]
    assert type(error).__name__ in letter["error_message"]
    let_go.set()
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=beside)
    assert not worker.ended.is_set()


@pytest.mark.parametrize("is_in_group", [False, True], ids=["bare", "in a group"])
async def test_keyboard_interrupt_in_a_handler(place: Workplace, *, is_in_group: bool) -> None:
    """Ctrl-C lands in whatever runs. It ends the worker and the program, and every job it held is released, uncharged."""
    registry = JobRegistry()

    @registry.handler()
    async def work(payload: Payload) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as interrupt:
            if is_in_group:
                raise group(ValueError(), interrupt) from None
            raise

    @registry.handler()
    async def neighbour(payload: Payload) -> None:
        await trio.sleep_forever()

    log, ids = Log(), []

    async def program() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(_work, registry, place.dsn, log=log))
            await log.wait(EventName.LISTENER_CONNECTED)
            ids.append(await place.enqueue("neighbour", max_attempts=1))
            await log.wait(EventName.JOB_CLAIMED, job_id=ids[0])
            ids.append(await place.enqueue("work", max_attempts=1))
            await trio.sleep_forever()

    with pytest.raises(BaseExceptionGroup) as caught:
        await program()
    assert caught.group_contains(KeyboardInterrupt)
    for job_id in ids:
        job = await place.job(job_id)
        assert (job["status"], job["attempts"], job["is_held"]) == ("pending", 0, False)
        assert await place.history(job_id) == [(1, "released")]


@pytest.mark.parametrize(
    "make", [KeyboardInterrupt, lambda: group(ValueError(), KeyboardInterrupt())], ids=["bare", "in a group"]
)
async def test_keyboard_interrupt_of_a_handlers_own(place: Workplace, make: Callable[[], BaseException]) -> None:
    """One that nobody's Ctrl-C made is the job's failure: else it would end each worker that takes the job, for ever."""
    registry = JobRegistry()

    @registry.handler(max_attempts=2, retry=RetryPolicy(base_seconds=0.0))
    async def work(payload: Payload) -> None:
        raise make()

    worker = await place.start(registry)
    job_id = await place.enqueue("work", max_attempts=2)
    await worker.log.wait(EventName.JOB_DEAD, job_id=job_id)
    assert not worker.ended.is_set()
    assert (await place.dead_letter(job_id))["attempts"] == 2


async def test_cancel_of_a_handler_without_checkpoints(place: Workplace) -> None:
    """It cannot be reached before it returns; the cancel stands all the same, and what it returns is not stored."""
    registry = JobRegistry()

    @registry.handler()
    async def work(payload: Payload, ctx: JobContext) -> str:
        # By another session, for this loop is held.
        with psycopg.connect(place.dsn, autocommit=True) as session:
            session.execute("update pgnotifyq.jobs set status = 'cancelled' where id = %s", (ctx.job.id,))
        return "done all the same"

    worker = await place.start(registry)
    job_id = await place.enqueue("work")
    await worker.log.wait(EventName.JOB_CANCELLED, job_id=job_id)
    job = await place.job(job_id)
    assert (job["status"], job["result"], job["is_held"]) == ("cancelled", None, False)
    assert worker.log.find(EventName.JOB_COMPLETED) == []


async def test_handler_that_swallows_every_cancel(place: Workplace) -> None:
    """One that catches Cancelled at each checkpoint and goes on is reported, shown as stopping, and keeps its slot until it ends."""
    registry, let_go, started = JobRegistry(), threading.Event(), []

    @registry.handler()
    async def work(payload: Payload) -> str:
        while not let_go.is_set():
            with contextlib.suppress(trio.Cancelled):  # the trap itself
                await trio.sleep(0.01)
        return "done all the same"

    @registry.handler()
    async def waiting(payload: Payload) -> None:
        started.append(True)

    worker = await place.start(registry, concurrency=1, grace_seconds=0.05)
    job_id, other = await place.enqueue("work", priority=1), await place.enqueue("waiting")
    await worker.log.wait(EventName.JOB_CLAIMED, job_id=job_id)
    await place.cancel(job_id)
    await worker.log.wait(EventName.JOB_UNRESPONSIVE, job_id=job_id)
    job = await place.job(job_id)
    assert (job["status"], job["is_held"], started) == ("cancelled", True, [])
    let_go.set()
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=other)
    job = await place.job(job_id)
    assert (job["status"], job["is_held"], job["result"]) == ("cancelled", False, None)


async def test_crash_in_a_task_that_a_handler_left_running(place: Workplace) -> None:
    """A background task that crashes fails the job and names what it raised; the rest of its nursery is gone with it."""
    registry, ended = JobRegistry(), []

    async def linger() -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.append(True)

    async def crash() -> None:
        await trio.lowlevel.checkpoint()
        raise ValueError("no luck")

    @registry.handler(retry=AT_ONCE)
    async def work(payload: Payload, ctx: JobContext) -> str:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(linger)
            if ctx.attempt == 1:
                nursery.start_soon(crash)
                await trio.sleep_forever()
            nursery.cancel_scope.cancel()
        return "done"

    worker = await place.start(registry)
    job_id = await place.enqueue("work")
    told = await worker.log.wait(EventName.JOB_RETRIED, job_id=job_id)
    assert "ExceptionGroup" in told["why"]
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    assert ended == [True, True]
    assert await place.history(job_id) == [(1, "failed"), (2, "completed")]
    ((message,),) = await fetch(place.connection, "select error_message from pgnotifyq.job_executions where attempt = 1")
    assert "ValueError: no luck" in message


async def test_handler_that_cancels_a_scope_of_its_own(place: Workplace) -> None:
    """That is its own affair: the job completes, and a deadline that has passed inside is no timeout of the job."""
    registry = JobRegistry()

    @registry.handler(timeout_seconds=600.0)
    async def work(payload: Payload, ctx: JobContext) -> object:
        with trio.CancelScope() as scope:
            scope.cancel()
            await trio.sleep_forever()
        with trio.move_on_after(0) as late:
            await trio.sleep_forever()
        return [scope.cancelled_caught, late.cancelled_caught, ctx.is_cancelled()]

    worker = await place.start(registry)
    job_id = await place.enqueue("work")
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    assert (await place.job(job_id))["result"] == [True, True, False]


MISUSES = {
    "closes it": lambda connection: connection.close(),
    "breaks it": lambda connection: connection.execute("select pg_terminate_backend(pg_backend_pid())"),
    "commits": lambda connection: connection.execute("commit"),
    "rolls back": lambda connection: connection.execute("rollback"),
    "leaves it failed": lambda connection: connection.execute("select 1/0"),
    "sets what outlives it": lambda connection: connection.execute("set search_path = nowhere"),
}


@pytest.mark.parametrize("misuse", MISUSES.values(), ids=MISUSES)
async def test_what_a_handler_does_to_the_connection_it_was_lent(place: Workplace, misuse: Callable[[Any], Any]) -> None:
    """It may close, break or dirty it: the next handler is lent a clean one, and none is missing."""
    registry, seen = JobRegistry(), []

    @registry.handler()
    async def spoil(payload: Payload, ctx: JobContext) -> None:
        async with ctx.transaction() as connection:
            with contextlib.suppress(psycopg.Error):
                await misuse(connection)

    @registry.handler()
    async def look(payload: Payload, ctx: JobContext) -> None:
        async with ctx.transaction() as connection:
            setting = "(select reset_val from pg_settings where name = 'search_path')"
            cursor = await connection.execute(
                f"select current_setting('search_path') = {setting}, (select count(*) from pgnotifyq.fences)".encode()
            )
            seen.append(await cursor.fetchone())

    # One connection for handlers: had the first one kept it, the second would wait for ever.
    worker = await place.start(registry, concurrency=1, handler_connections_max=1)
    spoilt = await place.enqueue("spoil", max_attempts=1)
    looked = await place.enqueue("look")
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=looked)
    assert seen == [(True, 1)]  # its own fence
    assert await place.history(spoilt) or await place.dead_letter(spoilt)


async def test_context_after_its_end(place: Workplace) -> None:
    """A context that outlives its job opens no transaction and writes no progress; nor does it once the worker has left."""
    registry, kept = JobRegistry(), []

    @registry.handler()
    async def work(payload: Payload, ctx: JobContext) -> None:
        kept.append(ctx)

    await place.connection.execute("drop table if exists marks; create table marks (what text)")
    worker = await place.start(registry)
    job_id = await place.enqueue("work")
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    ctx: JobContext = kept[0]
    before = await everything(place.connection)
    with pytest.raises(LeaseLost):
        async with ctx.transaction() as connection:
            await connection.execute("insert into marks values ('late')")
    with pytest.raises(LeaseLost):
        async with ctx.transaction(complete=True, result={"n": 2}) as connection:
            await connection.execute("insert into marks values ('late')")
    with pytest.raises(LeaseLost):
        async with ctx.org.transaction():
            await trio.lowlevel.checkpoint()
    with pytest.raises(LeaseLost):
        await ctx.progress(0.5)
    assert not ctx.is_cancelled()
    worker.handle.drain()
    with trio.fail_after(PATIENCE_SECONDS):
        await worker.ended.wait()
    with pytest.raises(Exception, match="closed"):
        async with ctx.transaction():
            await trio.lowlevel.checkpoint()
    assert await everything(place.connection) == before
    assert await fetch(place.connection, "select from marks") == []


async def test_worker_that_leaves_while_handlers_raise(place: Workplace) -> None:
    """A worker that is cancelled from outside is not kept by handlers that turn the cancel into errors; their jobs are released."""
    registry, begun = JobRegistry(), trio.Event()

    @registry.handler()
    async def work(payload: Payload) -> None:
        begun.set()
        try:
            await trio.sleep_forever()
        except trio.Cancelled as error:
            raise group(error, ValueError("no luck")) from None

    worker = await place.start(registry)
    job_id = await place.enqueue("work", max_attempts=1)
    with trio.fail_after(PATIENCE_SECONDS):
        await begun.wait()
        await worker.leave()
    job = await place.job(job_id)
    assert (job["status"], job["attempts"], job["is_held"]) == ("pending", 0, False)
    assert await place.history(job_id) == [(1, "released")]
