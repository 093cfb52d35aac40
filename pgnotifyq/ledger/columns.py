"""What a column holds, from the binary form in which wire/asking.py brings it. A column that is null is the caller's to know of.

Raw SQL stores what Python cannot hold: times beyond its years, JSON beyond its depth, bytes that are no text. None of it is an error here,
for it would be that of all the rows beside it: a time becomes the nearest there is, JSON an `Undecodable`, bytes are escaped.
"""

from __future__ import annotations

import struct
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from psycopg.adapt import Loader
from psycopg.pq import Format

from pgnotifyq.model.job import uuid_of
from pgnotifyq.model.payload import decode

if TYPE_CHECKING:
    from uuid import UUID

    from psycopg.abc import Buffer
    from psycopg.adapt import AdaptersMap
    from psycopg.pq.abc import PGresult

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)  # PostgreSQL's
_TIME_MAX = datetime.max.replace(tzinfo=UTC)
_TIME_MIN = datetime.min.replace(tzinfo=UTC)
_FLOAT = struct.Struct("!d")
_FLOAT4 = struct.Struct("!f")


def rows(result: PGresult) -> list[tuple[Any, ...]]:
    """Return rows of columns, each to be read by a function of this file; None where it is null."""
    return [tuple([result.get_value(row, column) for column in range(result.nfields)]) for row in range(result.ntuples)]


def uuid_from(raw: bytes) -> UUID:
    """Return a uuid."""
    return uuid_of(int.from_bytes(raw, "big"))


def text_from(raw: bytes, encoding: str) -> str:
    """Return a text, sent in the client's encoding. Bytes that are none of it, which a server in SQL_ASCII stores, are escaped."""
    return raw.decode(encoding, "backslashreplace")


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


def time_from_text(text: str) -> datetime:
    """Return a time that PostgreSQL wrote into JSON; as `time_from`, one that Python cannot say becomes the last or the first it can.

    Raises:
        ValueError, TypeError: it is no time.
    """
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        if text == "infinity" or _is_late(text):
            return _TIME_MAX
        if text == "-infinity" or text.endswith(" BC"):
            return _TIME_MIN
        raise
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)


def _is_late(text: str) -> bool:
    year = text.partition("-")[0]
    return len(year) > 4 and year.isdigit()  # Python's years have four


class _Binary(Loader):
    format = Format.BINARY


class _Time(_Binary):
    def load(self, data: Buffer) -> datetime:
        return time_from(bytes(data))


class _Float4(_Binary):
    def load(self, data: Buffer) -> float:
        return float(f"{_FLOAT4.unpack(data)[0]:.7g}")  # what was stored: 0.3, not 0.30000001


def read_leniently(adapters: AdaptersMap, encoding: str) -> None:
    """Have a cursor's binary results read as this file does."""
    if encoding == "ascii":  # psycopg's word for SQL_ASCII, which is whatever bytes were stored
        encoding = "utf-8"

    class Text(_Binary):
        def load(self, data: Buffer) -> str:
            return text_from(bytes(data), encoding)

    class Json(_Binary):
        def load(self, data: Buffer) -> Any:
            return decode(text_from(bytes(data)[1:], encoding))  # behind the version of the format

    adapters.register_loader("timestamptz", _Time)
    adapters.register_loader("jsonb", Json)
    adapters.register_loader("float4", _Float4)
    adapters.register_loader("text", Text)
