"""What stands around handlers: middleware around each run, lifespans around all that a worker runs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator
from contextvars import ContextVar
from typing import Any

import anyio
import attrs
import pytest
import trio
import trio.lowlevel

import pgnotifyq
from pgnotifyq import EventName, JobContext, JobRegistry, Snooze
from pgnotifyq.runtime.asyncio_loop import LoopDied
from pgnotifyq.testing import run_job
from tests.runtime.support import Workplace

KINDS = ["trio", "asyncio", "thread"]


async def a_moment(kind: str) -> None:
    """Let other tasks run, on either loop."""
    if kind == "asyncio":
        await asyncio.sleep(0)
    else:
        await trio.lowlevel.checkpoint()


WHO: ContextVar[str] = ContextVar("WHO", default="nobody")


def declare(registry: Any, kind: str, body: Any) -> Any:
    """Register a handler `work` of a kind, whose body is a plain function of (payload, ctx)."""
    if kind == "thread":

        @registry.handler("work")  # type: ignore[untyped-decorator]
        def in_thread(payload: dict[str, Any], ctx: JobContext) -> object:
            return body(payload, ctx)

        return in_thread

    @registry.handler("work", runs_in=kind)  # type: ignore[untyped-decorator]
    async def awaited(payload: dict[str, Any], ctx: JobContext) -> object:
        await a_moment(kind)
        return body(payload, ctx)

    return awaited


@pytest.mark.parametrize("kind", KINDS)
async def test_in_order(kind: str) -> None:
    """Each enters before those declared after it, and leaves after them; each sees what the handler returned."""
    told: list[str] = []

    def named(name: str) -> Any:
        async def around(ctx: JobContext) -> AsyncIterator[None]:
            told.append(f"{name} enters {ctx.job.job_type}")
            yield
            told.append(f"{name} sees {ctx.returned}")

        return around

    def handled() -> int:
        told.append("handler")
        return 7

    registry = JobRegistry(middleware=[named("first")])
    registry.middleware(named("second"))
    work = declare(registry, kind, lambda payload, ctx: handled())
    registry.middleware(named("third"))
    assert (await run_job(registry, work, {})).result == 7
    assert told == [
        "first enters work", "second enters work", "third enters work", "handler", "third sees 7", "second sees 7", "first sees 7",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
async def test_context_variables_reach_the_handler(place: Workplace, kind: str) -> None:
    """Of every kind; and the next job of the slot starts without them."""
    registry = JobRegistry()

    @registry.middleware
    async def names(ctx: JobContext) -> AsyncIterator[None]:
        assert WHO.get() == "nobody"
        WHO.set(ctx.job.payload["who"])
        yield

    declare(registry, kind, lambda payload, ctx: WHO.get())
    worker = await place.start(registry, concurrency=1)
    for who in ("Ann", "Bob"):
        job_id = await place.enqueue("work", payload=json.dumps({"who": who}))
        await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
        assert (await place.job(job_id))["result"] == who


@pytest.mark.parametrize("kind", KINDS)
async def test_sees_the_error_and_may_raise_another(kind: str) -> None:
    """What the handler raises comes out of the `yield`; what the middleware raises in its place is the job's error."""
    registry = JobRegistry()
    seen: list[BaseException] = []

    @registry.middleware
    async def translates(ctx: JobContext) -> AsyncIterator[None]:
        try:
            yield
        except ZeroDivisionError as error:
            seen.append(error)
            raise OSError("told by the middleware") from error

    work = declare(registry, kind, lambda payload, ctx: 1 / payload["by"])
    ran = await run_job(registry, work, {"by": 0})
    assert (ran.outcome, len(seen)) == ("failed", 1)
    assert "told by the middleware" in (ran.error_message or "")
    assert (await run_job(registry, work, {"by": 2})).result == 0.5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("when", ["before", "after"])
async def test_its_own_error_is_the_jobs(kind: str, when: str) -> None:
    """Before the handler, which then does not run, or after it."""
    registry = JobRegistry(middleware=[lambda ctx: _raising(when)])
    ran: list[int] = []
    work = declare(registry, kind, lambda payload, ctx: ran.append(1))
    told = await run_job(registry, work, {})
    assert told.outcome == "failed" and f"raised {when}" in (told.error_message or "")
    assert len(ran) == (when == "after")


@contextlib.asynccontextmanager
async def _raising(when: str) -> AsyncIterator[None]:
    if when == "before":
        raise OSError("raised before")
    yield
    raise OSError("raised after")


@pytest.mark.parametrize("kind", KINDS)
async def test_a_wish_that_it_raises_counts(kind: str) -> None:
    """A middleware may put a job off, as a handler may."""
    registry = JobRegistry()

    @registry.middleware
    async def later(ctx: JobContext) -> AsyncIterator[None]:
        if ctx.attempt:
            raise Snooze(60.0)
        yield

    work = declare(registry, kind, lambda payload, ctx: None)
    ran = await run_job(registry, work, {})
    assert (ran.outcome, ran.delay_seconds) == ("snoozed", 60.0)


@pytest.mark.parametrize("kind", ["trio", "asyncio"])
async def test_a_cancel_comes_through_it(place: Workplace, kind: str) -> None:
    """It sees the cancel of its handler, and the job ends cancelled."""
    registry: Any = JobRegistry()
    begun = trio.Event()
    token = trio.lowlevel.current_trio_token()
    seen: list[str] = []

    @registry.middleware  # type: ignore[untyped-decorator]
    async def watches(ctx: JobContext) -> AsyncIterator[None]:
        try:
            yield
        except BaseException as error:
            seen.append(type(error).__name__)
            raise

    @registry.handler("work", runs_in=kind)  # type: ignore[untyped-decorator]
    async def work(payload: dict[str, Any]) -> None:
        token.run_sync_soon(begun.set)
        await anyio.sleep(3600)

    worker = await place.start(registry)
    job_id = await place.enqueue("work")
    await begun.wait()
    await place.cancel(job_id)
    await worker.log.wait(EventName.JOB_CANCELLED, job_id=job_id)
    assert seen == [{"trio": "Cancelled", "asyncio": "CancelledError"}[kind]]


async def test_where_it_runs() -> None:
    """On trio around every kind if it says so; on asyncio around handlers there, and around no other; else as the handler."""
    loops: list[tuple[str, bool]] = []

    def noting(name: str) -> Any:
        async def around(ctx: JobContext) -> AsyncIterator[None]:
            loops.append((name, trio.lowlevel.in_trio_task()))
            yield

        return around

    for kind in KINDS:
        registry = JobRegistry()
        registry.middleware(runs_in="asyncio")(noting("asyncio"))
        registry.middleware(runs_in="trio")(noting("trio"))
        registry.middleware(noting("as the handler"))
        loops.clear()
        await run_job(registry, declare(registry, kind, lambda payload, ctx: None), {})
        expected = [("trio", True), ("as the handler", True)]
        assert loops == (expected if kind != "asyncio" else [("trio", True), ("asyncio", False), ("as the handler", False)])


async def test_of_an_included_registry() -> None:
    """Its middleware stands around its own handlers alone, inside of that of the registry that includes it."""
    told: list[str] = []

    def named(name: str) -> Any:
        async def around(ctx: JobContext) -> AsyncIterator[None]:
            told.append(name)
            yield

        return around

    inner, outer = JobRegistry(middleware=[named("inner")]), JobRegistry(middleware=[named("outer")])
    work = declare(inner, "trio", lambda payload, ctx: None)
    outer.include(inner)

    @outer.handler("own")
    async def own(payload: dict[str, Any]) -> None:
        """Do nothing."""

    await run_job(outer, work, {})
    await run_job(outer, own, {})
    assert told == ["outer", "inner", "outer"]


@pytest.mark.parametrize("wrong", [7, "name", asyncio.sleep])
def test_what_is_none(wrong: Any) -> None:
    """What cannot stand around a handler is refused where it is declared, with what to write."""
    registry = JobRegistry()
    with pytest.raises(pgnotifyq.ConfigError, match="yield"):
        registry.middleware(wrong)
    with pytest.raises(pgnotifyq.ConfigError, match="yield"):
        registry.lifespan(wrong)
    with pytest.raises(pgnotifyq.ConfigError, match="trio or asyncio"):
        registry.middleware(runs_in="thread")(lambda ctx: contextlib.nullcontext())  # type: ignore[call-overload]


# Lifespans


@attrs.define
class Pool:
    """What handlers share."""

    is_open: bool = True
    thread: int = attrs.field(factory=threading.get_ident)
    used: int = 0


class Model(Pool):
    """Another one, of a type of its own."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place_of_it", ["trio", "asyncio"])
async def test_made_once_a_worker(place: Workplace, kind: str, place_of_it: str) -> None:
    """Before the worker claims; each job is given the same; closed after the last job, which still had it open."""
    registry: Any = JobRegistry()
    made: list[Pool] = []

    @registry.lifespan(runs_in=place_of_it)  # type: ignore[untyped-decorator]
    async def pool() -> AsyncIterator[Pool]:
        made.append(Pool())
        yield made[-1]
        await a_moment(place_of_it)
        made[-1].is_open = False

    def use(payload: Any, ctx: JobContext) -> bool:
        if kind == "trio" and place_of_it == "asyncio":
            return Pool not in ctx.resources  # a trio handler could not use it
        ctx.resources[Pool].used += 1
        return ctx.resources[Pool].is_open

    declare(registry, kind, use)
    job_id = await place.enqueue("work")
    worker = await place.start(registry)
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    second = await place.enqueue("work")
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=second)
    assert (await place.job(job_id))["result"] is (await place.job(second))["result"] is True
    assert [one.is_open for one in made] == [True]
    worker.handle.drain()
    await worker.ended.wait()
    assert [one.is_open for one in made] == [False]
    assert made[0].used == (0 if (kind, place_of_it) == ("trio", "asyncio") else 2)


@pytest.mark.parametrize("where", ["trio", "asyncio"])
async def test_that_fails_at_its_start(place: Workplace, where: str) -> None:
    """The worker ends with an error that names it; nothing was claimed, those before it are closed, its row is gone."""
    registry: Any = JobRegistry()
    closed: list[str] = []

    @registry.lifespan  # type: ignore[untyped-decorator]
    async def first() -> AsyncIterator[Pool]:
        try:
            yield Pool()
        finally:
            closed.append("first")

    @registry.lifespan(runs_in=where)  # type: ignore[untyped-decorator]
    async def broken() -> AsyncIterator[Pool]:
        if closed == []:
            raise ConnectionError("no cache at 10.0.0.1")
        yield Pool()

    declare(registry, "trio", lambda payload, ctx: None)
    job_id = await place.enqueue("work")
    with pytest.raises(pgnotifyq.LifespanFailed, match=r"broken failed at its start: ConnectionError: no cache at 10\.0\.0\.1"):
        await pgnotifyq.run_worker(registry, place.dsn)
    assert closed == ["first"]
    assert (await place.job(job_id))["attempts"] == 0
    await place.until("not exists (select from pgnotifyq.worker_heartbeats)")


@pytest.mark.parametrize("where", ["trio", "asyncio"])
async def test_that_fails_when_it_is_closed(place: Workplace, where: str) -> None:
    """Jobs are settled; the worker then ends with an error, and is not found well."""
    registry: Any = JobRegistry()

    @registry.lifespan(runs_in=where)  # type: ignore[untyped-decorator]
    async def pool() -> AsyncIterator[Pool]:
        yield Pool()
        raise ConnectionError("it hangs")

    declare(registry, where, lambda payload, ctx: None)
    job_id = await place.enqueue("work")

    async def drain(handle: pgnotifyq.WorkerHandle) -> None:
        await place.until("(select status from pgnotifyq.jobs where id = %s) = 'completed'", job_id)
        handle.drain()

    async def work() -> None:
        async with trio.open_nursery() as nursery:
            handle: pgnotifyq.WorkerHandle = await nursery.start(pgnotifyq.run_worker, registry, place.dsn)
            nursery.start_soon(drain, handle)

    with pytest.raises(BaseExceptionGroup) as caught:
        await work()
    (error,) = caught.value.exceptions
    assert isinstance(error, pgnotifyq.LifespanFailed) and "it hangs" in str(error)


async def test_several_by_their_types(place: Workplace) -> None:
    """Each is found by its type, the first made of several; one that nobody made is told with what there is."""
    registry = JobRegistry()

    @registry.lifespan
    async def model() -> AsyncIterator[Model]:
        yield Model(used=1)

    other = JobRegistry()

    @other.lifespan
    async def pool() -> AsyncIterator[Pool]:
        yield Pool(used=2)

    registry.include(other)

    @registry.handler("work")
    async def work(payload: dict[str, Any], ctx: JobContext) -> list[int]:
        with pytest.raises(LookupError, match=r"no lifespan has made a dict; made were: \w+, \w+"):
            ctx.resources[dict]
        return [ctx.resources[Model].used, ctx.resources[Pool].used]

    assert (await run_job(registry, work, {})).result == [1, 1]
    assert (await run_job(registry, work, {}, resources=[Pool(used=5), Model(used=6)])).result == [6, 5]


async def test_a_middleware_has_the_resources() -> None:
    """Middleware finds what the lifespans made, as handlers do."""
    registry = JobRegistry(runs_in="asyncio")

    @registry.lifespan
    async def pool() -> AsyncIterator[Pool]:
        yield Pool()

    @registry.middleware
    async def uses(ctx: JobContext) -> AsyncIterator[None]:
        ctx.resources[Pool].used += 1
        yield

    work = declare(registry, "asyncio", lambda payload, ctx: ctx.resources[Pool].used)
    assert (await run_job(registry, work, {})).result == 1


async def test_on_a_loop_that_died(place: Workplace) -> None:
    """The next loop has resources of its own, made before its first job."""
    registry = JobRegistry(runs_in="asyncio")
    made: list[Pool] = []

    @registry.lifespan
    async def pool() -> AsyncIterator[Pool]:
        made.append(Pool())
        yield made[-1]

    @registry.handler("kill", max_attempts=1)
    async def kill(payload: dict[str, Any]) -> None:
        loop: Any = asyncio.get_running_loop()
        loop._run_once = None
        await asyncio.sleep(0)

    declare(registry, "asyncio", lambda payload, ctx: ctx.resources[Pool] is made[-1])
    worker = await place.start(registry)
    await place.enqueue("kill", max_attempts=1)
    await worker.log.wait(EventName.JOB_DEAD)
    job_id = await place.enqueue("work")
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    assert len(made) == 2
    assert (await place.job(job_id))["result"] is True


async def test_loop_that_dies_while_it_begins(place: Workplace) -> None:
    """asyncio's loop is gone before a lifespan was entered: the worker ends with an error, and does not wait for it."""
    registry = JobRegistry()

    @registry.lifespan(runs_in="asyncio")
    async def kills() -> AsyncIterator[Pool]:
        asyncio.get_running_loop()._run_once = None  # type: ignore[attr-defined]
        await asyncio.sleep(3600)
        yield Pool()

    declare(registry, "asyncio", lambda payload, ctx: None)
    with pytest.raises(LoopDied, match="while the lifespans were entered"):
        await pgnotifyq.run_worker(registry, place.dsn)
