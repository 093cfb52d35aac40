"""`python -m pgnotifyq stack ID`: where a running handler stands, as its worker says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import attrs
import trio
from cyclopts import Parameter

from pgnotifyq.cli.act import find_database, open_ledger
from pgnotifyq.cli.output import print_json, shown
from pgnotifyq.cli.parameters import AsJson, Dsn, OfJob, Schema, job_id_of
from pgnotifyq.cli.reach import answered
from pgnotifyq.doors.client import open_client
from pgnotifyq.model.errors import ConfigError
from pgnotifyq.model.stack import StackState

if TYPE_CHECKING:
    from pgnotifyq.model.job import JobId
    from pgnotifyq.model.stack import Stack

TIMEOUT_SECONDS_MAX = 3600.0

Timeout = Annotated[float, Parameter(name="--timeout-seconds", help="Wait so long for the worker.")]


def stack(
    job_id: OfJob,
    /,
    *,
    timeout_seconds: Timeout = 5.0,
    as_json: AsJson = False,
    dsn: Dsn = None,
    schema: Schema = "pgnotifyq",
) -> int:
    """Ask the worker that holds a job where its handler stands: its tasks, call by call.

    Exit code 1 if there is nothing to tell: the worker does not answer, or none holds the job.
    """
    key = job_id_of(job_id)
    if not 0 < timeout_seconds <= TIMEOUT_SECONDS_MAX:
        raise ConfigError(f"--timeout-seconds {timeout_seconds:g} is out of range: use at most {TIMEOUT_SECONDS_MAX:g}, above 0")
    found = trio.run(asked, key, timeout_seconds, dsn, schema)
    if as_json:
        print_json({"id": key, **attrs.asdict(found)})
    else:
        print("\n".join(told(found)))
    return 0 if found.state in {StackState.RUNNING, StackState.WAITING} else 1


async def asked(job_id: JobId, timeout_seconds: float, dsn: str | None, schema: str) -> Stack:
    """Return what a worker says of a handler."""
    database = await find_database(dsn)

    async def on_ledger() -> Stack:
        async with open_ledger(database, schema), open_client(database.dsn, schema=schema) as client:
            return await client.stack(job_id, timeout_seconds=timeout_seconds)

    return await answered(database.dsn, on_ledger)


def told(found: Stack) -> list[str]:
    """Return a stack as lines of printable text."""
    return [" " * (len(line) - len(line.lstrip())) + shown(line.lstrip()) for line in found.lines]
