"""The blocking door, for threads, and for processes that fork.

Here are the client, and the verbs of one job: it is enqueued, cancelled, waited for, edited and
looked at.

The other verbs have rooms of their own: of many jobs and whole queues (operating_blocking.py), of
schedules (schedules_blocking.py), of following jobs (blocking_watching.py). How a wait hears of a
job's end is told in blocking_ends.py.
"""

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
from pgnotifyq.doors.making import make_all_blocking
from pgnotifyq.doors.operating_blocking import BlockingOperating
from pgnotifyq.doors.org_verbs import OrgVerbs
from pgnotifyq.doors.schedules_blocking import BlockingSchedules
from pgnotifyq.doors.verbs import CONNECTIONS_MAX_DEFAULT, SAVEPOINT_ALONE, CancelOutcome, Verbs, ended, enqueue_alone
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
    from pgnotifyq.ledger.explaining import Explanation
    from pgnotifyq.ledger.pauses import Scope
    from pgnotifyq.model.handler import Handler, P, Plain, R, V
    from pgnotifyq.model.job import DeadLetter, Execution, Job, JobId, OrgId
    from pgnotifyq.model.registry import JobRegistry
    from pgnotifyq.model.stack import Stack
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


class Client(BlockingOperating, BlockingSchedules, BlockingWatchingVerbs):
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

    @property
    def _ends(self) -> BlockingEnds:
        return self._inside().ends

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
        return OrgClient(OrgVerbs(self._verbs, org(org_id)), self._ask, self._enqueue_alone, self._wait, self._watching)

    @property
    def _watching(self) -> BlockingWatching:
        return BlockingWatching(lambda: self._ends, self._ask, self._open_listener, self._verbs.schema)

    def _enqueue_alone(self, job: NewJob) -> JobId:
        return self._ask(enqueue_alone(self._verbs.schema, job))

    def _until_drained(self, scope: Scope, timeout_seconds: float | None) -> None:
        self._ends.drain(scope, timeout_seconds)

    def _wait(self, job_id: JobId, timeout_seconds: float | None) -> Job | DeadLetter:
        return self._ends.wait(job_id, timeout_seconds)

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
            return self._enqueue_alone(job)
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
        made = make_all_blocking(self._verbs, jobs)
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
        made = make_all_blocking(self._verbs, jobs)
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
            self._ends.wait(job_id_of(job_id), wait_seconds)
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
        return ended(self._ends.wait(job_id_of(job_id), timeout_seconds))

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
        return self._ends.stack(job_id_of(job_id), timeout_seconds)


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
