"""Many jobs at once: one statement for a hundred, COPY for more.

Jobs with unique keys go in the order of their keys.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, TypeVar

from pgnotifyq.ledger.ask import Aside, Ask, Copy, Plan, array
from pgnotifyq.ledger.columns import rows
from pgnotifyq.ledger.enqueue import (
    AT_ONCE_JOBS_MAX,
    ONE_STATEMENT_JOBS_MAX,
    enqueue_together,
    enqueue_together_told,
    insert,
    new_ids,
)
from pgnotifyq.ledger.errors import said_of
from pgnotifyq.ledger.statements import query
from pgnotifyq.model.job import JobId
from pgnotifyq.model.new_job import NewJob
from pgnotifyq.model.payload import encode
from pgnotifyq.model.unique import Enqueued, EnqueueOutcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from pgnotifyq.ledger.ask import Answer, Steps


T = TypeVar("T")

# The most jobs with unique keys in one statement. A statement takes them in an order in which no
# two callers deadlock. A larger batch goes in several statements.
UNIQUE_JOBS_MAX = 10_000


def enqueue_many(schema: str, jobs: Sequence[NewJob]) -> Plan[list[JobId]]:
    """Do what `enqueue_many_told` does, and return the jobs' ids in order."""
    return _enqueue_many(schema, jobs, enqueue_together, list)


def enqueue_many_told(schema: str, jobs: Sequence[NewJob]) -> Plan[list[Enqueued]]:
    """Enqueue jobs, all or none, and return what became of each, in order.

    Up to ONE_STATEMENT_JOBS_MAX jobs go in one statement. More jobs are copied, with two
    exceptions: jobs with a unique key, and jobs of a role that row security binds, to which
    PostgreSQL denies COPY. Those go in several statements.

    Cancellation: none of the jobs is enqueued; or all are, and `trio.Cancelled` comes at the next
        checkpoint.

    Raises:
        InvalidPayload, PayloadTooLarge: a payload cannot be stored; none is enqueued, and a
            transaction of yours goes on.
        UniqueKeyHeld: a job was refused; none is enqueued.
    """
    return _enqueue_many(schema, jobs, enqueue_together_told, _created)


def _enqueue_many(
    schema: str,
    jobs: Sequence[NewJob],
    together: Callable[[str, Sequence[NewJob], Sequence[str]], Ask[list[T]]],
    made: Callable[[list[JobId]], list[T]],
) -> Plan[list[T]]:
    """Enqueue jobs.

    `together` is the verb for jobs of any kind, and its answer is returned. `made` makes the same
    answer for jobs without keys, from their ids.
    """
    jobs = list(jobs)

    def steps() -> Steps[list[T]]:
        if not jobs:
            return []
        is_plain = (yield Aside.IS_ALONE) and not any([job.is_unique for job in jobs])  # noqa: C419  # a generator takes twice the time
        if len(jobs) <= ONE_STATEMENT_JOBS_MAX:
            payloads = [encode(job.payload) for job in jobs]
            if is_plain:
                return made((yield insert(schema, jobs, payloads)))
            told: list[T] = yield together(schema, jobs, payloads)
            return told

        if is_plain and (yield Aside.COPIES):
            now, may_copy, queues = yield _look_before_copy(schema, jobs)
            if may_copy:
                # The COPY is one statement, so all or none. It is a transaction of its own. So it
                # may begin before all payloads are checked: if one is refused, no transaction of
                # the caller's fails.
                return made((yield from _copy(schema, jobs, (encode(job.payload) for job in jobs), now, queues)))
        payloads = []
        for start in range(0, len(jobs), AT_ONCE_JOBS_MAX):
            payloads += [encode(job.payload) for job in jobs[start : start + AT_ONCE_JOBS_MAX]]
            yield Aside.PAUSE
        # If the connection is not in autocommit, its owner has begun a transaction, or is about to.
        # That transaction is not ours to commit.
        is_whole: bool = yield Aside.COMMITS
        told = yield Plan(lambda: _in_parts(schema, jobs, payloads, together, made), is_whole=is_whole, may_repeat=False)
        return told

    return Plan(steps, may_repeat=False)


def _created(ids: list[JobId]) -> list[Enqueued]:
    return [Enqueued(job_id, EnqueueOutcome.CREATED) for job_id in ids]


def _in_parts(
    schema: str,
    jobs: Sequence[NewJob],
    payloads: Sequence[str],
    together: Callable[[str, Sequence[NewJob], Sequence[str]], Ask[list[T]]],
    made: Callable[[list[JobId]], list[T]],
) -> Steps[list[T]]:
    """Copy what can be copied, and send the rest in statements, within a transaction.

    A statement has at most ONE_STATEMENT_JOBS_MAX jobs without unique keys, or UNIQUE_JOBS_MAX jobs
    with unique keys.
    """
    told: dict[int, T] = {}
    if (yield Aside.COPIES):
        now, may_copy, queues = yield _look_before_copy(schema, jobs)
        if may_copy:
            plain = [place for place, job in enumerate(jobs) if not job.is_unique]
            copied = yield from _copy(schema, [jobs[p] for p in plain], [payloads[p] for p in plain], now, queues)
            told.update(zip(plain, made(copied), strict=True))
    plain = [place for place, job in enumerate(jobs) if not job.is_unique and place not in told]
    for places in (*_batches(plain, ONE_STATEMENT_JOBS_MAX), *_batches(_in_key_order(jobs), UNIQUE_JOBS_MAX)):
        yield Aside.PAUSE
        found: list[T] = yield together(schema, [jobs[p] for p in places], [payloads[p] for p in places])
        told.update(zip(places, found, strict=True))
    return [told[place] for place in range(len(jobs))]


def _in_key_order(jobs: Sequence[NewJob]) -> list[int]:
    """Return the places of the jobs that have unique keys, by tenant, scope and key.

    Two callers who enqueue the same keys wait for each other. If both take the keys in one order,
    they do not deadlock. sql/functions/enqueue/enqueue_unique.sql keeps the same order within a
    statement. That statement also makes the keys that come from payloads. Such jobs come in any
    order here.
    """
    keyed = [
        (job.org_id.bytes, "*" if job.unique and job.unique.scope == "global" else job.job_type, job.unique_key or "", place)
        for place, job in enumerate(jobs)
        if job.is_unique
    ]
    return [place for *_, place in sorted(keyed)]


def _batches(places: list[int], jobs_max: int) -> list[list[int]]:
    return [places[start : start + jobs_max] for start in range(0, len(places), jobs_max)]


def _look_before_copy(schema: str, jobs: Sequence[NewJob]) -> Ask[tuple[datetime, bool, dict[str, str]]]:
    """Return what has to be known before a COPY.

    That is the database's time; whether this role may copy into the table; and, for jobs that name
    no queue, the queues of their types.

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
    """Copy jobs, given with their payloads' text, into the table.

    Delays count from `now`, the database's time.

    `queues` has the queue of each job type whose handler is known. If a job of another type names
    no queue, the first handler of that type says the queue later.

    Source: sql/queries/copy_jobs.sql, sql/queries/copy_jobs_with_headers.sql
    """
    if not jobs:
        return []
    ids = list(new_ids(len(jobs)))
    has_headers = any([job.headers for job in jobs])  # noqa: C419  # a generator takes twice the time
    statement = query("copy_jobs_with_headers" if has_headers else "copy_jobs", schema)
    yield Copy(statement, _pieces(ids, jobs, payloads, now, queues, has_headers), said_of(schema))
    return ids


def _pieces(
    ids: Sequence[JobId],
    jobs: Sequence[NewJob],
    payloads: Iterable[str],
    now: datetime,
    queues: Mapping[str, str],
    has_headers: bool,
) -> Iterator[str]:
    """Yield the lines of a COPY, AT_ONCE_JOBS_MAX at a time.

    The server takes in the written lines while the next lines are made.
    """
    now_text = now.isoformat()
    lines: list[str] = []
    for job_id, job, payload in zip(ids, jobs, payloads, strict=True):
        due = job.scheduled_at
        if due is None and job.delay_seconds:
            due = now + timedelta(seconds=job.delay_seconds)
        # Names fit their patterns and JSON text holds no raw tab or newline, so only backslashes
        # need escaping.
        queue = job.queue_name or queues.get(job.job_type)
        maximum = "\\N" if job.max_attempts is None else job.max_attempts
        escaped = payload.replace("\\", "\\\\") if "\\" in payload else payload
        lines.append(
            f"{job_id.int:032x}\t{job.org_id.int:032x}\t{queue or 'default'}\t{job.job_type}\t{escaped}\t{job.priority}\t"
            f"{now_text if due is None else due.isoformat()}\t{maximum}\t{now_text}\t"
            f"{'f' if queue else 't'}{_headers(job) if has_headers else ''}\n"
        )
        if len(lines) >= AT_ONCE_JOBS_MAX:
            yield "".join(lines)
            lines.clear()
    yield "".join(lines)


def _headers(job: NewJob) -> str:
    """Return the last column of a line."""
    text = job.headers_text
    return "\t\\N" if text is None else "\t" + text.replace("\\", "\\\\")
