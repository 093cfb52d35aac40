"""Workers as processes: killed, stopped, asked to end, and killed by what they run."""

from __future__ import annotations

import signal
from typing import Any

import pytest
import trio

from pgnotifyq import EventName, JobContext, JobRegistry
from tests.asked import everything, fetch
from tests.runtime.support import PATIENCE_SECONDS, Process, Workplace

Payload = dict[str, Any]


async def told(process: Process) -> str:
    """Return why the process's handler says that it was stopped."""
    with trio.fail_after(PATIENCE_SECONDS):
        while True:
            found = [fields["reason"] for name, fields in process.log.told if name == "handler"]
            if found:
                return str(found[0])
            await trio.sleep(0.01)


async def begun(process: Process, count: int) -> None:
    """Wait until so many of the process's handlers have begun."""
    with trio.fail_after(PATIENCE_SECONDS):
        while sum(name == "begun" for name, _ in process.log.told) < count:
            await trio.sleep(0.01)


def finishing() -> JobRegistry:
    """Return handlers that end at once what the processes' handlers never end."""
    registry = JobRegistry()

    async def finish(payload: Payload, ctx: JobContext) -> str:
        await trio.lowlevel.checkpoint()
        return "by another"

    for name in ("linger", "stubborn"):
        registry.handler(name)(finish)
    return registry


@pytest.fixture
async def place(place: Workplace) -> Workplace:
    """Give a queue beside the tables of the processes' handlers."""
    await place.connection.execute("drop table if exists marks, gate; create table marks (what text); create table gate ()")
    return place


async def test_killed(place: Workplace) -> None:
    """A killed worker's jobs run again long before their leases end: its session is gone, and that is seen."""
    process = await place.start_process(lease_seconds=600.0)
    job_id = await place.enqueue("linger")
    await process.log.wait(EventName.JOB_CLAIMED, job_id=job_id)
    other = await place.start(finishing(), lease_seconds=600.0)
    process.kill()
    assert await process.wait() == -signal.SIGKILL
    await other.log.wait(EventName.JOB_RECLAIMED, job_id=job_id, became="pending")
    await other.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    assert await place.history(job_id) == [(1, "lost"), (2, "completed")]
    await place.until("count(*) = 1 from pgnotifyq.worker_heartbeats")


async def test_stopped_for_longer_than_its_lease(place: Workplace) -> None:
    """A worker frozen past its lease, then continued, writes nothing: its handler has lost the lease, and is told.

    The job runs beside it meanwhile. That cannot be prevented, only made harmless: what is fenced is what is written.
    """
    process = await place.start_process(lease_seconds=2.0)
    lingering, stubborn = await place.enqueue("linger"), await place.enqueue("stubborn")
    await begun(process, 2)  # one that was claimed and had not begun would never begin
    process.stop()
    other = await place.start(finishing(), lease_seconds=60.0)
    await other.log.wait(EventName.JOB_COMPLETED, count=2)
    before = await everything(place.connection)
    # Only now may the stubborn handler go on, which does not heed its interrupt: it tries to write.
    await place.connection.execute("insert into gate default values")
    process.go_on()
    await process.log.wait(EventName.LEASE_LOST, job_id=lingering)
    await process.log.wait(EventName.LEASE_LOST, job_id=stubborn)
    assert sorted(fields["reason"] for name, fields in process.log.told if name == "handler") == ["LeaseLost", "lease_lost"]
    assert process.log.find(EventName.JOB_COMPLETED) == []
    assert await everything(place.connection) == before
    assert await fetch(place.connection, "select from marks") == []
    for job_id in (lingering, stubborn):
        assert (await place.job(job_id))["result"] == "by another"


async def test_asked_to_end(place: Workplace) -> None:
    """At SIGTERM the process finishes what runs, starts nothing more, and ends well."""
    process = await place.start_process(concurrency=1)
    running, waiting = await place.enqueue("short"), await place.enqueue("short")
    await process.log.wait(EventName.JOB_CLAIMED, job_id=running)
    process.terminate()
    assert await process.wait() == 0
    assert (await place.job(running))["status"] == "completed"
    job = await place.job(waiting)
    assert (job["status"], job["attempts"]) == ("pending", 0)
    assert await fetch(place.connection, "select from pgnotifyq.worker_heartbeats") == []


async def test_asked_twice_to_end(place: Workplace) -> None:
    """At a second SIGTERM what runs is interrupted and released, and not charged."""
    process = await place.start_process()
    job_id = await place.enqueue("linger", max_attempts=1)
    await process.log.wait(EventName.JOB_CLAIMED, job_id=job_id)
    process.terminate()
    await process.log.wait(EventName.WORKER_STOPPING)
    process.terminate()
    assert await process.wait() == 0
    assert await told(process) == "shutdown"
    job = await place.job(job_id)
    assert (job["status"], job["attempts"]) == ("pending", 0)
    assert await place.history(job_id) == [(1, "released")]


async def test_poison_pill(place: Workplace) -> None:
    """A job that kills each process it runs in is dead after its attempts, with the reason; its neighbour is not delayed."""
    watcher = await place.start(JobRegistry(), queues=["elsewhere"], lease_seconds=600.0)
    poison = await place.enqueue("poison", max_attempts=2, priority=9)
    for became in ("pending", "dead"):
        process = await place.start_process(lease_seconds=600.0, concurrency=1)
        assert await process.wait() == 9
        await watcher.log.wait(EventName.JOB_RECLAIMED, job_id=poison, became=became)
    letter = await place.dead_letter(poison)
    assert (letter["reason"], letter["attempts"]) == ("lost", 2)
    assert [(attempt["attempt"], attempt["outcome"]) for attempt in letter["history"]] == [(1, "lost"), (2, "lost")]
    neighbour = await place.enqueue("short")
    process = await place.start_process()
    await process.log.wait(EventName.JOB_COMPLETED, job_id=neighbour)


async def test_neighbours_of_a_poison_pill(place: Workplace) -> None:
    """Jobs that shared each process that a poison pill took down outlive it: they are charged once for it, and complete."""
    watcher = await place.start(JobRegistry(), queues=["elsewhere"], lease_seconds=600.0)
    poison = await place.enqueue("poison", max_attempts=3, priority=9)
    neighbours = [await place.enqueue("linger", max_attempts=2) for _ in range(2)]
    for kills, became in enumerate(("pending", "pending", "dead"), 1):
        process = await place.start_process(lease_seconds=600.0)
        assert await process.wait() == 9
        told = await watcher.log.wait(EventName.JOB_RECLAIMED, job_id=poison, count=kills)
        assert told["became"] == became
    other = await place.start(finishing(), lease_seconds=600.0)
    for neighbour in neighbours:
        await other.log.wait(EventName.JOB_COMPLETED, job_id=neighbour)
        assert (await place.job(neighbour))["attempts"] == 2
        assert await place.history(neighbour) == [(1, "lost"), (2, "lost"), (2, "completed")]


async def test_effect_of_a_process_that_dies(place: Workplace) -> None:
    """What is written in the job's own transaction happens once, whether the process dies before its commit or after."""
    watcher = await place.start(JobRegistry(), queues=["elsewhere"], lease_seconds=600.0)
    job_id = await place.enqueue("effect")
    first = await place.start_process(lease_seconds=600.0)
    assert await first.wait() == 9
    assert await fetch(place.connection, "select from marks") == []
    await watcher.log.wait(EventName.JOB_RECLAIMED, job_id=job_id)
    second = await place.start_process(lease_seconds=600.0)
    assert await second.wait() == 9
    assert await fetch(place.connection, "select what from marks") == [("effect",)]
    assert (await place.job(job_id))["status"] == "completed"
    assert await place.history(job_id) == [(1, "lost"), (2, "completed")]
