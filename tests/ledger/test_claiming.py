"""Claim: in order, in time, never too many, nobody waits, and what it costs does not depend on what lies around."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pgnotifyq.ledger import claim as claim_verbs
from pgnotifyq.wire.asking import ask_blocking
from pgnotifyq.wire.blocking import Connection
from tests.ledger.support import (
    ANN,
    BLOCKED,
    BOB,
    SCHEMA,
    at_once,
    claim,
    claim_one,
    enqueue,
    existing,
    fetch,
    pass_time,
    until,
    value,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

Link = Connection[Any]


def test_higher_priority_first_then_the_older(connection: Link) -> None:
    """Priority decides; within one, the time a job was scheduled for."""
    enqueued = [
        enqueue(connection, priority=priority, scheduled_at=f"2020-01-0{day}")
        for priority, day in ((0, 2), (5, 4), (-3, 1), (5, 3), (0, 1))
    ]
    claimed = [job.id for job in claim(connection, 10)]
    assert claimed == [enqueued[place] for place in (3, 1, 4, 0, 2)]


def test_queues_in_order_of_preference(connection: Link) -> None:
    """A queue named first is emptied first, whatever the priorities in the others."""
    second = enqueue(connection, queue_name="second", priority=9)
    first = enqueue(connection, queue_name="first", priority=-9)
    enqueue(connection, queue_name="unasked", priority=99)
    assert [job.id for job in claim(connection, 10, queues=("first", "second"))] == [first, second]


def test_job_of_the_future(connection: Link) -> None:
    """A job is invisible before its time on the database's clock, and the claim says how long that is."""
    connection.execute("select set_config('pgnotifyq.clock', '2030-01-01 00:00:00+00', false)")
    job_id = enqueue(connection, scheduled_at="2030-01-01 00:01:30+00", priority=9)
    enqueue(connection, scheduled_at="2030-01-01 00:05:00+00", priority=99)
    found = ask_blocking(connection, claim_verbs.claim(SCHEMA, worker_id=ANN, queues=["default"], jobs_max=5, lease_seconds=60.0))
    assert (found.jobs, found.ran_dry, found.next_due_seconds) == ([], True, 90.0)
    connection.execute("select set_config('pgnotifyq.clock', '2030-01-01 00:01:29.999+00', false)")
    assert claim(connection) == []
    connection.execute("select set_config('pgnotifyq.clock', '2030-01-01 00:01:30+00', false)")
    assert [job.id for job in claim(connection)] == [job_id]


def test_job_of_the_future_behind_one_that_is_due(connection: Link) -> None:
    """Of one priority only what is due is taken, and the claim says when the next one is."""
    connection.execute("select set_config('pgnotifyq.clock', '2030-01-01 00:00:00+00', false)")
    for priority in (0, 5):
        enqueue(connection, scheduled_at="2030-01-01 00:02:00+00", priority=priority)
        enqueue(connection, scheduled_at="2030-01-01 00:00:00+00", priority=priority)
    enqueue(connection, scheduled_at="2030-01-01 00:01:00+00", priority=3)
    found = ask_blocking(connection, claim_verbs.claim(SCHEMA, worker_id=ANN, queues=["default"], jobs_max=9, lease_seconds=60.0))
    assert [job.whole.priority for job in found.jobs] == [5, 0]
    assert (found.ran_dry, found.is_contended, found.next_due_seconds) == (True, False, 60.0)


def test_never_more_than_asked_for(connection: Link) -> None:
    """A claim returns its limit and not a row more, over several priorities and queues."""
    for queue in ("default", "second"):
        for priority in (0, 1):
            for _ in range(5):
                enqueue(connection, queue_name=queue, priority=priority)
    for limit in (1, 3, 7):
        found = ask_blocking(
            connection, claim_verbs.claim(SCHEMA, worker_id=ANN, queues=["default", "second"], jobs_max=limit, lease_seconds=60.0)
        )
        assert (len(found.jobs), found.ran_dry) == (limit, False)
        assert value(connection, "select count(*) from pgnotifyq.jobs where status = 'running'") == limit
        connection.execute(
            "update pgnotifyq.jobs set status = 'pending', locked_by = null, current_execution_id = null,"
            " lease_expires_at = null, attempts = 0 where status = 'running'"
        )


def test_no_number_asked_for(connection: Link) -> None:
    """A claim of null jobs, by SQL, takes none: in a LIMIT null means all."""
    enqueue(connection)
    fetch(connection, "select * from pgnotifyq.claim(%s, '{default}', null, 60)", ANN)
    assert value(connection, "select count(*) from pgnotifyq.jobs where status = 'pending'") == 1


@pytest.mark.parametrize(
    "unwanted",
    [
        ("indexscan",),
        ("nestloop",),
        ("hashjoin",),
        ("indexonlyscan",),
        # Together they would have a subselect with a limit run once a row, not once: what `id in (select ...)` comes to.
        ("hashagg", "material"),
    ],
    ids="+".join,
)
def test_never_more_than_asked_for_under_another_plan(connection: Link, unwanted: tuple[str, ...]) -> None:
    """Whatever planner switches the session has set, a claim of two claims two."""
    for _ in range(20):
        enqueue(connection)
    for name in unwanted:
        connection.execute(f"set enable_{name} = off".encode())
    assert len(claim(connection, 2)) == 2


def test_claimed_job_is_whole(connection: Link) -> None:
    """One statement leaves a running job with worker, execution and lease; nothing half-way can be seen."""
    job_id = enqueue(connection, payload='{"a": 1}', priority=3, max_attempts=7, unique_key="k")
    job = claim_one(connection)
    found = existing(connection, job_id)
    assert (job.id, job.payload, job.priority, job.attempts, job.max_attempts, job.unique_key) == (job_id, {"a": 1}, 3, 1, 7, "k")
    assert (found["status"], found["locked_by"], found["attempts"]) == ("running", str(ANN), 1)
    assert found["current_execution_id"] == str(job.current_execution_id)
    assert job.lease_expires_at is not None and job.started_at is not None
    assert (job.lease_expires_at - job.started_at).total_seconds() == 60
    assert fetch(connection, "select job_id, id, attempt, outcome from pgnotifyq.executions") == [
        (job_id, job.current_execution_id, 1, "running")
    ]


def test_two_claim_at_once(connection: Link, other: Link) -> None:
    """Two workers share the work without waiting: each skips what the other has locked and not yet committed."""
    ids = [enqueue(connection) for _ in range(5)]
    other.execute("set lock_timeout = '1ms'")
    with connection.transaction():
        first = claim(connection, 3)
        second = claim(other, 3, worker=BOB)
    assert [job.id for job in first + second] == ids


@pytest.fixture
def standing_still(connection: Link) -> Iterator[None]:
    """Have a claim that goes on stand still at the first row that it may take, until nobody holds an advisory lock."""
    definition = value(
        connection, "select pg_get_functiondef(oid) from pg_proc where proname = 'is_in_trouble' and pronamespace = 'pgnotifyq'::regnamespace"
    )  # fmt: skip
    connection.execute("select pgnotifyq.note_trouble(%s, %s, 'claim', 'P0001', 'no job of these tests')", (ANN, ANN))
    connection.execute(
        "create or replace function pgnotifyq.is_in_trouble(org_id uuid, job_id uuid, time_now timestamptz) returns boolean"
        " language plpgsql stable as $$ begin perform pg_advisory_xact_lock(7); return false; end $$"
    )
    yield
    connection.execute(definition.encode())


@pytest.mark.parametrize("change", ["progress = 0.5", "priority = 5", "scheduled_at = '2100-01-01'", "status = 'cancelled'"])
def test_row_that_is_changed_before_it_is_locked(
    connection: Link, other: Link, standing_still: None, dsn: str, change: str
) -> None:  # fmt: skip
    """Changed behind the snapshot of the claim, a row is taken as it is now, or left; the others are taken, each once."""
    first, changed, last = [enqueue(connection) for _ in range(3)]
    connection.execute("select pg_advisory_lock(7)")
    statement = (
        f"select id, current_execution_id from pgnotifyq.claim('{BOB}', array['default'], 3, 60, after_queue => 'default',"
        f" after_priority => 0, after_time => '2000-01-01', after_id => '{first}')"
    )
    found: list[tuple[Any, ...]] = []

    def go_on() -> None:
        found.extend(fetch(other, statement))

    with at_once() as start:
        start(go_on)
        until(dsn, BLOCKED, "other")
        connection.execute(f"update pgnotifyq.jobs set {change} where id = %s".encode(), (changed,))
        connection.execute("select pg_advisory_unlock(7)")
    taken = {job_id: execution_id for job_id, execution_id in found if job_id is not None}
    may_start = change in {"progress = 0.5", "priority = 5"}
    assert {first, last} <= set(taken) <= ({first, changed, last} if may_start else {first, last})
    assert len(set(taken.values())) == len(taken)
    for job_id in (first, last):
        assert existing(connection, job_id)["current_execution_id"] == str(taken[job_id])
    again = {job.id for job in claim(connection, 3)}
    assert again == ({changed} if may_start else set()) - set(taken)


def test_claim_rolled_back(connection: Link) -> None:
    """A claim whose transaction fails leaves the job pending, its attempt not counted."""
    job_id = enqueue(connection)
    with connection.transaction(force_rollback=True):
        claim_one(connection)
    found = existing(connection, job_id)
    assert (found["status"], found["attempts"], found["current_execution_id"]) == ("pending", 0, None)


def test_execution_ids_are_never_used_again(connection: Link) -> None:
    """Each claim opens an execution of its own, also of a job claimed before."""
    enqueue(connection, max_attempts=50)
    seen = set()
    for ahead in range(10):
        pass_time(connection, 100 * ahead)
        job = claim_one(connection)
        seen.add(job.current_execution_id)
        connection.execute("select * from pgnotifyq.reclaim(%s, 10, array[]::uuid[])", (BOB,))
        pass_time(connection, 100 * ahead + 70)
        connection.execute("select * from pgnotifyq.reclaim(%s, 10, array[]::uuid[])", (BOB,))
    assert len(seen) == 10
