"""Commands that look at the whole: `workers`, `stats`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgnotifyq.cli.act import run_with
from pgnotifyq.cli.output import print_rows
from pgnotifyq.cli.parameters import AsJson, Dsn, Schema
from pgnotifyq.ledger import look
from pgnotifyq.wire.asking import ask

if TYPE_CHECKING:
    from psycopg.rows import TupleRow

    from pgnotifyq.wire.connection import Connection

WORKER_COLUMNS = [
    "worker_id", "host", "pid", "queues", "slots", "running", "state", "listening", "started_at", "last_beat_at",
]  # fmt: skip
QUEUE_COLUMNS = [
    "queue_name", "pending", "scheduled", "retrying", "running", "stopping", "completed", "cancelled", "dead",
    "oldest_due_seconds",
]  # fmt: skip


def workers(*, as_json: AsJson = False, dsn: Dsn = None, schema: Schema = "pgnotifyq") -> int:
    """List the worker processes and what they hold."""

    async def act(connection: Connection[TupleRow]) -> int:
        found = await ask(connection, look.list_workers(schema))
        in_terminal = WORKER_COLUMNS[1:]  # no command takes a worker's id
        print_rows(found, WORKER_COLUMNS, as_json=as_json, nothing="no workers", in_terminal=in_terminal)
        return 0

    return run_with(dsn, schema, act)


def stats(*, as_json: AsJson = False, dsn: Dsn = None, schema: Schema = "pgnotifyq") -> int:
    """Count the jobs of each queue."""

    async def act(connection: Connection[TupleRow]) -> int:
        found = await ask(connection, look.stats(schema))
        print_rows(found, QUEUE_COLUMNS, as_json=as_json, nothing="no jobs")
        return 0

    return run_with(dsn, schema, act)
