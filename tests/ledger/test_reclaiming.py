"""Heartbeat, watch and reclaim: leases are renewed by who holds them, and taken back once from who does not."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from pgnotifyq.ledger import lease, workers
from pgnotifyq.model.job import Job, JobId, WorkerId
from pgnotifyq.model.outcome import PLAIN_COMPLETION
from pgnotifyq.wire.asking import ask_blocking
from pgnotifyq.wire.blocking import Connection, connect
from tests.ledger.support import (
    ANN,
    BLOCKED,
    BOB,
    ENDINGS,
    SCHEMA,
    at_once,
    beat,
    claim,
    claim_one,
    dead_letter,
    enqueue,
    everything,
    existing,
    fetch,
    history,
    pass_time,
    reclaim,
    row,
    settle,
    until,
    update_status,
    value,
)

Link = Connection[Any]
GRACE_SECONDS = 1.0


def test_beat_renews_and_tells_only_surprises(connection: Link) -> None:
    """A beat renews what is still held, and reports what was cancelled and what is lost."""
    ids = [enqueue(connection) for _ in range(3)]
    kept, cancelled, lost = claim(connection, 3)
    update_status(connection, cancelled.id)
    settle(connection, lost, PLAIN_COMPLETION)
    assert beat(connection, lost, kept, cancelled, lease_seconds=999.0) == {
        cancelled.id: "cancelled",
        lost.id: "lost",
    }
    renewed = "lease_expires_at > clock_timestamp() + interval '900 s' from pgnotifyq.jobs where id = %s"
    assert value(connection, f"select {renewed}", kept.id)
    assert value(connection, f"select {renewed}", cancelled.id)  # its handler has not stopped yet
    assert ids == [kept.id, cancelled.id, lost.id]


def test_beat_of_a_stale_execution(connection: Link) -> None:
    """An execution that lost its job cannot renew the new owner's lease."""
    enqueue(connection)
    stale = claim_one(connection)
    pass_time(connection, 61)
    reclaim(connection)
    claim_one(connection, worker=BOB)
    before = everything(connection)
    assert beat(connection, stale, lease_seconds=9999.0) == {stale.id: "lost"}
    assert everything(connection) == before


def test_beat_that_waited_for_a_lock(connection: Link, other: Link, dsn: str) -> None:
    """A lease is counted from after the wait for the row, not from before it."""
    job_id = enqueue(connection)
    job = claim_one(connection)
    with at_once() as start, connection.transaction():
        connection.execute("select from pgnotifyq.jobs where id = %s for update", (job_id,))
        start(beat, other, job)
        until(dsn, BLOCKED, "other")
        released_at = value(connection, "select clock_timestamp()")
    expires_at = value(connection, "select lease_expires_at from pgnotifyq.jobs")
    assert (expires_at - released_at).total_seconds() >= 60


def test_expired_lease(connection: Link) -> None:
    """A job whose lease ran out is pending again at its old place, the attempt charged and recorded as lost."""
    job_id = enqueue(connection)
    before = existing(connection, job_id)
    job = claim_one(connection)
    pass_time(connection, 59)
    assert reclaim(connection) == {}
    pass_time(connection, 61)
    assert reclaim(connection) == {job_id: "pending"}
    after = existing(connection, job_id)
    assert [after[name] for name in ("status", "locked_by", "current_execution_id", "lease_expires_at")] == [
        "pending",
        None,
        None,
        None,
    ]
    assert (after["attempts"], after["scheduled_at"]) == (1, before["scheduled_at"])
    assert history(connection, job_id) == [(1, "lost")]
    assert value(connection, "select id from pgnotifyq.job_executions") == job.current_execution_id
    assert reclaim(connection) == {}


def test_lease_lost_on_the_last_attempt(connection: Link) -> None:
    """A worker that dies on the last attempt leaves a dead letter with the reason, not a pending job that nobody claims."""
    job_id = enqueue(connection, max_attempts=2)
    for ahead, became in ((61, "pending"), (122, "dead")):
        claim_one(connection)
        pass_time(connection, ahead)
        assert reclaim(connection) == {job_id: became}
    letter = dead_letter(connection, job_id)
    assert letter is not None
    assert (letter["reason"], letter["attempts"]) == ("lost", 2)
    assert [(attempt["attempt"], attempt["outcome"]) for attempt in letter["history"]] == [(1, "lost"), (2, "lost")]
    assert row(connection, job_id) is None


def test_next_expiry_is_told(connection: Link) -> None:
    """A reclaim that took all there was says when the next lease runs out, so that nobody has to poll."""
    enqueue(connection)
    pass_time(connection, 0)
    claim_one(connection)
    assert ask_blocking(connection, lease.reclaim(SCHEMA, worker_id=BOB, jobs_max=10)) == ([], 60.0, True)


def test_batches(connection: Link) -> None:
    """A reclaim takes no more than it was asked for, and says that there is more."""
    for _ in range(5):
        enqueue(connection)
    claim(connection, 5)
    pass_time(connection, 61)
    taken, _, took_all = ask_blocking(connection, lease.reclaim(SCHEMA, worker_id=BOB, jobs_max=3))
    assert (len(taken), took_all) == (3, False)
    taken, _, took_all = ask_blocking(connection, lease.reclaim(SCHEMA, worker_id=BOB, jobs_max=3))
    assert (len(taken), took_all) == (2, True)


def test_two_reclaim_at_once(connection: Link, other: Link) -> None:
    """Each job is reclaimed once, whoever looks: a second reclaimer does not wait and takes what the first has not."""
    ids = {enqueue(connection) for _ in range(4)}
    claim(connection, 4)
    for session in (connection, other):
        pass_time(session, 61)
    other.execute("set lock_timeout = '1ms'")
    with connection.transaction():
        first = reclaim(connection, 2)
        second = reclaim(other, 10)
    assert (len(first), len(second), set(first) | set(second)) == (2, 2, ids)
    assert value(connection, "select count(*) from pgnotifyq.job_executions") == 4


@pytest.mark.parametrize("by", ["completion", "renewal"])
def test_reclaim_beside_an_uncommitted_write(connection: Link, other: Link, by: str) -> None:
    """A completion or a renewal under way when the reclaimer looks is neither waited for nor overwritten."""
    job_id = enqueue(connection)
    job = claim_one(connection)
    pass_time(other, 61)
    with connection.transaction():
        if by == "completion":
            settle(connection, job, PLAIN_COMPLETION)
        else:
            beat(connection, job, lease_seconds=600)
        assert reclaim(other) == {}
    assert reclaim(other) == {}
    assert existing(connection, job_id)["status"] == ("completed" if by == "completion" else "running")


def test_writes_that_commit_after_the_reclaimer_looked(connection: Link, other: Link, dsn: str) -> None:
    """A reclaimer that saw expired leases, and reaches them when they are not any more, leaves them alone.

    The loop fetches ten rows ahead. It is held at the first, by the history row that it must write, while the last three
    are completed, renewed, and reclaimed and claimed again by others.
    """
    for _ in range(13):
        enqueue(connection)
    jobs = [claim_one(connection) for _ in range(13)]
    *early, completed, renewed, taken_over = jobs
    pass_time(other, 61)
    became: dict[Any, str] = {}

    def reclaim_late() -> None:
        became.update(reclaim(other))

    with at_once() as start, connect(dsn) as gate, gate.transaction(force_rollback=True):
        gate.execute(
            "insert into pgnotifyq.job_executions (id, job_id, org_id, attempt, outcome, started_at, ended_at)"
            " select current_execution_id, id, org_id, 1, 'lost', now(), now() from pgnotifyq.jobs where id = %s",
            (early[0].id,),
        )
        start(reclaim_late)
        until(dsn, BLOCKED, "other")
        settle(connection, completed, PLAIN_COMPLETION)
        beat(connection, renewed, lease_seconds=600)
        settle(connection, taken_over, ENDINGS["release"])
        again = claim_one(connection, worker=BOB)
        connection.execute("update pgnotifyq.jobs set lease_expires_at = 'infinity' where id = %s", (again.id,))
        left_alone = [row(connection, job.id) for job in (completed, renewed, taken_over)]
    assert became == dict.fromkeys([job.id for job in early], "pending")
    assert [row(connection, job.id) for job in (completed, renewed, taken_over)] == left_alone


def test_worker_frozen_before_its_commit(connection: Link, other: Link, dsn: str) -> None:
    """A worker that is frozen between its fence and its commit does not keep its job from being taken back for ever."""
    enqueue(connection)
    job = claim_one(connection)
    other.execute("begin")
    held = fetch(other, "select pgnotifyq.still_holds(%s, %s)", job.id, job.current_execution_id)
    assert held == [("held",)]
    pass_time(connection, 61)
    assert reclaim(connection) == {}
    until(dsn, "not exists (select from pg_stat_activity where application_name = 'other')")
    assert reclaim(connection) == {job.id: "pending"}


def enlist(connection: Link, worker: WorkerId, *, has_session: bool = True) -> None:
    ask_blocking(connection, workers.register( SCHEMA, worker_id=worker, host="here", pid=1, queues=["default"], slots=1, version="0",
        has_session=has_session, lease_seconds=600.0,
    ))  # fmt: skip


def watch(connection: Link) -> tuple[int, list[WorkerId], bool]:
    """Look as BOB does."""
    found = ask_blocking(connection, workers.watch(SCHEMA, BOB, GRACE_SECONDS))
    return found.others, found.dead, found.suspected


def claimed_for_long(connection: Link) -> Job:
    """Claim a job under a lease that no test outlives."""
    enqueue(connection)
    (job,) = claim(connection, lease_seconds=86_000)
    return job


def session_is_gone(dsn: str) -> None:
    until(dsn, "not exists (select from pg_locks where locktype = 'advisory')")


def test_worker_whose_session_is_gone(connection: Link, dsn: str) -> None:
    """A worker's session speaks for it; when it is gone for longer than the grace, its jobs are taken back, leases or not."""
    job = claimed_for_long(connection)
    with connect(dsn) as session:
        enlist(connection, ANN)
        ask_blocking(session, workers.hold_session(SCHEMA, ANN))
        pass_time(connection, 0)
        assert watch(connection) == (1, [], False)
        pass_time(connection, 3600)
        assert watch(connection) == (1, [], False)
    session_is_gone(dsn)
    assert watch(connection) == (0, [], True)
    assert watch(connection) == (0, [], True)
    assert reclaim(connection) == {}
    pass_time(connection, 3600 + GRACE_SECONDS + 1)
    assert watch(connection) == (0, [ANN], False)
    assert reclaim(connection, dead=[ANN]) == {job.id: "pending"}
    assert fetch(connection, "select worker_id from pgnotifyq.worker_heartbeats") == []


@pytest.mark.parametrize("sign", ["beat", "return"])
def test_worker_that_gives_a_sign_of_life(connection: Link, dsn: str, sign: str) -> None:
    """A beat, or a new session, of a suspected worker clears the suspicion: nothing is taken from it."""
    job = claimed_for_long(connection)
    enlist(connection, ANN)
    session_is_gone(dsn)
    assert watch(connection) == (0, [], True)
    if sign == "beat":
        beat(connection, job)
    else:
        enlist(connection, ANN)
    pass_time(connection, GRACE_SECONDS + 1)
    assert watch(connection) == (0, [], True)  # suspected anew, from now
    enlist(connection, ANN)
    # Told dead by a look that was older than the sign: checked again.
    assert reclaim(connection, dead=[ANN]) == {}


def test_worker_without_a_session(connection: Link) -> None:
    """Where no session can speak for a worker, its beats do, for three leases; its jobs wait for their leases."""
    enlist(connection, ANN, has_session=False)
    assert watch(connection) == (1, [], False)
    pass_time(connection, 1790)
    assert watch(connection) == (1, [], False)
    pass_time(connection, 1810)
    assert watch(connection) == (0, [ANN], False)


def test_dead_worker_does_not_sleep(connection: Link) -> None:
    """With a dead worker's jobs go its rows, also among the sleepers: nobody is woken in its place."""
    enlist(connection, ANN)
    ask_blocking(connection, workers.fall_asleep(SCHEMA, ANN, ["default", "second"]))
    watch(connection)
    reclaim(connection, dead=[ANN])
    assert fetch(connection, "select from pgnotifyq.sleepers") == []


def test_stranger_is_not_dead(connection: Link) -> None:
    """A worker id that nobody registered takes nothing from anybody."""
    job = claimed_for_long(connection)
    assert reclaim(connection, dead=[WorkerId(uuid.uuid4()), ANN]) == {}
    assert existing(connection, job.id)["status"] == "running"


def die_with(connection: Link, *jobs: Job) -> dict[JobId, str]:
    """Have the one worker that holds these jobs die, and others take them back."""
    (worker,) = {job.locked_by for job in jobs}
    assert worker is not None
    enlist(connection, worker)
    watch(connection)
    pass_time(connection, GRACE_SECONDS + 1)
    return reclaim(connection, dead=[worker])


def claim_all(connection: Link) -> list[Job]:
    """Have a new worker take all that is due, under a lease that no test outlives."""
    return claim(connection, 100, worker=WorkerId(uuid.uuid4()), lease_seconds=86_000)


def attempts(connection: Link, *ids: JobId) -> list[int]:
    return [existing(connection, job_id)["attempts"] for job_id in ids]


def test_neighbours_of_a_poison_pill(connection: Link) -> None:
    """A job that kills each process it runs in is dead after its attempts; those that shared the process were charged once."""
    poison, *neighbours = [enqueue(connection, max_attempts=3) for _ in range(4)]
    first = die_with(connection, *claim_all(connection))
    assert first == dict.fromkeys([poison, *neighbours], "pending")
    assert attempts(connection, poison, *neighbours) == [1, 1, 1, 1]

    # The second time it is plain that one of them does it, and not which: from now on they take turns.
    die_with(connection, *claim_all(connection))
    assert attempts(connection, poison, *neighbours) == [1, 1, 1, 1]

    # The third time it has company that is new, and is dead; the company is not charged at all.
    newcomer = enqueue(connection, max_attempts=1)
    third = claim_all(connection)
    assert sorted(job.id for job in third) == sorted([poison, newcomer])
    assert die_with(connection, *third) == {poison: "dead", newcomer: "pending"}
    assert attempts(connection, newcomer) == [0]
    letter = dead_letter(connection, poison)
    assert letter is not None
    assert (letter["reason"], letter["attempts"], [one["outcome"] for one in letter["history"]]) == ("lost", 3, ["lost"] * 3)

    # The others have their turns, and were charged once.
    for neighbour in neighbours:
        turn = [job for job in claim_all(connection) if job.id != newcomer]
        assert [(job.id, job.attempts) for job in turn] == [(neighbour, 2)]
        assert reclaim(connection) == {}
        assert claim_all(connection) == []
        settle(connection, turn[0], PLAIN_COMPLETION)
        reclaim(connection)


def test_alone_each_time(connection: Link) -> None:
    """A job that ran alone each time its worker died is charged each time, and dead after its attempts."""
    job_id = enqueue(connection, max_attempts=2)
    became = [(die_with(connection, *claim_all(connection)))[job_id] for _ in range(2)]
    assert became == ["pending", "dead"]


def test_poison_pill_that_always_has_company(connection: Link) -> None:
    """However many run beside it and whatever their number of attempts, a poison pill ends; its company completes."""
    poison = enqueue(connection, max_attempts=5)
    kills = 0
    while row(connection, poison) is not None:
        for _ in range(3):
            enqueue(connection, max_attempts=2)
        held = claim_all(connection)
        if poison in {job.id for job in held}:
            die_with(connection, *held)
            kills += 1
            continue
        for job in held:
            settle(connection, job, PLAIN_COMPLETION)
        reclaim(connection)
    assert kills == 5
    assert value(connection, "select count(*) from pgnotifyq.dead_letter_jobs") == 1


def test_suspects_of_two_workers(connection: Link) -> None:
    """Those who died with one worker do not wait for those who died with another."""
    groups = [[enqueue(connection, queue_name=queue) for _ in range(2)] for queue in ("one", "two")]
    for _ in range(2):
        for queue in ("one", "two"):
            die_with(
                connection,
                *claim(connection, 9, worker=WorkerId(uuid.uuid4()), queues=[queue], lease_seconds=86_000),
            )
    turn = {job.id for job in claim(connection, 9, queues=["one", "two"], lease_seconds=86_000)}
    assert [len(turn & set(ids)) for ids in groups] == [1, 1]


def test_retry_of_a_suspect(connection: Link) -> None:
    """A suspect that fails by itself keeps its place among its retries; the next one has its turn meanwhile."""
    ids = [enqueue(connection) for _ in range(2)]
    for _ in range(2):
        die_with(connection, *claim_all(connection))
    (first,) = claim_all(connection)
    settle(connection, first, ENDINGS["retry"])
    due_at = existing(connection, first.id)["scheduled_at"]
    reclaim(connection)
    assert existing(connection, first.id)["scheduled_at"] == due_at
    (second,) = claim_all(connection)
    assert sorted(ids) == sorted([first.id, second.id])


def test_suspect_whose_turn_does_not_come(connection: Link) -> None:
    """After an hour a suspect runs whether or not the one before it has ended: nobody waits for ever."""
    for _ in range(2):
        enqueue(connection)
    for _ in range(2):
        die_with(connection, *claim_all(connection))
    assert len(claim_all(connection)) == 1
    pass_time(connection, 3700)
    assert len(claim_all(connection)) == 1


def test_suspect_that_is_cancelled(connection: Link) -> None:
    """A cancel ends a suspect that waits for its turn; the others do not wait for it."""
    ids = [enqueue(connection) for _ in range(3)]
    for _ in range(2):
        die_with(connection, *claim_all(connection))
    (first,) = claim_all(connection)
    waiting = [job_id for job_id in ids if job_id != first.id]
    update_status(connection, waiting[0])
    settle(connection, first, PLAIN_COMPLETION)
    reclaim(connection)
    (second,) = claim_all(connection)
    assert second.id == waiting[1]
