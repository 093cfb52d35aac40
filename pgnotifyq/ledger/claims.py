"""Claim, heartbeat and settle: the verbs of a worker that touch jobs it holds or is about to hold."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import attrs
from psycopg import errors

from pgnotifyq.ledger.ask import Ask, Plan, array, text
from pgnotifyq.ledger.claimed import EXECUTION_ID, ID, NEXT_DUE_SECONDS, PAYLOAD, SNAPSHOT_XMIN, ClaimedJob
from pgnotifyq.ledger.columns import is_null, rows, truth, value_at, word
from pgnotifyq.ledger.errors import Whose, is_of_a_row, whose
from pgnotifyq.ledger.statements import call
from pgnotifyq.model.job import JobId, Lease, WorkerId
from pgnotifyq.model.outcome import PLAIN_COMPLETION

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pgnotifyq.ledger.ask import Answer, Steps, Verb
    from pgnotifyq.model.outcome import Settlement

# Settled one by one, in one statement. Beside the deadline of a link, and each may wait for a lock.
APART_JOBS_MAX = 25
APART_LOCK_SECONDS_MAX = 0.02
_SETTLE_TYPES = "uuid uuid[] uuid[] text[] text[] float8[] text[] text[] text[]"


@attrs.frozen(kw_only=True)
class Claim:
    """What one claim found."""

    jobs: list[ClaimedJob]  # in the order of claiming: preference of queue, priority, time, id
    ran_dry: bool  # fewer were found than asked for
    next_due_seconds: float | None  # until the next job of these queues falls due, when dry; None: none known
    is_contended: bool  # a due job was left because somebody else's transaction holds its row
    snapshot_xmin: int | None  # when dry: transactions below it had ended before the claim looked; None: a promise has passed
    put_aside: Sequence[PutAside] = ()  # jobs that could not be claimed; only `claim_apart` finds them


@attrs.frozen(kw_only=True)
class PutAside:
    """A job whose row could not be claimed, noted in job_troubles."""

    job_id: JobId
    why: str  # what the database said


@attrs.frozen
class Wanted:
    """The job types that a worker has handlers for, and what each handler says of max_attempts, as a claim takes them."""

    types: str  # an array, written
    maxima: str


def wanted(maxima: Mapping[str, int | None]) -> Wanted:
    """Return job types and their max_attempts (None: the handler says nothing) in the form that claims take."""
    return Wanted(array(list(maxima)), array([text(number) for number in maxima.values()]))


# A payload of more text than this is not sent to a worker, which buries its job. It is above whatever a client may enqueue (1 MiB, and a
# half more where PostgreSQL writes spaces) but for numbers that it writes out: 1e300. So it came by raw SQL.
PAYLOAD_SENT_BYTES_MAX = 16 << 20
# Of the payloads of one claim: see sql/functions/claim/claim.sql.
CLAIM_BYTES_MAX = 16 << 20


@attrs.frozen(kw_only=True)
class NamedClaim:
    """What became of the claim of one job."""

    job: ClaimedJob | None
    is_still_there: bool = False  # it was not taken, and not by anybody else either


@attrs.frozen(kw_only=True)
class Surprise:
    """A job for which a worker's write did not simply succeed."""

    job_id: JobId
    # lost, cancelled, dead, completed; of a heartbeat also unrenewed; of what was settled apart also bare, busy, refused
    became: str
    why: str | None = None  # the message left by whoever cancelled; or what the database said
    sqlstate: str | None = None  # of what the database said


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

    With `after`, the look goes on behind that job and does not see what comes before it (runtime/resuming.py). With `only`, jobs
    of other types are left; `bytes_max` bounds the payloads of all jobs but the first.

    Cancellation: the claim may have been committed; its leases then run out. Shield it.

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


def claim_apart(
    schema: str,
    *,
    worker_id: WorkerId,
    queues: Sequence[str],
    jobs_max: int,
    lease_seconds: float,
    only: Wanted | None = None,
) -> Ask[Claim]:
    """Claim due jobs one at a time, when `claim` has failed over some row, and put aside those that cannot be claimed.

    Returns: as `claim`, never dry: the next one passes over what was put aside.

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
    """Claim one job of these queues, by its key, if it is due. `job_id` is the key's text; another text names no job.

    A row that cannot be updated is still there: whoever looks for it puts it aside.

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


def heartbeat(schema: str, *, worker_id: WorkerId, leases: Sequence[Lease], lease_seconds: float) -> Ask[list[Surprise]]:
    """Give a sign of life and renew leases.

    Returns: the jobs that are not simply renewed: `cancelled` (still held; stop the handler), `lost`, or `unrenewed` (still held, and its
        row cannot be written now: somebody holds it, say).

    Source: sql/functions/lease/heartbeat.sql
    """
    values = (worker_id.hex, *_as_arrays(sorted(leases, key=_by_job)), str(lease_seconds))
    return Ask(call("heartbeat", "uuid uuid[] uuid[] float8", schema), values, _surprises, is_durable=False)


def lost(schema: str, leases: Sequence[Lease]) -> Ask[set[JobId]]:
    """Return which of some executions, that hold their jobs no more, have lost them, and did not end by what this worker wrote.

    Source: sql/functions/end/surprises.sql
    """
    return Ask(call("surprises", "uuid[] uuid[]", schema), _as_arrays(sorted(leases, key=_by_job)), _lost)


def _lost(answer: Answer, encoding: str) -> set[JobId]:
    return {surprise.job_id for surprise in _surprises(answer, encoding) if surprise.became == "lost"}


def cancelled(schema: str, leases: Sequence[Lease]) -> Ask[list[Surprise]]:
    """Return which of some executions shall stop because their jobs were cancelled. Source: sql/functions/lease/cancelled.sql."""
    return Ask(call("cancelled", "uuid[] uuid[]", schema), _as_arrays(leases), _cancelled)


def _cancelled(answer: Answer, encoding: str) -> list[Surprise]:
    return [Surprise(job_id=job_id, became="cancelled", why=why) for job_id, why in rows(answer, encoding)]


def settle(schema: str, *, worker_id: WorkerId, settlements: Sequence[tuple[Lease, Settlement]]) -> Verb[list[Surprise]]:
    """End executions, each fenced by job id and execution id; durable when this is answered.

    Repeating a batch whose reply was lost is safe: an execution that ended is recognised by its id.

    Returns: the jobs that did not end as asked: `lost`, `cancelled` (a cancel had committed first), `dead`, `completed` (by the
        handler's own transaction, whose commit it was not told of).

    Source: sql/functions/end/complete.sql, sql/functions/end/settle.sql
    """
    plain, rest = [], []
    for lease, settlement in settlements:
        if settlement is PLAIN_COMPLETION:
            plain.append(lease)
        else:
            rest.append((lease, settlement))
    asks: list[Ask[list[Surprise]]] = []
    values: tuple[str, ...]
    if plain:
        plain.sort(key=_by_job)
        values = (worker_id.hex, *_as_arrays(plain))
        asks.append(Ask(call("complete", "uuid uuid[] uuid[]", schema), values, _surprises))
    if rest:
        rest.sort(key=lambda pair: _by_job(pair[0]))
        values = (worker_id.hex, *_as_arrays([lease for lease, _ in rest]), *_as_columns([ending for _, ending in rest]))
        asks.append(Ask(call("settle", _SETTLE_TYPES, schema), values, _surprises))
    if len(asks) == 1:
        return asks[0]

    def steps() -> Steps[list[Surprise]]:
        surprises: list[Surprise] = []
        for ask in asks:
            surprises += yield ask
        return surprises

    return Plan(steps)


def settle_surely(schema: str, *, worker_id: WorkerId, settlements: Sequence[tuple[Lease, Settlement]]) -> Plan[list[Surprise]]:
    """Do what `settle` does; where one row stands in the way of the others, do it apart.

    Returns: as `settle`, and as `settle_apart` with `is_last`.
    """

    def steps() -> Steps[list[Surprise]]:
        try:
            surprises: list[Surprise] = yield settle(schema, worker_id=worker_id, settlements=settlements)
        except Exception as error:
            # Ours too: a trigger of the user's that lacks a table or a right says the same as a schema that does.
            if whose(error) not in {Whose.JOB, Whose.OURS}:
                raise
            surprises = yield settle_apart(schema, worker_id=worker_id, settlements=settlements)
            return surprises
        lost = {surprise.job_id for surprise in surprises if surprise.became == "lost"}
        if not lost:
            return surprises
        # Or left out by a trigger of the user's that returned null, in which case it is still held.
        again = [(lease, settlement) for lease, settlement in settlements if lease.job_id in lost]
        apart: list[Surprise] = yield settle_apart(schema, worker_id=worker_id, settlements=again)
        return [surprise for surprise in surprises if surprise.became != "lost"] + apart

    return Plan(steps)


def settle_apart(
    schema: str,
    *,
    worker_id: WorkerId,
    settlements: Sequence[tuple[Lease, Settlement]],
    lock_seconds: float = APART_LOCK_SECONDS_MAX,
    is_last: bool = True,
    jobs_max: int = APART_JOBS_MAX,
) -> Plan[list[Surprise]]:
    """End executions as `settle` does, each apart from the others; what cannot be written is put aside in the database.

    In statements of `jobs_max`, each durable when it is answered, so that one that is late does not undo those before it. The connection
    is to be in autocommit.

    Args:
        schema: ours.
        worker_id: who ends them.
        settlements: which, and how.
        lock_seconds: how long each may wait for a lock.
        is_last: put aside what is busy, too.
        jobs_max: how many go into a statement.

    Returns: as `settle`; and `bare` (it ended without its message and result), `refused` (put aside), and, but for `is_last`, `busy`
        (somebody holds its row, or what a trigger wants).

    Source: sql/functions/end/settle_apart.sql
    """

    def steps() -> Steps[list[Surprise]]:
        surprises: list[Surprise] = []
        for start in range(0, len(settlements), jobs_max):
            surprises += yield from part(settlements[start : start + jobs_max])
        return surprises

    def part(some: Sequence[tuple[Lease, Settlement]]) -> Steps[list[Surprise]]:
        values = (*_as_arrays([lease for lease, _ in some]), *_as_columns([settlement for _, settlement in some]))
        statement = call("settle_apart", f"{_SETTLE_TYPES} float8 boolean", schema)
        told: list[Surprise]
        try:
            told = yield Ask(statement, (worker_id.hex, *values, str(lock_seconds), str(is_last)), _told_apart)
        except Exception as error:
            if whose(error) is not Whose.JOB:
                raise
            # Not a row's: those are caught there. A text that the client's encoding lacks, or the server's: no function was called.
            if len(some) > 1:
                found: list[Surprise] = []
                for one in some:
                    found += yield from part([one])
                return found
            ((lease, settlement),) = some
            if (plain := _in_ascii(settlement)) == settlement:
                raise
            told = yield from part([(lease, plain)])
        return told

    return Plan(steps)


def _told_apart(answer: Answer, encoding: str) -> list[Surprise]:
    return [
        Surprise(job_id=job_id, became=became, why=why, sqlstate=sqlstate)
        for job_id, became, sqlstate, why, _ in rows(answer, encoding)
    ]


def _in_ascii(settlement: Settlement) -> Settlement:
    """Return a settlement with its texts escaped; the result's JSON means the same."""
    error, result = settlement.error_message, settlement.result_json
    if error is not None:
        error = error.encode("ascii", "backslashreplace").decode()
    if result is not None and not result.isascii():
        result = json.dumps(json.loads(result))
    return attrs.evolve(settlement, error_message=error, result_json=result)


def _as_columns(endings: Sequence[Settlement]) -> tuple[str, ...]:
    """Write how executions end as the arrays that settle() takes."""
    return (
        array([ending.kind.value for ending in endings]),
        array([ending.outcome for ending in endings]),
        array([str(float(ending.delay_seconds)) for ending in endings]),
        array([ending.error_message for ending in endings]),
        array([ending.result_json for ending in endings]),
        array([ending.reason for ending in endings]),
    )


def _surprises(answer: Answer, encoding: str) -> list[Surprise]:
    """Read rows of a job's id, what became of it and, from some functions, why."""
    return [
        Surprise(job_id=job_id, became=became, why=rest[0] if rest else None) for job_id, became, *rest in rows(answer, encoding)
    ]


def _by_job(lease: Lease) -> int:
    """Order as PostgreSQL orders uuids; comparing the objects themselves takes five times as long."""
    return lease[0].int


def _as_arrays(leases: Sequence[Lease]) -> tuple[str, str]:
    """Write job ids and execution ids as two arrays."""
    return (
        "{" + ",".join([lease[0].hex for lease in leases]) + "}",
        "{" + ",".join([lease[1].hex for lease in leases]) + "}",
    )


def still_holds(schema: str, lease: Lease) -> Ask[str]:
    """Lock the job's row until the transaction ends, and tell whether the execution may still write.

    Returns: `held`, `cancelled` or `lost`.

    Source: sql/functions/lease/still_holds.sql
    """
    return Ask(call("still_holds", "uuid uuid", schema), (lease.job_id.hex, lease.execution_id.hex), word)


def report_progress(schema: str, lease: Lease, *, fraction: float | None, message: str | None) -> Ask[bool]:
    """Store how far an execution has come; False when it no longer holds the job.

    Source: sql/functions/lease/report_progress.sql
    """
    values = (lease.job_id.hex, lease.execution_id.hex, text(fraction), message)
    return Ask(call("report_progress", "uuid uuid float4 text", schema), values, truth, is_durable=False)
