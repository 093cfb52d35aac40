"""How long finished jobs, their payloads and results are kept; how somebody's data are erased."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

import attrs

from pgnotifyq.ledger.ask import Ask, Plan, nothing, text
from pgnotifyq.ledger.columns import records, rows
from pgnotifyq.ledger.enqueue import new_ids
from pgnotifyq.ledger.errors import said_of
from pgnotifyq.ledger.look import checked_limit
from pgnotifyq.ledger.statements import call, query
from pgnotifyq.model.errors import ConfigError, InvalidJob
from pgnotifyq.model.job import JobId, OrgId
from pgnotifyq.model.new_job import org_id_of
from pgnotifyq.model.outcome import bounded
from pgnotifyq.model.payload import encode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pgnotifyq.ledger.ask import Answer, Steps

# How often an erasure goes through the tables, at the most. If a job was given back, requeued or
# written during a pass, the next pass finds it.
PASSES_MAX = 3


@attrs.frozen(kw_only=True)
class RetentionRow:
    """How long the jobs of a queue that ended in one way are kept, from their end on."""

    queue_name: str  # *: every queue, where its own row says nothing
    ending: str  # completed, cancelled, dead
    keep_seconds: float | None  # None: not said
    payload_seconds: float | None  # then the payload and the headers are blanked
    result_seconds: float | None  # then the result and the progress message are blanked


@attrs.frozen(kw_only=True)
class Kept:
    """When a job, or a dead letter, goes. Negative: it is due, and the next pass takes it."""

    queue_name: str
    ending: str | None  # completed, cancelled, dead; None: it has not ended, and nothing of it goes
    # The row and its history. None: no row of the retention says when. Then a finished job is kept
    # for as long as a worker of its queue is set to, and a dead letter until somebody deletes it.
    goes_in_seconds: float | None
    payload_goes_in_seconds: float | None  # None: with its row; or it has gone already
    # None: with its row; or there is no result, or the result has gone already.
    result_goes_in_seconds: float | None

    @property
    def is_said(self) -> bool:
        """Whether the retention says anything of what is left of the job or letter."""
        return any(
            seconds is not None for seconds in (self.goes_in_seconds, self.payload_goes_in_seconds, self.result_goes_in_seconds)
        )


@attrs.frozen(kw_only=True)
class Erasable:
    """What an erasure would find."""

    jobs: int
    held: int  # those of `jobs` that a worker holds; they are cancelled first
    letters: int  # dead letters


@attrs.frozen(kw_only=True)
class Erased:
    """What an erasure has done."""

    erasure_id: UUID  # in the details of its rows of the trail
    jobs: int  # that are gone, with their history
    letters: int  # dead letters that are gone, with their history
    # Jobs that are still there: they were cancelled, but their handlers have not stopped. Erase
    # again.
    held: int
    refused: int  # rows that a constraint or a trigger of the application's keeps

    @property
    def is_whole(self) -> bool:
        """Whether nothing is left of what was there."""
        return not self.held and not self.refused


@attrs.frozen(kw_only=True)
class EraseBatch:
    """What a batch of an erasure has done, and where to go on from."""

    jobs_erased: int
    letters_erased: int
    held: int
    refused: int
    next_stage: str | None  # None: this was the last batch
    last_id: UUID | None


def _org_id(name: UUID | str | int | None) -> OrgId | None:
    return None if name is None else org_id_of(name)


@attrs.frozen(kw_only=True)
class EraseFilter:
    """Whose jobs are meant. A job must fit all fields that are given.

    Raises:
        InvalidJob: none of `org_id`, `unique_key` and `payload` is given, `org_id` names no tenant,
            or `payload` is no mapping with a key.
        InvalidPayload, PayloadTooLarge: `payload` is no JSON.
    """

    # The tenant: its id, name or number. The id is kept.
    org_id: OrgId | None = attrs.field(default=None, converter=_org_id)
    unique_key: str | None = None
    payload: Mapping[str, Any] | None = None  # what the payloads contain
    queue: str | None = None
    job_type: str | None = None

    def __attrs_post_init__(self) -> None:
        """Check the values."""
        if (self.org_id, self.unique_key, self.payload) == (None, None, None):
            raise InvalidJob("nobody is named whose jobs are to be erased: give org_id, unique_key or payload")
        if self.payload is not None and not self.payload:
            raise InvalidJob("payload={} is in every payload: say what those contain that are meant")

    @property
    def values(self) -> tuple[str | None, ...]:
        """What SQL is given."""
        payload = None if self.payload is None else encode(dict(self.payload))
        return (text(self.org_id), self.unique_key, payload, self.queue, self.job_type)


def set_retention(
    schema: str,
    queue: str,
    keep_seconds: float | None = None,
    *,
    ending: str | None = None,
    payload_seconds: float | None = None,
    result_seconds: float | None = None,
) -> Ask[None]:
    """Say how long the finished jobs of a queue are kept, whatever workers are set to.

    Raises:
        InvalidJob: a value is out of range.

    Source: sql/functions/end/set_retention.sql
    """
    values = (queue, text(keep_seconds), ending, text(payload_seconds), text(result_seconds))
    return Ask(call("set_retention", "text float8 text float8 float8", schema), values, nothing, said_of(schema))


def list_retention(schema: str) -> Ask[list[RetentionRow]]:
    """Return how long finished jobs are kept; what is said of every queue first.

    Source: sql/queries/retention.sql
    """

    def read(answer: Answer, encoding: str) -> list[RetentionRow]:
        return [RetentionRow(**row) for row in records(answer, encoding)]

    return Ask(query("retention", schema), (), read, said_of(schema))


def kept(schema: str, job_id: JobId) -> Ask[Kept | None]:
    """Return when a job, or a dead letter, goes; None: there is none.

    Source: sql/queries/kept.sql
    """

    def read(answer: Answer, encoding: str) -> Kept | None:
        found = records(answer, encoding)
        return Kept(**found[0]) if found else None

    return Ask(query("kept", schema), (job_id.hex,), read, said_of(schema))


def blank(schema: str, *, after_id: JobId | None, jobs_max: int) -> Ask[tuple[int, JobId | None]]:
    """Take payloads and results out of one batch of finished jobs.

    Returns: of how many; the id to go on from, or None at the end of the pass.

    Source: sql/functions/end/blank.sql
    """

    def read(answer: Answer, encoding: str) -> tuple[int, JobId | None]:
        ((blanked, last_id),) = rows(answer, encoding)
        return blanked, last_id

    return Ask(call("blank", "uuid integer", schema), (text(after_id), str(jobs_max)), read)


def prune_letters(schema: str, *, after_id: JobId | None, jobs_max: int) -> Ask[tuple[int, int, JobId | None]]:
    """Delete, or blank, one batch of dead letters.

    Returns: how many were deleted, how many blanked; the id to go on from, or None at the end of
        the pass.

    Source: sql/functions/end/prune_letters.sql
    """

    def read(answer: Answer, encoding: str) -> tuple[int, int, JobId | None]:
        ((deleted, blanked, last_id),) = rows(answer, encoding)
        return deleted, blanked, last_id

    return Ask(call("prune_letters", "uuid integer", schema), (text(after_id), str(jobs_max)), read)


# Erasure


def count_erasable(schema: str, only: EraseFilter) -> Ask[Erasable]:
    """Count what an erasure would find.

    Source: sql/queries/count_erasable.sql
    """

    def read(answer: Answer, encoding: str) -> Erasable:
        (row,) = records(answer, encoding)
        return Erasable(**row)

    return Ask(query("count_erasable", schema), only.values, read, said_of(schema))


def erase_batch(
    schema: str,
    only: EraseFilter,
    *,
    erasure_id: UUID,
    stage: str = "jobs",
    after_id: UUID | None = None,
    why: str | None = None,
    who: str | None = None,
    limit: int = 1000,
) -> Ask[EraseBatch]:
    """Erase what fits a filter, in one batch, which looks at `limit` rows at the most.

    Source: sql/functions/end/erase.sql
    """

    def read(answer: Answer, encoding: str) -> EraseBatch:
        (row,) = records(answer, encoding)
        return EraseBatch(**row)

    reason = None if why is None else bounded(why)
    values = (
        erasure_id.hex, *only.values, reason, None if who is None else bounded(who), stage, text(after_id),
        str(checked_limit(limit)),
    )  # fmt: skip
    types = "uuid uuid text jsonb text text text text text uuid integer"
    return Ask(call("erase_batch", types, schema), values, read, said_of(schema))


def erase(schema: str, only: EraseFilter, *, why: str | None = None, who: str | None = None, limit: int = 1000) -> Plan[Erased]:
    """Erase what fits a filter, batch after batch.

    If the connection is in autocommit, each batch is a transaction. If the erasure is asked again,
    it goes on: what is gone is gone.

    Raises:
        ConfigError: `limit` is out of range.
        MissingRights: the role is neither an admin nor the owner.
    """
    if limit < 1:
        raise ConfigError(f"limit {limit!r} is out of range: use 1 or more")
    checked_limit(limit)

    def steps() -> Steps[Erased]:
        (erasure_id,) = new_ids(1)
        jobs = letters = held = refused = 0
        for _ in range(PASSES_MAX):
            before, held, refused = jobs + letters, 0, 0
            stage: str | None = "jobs"
            after_id: UUID | None = None
            while stage is not None:
                told: EraseBatch = yield erase_batch(
                    schema, only, erasure_id=erasure_id, stage=stage, after_id=after_id, why=why, who=who, limit=limit
                )
                jobs, letters = jobs + told.jobs_erased, letters + told.letters_erased
                held, refused = held + told.held, refused + told.refused
                stage, after_id = told.next_stage, told.last_id
            left: Erasable = yield count_erasable(schema, only)
            if not left.jobs + left.letters or (held and jobs + letters == before):
                break
        left_over = left.jobs + left.letters
        return Erased(
            erasure_id=erasure_id, jobs=jobs, letters=letters, held=max(left_over - refused, 0), refused=min(refused, left_over)
        )

    return Plan(steps)
