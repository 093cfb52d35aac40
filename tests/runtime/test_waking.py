"""Waking up: what falls due starts, with the backstop an hour away; nobody polls, and no wake-up is lost."""

from __future__ import annotations

import random
from typing import Any

import pytest
import trio

from pgnotifyq import EventName, JobContext, JobRegistry
from pgnotifyq.ledger import claim as claim_verbs
from pgnotifyq.runtime.sleep import Sleep
from pgnotifyq.runtime.wakeups import Wakeups
from pgnotifyq.wire.connection import open_connection
from tests import asked
from tests.runtime.detours import Go, detour
from tests.runtime.support import PATIENCE_SECONDS, Worker, Workplace

Payload = dict[str, Any]


def quick() -> JobRegistry:
    """Return a registry whose one job type, noop, returns at once."""
    registry = JobRegistry()

    @registry.handler("noop")
    async def noop(payload: Payload) -> None:
        await trio.lowlevel.checkpoint()

    return registry


@pytest.fixture
def never_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have workers look at their queues after each wake-up, as busy ones do."""
    monkeypatch.setattr(Wakeups, "is_first_after_lull", lambda wakeups: False)


async def test_job_for_a_worker_that_sleeps(place: Workplace) -> None:
    """A job enqueued while the worker sleeps starts, and so does the next."""
    worker = await place.start(quick())
    for _ in range(3):
        await place.until_asleep(worker)
        job_id = await place.enqueue()
        await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)


async def test_insert_that_did_not_see_the_sleeper(place: Workplace) -> None:
    """An insert that looked before the worker had published itself, and commits after, is not slept over."""
    async with open_connection(place.dsn) as inserter:
        async with inserter.transaction():
            job_id = await asked.enqueue(inserter)
            worker = await place.start(quick())
            await place.until_asleep(worker)
        await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)


@pytest.mark.parametrize("due", ["now()", "now() + interval '1 s'"])
async def test_wake_up_that_sleepers_swallow_who_hear_nothing(place: Workplace, due: str) -> None:
    """A wake-up may go to sleepers that are not there, forged or of a restored dump: its job starts after the next look."""
    workers = [await place.start(quick()) for _ in range(2)]
    for worker in workers:
        await place.until_idle(worker)
    forged = (
        "insert into pgnotifyq.sleepers (queue_name, worker_id) select 'default', gen_random_uuid() from generate_series(1, 5000)"
    )
    await place.connection.execute(forged.encode())
    enqueue = f"insert into pgnotifyq.jobs (job_type, scheduled_at) values ('noop', {due}) returning id"
    ((job_id,),) = await asked.fetch(place.connection, enqueue)
    await place.until("exists (select from pgnotifyq.jobs where id = %s and status = 'completed')", job_id)
    await place.until(
        "not exists (select from pgnotifyq.sleepers where worker_id not in (select worker_id from pgnotifyq.worker_heartbeats))"
    )


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
async def test_insert_through_an_old_snapshot(place: Workplace, level: str) -> None:
    """Nor is one whose transaction is older than the sleep, under a level where it cannot see the sleeper."""
    async with open_connection(place.dsn) as inserter:
        await inserter.execute(f"set default_transaction_isolation = '{level}'".encode())
        async with inserter.transaction():
            await inserter.execute("select from pgnotifyq.jobs")
            worker = await place.start(quick())
            await place.until_asleep(worker)
            job_id = await asked.enqueue(inserter)
        await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)


def count(monkeypatch: pytest.MonkeyPatch, *verbs: str) -> dict[str, int]:
    """Count how often some verbs of the ledger are used."""
    used = dict.fromkeys(verbs, 0)

    def counted(verb: str) -> Any:
        async def use(go: Go, **kwargs: Any) -> Any:
            used[verb] += 1
            return await go()

        return use

    for verb in verbs:
        detour(monkeypatch, claim_verbs, verb, counted(verb))
    return used


async def test_wake_up_that_names_its_job(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle worker takes the job that it is told of by its key, one statement a job, and does not look at its queues."""
    worker = await place.start(quick())
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=await place.enqueue())
    await place.until_idle(worker)
    used = count(monkeypatch, "claim", "claim_named")
    for taken in range(1, 4):
        await worker.log.wait(EventName.JOB_COMPLETED, job_id=await place.enqueue())
        assert used == {"claim": 0, "claim_named": taken}
        await place.until_idle(worker)


async def test_named_job_whose_row_is_locked(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A named job that somebody's transaction holds, and does not take, is looked for until it can be taken."""
    worker = await place.start(quick())
    await place.until_idle(worker)
    used = count(monkeypatch, "claim_named")
    async with open_connection(place.dsn) as holder:
        # As in the moment between the commit and the wake-up: the insert tells nobody, and somebody forges what it would have told.
        await holder.execute("set session_replication_role = replica")
        job_id = await asked.enqueue(holder)
        async with holder.transaction():
            await holder.execute("select from pgnotifyq.jobs where id = %s for update", (job_id,))
            await tell(place, worker, f"work default {job_id}")
            with trio.fail_after(PATIENCE_SECONDS):
                while not used["claim_named"]:
                    await trio.sleep(0.01)
            await trio.sleep(0.1)
            assert worker.log.find(EventName.JOB_CLAIMED) == []
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)


async def tell(place: Workplace, worker: Worker, payload: str) -> None:
    """Notify a worker, as anybody can."""
    channel = await asked.value(place.connection, "select pgnotifyq.worker_channel(%s)", worker.handle.worker_id)
    await asked.fetch(place.connection, "select pg_notify(%s, %s)", channel, payload)


async def test_names_that_anybody_can_send(place: Workplace) -> None:
    """Nonsense, jobs of other queues and of the future: none starts, the worker lives, and so does its sleep."""
    worker = await place.start(quick())
    await place.until_asleep(worker)
    elsewhere = await place.enqueue(queue_name="elsewhere")
    later = await place.enqueue(scheduled_at="2100-01-01")
    for name in (elsewhere, later, "00000000-0000-0000-0000-000000000000", "nonsense", "", f"{later} {later}"):
        await tell(place, worker, f"work default {name}")
        await trio.sleep(0.02)
    assert [(await place.job(job_id))["status"] for job_id in (elsewhere, later)] == ["pending"] * 2
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=await place.enqueue())
    assert worker.log.find(EventName.LISTENER_LOST) == []


async def test_named_job_of_a_worker_that_has_drained_meanwhile(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is given back, uncharged."""
    worker = await place.start(quick())
    await place.until_idle(worker)

    async def slow(go: Go, **kwargs: Any) -> Any:
        found = await go()
        worker.handle.drain()
        await trio.sleep(0.1)
        return found

    detour(monkeypatch, claim_verbs, "claim_named", slow)
    job_id = await place.enqueue()
    with trio.fail_after(PATIENCE_SECONDS):
        await worker.ended.wait()
    job = await place.job(job_id)
    assert (job["status"], job["attempts"], job["locked_by"]) == ("pending", 0, None)
    assert await place.history(job_id) == [(1, "released")]


async def test_named_job_of_a_worker_that_drains_for_long(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is given back at once, while another job has the worker wait: not when that has ended."""
    registry, let_go = quick(), trio.Event()

    @registry.handler("long")
    async def long(payload: Payload) -> None:
        await let_go.wait()

    worker = await place.start(registry, concurrency=4, shutdown_seconds=3600.0)
    long_id = await place.enqueue("long")
    await place.until("status = 'running' from pgnotifyq.jobs where id = %s", long_id)
    await place.until_idle(worker)

    async def slow(go: Go, **kwargs: Any) -> Any:
        found = await go()
        worker.handle.drain()
        await trio.sleep(0.1)
        return found

    detour(monkeypatch, claim_verbs, "claim_named", slow)
    job_id = await place.enqueue()
    await place.until("outcome = 'released' from pgnotifyq.job_executions where job_id = %s", job_id)
    assert (await place.job(job_id))["status"] == "pending"
    assert (await place.job(long_id))["status"] == "running"
    let_go.set()
    await worker.ended.wait()


async def test_worker_that_is_full_of_a_named_job(place: Workplace) -> None:
    """It takes itself off the list with the first wake-up that finds it so, and hands that on."""
    registry, let_go = JobRegistry(), trio.Event()

    @registry.handler("work")
    async def work(payload: Payload) -> None:
        await let_go.wait()

    worker = await place.start(registry, concurrency=1)
    await place.until_idle(worker)
    await worker.log.wait(EventName.JOB_CLAIMED, job_id=await place.enqueue("work"))
    await place.until_asleep(worker)
    second = await place.enqueue("work")
    await place.until("not exists (select from pgnotifyq.sleepers)")
    let_go.set()
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=second)


@pytest.mark.usefixtures("never_by_name")
async def test_delayed_job_committed_while_the_worker_took_another(place: Workplace) -> None:
    """A delayed insert that counted on the worker to look earlier anyway, and commits after that look, is not slept over."""
    worker = await place.start(quick())
    await place.until_asleep(worker)
    first = await place.enqueue(scheduled_at=await asked.value(place.connection, "select clock_timestamp() + interval '2 s'"))
    await place.until("exists (select from pgnotifyq.sleepers where expects_at < 'infinity')")
    async with open_connection(place.dsn) as inserter:
        async with inserter.transaction():
            # Later than the first, for which the worker will look: it need not be told.
            second = await asked.enqueue(
                inserter,
                scheduled_at=await asked.value(inserter, "select clock_timestamp() + interval '2.5 s'"),
            )
            await worker.log.wait(EventName.JOB_COMPLETED, job_id=first)
            await place.until("exists (select from pgnotifyq.sleepers where expects_at = 'infinity')")
        await worker.log.wait(EventName.JOB_COMPLETED, job_id=second)


@pytest.mark.usefixtures("never_by_name")
async def test_delayed_job_that_counted_on_one_that_was_cancelled(place: Workplace) -> None:
    """A delayed insert that counted on the worker to look for an earlier job starts also when that one was cancelled."""
    worker = await place.start(quick())
    await place.until_asleep(worker)
    first = await place.enqueue(scheduled_at=await asked.value(place.connection, "select clock_timestamp() + interval '2 s'"))
    await place.until("exists (select from pgnotifyq.sleepers where expects_at < 'infinity')")
    async with open_connection(place.dsn) as inserter, inserter.transaction():
        later = await asked.value(inserter, "select clock_timestamp() + interval '2.1 s'")
        second = await asked.enqueue(inserter, scheduled_at=later)
        await place.cancel(first)
        third = await place.enqueue()  # has the worker look while the second is not visible and the first is gone
        await worker.log.wait(EventName.JOB_COMPLETED, job_id=third)
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=second)


@pytest.mark.usefixtures("never_by_name")
async def test_inserts_racing_with_a_worker_that_falls_asleep(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred jobs, each inserted by a transaction of random length at some moment of the worker's way to sleep, all start.

    What is random here is the moment, not the verdict: a wake-up that is lost is lost for the hour of the backstop. The worker
    takes itself off the list of sleepers after every job, as after a busy time, so that it falls asleep a hundred times.
    """
    monkeypatch.setattr(Sleep, "is_busy", lambda *_, **__: True)
    worker = await place.start(quick(), concurrency=2)
    async with open_connection(place.dsn) as inserter:
        randomness = random.Random(7)
        for count in range(1, 101):
            async with inserter.transaction():
                await asked.enqueue(inserter)
                await trio.sleep(randomness.choice((0.0, 0.001, 0.005, 0.015, 0.03)))
            await worker.log.wait(EventName.JOB_COMPLETED, count=count)
            await trio.sleep(randomness.choice((0.0, 0.002, 0.01, 0.02)))


async def test_job_that_nobody_was_told_of(place: Workplace) -> None:
    """With every notification lost a job still starts, by the backstop: the worker looks though it sleeps and hears."""
    worker = await place.start(quick(), backstop_seconds=0.2)
    await place.until_asleep(worker)
    await place.connection.execute("set session_replication_role = replica")  # the trigger that notifies does not run
    job_id = await place.enqueue()
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)


async def test_scheduled_job(place: Workplace) -> None:
    """A job of the future starts without polling, and not before its time on the database's clock."""
    worker = await place.start(quick())
    await place.until_asleep(worker)
    soon = await asked.value(place.connection, "select clock_timestamp() + interval '0.3 s'")
    job_id = await place.enqueue(scheduled_at=soon)
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    assert await asked.value(place.connection, "select started_at >= scheduled_at from pgnotifyq.jobs")


async def test_scheduled_job_moved_to_now(place: Workplace) -> None:
    """A job of the far future that is moved to now starts now."""
    worker = await place.start(quick())
    job_id = await place.enqueue(scheduled_at="2100-01-01")
    await place.until_asleep(worker)
    await place.connection.execute("update pgnotifyq.jobs set scheduled_at = clock_timestamp() where id = %s", (job_id,))
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)


async def test_due_job_whose_row_is_locked(place: Workplace) -> None:
    """A due job that somebody else's transaction has locked, and does not take, is not slept over."""
    job_id = await place.enqueue()
    async with open_connection(place.dsn) as holder, holder.transaction():
        await holder.execute("select from pgnotifyq.jobs where id = %s for update", (job_id,))
        worker = await place.start(quick())
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)


async def test_several_workers_share_a_trickle(place: Workplace) -> None:
    """Jobs that come one by one reach whoever is free: three workers with a slot each run three jobs at once."""
    registry, running, let_go = JobRegistry(), [], trio.Event()
    everybody = trio.Event()

    @registry.handler("work")
    async def work(payload: Payload, ctx: JobContext) -> None:
        running.append(ctx.job.locked_by)
        if len(running) == 3:
            everybody.set()
        await let_go.wait()

    workers = [await place.start(registry, concurrency=1) for _ in range(3)]
    for worker in workers:
        await place.until_asleep(worker)
    for _ in range(3):
        await place.enqueue("work")
    with trio.fail_after(PATIENCE_SECONDS):
        await everybody.wait()
    assert set(running) == {worker.handle.worker_id for worker in workers}
    let_go.set()


async def test_backpressure(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker at capacity makes no query for work, and never runs more than its permits."""
    registry, let_go = JobRegistry(), trio.Event()
    running, most, asked = 0, 0, 0

    async def claim(go: Go, **kwargs: Any) -> Any:
        nonlocal asked
        asked += 1
        assert kwargs["jobs_max"] > 0
        return await go()

    @registry.handler("work")
    async def work(payload: Payload) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await let_go.wait()
        running -= 1

    worker = await place.start(registry, concurrency=2)
    for _ in range(2):
        await place.enqueue("work")
    await worker.log.wait(EventName.JOB_CLAIMED, count=2)
    detour(monkeypatch, claim_verbs, "claim", claim)
    for _ in range(10):
        await place.enqueue("work")
    # Nothing to wait for: the worker is told of each, and must not act. A beat of the scheduler and of the database each.
    await place.until("not exists (select from pgnotifyq.sleepers)")
    assert asked == 0
    let_go.set()
    await worker.log.wait(EventName.JOB_COMPLETED, count=12)
    assert most == 2


async def test_queues_of_a_worker(place: Workplace) -> None:
    """A worker takes from its queues in their order, and from no other."""
    first = await place.enqueue(queue_name="second", priority=5)
    second = await place.enqueue(queue_name="first")
    other = await place.enqueue(queue_name="third")
    worker = await place.start(quick(), queues=["first", "second"], concurrency=1)
    await worker.log.wait(EventName.JOB_COMPLETED, count=2)
    assert [told["job_id"] for told in worker.log.find(EventName.JOB_CLAIMED)] == [str(second), str(first)]
    assert (await place.job(other))["status"] == "pending"
