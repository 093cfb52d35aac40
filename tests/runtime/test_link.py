"""A worker's connection that comes back: when it keeps its session, and when it asks for another."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict

from pgnotifyq.model.events import EventName
from pgnotifyq.runtime.link import FAILURES_MAX, Link
from tests.runtime.support import Log

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import trio

    from pgnotifyq.wire.connection import Connection

BUSY = "55P03"  # a lock that was not to be had: the server's error
LOST = "25006"  # a session that cannot write: the session's
OURS = "42P01"  # a table that is missing


@pytest.fixture
async def log() -> Log:
    """Give what the link tells."""
    return Log()


@pytest.fixture
async def link(blank_dsn: str, log: Log) -> AsyncIterator[Link]:
    """Give a link to an empty database."""
    link = Link(blank_dsn, name="tried", deadline_seconds=10.0, emit=log, randomness=random.Random(1))
    yield link
    await link.close()


async def sessions(link: Link, *states: str) -> list[int]:
    """Have the tries fail with these SQLSTATEs, and then succeed; return the session of each try, counted from zero."""
    left = list(states)
    pids: list[int] = []

    async def operation(connection: Connection[Any]) -> None:
        pids.append(connection.info.backend_pid)
        if left:
            await connection.execute(f"do $$ begin raise exception 'no' using errcode = '{left.pop(0)}'; end $$".encode())

    await link.run(operation)
    return [list(dict.fromkeys(pids)).index(pid) for pid in pids]


async def test_servers_error(link: Link) -> None:
    """The session is kept, for a few failures in a row; success forgets them."""
    assert FAILURES_MAX == 3
    assert await sessions(link, BUSY, BUSY) == [0, 0, 0]
    assert await sessions(link, BUSY, BUSY) == [0, 0, 0]
    assert await sessions(link, BUSY, BUSY, BUSY, BUSY) == [0, 0, 0, 1, 1]


async def test_sessions_error(link: Link) -> None:
    """The session is left at once."""
    assert await sessions(link, LOST, BUSY, LOST) == [0, 1, 1, 2]


async def test_error_of_ours(link: Link, log: Log) -> None:
    """It is raised, and the session is kept."""
    with pytest.raises(errors.UndefinedTable):
        await sessions(link, OURS)
    assert not log.find(EventName.DATABASE_LOST)
    assert await sessions(link) == [0]


async def test_function_that_gets_a_column(link: Link, log: Log, blank_dsn: str) -> None:
    """A plan that has become stale is made anew, without a word."""

    async def columns(connection: Connection[Any]) -> int:
        return len((await connection.execute("select * from told()")).description or ())

    with psycopg.connect(blank_dsn, autocommit=True) as other:
        other.execute("create function told() returns integer language sql as 'select 1'")
        assert await link.run(columns) == 1
        other.execute("drop function told")
        other.execute("create function told(out a integer, out b integer) language sql as 'select 1, 2'")
        assert await link.run(columns) == 2
    assert not log.find(EventName.DATABASE_LOST)


async def test_server_that_is_read_only(link: Link, log: Log, blank_dsn: str, nursery: trio.Nursery) -> None:
    """It is not asked for anything: the link says what it has met, and waits."""
    name = conninfo_to_dict(blank_dsn)["dbname"]
    with psycopg.connect(blank_dsn, autocommit=True) as other:
        other.execute(f"alter database {name} set default_transaction_read_only = on".encode())
        nursery.start_soon(sessions, link)
        assert "read-only: a standby, or" in (await log.wait(EventName.DATABASE_LOST))["why"]
        other.execute("set default_transaction_read_only = off")
        other.execute(f"alter database {name} reset default_transaction_read_only".encode())
    await log.wait(EventName.DATABASE_BACK)
