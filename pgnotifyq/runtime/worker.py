"""A worker: two nurseries, one inside the other, so that the order of shutdown is the indentation.

Services (settler, heartbeat, listener, reclaimer, pruner, watchdog) are outside, jobs inside: when the last job has ended, its
outcome durable, the services go. The first signal stops claiming; jobs run on, with heartbeats, until `shutdown_seconds`
have passed or a second signal comes; then they are interrupted, given `grace_seconds`, and released.
"""

from __future__ import annotations

import random
import uuid
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Unpack

import attrs
import trio
from trio_util import wait_any

from pgnotifyq.ledger import end, workers
from pgnotifyq.ledger.errors import Whose, translated, whose
from pgnotifyq.migrating import check_schema
from pgnotifyq.model.config import WorkerConfig, WorkerSettings, config_of
from pgnotifyq.model.errors import DatabaseUnreachable
from pgnotifyq.model.events import Event, EventName
from pgnotifyq.model.job import WorkerId
from pgnotifyq.model.outcome import Interrupt, InterruptKind
from pgnotifyq.runtime.claimer import claim_for_ever
from pgnotifyq.runtime.deadlines import tell_deadlines_for_ever
from pgnotifyq.runtime.executions import Executions
from pgnotifyq.runtime.executor import execute_for_ever
from pgnotifyq.runtime.forks import ending_copies
from pgnotifyq.runtime.handover import open_door
from pgnotifyq.runtime.heartbeat import beat_for_ever, count_grace_for_ever, interrupt
from pgnotifyq.runtime.link import Link
from pgnotifyq.runtime.listener import listen_for_ever
from pgnotifyq.runtime.logs import is_routine_logged, naming
from pgnotifyq.runtime.parts import Parts
from pgnotifyq.runtime.pruner import prune_for_ever
from pgnotifyq.runtime.reclaimer import reclaim_for_ever
from pgnotifyq.runtime.served import ring_for_new_handlers
from pgnotifyq.runtime.settler import RELEASED
from pgnotifyq.runtime.telling import Telling
from pgnotifyq.runtime.tenants import find_tenant_role, open_databases
from pgnotifyq.runtime.trust import (
    Trust,
    beat_when_asked,
    distrust_for_ever,
    give_back_for_ever,
    prove_for_ever,
    register,
)
from pgnotifyq.runtime.watchdog import names_of, watch_for_ever
from pgnotifyq.wire.asking import ask
from pgnotifyq.wire.postmaster import find_postmaster

if TYPE_CHECKING:
    from pgnotifyq.model.events import EventSink
    from pgnotifyq.model.registry import JobRegistry
    from pgnotifyq.wire.connection import Connection

# A try of the links: long enough for a loaded server, and at most a sixth of the lease, so that a frozen connection is
# given up and replaced well before the leases are.
LINK_DEADLINE_SECONDS = 5.0
LINK_DEADLINE_SHARE = 1 / 6
# The last words of a worker, when it leaves: release what is left and take its row away.
FAREWELL_SECONDS = 3.0


@attrs.define(eq=False)
class WorkerHandle:
    """What `nursery.start(run_worker, ...)` returns: the worker's id, and its two signals."""

    worker_id: WorkerId
    _first: trio.Event = attrs.field(factory=trio.Event)
    _second: trio.Event = attrs.field(factory=trio.Event)
    # Jobs that had to be interrupted when the worker was shut down.
    interrupted: int = 0

    def drain(self) -> None:
        """Stop claiming and let running jobs finish, under the deadline. Said a second time: interrupt them now."""
        if self._first.is_set():
            self._second.set()
        self._first.set()

    def stop(self) -> None:
        """Stop claiming and interrupt what runs."""
        self._first.set()
        self._second.set()

    @property
    def is_draining(self) -> bool:
        """Whether the worker was told to stop."""
        return self._first.is_set()


async def run_worker(
    registry: JobRegistry,
    dsn: str,
    *,
    config: WorkerConfig | None = None,
    listen_dsn: str | None = None,
    on_event: EventSink | None = None,
    routine_events: bool = True,
    task_status: trio.TaskStatus[WorkerHandle] = trio.TASK_STATUS_IGNORED,
    **settings: Unpack[WorkerSettings],
) -> WorkerHandle:
    """Work on queues until drained or cancelled.

    Args:
        registry: the handlers.
        dsn: the database.
        config: everything at once, instead of `settings`.
        listen_dsn: an address where LISTEN works, when `dsn` leads to a pooler in transaction mode.
        on_event: called with each event, in the worker's own task; quick. What it raises is logged, and the worker goes on.
            Default: logging.
        routine_events: whether `on_event` is told of each job that is claimed, and completed as planned.
        task_status: trio's, for `nursery.start`.
        settings: the fields of WorkerConfig: queues (in order of preference), concurrency, lease_seconds, shutdown_seconds, schema, ...

    Returns: the handle, when drained. `nursery.start` gives it as soon as the worker is ready to claim.

    Cancellation: running handlers are cancelled and their jobs released, under a short deadline.

    Raises:
        ConfigError: a setting is out of its bounds or not known, or given beside `config`.
        SchemaMissing, SchemaOutOfDate, SchemaTooNew, DatabaseTooOld, DatabaseUnreachable, MissingRights: at start.
    """
    config = config_of(config, settings)
    handle = WorkerHandle(WorkerId(uuid.uuid4()))
    emit = Telling(on_event)
    randomness = random.Random(handle.worker_id.int)  # noqa: S311  # jitter
    tells_routine = routine_events if on_event is not None else is_routine_logged()
    deadline_seconds = min(LINK_DEADLINE_SECONDS, config.lease_seconds * LINK_DEADLINE_SHARE)

    def link(name: str) -> Link:
        return Link(dsn, name=name, deadline_seconds=deadline_seconds, emit=emit, randomness=randomness)

    async with AsyncExitStack() as stack:
        stack.enter_context(ending_copies())
        databases = await stack.enter_async_context(open_databases(dsn, config))
        parts = Parts(
            worker_id=handle.worker_id,
            registry=registry,
            config=config,
            emit=emit,
            random=randomness,
            quick=link("claimer"),
            durable=link("settler"),
            beats=link("beat"),
            listen_dsn=listen_dsn or dsn,
            databases=databases,
            trust=Trust(grace_seconds=config.session_grace_seconds),
            executions=Executions(config.concurrency, emit if tells_routine else None),
            threads=trio.CapacityLimiter(config.concurrency),
            tells_routine=tells_routine,
        )
        stack.push_async_callback(parts.quick.close)
        stack.push_async_callback(parts.durable.close)
        stack.push_async_callback(parts.beats.close)
        try:
            await parts.quick.attempt(lambda connection: _begin(parts, connection, dsn))
        except trio.TooSlowError as error:
            message = (
                f"The database did not answer within {deadline_seconds:g} s of the worker's start. Check that its server is well."
            )
            raise DatabaseUnreachable(message) from error
        try:
            with open_door(parts, dsn), naming(partial(names_of, parts)), ring_for_new_handlers(parts):
                await _work(parts, handle, task_status)
        finally:
            with trio.move_on_after(FAREWELL_SECONDS, shield=True):
                await _say_farewell(parts)
    emit(
        Event(
            name=EventName.WORKER_STOPPED,
            fields={"worker_id": handle.worker_id, "interrupted": handle.interrupted},
        )
    )
    return handle


async def _begin(parts: Parts, connection: Connection, dsn: str) -> None:
    """Check what the worker stands on, and publish it."""
    await check_schema(connection, parts.config.schema)
    parts.databases.tenant_role = await find_tenant_role(connection, parts.config.schema)
    with translated(parts.config.schema):
        parts.trust.postmaster = await find_postmaster(connection, dsn)
        await register(parts, connection)


async def _work(parts: Parts, handle: WorkerHandle, task_status: trio.TaskStatus[WorkerHandle]) -> None:
    config = parts.config
    async with trio.open_nursery() as services:
        services.start_soon(parts.settler.settle_for_ever)
        services.start_soon(parts.settler.settle_busy_for_ever)
        services.start_soon(beat_for_ever, parts)
        services.start_soon(distrust_for_ever, parts)
        services.start_soon(prove_for_ever, parts)
        services.start_soon(beat_when_asked, parts)
        services.start_soon(give_back_for_ever, parts)
        services.start_soon(count_grace_for_ever, parts)
        services.start_soon(tell_deadlines_for_ever, parts)
        services.start_soon(reclaim_for_ever, parts)
        services.start_soon(prune_for_ever, parts)
        services.start_soon(listen_for_ever, parts)
        services.start_soon(watch_for_ever, parts)
        async with trio.open_nursery() as jobs:
            for _ in range(config.concurrency):
                jobs.start_soon(execute_for_ever, parts)
            fields = {
                "worker_id": handle.worker_id,
                "queues": ",".join(config.queues),
                "concurrency": config.concurrency,
                "handlers": ",".join(sorted(parts.registry.job_types)),
            }
            parts.emit(Event(name=EventName.WORKER_STARTED, fields=fields))
            task_status.started(handle)
            await _claim_until(handle, parts)
            parts.executions.close()
            await _drain(parts, handle)
        services.cancel_scope.cancel(reason="pgnotifyq: the worker has drained")


async def _claim_until(handle: WorkerHandle, parts: Parts) -> None:
    """Claim until the first signal."""
    async with trio.open_nursery() as claiming:
        claiming.start_soon(claim_for_ever, parts)
        await handle._first.wait()  # noqa: SLF001  # the handle is this module's own
        # Now, not when the claimer has ended: the claim under way may still bring jobs, and none of them shall start.
        parts.executions.is_draining = True
        claiming.cancel_scope.cancel(reason="pgnotifyq: draining")


async def _drain(parts: Parts, handle: WorkerHandle) -> None:
    """Let running jobs finish; interrupt those that are left at the deadline or at the second signal."""
    config = parts.config
    parts.emit(
        Event(
            name=EventName.WORKER_STOPPING,
            fields={"running": len(parts.executions), "shutdown_seconds": config.shutdown_seconds},
        )
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_show_draining, parts)
        with trio.move_on_after(config.shutdown_seconds):
            await wait_any(parts.executions.emptied.wait, handle._second.wait)  # noqa: SLF001  # see above
        # What has ended is not interrupted: its outcome is on its way.
        left = [running for running in parts.executions if not running.has_ended]
        handle.interrupted = sum(not running.is_settled for running in left)
        for running in left:
            interrupt(parts, running, Interrupt(kind=InterruptKind.SHUTDOWN, why="the worker is shutting down"))
        await parts.executions.emptied.wait()
        nursery.cancel_scope.cancel()


async def _show_draining(parts: Parts) -> None:
    await parts.quick.ask(workers.set_state(parts.config.schema, parts.worker_id, "draining"))


async def _say_farewell(parts: Parts) -> None:
    """Release what the worker still holds, uncharged, and take its row away. If the database is gone, leases do it.

    The settler's session may have ended unnoticed, while the worker was idle or stood still: then another one is opened, once.
    """

    async def once(connection: Connection) -> None:
        ended = parts.settler.unwritten()
        known = {running.job.id for running, _ in ended}
        left = [(running.lease, settlement) for running, settlement in ended]
        left += [(running.lease, RELEASED) for running in parts.executions if running.job.id not in known]
        if left:
            await ask(connection, end.settle_surely(parts.config.schema, worker_id=parts.worker_id, settlements=left))
        await ask(connection, workers.unregister(parts.config.schema, parts.worker_id))

    for is_last in (False, True):
        try:
            await parts.durable.attempt(once)
        except Exception as error:
            if whose(error) is Whose.OURS and not isinstance(error, trio.TooSlowError):
                raise
            if is_last or whose(error) is not Whose.SESSION:
                parts.emit(Event(name=EventName.DATABASE_LOST, fields={"connection": "farewell", "why": str(error)}))
                return
        else:
            return
