"""The blocking door, for threads, and for processes that fork."""

from __future__ import annotations

import atexit
import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, overload
from weakref import WeakSet

import attrs

from pgnotifyq.doors.blocking_ends import BlockingEnds
from pgnotifyq.doors.blocking_watching import BlockingWatching, BlockingWatchingVerbs
from pgnotifyq.doors.for_org_blocking import OrgClient
from pgnotifyq.doors.org_verbs import OrgVerbs
from pgnotifyq.doors.schedules_blocking import BlockingSchedules
from pgnotifyq.doors.verbs import CONNECTIONS_MAX_DEFAULT, SAVEPOINT_ALONE, CancelOutcome, Verbs, ended, enqueue_alone, scope_of
from pgnotifyq.ledger.schema import check_schema
from pgnotifyq.model.errors import ClientClosed, JobNotFound, WaitTimeout
from pgnotifyq.model.job import NIL_ORG
from pgnotifyq.model.new_job import NewJob, job_id_of
from pgnotifyq.model.organisation import org
from pgnotifyq.wire.asking import ask_blocking
from pgnotifyq.wire.blocking import Pool, connect
from pgnotifyq.wire.callers import ask_on_blocking
from pgnotifyq.wire.sessions import For

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from datetime import datetime
    from uuid import UUID

    from pgnotifyq.doors.verbs import EnqueueSettings
    from pgnotifyq.ledger.ask import Verb
    from pgnotifyq.ledger.changes import Batch, JobFilter
    from pgnotifyq.ledger.explaining import Explanation
    from pgnotifyq.ledger.look import DeadGroup, QueueRow, WorkerRow
    from pgnotifyq.ledger.pauses import PauseRow
    from pgnotifyq.ledger.retention import Erasable, Erased, Kept, RetentionRow
    from pgnotifyq.model.handler import Handler, P, Plain, R, V
    from pgnotifyq.model.job import DeadLetter, Execution, Job, JobId, OrgId
    from pgnotifyq.model.registry import JobRegistry
    from pgnotifyq.model.stack import Stack
    from pgnotifyq.model.states import Label, Status
    from pgnotifyq.model.unique import Enqueued, Unique
    from pgnotifyq.wire.blocking import Connection
    from pgnotifyq.wire.kinds import CallersConnection

T = TypeVar("T")


@contextmanager
def open_client(
    dsn: str,
    *,
    schema: str = "pgnotifyq",
    connections_max: int = CONNECTIONS_MAX_DEFAULT,
    registry: JobRegistry | None = None,
    listen_dsn: str | None = None,
) -> Iterator[Client]:
    """Open a client for the length of a block. Any number of threads may use it.

    It may be opened before a fork, as by a server that preloads its application. Each child opens
    connections of its own when it first uses the client; the parent's go on undisturbed.

    Args:
        dsn: the database. Of several addresses, the first that can write. If the address says
            `target_session_attrs`, the first that it admits, as for reading on a standby.
        schema: where the queue lives.
        connections_max: how many connections it may use in each process, besides one for waiting.
        registry: if given, `enqueue` refuses unknown types and payloads that do not fit, and takes
            the handlers' defaults of queue and max_attempts.
        listen_dsn: an address where LISTEN works, for waiting, if `dsn` leads to a pooler in
            transaction mode.

    Raises:
        DatabaseUnreachable: no server answers.
        SchemaMissing, SchemaOutOfDate, SchemaTooNew, DatabaseTooOld: run
            `python -m pgnotifyq migrate`, or upgrade.
    """
    client = Client(Verbs(schema, registry), dsn, connections_max=connections_max, listen_dsn=listen_dsn or dsn)
    try:
        client._ask(check_schema(schema))  # noqa: SLF001  # this module's own
        yield client
    finally:
        client._close()  # noqa: SLF001  # this module's own


@attrs.frozen
class _Inside:
    """What a client has in one process."""

    pool: Pool
    ends: BlockingEnds


class Client(BlockingSchedules, BlockingWatchingVerbs):
    """A door to the queue for programs that block: threads, scripts, WSGI.

    Made by `open_client`.
    """

    def __init__(self, verbs: Verbs, dsn: str, *, connections_max: int, listen_dsn: str) -> None:
        self._verbs = verbs
        self._dsn = dsn
        self._connections_max = connections_max
        self._listen_dsn = listen_dsn
        self._lock = threading.Lock()
        self._opened: _Inside | None = None
        self._is_closed = False
        _clients.add(self)

    def _ask(self, verb: Verb[T], connection: CallersConnection | None = None, *, savepoint: bool = False) -> T:
        """Ask a verb on the caller's connection if there is one, else on one of the pool."""
        if connection is not None:
            return ask_on_blocking(connection, verb, savepoint=savepoint)
        if savepoint:
            raise TypeError(SAVEPOINT_ALONE)
        with self._inside().pool.connection() as own:
            return ask_blocking(own, verb)

    def _inside(self) -> _Inside:
        """Return this process's connections. A child that was forked has none yet."""
        if (opened := self._opened) is not None:
            return opened
        with self._lock:
            if self._is_closed:
                raise ClientClosed
            if self._opened is None:
                pool = Pool(
                    self._dsn,
                    size_max=self._connections_max,
                    application_name="pgnotifyq client",
                    used_for=For.CALLER,
                    prepare_threshold=0,
                )
                self._opened = _Inside(pool, BlockingEnds(pool, self._open_listener, self._verbs.schema))
            return self._opened

    def _open_listener(self) -> Connection[Any]:
        return connect(
            self._listen_dsn,
            application_name="pgnotifyq client listener",
            used_for=For.WORKER,
            must_write=True,
            connect_timeout=LISTENER_CONNECT_SECONDS,
        )

    def _close(self) -> None:
        with self._lock:
            self._is_closed = True
            opened, self._opened = self._opened, None
        if opened is not None:
            opened.ends.close()
            opened.pool.close()

    def _forget(self) -> None:
        """Let go, in a child that was forked, of what its parent has opened."""
        self._lock = threading.Lock()  # another thread of the parent's may have held the old one
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.ends.forget()
            opened.pool.forget()

    def for_org(self, org_id: OrgId | UUID | str | int) -> OrgClient:
        """Return a client that sees one tenant: its jobs, its dead letters, and no others.

        It shares this client's connections, and lives as long.

        Args:
            org_id: the tenant: its id, or its name or number, as `pgnotifyq.org` takes it.

        Raises:
            InvalidJob: it names no tenant.
        """
        return OrgClient(OrgVerbs(self._verbs, org(org_id)), self._ask, self._wait, self._watching)

    @property
    def _watching(self) -> BlockingWatching:
        return BlockingWatching(lambda: self._inside().ends, self._ask, self._open_listener, self._verbs.schema)

    def _wait(self, job_id: JobId, timeout_seconds: float | None) -> Job | DeadLetter:
        return self._inside().ends.wait(job_id, timeout_seconds)

    # A checker takes the first form that fits. The second is for JSON that is written where it is
    # enqueued: mypy takes {"a": 1} for a dict[str, int], which is no dict[str, object].

    @overload
    def enqueue(self, job_type: Handler[P, R], payload: P, **settings: Unpack[EnqueueSettings]) -> JobId[R]: ...
    @overload
    def enqueue(
        self, job_type: Handler[dict[str, V], R], payload: Mapping[str, V], **settings: Unpack[EnqueueSettings]
    ) -> JobId[R]: ...
    @overload
    def enqueue(self, job_type: Handler[P | None, R], payload: None = None, **settings: Unpack[EnqueueSettings]) -> JobId[R]: ...
    @overload
    def enqueue(self, job_type: str, payload: object = None, **settings: Unpack[EnqueueSettings]) -> JobId: ...

    def enqueue(
        self,
        job_type: str | Handler,
        payload: object = None,
        *,
        org_id: OrgId | UUID | str | int = NIL_ORG,
        queue: str | None = None,
        priority: int = 0,
        scheduled_at: datetime | None = None,
        delay_seconds: float | None = None,
        max_attempts: int | None = None,
        unique_key: str | None = None,
        unique: Unique | None = None,
        headers: Mapping[str, Any] | None = None,
        connection: CallersConnection | None = None,
        savepoint: bool = False,
    ) -> JobId:
        """Enqueue one job and return its id.

        Args:
            job_type: which handler runs it: what `@registry.handler` made of the function, or its
                name.
            payload: what the handler takes: dict, attrs class, dataclass. JSON in the end, at most
                1 MiB.
            org_id: the tenant.
            queue: its queue; default: the handler's, as the registry says or a worker has
                published it, else `default`.
            priority: higher first, -32768 to 32767.
            scheduled_at: not before this time, aware; compared with the database's clock.
            delay_seconds: not before this many seconds from now, on the database's clock.
            max_attempts: then it is dead-lettered; default: what the handler says that takes it,
                else 15.
            unique_key: while an unfinished job of the tenant and type has it, that job's id is
                returned and none is made.
            unique: more of that: by fields of the payload, for a time, and whether the job that has
                the key is kept, replaced or superseded, or this one refused: docs/unique.md.
                `enqueue_told` says which it was.
            headers: what goes with the job and is not its payload, as a trace's context: a JSON
                object of at most 8 KiB. The handler reads them as `ctx.job.headers`. None: those of
                the job whose handler calls this, if there is one; {}: none.
            connection: enqueue in this connection's open transaction: the job exists if and only if
                that commits. psycopg's, SQLAlchemy's (a session) or Django's: docs/transactions.md.
            savepoint: with `connection`: if the database refuses the job, the transaction goes on.
                Two more round trips.

        Raises:
            InvalidName, InvalidJob, InvalidPayload, PayloadTooLarge: nothing was sent.
            UnknownJobType: the client has a registry, and it has no such handler.
            UniqueKeyHeld: another job holds the key, and `unique` says refuse.
            TypeError: `connection` is of a kind that this client cannot use; or `savepoint` is
                without it.
        """
        job = self._verbs.new_job(
            {
                "job_type": job_type,
                "payload": payload,
                "org_id": org_id,
                "queue": queue,
                "priority": priority,
                "scheduled_at": scheduled_at,
                "delay_seconds": delay_seconds,
                "max_attempts": max_attempts,
                "unique_key": unique_key,
                "unique": unique,
                "headers": headers,
            }
        )
        if connection is None and not savepoint:
            return self._ask(enqueue_alone(self._verbs.schema, job))
        return self._ask(self._verbs.enqueue(job), connection, savepoint=savepoint)

    def enqueue_many(
        self,
        jobs: Iterable[NewJob | Mapping[str, Any]],
        *,
        connection: CallersConnection | None = None,
        savepoint: bool = False,
    ) -> list[JobId]:
        """Enqueue jobs, all or none, and return their ids in order.

        One statement up to a hundred jobs, COPY beyond.

        Args:
            jobs: each a NewJob, which says everything itself, or a mapping of what `enqueue` takes:
                job_type, payload, queue, ... What a mapping leaves out comes from the registry.
            connection: as for `enqueue`.
            savepoint: as for `enqueue`, around all of them.

        Raises:
            InvalidName, InvalidJob, InvalidPayload, PayloadTooLarge: none is enqueued.
            UnknownJobType: the client has a registry, and it has no such handler.
            TypeError: `connection` is of a kind that this client cannot use; or `savepoint` is
                without it.
        """
        made = [job for part in self._verbs.new_jobs(list(jobs)) for job in part]
        return self._ask(self._verbs.enqueue_many(made), connection, savepoint=savepoint)

    # The same, and the answer also says what became of the unique key.

    @overload
    def enqueue_told(self, job_type: Handler[P, R], payload: P, **settings: Unpack[EnqueueSettings]) -> Enqueued[R]: ...
    @overload
    def enqueue_told(
        self, job_type: Handler[dict[str, V], R], payload: Mapping[str, V], **settings: Unpack[EnqueueSettings]
    ) -> Enqueued[R]: ...
    @overload
    def enqueue_told(
        self, job_type: Handler[P | None, R], payload: None = None, **settings: Unpack[EnqueueSettings]
    ) -> Enqueued[R]: ...
    @overload
    def enqueue_told(self, job_type: str, payload: object = None, **settings: Unpack[EnqueueSettings]) -> Enqueued: ...

    def enqueue_told(
        self,
        job_type: str | Handler,
        payload: object = None,
        *,
        connection: CallersConnection | None = None,
        savepoint: bool = False,
        **settings: Any,
    ) -> Enqueued:
        """Enqueue one job, as `enqueue` does, and tell what became of its unique key.

        Args:
            job_type: as of `enqueue`.
            payload: as of `enqueue`.
            connection: as of `enqueue`.
            savepoint: as of `enqueue`.
            settings: as of `enqueue`: unique, queue, priority, ...

        Returns: the job's id, and the outcome: created, kept, replaced or superseded.

        Raises:
            UniqueKeyHeld: another job holds the key, and `unique` says refuse.
            InvalidName, InvalidJob, InvalidPayload, PayloadTooLarge, UnknownJobType, TypeError: as
                of `enqueue`.
        """
        job = self._verbs.new_job({"job_type": job_type, "payload": payload, **settings})
        return self._ask(self._verbs.enqueue_told(job), connection, savepoint=savepoint)

    def enqueue_many_told(
        self,
        jobs: Iterable[NewJob | Mapping[str, Any]],
        *,
        connection: CallersConnection | None = None,
        savepoint: bool = False,
    ) -> list[Enqueued]:
        """Enqueue jobs, as `enqueue_many` does, and tell what became of each key, in order.

        Args:
            jobs: as of `enqueue_many`.
            connection: as of `enqueue`.
            savepoint: as of `enqueue`, around all of them.

        Returns: for each job its id, and the outcome: created, kept, replaced or superseded.

        Raises:
            UniqueKeyHeld: another job holds the key of one that says refuse; none is enqueued.
            InvalidName, InvalidJob, InvalidPayload, PayloadTooLarge, UnknownJobType, TypeError: as
                of `enqueue_many`.
        """
        made = [job for part in self._verbs.new_jobs(list(jobs)) for job in part]
        return self._ask(self._verbs.enqueue_many_told(made), connection, savepoint=savepoint)

    def cancel(self, job_id: JobId | UUID | str, *, wait_seconds: float | None = None, why: str | None = None) -> CancelOutcome:
        """Cancel a job: a pending one never starts, a running one's handler is stopped.

        Args:
            job_id: the job, as a UUID or its text.
            wait_seconds: wait at most this long until its handler has stopped.
            why: for the handler and the record.

        Returns: what became of it; `stopping` only when nobody waits.

        Raises:
            InvalidJob: `job_id` is not an id.
            JobNotFound: there is no such job.
        """
        told = self._ask(self._verbs.cancel(job_id, why))
        if told is not CancelOutcome.STOPPING or wait_seconds is None:
            return told
        try:
            self._inside().ends.wait(job_id_of(job_id), wait_seconds)
        except WaitTimeout:
            return CancelOutcome.UNRESPONSIVE
        except JobNotFound:
            pass  # it stopped, and was pruned before anybody looked
        return CancelOutcome.CANCELLED

    # If a handler's result is no JSON, as an attrs object, it comes back as JSON. Then nothing is
    # said of its type.

    @overload
    def wait(self, job_id: JobId[Plain], timeout_seconds: float | None = None) -> Job[Plain]: ...
    @overload
    def wait(self, job_id: UUID | str, timeout_seconds: float | None = None) -> Job: ...

    def wait(self, job_id: JobId | UUID | str, timeout_seconds: float | None = None) -> Job:
        """Wait until a job has ended, handler and all, and return it as completed or cancelled.

        Outlives a restart of the server.

        Raises:
            InvalidJob: `job_id` is not an id.
            JobNotFound: there is no such job.
            JobDead: it went to the dead letters; the error has the letter.
            WaitTimeout: it has not ended within `timeout_seconds`; it goes on.
            DatabaseUnreachable, psycopg.OperationalError: the database has not answered for a
                minute.
        """
        return ended(self._inside().ends.wait(job_id_of(job_id), timeout_seconds))

    def edit(
        self,
        job_id: JobId | UUID | str,
        *,
        queue: str | None = None,
        priority: int | None = None,
        scheduled_at: datetime | None = None,
        delay_seconds: float | None = None,
        payload: object = None,
    ) -> bool:
        """Change a job that waits: when it is due, its priority, its queue, its payload.

        Args:
            job_id: the job, as a UUID or its text.
            queue: another queue. A worker of that queue is woken.
            priority: higher first, -32768 to 32767.
            scheduled_at: not before this time, aware.
            delay_seconds: not before this many seconds from now, on the database's clock, in place
                of `scheduled_at`. 0: now.
            payload: another payload, whole. It is not checked by a handler until it runs.

        Returns: whether it was changed. Not if a worker holds it, or it has ended.

        Raises:
            InvalidName, InvalidJob, InvalidPayload, PayloadTooLarge: nothing was sent.
            JobNotFound: there is no such job.
        """
        return self._ask(
            self._verbs.edit(
                job_id,
                queue=queue,
                priority=priority,
                scheduled_at=scheduled_at,
                delay_seconds=delay_seconds,
                payload=payload,
            )
        )

    def edit_all(
        self,
        only: JobFilter,
        *,
        queue: str | None = None,
        priority: int | None = None,
        scheduled_at: datetime | None = None,
        delay_seconds: float | None = None,
        payload: object = None,
        after_id: JobId | None = None,
        limit: int = 1000,
    ) -> Batch:
        """Change jobs that wait, as `edit` does, one batch of them.

        Args:
            only: which jobs.
            queue: another queue. A worker of that queue is woken.
            priority: higher first, -32768 to 32767.
            scheduled_at: not before this time, aware.
            delay_seconds: not before this many seconds from now, on the database's clock, in place
                of `scheduled_at`. 0: now.
            payload: another payload, whole. It is not checked by a handler until it runs.
            after_id: what the batch before returned; None: from the start.
            limit: how many jobs are looked at, in one transaction.

        Returns: how many were changed, how many a constraint or a trigger refused, and where to go
            on from.

        Raises:
            InvalidName, InvalidJob, InvalidPayload, PayloadTooLarge: nothing was sent.
            ConfigError: `limit` is out of range.
        """
        return self._ask(
            self._verbs.edit_all(
                only,
                queue=queue,
                priority=priority,
                scheduled_at=scheduled_at,
                delay_seconds=delay_seconds,
                payload=payload,
                after_id=after_id,
                limit=limit,
            )
        )

    def cancel_all(self, only: JobFilter, *, why: str | None = None, after_id: JobId | None = None, limit: int = 1000) -> Batch:
        """Cancel jobs, as `cancel` does, one batch of them; do not wait for their handlers.

        Args:
            only: which jobs.
            why: for the handlers and the record.
            after_id: what the batch before returned; None: from the start.
            limit: how many jobs are looked at, in one transaction.

        Returns: how many were changed, how many a constraint or a trigger refused, and where to go
            on from.

        Raises:
            ConfigError: `limit` is out of range.
        """
        return self._ask(self._verbs.cancel_all(only, why=why, after_id=after_id, limit=limit))

    def delete_all(self, only: JobFilter, *, after_id: JobId | None = None, limit: int = 1000) -> Batch:
        """Delete jobs that no worker holds, with their history, one batch of them.

        Args:
            only: which jobs.
            after_id: what the batch before returned; None: from the start.
            limit: how many jobs are looked at, in one transaction.

        Returns: how many were changed, how many a constraint or a trigger refused, and where to go
            on from.

        Raises:
            ConfigError: `limit` is out of range.
        """
        return self._ask(self._verbs.delete_all(only, after_id=after_id, limit=limit))

    def count(self, only: JobFilter) -> int:
        """Return how many jobs fit a filter, dead letters left out."""
        return self._ask(self._verbs.count(only))

    def get(self, job_id: JobId | UUID | str) -> Job:
        """Return a job; a dead letter as the job that it was, with the status `dead`.

        Raises:
            InvalidJob: `job_id` is not an id.
            JobNotFound: there is none: it never was, or was pruned; or it is a dead letter, and the
                connection's role may not look at those.
        """
        return self._ask(self._verbs.get(job_id))

    def get_dead(self, job_id: JobId | UUID | str) -> DeadLetter:
        """Return a dead letter.

        Raises:
            InvalidJob: `job_id` is not an id.
            JobNotFound: there is none.
        """
        return self._ask(self._verbs.get_dead(job_id))

    def history(self, job_id: JobId | UUID | str) -> list[Execution]:
        """Return the attempts of a job, oldest first, the one under way included.

        Raises:
            InvalidJob: `job_id` is not an id.
        """
        return self._ask(self._verbs.history(job_id))

    def explain(self, job_id: JobId | UUID | str) -> Explanation:
        """Return why a job is where it is: what it waits for, who could run it, or how it ended.

        Of a dead letter too.

        Returns: what holds, in words (`answers`), in sentences, and what they are decided by.

        Raises:
            InvalidJob: `job_id` is not an id.
            JobNotFound: there is no such job. The error says whether it was pruned, as far as its
                id tells.
        """
        return self._ask(self._verbs.explain(job_id))

    def stack(self, job_id: JobId | UUID | str, *, timeout_seconds: float = 5.0) -> Stack:
        """Ask the worker that holds a job where its handler stands, and return what it says.

        It costs a worker nothing until somebody asks. No values of variables are told.

        Args:
            job_id: the job, as a UUID or its text.
            timeout_seconds: how long to wait for the worker.

        Returns: the tasks of a handler on trio or asyncio as a tree, or the calls of its thread or
            its process. Its `state` is `ended` if no worker holds the job, `waiting` if the handler
            has not begun, `unresponsive` if the worker did not answer in time: a handler may hold
            its event loop.

        Raises:
            InvalidJob: `job_id` is not an id.
            JobNotFound: there is no such job.
            MissingRights: the role may not ask. Those of workers and admins may.
        """
        return self._inside().ends.stack(job_id_of(job_id), timeout_seconds)

    def jobs(
        self,
        *,
        status: Status | Label | None = None,
        queue: str | None = None,
        job_type: str | None = None,
        org_id: OrgId | UUID | str | int | None = None,
        limit: int = 50,
    ) -> list[Job]:
        """Return jobs, newest first.

        Raises:
            ConfigError: `status` is not a status, nor one of scheduled, retrying, stopping.
        """
        return self._ask(self._verbs.jobs(status=status, queue=queue, job_type=job_type, org_id=org_id, limit=limit))

    def dead(
        self,
        *,
        queue: str | None = None,
        job_type: str | None = None,
        org_id: OrgId | UUID | str | int | None = None,
        error: str | None = None,
        died_after: datetime | None = None,
        fingerprint: str | None = None,
        limit: int = 50,
    ) -> list[DeadLetter]:
        """Return dead letters, the latest first.

        Args:
            queue: only of this queue.
            job_type: only of this job type.
            org_id: only of this tenant.
            error: only those whose error message has this text, in any case.
            died_after: only those that died after this time, aware.
            fingerprint: only those of this group, as `dead_groups` names it.
            limit: how many at the most.

        Raises:
            InvalidJob: `org_id` names no tenant, or `died_after` has no time zone.
            ConfigError: `limit` is out of range.
        """
        return self._ask(
            self._verbs.dead(
                queue=queue,
                job_type=job_type,
                org_id=org_id,
                error=error,
                died_after=died_after,
                fingerprint=fingerprint,
                limit=limit,
            )
        )

    def dead_groups(
        self,
        *,
        queue: str | None = None,
        job_type: str | None = None,
        org_id: OrgId | UUID | str | int | None = None,
        error: str | None = None,
        died_after: datetime | None = None,
        limit: int = 50,
    ) -> list[DeadGroup]:
        """Return dead letters by what they died of, the largest group first.

        Errors are of one group if their first lines differ in ids, numbers and quoted text alone.

        Args:
            queue: only of this queue.
            job_type: only of this job type.
            org_id: only of this tenant.
            error: only those whose error message has this text, in any case.
            died_after: only those that died after this time, aware.
            limit: how many groups at the most.

        Raises:
            InvalidJob: `org_id` names no tenant, or `died_after` has no time zone.
            ConfigError: `limit` is out of range.
        """
        return self._ask(
            self._verbs.dead_groups(
                queue=queue, job_type=job_type, org_id=org_id, error=error, died_after=died_after, limit=limit
            )
        )

    def requeue(self, job_id: JobId | UUID | str, *, from_start: bool = False) -> None:
        """Bring a dead letter back as the job it was, with all its attempts before it.

        It goes on from what its handler has saved; with `from_start` from nothing.

        Raises:
            InvalidJob: `job_id` is not an id.
            JobNotFound: there is no such dead letter.
            UniqueKeyHeld: an unfinished job holds its unique key; the dead letter stays.
        """
        self._ask(self._verbs.requeue(job_id, from_start=from_start))

    def requeue_all(
        self,
        *,
        queue: str | None = None,
        job_type: str | None = None,
        org_id: OrgId | UUID | str | int | None = None,
        error: str | None = None,
        died_after: datetime | None = None,
        fingerprint: str | None = None,
        limit: int = 1000,
        per_second: float | None = None,
        from_start: bool = False,
    ) -> int:
        """Bring back dead letters, the oldest first, and return how many.

        Those whose unique key an unfinished job holds stay, and do not count.

        Args:
            queue: only of this queue.
            job_type: only of this job type.
            org_id: only of this tenant.
            error: only those whose error message has this text, in any case.
            died_after: only those that died after this time, aware.
            fingerprint: only those of this group, as `dead_groups` names it.
            limit: how many at the most, in one transaction.
            per_second: they fall due one after the other, at this rate; None: all at once.
            from_start: without what their handlers had saved.

        Raises:
            InvalidJob: `org_id` names no tenant, or `died_after` has no time zone.
            ConfigError: `limit` or `per_second` is out of range.
        """
        return self._ask(
            self._verbs.requeue_all(
                queue=queue,
                job_type=job_type,
                org_id=org_id,
                error=error,
                died_after=died_after,
                fingerprint=fingerprint,
                limit=limit,
                per_second=per_second,
                from_start=from_start,
            )
        )

    def purge_dead(self, *, job_id: JobId | UUID | str | None = None, older_than_seconds: float | None = None) -> int:
        """Delete a dead letter, or those that died longer ago than given; return how many."""
        return self._ask(self._verbs.purge_dead(job_id=job_id, older_than_seconds=older_than_seconds))

    def set_retention(
        self,
        queue: str,
        keep_seconds: float | None = None,
        *,
        ending: str | None = None,
        payload_seconds: float | None = None,
        result_seconds: float | None = None,
    ) -> None:
        """Say how long the finished jobs of a queue are kept, whatever its workers are set to.

        What was said before of the queue and ending is replaced.

        Args:
            queue: the queue; it need not hold jobs, nor have workers. `*` is every queue, where its
                own row says nothing.
            keep_seconds: from a job's end, with its history. None: nothing is said, and the
                settings of the queue's workers count; dead letters stay until somebody deletes
                them. If nothing else is said either, the row goes.
            ending: completed, cancelled or dead; None: completed and cancelled. If nothing is said
                any more, None is all three.
            payload_seconds: the payload and the headers are blanked then, before the row goes. A
                dead letter cannot be requeued after that.
            result_seconds: the result and the message of the progress are blanked then.

        Raises:
            InvalidJob: a value is out of range.
        """
        self._ask(
            self._verbs.set_retention(
                queue, keep_seconds, ending=ending, payload_seconds=payload_seconds, result_seconds=result_seconds
            )
        )

    def retention(self) -> list[RetentionRow]:
        """Return how long finished jobs are kept, as `set_retention` has said it.

        What is said of every queue comes first.
        """
        return self._ask(self._verbs.retention())

    def kept(self, job_id: JobId | UUID | str) -> Kept:
        """Return when a job, or a dead letter, goes, and its payload and its result.

        Raises:
            InvalidJob: `job_id` is not an id.
            JobNotFound: there is no such job.
        """
        return self._ask(self._verbs.kept(job_id))

    def count_erasable(
        self,
        *,
        org_id: OrgId | UUID | str | int | None = None,
        unique_key: str | None = None,
        payload: Mapping[str, Any] | None = None,
        queue: str | None = None,
        job_type: str | None = None,
    ) -> Erasable:
        """Return what `erase` would find, with the same arguments.

        Args:
            org_id: whose: this tenant's.
            unique_key: whose: jobs that were enqueued under this key.
            payload: whose: jobs whose payload contains this.
            queue: only of this queue.
            job_type: only of this job type.

        Raises:
            InvalidJob: nobody is named, or a value is out of range.
        """
        return self._ask(
            self._verbs.count_erasable(org_id=org_id, unique_key=unique_key, payload=payload, queue=queue, job_type=job_type)
        )

    def erase(
        self,
        *,
        org_id: OrgId | UUID | str | int | None = None,
        unique_key: str | None = None,
        payload: Mapping[str, Any] | None = None,
        queue: str | None = None,
        job_type: str | None = None,
        why: str | None = None,
        who: str | None = None,
        limit: int = 1000,
    ) -> Erased:
        """Erase all that is kept of somebody: jobs in any state, dead letters, their history.

        In batches, each a transaction. If it is interrupted, what was erased stays so: say it
        again. Each batch leaves a row in the audit trail of each tenant that it concerned: how
        many, who, why, and not what.

        Args:
            org_id: whose: this tenant's. If nothing else is given, its settings, its credentials
                and its name go, too; its audit trail stays.
            unique_key: whose: jobs that were enqueued under this key.
            payload: whose: jobs whose payload contains this, as `{"user": 17}`, at its top level.
                Also hooks that such a job has enqueued.
            queue: only of this queue.
            job_type: only of this job type.
            why: for the trail: the number of a request, say, and not the data.
            who: for the trail; the role of the connection is noted in any case.
            limit: how many rows a batch looks at.

        Returns: how many jobs and letters are gone, and how many are still `held`: what runs is
            cancelled, and stays until its handler has stopped. Say it again then.

        Raises:
            InvalidJob: nobody is named, or a value is out of range.
            ConfigError: `limit` is out of range.
            MissingRights: the connection's role is neither an admin nor the owner.
        """
        return self._ask(
            self._verbs.erase(
                org_id=org_id,
                unique_key=unique_key,
                payload=payload,
                queue=queue,
                job_type=job_type,
                why=why,
                who=who,
                limit=limit,
            )
        )

    def pause(
        self,
        queue: str | None = None,
        *,
        job_type: str | None = None,
        everything: bool = False,
        why: str | None = None,
        who: str | None = None,
    ) -> bool:
        """Let nothing of a queue start, on any worker, until it is resumed. What runs goes on.

        Args:
            queue: the queue; it need not hold jobs, nor have workers.
            job_type: instead of a queue: jobs of this type, in all queues.
            everything: instead of either: all jobs.
            why: for those who ask why a job waits.
            who: who pauses it; None: the connection's role.

        Returns: whether it was not paused before; if it was, `why` and `who` are replaced.

        Raises:
            InvalidJob: a value is out of range, or not one of the three was said.
        """
        return self._ask(self._verbs.pause(queue, job_type=job_type, everything=everything, why=why, who=who))

    def resume(self, queue: str | None = None, *, job_type: str | None = None, everything: bool = False) -> bool:
        """Let start again what was paused; workers that sleep are woken.

        Args:
            queue: what was paused, in the same words.
            job_type: what was paused, in the same words.
            everything: what was paused, in the same words. Pauses of queues and types stay.

        Returns: whether it was paused.

        Raises:
            InvalidJob: a value is out of range, or not one of the three was said.
        """
        return self._ask(self._verbs.resume(queue, job_type=job_type, everything=everything))

    def drain(
        self,
        queue: str | None = None,
        *,
        job_type: str | None = None,
        everything: bool = False,
        why: str | None = None,
        who: str | None = None,
        timeout_seconds: float | None = None,
    ) -> None:
        """Pause a queue, as `pause` does, and wait until nothing of it runs any more.

        What runs is not stopped: it ends, or is given back to be tried again later.

        Args:
            queue: the queue; it need not hold jobs, nor have workers.
            job_type: instead of a queue: jobs of this type, in all queues.
            everything: instead of either: all jobs.
            why: for those who ask why a job waits.
            who: who pauses it; None: the connection's role.
            timeout_seconds: wait at most this long.

        Raises:
            InvalidJob: a value is out of range, or not one of the three was said.
            WaitTimeout: something still runs after `timeout_seconds`; it goes on, and it stays
                paused.
            DatabaseUnreachable, psycopg.OperationalError: the database has not answered for a
                minute.
        """
        scope = scope_of(queue, job_type, everything)
        self._ask(self._verbs.pause(queue, job_type=job_type, everything=everything, why=why, who=who))
        self._inside().ends.drain(scope, timeout_seconds)

    def pauses(self) -> list[PauseRow]:
        """Return what is paused, the oldest first."""
        return self._ask(self._verbs.pauses())

    def workers(self) -> list[WorkerRow]:
        """Return the worker processes, the oldest first."""
        return self._ask(self._verbs.workers())

    def stats(self) -> list[QueueRow]:
        """Return what each queue holds, by name."""
        return self._ask(self._verbs.stats())


_clients: WeakSet[Client] = WeakSet()
LISTENER_CONNECT_SECONDS = 3


def _forget_all() -> None:
    for client in list(_clients):
        client._forget()  # noqa: SLF001  # this module's own


@atexit.register
def _close_all() -> None:
    """Close what a process has left open when it ends, as a forked child does.

    Later, the threads of a pool cannot be ended.
    """
    for client in list(_clients):
        client._close()  # noqa: SLF001  # this module's own


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
