"""What the hot statements cost, in pages touched, does not depend on what lies around nor on what the planner believes.

`explain (analyze, buffers)` of a function counts the pages of every statement in it, under the plans that this very session
has cached. So a session first plans all of them on an empty table, as a worker does that was started before its queue was filled;
then others fill it, and nobody analyzes.
"""

from __future__ import annotations

from typing import Any

import pytest

from pgnotifyq.wire.blocking import Connection
from tests.ledger.support import ANN, claim, fetch, lease, value

Link = Connection[Any]
JOBS = 100_000
# What ten rows may touch: each in its table and indexes, with their trees. A scan of the table touches thousands.
PAGES_MAX = 300
# Until a session caches a plan for good it has to be asked for it so often.
TIMES = 8

CALLS = {
    "claim": "claim('{ann}', array['default'], 10, 60)",
    "claim_named": "claim_named('{ann}', array['default'], '{due}', 60)",
    "claim_named of the dead": "claim_named('{ann}', array['default'], '{ann}', 60)",
    "complete": "complete('{ann}', {jobs}, {executions})",
    "complete with a result": "complete('{ann}', {jobs}, {executions}, {n}::text[], {x})",
    "retry": "give_back('{ann}', {jobs}, {executions}, {retry}, {failed}, {n}, {x})",
    "stop": "stop('{ann}', {jobs}, {executions}, {x})",
    "bury": "bury('{ann}', {jobs}, {executions}, {failed}, {x}, {exhausted})",
    "a lost batch": "complete('{ann}', {jobs}, {jobs})",
    "heartbeat": "heartbeat('{ann}', {jobs}, {executions}, 60)",
    "cancelled": "cancelled({jobs}, {executions})",
    "reclaim": "reclaim('{ann}', 10)",
    "prune": "prune(0, null, 10)",
    "has_due": "has_due('default')",
    "cancel": "cancel(({jobs})[1])",
    "cancel of the dead": "cancel('{ann}')",
    "still_holds": "still_holds(({jobs})[1], ({executions})[1])",
    "fence": "fence(({jobs})[1], ({executions})[1])",
    "meet_fence": "meet_fence(({jobs})[1], ({executions})[1], pg_current_xact_id()::text)",
    "note_afterthought": "note_afterthought(({jobs})[1], ({executions})[1], 'late')",
    "report_progress": "report_progress(({jobs})[1], ({executions})[1], 0.5, 'half')",
    "save": "save(({jobs})[1], ({executions})[1], '[1]')",
    "await_job": "await_job(({jobs})[1])",
    "requeue": "requeue('{ann}')",
    "enqueue": "enqueue('noop', unique_key => 'k')",
    "enqueue_unique": "enqueue_unique(array[gen_random_uuid(), gen_random_uuid()], array['{ann}', '{ann}']::uuid[],"
    " array[null, null]::text[], array['noop', 'noop'], array['[]', '[]'], array[0, 0]::smallint[], array[null, null]::timestamptz[],"
    " array[null, null]::float8[], array[null, null]::integer[], array['k', 'k'], null,"
    ' array[\'{{"on_conflict": "supersede"}}\', \'{{"on_conflict": "supersede"}}\'])',
    "pass_key": "pass_key('{ann}', 'noop', 'k', 'supersede')",
    "pass_keys": "pass_keys(array[1], array['{ann}']::uuid[], array['{ann}']::uuid[], array['noop'], array['k'],"
    ' array[\'{{"on_conflict": "supersede"}}\'::jsonb], array[null::jsonb], array[null::timestamptz], array[null::smallint])',
    "lock_keys": "lock_keys(array['{ann}']::uuid[], array['noop'], array['k'])",
    "key_holder": "key_holder('{ann}', 'noop', 'k')",
    "start_successors": "start_successors({jobs})",
}


def calls(leases: list[Any], due: object = ANN) -> dict[str, str]:
    """Return the statements for some leases and a job that is due, with their arguments written out."""
    count = max(len(leases), 1)
    words = {word: f"array_fill('{word}'::text, array[{count}])" for word in ("retry", "x", "failed", "exhausted")}
    words["x"] = f"array_fill('completed'::text, array[{count}])"
    ids = {
        name: "array[" + ", ".join(f"'{each[place]}'" for each in leases or [(ANN, ANN)]) + "]::uuid[]"
        for place, name in enumerate(("jobs", "executions"))
    }
    numbers = f"array_fill(1::float8, array[{count}])"
    return {
        name: f"select * from pgnotifyq.{call.format(ann=ANN, due=due, n=numbers, **words, **ids)}"
        for name, call in CALLS.items()
    }


def pages(connection: Link, statement: str) -> int:
    """Return how many pages a statement touches; it is rolled back."""
    with connection.transaction(force_rollback=True):
        plan = value(connection, f"explain (analyze, buffers, timing off, format json) {statement}")
    found = plan[0]["Plan"]
    return int(found["Shared Hit Blocks"] + found["Shared Read Blocks"])


def fill(connection: Link, jobs: int, *, due: str = "clock_timestamp() - interval '1 hour'", **fields: object) -> None:
    """Insert many jobs at once, by SQL."""
    names = "".join(f", {name}" for name in fields)
    values = "".join(f", '{each}'" for each in fields.values())
    connection.execute(
        f"insert into pgnotifyq.jobs (job_type, scheduled_at{names}) select 'noop', {due}{values}"
        f" from generate_series(1, {jobs})".encode()
    )


@pytest.fixture
def untended(connection: Link) -> Link:
    """Give a connection to a queue whose statistics nobody gathers, known to be empty."""
    for table in ("jobs", "job_executions"):
        connection.execute(f"alter table pgnotifyq.{table} set (autovacuum_enabled = off)".encode())
        connection.execute(f"vacuum analyze pgnotifyq.{table}".encode())
    return connection


def test_backlog_that_the_session_has_never_planned_for(untended: Link, other: Link) -> None:
    """Every hot function, planned while the table was empty, costs the same with a hundred thousand jobs and their history."""
    # With one job, so that what is asked of each (a burial) is planned too.
    fill(other, 1)
    only = [lease(job) for job in claim(untended, 1)]
    for statement in calls(only).values():
        for _ in range(TIMES):
            pages(untended, statement)
    other.execute("delete from pgnotifyq.jobs")
    other.execute("vacuum analyze pgnotifyq.jobs")
    fill(other, JOBS // 2, status="completed", completed_at="2100-01-01")
    fill(other, JOBS // 2)
    other.execute(
        "insert into pgnotifyq.job_executions (id, job_id, org_id, attempt, outcome, started_at, ended_at)"
        " select id, id, org_id, 1, 'completed', created_at, created_at from pgnotifyq.jobs"
    )
    leases = [lease(job) for job in claim(untended, 10)]
    assert len(leases) == 10
    due = value(other, "select id from pgnotifyq.jobs where is_claimable limit 1")
    cost = {name: pages(untended, statement) for name, statement in calls(leases, due).items()}
    assert {name: found for name, found in cost.items() if found > PAGES_MAX} == {}


def test_burial_beside_many_dead_letters(untended: Link, other: Link) -> None:
    """A burial looks up the letters of its own jobs: an index is a level deeper beside fifty thousand others, and no more is read."""
    fill(other, 10)
    statement = calls([lease(job) for job in claim(untended, 10)])["bury"]
    for _ in range(TIMES):
        pages(untended, statement)
    alone = pages(untended, statement)
    other.execute(
        "insert into pgnotifyq.dead_letter_jobs (id, org_id, queue_name, job_type, payload, priority, scheduled_at, attempts, max_attempts,"
        " created_at, reason, history, died_at) select gen_random_uuid(), org_id, queue_name, job_type, payload, priority, scheduled_at, 1,"
        f" 1, created_at, 'exhausted', '[]', created_at from pgnotifyq.jobs, generate_series(1, {JOBS // 20})".encode()
    )
    assert pages(untended, statement) < alone + 200


def test_claim_of_a_thousand_jobs(untended: Link, other: Link) -> None:
    """In between it is no different: with a thousand jobs a claim of ten does not read them all."""
    statement = calls([])["claim"]
    for jobs in (0, 1_000):
        fill(other, jobs)
        for _ in range(TIMES):
            pages(untended, statement)
        assert pages(untended, statement) < PAGES_MAX


def test_claim_with_statistics_of_another_time(untended: Link, other: Link) -> None:
    """Statistics of a time when all was pending do not make a claim of many look through what is finished now."""
    fill(other, 30_000)
    other.execute("vacuum analyze pgnotifyq.jobs")
    other.execute(
        "update pgnotifyq.jobs set status = 'running', locked_by = id, current_execution_id = id, lease_expires_at = now()"
    )
    other.execute(
        "update pgnotifyq.jobs set status = 'completed', completed_at = now(), locked_by = null, current_execution_id = null,"
        " lease_expires_at = null"
    )
    other.execute("vacuum pgnotifyq.jobs")
    fill(other, 10)
    for _ in range(TIMES):
        pages(untended, calls([])["claim"].replace(", 10, ", ", 500, "))
    assert pages(untended, calls([])["claim"].replace(", 10, ", ", 500, ")) < PAGES_MAX


def test_claim_beside_a_future_of_higher_priority(untended: Link) -> None:
    """Jobs that are not due, of a higher priority or the same, are not walked over; neither are other queues' and finished ones."""
    fill(untended, 25_000, due="clock_timestamp() + interval '1 day'", priority=9)
    fill(untended, 25_000, due="clock_timestamp() + interval '1 day'")
    fill(untended, 5_000, queue_name="another", priority=99)
    fill(untended, 5_000, status="completed", completed_at="2020-01-01", priority=50)
    fill(untended, 10)
    statement = calls([])["claim"]
    pages(untended, statement)
    assert pages(untended, statement) < PAGES_MAX
    assert len(claim(untended, 20)) == 10
    assert pages(untended, statement) < PAGES_MAX
    assert fetch(untended, "select from pgnotifyq.jobs where status = 'running' and priority <> 0") == []


def test_functions_that_pin_their_plans(connection: Link) -> None:
    """None of them is compiled: until PostgreSQL 17 what they forbid has a price at which a server with LLVM compiles every call."""
    rows = fetch(
        connection,
        "select proname, proconfig from pg_proc where pronamespace = 'pgnotifyq'::regnamespace and proconfig::text like '%%enable_%%'",
    )
    assert len(rows) > 10
    assert [name for name, settings in rows if "jit=off" not in settings] == []
