"""Events: what a worker says it does. The same names in logs, metrics and tests."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import attrs

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
    JOB_RECLAIMED = "job.reclaimed"
    JOBS_PRUNED = "jobs.pruned"
    JOB_PUT_ASIDE = "job.put_aside"  # its row could not be written, read or ended; it is looked at again later
    LEASE_LOST = "lease.lost"
    OUTCOME_REFUSED = "outcome.refused"
    LISTENER_CONNECTED = "listener.connected"
    LISTENER_LOST = "listener.lost"
    LISTENER_POLLING = "listener.polling"
    DATABASE_LOST = "database.lost"
    DATABASE_BACK = "database.back"
    LOOP_BLOCKED = "loop.blocked"


# What every job makes that goes as planned: the rest is worth a look.
ROUTINE = frozenset({EventName.JOB_CLAIMED, EventName.JOB_COMPLETED})


@attrs.frozen(kw_only=True)
class Event:
    """Something that happened in a worker. Fields hold keys, names and numbers; never payloads, never passwords."""

    name: EventName
    fields: Mapping[str, Any] = attrs.field(factory=dict)


EventSink = Callable[[Event], None]

VALUE_CHARS_MAX = 300  # of one field in a line


def as_line(event: Event, at: datetime) -> str:
    """Return an event as one line for people."""
    told = " ".join(f"{name}={_shown(value)}" for name, value in event.fields.items())
    return f"{at.strftime('%H:%M:%S')}.{at.microsecond // 1000:03d} {event.name.value:<18} {told}".rstrip()


def as_json(event: Event, at: datetime) -> str:
    """Return an event as one line of JSON."""
    own = {"at": at.isoformat(), "event": event.name.value}
    fields = {name: value if _is_json(value) else str(value) for name, value in event.fields.items()}
    # First for the reader, and last so that no field takes their place.
    return json.dumps({**own, **fields, **own}, default=str, ensure_ascii=True, allow_nan=False)


def _is_json(value: object) -> bool:
    return not isinstance(value, float) or math.isfinite(value)  # json would write NaN, which nothing else reads


def _shown(value: object) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    # Control characters would let a job's error forge lines of the log.
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    if len(text) > VALUE_CHARS_MAX:
        text = text[: VALUE_CHARS_MAX - 3] + "..."
    return json.dumps(text, ensure_ascii=False) if " " in text or not text else text
