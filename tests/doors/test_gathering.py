"""Enqueues that share a statement: each caller is told what it would be told alone."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
import trio
import trio.testing

from pgnotifyq.doors import gathering
from pgnotifyq.doors.client import Client, open_client
from pgnotifyq.model.errors import InvalidPayload
from pgnotifyq.model.job import JobId
from pgnotifyq.wire.connection import Connection, open_connection
from tests.asked import fetch, value
from tests.proxy import Proxy, run_proxy, until

Link = Connection[Any]
PATIENCE_SECONDS = 20.0
AT_A_LOCK = (
    "count(*) = {} from pg_stat_activity"
    " where datname = current_database() and application_name = 'pgnotifyq client' and wait_event_type = 'Lock'"
)
# A job of type `stuck` waits in its insert for whoever holds the lock 1, and one of type `bad` is refused.
TROUBLE = """
    create function trouble() returns trigger language plpgsql as $$
    begin
        if new.job_type = 'stuck' then perform pg_advisory_xact_lock_shared(1); end if;
        if new.job_type = 'bad' then raise exception 'not this one'; end if;
        return new;
    end $$;
    create trigger trouble before insert on pgnotifyq.jobs for each row execute function trouble();
"""


@pytest.fixture
async def client(dsn: str, connection: Link) -> AsyncIterator[Client]:
    await connection.execute(TROUBLE)
    async with open_client(dsn) as client:
        yield client


class Caller:
    """A task that enqueues one job, and what it was told."""

    def __init__(self, nursery: trio.Nursery, client: Client, job_type: str = "good", **fields: Any) -> None:
        self.scope = trio.CancelScope()
        self.job_id: JobId | None = None
        self.error: Exception | None = None
        nursery.start_soon(self._enqueue, client, job_type, fields)

    async def _enqueue(self, client: Client, job_type: str, fields: dict[str, Any]) -> None:
        with self.scope:
            try:
                self.job_id = await client.enqueue(job_type, **fields)
            except Exception as error:  # noqa: BLE001  # looked at by the test
                self.error = error


async def start(nursery: trio.Nursery, client: Client, *job_types: str) -> list[Caller]:
    """Start callers, each of which waits for something when this returns."""
    callers = [Caller(nursery, client, job_type) for job_type in job_types]
    await trio.testing.wait_all_tasks_blocked()
    return callers


async def stored(connection: Link) -> dict[JobId, str]:
    """Return the transaction that brought each job that is there."""
    return {JobId(job_id): xmin for job_id, xmin in await fetch(connection, "select id, xmin::text from pgnotifyq.jobs")}


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody leads but who is asked to."""
    monkeypatch.setattr(gathering, "PATIENCE_SECONDS", 3600.0)


async def test_those_that_come_while_statements_are_under_way_share_one(
    dsn: str, client: Client, connection: Link, patient: None
) -> None:
    """Two go by themselves; the eight that come meanwhile are one transaction, and each caller has its own job's id."""
    async with trio.open_nursery() as nursery, connection.transaction():
        await connection.execute("lock table pgnotifyq.jobs in exclusive mode")
        callers = [Caller(nursery, client, payload={"n": n}, priority=n, delay_seconds=n or None) for n in range(10)]
        await until(dsn, AT_A_LOCK.format(2))
        await trio.testing.wait_all_tasks_blocked()
    jobs = [await client.get(caller.job_id) for caller in callers if caller.job_id is not None]
    assert [(job.payload, job.priority) for job in jobs] == [({"n": n}, n) for n in range(10)]
    assert [round((job.scheduled_at - job.created_at).total_seconds()) for job in jobs] == list(range(10))
    transactions = Counter((await stored(connection)).values())
    assert sorted(transactions.values()) == [1, 1, 8]


async def test_a_caller_on_its_own_is_not_kept(client: Client, connection: Link) -> None:
    """One after the other, each goes at once, in a transaction of its own."""
    ids = [await client.enqueue("good") for _ in range(5)]
    rows = await stored(connection)
    assert list(rows) == ids
    assert len(set(rows.values())) == 5


async def test_a_job_that_is_refused_fails_alone(dsn: str, client: Client, connection: Link, patient: None) -> None:
    """The others of its statement are enqueued, once each."""
    async with trio.open_nursery() as nursery, open_connection(dsn) as other:
        await other.execute("select pg_advisory_lock(1)")
        await start(nursery, client, "stuck", "stuck")
        good, bad, last = await start(nursery, client, "good", "bad", "last")
        await other.execute("select pg_advisory_unlock(1)")
    assert isinstance(bad.error, psycopg.errors.RaiseException)
    assert "not this one" in str(bad.error)
    assert {good.job_id, last.job_id} < set(await stored(connection))
    types = await value(connection, "select array_agg(job_type::text order by job_type) from pgnotifyq.jobs")
    assert types == ["good", "last", "stuck", "stuck"]


async def test_a_payload_that_is_refused_fails_alone(dsn: str, client: Client, patient: None) -> None:
    """Before it is sent, and at once."""
    async with trio.open_nursery() as nursery, open_connection(dsn) as other:
        await other.execute("select pg_advisory_lock(1)")
        await start(nursery, client, "stuck", "stuck")
        with pytest.raises(InvalidPayload):
            await client.enqueue("good", {"a": float("nan")})
        await other.execute("select pg_advisory_unlock(1)")


async def test_large_payloads_go_in_several_statements(dsn: str, client: Client, connection: Link, patient: None) -> None:
    """In order of arrival, as many as one statement may carry."""
    large = "x" * (gathering.PAYLOAD_CHARACTERS_MAX // 2 - 100)
    async with trio.open_nursery() as nursery, open_connection(dsn) as other:
        await other.execute("select pg_advisory_lock(1)")
        await start(nursery, client, "stuck", "stuck")
        callers = []
        for payload in (large, large, large, "small"):
            callers.append(Caller(nursery, client, payload=payload))
            await trio.testing.wait_all_tasks_blocked()
        await other.execute("select pg_advisory_unlock(1)")
    rows = await stored(connection)
    transactions = [rows[caller.job_id] for caller in callers if caller.job_id is not None]
    assert transactions[0] == transactions[1] != transactions[2] == transactions[3]


async def test_a_stuck_statement_keeps_nobody(dsn: str, client: Client) -> None:
    """Who comes while as many are stuck as may be under way goes by another connection."""
    async with trio.open_nursery() as nursery, open_connection(dsn) as other:
        await other.execute("select pg_advisory_lock(1)")
        await start(nursery, client, *["stuck"] * gathering.IN_FLIGHT_MAX)
        with trio.fail_after(PATIENCE_SECONDS):
            await client.enqueue("good")
        await other.execute("select pg_advisory_unlock(1)")


async def test_a_unique_key_that_is_taken_keeps_nobody(dsn: str, client: Client, connection: Link, patient: None) -> None:
    """It waits for the transaction that holds it, by itself."""
    async with trio.open_nursery() as nursery, open_connection(dsn) as other, other.transaction():
        held = await client.enqueue("good", unique_key="one", connection=other)
        waiting = [Caller(nursery, client, unique_key="one") for _ in range(gathering.IN_FLIGHT_MAX)]
        await until(dsn, AT_A_LOCK.format(gathering.IN_FLIGHT_MAX))
        with trio.fail_after(PATIENCE_SECONDS):
            await client.enqueue("good")
    assert [caller.job_id for caller in waiting] == [held] * gathering.IN_FLIGHT_MAX


async def test_cancelled_while_it_gathers(dsn: str, client: Client, connection: Link, patient: None) -> None:
    """Its job is left out, whether it is the one that would lead or another."""
    async with trio.open_nursery() as nursery, open_connection(dsn) as other:
        await other.execute("select pg_advisory_lock(1)")
        await start(nursery, client, "stuck", "stuck")
        callers = await start(nursery, client, *["good"] * 4)
        callers[0].scope.cancel()
        callers[2].scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        await other.execute("select pg_advisory_unlock(1)")
    assert [caller.job_id is None for caller in callers] == [True, False, True, False]
    assert await value(connection, "select count(*) from pgnotifyq.jobs where job_type = 'good'") == 2


@pytest.mark.parametrize("leavers", [[0], [1], [3], [0, 2], [0, 1, 2, 3]], ids=str)
async def test_cancelled_while_it_is_under_way(
    dsn: str, client: Client, connection: Link, monkeypatch: pytest.MonkeyPatch, leavers: list[int]
) -> None:
    """Whoever leaves has enqueued nothing. The statement is stopped, and the others' jobs go again, once each."""
    monkeypatch.setattr(gathering, "IN_FLIGHT_MAX", 0)
    monkeypatch.setattr(gathering, "PATIENCE_SECONDS", 0.01)
    async with trio.open_nursery() as nursery, open_connection(dsn) as other:
        await other.execute("select pg_advisory_lock(1)")
        callers = [Caller(nursery, client, "stuck") for _ in range(4)]
        await until(dsn, AT_A_LOCK.format(1))
        for leaver in leavers:
            callers[leaver].scope.cancel()
        with trio.fail_after(PATIENCE_SECONDS):
            while [caller.scope.cancelled_caught for caller in callers] != [n in leavers for n in range(4)]:
                await trio.sleep(0.005)
        await until(dsn, AT_A_LOCK.format(int(len(leavers) < 4)))
        await other.execute("select pg_advisory_unlock(1)")
    assert [caller.job_id is None for caller in callers] == [n in leavers for n in range(4)]
    rows = await stored(connection)
    assert set(rows) == {caller.job_id for caller in callers if caller.job_id is not None}
    assert len(rows) == 4 - len(leavers)


async def test_reply_that_is_lost(dsn: str, connection: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that were in the statement are told that it is not known what became of it, and it is not sent again."""
    monkeypatch.setattr(gathering, "IN_FLIGHT_MAX", 0)
    monkeypatch.setattr(gathering, "PATIENCE_SECONDS", 0.01)
    async with trio.open_nursery() as outer:
        cable: Proxy = await outer.start(run_proxy, dsn)
        async with open_client(cable.dsn) as client:
            async with trio.open_nursery() as nursery:
                before = [Caller(nursery, client) for _ in range(4)]
            assert {caller.job_id for caller in before} == set(await stored(connection))  # prepared by now
            async with trio.open_nursery() as nursery:
                cable.drop_replies()
                callers = [Caller(nursery, client) for _ in range(4)]
                await until(dsn, "count(*) = 8 from pgnotifyq.jobs")
                cable.cut()
                cable.thaw()
            assert [type(caller.error) for caller in callers] == [psycopg.OperationalError] * 4
            assert len({id(caller.error) for caller in callers}) == 4  # each has an error of its own
            after = await client.enqueue("good")
        assert len(await stored(connection)) == 9
        assert after in await stored(connection)
        outer.cancel_scope.cancel()


@pytest.mark.parametrize("seed", range(4))
async def test_ids_told_are_the_jobs_there(dsn: str, connection: Link, patient: None, seed: int) -> None:
    """Of 400 callers that come and are cancelled at random, those that were told an id have a job, and nobody else has."""
    chance = random.Random(seed)
    told: list[JobId] = []
    staying = 0
    async with open_client(dsn) as client, trio.open_nursery() as nursery:

        async def call(comes_after: float, stays: float) -> None:
            await trio.sleep(comes_after)
            with trio.move_on_after(stays):
                told.append(await client.enqueue("good"))

        for _ in range(400):
            stays = chance.expovariate(1 / 0.004) if chance.random() < 0.5 else 3600.0
            staying += stays == 3600.0
            nursery.start_soon(call, chance.uniform(0.0, 0.3), stays)
    assert sorted(told) == sorted(await stored(connection))
    assert len(told) >= staying > 150
