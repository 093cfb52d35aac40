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
import logging, os, threading, warnings, pgnotifyq
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
