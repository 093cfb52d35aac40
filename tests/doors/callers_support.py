"""Connections as callers have them, each from the real library, all with the same few verbs for the tests."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import asyncpg
import attrs
import django
import psycopg
import psycopg2
import trio
from django.conf import settings
from django.db import connections
from django.db import transaction as django_transaction
from django.utils.connection import ConnectionProxy
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import URL, create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.pool import NullPool

from pgnotifyq.wire.callers import ask_on, ask_on_blocking
from pgnotifyq.wire.connection import connect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from contextlib import AbstractAsyncContextManager

    from pgnotifyq.ledger.ask import Verb


class Undo(Exception):
    """What leaves a block that is to be rolled back."""


@attrs.frozen(eq=False)
class Theirs:
    """A connection of a caller's. `transaction` and `savepoint` are the library's own; `ask` is what is under test."""

    connection: Any
    execute: Callable[[str], Awaitable[Any]]  # through the library
    transaction: Callable[[], AbstractAsyncContextManager[None]]
    savepoint: Callable[[], AbstractAsyncContextManager[None]]
    ask: Callable[..., Awaitable[Any]]  # a verb, and settings of `ask_on`


def parts_of(dsn: str) -> dict[str, Any]:
    """Return an address in pieces."""
    parts = conninfo_to_dict(dsn)
    return {"host": parts["host"], "port": parts.get("port"), "user": parts["user"], "database": parts["dbname"],
            "password": parts.get("password")}  # fmt: skip


def url(dsn: str, driver: str) -> URL:
    """Return an address as SQLAlchemy has it."""
    parts = parts_of(dsn)
    return URL.create(f"postgresql+{driver}", parts["user"], parts["password"], database=parts["database"],
                      query={"host": parts["host"], **({"port": str(parts["port"])} if parts["port"] else {})})  # fmt: skip


def asking(connection: Any, *, blocking: bool) -> Callable[..., Awaitable[Any]]:
    async def ask(verb: Verb[Any], **settings: Any) -> Any:
        return ask_on_blocking(connection, verb, **settings) if blocking else await ask_on(connection, verb, **settings)

    return ask


def block(enter: Callable[[], Any]) -> Callable[[], AbstractAsyncContextManager[None]]:
    """Return blocks around a library's own, blocking or not."""

    @asynccontextmanager
    async def blocks() -> AsyncIterator[None]:
        entered = enter()
        if hasattr(entered, "__aenter__"):
            async with entered:
                yield
        else:
            with entered:
                yield

    return blocks


def by_hand(commit: Callable[[], Any], rollback: Callable[[], Any]) -> Callable[[], AbstractAsyncContextManager[None]]:
    """Return blocks of a connection that begins by itself and is told how to end."""

    @asynccontextmanager
    async def blocks() -> AsyncIterator[None]:
        try:
            yield
        except BaseException:
            await _whether_or_not(rollback())
            raise
        await _whether_or_not(commit())

    return blocks


async def _whether_or_not(answer: Any) -> Any:
    return await answer if hasattr(answer, "__await__") else answer


def executing(execute: Callable[[Any], Any]) -> Callable[[str], Awaitable[Any]]:
    async def run(statement: str) -> Any:
        return await _whether_or_not(execute(statement))

    return run


@asynccontextmanager
async def of_psycopg(dsn: str, *, autocommit: bool) -> AsyncIterator[Theirs]:
    with psycopg.connect(dsn, autocommit=autocommit) as mine:
        outer = block(mine.transaction) if autocommit else by_hand(mine.commit, mine.rollback)
        yield Theirs(mine, executing(mine.execute), outer, block(mine.transaction), asking(mine, blocking=True))


@asynccontextmanager
async def of_psycopg_async(dsn: str, *, autocommit: bool) -> AsyncIterator[Theirs]:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=autocommit) as mine:
        outer = block(mine.transaction) if autocommit else by_hand(mine.commit, mine.rollback)
        yield Theirs(mine, executing(mine.execute), outer, block(mine.transaction), asking(mine, blocking=False))


@asynccontextmanager
async def of_trio(dsn: str, *, autocommit: bool) -> AsyncIterator[Theirs]:
    async with await connect(dsn, autocommit=autocommit) as mine:
        outer = block(mine.transaction) if autocommit else by_hand(mine.commit, mine.rollback)
        yield Theirs(mine, executing(mine.execute), outer, block(mine.transaction), asking(mine, blocking=False))


@asynccontextmanager
async def of_psycopg2(dsn: str, *, autocommit: bool) -> AsyncIterator[Theirs]:
    mine = psycopg2.connect(dsn)
    mine.autocommit = autocommit

    def execute(statement: str) -> None:
        with mine.cursor() as cursor:
            cursor.execute(statement)

    @contextmanager
    def saying(begin: str, end: str, undo: str) -> Iterator[None]:
        execute(begin)
        try:
            yield
        except BaseException:
            execute(undo)
            raise
        execute(end)

    outer = block(lambda: saying("begin", "commit", "rollback")) if autocommit else by_hand(mine.commit, mine.rollback)
    inner = block(lambda: saying("savepoint a", "release savepoint a", "rollback to savepoint a"))
    try:
        yield Theirs(mine, executing(execute), outer, inner, asking(mine, blocking=True))
    finally:
        mine.close()


def _of_asyncpg(mine: Any) -> Theirs:
    return Theirs(mine, executing(mine.execute), block(mine.transaction), block(mine.transaction), asking(mine, blocking=False))


@asynccontextmanager
async def of_asyncpg(dsn: str, *, autocommit: bool) -> AsyncIterator[Theirs]:
    mine = await asyncpg.connect(**parts_of(dsn))
    try:
        yield _of_asyncpg(mine)
    finally:
        await mine.close()


@asynccontextmanager
async def of_asyncpg_pool(dsn: str, *, autocommit: bool) -> AsyncIterator[Theirs]:
    async with asyncpg.create_pool(**parts_of(dsn), min_size=1, max_size=1) as pool, pool.acquire() as mine:
        yield _of_asyncpg(mine)


def of_sqlalchemy(driver: str, what: str) -> Callable[..., AbstractAsyncContextManager[Theirs]]:
    @asynccontextmanager
    async def opened(dsn: str, *, autocommit: bool) -> AsyncIterator[Theirs]:
        options: dict[str, Any] = {"isolation_level": "AUTOCOMMIT"} if autocommit else {}
        engine = create_engine(url(dsn, driver), poolclass=NullPool, **options)
        mine: Any = {  # type: ignore[no-untyped-call]
            "connection": engine.connect,
            "session": lambda: Session(engine),
            "scoped": lambda: scoped_session(sessionmaker(engine)),
        }[what]()
        try:
            execute = executing(lambda statement: mine.execute(text(statement)))
            yield Theirs(
                mine, execute, by_hand(mine.commit, mine.rollback), block(mine.begin_nested), asking(mine, blocking=True)
            )
        finally:
            mine.close()
            engine.dispose()

    return opened


def of_sqlalchemy_async(driver: str, what: str) -> Callable[..., AbstractAsyncContextManager[Theirs]]:
    @asynccontextmanager
    async def opened(dsn: str, *, autocommit: bool) -> AsyncIterator[Theirs]:
        options: dict[str, Any] = {"isolation_level": "AUTOCOMMIT"} if autocommit else {}
        engine = create_async_engine(url(dsn, driver), poolclass=NullPool, **options)
        try:
            mine: Any
            if what == "connection":
                mine = await engine.connect()
            elif what == "scoped":
                mine = async_scoped_session(async_sessionmaker(engine), scopefunc=asyncio.current_task)
            else:
                mine = AsyncSession(engine)
            ask = asking(mine, blocking=False)
            if what == "run_sync":

                async def ask(verb: Verb[Any], **settings: Any) -> Any:
                    return await mine.run_sync(lambda session: ask_on_blocking(session, verb, **settings))

            execute = executing(lambda statement: mine.execute(text(statement)))
            yield Theirs(mine, execute, by_hand(mine.commit, mine.rollback), block(mine.begin_nested), ask)
        finally:
            await mine.close()
            await engine.dispose()

    return opened


def of_django(*, is_proxy: bool) -> Callable[..., AbstractAsyncContextManager[Theirs]]:
    alias = "default" if is_proxy else "other"

    @asynccontextmanager
    async def opened(dsn: str, *, autocommit: bool) -> AsyncIterator[Theirs]:
        with django_at(dsn, alias):
            mine = ConnectionProxy(connections, alias) if is_proxy else connections[alias]

            def execute(statement: str) -> None:
                with mine.cursor() as cursor:
                    cursor.execute(statement)

            def atomic() -> Any:
                return django_transaction.atomic(using=alias)

            yield Theirs(mine, executing(execute), block(atomic), block(atomic), asking(mine, blocking=True))

    return opened


@contextmanager
def django_at(dsn: str, alias: str) -> Iterator[None]:
    """Have Django's connection of a name lead to a database."""
    if not settings.configured:
        settings.configure(DATABASES={}, USE_TZ=True)
        django.setup()
    parts = parts_of(dsn)
    given = {"NAME": parts["database"], "USER": parts["user"], "HOST": parts["host"], "PORT": parts["port"] or "",
             "PASSWORD": parts["password"] or ""}  # fmt: skip
    made = connections.configure_settings({"default": {}, alias: {"ENGINE": "django.db.backends.postgresql", **given}})
    before = dict(connections.databases)
    connections.databases.update(made)
    try:
        yield
    finally:
        connections[alias].close()
        del connections[alias]
        connections.databases.clear()
        connections.databases.update(before)


KINDS: dict[str, Callable[..., AbstractAsyncContextManager[Theirs]]] = {
    "trio": of_trio,
    "psycopg": of_psycopg,
    "psycopg async": of_psycopg_async,
    "psycopg2": of_psycopg2,
    "asyncpg": of_asyncpg,
    "asyncpg pool": of_asyncpg_pool,
    **{f"sqlalchemy {what} psycopg": of_sqlalchemy("psycopg", what) for what in ("connection", "session", "scoped")},
    **{f"sqlalchemy {what} psycopg2": of_sqlalchemy("psycopg2", what) for what in ("connection", "session")},
    **{
        f"sqlalchemy async {what} {driver}": of_sqlalchemy_async(driver, what)
        for what in ("connection", "session", "scoped", "run_sync")
        for driver in ("asyncpg", "psycopg")
    },
    "django": of_django(is_proxy=True),
    "django alias": of_django(is_proxy=False),
}


def drive(kind: str, story: Callable[[], Awaitable[None]]) -> None:
    """Run a story in the loop that a kind belongs to; blocking ones are driven by none, so in any. Django's own refuse asyncio."""
    if "async" in kind:
        asyncio.run(story())  # type: ignore[arg-type]  # it is a coroutine
    else:
        trio.run(story)


@asynccontextmanager
async def theirs(kind: str, dsn: str, *, autocommit: bool = False) -> AsyncIterator[Theirs]:
    """Open a connection of a kind."""
    async with AsyncExitStack() as stack:
        yield await stack.enter_async_context(KINDS[kind](dsn, autocommit=autocommit))
