"""Where a running handler stands, asked of its worker: of each kind of handler, and where there is nothing to tell."""

from __future__ import annotations

import asyncio
import linecache
import threading
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import trio
from psycopg.types.json import Jsonb

import pgnotifyq.aio
import pgnotifyq.sync
from pgnotifyq import Client, EventName, JobContext, JobNotFound, JobRegistry, Stack, StackState, open_client
from pgnotifyq.model.job import ExecutionId, JobId
from pgnotifyq.model.stack import BYTES_MAX, Frame, StackTask, written
from tests.asked import fetch
from tests.runtime.apps import standing
from tests.runtime.support import PATIENCE_SECONDS, Workplace

Payload = dict[str, Any]


@pytest.fixture
async def client(dsn: str) -> AsyncIterator[Client]:
    async with open_client(dsn) as client:
        yield client


def functions(stack: Stack) -> list[list[str]]:
    """Return the calls of each task, by their last names."""
    return [[frame.function.rpartition(".")[2] for frame in task.frames] for task in stack.tasks]


def sources(stack: Stack) -> str:
    return "\n".join(frame.source for task in stack.tasks for frame in task.frames)


class Gate:
    """Where handlers stand until they may go on: of every kind."""

    def __init__(self) -> None:
        self.began = trio.Event()
        self.is_open = trio.Event()


async def test_on_trio(place: Workplace, client: Client) -> None:
    """The tree of its tasks, from the handler's own call inwards, each with its file, line and source; no values."""
    registry = JobRegistry()
    gate = Gate()

    async def child() -> None:
        gate.began.set()
        await gate.is_open.wait()

    async def inner() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child, name="a child")

    @registry.handler()
    async def work(payload: Payload) -> None:
        customers = payload["name"]
        await inner()
        assert customers

    await place.start(registry)
    job_id = await place.enqueue("work", payload=Jsonb({"name": "Ann's secret"}))
    await gate.began.wait()
    stack = await client.stack(job_id)
    assert (stack.state, stack.runs_in, stack.job_id) == (StackState.RUNNING, "trio", job_id)
    assert [(task.depth, task.kind) for task in stack.tasks] == [(0, "trio"), (1, "trio")]
    assert functions(stack)[0][:2] == ["work", "inner"]
    assert functions(stack)[1][0] == "child" and stack.tasks[1].name == "a child"
    first = stack.tasks[0].frames[0]
    assert (first.file, first.source) == (__file__, "await inner()")
    assert linecache.getline(__file__, first.line).strip() == first.source
    assert "Ann's secret" not in "\n".join(stack.lines)
    gate.is_open.set()


async def test_in_a_thread(place: Workplace, client: Client) -> None:
    """The calls of its own thread, beside another one that runs the same handler."""
    registry = JobRegistry()
    both, may_end = threading.Barrier(3), threading.Event()

    def deep(letter: str) -> None:
        both.wait(PATIENCE_SECONDS)
        may_end.wait(PATIENCE_SECONDS) if letter == "a" else may_end.wait(PATIENCE_SECONDS + 1)

    def deeper(letter: str) -> None:
        deep(letter)

    @registry.handler()
    def work(payload: Payload) -> None:
        deep("a") if payload["letter"] == "a" else deeper("b")

    await place.start(registry)
    ids = [await place.enqueue("work", payload=Jsonb({"letter": letter})) for letter in "ab"]
    await trio.to_thread.run_sync(both.wait, PATIENCE_SECONDS)
    stacks = [await client.stack(job_id) for job_id in ids]
    may_end.set()
    assert [(stack.state, stack.runs_in) for stack in stacks] == [(StackState.RUNNING, "thread")] * 2
    assert functions(stacks[0])[0][:2] == ["work", "deep"]
    assert functions(stacks[1])[0][:3] == ["work", "deeper", "deep"]


async def test_on_asyncio(place: Workplace, client: Client) -> None:
    """Its coroutine's calls, and those of the tasks that it started."""
    registry = JobRegistry()
    began = threading.Event()
    loops: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def child(gate: asyncio.Event) -> None:
        began.set()
        await gate.wait()

    @registry.handler(runs_in="asyncio")
    async def work(payload: Payload) -> None:
        gate = asyncio.Event()
        loops.append((asyncio.get_running_loop(), gate))
        async with asyncio.TaskGroup() as group:
            group.create_task(child(gate), name="a child")

    await place.start(registry)
    job_id = await place.enqueue("work")
    assert await trio.to_thread.run_sync(began.wait, PATIENCE_SECONDS)
    stack = await client.stack(job_id)
    loop, gate = loops[0]
    loop.call_soon_threadsafe(gate.set)
    assert (stack.state, stack.runs_in) == (StackState.RUNNING, "asyncio")
    assert [(task.depth, task.kind) for task in stack.tasks] == [(0, "asyncio"), (1, "asyncio")]
    assert [calls[0] for calls in functions(stack)] == ["work", "child"]
    assert stack.tasks[1].name == "a child"
    assert "await gate.wait()" in sources(stack)


async def test_that_holds_asyncios_loop(place: Workplace, client: Client) -> None:
    """It is told all the same, from outside: what it does, and that it holds the loop. Of another one, whose fault it is."""
    registry = JobRegistry()
    began, may_end = threading.Event(), threading.Event()

    @registry.handler(runs_in="asyncio")
    async def hold(payload: Payload) -> None:
        began.set()
        may_end.wait(PATIENCE_SECONDS)

    @registry.handler(runs_in="asyncio")
    async def wait(payload: Payload) -> None:
        waits.set()
        while not may_end.is_set():
            await asyncio.sleep(0.01)

    waits = threading.Event()
    await place.start(registry, loop_blocked_seconds=60.0)
    other = await place.enqueue("wait")
    assert await trio.to_thread.run_sync(waits.wait, PATIENCE_SECONDS)
    job_id = await place.enqueue("hold")
    assert await trio.to_thread.run_sync(began.wait, PATIENCE_SECONDS)
    stack, beside = await client.stack(job_id, timeout_seconds=20.0), await client.stack(other, timeout_seconds=20.0)
    may_end.set()
    assert stack.why is not None and stack.why.startswith("this handler holds") and functions(stack)[0][0] == "hold"
    assert beside.why is not None and beside.why.startswith("another handler holds")
    assert "may_end.wait(PATIENCE_SECONDS)" in sources(stack)


async def test_in_a_process(place: Workplace, client: Client, tmp_path: Path) -> None:
    """The process looks at itself, while its handler computes; it is asked twice, and answers twice."""
    until = tmp_path / "until"
    await place.start(standing.registry, handler_processes_max=1)
    job_id = await place.enqueue("in_process", payload=Jsonb({"until": str(until)}))
    other = await place.enqueue("in_process", payload=Jsonb({"until": str(until)}))
    with trio.fail_after(PATIENCE_SECONDS):
        while not await trio.Path(f"{until}.begun").exists():
            await trio.sleep(0.01)
    await place.until("count(*) = 2 from pgnotifyq.jobs where is_held")
    both = {job: await client.stack(job) for job in (job_id, other)}
    waiting, running = sorted(both.values(), key=lambda stack: stack.state == StackState.RUNNING)
    again = await client.stack(running.job_id)
    until.touch()
    for stack in (running, again):
        assert (stack.state, stack.runs_in) == (StackState.RUNNING, "process")
        assert functions(stack)[0][:2] == ["stand", "wait_for_file"] and stack.tasks[0].kind == "process"
        assert "not told" not in "\n".join(stack.lines[1:]).replace('secret="not told"', "")
    assert (waiting.state, waiting.tasks) == (StackState.WAITING, ())
    assert waiting.why == "it waits for a process of handlers"


async def test_handler_that_is_stopping(place: Workplace, client: Client) -> None:
    """A handler that was cancelled and does not end says where it stands."""
    registry = JobRegistry()
    gate = Gate()

    async def clean_up() -> None:
        await gate.is_open.wait()

    @registry.handler()
    async def work(payload: Payload) -> None:
        try:
            gate.began.set()
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await clean_up()

    worker = await place.start(registry)
    job_id = await place.enqueue("work")
    await gate.began.wait()
    await place.cancel(job_id)
    await worker.log.wait(EventName.JOB_INTERRUPTED)
    stack = await client.stack(job_id)
    gate.is_open.set()
    assert functions(stack)[0][:2] == ["work", "clean_up"]


async def test_handler_that_holds_the_loop(place: Workplace, client: Client, tmp_path: Path) -> None:
    """The watchdog's thread answers for its worker, of the one that holds the loop and of the one that waits for it; then the loop."""
    process = await place.start_process()
    until = tmp_path / "until"
    other = await place.enqueue("linger", payload=Jsonb({"seconds": 60}))
    await place.until("count(*) = 1 from pgnotifyq.jobs where is_held")
    assert (await client.stack(other)).why is None
    job_id = await place.enqueue("hold", payload=Jsonb({"until": str(until)}))
    await place.until("count(*) = 2 from pgnotifyq.jobs where is_held")
    stack, beside = await client.stack(job_id, timeout_seconds=20.0), await client.stack(other, timeout_seconds=20.0)
    until.touch()
    assert (stack.state, stack.runs_in, functions(stack)[0][0]) == (StackState.RUNNING, "trio", "hold")
    assert stack.why is not None and stack.why.startswith("it has held the event loop of its worker for")
    assert beside.why is not None and beside.why.startswith(f"hold, job {job_id}, has held the event loop")
    assert functions(beside)[0][0] == "linger"
    await place.until("count(*) = 1 from pgnotifyq.jobs where is_held")
    assert (await client.stack(other)).why is None
    await place.until("count(*) = 0 from pg_stat_activity where application_name = 'pgnotifyq watchdog'")
    assert process.process.poll() is None


async def test_worker_that_stands_still(place: Workplace, client: Client) -> None:
    """It is a typed answer, which names the worker and says whether it is alive."""
    process = await place.start_process()
    job_id = await place.enqueue("linger", payload=Jsonb({"seconds": 60}))
    await place.until("count(*) = 1 from pgnotifyq.jobs where is_held")
    process.stop()
    stack = await client.stack(job_id, timeout_seconds=0.3)
    process.go_on()
    assert (stack.state, stack.tasks) == (StackState.UNRESPONSIVE, ())
    assert stack.why is not None and "has not answered within 0.3 s, and is alive" in stack.why


async def test_job_that_nobody_holds(place: Workplace, client: Client) -> None:
    """It is told as ended; one that is not there is an error; a worker is not asked."""
    job_id = await place.enqueue()
    stack = await client.stack(job_id)
    assert (stack.state, stack.execution_id) == (StackState.ENDED, None)
    with pytest.raises(JobNotFound):
        await client.stack(uuid.uuid4())
    await place.until("count(*) = 0 from pgnotifyq.stack_requests")


async def test_every_door(place: Workplace, client: Client, dsn: str) -> None:
    """The same answer on trio, on asyncio, and for a thread."""
    registry = JobRegistry()
    gate = Gate()

    @registry.handler()
    async def work(payload: Payload) -> None:
        gate.began.set()
        await gate.is_open.wait()

    async def on_asyncio(job_id: JobId) -> Stack:
        async with pgnotifyq.aio.open_client(dsn) as other:
            return await other.stack(job_id)

    def in_a_thread(job_id: JobId) -> Stack:
        with pgnotifyq.sync.open_client(dsn) as other:
            return other.stack(job_id)

    await place.start(registry)
    job_id = await place.enqueue("work")
    await gate.began.wait()
    here = await client.stack(job_id)
    there = await trio.to_thread.run_sync(lambda: asyncio.run(on_asyncio(job_id)))
    aside = await trio.to_thread.run_sync(in_a_thread, job_id)
    gate.is_open.set()
    assert here.tasks and here == there == aside


async def test_forged_requests(place: Workplace, client: Client, dsn: str) -> None:
    """Whoever sends the notification alone is told nothing, and nobody's worker writes an answer to another's request."""
    registry = JobRegistry()
    gate = Gate()

    @registry.handler()
    async def work(payload: Payload) -> None:
        gate.began.set()
        await gate.is_open.wait()

    worker = await place.start(registry)
    job_id = await place.enqueue("work")
    await gate.began.wait()
    await place.connection.execute(
        "insert into pgnotifyq.stack_requests (org_id, job_id, execution_id, worker_id)"
        " select org_id, id, current_execution_id, gen_random_uuid() from pgnotifyq.jobs"
    )
    await place.connection.execute(
        "select pg_notify(pgnotifyq.worker_channel(%s), 'stack ' || request_id) from pgnotifyq.stack_requests",
        (worker.handle.worker_id,),
    )
    await place.connection.execute(
        "select pg_notify(pgnotifyq.worker_channel(%s), 'stack ' || gen_random_uuid()) from generate_series(1, 300)",
        (worker.handle.worker_id,),
    )
    assert (await client.stack(job_id)).state is StackState.RUNNING  # heard behind them
    gate.is_open.set()
    await place.until("count(*) filter (where stack is null) = 1 and count(*) = 2 from pgnotifyq.stack_requests")


async def test_who_may_ask(place: Workplace, dsn: str) -> None:
    """Roles that only read, only enqueue, or are a tenant's may not; a session of one tenant asks for its own jobs alone."""
    await place.connection.execute("select pgnotifyq.enqueue('x', org_id => gen_random_uuid())")
    await place.connection.execute(
        "update pgnotifyq.jobs set status = 'running', attempts = 1, started_at = now(), locked_by = gen_random_uuid(),"
        " current_execution_id = gen_random_uuid(), lease_expires_at = now() + interval '1 min'"
    )
    ((job_id, own),) = await fetch(place.connection, "select id, org_id from pgnotifyq.jobs")
    with psycopg.connect(dsn) as session:
        for kind in ("producer", "observer", "worker", "admin"):
            name = f"stacks_{kind}_{uuid.uuid4().hex[:8]}"
            session.execute(f"create role {name}".encode())
            session.execute(
                f"insert into pgnotifyq.roles (kind, role_name) values ('{kind}', '{name}'); select pgnotifyq.keep_roles()".encode()
            )
            session.execute(f"set role {name}".encode())
            try:
                with session.transaction():
                    row = session.execute("select request_id is not null from pgnotifyq.ask_stack(%s)", (job_id,)).fetchone()
                    may = row == (True,)
            except psycopg.errors.InsufficientPrivilege:
                may = False
            session.execute("reset role")
            assert may == (kind in {"worker", "admin"}), kind
        session.execute(f"set role {name}".encode())  # an admin's
        for org_id, sees in ((uuid.uuid4(), False), (own, True)):
            session.execute("select set_config('pgnotifyq.org_id', %s, true)", (str(org_id),))
            assert session.execute("select is_there from pgnotifyq.ask_stack(%s)", (job_id,)).fetchone() == (sees,)
        session.rollback()


def test_answers_are_bounded() -> None:
    """However much there is to tell, the answer fits into its column, and says that it was cut."""
    frames = tuple(Frame("f" * 1000, "é" * 1000, n, "x" * 1000) for n in range(30))
    tasks = tuple(StackTask(name=str(n), depth=n, kind="trio", frames=frames) for n in range(200))
    stack = Stack(
        job_id=JobId(uuid.uuid4()), execution_id=ExecutionId(uuid.uuid4()), state=StackState.RUNNING, tasks=tasks, handler="m:f"
    )
    text = written(stack)
    assert len(text.encode()) <= BYTES_MAX
    assert '"is_cut": true' in text


async def test_nothing_is_asked_where_nobody_asks(place: Workplace) -> None:
    """A worker that runs jobs sends no statement about stacks."""
    registry = JobRegistry()

    @registry.handler()
    async def noop(payload: Payload, ctx: JobContext) -> None:
        pass

    worker = await place.start(registry)
    job_id = await place.enqueue("noop")
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    assert (
        await fetch(
            place.connection,
            "select query from pg_stat_activity where datname = current_database() and query like '%stack%' and pid <> pg_backend_pid()",
        )
        == []
    )
