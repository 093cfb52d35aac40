"""Handlers in processes: for what computes, crashes, or has to be killed.

A process is started with the first job that needs it, kept warm, and reused. There are at most
`handler_processes_max` of them, one a core by default. A job that waits for a process holds its
slot and its lease. Its `timeout_seconds` begin when a process begins it.

Rules:

- `spawn`, not `fork`: a worker has threads, sockets and an event loop, and a fork has half of each.
- An interrupt kills. The process and what it has started are sent SIGKILL, for a loop in C hears
  nothing else. A cooperative handler is told of a cancel first (`ctx.is_cancelled()`). It is killed
  after the grace, when other cooperative handlers are cancelled.
- If a process dies by itself, its job has failed, and no other job. If the process dies before it
  has the job (`Began`), the job goes to another process, and the job's time begins anew there.
- Each process leads a session and a group of its own. So Ctrl-C in a terminal, and a signal to the
  worker's group, do not reach it before the worker has decided; and the whole group can be killed.
- No process outlives its worker: processes_child.py.
- The thread that runs trio starts each process. Linux kills a process when the *thread* that
  started it dies, and trio's worker threads end when they idle.
- What is said is JSON, never pickle: processes_messages.py.

Why not trio-parallel 1.3? It is well maintained, and kills on cancel. But it sends function,
payload and result as pickle, and a payload is not to be trusted. It has one answer for each call:
no progress, no news of a cancel, no log. Its processes share the worker's group, so Ctrl-C kills
them first. If the worker is killed, a process lives on while it runs a job.

A no-op, one after the other, without a database, in microseconds (`python -m bench.kinds`, three
times, Python 3.11, two cores that were busy with other work):

| trio  | asyncio | thread | warm process |
|-------|---------|--------|--------------|
| 9..10 | 82..83  | 84..86 | 338..407     |

A process that has to be started costs as long as Python takes to import pgnotifyq, 0.4 s of a
processor, and the program's own modules.
"""

from __future__ import annotations

import contextvars
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import trio
import trio.lowlevel

from pgnotifyq.model import outcome
from pgnotifyq.model.errors import ConfigError, HandlerProcessDied, LeaseLost, quietly, text_of
from pgnotifyq.model.handler import Handler
from pgnotifyq.model.outcome import Raised, Written
from pgnotifyq.model.payload import Encoded, Undecodable, size_of
from pgnotifyq.model.stack import tasks_in
from pgnotifyq.model.tracing import traced
from pgnotifyq.runtime import processes_messages as words
from pgnotifyq.runtime.logs import job_names
from pgnotifyq.runtime.standing import Standing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from pgnotifyq.runtime.context import JobContext
    from pgnotifyq.runtime.running import Running

# How long a process may take to start and to import the handler's module. Some modules import for a
# minute.
LOAD_SECONDS = 180.0
# Between SIGKILL and the end of a process. The kernel takes longer only if a disk does not answer.
KILL_SECONDS = 5.0
# When the worker ends, an idle process has this long for the program's own functions at exit. It is
# a little more than the process gives itself.
CLOSE_SECONDS = 1.5
# So many processes are tried for a job, if each of them dies before it has the job.
TRIES = 3


@attrs.frozen(kw_only=True)
class Fenced:
    """What a fence in the child needs to know."""

    schema: str
    worker_id: str


class _NeverBegan(Exception):
    """The process died before it had the job."""


class Processes:
    """The processes of one worker.

    Args:
        count: how many there are at most; None: one a core.
        jobs_max: a process is replaced after so many jobs; None: never for that.
        memory_bytes_max: what a process may have in data while a handler runs; None: no limit.
        fenced: None: a handler's own transactions are refused, for there is no database.
    """

    def __init__(
        self,
        *,
        count: int | None = None,
        jobs_max: int | None = None,
        memory_bytes_max: int | None = None,
        fenced: Fenced | None = None,
    ) -> None:
        self._free = trio.Semaphore(count or cores())
        self._jobs_max = jobs_max
        self._memory_bytes_max = memory_bytes_max
        self._fenced = fenced
        self._idle: list[_Child] = []
        self._all: set[_Child] = set()
        self._is_closed = False
        self._found: set[Handler] = set()  # handlers that another process will find, too

    @property
    def pids(self) -> list[int]:
        """The ids of the processes that live."""
        return [child.popen.pid for child in self._all]

    async def run(
        self,
        running: Running,
        handler: Handler,
        context: JobContext,
        begin: Callable[[], None],
        wait: Callable[[], None],
    ) -> object:
        """Run a handler in a process, and return what the executor makes an outcome of.

        Args:
            running: the execution.
            handler: what runs it.
            context: does for the handler what it cannot do itself.
            begin: called when a process takes the job.
            wait: called when that process died before it had the job; the job waits for another.

        Returns: a value, a wish, or `Raised`.

        Cancellation: the process is killed, and waited for.
        """
        payload = running.job.payload
        if isinstance(payload, Undecodable):
            return Raised(error=payload.why, undecodable=True)
        if running.job.has_saved and isinstance(saved := running.job.saved, Undecodable):
            return Raised(error=saved.why, undecodable=True)
        try:
            self._check(handler)
        except ConfigError as error:
            return Raised(error=str(error))
        whole = attrs.evolve(running.job.whole, payload=None)
        line = words.written(words.Run(job=whole, payload=json.dumps(payload)))
        async with self._free:
            for _ in range(TRIES):
                try:
                    async with self._lend() as child:
                        if (why := await _load(child, handler)) is not None:
                            return Raised(error=why)
                        begin()
                        done = await _converse(child, running, handler, context, line)
                        child.is_spent = done.is_spent
                        return _ended(done, handler)
                except _NeverBegan:
                    wait()
                except OSError as cause:
                    return Raised(error=f"no process can be started for the handler: {text_of(cause)}", waited=True)
                except HandlerProcessDied as cause:
                    return Raised(error=f"HandlerProcessDied: {cause}", kinds=frozenset({HandlerProcessDied}))
        return Raised(error=f"{TRIES} processes died before they had the job", kinds=frozenset({HandlerProcessDied}))

    @asynccontextmanager
    async def _lend(self) -> AsyncIterator[_Child]:
        """Lend a process. If an error ends the block, the process is killed."""
        child = self._idle.pop() if self._idle else self._start()
        is_well = False
        try:
            if child.jobs == 0:
                await child.say(words.written(self._hello()))
            child.jobs += 1
            yield child
            is_well = True
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise await child.death() from error
        finally:
            if not is_well:
                child.kill()
                with trio.move_on_after(KILL_SECONDS, shield=True):
                    await child.ended.wait()
            if is_well and child in self._all and not (child.is_spent or child.jobs == self._jobs_max or self._is_closed):
                self._idle.append(child)
            else:
                child.say_goodbye()

    def _start(self) -> _Child:
        child = _Child(_popen)
        self._all.add(child)
        trio.lowlevel.spawn_system_task(self._watch, child)
        return child

    async def _watch(self, child: _Child) -> None:
        """Wait for the end of a process, then kill what it had started."""
        try:
            await _wait_for_end(child.popen)
        finally:
            # This kills its group. The process itself is not reaped yet, so no other has its
            # number.
            child.kill()
            quietly(child.popen.wait, 0)
            self._all.discard(child)
            if child in self._idle:
                self._idle.remove(child)
                child.say_goodbye()
            child.hear_no_more()
            child.ended.set()

    async def aclose(self) -> None:
        """End all processes: those that do not end within CLOSE_SECONDS are killed."""
        self._is_closed = True
        self._idle.clear()
        for child in self._all:
            child.say_goodbye()
        for seconds in (CLOSE_SECONDS, KILL_SECONDS):
            with trio.move_on_after(seconds, shield=True):
                for child in list(self._all):
                    await child.ended.wait()
            for child in self._all:
                child.kill()

    def _hello(self) -> words.Hello:
        main = sys.modules["__main__"]
        return words.Hello(
            argv=list(sys.argv),
            main_name=getattr(getattr(main, "__spec__", None), "name", None),
            main_path=getattr(main, "__file__", None),
            level=_level(),
            memory_bytes_max=self._memory_bytes_max,
            schema=None if self._fenced is None else self._fenced.schema,
            worker_id=None if self._fenced is None else self._fenced.worker_id,
        )

    def _check(self, handler: Handler) -> None:
        if handler not in self._found:
            check_found(handler)
            self._found.add(handler)


def cores() -> int:
    """Return how many processors this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def check_found(handler: Handler) -> None:
    """Refuse a handler that another process would not find by its name.

    Raises:
        ConfigError: what is wrong, and what to do.
    """
    module, _, qualname = handler.name.partition(":")
    found: Any = sys.modules.get("__main__" if module == "__mp_main__" else module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    if found is handler:
        return
    advice = "write @registry.handler(...) above the function, in its own module"
    if found is not handler.call:
        raise ConfigError(f"{handler.name} cannot run in a process: by this name it finds {found!r}; {advice}")
    if handler.converter is not None or handler.version != 1:
        raise ConfigError(
            f"{handler.name} cannot run in a process: its converter and its version would not be found there; {advice}"
        )


def refuse_in_import() -> None:
    """Refuse to start a worker in a process of handlers, while that imports the program.

    Raises:
        ConfigError: the program starts its worker when it is imported.
    """
    if words.loading:
        raise ConfigError(
            f"a process imports the program to find {', '.join(words.loading)}, and that import starts a worker: "
            'start it below `if __name__ == "__main__":`, or keep the handlers in a module of their own'
        )


# One process


class _Child:
    """One process, as its worker sees it."""

    def __init__(self, start: Callable[[socket.socket], subprocess.Popen[bytes]]) -> None:
        ours, theirs = socket.socketpair()
        try:
            self.popen = start(theirs)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        self._lines = words.Lines()
        self._sending = trio.Lock()
        self.loaded: set[str] = set()  # job types
        self.jobs = 0  # that it was lent for
        self.is_spent = False
        self.ended = trio.Event()

    async def say(self, line: bytes) -> None:
        async with self._sending:
            await self._stream.send_all(line)

    async def hear(self) -> words.Message:
        """Return the next message.

        Raises:
            trio.BrokenResourceError: no message can be read: the process is dead, or talks
                nonsense.
        """
        while (line := self._lines.take()) is None:
            data = await self._stream.receive_some(65_536)
            if not data:
                raise trio.BrokenResourceError
            try:
                self._lines.add(data)
            except ValueError as error:
                raise trio.BrokenResourceError from error
        try:
            return words.read(line)
        except Exception as error:  # whatever is in the line
            raise trio.BrokenResourceError from error

    async def death(self) -> HandlerProcessDied:
        """Return what to say of this process, which does not answer any more."""
        with trio.move_on_after(1.0):
            await self.ended.wait()
        if not self.ended.is_set():
            return HandlerProcessDied("the process let go of its worker, or what it said cannot be read; it was killed")
        code = self.popen.returncode
        if code >= 0:
            return HandlerProcessDied(f"the process of the handler ended with exit code {code}, and the handler had not returned")
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        hint = ": the kernel does so if memory is short" if -code == signal.SIGKILL else ""
        return HandlerProcessDied(f"the process of the handler was killed by {name}{hint}")

    def say_goodbye(self) -> None:
        """Close the socket: an idle process then ends, and one that runs a job dies."""
        self._stream.socket.close()

    def hear_no_more(self) -> None:
        """Have `hear` come to an end, after what was said already.

        `hear` may not end by itself: something that the process has started may hold the process's
        end of the socket open.
        """
        with suppress(OSError):
            self._stream.socket.shutdown(socket.SHUT_RD)

    def kill(self) -> None:
        """Kill the process, and what it has started."""
        if self.popen.returncode is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.popen.pid, signal.SIGKILL)


def _popen(socket_of_child: socket.socket) -> subprocess.Popen[bytes]:
    from multiprocessing import spawn

    fileno = socket_of_child.fileno()
    paths = json.dumps([path or os.getcwd() for path in sys.path])  # noqa: PTH109  # of now
    command = [os.fsdecode(spawn.get_executable()), *subprocess._args_from_interpreter_flags()]  # type: ignore[attr-defined]  # noqa: SLF001  # what multiprocessing calls, too
    return subprocess.Popen(  # noqa: S603  # this very interpreter
        [*command, "-c", words.BOOT, str(fileno), str(os.getpid()), paths],
        stdin=subprocess.DEVNULL,
        pass_fds=[fileno],
        start_new_session=True,
    )


async def _wait_for_end(popen: subprocess.Popen[bytes]) -> None:
    """Wait until a process has ended. On Linux it is not reaped by then: no other has its number.

    This raises nothing: an error in the system task that runs it would end the worker.
    """
    if sys.platform != "linux":
        await _in_thread(popen.wait)
        return
    try:
        fileno = os.pidfd_open(popen.pid)
    except ProcessLookupError:
        return  # SIGCHLD is ignored, and the process is reaped already
    except (OSError, AttributeError):
        # No file is free, a sandbox refuses the call, or this Python was built without it.
        with suppress(ChildProcessError):  # as above
            await _in_thread(partial(os.waitid, os.P_PID, popen.pid, os.WEXITED | os.WNOWAIT))
        return
    try:
        await trio.lowlevel.wait_readable(fileno)
    finally:
        os.close(fileno)


async def _in_thread(wait: Callable[[], object]) -> None:
    """Wait in a thread with its own limiter: the wait is long, and must take no other's place."""
    await trio.to_thread.run_sync(wait, abandon_on_cancel=True, limiter=trio.CapacityLimiter(1))


# One job


async def _load(child: _Child, handler: Handler) -> str | None:
    """Have a process import a handler; return what its module raised, if it did."""
    if handler.job_type in child.loaded:
        return None
    is_fresh = child.jobs == 1
    loaded: words.Message | None = None
    with trio.move_on_after(LOAD_SECONDS):
        try:
            await child.say(words.written(words.Load(name=handler.name, job_type=handler.job_type)))
            while not isinstance(loaded, words.Loaded):
                loaded = await child.hear()
                if isinstance(loaded, words.Logged):
                    _log(loaded)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            if not is_fresh:
                # Not counted against this import: another process shall try.
                raise _NeverBegan from error
            raise await child.death() from error
    if not isinstance(loaded, words.Loaded):
        raise HandlerProcessDied(f"the process had not imported {handler.name} after {LOAD_SECONDS:g} s; it was killed")
    if loaded.error is not None:
        child.is_spent = True  # its modules are half imported
        return f"{handler.name} cannot be imported in a process: {loaded.error}"
    child.loaded.add(handler.job_type)
    return None


async def _converse(child: _Child, running: Running, handler: Handler, context: JobContext, line: bytes) -> words.Done:
    """Have a process run a job, and do for the handler what the handler cannot do there itself."""
    has_begun = False
    try:
        await child.say(line)
        standing = running.standing = Standing(partial(child.say, words.written(words.Look())))
        with _telling(child, running, handler):
            while True:
                message = await child.hear()
                match message:
                    case words.Began():
                        has_begun = True
                    case words.Logged():
                        _log(message)
                    case words.Noted():
                        context.note_progress(message.fraction, message.message)
                    case words.Line():
                        context.keep_line(message.at, message.level, message.text)
                    case words.Reported() | words.Save() | words.Enqueue():
                        await child.say(words.written(await _do(context, message)))
                    case words.Stood():
                        standing.hear(tasks_in(message.tasks))
                    case words.Settled():
                        running.is_settled = True
                    case words.Done():
                        return message
    except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
        if not has_begun:
            raise _NeverBegan from error
        raise await child.death() from error
    finally:
        running.standing = None


async def _do(context: JobContext, message: words.Reported | words.Save | words.Enqueue) -> words.Heard:
    """Do what a handler in a process asks of its worker; return what the handler is told."""
    job_id = None
    try:
        match message:
            case words.Reported():
                await context.progress(message.fraction, message.message)
            case words.Save():
                await context.save_written(message.saved, None)
            case words.Enqueue():
                job = attrs.evolve(message.job, payload=Encoded(message.payload, size_of(message.payload)))
                job_id = str(await context.enqueue_made(job if message.is_traced else traced(job)))
    except Exception as error:  # noqa: BLE001  # told to the handler, as to one in a thread
        return _refused(error)
    return words.Heard(job_id=job_id)


def _refused(error: Exception) -> words.Heard:
    if isinstance(error, LeaseLost):
        return words.Heard(is_ours=False)
    return words.Heard(error=f"{type(error).__name__}: {text_of(error)}")


@contextmanager
def _telling(child: _Child, running: Running, handler: Handler) -> Iterator[None]:
    """While inside, a cooperative handler is told to stop; others are killed with their scope."""
    if not (handler.cooperative and handler.takes_context):
        yield
        return
    scope = trio.CancelScope()

    async def tell() -> None:
        with scope, suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await running.interrupted.wait()
            why = running.interrupt
            assert why is not None
            await child.say(words.written(words.Stop(kind=why.kind, by=why.by, why=why.why)))

    trio.lowlevel.spawn_system_task(tell)
    try:
        yield
    finally:
        scope.cancel()


def _ended(done: words.Done, handler: Handler) -> object:
    if done.error is not None:
        return Raised(
            error=done.error,
            undecodable=done.is_undecodable,
            waited=done.is_too_new,
            kinds=_kinds(frozenset(done.kinds), handler),
        )
    if done.wish is not None:
        kind = getattr(outcome, done.wish)
        return kind if done.wish_fields is None else kind(**done.wish_fields)
    return None if done.result is None and done.refused is None else Written(text=done.result, refused=done.refused)


def _kinds(names: frozenset[str], handler: Handler) -> frozenset[type[BaseException]]:
    """Return those classes of the handler's retry policy whose names the process has told."""
    if not names:
        return frozenset()
    asked = () if handler.retry is None else (*(handler.retry.retry_on or ()), *handler.retry.discard_on)
    return frozenset({BaseException, *(kind for kind in asked if f"{kind.__module__}:{kind.__qualname__}" in names)})


def _level() -> int:
    """Return the least level of a record that some log of this process may want."""
    loggers = [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
    levels = [logger.level for logger in loggers if isinstance(logger, logging.Logger) and logger.level != logging.NOTSET]
    return min(levels, default=logging.WARNING)


def _log(told: words.Logged) -> None:
    """Log here what a handler has logged in its process.

    This runs in the slot's task: from that task the record takes the names of the job.
    """
    logger = logging.getLogger(told.logger)
    if not logger.isEnabledFor(told.level):
        return
    record = logging.makeLogRecord(
        {
            **told.extra,
            "name": told.logger,
            "levelno": told.level,
            "levelname": logging.getLevelName(told.level),
            "msg": told.message,
            "args": (),
            "created": told.created,
            "msecs": int(told.created % 1 * 1000),
            "pathname": told.path,
            "filename": os.path.basename(told.path),  # noqa: PTH119  # as logging does
            "lineno": told.line,
            "funcName": told.function,
            "threadName": told.thread,
            "exc_text": told.exception,
        }
    )
    if told.is_astray:
        contextvars.Context().run(_handle_unnamed, logger, record)
    else:
        quietly(logger.handle, record)


def _handle_unnamed(logger: logging.Logger, record: logging.LogRecord) -> None:
    job_names.set(dict)
    quietly(logger.handle, record)
