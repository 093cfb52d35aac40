"""Run what is due to its end: by a real worker, or within the test's own open transaction."""

from __future__ import annotations

import asyncio
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any, Unpack

import anyio.to_thread
import attrs
import trio

from pgnotifyq.ledger.look import is_idle
from pgnotifyq.ledger.testing import due_queues
from pgnotifyq.migrating import check_schema
from pgnotifyq.model.config import WorkerConfig, WorkerSettings, config_of
from pgnotifyq.model.errors import ConfigError, PgnotifyqError
from pgnotifyq.model.events import EventName
from pgnotifyq.model.new_job import QUEUE_DEFAULT
from pgnotifyq.runtime.worker import run_worker
from pgnotifyq.testing.noting import Wishes, noting
from pgnotifyq.testing.within import Ending, drain_within
from pgnotifyq.wire.asking import ask
from pgnotifyq.wire.connection import open_connection
from pgnotifyq.wire.kinds import kind_of
from pgnotifyq.wire.sessions import For

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Coroutine, Generator, Sequence

    from pgnotifyq.model.events import Event
    from pgnotifyq.model.registry import JobRegistry
    from pgnotifyq.wire.kinds import CallersConnection

IDLE_SECONDS_MAX = 30.0  # how long a worker works before the test fails
# How often a drain looks without an event. A job that another worker holds ends without one here.
LOOK_SECONDS = 0.5
JOBS_MAX = 1000  # in one drain: a job that enqueues itself would go on for ever
_WORDS = {
    EventName.JOB_COMPLETED: "completed",
    EventName.JOB_RETRIED: "retried",
    EventName.JOB_SNOOZED: "snoozed",
    EventName.JOB_RELEASED: "released",
    EventName.JOB_CANCELLED: "cancelled",
    EventName.JOB_DEAD: "dead",
}


class JobFailed(PgnotifyqError):
    """A job failed in a drain, and its handler raised nothing, as when it took too long."""


class Drained(list[Ending]):
    """How the executions of a drain ended, in order.

    In an async test, await it. Before that, nothing has been run.
    """

    def __init__(self, coming: Coroutine[Any, Any, list[Ending]] | None = None) -> None:
        super().__init__()
        self._coming = coming

    def __await__(self) -> Generator[Any, Any, Drained]:
        coming, self._coming = self._coming, None
        if coming is not None:
            self.extend((yield from coming.__await__()))
        return self

    @property
    def outcomes(self) -> dict[str, int]:
        """How many executions ended in which way."""
        return dict(Counter(ending.outcome for ending in self))


def drain(
    registry: JobRegistry,
    dsn: str | None = None,
    *,
    connection: CallersConnection | None = None,
    raises: bool = True,
    timeout_seconds: float = IDLE_SECONDS_MAX,
    **settings: Unpack[WorkerSettings],
) -> Drained:
    """Run the jobs that are due, and those that they enqueue, until none is due.

    Jobs that fall due later are left, as after a retry's delay or a snooze. So are jobs of types
    that the registry does not have.

    In a test that is no async function, the jobs have been run when this returns. In an async test,
    on trio or on asyncio, await it: `await drain(...)`.

    Args:
        registry: the handlers.
        dsn: the database of the test. A real worker runs the jobs: async handlers on trio, others
            in threads, several at once.
        connection: instead of a database, any connection that `connection=` of `enqueue` takes.
            The jobs that its open transaction sees are run one after the other, and nothing is
            committed. `ctx.transaction()` is a savepoint of it. If the connection is blocking,
            handlers that are no async functions are called in this thread.
        raises: raise what the first failing handler has raised, once the job is settled. False: do
            not; the endings have it. A handler's wish (Retry, Snooze, Discard) is no failure.
        timeout_seconds: how long a worker may take.
        settings: as for `run_worker`. `queues`: only these; default: all that have due jobs. With a
            connection, `queues` and `schema` count, and nothing else does.

    Returns: how each execution ended.

    Cancellation: running handlers are cancelled and their jobs released. On asyncio, a cancel waits
    for the end of the drain.

    Raises:
        ConfigError: neither a database nor a connection was given, or both; or the connection has
            no open transaction.
        JobFailed: a job failed with no exception of its handler's: it has timed out.
        trio.TooSlowError: jobs were still due or held after `timeout_seconds`.
        SchemaMissing, SchemaOutOfDate, SchemaTooNew: migrate the test's database first.
    """
    if (dsn is None) is (connection is None):
        raise ConfigError("drain wants a database or a connection: pass dsn, or connection=, and not both")

    def is_enough(ending: Ending) -> bool:
        return raises and ending.is_failure

    async def run() -> list[Ending]:
        if connection is not None:
            schema, queues = settings.get("schema", "pgnotifyq"), settings.get("queues")
            found = await drain_within(registry, connection, schema=schema, queues=queues, jobs_max=JOBS_MAX, until=is_enough)
        else:
            assert dsn is not None
            with trio.fail_after(timeout_seconds):
                found = await _drain_by_worker(registry, dsn, is_enough, settings)
        if raises:
            for ending in found:
                _raise_failure(ending)
        return found

    # If the test does not await `drain`, Python's warning has the name of this function in it.
    async def run_in_thread() -> list[Ending]:
        return await anyio.to_thread.run_sync(trio.run, run)

    if connection is not None and not kind_of(connection).is_blocking:
        return Drained(run())
    if trio.lowlevel.in_trio_run():
        return Drained(run())
    if connection is None and _is_in_asyncio():
        return Drained(run_in_thread())
    done = Drained()
    done.extend(trio.run(run))
    return done


def _raise_failure(ending: Ending) -> None:
    if not ending.is_failure:
        return
    note = f"in job {ending.job_id} of type {ending.job_type!r}, which drain has run"
    if ending.exception is None:
        raise JobFailed(f"{ending.why or ending.outcome}: {note}")
    ending.exception.add_note(note)
    raise ending.exception


def _is_in_asyncio() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def _drain_by_worker(
    registry: JobRegistry, dsn: str, is_enough: Callable[[Ending], bool], settings: WorkerSettings
) -> list[Ending]:
    """Run a worker on the queues that have due jobs, until none has."""
    config = config_of(None, {"shutdown_seconds": 0, **settings})
    wanted = settings.get("queues")
    wishes = Wishes()
    noted = noting(registry, wishes)
    endings: list[Ending] = []

    def hear(event: Event) -> bool:
        if event.name in _WORDS:
            endings.append(_ending(event, wishes))
            return len(endings) > JOBS_MAX or is_enough(endings[-1])
        return False

    async with open_connection(dsn, application_name="pgnotifyq testing", used_for=For.CALLER) as connection:
        await check_schema(connection, config.schema)

        async def find_due(queues: Collection[str] | None) -> list[str]:
            return await ask(connection, due_queues(config.schema, registry.job_types, queues))

        while due := await find_due(wanted):
            served = set(due)
            if wanted is None:  # what the jobs enqueue goes to these, as a rule
                served |= {handler.queue or QUEUE_DEFAULT for handler in registry.handlers}
            config = attrs.evolve(config, queues=sorted(served))
            if await _work_until(noted, dsn, config, partial(find_due, config.queues), hear):
                break
    if len(endings) > JOBS_MAX:
        raise AssertionError(f"{JOBS_MAX} jobs were run, and more are due: does a job enqueue itself?")
    return endings


def _ending(event: Event, wishes: Wishes) -> Ending:
    job_id = event.fields["job_id"]
    outcome = _WORDS[event.name]
    return Ending(
        job_id=job_id,
        job_type=event.fields["job_type"],
        outcome=outcome,
        why=event.fields.get("why"),
        exception=wishes.raised.get(job_id),
        is_failure=outcome in {"retried", "dead"} and job_id not in wishes.wished,
    )


async def _work_until(
    registry: JobRegistry,
    dsn: str,
    config: WorkerConfig,
    find_due: Callable[[], Awaitable[Sequence[str]]],
    hear: Callable[[Event], bool],
) -> bool:
    """Run a worker until nothing is due, or until an event is enough.

    Returns: whether an event was.
    """
    told = trio.Event()
    is_enough = False

    def on_event(event: Event) -> None:
        nonlocal is_enough
        is_enough = hear(event) or is_enough
        told.set()

    async with trio.open_nursery() as nursery:
        handle = await nursery.start(partial(run_worker, registry, dsn, config=config, on_event=on_event))
        while not is_enough:
            told = trio.Event()
            if not await find_due():
                break
            with trio.move_on_after(LOOK_SECONDS):
                await told.wait()
        handle.drain()
    return is_enough


async def work_until_idle(
    registry: JobRegistry, dsn: str, *, timeout_seconds: float = IDLE_SECONDS_MAX, **settings: Unpack[WorkerSettings]
) -> list[Event]:
    """Run a real worker until no job of its queues is due or held, and return its events.

    `drain` says how each job ended, and raises what a handler has raised. `work_until_idle` is for
    tests of the events that a worker tells. Jobs that handlers enqueue are worked on, too. Jobs
    that fall due later are not waited for, as after a retry's delay or a snooze.

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

    def hear(event: Event) -> bool:
        events.append(event)
        return False

    async with open_connection(dsn, application_name="pgnotifyq testing", used_for=For.CALLER) as connection:
        await check_schema(connection, config.schema)

        async def find_due() -> Sequence[str]:
            return () if await ask(connection, is_idle(config.schema, config.queues)) else config.queues

        with trio.fail_after(timeout_seconds):
            await _work_until(registry, dsn, config, find_due, hear)
    return events
