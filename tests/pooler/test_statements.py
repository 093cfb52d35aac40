"""Prepared statements where a pooler hands sessions from client to client: lost, or kept track of, and never mistaken."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
import trio
from psycopg import errors

from pgnotifyq.runtime.link import Link
from pgnotifyq.wire.connection import connect, open_connection
from tests.asked import value
from tests.pooler.support import KEEPS_TRACK

if TYPE_CHECKING:
    from pgnotifyq.model.events import Event
    from pgnotifyq.wire.connection import Connection
    from tests.pooler.support import Pooler


@asynccontextmanager
async def open_link(dsn: str) -> AsyncIterator[tuple[Link, list[Event]]]:
    """Open a link, and a list of what it tells."""
    told: list[Event] = []
    link = Link(dsn, name="tested", deadline_seconds=5.0, emit=told.append, randomness=random.Random(1))
    try:
        yield link, told
    finally:
        await link.close()


@asynccontextmanager
async def elsewhere(pooler: Pooler, pid: int) -> AsyncIterator[None]:
    """Keep the session `pid` occupied, so that others are given another."""
    async with open_connection(pooler.dsn) as holder, holder.transaction():
        assert await value(holder, "select pg_backend_pid()") == pid
        yield


async def pid_of(connection: Connection[Any]) -> int:
    """Return which session a statement that can be prepared was given."""
    return int(await value(connection, "select pg_backend_pid()"))


async def test_statement_that_is_not_in_the_session(pooler: Pooler) -> None:
    """A link whose statement was prepared in another session runs it all the same, and tells of no loss."""
    async with open_link(pooler.dsn) as (link, told):
        pid = await link.attempt(pid_of)
        async with elsewhere(pooler, pid):
            assert await link.attempt(pid_of) != pid
        assert told == []


@pytest.mark.skipif(not KEEPS_TRACK, reason="this pgbouncer is older than 1.21, which learned of prepared statements")
async def test_pooler_that_keeps_track(pool: Callable[..., Pooler]) -> None:
    """Where statements are not lost a link goes on preparing them."""
    pooler = pool(max_prepared_statements=100)
    async with open_link(pooler.dsn) as (link, _):
        pid = await link.attempt(pid_of)
        async with elsewhere(pooler, pid):
            assert await link.attempt(pid_of) != pid
        assert link._prepares


async def test_statements_of_two_clients(pooler: Pooler) -> None:
    """One client's statement never runs as another's, though both prepare their first one, in sessions that they swap."""
    clients = [await connect(pooler.dsn, prepare_threshold=0) for _ in range(2)]
    first, second = clients
    assert await value(first, "select %s || ' is the first', pg_backend_pid()", "a") == "a is the first"
    async with open_connection(pooler.dsn) as connection:
        pid = await pid_of(connection)
    async with elsewhere(pooler, pid):
        assert await value(second, "select %s || ' is the second', pg_backend_pid()", "b") == "b is the second"
        with suppress(errors.InvalidSqlStatementName):  # lost, which a link forgives; not mistaken
            assert await value(first, "select %s || ' is the first', pg_backend_pid()", "c") == "c is the first"
    for client in clients:
        await client.close()


async def test_links_at_once(pooler: Pooler) -> None:
    """Each of many operations at once gets its own answer."""
    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(_ask_on_its_own_link, pooler.dsn, number)


async def _ask_on_its_own_link(dsn: str, number: int) -> None:
    async def answer(connection: Connection[Any]) -> Any:
        return await value(connection, f"select %s::int8 + {number}", 1_000)

    async with open_link(dsn) as (link, told):
        for _ in range(20):
            assert await link.run(answer) == 1_000 + number
        assert told == []
