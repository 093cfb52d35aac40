"""Enqueues that come at once share a statement, and so a commit.

A commit waits for the disk. It costs server and client more than the row that it brings. The tasks
of a busy program enqueue beside each other. While `IN_FLIGHT_MAX` statements of one client are
under way, further enqueues gather. When the first of these statements ends, what has gathered goes
as one statement. No enqueue waits on a timer to fill a batch. A program that enqueues now and then
never notices.

No background task does this. The first of the callers that wait is asked to lead: it sends the
statement of all, and tells the others.

Each caller is told what it would be told alone:

- A caller that is cancelled has enqueued nothing, or it is told of its job and cancelled at its
  next checkpoint (on asyncio: and cancelled at once). The statement that carries its job is
  stopped, and the jobs of the other callers go again without that job.
- If one job is the cause of an error, only the caller of that job fails. To find out which, each
  caller of the statement then goes alone.
- If it is not known what became of a statement, as when its connection was lost, all its callers
  are told so. Nothing is repeated.
- A job with a unique key may have to wait for another transaction, so it goes alone. So does a job
  that a worker of this very program starts at once (runtime/shortcuts.py).
- A statement that is stuck holds up no other caller. A caller that has gathered for
  `PATIENCE_SECONDS` leads at once, on another connection of the pool.

Each caller that gathers is in one of these states. The line is `Gatherer._gathered`.

| state | how it shows | what happens | next state |
|---|---|---|---|
| gathers | in the line, not `rung` | a statement ends, and it is the first in the line | asked |
| | | `PATIENCE_SECONDS` pass | leads |
| | | a leader takes it out of the line | under way |
| | | its task is cancelled | gone |
| asked | in the line, `rung` | its task runs | leads |
| | | another leader takes it out of the line | under way |
| | | its task is cancelled; the next in the line is asked | gone |
| leads | its task is in `_lead` | it takes the first of the line, itself among them | under way |
| | | the line is too long, and it takes only others; their statement ends | gathers |
| | | it takes only others, and its task is cancelled; their statement stops | gone |
| under way | `batch` | the statement ends: with ids, or with an error of the connection | told |
| | | the statement ends with an error of one of its jobs | alone |
| | | the statement stops, because another of its callers leaves | asked |
| | | its task is cancelled; the statement is told to stop | leaving |
| leaving | `has_left` | the statement has ended, and the job's id is known | told |
| | | the statement has ended otherwise | gone |
| told | `job_id` or `error` | it returns the id, or raises the error | |
| alone | `goes_alone` | it enqueues in a statement of its own, and learns there | |
| gone | | its task is cancelled | |
"""

from __future__ import annotations

import copy
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

import anyio
import attrs
import psycopg

from pgnotifyq.ledger import enqueue
from pgnotifyq.model.errors import DatabaseUnreachable, PoolTimeout
from pgnotifyq.model.payload import encode
from pgnotifyq.wire.asking import ask

if TYPE_CHECKING:
    from collections.abc import Sequence

    import trio

    from pgnotifyq.doors.ends import Pool
    from pgnotifyq.model.job import JobId
    from pgnotifyq.model.new_job import NewJob

# While one statement waits for the disk, the server takes in the next.
IN_FLIGHT_MAX = 2
PATIENCE_SECONDS = 0.05
# In one statement, so that a small job does not take long because of large jobs beside it.
PAYLOAD_CHARACTERS_MAX = 1 << 20

# Errors of a connection, and not of a job: all callers of the statement are told of them.
_SHARED_ERRORS = (psycopg.OperationalError, psycopg.InterfaceError, DatabaseUnreachable, PoolTimeout)


@attrs.define(eq=False)
class _Caller:
    """A task that waits in `enqueue`. Its states are in the table above."""

    job: NewJob
    payload: str  # as JSON, made by the caller's task: an error in it is the caller's own
    rung: anyio.Event | trio.Event  # the caller was told, or is asked to lead
    batch: _Batch | None = None  # the statement that carries the job; None in the line
    job_id: JobId | None = None
    error: Exception | None = None
    goes_alone: bool = False
    has_left: bool = False

    @property
    def has_id(self) -> bool:
        """Whether its job is known to exist."""
        return self.job_id is not None


@attrs.define(eq=False)
class _Batch:
    """A statement under way."""

    callers: Sequence[_Caller]
    scope: anyio.CancelScope | trio.CancelScope  # cancelled when one of the callers leaves


class Shortcut(Protocol):
    """A way to start a job in the statement that inserts it."""

    def find(self, job: NewJob) -> Any:
        """Return a worker that could start the job as soon as it exists, or None."""

    async def enqueue(self, connection: Any, taker: Any, job: NewJob, payload: str) -> JobId:
        """Enqueue the job, given with its payload's text, and have it started."""


class Gatherer:
    """The enqueues of one client.

    Args:
        pool: where connections come from.
        schema: where the queue lives.
        waits: the module whose events and scopes are used: `anyio`, or `trio` itself. Those of trio
            have the same names, and save a caller 5 microseconds of 95.
        shortcut: None, or how a job may be started at once.
        is_cancelled_again: whether a cancel that a caller does not pass on comes again at its next
            checkpoint. On trio it does. On asyncio it would be lost, so there the caller always
            passes it on.
    """

    def __init__(
        self, pool: Pool, schema: str, *, waits: Any = anyio, shortcut: Shortcut | None = None, is_cancelled_again: bool
    ) -> None:
        self._pool = pool
        self._waits = waits
        self._schema = schema
        self._shortcut = shortcut
        self._is_cancelled_again = is_cancelled_again
        self._gathered: deque[_Caller] = deque()
        self._in_flight = 0

    async def enqueue(self, job: NewJob) -> JobId:
        """Enqueue a job, in a transaction of its own or in one with others that come at once.

        Cancellation, errors: as for `client.enqueue`.
        """
        self._pool.check()  # before this task gathers with those of another loop
        payload = encode(job.payload)
        if job.is_unique or (self._shortcut is not None and self._shortcut.find(job) is not None):
            return await self._enqueue_alone(job, payload)
        if self._in_flight < IN_FLIGHT_MAX and not self._gathered:
            self._in_flight += 1
            try:
                return await self._enqueue_alone(job, payload)
            finally:
                self._end_flight()
        caller = _Caller(job, payload, self._waits.Event())
        self._gathered.append(caller)
        return await self._enqueue_gathered(caller)

    async def _enqueue_alone(self, job: NewJob, payload: str) -> JobId:
        async with self._pool.connection() as connection:
            # Look again: while this waited for a connection, another job may have taken the slot.
            if self._shortcut is not None and (taker := self._shortcut.find(job)) is not None:
                return await self._shortcut.enqueue(connection, taker, job, payload)
            return await ask(connection, enqueue.enqueue_one(self._schema, job, payload, is_alone=True))

    async def _enqueue_gathered(self, caller: _Caller) -> JobId:
        """Wait until another caller has enqueued the job, or lead."""
        while caller.job_id is None:
            try:
                with self._waits.move_on_after(PATIENCE_SECONDS):
                    await caller.rung.wait()
                if caller.batch is None:
                    await self._lead(caller)
                elif not caller.rung.is_set():
                    await caller.rung.wait()
            except anyio.get_cancelled_exc_class():
                await self._leave(caller)
                if not (self._is_cancelled_again and caller.has_id):
                    raise
            if caller.goes_alone:
                return await self._enqueue_alone(caller.job, caller.payload)
            if caller.error is not None:
                raise caller.error
        return caller.job_id

    async def _leave(self, caller: _Caller) -> None:
        """Take a cancelled caller out of the line, or stop its statement and wait for its end."""
        if caller.batch is None:
            self._gathered.remove(caller)
            self._ask_one_to_lead()  # the caller itself may have been asked, after its cancel
            return
        caller.has_left = True
        caller.batch.scope.cancel(reason="pgnotifyq: one of its callers was cancelled")
        # The shield is bounded: the server has a deadline to answer a cancel.
        with self._waits.CancelScope(shield=True):
            await caller.rung.wait()

    async def _lead(self, leader: _Caller) -> None:
        """Enqueue in one statement what has gathered, and tell each caller."""
        batch = _Batch(self._take(), self._waits.CancelScope())
        for caller in batch.callers:
            caller.batch = batch
            if caller.rung.is_set():
                caller.rung = self._waits.Event()
        self._in_flight += 1
        is_known = True  # whether it is known if the jobs are there
        ids: Sequence[JobId] = ()
        error: Exception | None = None
        try:
            with batch.scope:
                async with self._pool.connection() as connection:
                    try:
                        jobs, payloads = [one.job for one in batch.callers], [one.payload for one in batch.callers]
                        ids = await ask(connection, enqueue.insert(self._schema, jobs, payloads))
                    finally:
                        is_known = connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        except Exception as caught:  # noqa: BLE001  # each caller raises it, the leader too
            error = caught
        except BaseException:
            leader.has_left = True
            raise
        finally:
            if ids:
                self._tell_ids(batch, ids)
            elif error is not None:
                self._tell_error(batch, error)
            elif not is_known:
                lost = "the connection was lost while jobs were enqueued; they may be there or not"
                self._tell_error(batch, psycopg.OperationalError(lost))
            else:
                self._gather_again(batch)
            self._end_flight()

    def _take(self) -> list[_Caller]:
        """Take out of the line the callers that go together: the first, and as many more as fit."""
        taken = [self._gathered.popleft()]
        characters = len(taken[0].payload)
        while self._gathered and len(taken) < enqueue.ONE_STATEMENT_JOBS_MAX:
            characters += len(self._gathered[0].payload)
            if characters > PAYLOAD_CHARACTERS_MAX:
                break
            taken.append(self._gathered.popleft())
        return taken

    @staticmethod
    def _tell_ids(batch: _Batch, ids: Sequence[JobId]) -> None:
        for caller, job_id in zip(batch.callers, ids, strict=True):
            caller.job_id = job_id
            caller.rung.set()

    @staticmethod
    def _tell_error(batch: _Batch, error: Exception) -> None:
        for caller in batch.callers:
            if isinstance(error, _SHARED_ERRORS):
                caller.error = copy.copy(error)  # with the traceback of its own task
                caller.error.__cause__ = error
            else:
                caller.goes_alone = True
            caller.rung.set()

    def _gather_again(self, batch: _Batch) -> None:
        """Put the callers that have not left back at the head of the line.

        Their statement left no rows.
        """
        for caller in reversed(batch.callers):
            if not caller.has_left:
                caller.batch = None
                self._gathered.appendleft(caller)
            caller.rung.set()

    def _end_flight(self) -> None:
        self._in_flight -= 1
        self._ask_one_to_lead()

    def _ask_one_to_lead(self) -> None:
        if self._gathered and self._in_flight < IN_FLIGHT_MAX:
            self._gathered[0].rung.set()
