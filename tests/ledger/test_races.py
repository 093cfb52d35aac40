"""The race matrix: every verb that writes a job against every other, in both orders, at the moment that hurts.

The first has written and not committed when the second begins; the second is known to wait for a lock, or to have returned; then
the first commits, or rolls back. What each is told, and what there is afterwards, is in the table, to be read rather than computed.
A picture such as `running 2/3 by ann [lost]` is the status, the attempts made and allowed, who holds the job, and how each attempt
in the history ended; `dead (lost) 1/1 [lost]` is a dead letter with its reason; there is never a job beside it.

Three kinds of races are in it. Two want the same thing: one gets it. One makes what the other is after: it does not see it yet, and
says that there is nothing. And a zombie, whose execution was lost, against whoever owns the job now: the zombie is told.
"""

from __future__ import annotations

import itertools
import threading
import time
from typing import TYPE_CHECKING, Any

import attrs
import psycopg
import pytest

from pgnotifyq.ledger import end
from pgnotifyq.model.job import Job, WorkerId
from pgnotifyq.model.outcome import PLAIN_COMPLETION, Outcome, SettleKind
from pgnotifyq.wire.asking import ask_blocking
from pgnotifyq.wire.blocking import Connection, connect
from tests.ledger.support import (
    ANN,
    BLOCKED,
    BOB,
    ENDINGS,
    LEASE_SECONDS,
    PATIENCE_SECONDS,
    SCHEMA,
    at_once,
    beat,
    claim,
    claim_one,
    dead_letter,
    enqueue,
    history,
    pass_time,
    reclaim,
    row,
    settle,
    until,
    update_status,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

Link = Connection[Any]
NAMES = {str(ANN): "ann", str(BOB): "bob"}
RETRY = Outcome(kind=SettleKind.RETRY, name="failed", error_message="no luck")


# Where a race begins. Each has been claimed by Ann once, and is the job as she was given it.


def waiting(link: Link) -> Job:
    """Pending again after Ann lost it: `pending 1/3 [lost]`."""
    job = running(link)
    pass_time(link, LEASE_SECONDS + 1)
    assert reclaim(link) == {job.id: "pending"}
    return job


def running(link: Link) -> Job:
    """Held by Ann: `running 1/3 by ann []`."""
    enqueue(link, max_attempts=3)
    return claim_one(link)


def last(link: Link) -> Job:
    """Held by Ann, and no attempt left: `running 1/1 by ann []`."""
    enqueue(link, max_attempts=1)
    return claim_one(link)


def stopping(link: Link) -> Job:
    """Cancelled under Ann's hands: `stopping 1/3 by ann []`."""
    job = running(link)
    update_status(link, job.id)
    return job


def finished(link: Link) -> Job:
    """Completed by Ann: `completed 1/3 [completed]`."""
    job = running(link)
    assert settle(link, job, PLAIN_COMPLETION) is None
    return job


def dead(link: Link) -> Job:
    """Lost by Ann on its last attempt: `dead (lost) 1/1 [lost]`."""
    job = last(link)
    pass_time(link, LEASE_SECONDS + 1)
    assert reclaim(link) == {job.id: "dead"}
    return job


# Who races. Ann's execution settles and beats from whichever session; the first to claim is Ann, the second Bob.


@attrs.frozen
class Racer:
    """One session in a race for Ann's job."""

    link: Link
    job: Job
    name: WorkerId
    completion: Outcome

    def claim(self) -> str:
        return "claimed" if claim(self.link, worker=self.name) else "nothing"

    def cancel(self) -> str:
        return ask_blocking(self.link, end.cancel(SCHEMA, self.job.id))

    def complete(self) -> str:
        return settle(self.link, self.job, self.completion) or "done"

    def retry(self) -> str:
        return settle(self.link, self.job, RETRY) or "done"

    def reclaim(self) -> str:
        pass_time(self.link, LEASE_SECONDS + 1)
        return (reclaim(self.link)).get(self.job.id, "nothing")

    def heartbeat(self) -> str:
        return (beat(self.link, self.job, lease_seconds=10 * LEASE_SECONDS)).get(self.job.id, "renewed")

    def requeue(self) -> str:
        return "requeued" if ask_blocking(self.link, end.requeue(SCHEMA, self.job.id)) else "nothing"

    def prune(self) -> str:
        pass_time(self.link, 10)
        deleted, _ = ask_blocking(self.link, end.prune(SCHEMA, older_than_seconds=1, after_id=None, jobs_max=10))
        return "pruned" if deleted else "nothing"


VERBS = ("claim", "cancel", "complete", "retry", "reclaim", "heartbeat", "requeue", "prune")


@attrs.frozen
class Race:
    """What is told and what is left."""

    start: Any
    first: str  # what the first is told
    second: str  # what the second is told
    end: str
    undone: tuple[str, str]  # what the second is told, and what is left, when the first rolls back
    waits: bool = False  # whether the second waits for the first


def waits(start: Any, first: str, second: str, end: str, undone: tuple[str, str]) -> Race:
    """Make a race in which the second waits for the first to end."""
    return Race(start, first, second, end, undone, waits=True)


WAITING, RUNNING, LAST = "pending 1/3 [lost]", "running 1/3 by ann []", "running 1/1 by ann []"
STOPPING, FINISHED, DEAD = "stopping 1/3 by ann []", "completed 1/3 [completed]", "dead (lost) 1/1 [lost]"
AGAIN = "pending 0/1 [lost]"  # requeued

RACES: dict[tuple[str, str], str | tuple[Race, ...]] = {
    # A claim that has not committed.
    ("claim", "claim"): (Race(waiting, "claimed", "nothing", "running 2/3 by ann [lost]", ("nothing", WAITING)),),
    ("claim", "cancel"): (
        waits(waiting, "claimed", "stopping", "stopping 2/3 by ann [lost]", ("cancelled", "cancelled 1/3 [lost]")),
    ),
    ("claim", "complete"): (Race(waiting, "claimed", "lost", "running 2/3 by ann [lost]", ("lost", WAITING)),),
    ("claim", "retry"): (Race(waiting, "claimed", "lost", "running 2/3 by ann [lost]", ("lost", WAITING)),),
    ("claim", "reclaim"): (Race(waiting, "claimed", "nothing", "running 2/3 by ann [lost]", ("nothing", WAITING)),),
    ("claim", "heartbeat"): (Race(waiting, "claimed", "lost", "running 2/3 by ann [lost]", ("lost", WAITING)),),
    ("claim", "requeue"): "a job that can be claimed has no dead letter",
    ("claim", "prune"): "neither a pending job nor a running one is pruned",
    # A cancel.
    ("cancel", "claim"): (Race(waiting, "cancelled", "nothing", "cancelled 1/3 [lost]", ("nothing", WAITING)),),
    ("cancel", "cancel"): (
        waits(waiting, "cancelled", "finished", "cancelled 1/3 [lost]", ("cancelled", "cancelled 1/3 [lost]")),
        waits(running, "stopping", "stopping", STOPPING, ("stopping", STOPPING)),
    ),
    ("cancel", "complete"): (waits(running, "stopping", "cancelled", "cancelled 1/3 [cancelled]", ("done", FINISHED)),),
    ("cancel", "retry"): (
        waits(running, "stopping", "cancelled", "cancelled 1/3 [cancelled]", ("done", "pending 1/3 [failed]")),
        waits(last, "stopping", "cancelled", "cancelled 1/1 [cancelled]", ("dead", "dead (exhausted) 1/1 [failed]")),
    ),
    ("cancel", "reclaim"): (
        Race(running, "stopping", "nothing", STOPPING, ("nothing", RUNNING)),
        Race(last, "stopping", "nothing", "stopping 1/1 by ann []", ("nothing", LAST)),
    ),
    ("cancel", "heartbeat"): (
        waits(
            running, "stopping", "cancelled", "stopping 1/3 by ann, renewed []", ("renewed", "running 1/3 by ann, renewed []")
        ),
    ),
    ("cancel", "requeue"): (Race(dead, "finished", "requeued", AGAIN, ("requeued", AGAIN)),),
    ("cancel", "prune"): (Race(waiting, "cancelled", "nothing", "cancelled 1/3 [lost]", ("nothing", WAITING)),),
    # A completion.
    ("complete", "claim"): (
        Race(running, "done", "nothing", FINISHED, ("nothing", RUNNING)),
        Race(waiting, "lost", "claimed", "running 2/3 by bob [lost]", ("claimed", "running 2/3 by bob [lost]")),
    ),
    ("complete", "cancel"): (
        waits(running, "done", "finished", FINISHED, ("stopping", STOPPING)),
        Race(stopping, "cancelled", "stopping", "cancelled 1/3 [cancelled]", ("stopping", STOPPING)),
    ),
    # An execution ends once. Whatever else is asked for it is taken for the same batch sent again: it has ended, not been lost.
    # That it was completed is told to whoever thinks otherwise.
    ("complete", "complete"): (waits(running, "done", "done", FINISHED, ("done", FINISHED)),),
    ("complete", "retry"): (waits(running, "done", "completed", FINISHED, ("done", "pending 1/3 [failed]")),),
    ("complete", "reclaim"): (
        Race(running, "done", "nothing", FINISHED, ("nothing", RUNNING)),
        Race(last, "done", "nothing", "completed 1/1 [completed]", ("nothing", LAST)),
    ),
    ("complete", "heartbeat"): (waits(running, "done", "lost", FINISHED, ("renewed", "running 1/3 by ann, renewed []")),),
    ("complete", "requeue"): (Race(dead, "lost", "requeued", AGAIN, ("requeued", AGAIN)),),
    ("complete", "prune"): (
        Race(running, "done", "nothing", FINISHED, ("nothing", RUNNING)),
        Race(stopping, "cancelled", "nothing", "cancelled 1/3 [cancelled]", ("nothing", STOPPING)),
    ),
    # A retry.
    ("retry", "claim"): (
        Race(running, "done", "nothing", "pending 1/3 [failed]", ("nothing", RUNNING)),
        Race(waiting, "lost", "claimed", "running 2/3 by bob [lost]", ("claimed", "running 2/3 by bob [lost]")),
    ),
    ("retry", "cancel"): (
        waits(running, "done", "cancelled", "cancelled 1/3 [failed]", ("stopping", STOPPING)),
        waits(last, "dead", "finished", "dead (exhausted) 1/1 [failed]", ("stopping", "stopping 1/1 by ann []")),
    ),
    ("retry", "complete"): (
        waits(running, "done", "done", "pending 1/3 [failed]", ("done", FINISHED)),
        waits(last, "dead", "done", "dead (exhausted) 1/1 [failed]", ("done", "completed 1/1 [completed]")),
    ),
    ("retry", "retry"): (
        waits(running, "done", "done", "pending 1/3 [failed]", ("done", "pending 1/3 [failed]")),
        waits(last, "dead", "done", "dead (exhausted) 1/1 [failed]", ("dead", "dead (exhausted) 1/1 [failed]")),
    ),
    ("retry", "reclaim"): (
        Race(running, "done", "nothing", "pending 1/3 [failed]", ("nothing", RUNNING)),
        Race(last, "dead", "nothing", "dead (exhausted) 1/1 [failed]", ("nothing", LAST)),
    ),
    ("retry", "heartbeat"): (
        waits(running, "done", "lost", "pending 1/3 [failed]", ("renewed", "running 1/3 by ann, renewed []")),
        waits(last, "dead", "lost", "dead (exhausted) 1/1 [failed]", ("renewed", "running 1/1 by ann, renewed []")),
    ),
    ("retry", "requeue"): (
        Race(last, "dead", "nothing", "dead (exhausted) 1/1 [failed]", ("nothing", LAST)),
        Race(dead, "lost", "requeued", AGAIN, ("requeued", AGAIN)),
    ),
    ("retry", "prune"): (Race(stopping, "cancelled", "nothing", "cancelled 1/3 [cancelled]", ("nothing", STOPPING)),),
    # A reclaim.
    ("reclaim", "claim"): (Race(running, "pending", "nothing", WAITING, ("nothing", RUNNING)),),
    ("reclaim", "cancel"): (
        waits(running, "pending", "cancelled", "cancelled 1/3 [lost]", ("stopping", STOPPING)),
        waits(last, "dead", "finished", DEAD, ("stopping", "stopping 1/1 by ann []")),
        Race(stopping, "cancelled", "stopping", "cancelled 1/3 [lost]", ("stopping", STOPPING)),
    ),
    ("reclaim", "complete"): (
        waits(running, "pending", "lost", WAITING, ("done", FINISHED)),
        waits(last, "dead", "lost", DEAD, ("done", "completed 1/1 [completed]")),
        waits(stopping, "cancelled", "lost", "cancelled 1/3 [lost]", ("cancelled", "cancelled 1/3 [cancelled]")),
    ),
    ("reclaim", "retry"): (
        waits(running, "pending", "lost", WAITING, ("done", "pending 1/3 [failed]")),
        waits(last, "dead", "lost", DEAD, ("dead", "dead (exhausted) 1/1 [failed]")),
        waits(stopping, "cancelled", "lost", "cancelled 1/3 [lost]", ("cancelled", "cancelled 1/3 [cancelled]")),
    ),
    ("reclaim", "reclaim"): (
        Race(running, "pending", "nothing", WAITING, ("nothing", RUNNING)),
        Race(last, "dead", "nothing", DEAD, ("nothing", LAST)),
    ),
    ("reclaim", "heartbeat"): (
        waits(running, "pending", "lost", WAITING, ("renewed", "running 1/3 by ann, renewed []")),
        waits(last, "dead", "lost", DEAD, ("renewed", "running 1/1 by ann, renewed []")),
        waits(stopping, "cancelled", "lost", "cancelled 1/3 [lost]", ("cancelled", "stopping 1/3 by ann, renewed []")),
    ),
    ("reclaim", "requeue"): (Race(last, "dead", "nothing", DEAD, ("nothing", LAST)),),
    ("reclaim", "prune"): (Race(stopping, "cancelled", "nothing", "cancelled 1/3 [lost]", ("nothing", STOPPING)),),
    # A heartbeat.
    ("heartbeat", "claim"): (
        Race(waiting, "lost", "claimed", "running 2/3 by bob [lost]", ("claimed", "running 2/3 by bob [lost]")),
    ),
    ("heartbeat", "cancel"): (waits(running, "renewed", "stopping", "stopping 1/3 by ann, renewed []", ("stopping", STOPPING)),),
    ("heartbeat", "complete"): (
        waits(running, "renewed", "done", FINISHED, ("done", FINISHED)),
        waits(
            stopping, "cancelled", "cancelled", "cancelled 1/3 [cancelled]", ("cancelled", "cancelled 1/3 [cancelled]")
        ),
    ),
    ("heartbeat", "retry"): (
        waits(running, "renewed", "done", "pending 1/3 [failed]", ("done", "pending 1/3 [failed]")),
        waits(last, "renewed", "dead", "dead (exhausted) 1/1 [failed]", ("dead", "dead (exhausted) 1/1 [failed]")),
    ),
    ("heartbeat", "reclaim"): (
        Race(running, "renewed", "nothing", "running 1/3 by ann, renewed []", ("nothing", RUNNING)),
        Race(last, "renewed", "nothing", "running 1/1 by ann, renewed []", ("nothing", LAST)),
        Race(stopping, "cancelled", "nothing", "stopping 1/3 by ann, renewed []", ("nothing", STOPPING)),
    ),
    ("heartbeat", "heartbeat"): (
        waits(running, "renewed", "renewed", "running 1/3 by ann, renewed []", ("renewed", "running 1/3 by ann, renewed []")),
    ),
    ("heartbeat", "requeue"): (Race(dead, "lost", "requeued", AGAIN, ("requeued", AGAIN)),),
    ("heartbeat", "prune"): (Race(finished, "lost", "pruned", "gone", ("pruned", "gone")),),
    # A requeue. A cancel that finds nothing to change waits for nobody, here and elsewhere, and is told what was true before.
    ("requeue", "claim"): (Race(dead, "requeued", "nothing", AGAIN, ("nothing", DEAD)),),
    ("requeue", "cancel"): (Race(dead, "requeued", "finished", AGAIN, ("finished", DEAD)),),
    ("requeue", "complete"): (Race(dead, "requeued", "lost", AGAIN, ("lost", DEAD)),),
    ("requeue", "retry"): (Race(dead, "requeued", "lost", AGAIN, ("lost", DEAD)),),
    ("requeue", "reclaim"): "neither a dead letter nor a job just requeued is held",
    ("requeue", "heartbeat"): (Race(dead, "requeued", "lost", AGAIN, ("lost", DEAD)),),
    ("requeue", "requeue"): (waits(dead, "requeued", "nothing", AGAIN, ("requeued", AGAIN)),),
    ("requeue", "prune"): "neither a dead letter nor a pending job is pruned",
    # A prune. Ann's ending sent again is recognised as long as its history is there to be seen.
    ("prune", "claim"): "a finished job is never claimed",
    ("prune", "cancel"): (Race(finished, "pruned", "finished", "gone", ("finished", FINISHED)),),
    ("prune", "complete"): (Race(finished, "pruned", "done", "gone", ("done", FINISHED)),),
    ("prune", "retry"): (Race(finished, "pruned", "completed", "gone", ("completed", FINISHED)),),
    ("prune", "reclaim"): "a finished job is not held",
    ("prune", "heartbeat"): (Race(finished, "pruned", "lost", "gone", ("lost", FINISHED)),),
    ("prune", "requeue"): "a finished job has no dead letter",
    ("prune", "prune"): (Race(finished, "pruned", "nothing", "gone", ("nothing", FINISHED)),),
}  # fmt: skip

# Two in a line behind the first: what the three are told, and what is left when it commits. They mostly go on in the order they
# came, and PostgreSQL does not promise it: whoever waited for an update looks for the row's newest version, and whoever came
# later may find that first. So where it matters who is first, both ways are here.
Told = tuple[str, str, str]
LINES: dict[Told, tuple[Any, tuple[tuple[Told, str], ...]]] = {
    ("reclaim", "complete", "heartbeat"): (running, ((("pending", "lost", "lost"), WAITING),)),
    ("reclaim", "retry", "cancel"): (running, ((("pending", "lost", "cancelled"), "cancelled 1/3 [lost]"),)),
    ("cancel", "complete", "retry"): (running, ((("stopping", "cancelled", "cancelled"), "cancelled 1/3 [cancelled]"),)),
    ("heartbeat", "complete", "cancel"): (
        running,
        (
            (("renewed", "done", "finished"), FINISHED),
            (("renewed", "cancelled", "stopping"), "cancelled 1/3 [cancelled]"),
        ),
    ),
    ("heartbeat", "cancel", "complete"): (
        running,
        (
            (("renewed", "stopping", "cancelled"), "cancelled 1/3 [cancelled]"),
            (("renewed", "finished", "done"), FINISHED),
        ),
    ),
    ("heartbeat", "retry", "cancel"): (
        running,
        (
            (("renewed", "done", "cancelled"), "cancelled 1/3 [failed]"),
            (("renewed", "cancelled", "stopping"), "cancelled 1/3 [cancelled]"),
        ),
    ),
    ("complete", "heartbeat", "cancel"): (running, ((("done", "lost", "finished"), FINISHED),)),
    ("retry", "cancel", "heartbeat"): (last, ((("dead", "finished", "lost"), "dead (exhausted) 1/1 [failed]"),)),
    ("claim", "cancel", "cancel"): (waiting, ((("claimed", "stopping", "stopping"), "stopping 2/3 by ann [lost]"),)),
}


def races() -> Iterator[Any]:
    """Yield each race of the table, completions both without a result and with one."""
    for (first, second), entry in RACES.items():
        if isinstance(entry, str):
            continue
        for race in entry:
            completions = ("complete plainly", "complete") if "complete" in {first, second} else ("complete plainly",)
            for completion in completions:
                name = f"{first}-{second}-{race.start.__name__}{'-result' if completion == 'complete' else ''}"
                yield pytest.param(first, second, race, ENDINGS[completion], id=name)


@pytest.fixture
def desk(dsn: str) -> Iterator[Link]:
    """Give a session that races with nobody: it makes the job, and looks at it afterwards."""
    with connect(dsn) as link:
        yield link


def picture(link: Link, job_id: Any) -> str:
    """Describe all there is of a job, in the words of the table."""
    found, letter = row(link, job_id), dead_letter(link, job_id)
    outcomes = [outcome for _, outcome in history(link, job_id)]
    ended = f"[{', '.join(outcomes)}]"
    if letter is not None:
        assert found is None
        assert [attempt["outcome"] for attempt in letter["history"]] == outcomes
        return f"dead ({letter['reason']}) {letter['attempts']}/{letter['max_attempts']} {ended}"
    if found is None:
        assert outcomes == []
        return "gone"
    status = "stopping" if found["status"] == "cancelled" and found["is_held"] else found["status"]
    holder = f" by {NAMES[found['locked_by']]}" if found["is_held"] else ""
    is_renewed = "lease_expires_at > started_at + make_interval(secs => %s) from pgnotifyq.jobs where id = %s"
    cursor = link.execute(f"select {is_renewed}".encode(), (2 * LEASE_SECONDS, job_id))
    ((renewed,),) = cursor.fetchall()
    return f"{status} {found['attempts']}/{found['max_attempts']}{holder}{', renewed' if renewed else ''} {ended}"


def waits_for_a_lock(dsn: str, name: str, returned: threading.Event) -> bool:
    """Wait until a session is blocked, or has returned, and tell which."""
    gives_up_at = time.monotonic() + PATIENCE_SECONDS
    with psycopg.connect(dsn, autocommit=True) as looker:
        while not returned.wait(0.01):
            row = looker.execute(f"select {BLOCKED}".encode(), (name,)).fetchone()
            if row is not None and row[0]:
                return True
            assert time.monotonic() < gives_up_at, f"neither blocked nor back within {PATIENCE_SECONDS} s"
    return False


def test_every_pair_is_in_the_table() -> None:
    """No ordered pair of verbs is forgotten: each has its races, or the reason why there can be none."""
    assert list(RACES) == list(itertools.product(VERBS, VERBS))
    assert sum(isinstance(entry, str) for entry in RACES.values()) == 7


@pytest.mark.parametrize("start", [waiting, running, last, stopping, finished, dead])
def test_where_races_begin(desk: Link, start: Any) -> None:
    """Each start is what its docstring says."""
    job = start(desk)
    assert f"`{picture(desk, job.id)}`" in start.__doc__


@pytest.mark.parametrize("commits", [True, False], ids=["commit", "rollback"])
@pytest.mark.parametrize(("first", "second", "race", "completion"), list(races()))
def test_race(
    connection: Link,
    other: Link,
    desk: Link,
    dsn: str,
    first: str,
    second: str,
    race: Race,
    completion: Outcome,
    commits: bool,
) -> None:
    """One wins, the other is told; row, history and dead letter are what the table says."""
    job = race.start(desk)
    told: list[str] = []
    returned = threading.Event()

    def act() -> None:
        told.append(getattr(Racer(other, job, BOB, completion), second)())
        returned.set()

    with at_once() as start, connection.transaction(force_rollback=not commits):
        assert getattr(Racer(connection, job, ANN, completion), first)() == race.first
        start(act)
        assert waits_for_a_lock(dsn, "other", returned) == race.waits
    assert (*told, picture(desk, job.id)) == ((race.second, race.end) if commits else race.undone)


@pytest.mark.parametrize("line", LINES, ids="-".join)
def test_two_wait_in_line(connection: Link, other: Link, desk: Link, dsn: str, line: tuple[str, str, str]) -> None:
    """Of two that wait for a third each finds what the one before it left, and is told so; there is one winner."""
    begin, ends = LINES[line]
    job = begin(desk)
    told: dict[str, str] = {}

    def act(link: Link, place: str, verb: str) -> None:
        told[place] = getattr(Racer(link, job, BOB, PLAIN_COMPLETION), verb)()

    with (
        connect(dsn, application_name="third", options="-c lock_timeout=5s") as third,
        at_once() as start,
        connection.transaction(),
    ):
        told["first"] = getattr(Racer(connection, job, ANN, PLAIN_COMPLETION), line[0])()
        start(act, other, "second", line[1])
        until(dsn, BLOCKED, "other")
        start(act, third, "third", line[2])
        until(dsn, BLOCKED, "third")
    assert ((told["first"], told["second"], told["third"]), picture(desk, job.id)) in ends
