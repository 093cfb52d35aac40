"""How a client follows jobs, on trio and on asyncio: watch, follow_logs, events.

If a client follows a job, the job's changes are announced, on the channel that also tells of the
ends of jobs. So a task that watches a job waits beside the tasks that wait for ends (ends.py). Its
look is another: it finds the job if the job differs from what the task has seen. Between two
changes, while the program works with what it was given, the task does not wait, and nothing listens
for it. The next look finds what was missed.

A look cannot find what has happened to the jobs of a queue. That is told line by line, on a channel
of the follower's own. The follower has a connection of its own. Its rules:

- LISTEN comes first. Then the follower is noted, so all that happens from then on is told.
- A line says what happened to which job. Any role could send it. So the client reads the rows
  again, in one statement for all lines that are there. It drops a line about a job that it may not
  see.
- If the program takes nothing up for `FOLLOW_SECONDS`, the follower no longer counts, and nothing
  is told. When the program comes back, it is told that events are lost.
- At most `EVENTS_HELD_MAX` events are held for the program. If there are more, the oldest are
  dropped, and the program is told how many.
- If the connection is lost, another is opened, and the program is told that events are lost.
"""

from __future__ import annotations

import math
import uuid
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

import anyio
import psycopg

from pgnotifyq.doors.verbs import no_job, not_ended
from pgnotifyq.ledger import watching
from pgnotifyq.ledger.errors import is_passing
from pgnotifyq.model.channels import of_follower
from pgnotifyq.model.errors import DatabaseUnreachable, MissingRights
from pgnotifyq.model.names import check_queue_name
from pgnotifyq.model.new_job import job_id_of, org_id_of
from pgnotifyq.model.watching import EVENTS_HELD_MAX, JobEvent, JobEventKind, count_of, events_in, state_of
from pgnotifyq.wire.asking import ask
from pgnotifyq.wire.notifications import listen, take_notifications_nowait, wait_notifications

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType
    from uuid import UUID

    from pgnotifyq.doors.ends import Ends, Pool
    from pgnotifyq.doors.verbs import Verbs
    from pgnotifyq.ledger.ask import Verb
    from pgnotifyq.model.job import Job, JobId, OrgId
    from pgnotifyq.model.watching import LogLine
    from pgnotifyq.wire.ours import Awaited

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

# To say that a follower leaves. If that fails, the follower's row counts until its time.
LEAVE_DEADLINE_SECONDS = 1.0
RENEW_SECONDS = watching.FOLLOW_SECONDS / 3  # how often a follower says again that it is there
OUTAGE_SECONDS_MAX = 60.0  # how long connects may fail before events fail, as in ends.py
CONNECT_DEADLINE_SECONDS = 10.0
RETRY_SECONDS = 0.5


class Following(Generic[T_co]):
    """What is told of jobs: an async iterator, for `async for`.

    A program that leaves the loop early may call `aclose()`, or write `async with` around the loop.
    Then the database stops telling at once; otherwise it stops after a minute.
    """

    def __aiter__(self) -> Self:
        """Return this iterator."""
        return self

    async def __anext__(self) -> T_co:
        """Return what is told next, when there is something."""
        raise NotImplementedError

    async def aclose(self) -> None:
        """Follow no more."""
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        """Return this iterator."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Follow no more."""
        await self.aclose()


class _OfJob(Following[T]):
    """What is told of one job."""

    def __init__(
        self, ends: Ends, pool: Pool, schema: str, job_id: JobId, *, org_id: OrgId | None, timeout_seconds: float | None
    ) -> None:
        self._ends = ends
        self._pool = pool
        self._schema = schema
        self._job_id = job_id
        self._org_id = org_id
        self._timeout_seconds = timeout_seconds
        self._deadline = math.inf if timeout_seconds is None else anyio.current_time() + timeout_seconds
        self._follower_id = uuid.uuid4()
        self._is_over = False

    async def _wait(self, look: Verb[Any]) -> Any:
        found = await self._ends.change(self._job_id, look, self._deadline)
        if found is None:
            await self.aclose()
            assert self._timeout_seconds is not None
            raise not_ended(self._job_id, self._timeout_seconds)
        return found

    async def aclose(self) -> None:
        """Follow no more."""
        if not self._is_over:
            self._is_over = True
            await _leave(self._pool, self._schema, self._follower_id)


class Watch(_OfJob["Job"]):
    """A job, each time that it has changed, until it has ended."""

    _seen: tuple[object, ...] | None = None

    async def __anext__(self) -> Job:
        """Return the job when it has changed."""
        if self._is_over:
            raise StopAsyncIteration
        look = watching.change_of(self._schema, self._follower_id, self._job_id, self._seen, no_job, org_id=self._org_id)
        job: Job = await self._wait(look)
        self._seen = state_of(job)
        if job.is_finished:
            await self.aclose()
        return job


class FollowLogs(_OfJob["LogLine"]):
    """The lines that handlers of a job log, until it has ended."""

    _seen = 0
    _is_last = False

    def __init__(self, *given: Any, **settings: Any) -> None:
        super().__init__(*given, **settings)
        self._waiting: deque[LogLine] = deque()

    async def __anext__(self) -> LogLine:
        """Return the next line when there is one."""
        while not self._waiting:
            if self._is_over:
                raise StopAsyncIteration
            look = watching.lines_of(self._schema, self._follower_id, self._job_id, self._seen, no_job, org_id=self._org_id)
            lines, is_last = await self._wait(look)
            self._waiting.extend(watching.after(lines, self._seen))
            self._seen = max(self._seen, count_of(lines))
            if is_last:
                await self.aclose()
        return self._waiting.popleft()


class Events(Following[JobEvent]):
    """What happens to jobs, from the first call of `__anext__` on."""

    def __init__(
        self,
        pool: Pool,
        connect: Callable[[], Awaitable[Awaited[Any]]],
        schema: str,
        *,
        queue: str | None,
        org_id: OrgId | None,
        timeout_seconds: float | None,
    ) -> None:
        self._pool = pool
        self._connect = connect
        self._schema = schema
        self._queue = queue
        self._org_id = org_id
        self._follower_id = uuid.uuid4()
        self._connection: Awaited[Any] | None = None
        self._close_nowait: Callable[[], object] | None = None
        self._patience = math.inf if timeout_seconds is None else timeout_seconds
        self._quiet_since = -math.inf
        self._renew_at = -math.inf
        self._has_begun = False
        self._is_over = False
        self._heard: deque[JobEvent] = deque(maxlen=EVENTS_HELD_MAX)
        self._told: deque[JobEvent] = deque()
        self._lost = 0

    async def start(self) -> Self:
        """Follow from now on. Without this call, following begins with the first `__anext__`."""
        if self._connection is None:
            self._pool.check()
            await self._open()
        return self

    async def __aenter__(self) -> Self:
        """Follow from now on."""
        return await self.start()

    async def __anext__(self) -> JobEvent:
        """Return the next event when there is one.

        Raises:
            DatabaseUnreachable: no connection could be opened for a minute.
        """
        self._quiet_since = anyio.current_time()
        while not self._told:
            if not self._is_over and anyio.current_time() > self._quiet_since + self._patience:
                await self.aclose()
            if self._is_over:
                raise StopAsyncIteration
            await self.start()
            try:
                await self._hear()
            except Exception as error:
                if not (isinstance(error, TimeoutError) or is_passing(error)):
                    raise
                self._drop()
                self._note_lost()
        return self._told.popleft()

    async def _hear(self) -> None:
        """Take up what has come. If nothing has, wait until something does, or the time is up."""
        connection = self._connection
        assert connection is not None
        if anyio.current_time() >= self._renew_at:
            await self._follow(connection)
        if not self._heard:
            until = min(self._renew_at, self._quiet_since + self._patience)
            with anyio.move_on_after(max(until - anyio.current_time(), 0.0)):
                self._take(await wait_notifications(connection))
        self._take(take_notifications_nowait(connection))
        if self._lost:
            self._told.append(JobEvent(kind=JobEventKind.LOST, at=None, lost=self._lost))
            self._lost = 0
        if self._heard:
            some = list(self._heard)
            with anyio.fail_after(CONNECT_DEADLINE_SECONDS):
                async with self._pool.connection() as own:
                    told = await ask(own, watching.look_at(self._schema, some, org_id=self._org_id))
            self._heard.clear()
            self._told.extend(told)

    def _take(self, notes: list[psycopg.Notify]) -> None:
        for note in notes:
            for event in events_in(note.payload):
                self._lost += len(self._heard) == EVENTS_HELD_MAX
                self._heard.append(event)

    def _note_lost(self) -> None:
        self._told.append(JobEvent(kind=JobEventKind.LOST, at=None))

    async def _follow(self, connection: Awaited[Any]) -> None:
        with anyio.fail_after(CONNECT_DEADLINE_SECONDS):
            verb = watching.follow_events(self._schema, self._follower_id, queue=self._queue, org_id=self._org_id)
            told = await ask(connection, verb)
        if told == "full":
            raise watching.too_many_follow()
        if told == "new" and self._has_begun:
            self._note_lost()
        self._has_begun = True
        self._renew_at = anyio.current_time() + RENEW_SECONDS

    async def _open(self) -> None:
        since = anyio.current_time()
        while True:
            try:
                with anyio.fail_after(CONNECT_DEADLINE_SECONDS):
                    connection = await self._connect()
                self._connection = connection
                self._close_nowait = weakref.finalize(self, connection.close_nowait)
                with anyio.fail_after(CONNECT_DEADLINE_SECONDS):
                    await listen(connection, of_follower(self._schema, self._follower_id))
                await self._follow(connection)
            except BaseException as error:
                self._drop()
                if not (isinstance(error, Exception) and (isinstance(error, TimeoutError) or is_passing(error))):
                    raise
                if anyio.current_time() - since > OUTAGE_SECONDS_MAX:
                    raise DatabaseUnreachable(f"the database has not answered for {OUTAGE_SECONDS_MAX:g} s") from error
                await anyio.sleep(RETRY_SECONDS)
            else:
                return

    def _drop(self) -> None:
        close, self._close_nowait, self._connection = self._close_nowait, None, None
        if close is not None:
            close()

    async def aclose(self) -> None:
        """Follow no more."""
        if not self._is_over:
            self._is_over = True
            self._told.clear()
            was_open = self._connection is not None
            self._drop()
            if was_open:
                await _leave(self._pool, self._schema, self._follower_id)


class Watching:
    """What follows jobs for a client, or for one tenant's part of it."""

    def __init__(self, ends: Ends, pool: Pool, schema: str) -> None:
        self._ends = ends
        self._pool = pool
        self._schema = schema

    def watch(self, job_id: JobId, *, timeout_seconds: float | None, org_id: OrgId | None = None) -> Watch:
        """Follow a job."""
        return Watch(self._ends, self._pool, self._schema, job_id, org_id=org_id, timeout_seconds=timeout_seconds)

    def follow_logs(self, job_id: JobId, *, timeout_seconds: float | None, org_id: OrgId | None = None) -> FollowLogs:
        """Follow what handlers of a job log."""
        return FollowLogs(self._ends, self._pool, self._schema, job_id, org_id=org_id, timeout_seconds=timeout_seconds)

    def events(self, *, queue: str | None, timeout_seconds: float | None, org_id: OrgId | None = None) -> Events:
        """Follow what happens to jobs."""
        connect = self._ends.open_listener
        return Events(self._pool, connect, self._schema, queue=queue, org_id=org_id, timeout_seconds=timeout_seconds)


class WatchingVerbs:
    """The verbs of a client by which it follows jobs."""

    _verbs: Verbs
    _pool: Pool
    _ends: Ends
    _ask: Callable[..., Awaitable[Any]]

    @property
    def _watching(self) -> Watching:
        return Watching(self._ends, self._pool, self._verbs.schema)

    async def logs(self, job_id: JobId | UUID | str, *, attempt: int | None = None) -> list[LogLine]:
        """Return what handlers of a job have logged by `ctx.log`, oldest first.

        At most 64 KiB of each attempt are kept: its first lines and its last. If lines are left
        out, a line between them says how many.

        Args:
            job_id: the job, as a UUID or its text.
            attempt: only of this attempt.

        Raises:
            InvalidJob: `job_id` is not an id.
        """
        lines: list[LogLine] = await self._ask(self._verbs.logs(job_id, attempt=attempt))
        return lines

    def watch(self, job_id: JobId | UUID | str, *, timeout_seconds: float | None = None) -> Following[Job]:
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

    def follow_logs(self, job_id: JobId | UUID | str, *, timeout_seconds: float | None = None) -> Following[LogLine]:
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
    ) -> Following[JobEvent]:
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


async def _leave(pool: Pool, schema: str, follower_id: UUID) -> None:
    """Say that a follower leaves. If that fails, the follower counts until its time."""
    try:
        with anyio.move_on_after(LEAVE_DEADLINE_SECONDS, shield=True):
            async with pool.connection() as connection:
                await ask(connection, watching.unfollow(schema, follower_id))
    except Exception as error:
        if not (is_passing(error) or isinstance(error, MissingRights)):
            raise
