"""Commands on dead letters: `dead`, `requeue`."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from pgnotifyq.cli.act import run_with
from pgnotifyq.cli.output import print_json, print_rows
from pgnotifyq.cli.parameters import AsJson, Dsn, Limit, OfAnyOrg, OfQueue, OfType, Schema, job_id_of
from pgnotifyq.doors.verbs import dead_filter
from pgnotifyq.ledger import end, look
from pgnotifyq.ledger.look import ANY_LETTER
from pgnotifyq.model.errors import ConfigError, InvalidJob, JobNotFound
from pgnotifyq.wire.asking import ask

if TYPE_CHECKING:
    from psycopg.rows import TupleRow

    from pgnotifyq.ledger.look import DeadFilter
    from pgnotifyq.wire.connection import Connection

REQUEUE_BATCH_MAX = 1000  # dead letters in one transaction, which holds their locks
COLUMNS = ["id", "queue_name", "job_type", "reason", "attempts", "died_at", "error_message"]
COLUMNS_IN_TERMINAL = ["id", "queue_name", "job_type", "reason", "died_at", "attempts", "error_message"]

OfError = Annotated[str | None, Parameter(name="--error", help="Only those whose error has this text, in any case.")]
DiedAfter = Annotated[str | None, Parameter(help="Only those that died later: ISO 8601 with a time zone.")]
Fingerprint = Annotated[str | None, Parameter(help="Only those of this group, as --groups prints it.")]
PerSecond = Annotated[float | None, Parameter(help="They fall due one after the other, so many a second; default: at once.")]
FromStart = Annotated[bool, Parameter(negative="", show_default=False, help="Without what their handlers had saved.")]
COLUMNS_OF_GROUPS = [
    "fingerprint",
    "letters",
    "error_pattern",
    "job_types",
    "queue_names",
    "first_died_at",
    "last_died_at",
    "last_id",
]


def dead(
    *,
    queue: OfQueue = None,
    job_type: OfType = None,
    org: OfAnyOrg = None,
    error: OfError = None,
    died_after: DiedAfter = None,
    fingerprint: Fingerprint = None,
    groups: Annotated[
        bool, Parameter(name="--groups", negative="", show_default=False, help="By what they died of, the largest group first.")
    ] = False,
    limit: Limit = 50,
    purge: Annotated[str | None, Parameter(help="Delete this one for good.")] = None,
    purge_older_than_seconds: Annotated[float | None, Parameter(help="Delete those that died longer ago, for good.")] = None,
    as_json: AsJson = False,
    dsn: Dsn = None,
    schema: Schema = "pgnotifyq",
) -> int:
    """List dead letters, the latest first; or purge them. A purge takes no filters."""
    key = None if purge is None else job_id_of(purge)
    only = dead_filter(queue, job_type, org, error, _time_of(died_after), fingerprint)
    if (key is not None or purge_older_than_seconds is not None) and only != ANY_LETTER:
        raise ConfigError("a purge is of one letter, or of all that died longer ago: leave the filters out")

    async def act(connection: Connection[TupleRow]) -> int:
        if key is not None or purge_older_than_seconds is not None:
            purged = await ask(connection, end.purge_dead(schema, job_id=key, older_than_seconds=purge_older_than_seconds))
            print_json({"purged": purged}) if as_json else print(f"purged {purged}")
            return 0 if purged or key is None else 1
        if groups:
            grouped = await ask(connection, look.list_dead_groups(schema, only, limit=limit))
            print_rows(grouped, COLUMNS_OF_GROUPS, as_json=as_json, nothing="no dead letters")
            return 0
        found = await ask(connection, look.list_dead(schema, only, limit=limit))
        print_rows(found, COLUMNS, as_json=as_json, nothing="no dead letters", in_terminal=COLUMNS_IN_TERMINAL)
        return 0

    return run_with(dsn, schema, act)


def _time_of(text: str | None) -> datetime | None:
    try:
        return None if text is None else datetime.fromisoformat(text)
    except ValueError:
        raise InvalidJob(f"--died-after {text!r} is not a time: use 2030-01-31T12:00:00+00:00") from None


def requeue(
    job_id: Annotated[str | None, Parameter(help="A dead letter, as `dead` lists them.")] = None,
    /,
    *,
    all_of_them: Annotated[
        bool, Parameter(name="--all", negative="", show_default=False, help="Every dead letter that the other options admit.")
    ] = False,
    queue: OfQueue = None,
    job_type: OfType = None,
    org: OfAnyOrg = None,
    error: OfError = None,
    died_after: DiedAfter = None,
    fingerprint: Fingerprint = None,
    per_second: PerSecond = None,
    from_start: FromStart = False,
    as_json: AsJson = False,
    dsn: Dsn = None,
    schema: Schema = "pgnotifyq",
) -> int:
    """Bring a dead letter back as the job it was, with all its attempts before it."""
    if (job_id is None) == (not all_of_them):
        raise InvalidJob("name one dead letter, or say --all: `python -m pgnotifyq requeue ID`")
    key = None if job_id is None else job_id_of(job_id)
    only = dead_filter(queue, job_type, org, error, _time_of(died_after), fingerprint)
    if key is not None and (only != ANY_LETTER or per_second is not None):
        raise InvalidJob("name one dead letter, or say --all and which: filters and a rate go with --all")

    async def act(connection: Connection[TupleRow]) -> int:
        if key is not None:
            if not await ask(connection, end.requeue(schema, key, from_start=from_start)):
                raise JobNotFound(f"{key} was not requeued: there is no such dead letter; list them with `dead`")
            done, left = 1, 0
        else:
            done, left = await _requeue_all(connection, schema, only, per_second, from_start)
        print_json({"requeued": done, "left": left}) if as_json else print(f"requeued {done}")
        if left:
            print(f"pgnotifyq: {left} stay dead letters: unfinished jobs hold their unique keys", file=sys.stderr)
        return 1 if left else 0

    return run_with(dsn, schema, act)


async def _requeue_all(
    connection: Connection[TupleRow], schema: str, only: DeadFilter, per_second: float | None, from_start: bool
) -> tuple[int, int]:
    """Requeue the dead letters that there are now, batch after batch.

    Return how many were requeued and how many were left. The number of letters now is the bound:
    some jobs may die again meanwhile.
    """
    before = await ask(connection, look.count_dead(schema, only))
    done = 0
    while done < before:
        limit = min(before - done, REQUEUE_BATCH_MAX)
        delay_seconds = 0.0 if per_second is None or not done else done / per_second
        restored = await ask(
            connection,
            end.requeue_all(schema, only, limit=limit, per_second=per_second, delay_seconds=delay_seconds, from_start=from_start),
        )
        done += restored
        if restored < limit:
            break
    return done, before - done
