"""What PostgreSQL's errors mean here: SQLSTATE to a typed error, and which failures pass if one tries again."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import psycopg
from psycopg import errors

from pgnotifyq.model.errors import (
    DatabaseUnreachable,
    IllegalTransition,
    InvalidJob,
    InvalidPayload,
    MissingRights,
    SchemaMissing,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

# Raised by our own functions and triggers (sql/migrations/0002_wakeups.sql, sql/functions/enqueue.sql).
ILLEGAL_TRANSITION = "PNQ01"
INVALID_JOB = "PNQ02"
SCHEMA_DEFAULT = "pgnotifyq"

_PASSING = (
    errors.DeadlockDetected,
    errors.SerializationFailure,
    errors.LockNotAvailable,
    errors.QueryCanceled,  # a statement timeout; our own cancels are trio's
    errors.ReadOnlySqlTransaction,  # the server is being failed over
    errors.DiskFull,
    errors.InFailedSqlTransaction,
)


def is_passing(error: BaseException) -> bool:
    """Tell whether the same statement may succeed later: the connection is gone, or the server is busy, full or turning."""
    if isinstance(error, (DatabaseUnreachable, psycopg.OperationalError, psycopg.InterfaceError)):
        return True
    return isinstance(error, _PASSING)


def migrate_command(schema: str) -> str:
    """Return what to type to migrate a schema."""
    return "python -m pgnotifyq migrate" + ("" if schema == SCHEMA_DEFAULT else f" --schema {schema}")


@contextmanager
def translated(schema: str) -> Iterator[None]:
    """Turn the errors that say something about the caller into errors of ours; let the rest pass.

    Raises:
        SchemaMissing: the schema, or something in it, is not there.
        MissingRights: the connected role may not do this.
        IllegalTransition: the job's status does not allow it.
        InvalidJob: a name or number was refused.
        InvalidPayload: the JSON is not one that PostgreSQL can store.
    """
    try:
        yield
    except (errors.UndefinedTable, errors.UndefinedFunction, errors.InvalidSchemaName, errors.UndefinedColumn) as error:
        message = (
            f"the schema {schema!r} is missing or not up to date ({error.diag.message_primary}): run `{migrate_command(schema)}`"
        )
        raise SchemaMissing(message) from error
    except errors.InsufficientPrivilege as error:
        message = f"the connected role lacks a right: {error.diag.message_primary}; grant it, or connect as another role"
        raise MissingRights(message) from error
    except (errors.UntranslatableCharacter, errors.InvalidTextRepresentation) as error:
        raise InvalidPayload(f"PostgreSQL cannot store this payload: {error.diag.message_primary}") from error
    except psycopg.Error as error:
        hint = f"; {error.diag.message_hint}" if error.diag.message_hint else ""
        message = f"{error.diag.message_primary}{hint}"
        if error.sqlstate == ILLEGAL_TRANSITION:
            raise IllegalTransition(message) from error
        if error.sqlstate == INVALID_JOB:
            raise InvalidJob(message) from error
        raise
