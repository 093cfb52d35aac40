"""Dead letters, requeue and retention: what stays of a job, whole, and for how long."""

from __future__ import annotations

import uuid
from typing import Any

import psycopg
import pytest

from pgnotifyq.ledger import end
from pgnotifyq.model.outcome import PLAIN_COMPLETION
from pgnotifyq.wire.asking import ask_blocking
from pgnotifyq.wire.blocking import Connection
from tests.ledger.support import (
    BLOCKED,
    ENDINGS,
    SCHEMA,
    at_once,
    claim_one,
    dead_letter,
    enqueue,
    existing,
    fetch,
    pass_time,
    reclaim,
    row,
    settle,
    until,
    update_status,
    value,
)

Link = Connection[Any]
WHOLE = ("id", "org_id", "queue_name", "job_type", "payload", "priority", "max_attempts", "unique_key", "created_at")


def test_death_after_several_attempts(connection: Link) -> None:
    """A dead letter tells every attempt in order, the last one ended like the others, and the final error."""
    job_id = enqueue(connection, max_attempts=3)
    settle(connection, claim_one(connection), ENDINGS["retry"])
    pass_time(connection, 10)
    claim_one(connection)
    pass_time(connection, 80)
    reclaim(connection)
    settle(connection, claim_one(connection), ENDINGS["bury"])
    letter = dead_letter(connection, job_id)
    assert letter is not None
    told = [(attempt["attempt"], attempt["outcome"], attempt["error_message"]) for attempt in letter["history"]]
    assert told == [(1, "failed", "no luck"), (2, "lost", "the lease ran out"), (3, "failed", "hopeless")]
    assert all(attempt["ended_at"] and attempt["id"] and attempt["worker_id"] for attempt in letter["history"])
    assert (letter["reason"], letter["error_message"], letter["attempts"]) == ("exhausted", "hopeless", 3)
    assert row(connection, job_id) is None


def test_death_is_one_move(connection: Link, other: Link) -> None:
    """Seen from outside a job is in the jobs or in the dead letters, never in both and never in neither."""
    job_id = enqueue(connection)
    job = claim_one(connection)
    where = "select count(*) from (select id from pgnotifyq.jobs union all select id from pgnotifyq.dead_letter_jobs) as x"
    with connection.transaction():
        settle(connection, job, ENDINGS["bury"])
        assert (value(other, where), row(other, job_id) is not None) == (1, True)
    assert (value(other, where), row(other, job_id) is not None) == (1, False)


def test_requeued_job_is_the_job_it_was(connection: Link) -> None:
    """Requeue restores id, tenant, queue, type, payload, priority, key and age; attempts start again."""
    job_id = enqueue(
        connection, "resize", payload='{"a": [1, null]}', org_id=uuid.uuid4(), queue_name="images", priority=-7,
        max_attempts=9, unique_key="k",
    )  # fmt: skip
    before = existing(connection, job_id)
    (claimed,) = fetch(connection, "select id from pgnotifyq.claim(%s, array['images'], 1, 60)", uuid.uuid4())
    execution_id = value(connection, "select current_execution_id from pgnotifyq.jobs")
    connection.execute(
        "select pgnotifyq.settle(%s, array[%s]::uuid[], array[%s]::uuid[], array['bury'], array['failed'], array[0.0],"
        " array['hopeless'], array[null]::text[], array['exhausted'])",
        (uuid.uuid4(), claimed[0], execution_id),
    )
    assert value(connection, "select pgnotifyq.requeue(%s)", job_id)
    after = existing(connection, job_id)
    assert {name: after[name] for name in WHOLE} == {name: before[name] for name in WHOLE}
    assert (after["status"], after["attempts"], after["error_message"]) == ("pending", 0, "hopeless")
    assert dead_letter(connection, job_id) is None
    assert not value(connection, "select pgnotifyq.requeue(%s)", job_id)


def test_death_after_a_requeue(connection: Link) -> None:
    """A job that dies again has the attempts of both its lives in its history."""
    job_id = enqueue(connection, max_attempts=1)
    for _ in range(2):
        settle(connection, claim_one(connection), ENDINGS["bury"])
        letter = dead_letter(connection, job_id)
        connection.execute("select pgnotifyq.requeue(%s)", (job_id,))
    assert letter is not None
    assert [attempt["attempt"] for attempt in letter["history"]] == [1, 1]


def test_two_requeue_at_once(connection: Link, other: Link, dsn: str) -> None:
    """Of two who requeue one dead letter one wins, and the other is told that there is none."""
    job_id = enqueue(connection)
    settle(connection, claim_one(connection), ENDINGS["bury"])
    told: list[bool] = []

    def requeue_late() -> None:
        told.append(value(other, "select pgnotifyq.requeue(%s)", job_id))

    with at_once() as start, connection.transaction():
        assert value(connection, "select pgnotifyq.requeue(%s)", job_id)
        start(requeue_late)
        until(dsn, BLOCKED, "other")
    assert told == [False]


def test_requeue_against_a_unique_key(connection: Link) -> None:
    """While another unfinished job holds its key a dead letter is not brought back, and stays."""
    job_id = enqueue(connection, unique_key="k")
    settle(connection, claim_one(connection), ENDINGS["bury"])
    enqueue(connection, unique_key="k")
    with pytest.raises(psycopg.errors.UniqueViolation):
        connection.execute("select pgnotifyq.requeue(%s)", (job_id,))
    assert dead_letter(connection, job_id) is not None


def test_retention(connection: Link) -> None:
    """Finished jobs go with their history when their time is over; unfinished and stopping ones stay, however old."""
    completed, cancelled, stopping, running, pending = [
        enqueue(connection, queue_name=name) for name in ("a", "b", "c", "d", "e")
    ]
    for queue, job_id in (("a", completed), ("c", stopping), ("d", running)):
        (_,) = fetch(connection, "select from pgnotifyq.claim(%s, array[%s], 1, 60)", uuid.uuid4(), queue)
        if job_id == completed:
            statement = "select pgnotifyq.complete(%s, array[id], array[current_execution_id]) from pgnotifyq.jobs where is_held"
            connection.execute(statement, (uuid.uuid4(),))
    update_status(connection, cancelled)
    update_status(connection, stopping)
    pass_time(connection, 99)
    assert ask_blocking(connection, end.prune(SCHEMA, older_than_seconds=100, after_id=None, jobs_max=10)) == (0, None)
    pass_time(connection, 101)
    assert ask_blocking(connection, end.prune(SCHEMA, older_than_seconds=100, after_id=None, jobs_max=10)) == (2, None)
    left = fetch(connection, "select id from pgnotifyq.jobs order by id")
    assert left == [(stopping,), (running,), (pending,)]
    assert fetch(connection, "select from pgnotifyq.job_executions") == []


def test_retention_in_batches(connection: Link) -> None:
    """A pass walks on from batch to batch, over jobs that stay, and ends."""
    for place in range(7):
        enqueue(connection)
        if place % 3:
            settle(connection, claim_one(connection), PLAIN_COMPLETION)
        else:
            update_status(connection, enqueue(connection, scheduled_at="2100-01-01"))
            connection.execute("update pgnotifyq.jobs set scheduled_at = '2100-01-01' where status = 'pending'")
    pass_time(connection, 10)
    deleted, after_id, batches = 0, None, 0
    while batches == 0 or after_id is not None:
        here, after_id = ask_blocking(connection, end.prune(SCHEMA, older_than_seconds=1, after_id=after_id, jobs_max=2))
        deleted, batches = deleted + here, batches + 1
    assert fetch(connection, "select status, count(*) from pgnotifyq.jobs group by 1") == [("pending", 3)]
    assert (deleted, batches) == (7, 6)


def test_retention_beside_a_lock(connection: Link, other: Link) -> None:
    """A finished job that somebody has locked is left for the next pass; pruning waits for nobody."""
    job_id = enqueue(connection)
    update_status(connection, job_id)
    pass_time(other, 10)
    other.execute("set lock_timeout = '1ms'")
    with connection.transaction():
        connection.execute("select from pgnotifyq.jobs where id = %s for update", (job_id,))
        assert ask_blocking(other, end.prune(SCHEMA, older_than_seconds=1, after_id=None, jobs_max=10)) == (0, None)
    assert ask_blocking(other, end.prune(SCHEMA, older_than_seconds=1, after_id=None, jobs_max=10)) == (1, None)
