"""Workers under test: their events, and a way to wait for each; processes that can be stopped and killed.

Nothing here sleeps for luck. A test waits for an event of a worker or for a condition in the database. Backstops are an
hour and leases a minute unless a test says otherwise, so that what happens soon was caused by what is tested.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import trio

from pgnotifyq import EventName, JobRegistry, WorkerHandle, run_worker
from tests import asked
from tests.ledger.support import BOB
from tests.proxy import until
from tests.runtime.shapes import note_misfit

if TYPE_CHECKING:
    from pgnotifyq.model.events import Event
    from pgnotifyq.model.job import JobId
    from pgnotifyq.wire.connection import Connection

# Of a wait for what must come; a machine under load needs some.
PATIENCE_SECONDS = float(os.environ.get("PGNOTIFYQ_TEST_PATIENCE_SECONDS", "20"))
ROOT = Path(__file__).parents[2]
SETTINGS: dict[str, Any] = {"concurrency": 4, "backstop_seconds": 3600.0, "session_grace_seconds": 0.1}


class Log:
    """What a worker told, and a wait for what it will tell."""

    def __init__(self) -> None:
        self.told: list[tuple[str, dict[str, Any]]] = []
        self._news = trio.Event()

    def __call__(self, event: Event) -> None:
        """Take an event; what a worker is given as on_event."""
        note_misfit(event)
        self.note(event.name.value, {name: str(value) for name, value in event.fields.items()})

    def note(self, name: str, fields: dict[str, Any]) -> None:
        """Take an event in plain values."""
        self.told.append((name, fields))
        self._news.set()
        self._news = trio.Event()

    def find(self, name: EventName, **fields: object) -> list[dict[str, Any]]:
        """Return the fields of the events of a name that have these fields."""
        wanted = {key: str(value) for key, value in fields.items()}
        return [told for kind, told in self.told if kind == name and all(told.get(key) == wanted[key] for key in wanted)]

    async def wait(self, name: EventName, *, count: int = 1, **fields: object) -> dict[str, Any]:
        """Wait until there are `count` such events; return the last of them."""
        with trio.move_on_after(PATIENCE_SECONDS):
            while True:
                if len(found := self.find(name, **fields)) >= count:
                    return found[count - 1]
                await self._news.wait()
        raise AssertionError(f"no {name.value} with {fields} came; told was {self.told}")


@attrs.define(eq=False)
class Worker:
    """A worker in the test's own loop."""

    handle: WorkerHandle
    log: Log
    ended: trio.Event = attrs.field(factory=trio.Event)  # run_worker has returned
    _scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)

    async def leave(self) -> None:
        """Cancel it from outside, as a nursery that fails does, and wait for its end."""
        self._scope.cancel()
        await self.ended.wait()


@attrs.define(eq=False)
class Process:
    """A worker in a process of its own; see apps/worker.py."""

    process: trio.Process
    log: Log

    def kill(self) -> None:
        """End it at once, as the kernel does when memory runs out."""
        self.process.send_signal(signal.SIGKILL)

    def stop(self) -> None:
        """Freeze it."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Thaw it."""
        self.process.send_signal(signal.SIGCONT)

    def terminate(self) -> None:
        """Ask it to end, as service managers do."""
        self.process.send_signal(signal.SIGTERM)

    async def wait(self) -> int:
        """Wait for its end; return its exit code."""
        with trio.fail_after(PATIENCE_SECONDS):
            return await self.process.wait()


@attrs.define(eq=False)
class Workplace:
    """A queue and the workers on it."""

    dsn: str
    connection: Connection[Any]
    nursery: trio.Nursery

    async def start(self, registry: JobRegistry, *, dsn: str | None = None, is_heard: bool = True, **settings: Any) -> Worker:
        """Start a worker in this loop; it has its listener when this returns, unless `is_heard` is False."""
        log = Log()
        worker: Worker = await self.nursery.start(partial(_work, registry, dsn or self.dsn, log=log, **{**SETTINGS, **settings}))
        if is_heard:
            await log.wait(EventName.LISTENER_CONNECTED)
        return worker

    async def start_process(self, *, dsn: str | None = None, is_heard: bool = True, **settings: Any) -> Process:
        """Start apps/worker.py; it has its listener when this returns, unless `is_heard` is False."""
        process: Process = await self.nursery.start(_run_process, dsn or self.dsn, {**SETTINGS, **settings})
        await process.log.wait(EventName.LISTENER_CONNECTED if is_heard else EventName.WORKER_STARTED)
        return process

    async def enqueue(self, job_type: str = "noop", **fields: object) -> JobId:
        """Enqueue a job."""
        return await asked.enqueue(self.connection, job_type, **fields)

    async def cancel(self, job_id: JobId) -> None:
        """Cancel a job as people do."""
        await asked.update_status(self.connection, job_id)

    async def job(self, job_id: JobId) -> dict[str, Any]:
        """Return a job's row."""
        return await asked.existing(self.connection, job_id)

    async def history(self, job_id: JobId) -> list[tuple[Any, ...]]:
        """Return (attempt, outcome) of the attempts that ended."""
        return await asked.history(self.connection, job_id)

    async def dead_letter(self, job_id: JobId) -> dict[str, Any]:
        """Return the dead letter of a job that must be dead."""
        letter = await asked.dead_letter(self.connection, job_id)
        assert letter is not None
        return letter

    async def until(self, condition: str, *parameters: object) -> None:
        """Wait until a condition in the database holds."""
        await until(self.dsn, condition, *parameters)

    async def until_asleep(self, worker: Worker) -> None:
        """Wait until a worker has published itself as a sleeper."""
        await self.until("exists (select from pgnotifyq.sleepers where worker_id = %s)", worker.handle.worker_id)

    async def until_idle(self, worker: Worker) -> None:
        """Wait until a worker is asleep and has no look at its queues before it: those on the way to sleep follow within 0.1 s."""
        await self.until_asleep(worker)
        await self.until(
            "bool_and(state = 'idle' and state_change < clock_timestamp() - interval '0.2 s') from pg_stat_activity"
            " where application_name = 'pgnotifyq claimer' and datname = current_database()"
        )

    async def take_away(self, job_id: JobId) -> None:
        """Do to a running job what a reclaimer does once its lease has run out, and have BOB claim it, in one commit."""
        async with self.connection.transaction():
            await self.lose(job_id)
            (job,) = await asked.claim(self.connection, worker=BOB)
        assert job.id == job_id

    async def lose(self, job_id: JobId) -> None:
        """Do to a running job what a reclaimer does once its lease has run out."""
        async with self.connection.transaction():
            await self.connection.execute(
                "update pgnotifyq.jobs set lease_expires_at = clock_timestamp() - interval '1 s' where id = %s", (job_id,)
            )
            assert await asked.reclaim(self.connection) == {job_id: "pending"}


@asynccontextmanager
async def open_workplace(dsn: str, connection: Connection[Any]) -> AsyncIterator[Workplace]:
    """Open a place for workers, and end them all when the block ends."""
    async with trio.open_nursery() as nursery:
        yield Workplace(dsn, connection, nursery)
        nursery.cancel_scope.cancel()


async def _work(registry: JobRegistry, dsn: str, *, log: Log, task_status: trio.TaskStatus[Worker], **settings: Any) -> None:
    scope, ended = trio.CancelScope(), trio.Event()
    try:
        async with trio.open_nursery() as nursery:
            with scope:
                async with trio.open_nursery() as inner:
                    handle: WorkerHandle = await inner.start(partial(run_worker, registry, dsn, on_event=log, **settings))
                    task_status.started(Worker(handle, log, ended, scope))
            nursery.cancel_scope.cancel()
    finally:
        ended.set()


async def _run_process(dsn: str, settings: dict[str, Any], *, task_status: trio.TaskStatus[Process]) -> None:
    command = [sys.executable, "-m", "tests.runtime.apps.worker", dsn, json.dumps(settings)]
    process = await trio.lowlevel.open_process(
        command, stdout=subprocess.PIPE, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    log = Log()
    try:
        task_status.started(Process(process, log))
        assert process.stdout is not None
        rest = b""
        async for chunk in process.stdout:
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                told = json.loads(line)
                log.note(told.pop("event"), {name: str(value) for name, value in told.items()})
        await process.wait()
    finally:
        with trio.CancelScope(shield=True):
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            await process.wait()
            if process.stdout is not None:
                await process.stdout.aclose()
