"""The verbs of one job, of a door that blocks.

A job is enqueued, cancelled, waited for, edited and looked at.

Made from jobs.py by `python -m tests.doors.twins`: change that, not this.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, Unpack, overload

from pgnotifyq.doors.making import make_all_blocking
from pgnotifyq.doors.verbs import CancelOutcome, ended
from pgnotifyq.model.errors import JobNotFound, WaitTimeout
from pgnotifyq.model.job import NIL_ORG
from pgnotifyq.model.new_job import NewJob, job_id_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime
    from uuid import UUID

    from pgnotifyq.doors.verbs import EnqueueSettings, Verbs
    from pgnotifyq.ledger.ask import Verb
    from pgnotifyq.ledger.explaining import Explanation
    from pgnotifyq.model.handler import Handler, P, Plain, R, V
    from pgnotifyq.model.job import DeadLetter, Execution, Job, JobId, OrgId
    from pgnotifyq.model.stack import Stack
    from pgnotifyq.model.unique import Enqueued, Unique
    from pgnotifyq.wire.kinds import CallersConnection

T = TypeVar("T")


class BlockingJobs:
    """What a client can do with one job, and with a bulk of new ones."""

    _verbs: Verbs

    def _ask(self, verb: Verb[T], connection: CallersConnection | None = None, *, savepoint: bool = False) -> T:
        raise NotImplementedError

    def _enqueue_alone(self, job: NewJob) -> JobId:
        raise NotImplementedError

    def _wait(self, job_id: JobId, timeout_seconds: float | None) -> Job | DeadLetter:
        raise NotImplementedError

    def _stack(self, job_id: JobId, timeout_seconds: float) -> Stack:
        raise NotImplementedError

    # A type checker takes the first form that fits. The second form is for JSON that is written in
    # the call: mypy takes {"a": 1} for a dict[str, int], which is no dict[str, object].

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
            payload: what the handler takes: a dict, or an object of an attrs class or a dataclass.
                It is stored as JSON, of at most 1 MiB.
            org_id: the tenant.
            queue: its queue; default: the handler's, which the registry says or a worker has
                published; else `default`.
            priority: higher first, -32768 to 32767.
            scheduled_at: not before this time, aware; compared with the database's clock.
            delay_seconds: not before this many seconds from now, on the database's clock.
            max_attempts: after so many the job becomes a dead letter; default: what its handler
                says, else 15.
            unique_key: while an unfinished job of the tenant and type has this key, no job is made,
                and that job's id is returned.
            unique: more about the key: it may be made of fields of the payload, and count for a
                time. The job that has the key is kept, replaced or superseded, or this job is
                refused: docs/unique.md. `enqueue_told` says which it was.
            headers: what goes with the job and is not its payload, as a trace's context: a JSON
                object of at most 8 KiB. The handler reads them as `ctx.job.headers`. None: if a
                handler calls this, the headers of its job; {}: none.
            connection: enqueue in this connection's open transaction: the job exists if and only if
                that commits. The connection is psycopg's, SQLAlchemy's (or a session) or Django's;
                on an event loop also pgnotifyq's or asyncpg's: docs/transactions.md.
            savepoint: with `connection`: if the database refuses the job, the transaction goes on.
                This costs two more round trips.

        Raises:
            InvalidName, InvalidJob, InvalidPayload, PayloadTooLarge: nothing was sent.
            UnknownJobType: the client has a registry, and it has no such handler.
            UniqueKeyHeld: another job holds the key, and `unique` says refuse.
            TypeError: `connection` is of a kind that this client cannot use; or `savepoint` is
                given without `connection`.
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

        Up to a hundred jobs go in one statement. More go by COPY.

        Args:
            jobs: each is a NewJob, which says all by itself, or a mapping of what `enqueue` takes:
                job_type, payload, queue, ... What a mapping leaves out comes from the registry.
            connection: as for `enqueue`.
            savepoint: as for `enqueue`, around all of them.

        Raises:
            InvalidName, InvalidJob, InvalidPayload, PayloadTooLarge: none is enqueued.
            UnknownJobType: the client has a registry, and it has no such handler.
            TypeError: `connection` is of a kind that this client cannot use; or `savepoint` is
                given without `connection`.
        """
        made = make_all_blocking(self._verbs, jobs)
        return self._ask(self._verbs.enqueue_many(made), connection, savepoint=savepoint)

    # The same verbs, but their answer also says what became of the unique key.

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
            UniqueKeyHeld: another job holds the key of a job whose `unique` says refuse. No job is
                enqueued.
            InvalidName, InvalidJob, InvalidPayload, PayloadTooLarge, UnknownJobType, TypeError: as
                of `enqueue_many`.
        """
        made = make_all_blocking(self._verbs, jobs)
        return self._ask(self._verbs.enqueue_many_told(made), connection, savepoint=savepoint)

    def cancel(self, job_id: JobId | UUID | str, *, wait_seconds: float | None = None, why: str | None = None) -> CancelOutcome:
        """Cancel a job. A pending job never starts; the handler of a running job is stopped.

        Args:
            job_id: the job, as a UUID or its text.
            wait_seconds: wait at most this long until its handler has stopped.
            why: for the handler and the record.

        Returns: what became of the job; `stopping` only without `wait_seconds`.

        Raises:
            InvalidJob: `job_id` is not an id.
            JobNotFound: there is no such job.
        """
        told = self._ask(self._verbs.cancel(job_id, why))
        if told is not CancelOutcome.STOPPING or wait_seconds is None:
            return told
        try:
            self._wait(job_id_of(job_id), wait_seconds)
        except WaitTimeout:
            return CancelOutcome.UNRESPONSIVE
        except JobNotFound:
            pass  # it stopped, and was pruned before this client looked
        return CancelOutcome.CANCELLED

    # If a handler returns what is no JSON, as an attrs object, the result comes back as JSON. Then
    # a type checker is told nothing of its type.

    @overload
    def wait(self, job_id: JobId[Plain], timeout_seconds: float | None = None) -> Job[Plain]: ...
    @overload
    def wait(self, job_id: UUID | str, timeout_seconds: float | None = None) -> Job: ...

    def wait(self, job_id: JobId | UUID | str, timeout_seconds: float | None = None) -> Job:
        """Wait until a job and its handler have ended, and return it, completed or cancelled.

        The wait outlives a restart of the server.

        Raises:
            InvalidJob: `job_id` is not an id.
            JobNotFound: there is no such job.
            JobDead: it went to the dead letters; the error has the letter.
            WaitTimeout: it has not ended within `timeout_seconds`; it goes on.
            DatabaseUnreachable, psycopg.OperationalError: the database has not answered for a
                minute.
        """
        return ended(self._wait(job_id_of(job_id), timeout_seconds))

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
            payload: another whole payload. No handler checks it before the job runs.

        Returns: whether the job was changed. It is not if a worker holds it, or if it has ended.

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
        """Return a job. A dead letter is returned as the job it was, with the status `dead`.

        Raises:
            InvalidJob: `job_id` is not an id.
            JobNotFound: there is no such job: it never was, or it was pruned. Or it is a dead
                letter, and the connection's role may not look at dead letters.
        """
        return self._ask(self._verbs.get(job_id))

    def get_dead(self, job_id: JobId | UUID | str) -> DeadLetter:
        """Return a dead letter.

        Raises:
            InvalidJob: `job_id` is not an id.
            JobNotFound: there is no such dead letter.
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

        A dead letter is explained, too.

        Returns: what holds of the job, in words (`answers`) and in sentences, and the facts that
            decide them.

        Raises:
            InvalidJob: `job_id` is not an id.
            JobNotFound: there is no such job. The error says whether it was pruned, as far as its
                id tells.
        """
        return self._ask(self._verbs.explain(job_id))

    def stack(self, job_id: JobId | UUID | str, *, timeout_seconds: float = 5.0) -> Stack:
        """Ask the worker that holds a job where its handler stands, and return the answer.

        It costs a worker nothing until a client asks. The answer has no values of variables.

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
            MissingRights: the role may not ask. The roles of workers and of admins may.
        """
        return self._stack(job_id_of(job_id), timeout_seconds)
