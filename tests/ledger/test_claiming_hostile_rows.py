"""A row that cannot be claimed, or not be sent, stops no claim: it is put aside or brought without its payload, and the rest goes on."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from pgnotifyq.ledger import claim as claim_verbs
from pgnotifyq.ledger.statements import query
from pgnotifyq.migrating import migrate
from pgnotifyq.model.job import JobId
from pgnotifyq.model.payload import Undecodable
from pgnotifyq.wire.asking import ask
from pgnotifyq.wire.connection import Connection, open_connection
from tests.ledger.support import ANN, SCHEMA, claim, enqueue, existing, fetch, pass_time, update_status, value

Link = Connection[Any]
MIB = 1 << 20
EVERYTHING: dict[str, Any] = {"worker_id": ANN, "queues": ["default"], "lease_seconds": 60.0}


async def take(connection: Link, jobs_max: int = 10, **more: Any) -> claim_verbs.Claim:
    """Claim jobs, by one statement."""
    return await ask(connection, claim_verbs.claim(SCHEMA, jobs_max=jobs_max, **EVERYTHING, **more))


async def insert(connection: Link, payload: str, count: int = 1) -> list[JobId]:
    """Insert jobs by raw SQL, with a payload that is an expression of SQL; return their ids in order."""
    rows = await fetch(
        connection, f"insert into pgnotifyq.jobs (job_type, payload) select 'noop', {payload} from generate_series(1, {count})"
        " returning id"
    )  # fmt: skip
    return sorted(row[0] for row in rows)


# Times


@pytest.mark.parametrize("time", ["infinity", "294276-12-31", "10000-01-01"])
@pytest.mark.parametrize("is_alone", [True, False])
async def test_time_beyond_all_clocks(connection: Link, time: str, is_alone: bool) -> None:
    """A job scheduled for never waits for ever, and a claim says nothing absurd of it; the others are claimed."""
    job_id = await enqueue(connection)
    await connection.execute("update pgnotifyq.jobs set scheduled_at = %s, priority = 9", (time,))
    mine = [] if is_alone else [await enqueue(connection)]
    found = await take(connection)
    assert [job.id for job in found.jobs] == mine
    assert (found.ran_dry, found.is_contended) == (True, False)
    assert (found.next_due_seconds is None) == (time == "infinity")
    assert (await existing(connection, job_id))["status"] == "pending"


@pytest.mark.parametrize("time", ["-infinity", "4713-01-01 BC", "0001-01-01"])
async def test_time_before_all_clocks(connection: Link, other: Link, time: str) -> None:
    """Such a job is due: it is claimed, and waited for while somebody holds its row."""
    job_id = await enqueue(connection)
    await connection.execute("update pgnotifyq.jobs set scheduled_at = %s", (time,))
    async with other.transaction():
        await other.execute("select from pgnotifyq.jobs for update")
        found = await take(connection)
        assert (found.jobs, found.is_contended) == ([], True)
    assert [job.id for job in await claim(connection)] == [job_id]


async def test_sleeper_of_a_queue_that_is_never_due(connection: Link) -> None:
    """A worker that sleeps expects nothing of it."""
    await enqueue(connection)
    await connection.execute("update pgnotifyq.jobs set scheduled_at = 'infinity'")
    await connection.execute("select pgnotifyq.fall_asleep(%s, '{default}')", (ANN,))
    found = await take(connection, is_asleep=True)
    assert (found.next_due_seconds, found.is_contended) == (None, False)
    await fetch(connection, _query("stats"))
    await fetch(connection, "select pgnotifyq.explain(id) from pgnotifyq.jobs")


def _query(name: str) -> str:
    return query(name, SCHEMA).decode().replace("$1", "(select id from pgnotifyq.jobs)")


# Bytes


async def test_claim_is_bounded_in_bytes(connection: Link) -> None:
    """Of large payloads a claim takes as many as fit, and one at least; it has not run dry, and the next goes on in order."""
    noise = "to_jsonb((select string_agg(md5(n::text || random()::text), '') from generate_series(1, 8000) as n))"  # 256 kB
    made = await insert(connection, noise, 7)
    taken = []
    for bytes_max, count in ((MIB, 4), (1, 1), (500_000, 1), (MIB, 1)):
        found = await take(connection, bytes_max=bytes_max)
        assert len(found.jobs) == count
        assert found.ran_dry == (bytes_max == MIB and count == 1)
        taken += [job.id for job in found.jobs]
    assert taken == made


async def test_payloads_that_are_large_only_when_unpacked(connection: Link) -> None:
    """A megabyte that lies there in twelve kilobytes counts as what it may become."""
    await insert(connection, "to_jsonb(repeat('x', 1048000))", 60)
    found = await take(connection, 50)
    assert 1 <= len(found.jobs) <= 16
    assert not found.ran_dry
    assert all(len(job.payload) == 1_048_000 for job in found.jobs)


@pytest.mark.parametrize("others", [False, True])
async def test_what_was_saved_counts(connection: Link, others: bool) -> None:
    """Of jobs with large states a claim takes as many as fit, and the next goes on in order."""
    made = await insert(connection, "'{}'", 7)
    if others:
        await enqueue(connection, "other", priority=1)
    noise = "to_jsonb((select string_agg(md5(n::text || random()::text), '') from generate_series(1, 2000) as n))"  # 64 kB
    await fetch(connection, f"update pgnotifyq.jobs set saved = {noise} where job_type = 'noop'")
    taken = []
    for count in (4, 3):
        found = await take(connection, bytes_max=MIB // 4, only=claim_verbs.wanted({"noop": None}))
        assert len(found.jobs) == count
        taken += [job.id for job in found.jobs]
    assert taken == made


async def test_bytes_are_not_counted_where_there_are_none(connection: Link) -> None:
    """Small payloads are bounded by the number asked for alone."""
    await insert(connection, "'{}'", 1000)
    assert len((await take(connection, 900)).jobs) == 900


@pytest.mark.parametrize("others", [False, True])
async def test_bytes_are_those_of_the_whole_claim(connection: Link, others: bool) -> None:
    """They are counted over priorities and queues, whether a look at others' jobs comes in between or not."""
    noise = "to_jsonb((select string_agg(md5(n::text || random()::text), '') from generate_series(1, 8000) as n))"  # 256 kB
    made = []
    for place, (queue, priority) in enumerate((("default", 2), ("default", 1), ("second", 2), ("second", 1), ("second", 0))):
        made += await insert(connection, noise)
        await connection.execute(
            "update pgnotifyq.jobs set queue_name = %s, priority = %s where id = %s", (queue, priority, made[place])
        )
    if others:
        await enqueue(connection, "other", queue_name="default", priority=1)
    only = claim_verbs.wanted({"noop": None})
    queues = {**EVERYTHING, "queues": ["default", "second"]}
    found = await ask(connection, claim_verbs.claim(SCHEMA, jobs_max=10, only=only, bytes_max=MIB, **queues))
    assert ([job.id for job in found.jobs], found.ran_dry) == (made[:4], False)
    found = await ask(connection, claim_verbs.claim(SCHEMA, jobs_max=10, only=only, bytes_max=MIB, **queues))
    assert ([job.id for job in found.jobs], found.ran_dry) == (made[4:], True)


async def test_bytes_that_are_used_up_beside_a_job_that_is_locked(connection: Link, other: Link) -> None:
    """The claim has not run dry: what it left for its bytes is there, though the queue's head is somebody else's."""
    noise = "to_jsonb((select string_agg(md5(n::text || random()::text), '') from generate_series(1, 8000) as n))"  # 256 kB
    made = await insert(connection, noise, 4)
    async with other.transaction():
        await other.execute("select from pgnotifyq.jobs where id = %s for update", (made[0],))
        found = await take(connection, bytes_max=600_000)
        assert ([job.id for job in found.jobs], found.ran_dry) == (made[1:3], False)
        found = await take(connection, bytes_max=600_000)
        assert ([job.id for job in found.jobs], found.is_contended) == (made[3:], True)


@pytest.mark.parametrize("others", [False, True])
async def test_payload_that_is_too_large_to_be_sent(connection: Link, others: bool) -> None:
    """It stays in the server: its job comes without it, to be buried with a reason; the rest comes as ever."""
    before = await enqueue(connection, priority=1)
    (large,) = await insert(connection, "to_jsonb(repeat('x', 17 * 1048576))")
    after = await enqueue(connection)
    if others:
        await enqueue(connection, "other", priority=2)
    only = claim_verbs.wanted({"noop": None}) if others else None
    taken = [job for _ in range(3) for job in (await take(connection, 3, only=only)).jobs]
    assert [job.id for job in taken] == [before, large, after]
    problem = taken[1].payload
    assert isinstance(problem, Undecodable)
    assert "too large" in problem.why
    assert taken[1].whole.payload == problem
    assert [job.payload for job in (taken[0], taken[2])] == [{}, {}]


async def test_named_payload_that_is_too_large(connection: Link) -> None:
    """The same where a wake-up names it."""
    (large,) = await insert(connection, "to_jsonb(repeat('x', 17 * 1048576))")
    named = await ask(
        connection, claim_verbs.claim_named(SCHEMA, worker_id=ANN, queues=["default"], job_id=str(large), lease_seconds=60.0)
    )
    assert named.job is not None
    assert isinstance(named.job.payload, Undecodable)


async def test_bytes_that_are_no_text(server_dsn: str) -> None:
    """In a database of any bytes (SQL_ASCII) a payload that is not UTF-8 makes its own job undecodable, and no other."""
    name = "pgnotifyq_sql_ascii"
    async with open_connection(server_dsn) as server:
        await server.execute(f"drop database if exists {name}".encode())
        await server.execute(
            f"create database {name} encoding 'SQL_ASCII' lc_collate 'C' lc_ctype 'C' template template0".encode()
        )
        try:
            async with open_connection(make_conninfo(server_dsn, dbname=name, client_encoding="utf8")) as connection:
                await migrate(connection)
                good = await enqueue(connection, payload='{"a": "\u00e4"}')
                (bad,) = await insert(connection, "('\"' || chr(228) || '\"')::jsonb")
                with pytest.raises(psycopg.Error):
                    await take(connection)
                found = await ask(connection, claim_verbs.claim_apart(SCHEMA, jobs_max=10, **EVERYTHING))
                jobs = {job.id: job for job in found.jobs}
                assert jobs[good].payload == {"a": "\u00e4"}
                assert jobs[good].whole.payload == jobs[good].payload
                assert isinstance(jobs[bad].payload, Undecodable)
        finally:
            await server.execute(f"drop database {name} with (force)".encode())


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
async def refusing(connection: Link, request: pytest.FixtureRequest) -> Any:
    """Give a table of jobs that refuses the update of rows of priority 7."""
    await connection.execute(REFUSALS[request.param].encode())
    yield connection
    await connection.execute("drop trigger if exists refuse on pgnotifyq.jobs")
    await connection.execute("alter table pgnotifyq.jobs drop constraint if exists refuse")
    await connection.execute("drop function if exists pg_temp.refuse()")


async def test_row_that_refuses_to_be_claimed(refusing: Link) -> None:
    """It is put aside and told, the rest is claimed; it is passed over until its time comes, and tried again then."""
    first, bad, last = [await enqueue(refusing, priority=priority) for priority in (9, 7, 5)]
    with pytest.raises(psycopg.Error):
        await take(refusing)
    found = await ask(refusing, claim_verbs.claim_apart(SCHEMA, jobs_max=10, **EVERYTHING))
    assert [job.id for job in found.jobs] == [first, last]
    assert [aside.job_id for aside in found.put_aside] == [bad]
    assert found.put_aside[0].why
    assert await fetch(refusing, "select job_id, verb, tries from pgnotifyq.job_troubles") == [(bad, "claim", 1)]

    behind = await enqueue(refusing)
    dry = await take(refusing)
    assert [job.id for job in dry.jobs] == [behind]
    assert (dry.ran_dry, dry.is_contended) == (True, False)
    assert dry.next_due_seconds is not None and 0 < dry.next_due_seconds <= 10

    await pass_time(refusing, 11)
    with pytest.raises(psycopg.Error):
        await take(refusing)
    again = await ask(refusing, claim_verbs.claim_apart(SCHEMA, jobs_max=10, **EVERYTHING))
    assert ([job.id for job in again.jobs], [aside.job_id for aside in again.put_aside]) == ([], [bad])
    assert await value(refusing, "select tries from pgnotifyq.job_troubles") == 2


async def test_claim_beside_a_row_that_refuses(refusing: Link) -> None:
    """One verb claims the others and puts that row aside; without such a row it is a plain claim, which may run dry."""
    first, bad, last = [await enqueue(refusing, priority=priority) for priority in (9, 7, 5)]
    surely = claim_verbs.claim_surely(SCHEMA, jobs_max=10, **EVERYTHING)
    found = await ask(refusing, surely)
    assert ([job.id for job in found.jobs], [aside.job_id for aside in found.put_aside]) == ([first, last], [bad])
    found = await ask(refusing, surely)
    assert (found.jobs, list(found.put_aside), found.ran_dry) == ([], [], True)


async def test_claim_that_fails_over_no_row(connection: Link) -> None:
    """An error for which no row is to blame is raised."""
    await enqueue(connection)
    with pytest.raises(psycopg.errors.InvalidSchemaName):
        await ask(connection, claim_verbs.claim_surely("nowhere", jobs_max=10, **EVERYTHING))


async def test_row_that_refuses_no_more(connection: Link) -> None:
    """Claimed after all, it is in trouble no more."""
    job_id = await enqueue(connection)
    org_id = (await existing(connection, job_id))["org_id"]
    await connection.execute("select pgnotifyq.note_trouble(%s, %s, 'claim', 'P0001', 'a test')", (org_id, job_id))
    assert await claim(connection) == []
    named = await ask(
        connection, claim_verbs.claim_named(SCHEMA, worker_id=ANN, queues=["default"], job_id=str(job_id), lease_seconds=60.0)
    )
    assert (named.job, named.is_still_there) == (None, True)
    await pass_time(connection, 11)
    assert [job.id for job in await claim(connection)] == [job_id]
    assert await value(connection, "select count(*) from pgnotifyq.job_troubles") == 0


async def test_named_row_that_refuses(refusing: Link) -> None:
    """A wake-up that names it brings nothing, and whoever heard it looks for itself."""
    bad = await enqueue(refusing, priority=7)
    named = await ask(
        refusing, claim_verbs.claim_named(SCHEMA, worker_id=ANN, queues=["default"], job_id=str(bad), lease_seconds=60.0)
    )
    assert (named.job, named.is_still_there) == (None, True)


async def test_error_of_the_server_is_no_row_of_anybodys(connection: Link) -> None:
    """What says nothing of the row, as a deadlock, is raised: nothing is put aside for it."""
    await connection.execute(
        "create function pg_temp.refuse() returns trigger language plpgsql as"
        " $$ begin raise 'busy' using errcode = '40P01'; end $$;"
        " create trigger refuse before update on pgnotifyq.jobs for each row execute function pg_temp.refuse()"
    )
    await enqueue(connection)
    try:
        with pytest.raises(psycopg.errors.DeadlockDetected):
            await ask(connection, claim_verbs.claim_apart(SCHEMA, jobs_max=10, **EVERYTHING))
    finally:
        await connection.execute("drop trigger refuse on pgnotifyq.jobs")
    assert await value(connection, "select count(*) from pgnotifyq.job_troubles") == 0


# One size everywhere


@pytest.mark.parametrize("of", ["list", "object", "text", "names"])
async def test_payload_has_one_size(connection: Link, of: str) -> None:
    """SQL counts what the client counts: the compact text, whatever spaces PostgreSQL writes, and none inside of a text."""
    payload: Any = {
        "list": [1] * 1000,
        "object": {f"k{n}": n for n in range(1000)},
        "text": ', : ,, \\" , ' * 100,
        "names": {'a, "b": c\\': [", ", {": ": None}]},
    }[of]
    compact = json.dumps(payload, separators=(",", ":"), ensure_ascii=False)
    assert await value(connection, "select pgnotifyq.compact_bytes(%s::jsonb)", compact) == len(compact.encode())


async def test_payload_of_a_megabyte_with_many_spaces(connection: Link) -> None:
    """A megabyte of compact JSON is accepted, and a byte more is not, though PostgreSQL writes half as much again."""
    most = json.dumps([1] * ((MIB - 2) // 2), separators=(",", ":")) + " "
    assert await enqueue(connection, payload=most)
    with pytest.raises(psycopg.Error, match="bytes"):
        await enqueue(connection, payload=json.dumps([1] * (MIB // 2 + 1)))


@pytest.mark.parametrize("time", ["infinity", "-infinity", "0001-12-31", "9999-01-01", "4713-01-01 BC", "294276-12-31"])
async def test_time_that_clients_refuse(connection: Link, time: str) -> None:
    """enqueue() refuses it as the client does, and says what to use."""
    with pytest.raises(psycopg.Error, match=r"scheduled_at .* is out of range") as caught:
        await enqueue(connection, scheduled_at=time)
    assert caught.value.sqlstate == "PNQ02"
    for good in ("0002-01-01 00:00+00", "9998-12-31 23:59:59+00"):
        job_id = await enqueue(connection, scheduled_at=good)
        await update_status(connection, job_id)
