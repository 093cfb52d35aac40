"""The verbs of a client that is confined to one tenant, as values.

In each door `client.for_org(...)` returns that client (for_org.py, for_org_blocking.py). The filter
is in each statement. So it holds whatever the connection's role may see. The id of another tenant's
job is unknown here, as if there had never been such a job.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from pgnotifyq.doors.verbs import CancelOutcome, dead_filter
from pgnotifyq.ledger import changes, end, look, organisation, watching
from pgnotifyq.ledger.changes import Edit
from pgnotifyq.model.errors import InvalidJob
from pgnotifyq.model.job import NIL_ORG
from pgnotifyq.model.new_job import NewJob, job_id_of
from pgnotifyq.model.organisation import of_tenant

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from pgnotifyq.doors.verbs import Verbs
    from pgnotifyq.ledger.ask import Answer, Ask, Plan
    from pgnotifyq.ledger.changes import Batch, JobFilter
    from pgnotifyq.ledger.explaining import Explanation
    from pgnotifyq.ledger.look import DeadGroup
    from pgnotifyq.ledger.retention import Erasable, Erased
    from pgnotifyq.ledger.schedules import ScheduleRow
    from pgnotifyq.model.handler import Handler
    from pgnotifyq.model.job import DeadLetter, Execution, Job, JobId, OrgId
    from pgnotifyq.model.schedule import Tick, When
    from pgnotifyq.model.states import Label, Status
    from pgnotifyq.model.unique import Enqueued
    from pgnotifyq.model.watching import LogLine


@attrs.frozen
class OrgVerbs:
    """What can be asked of one tenant's part of a queue."""

    verbs: Verbs
    org_id: OrgId

    @property
    def schema(self) -> str:
        """Where the queue lives."""
        return self.verbs.schema

    def new_job(self, given: Mapping[str, Any]) -> NewJob:
        """Make a job of the tenant.

        Raises:
            InvalidJob: the job is refused; also if it names another tenant.
        """
        settings = dict(given)
        of_tenant(self.org_id, settings)
        return self.verbs.new_job(settings)

    def new_jobs(self, given: Sequence[NewJob | Mapping[str, Any]]) -> Iterator[list[NewJob]]:
        """Make many jobs, and yield them in parts. Raises: as `new_job` does."""
        yield from self.verbs.new_jobs([self._owned(job) for job in given])

    def _owned(self, job: NewJob | Mapping[str, Any]) -> NewJob | Mapping[str, Any]:
        if not isinstance(job, NewJob):
            settings = dict(job)
            of_tenant(self.org_id, settings)
            return settings
        if job.org_id not in {NIL_ORG, self.org_id}:
            raise InvalidJob(f"org_id {job.org_id} is another tenant than {self.org_id}, whose jobs these are: leave it out")
        return attrs.evolve(job, org_id=self.org_id)

    # The table

    def enqueue(self, job: NewJob) -> Plan[JobId]:
        """Enqueue a job that `new_job` made."""
        return self.verbs.enqueue(job)

    def enqueue_many(self, jobs: Sequence[NewJob]) -> Plan[list[JobId]]:
        """Enqueue jobs that `new_jobs` made, all or none."""
        return self.verbs.enqueue_many(jobs)

    def enqueue_told(self, job: NewJob) -> Plan[Enqueued]:
        """Enqueue a job that `new_job` made, and tell what became of its unique key."""
        return self.verbs.enqueue_told(job)

    def enqueue_many_told(self, jobs: Sequence[NewJob]) -> Plan[list[Enqueued]]:
        """Enqueue jobs that `new_jobs` made, all or none, and tell what became of each."""
        return self.verbs.enqueue_many_told(jobs)

    def cancel(self, job_id: JobId | UUID | str, why: str | None = None) -> Ask[CancelOutcome]:
        """Ask a job to stop."""
        verb: Ask[Any] = organisation.cancel(self.schema, self.org_id, job_id_of(job_id), why)
        read = verb.read

        def told(answer: Answer, encoding: str) -> CancelOutcome:
            return CancelOutcome(read(answer, encoding))

        return attrs.evolve(verb, read=told)

    def own(self, job_id: JobId | UUID | str) -> Ask[None]:
        """Refuse a job that is not the tenant's."""
        return organisation.own(self.schema, self.org_id, job_id_of(job_id))

    def get(self, job_id: JobId | UUID | str) -> Plan[Job]:
        """Look at a job, or a dead letter."""
        return organisation.get_job(self.schema, self.org_id, job_id_of(job_id))

    def get_dead(self, job_id: JobId | UUID | str) -> Ask[DeadLetter]:
        """Look at a dead letter."""
        return organisation.get_dead(self.schema, self.org_id, job_id_of(job_id))

    def history(self, job_id: JobId | UUID | str) -> Ask[list[Execution]]:
        """Look at the attempts of a job."""
        return organisation.history(self.schema, self.org_id, job_id_of(job_id))

    def explain(self, job_id: JobId | UUID | str) -> Ask[Explanation]:
        """Look at why a job is where it is."""
        return organisation.explain(self.schema, self.org_id, job_id_of(job_id))

    def logs(self, job_id: JobId | UUID | str, *, attempt: int | None = None) -> Ask[list[LogLine]]:
        """Look at what handlers have logged."""
        return watching.logs(self.schema, job_id_of(job_id), org_id=self.org_id, attempt=attempt)

    def jobs(
        self,
        *,
        status: Status | Label | None = None,
        queue: str | None = None,
        job_type: str | None = None,
        limit: int = 50,
    ) -> Ask[list[Job]]:
        """Look at jobs."""
        return self.verbs.jobs(status=status, queue=queue, job_type=job_type, org_id=self.org_id, limit=limit)

    def count(self, *, status: Status | Label | None = None, queue: str | None = None, job_type: str | None = None) -> Ask[int]:
        """Count jobs."""
        return organisation.count_jobs(self.schema, self.org_id, status=status, queue=queue, job_type=job_type)

    def dead(
        self,
        *,
        queue: str | None = None,
        job_type: str | None = None,
        error: str | None = None,
        died_after: datetime | None = None,
        fingerprint: str | None = None,
        limit: int = 50,
    ) -> Ask[list[DeadLetter]]:
        """Look at dead letters."""
        only = dead_filter(queue, job_type, self.org_id, error, died_after, fingerprint)
        return look.list_dead(self.schema, only, limit=limit)

    def dead_groups(
        self,
        *,
        queue: str | None = None,
        job_type: str | None = None,
        error: str | None = None,
        died_after: datetime | None = None,
        limit: int = 50,
    ) -> Ask[list[DeadGroup]]:
        """Look at dead letters by what they died of."""
        only = dead_filter(queue, job_type, self.org_id, error, died_after, None)
        return look.list_dead_groups(self.schema, only, limit=limit)

    def count_dead(self, *, queue: str | None = None, job_type: str | None = None) -> Ask[int]:
        """Count dead letters."""
        return organisation.count_dead(self.schema, self.org_id, queue=queue, job_type=job_type)

    def requeue(self, job_id: JobId | UUID | str, *, from_start: bool = False) -> Ask[None]:
        """Bring a dead letter back."""
        return organisation.requeue(self.schema, self.org_id, job_id_of(job_id), from_start=from_start)

    def requeue_all(
        self,
        *,
        queue: str | None = None,
        job_type: str | None = None,
        error: str | None = None,
        died_after: datetime | None = None,
        fingerprint: str | None = None,
        limit: int = 1000,
        per_second: float | None = None,
    ) -> Ask[int]:
        """Bring dead letters back."""
        only = dead_filter(queue, job_type, self.org_id, error, died_after, fingerprint)
        return end.requeue_all(self.schema, only, limit=limit, per_second=per_second)

    def purge_dead(self, *, job_id: JobId | UUID | str | None = None, older_than_seconds: float | None = None) -> Ask[int]:
        """Delete dead letters."""
        letter = None if job_id is None else job_id_of(job_id)
        return end.purge_dead(self.schema, job_id=letter, older_than_seconds=older_than_seconds, org_id=self.org_id)

    def edit(
        self,
        job_id: JobId | UUID | str,
        *,
        queue: str | None = None,
        priority: int | None = None,
        scheduled_at: datetime | None = None,
        delay_seconds: float | None = None,
        payload: object = None,
    ) -> Ask[bool]:
        """Change a job that waits."""
        change = Edit(queue=queue, priority=priority, scheduled_at=scheduled_at, delay_seconds=delay_seconds, payload=payload)
        return organisation.edit(self.schema, self.org_id, job_id_of(job_id), change)

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
    ) -> Ask[Batch]:
        """Change jobs that wait."""
        change = Edit(queue=queue, priority=priority, scheduled_at=scheduled_at, delay_seconds=delay_seconds, payload=payload)
        return changes.change_all(self.schema, "edit", self._own(only), change=change, after_id=after_id, limit=limit)

    def cancel_all(
        self, only: JobFilter, *, why: str | None = None, after_id: JobId | None = None, limit: int = 1000
    ) -> Ask[Batch]:
        """Ask jobs to stop."""
        return changes.change_all(self.schema, "cancel", self._own(only), why=why, after_id=after_id, limit=limit)

    def delete_all(self, only: JobFilter, *, after_id: JobId | None = None, limit: int = 1000) -> Ask[Batch]:
        """Delete jobs that no worker holds."""
        return changes.change_all(self.schema, "delete", self._own(only), after_id=after_id, limit=limit)

    def _own(self, only: JobFilter) -> JobFilter:
        if only.org_id not in {None, self.org_id}:
            raise InvalidJob(f"org_id {only.org_id} is another tenant than {self.org_id}, whose jobs these are: leave it out")
        return attrs.evolve(only, org_id=self.org_id)

    def count_erasable(
        self,
        *,
        unique_key: str | None = None,
        payload: Mapping[str, Any] | None = None,
        queue: str | None = None,
        job_type: str | None = None,
    ) -> Ask[Erasable]:
        """Count what an erasure would find."""
        return self.verbs.count_erasable(
            org_id=self.org_id, unique_key=unique_key, payload=payload, queue=queue, job_type=job_type
        )

    def erase(
        self,
        *,
        unique_key: str | None = None,
        payload: Mapping[str, Any] | None = None,
        queue: str | None = None,
        job_type: str | None = None,
        why: str | None = None,
        who: str | None = None,
        limit: int = 1000,
    ) -> Plan[Erased]:
        """Erase what is kept of the tenant."""
        return self.verbs.erase(
            org_id=self.org_id, unique_key=unique_key, payload=payload, queue=queue, job_type=job_type,
            why=why, who=who, limit=limit,
        )  # fmt: skip

    # Schedules: each tenant has its own names. Another tenant's schedule of the same name is not
    # touched.

    def schedule(
        self, name: str, when: When | Iterable[When], job_type: str | Handler, payload: object = None, **settings: Any
    ) -> Ask[str]:
        """Make a schedule of the tenant's, or change it."""
        of_tenant(self.org_id, settings)
        return self.verbs.schedule(name, when, job_type, payload, **settings)

    def unschedule(self, name: str) -> Ask[bool]:
        """Delete a schedule."""
        return self.verbs.unschedule(name, org_id=self.org_id)

    def schedules(self) -> Ask[list[ScheduleRow]]:
        """Look at the schedules."""
        return self.verbs.schedules(org_id=self.org_id)

    def upcoming(self, name: str, count: int = 10) -> Plan[list[Tick]]:
        """Look at the next ticks of a schedule."""
        return self.verbs.upcoming(name, count, org_id=self.org_id)

    def pause_schedule(self, name: str, *, why: str | None = None, who: str | None = None) -> Ask[None]:
        """Let a schedule have no ticks."""
        return self.verbs.pause_schedule(name, why=why, who=who, org_id=self.org_id)

    def resume_schedule(self, name: str) -> Ask[bool]:
        """Let a schedule have ticks again."""
        return self.verbs.resume_schedule(name, org_id=self.org_id)

    def run_schedule(self, name: str) -> Ask[JobId]:
        """Enqueue the job of a schedule now."""
        return self.verbs.run_schedule(name, org_id=self.org_id)


def owned(job: Job | DeadLetter, org_id: OrgId) -> Job | DeadLetter:
    """Return a job that has ended, if it is a tenant's.

    Raises:
        JobNotFound: it is another tenant's: the id has come to that tenant during the wait.
    """
    if job.org_id != org_id:
        raise organisation.no_job(job.id)
    return job
