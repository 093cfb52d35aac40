"""What does a tenant's transaction cost, beside a plain fenced one? Milliseconds, in one handler, in turn.

The worker is a role of its own, as `migrate --grant-worker` makes it. A superuser would not be fair:
row security does not bind it, so its statements do without the policies.
"""

from __future__ import annotations

import functools
import statistics
import time
import uuid
from typing import TYPE_CHECKING

import trio
from psycopg import sql
from psycopg.conninfo import make_conninfo

import pgnotifyq
from bench.support import open_database, open_server, options, report
from pgnotifyq.ledger import roles
from pgnotifyq.wire.asking import ask
from pgnotifyq.wire.connection import open_connection

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from typing import Any

QUESTION = "the cost of a tenant's transaction, against a plain fenced one"
OF_EACH = 2_000
WARM_UP = 100
# The transaction alone, and one that looks into a table whose policies ask for the tenant.
STATEMENTS = {
    "": "select 1",
    "_looks": "select count(*) from pgnotifyq.jobs where id = '00000000-0000-0000-0000-000000000001'",
}


async def _measure(dsn: str, count: int) -> dict[str, float]:
    registry = pgnotifyq.JobRegistry()
    took: dict[str, list[float]] = {"plain": [], "tenant": [], "plain_looks": [], "tenant_looks": []}

    async def once(opened: AbstractAsyncContextManager[Any], statement: str) -> float:
        began = time.perf_counter()
        async with opened as connection:
            await connection.execute(statement.encode())
        return (time.perf_counter() - began) * 1000

    @registry.handler(timeout_seconds=3600.0)
    async def work(_: object, ctx: pgnotifyq.JobContext) -> None:
        for turn in range(count + WARM_UP):
            for suffix, statement in STATEMENTS.items():
                for name, opened in (("plain", ctx.transaction()), ("tenant", ctx.org.transaction())):
                    milliseconds = await once(opened, statement)
                    if turn >= WARM_UP:
                        took[name + suffix].append(milliseconds)

    role = f"worker_{uuid.uuid4().hex[:12]}"
    async with open_connection(dsn) as owner:
        await owner.execute(sql.SQL("create role {} login").format(sql.Identifier(role)))
        await ask(owner, roles.grant("pgnotifyq", roles.RoleKind.WORKER, role))
        await ask(owner, roles.make_tenant_login("pgnotifyq"))
        await ask(owner, roles.keep("pgnotifyq"))
    worker_dsn = make_conninfo(dsn, user=role)
    async with trio.open_nursery() as nursery, pgnotifyq.open_client(dsn) as client:
        worker = await nursery.start(functools.partial(pgnotifyq.run_worker, registry, worker_dsn, on_event=lambda _: None))
        job_id = await client.enqueue("work", {}, org_id=uuid.uuid4())
        await client.wait(job_id, timeout_seconds=3600)
        worker.drain()
    found = {}
    for name, each in took.items():
        each.sort()
        found[f"{name}_p50_ms"] = round(statistics.median(each), 3)
        found[f"{name}_p95_ms"] = round(each[int(len(each) * 0.95)], 3)
    for suffix in STATEMENTS:
        found[f"more{suffix}_p50_ms"] = round(found[f"tenant{suffix}_p50_ms"] - found[f"plain{suffix}_p50_ms"], 3)
    return found


def main() -> None:
    """Ask the question."""
    asked = options(QUESTION, count=OF_EACH)
    count = max(asked.count // 10, 100) if asked.quick else asked.count
    with open_server() as server_dsn, open_database(server_dsn) as dsn:
        figures = trio.run(_measure, dsn, count)
    line = "tenant: plain {plain_p50_ms} ms, of a tenant {tenant_p50_ms} ms, {more_p50_ms} ms more, {more_looks_p50_ms} if it looks at jobs (p50)".format(
        **figures
    )
    report(QUESTION, line, figures, asked.out)


if __name__ == "__main__":
    main()
