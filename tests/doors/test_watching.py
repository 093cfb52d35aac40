"""watch, follow_logs, events and logs, in each door: what a program is told of jobs, and when it ends."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from anyio.from_thread import start_blocking_portal

import pgnotifyq
import pgnotifyq.aio
import pgnotifyq.sync
from pgnotifyq import JobNotFound, WaitTimeout, org
from pgnotifyq.doors import ends
from pgnotifyq.ledger import claim as claim_verbs
from pgnotifyq.ledger import end, watching
from pgnotifyq.ledger import lease as lease_verbs
from pgnotifyq.ledger.ask import Verb
from pgnotifyq.model.job import JobId, Lease
from pgnotifyq.wire.asking import ask_blocking
from tests.doors.test_every_client import until
from tests.ledger.conftest import dsn, dsn_of_file
from tests.ledger.support import ANN, ENDINGS, SCHEMA

__all__ = ["dsn", "dsn_of_file"]

SECONDS = 30.0  # ends a test that fails


class Told:
    """An iterator of a door's, taken step by step."""

    def __init__(self, step: Callable[[], Any], close: Callable[[], Any]) -> None:
        self.step = step
        self.close = close

    def rest(self) -> list[Any]:
        """Return what comes until it ends."""
        found = []
        try:
            while True:
                found.append(self.step())
        except (StopIteration, StopAsyncIteration):
            return found


class Door:
    """A client, whatever its door."""

    def __init__(self, client: Any, portal: Any = None) -> None:
        self.client = client
        self.portal = portal

    def follow(self, verb: str, *given: Any, org_id: Any = None, **named: Any) -> Told:
        client = self.client if org_id is None else self.client.for_org(org_id)
        if self.portal is None:
            found = getattr(client, verb)(*given, **named)
            return Told(lambda: next(found), found.close)
        made: list[Any] = []

        async def step() -> Any:
            if not made:
                made.append(getattr(client, verb)(*given, **named))
            try:
                return True, await anext(made[0])
            except StopAsyncIteration:  # which cannot go through a portal
                return False, None

        def stepped() -> Any:
            goes_on, value = self.portal.call(step)
            if not goes_on:
                raise StopIteration
            return value

        return Told(stepped, lambda: self.portal.call(made[0].aclose))

    def do(self, verb: str, *given: Any) -> Any:
        method = getattr(self.client, verb)
        return method(*given) if self.portal is None else self.portal.call(method, *given)


@contextmanager
def open_door(name: str, dsn: str, **options: Any) -> Iterator[Door]:
    if name == "sync":
        with pgnotifyq.sync.open_client(dsn, **options) as client:
            yield Door(client)
        return
    open_client: Any = {"trio": pgnotifyq.open_client, "asyncio": pgnotifyq.aio.open_client}[name]
    with (
        start_blocking_portal(name) as portal,
        portal.wrap_async_context_manager(open_client(dsn, **options)) as client,
    ):
        yield Door(client, portal)


@pytest.fixture(params=["trio", "asyncio", "sync"])
def door(request: pytest.FixtureRequest, dsn: str, no_backstop: None) -> Iterator[Door]:
    with open_door(request.param, dsn) as door:
        yield door


class Hand:
    """A worker's statements, said by the test."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        self.run = connection.execute

    def ask(self, verb: Verb[Any]) -> Any:
        return ask_blocking(self._connection, verb)

    def enqueue(self, **fields: Any) -> JobId:
        named = "".join(f", {name} => %s" for name in fields)
        row = self.run(f"select pgnotifyq.enqueue('noop'{named})".encode(), tuple(fields.values())).fetchone()
        assert row is not None
        return JobId(row[0])

    def claim(self) -> Lease:
        found = self.ask(claim_verbs.claim(SCHEMA, worker_id=ANN, queues=["default"], jobs_max=1, lease_seconds=600.0))
        (job,) = found.jobs
        return Lease(job.id, job.current_execution_id)

    def progress(self, lease: Lease, fraction: float) -> None:
        assert self.ask(lease_verbs.report_progress(SCHEMA, lease, fraction=fraction, message=None))

    def log(self, lease: Lease, lines: int) -> None:
        head = json.dumps([[1.5, "info", f"line {n}"] for n in range(lines)])
        self.ask(watching.keep_logs(SCHEMA, [watching.Log(lease=lease, attempt=1, head=head, tail=None, left_out=0)]))

    def end(self, lease: Lease, ending: str = "complete") -> None:
        assert self.ask(end.settle(SCHEMA, worker_id=ANN, settlements=[(lease, ENDINGS[ending])])) == []


@pytest.fixture
def hand(dsn: str) -> Iterator[Hand]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield Hand(connection)


FOLLOWED = "exists (select from pgnotifyq.followers)"
EVENTS = "exists (select from pgnotifyq.followers where job_id is null)"
LISTENS = "exists (select from pg_stat_activity where datname = current_database() and starts_with(query, 'listen'))"


@contextmanager
def meanwhile(dsn: str, act: Callable[[], Any], once: str = LISTENS) -> Iterator[None]:
    """Do something in another thread once somebody listens."""

    def acts() -> None:
        until(dsn, once)
        act()

    thread = threading.Thread(target=acts)
    thread.start()
    yield
    thread.join()


# watch


def test_a_job_from_its_enqueue_to_its_end(door: Door, dsn: str, hand: Hand) -> None:
    """Each change is told once it is there, by a notification and not by a look, and the iterator ends with the job."""
    job_id = hand.enqueue()
    watch = door.follow("watch", job_id, timeout_seconds=SECONDS)
    assert watch.step().status == "pending"
    with meanwhile(dsn, lambda: hand.run("select pgnotifyq.edit(%s, priority => 5)", (job_id,))):
        assert watch.step().priority == 5
    leases: list[Lease] = []
    with meanwhile(dsn, lambda: leases.append(hand.claim())):
        assert watch.step().status == "running"
    for n in range(1, 11):
        with meanwhile(dsn, lambda n=n: hand.progress(leases[0], n / 10)):  # type: ignore[misc]
            assert watch.step().progress == pytest.approx(n / 10)
    with meanwhile(dsn, lambda: hand.end(leases[0])):
        job = watch.step()
    assert (job.status, job.result) == ("completed", {"n": 1})
    assert watch.rest() == []
    until(dsn, f"not {FOLLOWED}")


@pytest.mark.parametrize("ending", ["cancel", "bury"])
def test_other_ends(door: Door, hand: Hand, ending: str) -> None:
    """A cancelled job and a dead letter are told as such, and end the iterator."""
    job_id = hand.enqueue()
    hand.end(hand.claim(), ending)
    (job,) = door.follow("watch", job_id).rest()
    assert job.status == {"cancel": "cancelled", "bury": "dead"}[ending]


def test_a_retry_is_no_end(door: Door, hand: Hand) -> None:
    """The job waits again, and the iterator goes on."""
    job_id = hand.enqueue()
    watch = door.follow("watch", job_id, timeout_seconds=0.5)
    hand.end(hand.claim(), "retry")
    job = watch.step()
    assert (job.status, job.attempts, job.error_message) == ("pending", 1, "no luck")
    with pytest.raises(WaitTimeout):
        watch.step()


def test_what_is_not_there(door: Door, hand: Hand) -> None:
    """A job that never was, or that is deleted while somebody watches, is not found."""
    with pytest.raises(JobNotFound):
        door.follow("watch", "0190aaaa-0000-7000-8000-000000000000").step()
    job_id = hand.enqueue()
    watch = door.follow("watch", job_id, timeout_seconds=SECONDS)
    watch.step()
    hand.run("delete from pgnotifyq.jobs")
    with pytest.raises(JobNotFound):
        watch.step()


def test_who_leaves_early(door: Door, dsn: str, hand: Hand) -> None:
    """Follows no more at once."""
    watch = door.follow("watch", hand.enqueue())
    watch.step()
    until(dsn, FOLLOWED)
    watch.close()
    until(dsn, f"not {FOLLOWED}")


def test_a_lost_listener(door: Door, dsn: str, hand: Hand) -> None:
    """If the connection that listens is cut, another is opened, and nothing is missed."""
    job_id = hand.enqueue()
    watch = door.follow("watch", job_id, timeout_seconds=SECONDS)
    watch.step()

    def cut() -> None:
        hand.run(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and application_name = 'pgnotifyq client listener'"
        )
        hand.claim()

    with meanwhile(dsn, cut):
        assert watch.step().status == "running"


def test_no_listener(dsn: str, hand: Hand, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where LISTEN hears nothing, as behind a pooler in transaction mode, watching looks: it is slower, and tells the same."""
    monkeypatch.setattr(ends, "LISTEN_RETRY_SECONDS", 0.02)  # a second otherwise
    with open_door("sync", dsn, listen_dsn="host=127.0.0.1 port=1") as door:
        job_id = hand.enqueue()
        watch = door.follow("watch", job_id, timeout_seconds=SECONDS)
        assert watch.step().status == "pending"
        lease = hand.claim()
        assert watch.step().status == "running"
        hand.end(lease)
        assert watch.step().status == "completed"
        assert watch.rest() == []


# logs


def test_logs_as_they_come(door: Door, dsn: str, hand: Hand) -> None:
    """Each line is told once, in order, and the iterator ends with the job."""
    job_id = hand.enqueue()
    lease = hand.claim()
    hand.log(lease, 2)
    follow = door.follow("follow_logs", job_id, timeout_seconds=SECONDS)
    assert [follow.step().text for _ in range(2)] == ["line 0", "line 1"]
    with meanwhile(dsn, lambda: hand.log(lease, 4)):
        assert follow.step().text == "line 2"
    hand.end(lease)
    assert [line.text for line in follow.rest()] == ["line 3"]
    assert [line.text for line in door.do("logs", job_id)] == [f"line {n}" for n in range(4)]


# events


def test_events_of_a_queue(door: Door, dsn: str, hand: Hand) -> None:
    """What happens to its jobs is told in order, with how each job is now; jobs of other queues are not."""
    events = door.follow("events", queue="default", timeout_seconds=SECONDS)
    made: list[JobId] = []

    def act() -> None:
        hand.enqueue(queue_name="other")
        made.append(hand.enqueue())

    with meanwhile(dsn, act, EVENTS):
        event = events.step()
    assert (event.kind, event.job_id, event.queue, event.job_type) == ("enqueued", made[0], "default", "noop")
    lease = hand.claim()
    hand.progress(lease, 0.5)
    hand.end(lease)
    some = [events.step() for _ in range(3)]
    assert [(each.kind, each.attempt) for each in some] == [("started", 1), ("progress", 1), ("ended", 1)]
    assert (some[1].fraction, some[2].outcome, some[2].status) == (0.5, "completed", "completed")
    assert all(each.at is not None for each in some)
    events.close()
    until(dsn, f"not {FOLLOWED}")


def test_events_end_when_all_is_quiet(door: Door) -> None:
    """With a timeout."""
    assert door.follow("events", timeout_seconds=0.05).rest() == []


def test_events_that_are_lost(door: Door, dsn: str, hand: Hand) -> None:
    """A connection that was cut is opened anew, and it is told that something may be missing."""
    events = door.follow("events", timeout_seconds=SECONDS)

    def cut() -> None:
        hand.run(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and application_name = 'pgnotifyq client listener'"
        )

    with meanwhile(dsn, cut, EVENTS):
        event = events.step()
    assert (event.kind, event.lost, event.job_id) == ("lost", None, None)
    events.close()


def test_a_reader_that_was_away(door: Door, dsn: str, hand: Hand, monkeypatch: pytest.MonkeyPatch) -> None:
    """After more than a minute, it is told that something is lost."""
    # Twenty seconds otherwise.
    for module in ("watching", "blocking_watching"):
        monkeypatch.setattr(f"pgnotifyq.doors.{module}.RENEW_SECONDS", 0.01)
    events = door.follow("events", timeout_seconds=SECONDS)
    with meanwhile(dsn, hand.enqueue, EVENTS):
        assert events.step().kind == "enqueued"
    hand.run("delete from pgnotifyq.followers")  # as happens to those whose time is over
    hand.enqueue()
    event = events.step()
    assert (event.kind, event.lost) == ("lost", None)
    events.close()


# tenants


def test_of_one_tenant(door: Door, dsn: str, hand: Hand) -> None:
    """A tenant's client follows its own jobs. Another tenant's is unknown to it, and its events are not told."""
    ours, theirs = org("acme"), org("umbrella")
    mine, other = hand.enqueue(org_id=ours), hand.enqueue(org_id=theirs)
    assert door.follow("watch", mine, org_id=ours).step().status == "pending"
    for verb in ("watch", "follow_logs"):
        with pytest.raises(JobNotFound):
            door.follow(verb, other, org_id=ours).step()
    events = door.follow("events", org_id=ours, timeout_seconds=SECONDS)

    def act() -> None:
        hand.enqueue(org_id=theirs)
        hand.enqueue(org_id=ours)

    with meanwhile(dsn, act, EVENTS):
        assert events.step().org_id == ours
    events.close()
