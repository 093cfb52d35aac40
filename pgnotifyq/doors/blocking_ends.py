"""How threads wait for the ends of jobs: what ends.py does for tasks, for threads that block.

The head of ends.py tells the rules of waiting and the three steps of a waiter. Its figures count
here, too. Here a waiter is a thread. A thread that changes what the waiters share holds `_lock`. No
thread holds `_lock` while it waits for a socket. The leader waits for the socket itself, with a
deadline, and does not poll.
"""

from __future__ import annotations

import math
import threading
import time
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg

from pgnotifyq.doors import ends
from pgnotifyq.doors.verbs import end_of, no_job, not_ended, still_runs
from pgnotifyq.ledger import pauses, stacks
from pgnotifyq.ledger.errors import is_passing
from pgnotifyq.model.channels import read_finished
from pgnotifyq.model.errors import DatabaseUnreachable, PoolTimeout
from pgnotifyq.model.job import JobId
from pgnotifyq.model.stack import Stack, StackState
from pgnotifyq.wire.asking import ask_blocking
from pgnotifyq.wire.blocking import listen, owns_session, unlisten, wait_notifications
from pgnotifyq.wire.pooling import is_fit

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgnotifyq.ledger.ask import Verb
    from pgnotifyq.ledger.pauses import Scope
    from pgnotifyq.model.job import DeadLetter, Job
    from pgnotifyq.wire.blocking import Connection, Pool

T = TypeVar("T")


class _Waiter:
    """One thread that waits for the end of one job, or until a worker lets go of it."""

    def __init__(self, job_id: JobId, look: Verb[Any]) -> None:
        self.job_id = job_id
        self.look = look  # answers None as long as there is something to wait for
        self.rung = threading.Event()  # if set, look at the table, then lead if nobody leads


class BlockingEnds:
    """The ends of jobs, heard on one connection by the waiter that leads."""

    def __init__(self, pool: Pool, connect: Callable[[], Connection[Any]], schema: str) -> None:
        self._pool = pool  # for looks
        self._connect = connect  # opens the connection that is to listen
        self._schema = schema
        self._channel = f"{schema}_finished"
        self._lock = threading.Lock()
        self._waiters: dict[JobId, list[_Waiter]] = {}
        self._is_led = False
        self._is_closed = False
        self._connection: Connection[Any] | None = None  # the one that listens, if any
        self._spare: Connection[Any] | None = None  # open, but it does not listen: no thread waits
        # How long a waiter relies on the listener between two looks.
        self._look_seconds = ends.LOOK_SECONDS
        self._opening = threading.Lock()  # held by the thread that opens the connection
        # On the monotonic clock: a connect has failed, and no thread connects again before this.
        self._retry_at = -math.inf

    def wait(self, job_id: JobId, timeout_seconds: float | None) -> Job | DeadLetter:
        """Wait until a job and its handler have ended, and return the job, or its dead letter.

        Raises:
            JobNotFound: there is no such job.
            WaitTimeout: the job has not ended within `timeout_seconds`; it goes on.
            DatabaseUnreachable, psycopg.OperationalError: looks have failed for
                `OUTAGE_SECONDS_MAX`.
        """
        deadline = math.inf if timeout_seconds is None else time.monotonic() + timeout_seconds
        ended: Job | DeadLetter | None = self._wait_beside_others(job_id, end_of(self._schema, job_id), deadline)
        if ended is None:
            assert timeout_seconds is not None
            raise not_ended(job_id, timeout_seconds)
        return ended

    def drain(self, scope: Scope, timeout_seconds: float | None) -> None:
        """Wait until no job of what was paused runs any more.

        Raises: as `wait` does, except JobNotFound.
        """
        deadline = math.inf if timeout_seconds is None else time.monotonic() + timeout_seconds
        while not self._ask(pauses.await_claims(self._schema), deadline):
            if time.monotonic() >= deadline:
                assert timeout_seconds is not None
                raise still_runs(scope, timeout_seconds)
            time.sleep(ends.RETRY_SECONDS)
        while (job_id := self._ask(pauses.first_held(self._schema, scope), deadline)) is not None:
            if self._wait_beside_others(job_id, pauses.let_go(self._schema, job_id), deadline) is None:
                assert timeout_seconds is not None
                raise still_runs(scope, timeout_seconds)

    def change(self, job_id: JobId, look: Verb[T | None], deadline: float) -> T | None:
        """Wait until a look at a job finds something, and return that; None: the time was up.

        Raises: as `wait` does, and what the look raises.
        """
        found: T | None = self._wait_beside_others(job_id, look, deadline)
        return found

    def stack(self, job_id: JobId, timeout_seconds: float) -> Stack:
        """Ask where a handler stands, and wait for its worker's answer.

        Raises: as `wait` does, except WaitTimeout.
        """
        deadline = time.monotonic() + timeout_seconds
        request = self._ask(stacks.ask_stack(self._schema, job_id), math.inf)
        if not request.is_there:
            raise no_job(job_id)
        if request.request_id is None:
            return Stack(job_id=job_id, execution_id=None, state=StackState.ENDED, why="no worker holds the job")
        look = stacks.stack_of(self._schema, job_id, request)
        answer: Stack | None = self._wait_beside_others(JobId(request.request_id), look, deadline)
        return request.unanswered(job_id, timeout_seconds) if answer is None else answer

    def _wait_beside_others(self, job_id: JobId, look: Verb[Any], deadline: float) -> Any:
        waiter = _Waiter(job_id, look)
        with self._lock:
            self._waiters.setdefault(job_id, []).append(waiter)
        try:
            return self._wait(waiter, deadline)
        finally:
            self._leave(waiter)

    def close(self) -> None:
        """Close the connection. Each waiting thread looks, and learns that the client is closed."""
        with self._lock:
            self._is_closed = True
            connection, self._connection = self._connection, None
            spare, self._spare = self._spare, None
            is_led = self._is_led
            self._ring_all()
        if spare is not None:
            spare.close()
        if connection is not None:
            connection.hang_up() if is_led else connection.close()

    def forget(self) -> None:
        """In a forked child, let go of the connections that the parent opened.

        In the child they lead nowhere (wire/forks.py).
        """
        for connection in (self._connection, self._spare):
            if connection is not None:
                connection.pgconn.finish()

    def _wait(self, waiter: _Waiter, deadline: float) -> Any:
        """Look until the job has ended, and return what the look found; None: the time was up.

        Passing failures are forgiven for `OUTAGE_SECONDS_MAX`.
        """
        answered_at = time.monotonic()
        heard = True  # what the first look finds proves nothing about the listener
        while True:
            listener = self._listen(deadline)
            waiter.rung.clear()
            try:
                ended = self._ask(waiter.look, deadline)
            except Exception as error:
                is_late = isinstance(error, PoolTimeout)
                if not (is_late or is_passing(error)):
                    raise
                now = time.monotonic()
                if now >= deadline:
                    return None
                if now - answered_at > ends.OUTAGE_SECONDS_MAX:
                    raise DatabaseUnreachable(f"the database has not answered for {ends.OUTAGE_SECONDS_MAX:g} s") from error
                time.sleep(min(ends.RETRY_SECONDS, deadline - now))
                continue
            if ended is not None:
                if not heard and listener is not None:
                    self._drop(listener)  # it is deaf; this wakes the leader, which rings for all
                return ended
            answered_at = time.monotonic()
            if answered_at >= deadline:
                return None
            patience = self._look_seconds if listener is not None else ends.LISTEN_RETRY_SECONDS
            self._hear(waiter, min(answered_at + patience, deadline))
            heard = waiter.rung.is_set()

    def _ask(self, verb: Verb[T], deadline: float) -> T:
        """Ask on a connection of the pool."""
        seconds = min(ends.LOOK_DEADLINE_SECONDS, max(deadline - time.monotonic(), ends.RETRY_SECONDS))
        with self._pool.connection(seconds) as connection, connection.bounded(seconds):
            return ask_blocking(connection, verb)

    def _hear(self, waiter: _Waiter, until: float) -> None:
        """Return when the leader has rung for this waiter, or at the time `until`.

        The leader may be this waiter itself.
        """
        with self._lock:
            connection = self._connection
            leads = connection is not None and not self._is_led and not waiter.rung.is_set()
            self._is_led = self._is_led or leads
        if connection is None or not leads:
            waiter.rung.wait(max(0.0, until - time.monotonic()))
            return
        try:
            while not waiter.rung.is_set() and (left := until - time.monotonic()) > 0:
                for note in wait_notifications(connection, left):
                    finished = read_finished(note.payload)
                    with self._lock:
                        for other in () if finished is None else self._waiters.get(finished.job_id, ()):
                            other.rung.set()
        except (psycopg.OperationalError, psycopg.InterfaceError):
            # The connection is lost, and with it what was announced meanwhile. So every waiter
            # looks again when LISTEN is in place on another connection.
            connection.close()
            with self._lock:
                if self._connection is connection:
                    self._connection = None
                self._ring_all()
        finally:
            with self._lock:
                self._is_led = False
                self._hand_over(waiter)

    def _listen(self, deadline: float) -> Connection[Any] | None:
        """Return the connection that listens. None: there is none now; waiters rely on looks."""
        if not self._opening.acquire(timeout=min(ends.LISTEN_DEADLINE_SECONDS, max(0.0, deadline - time.monotonic()))):
            return None
        try:
            with self._lock:
                if self._connection is not None and not self._connection.closed:
                    return self._connection
                if self._is_closed or time.monotonic() < self._retry_at:
                    return None  # the client is closed, or a connect has just failed
                connection, self._spare = self._spare, None
            return self._begin_to_listen(connection)
        finally:
            self._opening.release()

    def _begin_to_listen(self, spare: Connection[Any] | None) -> Connection[Any] | None:
        connection = spare if spare is not None and is_fit(spare) else None
        listens = False
        try:
            if connection is None:
                connection = self._connect()
                with connection.bounded(ends.LISTEN_DEADLINE_SECONDS):
                    is_own = owns_session(connection)
                self._look_seconds = ends.LOOK_SECONDS if is_own else ends.LISTEN_RETRY_SECONDS
            with connection.bounded(ends.LISTEN_DEADLINE_SECONDS):
                listen(connection, self._channel)
            listens = True
        except Exception as error:
            self._retry_at = time.monotonic() + ends.LISTEN_RETRY_SECONDS
            if not is_passing(error):
                raise
            return None
        finally:
            for one in (spare, connection):
                if one is not None and not (listens and one is connection):
                    one.close()
        with self._lock:
            if not self._is_closed:
                self._connection = connection
                return connection
        connection.close()
        return None

    def _leave(self, waiter: _Waiter) -> None:
        """Take a waiter out. If no other thread waits, stop listening."""
        with self._lock:
            waiters = self._waiters[waiter.job_id]
            waiters.remove(waiter)
            if not waiters:
                del self._waiters[waiter.job_id]
            if self._waiters:
                self._hand_over(waiter)
                return
            connection, self._connection = self._connection, None
        if connection is None:
            return
        try:
            with connection.bounded(ends.HUSH_DEADLINE_SECONDS):
                unlisten(connection, self._channel)
        except psycopg.Error:
            connection.close()  # the connection is lost, so it does not listen either
            return
        with self._lock:
            if self._spare is None and not self._is_closed:
                self._spare = connection
                return
        connection.close()

    def _drop(self, connection: Connection[Any]) -> None:
        with self._lock:
            if self._connection is not connection:
                return
            self._connection = None
            is_led = self._is_led
        connection.hang_up() if is_led else connection.close()

    def _hand_over(self, leaving: _Waiter) -> None:
        """Ring for one sleeping waiter, so that it leads. The caller holds the lock."""
        if self._is_led:
            return
        for waiters in self._waiters.values():
            for waiter in waiters:
                if waiter is not leaving and not waiter.rung.is_set():
                    waiter.rung.set()
                    return

    def _ring_all(self) -> None:
        """Ring for all waiters. The caller holds the lock."""
        for waiters in self._waiters.values():
            for waiter in waiters:
                waiter.rung.set()
