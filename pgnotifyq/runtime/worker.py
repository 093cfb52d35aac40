"""A worker: two nurseries, one inside the other, so that the order of shutdown is the indentation.

Services (settler, heartbeat, listener, reclaimer, pruner, watchdog) are in the outer nursery, jobs
in the inner one. When the last job has ended and its outcome is durable, the services go. The first
signal stops claiming. Jobs run on, with heartbeats, until `shutdown_seconds` have passed or a
second signal comes. Then they are interrupted, given `grace_seconds`, and released.
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
from pgnotifyq.model.errors import ConfigError, DatabaseUnreachable
from pgnotifyq.model.events import Event, EventName
from pgnotifyq.model.handler import RunsIn
from pgnotifyq.model.http_address import HttpAddress
from pgnotifyq.model.job import WorkerId
from pgnotifyq.model.outcome import Interrupt, InterruptKind
from pgnotifyq.runtime.asyncio_loop import AsyncioLoop
from pgnotifyq.runtime.bell import Bell
from pgnotifyq.runtime.cancels import check_cancels, count_grace_for_ever, interrupt
from pgnotifyq.runtime.claimer import claim_for_ever
from pgnotifyq.runtime.context import WorkerReach
from pgnotifyq.runtime.deadlines import Deadlines, tell_deadlines_for_ever
from pgnotifyq.runtime.executions import Executions
from pgnotifyq.runtime.executor import Executor
from pgnotifyq.runtime.forks import ending_copies
from pgnotifyq.runtime.heartbeat import beat_for_ever, renew
from pgnotifyq.runtime.identity import Identity
from pgnotifyq.runtime.keeper import Keeper
from pgnotifyq.runtime.lifespans import lifespans_on, open_resources
from pgnotifyq.runtime.link import Link
from pgnotifyq.runtime.listener import Calls, listen_for_ever
from pgnotifyq.runtime.logs import is_routine_logged, naming
from pgnotifyq.runtime.metrics import Metrics, close_meter, open_meter
from pgnotifyq.runtime.organisations import Organisations, seconds_max_of
from pgnotifyq.runtime.processes import Fenced, Processes, refuse_in_import
from pgnotifyq.runtime.pruner import prune_for_ever
from pgnotifyq.runtime.pulse import Pulse
from pgnotifyq.runtime.reclaimer import reclaim_for_ever
from pgnotifyq.runtime.scheduler import publish_schedules, schedule_for_ever
from pgnotifyq.runtime.served import Served, ring_for_new_handlers
from pgnotifyq.runtime.settler import RELEASED, Settler
from pgnotifyq.runtime.shortcuts import Taker, answer, open_door
from pgnotifyq.runtime.slots import run_slot
from pgnotifyq.runtime.stacks import Stacks
from pgnotifyq.runtime.telling import Telling
from pgnotifyq.runtime.tenants import confine
from pgnotifyq.runtime.transactions import open_databases
from pgnotifyq.runtime.trust import (
    Trust,
    beat_when_asked,
    distrust_for_ever,
    give_back_for_ever,
    prove_for_ever,
    register,
    speak_by,
)
from pgnotifyq.runtime.wakeups import Push, Wakeups
from pgnotifyq.runtime.watchdog import names_of, watch_asyncio_for_ever, watch_for_ever
from pgnotifyq.wire.asking import ask
from pgnotifyq.wire.loops import need_trio
from pgnotifyq.wire.postmaster import find_postmaster

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pgnotifyq.model.channels import Cancel
    from pgnotifyq.model.events import EventSink
    from pgnotifyq.model.registry import JobRegistry
    from pgnotifyq.runtime.transactions import Databases
    from pgnotifyq.wire.connection import Connection

# How long one try of a link may take: long enough for a loaded server, and at most a sixth of the
# lease. So a frozen connection is given up and replaced well before the leases are given up.
LINK_DEADLINE_SECONDS = 5.0
LINK_DEADLINE_SHARE = 1 / 6
# When a worker leaves, it has so long to release what is left and to take its row away.
FAREWELL_SECONDS = 3.0


@attrs.define(eq=False)
class WorkerHandle:
    """What `nursery.start(run_worker, ...)` returns: the worker's id, and its two signals."""

    worker_id: WorkerId
    _first: trio.Event = attrs.field(factory=trio.Event)
    _second: trio.Event = attrs.field(factory=trio.Event)
    # The links that ask the database.
    _links: Sequence[Link] = ()
    _push: Push = attrs.field(factory=Push)
    # Jobs that had to be interrupted when the worker was shut down.
    interrupted: int = 0
    # Where probes and metrics are answered, as "127.0.0.1:9100"; None: nowhere.
    http: str | None = None

    def drain(self) -> None:
        """Stop claiming and let running jobs finish, under the deadline.

        Called a second time: interrupt them now.
        """
        if self._first.is_set():
            self._second.set()
        self._first.set()

    def stop(self) -> None:
        """Stop claiming and interrupt what runs."""
        self._first.set()
        self._second.set()

    def silent_seconds(self) -> float:
        """Return for how long the database has answered nothing; 0 if it is known to be away.

        Call this on the worker's event loop.
        """
        if any(link.is_down for link in self._links) or not self._links:
            return 0.0
        answered_at = max(self._push.answered_at, *(link.answered_at for link in self._links))
        return trio.current_time() - answered_at

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
    metrics: Metrics | None = None,
    task_status: trio.TaskStatus[WorkerHandle] = trio.TASK_STATUS_IGNORED,
    **settings: Unpack[WorkerSettings],
) -> WorkerHandle:
    """Work on queues until drained or cancelled.

    Args:
        registry: the handlers.
        dsn: the database.
        config: everything at once, instead of `settings`.
        listen_dsn: an address where LISTEN works, when `dsn` leads to a pooler in transaction mode.
        on_event: called with each event, in the worker's own task. It has to be quick. What it
            raises is logged, and the worker goes on. Default: logging.
        routine_events: whether `on_event` is told of each job that is claimed, and completed as
            planned.
        metrics: a `Metrics` that counts, for a program that serves its own `/metrics`. If `http` is
            given, the worker makes one itself.
        task_status: trio's, for `nursery.start`.
        settings: the fields of WorkerConfig: queues (in order of preference), concurrency,
            lease_seconds, shutdown_seconds, schema, http, ...

    Returns: the handle, when drained. `nursery.start` gives it as soon as the worker is ready to
    claim.

    Cancellation: running handlers are cancelled and their jobs released, under a short deadline.

    Raises:
        ConfigError: a setting is out of its bounds or not known, or given beside `config`.
        PgnotifyqError: trio does not run here.
        SchemaMissing, SchemaOutOfDate, SchemaTooNew, DatabaseTooOld, DatabaseUnreachable,
            MissingRights: at start.
        LifespanFailed: a lifespan of the registry's raised, before the worker claimed or after its
            last job.
    """
    need_trio("run_worker", "start it by trio.run; docs/worker.md has a worker beside an asyncio server")
    refuse_in_import()
    config = config_of(config, settings)
    handle = WorkerHandle(WorkerId(uuid.uuid4()))
    emit = Telling(on_event)
    if metrics is None and config.http is not None:
        metrics = Metrics()
    if metrics is not None and not isinstance(metrics, Metrics):
        raise ConfigError(f"metrics is a {type(metrics).__name__}, not a Metrics: pass pgnotifyq.Metrics()")
    meter = None
    if metrics is not None:
        meter = open_meter(metrics, handle.worker_id, registry, config.queues)
        emit.count = meter.note_event
    me = Identity(
        worker_id=handle.worker_id,
        registry=registry,
        served=Served(registry, config.schema, handle.worker_id),
        config=config,
        emit=emit,
        tells_routine=routine_events if on_event is not None else is_routine_logged(),
        meter=meter,
        random=random.Random(handle.worker_id.int),  # noqa: S311  # jitter
    )
    deadline_seconds = min(LINK_DEADLINE_SECONDS, config.lease_seconds * LINK_DEADLINE_SHARE)

    async with AsyncExitStack() as stack:
        stack.enter_context(ending_copies())
        if metrics is not None and meter is not None:
            stack.callback(close_meter, metrics, meter)
            if config.http is not None:
                # Imported only if needed: to import the standard library's server takes a while.
                from pgnotifyq.runtime.http import open_http

                address = HttpAddress.read(config.http)
                handle.http = await stack.enter_async_context(open_http(address, meter, metrics, config))
        databases = await stack.enter_async_context(open_databases(dsn, config, handle.worker_id))

        def link(name: str) -> Link:
            made = Link(dsn, name=name, deadline_seconds=deadline_seconds, emit=emit, randomness=me.random)
            stack.push_async_callback(made.close)
            return made

        staff = _Staff(me, databases, link, dsn)
        handle._links, handle._push = (staff.quick, staff.durable), staff.wakeups.push  # noqa: SLF001  # the handle is this module's own
        stack.push_async_callback(staff.loop.aclose)
        stack.push_async_callback(staff.processes.aclose)
        try:
            await staff.quick.attempt(lambda connection: _begin(staff, connection, dsn))
        except trio.TooSlowError as error:
            message = (
                f"The database did not answer within {deadline_seconds:g} s of the worker's start. Check that its server is well."
            )
            raise DatabaseUnreachable(message) from error
        try:
            with (
                open_door(staff.taker, dsn),
                naming(partial(names_of, staff.executions)),
                ring_for_new_handlers(registry, staff.wakeups.bell),
            ):
                async with open_resources(registry) as staff.reach.resources:
                    if staff.loop.has_lifespans:
                        await staff.loop.start()
                    await _work(staff, handle, listen_dsn or dsn, task_status)
        finally:
            with trio.move_on_after(FAREWELL_SECONDS, shield=True):
                await _say_farewell(staff)
    emit(
        Event(
            name=EventName.WORKER_STOPPED,
            fields={"worker_id": handle.worker_id, "interrupted": handle.interrupted},
        )
    )
    return handle


class _Staff:
    """Everybody who works in one worker, known to this file alone."""

    def __init__(self, me: Identity, databases: Databases, link: Callable[[str], Link], dsn: str) -> None:
        self.me = me
        self.dsn = dsn
        self.databases = databases
        self.tenants = ""  # how they are confined, for people; known once the worker has begun
        # Claims, heartbeats, sleep, watch: short statements whose commits do not wait for the disk.
        self.quick = link("claimer")
        # Outcomes, reclaim, prune: durable.
        self.durable = link("settler")
        # Signs of life, when the listener's session gives none (trust.py).
        self.beats = link("beat")
        self.trust = Trust(grace_seconds=me.config.session_grace_seconds)
        self.wakeups = Wakeups()
        self.executions = Executions(
            me.config.concurrency,
            me.emit if me.tells_routine else None,
            meter=me.meter,
            queues=me.queues,
            permits=me.config.queue_concurrency,
            opened=self.wakeups.bell,
        )
        # Ticks of schedules. It connects when the first tick comes.
        self.ticking = link("scheduler")
        # Rung when schedules should be looked at at once.
        self.schedules = Bell()
        # Rung when other workers should be looked at at once.
        self.company = Bell()
        self.deadlines = Deadlines(partial(interrupt, me, self.executions))
        self.keeper = Keeper(me.schema, link("keeper"))
        self.settler = Settler(me, self.executions, self.durable, self.keeper)
        self.taker = Taker(me=me, executions=self.executions, wakeups=self.wakeups, settler=self.settler, quick=self.quick)
        self.loop = AsyncioLoop(lifespans_on(me.registry, RunsIn.ASYNCIO))
        seconds_max = seconds_max_of(
            backstop_seconds=me.config.backstop_seconds,
            poll_seconds=me.config.poll_seconds,
            is_proven=lambda: self.wakeups.push.is_proven,
        )
        self.stacks = Stacks(me, self.executions, self.loop, self.quick)
        self.organisations = Organisations(me.schema, link("organisations"), seconds_max, me.registry.credentials)
        self.reach = WorkerReach(
            me.schema, me.registry, databases, self.quick, self.durable, self.loop, self.organisations, self.keeper
        )
        self.processes = Processes(
            count=me.config.handler_processes_max,
            jobs_max=me.config.handler_process_jobs_max,
            memory_bytes_max=me.config.handler_process_memory_bytes_max,
            fenced=Fenced(schema=me.schema, worker_id=str(me.worker_id)),
        )
        self.executor = Executor(
            registry=me.registry,
            reach=self.reach,
            deadlines=self.deadlines,
            threads=trio.CapacityLimiter(me.config.concurrency),
            loop=self.loop,
            processes=self.processes,
            emit=me.emit,
            meter=me.meter,
            random=me.random.random,
            take_more=self.executions.take_more,
            add=self.settler.add,
        )

    def calls(self) -> Calls:
        """Return whom the listener calls."""
        me, executions, trust, quick = self.me, self.executions, self.trust, self.quick

        async def check(news: Sequence[Cancel], connection: Connection) -> None:
            await check_cancels(me, executions, news, connection, quick.deadline_seconds)

        def ring_for_life() -> None:
            if len(executions):
                trust.bell.ring()

        return Calls(
            speak=partial(speak_by, me, trust, executions),
            catch_up=lambda: renew(me, quick, executions, list(executions)),
            hear_life=trust.hear,
            lost=ring_for_life,
            cancels=check,
            wake_up=partial(answer, self.taker),
            company=self.company.ring,
            config=self.organisations.forget,
            schedules=self.schedules.ring,
            stack=self.stacks.hear,
        )


async def _begin(staff: _Staff, connection: Connection, dsn: str) -> None:
    """Check what the worker stands on, and publish it."""
    me = staff.me
    await check_schema(connection, me.schema)
    with translated(me.schema):
        staff.tenants = await confine(staff.databases, connection, dsn, me.config.tenant_dsn)
        staff.trust.postmaster = await find_postmaster(connection, dsn)
        await register(me, staff.trust, staff.executions, connection)
        await publish_schedules(me, connection)


async def _work(staff: _Staff, handle: WorkerHandle, listen_dsn: str, task_status: trio.TaskStatus[WorkerHandle]) -> None:
    me, quick, durable, executions = staff.me, staff.quick, staff.durable, staff.executions
    trust, wakeups, settler, push = staff.trust, staff.wakeups, staff.settler, staff.wakeups.push
    async with trio.open_nursery() as services:
        services.start_soon(settler.settle_for_ever)
        services.start_soon(settler.settle_busy_for_ever)
        services.start_soon(staff.keeper.keep_for_ever)
        services.start_soon(beat_for_ever, me, quick, executions, push, trust.bell)
        services.start_soon(distrust_for_ever, me, trust, executions)
        services.start_soon(prove_for_ever, trust, executions, push)
        services.start_soon(beat_when_asked, me, trust, executions, staff.beats)
        services.start_soon(give_back_for_ever, executions, settler)
        services.start_soon(count_grace_for_ever, me, executions)
        services.start_soon(tell_deadlines_for_ever, staff.deadlines, executions)
        services.start_soon(reclaim_for_ever, me, quick, durable, trust.grace_seconds, staff.company, wakeups)
        services.start_soon(prune_for_ever, me, durable)
        services.start_soon(schedule_for_ever, me, quick, staff.ticking, staff.schedules, push)
        services.start_soon(listen_for_ever, me, listen_dsn, quick, wakeups, staff.calls())
        services.start_soon(watch_for_ever, me, executions, staff.dsn)
        services.start_soon(watch_asyncio_for_ever, me, staff.loop)
        services.start_soon(staff.stacks.answer_for_ever)
        if me.meter is not None:
            pulse = Pulse(
                meter=me.meter,
                executions=executions,
                settler=settler,
                push=push,
                links=(quick, durable),
                pool=staff.databases.pool,
            )
            pulse.publish()
            services.start_soon(pulse.beat_for_ever)
        async with trio.open_nursery() as jobs:
            for _ in range(executions.count):
                jobs.start_soon(run_slot, executions, staff.executor, settler, me.emit)
            fields = {
                "worker_id": handle.worker_id,
                "queues": ",".join(me.queues),
                "concurrency": executions.count,
                "handlers": ",".join(sorted(me.registry.job_types)),
                "tenants": staff.tenants,
            }
            if me.config.queue_concurrency:
                fields["queue_concurrency"] = ",".join(f"{name}:{most}" for name, most in me.config.queue_concurrency.items())
            if handle.http is not None:
                fields["http"] = handle.http
            me.emit(Event(name=EventName.WORKER_STARTED, fields=fields))
            task_status.started(handle)
            await _claim_until(staff, handle)
            executions.close()
            await _drain(staff, handle)
        await staff.keeper.keep_rest()
        services.cancel_scope.cancel(reason="pgnotifyq: the worker has drained")


async def _claim_until(staff: _Staff, handle: WorkerHandle) -> None:
    """Claim until the first signal."""
    async with trio.open_nursery() as claiming:
        claiming.start_soon(claim_for_ever, staff.me, staff.quick, staff.executions, staff.wakeups)
        await handle._first.wait()  # noqa: SLF001  # the handle is this module's own
        # This is set now, and not when the claimer has ended: the claim under way may still bring
        # jobs, and none of them shall start.
        staff.executions.is_draining = True
        claiming.cancel_scope.cancel(reason="pgnotifyq: draining")


async def _drain(staff: _Staff, handle: WorkerHandle) -> None:
    """Let running jobs finish; interrupt what is left at the deadline or the second signal."""
    me, executions = staff.me, staff.executions
    me.emit(
        Event(
            name=EventName.WORKER_STOPPING,
            fields={"running": len(executions), "shutdown_seconds": me.config.shutdown_seconds},
        )
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(staff.quick.ask, workers.set_state(me.schema, me.worker_id, "draining"))
        with trio.move_on_after(me.config.shutdown_seconds):
            await wait_any(executions.emptied.wait, handle._second.wait)  # noqa: SLF001  # see above
        # What has ended is not interrupted: its outcome is on its way.
        left = [running for running in executions if not running.has_ended]
        handle.interrupted = sum(not running.is_settled for running in left)
        for running in left:
            interrupt(me, executions, running, Interrupt(kind=InterruptKind.SHUTDOWN, why="the worker is shutting down"))
        await executions.emptied.wait()
        nursery.cancel_scope.cancel()


async def _say_farewell(staff: _Staff) -> None:
    """Release what the worker still holds, uncharged, and take its row away.

    If the database is gone, the jobs are free when their leases run out.

    The settler's session may have ended unnoticed, while the worker was idle or stood still. Then
    another session is opened, once.
    """
    me = staff.me

    async def once(connection: Connection) -> None:
        ended = staff.settler.unwritten()
        known = {running.job.id for running in ended}
        left = [(running.lease, running.outcome_known) for running in ended]
        left += [(running.lease, RELEASED) for running in staff.executions if running.job.id not in known]
        if left:
            await ask(connection, end.settle_surely(me.schema, worker_id=me.worker_id, settlements=left))
        await ask(connection, workers.unregister(me.schema, me.worker_id))

    for is_last in (False, True):
        try:
            await staff.durable.attempt(once)
        except Exception as error:
            if whose(error) is Whose.OURS and not isinstance(error, trio.TooSlowError):
                raise
            if is_last or whose(error) is not Whose.SESSION:
                me.emit(Event(name=EventName.DATABASE_LOST, fields={"connection": "farewell", "why": str(error)}))
                return
        else:
            return
