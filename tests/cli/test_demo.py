"""The demo on a small folder of real files: it ends by itself, every check holds, and it leaves its jobs to look at."""

from __future__ import annotations

import os
import re
import shlex
import signal
import string
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import psutil
import psycopg

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_the_demo_cancels_kills_recovers_and_checks(run: Callable[..., Any], dsn: str, tmp_path: Path) -> None:
    """Exit code 0 means that every hash equals one computed directly. What it says to type next works, and leaves nothing."""
    for number in range(1500):
        (tmp_path / f"{number}.txt").write_text(f"line {number}\n" * (number % 50 + 1))
    ran = run("demo", str(tmp_path))
    assert ran.code == 0, ran.out + ran.err
    assert "1500 of 1500" in ran.out
    assert "SIGKILL" in ran.out
    shows = [shlex.split(line, comments=True) for line in ran.out.splitlines() if line.startswith("  python -m pgnotifyq ")]
    assert [command[:3] for command in shows] == [["python", "-m", "pgnotifyq"]] * 3
    recovered, cancelled, clean = (run(*command[3:]) for command in shows)
    assert [line.split("\t")[1] for line in recovered.out.splitlines()[-2:]] == ["lost", "completed"]
    assert (cancelled.code, "cancelled" in cancelled.out) == (0, True)
    assert (clean.code, clean.out) == (0, "nothing is left of the demo\n")
    assert run(*shows[2][3:]).code == 0, "again"
    with psycopg.connect(dsn) as session:
        assert traces(session) == (0, 0)
        # The demo's own session is gone too.
        found = session.execute("select count(*) from pg_stat_activity where application_name like 'pgnotifyq%'").fetchone()
        assert found == (0,)


def traces(session: psycopg.Connection[Any]) -> Any:
    """Return how many schemas and how many roles the demo has left."""
    return session.execute(
        "select (select count(*) from pg_namespace where nspname = 'pgnotifyq_demo'),"
        " (select count(*) from pg_roles where rolname = 'pgnotifyq_demo_tenant')"
    ).fetchone()


def test_a_folder_with_one_file(run: Callable[..., Any], dsn: str, tmp_path: Path) -> None:
    """It is digested often enough for something to be under way at the cancel and at the kill. Names are not markup.

    Its jobs are left. An address that was given is part of what to type next.
    """
    (tmp_path / "[bold]one.txt").write_text("one")
    ran = run("demo", str(tmp_path), "--dsn", dsn)
    assert ran.code == 0, ran.out + ran.err
    assert "2000 of 2000" in ran.out
    assert set(ran.out) <= set(string.printable)  # nothing drawn
    assert f"demo --clean --dsn {shlex.quote(dsn)}" in ran.out
    with psycopg.connect(dsn) as session:
        assert traces(session) == (1, 0)


def test_a_demo_that_is_told_to_end(dsn: str) -> None:
    """At SIGTERM its workers end, and its schema and role are gone."""
    environment = {**os.environ, "PGNOTIFYQ_DSN": dsn}
    command = [sys.executable, "-m", "pgnotifyq", "demo"]
    demo = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert demo.stdout is not None
    workers: list[int] = []
    while not workers:
        workers = [int(pid) for pid in re.findall(r"pid (\d+)", demo.stdout.readline())]
    demo.send_signal(signal.SIGTERM)
    demo.communicate(timeout=60)
    assert demo.returncode == 128 + signal.SIGTERM
    assert not any(psutil.pid_exists(pid) for pid in workers)
    with psycopg.connect(dsn) as session:
        assert traces(session) == (0, 0)


def test_a_second_demo_at_the_same_time(run: Callable[..., Any], dsn: str) -> None:
    """It says so, and leaves the first one's schema alone."""
    with psycopg.connect(dsn, autocommit=True) as session:
        session.execute("select pg_advisory_lock(hashtextextended('pgnotifyq_demo', 0))")
        session.execute("create schema pgnotifyq_demo")
        ran = run("demo")
        assert (ran.code, traces(session)) == (1, (1, 0))
        clean = run("demo", "--clean")
        assert (clean.code, traces(session)) == (1, (1, 0))
    assert "another demo is under way" in ran.out
    assert "another demo is under way" in clean.err


def test_an_empty_folder_is_told(run: Callable[..., Any], tmp_path: Path) -> None:
    """With exit code 1."""
    ran = run("demo", str(tmp_path))
    assert ran.code == 1
    assert "no files" in ran.out
