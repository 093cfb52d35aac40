"""The client against real servers, workers and cut cables: enqueue, cancel, wait."""

from __future__ import annotations

import functools
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import attrs
import psycopg
import pytest
import trio
import trio.testing
from psycopg.rows import dict_row

import pgnotifyq
from pgnotifyq.doors import ends
from pgnotifyq.doors.client import CancelOutcome, Client, open_client
from pgnotifyq.ledger import jobs as ledger
from pgnotifyq.model.errors import (
    InvalidJob,
    InvalidName,
    InvalidPayload,
    JobDead,
    JobNotFound,
    PayloadTooLarge,
    SchemaMissing,
    UnknownJobType,
    WaitTimeout,
)
from pgnotifyq.model.job import Job, JobId, NewJob
from pgnotifyq.model.registry import JobRegistry
from pgnotifyq.model.states import Status
from pgnotifyq.wire.connection import Connection, connect, open_connection
from pgnotifyq.wire.notifications import listen
from tests.ledger.support import ENDINGS, claim_one, settle, value
from tests.proxy import Proxy, run_proxy, until

Link = Connection[Any]
LISTENER = "pgnotifyq client listener"
NOBODY = JobId(uuid.UUID(int=1))
# Other people's tests may run on the same server: only this database counts.
BLOCKED = "exists (select from pg_stat_activity where datname = current_database() and application_name = %s and wait_event_type = 'Lock')"
LISTENING = "exists (select from pg_stat_activity where datname = current_database() and application_name = %s)"
AWAITED = "exists (select from pgnotifyq.jobs where awaited)"
# Longer than anything here takes, and far shorter than the backstop that some tests put out of reach.
SOON_SECONDS = 10.0


@attrs.frozen
class Resize:
    path: str
    width: int


@pytest.fixture
def registry() -> JobRegistry:
    registry = JobRegistry()

    @registry.handler("resize", max_attempts=7, queue="images")
    async def resize(payload: Resize) -> None: ...

    @registry.handler("plain")
    async def plain(payload: dict[str, Any]) -> object:
        return payload

    return registry


@pytest.fixture
async def client(dsn: str) -> AsyncIterator[Client]:
    async with open_client(dsn) as client:
        yield client


@pytest.fixture
def no_backstop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the backstop out of reach, so that what is told is told by a notification."""
    monkeypatch.setattr(ends, "LOOK_SECONDS", 10_000.0)


@asynccontextmanager
async def worker(dsn: str, registry: JobRegistry, **settings: Any) -> AsyncIterator[None]:
    """Run a worker for the length of a block."""
    async with trio.open_nursery() as nursery:
        await nursery.start(functools.partial(pgnotifyq.run_worker, registry, dsn, **{"shutdown_seconds": 0, **settings}))
        yield
        nursery.cancel_scope.cancel()


async def listeners(connection: Link) -> int:
    """Return how many listener connections clients have."""
    return int(
        await value(
            connection,
            "select count(*) from pg_stat_activity where datname = current_database() and application_name = %s",
            LISTENER,
        )
    )


# Open


async def test_a_database_without_the_schema(blank_dsn: str) -> None:
    """Refused when it is opened, and told what to do."""
    with pytest.raises(SchemaMissing, match="migrate"):
        async with open_client(blank_dsn):
            pass


async def test_a_client_that_never_waits(client: Client, connection: Link) -> None:
    """No listener is opened for it."""
    await client.enqueue("noop")
    assert await client.cancel((await client.jobs())[0].id) is CancelOutcome.CANCELLED
    assert await listeners(connection) == 0


# Enqueue


async def test_enqueue_stores_what_it_was_given(client: Client) -> None:
    """Every argument arrives; tenants may be given as text."""
    org = uuid.UUID(int=3)
    job_id = await client.enqueue(
        "resize", Resize("a.png", 64), org_id=str(org), queue="q", priority=5, delay_seconds=60, max_attempts=4, unique_key="k"
    )
    job = await client.get(job_id)
    assert (job.payload, job.org_id, job.queue_name, job.priority, job.max_attempts, job.unique_key) == (
        {"path": "a.png", "width": 64}, org, "q", 5, 4, "k",
    )  # fmt: skip
    # Both are times of the database, microseconds apart.
    assert abs(job.scheduled_at - job.created_at - timedelta(seconds=60)) < timedelta(seconds=1)
    assert await client.enqueue("resize", org_id=org, unique_key="k") == job_id


@pytest.mark.parametrize("keys", [(None, None), ("one", "two")], ids=["plain", "keyed"])
async def test_enqueue_is_one_round_trip(
    dsn: str, client: Client, monkeypatch: pytest.MonkeyPatch, keys: tuple[str | None, str | None]
) -> None:
    """One statement goes to the server, and nothing before or after it."""
    await client.enqueue("noop", unique_key=keys[0])  # the connection is open, and the statement prepared
    waits: list[object] = []
    driven = Connection.wait

    async def count(self: Link, gen: Any, *arguments: Any, **named: Any) -> Any:
        waits.append(gen)
        return await driven(self, gen, *arguments, **named)

    monkeypatch.setattr(Connection, "wait", count)
    await client.enqueue("noop", {"a": 1}, unique_key=keys[1])
    assert len(waits) == 1


async def test_the_registry_gives_defaults(dsn: str, registry: JobRegistry) -> None:
    """Queue and attempts are the handler's, where the caller says nothing; in batches as well."""
    async with open_client(dsn, registry=registry) as client:
        ids = [await client.enqueue("resize", {"path": "a", "width": 1})]
        ids += [await client.enqueue("resize", Resize("a", 1), queue="q", max_attempts=1)]
        ids += await client.enqueue_many([{"job_type": "resize", "payload": Resize("a", 1)}, {"job_type": "plain"}])
        ids += await client.enqueue_many([NewJob(job_type="resize", payload=Resize("a", 1))])
        found = [await client.get(job_id) for job_id in ids]
    told = [(job.queue_name, job.max_attempts) for job in found]
    # What nobody has said is said by the handler that claims the job.
    assert told == [("images", 7), ("q", 1), ("images", 7), ("default", None), ("default", None)]


async def test_ids_are_taken_as_text_too(client: Client) -> None:
    """Every method takes a job's id as a UUID or its text, and refuses what is neither by one error that says so."""
    job_id = await client.enqueue("noop")
    assert (await client.get(str(job_id))).id == job_id
    assert await client.history(str(job_id)) == []
    assert (await client.explain(str(job_id))).label == "pending"
    assert await client.cancel(str(job_id)) == "cancelled"
    assert (await client.wait(str(job_id), 1)).status == "cancelled"
    assert await client.jobs(org_id=str(uuid.UUID(int=0))) != []
    assert await client.purge_dead(job_id=str(job_id)) == 0
    for wrong in ("no uuid", 7, None, b"x", ""):
        for method in (
            client.get, client.get_dead, client.history, client.explain, client.cancel, client.wait, client.requeue,
        ):  # fmt: skip
            with pytest.raises(InvalidJob, match=r"job_id .* is not a UUID"):
                await method(wrong)  # type: ignore[arg-type]


async def test_retention_by_the_client(client: Client) -> None:
    """What the client says of a queue is kept in the database; nonsense is refused, typed."""
    await client.set_retention("images", 3600.0, ending="cancelled")
    await client.set_retention("images", None)
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(InvalidJob, match="keep_seconds"):
            await client.set_retention("images", wrong)


async def test_the_registry_refuses_what_handlers_would(dsn: str, registry: JobRegistry) -> None:
    """Unknown types and payloads of another shape are refused before anything is sent, in batches as well."""
    async with open_client(dsn, registry=registry) as client:
        with pytest.raises(UnknownJobType, match="nope"):
            await client.enqueue("nope")
        with pytest.raises(InvalidPayload, match="width"):
            await client.enqueue("resize", {"path": "a"})
        with pytest.raises(InvalidPayload, match="resize"):
            await client.enqueue_many([{"job_type": "plain"}, {"job_type": "resize", "payload": {"path": "a", "width": "wide"}}])
        with pytest.raises(InvalidPayload):
            await client.enqueue_many([NewJob(job_type="resize", payload={})])
        assert await client.jobs() == []


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"job_type": "no spaces"}, InvalidName),
        ({"job_type": "a", "queue": ""}, InvalidName),
        ({"job_type": "a", "priority": 40_000}, InvalidJob),
        ({"job_type": "a", "max_attempts": 0}, InvalidJob),
        ({"job_type": "a", "delay_seconds": -1}, InvalidJob),
        ({"job_type": "a", "delay_seconds": float("nan")}, InvalidJob),
        ({"job_type": "a", "org_id": "nobody"}, InvalidJob),
        ({"job_type": "a", "unique_key": "\x00"}, InvalidJob),
        ({"job_type": "a", "payload": {"a": float("inf")}}, InvalidPayload),
        ({"job_type": "a", "payload": "\ud800"}, InvalidPayload),
        ({"job_type": "a", "payload": "x" * 1_048_577}, PayloadTooLarge),
    ],
)
async def test_hostile_fields(client: Client, fields: dict[str, Any], error: type[Exception]) -> None:
    """Refused with a typed error, alone and in a batch, and nothing is enqueued."""
    with pytest.raises(error):
        await client.enqueue(**fields)
    with pytest.raises(error):
        await client.enqueue_many([{"job_type": "fine"}, fields])
    assert await client.jobs() == []


async def test_a_field_that_does_not_exist(client: Client) -> None:
    """A misspelt key of a mapping is refused, and the message lists the right ones."""
    with pytest.raises(InvalidJob, match="queu: use delay_seconds"):
        await client.enqueue_many([{"job_type": "a", "queu": "q"}])
    with pytest.raises(InvalidJob, match="job_type"):
        await client.enqueue_many([{"payload": {}}])


@pytest.mark.parametrize("count", [1, ledger.ONE_STATEMENT_JOBS_MAX + 1])
@pytest.mark.parametrize("blocking", [False, True])
async def test_enqueue_in_a_transaction_of_ones_own(dsn: str, client: Client, count: int, blocking: bool) -> None:
    """The jobs exist if and only if the caller's transaction commits."""
    batch = [{"job_type": "noop"}] * count

    async def enqueue(connection: Link | psycopg.Connection[Any]) -> list[JobId]:
        one = await client.enqueue("noop", connection=connection)
        return [one, *await client.enqueue_many(batch, connection=connection)]

    for commits in (False, True):
        if blocking:
            with psycopg.connect(dsn, row_factory=dict_row) as theirs:
                ids = await enqueue(theirs)
                assert await client.jobs() == []
                theirs.commit() if commits else theirs.rollback()
        else:
            theirs_async = await connect(dsn, row_factory=dict_row)
            async with theirs_async.transaction(force_rollback=not commits):
                ids = await enqueue(theirs_async)
                assert await client.jobs() == []
            await theirs_async.close()
        assert len(await client.jobs(limit=5000)) == (len(ids) if commits else 0)


async def test_a_connection_of_another_kind(client: Client) -> None:
    """Refused by name, not by a hang."""
    with pytest.raises(TypeError, match=r"builtins\.str"):
        await client.enqueue("noop", connection="host=here")  # type: ignore[arg-type]


async def test_enqueue_cancelled_while_it_waits(dsn: str, client: Client, connection: Link) -> None:
    """A cancelled enqueue has enqueued nothing, and the client goes on."""
    async with connection.transaction():
        await connection.execute("lock table pgnotifyq.jobs in exclusive mode")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.enqueue, "noop")
            await until(dsn, BLOCKED, "pgnotifyq client")
            nursery.cancel_scope.cancel()
    assert await client.jobs() == []
    await client.enqueue("noop")


# Wait


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


async def test_wait_for_nothing(client: Client) -> None:
    """A job that is not there is not waited for."""
    with pytest.raises(JobNotFound, match=str(NOBODY)):
        await client.wait(NOBODY)
    with pytest.raises(JobNotFound):
        await client.cancel(NOBODY)
    with pytest.raises(JobNotFound):
        await client.get(NOBODY)
    with pytest.raises(JobNotFound):
        await client.requeue(NOBODY)


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


async def wait_all(client: Client, ids: list[JobId], ended: list[Job]) -> None:
    async def one(job_id: JobId) -> None:
        ended.append(await client.wait(job_id))

    async with trio.open_nursery() as nursery:
        for job_id in ids:
            nursery.start_soon(one, job_id)


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


async def test_a_listener_that_cannot_be_had(dsn: str, client: Client, connection: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting goes on without one, by looking."""

    async def refuse(*_: object, **__: object) -> Link:
        raise pgnotifyq.DatabaseUnreachable("too many connections")

    monkeypatch.setattr(ends, "connect", refuse)
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


# Cancel


async def test_cancel_of_a_running_handler(dsn: str, client: Client, no_backstop: None) -> None:
    """stopping at once; awaited, cancelled when the handler has stopped; then finished."""
    registry = JobRegistry()
    started = trio.Event()
    stopped = trio.Event()

    @registry.handler("sleep")
    async def sleep(payload: dict[str, Any]) -> None:
        started.set()
        try:
            await trio.sleep_forever()
        finally:
            stopped.set()

    with trio.fail_after(SOON_SECONDS):
        async with worker(dsn, registry):
            job_id = await client.enqueue("sleep")
            await started.wait()
            assert await client.cancel(job_id, wait_seconds=SOON_SECONDS, why="enough") is CancelOutcome.CANCELLED
            assert stopped.is_set()
    assert await client.cancel(job_id) is CancelOutcome.FINISHED
    job = await client.get(job_id)
    assert (job.status, job.error_message, job.is_finished) == (Status.CANCELLED, "enough", True)


async def test_cancel_of_a_handler_that_does_not_stop(client: Client, connection: Link) -> None:
    """stopping when nobody waits, unresponsive when somebody did, and cancelled in the end."""
    job_id = await client.enqueue("noop")
    claimed = await claim_one(connection)
    assert await client.cancel(job_id) is CancelOutcome.STOPPING
    assert await client.cancel(job_id, wait_seconds=0.05) is CancelOutcome.UNRESPONSIVE
    assert [job.id for job in await client.jobs(status="stopping")] == [job_id]
    with trio.fail_after(SOON_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(settle, connection, claimed, ENDINGS["cancel"])
            assert await client.cancel(job_id, wait_seconds=SOON_SECONDS) in {CancelOutcome.CANCELLED, CancelOutcome.FINISHED}


async def test_cancel_of_a_pending_job_tells_who_waits(dsn: str, client: Client, no_backstop: None) -> None:
    """A waiter hears of a cancel by anybody."""
    job_id = await client.enqueue("noop")
    ended: list[Job] = []
    with trio.fail_after(SOON_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_all, client, [job_id], ended)
            await until(dsn, AWAITED)
            async with open_connection(dsn) as other:
                await other.execute("update pgnotifyq.jobs set status = 'cancelled' where id = %s", (job_id,))
    assert [job.status for job in ended] == [Status.CANCELLED]


# Look


async def test_the_doors_show_what_the_ledger_does(client: Client, connection: Link) -> None:
    """Jobs, attempts, dead letters, workers, counts and explanations."""
    job_id = await client.enqueue("noop")
    await settle(connection, await claim_one(connection), ENDINGS["bury"])
    other = await client.enqueue("noop", queue="q")
    assert [job.id for job in await client.jobs(queue="q")] == [other]
    assert [one.outcome for one in await client.history(job_id)] == ["failed"]
    assert [letter.id for letter in await client.dead()] == [job_id]
    assert await client.workers() == []
    assert [(row.queue_name, row.pending, row.dead) for row in await client.stats()] == [("default", 0, 1), ("q", 1, 0)]
    assert (await client.explain(other)).workers == 0
    with pytest.raises(JobNotFound, match="dead letter"):
        await client.get_dead(other)
    assert await client.requeue_all(queue="default") == 1
    await settle(connection, await claim_one(connection), ENDINGS["bury"])
    assert await client.purge_dead(job_id=job_id) == 1
