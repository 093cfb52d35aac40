"""docs/compared.md: our code is run, and the lines of both are counted."""

from __future__ import annotations

import asyncio
import importlib.util
import subprocess
import sys
import textwrap
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import sqlalchemy
import trio
from sqlalchemy import orm
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.pool import NullPool

import pgnotifyq
import pgnotifyq.aio
import pgnotifyq.sync
from pgnotifyq.testing import Database, run_job
from tests.pages import DOCS, as_url, blocks, named

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PAGE = DOCS / "compared.md"
OURS = named(PAGE)
THEIRS = {block.name: block.text for block in blocks(PAGE) if block.kind == "peer"}
TABLE = [
    [cell.strip() for cell in line.split("|")[1:6]]
    for line in PAGE.read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and "lines of theirs" not in line
]
Base = orm.declarative_base()


class Order(Base):  # type: ignore[misc,valid-type]
    __tablename__ = "orders"
    id = sqlalchemy.Column(sqlalchemy.Integer, primary_key=True)


def lines(text: str) -> int:
    return sum(bool(line.strip()) for line in text.splitlines())


def test_lines_are_counted() -> None:
    """The table has a row for each pair of blocks, in order, with their lines."""
    counted = [[str(lines(OURS[name])), str(lines(THEIRS[name]))] for name in OURS]
    assert list(OURS) == list(THEIRS)
    assert [[ours, theirs] for _, ours, _, theirs, _ in TABLE] == counted


def shop() -> dict[str, Any]:
    """Return what the page's typed task defines, with its last line as a function."""
    names: dict[str, Any] = {"attrs": attrs, "registry": pgnotifyq.JobRegistry(), "Order": Order, "run_job": run_job}
    task, _, enqueue = OURS["typed"].rpartition("\n\n\n")
    exec(task, names)
    exec("async def enqueue(queue):\n" + textwrap.indent(f"{enqueue}return job_id", "    "), names)
    return names


@asynccontextmanager
async def worker(registry: pgnotifyq.JobRegistry, dsn: str) -> AsyncIterator[Any]:
    """The page's worker beside an asyncio server, with worker.md's lines; gives what its lifespan has opened."""
    [beside] = [block.text for block in blocks(DOCS / "worker.md") if block.name == "beside.py"]
    spec = importlib.util.spec_from_loader("beside", loader=None)
    assert spec is not None
    names: dict[str, Any] = {
        "registry": registry, "DSN": dsn, "asynccontextmanager": asynccontextmanager, "pgnotifyq": pgnotifyq,
    }  # fmt: skip
    exec(beside, names)
    exec(OURS["beside"], names)
    app = attrs.make_class("App", ["state"])(attrs.make_class("State", {"queue": attrs.field(default=None)}, slots=False)())
    async with names["lifespan"](app):
        yield app.state.queue


def test_typed_status_cancel_and_worker_beside_a_server(dsn: str) -> None:
    """A job is enqueued, run, looked at; another is stopped while it runs."""
    names = shop()
    registry: pgnotifyq.JobRegistry = names["registry"]
    for name in ("status", "cancel"):
        exec(OURS[name], names)

    @registry.handler("stay", queue="mail")
    async def stay(payload: object) -> None:
        await trio.sleep_forever()

    async def main() -> None:
        async with worker(registry, dsn) as queue:
            job_id = await names["enqueue"](queue)
            await queue.wait(job_id, timeout_seconds=30)
            assert await names["status"](queue, job_id) == ("completed", "receipt 7")
            long = await queue.enqueue(stay, None)
            while (await queue.get(long)).status != "running":
                await asyncio.sleep(0.02)
            assert await names["stop"](queue, long) == "cancelled"

    asyncio.run(main())


def test_sqlalchemy_and_enqueued(pgnotifyq_db: Database) -> None:
    """On asyncpg: an order and its job, or neither; and the assertion finds it, and fails without it."""
    names, dsn = shop(), pgnotifyq_db.dsn
    for name in ("sqlalchemy", "enqueued"):
        exec(OURS[name], names)

    async def main() -> None:
        engine = create_async_engine(as_url(dsn).replace("postgresql://", "postgresql+asyncpg://", 1), poolclass=NullPool)
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        async with pgnotifyq.aio.open_client(dsn) as queue:
            with pytest.raises(AssertionError, match="not enqueued"):
                names["test_order_is_receipted"](pgnotifyq_db)
            await names["place_order"](queue, async_sessionmaker(engine), 7)
            with pytest.raises(Exception, match="duplicate key"):
                await names["place_order"](queue, async_sessionmaker(engine), 7)
            names["test_order_is_receipted"](pgnotifyq_db)
        await engine.dispose()

    asyncio.run(main())


async def test_handler() -> None:
    """The page's test of a handler passes, and fails for another handler."""
    names = shop()
    exec(OURS["handler"], names)
    await names["test_receipt"]()
    wrong = pgnotifyq.JobRegistry()
    wrong.handler("send_receipt")(lambda payload: "nothing")
    names["registry"] = wrong
    with pytest.raises(AssertionError):
        await names["test_receipt"]()


def test_django() -> None:
    """docs/django.md has the same lines in a view, which tests/django/test_docs_page.py runs."""
    page = (DOCS / "django.md").read_text(encoding="utf-8")
    assert "with transaction.atomic():" in page
    assert "send_receipt.enqueue(order.pk)" in page
    compile(OURS["django"], "django", "exec")


def test_process() -> None:
    """The command is one that there is, with these options."""
    command = OURS["process"].split()
    assert command[:4] == ["python", "-m", "pgnotifyq", "worker"]
    ran = subprocess.run([sys.executable, *command[1:]], capture_output=True, text=True, check=False, cwd="/")
    assert "importing jobs failed" in ran.stderr
