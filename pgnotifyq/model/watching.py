"""What is told to clients that watch: events of jobs, and lines that handlers have logged."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any
from uuid import UUID

import attrs

from pgnotifyq.model.job import JobId, OrgId

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pgnotifyq.model.job import Job

# How many events one iterator holds while nobody reads it. Beyond that, the oldest events are lost,
# and the iterator says how many.
EVENTS_HELD_MAX = 10_000
# What `watch` compares of a job. The lease, which changes by itself while a job runs, is not in it.
_WATCHED = (
    "queue_name",
    "payload",
    "priority",
    "scheduled_at",
    "status",
    "attempts",
    "current_execution_id",
    "progress",
    "progress_message",
    "completed_at",
    "error_message",
)


class JobEventKind(StrEnum):
    """What has happened to a job."""

    ENQUEUED = "enqueued"  # it exists: it is new, or a dead letter was brought back
    EDITED = "edited"  # it waits, and its queue, its payload, its priority or when it is due was changed
    STARTED = "started"  # an attempt has begun
    PROGRESS = "progress"  # its handler has said how far it has come
    STOPPING = "stopping"  # it was cancelled, and its handler still runs
    ENDED = "ended"  # an attempt has ended, or the job was cancelled before any attempt
    LOST = "lost"  # of no job: this iterator has missed events


@attrs.frozen(kw_only=True)
class JobEvent:
    """What has happened to a job, and how the job is when the event is told.

    The two may differ: when an event tells that a job has started, the job may have ended.
    """

    kind: JobEventKind
    at: datetime | None  # when it happened, on the database's clock; None: of lost
    job_id: JobId | None = None  # None: of lost
    attempt: int | None = None  # of started, progress, stopping, ended
    fraction: float | None = None  # of progress: from 0 to 1; None: the handler does not know
    outcome: str | None = None  # of ended, as the history of the job has it: completed, failed, timed_out, ...
    lost: int | None = None  # of lost: how many events; None: nobody knows how many
    # How the job is now.
    org_id: OrgId | None = None
    queue: str | None = None
    job_type: str | None = None
    status: str | None = None  # its status, or scheduled, retrying, stopping, dead
    progress: float | None = None
    message: str | None = None  # of its progress
    error_message: str | None = None


@attrs.frozen(kw_only=True)
class LogLine:
    """A line that a handler has logged by `ctx.log`."""

    attempt: int
    at: datetime | None  # on the worker's clock; None: of what is left out
    level: str  # debug, info, warning, error, critical; empty: of what is left out
    text: str  # with its traceback, if there is one
    left_out: int = 0  # how many lines are gone here: the log of an attempt has at most 64 KiB


def state_of(job: Job[Any]) -> tuple[object, ...]:
    """Return the watched values of a job. If one of them differs, the job has changed."""
    return tuple(getattr(job, name) for name in _WATCHED)


def count_of(lines: Iterable[LogLine]) -> int:
    """Return how many lines were logged, those that are left out included."""
    return sum(line.left_out or 1 for line in lines)


def events_in(payload: str) -> Iterator[JobEvent]:
    """Read what a follower was told.

    Any role can send a notification. A line that no code of ours would send is left out.
    """
    for line in payload.split("\n"):
        event = _event_of(line.split(" "))
        if event is not None:
            yield event


def _event_of(words: list[str]) -> JobEvent | None:
    try:
        match words:
            case ["lost", count]:
                return JobEvent(kind=JobEventKind.LOST, at=None, lost=int(count))
            case [name, at, job, *rest]:
                kind = JobEventKind(name)
                told: dict[str, Any] = {}
                if rest:
                    told["attempt"] = int(rest[0])
                if len(rest) > 1:
                    told["fraction" if kind is JobEventKind.PROGRESS else "outcome"] = (
                        float(rest[1]) if kind is JobEventKind.PROGRESS else rest[1]
                    )
                return JobEvent(kind=kind, at=datetime.fromtimestamp(float(at), UTC), job_id=JobId(UUID(job)), **told)
    except (ValueError, OverflowError, OSError):
        pass
    return None
