"""Commands on jobs: `enqueue`, `jobs`, `show`, `cancel`."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import trio
from cyclopts import Parameter

from pgnotifyq.cli.act import find_database, open_ledger, run_with
from pgnotifyq.cli.explain import of_kept
from pgnotifyq.cli.lines import Lines, enqueue_lines, standard_input
from pgnotifyq.cli.output import as_data, print_json, print_rows, shown, shown_whole
from pgnotifyq.cli.parameters import AsJson, Dsn, Limit, OfJob, OfQueue, OfType, Schema, job_id_of, seconds_of, time_of, whole
from pgnotifyq.cli.reach import answered
from pgnotifyq.cli.watch import follow_logs, print_logs
from pgnotifyq.doors.client import open_client
from pgnotifyq.doors.verbs import CancelOutcome
from pgnotifyq.ledger import enqueue as enqueue_verbs
from pgnotifyq.ledger import look, watching
from pgnotifyq.ledger.retention import kept
from pgnotifyq.model.errors import InvalidJob, InvalidPayload, JobNotFound, MissingRights
from pgnotifyq.model.job import Job
from pgnotifyq.model.new_job import NewJob
from pgnotifyq.model.states import STORED
from pgnotifyq.model.unique import EnqueueOutcome, OnConflict, Unique, UniqueWhile
from pgnotifyq.wire.asking import ask

if TYPE_CHECKING:
    from psycopg.rows import TupleRow

    from pgnotifyq.doors.client import Client
    from pgnotifyq.model.job import DeadLetter, JobId
    from pgnotifyq.wire.connection import Connection

LABELS = [*STORED, "scheduled", "retrying", "stopping"]
CANCELS_AT_ONCE_MAX = 64  # a statement each; they wait side by side
COLUMNS = ["id", "queue_name", "job_type", "status", "priority", "attempts", "scheduled_at", "completed_at", "error_message"]
COLUMNS_IN_TERMINAL = ["id", "queue_name", "job_type", "status", "when", "attempts", "priority", "error_message"]
COLUMNS_OF_ATTEMPTS = ["attempt", "outcome", "started_at", "ended_at", "error_message"]


def enqueue(
    job_type: Annotated[
        str,
        Parameter(help="Which handler runs it; - reads many jobs from standard input, one a line.", allow_leading_hyphen=True),
    ],
    payload: Annotated[str, Parameter(help="JSON; - reads standard input.", allow_leading_hyphen=True)] = "{}",
    /,
    *,
    queue: Annotated[str | None, Parameter(name="--queue", help="Its queue; default: its handler's, else default.")] = None,
    priority: Annotated[int, Parameter(converter=whole, help="Higher first.")] = 0,
    delay_seconds: Annotated[float | None, Parameter(help="Not before so many seconds from now.")] = None,
    within: Annotated[str | None, Parameter(name="--in", help="Not before so long from now: 90s, 5m, 2h, 1d12h.")] = None,
    at: Annotated[str | None, Parameter(help="Not before this time: ISO 8601 with a time zone.")] = None,
    max_attempts: Annotated[
        int | None, Parameter(converter=whole, help="Then it is a dead letter; default: its handler's, else 15.")
    ] = None,
    org: Annotated[str | None, Parameter(help="The tenant, a uuid.")] = None,
    unique_key: Annotated[
        str | None, Parameter(name=("--unique-key", "--unique"), help="At most one unfinished job a tenant, type and key.")
    ] = None,
    while_: Annotated[
        UniqueWhile | None, Parameter(name="--unique-while", help="With --unique: how long it has the key; default: unfinished.")
    ] = None,
    for_seconds: Annotated[
        float | None, Parameter(name="--unique-for-seconds", help="With --unique: so long, in place of --unique-while.")
    ] = None,
    on_conflict: Annotated[
        OnConflict, Parameter(name="--on-conflict", help="With --unique: what follows if another job has the key.")
    ] = "keep",
    header: Annotated[
        list[str] | None,
        Parameter(
            name="--header", consume_multiple=False, negative=(), help="NAME=VALUE, for what goes with the job; may be repeated."
        ),
    ] = None,
    line_type: Annotated[str | None, Parameter(name="--type", help="With -: each line is a payload of this type.")] = None,
    batch: Annotated[
        int | None, Parameter(converter=whole, help="With -: so many lines are one transaction; default: all are.")
    ] = None,
    go_on: Annotated[
        bool, Parameter(name="--continue", negative="", show_default=False, help="With -: pass over lines that are no jobs.")
    ] = False,
    as_json: AsJson = False,
    dsn: Dsn = None,
    schema: Schema = "pgnotifyq",
) -> int:
    """Enqueue a job and print its id; or many, from standard input.

    With - in the place of the type, each line is a job: a JSON object of job_type, payload, and
    what the options are called (queue, priority, in, at, max_attempts, org, unique_key, headers).
    The options count for lines that do not say it. All lines are one transaction: if one of them is
    no job, it is told with its number, and nothing is enqueued. Ids are printed after the commit.
    """
    fields: dict[str, Any] = {
        "queue_name": queue,
        "priority": priority,
        "delay_seconds": delay_seconds,
        "max_attempts": max_attempts,
        "unique": _unique_of(unique_key, while_, for_seconds, on_conflict),
        "headers": dict(map(_header_of, header or ())) or None,
    }
    if within is not None:
        if delay_seconds is not None:
            raise InvalidJob("both --in and --delay-seconds are given: give one")
        fields["delay_seconds"] = seconds_of("--in", within)
    if at is not None:
        fields["scheduled_at"] = time_of("--at", at)
    if org is not None:
        fields["org_id"] = org
    if job_type == "-":
        if payload != "{}":
            raise InvalidJob("with - the payloads are in the lines: leave the second argument out, or name the type with --type")
        lines = Lines(standard_input(), defaults=fields, job_type=line_type, goes_on=go_on)
        return run_with(dsn, schema, partial(enqueue_lines, schema=schema, lines=lines, batch=batch, as_json=as_json))
    if line_type is not None or batch is not None or go_on:
        raise InvalidJob("--type, --batch and --continue go with many jobs from standard input: `enqueue -`")
    job = NewJob(job_type=job_type, payload=_payload_of(payload), **fields)

    async def act(connection: Connection[TupleRow]) -> int:
        told = await ask(connection, enqueue_verbs.enqueue_told(schema, job))
        if as_json:
            print_json({"id": told.job_id, "outcome": told.outcome})
        else:
            print(told.job_id)
            if told.outcome is not EnqueueOutcome.CREATED:
                print(f"{told.outcome}: a job held the key", file=sys.stderr)
        return 0

    return run_with(dsn, schema, act)


def _payload_of(text: str) -> Any:
    if text == "-":
        text = sys.stdin.read()
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidPayload(f"the payload is not JSON ({error}): quote it for the shell, as in '{{\"a\": 1}}'") from None


def _unique_of(key: str | None, while_: UniqueWhile | None, for_seconds: float | None, on_conflict: OnConflict) -> Unique | None:
    if key is None:
        if while_ is not None or for_seconds is not None or on_conflict != "keep":
            raise InvalidJob("what is unique is said, and no key: use --unique KEY")
        return None
    return Unique(key=key, while_=while_, for_seconds=for_seconds, on_conflict=on_conflict)


def _header_of(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not (name and sign):
        raise InvalidJob(f"--header {text!r} is no header: use NAME=VALUE, as --header request_id=42")
    return name, value


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


def show(
    job_id: OfJob,
    /,
    *more: OfJob,
    logs: Annotated[
        bool, Parameter(negative="", show_default=False, help="What its handlers have logged by ctx.log, too.")
    ] = False,
    follow: Annotated[
        bool, Parameter(negative="", show_default=False, help="That alone, line by line as it comes, until it has ended.")
    ] = False,
    as_json: AsJson = False,
    dsn: Dsn = None,
    schema: Schema = "pgnotifyq",
) -> int:
    """Show a job, or a dead letter, with all its attempts; or several.

    Exit code 1 if one of them is not there. JSON is one object for one job, a list for several.
    """
    keys = [job_id_of(text) for text in (job_id, *more)]
    if follow:
        if more:
            raise InvalidJob("--follow follows one job: say one id")
        return follow_logs(keys[0], dsn, schema, as_json=as_json)

    async def act(connection: Connection[TupleRow]) -> int:
        found: list[dict[str, Any]] = []
        for key in keys:
            data = await _found(connection, schema, key, logs=logs)
            if data is not None:
                found.append(data)
                continue
            missing = f"there is no job {key}: it never was, or was pruned after its retention"
            if len(keys) == 1:
                raise JobNotFound(missing)
            print(f"pgnotifyq: {missing}", file=sys.stderr)
        if as_json:
            told = [{**data, "logs": [as_data(line) for line in data["logs"]]} if logs else data for data in found]
            print_json(told if more else told[0])
        else:
            for place, data in enumerate(found):
                _print_job(data, is_first=place == 0)
        return 0 if len(found) == len(keys) else 1

    return run_with(dsn, schema, act)


async def _found(connection: Connection[TupleRow], schema: str, key: JobId, *, logs: bool) -> dict[str, Any] | None:
    """Return what there is to show of a job or dead letter; None: there is none."""
    job: Job | DeadLetter | None = await ask(connection, look.get_job(schema, key))
    if job is None:
        job = await ask(connection, look.get_dead(schema, key))
    if job is None:
        return None
    attempts = await ask(connection, look.history(schema, key))
    goes: list[str] = []
    with suppress(MissingRights):  # a producer may see its jobs, but no retention
        goes = of_kept(await ask(connection, kept(schema, key)))
    data = {**_shown_job(job), "kept": " ".join(goes) or None, "history": [as_data(attempt) for attempt in attempts]}
    return {**data, "logs": await ask(connection, watching.logs(schema, key))} if logs else data


def _print_job(data: dict[str, Any], *, is_first: bool) -> None:
    if not is_first:
        print()
    for name, value in data.items():
        if name not in {"history", "logs"} and value is not None:
            print(f"{name:<22}{shown_whole(value, indent=22) if sys.stdout.isatty() else shown(value)}")
    print()
    print_rows(data["history"], COLUMNS_OF_ATTEMPTS, as_json=False, nothing="no attempts")
    if "logs" in data:
        print()
        print_logs(data["logs"])
        if not data["logs"]:
            print("no logs")


def cancel(
    job_id: Annotated[
        str,
        Parameter(help="Its id; - reads ids from standard input, one a line, as `jobs` prints them.", allow_leading_hyphen=True),
    ],
    /,
    *more: OfJob,
    why: Annotated[str | None, Parameter(help="For the handler and the record.")] = None,
    wait_seconds: Annotated[float | None, Parameter(help="Wait so long until its handler has stopped.")] = None,
    as_json: AsJson = False,
    dsn: Dsn = None,
    schema: Schema = "pgnotifyq",
) -> int:
    """Cancel jobs: a pending one never starts, a running one's handler is stopped.

    Exit code 1 if one of them had ended before, or never was.
    """
    is_one = job_id != "-" and not more
    if job_id == "-" and more:
        raise InvalidJob("- reads the ids from standard input: leave the others out")
    keys = [job_id_of(text) for text in (_ids_in(sys.stdin.read()) if job_id == "-" else (job_id, *more))]

    async def main() -> int:
        database = await find_database(dsn)
        outcomes: dict[JobId, str] = {}

        async def cancel_one(client: Client, key: JobId, slots: trio.CapacityLimiter) -> None:
            async with slots:
                try:
                    outcomes[key] = await client.cancel(key, wait_seconds=wait_seconds, why=why)
                except JobNotFound:
                    if is_one:
                        raise
                    outcomes[key] = "unknown"

        async def on_ledger() -> None:
            async with open_ledger(database, schema), open_client(database.dsn, schema=schema) as client:
                # The cancels run side by side, so that each handler has the whole of
                # `wait_seconds`.
                slots = trio.CapacityLimiter(CANCELS_AT_ONCE_MAX)
                async with trio.open_nursery() as nursery:
                    for key in keys:
                        nursery.start_soon(cancel_one, client, key, slots)

        await answered(database.dsn, on_ledger)
        data = [{"id": key, "outcome": outcomes[key]} for key in keys]
        if as_json:
            print_json(data[0] if is_one else data)
        else:
            for one in data:
                print(one["outcome"] if is_one else f"{one['id']}\t{one['outcome']}")
        return 0 if set(outcomes.values()) <= {CancelOutcome.CANCELLED, CancelOutcome.STOPPING} else 1

    return trio.run(main)


def _ids_in(text: str) -> list[str]:
    """Return the first word of each line. What `jobs` prints into a pipe begins with headings."""
    words = [line.split(maxsplit=1)[0] for line in text.splitlines() if line.strip()]
    return words[1:] if words[:1] == ["id"] else words


def _shown_job(job: Job | DeadLetter) -> dict[str, Any]:
    """Return a job as commands show it.

    The database gave it its label, by the database's own clock.
    """
    data: dict[str, Any] = as_data(job)
    data["status"] = data.pop("label") if isinstance(job, Job) else "dead"
    return data
