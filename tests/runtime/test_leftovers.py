"""What one job leaves behind in its task does not reach the next one, nor the worker.

One slot, so the next job has the same task, unless the worker takes care that it does not.
"""

from __future__ import annotations

import decimal
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import pytest
import trio
import trio.lowlevel
from trio._core._run import CancelStatus, Nursery, Task

from pgnotifyq import EventName, JobContext, JobRegistry
from tests.runtime.support import PATIENCE_SECONDS, Workplace

Payload = dict[str, Any]
Handle = Callable[[list[Any]], Awaitable[object]]
TENANT = ContextVar("TENANT", default="nobody")
OTHER = ContextVar[str]("OTHER")


async def run_one(place: Workplace, worker: Any, job_type: str) -> None:
    job_id = await place.enqueue(job_type, max_attempts=1)
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)


def test_private_names_of_trio() -> None:
    """What slate.py asks of trio is still there, under these names."""
    assert {"_cancel_status", "_child_nurseries", "_parent_nursery"} <= set(dir(Task))
    assert "effectively_cancelled" in dir(CancelStatus)
    assert "_children" in Nursery.__init__.__code__.co_names


@pytest.mark.parametrize("kind", ["task", "thread"])
@pytest.mark.parametrize("waits", [False, True], ids=["at once", "after a wait"])
async def test_context_variables(place: Workplace, kind: str, waits: bool) -> None:
    """A variable that a handler sets, and the decimal context it changes, are as before for the next job, task or thread."""
    registry, seen = JobRegistry(), []

    def look() -> tuple[str, str | None, int, bool]:
        context = decimal.getcontext()
        return TENANT.get(), OTHER.get(None), context.prec, context.flags[decimal.Inexact]

    def change() -> None:
        TENANT.set("acme")
        OTHER.set("bound")
        decimal.getcontext().prec = 3
        decimal.Decimal(1) / decimal.Decimal(3)

    @registry.handler("task")
    async def task(payload: Payload) -> None:
        seen.append(look())
        change()
        if waits:
            await trio.lowlevel.checkpoint()
            assert look()[0] == "acme"

    @registry.handler("thread")
    def thread(payload: Payload) -> None:
        seen.append(look())
        change()

    worker = await place.start(registry, concurrency=1)
    for job_type in ("task", kind, kind, "thread"):
        await run_one(place, worker, job_type)
    assert seen == [("nobody", None, 28, False)] * 4


async def test_decimal_context_of_the_program(place: Workplace) -> None:
    """One that the program had before it started the worker is lent as a copy: neither the next job nor the program sees a change."""
    registry, seen = JobRegistry(), []
    decimal.getcontext().prec = 11

    @registry.handler()
    async def work(payload: Payload) -> None:
        seen.append((decimal.getcontext().prec, decimal.getcontext().flags[decimal.Inexact]))
        decimal.getcontext().prec = 3
        decimal.Decimal(1) / decimal.Decimal(3)

    @registry.handler()
    def thread(payload: Payload) -> None:
        seen.append((decimal.getcontext().prec, decimal.getcontext().flags[decimal.Inexact]))
        decimal.getcontext().prec = 3
        decimal.Decimal(1) / decimal.Decimal(3)

    worker = await place.start(registry, concurrency=1)
    for job_type in ("work", "work", "thread", "work"):
        await run_one(place, worker, job_type)
    assert seen == [(11, False)] * 4
    assert decimal.getcontext().prec == 11


async def test_variables_of_the_program(place: Workplace) -> None:
    """What was set before the worker started is seen by every job, also by those after one that changed it."""
    registry, seen = JobRegistry(), []
    TENANT.set("the program's")

    @registry.handler()
    async def work(payload: Payload) -> None:
        seen.append(TENANT.get())
        TENANT.set("changed")

    worker = await place.start(registry, concurrency=1)
    for _ in range(3):
        await run_one(place, worker, "work")
    assert seen == ["the program's"] * 3


async def test_variables_after_a_failure(place: Workplace) -> None:
    """A handler that raises, or is cancelled, leaves no variable either."""
    registry, seen, begun = JobRegistry(), [], trio.Event()

    @registry.handler()
    async def fails(payload: Payload) -> None:
        TENANT.set("acme")
        raise ValueError("no luck")

    @registry.handler()
    async def waits(payload: Payload) -> None:
        TENANT.set("acme")
        begun.set()
        await trio.sleep_forever()

    @registry.handler()
    async def look(payload: Payload) -> None:
        seen.append(TENANT.get())

    worker = await place.start(registry, concurrency=1)
    await worker.log.wait(EventName.JOB_DEAD, job_id=await place.enqueue("fails", max_attempts=1))
    await run_one(place, worker, "look")
    job_id = await place.enqueue("waits")
    with trio.fail_after(PATIENCE_SECONDS):
        await begun.wait()
    await place.cancel(job_id)
    await worker.log.wait(EventName.JOB_CANCELLED, job_id=job_id)
    await run_one(place, worker, "look")
    assert seen == ["nobody"] * 2


async def ticks(**scope: Any) -> AsyncIterator[int]:
    with trio.CancelScope(**scope):
        yield 1
        yield 2


async def feed(sleep: Callable[[], Awaitable[None]] = trio.sleep_forever) -> AsyncIterator[int]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sleep)
        yield 1
        nursery.cancel_scope.cancel()
        yield 2


async def abandon(generator: AsyncIterator[int], kept: list[Any]) -> object:
    async for _ in generator:
        break
    kept.append(generator)
    return "done"


async def scope_kept(kept: list[Any]) -> object:
    return await abandon(ticks(), kept)


async def scope_collected(kept: list[Any]) -> object:
    return await abandon(ticks(), [])


async def scope_entered(kept: list[Any]) -> object:
    scope = trio.CancelScope()
    scope.__enter__()
    kept.append(scope)
    return "done"


async def scope_shielded(kept: list[Any]) -> object:
    return await abandon(ticks(shield=True), kept)


async def scope_cancelled(kept: list[Any]) -> object:
    await scope_entered(kept)
    kept[-1].cancel()
    return "done"


async def scope_late(kept: list[Any]) -> object:
    return await abandon(ticks(deadline=trio.current_time() + 0.05), kept)


async def two_scopes(kept: list[Any]) -> object:
    await scope_kept(kept)
    return await scope_entered(kept)


async def scope_closed_out_of_order(kept: list[Any]) -> object:
    with trio.CancelScope() as outer, trio.CancelScope():  # noqa: ASYNC100  # the misuse itself
        outer.__exit__(None, None, None)
    return "done"


async def nursery_kept(kept: list[Any]) -> object:
    return await abandon(feed(), kept)


async def nursery_collected(kept: list[Any]) -> object:
    return await abandon(feed(), [])


async def nursery_that_crashes(kept: list[Any]) -> object:
    async def crash() -> None:
        await trio.lowlevel.checkpoint()
        raise ValueError("no luck")

    return await abandon(feed(crash), kept)


async def scope_and_error(kept: list[Any]) -> object:
    await scope_kept(kept)
    raise ValueError("its own")


def own_nursery() -> trio.Nursery:
    nursery = trio.lowlevel.current_task().parent_nursery
    assert nursery is not None
    return nursery


async def task_in_the_slots_nursery(kept: list[Any]) -> object:
    own_nursery().start_soon(trio.sleep_forever)
    return "done"


async def crash_in_the_slots_nursery(kept: list[Any]) -> object:
    async def crash() -> None:
        raise ValueError("no luck")

    own_nursery().start_soon(crash)
    return "done"


async def cancel_of_the_slots_nursery(kept: list[Any]) -> object:
    own_nursery().cancel_scope.cancel()
    return "done"


async def cancel_of_the_slots_nursery_and_a_wait(kept: list[Any]) -> object:
    own_nursery().cancel_scope.cancel()
    await trio.sleep_forever()


async def cancel_of_the_slots_nursery_while_idle(kept: list[Any]) -> object:
    kept.append(own_nursery().cancel_scope)
    return "done"


COMPLETES: list[Handle] = [
    scope_kept,
    scope_collected,
    scope_entered,
    scope_shielded,
    scope_cancelled,
    scope_late,
    two_scopes,
    cancel_of_the_slots_nursery,
    cancel_of_the_slots_nursery_while_idle,
]
# Handlers that failed, and what is told of them.
FAILS: dict[Handle, str] = {
    scope_closed_out_of_order: "stack corrupted",
    nursery_kept: "left a nursery open",
    nursery_collected: "left a nursery open",
    nursery_that_crashes: "left a nursery open",
    scope_and_error: "ValueError: its own",
    task_in_the_slots_nursery: "left a task open",
    crash_in_the_slots_nursery: "left a task open",
    cancel_of_the_slots_nursery_and_a_wait: "cancelled its own scope",
}


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("handle", [*COMPLETES, *FAILS], ids=lambda handle: handle.__name__)
async def test_left_open(place: Workplace, handle: Handle) -> None:
    """As under plain trio with a task a job: it is that job's own affair. The next jobs run, wait and end; so does the idle worker."""
    registry, kept, may_end = JobRegistry(), list[Any](), trio.Event()

    @registry.handler(retry=None)
    async def leaky(payload: Payload) -> object:
        return await handle(kept)

    @registry.handler()
    async def innocent(payload: Payload, ctx: JobContext) -> str:
        await may_end.wait()
        await trio.sleep(0.1)  # beyond the deadline that was left
        return "done"

    worker = await place.start(registry, concurrency=1)
    job_id = await place.enqueue("leaky", max_attempts=1)
    after = await place.enqueue("innocent", max_attempts=1)
    if told := FAILS.get(handle):
        await worker.log.wait(EventName.JOB_DEAD, job_id=job_id)
        assert told in (await place.dead_letter(job_id))["error_message"]
    else:
        await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    await worker.log.wait(EventName.JOB_CLAIMED, job_id=after)
    gc.collect()
    may_end.set()
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=after)
    if handle is cancel_of_the_slots_nursery_while_idle:
        await place.until_asleep(worker)
        kept[0].cancel()
    kept.clear()
    gc.collect()
    for _ in range(3):  # as many as are woken at once, and one more
        await run_one(place, worker, "innocent")
    assert not worker.ended.is_set()
    worker.handle.drain()
    with trio.fail_after(PATIENCE_SECONDS):
        await worker.ended.wait()


async def test_left_open_and_timed_out(place: Workplace) -> None:
    """A handler that is over its time with a scope of its own left open has timed out, and the next job has its own time."""
    registry, kept = JobRegistry(), list[Any]()

    @registry.handler(timeout_seconds=0.05)
    async def leaky(payload: Payload) -> None:
        await scope_entered(kept)
        await trio.sleep_forever()

    @registry.handler()
    async def innocent(payload: Payload) -> None:
        await trio.sleep(0.1)

    worker = await place.start(registry, concurrency=1)
    job_id = await place.enqueue("leaky", max_attempts=1)
    await worker.log.wait(EventName.JOB_DEAD, job_id=job_id)
    assert "timed out" in (await place.dead_letter(job_id))["error_message"]
    await run_one(place, worker, "innocent")


async def test_left_open_while_the_worker_leaves(place: Workplace) -> None:
    """A worker that is cancelled from outside ends, and releases the job of a handler that left a scope open."""
    registry, kept, begun = JobRegistry(), list[Any](), trio.Event()

    @registry.handler()
    async def leaky(payload: Payload) -> None:
        await scope_entered(kept)
        begun.set()
        await trio.sleep_forever()

    worker = await place.start(registry, concurrency=1)
    job_id = await place.enqueue("leaky", max_attempts=1)
    with trio.fail_after(PATIENCE_SECONDS):
        await begun.wait()
        await worker.leave()
    assert await place.history(job_id) == [(1, "released")]


async def test_left_open_is_told(place: Workplace) -> None:
    """There is an event that names the job and what it left."""
    registry, kept = JobRegistry(), list[Any]()

    @registry.handler()
    async def leaky(payload: Payload) -> None:
        await scope_kept(kept)

    worker = await place.start(registry, concurrency=1)
    await run_one(place, worker, "leaky")
    (told,) = worker.log.find(EventName.JOB_LEFT_OPEN)
    assert (told["job_type"], told["left"]) == ("leaky", "a cancel scope")


def nested(depth: int) -> BaseException:
    error: BaseException = ValueError("no luck")
    for _ in range(depth):
        error = BaseExceptionGroup("several", [error])
    return error


def interrupt() -> BaseException:
    return KeyboardInterrupt("the handler's own")


@pytest.mark.parametrize(
    ("kind", "make"),
    [("task", lambda: nested(1500)), ("thread", lambda: nested(1500)), ("thread", interrupt)],
    ids=["deep group in a task", "deep group in a thread", "KeyboardInterrupt in a thread"],
)
async def test_error_that_ended_the_worker(place: Workplace, kind: str, make: Callable[[], BaseException]) -> None:
    """A group deeper than Python calls, and a KeyboardInterrupt that no Ctrl-C made, are the job's failure."""
    registry = JobRegistry()

    @registry.handler("task")
    async def task(payload: Payload) -> None:
        raise make()

    @registry.handler("thread")
    def thread(payload: Payload) -> None:
        raise make()

    worker = await place.start(registry, concurrency=1)
    await worker.log.wait(EventName.JOB_DEAD, job_id=await place.enqueue(kind, max_attempts=1))
    assert not worker.ended.is_set()
