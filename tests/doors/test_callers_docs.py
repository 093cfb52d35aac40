"""docs/transactions.md: every block is run, twice: an order that is placed has its job, one that cannot be placed has none."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import re
from contextlib import AsyncExitStack, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import psycopg
import psycopg_pool
import pytest
import sqlalchemy
import trio
from django.db import connection, transaction
from sqlalchemy import orm
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.pool import NullPool

import pgnotifyq
from pgnotifyq.testing import work_until_idle
from tests.doors.callers_support import django_at, parts_of, url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PAGE = (Path(__file__).parents[2] / "docs" / "transactions.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"<!-- test: ([\w ]+) -->\n```\w+\n(.*?)```", PAGE, re.DOTALL))
Base = orm.declarative_base()


class Order(Base):  # type: ignore[misc,valid-type]
    __tablename__ = "orders"
    id = sqlalchemy.Column(sqlalchemy.Integer, primary_key=True)


# What a program of each kind has imported.
NAMES = {
    "psycopg": psycopg, "pgnotifyq": pgnotifyq, "text": sqlalchemy.text, "Order": Order, "transaction": transaction,
    "connection": connection, "IntegrityError": IntegrityError,
}  # fmt: skip


@pytest.fixture
def shop_dsn(dsn: str) -> str:
    """A database with orders in it."""
    with psycopg.connect(dsn, autocommit=True) as session:
        session.execute("create table orders (id integer primary key)")
    return dsn


def found(dsn: str) -> tuple[list[int], list[str]]:
    """Return the orders that were placed, and the types of the jobs."""
    with psycopg.connect(dsn, autocommit=True) as session:
        orders = [row[0] for row in session.execute("select id from orders order by id")]
        return orders, [row[0] for row in session.execute("select job_type from pgnotifyq.jobs order by id")]


def program(name: str) -> Callable[..., Any]:
    names = dict(NAMES)
    exec(BLOCKS[name], names)
    place_order: Callable[..., Any] = names["place_order"]
    return place_order


def test_every_block_is_run() -> None:
    """None of the page's blocks is left out of this file, and none is without a name."""
    assert len(BLOCKS) == PAGE.count("```") / 2
    assert set(BLOCKS) == {*GIVEN, *IN_HANDLERS, "savepoint", "refused", "aborted", "sql"}


@contextmanager
def engine_of(dsn: str) -> Iterator[Any]:
    engine = sqlalchemy.create_engine(url(dsn, "psycopg"), poolclass=NullPool)
    yield engine
    engine.dispose()


GIVEN = {
    "psycopg": ("pgnotifyq.sync", "dsn"),
    "psycopg async": ("pgnotifyq.aio", "dsn"),
    "asyncpg": ("pgnotifyq.aio", "pool"),
    "sqlalchemy async session": ("pgnotifyq.aio", "session factory"),
    "sqlalchemy session": ("pgnotifyq.sync", "session factory"),
    "sqlalchemy async connection": ("pgnotifyq.aio", "engine"),
    "sqlalchemy connection": ("pgnotifyq.sync", "engine"),
    "django": ("pgnotifyq.sync", "nothing"),
    "trio": ("pgnotifyq", "dsn"),
}


@pytest.mark.parametrize("name", GIVEN)
def test_block(name: str, shop_dsn: str) -> None:
    """An order and its job are there together, or neither is."""
    door, what = GIVEN[name]
    place_order = program(name)
    client_of = importlib.import_module(door).open_client
    if not inspect.iscoroutinefunction(place_order):
        with ExitStack() as stack:
            if what == "nothing":
                stack.enter_context(django_at(shop_dsn, "default"))
                arguments: tuple[Any, ...] = ()
            elif what == "dsn":
                arguments = (shop_dsn,)
            else:
                engine = stack.enter_context(engine_of(shop_dsn))
                arguments = (engine if what == "engine" else orm.sessionmaker(engine),)
            client = stack.enter_context(client_of(shop_dsn))
            place_order(client, *arguments, 7)
            with pytest.raises(Exception, match="duplicate key"):
                place_order(client, *arguments, 7)
    else:

        async def main() -> None:
            async with AsyncExitStack() as stack:
                client = await stack.enter_async_context(client_of(shop_dsn))
                given: Any = shop_dsn
                if what == "pool":
                    given = await stack.enter_async_context(asyncpg.create_pool(**parts_of(shop_dsn), min_size=1))
                elif what != "dsn":
                    engine = create_async_engine(url(shop_dsn, "asyncpg"), poolclass=NullPool)
                    stack.push_async_callback(engine.dispose)
                    given = engine if what == "engine" else async_sessionmaker(engine)
                await place_order(client, given, 7)
                with pytest.raises(Exception, match="duplicate key"):
                    await place_order(client, given, 7)

        if door == "pgnotifyq":
            trio.run(main)
        else:
            asyncio.run(main())
    assert found(shop_dsn) == ([7], ["send_receipt"])


IN_HANDLERS = ["handler sqlalchemy", "handler django", "handler psycopg", "handler sqlalchemy async", "handler asyncpg"]


@pytest.mark.parametrize("name", IN_HANDLERS)
def test_block_in_a_handler(name: str, shop_dsn: str) -> None:
    """An order and its job's completion are there together, or neither is."""
    registry = pgnotifyq.JobRegistry()
    with ExitStack() as stack:
        pool = stack.enter_context(psycopg_pool.ConnectionPool(shop_dsn, min_size=1, open=False))
        stack.enter_context(django_at(shop_dsn, "default"))
        address = url(shop_dsn, "asyncpg")
        given = {
            "registry": registry, "Session": orm.sessionmaker(stack.enter_context(engine_of(shop_dsn))), "pool": pool,
            "AsyncSession": async_sessionmaker(create_async_engine(address, poolclass=NullPool)), "asyncio": asyncio,
            "asyncpg": asyncpg, "dsn": address.set(drivername="postgresql").render_as_string(hide_password=False),
        }  # fmt: skip
        exec(BLOCKS[name], {**NAMES, **given})
        with importlib.import_module("pgnotifyq.sync").open_client(shop_dsn) as client:
            for _ in range(2):
                client.enqueue("place_order", {"id": 7}, max_attempts=1)
                trio.run(work_until_idle, registry, shop_dsn)
    with psycopg.connect(shop_dsn) as session:
        orders = session.execute("select id from orders").fetchall()
        outcomes = session.execute("select outcome from pgnotifyq.executions order by id").fetchall()
    assert (orders, [outcome for (outcome,) in outcomes]) == ([(7,)], ["completed", "failed"])


def test_savepoint(shop_dsn: str) -> None:
    """The second time there is a visit, and no second receipt."""
    with engine_of(shop_dsn) as engine, importlib.import_module("pgnotifyq.sync").open_client(shop_dsn) as client:
        for _ in range(2):
            program("savepoint")(client, orm.sessionmaker(engine), 7)
    assert found(shop_dsn) == ([7], ["count_visit", "send_receipt", "count_visit"])


def test_refused(shop_dsn: str) -> None:
    """The order is there, and the job is not."""
    with psycopg.connect(shop_dsn, autocommit=True) as session:
        session.execute("alter table pgnotifyq.jobs add constraint no_receipts check (job_type <> 'send_receipt')")
    with engine_of(shop_dsn) as engine, importlib.import_module("pgnotifyq.sync").open_client(shop_dsn) as client:
        program("refused")(client, orm.sessionmaker(engine), 7)
    assert found(shop_dsn) == ([7], [])


def test_aborted(shop_dsn: str) -> None:
    """The block ends as it says, and nothing is there."""
    with importlib.import_module("pgnotifyq.sync").open_client(shop_dsn) as client:
        program("aborted")(client, shop_dsn, 7)
    assert found(shop_dsn) == ([], [])


def test_sql(shop_dsn: str) -> None:
    """As it stands."""
    with psycopg.connect(shop_dsn, autocommit=True) as session:
        session.execute(BLOCKS["sql"])
    assert found(shop_dsn) == ([1], ["send_receipt"])
