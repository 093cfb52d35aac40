"""Handlers that hold the event loop: named at once, with their stack, and what their leases come to."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import psycopg
import pytest
import trio

from pgnotifyq import EventName, JobContext, JobRegistry
from tests.asked import everything
from tests.ledger.support import BOB, SCHEMA
from tests.runtime.support import PATIENCE_SECONDS, Workplace

Payload = dict[str, Any]


class Ear(logging.Handler):
    """Hears what the watchdog's thread says, while the loop is held."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []
        self.has_heard = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if "held the event loop" in record.getMessage():
            self.said.append(record.getMessage())
            self.has_heard.set()

    def hold(self) -> None:
        """Hold the calling thread until the watchdog has said so: nothing else can end this."""
        assert self.has_heard.wait(PATIENCE_SECONDS)


@pytest.fixture
def ear() -> Iterator[Ear]:
    """Give an ear at this package's log."""
    ear, log = Ear(), logging.getLogger("pgnotifyq")
    log.addHandler(ear)
    yield ear
    log.removeHandler(ear)


async def test_handler_that_holds_the_loop(place: Workplace, ear: Ear) -> None:
    """It is named while it does, for the loop may never come back; and as an event, with its stack, when it is back."""
    registry = JobRegistry()

    @registry.handler()
    async def work(payload: Payload) -> None:
        ear.hold()

    worker = await place.start(registry, loop_blocked_seconds=0.05)
    job_id = await place.enqueue("work")
    told = await worker.log.wait(EventName.LOOP_BLOCKED)
    assert (told["job_id"], told["job_type"]) == (str(job_id), "work")
    assert told["handler"] == f"{__name__}:test_handler_that_holds_the_loop.<locals>.work"
    assert float(told["seconds"]) >= 0.05
    innermost, *_, outermost = told["stack"].splitlines()
    assert innermost.startswith("wait at ") and outermost.startswith("work at ")
    assert outermost.endswith(": ear.hold()")
    (said,) = ear.said
    assert told["handler"] in said and str(job_id) in said and "ear.hold()" in said
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)


async def test_task_of_a_handler_that_holds_the_loop(place: Workplace, ear: Ear) -> None:
    """A task that a handler started is the handler's affair; of two jobs that run, the right one is named."""
    registry, let_go = JobRegistry(), trio.Event()

    async def hold() -> None:
        await trio.lowlevel.checkpoint()
        ear.hold()

    @registry.handler()
    async def innocent(payload: Payload) -> None:
        await let_go.wait()

    @registry.handler()
    async def work(payload: Payload) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hold)

    worker = await place.start(registry, loop_blocked_seconds=0.05)
    await worker.log.wait(EventName.JOB_CLAIMED, job_id=await place.enqueue("innocent"))
    job_id = await place.enqueue("work")
    told = await worker.log.wait(EventName.LOOP_BLOCKED)
    assert (told["job_id"], told["job_type"]) == (str(job_id), "work")
    assert told["stack"].splitlines()[-1].startswith("hold at ")
    let_go.set()


async def test_call_that_keeps_the_interpreter_to_itself(place: Workplace, ear: Ear) -> None:
    """A call into C during which no other thread runs is told of as soon as it ends, by the line that made it."""
    registry = JobRegistry()

    @registry.handler()
    async def work(payload: Payload) -> None:
        sum(range(30_000_000))

    worker = await place.start(registry, loop_blocked_seconds=0.05)
    await place.enqueue("work")
    told = await worker.log.wait(EventName.LOOP_BLOCKED, job_type="work")
    assert told["stack"].splitlines()[-1].startswith("work at ")


async def test_task_of_the_program_that_holds_the_loop(place: Workplace, ear: Ear) -> None:
    """A worker in a program's own loop names the program's task when that is what holds it; no job is blamed."""
    registry, let_go = JobRegistry(), trio.Event()

    @registry.handler()
    async def innocent(payload: Payload) -> None:
        await let_go.wait()

    async def hold() -> None:
        ear.hold()

    worker = await place.start(registry, loop_blocked_seconds=0.05)
    await worker.log.wait(EventName.JOB_CLAIMED, job_id=await place.enqueue("innocent"))
    place.nursery.start_soon(hold)
    told = await worker.log.wait(EventName.LOOP_BLOCKED)
    assert "job_id" not in told
    assert "hold" in told["task"] and "ear.hold()" in told["stack"]
    let_go.set()


async def test_lease_that_ran_out_while_the_loop_was_held(place: Workplace, ear: Ear) -> None:
    """Who holds the loop for longer than its lease loses it cleanly: another has the job, and not a byte of it changes."""
    registry, held = JobRegistry(), threading.Event()

    @registry.handler()
    async def work(payload: Payload, ctx: JobContext) -> str:
        held.set()
        ear.hold()
        # No heartbeat was sent meanwhile: the lease has run out, and somebody else takes the job.
        with psycopg.connect(place.dsn, autocommit=True) as session:
            while not session.execute(
                "select job_id from pgnotifyq.reclaim(%s, 10) where job_id = %s", (BOB, ctx.job.id)
            ).fetchone():
                pass
            session.execute("select from pgnotifyq.claim(%s, '{default}', 1, 60)", (BOB,))
        return "by the one who lost it"

    worker = await place.start(registry, loop_blocked_seconds=0.05, lease_seconds=0.6)
    job_id = await place.enqueue("work")
    await worker.log.wait(EventName.LOOP_BLOCKED, job_id=job_id)
    await worker.log.wait(EventName.LEASE_LOST, job_id=job_id)
    job = await place.job(job_id)
    assert (job["status"], job["locked_by"], job["result"], job["attempts"]) == ("running", str(BOB), None, 2)
    assert await place.history(job_id) == [(1, "lost")]
    before = await everything(place.connection)
    await place.until_asleep(worker)
    assert await everything(place.connection) == before
    assert worker.log.find(EventName.JOB_COMPLETED) == []


async def test_two_workers_in_one_loop(place: Workplace, ear: Ear) -> None:
    """Each tells what happened to it, and the end of one is not the end of the other's watch."""
    registry = JobRegistry()

    @registry.handler()
    async def work(payload: Payload) -> None:
        ear.hold()

    first = await place.start(registry, queues=["elsewhere"], loop_blocked_seconds=0.05)
    second = await place.start(registry, loop_blocked_seconds=0.05)
    first.handle.drain()
    await first.ended.wait()
    job_id = await place.enqueue("work")
    await second.log.wait(EventName.LOOP_BLOCKED, job_id=job_id)
    assert first.log.find(EventName.LOOP_BLOCKED) == []
    second.handle.drain()
    await second.ended.wait()
    # Neither leaves a thread behind.
    with trio.fail_after(PATIENCE_SECONDS):
        while any(thread.name == "pgnotifyq watchdog" for thread in threading.enumerate()):
            await trio.sleep(0.01)


async def test_loop_of_a_worker_in_a_thread(place: Workplace, ear: Ear) -> None:
    """The loop that is watched is the worker's, whichever thread it runs in, and `sys.exit` in it ends as it ever does."""
    from pgnotifyq import run_worker

    registry, told = JobRegistry(), []

    @registry.handler()
    async def work(payload: Payload) -> None:
        ear.hold()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            back = trio.Event()

            def note(event: Any) -> None:
                if event.name is EventName.LOOP_BLOCKED:
                    told.append(event.fields)
                    back.set()

            start = partial(run_worker, registry, place.dsn, on_event=note, schema=SCHEMA, loop_blocked_seconds=0.05)
            await nursery.start(start)
            await back.wait()
            raise SystemExit(3)

    job_id = await place.enqueue("work")
    with pytest.raises(BaseExceptionGroup) as caught:
        await trio.to_thread.run_sync(trio.run, main)
    assert caught.group_contains(SystemExit)
    assert told[0]["job_id"] == job_id and "ear.hold()" in told[0]["stack"]


async def test_process_that_was_frozen(place: Workplace, tmp_path: Any) -> None:
    """A process that is stopped while a handler is in the middle of a step blames no handler for it when it goes on."""
    process = await place.start_process(loop_blocked_seconds=1.5)
    gate = tmp_path / "gate"
    job_id = await place.enqueue("hold", payload=f'{{"until": "{gate}"}}')
    with trio.fail_after(PATIENCE_SECONDS):
        while ("handler", {"reason": "holds"}) not in process.log.told:
            await trio.sleep(0.01)
    process.stop()
    await place.until("started_at + interval '2 s' < clock_timestamp() from pgnotifyq.jobs where id = %s", job_id)
    gate.touch()
    process.go_on()
    await process.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    assert process.log.find(EventName.LOOP_BLOCKED) == []
