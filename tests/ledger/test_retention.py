"""How long finished jobs are kept: as the database says, else as the workers of their own queue do. Their history goes with them."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from pgnotifyq.ledger import end, explaining, look
from pgnotifyq.ledger.lease import report_progress
from pgnotifyq.wire.asking import ask_blocking
from pgnotifyq.wire.blocking import Connection
from tests.ledger.support import ENDINGS, SCHEMA, claim, claim_one, enqueue, fetch, lease, settle, value

Link = Connection[Any]
DAY = 86_400.0


def finish(connection: Link, queue: str, *, days_ago: float, status: str = "completed") -> Any:
    """Make a job that ended some days ago, with its history."""
    job_id = enqueue(connection, queue_name=queue)
    (job,) = claim(connection, queues=[queue])
    settle(connection, job, ENDINGS["cancel" if status == "cancelled" else "complete"])
    connection.execute(
        "update pgnotifyq.jobs set completed_at = clock_timestamp() - make_interval(secs => %s) where id = %s",
        (days_ago * DAY, job_id),
    )
    return job_id


def prune(connection: Link, *queues: str, days: float) -> int:
    """Prune as a worker of some queues does that is set to some days; return how many jobs went."""
    deleted, _ = ask_blocking(
        connection, end.prune(SCHEMA, older_than_seconds=days * DAY, after_id=None, jobs_max=100, queues=queues)
    )
    return deleted


def left(connection: Link) -> list[Any]:
    """Return the jobs that are left; their history, and no other, is left too."""
    jobs = [row[0] for row in fetch(connection, "select id from pgnotifyq.jobs order by id")]
    assert [row[0] for row in fetch(connection, "select job_id from pgnotifyq.job_executions order by job_id")] == jobs
    return jobs


def test_worker_prunes_its_own_queues(connection: Link) -> None:
    """The shortest setting of any worker does not count for the queues of others."""
    mine = finish(connection, "mine", days_ago=2)
    theirs = finish(connection, "theirs", days_ago=2)
    assert prune(connection, "mine", days=3) == 0
    assert prune(connection, "mine", days=1) == 1
    assert left(connection) == [theirs]
    assert prune(connection, "theirs", "mine", days=1) == 1
    assert mine not in left(connection)


def test_what_the_database_says_goes_first(connection: Link) -> None:
    """By queue and ending, whatever the worker is set to, also for queues that no worker serves; withdrawn, settings count again."""
    connection.execute("select pgnotifyq.set_retention('mine', 30 * 86400)")
    connection.execute("select pgnotifyq.set_retention('mine', 0, 'cancelled')")
    connection.execute("select pgnotifyq.set_retention('nobody', 86400)")
    kept = finish(connection, "mine", days_ago=20)
    finish(connection, "mine", days_ago=0.01, status="cancelled")
    finish(connection, "nobody", days_ago=2)
    young = finish(connection, "nobody", days_ago=0.5)
    assert prune(connection, "mine", days=7) == 2
    assert left(connection) == [kept, young]
    connection.execute("select pgnotifyq.set_retention('mine', null)")
    assert prune(connection, "mine", days=7) == 1
    assert left(connection) == [young]


@pytest.mark.parametrize("wrong", ["'no spaces', 1", "null, 1", "'a', -1", "'a', 1e308", "'a', 'nan'", "'a', 1, 'pending'"])
def test_retention_that_is_refused(connection: Link, wrong: str) -> None:
    """A queue that cannot be, a time out of range, and an ending that is none are refused, typed."""
    with pytest.raises(psycopg.Error) as caught:
        connection.execute(f"select pgnotifyq.set_retention({wrong})".encode())
    assert caught.value.sqlstate == "PNQ02"
    assert value(connection, "select count(*) from pgnotifyq.retention") == 0


@pytest.mark.parametrize("how", ["by hand", "pruned", "all at once"])
def test_history_goes_with_its_job(connection: Link, how: str) -> None:
    """However a job goes, nothing is left of it."""
    for _ in range(3):
        finish(connection, "default", days_ago=2)
    other = enqueue(connection)
    settle(connection, claim_one(connection), ENDINGS["retry"])
    if how == "pruned":
        prune(connection, "default", days=1)
    elif how == "by hand":
        for (job_id,) in fetch(connection, "select id from pgnotifyq.jobs where status = 'completed'"):
            connection.execute("delete from pgnotifyq.jobs where id = %s", (job_id,))
    else:
        connection.execute("delete from pgnotifyq.jobs where status = 'completed'")
    assert left(connection) == [other]


@pytest.mark.parametrize("how", ["bury", "reclaim"])
def test_history_of_a_job_that_died(connection: Link, how: str) -> None:
    """It stays reachable as long as the dead letter does, through a requeue, and is purged with it."""
    job_id = enqueue(connection, max_attempts=2)
    settle(connection, claim_one(connection), ENDINGS["release"])
    job = claim_one(connection)
    if how == "bury":
        settle(connection, job, ENDINGS["bury"])
    else:
        connection.execute("update pgnotifyq.jobs set attempts = 2, lease_expires_at = '2020-01-01'")
        connection.execute("select pgnotifyq.reclaim(%s, 10)", (lease(job).execution_id,))
    count = "select count(*) from pgnotifyq.job_executions"
    assert value(connection, "select count(*) from pgnotifyq.dead_letter_jobs") == 1
    assert value(connection, count) == 2
    connection.execute("select pgnotifyq.requeue(%s)", (job_id,))
    assert value(connection, count) == 2
    settle(connection, claim_one(connection), ENDINGS["bury"])
    assert ask_blocking(connection, end.purge_dead(SCHEMA, job_id=job_id)) == 1
    assert value(connection, count) == 0


# Labels


LABELS = [
    ("'cancelled', true, 1, -1", "stopping"), ("'cancelled', false, 1, -1", "cancelled"), ("'pending', false, 0, 1", "scheduled"),
    ("'pending', false, 2, 1", "retrying"), ("'pending', false, 2, -1", "pending"), ("'running', true, 1, -1", "running"),
    ("'completed', false, 1, 1", "completed"),
]  # fmt: skip


@pytest.mark.parametrize(("found", "word"), LABELS)
def test_labels_are_derived(connection: Link, found: str, word: str) -> None:
    """scheduled, retrying and stopping are not stored; one function says them, by the time it is given."""
    status, is_held, attempts, ahead = found.split(", ")
    told = value(
        connection,
        f"select pgnotifyq.label({status}, {is_held}, {attempts}, now() + make_interval(secs => {ahead}), now())",
    )
    assert told == word


def test_labels_by_the_clock_of_the_database(connection: Link) -> None:
    """What a job is called does not hang on the clock of who asks: list, get, explain and stats say the same."""
    job_id = enqueue(connection, scheduled_at="2030-01-01")
    for now, word in (("2029-12-31", "scheduled"), ("2030-01-02", "pending")):
        connection.execute("select set_config('pgnotifyq.clock', %s, false)", (now,))
        job = ask_blocking(connection, look.get_job(SCHEMA, job_id))
        assert job is not None and job.label == word
        assert [found.id for found in ask_blocking(connection, look.list_jobs(SCHEMA, status=word))] == [job_id]
        explained = ask_blocking(connection, explaining.explain(SCHEMA, job_id))
        assert explained is not None and explained.label == word
        (queue,) = ask_blocking(connection, look.stats(SCHEMA))
        assert getattr(queue, word) == 1


@pytest.mark.parametrize("fraction", [0.3, 0.1, 1.0, 0.0])
def test_progress_is_what_was_reported(connection: Link, fraction: float) -> None:
    """0.3 is 0.3, and not 0.30000001."""
    enqueue(connection)
    job = claim_one(connection)
    ask_blocking(connection, report_progress(SCHEMA, lease(job), fraction=fraction, message=None))
    found = ask_blocking(connection, look.get_job(SCHEMA, job.id))
    assert found is not None and found.progress == fraction
