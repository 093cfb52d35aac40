"""Who follows jobs, what is told to them, and what handlers have logged."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

import attrs

from pgnotifyq.ledger.ask import Aside, Ask, Plan, array, nothing, text
from pgnotifyq.ledger.columns import records, rows, truth, word
from pgnotifyq.ledger.errors import said_of
from pgnotifyq.ledger.lease import job_order
from pgnotifyq.ledger.look import find_job
from pgnotifyq.ledger.statements import call, query
from pgnotifyq.model.errors import MissingRights, PgnotifyqError
from pgnotifyq.model.watching import JobEvent, LogLine, count_of, state_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pgnotifyq.ledger.ask import Answer, Steps
    from pgnotifyq.model.job import Job, JobId, Lease, OrgId

# How long a client counts as one that follows. The client asks again before half of that is over.
FOLLOW_SECONDS = 60.0


@attrs.frozen(kw_only=True)
class Report:
    """How far an execution has come."""

    lease: Lease
    fraction: float | None
    message: str | None


@attrs.frozen(kw_only=True)
class Log:
    """What the handler of an execution has logged.

    `head` and `tail` are arrays of JSON, as text. None: that part is as it was.
    """

    lease: Lease
    attempt: int
    head: str | None
    tail: str | None
    left_out: int


def follow(schema: str, follower_id: UUID, job_id: JobId) -> Ask[str]:
    """Have changes of a job announced for a while.

    Returns: `new`; `kept`: they were announced until now, without a gap; or `full`: they will not
        be announced.

    Source: sql/functions/look/follow.sql
    """
    return Ask(
        call("follow", "uuid uuid float8", schema), (follower_id.hex, job_id.hex, str(FOLLOW_SECONDS)), word, said_of(schema)
    )


def follow_events(schema: str, follower_id: UUID, *, queue: str | None = None, org_id: OrgId | None = None) -> Ask[str]:
    """Have what happens to jobs announced on a follower's channel for a while.

    Returns: as `follow`.

    Source: sql/functions/look/follow.sql
    """
    values = (follower_id.hex, queue, text(org_id), str(FOLLOW_SECONDS))
    return Ask(call("follow_events", "uuid text uuid float8", schema), values, word, said_of(schema))


def unfollow(schema: str, follower_id: UUID) -> Ask[None]:
    """Have nothing announced to a follower any more.

    Source: sql/functions/look/follow.sql
    """
    return Ask(call("unfollow", "uuid", schema), (follower_id.hex,), nothing, said_of(schema))


def forget_followers(schema: str) -> Ask[bool]:
    """If no client follows any job, let statements that change jobs look for followers no more.

    Returns: whether they look no more from now on, and did before.

    Source: sql/functions/look/follow.sql
    """
    return Ask(call("forget_followers", "", schema), (), truth, said_of(schema))


def change_of(
    schema: str,
    follower_id: UUID,
    job_id: JobId,
    seen: tuple[object, ...] | None,
    missing: Callable[[JobId], Exception],
    *,
    org_id: OrgId | None = None,
) -> Plan[Job | None]:
    """Return a job if it differs from what was seen; else have its change announced, return None.

    Raises:
        Exception: the job is not there; the error is what `missing` makes.
    """

    def steps() -> Steps[Job | None]:
        yield from _followed(schema, follower_id, job_id)
        job: Job | None = yield find_job(schema, job_id, org_id=org_id)
        if job is None:
            raise missing(job_id)
        return job if state_of(job) != seen else None

    return Plan(steps)


def _followed(schema: str, follower_id: UUID, job_id: JobId) -> Steps[None]:
    """Have changes announced. If the role may not ask for that, only looks find the changes."""
    try:
        yield follow(schema, follower_id, job_id)
    except MissingRights:
        if not (yield Aside.IS_ALONE):
            raise


def lines_of(
    schema: str,
    follower_id: UUID,
    job_id: JobId,
    seen: int,
    missing: Callable[[JobId], Exception],
    *,
    org_id: OrgId | None = None,
) -> Plan[tuple[list[LogLine], bool] | None]:
    """Return all lines of a job's logs, and whether the job has ended.

    If the job has not ended, and has no more lines than `seen`, return None. Further lines are then
    announced.
    """

    def steps() -> Steps[tuple[list[LogLine], bool] | None]:
        yield from _followed(schema, follower_id, job_id)
        # The job is read first: the lines of its last attempt are written before the attempt is
        # settled.
        job: Job | None = yield find_job(schema, job_id, org_id=org_id)
        if job is None:
            raise missing(job_id)
        found: list[LogLine] = yield logs(schema, job_id, org_id=org_id)
        if job.is_finished or count_of(found) > seen:
            return found, job.is_finished
        return None

    return Plan(steps)


def logs(schema: str, job_id: JobId, *, org_id: OrgId | None = None, attempt: int | None = None) -> Ask[list[LogLine]]:
    """Return what handlers of a job have logged, oldest first.

    Source: sql/queries/logs.sql
    """
    return Ask(query("logs", schema), (job_id.hex, text(org_id), text(attempt)), _lines, said_of(schema))


def _lines(answer: Answer, encoding: str) -> list[LogLine]:
    made: list[LogLine] = []
    for _, attempt, head, tail, left_out in rows(answer, encoding):
        made += _lines_in(head, attempt)
        if left_out > 0:
            made.append(LogLine(attempt=attempt, at=None, level="", text=_left_out(left_out), left_out=left_out))
        made += _lines_in(tail, attempt)
    return made


def _lines_in(part: str | None, attempt: int) -> list[LogLine]:
    """Read a part of a log. If no worker of ours has written it, return it as it is."""
    if part is None:
        return []
    try:
        return [
            LogLine(attempt=attempt, at=datetime.fromtimestamp(float(at), UTC), level=str(level), text=str(said))
            for at, level, said in json.loads(part)
        ]
    except (ValueError, TypeError, OverflowError, OSError, RecursionError):
        return [LogLine(attempt=attempt, at=None, level="", text=part)]


def after(lines: Sequence[LogLine], seen: int) -> list[LogLine]:
    """Return the lines behind the first `seen`.

    A line may stand for lines that were left out. It then counts only those that were not seen.
    """
    made: list[LogLine] = []
    place = 0
    for line in lines:
        behind = place + (line.left_out or 1)
        if behind > seen:
            rest = behind - max(seen, place)
            made.append(line if rest == (line.left_out or 1) else attrs.evolve(line, left_out=rest, text=_left_out(rest)))
        place = behind
    return made


def _left_out(lines: int) -> str:
    return f"({lines} lines are left out)"


def too_many_follow() -> PgnotifyqError:
    """Return the error for a client that cannot follow, because too many do."""
    return PgnotifyqError("1,000 clients follow jobs already, and no more are told: look at the jobs now and then instead")


def keep_logs(schema: str, logs: Sequence[Log]) -> Ask[None]:
    """Write what handlers have logged so far.

    Source: sql/functions/lease/keep_logs.sql
    """
    some = sorted(logs, key=lambda log: job_order(log.lease))
    values = (
        *_leases([log.lease for log in some]),
        array([str(log.attempt) for log in some]),
        array([log.head for log in some]),
        array([log.tail for log in some]),
        array([str(log.left_out) for log in some]),
    )
    return Ask(call("keep_logs", "uuid[] uuid[] integer[] text[] text[] bigint[]", schema), values, nothing, is_durable=False)


def report_all(schema: str, reports: Sequence[Report]) -> Ask[None]:
    """Store how far executions have come. Those that do not hold their jobs are left out.

    Source: sql/functions/lease/report_progress.sql
    """
    some = sorted(reports, key=lambda report: job_order(report.lease))
    values = (
        *_leases([report.lease for report in some]),
        array([text(report.fraction) for report in some]),
        array([report.message for report in some]),
    )
    return Ask(call("report_all", "uuid[] uuid[] float4[] text[]", schema), values, nothing, is_durable=False)


def _leases(leases: Sequence[Lease]) -> tuple[str, str]:
    return array([lease.job_id.hex for lease in leases]), array([lease.execution_id.hex for lease in leases])


def look_at(schema: str, events: Sequence[JobEvent], *, org_id: OrgId | None = None) -> Plan[list[JobEvent]]:
    """Return events with the present state of their jobs; leave out jobs that cannot be seen.

    A role that may not look at dead letters is told nothing of them.

    Source: sql/queries/followed.sql, followed_dead.sql
    """
    wanted = {event.job_id for event in events if event.job_id is not None}

    def steps() -> Steps[list[JobEvent]]:
        found: dict[UUID, dict[str, Any]] = {}
        missing = wanted
        for name in ("followed", "followed_dead"):
            if missing:
                values = (array([job_id.hex for job_id in missing]), text(org_id))
                ask: Ask[list[dict[str, Any]]] = Ask(query(name, schema), values, records, said_of(schema))
                try:
                    found |= {row["id"]: row for row in (yield ask)}
                except MissingRights:
                    if name == "followed":
                        raise
                missing = wanted - found.keys()
        return [_told(event, found) for event in events if event.job_id is None or event.job_id in found]

    return Plan(steps)


def _told(event: JobEvent, found: dict[UUID, dict[str, Any]]) -> JobEvent:
    if event.job_id is None:
        return event
    row = found[event.job_id]
    return attrs.evolve(
        event,
        org_id=row["org_id"],
        queue=row["queue_name"],
        job_type=row["job_type"],
        status=row["label"],
        progress=row["progress"],
        message=row["progress_message"],
        error_message=row["error_message"],
    )
