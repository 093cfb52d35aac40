"""The command `migrate`: bring the database's schema up to this version."""

from __future__ import annotations

import sys
from typing import Annotated

import trio
from cyclopts import Parameter

from pgnotifyq.cli.act import find_database
from pgnotifyq.cli.parameters import Dsn, Schema
from pgnotifyq.cli.reach import answered
from pgnotifyq.ledger import schema as ledger
from pgnotifyq.wire.asking import ask
from pgnotifyq.wire.connection import open_connection
from pgnotifyq.wire.sessions import For


def migrate(
    *,
    dry_run: Annotated[
        bool, Parameter(negative="", show_default=False, help="Print the SQL that is missing, and change nothing.")
    ] = False,
    dsn: Dsn = None,
    schema: Schema = "pgnotifyq",
) -> int:
    """Bring the database's schema up to this version.

    Safe to run again, and at the same time twice.
    """

    async def main() -> int:
        database = await find_database(dsn)

        async def on_database() -> list[ledger.Step]:
            async with open_connection(database.dsn, application_name="pgnotifyq migrate", used_for=For.CALLER) as connection:
                connection.add_notice_handler(lambda notice: _tell_notice(notice.message_primary or ""))
                return await ask(connection, ledger.migrate(schema, dry_run=dry_run))

        done = await answered(database.dsn, on_database)
        if dry_run:
            print(ledger.as_script(done, schema) if done else f"-- schema {schema}: already up to date")
            return 0
        names = ", ".join(step.name for step in done)
        print(f"schema {schema}: {f'applied {names}' if done else 'already up to date'}")
        return 0

    return trio.run(main)


def _tell_notice(message: str) -> None:
    if "tenants are confined" in message:
        print(f"pgnotifyq: {message}", file=sys.stderr)
