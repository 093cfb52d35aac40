"""Commands on dead letters: `dead`, `requeue`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from pgnotifyq.cli.act import run_with
from pgnotifyq.cli.output import print_json, print_rows
from pgnotifyq.cli.parameters import AsJson, Dsn, Limit, OfQueue, OfType, Schema, job_id_of
from pgnotifyq.ledger import end, look
from pgnotifyq.model.errors import InvalidJob, JobNotFound
from pgnotifyq.wire.asking import ask

if TYPE_CHECKING:
    from psycopg.rows import TupleRow

    from pgnotifyq.wire.connection import Connection

REQUEUE_BATCH_MAX = 1000  # dead letters in one transaction: it holds their locks
COLUMNS = ["id", "queue_name", "job_type", "reason", "attempts", "died_at", "error_message"]
COLUMNS_IN_TERMINAL = ["id", "queue_name", "job_type", "reason", "died_at", "attempts", "error_message"]


def dead(
    *,
    queue: OfQueue = None,
    job_type: OfType = None,
    limit: Limit = 50,
    purge: Annotated[str | None, Parameter(help="Delete this one for good.")] = None,
    purge_older_than_seconds: Annotated[float | None, Parameter(help="Delete those that died longer ago, for good.")] = None,
    as_json: AsJson = False,
    dsn: Dsn = None,
    schema: Schema = "pgnotifyq",
) -> int:
    """List dead letters, the latest first; or purge them."""
    key = None if purge is None else job_id_of(purge)

    async def act(connection: Connection[TupleRow]) -> int:
        if key is not None or purge_older_than_seconds is not None:
            purged = await ask(connection, end.purge_dead(schema, job_id=key, older_than_seconds=purge_older_than_seconds))
            print_json({"purged": purged}) if as_json else print(f"purged {purged}")
            return 0 if purged or key is None else 1
        found = await ask(connection, look.list_dead(schema, queue=queue, job_type=job_type, limit=limit))
        print_rows(found, COLUMNS, as_json=as_json, nothing="no dead letters", in_terminal=COLUMNS_IN_TERMINAL)
        return 0

    return run_with(dsn, schema, act)


def requeue(
    job_id: Annotated[str | None, Parameter(help="A dead letter, as `dead` lists them.")] = None,
    /,
    *,
    all_of_them: Annotated[
        bool, Parameter(name="--all", negative="", show_default=False, help="Every dead letter of --queue and --type.")
    ] = False,
    queue: OfQueue = None,
    job_type: OfType = None,
    as_json: AsJson = False,
    dsn: Dsn = None,
    schema: Schema = "pgnotifyq",
) -> int:
    """Bring a dead letter back as the job it was, with all its attempts before it."""
    if (job_id is None) == (not all_of_them):
        raise InvalidJob("name one dead letter, or say --all: `python -m pgnotifyq requeue ID`")
    key = None if job_id is None else job_id_of(job_id)

    async def act(connection: Connection[TupleRow]) -> int:
        if key is not None:
            if not await ask(connection, end.requeue(schema, key)):
                raise JobNotFound(f"{key} was not requeued: there is no such dead letter; list them with `dead`")
            done, left = 1, 0
        else:
            done, left = await _requeue_all(connection, schema, queue=queue, job_type=job_type)
        print_json({"requeued": done, "left": left}) if as_json else print(f"requeued {done}")
        if left:
            print(f"pgnotifyq: {left} stay dead letters: unfinished jobs hold their unique keys", file=sys.stderr)
        return 1 if left else 0

    return run_with(dsn, schema, act)


async def _requeue_all(
    connection: Connection[TupleRow], schema: str, *, queue: str | None, job_type: str | None
) -> tuple[int, int]:
    """Requeue the dead letters that there are now, batch after batch.

    Return how many were requeued and how many were left. The number of letters now is the bound:
    some jobs may die again meanwhile.
    """
    before = await ask(connection, look.count_dead(schema, queue=queue, job_type=job_type))
    done = 0
    while done < before:
        limit = min(before - done, REQUEUE_BATCH_MAX)
        restored = await ask(connection, end.requeue_all(schema, queue=queue, job_type=job_type, limit=limit))
        done += restored
        if restored < limit:
            break
    return done, before - done
