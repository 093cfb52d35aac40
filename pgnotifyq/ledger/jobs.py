"""The verbs of everybody who is not a worker: enqueue, cancel, requeue, purge, and looking.

The SQL lives in sql/functions and sql/queries. Whoever enqueues within a transaction of their own brings their own connection, so
nothing here trusts its row factory or its cursors, and a blocking psycopg connection can enqueue too.
"""

from __future__ import annotations

import math
import os
import time
from contextlib import nullcontext
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import attrs
import psycopg
import trio
from psycopg import errors, pq
from psycopg.rows import tuple_row

from pgnotifyq.ledger.columns import boolean_from, read_leniently, rows, text_from, time_from, time_from_text, uuid_from
from pgnotifyq.ledger.errors import translated
from pgnotifyq.ledger.statements import call, compose, direct_call, numbered, query
from pgnotifyq.model.errors import ConfigError, IllegalTransition, UniqueKeyHeld
from pgnotifyq.model.job import DeadLetter, Execution, ExecutionId, Job, JobId, NewJob, OrgId, WorkerId, uuid_of
from pgnotifyq.model.outcome import bounded
from pgnotifyq.model.payload import Undecodable, encode
from pgnotifyq.model.states import Status
from pgnotifyq.wire import asking
from pgnotifyq.wire.connection import Cursor

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from pgnotifyq.wire.connection import Connection

# One statement carries its jobs as arrays; larger batches are copied. COPY costs three round trips more, and spares client and server
# together 6 microseconds a job of 27 at 100 jobs, and 5 of 22 at 1,000, so it pays from about here.
ONE_STATEMENT_JOBS_MAX = 100
# Made, encoded, or written to a COPY, before other tasks may run: about 5 ms.
AT_ONCE_JOBS_MAX = 500

# What `list_jobs` knows a job's state by: the statuses, and the labels derived from them.
LABELS = (*Status, "scheduled", "retrying", "stopping")


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
    state: str  # running, draining, or gone: it is not alive, and its jobs are about to be reclaimed
    is_alive: bool  # its session is; or, where it has none, its last beat is less than three leases ago
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


@attrs.frozen(kw_only=True)
class TroubleRow:
    """A job that was put aside: its row could not be written, read, ended, pruned or run."""

    job_id: JobId
    org_id: OrgId
    queue_name: str | None  # None: the job is gone
    job_type: str | None
    verb: str  # claim, complete, retry, snooze, release, cancel, bury, reclaim or prune
    sqlstate: str
    error_message: str
    tries: int
    first_at: datetime
    last_at: datetime
    look_at: datetime  # tried again then, at the earliest
    wish: str | None  # how the execution ended, in the words of its history; it will be written so


@attrs.frozen(kw_only=True)
class Explanation:
    """Why a job is where it is. Times are in seconds, on the database's clock."""

    label: str  # its status, or scheduled, retrying, stopping
    due_in_seconds: float | None  # negative: due for so long; None: it is not pending
    lease_seconds_left: float | None  # None: nobody holds it
    jobs_before: int | None  # due jobs of its queue that are claimed first, counted up to 1,000; None: it is not pending
    workers: int  # live ones that take its queue, have a handler for its type and are not draining
    workers_without_handler: int  # live ones that take its queue, where none of them has a handler for its type
    slots_free: int  # of those workers
    queue_name: str
    job_type: str
    attempts: int
    max_attempts: int | None  # None: not said, and not claimed yet
    error_message: str | None
    is_parked: bool  # it waits for the others that ran when its worker died
    held_for_seconds: float | None  # since its attempt began; None: nobody holds it
    held_on_host: str | None
    held_by_pid: int | None
    is_holder_alive: bool | None
    ended_for_seconds: float | None  # None: it has not ended
    trouble_with: str | None  # the verb that failed on its row, which was put aside; None: there is no trouble
    trouble: str | None  # what the database said of it
    trouble_tries: int | None
    trouble_look_in_seconds: float | None  # nobody tries again before


def enqueue_many_statement(
    jobs: Sequence[NewJob], schema: str, payloads: Sequence[str] | None = None
) -> tuple[bytes, tuple[str, ...]]:
    """Return the statement that enqueues a batch, and its parameters; it gives (place, id) rows.

    `payloads` are those of the jobs, when they are encoded already.
    """
    types = "uuid[] uuid[] text[] text[] text[] smallint[] timestamptz[] float8[] integer[] text[]"
    if payloads is None:
        payloads = [encode(job.payload) for job in jobs]
    parameters = _arrays(list(new_ids(len(jobs))), jobs, payloads)
    return call("enqueue_many", types, schema), (*parameters, asking.array([job.unique_key for job in jobs]))


def _arrays(ids: Sequence[JobId], jobs: Sequence[NewJob], payloads: Sequence[str]) -> tuple[str, ...]:
    """Return what a batch consists of, but for the unique keys: an array a column."""
    array = asking.array
    return (
        array([job_id.hex for job_id in ids]),
        array([job.org_id.hex for job in jobs]),
        array([job.queue_name for job in jobs]),  # null: the handler's, or the default
        array([job.job_type for job in jobs]),
        array(payloads),
        array([str(job.priority) for job in jobs]),
        array([None if job.scheduled_at is None else job.scheduled_at.isoformat() for job in jobs]),
        array([None if job.delay_seconds is None else str(job.delay_seconds) for job in jobs]),
        array([None if job.max_attempts is None else str(job.max_attempts) for job in jobs]),
    )


async def enqueue(connection: Connection[Any], schema: str, job: NewJob) -> JobId:
    """Enqueue one job, in one round trip; with a unique key, return the unfinished job that holds it if there is one.

    Cancellation: on a connection in autocommit that is still open, nothing was enqueued.

    Raises:
        InvalidPayload, PayloadTooLarge: the payload cannot be stored.
    """
    if job.unique_key is None and _is_alone(connection):
        (made,) = await insert(connection, schema, [job], [encode(job.payload)])
        return made
    # Not enqueue(), the door for SQL: it counts the bytes of a payload anew, and they were counted when it was encoded.
    statement, parameters = enqueue_many_statement([job], schema)
    if not _is_alone(connection):
        ((_, job_id),) = await _rows(connection, schema, statement, parameters)
        return JobId(job_id)
    with translated(schema):
        ((_, raw_id),) = rows(await asking.run(connection, numbered(statement), parameters))
    return JobId(uuid_from(raw_id))


async def insert(connection: Connection[Any], schema: str, jobs: Sequence[NewJob], payloads: Sequence[str]) -> list[JobId]:
    """Enqueue jobs that have no unique keys, given with their payloads' text, by one statement; all or none.

    Cancellation: on a connection in autocommit that is still open, nothing was enqueued.

    Source: sql/queries/insert_jobs.sql
    """
    ids = list(new_ids(len(jobs)))
    with translated(schema):
        await asking.run(connection, numbered(query("insert_jobs", schema)), _arrays(ids, jobs, payloads))
    return ids


async def enqueue_claimed(
    connection: Connection[Any],
    schema: str,
    job: NewJob,
    *,
    job_id: JobId,
    execution_id: ExecutionId,
    worker_id: WorkerId,
    lease_seconds: float,
    queue_name: str,
    max_attempts: int,
) -> tuple[str, bool, datetime]:
    """Enqueue one job that is due, and claim it for a worker unless another job of the queue is due already.

    Queue and attempts are the job's, or what the worker's handler says.

    Returns: the payload's text; whether it was claimed; the database's time.

    Source: sql/functions/enqueue_claimed.sql, runtime/handover.py
    """
    payload_text = encode(job.payload)
    types = "uuid uuid uuid float8 uuid text text text smallint integer"
    with translated(schema):
        result = await asking.run(
            connection,
            direct_call("enqueue_claimed", types, schema),
            (
                job_id.hex, execution_id.hex, worker_id.hex, str(lease_seconds),
                job.org_id.hex, queue_name, job.job_type, payload_text, str(job.priority), str(max_attempts),
            ),
        )  # fmt: skip
    ((is_claimed, time_now),) = rows(result)
    return payload_text, boolean_from(is_claimed), time_from(time_now)


def enqueue_blocking(connection: psycopg.Connection[Any], schema: str, job: NewJob) -> JobId:
    """Do what `enqueue` does on a blocking connection: the event loop stands still for a round trip."""
    statement, parameters = enqueue_many_statement([job], schema)
    ((_, job_id),) = _rows_blocking(connection, schema, statement, parameters)
    return JobId(job_id)


async def enqueue_many(connection: Connection[Any], schema: str, jobs: Sequence[NewJob]) -> list[JobId]:
    """Enqueue jobs, all or none, and return their ids in order.

    Up to ONE_STATEMENT_JOBS_MAX go in one statement. More are copied, but for those with a unique key, and but for a role
    that row security binds, to which PostgreSQL denies COPY: those go in several statements.

    Cancellation: none of them are enqueued, or all are and `trio.Cancelled` comes at the next checkpoint.

    Raises:
        InvalidPayload, PayloadTooLarge: a payload cannot be stored; none is enqueued, and a transaction of yours goes on.
    """
    jobs = list(jobs)
    if not jobs:
        return []
    is_plain = _is_alone(connection) and all(job.unique_key is None for job in jobs)
    if len(jobs) <= ONE_STATEMENT_JOBS_MAX:
        if is_plain:
            return await insert(connection, schema, jobs, [encode(job.payload) for job in jobs])
        statement, parameters = enqueue_many_statement(jobs, schema)
        return _in_order(await _rows(connection, schema, statement, parameters))

    if is_plain:
        now, may_copy, queues = await _look_before_copy(connection, schema, jobs)
        if may_copy:
            # One statement, so all or none. It may begin before all payloads are checked: nobody else's transaction would fail.
            return await _copy(connection, schema, jobs, (encode(job.payload) for job in jobs), now, queues)
    payloads: list[str] = []
    for start in range(0, len(jobs), AT_ONCE_JOBS_MAX):
        payloads += [encode(job.payload) for job in jobs[start : start + AT_ONCE_JOBS_MAX]]
        await trio.lowlevel.checkpoint()
    # A connection that is not in autocommit is in its owner's transaction already, or about to be: it is not ours to commit.
    async with connection.transaction() if connection.autocommit else nullcontext():
        return await _enqueue_in_parts(connection, schema, jobs, payloads)


async def _enqueue_in_parts(
    connection: Connection[Any], schema: str, jobs: Sequence[NewJob], payloads: Sequence[str]
) -> list[JobId]:
    """Copy what can be copied, and send the rest in statements of ONE_STATEMENT_JOBS_MAX jobs, within a transaction."""
    ids: dict[int, JobId] = {}
    now, may_copy, queues = await _look_before_copy(connection, schema, jobs)
    if may_copy:
        plain = [place for place, job in enumerate(jobs) if job.unique_key is None]
        made = await _copy(connection, schema, [jobs[p] for p in plain], [payloads[p] for p in plain], now, queues)
        ids.update(zip(plain, made, strict=True))
    for places in _batches([place for place in _in_key_order(jobs) if place not in ids]):
        statement, parameters = enqueue_many_statement([jobs[p] for p in places], schema, [payloads[p] for p in places])
        ids.update(zip(places, _in_order(await _rows(connection, schema, statement, parameters)), strict=True))
    return [ids[place] for place in range(len(jobs))]


def enqueue_many_blocking(connection: psycopg.Connection[Any], schema: str, jobs: Sequence[NewJob]) -> list[JobId]:
    """Do what `enqueue_many` does on a blocking connection, in statements of ONE_STATEMENT_JOBS_MAX jobs."""
    jobs = list(jobs)
    payloads = [encode(job.payload) for job in jobs]
    ids: dict[int, JobId] = {}
    with connection.transaction() if connection.autocommit else nullcontext():
        for places in _batches(_in_key_order(jobs)):
            statement, parameters = enqueue_many_statement([jobs[p] for p in places], schema, [payloads[p] for p in places])
            ids.update(zip(places, _in_order(_rows_blocking(connection, schema, statement, parameters)), strict=True))
    return [ids[place] for place in range(len(jobs))]


def _in_key_order(jobs: Sequence[NewJob]) -> list[int]:
    """Return the places of the jobs: plain ones in order, then those with a unique key by tenant, type and key.

    Two who enqueue the same keys wait for each other; in one order they do not deadlock. sql/functions/enqueue_many.sql keeps the same
    order within a statement.
    """
    keyed = [
        (job.org_id.bytes, job.job_type, job.unique_key, place) for place, job in enumerate(jobs) if job.unique_key is not None
    ]
    return [place for place, job in enumerate(jobs) if job.unique_key is None] + [place for *_, place in sorted(keyed)]


def _batches(places: list[int]) -> list[list[int]]:
    return [places[start : start + ONE_STATEMENT_JOBS_MAX] for start in range(0, len(places), ONE_STATEMENT_JOBS_MAX)]


def _in_order(rows: list[tuple[Any, ...]]) -> list[JobId]:
    return [JobId(job_id) for _, job_id in sorted(rows)]


async def _look_before_copy(
    connection: Connection[Any], schema: str, jobs: Sequence[NewJob]
) -> tuple[datetime, bool, dict[str, str]]:
    """Return the database's time, whether this role may copy into the table, and the queues of types whose jobs name none."""
    statement = compose(
        "select {schema}.clock(), not row_security_active(({schema_text} || '.jobs')::regclass), "
        "(select array_agg({schema}.queue_of(t.name) order by t.place) from unnest(%s::text[]) with ordinality as t(name, place))",
        schema,
    )
    types = list({job.job_type for job in jobs if job.queue_name is None})
    ((now, may_copy, queues),) = await _rows(connection, schema, statement, (types,))
    known = zip(types, queues or (), strict=True)
    return now, may_copy, {job_type: queue for job_type, queue in known if queue is not None}


async def _copy(
    connection: Connection[Any],
    schema: str,
    jobs: Sequence[NewJob],
    payloads: Iterable[str],
    now: datetime,
    queues: Mapping[str, str],
) -> list[JobId]:
    """Copy jobs, given with their payloads' text, into the table. Delays count from `now`, the database's time.

    `queues` are those of job types whose handler is known; of others that name none the first handler says it.

    The server takes in what is written while the next lines are made.
    """
    if not jobs:
        return []
    ids: list[JobId] = []
    columns = "id, org_id, queue_name, job_type, payload, priority, scheduled_at, max_attempts, created_at, queue_not_said"
    statement = compose("copy {schema}.jobs (" + columns + ") from stdin", schema)
    now_text = now.isoformat()
    lines: list[str] = []
    with translated(schema):
        async with Cursor(connection, row_factory=tuple_row).copy(statement) as copy:
            for job_id, job, payload in zip(new_ids(len(jobs)), jobs, payloads, strict=True):
                due = job.scheduled_at
                if due is None and job.delay_seconds:
                    due = now + timedelta(seconds=job.delay_seconds)
                # Names fit their patterns and JSON text holds no raw tab or newline, so only backslashes need escaping.
                queue = job.queue_name or queues.get(job.job_type)
                maximum = "\\N" if job.max_attempts is None else job.max_attempts
                escaped = payload.replace("\\", "\\\\") if "\\" in payload else payload
                lines.append(
                    f"{job_id.int:032x}\t{job.org_id.int:032x}\t{queue or 'default'}\t{job.job_type}\t{escaped}\t{job.priority}\t"
                    f"{now_text if due is None else due.isoformat()}\t{maximum}\t{now_text}\t"
                    f"{'f' if queue else 't'}\n"
                )
                ids.append(job_id)
                if len(lines) >= AT_ONCE_JOBS_MAX:
                    await copy.write("".join(lines))
                    lines.clear()
            await copy.write("".join(lines))
    return ids


async def cancel(connection: Connection, schema: str, job_id: JobId, why: str | None = None) -> str:
    """Ask a job to stop: `cancelled`, `stopping`, `finished` or `unknown`. Source: sql/functions/cancel.sql."""
    reason = None if why is None else bounded(why)
    with translated(schema):
        ((told,),) = rows(await asking.run(connection, direct_call("cancel", "uuid text", schema), (job_id.hex, reason)))
    return text_from(told, connection.info.encoding)


async def await_job(connection: Connection, schema: str, job_id: JobId) -> bool:
    """Have the end of a job announced; False when it has ended, or is not there. Source: sql/functions/await_job.sql."""
    ((is_to_end,),) = await _rows(connection, schema, call("await_job", "uuid", schema), (job_id,))
    return bool(is_to_end)


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
    """Return jobs, newest first.

    Raises:
        ConfigError: `status` is not a status, nor one of scheduled, retrying, stopping; or `limit` is negative.
    """
    if status is not None and status not in LABELS:
        raise ConfigError(f"status {status!r} is not known: use one of {', '.join(LABELS)}")
    return await _list(connection, schema, label=status, queue=queue, job_type=job_type, org_id=org_id, limit=limit)


async def history(connection: Connection, schema: str, job_id: JobId) -> list[Execution]:
    """Return the attempts of a job, oldest first, the one under way included. A dead letter's are there too."""
    return [Execution(**row) for row in await _read(connection, schema, query("executions", schema), {"id": job_id})]


async def explain(connection: Connection, schema: str, job_id: JobId) -> Explanation | None:
    """Return why a job is where it is, or None where `get_job` does."""
    rows = await _read(connection, schema, query("explain", schema), {"id": job_id})
    return Explanation(**rows[0]) if rows else None


async def list_dead(
    connection: Connection, schema: str, *, queue: str | None = None, job_type: str | None = None, limit: int = 50
) -> list[DeadLetter]:
    """Return dead letters, the latest first.

    Raises:
        ConfigError: `limit` is negative.
    """
    return await _list_dead(connection, schema, queue=queue, job_type=job_type, limit=limit)


async def get_dead(connection: Connection, schema: str, job_id: JobId) -> DeadLetter | None:
    """Return a dead letter, or None."""
    found = await _list_dead(connection, schema, id=job_id, limit=1)
    return found[0] if found else None


async def requeue(connection: Connection, schema: str, job_id: JobId) -> bool:
    """Bring a dead letter back as the job it was; False when there is none.

    Raises:
        UniqueKeyHeld: an unfinished job holds its unique key; the dead letter stays.
        IllegalTransition: a job has its id, which somebody chose by hand; the dead letter stays.
    """
    try:
        ((was_there,),) = await _rows(connection, schema, call("requeue", "uuid", schema), (job_id,))
    except errors.UniqueViolation as error:
        if error.diag.constraint_name == "jobs_pkey":
            message = f"dead letter {job_id} cannot be requeued: a job has its id; delete that job, or purge the letter"
            raise IllegalTransition(message) from error
        message = (
            f"dead letter {job_id} cannot be requeued: an unfinished job has its unique key; wait for that one, or cancel it"
        )
        raise UniqueKeyHeld(message) from error
    return bool(was_there)


async def requeue_all(
    connection: Connection, schema: str, *, queue: str | None = None, job_type: str | None = None, limit: int = 1000
) -> int:
    """Bring back dead letters, the oldest first, in one transaction; return how many.

    Those whose unique key an unfinished job holds stay, and do not count.

    Raises:
        ConfigError: `limit` is negative.
    """
    statement = call("requeue_all", "text text integer", schema)
    ((restored,),) = await _rows(connection, schema, statement, (queue, job_type, _check_limit(limit)))
    return int(restored)


async def count_dead(connection: Connection, schema: str, *, queue: str | None = None, job_type: str | None = None) -> int:
    """Return how many dead letters there are of some kind."""
    ((count,),) = await _rows(connection, schema, query("count_dead", schema), {"queue": queue, "job_type": job_type})
    return int(count)


async def purge_dead(
    connection: Connection, schema: str, *, job_id: JobId | None = None, older_than_seconds: float | None = None
) -> int:
    """Delete a dead letter, or those that died longer ago than given; return how many. Without either: none.

    Raises:
        ConfigError: `older_than_seconds` is negative or not a number.
    """
    if older_than_seconds is not None and not 0 <= older_than_seconds < math.inf:
        raise ConfigError(f"older_than_seconds {older_than_seconds!r} is out of range: use 0, which is all of them, or more")
    parameters = {"id": job_id, "older_than_seconds": older_than_seconds}
    ((gone,),) = await _rows(connection, schema, query("purge_dead", schema), parameters)
    return int(gone)


async def set_retention(
    connection: Connection, schema: str, queue: str, keep_seconds: float | None, *, ending: str | None = None
) -> None:
    """Say how long the finished jobs of a queue are kept, whatever workers are set to.

    Raises:
        InvalidJob: a value is out of range.

    Source: sql/functions/set_retention.sql
    """
    await _rows(connection, schema, call("set_retention", "text float8 text", schema), (queue, keep_seconds, ending))


async def list_workers(connection: Connection, schema: str) -> list[WorkerRow]:
    """Return the worker processes, the oldest first."""
    return [WorkerRow(**row) for row in await _read(connection, schema, query("workers", schema))]


async def stats(connection: Connection, schema: str) -> list[QueueRow]:
    """Return what each queue holds, by name."""
    return [QueueRow(**row) for row in await _read(connection, schema, query("stats", schema))]


async def list_troubles(
    connection: Connection,
    schema: str,
    *,
    job_id: JobId | None = None,
    job_ids: Sequence[JobId] | None = None,
    verb: str | None = None,
    within_seconds: float | None = None,
    limit: int = 50,
) -> list[TroubleRow]:
    """Return jobs that were put aside, the latest first. `within_seconds`: only what was tried so short a time ago.

    Source: sql/queries/troubles.sql
    """
    parameters = {
        "id": job_id,
        "ids": None if job_ids is None else list(job_ids),
        "verb": verb,
        "within_seconds": within_seconds,
        "limit": _check_limit(limit),
    }
    return [TroubleRow(**row) for row in await _read(connection, schema, query("troubles", schema), parameters)]


async def count_troubles(connection: Connection, schema: str) -> dict[str, int]:
    """Return how many jobs were put aside, by what could not be done."""
    rows = await _read(connection, schema, query("count_troubles", schema))
    return {row["verb"]: row["count"] for row in rows}


def new_ids(count: int) -> Iterator[JobId]:
    """Make ids in version 7 order, as the database's own ids are, each above the one before.

    Jobs of one batch that fall due at the same moment are claimed in order of id, which is then the order they were given in.
    """
    noise = memoryview(os.urandom(8 * count)).cast("Q")
    # 48 bits of milliseconds and 12 of their fraction; where the clock stands still the fraction counts on.
    milliseconds, nanoseconds = divmod(time.time_ns(), 1_000_000)
    first = (milliseconds << 12) | (nanoseconds * 4096 // 1_000_000)
    for tick, bits in enumerate(noise, first):
        head = (tick >> 12 << 16) | 0x7000 | (tick & 0xFFF)
        yield JobId(uuid_of((head << 64) | 0x8000_0000_0000_0000 | (bits >> 2)))


async def _rows(connection: Connection[Any], schema: str, statement: bytes, parameters: Any = None) -> list[tuple[Any, ...]]:
    with translated(schema):
        cursor = Cursor(connection, row_factory=tuple_row)
        # In a transaction a statement that a pooler has lost would cost the transaction.
        await cursor.execute(statement, parameters, prepare=None if _is_alone(connection) else False, binary=True)
        return await cursor.fetchall()


def _is_alone(connection: Connection[Any]) -> bool:
    """Tell whether the next statement will be a transaction of its own."""
    pgconn = connection.pgconn
    return (
        connection.autocommit
        and pgconn.transaction_status == pq.TransactionStatus.IDLE
        and pgconn.pipeline_status == pq.PipelineStatus.OFF
    )


def _rows_blocking(connection: psycopg.Connection[Any], schema: str, statement: bytes, parameters: Any) -> list[tuple[Any, ...]]:
    with translated(schema), psycopg.Cursor(connection, row_factory=tuple_row) as cursor:
        # Not prepared: in a longer transaction, a plan that has become stale would cost it.
        cursor.execute(statement, parameters, prepare=False, binary=True)
        return cursor.fetchall()


async def _read(connection: Connection, schema: str, statement: bytes, parameters: Any = None) -> list[dict[str, Any]]:
    """Return rows by the names of their columns; what Python cannot hold is replaced, so that it hides no other row (columns.py)."""
    with translated(schema):
        cursor = Cursor(connection, row_factory=tuple_row)
        read_leniently(cursor.adapters, connection.info.encoding)
        await cursor.execute(statement, parameters, prepare=None if _is_alone(connection) else False, binary=True)
        names = [column.name for column in cursor.description or ()]
        return [dict(zip(names, row, strict=True)) for row in await cursor.fetchall()]


async def _list(connection: Connection, schema: str, *, limit: int, **filters: Any) -> list[Job]:
    parameters = {"id": None, "label": None, "queue": None, "job_type": None, "org_id": None, **filters}
    parameters["limit"] = _check_limit(limit)
    return [_job(row) for row in await _read(connection, schema, query("jobs", schema), parameters)]


async def _list_dead(connection: Connection, schema: str, *, limit: int, **filters: Any) -> list[DeadLetter]:
    parameters = {"id": None, "queue": None, "job_type": None, **filters, "limit": _check_limit(limit)}
    return [_dead_letter(row) for row in await _read(connection, schema, query("dead", schema), parameters)]


def _check_limit(limit: int) -> int:
    if not 0 <= limit < 2**31:
        raise ConfigError(f"limit {limit!r} is out of range: use 0 to {2**31 - 1}")
    return limit


def _job(values: dict[str, Any]) -> Job:
    values["payload"] = _payload(values)
    values["status"] = Status(values["status"])
    return Job(**values)


def _dead_letter(values: dict[str, Any]) -> DeadLetter:
    values["payload"] = _payload(values)
    history = values["history"]
    entries = history if isinstance(history, list) else [history]
    values["history"] = tuple(_attempt(values["id"], entry, values["died_at"]) for entry in entries)
    return DeadLetter(**values)


def _payload(values: dict[str, Any]) -> Any:
    size = values.pop("unread_bytes")
    return values["payload"] if size is None else Undecodable(f"the payload has {size} bytes, which are more than is read")


def _attempt(job_id: JobId, attempt: Any, died_at: datetime) -> Execution:
    """Read an entry of a dead letter's history. Raw SQL may have stored anything there."""
    try:
        return Execution(
            id=ExecutionId(UUID(attempt["id"])),
            job_id=job_id,
            attempt=int(attempt["attempt"]),
            worker_id=WorkerId(UUID(attempt["worker_id"])) if attempt["worker_id"] else None,
            outcome=str(attempt["outcome"]),
            started_at=time_from_text(attempt["started_at"]),
            ended_at=time_from_text(attempt["ended_at"]),
            error_message=None if attempt["error_message"] is None else str(attempt["error_message"]),
        )
    except (TypeError, ValueError, LookupError, AttributeError):
        return Execution(
            id=ExecutionId(UUID(int=0)),
            job_id=job_id,
            attempt=0,
            worker_id=None,
            outcome="undecodable",
            started_at=died_at,
            ended_at=died_at,
            error_message=f"this entry of the history cannot be read: {attempt!r:.200}",
        )
