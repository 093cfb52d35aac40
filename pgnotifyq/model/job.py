"""A job, its lease, its attempts and its dead letter; and a job that is still to be enqueued."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, NewType, TypedDict
from uuid import UUID, SafeUUID

import attrs

from pgnotifyq.model.errors import InvalidJob
from pgnotifyq.model.names import check_job_type, check_queue_name
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
        """A job's id. By it a checker of types knows what the handler returns. It is a UUID."""

        def __init__(self: JobId[Any], of: UUID, /) -> None: ...


ExecutionId = NewType("ExecutionId", UUID)
WorkerId = NewType("WorkerId", UUID)
OrgId = NewType("OrgId", UUID)

NIL_ORG = OrgId(UUID(int=0))  # for those who have one tenant

_make, _set, _UNKNOWN = object.__new__, object.__setattr__, SafeUUID.unknown


def uuid_of(value: int) -> UUID:
    """Return a UUID of its 128 bits, unchecked.

    It takes a third of the constructor's time, which hot paths would feel.
    """
    made: UUID = _make(UUID)
    _set(made, "int", value)
    _set(made, "is_safe", _UNKNOWN)
    return made


PRIORITY_MIN, PRIORITY_MAX = -32768, 32767  # PostgreSQL's smallint
PRIORITY_DEFAULT = 0
MAX_ATTEMPTS_DEFAULT = 3
QUEUE_DEFAULT = "default"  # of a job that names none, and whose handler names none
MAX_ATTEMPTS_MAX = 1000  # bounds the history of a job
# In any time zone, such a time is a datetime of Python's, whose years are 1 to 9999.
SCHEDULED_YEAR_MIN, SCHEDULED_YEAR_MAX = 2, 9998
UNIQUE_KEY_CHARS_MAX = 512  # an index entry holds 2,700 bytes
DELAY_SECONDS_MAX = 10 * 366 * 86_400.0  # ten years; more is a mistake in the unit


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
    attempts: int  # grows by one at claim; given back by snooze and release
    # After so many attempts the job is dead-lettered. None: it was not said, and no worker has
    # claimed the job yet. The claim takes the handler's number, else 3.
    max_attempts: int | None
    locked_by: WorkerId | None  # the worker that holds it
    current_execution_id: ExecutionId | None  # the attempt under way; also while stopping
    lease_expires_at: datetime | None  # renewed by heartbeats
    started_at: datetime | None  # of the last claim
    completed_at: datetime | None = None  # when it was completed or cancelled
    error_message: str | None = None  # of the last failure, or why it was cancelled
    result: Result_co = None  # type: ignore[assignment]  # what the handler returned, decoded JSON; None before, and if cancelled
    progress: float | None = None  # 0 to 1, written by the handler
    progress_message: str | None = None
    unique_key: str | None = None  # at most one unfinished job a tenant, type and key
    created_at: datetime
    # When it was read: its status, or scheduled, retrying, stopping. None: a claim read it.
    label: str | None = None

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
class DeadLetter:
    """A job that will not be tried again: all that restores it, and how each attempt ended."""

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


def _check_integer(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidJob(f"{name} {value!r} is out of range: use a whole number from {low} to {high}")


def job_id_of(value: object) -> JobId:
    """Return the id of a job, given as a UUID or its text.

    Raises:
        InvalidJob: it is neither.
    """
    return JobId(_to_uuid("job_id", value))


def org_id_of(value: object) -> OrgId:
    """Return a tenant's id, given as a UUID or its text.

    Raises:
        InvalidJob: it is neither.
    """
    return OrgId(_to_uuid("org_id", value))


def _to_uuid(name: str, value: object) -> UUID:
    given = value
    if isinstance(value, str):
        with suppress(ValueError):  # refused below
            value = UUID(value)
    if not isinstance(value, UUID):
        raise InvalidJob(f"{name} {given!r:.80} is not a UUID: pass a uuid.UUID, or its text")
    return value


@attrs.frozen(kw_only=True)
class NewJob:
    """A job to enqueue. Checked when it is made.

    Raises:
        InvalidName: the job type or queue name does not fit its pattern.
        InvalidJob: a number, time or key is out of range.
    """

    job_type: str
    payload: Any = None  # dict, list, attrs class, dataclass: anything that is JSON in the end
    org_id: OrgId = NIL_ORG  # or its text
    # None: the queue that the handler wants, if a handler is known; else `default`.
    queue_name: str | None = None
    priority: int = PRIORITY_DEFAULT
    scheduled_at: datetime | None = None  # aware; None: now, on the database's clock
    delay_seconds: float | None = None  # from now, on the database's clock; instead of scheduled_at
    max_attempts: int | None = None  # None: what the handler says that claims it, else 3
    # If an unfinished job of the tenant and type has this key, enqueue returns that job's id.
    unique_key: str | None = None

    def __attrs_post_init__(self) -> None:
        # Checked by hand, and only if given: attrs' validators took a third of a bulk enqueue.
        check_job_type(self.job_type)
        if self.org_id is not NIL_ORG:
            _set(self, "org_id", org_id_of(self.org_id))
        if self.queue_name is not None:
            check_queue_name(self.queue_name)
        if self.priority is not PRIORITY_DEFAULT:
            _check_integer("priority", self.priority, PRIORITY_MIN, PRIORITY_MAX)
        if self.max_attempts is not None:
            _check_integer("max_attempts", self.max_attempts, 1, MAX_ATTEMPTS_MAX)
        if self.scheduled_at is not None:
            self._check_time(self.scheduled_at)
        if self.delay_seconds is not None:
            self._check_delay(self.delay_seconds)
        if self.unique_key is not None:
            self._check_key(self.unique_key)

    def _check_time(self, time: object) -> None:
        if not isinstance(time, datetime) or time.utcoffset() is None:
            raise InvalidJob(f"scheduled_at {time!r} has no time zone: pass an aware datetime")
        if not SCHEDULED_YEAR_MIN <= time.year <= SCHEDULED_YEAR_MAX:
            message = f"scheduled_at {time} is out of range: use a year from {SCHEDULED_YEAR_MIN} to {SCHEDULED_YEAR_MAX}"
            raise InvalidJob(message)
        if self.delay_seconds is not None:
            raise InvalidJob("both scheduled_at and delay_seconds are given: pass one")

    @staticmethod
    def _check_delay(delay: object) -> None:
        if isinstance(delay, bool) or not isinstance(delay, (int, float)) or not 0 <= delay <= DELAY_SECONDS_MAX:
            raise InvalidJob(f"delay_seconds {delay!r} is out of range: use 0 to {DELAY_SECONDS_MAX:.0f}")

    @staticmethod
    def _check_key(key: object) -> None:
        if not isinstance(key, str) or not 1 <= len(key) <= UNIQUE_KEY_CHARS_MAX or "\x00" in key or not _is_text(key):
            raise InvalidJob(f"unique_key is not valid: use 1 to {UNIQUE_KEY_CHARS_MAX} characters, without NUL")


class JobSettings(TypedDict, total=False):
    """What `enqueue` and its kin take as keywords, besides a type and a payload."""

    org_id: OrgId | UUID | str  # the tenant
    queue: str | None  # None: the handler's
    priority: int
    scheduled_at: datetime | None
    delay_seconds: float | None
    max_attempts: int | None  # None: the handler's
    unique_key: str | None


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
