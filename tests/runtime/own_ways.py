"""Ways to a fenced transaction on a connection of the handler's own: each library, with the same few verbs for the tests."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import asyncpg
import attrs
import psycopg
import psycopg_pool
import trio
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import NullPool

from pgnotifyq import JobRegistry, connect
from tests.doors.callers_support import django_at, parts_of, url
from tests.runtime.support import PATIENCE_SECONDS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from pgnotifyq import JobContext


@attrs.frozen(eq=False)
class Hand:
    """What a handler has within its block."""

    mine: Any  # what the block gave
    say: Callable[[str], Any]  # a statement, through the library

    async def execute(self, statement: str) -> None:
        """Send a statement."""
        answer = self.say(statement)
        if hasattr(answer, "__await__"):
            await answer

    async def mark(self, what: str) -> None:
        """Write what commits with the block, or not at all."""
        await self.execute(f"insert into marks values ('{what}')")


Body = Callable[["JobContext", Callable[..., AbstractAsyncContextManager[Hand]]], Awaitable[Any]]  # its context, and what opens


def with_text(session: Any) -> Callable[[str], Any]:
    return lambda statement: session.execute(text(statement))


def with_cursor(connection: Any) -> Callable[[str], Any]:
    def say(statement: str) -> None:
        with connection.cursor() as cursor:
            cursor.execute(statement)

    return say


def with_execute(connection: Any) -> Callable[[str], Any]:
    return lambda statement: connection.execute(statement)


@attrs.frozen(eq=False)
class Way:
    """One library: what holds a connection of its, and how a handler comes by a block on it."""

    prepare: Callable[[AsyncExitStack, str], Awaitable[Any]]  # opens what the program would have; returns what is given to ctx
    open: Callable[..., Any]  # ctx, what was given, settings -> the block
    speak: Callable[[Any], Callable[[str], Any]]
    loop: str | None  # trio, asyncio, or none: it blocks

    @asynccontextmanager
    async def block(self, ctx: JobContext, given: Any, **settings: Any) -> AsyncIterator[Hand]:
        """Open the block of the context's."""
        if self.loop is None:
            with self.open(ctx, given, **settings) as mine:
                yield Hand(mine, self.speak(mine))
        else:
            async with self.open(ctx, given, **settings) as mine:
                yield Hand(mine, self.speak(mine))

    def register(self, registry: JobRegistry, dsn: str, body: Body) -> None:
        """Register a handler `work` that runs `body(ctx, open)`, where this way is at home."""

        async def run(ctx: JobContext) -> Any:
            async with AsyncExitStack() as stack:
                given = await self.prepare(stack, dsn)
                return await body(ctx, partial(self.block, ctx, given))

        if self.loop == "trio":

            @registry.handler("work", cooperative=True)
            async def on_trio(payload: dict[str, Any], ctx: JobContext) -> Any:
                return await run(ctx)

        else:

            @registry.handler("work", cooperative=True)
            def in_thread(payload: dict[str, Any], ctx: JobContext) -> Any:
                return asyncio.run(run(ctx)) if self.loop == "asyncio" else run_blocking(run(ctx))


def run_blocking(story: Any) -> Any:
    """Run what never waits for a loop."""
    try:
        story.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waits for a loop")


class Gate:
    """Where a handler in a thread or in a loop waits for the test, and the test for the handler."""

    def __init__(self) -> None:
        self._inside, self._go_on = threading.Event(), threading.Event()

    async def hold(self) -> None:
        """Tell the test, and wait for it; a loop that is not trio's stands still."""
        self._inside.set()
        try:
            trio.lowlevel.current_task()
        except RuntimeError:
            assert self._go_on.wait(PATIENCE_SECONDS)
        else:
            assert await trio.to_thread.run_sync(self._go_on.wait, PATIENCE_SECONDS)

    async def reached(self) -> None:
        """Wait until the handler holds."""
        assert await trio.to_thread.run_sync(self._inside.wait, PATIENCE_SECONDS)

    def open(self) -> None:
        """Let the handler go on."""
        self._go_on.set()


async def _sessions(driver: str, stack: AsyncExitStack, dsn: str, **options: Any) -> Any:
    engine = create_engine(url(dsn, driver), poolclass=NullPool, **options)
    stack.callback(engine.dispose)
    return sessionmaker(engine)


async def _async_sessions(driver: str, stack: AsyncExitStack, dsn: str, **options: Any) -> Any:
    engine = create_async_engine(url(dsn, driver), poolclass=NullPool, **options)
    stack.push_async_callback(engine.dispose)
    return async_sessionmaker(engine)


async def _django(stack: AsyncExitStack, dsn: str) -> str:
    stack.enter_context(django_at(dsn, "default"))
    return "default"


async def _psycopg(stack: AsyncExitStack, dsn: str) -> Any:
    return stack.enter_context(psycopg.connect(dsn))


async def _psycopg_autocommit(stack: AsyncExitStack, dsn: str) -> Any:
    return stack.enter_context(psycopg.connect(dsn, autocommit=True))


async def _psycopg_pool(stack: AsyncExitStack, dsn: str) -> Any:
    return stack.enter_context(psycopg_pool.ConnectionPool(dsn, min_size=1, max_size=1, open=False))


async def _psycopg_async(stack: AsyncExitStack, dsn: str) -> Any:
    return await stack.enter_async_context(await psycopg.AsyncConnection.connect(dsn))


async def _psycopg_async_pool(stack: AsyncExitStack, dsn: str) -> Any:
    return await stack.enter_async_context(psycopg_pool.AsyncConnectionPool(dsn, min_size=1, max_size=1, open=False))


async def _asyncpg(stack: AsyncExitStack, dsn: str) -> Any:
    connection = await asyncpg.connect(**parts_of(dsn))
    stack.push_async_callback(connection.close)
    return connection


async def _asyncpg_pool(stack: AsyncExitStack, dsn: str) -> Any:
    return await stack.enter_async_context(asyncpg.create_pool(**parts_of(dsn), min_size=1, max_size=1))


async def _trio(stack: AsyncExitStack, dsn: str) -> Any:
    return await stack.enter_async_context(await connect(dsn))


def _session(ctx: JobContext, given: Any, **settings: Any) -> Any:
    return ctx.session(given, **settings)


def _connection(ctx: JobContext, given: Any, **settings: Any) -> Any:
    return ctx.connection(given, **settings)


def _atomic(ctx: JobContext, given: Any, **settings: Any) -> Any:
    return ctx.django(given, **settings)


WAYS: dict[str, Way] = {
    "sqlalchemy psycopg": Way(partial(_sessions, "psycopg"), _session, with_text, None),
    "sqlalchemy psycopg2": Way(partial(_sessions, "psycopg2"), _session, with_text, None),
    "sqlalchemy async psycopg": Way(partial(_async_sessions, "psycopg"), _session, with_text, "asyncio"),
    "sqlalchemy async asyncpg": Way(partial(_async_sessions, "asyncpg"), _session, with_text, "asyncio"),
    "django": Way(_django, _atomic, with_cursor, None),
    "psycopg": Way(_psycopg, _connection, with_execute, None),
    "psycopg autocommit": Way(_psycopg_autocommit, _connection, with_execute, None),
    "psycopg pool": Way(_psycopg_pool, _connection, with_execute, None),
    "psycopg async": Way(_psycopg_async, _connection, with_execute, "asyncio"),
    "psycopg async pool": Way(_psycopg_async_pool, _connection, with_execute, "asyncio"),
    "asyncpg": Way(_asyncpg, _connection, with_execute, "asyncio"),
    "asyncpg pool": Way(_asyncpg_pool, _connection, with_execute, "asyncio"),
    "trio": Way(_trio, _connection, with_execute, "trio"),
}
