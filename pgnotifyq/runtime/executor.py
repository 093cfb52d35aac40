"""The life of an execution in this worker: structure the payload, run the handler in a scope, decide what is to be written.

A slot's task runs one job after the other in one cancel scope, for making a scope took a quarter of a no-op job's time. The
scope is a job's own while the job runs. Once it was cancelled, or an exception went through it, it is left, which is how trio
tells a cancel from other ends, and the next job has a new one.

The task is as new for each job (slate.py). One in which a handler left a scope or a nursery open is spent: it ends, trio does with
what is left what it does at the end of any task, and the slot goes on in another. So each slot is two tasks: a guard,
and in its nursery the one that works. What a handler does to its task's nursery reaches the guard and goes no further.
"""

from __future__ import annotations

import math
import signal
from typing import TYPE_CHECKING, Any

import attrs
import psycopg
import trio
import trio.lowlevel

from pgnotifyq.ledger import fences
from pgnotifyq.model.errors import ConnectionsTaken, DatabaseUnreachable, PayloadUndecodable, text_of
from pgnotifyq.model.events import Event, EventName
from pgnotifyq.model.outcome import (
    PLAIN_COMPLETION,
    Ended,
    Interrupt,
    InterruptKind,
    Raised,
    Returned,
    SettleKind,
    Settlement,
    Stopped,
    bounded,
    decide,
    ended_by,
    holds_ctrl_c,
)
from pgnotifyq.model.payload import structure
from pgnotifyq.model.registry import PLAIN_RESULTS, finished
from pgnotifyq.model.retry import RetryPolicy
from pgnotifyq.runtime.context import JobContext
from pgnotifyq.runtime.deadlines import tell_deadline
from pgnotifyq.runtime.slate import Slate, Start

if TYPE_CHECKING:
    from pgnotifyq.model.registry import Handler
    from pgnotifyq.runtime.parts import Parts
    from pgnotifyq.runtime.running import Running

WAITED_SECONDS = 1.0  # until a job is tried again that waited for a connection in vain: it has waited for long enough
_DEFAULT_RETRY = RetryPolicy()


@attrs.define(eq=False)
class _Slot:
    """One slot, through all of its tasks."""

    start: Start
    running: Running | None = None  # the job of the task, until its outcome is the settler's
    ended: Ended = attrs.field(factory=Stopped)  # how that job ended, where its task is spent
    failure: BaseException | None = None  # what went through the task, and is no handler's
    is_over: bool = False  # there are no more jobs

    def begin(self) -> None:
        """Forget what came before: a new scope is about to be opened."""
        self.running = self.failure = None


async def execute_for_ever(parts: Parts) -> None:
    """Be one slot: run jobs one after the other until there are no more and no more will come."""
    slot = _Slot(Start.of_now())
    while not slot.is_over:
        slot.ended = Stopped()
        try:
            async with trio.open_nursery() as nursery:
                slot.start.context.run(nursery.start_soon, _work, parts, slot)
        except BaseExceptionGroup as group:
            if not _is_left_behind(group, slot.failure):
                raise
        await trio.lowlevel.checkpoint_if_cancelled()  # the worker's cancel goes on
        if slot.running is not None:
            await _hand_over(parts, slot.running, slot.ended)


def _is_left_behind(group: BaseExceptionGroup[BaseException], failure: BaseException | None) -> bool:
    """Tell whether what ended a slot's task is only what trio says of one that is spent, or comes from what a handler left there."""
    if failure is not None and not isinstance(failure, trio.Cancelled):
        return False
    return not _holds_ctrl_c(group) and group.split(trio.Cancelled)[1] is not None


async def _work(parts: Parts, slot: _Slot) -> None:
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
                is_at_end = await _serve(parts, slot, slate, scope)
        # Not `except Exception`: sys.exit(), asyncio's CancelledError, a Cancelled that a handler kept and raised again, or a
        # group with one of them in it would end the worker and all its jobs.
        except BaseException as error:
            if is_at_end:
                return  # trio says that there are scopes inside of this one
            if slot.failure is not None and not _is_outcome(slot.failure):
                raise slot.failure from None  # Ctrl-C, and not what trio says of scopes inside
            slot.failure = error
            if slot.running is None or not _is_outcome(error):
                raise  # the worker's cancel, or a bug of ours
            # When the worker itself is cancelled, what a handler makes of it counts for nothing: the cancel goes on.
            await trio.lowlevel.checkpoint_if_cancelled()
            ended = _as_ended(error)
        if is_at_end:
            return
        if slot.running is not None:
            await _hand_over(parts, slot.running, ended)
        if not slate.is_context_as_new():
            await slate.renew_context()


async def _serve(parts: Parts, slot: _Slot, slate: Slate, scope: trio.CancelScope) -> bool:
    """Run jobs in one scope until it is cancelled; True when the task shall end: it is spent, or there are no more jobs.

    Raises: whatever a handler raises, where it left nothing open.
    """
    executions, settler, task = parts.executions, parts.settler, trio.lowlevel.current_task()
    while not slate.is_cancelled():
        slot.running = running = await executions.take()
        if running is None:
            slot.is_over = True
            return True
        running.task = task
        if not executions.is_backed_up:
            settler.go_on()
        try:
            ended = await _run(parts, running, scope)
        except BaseException as error:
            if not _is_outcome(error) or slate.what_is_open() is None:
                slot.failure = error
                raise
            # Not through the scope: trio would tell of the scopes inside, and of nothing else.
            ended = Stopped() if isinstance(error, trio.Cancelled) else _as_ended(error)
        is_as_new = slate.is_as_new()
        if not is_as_new and (left := slate.what_is_open()) is not None:
            slot.ended = _as_left(parts, running, ended, left)
            return True  # the guard settles, when the task has ended and nothing of the job runs any more
        settler.add(running, _settle(parts, running, ended))
        slot.running = None
        if not is_as_new:
            await slate.renew_context()
    return False


async def _hand_over(parts: Parts, running: Running, ended: Ended) -> None:
    """Give an outcome to the settler. What was raised after the handler's own transaction had completed the job is kept first."""
    settlement = _settle(parts, running, ended)
    if running.is_settled and settlement is not None and (message := settlement.error_message) is not None:
        try:
            await parts.durable.ask_once(fences.note_afterthought(parts.config.schema, running.lease, message), shield=True)
        except (psycopg.Error, DatabaseUnreachable, trio.TooSlowError) as error:
            why = text_of(error).partition("\n")[0] or "no answer in time"
            parts.emit(Event(name=EventName.OUTCOME_REFUSED, fields={"job_id": running.job.id, "why": why}))
    parts.settler.add(running, settlement)


def _as_ended(error: BaseException) -> Returned | Raised:
    """Return how a handler ended that raised, and tell whether all of it is that the worker had no connection for it."""
    ended = ended_by(error)
    if isinstance(ended, Raised) and _is_only(error, ConnectionsTaken):
        return attrs.evolve(ended, waited=True)
    return ended


def _as_left(parts: Parts, running: Running, ended: Ended, left: str) -> Ended:
    """Return how a job has ended that left something open, and tell of it.

    An open scope harms nobody once its task is gone. With a nursery goes what ran in it, as trio has it: the work may be half done.
    """
    parts.emit(Event(name=EventName.JOB_LEFT_OPEN, fields={**running.names(), "left": left}))
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
    """Tell whether what came out of a handler is its own: not Ctrl-C, which lands in whatever runs, nor the end of the loop."""
    if isinstance(error, GeneratorExit):
        return trio.lowlevel.in_trio_task()
    return not _holds_ctrl_c(error)


def _holds_ctrl_c(error: BaseException) -> bool:
    """Tell whether Ctrl-C has landed in a handler: whether the process's own handler of SIGINT, trio's as a rule, raised it.

    A handler that raises KeyboardInterrupt by itself has failed like any other. It would end its worker, uncharged, and the next one.
    """
    return holds_ctrl_c(error, getattr(signal.getsignal(signal.SIGINT), "__code__", None))


def _is_only(error: BaseException, kind: type[BaseException]) -> bool:
    """Tell whether an exception is of a kind, or a group of such only."""
    left = [error]
    while left:
        one = left.pop()
        if isinstance(one, BaseExceptionGroup):
            left.extend(one.exceptions)
        elif not isinstance(one, kind):
            return False
    return True


async def _run(parts: Parts, running: Running, scope: trio.CancelScope) -> Ended:
    """Run one claimed job to its end.

    Raises: whatever the handler raises.
    """
    job = running.job
    if parts.executions.is_draining and running.interrupt is None:
        # Claimed while the shutdown was signalled: not started, given back.
        running.stop(Interrupt(kind=InterruptKind.SHUTDOWN, why="the worker is shutting down"))
    if running.interrupt is not None:
        return Stopped()
    handler = parts.registry.find(job.job_type)
    if handler is None:
        return Raised(error=parts.registry.explain_unknown(job.job_type), unknown_type=True)
    try:
        payload = structure(job.whole.payload if handler.takes_job else job.payload, handler.payload_type)
    except PayloadUndecodable as error:
        return Raised(error=str(error), undecodable=True)
    if handler.takes_job:
        payload = job.whole

    running.handler = handler
    running.started_at = trio.current_time()
    running.scope = scope
    if handler.timeout_seconds is not None:
        scope.deadline = running.started_at + handler.timeout_seconds
        parts.deadlines.note(scope.deadline)
    try:
        if not handler.takes_context:
            value = await _call(parts, handler, payload)
        else:
            value = await _call(parts, handler, payload, JobContext(parts=parts, running=running))
    finally:
        if handler.timeout_seconds is not None:
            tell_deadline(parts, running)
            scope.deadline = math.inf
        running.scope = None
    if value is None:
        return _NOTHING
    return value if type(value) is Raised else Returned(value)


async def _call(parts: Parts, handler: Handler, *arguments: Any) -> object:
    if handler.is_async:
        value = await handler.call(*arguments)
    else:
        # A thread cannot be interrupted: the job stays running until it ends. It sees a cancel through
        # trio.from_thread.check_cancelled() and ctx.is_cancelled(). In a tuple, for trio refuses threads that return coroutines.
        (value,) = await trio.to_thread.run_sync(_call_in_thread, handler, arguments, limiter=parts.threads)
    return value if type(value) in PLAIN_RESULTS else await finished(handler, value)


def _call_in_thread(handler: Handler, arguments: tuple[Any, ...]) -> tuple[object]:
    try:
        return (handler.call(*arguments),)
    except (KeyboardInterrupt, BaseExceptionGroup) as error:
        if not holds_ctrl_c(error):
            raise
        # Ctrl-C lands in the main thread, never here: this one the handler has made itself.
        return (Raised.from_exception(error),)


def _settle(parts: Parts, running: Running, ended: Ended) -> Settlement | None:
    """Return what is to be written, or None when the lease was lost."""
    running.has_ended = True
    if ended is _NOTHING and running.interrupt is None:
        return PLAIN_COMPLETION  # as `decide` would say, for by far the most jobs
    if isinstance(ended, Raised) and ended.waited and running.interrupt is None:
        message = bounded(ended.error)
        return Settlement(kind=SettleKind.SNOOZE, outcome="snoozed", delay_seconds=WAITED_SECONDS, error_message=message)
    handler = running.handler
    return decide(
        ended,
        running.interrupt,
        attempt=running.job.attempts,
        max_attempts=running.job.max_attempts,
        retry=(handler.retry if handler is not None else None) or _DEFAULT_RETRY,
        random=parts.random.random,
    )


_NOTHING = Returned(None)
