"""`python -m pgnotifyq explain ID`: why a job is where it is, and what would change that."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import attrs
import trio
from cyclopts import Parameter

from pgnotifyq.cli.act import find_database, open_ledger
from pgnotifyq.cli.output import print_json, shown
from pgnotifyq.cli.parameters import AsJson, Dsn, OfJob, Schema, job_id_of
from pgnotifyq.cli.reach import answered
from pgnotifyq.cli.stack import told
from pgnotifyq.doors.client import open_client

if TYPE_CHECKING:
    from pgnotifyq.ledger.explaining import Explanation
    from pgnotifyq.model.stack import Stack

WithStack = Annotated[bool, Parameter(name="--stack", negative="", show_default=False, help="And where its handler stands.")]


def explain(
    job_id: OfJob,
    /,
    *,
    stack: WithStack = False,
    as_json: AsJson = False,
    dsn: Dsn = None,
    schema: Schema = "pgnotifyq",
) -> int:
    """Say why a job is where it is: what it waits for, who holds it, and what would help."""
    key = job_id_of(job_id)

    async def main() -> int:
        database = await find_database(dsn)

        async def on_ledger() -> tuple[Explanation, Stack | None]:
            async with open_ledger(database, schema), open_client(database.dsn, schema=schema) as client:
                found = await client.explain(key)
                return found, await client.stack(key) if stack and found.held_for_seconds is not None else None

        _tell(*await answered(database.dsn, on_ledger), as_json=as_json)
        return 0

    return trio.run(main)


def _tell(found: Explanation, stack: Stack | None, *, as_json: bool) -> None:
    lines = found.sentences
    if as_json:
        data = {"id": found.job_id, **attrs.asdict(found), "sentences": lines}
        print_json(data if stack is None else {**data, "stack": attrs.asdict(stack)})
        return
    print("\n".join(shown(line) for line in lines))
    if stack is not None:
        print("\n".join(told(stack)))
