"""The README's table of promises, at the settings that workers have when nobody sets any.

Other tests have short leases, heartbeats and graces, so that something is seen to happen soon. Here nothing is set: what hides behind
a heartbeat of a tenth of a second shows. What is asked is what came first: a handler that lost its job is told before another begins.
"""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from typing import Any

import pytest
import trio

from pgnotifyq import EventName, JobContext, JobRegistry, WorkerConfig
from pgnotifyq.embedded import open_temporary_server
from pgnotifyq.migrating import migrate
from pgnotifyq.wire.connection import open_connection
from tests.asked import fetch
from tests.proxy import Proxy, run_proxy
from tests.runtime.support import PATIENCE_SECONDS, Log, Process, Worker, Workplace, _run_process, _work, open_workplace

Payload = dict[str, Any]
LONGER_SECONDS = 40.0  # of a wait for what a heartbeat or a proof brings: 20 s, 14.5 s


class Diary:
    """What the handlers of several workers did, in order."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.let_go = trio.Event()
        self._news = trio.Event()

    def note(self, what: str) -> None:
        """Write it down."""
        self.notes.append(what)
        self._news.set()
        self._news = trio.Event()

    async def until(self, what: str, seconds: float = PATIENCE_SECONDS) -> None:
        """Wait for a note."""
        with trio.fail_after(seconds):
            while what not in self.notes:
                await self._news.wait()

    def registry(self, name: str) -> JobRegistry:
        """Return the handlers of a worker: `work` lasts until it is let go, and notes when it is told to stop."""
        registry = JobRegistry()

        @registry.handler()
        async def work(payload: Payload, ctx: JobContext) -> None:
            self.note(f"{name} begins")
            try:
                await self.let_go.wait()
            except trio.Cancelled:
                assert ctx.cancel_reason is not None
                self.note(f"{name} is told: {ctx.cancel_reason.kind.value}")
                raise
            self.note(f"{name} is done")

        @registry.handler()
        async def block(payload: Payload) -> None:
            time.sleep(payload["seconds"])  # noqa: ASYNC251  # that is the point

        @registry.handler()
        async def linger(payload: Payload) -> None:
            self.note(f"{name} begins")

        return registry


async def start(place: Workplace, registry: JobRegistry, dsn: str | None = None, **settings: Any) -> Worker:
    """Start a worker as it comes; `settings` are addresses, and how many jobs at once."""
    log = Log()
    worker: Worker = await place.nursery.start(partial(_work, registry, dsn or place.dsn, log=log, **settings))
    await log.wait(EventName.LISTENER_CONNECTED)
    return worker


async def start_process(place: Workplace) -> Process:
    """Start a worker as it comes, in a process of its own."""
    process: Process = await place.nursery.start(_run_process, place.dsn, {})
    await process.log.wait(EventName.LISTENER_CONNECTED)
    return process


async def begun(place: Workplace, diary: Diary, worker: Worker, name: str) -> Any:
    """Have a worker, the only one, start a job that lasts."""
    job_id = await place.enqueue("work")
    await worker.log.wait(EventName.JOB_CLAIMED, job_id=job_id)
    await diary.until(f"{name} begins")
    return job_id


async def end_sessions(place: Workplace, others: set[int], name: str = "pgnotifyq %") -> None:
    """End the sessions that are there and are not others', as the server's side of a broken cable does."""
    await place.connection.execute(
        "select pg_terminate_backend(pid, 5000) from pg_stat_activity"
        " where datname = current_database() and application_name like %s and pid <> all (%s)",
        (name, list(others)),
    )


async def sessions(place: Workplace) -> set[int]:
    """Return the sessions of workers."""
    statement = "select pid from pg_stat_activity where datname = current_database() and application_name like 'pgnotifyq %%'"
    return {pid for (pid,) in await fetch(place.connection, statement)}


async def relay_until(dsn: str, gone: trio.Event, *, task_status: trio.TaskStatus[Proxy]) -> None:
    """Run a relay until it is gone, its port with it."""
    async with trio.open_nursery() as nursery:
        cable: Proxy = await nursery.start(run_proxy, dsn)
        task_status.started(cable)
        await gone.wait()
        nursery.cancel_scope.cancel()


def test_nothing_is_set() -> None:
    """What is proved here is proved of the defaults: they leave room for steps that a busy machine can take."""
    config = WorkerConfig()
    assert (config.lease_seconds, config.heartbeat_seconds) == (60.0, 20.0)
    assert 1.0 <= config.session_grace_seconds <= 2.0


async def test_killed(place: Workplace) -> None:
    """A killed worker's jobs run again while their leases have most of their time before them."""
    diary = Diary()
    process = await start_process(place)
    job_id = await place.enqueue("linger")
    await process.log.wait(EventName.JOB_CLAIMED, job_id=job_id)
    lease_ends_at = (await place.job(job_id))["lease_expires_at"]
    other = await start(place, diary.registry("other"))
    process.kill()
    assert await process.wait() == -signal.SIGKILL
    await other.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    assert await fetch(place.connection, "select clock_timestamp() < %s::timestamptz - interval '20 s'", lease_ends_at) == [
        (True,)
    ]
    assert await place.history(job_id) == [(1, "lost"), (2, "completed")]


async def test_killed_when_a_child_of_its_own_lives_on(place: Workplace) -> None:
    """A child that was forked, and holds all that its parent held, does not speak for the parent's life."""
    diary = Diary()
    process = await start_process(place)
    job_id = await place.enqueue("forks")
    told = await process.log.wait(EventName("job.claimed"), job_id=job_id)
    assert told
    with trio.fail_after(PATIENCE_SECONDS):
        while not (children := [fields["pid"] for name, fields in process.log.told if name == "child"]):
            await trio.sleep(0.01)
    lease_ends_at = (await place.job(job_id))["lease_expires_at"]
    registry = diary.registry("other")

    @registry.handler()
    async def forks(payload: Payload) -> None:
        await trio.lowlevel.checkpoint()

    other = await start(place, registry)
    try:
        process.kill()
        await other.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
        assert await fetch(place.connection, "select clock_timestamp() < %s::timestamptz - interval '20 s'", lease_ends_at) == [
            (True,)
        ]
        os.kill(int(children[0]), 0)  # it lives
    finally:
        os.kill(int(children[0]), signal.SIGKILL)


async def test_listener_is_lost_and_the_claimer_is_well(place: Workplace) -> None:
    """A worker whose session is gone, and who can say so by another, keeps its jobs for as long as that lasts."""
    diary = Diary()
    cable: Proxy = await place.nursery.start(run_proxy, place.dsn)
    worker = await start(place, diary.registry("first"), listen_dsn=cable.dsn)
    job_id = await begun(place, diary, worker, "first")
    watcher = await start(place, diary.registry("second"))
    cable.freeze()
    speaker = "session_pid from pgnotifyq.worker_heartbeats where worker_id = %s"
    ((pid,),) = await fetch(place.connection, f"select {speaker}", worker.handle.worker_id)
    await place.connection.execute("select pg_terminate_backend(%s, 5000)", (pid,))
    # It was missed, and gave a sign of life, again and again.
    for _ in range(3):
        for state in ("not null", "null"):
            await place.until(
                f"session_lost_at is {state} from pgnotifyq.worker_heartbeats where worker_id = %s", worker.handle.worker_id
            )
    diary.let_go.set()
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    assert (diary.notes, watcher.log.find(EventName.JOB_RECLAIMED)) == (["first begins", "first is done"], [])


@pytest.mark.parametrize("how", ["cable frozen, sessions ended by the server", "relay gone"])
async def test_cut_off(place: Workplace, how: str) -> None:
    """A worker that is cut off stops its handlers before anybody else begins; nothing of them is written."""
    diary = Diary()
    gone = trio.Event()
    cable: Proxy = await place.nursery.start(relay_until, place.dsn, gone)
    worker = await start(place, diary.registry("first"), dsn=cable.dsn)
    job_id = await begun(place, diary, worker, "first")
    cut_off = await sessions(place)
    other = await start(place, diary.registry("second"))
    if how == "relay gone":
        gone.set()
    else:
        cable.freeze()
        await end_sessions(place, await sessions(place) - cut_off)
    await diary.until("second begins")
    assert diary.notes == ["first begins", "first is told: lease_lost", "second begins"]
    diary.let_go.set()
    await other.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    assert await place.history(job_id) == [(1, "lost"), (2, "completed")]


async def test_all_sessions_are_lost_and_the_way_is_free(place: Workplace) -> None:
    """A worker that loses every session at once, and may connect again, keeps its jobs."""
    diary = Diary()
    cable: Proxy = await place.nursery.start(run_proxy, place.dsn)
    worker = await start(place, diary.registry("first"), dsn=cable.dsn)
    job_id = await begun(place, diary, worker, "first")
    watcher = await start(place, diary.registry("second"))
    for times in (2, 3, 4):
        cable.cut()
        await worker.log.wait(EventName.LISTENER_CONNECTED, count=times)
    diary.let_go.set()
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    assert (diary.notes, watcher.log.find(EventName.JOB_RECLAIMED)) == (["first begins", "first is done"], [])


async def test_silence_that_the_server_does_not_see(place: Workplace) -> None:
    """A job that was stopped in a silence, and was never taken from its worker, is given back uncharged when that is over."""
    diary = Diary()
    cable: Proxy = await place.nursery.start(run_proxy, place.dsn)
    worker = await start(place, diary.registry("first"), dsn=cable.dsn)
    job_id = await begun(place, diary, worker, "first")
    cable.freeze()
    await diary.until("first is told: lease_lost")
    assert (await place.job(job_id))["locked_by"] == str(worker.handle.worker_id)
    diary.let_go.set()
    cable.cut()
    cable.thaw()
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    assert await place.history(job_id) == [(1, "released"), (1, "completed")]


async def test_handler_that_holds_the_loop(place: Workplace) -> None:
    """A worker whose loop was held for longer than its grace, with all its sessions in order, stops no other handler for it."""
    diary = Diary()
    worker = await start(place, diary.registry("first"))
    job_id = await begun(place, diary, worker, "first")
    blocking = await place.enqueue("block", payload='{"seconds": 2.5}')
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=blocking)
    await place.until(
        "not exists (select from pgnotifyq.jobs where status = 'completed' and completed_at > now() - interval '1 s')"
    )
    diary.let_go.set()
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    assert worker.log.find(EventName.JOB_INTERRUPTED) == []


async def test_told_to_stop_and_cancelled(place: Workplace) -> None:
    """SIGTERM lets a running job end; an accepted cancel is told at once, and the job is never completed."""
    diary = Diary()
    process = await start_process(place)
    job_id = await place.enqueue("short")
    await process.log.wait(EventName.JOB_CLAIMED, job_id=job_id)
    process.terminate()
    assert await process.wait() == 0
    assert await place.history(job_id) == [(1, "completed")]
    worker = await start(place, diary.registry("first"))
    cancelled = await begun(place, diary, worker, "first")
    await place.cancel(cancelled)
    await worker.log.wait(EventName.JOB_CANCELLED, job_id=cancelled)
    assert diary.notes == ["first begins", "first is told: cancelled"]
    assert await place.history(cancelled) == [(1, "cancelled")]


async def deaf_listener(place: Workplace) -> None:
    """Have a worker lose its notifications, and nothing else, as a cancel and a job come."""
    diary = Diary()
    cable: Proxy = await place.nursery.start(run_proxy, place.dsn)
    worker = await start(place, diary.registry("first"), listen_dsn=cable.dsn)
    job_id = await begun(place, diary, worker, "first")
    await place.until_idle(worker)
    cable.drop_notifications()
    await place.cancel(job_id)
    unheard = await place.enqueue("linger")
    await diary.until("first is told: cancelled", LONGER_SECONDS)
    cable.thaw()
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=unheard)
    await worker.log.wait(EventName.JOB_CANCELLED, job_id=job_id)
    assert await place.history(job_id) == [(1, "cancelled")]


DOWN_SECONDS = {"socket": 0.0, "TCP": 1.4, "crash": 2.5, "socket, for long": 5.0}


async def restart(how: str, diary: Diary) -> None:
    """Have four workers hold two jobs each on a server of their own; restart it, and let them look at each other for long."""
    opened = open_temporary_server(settings={"fsync": "on"})
    server = await trio.to_thread.run_sync(opened.__enter__)
    try:
        async with open_connection(server.dsn) as connection:
            await migrate(connection)
        dsn = server.tcp_dsn if how == "TCP" else server.dsn
        async with open_connection(dsn) as connection, open_workplace(dsn, connection) as place:
            for _ in range(8):
                await place.enqueue("work")
            workers = [await start(place, diary.registry("worker"), concurrency=2) for _ in range(4)]
            with trio.fail_after(PATIENCE_SECONDS):
                while len(diary.notes) < 8:
                    await trio.sleep(0.01)
            await trio.to_thread.run_sync(server.stop, "immediate" if how == "crash" else "fast")
            await trio.sleep(DOWN_SECONDS[how])  # that is what the server does
            await trio.to_thread.run_sync(server.start)
            for worker in workers:
                await worker.log.wait(EventName.LISTENER_CONNECTED, count=2)
            # Longer than a worker without a session, and without a sign of life, would be left alone.
            await place.until("clock_timestamp() > pg_postmaster_start_time() + interval '6 s'")
            assert diary.notes == ["worker begins"] * 8
            diary.let_go.set()
            for worker in workers:
                await worker.log.wait(EventName.JOB_COMPLETED, count=2)
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(opened.__exit__, None, None, None)


async def test_server_that_is_restarted_and_listener_that_is_deaf(place: Workplace) -> None:
    """However long a server is away, short of the lease, healthy workers keep their jobs: each starts once, and ends.

    And where notifications are lost, a heartbeat carries the cancel, and a job starts when the listener's proof has failed. These take
    their time, so they take it at once.
    """
    diaries = {how: Diary() for how in DOWN_SECONDS}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(deaf_listener, place)
        for how, diary in diaries.items():
            nursery.start_soon(restart, how, diary)
    whole = ["worker begins"] * 8 + ["worker is done"] * 8
    assert {how: diary.notes for how, diary in diaries.items()} == dict.fromkeys(DOWN_SECONDS, whole)
