"""Where events go when nobody asked for them: the standard library's logging, under `pgnotifyq`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from pgnotifyq.model.events import ROUTINE, EventName

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pgnotifyq.model.events import Event

_log = logging.getLogger("pgnotifyq")
_LOUD = frozenset(
    {
        EventName.JOB_DEAD,
        EventName.JOB_UNRESPONSIVE,
        EventName.LEASE_LOST,
        EventName.LISTENER_POLLING,
        EventName.LISTENER_LOST,
        EventName.DATABASE_LOST,
        EventName.OUTCOME_REFUSED,
        EventName.JOB_PUT_ASIDE,
        EventName.LOOP_BLOCKED,
    }
)


def is_routine_logged() -> bool:
    """Tell whether anybody would see the events that every job makes."""
    return _log.isEnabledFor(logging.DEBUG)


def log_event(event: Event) -> None:
    """Write one event as a log record; its fields are in `extra`."""
    level = logging.DEBUG if event.name in ROUTINE else logging.WARNING if event.name in _LOUD else logging.INFO
    if _log.isEnabledFor(level):
        told = " ".join(f"{name}={value}" for name, value in event.fields.items())
        _log.log(level, "%s %s", event.name.value, told, extra={"pgnotifyq": dict(event.fields)})


def log_blocked(fields: Mapping[str, Any]) -> None:
    """Say at once, from the watchdog's thread, who holds the event loop; where nobody set up logging, on standard error."""
    who = f"handler {fields['handler']} (job {fields['job_id']})" if "job_id" in fields else f"task {fields['task']}"
    calls = "".join(f"\n  {line}" for line in fields["stack"].splitlines())
    _log.warning("%s has held the event loop for %.1f s%s", who, fields["seconds"], calls, extra={"pgnotifyq": dict(fields)})
