"""Permits and leases: a claim takes its permits first, in one step, and what came meanwhile took its own."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
import trio
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pgnotifyq import Event, EventName, JobRegistry, open_client
from pgnotifyq.ledger import claim as claim_verbs
from pgnotifyq.ledger.claimed import ClaimedJob
from pgnotifyq.model.job import ExecutionId, JobId
from pgnotifyq.model.outcome import Interrupt, InterruptKind
from pgnotifyq.runtime import shortcuts
from pgnotifyq.runtime.bell import Bell
from pgnotifyq.runtime.executions import Executions, Reserved
from pgnotifyq.runtime.running import Running
from pgnotifyq.runtime.shortcuts import Taker
from tests.proxy import run_proxy
from tests.runtime.detours import Go, detour
from tests.runtime.support import PATIENCE_SECONDS, Workplace

Payload = dict[str, Any]
QUEUES = ["images", "work", "mail"]


def workers_of(dsn: str) -> list[Taker]:
    """Return the workers of this loop that were given an address."""
    takers = shortcuts._takers.get()
    assert takers is not None
    return takers[dsn, "pgnotifyq"]


def claimed(job_id: int, execution_id: int, queue: str = "work") -> Running:
    """Return an execution as a claim brings it."""
    job = ClaimedJob()
    job.id, job.current_execution_id = JobId(UUID(int=job_id)), ExecutionId(UUID(int=execution_id))
    job.job_type, job.queue_name = "work", queue
    job.attempts = 1
    return Running(job=job, renewed_at=float(execution_id))


class Whatever(RuleBasedStateMachine):
    """Claims, hand-overs, named jobs, cancels, losses and ends in any order, against a plain account of what each has taken."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[Event] = []
        self.asked: list[Reserved] = []  # permits of claims that are under way
        self.waiting: list[Running] = []  # in the line, the first first
        self.held: list[Running] = []  # each has a permit
        self.superseded: list[Running] = []  # of those: another execution of the same job has come
        self.made = 0

    @initialize(
        count=st.integers(1, 12),
        permits=st.dictionaries(st.sampled_from(QUEUES), st.integers(1, 5)),
    )
    def begin(self, count: int, permits: dict[str, int]) -> None:
        self.bell = Bell()
        self.permits = permits
        self.left: set[str] = set()  # queues that a claim has left out since they were open
        self.executions = Executions(count, self.told.append, queues=QUEUES, permits=permits, opened=self.bell)

    def _taken(self, queue: str) -> int:
        """Return how many permits of a queue are taken, by a plain count."""
        return sum(reserved.rooms.get(queue, 0) for reserved in self.asked) + sum(
            running.job.queue_name == queue for running in self.held
        )

    def _come(self, job_id: int, queue: str) -> Running:
        self.made += 1
        running = claimed(job_id, self.made, queue)
        self.superseded += [before for before in self.held if before.job.id == running.job.id]
        self.held.append(running)
        return running

    @rule(wanted=st.none() | st.integers(0, 15), is_sparing=st.booleans())
    def claim(self, wanted: int | None, *, is_sparing: bool) -> None:
        free = self.executions.free
        rooms = {queue: most - self._taken(queue) for queue, most in self.permits.items()}
        reserved = self.executions.reserve(wanted, is_sparing=is_sparing)
        if all(rooms.get(queue, 1) <= 0 for queue in QUEUES):
            assert not reserved
        else:
            most = max(free - 1, min(free, 1)) if is_sparing else free
            assert reserved.count == (most if wanted is None else min(most, wanted))
        if reserved:
            assert reserved.queues == [queue for queue in QUEUES if rooms.get(queue, 1) > 0] or not self.permits
            assert all(0 < room <= min(rooms[queue], reserved.count) for queue, room in reserved.rooms.items())
        self.left |= {queue for queue in QUEUES if rooms.get(queue, 1) <= 0}
        self.asked.append(reserved)

    @rule(queue=st.sampled_from(QUEUES))
    def claim_of_one(self, queue: str) -> None:
        """A wake-up has named a job, or one is handed over."""
        may = self.executions.free > 0 and self._taken(queue) < self.permits.get(queue, 99)
        reserved = self.executions.reserve_one(queue)
        assert reserved.count == int(may)
        if reserved:
            self.asked.append(reserved)

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        """A claim is answered with as many jobs as it asked for, or fewer, or it fails."""
        reserved = self.asked.pop(data.draw(st.integers(0, len(self.asked) - 1)))
        jobs = data.draw(st.lists(st.integers(1, 9), max_size=reserved.count, unique=True))
        came: list[Running] = []
        for job_id in jobs:
            rooms = {queue: reserved.rooms.get(queue, 99) for queue in reserved.queues}
            able = [queue for queue, room in rooms.items() if room > sum(one.job.queue_name == queue for one in came)]
            if able:
                came.append(self._come(job_id, data.draw(st.sampled_from(able))))
        told = len(self.told)
        self.executions.take_up(came, reserved)
        self.waiting += came
        assert [event.fields["job_id"] for event in self.told[told:]] == [running.job.id for running in came]

    @precondition(lambda self: any(reserved.count == 1 for reserved in self.asked))
    @rule(job_id=st.integers(1, 9))
    def job_that_shall_not_start(self, job_id: int) -> None:
        """A named job that comes when the worker has drained, or a hand-over whose reply was lost."""
        reserved = next(one for one in self.asked if one.count == 1)
        self.asked.remove(reserved)
        self.executions.hold(self._come(job_id, reserved.queues[0]), reserved)

    @rule(queues=st.sets(st.sampled_from(QUEUES), min_size=1))
    def claim_has_left_jobs(self, queues: set[str]) -> None:
        """For want of permits: the claimer is told whether it may look again at once, else it is rung for later."""
        closed = {queue for queue in queues if self._taken(queue) >= self.permits.get(queue, 99)}
        assert self.executions.leave_out(queues) == (closed != queues)
        self.left |= closed

    @precondition(lambda self: self.waiting)
    @rule()
    def start(self) -> None:
        assert trio.run(self.executions.take) is self.waiting.pop(0)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), kind=st.sampled_from(InterruptKind), is_given_up=st.booleans())
    def interrupt(self, data: st.DataObject, kind: InterruptKind, *, is_given_up: bool) -> None:
        running = data.draw(st.sampled_from(self.held))
        self.executions.stop(running, Interrupt(kind=kind))
        running.is_given_up = is_given_up and kind is InterruptKind.LEASE_LOST

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def beat(self, data: st.DataObject) -> None:
        self.made += 1
        self.executions.renew(data.draw(st.sampled_from(self.held)), float(self.made))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def let_go(self, data: st.DataObject) -> None:
        """Outcomes are durable, or leases lost; each may be told twice: by the settler and by who trusts it no more."""
        ended = data.draw(st.lists(st.sampled_from(self.held), min_size=1, max_size=5))
        given_up = [running for running in ended if running.is_given_up]
        self.executions.let_go(ended)
        self.executions.let_go(ended[:1])
        self.held = [running for running in self.held if running not in ended]
        self.superseded = [running for running in self.superseded if running not in ended]
        assert all(running.is_gone for running in ended)
        assert set(given_up) <= set(self.executions.given_up)

    @invariant()
    def no_permit_is_leaked_or_free_twice(self) -> None:
        executions = self.executions
        assert executions.free + executions.taken == executions.count
        assert executions.taken == sum(reserved.count for reserved in self.asked) + len(self.held)
        assert executions.wants_more == (
            executions.free > 0
            and (not self.waiting or executions.free >= max(executions.count // 2, 1))
            and bool(executions.open_queues())
        )

    @invariant()
    def no_queue_runs_more_than_it_may(self) -> None:
        """And whoever has left a queue out hears of it when it opens."""
        is_open = {queue: self._taken(queue) < self.permits.get(queue, 99) for queue in QUEUES}
        assert all(self._taken(queue) <= most for queue, most in self.permits.items())
        assert list(self.executions.open_queues()) == [queue for queue in QUEUES if is_open[queue]]
        opened = {queue for queue in self.left if is_open[queue]}
        assert self.bell.is_ringing == bool(opened)
        self.left -= opened
        self.bell.hush()

    @invariant()
    def each_lease_is_found(self) -> None:
        executions = self.executions
        newest = [running for running in self.held if running not in self.superseded]
        assert {id(running) for running in executions} == {id(running) for running in newest}
        assert [running.renewed_at for running in executions] == sorted(running.renewed_at for running in newest)
        assert all(executions.find(*running.lease) is running for running in newest)
        assert all(executions.find(*running.lease) is None and running.is_lost for running in self.superseded)
        assert executions.emptied.is_set() == (not newest)
        assert executions.taken_up.is_set() == bool(newest)

    def teardown(self) -> None:
        if hasattr(self, "executions"):
            with pytest.raises(AssertionError):
                self.executions.take_up((), Reserved(self.executions.taken + 1))


TestWhateverTheOrder = Whatever.TestCase


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
    (taker,) = workers_of(cable.dsn)
    held, go_on = trio.Event(), trio.Event()

    async def hold(connection: object) -> None:
        held.set()
        await go_on.wait()

    async with open_client(cable.dsn) as client, trio.open_nursery() as nursery:

        async def fail(go: Go, **kwargs: Any) -> Any:
            detour(monkeypatch, claim_verbs, "claim", claim)
            nursery.start_soon(taker.quick.run, hold)  # before the next try
            raise trio.TooSlowError

        if how == "the link":
            nursery.start_soon(taker.quick.run, hold)
            await held.wait()
        else:
            detour(monkeypatch, claim_verbs, "claim", fail)
        taker.wakeups.bell.ring()
        await held.wait()
        while taker.wakeups.bell.is_ringing:
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
    (taker,) = workers_of(place.dsn)
    assert (taker.executions.free, taker.executions.taken) == (0, 3)
    # Their leases count from the try that brought them: those of a claim that was repeated for a minute are not distrusted at once.
    assert all(running.renewed_at > failed_at for running in taker.executions)
    let_go.set()
    await worker.log.wait(EventName.JOB_COMPLETED, count=5)
