"""What a handler is given besides its payload."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import attrs
import trio
import trio.lowlevel

from pgnotifyq.ledger import enqueue, lease
from pgnotifyq.model.around import NO_RESOURCES
from pgnotifyq.model.checkpoint import write_state
from pgnotifyq.model.errors import LeaseLost, TransactionRefused
from pgnotifyq.model.handler import RunsIn
from pgnotifyq.model.outcome import Outcome, SettleKind, encode_result
from pgnotifyq.model.schedule import scheduled_for
from pgnotifyq.runtime.children import child_of
from pgnotifyq.runtime.fenced import WorkerFence, connection_block, django_block, session_block
from pgnotifyq.runtime.keeper import PROGRESS_SECONDS, said_of
from pgnotifyq.runtime.logs import JobLog
from pgnotifyq.runtime.organisation import OrgContext, direct
from pgnotifyq.runtime.organisation_fence import OrgFence
from pgnotifyq.runtime.tracking import Track
from pgnotifyq.runtime.transactions import block_of
from pgnotifyq.wire.asking import ask
from pgnotifyq.wire.callers import ask_on, ask_on_blocking

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Generator, Iterable
    from contextlib import AbstractAsyncContextManager, AbstractContextManager
    from datetime import datetime
    from types import TracebackType
    from typing import NoReturn, Unpack

    from psycopg import IsolationLevel

    from pgnotifyq.model.around import Resources
    from pgnotifyq.model.handler import Handler
    from pgnotifyq.model.job import ExecutionId, Job, JobId, OrgId
    from pgnotifyq.model.new_job import JobSettings, NewJob
    from pgnotifyq.model.outcome import Interrupt
    from pgnotifyq.model.registry import JobRegistry
    from pgnotifyq.runtime.asyncio_loop import AsyncioLoop
    from pgnotifyq.runtime.fenced import Fence, FencedBlock
    from pgnotifyq.runtime.keeper import Keeper
    from pgnotifyq.runtime.link import Link
    from pgnotifyq.runtime.organisation import Desk
    from pgnotifyq.runtime.organisations import Organisations
    from pgnotifyq.runtime.running import Running
    from pgnotifyq.runtime.tenants import OpenTransaction
    from pgnotifyq.runtime.transactions import Databases
    from pgnotifyq.wire.connection import Connection
    from pgnotifyq.wire.kinds import CallersConnection

S = TypeVar("S")
T = TypeVar("T")

_log = logging.getLogger("pgnotifyq.job")


class Already:
    """What a caller may await when the work has been done already."""

    def __await__(self) -> Generator[None, None, None]:
        return
        yield


class Reach(Protocol):
    """What a handler can reach of its worker."""

    @property
    def token(self) -> trio.lowlevel.TrioToken:
        """The way from a handler's thread into the loop."""

    @property
    def schema(self) -> str:
        """Where the queue lives."""

    @property
    def registry(self) -> JobRegistry:
        """The handlers."""

    def resources_of(self, kind: RunsIn) -> Resources:
        """Return what the lifespans have made for handlers of a kind."""

    def open_transaction(
        self,
        running: Running,
        *,
        org_id: OrgId | None = None,
        isolation: IsolationLevel | None = None,
        outcome: Outcome | None = None,
    ) -> AbstractAsyncContextManager[Connection]:
        """Open a fenced transaction. See transactions.py."""

    def fence(self, running: Running, outcome: Outcome | None) -> Fence:
        """Return what fences a transaction on a connection of the handler's own. See fenced.py."""

    @property
    def desk(self) -> Desk:
        """Where questions about the job's tenant go."""

    def fence_org(self, running: Running, outcome: Outcome | None) -> Fence:
        """Return what `fence` does, for a transaction that is confined to the job's tenant."""

    async def report(self, running: Running, fraction: float | None, message: str | None) -> bool:
        """Publish how far an execution has come; False: it no longer owns the job."""

    async def save(self, running: Running, saved: str | None) -> bool:
        """Keep what a handler saves, as JSON text, durably; False: it no longer owns the job."""

    def note_progress(self, running: Running, fraction: float | None, message: str | None) -> None:
        """Publish soon how far an execution has come. Any thread may call it; it never waits."""

    def keep_line(self, running: Running, at: float, level: str, text: str) -> None:
        """Keep a line of the handler's log. Any thread may call it; it never waits."""


@attrs.define(eq=False)
class WorkerReach:
    """What a handler can reach of a worker that has a database."""

    schema: str
    registry: JobRegistry
    databases: Databases
    quick: Link
    durable: Link
    loop: AsyncioLoop
    desk: Organisations
    keeper: Keeper
    resources: Resources = NO_RESOURCES  # of lifespans on trio, once they are entered
    token: trio.lowlevel.TrioToken = attrs.field(factory=trio.lowlevel.current_trio_token)

    def open_transaction(
        self,
        running: Running,
        *,
        org_id: OrgId | None = None,
        isolation: IsolationLevel | None = None,
        outcome: Outcome | None = None,
    ) -> AbstractAsyncContextManager[Connection]:
        """Open a fenced transaction on one of the connections that handlers share."""
        return self.databases.open_transaction(running, org_id=org_id, isolation=isolation, outcome=outcome)

    def fence(self, running: Running, outcome: Outcome | None) -> Fence:
        """Return the fence of an execution of this worker's."""
        return WorkerFence(running=running, schema=self.schema, worker_id=self.databases.worker_id, outcome=outcome)

    def resources_of(self, kind: RunsIn) -> Resources:
        """Return what the lifespans have made. A handler on trio gets nothing that is asyncio's."""
        return self.resources if kind is RunsIn.TRIO else self.loop.resources + self.resources

    def fence_org(self, running: Running, outcome: Outcome | None) -> Fence:
        """Return the fence of an execution of this worker's, confined to the job's tenant."""
        tenants = self.databases.tenants
        return OrgFence(
            running=running,
            schema=self.schema,
            worker_id=self.databases.worker_id,
            outcome=outcome,
            key=None if tenants is None else tenants.key,
        )

    async def report(self, running: Running, fraction: float | None, message: str | None) -> bool:
        """Publish how far an execution has come: at once, or soon if it published a moment ago."""
        said = said_of(running)
        now = trio.current_time()
        is_end = fraction == 1.0 and said.fraction != 1.0
        if now < said.report_at and not is_end:
            self.keeper.note(running, fraction, message)
            await trio.lowlevel.checkpoint()
            return not running.is_lost
        said.report_at, said.unsaid, said.fraction = now + PROGRESS_SECONDS, None, fraction
        return await self.quick.ask(lease.report_progress(self.schema, running.lease, fraction=fraction, message=message))

    async def save(self, running: Running, saved: str | None) -> bool:
        """Keep what a handler saves, by the connection that writes outcomes."""
        return await self.durable.ask(lease.save(self.schema, running.lease, saved))

    def note_progress(self, running: Running, fraction: float | None, message: str | None) -> None:
        """Publish soon how far an execution has come."""
        self.keeper.note(running, fraction, message)

    def keep_line(self, running: Running, at: float, level: str, text: str) -> None:
        """Keep a line of the handler's log."""
        self.keeper.log(running, at, level, text)


class _OnTrio:
    """A block for `async with`. If a handler uses `with`, the error says what to use instead."""

    def __init__(self, block: AbstractAsyncContextManager[Connection]) -> None:
        self._block = block

    async def __aenter__(self) -> Connection:
        return await self._block.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return await self._block.__aexit__(kind, error, traceback)

    def __enter__(self) -> NoReturn:
        raise TransactionRefused(
            "ctx.transaction() gives a connection that trio drives: use `async with` in an async handler; a handler that is a plain "
            "function has ctx.session(...) for SQLAlchemy, ctx.django(), and ctx.connection(...) for psycopg's connections"
        )

    def __exit__(self, *_: object) -> None:
        """Exist: Python looks `__exit__` up before it calls `__enter__`."""


def _completion(running: Running, complete: bool, result: object) -> Outcome | None:
    if not complete:
        return None
    text = encode_result(result, None if running.handler is None else running.handler.converter)
    return Outcome(kind=SettleKind.COMPLETE, name="completed", result_json=text)


class JobContext:
    """The job under way, its tenant, its cancellation, and its own fenced transaction."""

    # Whether blocking code is called in this very thread, as for a test whose connection belongs to
    # this thread (testing/within.py). A worker calls blocking code in threads of its own.
    calls_here = False

    def __init__(self, running: Running, reach: Reach) -> None:
        self._running = running
        self._reach = reach
        self._org: OrgContext | None = None

    @property
    def job(self) -> Job:
        """The job as it was claimed."""
        return self._running.job.whole

    @property
    def execution_id(self) -> ExecutionId:
        """The id of this attempt. It is the fence of all that the attempt writes.

        It can serve as an idempotency key for one attempt.
        """
        return self._running.lease.execution_id

    @property
    def attempt(self) -> int:
        """Which attempt this is; the first is 1."""
        return self._running.job.attempts

    @property
    def scheduled_for(self) -> datetime | None:
        """The tick that a schedule enqueued the job for, in UTC; None: no schedule did."""
        return scheduled_for(self._running.job.headers)

    @property
    def org(self) -> OrgContext:
        """The job's tenant: transactions confined to it, its settings, credentials, jobs, trail."""
        if self._org is None:
            self._org = self._org_by(self._reach.open_transaction, direct)
        return self._org

    def _org_by(
        self, open_transaction: OpenTransaction, carry: Callable[..., Awaitable[Any]], *, is_in_process: bool = False
    ) -> OrgContext:
        reach = self._reach

        def fence(running: Running, complete: bool, result: object) -> Fence:
            return reach.fence_org(running, _completion(running, complete, result))

        return OrgContext(
            self._running,
            open_transaction,
            desk=reach.desk,
            fence=fence,
            child=self._child,
            enqueue_child=self.enqueue_made,
            carry=carry,
            token=lambda: reach.token,
            calls_here=self.calls_here or is_in_process,
        )

    @property
    def resources(self) -> Resources:
        """What the registry's lifespans have made, by type: `ctx.resources[Pool]`."""
        handler = self._running.handler
        return self._reach.resources_of(RunsIn.TRIO if handler is None else handler.runs_in)

    @property
    def returned(self) -> object:
        """What the handler has returned, for a middleware after its `yield`; None before."""
        return self._running.returned

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger whose records carry job_id, job_type, execution_id, attempt and org_id.

        What it logs is kept with the attempt: `client.logs(job_id)`.
        """
        fields = {
            "job_id": str(self.job.id),
            "job_type": self.job.job_type,
            "execution_id": str(self.execution_id),
            "attempt": self.attempt,
            "org_id": str(self.job.org_id),
        }
        return JobLog(_log, fields, self.keep_line)

    def keep_line(self, at: float, level: str, text: str) -> None:
        """Keep a line with this attempt, as `log` does; `at` is in seconds since 1970."""
        self._reach.keep_line(self._running, at, level, text)

    @property
    def saved(self) -> Any:
        """What `save` was given last, by this attempt or an earlier one; None: nothing.

        It is of the handler's `saved_type`, or JSON. Within a transaction of this job's it is the
        state that was saved in that transaction, if any. That state holds once the transaction has
        been committed.
        """
        block = block_of(self._running)
        return self._running.saved if block is None or block.save is None else block.save[1]

    def save(self, state: object) -> Awaitable[None]:
        """Keep a state: the job's next attempt goes on from it, whatever ends this attempt.

        The state is durable when this call is done. But within a transaction of this job's
        (`transaction()`, `session()`, `django()`, `connection()`, and those of `org`) the state is
        written with the commit, and without a commit it is not written.

        Await the call in an async handler. In a thread the state is kept when the call returns, and
        there is nothing to await.

        Args:
            state: a value of the handler's `saved_type`, or one that JSON has; 64 KiB of JSON at
                the most. It takes the place of the state before. None: there is no state any more.

        Cancellation: either this state is kept, or the one before it.

        Raises:
            InvalidPayload: the state is not JSON that PostgreSQL can store, or not of `saved_type`.
            StateTooLarge: the state has too many bytes.
            LeaseLost: the execution no longer owns the job; nothing was written.
        """
        text, kept = write_state(state, self._running.handler)
        if (block := block_of(self._running)) is not None:
            block.save = text, kept
            return Already()
        return self._save_by(text, kept)

    def _save_by(self, text: str | None, kept: Any) -> Awaitable[None]:
        if trio.lowlevel.in_trio_task():
            return self.save_written(text, kept)
        trio.from_thread.run(self.save_written, text, kept, trio_token=self._reach.token)
        return Already()

    async def save_written(self, text: str | None, kept: Any) -> None:
        """Keep a state that is JSON text already. Runs in the worker's loop."""
        if not await self._reach.save(self._running, text):
            raise LeaseLost(f"execution {self.execution_id} no longer owns job {self.job.id}; nothing was saved")
        self._running.saved = kept

    def is_cancelled(self) -> bool:
        """Tell whether this execution shall stop, for whatever reason; safe from threads."""
        return self._running.why_stop() is not None

    async def cancelled(self) -> Interrupt:
        """Wait until this execution shall stop, and return why.

        It does not return while the execution shall go on.
        """
        await self._running.interrupted.wait()
        assert self._running.interrupt is not None
        return self._running.interrupt

    @property
    def cancel_reason(self) -> Interrupt | None:
        """Why this execution shall stop: cancelled, timed out, lease lost or shutdown.

        None while it shall go on.
        """
        return self._running.why_stop()

    def transaction(
        self, *, complete: bool = False, result: object = None, isolation: IsolationLevel | None = None
    ) -> AbstractAsyncContextManager[Connection]:
        """Open a transaction that commits only while this execution still owns the job.

        Args:
            complete: end the job as completed in the same commit, so that what was written happens
                exactly once.
            result: stored with the completed job.
            isolation: the transaction's level; None: the server's default. To set it by SQL within
                the block would be too late.

        Cancellation: rolls back.

        Raises:
            LeaseLost: the execution no longer owns the job; rolled back.
            JobCancelled: a cancel came first; rolled back.
            TransactionLeft: the handler committed or rolled back by hand, within the block.
            TransactionRefused: another transaction of this job is open around this one, or is about
                to complete the job; or this one is entered by `with`.
            ConnectionsTaken: no connection became free in time.
        """
        return _OnTrio(self._transaction(complete, result, isolation))

    @asynccontextmanager
    async def _transaction(self, complete: bool, result: object, isolation: IsolationLevel | None) -> AsyncIterator[Connection]:
        outcome = _completion(self._running, complete, result)
        async with self._reach.open_transaction(self._running, isolation=isolation, outcome=outcome) as connection:
            yield connection

    def session(self, factory: Callable[[], S], *, complete: bool = False, result: object = None) -> FencedBlock[S]:
        """Open a session of SQLAlchemy's, in a transaction like that of `transaction()`.

        `with ctx.session(Session) as session` in a handler that is a plain function, and
        `async with ctx.session(AsyncSession) as session` where asyncio runs. The block flushes,
        commits and closes.

        Args:
            factory: makes the session: a `sessionmaker`, an `async_sessionmaker`, or any function
                without arguments.
            complete: as of `transaction`.
            result: as of `transaction`.

        Cancellation: rolls back.

        Raises:
            TypeError: the session cannot be waited for here; the message says what to use.
            LeaseLost, JobCancelled, TransactionLeft: as `transaction` raises them.
            TransactionRefused: as `transaction` raises it; or the session is in a transaction
                already, or its engine is in AUTOCOMMIT.
            MissingRights: the role of the session's connection may not do this.
        """
        return session_block(self._reach.fence(self._running, _completion(self._running, complete, result)), factory)

    def django(self, alias: str = "default", *, complete: bool = False, result: object = None) -> AbstractContextManager[Any]:
        """Open a transaction of Django's, like that of `transaction()`, for Django's models.

        It is `transaction.atomic(alias, durable=True)`, in a handler that is a plain function.

        Args:
            alias: the database's, in Django's settings.
            complete: as of `transaction`.
            result: as of `transaction`.

        Returns: a block for `with` that gives `connections[alias]`.

        Raises: as `session`.
        """
        return django_block(self._reach.fence(self._running, _completion(self._running, complete, result)), alias)

    def connection(self, connection_or_pool: Any, *, complete: bool = False, result: object = None) -> FencedBlock[Any]:
        """Open a transaction like that of `transaction()` on a connection of your own.

        `with` for psycopg's Connection, in a handler that is a plain function; `async with` for
        psycopg's AsyncConnection and asyncpg's, where asyncio runs.

        Args:
            connection_or_pool: a connection or a pool of psycopg's or asyncpg's. The connection
                must be in no transaction. A pool lends a connection for the block.
            complete: as of `transaction`.
            result: as of `transaction`.

        Returns: a block that gives the connection.

        Cancellation: rolls back.

        Raises: as `session`.
        """
        return connection_block(
            self._reach.fence(self._running, _completion(self._running, complete, result)), connection_or_pool
        )

    async def enqueue(
        self,
        job_type: str | Handler[Any, Any, Any],
        payload: object = None,
        *,
        connection: CallersConnection | None = None,
        **settings: Unpack[JobSettings],
    ) -> JobId:
        """Enqueue a child of this job: of the same tenant, with the same headers.

        Args:
            job_type: which handler runs it: a handler, or its name.
            payload: what the handler takes.
            connection: what `transaction()` gives, or your own, as for `client.enqueue`. The child
                is enqueued in the transaction that is open on it. None: the child is enqueued in a
                transaction of its own, which commits only while this execution still owns the job.
            settings: as for `client.enqueue`: queue, priority, delay_seconds, unique_key, headers,
                org_id, ...

        Cancellation: either nothing is enqueued, or the child is, and the task is cancelled at its
            next checkpoint.

        Raises:
            InvalidName, InvalidJob, InvalidPayload, PayloadTooLarge: nothing was sent.
            LeaseLost, JobCancelled: the execution no longer owns the job; nothing is enqueued.
            TransactionRefused: a transaction of this job is open: pass its connection.
        """
        job = self._child(job_type, payload, settings)
        if connection is None:
            return await self.enqueue_made(job)
        return await ask_on(connection, enqueue.enqueue(self._reach.schema, job))

    def enqueue_blocking(
        self,
        job_type: str | Handler[Any, Any, Any],
        payload: object = None,
        *,
        connection: CallersConnection | None = None,
        **settings: Unpack[JobSettings],
    ) -> JobId:
        """Do what `enqueue` does, in a handler that is a plain function."""
        job = self._child(job_type, payload, settings)
        if connection is not None:
            return ask_on_blocking(connection, enqueue.enqueue(self._reach.schema, job))
        return trio.from_thread.run(self.enqueue_made, job, trio_token=self._reach.token)

    def _child(self, job_type: str | Handler[Any, Any, Any], payload: object, settings: JobSettings) -> NewJob:
        return child_of(self._running.job, self._reach.registry, job_type, payload, settings)

    async def enqueue_made(self, job: NewJob) -> JobId:
        """Enqueue a child that is made already, if the execution still owns the job."""
        async with self._transaction(complete=False, result=None, isolation=None) as connection:
            return await ask(connection, enqueue.enqueue(self._reach.schema, job))

    def progress(self, fraction: float | None, message: str | None = None) -> Awaitable[None]:
        """Publish how far this execution has come: a fraction from 0 to 1, and a line for people.

        Await the call in an async handler. In a thread the work is done when the call returns, and
        there is nothing to await. What is published again within a quarter of a second is written a
        moment later; of several such calls the last counts. 1.0 is written at once.

        Raises:
            ValueError: the fraction is outside 0 to 1.
            LeaseLost: the execution no longer owns the job.
        """
        if trio.lowlevel.in_trio_task():
            return self._report(fraction, message)
        trio.from_thread.run(self._report, fraction, message, trio_token=self._reach.token)
        return Already()

    def track(self, items: Iterable[T] | AsyncIterable[T], *, total: int | None = None, message: str | None = None) -> Track[T]:
        """Go through items, and publish how many are done: `for item in ctx.track(items)`.

        The progress is published a few times a second, however fast the items come, and as 1.0 when
        all are done. If the items have no length and there is no `total`, only the number is
        published. Publishing makes the loop wait for nothing, and raises nothing. `for` goes
        through plain items; `async for` goes through plain and asynchronous items. Both work on
        trio and asyncio, in threads and in processes.

        Args:
            items: what the handler goes through.
            total: how many there are; None: their length.
            message: a line for people, before the number.
        """
        return Track(items, total, message, self.note_progress)

    def note_progress(self, fraction: float | None, message: str | None) -> None:
        """Publish soon how far this execution has come, as `track` does; wait for nothing."""
        self._reach.note_progress(self._running, fraction, _as_text(message))

    async def _report(self, fraction: float | None, message: str | None) -> None:
        if fraction is not None and not 0 <= fraction <= 1:
            raise ValueError(f"progress {fraction!r} is not between 0 and 1")
        if not await self._reach.report(self._running, fraction, _as_text(message)):
            raise LeaseLost(f"execution {self.execution_id} no longer owns job {self.job.id}")


def _as_text(message: str | None) -> str | None:
    """Return a message as PostgreSQL can store it."""
    return None if message is None else message.replace("\x00", "\\x00")
