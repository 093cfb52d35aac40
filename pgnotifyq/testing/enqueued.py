"""Assertions about what is enqueued. If one fails, it shows what is enqueued instead."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import attrs

from pgnotifyq.ledger.look import list_jobs
from pgnotifyq.ledger.testing import clock
from pgnotifyq.model.errors import InvalidPayload
from pgnotifyq.model.handler import Handler
from pgnotifyq.model.job import Job, OrgId
from pgnotifyq.model.payload import encode
from pgnotifyq.model.states import Status
from pgnotifyq.wire.callers import ask_on, ask_on_blocking
from pgnotifyq.wire.kinds import kind_of

if TYPE_CHECKING:
    import uuid
    from collections.abc import Callable, Coroutine, Generator, Iterator

    from pgnotifyq.wire.kinds import CallersConnection

LOOKED_AT_MAX = 5000  # an assertion reads at most so many jobs, the newest
SHOWN_MAX = 10  # a message shows at most so many of them
VALUE_CHARACTERS_MAX = 120
_MISSING = object()


class Jobs(list[Job]):
    """The jobs that fitted, oldest first.

    If an event loop drives the connection, await this. Before that, nothing has been asked.
    """

    def __init__(self, coming: Coroutine[Any, Any, list[Job]] | None = None) -> None:
        super().__init__()
        self._coming = coming

    def __await__(self) -> Generator[Any, Any, Jobs]:
        coming, self._coming = self._coming, None
        if coming is not None:
            self.extend((yield from coming.__await__()))
        return self


@attrs.frozen(kw_only=True)
class Expected:
    """What a test expects of a job. A field that is None: the test expects nothing of it."""

    job_type: str
    payload: Any  # JSON of which a job's payload has at least this
    queue: str | None
    org_id: uuid.UUID | None
    priority: int | None
    unique_key: str | None
    scheduled: bool | datetime | None

    def differences(self, job: Job, now: datetime) -> list[str]:
        """Return what is not as expected of a job, one line for each difference."""
        found = [
            f"{name}: {_short(value)}, expected {_short(expected)}"
            for name, value, expected in (
                ("queue", job.queue_name, self.queue),
                ("org_id", str(job.org_id), None if self.org_id is None else str(self.org_id)),
                ("priority", job.priority, self.priority),
                ("unique_key", job.unique_key, self.unique_key),
            )
            if expected is not None and value != expected
        ]
        found += self._differences_of_time(job, now)
        for path, value, expected in _differences(self.payload, job.payload, ""):
            shown = "missing" if value is _MISSING else _short(value)
            found.append(f"{path or 'payload'}: {shown}, expected {_short(expected)}")
        return found

    def _differences_of_time(self, job: Job, now: datetime) -> Iterator[str]:
        is_later = job.scheduled_at > now
        match self.scheduled:
            case None:
                return
            case True if not is_later:
                yield "it is due now, expected later"
            case False if is_later:
                yield f"it is scheduled at {job.scheduled_at.isoformat()}, expected now"
            case datetime() as time if job.scheduled_at != time:
                yield f"it is scheduled at {job.scheduled_at.isoformat()}, expected {time.isoformat()}"

    def __str__(self) -> str:
        said = [] if self.payload in ({}, None) else [_short(self.payload)]
        names = ("queue", "org_id", "priority", "unique_key", "scheduled")
        said += [f"{name}={value}" for name in names if (value := getattr(self, name)) is not None]
        return self.job_type + (f" with {', '.join(said)}" if said else "")


def assert_enqueued(
    job_type: str | Handler[Any, Any, Any],
    /,
    *,
    connection: CallersConnection,
    payload: object = None,
    queue: str | None = None,
    org_id: OrgId | uuid.UUID | None = None,
    priority: int | None = None,
    unique_key: str | None = None,
    scheduled: bool | datetime | str | None = None,
    count: int | None = None,
    schema: str = "pgnotifyq",
    **fields: object,
) -> Jobs:
    """Assert that a job is enqueued, and waits to be run.

    The jobs are read on the connection. So what its open transaction has enqueued is seen, too. If
    trio or asyncio drives the connection, await the call: `await assert_enqueued(...)`.

    Args:
        job_type: the handler, or its name.
        connection: any that `connection=` of `enqueue` takes.
        payload: a part of the payload, as a mapping or as what the handler takes. Objects within
            may have more fields; lists are compared whole.
        queue: of the job.
        org_id: its tenant.
        priority: of the job.
        unique_key: of the job.
        scheduled: True: it is not due yet; False: it is due; a time: it falls due exactly then. A
            time without a time zone is UTC.
        count: how many such jobs; default: at least one.
        schema: where the queue is.
        **fields: fields of the payload, as `path="a.png"`. If a field has the name of an argument
            of this list, give it in `payload`.

    Returns: the jobs, oldest first.

    Raises:
        AssertionError: it is not enqueued; the message shows what is, and how that differs.
        TypeError: the handler's payload has no such field.
    """
    __tracebackhide__ = True
    expected = _expected(job_type, payload, fields, queue, org_id, priority, unique_key, scheduled)

    def judge(jobs: list[Job], now: datetime) -> list[Job]:
        __tracebackhide__ = True
        fitting = _fitting(expected, jobs, now)
        if len(fitting) == count or (count is None and fitting):
            return fitting
        wanted = "not enqueued" if count is None else f"{len(fitting)} enqueued, expected {count}"
        raise AssertionError(f"{wanted}: {expected}\n{_instead(expected, jobs, now)}")

    return _look(connection, schema, judge)


def refute_enqueued(
    job_type: str | Handler[Any, Any, Any],
    /,
    *,
    connection: CallersConnection,
    payload: object = None,
    queue: str | None = None,
    org_id: OrgId | uuid.UUID | None = None,
    priority: int | None = None,
    unique_key: str | None = None,
    scheduled: bool | datetime | str | None = None,
    schema: str = "pgnotifyq",
    **fields: object,
) -> Jobs:
    """Assert that no such job is enqueued and waits to be run.

    Args, Raises: as for `assert_enqueued`.

    Returns: no jobs; await it where `assert_enqueued` is awaited.
    """
    __tracebackhide__ = True
    expected = _expected(job_type, payload, fields, queue, org_id, priority, unique_key, scheduled)

    def judge(jobs: list[Job], now: datetime) -> list[Job]:
        __tracebackhide__ = True
        fitting = _fitting(expected, jobs, now)
        if fitting:
            shown = "\n".join(_shown(job, now) for job in fitting[:SHOWN_MAX])
            raise AssertionError(f"{len(fitting)} enqueued, expected none: {expected}\n{shown}")
        return fitting

    return _look(connection, schema, judge)


def _expected(
    job_type: object,
    payload: object,
    fields: dict[str, object],
    queue: str | None,
    org_id: uuid.UUID | None,
    priority: int | None,
    unique_key: str | None,
    scheduled: bool | datetime | str | None,
) -> Expected:
    # A task of Django's has a path, `module_path`, which is its job type.
    named = getattr(job_type, "job_type", None) or getattr(job_type, "module_path", None)
    name: Any = job_type if isinstance(job_type, str) else named
    if not isinstance(name, str):
        raise TypeError(f"{job_type!r} is not a handler: name a job type, or pass what @registry.handler makes of a function")
    if isinstance(job_type, Handler):
        _check_fields(job_type, fields)
    whole: Any = {} if payload is None else _as_json(payload)
    if fields:
        if not isinstance(whole, dict):
            raise TypeError(f"payload is {_short(whole)}, and has no fields: leave out {', '.join(fields)}")
        whole = whole | {name: _as_json(value) for name, value in fields.items()}
    if isinstance(scheduled, str):
        scheduled = datetime.fromisoformat(scheduled)
    if isinstance(scheduled, datetime) and scheduled.tzinfo is None:
        scheduled = scheduled.replace(tzinfo=UTC)
    return Expected(
        job_type=name, payload=whole, queue=queue, org_id=org_id, priority=priority, unique_key=unique_key, scheduled=scheduled
    )


def _check_fields(handler: Handler, fields: dict[str, object]) -> None:
    """Refuse a field that no payload of the handler has. A refutal of it would prove nothing."""
    kind = handler.payload_type
    if not isinstance(kind, type):
        return
    if attrs.has(kind):
        known = {field.name for field in attrs.fields(kind)}
    elif dataclasses.is_dataclass(kind):
        known = {field.name for field in dataclasses.fields(kind)}
    else:
        return
    for name in fields:
        if name not in known:
            raise TypeError(f"{kind.__name__}, which {handler.name} takes, has no field {name!r}: {', '.join(sorted(known))}")


def _as_json(value: object) -> Any:
    if isinstance(value, Mapping):
        return {name: _as_json(each) for name, each in value.items()}
    try:
        return json.loads(encode({"": value}))[""]
    except InvalidPayload:
        return value  # unittest.mock.ANY and its like: compared as it is


def _look(connection: CallersConnection, schema: str, judge: Callable[[list[Job], datetime], list[Job]]) -> Jobs:
    __tracebackhide__ = True
    jobs, now = list_jobs(schema, limit=LOOKED_AT_MAX), clock(schema)
    if kind_of(connection).is_blocking:
        found = Jobs()
        found.extend(judge(ask_on_blocking(connection, jobs)[::-1], ask_on_blocking(connection, now)))
        return found

    async def look() -> list[Job]:
        __tracebackhide__ = True
        return judge((await ask_on(connection, jobs))[::-1], await ask_on(connection, now))

    return Jobs(look())


def _fitting(expected: Expected, jobs: list[Job], now: datetime) -> list[Job]:
    return [job for job in jobs if _waits(expected, job) and not expected.differences(job, now)]


def _waits(expected: Expected, job: Job) -> bool:
    return job.job_type == expected.job_type and job.status is Status.PENDING


def _instead(expected: Expected, jobs: list[Job], now: datetime) -> str:
    """Say what is enqueued instead, the nearest first."""
    near = [(expected.differences(job, now), job) for job in jobs if _waits(expected, job)]
    near.sort(key=lambda pair: len(pair[0]))
    lines = []
    if near:
        lines.append(f"enqueued of this type: {len(near)}")
    for differences, job in near[:SHOWN_MAX]:
        lines.append(_shown(job, now))
        lines += [f"    - {line}" for line in differences]
    if len(near) > SHOWN_MAX:
        lines.append(f"  ... and {len(near) - SHOWN_MAX} more")
    ended = Counter(job.status.value for job in jobs if job.job_type == expected.job_type and job.status is not Status.PENDING)
    if ended:
        lines.append(f"of this type, and not waiting: {_counted(ended)}")
    others = Counter(job.job_type for job in jobs if job.job_type != expected.job_type and job.status is Status.PENDING)
    if others:
        lines.append(f"enqueued of other types: {_counted(others)}")
    return "\n".join(lines) or "nothing is enqueued"


def _counted(counter: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counter.most_common(SHOWN_MAX))


def _shown(job: Job, now: datetime) -> str:
    due = f"at {job.scheduled_at.isoformat()}" if job.scheduled_at > now else "due now"
    return f"  {job.job_type} {_short(job.payload)} on {job.queue_name}, {due}"


def _differences(expected: Any, found: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield where JSON that was found has not at least what is expected: path, found, expected."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for name, value in expected.items():
            inner = f"{path}.{name}" if path else str(name)
            yield from _differences(value, found.get(name, _MISSING), inner)
    elif not _is_same(expected, found):
        yield path, found, expected


def _is_same(expected: Any, found: Any) -> bool:
    # In JSON true is not 1.
    if isinstance(found, bool) is not isinstance(expected, bool) and isinstance(expected, (int, float)):
        return False
    return bool(expected == found)


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= VALUE_CHARACTERS_MAX else shown[:VALUE_CHARACTERS_MAX] + "..."
