"""Handlers on asyncio: one event loop of asyncio's, in a thread of the worker.

The loop starts with the first job that needs it. A handler is a task of the loop, and the slot's
trio task waits for that task. If the slot's scope is cancelled, the loop calls `task.cancel()`.

The other way is trio-asyncio: a loop of asyncio's within trio's, in one thread. Both were measured
three times in turn, in microseconds, on two cores that were busy with other work, with Python 3.11
and trio-asyncio 0.16:

|                                        | thread     | trio-asyncio |
|----------------------------------------|------------|--------------|
| a no-op, one after the other           | 69..80     | 73..95       |
| a no-op, 50 slots at once, each        | 19..26     | 60..80       |
| trio's cancel to CancelledError, p50   | 103..114   | 84..96       |
| the same, p99                          | 2795..3874 | 147..851     |
| 100 bytes there and back on a socket   | 51..69     | 177..291     |

The p99 of a cancel is a wait for the interpreter's lock, which a thread keeps for up to 5 ms.

The thread was chosen:

- A handler that holds asyncio's loop delays other handlers on asyncio only. Heartbeats, cancels,
  the settler and trio's handlers go on, and a trio task can report the handler (watchdog.py).
- The loop is asyncio's own, or uvloop's if that is the program's policy. Nothing is imitated.

Rules:

- A task that a job starts belongs to that job: it inherits a context variable, and the loop's
  factory of tasks notes it. If such a task still runs when the handler has ended, it is cancelled
  and waited for. The worker reports that, as it reports a nursery that a trio handler left open. If
  a task shall outlive its job, start it in another context:
  `contextvars.Context().run(asyncio.create_task, ...)`.
- asyncio lets SystemExit and KeyboardInterrupt out of its loop. The thread then runs the loop
  again, as it does after a `stop()`. The task that raised keeps its exception.
- If the loop dies of anything else, the jobs that it ran fail. The next job has a new loop.
- asyncio forgets a cancel that a handler has caught, and trio does not. So a handler that runs on
  is cancelled once more when its grace is over. It is then reported as unresponsive, and left
  alone. As on trio, it holds its slot until it ends.
- A callback of `loop.call_later` is not a task. If a job leaves a callback behind, asyncio calls it
  although the job has ended, and logs what it raises.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from contextvars import Context, ContextVar, copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import attrs
import outcome
import trio
import trio.lowlevel

from pgnotifyq.model.around import NO_RESOURCES, Resources, enter, failed_at_end
from pgnotifyq.model.errors import PgnotifyqError, text_of
from pgnotifyq.model.returned import PLAIN_RESULTS, finished
from pgnotifyq.runtime.bell import Bell
from pgnotifyq.runtime.logs import job_names

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
    from typing import NoReturn

    from pgnotifyq.model.around import Lifespan, Middleware
    from pgnotifyq.model.registry import Handler
    from pgnotifyq.runtime.running import Running

T = TypeVar("T")

# How long the loop may take to cancel what is left in it, when its worker ends.
CLOSE_SECONDS = 3.0


class LoopDied(PgnotifyqError):
    """asyncio's event loop ended while a handler ran on it."""


@attrs.define(eq=False, kw_only=True)
class Errand:
    """One handler on asyncio. The loop's thread uses it, except where trio's is named."""

    running: Running
    handler: Handler
    arguments: tuple[Any, ...]
    context: Context
    around: Sequence[Middleware] = ()  # the middleware around the handler on this loop
    given: object = None  # the job's context, for that middleware
    slot: trio.lowlevel.Task = attrs.field(factory=trio.lowlevel.current_task)
    main: asyncio.Task[Any] | None = None  # the handler's
    tasks: set[asyncio.Task[Any]] = attrs.field(factory=set)  # those that it started, while they run
    was_left: bool = False  # the handler had ended, and its tasks ran on
    death: LoopDied | None = None  # the loop died before the handler ended
    raise_cancel: Callable[[], NoReturn] | None = None  # trio's thread: the slot's scope was cancelled

    def begin(self, loop: asyncio.AbstractEventLoop, end: Callable[[Errand], None]) -> None:
        """Start the handler."""
        self.context.run(_errand.set, self)
        self.context.run(job_names.set, self.running.names_in_logs)
        name = f"pgnotifyq {self.running.job.job_type}"
        self.main = asyncio.Task(self._call(), loop=loop, name=name, context=self.context)
        self.main.add_done_callback(lambda _: self._clear_up(loop, end), context=Context())

    def cancel(self) -> None:
        """Cancel the handler; if it has ended, cancel the tasks that it left."""
        if self.main is not None and not self.main.done():
            self.main.cancel(self._why())
        else:
            for task in list(self.tasks):
                task.cancel(self._why())

    def note(self, task: asyncio.Task[Any]) -> None:
        """Take note of a task that the handler, or one of its tasks, has started."""
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard, context=Context())

    def result(self) -> object:
        """Return what the handler returned, or raise what it raised. Call it in trio's thread."""
        if self.death is not None:
            raise self.death
        assert self.main is not None
        if self.raise_cancel is not None and (self.main.cancelled() or _is_cancel(self.main.exception())):
            self.raise_cancel()
        return self.main.result()

    async def _call(self) -> object:
        if self.around:
            return await self._call_within()
        value = self.handler.call(*self.arguments)
        return value if type(value) in PLAIN_RESULTS else await finished(self.handler, value)

    async def _call_within(self) -> object:
        value: object = None
        async with AsyncExitStack() as stack:
            for each in self.around:
                await stack.enter_async_context(each.open(self.given))
            value = await finished(self.handler, self.handler.call(*self.arguments))
            self.running.returned = value
        return value

    def _clear_up(self, loop: asyncio.AbstractEventLoop, end: Callable[[Errand], None]) -> None:
        if not self.tasks:
            end(self)
            return
        clearing = asyncio.Task(self._clear(), loop=loop, name="pgnotifyq clears up", context=Context())
        clearing.add_done_callback(lambda _: end(self), context=Context())

    async def _clear(self) -> None:
        """Cancel the tasks that the handler left, and wait for their end."""
        await asyncio.sleep(0)  # tasks that are about to end may do so
        told: set[asyncio.Task[Any]] = set()
        while left := [task for task in self.tasks if not task.done()]:
            self.was_left = True
            for task in left:
                if task not in told:
                    told.add(task)
                    task.cancel("pgnotifyq: the job has ended")
            await asyncio.gather(*left, return_exceptions=True)

    def _why(self) -> str:
        interrupt = self.running.why_stop()
        return "pgnotifyq: the worker ends" if interrupt is None else f"pgnotifyq: {interrupt.kind.value}"


# The handler that the running task or callback belongs to.
_errand: ContextVar[Errand | None] = ContextVar("pgnotifyq_errand", default=None)


class AsyncioLoop:
    """The loop on which a worker's asyncio handlers run.

    Its methods are called in trio's thread.
    """

    def __init__(self, lifespans: Sequence[Lifespan] = ()) -> None:
        self._thread: LoopThread | None = None
        self._lifespans = lifespans
        self._starting = trio.Lock()  # held while a thread with lifespans is started
        self.busy = Bell()  # rung when a handler comes to a loop that ran none

    @property
    def thread(self) -> LoopThread | None:
        """The loop's thread; None if there is none yet, or none any more."""
        return self._thread

    async def run(self, errand: Errand) -> object:
        """Run a handler to its end, and return what it returns.

        Cancellation: the handler is cancelled, and its end is waited for. If it runs on, cancels.py
            cancels it once more.

        Raises: whatever the handler raises.
            LoopDied: the loop ended before the handler.
        """
        thread = self._thread
        while thread is None or not thread.take(errand):
            thread = await self.start(thread)

        if len(thread.errands) == 1:
            self.busy.ring()

        def abort(raise_cancel: Callable[[], NoReturn]) -> trio.lowlevel.Abort:
            errand.raise_cancel = raise_cancel
            errand.running.cancel_again = partial(thread.call, errand.cancel)
            thread.call(errand.cancel)
            return trio.lowlevel.Abort.FAILED  # the handler's end wakes this task

        await trio.lowlevel.wait_task_rescheduled(abort)
        return errand.result()

    @property
    def has_lifespans(self) -> bool:
        """Whether lifespans are to be entered on the loop before a handler runs there."""
        return bool(self._lifespans)

    @property
    def resources(self) -> Resources:
        """What the lifespans on this loop have made."""
        return NO_RESOURCES if self._thread is None else self._thread.resources

    async def start(self, dead: LoopThread | None = None) -> LoopThread:
        """Start a loop and its lifespans, if there is no loop or the one there was is dead.

        Raises:
            LoopDied: no loop could be made, or it died while its lifespans were entered.
            LifespanFailed: a lifespan raised.
        """
        if not self._lifespans:
            self._thread = thread = LoopThread()
            thread.open()
            return thread
        async with self._starting:
            if self._thread is not None and self._thread is not dead:
                return self._thread  # another task has started it meanwhile
            thread = LoopThread()
            thread.open()
            try:
                await thread.enter(self._lifespans)
            except BaseException:
                thread.close()
                raise
            self._thread = thread
            return thread

    async def aclose(self) -> None:
        """Close the lifespans, then end the loop: cancel what is left in it.

        Each of the two takes CLOSE_SECONDS at the most.

        If something holds the loop, its thread stays behind. The process can end all the same.
        """
        thread, self._thread = self._thread, None
        if thread is not None:
            with trio.move_on_after(CLOSE_SECONDS, shield=True):
                await thread.leave()
            thread.close()
            with trio.move_on_after(CLOSE_SECONDS, shield=True):
                await trio.to_thread.run_sync(thread.join, abandon_on_cancel=True)


@asynccontextmanager
async def open_loop(lifespans: Sequence[Lifespan] = ()) -> AsyncIterator[AsyncioLoop]:
    """Open a loop. It has no thread until a handler needs one."""
    loop = AsyncioLoop(lifespans)
    try:
        yield loop
    finally:
        await loop.aclose()


class LoopThread(threading.Thread):
    """A thread that is an event loop of asyncio's until it is closed, or the loop dies."""

    def __init__(self) -> None:
        super().__init__(name="pgnotifyq asyncio", daemon=True)
        self.loop: asyncio.AbstractEventLoop | None = None  # made by the thread
        self._is_ready = threading.Event()  # the loop is made, or cannot be made
        self._death: BaseException | None = None
        # An executor of our own: asyncio would wait for its own without a limit.
        self._executor = ThreadPoolExecutor(thread_name_prefix="pgnotifyq asyncio")
        self.errands: set[Errand] = set()
        # Calls for the loop's thread, and slots for trio's thread to wake. A thread is woken once
        # for all that has gathered for it. To wake it for each took a system call, and the
        # interpreter's lock.
        self._calls: deque[Callable[[], object]] = deque()
        self._ended: deque[trio.lowlevel.Task] = deque()
        self._is_called = self._is_told = False
        self._token = trio.lowlevel.current_trio_token()
        self._lock = threading.Lock()  # held to set `_is_dead`, and to act on it
        self._is_closing = False
        self._is_dead = False
        self.resources = NO_RESOURCES
        self._leaving: asyncio.Event | None = None  # set: the lifespans are to be closed
        self._entered: trio.Event | None = None  # set: they are open, or will never be
        self._left: trio.Event | None = None  # set: they are closed
        self._failure: BaseException | None = None  # what entering or closing them raised

    def take(self, errand: Errand) -> bool:
        """Begin a handler; False: the loop is dead."""
        with self._lock:
            if self._is_dead:
                return False
            self.errands.add(errand)
        loop = self.loop
        assert loop is not None
        self.call(lambda: errand.begin(loop, self._end))
        return True

    def open(self) -> None:
        """Start the thread, and wait until it has made its loop: less than a millisecond, once.

        Raises:
            LoopDied: the thread cannot make one.
        """
        self.start()
        self._is_ready.wait()
        if self._death is not None:
            raise LoopDied(f"no event loop of asyncio's can be made: {text_of(self._death)}") from self._death

    async def enter(self, lifespans: Sequence[Lifespan]) -> None:
        """Enter lifespans, in a task of the loop that later closes them, too.

        Raises:
            LifespanFailed: one raised.
            LoopDied: the loop died before they were entered.
        """
        entered, left = trio.Event(), trio.Event()
        with self._lock:
            if self._is_dead:
                raise self._died()
            # The thread sets both when the loop dies: a task of a dead loop sets nothing.
            self._entered, self._left = entered, left
        loop = self.loop
        assert loop is not None
        failures: list[BaseException] = []
        is_open = False

        async def live() -> None:
            self._leaving = asyncio.Event()
            nonlocal is_open
            try:
                async with AsyncExitStack() as stack:
                    self.resources = await enter(stack, lifespans)
                    is_open = True
                    self._tell(entered)
                    await self._leaving.wait()
            except BaseException as error:  # `enter` or `leave` raises it
                failures.append(error)
                self._failure = error
                if isinstance(error, asyncio.CancelledError):
                    raise
            finally:
                self._tell(entered)
                self._tell(left)

        self.call(lambda: setattr(self, "_life", loop.create_task(live(), name="pgnotifyq lifespan", context=Context())))
        await entered.wait()
        if failures:
            raise failures[0]
        if not is_open:
            raise self._died()

    async def leave(self) -> None:
        """Close the lifespans.

        Raises:
            LifespanFailed: one raised when it was closed.
        """
        leaving, left = self._leaving, self._left
        if leaving is None or left is None or self._is_dead:
            return
        self.call(leaving.set)
        await left.wait()
        if isinstance(self._failure, Exception):
            raise failed_at_end(self._failure) from self._failure

    def _tell(self, event: trio.Event) -> None:
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(event.set)

    def call(self, function: Callable[[], object]) -> None:
        """Have the loop call a function soon.

        A dead loop does not call it. Its handlers know of the death already.
        """
        self._calls.append(function)
        if not self._is_called and self.loop is not None:
            self._is_called = True
            with suppress(RuntimeError):
                self.loop.call_soon_threadsafe(self._call_all, context=Context())

    def close(self) -> None:
        """Have the loop end."""
        self._is_closing = True
        if self.loop is not None:
            self.call(self.loop.stop)

    def current(self) -> tuple[asyncio.Task[Any], Errand | None] | None:
        """Return the task that runs now, and the errand it belongs to; None while the loop waits.

        Any thread may call this.
        """
        task = asyncio.current_task(self.loop)
        if task is None:
            return None
        return task, next((errand for errand in list(self.errands) if errand.main is task or task in errand.tasks), None)

    def run(self) -> None:
        """Be the loop."""
        try:
            # Made here: trio-asyncio, if the program has it, makes no loop in trio's thread.
            loop = asyncio.new_event_loop()
            asyncio.set_event_loop(loop)
            loop.set_task_factory(_make_task)  # type: ignore[arg-type]  # typeshed wants a task of any loop
            loop.set_default_executor(self._executor)
            self.loop = loop
        except BaseException as error:  # noqa: BLE001  # told by `open`
            self._death = error
            return
        finally:
            self._is_ready.set()
        try:
            while not self._is_closing:
                # Ctrl-C comes to the main thread only. So it was a handler that raised these.
                with suppress(SystemExit, KeyboardInterrupt):
                    loop.run_forever()
            loop.run_until_complete(self._clear(loop))
        except BaseException as error:  # noqa: BLE001  # told to those that are concerned
            self._death = error
        with self._lock:
            self._is_dead = True
        for event in (self._entered, self._left):
            if event is not None:
                self._tell(event)
        for errand in list(self.errands):
            errand.death = LoopDied(_DIED.format(self._why_dead()))
            errand.death.__cause__ = self._death
            self._wake(errand)
        self._executor.shutdown(wait=False, cancel_futures=True)
        with suppress(Exception):
            loop.close()

    def _why_dead(self) -> str:
        return "it was closed" if self._death is None else f"{type(self._death).__name__}: {text_of(self._death)}"

    def _died(self) -> LoopDied:
        died = LoopDied(f"asyncio's event loop has died while the lifespans were entered ({self._why_dead()})")
        died.__cause__ = self._death
        return died

    def _end(self, errand: Errand) -> None:
        self.errands.discard(errand)
        errand.context.run(_errand.set, None)  # nothing is left for the collector of garbage
        self._wake(errand)

    def _wake(self, errand: Errand) -> None:
        """Wake the task of the handler's slot."""
        self._ended.append(errand.slot)
        if not self._is_told:
            self._is_told = True
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._wake_all)

    def _call_all(self) -> None:
        self._is_called = False  # first: a call that comes from now on wakes this thread again
        for _ in range(len(self._calls)):
            self._calls.popleft()()

    def _wake_all(self) -> None:
        self._is_told = False  # the same, in trio's thread
        for _ in range(len(self._ended)):
            trio.lowlevel.reschedule(self._ended.popleft())

    async def _clear(self, loop: asyncio.AbstractEventLoop) -> None:
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel("pgnotifyq: the worker ends")
        if left:
            await asyncio.wait(left, timeout=CLOSE_SECONDS)
        await loop.shutdown_asyncgens()


_DIED = "asyncio's event loop has died while this handler ran on it ({}); the next job has a new one"


def _make_task(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], **settings: Any) -> asyncio.Task[Any]:
    """Make a task, and note which handler it belongs to."""
    task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, **settings)
    context = settings.get("context")
    errand = _errand.get() if context is None else context.get(_errand)
    # If nobody closed an async generator, the garbage collector has asyncio close it, in a task
    # that belongs to no handler.
    if errand is not None and inspect.iscoroutine(coroutine):
        errand.note(task)
    return task


def _is_cancel(error: BaseException | None) -> bool:
    """Tell whether an error is a group of nothing but cancels."""
    return isinstance(error, BaseExceptionGroup) and error.split(asyncio.CancelledError)[1] is None


async def in_trio(token: trio.lowlevel.TrioToken, function: Callable[..., Awaitable[T]], *arguments: Any) -> T:
    """Call an async function in trio's loop, from a task of asyncio's.

    Cancellation: cancels the function, and does not wait for it.

    Raises: whatever the function raises.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()
    scope = trio.CancelScope()

    def tell(result: outcome.Outcome[T]) -> None:
        if answer.done():
            return
        if isinstance(result, outcome.Value):
            answer.set_result(result.unwrap())
        else:
            answer.set_exception(result.error)  # type: ignore[attr-defined]  # it has one

    async def call() -> None:
        with scope:
            result = await outcome.acapture(function, *arguments)
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(tell, result)

    token.run_sync_soon(trio.lowlevel.spawn_system_task, call)
    try:
        return await answer
    except asyncio.CancelledError:
        with suppress(trio.RunFinishedError):
            token.run_sync_soon(scope.cancel)
        raise


def errand_of(running: Running, handler: Handler, *arguments: Any) -> Errand:
    """Make the errand of a handler, in a context that is a copy of the running task's."""
    return Errand(running=running, handler=handler, arguments=arguments, context=copy_context())
