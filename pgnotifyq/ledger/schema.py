"""Bring a database's schema to the version of this code.

`sql/migrations/NNNN_*.sql` are applied once each, in order; `sql/functions/*/*.sql` are applied
again whenever their text has changed. All of it is one transaction under an advisory lock. So if
two programs migrate at once, the steps are applied once; and a failure leaves nothing behind. If a
release changes a function, it ships with a migration, so that older code never replaces the
function.

In every deploy, code and schema differ for a while. So a schema says the oldest code that may run
on it: `oldest_code` of its migrations, which is the schema version that the code was written for.
Code of that age works on the schema, and the `migrate` of that code leaves the schema alone.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import attrs

from pgnotifyq.ledger import roles
from pgnotifyq.ledger.ask import Aside, Ask, Plan, Script, nothing
from pgnotifyq.ledger.columns import rows
from pgnotifyq.ledger.errors import migrate_command, said_of
from pgnotifyq.ledger.statements import bookkeeping, call, compose, files, with_values
from pgnotifyq.model.errors import ConfigError, DatabaseTooOld, SchemaMissing, SchemaOutOfDate, SchemaTooNew

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pgnotifyq.ledger.ask import Answer, Steps

# The oldest code that runs on this schema. A migration that only adds does not raise this number. A
# migration raises it if it takes something away, or gives a name another meaning. Then workers of
# the release before must be stopped first. 9: older code does not ask for this number.
OLDEST_CODE = 9

# 15: it has security_invoker views, and the plans are tested on its planner (of `merge`'s era).
SERVER_VERSION_MIN = 150_000

_ROLE_VERSION = 3  # the migration that wants the role of tenants
_FUNCTIONS_VERSION = 0  # the row that remembers the digest of sql/functions


@attrs.frozen(kw_only=True)
class Step:
    """One piece of SQL that a migration runs."""

    version: int  # of the migration; 0 for the functions, which come last
    name: str
    text: bytes  # composed for the schema
    digest: str  # of the file


def code_version() -> int:
    """Return the schema version that this code is written for."""
    return max(int(name.split("_")[0]) for name, _ in files("migrations"))


def steps(schema: str) -> list[Step]:
    """Return every step from an empty database to this code's version, in order."""
    made = []
    for name, text in files("migrations"):
        composed = compose(text, schema)
        version = int(name.split("_")[0])
        whole = bookkeeping("make_role", schema) + composed if version == _ROLE_VERSION else composed
        made.append(Step(version=version, name=name, text=whole, digest=_digest(composed)))
    functions = b"\n".join(compose(text, schema) for _, text in files("functions"))
    made.append(Step(version=_FUNCTIONS_VERSION, name="functions", text=functions, digest=_digest(functions)))
    return made


def migrate(schema: str = "pgnotifyq", *, dry_run: bool = False) -> Plan[list[Step]]:
    """Apply what is missing, and return the steps applied.

    With `dry_run`, apply nothing, and return the steps that would be applied.

    Cancellation: rolls back; nothing is applied.

    Raises:
        DatabaseTooOld: the server is older than PostgreSQL 15.
        SchemaTooNew: the schema was migrated by newer code, and this code cannot run on it; nothing
            is touched.
        MissingRights: the role may not create what is needed.
        ConfigError: the schema belongs to another program: it has tables of our names.

    Source: sql/bookkeeping, sql/migrations, sql/functions
    """

    def check() -> Steps[list[Step]]:
        check_server((yield Aside.SERVER_VERSION))
        done: list[Step] = yield Plan(apply, is_whole=True)
        return done

    def apply() -> Steps[list[Step]]:
        yield Script(bookkeeping("lock", schema), said_of(schema))
        applied: dict[int, _Applied] | None = yield _look(schema)
        if applied is None:
            yield _refuse_foreign(schema)
            applied = {}
        elif _is_newer(applied, schema):
            # The schema may stay as it is. An older function must not replace a newer one.
            return []
        missing = [step for step in steps(schema) if step.version not in applied or step.digest != applied[step.version].digest]
        missing = [step for step in missing if step.version == _FUNCTIONS_VERSION or step.version not in applied]
        if dry_run:
            return missing
        say = said_of(schema)
        if missing:
            yield Script(bookkeeping("begin", schema), say)
        for step in missing:
            yield Script(step.text, say)
            values = (str(step.version), step.name, step.digest, str(OLDEST_CODE))
            yield Ask(bookkeeping("note", schema), values, nothing, say)
        # Done each time: roles belong to the server, so a restored dump may lack their grants.
        yield roles.keep(schema)
        return missing

    return Plan(check)


def as_script(missing: Sequence[Step], schema: str) -> str:
    """Return steps as one transaction for psql.

    It does what `migrate` would have done, its notes included.
    """
    parts = [b"begin;", bookkeeping("lock", schema).strip(), bookkeeping("begin", schema).strip()]
    for step in missing:
        parts += [f"-- {step.name}".encode(), step.text.strip(), _note(step, schema)]
    return b"\n\n".join([*parts, call("keep_roles", "", schema) + b";", b"commit;"]).decode()


def _note(step: Step, schema: str) -> bytes:
    """Return the statement that notes a step as applied, with its values written out."""
    return with_values(bookkeeping("note", schema), (step.version, step.name, step.digest, OLDEST_CODE))


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


def check_schema(schema: str = "pgnotifyq") -> Plan[int]:
    """Return the schema's version when this code can work with it.

    Raises:
        DatabaseTooOld: the server is older than PostgreSQL 15.
        SchemaMissing: there is none: run `migrate`.
        SchemaOutOfDate: it is older than this code: run `migrate`.
        SchemaTooNew: it is newer than this code, and code as old as this cannot run on it: upgrade
            pgnotifyq.
        MissingRights: the connected role may not look.
    """

    def check() -> Steps[int]:
        check_server((yield Aside.SERVER_VERSION))
        applied: dict[int, _Applied] | None = yield _look(schema)
        if applied is None or not set(applied) - {_FUNCTIONS_VERSION}:
            raise SchemaMissing(f"the database has no schema {schema!r}: run `{migrate_command(schema)}`")
        version = max(applied)
        if not _is_newer(applied, schema) and version < code_version():
            message = f"the schema {schema!r} is at version {version} and this code needs {code_version()}: run `{migrate_command(schema)}`"
            raise SchemaOutOfDate(message)
        return version

    return Plan(check)


@attrs.frozen
class _Applied:
    """What is noted of a migration."""

    digest: str
    oldest_code: int | None  # None: noted by code that did not say


def _look(schema: str) -> Plan[dict[int, _Applied] | None]:
    """Return what is noted of each version applied, or None where there is no schema of ours."""

    def look() -> Steps[dict[int, _Applied]]:
        noted: dict[int, _Applied] = yield Ask(bookkeeping("applied", schema), (), _read_applied, said_of(schema))
        return noted

    def find() -> Steps[dict[int, _Applied] | None]:
        try:
            # The look has a transaction of its own, or a savepoint. If it fails, the transaction
            # around it goes on.
            noted: dict[int, _Applied] = yield Plan(look, is_whole=True)
        except SchemaMissing:
            return None
        return noted

    return Plan(find)


def _read_applied(answer: Answer, encoding: str) -> dict[int, _Applied]:
    return {version: _Applied(*noted) for version, *noted in rows(answer, encoding)}


def _refuse_foreign(schema: str) -> Ask[None]:
    """Refuse a schema in which another program keeps tables of our names."""

    def read(answer: Answer, encoding: str) -> None:
        found = rows(answer, encoding)
        if found:
            table = found[0][0]
            message = f"the schema {schema!r} belongs to another program: it has a table {table}; use another schema (--schema)"
            raise ConfigError(message)

    return Ask(bookkeeping("strangers", schema), (schema,), read)


def _is_newer(applied: dict[int, _Applied], schema: str) -> bool:
    """Tell whether a schema is newer than this code, and this code may run on it.

    Raises:
        SchemaTooNew: the schema is newer, and this code may not run on it.
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
