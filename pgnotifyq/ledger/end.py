"""How a job ends, or begins again: settled, cancelled, requeued, purged, pruned."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import attrs
from psycopg import errors

from pgnotifyq.ledger.ask import Ask, Plan, array, text
from pgnotifyq.ledger.columns import number, rows, truth, word
from pgnotifyq.ledger.errors import Whose, raise_translated, said_of, whose
from pgnotifyq.ledger.lease import Surprise, job_order, lease_arrays, read_surprises
from pgnotifyq.ledger.look import ANY_LETTER, checked_limit
from pgnotifyq.ledger.statements import call, query
from pgnotifyq.model.errors import ConfigError, IllegalTransition, UniqueKeyHeld
from pgnotifyq.model.job import JobId, Lease, OrgId, WorkerId
from pgnotifyq.model.new_job import DELAY_SECONDS_MAX
from pgnotifyq.model.outcome import PLAIN_COMPLETION, SettleKind, bounded

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pgnotifyq.ledger.ask import Answer, Steps, Verb
    from pgnotifyq.ledger.look import DeadFilter
    from pgnotifyq.model.outcome import Outcome

    _Way = Callable[[str, Sequence[str], Sequence[Outcome]], Ask[list[Surprise]]]

# How many executions one statement settles one by one. Each may wait for a lock, and all of them
# must be settled within the deadline of a link.
APART_JOBS_MAX = 25
APART_LOCK_SECONDS_MAX = 0.02
_APART_TYPES = "uuid uuid[] uuid[] text[] text[] float8[] text[] text[] text[] float8 boolean"


def settle(schema: str, *, worker_id: WorkerId, settlements: Sequence[tuple[Lease, Outcome]]) -> Verb[list[Surprise]]:
    """End executions, each fenced by job id and execution id; durable when this is answered.

    Each way to end has a statement of its own. Only the statements that are needed are asked. If a
    reply was lost, it is safe to repeat the batch: an execution that ended is recognised by its id.

    Returns: the jobs that did not end as asked: `lost`, `cancelled` (a cancel had committed first),
        `dead`, `completed` (the handler's own transaction did it, and the handler was not told of
        its commit).

    Source: sql/functions/end/complete.sql, give_back.sql, stop.sql, bury.sql
    """
    # Most executions end plainly. All of these have the same outcome object, so `is` finds them.
    plain = [lease for lease, settlement in settlements if settlement is PLAIN_COMPLETION]
    asks: list[Ask[list[Surprise]]] = []
    if plain:
        plain.sort(key=job_order)
        asks.append(Ask(call("complete", "uuid uuid[] uuid[]", schema), (worker_id.hex, *lease_arrays(plain)), read_surprises))
    if len(plain) < len(settlements):
        by_way: dict[_Way, list[tuple[Lease, Outcome]]] = {}
        for pair in settlements:
            if pair[1] is not PLAIN_COMPLETION:
                by_way.setdefault(_WAYS[pair[1].kind], []).append(pair)
        for way, pairs in by_way.items():
            pairs.sort(key=_pair_order)
            asks.append(way(schema, (worker_id.hex, *lease_arrays([lease for lease, _ in pairs])), [each for _, each in pairs]))
    if len(asks) == 1:
        return asks[0]

    def steps() -> Steps[list[Surprise]]:
        surprises: list[Surprise] = []
        for ask in asks:
            surprises += yield ask
        return surprises

    return Plan(steps)


def _pair_order(pair: tuple[Lease, Outcome]) -> int:
    return job_order(pair[0])


# Each of these functions takes a schema, the worker's id and leases (`who`, as parameters), and how
# the executions end.


def _complete(schema: str, who: Sequence[str], endings: Sequence[Outcome]) -> Ask[list[Surprise]]:
    values = (*who, array([each.result_json for each in endings]), _errors(endings))
    return Ask(call("complete", "uuid uuid[] uuid[] text[] text[]", schema), values, read_surprises)


def _give_back(schema: str, who: Sequence[str], endings: Sequence[Outcome]) -> Ask[list[Surprise]]:
    values = (*who, array([each.kind.value for each in endings]), _outcomes(endings), _delays(endings), _errors(endings))
    return Ask(call("give_back", "uuid uuid[] uuid[] text[] text[] float8[] text[]", schema), values, read_surprises)


def _stop(schema: str, who: Sequence[str], endings: Sequence[Outcome]) -> Ask[list[Surprise]]:
    return Ask(call("stop", "uuid uuid[] uuid[] text[]", schema), (*who, _errors(endings)), read_surprises)


def _bury(schema: str, who: Sequence[str], endings: Sequence[Outcome]) -> Ask[list[Surprise]]:
    values = (*who, _outcomes(endings), _errors(endings), array([each.reason for each in endings]))
    return Ask(call("bury", "uuid uuid[] uuid[] text[] text[] text[]", schema), values, read_surprises)


_WAYS: dict[SettleKind, _Way] = {
    SettleKind.COMPLETE: _complete,
    SettleKind.RETRY: _give_back,
    SettleKind.SNOOZE: _give_back,
    SettleKind.RELEASE: _give_back,
    SettleKind.CANCEL: _stop,
    SettleKind.BURY: _bury,
}


def _outcomes(endings: Sequence[Outcome]) -> str:
    return array([each.name for each in endings])


def _delays(endings: Sequence[Outcome]) -> str:
    return array([str(float(each.delay_seconds)) for each in endings])


def _errors(endings: Sequence[Outcome]) -> str:
    return array([each.error_message for each in endings])


def settle_surely(schema: str, *, worker_id: WorkerId, settlements: Sequence[tuple[Lease, Outcome]]) -> Plan[list[Surprise]]:
    """Do what `settle` does. If one row makes the batch fail, settle each execution apart.

    Returns: as `settle`, and as `settle_apart` with `is_last`.
    """

    def steps() -> Steps[list[Surprise]]:
        try:
            surprises: list[Surprise] = yield settle(schema, worker_id=worker_id, settlements=settlements)
        except Exception as error:
            # An error that reads as ours may be a row's, too: if a trigger of the user's lacks a
            # table or a right, PostgreSQL says the same as if our schema lacked it.
            if whose(error) not in {Whose.JOB, Whose.OURS}:
                raise
            surprises = yield settle_apart(schema, worker_id=worker_id, settlements=settlements)
            return surprises
        lost = {surprise.job_id for surprise in surprises if surprise.became == "lost"}
        if not lost:
            return surprises
        # Such a job may still be held: a trigger of the user's that returned null left out its row.
        again = [(lease, outcome) for lease, outcome in settlements if lease.job_id in lost]
        apart: list[Surprise] = yield settle_apart(schema, worker_id=worker_id, settlements=again)
        return [surprise for surprise in surprises if surprise.became != "lost"] + apart

    return Plan(steps)


def settle_apart(
    schema: str,
    *,
    worker_id: WorkerId,
    settlements: Sequence[tuple[Lease, Outcome]],
    lock_seconds: float = APART_LOCK_SECONDS_MAX,
    is_last: bool = True,
    jobs_max: int = APART_JOBS_MAX,
) -> Plan[list[Surprise]]:
    """End executions as `settle` does, each apart from the others.

    What cannot be written is put aside in the database.

    A statement settles at most `jobs_max` executions, and is durable when it is answered. So a
    statement that is late does not undo those before it. The connection must be in autocommit.

    Args:
        schema: ours.
        worker_id: the worker that ends them.
        settlements: which executions end, and how each ends.
        lock_seconds: how long each may wait for a lock.
        is_last: put aside what is busy, too.
        jobs_max: how many go into a statement.

    Returns: as `settle`, and three more: `bare` (it ended, without its message and result);
        `refused` (it was put aside); and, unless `is_last`, `busy` (another transaction holds its
        row, or something that a trigger wants).

    Source: sql/functions/end/settle_apart.sql
    """

    def steps() -> Steps[list[Surprise]]:
        surprises: list[Surprise] = []
        for start in range(0, len(settlements), jobs_max):
            surprises += yield from part(settlements[start : start + jobs_max])
        return surprises

    def part(some: Sequence[tuple[Lease, Outcome]]) -> Steps[list[Surprise]]:
        values = (*lease_arrays([lease for lease, _ in some]), *_as_columns([settlement for _, settlement in some]))
        statement = call("settle_apart", _APART_TYPES, schema)
        told: list[Surprise]
        try:
            told = yield Ask(statement, (worker_id.hex, *values, str(lock_seconds), str(is_last)), _told_apart)
        except Exception as error:
            if whose(error) is not Whose.JOB:
                raise
            # This is no row's error: the function catches those. A text has a character that the
            # client's encoding lacks, or the server's. So the function was not called.
            if len(some) > 1:
                found: list[Surprise] = []
                for one in some:
                    found += yield from part([one])
                return found
            ((lease, outcome),) = some
            if (plain := _in_ascii(outcome)) == outcome:
                raise
            told = yield from part([(lease, plain)])
        return told

    return Plan(steps)


def _told_apart(answer: Answer, encoding: str) -> list[Surprise]:
    return [
        Surprise(job_id=job_id, became=became, why=why, sqlstate=sqlstate)
        for job_id, became, sqlstate, why, _ in rows(answer, encoding)
    ]


def _in_ascii(outcome: Outcome) -> Outcome:
    """Return an outcome with its texts escaped; the result's JSON means the same."""
    error, result = outcome.error_message, outcome.result_json
    if error is not None:
        error = error.encode("ascii", "backslashreplace").decode()
    if result is not None and not result.isascii():
        result = json.dumps(json.loads(result))
    return attrs.evolve(outcome, error_message=error, result_json=result)


def _as_columns(endings: Sequence[Outcome]) -> tuple[str, ...]:
    """Write how executions end as the arrays that settle_apart() takes."""
    return (
        array([each.kind.value for each in endings]),
        _outcomes(endings),
        _delays(endings),
        _errors(endings),
        array([each.result_json for each in endings]),
        array([each.reason for each in endings]),
    )


def cancel(schema: str, job_id: JobId, why: str | None = None) -> Ask[str]:
    """Ask a job to stop; return `cancelled`, `stopping`, `finished` or `unknown`.

    Source: sql/functions/end/cancel.sql
    """
    reason = None if why is None else bounded(why)
    return Ask(call("cancel", "uuid text", schema), (job_id.hex, reason), word, said_of(schema))


def await_job(schema: str, job_id: JobId) -> Ask[bool]:
    """Have the end of a job announced; False if the job has ended already, or is not there.

    Source: sql/functions/end/await_job.sql
    """
    return Ask(call("await_job", "uuid", schema), (job_id.hex,), truth, said_of(schema))


def requeue(schema: str, job_id: JobId, *, from_start: bool = False) -> Ask[bool]:
    """Bring a dead letter back as the job it was; False if there is no such letter.

    With `from_start`, the job comes back without what its handler had saved.

    Raises:
        UniqueKeyHeld: an unfinished job holds its unique key; the dead letter stays.
        IllegalTransition: a job has its id, for a person chose that id by hand; the dead letter
            stays.
    """

    def on_error(error: Exception) -> bool:
        if not isinstance(error, errors.UniqueViolation):
            raise_translated(error, schema)
        if error.diag.constraint_name == "jobs_pkey":
            message = f"dead letter {job_id} cannot be requeued: a job has its id; delete that job, or purge the letter"
            raise IllegalTransition(message) from error
        message = (
            f"dead letter {job_id} cannot be requeued: an unfinished job has its unique key; wait for that one, or cancel it"
        )
        raise UniqueKeyHeld(message) from error

    values = (job_id.hex, "0", text(from_start))
    return Ask(call("requeue", "uuid float8 boolean", schema), values, truth, on_error, may_repeat=False)


def requeue_all(
    schema: str,
    only: DeadFilter = ANY_LETTER,
    *,
    limit: int = 1000,
    per_second: float | None = None,
    delay_seconds: float = 0.0,
    from_start: bool = False,
) -> Ask[int]:
    """Bring back dead letters, the oldest first, in one transaction; return how many.

    If an unfinished job holds a letter's unique key, the letter stays, and does not count.

    Args:
        schema: ours.
        only: which dead letters.
        limit: how many at the most.
        per_second: the jobs fall due one after the other, at this rate; None: all at once.
        delay_seconds: how long from now the first job falls due.
        from_start: the jobs come back without what their handlers had saved.

    Raises:
        ConfigError: `limit` is negative, or `per_second` or `delay_seconds` is out of range.
    """
    if per_second is not None and not 0 < per_second < math.inf:
        raise ConfigError(f"per_second {per_second!r} is out of range: use more than 0")
    if not 0 <= delay_seconds <= DELAY_SECONDS_MAX:
        raise ConfigError(f"delay_seconds {delay_seconds!r} is out of range: use 0 to {DELAY_SECONDS_MAX:g}")
    queue, job_type, *more = only.values
    values = (queue, job_type, str(checked_limit(limit)), *more, text(per_second), str(float(delay_seconds)), text(from_start))
    types = "text text integer uuid text timestamptz text float8 float8 boolean"
    return Ask(call("requeue_all", types, schema), values, number, said_of(schema), may_repeat=False)


def purge_dead(
    schema: str,
    *,
    job_id: JobId | None = None,
    older_than_seconds: float | None = None,
    org_id: OrgId | None = None,
) -> Ask[int]:
    """Delete a dead letter, or those that died longer ago than given; return how many.

    If neither `job_id` nor `older_than_seconds` is given, none is deleted.

    Raises:
        ConfigError: `older_than_seconds` is negative or not a number.
    """
    if older_than_seconds is not None and not 0 <= older_than_seconds < math.inf:
        raise ConfigError(f"older_than_seconds {older_than_seconds!r} is out of range: use 0, which is all of them, or more")
    values = (text(job_id), text(older_than_seconds), text(org_id))
    return Ask(query("purge_dead", schema), values, number, said_of(schema), may_repeat=False)


def prune(
    schema: str,
    *,
    older_than_seconds: float,
    after_id: JobId | None,
    jobs_max: int,
    queues: Sequence[str] | None = None,
) -> Ask[tuple[int, JobId | None]]:
    """Delete one batch of jobs that ended longer ago than they are kept, with their history.

    Jobs of `queues` (None: of all queues) are kept for `older_than_seconds`, if `set_retention`
    does not say otherwise.

    Returns: how many were deleted; the id to go on from, or None at the end of the pass.

    Source: sql/functions/end/prune.sql
    """
    after = None if after_id is None else after_id.hex
    values = (str(older_than_seconds), after, str(jobs_max), None if queues is None else array(queues))
    return Ask(call("prune", "float8 uuid integer text[]", schema), values, _pruned)


def _pruned(answer: Answer, encoding: str) -> tuple[int, JobId | None]:
    ((deleted, after_id),) = rows(answer, encoding)
    return deleted, after_id
