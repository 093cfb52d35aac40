"""For the tests of programs that use the queue.

Run one handler without a database, or a worker until nothing is due.
"""

from __future__ import annotations

import functools
import json
import uuid
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Unpack

import attrs
import trio

from pgnotifyq.ledger.ask import Plan
from pgnotifyq.ledger.claimed import ClaimedJob
from pgnotifyq.ledger.fences import fence_nothing
from pgnotifyq.ledger.look import is_idle
from pgnotifyq.migrating import check_schema
from pgnotifyq.model.config import WorkerSettings, config_of
from pgnotifyq.model.errors import PayloadUndecodable, PgnotifyqError
from pgnotifyq.model.job import MAX_ATTEMPTS_DEFAULT, NIL_ORG, ExecutionId, Job, JobId, OrgId, WorkerId
from pgnotifyq.model.outcome import Ended, Outcome, Raised, SettleKind, Stopped
from pgnotifyq.model.states import Status
from pgnotifyq.runtime.deadlines import Deadlines
from pgnotifyq.runtime.executor import Executor, as_ended
from pgnotifyq.runtime.running import Running
from pgnotifyq.runtime.worker import run_worker
from pgnotifyq.wire.asking import ask
from pgnotifyq.wire.connection import open_connection
from pgnotifyq.wire.sessions import For

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from psycopg import IsolationLevel

    from pgnotifyq.ledger.ask import Steps, Verb
    from pgnotifyq.model.events import Event
    from pgnotifyq.model.registry import Handler, JobRegistry
    from pgnotifyq.runtime.fenced import Fence
    from pgnotifyq.wire.connection import Connection

IDLE_SECONDS_MAX = 30.0  # how long work_until_idle works before it fails
MIDDLE = 0.5  # of the jitter
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

    The payload goes to JSON and back, into the handler's type; what the handler returns or raises
    is decided on like a worker decides, and nothing is written.

    Args:
        registry: has the handler.
        job_type: which one.
        payload: what would be enqueued.
        org_id: the tenant.
        attempt: which attempt this is; at `max_attempts` a failure ends in a dead letter.
        max_attempts: default: the handler's, else 3.
        connection: what `ctx.transaction()` and `ctx.org.transaction()` give, in a transaction of
            its own (a savepoint in an open one); without the worker's fence and confinement, for
            there is no execution in the database. `ctx.session()`, `ctx.django()` and
            `ctx.connection()` go where your libraries lead, without the fence, too.

    Cancellation: the handler is cancelled.

    Raises:
        UnknownJobType: the registry has no such handler.
        InvalidPayload, PayloadTooLarge: it could not be enqueued.
    """
    handler = registry.get(job_type)
    job = _job(handler, json.loads(handler.written(payload).text), OrgId(org_id), attempt, max_attempts)
    running = Running(job=ClaimedJob.from_job(job), renewed_at=trio.current_time())
    reach = _Reach(connection)
    executor = Executor(registry=registry, reach=reach, deadlines=Deadlines(Running.stop), random=lambda: MIDDLE)
    ended: Ended = Stopped()
    exception: BaseException | None = None
    try:
        with trio.CancelScope() as scope:
            ended = await executor.run(running, scope)
    except NoDatabaseInTest:
        raise  # the test's mistake, not the handler's
    except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever a handler raises is its outcome
        ended, exception = as_ended(error), error
    if isinstance(ended, Raised) and ended.undecodable:
        exception = PayloadUndecodable(ended.error)
    outcome = executor.outcome_of(running, ended)
    assert outcome is not None  # only a lost lease writes nothing, and there is none to lose
    return _told(reach.completed_with or outcome, exception, reach)


async def work_until_idle(
    registry: JobRegistry,
    dsn: str,
    *,
    timeout_seconds: float = IDLE_SECONDS_MAX,
    **settings: Unpack[WorkerSettings],
) -> list[Event]:
    """Run a real worker until no job of its queues is due or held, and return its events.

    Jobs that handlers enqueue are worked on too. Those that fall due later are not waited for: a
    retry's delay, a snooze.

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


class _Reach:
    """What a handler can reach where there is no worker.

    It is the test's connection, and a list of what the handler reports.
    """

    def __init__(self, connection: Connection[Any] | None) -> None:
        self.token = trio.lowlevel.current_trio_token()
        self.reported: list[tuple[float | None, str | None]] = []
        self.completed_with: Outcome | None = None
        self._connection = connection

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
        """
        if self._connection is None:
            raise NoDatabaseInTest(
                f"the handler of {running.job.job_type!r} opens a transaction, and run_job has no database: "
                "pass run_job(..., connection=...), or test it with work_until_idle"
            )
        async with self._connection.transaction():
            yield self._connection
        if outcome is not None:
            self.completed_with = outcome

    def fence(self, running: Running, outcome: Outcome | None) -> Fence:
        """Return what fences nothing: there is no execution in the database."""
        return _NoFence(self, running, outcome)

    async def report(self, running: Running, fraction: float | None, message: str | None) -> bool:  # noqa: ARG002  # there is one
        """Keep what the handler reports."""
        self.reported.append((fraction, message))
        await trio.lowlevel.checkpoint()
        return True


@attrs.frozen(eq=False)
class _NoFence:
    """The fence of an execution that is in no database."""

    reach: _Reach
    running: Running
    outcome: Outcome | None
    commits: bool = False  # the test may roll back

    def first(self) -> Verb[str]:
        """Begin."""
        return fence_nothing()

    def last(self, begun_in: str) -> Verb[str]:  # noqa: ARG002  # nothing was begun
        """Ask nothing."""
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


def _told(outcome: Outcome, exception: BaseException | None, reach: _Reach) -> Ran:
    delays = outcome.kind in {SettleKind.RETRY, SettleKind.SNOOZE}
    return Ran(
        outcome=outcome.name,
        kind=outcome.kind,
        result=None if outcome.result_json is None else json.loads(outcome.result_json),
        error_message=outcome.error_message,
        delay_seconds=outcome.delay_seconds if delays else None,
        reason=outcome.reason,
        exception=exception,
        progress=tuple(reach.reported),
    )
