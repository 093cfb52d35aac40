"""The verbs of everybody who is not a worker: enqueue, cancel, requeue, purge, and looking.

The SQL lives in sql/functions and sql/queries. Whoever enqueues within a transaction of their own asks by their own connection.
"""

from __future__ import annotations

import math
import os
import time
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

import attrs
from psycopg import errors

from pgnotifyq.ledger.ask import Aside, Ask, Copy, Plan, array, nothing, text
from pgnotifyq.ledger.columns import number, records, rows, time_from_text, truth, word
from pgnotifyq.ledger.errors import raise_translated, said_of
from pgnotifyq.ledger.statements import call, query
from pgnotifyq.model.errors import ConfigError, IllegalTransition, UniqueKeyHeld
from pgnotifyq.model.job import DeadLetter, Execution, ExecutionId, Job, JobId, NewJob, OrgId, WorkerId, uuid_of
from pgnotifyq.model.outcome import bounded
from pgnotifyq.model.payload import Undecodable, encode
from pgnotifyq.model.states import Status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from pgnotifyq.ledger.ask import Answer, Steps

T = TypeVar("T")

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


def enqueue_together(schema: str, jobs: Sequence[NewJob], payloads: Sequence[str]) -> Ask[list[JobId]]:
    """Enqueue up to ONE_STATEMENT_JOBS_MAX jobs, given with their payloads' text, and return their ids in order.

    With a unique key, a job's id is that of the unfinished job that holds it, if there is one.

    Source: sql/functions/enqueue/enqueue_many.sql
    """
    return Ask(*_together(schema, jobs, payloads), _in_order, said_of(schema), may_repeat=False)


def _together(schema: str, jobs: Sequence[NewJob], payloads: Sequence[str]) -> tuple[bytes, tuple[str, ...]]:
    values = (*_arrays(list(new_ids(len(jobs))), jobs, payloads), array([job.unique_key or "" for job in jobs]))
    return query("enqueue_many", schema), values


def _in_order(answer: Answer, encoding: str) -> list[JobId]:
    return [JobId(job_id) for _, job_id in sorted(rows(answer, encoding))]


def _arrays(ids: Sequence[JobId], jobs: Sequence[NewJob], payloads: Sequence[str]) -> tuple[str, ...]:
    """Return what a batch consists of, but for the unique keys: an array a column. An empty text is null (insert_jobs.sql)."""
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
    """Enqueue one job, in one round trip; with a unique key, return the unfinished job that holds it if there is one.

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
    """Do what `enqueue` does, given the payload's text, and whether the statement will be a transaction of its own.

    Source: sql/queries/insert_jobs.sql, sql/functions/enqueue/enqueue_many.sql
    """
    # Not enqueue(), the door for SQL: it counts the bytes of a payload anew, and they were counted when it was encoded.
    if job.unique_key is not None or not is_alone:
        statement, values = _together(schema, [job], [payload])
        return Ask(statement, values, _one_id, said_of(schema), may_repeat=False)
    (job_id,) = new_ids(1)
    values = _arrays([job_id], [job], [payload])
    return Ask(query("insert_jobs", schema), values, lambda _, __: job_id, said_of(schema), may_repeat=False)


def _one_id(answer: Answer, encoding: str) -> JobId:
    (job_id,) = _in_order(answer, encoding)
    return job_id


def insert(schema: str, jobs: Sequence[NewJob], payloads: Sequence[str]) -> Ask[list[JobId]]:
    """Enqueue jobs that have no unique keys, given with their payloads' text, by one statement; all or none.

    Cancellation: on a connection in autocommit that is still open, nothing was enqueued.

    Source: sql/queries/insert_jobs.sql
    """
    ids = list(new_ids(len(jobs)))
    statement = query("insert_jobs", schema)
    return Ask(statement, _arrays(ids, jobs, payloads), lambda _, __: ids, said_of(schema), may_repeat=False)


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
    """Enqueue one job that is due, given with its payload's text, and claim it for a worker unless another job of the queue is due already.

    Queue and attempts are the job's, or what the worker's handler says.

    Returns: whether it was claimed; the database's time.

    Source: sql/functions/enqueue/enqueue_claimed.sql, runtime/handover.py
    """

    def read(answer: Answer, encoding: str) -> tuple[bool, datetime]:
        ((is_claimed, time_now),) = rows(answer, encoding)
        return is_claimed, time_now

    types = "uuid uuid uuid float8 uuid text text text smallint integer"
    values = (
        job_id.hex, execution_id.hex, worker_id.hex, str(lease_seconds),
        job.org_id.hex, queue_name, job.job_type, payload, str(job.priority), str(max_attempts),
    )  # fmt: skip
    return Ask(call("enqueue_claimed", types, schema), values, read, said_of(schema), may_repeat=False)


def enqueue_many(schema: str, jobs: Sequence[NewJob]) -> Plan[list[JobId]]:
    """Enqueue jobs, all or none, and return their ids in order.

    Up to ONE_STATEMENT_JOBS_MAX go in one statement. More are copied, but for those with a unique key, and but for a role
    that row security binds, to which PostgreSQL denies COPY: those go in several statements.

    Cancellation: none of them are enqueued, or all are and `trio.Cancelled` comes at the next checkpoint.

    Raises:
        InvalidPayload, PayloadTooLarge: a payload cannot be stored; none is enqueued, and a transaction of yours goes on.
    """
    jobs = list(jobs)

    def steps() -> Steps[list[JobId]]:
        if not jobs:
            return []
        is_plain = (yield Aside.IS_ALONE) and all(job.unique_key is None for job in jobs)
        if len(jobs) <= ONE_STATEMENT_JOBS_MAX:
            payloads = [encode(job.payload) for job in jobs]
            ids: list[JobId] = yield (insert if is_plain else enqueue_together)(schema, jobs, payloads)
            return ids

        if is_plain:
            now, may_copy, queues = yield _look_before_copy(schema, jobs)
            if may_copy:
                # One statement, so all or none. It may begin before all payloads are checked: nobody else's transaction would fail.
                return (yield from _copy(schema, jobs, (encode(job.payload) for job in jobs), now, queues))
        payloads = []
        for start in range(0, len(jobs), AT_ONCE_JOBS_MAX):
            payloads += [encode(job.payload) for job in jobs[start : start + AT_ONCE_JOBS_MAX]]
            yield Aside.PAUSE
        # A connection that is not in autocommit is in its owner's transaction already, or about to be: it is not ours to commit.
        is_whole: bool = yield Aside.COMMITS
        ids = yield Plan(lambda: _in_parts(schema, jobs, payloads), is_whole=is_whole, may_repeat=False)
        return ids

    return Plan(steps, may_repeat=False)


def _in_parts(schema: str, jobs: Sequence[NewJob], payloads: Sequence[str]) -> Steps[list[JobId]]:
    """Copy what can be copied, and send the rest in statements of ONE_STATEMENT_JOBS_MAX jobs, within a transaction."""
    ids: dict[int, JobId] = {}
    now, may_copy, queues = yield _look_before_copy(schema, jobs)
    if may_copy:
        plain = [place for place, job in enumerate(jobs) if job.unique_key is None]
        made = yield from _copy(schema, [jobs[p] for p in plain], [payloads[p] for p in plain], now, queues)
        ids.update(zip(plain, made, strict=True))
    for places in _batches([place for place in _in_key_order(jobs) if place not in ids]):
        made = yield enqueue_together(schema, [jobs[p] for p in places], [payloads[p] for p in places])
        ids.update(zip(places, made, strict=True))
    return [ids[place] for place in range(len(jobs))]


def _in_key_order(jobs: Sequence[NewJob]) -> list[int]:
    """Return the places of the jobs: plain ones in order, then those with a unique key by tenant, type and key.

    Two who enqueue the same keys wait for each other; in one order they do not deadlock. sql/functions/enqueue/enqueue_many.sql keeps the same
    order within a statement.
    """
    keyed = [
        (job.org_id.bytes, job.job_type, job.unique_key, place) for place, job in enumerate(jobs) if job.unique_key is not None
    ]
    return [place for place, job in enumerate(jobs) if job.unique_key is None] + [place for *_, place in sorted(keyed)]


def _batches(places: list[int]) -> list[list[int]]:
    return [places[start : start + ONE_STATEMENT_JOBS_MAX] for start in range(0, len(places), ONE_STATEMENT_JOBS_MAX)]


def _look_before_copy(schema: str, jobs: Sequence[NewJob]) -> Ask[tuple[datetime, bool, dict[str, str]]]:
    """Return the database's time, whether this role may copy into the table, and the queues of types whose jobs name none.

    Source: sql/queries/look_before_copy.sql
    """
    types = list({job.job_type for job in jobs if job.queue_name is None})

    def read(answer: Answer, encoding: str) -> tuple[datetime, bool, dict[str, str]]:
        ((now, may_copy, queues),) = rows(answer, encoding)
        known = zip(types, queues or (), strict=True)
        return now, may_copy, {job_type: queue for job_type, queue in known if queue is not None}

    return Ask(query("look_before_copy", schema), (array(types),), read, said_of(schema))


def _copy(
    schema: str, jobs: Sequence[NewJob], payloads: Iterable[str], now: datetime, queues: Mapping[str, str]
) -> Steps[list[JobId]]:
    """Copy jobs, given with their payloads' text, into the table. Delays count from `now`, the database's time.

    `queues` are those of job types whose handler is known; of others that name none the first handler says it.

    Source: sql/queries/copy_jobs.sql
    """
    if not jobs:
        return []
    ids = list(new_ids(len(jobs)))
    yield Copy(query("copy_jobs", schema), _pieces(ids, jobs, payloads, now, queues), said_of(schema))
    return ids


def _pieces(
    ids: Sequence[JobId], jobs: Sequence[NewJob], payloads: Iterable[str], now: datetime, queues: Mapping[str, str]
) -> Iterator[str]:
    """Yield the lines of a COPY, AT_ONCE_JOBS_MAX at a time. The server takes in what is written while the next are made."""
    now_text = now.isoformat()
    lines: list[str] = []
    for job_id, job, payload in zip(ids, jobs, payloads, strict=True):
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
        if len(lines) >= AT_ONCE_JOBS_MAX:
            yield "".join(lines)
            lines.clear()
    yield "".join(lines)


def cancel(schema: str, job_id: JobId, why: str | None = None) -> Ask[str]:
    """Ask a job to stop: `cancelled`, `stopping`, `finished` or `unknown`. Source: sql/functions/end/cancel.sql."""
    reason = None if why is None else bounded(why)
    return Ask(call("cancel", "uuid text", schema), (job_id.hex, reason), word, said_of(schema))


def await_job(schema: str, job_id: JobId) -> Ask[bool]:
    """Have the end of a job announced; False when it has ended, or is not there. Source: sql/functions/end/await_job.sql."""
    return Ask(call("await_job", "uuid", schema), (job_id.hex,), truth, said_of(schema))


def get_job(schema: str, job_id: JobId) -> Ask[Job | None]:
    """Return a job, or None: it never was, was pruned, or is a dead letter. Source: sql/queries/jobs.sql."""
    return Ask(query("jobs", schema), (job_id.hex, None, None, None, None, "1"), _one_job, said_of(schema))


def list_jobs(
    schema: str,
    *,
    status: str | None = None,
    queue: str | None = None,
    job_type: str | None = None,
    org_id: OrgId | None = None,
    limit: int = 50,
) -> Ask[list[Job]]:
    """Return jobs, newest first.

    Raises:
        ConfigError: `status` is not a status, nor one of scheduled, retrying, stopping; or `limit` is negative.

    Source: sql/queries/jobs.sql
    """
    if status is not None and status not in LABELS:
        raise ConfigError(f"status {status!r} is not known: use one of {', '.join(LABELS)}")
    values = (None, status, queue, job_type, text(org_id), str(_check_limit(limit)))
    return Ask(query("jobs", schema), values, _jobs, said_of(schema))


def history(schema: str, job_id: JobId) -> Ask[list[Execution]]:
    """Return the attempts of a job, oldest first, the one under way included. A dead letter's are there too."""
    return Ask(query("executions", schema), (job_id.hex,), _list_of(Execution), said_of(schema))


def explain(schema: str, job_id: JobId) -> Ask[Explanation | None]:
    """Return why a job is where it is, or None where `get_job` does."""

    def read(answer: Answer, encoding: str) -> Explanation | None:
        found = records(answer, encoding)
        return Explanation(**found[0]) if found else None

    return Ask(query("explain", schema), (job_id.hex,), read, said_of(schema))


def list_dead(schema: str, *, queue: str | None = None, job_type: str | None = None, limit: int = 50) -> Ask[list[DeadLetter]]:
    """Return dead letters, the latest first.

    Raises:
        ConfigError: `limit` is negative.

    Source: sql/queries/dead.sql
    """
    return Ask(query("dead", schema), (None, queue, job_type, str(_check_limit(limit))), _dead_letters, said_of(schema))


def get_dead(schema: str, job_id: JobId) -> Ask[DeadLetter | None]:
    """Return a dead letter, or None. Source: sql/queries/dead.sql."""

    def read(answer: Answer, encoding: str) -> DeadLetter | None:
        found = _dead_letters(answer, encoding)
        return found[0] if found else None

    return Ask(query("dead", schema), (job_id.hex, None, None, "1"), read, said_of(schema))


def requeue(schema: str, job_id: JobId) -> Ask[bool]:
    """Bring a dead letter back as the job it was; False when there is none.

    Raises:
        UniqueKeyHeld: an unfinished job holds its unique key; the dead letter stays.
        IllegalTransition: a job has its id, which somebody chose by hand; the dead letter stays.
    """

    def on_error(error: Exception) -> bool:
        if not isinstance(error, errors.UniqueViolation):
            raise_translated(error, schema)
        if error.diag.constraint_name == "jobs_pkey":
            message = f"dead letter {job_id} cannot be requeued: a job has its id; delete that job, or purge the letter"
            raise IllegalTransition(message) from error
        message = (
            f"dead letter {job_id} cannot be requeued: an unfinished job has its unique key; wait for that one, or cancel it"
        )
        raise UniqueKeyHeld(message) from error

    return Ask(call("requeue", "uuid", schema), (job_id.hex,), truth, on_error, may_repeat=False)


def requeue_all(schema: str, *, queue: str | None = None, job_type: str | None = None, limit: int = 1000) -> Ask[int]:
    """Bring back dead letters, the oldest first, in one transaction; return how many.

    Those whose unique key an unfinished job holds stay, and do not count.

    Raises:
        ConfigError: `limit` is negative.
    """
    values = (queue, job_type, str(_check_limit(limit)))
    return Ask(call("requeue_all", "text text integer", schema), values, number, said_of(schema), may_repeat=False)


def count_dead(schema: str, *, queue: str | None = None, job_type: str | None = None) -> Ask[int]:
    """Return how many dead letters there are of some kind."""
    return Ask(query("count_dead", schema), (queue, job_type), number, said_of(schema))


def purge_dead(schema: str, *, job_id: JobId | None = None, older_than_seconds: float | None = None) -> Ask[int]:
    """Delete a dead letter, or those that died longer ago than given; return how many. Without either: none.

    Raises:
        ConfigError: `older_than_seconds` is negative or not a number.
    """
    if older_than_seconds is not None and not 0 <= older_than_seconds < math.inf:
        raise ConfigError(f"older_than_seconds {older_than_seconds!r} is out of range: use 0, which is all of them, or more")
    values = (text(job_id), text(older_than_seconds))
    return Ask(query("purge_dead", schema), values, number, said_of(schema), may_repeat=False)


def set_retention(schema: str, queue: str, keep_seconds: float | None, *, ending: str | None = None) -> Ask[None]:
    """Say how long the finished jobs of a queue are kept, whatever workers are set to.

    Raises:
        InvalidJob: a value is out of range.

    Source: sql/functions/end/set_retention.sql
    """
    values = (queue, text(keep_seconds), ending)
    return Ask(call("set_retention", "text float8 text", schema), values, nothing, said_of(schema))


def list_workers(schema: str) -> Ask[list[WorkerRow]]:
    """Return the worker processes, the oldest first."""
    return Ask(query("workers", schema), (), _list_of(WorkerRow), said_of(schema))


def stats(schema: str) -> Ask[list[QueueRow]]:
    """Return what each queue holds, by name."""
    return Ask(query("stats", schema), (), _list_of(QueueRow), said_of(schema))


def list_troubles(
    schema: str,
    *,
    job_id: JobId | None = None,
    job_ids: Sequence[JobId] | None = None,
    verb: str | None = None,
    within_seconds: float | None = None,
    limit: int = 50,
) -> Ask[list[TroubleRow]]:
    """Return jobs that were put aside, the latest first. `within_seconds`: only what was tried so short a time ago.

    Source: sql/queries/troubles.sql
    """
    among = None if job_ids is None else array([each.hex for each in job_ids])
    values = (text(job_id), among, verb, text(within_seconds), str(_check_limit(limit)))
    return Ask(query("troubles", schema), values, _list_of(TroubleRow), said_of(schema))


def count_troubles(schema: str) -> Ask[dict[str, int]]:
    """Return how many jobs were put aside, by what could not be done."""

    def read(answer: Answer, encoding: str) -> dict[str, int]:
        return {row["verb"]: row["count"] for row in records(answer, encoding)}

    return Ask(query("count_troubles", schema), (), read, said_of(schema))


def is_idle(schema: str, queues: Sequence[str]) -> Ask[bool]:
    """Tell whether no job of some queues is due or held. For tests."""
    return Ask(query("is_idle", schema), (array(queues),), truth)


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


def _list_of(kind: Callable[..., T]) -> Callable[[Answer, str], list[T]]:
    """Return what reads rows whose columns are the fields of `kind`."""
    return lambda answer, encoding: [kind(**row) for row in records(answer, encoding)]


def _jobs(answer: Answer, encoding: str) -> list[Job]:
    return [_job(row) for row in records(answer, encoding)]


def _one_job(answer: Answer, encoding: str) -> Job | None:
    found = _jobs(answer, encoding)
    return found[0] if found else None


def _dead_letters(answer: Answer, encoding: str) -> list[DeadLetter]:
    return [_dead_letter(row) for row in records(answer, encoding)]


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
