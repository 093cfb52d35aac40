"""Waiting for the ends of jobs: by notification, past lost and deaf listeners, frozen servers and cut cables."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

import pgnotifyq
from pgnotifyq.doors import ends
from pgnotifyq.doors.client import Client, open_client
from pgnotifyq.model.errors import JobDead, WaitTimeout
from pgnotifyq.model.job import Job
from pgnotifyq.model.registry import JobRegistry
from pgnotifyq.model.states import Status
from pgnotifyq.wire.connection import Connection
from pgnotifyq.wire.notifications import listen
from tests.asked import claim_one, settle, value
from tests.doors.support import AWAITED, LISTENER, LISTENING, SOON_SECONDS, listeners, wait_all, worker
from tests.ledger.support import ENDINGS
from tests.proxy import Proxy, run_proxy, until

Link = Connection[Any]


async def test_wait_for_a_worker(dsn: str, client: Client, registry: JobRegistry, no_backstop: None) -> None:
    """The end of a job is told at once, with its result."""
    with trio.fail_after(SOON_SECONDS):
        async with worker(dsn, registry):
            job = await client.wait(await client.enqueue("plain", {"n": 1}))
    assert (job.status, job.result) == (Status.COMPLETED, {"n": 1})


async def test_wait_for_a_job_that_has_ended(client: Client, connection: Link) -> None:
    """Returned at once, again and again."""
    job_id = await client.enqueue("noop")
    await settle(connection, await claim_one(connection), ENDINGS["complete"])
    for _ in range(2):
        with trio.fail_after(SOON_SECONDS):
            assert (await client.wait(job_id)).result == {"n": 1}


async def test_wait_for_a_job_that_dies(dsn: str, client: Client, connection: Link, no_backstop: None) -> None:
    """A typed error with the dead letter; requeued, it can be waited for again."""
    job_id = await client.enqueue("noop")
    with trio.fail_after(SOON_SECONDS):
        async with trio.open_nursery() as nursery:

            async def die() -> None:
                await until(dsn, AWAITED)
                await settle(connection, await claim_one(connection), ENDINGS["bury"])

            nursery.start_soon(die)
            with pytest.raises(JobDead, match="hopeless") as caught:
                await client.wait(job_id)
    assert caught.value.dead_letter == await client.get_dead(job_id)
    await client.requeue(job_id)
    with pytest.raises(WaitTimeout):
        await client.wait(job_id, timeout_seconds=0.05)


async def test_wait_for_longer_than_one_wants(client: Client) -> None:
    """After the time given a typed error, and the job goes on."""
    job_id = await client.enqueue("noop")
    with pytest.raises(WaitTimeout, match=str(job_id)):
        await client.wait(job_id, timeout_seconds=0.05)
    assert (await client.get(job_id)).status == Status.PENDING


async def test_many_wait_on_one_listener(dsn: str, client: Client, connection: Link, no_backstop: None) -> None:
    """Waiters share one connection, each hears of its own job, two may wait for the same, and then nobody listens."""
    ids = await client.enqueue_many([{"job_type": "noop"}] * 20)
    ended: list[Job] = []
    with trio.fail_after(SOON_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_all, client, [*ids, ids[3]], ended)
            await until(dsn, "count(*) = 20 from pgnotifyq.jobs where awaited")
            assert await listeners(connection) == 1
            for _ in ids:
                await settle(connection, await claim_one(connection), ENDINGS["complete"])
    assert sorted(job.id for job in ended) == sorted([*ids, ids[3]])
    assert not client._ends._waiters and not client._ends._listens
    await until(
        dsn,
        "query ilike 'unlisten%%' from pg_stat_activity where datname = current_database() and application_name = %s",
        LISTENER,
    )


async def test_the_leader_is_cancelled(dsn: str, client: Client, connection: Link, no_backstop: None) -> None:
    """Another waiter leads, and hears."""
    ids = await client.enqueue_many([{"job_type": "noop"}] * 3)
    ended: list[Job] = []
    with trio.fail_after(SOON_SECONDS):
        async with trio.open_nursery() as nursery:
            leading = trio.CancelScope()

            async def lead() -> None:
                with leading:
                    await client.wait(ids[0])

            nursery.start_soon(lead)
            await until(dsn, AWAITED)
            await trio.testing.wait_all_tasks_blocked()
            assert client._ends._is_led
            nursery.start_soon(wait_all, client, ids[1:], ended)
            await until(dsn, "count(*) = 3 from pgnotifyq.jobs where awaited")
            leading.cancel()
            for _ in ids:
                await settle(connection, await claim_one(connection), ENDINGS["complete"])
    assert sorted(job.id for job in ended) == sorted(ids[1:])


async def test_the_last_waiter_is_cancelled(dsn: str, client: Client, connection: Link) -> None:
    """No session is left that listens and does not read; the next wait opens another."""
    job_id = await client.enqueue("noop")
    with pytest.raises(WaitTimeout):
        await client.wait(job_id, timeout_seconds=0.2)
    await until(
        dsn, "not exists (select from pg_stat_activity where datname = current_database() and application_name = %s)", LISTENER
    )
    await settle(connection, await claim_one(connection), ENDINGS["complete"])
    assert (await client.wait(job_id, timeout_seconds=SOON_SECONDS)).status == Status.COMPLETED


async def test_the_listener_is_terminated(dsn: str, client: Client, connection: Link, no_backstop: None) -> None:
    """It comes back, and what ended in between is found, though nobody told."""
    ids = await client.enqueue_many([{"job_type": "noop"}] * 3)
    ended: list[Job] = []
    terminate = "select count(pg_terminate_backend(pid)) from pg_stat_activity where datname = current_database() and application_name = %s"
    with trio.fail_after(SOON_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_all, client, ids[2:], ended)
            await until(dsn, AWAITED)  # so that the one leads whose job goes on
            async with trio.open_nursery() as lost:
                lost.start_soon(wait_all, client, ids[:2], ended)
                await until(dsn, "count(*) = 3 from pgnotifyq.jobs where awaited")
                async with connection.transaction():  # two ends, and the loss, at once
                    for _ in range(2):
                        await settle(connection, await claim_one(connection), ENDINGS["complete"])
                    assert await value(connection, terminate, LISTENER) == 1
            await until(dsn, LISTENING, LISTENER)
            await settle(connection, await claim_one(connection), ENDINGS["complete"])
    assert sorted(job.id for job in ended) == sorted(ids)


async def test_a_deaf_listener(dsn: str, client: Client, connection: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    """The backstop finds the end that nobody told, the deaf connection is replaced, and a timeout is kept."""

    async def listen_to_nothing(link: Link, channel: str) -> None:
        await listen(link, "nothing")

    monkeypatch.setattr(ends, "listen", listen_to_nothing)
    monkeypatch.setattr(ends, "LOOK_SECONDS", 0.2)
    job_id = await client.enqueue("noop")
    with pytest.raises(WaitTimeout):
        await client.wait(job_id, timeout_seconds=0.5)
    with trio.fail_after(SOON_SECONDS):
        async with trio.open_nursery() as nursery:
            ended: list[Job] = []
            nursery.start_soon(wait_all, client, [job_id], ended)
            await until(
                dsn,
                "exists (select from pg_stat_activity where datname = current_database() and application_name = %s)",
                LISTENER,
            )
            await trio.testing.wait_all_tasks_blocked()
            await settle(connection, await claim_one(connection), ENDINGS["complete"])
    assert [job.id for job in ended] == [job_id]
    assert client._ends._connection is None


async def test_a_listener_that_cannot_be_had(client: Client, connection: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting goes on without one, by looking."""

    async def refuse(*_: object, **__: object) -> Link:
        raise pgnotifyq.DatabaseUnreachable("too many connections")

    monkeypatch.setattr(client._ends, "_connect", refuse)
    monkeypatch.setattr(ends, "LISTEN_RETRY_SECONDS", 0.1)
    job_id = await client.enqueue("noop")
    with pytest.raises(WaitTimeout):
        await client.wait(job_id, timeout_seconds=0.3)
    with trio.fail_after(SOON_SECONDS):
        async with trio.open_nursery() as nursery:
            ended: list[Job] = []
            nursery.start_soon(wait_all, client, [job_id], ended)
            await settle(connection, await claim_one(connection), ENDINGS["complete"])
    assert [job.id for job in ended] == [job_id]


@pytest.fixture
async def proxy(dsn: str, nursery: trio.Nursery) -> Proxy:
    return await nursery.start(run_proxy, dsn)  # type: ignore[no-any-return]


async def test_the_cable_is_cut(dsn: str, proxy: Proxy, connection: Link, no_backstop: None) -> None:
    """All connections of a client break while it waits: it comes back and finds what ended meanwhile."""
    with trio.fail_after(SOON_SECONDS):
        async with open_client(proxy.dsn) as client, trio.open_nursery() as nursery:
            ids = await client.enqueue_many([{"job_type": "noop"}] * 2)
            ended: list[Job] = []
            nursery.start_soon(wait_all, client, ids, ended)
            await until(dsn, "count(*) = 2 from pgnotifyq.jobs where awaited")
            proxy.cut()
            for _ in ids:
                await settle(connection, await claim_one(connection), ENDINGS["complete"])
    assert sorted(job.id for job in ended) == sorted(ids)


async def test_a_frozen_server(dsn: str, proxy: Proxy, connection: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing answers any more, and no error comes: a wait ends by its timeout all the same; when it thaws all is well."""
    for name in ("LISTEN_DEADLINE_SECONDS", "LOOK_DEADLINE_SECONDS", "LOOK_SECONDS", "LISTEN_RETRY_SECONDS"):
        monkeypatch.setattr(ends, name, 0.2)
    monkeypatch.setattr("pgnotifyq.wire.connection.INTERRUPT_SECONDS", 0.2)
    with trio.fail_after(SOON_SECONDS):
        async with open_client(proxy.dsn) as client:
            job_id = await client.enqueue("noop")
            proxy.freeze()
            with pytest.raises(WaitTimeout):
                await client.wait(job_id, timeout_seconds=1.5)
            async with trio.open_nursery() as nursery:
                ended: list[Job] = []
                nursery.start_soon(wait_all, client, [job_id], ended)
                await settle(connection, await claim_one(connection), ENDINGS["complete"])
                proxy.thaw()
    assert [job.id for job in ended] == [job_id]


async def test_a_database_that_stays_away(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a timeout a wait does not last for ever: it fails when the database has not answered for long enough."""
    for name in (
        "LISTEN_DEADLINE_SECONDS",
        "LOOK_DEADLINE_SECONDS",
        "LOOK_SECONDS",
        "LISTEN_RETRY_SECONDS",
        "OUTAGE_SECONDS_MAX",
    ):
        monkeypatch.setattr(ends, name, 0.2)
    monkeypatch.setattr("pgnotifyq.wire.connection.INTERRUPT_SECONDS", 0.2)
    with trio.fail_after(SOON_SECONDS):
        async with open_client(proxy.dsn) as client:
            job_id = await client.enqueue("noop")
            proxy.freeze()
            with pytest.raises(pgnotifyq.DatabaseUnreachable, match="not answered"):
                await client.wait(job_id)
            proxy.thaw()
