"""Shortcuts: how a job starts without a look at the queues, if it is known which job is new.

A worker looks at the queues if it does not know what there is. The look finds the jobs of the
highest priority, what is left, and when the next job falls due. An idle worker (wakeups.py) knows
that its queues were empty. There are two shortcuts.

By name. The insert of a single job says in its wake-up which job is new. To take that job by its
key costs the server two thirds of a look (bench/README.md).

- The listener's connection, which heard the wake-up, takes the job: its session has just been
  awake. A session that has slept takes 0.06 ms longer.
- Only after a lull. Wake-ups in quick succession go to the claimer. It takes many jobs at once, and
  it finds out when the worker is no sleeper any more.
- If the named job is still pending but could not be taken, the claimer's bell is rung; the claimer
  then looks at the queues, as if the wake-up had named nothing. So no job is lost, whatever hinders
  it here, and what sleep.py says of wake-ups still holds.
- A name is a hint, and anybody can send one. It can bring nothing but a job of the worker's own
  queues that is due anyway.

By hand-over. A web server that runs a worker in its own process enqueues, commits, is notified by
itself, and claims: that is two more round trips and a second commit before the handler starts. If a
worker of this very event loop is idle and has a free slot, the insert can claim the job, too. Then
the handler starts when the insert's own commit is answered.

- The insert claims only what a claim would take now: the job is due, its queue is the worker's, no
  due job of that queue is there (the statement looks), the worker has a handler for it and is not
  draining.
- Never in a transaction of the caller's: the job is not there before that transaction commits.
- The ids of job and execution are made here. If the reply is lost, it is not known whether the job
  exists. Then its execution is released, by the fence. So if the job exists, it is pending at once,
  and not only when the lease runs out.

Both shortcuts take their permit before the statement is sent, as the claimer does (executions.py).
They take up the job as any other. A third shortcut, by the database, will end here too: a job that
arrives already claimed.
"""

from __future__ import annotations

from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import attrs
import trio
from trio.lowlevel import RunVar

from pgnotifyq.ledger import claim, end, enqueue
from pgnotifyq.ledger.claimed import ClaimedJob
from pgnotifyq.model.job import ExecutionId, JobId, Lease
from pgnotifyq.model.new_job import MAX_ATTEMPTS_DEFAULT, QUEUE_DEFAULT
from pgnotifyq.runtime.running import Running
from pgnotifyq.runtime.settler import RELEASED
from pgnotifyq.wire.asking import ask

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pgnotifyq.model.channels import Work
    from pgnotifyq.model.new_job import NewJob
    from pgnotifyq.runtime.executions import Executions, Reserved
    from pgnotifyq.runtime.identity import Identity
    from pgnotifyq.runtime.link import Link
    from pgnotifyq.runtime.settler import Settler
    from pgnotifyq.runtime.wakeups import Wakeups
    from pgnotifyq.wire.connection import Connection

UNKNOWN_TIME = datetime.fromtimestamp(0, UTC)


@attrs.frozen(eq=False, kw_only=True)
class Taker:
    """A worker that may take a job without a look at the queues."""

    me: Identity
    executions: Executions
    wakeups: Wakeups
    settler: Settler
    quick: Link  # a claim has the deadline of this link

    @property
    def is_ready(self) -> bool:
        """Whether a job that is new now could start at once, if a permit is free."""
        return self.wakeups.is_idle and not self.executions.is_draining and not self.executions.is_backed_up

    def take_up(self, job: ClaimedJob, sent_at: float, reserved: Reserved) -> None:
        """Take up a job, for which a permit was reserved and whose claim was sent at `sent_at`."""
        self.executions.take_up([Running(job=job, renewed_at=sent_at)], reserved)

    def release(self, job: ClaimedJob, sent_at: float, reserved: Reserved) -> None:
        """Have the settler release an execution that shall not start, or may not exist.

        A permit was reserved for it. The permit is free when the release is known to be durable.
        """
        running = Running(job=job, renewed_at=sent_at)
        self.executions.hold(running, reserved)
        self.settler.add(running, RELEASED)


# By name.


async def answer(taker: Taker, told: Work | None, connection: Connection) -> None:
    """Answer a wake-up: if the worker is idle take the named job, else ring for the claimer.

    Args:
        taker: the worker.
        told: the queue, and the job if the wake-up named one. Anybody can send a wake-up. None:
            there may be work in any queue.
        connection: by which the wake-up was heard.

    Raises:
        trio.TooSlowError, psycopg.Error: no answer, or none that can be used. The listener begins
            anew, and rings for the claimer.
    """
    is_first = taker.wakeups.is_first_after_lull()
    if told is None or told.job_id is None or not is_first or not taker.is_ready:
        taker.wakeups.bell.ring()
        return
    reserved = taker.executions.reserve_one(told.queue)
    if not reserved:
        taker.wakeups.bell.ring()
        return
    me = taker.me
    sent_at = trio.current_time()
    try:
        with trio.fail_after(taker.quick.deadline_seconds, shield=True):
            found = await ask(
                connection,
                claim.claim_named(
                    me.schema,
                    worker_id=me.worker_id,
                    queues=reserved.queues,
                    job_id=told.job_id.hex,
                    lease_seconds=me.lease_seconds,
                    only=me.served.wanted,
                ),
            )
    except BaseException:
        taker.executions.take_up((), reserved)
        raise
    if found.job is None:
        taker.executions.take_up((), reserved)
        if found.is_still_there:
            taker.wakeups.bell.ring()
    elif taker.executions.is_closed:
        # The worker drained meanwhile, and none of its tasks starts anything.
        taker.release(found.job, sent_at, reserved)
    else:
        taker.take_up(found.job, sent_at, reserved)


# By hand-over.

# The workers of this event loop, by address and schema.
_takers: RunVar[dict[tuple[str, str], list[Taker]] | None] = RunVar("pgnotifyq takers", None)


@contextmanager
def open_door(taker: Taker, dsn: str) -> Iterator[None]:
    """Let clients of this event loop, with the same address and schema, hand jobs to a worker.

    They may do so as long as the block lasts.
    """
    takers = _takers.get()
    if takers is None:
        takers = {}
        _takers.set(takers)
    key = (dsn, taker.me.schema)
    takers.setdefault(key, []).append(taker)
    try:
        yield
    finally:
        takers[key].remove(taker)


def find_taker(dsn: str, schema: str, job: NewJob) -> Taker | None:
    """Return a worker of this event loop that could start the job as soon as it exists."""
    takers = _takers.get()
    if not takers or job.scheduled_at is not None or job.delay_seconds or job.is_unique:
        return None
    for taker in takers.get((dsn, schema), ()):
        if (
            taker.is_ready
            and taker.executions.free > 0
            and (handler := taker.me.registry.find(job.job_type)) is not None
            and handler.batch_size is None  # each would be a batch of its own
            and (job.queue_name or handler.queue or QUEUE_DEFAULT) in taker.me.queues
        ):
            return taker
    return None


async def enqueue_and_hand_over(connection: Connection, taker: Taker, job: NewJob, payload: str) -> JobId:
    """Enqueue a job, and start it in a slot of a worker unless another job comes first.

    Args:
        connection: in autocommit.
        taker: the worker.
        job: what to enqueue.
        payload: the payload's text.

    Cancellation, errors: as for `enqueue`; a job that may exist all the same is released to
    everybody.

    Source: sql/functions/enqueue/enqueue_claimed.sql
    """
    me = taker.me
    queue_name, max_attempts = _said(taker, job)
    job_id, other_id = enqueue.new_ids(2)
    execution_id = ExecutionId(other_id)
    reserved = taker.executions.reserve_one(queue_name)
    if not reserved:
        # The permit was taken since `find_taker` looked.
        return await ask(connection, enqueue.enqueue_one(me.schema, job, payload, is_alone=True))

    def claimed(payload: str, time_now: datetime) -> ClaimedJob:
        return ClaimedJob.from_new(
            job, job_id, execution_id, payload, time_now, queue_name=queue_name, max_attempts=max_attempts,
            worker_id=me.worker_id, lease_seconds=me.lease_seconds,
        )  # fmt: skip

    sent_at = trio.current_time()
    try:
        verb = enqueue.enqueue_claimed(
            me.schema, job, payload, job_id=job_id, execution_id=execution_id, worker_id=me.worker_id,
            lease_seconds=me.lease_seconds, queue_name=queue_name, max_attempts=max_attempts,
        )  # fmt: skip
        is_claimed, time_now = await ask(connection, verb)
    except BaseException:
        if connection.closed:
            taker.release(claimed("{}", UNKNOWN_TIME), sent_at, reserved)
        else:
            taker.executions.take_up((), reserved)
        raise
    if not is_claimed:
        taker.executions.take_up((), reserved)
        taker.wakeups.bell.ring()
    elif taker.executions.is_closed:
        # The worker drained meanwhile, and its settler may be gone.
        lease = Lease(job_id, execution_id)
        await ask(connection, end.settle(me.schema, worker_id=me.worker_id, settlements=[(lease, RELEASED)]))
        taker.executions.take_up((), reserved)
    else:
        taker.take_up(claimed(payload, time_now), sent_at, reserved)
    return job_id


def _said(taker: Taker, job: NewJob) -> tuple[str, int]:
    """Return a job's queue and attempts: its own, or its handler's."""
    handler = taker.me.registry.find(job.job_type)
    queue = job.queue_name or (handler.queue if handler is not None else None)
    attempts = job.max_attempts or (handler.max_attempts if handler is not None else None)
    return queue or QUEUE_DEFAULT, attempts or MAX_ATTEMPTS_DEFAULT
