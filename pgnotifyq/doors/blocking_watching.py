"""How threads follow jobs: what watching.py does for tasks, for threads that block.

The head of watching.py tells the rules.
"""

from __future__ import annotations

import math
import time
import uuid
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pgnotifyq.doors.verbs import no_job, not_ended
from pgnotifyq.doors.watching import CONNECT_DEADLINE_SECONDS, OUTAGE_SECONDS_MAX, RENEW_SECONDS, RETRY_SECONDS
from pgnotifyq.ledger import watching
from pgnotifyq.ledger.errors import is_passing
from pgnotifyq.model.channels import of_follower
from pgnotifyq.model.errors import DatabaseUnreachable, MissingRights, PoolTimeout
from pgnotifyq.model.names import check_queue_name
from pgnotifyq.model.new_job import job_id_of, org_id_of
from pgnotifyq.model.watching import EVENTS_HELD_MAX, JobEvent, JobEventKind, count_of, events_in, state_of
from pgnotifyq.wire.asking import ask_blocking
from pgnotifyq.wire.blocking import listen, wait_notifications

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from uuid import UUID

    from pgnotifyq.doors.blocking_ends import BlockingEnds
    from pgnotifyq.doors.verbs import Verbs
    from pgnotifyq.ledger.ask import Verb
    from pgnotifyq.model.job import Job, JobId, OrgId
    from pgnotifyq.model.watching import LogLine
    from pgnotifyq.wire.blocking import Connection

    Ask = Callable[[Verb[Any]], Any]


def _watch(
    ends: BlockingEnds, ask: Ask, schema: str, job_id: JobId, *, timeout_seconds: float | None, org_id: OrgId | None = None
) -> Generator[Job, None, None]:
    """Yield a job each time that it has changed, until it has ended."""
    seen: tuple[object, ...] | None = None
    with _follower(ask, schema) as follower_id:
        deadline = math.inf if timeout_seconds is None else time.monotonic() + timeout_seconds
        while True:
            job = ends.change(job_id, watching.change_of(schema, follower_id, job_id, seen, no_job, org_id=org_id), deadline)
            if job is None:
                assert timeout_seconds is not None
                raise not_ended(job_id, timeout_seconds)
            seen = state_of(job)
            yield job
            if job.is_finished:
                return


def _follow_logs(
    ends: BlockingEnds, ask: Ask, schema: str, job_id: JobId, *, timeout_seconds: float | None, org_id: OrgId | None = None
) -> Generator[LogLine, None, None]:
    """Yield the lines that handlers of a job log, until it has ended."""
    seen = 0
    with _follower(ask, schema) as follower_id:
        deadline = math.inf if timeout_seconds is None else time.monotonic() + timeout_seconds
        while True:
            found = ends.change(job_id, watching.lines_of(schema, follower_id, job_id, seen, no_job, org_id=org_id), deadline)
            if found is None:
                assert timeout_seconds is not None
                raise not_ended(job_id, timeout_seconds)
            lines, is_last = found
            yield from watching.after(lines, seen)
            seen = max(seen, count_of(lines))
            if is_last:
                return


@contextmanager
def _follower(ask: Ask, schema: str) -> Iterator[UUID]:
    follower_id = uuid.uuid4()
    try:
        yield follower_id
    finally:
        _leave(ask, schema, follower_id)


def _leave(ask: Ask, schema: str, follower_id: UUID) -> None:
    try:
        ask(watching.unfollow(schema, follower_id))
    except Exception as error:
        if not (isinstance(error, (PoolTimeout, MissingRights)) or is_passing(error)):
            raise


def _events(source: _Events, timeout_seconds: float | None) -> Generator[JobEvent, None, None]:
    """Yield what happens to jobs. With a timeout, end when nothing has happened for this long."""
    patience = math.inf if timeout_seconds is None else timeout_seconds
    try:
        while True:
            quiet_until = time.monotonic() + patience
            while not (told := source.hear(quiet_until)):
                if time.monotonic() >= quiet_until:
                    return
            yield from told
    finally:
        source.close()


class _Events:
    """What happens to jobs, heard on a connection of its own."""

    def __init__(
        self, ask: Ask, connect: Callable[[], Connection[Any]], schema: str, *, queue: str | None, org_id: OrgId | None
    ) -> None:
        self._ask = ask
        self._connect = connect
        self._schema = schema
        self._queue = queue
        self._org_id = org_id
        self._follower_id = uuid.uuid4()
        self._connection: Connection[Any] | None = None
        self._renew_at = -math.inf
        self._has_begun = False
        self._failed_since: float | None = None
        self._heard: deque[JobEvent] = deque(maxlen=EVENTS_HELD_MAX)

    def hear(self, until: float) -> list[JobEvent]:
        """Return what has happened. It may be nothing, at `until` or when the follower is renewed.

        Raises:
            DatabaseUnreachable: the database has not answered for a minute.
        """
        told: list[JobEvent] = []
        try:
            connection = self._connection or self._open()
            if time.monotonic() >= self._renew_at and self._follow(connection):
                told.append(JobEvent(kind=JobEventKind.LOST, at=None))
            self._failed_since = None
            lost = 0
            for note in wait_notifications(connection, max(min(until, self._renew_at) - time.monotonic(), 0.0)):
                for event in events_in(note.payload):
                    lost += len(self._heard) == EVENTS_HELD_MAX
                    self._heard.append(event)
            if lost:
                told.append(JobEvent(kind=JobEventKind.LOST, at=None, lost=lost))
            if self._heard:
                told += self._ask(watching.look_at(self._schema, list(self._heard), org_id=self._org_id))
                self._heard.clear()
        except Exception as error:
            if not (isinstance(error, PoolTimeout) or is_passing(error)):
                raise
            self._forgive(error)
            told.append(JobEvent(kind=JobEventKind.LOST, at=None))
        return told

    def _open(self) -> Connection[Any]:
        self._connection = connection = self._connect()
        with connection.bounded(CONNECT_DEADLINE_SECONDS):
            listen(connection, of_follower(self._schema, self._follower_id))
        self._renew_at = -math.inf
        return connection

    def _follow(self, connection: Connection[Any]) -> bool:
        """Say that this follower is there. Return whether it did not count for a while."""
        with connection.bounded(CONNECT_DEADLINE_SECONDS):
            verb = watching.follow_events(self._schema, self._follower_id, queue=self._queue, org_id=self._org_id)
            answer = ask_blocking(connection, verb)
        if answer == "full":
            raise watching.too_many_follow()
        was_away = answer == "new" and self._has_begun
        self._has_begun = True
        self._renew_at = time.monotonic() + RENEW_SECONDS
        return was_away

    def _forgive(self, error: Exception) -> None:
        """Drop the connection, and wait before another is opened. Give up after a minute."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        now = time.monotonic()
        self._failed_since = now if self._failed_since is None else self._failed_since
        if now - self._failed_since > OUTAGE_SECONDS_MAX:
            raise DatabaseUnreachable(f"the database has not answered for {OUTAGE_SECONDS_MAX:g} s") from error
        time.sleep(RETRY_SECONDS)

    def close(self) -> None:
        """Follow no more."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
            _leave(self._ask, self._schema, self._follower_id)


class BlockingWatching:
    """What follows jobs for a client, or for one tenant's part of it."""

    def __init__(self, ends: Callable[[], BlockingEnds], ask: Ask, connect: Callable[[], Connection[Any]], schema: str) -> None:
        self._ends = ends
        self._ask = ask
        self._connect = connect
        self._schema = schema

    def watch(self, job_id: JobId, *, timeout_seconds: float | None, org_id: OrgId | None = None) -> Iterator[Job]:
        """Follow a job."""
        return _watch(self._ends(), self._ask, self._schema, job_id, timeout_seconds=timeout_seconds, org_id=org_id)

    def follow_logs(self, job_id: JobId, *, timeout_seconds: float | None, org_id: OrgId | None = None) -> Iterator[LogLine]:
        """Follow what handlers of a job log."""
        return _follow_logs(self._ends(), self._ask, self._schema, job_id, timeout_seconds=timeout_seconds, org_id=org_id)

    def events(self, *, queue: str | None, timeout_seconds: float | None, org_id: OrgId | None = None) -> Iterator[JobEvent]:
        """Follow what happens to jobs."""
        return _events(_Events(self._ask, self._connect, self._schema, queue=queue, org_id=org_id), timeout_seconds)


class BlockingWatchingVerbs:
    """The verbs of a client by which it follows jobs."""

    _verbs: Verbs
    _ask: Callable[..., Any]

    @property
    def _watching(self) -> BlockingWatching:
        raise NotImplementedError

    def logs(self, job_id: JobId | UUID | str, *, attempt: int | None = None) -> list[LogLine]:
        """Return what handlers of a job have logged by `ctx.log`, oldest first.

        At most 64 KiB of each attempt are kept: its first lines and its last. If lines are left
        out, a line between them says how many.

        Args:
            job_id: the job, as a UUID or its text.
            attempt: only of this attempt.

        Raises:
            InvalidJob: `job_id` is not an id.
        """
        lines: list[LogLine] = self._ask(self._verbs.logs(job_id, attempt=attempt))
        return lines

    def watch(self, job_id: JobId | UUID | str, *, timeout_seconds: float | None = None) -> Iterator[Job]:
        """Yield a job as it is, and again each time that it has changed, until it has ended.

        A change is another status, attempt, progress or error, or an edit. If changes come faster
        than the program takes them up, only the last is told. A dead letter is told as the job,
        with the status `dead`.

        Args:
            job_id: the job, as a UUID or its text.
            timeout_seconds: follow at most this long.

        Raises:
            InvalidJob: `job_id` is not an id.
            JobNotFound: there is no such job, or it was deleted.
            WaitTimeout: it has not ended within `timeout_seconds`; it goes on.
            DatabaseUnreachable, psycopg.OperationalError: the database has not answered for a
                minute.
        """
        return self._watching.watch(job_id_of(job_id), timeout_seconds=timeout_seconds)

    def follow_logs(self, job_id: JobId | UUID | str, *, timeout_seconds: float | None = None) -> Iterator[LogLine]:
        """Yield the lines that handlers of a job log, from the first on, until it has ended.

        A worker writes them once a second while a handler runs, and before it settles the attempt.

        Args:
            job_id: the job, as a UUID or its text.
            timeout_seconds: follow at most this long.

        Raises:
            InvalidJob: `job_id` is not an id.
            JobNotFound: there is no such job, or it was deleted.
            WaitTimeout: it has not ended within `timeout_seconds`; it goes on.
            DatabaseUnreachable, psycopg.OperationalError: the database has not answered for a
                minute.
        """
        return self._watching.follow_logs(job_id_of(job_id), timeout_seconds=timeout_seconds)

    def events(
        self,
        *,
        queue: str | None = None,
        org_id: OrgId | UUID | str | int | None = None,
        timeout_seconds: float | None = None,
    ) -> Iterator[JobEvent]:
        """Yield what happens to jobs, beginning when the first event is asked for.

        The iterator has a connection of its own. If it has lost events, it says so by an event of
        the kind `lost`. It loses events if the program has not read for a minute, if too many come
        at once, or if the connection is lost. Behind a pooler in transaction mode it never hears
        anything: give the client a `listen_dsn`.

        Args:
            queue: only of jobs of this queue.
            org_id: only of this tenant.
            timeout_seconds: end when nothing has happened for this long.

        Raises:
            InvalidName: `queue` is no name of a queue.
            InvalidJob: `org_id` names no tenant.
            MissingRights: the role of the connection may not follow a queue.
            DatabaseUnreachable, psycopg.OperationalError: the database has not answered for a
                minute.
        """
        org = None if org_id is None else org_id_of(org_id)
        name = None if queue is None else check_queue_name(queue)
        return self._watching.events(queue=name, org_id=org, timeout_seconds=timeout_seconds)
