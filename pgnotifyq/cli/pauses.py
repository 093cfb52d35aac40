"""Commands that hold work back: `pause`, `resume`, `drain`, `pauses`."""

from __future__ import annotations

import getpass
import socket
from typing import TYPE_CHECKING, Annotated

import trio
from cyclopts import Parameter

from pgnotifyq.cli.act import find_database, open_ledger, run_with
from pgnotifyq.cli.output import print_json, print_rows
from pgnotifyq.cli.parameters import AsJson, Dsn, Schema
from pgnotifyq.cli.reach import answered
from pgnotifyq.doors.client import open_client
from pgnotifyq.doors.verbs import scope_of
from pgnotifyq.ledger import pauses as ledger
from pgnotifyq.wire.asking import ask

if TYPE_CHECKING:
    from psycopg.rows import TupleRow

    from pgnotifyq.wire.connection import Connection

COLUMNS = ["scope", "name", "who", "why", "paused_at"]

Queue = Annotated[str | None, Parameter(help="A queue.")]
JobType = Annotated[str | None, Parameter(name="--type", help="A job type, in place of a queue.")]
Everything = Annotated[
    bool, Parameter(name="--everything", negative="", show_default=False, help="All jobs, in place of a queue.")
]
Why = Annotated[str | None, Parameter(help="For those who ask why a job waits.")]
Who = Annotated[str | None, Parameter(help="Who pauses it; default: you, at this host.")]


def pause(
    queue: Queue = None,
    /,
    *,
    job_type: JobType = None,
    everything: Everything = False,
    why: Why = None,
    who: Who = None,
    as_json: AsJson = False,
    dsn: Dsn = None,
    schema: Schema = "pgnotifyq",
) -> int:
    """Let nothing of a queue start, on any worker, until it is resumed. What runs goes on."""
    scope = scope_of(queue, job_type, everything)

    async def act(connection: Connection[TupleRow]) -> int:
        is_new = await ask(connection, ledger.pause(schema, scope, why=why, who=who or me()))
        print_json({"paused": True, "was_paused": not is_new}) if as_json else print(f"paused {scope}")
        return 0

    return run_with(dsn, schema, act)


def resume(
    queue: Queue = None,
    /,
    *,
    job_type: JobType = None,
    everything: Everything = False,
    as_json: AsJson = False,
    dsn: Dsn = None,
    schema: Schema = "pgnotifyq",
) -> int:
    """Let start again what was paused. Exit code 1 if it was not paused."""
    scope = scope_of(queue, job_type, everything)

    async def act(connection: Connection[TupleRow]) -> int:
        was_paused = await ask(connection, ledger.resume(schema, scope))
        told = f"resumed {scope}" if was_paused else f"{scope} was not paused"
        print_json({"paused": False, "was_paused": was_paused}) if as_json else print(told)
        return 0 if was_paused else 1

    return run_with(dsn, schema, act)


def drain(
    queue: Queue = None,
    /,
    *,
    job_type: JobType = None,
    everything: Everything = False,
    why: Why = None,
    who: Who = None,
    timeout_seconds: Annotated[float | None, Parameter(help="Wait at most so long.")] = None,
    as_json: AsJson = False,
    dsn: Dsn = None,
    schema: Schema = "pgnotifyq",
) -> int:
    """Pause a queue, and wait until nothing of it runs any more.

    Exit code 1 if something still does.
    """
    scope = scope_of(queue, job_type, everything)

    async def main() -> int:
        database = await find_database(dsn)

        async def on_ledger() -> None:
            async with open_ledger(database, schema), open_client(database.dsn, schema=schema) as client:
                await client.drain(
                    queue, job_type=job_type, everything=everything, why=why, who=who or me(), timeout_seconds=timeout_seconds
                )

        await answered(database.dsn, on_ledger)
        print_json({"drained": True}) if as_json else print(f"drained {scope}")
        return 0

    return trio.run(main)


def pauses(*, as_json: AsJson = False, dsn: Dsn = None, schema: Schema = "pgnotifyq") -> int:
    """List what is paused, by whom and why."""

    async def act(connection: Connection[TupleRow]) -> int:
        print_rows(await ask(connection, ledger.list_pauses(schema)), COLUMNS, as_json=as_json, nothing="nothing is paused")
        return 0

    return run_with(dsn, schema, act)


def me() -> str:
    """Return who says a command: the user, at this host."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = "somebody"
    return f"{user}@{socket.gethostname()}"
