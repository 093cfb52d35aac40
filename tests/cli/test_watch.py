"""`watch` and `show --logs`: a job followed on the command line, to its end."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from pgnotifyq.ledger import claim as claim_verbs
from pgnotifyq.ledger import end, watching
from pgnotifyq.ledger import lease as lease_verbs
from pgnotifyq.model.job import Lease
from pgnotifyq.wire.asking import ask_blocking
from tests.doors.test_every_client import until
from tests.ledger.support import ANN, ENDINGS, SCHEMA

FOLLOWED = "exists (select from pgnotifyq.followers)"


class Hand:
    """A worker's statements, said by the test."""

    def __init__(self, session: psycopg.Connection[Any]) -> None:
        self._session = session

    def claim(self) -> Lease:
        verb = claim_verbs.claim(SCHEMA, worker_id=ANN, queues=["default"], jobs_max=1, lease_seconds=600.0)
        (job,) = ask_blocking(self._session, verb).jobs
        return Lease(job.id, job.current_execution_id)

    def progress(self, lease: Lease, fraction: float, message: str) -> None:
        ask_blocking(self._session, lease_verbs.report_progress(SCHEMA, lease, fraction=fraction, message=message))

    def log(self, lease: Lease, *texts: str) -> None:
        head = json.dumps([[1.5, "info", text] for text in texts])
        ask_blocking(
            self._session,
            watching.keep_logs(SCHEMA, [watching.Log(lease=lease, attempt=1, head=head, tail=None, left_out=0)]),
        )

    def end(self, lease: Lease, ending: str) -> None:
        ask_blocking(self._session, end.settle(SCHEMA, worker_id=ANN, settlements=[(lease, ENDINGS[ending])]))


@pytest.fixture
def hand(dsn: str) -> Iterator[Hand]:
    with psycopg.connect(dsn, autocommit=True) as session:
        yield Hand(session)


def start(dsn: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Start a command."""
    return subprocess.Popen(
        [sys.executable, "-m", "pgnotifyq", *arguments],
        env={**os.environ, "PGNOTIFYQ_DSN": dsn, "COLUMNS": "120", "TERM": "xterm"},
        text=True,
        **{"stdout": subprocess.PIPE, **options},
    )


@pytest.mark.parametrize(
    ("ending", "code", "last"), [("complete", 0, "completed"), ("cancel", 4, "cancelled"), ("bury", 5, "dead")]
)
def test_lines_for_a_pipe(run: Callable[..., Any], dsn: str, hand: Hand, ending: str, code: int, last: str) -> None:
    """Each change is a line, and the exit code says how the job has ended."""
    job_id = run("enqueue", "resize").out.strip()
    with start(dsn, "watch", job_id) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "pending\n"
        lease = hand.claim()
        assert process.stdout.readline() == "running attempt 1\n"
        hand.progress(lease, 0.25, "page \x1b[31m1")
        assert process.stdout.readline().startswith("running attempt 1 25% page ")
        hand.end(lease, ending)
        assert process.stdout.readline().startswith(last)
        process.stdout.read()
        assert process.wait(30) == code
    assert run("watch", job_id, "--json").data["status"] == last
    assert run("watch", job_id).code == code


def test_a_bar_for_a_terminal(run: Callable[..., Any], dsn: str, hand: Hand) -> None:
    """It shows the share and what the handler says, and ends at 100 % with the job."""
    job_id = run("enqueue", "resize").out.strip()
    ours, theirs = pty.openpty()
    with start(dsn, "watch", job_id, stdout=theirs) as process:
        os.close(theirs)
        until(dsn, FOLLOWED)
        lease = hand.claim()
        hand.progress(lease, 0.25, "page 1")
        shown = b""
        while b"25%" not in shown or b"page 1" not in shown:
            shown += os.read(ours, 65_536)
        hand.end(lease, "complete")
        try:
            while data := os.read(ours, 65_536):
                shown += data
        except OSError:  # Linux says so when the other end is closed
            pass
        assert process.wait(30) == 0
    os.close(ours)
    assert b"100%" in shown and b"completed" in shown


def test_what_cannot_be_watched(run: Callable[..., Any]) -> None:
    """A job that is not there is not found; one that does not end in time is told as such."""
    missing = run("watch", "0190aaaa-0000-7000-8000-000000000000")
    assert (missing.code, "there is no job" in missing.err) == (1, True)
    job_id = run("enqueue", "resize").out.strip()
    late = run("watch", job_id, "--timeout-seconds", "0.1")
    assert (late.code, "has not ended" in late.err) == (1, True)
    assert run("watch", "x").code == 2


def test_logs(run: Callable[..., Any], dsn: str, hand: Hand) -> None:
    """`show --logs` prints them behind the job, `--follow` as they come, until the job has ended."""
    job_id = run("enqueue", "resize").out.strip()
    assert "no logs" in run("show", job_id, "--logs").out
    lease = hand.claim()
    hand.log(lease, "first\nTraceback \x1b[31m")
    assert "#1 info     first\n    Traceback" in run("show", job_id, "--logs").out
    assert "\x1b[31m" not in run("show", job_id, "--logs").out
    assert run("show", job_id, "--logs", "--json").data["logs"][0]["level"] == "info"
    assert "logs" not in run("show", job_id, "--json").data
    with start(dsn, "show", job_id, "--follow", "--json") as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["text"].startswith("first")
        hand.log(lease, "first\nTraceback \x1b[31m", "second")
        assert json.loads(process.stdout.readline())["text"] == "second"
        hand.end(lease, "complete")
        assert process.stdout.read() == ""
        assert process.wait(30) == 0
