"""A handler in a process, which asks its tenant's things on a connection of its own."""

from __future__ import annotations

from typing import Any

import psycopg

from pgnotifyq import JobContext, JobRegistry, TransactionRefused

registry = JobRegistry()


@registry.handler("in_process", runs_in="process")
def in_process(payload: dict[str, Any], ctx: JobContext) -> list[Any]:
    refused = []
    for ask in (lambda: ctx.org.config(dict), lambda: ctx.org.credentials.get("bank"), lambda: ctx.org.repository.jobs()):
        try:
            ctx.org.blocking(ask())
        except TransactionRefused as error:
            refused.append(str(error))
    with psycopg.connect(payload["dsn"]) as own, ctx.org.connection(own) as connection:
        ctx.org.blocking(ctx.org.audit("looked", connection=connection))
        jobs = ctx.org.blocking(ctx.org.repository.jobs(connection=connection))
        row = connection.execute("select array_agg(what) from notes").fetchone()
    return [len(refused), len(jobs), row, str(ctx.org.id)]
