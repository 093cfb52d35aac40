"""Standard output that takes no more: a worker goes on whatever became of it, and a command says so in a line."""

from __future__ import annotations

import os
import pty
import socket
import subprocess
import tempfile
import threading
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import psycopg
import pytest

from pgnotifyq.cli import streams
from pgnotifyq.cli.streams import Writer
from tests.cli.support import PATIENCE_SECONDS, PGNOTIFYQ, Floor, Running, open_floor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

APP = """
import logging, sys
import pgnotifyq
registry = pgnotifyq.JobRegistry()

@registry.handler("fail", max_attempts=1)
async def fail(payload: dict) -> None:
    logging.getLogger("pgnotifyq.wire").warning("a warning of ours: ✗")
    raise RuntimeError("naïve ✗ \\udcff")

@registry.handler("print", max_attempts=1)
async def print_(payload: dict) -> None:
    for end in ("", "\\n", "." * 100_000):
        print("✗ \\udcff", end=end)
        print("✗ \\udcff", end=end, file=sys.stderr)
        logging.getLogger("users").warning("✗ \\udcff")

@registry.handler("quick")
async def quick(payload: dict) -> None:
    pass
"""
OLD = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LANG": "C", "LC_ALL": "C"}


@pytest.fixture
def floor(dsn: str, tmp_path: Path) -> Iterator[Floor]:
    (tmp_path / "app.py").write_text(APP)
    with open_floor(dsn, tmp_path) as floor:
        yield floor


@pytest.fixture
def closing() -> Iterator[ExitStack]:
    with ExitStack() as closing:
        yield closing


def full_pipe(closing: ExitStack) -> IO[bytes]:
    """Return the end of a pipe that is full and that nobody reads."""
    read, write = os.pipe()
    closing.callback(os.close, read)
    os.set_blocking(write, False)
    with suppress(BlockingIOError):
        while True:
            os.write(write, b"." * 4096)
    with suppress(BlockingIOError):
        while True:
            os.write(write, b".")
    os.set_blocking(write, True)
    return closing.enter_context(os.fdopen(write, "wb", buffering=0))


def broken_pipe(closing: ExitStack) -> IO[bytes]:
    """Return the end of a pipe whose reader has gone."""
    read, write = os.pipe()
    os.close(read)
    return closing.enter_context(os.fdopen(write, "wb", buffering=0))


def broken_terminal(closing: ExitStack) -> IO[bytes]:
    """Return a terminal that has been closed."""
    ours, theirs = pty.openpty()
    os.close(ours)
    return closing.enter_context(os.fdopen(theirs, "wb", buffering=0))


def broken_socket(closing: ExitStack) -> IO[bytes]:
    """Return a socket whose reader has gone, as journald's when it is started anew."""
    ours, theirs = socket.socketpair()
    ours.close()
    return closing.enter_context(os.fdopen(theirs.detach(), "wb", buffering=0))


def full_disk(closing: ExitStack) -> IO[bytes]:
    """Return a file that takes nothing."""
    return closing.enter_context(Path("/dev/full").open("wb", buffering=0))


CLOSED = ("bash", "-c", 'exec "$@" >&-', "-")
CLOSED_BOTH = ("bash", "-c", 'exec "$@" >&- 2>&-', "-")
CLOSED_ALL = ("bash", "-c", 'exec "$@" <&- >&- 2>&-', "-")
FORMS: dict[str, Callable[[ExitStack], dict[str, Any]]] = {
    "ascii": lambda _: {"environment": {"PYTHONIOENCODING": "ascii:strict"}},
    "latin": lambda _: {"environment": {"PYTHONIOENCODING": "latin-1"}},
    "old": lambda _: {"environment": OLD},
    "closed": lambda _: {"prefix": CLOSED},
    "closed_both": lambda _: {"prefix": CLOSED_BOTH},
    "closed_all": lambda _: {"prefix": CLOSED_ALL},
    "full_disk": lambda closing: {"stdout": full_disk(closing)},
    "full_disks": lambda closing: {"stdout": full_disk(closing), "stderr": full_disk(closing)},
    "gone": lambda closing: {"stdout": broken_pipe(closing), "stderr": broken_pipe(closing)},
    "socket_gone": lambda closing: {"stdout": broken_socket(closing), "stderr": broken_socket(closing)},
    "terminal_gone": lambda closing: {"stdout": broken_terminal(closing), "stderr": broken_terminal(closing)},
    "unread": lambda closing: {"stdout": full_pipe(closing)},
    "unread_both": lambda closing: {"stdout": full_pipe(closing), "stderr": full_pipe(closing)},
}


def test_worker_whose_output_is_broken(floor: Floor, closing: ExitStack) -> None:
    """It works on, through failures and warnings and what handlers print, and drains: its exit code says so.

    Where the stream is broken, standard error is told once.
    """
    workers: dict[str, Running] = {}
    for form, make in FORMS.items():
        options = make(closing)
        if form in {"ascii", "latin", "old"}:
            options["stdout"] = closing.enter_context((floor.folder / form).open("wb"))
        workers[form] = floor.start("app", "--queue", form, "--concurrency", "1", is_heard=False, **options)
    for form in FORMS:
        floor.enqueue("fail", form)
        floor.enqueue("fail", form)
    quick = [floor.enqueue(job_type, form) for form in FORMS for job_type in ("print", "quick")]
    floor.until("count(*) = %s from pgnotifyq.jobs where status = 'completed' and id = any(%s)", len(quick), quick)
    assert floor.session.execute("select count(*) from pgnotifyq.dead_letter_jobs where reason = 'exhausted'").fetchone() == (
        2 * len(FORMS),
    )
    for worker in workers.values():
        worker.process.terminate()
    assert {form: worker.wait() for form, worker in workers.items()} == dict.fromkeys(FORMS, 0)
    for form, worker in workers.items():
        assert "Traceback" not in worker.said, form
    for form in ("ascii", "old"):
        assert r"na\xefve \u2717 \udcff" in (floor.folder / form).read_text().replace("\\\\", "\\")
    assert workers["full_disk"].said.count("standard output) did not take") == 2  # the first event and the tenth
    assert "No space left on device" in workers["full_disk"].said


def test_worker_that_is_read_again(floor: Floor, closing: ExitStack) -> None:
    """What nobody read waits, in order; the loop did not."""
    read, write = os.pipe()
    pipe = closing.enter_context(os.fdopen(write, "wb", buffering=0))
    reader = closing.enter_context(os.fdopen(read, "rb"))
    worker = floor.start("app", "--concurrency", "2", "--log-format", "json", stdout=pipe)
    pipe.close()
    floor.session.execute("select pgnotifyq.enqueue('quick') from generate_series(1, 1000)")  # twice a pipe of 64 KiB, and more
    floor.until("count(*) = 1000 from pgnotifyq.jobs where status = 'completed'", of=worker)
    worker.process.terminate()
    told = reader.read()
    assert worker.wait() == 0
    assert told.count(b'"event": "job.completed"') == 1000
    assert told.count(b"\n") == told.count(b'"event": ') == len(told.splitlines())
    assert b"worker.stopped" in told.splitlines()[-1]


@pytest.mark.parametrize("kind", ["pipe", "socket", "terminal"])
def test_lines_that_nobody_reads(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They wait in bounds, and are written in order once somebody reads; then it is said how many are missing, in their place."""
    monkeypatch.setattr(streams, "WAITING_BYTES_MAX", 1_000_000)
    if kind == "pipe":
        read, write = os.pipe()
    elif kind == "socket":
        one, other = socket.socketpair()
        read, write = one.detach(), other.detach()
    else:
        read, write = pty.openpty()
    writer = Writer(os.fdopen(write, "w"), dropped=lambda count: f"missing {count}")
    for number in range(20_000):
        writer.write(f"{number:<99}")
    found: list[bytes] = []

    def read_on() -> None:
        with os.fdopen(read, "rb") as reader:
            for line in reader:
                found.append(line.strip())
                if line.startswith(b"end"):
                    return

    thread = threading.Thread(target=read_on)
    thread.start()
    writer.flush(PATIENCE_SECONDS)
    writer.write("end")
    thread.join(PATIENCE_SECONDS)
    *lines, missing, end = found
    assert end == b"end"
    assert lines == [b"%d" % number for number in range(len(lines))]
    assert missing == b"missing %d" % (20_000 - len(lines))
    assert 10_000 <= len(lines) < 20_000


def test_lines_of_any_length_and_text() -> None:
    """Each comes out whole, also one that is longer than a pipe takes at once."""
    read, write = os.pipe()
    writer = Writer(os.fdopen(write, "w", encoding="ascii"), dropped=str)
    texts = ["", "✗ \udcff", "a" * 300_000, "b"]
    with os.fdopen(read, "r") as reader:
        for text in texts:
            writer.write(text)
        assert [reader.readline() for _ in texts] == ["\n", "\\u2717 \\udcff\n", "a" * 300_000 + "\n", "b\n"]


def test_stream_that_breaks() -> None:
    """The line is lost, and the writer says so; the next one is tried."""
    read, write = os.pipe()
    writer = Writer(os.fdopen(write, "w"), dropped=str)
    os.close(read)
    for _ in range(2):
        with pytest.raises(BrokenPipeError):
            writer.write("lost")


def test_terminal_that_goes_while_lines_wait() -> None:
    """What the thread meets is raised at the next line."""
    ours, theirs = pty.openpty()
    writer = Writer(os.fdopen(theirs, "w"), dropped=str)
    os.close(ours)
    writer.write("lost")
    writer.flush(PATIENCE_SECONDS)
    with pytest.raises(OSError, match="Input/output"):
        writer.write("lost as well")


def test_writer_in_a_forked_child() -> None:
    """It has no thread and waits for none: a child of a handler's may log."""
    with tempfile.TemporaryFile("w+") as file:
        writer = Writer(file, dropped=str)
        writer.write("parent")
        with writer._turn:  # as another thread might have, while this one forks
            pid = os.fork()
            if pid == 0:
                writer.write("child")
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        file.seek(0)
        assert file.read() == "parent\nchild\n"


# One form of each, all at once: there is one place that prepares streams, and one that tells errors.
COMMANDS: list[tuple[str, int, list[str]]] = [
    ("ascii", 0, ["jobs"]),
    ("ascii", 0, ["show", "ID"]),
    ("old", 0, ["jobs"]),
    ("closed", 0, ["show", "ID"]),
    ("closed", 0, ["jobs"]),
    ("closed_all", 0, ["enqueue", "x"]),
    ("closed_all", 2, ["frob"]),
    ("full_disk", 1, ["jobs", "--json"]),
    ("full_disk", 1, ["--help"]),
    ("full_disks", 1, ["stats"]),
    ("gone", 1, ["workers"]),
]


def test_commands_whose_output_is_broken(dsn: str, closing: ExitStack) -> None:
    """No traceback. A text that cannot be encoded is escaped; output that went nowhere as it was told to is no error, a full disk is."""
    with psycopg.connect(dsn, autocommit=True) as session:
        row = session.execute("select pgnotifyq.enqueue('x', '{\"a\": \"grüße ✗\"}')").fetchone()
        session.execute("update pgnotifyq.jobs set error_message = 'naïve ✗'")
    assert row is not None
    running = []
    for form, _, command in COMMANDS:
        options = FORMS[form](closing)
        words = [str(row[0]) if word == "ID" else word for word in command]
        popen = subprocess.Popen(
            [*options.get("prefix", ()), *PGNOTIFYQ, *words],
            env={**os.environ, "PGNOTIFYQ_DSN": dsn, **options.get("environment", {})},
            stdout=options.get("stdout", subprocess.PIPE),
            stderr=options.get("stderr", subprocess.PIPE),
        )
        running.append(closing.enter_context(popen))
    for (form, code, command), process in zip(COMMANDS, running, strict=True):
        out, err = process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == code, (form, command, err)
        assert len((err or b"").splitlines()) == (form == "full_disk"), (form, command, err)
        if form == "full_disk":
            assert b"No space left on device" in err
        if form in {"ascii", "old"}:
            assert rb"na\xefve \u2717" in out
