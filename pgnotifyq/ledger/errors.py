"""What PostgreSQL's errors mean here: SQLSTATE to a typed error, and whose error it is.

`whose` is the one place that decides. A statement about particular jobs can fail in four ways, and
each has its answer:

| whose | what it is | what follows |
|---|---|---|
| the job's | its row cannot be written, read, ended, pruned or run | put it aside, tell, go on |
| the session's | it is gone, read-only, or knows an older schema | drop it, then repeat |
| the server's | busy, full, starting, out of reach, a deadlock, a deadline | wait, then repeat |
| ours | a missing schema or right, a bug | the worker ends, loudly |

Class 42 (a table or right that is missing) reads as ours, but a trigger of the user's can raise it,
too. Some SQL functions fall back to one row at a time. They take an error of a row's own
subtransaction as the row's, unless the error is of the server's classes.
"""

from __future__ import annotations

import functools
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NoReturn

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
    from collections.abc import Callable, Iterator

# Raised by our own functions and triggers (sql/migrations/0002_wakeups.sql,
# sql/functions/enqueue/enqueue.sql).
ILLEGAL_TRANSITION = "PNQ01"
INVALID_JOB = "PNQ02"
SCHEMA_DEFAULT = "pgnotifyq"


class Whose(StrEnum):
    """Whose error it is."""

    JOB = "job"
    SESSION = "session"
    SERVER = "server"
    OURS = "ours"


# SQLSTATEs, or their first two or three characters. The longest that fits decides.
_BY_STATE: dict[str, Whose] = {
    "08": Whose.SESSION,  # connection exceptions
    "25": Whose.SESSION,  # an aborted or read-only transaction; an idle session that was ended
    "26": Whose.SESSION,  # a prepared statement that a pooler has lost
    "42P05": Whose.SESSION,  # a prepared statement that the session has already
    "57P": Whose.SESSION,  # the server ends the session: shutdown, crash, terminated
    "57P03": Whose.SERVER,  # the server is starting
    "28": Whose.SERVER,  # authentication: a password that is being changed
    "3D": Whose.SERVER,  # the database is not there, as while it is restored
    "40": Whose.SERVER,  # deadlock, serialization failure
    "53": Whose.SERVER,  # disk full, out of memory, too many connections
    "55": Whose.SERVER,  # a lock that could not be had, an object in use
    "57": Whose.SERVER,  # a statement timeout; our own cancels are trio's
    "58": Whose.SERVER,  # input and output of the server's
    "3F": Whose.OURS,  # no such schema
    "42": Whose.OURS,  # no such table or function, no right to it, wrong SQL
    "F0": Whose.OURS,  # the server's configuration
}
# The function of the server that raises "cached plan must not change result type". The SQLSTATE of
# that error is 0A000, as for other unsupported features.
_STALE_PLAN = "RevalidateCachedQuery"


def whose(error: BaseException) -> Whose:
    """Return whose error it is: see the table at the head of this file.

    Three kinds of errors are the job's: what PostgreSQL says of values (classes 21 to 23, 54), what
    triggers of the user's raise (P0, states of their own), and what Python cannot decode.
    """
    if isinstance(error, DatabaseUnreachable):
        return Whose.SERVER
    if not isinstance(error, psycopg.Error):
        is_value = isinstance(error, (UnicodeError, ValueError, OverflowError, RecursionError))
        return Whose.JOB if is_value else Whose.OURS
    state = error.sqlstate
    if state is None:
        return Whose.SESSION if isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError)) else Whose.JOB
    if state == "0A000" and error.diag.source_function == _STALE_PLAN:
        return Whose.SESSION
    for length in (5, 3, 2):
        if (found := _BY_STATE.get(state[:length])) is not None:
            return found
    return Whose.JOB


def is_of_a_row(error: BaseException) -> bool:
    """Tell whether a batch may have failed over one of its rows.

    Then it is worth trying each row apart.

    An error that reads as ours may be a row's, too: if a trigger of the user's misses a table,
    PostgreSQL says the same as if our schema were not there.
    """
    return isinstance(error, psycopg.Error) and whose(error) in {Whose.JOB, Whose.OURS}


def is_passing(error: BaseException) -> bool:
    """Tell whether the same statement may succeed later, in this session or another."""
    return whose(error) in {Whose.SESSION, Whose.SERVER}


def migrate_command(schema: str) -> str:
    """Return what to type to migrate a schema."""
    return "python -m pgnotifyq migrate" + ("" if schema == SCHEMA_DEFAULT else f" --schema {schema}")


@functools.cache
def said_of(schema: str) -> Callable[[Exception], Any]:
    """Return a verb's `on_error`, which does what `raise_translated` does.

    It never returns an answer.
    """

    def say(error: Exception) -> Any:
        raise_translated(error, schema)

    return say


@contextmanager
def translated(schema: str) -> Iterator[None]:
    """Turn errors of a block that say something about the caller into errors of ours.

    See `raise_translated`.
    """
    try:
        yield
    except Exception as error:  # noqa: BLE001  # raised again
        raise_translated(error, schema)


def raise_translated(error: Exception, schema: str) -> NoReturn:
    """Raise an error of ours if `error` says something about the caller; else `error` itself.

    Raises:
        SchemaMissing: the schema, or something in it, is not there.
        MissingRights: the connected role may not do this.
        IllegalTransition: the job's status does not allow it.
        InvalidJob: a name or number was refused, or a text has NUL in it.
        InvalidPayload: the JSON is not one that PostgreSQL can store.
    """
    if isinstance(error, UnicodeEncodeError):
        message = f"the connection's encoding, {error.encoding}, lacks a character of it; open yours with client_encoding=utf8"
        raise InvalidPayload(f"this job cannot be sent: {message}") from error
    if not isinstance(error, psycopg.Error):
        raise error
    said = error.diag.message_primary
    if isinstance(error, (errors.UndefinedTable, errors.UndefinedFunction, errors.InvalidSchemaName, errors.UndefinedColumn)):
        message = f"the schema {schema!r} is missing or not up to date ({said}): run `{migrate_command(schema)}`"
        raise SchemaMissing(message) from error
    if isinstance(error, errors.InsufficientPrivilege):
        message = f"the connected role lacks a right: {said}; grant it, or connect as another role"
        raise MissingRights(message) from error
    if isinstance(error, (errors.UntranslatableCharacter, errors.InvalidTextRepresentation)):
        raise InvalidPayload(f"PostgreSQL cannot store this payload: {said}") from error
    # psycopg refuses NUL before it sends anything; other drivers let the server do so.
    if isinstance(error, errors.CharacterNotInRepertoire) or (error.sqlstate is None and "NUL" in str(error)):
        raise InvalidJob("a text has the character NUL in it, which PostgreSQL cannot store: take it out") from error
    hint = f"; {error.diag.message_hint}" if error.diag.message_hint else ""
    if error.sqlstate == ILLEGAL_TRANSITION:
        raise IllegalTransition(f"{said}{hint}") from error
    if error.sqlstate == INVALID_JOB:
        raise InvalidJob(f"{said}{hint}") from error
    raise error
