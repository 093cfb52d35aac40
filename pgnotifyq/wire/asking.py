"""Ask: a verb of the ledger on a connection of psycopg's, awaited or blocking.

`ask` is the same on trio and on asyncio: which loop waits is the connection's affair
(connection.py, aio.py). `ask_blocking` is its blocking twin. Both share what goes over the wire.

Statements of ours go straight through libpq. psycopg's cursor finds out anew, each time, where a
statement's placeholders are, how each value is written, whether the statement is worth preparing,
and how each column is read. Here the verb knows: placeholders are `$1`, values are the text that
the server reads, results are binary and taken as they come, and a statement is prepared when it is
first used. It spares a quarter of a millisecond of 0.9 when both sides have slept, and 30 to 70
microseconds of CPU in a loop (bench/README.md).

On a connection that is not ours (ours.py), nothing is prepared, and no statement is sent twice.

The rest is psycopg's: its generators drive the exchange, its errors are raised, and connection.py's
rules on cancels hold.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, assert_never

import psycopg
from psycopg import errors, generators, pq
from psycopg.rows import tuple_row

from pgnotifyq.ledger.ask import Aside, Ask, Plan, Script
from pgnotifyq.wire.ours import Ours
from pgnotifyq.wire.plans import follow, follow_blocking
from pgnotifyq.wire.refusals import UNDONE, is_stale_plan, may_repeat

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractAsyncContextManager, AbstractContextManager

    from psycopg.abc import PQGen
    from psycopg.pq.abc import PGconn, PGresult

    from pgnotifyq.ledger.ask import Copy, Verb

T = TypeVar("T")
_AnyConnection: TypeAlias = "psycopg.AsyncConnection[Any] | psycopg.Connection[Any]"

_IDLE = pq.TransactionStatus.IDLE
_OK = (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK)
_BINARY = pq.Format.BINARY
_NO_PIPELINE = pq.PipelineStatus.OFF


async def ask(connection: psycopg.AsyncConnection[Any], verb: Verb[T]) -> T:
    """Ask a verb of the ledger, and return its answer.

    Cancellation: see connection.py. On a connection in autocommit that is still open, the statement
    did not happen.

    Raises:
        psycopg.Error: as a cursor would, if the verb does not say what the error means.
        PgnotifyqError: what the verb makes of the error.
    """
    if type(verb) is not Ask:
        return await follow(Psycopg(connection), verb)
    encoding = connection.info.encoding
    try:
        result = await run(connection, verb.statement, verb.parameters, encoding)
    except Exception as error:
        if verb.on_error is None:
            raise
        return verb.on_error(error)
    return verb.read(result, encoding)


def ask_blocking(connection: psycopg.Connection[Any], verb: Verb[T]) -> T:
    """Do what `ask` does on a blocking connection of psycopg's.

    The connection may be in its owner's transaction.
    """
    if isinstance(verb, Plan):
        return follow_blocking(PsycopgBlocking(connection), verb)
    encoding = connection.info.encoding
    try:
        result = run_blocking(connection, verb.statement, verb.parameters, encoding)
    except Exception as error:
        if verb.on_error is None:
            raise
        return verb.on_error(error)
    return verb.read(result, encoding)


# A plan's steps


class _Link:
    """What a plan can ask about either connection."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection

    @property
    def server_encoding(self) -> str | None:
        encoding: str | None = self.connection.info.parameter_status("server_encoding")
        return encoding

    @property
    def in_pipeline(self) -> bool:
        return bool(self.connection.pgconn.pipeline_status != _NO_PIPELINE)

    def tell(self, aside: Aside) -> Any:
        match aside:
            case Aside.IS_ALONE:
                is_idle = self.connection.pgconn.transaction_status == _IDLE
                return self.connection.autocommit and is_idle and not self.in_pipeline
            case Aside.COMMITS:
                return self.connection.autocommit
            case Aside.COPIES:
                return not self.in_pipeline
            case Aside.SERVER_VERSION:
                return self.connection.info.server_version
            case Aside.PAUSE:
                return None
        assert_never(aside)


class Psycopg(_Link):
    """The link (plans.py) for psycopg's AsyncConnection, and for ours."""

    async def ask(self, verb: Ask[T]) -> T:
        """Ask one statement."""
        return await ask(self.connection, verb)

    def transaction(self) -> AbstractAsyncContextManager[object]:
        """Open psycopg's block."""
        block: AbstractAsyncContextManager[object] = self.connection.transaction()
        return block

    async def say(self, step: Script | Copy) -> None:
        """Send what has no answer."""
        make_cursor = self.connection.own_cursor if isinstance(self.connection, Ours) else psycopg.AsyncCursor
        cursor = make_cursor(self.connection, row_factory=tuple_row)
        try:
            if isinstance(step, Script):
                await cursor.execute(step.text, prepare=False)
                return
            async with cursor.copy(step.statement) as copy:
                for piece in step.pieces:
                    await copy.write(piece)
        except Exception as error:
            if step.on_error is None:
                raise
            step.on_error(error)


class PsycopgBlocking(_Link):
    """The link (plans.py) for psycopg's Connection, and for ours."""

    def ask(self, verb: Ask[T]) -> T:
        """Ask one statement."""
        return ask_blocking(self.connection, verb)

    def transaction(self) -> AbstractContextManager[object]:
        """Open psycopg's block."""
        block: AbstractContextManager[object] = self.connection.transaction()
        return block

    def say(self, step: Script | Copy) -> None:
        """Send what has no answer."""
        cursor = psycopg.Cursor(self.connection, row_factory=tuple_row)
        try:
            if isinstance(step, Script):
                cursor.execute(step.text, prepare=False)
                return
            with cursor.copy(step.statement) as copy:
                for piece in step.pieces:
                    copy.write(piece)
        except Exception as error:
            if step.on_error is None:
                raise
            step.on_error(error)


# One statement


async def _run_in_pipeline(connection: psycopg.AsyncConnection[Any], statement: bytes, values: Sequence[str | None]) -> PGresult:
    """Run a statement within a pipeline of the connection's owner, as psycopg's cursors can."""
    cursor = psycopg.AsyncRawCursor(connection, row_factory=tuple_row)
    await cursor.execute(statement, values, prepare=False, binary=True)
    await cursor.fetchall()
    assert cursor.pgresult is not None
    return cursor.pgresult


def _run_in_pipeline_blocking(connection: psycopg.Connection[Any], statement: bytes, values: Sequence[str | None]) -> PGresult:
    cursor = psycopg.RawCursor(connection, row_factory=tuple_row)
    cursor.execute(statement, values, prepare=False, binary=True)
    cursor.fetchall()
    assert cursor.pgresult is not None
    return cursor.pgresult


async def run(
    connection: psycopg.AsyncConnection[Any], statement: bytes, values: Sequence[str | None], encoding: str | None = None
) -> PGresult:
    """Run one statement and return its rows in binary form.

    The statement is prepared if the connection prepares and if the statement is a transaction of
    its own. In a longer transaction, a pooler that has lost the prepared statement would cost that
    transaction.

    If the statement is a transaction of its own and fails, the server has done nothing of it. So it
    is sent again, whole, in three cases:

    - A pooler has lost the prepared statement. The connection then prepares no more.
    - It was prepared for a table or function that has changed.
    - The server has undone it for the sake of another transaction, and the connection `repeats`.

    Cancellation: see connection.py.

    Raises:
        psycopg.Error: as a cursor would.
        psycopg.DataError: a value contains NUL, which no text of PostgreSQL can.
    """
    if encoding is None:
        encoding = connection.info.encoding
    texts = [_encoded(value, encoding) for value in values]
    if connection.pgconn.pipeline_status != _NO_PIPELINE:
        return await _run_in_pipeline(connection, statement, values)
    async with connection.lock:
        connection._check_connection_ok()
        tries = 0
        while True:
            tries += 1
            try:
                return await connection.wait(_exchange(connection, encoding, statement, texts))
            except psycopg.Error as error:
                if not _is_sent_again(connection, error, tries):
                    raise


def run_blocking(
    connection: psycopg.Connection[Any], statement: bytes, values: Sequence[str | None], encoding: str | None = None
) -> PGresult:
    """Do what `run` does on a blocking connection."""
    if encoding is None:
        encoding = connection.info.encoding
    texts = [_encoded(value, encoding) for value in values]
    if connection.pgconn.pipeline_status != _NO_PIPELINE:
        return _run_in_pipeline_blocking(connection, statement, values)
    with connection.lock:
        connection._check_connection_ok()
        tries = 0
        while True:
            tries += 1
            try:
                return connection.wait(_exchange(connection, encoding, statement, texts))
            except psycopg.Error as error:
                if not _is_sent_again(connection, error, tries):
                    raise


def _is_sent_again(connection: _AnyConnection, error: psycopg.Error, tries: int) -> bool:
    """Tell whether to send a failed statement again, after so many tries.

    If so, the connection has forgotten what it must forget for that.
    """
    if not isinstance(connection, Ours):
        return False
    if isinstance(error, (errors.InvalidSqlStatementName, errors.DuplicatePreparedStatement)):
        was_prepared = connection.prepare_threshold is not None
        connection.prepare_threshold = None
        return was_prepared
    if isinstance(error, errors.FeatureNotSupported):
        if tries > 1 or not is_stale_plan(error) or connection.pgconn.transaction_status != _IDLE:
            return False
        connection.forget_statements()
        return True
    return isinstance(error, UNDONE) and may_repeat(connection, tries)


def _exchange(connection: _AnyConnection, encoding: str, statement: bytes, texts: Sequence[bytes | None]) -> PQGen[PGresult]:
    pgconn = connection.pgconn
    is_alone = connection.autocommit and pgconn.transaction_status == _IDLE
    if is_alone and isinstance(connection, Ours) and connection.prepare_threshold is not None:
        name = connection.statements.get(statement)
        if name is None:
            name = b"pgnotifyq_%012x" % secrets.randbits(48)
            yield from _prepare(pgconn, encoding, name, statement)
            connection.statements[statement] = name
        return (yield from _run_prepared(pgconn, encoding, name, texts))
    if not is_alone:
        yield from connection._start_query()
    return (yield from _run_whole(pgconn, encoding, statement, texts))


def _encoded(value: str | None, encoding: str) -> bytes | None:
    if value is None:
        return None
    if "\0" in value:
        raise psycopg.DataError("PostgreSQL text fields cannot contain NUL (0x00) bytes")
    return value.encode(encoding)


def answer(pgconn: PGconn) -> PQGen[PGresult]:
    """Send what is left of a statement that was handed to libpq by itself, and read its result."""
    return _result(pgconn, "utf-8")


def _prepare(pgconn: PGconn, encoding: str, name: bytes, statement: bytes) -> PQGen[PGresult]:
    pgconn.send_prepare(name, statement)
    return (yield from _result(pgconn, encoding))


def _run_prepared(pgconn: PGconn, encoding: str, name: bytes, texts: Sequence[bytes | None]) -> PQGen[PGresult]:
    pgconn.send_query_prepared(name, texts, result_format=_BINARY)
    return (yield from _result(pgconn, encoding))


def _run_whole(pgconn: PGconn, encoding: str, statement: bytes, texts: Sequence[bytes | None]) -> PQGen[PGresult]:
    pgconn.send_query_params(statement, texts, result_format=_BINARY)
    return (yield from _result(pgconn, encoding))


def _result(pgconn: PGconn, encoding: str) -> PQGen[PGresult]:
    result: PGresult = (yield from generators.execute(pgconn))[-1]
    if result.status not in _OK:
        raise errors.error_from_result(result, encoding)
    return result
