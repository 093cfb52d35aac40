"""How handlers end: returned values, errors, timeouts, payloads that do not fit, types that nobody handles."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import trio

from pgnotifyq import (
    Discard,
    EventName,
    HandlerAlreadyRegistered,
    Job,
    JobContext,
    JobRegistry,
    Retry,
    RetryPolicy,
    Snooze,
    open_client,
)
from pgnotifyq.ledger.statements import query
from tests.asked import fetch
from tests.ledger.support import SCHEMA
from tests.runtime.support import Workplace

Payload = dict[str, Any]
AT_ONCE = RetryPolicy(base_seconds=0.0)


@attrs.frozen
class Resize:
    """A payload with a type."""

    path: str
    width: int


async def test_result(place: Workplace) -> None:
    """What a handler returns is stored as the job's result; the payload reaches it as the type it asks for."""
    registry = JobRegistry()

    @registry.handler()
    async def resize(payload: Resize, ctx: JobContext) -> object:
        return {"path": payload.path, "area": payload.width**2, "attempt": ctx.attempt}

    worker = await place.start(registry)
    job_id = await place.enqueue("resize", payload='{"path": "a.png", "width": 3}')
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    job = await place.job(job_id)
    assert (job["status"], job["result"]) == ("completed", {"path": "a.png", "area": 9, "attempt": 1})
    assert await place.history(job_id) == [(1, "completed")]


async def test_result_that_cannot_be_stored(place: Workplace) -> None:
    """A result that is not JSON does not undo the work: the job is completed, and says why it has no result."""
    registry = JobRegistry()

    @registry.handler()
    async def work(payload: Payload) -> object:
        return object()

    worker = await place.start(registry)
    job_id = await place.enqueue("work")
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    job = await place.job(job_id)
    assert (job["status"], job["result"]) == ("completed", None)
    assert "result was not stored" in job["error_message"]


async def test_class_with_dependencies(place: Workplace) -> None:
    """A handler may be an object with what it needs; it is given the whole job."""

    class SendEmail:
        job_type = "send_email"

        def __init__(self, sent: list[object]) -> None:
            self.sent = sent

        async def handle(self, job: Job, ctx: JobContext) -> None:
            self.sent.append(job.payload["to"])

    registry, sent = JobRegistry(), []  # type: ignore[var-annotated]
    registry.register(SendEmail(sent))
    worker = await place.start(registry)
    job_id = await place.enqueue("send_email", payload='{"to": "ann@example.org"}')
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    assert sent == ["ann@example.org"]


async def test_snooze(place: Workplace) -> None:
    """A snoozed job comes back by itself after its time, as often as it likes: no attempt is charged."""
    registry, runs = JobRegistry(), []

    @registry.handler()
    async def work(payload: Payload, ctx: JobContext) -> object:
        runs.append(ctx.attempt)
        return Snooze(0.02) if len(runs) < 4 else None

    worker = await place.start(registry)
    job_id = await place.enqueue("work", max_attempts=1)
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    assert runs == [1, 1, 1, 1]
    assert await place.history(job_id) == [(1, "snoozed")] * 3 + [(1, "completed")]


@pytest.mark.parametrize("how", ["returned", "raised", "thread"])
async def test_retry_until_dead(place: Workplace, how: str) -> None:
    """Failures are tried again by themselves, each charged, and the last one ends in the dead letters with the history."""
    registry, runs = JobRegistry(), []

    @registry.handler("returned", retry=AT_ONCE)
    async def returned(payload: Payload, ctx: JobContext) -> object:
        runs.append(ctx.attempt)
        return Retry(seconds=0.01, reason="no luck")

    @registry.handler("raised", retry=AT_ONCE)
    async def raised(payload: Payload, ctx: JobContext) -> object:
        runs.append(ctx.attempt)
        raise ValueError("no luck")

    @registry.handler("thread", retry=AT_ONCE)
    def thread(payload: Payload, ctx: JobContext) -> object:
        runs.append(ctx.attempt)
        raise ValueError("no luck")

    worker = await place.start(registry)
    job_id = await place.enqueue(how, max_attempts=3, queue_name="default", priority=4)
    await worker.log.wait(EventName.JOB_DEAD, job_id=job_id)
    letter = await place.dead_letter(job_id)
    assert runs == [1, 2, 3]
    assert (letter["reason"], letter["attempts"], letter["priority"]) == ("exhausted", 3, 4)
    assert [(attempt["attempt"], attempt["outcome"]) for attempt in letter["history"]] == [(n, "failed") for n in (1, 2, 3)]
    assert all("no luck" in attempt["error_message"] for attempt in letter["history"])
    assert "no luck" in letter["error_message"]


async def test_backoff(place: Workplace) -> None:
    """A failure waits as the policy says, at once visible in the job, and never beyond the cap."""
    registry = JobRegistry()

    @registry.handler(retry=RetryPolicy(base_seconds=1000.0, factor=2.0, cap_seconds=1000.0))
    async def work(payload: Payload) -> None:
        raise ValueError("no luck")

    worker = await place.start(registry)
    job_id = await place.enqueue("work")
    await worker.log.wait(EventName.JOB_RETRIED, job_id=job_id)
    await place.until(
        "scheduled_at between clock_timestamp() + interval '600 s' and clock_timestamp() + interval '1000 s'"
        " and status = 'pending' and attempts = 1 and position('no luck' in error_message) > 0 from pgnotifyq.jobs"
    )


async def test_discard(place: Workplace) -> None:
    """A job that cannot succeed goes to the dead letters on the spot, with the reason given."""
    registry = JobRegistry()

    @registry.handler()
    async def work(payload: Payload) -> object:
        return Discard(reason="the account is closed")

    worker = await place.start(registry)
    job_id = await place.enqueue("work", max_attempts=5)
    await worker.log.wait(EventName.JOB_DEAD, job_id=job_id)
    letter = await place.dead_letter(job_id)
    assert (letter["reason"], letter["error_message"], letter["attempts"]) == ("discarded", "the account is closed", 1)


async def test_timeout(place: Workplace) -> None:
    """An attempt that takes too long is stopped and counts as failed, with its own word in the history."""
    registry = JobRegistry()

    @registry.handler(timeout_seconds=0.03, retry=AT_ONCE)
    async def work(payload: Payload) -> None:
        await trio.sleep_forever()

    worker = await place.start(registry)
    job_id = await place.enqueue("work", max_attempts=2)
    await worker.log.wait(EventName.JOB_DEAD, job_id=job_id)
    letter = await place.dead_letter(job_id)
    assert [attempt["outcome"] for attempt in letter["history"]] == ["timed_out", "timed_out"]
    assert letter["error_message"] == "timed out after 0.03 s"


async def test_type_that_nobody_handles(place: Workplace) -> None:
    """An unknown type is never taken for done, nor charged: it waits, seen by whoever looks, until a handler is registered."""
    registry = JobRegistry()

    @registry.handler()
    async def known(payload: Payload) -> None:
        await trio.lowlevel.checkpoint()

    worker = await place.start(registry)
    job_id = await place.enqueue("unheard_of", max_attempts=2, payload='{"a": 1}')
    behind = await place.enqueue("known")
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=behind)
    job = await place.job(job_id)
    assert (job["status"], job["attempts"], job["payload"]) == ("pending", 0, {"a": 1})
    async with open_client(place.dsn) as client:
        assert (await client.explain(job_id)).workers == 0
    ((queue, job_type, jobs, _),) = await fetch(place.connection, query("unserved", SCHEMA).decode())
    assert (queue, job_type, jobs) == ("default", "unheard_of", 1)

    @registry.handler()
    async def unheard_of(payload: Payload) -> None:
        await trio.lowlevel.checkpoint()

    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    assert await place.history(job_id) == [(1, "completed")]
    assert await fetch(place.connection, query("unserved", SCHEMA).decode()) == []


async def test_handler_that_vanishes_between_claim_and_run(place: Workplace) -> None:
    """A job whose type was known when it was claimed fails visibly, and loses nothing: tried again, then dead."""
    registry = JobRegistry()

    @registry.handler()
    async def fleeting(payload: Payload) -> None:
        raise AssertionError("it was gone")

    worker = await place.start(registry)
    registry.find = lambda job_type: None  # type: ignore[method-assign]
    job_id = await place.enqueue("fleeting", max_attempts=1, payload='{"a": 1}')
    await worker.log.wait(EventName.JOB_DEAD, job_id=job_id)
    letter = await place.dead_letter(job_id)
    assert (letter["reason"], letter["payload"]) == ("unknown_job_type", {"a": 1})
    assert "no handler is registered for job type 'fleeting'" in letter["error_message"]


async def test_type_registered_twice(place: Workplace) -> None:
    """The second handler of a type is refused, and the first one stays."""
    registry, ran = JobRegistry(), []

    @registry.handler("work")
    async def first(payload: Payload) -> None:
        ran.append("first")

    with pytest.raises(HandlerAlreadyRegistered):

        @registry.handler("work")
        async def second(payload: Payload) -> None:
            ran.append("second")

    worker = await place.start(registry)
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=await place.enqueue("work"))
    assert ran == ["first"]


HOSTILE = {
    "another shape": '{"path": 1}',
    "a list": "[1, 2]",
    "null": "null",
    "a number beyond any float": '{"path": "a", "width": 1e5000}',
    "a number that Python will not print": '{"path": "a", "width": ' + "9" * 5000 + "}",
    "deep nesting": "[" * 5000 + "]" * 5000,
}


@pytest.mark.parametrize("payload", HOSTILE.values(), ids=HOSTILE)
async def test_payload_that_does_not_fit(place: Workplace, payload: str) -> None:
    """A payload that got in by raw SQL and does not fit is dead-lettered at once; the worker lives and neighbours run."""
    registry = JobRegistry()

    @registry.handler()
    async def resize(payload: Resize) -> None:
        await trio.lowlevel.checkpoint()

    cursor = await place.connection.execute(
        "insert into pgnotifyq.jobs (job_type, payload, priority, max_attempts) values ('resize', %s, 9, 5) returning id",
        (payload,),
    )
    ((bad,),) = await cursor.fetchall()
    good = await place.enqueue("resize", payload='{"path": "a.png", "width": 3}')
    worker = await place.start(registry)
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=good)
    await worker.log.wait(EventName.JOB_DEAD, job_id=bad)
    # Not by its whole row: these payloads are none that Python can read.
    assert await fetch(place.connection, "select id, reason, attempts from pgnotifyq.dead_letter_jobs") == [
        (bad, "undecodable", 1)
    ]
    after = await place.enqueue("resize", payload='{"path": "a.png", "width": 3}')
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=after)


async def test_payload_that_cannot_be_decoded_for_a_handler_of_whole_jobs(place: Workplace) -> None:
    """Nor is a handler that takes the whole job given one whose payload could not be decoded."""
    registry, seen = JobRegistry(), []

    class Look:
        job_type = "look"

        async def handle(self, job: Job) -> None:
            seen.append(job.payload)

    registry.register(Look())
    worker = await place.start(registry)
    job_id = await place.enqueue("look", payload=HOSTILE["deep nesting"])
    await worker.log.wait(EventName.JOB_DEAD, job_id=job_id)
    assert await fetch(place.connection, "select id, reason from pgnotifyq.dead_letter_jobs") == [(job_id, "undecodable")]
    assert seen == []


@pytest.mark.parametrize("error", [SystemExit(3), RecursionError(), MemoryError(), StopIteration()], ids=repr)
@pytest.mark.parametrize("kind", ["task", "thread"])
async def test_handler_that_raises_something_odd(place: Workplace, error: BaseException, kind: str) -> None:
    """Whatever a handler raises ends its job and not the worker."""
    registry = JobRegistry()

    @registry.handler("task")
    async def task(payload: Payload) -> None:
        if isinstance(error, SystemExit):
            sys.exit(3)
        raise error

    @registry.handler("thread")
    def thread(payload: Payload) -> None:
        raise error

    worker = await place.start(registry)
    job_id = await place.enqueue(kind, max_attempts=1)
    await worker.log.wait(EventName.JOB_DEAD, job_id=job_id)
    assert (await place.dead_letter(job_id))["history"][0]["outcome"] == "failed"
    assert not worker.ended.is_set()


async def test_error_full_of_control_characters(place: Workplace) -> None:
    """An error message with NUL, lone surrogates and escape sequences is stored, made harmless, and holds up nobody."""
    registry = JobRegistry()

    @registry.handler()
    async def work(payload: Payload) -> None:
        raise ValueError("\x00\x1b[31m \ud800 \u202e" + "x" * 100_000)

    worker = await place.start(registry)
    job_id = await place.enqueue("work", max_attempts=1)
    await worker.log.wait(EventName.JOB_DEAD, job_id=job_id)
    message = (await place.dead_letter(job_id))["error_message"]
    assert len(message) <= 4000 and "\\x00\\x1b[31m" in message


async def test_group_of_errors_while_cancelled(place: Workplace) -> None:
    """A handler's own nursery that is cancelled and fails at once ends the job as cancelled, not the worker."""
    registry, running = JobRegistry(), trio.Event()

    @registry.handler()
    async def work(payload: Payload) -> None:
        async def fail_when_stopped() -> None:
            try:
                await trio.sleep_forever()
            finally:
                raise OSError("the disk is full")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail_when_stopped)
            nursery.start_soon(trio.sleep_forever)
            running.set()

    worker = await place.start(registry)
    job_id = await place.enqueue("work")
    await running.wait()
    await place.cancel(job_id)
    await worker.log.wait(EventName.JOB_CANCELLED, job_id=job_id)


@pytest.mark.parametrize("how", ["async", "thread", "nursery"])
async def test_wish_that_is_raised(place: Workplace, how: str) -> None:
    """It is the same wish, also out of a nursery and a thread: nothing is charged for a snooze."""
    registry, runs = JobRegistry(), []

    def wish(ctx: JobContext) -> None:
        runs.append(ctx.attempt)
        if len(runs) == 1:
            raise Snooze(seconds=0)

    @registry.handler("async")
    async def in_loop(payload: Payload, ctx: JobContext) -> None:
        wish(ctx)

    @registry.handler("thread")
    def in_thread(payload: Payload, ctx: JobContext) -> None:
        wish(ctx)

    @registry.handler("nursery")
    async def in_nursery(payload: Payload, ctx: JobContext) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            wish(ctx)
            nursery.cancel_scope.cancel()

    worker = await place.start(registry)
    job_id = await place.enqueue(how, max_attempts=1)
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    assert runs == [1, 1]
    assert await place.history(job_id) == [(1, "snoozed"), (1, "completed")]


async def test_plain_decorator_around_an_async_handler(place: Workplace) -> None:
    """What it returns is a coroutine; it is awaited in the worker's loop, under the job's timeout and cancel."""
    registry = JobRegistry()

    def logged(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any) -> Any:
            return function(*args)

        return wrapper

    @registry.handler()
    @logged
    async def work(payload: Payload, ctx: JobContext) -> object:
        async with ctx.transaction() as connection:
            cursor = await connection.execute("select 7")
            return await cursor.fetchone()

    @registry.handler(timeout_seconds=0.05, max_attempts=1)
    @logged
    async def endless(payload: Payload) -> None:
        await trio.sleep_forever()

    worker = await place.start(registry)
    done, late = await place.enqueue("work"), await place.enqueue("endless", max_attempts=1)
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=done)
    assert (await place.job(done))["result"] == [7]
    await worker.log.wait(EventName.JOB_DEAD, job_id=late)
    assert await place.history(late) == [(1, "timed_out")]


@pytest.mark.parametrize("is_async", [True, False])
async def test_generator_behind_a_decorator(place: Workplace, is_async: bool) -> None:
    """It has not run: a failure that names the handler, where before the job was completed."""
    registry = JobRegistry()

    def lines(payload: Payload) -> Any:
        yield payload

    @functools.wraps(lines)
    def plain(payload: Payload) -> Any:
        return lines(payload)

    @functools.wraps(lines)
    async def awaited(payload: Payload) -> Any:
        return lines(payload)

    registry.handler("work")(awaited if is_async else plain)
    worker = await place.start(registry)
    job_id = await place.enqueue("work", max_attempts=1)
    told = await worker.log.wait(EventName.JOB_DEAD, job_id=job_id)
    assert "lines returned a generator, which has not run" in told["why"]
    assert "lambda" not in (await place.dead_letter(job_id))["error_message"]


async def test_job_for_a_function_that_asks_for_it(place: Workplace) -> None:
    """As a class handler is given it."""
    registry = JobRegistry()

    @registry.handler()
    async def work(job: Job) -> object:
        return job.job_type

    worker = await place.start(registry)
    job_id = await place.enqueue("work")
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    assert (await place.job(job_id))["result"] == "work"


@pytest.mark.parametrize("how", ["async", "thread", "shielded", "cooperative"])
async def test_deadline_is_told(place: Workplace, how: str) -> None:
    """By one rule: interrupted, with the reason, once. One that runs on is told of while it does, and is unresponsive after its grace."""
    registry, release, may_end = JobRegistry(), threading.Event(), trio.Event()
    saw = []

    @registry.handler("async", timeout_seconds=0.05)
    async def in_loop(payload: Payload) -> None:
        await trio.sleep_forever()

    @registry.handler("thread", timeout_seconds=0.05)
    def in_thread(payload: Payload, ctx: JobContext) -> None:
        release.wait()
        saw.append(ctx.is_cancelled() and ctx.cancel_reason)

    @registry.handler("shielded", timeout_seconds=0.05)
    async def shielded(payload: Payload) -> None:
        with trio.CancelScope(shield=True):
            await may_end.wait()
        await trio.lowlevel.checkpoint()

    @registry.handler("cooperative", timeout_seconds=0.05, cooperative=True)
    async def cooperative(payload: Payload, ctx: JobContext) -> None:
        with trio.CancelScope(shield=True):
            saw.append(await ctx.cancelled())
            await may_end.wait()
        await trio.lowlevel.checkpoint()

    worker = await place.start(registry, grace_seconds=0.05)
    job_id = await place.enqueue(how, max_attempts=1)
    told = await worker.log.wait(EventName.JOB_INTERRUPTED, job_id=job_id)
    assert (told["reason"], told["why"]) == ("timed_out", "timed out after 0.05 s")
    if how != "async":
        await worker.log.wait(EventName.JOB_UNRESPONSIVE, job_id=job_id)
        assert (await place.job(job_id))["status"] == "running"
    release.set()
    may_end.set()
    if how == "thread":
        await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)  # it has done its work all the same
    else:
        await worker.log.wait(EventName.JOB_DEAD, job_id=job_id)
        assert await place.history(job_id) == [(1, "timed_out")]
    assert len(worker.log.find(EventName.JOB_INTERRUPTED)) == 1
    if how in {"thread", "cooperative"}:
        assert [reason and reason.kind for reason in saw] == ["timed_out"]


async def test_deadlines_of_many(place: Workplace) -> None:
    """Each is looked at when it has come, whichever began first, and is told of once; one that is far off holds up none."""
    registry, release = JobRegistry(), trio.Event()

    async def cling(payload: Payload) -> None:
        with trio.CancelScope(shield=True):
            await release.wait()

    for name, seconds in (("hour", 3600.0), ("late", 0.2), ("soon", 0.05)):
        registry.handler(name, timeout_seconds=seconds)(cling)
    worker = await place.start(registry)
    jobs = {name: await place.enqueue(name) for name in ("hour", "late", "soon")}
    for name in ("soon", "late"):
        await worker.log.wait(EventName.JOB_INTERRUPTED, job_id=jobs[name])
    release.set()
    for job_id in jobs.values():
        await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    told = [fields["job_type"] for fields in worker.log.find(EventName.JOB_INTERRUPTED)]
    assert sorted(told) == ["late", "soon"]
