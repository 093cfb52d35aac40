"""An event-driven job queue for Python on PostgreSQL."""

from __future__ import annotations

from pgnotifyq._version import __version__
from pgnotifyq.model.config import WorkerConfig
from pgnotifyq.model.errors import *  # noqa: F403  # the errors are the API
from pgnotifyq.model.job import NIL_ORG, DeadLetter, Execution, Job, NewJob
from pgnotifyq.model.outcome import Discard, Interrupt, InterruptKind, Retry, Snooze
from pgnotifyq.model.registry import JobRegistry
from pgnotifyq.model.retry import RetryPolicy
from pgnotifyq.model.states import Status
from pgnotifyq.runtime.context import JobContext
from pgnotifyq.runtime.worker import WorkerHandle, run_worker
