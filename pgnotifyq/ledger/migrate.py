"""Bring a database's schema to the version of this code.

`sql/migrations/NNNN_*.sql` are applied once each, in order; `sql/functions/*.sql` are applied again whenever their text has
changed. All of it is one transaction under an advisory lock, so two who migrate at once do it once, and a failure
leaves nothing behind. A change of a function ships with a migration of its own, so that older code never replaces it.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import attrs
from psycopg import sql

from pgnotifyq.ledger.errors import migrate_command, translated
from pgnotifyq.ledger.statements import compose, files
from pgnotifyq.model.errors import DatabaseTooOld, SchemaMissing, SchemaOutOfDate, SchemaTooNew

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pgnotifyq.wire.connection import Connection

SERVER_VERSION_MIN = 150_000  # 15: security_invoker views, and `merge`-era planner behaviour that the plans are tested on

_LOCK = "select pg_advisory_xact_lock(hashtextextended('pgnotifyq migrate ' || {schema_text}, 0));"
_BOOKKEEPING = """
-- Functions call each other and come in order of name.
set local check_function_bodies = off;
create schema if not exists {schema};
create table if not exists {schema}.schema_migrations (
    version integer primary key,
    name text not null,
    digest text not null,
    applied_at timestamptz not null default clock_timestamp()
);
"""
_NOTE = (
    "insert into {schema}.schema_migrations (version, name, digest) values ($values)\n"
    "on conflict (version) do update set digest = excluded.digest, applied_at = clock_timestamp();"
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
        SchemaTooNew: the schema was migrated by newer code; nothing is touched.
        MissingRights: the role may not create what is needed.
    """
    check_server(connection.info.server_version)
    async with connection.transaction():
        await connection.execute(compose(_LOCK, schema))
        applied = await _applied(connection, schema)
        if applied is not None:
            _refuse_newer(applied, schema)
        missing = [step for step in steps(schema) if (applied or {}).get(step.version) != step.digest]
        missing = [step for step in missing if step.version == _FUNCTIONS_VERSION or step.version not in (applied or {})]
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
    values = sql.SQL(", ").join(map(sql.Literal, (step.version, step.name, step.digest))).as_bytes(None)
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
        SchemaTooNew: it is newer than this code: upgrade pgnotifyq.
        MissingRights: the connected role may not look.
    """
    check_server(connection.info.server_version)
    applied = await _applied(connection, schema)
    if applied is None or not set(applied) - {_FUNCTIONS_VERSION}:
        raise SchemaMissing(f"the database has no schema {schema!r}: run `{migrate_command(schema)}`")
    _refuse_newer(applied, schema)
    version = max(applied)
    if version < code_version():
        message = (
            f"the schema {schema!r} is at version {version} and this code needs {code_version()}: run `{migrate_command(schema)}`"
        )
        raise SchemaOutOfDate(message)
    return version


async def _applied(connection: Connection, schema: str) -> dict[int, str] | None:
    """Return the digest of each version applied, or None where there is no schema."""
    try:
        with translated(schema):
            async with connection.transaction():
                cursor = await connection.execute(compose("select version, digest from {schema}.schema_migrations", schema))
                return dict(await cursor.fetchall())
    except SchemaMissing:
        return None


def _refuse_newer(applied: dict[int, str], schema: str) -> None:
    version = max(applied, default=0)
    if version > code_version():
        message = (
            f"the schema {schema!r} is at version {version}, newer than this code ({code_version()}): "
            "upgrade pgnotifyq; nothing was changed"
        )
        raise SchemaTooNew(message)


def _digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:16]
