"""Stacks: a worker says where a handler stands, if somebody asks.

Nothing here runs, and nothing is noted, while nobody asks.

- A notification says that there is a request. Anybody can send it. So the request is read in the
  database, by the worker's own id, and the answer goes into its row
  (sql/functions/lease/stack.sql).
- Handlers on trio stand still while this task runs. Their tasks are walked as a tree, by the
  nurseries that they have opened. A handler on asyncio is looked at by its own loop. A handler in a
  thread is looked at while it runs. A process of handlers looks at itself.
- A loop or a process that does not answer in `LOOK_SECONDS` is held by what it does. Then this task
  looks at the loop's thread, as the watchdog does.
- If a handler holds trio's loop, the watchdog's thread answers (held.py).
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import attrs
import psycopg
import trio

from pgnotifyq.ledger import stacks
from pgnotifyq.model.errors import PgnotifyqError, text_of
from pgnotifyq.model.handler import RunsIn
from pgnotifyq.model.stack import TASKS_MAX, Stack, StackState, StackTask, bounded_frames, written
from pgnotifyq.runtime.bell import Bell
from pgnotifyq.runtime.calls import of_coroutine, of_thread

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable, Iterator
    from uuid import UUID

    from pgnotifyq.model.job import ExecutionId, JobId
    from pgnotifyq.model.stack import Frame
    from pgnotifyq.runtime.asyncio_loop import AsyncioLoop, LoopThread
    from pgnotifyq.runtime.executions import Executions
    from pgnotifyq.runtime.identity import Identity
    from pgnotifyq.runtime.link import Link
    from pgnotifyq.runtime.running import Running

LOOK_SECONDS = 1.5  # for a loop of asyncio's, or a process, to look at itself
REQUESTS_MAX = 100  # that are noted one by one; nobody needs more


class Stacks:
    """What was asked of one worker, and the task that answers."""

    def __init__(self, me: Identity, executions: Executions, loop: AsyncioLoop, link: Link) -> None:
        self._me = me
        self._executions = executions
        self._loop = loop
        self._link = link
        self._asked: set[UUID] = set()
        self._is_more = False  # some were not noted: then all that the database has are answered
        self._bell = Bell()

    def hear(self, request_id: UUID) -> None:
        """Note a request that a notification tells of. It is looked at soon."""
        self._is_more = self._is_more or len(self._asked) == REQUESTS_MAX
        if not self._is_more:
            self._asked.add(request_id)
        self._bell.ring()

    async def answer_for_ever(self) -> None:
        """Answer what is asked until cancelled."""
        while True:
            await self._bell.wait()
            asked = None if self._is_more else list(self._asked)
            self._asked, self._is_more = set(), False
            # If this fails, the one who asked is told that nobody answers. It is no trouble of the
            # worker's.
            with suppress(PgnotifyqError, psycopg.Error, trio.TooSlowError):
                await self._answer(asked)

    async def _answer(self, asked: list[UUID] | None) -> None:
        me = self._me
        for request_id, job_id, execution_id in await self._link.ask_once(stacks.stacks_asked(me.schema, me.worker_id, asked)):
            try:
                stack = await self._look(job_id, execution_id)
            except Exception as error:  # noqa: BLE001  # tasks and coroutines may be objects of the program's own
                why = f"its worker cannot look at it: {type(error).__name__}: {text_of(error)}"
                stack = Stack(job_id=job_id, execution_id=execution_id, state=StackState.UNRESPONSIVE, why=why[:1000])
            answer = written(stack)
            await self._link.ask_once(stacks.answer_stack(me.schema, me.worker_id, request_id, answer))

    async def _look(self, job_id: JobId, execution_id: ExecutionId) -> Stack:
        running = self._executions.find(job_id, execution_id)
        if running is None or running.has_ended:
            why = "its handler has ended, and its outcome is on its way" if running is not None else None
            return Stack(job_id=job_id, execution_id=execution_id, state=StackState.ENDED, why=why)
        if running.handler is None or running.task is None:
            why = "it waits for a slot of its worker"
            return Stack(job_id=job_id, execution_id=execution_id, state=StackState.WAITING, why=why)
        stack = Stack(
            job_id=job_id,
            execution_id=execution_id,
            state=StackState.RUNNING,
            handler=running.handler.name,
            runs_in=running.handler.runs_in.value,
        )
        match running.handler.runs_in:
            case RunsIn.PROCESS if running.standing is not None:
                return await _of_process(stack, running)
            case RunsIn.PROCESS if running.started_at is None:
                return attrs.evolve(stack, state=StackState.WAITING, why="it waits for a process of handlers")
            case RunsIn.ASYNCIO if (thread := self._loop.thread) is not None:
                return await _of_asyncio(stack, running, thread)
            case RunsIn.THREAD | RunsIn.PROCESS if running.thread_id is not None:
                return _with(stack, [_of_thread(running.thread_id)])
        return _with(stack, _of_trio(running.task))


def held_stack(running: Running, holder: Running | None, thread_id: int, seconds: float) -> Stack:
    """Return where a handler stands while trio's loop is held. Called by another thread.

    Args:
        running: the execution that is asked about.
        holder: the execution that holds the loop; None: what holds it is no handler.
        thread_id: of the loop's thread.
        seconds: for how long the loop has been held.
    """
    job_id, execution_id = running.lease
    stack = Stack(job_id=job_id, execution_id=execution_id, state=StackState.RUNNING)
    if running.handler is not None:
        stack = attrs.evolve(stack, handler=running.handler.name, runs_in=running.handler.runs_in.value)
    if running is holder:
        found = [attrs.evolve(_of_thread(thread_id), kind="trio")]
        return attrs.evolve(_with(stack, found), why=f"it has held the event loop of its worker for {seconds:.1f} s")
    whose = "a task that is no handler's" if holder is None else f"{holder.job.job_type}, job {holder.job.id},"
    why = f"{whose} has held the event loop of its worker for {seconds:.1f} s"
    if running.task is None or running.handler is None:
        return attrs.evolve(stack, state=StackState.WAITING, why=why)
    match running.handler.runs_in:
        case RunsIn.THREAD if running.thread_id is not None:
            return attrs.evolve(_with(stack, [_of_thread(running.thread_id)]), why=why)
        case RunsIn.TRIO:
            return attrs.evolve(_with(stack, _of_trio(running.task)), why=why)
    return attrs.evolve(stack, state=StackState.UNRESPONSIVE, why=why)


def _with(stack: Stack, found: Iterable[_Found]) -> Stack:
    """Return a stack with the tasks that were found, at most TASKS_MAX of them."""
    tasks: list[StackTask] = []
    is_cut = False
    for each in found:
        if len(tasks) == TASKS_MAX:
            is_cut = True
            break
        frames, is_short = bounded_frames(each.frames)
        is_cut = is_cut or is_short
        tasks.append(StackTask(name=each.name, depth=each.depth, kind=each.kind, frames=frames))
    return attrs.evolve(stack, tasks=tuple(tasks), is_cut=is_cut)


@attrs.frozen
class _Found:
    name: str
    depth: int
    kind: str
    frames: list[Frame]


# trio


def _of_trio(root: trio.lowlevel.Task) -> Iterator[_Found]:
    """Yield the tasks of a handler: its slot's, and those below, each behind its parent."""
    left = [(root, 0)]
    while left:
        task, depth = left.pop()
        yield _Found(task.name, depth, "trio", of_coroutine(task.coro))
        children = [child for nursery in task.child_nurseries for child in nursery.child_tasks]
        left += [(child, depth + 1) for child in sorted(children, key=lambda each: each.name, reverse=True)]


# asyncio


async def _of_asyncio(stack: Stack, running: Running, thread: LoopThread) -> Stack:
    """Have asyncio's loop look at the tasks of a handler; if it is held, say by whom."""
    found: list[_Found] = []
    has_looked = trio.Event()
    token = trio.lowlevel.current_trio_token()

    def look() -> None:
        errand = next((each for each in thread.errands if each.running is running), None)
        if errand is not None and errand.main is not None:
            found.append(_of_task(errand.main, 0))
            found.extend(_of_task(task, 1) for task in sorted(errand.tasks, key=lambda each: each.get_name()))
        token.run_sync_soon(has_looked.set)

    thread.call(look)
    with trio.move_on_after(LOOK_SECONDS):
        await has_looked.wait()
    if has_looked.is_set():
        return _with(stack, found)
    holder = thread.current()
    is_own = holder is not None and holder[1] is not None and holder[1].running is running
    whose = "this handler holds" if is_own else "another handler holds"
    why = f"{whose} asyncio's loop, and stands here"
    if thread.ident is None:
        return attrs.evolve(stack, state=StackState.UNRESPONSIVE, why=why)
    return attrs.evolve(_with(stack, [_of_thread(thread.ident)]), why=why)


def _of_task(task: asyncio.Task[Any], depth: int) -> _Found:
    return _Found(task.get_name(), depth, "asyncio", of_coroutine(task.get_coro()))


# Threads and processes


def _of_thread(thread_id: int) -> _Found:
    return _Found(f"thread {thread_id}", 0, "thread", of_thread(thread_id))


async def _of_process(stack: Stack, running: Running) -> Stack:
    """Have a process look at its handler."""
    standing = running.standing
    assert standing is not None
    with trio.move_on_after(LOOK_SECONDS), suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        return attrs.evolve(stack, tasks=await standing.ask())
    why = f"its process has not answered within {LOOK_SECONDS:g} s: it is stopped, or in a call into C that keeps the interpreter"
    return attrs.evolve(stack, state=StackState.UNRESPONSIVE, why=why)
