"""The executor: one run of a handler.

It structures the payload, calls the handler in a scope, and says how the handler ended.

A worker's slots use it (slots.py), and so does `testing.run_job`. So in a test a handler is given
the same as in a worker, and its end becomes the same outcome.
"""

from __future__ import annotations

import math
import sys
import threading
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import trio

from pgnotifyq.model.checkpoint import read_state
from pgnotifyq.model.errors import ConnectionsTaken, HandlerProcessDied, PayloadUndecodable, RaisedInProcess
from pgnotifyq.model.events import Event, EventName
from pgnotifyq.model.handler import RunsIn
from pgnotifyq.model.headers import NO_HEADERS, carried, to_carry
from pgnotifyq.model.outcome import (
    PLAIN_COMPLETION,
    Ended,
    Outcome,
    Raised,
    Returned,
    SettleKind,
    Stopped,
    Written,
    bounded,
    decide,
    ended_by,
    holds_ctrl_c,
    innermost,
)
from pgnotifyq.model.payload import PayloadTooNew, decode
from pgnotifyq.model.retry import RetryPolicy
from pgnotifyq.model.returned import PLAIN_RESULTS, finished
from pgnotifyq.model.tracing import in_place
from pgnotifyq.runtime.asyncio_context import AsyncioContext
from pgnotifyq.runtime.asyncio_loop import errand_of, open_loop
from pgnotifyq.runtime.batches import Batch
from pgnotifyq.runtime.context import JobContext
from pgnotifyq.runtime.lifespans import lifespans_on
from pgnotifyq.runtime.logs import job_names, job_under_way

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextvars import Token

    from pgnotifyq.model.around import Middleware
    from pgnotifyq.model.batch import BatchItem
    from pgnotifyq.model.events import EventSink
    from pgnotifyq.model.headers import Headers
    from pgnotifyq.model.registry import Handler, JobRegistry
    from pgnotifyq.runtime.asyncio_loop import AsyncioLoop
    from pgnotifyq.runtime.context import Reach
    from pgnotifyq.runtime.deadlines import Deadlines
    from pgnotifyq.runtime.meter import Meter
    from pgnotifyq.runtime.processes import Processes
    from pgnotifyq.runtime.running import Running

# A job that waited for a connection in vain is tried again after this: it has waited for long
# enough.
WAITED_SECONDS = 1.0
# The same for a job whose payload is of a later version: a newer worker may have come by then.
TOO_NEW_SECONDS = 10.0
_DEFAULT_RETRY = RetryPolicy()
_NOTHING = Returned(None)
_LEFT_A_TASK = (
    "{} returned and left a task running, which was cancelled: await it before the handler returns, in an asyncio.TaskGroup say"
)


@attrs.frozen(eq=False, kw_only=True)
class Executor:
    """What it takes to run handlers."""

    registry: JobRegistry
    reach: Reach  # what a handler can reach of its worker
    deadlines: Deadlines
    threads: trio.CapacityLimiter | None = None  # for handlers that are no async functions; None: trio's own
    loop: AsyncioLoop | None = None  # for handlers on asyncio; None: one for each job
    processes: Processes | None = None  # for handlers in processes; None: they run in threads
    emit: EventSink | None = None  # where it is told what handlers on asyncio leave behind
    meter: Meter | None = None
    random: Callable[[], float]  # draws from 0 to 1, for the jitter of a retry
    # For batches: `take_more` takes waiting jobs along, `add` takes an outcome. None: a batch is
    # one job.
    take_more: Callable[[Running, int], list[Running]] | None = None
    add: Callable[[Running, Outcome | None], None] | None = None

    async def run(self, running: Running, scope: trio.CancelScope) -> Ended:  # noqa: PLR0912  # each is a way of its own
        """Run one execution's handler to its end.

        Args:
            running: the execution. If it was interrupted already, its handler is not called.
            scope: the cancel scope that this is called in. Until `run` returns it belongs to the
                handler.

        Raises: whatever the handler raises. `as_ended` says how the handler has ended then.
        """
        if running.interrupt is not None:
            return Stopped()
        job = running.job
        handler = self.registry.find(job.job_type)
        if handler is None:
            return Raised(error=self.registry.explain_unknown(job.job_type), unknown_type=True)
        if handler.batch_size is not None:
            return await self._run_batch(running, handler, handler.batch_size, scope)
        payload = None
        in_process = self.processes is not None and handler.runs_in is RunsIn.PROCESS
        if not in_process:  # else the process reads it
            payload = _read(handler, running)
            if type(payload) is Raised:
                return payload

        running.handler = handler
        running.scope = scope
        token: Token[Headers | None] | None = None
        value: object = None
        try:
            if not job.is_bare or in_place() is not None:
                token = self._enter(running)
            if not in_process:  # else when one is free
                self._begin(running, handler, scope)
            if around := self.registry.around(handler):
                value = await self._run_within(around, running, handler, payload)
            elif in_process:
                value = await self._run_in_process(running, handler)
            elif handler.runs_in is RunsIn.ASYNCIO:
                value = await self._run_on_asyncio(running, handler, payload)
            elif not handler.takes_context:
                value = await self._call(running, handler, payload)
            else:
                value = await self._call(running, handler, payload, JobContext(running, self.reach))
        finally:
            self._end(running, handler, scope, token, value)
        if value is None:
            return _NOTHING
        return value if type(value) is Raised else Returned(value)

    def _enter(self, running: Running) -> Token[Headers | None] | None:
        """Give a handler the headers and the trace of its job."""
        job = running.job
        if (tracing := in_place()) is not None:
            running.trace = tracing.begin(job.id, job.job_type, job.queue_name, job.attempts, job.headers)
        return None if job.headers is NO_HEADERS else carried.set(to_carry(job.headers))

    def _begin(self, running: Running, handler: Handler, scope: trio.CancelScope) -> None:
        """Note that a handler begins; from now on its time counts.

        A handler begins again if its process died before the process had the job (`_wait`). The
        meter counts the handler once.
        """
        is_again = running.started_at is not None
        running.started_at = trio.current_time()
        if handler.timeout_seconds is not None:
            scope.deadline = running.started_at + handler.timeout_seconds
            self.deadlines.note(scope.deadline)
        if self.meter is not None and not is_again:
            self.meter.note_started(running)

    def _end(
        self, running: Running, handler: Handler, scope: trio.CancelScope, token: Token[Headers | None] | None, value: object
    ) -> None:
        if handler.timeout_seconds is not None:
            self.deadlines.tell(running)
            scope.deadline = math.inf
        running.scope = None
        if token is not None:
            carried.reset(token)
        if running.trace is not None:
            kind = None if running.interrupt is None else running.interrupt.kind
            running.trace.leave(sys.exception(), kind, value if type(value) is Raised else None)

    async def _run_in_process(self, running: Running, handler: Handler) -> object:
        assert self.processes is not None
        assert running.scope is not None
        begin = partial(self._begin, running, handler, running.scope)
        wait = partial(_wait, running.scope)
        return await self.processes.run(running, handler, JobContext(running, self.reach), begin, wait)

    async def _call(self, running: Running, handler: Handler, *arguments: Any) -> object:
        if handler.runs_in is RunsIn.TRIO:
            value = await handler.call(*arguments)
        else:
            # A thread cannot be interrupted: the job stays running until the thread ends. The
            # handler sees a cancel through trio.from_thread.check_cancelled() and
            # ctx.is_cancelled(). The value comes in a tuple, because trio refuses threads that
            # return coroutines.
            (value,) = await trio.to_thread.run_sync(
                _call_in_thread, running, handler, arguments, job_under_way(), limiter=self.threads
            )
        return value if type(value) in PLAIN_RESULTS else await finished(handler, value)

    async def _run_within(self, around: Sequence[Middleware], running: Running, handler: Handler, payload: Any) -> object:
        """Run a handler within its middleware.

        If a middleware swallows an error, the job completes.
        """
        kind = handler.runs_in
        context = JobContext(running, self.reach)
        value: object = None
        if kind is RunsIn.PROCESS and self.processes is not None:
            return await self._run_in_process_within(around, running, handler, context)
        async with AsyncExitStack() as stack:
            for each in around:
                if each.is_on_trio(kind):
                    await stack.enter_async_context(each.open(context))
            if kind is RunsIn.ASYNCIO:
                inner = [each for each in around if each.is_on_asyncio(kind)]
                value = await self._run_on_asyncio(running, handler, payload, inner)
            else:
                value = await self._call(running, handler, *((payload, context) if handler.takes_context else (payload,)))
            running.returned = value
        return value

    async def _run_in_process_within(
        self, around: Sequence[Middleware], running: Running, handler: Handler, context: JobContext
    ) -> object:
        """Run a handler in a process within its middleware, for which it ends as any handler does.

        What the handler raises in the process comes back as text. So an exception with that text is
        raised here, for the middleware, and caught again outside of the middleware.
        """
        value: object = None
        told: Exception | None = None
        try:
            async with AsyncExitStack() as stack:
                for each in around:
                    if each.is_on_trio(RunsIn.PROCESS):
                        await stack.enter_async_context(each.open(context))
                value = await self._run_in_process(running, handler)
                if isinstance(value, Raised):
                    told = _told(value)
                    raise told  # noqa: TRY301  # through the middleware
                running.returned = _read_back(value)
        except Exception as error:
            if told is None or innermost(error) is not told:
                raise
            return value
        if isinstance(value, Raised) and (value.waited or value.undecodable):
            return value  # the middleware swallowed it, but the handler has not run
        return None if isinstance(value, Raised) else value

    async def _run_on_asyncio(
        self, running: Running, handler: Handler, payload: Any, around: Sequence[Middleware] = ()
    ) -> object:
        if self.loop is None:
            async with open_loop(lifespans_on(self.registry, RunsIn.ASYNCIO)) as loop:
                return await attrs.evolve(self, loop=loop)._run_on_asyncio(running, handler, payload, around)  # noqa: SLF001
        context = AsyncioContext(running, self.reach, self.loop) if handler.takes_context or around else None
        arguments = (payload, context) if handler.takes_context else (payload,)
        errand = errand_of(running, handler, *arguments)
        errand.around, errand.given = around, context
        try:
            value = await self.loop.run(errand)
        except (KeyboardInterrupt, BaseExceptionGroup) as error:
            if not holds_ctrl_c(error):
                raise
            return Raised.from_exception(error)  # the handler's own, as in a thread
        finally:
            if errand.was_left and self.emit is not None:
                self.emit(Event(name=EventName.JOB_LEFT_OPEN, fields={**running.names(), "left": "a task"}))
        return Raised(error=_LEFT_A_TASK.format(handler.name)) if errand.was_left else value

    async def _run_batch(self, first: Running, handler: Handler, size: int, scope: trio.CancelScope) -> Ended:
        """Run a handler on a job, and on the jobs that wait with it. See batches.py.

        Returns: how the first job has ended. How the others have ended is handed over. In a worker,
            how the first one has ended is handed over, too.
        """
        if handler.runs_in is RunsIn.ASYNCIO and self.loop is None:
            async with open_loop(lifespans_on(self.registry, RunsIn.ASYNCIO)) as loop:
                return await attrs.evolve(self, loop=loop)._run_batch(first, handler, size, scope)  # noqa: SLF001
        kept: Ended = Stopped()

        def hand_over(running: Running, ended: Ended) -> None:
            nonlocal kept
            if handler.timeout_seconds is not None:
                self.deadlines.tell(running)
            if self.add is not None:
                self.add(running, self.outcome_of(running, ended))
            else:
                kept = ended

        batch = Batch(handler=handler, scope=scope, hand_over=hand_over)
        self._fill(batch, first, size)
        if not batch.items:
            return kept
        if handler.timeout_seconds is not None:
            scope.deadline = trio.current_time() + handler.timeout_seconds
        try:
            batch.end(await self._call_on_batch(first, handler, list(batch.items)))
        except trio.Cancelled:
            if scope.cancel_called:  # else the worker itself ends, and leaves its jobs as they are
                batch.end_all(Stopped())
            raise
        except BaseException as error:
            if holds_ctrl_c(error):
                raise
            batch.end_all(as_ended(error))
            if self.add is not None:
                raise
        finally:
            scope.deadline = math.inf
        return kept

    def _fill(self, batch: Batch, first: Running, size: int) -> None:
        """Put a job, and the jobs that wait with it, into a batch."""
        handler = batch.handler
        for running in (first, *(self.take_more(first, size - 1) if self.take_more is not None else ())):
            running.task, running.handler = first.task, handler
            payload = _read(handler, running)
            if type(payload) is Raised:
                batch.hand_over(running, payload)
                continue
            on_asyncio = handler.runs_in is RunsIn.ASYNCIO and self.loop is not None
            context = AsyncioContext(running, self.reach, self.loop) if on_asyncio else JobContext(running, self.reach)  # type: ignore[arg-type]  # there is a loop
            self._begin(running, handler, batch.add(running, payload, context))

    async def _call_on_batch(self, first: Running, handler: Handler, items: list[BatchItem[Any]]) -> object:
        if around := self.registry.around(handler):
            return await self._run_within(around, first, handler, items)
        if handler.runs_in is RunsIn.ASYNCIO:
            return await self._run_on_asyncio(first, handler, items)
        return await self._call(first, handler, items)

    def outcome_of(self, running: Running, ended: Ended) -> Outcome | None:
        """Return the outcome of an execution whose handler has ended; None: its lease was lost."""
        running.has_ended = True
        if self.meter is not None:
            self.meter.note_stopped(running)
        if ended is _NOTHING and running.interrupt is None:
            return PLAIN_COMPLETION  # as `decide` would say, for by far the most jobs
        if isinstance(ended, Raised) and ended.waited and running.interrupt is None:
            message = bounded(ended.error)
            seconds = TOO_NEW_SECONDS if ended.undecodable else WAITED_SECONDS
            return Outcome(kind=SettleKind.SNOOZE, name="snoozed", delay_seconds=seconds, error_message=message)
        handler = running.handler
        return decide(
            ended,
            running.interrupt,
            attempt=running.job.attempts,
            max_attempts=running.job.max_attempts,
            retry=(handler.retry if handler is not None else None) or _DEFAULT_RETRY,
            random=self.random,
            converter=None if handler is None else handler.converter,
        )


def _wait(scope: trio.CancelScope) -> None:
    """Stop the clock of a handler that has to wait for another process: it has not begun."""
    scope.deadline = math.inf


def _read(handler: Handler, running: Running) -> Any:
    """Return a handler's first argument, or `Raised`; and have the handler find what was saved."""
    job = running.job
    try:
        if not job.is_bare and job.has_saved:
            running.saved = read_state(job.saved, handler)
        payload = handler.read(job.whole.payload if handler.takes_job else job.payload)
    except PayloadTooNew as error:
        return Raised(error=str(error), undecodable=True, waited=True)
    except PayloadUndecodable as error:
        return Raised(error=str(error), undecodable=True)
    return job.whole if handler.takes_job else payload


def _told(raised: Raised) -> Exception:
    """Return what middleware is shown of a failure in a process."""
    kind = HandlerProcessDied if HandlerProcessDied in raised.kinds else RaisedInProcess
    return kind(raised.error.removeprefix(f"{HandlerProcessDied.__name__}: "))


def _read_back(value: object) -> object:
    """Return what a handler in a process has returned, as the JSON that it became."""
    if not isinstance(value, Written):
        return value
    return None if value.text is None else decode(value.text)


def as_ended(error: BaseException) -> Returned | Raised:
    """Return how a handler that raised has ended.

    `waited` is set if the handler raised nothing but that the worker had no connection for it.
    """
    ended = ended_by(error)
    if isinstance(ended, Raised) and _is_only(error, ConnectionsTaken):
        return attrs.evolve(ended, waited=True)
    return ended


def _call_in_thread(running: Running, handler: Handler, arguments: tuple[Any, ...], names: Mapping[str, Any]) -> tuple[object]:
    running.thread_id = threading.get_ident()  # for people who ask where the handler stands
    if names:
        job_names.set(lambda: names)  # the context is the thread's own
    try:
        return (handler.call(*arguments),)
    except (KeyboardInterrupt, BaseExceptionGroup) as error:
        if not holds_ctrl_c(error):
            raise
        # Ctrl-C lands in the main thread, never here. So the handler has raised this one itself.
        return (Raised.from_exception(error),)


def _is_only(error: BaseException, kind: type[BaseException]) -> bool:
    """Tell whether an exception is of a kind, or a group of nothing but such exceptions."""
    left = [error]
    while left:
        one = left.pop()
        if isinstance(one, BaseExceptionGroup):
            left.extend(one.exceptions)
        elif not isinstance(one, kind):
            return False
    return True
