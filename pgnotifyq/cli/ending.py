"""How a worker process always ends: a thread hears signals, and each signal sets a deadline.

A signal handler written in Python waits until the main thread comes back to the interpreter. A job
that blocks the event loop can keep the main thread away for ever, and such a handler can do little
without a deadlock. So the interpreter's own handler, in C, writes each signal's number to a socket
(`signal.set_wakeup_fd`), whatever any thread is doing. A thread that was started beforehand reads
the number there.

Rules:

- SIGTERM, SIGINT and SIGHUP (its terminal is closed) drain the worker; a second one interrupts its
  jobs. SIGHUP is left alone if the process was started with it ignored (`nohup`), or if the
  application has a handler of its own.
- A signal that comes within `ECHO_SECONDS` of another is its echo, and does not count. `timeout`
  signals a process twice within a millisecond. So does any program that passes a signal on if the
  whole process group was sent it. A person who signals again takes longer.
- A signal counts only in the process that it was sent to. If a job's handler forks, the child has
  this process's signal handlers and its socket, so this process would hear the child's signals. So
  a forked child gets back the signal handlers that there were before; until then its signals wait.
  An extension may fork without Python's knowledge, so the kernel is asked which process wrote to
  the socket.
- A job's handler may listen to signals as well, with a signal handler of Python's: both hear them.
  A job's handler may also leave a signal ignored or set to its default, or leave no socket. Then
  this process would hear nothing any more, so this is put right now and then.
- A parent (processes.py) tells its children how far the end has come. A child may hear the same
  signals by itself. The larger of the two counts.
- SIGQUIT keeps its default: the process ends at once, with a core. Other workers find its jobs,
  because its session has ended.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import struct
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

import attrs
import psycopg
import trio

from pgnotifyq.cli.streams import as_error
from pgnotifyq.ledger import lease, sessions
from pgnotifyq.model.errors import quietly
from pgnotifyq.runtime.lifespans import CLOSE_SECONDS
from pgnotifyq.runtime.worker import FAREWELL_SECONDS
from pgnotifyq.wire.addresses import told_of
from pgnotifyq.wire.asking import ask_blocking

if TYPE_CHECKING:
    from types import FrameType

    from pgnotifyq.model.config import WorkerConfig
    from pgnotifyq.runtime.worker import WorkerHandle

EXIT_STUCK = 5  # a handler did not let go; the process was ended over it
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
ECHO_SECONDS = 0.2
# Beyond the deadline and the grace: the settler's last statement, the lifespans and the farewell.
PATIENCE_SECONDS = 1.0 + CLOSE_SECONDS + FAREWELL_SECONDS
# For a start that was told to end. Work in a thread, as the start of a server, cannot be cut short.
START_PATIENCE_SECONDS = 5.0
# For the last words of a process that is stuck. They go to standard error, which may be full, and
# to a database, which may be frozen.
LAST_STATEMENT_SECONDS = 2.0
LAST_WORDS_SECONDS = 5.0
# What a parent says is written to the socket as a number above this, which no signal has.
TOLD = 200
# How often to see whether signals still reach us.
LOOK_SECONDS = 5.0
# Linux tells who wrote to a socket: pid, user, group.
SCM_CREDENTIALS = getattr(socket, "SCM_CREDENTIALS", -1)
CREDENTIALS = struct.Struct("3i")


def heed_signals() -> Ear:
    """Hear signals from now on, for as long as the process lives.

    Call it in the main thread, before trio runs. The thread outlives the worker. So the deadline
    also holds if a handler's own thread that is no daemon keeps the process alive after that.
    """
    ear = Ear()
    ear.open()
    return ear


@attrs.define(eq=False)
class Ear:
    """What the thread knows."""

    heard: socket.socket = attrs.field(init=False)
    told: socket.socket = attrs.field(init=False)
    pid: int = attrs.field(factory=os.getpid)
    # The signals that are heeded, each with the handler that it had before. Forked children get
    # those handlers back.
    before: dict[int, Any] = attrs.field(init=False, factory=dict)
    # Until the worker is ready, a signal ends its start, and is remembered.
    starting: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    ended_by: int | None = None
    token: trio.lowlevel.TrioToken | None = None
    handle: WorkerHandle | None = None
    config: WorkerConfig | None = None
    dsn: str = ""
    count: int = 0  # how far the end has come: 1 drains, 2 interrupts
    _signals: int = 0
    last_at: float = -math.inf
    deadline: float | None = None
    _masks: threading.local = attrs.field(factory=threading.local)

    def open(self) -> None:
        """Take the signals."""
        self.heard, self.told = socket.socketpair()
        self.told.settimeout(0.0)
        if hasattr(socket, "SO_PASSCRED"):
            self.heard.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.before = {number: signal.getsignal(number) for number in SIGNALS}
        if self.before[signal.SIGHUP] is not signal.SIG_DFL:
            del self.before[signal.SIGHUP]
        os.register_at_fork(before=self.hold_signals, after_in_parent=self.let_signals, after_in_child=self.leave_to_child)
        threading.Thread(target=self.listen, name="pgnotifyq signals", daemon=True).start()
        for number in self.before:
            signal.signal(number, self.hear)
        # If a reader has gone, only the write shall fail, even if the application has set SIGPIPE.
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)

    def attend(self) -> None:
        """Put our socket in the place of trio's. From now on this class wakes trio."""
        self.token = trio.lowlevel.current_trio_token()
        signal.set_wakeup_fd(self.told.fileno(), warn_on_full_buffer=False)
        if self.ended_by is not None:
            self.starting.cancel()

    def serve(self, handle: WorkerHandle, config: WorkerConfig, dsn: str) -> None:
        """Tell a worker of signals from now on, and of one that came just before it was ready."""
        self.handle, self.config, self.dsn = handle, config, dsn
        if self.ended_by is not None:
            handle.drain()

    async def stay_heard(self) -> None:
        """Put right what handlers leave behind, until cancelled.

        Some libraries set signals to their defaults, or take the socket away.
        """
        while True:
            await trio.sleep(LOOK_SECONDS)
            self._take_socket()
            for number in self.before:
                if not callable(signal.getsignal(number)):
                    signal.signal(number, self.hear)

    def rest(self) -> None:
        """Heed no more signals at the end of a worker that was told to end.

        Python would set the signals to their defaults as the process ends. The deadline of signals
        that came before stays. A worker that ended by itself has no deadline, and goes on heeding
        signals.
        """
        if self.count:
            for number in self.before:
                signal.signal(number, signal.SIG_IGN)

    def hear(self, number: int, _frame: FrameType | None) -> None:
        """Be the handler that Python calls when it gets to a signal.

        It does nothing, unless the thread cannot have heard the signal.
        """
        if self.token is None or not self._take_socket():
            with suppress(OSError):
                self.told.send(bytes([number]))

    def _take_socket(self) -> bool:
        """Have signals written to our socket, unless other code now uses a socket of its own.

        Returns: whether signals were written to our socket before.
        """
        ours = self.told.fileno()
        found = signal.set_wakeup_fd(ours, warn_on_full_buffer=False)
        if found not in (ours, -1):
            with suppress(ValueError, OSError):  # it was closed and left there
                signal.set_wakeup_fd(found)
        return found == ours

    def listen(self) -> None:
        """Heed signals until the process ends, by itself or by the deadline."""
        while True:
            self.heard.settimeout(None if self.deadline is None else max(self.deadline - time.monotonic(), 0.001))
            try:
                numbers, about, *_ = self.heard.recvmsg(64, socket.CMSG_SPACE(CREDENTIALS.size))
            except TimeoutError:
                self.end_process()
            if all(CREDENTIALS.unpack_from(data)[0] == self.pid for _, kind, data in about if kind == SCM_CREDENTIALS):
                for number in numbers:
                    self.heed(number)

    def heed(self, number: int) -> None:
        """Tell the worker of a signal, or only wake trio.

        Trio is woken in any case, because handlers of other signals may have work for it. Trio's
        own socket would do that, but ours stands in its place.
        """
        act = _nothing
        now = time.monotonic()
        count = number - TOLD if number > TOLD else 0
        if number in self.before and now >= self.last_at + ECHO_SECONDS:
            self.last_at = now
            self._signals += 1
            count = self._signals
        if count > self.count:
            self.count = count
            deadline = now + self.seconds
            self.deadline = deadline if self.deadline is None else min(self.deadline, deadline)
            if self.handle is None:
                self.ended_by = self.ended_by or (number if number < TOLD else signal.SIGTERM)
            act = self.act
        if self.token is not None:
            with suppress(trio.RunFinishedError):
                self.token.run_sync_soon(act)

    def be_told(self, level: int) -> None:
        """Heed what the parent says: 1 drains, 2 interrupts. A level that was heard is no news."""
        with suppress(OSError):
            self.told.send(bytes([TOLD + level]))

    def act(self) -> None:
        """Do what a signal asks for."""
        if self.handle is None:
            self.starting.cancel(reason="pgnotifyq: told to end")
        elif self.count == 1:
            self.handle.drain()
        else:
            self.handle.stop()

    @property
    def seconds(self) -> float:
        """How long the worker may take from the last signal."""
        if self.config is None:
            return START_PATIENCE_SECONDS
        return (self.config.shutdown_seconds if self.count == 1 else 0.0) + self.config.grace_seconds + PATIENCE_SECONDS

    def end_process(self) -> NoReturn:
        """Say why, release the jobs that the process holds, uncharged, and leave.

        If the first two cannot be done, leave all the same.
        """
        if self.handle is None and self.ended_by is not None:
            os._exit(128 + self.ended_by)
        last_words = threading.Thread(target=quietly, args=(self.say_last_words,), daemon=True)
        last_words.start()
        last_words.join(LAST_WORDS_SECONDS)
        os._exit(EXIT_STUCK)

    def say_last_words(self) -> None:
        """Write one line for the reader, and release the jobs for other workers."""
        assert self.handle is not None
        assert self.config is not None
        try:
            with psycopg.connect(self.dsn, connect_timeout=2) as connection:
                # The bound is not set as the connection is opened, because poolers refuse that.
                ask_blocking(connection, sessions.bound(LAST_STATEMENT_SECONDS))
                ask_blocking(connection, lease.release_all(self.config.schema, self.handle.worker_id))
            what = "its jobs are released"
        except psycopg.Error as error:
            what = f"its jobs could not be released ({told_of(error, self.dsn)}), their leases will run out"
        # Last: if nobody reads any more, this raises, or waits.
        line = f"a handler did not let go within {self.seconds:g} s of the signal; ending the process; {what}"
        print(as_error(line), file=sys.stderr, flush=True)

    def hold_signals(self) -> None:
        """Have signals wait, before a fork.

        Otherwise the child would get the next ones while it still has our handlers.
        """
        self._masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, self.before)

    def let_signals(self) -> None:
        """Let signals through again, after the fork."""
        signal.pthread_sigmask(signal.SIG_SETMASK, self._masks.before)

    def leave_to_child(self) -> None:
        """Give a forked child the handlers that there were before, and no socket.

        Handlers that were set meanwhile stay.
        """
        if self.told.fileno() != -1:  # else it is the child of a forked child
            signal.set_wakeup_fd(-1)
            for number, handler in self.before.items():
                if signal.getsignal(number) == self.hear:
                    signal.signal(number, handler)
            self.told.close()
            self.heard.close()
        self.let_signals()


def die_by(number: int) -> int:
    """End by a signal's default action, as a process does that has set no handler.

    Returns: a shell's code for that signal, if the process still lives. A signal's default does not
    end the first process of a container.
    """
    if number != signal.SIGINT:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    return 128 + number


def _nothing() -> None:
    """Do nothing: the call itself wakes the loop."""
