"""The command `migrate`: bring the database's schema up to this version."""

from __future__ import annotations

import sys
from typing import Annotated

import trio
from cyclopts import Parameter

from pgnotifyq.cli.act import find_database
from pgnotifyq.cli.parameters import Dsn, Schema
from pgnotifyq.cli.reach import answered
from pgnotifyq.ledger import roles
from pgnotifyq.ledger import schema as ledger
from pgnotifyq.ledger.roles import RoleKind
from pgnotifyq.model.errors import ConfigError
from pgnotifyq.wire.asking import ask
from pgnotifyq.wire.connection import open_connection
from pgnotifyq.wire.sessions import For

_Names = Annotated[
    list[str] | None, Parameter(negative="", show_default=False, help="A role to give the rights of one; repeat it.")
]


def migrate(
    *,
    dry_run: Annotated[
        bool, Parameter(negative="", show_default=False, help="Print the SQL that is missing, and change nothing.")
    ] = False,
    grant_producer: _Names = None,
    grant_worker: _Names = None,
    grant_admin: _Names = None,
    grant_observer: _Names = None,
    grant_tenant: _Names = None,
    tenant_login: Annotated[
        bool, Parameter(negative="", show_default=False, help="Make a login for tenants' transactions, which workers use.")
    ] = False,
    owner: Annotated[
        str | None, Parameter(show_default=False, help="A role without a login, which owns the schema: migrate acts as it.")
    ] = None,
    dsn: Dsn = None,
    schema: Schema = "pgnotifyq",
) -> int:
    """Bring the database's schema up to this version, and give roles their rights.

    Safe to run again, and at the same time twice. A role that was granted once is known: each later
    run gives it what it is short of. A role that is granted must exist.
    """
    kinds = {
        RoleKind.PRODUCER: grant_producer,
        RoleKind.WORKER: grant_worker,
        RoleKind.ADMIN: grant_admin,
        RoleKind.OBSERVER: grant_observer,
        RoleKind.TENANT: grant_tenant,
    }
    granted = [(kind, name) for kind, names in kinds.items() for name in names or ()]
    if dry_run and (granted or tenant_login):
        raise ConfigError("--dry-run prints the schema's SQL, and grants nothing: leave --grant-... and --tenant-login out")

    async def main() -> int:
        database = await find_database(dsn)

        said: list[str] = []

        async def on_database() -> list[ledger.Step]:
            async with open_connection(database.dsn, application_name="pgnotifyq migrate", used_for=For.CALLER) as connection:
                connection.add_notice_handler(lambda notice: _tell_notice(notice.message_primary or ""))
                if owner is not None:
                    await ask(connection, roles.act_as(owner))
                done = await ask(connection, ledger.migrate(schema, dry_run=dry_run))
                for kind, name in granted:
                    await ask(connection, roles.grant(schema, kind, name))
                if tenant_login:
                    said.append(f"role {await ask(connection, roles.make_tenant_login(schema))}: made, for tenants' transactions")
                if granted or tenant_login:
                    said.extend(await ask(connection, roles.keep(schema)))
                return done

        done = await answered(database.dsn, on_database)
        if dry_run:
            print(ledger.as_script(done, schema) if done else f"-- schema {schema}: already up to date")
            return 0
        names = ", ".join(step.name for step in done)
        print(f"schema {schema}: {f'applied {names}' if done else 'already up to date'}")
        for line in said:
            print(line)
        return 0

    return trio.run(main)


def _tell_notice(message: str) -> None:
    if "confined against mistakes" in message:
        print(f"pgnotifyq: {message}", file=sys.stderr)
