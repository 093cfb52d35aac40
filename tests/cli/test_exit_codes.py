"""Exit codes: one for each class of error."""

from __future__ import annotations

import pytest

from pgnotifyq.cli.app import EXIT_DATABASE, EXIT_FAILED, EXIT_USAGE, exit_code_of
from pgnotifyq.model import errors
from pgnotifyq.model.errors import PgnotifyqError
from pgnotifyq.testing import JobFailed, NoDatabaseInTest

CODES: dict[int, list[type[PgnotifyqError]]] = {
    EXIT_FAILED: [
        PgnotifyqError,
        errors.UnknownJobType,
        errors.PoolTimeout,
        errors.ConnectionsTaken,
        errors.JobNotFound,
        errors.ScheduleNotFound,
        errors.JobDead,
        errors.WaitTimeout,
        errors.UniqueKeyHeld,
        errors.IllegalTransition,
        errors.PayloadUndecodable,
        errors.LeaseLost,
        errors.JobCancelled,
        errors.TransactionAborted,
        errors.TransactionRefused,
        errors.TransactionLeft,
        errors.ClientError,
        errors.ClientClosed,
        errors.WrongLoop,
        errors.LifespanFailed,
        errors.HandlerProcessDied,
        errors.RaisedInProcess,
        errors.OrgConfigUnfit,
        errors.CredentialNotFound,
        errors.CredentialSealed,
        errors.UnsupportedPsycopg,
        NoDatabaseInTest,
        JobFailed,
    ],
    EXIT_USAGE: [
        errors.Refused,
        errors.ConfigError,
        errors.InvalidName,
        errors.InvalidJob,
        errors.InvalidPayload,
        errors.PayloadTooLarge,
        errors.StateTooLarge,
        errors.HandlerAlreadyRegistered,
        errors.AppNotFound,
    ],
    EXIT_DATABASE: [
        errors.DatabaseError,
        errors.DatabaseUnreachable,
        errors.NoDatabase,
        errors.DatabaseTooOld,
        errors.MissingRights,
        errors.SchemaError,
        errors.SchemaMissing,
        errors.SchemaOutOfDate,
        errors.SchemaTooNew,
    ],
}


@pytest.mark.parametrize(("code", "kind"), [(code, kind) for code, kinds in CODES.items() for kind in kinds])
def test_code_of_an_error(code: int, kind: type[PgnotifyqError]) -> None:
    """A script can tell what went wrong by the code alone: 2 what was given, 3 the database, 1 the rest."""
    assert exit_code_of(kind) == code


def test_every_error_has_its_code_here() -> None:
    """The table above has every class there is."""
    listed = {kind for kinds in CODES.values() for kind in kinds}
    assert {value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, PgnotifyqError)} <= listed
