"""Hooks: what runs after a job has ended. It is enqueued by the statement that ends the job, whoever says that."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio

import pgnotifyq
from pgnotifyq import Discard, EndedJob, EventName, JobContext, JobRegistry, Retry
from tests import asked
from tests.ledger.support import ANN, BOB
from tests.runtime.support import Worker, Workplace

ENDINGS = ("completed", "retried", "dead", "cancelled")


def hooked(told: list[EndedJob]) -> JobRegistry:
    """Return a registry of a handler `work`, all of whose endings are told."""
    registry = JobRegistry()

    @registry.handler("work", max_attempts=2)
    async def work(payload: dict[str, Any], ctx: JobContext) -> object:
        match payload.get("do"):
            case "retry" if ctx.attempt == 1:
                return Retry(0.0, "not yet")
            case "die":
                return Discard("it cannot be")
            case "stop":
                return Discard("nobody cares", quietly=True)
            case "wait":
                await trio.sleep_forever()
            case "own":
                async with ctx.transaction(complete=True, result="own"):
                    pass
        return "done"

    @registry.on_completed("work")
    async def tell_completed(ended: EndedJob) -> None:
        told.append(ended)

    @registry.on_retried(work)
    async def tell_retried(ended: EndedJob) -> None:
        told.append(ended)

    @registry.on_dead()
    async def tell_dead(ended: EndedJob, ctx: JobContext) -> None:
        assert ctx.job.headers["trace"] == "t"
        told.append(ended)

    @registry.on_cancelled()
    async def tell_cancelled(ended: EndedJob) -> None:
        told.append(ended)

    return registry


async def enqueue(place: Workplace, do: str) -> Any:
    """Enqueue a job that does one of these things."""
    return await place.enqueue("work", payload=f'{{"do": "{do}"}}', headers='{"trace": "t"}')


async def until_told(worker: Worker, ending: str, count: int = 1) -> None:
    """Wait until a hook has run."""
    await worker.log.wait(EventName.JOB_COMPLETED, job_type=f"on_{ending}.tell_{ending}", count=count)


@pytest.mark.parametrize(
    ("do", "endings", "said"),
    [
        ("", ["completed"], None),
        ("own", ["completed"], None),
        ("retry", ["retried", "completed"], "not yet"),
        ("die", ["dead"], "it cannot be"),
        ("stop", ["cancelled"], "nobody cares"),
    ],
    ids=["completed", "in its own transaction", "retried", "dead", "quietly"],
)
async def test_what_a_worker_ends(place: Workplace, do: str, endings: list[str], said: str | None) -> None:
    """Each ending runs its hook, which is told of the job as it was then, with its headers."""
    told: list[EndedJob] = []
    worker = await place.start(hooked(told))
    job_id = await enqueue(place, do)
    for ending in endings:
        await until_told(worker, ending)
    assert sorted(one.ending for one in told) == sorted(endings)
    assert {one.job_id for one in told} == {job_id} and {one.job_type for one in told} == {"work"}
    (first,) = [one for one in told if one.ending == endings[0]]
    assert (first.payload, first.attempts, first.error_message) == ({"do": do}, 1, said)
    assert first.reason == ("discarded" if do == "die" else None)
    assert first.result == {"": "done", "own": "own"}.get(do)


async def test_a_cancel_while_it_runs(place: Workplace) -> None:
    """The hook is enqueued once its handler has stopped, and once."""
    told: list[EndedJob] = []
    worker = await place.start(hooked(told))
    job_id = await enqueue(place, "wait")
    await worker.log.wait(EventName.JOB_CLAIMED, job_id=job_id)
    await place.cancel(job_id)
    await worker.log.wait(EventName.JOB_CANCELLED, job_id=job_id)
    await until_told(worker, "cancelled")
    assert {(one.job_id, one.ending) for one in told} == {(job_id, "cancelled")}
    assert await asked.value(place.connection, "select count(*) from pgnotifyq.jobs where job_type like 'on_%%'") == 1


@pytest.mark.parametrize("how", ["update", "cancel()"])
async def test_a_cancel_by_sql_while_no_worker_lives(place: Workplace, how: str) -> None:
    """A pending job that plain SQL cancels has its hook enqueued, which the next worker runs."""
    told: list[EndedJob] = []
    first = await place.start(hooked(told))
    await first.leave()
    job_id = await enqueue(place, "")
    if how == "update":
        await place.cancel(job_id)
    else:
        await place.connection.execute("select pgnotifyq.cancel(%s, 'enough')", (job_id,))
    worker = await place.start(hooked(told))
    await until_told(worker, "cancelled")
    assert [(one.job_id, one.ending) for one in told] == [(job_id, "cancelled")]
    assert told[0].error_message == (None if how == "update" else "enough")


async def test_a_death_that_a_reclaimer_makes(place: Workplace) -> None:
    """A job whose last attempt is lost with its worker has its hook enqueued."""
    told: list[EndedJob] = []
    await (await place.start(hooked(told))).leave()
    job_id = await place.enqueue("work", max_attempts=1, headers='{"trace": "t"}')
    await asked.claim(place.connection, worker=BOB)
    await place.connection.execute("update pgnotifyq.jobs set lease_expires_at = clock_timestamp() - interval '1 s'")
    worker = await place.start(hooked(told))
    await until_told(worker, "dead")
    assert [(one.job_id, one.ending, one.reason) for one in told] == [(job_id, "dead", "lost")]


async def test_with_the_settlement_or_not_at_all(place: Workplace) -> None:
    """The hook is there as soon as the job has ended, in the same transaction, and is gone if that is undone."""
    await (await place.start(hooked([]))).leave()
    await place.enqueue("work")
    ((lease, *_),) = [(job,) for job in await asked.claim(place.connection)]
    count = "select count(*) from pgnotifyq.jobs where job_type = 'on_completed.tell_completed'"
    complete = "select * from pgnotifyq.complete(%s, array[%s]::uuid[], array[%s]::uuid[])"
    async with place.connection.transaction(force_rollback=True):
        await place.connection.execute(complete, (ANN, lease.id, lease.current_execution_id))
        assert await asked.value(place.connection, count) == 1
    assert await asked.value(place.connection, count) == 0


async def test_a_hook_whose_worker_dies_runs_again(place: Workplace) -> None:
    """At least once: what is lost of it is run again."""
    told: list[EndedJob] = []
    registry = hooked(told)
    begun, go_on = trio.Event(), trio.Event()

    @registry.on_completed("work")
    async def slow(ended: EndedJob, ctx: JobContext) -> None:
        begun.set()
        await go_on.wait()
        told.append(ended)

    worker = await place.start(registry)
    await enqueue(place, "")
    await begun.wait()
    hook = await asked.value(place.connection, "select id from pgnotifyq.jobs where job_type = 'on_completed.slow'")
    await place.lose(hook)
    go_on.set()
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=hook)
    assert (await place.job(hook))["attempts"] == 2


async def test_not_used(place: Workplace) -> None:
    """Without hooks nothing is enqueued; and a worker that serves a type without hooks takes those away that nobody serves."""
    told: list[EndedJob] = []
    first = await place.start(hooked(told))
    rows = "select count(*) from pgnotifyq.hooks"
    assert await asked.value(place.connection, rows) == len(ENDINGS)
    plain = JobRegistry()

    @plain.handler("work")
    async def work(payload: dict[str, Any]) -> None:
        """Do nothing."""

    second = await place.start(plain)
    assert await asked.value(place.connection, rows) == len(ENDINGS), "the first worker serves them still"
    await second.leave()
    first.handle.drain()
    await first.ended.wait()
    third = await place.start(plain)
    assert await asked.value(place.connection, rows) == 0
    job_id = await enqueue(place, "")
    await third.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    assert await asked.value(place.connection, "select count(*) from pgnotifyq.jobs") == 1


def test_a_second_of_a_name() -> None:
    """Two hooks of an ending need two names: each is a job type."""
    registry = hooked([])
    with pytest.raises(pgnotifyq.HandlerAlreadyRegistered):

        @registry.on_completed()
        def tell_completed(ended: EndedJob) -> None:
            """Do nothing."""


def test_of_an_included_registry() -> None:
    """A hook of all types is of those of its own registry."""
    outer, inner = JobRegistry(), hooked([])
    outer.handler("other")(lambda payload: None)
    outer.include(inner)
    assert ("work", "dead", "on_dead.tell_dead") in outer.hooks
    assert not [hook for hook in outer.hooks if hook[0] == "other"]


def test_of_an_included_registry_without_handlers() -> None:
    """A hook of all types of a registry that has none is of no type, and not of those of the registry that includes it."""
    outer, inner = JobRegistry(), JobRegistry()
    outer.handler("other")(lambda payload: None)

    @inner.on_dead()
    def tell_dead(ended: EndedJob) -> None:
        """Do nothing."""

    outer.include(inner)
    assert outer.hooks == []


@pytest.mark.parametrize(
    ("payload_bytes", "result_bytes", "left_out"),
    [
        (1000, 1000, ()),
        (900_000, 400_000, ("result",)),
        (1_048_500, 10, ("result", "payload")),
        (1_000_000, 1_000_000, ("result",)),
    ],
)
async def test_more_than_a_payload_may_have(
    place: Workplace, payload_bytes: int, result_bytes: int, left_out: tuple[str, ...]
) -> None:
    """A hook's payload has at most 1 MiB, as any other: the result is left out, then the payload, and the hook is told so."""
    told: list[EndedJob] = []
    registry = JobRegistry()

    @registry.handler("work")
    async def work(payload: dict[str, Any]) -> str:
        return "r" * result_bytes

    @registry.on_completed("work")
    async def tell_completed(ended: EndedJob) -> None:
        told.append(ended)

    worker = await place.start(registry)
    await place.enqueue("work", payload=json.dumps({"p": "p" * payload_bytes}))
    await until_told(worker, "completed")
    (ended,) = told
    assert ended.left_out == left_out
    assert (ended.payload, ended.result) == (
        None if "payload" in left_out else {"p": "p" * payload_bytes},
        None if "result" in left_out else "r" * result_bytes,
    )
    biggest = "select max(pgnotifyq.compact_bytes(payload)) from pgnotifyq.jobs"
    assert await asked.value(place.connection, biggest) <= 1_048_576
