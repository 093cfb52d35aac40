"""What a worker process logs: one format, one record a line, with the job that it belongs to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

APP = """
import logging, signal, os, warnings
import trio, pgnotifyq
registry = pgnotifyq.JobRegistry()
own = logging.getLogger("an_app.work")

@registry.handler("work")
async def work(payload: dict, ctx: pgnotifyq.JobContext) -> None:
    ctx.log.info("begun with %s", 7, extra={"batch": 3})
    ctx.log.debug("not asked for")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(deeper)
    warnings.warn("old habits")
    own.warning("forged\\r\\n12:00:00.000 job.completed \\x1b[2J \\u20ac" + "x" * 50_000)
    own.info("%d", "no number")
    try:
        raise ValueError("a\\nb")
    except ValueError:
        own.exception("it failed")

async def deeper() -> None:
    own.info("from a task of the handler's")

@registry.handler("thread")
def thread(payload: dict, ctx: pgnotifyq.JobContext) -> None:
    ctx.log.warning("from a thread")

@registry.handler("end")
async def end(payload: dict) -> None:
    own.info("the last")
    os.kill(os.getpid(), signal.SIGTERM)
"""
SET_UP = 'import logging, sys; logging.basicConfig(level="ERROR", format="MINE %(message)s", stream=sys.stderr)\n'


@pytest.fixture
def job_id(dsn: str) -> Iterator[uuid.UUID]:
    """Jobs for the app, the last of which ends its worker; the id of the first."""
    with psycopg.connect(dsn, autocommit=True) as session:
        row = session.execute("select pgnotifyq.enqueue('work', priority => 9)").fetchone()
        session.execute("select pgnotifyq.enqueue('thread', priority => 8), pgnotifyq.enqueue('end', priority => 7)")
        assert row is not None
        yield row[0]


@pytest.fixture
def work(dsn: str, tmp_path: Path, job_id: uuid.UUID) -> Callable[..., tuple[str, str]]:
    """Runs a worker until it has done the jobs; returns its standard output and error."""

    def work(*options: str, app: str = APP, **environment: str) -> tuple[str, str]:
        (tmp_path / "an_app.py").write_text(app)
        command = [sys.executable, "-m", "pgnotifyq", "worker", "--app", "an_app:registry", "--concurrency", "1", *options]
        ran = subprocess.run(
            command,
            cwd=tmp_path,
            env={**os.environ, "PGNOTIFYQ_DSN": dsn, **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=90,
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout, ran.stderr

    return work


def test_everything_is_json(work: Callable[..., tuple[str, str]], job_id: uuid.UUID) -> None:
    """Each line of both streams is one object with an event; `ctx.log` and the application's own records know their job."""
    out, err = work("--log-format", "json")
    assert all(json.loads(line)["event"] for line in out.splitlines())
    records: list[dict[str, Any]] = [json.loads(line) for line in err.splitlines()]
    assert all(told["event"] for told in records)

    def find(words: str) -> dict[str, Any]:
        (found,) = [told for told in records if words in told["message"]]
        return found

    begun = find("begun with 7")
    assert (begun["level"], begun["logger"], begun["event"]) == ("info", "pgnotifyq.job", "log")
    assert (begun["job_id"], begun["job_type"], begun["attempt"], begun["batch"]) == (str(job_id), "work", 1, 3)
    for words in ("old habits", "forged", "from a task", "it failed", "%d"):
        assert find(words)["job_id"] == str(job_id), words
    assert find("from a thread")["job_type"] == "thread"
    assert (find("old habits")["logger"], find("old habits")["level"]) == ("py.warnings", "warning")
    assert "ValueError: a" in find("it failed")["exception"]
    assert len(find("forged")["message"]) < 5_000
    assert "its arguments do not fit" in find("%d")["message"]
    assert not any("not asked for" in told["message"] for told in records)


def test_lines_for_people(work: Callable[..., tuple[str, str]], job_id: uuid.UUID) -> None:
    """As events are; no text forges a line, and a traceback's lines are indented. A stream that lacks a letter shows its number."""
    _, err = work("--log-level", "debug", PYTHONIOENCODING="ascii")
    lines = err.splitlines()
    (begun,) = [line for line in lines if "begun with 7" in line]
    assert "INFO" in begun and f"job_id={job_id}" in begun and "batch=3" in begun
    assert any("not asked for" in line for line in lines)
    assert all(line.isprintable() for line in lines)
    (forged,) = [line for line in lines if "12:00:00.000 job.completed" in line]
    assert forged.startswith("    ") and "\\u20ac" in forged and len(forged) < 5_000
    assert any(line.startswith("    ValueError: a") for line in lines)


def test_application_that_sets_up_logging_itself(work: Callable[..., tuple[str, str]]) -> None:
    """It keeps its own; a level that was asked for counts."""
    _, err = work("--log-format", "json", "--log-level", "INFO", app=SET_UP + APP)
    assert "MINE begun with 7" in err
    assert '"event"' not in err


def test_level_that_is_not_known(run: Callable[..., Any]) -> None:
    """It is refused, with those there are."""
    ran = run("worker", "--app", "pgnotifyq.cli.demo_handlers:registry", "--log-level", "loud")
    assert (ran.code, len(ran.err.splitlines())) == (2, 1)
    assert "debug, info, warning" in ran.err
