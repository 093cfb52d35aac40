"""Events: what a worker says that it does. Logs, metrics and tests use the same names.

`SHAPES` says what fields an event of each name carries. A field that is not `NotRequired` is always
there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, NotRequired, TypedDict

import attrs

from pgnotifyq.model.job import JobId, WorkerId

if TYPE_CHECKING:
    from datetime import datetime


class EventName(StrEnum):
    """Every event there is."""

    WORKER_STARTED = "worker.started"
    WORKER_STOPPING = "worker.stopping"
    WORKER_STOPPED = "worker.stopped"
    JOB_CLAIMED = "job.claimed"
    JOB_COMPLETED = "job.completed"
    JOB_RETRIED = "job.retried"
    JOB_SNOOZED = "job.snoozed"
    JOB_RELEASED = "job.released"
    JOB_CANCELLED = "job.cancelled"
    JOB_DEAD = "job.dead"
    JOB_INTERRUPTED = "job.interrupted"
    JOB_UNRESPONSIVE = "job.unresponsive"
    JOB_LEFT_OPEN = "job.left_open"
    JOB_RECLAIMED = "job.reclaimed"
    JOBS_PRUNED = "jobs.pruned"
    # Of a schedule. Fired: a tick has its job. Missed, skipped: ticks were left out, by what the
    # schedule says of missed ticks or of overlap. Failed: the schedule could not be followed, and
    # is looked at again later.
    SCHEDULE_FIRED = "schedule.fired"
    SCHEDULE_MISSED = "schedule.missed"
    SCHEDULE_SKIPPED = "schedule.skipped"
    SCHEDULE_FAILED = "schedule.failed"
    # A job's row could not be written, read or ended. The row is looked at again later.
    JOB_PUT_ASIDE = "job.put_aside"
    LEASE_LOST = "lease.lost"
    OUTCOME_REFUSED = "outcome.refused"
    LISTENER_CONNECTED = "listener.connected"
    LISTENER_LOST = "listener.lost"
    LISTENER_POLLING = "listener.polling"
    DATABASE_LOST = "database.lost"
    DATABASE_BACK = "database.back"
    LOOP_BLOCKED = "loop.blocked"
    # Of a parent process (`worker --processes`): its worker processes, and what `--reload` saw.
    PROCESS_STARTED = "process.started"
    PROCESS_ENDED = "process.ended"
    CODE_CHANGED = "code.changed"
    CODE_UNWATCHED = "code.unwatched"
    # Nobody read a worker process's standard output.
    EVENTS_DROPPED = "events.dropped"


# Every job and tick that goes as planned makes these events. All others are worth a look.
ROUTINE = frozenset({EventName.JOB_CLAIMED, EventName.JOB_COMPLETED, EventName.SCHEDULE_FIRED})


@attrs.frozen(kw_only=True)
class Event:
    """Something that happened in a worker.

    Fields hold keys, names and numbers; never payloads, never passwords.
    """

    name: EventName
    fields: Mapping[str, Any] = attrs.field(factory=dict)


EventSink = Callable[[Event], None]

Seconds = Annotated[float, "seconds"]


class OfExecution(TypedDict):
    """What every event of an execution says."""

    job_id: JobId
    job_type: str
    queue: str
    attempt: int  # the first is 1


class WorkerStarted(TypedDict):
    """The worker is ready to claim."""

    worker_id: WorkerId
    queues: str  # in order of preference, with commas in between
    concurrency: Annotated[int, "jobs"]
    handlers: str  # job types, sorted, with commas in between
    tenants: str  # how a tenant's transactions are confined, and by what
    http: NotRequired[str]  # where probes and metrics are answered
    queue_concurrency: NotRequired[str]  # of queues that have their own: name:jobs, with commas in between


class WorkerStopping(TypedDict):
    """The worker claims no more."""

    running: Annotated[int, "jobs"]
    shutdown_seconds: Seconds  # how long these jobs may go on


class WorkerStopped(TypedDict):
    """The worker has ended."""

    worker_id: WorkerId
    interrupted: Annotated[int, "jobs"]


class JobClaimed(OfExecution):
    """The worker has taken a job."""


class JobEnded(OfExecution):
    """An execution has ended, and the database knows."""

    why: NotRequired[str]  # the first line of what went wrong, or why it was stopped
    seconds: NotRequired[Seconds]  # since its handler started; absent if no handler started


class JobDelayed(JobEnded):
    """An execution has ended, and the job will be tried again later."""

    delay_seconds: Seconds


class JobInterrupted(TypedDict):
    """A handler was told to stop."""

    job_id: JobId
    job_type: str
    reason: str  # an InterruptKind
    why: NotRequired[str]


class JobUnresponsive(TypedDict):
    """A handler was told to stop, and its grace is over."""

    job_id: JobId
    job_type: str
    why: str


class JobLeftOpen(OfExecution):
    """A handler has ended, and left a scope, a nursery or a task open."""

    left: str  # what


class JobReclaimed(OfExecution):
    """The job of a worker that is dead, or was given up, is free again."""

    became: str  # pending, dead, cancelled; or completed, if its worker could not write that
    from_worker: WorkerId


class JobsPruned(TypedDict):
    """Finished jobs, or parts of them, were deleted after their retention."""

    jobs: Annotated[int, "jobs"]
    letters: Annotated[int, "letters"]  # dead letters that were deleted
    blanked: Annotated[int, "jobs"]  # jobs and letters whose payload or result was blanked


class ScheduleFired(TypedDict):
    """A tick of a schedule has its job."""

    schedule: str
    scheduled_for: str  # the tick, in UTC
    job_id: JobId


class ScheduleMissed(TypedDict):
    """Ticks of a schedule were left out: no worker was there in time."""

    schedule: str
    missed_from: str  # the first of them, in UTC


class ScheduleSkipped(TypedDict):
    """A tick of a schedule was left out: the run before had not ended."""

    schedule: str
    scheduled_for: str


class ScheduleFailed(TypedDict):
    """A schedule could not be published or followed."""

    schedule: NotRequired[str]  # not there if it is about all of them
    why: str | None


class JobPutAside(TypedDict):
    """A job's row could not be written, read or ended; it is looked at again later."""

    verb: str  # claim, complete, retry, snooze, release, cancel, bury, reclaim, prune, schedule
    why: str | None  # what the database said
    job_id: NotRequired[JobId]  # absent if nobody could find out which row it is
    job_type: NotRequired[str | None]
    queue: NotRequired[str | None]
    attempt: NotRequired[int]
    sqlstate: NotRequired[str | None]
    seconds: NotRequired[Seconds]  # since its handler started


class OutcomeRefused(TypedDict):
    """A part of an outcome could not be kept.

    The part is the result, or an error that the handler raised after the job's own transaction had
    completed the job.
    """

    job_id: JobId
    why: str | None


class ListenerConnected(TypedDict):
    """Notifications arrive."""


class ListenerDown(TypedDict):
    """Notifications do not arrive, and the worker polls."""

    why: str


class DatabaseLost(TypedDict):
    """The worker has lost a connection. It tries again until it succeeds."""

    connection: str  # claimer, settler, beat, scheduler, keeper, organisations or farewell
    why: str


class DatabaseBack(TypedDict):
    """A connection of the worker's works again."""

    connection: str


class LoopBlocked(TypedDict):
    """A task has held the event loop for too long: a job's task, or another one."""

    seconds: Seconds
    stack: str  # the calls, the innermost first, a line each
    job_id: NotRequired[JobId]  # if it is a job's task
    job_type: NotRequired[str]
    handler: NotRequired[str | None]  # module:qualname
    runs_in: NotRequired[str]  # asyncio, if the task holds asyncio's loop
    task: NotRequired[str]  # the task's name, if it is another one


class ProcessStarted(TypedDict):
    """A parent has started a worker process."""

    process: int  # which one; the first is 1
    pid: int


class ProcessEnded(TypedDict):
    """A worker process has ended without being told to, or it could not be started."""

    process: int
    pid: NotRequired[int]  # of one that was started
    exit_code: NotRequired[int]  # of one that was started; below zero: the signal that has ended it
    why: NotRequired[str]
    restart_seconds: NotRequired[Seconds]  # until it is started again


class CodeChanged(TypedDict):
    """Files have changed, and all processes are started anew."""

    files: str  # the first ten, with commas in between


class CodeUnwatched(TypedDict):
    """Files cannot be watched just now. The processes go on; the watch is tried again."""

    why: str
    retry_seconds: Annotated[float, "seconds"]


class EventsDropped(TypedDict):
    """Lines of a worker process's standard output are missing here."""

    lines: Annotated[int, "lines"]
    why: str


SHAPES: Mapping[EventName, type] = {
    EventName.WORKER_STARTED: WorkerStarted,
    EventName.WORKER_STOPPING: WorkerStopping,
    EventName.WORKER_STOPPED: WorkerStopped,
    EventName.JOB_CLAIMED: JobClaimed,
    EventName.JOB_COMPLETED: JobEnded,
    EventName.JOB_RETRIED: JobDelayed,
    EventName.JOB_SNOOZED: JobDelayed,
    EventName.JOB_RELEASED: JobEnded,
    EventName.JOB_CANCELLED: JobEnded,
    EventName.JOB_DEAD: JobEnded,
    EventName.JOB_INTERRUPTED: JobInterrupted,
    EventName.JOB_UNRESPONSIVE: JobUnresponsive,
    EventName.JOB_LEFT_OPEN: JobLeftOpen,
    EventName.JOB_RECLAIMED: JobReclaimed,
    EventName.JOBS_PRUNED: JobsPruned,
    EventName.SCHEDULE_FIRED: ScheduleFired,
    EventName.SCHEDULE_MISSED: ScheduleMissed,
    EventName.SCHEDULE_SKIPPED: ScheduleSkipped,
    EventName.SCHEDULE_FAILED: ScheduleFailed,
    EventName.JOB_PUT_ASIDE: JobPutAside,
    EventName.LEASE_LOST: JobEnded,
    EventName.OUTCOME_REFUSED: OutcomeRefused,
    EventName.LISTENER_CONNECTED: ListenerConnected,
    EventName.LISTENER_LOST: ListenerDown,
    EventName.LISTENER_POLLING: ListenerDown,
    EventName.DATABASE_LOST: DatabaseLost,
    EventName.DATABASE_BACK: DatabaseBack,
    EventName.LOOP_BLOCKED: LoopBlocked,
    EventName.PROCESS_STARTED: ProcessStarted,
    EventName.PROCESS_ENDED: ProcessEnded,
    EventName.CODE_CHANGED: CodeChanged,
    EventName.CODE_UNWATCHED: CodeUnwatched,
    EventName.EVENTS_DROPPED: EventsDropped,
}

VALUE_CHARS_MAX = 300  # of one field in a line
FIELD_CHARS_MAX = 8_000  # of one field elsewhere: enough for a stack


def as_line(event: Event, at: datetime) -> str:
    """Return an event as one line for people."""
    told = " ".join(f"{name}={shown_value(value)}" for name, value in event.fields.items())
    return f"{at.strftime('%H:%M:%S')}.{at.microsecond // 1000:03d} {event.name.value:<18} {told}".rstrip()


def as_json(event: Event, at: datetime) -> str:
    """Return an event as one line of JSON."""
    own = {"at": at.isoformat(), "event": event.name.value}
    fields = {name: bounded_value(value) for name, value in event.fields.items()}
    # `own` comes first for the reader, and again last, so that no field replaces it.
    return json.dumps({**own, **fields, **own}, default=str, ensure_ascii=True, allow_nan=False)


def bounded_value(value: object) -> object:
    """Return a field as JSON can say it, cut to a bound."""
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        # json would write NaN, which other readers of JSON refuse.
        return value if math.isfinite(value) else str(value)
    return _cut(_text(value), FIELD_CHARS_MAX)


def shown_value(value: object) -> str:
    """Return a field as text of one line."""
    # Cut first. To escape a text of 50 MB, character by character, holds the event loop for
    # seconds.
    text = f"{value:.6g}" if isinstance(value, float) else _text(value)[: VALUE_CHARS_MAX + 1]
    # Control characters would let a job's error forge lines of the log.
    text = _cut("".join(c if c.isprintable() else ascii(c)[1:-1] for c in text), VALUE_CHARS_MAX)
    return json.dumps(text, ensure_ascii=False) if " " in text or not text else text


def _text(value: object) -> str:
    try:
        return str(value)
    except Exception as error:  # noqa: BLE001  # a value may raise when it is looked at
        return f"(its text cannot be had: {type(error).__name__})"


def _cut(text: str, chars_max: int) -> str:
    return text if len(text) <= chars_max else text[: chars_max - 3] + "..."
