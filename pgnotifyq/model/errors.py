"""One class for each situation that a caller can be in.

A message says what happened, the value, and what to do next.

The classes are a tree, so that a program can catch one situation or all of a kind:

    PgnotifyqError
    ├── Refused                       what the caller gave is refused, and nothing was done
    │   ├── ConfigError
    │   ├── InvalidName
    │   ├── InvalidJob
    │   │   └── InvalidPayload
    │   │       └── PayloadTooLarge
    │   │           └── StateTooLarge
    │   ├── UnknownJobType
    │   ├── HandlerAlreadyRegistered
    │   └── AppNotFound
    ├── DatabaseError                 the database cannot be used
    │   ├── DatabaseUnreachable
    │   ├── NoDatabase
    │   ├── DatabaseTooOld
    │   ├── MissingRights
    │   └── PoolTimeout
    │       └── ConnectionsTaken
    ├── SchemaError                   the database can be used, but our schema in it cannot
    │   ├── SchemaMissing
    │   ├── SchemaOutOfDate
    │   └── SchemaTooNew
    ├── ClientError                   the client cannot be used here, or not any more
    │   ├── ClientClosed
    │   └── WrongLoop
    ├── JobNotFound                   from here on: situations of one job, or of one schedule
    ├── ScheduleNotFound
    ├── JobDead
    ├── WaitTimeout
    ├── UniqueKeyHeld
    ├── IllegalTransition
    ├── PayloadUndecodable
    ├── LeaseLost
    ├── JobCancelled
    ├── TransactionAborted
    ├── TransactionRefused
    ├── TransactionLeft
    ├── LifespanFailed                a worker's resources could not be made, or not be closed
    ├── HandlerProcessDied
    ├── RaisedInProcess
    ├── OrgConfigUnfit                from here on: situations of one tenant
    ├── CredentialNotFound
    ├── CredentialSealed
    └── UnsupportedPsycopg            raised by `import pgnotifyq`; an ImportError, too

`testing.NoDatabaseInTest` and `testing.JobFailed` are two more, for tests. If PostgreSQL refuses a
statement, psycopg's error comes through as it is.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgnotifyq.model.job import DeadLetter, JobId


class PgnotifyqError(Exception):
    """The base of every error of this package."""


class Refused(PgnotifyqError):
    """What the caller gave is refused, and nothing was done: change it."""


class ConfigError(Refused):
    """A setting is out of its bounds, or two settings contradict each other."""


class InvalidName(Refused):
    """A queue, job type or schema name does not fit its pattern."""


class InvalidJob(Refused):
    """A field of a job to enqueue is out of range."""


class InvalidPayload(InvalidJob):
    """A payload is not JSON that PostgreSQL can store."""


class PayloadTooLarge(InvalidPayload):
    """A payload is larger than the limit."""


class StateTooLarge(PayloadTooLarge):
    """What a handler saves is larger than the limit. The state that was saved before stays."""


class UnknownJobType(Refused):
    """No handler is registered for the job's type."""


class HandlerAlreadyRegistered(Refused):
    """A second handler was registered for a type."""


class AppNotFound(Refused):
    """The registry named by --app cannot be imported."""


class DatabaseError(PgnotifyqError):
    """The database cannot be used.

    It is not there, it is too old, it does not give us the rights, or it gives no connection.
    """


class DatabaseUnreachable(DatabaseError):
    """No server answered at the address given."""


class NoDatabase(DatabaseError):
    """No address was given and the embedded server is not installed."""


class DatabaseTooOld(DatabaseError):
    """The server is older than PostgreSQL 15."""


class MissingRights(DatabaseError):
    """The connected role may not do what was asked."""


class PoolTimeout(DatabaseError):
    """No connection of the pool became free in time."""


class ConnectionsTaken(PoolTimeout):
    """All of a worker's connections for handlers were taken.

    If the handler lets this error through, the job is put back, and its attempt does not count.
    """


class SchemaError(PgnotifyqError):
    """The database can be used, but not with our schema as it is: migrate, or upgrade the code."""


class SchemaMissing(SchemaError):
    """The database has no schema of ours: it was never migrated."""


class SchemaOutOfDate(SchemaError):
    """The schema is older than this code: migrate it."""


class SchemaTooNew(SchemaError):
    """The schema is newer than this code: upgrade the code."""


class ClientError(PgnotifyqError):
    """The client, or another part of this package, cannot be used here, or not any more."""


class ClientClosed(ClientError):
    """The client was used after its block of `open_client` had been left."""

    def __init__(self, message: str = "The client is closed. Use it inside of its `with open_client(...)` block.") -> None:
        super().__init__(message)


class WrongLoop(ClientError):
    """What was called or opened needs another event loop: trio's, asyncio's, or its own."""


class JobNotFound(PgnotifyqError):
    """There is no such job (of this tenant)."""


class ScheduleNotFound(PgnotifyqError):
    """There is no such schedule (of this tenant)."""


class JobDead(PgnotifyqError):
    """The job that was waited for went to the dead letters. `dead_letter` is its letter."""

    def __init__(self, message: str, dead_letter: DeadLetter) -> None:
        super().__init__(message)
        self.dead_letter = dead_letter


class WaitTimeout(PgnotifyqError):
    """The job has not ended within the time given; it goes on."""


class UniqueKeyHeld(PgnotifyqError):
    """Another job holds the unique key, so a second one cannot be enqueued or restored.

    `job_id` is the job that holds it, if that is known.
    """

    def __init__(self, message: str, job_id: JobId | None = None) -> None:
        super().__init__(message)
        self.job_id = job_id


class IllegalTransition(PgnotifyqError):
    """The job's status does not allow what was asked."""


class PayloadUndecodable(PgnotifyqError):
    """A stored payload does not fit the type that the handler asks for."""


class LeaseLost(PgnotifyqError):
    """The execution no longer holds the job, so nothing of it may be written."""


class JobCancelled(PgnotifyqError):
    """The job was cancelled before its transaction committed."""


class TransactionAborted(PgnotifyqError):
    """An earlier error has aborted the caller's own transaction, so nothing was asked.

    First roll the transaction back, or roll it back to a savepoint.
    """


class TransactionRefused(PgnotifyqError):
    """A job's transaction was opened in another one of the job, or would complete the job twice."""


class TransactionLeft(PgnotifyqError):
    """A handler ended its job's transaction by hand, within the block.

    Statements after that would not be fenced.
    """


class LifespanFailed(PgnotifyqError):
    """A lifespan of the registry's raised at its start, or when it was closed."""


class HandlerProcessDied(PgnotifyqError):
    """The process of a handler died before the handler had returned: a crash, or lack of memory."""


class RaisedInProcess(PgnotifyqError):
    """A handler raised in its process.

    The handler's middleware sees this error. The text is what the handler raised: its type, its
    message and its traceback.
    """


class OrgConfigUnfit(PgnotifyqError):
    """A tenant's settings do not fit the type that the handler asks for."""


class CredentialNotFound(PgnotifyqError):
    """The tenant has no credential of this name."""


class CredentialSealed(PgnotifyqError):
    """A stored credential does not open: its key is not here, or its row was changed or moved."""


class UnsupportedPsycopg(PgnotifyqError, ImportError):
    """The installed psycopg lacks a name that this package needs."""


TEXT_CHARS_MAX = 20_000  # of an exception's text; what is stored is shorter still


def text_of(error: BaseException) -> str:
    """Return an exception's text, also if its own __str__ raises. Never raises.

    Exceptions of users' code cannot be trusted. A long text keeps its beginning and its end.
    """
    try:
        text = "".join((str(error),))  # exactly a str: a subclass of it is the user's code, too
    except BaseException as second:  # noqa: BLE001  # __str__ is the user's, and may raise anything
        return f"(its text cannot be had: __str__ raised {name_of(second)})"
    if len(text) > TEXT_CHARS_MAX:
        text = f"{text[: TEXT_CHARS_MAX // 2]}{text[-TEXT_CHARS_MAX // 2 :]}"
    return text


def first_line_of(error: BaseException) -> str:
    """Return the first line of an exception's text; if the text is blank, its type. Never raises.

    An error of psycopg's may have no text, for example if a connection ended in mid-word.
    """
    return next((line for line in text_of(error).splitlines() if line.strip()), name_of(error))


def name_of(error: BaseException) -> str:
    """Return the name of an exception's type. Never raises."""
    # A metaclass of the user's may answer `type(error).__name__`. This reads what the type keeps.
    return str(_name_of_type(type(error)))


_name_of_type = type.__dict__["__name__"].__get__


def quietly(say: Callable[..., object], *arguments: object, **details: object) -> None:
    """Call a function that writes to the application's log or stream, and let no error out.

    A log that fails stops no work.
    """
    # A handler or a filter of the log may raise anything, and nobody is left to tell.
    with suppress(BaseException):
        say(*arguments, **details)
