"""A job that is still to be enqueued: its fields, and their bounds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any, TypedDict
from uuid import UUID

import attrs

from pgnotifyq.model.errors import InvalidJob, InvalidPayload, PayloadTooLarge
from pgnotifyq.model.headers import NO_HEADERS, Headers
from pgnotifyq.model.job import NIL_ORG, JobId, OrgId
from pgnotifyq.model.names import check_job_type, check_queue_name
from pgnotifyq.model.organisation import org
from pgnotifyq.model.payload import encode_value
from pgnotifyq.model.unique import Unique, check_key

PRIORITY_MIN, PRIORITY_MAX = -32768, 32767  # PostgreSQL's smallint
PRIORITY_DEFAULT = 0
# With RetryPolicy's defaults, the last attempt comes five hours and a half after the first.
MAX_ATTEMPTS_DEFAULT = 15
QUEUE_DEFAULT = "default"  # of a job that names none, and whose handler names none
MAX_ATTEMPTS_MAX = 1000  # bounds the history of a job
# Python's datetime has the years 1 to 9999. So it can say these times in every time zone.
SCHEDULED_YEAR_MIN, SCHEDULED_YEAR_MAX = 2, 9998
HEADERS_BYTES_MAX = 8192  # as compact JSON; web servers admit as much in a request
HEADERS_DEPTH_MAX = 16
DELAY_SECONDS_MAX = 10 * 366 * 86_400.0  # ten years; more is a mistake in the unit

_set = object.__setattr__


def _check_integer(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidJob(f"{name} {value!r} is out of range: use a whole number from {low} to {high}")


def job_id_of(value: object) -> JobId:
    """Return the id of a job, given as a UUID or its text.

    Raises:
        InvalidJob: it is neither.
    """
    return JobId(_to_uuid("job_id", value))


def org_id_of(value: object) -> OrgId:
    """Return a tenant's id, given as a UUID or its text, or as the tenant's name or number.

    Raises:
        InvalidJob: it is none of them. See model/organisation.py.
    """
    return org(value)  # type: ignore[arg-type]  # it refuses what it does not take


def _to_uuid(name: str, value: object) -> UUID:
    given = value
    if isinstance(value, str):
        with suppress(ValueError):  # refused below
            value = UUID(value)
    if not isinstance(value, UUID):
        raise InvalidJob(f"{name} {given!r:.80} is not a UUID: pass a uuid.UUID, or its text")
    return value


@attrs.frozen(kw_only=True)
class NewJob:
    """A job to enqueue. Checked when it is made.

    Raises:
        InvalidName: the job type or queue name does not fit its pattern.
        InvalidJob: a number, time or key is out of range.
    """

    job_type: str
    payload: Any = None  # dict, list, attrs class, dataclass: anything that is JSON in the end
    org_id: OrgId = NIL_ORG  # or its text, the tenant's name, or its number
    # None: the queue that the handler wants, if a handler is known; else `default`.
    queue_name: str | None = None
    priority: int = PRIORITY_DEFAULT
    scheduled_at: datetime | None = None  # aware; None: now, on the database's clock
    delay_seconds: float | None = None  # from now, on the database's clock; instead of scheduled_at
    max_attempts: int | None = None  # None: what its handler says at the claim, else 15
    # If an unfinished job of the tenant and type has this key, enqueue returns that job's id.
    unique_key: str | None = None
    # More of that: a key of fields of the payload, for how long, what follows if the key is taken.
    unique: Unique | None = None
    # What goes with the job and is not its payload: a JSON object. None: not said; if a handler
    # enqueues the job, it gets the headers of that handler's job. {}: no headers.
    headers: Mapping[str, Any] | None = None

    def __attrs_post_init__(self) -> None:
        # Fields are checked by hand, and only if they are given: attrs' validators took a third of
        # the time of a bulk enqueue.
        check_job_type(self.job_type)
        if self.org_id is not NIL_ORG:
            _set(self, "org_id", org_id_of(self.org_id))
        if self.queue_name is not None:
            check_queue_name(self.queue_name)
        if self.priority is not PRIORITY_DEFAULT:
            _check_integer("priority", self.priority, PRIORITY_MIN, PRIORITY_MAX)
        if self.max_attempts is not None:
            _check_integer("max_attempts", self.max_attempts, 1, MAX_ATTEMPTS_MAX)
        if self.scheduled_at is not None:
            self._check_time(self.scheduled_at)
        if self.delay_seconds is not None:
            self._check_delay(self.delay_seconds)
        if self.unique_key is not None:
            check_key(self.unique_key)
        if self.unique is not None:
            self._take_unique(self.unique)
        if self.headers is not None:
            _set(self, "headers", headers_of(self.headers))

    @property
    def is_unique(self) -> bool:
        """Whether the job has a unique key, or its payload makes one."""
        return self.unique_key is not None or self.unique is not None

    @property
    def headers_text(self) -> str | None:
        """The headers as JSON; None: there are none."""
        return None if self.headers is None else headers_of(self.headers).text

    def _check_time(self, time: object) -> None:
        if not isinstance(time, datetime) or time.utcoffset() is None:
            raise InvalidJob(f"scheduled_at {time!r} has no time zone: pass an aware datetime")
        if not SCHEDULED_YEAR_MIN <= time.year <= SCHEDULED_YEAR_MAX:
            message = f"scheduled_at {time} is out of range: use a year from {SCHEDULED_YEAR_MIN} to {SCHEDULED_YEAR_MAX}"
            raise InvalidJob(message)
        if self.delay_seconds is not None:
            raise InvalidJob("both scheduled_at and delay_seconds are given: pass one")

    @staticmethod
    def _check_delay(delay: object) -> None:
        if isinstance(delay, bool) or not isinstance(delay, (int, float)) or not 0 <= delay <= DELAY_SECONDS_MAX:
            raise InvalidJob(f"delay_seconds {delay!r} is out of range: use 0 to {DELAY_SECONDS_MAX:.0f}")

    def _take_unique(self, unique: object) -> None:
        if not isinstance(unique, Unique):
            raise InvalidJob(f"unique {unique!r:.80} is no pgnotifyq.Unique: use unique=Unique(key='...'), or unique_key='...'")
        if self.unique_key is not None and self.unique_key != unique.key:
            raise InvalidJob("both unique_key and unique are given: pass one")
        _set(self, "unique_key", unique.key)


class JobSettings(TypedDict, total=False):
    """The keywords that `enqueue` and its kin take, besides a type and a payload."""

    org_id: OrgId | UUID | str | int  # the tenant: its id, name or number
    queue: str | None  # None: the handler's
    priority: int
    scheduled_at: datetime | None
    delay_seconds: float | None
    max_attempts: int | None  # None: the handler's
    unique_key: str | None
    unique: Unique | None
    headers: Mapping[str, Any] | None  # None: those of the job whose handler enqueues it


def headers_of(given: object) -> Headers:
    """Return headers as they are enqueued: checked, and a copy.

    Raises:
        InvalidJob: they are no JSON object, or too long.
    """
    if type(given) is Headers and (given.text is not None or not given):
        return given
    if not isinstance(given, Mapping):
        raise InvalidJob(f"headers {given!r:.80} are no mapping: pass a dict, as headers={{'request_id': '...'}}")
    if not given:
        return NO_HEADERS
    try:
        text = encode_value(dict(given), bytes_max=HEADERS_BYTES_MAX, depth_max=HEADERS_DEPTH_MAX, what="headers")
    except (InvalidPayload, PayloadTooLarge) as error:
        raise InvalidJob(f"the headers cannot be stored: {error}") from error
    return Headers(json.loads(text), text)
