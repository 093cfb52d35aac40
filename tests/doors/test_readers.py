"""One row that Python cannot hold hides no other: it is given with the value replaced by something that says so."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pgnotifyq.doors.client import open_client
from pgnotifyq.ledger import end, look
from pgnotifyq.ledger.columns import time_from_text
from pgnotifyq.migrating import migrate
from pgnotifyq.model.job import JobId
from pgnotifyq.model.outcome import Outcome, SettleKind
from pgnotifyq.model.payload import Undecodable
from pgnotifyq.wire.asking import ask
from pgnotifyq.wire.connection import Connection, open_connection
from tests.asked import claim, enqueue, fetch, value
from tests.cli.conftest import commands, run
from tests.ledger.support import ANN, SCHEMA, lease

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from tests.cli.conftest import Ran

__all__ = ["commands", "run"]
Link = Connection[Any]
LAST, FIRST = datetime.max.replace(tzinfo=UTC), datetime.min.replace(tzinfo=UTC)
TIMES = {"infinity": LAST, "-infinity": FIRST, "294276-12-31 23:59:59+00": LAST, "10000-01-01 00:00+00": LAST,
         "9999-12-31 23:59:59-12": LAST, "4713-01-01 00:00+00 BC": FIRST, "0001-01-01 00:00+14": FIRST}  # fmt: skip
COLUMNS = {
    "scheduled_at": {},
    "created_at": {},
    "started_at": {},
    "completed_at": {"status": "completed"},
    "lease_expires_at": {"status": "running", "locked_by": str(ANN), "current_execution_id": str(ANN)},
}
DEEP = "[" * 1500 + "]" * 1500
DOCUMENTS = {"a number": '{"a": 1e6000}', "depth": DEEP, "depth of objects": '{"a":' * 1500 + "1" + "}" * 1500,
             "a small number": "1e-16000", "size": json.dumps("x" * 17_000_000)}  # fmt: skip
HISTORIES = ["null", "{}", "[1]", '[{"id": "x"}]', DEEP, '["infinity"]', '{"a": 1e6000}',
             ('[{"id": "00000000-0000-0000-0000-000000000001", "attempt": 1, "worker_id": null, "outcome": "lost",'
              ' "started_at": "-infinity", "ended_at": "12345-01-01T00:00:00+00:00", "error_message": null}]')]  # fmt: skip


async def insert(connection: Link, **fields: object) -> JobId:
    """Insert a job by hand."""
    values = {"job_type": "odd", **fields}
    names, places = ", ".join(values), ", ".join(["%s"] * len(values))
    statement = f"insert into pgnotifyq.jobs ({names}) values ({places}) returning id"
    return JobId(await value(connection, statement, *values.values()))


async def bury(connection: Link, **fields: object) -> JobId:
    """Insert a dead letter by hand."""
    values = {
        "id": uuid.uuid4(), "org_id": uuid.UUID(int=0), "queue_name": "q", "job_type": "odd", "payload": "{}", "priority": 0,
        "scheduled_at": "now", "attempts": 1, "max_attempts": 1, "created_at": "now", "reason": "lost", "history": "[]",
        "died_at": "now", **fields,
    }  # fmt: skip
    names, places = ", ".join(values), ", ".join(["%s"] * len(values))
    statement = f"insert into pgnotifyq.dead_letter_jobs ({names}) values ({places}) returning id"
    return JobId(await value(connection, statement, *values.values()))


@pytest.mark.parametrize("column", COLUMNS)
async def test_times_beyond_pythons(connection: Link, dsn: str, column: str) -> None:
    """A time that Python cannot say is the last or the first it can; lists, labels, sums and reasons are there."""
    odd = {await insert(connection, **{**COLUMNS[column], column: time}): told for time, told in TIMES.items()}
    good = await enqueue(connection)
    async with open_client(dsn) as client:
        listed = {job.id: job for job in await client.jobs()}
        assert listed.keys() == {*odd, good}
        assert {job_id: getattr(listed[job_id], column) for job_id in odd} == odd
        for job_id, time in odd.items():
            assert getattr(await client.get(job_id), column) == time
            await client.explain(job_id)
            await client.history(job_id)
        if column == "completed_at":
            for job_id, time in odd.items():
                assert (await client.wait(job_id)).completed_at == time
        await client.stats()
        await client.workers()


@pytest.mark.parametrize("kind", DOCUMENTS)
async def test_documents_beyond_pythons(connection: Link, dsn: str, kind: str) -> None:
    """A payload or result that Python cannot hold is typed, and says why; the other jobs and letters are read."""
    job_id = await insert(connection, payload=DOCUMENTS[kind], result=DOCUMENTS[kind], status="completed", completed_at="now")
    letter_id = await bury(connection, payload=DOCUMENTS[kind])
    good, good_letter = await enqueue(connection), await bury(connection)
    async with open_client(dsn) as client:
        listed = {job.id: job for job in await client.jobs()}
        letters = {letter.id: letter for letter in await client.dead()}
    assert listed.keys() == {job_id, good}
    assert letters.keys() == {letter_id, good_letter}
    if kind == "a small number":
        assert listed[job_id].payload == 0
        return
    assert isinstance(listed[job_id].payload, Undecodable)
    assert isinstance(letters[letter_id].payload, Undecodable)
    assert isinstance(listed[job_id].result, Undecodable) or "more than is read" in listed[job_id].result


async def test_histories_that_nobody_wrote(connection: Link, dsn: str) -> None:
    """Dead letters with a history of any shape are listed; an entry that is none says so."""
    odd = {await bury(connection, history=history): history for history in HISTORIES}
    async with open_client(dsn) as client:
        letters = {letter.id: letter for letter in await client.dead()}
    assert letters.keys() == odd.keys()
    for job_id, history in odd.items():
        (entry,) = letters[job_id].history
        if "outcome" in history:
            assert (entry.started_at, entry.ended_at) == (FIRST, LAST)
        else:
            assert entry.outcome == "undecodable"


async def test_executions_with_odd_times(connection: Link, dsn: str) -> None:
    """The history of a job is read whatever times it holds."""
    job_id = await enqueue(connection)
    for time in TIMES:
        await connection.execute(
            "insert into pgnotifyq.job_executions (id, job_id, org_id, attempt, outcome, started_at, ended_at, error_message)"
            " values (gen_random_uuid(), %s, gen_random_uuid(), 1, 'lost', %s, %s, repeat('x', 100000))",
            (job_id, time, time),
        )
    async with open_client(dsn) as client:
        found = await client.history(job_id)
    assert sorted(entry.started_at for entry in found) == sorted(TIMES.values())
    assert {len(entry.error_message or "") for entry in found} == {10_000}


async def test_progress_is_what_was_stored(connection: Link, dsn: str) -> None:
    """0.3 is shown as 0.3."""
    job_id = await insert(connection, progress=0.3)
    async with open_client(dsn) as client:
        assert (await client.get(job_id)).progress == 0.3


@pytest.mark.parametrize("text", ["", "infinitely", "2020", "x-1", None, 3])
def test_texts_that_are_no_times(text: Any) -> None:
    """A text is a time, or is refused."""
    with pytest.raises((ValueError, TypeError, AttributeError)):
        time_from_text(text)


async def test_commands_beside_odd_rows(connection: Link, run: Callable[..., Ran]) -> None:
    """Each command prints what there is."""
    odd = [await insert(connection, **{**COLUMNS[column], column: time}) for column in COLUMNS for time in TIMES]
    odd += [await insert(connection, payload=document) for document in DOCUMENTS.values()]
    letters = [await bury(connection, payload=document, history=DEEP, died_at="infinity") for document in DOCUMENTS.values()]
    for command in (
        ["jobs", "--limit", "100"],
        ["jobs", "--limit", "100", "--json"],
        ["dead", "--json"],
        ["stats", "--json"],
        ["show", str(odd[0])],
        ["show", str(odd[-1]), "--json"],
        ["show", str(letters[0]), "--json"],
    ):
        ran = run(*command)
        assert (ran.code, ran.err) == (0, ""), command
        if "--json" in command:
            json.loads(ran.out, parse_constant=pytest.fail)  # Infinity is not JSON


@pytest.fixture(params=["LATIN1", "SQL_ASCII"])
def odd_dsn(server_dsn: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """Give a blank database in an encoding that lacks most characters, or knows of none."""
    name = f"pgnotifyq_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server_dsn, autocommit=True) as server:
        create = sql.SQL("create database {} template template0 encoding {} locale 'C'")
        server.execute(create.format(sql.Identifier(name), sql.Literal(request.param)))
        try:
            yield make_conninfo(server_dsn, dbname=name)
        finally:
            server.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


@pytest.fixture
async def odd(odd_dsn: str) -> AsyncIterator[Link]:
    """Give a connection to it, migrated."""
    async with open_connection(odd_dsn) as connection:
        await migrate(connection)
        yield connection


async def test_texts_that_the_encoding_lacks(odd: Link) -> None:
    """An outcome's message is stored with what the encoding lacks escaped, and its neighbour's as it is."""
    first, second = await enqueue(odd), await enqueue(odd)
    messages = {first: "\u2192 \U0001f4a5", second: "plain"}
    settlements = [
        (lease(job), Outcome(kind=SettleKind.RETRY, name="failed", error_message=messages[job.id])) for job in await claim(odd, 2)
    ]
    assert await ask(odd, end.settle_surely(SCHEMA, worker_id=ANN, settlements=settlements)) == []
    found = {job.id: job.error_message for job in await ask(odd, look.list_jobs(SCHEMA))}
    assert found[second] == "plain"
    assert found[first] in {"\\u2192 \\U0001f4a5", "\u2192 \U0001f4a5"}


@pytest.mark.parametrize("odd_dsn", ["SQL_ASCII"], indirect=True)
async def test_bytes_that_are_no_text(odd: Link) -> None:
    """On a server that stores bytes and calls them text they are shown, escaped where they are none."""
    job_id = await enqueue(odd)
    await odd.execute("set client_encoding = 'SQL_ASCII'")
    await odd.execute(b"update pgnotifyq.jobs set error_message = E'\\xff \\xc3\\xa9', unique_key = E'\\xfe'")
    (job,) = await ask(odd, look.list_jobs(SCHEMA))
    assert (job.id, job.error_message, job.unique_key) == (job_id, "\\xff é", "\\xfe")
    assert await fetch(odd, "select 1") == [(1,)]
