"""One attempt of a Django task, in a worker.

A task runs in a thread, as a view does. A blocking task runs as it is. An async task runs in an
asyncio loop of its own, by asgiref's `async_to_sync`. Blocking code that it calls through
`sync_to_async` runs in the same thread, on the same database connections. Before and after each
task, connections are treated as Django treats them before and after each request.

How it ends:

| the task | is |
|---|---|
| returns what is JSON | completed |
| returns what is not | failed for good: another attempt would return the same |
| raises what `retry_on` names, or anything if there is none | tried again, if an attempt is left |
| raises anything else | failed |
| runs longer than `timeout_seconds` | as if it raised TimeoutError |
| is cancelled, or its worker shuts down | cancelled, or given back uncharged |
| raises or returns pgnotifyq's Snooze, Retry or Discard | what that says |

An async task that shall stop is cancelled at its next await. A blocking task cannot be interrupted:
it may ask `context.job.is_cancelled()`, or call `trio.from_thread.check_cancelled()`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import math
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import trio
from asgiref.sync import async_to_sync
from django.db import close_old_connections, reset_queries
from django.utils import timezone

from pgnotifyq.django.declaring import PgnotifyqTaskContext
from pgnotifyq.django.framework import (
    TaskResultDoesNotExist,
    TaskResultStatus,
    normalize_json,
    task_backends,
    task_finished,
    task_started,
)
from pgnotifyq.django.results import call_of, describe, error_of, result_of
from pgnotifyq.model.job import Execution
from pgnotifyq.model.outcome import Discard, Retry, Snooze

if TYPE_CHECKING:
    from types import TracebackType

    from pgnotifyq.django.results import Call
    from pgnotifyq.model.job import Job
    from pgnotifyq.runtime.context import JobContext

_WISHES = (Snooze, Retry, Discard)
_STOPPED = object()  # what the thread gives back when its task was cancelled


@dataclasses.dataclass(eq=False)
class _Attempt:
    """One attempt, between the worker's loop and the thread."""

    job: Job
    ctx: JobContext
    alias: str  # of the backend whose worker this is
    task: Any  # as it is declared
    call: Call
    is_stopped: bool = False  # it was told to stop
    loop: asyncio.AbstractEventLoop | None = None  # of an async task
    coroutine: asyncio.Task[Any] | None = None

    def stop(self) -> None:
        """Tell the task to stop, from the worker's loop."""
        self.is_stopped = True
        if self.loop is not None and self.coroutine is not None:
            with suppress(RuntimeError):  # its loop has just closed
                self.loop.call_soon_threadsafe(self.coroutine.cancel)

    @property
    def backend(self) -> Any:
        """The backend. Ask for it in the thread: Django keeps it in the context that asks."""
        return task_backends[self.alias]

    def setting(self, name: str) -> Any:
        """Return a setting: as the job was enqueued, else as its task is declared."""
        return self.call.options.get(name, getattr(self.task, name, None))


async def run_task(alias: str, task: Any, job: Job, ctx: JobContext) -> Any:
    """Run one attempt of a task, and return how it ended, as a handler does.

    Args:
        alias: of the backend whose worker this is.
        task: as it is declared.
        job: the job.
        ctx: its context.

    Cancellation: an async task is cancelled; a blocking one goes on, and this waits for it.

    Raises:
        BaseException: what the task raised when it was to stop.
    """
    try:
        call = call_of(job.payload)
    except ValueError as error:
        return Discard(str(error))
    attempt = _Attempt(job, ctx, alias, task, call)
    seconds = attempt.setting("timeout_seconds")
    ended: Any = None
    failure: BaseException | None = None
    with trio.move_on_after(math.inf if seconds is None else seconds) as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_stop_when_cancelled, attempt)
            try:
                if ctx.calls_here:
                    ended = _here(attempt)
                else:
                    # A limiter of its own: the worker's slots are the limit.
                    ended = await trio.to_thread.run_sync(_in_thread, attempt, limiter=trio.CapacityLimiter(1))
            except trio.Cancelled:
                raise
            except BaseException as error:  # noqa: BLE001  # raised below: a nursery would make a group of it
                failure = error
            nursery.cancel_scope.cancel(reason="pgnotifyq: the task has ended")
        if ended is _STOPPED or failure is not None:
            await trio.lowlevel.checkpoint_if_cancelled()
    if scope.cancelled_caught:
        return await trio.to_thread.run_sync(_time_out, attempt, seconds, limiter=trio.CapacityLimiter(1))
    if failure is not None:
        raise failure
    return ended


async def _stop_when_cancelled(attempt: _Attempt) -> None:
    try:
        await trio.sleep_forever()
    finally:
        attempt.stop()


def _in_thread(attempt: _Attempt) -> Any:
    """Run the task; return its result, or the wish that its failure makes."""
    _refresh_connections()
    try:
        return _here(attempt)
    finally:
        _refresh_connections()


def _here(attempt: _Attempt) -> Any:
    """Run the task on the connections as they are: a test's may have an open transaction."""
    result = _result_at_start(attempt)
    task_started.send_robust(type(attempt.backend), task_result=result)
    return _call(attempt, result)


def _refresh_connections() -> None:
    """Do what Django does around a request: close unusable and old connections, forget queries."""
    reset_queries()
    close_old_connections()


def _call(attempt: _Attempt, result: Any) -> Any:
    try:
        value = _run(attempt, result)
        try:
            value = normalize_json(value)
        except (TypeError, ValueError) as error:
            return _fail(attempt, error, result, is_final=True)
    except trio.Cancelled:
        raise  # the task has asked, and was told to stop
    except Snooze as wish:
        return wish
    except BaseException as error:  # also SystemExit, and a KeyboardInterrupt of the task's own
        error.__traceback__ = _without_ours(error.__traceback__)
        if attempt.is_stopped and isinstance(error, asyncio.CancelledError):
            return _STOPPED
        if attempt.ctx.is_cancelled():
            raise  # the worker knows why, and says what follows
        return _fail(attempt, error, result)
    _finish(attempt, result, TaskResultStatus.SUCCESSFUL, value)
    return value


def _run(attempt: _Attempt, result: Any) -> Any:
    task, call = attempt.task, attempt.call
    given = [PgnotifyqTaskContext(task_result=result, job=attempt.ctx)] if task.takes_context else []
    if not inspect.iscoroutinefunction(task.func):
        return _unless_wish(task.func(*given, *call.args, **call.kwargs))

    async def noted() -> Any:
        attempt.loop, attempt.coroutine = asyncio.get_running_loop(), asyncio.current_task()
        if attempt.is_stopped:
            raise asyncio.CancelledError
        return await task.func(*given, *call.args, **call.kwargs)

    return _unless_wish(async_to_sync(noted)())


def _unless_wish(value: Any) -> Any:
    """Return a task's value. If it is a Snooze, Retry or Discard, raise it."""
    if isinstance(value, _WISHES):
        raise value
    return value


def _without_ours(trace: TracebackType | None) -> TracebackType | None:
    """Return the part of a traceback that tells of the task, without the calls of this file."""
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    return trace


def _time_out(attempt: _Attempt, seconds: float) -> Retry | Discard:
    _refresh_connections()
    try:
        raise TimeoutError(f"the task ran for longer than {seconds:g} s")  # noqa: TRY301  # listeners want it handled
    except TimeoutError as error:
        return _fail(attempt, error, _result_at_start(attempt))
    finally:
        _refresh_connections()


def _fail(attempt: _Attempt, error: BaseException, result: Any, *, is_final: bool = False) -> Retry | Discard:
    """Return the wish that a failure makes. If there is no further attempt, tell the listeners.

    Call it while the exception is handled: listeners read sys.exc_info(), as with the backends of
    Django.
    """
    retry_on = attempt.setting("retry_on")
    wish: Retry | Discard
    if isinstance(error, (Retry, Discard)):
        wish = error
    elif is_final or not (retry_on is None or isinstance(error, retry_on)):
        wish = Discard(describe(error))
    else:
        wish = Retry(reason=describe(error))
    if wish is not error:
        wish.__cause__ = error  # a test's drain raises it
    if isinstance(wish, Discard) or attempt.job.attempts >= (attempt.job.max_attempts or 1):
        _finish(attempt, result, TaskResultStatus.FAILED, wish)
    return wish


def _finish(attempt: _Attempt, result: Any, status: Any, value: Any) -> None:
    """Tell the listeners that a task has ended. What a listener raises stops nothing."""
    object.__setattr__(result, "finished_at", timezone.now())
    object.__setattr__(result, "status", status)
    if status == TaskResultStatus.SUCCESSFUL:
        object.__setattr__(result, "_return_value", value)
    else:
        result.errors.append(error_of("failed", value.reason))
    task_finished.send_robust(type(attempt.backend), task_result=result)


def _result_at_start(attempt: _Attempt) -> Any:
    """Return the TaskResult as it is while the task runs.

    The database is asked only if there was an attempt before.
    """
    job = attempt.job
    if job.attempts > 1:
        with suppress(TaskResultDoesNotExist):
            return attempt.backend.get_result(str(job.id))
    assert job.current_execution_id is not None
    now = Execution(
        id=job.current_execution_id,
        job_id=job.id,
        attempt=job.attempts,
        worker_id=job.locked_by,
        outcome="running",
        started_at=job.started_at or timezone.now(),
        ended_at=None,
        error_message=None,
    )
    return result_of(attempt.task, attempt.backend.alias, job, [now])
