"""What a worker's pruner does as the database says: it blanks, and takes dead letters away. And an erasure beside live workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio

import pgnotifyq
from pgnotifyq import Discard, EventName, JobRegistry
from pgnotifyq.runtime import pruner
from tests.asked import fetch, value
from tests.ledger.test_keeping import ORPHANS

if TYPE_CHECKING:
    from tests.runtime.support import Workplace

Payload = dict[str, Any]


def registry() -> JobRegistry:
    """Return handlers that complete, and that die."""
    made = JobRegistry()

    @made.handler()
    async def works(payload: Payload) -> str:
        return "done"

    @made.handler()
    async def dies(payload: Payload) -> Discard:
        return Discard("hopeless")

    return made


async def test_pass_of_a_worker(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is said takes effect on a worker that was started before, at its next pass, in more than one batch.

    The pass also empties the table of followers, when nobody follows any more.
    """
    await fetch(place.connection, "insert into pgnotifyq.followers (id, until) values (gen_random_uuid(), '2001-01-01')")
    monkeypatch.setattr(pruner, "EVERY_SECONDS", 0.2)  # ten minutes as a rule
    monkeypatch.setattr(pruner, "BATCH_MAX", 2)
    worker = await place.start(registry())
    async with pgnotifyq.open_client(place.dsn) as client:
        kept = [await client.enqueue("works", {"user": 17}) for _ in range(5)]
        dead = [await client.enqueue("dies", {"user": 17}) for _ in range(5)]
        for job_id in kept:
            await client.wait(job_id, 30)
        await place.until("(select count(*) from pgnotifyq.dead_letter_jobs) = 5")
        await client.set_retention("*", payload_seconds=0.0, result_seconds=0.0, ending="completed")
        await client.set_retention("*", ending="dead", payload_seconds=0.0)
        await place.until("(select count(*) from pgnotifyq.dead_letter_jobs where blanked_at is not null) = 5")
        await place.until("(select count(*) from pgnotifyq.jobs where payload = 'null' and result is null) = 5")
        with pytest.raises(pgnotifyq.IllegalTransition):
            await client.requeue(dead[0])
        assert await client.requeue_all() == 0
        await client.set_retention("default", 0.0, ending="dead")
        await place.until("not exists (select from pgnotifyq.dead_letter_jobs)")
        await place.until("pg_relation_size('pgnotifyq.followers') = 0")
    assert {row[0] for row in await fetch(place.connection, "select job_id from pgnotifyq.job_executions")} == set(kept)
    told = worker.log.find(EventName.JOBS_PRUNED)
    assert sum(int(each["blanked"]) for each in told) >= 5 and {each["jobs"] for each in told} == {"0"}


async def test_erasure_beside_workers(place: Workplace) -> None:
    """What runs is stopped, and after that nothing of the tenant is left; another's jobs all complete."""
    made, running = JobRegistry(), trio.Event()

    @made.handler()
    async def waits(payload: Payload) -> None:
        running.set()
        await trio.sleep_forever()

    @made.handler()
    async def works(payload: Payload) -> None:
        await trio.lowlevel.checkpoint()

    for _ in range(2):
        await place.start(made)
    async with pgnotifyq.open_client(place.dsn) as client:
        acme, umbrella = client.for_org("acme"), client.for_org("umbrella")
        await acme.enqueue("waits", {})
        await running.wait()

        async def enqueue_many(whose: Any, done: list[Any]) -> None:
            for _ in range(20):
                done += await whose.enqueue_many([{"job_type": "works"}] * 5)

        ours: list[Any] = []
        theirs: list[Any] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(enqueue_many, acme, ours)
            nursery.start_soon(enqueue_many, umbrella, theirs)
            for _ in range(5):
                await acme.erase(why="a test", limit=10)
        while not (await acme.erase(why="a test")).is_whole:
            await place.until("not exists (select from pgnotifyq.jobs where is_held and org_id = pgnotifyq.org('acme'))")
        for each in theirs:
            assert (await client.wait(each, 30)).status == "completed"
        assert (await acme.count(), await umbrella.count()) == (0, len(theirs))
    assert await value(place.connection, ORPHANS) == 0
    left = await fetch(place.connection, "select distinct org_id from pgnotifyq.job_executions")
    assert left == [(pgnotifyq.org("umbrella"),)]
