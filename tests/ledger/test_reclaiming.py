"""Heartbeat, watch and reclaim: leases are renewed by who holds them, and taken back once from who does not."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
import trio

from pgnotifyq.ledger import lease, workers
from pgnotifyq.model.job import Job, JobId, WorkerId
from pgnotifyq.model.outcome import PLAIN_COMPLETION
from pgnotifyq.wire.asking import ask
from pgnotifyq.wire.connection import Connection, open_connection
from tests.ledger.support import (
    ANN,
    BLOCKED,
    BOB,
    ENDINGS,
    SCHEMA,
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
    update_status,
    value,
)
from tests.proxy import until

Link = Connection[Any]
GRACE_SECONDS = 1.0


async def test_beat_renews_and_tells_only_surprises(connection: Link) -> None:
    """A beat renews what is still held, and reports what was cancelled and what is lost."""
    ids = [await enqueue(connection) for _ in range(3)]
    kept, cancelled, lost = await claim(connection, 3)
    await update_status(connection, cancelled.id)
    await settle(connection, lost, PLAIN_COMPLETION)
    assert await beat(connection, lost, kept, cancelled, lease_seconds=999.0) == {
        cancelled.id: "cancelled",
        lost.id: "lost",
    }
    renewed = "lease_expires_at > clock_timestamp() + interval '900 s' from pgnotifyq.jobs where id = %s"
    assert await value(connection, f"select {renewed}", kept.id)
    assert await value(connection, f"select {renewed}", cancelled.id)  # its handler has not stopped yet
    assert ids == [kept.id, cancelled.id, lost.id]


async def test_beat_of_a_stale_execution(connection: Link) -> None:
    """An execution that lost its job cannot renew the new owner's lease."""
    await enqueue(connection)
    stale = await claim_one(connection)
    await pass_time(connection, 61)
    await reclaim(connection)
    await claim_one(connection, worker=BOB)
    before = await everything(connection)
    assert await beat(connection, stale, lease_seconds=9999.0) == {stale.id: "lost"}
    assert await everything(connection) == before


async def test_beat_that_waited_for_a_lock(connection: Link, other: Link, dsn: str) -> None:
    """A lease is counted from after the wait for the row, not from before it."""
    job_id = await enqueue(connection)
    job = await claim_one(connection)
    async with trio.open_nursery() as beating, connection.transaction():
        await connection.execute("select from pgnotifyq.jobs where id = %s for update", (job_id,))
        beating.start_soon(beat, other, job)
        await until(dsn, BLOCKED, "other")
        released_at = await value(connection, "select clock_timestamp()")
    expires_at = await value(connection, "select lease_expires_at from pgnotifyq.jobs")
    assert (expires_at - released_at).total_seconds() >= 60


async def test_expired_lease(connection: Link) -> None:
    """A job whose lease ran out is pending again at its old place, the attempt charged and recorded as lost."""
    job_id = await enqueue(connection)
    before = await existing(connection, job_id)
    job = await claim_one(connection)
    await pass_time(connection, 59)
    assert await reclaim(connection) == {}
    await pass_time(connection, 61)
    assert await reclaim(connection) == {job_id: "pending"}
    after = await existing(connection, job_id)
    assert [after[name] for name in ("status", "locked_by", "current_execution_id", "lease_expires_at")] == [
        "pending",
        None,
        None,
        None,
    ]
    assert (after["attempts"], after["scheduled_at"]) == (1, before["scheduled_at"])
    assert await history(connection, job_id) == [(1, "lost")]
    assert await value(connection, "select id from pgnotifyq.job_executions") == job.current_execution_id
    assert await reclaim(connection) == {}


async def test_lease_lost_on_the_last_attempt(connection: Link) -> None:
    """A worker that dies on the last attempt leaves a dead letter with the reason, not a pending job that nobody claims."""
    job_id = await enqueue(connection, max_attempts=2)
    for ahead, became in ((61, "pending"), (122, "dead")):
        await claim_one(connection)
        await pass_time(connection, ahead)
        assert await reclaim(connection) == {job_id: became}
    letter = await dead_letter(connection, job_id)
    assert letter is not None
    assert (letter["reason"], letter["attempts"]) == ("lost", 2)
    assert [(attempt["attempt"], attempt["outcome"]) for attempt in letter["history"]] == [(1, "lost"), (2, "lost")]
    assert await row(connection, job_id) is None


async def test_next_expiry_is_told(connection: Link) -> None:
    """A reclaim that took all there was says when the next lease runs out, so that nobody has to poll."""
    await enqueue(connection)
    await pass_time(connection, 0)
    await claim_one(connection)
    assert await ask(connection, lease.reclaim(SCHEMA, worker_id=BOB, jobs_max=10)) == ([], 60.0, True)


async def test_batches(connection: Link) -> None:
    """A reclaim takes no more than it was asked for, and says that there is more."""
    for _ in range(5):
        await enqueue(connection)
    await claim(connection, 5)
    await pass_time(connection, 61)
    taken, _, took_all = await ask(connection, lease.reclaim(SCHEMA, worker_id=BOB, jobs_max=3))
    assert (len(taken), took_all) == (3, False)
    taken, _, took_all = await ask(connection, lease.reclaim(SCHEMA, worker_id=BOB, jobs_max=3))
    assert (len(taken), took_all) == (2, True)


async def test_two_reclaim_at_once(connection: Link, other: Link) -> None:
    """Each job is reclaimed once, whoever looks: a second reclaimer does not wait and takes what the first has not."""
    ids = {await enqueue(connection) for _ in range(4)}
    await claim(connection, 4)
    for session in (connection, other):
        await pass_time(session, 61)
    await other.execute("set lock_timeout = '1ms'")
    async with connection.transaction():
        first = await reclaim(connection, 2)
        second = await reclaim(other, 10)
    assert (len(first), len(second), set(first) | set(second)) == (2, 2, ids)
    assert await value(connection, "select count(*) from pgnotifyq.job_executions") == 4


@pytest.mark.parametrize("by", ["completion", "renewal"])
async def test_reclaim_beside_an_uncommitted_write(connection: Link, other: Link, by: str) -> None:
    """A completion or a renewal under way when the reclaimer looks is neither waited for nor overwritten."""
    job_id = await enqueue(connection)
    job = await claim_one(connection)
    await pass_time(other, 61)
    async with connection.transaction():
        if by == "completion":
            await settle(connection, job, PLAIN_COMPLETION)
        else:
            await beat(connection, job, lease_seconds=600)
        assert await reclaim(other) == {}
    assert await reclaim(other) == {}
    assert (await existing(connection, job_id))["status"] == ("completed" if by == "completion" else "running")


async def test_writes_that_commit_after_the_reclaimer_looked(connection: Link, other: Link, dsn: str) -> None:
    """A reclaimer that saw expired leases, and reaches them when they are not any more, leaves them alone.

    The loop fetches ten rows ahead. It is held at the first, by the history row that it must write, while the last three
    are completed, renewed, and reclaimed and claimed again by others.
    """
    for _ in range(13):
        await enqueue(connection)
    jobs = [await claim_one(connection) for _ in range(13)]
    *early, completed, renewed, taken_over = jobs
    await pass_time(other, 61)
    became: dict[Any, str] = {}

    async def reclaim_late() -> None:
        became.update(await reclaim(other))

    async with trio.open_nursery() as reclaiming, open_connection(dsn) as gate, gate.transaction(force_rollback=True):
        await gate.execute(
            "insert into pgnotifyq.job_executions (id, job_id, org_id, attempt, outcome, started_at, ended_at)"
            " select current_execution_id, id, org_id, 1, 'lost', now(), now() from pgnotifyq.jobs where id = %s",
            (early[0].id,),
        )
        reclaiming.start_soon(reclaim_late)
        await until(dsn, BLOCKED, "other")
        await settle(connection, completed, PLAIN_COMPLETION)
        await beat(connection, renewed, lease_seconds=600)
        await settle(connection, taken_over, ENDINGS["release"])
        again = await claim_one(connection, worker=BOB)
        await connection.execute("update pgnotifyq.jobs set lease_expires_at = 'infinity' where id = %s", (again.id,))
        left_alone = [await row(connection, job.id) for job in (completed, renewed, taken_over)]
    assert became == dict.fromkeys([job.id for job in early], "pending")
    assert [await row(connection, job.id) for job in (completed, renewed, taken_over)] == left_alone


async def test_worker_frozen_before_its_commit(connection: Link, other: Link, dsn: str) -> None:
    """A worker that is frozen between its fence and its commit does not keep its job from being taken back for ever."""
    await enqueue(connection)
    job = await claim_one(connection)
    await other.execute("begin")
    held = await fetch(other, "select pgnotifyq.still_holds(%s, %s)", job.id, job.current_execution_id)
    assert held == [("held",)]
    await pass_time(connection, 61)
    assert await reclaim(connection) == {}
    await until(dsn, "not exists (select from pg_stat_activity where application_name = 'other')")
    assert await reclaim(connection) == {job.id: "pending"}


async def enlist(connection: Link, worker: WorkerId, *, has_session: bool = True) -> None:
    await ask(connection, workers.register( SCHEMA, worker_id=worker, host="here", pid=1, queues=["default"], slots=1, version="0",
        has_session=has_session, lease_seconds=600.0,
    ))  # fmt: skip


async def watch(connection: Link) -> tuple[int, list[WorkerId], bool]:
    """Look as BOB does."""
    found = await ask(connection, workers.watch(SCHEMA, BOB, GRACE_SECONDS))
    return found.others, found.dead, found.suspected


async def claimed_for_long(connection: Link) -> Job:
    """Claim a job under a lease that no test outlives."""
    await enqueue(connection)
    (job,) = await claim(connection, lease_seconds=86_000)
    return job


async def session_is_gone(dsn: str) -> None:
    await until(dsn, "not exists (select from pg_locks where locktype = 'advisory')")


async def test_worker_whose_session_is_gone(connection: Link, dsn: str) -> None:
    """A worker's session speaks for it; when it is gone for longer than the grace, its jobs are taken back, leases or not."""
    job = await claimed_for_long(connection)
    async with open_connection(dsn) as session:
        await enlist(connection, ANN)
        await ask(session, workers.hold_session(SCHEMA, ANN))
        await pass_time(connection, 0)
        assert await watch(connection) == (1, [], False)
        await pass_time(connection, 3600)
        assert await watch(connection) == (1, [], False)
    await session_is_gone(dsn)
    assert await watch(connection) == (0, [], True)
    assert await watch(connection) == (0, [], True)
    assert await reclaim(connection) == {}
    await pass_time(connection, 3600 + GRACE_SECONDS + 1)
    assert await watch(connection) == (0, [ANN], False)
    assert await reclaim(connection, dead=[ANN]) == {job.id: "pending"}
    assert await fetch(connection, "select worker_id from pgnotifyq.worker_heartbeats") == []


@pytest.mark.parametrize("sign", ["beat", "return"])
async def test_worker_that_gives_a_sign_of_life(connection: Link, dsn: str, sign: str) -> None:
    """A beat, or a new session, of a suspected worker clears the suspicion: nothing is taken from it."""
    job = await claimed_for_long(connection)
    await enlist(connection, ANN)
    await session_is_gone(dsn)
    assert await watch(connection) == (0, [], True)
    if sign == "beat":
        await beat(connection, job)
    else:
        await enlist(connection, ANN)
    await pass_time(connection, GRACE_SECONDS + 1)
    assert await watch(connection) == (0, [], True)  # suspected anew, from now
    await enlist(connection, ANN)
    # Told dead by a look that was older than the sign: checked again.
    assert await reclaim(connection, dead=[ANN]) == {}


async def test_worker_without_a_session(connection: Link) -> None:
    """Where no session can speak for a worker, its beats do, for three leases; its jobs wait for their leases."""
    await enlist(connection, ANN, has_session=False)
    assert await watch(connection) == (1, [], False)
    await pass_time(connection, 1790)
    assert await watch(connection) == (1, [], False)
    await pass_time(connection, 1810)
    assert await watch(connection) == (0, [ANN], False)


async def test_dead_worker_does_not_sleep(connection: Link) -> None:
    """With a dead worker's jobs go its rows, also among the sleepers: nobody is woken in its place."""
    await enlist(connection, ANN)
    await ask(connection, workers.fall_asleep(SCHEMA, ANN, ["default", "second"]))
    await watch(connection)
    await reclaim(connection, dead=[ANN])
    assert await fetch(connection, "select from pgnotifyq.sleepers") == []


async def test_stranger_is_not_dead(connection: Link) -> None:
    """A worker id that nobody registered takes nothing from anybody."""
    job = await claimed_for_long(connection)
    assert await reclaim(connection, dead=[WorkerId(uuid.uuid4()), ANN]) == {}
    assert (await existing(connection, job.id))["status"] == "running"


async def die_with(connection: Link, *jobs: Job) -> dict[JobId, str]:
    """Have the one worker that holds these jobs die, and others take them back."""
    (worker,) = {job.locked_by for job in jobs}
    assert worker is not None
    await enlist(connection, worker)
    await watch(connection)
    await pass_time(connection, GRACE_SECONDS + 1)
    return await reclaim(connection, dead=[worker])


async def claim_all(connection: Link) -> list[Job]:
    """Have a new worker take all that is due, under a lease that no test outlives."""
    return await claim(connection, 100, worker=WorkerId(uuid.uuid4()), lease_seconds=86_000)


async def attempts(connection: Link, *ids: JobId) -> list[int]:
    return [(await existing(connection, job_id))["attempts"] for job_id in ids]


async def test_neighbours_of_a_poison_pill(connection: Link) -> None:
    """A job that kills each process it runs in is dead after its attempts; those that shared the process were charged once."""
    poison, *neighbours = [await enqueue(connection, max_attempts=3) for _ in range(4)]
    first = await die_with(connection, *await claim_all(connection))
    assert first == dict.fromkeys([poison, *neighbours], "pending")
    assert await attempts(connection, poison, *neighbours) == [1, 1, 1, 1]

    # The second time it is plain that one of them does it, and not which: from now on they take turns.
    await die_with(connection, *await claim_all(connection))
    assert await attempts(connection, poison, *neighbours) == [1, 1, 1, 1]

    # The third time it has company that is new, and is dead; the company is not charged at all.
    newcomer = await enqueue(connection, max_attempts=1)
    third = await claim_all(connection)
    assert sorted(job.id for job in third) == sorted([poison, newcomer])
    assert await die_with(connection, *third) == {poison: "dead", newcomer: "pending"}
    assert await attempts(connection, newcomer) == [0]
    letter = await dead_letter(connection, poison)
    assert letter is not None
    assert (letter["reason"], letter["attempts"], [one["outcome"] for one in letter["history"]]) == ("lost", 3, ["lost"] * 3)

    # The others have their turns, and were charged once.
    for neighbour in neighbours:
        turn = [job for job in await claim_all(connection) if job.id != newcomer]
        assert [(job.id, job.attempts) for job in turn] == [(neighbour, 2)]
        assert await reclaim(connection) == {}
        assert await claim_all(connection) == []
        await settle(connection, turn[0], PLAIN_COMPLETION)
        await reclaim(connection)


async def test_alone_each_time(connection: Link) -> None:
    """A job that ran alone each time its worker died is charged each time, and dead after its attempts."""
    job_id = await enqueue(connection, max_attempts=2)
    became = [(await die_with(connection, *await claim_all(connection)))[job_id] for _ in range(2)]
    assert became == ["pending", "dead"]


async def test_poison_pill_that_always_has_company(connection: Link) -> None:
    """However many run beside it and whatever their number of attempts, a poison pill ends; its company completes."""
    poison = await enqueue(connection, max_attempts=5)
    kills = 0
    while await row(connection, poison) is not None:
        for _ in range(3):
            await enqueue(connection, max_attempts=2)
        held = await claim_all(connection)
        if poison in {job.id for job in held}:
            await die_with(connection, *held)
            kills += 1
            continue
        for job in held:
            await settle(connection, job, PLAIN_COMPLETION)
        await reclaim(connection)
    assert kills == 5
    assert await value(connection, "select count(*) from pgnotifyq.dead_letter_jobs") == 1


async def test_suspects_of_two_workers(connection: Link) -> None:
    """Those who died with one worker do not wait for those who died with another."""
    groups = [[await enqueue(connection, queue_name=queue) for _ in range(2)] for queue in ("one", "two")]
    for _ in range(2):
        for queue in ("one", "two"):
            await die_with(
                connection,
                *await claim(connection, 9, worker=WorkerId(uuid.uuid4()), queues=[queue], lease_seconds=86_000),
            )
    turn = {job.id for job in await claim(connection, 9, queues=["one", "two"], lease_seconds=86_000)}
    assert [len(turn & set(ids)) for ids in groups] == [1, 1]


async def test_retry_of_a_suspect(connection: Link) -> None:
    """A suspect that fails by itself keeps its place among its retries; the next one has its turn meanwhile."""
    ids = [await enqueue(connection) for _ in range(2)]
    for _ in range(2):
        await die_with(connection, *await claim_all(connection))
    (first,) = await claim_all(connection)
    await settle(connection, first, ENDINGS["retry"])
    due_at = (await existing(connection, first.id))["scheduled_at"]
    await reclaim(connection)
    assert (await existing(connection, first.id))["scheduled_at"] == due_at
    (second,) = await claim_all(connection)
    assert sorted(ids) == sorted([first.id, second.id])


async def test_suspect_whose_turn_does_not_come(connection: Link) -> None:
    """After an hour a suspect runs whether or not the one before it has ended: nobody waits for ever."""
    for _ in range(2):
        await enqueue(connection)
    for _ in range(2):
        await die_with(connection, *await claim_all(connection))
    assert len(await claim_all(connection)) == 1
    await pass_time(connection, 3700)
    assert len(await claim_all(connection)) == 1


async def test_suspect_that_is_cancelled(connection: Link) -> None:
    """A cancel ends a suspect that waits for its turn; the others do not wait for it."""
    ids = [await enqueue(connection) for _ in range(3)]
    for _ in range(2):
        await die_with(connection, *await claim_all(connection))
    (first,) = await claim_all(connection)
    waiting = [job_id for job_id in ids if job_id != first.id]
    await update_status(connection, waiting[0])
    await settle(connection, first, PLAIN_COMPLETION)
    await reclaim(connection)
    (second,) = await claim_all(connection)
    assert second.id == waiting[1]
