"""A job, its lease, its attempts and its dead letter, as they are read."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, NewType
from uuid import UUID, SafeUUID

import attrs

from pgnotifyq.model.headers import NO_HEADERS, Headers
from pgnotifyq.model.states import FINISHED, Status

if not TYPE_CHECKING:
    from typing import TypeVar

    Result_co = TypeVar("Result_co", covariant=True)

    class _Subscriptable(NewType):
        def __getitem__(self, _: object) -> NewType:
            return self

    JobId = _Subscriptable("JobId", UUID)
else:
    from typing_extensions import TypeVar  # with defaults, which typing has from Python 3.13 on

    Result_co = TypeVar("Result_co", covariant=True, default=Any)

    class JobId(UUID, Generic[Result_co]):
        """A job's id. It is a UUID. A checker of types knows by it what the handler returns."""

        def __init__(self: JobId[Any], of: UUID, /) -> None: ...


ExecutionId = NewType("ExecutionId", UUID)
WorkerId = NewType("WorkerId", UUID)
OrgId = NewType("OrgId", UUID)

NIL_ORG = OrgId(UUID(int=0))  # for programs that have one tenant

_make, _set, _UNKNOWN = object.__new__, object.__setattr__, SafeUUID.unknown


def uuid_of(value: int) -> UUID:
    """Make a UUID of its 128 bits, unchecked.

    This takes a third of the time that the constructor takes. Hot paths would feel the rest.
    """
    made: UUID = _make(UUID)
    _set(made, "int", value)
    _set(made, "is_safe", _UNKNOWN)
    return made


class Lease(NamedTuple):
    """The fence: every write after a claim names both ids."""

    job_id: JobId
    execution_id: ExecutionId


@attrs.frozen(kw_only=True)
class Job(Generic[Result_co]):
    """One row of `jobs`. Times are aware and on the database's clock."""

    id: JobId[Result_co]
    org_id: OrgId  # the tenant
    queue_name: str
    job_type: str  # which handler runs it
    payload: Any  # decoded JSON
    priority: int  # higher first
    status: Status
    scheduled_at: datetime  # never starts before; retry and snooze move it
    attempts: int  # a claim adds one; snooze and release give it back
    # After so many attempts the job is dead-lettered. None: the number was not said, and no worker
    # has claimed the job yet. The claim takes the handler's number, else 15.
    max_attempts: int | None
    locked_by: WorkerId | None  # the worker that holds it
    current_execution_id: ExecutionId | None  # the attempt under way; also while stopping
    lease_expires_at: datetime | None  # renewed by heartbeats
    started_at: datetime | None  # of the last claim
    completed_at: datetime | None = None  # when it was completed or cancelled, or died
    error_message: str | None = None  # of the last failure, or why it was cancelled
    result: Result_co = None  # type: ignore[assignment]  # what the handler returned, decoded JSON; None before, and if cancelled
    progress: float | None = None  # 0 to 1, written by the handler
    progress_message: str | None = None
    unique_key: str | None = None  # at most one unfinished job a tenant, type and key
    created_at: datetime
    # How it was when read: its status, or scheduled, retrying, stopping. None: a claim read it.
    label: str | None = None
    # What goes with the job and is not its payload: a JSON object, to be read. Empty: none.
    headers: Headers = NO_HEADERS
    saved: Any = None  # the state that its handler has saved (`ctx.save`), decoded JSON; gone when it is completed

    @property
    def is_finished(self) -> bool:
        """Whether it has ended, and its handler too."""
        return self.status in FINISHED and self.current_execution_id is None


@attrs.frozen(kw_only=True)
class Execution:
    """One attempt."""

    id: ExecutionId
    job_id: JobId
    attempt: int  # 1 is the first
    worker_id: WorkerId | None
    # completed, failed, timed_out, snoozed, released, cancelled, discarded, undecodable or lost. Of
    # an attempt under way: running, stopping.
    outcome: str
    started_at: datetime
    ended_at: datetime | None
    error_message: str | None


@attrs.frozen(kw_only=True)
class EndedJob:
    """What a hook is told of the job that has ended, as the job was at its end."""

    job_id: UUID  # if the job is dead: the id of its letter
    job_type: str
    queue_name: str
    ending: str  # completed, retried, dead, cancelled
    payload: Any
    attempts: int
    result: Any = None  # of a completed one
    error_message: str | None = None
    reason: str | None = None  # of a dead one: exhausted, discarded, undecodable, unknown_job_type, lost
    # The fields that are None here because they were too large for a payload, all together: result,
    # payload. Look the job up to read them.
    left_out: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class DeadLetter:
    """A job that will not be tried again: all that a restore needs, and how each attempt ended."""

    id: JobId
    org_id: OrgId
    queue_name: str
    job_type: str
    payload: Any
    priority: int
    scheduled_at: datetime
    attempts: int
    max_attempts: int
    unique_key: str | None
    created_at: datetime
    reason: str  # exhausted, discarded, undecodable, unknown_job_type, lost
    error_message: str | None
    history: tuple[Execution, ...]  # oldest first
    died_at: datetime
    headers: Headers = NO_HEADERS
    saved: Any = None  # the state that its handler had saved

    def as_job(self) -> Job:
        """Return the job that it was, with the status `dead`."""
        return Job(
            id=self.id,
            org_id=self.org_id,
            queue_name=self.queue_name,
            job_type=self.job_type,
            payload=self.payload,
            priority=self.priority,
            status=Status.DEAD,
            scheduled_at=self.scheduled_at,
            attempts=self.attempts,
            max_attempts=self.max_attempts,
            locked_by=None,
            current_execution_id=None,
            lease_expires_at=None,
            started_at=self.history[-1].started_at if self.history else None,
            completed_at=self.died_at,
            error_message=self.error_message,
            unique_key=self.unique_key,
            created_at=self.created_at,
            label="dead",
            headers=self.headers,
            saved=self.saved,
        )
