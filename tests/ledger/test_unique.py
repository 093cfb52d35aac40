"""Unique keys: who holds one, what follows if it is taken, and who waits for whom."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from pgnotifyq.ledger import bulk, end, explaining
from pgnotifyq.ledger import enqueue as enqueue_verbs
from pgnotifyq.model.errors import InvalidJob, MissingRights, UniqueKeyHeld
from pgnotifyq.model.new_job import NewJob
from pgnotifyq.model.outcome import PLAIN_COMPLETION
from pgnotifyq.model.unique import Unique
from pgnotifyq.wire.asking import ask_blocking
from tests.ledger.support import (
    ANN,
    BOB,
    ENDINGS,
    SCHEMA,
    at_once,
    claim,
    claim_one,
    enqueue,
    existing,
    fetch,
    lease,
    pass_time,
    reclaim,
    row,
    settle,
    tenant_role,
    until,
    update_status,
    value,
)

if TYPE_CHECKING:
    from pgnotifyq.model.job import JobId
    from pgnotifyq.wire.blocking import Connection

    Link = Connection[Any]


def put(connection: Link, payload: object = None, *, job_type: str = "noop", **fields: Any) -> tuple[JobId, str]:
    """Enqueue a job with a `unique`; return its id and what became of its key."""
    settings = {name: fields.pop(name) for name in ("delay_seconds", "priority") if name in fields}
    fields.setdefault("key", None if "by" in fields else "k")
    job = NewJob(job_type=job_type, payload=payload or {}, unique=Unique(**fields), **settings)
    told = ask_blocking(connection, enqueue_verbs.enqueue_told(SCHEMA, job))
    return told.job_id, str(told.outcome)


def put_many(connection: Link, *jobs: NewJob) -> list[tuple[JobId, str]]:
    """Enqueue jobs in bulk; return their ids and outcomes."""
    told = ask_blocking(connection, bulk.enqueue_many_told(SCHEMA, jobs))
    return [(one.job_id, str(one.outcome)) for one in told]


def keyed(key: str = "k", payload: object = None, **fields: Any) -> NewJob:
    """Make a job that is unique."""
    return NewJob(job_type="noop", payload=payload or {}, unique=Unique(key=key, **fields))


def test_kept_until_it_has_ended(connection: Link) -> None:
    """A job holds its key while it waits and runs; then the key is free."""
    first, outcome = put(connection)
    assert outcome == "created"
    assert put(connection) == (first, "kept")
    job = claim_one(connection)
    assert put(connection) == (first, "kept")
    settle(connection, job, ENDINGS["retry"])
    assert put(connection) == (first, "kept")
    pass_time(connection, 60)
    settle(connection, claim_one(connection), PLAIN_COMPLETION)
    second, outcome = put(connection)
    assert (outcome, second != first) == ("created", True)


def test_held_while_pending_only(connection: Link) -> None:
    """With `pending` the key is free once the job has started, and does not come back to it."""
    first, _ = put(connection, while_="pending")
    assert put(connection, while_="pending") == (first, "kept")
    job = claim_one(connection)
    second, outcome = put(connection, while_="pending")
    assert outcome == "created"
    for ending in ("retry", "snooze", "release"):
        assert settle(connection, job, ENDINGS[ending]) is None, "another job has the key, and it goes back all the same"
        connection.execute("update pgnotifyq.jobs set scheduled_at = now() - interval '1 h' where id = %s", (first,))
        job = claim_one(connection)
        assert job.id == first
    assert put(connection, while_="pending") == (second, "kept")


def test_held_for_a_period(connection: Link) -> None:
    """With `for_seconds` the key is held for so long, also beyond the job's end, and not longer."""
    first, _ = put(connection, for_seconds=60)
    settle(connection, claim_one(connection), PLAIN_COMPLETION)
    assert put(connection, for_seconds=60) == (first, "kept")
    pass_time(connection, 61)
    second, outcome = put(connection, for_seconds=60)
    assert (outcome, second != first) == ("created", True)
    claim_one(connection)
    pass_time(connection, 122)
    third, outcome = put(connection, for_seconds=60)
    assert outcome == "created", "its period is over, though it runs"
    assert len({first, second, third}) == 3


def test_pruning_spares_a_period(connection: Link) -> None:
    """A job that has ended is not pruned while it holds its key."""
    first, _ = put(connection, for_seconds=600)
    settle(connection, claim_one(connection), PLAIN_COMPLETION)
    pass_time(connection, 500)
    fetch(connection, "select * from pgnotifyq.prune(10, null, 1000)")
    assert put(connection, for_seconds=600) == (first, "kept")
    pass_time(connection, 601)
    fetch(connection, "select * from pgnotifyq.prune(10, null, 1000)")
    assert row(connection, first) is None


@pytest.mark.parametrize("was", ["pending", "running"])
def test_cancelled_within_its_period(connection: Link, was: str) -> None:
    """A job that is cancelled gives up its period."""
    first, _ = put(connection, for_seconds=60)
    if was == "running":
        job = claim_one(connection)
    update_status(connection, first)
    if was == "running":
        settle(connection, job, ENDINGS["cancel"])
    assert (put(connection, for_seconds=60))[1] == "created"


def test_replaced(connection: Link) -> None:
    """A job that waits gets what is named of the new one, and keeps the rest."""
    first, _ = put(connection, {"n": 1}, delay_seconds=10, priority=1)
    told = put(connection, {"n": 2}, delay_seconds=99, priority=2, on_conflict="replace", replace=("payload",))
    assert told == (first, "replaced")
    found = existing(connection, first)
    assert (found["payload"], found["priority"]) == ({"n": 2}, 1)
    assert put(connection, {"n": 3}, priority=3, on_conflict="replace") == (first, "replaced")
    found = existing(connection, first)
    assert (found["payload"], found["priority"]) == ({"n": 3}, 3)
    job = claim_one(connection)
    assert job.payload == {"n": 3}
    assert put(connection, {"n": 4}, on_conflict="replace") == (first, "kept"), "it runs"
    assert existing(connection, first)["payload"] == {"n": 3}


def test_replaced_with_a_time(connection: Link) -> None:
    """A job whose time is replaced is due when the new one says, if no longest wait bounds that."""
    first, _ = put(connection, delay_seconds=10)
    assert put(connection, delay_seconds=600, on_conflict="replace") == (first, "replaced")
    due = "select scheduled_at > clock_timestamp() + interval '500 s' from pgnotifyq.jobs"
    assert value(connection, due)


def test_debounced_with_a_longest_wait(connection: Link) -> None:
    """Each enqueue puts the job off, but not beyond its longest wait."""
    unique: dict[str, Any] = {"while_": "pending", "on_conflict": "replace", "longest_wait_seconds": 30}
    due = "extract(epoch from scheduled_at - created_at)::integer"
    pass_time(connection, 0)
    first, _ = put(connection, {"n": 1}, delay_seconds=20, **unique)
    for passed, wanted in ((5, 25), (9, 29), (25, 30), (31, 31)):
        connection.execute(
            "select set_config('pgnotifyq.clock', (created_at + make_interval(secs => %s))::text, false) from pgnotifyq.jobs",
            (passed,),
        )
        assert put(connection, {"n": passed}, delay_seconds=20, **unique) == (first, "replaced")
        assert fetch(connection, f"select {due}, payload->'n' from pgnotifyq.jobs") == [(wanted, passed)]


def test_refused(connection: Link) -> None:
    """The caller is told who holds the key, and its transaction goes on."""
    first, _ = put(connection)
    with connection.transaction():
        with pytest.raises(UniqueKeyHeld, match=str(first)) as told:
            put(connection, on_conflict="refuse")
        assert told.value.job_id == first
        put(connection, key="another", on_conflict="refuse")
    assert value(connection, "select count(*) from pgnotifyq.jobs") == 2


def test_pending_job_superseded(connection: Link) -> None:
    """A job that waits is cancelled, and the new one is due at once."""
    first, _ = put(connection)
    second, outcome = put(connection, on_conflict="supersede")
    assert outcome == "superseded"
    found = existing(connection, first)
    assert (found["status"], found["error_message"]) == ("cancelled", f"superseded by {second}")
    assert claim_one(connection).id == second


STOPS = ["cancel", "complete plainly", "complete", "retry", "snooze", "release", "bury", "reclaim"]


@pytest.mark.parametrize("stop", STOPS)
def test_running_job_superseded(connection: Link, stop: str) -> None:
    """The new job starts when the other's handler has ended, in whatever way."""
    first, _ = put(connection)
    job = claim_one(connection)
    second, outcome = put(connection, on_conflict="supersede")
    assert outcome == "superseded"
    found = existing(connection, first)
    assert (found["status"], found["is_held"], found["error_message"]) == ("cancelled", True, f"superseded by {second}")
    assert claim(connection) == [], "the other's handler has not ended"
    assert put(connection) == (second, "kept"), "the new one holds the key while it waits"
    if stop == "reclaim":
        pass_time(connection, 61)
        assert reclaim(connection) == {first: "cancelled"}
    else:
        settle(connection, job, ENDINGS[stop])
    assert existing(connection, first)["status"] == "cancelled"
    assert claim_one(connection).id == second


def test_successor_superseded(connection: Link) -> None:
    """Of several that supersede, the last one runs, after the first has ended."""
    first, _ = put(connection)
    job = claim_one(connection)
    ids = [(put(connection, {"n": n}, on_conflict="supersede"))[0] for n in range(3)]
    assert claim(connection) == []
    settle(connection, job, ENDINGS["cancel"])
    assert [existing(connection, one)["status"] for one in ids] == ["cancelled", "cancelled", "pending"]
    last = claim_one(connection)
    assert (last.id, last.payload) == (ids[2], {"n": 2})
    assert first not in ids


def test_successor_with_a_time_of_its_own(connection: Link) -> None:
    """A successor that is due later is due then; so is one that was edited while it waits."""
    put(connection)
    job = claim_one(connection)
    second, _ = put(connection, delay_seconds=600, on_conflict="supersede")
    assert value(connection, "select pgnotifyq.edit(%s, delay_seconds => 0)", second) == "edited"
    assert claim(connection) == [], "the other's handler has not ended"
    assert value(connection, "select pgnotifyq.edit(%s, delay_seconds => 300)", second) == "edited"
    settle(connection, job, ENDINGS["cancel"])
    assert claim(connection) == []
    pass_time(connection, 301)
    assert claim_one(connection).id == second


@pytest.mark.parametrize("on_conflict", ["keep", "replace", "refuse", "supersede"])
def test_key_of_a_job_that_is_stopping(connection: Link, on_conflict: str) -> None:
    """Whatever is on conflict: a job that was cancelled gives up its key, and the new one waits for its end."""
    first, _ = put(connection)
    job = claim_one(connection)
    update_status(connection, first)
    second, outcome = put(connection, on_conflict=on_conflict)
    assert outcome == "created"
    assert claim(connection) == []
    settle(connection, job, ENDINGS["cancel"])
    assert claim_one(connection).id == second


def test_successor_cancelled(connection: Link) -> None:
    """If the one that waits is cancelled, the next waits in its place."""
    put(connection)
    job = claim_one(connection)
    second, _ = put(connection, on_conflict="supersede")
    update_status(connection, second)
    third, outcome = put(connection)
    assert outcome == "created"
    assert claim(connection) == []
    settle(connection, job, ENDINGS["cancel"])
    assert claim_one(connection).id == third


@pytest.mark.parametrize("n", range(2))
def test_by_fields(connection: Link, n: int) -> None:
    """The fields named make the key, and their order and the rest of the payload do not matter."""
    by = [("path", "size"), ("size", "path")][n]
    first, _ = put(connection, {"path": "a", "size": [1, {"x": 2}], "n": 1}, by=("path", "size"))
    assert put(connection, {"n": 2, "size": [1, {"x": 2}], "path": "a"}, by=by) == (first, "kept")
    assert (put(connection, {"path": "b", "size": [1, {"x": 2}]}, by=by))[1] == "created"
    assert (put(connection, {"path": "a", "size": 1}, by=by))[1] == "created"
    assert "path" not in existing(connection, first)["unique_key"], "the key tells nothing of the payload"
    with pytest.raises(InvalidJob, match="no field 'size'"):
        put(connection, {"path": "a"}, by=by)


def test_by_the_whole_payload(connection: Link) -> None:
    """With True, equal payloads are one job."""
    first, _ = put(connection, {"a": 1, "b": [2]}, by=True)
    assert put(connection, {"b": [2], "a": 1}, by=True) == (first, "kept")
    assert (put(connection, {"b": [2], "a": 1, "c": None}, by=True))[1] == "created"


def test_scopes(connection: Link) -> None:
    """A key is the type's; a global one is that of all types of the tenant; both are the tenant's."""
    first, _ = put(connection)
    assert (put(connection, job_type="other"))[1] == "created"
    third, outcome = put(connection, scope="global")
    assert outcome == "created"
    assert put(connection, job_type="other", scope="global") == (third, "kept")
    job = NewJob(job_type="noop", org_id=ANN, unique=Unique(key="k"))  # type: ignore[arg-type]  # some uuid
    assert (ask_blocking(connection, enqueue_verbs.enqueue_told(SCHEMA, job))).outcome == "created"
    assert put(connection) == (first, "kept")


def test_key_of_a_dead_job(connection: Link) -> None:
    """A job that dies frees its key. It comes back with it, if the key is free then."""
    first, _ = put(connection, while_="pending")
    settle(connection, claim_one(connection), ENDINGS["bury"])
    second, outcome = put(connection, while_="pending")
    assert outcome == "created"
    with pytest.raises(UniqueKeyHeld):
        ask_blocking(connection, end.requeue(SCHEMA, first))
    assert value(connection, "select pgnotifyq.requeue_all()") == 0
    assert claim_one(connection).id == second
    assert ask_blocking(connection, end.requeue(SCHEMA, first))
    assert put(connection, while_="pending") == (first, "kept")


def test_requeued_beside_a_job_that_is_stopping(connection: Link) -> None:
    """A dead letter that comes back waits for the end of one that was cancelled."""
    first, _ = put(connection)
    settle(connection, claim_one(connection), ENDINGS["bury"])
    second, _ = put(connection)
    job = claim_one(connection)
    update_status(connection, second)
    assert ask_blocking(connection, end.requeue(SCHEMA, first))
    assert claim(connection) == []
    settle(connection, job, ENDINGS["cancel"])
    assert claim_one(connection).id == first


def test_reclaimed_job_holds_its_key(connection: Link) -> None:
    """A job whose lease ran out waits again, and has held its key all the time."""
    first, _ = put(connection)
    claim_one(connection)
    pass_time(connection, 61)
    assert put(connection) == (first, "kept")
    assert reclaim(connection) == {first: "pending"}
    assert put(connection) == (first, "kept")


def test_bulk(connection: Link) -> None:
    """Each job of a batch is told its outcome, in the order given; of a batch's own duplicates, too."""
    first, _ = put(connection, key="b")
    (a, b, c, d, e, plain) = put_many(
        connection, keyed("a", {"n": 1}), keyed("b"), keyed("a"), keyed("a", {"n": 2}, on_conflict="replace"),
        keyed("b", on_conflict="supersede"), NewJob(job_type="noop"),
    )  # fmt: skip
    assert [one[1] for one in (a, b, c, d, e, plain)] == ["created", "kept", "kept", "replaced", "superseded", "created"]
    assert (b[0], c[0], d[0]) == (first, a[0], a[0])
    assert existing(connection, a[0])["payload"] == {"n": 2}
    assert existing(connection, first)["error_message"] == f"superseded by {e[0]}"
    assert value(connection, "select count(*) from pgnotifyq.jobs where is_claimable") == 3


def test_bulk_refused(connection: Link) -> None:
    """If one of a batch is refused, none is there."""
    first, _ = put(connection, key="z")
    with pytest.raises(UniqueKeyHeld, match=str(first)):
        put_many(connection, NewJob(job_type="noop"), keyed("a"), keyed("z", on_conflict="refuse"))
    assert value(connection, "select count(*) from pgnotifyq.jobs") == 1


def test_large_bulk(connection: Link) -> None:
    """A batch that is copied as far as it can be is told the same, in order."""
    jobs = [NewJob(job_type="noop") if n % 3 == 0 else keyed(f"key {n // 6}") for n in range(600)]
    told = put_many(connection, *jobs)
    outcomes = [outcome for _, outcome in told]
    assert outcomes[:6] == ["created", "created", "kept", "created", "kept", "kept"]
    assert outcomes == outcomes[:6] * 100
    assert len({job_id for job_id, _ in told}) == 300


def test_by_sql(connection: Link) -> None:
    """The function for SQL says the same, and makes the same keys."""
    first, _ = put(connection, {"path": "a", "n": 1}, by=("path",))
    same = enqueue(connection, payload=json.dumps({"path": "a", "n": 2}), unique_by=["path"], unique_on_conflict="replace")
    assert same == first
    assert existing(connection, first)["payload"] == {"path": "a", "n": 2}
    with pytest.raises(psycopg.errors.UniqueViolation, match=str(first)):
        enqueue(connection, payload=json.dumps({"path": "a"}), unique_by=["path"], unique_on_conflict="refuse")
    assert enqueue(connection, payload="{}", unique_by=[]) == (put(connection, {}, by=True))[0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"unique_while": "pending"}, {"unique_key": "k", "unique_by": ["a"]}, {"unique_key": "k", "unique_while": "x"},
        {"unique_key": "k", "unique_scope": "x"}, {"unique_key": "k", "unique_on_conflict": "x"},
        {"unique_key": "k", "unique_for_seconds": 0}, {"unique_key": "k", "unique_for_seconds": 9e9},
        {"unique_key": "k", "unique_for_seconds": 1, "unique_while": "pending"}, {"unique_key": "k", "unique_replace": ["x"]},
        {"unique_key": "k", "unique_replace": []}, {"unique_key": "k", "unique_longest_wait_seconds": -1},
        {"unique_by": ["missing"]},
    ],
    ids=str,
)  # fmt: skip
def test_what_sql_refuses(connection: Link, wrong: dict[str, Any]) -> None:
    """What a client would refuse, the function for SQL refuses too."""
    with pytest.raises(psycopg.Error) as told:
        enqueue(connection, **wrong)
    assert told.value.sqlstate == "PNQ02"


@pytest.mark.parametrize(
    "wrong",
    [
        {}, {"key": "k", "by": True}, {"key": ""}, {"key": "x" * 513}, {"key": "\0"}, {"by": "path"}, {"by": ()},
        {"by": (1,)}, {"key": "k", "while_": "x"}, {"key": "k", "scope": "x"}, {"key": "k", "on_conflict": "x"},
        {"key": "k", "replace": ()}, {"key": "k", "replace": "payload"}, {"key": "k", "replace": ("x",)},
        {"key": "k", "for_seconds": 0}, {"key": "k", "for_seconds": True}, {"key": "k", "for_seconds": float("nan")},
        {"key": "k", "for_seconds": 1, "while_": "pending"}, {"key": "k", "longest_wait_seconds": 1},
        {"key": "k", "longest_wait_seconds": 1, "on_conflict": "replace", "replace": ("payload",)},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_refused(wrong: dict[str, Any]) -> None:
    """A `unique` that makes no sense is refused when it is made."""
    with pytest.raises(InvalidJob):
        Unique(**wrong)


def test_key_passes_within_an_open_transaction(connection: Link, other: Link) -> None:
    """A holder that another transaction replaces neither starts nor ends before that commits."""
    first, _ = put(connection, {"n": 1})
    with other.transaction():
        assert put(other, {"n": 2}, on_conflict="replace") == (first, "replaced")
        assert claim(connection) == []
    job = claim_one(connection)
    assert job.payload == {"n": 2}
    assert lease(job)


def test_end_of_the_holder_waits_for_who_supersedes_it(connection: Link, other: Link, dsn: str) -> None:
    """If the handler ends while the new job is not committed, the new one starts all the same."""
    put(connection)
    job = claim_one(connection)
    with at_once() as start, other.transaction():
        second, _ = put(other, on_conflict="supersede")
        start(settle, connection, job, PLAIN_COMPLETION)
        until(dsn, "exists (select from pg_locks where not granted)")
    assert existing(connection, job.id)["status"] == "cancelled"
    assert claim_one(connection).id == second


def test_holder_that_is_deleted_while_it_runs(connection: Link) -> None:
    """Whoever deletes it: the job that waits for its end is due, and does not wait for ever."""
    put(connection)
    first = claim_one(connection)
    second, outcome = put(connection, on_conflict="supersede")
    assert outcome == "superseded"
    connection.execute("delete from pgnotifyq.jobs where id = %s", (first.id,))
    assert claim_one(connection).id == second


@pytest.mark.parametrize("is_cancelled", [False, True])
def test_successor_that_is_deleted(connection: Link, is_cancelled: bool) -> None:
    """The next one of the key waits for the same handler, as the one that was deleted did."""
    put(connection)
    job = claim_one(connection)
    second, _ = put(connection, on_conflict="supersede")
    if is_cancelled:
        update_status(connection, second)
    connection.execute("delete from pgnotifyq.jobs where id = %s", (second,))
    third, outcome = put(connection)
    assert outcome == "created"
    assert claim(connection) == [], "the handler of the first has not ended"
    settle(connection, job, ENDINGS["cancel"])
    assert claim_one(connection).id == third


def test_last_successor_that_is_deleted(connection: Link) -> None:
    """If none comes after it, the key is free as soon as the handler has ended."""
    put(connection)
    job = claim_one(connection)
    second, _ = put(connection, on_conflict="supersede")
    connection.execute("delete from pgnotifyq.jobs where id = %s", (second,))
    settle(connection, job, ENDINGS["cancel"])
    third, outcome = put(connection)
    assert outcome == "created"
    assert claim_one(connection).id == third


def test_requeue_beside_who_takes_the_same_keys(connection: Link, other: Link, dsn: str) -> None:
    """It takes keys in their order, as a bulk does, and not in that of the deaths: one of the two waits, and none deadlocks."""
    letters = {}
    for key in ("b", "a"):  # requeued in this order: that of their deaths
        letters[key], _ = put(connection, key=key)
        settle(connection, claim_one(connection), ENDINGS["bury"])
    free, _ = put(connection, key="c")
    settle(connection, claim_one(connection), ENDINGS["bury"])
    restored: list[int] = []

    def requeue() -> None:
        restored.append(value(connection, "select pgnotifyq.requeue_all()"))

    with at_once() as start, other.transaction():
        put(other, key="a")
        start(requeue)
        until(dsn, "exists (select from pg_locks where not granted)")
        put(other, key="b")
    assert restored == [1]
    assert fetch(connection, "select id from pgnotifyq.dead_letter_jobs order by unique_key desc") == [
        (letters["b"],),
        (letters["a"],),
    ]
    assert put(connection, key="c") == (free, "kept")


def test_explained(connection: Link) -> None:
    """Somebody who asks is told which job the new one waits for, and when it is due then."""
    first, _ = put(connection)
    claim_one(connection)
    second, _ = put(connection, delay_seconds=600, on_conflict="supersede")
    found = ask_blocking(connection, explaining.explain(SCHEMA, second))
    assert (found.label, found.answers) == ("scheduled", ["after_holder", "no_worker"])
    assert found.waits_for == first
    assert found.sentences[0].startswith(f"It waits until job {first} has ended, which had its unique key and was cancelled")
    assert "10 min" in found.sentences[0]


def test_heap_only_updates(connection: Link) -> None:
    """Renewals and progress of a job with a key stay heap-only updates, as of one without."""
    put(connection)
    job = claim_one(connection)
    connection.execute("analyze pgnotifyq.jobs")
    hot = "pg_stat_get_xact_tuples_hot_updated('pgnotifyq.jobs'::regclass)"
    with connection.transaction():
        before = value(connection, f"select {hot}")
        connection.execute("update pgnotifyq.jobs set lease_expires_at = now(), progress = 0.5 where id = %s", (job.id,))
        assert value(connection, f"select {hot}") == before + 1


def test_tenants_do_not_meet(connection: Link) -> None:
    """A tenant's transaction keeps, replaces and supersedes its own jobs; the same key of another is not touched."""
    role = tenant_role(connection)
    others = {org: enqueue(connection, unique_key="k", org_id=org, payload=json.dumps({"n": 0})) for org in (ANN, BOB)}
    said = "select pgnotifyq.enqueue('noop', '{\"n\": 1}', %s, unique_key => 'k', unique_on_conflict => %s)"
    for on_conflict in ("keep", "replace", "supersede"):
        with connection.transaction():
            connection.execute("select set_config('pgnotifyq.org_id', %s, true)", (str(ANN),))
            connection.execute(f"set local role {role}".encode())
            told = value(connection, said, ANN, on_conflict)
            assert (told == others[ANN]) == (on_conflict != "supersede")
            with pytest.raises(psycopg.errors.InsufficientPrivilege), connection.transaction():
                connection.execute(said.encode(), (BOB, on_conflict))
            for asked in (
                "select became from pgnotifyq.pass_key(%s, 'noop', 'k', 'supersede')",
                "select pgnotifyq.lock_keys(array[%s::uuid], array['noop'], array['k'])",
                (
                    "select pgnotifyq.pass_keys(array[1], array[gen_random_uuid()], array[%s::uuid], array['noop'], array['k'], null, null,"
                    " null, null)"
                ),
            ):
                refused = pytest.raises(psycopg.errors.InsufficientPrivilege, match="not the one of this transaction")
                with refused, connection.transaction():
                    connection.execute(asked.encode(), (BOB,))
            connection.execute("select set_config('pgnotifyq.org_id', '', true)")
            with pytest.raises(psycopg.errors.InsufficientPrivilege), connection.transaction():
                connection.execute(asked.encode(), (ANN,))
    assert existing(connection, others[ANN])["status"] == "cancelled"
    untouched = existing(connection, others[BOB])
    assert (untouched["status"], untouched["payload"], untouched["key_passed_on"]) == ("pending", {"n": 0}, None)


def test_producer_takes_only_what_it_enqueued(connection: Link) -> None:
    """A producer is told who has its key, and may not replace or supersede what another role enqueued."""
    role = f"producer_{uuid.uuid4().hex[:8]}"
    connection.execute(f"create role {role}".encode())
    try:
        connection.execute("select pgnotifyq.grant_role('producer', %s)", (role,))
        connection.execute("select pgnotifyq.keep_roles()")
        connection.execute(f"grant {role} to current_user".encode())
        first, _ = put(connection)
        connection.execute(f"set role {role}".encode())
        assert put(connection) == (first, "kept")
        for on_conflict in ("replace", "supersede"):
            with pytest.raises(MissingRights, match="which another role enqueued"):
                put(connection, on_conflict=on_conflict)
        mine, _ = put(connection, key="mine")
        assert put(connection, {"n": 1}, key="mine", on_conflict="replace") == (mine, "replaced")
        assert (put(connection, key="mine", on_conflict="supersede"))[1] == "superseded"
        many = put_many(connection, keyed("mine"), keyed("k"), keyed("new"))
        assert [outcome for _, outcome in many] == ["kept", "kept", "created"]
        for on_conflict in ("replace", "supersede"):
            own = [keyed(f"own {n}", {"by": on_conflict}, on_conflict=on_conflict) for n in range(9)]
            put_many(connection, *own)
            assert {outcome for _, outcome in put_many(connection, *own)} == {f"{on_conflict}d"}
            with pytest.raises(MissingRights, match="which another role enqueued"):
                put_many(connection, *own, keyed("k", on_conflict=on_conflict))
    finally:
        connection.execute("reset role")
        connection.execute(f"drop owned by {role}".encode())
        connection.execute("delete from pgnotifyq.roles where role_name = %s", (role,))
        connection.execute(f"drop role {role}".encode())


@pytest.mark.parametrize("count", [1, 3])
def test_trigger_that_leaves_the_job_out(connection: Link, count: int) -> None:
    """It is told of, alone and in a bulk. It looked as if somebody took the key and let it go, and was waited for without end."""
    jobs = [NewJob(job_type="noop", unique=Unique(key=f"k{number}")) for number in range(count)]
    connection.execute(
        "create function pg_temp.leave_out() returns trigger language plpgsql as $$ begin return null; end $$;"
        "create trigger leave_out before insert on pgnotifyq.jobs for each row execute function pg_temp.leave_out();"
        "set statement_timeout = '10s'"
    )
    try:
        with pytest.raises(InvalidJob, match="trigger of yours"):
            ask_blocking(connection, bulk.enqueue_many_told(SCHEMA, jobs))
    finally:
        connection.execute("drop trigger leave_out on pgnotifyq.jobs")
    assert fetch(connection, "select from pgnotifyq.jobs") == []
