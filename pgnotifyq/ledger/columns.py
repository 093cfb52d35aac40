"""What a column holds, from the binary form in which wire/direct.py brings it. A column that is null is the caller's to know of."""

from __future__ import annotations

import struct
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from pgnotifyq.model.job import uuid_of

if TYPE_CHECKING:
    from uuid import UUID

    from psycopg.pq.abc import PGresult

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)  # PostgreSQL's
_TIME_MAX = datetime.max.replace(tzinfo=UTC)
_TIME_MIN = datetime.min.replace(tzinfo=UTC)
_FLOAT = struct.Struct("!d")


def rows(result: PGresult) -> list[tuple[Any, ...]]:
    """Return rows of columns, each to be read by a function of this file; None where it is null."""
    return [tuple([result.get_value(row, column) for column in range(result.nfields)]) for row in range(result.ntuples)]


def uuid_from(raw: bytes) -> UUID:
    """Return a uuid."""
    return uuid_of(int.from_bytes(raw, "big"))


def text_from(raw: bytes, encoding: str) -> str:
    """Return a text, sent in the client's encoding."""
    return raw.decode(encoding)


def boolean_from(raw: bytes) -> bool:
    """Return a boolean."""
    return raw != b"\0"


def integer_from(raw: bytes) -> int:
    """Return a smallint, integer or bigint."""
    return int.from_bytes(raw, "big", signed=True)


def float_from(raw: bytes) -> float:
    """Return a double precision."""
    return float(_FLOAT.unpack(raw)[0])


def time_from(raw: bytes) -> datetime:
    """Return PostgreSQL's time; one that Python cannot say, and only raw SQL stores, becomes the last or the first it can."""
    microseconds = int.from_bytes(raw, "big", signed=True)
    try:
        return _EPOCH + timedelta(microseconds=microseconds)
    except OverflowError:
        return _TIME_MAX if microseconds > 0 else _TIME_MIN
