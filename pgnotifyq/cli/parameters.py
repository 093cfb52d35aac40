"""What several commands take, each said once, and how its text is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated
from uuid import UUID

from cyclopts import Parameter, Token

from pgnotifyq.model.errors import InvalidJob
from pgnotifyq.model.job import JobId


def whole(_type: object, tokens: Sequence[Token]) -> int:
    """Convert a whole number; the library would round 1.5."""
    return int(tokens[0].value)


Dsn = Annotated[str | None, Parameter(name="--dsn", help="The database; default: PGNOTIFYQ_DSN, else the embedded one.")]
Schema = Annotated[str, Parameter(name="--schema", help="The schema the queue lives in.")]
AsJson = Annotated[bool, Parameter(name="--json", negative="", show_default=False, help="Print JSON.")]
OfJob = Annotated[str, Parameter(help="Its id, as `enqueue` and `jobs` print them.")]
OfQueue = Annotated[str | None, Parameter(name="--queue", help="Only of this queue.")]
OfType = Annotated[str | None, Parameter(name="--type", help="Only of this job type.")]
OfOrg = Annotated[str, Parameter(name="--org", help="The tenant: its id, its name, or its number.")]
OfAnyOrg = Annotated[str | None, Parameter(name="--org", help="Only of this tenant: its id, its name, or its number.")]
Limit = Annotated[int, Parameter(converter=whole, help="At most so many.")]


def job_id_of(text: str) -> JobId:
    """Return the id that a text says.

    Raises:
        InvalidJob: it says none.
    """
    try:
        return JobId(UUID(text))
    except ValueError:
        raise InvalidJob(f"{text!r} is not a job id: ids are uuids, as `python -m pgnotifyq jobs` prints them") from None
