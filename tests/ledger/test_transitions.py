"""The guard of the transitions, against the table in the model; and cancel, the one transition people make."""

from __future__ import annotations

import itertools
import uuid
from typing import Any

import psycopg
import pytest

from pgnotifyq.ledger.errors import ILLEGAL_TRANSITION, translated
from pgnotifyq.model.errors import IllegalTransition
from pgnotifyq.model.job import JobId
from pgnotifyq.model.outcome import PLAIN_COMPLETION
from pgnotifyq.model.states import LEGAL_STATUS_CHANGES, STORED, Status
from pgnotifyq.wire.blocking import Connection
from tests.ledger.support import (
    BLOCKED,
    ENDINGS,
    SCHEMA,
    at_once,
    claim,
    claim_one,
    enqueue,
    everything,
    existing,
    fetch,
    settle,
    until,
    update_status,
    value,
)

Link = Connection[Any]


def make(connection: Link, status: Status) -> JobId:
    """Make a job of a status."""
    job_id = enqueue(connection)
    if status in {Status.RUNNING, Status.COMPLETED}:
        job = claim_one(connection)
        if status is Status.COMPLETED:
            settle(connection, job, PLAIN_COMPLETION)
    if status is Status.CANCELLED:
        update_status(connection, job_id)
    return job_id


@pytest.mark.parametrize(("before", "after"), list(itertools.product(STORED, STORED)))
def test_every_pair_of_statuses(connection: Link, before: Status, after: Status) -> None:
    """The guard lets through what the model's table holds, and refuses the rest with our SQLSTATE and a hint."""
    job_id = make(connection, before)
    change = (
        "update pgnotifyq.jobs set status = %(after)s,"
        " completed_at = case when %(after)s in ('completed', 'cancelled') then clock_timestamp() end,"
        " locked_by = case when %(after)s = 'running' then %(id)s::uuid end,"
        " current_execution_id = case when %(after)s = 'running' then %(id)s::uuid end,"
        " lease_expires_at = case when %(after)s = 'running' then clock_timestamp() end"
        " where id = %(id)s"
    )
    if before is after or (before, after) in LEGAL_STATUS_CHANGES:
        connection.execute(change, {"after": after.value, "id": job_id})
        assert existing(connection, job_id)["status"] == after
        return
    unchanged = everything(connection)
    with pytest.raises(psycopg.Error) as caught:
        connection.execute(change, {"after": after.value, "id": job_id})
    assert caught.value.sqlstate == ILLEGAL_TRANSITION
    assert caught.value.diag.message_hint
    assert everything(connection) == unchanged
    with pytest.raises(IllegalTransition), translated(SCHEMA):
        connection.execute(change, {"after": after.value, "id": job_id})


def test_cancel_says_what_happened(connection: Link) -> None:
    """cancelled, stopping, finished, unknown: the answer is what became of the job."""

    def cancel(job_id: uuid.UUID) -> str:
        return str(value(connection, "select pgnotifyq.cancel(%s)", job_id))

    pending = enqueue(connection)
    assert cancel(pending) == "cancelled"
    assert cancel(pending) == "finished"
    running = make(connection, Status.RUNNING)
    assert cancel(running) == "stopping"
    assert cancel(running) == "stopping"
    completed = make(connection, Status.COMPLETED)
    assert cancel(completed) == "finished"
    dead = make(connection, Status.PENDING)
    settle(connection, claim_one(connection), ENDINGS["bury"])
    assert cancel(dead) == "finished"
    assert cancel(uuid.uuid4()) == "unknown"
    assert existing(connection, completed)["status"] == "completed"


def test_cancel_says_why(connection: Link) -> None:
    """The reason given is kept with the job, cut to a bound."""
    job_id = enqueue(connection)
    connection.execute("select pgnotifyq.cancel(%s, %s)", (job_id, "x" * 5000))
    assert existing(connection, job_id)["error_message"] == "x" * 1000


def test_cancelled_while_pending(connection: Link) -> None:
    """A pending job that was cancelled is finished by that and is never claimed."""
    job_id = enqueue(connection)
    update_status(connection, job_id)
    found = existing(connection, job_id)
    assert found["completed_at"] is not None and found["current_execution_id"] is None
    assert claim(connection, 10) == []


def test_cancelled_while_running(connection: Link) -> None:
    """A running job that was cancelled keeps its lease, and is shown as stopping, until its handler has ended."""
    job_id = enqueue(connection)
    job = claim_one(connection)
    update_status(connection, job_id)
    assert existing(connection, job_id)["current_execution_id"] == str(job.current_execution_id)
    assert value(connection, "select outcome from pgnotifyq.executions") == "stopping"
    settle(connection, job, ENDINGS["cancel"])
    assert fetch(connection, "select outcome from pgnotifyq.executions") == [("cancelled",)]


def test_completed_job_is_not_cancelled(connection: Link) -> None:
    """Cancelling what has completed is refused, and changes nothing."""
    job_id = make(connection, Status.COMPLETED)
    before = everything(connection)
    with pytest.raises(psycopg.Error, match="it cannot become cancelled"):
        update_status(connection, job_id)
    assert everything(connection) == before


def test_cancel_against_claim(connection: Link, other: Link, dsn: str) -> None:
    """A cancel that meets an uncommitted claim waits for it, and then stops the running job."""
    job_id = enqueue(connection)
    with at_once() as start, connection.transaction():
        claim_one(connection)
        start(update_status, other, job_id)
        until(dsn, BLOCKED, "other")
    until(dsn, "status = 'cancelled' and is_held from pgnotifyq.jobs")


def test_claim_against_cancel(connection: Link, other: Link) -> None:
    """A claim that meets an uncommitted cancel does not wait, and does not claim the job, then or later."""
    job_id = enqueue(connection)
    with connection.transaction():
        update_status(connection, job_id)
        assert claim(other) == []
    assert claim(other) == []


@pytest.mark.parametrize("ending", ["complete", "complete plainly", "retry", "snooze", "bury", "release"])
def test_settle_waits_for_a_cancel(connection: Link, other: Link, dsn: str, ending: str) -> None:
    """An ending that meets an uncommitted cancel waits for it, and the cancel wins."""
    job_id = enqueue(connection)
    job = claim_one(connection)
    became: list[str | None] = []

    def settle_late() -> None:
        became.append(settle(other, job, ENDINGS[ending]))

    with at_once() as start, connection.transaction():
        update_status(connection, job_id)
        start(settle_late)
        until(dsn, BLOCKED, "other")
    found = existing(connection, job_id)
    assert (found["status"], found["result"], found["is_held"], became) == ("cancelled", None, False, ["cancelled"])


def test_cancel_waits_for_a_completion(connection: Link, other: Link, dsn: str) -> None:
    """A cancel that meets an uncommitted completion waits for it, and is refused."""
    job_id = enqueue(connection)
    job = claim_one(connection)
    told: list[str] = []

    def cancel_late() -> None:
        told.append(value(other, "select pgnotifyq.cancel(%s)", job_id))

    with at_once() as start, connection.transaction():
        settle(connection, job, PLAIN_COMPLETION)
        start(cancel_late)
        until(dsn, BLOCKED, "other")
    assert told == ["finished"]
    assert existing(connection, job_id)["status"] == "completed"


def test_cancel_is_kept_by_a_reclaim(connection: Link) -> None:
    """A job cancelled while it ran, whose worker then died, is closed as cancelled: it does not run again."""
    job_id = enqueue(connection)
    claim_one(connection)
    update_status(connection, job_id)
    connection.execute("select set_config('pgnotifyq.clock', (clock_timestamp() + interval '61 s')::text, false)")
    connection.execute("select * from pgnotifyq.reclaim(%s, 10)", (uuid.uuid4(),))
    found = existing(connection, job_id)
    assert (found["status"], found["is_held"], found["lease_expires_at"]) == ("cancelled", False, None)
