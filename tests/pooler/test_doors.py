"""The client and the commands, by way of a pooler."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import trio

from pgnotifyq import CancelOutcome, open_client
from pgnotifyq.doors import ends
from pgnotifyq.wire.connection import open_connection
from tests.asked import claim_one, fetch, settle
from tests.ledger.support import ENDINGS
from tests.pooler.support import open_pooler
from tests.runtime.test_faults import Gate

if TYPE_CHECKING:
    from pathlib import Path

    from pgnotifyq.wire.connection import Connection
    from tests.pooler.support import Pooler
    from tests.runtime.support import Workplace


async def test_enqueue_and_wait(place: Workplace, pooler: Pooler, monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting does not rely on a LISTEN that the pooler may have given to another session."""
    monkeypatch.setattr(ends, "LOOK_SECONDS", 10_000.0)
    await place.start(Gate().registry, dsn=pooler.dsn, is_heard=False, poll_seconds=0.05)
    async with open_client(pooler.dsn) as door:
        for _ in range(2):
            job_id = await door.enqueue("quick", {"n": 1})
            assert (await door.wait(job_id, timeout_seconds=30)).status == "completed"
        many = await door.enqueue_many([{"job_type": "quick"}] * 2_000)  # by COPY
        assert len(many) == 2_000


async def test_wait_past_the_pooler(place: Workplace, pooler: Pooler, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a direct address for LISTEN the end of a job is heard: nobody looks within the hour."""
    for name in ("LOOK_SECONDS", "LISTEN_RETRY_SECONDS"):
        monkeypatch.setattr(ends, name, 10_000.0)
    async with open_client(pooler.dsn, listen_dsn=place.dsn) as door, trio.open_nursery() as nursery:
        job_id = await door.enqueue("elsewhere")
        ended = trio.Event()

        async def wait() -> None:
            assert (await door.wait(job_id, timeout_seconds=30)).status == "completed"
            ended.set()

        nursery.start_soon(wait)
        await place.until("awaited from pgnotifyq.jobs where id = %s", job_id)
        job = await claim_one(place.connection)
        await settle(place.connection, job, ENDINGS["complete"])
        await ended.wait()


async def test_cancel_and_wait(place: Workplace, pooler: Pooler) -> None:
    """A cancel is acknowledged, by a worker that polls to a client that looks."""
    await place.start(Gate().registry, dsn=pooler.dsn, is_heard=False, poll_seconds=0.05, heartbeat_seconds=0.2)
    async with open_client(pooler.dsn) as door:
        job_id = await door.enqueue("work")
        await place.until("status = 'running' from pgnotifyq.jobs where id = %s", job_id)
        assert await door.cancel(job_id, wait_seconds=30) is CancelOutcome.CANCELLED


async def test_enqueue_in_the_callers_transaction(place: Workplace, pooler: Pooler, connection: Connection[Any]) -> None:
    """The job exists if and only if the transaction commits."""
    async with open_client(pooler.dsn) as door, open_connection(pooler.dsn) as own:
        async with own.transaction(force_rollback=True):
            await door.enqueue("quick", connection=own)
        async with own.transaction():
            kept = await door.enqueue("quick", connection=own)
    assert await fetch(place.connection, "select id from pgnotifyq.jobs") == [(kept,)]


def command(dsn: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command on an address."""
    return subprocess.run(
        [sys.executable, "-m", "pgnotifyq", *arguments, "--dsn", dsn], capture_output=True, text=True, check=False, timeout=60
    )


def test_doctor(pooler: Pooler) -> None:
    """It says that notifications do not arrive, and what to do."""
    ran = command(pooler.dsn, "doctor", "--json")
    (finding,) = [found for found in json.loads(ran.stdout) if "notification to ourselves" in found["what"]]
    assert finding["verdict"] == "warn"
    assert "--listen-dsn" in finding["hint"]


def test_migrate(blank_dsn: str) -> None:
    """A database is migrated by way of a pooler, twice at once."""
    with open_pooler(blank_dsn) as pooler:
        migrate = [sys.executable, "-m", "pgnotifyq", "migrate", "--dsn", pooler.dsn]
        both = [subprocess.Popen(migrate, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        told = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted("already up to date" in text for text in told) == [False, True]


APP = """
import trio, pgnotifyq
registry = pgnotifyq.JobRegistry()

@registry.handler("clinging")
async def clinging(payload: dict) -> None:
    with trio.CancelScope(shield=True):
        await trio.sleep(3600)
"""


def test_handler_that_does_not_let_go(dsn: str, pooler: Pooler, tmp_path: Path) -> None:
    """The process ends over it, and its job is given back through the pooler as well."""
    (tmp_path / "an_app.py").write_text(APP)
    process = subprocess.Popen(
        [
            sys.executable, "-m", "pgnotifyq", "worker", "--app", "an_app:registry", "--dsn", pooler.dsn, "--log-format", "json",
            "--shutdown-seconds", "0.1", "--grace-seconds", "0.1",
        ],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ},
    )  # fmt: skip
    with psycopg.connect(dsn, autocommit=True) as session:
        session.execute("select pgnotifyq.enqueue('clinging')")
        assert process.stdout is not None
        for line in process.stdout:
            if json.loads(line)["event"] == "job.claimed":
                break
        process.send_signal(signal.SIGTERM)
        _, complaints = process.communicate(timeout=60)
        assert process.returncode == 5
        assert "could not be released" not in complaints
        assert session.execute("select status, attempts from pgnotifyq.jobs").fetchone() == ("pending", 0)
