"""A handler of a small SaaS: many customers on one queue, each with settings and rows of its own.

The table `usage` is protected, so the handler's SQL needs no `where org_id = ...`, and a mistake
there shows no customer another one's rows.
"""

from __future__ import annotations

import functools
import os

import attrs
import trio

import pgnotifyq

registry = pgnotifyq.JobRegistry()


@attrs.frozen
class Plan:
    """What a customer has bought."""

    name: str = "free"
    requests_max: int = 100


@registry.handler("count_usage", queue="usage")
async def count_usage(payload: dict[str, int], ctx: pgnotifyq.JobContext) -> str:
    """Count what a customer has used, and note it if that is too much."""
    plan = await ctx.org.config(Plan)
    async with ctx.org.transaction() as connection:
        await connection.execute("insert into usage (requests) values (%s)", (payload["requests"],))
        cursor = await connection.execute("select sum(requests) from usage")  # of this customer alone
        row = await cursor.fetchone()
        assert row is not None
        if row[0] > plan.requests_max:
            await ctx.org.audit("over the limit", {"plan": plan.name, "requests": row[0]}, connection=connection)
    return f"{row[0]} of {plan.requests_max} ({plan.name})"


async def prepare(dsn: str) -> None:
    """Make the application's table, and let the customers see their own rows in it."""
    async with await pgnotifyq.connect(dsn) as connection:
        await pgnotifyq.migrate(connection)
        await connection.execute("create table usage (org_id uuid default pgnotifyq.current_org(), requests int)")
        await connection.execute("select pgnotifyq.protect('usage', 'org_id', 'select, insert')")
        await connection.execute("select pgnotifyq.set_org_config(pgnotifyq.org('acme'), 'name', '\"pro\"')")
        await connection.execute("select pgnotifyq.set_org_config(pgnotifyq.org('acme'), 'requests_max', '5000')")


async def main() -> None:
    """Count for two customers."""
    dsn = os.environ["PGNOTIFYQ_DSN"]
    await prepare(dsn)
    async with pgnotifyq.open_client(dsn) as client, trio.open_nursery() as nursery:
        worker = await nursery.start(functools.partial(pgnotifyq.run_worker, registry, dsn, queues=["usage"]))
        for customer in ("acme", 42, "acme"):
            jobs = client.for_org(customer)
            job = await jobs.wait(await jobs.enqueue(count_usage, {"requests": 2000}))
            print(f"{customer}: {job.result}")
        worker.drain()
    async with await pgnotifyq.connect(dsn) as connection:
        cursor = await connection.execute(
            "select org_id = pgnotifyq.org(42), action, details->>'requests' from pgnotifyq.org_audit"
        )
        print(await cursor.fetchall())


if __name__ == "__main__":
    trio.run(main)
