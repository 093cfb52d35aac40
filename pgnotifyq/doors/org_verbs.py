"""The verbs of a client that is confined to one tenant, as values.

`client.for_org(...)` gives it, in each door (for_org.py, for_org_blocking.py). The filter is in
each statement, so it holds whatever the connection's role may see. The id of another tenant's job
is unknown here, as one that never was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from pgnotifyq.doors.verbs import CancelOutcome
from pgnotifyq.ledger import end, look, organisation
from pgnotifyq.model.errors import InvalidJob
from pgnotifyq.model.job import NIL_ORG
from pgnotifyq.model.new_job import NewJob, job_id_of
from pgnotifyq.model.organisation import of_tenant

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from uuid import UUID

    from pgnotifyq.doors.verbs import Verbs
    from pgnotifyq.ledger.ask import Answer, Ask, Plan
    from pgnotifyq.model.job import DeadLetter, Execution, Job, JobId, OrgId
    from pgnotifyq.model.states import Label, Status


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
            InvalidJob: it is refused; also if it says another tenant.
        """
        settings = dict(given)
        of_tenant(self.org_id, settings)
        return self.verbs.new_job(settings)

    def new_jobs(self, given: Sequence[NewJob | Mapping[str, Any]]) -> Iterator[list[NewJob]]:
        """Make many, and yield them in parts. Raises: as `new_job` does."""
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

    def dead(self, *, queue: str | None = None, job_type: str | None = None, limit: int = 50) -> Ask[list[DeadLetter]]:
        """Look at dead letters."""
        return look.list_dead(self.schema, look.DeadFilter(queue=queue, job_type=job_type, org_id=self.org_id), limit=limit)

    def count_dead(self, *, queue: str | None = None, job_type: str | None = None) -> Ask[int]:
        """Count dead letters."""
        return organisation.count_dead(self.schema, self.org_id, queue=queue, job_type=job_type)

    def requeue(self, job_id: JobId | UUID | str, *, from_start: bool = False) -> Ask[None]:
        """Bring a dead letter back."""
        return organisation.requeue(self.schema, self.org_id, job_id_of(job_id), from_start=from_start)

    def requeue_all(self, *, queue: str | None = None, job_type: str | None = None, limit: int = 1000) -> Ask[int]:
        """Bring dead letters back."""
        return end.requeue_all(self.schema, look.DeadFilter(queue=queue, job_type=job_type, org_id=self.org_id), limit=limit)

    def purge_dead(self, *, job_id: JobId | UUID | str | None = None, older_than_seconds: float | None = None) -> Ask[int]:
        """Delete dead letters."""
        letter = None if job_id is None else job_id_of(job_id)
        return end.purge_dead(self.schema, job_id=letter, older_than_seconds=older_than_seconds, org_id=self.org_id)


def owned(job: Job | DeadLetter, org_id: OrgId) -> Job | DeadLetter:
    """Return a job that has ended, if it is a tenant's.

    Raises:
        JobNotFound: it is not: its id has come to another tenant while somebody waited.
    """
    if job.org_id != org_id:
        raise organisation.no_job(job.id)
    return job
