"""A client that sees one tenant, on trio and on asyncio."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, Unpack, overload

import attrs

from pgnotifyq.doors.making import make_all
from pgnotifyq.doors.org_verbs import owned
from pgnotifyq.doors.schedules import AwaitedOrgSchedules
from pgnotifyq.doors.verbs import CancelOutcome, EnqueueSettings, ended
from pgnotifyq.model.errors import JobNotFound, WaitTimeout
from pgnotifyq.model.names import check_queue_name
from pgnotifyq.model.new_job import NewJob, job_id_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping
    from datetime import datetime
    from uuid import UUID

    from pgnotifyq.doors.org_verbs import OrgVerbs
    from pgnotifyq.doors.watching import Following, Watching
    from pgnotifyq.ledger.changes import Batch, JobFilter
    from pgnotifyq.ledger.explaining import Explanation
    from pgnotifyq.ledger.look import DeadGroup
    from pgnotifyq.ledger.retention import Erasable, Erased
    from pgnotifyq.model.handler import Handler, P, Plain, R, V
    from pgnotifyq.model.job import DeadLetter, Execution, Job, JobId, OrgId
    from pgnotifyq.model.states import Label, Status
    from pgnotifyq.model.unique import Enqueued
    from pgnotifyq.model.watching import JobEvent, LogLine
    from pgnotifyq.wire.kinds import CallersConnection

T = TypeVar("T")


@attrs.frozen(eq=False)
class OrgClient(AwaitedOrgSchedules):
    """A client that sees one tenant. Made by `client.for_org`.

    The id of another tenant's job is unknown here, as if there had never been such a job.
    """

    _verbs: OrgVerbs
    _ask: Callable[..., Awaitable[Any]]
    _enqueue: Callable[[NewJob], Awaitable[JobId]]
    _wait: Callable[[JobId, float | None], Awaitable[Job | DeadLetter]]
    _watching: Watching

    @property
    def org_id(self) -> OrgId:
        """The tenant."""
        return self._verbs.org_id

    # A type checker takes the first form that fits, as for a client's `enqueue`.

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
        connection: CallersConnection | None = None,
        savepoint: bool = False,
        **settings: Any,
    ) -> JobId:
        """Enqueue one job of the tenant and return its id.

        Args:
            job_type: which handler runs it: the handler, or its name.
            payload: what the handler takes.
            connection: as of a client's `enqueue`.
            savepoint: as of a client's `enqueue`.
            settings: as of a client's `enqueue`: queue, priority, delay_seconds, unique_key, ...

        Raises:
            InvalidJob: the job is refused; also if `org_id` is another tenant.
            InvalidName, InvalidPayload, PayloadTooLarge, UnknownJobType, TypeError: as of a
                client's `enqueue`.
        """
        job = self._verbs.new_job({"job_type": job_type, "payload": payload, **settings})
        if connection is None and not savepoint:
            return await self._enqueue(job)
        job_id: JobId = await self._ask(self._verbs.enqueue(job), connection, savepoint=savepoint)
        return job_id

    async def enqueue_many(
        self, jobs: Iterable[NewJob | Mapping[str, Any]], *, connection: CallersConnection | None = None, savepoint: bool = False
    ) -> list[JobId]:
        """Enqueue jobs of the tenant, all or none, and return their ids in order.

        Args:
            jobs: as of a client's `enqueue_many`. A job that names no tenant is this tenant's.
            connection: as of a client's `enqueue`.
            savepoint: as of a client's `enqueue`, around all of them.

        Raises: as `enqueue`.
        """
        made = await make_all(self._verbs, jobs)
        jobs_made: list[JobId] = await self._ask(self._verbs.enqueue_many(made), connection, savepoint=savepoint)
        return jobs_made

    # The same verbs, but their answer also says what became of the unique key.

    @overload
    async def enqueue_told(self, job_type: Handler[P, R], payload: P, **settings: Unpack[EnqueueSettings]) -> Enqueued[R]: ...
    @overload
    async def enqueue_told(
        self, job_type: Handler[dict[str, V], R], payload: Mapping[str, V], **settings: Unpack[EnqueueSettings]
    ) -> Enqueued[R]: ...
    @overload
    async def enqueue_told(
        self, job_type: Handler[P | None, R], payload: None = None, **settings: Unpack[EnqueueSettings]
    ) -> Enqueued[R]: ...
    @overload
    async def enqueue_told(self, job_type: str, payload: object = None, **settings: Unpack[EnqueueSettings]) -> Enqueued: ...

    async def enqueue_told(
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
        told: Enqueued = await self._ask(self._verbs.enqueue_told(job), connection, savepoint=savepoint)
        return told

    async def enqueue_many_told(
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
        made = await make_all(self._verbs, jobs)
        told: list[Enqueued] = await self._ask(self._verbs.enqueue_many_told(made), connection, savepoint=savepoint)
        return told

    async def cancel(
        self, job_id: JobId | UUID | str, *, wait_seconds: float | None = None, why: str | None = None
    ) -> CancelOutcome:
        """Cancel a job. A pending job never starts; the handler of a running job is stopped.

        Args:
            job_id: the job, as a UUID or its text.
            wait_seconds: wait at most this long until its handler has stopped.
            why: for the handler and the record.

        Returns: what became of the job; `stopping` only without `wait_seconds`.

        Raises:
            InvalidJob: `job_id` is not an id.
            JobNotFound: the tenant has no such job.
        """
        told: CancelOutcome = await self._ask(self._verbs.cancel(job_id, why))
        if told is not CancelOutcome.STOPPING or wait_seconds is None:
            return told
        try:
            await self._wait(job_id_of(job_id), wait_seconds)
        except WaitTimeout:
            return CancelOutcome.UNRESPONSIVE
        except JobNotFound:
            pass  # it stopped, and was pruned before this client looked
        return CancelOutcome.CANCELLED

    @overload
    async def wait(self, job_id: JobId[Plain], timeout_seconds: float | None = None) -> Job[Plain]: ...
    @overload
    async def wait(self, job_id: UUID | str, timeout_seconds: float | None = None) -> Job: ...

    async def wait(self, job_id: JobId | UUID | str, timeout_seconds: float | None = None) -> Job:
        """Wait until a job and its handler have ended, and return it, completed or cancelled.

        Raises:
            InvalidJob: `job_id` is not an id.
            JobNotFound: the tenant has no such job.
            JobDead: it went to the dead letters; the error has the letter.
            WaitTimeout: it has not ended within `timeout_seconds`; it goes on.
        """
        await self._ask(self._verbs.own(job_id))
        return ended(owned(await self._wait(job_id_of(job_id), timeout_seconds), self.org_id))

    async def get(self, job_id: JobId | UUID | str) -> Job:
        """Return a job. A dead letter is returned as the job it was, with the status `dead`.

        Raises:
            InvalidJob: `job_id` is not an id.
            JobNotFound: the tenant has no such job: it never was, or it was pruned. Or it is a dead
                letter, and the connection's role may not look at dead letters.
        """
        job: Job = await self._ask(self._verbs.get(job_id))
        return job

    async def get_dead(self, job_id: JobId | UUID | str) -> DeadLetter:
        """Return a dead letter.

        Raises:
            InvalidJob: `job_id` is not an id.
            JobNotFound: the tenant has no such dead letter.
        """
        letter: DeadLetter = await self._ask(self._verbs.get_dead(job_id))
        return letter

    async def history(self, job_id: JobId | UUID | str) -> list[Execution]:
        """Return the attempts of a job, oldest first, the one under way included.

        Raises:
            InvalidJob: `job_id` is not an id.
        """
        attempts: list[Execution] = await self._ask(self._verbs.history(job_id))
        return attempts

    async def explain(self, job_id: JobId | UUID | str) -> Explanation:
        """Return why a job is where it is: what it waits for, or how it ended.

        A dead letter is explained, too. Nothing is told in which other tenants have a part:
        docs/explain.md says what is left out.

        Returns: what holds of the job, in words (`answers`) and in sentences, and the facts that
            decide them. Of the jobs that come first, only the tenant's own are counted.

        Raises:
            InvalidJob: `job_id` is not an id.
            JobNotFound: the tenant has no such job.
            MissingRights: the role may not look at workers. The roles of producers and of tenants
                may not.
        """
        found: Explanation = await self._ask(self._verbs.explain(job_id))
        return found

    async def logs(self, job_id: JobId | UUID | str, *, attempt: int | None = None) -> list[LogLine]:
        """Return what handlers of a job have logged by `ctx.log`, oldest first.

        Raises:
            InvalidJob: `job_id` is not an id.
        """
        lines: list[LogLine] = await self._ask(self._verbs.logs(job_id, attempt=attempt))
        return lines

    def watch(self, job_id: JobId | UUID | str, *, timeout_seconds: float | None = None) -> Following[Job]:
        """Yield a job as it is, and again each time that it has changed, until it has ended.

        Raises:
            InvalidJob: `job_id` is not an id.
            JobNotFound: the tenant has no such job, or it was deleted.
            WaitTimeout: it has not ended within `timeout_seconds`; it goes on.
        """
        return self._watching.watch(job_id_of(job_id), timeout_seconds=timeout_seconds, org_id=self.org_id)

    def follow_logs(self, job_id: JobId | UUID | str, *, timeout_seconds: float | None = None) -> Following[LogLine]:
        """Yield the lines that handlers of a job log, from the first on, until it has ended.

        Raises: as `watch`.
        """
        return self._watching.follow_logs(job_id_of(job_id), timeout_seconds=timeout_seconds, org_id=self.org_id)

    def events(self, *, queue: str | None = None, timeout_seconds: float | None = None) -> Following[JobEvent]:
        """Yield what happens to jobs of the tenant, as a client's `events` does.

        Raises: as a client's `events`.
        """
        name = None if queue is None else check_queue_name(queue)
        return self._watching.events(queue=name, timeout_seconds=timeout_seconds, org_id=self.org_id)

    async def jobs(
        self,
        *,
        status: Status | Label | None = None,
        queue: str | None = None,
        job_type: str | None = None,
        limit: int = 50,
    ) -> list[Job]:
        """Return jobs, newest first.

        Raises:
            ConfigError: `status` is not a status, nor one of scheduled, retrying, stopping.
        """
        jobs: list[Job] = await self._ask(self._verbs.jobs(status=status, queue=queue, job_type=job_type, limit=limit))
        return jobs

    async def count(self, *, status: Status | Label | None = None, queue: str | None = None, job_type: str | None = None) -> int:
        """Return how many jobs there are.

        Raises:
            ConfigError: `status` is not a status, nor one of scheduled, retrying, stopping.
        """
        count: int = await self._ask(self._verbs.count(status=status, queue=queue, job_type=job_type))
        return count

    async def dead(
        self,
        *,
        queue: str | None = None,
        job_type: str | None = None,
        error: str | None = None,
        died_after: datetime | None = None,
        fingerprint: str | None = None,
        limit: int = 50,
    ) -> list[DeadLetter]:
        """Return dead letters, the latest first.

        Args:
            queue: only of this queue.
            job_type: only of this job type.
            error: only those whose error message has this text, in upper or lower case.
            died_after: only those that died after this time, aware.
            fingerprint: only those of this group, as `dead_groups` names it.
            limit: how many at the most.

        Raises:
            InvalidJob: `died_after` has no time zone.
            ConfigError: `limit` is out of range.
        """
        letters: list[DeadLetter] = await self._ask(
            self._verbs.dead(
                queue=queue, job_type=job_type, error=error, died_after=died_after, fingerprint=fingerprint, limit=limit
            )
        )
        return letters

    async def dead_groups(
        self,
        *,
        queue: str | None = None,
        job_type: str | None = None,
        error: str | None = None,
        died_after: datetime | None = None,
        limit: int = 50,
    ) -> list[DeadGroup]:
        """Return dead letters in groups, by what they died of, the largest group first.

        Args:
            queue: only of this queue.
            job_type: only of this job type.
            error: only those whose error message has this text, in upper or lower case.
            died_after: only those that died after this time, aware.
            limit: how many groups at the most.

        Raises:
            InvalidJob: `died_after` has no time zone.
            ConfigError: `limit` is out of range.
        """
        groups: list[DeadGroup] = await self._ask(
            self._verbs.dead_groups(queue=queue, job_type=job_type, error=error, died_after=died_after, limit=limit)
        )
        return groups

    async def count_dead(self, *, queue: str | None = None, job_type: str | None = None) -> int:
        """Return how many dead letters there are."""
        count: int = await self._ask(self._verbs.count_dead(queue=queue, job_type=job_type))
        return count

    async def requeue(self, job_id: JobId | UUID | str, *, from_start: bool = False) -> None:
        """Bring a dead letter back as the job it was, with all its attempts before it.

        The job goes on from what its handler has saved. With `from_start` it begins anew.

        Raises:
            InvalidJob: `job_id` is not an id.
            JobNotFound: the tenant has no such dead letter.
            UniqueKeyHeld: an unfinished job holds its unique key; the dead letter stays.
        """
        await self._ask(self._verbs.requeue(job_id, from_start=from_start))

    async def requeue_all(
        self,
        *,
        queue: str | None = None,
        job_type: str | None = None,
        error: str | None = None,
        died_after: datetime | None = None,
        fingerprint: str | None = None,
        limit: int = 1000,
        per_second: float | None = None,
    ) -> int:
        """Bring back dead letters, the oldest first, and return how many.

        Args:
            queue: only of this queue.
            job_type: only of this job type.
            error: only those whose error message has this text, in upper or lower case.
            died_after: only those that died after this time, aware.
            fingerprint: only those of this group, as `dead_groups` names it.
            limit: how many at the most, in one transaction.
            per_second: the jobs fall due one after the other, at this rate; None: all at once.

        Raises:
            InvalidJob: `died_after` has no time zone.
            ConfigError: `limit` or `per_second` is out of range.
        """
        count: int = await self._ask(
            self._verbs.requeue_all(
                queue=queue,
                job_type=job_type,
                error=error,
                died_after=died_after,
                fingerprint=fingerprint,
                limit=limit,
                per_second=per_second,
            )
        )
        return count

    async def purge_dead(self, *, job_id: JobId | UUID | str | None = None, older_than_seconds: float | None = None) -> int:
        """Delete one dead letter, or those dead for `older_than_seconds`. Return how many."""
        count: int = await self._ask(self._verbs.purge_dead(job_id=job_id, older_than_seconds=older_than_seconds))
        return count

    async def edit(
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
            JobNotFound: the tenant has no such job.
        """
        is_edited: bool = await self._ask(
            self._verbs.edit(
                job_id, queue=queue, priority=priority, scheduled_at=scheduled_at, delay_seconds=delay_seconds, payload=payload
            )
        )
        return is_edited

    async def edit_all(
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
            only: which jobs of the tenant.
            queue: another queue. A worker of that queue is woken.
            priority: higher first, -32768 to 32767.
            scheduled_at: not before this time, aware.
            delay_seconds: not before this many seconds from now, on the database's clock, in place
                of `scheduled_at`. 0: now.
            payload: another whole payload. No handler checks it before the job runs.
            after_id: what the batch before returned; None: from the start.
            limit: how many jobs are looked at, in one transaction.

        Returns: how many were changed, how many a constraint or a trigger refused, and where to go
            on from.

        Raises:
            InvalidName, InvalidJob, InvalidPayload, PayloadTooLarge: nothing was sent; also if
                `only` says another tenant.
            ConfigError: `limit` is out of range.
        """
        batch: Batch = await self._ask(
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
        return batch

    async def cancel_all(
        self, only: JobFilter, *, why: str | None = None, after_id: JobId | None = None, limit: int = 1000
    ) -> Batch:
        """Cancel jobs, as `cancel` does, one batch of them; do not wait for their handlers.

        Args:
            only: which jobs of the tenant.
            why: for the handlers and the record.
            after_id: what the batch before returned; None: from the start.
            limit: how many jobs are looked at, in one transaction.

        Returns: how many were changed, how many a constraint or a trigger refused, and where to go
            on from.

        Raises:
            InvalidJob: `only` says another tenant.
            ConfigError: `limit` is out of range.
        """
        batch: Batch = await self._ask(self._verbs.cancel_all(only, why=why, after_id=after_id, limit=limit))
        return batch

    async def delete_all(self, only: JobFilter, *, after_id: JobId | None = None, limit: int = 1000) -> Batch:
        """Delete jobs that no worker holds, with their history, one batch of them.

        Args:
            only: which jobs of the tenant.
            after_id: what the batch before returned; None: from the start.
            limit: how many jobs are looked at, in one transaction.

        Returns: how many were changed, how many a constraint or a trigger refused, and where to go
            on from.

        Raises:
            InvalidJob: `only` says another tenant.
            ConfigError: `limit` is out of range.
        """
        batch: Batch = await self._ask(self._verbs.delete_all(only, after_id=after_id, limit=limit))
        return batch

    async def count_erasable(
        self,
        *,
        unique_key: str | None = None,
        payload: Mapping[str, Any] | None = None,
        queue: str | None = None,
        job_type: str | None = None,
    ) -> Erasable:
        """Return what `erase` would find, with the same arguments.

        Args:
            unique_key: only jobs that were enqueued under this key.
            payload: only jobs whose payload contains this.
            queue: only of this queue.
            job_type: only of this job type.

        Raises:
            InvalidJob: a value is out of range.
        """
        found: Erasable = await self._ask(
            self._verbs.count_erasable(unique_key=unique_key, payload=payload, queue=queue, job_type=job_type)
        )
        return found

    async def erase(
        self,
        *,
        unique_key: str | None = None,
        payload: Mapping[str, Any] | None = None,
        queue: str | None = None,
        job_type: str | None = None,
        why: str | None = None,
        who: str | None = None,
        limit: int = 1000,
    ) -> Erased:
        """Erase all that is kept of the tenant, or of one person, as a client's `erase` does.

        Without a filter the tenant's settings, its credentials and its name go, too.

        Args:
            unique_key: only jobs that were enqueued under this key.
            payload: only jobs whose payload contains this, as `{"user": 17}`, at its top level.
            queue: only of this queue.
            job_type: only of this job type.
            why: for the audit trail: the number of a request, for example, and not the data.
            who: for the audit trail; the role of the connection is always noted, too.
            limit: how many rows a batch looks at.

        Returns: how many jobs and letters are gone, and how many are still `held`. A running job is
            cancelled, and stays until its handler has stopped. Call this again then.

        Raises:
            InvalidJob: a value is out of range.
            ConfigError: `limit` is out of range.
            MissingRights: the connection's role is neither an admin nor the owner.
        """
        erased: Erased = await self._ask(
            self._verbs.erase(
                unique_key=unique_key, payload=payload, queue=queue, job_type=job_type, why=why, who=who, limit=limit
            )
        )
        return erased
