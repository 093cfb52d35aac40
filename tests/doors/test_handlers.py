"""A handler is enqueued as a value: by its client with a registry or none, and run by a worker."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
import trio

import pgnotifyq
from pgnotifyq.doors.client import Client, open_client
from tests.doors.support import SOON_SECONDS, Resize, worker

registry = pgnotifyq.JobRegistry()


@registry.handler("resize", queue="images", max_attempts=7)
async def resize(payload: Resize, ctx: pgnotifyq.JobContext) -> dict[str, int]:
    return {"area": payload.width * payload.width, "attempt": ctx.attempt}


@registry.handler
def count(payload: list[int]) -> int:
    return sum(payload)


@registry.handler
async def ping(payload: None) -> str:
    return "pong"


@registry.handler
async def told(job: pgnotifyq.Job) -> str:
    return f"{job.job_type} of {job.payload}"


class Store:
    job_type = "store"
    queue = "images"

    async def handle(self, job: pgnotifyq.Job, ctx: pgnotifyq.JobContext) -> str:
        return f"stored {job.payload}"


store = registry.register(Store())


async def test_handlers_that_are_enqueued_and_run(dsn: str, client: Client) -> None:
    """Async, in a thread, without a payload, given the job, an object: each runs with what was enqueued, and its result is had."""
    async with worker(dsn, registry, queues=["default", "images"]):
        area = await client.wait(await client.enqueue(resize, Resize("a.png", 8)))
        assert area.result == {"area": 64, "attempt": 1}
        assert (await client.wait(await client.enqueue(count, [1, 2, 3]))).result == 6
        assert (await client.wait(await client.enqueue(ping))).result == "pong"
        assert (await client.wait(await client.enqueue(told, "x"))).result == "told of x"
        assert (await client.wait(await client.enqueue(store, 5))).result == "stored 5"


@registry.handler(retry_on=TimeoutError, discard_on=LookupError)
async def charge(payload: str) -> None:
    raise {"late": TimeoutError, "gone": KeyError, "odd": ValueError}[payload](payload)


async def test_errors_that_are_not_tried_again(dsn: str, client: Client) -> None:
    """Their job is a dead letter after its first attempt; one to be tried again is pending, with the policy's delay."""
    async with worker(dsn, registry):
        for payload in ("gone", "odd"):
            with pytest.raises(pgnotifyq.JobDead, match=payload) as caught:
                await client.wait(await client.enqueue(charge, payload), SOON_SECONDS)
            assert (caught.value.dead_letter.reason, caught.value.dead_letter.attempts) == ("discarded", 1)
        job_id = await client.enqueue(charge, "late")
        with trio.fail_after(SOON_SECONDS):
            while (job := await client.get(job_id)).label != "retrying":
                await trio.sleep(0.01)
    assert (job.attempts, job.status) == (1, "pending")


async def test_a_handlers_queue_and_attempts(client: Client) -> None:
    """They are taken from the handler itself, without a registry of the client's; what is said goes before."""
    job = await client.get(await client.enqueue(resize, Resize("a.png", 8)))
    assert (job.job_type, job.queue_name, job.max_attempts) == ("resize", "images", 7)
    job = await client.get(await client.enqueue(resize, Resize("a.png", 8), queue="slow", max_attempts=1, priority=3))
    assert (job.queue_name, job.max_attempts, job.priority) == ("slow", 1, 3)
    assert type(job.id) is uuid.UUID


async def test_jobs_that_handlers_make(client: Client) -> None:
    """They are enqueued together, beside mappings that name a handler."""
    jobs: list[pgnotifyq.NewJob | dict[str, Any]] = [
        resize.job(Resize("a.png", 1)),
        count.job([1], priority=2),
        {"job_type": count, "payload": [2]},
        {"job_type": "free"},
    ]
    found = [await client.get(job_id) for job_id in await client.enqueue_many(jobs)]
    assert [(job.job_type, job.payload, job.queue_name, job.priority) for job in found] == [
        ("resize", {"path": "a.png", "width": 1}, "images", 0),
        ("count", [1], "default", 2),
        ("count", [2], "default", 0),
        ("free", {}, "default", 0),
    ]


async def test_a_handler_in_the_callers_transaction(dsn: str, client: Client) -> None:
    """The job is there if and only if that commits."""
    with psycopg.connect(dsn) as theirs:
        await client.enqueue(count, [1], connection=theirs)
        theirs.rollback()
        job_id = await client.enqueue(count, [2], connection=theirs)
        theirs.commit()
    assert [job.id for job in await client.jobs()] == [job_id]


@pytest.mark.parametrize(
    ("enqueue", "error"),
    [
        (lambda client: client.enqueue(resize, {"path": "a.png"}), pgnotifyq.InvalidPayload),
        (lambda client: client.enqueue(count, ["one"]), pgnotifyq.InvalidPayload),
        (lambda client: client.enqueue(resize), pgnotifyq.InvalidPayload),
        (lambda client: client.enqueue(resize.call, Resize("a.png", 8)), pgnotifyq.InvalidJob),
        (lambda client: client.enqueue(Store, {}), pgnotifyq.InvalidJob),
        (lambda client: client.enqueue(5), pgnotifyq.InvalidName),
    ],
    ids=["field missing", "of another type", "nothing", "a plain function", "a class", "a number"],
)
async def test_what_no_handler_would_take(client: Client, enqueue: Callable[[Client], Any], error: type[Exception]) -> None:
    """It is refused where it is enqueued, also by a client without a registry, and there is no job."""
    with pytest.raises(error):
        await enqueue(client)
    assert await client.jobs() == []


async def test_a_client_of_another_registry(dsn: str) -> None:
    """A worker with the client's registry would not run the job, or run another handler: it is refused, and told what to do."""
    theirs = pgnotifyq.JobRegistry()
    async with open_client(dsn, registry=theirs) as client:
        with pytest.raises(pgnotifyq.UnknownJobType, match=r"another registry than the client's.*include"):
            await client.enqueue(resize, Resize("a.png", 8))

        @theirs.handler("resize")
        def mine(payload: Resize) -> None: ...

        with pytest.raises(pgnotifyq.InvalidJob, match=r"another registry than the client's.*mine"):
            await client.enqueue(resize, Resize("a.png", 8))
        assert await client.jobs() == []
        assert (await client.get(await client.enqueue(mine, Resize("a.png", 8)))).queue_name == "default"
