"""Settle: each ending in its own way, each fenced by job id and execution id."""

from __future__ import annotations

from typing import Any

import pytest

from pgnotifyq.ledger import end
from pgnotifyq.model.job import Job
from pgnotifyq.model.outcome import PLAIN_COMPLETION, Outcome, SettleKind
from pgnotifyq.wire.asking import ask_blocking
from pgnotifyq.wire.blocking import Connection
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


def lose(connection: Link, job: Job) -> None:
    """Let a job's lease run out and be reclaimed."""
    pass_time(connection, 61)
    assert reclaim(connection) == {job.id: "pending"}


@endings
def test_stale_execution_after_somebody_claimed_again(connection: Link, ending: Outcome) -> None:
    """A worker that lost its lease cannot end, retry, release or bury the new owner's job: not a byte changes."""
    enqueue(connection)
    stale = claim_one(connection)
    lose(connection, stale)
    fresh = claim_one(connection, worker=BOB)
    before = everything(connection)
    assert settle(connection, stale, ending) == "lost"
    assert everything(connection) == before
    assert existing(connection, fresh.id)["current_execution_id"] == str(fresh.current_execution_id)


@endings
def test_stale_execution_of_the_same_worker(connection: Link, ending: Outcome) -> None:
    """The fence is the execution, not the worker: one that claimed its own lost job again is fenced from its past."""
    enqueue(connection)
    stale = claim_one(connection)
    lose(connection, stale)
    claim_one(connection)
    before = everything(connection)
    assert settle(connection, stale, ending) == "lost"
    assert everything(connection) == before


@endings
@pytest.mark.parametrize("now", ["pending", "completed", "cancelled", "dead"])
def test_stale_execution_after_its_job_went_on(connection: Link, ending: Outcome, now: str) -> None:
    """Whatever became of a job meanwhile, the execution that lost it changes nothing."""
    enqueue(connection)
    stale = claim_one(connection)
    lose(connection, stale)
    if now == "cancelled":
        update_status(connection, stale.id)
    elif now != "pending":
        fresh = claim_one(connection, worker=BOB)
        settle(connection, fresh, ENDINGS["bury"] if now == "dead" else PLAIN_COMPLETION, worker=BOB)
    before = everything(connection)
    assert settle(connection, stale, ending) == "lost"
    assert everything(connection) == before


@endings
def test_every_ending_closes_the_execution_and_frees_the_lease(connection: Link, ending: Outcome) -> None:
    """After any ending nothing of the lease is left, and the attempt is in the history, once."""
    job_id = enqueue(connection)
    job = claim_one(connection)
    assert settle(connection, job, ending) is None
    assert history(connection, job_id) == [(1, ending.name)]
    after = row(connection, job_id)
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
def test_cancel_committed_first(connection: Link, ending: Outcome) -> None:
    """A cancel that came first wins over every ending: never completed, never retried, never buried."""
    job_id = enqueue(connection)
    job = claim_one(connection)
    update_status(connection, job_id)
    surprise = settle(connection, job, ending)
    assert surprise == (None if ending.kind is SettleKind.CANCEL else "cancelled")
    after = existing(connection, job_id)
    assert after["status"] == "cancelled"
    assert after["result"] is None
    assert [after[name] for name in HELD] == [None, None, None]
    assert history(connection, job_id) == [(1, "cancelled")]


@endings
def test_completed_by_a_transaction_whose_reply_was_lost(connection: Link, ending: Outcome) -> None:
    """The handler's own transaction completed the job, its commit's reply was lost, the handler failed: told, and not retried."""
    enqueue(connection)
    job = claim_one(connection)
    assert settle(connection, job, PLAIN_COMPLETION) is None
    before = everything(connection)
    assert settle(connection, job, ending) == (None if ending.kind is SettleKind.COMPLETE else "completed")
    assert everything(connection) == before


@endings
def test_batch_repeated_after_its_reply_was_lost(connection: Link, ending: Outcome) -> None:
    """The same batch again is recognised by its execution id: no surprise, and nothing is written twice."""
    enqueue(connection)
    job = claim_one(connection)
    assert settle(connection, job, ending) is None
    before = everything(connection)
    assert settle(connection, job, ending) is None
    assert everything(connection) == before


def test_retry_with_no_attempt_left(connection: Link) -> None:
    """The last attempt's failure is a death, whatever the worker asked for."""
    job_id = enqueue(connection, max_attempts=1)
    job = claim_one(connection)
    assert settle(connection, job, ENDINGS["retry"]) == "dead"
    letter = dead_letter(connection, job_id)
    assert letter is not None
    assert letter["reason"] == "exhausted"
    assert letter["error_message"] == "no luck"
    assert row(connection, job_id) is None


def test_retry_and_snooze_wait(connection: Link) -> None:
    """A retried or snoozed job is not claimed before its delay is over, and is afterwards."""
    for ending in ("retry", "snooze"):
        pass_time(connection, 0)
        job_id = enqueue(connection)
        settle(connection, claim_one(connection), ENDINGS[ending])
        pass_time(connection, 4)
        assert claim(connection) == []
        pass_time(connection, 6)
        again = claim_one(connection)
        assert (again.id, again.attempts) == (job_id, 2 if ending == "retry" else 1)
        settle(connection, again, PLAIN_COMPLETION)


def test_release_puts_a_job_back_where_it_was(connection: Link) -> None:
    """A released job is due at once, at its old place, its attempt not charged."""
    job_id = enqueue(connection, max_attempts=1)
    before = existing(connection, job_id)
    settle(connection, claim_one(connection), ENDINGS["release"])
    after = existing(connection, job_id)
    assert (after["attempts"], after["scheduled_at"]) == (0, before["scheduled_at"])
    assert claim_one(connection).id == job_id


def test_good_and_stale_in_one_batch(connection: Link) -> None:
    """In a mixed batch each ends in its own way, and only the stale one is reported."""
    ids = {name: enqueue(connection) for name in ENDINGS} | {"stale": enqueue(connection)}
    jobs = {job.id: job for job in claim(connection, len(ids))}
    settle(connection, jobs[ids["stale"]], ENDINGS["release"])
    again = claim_one(connection, worker=BOB)
    batch = [(lease(jobs[ids[name]]), ending) for name, ending in ENDINGS.items()]
    batch.append((lease(jobs[ids["stale"]]), ENDINGS["retry"]))
    surprises = ask_blocking(connection, end.settle(SCHEMA, worker_id=ANN, settlements=batch))
    # It was released, and a retry of a released execution is the same batch again, not a loss.
    assert surprises == []
    found = {name: (row(connection, job_id) or {"status": "dead"})["status"] for name, job_id in ids.items()}
    assert found == {
        "complete plainly": "completed", "complete": "completed", "retry": "pending", "snooze": "pending",
        "release": "pending", "cancel": "cancelled", "bury": "dead", "stale": "running",
    }  # fmt: skip
    assert existing(connection, again.id)["locked_by"] == str(BOB)


def test_result_is_stored(connection: Link) -> None:
    """What a handler returned is kept with the job."""
    job_id = enqueue(connection)
    settle(connection, claim_one(connection), ENDINGS["complete"])
    assert existing(connection, job_id)["result"] == {"n": 1}


@endings
def test_worker_of_the_release_before(connection: Link, ending: Outcome) -> None:
    """It ends executions by settle() and its nine arrays, side by side with others: both leave the same rows and say the same."""
    rows, told = [], []
    pass_time(connection, 0)
    for is_before in (True, False):
        for cancelled_first in (False, True):
            job_id = enqueue(connection, max_attempts=1)
            job = claim_one(connection)
            if cancelled_first:
                update_status(connection, job_id)
            if is_before:
                found = fetch(
                    connection,
                    "select became from pgnotifyq.settle(%s, array[%s]::uuid[], array[%s]::uuid[], array[%s], array[%s],"
                    " array[%s]::float8[], array[%s]::text[], array[%s]::text[], array[%s]::text[])",
                    ANN, *lease(job), ending.kind, ending.name, ending.delay_seconds, ending.error_message,
                    ending.result_json, ending.reason,
                )  # fmt: skip
                told.append(found[0][0] if found else None)
            else:
                told.append(settle(connection, job, ending))
            rows.append([row(connection, job_id), dead_letter(connection, job_id), history(connection, job_id)])
            connection.execute("delete from pgnotifyq.jobs")
    assert told[:2] == told[2:]
    assert list(map(_plain, rows[:2])) == list(map(_plain, rows[2:]))


def _plain(found: object) -> object:
    """Leave out what two jobs never share: keys, and versions of rows."""
    if isinstance(found, dict):
        return {key: _plain(item) for key, item in found.items() if key not in {"id", "xmin", "ctid"}}
    return [_plain(item) for item in found] if isinstance(found, list | tuple) else found
