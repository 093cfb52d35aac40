"""Schedules: when jobs of a kind are enqueued, and how a worker moves schedules on."""

from __future__ import annotations

import functools
import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

import attrs

from pgnotifyq.ledger.ask import Ask, array, nothing, text
from pgnotifyq.ledger.columns import number, only, records, rows, truth, word
from pgnotifyq.ledger.errors import raise_translated, said_of
from pgnotifyq.ledger.look import checked_limit
from pgnotifyq.ledger.statements import call, query
from pgnotifyq.model.errors import MissingRights
from pgnotifyq.model.job import JobId, OrgId
from pgnotifyq.model.outcome import bounded
from pgnotifyq.model.payload import encode
from pgnotifyq.model.schedule import Pending

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from uuid import UUID

    from pgnotifyq.ledger.ask import Answer
    from pgnotifyq.model.schedule import Move, NewSchedule


@attrs.frozen(kw_only=True)
class ScheduleRow:
    """A schedule as it is stored. Times are aware, and on the database's clock."""

    name: str
    org_id: OrgId
    rule: str
    tz: str
    exclude: str
    job_type: str
    payload: Any
    queue_name: str | None
    priority: int
    max_attempts: int | None
    missed: str
    window_seconds: float | None
    overlap: str
    jitter_seconds: float
    owner: str | None  # the program whose code has it
    next_at: datetime | None  # the next tick; None: no worker has found it yet, or there is none
    last_at: datetime | None  # the last tick that was handled
    paused_at: datetime | None
    who: str | None  # who paused it
    why: str | None
    unlisted_at: datetime | None  # since when its owner's code does not have it any more
    error_message: str | None  # why its last tick could not be handled
    created_at: datetime
    read_at: datetime


@attrs.frozen(kw_only=True)
class Coming:
    """The schedules that come next, and the database's time."""

    now: datetime | None  # None: there are none
    pending: Sequence[Pending]  # the first at the head


@attrs.frozen(kw_only=True)
class Fired:
    """What became of a tick."""

    schedule_id: UUID
    tick: datetime | None  # None: `became` is of the schedule
    job_id: JobId | None
    became: str  # of a tick: enqueued, waiting, skipped, known; of a schedule: failed


_WHOSE = (
    "Schedules are made by workers, of what the code declares (`@registry.every`), and by the owner and roles of"
    " `migrate --grant-admin`: a role that enqueues, or a tenant's, makes none"
)
_SCHEDULE = "text text text jsonb uuid text text text float8 text float8 text integer integer text"


@functools.cache
def _said_of(schema: str) -> Callable[[Exception], Any]:
    """Return an `on_error` that also says who makes schedules, if a right is missing."""

    def say(error: Exception) -> Any:
        try:
            raise_translated(error, schema)
        except MissingRights as refused:
            raise MissingRights(f"{refused}. {_WHOSE}") from error

    return say


def schedule(schema: str, new: NewSchedule) -> Ask[str]:
    """Make a schedule, or change it.

    Returns: `created`, `changed`, `same`; or `refused`: the schedule is another program's.

    Raises:
        InvalidJob: a value is out of range.

    Source: sql/functions/schedule/schedule.sql
    """
    job = new.job
    values = (
        new.name,
        new.rule,
        job.job_type,
        encode(job.payload),
        text(job.org_id),
        new.tz,
        new.exclude,
        str(new.missed),
        text(new.window_seconds),
        str(new.overlap),
        text(new.jitter_seconds),
        job.queue_name,
        text(job.priority),
        text(job.max_attempts),
        new.owner,
    )
    return Ask(call("schedule", _SCHEDULE, schema), values, word, _said_of(schema))


def unlist_schedules(schema: str, owner: str, names: Iterable[str]) -> Ask[int]:
    """Note which schedules of a program its code does not have any more.

    `names` are those that the code has.

    Returns: how many schedules were noted now, and not before.

    Source: sql/functions/schedule/schedule.sql
    """
    return Ask(call("unlist_schedules", "text text[]", schema), (owner, array(list(names))), number, said_of(schema))


def list_schedules(schema: str, *, org_id: OrgId | None = None, name: str | None = None) -> Ask[list[ScheduleRow]]:
    """Return the schedules, by name. Source: sql/queries/schedules.sql."""
    return Ask(query("schedules", schema), (text(org_id), name), _schedules, _said_of(schema))


def _schedules(answer: Answer, encoding: str) -> list[ScheduleRow]:
    return [ScheduleRow(**row) for row in records(answer, encoding)]


def unschedule(schema: str, name: str, org_id: OrgId) -> Ask[bool]:
    """Delete a schedule; return whether there was such a schedule.

    Source: sql/functions/schedule/schedule.sql
    """
    return Ask(call("unschedule", "text uuid", schema), (name, text(org_id)), truth, _said_of(schema))


def pause_schedule(schema: str, name: str, org_id: OrgId, *, why: str | None = None, who: str | None = None) -> Ask[bool]:
    """Let a schedule have no ticks; return whether there is such a schedule.

    Source: sql/functions/schedule/schedule.sql
    """
    values = (name, text(org_id), None if why is None else bounded(why), who)
    return Ask(call("pause_schedule", "text uuid text text", schema), values, truth, _said_of(schema))


def resume_schedule(schema: str, name: str, org_id: OrgId) -> Ask[bool]:
    """Let a schedule have ticks again; return whether it was paused.

    Source: sql/functions/schedule/schedule.sql
    """
    return Ask(call("resume_schedule", "text uuid", schema), (name, text(org_id)), truth, _said_of(schema))


def run_schedule(schema: str, name: str, org_id: OrgId) -> Ask[JobId | None]:
    """Enqueue a schedule's job now; None: there is no such schedule.

    Source: sql/functions/schedule/fire.sql
    """
    verb = call("run_schedule", "text uuid", schema)
    return Ask(verb, (name, text(org_id)), _job_id, _said_of(schema), may_repeat=False)


def _job_id(answer: Answer, encoding: str) -> JobId | None:
    found = only(answer, encoding)
    return None if found is None else JobId(found)


def backfill_schedule(schema: str, name: str, org_id: OrgId, ticks: Iterable[datetime]) -> Ask[int | None]:
    """Handle ticks of the past; return how many were handled. None: there is no such schedule.

    Source: sql/functions/schedule/fire.sql
    """
    values = (name, array([tick.isoformat() for tick in ticks]), text(org_id))
    return Ask(call("backfill_schedule", "text timestamptz[] uuid", schema), values, only, _said_of(schema))


# What a worker does


def due_schedules(schema: str, *, limit: int) -> Ask[Coming]:
    """Return the schedules that come next. Source: sql/queries/due_schedules.sql."""
    return Ask(query("due_schedules", schema), (str(checked_limit(limit)),), _coming)


def _coming(answer: Answer, encoding: str) -> Coming:
    found = records(answer, encoding)
    now = found[0]["time_now"] if found else None
    for row in found:
        del row["time_now"]
    return Coming(now=now, pending=[Pending(**row) for row in found])


def fire_schedules(schema: str, moves: Iterable[Move]) -> Ask[list[Fired]]:
    """Enqueue the jobs of ticks that are due, and move schedules on.

    This is safe to repeat: a schedule that was moved has another next tick.

    Source: sql/functions/schedule/fire.sql
    """
    return Ask(call("fire_schedules", "jsonb", schema), (json.dumps([move.fields for move in moves]),), _fired)


def _fired(answer: Answer, encoding: str) -> list[Fired]:
    return [
        Fired(
            schedule_id=row["schedule_id"], tick=row["tick"], job_id=row["job_id"] and JobId(row["job_id"]), became=row["became"]
        )
        for row in records(answer, encoding)
    ]


def waiting_schedules(schema: str, *, limit: int) -> Ask[list[UUID]]:
    """Return the schedules with a run that waits for the run before it.

    Source: sql/queries/waiting_schedules.sql
    """

    def read(answer: Answer, encoding: str) -> list[UUID]:
        return [schedule_id for (schedule_id,) in rows(answer, encoding)]

    return Ask(query("waiting_schedules", schema), (str(checked_limit(limit)),), read)


def start_waiting(schema: str, schedule_id: UUID) -> Ask[None]:
    """Enqueue the next waiting run, if the run before has ended; else have that end announced.

    Source: sql/functions/schedule/fire.sql
    """
    return Ask(call("start_waiting", "uuid", schema), (schedule_id.hex,), nothing)
