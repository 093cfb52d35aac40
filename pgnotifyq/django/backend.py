"""The backend for Django's tasks.

A task is enqueued on Django's own connection. So it commits with all else in the transaction.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from asgiref.sync import sync_to_async
from django.core.exceptions import ImproperlyConfigured
from django.db import DEFAULT_DB_ALIAS
from django.utils import timezone

from pgnotifyq.django.connections import ask_on_database
from pgnotifyq.django.declaring import PgnotifyqTask, check_call, check_settings
from pgnotifyq.django.faults import check_settings_of
from pgnotifyq.django.framework import (
    BaseTaskBackend,
    InvalidTask,
    TaskResult,
    TaskResultDoesNotExist,
    TaskResultStatus,
    normalize_json,
    task_backends,
    task_enqueued,
)
from pgnotifyq.django.registry import find_task, registry
from pgnotifyq.django.results import as_enqueued, options_of, result_of
from pgnotifyq.ledger import end, look
from pgnotifyq.ledger.ask import Ask, Plan
from pgnotifyq.ledger.columns import rows
from pgnotifyq.ledger.enqueue import enqueue
from pgnotifyq.ledger.errors import SCHEMA_DEFAULT, said_of
from pgnotifyq.ledger.statements import query
from pgnotifyq.model.errors import InvalidJob, InvalidName, JobNotFound, UnknownJobType
from pgnotifyq.model.headers import carried
from pgnotifyq.model.job import NIL_ORG, JobId
from pgnotifyq.model.names import check_queue_name
from pgnotifyq.model.new_job import QUEUE_DEFAULT, NewJob, job_id_of, org_id_of
from pgnotifyq.model.tracing import traced

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from pgnotifyq.ledger.ask import Steps, Verb
    from pgnotifyq.model.job import DeadLetter, Execution, Job

T = TypeVar("T")

# How often a job is looked for. Between two looks it may become a dead letter, or come back.
LOOKS_MAX = 3


class PgnotifyqBackend(BaseTaskBackend):
    """Django's tasks on this queue.

    OPTIONS of the backend in TASKS, all of which may be left out:

    - `database`: an alias of DATABASES; where the queue lives. Default: `default`.
    - `schema`: the schema that it lives in. Default: `pgnotifyq`.
    - `max_attempts`: of tasks that do not say. Default: 15.
    """

    task_class = PgnotifyqTask
    supports_defer = True
    supports_async_task = True
    supports_get_result = True
    supports_priority = True

    def __init__(self, alias: str, params: dict[str, Any]) -> None:
        super().__init__(alias, params)
        # In order of preference. Django makes a set of QUEUES, which has no order.
        self.queue_names: list[str] = list(params.get("QUEUES", [QUEUE_DEFAULT]))
        self.database: str = self.options.get("database", DEFAULT_DB_ALIAS)
        self.schema: str = self.options.get("schema", SCHEMA_DEFAULT)
        self.max_attempts: int | None = self.options.get("max_attempts")

    def ask(self, verb: Verb[T]) -> T:
        """Ask a verb of the ledger on Django's connection."""
        return ask_on_database(self.database, verb)

    def validate_task(self, task: Any) -> None:
        """Check a task as Django does, and its settings of ours. Then this process can run it.

        Raises:
            InvalidTask: a setting is out of range, or a name does not fit.
        """
        super().validate_task(task)
        check_settings(task)
        try:
            check_queue_name(task.queue_name)
            registry.learn(task, self._attempts_of(task))
        except InvalidName as error:
            raise InvalidTask(str(error)) from error

    def enqueue(self, task: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Enqueue a task on Django's connection.

        Within `atomic` the job exists if and only if that commits; else it exists at once.

        Args:
            task: what runs.
            args: of the call; JSON in the end.
            kwargs: the same.

        Returns: the TaskResult, which is READY.

        Raises:
            InvalidTask: a setting is out of range, or the task is not what its path leads to.
            TypeError: an argument is not JSON, or the task cannot be called with these.
            InvalidPayload, PayloadTooLarge: the arguments cannot be stored.
            SchemaMissing: run `manage.py migrate`.
        """
        self.validate_task(task)
        try:
            find_task(task.module_path)
        except UnknownJobType as error:
            raise InvalidTask(str(error)) from error
        job = self.job_of(task, args, kwargs)
        job_id, enqueued_at = self.ask(_enqueue(self.schema, traced(job)))
        result = TaskResult(
            task=as_enqueued(task, backend=self.alias),
            id=str(job_id),
            status=TaskResultStatus.READY,
            enqueued_at=enqueued_at,
            started_at=None,
            finished_at=None,
            last_attempted_at=None,
            args=job.payload["args"],
            kwargs=job.payload["kwargs"],
            backend=self.alias,
            errors=[],
            worker_ids=[],
        )
        task_enqueued.send(type(self), task_result=result)
        return result

    def job_of(self, task: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> NewJob:
        """Make the job of a call of a task.

        Raises:
            TypeError: an argument is not JSON, or the task cannot be called with these.
            InvalidPayload, PayloadTooLarge: the arguments cannot be stored.
        """
        check_call(task, args, kwargs)
        call = _through_json({"args": normalize_json(args), "kwargs": normalize_json(kwargs)})
        options = options_of(task)
        org_id = getattr(task, "org_id", None)
        return NewJob(
            job_type=task.module_path,
            payload={**call, "options": options} if options else call,
            org_id=NIL_ORG if org_id is None else org_id_of(org_id),
            queue_name=task.queue_name,
            priority=int(task.priority),
            scheduled_at=_aware(task.run_after),
            max_attempts=self._attempts_of(task),
            unique=getattr(task, "unique", None),
            headers=carried.get() if (headers := getattr(task, "headers", None)) is None else headers,
        )

    def get_result(self, result_id: str) -> Any:
        """Return the TaskResult of a job, whichever process enqueued or ran it.

        Raises:
            TaskResultDoesNotExist: there is no such job: it never was, it was pruned, or its task
                is not there any more.
        """
        try:
            job_id = job_id_of(str(result_id))
            job, history = self._find(job_id)
            task = find_task(job.job_type)
        except (InvalidJob, JobNotFound, UnknownJobType) as error:
            raise TaskResultDoesNotExist(str(result_id)) from error
        return result_of(task, self.alias, job, history)

    def cancel(self, result_id: str, why: str | None = None) -> str:
        """Cancel a task. A waiting task never starts; a running task is stopped.

        Returns: `cancelled`; `stopping`: the task was told; `finished`: it had ended before.

        Raises:
            TaskResultDoesNotExist: there is no such job.
        """
        try:
            outcome = self.ask(end.cancel(self.schema, job_id_of(str(result_id)), why))
        except InvalidJob as error:
            raise TaskResultDoesNotExist(str(result_id)) from error
        if outcome == "unknown":
            raise TaskResultDoesNotExist(str(result_id))
        return outcome

    async def acancel(self, result_id: str, why: str | None = None) -> str:
        """See cancel()."""
        outcome: str = await sync_to_async(self.cancel, thread_sensitive=True)(result_id, why)
        return outcome

    def requeue(self, result_id: str) -> None:
        """Bring back a task that has failed, with all its attempts before it.

        Raises:
            TaskResultDoesNotExist: no task of this id has failed.
            UniqueKeyHeld: an unfinished job holds its unique key.
        """
        try:
            is_back = self.ask(end.requeue(self.schema, job_id_of(str(result_id))))
        except InvalidJob as error:
            raise TaskResultDoesNotExist(str(result_id)) from error
        if not is_back:
            raise TaskResultDoesNotExist(str(result_id))

    async def arequeue(self, result_id: str) -> None:
        """See requeue()."""
        await sync_to_async(self.requeue, thread_sensitive=True)(result_id)

    def check(self, **_: Any) -> Iterator[Any]:
        """Say what is wrong with the settings, for `manage.py check`."""
        yield from check_settings_of(self)

    def _attempts_of(self, task: Any) -> int | None:
        own: int | None = getattr(task, "max_attempts", None)
        return self.max_attempts if own is None else own

    def _find(self, job_id: JobId) -> tuple[Job | DeadLetter, Sequence[Execution]]:
        return self.ask(_look_for(self.schema, job_id))


def _enqueue(schema: str, job: NewJob) -> Plan[tuple[JobId, datetime | None]]:
    """Enqueue a job, and ask the database when that was: no other clock counts.

    Source: sql/queries/enqueued_at.sql
    """

    def steps() -> Steps[tuple[JobId, datetime | None]]:
        job_id: JobId = yield enqueue(schema, job)
        found: list[tuple[datetime]] = yield Ask(query("enqueued_at", schema), (job_id.hex,), rows, said_of(schema))
        # None: the job has ended already, and was pruned or became a dead letter.
        return job_id, found[0][0] if found else None

    return Plan(steps, may_repeat=False)


def _look_for(schema: str, job_id: JobId) -> Plan[tuple[Job | DeadLetter, Sequence[Execution]]]:
    """Return a job with its attempts, or the dead letter that it has become.

    Raises:
        JobNotFound: there is neither.
    """

    def steps() -> Steps[tuple[Job | DeadLetter, Sequence[Execution]]]:
        for _ in range(LOOKS_MAX):
            job: Job | None = yield look.get_job(schema, job_id)
            if job is not None:
                history: list[Execution] = (
                    [] if not job.attempts and job.started_at is None else (yield look.history(schema, job_id))
                )
                return job, history
            letter: DeadLetter | None = yield look.get_dead(schema, job_id)
            if letter is not None:
                return letter, letter.history
        raise JobNotFound(f"there is no job {job_id}")

    return Plan(steps)


def _through_json(value: dict[str, Any]) -> dict[str, Any]:
    """Return arguments as they arrive from JSON, which makes text of keys that are numbers.

    Raises:
        TypeError: JSON cannot hold a value.
    """
    try:
        there_and_back: dict[str, Any] = json.loads(json.dumps(value, allow_nan=False))
    except ValueError as error:  # NaN, or a list that holds itself
        raise TypeError(f"Unsupported value: {error}") from error
    return there_and_back


def _aware(time: datetime | None) -> datetime | None:
    """Return a time with its zone; Django's own where USE_TZ is off."""
    return timezone.make_aware(time) if time is not None and timezone.is_naive(time) else time


def backends() -> list[PgnotifyqBackend]:
    """Return the backends of this class in TASKS, in order.

    A backend that cannot be made is left out: `manage.py check` tells of it.
    """
    found = []
    for alias in task_backends:
        with suppress(ImproperlyConfigured):
            if isinstance(backend := task_backends[alias], PgnotifyqBackend):
                found.append(backend)
    return found


def backend_of(alias: str | None) -> PgnotifyqBackend:
    """Return one backend of TASKS by its alias; None: the first of this class.

    Raises:
        ImproperlyConfigured: there is none.
    """
    ours = backends()
    for backend in ours:
        if alias in {None, backend.alias}:
            return backend
    there_are = ", ".join(backend.alias for backend in ours) or "none"
    wanted = "TASKS has no backend" if alias is None else f"TASKS has no backend {alias!r}"
    raise ImproperlyConfigured(f"{wanted} of pgnotifyq.django.PgnotifyqBackend; there are: {there_are}")
