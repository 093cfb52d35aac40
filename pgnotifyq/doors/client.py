"""The client: the verbs of a door on trio. Enqueue, cancel, wait, look.

How a wait hears of a job's end is told in doors/ends.py. How enqueues share a statement is told in
doors/gathering.py.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Unpack, overload

import attrs
import psycopg
import trio

from pgnotifyq.doors.ends import Ends, no_job
from pgnotifyq.doors.gathering import Gatherer
from pgnotifyq.ledger import bulk, end, enqueue, look
from pgnotifyq.migrating import check_schema
from pgnotifyq.model.errors import (
    InvalidJob,
    JobDead,
    JobNotFound,
    WaitTimeout,
)
from pgnotifyq.model.handler import make_job
from pgnotifyq.model.job import NIL_ORG, DeadLetter, Job, JobId, JobSettings, NewJob, OrgId, job_id_of, org_id_of
from pgnotifyq.model.registry import handler_of
from pgnotifyq.wire.asking import ask, ask_blocking
from pgnotifyq.wire.connection import Connection
from pgnotifyq.wire.pool import open_pool
from pgnotifyq.wire.sessions import For

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from pgnotifyq.ledger.look import Explanation, QueueRow, WorkerRow
    from pgnotifyq.model.handler import Handler, P, Plain, R, V
    from pgnotifyq.model.job import Execution
    from pgnotifyq.model.registry import JobRegistry
    from pgnotifyq.model.states import Label, Status
    from pgnotifyq.wire.pool import Pool

    class EnqueueSettings(JobSettings, total=False):
        """What `enqueue` takes besides a type and a payload."""

        connection: Connection[Any] | psycopg.Connection[Any] | None


CONNECTIONS_MAX_DEFAULT = 4


class CancelOutcome(StrEnum):
    """What became of a cancel."""

    CANCELLED = "cancelled"  # it never started, or its handler has stopped
    STOPPING = "stopping"  # its handler has been told; nobody waited for it
    FINISHED = "finished"  # it had ended before
    UNRESPONSIVE = "unresponsive"  # its handler was told, and did not stop within the time given


@asynccontextmanager
async def open_client(
    dsn: str,
    *,
    schema: str = "pgnotifyq",
    connections_max: int = CONNECTIONS_MAX_DEFAULT,
    registry: JobRegistry | None = None,
    listen_dsn: str | None = None,
) -> AsyncIterator[Client]:
    """Open a client for the length of a block.

    Args:
        dsn: the database. Of several addresses, the first that can write. If the address says
            `target_session_attrs`, the first that it admits, as for reading on a standby.
        schema: where the queue lives.
        connections_max: how many connections it may use, besides one for waiting.
        registry: if given, `enqueue` refuses unknown types and payloads that do not fit, and takes
            the handlers' defaults of queue and max_attempts.
        listen_dsn: an address where LISTEN works, for waiting, if `dsn` leads to a pooler in
            transaction mode.

    Raises:
        DatabaseUnreachable: no server answers.
        SchemaMissing, SchemaOutOfDate, SchemaTooNew, DatabaseTooOld: run
            `python -m pgnotifyq migrate`, or upgrade.
    """
    pool_of = open_pool(
        dsn, size_max=connections_max, application_name="pgnotifyq client", used_for=For.CALLER, prepare_threshold=0
    )
    async with pool_of as pool:
        async with pool.connection() as connection:
            await check_schema(connection, schema)
        client = Client(pool, dsn, schema, registry, listen_dsn=listen_dsn or dsn)
        try:
            yield client
        finally:
            client._ends.close_nowait()  # noqa: SLF001  # this module's own


class Client:
    """A door to the queue for programs that run on trio. Made by `open_client`."""

    def __init__(self, pool: Pool, dsn: str, schema: str, registry: JobRegistry | None, *, listen_dsn: str) -> None:
        self._pool = pool
        self._schema = schema
        self._registry = registry
        self._gatherer = Gatherer(pool, dsn, schema)
        self._ends = Ends(pool, listen_dsn, schema)

    # A checker takes the first form that fits. The second is for JSON that is written where it is
    # enqueued: mypy takes {"a": 1} for a dict[str, int], which is no dict[str, object].

    @overload
    async def enqueue(self, job_type: Handler[P, R], payload: P, **settings: Unpack[EnqueueSettings]) -> JobId[R]: ...
    @overload
    async def enqueue(
        self, job_type: Handler[dict[str, V], R], payload: Mapping[str, V], **settings: Unpack[EnqueueSettings]
    ) -> JobId[R]: ...
    @overload
    async def enqueue(
        self, job_type: Handler[P | None, R], payload: None = None, **settings: Unpack[EnqueueSettings]
    ) -> JobId[R]: ...
    @overload
    async def enqueue(self, job_type: str, payload: object = None, **settings: Unpack[EnqueueSettings]) -> JobId: ...

    async def enqueue(
        self,
        job_type: str | Handler,
        payload: object = None,
        *,
        org_id: OrgId | UUID | str = NIL_ORG,
        queue: str | None = None,
        priority: int = 0,
        scheduled_at: datetime | None = None,
        delay_seconds: float | None = None,
        max_attempts: int | None = None,
        unique_key: str | None = None,
        connection: Connection[Any] | psycopg.Connection[Any] | None = None,
    ) -> JobId:
        """Enqueue one job and return its id.

        If a worker of this event loop, on the same database, is idle and has a handler for the job,
        the statement that enqueues the job also starts it (runtime/shortcuts.py). Jobs that several
        tasks enqueue at once share a statement (doors/gathering.py).

        Args:
            job_type: which handler runs it: what `@registry.handler` made of the function, or its
                name.
            payload: what the handler takes: dict, attrs class, dataclass. It is JSON in the end, at
                most 1 MiB.
            org_id: the tenant.
            queue: its queue; default: the handler's, as the registry says or a worker has
                published it, else `default`.
            priority: higher first, -32768 to 32767.
            scheduled_at: not before this time, aware; compared with the database's clock.
            delay_seconds: not before this many seconds from now, on the database's clock.
            max_attempts: then it is dead-lettered; default: what the handler says that takes it,
                else 3.
            unique_key: while an unfinished job of the tenant and type has it, that job's id is
                returned and none is made.
            connection: enqueue in this connection's open transaction: the job exists if and only if
                that commits. One of pgnotifyq's, or a blocking psycopg connection, which blocks the
                event loop for one round trip.

        Cancellation: nothing is enqueued, or `trio.Cancelled` comes at the next checkpoint.

        Raises:
            InvalidName, InvalidJob, InvalidPayload, PayloadTooLarge: nothing was sent.
            UnknownJobType: the client has a registry, and it has no such handler.
            InvalidJob: also if the registry has another handler of the type than the one given.
            TypeError: `connection` is neither.
        """
        job = self._new_job(
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
            }
        )
        if connection is None:
            return await self._gatherer.enqueue(job)
        if isinstance(connection, psycopg.Connection):
            return ask_blocking(connection, enqueue.enqueue(self._schema, job))
        return await ask(_check_connection(connection), enqueue.enqueue(self._schema, job))

    async def enqueue_many(
        self,
        jobs: Sequence[NewJob | Mapping[str, Any]],
        *,
        connection: Connection[Any] | psycopg.Connection[Any] | None = None,
    ) -> list[JobId]:
        """Enqueue jobs, all or none, and return their ids in order.

        One statement up to a hundred jobs, COPY beyond.

        Args:
            jobs: each a NewJob, which says everything itself, or a mapping of what `enqueue` takes:
                job_type, payload, queue, ...; only what a mapping leaves out comes from the
                registry.
            connection: as for `enqueue`.

        Cancellation: none of them are enqueued, or `trio.Cancelled` comes at the next checkpoint.

        Raises:
            InvalidName, InvalidJob, InvalidPayload, PayloadTooLarge: none is enqueued.
            UnknownJobType: the client has a registry, and it has no such handler.
            TypeError: `connection` is neither.
        """
        made: list[NewJob] = []
        for job in jobs:
            made.append(self._checked(job) if isinstance(job, NewJob) else self._new_job(job))
            if len(made) % enqueue.AT_ONCE_JOBS_MAX == 0:
                await trio.lowlevel.checkpoint()
        if connection is None:
            async with self._pool.connection() as own:
                return await ask(own, bulk.enqueue_many(self._schema, made))
        if isinstance(connection, psycopg.Connection):
            return ask_blocking(connection, bulk.enqueue_many(self._schema, made))
        return await ask(_check_connection(connection), bulk.enqueue_many(self._schema, made))

    async def cancel(
        self, job_id: JobId | UUID | str, *, wait_seconds: float | None = None, why: str | None = None
    ) -> CancelOutcome:
        """Cancel a job: a pending one never starts, a running one's handler is stopped.

        Args:
            job_id: the job, as a UUID or its text.
            wait_seconds: wait at most this long until its handler has stopped.
            why: for the handler and the record.

        Returns: what became of it; `stopping` only when nobody waits.

        Cancellation: the job stays cancelled, or was not told yet.

        Raises:
            InvalidJob: `job_id` is not an id.
            JobNotFound: there is no such job.
        """
        job_id = job_id_of(job_id)
        async with self._pool.connection() as connection:
            told = await ask(connection, end.cancel(self._schema, job_id, why))
        if told == "unknown":
            raise no_job(job_id)
        if told != "stopping" or wait_seconds is None:
            return CancelOutcome(told)
        try:
            await self._ends.wait(job_id, wait_seconds)
        except WaitTimeout:
            return CancelOutcome.UNRESPONSIVE
        except JobNotFound:
            pass  # it stopped, and was pruned before anybody looked
        return CancelOutcome.CANCELLED

    # If a handler's result is no JSON, as an attrs object, it comes back as JSON. Then nothing is
    # said of its type.

    @overload
    async def wait(self, job_id: JobId[Plain], timeout_seconds: float | None = None) -> Job[Plain]: ...
    @overload
    async def wait(self, job_id: UUID | str, timeout_seconds: float | None = None) -> Job: ...

    async def wait(self, job_id: JobId | UUID | str, timeout_seconds: float | None = None) -> Job:
        """Wait until a job has ended, handler and all, and return it as completed or cancelled.

        Outlives a restart of the server.

        Cancellation: the job goes on.

        Raises:
            InvalidJob: `job_id` is not an id.
            JobNotFound: there is no such job.
            JobDead: it went to the dead letters; the error has the letter.
            WaitTimeout: it has not ended within `timeout_seconds`; it goes on.
            DatabaseUnreachable, psycopg.OperationalError: the database has not answered for a
                minute.
        """
        job_id = job_id_of(job_id)
        ended = await self._ends.wait(job_id, timeout_seconds)
        if isinstance(ended, DeadLetter):
            message = f"job {job_id} is a dead letter ({ended.reason}) after {ended.attempts} attempts: {ended.error_message}"
            raise JobDead(message, ended)
        return ended

    async def get(self, job_id: JobId | UUID | str) -> Job:
        """Return a job.

        Raises:
            InvalidJob: `job_id` is not an id.
            JobNotFound: there is none: it never was, was pruned, or is a dead letter.
        """
        job_id = job_id_of(job_id)
        async with self._pool.connection() as connection:
            job = await ask(connection, look.get_job(self._schema, job_id))
        if job is None:
            raise no_job(job_id)
        return job

    async def get_dead(self, job_id: JobId | UUID | str) -> DeadLetter:
        """Return a dead letter.

        Raises:
            InvalidJob: `job_id` is not an id.
            JobNotFound: there is none.
        """
        job_id = job_id_of(job_id)
        async with self._pool.connection() as connection:
            letter = await ask(connection, look.get_dead(self._schema, job_id))
        if letter is None:
            raise _no_letter(job_id)
        return letter

    async def history(self, job_id: JobId | UUID | str) -> list[Execution]:
        """Return the attempts of a job, oldest first, the one under way included.

        Raises:
            InvalidJob: `job_id` is not an id.
        """
        job_id = job_id_of(job_id)
        async with self._pool.connection() as connection:
            return await ask(connection, look.history(self._schema, job_id))

    async def explain(self, job_id: JobId | UUID | str) -> Explanation:
        """Return why a job is where it is: what it waits for, and who could run it.

        Raises:
            InvalidJob: `job_id` is not an id.
            JobNotFound: there is no such job.
        """
        job_id = job_id_of(job_id)
        async with self._pool.connection() as connection:
            found = await ask(connection, look.explain(self._schema, job_id))
        if found is None:
            raise no_job(job_id)
        return found

    async def jobs(
        self,
        *,
        status: Status | Label | None = None,
        queue: str | None = None,
        job_type: str | None = None,
        org_id: OrgId | UUID | str | None = None,
        limit: int = 50,
    ) -> list[Job]:
        """Return jobs, newest first.

        Raises:
            ConfigError: `status` is not a status, nor one of scheduled, retrying, stopping.
        """
        org = None if org_id is None else org_id_of(org_id)
        async with self._pool.connection() as connection:
            return await ask(
                connection, look.list_jobs(self._schema, status=status, queue=queue, job_type=job_type, org_id=org, limit=limit)
            )

    async def dead(self, *, queue: str | None = None, job_type: str | None = None, limit: int = 50) -> list[DeadLetter]:
        """Return dead letters, the latest first."""
        async with self._pool.connection() as connection:
            return await ask(connection, look.list_dead(self._schema, queue=queue, job_type=job_type, limit=limit))

    async def requeue(self, job_id: JobId | UUID | str) -> None:
        """Bring a dead letter back as the job it was, with all its attempts before it.

        Raises:
            InvalidJob: `job_id` is not an id.
            JobNotFound: there is no such dead letter.
            UniqueKeyHeld: an unfinished job holds its unique key; the dead letter stays.
        """
        job_id = job_id_of(job_id)
        async with self._pool.connection() as connection:
            if not await ask(connection, end.requeue(self._schema, job_id)):
                raise _no_letter(job_id)

    async def requeue_all(self, *, queue: str | None = None, job_type: str | None = None, limit: int = 1000) -> int:
        """Bring back dead letters, the oldest first, and return how many."""
        async with self._pool.connection() as connection:
            return await ask(connection, end.requeue_all(self._schema, queue=queue, job_type=job_type, limit=limit))

    async def purge_dead(self, *, job_id: JobId | UUID | str | None = None, older_than_seconds: float | None = None) -> int:
        """Delete a dead letter, or those that died longer ago than given; return how many."""
        letter = None if job_id is None else job_id_of(job_id)
        async with self._pool.connection() as connection:
            return await ask(connection, end.purge_dead(self._schema, job_id=letter, older_than_seconds=older_than_seconds))

    async def set_retention(self, queue: str, keep_seconds: float | None, *, ending: str | None = None) -> None:
        """Say how long the finished jobs of a queue are kept, whatever its workers are set to.

        Args:
            queue: the queue; it need not hold jobs, nor have workers.
            keep_seconds: from a job's end; None: the settings of the queue's workers count.
            ending: completed or cancelled; None: both.

        Raises:
            InvalidJob: a value is out of range.
        """
        async with self._pool.connection() as connection:
            await ask(connection, end.set_retention(self._schema, queue, keep_seconds, ending=ending))

    async def workers(self) -> list[WorkerRow]:
        """Return the worker processes, the oldest first."""
        async with self._pool.connection() as connection:
            return await ask(connection, look.list_workers(self._schema))

    async def stats(self) -> list[QueueRow]:
        """Return what each queue holds, by name."""
        async with self._pool.connection() as connection:
            return await ask(connection, look.stats(self._schema))

    def _new_job(self, given: Mapping[str, Any]) -> NewJob:
        """Make a job of what `enqueue` takes, and of the handler's defaults."""
        if "job_type" not in given:
            raise InvalidJob("a job has no job_type: name the handler that is to run it")
        settings = dict(given)
        job_type, payload = settings.pop("job_type"), settings.pop("payload", None)
        handler = handler_of(job_type, self._registry)
        return make_job(job_type if handler is None else handler.job_type, payload, settings, handler)

    def _checked(self, job: NewJob) -> NewJob:
        """Refuse here what the handler would refuse later."""
        if self._registry is None:
            return job
        return attrs.evolve(job, payload=self._registry.get(job.job_type).checked(job.payload))


def _check_connection(connection: object) -> Connection[Any]:
    if not isinstance(connection, Connection):
        message = (
            f"connection is a {type(connection).__module__}.{type(connection).__qualname__}: pass one opened by "
            "pgnotifyq.wire.connection, or a blocking psycopg.Connection"
        )
        raise TypeError(message)
    return connection


def _no_letter(job_id: object) -> JobNotFound:
    return JobNotFound(f"there is no dead letter {job_id}: list them with `python -m pgnotifyq dead`")
