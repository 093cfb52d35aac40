"""claim_named: one job by its key, as claim would have taken it, or nothing; and whether anybody needs to look."""

from __future__ import annotations

import uuid
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest
import trio

from pgnotifyq.ledger import claim
from pgnotifyq.model.job import JobId
from pgnotifyq.wire.asking import ask
from pgnotifyq.wire.connection import Connection, open_connection
from tests.ledger.support import (
    ANN,
    BLOCKED,
    BOB,
    ENDINGS,
    LEASE_SECONDS,
    SCHEMA,
    claim_one,
    enqueue,
    everything,
    existing,
    history,
    pass_time,
    settle,
    update_status,
)
from tests.proxy import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from pgnotifyq.model.job import WorkerId

Link = Connection[Any]


async def take(connection: Link, job_id: JobId, *, worker: WorkerId = ANN, queue: str = "default") -> claim.NamedClaim:
    """Claim one job by its key."""
    return await ask(
        connection,
        claim.claim_named(SCHEMA, worker_id=worker, queues=["other", queue], job_id=str(job_id), lease_seconds=LEASE_SECONDS),
    )


async def test_it_is_what_claim_would_have_brought(connection: Link) -> None:
    """Of two like jobs, one claimed and one taken by its key: the same of both, and their rows alike."""
    fields: dict[str, Any] = {"payload": '{"a": 1}', "priority": 3, "max_attempts": 7, "org_id": uuid.UUID(int=5)}
    await enqueue(connection, **fields)
    claimed = await claim_one(connection)
    taken = (await take(connection, await enqueue(connection, **fields))).job
    assert taken is not None
    whole = taken.whole
    for name in ("org_id", "queue_name", "job_type", "payload", "priority", "status", "attempts", "max_attempts", "locked_by"):
        assert getattr(whole, name) == getattr(claimed, name)
    assert whole.current_execution_id != claimed.current_execution_id
    assert whole.started_at is not None
    assert whole.lease_expires_at is not None
    assert (whole.lease_expires_at - whole.started_at).total_seconds() == LEASE_SECONDS
    rows = [await existing(connection, job_id) for job_id in (whole.id, claimed.id)]
    own = {"id", "xmin", "ctid", "current_execution_id", "created_at", "scheduled_at", "started_at", "lease_expires_at"}
    assert {k: v for k, v in rows[0].items() if k not in own} == {k: v for k, v in rows[1].items() if k not in own}
    assert await settle(connection, whole, ENDINGS["complete"]) is None
    assert await history(connection, whole.id) == [(1, "completed")]


async def test_second_attempt(connection: Link) -> None:
    """What an earlier attempt has left is as claim leaves it."""
    job_id = await enqueue(connection)
    await settle(connection, await claim_one(connection), ENDINGS["retry"])
    await pass_time(connection, 6)
    taken = (await take(connection, job_id)).job
    assert taken is not None
    assert taken.attempts == 2


WAITS: dict[str, Callable[[Link], Awaitable[JobId]]] = {
    "another queue's": lambda link: enqueue(link, queue_name="elsewhere"),
    "not due": lambda link: enqueue(link, scheduled_at="2100-01-01"),
}


@pytest.mark.parametrize("made", WAITS.values(), ids=WAITS)
async def test_job_that_is_not_for_now_or_not_for_it(connection: Link, made: Any) -> None:
    """It is still there, which may matter to whoever asked; no byte is written."""
    job_id = await made(connection)
    before = await everything(connection)
    assert await take(connection, job_id) == claim.NamedClaim(job=None, is_still_there=True)
    assert await everything(connection) == before


async def claimed(link: Link) -> JobId:
    await enqueue(link)
    return (await claim_one(link)).id


async def cancelled(link: Link) -> JobId:
    job_id = await enqueue(link)
    await update_status(link, job_id)
    return job_id


async def completed(link: Link) -> JobId:
    await enqueue(link)
    job = await claim_one(link)
    await settle(link, job, ENDINGS["complete"])
    return job.id


async def dead(link: Link) -> JobId:
    await enqueue(link)
    job = await claim_one(link)
    await settle(link, job, ENDINGS["bury"])
    return job.id


async def unheard_of(_: Link) -> JobId:
    return JobId(uuid.uuid4())


@pytest.mark.parametrize("made", [claimed, cancelled, completed, dead, unheard_of])
async def test_job_that_nobody_need_look_for(connection: Link, made: Any) -> None:
    """It is not there to be taken, by anybody; no byte is written."""
    job_id = await made(connection)
    before = await everything(connection)
    assert await take(connection, job_id) == claim.NamedClaim(job=None)
    assert await everything(connection) == before


async def test_row_that_somebody_holds(connection: Link, other: Link) -> None:
    """It does not wait for long, and says that the job is still there."""
    job_id = await enqueue(connection)
    async with other.transaction():
        await other.execute("select from pgnotifyq.jobs where id = %s for update", (job_id,))
        assert await take(connection, job_id) == claim.NamedClaim(job=None, is_still_there=True)
    assert (await take(connection, job_id)).job is not None


@pytest.fixture
async def patient(connection: Link) -> AsyncIterator[None]:
    """Have it wait for a row as long as it takes. To be asked for as an argument: by `usefixtures` nobody waits for it to be set up."""
    await connection.execute("alter function pgnotifyq.claim_named set lock_timeout = '5s'")
    yield
    await connection.execute("alter function pgnotifyq.claim_named set lock_timeout = '20ms'")


@pytest.mark.parametrize("commits", [True, False], ids=["commit", "rollback"])
@pytest.mark.parametrize("first", ["claim", "claim_named", "cancel"])
async def test_second_of_two(connection: Link, other: Link, patient: None, dsn: str, first: str, commits: bool) -> None:
    """Who waits for another that takes or cancels the job is told so, or takes it when the other gives up."""
    job_id = await enqueue(connection)
    told: list[claim.NamedClaim] = []

    async def second() -> None:
        told.append(await take(other, job_id, worker=BOB))

    async with trio.open_nursery() as nursery, connection.transaction(force_rollback=not commits):
        match first:
            case "claim":
                await claim_one(connection)
            case "claim_named":
                assert (await take(connection, job_id)).job is not None
            case "cancel":
                await update_status(connection, job_id)
        nursery.start_soon(second)
        await until(dsn, BLOCKED, "other")
    found = await existing(connection, job_id)
    if commits:
        assert told == [claim.NamedClaim(job=None)]
        assert found["locked_by"] == (None if first == "cancel" else str(ANN))
    else:
        assert told[0].job is not None
        assert found["locked_by"] == str(BOB)


async def test_many_at_once(dsn: str, connection: Link) -> None:
    """Of six sessions that want the same job one takes it, fifty times over, and the attempt is counted once."""
    async with AsyncExitStack() as stack:
        links = [await stack.enter_async_context(open_connection(dsn)) for _ in range(6)]
        for _ in range(50):
            job_id = await enqueue(connection)
            told: list[claim.NamedClaim] = []

            async def one(link: Link, job_id: JobId, told: list[claim.NamedClaim]) -> None:
                told.append(await take(link, job_id))

            async with trio.open_nursery() as nursery:
                for link in links:
                    nursery.start_soon(one, link, job_id, told)
            assert len([each for each in told if each.job is not None]) == 1
            assert (await existing(connection, job_id))["attempts"] == 1
