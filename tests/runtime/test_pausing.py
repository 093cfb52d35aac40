"""What is paused does not start on any worker, however it would; a resume wakes who sleeps; a drain ends with what runs."""

from __future__ import annotations

from typing import Any

import pytest
import trio

import pgnotifyq
import pgnotifyq.sync
from pgnotifyq import EventName, JobContext, JobRegistry, Retry
from pgnotifyq.doors import ends
from pgnotifyq.ledger import pauses
from pgnotifyq.wire.asking import ask
from pgnotifyq.wire.connection import open_connection
from pgnotifyq.wire.notifications import wait_notifications
from tests import asked
from tests.ledger.support import BOB, ENDINGS
from tests.runtime.support import PATIENCE_SECONDS, Workplace

Payload = dict[str, Any]
PAUSES: dict[str, dict[str, Any]] = {
    "queue": {"queue": "default"},
    "type": {"job_type": "noop"},
    "everything": {"everything": True},
}


class Gate:
    """A registry whose job type, held, runs until it is let go; then it returns, or is to be tried again."""

    def __init__(self) -> None:
        self.registry = JobRegistry()
        self.started, self.let_go = trio.Event(), trio.Event()

        @self.registry.handler("noop")
        async def noop(payload: Payload) -> None:
            await trio.lowlevel.checkpoint()

        @self.registry.handler("held")
        async def held(payload: Payload, ctx: JobContext) -> object:
            self.started.set()
            await self.let_go.wait()
            return Retry(seconds=3600.0) if payload.get("again") else None


@pytest.mark.parametrize("scope", PAUSES)
async def test_pause_and_resume(place: Workplace, scope: str) -> None:
    """A worker that sleeps takes nothing that is paused, by name or by a look; a resume wakes it, with the backstop an hour away."""
    worker = await place.start(Gate().registry)
    async with pgnotifyq.open_client(place.dsn) as client:
        await place.until_asleep(worker)
        assert await client.pause(**PAUSES[scope])
        paused = [await client.enqueue("noop"), *await client.enqueue_many([{"job_type": "noop"}] * 3)]
        if scope != "everything":
            beside = await place.enqueue("noop" if scope == "queue" else "held", queue_name="other")
        await place.until_idle(worker)
        assert {job.status for job in await client.jobs()} == {"pending"}
        assert {job.attempts for job in await client.jobs()} == {0}
        assert await client.resume(**PAUSES[scope])
        for job_id in paused:
            await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
        if scope != "everything":
            assert (await client.get(beside)).status == "pending"  # of a queue that the worker does not serve


async def test_pause_at_default_settings(place: Workplace) -> None:
    """The same, with nothing tuned."""
    worker = await place.start(Gate().registry, backstop_seconds=30.0, session_grace_seconds=2.0)
    async with pgnotifyq.open_client(place.dsn) as client:
        await client.pause("default", why="S3 is down", who="ann")
        job_id = await client.enqueue("noop")
        await place.until_idle(worker)
        explained = await client.explain(job_id)
        assert (explained.paused, explained.paused_by, explained.paused_why) == ("queue", "ann", "S3 is down")
        await client.resume("default")
        assert (await client.wait(job_id, PATIENCE_SECONDS)).status == "completed"


async def test_worker_in_the_same_loop(place: Workplace) -> None:
    """The statement that enqueues a job does not start it either."""
    gate = Gate()
    async with pgnotifyq.open_client(place.dsn) as client, trio.open_nursery() as nursery:
        handle = await nursery.start(pgnotifyq.run_worker, gate.registry, place.dsn)
        await client.pause(job_type="noop")
        job_id = await client.enqueue("noop")
        other = await client.enqueue("held")
        gate.let_go.set()
        await client.wait(other, PATIENCE_SECONDS)
        assert (await client.get(job_id)).attempts == 0
        await client.resume(job_type="noop")
        await client.wait(job_id, PATIENCE_SECONDS)
        handle.stop()


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("door", ["trio", "sync"])
async def test_drain(place: Workplace, door: str, again: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends when what runs has ended, or was given back; what waits stays, and so does the pause.

    It hears of that: the look that finds what nobody announced is an hour away. The tests below leave it as it is.
    """
    monkeypatch.setattr(ends, "LOOK_SECONDS", 3600.0)
    gate = Gate()
    await place.start(gate.registry)
    drained = trio.Event()

    async def drain() -> None:
        if door == "trio":
            async with pgnotifyq.open_client(place.dsn) as client:
                await client.drain("default", timeout_seconds=PATIENCE_SECONDS)
        else:
            with pgnotifyq.sync.open_client(place.dsn) as blocking:
                await trio.to_thread.run_sync(lambda: blocking.drain("default", timeout_seconds=PATIENCE_SECONDS))
        drained.set()

    running = await place.enqueue("held", payload=f'{{"again": {str(again).lower()}}}')
    await gate.started.wait()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(drain)
        await place.until("exists (select from pgnotifyq.jobs where id = %s and awaited)", running)
        waiting = await place.enqueue("noop")
        assert not drained.is_set()
        gate.let_go.set()
    assert (await place.job(running))["status"] == ("pending" if again else "completed")
    assert ((await place.job(waiting))["status"], (await place.job(waiting))["attempts"]) == ("pending", 0)


async def test_drain_of_a_worker_that_has_died(place: Workplace) -> None:
    """What is taken back from a dead worker does not hold it up."""
    job_id = await place.enqueue("noop")
    await asked.claim_one(place.connection)
    async with pgnotifyq.open_client(place.dsn) as client, trio.open_nursery() as nursery:
        nursery.start_soon(lambda: client.drain(everything=True, timeout_seconds=PATIENCE_SECONDS))
        await place.until("exists (select from pgnotifyq.jobs where id = %s and awaited)", job_id)
        await place.lose(job_id)


async def test_claim_that_did_not_see_the_pause(place: Workplace) -> None:
    """A claim that began before the pause and has not committed is waited for, and what it took as well."""
    await place.connection.execute("select pgnotifyq.pause('other'), pgnotifyq.resume('other')")  # not the first of all
    job_id = await place.enqueue("noop")
    async with pgnotifyq.open_client(place.dsn) as client, open_connection(place.dsn) as claimer, trio.open_nursery() as nursery:
        async with claimer.transaction():
            job = await asked.claim_one(claimer)
            await client.pause("default")
            assert await ask(place.connection, pauses.first_held("pgnotifyq", pauses.Scope(queue="default"))) is None
            assert not await ask(place.connection, pauses.await_claims("pgnotifyq"))
            with pytest.raises(pgnotifyq.WaitTimeout, match="queue default still run"):
                await client.drain("default", timeout_seconds=0.1)
        nursery.start_soon(lambda: client.drain("default", timeout_seconds=PATIENCE_SECONDS))
        await place.until("exists (select from pgnotifyq.jobs where id = %s and awaited)", job_id)
        await asked.settle(place.connection, job, ENDINGS["complete"])


@pytest.mark.parametrize("scope", ["'default'", "job_type => 'noop'", "everything => true"])
async def test_nobody_is_woken_for_what_is_paused(place: Workplace, scope: str) -> None:
    """A full worker that leaves paused work behind tells nobody of it; a resume does."""
    async with open_connection(place.dsn) as sleeper:
        await sleeper.execute(f"listen pgnotifyq_w_{BOB.hex}".encode())
        await place.enqueue("noop")
        await place.connection.execute(
            "insert into pgnotifyq.sleepers (queue_name, worker_id, job_types) values ('default', %s, '{noop}')", (BOB,)
        )
        await place.connection.execute(
            "insert into pgnotifyq.worker_heartbeats (worker_id, host, pid, queues, slots, version, started_at, last_beat_at,"
            " lease_seconds) values (%s, 'here', 1, '{default}', 1, '1', now(), now(), 60)",
            (BOB,),
        )
        await place.connection.execute(f"select pgnotifyq.pause({scope})".encode())
        await place.connection.execute("select pgnotifyq.wake_able('default')")
        await place.connection.execute("notify pgnotifyq_w_%s, 'end'".replace("%s", BOB.hex).encode())
        assert [note.payload for note in await wait_notifications(sleeper)] == ["end"]
        await place.connection.execute(f"select pgnotifyq.resume({scope})".encode())
        assert [note.payload for note in await wait_notifications(sleeper)] == ["work default"]
