"""The guard of the transitions, against the table in the model; and cancel, the one transition people make."""

from __future__ import annotations

import itertools
import uuid
from typing import Any

import psycopg
import pytest
import trio

from pgnotifyq.ledger.errors import ILLEGAL_TRANSITION, translated
from pgnotifyq.model.errors import IllegalTransition
from pgnotifyq.model.job import JobId
from pgnotifyq.model.outcome import PLAIN_COMPLETION
from pgnotifyq.model.states import LEGAL_STATUS_CHANGES, STORED, Status
from pgnotifyq.wire.connection import Connection
from tests.ledger.support import (
    BLOCKED,
    ENDINGS,
    SCHEMA,
    claim,
    claim_one,
    enqueue,
    everything,
    existing,
    fetch,
    settle,
    update_status,
    value,
)
from tests.proxy import until

Link = Connection[Any]


async def make(connection: Link, status: Status) -> JobId:
    """Make a job of a status."""
    job_id = await enqueue(connection)
    if status in {Status.RUNNING, Status.COMPLETED}:
        job = await claim_one(connection)
        if status is Status.COMPLETED:
            await settle(connection, job, PLAIN_COMPLETION)
    if status is Status.CANCELLED:
        await update_status(connection, job_id)
    return job_id


@pytest.mark.parametrize(("before", "after"), list(itertools.product(STORED, STORED)))
async def test_every_pair_of_statuses(connection: Link, before: Status, after: Status) -> None:
    """The guard lets through what the model's table holds, and refuses the rest with our SQLSTATE and a hint."""
    job_id = await make(connection, before)
    change = (
        "update pgnotifyq.jobs set status = %(after)s,"
        " completed_at = case when %(after)s in ('completed', 'cancelled') then clock_timestamp() end,"
        " locked_by = case when %(after)s = 'running' then %(id)s::uuid end,"
        " current_execution_id = case when %(after)s = 'running' then %(id)s::uuid end,"
        " lease_expires_at = case when %(after)s = 'running' then clock_timestamp() end"
        " where id = %(id)s"
    )
    if before is after or (before, after) in LEGAL_STATUS_CHANGES:
        await connection.execute(change, {"after": after.value, "id": job_id})
        assert (await existing(connection, job_id))["status"] == after
        return
    unchanged = await everything(connection)
    with pytest.raises(psycopg.Error) as caught:
        await connection.execute(change, {"after": after.value, "id": job_id})
    assert caught.value.sqlstate == ILLEGAL_TRANSITION
    assert caught.value.diag.message_hint
    assert await everything(connection) == unchanged
    with pytest.raises(IllegalTransition), translated(SCHEMA):
        await connection.execute(change, {"after": after.value, "id": job_id})


async def test_cancel_says_what_happened(connection: Link) -> None:
    """cancelled, stopping, finished, unknown: the answer is what became of the job."""

    async def cancel(job_id: uuid.UUID) -> str:
        return str(await value(connection, "select pgnotifyq.cancel(%s)", job_id))

    pending = await enqueue(connection)
    assert await cancel(pending) == "cancelled"
    assert await cancel(pending) == "finished"
    running = await make(connection, Status.RUNNING)
    assert await cancel(running) == "stopping"
    assert await cancel(running) == "stopping"
    completed = await make(connection, Status.COMPLETED)
    assert await cancel(completed) == "finished"
    dead = await make(connection, Status.PENDING)
    await settle(connection, await claim_one(connection), ENDINGS["bury"])
    assert await cancel(dead) == "finished"
    assert await cancel(uuid.uuid4()) == "unknown"
    assert (await existing(connection, completed))["status"] == "completed"


async def test_cancel_says_why(connection: Link) -> None:
    """The reason given is kept with the job, cut to a bound."""
    job_id = await enqueue(connection)
    await connection.execute("select pgnotifyq.cancel(%s, %s)", (job_id, "x" * 5000))
    assert (await existing(connection, job_id))["error_message"] == "x" * 1000


async def test_cancelled_while_pending(connection: Link) -> None:
    """A pending job that was cancelled is finished by that and is never claimed."""
    job_id = await enqueue(connection)
    await update_status(connection, job_id)
    found = await existing(connection, job_id)
    assert found["completed_at"] is not None and found["current_execution_id"] is None
    assert await claim(connection, 10) == []


async def test_cancelled_while_running(connection: Link) -> None:
    """A running job that was cancelled keeps its lease, and is shown as stopping, until its handler has ended."""
    job_id = await enqueue(connection)
    job = await claim_one(connection)
    await update_status(connection, job_id)
    assert (await existing(connection, job_id))["current_execution_id"] == str(job.current_execution_id)
    assert await value(connection, "select outcome from pgnotifyq.executions") == "stopping"
    await settle(connection, job, ENDINGS["cancel"])
    assert await fetch(connection, "select outcome from pgnotifyq.executions") == [("cancelled",)]


async def test_completed_job_is_not_cancelled(connection: Link) -> None:
    """Cancelling what has completed is refused, and changes nothing."""
    job_id = await make(connection, Status.COMPLETED)
    before = await everything(connection)
    with pytest.raises(psycopg.Error, match="it cannot become cancelled"):
        await update_status(connection, job_id)
    assert await everything(connection) == before


async def test_cancel_against_claim(connection: Link, other: Link, dsn: str, nursery: trio.Nursery) -> None:
    """A cancel that meets an uncommitted claim waits for it, and then stops the running job."""
    job_id = await enqueue(connection)
    async with connection.transaction():
        await claim_one(connection)
        nursery.start_soon(update_status, other, job_id)
        await until(dsn, BLOCKED, "other")
    await until(dsn, "status = 'cancelled' and is_held from pgnotifyq.jobs")


async def test_claim_against_cancel(connection: Link, other: Link) -> None:
    """A claim that meets an uncommitted cancel does not wait, and does not claim the job, then or later."""
    job_id = await enqueue(connection)
    async with connection.transaction():
        await update_status(connection, job_id)
        assert await claim(other) == []
    assert await claim(other) == []


@pytest.mark.parametrize("ending", ["complete", "complete plainly", "retry", "snooze", "bury", "release"])
async def test_settle_waits_for_a_cancel(connection: Link, other: Link, dsn: str, nursery: trio.Nursery, ending: str) -> None:
    """An ending that meets an uncommitted cancel waits for it, and the cancel wins."""
    job_id = await enqueue(connection)
    job = await claim_one(connection)
    became: list[str | None] = []

    async def settle_late() -> None:
        became.append(await settle(other, job, ENDINGS[ending]))

    async with trio.open_nursery() as settling, connection.transaction():
        await update_status(connection, job_id)
        settling.start_soon(settle_late)
        await until(dsn, BLOCKED, "other")
    found = await existing(connection, job_id)
    assert (found["status"], found["result"], found["is_held"], became) == ("cancelled", None, False, ["cancelled"])


async def test_cancel_waits_for_a_completion(connection: Link, other: Link, dsn: str) -> None:
    """A cancel that meets an uncommitted completion waits for it, and is refused."""
    job_id = await enqueue(connection)
    job = await claim_one(connection)
    told: list[str] = []

    async def cancel_late() -> None:
        told.append(await value(other, "select pgnotifyq.cancel(%s)", job_id))

    async with trio.open_nursery() as cancelling, connection.transaction():
        await settle(connection, job, PLAIN_COMPLETION)
        cancelling.start_soon(cancel_late)
        await until(dsn, BLOCKED, "other")
    assert told == ["finished"]
    assert (await existing(connection, job_id))["status"] == "completed"


async def test_cancel_is_kept_by_a_reclaim(connection: Link) -> None:
    """A job cancelled while it ran, whose worker then died, is closed as cancelled: it does not run again."""
    job_id = await enqueue(connection)
    await claim_one(connection)
    await update_status(connection, job_id)
    await connection.execute("select set_config('pgnotifyq.clock', (clock_timestamp() + interval '61 s')::text, false)")
    await connection.execute("select * from pgnotifyq.reclaim(%s, 10)", (uuid.uuid4(),))
    found = await existing(connection, job_id)
    assert (found["status"], found["is_held"], found["lease_expires_at"]) == ("cancelled", False, None)
