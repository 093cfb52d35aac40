"""From an address to the ledger: a command finds its database, opens its ledger, and acts on it."""

from __future__ import annotations

import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from pgnotifyq.cli.reach import answered
from pgnotifyq.migrating import check_schema, migrate
from pgnotifyq.wire.connection import open_connection
from pgnotifyq.wire.sessions import For

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from psycopg.rows import TupleRow

    from pgnotifyq.embedded import Database
    from pgnotifyq.wire.connection import Connection


async def find_database(dsn: str | None) -> Database:
    """Return the database to use. If it is the embedded one, say so."""
    from pgnotifyq.embedded import resolve_dsn

    database = await trio.to_thread.run_sync(resolve_dsn, dsn)
    if database.is_embedded:
        print(f"pgnotifyq: {database.source}", file=sys.stderr)
    return database


@asynccontextmanager
async def open_ledger(database: Database, schema: str) -> AsyncIterator[Connection[TupleRow]]:
    """Open a connection to a database whose schema fits this code.

    The embedded database is migrated first.
    """
    async with open_connection(database.dsn, application_name="pgnotifyq command", used_for=For.CALLER) as connection:
        if database.is_embedded:
            await connection.execute("set client_min_messages = warning")
            await migrate(connection, schema)
        await check_schema(connection, schema)
        yield connection


def run_with(dsn: str | None, schema: str, act: Callable[[Connection[TupleRow]], Awaitable[int]]) -> int:
    """Run one act on a connection to the ledger and return its exit code."""

    async def main() -> int:
        database = await find_database(dsn)

        async def on_ledger() -> int:
            async with open_ledger(database, schema) as connection:
                return await act(connection)

        return await answered(database.dsn, on_ledger)

    return trio.run(main)
