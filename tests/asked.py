"""What tests of workers and doors share with the ledger's, awaited: jobs made, looked at byte by byte, and moved through time.

The ledger's own tests have the same without an event loop (ledger/support.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pgnotifyq.ledger import claim as claim_verbs
from pgnotifyq.ledger import end
from pgnotifyq.ledger import lease as lease_verbs
from pgnotifyq.model.job import JobId, WorkerId
from pgnotifyq.model.outcome import Outcome
from pgnotifyq.wire.asking import ask
from tests.ledger.obstacles import CLEAR
from tests.ledger.support import ANN, BOB, LEASE_SECONDS, SCHEMA, lease

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pgnotifyq.model.job import Job
    from pgnotifyq.wire.connection import Connection


async def fetch(connection: Connection[Any], statement: str, *parameters: object) -> list[tuple[Any, ...]]:
    """Run a statement and return its rows."""
    cursor = await connection.execute(statement.encode(), parameters or None)
    return await cursor.fetchall() if cursor.description is not None else []


async def value(connection: Connection[Any], statement: str, *parameters: object) -> Any:
    """Run a statement and return the first column of its one row."""
    ((found, *_),) = await fetch(connection, statement, *parameters)
    return found


async def enqueue(connection: Connection[Any], job_type: str = "noop", **fields: object) -> JobId:
    """Enqueue a job through the SQL function."""
    named = "".join(f", {name} => %s" for name in fields)
    return JobId(await value(connection, f"select pgnotifyq.enqueue(%s{named})", job_type, *fields.values()))


async def claim(
    connection: Connection[Any],
    jobs_max: int = 1,
    *,
    worker: WorkerId = ANN,
    queues: Sequence[str] = ("default",),
    lease_seconds: float = LEASE_SECONDS,
) -> list[Job]:
    """Claim jobs and return them."""
    found = await ask(
        connection, claim_verbs.claim(SCHEMA, worker_id=worker, queues=queues, jobs_max=jobs_max, lease_seconds=lease_seconds)
    )
    return [job.whole for job in found.jobs]


async def claim_one(connection: Connection[Any], *, worker: WorkerId = ANN) -> Job:
    """Claim the one job that is due."""
    (job,) = await claim(connection, worker=worker)
    return job


async def settle(connection: Connection[Any], job: Job, settlement: Outcome, *, worker: WorkerId = ANN) -> str | None:
    """Settle one execution; return what it became when that was a surprise."""
    surprises = await ask(connection, end.settle(SCHEMA, worker_id=worker, settlements=[(lease(job), settlement)]))
    assert len(surprises) <= 1
    return surprises[0].became if surprises else None


async def beat(connection: Connection[Any], *jobs: Job, lease_seconds: float = LEASE_SECONDS) -> dict[JobId, str]:
    """Renew leases; return what was a surprise."""
    surprises = await ask(
        connection, lease_verbs.heartbeat(SCHEMA, worker_id=ANN, leases=[lease(job) for job in jobs], lease_seconds=lease_seconds)
    )
    return {surprise.job_id: surprise.became for surprise in surprises}


async def reclaim(
    connection: Connection[Any], jobs_max: int = 100, *, worker: WorkerId = BOB, dead: Sequence[WorkerId] = ()
) -> dict[JobId, str]:
    """Take back what was lost; return what each job became."""
    rows = await fetch(
        connection, "select job_id, became from pgnotifyq.reclaim(%s, %s, %s::uuid[])", worker, jobs_max, list(dead)
    )
    return {job_id: became for job_id, became in rows if job_id is not None}


async def row(connection: Connection[Any], job_id: JobId) -> dict[str, Any] | None:
    """Return a job's row as the text it has on its page, its version (xmin, ctid) included; None when there is none."""
    rows = await fetch(
        connection, "select to_jsonb(j) || jsonb_build_object('xmin', j.xmin::text, 'ctid', j.ctid::text)"
        " from pgnotifyq.jobs as j where j.id = %s", job_id
    )  # fmt: skip
    return rows[0][0] if rows else None


async def existing(connection: Connection[Any], job_id: JobId) -> dict[str, Any]:
    """Return the row of a job that must be there."""
    found = await row(connection, job_id)
    assert found is not None
    return found


async def everything(connection: Connection[Any]) -> list[Any]:
    """Return all there is, with the version of each row: equal before and after means that no byte was written."""
    found: list[Any] = []
    for table in ("jobs", "job_executions", "dead_letter_jobs"):
        statement = f"select t.xmin::text, t.ctid::text, to_jsonb(t) from pgnotifyq.{table} as t order by t.ctid"
        found.append(await fetch(connection, statement))
    return found


async def history(connection: Connection[Any], job_id: JobId) -> list[tuple[Any, ...]]:
    """Return (attempt, outcome) of the attempts that ended, oldest first."""
    return await fetch(
        connection, "select attempt, outcome from pgnotifyq.job_executions where job_id = %s order by started_at, id", job_id
    )


async def dead_letter(connection: Connection[Any], job_id: JobId) -> dict[str, Any] | None:
    """Return a dead letter; None when there is none."""
    rows = await fetch(connection, "select to_jsonb(d) from pgnotifyq.dead_letter_jobs as d where d.id = %s", job_id)
    return rows[0][0] if rows else None


async def pass_time(connection: Connection[Any], seconds: float) -> None:
    """Set this session's clock of the queue ahead of its own by some seconds, and stop it there."""
    await connection.execute(
        "select set_config('pgnotifyq.clock', (clock_timestamp() + make_interval(secs => %s))::text, false)", (seconds,)
    )


async def update_status(connection: Connection[Any], job_id: JobId, status: str = "cancelled") -> None:
    """Do what people do: set a job's status by a plain update."""
    await connection.execute("update pgnotifyq.jobs set status = %s where id = %s", (status, job_id))


async def tenant_role(connection: Connection[Any]) -> str:
    """Return the role that `migrate` has made for tenants' transactions. Its name has the database in it."""
    return str(await value(connection, "select role_name from pgnotifyq.roles where kind = 'tenant'"))


async def obstruct(connection: Connection[Any], statement: str, victim: JobId) -> None:
    """Put an obstacle (ledger/obstacles.py) in the way of one job."""
    await connection.execute(statement.format(victim=victim).encode())


async def clear(connection: Connection[Any]) -> None:
    """Take all obstacles away."""
    await connection.execute(CLEAR)
