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
    JOB_LEFT_OPEN = "job.left_open"
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
    # Of a worker process's standard output: nobody read it.
    EVENTS_DROPPED = "events.dropped"


# What every job makes that goes as planned: the rest is worth a look.
ROUTINE = frozenset({EventName.JOB_CLAIMED, EventName.JOB_COMPLETED})


@attrs.frozen(kw_only=True)
class Event:
    """Something that happened in a worker. Fields hold keys, names and numbers; never payloads, never passwords."""

    name: EventName
    fields: Mapping[str, Any] = attrs.field(factory=dict)


EventSink = Callable[[Event], None]

VALUE_CHARS_MAX = 300  # of one field in a line
FIELD_CHARS_MAX = 8_000  # of one field elsewhere: a stack has its place


def as_line(event: Event, at: datetime) -> str:
    """Return an event as one line for people."""
    told = " ".join(f"{name}={shown_value(value)}" for name, value in event.fields.items())
    return f"{at.strftime('%H:%M:%S')}.{at.microsecond // 1000:03d} {event.name.value:<18} {told}".rstrip()


def as_json(event: Event, at: datetime) -> str:
    """Return an event as one line of JSON."""
    own = {"at": at.isoformat(), "event": event.name.value}
    fields = {name: bounded_value(value) for name, value in event.fields.items()}
    # First for the reader, and last so that no field takes their place.
    return json.dumps({**own, **fields, **own}, default=str, ensure_ascii=True, allow_nan=False)


def bounded_value(value: object) -> object:
    """Return a field as JSON can say it, cut to a bound."""
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)  # json would write NaN, which nothing else reads
    return _cut(_text(value), FIELD_CHARS_MAX)


def shown_value(value: object) -> str:
    """Return a field as text of one line."""
    # Cut first: escaping a text of 50 MB character by character holds the event loop for seconds.
    text = f"{value:.6g}" if isinstance(value, float) else _text(value)[: VALUE_CHARS_MAX + 1]
    # Control characters would let a job's error forge lines of the log.
    text = _cut("".join(c if c.isprintable() else ascii(c)[1:-1] for c in text), VALUE_CHARS_MAX)
    return json.dumps(text, ensure_ascii=False) if " " in text or not text else text


def _text(value: object) -> str:
    try:
        return str(value)
    except Exception as error:  # noqa: BLE001  # a log takes what it is given, also what raises when it is looked at
        return f"(its text cannot be had: {type(error).__name__})"


def _cut(text: str, chars_max: int) -> str:
    return text if len(text) <= chars_max else text[: chars_max - 3] + "..."
