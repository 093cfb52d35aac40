"""Hostile command lines: whatever is typed, an exit code of those documented, and a line of explanation; never a traceback."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pgnotifyq.cli.app import run as run_command
from tests.conftest import _database

if TYPE_CHECKING:
    from collections.abc import Iterator

EXIT_CODES = {0, 1, 2, 3}
ID = "00000000-0000-0000-0000-000000000001"
# An argument that is not UTF-8 arrives with lone surrogates, as Python reads them.
NOT_UTF8 = os.fsdecode(b"\xff\xfe")
TEXTS = [
    "", " ", "-", "--", "---", "-1", "0", "1", "1e5000", "NaN", "inf", "-inf", "99999999999999999999", "0x10", "true", "null", "x",
    "x" * 5000, "two words", "\n", "\t\x1b[2J", "\U0001f4a5", "\u202e", NOT_UTF8, "%s", "{schema}", "'; drop schema pgnotifyq cascade; --",
    ID, ID.upper(), "not-a-uuid", "{}", "[]", "{", "[" * 3000, "1" * 5000, '{"a": "\\u0000"}', '"\\ud800"', "2030-01-31T12:00:00+00:00",
    "2030-01-31", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00", "tomorrow",
]  # fmt: skip
DSNS = [
    "postgresql://127.0.0.1:1/x",
    "host=/nowhere",
    "nonsense",
    "postgresql://[::1",
    "port=abc",
    "=",
    "postgresql://%zz",
    NOT_UTF8,
    "\n",
]
text = st.one_of(
    st.sampled_from(TEXTS), st.text(max_size=8).filter(lambda found: "\x00" not in found)
)  # the kernel passes no NUL


def option(name: str) -> st.SearchStrategy[list[str]]:
    """Return an option with hostile values."""
    return text.map(lambda value: [name, value])


flags: dict[str, st.SearchStrategy[list[str]]] = {
    **{name: st.just([name]) for name in ("--json", "--help", "--all", "--dry-run", "--no-json", "--nonsense", "--continue", "--logs", "--follow", "--stack")},
    **{
        name: option(name)
        for name in (
            "--queue", "--priority", "--delay-seconds", "--at", "--max-attempts", "--org", "--unique-key", "--status", "--type",
            "--limit", "--why", "--wait-seconds", "--purge", "--purge-older-than-seconds", "--schema", "--payload", "--in",
            "--batch", "--timeout-seconds",
        )
    },
    "--dsn": st.sampled_from(DSNS).map(lambda value: ["--dsn", value]),
}  # fmt: skip
COMMANDS = {
    "erase": ["--org", "--unique-key", "--payload", "--queue", "--type"],
    "enqueue": [
        "--queue",
        "--priority",
        "--delay-seconds",
        "--at",
        "--in",
        "--max-attempts",
        "--org",
        "--unique-key",
        "--type",
        "--batch",
        "--continue",
    ],
    "jobs": ["--status", "--queue", "--type", "--limit"],
    "show": ["--logs", "--follow"],
    "watch": ["--timeout-seconds"],
    "explain": ["--stack"],
    "stack": ["--timeout-seconds"],
    "top": [],
    "cancel": ["--why", "--wait-seconds"],
    "dead": ["--queue", "--type", "--limit", "--purge", "--purge-older-than-seconds"],
    "requeue": ["--all", "--queue", "--type"],
    "pause": ["--type", "--why"],
    "resume": ["--type"],
    "pauses": [],
    "schedules": ["--why", "--org"],
    "workers": [],
    "stats": [],
    "migrate": ["--dry-run"],
    "doctor": [],
}


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """Return a command with arguments and options, mostly its own."""
    name = draw(st.one_of(st.sampled_from(list(COMMANDS)), st.sampled_from(["", "-", "nonsense", "demos"])))
    own = COMMANDS.get(name, [])
    line = [name, *draw(st.lists(text, max_size=2))]
    for option in draw(st.lists(st.sampled_from([*own, *own, *own, "--json", "--schema", "--dsn", *flags]), max_size=3)):
        line += draw(flags[option])
    return line


# `worker` would work for ever if its options were good, so its app is always bad; and that is looked at last.
worker_lines = st.lists(
    st.one_of(
        *(
            option(name)
            for name in (
                "--concurrency",
                "--lease-seconds",
                "--heartbeat-seconds",
                "--shutdown-seconds",
                "--queue",
                "--log-format",
                "--log-level",
            )
        )
    ),
    max_size=3,
).map(lambda options: ["worker", "--app", "json:dumps", *(part for option in options for part in option)])


@pytest.fixture(scope="module")
def dsn_of_commands(server_dsn: str, template: str) -> Iterator[str]:
    """Give a database with our schema, and the environment that leads to it."""
    with _database(server_dsn, template) as dsn, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PGNOTIFYQ_DSN", dsn)
        yield dsn


def said(line: list[str]) -> tuple[int, str, str]:
    """Run a command in this process, with the streams that a process has, and return its exit code and what it said."""
    raw_out, raw_err = io.BytesIO(), io.BytesIO()
    out = io.TextIOWrapper(raw_out, encoding="utf-8", errors="strict", write_through=True)
    err = io.TextIOWrapper(raw_err, encoding="utf-8", errors="backslashreplace", write_through=True)
    before, sys.stdin = sys.stdin, io.StringIO('{"a": 1}')
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run_command(line)
    finally:
        sys.stdin = before
    return code, raw_out.getvalue().decode(), raw_err.getvalue().decode()


@settings(max_examples=120, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(st.one_of(command_lines(), command_lines(), command_lines(), worker_lines))
@example(["enqueue", "x", "--unique-key", NOT_UTF8])
@example(["cancel", ID, "--why", NOT_UTF8])
@example(["jobs", "--queue", NOT_UTF8])
@example(["enqueue", "-"])
@example(["enqueue", "-", "--type", "x", "--batch", "99999999999999999999", "--in", "9" * 5000])
@example(["cancel", "-"])
@example(["enqueue", "x", "1e5000"])
@example(["enqueue", "x", "[" * 5000])
@example(["dead", "--purge-older-than-seconds", "NaN"])
@example(["cancel", ID, "--wait-seconds", "NaN"])
def test_hostile_command_line(dsn_of_commands: str, line: list[str]) -> None:
    """It ends by itself, with a documented exit code, and says why when it is not zero."""
    code, out, err = said(line)
    assert code in EXIT_CODES
    assert "Traceback" not in out + err
    assert code == 0 or err.strip() or out.strip()
    with psycopg.connect(dsn_of_commands) as session:
        stuck = "select count(*) from pg_stat_activity where datname = current_database() and state like 'idle in transaction%'"
        assert session.execute(stuck).fetchone() == (0,)


@pytest.mark.parametrize(
    "line",
    [
        [b"enqueue", b"x", b'{"a": 1}', b"--unique-key", b"\xff\xfe"],
        [b"cancel", ID.encode(), b"--why", b"\xff"],
        [b"jobs", b"--type", b"\xff", b"--json"],
        [b"\xff"],
        [b"worker", b"--app", b"\xff:\xff"],
        [b"show", b"\xff"],
    ],
    ids=repr,
)
def test_hostile_command_line_of_a_process(dsn_of_commands: str, line: list[bytes]) -> None:
    """The same of real processes, whose arguments are bytes."""
    ran = subprocess.run(
        [sys.executable.encode(), b"-m", b"pgnotifyq", *line], capture_output=True, check=False, timeout=60, env=os.environ
    )
    assert ran.returncode in EXIT_CODES
    assert b"Traceback" not in ran.stderr
    assert ran.returncode == 0 or ran.stderr.strip()
