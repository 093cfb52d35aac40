"""The verbs of every door, as values: what each asks, and what its answer means to a caller.

This is the one table of verbs. If a public method of `Verbs` returns a verb of the ledger, each
client has a method of that name. The awaited methods are in jobs.py, operating.py, schedules.py and
watching.py. Each of these files has a blocking twin: jobs_blocking.py, operating_blocking.py,
schedules_blocking.py and blocking_watching.py. A door must do `wait` and `drain` by itself
(ends.py, blocking_ends.py). tests/doors/test_verbs.py compares the doors with this table, and with
each other.

Nothing here waits or knows a connection. Each method checks what it was given before it returns.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from pgnotifyq.doors.schedule_verbs import ScheduleVerbs
from pgnotifyq.ledger import bulk, changes, end, enqueue, explaining, look, pauses, retention, watching
from pgnotifyq.ledger.ask import Plan
from pgnotifyq.ledger.pauses import Scope
from pgnotifyq.ledger.retention import EraseFilter
from pgnotifyq.model.errors import InvalidJob, JobDead, JobNotFound, WaitTimeout
from pgnotifyq.model.handler import make_job
from pgnotifyq.model.headers import carried
from pgnotifyq.model.job import DeadLetter, JobId
from pgnotifyq.model.new_job import JobSettings, NewJob, job_id_of, org_id_of
from pgnotifyq.model.payload import encode
from pgnotifyq.model.registry import handler_of
from pgnotifyq.model.tracing import traced

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from pgnotifyq.ledger.ask import Answer, Ask, Steps
    from pgnotifyq.ledger.changes import Batch, JobFilter
    from pgnotifyq.ledger.explaining import Explanation
    from pgnotifyq.ledger.look import DeadGroup, QueueRow, WorkerRow
    from pgnotifyq.ledger.pauses import PauseRow
    from pgnotifyq.ledger.retention import Erasable, Erased, Kept, RetentionRow
    from pgnotifyq.model.job import Execution, Job, OrgId
    from pgnotifyq.model.registry import JobRegistry
    from pgnotifyq.model.states import Label, Status
    from pgnotifyq.model.unique import Enqueued
    from pgnotifyq.model.watching import LogLine
    from pgnotifyq.wire.kinds import CallersConnection

T = TypeVar("T")
S = TypeVar("S")

CONNECTIONS_MAX_DEFAULT = 4
SAVEPOINT_ALONE = "savepoint=True goes with connection=: without it a job has a transaction of its own"


class EnqueueSettings(JobSettings, total=False):
    """What `enqueue` takes besides a job's type and payload."""

    connection: CallersConnection | None
    savepoint: bool


class CancelOutcome(StrEnum):
    """What became of a cancel."""

    CANCELLED = "cancelled"  # the job never started, or its handler has stopped
    STOPPING = "stopping"  # its handler has been told; nobody waited for it
    FINISHED = "finished"  # the job had ended before
    UNRESPONSIVE = "unresponsive"  # its handler was told, and did not stop within the time given


@attrs.frozen
class Verbs(ScheduleVerbs):
    """What can be asked of one queue's schema."""

    schema: str
    # Refuses what no handler takes, and gives the handlers' defaults.
    registry: JobRegistry | None = None

    # Jobs to be enqueued

    def new_job(self, given: Mapping[str, Any]) -> NewJob:
        """Make a job of what `enqueue` takes, and of the handler's defaults.

        Raises:
            InvalidName, InvalidJob, InvalidPayload, PayloadTooLarge, UnknownJobType: the job is
                refused.
        """
        if "job_type" not in given:
            raise InvalidJob("a job has no job_type: name the handler that is to run it")
        settings = dict(given)
        job_type, payload = settings.pop("job_type"), settings.pop("payload", None)
        handler = handler_of(job_type, self.registry)
        if settings.get("headers") is None and (headers := carried.get()) is not None:
            settings["headers"] = headers
        return traced(make_job(job_type if handler is None else handler.job_type, payload, settings, handler))

    def new_jobs(self, given: Sequence[NewJob | Mapping[str, Any]]) -> Iterator[list[NewJob]]:
        """Make many jobs, and yield them in parts.

        A door on an event loop lets other tasks run between two parts.

        Raises: as `new_job` does.
        """
        for start in range(0, len(given), enqueue.AT_ONCE_JOBS_MAX):
            part = given[start : start + enqueue.AT_ONCE_JOBS_MAX]
            yield [self._checked(job) if isinstance(job, NewJob) else self.new_job(job) for job in part]

    def _checked(self, job: NewJob) -> NewJob:
        """Refuse here what the handler would refuse later."""
        if job.headers is None and (headers := carried.get()) is not None:
            job = attrs.evolve(job, headers=headers)
        if self.registry is not None:
            job = attrs.evolve(job, payload=self.registry.get(job.job_type).checked(job.payload))
        return traced(job)

    # The table

    def enqueue(self, job: NewJob) -> Plan[JobId]:
        """Enqueue a job that `new_job` made."""
        return enqueue.enqueue(self.schema, job)

    def enqueue_many(self, jobs: Sequence[NewJob]) -> Plan[list[JobId]]:
        """Enqueue jobs that `new_jobs` made, all or none."""
        return bulk.enqueue_many(self.schema, jobs)

    def enqueue_told(self, job: NewJob) -> Plan[Enqueued]:
        """Enqueue a job that `new_job` made, and tell what became of its unique key."""
        return enqueue.enqueue_told(self.schema, job)

    def enqueue_many_told(self, jobs: Sequence[NewJob]) -> Plan[list[Enqueued]]:
        """Enqueue jobs that `new_jobs` made, all or none, and tell what became of each."""
        return bulk.enqueue_many_told(self.schema, jobs)

    def cancel(self, job_id: JobId | UUID | str, why: str | None = None) -> Ask[CancelOutcome]:
        """Ask a job to stop. If the caller waits for the handler, the door goes on with `wait`."""
        wanted = job_id_of(job_id)

        def told(word: str) -> CancelOutcome:
            if word == "unknown":
                raise no_job(wanted)
            return CancelOutcome(word)

        return _then(end.cancel(self.schema, wanted, why), told)

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
        wanted = job_id_of(job_id)
        change = changes.Edit(
            queue=queue, priority=priority, scheduled_at=scheduled_at, delay_seconds=delay_seconds, payload=payload
        )

        def told(word: str) -> bool:
            if word == "unknown":
                raise no_job(wanted)
            return word == "edited"

        return _then(changes.edit(self.schema, wanted, change), told)

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
        change = changes.Edit(
            queue=queue, priority=priority, scheduled_at=scheduled_at, delay_seconds=delay_seconds, payload=payload
        )
        return changes.change_all(self.schema, "edit", only, change=change, after_id=after_id, limit=limit)

    def cancel_all(
        self, only: JobFilter, *, why: str | None = None, after_id: JobId | None = None, limit: int = 1000
    ) -> Ask[Batch]:
        """Ask jobs to stop."""
        return changes.change_all(self.schema, "cancel", only, why=why, after_id=after_id, limit=limit)

    def delete_all(self, only: JobFilter, *, after_id: JobId | None = None, limit: int = 1000) -> Ask[Batch]:
        """Delete jobs that no worker holds."""
        return changes.change_all(self.schema, "delete", only, after_id=after_id, limit=limit)

    def count(self, only: JobFilter) -> Ask[int]:
        """Count jobs."""
        return changes.count_jobs(self.schema, only)

    def get(self, job_id: JobId | UUID | str) -> Plan[Job]:
        """Look at a job, or a dead letter."""
        wanted = job_id_of(job_id)

        def steps() -> Steps[Job]:
            job: Job | None = yield look.find_job(self.schema, wanted)
            return _found(job, no_job, wanted)

        return Plan(steps)

    def get_dead(self, job_id: JobId | UUID | str) -> Ask[DeadLetter]:
        """Look at a dead letter."""
        wanted = job_id_of(job_id)
        return _then(look.get_dead(self.schema, wanted), lambda letter: _found(letter, _no_letter, wanted))

    def history(self, job_id: JobId | UUID | str) -> Ask[list[Execution]]:
        """Look at the attempts of a job."""
        return look.history(self.schema, job_id_of(job_id))

    def logs(self, job_id: JobId | UUID | str, *, attempt: int | None = None) -> Ask[list[LogLine]]:
        """Look at what handlers have logged."""
        return watching.logs(self.schema, job_id_of(job_id), attempt=attempt)

    def explain(self, job_id: JobId | UUID | str) -> Ask[Explanation]:
        """Look at why a job is where it is."""
        wanted = job_id_of(job_id)

        def told(found: Explanation) -> Explanation:
            if found.label == "unknown":
                raise JobNotFound(f"there is no job {wanted}. {' '.join(found.sentences)}")
            return found

        return _then(explaining.explain(self.schema, wanted), told)

    def jobs(
        self,
        *,
        status: Status | Label | None = None,
        queue: str | None = None,
        job_type: str | None = None,
        org_id: OrgId | UUID | str | int | None = None,
        limit: int = 50,
    ) -> Ask[list[Job]]:
        """Look at jobs."""
        org = None if org_id is None else org_id_of(org_id)
        return look.list_jobs(self.schema, status=status, queue=queue, job_type=job_type, org_id=org, limit=limit)

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
    ) -> Ask[list[DeadLetter]]:
        """Look at dead letters."""
        only = dead_filter(queue, job_type, org_id, error, died_after, fingerprint)
        return look.list_dead(self.schema, only, limit=limit)

    def dead_groups(
        self,
        *,
        queue: str | None = None,
        job_type: str | None = None,
        org_id: OrgId | UUID | str | int | None = None,
        error: str | None = None,
        died_after: datetime | None = None,
        limit: int = 50,
    ) -> Ask[list[DeadGroup]]:
        """Look at dead letters by what they died of."""
        only = dead_filter(queue, job_type, org_id, error, died_after, None)
        return look.list_dead_groups(self.schema, only, limit=limit)

    def requeue(self, job_id: JobId | UUID | str, *, from_start: bool = False) -> Ask[None]:
        """Bring a dead letter back."""
        wanted = job_id_of(job_id)

        def told(was_there: bool) -> None:
            if not was_there:
                raise _no_letter(wanted)

        return _then(end.requeue(self.schema, wanted, from_start=from_start), told)

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
    ) -> Ask[int]:
        """Bring dead letters back."""
        only = dead_filter(queue, job_type, org_id, error, died_after, fingerprint)
        return end.requeue_all(self.schema, only, limit=limit, per_second=per_second, from_start=from_start)

    def purge_dead(self, *, job_id: JobId | UUID | str | None = None, older_than_seconds: float | None = None) -> Ask[int]:
        """Delete dead letters."""
        letter = None if job_id is None else job_id_of(job_id)
        return end.purge_dead(self.schema, job_id=letter, older_than_seconds=older_than_seconds)

    def set_retention(
        self,
        queue: str,
        keep_seconds: float | None = None,
        *,
        ending: str | None = None,
        payload_seconds: float | None = None,
        result_seconds: float | None = None,
    ) -> Ask[None]:
        """Say how long finished jobs are kept."""
        return retention.set_retention(
            self.schema, queue, keep_seconds, ending=ending, payload_seconds=payload_seconds, result_seconds=result_seconds
        )

    def retention(self) -> Ask[list[RetentionRow]]:
        """Look at how long finished jobs are kept."""
        return retention.list_retention(self.schema)

    def kept(self, job_id: JobId | UUID | str) -> Ask[Kept]:
        """Look at when a job goes."""
        wanted = job_id_of(job_id)
        return _then(retention.kept(self.schema, wanted), lambda found: _found(found, no_job, wanted))

    def count_erasable(
        self,
        *,
        org_id: OrgId | UUID | str | int | None = None,
        unique_key: str | None = None,
        payload: Mapping[str, Any] | None = None,
        queue: str | None = None,
        job_type: str | None = None,
    ) -> Ask[Erasable]:
        """Count what an erasure would find."""
        only = EraseFilter(org_id=org_id, unique_key=unique_key, payload=payload, queue=queue, job_type=job_type)
        return retention.count_erasable(self.schema, only)

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
    ) -> Plan[Erased]:
        """Erase all that is kept of somebody."""
        only = EraseFilter(org_id=org_id, unique_key=unique_key, payload=payload, queue=queue, job_type=job_type)
        return retention.erase(self.schema, only, why=why, who=who, limit=limit)

    def pause(
        self,
        queue: str | None = None,
        *,
        job_type: str | None = None,
        everything: bool = False,
        why: str | None = None,
        who: str | None = None,
    ) -> Ask[bool]:
        """Let nothing start of a queue, a job type, or at all."""
        return pauses.pause(self.schema, scope_of(queue, job_type, everything), why=why, who=who)

    def resume(self, queue: str | None = None, *, job_type: str | None = None, everything: bool = False) -> Ask[bool]:
        """Let start again what was paused."""
        return pauses.resume(self.schema, scope_of(queue, job_type, everything))

    def pauses(self) -> Ask[list[PauseRow]]:
        """Look at what is paused."""
        return pauses.list_pauses(self.schema)

    def workers(self) -> Ask[list[WorkerRow]]:
        """Look at the workers."""
        return look.list_workers(self.schema)

    def stats(self) -> Ask[list[QueueRow]]:
        """Look at the queues."""
        return look.stats(self.schema)


def enqueue_alone(schema: str, job: NewJob) -> Ask[JobId]:
    """Enqueue a job on a connection in autocommit, as a transaction of its own.

    It does not ask first, as `enqueue` does, whether a transaction is open.
    """
    return enqueue.enqueue_one(schema, job, encode(job.payload), is_alone=True)


def end_of(schema: str, job_id: JobId) -> Plan[Job | DeadLetter | None]:
    """Return a job that has ended, or its dead letter; None: its end will be announced.

    Raises:
        JobNotFound: there is no such job.
    """
    return Plan(lambda: _steps_to_end(schema, job_id))


def _steps_to_end(schema: str, job_id: JobId) -> Steps[Job | DeadLetter | None]:
    while True:
        if (yield end.await_job(schema, job_id)):
            return None
        job: Job | None = yield look.get_job(schema, job_id)
        if job is not None and job.is_finished:
            return job
        if job is None:
            letter: DeadLetter | None = yield look.get_dead(schema, job_id)
            if letter is not None:
                return letter
            if (yield look.get_job(schema, job_id)) is None:
                raise no_job(job_id)
        # Between two of these reads the dead letter was requeued. So the job's end will not be
        # announced yet: begin again.


# What the answers mean


def ended(job: Job | DeadLetter) -> Job:
    """Return the job that a client has waited for.

    Raises:
        JobDead: it went to the dead letters.
    """
    if isinstance(job, DeadLetter):
        message = f"job {job.id} is a dead letter ({job.reason}) after {job.attempts} attempts: {job.error_message}"
        raise JobDead(message, job)
    return job


def no_job(job_id: JobId) -> JobNotFound:
    """Return the error of a job that is not there."""
    return JobNotFound(f"there is no job {job_id}: it never was, was pruned after its retention, or is a dead letter")


def not_ended(job_id: JobId, timeout_seconds: float) -> WaitTimeout:
    """Return the error of a job that has not ended in the time given."""
    return WaitTimeout(f"job {job_id} has not ended within {timeout_seconds:g} s; it goes on")


def dead_filter(
    queue: str | None,
    job_type: str | None,
    org_id: OrgId | UUID | str | int | None,
    error: str | None,
    died_after: datetime | None,
    fingerprint: str | None,
) -> look.DeadFilter:
    """Return which dead letters are meant.

    Raises:
        InvalidJob: `org_id` names no tenant, or `died_after` has no time zone.
    """
    if died_after is not None and died_after.tzinfo is None:
        raise InvalidJob(f"died_after {died_after!r} has no time zone: use datetime.now(UTC), say")
    org = None if org_id is None else org_id_of(org_id)
    return look.DeadFilter(
        queue=queue, job_type=job_type, org_id=org, error=error, died_after=died_after, fingerprint=fingerprint
    )


def scope_of(queue: str | None, job_type: str | None, everything: bool) -> Scope:
    """Return what is paused: a queue, a job type, or everything.

    Raises:
        InvalidJob: not exactly one of the three was given.
    """
    if (queue is not None) + (job_type is not None) + everything != 1:
        raise InvalidJob("say one of a queue, job_type= and everything=True")
    return Scope(queue=queue, job_type=job_type, everything=everything)


def still_runs(scope: Scope, timeout_seconds: float) -> WaitTimeout:
    """Return the error of a drain that has not come to its end in the time given."""
    return WaitTimeout(f"jobs of {scope} still run after {timeout_seconds:g} s; it stays paused")


def _no_letter(job_id: JobId) -> JobNotFound:
    return JobNotFound(f"there is no dead letter {job_id}: list them with `python -m pgnotifyq dead`")


def _found(found: T | None, not_found: Callable[[JobId], JobNotFound], job_id: JobId) -> T:
    if found is None:
        raise not_found(job_id)
    return found


def _then(verb: Ask[T], mean: Callable[[T], S]) -> Ask[S]:
    """Return a verb like another, whose answer is what `mean` makes of that one's answer."""
    read = verb.read

    def read_on(answer: Answer, encoding: str) -> S:
        return mean(read(answer, encoding))

    whole: Ask[Any] = verb
    return attrs.evolve(whole, read=read_on)
