"""A task with this queue's own settings: how it is declared, and what context it is given.

Django's own `@task` passes settings on since 6.1. The `task` of this file does so on every version,
and a type checker knows what it takes. If a backend of Django's own takes the place of this one, as
in a test, the settings of ours are left out.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from typing import TYPE_CHECKING, Any, overload

from pgnotifyq.django.framework import (
    DEFAULT_TASK_BACKEND_ALIAS,
    DEFAULT_TASK_QUEUE_NAME,
    InvalidTask,
    Task,
    TaskContext,
    task_backends,
)
from pgnotifyq.model.errors import InvalidJob
from pgnotifyq.model.handler import TIMEOUT_SECONDS_MAX
from pgnotifyq.model.new_job import MAX_ATTEMPTS_MAX, headers_of, org_id_of
from pgnotifyq.model.unique import Unique

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from pgnotifyq.runtime.context import JobContext


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PgnotifyqTask(Task):
    """A task whose backend is this queue.

    Made by `@task(max_attempts=5)`, changed by `resize.using(max_attempts=5)`.
    """

    # After so many attempts it has failed. None: what the backend's OPTIONS say, else 15.
    max_attempts: int | None = None
    # Exceptions after which it is tried again; any other fails it at once. None: it is tried again
    # after every one.
    retry_on: tuple[type[BaseException], ...] | None = None
    timeout_seconds: float | None = None  # of one attempt; None: no limit
    org_id: UUID | str | int | None = None  # the tenant; None: for projects that have one tenant
    # What goes with it and is not an argument: a JSON object. None: those of the task that enqueues
    # it.
    headers: Mapping[str, Any] | None = dataclasses.field(default=None, hash=False)
    # What it is unique by, and what follows if another job has the key. `by` names fields of the
    # payload, which are `args` and `kwargs`. None: it need not be unique.
    unique: Unique | None = dataclasses.field(default=None, hash=False)

    def using(  # noqa: D102  # Django says it, and the fields above do
        self,
        *,
        priority: int | None = None,
        queue_name: str | None = None,
        run_after: datetime | None = None,
        backend: str | None = None,
        max_attempts: int | None = None,
        retry_on: tuple[type[BaseException], ...] | None = None,
        timeout_seconds: float | None = None,
        org_id: UUID | str | int | None = None,
        headers: Mapping[str, Any] | None = None,
        unique: Unique | None = None,
    ) -> PgnotifyqTask:
        given: dict[str, Any] = {
            "priority": priority,
            "queue_name": queue_name,
            "run_after": run_after,
            "backend": backend,
            "max_attempts": max_attempts,
            "retry_on": retry_on,
            "timeout_seconds": timeout_seconds,
            "org_id": org_id,
            "headers": headers,
            "unique": unique,
        }
        return dataclasses.replace(self, **{name: value for name, value in given.items() if value is not None})


@overload
def task(function: Callable[..., Any], /) -> PgnotifyqTask: ...


@overload
def task(
    *,
    priority: int = 0,
    queue_name: str = DEFAULT_TASK_QUEUE_NAME,
    backend: str = DEFAULT_TASK_BACKEND_ALIAS,
    takes_context: bool = False,
    max_attempts: int | None = None,
    retry_on: tuple[type[BaseException], ...] | None = None,
    timeout_seconds: float | None = None,
    org_id: UUID | str | int | None = None,
    headers: Mapping[str, Any] | None = None,
    unique: Unique | None = None,
) -> Callable[[Callable[..., Any]], PgnotifyqTask]: ...


def task(function: Callable[..., Any] | None = None, *, backend: str = DEFAULT_TASK_BACKEND_ALIAS, **settings: Any) -> Any:
    """Make a task of the decorated function, as Django's `@task` does, with settings of this queue.

    The fields of PgnotifyqTask say what they mean.

    Raises:
        InvalidTask: a setting is out of range.
        TypeError: there is no such setting.
    """
    unknown = settings.keys() - {field.name for field in dataclasses.fields(PgnotifyqTask)} | settings.keys() & {
        "func",
        "run_after",
    }
    if unknown:
        raise TypeError(f"@task takes no {', '.join(sorted(unknown))}")

    def declare(function: Callable[..., Any]) -> Any:
        kind = task_backends[backend].task_class
        known = {field.name for field in dataclasses.fields(kind)}
        kept = {name: value for name, value in settings.items() if name in known}
        return kind(**{**_DEFAULTS, **kept}, func=function, backend=backend, run_after=None)

    return declare if function is None else declare(function)


# In Django 6.0 these fields have no defaults.
_DEFAULTS = {"priority": 0, "queue_name": DEFAULT_TASK_QUEUE_NAME, "takes_context": False}


def check_settings(task: Any) -> None:
    """Refuse settings of a PgnotifyqTask that are out of range; a plain Task has none.

    Raises:
        InvalidTask: which, and what is allowed.
    """
    if not isinstance(task, PgnotifyqTask):
        return
    attempts, seconds = task.max_attempts, task.timeout_seconds
    if attempts is not None and not (_is_number(attempts, int) and 1 <= attempts <= MAX_ATTEMPTS_MAX):
        raise InvalidTask(f"max_attempts {attempts!r} is out of range: use 1 to {MAX_ATTEMPTS_MAX}")
    if seconds is not None and not (_is_number(seconds, (int, float)) and 0 < seconds <= TIMEOUT_SECONDS_MAX):
        raise InvalidTask(f"timeout_seconds {seconds!r} is out of range: above 0, to {TIMEOUT_SECONDS_MAX:g}")
    if task.retry_on is not None and not (isinstance(task.retry_on, tuple) and all(map(_is_exception, task.retry_on))):
        raise InvalidTask(f"retry_on {task.retry_on!r} is not a tuple of exception classes")
    if task.headers is not None:
        try:
            headers_of(task.headers)
        except InvalidJob as error:
            raise InvalidTask(str(error)) from error
    if task.unique is not None and not isinstance(task.unique, Unique):
        raise InvalidTask(f"unique {task.unique!r:.80} is no pgnotifyq.Unique: use unique=Unique(key='...')")
    if task.org_id is not None:
        try:
            org_id_of(task.org_id)
        except InvalidJob as error:
            raise InvalidTask(str(error)) from error


def check_call(task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Refuse arguments with which a task's function cannot be called.

    If a decorator has wrapped the function, the signature of the wrapper counts.

    Raises:
        TypeError: as the call would say it.
    """
    context = (None,) if task.takes_context else ()
    try:
        _signature_of(task.func).bind(*context, *args, **kwargs)
    except TypeError as error:
        raise TypeError(f"{task.module_path}: {error}") from None


@functools.lru_cache(maxsize=1024)  # it takes four times as long as the rest of the check
def _signature_of(function: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(function, follow_wrapped=False)


def _is_number(value: object, kind: type | tuple[type, ...]) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _is_exception(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, BaseException)


def path_of(kind: Any) -> str:
    """Return where a class or function can be imported from."""
    return f"{kind.__module__}.{kind.__qualname__}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PgnotifyqTaskContext(TaskContext):
    """Django's context of a running task, and this queue's own."""

    job: JobContext  # is_cancelled(), progress(...), log, cancel_reason
