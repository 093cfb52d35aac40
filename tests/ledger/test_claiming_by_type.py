"""A worker takes only job types that it has handlers for, and what it says of them counts for jobs that say nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pgnotifyq.ledger import bulk, claim, workers
from pgnotifyq.ledger import enqueue as enqueue_verbs
from pgnotifyq.model.new_job import NewJob
from pgnotifyq.wire.asking import ask_blocking
from pgnotifyq.wire.blocking import Connection
from tests.ledger.support import ANN, BOB, ENDINGS, SCHEMA, claim_one, enqueue, existing, fetch, pass_time, settle, value
from tests.ledger.test_plans import PAGES_MAX, TIMES, fill, pages, untended

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pgnotifyq.model.job import JobId

__all__ = ["untended"]

Link = Connection[Any]
MANY = 20_000


def take(connection: Link, jobs_max: int, *types: str, queues: Sequence[str] = ("default",), **more: Any) -> claim.Claim:
    """Claim jobs of some types."""
    return ask_blocking(connection, claim.claim( SCHEMA, worker_id=ANN, queues=queues, jobs_max=jobs_max, lease_seconds=60.0,
        only=claim.wanted(dict.fromkeys(types)), **more,
    ))  # fmt: skip


def ids(found: claim.Claim) -> list[JobId]:
    """Return the ids of what was claimed, in order."""
    return [job.id for job in found.jobs]


def register(connection: Link, *handlers: tuple[str, str | None, int | None], worker: Any = ANN) -> None:
    """Publish a worker with handlers: type, queue, attempts."""
    ask_blocking(connection, workers.register( SCHEMA, worker_id=worker, host="here", pid=1, queues=["default"], slots=1, version="0", has_session=False,
        lease_seconds=60.0,
    ))  # fmt: skip
    ask_blocking(connection, workers.publish_handlers(SCHEMA, worker, list(handlers)))


def test_types_of_others_are_left(connection: Link) -> None:
    """What the worker has no handler for stays pending and uncharged, whether it stands first or in between."""
    enqueued = [enqueue(connection, job_type) for job_type in ("other", "a", "b", "other", "a")]
    found = take(connection, 10, "a", "b")
    assert ids(found) == [enqueued[place] for place in (1, 2, 4)]
    assert (found.ran_dry, found.is_contended, found.next_due_seconds) == (True, False, None)
    for place in (0, 3):
        job = existing(connection, enqueued[place])
        assert (job["status"], job["attempts"]) == ("pending", 0)
    assert ids(take(connection, 10, "other")) == [enqueued[0], enqueued[3]]


def test_order_among_others(connection: Link) -> None:
    """Priority, then time, then queue preference hold as ever, wherever others' jobs stand."""
    mine: list[JobId] = []
    for queue in ("default", "second"):
        for priority in (5, 0, -5):
            enqueue(connection, "other", queue_name=queue, priority=priority)
            for day in (1, 2):
                for hour, job_type in enumerate(("a", "b")):
                    due = f"2020-01-0{day} 0{hour}:00+00"
                    made = enqueue(connection, job_type, queue_name=queue, priority=priority, scheduled_at=due)
                    mine += [made]
            enqueue(connection, "other", queue_name=queue, priority=priority, scheduled_at="2019-01-01")
    taken: list[JobId] = []
    for jobs_max in (1, 4, 2, 20):
        taken += ids(take(connection, jobs_max, "a", "b", queues=("default", "second")))
    assert taken == mine


def test_worker_without_handlers(connection: Link) -> None:
    """It takes nothing, and has nothing to look for."""
    enqueue(connection)
    found = take(connection, 5)
    assert (found.jobs, found.ran_dry, found.next_due_seconds) == ([], True, None)


def test_next_due_is_of_its_own_types(connection: Link) -> None:
    """A worker is told when its own next job falls due, not when another's does."""
    connection.execute("select set_config('pgnotifyq.clock', '2030-01-01 00:00:00+00', false)")
    enqueue(connection, "other", scheduled_at="2030-01-01 00:00:10+00", priority=3)
    enqueue(connection, "other")
    enqueue(connection, "mine", scheduled_at="2030-01-01 00:01:00+00")
    found = take(connection, 5, "mine")
    assert (found.jobs, found.next_due_seconds, found.is_contended) == ([], 60.0, False)


def test_job_of_its_own_that_is_locked_among_others(connection: Link, other: Link) -> None:
    """A due job whose row somebody holds is waited for, though others' jobs stand before it."""
    enqueue(connection, "other")
    enqueue(connection, "mine")
    with other.transaction():
        other.execute("select from pgnotifyq.jobs where job_type = 'mine' for update")
        found = take(connection, 5, "mine")
        assert (found.jobs, found.ran_dry, found.is_contended) == ([], True, True)
    assert len(take(connection, 5, "mine").jobs) == 1


@pytest.mark.parametrize("own_first", [False, True])
def test_queue_whose_head_is_full_of_others(untended: Link, other: Link, own_first: bool) -> None:
    """The claim touches no more pages with many jobs of others before its own than without, and finds its own."""
    statement = (
        f"select * from pgnotifyq.claim('{ANN}', array['default'], 10, 60, job_types => array['mine', 'too'],"
        " maxima => array[null, null]::integer[])"
    )
    for job_type in ("other", "mine"):  # so that all of it is planned while there is next to nothing
        enqueue(other, job_type)
    for _ in range(TIMES):
        pages(untended, statement)
    if own_first:
        enqueue(other, "mine", scheduled_at="2020-01-01")
    fill(other, MANY)
    fill(other, MANY, priority=7)
    other.execute(
        "insert into pgnotifyq.jobs (job_type) select case when n % 2 = 0 then 'mine' else 'too' end from generate_series(1, 20) n"
    )
    assert pages(untended, statement) < PAGES_MAX
    assert len(take(untended, 10, "mine", "too").jobs) == 10


def test_claim_that_goes_on_among_others(connection: Link) -> None:
    """A claim that goes on behind the last job of another passes over others' jobs too, of any number."""
    enqueued = [enqueue(connection, job_type) for job_type in ("mine", "other", "mine", "other", "mine")]
    (first,) = take(connection, 1, "mine").jobs
    found = take(connection, 5, "mine", after=first)
    assert [first.id, *ids(found)] == [enqueued[place] for place in (0, 2, 4)]


def test_claim_that_goes_on_into_many_others(untended: Link, other: Link) -> None:
    """It touches no more pages than any other claim, finds its own behind them, and leaves the others as they are."""
    (first,) = [enqueue(other, "mine", scheduled_at="2020-01-01")]
    begin = (
        f"select * from pgnotifyq.claim('{ANN}', array['default'], 10, 60, after_queue => 'default', after_priority => 0,"
        f" after_time => '2020-01-01', after_id => '{first}', job_types => array['mine', 'too'],"
        " maxima => array[null, null]::integer[])"
    )
    for _ in range(TIMES):
        pages(untended, begin)
    fill(other, MANY)
    own = [enqueue(other, "mine" if n % 2 else "too") for n in range(12)]
    pages(untended, begin)  # the session reads the catalog for the functions that it has not called yet
    assert pages(untended, begin) < PAGES_MAX
    rows = fetch(untended, begin.replace("select *", "select id"))
    assert [found for (found,) in rows] == [first, *own[:9]]
    assert value(other, "select count(*) from pgnotifyq.jobs where job_type = 'noop' and status <> 'pending'") == 0


def test_executions_of_one_claim(connection: Link) -> None:
    """Over priorities, queues, and others' jobs among its own, each job has an execution of its own."""
    for priority in (3, 2, 1):
        for queue in ("default", "second"):
            for job_type in ("mine", "other", "mine"):
                enqueue(connection, job_type, queue_name=queue, priority=priority)
    found = take(connection, 50, "mine", queues=("default", "second"))
    assert len(found.jobs) == 12
    assert len({job.current_execution_id for job in found.jobs}) == 12


def test_claim_by_name(connection: Link) -> None:
    """A wake-up that names a job of another's type brings nothing, and the job is still there."""
    job_id = enqueue(connection, "other")
    named = ask_blocking(connection, claim.claim_named( SCHEMA, worker_id=ANN, queues=["default"], job_id=str(job_id), lease_seconds=60.0,
        only=claim.wanted({"mine": None}),
    ))  # fmt: skip
    assert (named.job, named.is_still_there) == (None, True)


# What the handler says


@pytest.mark.parametrize("way", ["raw", "function", "one", "many", "copied", "keyed", "by name"])
def test_attempts_that_nobody_said(connection: Link, way: str) -> None:
    """However a job is enqueued that says nothing, it has the handler's attempts from its first claim on; without any, three."""
    if way == "raw":
        connection.execute("insert into pgnotifyq.jobs (job_type) values ('mine')")
    elif way in {"function", "by name"}:
        enqueue(connection, "mine")
    elif way in {"one", "keyed"}:
        ask_blocking(
            connection, enqueue_verbs.enqueue(SCHEMA, NewJob(job_type="mine", unique_key="k" if way == "keyed" else None))
        )
    else:
        ask_blocking(connection, bulk.enqueue_many(SCHEMA, [NewJob(job_type="mine")] * (2 if way == "many" else 101)))
    assert value(connection, "select count(*) from pgnotifyq.jobs where max_attempts is not null") == 0
    job_id = value(connection, "select id from pgnotifyq.jobs order by id limit 1")
    only = claim.wanted({"another": 9, "mine": 5})
    if way == "by name":
        job = (
            ask_blocking(
                connection,
                claim.claim_named(SCHEMA, worker_id=ANN, queues=["default"], job_id=str(job_id), lease_seconds=60.0, only=only),
            )
        ).job
    else:
        found = ask_blocking(
            connection, claim.claim(SCHEMA, worker_id=ANN, queues=["default"], jobs_max=1, lease_seconds=60.0, only=only)
        )
        (job,) = found.jobs
    assert job is not None and (job.id, job.max_attempts) == (job_id, 5)
    settle(connection, job.whole, ENDINGS["release"])
    assert existing(connection, job_id)["max_attempts"] == 5


def test_attempts_that_neither_said(connection: Link) -> None:
    """Fifteen; and what the job says itself stands."""
    enqueue(connection, "mine")
    enqueue(connection, "mine", max_attempts=7)
    assert [job.max_attempts for job in take(connection, 2, "mine").jobs] == [15, 7]


@pytest.mark.parametrize("attempts", [0, 15, 999])
def test_attempts_written_by_hand(connection: Link, attempts: int) -> None:
    """A row that says many attempts and no maximum runs once more, and breaks no rule of the table."""
    connection.execute("insert into pgnotifyq.jobs (job_type, attempts) values ('mine', %s)", (attempts,))
    (job,) = take(connection, 1, "mine").jobs
    assert (job.attempts, job.max_attempts) == (attempts + 1, max(15, attempts + 1))


def test_a_thousand_attempts_are_the_bound_of_all(connection: Link) -> None:
    """A row without a maximum cannot say more attempts than a job may have."""
    with pytest.raises(Exception, match="attempt"):
        connection.execute("insert into pgnotifyq.jobs (job_type, attempts) values ('mine', 1000)")


WAYS = ["function", "one", "keyed", "many", "copied"]


def enqueue_by(connection: Link, way: str, queue: str | None = None) -> None:
    """Enqueue jobs of type `mine` in some way."""
    if way == "function":
        enqueue(connection, "mine", **({} if queue is None else {"queue_name": queue}))
    elif way in {"one", "keyed"}:
        job = NewJob(job_type="mine", unique_key="k" if way == "keyed" else None, queue_name=queue)
        ask_blocking(connection, enqueue_verbs.enqueue(SCHEMA, job))
    else:
        ask_blocking(
            connection, bulk.enqueue_many(SCHEMA, [NewJob(job_type="mine", queue_name=queue)] * (2 if way == "many" else 101))
        )


def queues(connection: Link) -> list[Any]:
    """Return the queues that hold jobs."""
    return [row[0] for row in fetch(connection, "select distinct queue_name from pgnotifyq.jobs order by 1")]


@pytest.mark.parametrize("way", WAYS)
def test_queue_that_nobody_said(connection: Link, way: str) -> None:
    """A job that names no queue goes to that of its handler, when a worker has published one; one that does, stays."""
    register(connection, ("mine", "images", None))
    enqueue_by(connection, way)
    assert queues(connection) == ["images"]
    connection.execute("delete from pgnotifyq.jobs")
    enqueue_by(connection, way, "default")
    register(connection, ("mine", "images", None), worker=BOB)
    assert queues(connection) == ["default"]


@pytest.mark.parametrize("way", WAYS)
def test_queue_said_by_the_first_worker_to_come(connection: Link, way: str) -> None:
    """Enqueued before any handler is known, the job moves to its handler's queue when that is published, and wakes its sleepers."""
    enqueue_by(connection, way)
    assert queues(connection) == ["default"]
    register(connection, ("another", "images", None), worker=BOB)
    assert queues(connection) == ["default"]
    register(connection, ("mine", "images", None))
    assert queues(connection) == ["images"]
    register(connection, ("mine", "elsewhere", None), worker=BOB)
    assert queues(connection) == ["images"]


@pytest.mark.parametrize("way", ["many", "keyed", "copied"])
def test_jobs_of_many_types_in_one_batch(connection: Link, way: str) -> None:
    """Each goes to its own handler's queue, to the one it names, or to `default` until its handler comes; and each comes once."""
    register(connection, ("mine", "images", None), ("yours", None, None), ("his", "mail", None))
    jobs = [
        NewJob(job_type=job_type, queue_name=queue, unique_key=f"{place} {queue}" if way == "keyed" else None)
        for place in range(40 if way == "copied" else 4)
        for job_type in ("mine", "yours", "his", "nobody", "else")
        for queue in (None, "said")
        if queue or job_type != "else"
    ]
    ids = ask_blocking(connection, bulk.enqueue_many(SCHEMA, jobs))
    found = dict(fetch(connection, "select id, (queue_name, queue_not_said)::text from pgnotifyq.jobs"))
    wanted = {"mine": "(images,f)", "yours": "(default,f)", "his": "(mail,f)", "nobody": "(default,t)"}
    assert [found[job_id] for job_id in ids] == ["(said,f)" if job.queue_name else wanted[job.job_type] for job in jobs]
    assert len(found) == len(jobs)


def test_handlers_go_with_their_worker(connection: Link) -> None:
    """However a worker's row goes, what it published goes too; and publishing anew replaces what was published."""
    register(connection, ("a", "x", 1), ("b", None, None))
    register(connection, ("b", "y", 2), ("c", None, 3))
    found = "select job_type, queue_name, max_attempts from pgnotifyq.handlers order by 1"
    assert fetch(connection, found) == [("b", "y", 2), ("c", None, 3)]
    ask_blocking(connection, workers.unregister(SCHEMA, ANN))
    assert fetch(connection, found) == []
    ask_blocking(connection, workers.publish_handlers(SCHEMA, ANN, [("a", None, None)]))  # after its row was taken away
    assert fetch(connection, found) == []


def test_queue_of_the_handler_published_last(connection: Link) -> None:
    """Of two releases side by side the later one says where jobs go."""
    register(connection, ("mine", "old", None))
    register(connection, ("mine", "new", None), worker=BOB)
    assert value(connection, "select pgnotifyq.queue_of('mine')") == "new"
    assert value(connection, "select pgnotifyq.queue_of('nobody')") is None


# A key is its type's


@pytest.mark.parametrize("way", ["function", "one", "many"])
def test_one_key_of_two_types(connection: Link, way: str) -> None:
    """An e-mail and an invoice of one order do not keep each other away; two e-mails do."""
    made = []
    for job_type in ("email", "invoice", "email"):
        if way == "function":
            made.append(enqueue(connection, job_type, unique_key="order 7"))
        elif way == "one":
            made.append(ask_blocking(connection, enqueue_verbs.enqueue(SCHEMA, NewJob(job_type=job_type, unique_key="order 7"))))
        else:
            made += ask_blocking(connection, bulk.enqueue_many(SCHEMA, [NewJob(job_type=job_type, unique_key="order 7")]))
    assert made[0] == made[2] != made[1]
    assert value(connection, "select count(*) from pgnotifyq.jobs") == 2


def test_job_of_another_type_that_waits_for_its_time(connection: Link) -> None:
    """Time passes for others' jobs without a word to a worker that cannot run them."""
    enqueue(connection, "other", scheduled_at="2020-01-01")
    pass_time(connection, 3600)
    assert take(connection, 1, "mine").next_due_seconds is None
    enqueue(connection, "mine")
    assert claim_one(connection).job_type == "other"
