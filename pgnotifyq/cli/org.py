"""Commands on tenants: `config`, `audit`, `protect`, `unprotect`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from pgnotifyq.cli.act import run_with
from pgnotifyq.cli.output import print_json, print_rows
from pgnotifyq.cli.parameters import AsJson, Dsn, Limit, OfAnyOrg, OfOrg, Schema, job_id_of
from pgnotifyq.ledger import organisation
from pgnotifyq.model.credentials import check_credential_name
from pgnotifyq.model.errors import ConfigError
from pgnotifyq.model.organisation import is_name, org
from pgnotifyq.wire.asking import ask

if TYPE_CHECKING:
    from psycopg.rows import TupleRow

    from pgnotifyq.model.job import OrgId
    from pgnotifyq.wire.connection import Connection

CONFIG_COLUMNS = ["org", "org_id", "name", "value", "changed_at", "changed_by"]
AUDIT_COLUMNS = ["at", "org", "org_id", "action", "details", "job_id", "written_by"]
PRUNE_BATCH_MAX = 10_000  # rows in one transaction

config = App(name="config", help="The settings of tenants: get, set, unset and list them.")


@config.command
def get(name: str, /, *, of: OfOrg, as_json: AsJson = False, dsn: Dsn = None, schema: Schema = "pgnotifyq") -> int:  # noqa: ARG001  # it is JSON in any case
    """Print a setting as JSON. Exit code 1 if the tenant has not set it."""
    org_id = org(of)

    async def act(connection: Connection[TupleRow]) -> int:
        found = await ask(connection, organisation.config(schema, org_id))
        if name in found:
            print_json(found[name])
        return 0 if name in found else 1

    return run_with(dsn, schema, act)


@config.command(name="set")
def set_(
    name: str,
    value: Annotated[str, Parameter(allow_leading_hyphen=True, help="JSON; what is no JSON is a text.")],
    /,
    *,
    of: OfOrg,
    as_json: AsJson = False,
    dsn: Dsn = None,
    schema: Schema = "pgnotifyq",
) -> int:
    """Set a setting of a tenant. Workers see it at once."""
    check_credential_name(name)
    given = _json_or_text(value)

    async def act(connection: Connection[TupleRow]) -> int:
        async with connection.transaction():
            org_id = await named(connection, schema, of)
            await ask(connection, organisation.set_config(schema, org_id, name, given))
            await ask(connection, organisation.audit_for(schema, org_id, "config.set", {"name": name, "value": given}))
        tell({"org_id": str(org_id), "name": name, "value": given}, f"{name} is set", as_json=as_json)
        return 0

    return run_with(dsn, schema, act)


@config.command
def unset(name: str, /, *, of: OfOrg, as_json: AsJson = False, dsn: Dsn = None, schema: Schema = "pgnotifyq") -> int:
    """Take a setting away: the program's default holds again. Exit code 1 if there was none."""
    org_id = org(of)

    async def act(connection: Connection[TupleRow]) -> int:
        async with connection.transaction():
            was_there = await ask(connection, organisation.unset_config(schema, org_id, name))
            if was_there:
                await ask(connection, organisation.audit_for(schema, org_id, "config.unset", {"name": name}))
        tell({"unset": was_there}, f"{name} is not set{' any more' if was_there else ''}", as_json=as_json)
        return 0 if was_there else 1

    return run_with(dsn, schema, act)


@config.command(name="list")
def list_(
    *,
    of: OfAnyOrg = None,
    name: Annotated[str | None, Parameter(help="Only this setting.")] = None,
    limit: Limit = 1000,
    as_json: AsJson = False,
    dsn: Dsn = None,
    schema: Schema = "pgnotifyq",
) -> int:
    """List the settings of a tenant, or of all, by tenant and name."""
    org_id = None if of is None else org(of)

    async def act(connection: Connection[TupleRow]) -> int:
        found = await ask(connection, organisation.list_config(schema, org_id, name=name, limit=limit))
        print_rows(found, CONFIG_COLUMNS, as_json=as_json, nothing="no settings", in_terminal=_but_named(CONFIG_COLUMNS, found))
        return 0

    return run_with(dsn, schema, act)


def audit(
    *,
    of: OfAnyOrg = None,
    action: Annotated[str | None, Parameter(help="Only this action.")] = None,
    job: Annotated[str | None, Parameter(help="Only what this job did.")] = None,
    limit: Limit = 50,
    purge_older_than_seconds: Annotated[
        float | None, Parameter(help="Delete rows that are older, of all tenants, for good.")
    ] = None,
    as_json: AsJson = False,
    dsn: Dsn = None,
    schema: Schema = "pgnotifyq",
) -> int:
    """List the audit trail of a tenant, or of all, the latest first; or purge it."""
    org_id = None if of is None else org(of)
    job_id = None if job is None else job_id_of(job)
    if purge_older_than_seconds is not None and (org_id, action, job_id) != (None, None, None):
        raise ConfigError("--purge-older-than-seconds is for the trail of all tenants: leave --org, --action and --job out")

    async def act(connection: Connection[TupleRow]) -> int:
        if purge_older_than_seconds is not None:
            purged = 0
            while count := await ask(
                connection, organisation.prune_audit(schema, purge_older_than_seconds, limit=PRUNE_BATCH_MAX)
            ):
                purged += count
            tell({"purged": purged}, f"purged {purged}", as_json=as_json)
            return 0
        found = await ask(connection, organisation.list_audit(schema, org_id, action=action, job_id=job_id, limit=limit))
        print_rows(
            found, AUDIT_COLUMNS, as_json=as_json, nothing="nothing in the trail", in_terminal=_but_named(AUDIT_COLUMNS, found)
        )
        return 0

    return run_with(dsn, schema, act)


def protect(
    table: Annotated[str, Parameter(help="A table of the application's, as public.orders.")],
    column: Annotated[str, Parameter(help="Its column that says whose a row is: a uuid, a text, or a number.")],
    /,
    *,
    rights: Annotated[
        str | None, Parameter(help="What tenants' roles may do there, as in 'select, insert'. Default: grant nothing.")
    ] = None,
    as_json: AsJson = False,
    dsn: Dsn = None,
    schema: Schema = "pgnotifyq",
) -> int:
    """Let tenants see only their own rows in a table. Connect as the table's owner."""

    async def act(connection: Connection[TupleRow]) -> int:
        count = await ask(connection, organisation.protect(schema, table, column, rights))
        tell({"protected": count}, f"protected {table} by {column}{_with_partitions(count)}", as_json=as_json)
        return 0

    return run_with(dsn, schema, act)


def unprotect(
    table: Annotated[str, Parameter(help="A table that `protect` has named.")],
    /,
    *,
    as_json: AsJson = False,
    dsn: Dsn = None,
    schema: Schema = "pgnotifyq",
) -> int:
    """Take away what `protect` has put on a table. Exit code 1 if it was not protected."""

    async def act(connection: Connection[TupleRow]) -> int:
        count = await ask(connection, organisation.unprotect(schema, table))
        said = f"{table} is protected no more{_with_partitions(count)}" if count else f"{table} was not protected"
        tell({"unprotected": count}, said, as_json=as_json)
        return 0 if count else 1

    return run_with(dsn, schema, act)


async def named(connection: Connection[TupleRow], schema: str, of: str) -> OrgId:
    """Return the id of a tenant; keep its name for people, if that is what was given."""
    org_id = org(of)
    if is_name(of):
        await ask(connection, organisation.name_org(schema, of))
    return org_id


def tell(data: dict[str, Any], line: str, *, as_json: bool) -> None:
    """Print what was done."""
    print_json(data) if as_json else print(line)


def _with_partitions(count: int) -> str:
    return f", {count} tables with its partitions" if count > 1 else ""


def _json_or_text(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


def _but_named(columns: list[str], rows: list[Any]) -> list[str]:
    """Return the columns for a terminal: an id is not shown where each tenant's name is known."""
    return [column for column in columns if column != "org_id" or not all(row.org for row in rows)]
