"""A client that sees one tenant, on trio and on asyncio."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, Unpack, overload

import attrs

from pgnotifyq.doors.org_verbs import owned
from pgnotifyq.doors.verbs import CancelOutcome, EnqueueSettings, ended
from pgnotifyq.model.errors import JobNotFound, WaitTimeout
from pgnotifyq.model.new_job import NewJob, job_id_of
from pgnotifyq.wire.plans import pause

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping
    from uuid import UUID

    from pgnotifyq.doors.org_verbs import OrgVerbs
    from pgnotifyq.model.handler import Handler, P, Plain, R, V
    from pgnotifyq.model.job import DeadLetter, Execution, Job, JobId, OrgId
    from pgnotifyq.model.states import Label, Status
    from pgnotifyq.wire.kinds import CallersConnection

T = TypeVar("T")


@attrs.frozen(eq=False)
class OrgClient:
    """A client that sees one tenant. Made by `client.for_org`.

    The id of another tenant's job is unknown here, as one that never was.
    """

    _verbs: OrgVerbs
    _ask: Callable[..., Awaitable[Any]]
    _enqueue: Callable[[NewJob], Awaitable[JobId]]
    _wait: Callable[[JobId, float | None], Awaitable[Job | DeadLetter]]

    @property
    def org_id(self) -> OrgId:
        """The tenant."""
        return self._verbs.org_id

    # A checker takes the first form that fits, as for a client's enqueue.

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
            InvalidJob: it is refused; also if `org_id` is another tenant.
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
            jobs: as of a client's `enqueue_many`. What says no tenant is this one's.
            connection: as of a client's `enqueue`.
            savepoint: as of a client's `enqueue`, around all of them.

        Raises: as `enqueue`.
        """
        made: list[NewJob] = []
        given = list(jobs)
        for part in self._verbs.new_jobs(given):
            made += part
            if len(made) < len(given):
                await pause()
        jobs_made: list[JobId] = await self._ask(self._verbs.enqueue_many(made), connection, savepoint=savepoint)
        return jobs_made

    async def cancel(
        self, job_id: JobId | UUID | str, *, wait_seconds: float | None = None, why: str | None = None
    ) -> CancelOutcome:
        """Cancel a job: a pending one never starts, a running one's handler is stopped.

        Args:
            job_id: the job, as a UUID or its text.
            wait_seconds: wait at most this long until its handler has stopped.
            why: for the handler and the record.

        Returns: what became of it; `stopping` only when nobody waits.

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
            pass  # it stopped, and was pruned before anybody looked
        return CancelOutcome.CANCELLED

    @overload
    async def wait(self, job_id: JobId[Plain], timeout_seconds: float | None = None) -> Job[Plain]: ...
    @overload
    async def wait(self, job_id: UUID | str, timeout_seconds: float | None = None) -> Job: ...

    async def wait(self, job_id: JobId | UUID | str, timeout_seconds: float | None = None) -> Job:
        """Wait until a job has ended, handler and all, and return it as completed or cancelled.

        Raises:
            InvalidJob: `job_id` is not an id.
            JobNotFound: the tenant has no such job.
            JobDead: it went to the dead letters; the error has the letter.
            WaitTimeout: it has not ended within `timeout_seconds`; it goes on.
        """
        await self._ask(self._verbs.own(job_id))
        return ended(owned(await self._wait(job_id_of(job_id), timeout_seconds), self.org_id))

    async def get(self, job_id: JobId | UUID | str) -> Job:
        """Return a job; a dead letter as the job that it was, with the status `dead`.

        Raises:
            InvalidJob: `job_id` is not an id.
            JobNotFound: the tenant has none: it never was, or was pruned; or it is a dead letter,
                and the connection's role may not look at those.
        """
        job: Job = await self._ask(self._verbs.get(job_id))
        return job

    async def get_dead(self, job_id: JobId | UUID | str) -> DeadLetter:
        """Return a dead letter.

        Raises:
            InvalidJob: `job_id` is not an id.
            JobNotFound: the tenant has none.
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

    async def dead(self, *, queue: str | None = None, job_type: str | None = None, limit: int = 50) -> list[DeadLetter]:
        """Return dead letters, the latest first."""
        letters: list[DeadLetter] = await self._ask(self._verbs.dead(queue=queue, job_type=job_type, limit=limit))
        return letters

    async def count_dead(self, *, queue: str | None = None, job_type: str | None = None) -> int:
        """Return how many dead letters there are."""
        count: int = await self._ask(self._verbs.count_dead(queue=queue, job_type=job_type))
        return count

    async def requeue(self, job_id: JobId | UUID | str, *, from_start: bool = False) -> None:
        """Bring a dead letter back as the job it was, with all its attempts before it.

        It goes on from what its handler has saved; with `from_start` from nothing.

        Raises:
            InvalidJob: `job_id` is not an id.
            JobNotFound: the tenant has no such dead letter.
            UniqueKeyHeld: an unfinished job holds its unique key; the dead letter stays.
        """
        await self._ask(self._verbs.requeue(job_id, from_start=from_start))

    async def requeue_all(self, *, queue: str | None = None, job_type: str | None = None, limit: int = 1000) -> int:
        """Bring back dead letters, the oldest first, and return how many."""
        count: int = await self._ask(self._verbs.requeue_all(queue=queue, job_type=job_type, limit=limit))
        return count

    async def purge_dead(self, *, job_id: JobId | UUID | str | None = None, older_than_seconds: float | None = None) -> int:
        """Delete a dead letter, or those that died longer ago than given; return how many."""
        count: int = await self._ask(self._verbs.purge_dead(job_id=job_id, older_than_seconds=older_than_seconds))
        return count
