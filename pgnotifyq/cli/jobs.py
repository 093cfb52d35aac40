"""Commands on jobs: `enqueue`, `jobs`, `show`, `cancel`."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import trio
from cyclopts import Parameter

from pgnotifyq.cli.act import find_database, open_ledger, run_with
from pgnotifyq.cli.explain import of_kept
from pgnotifyq.cli.output import as_data, print_json, print_rows, shown, shown_whole
from pgnotifyq.cli.parameters import AsJson, Dsn, Limit, OfJob, OfQueue, OfType, Schema, job_id_of, whole
from pgnotifyq.cli.reach import answered
from pgnotifyq.doors.client import open_client
from pgnotifyq.doors.verbs import CancelOutcome
from pgnotifyq.ledger import enqueue as enqueue_verbs
from pgnotifyq.ledger import look
from pgnotifyq.ledger.retention import kept
from pgnotifyq.model.errors import InvalidJob, InvalidPayload, JobNotFound, MissingRights
from pgnotifyq.model.job import Job
from pgnotifyq.model.new_job import NewJob
from pgnotifyq.model.states import STORED
from pgnotifyq.wire.asking import ask

if TYPE_CHECKING:
    from psycopg.rows import TupleRow

    from pgnotifyq.model.job import DeadLetter
    from pgnotifyq.wire.connection import Connection

LABELS = [*STORED, "scheduled", "retrying", "stopping"]
COLUMNS = ["id", "queue_name", "job_type", "status", "priority", "attempts", "scheduled_at", "completed_at", "error_message"]
COLUMNS_IN_TERMINAL = ["id", "queue_name", "job_type", "status", "when", "attempts", "priority", "error_message"]
COLUMNS_OF_ATTEMPTS = ["attempt", "outcome", "started_at", "ended_at", "error_message"]


def enqueue(
    job_type: Annotated[str, Parameter(help="Which handler runs it.")],
    payload: Annotated[str, Parameter(help="JSON; - reads standard input.", allow_leading_hyphen=True)] = "{}",
    /,
    *,
    queue: Annotated[str | None, Parameter(name="--queue", help="Its queue; default: its handler's, else default.")] = None,
    priority: Annotated[int, Parameter(converter=whole, help="Higher first.")] = 0,
    delay_seconds: Annotated[float | None, Parameter(help="Not before so many seconds from now.")] = None,
    at: Annotated[str | None, Parameter(help="Not before this time: ISO 8601 with a time zone.")] = None,
    max_attempts: Annotated[
        int | None, Parameter(converter=whole, help="Then it is a dead letter; default: its handler's, else 15.")
    ] = None,
    org: Annotated[str | None, Parameter(help="The tenant, a uuid.")] = None,
    unique_key: Annotated[str | None, Parameter(help="At most one unfinished job a tenant, type and key.")] = None,
    header: Annotated[
        list[str] | None,
        Parameter(
            name="--header", consume_multiple=False, negative=(), help="NAME=VALUE, for what goes with the job; may be repeated."
        ),
    ] = None,
    as_json: AsJson = False,
    dsn: Dsn = None,
    schema: Schema = "pgnotifyq",
) -> int:
    """Enqueue a job and print its id."""
    fields: dict[str, Any] = {
        "job_type": job_type,
        "payload": _payload_of(payload),
        "queue_name": queue,
        "priority": priority,
        "delay_seconds": delay_seconds,
        "max_attempts": max_attempts,
        "unique_key": unique_key,
        "headers": dict(map(_header_of, header or ())) or None,
    }
    if at is not None:
        fields["scheduled_at"] = _time_of(at)
    if org is not None:
        fields["org_id"] = org
    job = NewJob(**fields)

    async def act(connection: Connection[TupleRow]) -> int:
        job_id = await ask(connection, enqueue_verbs.enqueue(schema, job))
        if as_json:
            print_json({"id": job_id})
        else:
            print(job_id)
        return 0

    return run_with(dsn, schema, act)


def _payload_of(text: str) -> Any:
    if text == "-":
        text = sys.stdin.read()
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidPayload(f"the payload is not JSON ({error}): quote it for the shell, as in '{{\"a\": 1}}'") from None


def _header_of(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not (name and sign):
        raise InvalidJob(f"--header {text!r} is no header: use NAME=VALUE, as --header request_id=42")
    return name, value


def _time_of(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise InvalidJob(f"--at {text!r} is not a time: use 2030-01-31T12:00:00+00:00") from None


def jobs(
    *,
    status: Annotated[
        str | None, Parameter(help="pending, scheduled, retrying, running, stopping, completed or cancelled.")
    ] = None,
    queue: OfQueue = None,
    job_type: OfType = None,
    limit: Limit = 50,
    as_json: AsJson = False,
    dsn: Dsn = None,
    schema: Schema = "pgnotifyq",
) -> int:
    """List jobs, newest first."""
    if status is not None and status not in LABELS:
        raise InvalidJob(f"--status {status!r} is not one: use {', '.join(LABELS)}")

    async def act(connection: Connection[TupleRow]) -> int:
        found = await ask(connection, look.list_jobs(schema, status=status, queue=queue, job_type=job_type, limit=limit))
        rows = [_shown_job(job) for job in found]
        in_terminal = None
        if not as_json:
            rows = [{**row, "when": row["completed_at"] or row["scheduled_at"]} for row in rows]
            in_terminal = COLUMNS_IN_TERMINAL
        print_rows(rows, COLUMNS, as_json=as_json, nothing="no jobs", in_terminal=in_terminal)
        return 0

    return run_with(dsn, schema, act)


def show(job_id: OfJob, /, *, as_json: AsJson = False, dsn: Dsn = None, schema: Schema = "pgnotifyq") -> int:
    """Show a job, or a dead letter, with all its attempts."""
    key = job_id_of(job_id)

    async def act(connection: Connection[TupleRow]) -> int:
        job: Job | DeadLetter | None = await ask(connection, look.get_job(schema, key))
        if job is None:
            job = await ask(connection, look.get_dead(schema, key))
        if job is None:
            raise JobNotFound(f"there is no job {key}: it never was, or was pruned after its retention")
        attempts = await ask(connection, look.history(schema, key))
        goes: list[str] = []
        with suppress(MissingRights):  # a producer sees its jobs, and no retention
            goes = of_kept(await ask(connection, kept(schema, key)))
        data = {**_shown_job(job), "kept": " ".join(goes) or None, "history": [as_data(attempt) for attempt in attempts]}
        if as_json:
            print_json(data)
            return 0
        for name, value in data.items():
            if name != "history" and value is not None:
                print(f"{name:<22}{shown_whole(value, indent=22) if sys.stdout.isatty() else shown(value)}")
        print()
        print_rows(attempts, COLUMNS_OF_ATTEMPTS, as_json=False, nothing="no attempts")
        return 0

    return run_with(dsn, schema, act)


def cancel(
    job_id: OfJob,
    /,
    *,
    why: Annotated[str | None, Parameter(help="For the handler and the record.")] = None,
    wait_seconds: Annotated[float | None, Parameter(help="Wait so long until its handler has stopped.")] = None,
    as_json: AsJson = False,
    dsn: Dsn = None,
    schema: Schema = "pgnotifyq",
) -> int:
    """Cancel a job: a pending one never starts, a running one's handler is stopped.

    Exit code 1 if it had ended before.
    """
    key = job_id_of(job_id)

    async def main() -> int:
        database = await find_database(dsn)

        async def on_ledger() -> CancelOutcome:
            async with open_ledger(database, schema), open_client(database.dsn, schema=schema) as client:
                return await client.cancel(key, wait_seconds=wait_seconds, why=why)

        outcome = await answered(database.dsn, on_ledger)
        if as_json:
            print_json({"id": key, "outcome": outcome})
        else:
            print(outcome)
        return 0 if outcome in {CancelOutcome.CANCELLED, CancelOutcome.STOPPING} else 1

    return trio.run(main)


def _shown_job(job: Job | DeadLetter) -> dict[str, Any]:
    """Return a job as commands show it.

    The database gave it its label, by the database's own clock.
    """
    data: dict[str, Any] = as_data(job)
    data["status"] = data.pop("label") if isinstance(job, Job) else "dead"
    return data
