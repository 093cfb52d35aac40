"""Permits: whoever claims takes them first, in one step, and what came meanwhile took its own."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from pgnotifyq import EventName, JobRegistry, open_client
from pgnotifyq.ledger import claim as claim_verbs
from pgnotifyq.runtime import handover
from pgnotifyq.runtime.parts import Parts
from pgnotifyq.runtime.slots import Slots
from tests.proxy import run_proxy
from tests.runtime.detours import Go, detour
from tests.runtime.support import PATIENCE_SECONDS, Workplace

Payload = dict[str, Any]


def workers_of(dsn: str) -> list[Parts]:
    """Return the workers of this loop that were given an address."""
    takers = handover._takers.get()
    assert takers is not None
    return takers[dsn, "pgnotifyq"]


@given(
    count=st.integers(1, 20),
    steps=st.lists(st.tuples(st.sampled_from(["claim", "answer", "end"]), st.integers(0, 25), st.integers(0, 25)), max_size=60),
)
def test_whatever_the_order(count: int, steps: list[tuple[str, int, int]]) -> None:
    """Claims that are sent, answered with fewer jobs or not at all, and jobs that end, in any order, never lose or make a permit."""
    slots = Slots(count)
    asked: list[int] = []
    running = 0
    for step, which, how_many in steps:
        if step == "claim":
            asked.append(slots.reserve(None if how_many > count else how_many))
        elif step == "answer" and asked:
            reserved = asked.pop(which % len(asked))
            found = min(how_many, reserved)
            running += found
            slots.release(reserved - found)
        elif step == "end":
            ended = min(how_many, running)
            running -= ended
            slots.release(ended)
        assert 0 <= slots.free <= count
        assert slots.free + slots.taken == count
        assert slots.taken == running + sum(asked)
    with pytest.raises(AssertionError):
        slots.release(slots.taken + 1)


@pytest.mark.parametrize("how", ["the link", "the next try"])
async def test_last_slot_is_taken_while_the_claimer_waits(place: Workplace, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """A claimer that waits, for its link or after a failure, and finds the last slot taken by then, sends no claim and goes on."""
    registry, let_go = JobRegistry(), trio.Event()

    @registry.handler()
    async def work(payload: Payload) -> None:
        await let_go.wait()

    cable = await place.nursery.start(run_proxy, place.dsn)
    asked: list[int] = []

    async def claim(go: Go, **kwargs: Any) -> Any:
        asked.append(kwargs["jobs_max"])
        return await go()

    worker = await place.start(registry, dsn=cable.dsn, listen_dsn=place.dsn, concurrency=1)
    await place.until_idle(worker)
    detour(monkeypatch, claim_verbs, "claim", claim)
    (parts,) = workers_of(cable.dsn)
    held, go_on = trio.Event(), trio.Event()

    async def hold(connection: object) -> None:
        held.set()
        await go_on.wait()

    async with open_client(cable.dsn) as client, trio.open_nursery() as nursery:

        async def fail(go: Go, **kwargs: Any) -> Any:
            detour(monkeypatch, claim_verbs, "claim", claim)
            nursery.start_soon(parts.quick.run, hold)  # before the next try
            raise trio.TooSlowError

        if how == "the link":
            nursery.start_soon(parts.quick.run, hold)
            await held.wait()
        else:
            detour(monkeypatch, claim_verbs, "claim", fail)
        parts.bell.ring()
        await held.wait()
        while parts.bell.is_ringing:
            await trio.lowlevel.checkpoint()
        job_id = await client.enqueue("work")
        await worker.log.wait(EventName.JOB_CLAIMED, job_id=job_id)
        go_on.set()
        second = await client.enqueue("work")
        let_go.set()
        for each in (job_id, second):
            await worker.log.wait(EventName.JOB_COMPLETED, job_id=each)
    assert 0 not in asked
    assert not worker.ended.is_set()


async def test_worker_and_client_in_one_program(place: Workplace) -> None:
    """With one slot, and jobs from the first moment on, by hand-over, by name and by claims, the worker lives and all of them end."""
    registry = JobRegistry()

    @registry.handler()
    async def work(payload: Payload) -> None:
        await trio.lowlevel.checkpoint()

    worker = await place.start(registry, concurrency=1, is_heard=False)
    async with open_client(place.dsn) as client:

        async def produce() -> None:
            for _ in range(40):
                await client.enqueue("work")

        with trio.fail_after(PATIENCE_SECONDS):
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(produce)
    await worker.log.wait(EventName.JOB_COMPLETED, count=120)
    assert not worker.ended.is_set()


async def test_claim_that_fails_gives_its_permits_back(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever becomes of a claim, its permits are free again, and the next try is a claim of its own."""
    registry, let_go = JobRegistry(), trio.Event()

    @registry.handler()
    async def work(payload: Payload) -> None:
        await let_go.wait()

    worker = await place.start(registry, concurrency=3)
    await place.until_idle(worker)
    failures, failed_at = 4, 0.0

    async def claim(go: Go, **kwargs: Any) -> Any:
        nonlocal failures, failed_at
        failures -= 1
        if failures > 0:
            failed_at = trio.current_time()
            raise trio.TooSlowError
        return await go()

    for verb in ("claim", "claim_apart"):  # the latter once a single job has failed
        detour(monkeypatch, claim_verbs, verb, claim)
    async with open_client(place.dsn) as client:
        await client.enqueue_many([{"job_type": "work"}] * 5)
    await worker.log.wait(EventName.JOB_CLAIMED, count=3)
    (parts,) = workers_of(place.dsn)
    assert (parts.slots.free, parts.slots.taken) == (0, 3)
    # Their leases count from the try that brought them: those of a claim that was repeated for a minute are not distrusted at once.
    assert all(running.renewed_at > failed_at for running in parts.holdings)
    let_go.set()
    await worker.log.wait(EventName.JOB_COMPLETED, count=5)
