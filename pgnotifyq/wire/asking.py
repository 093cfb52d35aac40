"""Ask: a verb of the ledger on a connection, on trio and on a blocking connection of psycopg.

Statements of ours go straight through libpq. psycopg's cursor finds out anew, each time, where a
statement's placeholders are, how each value is written, whether the statement is worth preparing,
and how each column is read. Here the verb knows: placeholders are `$1`, values are the text that
the server reads, results are binary and taken as they come, and a statement is prepared when it is
first used. It spares a quarter of a millisecond of 0.9 when both sides have slept, and 30 to 70
microseconds of CPU in a loop (bench/README.md).

The rest is psycopg's: its generators drive the exchange, its errors are raised, and connection.py's
rules on cancels hold.
"""

from __future__ import annotations

import secrets
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, TypeVar, assert_never

import psycopg
import trio
from psycopg import errors, generators, pq
from psycopg.rows import tuple_row

from pgnotifyq.ledger.ask import Aside, Ask, Plan, Script
from pgnotifyq.wire.connection import Cursor
from pgnotifyq.wire.refusals import UNDONE, is_stale_plan, may_repeat

if TYPE_CHECKING:
    from collections.abc import Sequence

    from psycopg.abc import PQGen
    from psycopg.pq.abc import PGconn, PGresult

    from pgnotifyq.ledger.ask import Step, Steps, Verb
    from pgnotifyq.wire.connection import Connection

T = TypeVar("T")

_IDLE = pq.TransactionStatus.IDLE
_OK = (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK)
_BINARY = pq.Format.BINARY
_VERBS = (Ask, Plan)
_NO_PIPELINE = pq.PipelineStatus.OFF


async def ask(connection: Connection[Any], verb: Verb[T]) -> T:
    """Ask a verb of the ledger, and return its answer.

    Cancellation: see connection.py. On a connection in autocommit that is still open, the statement
    did not happen.

    Raises:
        psycopg.Error: as a cursor would, where the verb does not say what it means.
        PgnotifyqError: what the verb makes of it.
    """
    if type(verb) is not Ask:
        return await _follow(connection, verb)  # type: ignore[arg-type]  # the other kind of verb
    encoding = connection.info.encoding
    try:
        result = await run(connection, verb.statement, verb.parameters, encoding)
    except Exception as error:
        if verb.on_error is None:
            raise
        return verb.on_error(error)
    return verb.read(result, encoding)


async def _follow(connection: Connection[Any], plan: Plan[T]) -> T:
    if not plan.is_whole:
        return await _walk(connection, plan.steps())
    async with connection.transaction():
        return await _walk(connection, plan.steps())


async def _walk(connection: Connection[Any], steps: Steps[T]) -> T:
    told: Any = None
    failed: Exception | None = None
    while True:
        try:
            step = steps.send(told) if failed is None else steps.throw(failed)
        except StopIteration as end:
            answer: T = end.value
            return answer
        told = failed = None
        try:
            told = await _take(connection, step)
        except Exception as error:  # noqa: BLE001  # the plan's to judge
            failed = error


async def _take(connection: Connection[Any], step: Step) -> Any:
    """Take one step of a plan."""
    if isinstance(step, _VERBS):
        return await ask(connection, step)
    if step is Aside.PAUSE:
        return await trio.lowlevel.checkpoint()
    if isinstance(step, Aside):
        return _tell(connection, step)
    cursor = Cursor(connection, row_factory=tuple_row)
    try:
        if isinstance(step, Script):
            await cursor.execute(step.text, prepare=False)
            return None
        async with cursor.copy(step.statement) as copy:
            for piece in step.pieces:
                await copy.write(piece)
    except Exception as error:
        if step.on_error is None:
            raise
        step.on_error(error)


def ask_blocking(connection: psycopg.Connection[Any], verb: Verb[T]) -> T:
    """Do what `ask` does on a blocking connection of psycopg's; nothing is prepared.

    The connection may be in its owner's transaction.
    """
    if isinstance(verb, Plan):
        return _follow_blocking(connection, verb)
    encoding = connection.info.encoding
    try:
        texts = [_encoded(value, encoding) for value in verb.parameters]
        if connection.pgconn.pipeline_status != _NO_PIPELINE:
            result = _run_in_pipeline_blocking(connection, verb)
        else:
            with connection.lock:
                connection._check_connection_ok()
                connection.wait(connection._start_query())
                result = connection.wait(_run_whole(connection.pgconn, encoding, verb.statement, texts))
    except Exception as error:
        if verb.on_error is None:
            raise
        return verb.on_error(error)
    return verb.read(result, encoding)


def _follow_blocking(connection: psycopg.Connection[Any], plan: Plan[T]) -> T:
    with connection.transaction() if plan.is_whole else nullcontext():
        steps = plan.steps()
        told: Any = None
        failed: Exception | None = None
        while True:
            try:
                step = steps.send(told) if failed is None else steps.throw(failed)
            except StopIteration as end:
                answer: T = end.value
                return answer
            told = failed = None
            try:
                told = _take_blocking(connection, step)
            except Exception as error:  # noqa: BLE001  # the plan's to judge
                failed = error


def _take_blocking(connection: psycopg.Connection[Any], step: Step) -> Any:
    if isinstance(step, _VERBS):
        return ask_blocking(connection, step)
    if isinstance(step, Aside):
        return _tell(connection, step)
    cursor = psycopg.Cursor(connection, row_factory=tuple_row)
    try:
        if isinstance(step, Script):
            cursor.execute(step.text, prepare=False)
            return None
        with cursor.copy(step.statement) as copy:
            for piece in step.pieces:
                copy.write(piece)
    except Exception as error:
        if step.on_error is None:
            raise
        step.on_error(error)


def _tell(connection: Connection[Any] | psycopg.Connection[Any], aside: Aside) -> Any:
    """Return what a plan wants to know of the connection. A pause is nothing here: nobody waits."""
    match aside:
        case Aside.IS_ALONE:
            return _is_alone(connection)
        case Aside.COMMITS:
            return connection.autocommit
        case Aside.SERVER_VERSION:
            return connection.info.server_version
        case Aside.PAUSE:
            return None
    assert_never(aside)


def _is_alone(connection: Connection[Any] | psycopg.Connection[Any]) -> bool:
    """Tell whether the next statement will be a transaction of its own."""
    pgconn = connection.pgconn
    return connection.autocommit and pgconn.transaction_status == _IDLE and pgconn.pipeline_status == _NO_PIPELINE


async def _run_in_pipeline(connection: Connection[Any], statement: bytes, values: Sequence[str | None]) -> PGresult:
    """Run a statement within a pipeline of the connection's owner, as psycopg's cursors can."""
    cursor = psycopg.AsyncRawCursor(connection, row_factory=tuple_row)
    await cursor.execute(statement, values, prepare=False, binary=True)
    await cursor.fetchall()
    assert cursor.pgresult is not None
    return cursor.pgresult


def _run_in_pipeline_blocking(connection: psycopg.Connection[Any], verb: Ask[Any]) -> PGresult:
    cursor = psycopg.RawCursor(connection, row_factory=tuple_row)
    cursor.execute(verb.statement, verb.parameters, prepare=False, binary=True)
    cursor.fetchall()
    assert cursor.pgresult is not None
    return cursor.pgresult


async def run(
    connection: Connection[Any], statement: bytes, values: Sequence[str | None], encoding: str | None = None
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
                return await _run_once(connection, encoding, statement, texts)
            except (errors.InvalidSqlStatementName, errors.DuplicatePreparedStatement):
                if connection.prepare_threshold is None:
                    raise
                connection.prepare_threshold = None
            except errors.FeatureNotSupported as error:
                if tries > 1 or not is_stale_plan(error) or connection.pgconn.transaction_status != _IDLE:
                    raise
                connection.forget_statements()
            except UNDONE:
                if not may_repeat(connection, tries):
                    raise


async def _run_once(connection: Connection[Any], encoding: str, statement: bytes, texts: Sequence[bytes | None]) -> PGresult:
    pgconn = connection.pgconn
    is_alone = connection.autocommit and pgconn.transaction_status == _IDLE
    if is_alone and connection.prepare_threshold is not None:
        name = connection.statements.get(statement)
        if name is None:
            name = b"pgnotifyq_%012x" % secrets.randbits(48)
            await connection.wait(_prepare(pgconn, encoding, name, statement))
            connection.statements[statement] = name
        return await connection.wait(_run_prepared(pgconn, encoding, name, texts))
    if not is_alone:
        await connection.wait(connection._start_query())
    return await connection.wait(_run_whole(pgconn, encoding, statement, texts))


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
