"""The life of one execution in this worker: structure the payload, run the handler in its scope, decide, settle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from pgnotifyq.model.errors import PayloadUndecodable, UnknownJobType
from pgnotifyq.model.events import Event, EventName
from pgnotifyq.model.outcome import (
    Ended,
    Interrupt,
    InterruptKind,
    Raised,
    Returned,
    Settlement,
    SettleKind,
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

# What each settlement is called in events; the words of the house.
_EVENTS = {
    SettleKind.COMPLETE: EventName.JOB_COMPLETED,
    SettleKind.RETRY: EventName.JOB_RETRIED,
    SettleKind.SNOOZE: EventName.JOB_SNOOZED,
    SettleKind.RELEASE: EventName.JOB_RELEASED,
    SettleKind.CANCEL: EventName.JOB_CANCELLED,
    SettleKind.BURY: EventName.JOB_DEAD,
}
_BECAME = {"lost": EventName.LEASE_LOST, "cancelled": EventName.JOB_CANCELLED, "dead": EventName.JOB_DEAD}
_DEFAULT_RETRY = RetryPolicy()


async def execute(parts: Parts, running: Running) -> None:
    """Run one claimed job to its end and make the outcome durable, unless the lease was lost."""
    handler: Handler | None = None
    if parts.is_draining:
        # Claimed while the shutdown was signalled: not started, given back.
        running.stop(Interrupt(kind=InterruptKind.SHUTDOWN, why="the worker is shutting down"))
    try:
        handler = parts.registry.get(running.job.job_type)
    except UnknownJobType as error:
        ended: Ended = Raised(error=str(error), unknown_type=True)
    else:
        running.is_cooperative = handler.cooperative
        ended = await _run(parts, running, handler)

    settlement = decide(
        ended,
        running.interrupt,
        attempt=running.job.attempts,
        max_attempts=running.job.max_attempts,
        retry=(handler.retry if handler is not None else None) or _DEFAULT_RETRY,
        random=parts.random.random(),
    )
    if settlement is None:
        parts.emit(Event(name=EventName.LEASE_LOST, fields=_names(running)))
    elif running.is_settled:
        _tell(parts, running, settlement, became=None)
    else:
        # A worker that cannot write its outcome before it stops trusting the lease lets go: the outcome may still be
        # written by the settler, if the fence holds.
        patience = running.renewed_at + parts.config.lease_seconds - parts.config.margin_seconds
        with trio.CancelScope(deadline=patience) as waiting:
            became = await parts.settler.settle(running.lease, settlement)
            _tell(parts, running, settlement, became)
        if waiting.cancelled_caught:
            parts.emit(Event(name=EventName.LEASE_LOST, fields=_names(running)))


async def _run(parts: Parts, running: Running, handler: Handler) -> Ended:
    """Run the handler in a scope of its own, and say how it ended."""
    job = running.job
    if running.interrupt is not None:
        return Stopped()
    try:
        payload = job if handler.takes_job else structure(job.payload, handler.payload_type)
    except PayloadUndecodable as error:
        return Raised(error=str(error), undecodable=True)

    context = JobContext(parts=parts, running=running)
    arguments = (payload, context) if handler.takes_context else (payload,)
    ended: Ended = Stopped()
    running.started_at = trio.current_time()
    timeout_seconds = handler.timeout_seconds
    try:
        with trio.CancelScope() as scope:
            if timeout_seconds is not None:
                scope.deadline = running.started_at + timeout_seconds
            running.scope = scope
            ended = Returned(await _call(parts, handler, arguments))
    # sys.exit() in a handler ends the job, not the worker; anything worse, KeyboardInterrupt say, is not ours to catch.
    except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever a handler raises is its outcome
        ended = Raised.from_exception(error)
    finally:
        running.scope = None
    if scope.cancel_called and running.interrupt is None:
        running.interrupt = Interrupt(kind=InterruptKind.TIMED_OUT, why=f"timed out after {timeout_seconds:g} s")
    return ended


async def _call(parts: Parts, handler: Handler, arguments: tuple[Any, ...]) -> object:
    if handler.is_async:
        return await handler.call(*arguments)
    # A thread cannot be interrupted: the job stays running until it ends. It sees a cancel through
    # trio.from_thread.check_cancelled() and ctx.is_cancelled().
    return await trio.to_thread.run_sync(lambda: handler.call(*arguments), limiter=parts.threads)


def _tell(parts: Parts, running: Running, settlement: Settlement, became: str | None) -> None:
    fields = _names(running)
    if settlement.error_message:
        fields["why"] = settlement.error_message.partition("\n")[0]
    if settlement.kind in {SettleKind.RETRY, SettleKind.SNOOZE} and became is None:
        fields["delay_seconds"] = round(settlement.delay_seconds, 3)
    if running.started_at is not None:
        fields["seconds"] = round(trio.current_time() - running.started_at, 6)
    parts.emit(Event(name=_EVENTS[settlement.kind] if became is None else _BECAME[became], fields=fields))


def _names(running: Running) -> dict[str, object]:
    job = running.job
    return {"job_id": job.id, "job_type": job.job_type, "queue": job.queue_name, "attempt": job.attempts}
