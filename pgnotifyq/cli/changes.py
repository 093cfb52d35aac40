"""Commands that change jobs: `edit` one that waits, and `bulk` for many."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from pgnotifyq.cli.act import run_with
from pgnotifyq.cli.output import print_json
from pgnotifyq.cli.parameters import AsJson, Dsn, OfAnyOrg, OfJob, OfQueue, OfType, Schema, job_id_of, whole
from pgnotifyq.ledger import changes
from pgnotifyq.ledger.changes import Edit, JobFilter
from pgnotifyq.model.errors import ConfigError, InvalidJob, InvalidPayload, JobNotFound
from pgnotifyq.wire.asking import ask

if TYPE_CHECKING:
    from psycopg.rows import TupleRow

    from pgnotifyq.wire.connection import Connection

BATCH_JOBS = 1000  # in one transaction, which holds their locks
BATCH_JOBS_MAX = 100_000
Action = Literal["cancel", "delete", "edit"]

ToQueue = Annotated[str | None, Parameter(name="--to-queue", help="Move it to this queue.")]
Priority = Annotated[int | None, Parameter(converter=whole, help="Higher first.")]
At = Annotated[str | None, Parameter(name="--at", help="Not before this time: ISO 8601 with a time zone.")]
Delay = Annotated[float | None, Parameter(name="--delay-seconds", help="Not before so many seconds from now; 0: now.")]
Payload = Annotated[str | None, Parameter(help="Another payload, as JSON.", allow_leading_hyphen=True)]


def edit(
    job_id: OfJob,
    /,
    *,
    to_queue: ToQueue = None,
    priority: Priority = None,
    at: At = None,
    delay_seconds: Delay = None,
    payload: Payload = None,
    as_json: AsJson = False,
    dsn: Dsn = None,
    schema: Schema = "pgnotifyq",
) -> int:
    """Change a job that waits: when it is due, its priority, its queue, its payload.

    Exit code 1 if it does not wait.
    """
    key = job_id_of(job_id)
    change = _edit_of(to_queue, priority, at, delay_seconds, payload)

    async def act(connection: Connection[TupleRow]) -> int:
        outcome = await ask(connection, changes.edit(schema, key, change))
        if outcome == "unknown":
            raise JobNotFound(f"there is no job {key}: it never was, or was pruned after its retention")
        print_json({"id": key, "outcome": outcome}) if as_json else print(outcome)
        return 0 if outcome == "edited" else 1

    return run_with(dsn, schema, act)


def bulk(
    action: Annotated[Action, Parameter(help="cancel, delete (what no worker holds) or edit (what waits).")],
    /,
    *,
    queue: OfQueue = None,
    job_type: OfType = None,
    org: OfAnyOrg = None,
    status: Annotated[str | None, Parameter(help="Only these: pending, scheduled, retrying, running, completed, ...")] = None,
    error: Annotated[str | None, Parameter(help="Only those whose error has this text, in any case.")] = None,
    created_after: Annotated[str | None, Parameter(help="Only those enqueued later: ISO 8601 with a time zone.")] = None,
    created_before: Annotated[str | None, Parameter(help="Only those enqueued earlier.")] = None,
    why: Annotated[str | None, Parameter(help="Of cancel: for the handlers and the record.")] = None,
    to_queue: ToQueue = None,
    priority: Priority = None,
    at: At = None,
    delay_seconds: Delay = None,
    payload: Payload = None,
    after: Annotated[str | None, Parameter(help="Go on behind this job, as a bulk that was stopped said.")] = None,
    batch: Annotated[int, Parameter(converter=whole, help="Jobs in one transaction.")] = BATCH_JOBS,
    yes: Annotated[
        bool, Parameter(name="--yes", negative="", show_default=False, help="Do it. Without it, jobs are only counted.")
    ] = False,
    as_json: AsJson = False,
    dsn: Dsn = None,
    schema: Schema = "pgnotifyq",
) -> int:
    """Count the jobs that fit; with --yes, cancel, delete or edit them, batch after batch.

    Each batch is committed, and says where it ended. Ctrl-C stops between two; --after goes on.
    Exit code 1 if a constraint or a trigger refused some.
    """
    if not 0 < batch <= BATCH_JOBS_MAX:
        raise ConfigError(f"--batch {batch} is out of range: use 1 to {BATCH_JOBS_MAX}")
    only = JobFilter(
        queue=queue,
        job_type=job_type,
        org_id=org,
        status=status,
        error=error,
        created_after=_time_of("--created-after", created_after),
        created_before=_time_of("--created-before", created_before),
    )
    change = _edit_of(to_queue, priority, at, delay_seconds, payload) if action == "edit" else None
    start = None if after is None else job_id_of(after)

    async def act(connection: Connection[TupleRow]) -> int:
        count = await ask(connection, changes.count_jobs(schema, only))
        if not yes:
            print_json({"jobs": count}) if as_json else print(f"{count} job(s) fit; say --yes to {action} them")
            return 0
        done, refused, left, after_id = 0, 0, count, start
        # The number of jobs now is the bound: more may be enqueued meanwhile.
        while left > 0:
            limit = min(left, batch)
            verb = changes.change_all(schema, action, only, why=why, change=change, after_id=after_id, limit=limit)
            told = await ask(connection, verb)
            done, refused, left, after_id = done + told.done, refused + told.refused, left - limit, told.after_id
            if after_id is None:
                break
            if left > 0:
                print(f"pgnotifyq: {done} of {count}; go on with --after {after_id}", file=sys.stderr, flush=True)
        print_json({"jobs": count, "done": done, "refused": refused}) if as_json else print(f"{done} of {count}: {action}")
        if refused:
            print(f"pgnotifyq: {refused} stay as they are: a constraint or a trigger refused the change", file=sys.stderr)
        return 1 if refused else 0

    return run_with(dsn, schema, act)


def _edit_of(
    to_queue: str | None, priority: int | None, at: str | None, delay_seconds: float | None, payload: str | None
) -> Edit:
    try:
        document: Any = None if payload is None else json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise InvalidPayload(f"the payload is not JSON ({error}): quote it for the shell, as in '{{\"a\": 1}}'") from None
    time = _time_of("--at", at)
    return Edit(queue=to_queue, priority=priority, scheduled_at=time, delay_seconds=delay_seconds, payload=document)


def _time_of(option: str, text: str | None) -> datetime | None:
    try:
        return None if text is None else datetime.fromisoformat(text)
    except ValueError:
        raise InvalidJob(f"{option} {text!r} is not a time: use 2030-01-31T12:00:00+00:00") from None
