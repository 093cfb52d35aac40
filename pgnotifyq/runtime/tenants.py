"""Transactions for handlers: fenced by the execution, and, through `ctx.org`, confined to the job's tenant.

A fenced transaction commits only while the execution still owns the job: its last act before commit is to lock the job's
row and look. With `complete` the job ends in that very commit, so what it wrote happens exactly once.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import attrs

from pgnotifyq.ledger import claims
from pgnotifyq.ledger.statements import compose, query
from pgnotifyq.model.errors import JobCancelled, LeaseLost
from pgnotifyq.wire.pool import open_pool
from pgnotifyq.wire.sessions import For

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from pgnotifyq.model.job import Job, Lease, OrgId
    from pgnotifyq.model.outcome import Settlement
    from pgnotifyq.wire.connection import Connection
    from pgnotifyq.wire.pool import Pool


@attrs.define(eq=False)
class Databases:
    """The connections that handlers use: a pool that is empty until a handler asks."""

    pool: Pool
    schema: str
    tenant_role: str | None  # None where the role does not exist: the setting alone confines then


@asynccontextmanager
async def open_databases(dsn: str, schema: str, *, size_max: int) -> AsyncIterator[Databases]:
    """Open the pool of a worker's handlers."""
    async with open_pool(
        dsn, size_max=size_max, application_name="pgnotifyq handler", used_for=For.HANDLER, puts_back=True
    ) as pool:
        yield Databases(pool, schema, f"{schema}_tenant")


@asynccontextmanager
async def open_transaction(
    databases: Databases, lease: Lease, *, worker_id: object, org_id: OrgId | None, ending: list[Settlement]
) -> AsyncIterator[Connection]:
    """Open a fenced transaction; with `org_id`, one that sees and writes only this tenant's rows.

    `ending` may hold, when the block ends, the settlement that is to commit with it.

    Cancellation: rolls back.

    Raises:
        LeaseLost: the execution no longer owns the job; rolled back.
        JobCancelled: a cancel came first; rolled back.
    """
    async with databases.pool.connection() as connection, connection.transaction():
        if org_id is not None:
            await _confine(connection, databases, org_id)
        yield connection
        if org_id is not None:
            await connection.execute("reset role")
            await connection.execute("select set_config('pgnotifyq.org_id', '', true)")
        held = await claims.still_holds(connection, databases.schema, lease)
        if held == "cancelled":
            raise JobCancelled(f"job {lease.job_id} was cancelled; the transaction was rolled back")
        if held != "held":
            message = f"execution {lease.execution_id} no longer owns job {lease.job_id}; the transaction was rolled back"
            raise LeaseLost(message)
        for settlement in ending:
            await claims.settle(
                connection,
                databases.schema,
                worker_id=worker_id,  # type: ignore[arg-type]
                settlements=[(lease, settlement)],
            )


async def _confine(connection: Connection, databases: Databases, org_id: OrgId) -> None:
    # `set local`, never `set`: a pooled connection would carry one tenant into the work of another.
    await connection.execute("select set_config('pgnotifyq.org_id', %s, true)", (str(org_id),))
    if databases.tenant_role is not None:
        await connection.execute(compose("set local role {tenant_role}", databases.schema))


class OrgContext:
    """What a handler is given of its tenant."""

    def __init__(self, databases: Databases, job: Job, lease: Lease, worker_id: object, ending: list[Settlement]) -> None:
        self._databases = databases
        self._lease = lease
        self._worker_id = worker_id
        self._ending = ending
        self.id: OrgId = job.org_id

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """Open a fenced transaction that is confined to the job's tenant.

        Rows of other tenants are not there, in this project's tables and in every table of yours whose row security
        policy compares its tenant column with `pgnotifyq.current_org()` and is granted to the tenant role.

        Raises:
            LeaseLost: the execution no longer owns the job; rolled back.
            JobCancelled: a cancel came first; rolled back.
        """
        async with open_transaction(
            self._databases, self._lease, worker_id=self._worker_id, org_id=self.id, ending=self._ending
        ) as connection:
            yield connection


async def find_tenant_role(connection: Connection, schema: str) -> str | None:
    """Return the role that confines tenants, or None where it does not exist, may not be taken on, or has no rights in the schema.

    Source: sql/queries/tenant_role.sql
    """
    cursor = await connection.execute(query("tenant_role", schema))
    row = await cursor.fetchone()
    if row is None:
        return None
    may_be_set, has_rights, _ = row
    return f"{schema}_tenant" if may_be_set and has_rights else None
