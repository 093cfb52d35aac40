"""Whose error it is: one table, read without a database where the state alone decides."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg import errors

from pgnotifyq.ledger.errors import Whose, is_passing, whose
from pgnotifyq.model.errors import DatabaseUnreachable

if TYPE_CHECKING:
    from pgnotifyq.wire.blocking import Connection


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (errors.ForeignKeyViolation, Whose.JOB),
        (errors.UniqueViolation, Whose.JOB),
        (errors.DatetimeFieldOverflow, Whose.JOB),
        (errors.UntranslatableCharacter, Whose.JOB),
        (errors.ProgramLimitExceeded, Whose.JOB),
        (errors.RaiseException, Whose.JOB),
        (errors.DataCorrupted, Whose.JOB),
        (errors.ReadOnlySqlTransaction, Whose.SESSION),
        (errors.AdminShutdown, Whose.SESSION),
        (errors.InFailedSqlTransaction, Whose.SESSION),
        (errors.InvalidSqlStatementName, Whose.SESSION),
        (errors.DuplicatePreparedStatement, Whose.SESSION),
        (errors.CannotConnectNow, Whose.SERVER),
        (errors.DeadlockDetected, Whose.SERVER),
        (errors.DiskFull, Whose.SERVER),
        (errors.QueryCanceled, Whose.SERVER),
        (errors.LockNotAvailable, Whose.SERVER),
        (errors.UndefinedTable, Whose.OURS),
        (errors.InsufficientPrivilege, Whose.OURS),
        (errors.InvalidSchemaName, Whose.OURS),
    ],
)
def test_state_decides(error: type[psycopg.Error], expected: Whose) -> None:
    """Each SQLSTATE has one owner."""
    assert whose(error("x")) is expected
    assert is_passing(error("x")) is (expected in {Whose.SESSION, Whose.SERVER})


def test_errors_without_a_state() -> None:
    """What has no SQLSTATE comes from the connection, from Python's decoding, or from us."""
    assert whose(psycopg.OperationalError("the connection is closed")) is Whose.SESSION
    assert whose(psycopg.InterfaceError("the connection is closed")) is Whose.SESSION
    assert whose(DatabaseUnreachable("x")) is Whose.SERVER
    assert whose(psycopg.DataError("a text contains NUL")) is Whose.JOB
    assert whose(UnicodeEncodeError("latin1", "x", 0, 1, "x")) is Whose.JOB
    assert whose(OverflowError("x")) is Whose.JOB
    assert whose(RecursionError("x")) is Whose.JOB
    assert whose(IndexError("x")) is Whose.OURS


def test_stale_plan_is_the_sessions(dsn: str, connection: Connection) -> None:
    """A statement that was prepared before a function's result changed is prepared anew; any other 0A000 is the row's."""
    connection.execute("create table public.growing (a integer)")
    with psycopg.connect(dsn, prepare_threshold=0) as prepares:  # ours prepare anew, once, and say nothing
        prepares.execute("select * from public.growing")
        prepares.commit()
        connection.execute("alter table public.growing add b integer")
        with pytest.raises(errors.FeatureNotSupported) as caught:
            prepares.execute("select * from public.growing")
        assert whose(caught.value) is Whose.SESSION
    with pytest.raises(errors.FeatureNotSupported) as caught:
        connection.execute("select 1 union select 2 for update")
    assert whose(caught.value) is not Whose.SESSION
