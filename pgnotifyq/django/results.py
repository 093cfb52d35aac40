"""What Django calls a task's result, made of a job, its attempts, or its dead letter.

| Django's status | the job is |
|---|---|
| READY | pending, for its first attempt or a further one |
| RUNNING | running, or cancelled while its handler is still stopping |
| SUCCESSFUL | completed |
| FAILED | a dead letter, or cancelled |
"""

from __future__ import annotations

import dataclasses
import re
from datetime import datetime
from traceback import format_exception
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.utils import timezone
from django.utils.module_loading import import_string

from pgnotifyq.django.declaring import path_of
from pgnotifyq.django.framework import TaskError, TaskResult, TaskResultStatus
from pgnotifyq.model.errors import text_of
from pgnotifyq.model.job import DeadLetter
from pgnotifyq.model.states import Status

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pgnotifyq.model.job import Execution, Job

# The class of an error that was not an exception.
_CLASSES = {
    "cancelled": "pgnotifyq.JobCancelled",
    "timed_out": "builtins.TimeoutError",
    "lost": "pgnotifyq.LeaseLost",
    "undecodable": "pgnotifyq.PayloadUndecodable",
}
_CLASS_OF_REST = "pgnotifyq.PgnotifyqError"
_NOT_ERRORS = frozenset({"completed", "running", "stopping", "snoozed", "released"})
_UNCHARGED = frozenset({"snoozed", "released"})
# As `describe` writes it: the path of the class, what it says, the traceback.
_DESCRIBED = re.compile(r"([^\W\d]\w*(?:\.\w+)+)(?:: [^\n]*)?\n(.*)", re.DOTALL)

PRIORITY_MIN, PRIORITY_MAX = -100, 100  # Django's


def describe(error: BaseException) -> str:
    """Return an exception as it is stored: its class, its first line, then Python's traceback."""
    said = text_of(error).partition("\n")[0]
    try:
        trace = "".join(format_exception(error))
    except Exception as second:  # noqa: BLE001  # it looks into the user's values
        trace = f"(the traceback cannot be told: {type(second).__name__})\n"
    return f"{path_of(type(error))}: {said}\n{trace}"


def error_of(outcome: str, stored: str | None) -> Any:
    """Return Django's TaskError of what is stored of an attempt."""
    found = _DESCRIBED.fullmatch(stored or "")
    if found is None:
        return TaskError(exception_class_path=_CLASSES.get(outcome, _CLASS_OF_REST), traceback=f"{stored or outcome}\n")
    path, trace = found.groups()
    return TaskError(exception_class_path=path, traceback=trace if trace.endswith("\n") else f"{trace}\n")


@dataclasses.dataclass(frozen=True)
class Call:
    """What a payload says: how a task is called, and those of its settings that have no column."""

    args: list[Any]
    kwargs: dict[str, Any]
    options: dict[str, Any]  # run_after, max_attempts, retry_on, timeout_seconds


def call_of(payload: object) -> Call:
    """Read a payload. One that came by SQL may leave out what it does not need.

    Raises:
        ValueError: it is no call of a task.
    """
    if not isinstance(payload, dict) or not payload.keys() <= {"args", "kwargs", "options"}:
        raise ValueError('the payload is no call of a task: {"args": [...], "kwargs": {...}} is')
    args, kwargs, options = payload.get("args", []), payload.get("kwargs", {}), payload.get("options", {})
    if not isinstance(args, list) or not isinstance(kwargs, dict) or not isinstance(options, dict):
        raise ValueError("the payload is no call of a task: args is a list, kwargs and options are objects")  # noqa: TRY004  # of data
    read = {name: reader(options[name]) for name, reader in _READERS.items() if options.get(name) is not None}
    return Call(args, kwargs, read)


def options_of(task: Any) -> dict[str, Any]:
    """Return what a payload says of a task's settings, for `call_of` to read."""
    given = {name: getattr(task, name, None) for name in _READERS}
    written = {name: value for name, value in given.items() if value is not None}
    if "run_after" in written:
        written["run_after"] = written["run_after"].isoformat()
    if "retry_on" in written:
        written["retry_on"] = [path_of(kind) for kind in written["retry_on"]]
    return written


def _exceptions(paths: Any) -> tuple[type[BaseException], ...]:
    kinds = []
    for path in paths:
        try:
            kind = import_string(path)
        except ImportError:
            continue  # a class that is not there cannot be raised here
        if isinstance(kind, type) and issubclass(kind, BaseException):
            kinds.append(kind)
    return tuple(kinds)


_READERS: dict[str, Callable[[Any], Any]] = {
    "run_after": datetime.fromisoformat,
    "max_attempts": int,
    "retry_on": _exceptions,
    "timeout_seconds": float,
}


def as_enqueued(task: Any, **changes: Any) -> Any:
    """Return a task with other settings, unchecked: its job was accepted, whatever QUEUES says."""
    kind = type(task)
    made = object.__new__(kind)
    for field in dataclasses.fields(kind):
        object.__setattr__(made, field.name, changes.get(field.name, getattr(task, field.name)))
    return made


def result_of(task: Any, alias: str, job: Job | DeadLetter, history: Sequence[Execution]) -> Any:
    """Return the TaskResult of a job or a dead letter.

    Args:
        task: as it is declared.
        alias: of the backend.
        job: the job, or its dead letter.
        history: its attempts, oldest first, the one under way included.
    """
    try:
        call = call_of(job.payload)
    except ValueError:
        call = Call([], {}, {})
    # An attempt that was given back is not counted: the next attempt has the same number.
    charged = {each.attempt: each for each in history if each.outcome not in _UNCHARGED and each.attempt <= job.attempts}
    begun = [each.started_at for each in history]
    errors = [error_of(each.outcome, each.error_message) for each in history if each.outcome not in _NOT_ERRORS]
    status = _status_of(job)
    if status == TaskResultStatus.FAILED and not errors:
        is_letter = isinstance(job, DeadLetter)
        errors.append(error_of("lost" if is_letter else "cancelled", job.error_message or "cancelled before it began"))
    result = TaskResult(
        task=as_enqueued(task, **_settings_of(job, alias, call)),
        id=str(job.id),
        status=status,
        enqueued_at=_local(job.created_at),
        started_at=_local(begun[0]) if begun else None,
        last_attempted_at=_local(begun[-1]) if begun else None,
        finished_at=_local(_end_of(job, status)),
        args=call.args,
        kwargs=call.kwargs,
        backend=alias,
        errors=errors,
        worker_ids=[str(each.worker_id) for _, each in sorted(charged.items())],
    )
    if status == TaskResultStatus.SUCCESSFUL:
        object.__setattr__(result, "_return_value", job.result)  # type: ignore[union-attr]  # a letter has failed
    return result


def _settings_of(job: Job | DeadLetter, alias: str, call: Call) -> Mapping[str, Any]:
    return {
        **call.options,
        "priority": max(PRIORITY_MIN, min(job.priority, PRIORITY_MAX)),
        "queue_name": job.queue_name,
        "backend": alias,
        **({"org_id": str(job.org_id)} if job.org_id.int else {}),
    }


def _status_of(job: Job | DeadLetter) -> Any:
    if isinstance(job, DeadLetter):
        return TaskResultStatus.FAILED
    match job.status:
        case Status.PENDING:
            return TaskResultStatus.READY
        case Status.COMPLETED:
            return TaskResultStatus.SUCCESSFUL
        case Status.CANCELLED if job.current_execution_id is None:
            return TaskResultStatus.FAILED
        case _:
            return TaskResultStatus.RUNNING


def _end_of(job: Job | DeadLetter, status: Any) -> datetime | None:
    if isinstance(job, DeadLetter):
        return job.died_at
    return None if status in {TaskResultStatus.READY, TaskResultStatus.RUNNING} else job.completed_at


def _local(time: datetime | None) -> datetime | None:
    """Return a time as Django has times: naive, in its zone, where USE_TZ is off."""
    return time if time is None or settings.USE_TZ else timezone.make_naive(time)
