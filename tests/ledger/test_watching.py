"""Those who follow are told of what happens to jobs, and nobody else is; logs are kept with their attempts."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest

from pgnotifyq.ledger import bulk, changes, watching
from pgnotifyq.ledger import end as ending_verbs
from pgnotifyq.ledger import enqueue as enqueueing
from pgnotifyq.ledger import lease as lease_verbs
from pgnotifyq.ledger.changes import Edit, JobFilter
from pgnotifyq.model.channels import of_follower
from pgnotifyq.model.job import Lease
from pgnotifyq.model.new_job import NewJob
from pgnotifyq.model.unique import OnConflict, Unique
from pgnotifyq.model.watching import JobEventKind, count_of, events_in
from pgnotifyq.wire.asking import ask_blocking
from pgnotifyq.wire.blocking import Connection, listen, wait_notifications
from tests.ledger.support import (
    ANN,
    ENDINGS,
    PATIENCE_SECONDS,
    SCHEMA,
    claim,
    claim_one,
    enqueue,
    fetch,
    lease,
    pass_time,
    reclaim,
    settle,
    value,
)

Link = Connection[Any]
ME = uuid.UUID(int=0xF0)


class Ears:
    """A session that hears what followers hear, up to a marker."""

    def __init__(self, connection: Link, schema: str = SCHEMA) -> None:
        self._connection = connection
        self._finished, self._followed = f"{schema}_finished", of_follower(schema, ME)

    def open(self) -> None:
        for channel in ("marker", self._finished, self._followed):
            listen(self._connection, channel)

    def hear(self) -> list[str]:
        """Return what was said since the last call: `job` of one that is followed, else the event and its details."""
        heard: list[str] = []
        fetch(self._connection, "select pg_notify('marker', '')")
        while True:
            notes = wait_notifications(self._connection, PATIENCE_SECONDS)
            assert notes, f"no marker within {PATIENCE_SECONDS} s"
            for note in notes:
                if note.channel == "marker":
                    return heard
                if note.channel == self._finished:
                    heard.append("job")
                    continue
                for event in events_in(note.payload):
                    parts = (event.kind, event.attempt, event.fraction, event.outcome, event.lost)
                    heard.append(" ".join(str(part) for part in parts if part is not None))


@pytest.fixture
def ears(other: Link) -> Ears:
    ears = Ears(other)
    ears.open()
    return ears


def end(connection: Link, ending: str) -> None:
    job = claim_one(connection)
    settle(connection, job, ENDINGS[ending])


def test_nobody_follows(connection: Link, ears: Ears) -> None:
    """No step of a job notifies anybody, whether or not somebody has followed before."""
    for _ in range(2):
        for ending in ENDINGS:
            enqueue(connection)
            end(connection, ending)
        job_id = enqueue(connection)
        ask_blocking(connection, changes.edit(SCHEMA, job_id, Edit(priority=5)))
        fetch(connection, "update pgnotifyq.jobs set status = 'cancelled' where id = %s", job_id)
        assert ears.hear() == []
        assert value(connection, "select pg_relation_size('pgnotifyq.followers')") == 0 or _ == 1
        ask_blocking(connection, watching.follow_events(SCHEMA, ME))
        ask_blocking(connection, watching.unfollow(SCHEMA, ME))
        fetch(connection, "delete from pgnotifyq.jobs")


@pytest.mark.parametrize("ending", ENDINGS)
def test_each_step_of_a_job(connection: Link, ears: Ears, ending: str) -> None:
    """Who follows all is told what happened, in order, and who follows the job that something did."""
    ask_blocking(connection, watching.follow_events(SCHEMA, ME))
    job_id = enqueue(connection)
    assert ears.hear() == ["enqueued"]
    ask_blocking(connection, watching.follow(SCHEMA, uuid.uuid4(), job_id))
    job = claim_one(connection)
    assert ears.hear() == ["job", "started 1"]
    ask_blocking(connection, lease_verbs.report_progress(SCHEMA, lease(job), fraction=0.25, message="a"))
    ask_blocking(connection, watching.report_all(SCHEMA, [watching.Report(lease=lease(job), fraction=0.5, message=None)]))
    assert ears.hear() == ["job", "progress 1 0.25", "job", "progress 1 0.5"]
    settle(connection, job, ENDINGS[ending])
    outcome = {"cancel": "cancelled"}.get(ending, ENDINGS[ending].name)
    assert ears.hear() == ["job", f"ended 1 {outcome}"]


def test_cancels_and_losses(connection: Link, ears: Ears) -> None:
    """A cancel of a pending job is its end; of a running one it says that the handler stops. A lost attempt has ended."""
    ask_blocking(connection, watching.follow_events(SCHEMA, ME))
    first = enqueue(connection)
    fetch(connection, "update pgnotifyq.jobs set status = 'cancelled' where id = %s", first)
    assert ears.hear() == ["enqueued", "ended 0 cancelled"]
    enqueue(connection)
    job = claim_one(connection)
    fetch(connection, "update pgnotifyq.jobs set status = 'cancelled' where id = %s", job.id)
    settle(connection, job, ENDINGS["cancel"])
    assert ears.hear() == ["enqueued", "started 1", "stopping 1", "ended 1 cancelled"]
    enqueue(connection)
    claim_one(connection)
    pass_time(connection, 120)
    ask_blocking(connection, watching.follow_events(SCHEMA, ME))
    reclaim(connection)
    assert (ears.hear())[2:] == ["ended 1 lost"]


def test_a_queue_and_a_tenant(connection: Link, ears: Ears) -> None:
    """Who follows a queue, or a tenant's jobs, is told of no others."""
    org = uuid.UUID(int=7)
    ask_blocking(connection, watching.follow_events(SCHEMA, ME, queue="images"))
    enqueue(connection)
    enqueue(connection, queue_name="images")
    assert ears.hear() == ["enqueued"]
    ask_blocking(connection, watching.unfollow(SCHEMA, ME))
    ask_blocking(connection, watching.follow_events(SCHEMA, ME, org_id=org))  # type: ignore[arg-type]
    enqueue(connection)
    enqueue(connection, org_id=org)
    assert ears.hear() == ["enqueued"]


def test_edits(connection: Link, ears: Ears) -> None:
    """An edit of what waits is told, also to those who follow the queue that the job leaves; of what runs, nothing is."""
    ask_blocking(connection, watching.follow_events(SCHEMA, ME, queue="default"))
    job_id = enqueue(connection)
    ask_blocking(connection, watching.follow(SCHEMA, uuid.uuid4(), job_id))
    assert ears.hear() == ["enqueued"]
    ask_blocking(connection, changes.edit(SCHEMA, job_id, Edit(priority=5)))
    ask_blocking(connection, changes.edit(SCHEMA, job_id, Edit(queue="images")))
    assert ears.hear() == ["job", "edited"] * 2
    ask_blocking(connection, changes.edit(SCHEMA, job_id, Edit(payload={"n": 1})))
    assert ears.hear() == ["job"]
    ask_blocking(connection, changes.change_all(SCHEMA, "edit", JobFilter(), change=Edit(queue="default")))
    assert ears.hear() == ["job", "edited"]
    claim_one(connection)
    ask_blocking(connection, changes.edit(SCHEMA, job_id, Edit(priority=6)))
    assert ears.hear() == ["job", "started 1"]


@pytest.mark.parametrize("jobs", [1, 2, 40], ids=["alone", "in a bulk", "in a round of a bulk"])
def test_replacement(connection: Link, ears: Ears, jobs: int) -> None:
    """What waits and is replaced by a job of its unique key was edited; what is kept, or runs, was not."""

    def put(on_conflict: OnConflict, priority: int) -> None:
        unique = [Unique(key=f"k{number}", on_conflict=on_conflict) for number in range(jobs)]
        made = [NewJob(job_type="noop", unique=each, priority=priority) for each in unique]
        ask_blocking(connection, enqueueing.enqueue(SCHEMA, made[0]) if jobs == 1 else bulk.enqueue_many(SCHEMA, made))

    put("replace", 1)
    ask_blocking(connection, watching.follow_events(SCHEMA, ME))
    put("replace", 2)
    assert ears.hear() == ["edited"] * jobs
    put("keep", 3)
    assert ears.hear() == []
    claim(connection, jobs)
    assert ears.hear() == ["started 1"] * jobs
    put("replace", 4)
    assert ears.hear() == []


def test_more_than_is_told(connection: Link, ears: Ears) -> None:
    """Of a statement that enqueues very many, the first thousand are told one by one, and how many more there are."""
    ask_blocking(connection, watching.follow_events(SCHEMA, ME))
    fetch(connection, "insert into pgnotifyq.jobs (job_type) select 'noop' from generate_series(1, 1234)")
    heard = ears.hear()
    assert (heard.count("enqueued"), heard[-1]) == (1000, "lost 234")
    assert len(claim(connection, 600)) == 600
    assert (ears.hear()) == ["started 1"] * 600


def test_a_follower_that_is_gone(connection: Link, ears: Ears) -> None:
    """Is told nothing a minute later; it learns of the gap when it comes back. Its row goes with the next follower."""
    assert ask_blocking(connection, watching.follow_events(SCHEMA, ME)) == "new"
    assert ask_blocking(connection, watching.follow_events(SCHEMA, ME)) == "kept"
    pass_time(connection, 40)
    assert ask_blocking(connection, watching.follow_events(SCHEMA, ME)) == "kept"
    pass_time(connection, 101)
    enqueue(connection)
    assert ears.hear() == []
    assert ask_blocking(connection, watching.follow_events(SCHEMA, ME)) == "new"
    pass_time(connection, 170)
    ask_blocking(connection, watching.follow_events(SCHEMA, uuid.uuid4()))
    assert value(connection, "select count(*) from pgnotifyq.followers") == 1


def test_nobody_follows_any_more(connection: Link, other: Link) -> None:
    """Then the table is made empty, so that no statement looks into it; while somebody does, or reads it, it is left."""
    size = "select pg_relation_size('pgnotifyq.followers')"
    assert not ask_blocking(connection, watching.forget_followers(SCHEMA))
    ask_blocking(connection, watching.follow_events(SCHEMA, ME))
    assert not ask_blocking(connection, watching.forget_followers(SCHEMA))
    assert ask_blocking(connection, watching.follow_events(SCHEMA, ME)) == "kept"
    ask_blocking(connection, watching.unfollow(SCHEMA, ME))
    with other.transaction():
        other.execute("select from pgnotifyq.followers")
        assert not ask_blocking(connection, watching.forget_followers(SCHEMA))
    assert value(connection, size) > 0
    assert ask_blocking(connection, watching.forget_followers(SCHEMA))
    assert value(connection, size) == 0
    ask_blocking(connection, watching.follow_events(SCHEMA, ME))
    pass_time(connection, 61)
    assert ask_blocking(connection, watching.forget_followers(SCHEMA))
    assert value(connection, size) == 0


def test_too_many_followers(connection: Link) -> None:
    """Of more than a thousand the rest is told so."""
    fetch(
        connection,
        "insert into pgnotifyq.followers (id, until) select gen_random_uuid(), now() + interval '1 hour' from generate_series(1, 1000)",
    )
    assert ask_blocking(connection, watching.follow_events(SCHEMA, ME)) == "full"


def log(of: Lease, head: str | None, tail: str | None = None, left_out: int = 0, attempt: int = 1) -> watching.Log:
    return watching.Log(lease=of, attempt=attempt, head=head, tail=tail, left_out=left_out)


def test_logs_are_kept(connection: Link, ears: Ears) -> None:
    """A part that is not given stays as it was; who follows the job is told; what is left out has a line of its own."""
    job_id = enqueue(connection)
    job = claim_one(connection)
    ask_blocking(connection, watching.follow(SCHEMA, ME, job_id))
    first, last = (json.dumps([[1.5, "info", text]]) for text in ('a "b"\n\\', "\ud800\x00é"))
    ask_blocking(connection, watching.keep_logs(SCHEMA, [log(lease(job), first)]))
    ask_blocking(connection, watching.keep_logs(SCHEMA, [log(lease(job), None, last, 3)]))
    assert ears.hear() == ["job", "job"]
    lines = ask_blocking(connection, watching.logs(SCHEMA, job_id))
    assert [line.text for line in lines] == ['a "b"\n\\', "(3 lines are left out)", "\ud800\x00é"]
    assert [(line.level, line.left_out) for line in lines] == [("info", 0), ("", 3), ("info", 0)]
    assert count_of(lines) == 5
    assert [line.left_out for line in watching.after(lines, 2)] == [2, 0]
    assert watching.after(lines, 5) == []


def test_logs_go_with_their_job(connection: Link) -> None:
    """A dead letter keeps them; the job's deletion, or its letter's, takes them."""
    for ending in ("complete", "bury"):
        job_id = enqueue(connection)
        job = claim_one(connection)
        ask_blocking(connection, watching.keep_logs(SCHEMA, [log(lease(job), "[]")]))
        settle(connection, job, ENDINGS[ending])
        assert value(connection, "select count(*) from pgnotifyq.job_logs where job_id = %s", job_id) == 1
    fetch(connection, "delete from pgnotifyq.jobs")
    assert value(connection, "select count(*) from pgnotifyq.job_logs") == 1
    ask_blocking(connection, ending_verbs.purge_dead(SCHEMA, older_than_seconds=0))
    assert value(connection, "select count(*) from pgnotifyq.job_logs") == 0
    ask_blocking(connection, watching.keep_logs(SCHEMA, [log(lease(job), "[]")]))
    assert value(connection, "select count(*) from pgnotifyq.job_logs") == 0  # its job is gone


def test_role_that_may_delete_no_logs(connection: Link) -> None:
    """It deletes jobs and their history all the same, if it may look at the logs or not; the logs stay."""
    with connection.transaction(force_rollback=True):
        connection.execute(
            "create role pgnotifyq_test_deletes_no_logs bypassrls; grant usage on schema pgnotifyq to pgnotifyq_test_deletes_no_logs;"
            " grant select, delete on pgnotifyq.jobs, pgnotifyq.job_executions to pgnotifyq_test_deletes_no_logs;"
            " grant select on pgnotifyq.dead_letter_jobs to pgnotifyq_test_deletes_no_logs"
        )
        for number, right in enumerate((b"", b"grant select on pgnotifyq.job_logs to pgnotifyq_test_deletes_no_logs"), 1):
            enqueue(connection)
            job = claim_one(connection)
            ask_blocking(connection, watching.keep_logs(SCHEMA, [log(lease(job), "[]")]))
            settle(connection, job, ENDINGS["complete"])
            if right:
                connection.execute(right)
            connection.execute("set role pgnotifyq_test_deletes_no_logs")
            connection.execute("delete from pgnotifyq.jobs")
            connection.execute("reset role")
            assert value(connection, "select count(*) from pgnotifyq.job_executions") == 0
            assert value(connection, "select count(*) from pgnotifyq.job_logs") == number


def test_what_is_no_event() -> None:
    """Any role can send a notification: what no code of ours would send is left out, and raises nothing."""
    job = str(ME)
    hostile = ["", "lost", "lost x", "started", f"started x {job}", "started 1 x", f"nonsense 1 {job}", f"started 1 {job} x",
               f"progress 1 {job} 1 x", f"started 1e99 {job}", "\x00", f"ended nan {job} 1 completed"]  # fmt: skip
    assert list(events_in("\n".join(hostile))) == []
    (event,) = events_in(f"ended 1.5 {job} 2 completed")
    assert (event.kind, event.job_id, event.attempt, event.outcome) == (JobEventKind.ENDED, ME, 2, "completed")
    assert ANN != ME
