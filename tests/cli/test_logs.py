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
import logging, signal, os, threading, warnings
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
    own.info("from a thread without its context")
    threading.Thread(target=lambda: 1 / 0, name="astray").start()

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
    told_out = [json.loads(line) for line in out.splitlines()]
    (started,) = [told for told in told_out if told["event"] == "worker.started"]
    assert all(told["event"] for told in told_out)
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
    for words in ("from a thread", "from a thread without its context"):
        (told,) = [told for told in records if told["message"] == words]
        assert (told["job_type"], told["attempt"]) == ("thread", 1), words
    assert {told["worker_id"] for told in records if "job_id" in told} == {started["worker_id"]}
    assert "ZeroDivisionError" in find("ended thread astray")["exception"]
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


@pytest.mark.parametrize("app", ["import nothing_of_this_name", "1 / 0", "x = ("])
def test_errors_are_json(run: Callable[..., Any], tmp_path: Path, app: str) -> None:
    """What ends the command is one object, as what is logged: an application that cannot be imported, a database that is away."""
    (tmp_path / "an_app.py").write_text(app)
    ran = run("worker", "--app", "an_app:registry", "--log-format", "json", PYTHONPATH=str(tmp_path))
    (told,) = map(json.loads, ran.err.splitlines())
    assert (ran.code, told["event"], told["level"]) == (2, "log", "error")
    assert "an_app" in told["message"]


def test_parent_and_children_are_json(run: Callable[..., Any], tmp_path: Path) -> None:
    """Each line of several processes and of the one that supervises them."""
    (tmp_path / "an_app.py").write_text("import nothing_of_this_name")
    ran = run("worker", "--app", "an_app:registry", "--log-format", "json", "--processes", "2", PYTHONPATH=str(tmp_path))
    assert ran.code == 2
    assert all(json.loads(line)["event"] for line in (ran.out + ran.err).splitlines())
    assert any(json.loads(line)["event"] == "process.ended" for line in ran.out.splitlines())


CONFIGURATION = {
    "formatters": {"mine": {"format": "CONFIGURED %(levelname)s %(name)s %(message)s"}},
    "handlers": {"err": {"class": "logging.StreamHandler", "formatter": "mine"}},
    "root": {"handlers": ["err"], "level": "WARNING"},
    "loggers": {"pgnotifyq.job": {"level": "DEBUG"}},
}
AS_TOML = """
[formatters.mine]
format = "CONFIGURED %(levelname)s %(name)s %(message)s"
[handlers.err]
class = "logging.StreamHandler"
formatter = "mine"
[root]
handlers = ["err"]
level = "WARNING"
[loggers."pgnotifyq.job"]
level = "DEBUG"
"""


@pytest.mark.parametrize(("name", "text"), [("logs.json", json.dumps(CONFIGURATION)), ("logs.toml", AS_TOML)])
def test_configuration_of_ones_own(work: Callable[..., tuple[str, str]], tmp_path: Path, name: str, text: str) -> None:
    """It sets up logging whole, in the place of the worker's set-up and of the application's."""
    (tmp_path / name).write_text(text)
    _, err = work("--log-config", name, app=SET_UP + APP)
    assert "CONFIGURED DEBUG pgnotifyq.job not asked for" in err
    assert "CONFIGURED WARNING an_app.work forged" in err
    assert "from a task" not in err
    assert "MINE" not in err


def test_our_own_format_in_a_configuration(work: Callable[..., tuple[str, str]], tmp_path: Path, job_id: uuid.UUID) -> None:
    """`pgnotifyq.runtime.logs.JsonFormatter` is a formatter like any other, and its records know their job."""
    own = {"()": "pgnotifyq.runtime.logs.JsonFormatter"}
    configuration = {**CONFIGURATION, "formatters": {"mine": own}}
    (tmp_path / "logs.json").write_text(json.dumps(configuration))
    _, err = work("--log-config", "logs.json")
    (told,) = [json.loads(line) for line in err.splitlines() if "forged" in line]
    assert told["job_id"] == str(job_id)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("none.json", None),
        ("logs.json", "{"),
        ("logs.toml", "= 1"),
        ("logs.json", "[1]"),
        ("logs.json", '{"root": {"level": "LOUD"}}'),
    ],
)
def test_configuration_that_is_none(run: Callable[..., Any], tmp_path: Path, name: str, text: str | None) -> None:
    """It is refused in one line."""
    if text is not None:
        (tmp_path / name).write_text(text)
    ran = run("worker", "--app", "pgnotifyq.cli.demo_handlers:registry", "--log-config", str(tmp_path / name))
    assert (ran.code, len(ran.err.splitlines())) == (2, 1), ran.err
    assert "--log-config" in ran.err


@pytest.mark.parametrize("set_up", ["by the application", "by --log-config"])
def test_warnings_are_json_whoever_sets_up_logging(work: Callable[..., tuple[str, str]], tmp_path: Path, set_up: str) -> None:
    """With `--log-format json` a warning is a record of its job, too, in the form that the set-up gives it."""
    config = {
        "formatters": {"json": {"()": "pgnotifyq.runtime.logs.JsonFormatter"}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
        "root": {"handlers": ["stderr"], "level": "INFO"},
    }
    app = APP.replace('    own.info("%d", "no number")\n', "")
    if set_up == "by the application":
        app = f"import logging.config; logging.config.dictConfig({ {'version': 1, **config}!r})\n{app}"
        _, err = work("--log-format", "json", app=app)
    else:
        (tmp_path / "whole.json").write_text(json.dumps(config))
        _, err = work("--log-format", "json", "--log-config", "whole.json", app=app)
    records = [json.loads(line) for line in err.splitlines()]
    (told,) = [told for told in records if "old habits" in told["message"]]
    assert (told["logger"], told["job_type"]) == ("py.warnings", "work")
