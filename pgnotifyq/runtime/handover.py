"""From `enqueue` to a handler of the same program, in the statement that inserts the job.

A web server that runs its worker beside it enqueues, commits, is notified by itself, and claims: two more round trips and a
second commit before the handler starts. Where a worker of this very event loop has a free slot and has just seen its
queues empty, the insert can claim too: the handler starts when the insert's own commit is answered.

Rules:

- Only what a claim would do now is done: the job is due, its queue is the worker's, no due job of that queue is there (the
  statement looks), the worker has a handler for it, is not draining, and holds a permit for it before the statement is sent.
- Never in a transaction of the caller's: the job is not there before that commits.
- Both ids are made here. When the reply is lost nobody knows whether the job exists; then its execution is released, by the
  fence: if it exists it is pending at once, and not when the lease runs out.
"""

from __future__ import annotations

from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import trio
from trio.lowlevel import RunVar

from pgnotifyq.ledger import end, enqueue
from pgnotifyq.ledger.claimed import ClaimedJob
from pgnotifyq.model.job import MAX_ATTEMPTS_DEFAULT, QUEUE_DEFAULT, ExecutionId, JobId
from pgnotifyq.runtime.running import Running
from pgnotifyq.runtime.settler import RELEASED
from pgnotifyq.wire.asking import ask

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pgnotifyq.model.job import NewJob
    from pgnotifyq.runtime.parts import Parts
    from pgnotifyq.wire.connection import Connection

UNKNOWN_TIME = datetime.fromtimestamp(0, UTC)

# The workers of this event loop, by address and schema.
_takers: RunVar[dict[tuple[str, str], list[Parts]] | None] = RunVar("pgnotifyq takers", None)


@contextmanager
def open_door(parts: Parts, dsn: str) -> Iterator[None]:
    """Let clients of this event loop, with the same address and schema, hand jobs to a worker while the block lasts."""
    takers = _takers.get()
    if takers is None:
        takers = {}
        _takers.set(takers)
    key = (dsn, parts.config.schema)
    takers.setdefault(key, []).append(parts)
    try:
        yield
    finally:
        takers[key].remove(parts)


def find_taker(dsn: str, schema: str, job: NewJob) -> Parts | None:
    """Return a worker of this event loop that could start the job as soon as it exists."""
    takers = _takers.get()
    if not takers or job.scheduled_at is not None or job.delay_seconds or job.unique_key is not None:
        return None
    for parts in takers.get((dsn, schema), ()):
        is_idle = parts.saw_queues_empty and not parts.bell.is_ringing and not parts.executions.is_draining
        if (
            is_idle
            and parts.executions.free > 0
            and not parts.executions.is_backed_up
            and (handler := parts.registry.find(job.job_type)) is not None
            and (job.queue_name or handler.queue or QUEUE_DEFAULT) in parts.config.queues
        ):
            return parts
    return None


async def enqueue_and_hand_over(connection: Connection, parts: Parts, job: NewJob, payload: str) -> JobId:
    """Enqueue a job, given with its payload's text, on a connection in autocommit, and start it in a slot unless another comes first.

    Cancellation, errors: as for `enqueue`; a job that may exist all the same is released to everybody.

    Source: sql/functions/enqueue/enqueue_claimed.sql
    """
    config = parts.config
    queue_name, max_attempts = _said(parts, job)
    job_id, other_id = enqueue.new_ids(2)
    execution_id = ExecutionId(other_id)
    if not parts.executions.reserve(1):
        # Taken since `find_taker` looked.
        return await ask(connection, enqueue.enqueue_one(config.schema, job, payload, is_alone=True))
    sent_at = trio.current_time()
    try:
        verb = enqueue.enqueue_claimed(
            config.schema, job, payload, job_id=job_id, execution_id=execution_id, worker_id=parts.worker_id,
            lease_seconds=config.lease_seconds, queue_name=queue_name, max_attempts=max_attempts,
        )  # fmt: skip
        is_claimed, time_now = await ask(connection, verb)
    except BaseException:
        if connection.closed:
            _release_in_doubt(parts, job, job_id, execution_id, sent_at)
        else:
            parts.executions.take_up((), 1)
        raise
    if not is_claimed:
        parts.executions.take_up((), 1)
        parts.bell.ring()
        return job_id
    running = Running(
        job=ClaimedJob.from_new(
            job,
            job_id,
            execution_id,
            payload,
            time_now,
            queue_name=queue_name,
            max_attempts=max_attempts,
            worker_id=parts.worker_id,
            lease_seconds=config.lease_seconds,
        ),
        renewed_at=sent_at,
    )
    if parts.executions.is_closed:
        # The worker drained meanwhile, and nobody of it looks any more.
        await ask(connection, end.settle(config.schema, worker_id=parts.worker_id, settlements=[(running.lease, RELEASED)]))
        parts.executions.take_up((), 1)
        return job_id
    parts.executions.take_up([running], 1)
    return job_id


def _said(parts: Parts, job: NewJob) -> tuple[str, int]:
    """Return the queue and the attempts of a job that this worker is about to hold: its own, or its handler's."""
    handler = parts.registry.find(job.job_type)
    queue = job.queue_name or (handler.queue if handler is not None else None)
    attempts = job.max_attempts or (handler.max_attempts if handler is not None else None)
    return queue or QUEUE_DEFAULT, attempts or MAX_ATTEMPTS_DEFAULT


def _release_in_doubt(parts: Parts, job: NewJob, job_id: JobId, execution_id: ExecutionId, sent_at: float) -> None:
    """Have the settler release an execution that may exist. Its permit is free when that is known."""
    queue_name, max_attempts = _said(parts, job)
    doubtful = ClaimedJob.from_new(
        job, job_id, execution_id, "{}", UNKNOWN_TIME, queue_name=queue_name, max_attempts=max_attempts,
        worker_id=parts.worker_id, lease_seconds=parts.config.lease_seconds,
    )  # fmt: skip
    running = Running(job=doubtful, renewed_at=sent_at)
    parts.executions.hold(running)
    parts.settler.add(running, RELEASED)
