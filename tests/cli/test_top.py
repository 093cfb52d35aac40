"""`top` in a real terminal of 80 x 24: what it shows, what its keys do to the database, and how it leaves the terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import psycopg
import pyte
import pytest

from pgnotifyq.cli.terminal import keys_in
from tests.cli.support import PATIENCE_SECONDS, PGNOTIFYQ

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Session = psycopg.Connection[Any]

WORKER = "00000000-0000-0000-0000-0000000000aa"
SETTING = f"""
    select pgnotifyq.register_worker('{WORKER}', 'here', 7, '{{images,mail}}', 4, '1.2.3', false, 3600);
    select pgnotifyq.enqueue('resize', queue_name => 'images');
    update pgnotifyq.jobs set status = 'running', attempts = 1, started_at = now() - interval '5 min', locked_by = '{WORKER}',
        current_execution_id = gen_random_uuid(), lease_expires_at = now() + interval '1 hour', progress = 0.4,
        progress_message = 'two of five';
    select pgnotifyq.enqueue('send', queue_name => 'mail', scheduled_at => now() - interval '3 min');
    select pgnotifyq.enqueue('send', queue_name => 'mail', scheduled_at => now() + interval '3 min');
    insert into pgnotifyq.dead_letter_jobs (id, org_id, queue_name, job_type, payload, priority, scheduled_at, attempts,
        max_attempts, created_at, reason, error_message, history, died_at)
    values ('01900000-0000-7000-8000-0000deadbeef', '00000000-0000-0000-0000-000000000000', 'mail', 'bill', '{{}}', 0, now(), 3, 3, now(),
        'exhausted', e'no \\x1b[31mcolour', '[]', now() - interval '3 days')
"""


class Terminal:
    """A terminal, and `top` in it."""

    def __init__(self, dsn: str, columns: int, lines: int, *options: str) -> None:
        self.fd, self.theirs = pty.openpty()
        self.screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self.screen)
        self.raw = b""
        self._size(columns, lines)
        self.before = termios.tcgetattr(self.theirs)
        self.process = subprocess.Popen(
            [*PGNOTIFYQ, "top", "--every", "0.2", *options],
            stdin=self.theirs,
            stdout=self.theirs,
            stderr=subprocess.PIPE,
            env={**os.environ, "PGNOTIFYQ_DSN": dsn, "TERM": "xterm-256color", "COLUMNS": "", "LINES": ""},
            preexec_fn=_lead,  # noqa: PLW1509  # Ctrl-C is for those who lead a session at this terminal
        )

    def _size(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def resize(self, columns: int, lines: int) -> None:
        """Give it another size, as a window manager does."""
        while self.read(0.05):
            pass
        self.screen.reset()
        self.screen.resize(lines, columns)
        self._size(columns, lines)
        self.process.send_signal(signal.SIGWINCH)

    def read(self, seconds: float) -> bool:
        """Take what was written."""
        if not select.select([self.fd], [], [], seconds)[0]:
            return False
        with suppress(OSError):
            data = os.read(self.fd, 65_536)
            self.raw += data
            # A mode of private use, by which terminals show a frame at once; pyte does not know it.
            self._stream.feed(data)
            return True
        return False

    @property
    def text(self) -> str:
        return "\n".join(self.screen.display)

    def until(self, *words: str, gone: str | None = None) -> str:
        """Wait until the screen shows words, and not another."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not all(each in self.text for each in words) or (gone is not None and gone in self.text):
            assert time.monotonic() < deadline, f"{words} did not come:\n{self.text}"
            if not self.read(0.1) and self.process.poll() is not None:
                stderr = self.process.stderr
                raise AssertionError(f"it ended: {stderr.read().decode() if stderr else ''}\n{self.text}")
        return self.text

    def press(self, keys: str) -> None:
        os.write(self.fd, keys.encode())

    def end(self) -> int:
        """Wait for its end, taking what it writes; return its exit code."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self.process.poll() is None:
            self.read(0.05)
            assert time.monotonic() < deadline, self.text
        while self.read(0.05):
            pass
        return self.process.returncode

    def is_as_before(self) -> bool:
        """Tell whether the terminal is as it was: its modes, its cursor, and its usual screen."""
        is_back = self.raw.rindex(b"\x1b[?1049l") > self.raw.rindex(b"\x1b[?1049h")
        is_seen = self.raw.rindex(b"\x1b[?25h") > self.raw.rindex(b"\x1b[?25l")
        return is_back and is_seen and termios.tcgetattr(self.theirs) == self.before


def _lead() -> None:
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@contextmanager
def opened(dsn: str, columns: int = 80, lines: int = 24, *options: str) -> Iterator[Terminal]:
    terminal = Terminal(dsn, columns, lines, *options)
    try:
        yield terminal
    finally:
        if terminal.process.poll() is None:
            terminal.process.kill()
        terminal.process.wait()
        if terminal.process.stderr is not None:
            terminal.process.stderr.close()
        os.close(terminal.fd)
        os.close(terminal.theirs)


@pytest.fixture
def session(dsn: str) -> Iterator[Session]:
    with psycopg.connect(dsn, autocommit=True) as session:
        yield session


@pytest.fixture
def terminal(dsn: str, session: Session) -> Iterator[Terminal]:
    session.execute(SETTING.encode())
    with opened(dsn) as terminal:
        terminal.until("images", "resize", "two of five", "doctor:")
        yield terminal


def one(session: Session, statement: str) -> Any:
    row = session.execute(statement.encode()).fetchone()
    assert row is not None
    return row[0]


def until(session: Session, condition: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not one(session, f"select {condition}"):
        assert time.monotonic() < deadline, condition
        time.sleep(0.02)


def test_what_it_shows(terminal: Terminal) -> None:
    """Queues, workers, what runs with its progress, rates, the oldest waiting, and what doctor finds, in 80 x 24."""
    shown = terminal.text
    assert len(terminal.screen.display) == 24 and all(len(line) == 80 for line in terminal.screen.display)
    for words in ("enqueued/s", "ended/s", "1 running", "here:7", "1/4", "40%", "5 min", "doctor:", "[q]uit", "3 min"):
        assert words in shown, f"{words}:\n{shown}"
    mail = next(line for line in terminal.screen.display if "mail" in line)
    assert mail.split("│")[1].split()[:4] == ["mail", "1", "1", "0"]
    terminal.press("\t")
    assert "send" in terminal.until("tries")
    terminal.press("\t")
    assert "no \\x1b[31mcolour" in terminal.until("bill", "3 d ago")


def test_cancelling(terminal: Terminal, session: Session) -> None:
    """It is asked once more. Any other key than y does nothing; y cancels the job that was chosen, and says so."""
    job_id = one(session, "select id from pgnotifyq.jobs where status = 'running'")
    terminal.press("c")
    terminal.until(f"cancel job {job_id}? [y]es")
    terminal.press("n")
    terminal.until("not done", gone="[y]es")
    assert one(session, f"select status from pgnotifyq.jobs where id = '{job_id}'") == "running"
    terminal.press("c")
    terminal.until("[y]es")
    terminal.press("y")
    terminal.until("stopping")
    assert one(session, f"select status from pgnotifyq.jobs where id = '{job_id}'") == "cancelled"
    assert "in top, by " in one(session, f"select error_message from pgnotifyq.jobs where id = '{job_id}'")


def test_pausing_and_resuming(terminal: Terminal, session: Session) -> None:
    """p is for the queue of what is chosen; once more, and the queue goes on."""
    terminal.press("\x1b[Z\x1b[B")  # back to the queues, and one down
    terminal.press("p")
    terminal.until("pause queue mail? [y]es")
    terminal.press("y")
    terminal.until("mail (paused)")
    assert one(session, "select name || ' ' || why from pgnotifyq.pauses") == "mail in top"
    terminal.press("p")
    terminal.until("resume queue mail? [y]es")
    terminal.press("y")
    terminal.until("queue mail: resumed")
    assert one(session, "select count(*) from pgnotifyq.pauses") == 0


def test_requeueing(terminal: Terminal, session: Session) -> None:
    """r is for dead letters, and says so elsewhere."""
    terminal.press("r")
    terminal.until("requeue is for what is in dead")
    terminal.press("\t\t")
    terminal.until("bill")
    terminal.press("r")
    terminal.until("requeue job 01900000-0000-7000-8000-0000deadbeef? [y]es")
    terminal.press("y")
    terminal.until("requeued", "dead 0")
    assert one(session, "select status from pgnotifyq.jobs where job_type = 'bill'") == "pending"


def test_explaining(terminal: Terminal) -> None:
    """e, or Enter, shows why a job is where it is, over the screen; any key goes back."""
    terminal.press("e")
    terminal.until("It has been running for", "on host here, process 7", "any other key: back")
    terminal.press("x")
    terminal.until("two of five", gone="any other key: back")
    terminal.press("\t\r")
    terminal.until("It has been due for")


def test_another_size(terminal: Terminal) -> None:
    """It is drawn anew at once; where it does not fit, it says what it needs, and comes back."""
    terminal.resize(120, 40)
    terminal.until("two of five", "[q]uit")
    assert terminal.screen.display[39].rstrip() != ""
    terminal.resize(40, 10)
    terminal.until("top needs 60 x 18")
    terminal.resize(60, 18)
    terminal.until("resize", "doctor")


@pytest.mark.parametrize("how", ["q", "Ctrl-C", "SIGTERM", "SIGHUP"])
def test_its_end(terminal: Terminal, how: str) -> None:
    """The terminal is as it was, and there is no traceback."""
    if how == "q":
        terminal.press("q")
    elif how == "Ctrl-C":
        terminal.press("\x03")
    else:
        terminal.process.send_signal(getattr(signal, how))
    assert terminal.end() == (130 if how == "Ctrl-C" else 0)
    assert terminal.is_as_before()
    assert terminal.process.stderr is not None and b"Traceback" not in terminal.process.stderr.read()


def test_an_error(dsn: str, session: Session) -> None:
    """The terminal is as it was, and the error is one line."""
    session.execute(SETTING.encode())
    with opened(dsn) as terminal:
        terminal.until("two of five")
        session.execute(b"drop function pgnotifyq.top(integer)")
        code = terminal.end()
        assert terminal.process.stderr is not None
        said = terminal.process.stderr.read().decode()
        assert (code, len(said.splitlines())) == (3, 1), said
        assert terminal.is_as_before()


def test_database_that_goes_away(dsn: str, session: Session) -> None:
    """The screen says so, and comes back by itself."""
    session.execute(SETTING.encode())
    with opened(dsn) as terminal:
        terminal.until("two of five")
        session.execute(
            b"select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'pgnotifyq top'"
            b" and datname = current_database()"
        )
        session.execute(b"select pgnotifyq.enqueue('later', queue_name => 'afterwards')")
        terminal.until("afterwards", "enqueued/s")


@pytest.mark.parametrize("where", ["piped", "dumb"])
def test_no_terminal(run: Callable[..., Any], where: str, dsn: str) -> None:
    """It is refused, with what to use instead."""
    if where == "piped":
        ran = run("top")
        code, said = ran.code, ran.err
    else:
        ours, theirs = pty.openpty()
        environment = {**os.environ, "PGNOTIFYQ_DSN": dsn, "TERM": "dumb"}
        ended = subprocess.run(
            [*PGNOTIFYQ, "top"], stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, env=environment, check=False, timeout=60
        )
        os.close(ours)
        os.close(theirs)
        code, said = ended.returncode, ended.stderr.decode()
    assert code == 2
    assert "top needs a terminal" in said and "`stats`" in said


def test_keys() -> None:
    """Several at once are told apart, whatever they are made of."""
    assert keys_in("a\x1b[A\x1b[B\x1bOAé\t\x1b[Z\r\x1b") == ["a", "up", "down", "up", "é", "tab", "backtab", "enter", "escape"]
    assert sys.platform != "win32"
