"""Handlers on asyncio: what they are given, how they are stopped, and what they leave behind."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import threading
from contextlib import suppress
from contextvars import Context, ContextVar
from typing import Any

import psycopg
import pytest
import trio
from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import NullPool

from pgnotifyq import EventName, Interrupt, InterruptKind, Job, JobContext, JobRegistry, Snooze
from pgnotifyq.runtime.logs import JsonFormatter
from pgnotifyq.testing import run_job
from tests.doors.callers_support import django_at, url
from tests.runtime.support import PATIENCE_SECONDS, Worker, Workplace

Payload = dict[str, Any]
TENANT = ContextVar("TENANT", default="nobody")


async def completed(place: Workplace, worker: Worker, job_type: str = "work") -> Any:
    """Run one job to its end, and return its result."""
    job_id = await place.enqueue(job_type, max_attempts=1)
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    return (await place.job(job_id))["result"]


async def dead(place: Workplace, worker: Worker, job_type: str = "work") -> str:
    """Run one job that fails, and return its error."""
    job_id = await place.enqueue(job_type, max_attempts=1)
    await worker.log.wait(EventName.JOB_DEAD, job_id=job_id)
    return str((await place.dead_letter(job_id))["error_message"])


async def test_runs_on_asyncio(place: Workplace) -> None:
    """The handler is a task of asyncio's, in another thread than the worker's loop, and its result is stored."""
    registry = JobRegistry()

    @registry.handler("work", runs_in="asyncio")
    async def work(payload: Payload) -> dict[str, Any]:
        await asyncio.sleep(0)
        task = asyncio.current_task()
        assert task is not None
        return {"thread": threading.get_ident(), "task": task.get_name()}

    worker = await place.start(registry)
    result = await completed(place, worker)
    assert result["thread"] != threading.get_ident()
    assert result["task"] == "pgnotifyq work"
    assert result["thread"] == (await completed(place, worker))["thread"], "the loop is the same for the next job"


async def test_context(place: Workplace) -> None:
    """What is awaited of the context is awaited from asyncio: progress, and the news of a cancel; its log says the job."""
    registry = JobRegistry()
    reasons: list[Interrupt] = []

    @registry.handler("work", runs_in="asyncio", cooperative=True)
    async def work(payload: Payload, ctx: JobContext) -> None:
        assert isinstance(ctx, JobContext)
        assert not ctx.is_cancelled()
        with pytest.raises(ValueError, match="not between 0 and 1"):
            await ctx.progress(2.0)
        await ctx.progress(0.5, "half")
        await asyncio.to_thread(ctx.progress, 0.6, "from a thread of the handler's")
        ctx.log.info("half")
        reasons.append(await ctx.cancelled())
        assert ctx.is_cancelled()
        assert ctx.cancel_reason == reasons[0]

    worker = await place.start(registry)
    job_id = await place.enqueue("work")
    await place.until("(select progress_message from pgnotifyq.jobs where id = %s) = 'from a thread of the handler''s'", job_id)
    await place.cancel(job_id)
    await worker.log.wait(EventName.JOB_CANCELLED, job_id=job_id)
    assert [reason.kind for reason in reasons] == [InterruptKind.CANCELLED]


@pytest.mark.parametrize("kind", ["cancelled", "timed_out", "shutdown", "lease_lost"])
async def test_stopped_as_by_a_cancel_of_its_task(place: Workplace, kind: str) -> None:
    """Whatever stops it comes as CancelledError where it waits, and the reason is in its context by then."""
    registry, started, stopped = JobRegistry(), trio.Event(), trio.Event()
    reasons: list[Any] = []
    token = trio.lowlevel.current_trio_token()

    @registry.handler("work", runs_in="asyncio", timeout_seconds=0.2 if kind == "timed_out" else None)
    async def work(payload: Payload, ctx: JobContext) -> None:
        if ctx.attempt > 1:
            return
        token.run_sync_soon(started.set)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            assert ctx.is_cancelled()
            reasons.append(ctx.cancel_reason)
            token.run_sync_soon(stopped.set)
            raise

    worker = await place.start(registry, shutdown_seconds=0)
    job_id = await place.enqueue("work", max_attempts=2 if kind == "lease_lost" else 1)
    await started.wait()
    if kind == "cancelled":
        await place.cancel(job_id)
        await worker.log.wait(EventName.JOB_CANCELLED, job_id=job_id)
    elif kind == "timed_out":
        await worker.log.wait(EventName.JOB_DEAD, job_id=job_id)
    elif kind == "shutdown":
        worker.handle.drain()
        await worker.ended.wait()
        assert (await place.job(job_id))["status"] == "pending"
    else:
        await place.lose(job_id)
        await worker.log.wait(EventName.LEASE_LOST, job_id=job_id)
        await stopped.wait()
    assert [reason.kind for reason in reasons] == [kind]


# The default grace, of 5 s, and a short one.
@pytest.mark.parametrize("settings", [{}, {"grace_seconds": 0.1}], ids=["default", "short"])
async def test_handler_that_swallows_its_cancel(place: Workplace, settings: dict[str, Any]) -> None:
    """It runs on, is told to be unresponsive after its grace, and its job is shown as stopping until it has ended."""
    registry, go_on, swallowed = JobRegistry(), threading.Event(), trio.Event()
    token = trio.lowlevel.current_trio_token()

    @registry.handler("work", runs_in="asyncio")
    async def work(payload: Payload) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            token.run_sync_soon(swallowed.set)
        with suppress(asyncio.CancelledError):  # the second one, when the grace is over
            await asyncio.to_thread(go_on.wait)
        await asyncio.to_thread(go_on.wait)

    worker = await place.start(registry, **settings)
    job_id = await place.enqueue("work")
    await worker.log.wait(EventName.JOB_CLAIMED, job_id=job_id)
    await place.cancel(job_id)
    await swallowed.wait()
    await worker.log.wait(EventName.JOB_UNRESPONSIVE, job_id=job_id)
    assert (await place.job(job_id))["is_held"]
    go_on.set()
    await place.until("(select not is_held and status = 'cancelled' from pgnotifyq.jobs where id = %s)", job_id)


async def test_cancelled_once_more_when_the_grace_is_over(place: Workplace) -> None:
    """A handler that has caught its cancel and waits again is cancelled again, and ends; until then it is stopping."""
    registry = JobRegistry()
    caught: list[str] = []
    started, token = trio.Event(), trio.lowlevel.current_trio_token()

    @registry.handler("work", runs_in="asyncio")
    async def work(payload: Payload) -> None:
        token.run_sync_soon(started.set)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError as error:
            caught.append(str(error))
        await asyncio.Event().wait()

    worker = await place.start(registry)
    job_id = await place.enqueue("work")
    await started.wait()
    await place.cancel(job_id)
    await worker.log.wait(EventName.JOB_CANCELLED, job_id=job_id)
    assert caught == ["pgnotifyq: cancelled"]
    assert worker.log.find(EventName.JOB_UNRESPONSIVE, job_id=job_id)


async def test_context_variables(place: Workplace) -> None:
    """A variable that a handler sets is unset for the next job."""
    registry = JobRegistry()

    @registry.handler("work", runs_in="asyncio")
    async def work(payload: Payload) -> str:
        found = TENANT.get()
        TENANT.set("acme")
        await asyncio.sleep(0)
        assert TENANT.get() == "acme"
        return found

    worker = await place.start(registry, concurrency=1)
    assert [await completed(place, worker) for _ in range(3)] == ["nobody"] * 3


async def _raise(error: BaseException) -> None:
    await asyncio.sleep(0)
    raise error


@pytest.mark.parametrize("where", ["itself", "its task"])
@pytest.mark.parametrize(
    "error",
    [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), BaseExceptionGroup("two", [KeyboardInterrupt(), ValueError("x")])],
    ids=lambda error: type(error).__name__,
)
async def test_what_would_end_a_program_is_its_failure(place: Workplace, error: BaseException, where: str) -> None:
    """SystemExit and the like, raised by a handler or by a task that it awaits, fail its job; the loop and its neighbours go on."""
    registry, go_on = JobRegistry(), threading.Event()

    @registry.handler("work", runs_in="asyncio")
    async def work(payload: Payload) -> None:
        if where == "itself":
            await _raise(error)
        else:
            await asyncio.create_task(_raise(error))

    @registry.handler("neighbour", runs_in="asyncio")
    async def neighbour(payload: Payload) -> int:
        while not go_on.is_set():
            await asyncio.sleep(0.001)
        return threading.get_ident()

    @registry.handler("next", runs_in="asyncio")
    async def following(payload: Payload) -> int:
        return threading.get_ident()

    worker = await place.start(registry)
    beside = await place.enqueue("neighbour", max_attempts=1)
    await worker.log.wait(EventName.JOB_CLAIMED, job_id=beside)
    assert type(error).__name__ in await dead(place, worker)
    thread = await completed(place, worker, "next")
    go_on.set()
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=beside)
    assert (await place.job(beside))["result"] == thread


async def test_cancelled_error_of_its_own(place: Workplace) -> None:
    """CancelledError that nobody asked for is a failure like any other; groups and wishes that are raised are what they are on trio."""
    registry = JobRegistry()

    @registry.handler("cancelled", runs_in="asyncio")
    async def cancelled(payload: Payload) -> None:
        raise asyncio.CancelledError("by itself")

    @registry.handler("group", runs_in="asyncio")
    async def group(payload: Payload) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_raise(ValueError("in a group")))

    @registry.handler("snooze", runs_in="asyncio")
    async def snooze(payload: Payload) -> None:
        raise Snooze(3600)

    worker = await place.start(registry)
    assert "CancelledError: by itself" in await dead(place, worker, "cancelled")
    assert "ValueError: in a group" in await dead(place, worker, "group")
    job_id = await place.enqueue("snooze")
    await place.until(
        "(select status = 'pending' and attempts = 0 and scheduled_at > now() from pgnotifyq.jobs where id = %s)", job_id
    )


async def test_task_left_behind(place: Workplace) -> None:
    """A task that the handler did not await is cancelled and awaited, told, and fails the job; one in a context of its own lives on."""
    registry = JobRegistry()
    seen: list[str] = []
    kept: list[asyncio.Task[None]] = []

    async def linger(name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            seen.append(name)

    @registry.handler("leaves", runs_in="asyncio")
    async def leaves(payload: Payload) -> None:
        kept.append(asyncio.create_task(linger("left")))
        await asyncio.sleep(0)

    @registry.handler("keeps", runs_in="asyncio")
    async def keeps(payload: Payload) -> None:
        kept.append(Context().run(asyncio.create_task, linger("kept")))
        await asyncio.sleep(0)

    @registry.handler("soon", runs_in="asyncio")
    async def soon(payload: Payload) -> None:
        kept.append(asyncio.create_task(asyncio.sleep(0)))
        await asyncio.sleep(0)

    worker = await place.start(registry)
    assert "left a task running" in await dead(place, worker, "leaves")
    assert seen == ["left"]
    assert len(worker.log.find(EventName.JOB_LEFT_OPEN)) == 1
    await completed(place, worker, "soon")
    await completed(place, worker, "keeps")
    assert not kept[-1].done()
    worker.handle.drain()
    await worker.ended.wait()
    assert kept[-1].cancelled() and seen == ["left", "kept"], "it ends with its worker"


async def test_loop_that_dies(place: Workplace) -> None:
    """The jobs that ran on it fail, and say so; the next job has a new loop."""
    registry = JobRegistry()

    loops: list[asyncio.AbstractEventLoop] = []

    @registry.handler("work", runs_in="asyncio")
    async def work(payload: Payload) -> None:
        loops.append(asyncio.get_running_loop())

    @registry.handler("kills", runs_in="asyncio")
    async def kills(payload: Payload) -> None:
        asyncio.get_running_loop()._run_once = None  # type: ignore[attr-defined]
        await asyncio.sleep(3600)

    @registry.handler("stops", runs_in="asyncio")
    async def stops(payload: Payload) -> None:
        asyncio.get_running_loop().stop()
        await asyncio.sleep(0)

    worker = await place.start(registry)
    await completed(place, worker)
    await completed(place, worker, "stops")
    await completed(place, worker)
    assert "event loop has died" in await dead(place, worker, "kills")
    await completed(place, worker)
    assert loops[1] is loops[0] and loops[2] is not loops[0]


async def test_transaction_is_refused(place: Workplace) -> None:
    """A connection that trio drives is of no use there: the error says what to use."""
    registry = JobRegistry()

    @registry.handler("work", runs_in="asyncio")
    async def work(payload: Payload, ctx: JobContext) -> None:
        assert str(ctx.org.id) == str(ctx.job.org_id)
        async with ctx.transaction(complete=True):
            raise AssertionError

    @registry.handler("org", runs_in="asyncio")
    async def org(payload: Payload, ctx: JobContext) -> None:
        async with ctx.org.transaction():
            raise AssertionError

    worker = await place.start(registry)
    assert "ctx.session" in await dead(place, worker)
    assert "ctx.org.transaction() gives a connection that trio drives" in await dead(place, worker, "org")


async def test_what_blocks_is_refused(place: Workplace) -> None:
    """It would hold up every handler on asyncio. In a thread that the handler starts, it is taken."""
    registry, told = JobRegistry(), []
    engine = create_engine(url(place.dsn, "psycopg"), poolclass=NullPool)

    @registry.handler("work", runs_in="asyncio")
    async def work(payload: Payload, ctx: JobContext) -> None:
        with psycopg.connect(place.dsn) as mine:
            for block in (ctx.session(sessionmaker(engine)), ctx.django(), ctx.connection(mine)):
                with pytest.raises(TypeError, match="all handlers on asyncio share") as refused, block:
                    raise AssertionError
                told.append(refused)

        def finish() -> None:
            with ctx.session(sessionmaker(engine), complete=True):
                pass

        await asyncio.to_thread(finish)

    worker = await place.start(registry)
    with django_at(place.dsn, "default"):
        await completed(place, worker)
    assert len(told) == 3


async def test_two_thousand_wait_at_once(place: Workplace) -> None:
    """So many handlers wait in one worker, and all go on when told."""
    registry, go_on, everybody = JobRegistry(), threading.Event(), trio.Event()
    waiting: list[None] = []
    token = trio.lowlevel.current_trio_token()

    @registry.handler("work", runs_in="asyncio")
    async def work(payload: Payload) -> None:
        waiting.append(None)
        if len(waiting) == 2000:
            token.run_sync_soon(everybody.set)
        while not go_on.is_set():
            await asyncio.sleep(0.1)

    worker = await place.start(registry, concurrency=2000)
    await place.connection.execute("select count(pgnotifyq.enqueue('work', '{}')) from generate_series(1, 2000)")
    with trio.fail_after(3 * PATIENCE_SECONDS):
        await everybody.wait()
        go_on.set()
        await place.until("(select count(*) = 2000 from pgnotifyq.jobs where status = 'completed')")
    assert worker.log.find(EventName.JOB_LEFT_OPEN) == []


# The default, of a second, and less, so that the other case need not last as long.
@pytest.mark.parametrize(
    ("where", "settings"), [("itself", {}), ("its task", {"loop_blocked_seconds": 0.05})], ids=["itself", "its task"]
)
async def test_handler_that_holds_the_loop(place: Workplace, where: str, settings: dict[str, Any]) -> None:
    """It is named, with its kind and its stack, while it holds asyncio's loop; trio's handlers and heartbeats go on."""
    registry, let_go = JobRegistry(), threading.Event()

    async def hold() -> None:
        assert let_go.wait(PATIENCE_SECONDS)

    @registry.handler("work", runs_in="asyncio")
    async def work(payload: Payload) -> None:
        if where == "itself":
            await hold()
        else:
            await asyncio.create_task(hold())

    @registry.handler("beside")
    async def beside(payload: Payload) -> None:
        await trio.lowlevel.checkpoint()

    worker = await place.start(registry, **settings)
    job_id = await place.enqueue("work")
    told = await worker.log.wait(EventName.LOOP_BLOCKED)
    assert (told["job_id"], told["job_type"], told["runs_in"]) == (str(job_id), "work", "asyncio")
    assert "hold at" in told["stack"] and "asyncio_loop.py" not in told["stack"]
    await completed(place, worker, "beside")
    let_go.set()
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)


async def test_many_short_steps_hold_nothing(place: Workplace) -> None:
    """A loop that is busy for long, with steps that are short, is not called held."""
    registry = JobRegistry()

    @registry.handler("work", runs_in="asyncio")
    async def work(payload: Payload) -> None:
        end = asyncio.get_running_loop().time() + 0.5
        while asyncio.get_running_loop().time() < end:
            await asyncio.sleep(0)

    worker = await place.start(registry, loop_blocked_seconds=0.05)
    await completed(place, worker)
    assert worker.log.find(EventName.LOOP_BLOCKED) == []


async def test_records_of_its_log_name_the_job(place: Workplace) -> None:
    """What any logger says in such a handler, or in a thread that it starts, has the job's id in JSON logs."""
    registry, records = JobRegistry(), []
    formatter = JsonFormatter()

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(json.loads(formatter.format(record)))

    log, ear = logging.getLogger("of.an.application"), Ear()
    log.addHandler(ear)

    @registry.handler("work", runs_in="asyncio")
    async def work(payload: Payload) -> None:
        log.warning("here")
        await asyncio.to_thread(log.warning, "there")

    worker = await place.start(registry)
    try:
        job_id = await place.enqueue("work")
        await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    finally:
        log.removeHandler(ear)
    assert [record["job_id"] for record in records] == [str(job_id)] * 2


async def test_worker_that_is_cancelled(place: Workplace) -> None:
    """Its handlers are cancelled, their jobs released, and the loop's thread is gone."""
    registry, started = JobRegistry(), trio.Event()
    ended: list[threading.Thread] = []
    token = trio.lowlevel.current_trio_token()

    @registry.handler("work", runs_in="asyncio")
    async def work(payload: Payload) -> None:
        token.run_sync_soon(started.set)
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(threading.current_thread())

    worker = await place.start(registry)
    job_id = await place.enqueue("work")
    await started.wait()
    await worker.leave()
    assert len(ended) == 1 and not ended[0].is_alive()
    assert (await place.job(job_id))["status"] == "pending"


async def test_run_alone() -> None:
    """`run_job` runs it as a worker does, on a loop of its own."""
    registry = JobRegistry(runs_in="asyncio")

    @registry.handler("work")
    async def work(payload: Payload, ctx: JobContext) -> str:
        await ctx.progress(0.5, "half")
        await asyncio.sleep(0)
        return threading.current_thread().name

    ran = await run_job(registry, "work")
    assert (ran.outcome, ran.result, ran.progress) == ("completed", "pgnotifyq asyncio", ((0.5, "half"),))


async def _of_nobody() -> None: ...


async def test_class_handler_and_decorated_one(place: Workplace) -> None:
    """A class says it by its attribute; a function behind a decorator is awaited on asyncio; a stray coroutine is an error."""
    registry = JobRegistry(runs_in="asyncio")

    class Work:
        job_type = "of_class"
        runs_in = "asyncio"

        async def handle(self, job: Job, ctx: JobContext) -> str:
            await asyncio.sleep(0)
            return threading.current_thread().name

    def plainly(function: Any) -> Any:
        @functools.wraps(function)
        def call(*arguments: Any) -> Any:
            return function(*arguments)

        return call

    @registry.handler("decorated")
    @plainly
    async def decorated(payload: Payload) -> str:
        await asyncio.sleep(0)
        return threading.current_thread().name

    def silently(function: Any) -> Any:
        return lambda payload: function(payload)

    @registry.handler("silent")
    @silently
    async def silent(payload: Payload) -> str:
        await asyncio.sleep(0)
        return threading.current_thread().name

    @registry.handler("unseen")
    def unseen(payload: Payload) -> Any:
        return globals()["_of_nobody"]()

    @registry.handler("plain")
    def plain(payload: Payload) -> str:
        return threading.current_thread().name

    registry.register(Work())
    worker = await place.start(registry)
    assert await completed(place, worker, "of_class") == "pgnotifyq asyncio"
    assert await completed(place, worker, "decorated") == "pgnotifyq asyncio"
    assert await completed(place, worker, "silent") == "pgnotifyq asyncio"
    assert (await dead(place, worker, "unseen")).startswith(
        "TypeError: tests.runtime.test_asyncio_handlers:test_class_handler_and_decorated_one.<locals>.unseen returned a coroutine"
        " from its thread, and its registry is for asyncio: use functools.wraps"
    )
    assert await completed(place, worker, "plain") != "pgnotifyq asyncio"
