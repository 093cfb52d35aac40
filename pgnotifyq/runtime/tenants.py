"""Tenants: what a handler is given of the tenant whose job it runs."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Protocol

from pgnotifyq.ledger import look
from pgnotifyq.wire.asking import ask

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager

    import psycopg

    from pgnotifyq.model.job import OrgId
    from pgnotifyq.runtime.running import Running
    from pgnotifyq.wire.connection import Connection


class OpenTransaction(Protocol):
    """How a fenced transaction is opened that is confined to a tenant (transactions.py)."""

    def __call__(
        self, running: Running, *, org_id: OrgId | None, isolation: psycopg.IsolationLevel | None
    ) -> AbstractAsyncContextManager[Connection]:
        """Open it."""


class OrgContext:
    """What a handler is given of its tenant."""

    def __init__(self, running: Running, open_transaction: OpenTransaction) -> None:
        self._running = running
        self._open_transaction = open_transaction
        self.id: OrgId = running.job.whole.org_id

    @asynccontextmanager
    async def transaction(self, *, isolation: psycopg.IsolationLevel | None = None) -> AsyncIterator[Connection]:
        """Open a fenced transaction that is confined to the job's tenant.

        Rows of other tenants are not there, in this project's tables and in every table of yours
        whose row security policy compares its tenant column with `pgnotifyq.current_org()` and is
        granted to the tenant role.

        Args:
            isolation: of the transaction; None: the server's default.

        Raises:
            LeaseLost: the execution no longer owns the job; rolled back.
            JobCancelled: a cancel came first; rolled back.
            TransactionLeft: it was committed or rolled back by hand, within the block.
            TransactionRefused: another transaction of this job is open around it.
            ConnectionsTaken: no connection became free in time.
        """
        async with self._open_transaction(self._running, org_id=self.id, isolation=isolation) as connection:
            yield connection


async def find_tenant_role(connection: Connection, schema: str) -> str | None:
    """Return the role that confines tenants.

    None: it does not exist, may not be taken on, or has no rights in the schema.

    Source: sql/queries/tenant_role.sql
    """
    return await ask(connection, look.tenant_role(schema))
