"""A row that cannot be written, beside live workers: none ends, other jobs go on, and it is ended as it was meant."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import trio

from pgnotifyq import EventName, JobRegistry, RetryPolicy
from pgnotifyq.migrating import migrate
from pgnotifyq.runtime import pruner
from pgnotifyq.wire.connection import open_connection
from tests.asked import clear, fetch, obstruct, value
from tests.doors.test_readers import odd_dsn
from tests.ledger.obstacles import ALWAYS, AT_DEATH, CLEAR
from tests.runtime.support import Workplace, open_workplace

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["odd_dsn"]
Payload = dict[str, Any]
SHORT: dict[str, Any] = {"lease_seconds": 1.5}  # the reclaimer looks as often


@pytest.fixture(autouse=True)
def users_own(dsn: str) -> Iterator[None]:
    """Take away what a test put into the schema."""
    yield
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(CLEAR)


def registry(ran: list[str]) -> JobRegistry:
    """Return handlers that fail, and do not; each notes that it ran."""
    made = JobRegistry()

    @made.handler()
    async def works(payload: Payload) -> int:
        ran.append("works")
        return 1

    @made.handler(max_attempts=1)
    async def fails(payload: Payload) -> None:
        ran.append("fails")
        raise ValueError("no luck")

    return made


async def nothing_ended(place: Workplace, *workers: Any) -> None:
    """Have a job run to its end, and see that no worker has ended."""
    job_id = await place.enqueue("works")
    await place.until("exists (select from pgnotifyq.jobs where id = %s and status = 'completed')", job_id)
    assert not any(worker.ended.is_set() for worker in workers)


@pytest.mark.parametrize("obstacle", ["foreign key", "foreign key, deferred", "delete returns null"])
async def test_job_that_cannot_die(place: Workplace, obstacle: str) -> None:
    """Its worker tells that it is put aside, and goes on; so does the next one that is started; and it dies when it can."""
    ran: list[str] = []
    victim = await place.enqueue("fails", max_attempts=1, scheduled_at="2100-01-01")
    await obstruct(place.connection, AT_DEATH[obstacle], victim)
    first = await place.start(registry(ran), **SHORT)
    await place.connection.execute("update pgnotifyq.jobs set scheduled_at = now()")
    told = await first.log.wait(EventName.JOB_PUT_ASIDE, job_id=victim)
    assert told["verb"] == "bury"
    second = await place.start(registry(ran), **SHORT)
    await nothing_ended(place, first, second)
    await clear(place.connection)
    await place.connection.execute("update pgnotifyq.job_troubles set look_at = now()")
    await place.until("exists (select from pgnotifyq.dead_letter_jobs where id = %s)", victim)
    letter = await place.dead_letter(victim)
    assert (letter["reason"], letter["error_message"].splitlines()[0]) == ("exhausted", "ValueError: no luck")
    assert ran.count("fails") == 1


@pytest.mark.parametrize("obstacle", ["misses a table", "returns null", "raises at commit", "asks for a repetition"])
async def test_work_whose_completion_cannot_be_written(place: Workplace, obstacle: str) -> None:
    """It is not done again: with the obstacle gone the job is completed, with its result."""
    ran: list[str] = []
    victim = await place.enqueue("works", scheduled_at="2100-01-01")
    await obstruct(place.connection, ALWAYS[obstacle].replace("= '{victim}'", "= '{victim}' and old.status = 'running'"), victim)
    worker = await place.start(registry(ran), **SHORT)
    await place.connection.execute("update pgnotifyq.jobs set scheduled_at = now()")
    await place.until("exists (select from pgnotifyq.job_troubles where job_id = %s and verb = 'complete')", victim)
    await nothing_ended(place, worker)
    await clear(place.connection)
    await place.connection.execute("update pgnotifyq.job_troubles set look_at = now()")
    await worker.log.wait(EventName.JOB_RECLAIMED, job_id=victim, became="completed")
    job = await place.job(victim)
    assert (job["status"], job["result"], ran.count("works")) == ("completed", 1, 2)


async def test_outcome_beside_a_row_that_somebody_holds(place: Workplace) -> None:
    """The other outcomes are written while the lock is held, and the one is when it is let go."""
    started, go_on = trio.Event(), trio.Event()
    made = registry([])

    @made.handler()
    async def waits(payload: Payload) -> None:
        started.set()
        await go_on.wait()

    worker = await place.start(made, lease_seconds=12.0)
    victim = await place.enqueue("waits")
    await started.wait()
    async with open_connection(place.dsn) as other, other.transaction():
        await other.execute("select from pgnotifyq.jobs where id = %s for update", (victim,))
        go_on.set()
        await nothing_ended(place, worker)
        assert worker.log.find(EventName.JOB_COMPLETED, job_id=victim) == []
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=victim)


async def test_finished_job_that_cannot_be_pruned(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told once, the others are deleted, and the worker goes on."""
    monkeypatch.setattr(pruner, "EVERY_SECONDS", 0.2)
    victim = await place.enqueue("works", scheduled_at="2100-01-01")
    await obstruct(place.connection, AT_DEATH["foreign key"], victim)
    worker = await place.start(registry([]), retention_seconds=1.0)
    neighbour = await place.enqueue("works")
    await place.connection.execute("update pgnotifyq.jobs set scheduled_at = now() where id = %s", (victim,))
    await worker.log.wait(EventName.JOB_PUT_ASIDE, job_id=victim, verb="prune")
    await place.until("not exists (select from pgnotifyq.jobs where id = %s)", neighbour)
    await nothing_ended(place, worker)
    assert len(worker.log.find(EventName.JOB_PUT_ASIDE)) == 1


async def test_last_words_of_a_worker_beside_a_row_that_cannot_be_written(place: Workplace) -> None:
    """What else it holds is released, and its row goes."""
    made = registry([])

    @made.handler()
    async def waits(payload: Payload) -> None:
        await trio.sleep_forever()

    worker = await place.start(made)
    victim, neighbour = await place.enqueue("waits"), await place.enqueue("waits")
    for job_id in (victim, neighbour):
        await worker.log.wait(EventName.JOB_CLAIMED, job_id=job_id)
    await obstruct(place.connection, ALWAYS["raises"], victim)
    await worker.leave()
    assert (await place.job(neighbour))["status"] == "pending"
    assert (await place.job(neighbour))["attempts"] == 0
    assert await value(place.connection, "select verb from pgnotifyq.job_troubles where job_id = %s", victim) == "release"
    assert await value(place.connection, "select count(*) from pgnotifyq.worker_heartbeats") == 0


async def test_letter_copied_back_that_dies_again(place: Workplace) -> None:
    """The worker goes on, and both letters are there."""
    worker = await place.start(registry([]))
    job_id = await place.enqueue("fails", max_attempts=1)
    await worker.log.wait(EventName.JOB_DEAD, job_id=job_id)
    await place.connection.execute(
        "insert into pgnotifyq.jobs (id, org_id, queue_name, job_type, payload, max_attempts)"
        " select id, org_id, queue_name, job_type, payload, max_attempts from pgnotifyq.dead_letter_jobs"
    )
    await worker.log.wait(EventName.JOB_DEAD, job_id=job_id, count=2)
    await nothing_ended(place, worker)
    assert await value(place.connection, "select count(*) from pgnotifyq.dead_letter_jobs") == 2


def deep() -> BaseException:
    """Return a group in 1,500 groups."""
    error: Exception = ValueError("leaf")
    for _ in range(1500):
        error = ExceptionGroup("deep", [error])
    return error


RAISED = {
    "KeyboardInterrupt": lambda: KeyboardInterrupt("nobody pressed anything"),
    "KeyboardInterrupt in a group": lambda: BaseExceptionGroup("g", [KeyboardInterrupt("nobody pressed anything")]),
    "deep group": deep,
}


@pytest.mark.parametrize("kind", RAISED)
async def test_error_of_a_handler_in_a_thread(place: Workplace, kind: str) -> None:
    """No Ctrl-C lands in a thread: whatever is raised there is the job's own failure, charged."""
    made = registry([])

    @made.handler(max_attempts=2, retry=RetryPolicy(base_seconds=0.0))
    def thread(payload: Payload) -> None:
        error = RAISED[kind]()
        raise error

    worker = await place.start(made)
    job_id = await place.enqueue("thread", max_attempts=2)
    await worker.log.wait(EventName.JOB_DEAD, job_id=job_id)
    await nothing_ended(place, worker)
    letter = await place.dead_letter(job_id)
    assert (letter["reason"], letter["attempts"]) == ("exhausted", 2)
    assert ("nobody pressed anything" if kind != "deep group" else "ValueError: leaf") in letter["error_message"]


async def test_deep_group_of_a_task(place: Workplace) -> None:
    """A group that is nested deeper than Python's recursion goes is a failure like any other."""
    made = registry([])

    @made.handler()
    async def task(payload: Payload) -> None:
        raise deep()

    worker = await place.start(made)
    job_id = await place.enqueue("task", max_attempts=1)
    await worker.log.wait(EventName.JOB_DEAD, job_id=job_id)
    await nothing_ended(place, worker)


async def test_error_whose_text_the_server_lacks(odd_dsn: str) -> None:
    """In LATIN1 and SQL_ASCII a worker goes on, and the error is stored, escaped where need be."""
    made = JobRegistry()

    @made.handler()
    async def works(payload: Payload) -> str:
        return "\u2192"

    @made.handler()
    async def fails(payload: Payload) -> None:
        raise ValueError("\u2192 \U0001f4a5")

    async with open_connection(odd_dsn) as connection, open_workplace(odd_dsn, connection) as place:
        await migrate(connection)
        worker = await place.start(made)
        job_id = await place.enqueue("fails", max_attempts=1)
        await worker.log.wait(EventName.JOB_DEAD, job_id=job_id)
        await nothing_ended(place, worker)
        ((error,),) = await fetch(connection, "select convert_to(error_message, 'UTF8') from pgnotifyq.dead_letter_jobs")
        assert b"ValueError: " in bytes(error)


async def test_job_held_by_nobody_known(place: Workplace) -> None:
    """Rows that our code never makes are taken back, or left; whoever holds them, however often they were tried."""
    worker = await place.start(registry([]), **SHORT)
    for attempts, maximum in ((0, 3), (0, 0), (1, 1), (3, 3)):
        for status in ("running", "cancelled"):
            for expiry in ("-infinity", "2000-01-01", "4713-01-01 BC"):
                await place.connection.execute(
                    "insert into pgnotifyq.jobs (job_type, status, attempts, max_attempts, locked_by, current_execution_id,"
                    " lease_expires_at, completed_at) values ('works', %s, %s, %s, %s, %s, %s, %s)",
                    (status, attempts, maximum, uuid.uuid4(), uuid.uuid4(), expiry, "now" if status == "cancelled" else None),
                )
    await place.until("not exists (select from pgnotifyq.jobs where is_held or status = 'pending')")
    await nothing_ended(place, worker)
    assert await value(place.connection, "select count(*) from pgnotifyq.job_troubles") == 0
