"""The lifecycle of a job, written once.

The SQL guard, the tests and the README's diagram are checked against this table.
"""

from __future__ import annotations

from enum import StrEnum
from types import MappingProxyType
from typing import Literal


class Status(StrEnum):
    """What a job is, as it is read: what `jobs.status` may hold, or dead."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    DEAD = "dead"  # no row of `jobs` has it: the job is a dead letter, and `get` has found it


# What `jobs.status` may hold.
STORED = (Status.PENDING, Status.RUNNING, Status.COMPLETED, Status.CANCELLED)

# A status, or what is derived from one when a job is looked at: it is not due yet (scheduled), it
# waits after a failure (retrying), or its handler was told to stop (stopping).
Label = Literal["pending", "running", "completed", "cancelled", "scheduled", "retrying", "stopping"]

DEAD = "dead letter"  # not a status: the row is in dead_letter_jobs

# verb -> the transitions that it makes. A running job that is cancelled keeps its lease until its
# handler has stopped.
TRANSITIONS: MappingProxyType[str, frozenset[tuple[str, str]]] = MappingProxyType(
    {
        "enqueue": frozenset({("", Status.PENDING)}),
        "claim": frozenset({(Status.PENDING, Status.RUNNING)}),
        "complete": frozenset({(Status.RUNNING, Status.COMPLETED)}),
        "retry": frozenset({(Status.RUNNING, Status.PENDING)}),
        "snooze": frozenset({(Status.RUNNING, Status.PENDING)}),
        "release": frozenset({(Status.RUNNING, Status.PENDING)}),
        "reclaim": frozenset({(Status.RUNNING, Status.PENDING), (Status.RUNNING, DEAD)}),
        "cancel": frozenset({(Status.PENDING, Status.CANCELLED), (Status.RUNNING, Status.CANCELLED)}),
        "bury": frozenset({(Status.RUNNING, DEAD)}),
        "requeue": frozenset({(DEAD, Status.PENDING)}),
    }
)

# What an update of `jobs.status` may do; sql/migrations/0002_wakeups.sql refuses the rest.
LEGAL_STATUS_CHANGES: frozenset[tuple[Status, Status]] = frozenset(
    (Status(before), Status(after))
    for changes in TRANSITIONS.values()
    for before, after in changes
    if before in STORED and after in STORED
)

FINISHED = frozenset({Status.COMPLETED, Status.CANCELLED, Status.DEAD})


def as_mermaid() -> str:
    """Return the state diagram of the README, drawn from the table."""
    arrows: dict[tuple[str, str], list[str]] = {}
    for verb, changes in TRANSITIONS.items():
        for change in changes:
            arrows.setdefault(change, []).append(verb)
    lines = ["stateDiagram-v2", f"    state {DEAD!r} as dead".replace("'", '"')]
    for before, after in sorted(arrows):
        names = [{"": "[*]", DEAD: "dead"}.get(name, str(name)) for name in (before, after)]
        lines.append(f"    {names[0]} --> {names[1]}: {', '.join(arrows[before, after])}")
    return "\n".join(lines)
