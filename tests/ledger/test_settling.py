"""Settle: each ending in its own way, each fenced by job id and execution id."""

from __future__ import annotations

from typing import Any

import pytest

from pgnotifyq.ledger import end
from pgnotifyq.model.job import Job
from pgnotifyq.model.outcome import PLAIN_COMPLETION, Outcome, SettleKind
from pgnotifyq.wire.asking import ask
from pgnotifyq.wire.connection import Connection
from tests.ledger.support import (
    ANN,
    BOB,
    ENDINGS,
    SCHEMA,
    claim,
    claim_one,
    dead_letter,
    enqueue,
    everything,
    existing,
    fetch,
    history,
    lease,
    pass_time,
    reclaim,
    row,
    settle,
    update_status,
)

Link = Connection[Any]
endings = pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
HELD = ("locked_by", "current_execution_id", "lease_expires_at")


async def lose(connection: Link, job: Job) -> None:
    """Let a job's lease run out and be reclaimed."""
    await pass_time(connection, 61)
    assert await reclaim(connection) == {job.id: "pending"}


@endings
async def test_stale_execution_after_somebody_claimed_again(connection: Link, ending: Outcome) -> None:
    """A worker that lost its lease cannot end, retry, release or bury the new owner's job: not a byte changes."""
    await enqueue(connection)
    stale = await claim_one(connection)
    await lose(connection, stale)
    fresh = await claim_one(connection, worker=BOB)
    before = await everything(connection)
    assert await settle(connection, stale, ending) == "lost"
    assert await everything(connection) == before
    assert (await existing(connection, fresh.id))["current_execution_id"] == str(fresh.current_execution_id)


@endings
async def test_stale_execution_of_the_same_worker(connection: Link, ending: Outcome) -> None:
    """The fence is the execution, not the worker: one that claimed its own lost job again is fenced from its past."""
    await enqueue(connection)
    stale = await claim_one(connection)
    await lose(connection, stale)
    await claim_one(connection)
    before = await everything(connection)
    assert await settle(connection, stale, ending) == "lost"
    assert await everything(connection) == before


@endings
@pytest.mark.parametrize("now", ["pending", "completed", "cancelled", "dead"])
async def test_stale_execution_after_its_job_went_on(connection: Link, ending: Outcome, now: str) -> None:
    """Whatever became of a job meanwhile, the execution that lost it changes nothing."""
    await enqueue(connection)
    stale = await claim_one(connection)
    await lose(connection, stale)
    if now == "cancelled":
        await update_status(connection, stale.id)
    elif now != "pending":
        fresh = await claim_one(connection, worker=BOB)
        await settle(connection, fresh, ENDINGS["bury"] if now == "dead" else PLAIN_COMPLETION, worker=BOB)
    before = await everything(connection)
    assert await settle(connection, stale, ending) == "lost"
    assert await everything(connection) == before


@endings
async def test_every_ending_closes_the_execution_and_frees_the_lease(connection: Link, ending: Outcome) -> None:
    """After any ending nothing of the lease is left, and the attempt is in the history, once."""
    job_id = await enqueue(connection)
    job = await claim_one(connection)
    assert await settle(connection, job, ending) is None
    assert await history(connection, job_id) == [(1, ending.name)]
    after = await row(connection, job_id)
    if ending.kind is SettleKind.BURY:
        assert after is None
        return
    assert after is not None
    assert [after[name] for name in HELD] == [None, None, None]
    status = {SettleKind.COMPLETE: "completed", SettleKind.CANCEL: "cancelled"}.get(ending.kind, "pending")
    assert after["status"] == status
    assert (after["completed_at"] is not None) == (status != "pending")
    assert after["attempts"] == (0 if ending.kind in {SettleKind.SNOOZE, SettleKind.RELEASE} else 1)


@endings
async def test_cancel_committed_first(connection: Link, ending: Outcome) -> None:
    """A cancel that came first wins over every ending: never completed, never retried, never buried."""
    job_id = await enqueue(connection)
    job = await claim_one(connection)
    await update_status(connection, job_id)
    surprise = await settle(connection, job, ending)
    assert surprise == (None if ending.kind is SettleKind.CANCEL else "cancelled")
    after = await existing(connection, job_id)
    assert after["status"] == "cancelled"
    assert after["result"] is None
    assert [after[name] for name in HELD] == [None, None, None]
    assert await history(connection, job_id) == [(1, "cancelled")]


@endings
async def test_completed_by_a_transaction_whose_reply_was_lost(connection: Link, ending: Outcome) -> None:
    """The handler's own transaction completed the job, its commit's reply was lost, the handler failed: told, and not retried."""
    await enqueue(connection)
    job = await claim_one(connection)
    assert await settle(connection, job, PLAIN_COMPLETION) is None
    before = await everything(connection)
    assert await settle(connection, job, ending) == (None if ending.kind is SettleKind.COMPLETE else "completed")
    assert await everything(connection) == before


@endings
async def test_batch_repeated_after_its_reply_was_lost(connection: Link, ending: Outcome) -> None:
    """The same batch again is recognised by its execution id: no surprise, and nothing is written twice."""
    await enqueue(connection)
    job = await claim_one(connection)
    assert await settle(connection, job, ending) is None
    before = await everything(connection)
    assert await settle(connection, job, ending) is None
    assert await everything(connection) == before


async def test_retry_with_no_attempt_left(connection: Link) -> None:
    """The last attempt's failure is a death, whatever the worker asked for."""
    job_id = await enqueue(connection, max_attempts=1)
    job = await claim_one(connection)
    assert await settle(connection, job, ENDINGS["retry"]) == "dead"
    letter = await dead_letter(connection, job_id)
    assert letter is not None
    assert letter["reason"] == "exhausted"
    assert letter["error_message"] == "no luck"
    assert await row(connection, job_id) is None


async def test_retry_and_snooze_wait(connection: Link) -> None:
    """A retried or snoozed job is not claimed before its delay is over, and is afterwards."""
    for ending in ("retry", "snooze"):
        await pass_time(connection, 0)
        job_id = await enqueue(connection)
        await settle(connection, await claim_one(connection), ENDINGS[ending])
        await pass_time(connection, 4)
        assert await claim(connection) == []
        await pass_time(connection, 6)
        again = await claim_one(connection)
        assert (again.id, again.attempts) == (job_id, 2 if ending == "retry" else 1)
        await settle(connection, again, PLAIN_COMPLETION)


async def test_release_puts_a_job_back_where_it_was(connection: Link) -> None:
    """A released job is due at once, at its old place, its attempt not charged."""
    job_id = await enqueue(connection, max_attempts=1)
    before = await existing(connection, job_id)
    await settle(connection, await claim_one(connection), ENDINGS["release"])
    after = await existing(connection, job_id)
    assert (after["attempts"], after["scheduled_at"]) == (0, before["scheduled_at"])
    assert (await claim_one(connection)).id == job_id


async def test_good_and_stale_in_one_batch(connection: Link) -> None:
    """In a mixed batch each ends in its own way, and only the stale one is reported."""
    ids = {name: await enqueue(connection) for name in ENDINGS} | {"stale": await enqueue(connection)}
    jobs = {job.id: job for job in await claim(connection, len(ids))}
    await settle(connection, jobs[ids["stale"]], ENDINGS["release"])
    again = await claim_one(connection, worker=BOB)
    batch = [(lease(jobs[ids[name]]), ending) for name, ending in ENDINGS.items()]
    batch.append((lease(jobs[ids["stale"]]), ENDINGS["retry"]))
    surprises = await ask(connection, end.settle(SCHEMA, worker_id=ANN, settlements=batch))
    # It was released, and a retry of a released execution is the same batch again, not a loss.
    assert surprises == []
    found = {name: (await row(connection, job_id) or {"status": "dead"})["status"] for name, job_id in ids.items()}
    assert found == {
        "complete plainly": "completed", "complete": "completed", "retry": "pending", "snooze": "pending",
        "release": "pending", "cancel": "cancelled", "bury": "dead", "stale": "running",
    }  # fmt: skip
    assert (await existing(connection, again.id))["locked_by"] == str(BOB)


async def test_result_is_stored(connection: Link) -> None:
    """What a handler returned is kept with the job."""
    job_id = await enqueue(connection)
    await settle(connection, await claim_one(connection), ENDINGS["complete"])
    assert (await existing(connection, job_id))["result"] == {"n": 1}


@endings
async def test_worker_of_the_release_before(connection: Link, ending: Outcome) -> None:
    """It ends executions by settle() and its nine arrays, side by side with others: both leave the same rows and say the same."""
    rows, told = [], []
    await pass_time(connection, 0)
    for is_before in (True, False):
        for cancelled_first in (False, True):
            job_id = await enqueue(connection, max_attempts=1)
            job = await claim_one(connection)
            if cancelled_first:
                await update_status(connection, job_id)
            if is_before:
                found = await fetch(
                    connection,
                    "select became from pgnotifyq.settle(%s, array[%s]::uuid[], array[%s]::uuid[], array[%s], array[%s],"
                    " array[%s]::float8[], array[%s]::text[], array[%s]::text[], array[%s]::text[])",
                    ANN, *lease(job), ending.kind, ending.name, ending.delay_seconds, ending.error_message,
                    ending.result_json, ending.reason,
                )  # fmt: skip
                told.append(found[0][0] if found else None)
            else:
                told.append(await settle(connection, job, ending))
            rows.append([await row(connection, job_id), await dead_letter(connection, job_id), await history(connection, job_id)])
            await connection.execute("delete from pgnotifyq.jobs")
    assert told[:2] == told[2:]
    assert list(map(_plain, rows[:2])) == list(map(_plain, rows[2:]))


def _plain(found: object) -> object:
    """Leave out what two jobs never share: keys, and versions of rows."""
    if isinstance(found, dict):
        return {key: _plain(item) for key, item in found.items() if key not in {"id", "xmin", "ctid"}}
    return [_plain(item) for item in found] if isinstance(found, list | tuple) else found
