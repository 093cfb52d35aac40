"""`client.for_org(...)`, in each door: one tenant's jobs, and no others."""

from __future__ import annotations

import inspect
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import attrs
import psycopg
import pytest
from anyio.from_thread import start_blocking_portal
from psycopg.conninfo import make_conninfo

import pgnotifyq
import pgnotifyq.aio
import pgnotifyq.sync
from pgnotifyq import CancelOutcome, InvalidJob, JobDead, JobNotFound, JobRegistry, NewJob, ScheduleNotFound, WaitTimeout, org
from pgnotifyq.doors import for_org, for_org_blocking
from pgnotifyq.ledger import organisation
from pgnotifyq.model.job import JobId
from pgnotifyq.wire.callers import ask_on_blocking
from tests.cli.test_commands import bury
from tests.doors.test_every_client import complete
from tests.doors.test_verbs import ITERATED, between, public_methods

OURS, THEIRS = org("acme"), org("umbrella")
Do = Callable[..., Any]


@contextmanager
def _open(door: str, dsn: str, **options: Any) -> Iterator[Do]:
    if door == "sync":
        with pgnotifyq.sync.open_client(dsn, **options) as client:
            yield lambda whose, verb, *given, **named: getattr(client.for_org(whose), verb)(*given, **named)
        return
    open_client: Any = {"trio": pgnotifyq.open_client, "asyncio": pgnotifyq.aio.open_client}[door]
    with (
        start_blocking_portal(door) as portal,
        portal.wrap_async_context_manager(open_client(dsn, **options)) as client,
    ):
        yield lambda whose, verb, *given, **named: portal.call(partial(getattr(client.for_org(whose), verb), *given, **named))


@pytest.fixture(params=["trio", "asyncio", "sync"])
def do(request: pytest.FixtureRequest, dsn: str) -> Iterator[Do]:
    with _open(request.param, dsn) as do:
        yield do


def test_schedules_of_a_tenant(do: Do) -> None:
    """A name is each tenant's own: what one does with it, the other's does not feel."""
    for whose in ("acme", THEIRS):
        assert do(whose, "schedule", "nightly", "0 3 * * *", "noop", tz="Europe/Berlin") == "created"
    do("acme", "pause_schedule", "nightly", why="holidays")
    assert [row.paused_at is None for whose in (OURS, THEIRS) for row in do(whose, "schedules")] == [False, True]
    assert do(OURS, "get", do(OURS, "run_schedule", "nightly")).org_id == OURS
    assert do(THEIRS, "jobs") == []
    assert len(do(OURS, "upcoming", "nightly", 3)) == 3
    assert [do(OURS, "resume_schedule", "nightly"), do(THEIRS, "resume_schedule", "nightly")] == [True, False]
    assert [do(OURS, "unschedule", "nightly"), do(OURS, "unschedule", "nightly")] == [True, False]
    assert [row.name for row in do(THEIRS, "schedules")] == ["nightly"]
    with pytest.raises(ScheduleNotFound):
        do(OURS, "run_schedule", "nightly")
    with pytest.raises(InvalidJob):
        do(OURS, "schedule", "nightly", "0 3 * * *", "noop", org_id=THEIRS)


def test_jobs_of_a_tenant(do: Do) -> None:
    """Are enqueued, looked at, counted and cancelled, whether the tenant is named by its name, its text or its id."""
    made = do("acme", "enqueue", "noop", {"n": 1}, queue="images", priority=3)
    more = do(str(OURS), "enqueue_many", [{"job_type": "noop"}, NewJob(job_type="noop"), NewJob(job_type="noop", org_id=OURS)])
    theirs = do(THEIRS, "enqueue", "noop")
    assert {job.org_id for job in do(OURS, "jobs")} == {OURS}
    assert [job.id for job in do(OURS, "jobs", queue="images")] == [made] == [do(OURS, "get", made).id]
    assert [job.id for job in do(THEIRS, "jobs")] == [theirs]
    assert (do(OURS, "count"), do(OURS, "count", status="pending", queue="default"), do(THEIRS, "count")) == (4, 3, 1)
    assert do(OURS, "cancel", more[0], why="a test") is CancelOutcome.CANCELLED
    assert do(OURS, "wait", more[0], 10).status == "cancelled"
    assert do(7, "jobs") == [] and do(7, "count") == 0


def test_waiting(do: Do, dsn: str) -> None:
    """For a job of the tenant: it ends, it goes on, or it is dead."""
    made = do(OURS, "enqueue", "noop")
    with pytest.raises(WaitTimeout):
        do(OURS, "wait", made, 0.05)
    complete(dsn)
    assert do(OURS, "wait", made, 10).status == "completed"
    assert len(do(OURS, "history", made)) == 1
    dies = do(OURS, "enqueue", "noop")
    bury(dsn, str(dies))
    with pytest.raises(JobDead):
        do(OURS, "wait", dies, 10)


def test_dead_letters(do: Do, dsn: str) -> None:
    """Of the tenant alone are listed, counted, brought back and purged."""
    ours, theirs = (do(whose, "enqueue", "noop") for whose in (OURS, THEIRS))
    for job_id in (ours, theirs):
        with psycopg.connect(dsn, autocommit=True) as session:
            session.execute("update pgnotifyq.jobs set priority = 9 where id = %s", (job_id,))
        bury(dsn, str(job_id))
    assert [letter.id for letter in do(OURS, "dead")] == [ours] == [do(OURS, "get_dead", ours).id]
    found = do(OURS, "get", ours)
    assert (found.id, found.org_id, found.status, found.label) == (ours, OURS, "dead", "dead")
    assert (do(OURS, "count_dead"), do(OURS, "count_dead", queue="images")) == (1, 0)
    assert do(OURS, "purge_dead", job_id=theirs) == 0
    assert do(OURS, "requeue_all") == 1
    assert do(OURS, "cancel", ours) is CancelOutcome.CANCELLED
    assert [letter.id for letter in do(THEIRS, "dead")] == [theirs]
    do(THEIRS, "requeue", theirs)
    bury(dsn, str(theirs))
    assert do(OURS, "purge_dead", older_than_seconds=0) == 0
    assert do(THEIRS, "purge_dead", older_than_seconds=0) == 1


@pytest.mark.parametrize("state", ["pending", "running", "dead"])
def test_job_of_another_tenant(do: Do, dsn: str, state: str) -> None:
    """Is unknown, by the very words for a job that never was; nothing of it is changed."""
    theirs, never = do(THEIRS, "enqueue", "noop"), uuid.uuid4()
    with psycopg.connect(dsn, autocommit=True) as session:
        if state == "running":
            session.execute("select from pgnotifyq.claim(gen_random_uuid(), '{default}', 1, 600)")
        elif state == "dead":
            bury(dsn, str(theirs))
        rows = "select xmin::text, id::text, t::text from pgnotifyq.{} as t"
        before = [session.execute(rows.format(table).encode()).fetchall() for table in ("jobs", "dead_letter_jobs")]
        for verb, named in (("get", {}), ("get_dead", {}), ("explain", {}), ("cancel", {}), ("cancel", {"wait_seconds": 1}), ("requeue", {}), ("wait", {})):  # fmt: skip
            told = []
            for job_id in (theirs, never):
                with pytest.raises(JobNotFound) as error:
                    do(OURS, verb, job_id, **named)
                told.append(str(error.value).replace(str(job_id), ""))
            assert told[0] == told[1], verb
        assert do(OURS, "history", theirs) == []
        assert before == [session.execute(rows.format(table).encode()).fetchall() for table in ("jobs", "dead_letter_jobs")]


def test_why_a_job_waits(do: Do, dsn: str) -> None:
    """A tenant is told what its job waits for. What others have a part in is not told, whatever they have there."""
    worker, host = uuid.uuid4(), "rack-7"
    register = "select pgnotifyq.register_worker(%s, %s, 4711, '{default,images}', 1, '9.9.9', false, 60)"
    jobs = [do(THEIRS, "enqueue", "noop", priority=9) for _ in range(2)]
    ours, alone = do(OURS, "enqueue", "noop"), do(OURS, "enqueue", "noop", queue="images")
    assert do(OURS, "explain", ours).sentences[-1] == "No live worker takes queue default."
    with psycopg.connect(dsn, autocommit=True) as session:
        session.execute(register, (worker, host))
        waits = do(OURS, "explain", ours)
        assert (waits.answers, waits.jobs_before, waits.slots_free, waits.workers) == (["due", "in_line"], 0, 0, 1)
        assert do(OURS, "explain", alone).answers == ["due", "in_line"]  # it is the next, and a slot is free
        session.execute("select from pgnotifyq.claim(%s, '{default}', 1, 600)", (worker,))
        assert do(OURS, "explain", alone).answers == ["due", "in_line"]  # another tenant has the only slot
        assert attrs.evolve(do(OURS, "explain", ours), due_in_seconds=0) == attrs.evolve(waits, due_in_seconds=0)
        do(OURS, "enqueue", "noop", priority=5)
        behind = do(OURS, "explain", ours)
        assert (behind.answers, behind.jobs_before) == (["due", "behind"], 1)
        assert behind.sentences[-1] == "1 due job(s) of its tenant come first in its queue."
        session.execute("select pgnotifyq.pause('default', who => 'ann', why => 'umbrella floods us')")
        paused = do(OURS, "explain", ours)
        assert (paused.answers, paused.paused, paused.paused_by, paused.paused_why) == (["due", "paused"], "queue", "", None)
        do(OURS, "cancel_all", pgnotifyq.JobFilter(queue="default"))
        session.execute("select from pgnotifyq.claim(%s, '{images}', 1, 600)", (worker,))
        runs = do(OURS, "explain", alone)
        assert (runs.answers, runs.held_on_host, runs.held_by_pid) == (["running"], None, None)
        for told in (waits, behind, paused, runs):
            text = f"{told} {told.sentences}"
            assert [
                word for word in (host, "4711", "9.9.9", "ann", "umbrella", str(worker), *map(str, jobs)) if word in text
            ] == []


def test_saying_another_tenant(do: Do) -> None:
    """Is refused: what a request says cannot lead out of its tenant."""
    for given in ({"org_id": THEIRS}, {"org_id": "umbrella"}):
        with pytest.raises(InvalidJob, match="another tenant"):
            do(OURS, "enqueue", "noop", **given)
        with pytest.raises(InvalidJob, match="another tenant"):
            do(OURS, "enqueue_many", [{"job_type": "noop", **given}])
    with pytest.raises(InvalidJob, match="another tenant"):
        do(OURS, "enqueue_many", [NewJob(job_type="noop", org_id=THEIRS)])
    assert do(OURS, "enqueue", "noop", org_id="acme")
    assert do(THEIRS, "count") == 0


def test_changes_of_many(do: Do) -> None:
    """An edit and each bulk change the tenant's jobs alone, whatever filter is given; a filter of another tenant is refused."""
    ours = [do(OURS, "enqueue", "noop", {"n": n}) for n in range(3)]
    theirs = do(THEIRS, "enqueue", "noop")
    everything = pgnotifyq.JobFilter()
    assert do(OURS, "edit", ours[0], priority=5, payload={"b": 1})
    assert (do(OURS, "get", ours[0]).priority, do(OURS, "get", ours[0]).payload) == (5, {"b": 1})
    with pytest.raises(JobNotFound):
        do(OURS, "edit", theirs, priority=5)
    assert do(OURS, "edit_all", everything, priority=7).done == 3
    batch = do(OURS, "cancel_all", everything, why="enough", limit=2)
    assert batch.done == 2
    assert do(OURS, "cancel_all", pgnotifyq.JobFilter(org_id=OURS), after_id=batch.after_id).done == 1
    assert not do(OURS, "edit", ours[0], priority=6)
    assert do(OURS, "delete_all", pgnotifyq.JobFilter(status="cancelled")).done == 3
    assert (do(THEIRS, "get", theirs).priority, do(THEIRS, "get", theirs).status) == (0, "pending")
    for verb, named in (("edit_all", {"priority": 1}), ("cancel_all", {}), ("delete_all", {})):
        with pytest.raises(InvalidJob, match="another tenant"):
            do(OURS, verb, pgnotifyq.JobFilter(org_id=THEIRS), **named)


def test_dead_letters_by_what_they_died_of(do: Do, dsn: str) -> None:
    """Groups and filters are of the tenant's letters alone, and so is what they bring back."""
    letters = {whose: do(whose, "enqueue", "noop") for whose in (OURS, THEIRS)}
    for letter in letters.values():
        with psycopg.connect(dsn, autocommit=True) as session:
            session.execute("update pgnotifyq.jobs set priority = 9 where id = %s", (letter,))
        bury(dsn, str(letter))
    (group,) = do(OURS, "dead_groups", error="BOOM")
    assert (group.letters, group.last_id) == (1, letters[OURS])
    assert [letter.id for letter in do(OURS, "dead", fingerprint=group.fingerprint)] == [letters[OURS]]
    assert do(OURS, "dead", error="none") == do(OURS, "dead_groups", queue="images") == []
    assert do(OURS, "requeue_all", error="none") == 0
    assert do(OURS, "requeue_all", fingerprint=group.fingerprint, per_second=1.0) == 1
    assert [letter.id for letter in do(THEIRS, "dead")] == [letters[THEIRS]]


def test_erasing(do: Do) -> None:
    """Takes what is the tenant's, and leaves what is another's, by payload and whole."""
    for whose in (OURS, THEIRS):
        for user in (17, 18):
            do(whose, "enqueue", "noop", {"user": user})
    assert do(OURS, "count_erasable", payload={"user": 17}).jobs == 1
    assert do(OURS, "erase", payload={"user": 17}, why="request 1").jobs == 1
    assert (do(OURS, "count"), do(THEIRS, "count")) == (1, 2)
    erased = do(OURS, "erase", why="request 2", who="Ann")
    assert (erased.jobs, erased.is_whole) == (1, True)
    assert (do(OURS, "count"), do(THEIRS, "count")) == (0, 2)
    with pytest.raises(TypeError):
        do(OURS, "erase", org_id=THEIRS)


def test_name_of_none(do: Do) -> None:
    """Is refused at once."""
    with pytest.raises(InvalidJob):
        do("", "count")


@pytest.mark.parametrize("door", ["trio", "asyncio", "sync"])
def test_looking_without_a_right_to_dead_letters(door: str, dsn: str) -> None:
    """A role that may see jobs alone finds its jobs. A dead letter is unknown to it, as is another tenant's job."""
    with psycopg.connect(dsn, autocommit=True) as session, _role(session) as role:
        with _open(door, dsn) as do:
            lives, dies = (do(OURS, "enqueue", "noop", priority=each) for each in (0, 9))
            theirs = do(THEIRS, "enqueue", "noop")
        bury(dsn, str(dies))
        with _open(door, make_conninfo(dsn, options=f"-c role={role}")) as do:
            assert do(OURS, "get", lives).id == lives
            for verb in ("get", "wait"):
                for job_id in (dies, theirs, uuid.uuid4()):
                    with pytest.raises(JobNotFound):
                        do(OURS, verb, job_id)
            for verb, job_id in (("requeue", dies), ("explain", lives)):
                with pytest.raises(pgnotifyq.MissingRights):
                    do(OURS, verb, job_id)
            with pytest.raises(JobNotFound):
                do(OURS, "explain", theirs)


def test_looking_without_a_right_to_dead_letters_in_a_transaction(dsn: str) -> None:
    """Says which right is missing: PostgreSQL has aborted the transaction, so nothing more can be asked in it."""
    with (
        psycopg.connect(dsn, autocommit=True) as session,
        _role(session) as role,
        psycopg.connect(dsn, options=f"-c role={role}") as mine,
        pytest.raises(pgnotifyq.MissingRights, match="dead_letter_jobs"),
    ):
        ask_on_blocking(mine, organisation.get_job("pgnotifyq", OURS, JobId(uuid.uuid4())))


@contextmanager
def _role(session: psycopg.Connection[Any]) -> Iterator[str]:
    """Make a role that may see and cancel all jobs, as docs/rights.md has it, and no dead letters."""
    role = f"looks_{uuid.uuid4().hex[:8]}"
    session.execute(f"create role {role} bypassrls".encode())
    session.execute(f"grant usage on schema pgnotifyq to {role}".encode())
    session.execute(f"grant select on pgnotifyq.jobs, pgnotifyq.schema_migrations to {role}".encode())
    session.execute(f"grant update (status, awaited, error_message) on pgnotifyq.jobs to {role}".encode())
    try:
        yield role
    finally:
        session.execute(f"drop owned by {role}".encode())
        session.execute(f"drop role {role}".encode())


def test_unique_keys(do: Do) -> None:
    """Are the tenant's own."""
    first = do(OURS, "enqueue", "noop", unique_key="k")
    assert do(OURS, "enqueue", "noop", unique_key="k") == first != do(THEIRS, "enqueue", "noop", unique_key="k")


@pytest.mark.parametrize("door", ["trio", "asyncio", "sync"])
def test_registry_of_the_client(door: str, dsn: str, registry: JobRegistry) -> None:
    """Gives the handler's defaults, as without a tenant."""
    with _open(door, dsn, registry=registry) as do:
        job = do(OURS, "get", do(OURS, "enqueue", "resize", {"path": "a", "width": 1}))
        assert (job.queue_name, job.max_attempts, job.org_id) == ("images", 7, OURS)
        with pytest.raises(pgnotifyq.UnknownJobType):
            do(OURS, "enqueue", "nonsense")


def test_connection_of_the_callers(do: Do, dsn: str) -> None:
    """The job exists if and only if its transaction commits."""
    with psycopg.connect(dsn) as mine:
        made = do(OURS, "enqueue", "noop", connection=mine)
        many = do(OURS, "enqueue_many", [{"job_type": "noop"}], connection=mine)
        with pytest.raises(JobNotFound):
            do(OURS, "get", made)
        mine.commit()
    assert do(OURS, "get", made).org_id == do(OURS, "get", many[0]).org_id == OURS


def test_the_two_clients_are_alike() -> None:
    """The blocking one has the same methods, with the same arguments and words; each is a verb of the table, or the door's own."""
    ours, theirs = public_methods(for_org.OrgClient), public_methods(for_org_blocking.OrgClient)
    assert ours.keys() == theirs.keys()
    assert [found for name, method in ours.items() for found in between(method, theirs[name])] == []
    table = {name for name, _ in inspect.getmembers(pgnotifyq.doors.org_verbs.OrgVerbs, inspect.isfunction) if name[0] != "_"}
    assert ours.keys() - {"wait", *ITERATED} == table - {"new_job", "new_jobs", "own"}
