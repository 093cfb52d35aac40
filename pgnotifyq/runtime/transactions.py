"""Transactions for handlers: fenced by the execution, and confined to a tenant (`ctx.org`).

A fenced transaction commits only while the execution still owns the job. Its first act binds it to
the execution; its last act before commit is to lock the job's row and look. With `complete` the job
ends in that very commit, so what it wrote happens exactly once.

Rules:

- The fence is part of the commit (migration 0010). So a commit that a handler makes by hand is
  fenced, too. After that commit nothing is fenced: so the connection refuses every further
  statement, and the end of the block raises TransactionLeft.
- A transaction that settles the job does so alone: another transaction of the same execution, in
  another task, commits before it or not at all.
- Within an open transaction of the execution another one is refused at once, in the same task and
  in the tasks that it started. The second one would have a connection of its own. It would not see
  what the first one wrote. It would wait for the first one's locks for ever, and use up the pool.
- Every transaction is given a session that was discarded, in a connection object of its own
  (wire/lent.py).

`noted`, `told` and `refusal` hold for each block of a handler's, also for those of fenced.py: there
the connection is the handler's own.
"""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, cast

import attrs
import psycopg
from psycopg import pq

from pgnotifyq.ledger import end, fences, lease
from pgnotifyq.model.errors import (
    ConnectionsTaken,
    JobCancelled,
    LeaseLost,
    MissingRights,
    PgnotifyqError,
    PoolTimeout,
    TransactionLeft,
    TransactionRefused,
)
from pgnotifyq.wire.asking import ask
from pgnotifyq.wire.lent import Lent
from pgnotifyq.wire.pool import open_pool
from pgnotifyq.wire.sessions import For
from pgnotifyq.wire.words import in_psycopgs_words

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from contextlib import AbstractAsyncContextManager

    from psycopg.rows import TupleRow

    from pgnotifyq.ledger.ask import Ask
    from pgnotifyq.model.config import WorkerConfig
    from pgnotifyq.model.job import OrgId, WorkerId
    from pgnotifyq.model.outcome import Outcome
    from pgnotifyq.runtime.running import Running
    from pgnotifyq.wire.connection import Connection
    from pgnotifyq.wire.pool import Pool


@attrs.frozen(eq=False, kw_only=True)
class TenantLogin:
    """Sessions of a tenant's login, and the key to say for which tenant a session is used.

    Such a session has no role to go back to. It sees nothing without a token, and a token holds for
    one tenant in one transaction.
    """

    pool: Pool
    key: bytes = attrs.field(repr=False)

    async def seal(self, connection: Lent[TupleRow], schema: str, org_id: OrgId) -> None:
        """Say of which tenant the transaction is that has just begun.

        Raises:
            MissingRights: the session's role is not confined by tokens.
        """
        says, is_sealed, role = (_told_by(connection, place) for place in (1, 2, 3))
        if is_sealed != "t":
            raise MissingRights(
                f"role {role} of --tenant-dsn is not confined to a tenant: it sees all, or lacks a right; say migrate"
                f" --grant-tenant {role}, and see doctor"
            )
        await ask(connection, fences.seal_tenant(schema, org_id, key=self.key, says=bytes.fromhex(says)))


@attrs.define(eq=False, kw_only=True)
class Databases:
    """The connections that handlers use: pools that are empty until a handler asks."""

    pool: Pool
    schema: str
    worker_id: WorkerId
    connections_max: int  # the worker's setting, for messages to people
    # The role that is taken on for a tenant's transaction, if no login is known. None: there is no
    # such role, and the setting alone confines.
    tenant_role: str | None = None
    tenants: TenantLogin | None = None  # None: none is known
    _stack: AsyncExitStack
    _open_pool: Callable[[str], AbstractAsyncContextManager[Pool]]

    async def confine_by(self, dsn: str, key: bytes) -> None:
        """Have tenants' transactions run over sessions of a login of their own."""
        pool = await self._stack.enter_async_context(self._open_pool(dsn))
        self.tenants = TenantLogin(pool=pool, key=key)

    @asynccontextmanager
    async def open_transaction(
        self,
        running: Running,
        *,
        org_id: OrgId | None = None,
        isolation: psycopg.IsolationLevel | None = None,
        outcome: Outcome | None = None,
    ) -> AsyncIterator[Connection]:
        """Open a fenced transaction; with `org_id`, one that sees only this tenant's rows.

        With `outcome`, that outcome commits with it.

        Cancellation: rolls back.

        Raises:
            LeaseLost: the execution no longer owns the job; rolled back.
            JobCancelled: a cancel came first; rolled back.
            TransactionLeft: the handler committed or rolled back by hand.
            TransactionRefused: it is nested in another one, or would complete a job that another
                one is about to complete.
            ConnectionsTaken: no connection became free in time.
        """
        schema, held_by = self.schema, running.lease
        with noted(running, completes=outcome is not None) as block, told(running):
            login = None if org_id is None else self.tenants
            async with self._lend(self.pool if login is None else login.pool) as connection:
                if isolation is not None:
                    await connection.set_isolation_level(isolation)
                if login is None:
                    connection.begins_with = fences.fence(schema, held_by, org_id, self.tenant_role)
                else:
                    connection.begins_with = fences.fence_of_login(schema, held_by)
                async with connection.transaction():
                    begun_in = _told_by(connection, 0)
                    if login is not None and org_id is not None:
                        await login.seal(connection, schema, org_id)
                    with _guarded(connection, running):
                        yield connection
                    met = fences.meet_fence(schema, held_by, begun_in=begun_in, stays_confined=org_id is not None)
                    held = await ask(connection, met)
                    if held != "held":
                        raise refusal(running, held)
                    if outcome is not None:
                        settled = end.settle(schema, worker_id=self.worker_id, settlements=[(held_by, outcome)])
                        if await ask(connection, settled):
                            raise refusal(running, "unwritten")
                    elif (save := block.saves(schema)) is not None:
                        await ask(connection, save)
                if outcome is not None:
                    running.is_settled = True

    @asynccontextmanager
    async def _lend(self, pool: Pool) -> AsyncIterator[Lent[TupleRow]]:
        taken = False
        try:
            async with pool.connection() as connection:
                taken = True
                yield cast("Lent[TupleRow]", connection)
        except PoolTimeout as error:
            if taken:
                raise  # of another pool, which the handler uses within
            raise ConnectionsTaken(
                f"{error} This is the worker's setting handler_connections_max (--handler-connections), and it is"
                f" {self.connections_max}."
            ) from None


@asynccontextmanager
async def open_databases(dsn: str, config: WorkerConfig, worker_id: WorkerId) -> AsyncIterator[Databases]:
    """Open the pool of a worker's handlers."""

    def open_to(dsn: str) -> AbstractAsyncContextManager[Pool]:
        return open_pool(
            dsn,
            size_max=config.handler_connections_max,
            acquire_seconds=config.handler_connection_seconds,
            application_name="pgnotifyq handler",
            is_for_others=True,
            used_for=For.HANDLER,
        )

    async with AsyncExitStack() as stack:
        yield Databases(
            pool=await stack.enter_async_context(open_to(dsn)),
            schema=config.schema,
            worker_id=worker_id,
            connections_max=config.handler_connections_max,
            stack=stack,
            open_pool=open_to,
        )


@attrs.define(eq=False)
class _Block:
    """A transaction's block, while it is open."""

    running: Running
    is_open: bool = True
    # What the handler saves with the commit: as text, and as the handler is given it.
    save: tuple[str | None, Any] | None = None

    def saves(self, schema: str) -> Ask[bool] | None:
        """Return the verb that writes `save`; None: nothing is saved.

        It is asked at the end, when the fence has answered that the transaction may commit, and not
        when the handler saves. Else the job's row would be locked until the commit, and no
        heartbeat could renew the lease.
        """
        return None if self.save is None else lease.save(schema, self.running.lease, self.save[0])


# The innermost block that this task is in, or was started in.
_block: ContextVar[_Block | None] = ContextVar("pgnotifyq_block", default=None)


def block_of(running: Running) -> _Block | None:
    """Return the block of this execution that is open around the caller."""
    around = _block.get()
    return around if around is not None and around.is_open and around.running is running else None


@contextmanager
def noted(running: Running, *, completes: bool) -> Iterator[_Block]:
    """Note that this execution has a transaction open; refuse a second one if it is not allowed."""
    if block_of(running) is not None:
        raise TransactionRefused(
            f"job {running.job.id} has a transaction open around this one: use its connection, and connection.transaction()"
            " for a part that may be rolled back by itself"
        )
    if completes and running.is_completing:
        raise TransactionRefused(
            f"job {running.job.id} has another transaction with complete=True open: only one can complete it"
        )
    block = _Block(running)
    token = _block.set(block)
    if completes:
        running.is_completing = True
    try:
        yield block
        if block.save is not None:
            running.saved = block.save[1]
    finally:
        block.is_open = False
        if completes:
            running.is_completing = False
        with suppress(ValueError):  # the block was left in another context than it was entered in
            _block.reset(token)


@contextmanager
def _guarded(connection: Lent[TupleRow], running: Running) -> Iterator[None]:
    """Let nothing be sent once the transaction that was begun is over."""

    def check() -> None:
        if connection.pgconn.transaction_status == pq.TransactionStatus.IDLE:
            raise refusal(running, "left")

    connection.guard = check
    try:
        yield
        check()
    finally:
        connection.guard = None


@contextmanager
def told(running: Running) -> Iterator[None]:
    """Raise an error of ours if a commit was refused by its fence."""
    try:
        yield
    except PgnotifyqError:
        raise
    except Exception as error:
        said = in_psycopgs_words(error)  # whichever library tells it
        if not isinstance(said, psycopg.Error) or said.sqlstate != fences.REFUSED:
            raise
        raise refusal(running, said.diag.message_detail or "lost") from error


def refusal(running: Running, held: str) -> Exception:
    """Return what is raised when a transaction may not commit."""
    job_id, execution_id = running.lease
    match held:
        case "cancelled":
            return JobCancelled(f"job {job_id} was cancelled; the transaction was rolled back")
        case "prepared":
            return TransactionLeft(f"the transaction of job {job_id} cannot be prepared; it was rolled back")
        case "unwritten":
            return TransactionRefused(
                f"job {job_id} cannot be completed here, so the transaction was rolled back: it is not of the tenant that the"
                " connection is confined to (pgnotifyq.org_id), or a trigger on the jobs keeps its row as it is"
            )
        case "left":
            return TransactionLeft(
                f"the transaction of job {job_id} was committed or rolled back by hand, within its block: nothing that comes after"
                " is written; leave the block to commit, or use connection.transaction() within it"
            )
        case _:
            return LeaseLost(f"execution {execution_id} no longer owns job {job_id}; the transaction was rolled back")


def _told_by(connection: Lent[TupleRow], place: int) -> str:
    """Return a column of the answer that came with `begin`: the first is the transaction's id."""
    value = None if connection.answer is None else connection.answer.get_value(0, place)
    assert value is not None  # what goes with `begin` selects it
    return value.decode()
