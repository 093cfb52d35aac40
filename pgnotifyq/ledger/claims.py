"""Claim, heartbeat and settle: the verbs of a worker that touch jobs it holds or is about to hold."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import attrs
import psycopg
from psycopg import errors

from pgnotifyq.ledger.claimed import EXECUTION_ID, ID, NEXT_DUE_SECONDS, PAYLOAD, SNAPSHOT_XMIN, ClaimedJob
from pgnotifyq.ledger.columns import boolean_from, float_from, integer_from, rows, text_from, uuid_from
from pgnotifyq.ledger.errors import Whose, is_of_a_row, whose
from pgnotifyq.ledger.statements import direct_call
from pgnotifyq.model.job import JobId, Lease, WorkerId
from pgnotifyq.model.outcome import PLAIN_COMPLETION
from pgnotifyq.wire import asking

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from psycopg.pq.abc import PGresult

    from pgnotifyq.model.outcome import Settlement
    from pgnotifyq.wire.connection import Connection

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
    return Wanted(
        asking.array(list(maxima)), asking.array([None if number is None else str(number) for number in maxima.values()])
    )


# A payload of more text than this is not sent to a worker, which buries its job. It is above whatever a client may enqueue (1 MiB, and a
# half more where PostgreSQL writes spaces) but for numbers that it writes out: 1e300. So it came by raw SQL.
PAYLOAD_SENT_BYTES_MAX = 16 << 20
# Of the payloads of one claim: see sql/functions/claim.sql.
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


async def claim(
    connection: Connection,
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
) -> Claim:
    """Claim up to `jobs_max` due jobs, each with a new execution and a lease.

    With `after`, the look goes on behind that job and does not see what comes before it (runtime/resuming.py). With `only`, jobs
    of other types are left; `bytes_max` bounds the payloads of all jobs but the first.

    Cancellation: the claim may have been committed; its leases then run out. Shield it.

    Source: sql/functions/claim.sql
    """
    types = "uuid text[] integer float8 boolean text integer timestamptz uuid text[] integer[] bigint bigint"
    values: list[str | None] = [worker_id.hex, asking.array(queues), str(jobs_max), str(lease_seconds), str(is_asleep)]
    if after is None:
        values += [None, None, None, None]
    else:
        whole = after.whole
        values += [whole.queue_name, str(whole.priority), whole.scheduled_at.isoformat(), whole.id.hex]
    values += [None, None] if only is None else [only.types, only.maxima]
    values += [str(bytes_max), str(PAYLOAD_SENT_BYTES_MAX)]
    result = await asking.run(connection, direct_call("claim", types, schema), values)
    encoding, count = connection.info.encoding, result.ntuples
    next_due_seconds = snapshot_xmin = None
    ran_dry = count > 0 and result.get_value(count - 1, ID) is None
    if ran_dry:
        count -= 1
        due, xmin = result.get_value(count, NEXT_DUE_SECONDS), result.get_value(count, SNAPSHOT_XMIN)
        next_due_seconds = None if due is None else float_from(due)
        snapshot_xmin = None if xmin is None else integer_from(xmin)
    return Claim(
        jobs=[ClaimedJob.from_row(result, row, encoding, worker_id) for row in range(count)],
        ran_dry=ran_dry,
        next_due_seconds=next_due_seconds,
        is_contended=next_due_seconds is not None and next_due_seconds <= 0,
        snapshot_xmin=snapshot_xmin,
    )


async def claim_apart(
    connection: Connection,
    schema: str,
    *,
    worker_id: WorkerId,
    queues: Sequence[str],
    jobs_max: int,
    lease_seconds: float,
    only: Wanted | None = None,
) -> Claim:
    """Claim due jobs one at a time, when `claim` has failed over some row, and put aside those that cannot be claimed.

    Returns: as `claim`, never dry: the next one passes over what was put aside.

    Cancellation: as for `claim`.

    Source: sql/functions/claim_apart.sql
    """
    result = await asking.run(
        connection,
        direct_call("claim_apart", "uuid text[] integer float8 text[] integer[] bigint", schema),
        (
            worker_id.hex, asking.array(queues), str(jobs_max), str(lease_seconds),
            None if only is None else only.types, None if only is None else only.maxima, str(PAYLOAD_SENT_BYTES_MAX),
        ),
    )  # fmt: skip
    encoding, jobs, put_aside = connection.info.encoding, [], []
    for row in range(result.ntuples):
        if result.get_value(row, EXECUTION_ID) is not None:
            jobs.append(ClaimedJob.from_row(result, row, encoding, worker_id))
            continue
        raw_id, said = result.get_value(row, ID), result.get_value(row, PAYLOAD)
        assert raw_id is not None
        why = "" if said is None else said.decode(encoding, "replace")
        put_aside.append(PutAside(job_id=JobId(uuid_from(raw_id)), why=why))
    return Claim(jobs=jobs, ran_dry=False, next_due_seconds=None, is_contended=False, snapshot_xmin=None, put_aside=put_aside)


async def claim_named(
    connection: Connection,
    schema: str,
    *,
    worker_id: WorkerId,
    queues: Sequence[str],
    job_id: str,
    lease_seconds: float,
    only: Wanted | None = None,
) -> NamedClaim:
    """Claim one job of these queues, by its key, if it is due. `job_id` is the key's text; another text names no job.

    A row that cannot be updated is still there: whoever looks for it puts it aside.

    Cancellation: as for `claim`.

    Source: sql/functions/claim_named.sql
    """
    try:
        result = await asking.run(
            connection,
            direct_call("claim_named", "uuid text[] uuid float8 text[] integer[] bigint", schema),
            (
                worker_id.hex, asking.array(queues), job_id, str(lease_seconds),
                None if only is None else only.types, None if only is None else only.maxima, str(PAYLOAD_SENT_BYTES_MAX),
            ),
        )  # fmt: skip
    except (errors.LockNotAvailable, errors.InvalidTextRepresentation):
        return NamedClaim(job=None, is_still_there=True)
    except psycopg.Error as error:
        if not is_of_a_row(error):
            raise
        return NamedClaim(job=None, is_still_there=True)
    if result.ntuples and result.get_value(0, ID) is not None:
        return NamedClaim(job=ClaimedJob.from_row(result, 0, connection.info.encoding, worker_id))
    return NamedClaim(job=None, is_still_there=result.ntuples == 0)


async def heartbeat(
    connection: Connection, schema: str, *, worker_id: WorkerId, leases: Sequence[Lease], lease_seconds: float
) -> list[Surprise]:
    """Give a sign of life and renew leases.

    Returns: the jobs that are not simply renewed: `cancelled` (still held; stop the handler), `lost`, or `unrenewed` (still held, and its
        row cannot be written now: somebody holds it, say).

    Source: sql/functions/heartbeat.sql
    """
    result = await asking.run(
        connection,
        direct_call("heartbeat", "uuid uuid[] uuid[] float8", schema),
        (worker_id.hex, *_as_arrays(sorted(leases, key=_by_job)), str(lease_seconds)),
    )
    return _surprises(result, connection.info.encoding)


async def lost(connection: Connection, schema: str, leases: Sequence[Lease]) -> set[JobId]:
    """Return which of some executions, that hold their jobs no more, have lost them, and did not end by what this worker wrote.

    Source: sql/functions/surprises.sql
    """
    leases = sorted(leases, key=_by_job)
    result = await asking.run(connection, direct_call("surprises", "uuid[] uuid[]", schema), _as_arrays(leases))
    return {surprise.job_id for surprise in _surprises(result, connection.info.encoding) if surprise.became == "lost"}


async def cancelled(connection: Connection, schema: str, leases: Sequence[Lease]) -> list[Surprise]:
    """Return which of some executions shall stop because their jobs were cancelled. Source: sql/functions/cancelled.sql."""
    result = await asking.run(connection, direct_call("cancelled", "uuid[] uuid[]", schema), _as_arrays(leases))
    encoding = connection.info.encoding
    return [
        Surprise(job_id=JobId(uuid_from(raw_id)), became="cancelled", why=None if why is None else text_from(why, encoding))
        for raw_id, why in rows(result)
    ]


async def settle(
    connection: Connection, schema: str, *, worker_id: WorkerId, settlements: Sequence[tuple[Lease, Settlement]]
) -> list[Surprise]:
    """End executions, each fenced by job id and execution id; durable when this returns.

    Repeating a batch whose reply was lost is safe: an execution that ended is recognised by its id.

    Returns: the jobs that did not end as asked: `lost`, `cancelled` (a cancel had committed first), `dead`, `completed` (by the
        handler's own transaction, whose commit it was not told of).

    Source: sql/functions/complete.sql, sql/functions/settle.sql
    """
    plain, rest = [], []
    for lease, settlement in settlements:
        if settlement is PLAIN_COMPLETION:
            plain.append(lease)
        else:
            rest.append((lease, settlement))
    plain.sort(key=_by_job)
    rest.sort(key=lambda pair: _by_job(pair[0]))
    surprises: list[Surprise] = []
    encoding = connection.info.encoding
    if plain:
        statement = direct_call("complete", "uuid uuid[] uuid[]", schema)
        result = await asking.run(connection, statement, (worker_id.hex, *_as_arrays(plain)))
        surprises += _surprises(result, encoding)
    if rest:
        result = await asking.run(
            connection,
            direct_call("settle", _SETTLE_TYPES, schema),
            (worker_id.hex, *_as_arrays([lease for lease, _ in rest]), *_as_columns([settlement for _, settlement in rest])),
        )
        surprises += _surprises(result, encoding)
    return surprises


async def settle_surely(
    connection: Connection, schema: str, *, worker_id: WorkerId, settlements: Sequence[tuple[Lease, Settlement]]
) -> list[Surprise]:
    """Do what `settle` does; where one row stands in the way of the others, do it apart.

    Returns: as `settle`, and as `settle_apart` with `is_last`.
    """
    try:
        surprises = await settle(connection, schema, worker_id=worker_id, settlements=settlements)
    except Exception as error:
        # Ours too: a trigger of the user's that lacks a table or a right says the same as a schema that does.
        if whose(error) not in {Whose.JOB, Whose.OURS}:
            raise
        return await settle_apart(connection, schema, worker_id=worker_id, settlements=settlements)
    lost = {surprise.job_id for surprise in surprises if surprise.became == "lost"}
    if not lost:
        return surprises
    # Or left out by a trigger of the user's that returned null, in which case it is still held.
    again = [(lease, settlement) for lease, settlement in settlements if lease.job_id in lost]
    apart = await settle_apart(connection, schema, worker_id=worker_id, settlements=again)
    return [surprise for surprise in surprises if surprise.became != "lost"] + apart


async def settle_apart(
    connection: Connection,
    schema: str,
    *,
    worker_id: WorkerId,
    settlements: Sequence[tuple[Lease, Settlement]],
    lock_seconds: float = APART_LOCK_SECONDS_MAX,
    is_last: bool = True,
    jobs_max: int = APART_JOBS_MAX,
) -> list[Surprise]:
    """End executions as `settle` does, each apart from the others; what cannot be written is put aside in the database.

    In statements of `jobs_max`, each durable when it is answered, so that one that is late does not undo those before it.

    Args:
        connection: in autocommit.
        schema: ours.
        worker_id: who ends them.
        settlements: which, and how.
        lock_seconds: how long each may wait for a lock.
        is_last: put aside what is busy, too.
        jobs_max: how many go into a statement.

    Returns: as `settle`; and `bare` (it ended without its message and result), `refused` (put aside), and, but for `is_last`, `busy`
        (somebody holds its row, or what a trigger wants).

    Source: sql/functions/settle_apart.sql
    """
    surprises: list[Surprise] = []
    for start in range(0, len(settlements), jobs_max):
        part = settlements[start : start + jobs_max]
        surprises += await _settle_part(connection, schema, worker_id, part, lock_seconds=lock_seconds, is_last=is_last)
    return surprises


async def _settle_part(
    connection: Connection,
    schema: str,
    worker_id: WorkerId,
    part: Sequence[tuple[Lease, Settlement]],
    *,
    lock_seconds: float,
    is_last: bool,
) -> list[Surprise]:
    endings = [settlement for _, settlement in part]
    try:
        result = await asking.run(
            connection,
            direct_call("settle_apart", f"{_SETTLE_TYPES} float8 boolean", schema),
            (worker_id.hex, *_as_arrays([lease for lease, _ in part]), *_as_columns(endings), str(lock_seconds), str(is_last)),
        )
    except Exception as error:
        if whose(error) is not Whose.JOB:
            raise
        # Not a row's: those are caught there. A text that the client's encoding lacks, or the server's: no function was called.
        if len(part) > 1:
            found = []
            for one in part:
                found += await _settle_part(connection, schema, worker_id, [one], lock_seconds=lock_seconds, is_last=is_last)
            return found
        ((lease, settlement),) = part
        if (plain := _in_ascii(settlement)) == settlement:
            raise
        return await _settle_part(connection, schema, worker_id, [(lease, plain)], lock_seconds=lock_seconds, is_last=is_last)
    encoding = connection.info.encoding
    return [
        Surprise(
            job_id=JobId(uuid_from(raw_id)),
            became=text_from(became, encoding),
            why=None if why is None else text_from(why, encoding),
            sqlstate=None if state is None else text_from(state, encoding),
        )
        for raw_id, became, state, why, _ in rows(result)
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
    array = asking.array
    return (
        array([ending.kind.value for ending in endings]),
        array([ending.outcome for ending in endings]),
        array([str(float(ending.delay_seconds)) for ending in endings]),
        array([ending.error_message for ending in endings]),
        array([ending.result_json for ending in endings]),
        array([ending.reason for ending in endings]),
    )


def _surprises(result: PGresult, encoding: str) -> list[Surprise]:
    """Read rows of a job's id, what became of it and, from some functions, why."""
    surprises = []
    for raw_id, became, *rest in rows(result):
        why = text_from(rest[0], encoding) if rest and rest[0] is not None else None
        surprises.append(Surprise(job_id=JobId(uuid_from(raw_id)), became=text_from(became, encoding), why=why))
    return surprises


def _by_job(lease: Lease) -> int:
    """Order as PostgreSQL orders uuids; comparing the objects themselves takes five times as long."""
    return lease[0].int


def _as_arrays(leases: Sequence[Lease]) -> tuple[str, str]:
    """Write job ids and execution ids as two arrays."""
    return (
        "{" + ",".join([lease[0].hex for lease in leases]) + "}",
        "{" + ",".join([lease[1].hex for lease in leases]) + "}",
    )


async def still_holds(connection: Connection, schema: str, lease: Lease) -> str:
    """Lock the job's row until the transaction ends, and tell whether the execution may still write.

    Returns: `held`, `cancelled` or `lost`.

    Source: sql/functions/still_holds.sql
    """
    statement = direct_call("still_holds", "uuid uuid", schema)
    ((told,),) = rows(await asking.run(connection, statement, (lease.job_id.hex, lease.execution_id.hex)))
    return text_from(told, connection.info.encoding)


async def report_progress(
    connection: Connection, schema: str, lease: Lease, *, fraction: float | None, message: str | None
) -> bool:
    """Store how far an execution has come; False when it no longer holds the job.

    Source: sql/functions/report_progress.sql
    """
    result = await asking.run(
        connection,
        direct_call("report_progress", "uuid uuid float4 text", schema),
        (lease.job_id.hex, lease.execution_id.hex, None if fraction is None else str(fraction), message),
    )
    ((is_held,),) = rows(result)
    return boolean_from(is_held)
