"""The verbs of schedules, of a door that is awaited, on trio and on asyncio."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pgnotifyq.model.job import NIL_ORG

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from datetime import datetime
    from uuid import UUID

    from pgnotifyq.doors.org_verbs import OrgVerbs
    from pgnotifyq.doors.verbs import Verbs
    from pgnotifyq.ledger.schedules import ScheduleRow
    from pgnotifyq.model.handler import Handler
    from pgnotifyq.model.job import JobId, OrgId
    from pgnotifyq.model.schedule import Excluded, Tick, When


class AwaitedSchedules:
    """What a client can do with schedules."""

    _verbs: Verbs
    _ask: Callable[..., Awaitable[Any]]

    async def schedule(
        self,
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
    ) -> str:
        """Have a job enqueued at times, or change the schedule of that name.

        If that schedule is paused, it stays paused. docs/schedules.md has the rules.

        Args:
            name: the schedule's name; a tenant has at most one schedule of a name.
            when: cron (`0 3 * * *`, or six fields with seconds first), `every 45m`, `09:00`, a
                time; or several of these.
            job_type: which handler runs it: the handler, or its name.
            payload: what each job is given.
            tz: the time zone of cron, of times of the day, and of exclusions.
            missed: what becomes of ticks for which no worker was there: with `last` the last of
                them runs late, with `all` all of them do, with `none` none does.
            window_seconds: a tick that is later than this is missed for good; None: no tick is too
                late, but with `none` the window is 60.
            overlap: what becomes of a tick while the run before has not ended: `skip` leaves the
                tick out, `queue` runs it after that run, `cancel_running` cancels that run, `allow`
                runs both.
            jitter_seconds: each job is due up to so many seconds after its tick.
            exclude: dates, `2026-12-24/2027-01-02`, times, or cron: no tick falls on these.
            queue: of the jobs; default: the handler's.
            priority: of the jobs.
            max_attempts: of the jobs; default: the handler's.
            org_id: the tenant whose jobs they are.

        Returns: `created`, `changed` or `same`.

        Raises:
            InvalidJob, InvalidName, InvalidPayload, PayloadTooLarge, UnknownJobType: it is refused.
        """
        told: str = await self._ask(
            self._verbs.schedule(
                name,
                when,
                job_type,
                payload,
                tz=tz,
                missed=missed,
                window_seconds=window_seconds,
                overlap=overlap,
                jitter_seconds=jitter_seconds,
                exclude=exclude,
                queue=queue,
                priority=priority,
                max_attempts=max_attempts,
                org_id=org_id,
            )
        )
        return told

    async def unschedule(self, name: str, *, org_id: OrgId | UUID | str | int = NIL_ORG) -> bool:
        """Delete a schedule. Jobs that it has enqueued stay.

        If a program's code declares it, the next worker of that program makes it again.

        Returns: whether there was one.

        Raises:
            InvalidJob: `name` is no name of a schedule, or `org_id` names no tenant.
        """
        told: bool = await self._ask(self._verbs.unschedule(name, org_id=org_id))
        return told

    async def schedules(self, *, org_id: OrgId | UUID | str | int | None = None) -> list[ScheduleRow]:
        """Return the schedules, by name.

        Args:
            org_id: only this tenant's; None: all.

        Raises:
            InvalidJob: `org_id` names no tenant.
        """
        told: list[ScheduleRow] = await self._ask(self._verbs.schedules(org_id=org_id))
        return told

    async def upcoming(self, name: str, count: int = 10, *, org_id: OrgId | UUID | str | int = NIL_ORG) -> list[Tick]:
        """Return the next ticks of a schedule, in its time zone, and say where clocks change.

        They are the same if the schedule is paused.

        Args:
            name: the schedule.
            count: how many, at most 1000.
            org_id: the tenant whose schedule it is.

        Raises:
            ScheduleNotFound: there is none of that name.
            InvalidJob: a value is out of range, or the rule cannot be read.
        """
        told: list[Tick] = await self._ask(self._verbs.upcoming(name, count, org_id=org_id))
        return told

    async def pause_schedule(
        self,
        name: str,
        *,
        why: str | None = None,
        who: str | None = None,
        org_id: OrgId | UUID | str | int = NIL_ORG,
    ) -> None:
        """Let a schedule have no ticks until it is resumed. What it has enqueued goes on.

        A deploy does not resume it. Ticks of the time of the pause do not count as missed.

        Args:
            name: the schedule.
            why: for those who ask why nothing runs.
            who: who pauses it; None: the connection's role.
            org_id: the tenant whose schedule it is.

        Raises:
            ScheduleNotFound: there is none of that name.
            InvalidJob: a value is out of range.
        """
        await self._ask(self._verbs.pause_schedule(name, why=why, who=who, org_id=org_id))

    async def resume_schedule(self, name: str, *, org_id: OrgId | UUID | str | int = NIL_ORG) -> bool:
        """Let a schedule have ticks again, from now on.

        Returns: whether it was paused.

        Raises:
            InvalidJob: `name` is no name of a schedule, or `org_id` names no tenant.
        """
        told: bool = await self._ask(self._verbs.resume_schedule(name, org_id=org_id))
        return told

    async def run_schedule(self, name: str, *, org_id: OrgId | UUID | str | int = NIL_ORG) -> JobId:
        """Enqueue the job of a schedule now, and return its id.

        It is enqueued whatever the schedule's rule says, also if the schedule is paused, or if a
        run has not ended. The next ticks stay as they are.

        Raises:
            ScheduleNotFound: there is none of that name.
            InvalidJob: `name` is no name of a schedule, or `org_id` names no tenant.
        """
        told: JobId = await self._ask(self._verbs.run_schedule(name, org_id=org_id))
        return told

    async def backfill(
        self,
        name: str,
        since: datetime,
        until: datetime | None = None,
        *,
        org_id: OrgId | UUID | str | int = NIL_ORG,
    ) -> int:
        """Run a schedule for ticks of the past that had no job.

        The ticks run one after the other, the oldest first, unless runs of the schedule may
        overlap. A tick that had a job in the last seven days is left out.

        Args:
            name: the schedule.
            since: the first time that may be a tick, aware.
            until: the last time that may be a tick; None, or a time in the future: now.
            org_id: the tenant whose schedule it is.

        Returns: how many ticks were taken.

        Raises:
            ScheduleNotFound: there is none of that name.
            InvalidJob: a time has no time zone, or the rule cannot be read.
        """
        told: int = await self._ask(self._verbs.backfill(name, since, until, org_id=org_id))
        return told


class AwaitedOrgSchedules:
    """What a client of one tenant can do with schedules."""

    _verbs: OrgVerbs
    _ask: Callable[..., Awaitable[Any]]

    async def schedule(
        self, name: str, when: When | Iterable[When], job_type: str | Handler, payload: object = None, **settings: Any
    ) -> str:
        """Have a job of the tenant enqueued at times, or change the schedule of that name.

        Args:
            name: by which the tenant's schedule is known.
            when: as of a client's `schedule`.
            job_type: which handler runs it: the handler, or its name.
            payload: what each job is given.
            settings: as of a client's `schedule`: tz, missed, overlap, exclude, queue, ...

        Returns: `created`, `changed` or `same`.

        Raises:
            InvalidJob: it is refused; also if `org_id` is another tenant.
            InvalidName, InvalidPayload, PayloadTooLarge, UnknownJobType, TypeError: as of a
                client's `schedule`.
        """
        told: str = await self._ask(self._verbs.schedule(name, when, job_type, payload, **settings))
        return told

    async def unschedule(self, name: str) -> bool:
        """Delete a schedule of the tenant; its jobs stay. Return whether there was one.

        Raises:
            InvalidJob: `name` is no name of a schedule.
        """
        told: bool = await self._ask(self._verbs.unschedule(name))
        return told

    async def schedules(self) -> list[ScheduleRow]:
        """Return the tenant's schedules, by name."""
        told: list[ScheduleRow] = await self._ask(self._verbs.schedules())
        return told

    async def upcoming(self, name: str, count: int = 10) -> list[Tick]:
        """Return the next ticks of a schedule, in its time zone, and say where clocks change.

        Args:
            name: the schedule.
            count: how many, at most 1000.

        Raises:
            ScheduleNotFound: the tenant has none of that name.
            InvalidJob: a value is out of range, or the rule cannot be read.
        """
        told: list[Tick] = await self._ask(self._verbs.upcoming(name, count))
        return told

    async def pause_schedule(self, name: str, *, why: str | None = None, who: str | None = None) -> None:
        """Let a schedule have no ticks until it is resumed.

        Args:
            name: the schedule.
            why: for those who ask why nothing runs.
            who: who pauses it; None: the connection's role.

        Raises:
            ScheduleNotFound: the tenant has none of that name.
            InvalidJob: `name` is no name of a schedule.
        """
        await self._ask(self._verbs.pause_schedule(name, why=why, who=who))

    async def resume_schedule(self, name: str) -> bool:
        """Let a schedule have ticks again, from now on. Return whether it was paused.

        Raises:
            InvalidJob: `name` is no name of a schedule.
        """
        told: bool = await self._ask(self._verbs.resume_schedule(name))
        return told

    async def run_schedule(self, name: str) -> JobId:
        """Enqueue the job of a schedule now, and return its id.

        Raises:
            ScheduleNotFound: the tenant has none of that name.
            InvalidJob: `name` is no name of a schedule.
        """
        told: JobId = await self._ask(self._verbs.run_schedule(name))
        return told
