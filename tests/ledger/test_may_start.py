"""One rule for every way in which a job becomes running: each way in each situation, byte by byte.

A way that is new goes into WAYS, a condition that is new into SITUATIONS. That no way was forgotten is looked up in the database.

That a worker which drains asks for nothing, and that nothing is handed to it, is its own affair: `runtime/test_shutdown.py` and
`runtime/test_handover.py`.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import pytest

from pgnotifyq.model.job import JobId
from pgnotifyq.wire.blocking import Connection
from tests.ledger.support import ANN, BOB, enqueue, existing, fetch, pass_time, update_status, value

if TYPE_CHECKING:
    from collections.abc import Callable

Link = Connection[Any]

# Each is for a worker of the queue `default` that has handlers for `mine` and `more`. Told of one job; looks for it, or for any.
TYPES = "array['mine', 'more', 'paused']"
LOOK = f"claim('{ANN}', array['default'], {{jobs_max}}, 60, job_types => {TYPES}"
WAYS = {
    "a look": LOOK + ")",
    "a look that goes on": LOOK
    + ", after_queue => 'default', after_priority => 0, after_time => '2000-01-01', after_id => '{zero}')",
    "a look behind jobs of others": LOOK + ")",  # claim_by_type
    "a look, one row at a time": f"claim_apart('{ANN}', array['default'], {{jobs_max}}, 60, {TYPES})",
    "a wake-up that names it": f"claim_named('{ANN}', array['default'], '{{job}}', 60, {TYPES})",
}
# What makes a job running in the database. claim_apart has claim_named do it.
FUNCTIONS = {"claim", "claim_by_type", "claim_named", "enqueue_claimed"}


def start(connection: Link, way: str, job_id: JobId, jobs_max: int = 10) -> list[JobId]:
    """Try to start jobs in one way; return those that were started."""
    if way == "a look behind jobs of others":
        # Behind the time where a look goes on, and before all jobs of these tests.
        enqueue(connection, "others", scheduled_at="1999-01-01")
    call = WAYS[way].format(job=job_id, jobs_max=jobs_max, zero=uuid.UUID(int=0))
    statement = f"select id from pgnotifyq.{call} where current_execution_id is not null"
    return [found for (found,) in fetch(connection, statement)]


def put_aside(connection: Link) -> JobId:
    """Enqueue a job that is in trouble."""
    job_id = enqueue(connection, "mine")
    fetch(connection, "select pgnotifyq.note_trouble(%s, %s, 'claim', '23514', 'no')", uuid.UUID(int=0), job_id)
    return job_id


def held(connection: Link) -> JobId:
    """Enqueue a job that another worker has claimed."""
    job_id = enqueue(connection, "mine")
    fetch(connection, "select from pgnotifyq.claim_named(%s, array['default'], %s, 60)", BOB, job_id)
    return job_id


def cancelled(connection: Link) -> JobId:
    """Enqueue a job and cancel it."""
    job_id = enqueue(connection, "mine")
    update_status(connection, job_id, "cancelled")
    return job_id


def paused(connection: Link, scope: str) -> JobId:
    """Enqueue a job beside jobs that wait, and pause what it is of."""
    enqueue(connection, "paused")
    job_id = enqueue(connection, "paused")
    fetch(connection, f"select pgnotifyq.pause({scope})")
    return job_id


# Each makes a job that may not start.
SITUATIONS: dict[str, Callable[[Link], JobId]] = {
    "not due": lambda link: enqueue(link, "mine", scheduled_at="2100-01-01"),
    "no handler for it": lambda link: enqueue(link, "others"),
    "of another queue": lambda link: enqueue(link, "mine", queue_name="elsewhere"),
    "in trouble": put_aside,
    "held by another": held,
    "cancelled": cancelled,
    "of a paused type": lambda link: paused(link, "job_type => 'paused'"),
}
# Nothing else starts beside these.
PAUSES = {"its queue": "'default'", "its type": "job_type => 'mine'", "everything": "everything => true"}


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("way", WAYS)
def test_job_that_may_not_start(connection: Link, way: str, situation: str) -> None:
    """It is left as it is, and nothing is written."""
    job_id = SITUATIONS[situation](connection)
    before = existing(connection, job_id)
    assert start(connection, way, job_id) == []
    assert existing(connection, job_id) == before


@pytest.mark.parametrize("way", WAYS)
def test_job_that_may_start(connection: Link, way: str) -> None:
    """In each way the worker gets it, beside jobs that may not start."""
    for make in SITUATIONS.values():
        make(connection)
    job_id = enqueue(connection, "mine")
    assert start(connection, way, job_id) == [job_id]
    job = existing(connection, job_id)
    assert (job["status"], job["attempts"], job["locked_by"]) == ("running", 1, str(ANN))


@pytest.mark.parametrize("scope", PAUSES)
@pytest.mark.parametrize("way", WAYS)
def test_job_that_is_paused(connection: Link, way: str, scope: str) -> None:
    """Nothing starts, and nothing is written, until it is resumed; another queue's pause counts for nothing."""
    job_id = enqueue(connection, "mine")
    before = existing(connection, job_id)
    fetch(connection, "select pgnotifyq.pause('elsewhere'), pgnotifyq.pause(job_type => 'others')")
    fetch(connection, f"select pgnotifyq.pause({PAUSES[scope]})")
    assert start(connection, way, job_id) == []
    assert existing(connection, job_id) == before
    fetch(connection, f"select pgnotifyq.resume({PAUSES[scope]})")
    assert start(connection, way, job_id) == [job_id]


@pytest.mark.parametrize("function", ["claim", "claim_apart"])
def test_paused_type_of_a_worker_that_takes_all(connection: Link, function: str) -> None:
    """A claim that names no types takes all others."""
    fetch(connection, "select pgnotifyq.pause(job_type => 'paused')")
    others = [enqueue(connection, kind) for kind in ("paused", "mine", "paused", "others")]
    found = fetch(connection, f"select id from pgnotifyq.{function}('{ANN}', array['default'], 10, 60) where id is not null")
    assert [job_id for (job_id,) in found] == [others[1], others[3]]


def test_maximum_beside_a_paused_type(connection: Link) -> None:
    """Each type keeps its own maximum of attempts when a type before it is left out."""
    fetch(connection, "select pgnotifyq.pause(job_type => 'more')")
    job_id = enqueue(connection, "mine", max_attempts=None)
    statement = (
        "select from pgnotifyq.claim(%s, array['default'], 1, 60, job_types => array['more', 'mine'], maxima => array[3, 7])"
    )
    fetch(connection, statement, ANN)
    assert existing(connection, job_id)["max_attempts"] == 7


def test_claim_says_nothing_of_what_is_paused(connection: Link) -> None:
    """A worker that runs dry is not told to look again at once for a job that is due and paused."""
    enqueue(connection, "mine")
    fetch(connection, "select pgnotifyq.pause('default')")
    ((job_id, due),) = fetch(connection, f"select id, next_due_seconds from pgnotifyq.{LOOK.format(jobs_max=1)})")
    assert (job_id, due) == (None, None)


@pytest.mark.parametrize("way", WAYS)
def test_trouble_whose_time_has_passed(connection: Link, way: str) -> None:
    """The job that was put aside may start again."""
    job_id = put_aside(connection)
    pass_time(connection, 11)
    assert start(connection, way, job_id) == [job_id]


@pytest.mark.parametrize("way", [way for way in WAYS if "names" not in way])
def test_order(connection: Link, way: str) -> None:
    """What comes first is started first: a higher priority, then an earlier time, then an earlier id."""
    last = enqueue(connection, "mine", scheduled_at="2020-01-02")
    first = enqueue(connection, "more", priority=0 if "goes on" in way else 1, scheduled_at="2020-01-01")
    second = enqueue(connection, "mine", scheduled_at="2020-01-01")
    third = enqueue(connection, "mine", scheduled_at="2020-01-01")
    started = [found for _ in range(4) for found in start(connection, way, last, jobs_max=1)]
    assert started == [first, second, third, last]


# What is there already, and whether a job that is enqueued for this worker may start beside it.
BESIDE: dict[str, tuple[dict[str, Any] | None, bool]] = {
    "nothing": (None, True),
    "a job that is due": ({}, False),
    "a job that is due, of a lower priority": ({"priority": -1}, False),
    "a job that is due, of others": ({"job_type": "others"}, False),
    "a job that is not due": ({"scheduled_at": "2100-01-01"}, True),
    "a job of another queue": ({"queue_name": "elsewhere"}, True),
}


@pytest.mark.parametrize("beside", BESIDE)
def test_statement_that_inserts_it(connection: Link, beside: str) -> None:
    """A job is inserted as running only where nothing of its queue is due; else it is pending."""
    fields, may_start = BESIDE[beside]
    if fields is not None:
        enqueue(connection, **{"job_type": "mine", **fields})
    job_id = JobId(uuid.uuid4())
    statement = "select is_claimed from pgnotifyq.enqueue_claimed(%s, %s, %s, 60, %s, 'default', 'mine', '{}', 0::smallint, 3)"
    assert value(connection, statement, job_id, uuid.uuid4(), ANN, uuid.UUID(int=0)) is may_start
    assert existing(connection, job_id)["status"] == ("running" if may_start else "pending")


@pytest.mark.parametrize("scope", PAUSES)
def test_statement_that_inserts_what_is_paused(connection: Link, scope: str) -> None:
    """The job is pending."""
    fetch(connection, f"select pgnotifyq.pause({PAUSES[scope]})")
    job_id = JobId(uuid.uuid4())
    statement = "select is_claimed from pgnotifyq.enqueue_claimed(%s, %s, %s, 60, %s, 'default', 'mine', '{}', 0::smallint, 3)"
    assert not value(connection, statement, job_id, uuid.uuid4(), ANN, uuid.UUID(int=0))
    assert existing(connection, job_id)["status"] == "pending"


def test_every_way_asks(connection: Link) -> None:
    """What makes a job running asks `may_start`, and is tried here."""
    rows = fetch(
        connection,
        "select proname, prosrc like '%%may_start(%%' from pg_proc where pronamespace = 'pgnotifyq'::regnamespace"
        " and (prosrc ~ %s or prosrc ~ %s)",
        r"set status = 'running'", r"\n\s*'running', 1,",
    )  # fmt: skip
    assert dict(rows) == dict.fromkeys(FUNCTIONS, True)
    asking = fetch(
        connection,
        "select proname from pg_proc where pronamespace = 'pgnotifyq'::regnamespace"
        " and prosrc like '%%pg_try_advisory_xact_lock_shared(%%pauses_lock())%%admit(%%'",
    )
    # claim gives claim_by_type its types.
    assert {name for (name,) in asking} == FUNCTIONS - {"claim_by_type"} | {"claim_apart"}


def test_rule_becomes_part_of_the_statement(connection: Link) -> None:
    """The planner puts its expression in place, so that a look ends where the future begins, and reads no job behind that."""
    with connection.transaction():
        connection.execute("set local enable_seqscan = off; set local enable_bitmapscan = off")
        rows = fetch(
            connection,
            "explain (costs off) select from pgnotifyq.jobs as j where j.is_claimable and j.queue_name = 'default'"
            " and j.priority = 0::smallint and pgnotifyq.may_start(j, array['mine'], false, '2020-01-01')"
            " order by j.queue_name, j.priority desc, j.scheduled_at, j.id",
        )
    plan = [line.strip() for (line,) in rows]
    assert not any("may_start" in line or "Sort" in line for line in plan), plan
    (condition,) = [line for line in plan if line.startswith("Index Cond:")]
    assert "scheduled_at <=" in condition
