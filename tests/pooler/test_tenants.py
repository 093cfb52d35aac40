"""Tenants' transactions behind a pooler in transaction mode: one session, which all of them share by turns."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import pytest
from psycopg.conninfo import make_conninfo

from pgnotifyq import EventName, JobContext, JobRegistry
from pgnotifyq.ledger import roles
from pgnotifyq.wire.asking import ask
from pgnotifyq.wire.connection import open_connection
from tests.asked import fetch, value
from tests.pooler.support import open_pooler

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.pooler.support import Pooler
    from tests.runtime.support import Workplace

ANN, BOB = uuid.UUID(int=0xA), uuid.UUID(int=0xB)


@pytest.mark.parametrize("ending", ["commits", "raises"])
async def test_login_behind_a_pooler(place: Workplace, pool: Callable[..., Pooler], ending: str) -> None:
    """A token holds in the server's session, whichever that is, and is gone with the transaction."""
    name = await ask(place.connection, roles.make_tenant_login("pgnotifyq"))
    await ask(place.connection, roles.keep("pgnotifyq"))
    registry, seen = JobRegistry(), set()

    @registry.handler()
    async def work(payload: dict[str, Any], ctx: JobContext) -> None:
        for _ in range(3):
            async with ctx.org.transaction() as connection:
                look = "select session_user::text, pgnotifyq.current_org(), array_agg(distinct org_id)::text from pgnotifyq.jobs"
                seen.update(await fetch(connection, look))
        if ending == "raises":
            raise ValueError("no luck")

    pooler = pool(default_pool_size=3)
    with open_pooler(make_conninfo(place.dsn, user=name), default_pool_size=1) as tenants:
        worker = await place.start(registry, dsn=pooler.dsn, listen_dsn=place.dsn, tenant_dsn=tenants.dsn)
        jobs = [await place.enqueue("work", org_id=org_id, max_attempts=1) for org_id in (ANN, BOB)]
        for job_id in jobs:
            await worker.log.wait(EventName.JOB_COMPLETED if ending == "commits" else EventName.JOB_DEAD, job_id=job_id)
        assert seen == {(name, org_id, f"{{{org_id}}}") for org_id in (ANN, BOB)}
        async with open_connection(tenants.dsn) as left:
            assert await fetch(left, "select pgnotifyq.current_org(), count(*) from pgnotifyq.jobs") == [(None, 0)]
            assert await value(left, "select coalesce(current_setting('pgnotifyq.token', true), '')") == ""
