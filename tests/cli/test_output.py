"""Tables for people: they fit the terminal, and what is copied from them is whole."""

from __future__ import annotations

import datetime as dt
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import uuid
from fcntl import ioctl
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgnotifyq.cli.output import as_table, shown, shown_whole

COLUMNS = ["id", "queue_name", "status", "when", "attempts", "error_message"]
ROWS = st.fixed_dictionaries(
    {
        "id": st.uuids().map(str),
        "queue_name": st.text(min_size=1, max_size=70),
        "status": st.sampled_from(["pending", "completed"]),
        "when": st.datetimes(timezones=st.just(dt.UTC)),
        "attempts": st.integers(0, 1000),
        "error_message": st.none() | st.text(max_size=300),
    }
)


@given(st.lists(ROWS, min_size=1, max_size=5), st.integers(36, 200))
def test_table_of_any_rows(rows: list[dict[str, Any]], width: int) -> None:
    """No line is longer than the terminal is wide, none holds control characters, and each id is there, whole."""
    head, *body = as_table(rows, COLUMNS, width=width)
    assert len(head) - len("\x1b[1m\x1b[0m") <= width
    for row, line in zip(rows, body, strict=True):
        assert len(line) <= width
        assert line.isprintable()
        assert line.startswith(row["id"])


def test_columns_that_say_nothing() -> None:
    """Those without a value are left out; noughts only where there is no room."""
    row = {"id": "1", "queue_name": "images", "status": "pending", "when": None, "attempts": 0, "error_message": ""}
    assert as_table([row], COLUMNS, width=80)[0] == "\x1b[1mid  queue   status   tries\x1b[0m"
    assert as_table([row], COLUMNS, width=20)[0] == "\x1b[1mid  queue   status\x1b[0m"


@pytest.mark.parametrize("whole", [False, True])
def test_control_characters(whole: bool) -> None:
    """A job's error can move no cursor; in full its lines stay lines."""
    text = shown_whole("a\x1b[2J\nb", indent=2) if whole else shown("a\x1b[2J\nb")
    assert text == ("a\\x1b[2J\n  b" if whole else "a\\x1b[2J\\nb")


def test_listing_in_a_terminal_of_80_columns(dsn: str) -> None:
    """Seen as a person sees it: one line a job, its id in one piece."""
    with psycopg.connect(dsn, autocommit=True) as session:
        session.execute("select pgnotifyq.enqueue('resize', queue_name => 'images') from generate_series(1, 3)")
    told = in_terminal(sys.executable, "-m", "pgnotifyq", "jobs", "--dsn", dsn)
    head, *body = told.splitlines()
    assert head.split() == ["id", "queue", "type", "status", "when"]
    assert len(body) == 3
    for line in body:
        assert len(line) <= 80
        assert uuid.UUID(line.split()[0])


def in_terminal(*command: str, plain: bool = True) -> str:
    """Run a command in a terminal of 80 columns; return what it shows, without colours if `plain`."""
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES"}}
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        told = b""
        while chunk := _read(ours):
            told += chunk
        os.close(ours)
    assert process.returncode == 0, told
    shown = told.decode().replace("\r\n", "\n")
    return re.sub(r"\x1b\[[0-9;]*m", "", shown) if plain else shown


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # the other end was closed
        return b""


@pytest.mark.parametrize(
    ("environment", "coloured"),
    [
        ({"TERM": "xterm"}, True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, False),
        ({"TERM": "xterm", "NO_COLOR": ""}, True),
        ({"TERM": "dumb"}, False),
        ({"TERM": "dumb", "FORCE_COLOR": "1"}, True),
    ],
    ids=str,
)
def test_colours_in_a_terminal(dsn: str, environment: dict[str, str], coloured: bool) -> None:
    """Bold heads are colours too; NO_COLOR that is empty says nothing (no-color.org)."""
    with psycopg.connect(dsn, autocommit=True) as session:
        session.execute("select pgnotifyq.enqueue('resize')")
    command = ["env", "-u", "NO_COLOR", "-u", "FORCE_COLOR", *(f"{name}={value}" for name, value in environment.items())]
    told = in_terminal(*command, sys.executable, "-m", "pgnotifyq", "jobs", "--dsn", dsn, plain=False)
    assert ("\x1b[1m" in told) is coloured
