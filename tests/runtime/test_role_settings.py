"""A database with settings of its own: everything that a client says, and everything that becomes of a job, goes on."""

from __future__ import annotations

import uuid
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import trio
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgnotifyq import (
    CancelOutcome,
    DatabaseUnreachable,
    EventName,
    InvalidPayload,
    JobContext,
    JobDead,
    JobRegistry,
    RetryPolicy,
    Snooze,
    open_client,
)
from pgnotifyq.ledger.enqueue import ONE_STATEMENT_JOBS_MAX
from pgnotifyq.migrating import migrate
from pgnotifyq.wire.connection import open_connection
from tests.asked import claim as claim_as
from tests.ledger.support import BOB
from tests.runtime.support import PATIENCE_SECONDS, Workplace, open_workplace

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from pgnotifyq import Client

# Each was met, or is of the kind: it changes how values are read or written, how statements behave, or how long they may take.
SETTINGS = [
    "client_encoding = 'latin1'",
    "DateStyle = 'SQL, DMY'",
    "DateStyle = 'German'",
    "IntervalStyle = 'sql_standard'",
    "TimeZone = 'America/St_Johns'",
    "TimeZone = '<+0330>-03:30'",
    "bytea_output = 'escape'",
    "extra_float_digits = -10",
    "array_nulls = off",
    "standard_conforming_strings = off",
    "quote_all_identifiers = on",
    "transform_null_equals = on",
    "search_path = ''",
    "search_path = pgnotifyq, pg_catalog",
    "default_transaction_isolation = 'serializable'",
    "default_transaction_isolation = 'repeatable read'",
    "default_transaction_deferrable = on",
    "row_security = off",
    "synchronous_commit = off",
    "plan_cache_mode = 'force_custom_plan'",
    "plpgsql.variable_conflict = 'use_variable'",
    "plpgsql.extra_errors = 'all'",
    "client_min_messages = 'debug5'",
    "jit_above_cost = 0",
    "idle_in_transaction_session_timeout = '10s'",
]
TEXT = "NULL \\ \" ' {ä,é} NULL"
WIDE = "日本 ✗ é"
LATER = datetime(2031, 3, 30, 2, 30, tzinfo=UTC)


def handlers() -> JobRegistry:
    """Return handlers for every way in which a job can go."""
    registry = JobRegistry()

    @registry.handler("echo")
    async def echo(payload: dict[str, Any]) -> Any:
        return payload

    @registry.handler("fails", max_attempts=2, retry=RetryPolicy(base_seconds=0.001))
    async def fails(payload: dict[str, Any]) -> None:
        raise ValueError(payload["text"])

    @registry.handler("snoozes")
    async def snoozes(payload: dict[str, Any], ctx: JobContext) -> Any:
        if not seen:
            seen.append(ctx.job.id)
            return Snooze(0.001)
        return "NULL"

    @registry.handler("stays")
    async def stays(payload: dict[str, Any], ctx: JobContext) -> None:
        await ctx.progress(0.3, payload["text"])
        await trio.sleep_forever()

    @registry.handler("writes")
    async def writes(payload: dict[str, Any], ctx: JobContext) -> None:
        async with ctx.transaction(complete=True, result=[None, payload["text"]]) as connection:
            await connection.execute("select 1")

    @registry.handler("confined")
    async def confined(payload: dict[str, Any], ctx: JobContext) -> Any:
        async with ctx.org.transaction() as connection:
            row = await (await connection.execute("select current_user")).fetchone()
            return None if row is None else row[0]

    seen: list[Any] = []
    return registry


async def live(place: Workplace, dsn: str, text: str) -> None:
    """Have every verb said, and every way gone, with a text in all places where one can be."""
    lost = await place.enqueue("echo")
    await claim_as(place.connection, worker=BOB)
    await place.connection.execute(
        "update pgnotifyq.jobs set lease_expires_at = clock_timestamp() - interval '1 s' where id = %s", (lost,)
    )
    worker = await place.start(handlers(), dsn=dsn)
    async with open_client(dsn) as client:
        with trio.fail_after(PATIENCE_SECONDS):
            await say_everything(client, text)
            assert (await client.wait(lost)).attempts == 2
    assert [event for event in worker.log.told if event[0] in {EventName.DATABASE_LOST, EventName.LISTENER_LOST}] == []
    await worker.leave()


async def say_everything(client: Client, text: str) -> None:
    """Say every verb of a client, and look at what comes of it."""

    async def run(job_type: str, **payload: object) -> Any:
        return (await client.wait(await client.enqueue(job_type, {"text": text, **payload}))).result

    assert await run("echo") == {"text": text}
    assert await run("snoozes") == "NULL"
    assert await run("writes") == [None, text]
    assert isinstance(await run("confined"), str)

    later = await client.enqueue("echo", {"text": text}, scheduled_at=LATER)
    job = await client.get(later)
    assert (job.scheduled_at, job.payload) == (LATER, {"text": text})
    assert await client.cancel(later, why=text) is CancelOutcome.CANCELLED
    assert (await client.get(later)).error_message == text

    stays = await client.enqueue("stays", {"text": text})
    while (job := await client.get(stays)).progress is None:
        await trio.sleep(0.01)
    assert (job.progress, job.progress_message) == (0.3, text)
    assert await client.cancel(stays, wait_seconds=PATIENCE_SECONDS, why="NULL") is CancelOutcome.CANCELLED

    few = [{"job_type": "echo", "payload": {"text": text}, "scheduled_at": LATER if n else None} for n in range(3)]
    assert [(await client.get(job_id)).job_type for job_id in await client.enqueue_many(few)] == ["echo"] * 3
    keyed = [{**each, "unique_key": f"NULL {n % 2}"} for n, each in enumerate(few)]
    assert len(set(await client.enqueue_many(keyed))) == 2
    assert len(await client.enqueue_many([few[1]] * (ONE_STATEMENT_JOBS_MAX + 1))) == ONE_STATEMENT_JOBS_MAX + 1
    async with trio.open_nursery() as nursery:
        for _ in range(8):  # at once, and all want the same
            nursery.start_soon(partial(client.enqueue, "echo", {"text": text}, unique_key="same", delay_seconds=600.0))

    dies = await client.enqueue("fails", {"text": text}, max_attempts=2)
    with pytest.raises(JobDead) as dead:
        await client.wait(dies)
    assert text in str(dead.value.dead_letter.error_message)
    assert [attempt.attempt for attempt in (await client.get_dead(dies)).history] == [1, 2]
    assert [letter.id for letter in await client.dead()] == [dies]
    await client.requeue(dies)
    assert [attempt.outcome for attempt in await client.history(dies)][:2] == ["failed", "failed"]

    assert len(await client.jobs(limit=20)) == 20
    assert [queue.queue_name for queue in await client.stats()] == ["default"]
    assert [row.is_alive for row in await client.workers() if row.worker_id != BOB] == [True]
    assert (await client.explain(later)).label == "cancelled"


@pytest.fixture
def given(dsn: str) -> Iterator[Any]:
    """A function that gives the database a setting, for sessions to come; and the database back as it was."""
    name = conninfo_to_dict(dsn)["dbname"]
    with psycopg.connect(dsn, autocommit=True) as session:
        yield lambda setting: session.execute(f"alter database {name} set {setting}".encode())
        session.execute(f"alter database {name} reset all".encode())


@pytest.mark.parametrize("setting", SETTINGS)
async def test_setting_of_the_database(place: Workplace, given: Any, setting: str) -> None:
    """Every verb is understood, and every job ends as it should."""
    given(setting)
    await live(place, place.dsn, WIDE + TEXT)


async def test_sessions_that_may_not_rest(place: Workplace, given: Any) -> None:
    """A worker's outlast an idle_session_timeout, and bear one for locks and statements: its deadlines are its own."""
    given("idle_session_timeout = '100ms'")
    given("statement_timeout = '2s'")
    given("lock_timeout = '1ms'")
    worker = await place.start(handlers())
    await place.until_asleep(worker)
    await place.until(
        "bool_and(state_change < clock_timestamp() - interval '0.5 s') from pg_stat_activity where datname = current_database()"
        " and application_name in ('pgnotifyq claimer', 'pgnotifyq listener')"
    )
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=await place.enqueue("echo"))
    assert not worker.log.find(EventName.LISTENER_LOST) and not worker.log.find(EventName.DATABASE_LOST)


async def test_client_whose_sessions_may_not_rest(place: Workplace, given: Any) -> None:
    """Its own settings hold for it; a session that the server has ended meanwhile is not used again."""
    given("idle_session_timeout = '50ms'")
    async with open_client(place.dsn) as client:
        for _ in range(3):
            await client.enqueue("echo")
            await place.until(
                "not exists (select from pg_stat_activity where application_name = 'pgnotifyq client'"
                " and datname = current_database())"
            )


async def test_database_that_is_read_only_for_a_while(place: Workplace, given: Any) -> None:
    """As providers make it whose disk is full: nobody overrules it, everybody is back when it is over."""
    worker = await place.start(handlers())
    async with open_client(place.dsn) as client:
        await client.wait(await client.enqueue("echo"))
        given("default_transaction_read_only = on")
        await place.connection.execute(
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity"
            " where application_name like 'pgnotifyq%%' and datname = current_database()"
        )
        await worker.log.wait(EventName.DATABASE_LOST)
        with pytest.raises(DatabaseUnreachable, match="default_transaction_read_only"):
            await client.enqueue("echo")
        job_id = await place.enqueue("echo")
        given("default_transaction_read_only = off")
        await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
        await client.wait(await client.enqueue("echo"))


@asynccontextmanager
async def database_in(server_dsn: str, encoding: str) -> AsyncIterator[Workplace]:
    """A database in another encoding than UTF-8, migrated by ourselves."""
    name = f"pgnotifyq_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server_dsn, autocommit=True) as server:
        server.execute(f"create database {name} template template0 encoding '{encoding}' locale 'C'".encode())
        try:
            dsn = make_conninfo(server_dsn, dbname=name)
            async with open_connection(dsn) as connection:
                await migrate(connection)
                async with open_workplace(dsn, connection) as place:
                    yield place
        finally:
            server.execute(f"drop database {name} with (force)".encode())


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII", "EUC_JP"])
async def test_database_in_another_encoding(server_dsn: str, encoding: str) -> None:
    """Workers and clients work; what it can hold arrives, and what it cannot is its own job's error."""
    async with database_in(server_dsn, encoding) as place:
        await live(place, place.dsn, TEXT.replace("ä", "").replace("é", "") if encoding == "EUC_JP" else TEXT)
        worker = await place.start(handlers())
        async with open_client(place.dsn) as client:
            if encoding == "SQL_ASCII":  # bytes as they come
                assert (await client.get(await client.enqueue("echo", {"text": WIDE}))).payload == {"text": WIDE}
            else:
                with pytest.raises(InvalidPayload, match="encoding"):
                    await client.enqueue("echo", {"text": "☃"})
            await client.wait(await client.enqueue("echo"))
        assert not worker.ended.is_set()


async def test_callers_own_connection_in_another_encoding(place: Workplace) -> None:
    """A text that it lacks is refused with a typed error; the transaction goes on."""
    dsn = make_conninfo(place.dsn, client_encoding="latin1")
    async with open_client(place.dsn) as client:
        with psycopg.connect(dsn) as session:
            with pytest.raises(InvalidPayload, match="client_encoding=utf8"):
                await client.enqueue("echo", {"text": WIDE}, connection=session)
            job_id = await client.enqueue("echo", {"text": "é"}, connection=session)
        assert (await client.get(job_id)).payload == {"text": "é"}
