"""Jobs that come in: one, a few in one statement, and one that the caller claims at once."""

from __future__ import annotations

import os
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

from pgnotifyq.ledger.ask import Aside, Ask, Plan, array, text
from pgnotifyq.ledger.columns import rows
from pgnotifyq.ledger.errors import said_of
from pgnotifyq.ledger.statements import call, query
from pgnotifyq.model.errors import UniqueKeyHeld
from pgnotifyq.model.job import ExecutionId, JobId, WorkerId, uuid_of
from pgnotifyq.model.new_job import NewJob
from pgnotifyq.model.payload import encode
from pgnotifyq.model.unique import Enqueued, EnqueueOutcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pgnotifyq.ledger.ask import Answer, Steps

T = TypeVar("T")

_OUTCOMES = {str(outcome): outcome for outcome in EnqueueOutcome}

# One statement carries its jobs as arrays; larger batches are copied. COPY costs three round trips
# more. It spares client and server together 6 of 27 microseconds a job at 100 jobs, and 5 of 22 at
# 1,000. So it pays from about here.
ONE_STATEMENT_JOBS_MAX = 100
# How many jobs are made, encoded, or written to a COPY before other tasks may run: about 5 ms.
AT_ONCE_JOBS_MAX = 500


def enqueue_together(schema: str, jobs: Sequence[NewJob], payloads: Sequence[str]) -> Ask[list[JobId]]:
    """Enqueue up to ONE_STATEMENT_JOBS_MAX jobs, and return their ids in order.

    Their payloads are given as text.

    If another job holds a job's unique key, and is kept or replaced, the id is that of the holder.

    Source: sql/functions/enqueue/enqueue_many.sql, sql/functions/enqueue/enqueue_unique.sql
    """
    return _together(schema, jobs, payloads, _ids)


def enqueue_together_told(schema: str, jobs: Sequence[NewJob], payloads: Sequence[str]) -> Ask[list[Enqueued]]:
    """Do what `enqueue_together` does, and return what became of each job, in order.

    Raises:
        UniqueKeyHeld: a job was refused; none is enqueued.
    """
    return _together(schema, jobs, payloads, _told)


def _together(schema: str, jobs: Sequence[NewJob], payloads: Sequence[str], read: Callable[[Answer, str], T]) -> Ask[T]:
    statement = "enqueue_many"
    rules: tuple[str | None, ...] = ()
    values = (
        *_arrays(list(new_ids(len(jobs))), jobs, payloads),
        array([job.unique_key or "" for job in jobs]),
        _headers(jobs),
    )
    if any([job.is_unique for job in jobs]):  # noqa: C419  # a generator takes twice the time
        statement = "enqueue_unique"
        rules = (_rules(jobs),)
    return Ask(query(statement, schema), (*values, *rules), read, said_of(schema), may_repeat=False)


def _rules(jobs: Sequence[NewJob]) -> str | None:
    """Return the array of what `unique` says; None: no job says more than a key."""
    rules: dict[int, str | None] = {}  # all jobs may share one Unique
    for job in jobs:
        if job.unique is not None and id(job.unique) not in rules:
            rules[id(job.unique)] = job.unique.rule
    if not any(rules.values()):
        return None
    return array([(None if job.unique is None else rules[id(job.unique)]) or "" for job in jobs])


def _headers(jobs: Sequence[NewJob]) -> str | None:
    """Return the array of headers; None: no job has any. None spares the server a value a job."""
    return None if not any(job.headers for job in jobs) else array([job.headers_text or "" for job in jobs])


def _told(answer: Answer, encoding: str) -> list[Enqueued]:
    found = _in_order(answer, encoding)
    if answer.nfields == 2:  # enqueue_many
        return [Enqueued(JobId(job_id), EnqueueOutcome.CREATED) for _, job_id in found]
    return [Enqueued(JobId(job_id), _OUTCOMES[outcome]) for _, job_id, outcome in found]


def _ids(answer: Answer, encoding: str) -> list[JobId]:
    return [JobId(job_id) for _, job_id, *_ in _in_order(answer, encoding)]


def _in_order(answer: Answer, encoding: str) -> list[tuple[Any, ...]]:
    """Return the rows of enqueue_many or enqueue_unique.

    Raises:
        UniqueKeyHeld: a job was refused. Then all rows are of refused jobs.
    """
    found = sorted(rows(answer, encoding))
    if found and found[0][-1] == "refused":
        job_id = JobId(found[0][1])
        raise UniqueKeyHeld(f"job {job_id} holds the unique key; wait for it, cancel it, or pass another on_conflict", job_id)
    return found


def _arrays(ids: Sequence[JobId], jobs: Sequence[NewJob], payloads: Sequence[str]) -> tuple[str, ...]:
    """Return a batch, but for unique keys and headers, as one array for each column.

    An empty text is null (insert_jobs.sql).
    """
    return (
        array([job_id.hex for job_id in ids]),
        array([job.org_id.hex for job in jobs]),
        array([job.queue_name or "" for job in jobs]),  # null: the handler's, or the default
        array([job.job_type for job in jobs]),
        array(payloads),
        array([str(job.priority) for job in jobs]),
        array(["" if job.scheduled_at is None else job.scheduled_at.isoformat() for job in jobs]),
        array(["" if job.delay_seconds is None else str(job.delay_seconds) for job in jobs]),
        array(["" if job.max_attempts is None else str(job.max_attempts) for job in jobs]),
    )


def enqueue(schema: str, job: NewJob) -> Plan[JobId]:
    """Enqueue one job, in one round trip.

    If an unfinished job holds its unique key, return the id of that job.

    Cancellation: on a connection in autocommit that is still open, nothing was enqueued.

    Raises:
        InvalidPayload, PayloadTooLarge: the payload cannot be stored.
    """
    payload = encode(job.payload)

    def steps() -> Steps[JobId]:
        made: JobId = yield enqueue_one(schema, job, payload, is_alone=(yield Aside.IS_ALONE))
        return made

    return Plan(steps, may_repeat=False)


def enqueue_one(schema: str, job: NewJob, payload: str, *, is_alone: bool) -> Ask[JobId]:
    """Do what `enqueue` does, given the payload's text.

    `is_alone` tells whether the statement will be a transaction of its own.

    Source: sql/queries/insert_job.sql, sql/functions/enqueue/enqueue_many.sql
    """
    # This does not call the function enqueue() of the database, which is the door for SQL. That
    # function counts the bytes of a payload. Here they were counted when the payload was encoded.
    if job.is_unique or not is_alone:
        return _together(schema, [job], [payload], _one_id)
    (job_id,) = new_ids(1)
    values = (
        job_id.hex, job.org_id.hex, job.queue_name, job.job_type, payload, str(job.priority),
        None if job.scheduled_at is None else job.scheduled_at.isoformat(), text(job.delay_seconds), text(job.max_attempts),
        job.headers_text,
    )  # fmt: skip
    return Ask(query("insert_job", schema), values, lambda _, __: job_id, said_of(schema), may_repeat=False)


def enqueue_told(schema: str, job: NewJob) -> Plan[Enqueued]:
    """Do what `enqueue` does, and return what became of it.

    Raises:
        InvalidPayload, PayloadTooLarge: the payload cannot be stored.
        UniqueKeyHeld: the job was refused.
    """
    payload = encode(job.payload)

    def steps() -> Steps[Enqueued]:
        (told,) = yield enqueue_together_told(schema, [job], [payload])
        return told  # type: ignore[no-any-return]

    return Plan(steps, may_repeat=False)


def _one_id(answer: Answer, encoding: str) -> JobId:
    (job_id,) = _ids(answer, encoding)
    return job_id


def insert(schema: str, jobs: Sequence[NewJob], payloads: Sequence[str]) -> Ask[list[JobId]]:
    """Enqueue jobs that have no unique keys, by one statement; all or none.

    Their payloads are given as text.

    Cancellation: on a connection in autocommit that is still open, nothing was enqueued.

    Source: sql/queries/insert_jobs.sql
    """
    ids = list(new_ids(len(jobs)))
    unsaid = array({job.job_type for job in jobs if job.queue_name is None})
    values = (*_arrays(ids, jobs, payloads), _headers(jobs), unsaid)
    return Ask(query("insert_jobs", schema), values, lambda _, __: ids, said_of(schema), may_repeat=False)


def enqueue_claimed(
    schema: str,
    job: NewJob,
    payload: str,
    *,
    job_id: JobId,
    execution_id: ExecutionId,
    worker_id: WorkerId,
    lease_seconds: float,
    queue_name: str,
    max_attempts: int,
) -> Ask[tuple[bool, datetime]]:
    """Enqueue one job that is due, and claim it for a worker.

    The job is not claimed if another job of the queue is due already. Its payload is given as text.

    `queue_name` and `max_attempts` are the job's own, or what the worker's handler says.

    Returns: whether the job was claimed; the database's time.

    Source: sql/functions/enqueue/enqueue_claimed.sql, runtime/shortcuts.py
    """

    def read(answer: Answer, encoding: str) -> tuple[bool, datetime]:
        ((is_claimed, time_now),) = rows(answer, encoding)
        return is_claimed, time_now

    types = "uuid uuid uuid float8 uuid text text text smallint integer text"
    values = (
        job_id.hex, execution_id.hex, worker_id.hex, str(lease_seconds),
        job.org_id.hex, queue_name, job.job_type, payload, str(job.priority), str(max_attempts), job.headers_text,
    )  # fmt: skip
    return Ask(call("enqueue_claimed", types, schema), values, read, said_of(schema), may_repeat=False)


def new_ids(count: int) -> Iterator[JobId]:
    """Make ids in version 7 order, as the database's own ids are, each above the one before.

    Jobs of one batch that fall due at the same moment are claimed in order of id. That is then the
    order in which they were given.
    """
    noise = memoryview(os.urandom(8 * count)).cast("Q")
    # 48 bits of milliseconds and 12 of their fraction. If the clock stands still, the fraction
    # counts on.
    milliseconds, nanoseconds = divmod(time.time_ns(), 1_000_000)
    first = (milliseconds << 12) | (nanoseconds * 4096 // 1_000_000)
    for tick, bits in enumerate(noise, first):
        head = (tick >> 12 << 16) | 0x7000 | (tick & 0xFFF)
        yield JobId(uuid_of((head << 64) | 0x8000_0000_0000_0000 | (bits >> 2)))
