"""claim_named: one job by its key, as claim would have taken it, or nothing; and whether anybody needs to look."""

from __future__ import annotations

import uuid
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from pgnotifyq.ledger import claim
from pgnotifyq.model.job import JobId
from pgnotifyq.wire.asking import ask_blocking
from pgnotifyq.wire.blocking import Connection, connect
from tests.ledger.support import (
    ANN,
    BLOCKED,
    BOB,
    ENDINGS,
    LEASE_SECONDS,
    SCHEMA,
    at_once,
    claim_one,
    enqueue,
    everything,
    existing,
    history,
    pass_time,
    settle,
    until,
    update_status,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pgnotifyq.model.job import WorkerId

Link = Connection[Any]


def take(connection: Link, job_id: JobId, *, worker: WorkerId = ANN, queue: str = "default") -> claim.NamedClaim:
    """Claim one job by its key."""
    return ask_blocking(
        connection,
        claim.claim_named(SCHEMA, worker_id=worker, queues=["other", queue], job_id=str(job_id), lease_seconds=LEASE_SECONDS),
    )


def test_it_is_what_claim_would_have_brought(connection: Link) -> None:
    """Of two like jobs, one claimed and one taken by its key: the same of both, and their rows alike."""
    fields: dict[str, Any] = {"payload": '{"a": 1}', "priority": 3, "max_attempts": 7, "org_id": uuid.UUID(int=5)}
    enqueue(connection, **fields)
    claimed = claim_one(connection)
    taken = (take(connection, enqueue(connection, **fields))).job
    assert taken is not None
    whole = taken.whole
    for name in ("org_id", "queue_name", "job_type", "payload", "priority", "status", "attempts", "max_attempts", "locked_by"):
        assert getattr(whole, name) == getattr(claimed, name)
    assert whole.current_execution_id != claimed.current_execution_id
    assert whole.started_at is not None
    assert whole.lease_expires_at is not None
    assert (whole.lease_expires_at - whole.started_at).total_seconds() == LEASE_SECONDS
    rows = [existing(connection, job_id) for job_id in (whole.id, claimed.id)]
    own = {"id", "xmin", "ctid", "current_execution_id", "created_at", "scheduled_at", "started_at", "lease_expires_at"}
    assert {k: v for k, v in rows[0].items() if k not in own} == {k: v for k, v in rows[1].items() if k not in own}
    assert settle(connection, whole, ENDINGS["complete"]) is None
    assert history(connection, whole.id) == [(1, "completed")]


def test_second_attempt(connection: Link) -> None:
    """What an earlier attempt has left is as claim leaves it."""
    job_id = enqueue(connection)
    settle(connection, claim_one(connection), ENDINGS["retry"])
    pass_time(connection, 6)
    taken = take(connection, job_id).job
    assert taken is not None
    assert taken.attempts == 2


WAITS: dict[str, Callable[[Link], JobId]] = {
    "another queue's": lambda link: enqueue(link, queue_name="elsewhere"),
    "not due": lambda link: enqueue(link, scheduled_at="2100-01-01"),
}


@pytest.mark.parametrize("made", WAITS.values(), ids=WAITS)
def test_job_that_is_not_for_now_or_not_for_it(connection: Link, made: Any) -> None:
    """It is still there, which may matter to whoever asked; no byte is written."""
    job_id = made(connection)
    before = everything(connection)
    assert take(connection, job_id) == claim.NamedClaim(job=None, is_still_there=True)
    assert everything(connection) == before


def claimed(link: Link) -> JobId:
    enqueue(link)
    return claim_one(link).id


def cancelled(link: Link) -> JobId:
    job_id = enqueue(link)
    update_status(link, job_id)
    return job_id


def completed(link: Link) -> JobId:
    enqueue(link)
    job = claim_one(link)
    settle(link, job, ENDINGS["complete"])
    return job.id


def dead(link: Link) -> JobId:
    enqueue(link)
    job = claim_one(link)
    settle(link, job, ENDINGS["bury"])
    return job.id


def unheard_of(_: Link) -> JobId:
    return JobId(uuid.uuid4())


@pytest.mark.parametrize("made", [claimed, cancelled, completed, dead, unheard_of])
def test_job_that_nobody_need_look_for(connection: Link, made: Any) -> None:
    """It is not there to be taken, by anybody; no byte is written."""
    job_id = made(connection)
    before = everything(connection)
    assert take(connection, job_id) == claim.NamedClaim(job=None)
    assert everything(connection) == before


def test_row_that_somebody_holds(connection: Link, other: Link) -> None:
    """It does not wait for long, and says that the job is still there."""
    job_id = enqueue(connection)
    with other.transaction():
        other.execute("select from pgnotifyq.jobs where id = %s for update", (job_id,))
        assert take(connection, job_id) == claim.NamedClaim(job=None, is_still_there=True)
    assert take(connection, job_id).job is not None


@pytest.fixture
def patient(connection: Link) -> Iterator[None]:
    """Have it wait for a row as long as it takes. To be asked for as an argument: by `usefixtures` nobody waits for it to be set up."""
    connection.execute("alter function pgnotifyq.claim_named set lock_timeout = '5s'")
    yield
    connection.execute("alter function pgnotifyq.claim_named set lock_timeout = '20ms'")


@pytest.mark.parametrize("commits", [True, False], ids=["commit", "rollback"])
@pytest.mark.parametrize("first", ["claim", "claim_named", "cancel"])
def test_second_of_two(connection: Link, other: Link, patient: None, dsn: str, first: str, commits: bool) -> None:
    """Who waits for another that takes or cancels the job is told so, or takes it when the other gives up."""
    job_id = enqueue(connection)
    told: list[claim.NamedClaim] = []

    def second() -> None:
        told.append(take(other, job_id, worker=BOB))

    with at_once() as start, connection.transaction(force_rollback=not commits):
        match first:
            case "claim":
                claim_one(connection)
            case "claim_named":
                assert take(connection, job_id).job is not None
            case "cancel":
                update_status(connection, job_id)
        start(second)
        until(dsn, BLOCKED, "other")
    found = existing(connection, job_id)
    if commits:
        assert told == [claim.NamedClaim(job=None)]
        assert found["locked_by"] == (None if first == "cancel" else str(ANN))
    else:
        assert told[0].job is not None
        assert found["locked_by"] == str(BOB)


def test_many_at_once(dsn: str, connection: Link) -> None:
    """Of six sessions that want the same job one takes it, fifty times over, and the attempt is counted once."""
    with ExitStack() as stack:
        links = [stack.enter_context(connect(dsn)) for _ in range(6)]
        for _ in range(50):
            job_id = enqueue(connection)
            told: list[claim.NamedClaim] = []

            def one(link: Link, job_id: JobId, told: list[claim.NamedClaim]) -> None:
                told.append(take(link, job_id))

            with at_once() as start:
                for link in links:
                    start(one, link, job_id, told)
            assert len([each for each in told if each.job is not None]) == 1
            assert existing(connection, job_id)["attempts"] == 1
