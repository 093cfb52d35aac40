"""The life of one execution in this worker: structure the payload, run the handler in its scope, decide."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from pgnotifyq.model.errors import PayloadUndecodable, UnknownJobType
from pgnotifyq.model.outcome import (
    Ended,
    Interrupt,
    InterruptKind,
    Raised,
    Returned,
    Settlement,
    Stopped,
    decide,
)
from pgnotifyq.model.payload import structure
from pgnotifyq.model.retry import RetryPolicy
from pgnotifyq.runtime.context import JobContext

if TYPE_CHECKING:
    from pgnotifyq.model.registry import Handler
    from pgnotifyq.runtime.holdings import Running
    from pgnotifyq.runtime.parts import Parts

_DEFAULT_RETRY = RetryPolicy()


async def execute(parts: Parts, running: Running) -> Settlement | None:
    """Run one claimed job to its end; return what is to be written, or None when its lease was lost."""
    handler: Handler | None = None
    if parts.is_draining and running.interrupt is None:
        # Claimed while the shutdown was signalled: not started, given back.
        running.stop(Interrupt(kind=InterruptKind.SHUTDOWN, why="the worker is shutting down"))
    try:
        handler = parts.registry.get(running.job.job_type)
    except UnknownJobType as error:
        ended: Ended = Raised(error=str(error), unknown_type=True)
    else:
        ended = await _run(parts, running, handler)
    running.has_ended = True
    return decide(
        ended,
        running.interrupt,
        attempt=running.job.attempts,
        max_attempts=running.job.max_attempts,
        retry=(handler.retry if handler is not None else None) or _DEFAULT_RETRY,
        random=parts.random.random,
    )


async def _run(parts: Parts, running: Running, handler: Handler) -> Ended:
    """Run the handler in a scope of its own, and say how it ended."""
    job = running.job
    if running.interrupt is not None:
        return Stopped()
    try:
        payload = structure(job.payload, handler.payload_type)
    except PayloadUndecodable as error:
        return Raised(error=str(error), undecodable=True)
    if handler.takes_job:
        payload = job

    running.is_cooperative = handler.cooperative
    running.started_at = trio.current_time()
    timeout_seconds = handler.timeout_seconds
    ended: Ended = Stopped()
    try:
        with trio.CancelScope() as scope:
            if timeout_seconds is not None:
                running.timeout_seconds = timeout_seconds
                scope.deadline = running.started_at + timeout_seconds
            running.scope = scope
            if not handler.takes_context:
                ended = Returned(await _call(parts, handler, payload))
            else:
                ended = Returned(await _call(parts, handler, payload, JobContext(parts=parts, running=running)))
    # sys.exit() in a handler ends the job, not the worker; anything worse, KeyboardInterrupt say, is not ours to catch.
    except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever a handler raises is its outcome
        ended = Raised.from_exception(error)
    finally:
        running.interrupt = running.why_stop()
        running.scope = None
    return ended


async def _call(parts: Parts, handler: Handler, *arguments: Any) -> object:
    if handler.is_async:
        return await handler.call(*arguments)
    # A thread cannot be interrupted: the job stays running until it ends. It sees a cancel through
    # trio.from_thread.check_cancelled() and ctx.is_cancelled().
    return await trio.to_thread.run_sync(lambda: handler.call(*arguments), limiter=parts.threads)
