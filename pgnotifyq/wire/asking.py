"""Statements of ours that somebody waits for, or that run hundreds of times a second: straight through libpq.

psycopg's cursor finds out anew, each time, where a statement's placeholders are, how each value is written, whether the statement is
worth preparing, and how each column is read. Here the caller knows: placeholders are `$1`, values are the text that the server reads,
results are binary and taken as they come, and a statement is prepared when it is first used. It spares a quarter of a
millisecond of 0.9 when both sides have slept, and 30 to 70 microseconds of CPU in a loop (bench/README.md).

The rest is psycopg's: its generators drive the exchange, its errors are raised, and connection.py's rules on cancels hold.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import errors, generators, pq

from pgnotifyq.wire.refusals import UNDONE, is_stale_plan, may_repeat

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from psycopg.abc import PQGen
    from psycopg.pq.abc import PGconn, PGresult

    from pgnotifyq.wire.connection import Connection

_IDLE = pq.TransactionStatus.IDLE
_OK = (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK)
_BINARY = pq.Format.BINARY


async def run(connection: Connection[Any], statement: bytes, values: Sequence[str | None]) -> PGresult:
    """Run one statement and return its rows in binary form.

    It is prepared where the connection prepares and where it is a transaction of its own: in a longer one, a pooler that has lost it
    would cost the transaction. Outside of one, the server refuses before anything is done, or undoes everything; so the statement
    is sent again, whole, where it was lost (the connection then prepares none any more), where it was prepared for a table or
    function that has changed, and where it was undone for the sake of another transaction and the connection `repeats`.

    Cancellation: see connection.py.

    Raises:
        psycopg.Error: as a cursor would.
        psycopg.DataError: a value contains NUL, which no text of PostgreSQL can.
    """
    encoding = connection.info.encoding
    texts = [_encoded(value, encoding) for value in values]
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


def array(values: Iterable[str | None]) -> str:
    """Write a one-dimensional array as the server reads it.

    >>> array(["a", "b, c", None])
    '{"a","b, c",NULL}'
    """
    return "{" + ",".join(["NULL" if value is None else _quoted(value) for value in values]) + "}"


def _quoted(value: str) -> str:
    if "\\" in value:
        value = value.replace("\\", "\\\\")
    if '"' in value:
        value = value.replace('"', '\\"')
    return f'"{value}"'


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
