"""A row that cannot be claimed, or not be sent, stops no claim: it is put aside or brought without its payload, and the rest goes on."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from pgnotifyq.ledger import claim as claim_verbs
from pgnotifyq.ledger.statements import query
from pgnotifyq.model.job import JobId
from pgnotifyq.model.payload import Undecodable
from pgnotifyq.wire.asking import ask_blocking
from pgnotifyq.wire.blocking import Connection, connect
from tests.ledger.support import ANN, SCHEMA, claim, enqueue, existing, fetch, migrate, pass_time, update_status, value

Link = Connection[Any]
MIB = 1 << 20
EVERYTHING: dict[str, Any] = {"worker_id": ANN, "queues": ["default"], "lease_seconds": 60.0}


def take(connection: Link, jobs_max: int = 10, **more: Any) -> claim_verbs.Claim:
    """Claim jobs, by one statement."""
    return ask_blocking(connection, claim_verbs.claim(SCHEMA, jobs_max=jobs_max, **EVERYTHING, **more))


def insert(connection: Link, payload: str, count: int = 1) -> list[JobId]:
    """Insert jobs by raw SQL, with a payload that is an expression of SQL; return their ids in order."""
    rows = fetch(
        connection, f"insert into pgnotifyq.jobs (job_type, payload) select 'noop', {payload} from generate_series(1, {count})"
        " returning id"
    )  # fmt: skip
    return sorted(row[0] for row in rows)


# Times


@pytest.mark.parametrize("time", ["infinity", "294276-12-31", "10000-01-01"])
@pytest.mark.parametrize("is_alone", [True, False])
def test_time_beyond_all_clocks(connection: Link, time: str, is_alone: bool) -> None:
    """A job scheduled for never waits for ever, and a claim says nothing absurd of it; the others are claimed."""
    job_id = enqueue(connection)
    connection.execute("update pgnotifyq.jobs set scheduled_at = %s, priority = 9", (time,))
    mine = [] if is_alone else [enqueue(connection)]
    found = take(connection)
    assert [job.id for job in found.jobs] == mine
    assert (found.ran_dry, found.is_contended) == (True, False)
    assert (found.next_due_seconds is None) == (time == "infinity")
    assert existing(connection, job_id)["status"] == "pending"


@pytest.mark.parametrize("time", ["-infinity", "4713-01-01 BC", "0001-01-01"])
def test_time_before_all_clocks(connection: Link, other: Link, time: str) -> None:
    """Such a job is due: it is claimed, and waited for while somebody holds its row."""
    job_id = enqueue(connection)
    connection.execute("update pgnotifyq.jobs set scheduled_at = %s", (time,))
    with other.transaction():
        other.execute("select from pgnotifyq.jobs for update")
        found = take(connection)
        assert (found.jobs, found.is_contended) == ([], True)
    assert [job.id for job in claim(connection)] == [job_id]


def test_sleeper_of_a_queue_that_is_never_due(connection: Link) -> None:
    """A worker that sleeps expects nothing of it."""
    enqueue(connection)
    connection.execute("update pgnotifyq.jobs set scheduled_at = 'infinity'")
    connection.execute("select pgnotifyq.fall_asleep(%s, '{default}')", (ANN,))
    found = take(connection, is_asleep=True)
    assert (found.next_due_seconds, found.is_contended) == (None, False)
    fetch(connection, _query("stats"))
    fetch(connection, "select pgnotifyq.explain(id) from pgnotifyq.jobs")


def _query(name: str) -> str:
    return query(name, SCHEMA).decode().replace("$1", "(select id from pgnotifyq.jobs)")


# Bytes


def test_claim_is_bounded_in_bytes(connection: Link) -> None:
    """Of large payloads a claim takes as many as fit, and one at least; it has not run dry, and the next goes on in order."""
    noise = "to_jsonb((select string_agg(md5(n::text || random()::text), '') from generate_series(1, 8000) as n))"  # 256 kB
    made = insert(connection, noise, 7)
    taken = []
    for bytes_max, count in ((MIB, 4), (1, 1), (500_000, 1), (MIB, 1)):
        found = take(connection, bytes_max=bytes_max)
        assert len(found.jobs) == count
        assert found.ran_dry == (bytes_max == MIB and count == 1)
        taken += [job.id for job in found.jobs]
    assert taken == made


def test_payloads_that_are_large_only_when_unpacked(connection: Link) -> None:
    """A megabyte that lies there in twelve kilobytes counts as what it may become."""
    insert(connection, "to_jsonb(repeat('x', 1048000))", 60)
    found = take(connection, 50)
    assert 1 <= len(found.jobs) <= 16
    assert not found.ran_dry
    assert all(len(job.payload) == 1_048_000 for job in found.jobs)


@pytest.mark.parametrize("others", [False, True])
def test_what_was_saved_counts(connection: Link, others: bool) -> None:
    """Of jobs with large states a claim takes as many as fit, and the next goes on in order."""
    made = insert(connection, "'{}'", 7)
    if others:
        enqueue(connection, "other", priority=1)
    noise = "to_jsonb((select string_agg(md5(n::text || random()::text), '') from generate_series(1, 2000) as n))"  # 64 kB
    fetch(connection, f"update pgnotifyq.jobs set saved = {noise} where job_type = 'noop'")
    taken = []
    for count in (4, 3):
        found = take(connection, bytes_max=MIB // 4, only=claim_verbs.wanted({"noop": None}))
        assert len(found.jobs) == count
        taken += [job.id for job in found.jobs]
    assert taken == made


def test_bytes_are_not_counted_where_there_are_none(connection: Link) -> None:
    """Small payloads are bounded by the number asked for alone."""
    insert(connection, "'{}'", 1000)
    assert len(take(connection, 900).jobs) == 900


@pytest.mark.parametrize("others", [False, True])
def test_bytes_are_those_of_the_whole_claim(connection: Link, others: bool) -> None:
    """They are counted over priorities and queues, whether a look at others' jobs comes in between or not."""
    noise = "to_jsonb((select string_agg(md5(n::text || random()::text), '') from generate_series(1, 8000) as n))"  # 256 kB
    made = []
    for place, (queue, priority) in enumerate((("default", 2), ("default", 1), ("second", 2), ("second", 1), ("second", 0))):
        made += insert(connection, noise)
        connection.execute(
            "update pgnotifyq.jobs set queue_name = %s, priority = %s where id = %s", (queue, priority, made[place])
        )
    if others:
        enqueue(connection, "other", queue_name="default", priority=1)
    only = claim_verbs.wanted({"noop": None})
    queues = {**EVERYTHING, "queues": ["default", "second"]}
    found = ask_blocking(connection, claim_verbs.claim(SCHEMA, jobs_max=10, only=only, bytes_max=MIB, **queues))
    assert ([job.id for job in found.jobs], found.ran_dry) == (made[:4], False)
    found = ask_blocking(connection, claim_verbs.claim(SCHEMA, jobs_max=10, only=only, bytes_max=MIB, **queues))
    assert ([job.id for job in found.jobs], found.ran_dry) == (made[4:], True)


def test_bytes_that_are_used_up_beside_a_job_that_is_locked(connection: Link, other: Link) -> None:
    """The claim has not run dry: what it left for its bytes is there, though the queue's head is somebody else's."""
    noise = "to_jsonb((select string_agg(md5(n::text || random()::text), '') from generate_series(1, 8000) as n))"  # 256 kB
    made = insert(connection, noise, 4)
    with other.transaction():
        other.execute("select from pgnotifyq.jobs where id = %s for update", (made[0],))
        found = take(connection, bytes_max=600_000)
        assert ([job.id for job in found.jobs], found.ran_dry) == (made[1:3], False)
        found = take(connection, bytes_max=600_000)
        assert ([job.id for job in found.jobs], found.is_contended) == (made[3:], True)


@pytest.mark.parametrize("others", [False, True])
def test_payload_that_is_too_large_to_be_sent(connection: Link, others: bool) -> None:
    """It stays in the server: its job comes without it, to be buried with a reason; the rest comes as ever."""
    before = enqueue(connection, priority=1)
    (large,) = insert(connection, "to_jsonb(repeat('x', 17 * 1048576))")
    after = enqueue(connection)
    if others:
        enqueue(connection, "other", priority=2)
    only = claim_verbs.wanted({"noop": None}) if others else None
    taken = [job for _ in range(3) for job in take(connection, 3, only=only).jobs]
    assert [job.id for job in taken] == [before, large, after]
    problem = taken[1].payload
    assert isinstance(problem, Undecodable)
    assert "too large" in problem.why
    assert taken[1].whole.payload == problem
    assert [job.payload for job in (taken[0], taken[2])] == [{}, {}]


def test_named_payload_that_is_too_large(connection: Link) -> None:
    """The same where a wake-up names it."""
    (large,) = insert(connection, "to_jsonb(repeat('x', 17 * 1048576))")
    named = ask_blocking(
        connection, claim_verbs.claim_named(SCHEMA, worker_id=ANN, queues=["default"], job_id=str(large), lease_seconds=60.0)
    )
    assert named.job is not None
    assert isinstance(named.job.payload, Undecodable)


def test_bytes_that_are_no_text(server_dsn: str) -> None:
    """In a database of any bytes (SQL_ASCII) a payload that is not UTF-8 makes its own job undecodable, and no other."""
    name = "pgnotifyq_sql_ascii"
    with connect(server_dsn) as server:
        server.execute(f"drop database if exists {name}".encode())
        server.execute(f"create database {name} encoding 'SQL_ASCII' lc_collate 'C' lc_ctype 'C' template template0".encode())
        try:
            with connect(make_conninfo(server_dsn, dbname=name, client_encoding="utf8")) as connection:
                migrate(connection)
                good = enqueue(connection, payload='{"a": "\u00e4"}')
                (bad,) = insert(connection, "('\"' || chr(228) || '\"')::jsonb")
                with pytest.raises(psycopg.Error):
                    take(connection)
                found = ask_blocking(connection, claim_verbs.claim_apart(SCHEMA, jobs_max=10, **EVERYTHING))
                jobs = {job.id: job for job in found.jobs}
                assert jobs[good].payload == {"a": "\u00e4"}
                assert jobs[good].whole.payload == jobs[good].payload
                assert isinstance(jobs[bad].payload, Undecodable)
        finally:
            server.execute(f"drop database {name} with (force)".encode())


# Rows that refuse


REFUSALS = {
    "a trigger": (
        "create function pg_temp.refuse() returns trigger language plpgsql as"
        " $$ begin if new.priority = 7 then raise 'not this one'; end if; return new; end $$;"
        " create trigger refuse before update on pgnotifyq.jobs for each row execute function pg_temp.refuse()"
    ),
    "a trigger that misses a table": (
        "create function pg_temp.refuse() returns trigger language plpgsql as"
        " $$ begin if new.priority = 7 then insert into nowhere values (1); end if; return new; end $$;"
        " create trigger refuse after update on pgnotifyq.jobs for each row execute function pg_temp.refuse()"
    ),
    "a check": "alter table pgnotifyq.jobs add constraint refuse check (priority <> 7 or status <> 'running')",
    "a constraint that waits for the commit": (
        "create function pg_temp.refuse() returns trigger language plpgsql as"
        " $$ begin if new.priority = 7 then raise 'not this one'; end if; return new; end $$;"
        " create constraint trigger refuse after update on pgnotifyq.jobs deferrable initially deferred"
        " for each row execute function pg_temp.refuse()"
    ),
}


@pytest.fixture(params=REFUSALS)
def refusing(connection: Link, request: pytest.FixtureRequest) -> Any:
    """Give a table of jobs that refuses the update of rows of priority 7."""
    connection.execute(REFUSALS[request.param].encode())
    yield connection
    connection.execute("drop trigger if exists refuse on pgnotifyq.jobs")
    connection.execute("alter table pgnotifyq.jobs drop constraint if exists refuse")
    connection.execute("drop function if exists pg_temp.refuse()")


def test_row_that_refuses_to_be_claimed(refusing: Link) -> None:
    """It is put aside and told, the rest is claimed; it is passed over until its time comes, and tried again then."""
    first, bad, last = [enqueue(refusing, priority=priority) for priority in (9, 7, 5)]
    with pytest.raises(psycopg.Error):
        take(refusing)
    found = ask_blocking(refusing, claim_verbs.claim_apart(SCHEMA, jobs_max=10, **EVERYTHING))
    assert [job.id for job in found.jobs] == [first, last]
    assert [aside.job_id for aside in found.put_aside] == [bad]
    assert found.put_aside[0].why
    assert fetch(refusing, "select job_id, verb, tries from pgnotifyq.job_troubles") == [(bad, "claim", 1)]

    behind = enqueue(refusing)
    dry = take(refusing)
    assert [job.id for job in dry.jobs] == [behind]
    assert (dry.ran_dry, dry.is_contended) == (True, False)
    assert dry.next_due_seconds is not None and 0 < dry.next_due_seconds <= 10

    pass_time(refusing, 11)
    with pytest.raises(psycopg.Error):
        take(refusing)
    again = ask_blocking(refusing, claim_verbs.claim_apart(SCHEMA, jobs_max=10, **EVERYTHING))
    assert ([job.id for job in again.jobs], [aside.job_id for aside in again.put_aside]) == ([], [bad])
    assert value(refusing, "select tries from pgnotifyq.job_troubles") == 2


def test_claim_beside_a_row_that_refuses(refusing: Link) -> None:
    """One verb claims the others and puts that row aside; without such a row it is a plain claim, which may run dry."""
    first, bad, last = [enqueue(refusing, priority=priority) for priority in (9, 7, 5)]
    surely = claim_verbs.claim_surely(SCHEMA, jobs_max=10, **EVERYTHING)
    found = ask_blocking(refusing, surely)
    assert ([job.id for job in found.jobs], [aside.job_id for aside in found.put_aside]) == ([first, last], [bad])
    found = ask_blocking(refusing, surely)
    assert (found.jobs, list(found.put_aside), found.ran_dry) == ([], [], True)


def test_claim_that_fails_over_no_row(connection: Link) -> None:
    """An error for which no row is to blame is raised."""
    enqueue(connection)
    with pytest.raises(psycopg.errors.InvalidSchemaName):
        ask_blocking(connection, claim_verbs.claim_surely("nowhere", jobs_max=10, **EVERYTHING))


def test_row_that_refuses_no_more(connection: Link) -> None:
    """Claimed after all, it is in trouble no more."""
    job_id = enqueue(connection)
    org_id = existing(connection, job_id)["org_id"]
    connection.execute("select pgnotifyq.note_trouble(%s, %s, 'claim', 'P0001', 'a test')", (org_id, job_id))
    assert claim(connection) == []
    named = ask_blocking(
        connection, claim_verbs.claim_named(SCHEMA, worker_id=ANN, queues=["default"], job_id=str(job_id), lease_seconds=60.0)
    )
    assert (named.job, named.is_still_there) == (None, True)
    pass_time(connection, 11)
    assert [job.id for job in claim(connection)] == [job_id]
    assert value(connection, "select count(*) from pgnotifyq.job_troubles") == 0


def test_named_row_that_refuses(refusing: Link) -> None:
    """A wake-up that names it brings nothing, and whoever heard it looks for itself."""
    bad = enqueue(refusing, priority=7)
    named = ask_blocking(
        refusing, claim_verbs.claim_named(SCHEMA, worker_id=ANN, queues=["default"], job_id=str(bad), lease_seconds=60.0)
    )
    assert (named.job, named.is_still_there) == (None, True)


def test_error_of_the_server_is_no_row_of_anybodys(connection: Link) -> None:
    """What says nothing of the row, as a deadlock, is raised: nothing is put aside for it."""
    connection.execute(
        "create function pg_temp.refuse() returns trigger language plpgsql as"
        " $$ begin raise 'busy' using errcode = '40P01'; end $$;"
        " create trigger refuse before update on pgnotifyq.jobs for each row execute function pg_temp.refuse()"
    )
    enqueue(connection)
    try:
        with pytest.raises(psycopg.errors.DeadlockDetected):
            ask_blocking(connection, claim_verbs.claim_apart(SCHEMA, jobs_max=10, **EVERYTHING))
    finally:
        connection.execute("drop trigger refuse on pgnotifyq.jobs")
    assert value(connection, "select count(*) from pgnotifyq.job_troubles") == 0


# One size everywhere


@pytest.mark.parametrize("of", ["list", "object", "text", "names"])
def test_payload_has_one_size(connection: Link, of: str) -> None:
    """SQL counts what the client counts: the compact text, whatever spaces PostgreSQL writes, and none inside of a text."""
    payload: Any = {
        "list": [1] * 1000,
        "object": {f"k{n}": n for n in range(1000)},
        "text": ', : ,, \\" , ' * 100,
        "names": {'a, "b": c\\': [", ", {": ": None}]},
    }[of]
    compact = json.dumps(payload, separators=(",", ":"), ensure_ascii=False)
    assert value(connection, "select pgnotifyq.compact_bytes(%s::jsonb)", compact) == len(compact.encode())


def test_payload_of_a_megabyte_with_many_spaces(connection: Link) -> None:
    """A megabyte of compact JSON is accepted, and a byte more is not, though PostgreSQL writes half as much again."""
    most = json.dumps([1] * ((MIB - 2) // 2), separators=(",", ":")) + " "
    assert enqueue(connection, payload=most)
    with pytest.raises(psycopg.Error, match="bytes"):
        enqueue(connection, payload=json.dumps([1] * (MIB // 2 + 1)))


@pytest.mark.parametrize("time", ["infinity", "-infinity", "0001-12-31", "9999-01-01", "4713-01-01 BC", "294276-12-31"])
def test_time_that_clients_refuse(connection: Link, time: str) -> None:
    """enqueue() refuses it as the client does, and says what to use."""
    with pytest.raises(psycopg.Error, match=r"scheduled_at .* is out of range") as caught:
        enqueue(connection, scheduled_at=time)
    assert caught.value.sqlstate == "PNQ02"
    for good in ("0002-01-01 00:00+00", "9998-12-31 23:59:59+00"):
        job_id = enqueue(connection, scheduled_at=good)
        update_status(connection, job_id)
