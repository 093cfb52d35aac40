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
            job_id = await client.enqueue("greet", {"name": "Ann"})
            job = await client.wait(job_id)
            print(job.result)
            worker.drain()

    trio.run(main, "postgresql://localhost/app")

The names below are all that a program needs, also for its annotations, in reading order. What a
program's tests need is in `pgnotifyq.testing`.
"""

from __future__ import annotations

from pgnotifyq._version import __version__

# A program: the schema, a client, a worker.
from pgnotifyq.wire.connection import Connection, connect
from pgnotifyq.ledger.schema import Step as MigrationStep
from pgnotifyq.migrating import migrate
from pgnotifyq.doors.verbs import CancelOutcome
from pgnotifyq.doors.client import Client, open_client
from pgnotifyq.runtime.worker import WorkerHandle, run_worker
from pgnotifyq.model.config import WorkerConfig, WorkerSettings
from pgnotifyq.model.events import Event, EventName, EventSink

# A handler: where it is registered, what it is given, what it may return.
from pgnotifyq.model.registry import Handler, JobRegistry
from pgnotifyq.model.retry import RetryPolicy
from pgnotifyq.runtime.context import JobContext
from pgnotifyq.runtime.tenants import OrgContext
from pgnotifyq.model.outcome import Discard, Interrupt, InterruptKind, Retry, Snooze

# Values: a job, what became of it, and what is looked at.
from pgnotifyq.model.job import NIL_ORG, DeadLetter, Execution, ExecutionId, Job, JobId, NewJob, OrgId, WorkerId
from pgnotifyq.model.states import Status
from pgnotifyq.ledger.look import Explanation, QueueRow, TroubleRow, WorkerRow

# Errors: the tree is drawn in model/errors.py.
from pgnotifyq.model.errors import (
    PgnotifyqError,
    Refused,
    ConfigError,
    InvalidName,
    InvalidJob,
    InvalidPayload,
    PayloadTooLarge,
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
    JobNotFound,
    JobDead,
    WaitTimeout,
    UniqueKeyHeld,
    IllegalTransition,
    PayloadUndecodable,
    LeaseLost,
    JobCancelled,
    TransactionRefused,
    TransactionLeft,
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
    "Client",
    "open_client",
    "WorkerHandle",
    "run_worker",
    "WorkerConfig",
    "WorkerSettings",
    "Event",
    "EventName",
    "EventSink",
    # A handler.
    "Handler",
    "JobRegistry",
    "RetryPolicy",
    "JobContext",
    "OrgContext",
    "Discard",
    "Interrupt",
    "InterruptKind",
    "Retry",
    "Snooze",
    # Values.
    "NIL_ORG",
    "DeadLetter",
    "Execution",
    "ExecutionId",
    "Job",
    "JobId",
    "NewJob",
    "OrgId",
    "WorkerId",
    "Status",
    "Explanation",
    "QueueRow",
    "TroubleRow",
    "WorkerRow",
    # Errors.
    "PgnotifyqError",
    "Refused",
    "ConfigError",
    "InvalidName",
    "InvalidJob",
    "InvalidPayload",
    "PayloadTooLarge",
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
    "JobNotFound",
    "JobDead",
    "WaitTimeout",
    "UniqueKeyHeld",
    "IllegalTransition",
    "PayloadUndecodable",
    "LeaseLost",
    "JobCancelled",
    "TransactionRefused",
    "TransactionLeft",
    "UnsupportedPsycopg",
]
