"""The names that programs outside this repository use: each exists, takes what it says, and does it, on a real database.

Add freely, rename nothing. A test that fails here is a promise broken, not a test to be changed.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import uuid
from typing import TYPE_CHECKING, Any

import attrs
import psycopg
import pytest
import trio

import pgnotifyq
from pgnotifyq.wire.connection import open_connection

if TYPE_CHECKING:
    from pathlib import Path

ORG = uuid.UUID(int=7)


@attrs.frozen
class Resize:
    """A payload."""

    path: str
    width: int


class SendEmail:
    """A handler with a dependency."""

    job_type = "send_email"

    def __init__(self, smtp: list[str]) -> None:
        self._smtp = smtp

    async def handle(self, job: pgnotifyq.Job, ctx: pgnotifyq.JobContext) -> None:
        assert ctx.job is job
        self._smtp.append(str(job.payload["to"]))


@attrs.frozen
class Seen:
    """What the handlers saw."""

    smtp: list[str] = attrs.field(factory=list)
    contexts: list[pgnotifyq.JobContext] = attrs.field(factory=list)
    reasons: list[str] = attrs.field(factory=list)
    started: trio.Event = attrs.field(factory=trio.Event)


def make_registry(seen: Seen) -> pgnotifyq.JobRegistry:
    """Register as the documentation does."""
    registry = pgnotifyq.JobRegistry()

    @registry.handler("resize", max_attempts=5, timeout_seconds=30.0)
    async def resize(payload: Resize, ctx: pgnotifyq.JobContext) -> object:
        seen.contexts.append(ctx)
        async with ctx.transaction() as connection:
            await connection.execute("select 1")
        async with ctx.org.transaction() as connection:
            await connection.execute("select 1")
        await ctx.progress(0.5, "half-way")
        ctx.log.info("resizing")
        assert not ctx.is_cancelled()
        assert ctx.cancel_reason is None
        return {"path": payload.path, "width": payload.width}

    @registry.handler("snoozes")
    async def snoozes(payload: dict[str, Any], ctx: pgnotifyq.JobContext) -> object:
        return pgnotifyq.Snooze(seconds=60)

    @registry.handler("retries")
    async def retries(payload: dict[str, Any], ctx: pgnotifyq.JobContext) -> object:
        return pgnotifyq.Retry(seconds=None, reason="later")

    @registry.handler("discards")
    async def discards(payload: dict[str, Any], ctx: pgnotifyq.JobContext) -> object:
        return pgnotifyq.Discard(reason="never")

    @registry.handler("waits", cooperative=True)
    async def waits(payload: dict[str, Any], ctx: pgnotifyq.JobContext) -> None:
        seen.started.set()
        reason = await ctx.cancelled()
        seen.reasons.append(reason.kind.value)

    registry.register(SendEmail(seen.smtp))
    return registry


async def test_python(dsn: str) -> None:
    """The client, the worker in a nursery, handlers, their contexts and what they may return."""
    seen = Seen()
    async with trio.open_nursery() as nursery, pgnotifyq.open_client(dsn) as client:
        start = functools.partial(pgnotifyq.run_worker, make_registry(seen), dsn, queues=["images"], concurrency=50)
        worker: pgnotifyq.WorkerHandle = await nursery.start(start)

        job_id = await client.enqueue("resize", Resize("a.png", 64), org_id=ORG, queue="images", priority=5)
        job = await client.wait(job_id, timeout_seconds=30)
        assert (job.status, job.result) == ("completed", {"path": "a.png", "width": 64})
        assert (job.org_id, job.queue_name, job.priority) == (ORG, "images", 5)
        (context,) = seen.contexts
        assert (context.job.id, context.attempt, context.org.id) == (job_id, 1, ORG)
        assert isinstance(context.execution_id, uuid.UUID)

        mails = [{"job_type": "send_email", "payload": {"to": to}, "queue": "images"} for to in ("ann", "bob")]
        for mail in await client.enqueue_many(mails):
            assert (await client.wait(mail, timeout_seconds=30)).status == "completed"
        assert sorted(seen.smtp) == ["ann", "bob"]

        long = await client.enqueue("waits", queue="images")
        await seen.started.wait()
        assert await client.cancel(long, wait_seconds=5) == "cancelled"
        assert seen.reasons == ["cancelled"]

        discarded = await client.enqueue("discards", queue="images")
        with pytest.raises(pgnotifyq.JobDead, match="never"):
            await client.wait(discarded, timeout_seconds=30)
        for job_type, label in (("snoozes", "scheduled"), ("retries", "retrying")):
            later = await client.enqueue(job_type, queue="images")
            with trio.fail_after(30):
                while (await client.explain(later)).label != label:
                    await trio.sleep(0.01)

        async with open_connection(dsn) as conn, conn.transaction(force_rollback=True):
            undone = await client.enqueue("resize", {"path": "b.png", "width": 1}, connection=conn)
        with pytest.raises(pgnotifyq.JobNotFound):
            await client.get(undone)
        with psycopg.connect(dsn) as blocking:
            kept = await client.enqueue("resize", {"path": "c.png", "width": 1}, connection=blocking)
        assert (await client.get(kept)).status == "pending"
        worker.drain()


def test_sql(dsn: str) -> None:
    """The functions by their arguments' names, the update, and the relations and columns to look at."""
    with psycopg.connect(dsn, autocommit=True) as session:

        def one(statement: str, *parameters: object) -> Any:
            row = session.execute(statement.encode(), parameters).fetchone()
            assert row is not None
            return row[0]

        job_id = one(
            'select pgnotifyq.enqueue(job_type => \'resize\', payload => \'{"path": "a.png", "width": 64}\', org_id => %s,'
            " queue_name => 'images', priority => 5, scheduled_at => now() + interval '1 hour', max_attempts => 5)",
            ORG,
        )
        assert isinstance(job_id, uuid.UUID)
        row = session.execute("select id, status, attempts, error_message from pgnotifyq.jobs").fetchone()
        assert row == (job_id, "pending", 0, None)
        assert one("select pgnotifyq.cancel(job_id => %s)", job_id) == "cancelled"
        assert one("select pgnotifyq.cancel(job_id => %s)", job_id) == "finished"
        assert one("select pgnotifyq.cancel(job_id => %s)", uuid.UUID(int=1)) == "unknown"

        running = one("select pgnotifyq.enqueue(job_type => 'x')")
        session.execute("select from pgnotifyq.claim(%s, '{default}', 1, 60)", (uuid.uuid4(),))
        assert one("select pgnotifyq.cancel(job_id => %s)", running) == "stopping"
        updated = one("select pgnotifyq.enqueue(job_type => 'x')")
        session.execute("update pgnotifyq.jobs set status = 'cancelled' where id = %s", (updated,))
        assert one("select status from pgnotifyq.jobs where id = %s", updated) == "cancelled"
        for table in ("job_executions", "dead_letter_jobs", "worker_heartbeats"):
            assert session.execute(f"select * from pgnotifyq.{table}".encode()).fetchall() == []


APP = """
import pgnotifyq
registry = pgnotifyq.JobRegistry()

@registry.handler("resize")
async def resize(payload: dict) -> dict:
    return payload
"""


def test_commands(blank_dsn: str, tmp_path: Path) -> None:
    """Every command, with the options that are written down, and --json on each that prints data."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").touch()
    (tmp_path / "package" / "module.py").write_text(APP)
    environment = {**os.environ, "PGNOTIFYQ_DSN": blank_dsn}

    def run(*arguments: str) -> Any:
        command = [sys.executable, "-m", "pgnotifyq", *arguments]
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
        assert ran.returncode in {0, 1}, ran.stderr
        return json.loads(ran.stdout) if "--json" in arguments else ran.stdout.strip()

    run("migrate")
    job_id = run("enqueue", "resize", '{"path": "a.png", "width": 64}', "--queue", "images")
    assert [job["id"] for job in run("jobs", "--json")] == [job_id]
    options = [
        "--app", "package.module:registry", "--queue", "images", "--queue", "default", "--concurrency", "50",
        "--lease-seconds", "60", "--heartbeat-seconds", "20", "--shutdown-seconds", "30",
    ]  # fmt: skip
    worker = subprocess.Popen(
        [sys.executable, "-m", "pgnotifyq", "worker", *options],
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert worker.stdout is not None
    assert any("job.completed" in line and job_id in line for line in worker.stdout)
    assert run("workers", "--json")[0]["queues"] == ["images", "default"]
    worker.send_signal(signal.SIGTERM)
    worker.communicate(timeout=60)
    assert worker.returncode == 0

    shown = run("show", job_id, "--json")
    assert (shown["status"], shown["result"]) == ("completed", {"path": "a.png", "width": 64})
    assert run("cancel", job_id, "--json")["outcome"] == "finished"
    assert run("enqueue", "resize", "--json")["id"]
    assert run("dead", "--json") == []
    assert run("requeue", "--all", "--json")["requeued"] == 0
    assert {row["queue_name"] for row in run("stats", "--json")} == {"images", "default"}
    assert {finding["verdict"] for finding in run("doctor", "--json")} <= {"ok", "warn", "fail"}
    assert "PGNOTIFYQ_DSN" in run("demo", "--help")
