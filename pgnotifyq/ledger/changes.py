"""Edit a job that waits; cancel, delete or edit many jobs, a batch at a time."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Literal
from uuid import UUID

import attrs

from pgnotifyq.ledger.ask import Ask, text
from pgnotifyq.ledger.columns import number, records, word
from pgnotifyq.ledger.errors import said_of
from pgnotifyq.ledger.look import check_label, checked_limit
from pgnotifyq.ledger.statements import call, query
from pgnotifyq.model.errors import InvalidJob
from pgnotifyq.model.job import JobId, OrgId
from pgnotifyq.model.new_job import NewJob, org_id_of
from pgnotifyq.model.outcome import bounded
from pgnotifyq.model.payload import encode

if TYPE_CHECKING:
    from pgnotifyq.ledger.ask import Answer

_FILTER_TYPES = "text text uuid text text timestamptz timestamptz"
_EDIT_TYPES = "text integer timestamptz float8 jsonb"


def _org_id(name: UUID | str | int | None) -> OrgId | None:
    return None if name is None else org_id_of(name)


@attrs.frozen(kw_only=True)
class JobFilter:
    """Which jobs are meant. A field that is None does not matter; if all are None, all jobs fit.

    Raises:
        ConfigError: `status` is not a status, nor one of scheduled, retrying, stopping.
        InvalidJob: a time has no time zone, or `org_id` names no tenant.
    """

    queue: str | None = None
    job_type: str | None = None
    # The tenant: its id, name or number. The id is kept.
    org_id: OrgId | None = attrs.field(default=None, converter=_org_id)
    status: str | None = None  # a status, or scheduled, retrying, stopping
    error: str | None = None  # a part of the error message, in any case
    created_after: datetime | None = None
    created_before: datetime | None = None

    def __attrs_post_init__(self) -> None:
        """Check the values."""
        check_label(self.status)
        for time in (self.created_after, self.created_before):
            if time is not None and time.tzinfo is None:
                raise InvalidJob(f"{time!r} has no time zone: pass an aware datetime")

    @property
    def values(self) -> tuple[str | None, ...]:
        """What SQL is given."""
        times = (text(self.created_after), text(self.created_before))
        return (self.queue, self.job_type, text(self.org_id), self.status, self.error, *times)


@attrs.frozen(kw_only=True)
class Edit:
    """What to change of a job that waits. A field that is None stays as it is.

    Raises:
        InvalidName, InvalidJob, InvalidPayload, PayloadTooLarge: an enqueue would refuse a value,
            too.
    """

    queue: str | None = None
    priority: int | None = None
    scheduled_at: datetime | None = None
    delay_seconds: float | None = None  # from now on, in place of scheduled_at; 0: now
    payload: object = None

    def __attrs_post_init__(self) -> None:
        """Check the values."""
        NewJob(
            job_type="any",
            queue_name=self.queue,
            priority=0 if self.priority is None else self.priority,
            scheduled_at=self.scheduled_at,
            delay_seconds=self.delay_seconds,
        )
        if self.values == (None,) * 5:
            raise InvalidJob("nothing is to change: give a queue, priority, scheduled_at, delay_seconds or payload")

    @property
    def values(self) -> tuple[str | None, ...]:
        """What SQL is given."""
        payload = None if self.payload is None else encode(self.payload)
        return (self.queue, text(self.priority), text(self.scheduled_at), text(self.delay_seconds), payload)


NO_EDIT = (None,) * 5


@attrs.frozen(kw_only=True)
class Batch:
    """What one batch of a bulk change has done."""

    done: int  # jobs that were changed
    refused: int  # jobs that a constraint or a trigger kept from changing; they stay as they are
    after_id: JobId | None  # where to go on from; None: this was the last batch


def edit(schema: str, job_id: JobId, change: Edit) -> Ask[str]:
    """Change a job that waits; return `edited`, `running`, `finished` or `unknown`.

    Source: sql/functions/enqueue/edit.sql
    """
    return Ask(call("edit", "uuid " + _EDIT_TYPES, schema), (job_id.hex, *change.values), word, said_of(schema))


def count_jobs(schema: str, only: JobFilter) -> Ask[int]:
    """Return how many jobs fit a filter. Source: sql/queries/count_jobs.sql."""
    return Ask(query("count_jobs", schema), only.values, number, said_of(schema))


def change_all(
    schema: str,
    action: Literal["cancel", "delete", "edit"],
    only: JobFilter,
    *,
    why: str | None = None,
    change: Edit | None = None,
    after_id: JobId | None = None,
    limit: int = 1000,
) -> Ask[Batch]:
    """Cancel, delete or edit one batch of the jobs that fit a filter: at most `limit` jobs.

    Raises:
        ConfigError: `limit` is negative.

    Source: sql/functions/end/change_all.sql
    """
    values = (
        action,
        *only.values,
        None if why is None else bounded(why),
        *(NO_EDIT if change is None else change.values),
        text(after_id),
        str(checked_limit(limit)),
    )
    types = f"text {_FILTER_TYPES} text {_EDIT_TYPES} uuid integer"
    return Ask(call("change_all", types, schema), values, _batch, said_of(schema))


def _batch(answer: Answer, encoding: str) -> Batch:
    (row,) = records(answer, encoding)
    last_id = row["last_id"]
    return Batch(done=row["done"], refused=row["refused"], after_id=None if last_id is None else JobId(last_id))
