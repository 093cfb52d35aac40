"""The client's verbs, on a real server: open, enqueue, cancel, look."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

import psycopg
import pytest
import trio
import trio.testing
from psycopg.rows import dict_row

from pgnotifyq.doors.client import Client, open_client
from pgnotifyq.doors.verbs import CancelOutcome
from pgnotifyq.ledger import enqueue
from pgnotifyq.model.errors import (
    InvalidJob,
    InvalidName,
    InvalidPayload,
    JobNotFound,
    PayloadTooLarge,
    SchemaMissing,
    UnknownJobType,
)
from pgnotifyq.model.job import Job, JobId
from pgnotifyq.model.new_job import NewJob
from pgnotifyq.model.registry import JobRegistry
from pgnotifyq.model.states import Status
from pgnotifyq.wire.connection import Connection, connect, open_connection
from tests.asked import claim_one, settle
from tests.doors.support import AWAITED, SOON_SECONDS, Resize, listeners, wait_all, worker
from tests.ledger.support import ENDINGS
from tests.proxy import until

Link = Connection[Any]
NOBODY = JobId(uuid.UUID(int=1))
# Other people's tests may run on the same server: only this database counts.
BLOCKED = "exists (select from pg_stat_activity where datname = current_database() and application_name = %s and wait_event_type = 'Lock')"


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
        ({"job_type": "a", "org_id": ""}, InvalidJob),
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


@pytest.mark.parametrize("count", [1, enqueue.ONE_STATEMENT_JOBS_MAX + 1])
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
        await client.enqueue("noop", connection="host=here")  # type: ignore[call-overload]


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


@pytest.mark.parametrize("kind", ["blocking", "trio"])
@pytest.mark.parametrize("is_alone", [True, False])
async def test_connection_of_the_callers_without_nulls_in_arrays(dsn: str, kind: str, is_alone: bool) -> None:
    """A caller's session is the caller's: with `array_nulls = off` too what was not said is not said."""
    options = "-c array_nulls=off"
    async with open_client(dsn) as client, open_connection(dsn, options=options) as native:
        with psycopg.connect(dsn, options=options, autocommit=True) as blocking:
            connection = blocking if kind == "blocking" else native
            if not is_alone:
                await native.execute("begin")
                blocking.execute("begin")
            plain = await client.enqueue("noop", {}, connection=connection)
            keyed = await client.enqueue("noop", {}, unique_key="k", connection=connection)
            many = await client.enqueue_many(
                [{"job_type": "noop"}, {"job_type": "noop", "unique_key": "l"}], connection=connection
            )
            if not is_alone:
                await native.execute("commit")
                blocking.execute("commit")
        for job_id in (plain, keyed, *many):
            job = await client.get(job_id)
            assert (job.queue_name, job.max_attempts, job.status) == ("default", None, "pending")
