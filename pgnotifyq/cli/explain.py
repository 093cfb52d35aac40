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
from pgnotifyq.ledger.explaining import span

if TYPE_CHECKING:
    from pgnotifyq.ledger.explaining import Explanation
    from pgnotifyq.ledger.retention import Kept
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

        async def on_ledger() -> tuple[Explanation, Kept | None, Stack | None]:
            async with open_ledger(database, schema), open_client(database.dsn, schema=schema) as client:
                found = await client.explain(key)
                going = await client.kept(key)
                stands = await client.stack(key) if stack and found.held_for_seconds is not None else None
                return found, going, stands

        _tell(*await answered(database.dsn, on_ledger), as_json=as_json)
        return 0

    return trio.run(main)


def _tell(found: Explanation, going: Kept | None, stack: Stack | None, *, as_json: bool) -> None:
    lines = found.sentences
    if going is not None and going.is_said:
        lines += of_kept(going)
    if as_json:
        data = {"id": found.job_id, **attrs.asdict(found), "sentences": lines}
        print_json(data if stack is None else {**data, "stack": attrs.asdict(stack)})
        return
    print("\n".join(shown(line) for line in lines))
    if stack is not None:
        print("\n".join(told(stack)))


def of_kept(kept: Kept | None) -> list[str]:
    """Return sentences that say when a job is deleted, and when its payload and result go."""
    if kept is None or kept.ending is None:
        return []
    said = []
    if kept.goes_in_seconds is not None:
        said.append(f"It goes, with its history, {_when(kept.goes_in_seconds)}.")
    elif kept.ending == "dead":
        said.append("It is kept until somebody deletes it: the retention says nothing of it.")
    else:
        said.append("It is kept as long as the workers of its queue are set to: the retention says nothing of it.")
    for what, seconds in (("payload", kept.payload_goes_in_seconds), ("result", kept.result_goes_in_seconds)):
        if seconds is not None and (kept.goes_in_seconds is None or seconds < kept.goes_in_seconds):
            said.append(f"Its {what} goes {_when(seconds)}.")
    return said


def _when(seconds: float) -> str:
    if seconds <= 0:
        return "with the next pass of a worker's pruner"
    return f"in {span(seconds)}"
