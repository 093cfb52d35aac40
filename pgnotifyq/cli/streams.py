"""Standard output and error of a command: which characters they take, and what if they break.

A command prints as other programs do, and ends when its reader does. A worker is different: no job
shall fail for a line that the worker tells, or that its handlers print or log. All these lines go
through a `Writer`:

- Nothing waits for a reader, the event loop least of all. If a line can be written without
  blocking, it is written at once: to a file always; to a pipe or a socket, as far as these take it.
  A thread writes the rest, in order. It also writes all that goes to a terminal.
- So if a process is killed, the reader still finds what was told before.
- The bytes that wait are bounded. Beyond the bound lines are dropped. When the reader reads again,
  a line in their place says how many.
- If a stream is broken (a full disk, a reader that has gone), the code that tells events gets an
  error, and reports it. Handlers get no error: if the reader of a log restarts, no job fails. The
  next line is tried again.
"""

from __future__ import annotations

import io
import os
import socket
import stat
import sys
import threading
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable

# How many bytes may wait for a reader: 20,000 lines of 200 bytes, and little of a worker's memory.
WAITING_BYTES_MAX = 4 * 1024 * 1024
# How long lines that still wait may take when the process ends.
LAST_LINES_SECONDS = 1.0


def as_error(text: str) -> str:
    """Return the line that tells an error, in the format of this process's standard error."""
    return _error_lines[-1](text)


def tell_errors_as(render: Callable[[str], str]) -> None:
    """Have errors told in another format, as long as this process lives."""
    _error_lines.append(render)


_error_lines: list[Callable[[str], str]] = ["pgnotifyq: {}".format]


def prepare_streams() -> None:
    """Have standard output and error take every character. Lead closed ones to the null device.

    The system gives the number of a closed descriptor to the next file that is opened, for example
    to the database's socket. What is printed would go there.
    """
    for fileno in (0, 1, 2):
        try:
            os.fstat(fileno)
        except OSError:
            # `open` returns the lowest descriptor that is free, so it is this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # noqa: FBT003
    sys.stdin = sys.stdin or open(0, encoding="utf-8", closefd=False)  # noqa: SIM115  # as long as the process lives
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def silence(stream: TextIO) -> None:
    """Lead a broken stream to the null device.

    Otherwise Python complains at the end of the process of what is left in the buffer.
    """
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def leave_streams() -> None:
    """Write what is left in the buffers. Lead a stream that takes it no more to the null device.

    Otherwise Python's own try, at the end of the process, makes the exit code 120.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            silence(stream)


def open_unfailing(stream: TextIO, *, dropped: Callable[[int], str]) -> tuple[TextIO, Writer]:
    """Return a stream that neither waits nor fails, in the place of another; and its writer."""
    writer = Writer(stream, dropped=dropped)
    buffer = io.BufferedWriter(_Unfailing(writer, stream))
    return io.TextIOWrapper(buffer, encoding=stream.encoding, errors="backslashreplace", line_buffering=True), writer


class _Unfailing(io.RawIOBase):
    """The bottom of a stream. It leaves all bytes to a writer."""

    def __init__(self, writer: Writer, stream: TextIO) -> None:
        super().__init__()
        self._writer = writer
        self._stream = stream
        self.name = stream.name

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def write(self, data: Any) -> int:
        with suppress(OSError):
            self._writer.write_bytes(bytes(data))
        return len(data)


class Writer:
    """Writes lines to a stream and never waits for its reader."""

    def __init__(self, stream: TextIO, *, dropped: Callable[[int], str]) -> None:
        """Write to a stream's descriptor. `dropped` makes the line that counts the missing ones."""
        self._stream = stream  # kept, because its descriptor would be closed with it
        self._fileno = stream.fileno()
        self._encoding = stream.encoding
        self._write_now = _writing_now(self._fileno)
        self._dropped = dropped
        self._drops = 0
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0  # including those that the thread is writing now
        self._error: OSError | None = None  # an error that the thread met
        self._turn = threading.Condition()
        self._thread: threading.Thread | None = None
        os.register_at_fork(after_in_child=self._begin_anew)

    def write(self, line: str) -> None:
        """Write one line, or leave it to the thread, or drop it.

        Raises:
            OSError: the stream is broken. This line is lost, or one that was left to the thread.
        """
        self.write_bytes((line + "\n").encode(self._encoding, "backslashreplace"))

    def write_bytes(self, data: bytes) -> None:
        """Write some lines. See `write`."""
        with self._turn:
            if self._error is not None:
                error, self._error = self._error, None
                raise error
            if not self._waiting_bytes:
                data = data[self._write_now(data) :]
                if not data:
                    return
            elif self._waiting_bytes + len(data) > WAITING_BYTES_MAX:
                self._drops += max(data.count(b"\n"), 1)
                return
            self._put(data)

    def flush(self, seconds: float = LAST_LINES_SECONDS) -> None:
        """Wait for what was left to the thread, for so long at most."""
        with self._turn:
            self._turn.wait_for(lambda: not self._waiting_bytes, seconds)

    def _put(self, data: bytes) -> None:
        self._waiting.append(data)
        self._waiting_bytes += len(data)
        if self._thread is None:
            self._thread = threading.Thread(target=self._write_for_ever, name="pgnotifyq writer", daemon=True)
            self._thread.start()
        self._turn.notify_all()

    def _write_for_ever(self) -> None:
        while True:
            with self._turn:
                self._turn.wait_for(lambda: self._waiting)
                data = b"".join(self._waiting)
                self._waiting.clear()
            error: OSError | None = None
            try:
                _write_all(self._fileno, data)
            except OSError as met:
                error = met
            with self._turn:
                self._waiting_bytes -= len(data)
                self._error = error or self._error
                if self._drops and not error:
                    told, self._drops = self._dropped(self._drops), 0
                    told_bytes = (told + "\n").encode(self._encoding, "backslashreplace")
                    # It goes behind the lines that wait now. They came before the first that was
                    # dropped.
                    self._waiting.append(told_bytes)
                    self._waiting_bytes += len(told_bytes)
                self._turn.notify_all()

    def _begin_anew(self) -> None:
        """In a forked child, forget the parent's thread, its lock, and the lines that it writes."""
        self._turn = threading.Condition()
        self._thread = None
        self._waiting.clear()
        self._waiting_bytes = self._drops = 0


def _writing_now(fileno: int) -> Callable[[bytes], int]:
    """Return a function that writes to a stream without blocking, and returns how many bytes."""
    kind = os.fstat(fileno).st_mode
    if stat.S_ISREG(kind) or (stat.S_ISCHR(kind) and not os.isatty(fileno)):
        return lambda data: _write_all(fileno, data)
    if stat.S_ISFIFO(kind):
        # Other processes share the stream, so O_NONBLOCK is not set on it. It is set on a file of
        # our own that leads to the same pipe.
        with suppress(OSError):
            own = os.open(f"/proc/self/fd/{fileno}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            return lambda data: _unless_blocked(os.write, own, data)
    if stat.S_ISSOCK(kind) and hasattr(socket, "MSG_DONTWAIT"):
        with suppress(OSError):
            own_socket = socket.socket(fileno=os.dup(fileno))
            return lambda data: _unless_blocked(own_socket.send, data, socket.MSG_DONTWAIT)
    return lambda data: 0  # noqa: ARG005  # a terminal may be stopped; what is unknown may do anything


def _unless_blocked(write: Callable[..., int], *arguments: object) -> int:
    try:
        return write(*arguments)
    except BlockingIOError:
        return 0


def _write_all(fileno: int, data: bytes) -> int:
    rest = data
    while rest:
        rest = rest[os.write(fileno, rest) :]
    return len(data)
