"""The verbs of everybody who is not a worker, in SQL: enqueue, cancel, requeue, purge, and looking."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs
import psycopg
import pytest
from psycopg.rows import dict_row

from pgnotifyq.ledger import bulk, end, enqueue, explaining, workers
from pgnotifyq.ledger import look as look_verbs
from pgnotifyq.ledger.ask import Ask
from pgnotifyq.ledger.columns import rows
from pgnotifyq.model.errors import ConfigError, InvalidPayload, SchemaMissing, UniqueKeyHeld
from pgnotifyq.model.job import JobId, OrgId
from pgnotifyq.model.new_job import NewJob
from pgnotifyq.model.states import Status
from pgnotifyq.wire.asking import ask_blocking
from pgnotifyq.wire.blocking import Connection, connect
from tests.ledger.support import (
    ANN,
    BOB,
    ENDINGS,
    SCHEMA,
    at_once,
    claim,
    claim_one,
    fetch,
    pass_time,
    settle,
    until,
    value,
)

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


def bury(connection: Link, **fields: Any) -> JobId:
    """Make a dead letter."""
    job_id = ask_blocking(connection, enqueue.enqueue(SCHEMA, NewJob(job_type="noop", **fields)))
    claimed = claim(connection, queues=[fields.get("queue_name", "default")])
    assert [job.id for job in claimed] == [job_id]
    settle(connection, claimed[0], ENDINGS["bury"])
    return job_id


# Enqueue


def test_every_field_of_a_job_is_stored(connection: Link) -> None:
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
    found = ask_blocking(connection, look_verbs.get_job(SCHEMA, ask_blocking(connection, enqueue.enqueue(SCHEMA, job))))
    assert found is not None
    for field in ("job_type", "payload", "org_id", "queue_name", "priority", "scheduled_at", "max_attempts", "unique_key"):
        assert getattr(found, field) == getattr(job, field), field
    assert (found.status, found.attempts, found.is_finished) == (Status.PENDING, 0, False)


@pytest.mark.parametrize("count", [1, 7, MANY])
def test_a_batch_keeps_its_order(connection: Link, count: int) -> None:
    """Ids come in the order given, ascend, and jobs are claimed in that order, in a statement and in a COPY."""
    ids = ask_blocking(connection, bulk.enqueue_many(SCHEMA, new(count)))
    assert ids == sorted(ids) and len(set(ids)) == count
    claimed = claim(connection, count)
    assert [(job.id, job.payload) for job in claimed] == [(job_id, {"n": n}) for n, job_id in enumerate(ids)]


def test_payloads_survive_a_copy(connection: Link) -> None:
    """Backslashes, quotes, newlines and separators of COPY arrive as they were."""
    hard = ["\\", "\\N", "\\.", "\t", "\n", "\r\n", '"', "\\n", "\u2028", "ä€😀", "\x7f\x01", "\\\\t"]
    batch = [NewJob(job_type="noop", payload={"text": hard[n % len(hard)], hard[n % len(hard)]: n}) for n in range(MANY)]
    ids = ask_blocking(connection, bulk.enqueue_many(SCHEMA, batch))
    rows = dict(fetch(connection, "select id, payload from pgnotifyq.jobs"))
    assert [rows[job_id] for job_id in ids] == [job.payload for job in batch]


def test_a_copy_keeps_times_and_delays(connection: Link) -> None:
    """Each job of a copied batch falls due at its own time, a delay counting on the database's clock."""
    pass_time(connection, 1000)
    at = datetime(2031, 1, 1, tzinfo=UTC)
    batch = [*new(MANY), *new(1, scheduled_at=at), *new(1, delay_seconds=60)]
    ids = ask_blocking(connection, bulk.enqueue_many(SCHEMA, batch))
    now = value(connection, "select pgnotifyq.clock()")
    rows = dict(fetch(connection, "select id, scheduled_at from pgnotifyq.jobs"))
    assert [rows[ids[0]], rows[ids[-2]], rows[ids[-1]]] == [now, at, now + timedelta(seconds=60)]


def test_a_batch_with_keys_finds_their_holders(connection: Link) -> None:
    """A job whose key is held gets the holder's id, in its own place, within a batch and before it, in any size of batch."""
    held = ask_blocking(connection, enqueue.enqueue(SCHEMA, NewJob(job_type="noop", unique_key="held")))
    small = [*new(2), NewJob(job_type="noop", unique_key="held"), *[NewJob(job_type="noop", unique_key="twice")] * 2]
    for batch in (small, [*new(MANY), *small, *new(5)]):
        ids = ask_blocking(connection, bulk.enqueue_many(SCHEMA, batch))
        places = {place for place, job in enumerate(batch) if job.unique_key == "held"}
        assert [ids[place] for place in places] == [held]
        first, second = (ids[place] for place, job in enumerate(batch) if job.unique_key == "twice")
        assert first == second
        assert len(set(ids)) == len(ids) - 1
    assert value(connection, "select count(*) from pgnotifyq.jobs") == 1 + 3 + MANY + 2 + 5


def test_a_key_is_free_again_when_its_job_has_ended(connection: Link) -> None:
    """A key is held by unfinished jobs only, and by those of one tenant."""
    keyed = NewJob(job_type="noop", unique_key="k")
    first = ask_blocking(connection, enqueue.enqueue(SCHEMA, keyed))
    assert ask_blocking(connection, enqueue.enqueue(SCHEMA, attrs.evolve(keyed, org_id=OrgId(uuid.UUID(int=9))))) != first
    assert ask_blocking(connection, end.cancel(SCHEMA, first)) == "cancelled"
    assert ask_blocking(connection, enqueue.enqueue(SCHEMA, keyed)) != first


def test_a_key_whose_holder_is_being_cancelled(dsn: str, connection: Link, other: Link) -> None:
    """Who enqueues waits for the holder's transaction, and gets a job of its own when that frees the key."""
    keyed = NewJob(job_type="noop", unique_key="k")
    first = ask_blocking(connection, enqueue.enqueue(SCHEMA, keyed))
    got: list[JobId] = []

    def enqueue_late() -> None:
        got.append(ask_blocking(other, enqueue.enqueue(SCHEMA, keyed)))

    with at_once() as start, connection.transaction():
        ask_blocking(connection, end.cancel(SCHEMA, first))
        start(enqueue_late)
        until(dsn, BLOCKED, "other")
    assert got and got[0] is not None and got[0] != first


def test_batches_with_the_same_keys_in_opposite_orders(dsn: str, connection: Link, other: Link) -> None:
    """Of two who enqueue the same keys one waits for the other, and none deadlocks, whatever order they were given in."""
    batch = [NewJob(job_type="noop", unique_key=key) for key in "cab"]
    got: dict[str, list[JobId]] = {}

    def enqueue(link: Link, name: str, order: list[NewJob]) -> None:
        got[name] = ask_blocking(link, bulk.enqueue_many(SCHEMA, order))

    with at_once() as start, connection.transaction():
        # Holds the first key of the order and nothing else, so that the other must be waiting for that one.
        ask_blocking(connection, bulk.enqueue_many(SCHEMA, [batch[1]]))
        start(enqueue, other, "other", batch[::-1])
        until(dsn, BLOCKED, "other")
        enqueue(connection, "own", batch)
    assert got["other"] == got["own"][::-1]


def test_many_keys_against_each_other(dsn: str) -> None:
    """Racing batches of the same keys in random orders all end with the same ids for the same keys."""
    orders = [[f"k{(n * step) % 61}" for n in range(60)] for step in (1, 7, 60, 31)]
    found: list[dict[str, JobId]] = []

    def enqueue(keys: list[str]) -> None:
        with connect(dsn) as link:
            ids = ask_blocking(link, bulk.enqueue_many(SCHEMA, [NewJob(job_type="noop", unique_key=key) for key in keys]))
        found.append(dict(zip(keys, ids, strict=True)))

    with at_once() as start:
        for order in orders:
            start(enqueue, order)
    merged = {key: job_id for each in found for key, job_id in each.items()}
    assert all(merged[key] == job_id for each in found for key, job_id in each.items())


@pytest.mark.parametrize("count", [3, MANY])
def test_a_bad_payload_in_a_batch(connection: Link, count: int) -> None:
    """One payload that cannot be stored: none is enqueued, and the caller's transaction is still good."""
    bad = NewJob(job_type="noop", payload={"text": "a\x00b"})
    with connection.transaction():
        with pytest.raises(InvalidPayload):
            ask_blocking(connection, bulk.enqueue_many(SCHEMA, [*new(count), bad]))
        ask_blocking(connection, enqueue.enqueue(SCHEMA, new()[0]))
    assert value(connection, "select count(*) from pgnotifyq.jobs") == 1


def test_a_bad_payload_late_in_a_batch_that_is_streamed(connection: Link) -> None:
    """It is found when thousands are on their way: none of them is enqueued, and the connection is in order."""
    bad = NewJob(job_type="noop", payload={"text": "a\x00b"})
    with pytest.raises(InvalidPayload):
        ask_blocking(connection, bulk.enqueue_many(SCHEMA, [*new(5_000), bad]))
    assert value(connection, "select count(*) from pgnotifyq.jobs") == 0
    assert len(ask_blocking(connection, bulk.enqueue_many(SCHEMA, new(MANY)))) == MANY


def test_a_batch_that_fails_half_way(connection: Link) -> None:
    """All or none: a batch whose copied part went in, and whose last statement PostgreSQL refuses, leaves nothing."""
    connection.execute("alter table pgnotifyq.jobs add constraint no_keys check (unique_key is null)")
    try:
        with pytest.raises(psycopg.errors.CheckViolation):
            ask_blocking(connection, bulk.enqueue_many(SCHEMA, [*new(MANY), *new(1, unique_key="k")]))
        assert value(connection, "select count(*) from pgnotifyq.jobs") == 0
    finally:
        connection.execute("alter table pgnotifyq.jobs drop constraint no_keys")


@pytest.mark.parametrize("count", [2, MANY])
def test_a_connection_that_is_not_in_autocommit(dsn: str, connection: Link, count: int) -> None:
    """A batch of any size belongs to the transaction that its owner has implicitly begun: rolled back, it never was."""
    theirs = connect(dsn, autocommit=False)
    theirs.row_factory = dict_row  # type: ignore[assignment]  # which does not matter
    try:
        assert len(ask_blocking(theirs, bulk.enqueue_many(SCHEMA, new(count)))) == count
        theirs.rollback()
        assert value(connection, "select count(*) from pgnotifyq.jobs") == 0
        ask_blocking(theirs, bulk.enqueue_many(SCHEMA, new(count)))
        theirs.commit()
        assert value(connection, "select count(*) from pgnotifyq.jobs") == count
    finally:
        theirs.close()


@pytest.mark.parametrize("autocommit", [False, True])
@pytest.mark.parametrize("count", [1, MANY])
def test_a_blocking_connection(dsn: str, connection: Link, count: int, autocommit: bool) -> None:
    """A blocking psycopg connection enqueues in its own transaction, whatever its row factory is."""
    with psycopg.connect(dsn, row_factory=dict_row, autocommit=autocommit) as theirs:
        with theirs.transaction(force_rollback=True):
            ask_blocking(theirs, bulk.enqueue_many(SCHEMA, new(count)))
            ask_blocking(theirs, enqueue.enqueue(SCHEMA, new()[0]))
        assert value(connection, "select count(*) from pgnotifyq.jobs") == 0
        ids = ask_blocking(theirs, bulk.enqueue_many(SCHEMA, new(count)))
        last = ask_blocking(theirs, enqueue.enqueue(SCHEMA, new()[0]))
        theirs.commit()
    rows = fetch(connection, "select id from pgnotifyq.jobs order by scheduled_at, id")
    assert [row[0] for row in rows] == [*ids, last]


def test_a_large_batch_of_an_ordinary_role(plain: Link) -> None:
    """PostgreSQL denies COPY to roles that row security binds; a large batch is enqueued all the same, all or none."""
    schema = str(value(plain, "select current_user::text"))
    batch = [*new(MANY), NewJob(job_type="noop", unique_key="k")]
    ids = ask_blocking(plain, bulk.enqueue_many(schema, batch))
    rows = fetch(plain, f'select id from "{schema}".jobs order by scheduled_at, id')
    assert {row[0] for row in rows} == set(ids) and len(ids) == MANY + 1


def test_ids_of_a_batch_ascend() -> None:
    """Ids made here are uuids of version 7, each above the one before, even where the clock does not move."""
    ids = list(enqueue.new_ids(20_000))
    assert ids == sorted(set(ids))
    assert {(one.version, one.variant) for one in ids} == {(7, uuid.RFC_4122)}


def test_a_schema_that_is_not_there(connection: Link) -> None:
    """The error says what to do."""
    with pytest.raises(SchemaMissing, match="migrate"):
        ask_blocking(connection, enqueue.enqueue("elsewhere", new()[0]))


# Cancel


def test_cancel_tells_what_it_found(connection: Link) -> None:
    """cancelled, stopping, finished and unknown, each for its situation."""
    pending, running, done = ask_blocking(connection, bulk.enqueue_many(SCHEMA, new(3)))
    claimed = {job.id: job for job in claim(connection, 3)}
    settle(connection, claimed[pending], ENDINGS["release"])
    settle(connection, claimed[done], ENDINGS["complete"])
    told = [ask_blocking(connection, end.cancel(SCHEMA, job_id, "because")) for job_id in (pending, running, done, NOBODY)]
    assert told == ["cancelled", "stopping", "finished", "unknown"]
    stopping = ask_blocking(connection, look_verbs.get_job(SCHEMA, running))
    assert stopping is not None and (stopping.error_message, stopping.is_finished) == ("because", False)
    assert ask_blocking(connection, end.cancel(SCHEMA, bury(connection))) == "finished"


@pytest.mark.parametrize("why", ["a\x00b", "\ud800", "x" * 5000, "\x1b[31m"])
def test_a_hostile_reason(connection: Link, why: str) -> None:
    """Whatever the reason is, the job is cancelled, and what is stored can be shown."""
    job_id = ask_blocking(connection, enqueue.enqueue(SCHEMA, new()[0]))
    assert ask_blocking(connection, end.cancel(SCHEMA, job_id, why)) == "cancelled"
    found = ask_blocking(connection, look_verbs.get_job(SCHEMA, job_id))
    assert found is not None and found.error_message is not None
    assert found.error_message.replace("\n", "").isprintable() and len(found.error_message) <= 1000


# Looking


def test_jobs_are_listed_by_their_labels(connection: Link) -> None:
    """Statuses and derived labels both filter, each finds its own, newest first."""
    ids: dict[str, JobId] = {}
    for name in ("completed", "retrying", "running", "stopping", "cancelled", "pending"):
        ids[name] = ask_blocking(connection, enqueue.enqueue(SCHEMA, NewJob(job_type=name)))
    ids["scheduled"] = ask_blocking(connection, enqueue.enqueue(SCHEMA, NewJob(job_type="scheduled", delay_seconds=60)))
    claimed = {job.id: job for job in claim(connection, 4)}
    settle(connection, claimed[ids["completed"]], ENDINGS["complete"])
    settle(connection, claimed[ids["retrying"]], ENDINGS["retry"])
    for name in ("stopping", "cancelled"):
        ask_blocking(connection, end.cancel(SCHEMA, ids[name]))

    for name in set(ids) - {"pending", "cancelled"}:
        assert [job.id for job in ask_blocking(connection, look_verbs.list_jobs(SCHEMA, status=name))] == [ids[name]], name
    assert [job.id for job in ask_blocking(connection, look_verbs.list_jobs(SCHEMA, status="pending"))] == [ids["pending"]]
    assert [job.id for job in ask_blocking(connection, look_verbs.list_jobs(SCHEMA, status="cancelled"))] == [ids["cancelled"]]
    everything = ask_blocking(connection, look_verbs.list_jobs(SCHEMA))
    assert [job.id for job in everything] == sorted(ids.values(), reverse=True)
    assert [job.id for job in ask_blocking(connection, look_verbs.list_jobs(SCHEMA, limit=2))] == sorted(
        ids.values(), reverse=True
    )[:2]
    with pytest.raises(ConfigError, match="stopping"):
        ask_blocking(connection, look_verbs.list_jobs(SCHEMA, status="lost"))
    with pytest.raises(ConfigError, match="limit"):
        ask_blocking(connection, look_verbs.list_jobs(SCHEMA, limit=-1))


def test_jobs_are_listed_by_queue_type_and_tenant(connection: Link) -> None:
    """Filters narrow, together."""
    org = OrgId(uuid.UUID(int=5))
    wanted = ask_blocking(connection, enqueue.enqueue(SCHEMA, NewJob(job_type="a", queue_name="q", org_id=org)))
    for job in (
        NewJob(job_type="b", queue_name="q", org_id=org),
        NewJob(job_type="a", org_id=org),
        NewJob(job_type="a", queue_name="q"),
    ):
        ask_blocking(connection, enqueue.enqueue(SCHEMA, job))
    found = ask_blocking(connection, look_verbs.list_jobs(SCHEMA, queue="q", job_type="a", org_id=org))
    assert [job.id for job in found] == [wanted]


def test_a_job_is_found_by_its_key_and_not_by_a_scan(connection: Link) -> None:
    """Looking at one job reads one index entry, however many there are and however stale the statistics."""
    ask_blocking(connection, bulk.enqueue_many(SCHEMA, new(2000)))
    job_id = ask_blocking(connection, enqueue.enqueue(SCHEMA, new()[0]))
    look = look_verbs.get_job(SCHEMA, job_id)
    plan = "\n".join(line for (line,) in ask_blocking(connection, Ask(b"explain " + look.statement, look.parameters, rows)))
    assert "jobs_pkey" in plan and "Seq Scan" not in plan


def test_history_shows_the_attempt_under_way(connection: Link) -> None:
    """Ended attempts and the running one, oldest first."""
    job_id = ask_blocking(connection, enqueue.enqueue(SCHEMA, new()[0]))
    settle(connection, claim_one(connection), ENDINGS["release"])
    claim_one(connection, worker=BOB)
    attempts = ask_blocking(connection, look_verbs.history(SCHEMA, job_id))
    assert [(one.outcome, one.worker_id, one.ended_at is None) for one in attempts] == [
        ("released", ANN, False),
        ("running", BOB, True),
    ]
    assert ask_blocking(connection, look_verbs.history(SCHEMA, NOBODY)) == []


def test_stats_count_each_state_once(connection: Link) -> None:
    """Every job is in exactly one column of its queue; dead letters of a queue without jobs count too."""
    ask_blocking(connection, bulk.enqueue_many(SCHEMA, new(5, queue_name="q")))
    ask_blocking(connection, enqueue.enqueue(SCHEMA, NewJob(job_type="noop", queue_name="q", delay_seconds=60)))
    first, second, third = claim(connection, 3, queues=["q"])
    settle(connection, first, ENDINGS["complete"])
    settle(connection, second, ENDINGS["retry"])
    bury(connection, queue_name="grave")
    pass_time(connection, 3)
    grave, q = ask_blocking(connection, look_verbs.stats(SCHEMA))
    assert (grave.queue_name, grave.dead, grave.pending, grave.oldest_due_seconds) == ("grave", 1, 0, None)
    counts = (q.pending, q.scheduled, q.retrying, q.running, q.stopping, q.completed, q.cancelled, q.dead)
    assert counts == (2, 1, 1, 1, 0, 1, 0, 0)
    assert q.oldest_due_seconds is not None and q.oldest_due_seconds >= 3
    ask_blocking(connection, end.cancel(SCHEMA, third.id))
    assert (ask_blocking(connection, look_verbs.stats(SCHEMA)))[1].stopping == 1


def register(connection: Link, worker: Any, *, has_session: bool, slots: int = 3) -> None:
    ask_blocking(connection, workers.register( SCHEMA, worker_id=worker, host="here", pid=1, queues=["default"], slots=slots, version="1",
        has_session=has_session, lease_seconds=60.0,
    ))  # fmt: skip


def test_a_worker_is_alive_while_its_session_is(dsn: str, connection: Link) -> None:
    """Its session's lock speaks for it, and when that is gone it is shown as gone; looking takes no lock."""
    session = connect(dsn)
    ask_blocking(session, workers.hold_session(SCHEMA, ANN))
    register(connection, ANN, has_session=True)
    ask_blocking(connection, bulk.enqueue_many(SCHEMA, new(2)))
    claim(connection, 1)
    with connection.transaction():
        (row,) = ask_blocking(connection, look_verbs.list_workers(SCHEMA))
        assert (row.worker_id, row.is_alive, row.state, row.running, row.listening) == (ANN, True, "running", 1, "push")
        session.close()
        until(dsn, f"{SESSION_LOCKS} = 0")
        (row,) = ask_blocking(connection, look_verbs.list_workers(SCHEMA))
        assert (row.is_alive, row.state) == (False, "gone")
        assert value(connection, f"select {SESSION_LOCKS}") == 0


def test_a_worker_without_a_session_lives_by_its_beats(connection: Link) -> None:
    """Three leases without a beat, and it is shown as gone."""
    register(connection, ANN, has_session=False)
    (row,) = ask_blocking(connection, look_verbs.list_workers(SCHEMA))
    assert (row.is_alive, row.listening) == (True, "polling")
    pass_time(connection, 3 * 60 + 1)
    (row,) = ask_blocking(connection, look_verbs.list_workers(SCHEMA))
    assert (row.is_alive, row.state) == (False, "gone")


def test_explain_says_why_a_job_does_not_run(connection: Link) -> None:
    """Jobs before it, when it falls due, who could run it; nothing of jobs that are not there."""
    first = (ask_blocking(connection, bulk.enqueue_many(SCHEMA, new(4))))[0]
    register(connection, ANN, has_session=False, slots=3)
    claim(connection, 1)
    last = ask_blocking(connection, enqueue.enqueue(SCHEMA, NewJob(job_type="noop", priority=-1)))
    later = ask_blocking(connection, enqueue.enqueue(SCHEMA, NewJob(job_type="noop", delay_seconds=600)))
    why = ask_blocking(connection, explaining.explain(SCHEMA, last))
    assert (why.label, why.jobs_before, why.workers, why.slots_free, why.lease_seconds_left) == ("pending", 3, 1, 2, None)
    assert why.due_in_seconds is not None and why.due_in_seconds <= 0
    why = ask_blocking(connection, explaining.explain(SCHEMA, later))
    assert why.label == "scheduled" and why.due_in_seconds is not None and why.due_in_seconds > 500
    why = ask_blocking(connection, explaining.explain(SCHEMA, first))
    assert (why.label, why.jobs_before, why.due_in_seconds) == ("running", None, None)
    assert why.lease_seconds_left is not None and why.lease_seconds_left > 0
    assert (ask_blocking(connection, explaining.explain(SCHEMA, NOBODY))).answers == ["unknown"]


# Dead letters


def test_a_dead_letter_is_requeued_as_it_was(connection: Link) -> None:
    """The job is back with its id and payload and all its attempts before it; the letter is gone; twice does nothing."""
    job_id = bury(connection, payload={"a": 1}, priority=4, unique_key="k", max_attempts=2)
    letter = ask_blocking(connection, look_verbs.get_dead(SCHEMA, job_id))
    assert letter is not None and (letter.reason, letter.error_message, letter.payload) == ("exhausted", "hopeless", {"a": 1})
    assert [(one.attempt, one.outcome) for one in letter.history] == [(1, "failed")]
    assert ask_blocking(connection, look_verbs.get_job(SCHEMA, job_id)) is None
    assert ask_blocking(connection, end.requeue(SCHEMA, job_id)) is True
    assert ask_blocking(connection, end.requeue(SCHEMA, job_id)) is False
    found = ask_blocking(connection, look_verbs.get_job(SCHEMA, job_id))
    assert found is not None
    assert (found.status, found.attempts, found.priority, found.payload, found.unique_key, found.max_attempts) == (
        Status.PENDING, 0, 4, {"a": 1}, "k", 2,
    )  # fmt: skip
    assert ask_blocking(connection, look_verbs.get_dead(SCHEMA, job_id)) is None
    assert len(ask_blocking(connection, look_verbs.history(SCHEMA, job_id))) == 1


def test_requeue_of_a_key_that_is_held(connection: Link) -> None:
    """A typed error, and the letter stays."""
    job_id = bury(connection, unique_key="k")
    ask_blocking(connection, enqueue.enqueue(SCHEMA, NewJob(job_type="noop", unique_key="k")))
    with pytest.raises(UniqueKeyHeld, match=str(job_id)):
        ask_blocking(connection, end.requeue(SCHEMA, job_id))
    assert ask_blocking(connection, look_verbs.get_dead(SCHEMA, job_id)) is not None


def test_requeue_all_takes_the_oldest_that_can_be(connection: Link) -> None:
    """The oldest first, filtered, up to the limit; one whose key is held stays and does not count."""
    held = bury(connection, unique_key="k")
    rest = [bury(connection) for _ in range(3)]
    elsewhere = bury(connection, queue_name="q")
    ask_blocking(connection, enqueue.enqueue(SCHEMA, NewJob(job_type="noop", unique_key="k")))
    assert ask_blocking(connection, end.requeue_all(SCHEMA, look_verbs.DeadFilter(queue="default"), limit=2)) == 2
    assert [letter.id for letter in ask_blocking(connection, look_verbs.list_dead(SCHEMA))] == [elsewhere, rest[2], held]
    assert ask_blocking(connection, end.requeue_all(SCHEMA, limit=0)) == 0
    assert ask_blocking(connection, end.requeue_all(SCHEMA, look_verbs.DeadFilter(job_type="other"))) == 0
    assert ask_blocking(connection, end.requeue_all(SCHEMA)) == 2
    assert [letter.id for letter in ask_blocking(connection, look_verbs.list_dead(SCHEMA))] == [held]


def test_dead_letters_are_purged(connection: Link) -> None:
    """By id or by age, with their history; without either, none."""
    old = [bury(connection) for _ in range(2)]
    pass_time(connection, 100)
    young = bury(connection)
    assert ask_blocking(connection, end.purge_dead(SCHEMA)) == 0
    assert ask_blocking(connection, end.purge_dead(SCHEMA, older_than_seconds=50)) == 2
    assert ask_blocking(connection, end.purge_dead(SCHEMA, job_id=old[0])) == 0
    assert ask_blocking(connection, look_verbs.history(SCHEMA, old[0])) == []
    assert [letter.id for letter in ask_blocking(connection, look_verbs.list_dead(SCHEMA))] == [young]
    assert ask_blocking(connection, end.purge_dead(SCHEMA, job_id=young)) == 1


def test_await_job_says_whether_there_is_something_to_wait_for(connection: Link) -> None:
    """True while the job is to end, its handler included; False when it has, or is not there."""
    job_id = ask_blocking(connection, enqueue.enqueue(SCHEMA, new()[0]))
    told = [ask_blocking(connection, end.await_job(SCHEMA, job_id)) for _ in range(2)]
    claimed = claim_one(connection)
    ask_blocking(connection, end.cancel(SCHEMA, job_id))
    told.append(ask_blocking(connection, end.await_job(SCHEMA, job_id)))
    settle(connection, claimed, ENDINGS["cancel"])
    told += [ask_blocking(connection, end.await_job(SCHEMA, job_id)), ask_blocking(connection, end.await_job(SCHEMA, NOBODY))]
    assert told == [True, True, True, False, False]
