"""How a client's tasks wait for the ends of jobs, on trio and on asyncio.

Waiting is event-driven: a notification tells that a job has ended. All waiting tasks of one client
share one connection that listens; the client opens it when a task first waits. The client runs no
background task. One of the waiters leads: it reads the notifications and rings for the others. A
leader that leaves hands the lead to another waiter.

Rules of waiting:

- A waiter has LISTEN in place before it looks at the table. So no end falls into the gap between
  the two.
- A notification is a hint. It may be lost, or the listener may be deaf and not know. So every
  waiter looks at the table every `LOOK_SECONDS` all the same. If a look finds an end that no
  notification told of, the listener is proved deaf, and the waiter replaces it.
- If no listener can be had, waiting becomes slower and does not fail. A listener behind a pooler in
  transaction mode hears nothing, so waiters do not rely on it: they look as often as without one.
  `listen_dsn` leads past the pooler.
- While nobody waits, nothing listens. A session that listens and does not read holds back the
  server's queue of notifications, for everybody.

What one waiter does, again and again until a look finds the end:

1. `_listen`: get the connection that listens, or learn that there is none now.
2. Look: read the job. If it has not ended, the look also marks the job as awaited; then its end
   will be announced.
3. `_hear`: lead, or wait until the leader rings; for `LOOK_SECONDS` at most.

A drain waits in the same way, for one job after the other. Its look asks whether a worker still
holds the job. If a worker gives a job back, that is announced on the same channel.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import anyio
import psycopg

from pgnotifyq.doors.verbs import end_of, no_job, not_ended, still_runs
from pgnotifyq.ledger import pauses, stacks
from pgnotifyq.ledger.errors import is_passing
from pgnotifyq.model.channels import read_finished
from pgnotifyq.model.errors import DatabaseUnreachable
from pgnotifyq.model.job import JobId
from pgnotifyq.model.stack import Stack, StackState
from pgnotifyq.wire.asking import ask
from pgnotifyq.wire.notifications import listen, owns_session, unlisten, wait_notifications

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from pgnotifyq.ledger.ask import Verb
    from pgnotifyq.ledger.pauses import Scope
    from pgnotifyq.model.job import DeadLetter, Job
    from pgnotifyq.wire.ours import Awaited

T = TypeVar("T")

# A waiter looks at the table this often even if it hears nothing: a notification may be lost with
# its connection.
LOOK_SECONDS = 5.0
# For one look. If a server is frozen and its kernel still answers, no TCP option sees that; only a
# deadline does.
LOOK_DEADLINE_SECONDS = 10.0
# How long looks may fail before waiting fails: longer than a restart or a failover takes.
OUTAGE_SECONDS_MAX = 60.0
RETRY_SECONDS = 0.2  # between looks that fail
LISTEN_DEADLINE_SECONDS = 3.0  # to connect and LISTEN
# How long after a failure LISTEN is tried again. Also how often a waiter looks while it cannot rely
# on a listener.
LISTEN_RETRY_SECONDS = 1.0
HUSH_DEADLINE_SECONDS = 1.0  # to UNLISTEN, before the connection is closed instead


class Pool(Protocol):
    """Where a door gets its connections."""

    def connection(self) -> AbstractAsyncContextManager[Awaited[Any]]:
        """Lend a connection in autocommit mode for the length of a block."""

    def check(self) -> None:
        """Refuse to go on if the pool is closed, or belongs to another loop."""


class _Waiter:
    """One task that waits for the end of one job, or until a worker lets go of it."""

    def __init__(self, job_id: JobId, look: Verb[Any]) -> None:
        self.job_id = job_id
        self.look = look  # answers None as long as there is something to wait for
        self.rung = anyio.Event()  # if set, look at the table, then lead if nobody leads


class Ends:
    """The ends of jobs, heard on one connection by the waiter that leads."""

    def __init__(self, pool: Pool, connect: Callable[[], Awaitable[Awaited[Any]]], schema: str) -> None:
        self._pool = pool  # for looks
        self._connect = connect  # opens the connection that is to listen
        self._schema = schema
        self._channel = f"{schema}_finished"
        self._waiters: dict[JobId, list[_Waiter]] = {}
        self._is_led = False
        # The connection, and whether it listens. A task that changes them holds the lock; only a
        # close needs no lock.
        self._connection: Awaited[Any] | None = None
        self._listens = False
        self._look_seconds = LOOK_SECONDS  # how long a waiter relies on the listener between looks
        # On the loop's clock: a connect has failed, and no task connects again before this.
        self._retry_at = -math.inf
        self._lock = anyio.Lock()

    async def wait(self, job_id: JobId, timeout_seconds: float | None) -> Job | DeadLetter:
        """Wait until a job and its handler have ended, and return the job, or its dead letter.

        Cancellation: the job goes on. If no other task waits, the listening connection is closed.

        Raises:
            JobNotFound: there is no such job.
            WaitTimeout: the job has not ended within `timeout_seconds`; it goes on.
            DatabaseUnreachable, psycopg.OperationalError: looks have failed for
                `OUTAGE_SECONDS_MAX`.
        """
        self._pool.check()  # before this task waits with those of another loop
        ended: Job | DeadLetter | None = None
        with anyio.move_on_after(math.inf if timeout_seconds is None else timeout_seconds):
            ended = await self._wait_beside_others(job_id, end_of(self._schema, job_id))
        if ended is None:
            assert timeout_seconds is not None
            raise not_ended(job_id, timeout_seconds)
        await self._hush()
        return ended

    async def drain(self, scope: Scope, timeout_seconds: float | None) -> None:
        """Wait until no job of what was paused runs any more.

        Cancellation: what runs goes on.

        Raises: as `wait` does, except JobNotFound.
        """
        self._pool.check()
        with anyio.move_on_after(math.inf if timeout_seconds is None else timeout_seconds):
            # The end of a claim is not announced. A claim takes milliseconds.
            while not await self._ask(pauses.await_claims(self._schema)):  # noqa: ASYNC110
                await anyio.sleep(RETRY_SECONDS)
            while (job_id := await self._ask(pauses.first_held(self._schema, scope))) is not None:
                await self._wait_beside_others(job_id, pauses.let_go(self._schema, job_id))
            await self._hush()
            return
        assert timeout_seconds is not None
        raise still_runs(scope, timeout_seconds)

    async def open_listener(self) -> Awaited[Any]:
        """Open a connection that is to listen, for a caller that needs one of its own."""
        return await self._connect()

    async def change(self, job_id: JobId, look: Verb[T | None], deadline: float) -> T | None:
        """Wait until a look at a job finds something, and return that; None: the time was up.

        Cancellation: nothing is lost; the next look finds what this one would have found.

        Raises: as `wait` does, and what the look raises.
        """
        self._pool.check()
        found: T | None = None
        with anyio.move_on_after(deadline - anyio.current_time()):
            found = await self._wait_beside_others(job_id, look)
        if found is not None:
            await self._hush()
        return found

    async def stack(self, job_id: JobId, timeout_seconds: float) -> Stack:
        """Ask where a handler stands, and wait for its worker's answer.

        Cancellation: the worker's answer is not waited for.

        Raises: as `wait` does, except WaitTimeout.
        """
        self._pool.check()
        request = await self._ask(stacks.ask_stack(self._schema, job_id))
        if not request.is_there:
            raise no_job(job_id)
        if request.request_id is None:
            return Stack(job_id=job_id, execution_id=None, state=StackState.ENDED, why="no worker holds the job")
        with anyio.move_on_after(timeout_seconds):
            look = stacks.stack_of(self._schema, job_id, request)
            answer: Stack = await self._wait_beside_others(JobId(request.request_id), look)
            await self._hush()
            return answer
        return request.unanswered(job_id, timeout_seconds)

    async def _ask(self, verb: Verb[T]) -> T:
        async with self._pool.connection() as connection:
            return await ask(connection, verb)

    def close_nowait(self) -> None:
        """Close the connection. The waiters still find the ends of their jobs by looking."""
        connection, self._connection = self._connection, None
        self._listens = False
        if connection is not None:
            connection.close_nowait()

    async def _wait_beside_others(self, job_id: JobId, look: Verb[T | None]) -> T:
        waiter = _Waiter(job_id, look)
        self._waiters.setdefault(job_id, []).append(waiter)
        has_ended = False
        try:
            ended: T = await self._wait(waiter)
            has_ended = True
            return ended
        finally:
            self._leave_nowait(waiter, keeps_connection=has_ended)

    async def _wait(self, waiter: _Waiter) -> Any:
        """Look until the job has ended, and return what the look found.

        Passing failures are forgiven for `OUTAGE_SECONDS_MAX`.
        """
        answered_at = anyio.current_time()
        heard = True  # what the first look finds proves nothing about the listener
        while True:
            listener = await self._listen()
            waiter.rung = anyio.Event()
            try:
                with anyio.fail_after(LOOK_DEADLINE_SECONDS):
                    async with self._pool.connection() as connection:
                        ended = await ask(connection, waiter.look)
            except Exception as error:
                if not (isinstance(error, TimeoutError) or is_passing(error)):
                    raise
                if anyio.current_time() - answered_at > OUTAGE_SECONDS_MAX:
                    if isinstance(error, TimeoutError):
                        raise DatabaseUnreachable(f"the database has not answered for {OUTAGE_SECONDS_MAX:g} s") from error
                    raise
                await anyio.sleep(RETRY_SECONDS)
                continue
            if ended is not None:
                if not heard and listener is not None and listener is self._connection:
                    self.close_nowait()  # it is deaf; this wakes the leader, which rings for all
                return ended
            answered_at = anyio.current_time()
            with anyio.move_on_after(self._look_seconds if listener is not None else LISTEN_RETRY_SECONDS):
                await self._hear(waiter)
            heard = waiter.rung.is_set()

    async def _hear(self, waiter: _Waiter) -> None:
        """Return when the leader has rung for this waiter. The leader may be this waiter itself."""
        while not waiter.rung.is_set():
            connection = self._connection
            if self._is_led or connection is None or not self._listens:
                await waiter.rung.wait()
                return
            self._is_led = True
            try:
                while not waiter.rung.is_set():
                    for note in await wait_notifications(connection):
                        finished = read_finished(note.payload)
                        self._ring(() if finished is None else self._waiters.get(finished.job_id, ()))
            except (psycopg.OperationalError, psycopg.InterfaceError):
                # The connection is lost, and with it what was announced meanwhile. So every waiter
                # looks again when LISTEN is in place on another connection.
                if self._connection is connection:
                    self.close_nowait()
                for waiters in self._waiters.values():
                    self._ring(waiters)
            finally:
                self._is_led = False
                self._hand_over(waiter)

    async def _listen(self) -> Awaited[Any] | None:
        """Return the connection that listens. None: there is none now; waiters rely on looks."""
        async with self._lock:
            if self._connection is not None and not self._connection.closed and self._listens:
                return self._connection
            if anyio.current_time() < self._retry_at:
                return None  # a connect has just failed, maybe while this task waited
            connection, self._connection = self._connection, None
            self._listens = False
            try:
                with anyio.move_on_after(LISTEN_DEADLINE_SECONDS):
                    if connection is None or connection.closed:
                        connection = await self._connect()
                        self._look_seconds = LOOK_SECONDS if await owns_session(connection) else LISTEN_RETRY_SECONDS
                    await listen(connection, self._channel)
                    self._connection = connection
                    self._listens = True
            except Exception as error:
                if not is_passing(error):
                    raise
            finally:
                if not self._listens and connection is not None:
                    connection.close_nowait()
            if not self._listens:
                self._retry_at = anyio.current_time() + LISTEN_RETRY_SECONDS
            return self._connection

    async def _hush(self) -> None:
        """Stop listening if no task waits. Cancellation: the connection is closed."""
        if self._waiters or not self._listens:
            return
        async with self._lock:
            if self._waiters or not self._listens or self._connection is None:
                return
            connection, self._connection = self._connection, None
            self._listens = False
            try:
                with anyio.move_on_after(HUSH_DEADLINE_SECONDS):
                    await unlisten(connection, self._channel)
                    self._connection = connection
            except psycopg.OperationalError:
                pass  # the connection is gone; then it does not listen either
            finally:
                if self._connection is None:
                    connection.close_nowait()

    def _leave_nowait(self, waiter: _Waiter, *, keeps_connection: bool) -> None:
        name = waiter.job_id
        self._waiters[name].remove(waiter)
        if not self._waiters[name]:
            del self._waiters[name]
        if self._waiters:
            self._hand_over(waiter)
        elif not keeps_connection:
            self.close_nowait()  # UNLISTEN would have to wait, and this task must not wait

    def _hand_over(self, leaving: _Waiter) -> None:
        """Ring for one waiter that is asleep, so that it leads.

        A waiter that is awake sees by itself that nobody leads.
        """
        if self._is_led:
            return
        for waiters in self._waiters.values():
            for waiter in waiters:
                if waiter is not leaving and not waiter.rung.is_set():
                    waiter.rung.set()
                    return

    @staticmethod
    def _ring(waiters: Sequence[_Waiter]) -> None:
        for waiter in waiters:
            waiter.rung.set()
