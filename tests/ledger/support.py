"""What the tests of the ledger share: jobs made, looked at byte by byte, and moved through time.

All of it blocks, as the ledger's tests do: a verb is a value, and needs no event loop. Two sessions at once are two threads.
"""

from __future__ import annotations

import time
import uuid
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg

from pgnotifyq.ledger import claim as claim_verbs
from pgnotifyq.ledger import end
from pgnotifyq.ledger import lease as lease_verbs
from pgnotifyq.ledger import schema as schemas
from pgnotifyq.model.job import JobId, Lease, WorkerId
from pgnotifyq.model.outcome import PLAIN_COMPLETION, Outcome, SettleKind
from pgnotifyq.wire.asking import ask_blocking

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pgnotifyq.ledger.schema import Step
    from pgnotifyq.model.job import Job
    from pgnotifyq.wire.blocking import Connection

SCHEMA = "pgnotifyq"
ANN = WorkerId(uuid.UUID(int=0xA))  # a worker
BOB = WorkerId(uuid.UUID(int=0xB))  # another
LEASE_SECONDS = 60.0
PATIENCE_SECONDS = 10.0
BLOCKED = "exists (select from pg_stat_activity where application_name = %s and wait_event_type = 'Lock')"

# Every way in which a worker can end an execution.
ENDINGS: dict[str, Outcome] = {
    "complete plainly": PLAIN_COMPLETION,
    "complete": Outcome(kind=SettleKind.COMPLETE, name="completed", result_json='{"n": 1}'),
    "retry": Outcome(kind=SettleKind.RETRY, name="failed", delay_seconds=5, error_message="no luck"),
    "snooze": Outcome(kind=SettleKind.SNOOZE, name="snoozed", delay_seconds=5),
    "release": Outcome(kind=SettleKind.RELEASE, name="released", error_message="shutdown"),
    "cancel": Outcome(kind=SettleKind.CANCEL, name="cancelled"),
    "bury": Outcome(kind=SettleKind.BURY, name="failed", error_message="hopeless", reason="exhausted"),
}


@contextmanager
def at_once() -> Iterator[Callable[..., None]]:
    """Start calls in threads of their own, and wait at the end of the block until they have returned; an error of theirs is raised."""
    with ThreadPoolExecutor(max_workers=32) as threads:
        started: list[Future[object]] = []

        def start(call: Callable[..., object], *arguments: object) -> None:
            started.append(threads.submit(call, *arguments))

        yield start
        for each in started:
            each.result(PATIENCE_SECONDS)


def until(dsn: str, condition: str, *parameters: object) -> None:
    """Wait until the SQL `condition` holds, asked on a connection of its own; give up after `PATIENCE_SECONDS`."""
    gives_up_at = time.monotonic() + PATIENCE_SECONDS
    with psycopg.connect(dsn, autocommit=True) as connection:
        while True:
            row = connection.execute(f"select {condition}".encode(), parameters).fetchone()
            if row is not None and row[0]:
                return
            if time.monotonic() > gives_up_at:
                raise TimeoutError(f"not within {PATIENCE_SECONDS} s: {condition}")
            time.sleep(0.01)


def migrate(connection: Connection[Any], schema: str = SCHEMA, *, dry_run: bool = False) -> list[Step]:
    """Bring a schema to the version of this code."""
    return ask_blocking(connection, schemas.migrate(schema, dry_run=dry_run))


def check_schema(connection: Connection[Any], schema: str = SCHEMA) -> int:
    """Return the version of a schema that will do."""
    return ask_blocking(connection, schemas.check_schema(schema))


def fetch(connection: Connection[Any], statement: str, *parameters: object) -> list[tuple[Any, ...]]:
    """Run a statement and return its rows."""
    cursor = connection.execute(statement.encode(), parameters or None)
    return cursor.fetchall() if cursor.description is not None else []


def value(connection: Connection[Any], statement: str, *parameters: object) -> Any:
    """Run a statement and return the first column of its one row."""
    ((found, *_),) = fetch(connection, statement, *parameters)
    return found


def enqueue(connection: Connection[Any], job_type: str = "noop", **fields: object) -> JobId:
    """Enqueue a job through the SQL function."""
    named = "".join(f", {name} => %s" for name in fields)
    return JobId(value(connection, f"select pgnotifyq.enqueue(%s{named})", job_type, *fields.values()))


def claim(
    connection: Connection[Any],
    jobs_max: int = 1,
    *,
    worker: WorkerId = ANN,
    queues: Sequence[str] = ("default",),
    lease_seconds: float = LEASE_SECONDS,
) -> list[Job]:
    """Claim jobs and return them."""
    found = ask_blocking(
        connection, claim_verbs.claim(SCHEMA, worker_id=worker, queues=queues, jobs_max=jobs_max, lease_seconds=lease_seconds)
    )
    return [job.whole for job in found.jobs]


def claim_one(connection: Connection[Any], *, worker: WorkerId = ANN) -> Job:
    """Claim the one job that is due."""
    (job,) = claim(connection, worker=worker)
    return job


def lease(job: Job) -> Lease:
    """Return the fence of a claimed job."""
    assert job.current_execution_id is not None
    return Lease(job.id, job.current_execution_id)


def settle(connection: Connection[Any], job: Job, settlement: Outcome, *, worker: WorkerId = ANN) -> str | None:
    """Settle one execution; return what it became when that was a surprise."""
    surprises = ask_blocking(connection, end.settle(SCHEMA, worker_id=worker, settlements=[(lease(job), settlement)]))
    assert len(surprises) <= 1
    return surprises[0].became if surprises else None


def beat(connection: Connection[Any], *jobs: Job, lease_seconds: float = LEASE_SECONDS) -> dict[JobId, str]:
    """Renew leases; return what was a surprise."""
    surprises = ask_blocking(
        connection, lease_verbs.heartbeat(SCHEMA, worker_id=ANN, leases=[lease(job) for job in jobs], lease_seconds=lease_seconds)
    )
    return {surprise.job_id: surprise.became for surprise in surprises}


def reclaim(
    connection: Connection[Any], jobs_max: int = 100, *, worker: WorkerId = BOB, dead: Sequence[WorkerId] = ()
) -> dict[JobId, str]:
    """Take back what was lost; return what each job became."""
    rows = fetch(connection, "select job_id, became from pgnotifyq.reclaim(%s, %s, %s::uuid[])", worker, jobs_max, list(dead))
    return {job_id: became for job_id, became in rows if job_id is not None}


def row(connection: Connection[Any], job_id: JobId) -> dict[str, Any] | None:
    """Return a job's row as the text it has on its page, its version (xmin, ctid) included; None when there is none."""
    rows = fetch(
        connection, "select to_jsonb(j) || jsonb_build_object('xmin', j.xmin::text, 'ctid', j.ctid::text)"
        " from pgnotifyq.jobs as j where j.id = %s", job_id
    )  # fmt: skip
    return rows[0][0] if rows else None


def existing(connection: Connection[Any], job_id: JobId) -> dict[str, Any]:
    """Return the row of a job that must be there."""
    found = row(connection, job_id)
    assert found is not None
    return found


def everything(connection: Connection[Any]) -> list[Any]:
    """Return all there is, with the version of each row: equal before and after means that no byte was written."""
    found: list[Any] = []
    for table in ("jobs", "job_executions", "dead_letter_jobs"):
        statement = f"select t.xmin::text, t.ctid::text, to_jsonb(t) from pgnotifyq.{table} as t order by t.ctid"
        found.append(fetch(connection, statement))
    return found


def history(connection: Connection[Any], job_id: JobId) -> list[tuple[Any, ...]]:
    """Return (attempt, outcome) of the attempts that ended, oldest first."""
    return fetch(
        connection, "select attempt, outcome from pgnotifyq.job_executions where job_id = %s order by started_at, id", job_id
    )


def dead_letter(connection: Connection[Any], job_id: JobId) -> dict[str, Any] | None:
    """Return a dead letter; None when there is none."""
    rows = fetch(connection, "select to_jsonb(d) from pgnotifyq.dead_letter_jobs as d where d.id = %s", job_id)
    return rows[0][0] if rows else None


def pass_time(connection: Connection[Any], seconds: float) -> None:
    """Set this session's clock of the queue ahead of its own by some seconds, and stop it there."""
    connection.execute(
        "select set_config('pgnotifyq.clock', (clock_timestamp() + make_interval(secs => %s))::text, false)", (seconds,)
    )


def update_status(connection: Connection[Any], job_id: JobId, status: str = "cancelled") -> None:
    """Do what people do: set a job's status by a plain update."""
    connection.execute("update pgnotifyq.jobs set status = %s where id = %s", (status, job_id))


def tenant_role(connection: Connection[Any]) -> str:
    """Return the role that `migrate` has made for tenants' transactions. Its name has the database in it."""
    return str(value(connection, "select role_name from pgnotifyq.roles where kind = 'tenant'"))
