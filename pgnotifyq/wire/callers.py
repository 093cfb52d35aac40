"""A connection of the caller's own: a verb of the ledger, asked in a transaction that is not ours.

kinds.py tells what the caller has. The rules of this file:

- If an object of a library holds the connection, the object is asked for it in the way in which the
  library begins its own transaction. Then the driver's connection is asked the verb. So the
  statement is in the transaction that the library will commit.
- Nothing of the caller's is committed, rolled back, or changed: no codec, no row factory, no
  adapter, no setting. asyncpg keeps the statement in its cache, as any other.
- A job is checked before anything is sent. So a refused job costs the transaction nothing. Only a
  database in another encoding than UTF-8 can lack a character of the job. There the verb goes into
  a savepoint. Elsewhere the verb goes into one if the caller wants it: a savepoint costs two round
  trips a job, and it is not good to have hundreds of subtransactions.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, assert_never

from psycopg import pq

from pgnotifyq.model.errors import TransactionAborted
from pgnotifyq.wire.asking import Psycopg, PsycopgBlocking
from pgnotifyq.wire.drivers import Asyncpg, Psycopg2
from pgnotifyq.wire.kinds import Kind, kind_of
from pgnotifyq.wire.plans import follow, follow_blocking, in_savepoint
from pgnotifyq.wire.words import sqlstate_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pgnotifyq.ledger.ask import Verb
    from pgnotifyq.wire.kinds import CallersConnection
    from pgnotifyq.wire.plans import Link

T = TypeVar("T")

_LACK_NOTHING = {"UTF8", "SQL_ASCII", None}  # encodings of a database that take any character
_IN_FAILED_TRANSACTION = "25P02"


async def ask_on(connection: CallersConnection, verb: Verb[T], *, savepoint: bool = False) -> T:
    """Ask a verb on a connection of the caller's, within its open transaction if there is one.

    With `savepoint`, an open transaction goes on if the database refuses the verb. A blocking
    connection holds up the event loop for as long as the verb's round trips take.

    Cancellation: as the driver has it. In a transaction, roll back: PostgreSQL has aborted it.

    Raises:
        TypeError: `connection` is of no kind that is taken, or belongs to another door; the message
            says which.
        TransactionAborted: the caller's transaction was aborted before; nothing was asked.
        PgnotifyqError: what the verb makes of an error.
    """
    kind = kind_of(connection)
    if kind.is_blocking:
        return ask_on_blocking(connection, verb, savepoint=savepoint)
    given: Any = connection
    _check_loop(kind)
    with _aborted_is_told():
        match kind:
            case Kind.TRIO | Kind.PSYCOPG_ASYNC | Kind.ASYNCPG:
                return await _ask_driver(given, verb, savepoint)
            case Kind.SQLALCHEMY_ASYNC_SESSION:
                return await _ask_driver(await (await given.connection()).run_sync(_begun), verb, savepoint)
            case Kind.SQLALCHEMY_ASYNC_CONNECTION:
                return await _ask_driver(await given.run_sync(_begun), verb, savepoint)
    raise AssertionError(kind)


def ask_on_blocking(connection: CallersConnection, verb: Verb[T], *, savepoint: bool = False) -> T:
    """Do what `ask_on` does, on a blocking connection.

    Within SQLAlchemy's `run_sync`, the session or connection that `run_sync` hands over is taken,
    too.

    Raises: as `ask_on`.
    """
    kind = kind_of(connection)
    given: Any = connection
    with _aborted_is_told():
        match kind:
            case Kind.PSYCOPG | Kind.PSYCOPG2:
                return _ask_driver_blocking(given, verb, savepoint)
            case Kind.SQLALCHEMY_SESSION:
                _check_can_wait(given)
                return _ask_driver_blocking(_begun(given.connection()), verb, savepoint)
            case Kind.SQLALCHEMY_CONNECTION:
                _check_can_wait(given)
                return _ask_driver_blocking(_begun(given), verb, savepoint)
            case Kind.DJANGO:
                with given.wrap_database_errors:
                    return _ask_driver_blocking(_django_driver(given), verb, savepoint)
            case Kind.TRIO:
                door = "pgnotifyq.open_client, on trio"
            case Kind.PSYCOPG_ASYNC | Kind.ASYNCPG | Kind.SQLALCHEMY_ASYNC_CONNECTION | Kind.SQLALCHEMY_ASYNC_SESSION:
                door = "pgnotifyq.aio.open_client, on asyncio"
            case _:
                assert_never(kind)
    raise TypeError(f"{kind.value} cannot be waited for here: pass it to a client of {door}")


def _check_loop(kind: Kind) -> None:
    trio = sys.modules.get("trio")
    is_trio = trio is not None and trio.lowlevel.in_trio_run()
    if is_trio and kind is not Kind.TRIO:
        raise TypeError(f"{kind.value} is driven by asyncio, and this is trio: pass it to a client of pgnotifyq.aio.open_client")
    if not is_trio and kind is Kind.TRIO:
        raise TypeError(f"{kind.value} is driven by trio, and this is not: pass it to a client of pgnotifyq.open_client")


def _check_can_wait(given: Any) -> None:
    """Refuse what an AsyncSession or AsyncConnection holds, outside of its `run_sync`.

    SQLAlchemy would raise MissingGreenlet, and leave the session in a transaction without a
    connection.
    """
    from sqlalchemy.exc import UnboundExecutionError
    from sqlalchemy.util.concurrency import in_greenlet

    is_session = hasattr(given, "get_bind")
    try:
        engine = given.get_bind() if is_session else given
    except UnboundExecutionError:  # it has several engines, or none; the next call tells
        return
    if engine.dialect.is_async and not in_greenlet():
        inner, outer = ("sync_session", "AsyncSession") if is_session else ("sync_connection", "AsyncConnection")
        raise TypeError(f"connection is the {inner} of an {outer}, which cannot be waited for here: pass the {outer} itself")


# What holds a connection


def _begun(connection: Any) -> Any:
    """Begin the transaction of SQLAlchemy's Connection, unless it has begun; return the driver's.

    SQLAlchemy must know of the transaction, or its `commit` would do nothing. On asyncpg,
    SQLAlchemy begins the transaction only when the first statement goes through SQLAlchemy. So here
    one does.
    """
    if not connection.in_transaction():
        connection.begin()
    driver = connection.connection.driver_connection
    if kind_of_driver(driver, connection.dialect.driver) is Kind.ASYNCPG and not driver.is_in_transaction():
        connection.exec_driver_sql("select 1")
    return driver


def kind_of_driver(driver: object, name: str) -> Kind:
    """Tell what a library's connection is driven by.

    Raises:
        TypeError: the driver is none that is taken.
    """
    try:
        kind = kind_of(driver)
    except TypeError:
        kind = None
    if kind not in {Kind.PSYCOPG, Kind.PSYCOPG_ASYNC, Kind.PSYCOPG2, Kind.ASYNCPG}:
        raise TypeError(f"the connection is driven by {name}: use psycopg, psycopg2 or asyncpg")
    return kind


def driver_of(connection: Any) -> Any:
    """Return the driver's connection that an open one of SQLAlchemy's or Django's holds."""
    match kind_of(connection):
        case Kind.SQLALCHEMY_CONNECTION:
            return connection.connection.driver_connection
        case Kind.DJANGO:
            return connection.connection
    return connection


def is_in_transaction(driver: Any) -> bool:
    """Tell whether a driver's connection has a transaction open, aborted ones included."""
    match kind_of(driver):
        case Kind.ASYNCPG:
            is_open: bool = driver.is_in_transaction()
            return is_open
        case Kind.PSYCOPG2:
            return bool(driver.get_transaction_status() != pq.TransactionStatus.IDLE)
    return bool(driver.pgconn.transaction_status != pq.TransactionStatus.IDLE)


def _django_driver(connection: Any) -> Any:
    connection.validate_thread_sharing()
    connection.validate_no_broken_transaction()
    connection.ensure_connection()
    return connection.connection


# Asking the driver


async def _ask_driver(driver: Any, verb: Verb[T], savepoint: bool) -> T:
    link = Asyncpg(driver) if kind_of(driver) is Kind.ASYNCPG else Psycopg(driver)
    return await follow(link, _framed(verb, link, savepoint))


def _ask_driver_blocking(driver: Any, verb: Verb[T], savepoint: bool) -> T:
    kind = kind_of(driver)
    if kind.is_blocking:
        link = Psycopg2(driver) if kind is Kind.PSYCOPG2 else PsycopgBlocking(driver)
        return follow_blocking(link, _framed(verb, link, savepoint))
    from sqlalchemy.util import await_only

    answer: T = await_only(_ask_driver(driver, verb, savepoint))
    return answer


def _framed(verb: Verb[T], link: Link, savepoint: bool) -> Verb[T]:
    """Return a verb in a savepoint, if one is wanted or the database may lack a character of it."""
    if savepoint and link.in_pipeline:
        raise TypeError("connection is in a pipeline, which an error aborts as a whole: leave it, or do without savepoint=True")
    return in_savepoint(verb) if savepoint or link.server_encoding not in _LACK_NOTHING else verb


@contextmanager
def _aborted_is_told() -> Iterator[None]:
    """Raise one error for a transaction that was aborted before, whichever library found it."""
    try:
        yield
    except TransactionAborted:
        raise
    except Exception as error:
        if sqlstate_of(error) != _IN_FAILED_TRANSACTION and type(error).__name__ not in _TOLD_BY_LIBRARIES:
            raise
        message = "the connection's transaction was aborted by an error before: roll it back, or to a savepoint, first"
        raise TransactionAborted(message) from error


# SQLAlchemy's error, of a session whose flush has failed; Django's, of an `atomic` block.
_TOLD_BY_LIBRARIES = frozenset({"PendingRollbackError", "TransactionManagementError"})
