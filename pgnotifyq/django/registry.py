"""The handlers of a worker for Django: every task of this backend that Python has seen.

A worker needs no list. When a task is made, Django has its backend check it, and the backend
registers it. So a worker can run what it has imported: `manage.py pgnotifyq worker` imports each
application's `tasks` module, and the URLs with their views. If jobs wait whose type no live worker
of their queue has, the worker imports their task by its path (`waiting.py`).

A stored job cannot make a worker run just anything: its path must lead to a Task.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from django.utils.module_loading import import_string

from pgnotifyq.django.framework import DEFAULT_TASK_BACKEND_ALIAS, Task
from pgnotifyq.django.running import run_task
from pgnotifyq.model.errors import ConfigError, InvalidName, UnknownJobType, text_of
from pgnotifyq.model.outcome import Retry
from pgnotifyq.model.registry import JobRegistry

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pgnotifyq.model.job import Job
    from pgnotifyq.model.schedule import NewSchedule
    from pgnotifyq.runtime.context import JobContext

_lock = threading.Lock()


class TaskRegistry(JobRegistry):
    """Handlers by the paths of tasks."""

    def __init__(self) -> None:
        super().__init__()
        self.alias = DEFAULT_TASK_BACKEND_ALIAS  # of the backend that this process works for
        # By the alias of a backend, and the schedule's name.
        self._ticking: dict[tuple[str, str], NewSchedule] = {}

    def learn(self, task: Any, max_attempts: int | None) -> None:
        """Register a task, unless its path is known.

        Args:
            task: a Task.
            max_attempts: of jobs that come in by SQL and do not say their own.

        Raises:
            InvalidName: its path cannot be a job type: it is too long, or not in ASCII.
        """
        if self.find(task.module_path) is not None:
            return
        with _lock:
            if self.find(task.module_path) is None:
                self.register(_TaskHandler(self, task.module_path, task.queue_name, max_attempts))

    def tick(self, alias: str, new: NewSchedule) -> None:
        """Have a schedule published by workers of a backend.

        If a module is imported again, it may bring the same schedule again.

        Raises:
            ConfigError: that backend has another schedule of this name.
        """
        if self._ticking.setdefault((alias, new.name), new) != new:
            raise ConfigError(f"there is another schedule {new.name!r}: give one of them another name=")

    @property
    def schedules(self) -> tuple[NewSchedule, ...]:
        """The schedules of this process's backend, in order."""
        return tuple(new for (alias, _), new in self._ticking.items() if alias == self.alias)

    def import_unknown(self, paths: Iterable[str]) -> dict[str, str]:
        """Register the tasks that these job types name. Return why some cannot be registered."""
        refused = {}
        for path in paths:
            if self.find(path) is None:
                try:
                    task = find_task(path)
                    self.learn(task, getattr(task, "max_attempts", None))
                except (UnknownJobType, InvalidName) as error:
                    refused[path] = str(error)
        return refused


class _TaskHandler:
    """What the registry knows of a task."""

    def __init__(self, registry: TaskRegistry, path: str, queue: str, max_attempts: int | None) -> None:
        self._registry = registry
        self.job_type = path
        self.queue = queue  # of jobs that come in by SQL and do not say
        self.max_attempts = max_attempts  # the same

    async def handle(self, job: Job, ctx: JobContext) -> Any:
        """Run one attempt."""
        try:
            task = find_task(self.job_type)
        except UnknownJobType as error:
            return Retry(reason=str(error))
        return await run_task(self._registry.alias, task, job, ctx)


def find_task(path: str) -> Any:
    """Import the task that a job type names.

    Raises:
        UnknownJobType: there is none; or what is there is not a Task.
    """
    try:
        found = import_string(path)
    except Exception as error:  # the module is the user's, and may raise anything
        raise UnknownJobType(f"the task {path!r} cannot be imported: {type(error).__name__}: {text_of(error)}") from error
    if not isinstance(found, Task) or found.module_path != path:
        raise UnknownJobType(f"{path!r} is not a task: a job runs nothing but what `@task` decorates")
    return found


registry = TaskRegistry()
