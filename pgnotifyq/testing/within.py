"""Jobs run within the test's own open transaction. Nothing here commits it.

They are claimed, run and settled on the connection that the test gives, one after the other. So
what the transaction has enqueued is seen, and what the handlers do goes when the test rolls back.

The rules of this file:

- Each handler runs in a savepoint. If a statement of the handler's has aborted the transaction, the
  savepoint is rolled back, and the job ends as failed. Otherwise what the handler has written
  stays, even if the handler failed: a worker's handler would have committed it.
- `ctx.transaction()` is a savepoint in the test's transaction. It gives a connection object of
  pgnotifyq's around psycopg's session. asyncpg and psycopg2 have no such session.
- If the connection is blocking, a handler that is no async function is called in the test's own
  thread, where Django and SQLAlchemy find the connection.
- Nobody else can see these jobs, so leases need no heartbeat, and cancels come from the handlers
  alone.
"""

from __future__ import annotations

import uuid
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio.from_thread
import anyio.to_thread
import attrs
import psycopg
import trio

from pgnotifyq.ledger import end, lease, watching
from pgnotifyq.ledger.claim import claim, wanted
from pgnotifyq.ledger.look import get_job
from pgnotifyq.ledger.testing import begin_part, due_queues, end_part
from pgnotifyq.model.around import NO_RESOURCES, Resources
from pgnotifyq.model.errors import ConfigError, JobCancelled, LeaseLost, TransactionRefused
from pgnotifyq.model.handler import Handler
from pgnotifyq.model.job import JobId, WorkerId
from pgnotifyq.model.outcome import SettleKind
from pgnotifyq.model.returned import finished
from pgnotifyq.model.states import Status
from pgnotifyq.runtime.context import JobContext
from pgnotifyq.runtime.deadlines import Deadlines
from pgnotifyq.runtime.executor import Executor
from pgnotifyq.runtime.keeper import said_of, take_log, take_report
from pgnotifyq.runtime.lifespans import open_resources
from pgnotifyq.runtime.running import Running
from pgnotifyq.testing.alone import MIDDLE, NoDatabaseInTest, NoFence, execute
from pgnotifyq.testing.desk import Desk
from pgnotifyq.testing.noting import Wishes, noting
from pgnotifyq.wire.callers import ask_on, ask_on_blocking
from pgnotifyq.wire.connection import Connection
from pgnotifyq.wire.kinds import Kind, kind_of
from pgnotifyq.wire.lent import Lent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Generator, Iterator

    from psycopg import IsolationLevel

    from pgnotifyq.ledger.ask import Ask, Verb
    from pgnotifyq.ledger.claim import Claim
    from pgnotifyq.ledger.claimed import ClaimedJob
    from pgnotifyq.model.handler import RunsIn
    from pgnotifyq.model.job import OrgId
    from pgnotifyq.model.outcome import Outcome
    from pgnotifyq.model.registry import JobRegistry
    from pgnotifyq.runtime.fenced import Fence
    from pgnotifyq.wire.kinds import CallersConnection

    Asking = Callable[[Verb[Any]], Coroutine[Any, Any, Any]]

LEASE_SECONDS = 3600.0  # longer than any test: nobody renews it
_WORDS = {
    SettleKind.COMPLETE: "completed",
    SettleKind.RETRY: "retried",
    SettleKind.SNOOZE: "snoozed",
    SettleKind.RELEASE: "released",
    SettleKind.CANCEL: "cancelled",
    SettleKind.BURY: "dead",
}


@attrs.frozen(kw_only=True)
class Ending:
    """How one execution of a drain ended."""

    job_id: JobId
    job_type: str
    outcome: str  # completed, retried, snoozed, released, cancelled, dead, lost
    why: str | None = None  # what went wrong
    exception: BaseException | None = None  # what the handler raised
    is_failure: bool = False  # retried or dead, and the handler has not wished for it


async def drain_within(
    registry: JobRegistry,
    connection: CallersConnection,
    *,
    schema: str,
    queues: Collection[str] | None,
    jobs_max: int,
    until: Callable[[Ending], bool],
) -> list[Ending]:
    """Run what is due, as the open transaction of a connection sees it, one job after the other.

    Args:
        registry: the handlers. Jobs of other types are left.
        connection: its transaction is neither committed nor rolled back.
        schema: where the queue is.
        queues: only these; None: all.
        jobs_max: after so many the test fails.
        until: called with each ending; if it returns True, no more jobs are run.

    Returns: the endings, in order.

    Raises:
        ConfigError: the connection has no open transaction, and is in autocommit.
        AssertionError: jobs were still due after `jobs_max`.
    """
    kind = kind_of(connection)
    if kind is Kind.SQLALCHEMY_ASYNC_SESSION and hasattr(connection, "registry"):
        # A scoped session. Take the session of this task, also for other tasks that ask.
        connection = connection.registry()
    worker_id = WorkerId(uuid.uuid4())
    types = wanted({handler.job_type: handler.max_attempts for handler in registry.handlers})
    endings: list[Ending] = []

    async def tell(verb: Verb[Any]) -> Any:
        return ask_on_blocking(connection, verb) if kind.is_blocking else await ask_on(connection, verb)

    if not await tell(begin_part(schema)):
        raise ConfigError("connection= has no open transaction and is in autocommit: begin one, or drain without connection=")
    await tell(end_part(schema))
    driver = await _driver_of(connection, kind)
    while True:
        due = await tell(due_queues(schema, registry.job_types, queues))
        found: Claim | None = None
        if due:
            ask = claim(schema, worker_id=worker_id, queues=due, jobs_max=1, lease_seconds=LEASE_SECONDS, only=types)
            found = await tell(ask)
        if found is None or not found.jobs:  # another worker holds them
            return endings
        if len(endings) == jobs_max:
            raise AssertionError(f"{jobs_max} jobs were run, and more are due: does a job enqueue itself?")
        crew = _Crew(registry, schema, worker_id, connection, kind, driver, tell)
        ending = await _take_through(crew, found.jobs[0])
        endings.append(ending)
        if until(ending):
            return endings


@attrs.frozen(eq=False)
class _Crew:
    """What is needed to run a job on a connection."""

    registry: JobRegistry
    schema: str
    worker_id: WorkerId
    connection: CallersConnection
    kind: Kind
    driver: Any  # psycopg's connection; None: it is another driver's
    tell: Asking


async def _take_through(crew: _Crew, job: ClaimedJob) -> Ending:
    """Run one claimed job, and settle it."""
    await crew.tell(begin_part(crew.schema))
    if trio.lowlevel.in_trio_run():
        ran = await _run(crew, job, crew.tell)
    else:
        ran = await anyio.to_thread.run_sync(trio.run, partial(_run, crew, job, partial(_from_thread, crew.tell)))
    was_broken = _mend(crew)
    kept = await crew.tell(end_part(crew.schema, undo=was_broken))
    outcome = ran.outcome
    ending = partial(Ending, job_id=job.id, job_type=job.job_type, exception=ran.exception)
    if outcome is None:
        return ending(outcome="lost")
    for verb in ran.left:
        await crew.tell(verb)
    became = None
    if not (ran.is_settled and kept):
        surprises = await crew.tell(end.settle(crew.schema, worker_id=crew.worker_id, settlements=[(ran.lease, outcome)]))
        became = next((surprise.became for surprise in surprises), None)
    is_failure = became is None and outcome.kind in {SettleKind.RETRY, SettleKind.BURY} and not ran.wished
    return ending(outcome=became or _WORDS[outcome.kind], why=outcome.error_message, is_failure=is_failure)


async def _from_thread(tell: Asking, verb: Verb[Any]) -> Any:
    """From trio's loop in a thread, ask in the test's loop. trio's loop stands still meanwhile."""
    answer: Any = anyio.from_thread.run(tell, verb)
    return answer


def _mend(crew: _Crew) -> bool:
    """If the handler has broken the transaction, let Django use it again.

    Returns: whether it was broken. Then the savepoint has to be rolled back.
    """
    django: Any = crew.connection
    if crew.kind is not Kind.DJANGO or not django.needs_rollback:
        return False
    django.set_rollback(False)
    return True


@attrs.frozen(kw_only=True, eq=False)
class _RanWithin:
    outcome: Outcome | None
    exception: BaseException | None
    lease: Any
    is_settled: bool
    wished: bool
    left: list[Ask[None]]  # they write what the handler has said


async def _run(crew: _Crew, job: ClaimedJob, tell: Asking) -> _RanWithin:
    """Run one handler, in trio."""
    running = Running(job=job, renewed_at=trio.current_time())
    wishes = Wishes()
    with _session_of(crew) as session:
        reach = _Reach(crew, session, tell)
        kind = _InTheTestsThread if crew.kind.is_blocking else Executor
        registry = noting(crew.registry, wishes)
        executor = kind(registry=registry, reach=reach, deadlines=Deadlines(Running.stop), random=lambda: MIDDLE)
        async with open_resources(crew.registry) as reach.resources:
            outcome, exception = await execute(executor, running)
    return _RanWithin(
        outcome=reach.completed_with or outcome,
        exception=wishes.raised.get(job.id, exception),
        lease=running.lease,
        is_settled=running.is_settled,
        wished=job.id in wishes.wished,
        left=_left_of(crew, running),
    )


def _left_of(crew: _Crew, running: Running) -> list[Ask[None]]:
    """Return the verbs that write the progress and the log that a handler has left behind."""
    if running.said is None:
        return []
    report, log = take_report(running), take_log(running)
    left = [] if report is None else [watching.report_all(crew.schema, [report])]
    return left if log is None else [*left, watching.keep_logs(crew.schema, [log])]


class _Reach:
    """What a handler can reach within the test's transaction."""

    def __init__(self, crew: _Crew, session: Connection[Any] | None, tell: Asking) -> None:
        self.token = trio.lowlevel.current_trio_token()
        self.schema, self.registry = crew.schema, crew.registry
        self.resources = NO_RESOURCES
        self.completed_with: Outcome | None = None
        self._crew = crew
        self._session = session
        self._tell = tell
        self._is_open = False
        self.desk = Desk(schema=crew.schema, tell=tell, provider=crew.registry.credentials)

    def resources_of(self, kind: RunsIn) -> Resources:  # noqa: ARG002  # a test's are for all
        """Return what the lifespans have made."""
        return self.resources

    @asynccontextmanager
    async def open_transaction(
        self,
        running: Running,
        *,
        org_id: OrgId | None = None,  # noqa: ARG002  # the test's transaction is confined as the test has it
        isolation: IsolationLevel | None = None,  # noqa: ARG002  # it has its own
        outcome: Outcome | None = None,
    ) -> AsyncIterator[Connection]:
        """Open a savepoint. It is kept only if the execution still owns the job.

        Raises:
            LeaseLost, JobCancelled: the job was taken away, or cancelled; rolled back.
            TransactionRefused: it is nested in another one.
            NoDatabaseInTest: the session is not psycopg's.
        """
        if self._session is None:
            raise NoDatabaseInTest(
                f"the handler of {running.job.job_type!r} opens a transaction, which drain(connection=...) can give on psycopg"
                f" alone, and not on the driver of {self._crew.kind.value}: use psycopg there, or drain without connection="
            )
        if self._is_open:
            raise TransactionRefused(f"job {running.job.id} has a transaction open around this one: use its connection")
        self._is_open = True
        try:
            async with self._session.transaction():
                yield self._session
                await self._check(running)
                if outcome is not None:
                    settlements = [(running.lease, outcome)]
                    await self._tell(end.settle(self._crew.schema, worker_id=self._crew.worker_id, settlements=settlements))
        finally:
            self._is_open = False
        if outcome is not None:
            self.completed_with, running.is_settled = outcome, True

    def fence(self, running: Running, outcome: Outcome | None) -> Fence:
        """Return a fence that fences nothing: drain settles the job when its handler has ended."""
        return NoFence(self, running, outcome, calls_here=self._crew.kind.is_blocking)

    fence_org = fence

    async def _check(self, running: Running) -> None:
        job = await self._tell(get_job(self._crew.schema, running.job.id))
        if job is not None and job.status is Status.CANCELLED:
            raise JobCancelled(f"job {running.job.id} was cancelled; the savepoint was rolled back")
        if job is None or job.current_execution_id != running.lease.execution_id:
            raise LeaseLost(f"execution {running.lease.execution_id} no longer owns job {running.job.id}; it was rolled back")

    async def report(self, running: Running, fraction: float | None, message: str | None) -> bool:
        """Publish how far an execution has come; False: it no longer owns the job."""
        told: bool = await self._tell(lease.report_progress(self._crew.schema, running.lease, fraction=fraction, message=message))
        return told

    async def save(self, running: Running, saved: str | None) -> bool:
        """Keep what the handler saves, in the test's transaction."""
        told: bool = await self._tell(lease.save(self._crew.schema, running.lease, saved))
        return told

    def note_progress(self, running: Running, fraction: float | None, message: str | None) -> None:
        """Keep how far the handler has come until it has ended."""
        said_of(running).unsaid = fraction, message

    def keep_line(self, running: Running, at: float, level: str, text: str) -> None:
        """Keep a line of the handler's log until it has ended."""
        said_of(running).lines.add(at, level, text)


class _InTheTestsThread(Executor):
    """Calls handlers that are no async functions in the test's thread, with its connection."""

    async def _call(self, running: Running, handler: Handler, *arguments: Any) -> object:
        arguments = tuple(_BlockingContext.of(each) if isinstance(each, JobContext) else each for each in arguments)
        if handler.is_async:
            return await super()._call(running, handler, *arguments)
        return await finished(handler, handler.call(*arguments))


class _BlockingContext(JobContext):
    """The context of a handler in the test's thread. Both trio and blocking code run there."""

    calls_here = True

    @classmethod
    def of(cls, context: JobContext) -> JobContext:
        """Return a context of this kind that is otherwise the same."""
        return cls(context._running, context._reach)  # noqa: SLF001  # a context of its own kind

    def progress(self, fraction: float | None, message: str | None = None) -> Awaitable[None]:
        """Publish how far this execution has come; it is done when this returns."""
        return _at_once(self._report(fraction, message))

    def _save_by(self, text: str | None, kept: Any) -> Awaitable[None]:
        return _at_once(self.save_written(text, kept))


def _at_once(call: Coroutine[Any, Any, None]) -> Awaitable[None]:
    """Run a coroutine that waits for nothing, because it asks a blocking connection."""
    try:
        call.send(None)
    except StopIteration:
        return _Done()
    raise AssertionError("a blocking connection has waited")


class _Done:
    def __await__(self) -> Generator[None, None, None]:
        return
        yield


async def _driver_of(connection: Any, kind: Kind) -> Any:
    """Return psycopg's connection below a library's; None: there is another driver's."""
    match kind:
        case Kind.SQLALCHEMY_SESSION:
            driver = connection.connection().connection.driver_connection
        case Kind.SQLALCHEMY_CONNECTION:
            driver = connection.connection.driver_connection
        case Kind.SQLALCHEMY_ASYNC_SESSION:
            driver = (await connection.connection()).sync_connection.connection.driver_connection
        case Kind.SQLALCHEMY_ASYNC_CONNECTION:
            driver = connection.sync_connection.connection.driver_connection
        case Kind.DJANGO:
            driver = connection.connection
        case _:
            driver = connection
    return driver if isinstance(driver, (psycopg.Connection, psycopg.AsyncConnection)) else None


@contextmanager
def _session_of(crew: _Crew) -> Iterator[Connection[Any] | None]:
    """Give a trio connection that uses the session of the test's connection."""
    driver = crew.driver
    if driver is None or isinstance(driver, Connection):
        yield driver
        return
    pgconn = driver.pgconn
    handlers = pgconn.notice_handler, pgconn.notify_handler
    session = Lent.of(driver)
    try:
        yield session
    finally:
        session.let_go()
        pgconn.notice_handler, pgconn.notify_handler = handlers
