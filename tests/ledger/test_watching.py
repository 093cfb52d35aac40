"""Those who follow are told of what happens to jobs, and nobody else is; logs are kept with their attempts."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest

from pgnotifyq.ledger import changes, watching
from pgnotifyq.ledger import end as ending_verbs
from pgnotifyq.ledger import lease as lease_verbs
from pgnotifyq.ledger.changes import Edit, JobFilter
from pgnotifyq.model.channels import of_follower
from pgnotifyq.model.job import Lease
from pgnotifyq.model.watching import JobEventKind, count_of, events_in
from pgnotifyq.wire.asking import ask
from pgnotifyq.wire.connection import Connection
from pgnotifyq.wire.notifications import listen, wait_notifications
from tests.ledger.support import ANN, ENDINGS, SCHEMA, claim, claim_one, enqueue, fetch, lease, pass_time, reclaim, settle, value

Link = Connection[Any]
ME = uuid.UUID(int=0xF0)


class Ears:
    """A session that hears what followers hear, up to a marker."""

    def __init__(self, connection: Link) -> None:
        self._connection = connection

    async def open(self) -> None:
        for channel in ("marker", "pgnotifyq_finished", of_follower(SCHEMA, ME)):
            await listen(self._connection, channel)

    async def hear(self) -> list[str]:
        """Return what was said since the last call: `job` of one that is followed, else the event and its details."""
        heard: list[str] = []
        await fetch(self._connection, "select pg_notify('marker', '')")
        while True:
            for note in await wait_notifications(self._connection):
                if note.channel == "marker":
                    return heard
                if note.channel == "pgnotifyq_finished":
                    heard.append("job")
                    continue
                for event in events_in(note.payload):
                    parts = (event.kind, event.attempt, event.fraction, event.outcome, event.lost)
                    heard.append(" ".join(str(part) for part in parts if part is not None))


@pytest.fixture
async def ears(other: Link) -> Ears:
    ears = Ears(other)
    await ears.open()
    return ears


async def end(connection: Link, ending: str) -> None:
    job = await claim_one(connection)
    await settle(connection, job, ENDINGS[ending])


async def test_nobody_follows(connection: Link, ears: Ears) -> None:
    """No step of a job notifies anybody, whether or not somebody has followed before."""
    for _ in range(2):
        for ending in ENDINGS:
            await enqueue(connection)
            await end(connection, ending)
        job_id = await enqueue(connection)
        await ask(connection, changes.edit(SCHEMA, job_id, Edit(priority=5)))
        await fetch(connection, "update pgnotifyq.jobs set status = 'cancelled' where id = %s", job_id)
        assert await ears.hear() == []
        assert await value(connection, "select pg_relation_size('pgnotifyq.followers')") == 0 or _ == 1
        await ask(connection, watching.follow_events(SCHEMA, ME))
        await ask(connection, watching.unfollow(SCHEMA, ME))
        await fetch(connection, "delete from pgnotifyq.jobs")


@pytest.mark.parametrize("ending", ENDINGS)
async def test_each_step_of_a_job(connection: Link, ears: Ears, ending: str) -> None:
    """Who follows all is told what happened, in order, and who follows the job that something did."""
    await ask(connection, watching.follow_events(SCHEMA, ME))
    job_id = await enqueue(connection)
    assert await ears.hear() == ["enqueued"]
    await ask(connection, watching.follow(SCHEMA, uuid.uuid4(), job_id))
    job = await claim_one(connection)
    assert await ears.hear() == ["job", "started 1"]
    await ask(connection, lease_verbs.report_progress(SCHEMA, lease(job), fraction=0.25, message="a"))
    await ask(connection, watching.report_all(SCHEMA, [watching.Report(lease=lease(job), fraction=0.5, message=None)]))
    assert await ears.hear() == ["job", "progress 1 0.25", "job", "progress 1 0.5"]
    await settle(connection, job, ENDINGS[ending])
    outcome = {"cancel": "cancelled"}.get(ending, ENDINGS[ending].name)
    assert await ears.hear() == ["job", f"ended 1 {outcome}"]


async def test_cancels_and_losses(connection: Link, ears: Ears) -> None:
    """A cancel of a pending job is its end; of a running one it says that the handler stops. A lost attempt has ended."""
    await ask(connection, watching.follow_events(SCHEMA, ME))
    first = await enqueue(connection)
    await fetch(connection, "update pgnotifyq.jobs set status = 'cancelled' where id = %s", first)
    assert await ears.hear() == ["enqueued", "ended 0 cancelled"]
    await enqueue(connection)
    job = await claim_one(connection)
    await fetch(connection, "update pgnotifyq.jobs set status = 'cancelled' where id = %s", job.id)
    await settle(connection, job, ENDINGS["cancel"])
    assert await ears.hear() == ["enqueued", "started 1", "stopping 1", "ended 1 cancelled"]
    await enqueue(connection)
    await claim_one(connection)
    await pass_time(connection, 120)
    await ask(connection, watching.follow_events(SCHEMA, ME))
    await reclaim(connection)
    assert (await ears.hear())[2:] == ["ended 1 lost"]


async def test_a_queue_and_a_tenant(connection: Link, ears: Ears) -> None:
    """Who follows a queue, or a tenant's jobs, is told of no others."""
    org = uuid.UUID(int=7)
    await ask(connection, watching.follow_events(SCHEMA, ME, queue="images"))
    await enqueue(connection)
    await enqueue(connection, queue_name="images")
    assert await ears.hear() == ["enqueued"]
    await ask(connection, watching.unfollow(SCHEMA, ME))
    await ask(connection, watching.follow_events(SCHEMA, ME, org_id=org))  # type: ignore[arg-type]
    await enqueue(connection)
    await enqueue(connection, org_id=org)
    assert await ears.hear() == ["enqueued"]


async def test_edits(connection: Link, ears: Ears) -> None:
    """An edit of what waits is told, also to those who follow the queue that the job leaves; of what runs, nothing is."""
    await ask(connection, watching.follow_events(SCHEMA, ME, queue="default"))
    job_id = await enqueue(connection)
    await ask(connection, watching.follow(SCHEMA, uuid.uuid4(), job_id))
    assert await ears.hear() == ["enqueued"]
    await ask(connection, changes.edit(SCHEMA, job_id, Edit(priority=5)))
    await ask(connection, changes.edit(SCHEMA, job_id, Edit(queue="images")))
    assert await ears.hear() == ["job", "edited"] * 2
    await ask(connection, changes.edit(SCHEMA, job_id, Edit(payload={"n": 1})))
    assert await ears.hear() == ["job"]
    await ask(connection, changes.change_all(SCHEMA, "edit", JobFilter(), change=Edit(queue="default")))
    assert await ears.hear() == ["job", "edited"]
    await claim_one(connection)
    await ask(connection, changes.edit(SCHEMA, job_id, Edit(priority=6)))
    assert await ears.hear() == ["job", "started 1"]


async def test_more_than_is_told(connection: Link, ears: Ears) -> None:
    """Of a statement that enqueues very many, the first thousand are told one by one, and how many more there are."""
    await ask(connection, watching.follow_events(SCHEMA, ME))
    await fetch(connection, "insert into pgnotifyq.jobs (job_type) select 'noop' from generate_series(1, 1234)")
    heard = await ears.hear()
    assert (heard.count("enqueued"), heard[-1]) == (1000, "lost 234")
    assert len(await claim(connection, 600)) == 600
    assert (await ears.hear()) == ["started 1"] * 600


async def test_a_follower_that_is_gone(connection: Link, ears: Ears) -> None:
    """Is told nothing a minute later; it learns of the gap when it comes back. Its row goes with the next follower."""
    assert await ask(connection, watching.follow_events(SCHEMA, ME)) == "new"
    assert await ask(connection, watching.follow_events(SCHEMA, ME)) == "kept"
    await pass_time(connection, 40)
    assert await ask(connection, watching.follow_events(SCHEMA, ME)) == "kept"
    await pass_time(connection, 101)
    await enqueue(connection)
    assert await ears.hear() == []
    assert await ask(connection, watching.follow_events(SCHEMA, ME)) == "new"
    await pass_time(connection, 170)
    await ask(connection, watching.follow_events(SCHEMA, uuid.uuid4()))
    assert await value(connection, "select count(*) from pgnotifyq.followers") == 1


async def test_nobody_follows_any_more(connection: Link, other: Link) -> None:
    """Then the table is made empty, so that no statement looks into it; while somebody does, or reads it, it is left."""
    size = "select pg_relation_size('pgnotifyq.followers')"
    assert not await ask(connection, watching.forget_followers(SCHEMA))
    await ask(connection, watching.follow_events(SCHEMA, ME))
    assert not await ask(connection, watching.forget_followers(SCHEMA))
    assert await ask(connection, watching.follow_events(SCHEMA, ME)) == "kept"
    await ask(connection, watching.unfollow(SCHEMA, ME))
    async with other.transaction():
        await other.execute("select from pgnotifyq.followers")
        assert not await ask(connection, watching.forget_followers(SCHEMA))
    assert await value(connection, size) > 0
    assert await ask(connection, watching.forget_followers(SCHEMA))
    assert await value(connection, size) == 0
    await ask(connection, watching.follow_events(SCHEMA, ME))
    await pass_time(connection, 61)
    assert await ask(connection, watching.forget_followers(SCHEMA))
    assert await value(connection, size) == 0


async def test_too_many_followers(connection: Link) -> None:
    """Of more than a thousand the rest is told so."""
    await fetch(
        connection,
        "insert into pgnotifyq.followers (id, until) select gen_random_uuid(), now() + interval '1 hour' from generate_series(1, 1000)",
    )
    assert await ask(connection, watching.follow_events(SCHEMA, ME)) == "full"


def log(of: Lease, head: str | None, tail: str | None = None, left_out: int = 0, attempt: int = 1) -> watching.Log:
    return watching.Log(lease=of, attempt=attempt, head=head, tail=tail, left_out=left_out)


async def test_logs_are_kept(connection: Link, ears: Ears) -> None:
    """A part that is not given stays as it was; who follows the job is told; what is left out has a line of its own."""
    job_id = await enqueue(connection)
    job = await claim_one(connection)
    await ask(connection, watching.follow(SCHEMA, ME, job_id))
    first, last = (json.dumps([[1.5, "info", text]]) for text in ('a "b"\n\\', "\ud800\x00é"))
    await ask(connection, watching.keep_logs(SCHEMA, [log(lease(job), first)]))
    await ask(connection, watching.keep_logs(SCHEMA, [log(lease(job), None, last, 3)]))
    assert await ears.hear() == ["job", "job"]
    lines = await ask(connection, watching.logs(SCHEMA, job_id))
    assert [line.text for line in lines] == ['a "b"\n\\', "(3 lines are left out)", "\ud800\x00é"]
    assert [(line.level, line.left_out) for line in lines] == [("info", 0), ("", 3), ("info", 0)]
    assert count_of(lines) == 5
    assert [line.left_out for line in watching.after(lines, 2)] == [2, 0]
    assert watching.after(lines, 5) == []


async def test_logs_go_with_their_job(connection: Link) -> None:
    """A dead letter keeps them; the job's deletion, or its letter's, takes them."""
    for ending in ("complete", "bury"):
        job_id = await enqueue(connection)
        job = await claim_one(connection)
        await ask(connection, watching.keep_logs(SCHEMA, [log(lease(job), "[]")]))
        await settle(connection, job, ENDINGS[ending])
        assert await value(connection, "select count(*) from pgnotifyq.job_logs where job_id = %s", job_id) == 1
    await fetch(connection, "delete from pgnotifyq.jobs")
    assert await value(connection, "select count(*) from pgnotifyq.job_logs") == 1
    await ask(connection, ending_verbs.purge_dead(SCHEMA, older_than_seconds=0))
    assert await value(connection, "select count(*) from pgnotifyq.job_logs") == 0
    await ask(connection, watching.keep_logs(SCHEMA, [log(lease(job), "[]")]))
    assert await value(connection, "select count(*) from pgnotifyq.job_logs") == 0  # its job is gone


async def test_role_that_may_delete_no_logs(connection: Link) -> None:
    """It deletes jobs and their history all the same, if it may look at the logs or not; the logs stay."""
    async with connection.transaction(force_rollback=True):
        await connection.execute(
            "create role pgnotifyq_test_deletes_no_logs bypassrls; grant usage on schema pgnotifyq to pgnotifyq_test_deletes_no_logs;"
            " grant select, delete on pgnotifyq.jobs, pgnotifyq.job_executions to pgnotifyq_test_deletes_no_logs;"
            " grant select on pgnotifyq.dead_letter_jobs to pgnotifyq_test_deletes_no_logs"
        )
        for number, right in enumerate((b"", b"grant select on pgnotifyq.job_logs to pgnotifyq_test_deletes_no_logs"), 1):
            await enqueue(connection)
            job = await claim_one(connection)
            await ask(connection, watching.keep_logs(SCHEMA, [log(lease(job), "[]")]))
            await settle(connection, job, ENDINGS["complete"])
            if right:
                await connection.execute(right)
            await connection.execute("set role pgnotifyq_test_deletes_no_logs")
            await connection.execute("delete from pgnotifyq.jobs")
            await connection.execute("reset role")
            assert await value(connection, "select count(*) from pgnotifyq.job_executions") == 0
            assert await value(connection, "select count(*) from pgnotifyq.job_logs") == number


def test_what_is_no_event() -> None:
    """Any role can send a notification: what no code of ours would send is left out, and raises nothing."""
    job = str(ME)
    hostile = ["", "lost", "lost x", "started", f"started x {job}", "started 1 x", f"nonsense 1 {job}", f"started 1 {job} x",
               f"progress 1 {job} 1 x", f"started 1e99 {job}", "\x00", f"ended nan {job} 1 completed"]  # fmt: skip
    assert list(events_in("\n".join(hostile))) == []
    (event,) = events_in(f"ended 1.5 {job} 2 completed")
    assert (event.kind, event.job_id, event.attempt, event.outcome) == (JobEventKind.ENDED, ME, 2, "completed")
    assert ANN != ME
