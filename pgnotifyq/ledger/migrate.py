"""Bring a database's schema to the version of this code.

`sql/migrations/NNNN_*.sql` are applied once each, in order; `sql/functions/*/*.sql` are applied again whenever their text has
changed. All of it is one transaction under an advisory lock, so two who migrate at once do it once, and a failure
leaves nothing behind. A change of a function ships with a migration of its own, so that older code never replaces it.

Code and schema move apart for a while in every deploy. So a schema says the oldest code that may run on it (`oldest_code` of its
migrations, by the schema version that the code was written for): code of that age works on it, and its `migrate` leaves it alone.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import attrs
from psycopg import sql

from pgnotifyq.ledger.errors import migrate_command, translated
from pgnotifyq.ledger.statements import compose, files
from pgnotifyq.model.errors import ConfigError, DatabaseTooOld, SchemaMissing, SchemaOutOfDate, SchemaTooNew

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pgnotifyq.wire.connection import Connection

# The oldest code that runs on this schema. A migration that only adds does not raise it; one that takes away or means something else by
# a name does, and then workers of the release before have to be stopped first. 9: what came before does not ask.
OLDEST_CODE = 9

SERVER_VERSION_MIN = 150_000  # 15: security_invoker views, and `merge`-era planner behaviour that the plans are tested on

_LOCK = "select pg_advisory_xact_lock(hashtextextended('pgnotifyq migrate ' || {schema_text}, 0));"
_BOOKKEEPING = """
-- Functions call each other and come in order of path.
set local check_function_bodies = off;
-- `create schema if not exists` asks for a right on the database even where the schema is there, made by a DBA for us.
do $do$
begin
    if not exists (select from pg_namespace where nspname = {schema_text}) then
        if not has_database_privilege(current_database(), 'create') then
            raise insufficient_privilege using message = format(
                'role %s needs CREATE on the database %s to make the schema %s there',
                current_user, current_database(), {schema_text});
        end if;
        create schema {schema};
    elsif not has_schema_privilege({schema_text}, 'create') then
        raise insufficient_privilege using message = format('role %s needs CREATE on the schema %s', current_user, {schema_text});
    end if;
end
$do$;
create table if not exists {schema}.schema_migrations (
    version integer primary key,
    name text not null,
    digest text not null,
    applied_at timestamptz not null default clock_timestamp()
);
alter table {schema}.schema_migrations add column if not exists oldest_code integer;
"""
_NOTE = (
    "insert into {schema}.schema_migrations (version, name, digest, oldest_code) values ($values)\n"
    "on conflict (version) do update set digest = excluded.digest, oldest_code = excluded.oldest_code,\n"
    "    applied_at = clock_timestamp();"
)
_FUNCTIONS_VERSION = 0  # the row that remembers the digest of sql/functions


@attrs.frozen(kw_only=True)
class Step:
    """One piece of SQL that a migration runs."""

    version: int  # of the migration; 0 for the functions, which come last
    name: str
    text: bytes  # composed for the schema
    digest: str  # of the text


def code_version() -> int:
    """Return the schema version that this code is written for."""
    return max(int(name.split("_")[0]) for name, _ in files("migrations"))


def steps(schema: str) -> list[Step]:
    """Return every step from an empty database to this code's version, in order."""
    made = []
    for name, text in files("migrations"):
        composed = compose(text, schema)
        made.append(Step(version=int(name.split("_")[0]), name=name, text=composed, digest=_digest(composed)))
    functions = b"\n".join(compose(text, schema) for _, text in files("functions"))
    made.append(Step(version=_FUNCTIONS_VERSION, name="functions", text=functions, digest=_digest(functions)))
    return made


async def migrate(connection: Connection, schema: str = "pgnotifyq", *, dry_run: bool = False) -> list[Step]:
    """Apply what is missing, and return the steps applied (or, with `dry_run`, those that would be).

    Cancellation: rolls back; nothing is applied.

    Raises:
        DatabaseTooOld: the server is older than PostgreSQL 15.
        SchemaTooNew: the schema was migrated by newer code, and this code cannot run on it; nothing is touched.
        MissingRights: the role may not create what is needed.
        ConfigError: the schema is somebody else's: it has tables of our names.
    """
    check_server(connection.info.server_version)
    async with connection.transaction():
        await connection.execute(compose(_LOCK, schema))
        applied = await _applied(connection, schema)
        if applied is None:
            await _refuse_foreign(connection, schema)
            applied = {}
        elif _is_newer(applied, schema):
            return []  # it may stay as it is, and an older function must not take the place of a newer one
        missing = [step for step in steps(schema) if step.version not in applied or step.digest != applied[step.version].digest]
        missing = [step for step in missing if step.version == _FUNCTIONS_VERSION or step.version not in applied]
        if dry_run or not missing:
            return missing
        with translated(schema):
            await connection.execute(compose(_BOOKKEEPING, schema))
            for step in missing:
                await connection.execute(step.text)
                await connection.execute(_note(step, schema))
        return missing


def as_script(missing: Sequence[Step], schema: str) -> str:
    """Return steps as one transaction for psql, which does what `migrate` would have done, its notes included."""
    parts = [b"begin;", compose(_LOCK, schema), compose(_BOOKKEEPING, schema).strip()]
    for step in missing:
        parts += [f"-- {step.name}".encode(), step.text.strip(), _note(step, schema)]
    return b"\n\n".join([*parts, b"commit;"]).decode()


def _note(step: Step, schema: str) -> bytes:
    """Return the statement that notes a step as applied."""
    values = sql.SQL(", ").join(map(sql.Literal, (step.version, step.name, step.digest, OLDEST_CODE))).as_bytes(None)
    return compose(_NOTE, schema).replace(b"$values", values)


def check_server(version: int) -> None:
    """Refuse a server older than PostgreSQL 15.

    Args:
        version: as the server says it, 150_004 for 15.4.

    Raises:
        DatabaseTooOld: with the version found.
    """
    if version < SERVER_VERSION_MIN:
        message = f"the server is PostgreSQL {version // 10_000}; pgnotifyq needs 15 or later: upgrade it, or use another"
        raise DatabaseTooOld(message)


async def check_schema(connection: Connection, schema: str = "pgnotifyq") -> int:
    """Return the schema's version when this code can work with it.

    Raises:
        DatabaseTooOld: the server is older than PostgreSQL 15.
        SchemaMissing: there is none: run `migrate`.
        SchemaOutOfDate: it is older than this code: run `migrate`.
        SchemaTooNew: it is newer than this code, and does not bear code as old as this: upgrade pgnotifyq.
        MissingRights: the connected role may not look.
    """
    check_server(connection.info.server_version)
    applied = await _applied(connection, schema)
    if applied is None or not set(applied) - {_FUNCTIONS_VERSION}:
        raise SchemaMissing(f"the database has no schema {schema!r}: run `{migrate_command(schema)}`")
    version = max(applied)
    if not _is_newer(applied, schema) and version < code_version():
        message = (
            f"the schema {schema!r} is at version {version} and this code needs {code_version()}: run `{migrate_command(schema)}`"
        )
        raise SchemaOutOfDate(message)
    return version


@attrs.frozen
class _Applied:
    """What is noted of a migration."""

    digest: str
    oldest_code: int | None  # None: noted by code that did not say


async def _applied(connection: Connection, schema: str) -> dict[int, _Applied] | None:
    """Return what is noted of each version applied, or None where there is no schema of ours."""
    # The column came with version 9, so it is not named.
    statement = "select m.version, m.digest, (to_jsonb(m) ->> 'oldest_code')::integer from {schema}.schema_migrations as m"
    try:
        with translated(schema):
            async with connection.transaction():
                cursor = await connection.execute(compose(statement, schema))
                return {version: _Applied(*noted) for version, *noted in await cursor.fetchall()}
    except SchemaMissing:
        return None


async def _refuse_foreign(connection: Connection, schema: str) -> None:
    """Refuse a schema in which another program keeps tables of our names."""
    cursor = await connection.execute(
        "select c.relname from pg_class as c join pg_namespace as n on n.oid = c.relnamespace"
        " where n.nspname = %s and c.relname in ('schema_migrations', 'jobs') order by 1 desc",
        (schema,),
    )
    row = await cursor.fetchone()
    if row is not None:
        message = f"the schema {schema!r} belongs to another program: it has a table {row[0]}; use another schema (--schema)"
        raise ConfigError(message)


def _is_newer(applied: dict[int, _Applied], schema: str) -> bool:
    """Tell whether a schema is newer than this code, which may run on it.

    Raises:
        SchemaTooNew: it may not.
    """
    version = max(applied, default=0)
    if version <= code_version():
        return False
    needed = [noted.oldest_code for number, noted in applied.items() if number > code_version()]
    if all(oldest is not None and oldest <= code_version() for oldest in needed):
        return True
    message = (
        f"the schema {schema!r} is at version {version}, newer than this code ({code_version()}): "
        "upgrade pgnotifyq; nothing was changed"
    )
    raise SchemaTooNew(message)


def _digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:16]
