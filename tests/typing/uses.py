# pyright: strict
"""Correct programs: no checker has anything to say of them, and knows the types that are asserted."""

from __future__ import annotations

import datetime as dt
import functools
import uuid
from collections.abc import Coroutine
from decimal import Decimal
from pathlib import Path
from typing import Any, assert_type

import trio

import pgnotifyq
from tests.typing import tasks
from tests.typing.tasks import Box, Colour, Crop, Hit, Mail, Order, Point, Resize


async def enqueue(client: pgnotifyq.Client) -> None:
    """A payload of the handler's type, or of what becomes it; with and without settings."""
    assert_type(await client.enqueue(tasks.resize, Resize("a.png", 64)), pgnotifyq.JobId[dict[str, int]])
    await client.enqueue(tasks.resize, payload=Resize("a.png", 64), queue="slow", priority=5, delay_seconds=1.5, max_attempts=1)
    await client.enqueue(tasks.crop, Crop("a.png"), org_id=uuid.UUID(int=1), unique_key="k")
    await client.enqueue(tasks.mail, Mail("ann"))
    await client.enqueue(tasks.order, Order(number=1))
    await client.enqueue(tasks.hit, Hit(page="/"))
    await client.enqueue(tasks.plain, {"a": 1, "b": "two"})
    await client.enqueue(tasks.plain, {"a": 1})
    await client.enqueue(tasks.anything, {"x": [1]})
    await client.enqueue(tasks.embed, Resize("a.png", 64))
    await client.enqueue_many([tasks.embed_in_thread.job(Mail("ann"))])
    await client.enqueue(tasks.untold, 5)
    await client.enqueue(tasks.untold)
    await client.enqueue(tasks.nothing)
    await client.enqueue(tasks.nothing, None)
    await client.enqueue(tasks.perhaps)
    await client.enqueue(tasks.perhaps, Resize("a.png", 64))
    await client.enqueue(tasks.several, [Resize("a.png", 64)])
    await client.enqueue(tasks.whole, {"any": "payload"})
    await client.enqueue(tasks.price, Decimal(5))
    await client.enqueue(tasks.path, Path("a.png"))
    await client.enqueue(tasks.colour, Colour.RED)
    await client.enqueue(tasks.point, Point(1, 2))
    await client.enqueue(tasks.one, uuid.UUID(int=1))
    await client.enqueue(tasks.box, Box(dt.date(2030, 1, 1)))
    await client.enqueue(tasks.either, [Resize("a.png", 64)])
    await client.enqueue(tasks.either, uuid.UUID(int=1))
    await client.enqueue(tasks.bounded, 5)
    await client.enqueue(tasks.called, Mail("ann"))
    await client.enqueue(tasks.partial, Mail("ann"))
    await client.enqueue(tasks.store, {"any": "payload"})
    await client.enqueue(tasks.grey, Resize("a.png", 64))
    await client.enqueue("by_name", {"a": 1}, queue="q")
    await client.enqueue("by_name", job_settings(), connection=None)
    await client.enqueue("by_name")
    jobs = [tasks.resize.job(Resize("a.png", 64), priority=5), tasks.nothing.job(), tasks.hit.job({"page": "/"})]
    await client.enqueue_many(jobs)
    await client.enqueue_many([{"job_type": "by_name"}, {"job_type": tasks.grey, "payload": Resize("a.png", 64)}])


def job_settings() -> pgnotifyq.JobSettings:
    return {"queue": "q", "priority": 1}


async def wait(client: pgnotifyq.Client, noted: uuid.UUID) -> None:
    """The result's type is the handler's, if JSON does not change it."""
    job_id = await client.enqueue(tasks.resize, Resize("a.png", 64))
    assert_type((await client.wait(job_id)).result, dict[str, int])
    assert_type((await client.wait(job_id, timeout_seconds=5)).result["width"], int)
    assert_type((await client.wait(await client.enqueue(tasks.mail, Mail("ann")))).result, int)
    assert_type((await client.wait(await client.enqueue(tasks.nothing))).result, Hit)
    assert_type((await client.wait(await client.enqueue(tasks.hit, Hit(page="/")))).result, None)
    # An attrs object comes back as the JSON that it became.
    assert_type((await client.wait(await client.enqueue(tasks.crop, Crop("a.png")))).result, Any)
    assert_type((await client.wait(await client.enqueue("by_name"))).result, Any)
    assert_type((await client.wait(noted)).result, Any)
    assert_type((await client.wait(str(noted))).result, Any)


async def ids(client: pgnotifyq.Client) -> pgnotifyq.JobId:
    """An id is a UUID, with its type said or not."""
    typed: pgnotifyq.JobId[dict[str, int]] = await client.enqueue(tasks.resize, Resize("a.png", 64))
    plain: pgnotifyq.JobId = typed
    value: uuid.UUID = typed
    await client.cancel(typed)
    await client.get(value)
    made = pgnotifyq.JobId(value)
    assert_type(made, pgnotifyq.JobId[Any])
    return plain


async def call(ctx: pgnotifyq.JobContext, nursery: trio.Nursery) -> None:
    """A handler is still its function."""
    assert_type(await tasks.resize(Resize("a.png", 64), ctx), dict[str, int])
    await tasks.resize(payload=Resize("a.png", 64), ctx=ctx)
    nursery.start_soon(tasks.crop, Crop("a.png"))
    assert_type(tasks.mail(Mail("ann"), ctx), int)
    name: str = tasks.resize.__name__
    print(name, tasks.resize.queue, tasks.resize.max_attempts, tasks.resize.job_type)


def handlers_of(some: pgnotifyq.Handler[Resize, str], others: list[pgnotifyq.Handler]) -> None:
    """A handler is annotated by what it takes and gives back."""
    others.append(some)
    handlers_of(tasks.grey, [tasks.mail, tasks.store])
    more: pgnotifyq.Handler[Resize, str, Coroutine[Any, Any, str]] = tasks.grey
    print(more)


async def look(client: pgnotifyq.Client) -> list[pgnotifyq.Job]:
    """A status is a word or one of Status."""
    return [
        *await client.jobs(status="pending"),
        *await client.jobs(status="scheduled", limit=5),
        *await client.jobs(status=pgnotifyq.Status.RUNNING),
    ]


async def work(dsn: str, nursery: trio.Nursery) -> None:
    """A worker's settings are checked where it is started by keywords."""
    settings: pgnotifyq.WorkerSettings = {"concurrency": 5, "queues": ["images"]}
    nursery.start_soon(functools.partial(pgnotifyq.run_worker, tasks.registry, dsn, **settings))
    await pgnotifyq.run_worker(tasks.registry, dsn, lease_seconds=30.0, queues=["images"])
    await pgnotifyq.run_worker(tasks.registry, dsn, config=pgnotifyq.WorkerConfig(concurrency=3))
