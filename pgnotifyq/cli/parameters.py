"""What several commands take, each said once, and how its text is read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
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
        InvalidJob: the text is no id.
    """
    try:
        return JobId(UUID(text))
    except ValueError:
        raise InvalidJob(f"{text!r} is not a job id: ids are uuids, as `python -m pgnotifyq jobs` prints them") from None


_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_DURATION = re.compile(r"(?:\d{1,12}(?:\.\d{1,12})?[smhdw])+", re.ASCII)


def time_of(what: str, text: str) -> datetime:
    """Return the time that a text says, with its time zone.

    A time without a zone is refused: the machines of a queue may be in several zones.

    Args:
        what: the option that the text was given for, as `--at`.
        text: ISO 8601, as 2030-01-31T12:00:00+01:00 or 2030-01-31T11:00Z.

    Raises:
        InvalidJob: the text is no time, or has no time zone.
    """
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidJob(f"{what} {text!r:.80} is not a time: use 2030-01-31T12:00:00+00:00") from None
    if time.utcoffset() is None:
        raise InvalidJob(f"{what} {text!r:.80} has no time zone: add Z for UTC, or an offset, as {text:.40}+01:00")
    return time


def seconds_of(what: str, text: str) -> float:
    """Return the length of time that a text says, in seconds.

    Args:
        what: the option that the text was given for, as `--in`.
        text: numbers with their units, s, m, h, d or w: 90s, 5m, 1.5h, 1d12h.

    Raises:
        InvalidJob: the text is no length of time.
    """
    if not _DURATION.fullmatch(text):
        raise InvalidJob(f"{what} {text!r:.80} is no length of time: use a number and s, m, h, d or w, as 90s, 5m, 2h, 1d12h")
    return sum(float(number) * _SECONDS[unit] for number, unit in re.findall(r"([\d.]+)([smhdw])", text))
