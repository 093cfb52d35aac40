"""The verbs of everybody who is not a worker: enqueue, cancel, requeue, purge, and looking.

The SQL lives in sql/functions and sql/queries. The statements that enqueue are given apart from the connection that runs
them, so that a blocking psycopg connection in the middle of a transaction of its own can run them too.
"""

from __future__ import annotations

import os
import time
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import attrs

from pgnotifyq.ledger.errors import translated
from pgnotifyq.ledger.statements import call, compose, query
from pgnotifyq.model.job import DeadLetter, Execution, ExecutionId, Job, JobId, NewJob, OrgId, WorkerId
from pgnotifyq.model.payload import encode
from pgnotifyq.model.states import Status

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pgnotifyq.wire.connection import Connection

# One statement carries its jobs as arrays; larger batches are copied.
ONE_STATEMENT_JOBS_MAX = 1000


@attrs.frozen(kw_only=True)
class WorkerRow:
    """A worker process, as others see it."""

    worker_id: WorkerId
    host: str
    pid: int
    queues: list[str]
    slots: int
    version: str
    started_at: datetime
    last_beat_at: datetime
    state: str  # running, draining, or gone: its session is, and its jobs are about to be reclaimed
    running: int  # jobs it holds
    listening: str  # push or polling
    is_asleep: bool


@attrs.frozen(kw_only=True)
class QueueRow:
    """What a queue holds, in jobs."""

    queue_name: str
    pending: int  # due
    scheduled: int
    retrying: int
    running: int
    stopping: int
    completed: int
    cancelled: int
    dead: int
    oldest_due_seconds: float | None  # age of the oldest job that is due and waits


def enqueue_statement(job: NewJob, schema: str) -> tuple[bytes, tuple[object, ...]]:
    """Return the statement that enqueues one job, and its parameters; it gives one row with the id."""
    delay_seconds = job.delay_seconds or 0.0
    statement = compose(
        "select {schema}.enqueue(%s, %s::jsonb, %s, %s, %s, "
        "coalesce(%s, {schema}.clock() + make_interval(secs => %s::float8)), %s, %s)",
        schema,
    )
    parameters = (
        job.job_type,
        encode(job.payload),
        job.org_id,
        job.queue_name,
        job.priority,
        job.scheduled_at,
        delay_seconds,
        job.max_attempts,
        job.unique_key,
    )
    return statement, parameters


def enqueue_many_statement(jobs: Sequence[NewJob], schema: str) -> tuple[bytes, tuple[object, ...]]:
    """Return the statement that enqueues a batch, and its parameters; it gives (place, id) rows in order."""
    types = "uuid[] uuid[] text[] text[] text[] smallint[] timestamptz[] float8[] integer[] text[]"
    parameters = (
        "{" + ",".join(new_id().hex for _ in jobs) + "}",
        "{" + ",".join(job.org_id.hex for job in jobs) + "}",
        [job.queue_name for job in jobs],
        [job.job_type for job in jobs],
        [encode(job.payload) for job in jobs],
        [job.priority for job in jobs],
        [job.scheduled_at for job in jobs],
        [None if job.delay_seconds is None else float(job.delay_seconds) for job in jobs],
        [job.max_attempts for job in jobs],
        [job.unique_key for job in jobs],
    )
    return call("enqueue_many", types, schema), parameters


async def enqueue(connection: Connection, schema: str, job: NewJob) -> JobId:
    """Enqueue one job; with a unique key, return the unfinished job that holds it if there is one.

    Cancellation: on a connection in autocommit that is still open, nothing was enqueued.

    Raises:
        InvalidPayload, PayloadTooLarge: the payload cannot be stored.
    """
    statement, parameters = enqueue_statement(job, schema)
    with translated(schema):
        cursor = await connection.execute(statement, parameters)
        row = await cursor.fetchone()
    assert row is not None
    return JobId(row[0])


async def enqueue_many(connection: Connection, schema: str, jobs: Sequence[NewJob]) -> list[JobId]:
    """Enqueue jobs, all or none, and return their ids in order.

    Up to ONE_STATEMENT_JOBS_MAX go in one statement; more are copied, but for those with a unique key.

    Raises:
        InvalidPayload, PayloadTooLarge: a payload cannot be stored; nothing was enqueued.
    """
    if not jobs:
        return []
    with translated(schema):
        if len(jobs) <= ONE_STATEMENT_JOBS_MAX:
            return await _insert(connection, schema, jobs)
        keyed = [place for place, job in enumerate(jobs) if job.unique_key is not None]
        plain = [place for place, job in enumerate(jobs) if job.unique_key is None]
        ids: dict[int, JobId] = {}
        async with connection.transaction():
            ids.update(zip(plain, await _copy(connection, schema, [jobs[place] for place in plain]), strict=True))
            for start in range(0, len(keyed), ONE_STATEMENT_JOBS_MAX):
                places = keyed[start : start + ONE_STATEMENT_JOBS_MAX]
                ids.update(zip(places, await _insert(connection, schema, [jobs[p] for p in places]), strict=True))
        return [ids[place] for place in range(len(jobs))]


async def _insert(connection: Connection, schema: str, jobs: Sequence[NewJob]) -> list[JobId]:
    statement, parameters = enqueue_many_statement(jobs, schema)
    cursor = await connection.execute(statement, parameters)
    return [JobId(row[1]) for row in sorted(await cursor.fetchall())]


async def _copy(connection: Connection, schema: str, jobs: Sequence[NewJob]) -> list[JobId]:
    """Copy jobs in; their times come from the database's clock, read once."""
    if not jobs:
        return []
    cursor = await connection.execute(compose("select {schema}.clock()", schema))
    row = await cursor.fetchone()
    assert row is not None
    now = row[0]
    ids = [JobId(new_id()) for _ in jobs]
    columns = "id, org_id, queue_name, job_type, payload, priority, scheduled_at, max_attempts, created_at"
    statement = compose("copy {schema}.jobs (" + columns + ") from stdin", schema)
    now_text = now.isoformat()
    lines: list[str] = []
    async with connection.cursor() as copying, copying.copy(statement) as copy:
        for job_id, job in zip(ids, jobs, strict=True):
            due = job.scheduled_at
            if due is None and job.delay_seconds:
                due = now + timedelta(seconds=job.delay_seconds)
            payload = encode(job.payload)
            if "\\" in payload:
                payload = payload.replace("\\", "\\\\")
            # Names fit their patterns and JSON text holds no raw tab or newline, so only backslashes need escaping.
            lines.append(
                f"{job_id.hex}\t{job.org_id.hex}\t{job.queue_name}\t{job.job_type}\t{payload}\t{job.priority}\t"
                f"{now_text if due is None else due.isoformat()}\t{job.max_attempts}\t{now_text}\n"
            )
            if len(lines) >= 500:
                await copy.write("".join(lines))
                lines.clear()
        await copy.write("".join(lines))
    return ids


async def cancel(connection: Connection, schema: str, job_id: JobId, why: str | None = None) -> str:
    """Ask a job to stop: `cancelled`, `stopping`, `finished` or `unknown`. Source: sql/functions/cancel.sql."""
    with translated(schema):
        cursor = await connection.execute(call("cancel", "uuid text", schema), (job_id, why))
        row = await cursor.fetchone()
    assert row is not None
    return str(row[0])


async def await_job(connection: Connection, schema: str, job_id: JobId) -> bool:
    """Have the end of a job announced; False when it has ended, or is not there."""
    with translated(schema):
        cursor = await connection.execute(call("await_job", "uuid", schema), (job_id,))
        row = await cursor.fetchone()
    return bool(row and row[0])


async def get_job(connection: Connection, schema: str, job_id: JobId) -> Job | None:
    """Return a job, or None: it never was, was pruned, or is a dead letter."""
    found = await _list(connection, schema, id=job_id, limit=1)
    return found[0] if found else None


async def list_jobs(
    connection: Connection,
    schema: str,
    *,
    status: str | None = None,
    queue: str | None = None,
    job_type: str | None = None,
    org_id: OrgId | None = None,
    limit: int = 50,
) -> list[Job]:
    """Return jobs, newest first; `status` may be scheduled, retrying or stopping too."""
    return await _list(connection, schema, label=status, queue=queue, job_type=job_type, org_id=org_id, limit=limit)


async def history(connection: Connection, schema: str, job_id: JobId) -> list[Execution]:
    """Return the attempts of a job, oldest first, the one under way included."""
    with translated(schema):
        cursor = await connection.execute(query("executions", schema), {"id": job_id})
        return [_execution(row) for row in await cursor.fetchall()]


async def list_dead(
    connection: Connection, schema: str, *, queue: str | None = None, job_type: str | None = None, limit: int = 50
) -> list[DeadLetter]:
    """Return dead letters, the latest first."""
    return await _list_dead(connection, schema, queue=queue, job_type=job_type, limit=limit)


async def get_dead(connection: Connection, schema: str, job_id: JobId) -> DeadLetter | None:
    """Return a dead letter, or None."""
    found = await _list_dead(connection, schema, id=job_id, limit=1)
    return found[0] if found else None


async def requeue(connection: Connection, schema: str, job_id: JobId) -> bool:
    """Bring a dead letter back as the job it was; False when there is none.

    Raises:
        psycopg.errors.UniqueViolation: an unfinished job holds its unique key; the dead letter stays.
    """
    with translated(schema):
        cursor = await connection.execute(call("requeue", "uuid", schema), (job_id,))
        row = await cursor.fetchone()
    return bool(row and row[0])


async def purge_dead(
    connection: Connection, schema: str, *, job_id: JobId | None = None, older_than_seconds: float | None = None
) -> int:
    """Delete a dead letter, or those that died longer ago than given; return how many."""
    with translated(schema):
        cursor = await connection.execute(query("purge_dead", schema), {"id": job_id, "older_than_seconds": older_than_seconds})
        row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


async def list_workers(connection: Connection, schema: str) -> list[WorkerRow]:
    """Return the worker processes, the oldest first."""
    with translated(schema):
        cursor = await connection.execute(query("workers", schema))
        names = [field.name for field in attrs.fields(WorkerRow)]
        columns = [column.name for column in cursor.description or ()]
        assert set(names) == set(columns)
        return [WorkerRow(**dict(zip(columns, row, strict=True))) for row in await cursor.fetchall()]


async def stats(connection: Connection, schema: str) -> list[QueueRow]:
    """Return what each queue holds, by name."""
    with translated(schema):
        cursor = await connection.execute(query("stats", schema))
        columns = [column.name for column in cursor.description or ()]
        return [QueueRow(**dict(zip(columns, row, strict=True))) for row in await cursor.fetchall()]


def new_id() -> UUID:
    """Return a uuid in version 7 order, as the database's own ids are."""
    milliseconds, nanoseconds = divmod(time.time_ns(), 1_000_000)
    head = (milliseconds << 16) | 0x7000 | (nanoseconds * 4096 // 1_000_000)
    tail = int.from_bytes(os.urandom(8), "big") & 0x3FFF_FFFF_FFFF_FFFF | 0x8000_0000_0000_0000
    return UUID(int=(head << 64) | tail)


async def _list(connection: Connection, schema: str, **filters: Any) -> list[Job]:
    parameters = {"id": None, "label": None, "queue": None, "job_type": None, "org_id": None, **filters}
    with translated(schema):
        cursor = await connection.execute(query("jobs", schema), parameters)
        return [_job(row) for row in await cursor.fetchall()]


async def _list_dead(connection: Connection, schema: str, **filters: Any) -> list[DeadLetter]:
    with translated(schema):
        cursor = await connection.execute(query("dead", schema), {"id": None, "queue": None, "job_type": None, **filters})
        return [_dead_letter(row) for row in await cursor.fetchall()]


_JOB_FIELDS = (
    "id", "org_id", "queue_name", "job_type", "payload", "priority", "status", "scheduled_at", "attempts", "max_attempts",
    "locked_by", "current_execution_id", "lease_expires_at", "started_at", "completed_at", "error_message", "result",
    "progress", "progress_message", "unique_key", "created_at",
)  # fmt: skip


def _job(row: tuple[Any, ...]) -> Job:
    values = dict(zip(_JOB_FIELDS, row, strict=True))
    values["status"] = Status(values["status"])
    return Job(**values)


def _execution(row: tuple[Any, ...]) -> Execution:
    names = ("id", "job_id", "attempt", "worker_id", "outcome", "started_at", "ended_at", "error_message")
    return Execution(**dict(zip(names, row, strict=True)))


def _dead_letter(row: tuple[Any, ...]) -> DeadLetter:
    names = (
        "id", "org_id", "queue_name", "job_type", "payload", "priority", "scheduled_at", "attempts", "max_attempts",
        "unique_key", "created_at", "reason", "error_message", "history", "died_at",
    )  # fmt: skip
    values = dict(zip(names, row, strict=True))
    values["history"] = tuple(_attempt(values["id"], attempt) for attempt in values["history"])
    return DeadLetter(**values)


def _attempt(job_id: JobId, attempt: dict[str, Any]) -> Execution:
    return Execution(
        id=ExecutionId(UUID(attempt["id"])),
        job_id=job_id,
        attempt=attempt["attempt"],
        worker_id=WorkerId(UUID(attempt["worker_id"])) if attempt["worker_id"] else None,
        outcome=attempt["outcome"],
        started_at=datetime.fromisoformat(attempt["started_at"]),
        ended_at=datetime.fromisoformat(attempt["ended_at"]),
        error_message=attempt["error_message"],
    )
