"""The verbs of schedules, as values. They are part of the table in doors/verbs.py."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import attrs

from pgnotifyq.ledger import schedules
from pgnotifyq.ledger.ask import Plan
from pgnotifyq.model.errors import InvalidJob, ScheduleNotFound
from pgnotifyq.model.job import NIL_ORG
from pgnotifyq.model.new_job import org_id_of
from pgnotifyq.model.schedule import AT_ONCE_MAX, NewSchedule, check_schedule_name, joined, rule_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from uuid import UUID

    from pgnotifyq.ledger.ask import Answer, Ask, Steps
    from pgnotifyq.ledger.schedules import ScheduleRow
    from pgnotifyq.model.handler import Handler
    from pgnotifyq.model.job import JobId, OrgId
    from pgnotifyq.model.new_job import NewJob
    from pgnotifyq.model.schedule import Excluded, Tick, When

UPCOMING_MAX = 1000


class _Has(Protocol):
    @property
    def schema(self) -> str: ...

    def new_job(self, given: Mapping[str, Any]) -> NewJob: ...


class ScheduleVerbs:
    """What can be asked of the schedules of one queue's schema."""

    __slots__ = ()

    def schedule(
        self: _Has,
        name: str,
        when: When | Iterable[When],
        job_type: str | Handler,
        payload: object = None,
        *,
        tz: str = "UTC",
        missed: str = "last",
        window_seconds: float | None = None,
        overlap: str = "skip",
        jitter_seconds: float = 0.0,
        exclude: Excluded | Iterable[Excluded] = (),
        queue: str | None = None,
        priority: int = 0,
        max_attempts: int | None = None,
        org_id: OrgId | UUID | str | int = NIL_ORG,
    ) -> Ask[str]:
        """Make a schedule, or change it."""
        settings: dict[str, Any] = {
            "queue": queue,
            "priority": priority,
            "max_attempts": max_attempts,
            "org_id": org_id,
            "headers": {},
        }
        new = NewSchedule(
            name=name,
            rule=joined(when),
            tz=tz,
            exclude=joined(exclude),
            missed=missed,
            window_seconds=window_seconds,
            overlap=overlap,
            jitter_seconds=jitter_seconds,
            job=self.new_job({"job_type": job_type, "payload": payload, **settings}),
        )
        return schedules.schedule(self.schema, new)

    def unschedule(self: _Has, name: str, *, org_id: OrgId | UUID | str | int = NIL_ORG) -> Ask[bool]:
        """Delete a schedule."""
        return schedules.unschedule(self.schema, check_schedule_name(name), org_id_of(org_id))

    def schedules(self: _Has, *, org_id: OrgId | UUID | str | int | None = None) -> Ask[list[ScheduleRow]]:
        """Look at the schedules."""
        return schedules.list_schedules(self.schema, org_id=None if org_id is None else org_id_of(org_id))

    def upcoming(self: _Has, name: str, count: int = 10, *, org_id: OrgId | UUID | str | int = NIL_ORG) -> Plan[list[Tick]]:
        """Look at the next ticks of a schedule."""
        org, schema = org_id_of(org_id), self.schema
        if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= UPCOMING_MAX:
            raise InvalidJob(f"count {count!r} is out of range: use 0 to {UPCOMING_MAX}")

        def steps() -> Steps[list[Tick]]:
            row = _one((yield schedules.list_schedules(schema, org_id=org, name=check_schedule_name(name))), name)
            return rule_of(row.rule, row.tz, row.exclude).upcoming(row.read_at, count)

        return Plan(steps)

    def pause_schedule(
        self: _Has,
        name: str,
        *,
        why: str | None = None,
        who: str | None = None,
        org_id: OrgId | UUID | str | int = NIL_ORG,
    ) -> Ask[None]:
        """Let a schedule have no ticks."""
        verb = schedules.pause_schedule(self.schema, check_schedule_name(name), org_id_of(org_id), why=why, who=who)
        read = verb.read

        def told(answer: Answer, encoding: str) -> None:
            if not read(answer, encoding):
                raise _not_found(name)

        whole: Ask[Any] = verb
        return attrs.evolve(whole, read=told)

    def resume_schedule(self: _Has, name: str, *, org_id: OrgId | UUID | str | int = NIL_ORG) -> Ask[bool]:
        """Let a schedule have ticks again."""
        return schedules.resume_schedule(self.schema, check_schedule_name(name), org_id_of(org_id))

    def run_schedule(self: _Has, name: str, *, org_id: OrgId | UUID | str | int = NIL_ORG) -> Ask[JobId]:
        """Enqueue the job of a schedule now."""
        verb = schedules.run_schedule(self.schema, check_schedule_name(name), org_id_of(org_id))
        read = verb.read

        def told(answer: Answer, encoding: str) -> JobId:
            if (job_id := read(answer, encoding)) is None:
                raise _not_found(name)
            return job_id

        whole: Ask[Any] = verb
        return attrs.evolve(whole, read=told)

    def backfill(
        self: _Has,
        name: str,
        since: datetime,
        until: datetime | None = None,
        *,
        org_id: OrgId | UUID | str | int = NIL_ORG,
    ) -> Plan[int]:
        """Run a schedule for ticks of the past."""
        org, schema = org_id_of(org_id), self.schema
        for time in (since, until):
            if time is not None and (not isinstance(time, datetime) or time.utcoffset() is None):
                raise InvalidJob(f"{time!r} has no time zone: pass an aware datetime")

        def steps() -> Steps[int]:
            row = _one((yield schedules.list_schedules(schema, org_id=org, name=check_schedule_name(name))), name)
            last = row.read_at if until is None else min(until.astimezone(UTC), row.read_at)
            ticks = rule_of(row.rule, row.tz, row.exclude).between(since.astimezone(UTC), last)
            taken = 0
            while part := list(islice(ticks, AT_ONCE_MAX)):
                taken += (yield schedules.backfill_schedule(schema, name, org, part)) or 0
            return taken

        return Plan(steps)


def _one(found: list[ScheduleRow], name: str) -> ScheduleRow:
    if not found:
        raise _not_found(name)
    return found[0]


def _not_found(name: str) -> ScheduleNotFound:
    return ScheduleNotFound(f"there is no schedule {name!r}: list them with `python -m pgnotifyq schedules`")
