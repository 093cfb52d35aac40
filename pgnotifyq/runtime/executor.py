"""The life of an execution in this worker: structure the payload, run the handler in a scope, decide what is to be written.

A slot's task runs one job after the other in one cancel scope, for making a scope took a quarter of a no-op job's time. The
scope is a job's own while the job runs. Once it was cancelled, or an exception went through it, it is left, which is how trio
tells a cancel from other ends, and the next job has a new one.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import trio
import trio.lowlevel

from pgnotifyq.model.errors import PayloadUndecodable
from pgnotifyq.model.outcome import (
    PLAIN_COMPLETION,
    Ended,
    Interrupt,
    InterruptKind,
    Raised,
    Returned,
    Settlement,
    Stopped,
    decide,
    holds_ctrl_c,
)
from pgnotifyq.model.payload import structure
from pgnotifyq.model.retry import RetryPolicy
from pgnotifyq.runtime.context import JobContext

if TYPE_CHECKING:
    from pgnotifyq.model.registry import Handler
    from pgnotifyq.runtime.holdings import Running
    from pgnotifyq.runtime.parts import Parts

_DEFAULT_RETRY = RetryPolicy()


async def execute_for_ever(parts: Parts) -> None:
    """Be one slot: run jobs one after the other until there are no more and no more will come."""
    slots, settler, task = parts.slots, parts.settler, trio.lowlevel.current_task()
    while True:
        running: Running | None = None
        ended: Ended = Stopped()
        try:
            with trio.CancelScope() as scope:
                while not scope.cancel_called:
                    running = await slots.take()
                    if running is None:
                        return
                    running.task = task
                    if not slots.is_backed_up:
                        settler.go_on()
                    settler.add(running, _settle(parts, running, await _run(parts, running, scope)))
                    running = None
        # Not `except Exception`: sys.exit(), asyncio's CancelledError, a Cancelled that a handler kept and raised again, or a
        # group with one of them in it would end the worker and all its jobs.
        except BaseException as error:
            if running is None or not _is_outcome(error):
                raise  # the worker's cancel, or a bug of ours
            # When the worker itself is cancelled, what a handler makes of it counts for nothing: the cancel goes on.
            await trio.lowlevel.checkpoint_if_cancelled()
            ended = Raised.from_exception(error)
        if running is not None:
            settler.add(running, _settle(parts, running, ended))


def _is_outcome(error: BaseException) -> bool:
    """Tell whether what came out of a handler is its own: not Ctrl-C, which lands in whatever runs, nor the end of the loop."""
    if isinstance(error, GeneratorExit):
        return trio.lowlevel.in_trio_task()
    return not holds_ctrl_c(error)


class _InterruptedInThread(Exception):  # it is shown, not caught
    """A handler in a thread raised KeyboardInterrupt. Ctrl-C lands in the main thread only, so it is an error like any other."""


def _call_in_thread(handler: Handler, arguments: tuple[Any, ...]) -> object:
    try:
        return handler.call(*arguments)
    except (KeyboardInterrupt, BaseExceptionGroup) as error:
        if not holds_ctrl_c(error):
            raise
        raise _InterruptedInThread(Raised.from_exception(error).error) from None


async def _run(parts: Parts, running: Running, scope: trio.CancelScope) -> Ended:
    """Run one claimed job to its end.

    Raises: whatever the handler raises.
    """
    job = running.job
    if parts.is_draining and running.interrupt is None:
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
    try:
        if not handler.takes_context:
            value = await _call(parts, handler, payload)
        else:
            value = await _call(parts, handler, payload, JobContext(parts=parts, running=running))
    finally:
        if handler.timeout_seconds is not None:
            running.interrupt = running.why_stop()
            scope.deadline = math.inf
        running.scope = None
    return _NOTHING if value is None else Returned(value)


async def _call(parts: Parts, handler: Handler, *arguments: Any) -> object:
    if handler.is_async:
        return await handler.call(*arguments)
    # A thread cannot be interrupted: the job stays running until it ends. It sees a cancel through
    # trio.from_thread.check_cancelled() and ctx.is_cancelled().
    return await trio.to_thread.run_sync(_call_in_thread, handler, arguments, limiter=parts.threads)


def _settle(parts: Parts, running: Running, ended: Ended) -> Settlement | None:
    """Return what is to be written, or None when the lease was lost."""
    running.has_ended = True
    if ended is _NOTHING and running.interrupt is None:
        return PLAIN_COMPLETION  # as `decide` would say, for by far the most jobs
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
