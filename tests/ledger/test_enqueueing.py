"""Enqueue by SQL, progress, and the fence of a handler's own transaction."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest

from pgnotifyq.ledger import lease as lease_verbs
from pgnotifyq.ledger.errors import translated
from pgnotifyq.model.errors import InvalidJob
from pgnotifyq.model.outcome import PLAIN_COMPLETION
from pgnotifyq.wire.asking import ask_blocking
from pgnotifyq.wire.blocking import Connection
from tests.ledger.support import (
    BLOCKED,
    BOB,
    ENDINGS,
    SCHEMA,
    at_once,
    claim_one,
    enqueue,
    everything,
    existing,
    fetch,
    lease,
    pass_time,
    reclaim,
    settle,
    until,
    update_status,
    value,
)

Link = Connection[Any]


def test_enqueue_in_the_callers_own_transaction(connection: Link, other: Link) -> None:
    """The job exists if and only if the business write committed."""
    connection.execute("create temporary table orders (id integer)")
    for committed in (False, True):
        with connection.transaction(force_rollback=not committed):
            connection.execute("insert into orders values (1)")
            job_id = enqueue(connection)
            assert fetch(other, "select from pgnotifyq.jobs where id = %s", job_id) == []
        assert fetch(other, "select id from pgnotifyq.jobs") == ([(job_id,)] if committed else [])
        assert value(connection, "select count(*) from orders") == committed


@pytest.mark.parametrize(
    "wrong",
    [
        {"job_type": ""}, {"job_type": "no spaces"}, {"job_type": "x" * 128}, {"job_type": None}, {"queue_name": "-"},
        {"queue_name": "x" * 64}, {"queue_name": "new\nline"}, {"priority": 32768}, {"max_attempts": 0},
        {"max_attempts": 1001}, {"payload": json.dumps("x" * 1_048_576)},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_refused(connection: Link, wrong: dict[str, object]) -> None:
    """Names and numbers out of their bounds are refused with a typed error, and leave nothing."""
    with pytest.raises(InvalidJob), translated(SCHEMA):
        enqueue(connection, **{"job_type": "noop", **wrong})  # type: ignore[arg-type]
    assert value(connection, "select count(*) from pgnotifyq.jobs") == 0


def test_unique_key(connection: Link) -> None:
    """While a job is unfinished its key leads to it; afterwards the key is free."""
    for status in ("completed", "cancelled", "dead"):
        pass_time(connection, 0)
        first = enqueue(connection, unique_key="k")
        assert enqueue(connection, unique_key="k") == first
        job = claim_one(connection)
        assert enqueue(connection, unique_key="k") == first
        settle(connection, job, ENDINGS["retry"])
        pass_time(connection, 10)
        assert enqueue(connection, unique_key="k") == first
        job = claim_one(connection)
        settle(connection, job, ENDINGS[{"completed": "complete", "cancelled": "cancel", "dead": "bury"}[status]])
        second = enqueue(connection, unique_key="k")
        assert second != first
        update_status(connection, second)


def test_unique_key_at_once(connection: Link, other: Link, dsn: str) -> None:
    """Two who enqueue under one key at once get one job."""
    found: list[object] = []

    def enqueue_late() -> None:
        found.append(enqueue(other, unique_key="k"))

    with at_once() as start, connection.transaction():
        found.append(enqueue(connection, unique_key="k"))
        start(enqueue_late)
        until(dsn, BLOCKED, "other")
    assert found[0] == found[1]


def test_progress(connection: Link) -> None:
    """Progress is stored for the execution that holds the job, changes no lease, and is forgotten at the next claim."""
    job_id = enqueue(connection)
    job = claim_one(connection)
    before = existing(connection, job_id)
    assert ask_blocking(connection, lease_verbs.report_progress(SCHEMA, lease(job), fraction=0.5, message="half"))
    after = existing(connection, job_id)
    assert (after["progress"], after["progress_message"]) == (0.5, "half")
    assert after["lease_expires_at"] == before["lease_expires_at"]
    settle(connection, job, ENDINGS["release"])
    claim_one(connection)
    assert existing(connection, job_id)["progress"] is None


def test_progress_of_a_stale_execution(connection: Link) -> None:
    """An execution that lost its job reports nothing of it."""
    enqueue(connection)
    stale = claim_one(connection)
    pass_time(connection, 61)
    reclaim(connection)
    claim_one(connection, worker=BOB)
    before = everything(connection)
    assert not ask_blocking(connection, lease_verbs.report_progress(SCHEMA, lease(stale), fraction=1.0, message="done"))
    assert everything(connection) == before


def test_still_holds(connection: Link) -> None:
    """held, cancelled, lost: the fence of a handler's transaction knows the three."""
    job_id = enqueue(connection)
    job = claim_one(connection)
    assert ask_blocking(connection, lease_verbs.still_holds(SCHEMA, lease(job))) == "held"
    update_status(connection, job_id)
    assert ask_blocking(connection, lease_verbs.still_holds(SCHEMA, lease(job))) == "cancelled"
    settle(connection, job, PLAIN_COMPLETION)
    assert ask_blocking(connection, lease_verbs.still_holds(SCHEMA, lease(job))) == "lost"


def test_still_holds_until_commit(connection: Link, other: Link, dsn: str) -> None:
    """Once a transaction has found that it holds the job, nobody takes the job away before it has committed."""
    job_id = enqueue(connection)
    job = claim_one(connection)
    pass_time(other, 61)
    with at_once() as start, connection.transaction():
        assert ask_blocking(connection, lease_verbs.still_holds(SCHEMA, lease(job))) == "held"
        assert reclaim(other) == {}
        start(update_status, other, job_id)
        until(dsn, BLOCKED, "other")


def test_lease_is_whole(connection: Link) -> None:
    """A row with half a lease, or a running job without one, cannot be stored, not even by hand."""
    enqueue(connection)
    claim_one(connection)
    for column in ("locked_by", "current_execution_id", "lease_expires_at"):
        with pytest.raises(psycopg.errors.CheckViolation):
            connection.execute(f"update pgnotifyq.jobs set {column} = null".encode())
    with pytest.raises(psycopg.errors.CheckViolation):
        connection.execute("update pgnotifyq.jobs set attempts = max_attempts + 1")


# Tries a row, and takes it back: null if the table takes it, else the check that refuses.
TRY = b"""
create function pg_temp.refused_by(
    status text, with_execution boolean, with_worker boolean, with_expiry boolean, with_end boolean, attempts integer,
    max_attempts integer)
returns text language plpgsql as $$
declare
    refused_by text;
begin
    insert into pgnotifyq.jobs
        (job_type, status, current_execution_id, locked_by, lease_expires_at, completed_at, attempts, max_attempts)
    values (
        'noop', status, case when with_execution then gen_random_uuid() end, case when with_worker then gen_random_uuid() end,
        case when with_expiry then now() end, case when with_end then now() end, attempts, max_attempts);
    raise exception using errcode = 'PT001';
exception
    when sqlstate 'PT001' then return null;
    when check_violation then
        get stacked diagnostics refused_by = constraint_name;
        return refused_by;
end
$$"""

EACH_ROW = """
select t.*, pg_temp.refused_by(t.status, t.execution, t.worker, t.expiry, t.ended, t.attempts, t.maximum)
from (
    select s.status, e.*, a.attempts, m.maximum
    from unnest(array['pending', 'running', 'completed', 'cancelled', 'done', '']) as s(status),
        (select e.execution, w.worker, x.expiry, c.ended
         from (values (true), (false)) as e(execution), (values (true), (false)) as w(worker),
            (values (true), (false)) as x(expiry), (values (true), (false)) as c(ended)) as e,
        unnest(array[-1, 0, 2, 3, 1000, 1001]) as a(attempts), unnest(array[null, 3, 1001]) as m(maximum)) as t"""


def test_every_row_there_could_be(connection: Link) -> None:
    """The table takes a row if and only if its status, its lease, its end and its attempts go together."""
    connection.execute(TRY)
    taken = 0
    for status, execution, worker, expiry, ended, attempts, maximum, refused_by in fetch(connection, EACH_ROW):
        most = 1000 if maximum is None else maximum
        wanted = (
            status in {"pending", "running", "completed", "cancelled"}
            and execution == worker == expiry
            and ((status == "running") == execution or status == "cancelled")
            and ended == (status in {"completed", "cancelled"})
            and most <= 1000
            and 0 <= attempts <= most
            and (status != "pending" or attempts < most)
        )
        row = (status, execution, worker, expiry, ended, attempts, maximum)
        assert (refused_by is None) == wanted, (row, refused_by)
        taken += wanted
    assert taken == 33, taken
