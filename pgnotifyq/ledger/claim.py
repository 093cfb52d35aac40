"""A worker takes jobs: the next ones of its queues, or one that a wake-up named."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
from psycopg import errors

from pgnotifyq.ledger.ask import Ask, Plan, array, text
from pgnotifyq.ledger.claimed import EXECUTION_ID, ID, NEXT_DUE_SECONDS, PAYLOAD, SNAPSHOT_XMIN, ClaimedJob
from pgnotifyq.ledger.columns import is_null, value_at
from pgnotifyq.ledger.errors import is_of_a_row
from pgnotifyq.ledger.statements import call
from pgnotifyq.model.job import JobId, WorkerId

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pgnotifyq.ledger.ask import Answer, Steps


@attrs.frozen(kw_only=True)
class Claim:
    """What one claim found."""

    jobs: list[ClaimedJob]  # in the order of claiming: preference of queue, priority, time, id
    ran_dry: bool  # fewer were found than asked for
    # If dry: until the next job of these queues falls due. None: no such job is known.
    next_due_seconds: float | None
    is_contended: bool  # a due job was left because another transaction holds its row
    # If dry: all transactions below it had ended before the claim looked. None: the worker sleeps,
    # and a time has passed at which it had promised to look.
    snapshot_xmin: int | None
    # Jobs that could not be claimed. Only `claim_apart` finds them.
    put_aside: Sequence[PutAside] = ()


@attrs.frozen(kw_only=True)
class PutAside:
    """A job whose row could not be claimed, noted in job_troubles."""

    job_id: JobId
    why: str  # what the database said


@attrs.frozen
class Wanted:
    """The job types that a worker has handlers for, and the max_attempts of each, for a claim."""

    types: str  # an array, written as the server reads it
    maxima: str


def wanted(maxima: Mapping[str, int | None]) -> Wanted:
    """Return job types and their max_attempts in the form that claims take.

    `maxima` has None for a job type whose handler says nothing of max_attempts.
    """
    return Wanted(array(list(maxima)), array([text(number) for number in maxima.values()]))


# If a payload has more text than this, it is not sent to a worker, and the worker buries its job. A
# client may enqueue 1 MiB. PostgreSQL adds spaces, half as much again at most. Only numbers that
# PostgreSQL writes out (1e300) get larger. So such a payload came by raw SQL.
PAYLOAD_SENT_BYTES_MAX = 16 << 20
# The most bytes of all payloads of one claim: see sql/functions/claim/claim.sql.
CLAIM_BYTES_MAX = 16 << 20


@attrs.frozen(kw_only=True)
class NamedClaim:
    """What became of the claim of one job."""

    job: ClaimedJob | None
    # Neither this claim nor another worker has taken the job, as far as is known. The worker is to
    # look at its queues.
    is_still_there: bool = False


def claim(
    schema: str,
    *,
    worker_id: WorkerId,
    queues: Sequence[str],
    jobs_max: int,
    lease_seconds: float,
    is_asleep: bool = False,
    after: ClaimedJob | None = None,
    only: Wanted | None = None,
    bytes_max: int = CLAIM_BYTES_MAX,
) -> Ask[Claim]:
    """Claim up to `jobs_max` due jobs, each with a new execution and a lease.

    With `after`, the claim goes on behind that job. It does not see the jobs before, unless it
    finds too few behind (runtime/resuming.py). With `only`, it leaves jobs of other types.
    `bytes_max` bounds the payloads of all jobs but the first.

    Cancellation: the claim may have been committed. Then its leases run out. So shield the claim.

    Source: sql/functions/claim/claim.sql
    """
    types = "uuid text[] integer float8 boolean text integer timestamptz uuid text[] integer[] bigint bigint"
    values: list[str | None] = [worker_id.hex, array(queues), str(jobs_max), str(lease_seconds), str(is_asleep)]
    if after is None:
        values += [None, None, None, None]
    else:
        whole = after.whole
        values += [whole.queue_name, str(whole.priority), whole.scheduled_at.isoformat(), whole.id.hex]
    values += [None, None] if only is None else [only.types, only.maxima]
    values += [str(bytes_max), str(PAYLOAD_SENT_BYTES_MAX)]

    def read(answer: Answer, encoding: str) -> Claim:
        count = answer.ntuples
        next_due_seconds = snapshot_xmin = None
        ran_dry = count > 0 and is_null(answer, count - 1, ID)
        if ran_dry:
            count -= 1
            next_due_seconds = value_at(answer, count, NEXT_DUE_SECONDS, encoding)
            snapshot_xmin = value_at(answer, count, SNAPSHOT_XMIN, encoding)
        return Claim(
            jobs=[ClaimedJob.from_row(answer, row, encoding, worker_id) for row in range(count)],
            ran_dry=ran_dry,
            next_due_seconds=next_due_seconds,
            is_contended=next_due_seconds is not None and next_due_seconds <= 0,
            snapshot_xmin=snapshot_xmin,
        )

    return Ask(call("claim", types, schema), values, read, is_durable=False)


def claim_surely(
    schema: str,
    *,
    worker_id: WorkerId,
    queues: Sequence[str],
    jobs_max: int,
    lease_seconds: float,
    is_asleep: bool = False,
    after: ClaimedJob | None = None,
    only: Wanted | None = None,
    bytes_max: int = CLAIM_BYTES_MAX,
) -> Plan[Claim]:
    """Do what `claim` does. If one row makes the whole claim fail, claim each job apart.

    The connection must be in autocommit. Otherwise the failed claim would abort its transaction.

    Returns: as `claim`, or as `claim_apart`.

    Cancellation: as for `claim`.

    Raises: what `claim` raised, if no row was the cause. Then nothing was claimed apart, and
        nothing was put aside.
    """

    def steps() -> Steps[Claim]:
        same: dict[str, Any] = {"worker_id": worker_id, "queues": queues, "jobs_max": jobs_max, "lease_seconds": lease_seconds}
        try:
            found: Claim = yield claim(schema, **same, is_asleep=is_asleep, after=after, only=only, bytes_max=bytes_max)
        except Exception as error:
            if not is_of_a_row(error):
                raise
            found = yield claim_apart(schema, **same, only=only)
            if not found.jobs and not found.put_aside:
                raise
        return found

    return Plan(steps, is_durable=False)


def claim_apart(
    schema: str,
    *,
    worker_id: WorkerId,
    queues: Sequence[str],
    jobs_max: int,
    lease_seconds: float,
    only: Wanted | None = None,
) -> Ask[Claim]:
    """Claim due jobs one at a time, and put aside those that cannot be claimed.

    For a worker whose `claim` has failed over some row.

    Returns: as `claim`, but never dry. The next claim passes over what was put aside.

    Cancellation: as for `claim`.

    Source: sql/functions/claim/claim_apart.sql
    """

    def read(answer: Answer, encoding: str) -> Claim:
        jobs, put_aside = [], []
        for row in range(answer.ntuples):
            if not is_null(answer, row, EXECUTION_ID):
                jobs.append(ClaimedJob.from_row(answer, row, encoding, worker_id))
                continue
            said = answer.get_value(row, PAYLOAD)
            why = "" if said is None else said.decode(encoding, "replace")
            put_aside.append(PutAside(job_id=JobId(value_at(answer, row, ID, encoding)), why=why))
        return Claim(jobs=jobs, ran_dry=False, next_due_seconds=None, is_contended=False, snapshot_xmin=None, put_aside=put_aside)

    types = "uuid text[] integer float8 text[] integer[] bigint"
    values = (worker_id.hex, array(queues), str(jobs_max), str(lease_seconds), *_as_wanted(only), str(PAYLOAD_SENT_BYTES_MAX))
    return Ask(call("claim_apart", types, schema), values, read)


def _as_wanted(only: Wanted | None) -> tuple[str | None, str | None]:
    return (None, None) if only is None else (only.types, only.maxima)


def claim_named(
    schema: str,
    *,
    worker_id: WorkerId,
    queues: Sequence[str],
    job_id: str,
    lease_seconds: float,
    only: Wanted | None = None,
) -> Ask[NamedClaim]:
    """Claim one job of these queues, by its key, if it is due.

    `job_id` is the key's text. `is_still_there` is the answer, too, if the text is no key, or if
    the row is locked or cannot be updated. The next look at the queue puts such a row aside.

    Cancellation: as for `claim`.

    Source: sql/functions/claim/claim_named.sql
    """

    def read(answer: Answer, encoding: str) -> NamedClaim:
        count = answer.ntuples
        if count and not is_null(answer, 0, ID):
            return NamedClaim(job=ClaimedJob.from_row(answer, 0, encoding, worker_id))
        return NamedClaim(job=None, is_still_there=count == 0)

    types = "uuid text[] uuid float8 text[] integer[] bigint"
    values = (worker_id.hex, array(queues), job_id, str(lease_seconds), *_as_wanted(only), str(PAYLOAD_SENT_BYTES_MAX))
    return Ask(call("claim_named", types, schema), values, read, _still_there, is_durable=False)


def _still_there(error: Exception) -> NamedClaim:
    if isinstance(error, (errors.LockNotAvailable, errors.InvalidTextRepresentation)) or is_of_a_row(error):
        return NamedClaim(job=None, is_still_there=True)
    raise error
