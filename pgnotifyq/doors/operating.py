"""The verbs of an operator, of a door that is awaited, on trio and on asyncio.

They are about many jobs and whole queues: jobs by a filter, dead letters, what is kept and what is
erased, pauses, workers, figures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from pgnotifyq.doors.verbs import scope_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from uuid import UUID

    from pgnotifyq.doors.verbs import Verbs
    from pgnotifyq.ledger.ask import Verb
    from pgnotifyq.ledger.changes import Batch, JobFilter
    from pgnotifyq.ledger.look import DeadGroup, QueueRow, WorkerRow
    from pgnotifyq.ledger.pauses import PauseRow, Scope
    from pgnotifyq.ledger.retention import Erasable, Erased, Kept, RetentionRow
    from pgnotifyq.model.job import DeadLetter, Job, JobId, OrgId
    from pgnotifyq.model.states import Label, Status

T = TypeVar("T")


class AwaitedOperating:
    """What a client can do with many jobs, and with queues."""

    _verbs: Verbs

    async def _ask(self, verb: Verb[T]) -> T:
        raise NotImplementedError

    async def _until_drained(self, scope: Scope, timeout_seconds: float | None) -> None:
        raise NotImplementedError

    async def jobs(
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
        return await self._ask(self._verbs.jobs(status=status, queue=queue, job_type=job_type, org_id=org_id, limit=limit))

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
            only: which jobs.
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
            InvalidName, InvalidJob, InvalidPayload, PayloadTooLarge: nothing was sent.
            ConfigError: `limit` is out of range.
        """
        return await self._ask(
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

    async def cancel_all(
        self, only: JobFilter, *, why: str | None = None, after_id: JobId | None = None, limit: int = 1000
    ) -> Batch:
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
        return await self._ask(self._verbs.cancel_all(only, why=why, after_id=after_id, limit=limit))

    async def delete_all(self, only: JobFilter, *, after_id: JobId | None = None, limit: int = 1000) -> Batch:
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
        return await self._ask(self._verbs.delete_all(only, after_id=after_id, limit=limit))

    async def count(self, only: JobFilter) -> int:
        """Return how many jobs fit a filter, dead letters left out."""
        return await self._ask(self._verbs.count(only))

    async def dead(
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
            error: only those whose error message has this text, in upper or lower case.
            died_after: only those that died after this time, aware.
            fingerprint: only those of this group, as `dead_groups` names it.
            limit: how many at the most.

        Raises:
            InvalidJob: `org_id` names no tenant, or `died_after` has no time zone.
            ConfigError: `limit` is out of range.
        """
        return await self._ask(
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

    async def dead_groups(
        self,
        *,
        queue: str | None = None,
        job_type: str | None = None,
        org_id: OrgId | UUID | str | int | None = None,
        error: str | None = None,
        died_after: datetime | None = None,
        limit: int = 50,
    ) -> list[DeadGroup]:
        """Return dead letters in groups, by what they died of, the largest group first.

        Errors are of one group if their first lines differ only in ids, numbers and quoted text.

        Args:
            queue: only of this queue.
            job_type: only of this job type.
            org_id: only of this tenant.
            error: only those whose error message has this text, in upper or lower case.
            died_after: only those that died after this time, aware.
            limit: how many groups at the most.

        Raises:
            InvalidJob: `org_id` names no tenant, or `died_after` has no time zone.
            ConfigError: `limit` is out of range.
        """
        return await self._ask(
            self._verbs.dead_groups(
                queue=queue, job_type=job_type, org_id=org_id, error=error, died_after=died_after, limit=limit
            )
        )

    async def requeue(self, job_id: JobId | UUID | str, *, from_start: bool = False) -> None:
        """Bring a dead letter back as the job it was, with all its attempts before it.

        The job goes on from what its handler has saved. With `from_start` it begins anew.

        Raises:
            InvalidJob: `job_id` is not an id.
            JobNotFound: there is no such dead letter.
            UniqueKeyHeld: an unfinished job holds its unique key; the dead letter stays.
        """
        await self._ask(self._verbs.requeue(job_id, from_start=from_start))

    async def requeue_all(
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

        If an unfinished job holds the unique key of a dead letter, the letter stays and is not
        counted.

        Args:
            queue: only of this queue.
            job_type: only of this job type.
            org_id: only of this tenant.
            error: only those whose error message has this text, in upper or lower case.
            died_after: only those that died after this time, aware.
            fingerprint: only those of this group, as `dead_groups` names it.
            limit: how many at the most, in one transaction.
            per_second: the jobs fall due one after the other, at this rate; None: all at once.
            from_start: without what their handlers had saved.

        Raises:
            InvalidJob: `org_id` names no tenant, or `died_after` has no time zone.
            ConfigError: `limit` or `per_second` is out of range.
        """
        return await self._ask(
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

    async def purge_dead(self, *, job_id: JobId | UUID | str | None = None, older_than_seconds: float | None = None) -> int:
        """Delete one dead letter, or those dead for `older_than_seconds`. Return how many."""
        return await self._ask(self._verbs.purge_dead(job_id=job_id, older_than_seconds=older_than_seconds))

    async def set_retention(
        self,
        queue: str,
        keep_seconds: float | None = None,
        *,
        ending: str | None = None,
        payload_seconds: float | None = None,
        result_seconds: float | None = None,
    ) -> None:
        """Say how long the finished jobs of a queue are kept, whatever its workers are set to.

        It replaces what was said before of the queue and the ending.

        Args:
            queue: the queue; it need not hold jobs, nor have workers. `*` is every queue, where its
                own row says nothing.
            keep_seconds: so long after its end a job is deleted, with its history. None: nothing is
                said of that. Then the settings of the queue's workers count, and dead letters stay
                until somebody deletes them. If all three times are None, the row goes.
            ending: completed, cancelled or dead; None: completed and cancelled. If all three times
                are None, an `ending` of None is all three endings.
            payload_seconds: so long after its end a job's payload and headers are blanked, before
                the job goes. A dead letter cannot be requeued after that.
            result_seconds: so long after its end a job's result and the message of its progress are
                blanked.

        Raises:
            InvalidJob: a value is out of range.
        """
        await self._ask(
            self._verbs.set_retention(
                queue, keep_seconds, ending=ending, payload_seconds=payload_seconds, result_seconds=result_seconds
            )
        )

    async def retention(self) -> list[RetentionRow]:
        """Return how long finished jobs are kept, as `set_retention` has said it.

        What is said of every queue (`*`) comes first.
        """
        return await self._ask(self._verbs.retention())

    async def kept(self, job_id: JobId | UUID | str) -> Kept:
        """Return when a job or a dead letter goes, and when its payload and its result go.

        Raises:
            InvalidJob: `job_id` is not an id.
            JobNotFound: there is no such job.
        """
        return await self._ask(self._verbs.kept(job_id))

    async def count_erasable(
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
            org_id: only of this tenant. One of `org_id`, `unique_key` and `payload` must be given.
            unique_key: only jobs that were enqueued under this key.
            payload: only jobs whose payload contains this.
            queue: only of this queue.
            job_type: only of this job type.

        Raises:
            InvalidJob: nobody is named, or a value is out of range.
        """
        return await self._ask(
            self._verbs.count_erasable(org_id=org_id, unique_key=unique_key, payload=payload, queue=queue, job_type=job_type)
        )

    async def erase(
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

        It works in batches, each in a transaction. If it is interrupted, what was erased stays
        erased: call it again. Each batch leaves a row in the audit trail of each tenant that it
        concerned. The row says how many, who and why, and not what.

        Args:
            org_id: only of this tenant. One of `org_id`, `unique_key` and `payload` must be given.
                If nothing else is, the tenant's settings, its credentials and its name go, too; its
                audit trail stays.
            unique_key: only jobs that were enqueued under this key.
            payload: only jobs whose payload contains this, as `{"user": 17}`, at its top level.
                Also the hooks that such a job has enqueued.
            queue: only of this queue.
            job_type: only of this job type.
            why: for the audit trail: the number of a request, for example, and not the data.
            who: for the audit trail; the role of the connection is always noted, too.
            limit: how many rows a batch looks at.

        Returns: how many jobs and letters are gone, and how many are still `held`. A running job is
            cancelled, and stays until its handler has stopped. Call this again then.

        Cancellation: the batch under way is undone, or done. What came before it stays done.

        Raises:
            InvalidJob: nobody is named, or a value is out of range.
            ConfigError: `limit` is out of range.
            MissingRights: the connection's role is neither an admin nor the owner.
        """
        return await self._ask(
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

    async def pause(
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

        Returns: True if it was not paused before. If it was, `why` and `who` are replaced.

        Raises:
            InvalidJob: a value is out of range, or not exactly one of the three was given.
        """
        return await self._ask(self._verbs.pause(queue, job_type=job_type, everything=everything, why=why, who=who))

    async def resume(self, queue: str | None = None, *, job_type: str | None = None, everything: bool = False) -> bool:
        """Let what was paused start again. Sleeping workers are woken.

        Args:
            queue: as it was given to `pause`.
            job_type: as it was given to `pause`.
            everything: as it was given to `pause`. Pauses of queues and types stay.

        Returns: whether it was paused.

        Raises:
            InvalidJob: a value is out of range, or not exactly one of the three was given.
        """
        return await self._ask(self._verbs.resume(queue, job_type=job_type, everything=everything))

    async def drain(
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

        Cancellation: the pause stays, and what runs goes on.

        Raises:
            InvalidJob: a value is out of range, or not exactly one of the three was given.
            WaitTimeout: a job still runs after `timeout_seconds`. The job goes on, and the pause
                stays.
            DatabaseUnreachable, psycopg.OperationalError: the database has not answered for a
                minute.
        """
        scope = scope_of(queue, job_type, everything)
        await self._ask(self._verbs.pause(queue, job_type=job_type, everything=everything, why=why, who=who))
        await self._until_drained(scope, timeout_seconds)

    async def pauses(self) -> list[PauseRow]:
        """Return what is paused, the oldest first."""
        return await self._ask(self._verbs.pauses())

    async def workers(self) -> list[WorkerRow]:
        """Return the worker processes, the oldest first."""
        return await self._ask(self._verbs.workers())

    async def stats(self) -> list[QueueRow]:
        """Return what each queue holds, by name."""
        return await self._ask(self._verbs.stats())
