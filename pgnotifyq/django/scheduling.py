"""A task's schedule, declared beside the task; a worker for its backend publishes it at its start.

It is `JobRegistry.every` for tasks. The task's arguments take the place of a handler's payload. The
time zone is the project's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeVar

from django.conf import settings

from pgnotifyq.django.backend import PgnotifyqBackend
from pgnotifyq.django.declaring import task
from pgnotifyq.django.framework import InvalidTask, Task, task_backends
from pgnotifyq.django.registry import registry
from pgnotifyq.model.errors import ConfigError, InvalidJob, InvalidName
from pgnotifyq.model.schedule import NewSchedule, joined

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from pgnotifyq.model.schedule import Excluded, When

T = TypeVar("T")


def every(
    when: When | Iterable[When],
    /,
    *,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    tz: str | None = None,
    name: str | None = None,
    missed: Literal["last", "none", "all"] = "last",
    window_seconds: float | None = None,
    overlap: Literal["skip", "queue", "cancel_running", "allow"] = "skip",
    jitter_seconds: float = 0.0,
    exclude: Excluded | Iterable[Excluded] = (),
    owner: str | None = None,
) -> Callable[[T], T]:
    """Have the decorated task enqueued at times; workers publish it at their start.

    Write it above `@task`, this queue's or Django's. A function that is no task yet becomes one.
    Queue, priority, attempts and tenant are the task's; its `headers` and `unique` do not count. A
    task with another backend than this queue, as in a test, has no schedule. docs/schedules.md has
    the rules.

    Args:
        when: cron (`0 3 * * *`, or six fields with seconds first), `every 45m`, `09:00`, a time; or
            several of these.
        args: what the task is called with, each time.
        kwargs: the same.
        tz: the time zone of cron, of times of the day, and of exclusions; default: TIME_ZONE of the
            settings.
        name: by which the schedule is known; default: the task's path.
        missed: what becomes of ticks for which no worker was there: with `last` the last of them
            runs late, with `all` all of them do, with `none` none does.
        window_seconds: a tick that is later than this is missed for good; None: no tick is too
            late, but with `none` the window is 60.
        overlap: what becomes of a tick while the run before has not ended: `skip` leaves the tick
            out, `queue` runs it after that run, `cancel_running` cancels that run, `allow` runs
            both.
        jitter_seconds: each job is due up to so many seconds after its tick.
        exclude: dates, `2026-12-24/2027-01-02`, times, or cron: no tick falls on these.
        owner: the program that has the schedule; default: the package of the task.

    Raises:
        InvalidTask: a setting is refused, or another schedule has the name.
        TypeError: the task cannot be called with these arguments.
    """

    def add(function: Any) -> Any:
        declared = function if isinstance(function, Task) else task(function)
        backend = task_backends[declared.backend]
        if not isinstance(backend, PgnotifyqBackend):
            return declared
        try:
            new = NewSchedule(
                name=declared.module_path if name is None else name,
                rule=joined(when),
                tz=settings.TIME_ZONE if tz is None else tz,
                exclude=joined(exclude),
                missed=missed,
                window_seconds=window_seconds,
                overlap=overlap,
                jitter_seconds=jitter_seconds,
                owner=declared.module_path.partition(".")[0] if owner is None else owner,
                job=backend.job_of(declared, args, dict(kwargs or {})),
            )
            registry.tick(backend.alias, new)
        except (InvalidJob, InvalidName, ConfigError) as error:
            raise InvalidTask(f"{declared.module_path}: {error}") from error
        return declared

    return add
