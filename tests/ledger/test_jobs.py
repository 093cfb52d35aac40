"""The verbs of everybody who is not a worker, in SQL: enqueue, cancel, requeue, purge, and looking."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs
import psycopg
import pytest
import trio
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row

from pgnotifyq.ledger import bulk, end, enqueue, explaining, workers
from pgnotifyq.ledger import look as look_verbs
from pgnotifyq.ledger.ask import Ask
from pgnotifyq.ledger.columns import rows
from pgnotifyq.migrating import migrate
from pgnotifyq.model.errors import ConfigError, InvalidPayload, SchemaMissing, UniqueKeyHeld
from pgnotifyq.model.job import JobId, OrgId
from pgnotifyq.model.new_job import NewJob
from pgnotifyq.model.states import Status
from pgnotifyq.wire.asking import ask, ask_blocking
from pgnotifyq.wire.connection import Connection, connect, open_connection
from tests.ledger.support import ANN, BOB, ENDINGS, SCHEMA, claim, claim_one, fetch, pass_time, settle, value
from tests.proxy import until

Link = Connection[Any]
MANY = enqueue.ONE_STATEMENT_JOBS_MAX + 500  # more than one statement carries
# Other people's tests may run on the same server: only this database counts.
BLOCKED = "exists (select from pg_stat_activity where datname = current_database() and application_name = %s and wait_event_type = 'Lock')"
SESSION_LOCKS = (
    "(select count(*) from pg_locks as l join pg_database as d on d.oid = l.database"
    " where l.locktype = 'advisory' and d.datname = current_database())"
)
NOBODY = JobId(uuid.UUID(int=1))


def new(count: int = 1, **fields: Any) -> list[NewJob]:
    return [NewJob(job_type="noop", payload={"n": n}, **fields) for n in range(count)]


async def bury(connection: Link, **fields: Any) -> JobId:
    """Make a dead letter."""
    job_id = await ask(connection, enqueue.enqueue(SCHEMA, NewJob(job_type="noop", **fields)))
    claimed = await claim(connection, queues=[fields.get("queue_name", "default")])
    assert [job.id for job in claimed] == [job_id]
    await settle(connection, claimed[0], ENDINGS["bury"])
    return job_id


# Enqueue


async def test_every_field_of_a_job_is_stored(connection: Link) -> None:
    """What was enqueued is what is found."""
    job = NewJob(
        job_type="resize",
        payload={"path": "C:\\tab\there", "no": None, "deep": [1, 2.5, True, "ä\u2028"]},
        org_id=OrgId(uuid.UUID(int=7)),
        queue_name="images",
        priority=-5,
        scheduled_at=datetime(2030, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
        max_attempts=9,
        unique_key="a key",
    )
    found = await ask(connection, look_verbs.get_job(SCHEMA, await ask(connection, enqueue.enqueue(SCHEMA, job))))
    assert found is not None
    for field in ("job_type", "payload", "org_id", "queue_name", "priority", "scheduled_at", "max_attempts", "unique_key"):
        assert getattr(found, field) == getattr(job, field), field
    assert (found.status, found.attempts, found.is_finished) == (Status.PENDING, 0, False)


@pytest.mark.parametrize("count", [1, 7, MANY])
async def test_a_batch_keeps_its_order(connection: Link, count: int) -> None:
    """Ids come in the order given, ascend, and jobs are claimed in that order, in a statement and in a COPY."""
    ids = await ask(connection, bulk.enqueue_many(SCHEMA, new(count)))
    assert ids == sorted(ids) and len(set(ids)) == count
    claimed = await claim(connection, count)
    assert [(job.id, job.payload) for job in claimed] == [(job_id, {"n": n}) for n, job_id in enumerate(ids)]


async def test_payloads_survive_a_copy(connection: Link) -> None:
    """Backslashes, quotes, newlines and separators of COPY arrive as they were."""
    hard = ["\\", "\\N", "\\.", "\t", "\n", "\r\n", '"', "\\n", "\u2028", "ä€😀", "\x7f\x01", "\\\\t"]
    batch = [NewJob(job_type="noop", payload={"text": hard[n % len(hard)], hard[n % len(hard)]: n}) for n in range(MANY)]
    ids = await ask(connection, bulk.enqueue_many(SCHEMA, batch))
    rows = dict(await fetch(connection, "select id, payload from pgnotifyq.jobs"))
    assert [rows[job_id] for job_id in ids] == [job.payload for job in batch]


async def test_a_copy_keeps_times_and_delays(connection: Link) -> None:
    """Each job of a copied batch falls due at its own time, a delay counting on the database's clock."""
    await pass_time(connection, 1000)
    at = datetime(2031, 1, 1, tzinfo=UTC)
    batch = [*new(MANY), *new(1, scheduled_at=at), *new(1, delay_seconds=60)]
    ids = await ask(connection, bulk.enqueue_many(SCHEMA, batch))
    now = await value(connection, "select pgnotifyq.clock()")
    rows = dict(await fetch(connection, "select id, scheduled_at from pgnotifyq.jobs"))
    assert [rows[ids[0]], rows[ids[-2]], rows[ids[-1]]] == [now, at, now + timedelta(seconds=60)]


async def test_a_batch_with_keys_finds_their_holders(connection: Link) -> None:
    """A job whose key is held gets the holder's id, in its own place, within a batch and before it, in any size of batch."""
    held = await ask(connection, enqueue.enqueue(SCHEMA, NewJob(job_type="noop", unique_key="held")))
    small = [*new(2), NewJob(job_type="noop", unique_key="held"), *[NewJob(job_type="noop", unique_key="twice")] * 2]
    for batch in (small, [*new(MANY), *small, *new(5)]):
        ids = await ask(connection, bulk.enqueue_many(SCHEMA, batch))
        places = {place for place, job in enumerate(batch) if job.unique_key == "held"}
        assert [ids[place] for place in places] == [held]
        first, second = (ids[place] for place, job in enumerate(batch) if job.unique_key == "twice")
        assert first == second
        assert len(set(ids)) == len(ids) - 1
    assert await value(connection, "select count(*) from pgnotifyq.jobs") == 1 + 3 + MANY + 2 + 5


async def test_a_key_is_free_again_when_its_job_has_ended(connection: Link) -> None:
    """A key is held by unfinished jobs only, and by those of one tenant."""
    keyed = NewJob(job_type="noop", unique_key="k")
    first = await ask(connection, enqueue.enqueue(SCHEMA, keyed))
    assert await ask(connection, enqueue.enqueue(SCHEMA, attrs.evolve(keyed, org_id=OrgId(uuid.UUID(int=9))))) != first
    assert await ask(connection, end.cancel(SCHEMA, first)) == "cancelled"
    assert await ask(connection, enqueue.enqueue(SCHEMA, keyed)) != first


async def test_a_key_whose_holder_is_being_cancelled(dsn: str, connection: Link, other: Link) -> None:
    """Who enqueues waits for the holder's transaction, and gets a job of its own when that frees the key."""
    keyed = NewJob(job_type="noop", unique_key="k")
    first = await ask(connection, enqueue.enqueue(SCHEMA, keyed))
    got: list[JobId] = []

    async def enqueue_late() -> None:
        got.append(await ask(other, enqueue.enqueue(SCHEMA, keyed)))

    async with trio.open_nursery() as nursery, connection.transaction():
        await ask(connection, end.cancel(SCHEMA, first))
        nursery.start_soon(enqueue_late)
        await until(dsn, BLOCKED, "other")
    assert got and got[0] is not None and got[0] != first


async def test_batches_with_the_same_keys_in_opposite_orders(dsn: str, connection: Link, other: Link) -> None:
    """Of two who enqueue the same keys one waits for the other, and none deadlocks, whatever order they were given in."""
    batch = [NewJob(job_type="noop", unique_key=key) for key in "cab"]
    got: dict[str, list[JobId]] = {}

    async def enqueue(link: Link, name: str, order: list[NewJob]) -> None:
        got[name] = await ask(link, bulk.enqueue_many(SCHEMA, order))

    async with trio.open_nursery() as nursery, connection.transaction():
        # Holds the first key of the order and nothing else, so that the other must be waiting for that one.
        await ask(connection, bulk.enqueue_many(SCHEMA, [batch[1]]))
        nursery.start_soon(enqueue, other, "other", batch[::-1])
        await until(dsn, BLOCKED, "other")
        await enqueue(connection, "own", batch)
    assert got["other"] == got["own"][::-1]


async def test_many_keys_against_each_other(dsn: str) -> None:
    """Racing batches of the same keys in random orders all end with the same ids for the same keys."""
    orders = [[f"k{(n * step) % 61}" for n in range(60)] for step in (1, 7, 60, 31)]
    found: list[dict[str, JobId]] = []

    async def enqueue(keys: list[str]) -> None:
        async with open_connection(dsn) as link:
            ids = await ask(link, bulk.enqueue_many(SCHEMA, [NewJob(job_type="noop", unique_key=key) for key in keys]))
        found.append(dict(zip(keys, ids, strict=True)))

    async with trio.open_nursery() as nursery:
        for order in orders:
            nursery.start_soon(enqueue, order)
    merged = {key: job_id for each in found for key, job_id in each.items()}
    assert all(merged[key] == job_id for each in found for key, job_id in each.items())


@pytest.mark.parametrize("count", [3, MANY])
async def test_a_bad_payload_in_a_batch(connection: Link, count: int) -> None:
    """One payload that cannot be stored: none is enqueued, and the caller's transaction is still good."""
    bad = NewJob(job_type="noop", payload={"text": "a\x00b"})
    async with connection.transaction():
        with pytest.raises(InvalidPayload):
            await ask(connection, bulk.enqueue_many(SCHEMA, [*new(count), bad]))
        await ask(connection, enqueue.enqueue(SCHEMA, new()[0]))
    assert await value(connection, "select count(*) from pgnotifyq.jobs") == 1


async def test_a_bad_payload_late_in_a_batch_that_is_streamed(connection: Link) -> None:
    """It is found when thousands are on their way: none of them is enqueued, and the connection is in order."""
    bad = NewJob(job_type="noop", payload={"text": "a\x00b"})
    with pytest.raises(InvalidPayload):
        await ask(connection, bulk.enqueue_many(SCHEMA, [*new(5_000), bad]))
    assert await value(connection, "select count(*) from pgnotifyq.jobs") == 0
    assert len(await ask(connection, bulk.enqueue_many(SCHEMA, new(MANY)))) == MANY


async def test_a_batch_that_fails_half_way(connection: Link) -> None:
    """All or none: a batch whose copied part went in, and whose last statement PostgreSQL refuses, leaves nothing."""
    await connection.execute("alter table pgnotifyq.jobs add constraint no_keys check (unique_key is null)")
    try:
        with pytest.raises(psycopg.errors.CheckViolation):
            await ask(connection, bulk.enqueue_many(SCHEMA, [*new(MANY), *new(1, unique_key="k")]))
        assert await value(connection, "select count(*) from pgnotifyq.jobs") == 0
    finally:
        await connection.execute("alter table pgnotifyq.jobs drop constraint no_keys")


@pytest.mark.parametrize("count", [2, MANY])
async def test_a_connection_that_is_not_in_autocommit(dsn: str, connection: Link, count: int) -> None:
    """A batch of any size belongs to the transaction that its owner has implicitly begun: rolled back, it never was."""
    theirs = await connect(dsn, autocommit=False, row_factory=dict_row)  # and the row factory does not matter
    try:
        assert len(await ask(theirs, bulk.enqueue_many(SCHEMA, new(count)))) == count
        await theirs.rollback()
        assert await value(connection, "select count(*) from pgnotifyq.jobs") == 0
        await ask(theirs, bulk.enqueue_many(SCHEMA, new(count)))
        await theirs.commit()
        assert await value(connection, "select count(*) from pgnotifyq.jobs") == count
    finally:
        await theirs.close()


@pytest.mark.parametrize("autocommit", [False, True])
@pytest.mark.parametrize("count", [1, MANY])
async def test_a_blocking_connection(dsn: str, connection: Link, count: int, autocommit: bool) -> None:
    """A blocking psycopg connection enqueues in its own transaction, whatever its row factory is."""
    with psycopg.connect(dsn, row_factory=dict_row, autocommit=autocommit) as theirs:
        with theirs.transaction(force_rollback=True):
            ask_blocking(theirs, bulk.enqueue_many(SCHEMA, new(count)))
            ask_blocking(theirs, enqueue.enqueue(SCHEMA, new()[0]))
        assert await value(connection, "select count(*) from pgnotifyq.jobs") == 0
        ids = ask_blocking(theirs, bulk.enqueue_many(SCHEMA, new(count)))
        last = ask_blocking(theirs, enqueue.enqueue(SCHEMA, new()[0]))
        theirs.commit()
    rows = await fetch(connection, "select id from pgnotifyq.jobs order by scheduled_at, id")
    assert [row[0] for row in rows] == [*ids, last]


@pytest.fixture
async def plain(server_dsn: str) -> AsyncIterator[Link]:
    """A connection as an ordinary role, which owns its database and its schema, as on a managed server."""
    name = f"plain_{uuid.uuid4().hex[:8]}"
    role, tenant = sql.Identifier(name), sql.Identifier(f"{name}_tenant")
    async with open_connection(server_dsn) as server:
        await server.execute(sql.SQL("create role {} createrole").format(role))
        await server.execute(sql.SQL("create database {} owner {}").format(role, role))
        try:
            async with open_connection(make_conninfo(server_dsn, dbname=name)) as link:
                await link.execute(sql.SQL("set session authorization {}").format(role))
                await migrate(link, name)
                yield link
        finally:
            await server.execute(sql.SQL("drop database {} with (force)").format(role))
            await server.execute(sql.SQL("drop role if exists {}").format(tenant))
            await server.execute(sql.SQL("drop role {}").format(role))


async def test_a_large_batch_of_an_ordinary_role(plain: Link) -> None:
    """PostgreSQL denies COPY to roles that row security binds; a large batch is enqueued all the same, all or none."""
    schema = str(await value(plain, "select current_user::text"))
    batch = [*new(MANY), NewJob(job_type="noop", unique_key="k")]
    ids = await ask(plain, bulk.enqueue_many(schema, batch))
    rows = await fetch(plain, f'select id from "{schema}".jobs order by scheduled_at, id')
    assert {row[0] for row in rows} == set(ids) and len(ids) == MANY + 1


async def test_ids_of_a_batch_ascend() -> None:
    """Ids made here are uuids of version 7, each above the one before, even where the clock does not move."""
    ids = list(enqueue.new_ids(20_000))
    assert ids == sorted(set(ids))
    assert {(one.version, one.variant) for one in ids} == {(7, uuid.RFC_4122)}


async def test_a_schema_that_is_not_there(connection: Link) -> None:
    """The error says what to do."""
    with pytest.raises(SchemaMissing, match="migrate"):
        await ask(connection, enqueue.enqueue("elsewhere", new()[0]))


# Cancel


async def test_cancel_tells_what_it_found(connection: Link) -> None:
    """cancelled, stopping, finished and unknown, each for its situation."""
    pending, running, done = await ask(connection, bulk.enqueue_many(SCHEMA, new(3)))
    claimed = {job.id: job for job in await claim(connection, 3)}
    await settle(connection, claimed[pending], ENDINGS["release"])
    await settle(connection, claimed[done], ENDINGS["complete"])
    told = [await ask(connection, end.cancel(SCHEMA, job_id, "because")) for job_id in (pending, running, done, NOBODY)]
    assert told == ["cancelled", "stopping", "finished", "unknown"]
    stopping = await ask(connection, look_verbs.get_job(SCHEMA, running))
    assert stopping is not None and (stopping.error_message, stopping.is_finished) == ("because", False)
    assert await ask(connection, end.cancel(SCHEMA, await bury(connection))) == "finished"


@pytest.mark.parametrize("why", ["a\x00b", "\ud800", "x" * 5000, "\x1b[31m"])
async def test_a_hostile_reason(connection: Link, why: str) -> None:
    """Whatever the reason is, the job is cancelled, and what is stored can be shown."""
    job_id = await ask(connection, enqueue.enqueue(SCHEMA, new()[0]))
    assert await ask(connection, end.cancel(SCHEMA, job_id, why)) == "cancelled"
    found = await ask(connection, look_verbs.get_job(SCHEMA, job_id))
    assert found is not None and found.error_message is not None
    assert found.error_message.replace("\n", "").isprintable() and len(found.error_message) <= 1000


# Looking


async def test_jobs_are_listed_by_their_labels(connection: Link) -> None:
    """Statuses and derived labels both filter, each finds its own, newest first."""
    ids: dict[str, JobId] = {}
    for name in ("completed", "retrying", "running", "stopping", "cancelled", "pending"):
        ids[name] = await ask(connection, enqueue.enqueue(SCHEMA, NewJob(job_type=name)))
    ids["scheduled"] = await ask(connection, enqueue.enqueue(SCHEMA, NewJob(job_type="scheduled", delay_seconds=60)))
    claimed = {job.id: job for job in await claim(connection, 4)}
    await settle(connection, claimed[ids["completed"]], ENDINGS["complete"])
    await settle(connection, claimed[ids["retrying"]], ENDINGS["retry"])
    for name in ("stopping", "cancelled"):
        await ask(connection, end.cancel(SCHEMA, ids[name]))

    for name in set(ids) - {"pending", "cancelled"}:
        assert [job.id for job in await ask(connection, look_verbs.list_jobs(SCHEMA, status=name))] == [ids[name]], name
    assert [job.id for job in await ask(connection, look_verbs.list_jobs(SCHEMA, status="pending"))] == [ids["pending"]]
    assert [job.id for job in await ask(connection, look_verbs.list_jobs(SCHEMA, status="cancelled"))] == [ids["cancelled"]]
    everything = await ask(connection, look_verbs.list_jobs(SCHEMA))
    assert [job.id for job in everything] == sorted(ids.values(), reverse=True)
    assert [job.id for job in await ask(connection, look_verbs.list_jobs(SCHEMA, limit=2))] == sorted(ids.values(), reverse=True)[
        :2
    ]
    with pytest.raises(ConfigError, match="stopping"):
        await ask(connection, look_verbs.list_jobs(SCHEMA, status="lost"))
    with pytest.raises(ConfigError, match="limit"):
        await ask(connection, look_verbs.list_jobs(SCHEMA, limit=-1))


async def test_jobs_are_listed_by_queue_type_and_tenant(connection: Link) -> None:
    """Filters narrow, together."""
    org = OrgId(uuid.UUID(int=5))
    wanted = await ask(connection, enqueue.enqueue(SCHEMA, NewJob(job_type="a", queue_name="q", org_id=org)))
    for job in (
        NewJob(job_type="b", queue_name="q", org_id=org),
        NewJob(job_type="a", org_id=org),
        NewJob(job_type="a", queue_name="q"),
    ):
        await ask(connection, enqueue.enqueue(SCHEMA, job))
    found = await ask(connection, look_verbs.list_jobs(SCHEMA, queue="q", job_type="a", org_id=org))
    assert [job.id for job in found] == [wanted]


async def test_a_job_is_found_by_its_key_and_not_by_a_scan(connection: Link) -> None:
    """Looking at one job reads one index entry, however many there are and however stale the statistics."""
    await ask(connection, bulk.enqueue_many(SCHEMA, new(2000)))
    job_id = await ask(connection, enqueue.enqueue(SCHEMA, new()[0]))
    look = look_verbs.get_job(SCHEMA, job_id)
    plan = "\n".join(line for (line,) in await ask(connection, Ask(b"explain " + look.statement, look.parameters, rows)))
    assert "jobs_pkey" in plan and "Seq Scan" not in plan


async def test_history_shows_the_attempt_under_way(connection: Link) -> None:
    """Ended attempts and the running one, oldest first."""
    job_id = await ask(connection, enqueue.enqueue(SCHEMA, new()[0]))
    await settle(connection, await claim_one(connection), ENDINGS["release"])
    await claim_one(connection, worker=BOB)
    attempts = await ask(connection, look_verbs.history(SCHEMA, job_id))
    assert [(one.outcome, one.worker_id, one.ended_at is None) for one in attempts] == [
        ("released", ANN, False),
        ("running", BOB, True),
    ]
    assert await ask(connection, look_verbs.history(SCHEMA, NOBODY)) == []


async def test_stats_count_each_state_once(connection: Link) -> None:
    """Every job is in exactly one column of its queue; dead letters of a queue without jobs count too."""
    await ask(connection, bulk.enqueue_many(SCHEMA, new(5, queue_name="q")))
    await ask(connection, enqueue.enqueue(SCHEMA, NewJob(job_type="noop", queue_name="q", delay_seconds=60)))
    first, second, third = await claim(connection, 3, queues=["q"])
    await settle(connection, first, ENDINGS["complete"])
    await settle(connection, second, ENDINGS["retry"])
    await bury(connection, queue_name="grave")
    await pass_time(connection, 3)
    grave, q = await ask(connection, look_verbs.stats(SCHEMA))
    assert (grave.queue_name, grave.dead, grave.pending, grave.oldest_due_seconds) == ("grave", 1, 0, None)
    counts = (q.pending, q.scheduled, q.retrying, q.running, q.stopping, q.completed, q.cancelled, q.dead)
    assert counts == (2, 1, 1, 1, 0, 1, 0, 0)
    assert q.oldest_due_seconds is not None and q.oldest_due_seconds >= 3
    await ask(connection, end.cancel(SCHEMA, third.id))
    assert (await ask(connection, look_verbs.stats(SCHEMA)))[1].stopping == 1


async def register(connection: Link, worker: Any, *, has_session: bool, slots: int = 3) -> None:
    await ask(connection, workers.register( SCHEMA, worker_id=worker, host="here", pid=1, queues=["default"], slots=slots, version="1",
        has_session=has_session, lease_seconds=60.0,
    ))  # fmt: skip


async def test_a_worker_is_alive_while_its_session_is(dsn: str, connection: Link) -> None:
    """Its session's lock speaks for it, and when that is gone it is shown as gone; looking takes no lock."""
    session = await connect(dsn)
    await ask(session, workers.hold_session(SCHEMA, ANN))
    await register(connection, ANN, has_session=True)
    await ask(connection, bulk.enqueue_many(SCHEMA, new(2)))
    await claim(connection, 1)
    async with connection.transaction():
        (row,) = await ask(connection, look_verbs.list_workers(SCHEMA))
        assert (row.worker_id, row.is_alive, row.state, row.running, row.listening) == (ANN, True, "running", 1, "push")
        await session.close()
        await until(dsn, f"{SESSION_LOCKS} = 0")
        (row,) = await ask(connection, look_verbs.list_workers(SCHEMA))
        assert (row.is_alive, row.state) == (False, "gone")
        assert await value(connection, f"select {SESSION_LOCKS}") == 0


async def test_a_worker_without_a_session_lives_by_its_beats(connection: Link) -> None:
    """Three leases without a beat, and it is shown as gone."""
    await register(connection, ANN, has_session=False)
    (row,) = await ask(connection, look_verbs.list_workers(SCHEMA))
    assert (row.is_alive, row.listening) == (True, "polling")
    await pass_time(connection, 3 * 60 + 1)
    (row,) = await ask(connection, look_verbs.list_workers(SCHEMA))
    assert (row.is_alive, row.state) == (False, "gone")


async def test_explain_says_why_a_job_does_not_run(connection: Link) -> None:
    """Jobs before it, when it falls due, who could run it; nothing of jobs that are not there."""
    first = (await ask(connection, bulk.enqueue_many(SCHEMA, new(4))))[0]
    await register(connection, ANN, has_session=False, slots=3)
    await claim(connection, 1)
    last = await ask(connection, enqueue.enqueue(SCHEMA, NewJob(job_type="noop", priority=-1)))
    later = await ask(connection, enqueue.enqueue(SCHEMA, NewJob(job_type="noop", delay_seconds=600)))
    why = await ask(connection, explaining.explain(SCHEMA, last))
    assert (why.label, why.jobs_before, why.workers, why.slots_free, why.lease_seconds_left) == ("pending", 3, 1, 2, None)
    assert why.due_in_seconds is not None and why.due_in_seconds <= 0
    why = await ask(connection, explaining.explain(SCHEMA, later))
    assert why.label == "scheduled" and why.due_in_seconds is not None and why.due_in_seconds > 500
    why = await ask(connection, explaining.explain(SCHEMA, first))
    assert (why.label, why.jobs_before, why.due_in_seconds) == ("running", None, None)
    assert why.lease_seconds_left is not None and why.lease_seconds_left > 0
    assert (await ask(connection, explaining.explain(SCHEMA, NOBODY))).answers == ["unknown"]


# Dead letters


async def test_a_dead_letter_is_requeued_as_it_was(connection: Link) -> None:
    """The job is back with its id and payload and all its attempts before it; the letter is gone; twice does nothing."""
    job_id = await bury(connection, payload={"a": 1}, priority=4, unique_key="k", max_attempts=2)
    letter = await ask(connection, look_verbs.get_dead(SCHEMA, job_id))
    assert letter is not None and (letter.reason, letter.error_message, letter.payload) == ("exhausted", "hopeless", {"a": 1})
    assert [(one.attempt, one.outcome) for one in letter.history] == [(1, "failed")]
    assert await ask(connection, look_verbs.get_job(SCHEMA, job_id)) is None
    assert await ask(connection, end.requeue(SCHEMA, job_id)) is True
    assert await ask(connection, end.requeue(SCHEMA, job_id)) is False
    found = await ask(connection, look_verbs.get_job(SCHEMA, job_id))
    assert found is not None
    assert (found.status, found.attempts, found.priority, found.payload, found.unique_key, found.max_attempts) == (
        Status.PENDING, 0, 4, {"a": 1}, "k", 2,
    )  # fmt: skip
    assert await ask(connection, look_verbs.get_dead(SCHEMA, job_id)) is None
    assert len(await ask(connection, look_verbs.history(SCHEMA, job_id))) == 1


async def test_requeue_of_a_key_that_is_held(connection: Link) -> None:
    """A typed error, and the letter stays."""
    job_id = await bury(connection, unique_key="k")
    await ask(connection, enqueue.enqueue(SCHEMA, NewJob(job_type="noop", unique_key="k")))
    with pytest.raises(UniqueKeyHeld, match=str(job_id)):
        await ask(connection, end.requeue(SCHEMA, job_id))
    assert await ask(connection, look_verbs.get_dead(SCHEMA, job_id)) is not None


async def test_requeue_all_takes_the_oldest_that_can_be(connection: Link) -> None:
    """The oldest first, filtered, up to the limit; one whose key is held stays and does not count."""
    held = await bury(connection, unique_key="k")
    rest = [await bury(connection) for _ in range(3)]
    elsewhere = await bury(connection, queue_name="q")
    await ask(connection, enqueue.enqueue(SCHEMA, NewJob(job_type="noop", unique_key="k")))
    assert await ask(connection, end.requeue_all(SCHEMA, look_verbs.DeadFilter(queue="default"), limit=2)) == 2
    assert [letter.id for letter in await ask(connection, look_verbs.list_dead(SCHEMA))] == [elsewhere, rest[2], held]
    assert await ask(connection, end.requeue_all(SCHEMA, limit=0)) == 0
    assert await ask(connection, end.requeue_all(SCHEMA, look_verbs.DeadFilter(job_type="other"))) == 0
    assert await ask(connection, end.requeue_all(SCHEMA)) == 2
    assert [letter.id for letter in await ask(connection, look_verbs.list_dead(SCHEMA))] == [held]


async def test_dead_letters_are_purged(connection: Link) -> None:
    """By id or by age, with their history; without either, none."""
    old = [await bury(connection) for _ in range(2)]
    await pass_time(connection, 100)
    young = await bury(connection)
    assert await ask(connection, end.purge_dead(SCHEMA)) == 0
    assert await ask(connection, end.purge_dead(SCHEMA, older_than_seconds=50)) == 2
    assert await ask(connection, end.purge_dead(SCHEMA, job_id=old[0])) == 0
    assert await ask(connection, look_verbs.history(SCHEMA, old[0])) == []
    assert [letter.id for letter in await ask(connection, look_verbs.list_dead(SCHEMA))] == [young]
    assert await ask(connection, end.purge_dead(SCHEMA, job_id=young)) == 1


async def test_await_job_says_whether_there_is_something_to_wait_for(connection: Link) -> None:
    """True while the job is to end, its handler included; False when it has, or is not there."""
    job_id = await ask(connection, enqueue.enqueue(SCHEMA, new()[0]))
    told = [await ask(connection, end.await_job(SCHEMA, job_id)) for _ in range(2)]
    claimed = await claim_one(connection)
    await ask(connection, end.cancel(SCHEMA, job_id))
    told.append(await ask(connection, end.await_job(SCHEMA, job_id)))
    await settle(connection, claimed, ENDINGS["cancel"])
    told += [await ask(connection, end.await_job(SCHEMA, job_id)), await ask(connection, end.await_job(SCHEMA, NOBODY))]
    assert told == [True, True, True, False, False]
