"""The client: enqueue, cancel, wait, look.

Waiting is event-driven. A client opens one listener connection when it first waits, and no background task: of several
tasks that wait, one leads, which reads notifications and wakes the others, and hands the lead over when it leaves. A
notification may be lost, so who waits looks at the table now and then all the same.
"""

from __future__ import annotations

import math
from contextlib import asynccontextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import psycopg
import trio

from pgnotifyq.ledger import jobs as ledger
from pgnotifyq.ledger.errors import is_passing
from pgnotifyq.ledger.migrate import check_schema
from pgnotifyq.model.errors import InvalidPayload, JobDead, JobNotFound, PayloadUndecodable, WaitTimeout
from pgnotifyq.model.job import MAX_ATTEMPTS_DEFAULT, NIL_ORG, JobId, NewJob, OrgId
from pgnotifyq.model.payload import encode, structure
from pgnotifyq.wire.connection import connect
from pgnotifyq.wire.notifications import listen, wait_notifications
from pgnotifyq.wire.pool import open_pool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from datetime import datetime
    from uuid import UUID

    from pgnotifyq.ledger.jobs import QueueRow, WorkerRow
    from pgnotifyq.model.job import DeadLetter, Execution, Job
    from pgnotifyq.model.registry import JobRegistry
    from pgnotifyq.wire.connection import Connection
    from pgnotifyq.wire.pool import Pool

CONNECTIONS_MAX_DEFAULT = 4
# A waiter looks at the table this often even when nothing is heard: a notification may be lost with its connection.
LOOK_SECONDS = 5.0
RECONNECT_SECONDS = 0.2


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
) -> AsyncIterator[Client]:
    """Open a client for the length of a block.

    Args:
        dsn: the database.
        schema: where the queue lives.
        connections_max: how many connections it may use, besides one for waiting.
        registry: when given, `enqueue` refuses unknown types and payloads that do not fit, and takes the handlers'
            defaults of queue and max_attempts.

    Raises:
        DatabaseUnreachable: no server answers.
        SchemaMissing, SchemaOutOfDate, SchemaTooNew, DatabaseTooOld: run `python -m pgnotifyq migrate`, or upgrade.
    """
    async with open_pool(dsn, size_max=connections_max, application_name="pgnotifyq client") as pool:
        async with pool.connection() as connection:
            await check_schema(connection, schema)
        client = Client(pool, dsn, schema, registry)
        try:
            yield client
        finally:
            with trio.CancelScope(shield=True):
                await client._ends.close()  # noqa: SLF001  # this module's own


class Client:
    """A door to the queue for programs that run on trio. Made by `open_client`."""

    def __init__(self, pool: Pool, dsn: str, schema: str, registry: JobRegistry | None) -> None:
        self._pool = pool
        self._schema = schema
        self._registry = registry
        self._ends = _Ends(dsn, schema)

    async def enqueue(
        self,
        job_type: str,
        payload: object = None,
        *,
        org_id: OrgId | UUID | str = NIL_ORG,
        queue: str | None = None,
        priority: int = 0,
        scheduled_at: datetime | None = None,
        delay_seconds: float | None = None,
        max_attempts: int | None = None,
        unique_key: str | None = None,
        connection: Connection | psycopg.Connection[Any] | None = None,
    ) -> JobId:
        """Enqueue one job and return its id.

        Args:
            job_type: which handler runs it.
            payload: dict, attrs class, dataclass: JSON in the end, at most 1 MiB.
            org_id: the tenant.
            queue: its queue; default: the handler's when there is a registry, else `default`.
            priority: higher first, -32768 to 32767.
            scheduled_at: not before this time, aware; compared with the database's clock.
            delay_seconds: not before this many seconds from now, on the database's clock.
            max_attempts: then it is dead-lettered; default: the handler's, else 3.
            unique_key: while an unfinished job of the tenant has it, that job's id is returned and none is made.
            connection: enqueue in this connection's open transaction: the job exists if and only if that commits. One of
                pgnotifyq's, or a blocking psycopg connection, which blocks the event loop for one round trip.

        Cancellation: nothing is enqueued, or `trio.Cancelled` comes at the next checkpoint.

        Raises:
            InvalidName, InvalidJob, InvalidPayload, PayloadTooLarge: nothing was sent.
            UnknownJobType: the client has a registry, and it has no such handler.
        """
        job = self._new_job(
            {
                "job_type": job_type,
                "payload": payload,
                "org_id": org_id,
                "queue_name": queue,
                "priority": priority,
                "scheduled_at": scheduled_at,
                "delay_seconds": delay_seconds,
                "max_attempts": max_attempts,
                "unique_key": unique_key,
            }
        )
        if isinstance(connection, psycopg.Connection):
            return ledger.enqueue_blocking(connection, self._schema, job)
        if connection is not None:
            return await ledger.enqueue(connection, self._schema, job)
        async with self._pool.connection() as own:
            return await ledger.enqueue(own, self._schema, job)

    async def enqueue_many(
        self, jobs: Sequence[NewJob], *, connection: Connection | psycopg.Connection[Any] | None = None
    ) -> list[JobId]:
        """Enqueue jobs, all or none, and return their ids in order.

        One statement up to a thousand jobs, COPY beyond. On a blocking psycopg connection: statements of a thousand.

        Raises:
            InvalidPayload, PayloadTooLarge: nothing was enqueued.
        """
        if self._registry is not None:
            for job in jobs:
                self._check_payload(job)
        if isinstance(connection, psycopg.Connection):
            return ledger.enqueue_many_blocking(connection, self._schema, jobs)
        if connection is not None:
            return await ledger.enqueue_many(connection, self._schema, jobs)
        async with self._pool.connection() as own:
            return await ledger.enqueue_many(own, self._schema, jobs)

    async def cancel(self, job_id: JobId | UUID, *, wait_seconds: float | None = None, why: str | None = None) -> CancelOutcome:
        """Cancel a job: a pending one never starts, a running one's handler is stopped.

        Args:
            job_id: the job.
            wait_seconds: wait at most this long until its handler has stopped.
            why: for the handler and the record.

        Returns: what became of it; `stopping` only when nobody waits.

        Cancellation: the job stays cancelled.

        Raises:
            JobNotFound: there is no such job.
        """
        job_id = JobId(job_id)
        async with self._pool.connection() as connection:
            told = await ledger.cancel(connection, self._schema, job_id, why)
        if told == "unknown":
            raise _not_found(job_id)
        if told != "stopping" or wait_seconds is None:
            return CancelOutcome(told)
        try:
            await self._wait_end(job_id, wait_seconds)
        except WaitTimeout:
            return CancelOutcome.UNRESPONSIVE
        return CancelOutcome.CANCELLED

    async def wait(self, job_id: JobId | UUID, timeout_seconds: float | None = None) -> Job:
        """Wait until a job has ended, handler and all, and return it: `status` is completed or cancelled.

        Raises:
            JobNotFound: there is no such job.
            JobDead: it went to the dead letters; the error has the letter.
            WaitTimeout: it has not ended within `timeout_seconds`; it goes on.
        """
        job_id = JobId(job_id)
        await self._wait_end(job_id, timeout_seconds)
        async with self._pool.connection() as connection:
            job = await ledger.get_job(connection, self._schema, job_id)
            if job is not None:
                return job
            letter = await ledger.get_dead(connection, self._schema, job_id)
        if letter is None:
            raise _not_found(job_id)
        raise JobDead(f"job {job_id} is a dead letter ({letter.reason}): {letter.error_message}", letter)

    async def get(self, job_id: JobId | UUID) -> Job:
        """Return a job.

        Raises:
            JobNotFound: there is none: it never was, was pruned, or is a dead letter.
        """
        async with self._pool.connection() as connection:
            job = await ledger.get_job(connection, self._schema, JobId(job_id))
        if job is None:
            raise _not_found(JobId(job_id))
        return job

    async def history(self, job_id: JobId | UUID) -> list[Execution]:
        """Return the attempts of a job, oldest first."""
        async with self._pool.connection() as connection:
            return await ledger.history(connection, self._schema, JobId(job_id))

    async def jobs(self, **filters: Any) -> list[Job]:
        """Return jobs, newest first. Filters: status, queue, job_type, org_id, limit."""
        async with self._pool.connection() as connection:
            return await ledger.list_jobs(connection, self._schema, **filters)

    async def dead(self, **filters: Any) -> list[DeadLetter]:
        """Return dead letters, the latest first. Filters: queue, job_type, limit."""
        async with self._pool.connection() as connection:
            return await ledger.list_dead(connection, self._schema, **filters)

    async def requeue(self, job_id: JobId | UUID) -> None:
        """Bring a dead letter back as the job it was, with all its attempts before it.

        Raises:
            JobNotFound: there is no such dead letter.
        """
        async with self._pool.connection() as connection:
            if not await ledger.requeue(connection, self._schema, JobId(job_id)):
                raise JobNotFound(f"there is no dead letter {job_id}: list them with `python -m pgnotifyq dead`")

    async def workers(self) -> list[WorkerRow]:
        """Return the worker processes, the oldest first."""
        async with self._pool.connection() as connection:
            return await ledger.list_workers(connection, self._schema)

    async def stats(self) -> list[QueueRow]:
        """Return what each queue holds, by name."""
        async with self._pool.connection() as connection:
            return await ledger.stats(connection, self._schema)

    async def _wait_end(self, job_id: JobId, timeout_seconds: float | None) -> None:
        async def has_ended() -> bool:
            async with self._pool.connection() as connection:
                return not await ledger.await_job(connection, self._schema, job_id)

        with trio.move_on_after(math.inf if timeout_seconds is None else timeout_seconds) as scope:
            await self._ends.wait(job_id, has_ended)
        if scope.cancelled_caught:
            raise WaitTimeout(f"job {job_id} has not ended within {timeout_seconds:g} s; it goes on")

    def _new_job(self, fields: dict[str, Any]) -> NewJob:
        handler = self._registry.get(fields["job_type"]) if self._registry is not None else None
        if fields["queue_name"] is None:
            fields["queue_name"] = (handler.queue if handler else None) or "default"
        if fields["max_attempts"] is None:
            fields["max_attempts"] = (handler.max_attempts if handler else None) or MAX_ATTEMPTS_DEFAULT
        job = NewJob(**fields)
        if handler is not None:
            self._check_payload(job)
        return job

    def _check_payload(self, job: NewJob) -> None:
        """Refuse here what the handler would refuse later."""
        assert self._registry is not None
        handler = self._registry.get(job.job_type)
        if handler.payload_type is None or handler.takes_job:
            return
        import json

        try:
            structure(json.loads(encode(job.payload)), handler.payload_type)
        except PayloadUndecodable as error:
            raise InvalidPayload(f"{error}; the handler is {handler.name}") from error


class _Ends:
    """The ends of jobs, heard on one connection by whoever leads."""

    def __init__(self, dsn: str, schema: str) -> None:
        self._dsn = dsn
        self._schema = schema
        self._connection: Connection | None = None
        self._waiting: dict[JobId, list[trio.Event]] = {}
        self._has_leader = False

    async def wait(self, job_id: JobId, has_ended: Any) -> None:
        """Wait until `has_ended` says so; it is asked once LISTEN stands, when the end is heard, and now and then."""
        heard = trio.Event()
        self._waiting.setdefault(job_id, []).append(heard)
        try:
            await self._listening()
            while not await has_ended():
                with trio.move_on_after(LOOK_SECONDS):
                    await self._heard(heard)
                if heard.is_set():
                    self._waiting[job_id].remove(heard)
                    heard = trio.Event()
                    self._waiting[job_id].append(heard)
        finally:
            self._waiting[job_id].remove(heard)
            if not self._waiting[job_id]:
                del self._waiting[job_id]
            self._hand_over()

    async def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            await self._connection.close()

    async def _heard(self, heard: trio.Event) -> None:
        """Return when this waiter was woken: the job has ended, or it is its turn to lead and then something was heard."""
        while not heard.is_set():
            if self._has_leader:
                await heard.wait()
                return
            self._has_leader = True
            try:
                await self._lead(heard)
            finally:
                self._has_leader = False
                self._hand_over()

    async def _lead(self, heard: trio.Event) -> None:
        while not heard.is_set():
            try:
                connection = await self._listening()
                notes = await wait_notifications(connection)
            except Exception as error:
                if not is_passing(error):
                    raise
                # What was announced meanwhile is lost: everybody looks again once LISTEN stands anew.
                self._connection = None
                await trio.sleep(RECONNECT_SECONDS)
                self._wake_all()
                return
            for note in notes:
                for job_id in [waiting for waiting in self._waiting if str(waiting) == note.payload]:
                    for event in self._waiting[job_id]:
                        event.set()

    async def _listening(self) -> Connection:
        if self._connection is None or self._connection.closed:
            connection = await connect(self._dsn, application_name="pgnotifyq client listener")
            await listen(connection, f"{self._schema}_finished")
            if self._connection is None or self._connection.closed:
                self._connection = connection
            else:
                await connection.close()
        return self._connection

    def _hand_over(self) -> None:
        """Wake one other waiter, so that somebody reads."""
        if not self._has_leader:
            for events in self._waiting.values():
                for event in events:
                    event.set()
                    return

    def _wake_all(self) -> None:
        for events in self._waiting.values():
            for event in events:
                event.set()


def _not_found(job_id: JobId) -> JobNotFound:
    return JobNotFound(f"there is no job {job_id}: it never was, or was pruned after its retention")
