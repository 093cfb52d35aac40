"""What handlers say while they run: it is published a few times a second, and kept with the attempt however that ends."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import pytest
import trio
from psycopg.types.json import Jsonb

import pgnotifyq
from pgnotifyq import EventName, JobRegistry, LogLine
from pgnotifyq.ledger import watching
from pgnotifyq.model.job import JobId
from pgnotifyq.runtime.said import LINE_CHARS_MAX, Lines
from pgnotifyq.testing import run_job
from pgnotifyq.wire.asking import ask
from tests.asked import value
from tests.ledger.support import SCHEMA
from tests.runtime.apps import says
from tests.runtime.support import ROOT, Workplace

KINDS = ["on_trio", "async_for", "on_asyncio", "in_thread", "in_process"]


async def enqueue(place: Workplace, job_type: str, **payload: Any) -> JobId:
    return await place.enqueue(job_type, payload=Jsonb(payload))


async def logs(place: Workplace, job_id: JobId) -> list[LogLine]:
    return await ask(place.connection, watching.logs(SCHEMA, job_id))


@pytest.mark.parametrize("kind", KINDS)
async def test_a_handler_that_tracks(place: Workplace, kind: str) -> None:
    """Of each kind: its progress ends at 1.0 however fast it was, its line is kept, and few statements were sent."""
    worker = await place.start(says.registry)
    job_id = await enqueue(place, kind, count=5000)
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    row = await place.job(job_id)
    assert (row["progress"], row["progress_message"], row["result"]) == (1.0, "5000 of 5000", 4999)
    assert [(line.attempt, line.level, line.text) for line in await logs(place, job_id)] == [(1, "info", "done 4999")]


async def test_progress_said_very_often(place: Workplace) -> None:
    """A thousand calls become a few statements; the last that was said is what stands in the end."""
    await place.start(says.registry)
    await place.connection.execute(
        "create table said (fraction real); create function note_said() returns trigger language plpgsql as $$"
        " begin insert into said values (new.progress); return null; end $$;"
        " create trigger said after update of progress on pgnotifyq.jobs for each row"
        " when (new.progress is distinct from old.progress) execute function note_said()"
    )
    try:
        job_id = await enqueue(place, "reports", times=1000)
        await place.until("progress_message = 'step 999' from pgnotifyq.jobs where id = %s", job_id)
        # A statement takes a quarter of a second's turn; a thousand calls take far less than ten of those.
        assert await value(place.connection, "select count(*) from said") < 100
    finally:
        await place.connection.execute("drop function note_said() cascade; drop table said")


async def test_a_handler_that_fails(place: Workplace) -> None:
    """Both attempts' lines are kept, the traceback too, though the job is a dead letter in the end."""
    worker = await place.start(says.registry)
    job_id = await enqueue(place, "fails")
    await worker.log.wait(EventName.JOB_RETRIED, job_id=job_id)
    await place.connection.execute("update pgnotifyq.jobs set scheduled_at = now() where id = %s", (job_id,))
    await worker.log.wait(EventName.JOB_DEAD, job_id=job_id)
    lines = await logs(place, job_id)
    assert [(line.attempt, line.level) for line in lines] == [(1, "warning"), (1, "error"), (2, "warning"), (2, "error")]
    assert "ValueError: invalid" in lines[1].text and "Traceback" in lines[1].text


async def test_a_handler_that_takes_too_long(place: Workplace) -> None:
    """Its lines are kept."""
    worker = await place.start(says.registry)
    job_id = await enqueue(place, "late")
    await worker.log.wait(EventName.JOB_DEAD, job_id=job_id)
    assert [line.text for line in await logs(place, job_id)] == ["before"]


async def test_a_handler_that_logs_much(place: Workplace) -> None:
    """The first lines and the last are kept, in 64 KiB, with how many lines are gone in between."""
    worker = await place.start(says.registry)
    job_id = await enqueue(place, "talks", lines=3000, chars=100)
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    lines = await logs(place, job_id)
    assert lines[0].text.startswith("line 0 ") and lines[-1].text.startswith("line 2999 ")
    (gap,) = [line for line in lines if line.left_out]
    assert len(lines) - 1 + gap.left_out == 3000
    size = await value(place.connection, "select octet_length(head) + octet_length(tail) from pgnotifyq.job_logs")
    assert 50_000 < size <= 65_536


async def test_while_it_runs(place: Workplace) -> None:
    """Lines are written while the handler runs, and stay if its worker is killed."""
    command = [sys.executable, "-m", "tests.runtime.apps.says", place.dsn]
    process = await trio.lowlevel.open_process(command, cwd=ROOT)
    job_id = await enqueue(place, "holds")
    await place.until("exists (select from pgnotifyq.job_logs where job_id = %s)", job_id)
    process.kill()
    await process.wait()
    assert [line.text for line in await logs(place, job_id)] == ["it is running"]


async def test_handlers_that_say_nothing(place: Workplace) -> None:
    """Cost nothing: there is no connection for what they might say, and no row."""
    worker = await place.start(says.registry)
    for _ in range(3):
        job_id = await enqueue(place, "silent")
        await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    connected = "exists (select from pg_stat_activity where datname = current_database() and application_name = %s)"
    assert not await value(place.connection, f"select {connected}", "pgnotifyq keeper")
    assert await value(place.connection, "select pg_relation_size('pgnotifyq.job_logs')") == 0
    await enqueue(place, "talks", lines=1)
    await place.until(connected, "pgnotifyq keeper")


class _Shown(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


async def test_lines_that_the_logs_set_up_hides(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Info is kept whatever logging shows, debug where it shows; a record still says who logged."""
    registry = JobRegistry()

    @registry.handler("logs")
    async def logs_lines(_: dict[str, Any], ctx: pgnotifyq.JobContext) -> None:
        ctx.log.debug("hidden")
        ctx.log.info("kept %s", "anyhow")
        ctx.log.info("does not fit %d", "x")
        ctx.log.warning("nul \x00 half \ud800")

    # pytest shall not have the record: it sends what it captures to another process, and half of a surrogate cannot be sent.
    shown = _Shown()
    logger = logging.getLogger("pgnotifyq.job")
    monkeypatch.setattr(logger, "handlers", [shown])
    monkeypatch.setattr(logger, "propagate", False)
    logger.setLevel(logging.WARNING)
    try:
        worker = await place.start(registry)
        job_id = await enqueue(place, "logs")
        await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    finally:
        logger.setLevel(logging.NOTSET)
    texts = [line.text for line in await logs(place, job_id)]
    assert texts == ["kept anyhow", "does not fit %d (its arguments do not fit: TypeError)", "nul \x00 half \ud800"]
    assert [record.funcName for record in shown.records] == ["logs_lines"]


def test_lines_in_memory() -> None:
    """A line is cut; of very many, memory holds 64 KiB, and what is taken is what is new."""
    lines = Lines()
    assert lines.take() is None
    lines.add(1.0, "info", "x" * 100_000)
    head, tail, left_out = lines.take() or (None, None, None)
    assert head is not None and (tail, left_out) == (None, 0)
    ((_, _, text),) = json.loads(head)
    assert len(text) < LINE_CHARS_MAX + 100
    assert lines.take() is None
    for n in range(100_000):
        lines.add(1.0, "info", f"é {n}")
    head, tail, left_out = lines.take() or (None, None, None)
    assert head is not None and tail is not None and left_out is not None
    kept = [*json.loads(head), *json.loads(tail)]
    assert len(kept) + left_out == 100_001
    assert len(head) <= 32_768 and len(tail) <= 32_768
    lines.give_back()
    assert lines.take() == (head, tail, left_out)


async def test_run_job_is_told(place: Workplace) -> None:
    """Of a handler under test, what it tracks is in what it reported."""
    ran = await run_job(says.registry, "on_trio", {"count": 3})
    assert (ran.progress[0], ran.progress[-1]) == ((0.0, "0 of 3"), (1.0, "3 of 3"))


async def test_track_of_other_things() -> None:
    """Without a length only the number is told; with a message that goes before it; a wrong `for` is refused."""
    told: list[Any] = []
    registry = JobRegistry()

    @registry.handler("tracks")
    async def tracks(_: dict[str, Any], ctx: pgnotifyq.JobContext) -> None:
        for _each in ctx.track(iter(list[str]()), message="files"):
            pass
        for _each in ctx.track(x for x in "ab"):
            await trio.lowlevel.checkpoint()
        with pytest.raises(TypeError, match="async for"):
            list(ctx.track(says.numbers(1)))
        told.extend([each async for each in ctx.track([1, 2], total=1)])

    ran = await run_job(registry, "tracks", {})
    assert ran.progress[:2] == ((None, "files: 0"), (1.0, "files: 0"))
    assert (None, "0") in ran.progress and (1.0, "2") in ran.progress
    assert told == [1, 2]
    assert ran.progress[-1] == (1.0, "2 of 2")
