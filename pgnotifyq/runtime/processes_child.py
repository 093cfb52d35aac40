"""A process that runs handlers, one job after the other: what happens in the child.

The worker's side is processes.py, which says the rules. This file is what the child does for them:

- It ends with its worker. On Linux the kernel kills it (PR_SET_PDEATHSIG). On every system a thread
  waits for the end of the worker's socket. Then the thread kills the process and what the process
  has started.
- Signals that are sent to a whole service are heard and ignored: the worker decides. A signal
  handler in Python ignores them. It is not SIG_IGN, for programs that a job starts would inherit
  that.
- The handler runs in the main thread: libraries that are not made for threads want that.
- What is logged goes to the worker, which has the program's set-up of logging. So do warnings, and
  exceptions of threads that nobody catches. If the program's own modules set up logging by
  `dictConfig`, the child logs by that set-up.
- Each job's handler finds context variables as new. A client gives the job's headers to what the
  handler enqueues. The next job meets all else that a job leaves behind: modules' globals, threads,
  the environment, the working folder.
- If a job's handler forks, the fork loses the socket: it does not speak for the job.
"""

from __future__ import annotations

import contextvars
import functools
import importlib
import inspect
import logging
import os
import queue
import signal
import socket
import sys
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any
from uuid import UUID

import attrs

from pgnotifyq.ledger.claimed import ClaimedJob
from pgnotifyq.ledger.errors import SCHEMA_DEFAULT
from pgnotifyq.model.checkpoint import read_state
from pgnotifyq.model.errors import DatabaseError, LeaseLost, PayloadUndecodable, TransactionRefused, quietly
from pgnotifyq.model.events import bounded_value
from pgnotifyq.model.handler import Handler, RunsIn
from pgnotifyq.model.headers import carried, to_carry
from pgnotifyq.model.job import JobId, WorkerId
from pgnotifyq.model.outcome import Interrupt, Raised, Returned, encode_result, ended_by, is_wish, why_not_stored
from pgnotifyq.model.payload import PayloadTooNew, decode, encoded
from pgnotifyq.model.registry import JobRegistry
from pgnotifyq.model.returned import has_not_run
from pgnotifyq.model.tracing import in_place
from pgnotifyq.runtime import processes_messages as words
from pgnotifyq.runtime.context import Already, JobContext
from pgnotifyq.runtime.fenced import WorkerFence
from pgnotifyq.runtime.logs import log_what_nobody_catches
from pgnotifyq.runtime.organisation import OrgContext, direct
from pgnotifyq.runtime.organisation_fence import OrgFence
from pgnotifyq.runtime.running import Running

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterator
    from typing import NoReturn, Unpack

    from pgnotifyq.model.around import Resources
    from pgnotifyq.model.new_job import JobSettings
    from pgnotifyq.model.outcome import Outcome
    from pgnotifyq.runtime.fenced import Fence
    from pgnotifyq.wire.kinds import CallersConnection

PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>
EXIT_FORK = 1
EXIT_SECONDS = 1.0  # for the program's own functions at exit
LOG_CHARS_MAX = 65_536  # of a record's text, and of its traceback
EXTRAS_MAX = 50  # fields that a record may bring along
KINDS_MAX = 1000  # classes of what a handler raised, and their bases, that are told
# If more than this share of the limit is still in use when a handler has ended, the process is
# spent.
MEMORY_KEPT_SHARE = 0.5
_OWN_MAIN = sys.modules["__main__"]
_OF_EVERY_RECORD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def main(fileno: int, worker_pid: int) -> None:
    """Be the child, until the worker says no more."""
    _die_with(worker_pid)
    child = _Child(socket.socket(fileno=fileno))
    os.set_inheritable(fileno, False)  # noqa: FBT003  # it has no name
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=child.leave)
    threading.Thread(target=child.hear_for_ever, name="pgnotifyq worker's words", daemon=True).start()
    child.work()


def _die_with(worker_pid: int) -> None:
    """Have the kernel kill this process with its worker. Linux does; else `_Child` sees its end."""
    if sys.platform == "linux":
        import ctypes

        with suppress(OSError, AttributeError):
            ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != worker_pid:
        os._exit(0)  # the worker had gone before the kernel was asked


class _Child:
    """The child's two threads: the main one runs handlers, the other one hears the worker."""

    def __init__(self, worker: socket.socket) -> None:
        self._worker = worker
        self._sending = threading.Lock()
        self._asking = threading.Lock()
        self._jobs: queue.SimpleQueue[words.Load | words.Run | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[words.Heard] = queue.SimpleQueue()
        self._is_busy = False
        self._is_left = False
        self._running: Running | None = None
        self._stop: Interrupt | None = None  # what was heard for the last job
        self._handlers: dict[str, Handler] = {}
        # Threads that earlier jobs have started.
        self._left_behind: frozenset[int | None] = frozenset()
        lines = words.Lines()
        self._lines = lines
        hello = self._next()
        assert isinstance(hello, words.Hello)
        self.hello = hello
        sys.argv = list(hello.argv)
        logging.getLogger().addHandler(_ToWorker(self))
        logging.getLogger().setLevel(hello.level)
        logging.captureWarnings(capture=True)
        log_what_nobody_catches()

    # the thread that hears

    def hear_for_ever(self) -> None:
        """Hear the worker until it has gone, and end then."""
        try:
            while (message := self._next()) is not None:
                match message:
                    case words.Load() | words.Run():
                        self._is_busy, self._stop = True, None
                        self._jobs.put(message)
                    case words.Heard():
                        self._answers.put(message)
                    case words.Look():
                        self.say(words.Stood(tasks=_where(self._running)))
                    case words.Stop():
                        # Kept first: the main thread may not have taken up the job yet.
                        self._stop = Interrupt(kind=message.kind, by=message.by, why=message.why)
                        if (running := self._running) is not None:
                            running.interrupt = self._stop
            if not self._is_busy:
                self._jobs.put(None)
                threading.Event().wait(EXIT_SECONDS)
        finally:
            os.killpg(0, signal.SIGKILL)  # this process is the first of its group: see processes.py

    def _next(self) -> words.Message | None:
        while (line := self._lines.take()) is None:
            try:
                data = self._worker.recv(65_536)
            except OSError:
                return None
            if not data:
                return None
            self._lines.add(data)
        return words.read(line)

    # the main thread

    def work(self) -> None:
        """Run what comes, until no more will come."""
        while (message := self._jobs.get()) is not None:
            answer = self._load(message) if isinstance(message, words.Load) else self._run(message)
            for stream in (sys.stdout, sys.stderr):
                quietly(stream.flush)
            if self._is_left:
                line = f"pgnotifyq: process {os.getpid()} is a fork of a job's process, and ends here: leave a fork with os._exit()\n"
                quietly(os.write, 2, line.encode())
                os._exit(EXIT_FORK)
            self._is_busy = False
            self.say(answer)

    def _load(self, wanted: words.Load) -> words.Loaded:
        try:
            words.loading.add(wanted.name)
            self._handlers[wanted.job_type] = _find(wanted, self.hello)
        except BaseException as error:  # noqa: BLE001  # the program's modules may raise anything
            return words.Loaded(error=Raised.from_exception(error).error)
        finally:
            words.loading.discard(wanted.name)
        return words.Loaded()

    def _run(self, message: words.Run) -> words.Done:
        self.say(words.Began())
        job = attrs.evolve(message.job, payload=decode(message.payload))
        handler = self._handlers[job.job_type]
        self._left_behind = frozenset(each.ident for each in threading.enumerate()) - {threading.get_ident()}
        self._running = running = Running(job=ClaimedJob.from_job(job), renewed_at=0.0, handler=handler)
        # It may have been heard before. What is heard from now on is told to `running`.
        running.interrupt = self._stop
        try:
            with _limited(self.hello.memory_bytes_max):
                done = self._call(handler, running)
        finally:
            self._running = None
        return attrs.evolve(done, is_spent=done.is_spent or _is_full(self.hello.memory_bytes_max))

    def _call(self, handler: Handler, running: Running) -> words.Done:
        job = running.job.whole
        try:
            payload = job if handler.takes_job else handler.read(job.payload)
            running.saved = read_state(job.saved, handler)
        except PayloadUndecodable as error:
            return words.Done(error=str(error), is_undecodable=True, is_too_new=isinstance(error, PayloadTooNew))
        arguments = (payload, _Context(running, _Reach(self))) if handler.takes_context else (payload,)
        try:
            context = contextvars.copy_context()
            if job.headers:
                context.run(carried.set, to_carry(job.headers))
            value = context.run(handler.call, *arguments)
            _check_has_run(handler, value)
        except BaseException as error:  # noqa: BLE001  # SystemExit and KeyboardInterrupt too are the handler's own
            return _told(error, handler)
        return _told_value(value, handler)

    # what both say

    def say(self, message: words.FromChild) -> None:
        """Tell the worker. If that fails, end: the worker has gone, or a job closed the socket."""
        line = words.written(message)
        with self._sending:
            if self._is_left:
                return
            try:
                self._worker.sendall(line)
            except OSError:
                os.killpg(0, signal.SIGKILL)

    def ask(self, message: words.Reported | words.Save | words.Enqueue) -> words.Heard:
        """Tell the worker of progress, a state or a child, and wait for what became of it."""
        with self._asking:
            self.say(message)
            return words.Heard(error="this is a fork of the job's process") if self._is_left else self._answers.get()

    def is_astray(self, thread: int | None) -> bool:
        """Tell whether a thread is an earlier job's: it is older than this job, or no job runs."""
        is_idle = self._running is None and thread != threading.main_thread().ident
        return is_idle or thread in self._left_behind

    def leave(self) -> None:
        """Be a fork of the child: it has nothing to say to the worker."""
        self._is_left = True
        self._sending, self._asking = threading.Lock(), threading.Lock()
        with suppress(OSError):
            self._worker.close()


def _where(running: Running | None) -> list[dict[str, Any]]:
    """Return where the handler stands, in the main thread."""
    from pgnotifyq.model.stack import StackTask, bounded_frames, plain
    from pgnotifyq.runtime.calls import of_thread

    main = threading.main_thread().ident
    if running is None or main is None:
        return []
    frames, _ = bounded_frames(of_thread(main))
    return plain([StackTask(name=f"process {os.getpid()}", depth=0, kind="process", frames=frames)])


def _check_has_run(handler: Handler, value: object) -> None:
    if inspect.isawaitable(value):
        getattr(value, "close", lambda: None)()
        raise TypeError(
            f"{handler.name} returned a {type(value).__name__}, and nothing awaits it in a process: write `def`, or run it elsewhere"
        )
    if (why := has_not_run(handler, value)) is not None:
        raise TypeError(why)


def _find(wanted: words.Load, hello: words.Hello) -> Handler:
    """Return a handler by its name, as the program's own module made it here."""
    module_name, _, qualname = wanted.name.partition(":")
    if module_name == "__main__":
        _make_main(hello)
    module = importlib.import_module(module_name)
    found: Any = functools.reduce(getattr, qualname.split("."), module)
    if isinstance(found, Handler):
        return found
    made: Handler = JobRegistry().handler(wanted.job_type)(found)
    return made


def _make_main(hello: words.Hello) -> None:
    """Run the program's main module once, under another name than `__main__`."""
    from multiprocessing import spawn

    if sys.modules["__main__"] is not _OWN_MAIN:
        return
    if hello.main_name is not None:
        spawn.prepare({"init_main_from_name": hello.main_name})
    elif hello.main_path is not None:
        spawn.prepare({"init_main_from_path": hello.main_path})


def _told_value(value: object, handler: Handler) -> words.Done:
    if type(value) is type and is_wish(value):
        return words.Done(wish=value.__name__)
    if is_wish(type(value)):
        return _told_wish(value)
    try:
        return words.Done(result=encode_result(value, handler.converter))
    except BaseException as error:  # noqa: BLE001  # a user's value may raise anything when it is looked into
        return words.Done(refused=why_not_stored(error))


def _told_wish(wish: object) -> words.Done:
    return words.Done(wish=type(wish).__name__, wish_fields=attrs.asdict(wish))  # type: ignore[arg-type]  # attrs classes


def _told(error: BaseException, handler: Handler) -> words.Done:
    ended = ended_by(error)
    if isinstance(ended, Returned):
        return _told_value(ended.value, handler)
    names = {f"{_module_of(base)}:{base.__qualname__}" for kind in ended.kinds for base in type.__dict__["__mro__"].__get__(kind)}
    # Little memory is left, and it is not known what holds the rest.
    is_spent = any(issubclass(kind, MemoryError) for kind in ended.kinds)
    return words.Done(error=ended.error, kinds=sorted(names)[:KINDS_MAX], is_spent=is_spent)


def _module_of(kind: type) -> str:
    return "__main__" if kind.__module__ == "__mp_main__" else str(kind.__module__)


# What a handler is given


@attrs.frozen(eq=False)
class _Reach:
    """What a handler in a process can reach of its worker."""

    child: _Child

    @property
    def token(self) -> NoReturn:
        """Refuse: there is no loop of trio's here."""
        raise RuntimeError("a handler in a process has no event loop of the worker's")

    @property
    def schema(self) -> str:
        """Where the queue lives."""
        return self.child.hello.schema or SCHEMA_DEFAULT

    @property
    def registry(self) -> JobRegistry:
        """A registry without handlers: the database knows what each handler wants of its jobs."""
        return JobRegistry()

    def resources_of(self, kind: RunsIn) -> Resources:  # noqa: ARG002  # there are none for any
        """Return nothing: what a lifespan makes lives in the worker.

        Raises:
            LookupError: always; it says what to do.
        """
        raise LookupError(
            "a handler in a process has no resources, for what a lifespan makes lives in the worker: make it in the handler's module"
        )

    def open_transaction(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse: the connections that could be lent are the worker's."""
        raise TransactionRefused(_REFUSED)

    def fence(self, running: Running, outcome: Outcome | None) -> Fence:
        """Return the fence of a transaction on a connection that the handler opens here."""
        hello = self.child.hello
        if hello.schema is None or hello.worker_id is None:
            raise TransactionRefused("run_job has no database to fence a transaction of a process: test the handler with drain")
        worker_id: WorkerId = UUID(hello.worker_id)  # type: ignore[assignment]  # a NewType
        return _Fence(running=running, schema=hello.schema, worker_id=worker_id, outcome=outcome, child=self.child)

    def fence_org(self, running: Running, outcome: Outcome | None) -> Fence:
        """Return what `fence` does, for a transaction that is confined to the job's tenant."""
        fence = self.fence(running, outcome)
        assert isinstance(fence, _Fence)
        return _OrgFence(running=running, schema=fence.schema, worker_id=fence.worker_id, outcome=outcome, child=self.child)

    @property
    def desk(self) -> _NoDesk:
        """A desk that refuses questions about the tenant: they need the worker's connections."""
        return _NoDesk(self.schema)

    async def report(self, *_: object) -> NoReturn:
        """Refuse: `_Context.progress` is not awaited."""
        raise NotImplementedError

    save = report

    def note_progress(self, running: Running, fraction: float | None, message: str | None) -> None:  # noqa: ARG002  # the one
        """Tell the worker how far the handler has come."""
        self.child.say(words.Noted(fraction=fraction, message=message))

    def keep_line(self, running: Running, at: float, level: str, text: str) -> None:  # noqa: ARG002  # the one
        """Tell the worker a line of the handler's log."""
        self.child.say(words.Line(at=at, level=level, text=text[:LOG_CHARS_MAX]))


_REFUSED = (
    "ctx.transaction() gives a connection that trio drives, and this handler runs in a process of its own: open one here and use "
    "`with ctx.connection(...)` for psycopg, `with ctx.session(...)` for SQLAlchemy, or `with ctx.django()`"
)


@attrs.frozen(eq=False, kw_only=True)
class _Fence(WorkerFence):
    """A worker's fence, in the child. It tells the worker of a completed job at once."""

    child: _Child

    @contextmanager
    def around(self) -> Iterator[None]:
        """Do as `WorkerFence.around`, and tell the worker of a completed job."""
        with WorkerFence.around(self):
            yield
        if self.running.is_settled:
            self.child.say(words.Settled())


@attrs.frozen(eq=False, kw_only=True)
class _OrgFence(OrgFence):
    """The same, confined to the job's tenant."""

    child: _Child

    @contextmanager
    def around(self) -> Iterator[None]:
        """Do as `OrgFence.around`, and tell the worker of a completed job."""
        with OrgFence.around(self):
            yield
        if self.running.is_settled:
            self.child.say(words.Settled())


@attrs.frozen
class _NoDesk:
    """Refuses what `ctx.org` would ask of the worker."""

    schema: str

    async def ask(self, *_: object) -> NoReturn:
        """Refuse."""
        raise TransactionRefused(
            "a handler in a process asks its tenant's things on a connection that it opens here: pass connection=, or say it in SQL"
        )

    config_of = ask
    credential_of = ask


class _Context(JobContext):
    """The job under way, for a handler in a process."""

    def __init__(self, running: Running, reach: _Reach) -> None:
        super().__init__(running, reach)
        self._process = reach.child

    @property
    def org(self) -> OrgContext:
        """The job's tenant: its id, and what there is on a connection that is opened here."""
        if self._org is None:
            self._org = self._org_by(_refuse_of_org, direct, is_in_process=True)
        return self._org

    def transaction(self, **_: Any) -> Any:
        """Refuse: the connection would be one that trio drives.

        Raises:
            TransactionRefused: always; it names what to use instead.
        """
        raise TransactionRefused(_REFUSED)

    def progress(self, fraction: float | None, message: str | None = None) -> Awaitable[None]:
        """Publish how far this execution has come, as `JobContext.progress` does in a thread."""
        if fraction is not None and not 0 <= fraction <= 1:
            raise ValueError(f"progress {fraction!r} is not between 0 and 1")
        heard = self._process.ask(
            words.Reported(
                fraction=None if fraction is None else float(fraction), message=None if message is None else str(message)
            )
        )
        self._check(heard)
        return Already()

    def _save_by(self, text: str | None, kept: Any) -> Awaitable[None]:
        self._check(self._process.ask(words.Save(saved=text)))
        self._running.saved = kept
        return Already()

    async def enqueue(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse: nothing awaits here."""
        raise TransactionRefused("a handler in a process awaits nothing: call ctx.enqueue_blocking(...)")

    def enqueue_blocking(
        self,
        job_type: str | Handler[Any, Any, Any],
        payload: object = None,
        *,
        connection: CallersConnection | None = None,
        **settings: Unpack[JobSettings],
    ) -> JobId:
        """Enqueue a child of this job, as `JobContext.enqueue_blocking` does in a thread."""
        if connection is not None:
            return super().enqueue_blocking(job_type, payload, connection=connection, **settings)
        job = self._child(job_type, payload, settings)
        heard = self._process.ask(
            words.Enqueue(
                job=attrs.evolve(job, payload=None), payload=encoded(job.payload).text, is_traced=in_place() is not None
            )
        )
        self._check(heard)
        assert heard.job_id is not None
        return JobId(UUID(heard.job_id))

    def _check(self, heard: words.Heard) -> None:
        if heard.error is not None:
            raise DatabaseError(heard.error)
        if not heard.is_ours:
            raise LeaseLost(f"execution {self.execution_id} no longer owns job {self.job.id}")


def _refuse_of_org(*_: Any, **__: Any) -> Any:
    raise TransactionRefused(_REFUSED.replace("ctx.transaction()", "ctx.org.transaction()"))


class _ToWorker(logging.Handler):
    """Hands the records of the child to the worker."""

    def __init__(self, child: _Child) -> None:
        super().__init__()
        self._child = child

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record. A record that cannot be sent is lost: a log must end no job."""
        quietly(self._send, record)

    def _send(self, record: logging.LogRecord) -> None:
        told = None
        if record.exc_info and record.exc_info[0] is not None:
            told = _FORMATTER.formatException(record.exc_info)[-LOG_CHARS_MAX:]
        extra = {name: bounded_value(value) for name, value in vars(record).items() if name not in _OF_EVERY_RECORD}
        self._child.say(
            words.Logged(
                logger=record.name,
                level=record.levelno,
                message=record.getMessage()[:LOG_CHARS_MAX],
                created=record.created,
                path=record.pathname,
                line=record.lineno,
                function=record.funcName,
                thread=record.threadName,
                exception=told,
                extra=dict(list(extra.items())[:EXTRAS_MAX]),
                is_astray=self._child.is_astray(record.thread),
            )
        )


_FORMATTER = logging.Formatter()


# Memory


@contextmanager
def _limited(bytes_max: int | None) -> Iterator[None]:
    """Bound the data of this process while inside: more of it raises MemoryError.

    The limit is RLIMIT_DATA. RLIMIT_AS would also count what is only reserved, and libraries
    reserve much. The limit is lifted when the handler has ended, so that the child can tell the
    worker.
    """
    if bytes_max is None:
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = bytes_max if hard == resource.RLIM_INFINITY else min(bytes_max, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _is_full(bytes_max: int | None) -> bool:
    """Tell whether a handler has left too much behind in the memory."""
    if bytes_max is None:
        return False
    try:
        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123  # after each job: 10 microseconds
            pages = int(file.read().split()[5])
    except (OSError, ValueError, IndexError):  # not Linux
        return False
    return pages * os.sysconf("SC_PAGE_SIZE") > bytes_max * MEMORY_KEPT_SHARE
