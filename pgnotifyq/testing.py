"""For the tests of programs that use the queue: run one handler without a database, or a worker until nothing is due."""

from __future__ import annotations

import functools
import json
import uuid
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Unpack, cast

import attrs
import trio

from pgnotifyq.ledger.claimed import ClaimedJob
from pgnotifyq.ledger.look import is_idle
from pgnotifyq.migrating import check_schema
from pgnotifyq.model.config import WorkerSettings, config_of
from pgnotifyq.model.errors import PayloadUndecodable, PgnotifyqError
from pgnotifyq.model.job import MAX_ATTEMPTS_DEFAULT, NIL_ORG, ExecutionId, Job, JobId, OrgId, WorkerId
from pgnotifyq.model.outcome import Ended, Raised, Returned, SettleKind, Settlement, Stopped, decide, ended_by
from pgnotifyq.model.payload import encode, structure
from pgnotifyq.model.registry import finished
from pgnotifyq.model.retry import RetryPolicy
from pgnotifyq.model.states import Status
from pgnotifyq.runtime.context import JobContext
from pgnotifyq.runtime.running import Running
from pgnotifyq.runtime.tenants import OrgContext
from pgnotifyq.runtime.worker import run_worker
from pgnotifyq.wire.asking import ask
from pgnotifyq.wire.connection import open_connection
from pgnotifyq.wire.sessions import For

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from psycopg import IsolationLevel

    from pgnotifyq.model.events import Event
    from pgnotifyq.model.registry import Handler, JobRegistry
    from pgnotifyq.runtime.parts import Parts
    from pgnotifyq.wire.connection import Connection

IDLE_SECONDS_MAX = 30.0  # how long work_until_idle works before it fails
LOOK_SECONDS = 0.5  # how often it looks without being told: jobs that other workers hold end without an event here


class NoDatabaseInTest(PgnotifyqError):
    """A handler under `run_job` asked for a transaction, and the test gave no connection."""


@attrs.frozen(kw_only=True)
class Ran:
    """How a handler under `run_job` ended, and what a worker would have written."""

    outcome: str  # completed, failed, timed_out, snoozed, discarded, undecodable
    kind: SettleKind  # complete, retry, snooze, bury
    result: Any = None  # what the job's result would be, decoded JSON
    error_message: str | None = None
    delay_seconds: float | None = None  # of a retry or snooze; the policy's without its jitter
    reason: str | None = None  # of a dead letter: exhausted, discarded, undecodable
    exception: BaseException | None = None  # what the handler raised
    progress: tuple[tuple[float | None, str | None], ...] = ()  # what it reported, oldest first


async def run_job(
    registry: JobRegistry,
    job_type: str,
    payload: object = None,
    *,
    org_id: OrgId | uuid.UUID = NIL_ORG,
    attempt: int = 1,
    max_attempts: int | None = None,
    connection: Connection[Any] | None = None,
) -> Ran:
    """Run a handler as a worker would, without a database, and return how it ended.

    The payload goes to JSON and back, into the handler's type; what the handler returns or raises is decided on like a worker
    decides, and nothing is written.

    Args:
        registry: has the handler.
        job_type: which one.
        payload: what would be enqueued.
        org_id: the tenant.
        attempt: which attempt this is; at `max_attempts` a failure ends in a dead letter.
        max_attempts: default: the handler's, else 3.
        connection: what `ctx.transaction()` and `ctx.org.transaction()` give, in a transaction of its own (a savepoint in an
            open one); without the worker's fence and confinement, for there is no execution in the database.

    Cancellation: the handler is cancelled.

    Raises:
        UnknownJobType: the registry has no such handler.
        InvalidPayload, PayloadTooLarge: it could not be enqueued.
    """
    handler = registry.get(job_type)
    job = _job(handler, json.loads(encode(payload)), OrgId(org_id), attempt, max_attempts)
    running = Running(job=ClaimedJob.from_job(job), renewed_at=trio.current_time())
    context = _Context(running, connection)
    ended, exception = await _run(handler, running, context)
    settlement = decide(
        ended,
        running.interrupt,
        attempt=attempt,
        max_attempts=job.max_attempts or MAX_ATTEMPTS_DEFAULT,
        retry=handler.retry or RetryPolicy(),
        random=lambda: 0.5,  # the middle of the jitter
    )
    assert settlement is not None  # only a lost lease writes nothing, and there is none to lose
    return _told(context.completed_with or settlement, exception, context)


async def work_until_idle(
    registry: JobRegistry,
    dsn: str,
    *,
    timeout_seconds: float = IDLE_SECONDS_MAX,
    **settings: Unpack[WorkerSettings],
) -> list[Event]:
    """Run a real worker until no job of its queues is due or held, and return its events, oldest first.

    Jobs that handlers enqueue are worked on too. Those that fall due later are not waited for: a retry's delay, a snooze.

    Args:
        registry: the handlers.
        dsn: the database of the test.
        timeout_seconds: how long it may take.
        settings: as for `run_worker`: queues, schema, concurrency, shutdown_seconds, ...

    Cancellation: running handlers are cancelled and their jobs released.

    Raises:
        ConfigError: a setting is out of its bounds or not known.
        trio.TooSlowError: jobs were still due or held after `timeout_seconds`.
        SchemaMissing, SchemaOutOfDate, SchemaTooNew: migrate the test's database first.
    """
    config = config_of(None, {"shutdown_seconds": 0, **settings})
    events: list[Event] = []
    told = trio.Event()

    def hear(event: Event) -> None:
        events.append(event)
        told.set()

    async with open_connection(dsn, application_name="pgnotifyq testing", used_for=For.CALLER) as connection:
        await check_schema(connection, config.schema)
        with trio.fail_after(timeout_seconds):
            async with trio.open_nursery() as nursery:
                work = functools.partial(run_worker, registry, dsn, config=config, on_event=hear)
                handle = await nursery.start(work)
                while True:
                    told = trio.Event()
                    if await ask(connection, is_idle(config.schema, config.queues)):
                        break
                    with trio.move_on_after(LOOK_SECONDS):
                        await told.wait()
                handle.drain()
    return events


async def _run(handler: Handler, running: Running, context: _Context) -> tuple[Ended, BaseException | None]:
    job = running.job.whole
    try:
        payload = job if handler.takes_job else structure(job.payload, handler.payload_type)
    except PayloadUndecodable as error:
        return Raised(error=str(error), undecodable=True), error
    arguments = (payload, context) if handler.takes_context else (payload,)
    running.started_at = trio.current_time()
    ended: Ended = Stopped()
    exception: BaseException | None = None
    try:
        with trio.CancelScope() as scope:
            running.handler = handler
            if handler.timeout_seconds is not None:
                scope.deadline = running.started_at + handler.timeout_seconds
            running.scope = scope
            if handler.is_async:
                value = await handler.call(*arguments)
            else:
                (value,) = await trio.to_thread.run_sync(lambda: (handler.call(*arguments),))
            ended = Returned(await finished(handler, value))
    except NoDatabaseInTest:
        raise  # the test's mistake, not the handler's
    except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever a handler raises is its outcome
        ended, exception = ended_by(error), error
    finally:
        running.interrupt = running.why_stop()
        running.scope = None
    return ended, exception


class _Context(JobContext):
    """A job's context without a worker."""

    def __init__(self, running: Running, connection: Connection[Any] | None) -> None:
        super().__init__(parts=cast("Parts", None), running=running)
        self._connection = connection
        self._token = trio.lowlevel.current_trio_token()
        self.reported: list[tuple[float | None, str | None]] = []
        self.completed_with: Settlement | None = None

    @property
    def org(self) -> OrgContext:
        """The tenant."""
        return _Org(self)

    @asynccontextmanager
    async def transaction(
        self,
        *,
        complete: bool = False,
        result: object = None,
        isolation: IsolationLevel | None = None,  # noqa: ARG002  # the test's connection has its own
    ) -> AsyncIterator[Connection]:
        """Open a transaction on the test's connection, which has its own isolation.

        Raises:
            NoDatabaseInTest: the test gave none.
        """
        if self._connection is None:
            raise NoDatabaseInTest(
                f"the handler of {self.job.job_type!r} opens a transaction, and run_job has no database: "
                "pass run_job(..., connection=...), or test it with work_until_idle"
            )
        async with self._connection.transaction():
            yield self._connection
        if complete:
            settlement = decide(
                Returned(result), None, attempt=self.attempt, max_attempts=self.attempt, retry=RetryPolicy(), random=float
            )
            self.completed_with = settlement

    def _trio_token(self) -> trio.lowlevel.TrioToken:
        return self._token

    async def _report(self, fraction: float | None, message: str | None) -> None:
        if fraction is not None and not 0 <= fraction <= 1:
            raise ValueError(f"progress {fraction!r} is not between 0 and 1")
        self.reported.append((fraction, message))
        await trio.lowlevel.checkpoint()


class _Org(OrgContext):
    """A tenant without a worker."""

    def __init__(self, context: _Context) -> None:
        self._context = context
        self.id = context.job.org_id

    @asynccontextmanager
    async def transaction(self, *, isolation: IsolationLevel | None = None) -> AsyncIterator[Connection]:  # noqa: ARG002  # see above
        """Open a transaction on the test's connection, which has its own isolation."""
        async with self._context.transaction() as connection:
            yield connection


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


def _told(settlement: Settlement, exception: BaseException | None, context: _Context) -> Ran:
    delays = settlement.kind in {SettleKind.RETRY, SettleKind.SNOOZE}
    return Ran(
        outcome=settlement.outcome,
        kind=settlement.kind,
        result=None if settlement.result_json is None else json.loads(settlement.result_json),
        error_message=settlement.error_message,
        delay_seconds=settlement.delay_seconds if delays else None,
        reason=settlement.reason,
        exception=exception,
        progress=tuple(context.reported),
    )
