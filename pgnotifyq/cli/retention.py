"""Commands on what is kept: `retention` says for how long, `erase` deletes what is somebody's."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from pgnotifyq.cli.act import run_with
from pgnotifyq.cli.output import as_data, print_json, print_rows
from pgnotifyq.cli.parameters import AsJson, Dsn, OfAnyOrg, OfQueue, OfType, Schema, whole
from pgnotifyq.cli.pauses import me
from pgnotifyq.ledger import retention as ledger
from pgnotifyq.model.errors import InvalidPayload
from pgnotifyq.wire.asking import ask

if TYPE_CHECKING:
    from psycopg.rows import TupleRow

    from pgnotifyq.wire.connection import Connection

COLUMNS = ["queue_name", "ending", "keep_seconds", "payload_seconds", "result_seconds"]

Ending = Annotated[
    str | None, Parameter(help="completed, cancelled or dead. Default: completed and cancelled; of `clear`: all three.")
]
Queue = Annotated[str, Parameter(help="A queue; or '*': every queue, where its own row says nothing.")]

retention = App(name="retention", help="How long finished jobs are kept: list, set and clear it.")


@retention.command(name="list")
def list_(*, as_json: AsJson = False, dsn: Dsn = None, schema: Schema = "pgnotifyq") -> int:
    """List how long finished jobs are kept, by queue and ending."""

    async def act(connection: Connection[TupleRow]) -> int:
        found = await ask(connection, ledger.list_retention(schema))
        nothing = "nothing is said: finished jobs are kept as long as the workers of their queue are set to"
        print_rows(found, COLUMNS, as_json=as_json, nothing=nothing)
        return 0

    return run_with(dsn, schema, act)


@retention.command(name="set")
def set_(
    queue: Queue,
    /,
    *,
    ending: Ending = None,
    keep_seconds: Annotated[float | None, Parameter(help="From a job's end: then it is deleted, with its history.")] = None,
    payload_seconds: Annotated[float | None, Parameter(help="Then its payload and its headers are blanked.")] = None,
    result_seconds: Annotated[float | None, Parameter(help="Then its result is blanked.")] = None,
    as_json: AsJson = False,
    dsn: Dsn = None,
    schema: Schema = "pgnotifyq",
) -> int:
    """Say how long the finished jobs of a queue are kept, in place of what was said before."""
    verb = ledger.set_retention(
        schema, queue, keep_seconds, ending=ending, payload_seconds=payload_seconds, result_seconds=result_seconds
    )

    async def act(connection: Connection[TupleRow]) -> int:
        await ask(connection, verb)
        print_json({"queue_name": queue, "ending": ending}) if as_json else print(f"said for queue {queue}")
        return 0

    return run_with(dsn, schema, act)


@retention.command
def clear(
    queue: Queue, /, *, ending: Ending = None, as_json: AsJson = False, dsn: Dsn = None, schema: Schema = "pgnotifyq"
) -> int:
    """Say nothing any more of a queue.

    What is said of every queue counts, else the setting of its workers.
    """

    async def act(connection: Connection[TupleRow]) -> int:
        await ask(connection, ledger.set_retention(schema, queue, ending=ending))
        print_json({"queue_name": queue, "ending": ending}) if as_json else print(f"nothing is said for queue {queue}")
        return 0

    return run_with(dsn, schema, act)


def erase(
    *,
    org: OfAnyOrg = None,
    unique_key: Annotated[str | None, Parameter(help="Whose: jobs that were enqueued under this key.")] = None,
    payload: Annotated[str | None, Parameter(help="Whose: jobs whose payload contains this JSON object.")] = None,
    queue: OfQueue = None,
    job_type: OfType = None,
    why: Annotated[str | None, Parameter(help="For the audit trail: a request's number, say, and not the data.")] = None,
    who: Annotated[str | None, Parameter(help="For the audit trail; default: you, at this host.")] = None,
    batch: Annotated[int, Parameter(converter=whole, help="Rows that one transaction looks at.")] = 1000,
    yes: Annotated[
        bool, Parameter(name="--yes", negative="", show_default=False, help="Do it. Without it, jobs are only counted.")
    ] = False,
    as_json: AsJson = False,
    dsn: Dsn = None,
    schema: Schema = "pgnotifyq",
) -> int:
    """Count what is kept of somebody; with --yes, erase it: jobs, dead letters, history.

    Of a tenant that is named alone its settings, credentials and name go, too. What runs is
    cancelled. Exit code 1 if something is left: it still runs, or a constraint keeps it. Say it
    again then.
    """
    only = ledger.EraseFilter(org_id=org, unique_key=unique_key, payload=_object_of(payload), queue=queue, job_type=job_type)
    verb = ledger.erase(schema, only, why=why, who=who or me(), limit=batch)

    async def act(connection: Connection[TupleRow]) -> int:
        if not yes:
            count = await ask(connection, ledger.count_erasable(schema, only))
            said = f"{count.jobs} job(s), of which {count.held} run, and {count.letters} dead letter(s); say --yes to erase them"
            print_json(as_data(count)) if as_json else print(said)
            return 0
        done = await ask(connection, verb)
        said = f"erased {done.jobs} job(s) and {done.letters} dead letter(s), as erasure {done.erasure_id}"
        print_json(as_data(done)) if as_json else print(said)
        if not as_json and not done.is_whole:
            print(f"left: {done.held} that still run or are locked, {done.refused} that a constraint or trigger keeps")
        return 0 if done.is_whole else 1

    return run_with(dsn, schema, act)


def _object_of(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidPayload(f"the payload is not JSON ({error}): quote it for the shell, as in '{{\"a\": 1}}'") from None
    if not isinstance(found, dict):
        raise InvalidPayload(f"the payload {text:.80} is no object: say what is in it, as in '{{\"a\": 1}}'")
    return found
