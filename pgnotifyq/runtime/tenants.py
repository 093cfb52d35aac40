"""Tenants: what a handler is given of the tenant whose job it runs."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Protocol

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgnotifyq.ledger import look, roles
from pgnotifyq.model.errors import MissingRights
from pgnotifyq.wire import addresses
from pgnotifyq.wire.asking import ask

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager

    import psycopg

    from pgnotifyq.model.job import OrgId
    from pgnotifyq.runtime.running import Running
    from pgnotifyq.runtime.transactions import Databases
    from pgnotifyq.wire.connection import Connection

AGAINST_INTENT = "confined against intent"
AGAINST_MISTAKES = "confined against mistakes, not against SQL of the handler's own"


class OpenTransaction(Protocol):
    """How a fenced transaction that is confined to a tenant is opened (transactions.py)."""

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


async def confine(databases: Databases, connection: Connection, dsn: str, tenant_dsn: str | None) -> str:
    """Find out what confines tenants' transactions, and have them confined by it.

    Returns: a text for people: the grade of the confinement, and what confines.

    Source: sql/functions/roles, sql/queries/tenant_role.sql
    """
    schema = databases.schema
    login = None if tenant_dsn is not None else await ask(connection, roles.tenant_login(schema))
    if login is not None:
        tenant_dsn = make_conninfo(addresses.normal(dsn), user=login.role_name, password=login.password)
    key = await ask(connection, roles.tenant_key(schema))
    if tenant_dsn is not None:
        if key is None:
            raise MissingRights("the worker's role may not read the tenants' key: say migrate --grant-worker with its name")
        await databases.confine_by(tenant_dsn, key)
        name = conninfo_to_dict(addresses.normal(tenant_dsn)).get("user")
        return f"{AGAINST_INTENT}: by sessions of {name or 'their own'}"
    databases.tenant_role = await ask(connection, look.tenant_role(schema))
    by = "a setting" if databases.tenant_role is None else f"role {databases.tenant_role}"
    return f"{AGAINST_MISTAKES}: by {by}"
