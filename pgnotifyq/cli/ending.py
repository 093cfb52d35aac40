"""The end of a worker process, which always comes: signals heard by a thread, and a deadline behind each.

A signal handler written in Python waits for the main thread to come back to the interpreter: a job that blocks the event
loop can keep it away for ever, and what such a handler may do without a deadlock is little. So the interpreter's own
handler, in C, writes each signal's number to a socket (`signal.set_wakeup_fd`), whatever any thread is doing, and a thread
started beforehand reads it there.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import attrs
import psycopg
import trio

from pgnotifyq.ledger.statements import compose
from pgnotifyq.runtime.worker import FAREWELL_SECONDS
from pgnotifyq.wire.addresses import told_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pgnotifyq.model.config import WorkerConfig
    from pgnotifyq.runtime.worker import WorkerHandle

EXIT_STUCK = 5  # a handler did not let go; the process was ended over it
SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Beyond the deadline and the grace: the settler's last statement and the farewell.
PATIENCE_SECONDS = FAREWELL_SECONDS + 1.0
# For the last words of a process that is stuck: to standard error, which may be full, and to a database, which may be frozen.
LAST_WORDS_SECONDS = 5.0


@contextmanager
def heeding_signals(handle: WorkerHandle, config: WorkerConfig, dsn: str) -> Iterator[None]:
    """While inside, the first SIGTERM or SIGINT drains the worker, the second interrupts it; either way the end is certain.

    Call it in the main thread, within trio. The thread outlives the block: whatever keeps the process then, a thread of a
    handler's own that is no daemon, is under the deadline too.
    """
    heard, told = socket.socketpair()
    told.settimeout(0.0)
    ear = _Ear(heard, told, trio.lowlevel.current_trio_token(), handle, config, dsn)
    threading.Thread(target=ear.listen, name="pgnotifyq signals", daemon=True).start()
    # Handlers of Python's own that do nothing: without one the system's default would end the process on the spot.
    before = {number: signal.signal(number, lambda _number, _frame: None) for number in SIGNALS}
    trios = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(trios)
        for number, handler in before.items():
            signal.signal(number, handler)


@attrs.define(eq=False)
class _Ear:
    """What the thread knows."""

    heard: socket.socket
    told: socket.socket  # kept, or it would close
    token: trio.lowlevel.TrioToken
    handle: WorkerHandle
    config: WorkerConfig
    dsn: str
    count: int = 0
    deadline: float | None = None

    def listen(self) -> None:
        """Heed signals until the process ends, by itself or by the deadline."""
        while True:
            self.heard.settimeout(None if self.deadline is None else max(self.deadline - time.monotonic(), 0.001))
            try:
                numbers = self.heard.recv(64)
            except TimeoutError:
                self.end_process()
            for number in numbers:
                self.heed(number)

    def heed(self, number: int) -> None:
        """Tell the worker, or only wake trio, in whose place the socket is: handlers of other signals have work for it."""
        with suppress(trio.RunFinishedError):
            self.token.run_sync_soon(self.handle.drain if number in SIGNALS else _nothing)
        if number in SIGNALS:
            self.count += 1
            deadline = time.monotonic() + self.seconds
            self.deadline = deadline if self.deadline is None else min(self.deadline, deadline)

    @property
    def seconds(self) -> float:
        """How long the worker may take from the last signal."""
        return (self.config.shutdown_seconds if self.count == 1 else 0.0) + self.config.grace_seconds + PATIENCE_SECONDS

    def end_process(self) -> None:
        """Say why, release what the process holds, uncharged, and leave; leave also when the first two cannot be done."""
        last_words = threading.Thread(target=self.say_last_words, daemon=True)
        last_words.start()
        last_words.join(LAST_WORDS_SECONDS)
        os._exit(EXIT_STUCK)

    def say_last_words(self) -> None:
        """One line for whoever reads; the jobs for whoever comes next."""
        try:
            with psycopg.connect(self.dsn, connect_timeout=2) as connection:
                # Not when connecting: poolers refuse that.
                connection.execute("set local statement_timeout = 2000")
                connection.execute(compose("select {schema}.release_all(%s)", self.config.schema), (self.handle.worker_id,))
            what = "its jobs are released"
        except psycopg.Error as error:
            what = f"its jobs could not be released ({told_of(error, self.dsn)}), their leases will run out"
        # Last: where nobody reads any more this raises, or waits.
        line = f"pgnotifyq: a handler did not let go within {self.seconds:g} s of the signal; ending the process; {what}"
        print(line, file=sys.stderr, flush=True)


def _nothing() -> None:
    """Only wake the loop."""
