"""docs/handlers.md: each block is run by a worker, on the jobs that it is about."""

from __future__ import annotations

import asyncio
import importlib
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
import trio
from PIL import Image
from psycopg.types.json import Jsonb

from pgnotifyq import EventName, JobContext, JobRegistry
from tests.doors.callers_support import url
from tests.pages import DOCS, named
from tests.runtime.support import PATIENCE_SECONDS, Worker, Workplace

BLOCKS = named(DOCS / "handlers.md")


def program(name: str) -> tuple[JobRegistry, dict[str, Any]]:
    names: dict[str, Any] = {"__name__": f"page_{name}"}
    exec(BLOCKS[name], names)
    registry: JobRegistry = names["registry"]
    return registry, names


async def completed(place: Workplace, worker: Worker, job_type: str, payload: Any = None) -> Any:
    job_id = await place.enqueue(job_type, payload=Jsonb(payload or {}), max_attempts=1)
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    return (await place.job(job_id))["result"]


def test_every_block_has_a_test() -> None:
    """Each is run below."""
    here = Path(__file__).read_text(encoding="utf-8")
    assert {name for name in BLOCKS if f'program("{name}")' not in here and f'"page_{name}"' not in here} == set()


async def test_kinds_and_default(place: Workplace) -> None:
    """Each handler runs where the page says."""
    registry, _ = program("kinds")
    registry.include(program("default")[0])
    worker = await place.start(registry)
    results = [await completed(place, worker, name) for name in ("on_trio", "on_asyncio", "in_thread", "work")]
    assert results == ["trio", "asyncio", "thread", "asyncio"]


async def test_process(place: Workplace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each block is a module; a thumbnail is made, and what was found before a cancel counts as done."""
    for name in ("process", "cooperative"):
        (tmp_path / f"page_{name}.py").write_text(BLOCKS[name], encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry = JobRegistry()
    for name in ("page_process", "page_cooperative"):
        registry.include(importlib.import_module(name).registry)
    worker = await place.start(registry)
    Image.new("RGB", (200, 100)).save(tmp_path / "a.png")
    assert await completed(place, worker, "thumbnail", {"path": str(tmp_path / "a.png"), "width": 50}) == [50, 25]
    assert (tmp_path / "a.png.small.png").exists()
    assert await completed(place, worker, "primes", {"below": 20}) == [2, 3, 5, 7, 11, 13, 17, 19]
    job_id = await place.enqueue("primes", payload=Jsonb({"below": 10**9}))
    await worker.log.wait(EventName.JOB_CLAIMED, job_id=job_id)
    await place.cancel(job_id)
    await worker.log.wait(EventName.JOB_CANCELLED, job_id=job_id)
    assert worker.log.find(EventName.JOB_UNRESPONSIVE, job_id=job_id) == []


async def test_tasks(place: Workplace) -> None:
    """Tasks in a group are awaited; one in a context of its own outlives its job, and ends with the worker."""
    registry, names = program("outlives")
    registry.include(program("group")[0])
    worker = await place.start(registry)
    assert await completed(place, worker, "both") == [1, 2]
    await completed(place, worker, "warm")
    await completed(place, worker, "warm")
    (task,) = names["kept"]
    assert isinstance(task, asyncio.Task) and not task.done()
    worker.handle.drain()
    await worker.ended.wait()
    assert task.cancelled()
    assert worker.log.find(EventName.JOB_LEFT_OPEN) == []


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
async def test_session(place: Workplace, monkeypatch: pytest.MonkeyPatch, driver: str) -> None:
    """What the handler's session writes commits with the job's completion, and not at all if the job was cancelled."""
    monkeypatch.setenv("DATABASE_URL", url(place.dsn, driver).render_as_string(hide_password=False))
    registry, names = program("session")
    await place.connection.execute("create table charges (order_id integer primary key)")

    @registry.handler("cancelled")
    async def cancelled(payload: Any, ctx: JobContext) -> None:
        async with ctx.session(names["Session"], complete=True) as session:
            await session.execute(sqlalchemy.text("insert into charges values (2)"))
            await ctx.progress(0.5)
            await asyncio.Event().wait()

    @registry.handler("over", runs_in="asyncio")
    async def over(payload: Any) -> None:
        await names["engine"].dispose()

    worker = await place.start(registry)
    try:
        job_id = await place.enqueue("charge", payload=Jsonb({"id": 1}))
        await place.until("(select status = 'completed' and result = '\"charged\"' from pgnotifyq.jobs where id = %s)", job_id)
        job_id = await place.enqueue("cancelled")
        await place.until("(select progress = 0.5 from pgnotifyq.jobs where id = %s)", job_id)
        await place.cancel(job_id)
        await worker.log.wait(EventName.JOB_CANCELLED, job_id=job_id)
        rows = await (await place.connection.execute("select order_id from charges")).fetchall()
        assert rows == [(1,)]
        await completed(place, worker, "over")
    finally:
        await place.connection.execute("drop table charges")


class Website:
    """A server that answers, or streams without an end and notes that its client has gone."""

    def __init__(self) -> None:
        self.has_gone = trio.Event()
        self.streams = trio.Event()

    async def serve(self, stream: trio.SocketStream) -> None:
        async with stream:
            head = await stream.receive_some()
            if b"GET" in head:
                await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
                return
            await stream.send_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
            self.streams.set()
            while await stream.receive_some():
                pass
            self.has_gone.set()


@pytest.fixture
async def website(nursery: trio.Nursery) -> tuple[Website, str]:
    site = Website()
    (listener,) = await nursery.start(partial(trio.serve_tcp, site.serve, 0, host="127.0.0.1"))
    return site, f"http://127.0.0.1:{listener.socket.getsockname()[1]}/"


async def test_httpx(place: Workplace, website: tuple[Website, str]) -> None:
    """The handler fetches, and reports it."""
    registry, _ = program("httpx")
    worker = await place.start(registry)
    assert await completed(place, worker, "fetch", {"url": website[1]}) == 5


@pytest.mark.parametrize("stopped_by", ["cancel", "shutdown"])
async def test_stream(place: Workplace, website: tuple[Website, str], stopped_by: str) -> None:
    """The server of a stream sees its socket closed when the job is cancelled, or its worker shut down."""
    site, url = website
    registry, _ = program("stream")
    worker = await place.start(registry, shutdown_seconds=0)
    job_id = await place.enqueue("answer", payload=Jsonb({"url": url, "prompt": "why?"}))
    with trio.fail_after(PATIENCE_SECONDS):
        await site.streams.wait()
        await place.until("(select progress_message = '1 tokens' from pgnotifyq.jobs where id = %s)", job_id)
        if stopped_by == "cancel":
            await place.cancel(job_id)
            await worker.log.wait(EventName.JOB_CANCELLED, job_id=job_id)
        else:
            worker.handle.drain()
            await worker.ended.wait()
            assert (await place.job(job_id))["status"] == "pending"
        await site.has_gone.wait()
