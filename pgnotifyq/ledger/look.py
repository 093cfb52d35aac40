"""What is only read.

Jobs, attempts, dead letters, queues, workers, troubles, and what the connected role may do.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

import attrs

from pgnotifyq.ledger.ask import Aside, Ask, Plan, array, text
from pgnotifyq.ledger.columns import number, records, rows, time_from_text, truth
from pgnotifyq.ledger.errors import said_of
from pgnotifyq.ledger.statements import query
from pgnotifyq.model.errors import ConfigError, MissingRights
from pgnotifyq.model.headers import headers_in
from pgnotifyq.model.job import DeadLetter, Execution, ExecutionId, Job, JobId, OrgId, WorkerId
from pgnotifyq.model.payload import Undecodable
from pgnotifyq.model.states import STORED, Status

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from pgnotifyq.ledger.ask import Answer, Steps

T = TypeVar("T")
# The words for a job's state that `list_jobs` knows: the statuses, and labels derived from them.
LABELS = (*STORED, "scheduled", "retrying", "stopping")


@attrs.frozen(kw_only=True)
class WorkerRow:
    """A worker process, as others see it."""

    worker_id: WorkerId
    host: str
    pid: int
    queues: list[str]
    slots: int
    version: str
    started_at: datetime
    last_beat_at: datetime
    # running, draining, or gone: it is not alive, and its jobs are about to be reclaimed
    state: str
    # With a session: whether the session lives, or its last beat is younger than its grace. Without
    # one: whether its last beat is less than three leases ago.
    is_alive: bool
    running: int  # jobs it holds
    listening: str  # push or polling
    is_asleep: bool


@attrs.frozen(kw_only=True)
class QueueRow:
    """What a queue holds, in jobs."""

    queue_name: str
    pending: int  # due
    scheduled: int
    retrying: int
    running: int
    stopping: int
    completed: int
    cancelled: int
    dead: int
    oldest_due_seconds: float | None  # age of the oldest job that is due and waits


@attrs.frozen(kw_only=True)
class TroubleRow:
    """A job that was put aside: its row could not be written, read, ended, pruned or run."""

    job_id: JobId
    org_id: OrgId
    queue_name: str | None  # None: the job is gone
    job_type: str | None
    verb: str  # claim, complete, retry, snooze, release, cancel, bury, reclaim or prune
    sqlstate: str
    error_message: str
    tries: int
    first_at: datetime
    last_at: datetime
    look_at: datetime  # tried again then, at the earliest
    wish: str | None  # how the execution ended, as its history will say it


def get_job(schema: str, job_id: JobId, *, org_id: OrgId | None = None) -> Ask[Job | None]:
    """Return a job, or None: it never was, was pruned, is a dead letter, or is not this tenant's.

    Source: sql/queries/jobs.sql
    """
    return Ask(query("jobs", schema), (job_id.hex, None, None, None, text(org_id), "1"), _one_job, said_of(schema))


def list_jobs(
    schema: str,
    *,
    status: str | None = None,
    queue: str | None = None,
    job_type: str | None = None,
    org_id: OrgId | None = None,
    limit: int = 50,
) -> Ask[list[Job]]:
    """Return jobs, newest first.

    Raises:
        ConfigError: `status` is not a status, nor one of scheduled, retrying, stopping; or `limit`
            is negative.

    Source: sql/queries/jobs.sql
    """
    check_label(status)
    values = (None, status, queue, job_type, text(org_id), str(checked_limit(limit)))
    return Ask(query("jobs", schema), values, _jobs, said_of(schema))


def check_label(status: str | None) -> None:
    """Refuse what is no state of a job.

    Raises:
        ConfigError: it is not a status, nor one of scheduled, retrying, stopping.
    """
    if status is not None and status not in LABELS:
        raise ConfigError(f"status {status!r} is not known: use one of {', '.join(LABELS)}")


def history(schema: str, job_id: JobId) -> Ask[list[Execution]]:
    """Return the attempts of a job, oldest first, the one under way included.

    The attempts of a dead letter are found, too.
    """
    return Ask(query("executions", schema), (job_id.hex,), _list_of(Execution), said_of(schema))


@attrs.frozen(kw_only=True)
class DeadFilter:
    """Which dead letters are meant. A field that is None does not matter."""

    queue: str | None = None
    job_type: str | None = None
    org_id: OrgId | None = None
    error: str | None = None  # a part of the error message, in any case
    died_after: datetime | None = None
    fingerprint: str | None = None  # as `DeadGroup` has it

    @property
    def values(self) -> tuple[str | None, ...]:
        """What SQL is given."""
        return (self.queue, self.job_type, text(self.org_id), self.error, text(self.died_after), self.fingerprint)


ANY_LETTER = DeadFilter()


@attrs.frozen(kw_only=True)
class DeadGroup:
    """Dead letters whose errors are of one kind."""

    fingerprint: str  # names the group, in filters
    error_pattern: str  # the first line of their errors, without ids, numbers and what is in quotes
    letters: int  # how many
    job_types: list[str]
    queue_names: list[str]
    first_died_at: datetime
    last_died_at: datetime
    last_id: JobId  # the letter that died last
    error_message: str | None  # of that letter


def list_dead(schema: str, only: DeadFilter = ANY_LETTER, *, limit: int = 50) -> Ask[list[DeadLetter]]:
    """Return dead letters, the latest first.

    Raises:
        ConfigError: `limit` is negative.

    Source: sql/queries/dead.sql
    """
    queue, job_type, *more = only.values
    values = (None, queue, job_type, str(checked_limit(limit)), *more)
    return Ask(query("dead", schema), values, _dead_letters, said_of(schema))


def list_dead_groups(schema: str, only: DeadFilter = ANY_LETTER, *, limit: int = 50) -> Ask[list[DeadGroup]]:
    """Return dead letters by what they died of, the largest group first.

    Raises:
        ConfigError: `limit` is negative.

    Source: sql/queries/dead_groups.sql
    """
    values = (*only.values[:-1], str(checked_limit(limit)))
    return Ask(query("dead_groups", schema), values, _list_of(DeadGroup), said_of(schema))


def get_dead(schema: str, job_id: JobId, *, org_id: OrgId | None = None) -> Ask[DeadLetter | None]:
    """Return a dead letter, or None: there is none, or it is not this tenant's.

    Source: sql/queries/dead.sql
    """

    def read(answer: Answer, encoding: str) -> DeadLetter | None:
        found = _dead_letters(answer, encoding)
        return found[0] if found else None

    return Ask(query("dead", schema), (job_id.hex, None, None, "1", text(org_id), None, None, None), read, said_of(schema))


def count_dead(schema: str, only: DeadFilter = ANY_LETTER) -> Ask[int]:
    """Return how many dead letters there are of some kind."""
    return Ask(query("count_dead", schema), only.values, number, said_of(schema))


def find_job(schema: str, job_id: JobId, *, org_id: OrgId | None = None) -> Plan[Job | None]:
    """Return a job, or a dead letter as the job that it was.

    None: it never was, was pruned, or is not this tenant's.

    A role that may not look at dead letters finds none.

    Raises:
        MissingRights: the role may not look at dead letters, and the connection is in a
            transaction. The refusal has aborted that transaction.
    """

    def steps() -> Steps[Job | None]:
        job: Job | None = yield get_job(schema, job_id, org_id=org_id)
        if job is not None:
            return job
        letter: DeadLetter | None = None
        try:
            letter = yield get_dead(schema, job_id, org_id=org_id)
        except MissingRights:
            if not (yield Aside.IS_ALONE):
                raise
        if letter is not None:
            return letter.as_job()
        # Somebody may have requeued it between the two reads.
        job = yield get_job(schema, job_id, org_id=org_id)
        return job

    return Plan(steps)


def list_workers(schema: str) -> Ask[list[WorkerRow]]:
    """Return the worker processes, the oldest first."""
    return Ask(query("workers", schema), (), _list_of(WorkerRow), said_of(schema))


def stats(schema: str) -> Ask[list[QueueRow]]:
    """Return what each queue holds, by name."""
    return Ask(query("stats", schema), (), _list_of(QueueRow), said_of(schema))


def list_troubles(
    schema: str,
    *,
    job_id: JobId | None = None,
    job_ids: Sequence[JobId] | None = None,
    verb: str | None = None,
    within_seconds: float | None = None,
    limit: int = 50,
) -> Ask[list[TroubleRow]]:
    """Return jobs that were put aside, the latest first.

    With `within_seconds`, return only jobs whose last try is no longer ago than that.

    Source: sql/queries/troubles.sql
    """
    among = None if job_ids is None else array([each.hex for each in job_ids])
    values = (text(job_id), among, verb, text(within_seconds), str(checked_limit(limit)))
    return Ask(query("troubles", schema), values, _list_of(TroubleRow), said_of(schema))


def count_troubles(schema: str) -> Ask[dict[str, int]]:
    """Return how many jobs were put aside, by what could not be done."""

    def read(answer: Answer, encoding: str) -> dict[str, int]:
        return {row["verb"]: row["count"] for row in records(answer, encoding)}

    return Ask(query("count_troubles", schema), (), read, said_of(schema))


def is_idle(schema: str, queues: Sequence[str]) -> Ask[bool]:
    """Tell whether no job of some queues is due or held. For tests."""
    return Ask(query("is_idle", schema), (array(queues),), truth)


def _list_of(kind: Callable[..., T]) -> Callable[[Answer, str], list[T]]:
    """Return what reads rows whose columns are the fields of `kind`."""
    return lambda answer, encoding: [kind(**row) for row in records(answer, encoding)]


def _jobs(answer: Answer, encoding: str) -> list[Job]:
    return [_job(row) for row in records(answer, encoding)]


def _one_job(answer: Answer, encoding: str) -> Job | None:
    found = _jobs(answer, encoding)
    return found[0] if found else None


def _dead_letters(answer: Answer, encoding: str) -> list[DeadLetter]:
    return [_dead_letter(row) for row in records(answer, encoding)]


def checked_limit(limit: int) -> int:
    """Return how many rows a reader may give.

    Raises:
        ConfigError: `limit` is negative, or more than an int4 holds.
    """
    if not 0 <= limit < 2**31:
        raise ConfigError(f"limit {limit!r} is out of range: use 0 to {2**31 - 1}")
    return limit


def _job(values: dict[str, Any]) -> Job:
    values["payload"] = _payload(values)
    values["status"] = Status(values["status"])
    values["headers"] = headers_in(values["headers"])
    return Job(**values)


def _dead_letter(values: dict[str, Any]) -> DeadLetter:
    values["payload"] = _payload(values)
    history = values["history"]
    entries = history if isinstance(history, list) else [history]
    values["history"] = tuple(_attempt(values["id"], entry, values["died_at"]) for entry in entries)
    values["headers"] = headers_in(values["headers"])
    return DeadLetter(**values)


def _payload(values: dict[str, Any]) -> Any:
    size = values.pop("unread_bytes")
    return values["payload"] if size is None else Undecodable(f"the payload has {size} bytes, which are more than is read")


def _attempt(job_id: JobId, attempt: Any, died_at: datetime) -> Execution:
    """Read an entry of a dead letter's history. Raw SQL may have stored anything there."""
    try:
        return Execution(
            id=ExecutionId(UUID(attempt["id"])),
            job_id=job_id,
            attempt=int(attempt["attempt"]),
            worker_id=WorkerId(UUID(attempt["worker_id"])) if attempt["worker_id"] else None,
            outcome=str(attempt["outcome"]),
            started_at=time_from_text(attempt["started_at"]),
            ended_at=time_from_text(attempt["ended_at"]),
            error_message=None if attempt["error_message"] is None else str(attempt["error_message"]),
        )
    except (TypeError, ValueError, LookupError, AttributeError):
        return Execution(
            id=ExecutionId(UUID(int=0)),
            job_id=job_id,
            attempt=0,
            worker_id=None,
            outcome="undecodable",
            started_at=died_at,
            ended_at=died_at,
            error_message=f"this entry of the history cannot be read: {attempt!r:.200}",
        )


def tenant_role(schema: str) -> Ask[str | None]:
    """Return the role that confines tenants, or None.

    None: the role does not exist, may not be taken on, or has no rights in the schema.

    Source: sql/queries/tenant_role.sql
    """

    def read(answer: Answer, encoding: str) -> str | None:
        found = [name for name, may_be_set, has_rights, _ in rows(answer, encoding) if may_be_set and has_rights]
        return found[0] if found else None

    return Ask(query("tenant_role", schema), (), read)


def powers(schema: str) -> Ask[list[tuple[Any, ...]]]:
    """Return what the connected role may do by nature: one row, or none.

    The row says whether the role is a superuser, whether it is exempt from row security, and its
    name.

    Source: sql/queries/powers.sql
    """
    return Ask(query("powers", schema), (), rows)


def idle_backends(schema: str, pids: Collection[int]) -> Ask[list[tuple[Any, ...]]]:
    """Return which of some sessions wait for their client, by process number, and since when.

    Source: sql/queries/idle_backends.sql
    """
    return Ask(query("idle_backends", schema), (array([str(pid) for pid in pids]),), rows)
