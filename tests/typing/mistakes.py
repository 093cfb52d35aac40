# pyright: strict
"""Mistakes. Each line that is marked is refused by every checker, and no other line is. It is never run."""

from __future__ import annotations

from typing import Any

import pgnotifyq
from tests.typing import tasks
from tests.typing.tasks import Crop, Mail, Point, Resize, registry


class Opaque:
    def __init__(self, file: Any) -> None:
        self.file = file


# A handler's declaration


@registry.handler("x")  # refused: nothing says how JSON becomes an Opaque
async def opaque(payload: Opaque) -> None: ...


@registry.handler("x")  # refused: nor a complex
async def complex_number(payload: complex, ctx: pgnotifyq.JobContext) -> None: ...


@registry.handler  # refused: nor without parentheses
def bare(payload: Opaque) -> None: ...


@registry.handler("x")  # refused: the second parameter is given the context, not a number
async def number_for_context(payload: Resize, ctx: int) -> None: ...


@registry.handler("x")  # refused: nor a payload
def payload_for_context(payload: Resize, ctx: Resize) -> None: ...


@registry.handler("x")  # refused: there is always a payload
async def without_payload() -> None: ...


@registry.handler  # refused: nor is there a third parameter
async def third(payload: Resize, ctx: pgnotifyq.JobContext, more: int) -> None: ...


@registry.handler("x")  # refused: the context is not given by its name
async def by_name(payload: Resize, *, ctx: pgnotifyq.JobContext) -> None: ...


# A handler's settings

registry.handler("x", max_atempts=5)  # refused: misspelt
registry.handler("x", timeout=5.0)  # refused: it is timeout_seconds
registry.handler("x", max_attempts="5")  # refused: a number
registry.handler("x", batch_size="5")  # refused: a number
registry.handler("x", retry=3)  # refused: a policy
registry.handler("x", retry_on=[ValueError])  # refused: one class, or a tuple
registry.handler("x", discard_on="LookupError")  # refused: a class
registry.handler(5)  # refused: a job type is a text
registry.handler("x", unknown_keys="ignore")  # refused: one of two words
registry.handler("x", version="2", upgrade=tasks.upgrade)  # refused: a number
registry.handler("x", version=2, upgrade=len)  # refused: of a payload and its version
pgnotifyq.JobRegistry(converter="json")  # refused: a converter of cattrs


async def enqueue(client: pgnotifyq.Client) -> None:
    """What is enqueued."""
    await client.enqueue(tasks.resize, "a.png")  # refused: another type
    await client.enqueue(tasks.resize, Crop("a.png"))  # refused: another class
    await client.enqueue(tasks.resize, {"path": "a.png", "width": 64})  # refused: not made into one yet
    await client.enqueue(tasks.embed, Crop("a.png"))  # refused: another class than the batch's
    await client.enqueue(tasks.resize)  # refused: nothing
    await client.enqueue(tasks.resize, None)  # refused: None
    await client.enqueue(tasks.resize, Resize("a.png", "64"))  # refused: a field of another type
    await client.enqueue(tasks.resize, Resize("a.png", widht=64))  # refused: a misspelt field
    await client.enqueue(tasks.resize, Resize("a.png"))  # refused: a missing field
    await client.enqueue(tasks.mail, Resize("a.png", 64))  # refused: of a handler in a thread
    await client.enqueue(tasks.order, 1)  # refused: of one that takes a pydantic model
    await client.enqueue(tasks.hit, {"pge": "/"})  # refused: a misspelt key
    await client.enqueue(tasks.several, [Crop("a.png")])  # refused: an item of another class
    await client.enqueue(tasks.several, Resize("a.png", 64))  # refused: no list
    await client.enqueue(tasks.point, (1, "2"))  # refused: no Point
    await client.enqueue(tasks.nothing, 1)  # refused: something
    await client.enqueue(tasks.box, tasks.Box("2030-01-01"))  # refused: a Box of another type
    await client.enqueue(tasks.either, [Crop("a.png")])  # refused: none of a union
    await client.enqueue(tasks.bounded, "5")  # refused: no int
    await client.enqueue(tasks.called, Point(1, 2))  # refused: of an object that is called
    await client.enqueue(tasks.grey, Mail("ann"))  # refused: of a declaration in two steps
    await client.enqueue(tasks.resize, Resize("a.png", 64), prioritty=5)  # refused: a misspelt setting
    await client.enqueue(tasks.resize, Resize("a.png", 64), priority="high")  # refused: of another type
    await client.enqueue("resize", {}, que="images")  # refused: a misspelt setting, by name
    await client.enqueue(5, {})  # refused: neither a handler nor a name
    await client.enqueue(Resize, {})  # refused: a class
    tasks.resize.job("a.png")  # refused: another type
    tasks.resize.job()  # refused: nothing
    tasks.hit.job({"pge": "/"})  # refused: a misspelt key
    tasks.resize.job(Resize("a.png", 64), prioritty=5)  # refused: a misspelt setting
    pgnotifyq.NewJob(job_type="resize", prioritty=5)  # refused: a misspelt field
    pgnotifyq.NewJob(job_type="resize", priority="high")  # refused: a field of another type
    pgnotifyq.NewJob(payload={})  # refused: no job type
    await client.enqueue_many(tasks.resize.job(Resize("a.png", 64)))  # refused: one job is not several


async def wait(client: pgnotifyq.Client, ctx: pgnotifyq.JobContext) -> None:
    """What becomes of it."""
    job = await client.wait(await client.enqueue(tasks.resize, Resize("a.png", 64)))
    print(job.result["width"].upper())  # refused: an int has none
    print(job.result.width)  # refused: a dict has none
    print(job.reslt)  # refused: misspelt
    text: str = (await client.wait(await client.enqueue(tasks.mail, Mail("ann")))).result  # refused: it is an int
    print(text)
    other: pgnotifyq.JobId[str] = await client.enqueue(tasks.resize, Resize("a.png", 64))  # refused: of another result
    print(other)
    print((await client.enqueue(tasks.resize, Resize("a.png", 64))).result)  # refused: an id has none
    await client.wait(5)  # refused: no id
    await client.jobs(status="pendng")  # refused: misspelt
    await client.jobs(status="done")  # refused: no status
    await client.jobs(state="pending")  # refused: it is status
    await tasks.resize("a.png", ctx)  # refused: called with another type
    print(await tasks.mail(Mail("ann"), ctx))  # refused: it is not async
    print(tasks.resize.que)  # refused: misspelt
    await pgnotifyq.run_worker(registry, "", concurency=5)  # refused: a misspelt setting
    await pgnotifyq.run_worker(registry, "", concurrency="5")  # refused: of another type
    pgnotifyq.WorkerConfig(concurency=5)  # refused: misspelt
