"""A bulk of unique jobs ends as if its jobs had been enqueued one by one, in their order."""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING, Any

import pytest

from pgnotifyq.ledger import bulk
from pgnotifyq.ledger import enqueue as enqueue_verbs
from pgnotifyq.model.errors import UniqueKeyHeld
from pgnotifyq.model.new_job import NewJob
from pgnotifyq.model.outcome import PLAIN_COMPLETION
from pgnotifyq.model.unique import Enqueued, Unique
from pgnotifyq.wire.asking import ask_blocking
from tests.ledger.support import SCHEMA, claim, fetch, pass_time, settle, update_status

if TYPE_CHECKING:
    from pgnotifyq.wire.blocking import Connection

    Link = Connection[Any]

POLICIES: tuple[dict[str, Any], ...] = (
    {},
    {"while_": "pending"},
    {"for_seconds": 60},
    {"on_conflict": "replace"},
    {"on_conflict": "replace", "replace": ("priority",)},
    {"on_conflict": "replace", "while_": "pending", "longest_wait_seconds": 30},
    {"on_conflict": "supersede"},
    {"on_conflict": "supersede", "for_seconds": 5},
    {"on_conflict": "supersede", "while_": "pending"},
)
# What holds a key before: a job that waits, runs, is stopping, or is so with another that waits for
# it; that has ended within its period, or beyond; nothing.
HOLDERS = ("waits", "runs", "stopping", "followed", "ended", "over", "free")
KEYS_OF_EACH = 12


def hold(connection: Link) -> None:
    """Make the holders."""

    def put(states: tuple[str, ...], **fields: Any) -> None:
        jobs = [
            NewJob(job_type="noop", payload={"key": f"{state} {n}"}, unique=Unique(key=f"{state} {n}", **fields))
            for state in states
            for n in range(KEYS_OF_EACH)
        ]
        ask_blocking(connection, bulk.enqueue_many(SCHEMA, jobs))

    put(("over",), for_seconds=5)
    put(("ended",), for_seconds=1000)
    for job in claim(connection, 100):
        settle(connection, job, PLAIN_COMPLETION)
    pass_time(connection, 10)
    put(("runs", "stopping", "followed"))
    for job in claim(connection, 100):
        if job.payload["key"].startswith("stopping"):
            update_status(connection, job.id)
    put(("followed",), on_conflict="supersede")
    put(("waits",))


def wants(chance: random.Random, policies: tuple[dict[str, Any], ...]) -> list[NewJob]:
    """Make jobs that want those keys, one to four a key, in any order."""
    jobs = [
        NewJob(
            job_type="noop",
            payload={"wants": chance.random()},
            priority=chance.randrange(5),
            delay_seconds=chance.choice((None, 5.0, 500.0)),
            unique=Unique(key=f"{state} {n}", **chance.choice(policies)),
        )
        for state in HOLDERS
        for n in range(KEYS_OF_EACH)
        for _ in range(chance.randint(1, 4))
    ]
    chance.shuffle(jobs)
    return jobs


def seen(connection: Link, told: list[Enqueued]) -> tuple[list[tuple[str, str]], list[str]]:
    """Return what was told, and all jobs, with the places of the new ones in place of their ids."""
    places: dict[str, str] = {}
    for place, one in enumerate(told):
        if one.outcome in {"created", "superseded"}:
            places[str(one.job_id)] = f"job {place}"
    ids = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

    def name(text: str) -> str:
        return ids.sub(lambda found: places.get(found[0], found[0]), text)

    rows = fetch(connection, "select j::text from pgnotifyq.jobs as j")
    return [(name(str(one.job_id)), str(one.outcome)) for one in told], sorted(name(text) for (text,) in rows)


@pytest.mark.parametrize("seed", range(3))
def test_bulk_and_one_by_one(connection: Link, seed: int) -> None:
    """Whatever holds the keys and whatever wants them: the same is told, and the same is there."""
    hold(connection)
    jobs = wants(random.Random(seed), POLICIES if seed else POLICIES[-3:-2])
    found = []
    for is_bulk in (False, True):
        with connection.transaction(force_rollback=True):
            if is_bulk:
                told = ask_blocking(connection, bulk.enqueue_many_told(SCHEMA, jobs))
            else:
                told = [ask_blocking(connection, enqueue_verbs.enqueue_told(SCHEMA, job)) for job in jobs]
            found.append(seen(connection, told))
    (one_by_one, jobs_then), (in_bulk, jobs_now) = found
    assert {outcome for _, outcome in one_by_one} >= {"created", "superseded"}
    assert [pair for pair in zip(jobs, one_by_one, in_bulk, strict=True) if pair[1] != pair[2]] == []
    assert jobs_now == jobs_then


def test_bulk_refused_in_a_round(connection: Link) -> None:
    """If one of many is refused, nothing has become of the others."""
    hold(connection)
    before = seen(connection, [])
    jobs = [
        NewJob(job_type="noop", unique=Unique(key=f"waits {n}", on_conflict="supersede" if n else "refuse"))
        for n in range(KEYS_OF_EACH)
    ]
    with pytest.raises(UniqueKeyHeld):
        ask_blocking(connection, bulk.enqueue_many_told(SCHEMA, jobs))
    assert seen(connection, []) == before
