"""Wake-ups: sleepers are told, each on its own channel, and nobody is told while nobody sleeps."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from pgnotifyq.ledger import claim as claim_verbs
from pgnotifyq.ledger import workers
from pgnotifyq.model.job import WorkerId
from pgnotifyq.model.outcome import PLAIN_COMPLETION
from pgnotifyq.wire.asking import ask_blocking
from pgnotifyq.wire.blocking import Connection, listen, wait_notifications
from tests.ledger.support import (
    ANN,
    BOB,
    ENDINGS,
    PATIENCE_SECONDS,
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

    def open(self) -> None:
        for worker, name in CAST.items():
            self._names[ask_blocking(self._connection, workers.worker_channel(SCHEMA, worker))] = name
        for channel in self._names:
            listen(self._connection, channel)

    def heard(self) -> list[tuple[str, str]]:
        """Return (who, what) of all that was committed before this call; nothing in the queue overtakes the marker."""
        self._connection.execute("select pg_notify('marker', '')")
        found: list[tuple[str, str]] = []
        while True:
            notes = wait_notifications(self._connection, PATIENCE_SECONDS)
            assert notes, f"no marker within {PATIENCE_SECONDS} s"
            for note in notes:
                if note.channel == "marker":
                    return sorted(found)
                found.append((self._names[note.channel], note.payload))


@pytest.fixture
def ears(other: Link) -> Ears:
    """Give a session that hears everything."""
    ears = Ears(other)
    ears.open()
    return ears


def sleep(connection: Link, *names: WorkerId, queues: tuple[str, ...] = ("default",)) -> None:
    for worker in names:
        ask_blocking(connection, workers.fall_asleep(SCHEMA, worker, queues))


def test_nobody_sleeps(connection: Link, ears: Ears) -> None:
    """An insert notifies nobody while nobody sleeps: the server's notify lock is not taken."""
    enqueue(connection)
    assert ears.heard() == []


def test_sleeper_is_told_and_it_alone(connection: Link, ears: Ears) -> None:
    """A sleeper hears of its queue on its own channel; a sleeper on another queue hears nothing."""
    sleep(connection, ANN)
    sleep(connection, BOB, queues=("elsewhere",))
    job_id = enqueue(connection)
    assert ears.heard() == [("ann", f"work default {job_id}")]


def test_insert_by_hand(connection: Link, ears: Ears) -> None:
    """A plain insert by anybody wakes as enqueue() does."""
    sleep(connection, ANN)
    job_id = value(connection, "insert into pgnotifyq.jobs (job_type) values ('noop') returning id")
    assert ears.heard() == [("ann", f"work default {job_id}")]


def test_one_job_and_many_sleepers(connection: Link, ears: Ears) -> None:
    """One job wakes two of five; ten jobs in a statement wake all."""
    sleep(connection, *CATS)
    enqueue(connection)
    assert len(ears.heard()) == 2
    connection.execute("insert into pgnotifyq.jobs (job_type) select 'noop' from generate_series(1, 10)")
    assert ears.heard() == [(f"cat{n}", "work default") for n in range(5)]


def test_many_inserts_of_one_transaction(connection: Link, ears: Ears) -> None:
    """A transaction names the first job that is due. Its other wake-ups are alike, and merge into one a queue."""
    sleep(connection, ANN, queues=("default", "second"))
    with connection.transaction():
        enqueue(connection, scheduled_at="2100-01-01")
        first = enqueue(connection)
        for _ in range(5):
            enqueue(connection)
            enqueue(connection, queue_name="second")
    assert ears.heard() == [("ann", "work default"), ("ann", f"work default {first}"), ("ann", "work second")]
    job_id = enqueue(connection)
    assert ears.heard() == [("ann", f"work default {job_id}")]


def test_insert_rolled_back(connection: Link, ears: Ears) -> None:
    """A business transaction that rolls back leaves neither job nor wake-up."""
    sleep(connection, ANN)
    with connection.transaction(force_rollback=True):
        enqueue(connection)
    assert ears.heard() == []
    assert value(connection, "select count(*) from pgnotifyq.jobs") == 0


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_list_of_sleepers_as_old_as_the_transaction(connection: Link, other: Link, ears: Ears, level: str) -> None:
    """Where the trigger looks through an old snapshot everybody is told: a sleeper it cannot see would be missed."""
    connection.execute(f"set default_transaction_isolation = '{level}'".encode())
    with connection.transaction():
        connection.execute("select from pgnotifyq.jobs")
        sleep(other, ANN)
        enqueue(connection)
    assert ears.heard() == [("everybody", "default")]


def test_awake_again(connection: Link, ears: Ears) -> None:
    """A worker that has taken itself off the list hears nothing, and hands on the wake-up that found it full."""
    enqueue(connection, queue_name="second")
    sleep(connection, ANN, BOB, queues=("default", "second"))
    ask_blocking(connection, workers.wake_up(SCHEMA, ANN, ["default", "second"]))
    assert ears.heard() == [("bob", "work second")]
    job_id = enqueue(connection)
    assert ears.heard() == [("bob", f"work default {job_id}")]


def test_job_of_the_future_and_what_sleepers_expect(connection: Link, ears: Ears) -> None:
    """A future job wakes who would otherwise sleep past it, and not who looks earlier anyway."""
    sleep(connection, ANN)
    enqueue(connection, scheduled_at="2100-01-01")
    assert ears.heard() == [("ann", "work default")]
    connection.execute("update pgnotifyq.sleepers set expects_at = '2090-01-01'")
    enqueue(connection, scheduled_at="2095-01-01")
    assert ears.heard() == []
    enqueue(connection, scheduled_at="2085-01-01")
    assert ears.heard() == [("ann", "work default")]
    job_id = enqueue(connection)
    assert ears.heard() == [("ann", f"work default {job_id}")]


def test_promise_whose_time_has_passed(connection: Link, ears: Ears) -> None:
    """What a sleeper expected, and has not looked for, counts for nothing: it is told of later jobs."""
    sleep(connection, ANN)
    connection.execute("update pgnotifyq.sleepers set expects_at = '2020-01-01'")
    enqueue(connection, scheduled_at="2100-01-01")
    assert ears.heard() == [("ann", "work default")]


def test_what_a_sleepers_claim_promises(connection: Link) -> None:
    """A sleeper's claim lowers what it expects, keeps a promise until its time, and reports one that has passed."""

    def look(at: str) -> tuple[float | None, bool, list[object]]:
        connection.execute("select set_config('pgnotifyq.clock', %s, false)", (f"2030-01-01 00:{at}+00",))
        found = ask_blocking(
            connection,
            claim_verbs.claim(SCHEMA, worker_id=ANN, queues=["a", "b"], jobs_max=9, lease_seconds=60.0, is_asleep=True),
        )
        rows = fetch(
            connection, "select to_char(expects_at at time zone 'utc', 'MI:SS') from pgnotifyq.sleepers order by queue_name"
        )
        return found.next_due_seconds, found.snapshot_xmin is None, [row[0] for row in rows]

    sleep(connection, ANN, queues=("a", "b"))
    early = enqueue(connection, queue_name="a", scheduled_at="2030-01-01 00:01:00+00")
    enqueue(connection, queue_name="b", scheduled_at="2030-01-01 00:02:00+00")
    assert look("00:30") == (30, False, ["01:00", "02:00"])
    update_status(connection, early)
    assert look("00:40") == (20, False, ["01:00", "02:00"])  # some inserter may count on it
    assert look("01:00") == (60, True, [None, "02:00"])
    assert look("01:10") == (50, False, [None, "02:00"])
    assert look("02:00") == (None, True, [None, None])


def test_pending_job_moved(connection: Link, ears: Ears) -> None:
    """Moving a pending job to an earlier time or another queue wakes; moving it to a later time does not."""
    sleep(connection, ANN, queues=("default", "second"))
    job_id = enqueue(connection, scheduled_at="2100-01-01")
    ears.heard()
    connection.execute("update pgnotifyq.jobs set scheduled_at = '2101-01-01' where id = %s", (job_id,))
    assert ears.heard() == []
    connection.execute("update pgnotifyq.jobs set scheduled_at = clock_timestamp() where id = %s", (job_id,))
    assert ears.heard() == [("ann", "work default")]
    connection.execute("update pgnotifyq.jobs set queue_name = 'second' where id = %s", (job_id,))
    assert ears.heard() == [("ann", "work second")]


@pytest.mark.parametrize("ending", ["retry", "snooze", "release"])
def test_job_given_back(connection: Link, ears: Ears, ending: str) -> None:
    """A job that becomes pending again wakes as a new one does."""
    enqueue(connection)
    job = claim_one(connection)
    sleep(connection, BOB)
    settle(connection, job, ENDINGS[ending])
    assert ears.heard() == [("bob", "work default")]


def test_job_reclaimed_or_requeued(connection: Link, ears: Ears) -> None:
    """So does one that was taken back, and one brought back from the dead."""
    job_id = enqueue(connection)
    claim_one(connection)
    sleep(connection, BOB)
    pass_time(connection, 61)
    reclaim(connection)
    assert ears.heard() == [("bob", "work default")]
    settle(connection, claim_one(connection), ENDINGS["bury"])
    assert ears.heard() == []
    connection.execute("select pgnotifyq.requeue(%s)", (job_id,))
    assert ears.heard() == [("bob", f"work default {job_id}")]


def test_claim_that_leaves_due_work(connection: Link, ears: Ears) -> None:
    """A claim that is full wakes another for what is due behind it; one that took all there was does not."""
    for _ in range(3):
        enqueue(connection)
    sleep(connection, BOB)
    claim(connection, 1)
    assert ears.heard() == [("bob", "work default")]
    claim(connection, 2)
    assert ears.heard() == []


def test_worker_that_leaves(connection: Link, ears: Ears) -> None:
    """Whoever still sleeps looks once when a worker leaves, for the wake-up that was on its way to it."""
    for worker in (ANN, BOB):
        ask_blocking(connection, workers.register( SCHEMA, worker_id=worker, host="here", pid=1, queues=["default"], slots=1, version="0",
            has_session=True, lease_seconds=60.0,
        ))  # fmt: skip
    assert ears.heard() == [("everybody", "+company")] * 2
    sleep(connection, ANN, BOB)
    ask_blocking(connection, workers.unregister(SCHEMA, ANN))
    assert ears.heard() == [("bob", "work default")]
    assert fetch(connection, "select worker_id from pgnotifyq.sleepers") == [(BOB,)]


def test_cancel_reaches_the_worker_that_holds_the_job(connection: Link, ears: Ears) -> None:
    """A cancel is told to the holder alone, with job and execution; cancelling a pending job tells nobody."""
    sleep(connection, BOB)
    job_id = enqueue(connection)
    pending = enqueue(connection)
    job = claim_one(connection)
    ears.heard()
    update_status(connection, job_id)
    assert ears.heard() == [("ann", f"cancel {job_id} {job.current_execution_id}")]
    update_status(connection, pending)
    assert ears.heard() == []


@pytest.mark.parametrize("end", ["complete plainly", "complete", "cancel", "bury", "cancelled while pending", "dead by reclaim"])
def test_end_that_somebody_waits_for(connection: Link, ears: Ears, end: str) -> None:
    """The end of a job is announced once if somebody waits for it, whichever way it ends, and not otherwise."""
    for awaited in (False, True):
        pass_time(connection, 0)
        job_id = enqueue(connection, max_attempts=1)
        if awaited:
            assert value(connection, "select pgnotifyq.await_job(%s)", job_id)
        if end == "cancelled while pending":
            update_status(connection, job_id)
        else:
            job = claim_one(connection)
            if end == "dead by reclaim":
                pass_time(connection, 61)
                reclaim(connection)
            else:
                settle(connection, job, ENDINGS[end])
        assert ears.heard() == ([("waiters", str(job_id))] if awaited else [])
        assert not value(connection, "select pgnotifyq.await_job(%s)", job_id)


def test_awaited_job_that_is_stopping(connection: Link, ears: Ears) -> None:
    """A cancel of a running job is no end yet: waiters hear of it when the handler has ended."""
    job_id = enqueue(connection)
    job = claim_one(connection)
    connection.execute("select pgnotifyq.await_job(%s)", (job_id,))
    update_status(connection, job_id)
    assert ears.heard() == [("ann", f"cancel {job_id} {job.current_execution_id}")]
    settle(connection, job, PLAIN_COMPLETION)
    assert ears.heard() == [("waiters", str(job_id))]
    assert existing(connection, job_id)["status"] == "cancelled"


def test_sleepers_are_woken_for_what_they_have_handlers_for(connection: Link, ears: Ears) -> None:
    """An insert, a retry, a release of a handler's queue and a full worker's claim leave those alone who could only look in vain."""
    connection.execute("delete from pgnotifyq.sleepers")
    connection.execute("select pgnotifyq.fall_asleep(%s, '{default}', '{mine}')", (ANN,))
    enqueue(connection, "other")
    assert ears.heard() == []
    job = claim_one(connection)
    settle(connection, job, ENDINGS["release"])
    assert ears.heard() == []
    connection.execute("select pgnotifyq.wake_up(%s, '{default}')", (BOB,))
    assert ears.heard() == []
    enqueue(connection, "mine", priority=-1)
    assert [who for who, _ in ears.heard()] == ["ann"]
    enqueue(connection, "other", priority=5)
    claim_one(connection, worker=BOB)  # full: what is due behind is for others, and one of them can run it
    assert [who for who, _ in ears.heard()] == ["ann"]


def test_sleepers_that_hear_nothing(connection: Link, other: Link, ears: Ears) -> None:
    """Sleepers whose session is gone leave the list at the next look. All who sleep on their queues look, for they may have missed something."""
    ghosts = [WorkerId(uuid.uuid4()) for _ in range(50)]
    sleep(connection, ANN, queues=("default", "second"))
    ask_blocking(other, workers.hold_session(SCHEMA, ANN))  # her row is gone: her session alone speaks for her
    sleep(connection, BOB, queues=("default",))
    sleep(connection, *ghosts, queues=("default", "third"))
    ask_blocking(connection, workers.watch(SCHEMA, BOB, 1.0))
    left = fetch(connection, "select worker_id, queue_name from pgnotifyq.sleepers order by queue_name, worker_id")
    assert left == sorted([(ANN, "default"), (BOB, "default"), (ANN, "second")], key=lambda row: (row[1], row[0]))
    assert ears.heard() == [("ann", "work default"), ("bob", "work default")]
    ask_blocking(connection, workers.watch(SCHEMA, BOB, 1.0))
    assert ears.heard() == []


def test_sleepers_that_hear_nothing_and_somebody_holds(connection: Link, other: Link) -> None:
    """A look does not wait for a row of a sleeper that somebody holds. A later look takes it off the list."""
    sleep(connection, *CATS)
    with other.transaction():
        other.execute("select from pgnotifyq.sleepers where worker_id = %s for update", (CATS[0],))
        ask_blocking(connection, workers.watch(SCHEMA, BOB, 1.0))
        assert fetch(connection, "select worker_id from pgnotifyq.sleepers") == [(CATS[0],)]
    ask_blocking(connection, workers.watch(SCHEMA, BOB, 1.0))
    assert fetch(connection, "select worker_id from pgnotifyq.sleepers") == []
