"""A job as a claim brings it: what running it takes is decoded at once, the rest on demand.

A claim brings hundreds of rows of eighteen columns. A handler that looks at its payload alone
needs half of them. To decode all columns cost a third of what a worker spends on a no-op job. Most
of that cost was to decode four timestamps and to build a `Job`.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from pgnotifyq.ledger.columns import TEXT, integer_from, row_at, seconds_from, time_from, uuid_from
from pgnotifyq.model.headers import NO_HEADERS, Headers, headers_in
from pgnotifyq.model.job import ExecutionId, Job, JobId, OrgId, WorkerId
from pgnotifyq.model.new_job import DELAY_SECONDS_MAX, MAX_ATTEMPTS_DEFAULT, NewJob, headers_of
from pgnotifyq.model.payload import Undecodable, decode
from pgnotifyq.model.states import Status

if TYPE_CHECKING:
    from pgnotifyq.ledger.ask import Answer

# The columns of sql/functions/claim/claim.sql.
(
    ID, EXECUTION_ID, ORG_ID, QUEUE_NAME, JOB_TYPE, PAYLOAD, PRIORITY, SCHEDULED_AT, ATTEMPTS, MAX_ATTEMPTS, UNIQUE_KEY,
    CREATED_AT, STARTED_AT, LEASE_EXPIRES_AT, NEXT_DUE_SECONDS, SNAPSHOT_XMIN,
) = range(16)  # fmt: skip
# Behind all columns that a claim gives come two more: what a handler has saved, then the headers.


class ClaimedJob:
    """What a worker needs of a job it holds. `whole` is the rest."""

    __slots__ = (
        "_headers",
        "_lazy",
        "_saved",
        "_whole",
        "attempts",
        "current_execution_id",
        "id",
        "is_bare",
        "job_type",
        "max_attempts",
        "payload_text",
        "problem",
        "queue_name",
    )

    id: JobId
    current_execution_id: ExecutionId
    queue_name: str
    job_type: str
    payload_text: str | None  # JSON; None: the payload cannot be had
    problem: str  # why the payload cannot be had
    attempts: int
    max_attempts: int
    is_bare: bool  # it has no headers, and no handler has saved anything: so are most jobs
    _headers: bytes | None  # JSON; None: there are none, or `_whole` has them
    _saved: bytes | None  # what a handler has saved, in the same form
    # The worker, the encoding, and the bytes of the columns that `whole` decodes.
    _lazy: tuple[Any, ...]
    _whole: Job | None

    @classmethod
    def from_row(cls, answer: Answer, row: int, encoding: str, worker_id: WorkerId) -> ClaimedJob:
        """Take one row of a claim's answer."""
        if answer.fformat(ID) == TEXT:
            return cls._from_text(answer, row, encoding, worker_id)
        value: Any = answer.get_value
        job = cls()
        job.id = JobId(uuid_from(value(row, ID)))
        job.current_execution_id = ExecutionId(uuid_from(value(row, EXECUTION_ID)))
        job.queue_name = value(row, QUEUE_NAME).decode(encoding)
        job.job_type = value(row, JOB_TYPE).decode(encoding)
        try:
            job.payload_text, job.problem = value(row, PAYLOAD).decode(encoding), ""
        except (AttributeError, UnicodeDecodeError):  # null, or bytes that are no text
            job.payload_text, job.problem = _text(value(row, PAYLOAD), encoding)
        job.attempts = integer_from(value(row, ATTEMPTS))
        job.max_attempts = integer_from(value(row, MAX_ATTEMPTS))
        job._headers = value(row, answer.nfields - 1)
        job._saved = value(row, answer.nfields - 2)
        job.is_bare = job._headers is None and job._saved is None
        # One by one: a loop takes twice the time.
        job._lazy = (
            worker_id,
            encoding,
            value(row, ORG_ID),
            value(row, PRIORITY),
            value(row, SCHEDULED_AT),
            value(row, UNIQUE_KEY),
            value(row, CREATED_AT),
            value(row, STARTED_AT),
            value(row, LEASE_EXPIRES_AT),
        )
        job._whole = None
        return job

    @classmethod
    def _from_text(cls, answer: Answer, row: int, encoding: str, worker_id: WorkerId) -> ClaimedJob:
        """Take a row that came as text. No door claims in text yet, so this need not be fast."""
        value = row_at(answer, row, encoding)
        payload_text, problem = _text(answer.get_value(row, PAYLOAD), encoding)
        whole = Job(
            id=value[ID],
            org_id=value[ORG_ID],
            queue_name=value[QUEUE_NAME],
            job_type=value[JOB_TYPE],
            payload=Undecodable(problem) if payload_text is None else decode(payload_text),
            priority=value[PRIORITY],
            status=Status.RUNNING,
            scheduled_at=value[SCHEDULED_AT],
            attempts=value[ATTEMPTS],
            max_attempts=value[MAX_ATTEMPTS],
            locked_by=worker_id,
            current_execution_id=value[EXECUTION_ID],
            lease_expires_at=value[LEASE_EXPIRES_AT],
            started_at=value[STARTED_AT],
            unique_key=value[UNIQUE_KEY],
            created_at=value[CREATED_AT],
            headers=_headers(value[-1]),
            saved=None if value[-2] is None else decode(value[-2]),
        )
        return cls.from_job(whole)

    @classmethod
    def from_job(cls, whole: Job) -> ClaimedJob:
        """Take a job that no claim brought, such as a test's."""
        assert whole.current_execution_id is not None
        job = cls()
        job.id = whole.id
        job.current_execution_id = whole.current_execution_id
        job.queue_name = whole.queue_name
        job.job_type = whole.job_type
        job.attempts = whole.attempts
        job.max_attempts = whole.max_attempts or MAX_ATTEMPTS_DEFAULT
        job._headers = job._saved = None
        job.is_bare = whole.headers is NO_HEADERS and whole.saved is None
        job._whole = whole
        return job

    @classmethod
    def from_new(
        cls,
        new: NewJob,
        job_id: JobId,
        execution_id: ExecutionId,
        payload_text: str,
        time_now: datetime,
        *,
        queue_name: str,
        max_attempts: int,
        worker_id: WorkerId,
        lease_seconds: float,
    ) -> ClaimedJob:
        """Take a job that was claimed by the statement that enqueued it."""
        whole = Job(
            id=job_id,
            org_id=new.org_id,
            queue_name=queue_name,
            job_type=new.job_type,
            payload=decode(payload_text),
            priority=new.priority,
            status=Status.RUNNING,
            scheduled_at=time_now,
            attempts=1,
            max_attempts=max_attempts,
            locked_by=worker_id,
            current_execution_id=execution_id,
            lease_expires_at=time_now + timedelta(seconds=lease_seconds),
            started_at=time_now,
            created_at=time_now,
            headers=NO_HEADERS if new.headers is None else headers_of(new.headers),
        )
        return cls.from_job(whole)

    @property
    def waited_seconds(self) -> float:
        """How long the job was due before it was claimed, on the database's clock.

        Ten years at the most: raw SQL stores whatever time there is.
        """
        if self._whole is not None:
            whole = self._whole
            assert whole.started_at is not None
            waited = (whole.started_at - max(whole.scheduled_at, whole.created_at)).total_seconds()
        else:
            # From `_lazy`, without making datetimes: that takes half a microsecond.
            lazy = self._lazy
            due = seconds_from(lazy[4])
            if lazy[6] != lazy[4]:
                due = max(due, seconds_from(lazy[6]))
            waited = seconds_from(lazy[7]) - due
        return min(max(waited, 0.0), DELAY_SECONDS_MAX)

    @property
    def payload(self) -> Any:
        """The payload, decoded anew at each call; an `Undecodable` if Python cannot decode it."""
        return self._whole.payload if self._whole is not None else self._decoded()

    def _decoded(self) -> Any:
        return Undecodable(self.problem) if self.payload_text is None else decode(self.payload_text)

    @property
    def headers(self) -> Headers:
        """What goes with the job and is not its payload, decoded anew at each call."""
        if self._whole is not None:
            return self._whole.headers
        raw = self._headers
        return NO_HEADERS if raw is None else _headers(raw.decode(self._lazy[1], "replace"))

    @property
    def org_id(self) -> OrgId:
        """The tenant."""
        return self._whole.org_id if self._whole is not None else OrgId(uuid_from(self._lazy[2]))

    @property
    def has_saved(self) -> bool:
        """Whether a handler has saved a state."""
        return self._saved is not None or (self._whole is not None and self._whole.saved is not None)

    @property
    def saved(self) -> Any:
        """What a handler has saved, decoded anew at each call, as `payload` is."""
        if self._whole is not None:
            return self._whole.saved
        text, problem = (None, "") if self._saved is None else _text(self._saved, self._lazy[1])
        return decode(text) if text is not None else Undecodable(problem) if problem else None

    @property
    def whole(self) -> Job:
        """The job with all its fields."""
        if self._whole is None:
            worker_id, encoding, org_id, priority, scheduled_at, unique_key, created_at, started_at, lease_expires_at = self._lazy
            self._whole = Job(
                id=self.id,
                org_id=OrgId(uuid_from(org_id)),
                queue_name=self.queue_name,
                job_type=self.job_type,
                payload=self._decoded(),
                priority=integer_from(priority),
                status=Status.RUNNING,
                scheduled_at=time_from(scheduled_at),
                attempts=self.attempts,
                max_attempts=self.max_attempts,
                locked_by=worker_id,
                current_execution_id=self.current_execution_id,
                lease_expires_at=time_from(lease_expires_at),
                started_at=time_from(started_at),
                unique_key=None if unique_key is None else unique_key.decode(encoding, "replace"),
                created_at=time_from(created_at),
                headers=self.headers,
                saved=self.saved,
            )
        return self._whole


def _text(raw: bytes | None, encoding: str) -> tuple[str | None, str]:
    """Return a payload's text, or why it cannot be had.

    A claim brings what raw SQL stored, and must not fail over one row.
    """
    if raw is None:
        return None, "the payload cannot be decoded: it is too large, or not of a form, to be sent to a worker"
    try:
        return raw.decode(encoding), ""
    except UnicodeDecodeError as error:
        return None, f"the payload cannot be decoded: its bytes are not {encoding} ({error.reason} at {error.start})"


def _headers(text: str | None) -> Headers:
    """Return the stored headers; none if Python cannot decode them. Only raw SQL stores such."""
    return NO_HEADERS if text is None else headers_in(decode(text))
