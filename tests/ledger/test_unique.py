"""Unique keys: who holds one, what follows if it is taken, and who waits for whom."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import trio

from pgnotifyq.ledger import bulk, end, explaining
from pgnotifyq.ledger import enqueue as enqueue_verbs
from pgnotifyq.model.errors import InvalidJob, MissingRights, UniqueKeyHeld
from pgnotifyq.model.new_job import NewJob
from pgnotifyq.model.outcome import PLAIN_COMPLETION
from pgnotifyq.model.unique import Unique
from pgnotifyq.wire.asking import ask
from tests.ledger.support import (
    ANN,
    BOB,
    ENDINGS,
    SCHEMA,
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
    update_status,
    value,
)
from tests.proxy import until

if TYPE_CHECKING:
    from pgnotifyq.model.job import JobId
    from pgnotifyq.wire.connection import Connection

    Link = Connection[Any]


async def put(connection: Link, payload: object = None, *, job_type: str = "noop", **fields: Any) -> tuple[JobId, str]:
    """Enqueue a job with a `unique`; return its id and what became of its key."""
    settings = {name: fields.pop(name) for name in ("delay_seconds", "priority") if name in fields}
    fields.setdefault("key", None if "by" in fields else "k")
    job = NewJob(job_type=job_type, payload=payload or {}, unique=Unique(**fields), **settings)
    told = await ask(connection, enqueue_verbs.enqueue_told(SCHEMA, job))
    return told.job_id, str(told.outcome)


async def put_many(connection: Link, *jobs: NewJob) -> list[tuple[JobId, str]]:
    """Enqueue jobs in bulk; return their ids and outcomes."""
    told = await ask(connection, bulk.enqueue_many_told(SCHEMA, jobs))
    return [(one.job_id, str(one.outcome)) for one in told]


def keyed(key: str = "k", payload: object = None, **fields: Any) -> NewJob:
    """Make a job that is unique."""
    return NewJob(job_type="noop", payload=payload or {}, unique=Unique(key=key, **fields))


async def test_kept_until_it_has_ended(connection: Link) -> None:
    """A job holds its key while it waits and runs; then the key is free."""
    first, outcome = await put(connection)
    assert outcome == "created"
    assert await put(connection) == (first, "kept")
    job = await claim_one(connection)
    assert await put(connection) == (first, "kept")
    await settle(connection, job, ENDINGS["retry"])
    assert await put(connection) == (first, "kept")
    await pass_time(connection, 60)
    await settle(connection, await claim_one(connection), PLAIN_COMPLETION)
    second, outcome = await put(connection)
    assert (outcome, second != first) == ("created", True)


async def test_held_while_pending_only(connection: Link) -> None:
    """With `pending` the key is free once the job has started, and does not come back to it."""
    first, _ = await put(connection, while_="pending")
    assert await put(connection, while_="pending") == (first, "kept")
    job = await claim_one(connection)
    second, outcome = await put(connection, while_="pending")
    assert outcome == "created"
    for ending in ("retry", "snooze", "release"):
        assert await settle(connection, job, ENDINGS[ending]) is None, "another job has the key, and it goes back all the same"
        await connection.execute("update pgnotifyq.jobs set scheduled_at = now() - interval '1 h' where id = %s", (first,))
        job = await claim_one(connection)
        assert job.id == first
    assert await put(connection, while_="pending") == (second, "kept")


async def test_held_for_a_period(connection: Link) -> None:
    """With `for_seconds` the key is held for so long, also beyond the job's end, and not longer."""
    first, _ = await put(connection, for_seconds=60)
    await settle(connection, await claim_one(connection), PLAIN_COMPLETION)
    assert await put(connection, for_seconds=60) == (first, "kept")
    await pass_time(connection, 61)
    second, outcome = await put(connection, for_seconds=60)
    assert (outcome, second != first) == ("created", True)
    await claim_one(connection)
    await pass_time(connection, 122)
    third, outcome = await put(connection, for_seconds=60)
    assert outcome == "created", "its period is over, though it runs"
    assert len({first, second, third}) == 3


async def test_pruning_spares_a_period(connection: Link) -> None:
    """A job that has ended is not pruned while it holds its key."""
    first, _ = await put(connection, for_seconds=600)
    await settle(connection, await claim_one(connection), PLAIN_COMPLETION)
    await pass_time(connection, 500)
    await fetch(connection, "select * from pgnotifyq.prune(10, null, 1000)")
    assert await put(connection, for_seconds=600) == (first, "kept")
    await pass_time(connection, 601)
    await fetch(connection, "select * from pgnotifyq.prune(10, null, 1000)")
    assert await row(connection, first) is None


@pytest.mark.parametrize("was", ["pending", "running"])
async def test_cancelled_within_its_period(connection: Link, was: str) -> None:
    """A job that is cancelled gives up its period."""
    first, _ = await put(connection, for_seconds=60)
    if was == "running":
        job = await claim_one(connection)
    await update_status(connection, first)
    if was == "running":
        await settle(connection, job, ENDINGS["cancel"])
    assert (await put(connection, for_seconds=60))[1] == "created"


async def test_replaced(connection: Link) -> None:
    """A job that waits gets what is named of the new one, and keeps the rest."""
    first, _ = await put(connection, {"n": 1}, delay_seconds=10, priority=1)
    told = await put(connection, {"n": 2}, delay_seconds=99, priority=2, on_conflict="replace", replace=("payload",))
    assert told == (first, "replaced")
    found = await existing(connection, first)
    assert (found["payload"], found["priority"]) == ({"n": 2}, 1)
    assert await put(connection, {"n": 3}, priority=3, on_conflict="replace") == (first, "replaced")
    found = await existing(connection, first)
    assert (found["payload"], found["priority"]) == ({"n": 3}, 3)
    job = await claim_one(connection)
    assert job.payload == {"n": 3}
    assert await put(connection, {"n": 4}, on_conflict="replace") == (first, "kept"), "it runs"
    assert (await existing(connection, first))["payload"] == {"n": 3}


async def test_replaced_with_a_time(connection: Link) -> None:
    """A job whose time is replaced is due when the new one says, if no longest wait bounds that."""
    first, _ = await put(connection, delay_seconds=10)
    assert await put(connection, delay_seconds=600, on_conflict="replace") == (first, "replaced")
    due = "select scheduled_at > clock_timestamp() + interval '500 s' from pgnotifyq.jobs"
    assert await value(connection, due)


async def test_debounced_with_a_longest_wait(connection: Link) -> None:
    """Each enqueue puts the job off, but not beyond its longest wait."""
    unique: dict[str, Any] = {"while_": "pending", "on_conflict": "replace", "longest_wait_seconds": 30}
    due = "extract(epoch from scheduled_at - created_at)::integer"
    await pass_time(connection, 0)
    first, _ = await put(connection, {"n": 1}, delay_seconds=20, **unique)
    for passed, wanted in ((5, 25), (9, 29), (25, 30), (31, 31)):
        await connection.execute(
            "select set_config('pgnotifyq.clock', (created_at + make_interval(secs => %s))::text, false) from pgnotifyq.jobs",
            (passed,),
        )
        assert await put(connection, {"n": passed}, delay_seconds=20, **unique) == (first, "replaced")
        assert await fetch(connection, f"select {due}, payload->'n' from pgnotifyq.jobs") == [(wanted, passed)]


async def test_refused(connection: Link) -> None:
    """The caller is told who holds the key, and its transaction goes on."""
    first, _ = await put(connection)
    async with connection.transaction():
        with pytest.raises(UniqueKeyHeld, match=str(first)) as told:
            await put(connection, on_conflict="refuse")
        assert told.value.job_id == first
        await put(connection, key="another", on_conflict="refuse")
    assert await value(connection, "select count(*) from pgnotifyq.jobs") == 2


async def test_pending_job_superseded(connection: Link) -> None:
    """A job that waits is cancelled, and the new one is due at once."""
    first, _ = await put(connection)
    second, outcome = await put(connection, on_conflict="supersede")
    assert outcome == "superseded"
    found = await existing(connection, first)
    assert (found["status"], found["error_message"]) == ("cancelled", f"superseded by {second}")
    assert (await claim_one(connection)).id == second


STOPS = ["cancel", "complete plainly", "complete", "retry", "snooze", "release", "bury", "reclaim"]


@pytest.mark.parametrize("stop", STOPS)
async def test_running_job_superseded(connection: Link, stop: str) -> None:
    """The new job starts when the other's handler has ended, in whatever way."""
    first, _ = await put(connection)
    job = await claim_one(connection)
    second, outcome = await put(connection, on_conflict="supersede")
    assert outcome == "superseded"
    found = await existing(connection, first)
    assert (found["status"], found["is_held"], found["error_message"]) == ("cancelled", True, f"superseded by {second}")
    assert await claim(connection) == [], "the other's handler has not ended"
    assert await put(connection) == (second, "kept"), "the new one holds the key while it waits"
    if stop == "reclaim":
        await pass_time(connection, 61)
        assert await reclaim(connection) == {first: "cancelled"}
    else:
        await settle(connection, job, ENDINGS[stop])
    assert (await existing(connection, first))["status"] == "cancelled"
    assert (await claim_one(connection)).id == second


async def test_successor_superseded(connection: Link) -> None:
    """Of several that supersede, the last one runs, after the first has ended."""
    first, _ = await put(connection)
    job = await claim_one(connection)
    ids = [(await put(connection, {"n": n}, on_conflict="supersede"))[0] for n in range(3)]
    assert await claim(connection) == []
    await settle(connection, job, ENDINGS["cancel"])
    assert [(await existing(connection, one))["status"] for one in ids] == ["cancelled", "cancelled", "pending"]
    last = await claim_one(connection)
    assert (last.id, last.payload) == (ids[2], {"n": 2})
    assert first not in ids


async def test_successor_with_a_time_of_its_own(connection: Link) -> None:
    """A successor that is due later is due then; so is one that was edited while it waits."""
    await put(connection)
    job = await claim_one(connection)
    second, _ = await put(connection, delay_seconds=600, on_conflict="supersede")
    assert await value(connection, "select pgnotifyq.edit(%s, delay_seconds => 0)", second) == "edited"
    assert await claim(connection) == [], "the other's handler has not ended"
    assert await value(connection, "select pgnotifyq.edit(%s, delay_seconds => 300)", second) == "edited"
    await settle(connection, job, ENDINGS["cancel"])
    assert await claim(connection) == []
    await pass_time(connection, 301)
    assert (await claim_one(connection)).id == second


@pytest.mark.parametrize("on_conflict", ["keep", "replace", "refuse", "supersede"])
async def test_key_of_a_job_that_is_stopping(connection: Link, on_conflict: str) -> None:
    """Whatever is on conflict: a job that was cancelled gives up its key, and the new one waits for its end."""
    first, _ = await put(connection)
    job = await claim_one(connection)
    await update_status(connection, first)
    second, outcome = await put(connection, on_conflict=on_conflict)
    assert outcome == "created"
    assert await claim(connection) == []
    await settle(connection, job, ENDINGS["cancel"])
    assert (await claim_one(connection)).id == second


async def test_successor_cancelled(connection: Link) -> None:
    """If the one that waits is cancelled, the next waits in its place."""
    await put(connection)
    job = await claim_one(connection)
    second, _ = await put(connection, on_conflict="supersede")
    await update_status(connection, second)
    third, outcome = await put(connection)
    assert outcome == "created"
    assert await claim(connection) == []
    await settle(connection, job, ENDINGS["cancel"])
    assert (await claim_one(connection)).id == third


@pytest.mark.parametrize("n", range(2))
async def test_by_fields(connection: Link, n: int) -> None:
    """The fields named make the key, and their order and the rest of the payload do not matter."""
    by = [("path", "size"), ("size", "path")][n]
    first, _ = await put(connection, {"path": "a", "size": [1, {"x": 2}], "n": 1}, by=("path", "size"))
    assert await put(connection, {"n": 2, "size": [1, {"x": 2}], "path": "a"}, by=by) == (first, "kept")
    assert (await put(connection, {"path": "b", "size": [1, {"x": 2}]}, by=by))[1] == "created"
    assert (await put(connection, {"path": "a", "size": 1}, by=by))[1] == "created"
    assert "path" not in (await existing(connection, first))["unique_key"], "the key tells nothing of the payload"
    with pytest.raises(InvalidJob, match="no field 'size'"):
        await put(connection, {"path": "a"}, by=by)


async def test_by_the_whole_payload(connection: Link) -> None:
    """With True, equal payloads are one job."""
    first, _ = await put(connection, {"a": 1, "b": [2]}, by=True)
    assert await put(connection, {"b": [2], "a": 1}, by=True) == (first, "kept")
    assert (await put(connection, {"b": [2], "a": 1, "c": None}, by=True))[1] == "created"


async def test_scopes(connection: Link) -> None:
    """A key is the type's; a global one is that of all types of the tenant; both are the tenant's."""
    first, _ = await put(connection)
    assert (await put(connection, job_type="other"))[1] == "created"
    third, outcome = await put(connection, scope="global")
    assert outcome == "created"
    assert await put(connection, job_type="other", scope="global") == (third, "kept")
    job = NewJob(job_type="noop", org_id=ANN, unique=Unique(key="k"))  # type: ignore[arg-type]  # some uuid
    assert (await ask(connection, enqueue_verbs.enqueue_told(SCHEMA, job))).outcome == "created"
    assert await put(connection) == (first, "kept")


async def test_key_of_a_dead_job(connection: Link) -> None:
    """A job that dies frees its key. It comes back with it, if the key is free then."""
    first, _ = await put(connection, while_="pending")
    await settle(connection, await claim_one(connection), ENDINGS["bury"])
    second, outcome = await put(connection, while_="pending")
    assert outcome == "created"
    with pytest.raises(UniqueKeyHeld):
        await ask(connection, end.requeue(SCHEMA, first))
    assert await value(connection, "select pgnotifyq.requeue_all()") == 0
    assert (await claim_one(connection)).id == second
    assert await ask(connection, end.requeue(SCHEMA, first))
    assert await put(connection, while_="pending") == (first, "kept")


async def test_requeued_beside_a_job_that_is_stopping(connection: Link) -> None:
    """A dead letter that comes back waits for the end of one that was cancelled."""
    first, _ = await put(connection)
    await settle(connection, await claim_one(connection), ENDINGS["bury"])
    second, _ = await put(connection)
    job = await claim_one(connection)
    await update_status(connection, second)
    assert await ask(connection, end.requeue(SCHEMA, first))
    assert await claim(connection) == []
    await settle(connection, job, ENDINGS["cancel"])
    assert (await claim_one(connection)).id == first


async def test_reclaimed_job_holds_its_key(connection: Link) -> None:
    """A job whose lease ran out waits again, and has held its key all the time."""
    first, _ = await put(connection)
    await claim_one(connection)
    await pass_time(connection, 61)
    assert await put(connection) == (first, "kept")
    assert await reclaim(connection) == {first: "pending"}
    assert await put(connection) == (first, "kept")


async def test_bulk(connection: Link) -> None:
    """Each job of a batch is told its outcome, in the order given; of a batch's own duplicates, too."""
    first, _ = await put(connection, key="b")
    (a, b, c, d, e, plain) = await put_many(
        connection, keyed("a", {"n": 1}), keyed("b"), keyed("a"), keyed("a", {"n": 2}, on_conflict="replace"),
        keyed("b", on_conflict="supersede"), NewJob(job_type="noop"),
    )  # fmt: skip
    assert [one[1] for one in (a, b, c, d, e, plain)] == ["created", "kept", "kept", "replaced", "superseded", "created"]
    assert (b[0], c[0], d[0]) == (first, a[0], a[0])
    assert (await existing(connection, a[0]))["payload"] == {"n": 2}
    assert (await existing(connection, first))["error_message"] == f"superseded by {e[0]}"
    assert await value(connection, "select count(*) from pgnotifyq.jobs where is_claimable") == 3


async def test_bulk_refused(connection: Link) -> None:
    """If one of a batch is refused, none is there."""
    first, _ = await put(connection, key="z")
    with pytest.raises(UniqueKeyHeld, match=str(first)):
        await put_many(connection, NewJob(job_type="noop"), keyed("a"), keyed("z", on_conflict="refuse"))
    assert await value(connection, "select count(*) from pgnotifyq.jobs") == 1


async def test_large_bulk(connection: Link) -> None:
    """A batch that is copied as far as it can be is told the same, in order."""
    jobs = [NewJob(job_type="noop") if n % 3 == 0 else keyed(f"key {n // 6}") for n in range(600)]
    told = await put_many(connection, *jobs)
    outcomes = [outcome for _, outcome in told]
    assert outcomes[:6] == ["created", "created", "kept", "created", "kept", "kept"]
    assert outcomes == outcomes[:6] * 100
    assert len({job_id for job_id, _ in told}) == 300


async def test_by_sql(connection: Link) -> None:
    """The function for SQL says the same, and makes the same keys."""
    first, _ = await put(connection, {"path": "a", "n": 1}, by=("path",))
    same = await enqueue(connection, payload=json.dumps({"path": "a", "n": 2}), unique_by=["path"], unique_on_conflict="replace")
    assert same == first
    assert (await existing(connection, first))["payload"] == {"path": "a", "n": 2}
    with pytest.raises(psycopg.errors.UniqueViolation, match=str(first)):
        await enqueue(connection, payload=json.dumps({"path": "a"}), unique_by=["path"], unique_on_conflict="refuse")
    assert await enqueue(connection, payload="{}", unique_by=[]) == (await put(connection, {}, by=True))[0]


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
async def test_what_sql_refuses(connection: Link, wrong: dict[str, Any]) -> None:
    """What a client would refuse, the function for SQL refuses too."""
    with pytest.raises(psycopg.Error) as told:
        await enqueue(connection, **wrong)
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


async def test_key_passes_within_an_open_transaction(connection: Link, other: Link) -> None:
    """A holder that another transaction replaces neither starts nor ends before that commits."""
    first, _ = await put(connection, {"n": 1})
    async with other.transaction():
        assert await put(other, {"n": 2}, on_conflict="replace") == (first, "replaced")
        assert await claim(connection) == []
    job = await claim_one(connection)
    assert job.payload == {"n": 2}
    assert lease(job)


async def test_end_of_the_holder_waits_for_who_supersedes_it(connection: Link, other: Link, dsn: str) -> None:
    """If the handler ends while the new job is not committed, the new one starts all the same."""
    await put(connection)
    job = await claim_one(connection)
    async with trio.open_nursery() as nursery, other.transaction():
        second, _ = await put(other, on_conflict="supersede")
        nursery.start_soon(settle, connection, job, PLAIN_COMPLETION)
        await until(dsn, "exists (select from pg_locks where not granted)")
    assert (await existing(connection, job.id))["status"] == "cancelled"
    assert (await claim_one(connection)).id == second


async def test_holder_that_is_deleted_while_it_runs(connection: Link) -> None:
    """Whoever deletes it: the job that waits for its end is due, and does not wait for ever."""
    await put(connection)
    first = await claim_one(connection)
    second, outcome = await put(connection, on_conflict="supersede")
    assert outcome == "superseded"
    await connection.execute("delete from pgnotifyq.jobs where id = %s", (first.id,))
    assert (await claim_one(connection)).id == second


@pytest.mark.parametrize("is_cancelled", [False, True])
async def test_successor_that_is_deleted(connection: Link, is_cancelled: bool) -> None:
    """The next one of the key waits for the same handler, as the one that was deleted did."""
    await put(connection)
    job = await claim_one(connection)
    second, _ = await put(connection, on_conflict="supersede")
    if is_cancelled:
        await update_status(connection, second)
    await connection.execute("delete from pgnotifyq.jobs where id = %s", (second,))
    third, outcome = await put(connection)
    assert outcome == "created"
    assert await claim(connection) == [], "the handler of the first has not ended"
    await settle(connection, job, ENDINGS["cancel"])
    assert (await claim_one(connection)).id == third


async def test_last_successor_that_is_deleted(connection: Link) -> None:
    """If none comes after it, the key is free as soon as the handler has ended."""
    await put(connection)
    job = await claim_one(connection)
    second, _ = await put(connection, on_conflict="supersede")
    await connection.execute("delete from pgnotifyq.jobs where id = %s", (second,))
    await settle(connection, job, ENDINGS["cancel"])
    third, outcome = await put(connection)
    assert outcome == "created"
    assert (await claim_one(connection)).id == third


async def test_requeue_beside_who_takes_the_same_keys(connection: Link, other: Link, dsn: str) -> None:
    """It takes keys in their order, as a bulk does, and not in that of the deaths: one of the two waits, and none deadlocks."""
    letters = {}
    for key in ("b", "a"):  # requeued in this order: that of their deaths
        letters[key], _ = await put(connection, key=key)
        await settle(connection, await claim_one(connection), ENDINGS["bury"])
    free, _ = await put(connection, key="c")
    await settle(connection, await claim_one(connection), ENDINGS["bury"])
    restored: list[int] = []

    async def requeue() -> None:
        restored.append(await value(connection, "select pgnotifyq.requeue_all()"))

    async with trio.open_nursery() as nursery, other.transaction():
        await put(other, key="a")
        nursery.start_soon(requeue)
        await until(dsn, "exists (select from pg_locks where not granted)")
        await put(other, key="b")
    assert restored == [1]
    assert await fetch(connection, "select id from pgnotifyq.dead_letter_jobs order by unique_key desc") == [
        (letters["b"],),
        (letters["a"],),
    ]
    assert await put(connection, key="c") == (free, "kept")


async def test_explained(connection: Link) -> None:
    """Somebody who asks is told which job the new one waits for, and when it is due then."""
    first, _ = await put(connection)
    await claim_one(connection)
    second, _ = await put(connection, delay_seconds=600, on_conflict="supersede")
    found = await ask(connection, explaining.explain(SCHEMA, second))
    assert (found.label, found.answers) == ("scheduled", ["after_holder", "no_worker"])
    assert found.waits_for == first
    assert found.sentences[0].startswith(f"It waits until job {first} has ended, which had its unique key and was cancelled")
    assert "10 min" in found.sentences[0]


async def test_heap_only_updates(connection: Link) -> None:
    """Renewals and progress of a job with a key stay heap-only updates, as of one without."""
    await put(connection)
    job = await claim_one(connection)
    await connection.execute("analyze pgnotifyq.jobs")
    hot = "pg_stat_get_xact_tuples_hot_updated('pgnotifyq.jobs'::regclass)"
    async with connection.transaction():
        before = await value(connection, f"select {hot}")
        await connection.execute("update pgnotifyq.jobs set lease_expires_at = now(), progress = 0.5 where id = %s", (job.id,))
        assert await value(connection, f"select {hot}") == before + 1


async def test_tenants_do_not_meet(connection: Link) -> None:
    """A tenant's transaction keeps, replaces and supersedes its own jobs; the same key of another is not touched."""
    role = await tenant_role(connection)
    others = {org: await enqueue(connection, unique_key="k", org_id=org, payload=json.dumps({"n": 0})) for org in (ANN, BOB)}
    said = "select pgnotifyq.enqueue('noop', '{\"n\": 1}', %s, unique_key => 'k', unique_on_conflict => %s)"
    for on_conflict in ("keep", "replace", "supersede"):
        async with connection.transaction():
            await connection.execute("select set_config('pgnotifyq.org_id', %s, true)", (str(ANN),))
            await connection.execute(f"set local role {role}".encode())
            told = await value(connection, said, ANN, on_conflict)
            assert (told == others[ANN]) == (on_conflict != "supersede")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                async with connection.transaction():
                    await connection.execute(said.encode(), (BOB, on_conflict))
            for asked in (
                "select became from pgnotifyq.pass_key(%s, 'noop', 'k', 'supersede')",
                "select pgnotifyq.lock_keys(array[%s::uuid], array['noop'], array['k'])",
                (
                    "select pgnotifyq.pass_keys(array[1], array[gen_random_uuid()], array[%s::uuid], array['noop'], array['k'], null, null,"
                    " null, null)"
                ),
            ):
                with pytest.raises(psycopg.errors.InsufficientPrivilege, match="not the one of this transaction"):
                    async with connection.transaction():
                        await connection.execute(asked.encode(), (BOB,))
            await connection.execute("select set_config('pgnotifyq.org_id', '', true)")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                async with connection.transaction():
                    await connection.execute(asked.encode(), (ANN,))
    assert (await existing(connection, others[ANN]))["status"] == "cancelled"
    untouched = await existing(connection, others[BOB])
    assert (untouched["status"], untouched["payload"], untouched["key_passed_on"]) == ("pending", {"n": 0}, None)


async def test_producer_takes_only_what_it_enqueued(connection: Link) -> None:
    """A producer is told who has its key, and may not replace or supersede what another role enqueued."""
    role = f"producer_{uuid.uuid4().hex[:8]}"
    await connection.execute(f"create role {role}".encode())
    try:
        await connection.execute("select pgnotifyq.grant_role('producer', %s)", (role,))
        await connection.execute("select pgnotifyq.keep_roles()")
        await connection.execute(f"grant {role} to current_user".encode())
        first, _ = await put(connection)
        await connection.execute(f"set role {role}".encode())
        assert await put(connection) == (first, "kept")
        for on_conflict in ("replace", "supersede"):
            with pytest.raises(MissingRights, match="which another role enqueued"):
                await put(connection, on_conflict=on_conflict)
        mine, _ = await put(connection, key="mine")
        assert await put(connection, {"n": 1}, key="mine", on_conflict="replace") == (mine, "replaced")
        assert (await put(connection, key="mine", on_conflict="supersede"))[1] == "superseded"
        many = await put_many(connection, keyed("mine"), keyed("k"), keyed("new"))
        assert [outcome for _, outcome in many] == ["kept", "kept", "created"]
        for on_conflict in ("replace", "supersede"):
            own = [keyed(f"own {n}", {"by": on_conflict}, on_conflict=on_conflict) for n in range(9)]
            await put_many(connection, *own)
            assert {outcome for _, outcome in await put_many(connection, *own)} == {f"{on_conflict}d"}
            with pytest.raises(MissingRights, match="which another role enqueued"):
                await put_many(connection, *own, keyed("k", on_conflict=on_conflict))
    finally:
        await connection.execute("reset role")
        await connection.execute(f"drop owned by {role}".encode())
        await connection.execute("delete from pgnotifyq.roles where role_name = %s", (role,))
        await connection.execute(f"drop role {role}".encode())


@pytest.mark.parametrize("count", [1, 3])
async def test_trigger_that_leaves_the_job_out(connection: Link, count: int) -> None:
    """It is told of, alone and in a bulk. It looked as if somebody took the key and let it go, and was waited for without end."""
    jobs = [NewJob(job_type="noop", unique=Unique(key=f"k{number}")) for number in range(count)]
    await connection.execute(
        "create function pg_temp.leave_out() returns trigger language plpgsql as $$ begin return null; end $$;"
        "create trigger leave_out before insert on pgnotifyq.jobs for each row execute function pg_temp.leave_out();"
        "set statement_timeout = '10s'"
    )
    try:
        with pytest.raises(InvalidJob, match="trigger of yours"):
            await ask(connection, bulk.enqueue_many_told(SCHEMA, jobs))
    finally:
        await connection.execute("drop trigger leave_out on pgnotifyq.jobs")
    assert await fetch(connection, "select from pgnotifyq.jobs") == []
