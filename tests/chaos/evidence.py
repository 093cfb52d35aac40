"""What is known at the end of a run: what producers said, what handlers said, and what the tables say."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from pathlib import Path
    from uuid import UUID

    from pgnotifyq.wire.connection import Connection


@attrs.define
class Book:
    """What producers and the nemesis note down outside of the database, as it happens. Tokens name jobs not yet named by an id."""

    attempted: set[str] = attrs.field(factory=set)  # about to be enqueued
    acknowledged: dict[str, UUID] = attrs.field(factory=dict)  # the commit was answered
    rolled_back: set[str] = attrs.field(factory=set)  # enqueued in a transaction that was then rolled back
    ordered: set[str] = attrs.field(factory=set)  # enqueued in one transaction with a row in `orders`
    cancelling: set[UUID] = attrs.field(factory=set)  # job ids; about to be cancelled
    cancelled: set[UUID] = attrs.field(factory=set)  # the cancel's commit was answered
    crashes: list[tuple[float, float]] = attrs.field(factory=list)  # from and to, Unix time: immediate restarts
    findings: list[str] = attrs.field(factory=list)  # what went wrong before the end


@attrs.frozen(kw_only=True)
class Job:
    """A job or a dead letter, as it is in the tables at the end."""

    id: UUID
    token: str
    job_type: str
    status: str  # pending, running, completed, cancelled, or dead
    attempts: int
    max_attempts: int
    is_held: bool = False
    reason: str | None = None  # of a dead letter


@attrs.frozen(kw_only=True)
class Execution:
    """A row of job_executions. Times are Unix times on the database's clock."""

    id: UUID
    job_id: UUID
    attempt: int
    outcome: str
    why: str | None = None  # its error message
    claimed_at: float  # started_at, which the claim asked for when it took the row
    ended_at: float


@attrs.frozen(kw_only=True)
class Begun:
    """What a handler said outside of the database when it began. Times as above."""

    token: str
    job_id: UUID
    execution_id: UUID
    scheduled_at: float
    started_at: float


@attrs.frozen(kw_only=True)
class Evidence:
    """Everything the checker looks at."""

    book: Book
    jobs: list[Job]
    executions: list[Execution]
    effects: list[tuple[UUID, UUID]]  # job id, execution id: written in the job's own transaction
    begun: list[Begun]
    orders: list[str]  # tokens of the business rows
    left_behind: list[str]  # sessions, locks, snapshots, workers that should be gone


async def gather(connection: Connection[Any], book: Book, folder: Path) -> Evidence:
    """Read the tables and the handlers' files."""

    async def rows(statement: str) -> list[tuple[Any, ...]]:
        return await (await connection.execute(statement.encode())).fetchall()

    jobs = [
        Job(
            id=row[0],
            token=row[1],
            job_type=row[2],
            status=row[3],
            attempts=row[4],
            max_attempts=row[5],
            is_held=row[6],
            reason=row[7],
        )
        for row in await rows(
            "select id, payload->>'token', job_type, status, attempts, max_attempts, is_held, null from pgnotifyq.jobs"
            " union all select id, payload->>'token', job_type, 'dead', attempts, max_attempts, false, reason"
            " from pgnotifyq.dead_letter_jobs"
        )
    ]
    executions = [
        Execution(id=row[0], job_id=row[1], attempt=row[2], outcome=row[3], claimed_at=row[6], ended_at=row[4], why=row[5])
        for row in await rows(
            "select id, job_id, attempt, outcome, extract(epoch from ended_at)::float8, error_message,"
            " extract(epoch from started_at)::float8 from pgnotifyq.job_executions"
        )
    ]
    return Evidence(
        book=book,
        jobs=jobs,
        executions=executions,
        effects=[(row[0], row[1]) for row in await rows("select job_id, execution_id from effects")],
        begun=read_begun(folder),
        orders=[row[0] for row in await rows("select token from orders")],
        left_behind=[row[0] for row in await rows(LEFT_BEHIND)],
    )


def read_begun(folder: Path) -> list[Begun]:
    """Read the files of all processes. One that was killed may have left half a line, which says nothing."""
    begun = []
    for path in sorted(folder.glob("effects-*")):
        for line in path.read_text(encoding="utf-8").split("\n")[:-1]:
            told: dict[str, Any] = json.loads(line)
            for name in ("job_id", "execution_id"):
                told[name] = uuid.UUID(told[name])
            begun.append(Begun(**told))
    return begun


# One line for each thing that a worker or a client has left.
LEFT_BEHIND = """
    select 'session ' || pid || ' of ' || application_name || ', ' || coalesce(state, '') || ': ' || left(query, 80)
    from pg_stat_activity
    where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'
    union all
    select 'lock ' || l.locktype || ' ' || l.mode || ' of ' || l.pid
    from pg_locks as l
    where l.pid <> pg_backend_pid() and l.database = (select d.oid from pg_database as d where d.datname = current_database())
      and not exists (select from pg_stat_activity as a where a.pid = l.pid and a.backend_type <> 'client backend')
    union all
    select 'old snapshot of ' || pid from pg_stat_activity
    where backend_xmin is not null and pid <> pg_backend_pid() and backend_type = 'client backend'
    union all
    select 'prepared transaction ' || gid from pg_prepared_xacts
    union all
    select 'worker ' || worker_id from pgnotifyq.worker_heartbeats
    union all
    select 'sleeper ' || worker_id from pgnotifyq.sleepers
"""
