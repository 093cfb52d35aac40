"""An event-driven job queue for Python on PostgreSQL."""

from __future__ import annotations

from pgnotifyq._version import __version__
from pgnotifyq.doors.client import CancelOutcome, Client, open_client
from pgnotifyq.model.config import WorkerConfig
from pgnotifyq.model.errors import (
    AppNotFound,
    ConfigError,
    ConnectionsTaken,
    DatabaseTooOld,
    DatabaseUnreachable,
    HandlerAlreadyRegistered,
    IllegalTransition,
    InvalidJob,
    InvalidName,
    InvalidPayload,
    JobCancelled,
    JobDead,
    JobNotFound,
    LeaseLost,
    MissingRights,
    NoDatabase,
    PayloadTooLarge,
    PayloadUndecodable,
    PgnotifyqError,
    PoolTimeout,
    SchemaMissing,
    SchemaOutOfDate,
    SchemaTooNew,
    TransactionLeft,
    TransactionRefused,
    UniqueKeyHeld,
    UnknownJobType,
    WaitTimeout,
)
from pgnotifyq.model.events import Event, EventName
from pgnotifyq.model.job import NIL_ORG, DeadLetter, Execution, Job, NewJob
from pgnotifyq.model.outcome import Discard, Interrupt, InterruptKind, Retry, Snooze
from pgnotifyq.model.registry import JobRegistry
from pgnotifyq.model.retry import RetryPolicy
from pgnotifyq.model.states import Status
from pgnotifyq.runtime.context import JobContext
from pgnotifyq.runtime.worker import WorkerHandle, run_worker

__all__ = [
    "NIL_ORG",
    "AppNotFound",
    "CancelOutcome",
    "Client",
    "ConfigError",
    "ConnectionsTaken",
    "DatabaseTooOld",
    "DatabaseUnreachable",
    "DeadLetter",
    "Discard",
    "Event",
    "EventName",
    "Execution",
    "HandlerAlreadyRegistered",
    "IllegalTransition",
    "Interrupt",
    "InterruptKind",
    "InvalidJob",
    "InvalidName",
    "InvalidPayload",
    "Job",
    "JobCancelled",
    "JobContext",
    "JobDead",
    "JobNotFound",
    "JobRegistry",
    "LeaseLost",
    "MissingRights",
    "NewJob",
    "NoDatabase",
    "PayloadTooLarge",
    "PayloadUndecodable",
    "PgnotifyqError",
    "PoolTimeout",
    "Retry",
    "RetryPolicy",
    "SchemaMissing",
    "SchemaOutOfDate",
    "SchemaTooNew",
    "Snooze",
    "Status",
    "TransactionLeft",
    "TransactionRefused",
    "UniqueKeyHeld",
    "UnknownJobType",
    "WaitTimeout",
    "WorkerConfig",
    "WorkerHandle",
    "__version__",
    "open_client",
    "run_worker",
]
