"""Faults between worker and database: terminated backends, replies that are lost, cables that go silent."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from pgnotifyq import EventName, JobRegistry, open_client
from pgnotifyq.ledger import claim as claim_verbs
from pgnotifyq.runtime import listener
from pgnotifyq.wire import connection as wire
from tests.asked import fetch
from tests.ledger.support import BLOCKED
from tests.proxy import Proxy, run_proxy
from tests.runtime.detours import Go, detour
from tests.runtime.support import Workplace

Payload = dict[str, Any]
BACKENDS = ("claimer", "settler", "listener")


class Gate:
    """Two job types: `quick` returns at once, `work` when it is let go."""

    def __init__(self) -> None:
        self.registry = JobRegistry()
        self.let_go = trio.Event()
        self.started = 0
        self.registry.handler()(self.work)
        self.registry.handler()(self.quick)

    async def work(self, payload: Payload) -> None:
        """Wait until let go."""
        self.started += 1
        await self.let_go.wait()

    async def quick(self, payload: Payload) -> None:
        """Return."""
        await trio.lowlevel.checkpoint()


async def terminate(place: Workplace, name: str) -> None:
    """End a backend of a worker, as an administrator does."""
    await place.until(
        "exists (select from pg_stat_activity where application_name = %s and datname = current_database())", f"pgnotifyq {name}"
    )
    found = await fetch(
        place.connection,
        "select pg_terminate_backend(pid, 5000) from pg_stat_activity where application_name = %s and datname = current_database()",
        f"pgnotifyq {name}",
    )
    assert found == [(True,)]


@pytest.mark.parametrize("backend", BACKENDS)
async def test_backend_terminated_while_idle(place: Workplace, backend: str) -> None:
    """A worker that loses a connection while it sleeps comes back, and misses nothing that came meanwhile."""
    gate = Gate()
    worker = await place.start(gate.registry)
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=await place.enqueue("quick"))
    await place.until_asleep(worker)
    await terminate(place, backend)
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=await place.enqueue("quick"))
    if backend == "listener":
        await worker.log.wait(EventName.LISTENER_CONNECTED, count=2)
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=await place.enqueue("quick"))
    assert not worker.ended.is_set()


@pytest.mark.parametrize("backend", BACKENDS)
async def test_backend_terminated_while_a_job_runs(place: Workplace, backend: str) -> None:
    """A running job survives the loss of any connection: it is not started twice, and its end is written once."""
    gate = Gate()
    worker = await place.start(gate.registry, lease_seconds=9.0, heartbeat_seconds=0.2)
    job_id = await place.enqueue("work")
    await worker.log.wait(EventName.JOB_CLAIMED, job_id=job_id)
    await terminate(place, backend)
    gate.let_go.set()
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    assert (gate.started, await place.history(job_id)) == (1, [(1, "completed")])


async def test_backend_terminated_in_the_middle_of_a_settlement(place: Workplace) -> None:
    """An outcome whose statement was ended half-way is written again on a new connection."""
    gate = Gate()
    worker = await place.start(gate.registry)
    job_id = await place.enqueue("work")
    await worker.log.wait(EventName.JOB_CLAIMED, job_id=job_id)
    async with place.connection.transaction():
        await place.connection.execute("select from pgnotifyq.jobs where id = %s for update", (job_id,))
        gate.let_go.set()
        await place.until(BLOCKED, "pgnotifyq settler")
        await terminate(place, "settler")
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    assert await place.history(job_id) == [(1, "completed")]


async def test_listener_comes_back_to_cancels_it_missed(place: Workplace) -> None:
    """A cancel sent while nobody listened is found by the listener's first act after its return."""
    gate = Gate()
    cable: Proxy = await place.nursery.start(run_proxy, place.dsn)
    worker = await place.start(gate.registry, listen_dsn=cable.dsn)
    job_id = await place.enqueue("work")
    await worker.log.wait(EventName.JOB_CLAIMED, job_id=job_id)
    cable.drop_replies()
    await place.cancel(job_id)
    cable.cut()
    cable.thaw()
    await worker.log.wait(EventName.JOB_CANCELLED, job_id=job_id)


async def test_reply_to_a_settlement_is_lost(place: Workplace) -> None:
    """A completion that was committed while its reply was lost is recognised when it is repeated: done once, told as done."""
    gate = Gate()
    cable: Proxy = await place.nursery.start(run_proxy, place.dsn)
    worker = await place.start(gate.registry, dsn=cable.dsn, listen_dsn=place.dsn)
    # So that the settler is connected, and its statement prepared.
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=await place.enqueue("quick"))
    job_id = await place.enqueue("work")
    await worker.log.wait(EventName.JOB_CLAIMED, job_id=job_id)
    cable.drop_replies()
    gate.let_go.set()
    await place.until("status = 'completed' from pgnotifyq.jobs where id = %s", job_id)
    assert worker.log.find(EventName.JOB_COMPLETED, job_id=job_id) == []
    cable.cut()
    cable.thaw()
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    assert worker.log.find(EventName.LEASE_LOST) == []
    assert await place.history(job_id) == [(1, "completed")]


@pytest.mark.parametrize(("verb", "jobs"), [("claim_named", 1), ("claim", 2)])
async def test_reply_to_a_claim_is_lost(place: Workplace, monkeypatch: pytest.MonkeyPatch, verb: str, jobs: int) -> None:
    """A claim that was committed while its reply was lost costs its lease: then the job runs, the loss is recorded.

    By name the listener claims, by its own connection; else the claimer.
    """
    gate = Gate()
    cable: Proxy = await place.nursery.start(run_proxy, place.dsn)
    await place.start(Gate().registry, queues=["elsewhere"], lease_seconds=2.0)
    dsn, listen_dsn = (place.dsn, cable.dsn) if verb == "claim_named" else (cable.dsn, place.dsn)
    worker = await place.start(gate.registry, dsn=dsn, listen_dsn=listen_dsn, lease_seconds=2.0)
    await place.until_idle(worker)
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=await place.enqueue("quick"))  # the first of its kind is prepared apart
    await place.until_idle(worker)

    async def claim(go: Go, **kwargs: Any) -> Any:
        if await fetch(place.connection, "select from pgnotifyq.jobs where status = 'pending' and attempts = 0"):
            cable.drop_replies()
        return await go()

    detour(monkeypatch, claim_verbs, verb, claim)
    async with open_client(place.dsn) as client:
        job_ids = await client.enqueue_many([{"job_type": "quick"}] * jobs)
    await place.until("bool_and(status <> 'pending') from pgnotifyq.jobs")
    cable.cut()
    cable.thaw()
    for job_id in job_ids:
        await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
        assert await place.history(job_id) == [(1, "lost"), (2, "completed")]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have listeners prove themselves often, so that a test need not wait for it."""
    monkeypatch.setattr(wire, "INTERRUPT_SECONDS", 0.1)
    monkeypatch.setattr(listener, "PROOF_EVERY_SECONDS", 0.1)
    monkeypatch.setattr(listener, "PROOF_DEADLINE_SECONDS", 0.2)
    monkeypatch.setattr(listener, "CONNECT_DEADLINE_SECONDS", 0.5)
    monkeypatch.setattr(listener, "DEAF_RETRY_SECONDS", 0.1)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("silence", ["frozen", "replies dropped"])
async def test_listener_that_has_gone_deaf(place: Workplace, silence: str) -> None:
    """A half-open connection is found by the listener's own proof; the worker polls, says so, and hears again later."""
    gate = Gate()
    cable: Proxy = await place.nursery.start(run_proxy, place.dsn)
    worker = await place.start(gate.registry, listen_dsn=cable.dsn, poll_seconds=0.05)
    await place.until_asleep(worker)
    if silence == "frozen":
        cable.freeze()
    else:
        cable.drop_replies()
    job_id = await place.enqueue("quick")
    await worker.log.wait(EventName.LISTENER_LOST)
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    await worker.log.wait(EventName.LISTENER_POLLING)
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=await place.enqueue("quick"))
    cable.cut()
    cable.thaw()
    await worker.log.wait(EventName.LISTENER_CONNECTED, count=2)


@pytest.mark.usefixtures("impatient")
async def test_listener_whose_listen_was_undone(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """An `unlisten *` behind its back is found in the same way, and a job that came meanwhile starts."""
    connections: list[Any] = []

    async def connect(*args: Any, **kwargs: Any) -> Any:
        connections.append(await wire.connect(*args, **kwargs))
        return connections[-1]

    monkeypatch.setattr(listener, "connect", connect)
    gate = Gate()
    worker = await place.start(gate.registry)
    await place.until_asleep(worker)
    (connection,) = connections
    connection.pgconn.send_query(b"unlisten *")
    job_id = await place.enqueue("quick")
    await worker.log.wait(EventName.LISTENER_LOST)
    await worker.log.wait(EventName.LISTENER_CONNECTED, count=2)
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)


@pytest.mark.usefixtures("impatient")
async def test_listener_behind_a_pooler(place: Workplace) -> None:
    """Where nothing is ever heard the worker says so at its start, and polls."""
    gate = Gate()
    cable: Proxy = await place.nursery.start(run_proxy, place.dsn)
    cable.freeze()
    worker = await place.start(gate.registry, listen_dsn=cable.dsn, poll_seconds=0.05, is_heard=False)
    await worker.log.wait(EventName.LISTENER_POLLING)
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=await place.enqueue("quick"))


async def test_server_that_is_busy(place: Workplace) -> None:
    """A statement timeout of the role and a lock in the way are passed through: the outcome is written in the end."""
    gate = Gate()
    cable_dsn = f"{place.dsn} options='-c statement_timeout=100ms'"
    worker = await place.start(gate.registry, dsn=cable_dsn, listen_dsn=place.dsn)
    job_id = await place.enqueue("work")
    await worker.log.wait(EventName.JOB_CLAIMED, job_id=job_id)
    async with place.connection.transaction():
        await place.connection.execute("select from pgnotifyq.jobs where id = %s for update", (job_id,))
        gate.let_go.set()
        await worker.log.wait(EventName.DATABASE_LOST, connection="settler")
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    await worker.log.wait(EventName.DATABASE_BACK, connection="settler")


async def test_session_that_was_lost_for_long(place: Workplace) -> None:
    """A worker whose listener is gone for longer than the grace, but whose beats arrive, keeps its jobs."""
    gate = Gate()
    cable: Proxy = await place.nursery.start(run_proxy, place.dsn)
    worker = await place.start(gate.registry, listen_dsn=cable.dsn, lease_seconds=6.0, heartbeat_seconds=0.1)
    watcher = await place.start(Gate().registry, queues=["elsewhere"], session_grace_seconds=0.5)
    job_id = await place.enqueue("work")
    await worker.log.wait(EventName.JOB_CLAIMED, job_id=job_id)
    cable.freeze()
    await terminate_listener_of(place, worker.handle.worker_id)
    # The watcher has seen that the session is gone, and a beat has come since, several times over.
    for _ in range(3):
        await place.until(
            "session_lost_at is not null from pgnotifyq.worker_heartbeats where worker_id = %s", worker.handle.worker_id
        )
        await place.until(
            "session_lost_at is null from pgnotifyq.worker_heartbeats where worker_id = %s", worker.handle.worker_id
        )
    gate.let_go.set()
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    assert watcher.log.find(EventName.JOB_RECLAIMED) == []


async def terminate_listener_of(place: Workplace, worker_id: object) -> None:
    """End the session that speaks for one worker."""
    await place.connection.execute(
        "select pg_terminate_backend(pid, 5000) from pg_locks where locktype = 'advisory' and objsubid = 1 and database ="
        " (select oid from pg_database where datname = current_database())"
        " and ((classid::bigint << 32) | objid::bigint) = pgnotifyq.session_key(%s)",
        (worker_id,),
    )
