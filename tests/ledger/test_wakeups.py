"""Wake-ups: sleepers are told, each on its own channel, and nobody is told while nobody sleeps."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
import trio

from pgnotifyq.ledger import claim as claim_verbs
from pgnotifyq.ledger import workers
from pgnotifyq.model.job import WorkerId
from pgnotifyq.model.outcome import PLAIN_COMPLETION
from pgnotifyq.wire.asking import ask
from pgnotifyq.wire.connection import Connection
from pgnotifyq.wire.notifications import listen, wait_notifications
from tests.ledger.support import (
    ANN,
    BOB,
    ENDINGS,
    SCHEMA,
    claim,
    claim_one,
    enqueue,
    existing,
    fetch,
    pass_time,
    reclaim,
    settle,
    update_status,
    value,
)

Link = Connection[Any]
CAST = {ANN: "ann", BOB: "bob"} | {WorkerId(uuid.UUID(int=0xC0 + n)): f"cat{n}" for n in range(5)}
CATS = list(CAST)[2:]


class Ears:
    """A session that listens to every channel there is."""

    def __init__(self, connection: Link) -> None:
        self._connection = connection
        self._names = {"marker": "marker", "pgnotifyq_work": "everybody", "pgnotifyq_finished": "waiters"}

    async def open(self) -> None:
        for worker, name in CAST.items():
            self._names[await ask(self._connection, workers.worker_channel(SCHEMA, worker))] = name
        for channel in self._names:
            await listen(self._connection, channel)

    async def heard(self) -> list[tuple[str, str]]:
        """Return (who, what) of all that was committed before this call; nothing in the queue overtakes the marker."""
        await self._connection.execute("select pg_notify('marker', '')")
        found: list[tuple[str, str]] = []
        with trio.fail_after(10):
            while True:
                for note in await wait_notifications(self._connection):
                    if note.channel == "marker":
                        return sorted(found)
                    found.append((self._names[note.channel], note.payload))


@pytest.fixture
async def ears(other: Link) -> Ears:
    """Give a session that hears everything."""
    ears = Ears(other)
    await ears.open()
    return ears


async def sleep(connection: Link, *names: WorkerId, queues: tuple[str, ...] = ("default",)) -> None:
    for worker in names:
        await ask(connection, workers.fall_asleep(SCHEMA, worker, queues))


async def test_nobody_sleeps(connection: Link, ears: Ears) -> None:
    """An insert notifies nobody while nobody sleeps: the server's notify lock is not taken."""
    await enqueue(connection)
    assert await ears.heard() == []


async def test_sleeper_is_told_and_it_alone(connection: Link, ears: Ears) -> None:
    """A sleeper hears of its queue on its own channel; a sleeper on another queue hears nothing."""
    await sleep(connection, ANN)
    await sleep(connection, BOB, queues=("elsewhere",))
    job_id = await enqueue(connection)
    assert await ears.heard() == [("ann", f"work default {job_id}")]


async def test_insert_by_hand(connection: Link, ears: Ears) -> None:
    """A plain insert by anybody wakes as enqueue() does."""
    await sleep(connection, ANN)
    job_id = await value(connection, "insert into pgnotifyq.jobs (job_type) values ('noop') returning id")
    assert await ears.heard() == [("ann", f"work default {job_id}")]


async def test_one_job_and_many_sleepers(connection: Link, ears: Ears) -> None:
    """One job wakes two of five; ten jobs in a statement wake all."""
    await sleep(connection, *CATS)
    await enqueue(connection)
    assert len(await ears.heard()) == 2
    await connection.execute("insert into pgnotifyq.jobs (job_type) select 'noop' from generate_series(1, 10)")
    assert await ears.heard() == [(f"cat{n}", "work default") for n in range(5)]


async def test_many_inserts_of_one_transaction(connection: Link, ears: Ears) -> None:
    """A transaction names the first job that is due. Its other wake-ups are alike, and merge into one a queue."""
    await sleep(connection, ANN, queues=("default", "second"))
    async with connection.transaction():
        await enqueue(connection, scheduled_at="2100-01-01")
        first = await enqueue(connection)
        for _ in range(5):
            await enqueue(connection)
            await enqueue(connection, queue_name="second")
    assert await ears.heard() == [("ann", "work default"), ("ann", f"work default {first}"), ("ann", "work second")]
    job_id = await enqueue(connection)
    assert await ears.heard() == [("ann", f"work default {job_id}")]


async def test_insert_rolled_back(connection: Link, ears: Ears) -> None:
    """A business transaction that rolls back leaves neither job nor wake-up."""
    await sleep(connection, ANN)
    async with connection.transaction(force_rollback=True):
        await enqueue(connection)
    assert await ears.heard() == []
    assert await value(connection, "select count(*) from pgnotifyq.jobs") == 0


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
async def test_list_of_sleepers_as_old_as_the_transaction(connection: Link, other: Link, ears: Ears, level: str) -> None:
    """Where the trigger looks through an old snapshot everybody is told: a sleeper it cannot see would be missed."""
    await connection.execute(f"set default_transaction_isolation = '{level}'".encode())
    async with connection.transaction():
        await connection.execute("select from pgnotifyq.jobs")
        await sleep(other, ANN)
        await enqueue(connection)
    assert await ears.heard() == [("everybody", "default")]


async def test_awake_again(connection: Link, ears: Ears) -> None:
    """A worker that has taken itself off the list hears nothing, and hands on the wake-up that found it full."""
    await enqueue(connection, queue_name="second")
    await sleep(connection, ANN, BOB, queues=("default", "second"))
    await ask(connection, workers.wake_up(SCHEMA, ANN, ["default", "second"]))
    assert await ears.heard() == [("bob", "work second")]
    job_id = await enqueue(connection)
    assert await ears.heard() == [("bob", f"work default {job_id}")]


async def test_job_of_the_future_and_what_sleepers_expect(connection: Link, ears: Ears) -> None:
    """A future job wakes who would otherwise sleep past it, and not who looks earlier anyway."""
    await sleep(connection, ANN)
    await enqueue(connection, scheduled_at="2100-01-01")
    assert await ears.heard() == [("ann", "work default")]
    await connection.execute("update pgnotifyq.sleepers set expects_at = '2090-01-01'")
    await enqueue(connection, scheduled_at="2095-01-01")
    assert await ears.heard() == []
    await enqueue(connection, scheduled_at="2085-01-01")
    assert await ears.heard() == [("ann", "work default")]
    job_id = await enqueue(connection)
    assert await ears.heard() == [("ann", f"work default {job_id}")]


async def test_promise_whose_time_has_passed(connection: Link, ears: Ears) -> None:
    """What a sleeper expected, and has not looked for, counts for nothing: it is told of later jobs."""
    await sleep(connection, ANN)
    await connection.execute("update pgnotifyq.sleepers set expects_at = '2020-01-01'")
    await enqueue(connection, scheduled_at="2100-01-01")
    assert await ears.heard() == [("ann", "work default")]


async def test_what_a_sleepers_claim_promises(connection: Link) -> None:
    """A sleeper's claim lowers what it expects, keeps a promise until its time, and reports one that has passed."""

    async def look(at: str) -> tuple[float | None, bool, list[object]]:
        await connection.execute("select set_config('pgnotifyq.clock', %s, false)", (f"2030-01-01 00:{at}+00",))
        found = await ask(
            connection,
            claim_verbs.claim(SCHEMA, worker_id=ANN, queues=["a", "b"], jobs_max=9, lease_seconds=60.0, is_asleep=True),
        )
        rows = await fetch(
            connection, "select to_char(expects_at at time zone 'utc', 'MI:SS') from pgnotifyq.sleepers order by queue_name"
        )
        return found.next_due_seconds, found.snapshot_xmin is None, [row[0] for row in rows]

    await sleep(connection, ANN, queues=("a", "b"))
    early = await enqueue(connection, queue_name="a", scheduled_at="2030-01-01 00:01:00+00")
    await enqueue(connection, queue_name="b", scheduled_at="2030-01-01 00:02:00+00")
    assert await look("00:30") == (30, False, ["01:00", "02:00"])
    await update_status(connection, early)
    assert await look("00:40") == (20, False, ["01:00", "02:00"])  # some inserter may count on it
    assert await look("01:00") == (60, True, [None, "02:00"])
    assert await look("01:10") == (50, False, [None, "02:00"])
    assert await look("02:00") == (None, True, [None, None])


async def test_pending_job_moved(connection: Link, ears: Ears) -> None:
    """Moving a pending job to an earlier time or another queue wakes; moving it to a later time does not."""
    await sleep(connection, ANN, queues=("default", "second"))
    job_id = await enqueue(connection, scheduled_at="2100-01-01")
    await ears.heard()
    await connection.execute("update pgnotifyq.jobs set scheduled_at = '2101-01-01' where id = %s", (job_id,))
    assert await ears.heard() == []
    await connection.execute("update pgnotifyq.jobs set scheduled_at = clock_timestamp() where id = %s", (job_id,))
    assert await ears.heard() == [("ann", "work default")]
    await connection.execute("update pgnotifyq.jobs set queue_name = 'second' where id = %s", (job_id,))
    assert await ears.heard() == [("ann", "work second")]


@pytest.mark.parametrize("ending", ["retry", "snooze", "release"])
async def test_job_given_back(connection: Link, ears: Ears, ending: str) -> None:
    """A job that becomes pending again wakes as a new one does."""
    await enqueue(connection)
    job = await claim_one(connection)
    await sleep(connection, BOB)
    await settle(connection, job, ENDINGS[ending])
    assert await ears.heard() == [("bob", "work default")]


async def test_job_reclaimed_or_requeued(connection: Link, ears: Ears) -> None:
    """So does one that was taken back, and one brought back from the dead."""
    job_id = await enqueue(connection)
    await claim_one(connection)
    await sleep(connection, BOB)
    await pass_time(connection, 61)
    await reclaim(connection)
    assert await ears.heard() == [("bob", "work default")]
    await settle(connection, await claim_one(connection), ENDINGS["bury"])
    assert await ears.heard() == []
    await connection.execute("select pgnotifyq.requeue(%s)", (job_id,))
    assert await ears.heard() == [("bob", f"work default {job_id}")]


async def test_claim_that_leaves_due_work(connection: Link, ears: Ears) -> None:
    """A claim that is full wakes another for what is due behind it; one that took all there was does not."""
    for _ in range(3):
        await enqueue(connection)
    await sleep(connection, BOB)
    await claim(connection, 1)
    assert await ears.heard() == [("bob", "work default")]
    await claim(connection, 2)
    assert await ears.heard() == []


async def test_worker_that_leaves(connection: Link, ears: Ears) -> None:
    """Whoever still sleeps looks once when a worker leaves, for the wake-up that was on its way to it."""
    for worker in (ANN, BOB):
        await ask(connection, workers.register( SCHEMA, worker_id=worker, host="here", pid=1, queues=["default"], slots=1, version="0",
            has_session=True, lease_seconds=60.0,
        ))  # fmt: skip
    assert await ears.heard() == [("everybody", "+company")] * 2
    await sleep(connection, ANN, BOB)
    await ask(connection, workers.unregister(SCHEMA, ANN))
    assert await ears.heard() == [("bob", "work default")]
    assert await fetch(connection, "select worker_id from pgnotifyq.sleepers") == [(BOB,)]


async def test_cancel_reaches_the_worker_that_holds_the_job(connection: Link, ears: Ears) -> None:
    """A cancel is told to the holder alone, with job and execution; cancelling a pending job tells nobody."""
    await sleep(connection, BOB)
    job_id = await enqueue(connection)
    pending = await enqueue(connection)
    job = await claim_one(connection)
    await ears.heard()
    await update_status(connection, job_id)
    assert await ears.heard() == [("ann", f"cancel {job_id} {job.current_execution_id}")]
    await update_status(connection, pending)
    assert await ears.heard() == []


@pytest.mark.parametrize("end", ["complete plainly", "complete", "cancel", "bury", "cancelled while pending", "dead by reclaim"])
async def test_end_that_somebody_waits_for(connection: Link, ears: Ears, end: str) -> None:
    """The end of a job is announced once if somebody waits for it, whichever way it ends, and not otherwise."""
    for awaited in (False, True):
        await pass_time(connection, 0)
        job_id = await enqueue(connection, max_attempts=1)
        if awaited:
            assert await value(connection, "select pgnotifyq.await_job(%s)", job_id)
        if end == "cancelled while pending":
            await update_status(connection, job_id)
        else:
            job = await claim_one(connection)
            if end == "dead by reclaim":
                await pass_time(connection, 61)
                await reclaim(connection)
            else:
                await settle(connection, job, ENDINGS[end])
        assert await ears.heard() == ([("waiters", str(job_id))] if awaited else [])
        assert not await value(connection, "select pgnotifyq.await_job(%s)", job_id)


async def test_awaited_job_that_is_stopping(connection: Link, ears: Ears) -> None:
    """A cancel of a running job is no end yet: waiters hear of it when the handler has ended."""
    job_id = await enqueue(connection)
    job = await claim_one(connection)
    await connection.execute("select pgnotifyq.await_job(%s)", (job_id,))
    await update_status(connection, job_id)
    assert await ears.heard() == [("ann", f"cancel {job_id} {job.current_execution_id}")]
    await settle(connection, job, PLAIN_COMPLETION)
    assert await ears.heard() == [("waiters", str(job_id))]
    assert (await existing(connection, job_id))["status"] == "cancelled"


async def test_sleepers_are_woken_for_what_they_have_handlers_for(connection: Link, ears: Ears) -> None:
    """An insert, a retry, a release of a handler's queue and a full worker's claim leave those alone who could only look in vain."""
    await connection.execute("delete from pgnotifyq.sleepers")
    await connection.execute("select pgnotifyq.fall_asleep(%s, '{default}', '{mine}')", (ANN,))
    await enqueue(connection, "other")
    assert await ears.heard() == []
    job = await claim_one(connection)
    await settle(connection, job, ENDINGS["release"])
    assert await ears.heard() == []
    await connection.execute("select pgnotifyq.wake_up(%s, '{default}')", (BOB,))
    assert await ears.heard() == []
    await enqueue(connection, "mine", priority=-1)
    assert [who for who, _ in await ears.heard()] == ["ann"]
    await enqueue(connection, "other", priority=5)
    await claim_one(connection, worker=BOB)  # full: what is due behind is for others, and one of them can run it
    assert [who for who, _ in await ears.heard()] == ["ann"]


async def test_sleepers_that_hear_nothing(connection: Link, other: Link, ears: Ears) -> None:
    """Sleepers whose session is gone leave the list at the next look. All who sleep on their queues look, for they may have missed something."""
    ghosts = [WorkerId(uuid.uuid4()) for _ in range(50)]
    await sleep(connection, ANN, queues=("default", "second"))
    await ask(other, workers.hold_session(SCHEMA, ANN))  # her row is gone: her session alone speaks for her
    await sleep(connection, BOB, queues=("default",))
    await sleep(connection, *ghosts, queues=("default", "third"))
    await ask(connection, workers.watch(SCHEMA, BOB, 1.0))
    left = await fetch(connection, "select worker_id, queue_name from pgnotifyq.sleepers order by queue_name, worker_id")
    assert left == sorted([(ANN, "default"), (BOB, "default"), (ANN, "second")], key=lambda row: (row[1], row[0]))
    assert await ears.heard() == [("ann", "work default"), ("bob", "work default")]
    await ask(connection, workers.watch(SCHEMA, BOB, 1.0))
    assert await ears.heard() == []


async def test_sleepers_that_hear_nothing_and_somebody_holds(connection: Link, other: Link) -> None:
    """A look does not wait for a row of a sleeper that somebody holds. A later look takes it off the list."""
    await sleep(connection, *CATS)
    async with other.transaction():
        await other.execute("select from pgnotifyq.sleepers where worker_id = %s for update", (CATS[0],))
        await ask(connection, workers.watch(SCHEMA, BOB, 1.0))
        assert await fetch(connection, "select worker_id from pgnotifyq.sleepers") == [(CATS[0],)]
    await ask(connection, workers.watch(SCHEMA, BOB, 1.0))
    assert await fetch(connection, "select worker_id from pgnotifyq.sleepers") == []
