"""Handlers in processes, under the worker command: its options for them, and what they log."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.cli.support import open_floor

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.cli.support import Floor

APP = """
import logging, os, sys, threading, time, warnings, pgnotifyq
go = threading.Event()

def frames():
    frame = sys._current_frames()[threading.main_thread().ident]
    while frame is not None:
        yield frame
        frame = frame.f_back
registry = pgnotifyq.JobRegistry()

@registry.handler("who", runs_in="process")
def who(payload: dict) -> int:
    return os.getpid()

@registry.handler("eats", runs_in="process")
def eats(payload: dict) -> None:
    bytearray(512 * 2**20)

@registry.handler("noisy", runs_in="process")
def noisy(payload: dict) -> None:
    warnings.warn("mind the gap")
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
    try:
        raise KeyError("caught")
    except KeyError:
        logging.getLogger("shop").exception("told")

@registry.handler("leaves", runs_in="process")
def leaves(payload: dict) -> None:
    def linger():
        while any(frame.f_code.co_name in {"leaves", "_run"} for frame in frames()):
            time.sleep(0.01)
        logging.getLogger("shop").warning("from one that is idle")
        go.wait()
        logging.getLogger("shop").warning("from one that was left behind")
    global left
    left = threading.Thread(target=linger, daemon=True)
    left.start()

@registry.handler("next", runs_in="process")
def next_one(payload: dict) -> None:
    go.set()
    left.join()
    logging.getLogger("shop").warning("from the next job")
"""


@pytest.fixture
def floor(dsn: str, tmp_path: Path) -> Iterator[Floor]:
    (tmp_path / "an_app.py").write_text(APP)
    with open_floor(dsn, tmp_path) as floor:
        yield floor


def test_options(floor: Floor) -> None:
    """They bound how many processes there are, how many jobs each has, and its memory."""
    options = ("--handler-processes", "1", "--handler-process-jobs", "1", "--handler-process-memory-bytes", str(256 * 2**20))
    floor.start("an_app", *options)
    jobs = [floor.enqueue("who") for _ in range(3)]
    floor.until_completed(*jobs)
    (pids,) = floor.session.execute("select count(distinct result) from pgnotifyq.jobs where job_type = 'who'").fetchone() or [0]
    assert pids == 3
    floor.enqueue("eats")
    floor.until("count(*) = 1 from pgnotifyq.dead_letter_jobs")
    (error,) = floor.session.execute("select error_message from pgnotifyq.dead_letter_jobs").fetchone() or [""]
    assert error.startswith("MemoryError")


def test_all_that_a_process_logs_is_json(floor: Floor) -> None:
    """Warnings, tracebacks, and what a thread of it does not catch are records with the job's id, as in the worker itself."""
    worker = floor.start("an_app", "--log-format", "json")
    job_id = floor.enqueue("noisy")
    floor.until_completed(job_id)
    records = [json.loads(line) for line in worker.said.splitlines()]
    ours = [told for told in records if told.get("job_id") == str(job_id)]
    assert [told["logger"] for told in ours] == ["py.warnings", "pgnotifyq", "shop"], worker.said
    assert "UserWarning: mind the gap" in ours[0]["message"]
    assert "ZeroDivisionError" in ours[1]["exception"]
    assert "KeyError: 'caught'" in ours[2]["exception"]


def test_a_traceback_of_a_process_is_a_line_for_people_too(floor: Floor) -> None:
    """In lines, it stands below the record, indented."""
    worker = floor.start("an_app")
    floor.until_completed(floor.enqueue("noisy"))
    assert "    KeyError: 'caught'" in worker.said.splitlines()


def test_thread_that_a_job_has_left_behind(floor: Floor) -> None:
    """What it logs while the next job runs in that process is not named after that job: it may be another tenant's."""
    worker = floor.start("an_app", "--log-format", "json", "--handler-processes", "1")
    floor.until_completed(floor.enqueue("leaves"))
    job_id = floor.enqueue("next")
    floor.until_completed(job_id)
    records = {told["message"]: told for told in map(json.loads, worker.said.splitlines())}
    for words in ("from one that is idle", "from one that was left behind"):
        assert "job_id" not in records[words], words
    assert records["from the next job"]["job_id"] == str(job_id)
