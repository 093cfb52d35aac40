"""Checkpoints: what a handler has saved is what the next attempt goes on from, whatever ended the one before."""

from __future__ import annotations

import signal
from typing import Any

import attrs
import psycopg
import pytest
import trio
from psycopg.types.json import Jsonb

import pgnotifyq
from pgnotifyq import EventName, InvalidPayload, JobContext, JobRegistry, LeaseLost, Retry, Snooze, StateTooLarge
from pgnotifyq.doors.client import open_client
from pgnotifyq.model.checkpoint import STATE_BYTES_MAX
from pgnotifyq.model.job import JobId
from pgnotifyq.testing import run_job
from tests.asked import fetch
from tests.runtime.apps import in_processes
from tests.runtime.support import Workplace
from tests.runtime.test_promises import start, start_process


@attrs.frozen
class At:
    """Where the work is."""

    line: int
    seen: tuple[str, ...] = ()


async def saved_of(place: Workplace, job_id: JobId) -> Any:
    """Return what is stored."""
    ((saved,),) = await fetch(place.connection, "select saved from pgnotifyq.jobs where id = %s", job_id)
    return saved


def walking(dsn: str) -> JobRegistry:
    """Return a handler of each kind that goes one step further with each attempt, and fails the first two."""
    registry = JobRegistry()
    registry.include(in_processes.registry)

    def step(saved: At | None) -> At:
        return At(1 if saved is None else saved.line + 1)

    @registry.handler("on_trio", saved_type=At)
    async def on_trio(payload: Any, ctx: JobContext) -> list[int]:
        at = ctx.saved
        await ctx.save(step(at))
        if at is None or at.line < 2:
            raise Retry(0.0)
        async with ctx.transaction():
            await ctx.save(At(10))
        return [at.line, ctx.saved.line]

    @registry.handler("on_asyncio", saved_type=At, runs_in="asyncio")
    async def on_asyncio(payload: Any, ctx: JobContext) -> list[int]:
        at = ctx.saved
        await ctx.save(step(at))
        if at is None or at.line < 2:
            raise Retry(0.0)
        async with await psycopg.AsyncConnection.connect(dsn) as theirs, ctx.connection(theirs):
            await ctx.save(At(10))
        return [at.line, ctx.saved.line]

    @registry.handler("in_thread", saved_type=At)
    def in_thread(payload: Any, ctx: JobContext) -> list[int]:
        at = ctx.saved
        ctx.save(step(at))
        if at is None or at.line < 2:
            raise Retry(0.0)
        with psycopg.connect(dsn) as theirs, ctx.connection(theirs):
            ctx.save(At(10))
        return [at.line, ctx.saved.line]

    return registry


@pytest.mark.parametrize("kind", ["on_trio", "on_asyncio", "in_thread", "walk_in_process"])
async def test_a_retry_goes_on_from_there(place: Workplace, kind: str) -> None:
    """Each attempt of a handler of any kind is given what the one before saved; a completed job has nothing left."""
    worker = await place.start(walking(place.dsn))
    job_id = await place.enqueue(kind, payload=Jsonb({"dsn": place.dsn}))
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    assert (await place.job(job_id))["result"] == [2, 10]
    assert await place.history(job_id) == [(1, "failed"), (2, "failed"), (3, "completed")]
    assert await saved_of(place, job_id) is None


async def test_it_is_kept_however_an_attempt_ends(place: Workplace) -> None:
    """A snooze, a release, a death and a requeue keep it; `from_start` does not; nothing was saved at first.

    The shutdown that releases it gives no time, for the handler would not end in any.
    """
    registry = JobRegistry()
    found: list[Any] = []
    stays = trio.Event()

    @registry.handler("work", max_attempts=1)
    async def work(payload: Any, ctx: JobContext) -> object:
        found.append(ctx.saved)
        await ctx.save(len(found))
        assert ctx.saved == len(found)
        match len(found):
            case 1:
                return Snooze(0.0)
            case 2:
                stays.set()
                await trio.sleep_forever()
        return None if found[-1] is None and len(found) > 3 else Retry(0.0)

    worker = await place.start(registry, shutdown_seconds=0)
    async with open_client(place.dsn) as client:
        job_id = await client.enqueue(work, {})
        await stays.wait()
        worker.handle.drain()
        await worker.ended.wait()
        job = await client.get(job_id)
        assert (job.status, job.attempts, job.saved) == ("pending", 0, 2)
        worker = await place.start(registry)
        await worker.log.wait(EventName.JOB_DEAD, job_id=job_id)
        letter = await client.get_dead(job_id)
        assert (letter.saved, letter.as_job().saved) == (3, 3)
        await client.requeue(job_id)
        await worker.log.wait(EventName.JOB_DEAD, job_id=job_id, count=2)
        await client.requeue(job_id, from_start=True)
        await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    assert found == [None, 1, 2, 3, None]


async def test_letters_from_the_start(place: Workplace) -> None:
    """`requeue_all` brings the states back, or leaves them."""
    registry = JobRegistry()
    found: list[Any] = []

    @registry.handler("work", max_attempts=1)
    async def work(payload: Any, ctx: JobContext) -> object:
        found.append(ctx.saved)
        await ctx.save("there")
        return Retry(0.0)

    worker = await place.start(registry)
    async with open_client(place.dsn) as client:
        await client.enqueue(work, {})
        await worker.log.wait(EventName.JOB_DEAD)
        assert await client.requeue_all() == 1
        await worker.log.wait(EventName.JOB_DEAD, count=2)
        assert await client.requeue_all(from_start=True) == 1
        await worker.log.wait(EventName.JOB_DEAD, count=3)
    assert found == [None, "there", None]


async def test_who_lost_the_job_saves_nothing(place: Workplace) -> None:
    """An execution that was reclaimed raises LeaseLost, and the state of who has the job now stays."""
    registry = JobRegistry()
    begun, go_on, told = trio.Event(), trio.Event(), trio.Event()

    @registry.handler("work")
    async def work(payload: Any, ctx: JobContext) -> None:
        await ctx.save("mine")
        begun.set()
        with trio.CancelScope(shield=True):
            await go_on.wait()
            with pytest.raises(LeaseLost):
                await ctx.save("stale")
            with pytest.raises(LeaseLost):
                async with ctx.transaction():
                    await ctx.save("stale, too")
            assert ctx.saved == "mine"
            told.set()

    await place.start(registry)
    job_id = await place.enqueue("work")
    await begun.wait()
    await place.take_away(job_id)
    go_on.set()
    await told.wait()
    assert await saved_of(place, job_id) == "mine"


async def test_a_killed_worker(place: Workplace) -> None:
    """At the settings that nobody sets: a worker is killed, and another goes on from what the first saved last."""
    registry = JobRegistry()

    @registry.handler("walk")
    async def walk(payload: Any, ctx: JobContext) -> Any:
        return ctx.saved

    process = await start_process(place)
    job_id = await place.enqueue("walk")
    await place.until("saved = '{\"step\": 3}' from pgnotifyq.jobs where id = %s", job_id)
    other = await start(place, registry)
    process.kill()
    assert await process.wait() == -signal.SIGKILL
    await other.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    assert (await place.job(job_id))["result"] == {"step": 3}
    assert await place.history(job_id) == [(1, "lost"), (2, "completed")]


async def test_it_commits_with_the_transaction(place: Workplace) -> None:
    """What is saved in a transaction of the job's is there once it is committed, and not if it is rolled back."""
    registry = JobRegistry()
    within: list[Any] = []

    @registry.handler("work")
    async def work(payload: Any, ctx: JobContext) -> list[Any]:
        await ctx.save(0)

        async def fail() -> None:
            async with ctx.transaction():
                await ctx.save(1)
                within.append(ctx.saved)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fail()
        after_rollback = ctx.saved, await saved_of(place, ctx.job.id)
        async with ctx.transaction():
            await ctx.save(2)
            within.append(await saved_of(place, ctx.job.id))
        after_commit = ctx.saved, await saved_of(place, ctx.job.id)
        async with ctx.org.transaction():
            await ctx.save(3)
        return [*after_rollback, *after_commit, await saved_of(place, ctx.job.id)]

    worker = await place.start(registry)
    job_id = await place.enqueue("work")
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    assert within == [1, 0]
    assert (await place.job(job_id))["result"] == [0, 0, 2, 2, 3]


async def test_what_cannot_be_saved(place: Workplace) -> None:
    """What is too large, no JSON or not of the handler's type is refused by a typed error; what was saved before stays."""
    registry = JobRegistry()

    @registry.handler("work", saved_type=At)
    async def work(payload: Any, ctx: JobContext) -> None:
        await ctx.save(At(1, ("a",)))
        with pytest.raises(StateTooLarge, match="65536 are allowed"):
            await ctx.save(At(2, ("x" * STATE_BYTES_MAX,)))
        with pytest.raises(InvalidPayload, match="does not fit"):
            await ctx.save({"line": "none"})
        with pytest.raises(InvalidPayload):
            await ctx.save(At(2, (object(),)))  # type: ignore[arg-type]  # that is the point
        assert ctx.saved == At(1, ("a",))

    @registry.handler("plain")
    async def plain(payload: Any, ctx: JobContext) -> None:
        with pytest.raises(StateTooLarge, match="as PostgreSQL writes it"):
            await ctx.save([1e300] * 1000)
        with pytest.raises(StateTooLarge):
            async with ctx.transaction():
                await ctx.save([1e300] * 1000)
        assert ctx.saved is None
        await ctx.save({"a": None})
        await ctx.save(None)
        assert ctx.saved is None

    worker = await place.start(registry)
    for kind in ("work", "plain"):
        job_id = await place.enqueue(kind, max_attempts=1)
        await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)


async def test_a_state_that_does_not_fit(place: Workplace) -> None:
    """A state that the handler of today cannot take makes a dead letter that says so; from the start, the job runs."""
    registry = JobRegistry()

    @registry.handler("work", saved_type=At)
    async def work(payload: Any, ctx: JobContext) -> bool:
        return ctx.saved is None

    job_id = await place.enqueue("work")
    await place.connection.execute("update pgnotifyq.jobs set saved = '[1]'")
    worker = await place.start(registry)
    await worker.log.wait(EventName.JOB_DEAD, job_id=job_id)
    letter = await place.dead_letter(job_id)
    assert letter["reason"] == "undecodable"
    assert "the saved state does not fit At" in letter["error_message"]
    assert "--from-start" in letter["error_message"]
    async with open_client(place.dsn) as client:
        await client.requeue(job_id, from_start=True)
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)


async def test_a_handler_alone() -> None:
    """`run_job` begins with a state, and returns what was saved; its middleware sees the same context."""
    registry = JobRegistry()

    @registry.handler("work", saved_type=At)
    async def work(payload: Any, ctx: JobContext) -> int:
        at = ctx.saved
        await ctx.save(At(at.line + 1))
        return int(ctx.saved.line)

    ran = await run_job(registry, work, {}, saved=At(6))
    assert (ran.result, ran.saved) == (7, ({"line": 7, "seen": []},))
    assert isinstance(pgnotifyq.StateTooLarge("x"), pgnotifyq.PayloadTooLarge)
