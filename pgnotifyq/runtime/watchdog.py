"""The watchdog: names the handler that holds the event loop, with its stack, while that lasts.

A handler that computes or waits without trio stops everything in its worker: other jobs,
heartbeats, cancels, shutdown. No task can tell of it, for none gets a turn. So a thread does.

Rules:

- By two of trio's hooks, the loop notes the task whose step begins, and when it has nothing to do.
  The thread looks at that note twice in `loop_blocked_seconds`, and wakes nobody.
- What is counted is one step of one task, so the task that is named did not let go for as long as
  is said. If the loop is slow because many tasks take a little each, it is not called held.
- The thread says it at once, in the log: a loop that is held for ever never comes back. As an event
  it is told when the loop is back, for events are told in the worker's own task. If events go to
  the log anyhow, it is said once.
- A process that was frozen finds an old note when it thaws. The thread was frozen too, and sees
  that because it is late itself. That time does not count. A freeze that is no longer than a look
  remains unseen.
- asyncio's loop, where handlers of that kind run, is in a thread of its own. While there are such
  handlers, a task of trio's looks at that loop, and asks the loop for a call. If the loop does not
  call, and is at the same task's step at each look, that task holds it.
- The watchdog only tells. A lease that runs out meanwhile is lost as any other: the fence keeps
  what was written from counting.
"""

from __future__ import annotations

import sys
import threading
import traceback
from time import monotonic, process_time
from typing import TYPE_CHECKING, Any

import trio
import trio.lowlevel

from pgnotifyq.model.errors import quietly
from pgnotifyq.model.events import Event, EventName
from pgnotifyq.model.outcome import bounded
from pgnotifyq.runtime import asyncio_loop, executor
from pgnotifyq.runtime.bell import Bell
from pgnotifyq.runtime.held import HeldLoop
from pgnotifyq.runtime.logs import log_blocked

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator
    from types import FrameType

    from pgnotifyq.runtime.asyncio_loop import AsyncioLoop, Errand
    from pgnotifyq.runtime.executions import Executions
    from pgnotifyq.runtime.identity import Identity
    from pgnotifyq.runtime.running import Running

# The time between two looks, as a share of `loop_blocked_seconds`.
LOOK_SHARE = 0.5
# If the process used less of a processor than this while the thread was late, nothing ran. If it
# used more, the machine has little to give.
FROZEN_SHARE = 0.05
# So many frames of a stack are kept at each end: where it stands, and how the handler came there.
# Recursion has a thousand frames between them.
FRAMES_KEPT = 10
# Files that call handlers: what is further out in a stack is not the handler's.
_OURS = (executor.__file__, asyncio_loop.__file__)


async def watch_for_ever(me: Identity, executions: Executions, dsn: str) -> None:
    """Watch the loop until cancelled; when it is back, tell who held it."""
    watchdog = _Watchdog(me.config.loop_blocked_seconds, executions, HeldLoop(me, executions, dsn))
    trio.lowlevel.add_instrument(watchdog.note)
    threading.Thread(target=watchdog.look_for_ever, name="pgnotifyq watchdog", daemon=True).start()
    try:
        while True:
            await watchdog.is_back.wait()
            fields, since = watchdog.found
            me.emit.unless_logged(Event(name=EventName.LOOP_BLOCKED, fields={**fields, "seconds": round(monotonic() - since, 3)}))
    finally:
        watchdog.is_over.set()
        trio.lowlevel.remove_instrument(watchdog.note)


async def watch_asyncio_for_ever(me: Identity, loop: AsyncioLoop) -> None:
    """Watch asyncio's loop until cancelled, and tell who holds it, while it is held."""
    seconds = me.config.loop_blocked_seconds
    look_seconds = seconds * LOOK_SHARE
    while True:
        await loop.busy.wait()
        thread = loop.thread
        answered, holder, held, patience = threading.Event(), None, 0.0, seconds
        while thread is not None and thread.errands and thread is loop.thread:
            thread.call(answered.set)
            began_at = trio.current_time()
            await trio.sleep(look_seconds)
            found = thread.current()
            task = None if found is None else found[0]
            if answered.is_set() or task is None or task is not holder:
                # The loop has answered, or its task is not the one of the last look: no task held
                # it all the time since then.
                if answered.is_set():
                    answered = threading.Event()
                holder, held, patience = task, 0.0, seconds
                continue
            # The process may have been frozen.
            held += min(trio.current_time() - began_at, 2 * look_seconds)
            if held >= patience and found is not None and thread.ident is not None:
                patience = 2 * held
                _tell_of_asyncio(me, thread.ident, found, held)


def _tell_of_asyncio(me: Identity, thread_id: int, found: tuple[asyncio.Task[Any], Errand | None], seconds: float) -> None:
    task, errand = found
    calls = _calls(sys._current_frames().get(thread_id), task.get_coro())  # noqa: SLF001  # documented, for this very use
    names: dict[str, Any] = {"task": task.get_name()}
    if errand is not None:
        running = errand.running
        names = {"job_id": running.job.id, "job_type": running.job.job_type, "handler": errand.handler.name, "runs_in": "asyncio"}
    fields = {**names, "seconds": round(seconds, 3), "stack": _worded(calls)}
    quietly(log_blocked, fields)
    me.emit.unless_logged(Event(name=EventName.LOOP_BLOCKED, fields=fields))


class _Note(trio.abc.Instrument):
    """What the loop is doing: whose step it is, and since when.

    Written by the loop, read by the thread.
    """

    def __init__(self) -> None:
        self.task: trio.lowlevel.Task | None = None
        self.since = 0.0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        # They are written in this order, and read in the other. So a reader between the two takes a
        # step for shorter than it is, never for longer.
        self.since = monotonic()
        self.task = task

    def before_io_wait(self, timeout: float) -> None:  # noqa: ARG002  # trio's
        self.task = None


class _Watchdog:
    """The thread's side."""

    def __init__(self, seconds: float, executions: Executions, held: HeldLoop) -> None:
        self.note = _Note()
        self.is_over = threading.Event()
        self.is_back = Bell()  # rung by the loop itself, when it gets to it
        self.found: tuple[dict[str, Any], float] = ({}, 0.0)
        self._executions = executions
        self._held = held
        self._seconds = seconds
        self._thread_id = threading.get_ident()
        self._token = trio.lowlevel.current_trio_token()

    def look_for_ever(self) -> None:
        """Look at the loop now and then, until `is_over` is set.

        A step that goes on is told again at twice its age.
        """
        try:
            self._look_for_ever()
        finally:
            self._held.close()

    def _look_for_ever(self) -> None:
        step = frozen = 0.0
        patience = self._seconds
        wait_seconds = look_seconds = self._seconds * LOOK_SHARE
        while True:
            began_at, used = monotonic(), process_time()
            if self.is_over.wait(wait_seconds):
                return
            now = monotonic()
            late = now - began_at - wait_seconds
            task = self.note.task
            since = self.note.since
            if task is None or since != step:
                step, patience, frozen = since, self._seconds, 0.0
            # A call into C that keeps the interpreter to itself makes this thread late as well, but
            # then the process works.
            if process_time() - used < late * FROZEN_SHARE:
                frozen += late
            held = 0.0 if task is None else now - since - frozen
            if task is not None and held >= patience:
                self._tell(task, since, held)
                patience = 2 * held
            if task is not None and held >= self._seconds:
                self._held.answer(_find(self._executions, task), self._thread_id, held)
            else:
                self._held.close()
            wait_seconds = min(patience - held, look_seconds)

    def _tell(self, task: trio.lowlevel.Task, since: float, seconds: float) -> None:
        # First look, quickly, and find the words afterwards: to read source lines takes so long
        # that the step may end.
        frame = sys._current_frames().get(self._thread_id)  # noqa: SLF001  # documented, for this very use
        calls = _calls(frame, task.coro)
        names = self._names(task)
        if self.note.since != since or self.note.task is not task:
            return  # the loop went on meanwhile, and these are the calls of another step
        fields = {**names, "seconds": round(seconds, 3), "stack": _worded(calls)}
        self.found = (fields, since)
        quietly(log_blocked, fields)
        try:
            self._token.run_sync_soon(self.is_back.ring, idempotent=True)
        except trio.RunFinishedError:
            return

    def _names(self, task: trio.lowlevel.Task) -> dict[str, Any]:
        """Return who holds the loop: a job and its handler; otherwise some other task's name."""
        running = _find(self._executions, task)
        if running is None:
            return {"task": task.name}
        handler = None if running.handler is None else running.handler.name
        return {"job_id": running.job.id, "job_type": running.job.job_type, "handler": handler}


def names_of(executions: Executions, task: trio.lowlevel.Task) -> dict[str, Any] | None:
    """Return what a task's job is called by, as `ctx.log` does; None: it belongs to no job."""
    running = _find(executions, task)
    if running is None:
        return None
    return running.names_in_logs()


def _find(executions: Executions, task: trio.lowlevel.Task) -> Running | None:
    """Return the execution whose slot runs in this task, or whose handler started this task."""
    lineage = set(_lineage(task))
    for running in executions:
        if running.task in lineage and not running.has_ended:
            return running
    return None


def _lineage(task: trio.lowlevel.Task) -> Iterator[trio.lowlevel.Task]:
    """Yield a task, its parent, and so on."""
    parent: trio.lowlevel.Task | None = task
    while parent is not None:
        yield parent
        parent = None if parent.parent_nursery is None else parent.parent_nursery.parent_task


def _calls(frame: FrameType | None, coroutine: object) -> list[tuple[FrameType, int]]:
    """Return where a task's step stands, the innermost call first, down to the handler."""
    first = getattr(coroutine, "cr_frame", None)
    calls = []
    for call in traceback.walk_stack(frame):
        if call[0].f_code.co_filename in _OURS:
            break
        calls.append(call)
        if call[0] is first:
            break
    return calls


def _worded(calls: list[tuple[FrameType, int]]) -> str:
    """Return calls as text, a line each, of a bounded length."""
    if len(calls) > 2 * FRAMES_KEPT:
        calls = calls[:FRAMES_KEPT] + calls[-FRAMES_KEPT:]
    lines = [f"{call.name} at {call.filename}:{call.lineno}: {call.line}" for call in traceback.StackSummary.extract(iter(calls))]
    return bounded("\n".join(lines))
