"""`ctx.org` in the tests of a program: given by the test, or asked of the test's database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import psycopg
import pytest

import pgnotifyq.sync
from pgnotifyq import CredentialKeys, JobContext, JobRegistry, org
from pgnotifyq.ledger import organisation
from pgnotifyq.model.credentials import new_key
from pgnotifyq.testing import NoDatabaseInTest, drain, run_job
from pgnotifyq.wire.asking import ask, ask_blocking
from tests.ledger.support import SCHEMA

if TYPE_CHECKING:
    from pgnotifyq.wire.connection import Connection

KEYS = CredentialKeys([new_key()])
registry = JobRegistry(credentials=KEYS)


@attrs.frozen
class Settings:
    max_mb: int = 10


@registry.handler("asks")
async def asks(payload: dict[str, Any], ctx: JobContext) -> list[Any]:
    return [(await ctx.org.config(Settings)).max_mb, await ctx.org.credentials.get("bank")]


@registry.handler("blocks")
def blocks(payload: dict[str, Any], ctx: JobContext) -> list[Any]:
    ctx.org.blocking(ctx.org.audit("asked"))
    made = ctx.org.blocking(ctx.org.enqueue("child"))
    jobs = [str(job.id) for job in ctx.org.blocking(ctx.org.repository.jobs(job_type="child"))]
    return [
        ctx.org.blocking(ctx.org.config(Settings)).max_mb,
        ctx.org.blocking(ctx.org.credentials.get("bank")),
        jobs == [str(made)],
    ]


@registry.handler("misuses")
async def misuses(payload: dict[str, Any], ctx: JobContext) -> int:
    return ctx.org.blocking(ctx.org.config(Settings)).max_mb


async def test_what_the_test_gives() -> None:
    """Is what the handler gets, with defaults for the rest; no database is asked."""
    ran = await run_job(registry, asks, {}, org_id="acme", org_config={"max_mb": 5}, org_credentials={"bank": "key"})
    assert ran.result == [5, "key"]
    assert (await run_job(registry, asks, {}, org_config={}, org_credentials={"bank": "key"})).result == [10, "key"]
    ran = await run_job(registry, asks, {}, org_config={}, org_credentials={})
    assert "credentials set bank" in str(ran.exception)
    ran = await run_job(registry, asks, {}, org_config={"max_mb": "many"}, org_credentials={})
    assert isinstance(ran.exception, pgnotifyq.OrgConfigUnfit)


async def test_what_nobody_gives() -> None:
    """Is the test's mistake, which is told as one."""
    with pytest.raises(NoDatabaseInTest, match="org_config="):
        await run_job(registry, asks, {})


async def test_database_of_the_test(connection: Connection[Any]) -> None:
    """Is asked, if the test gives it."""
    await ask(connection, organisation.set_config(SCHEMA, org("acme"), "max_mb", 7))
    await ask(connection, organisation.set_credential(SCHEMA, KEYS.seal(org("acme"), "bank", "sealed")))
    assert (await run_job(registry, asks, {}, org_id="acme", connection=connection)).result == [7, "sealed"]


async def test_blocking_in_an_async_function(connection: Connection[Any]) -> None:
    """Is refused: it would hold the worker's loop."""
    ran = await run_job(registry, misuses, {}, connection=connection)
    assert "in a handler that is async" in str(ran.exception)


@pytest.mark.parametrize("job_type", ["asks", "blocks"])
def test_in_the_tests_own_transaction(dsn: str, job_type: str) -> None:
    """Settings, credentials, trail and children are those of the transaction, which the test rolls back."""
    with psycopg.connect(dsn) as mine, pgnotifyq.sync.open_client(dsn) as client:
        ask_blocking(mine, organisation.set_config(SCHEMA, org("acme"), "max_mb", 7))
        ask_blocking(mine, organisation.set_credential(SCHEMA, KEYS.seal(org("acme"), "bank", "sealed")))
        job_id = client.enqueue(job_type, {}, org_id="acme", connection=mine)
        drain(registry, connection=mine)
        row = mine.execute("select result from pgnotifyq.jobs where id = %s", (job_id,)).fetchone()
        assert row is not None and row[0][:2] == [7, "sealed"] and all(row[0])
        count = mine.execute("select count(*) from pgnotifyq.org_audit").fetchone()
        assert count == (1 if job_type == "blocks" else 0,)
        mine.rollback()
    with psycopg.connect(dsn) as after:
        assert after.execute("select count(*) from pgnotifyq.org_audit").fetchone() == (0,)
