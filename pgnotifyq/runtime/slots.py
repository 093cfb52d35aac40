"""Slots: the long-lived tasks that run jobs, one after the other.

A slot's task runs its jobs in one cancel scope: to make a scope took a quarter of a no-op job's
time. While a job runs, the scope is the job's own. Once the scope was cancelled, or an exception
went through it, the task leaves it. That is how trio tells a cancel from other ends. The next job
has a new scope.

The task is as new for each job (slate.py). If a handler left a scope or a nursery open in it, the
task is spent. It ends, trio does with what is left what it does at the end of any task, and the
slot goes on in another task. So each slot is two tasks: a guard, and in the guard's nursery the
task that works. What a handler does to that nursery reaches the guard and goes no further.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import attrs
import trio
import trio.lowlevel

from pgnotifyq.model.events import Event, EventName
from pgnotifyq.model.outcome import Ended, Interrupt, InterruptKind, Raised, Returned, Stopped, holds_ctrl_c
from pgnotifyq.runtime.executor import as_ended
from pgnotifyq.runtime.slate import Slate, Start

if TYPE_CHECKING:
    from pgnotifyq.model.events import EventSink
    from pgnotifyq.runtime.executions import Executions
    from pgnotifyq.runtime.executor import Executor
    from pgnotifyq.runtime.running import Running
    from pgnotifyq.runtime.settler import Settler


@attrs.define(eq=False, kw_only=True)
class _Slot:
    """One slot, through all of its tasks."""

    executions: Executions
    executor: Executor
    settler: Settler
    emit: EventSink
    start: Start = attrs.field(factory=Start.of_now)
    running: Running | None = None  # the job of the task, until its outcome is the settler's
    ended: Ended = attrs.field(factory=Stopped)  # how that job ended, if its task is spent
    # What went through the scope: a handler's error, Ctrl-C, or a cancel.
    failure: BaseException | None = None
    is_over: bool = False  # there are no more jobs

    def begin(self) -> None:
        """Forget what came before: a new scope is about to be opened."""
        self.running = self.failure = None

    async def hand_over(self, running: Running, ended: Ended) -> None:
        """Give an outcome to the settler, unless the job's batch has done so."""
        if running.has_ended:
            return
        outcome = self.executor.outcome_of(running, ended)
        if running.is_settled:
            await self.settler.note_afterthought(running, outcome)
        self.settler.add(running, outcome)


async def run_slot(executions: Executions, executor: Executor, settler: Settler, emit: EventSink) -> None:
    """Be one slot: run jobs one after the other, until there are none and none will come."""
    slot = _Slot(executions=executions, executor=executor, settler=settler, emit=emit)
    while not slot.is_over:
        slot.ended = Stopped()
        try:
            async with trio.open_nursery() as nursery:
                slot.start.context.run(nursery.start_soon, _work, slot)
        except BaseExceptionGroup as group:
            if not _is_left_behind(group, slot.failure):
                raise
        await trio.lowlevel.checkpoint_if_cancelled()  # the worker's cancel goes on
        if slot.running is not None:
            await slot.hand_over(slot.running, slot.ended)


def _is_left_behind(group: BaseExceptionGroup[BaseException], failure: BaseException | None) -> bool:
    """Tell whether what ended a slot's task says no more than that the task is spent.

    Then it is what trio says of such a task, or it comes from what a handler left there.
    """
    if failure is not None and not isinstance(failure, trio.Cancelled):
        return False
    return not _holds_ctrl_c(group) and group.split(trio.Cancelled)[1] is not None


async def _work(slot: _Slot) -> None:
    """Be a slot's task until it is spent, or there are no more jobs."""
    slate = Slate(trio.lowlevel.current_task(), slot.start)
    await slate.begin()
    while True:
        slot.begin()
        await trio.lowlevel.checkpoint_if_cancelled()
        ended: Ended = Stopped()
        is_at_end = False
        try:
            with trio.CancelScope() as scope:
                slate.note_scope()
                is_at_end = await _serve(slot, slate, scope)
        # Not `except Exception`: sys.exit(), asyncio's CancelledError, a Cancelled that a handler
        # kept and raised again, or a group with one of them in it would end the worker and all its
        # jobs.
        except BaseException as error:
            if is_at_end:
                return  # trio says that there are scopes inside of this one
            if slot.failure is not None and not _is_outcome(slot.failure):
                raise slot.failure from None  # Ctrl-C, and not what trio says of scopes inside
            slot.failure = error
            if slot.running is None or not _is_outcome(error):
                raise  # the worker's cancel, or a bug of ours
            # If the worker itself is cancelled, what a handler makes of it counts for nothing: the
            # cancel goes on.
            await trio.lowlevel.checkpoint_if_cancelled()
            ended = as_ended(error)
        if is_at_end:
            return
        if slot.running is not None:
            await slot.hand_over(slot.running, ended)
        if not slate.is_context_as_new():
            await slate.renew_context()


async def _serve(slot: _Slot, slate: Slate, scope: trio.CancelScope) -> bool:
    """Run jobs in one scope until it is cancelled.

    Returns: whether the task shall end: it is spent, or there are no more jobs.

    Raises: whatever a handler raises, if it left nothing open.
    """
    executions, executor, settler = slot.executions, slot.executor, slot.settler
    task = trio.lowlevel.current_task()
    while not slate.is_cancelled():
        slot.running = running = await executions.take()
        if running is None:
            slot.is_over = True
            return True
        running.task = task
        if not executions.is_backed_up:
            settler.go_on()
        if executions.is_draining and running.interrupt is None:
            # The job was claimed while the shutdown was signalled. It is not started, but given
            # back.
            running.stop(Interrupt(kind=InterruptKind.SHUTDOWN, why="the worker is shutting down"))
        try:
            ended = await executor.run(running, scope)
        except BaseException as error:
            if not _is_outcome(error) or slate.what_is_open() is None:
                slot.failure = error
                raise
            # The error must not go through the scope: trio would tell of the scopes inside, and of
            # nothing else.
            ended = Stopped() if isinstance(error, trio.Cancelled) else as_ended(error)
        is_as_new = slate.is_as_new()
        if not is_as_new and (left := slate.what_is_open()) is not None:
            slot.ended = _as_left(slot.emit, running, ended, left)
            # The guard settles, when the task has ended and nothing of the job runs any more.
            return True
        if running.is_settled or running.has_ended:
            await slot.hand_over(running, ended)
        else:
            settler.add(running, executor.outcome_of(running, ended))
        slot.running = None
        if not is_as_new:
            await slate.renew_context()
    return False


def _as_left(emit: EventSink, running: Running, ended: Ended, left: str) -> Ended:
    """Return how a job that left something open has ended, and tell of it.

    An open scope harms nobody once its task is gone. With an open nursery, trio cancels what runs
    in it: the work may be half done.
    """
    emit(Event(name=EventName.JOB_LEFT_OPEN, fields={**running.names(), "left": left}))
    nursery = trio.lowlevel.current_task().parent_nursery
    if nursery is not None and len(nursery.child_tasks) > 1:
        nursery.cancel_scope.cancel(reason="pgnotifyq: the job has ended")
    if left == "a cancel scope" or not isinstance(ended, Returned):
        return ended
    handler = running.handler.name if running.handler is not None else running.job.job_type
    return Raised(
        error=f"{handler} returned and left {left} open, whose tasks were cancelled: leave it before the handler returns"
        " (an async generator that opened one has to be closed: use contextlib.aclosing)"
    )


def _is_outcome(error: BaseException) -> bool:
    """Tell whether what came out of a handler is its own.

    Ctrl-C is not: it lands in whatever runs. The end of the loop is not, either.
    """
    if isinstance(error, GeneratorExit):
        return trio.lowlevel.in_trio_task()
    return not _holds_ctrl_c(error)


def _holds_ctrl_c(error: BaseException) -> bool:
    """Tell whether Ctrl-C landed in a handler: the process's own handler of SIGINT raised it.

    The process's handler of SIGINT is trio's, as a rule. If a job's handler raises
    KeyboardInterrupt by itself, the job has failed like any other. Else it would end its worker,
    uncharged, and then the next worker.
    """
    return holds_ctrl_c(error, getattr(signal.getsignal(signal.SIGINT), "__code__", None))
