"""One handler, run alone: without a database, or with a connection of the test's."""

from __future__ import annotations

import asyncio
import functools
import json
import uuid
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol

import attrs
import trio

from pgnotifyq.ledger.ask import Plan
from pgnotifyq.ledger.claimed import ClaimedJob
from pgnotifyq.ledger.errors import SCHEMA_DEFAULT
from pgnotifyq.ledger.fences import fence_nothing
from pgnotifyq.model.around import NO_RESOURCES, Resources
from pgnotifyq.model.checkpoint import write_state
from pgnotifyq.model.config import WorkerConfig
from pgnotifyq.model.errors import JobCancelled, LeaseLost, PayloadUndecodable, PgnotifyqError
from pgnotifyq.model.handler import RunsIn
from pgnotifyq.model.job import NIL_ORG, ExecutionId, Job, JobId, OrgId, WorkerId
from pgnotifyq.model.new_job import MAX_ATTEMPTS_DEFAULT, headers_of, org_id_of
from pgnotifyq.model.outcome import Ended, Interrupt, InterruptKind, Outcome, Raised, SettleKind, Stopped
from pgnotifyq.model.registry import handler_of
from pgnotifyq.model.states import Status
from pgnotifyq.runtime.deadlines import Deadlines
from pgnotifyq.runtime.executor import Executor, as_ended
from pgnotifyq.runtime.lifespans import open_resources
from pgnotifyq.runtime.processes import Processes
from pgnotifyq.runtime.running import Running
from pgnotifyq.testing.desk import Desk
from pgnotifyq.wire.asking import ask

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping

    from psycopg import IsolationLevel

    from pgnotifyq.ledger.ask import Steps, Verb
    from pgnotifyq.model.registry import Handler, JobRegistry
    from pgnotifyq.runtime.fenced import Fence
    from pgnotifyq.wire.connection import Connection

MIDDLE = 0.5  # of the jitter
GRACE_SECONDS = WorkerConfig().grace_seconds  # a worker's default
BY = "run_job"  # who cancels, as a handler is told


class NoDatabaseInTest(PgnotifyqError):
    """A handler in a test asked for a transaction, and the test gave no connection that has one."""


@attrs.frozen(kw_only=True)
class Ran:
    """How a handler under `run_job` ended, and what a worker would have written."""

    outcome: str  # completed, failed, timed_out, cancelled, lease_lost, snoozed, discarded, undecodable
    # complete, retry, snooze, cancel, bury; None: the lease was lost, and nothing is written.
    kind: SettleKind | None
    result: Any = None  # what the job's result would be, decoded JSON
    error_message: str | None = None
    delay_seconds: float | None = None  # of a retry or snooze; the policy's without its jitter
    reason: str | None = None  # of a dead letter: exhausted, discarded, undecodable
    exception: BaseException | None = None  # what the handler raised
    progress: tuple[tuple[float | None, str | None], ...] = ()  # what it reported, oldest first
    saved: tuple[Any, ...] = ()  # what it saved, oldest first, decoded JSON


async def run_job(
    registry: JobRegistry,
    job_type: str | Handler[Any, Any, Any],
    payload: object = None,
    *,
    org_id: OrgId | uuid.UUID | str | int = NIL_ORG,
    attempt: int = 1,
    max_attempts: int | None = None,
    headers: Mapping[str, Any] | None = None,
    saved: object = None,
    resources: Iterable[object] | None = None,
    connection: Connection[Any] | None = None,
    org_config: Mapping[str, Any] | None = None,
    org_credentials: Mapping[str, str] | None = None,
    cancel_after: float | None = None,
    lose_lease_after: float | None = None,
    in_process: bool = False,
) -> Ran:
    """Run a handler as a worker would, without a database, and return how it ended.

    The payload goes to JSON and back, into the handler's type. What the handler returns or raises
    decides the outcome, as in a worker. Nothing is written.

    Args:
        registry: has the handler.
        job_type: which one: its name, or the handler itself.
        payload: what would be enqueued.
        org_id: the tenant.
        attempt: which attempt this is; at `max_attempts` a failure ends in a dead letter.
        max_attempts: default: the handler's, else 15.
        headers: of the job.
        saved: what an earlier attempt has saved, for `ctx.saved`.
        resources: what `ctx.resources` finds. None: the registry's lifespans are entered for this
            run, and `ctx.resources` finds what they make.
        connection: what `ctx.transaction()` and `ctx.org.transaction()` give, in a transaction of
            its own (or a savepoint, if one is open). There is no execution in the database, so the
            worker's fence and confinement are missing. `ctx.session()`, `ctx.django()` and
            `ctx.connection()` go where your libraries lead, without the fence, too. So do those of
            `ctx.org`. The rest of `ctx.org` asks this connection.
        org_config: what `ctx.org.config` gives, by the settings' names, instead of the database's.
        org_credentials: what `ctx.org.credentials` gives, by name.
        cancel_after: seconds after which the job is cancelled. 0: at the handler's first
            checkpoint. A cooperative handler has the worker's grace of 5 seconds after that.
        lose_lease_after: seconds after which the execution loses its lease. What the handler does
            in a transaction after that is rolled back, as it is in a worker.
        in_process: run a handler with `runs_in="process"` in a process of its own, as a worker
            does. Otherwise it runs in a thread, where the test can see what it does and can change
            what it uses. In a process `ctx.session()`, `ctx.django()` and `ctx.connection()` are
            refused.

    Cancellation: the handler is cancelled.

    Raises:
        UnknownJobType: the registry has no such handler.
        InvalidJob: the registry has another handler of this one's name.
        InvalidPayload, PayloadTooLarge: the payload could not be enqueued.
        NoDatabaseInTest: the handler opens a transaction, or asks `ctx.org` what the test does not
            give, and there is no `connection`.
    """
    handler = handler_of(job_type, registry)
    assert handler is not None  # there is a registry
    job = attrs.evolve(
        _job(handler, json.loads(handler.written(payload).text), org_id_of(org_id), attempt, max_attempts),
        headers=headers_of(headers or {}),
        saved=json.loads(write_state(saved, handler)[0] or "null"),
    )
    running = Running(job=ClaimedJob.from_job(job), renewed_at=trio.current_time())
    reach = Reach(connection, registry, org_config, org_credentials)
    stops = []
    if cancel_after is not None:
        stops.append((cancel_after, Interrupt(kind=InterruptKind.CANCELLED, by=BY)))
    if lose_lease_after is not None:
        stops.append((lose_lease_after, Interrupt(kind=InterruptKind.LEASE_LOST, why=f"lost by {BY}")))

    def begin() -> None:
        for seconds, why in stops:
            nursery.start_soon(_stop_after, running, seconds, why)
            if seconds <= 0:
                running.stop(why)

    deadlines = Deadlines(Running.stop)
    processes = Processes(count=1) if in_process and handler.runs_in is RunsIn.PROCESS else None
    executor = _Interrupting(
        registry=registry, reach=reach, deadlines=deadlines, processes=processes, random=lambda: MIDDLE, begin=begin
    )
    outcome: Outcome | None = None
    exception: BaseException | None = None
    mistake: NoDatabaseInTest | None = None
    async with trio.open_nursery() as nursery:
        try:
            if resources is None:
                async with open_resources(registry) as reach.resources:
                    outcome, exception = await execute(executor, running)
            else:
                reach.resources = Resources(resources)
                outcome, exception = await execute(executor, running)
        except NoDatabaseInTest as error:
            mistake = error  # not raised here, where trio would put it into a group
        finally:
            if processes is not None:
                await processes.aclose()
        nursery.cancel_scope.cancel()
    if mistake is not None:
        raise mistake
    if reach.completed_with is not None:
        outcome = reach.completed_with
    elif outcome is not None and running.interrupt is not None and running.interrupt.kind is InterruptKind.CANCELLED:
        # In a database the cancel would have committed first. So it wins here, too.
        outcome = Outcome(kind=SettleKind.CANCEL, name="cancelled", error_message=outcome.error_message)
    return _told(outcome, exception, reach)


def run_job_blocking(
    registry: JobRegistry,
    job_type: str | Handler[Any, Any, Any],
    payload: object = None,
    *,
    org_id: OrgId | uuid.UUID | str | int = NIL_ORG,
    attempt: int = 1,
    max_attempts: int | None = None,
    headers: Mapping[str, Any] | None = None,
    saved: object = None,
    resources: Iterable[object] | None = None,
    org_config: Mapping[str, Any] | None = None,
    org_credentials: Mapping[str, str] | None = None,
    cancel_after: float | None = None,
    lose_lease_after: float | None = None,
    in_process: bool = False,
) -> Ran:
    """Do what `run_job` does, for a test that is no async function, or one on asyncio.

    The event loop of the test, if there is one, stands still meanwhile.

    Args, Raises: as for `run_job`.
    """
    run = functools.partial(
        run_job,
        registry,
        job_type,
        payload,
        org_id=org_id,
        attempt=attempt,
        max_attempts=max_attempts,
        headers=headers,
        saved=saved,
        resources=resources,
        org_config=org_config,
        org_credentials=org_credentials,
        cancel_after=cancel_after,
        lose_lease_after=lose_lease_after,
        in_process=in_process,
    )
    return trio.run(run)


async def execute(executor: Executor, running: Running) -> tuple[Outcome | None, BaseException | None]:
    """Run one execution's handler to its end.

    Returns: its outcome (None: the lease was lost), and what the handler raised.

    Raises:
        NoDatabaseInTest: the test's mistake, not the handler's.
    """
    ended: Ended = Stopped()
    exception: BaseException | None = None
    try:
        with trio.CancelScope() as scope:
            ended = await executor.run(running, scope)
    except NoDatabaseInTest:
        raise
    except (Exception, SystemExit, asyncio.CancelledError) as error:  # noqa: BLE001  # whatever a handler raises is its outcome
        ended, exception = as_ended(error), error
    if isinstance(ended, Raised) and ended.undecodable:
        exception = PayloadUndecodable(ended.error)
    return executor.outcome_of(running, ended), exception


@attrs.frozen(eq=False, kw_only=True)
class _Interrupting(Executor):
    """Says when the handler begins, before the handler can do anything."""

    begin: Callable[[], None]

    def _begin(self, running: Running, handler: Handler, scope: trio.CancelScope) -> None:
        super()._begin(running, handler, scope)
        self.begin()


def refuse_what_was_lost(running: Running) -> None:
    """Refuse a transaction whose execution was told to stop meanwhile.

    Raises:
        LeaseLost, JobCancelled: as a worker's fence does.
    """
    if running.is_lost:
        raise LeaseLost(f"execution {running.lease.execution_id} no longer owns job {running.job.id}; it was rolled back")
    if running.interrupt is not None and running.interrupt.kind is InterruptKind.CANCELLED:
        raise JobCancelled(f"job {running.job.id} was cancelled; the transaction was rolled back")


class Reach:
    """What a handler can reach where there is no worker.

    It is the test's connection, and a list of what the handler reports.
    """

    schema = SCHEMA_DEFAULT

    def __init__(
        self,
        connection: Connection[Any] | None,
        registry: JobRegistry,
        org_config: Mapping[str, Any] | None = None,
        org_credentials: Mapping[str, str] | None = None,
    ) -> None:
        self.registry = registry
        self.resources = NO_RESOURCES
        self.token = trio.lowlevel.current_trio_token()
        self.reported: list[tuple[float | None, str | None]] = []
        self.saved: list[Any] = []
        self.completed_with: Outcome | None = None
        self._connection = connection
        self.desk = Desk(
            schema=SCHEMA_DEFAULT,
            tell=self._ask,
            provider=registry.credentials,
            config=org_config,
            credentials=org_credentials,
        )

    async def _ask(self, verb: Verb[Any]) -> Any:
        if self._connection is None:
            raise NoDatabaseInTest(
                "the handler asks ctx.org, and run_job has no database: pass run_job(..., connection=...), org_config= or"
                " org_credentials=, or test it with drain"
            )
        return await ask(self._connection, verb)

    @asynccontextmanager
    async def open_transaction(
        self,
        running: Running,
        *,
        org_id: OrgId | None = None,  # noqa: ARG002  # nothing confines the test's connection
        isolation: IsolationLevel | None = None,  # noqa: ARG002  # the test's connection has its own
        outcome: Outcome | None = None,
    ) -> AsyncIterator[Connection]:
        """Open a transaction on the test's connection.

        Raises:
            NoDatabaseInTest: the test gave none.
            LeaseLost, JobCancelled: the execution was told to stop meanwhile; rolled back.
        """
        if self._connection is None:
            raise NoDatabaseInTest(
                f"the handler of {running.job.job_type!r} opens a transaction, and run_job has no database: "
                "pass run_job(..., connection=...), or test it with drain"
            )
        async with self._connection.transaction():
            yield self._connection
            refuse_what_was_lost(running)
        if outcome is not None:
            self.completed_with = outcome

    def resources_of(self, kind: RunsIn) -> Resources:  # noqa: ARG002  # a test's are for all
        """Return what the lifespans have made, or the test gave."""
        return self.resources

    def fence(self, running: Running, outcome: Outcome | None) -> Fence:
        """Return a fence that fences nothing: there is no execution in the database."""
        return NoFence(self, running, outcome)

    fence_org = fence

    async def report(self, running: Running, fraction: float | None, message: str | None) -> bool:
        """Keep what the handler reports; False: the execution no longer owns the job."""
        await trio.lowlevel.checkpoint()
        if running.is_lost:
            return False
        self.reported.append((fraction, message))
        return True

    async def save(self, running: Running, saved: str | None) -> bool:
        """Keep what the handler saves; False: the execution no longer owns the job."""
        await trio.lowlevel.checkpoint()
        if running.is_lost:
            return False
        self.saved.append(None if saved is None else json.loads(saved))
        return True

    def note_progress(self, running: Running, fraction: float | None, message: str | None) -> None:  # noqa: ARG002
        """Keep what the handler reports."""
        self.reported.append((fraction, message))

    def keep_line(self, running: Running, at: float, level: str, text: str) -> None:
        """Keep nothing: there is no attempt in the database."""


class Completed(Protocol):
    """What keeps the outcome that a handler's own transaction has given its job."""

    completed_with: Outcome | None


@attrs.frozen(eq=False)
class NoFence:
    """The fence of an execution that no worker runs. It refuses a lost execution all the same."""

    reach: Completed
    running: Running
    outcome: Outcome | None
    commits: bool = False  # the test may roll back
    calls_here: bool = False

    def first(self) -> Verb[str]:
        """Begin."""
        return fence_nothing()

    def last(self, begun_in: str) -> Verb[str]:  # noqa: ARG002  # nothing was begun
        """Ask nothing."""
        refuse_what_was_lost(self.running)
        return Plan(lambda: _answer("held"))

    @contextmanager
    def around(self) -> Iterator[None]:
        """Keep the outcome of a block that was left without an error."""
        yield
        if self.outcome is not None:
            self.reach.completed_with = self.outcome


def _answer(word: str) -> Steps[str]:
    yield from ()
    return word


async def _stop_after(running: Running, seconds: float, why: Interrupt) -> None:
    if seconds > 0:
        await trio.sleep(seconds)
        running.stop(why)
    if running.is_cooperative and why.kind is InterruptKind.CANCELLED:
        await trio.sleep(GRACE_SECONDS)
        running.cancel_scope()


def _job(handler: Handler, payload: Any, org_id: OrgId, attempt: int, max_attempts: int | None) -> Job:
    now = datetime.now(UTC)
    return Job(
        id=JobId(uuid.uuid4()),
        org_id=org_id,
        queue_name=handler.queue or "default",
        job_type=handler.job_type,
        payload=payload,
        priority=0,
        status=Status.RUNNING,
        scheduled_at=now,
        attempts=attempt,
        max_attempts=max_attempts or max(handler.max_attempts or MAX_ATTEMPTS_DEFAULT, attempt),
        locked_by=WorkerId(uuid.uuid4()),
        current_execution_id=ExecutionId(uuid.uuid4()),
        lease_expires_at=now + timedelta(hours=1),
        started_at=now,
        created_at=now,
    )


def _told(outcome: Outcome | None, exception: BaseException | None, reach: Reach) -> Ran:
    progress = tuple(reach.reported)
    if outcome is None:
        return Ran(
            outcome=InterruptKind.LEASE_LOST.value, kind=None, exception=exception, progress=progress, saved=tuple(reach.saved)
        )
    delays = outcome.kind in {SettleKind.RETRY, SettleKind.SNOOZE}
    return Ran(
        outcome=outcome.name,
        kind=outcome.kind,
        result=None if outcome.result_json is None else json.loads(outcome.result_json),
        error_message=outcome.error_message,
        delay_seconds=outcome.delay_seconds if delays else None,
        reason=outcome.reason,
        exception=exception,
        progress=progress,
        saved=tuple(reach.saved),
    )
