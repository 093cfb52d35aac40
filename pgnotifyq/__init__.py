"""An event-driven job queue for Python on PostgreSQL.

The smallest program, a worker and a client in one:

    import pgnotifyq
    import trio

    registry = pgnotifyq.JobRegistry()

    @registry.handler
    async def greet(payload: dict[str, str]) -> str:
        return f"Hello, {payload['name']}!"

    async def main(dsn: str) -> None:
        async with await pgnotifyq.connect(dsn) as connection:
            await pgnotifyq.migrate(connection)
        async with trio.open_nursery() as nursery, pgnotifyq.open_client(dsn) as client:
            worker = await nursery.start(pgnotifyq.run_worker, registry, dsn)
            job_id = await client.enqueue(greet, {"name": "Ann"})
            job = await client.wait(job_id)
            print(job.result)
            worker.drain()

    trio.run(main, "postgresql://localhost/app")

The names below are all that a program needs, also for its annotations, in reading order. What a
program's tests need is in `pgnotifyq.testing`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from pgnotifyq._version import __version__

import pgnotifyq.wire  # noqa: F401  # first, for it says whether the psycopg that is installed will do

# What runs on trio is imported when it is first used (see `__getattr__`): a program that only
# enqueues, by `pgnotifyq.sync` or `pgnotifyq.aio`, does without trio.

# A program: the schema, a client, a worker.
if TYPE_CHECKING:
    from pgnotifyq.wire.connection import Connection, connect
from pgnotifyq.ledger.schema import Step as MigrationStep
from pgnotifyq.migrating import migrate
from pgnotifyq.doors.verbs import CancelOutcome
from pgnotifyq.wire.kinds import CallersConnection, ClosableConnection, ProxiedConnection

if TYPE_CHECKING:
    from pgnotifyq.doors.client import Client, open_client
    from pgnotifyq.doors.for_org import OrgClient
    from pgnotifyq.doors.watching import Following
    from pgnotifyq.runtime.worker import WorkerHandle, run_worker
    from pgnotifyq.runtime.metrics import Metrics
from pgnotifyq.model.config import WorkerConfig, WorkerSettings
from pgnotifyq.model.events import Event, EventName, EventSink

# A handler: where it is registered, what it is given, what it may return.
from pgnotifyq.model.around import Lifespan, Middleware, Resources
from pgnotifyq.model.handler import Handler, RunsIn
from pgnotifyq.model.registry import HandlerDecorator, JobRegistry
from pgnotifyq.model.beside import HookSettings
from pgnotifyq.model.converting import make_converter
from pgnotifyq.model.retry import RetryPolicy

if TYPE_CHECKING:
    from pgnotifyq.runtime.context import JobContext
    from pgnotifyq.runtime.fenced import FencedBlock
    from pgnotifyq.runtime.tracking import Track
    from pgnotifyq.runtime.organisation import OrgContext, OrgConfig, OrgCredentials, OrgRepository
from pgnotifyq.model.credentials import CredentialsProvider, CredentialKeys, SealedCredential
from pgnotifyq.model.outcome import Discard, Interrupt, InterruptKind, Retry, Snooze

# Values: a job, what became of it, and what people look at.
from pgnotifyq.model.headers import Headers
from pgnotifyq.model.organisation import org
from pgnotifyq.model.job import NIL_ORG, DeadLetter, EndedJob, Execution, ExecutionId, Job, JobId, OrgId, WorkerId
from pgnotifyq.model.new_job import JobSettings, NewJob
from pgnotifyq.model.states import Status
from pgnotifyq.model.unique import Enqueued, EnqueueOutcome, OnConflict, Replaced, Unique, UniqueScope, UniqueWhile
from pgnotifyq.ledger.explaining import Explanation, Hindrance
from pgnotifyq.model.stack import Frame, Stack, StackState, StackTask
from pgnotifyq.ledger.look import DeadGroup, QueueRow, TroubleRow, WorkerRow
from pgnotifyq.ledger.pauses import PauseRow
from pgnotifyq.model.watching import JobEvent, JobEventKind, LogLine
from pgnotifyq.ledger.retention import Erasable, Erased, Kept, RetentionRow
from pgnotifyq.ledger.changes import Batch, JobFilter
from pgnotifyq.ledger.schedules import ScheduleRow
from pgnotifyq.model.schedule import Excluded, NewSchedule, Tick, When
from pgnotifyq.model.batch import BatchItem

# Errors: the tree is drawn in model/errors.py.
from pgnotifyq.model.errors import (
    PgnotifyqError,
    Refused,
    ConfigError,
    InvalidName,
    InvalidJob,
    InvalidPayload,
    PayloadTooLarge,
    StateTooLarge,
    UnknownJobType,
    HandlerAlreadyRegistered,
    AppNotFound,
    DatabaseError,
    DatabaseUnreachable,
    NoDatabase,
    DatabaseTooOld,
    MissingRights,
    PoolTimeout,
    ConnectionsTaken,
    SchemaError,
    SchemaMissing,
    SchemaOutOfDate,
    SchemaTooNew,
    ClientError,
    ClientClosed,
    WrongLoop,
    JobNotFound,
    JobDead,
    WaitTimeout,
    UniqueKeyHeld,
    IllegalTransition,
    PayloadUndecodable,
    LeaseLost,
    JobCancelled,
    TransactionAborted,
    TransactionRefused,
    TransactionLeft,
    LifespanFailed,
    HandlerProcessDied,
    RaisedInProcess,
    OrgConfigUnfit,
    CredentialNotFound,
    CredentialSealed,
    ScheduleNotFound,
    UnsupportedPsycopg,
)

__all__ = [
    "__version__",
    # A program.
    "Connection",
    "connect",
    "MigrationStep",
    "migrate",
    "CancelOutcome",
    "CallersConnection",
    "ClosableConnection",
    "ProxiedConnection",
    "Client",
    "open_client",
    "OrgClient",
    "Following",
    "WorkerHandle",
    "run_worker",
    "Metrics",
    "WorkerConfig",
    "WorkerSettings",
    "Event",
    "EventName",
    "EventSink",
    # A handler.
    "Lifespan",
    "Middleware",
    "Resources",
    "Handler",
    "RunsIn",
    "HandlerDecorator",
    "JobRegistry",
    "HookSettings",
    "make_converter",
    "RetryPolicy",
    "JobContext",
    "FencedBlock",
    "Track",
    "OrgContext",
    "OrgConfig",
    "OrgCredentials",
    "OrgRepository",
    "CredentialsProvider",
    "CredentialKeys",
    "SealedCredential",
    "Discard",
    "Interrupt",
    "InterruptKind",
    "Retry",
    "Snooze",
    # Values.
    "Headers",
    "org",
    "NIL_ORG",
    "DeadLetter",
    "EndedJob",
    "Execution",
    "ExecutionId",
    "Job",
    "JobId",
    "OrgId",
    "WorkerId",
    "JobSettings",
    "NewJob",
    "Status",
    "Enqueued",
    "EnqueueOutcome",
    "OnConflict",
    "Replaced",
    "Unique",
    "UniqueScope",
    "UniqueWhile",
    "Explanation",
    "Hindrance",
    "Frame",
    "Stack",
    "StackState",
    "StackTask",
    "DeadGroup",
    "QueueRow",
    "TroubleRow",
    "WorkerRow",
    "PauseRow",
    "JobEvent",
    "JobEventKind",
    "LogLine",
    "Erasable",
    "Erased",
    "Kept",
    "RetentionRow",
    "Batch",
    "JobFilter",
    "ScheduleRow",
    "Excluded",
    "NewSchedule",
    "Tick",
    "When",
    "BatchItem",
    # Errors.
    "PgnotifyqError",
    "Refused",
    "ConfigError",
    "InvalidName",
    "InvalidJob",
    "InvalidPayload",
    "PayloadTooLarge",
    "StateTooLarge",
    "UnknownJobType",
    "HandlerAlreadyRegistered",
    "AppNotFound",
    "DatabaseError",
    "DatabaseUnreachable",
    "NoDatabase",
    "DatabaseTooOld",
    "MissingRights",
    "PoolTimeout",
    "ConnectionsTaken",
    "SchemaError",
    "SchemaMissing",
    "SchemaOutOfDate",
    "SchemaTooNew",
    "ClientError",
    "ClientClosed",
    "WrongLoop",
    "JobNotFound",
    "JobDead",
    "WaitTimeout",
    "UniqueKeyHeld",
    "IllegalTransition",
    "PayloadUndecodable",
    "LeaseLost",
    "JobCancelled",
    "TransactionAborted",
    "TransactionRefused",
    "TransactionLeft",
    "LifespanFailed",
    "HandlerProcessDied",
    "RaisedInProcess",
    "OrgConfigUnfit",
    "CredentialNotFound",
    "CredentialSealed",
    "ScheduleNotFound",
    "UnsupportedPsycopg",
]

_LATE = {
    "Connection": "wire.connection",
    "connect": "wire.connection",
    "Client": "doors.client",
    "open_client": "doors.client",
    "WorkerHandle": "runtime.worker",
    "run_worker": "runtime.worker",
    "Metrics": "runtime.metrics",
    "JobContext": "runtime.context",
    "FencedBlock": "runtime.fenced",
    "Track": "runtime.tracking",
    "OrgClient": "doors.for_org",
    "Following": "doors.watching",
    "OrgContext": "runtime.organisation",
    "OrgConfig": "runtime.organisation",
    "OrgCredentials": "runtime.organisation",
    "OrgRepository": "runtime.organisation",
}

_MODULES = ("aio", "sync", "otel")


def __getattr__(name: str) -> object:
    """Import what is imported late, and keep it."""
    if name in _MODULES:
        return importlib.import_module(f"pgnotifyq.{name}")
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(importlib.import_module(f"pgnotifyq.{_LATE[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """Return the names that are there, and those that are imported late."""
    return sorted({*globals(), *__all__, *_MODULES})
