"""One row that cannot be written is put aside; the others are written, and it is ended as it was meant once it can be."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from pgnotifyq.ledger import end, explaining, look
from pgnotifyq.model.errors import IllegalTransition
from pgnotifyq.model.job import JobId
from pgnotifyq.model.outcome import Outcome, SettleKind
from pgnotifyq.wire.asking import ask_blocking
from pgnotifyq.wire.blocking import Connection
from tests.ledger.obstacles import ALWAYS, AT_BURIAL, AT_DEATH, CLEAR, clear, obstruct
from tests.ledger.support import (
    ANN,
    BOB,
    ENDINGS,
    SCHEMA,
    beat,
    claim,
    claim_one,
    dead_letter,
    enqueue,
    existing,
    fetch,
    history,
    lease,
    pass_time,
    reclaim,
    row,
    settle,
    update_status,
    value,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pgnotifyq.ledger.lease import Surprise

Link = Connection[Any]
ASIDE_SECONDS = 100_000.0  # every next look comes before
# What a job is after an ending, once it could be written.
AFTER = {
    "complete plainly": ("completed", "completed"), "complete": ("completed", "completed"), "retry": ("pending", "failed"),
    "snooze": ("pending", "snoozed"), "release": ("pending", "released"), "cancel": ("cancelled", "cancelled"),
    "bury": ("dead", "failed"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def users_own(dsn: str) -> Iterator[None]:
    """Take away what a test put into the schema."""
    yield
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(CLEAR)


def became(connection: Link, job_id: JobId) -> str:
    """Return what a job is by now, a dead letter included."""
    found = row(connection, job_id)
    if found is None:
        return "dead" if dead_letter(connection, job_id) else "gone"
    return str(found["status"])


def two(connection: Link) -> tuple[JobId, list[Any]]:
    """Enqueue and claim two jobs; return the first, who is to be the victim, and both."""
    victim = enqueue(connection)
    enqueue(connection)
    return victim, claim(connection, 2)


def settle_all(connection: Link, claimed: list[Any], ending: Outcome) -> dict[JobId, Surprise]:
    """Settle executions in one batch, in one way, as a worker does in the end; return the surprises."""
    settlements = [(lease(job), ending) for job in claimed]
    try:
        found = ask_blocking(connection, end.settle_surely(SCHEMA, worker_id=ANN, settlements=settlements))
    except psycopg.OperationalError:  # what passes, as a rule
        found = ask_blocking(connection, end.settle_apart(SCHEMA, worker_id=ANN, settlements=settlements))
    return {surprise.job_id: surprise for surprise in found}


@pytest.mark.parametrize(
    ("obstacle", "ending"),
    [(obstacle, ending) for obstacle in ALWAYS for ending in ENDINGS if obstacle == "raises" or ending in {"complete", "bury"}],
)
def test_outcome_that_cannot_be_written(connection: Link, obstacle: str, ending: str) -> None:
    """It is put aside, its neighbour ends as asked; and with the obstacle gone it ends as it was meant, its one attempt with it."""
    victim, claimed = two(connection)
    (neighbour,) = [job.id for job in claimed if job.id != victim]
    obstruct(connection, ALWAYS[obstacle], victim)
    surprises = settle_all(connection, claimed, ENDINGS[ending])
    assert {job_id: surprise.became for job_id, surprise in surprises.items()} == {victim: "refused"}
    assert became(connection, neighbour) == AFTER[ending][0]
    (trouble,) = ask_blocking(connection, look.list_troubles(SCHEMA))
    assert (trouble.job_id, trouble.verb, trouble.tries) == (victim, ENDINGS[ending].kind, 1)
    assert trouble.wish == ENDINGS[ending].name
    assert ask_blocking(connection, look.count_troubles(SCHEMA)) == {ENDINGS[ending].kind: 1}
    assert existing(connection, victim)["status"] == "running"

    pass_time(connection, ASIDE_SECONDS)
    assert reclaim(connection) == {victim: "refused"}
    clear(connection)
    assert reclaim(connection) == {}  # not yet
    pass_time(connection, 2 * ASIDE_SECONDS)
    assert reclaim(connection) == {victim: AFTER[ending][0]}
    assert became(connection, victim) == AFTER[ending][0]
    assert history(connection, victim) == [(1, AFTER[ending][1])]
    assert ask_blocking(connection, look.list_troubles(SCHEMA)) == []


@pytest.mark.parametrize("obstacle", [*AT_DEATH, *AT_BURIAL])
def test_death_that_cannot_be_written(connection: Link, obstacle: str) -> None:
    """The job that died keeps its row, its error and the reason; it is buried once that can be."""
    victim, claimed = two(connection)
    obstruct(connection, {**AT_DEATH, **AT_BURIAL}[obstacle], victim)
    surprises = settle_all(connection, claimed, ENDINGS["bury"])
    assert surprises[victim].became == "refused"
    clear(connection)
    pass_time(connection, ASIDE_SECONDS)
    assert (reclaim(connection))[victim] == "dead"
    letter = dead_letter(connection, victim)
    assert letter is not None
    assert (letter["reason"], letter["error_message"], len(letter["history"])) == ("exhausted", "hopeless", 1)


@pytest.mark.parametrize("obstacle", [*ALWAYS])
def test_job_that_cannot_be_taken_back(connection: Link, obstacle: str) -> None:
    """Of two jobs that were lost one is taken back and the other put aside, until it can be."""
    victim, claimed = two(connection)
    (neighbour,) = [job.id for job in claimed if job.id != victim]
    obstruct(connection, ALWAYS[obstacle], victim)
    pass_time(connection, 100)
    assert reclaim(connection) == {victim: "refused", neighbour: "pending"}
    assert reclaim(connection) == {}
    clear(connection)
    pass_time(connection, ASIDE_SECONDS)
    assert reclaim(connection) == {victim: "pending"}
    assert ask_blocking(connection, look.list_troubles(SCHEMA)) == []


@pytest.mark.parametrize("obstacle", [*AT_DEATH, *AT_BURIAL])
def test_job_lost_on_its_last_attempt_that_cannot_die(connection: Link, obstacle: str) -> None:
    """The same of a job whose last attempt was lost."""
    victim = enqueue(connection, max_attempts=1)
    claim_one(connection)
    obstruct(connection, {**AT_DEATH, **AT_BURIAL}[obstacle], victim)
    pass_time(connection, 100)
    assert reclaim(connection) == {victim: "refused"}
    clear(connection)
    pass_time(connection, ASIDE_SECONDS)
    assert reclaim(connection) == {victim: "dead"}


def test_next_look_is_when_the_trouble_says(connection: Link) -> None:
    """A reclaimer does not look again and again for what was put aside: it sleeps until the next look."""
    victim = enqueue(connection)
    claim_one(connection)
    obstruct(connection, ALWAYS["raises"], victim)
    pass_time(connection, 100)
    for expected in (10, 20, 40, 80):
        reclaim(connection)
        ((seconds,),) = fetch(connection, "select next_seconds from pgnotifyq.reclaim(%s, 10) where job_id is null", BOB)
        assert seconds == pytest.approx(expected, abs=1e-3)
        value(connection, "select set_config('pgnotifyq.clock', max(look_at)::text, false) from pgnotifyq.job_troubles")


def test_worker_of_a_job_that_was_put_aside(connection: Link) -> None:
    """The row of a dead worker goes although one of its jobs cannot be taken back."""
    victim, _ = two(connection)
    connection.execute(
        "insert into pgnotifyq.worker_heartbeats (worker_id, host, pid, queues, slots, version, started_at, last_beat_at, has_session,"
        " session_lost_at, lease_seconds) values (%s, 'h', 1, '{default}', 1, '0', now(), now(), true, now(), 60)",
        (ANN,),
    )
    obstruct(connection, ALWAYS["raises"], victim)
    assert (reclaim(connection, dead=[ANN]))[victim] == "refused"
    assert value(connection, "select count(*) from pgnotifyq.worker_heartbeats") == 0


@pytest.mark.parametrize("obstacle", ["raises", "misses a table", "returns null", "raises at commit"])
def test_suspect_that_cannot_be_let_out(connection: Link, obstacle: str) -> None:
    """It is put aside, and the next suspect of its worker has its turn."""
    first, second = [enqueue(connection) for _ in range(2)]
    connection.execute(
        "update pgnotifyq.jobs set suspicion = 'parked', suspected_with = %s, scheduled_at = now() + interval '1 hour'", (ANN,)
    )
    obstruct(connection, ALWAYS[obstacle], first)
    for _ in range(2):
        reclaim(connection)
    let_out = fetch(connection, "select id from pgnotifyq.jobs where suspicion = 'on_trial'")
    assert let_out == [(second,)]


@pytest.mark.parametrize("obstacle", [*AT_DEATH, "raises", "misses a table", "asserts", "returns null", "raises at commit"])
def test_job_that_cannot_be_pruned(connection: Link, obstacle: str) -> None:
    """The others are deleted, and it is put aside; the next pass leaves it alone, a later one deletes it."""
    victim, claimed = two(connection)
    settle_all(connection, claimed, ENDINGS["complete"])
    obstruct(connection, {**AT_DEATH, **ALWAYS}[obstacle], victim)
    pass_time(connection, 100)
    prune = {"older_than_seconds": 10.0, "after_id": None, "jobs_max": 10}
    assert ask_blocking(connection, end.prune(SCHEMA, **prune)) == (1, None)  # type: ignore[arg-type]
    assert became(connection, victim) == "completed"
    assert len(history(connection, victim)) == 1
    clear(connection)
    pass_time(connection, ASIDE_SECONDS)
    assert ask_blocking(connection, end.prune(SCHEMA, **prune)) == (1, None)  # type: ignore[arg-type]
    reclaim(connection)
    assert became(connection, victim) == "gone"
    assert ask_blocking(connection, look.list_troubles(SCHEMA)) == []


@pytest.mark.parametrize("obstacle", [name for name in ALWAYS if "history" not in name])
def test_lease_that_cannot_be_renewed(connection: Link, obstacle: str) -> None:
    """The others are renewed; of this one the worker is told that it was not."""
    victim, claimed = two(connection)
    obstruct(connection, ALWAYS[obstacle], victim)
    before = {job.id: job.lease_expires_at for job in claimed}
    pass_time(connection, 30)
    assert beat(connection, *claimed) == {victim: "unrenewed"}
    after = dict(fetch(connection, "select id, lease_expires_at from pgnotifyq.jobs"))
    assert {job_id for job_id in before if after[job_id] > before[job_id]} == {job.id for job in claimed} - {victim}


def test_lease_whose_row_somebody_holds(connection: Link, other: Link) -> None:
    """A lock on one row does not keep the leases of others from being renewed."""
    victim, claimed = two(connection)
    with other.transaction():
        other.execute("select from pgnotifyq.jobs where id = %s for update", (victim,))
        assert beat(connection, *claimed, lease_seconds=1.2) == {victim: "unrenewed"}
    assert beat(connection, *claimed) == {}


def test_outcome_whose_row_somebody_holds(connection: Link, other: Link) -> None:
    """The others are written; this one is busy, and is written when it can be; or it is put aside when it never can."""
    victim, claimed = two(connection)
    settlements = [(lease(job), ENDINGS["complete"]) for job in claimed]
    with other.transaction():
        other.execute("select from pgnotifyq.jobs where id = %s for update", (victim,))
        told = ask_blocking(connection, end.settle_apart(SCHEMA, worker_id=ANN, settlements=settlements, is_last=False))
        assert [(surprise.job_id, surprise.became) for surprise in told] == [(victim, "busy")]
        told = ask_blocking(connection, end.settle_apart(SCHEMA, worker_id=ANN, settlements=settlements, is_last=True))
        assert [(surprise.job_id, surprise.became) for surprise in told] == [(victim, "refused")]
    assert ask_blocking(connection, end.settle_apart(SCHEMA, worker_id=ANN, settlements=settlements)) == []
    assert fetch(connection, "select distinct status from pgnotifyq.jobs") == [("completed",)]
    assert ask_blocking(connection, look.list_troubles(SCHEMA)) == []


def test_texts_that_cannot_be_stored(connection: Link) -> None:
    """An outcome whose result or message is refused is written without them, and says so; its neighbour keeps its own."""
    victim, claimed = two(connection)
    bad = Outcome(kind=SettleKind.COMPLETE, name="completed", result_json='"\\u0000"')
    settlements = [(lease(job), bad if job.id == victim else ENDINGS["complete"]) for job in claimed]
    told = ask_blocking(connection, end.settle_surely(SCHEMA, worker_id=ANN, settlements=settlements))
    assert [(surprise.job_id, surprise.became) for surprise in told] == [(victim, "bare")]
    found = dict(fetch(connection, "select id, result from pgnotifyq.jobs"))
    assert found.pop(victim) is None
    assert list(found.values()) == [{"n": 1}]


@pytest.mark.parametrize("ending", ["complete", "complete plainly", "retry", "bury"])
def test_cancel_of_a_job_that_was_put_aside(connection: Link, ending: str) -> None:
    """It wins, as over any outcome that is not durable."""
    victim, claimed = two(connection)
    obstruct(connection, ALWAYS["refuses its history"], victim)
    settle_all(connection, claimed, ENDINGS[ending])
    update_status(connection, victim)
    clear(connection)
    pass_time(connection, ASIDE_SECONDS)
    assert (reclaim(connection))[victim] == "cancelled"
    assert became(connection, victim) == "cancelled"


def test_release_all_beside_one_that_cannot_be_released(connection: Link) -> None:
    """The last words of a worker release all others; the one is released later, uncharged."""
    victim, claimed = two(connection)
    obstruct(connection, ALWAYS["raises"], victim)
    assert value(connection, "select pgnotifyq.release_all(%s)", ANN) == len(claimed)
    assert dict(fetch(connection, "select status, count(*) from pgnotifyq.jobs group by 1")) == {"pending": 1, "running": 1}
    clear(connection)
    pass_time(connection, ASIDE_SECONDS)
    assert reclaim(connection) == {victim: "pending"}
    assert existing(connection, victim)["attempts"] == 0


def test_payload_too_large_to_be_moved(connection: Link) -> None:
    """A job that was inserted with a huge payload is put aside when it dies, whoever finds it dead; cancelled, it ends where it is."""
    victim, claimed = two(connection)
    connection.execute(
        "update pgnotifyq.jobs set payload = (select jsonb_agg(md5(i::text)) from generate_series(1, 150000) as i) where id = %s",
        (victim,),
    )
    surprises = settle_all(connection, claimed, ENDINGS["bury"])
    assert {job_id: surprise.sqlstate for job_id, surprise in surprises.items()} == {victim: "54000"}
    connection.execute("delete from pgnotifyq.job_troubles")
    connection.execute("update pgnotifyq.jobs set max_attempts = 1")
    pass_time(connection, 100)
    assert reclaim(connection) == {victim: "refused"}
    update_status(connection, victim)
    pass_time(connection, ASIDE_SECONDS)
    assert reclaim(connection) == {victim: "cancelled"}


def test_release_all_of_what_was_put_aside(connection: Link) -> None:
    """A completion that could not be written is not turned into a release by the worker's end: the work is not done again."""
    victim, claimed = two(connection)
    obstruct(connection, ALWAYS["raises"], victim)
    settle_all(connection, claimed, ENDINGS["complete"])
    assert value(connection, "select pgnotifyq.release_all(%s)", ANN) == 0
    clear(connection)
    pass_time(connection, ASIDE_SECONDS)
    assert reclaim(connection) == {victim: "completed"}


def test_explain_of_a_job_that_was_put_aside(connection: Link) -> None:
    """It says what could not be done, what was said, and when it is tried again."""
    victim, claimed = two(connection)
    obstruct(connection, ALWAYS["raises"], victim)
    pass_time(connection, 1)
    settle_all(connection, claimed, ENDINGS["complete"])
    for job in claimed:
        why = ask_blocking(connection, explaining.explain(SCHEMA, job.id))
        assert why is not None
        expected = ("complete", "not this one", 10) if job.id == victim else (None, None, None)
        assert (why.trouble_with, why.trouble, why.trouble_look_in_seconds) == expected


def test_letter_copied_back_by_hand_that_dies_again(connection: Link) -> None:
    """The older letter stays, and the newer is kept beside it, with the history of both lives."""
    job_id = enqueue(connection, max_attempts=1)
    settle(connection, claim_one(connection), ENDINGS["bury"])
    before = dead_letter(connection, job_id)
    copied = (
        "insert into pgnotifyq.jobs (id, org_id, queue_name, job_type, payload, max_attempts)"
        " select id, org_id, queue_name, job_type, payload, max_attempts from pgnotifyq.dead_letter_jobs"
    )
    connection.execute(copied.encode())
    assert (settle_all(connection, [claim_one(connection)], ENDINGS["bury"])) == {}
    assert dead_letter(connection, job_id) == before
    ((history_length, error),) = fetch(
        connection, "select jsonb_array_length(history), error_message from pgnotifyq.dead_letter_jobs where id <> %s", job_id
    )
    assert history_length == 2
    assert error == f"hopeless\n(it was job {job_id}; an older dead letter has that id)"


def test_job_under_the_id_of_a_letter_that_is_lost(connection: Link) -> None:
    """A job that was inserted under the id of a dead letter dies in reclaim, and both letters are there, each with its payload."""
    job_id = enqueue(connection, max_attempts=1, payload='{"n": 1}')
    settle(connection, claim_one(connection), ENDINGS["bury"])
    connection.execute(
        "insert into pgnotifyq.jobs (id, job_type, payload, max_attempts) values (%s, 'noop', '{\"n\": 2}', 1)", (job_id,)
    )
    claim_one(connection)
    pass_time(connection, 100)
    assert reclaim(connection) == {job_id: "dead"}
    letters = fetch(connection, "select id = %s, payload from pgnotifyq.dead_letter_jobs order by died_at", job_id)
    assert letters == [(True, {"n": 1}), (False, {"n": 2})]
    assert {letter.id == job_id for letter in ask_blocking(connection, look.list_dead(SCHEMA))} == {True, False}


def test_requeue_of_a_letter_whose_id_a_job_has(connection: Link) -> None:
    """It is refused, and says why; requeue_all brings back the others."""
    taken, free = [enqueue(connection, max_attempts=1) for _ in range(2)]
    for job in claim(connection, 2):
        settle(connection, job, ENDINGS["bury"])
    connection.execute("insert into pgnotifyq.jobs (id, job_type) values (%s, 'noop')", (taken,))
    with pytest.raises(IllegalTransition, match="a job has its id"):
        ask_blocking(connection, end.requeue(SCHEMA, taken))
    assert ask_blocking(connection, end.requeue_all(SCHEMA)) == 1
    assert became(connection, free) == "pending"
    assert dead_letter(connection, taken) is not None


@pytest.mark.parametrize("obstacle", ["letter's maximum", "letter's queue", "trigger", "deferred trigger", "foreign key"])
def test_requeue_all_beside_one_that_cannot_be_requeued(connection: Link, obstacle: str) -> None:
    """The others are brought back; it stays a dead letter."""
    victim, claimed = two(connection)
    settle_all(connection, claimed, ENDINGS["bury"])
    body = "create function public.users() returns trigger language plpgsql as $$ begin raise exception 'no'; end $$;"
    obstruct(
        connection,
        {
            "letter's maximum": "update pgnotifyq.dead_letter_jobs set max_attempts = 0 where id = '{victim}'",
            "letter's queue": "update pgnotifyq.dead_letter_jobs set queue_name = '' where id = '{victim}'",
            "trigger": body + " create trigger users_own before insert on pgnotifyq.jobs for each row when (new.id = '{victim}')"
            " execute function public.users()",
            "deferred trigger": body + " create constraint trigger users_own after insert on pgnotifyq.jobs initially deferred"
            " for each row when (new.id = '{victim}') execute function public.users()",
            "foreign key": "create table public.orders (job_id uuid references pgnotifyq.dead_letter_jobs (id));"
            " insert into public.orders values ('{victim}')",
        }[obstacle],
        victim,
    )
    assert ask_blocking(connection, end.requeue_all(SCHEMA)) == 1
    assert dead_letter(connection, victim) is not None


def test_troubles_that_are_over_are_forgotten(connection: Link) -> None:
    """A trouble goes with its job, and with what it was about."""
    gone, done, still = [JobId(uuid.uuid4()) for _ in range(3)]
    for job_id in (done, still):
        connection.execute("insert into pgnotifyq.jobs (id, job_type) values (%s, 'noop')", (job_id,))
    for job_id, verb in ((gone, "claim"), (done, "reclaim"), (still, "claim")):
        connection.execute(
            "select pgnotifyq.note_trouble('00000000-0000-0000-0000-000000000000', %s, %s, '22008', 'x')", (job_id, verb)
        )
    pass_time(connection, ASIDE_SECONDS)
    reclaim(connection)
    assert [trouble.job_id for trouble in ask_blocking(connection, look.list_troubles(SCHEMA))] == [still]
