"""A bulk that is copied is a plan of several statements. ledger/test_jobs.py has it on a blocking connection; here it is awaited, on trio."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from pgnotifyq.ledger import bulk, enqueue
from pgnotifyq.model.errors import InvalidPayload
from pgnotifyq.model.new_job import NewJob
from pgnotifyq.wire.asking import ask
from pgnotifyq.wire.connection import Connection, connect
from tests.asked import value
from tests.ledger.support import SCHEMA

Link = Connection[Any]
MANY = enqueue.ONE_STATEMENT_JOBS_MAX + 500  # more than one statement carries
BAD = NewJob(job_type="noop", payload={"text": "a\x00b"})


def new(count: int) -> list[NewJob]:
    return [NewJob(job_type="noop")] * count


@pytest.mark.parametrize("count", [3, MANY])
async def test_a_bad_payload_in_a_batch(connection: Link, count: int) -> None:
    """One payload that cannot be stored: none is enqueued, and the caller's transaction is still good."""
    async with connection.transaction():
        with pytest.raises(InvalidPayload):
            await ask(connection, bulk.enqueue_many(SCHEMA, [*new(count), BAD]))
        await ask(connection, enqueue.enqueue(SCHEMA, NewJob(job_type="noop")))
    assert await value(connection, "select count(*) from pgnotifyq.jobs") == 1


async def test_a_bad_payload_late_in_a_batch_that_is_streamed(connection: Link) -> None:
    """It is found when thousands are on their way: none of them is enqueued, and the connection is in order."""
    with pytest.raises(InvalidPayload):
        await ask(connection, bulk.enqueue_many(SCHEMA, [*new(5_000), BAD]))
    assert await value(connection, "select count(*) from pgnotifyq.jobs") == 0
    assert len(await ask(connection, bulk.enqueue_many(SCHEMA, new(MANY)))) == MANY


async def test_a_batch_that_fails_half_way(connection: Link) -> None:
    """All or none: a batch whose copied part went in, and whose last statement PostgreSQL refuses, leaves nothing."""
    await connection.execute("alter table pgnotifyq.jobs add constraint no_keys check (unique_key is null)")
    with pytest.raises(psycopg.errors.CheckViolation):
        await ask(connection, bulk.enqueue_many(SCHEMA, [*new(MANY), NewJob(job_type="noop", unique_key="k")]))
    assert await value(connection, "select count(*) from pgnotifyq.jobs") == 0


@pytest.mark.parametrize("count", [2, MANY])
async def test_a_connection_that_is_not_in_autocommit(dsn: str, connection: Link, count: int) -> None:
    """A batch of any size belongs to the transaction that its owner has implicitly begun: rolled back, it never was."""
    theirs = await connect(dsn, autocommit=False, row_factory=dict_row)  # and the row factory does not matter
    try:
        assert len(await ask(theirs, bulk.enqueue_many(SCHEMA, new(count)))) == count
        await theirs.rollback()
        assert await value(connection, "select count(*) from pgnotifyq.jobs") == 0
        await ask(theirs, bulk.enqueue_many(SCHEMA, new(count)))
        await theirs.commit()
        assert await value(connection, "select count(*) from pgnotifyq.jobs") == count
    finally:
        await theirs.close()
