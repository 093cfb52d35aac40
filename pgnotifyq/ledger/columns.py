"""What a column holds, in the two forms in which PostgreSQL sends it.

Raw SQL can store what Python cannot hold: times beyond Python's years, JSON beyond its depth, bytes
that are no text. No error is raised for these: it would cost all other rows of the answer, too. A
time becomes the nearest one that Python has. JSON becomes an `Undecodable`. Bytes are escaped.

The functions that end in `_from` read one binary column, for statements that run hundreds of times
a second. Their callers must know that the column is not null. `rows` and `records` read whole
answers, in binary or in text.
"""

from __future__ import annotations

import struct
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from pgnotifyq.model.job import uuid_of
from pgnotifyq.model.payload import decode

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgnotifyq.ledger.ask import Answer

    Reader = Callable[[bytes, str], Any]

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)  # PostgreSQL's
_TIME_MAX = datetime.max.replace(tzinfo=UTC)
_TIME_MIN = datetime.min.replace(tzinfo=UTC)
_FLOAT = struct.Struct("!d")
_FLOAT4 = struct.Struct("!f")
_ARRAY = struct.Struct("!iiI")  # dimensions, whether there are nulls, the type of the elements
_LONG = struct.Struct("!q").unpack  # PostgreSQL counts microseconds
_LENGTH = struct.Struct("!i")
_NULL = -1  # the length of an element that is null


def rows(answer: Answer, encoding: str) -> list[tuple[Any, ...]]:
    """Return rows of values, None where a column is null."""
    count = answer.ntuples
    if not count:
        return []
    if encoding == "ascii":  # psycopg's word for SQL_ASCII: any bytes may be stored
        encoding = "utf-8"
    value = answer.get_value
    columns = [(place, _reader(answer, place)) for place in range(answer.nfields)]
    return [
        tuple([None if (raw := value(row, place)) is None else read(raw, encoding) for place, read in columns])
        for row in range(count)
    ]


def records(answer: Answer, encoding: str) -> list[dict[str, Any]]:
    """Return rows by the names of their columns."""
    names = [(answer.fname(place) or b"").decode() for place in range(answer.nfields)]
    return [dict(zip(names, row, strict=True)) for row in rows(answer, encoding)]


def only(answer: Answer, encoding: str) -> Any:
    """Return the one column of the one row."""
    ((value,),) = rows(answer, encoding)
    return value


def truth(answer: Answer, encoding: str) -> bool:
    """Return the one boolean of the one row."""
    return bool(only(answer, encoding))


def word(answer: Answer, encoding: str) -> str:
    """Return the one text of the one row."""
    return str(only(answer, encoding))


def number(answer: Answer, encoding: str) -> int:
    """Return the one integer of the one row."""
    return int(only(answer, encoding))


def is_null(answer: Answer, row: int, place: int) -> bool:
    """Tell whether a column of a row is null."""
    return answer.get_value(row, place) is None


def value_at(answer: Answer, row: int, place: int, encoding: str) -> Any:
    """Return the value of one column of one row."""
    raw = answer.get_value(row, place)
    return None if raw is None else _reader(answer, place)(raw, encoding)


def row_at(answer: Answer, row: int, encoding: str) -> tuple[Any, ...]:
    """Return the values of one row."""
    return tuple([value_at(answer, row, place, encoding) for place in range(answer.nfields)])


def _reader(answer: Answer, place: int) -> Reader:
    oid, form = answer.ftype(place), answer.fformat(place)
    try:
        return _READERS[form][oid]
    except KeyError:
        if form == TEXT:
            return text_from  # what a person would see
        name = (answer.fname(place) or b"").decode()
        raise TypeError(f"column {name} has the type {oid}, which is not read: cast it in its statement") from None


def uuid_from(raw: bytes) -> UUID:
    """Return a uuid."""
    return uuid_of(int.from_bytes(raw, "big"))


def text_from(raw: bytes, encoding: str) -> str:
    """Return a text, sent in the client's encoding.

    Bytes that are no text in that encoding are escaped. A server in SQL_ASCII stores such bytes.
    """
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


def seconds_from(raw: bytes) -> float:
    """Return PostgreSQL's time as seconds since its own epoch. It is for differences of times."""
    count: int = _LONG(raw)[0]
    return count / 1e6


def time_from(raw: bytes) -> datetime:
    """Return PostgreSQL's time.

    If Python has no such time, return the last or the first that Python has. Only raw SQL stores
    such times.
    """
    microseconds = int.from_bytes(raw, "big", signed=True)
    try:
        return _EPOCH + timedelta(microseconds=microseconds)
    except OverflowError:
        return _TIME_MAX if microseconds > 0 else _TIME_MIN


def time_from_text(text: str) -> datetime:
    """Return a time that PostgreSQL wrote as text.

    As `time_from` does, return the last or the first time that Python has, if Python has no such
    time.

    Raises:
        ValueError, TypeError: `text` is no time.
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


def _in_utc(time: datetime) -> datetime:
    try:
        return time.astimezone(UTC)
    except OverflowError:
        return time


def _is_late(text: str) -> bool:
    year = text.partition("-")[0]
    return len(year) > 4 and year.isdigit()  # Python's years have four


def _float4(raw: bytes) -> float:
    return float(f"{_FLOAT4.unpack(raw)[0]:.7g}")  # what was stored: 0.3, not 0.30000001


def _json(raw: bytes, encoding: str) -> Any:
    return decode(text_from(raw[1:], encoding))  # the first byte is the version of the format


def _array(raw: bytes, encoding: str) -> list[Any]:
    """Return the elements of an array of one dimension. An array of no dimension is empty."""
    dimensions, _, oid = _ARRAY.unpack_from(raw)
    if not dimensions:
        return []
    read = _BINARY[oid]
    values: list[Any] = []
    at = _ARRAY.size + 2 * _LENGTH.size * dimensions
    while at < len(raw):
        (length,) = _LENGTH.unpack_from(raw, at)
        at += _LENGTH.size
        if length == _NULL:
            values.append(None)
            continue
        values.append(read(raw[at : at + length], encoding))
        at += length
    return values


def _array_of(read: Reader) -> Reader:
    """Return a reader of arrays of one dimension that were written as text."""

    def read_array(raw: bytes, encoding: str) -> list[Any]:
        text = text_from(raw, encoding)
        values: list[Any] = []
        at, end = 1, len(text) - 1  # within the braces
        while at < end:
            if text[at] == '"':
                value, at = _unquoted(text, at + 1)
                values.append(read(value.encode(encoding, "surrogateescape"), encoding))
            else:
                value, _, _ = text[at:end].partition(",")
                at += len(value)
                values.append(None if value == "NULL" else read(value.encode(encoding), encoding))
            at += 1  # the comma
        return values

    return read_array


def _unquoted(text: str, at: int) -> tuple[str, int]:
    """Return what stands between here and the next quotation mark, and the place behind that."""
    letters = []
    while text[at] != '"':
        at += text[at] == "\\"
        letters.append(text[at])
        at += 1
    return "".join(letters), at + 1


def _of(read: Callable[[bytes], Any]) -> Reader:
    return lambda raw, _: read(raw)


TEXT = 0  # libpq's number for the form

_BOOLEAN, _BIGINT, _SMALLINT, _INTEGER, _FLOAT8, _TIMESTAMPTZ, _UUID, _JSONB = 16, 20, 21, 23, 701, 1184, 2950, 3802
_TEXTS = (18, 19, 25, 705, 1043)  # "char", name, text, unknown, varchar
_BINARY: dict[int, Reader] = {
    _BOOLEAN: _of(boolean_from),
    _BIGINT: _of(integer_from),
    _SMALLINT: _of(integer_from),
    _INTEGER: _of(integer_from),
    26: _of(lambda raw: int.from_bytes(raw, "big")),  # oid
    700: _of(_float4),
    _FLOAT8: _of(float_from),
    _TIMESTAMPTZ: _of(time_from),
    _UUID: _of(uuid_from),
    114: lambda raw, encoding: decode(text_from(raw, encoding)),  # json
    _JSONB: _json,
    2278: lambda _, __: None,  # void
    **dict.fromkeys(_TEXTS, text_from),
}
_ON_PAPER: dict[int, Reader] = {
    _BOOLEAN: _of(lambda raw: raw == b"t"),
    _BIGINT: _of(int),
    _SMALLINT: _of(int),
    _INTEGER: _of(int),
    26: _of(int),
    700: _of(float),
    _FLOAT8: _of(float),
    _TIMESTAMPTZ: _of(lambda raw: _in_utc(time_from_text(raw.decode("ascii")))),
    _UUID: _of(lambda raw: UUID(raw.decode("ascii"))),
    114: lambda raw, encoding: decode(text_from(raw, encoding)),
    _JSONB: lambda raw, encoding: decode(text_from(raw, encoding)),
    2278: lambda _, __: None,
    **dict.fromkeys(_TEXTS, text_from),
}
# Arrays of booleans, names, smallints, integers, texts, varchars, bigints, uuids.
_ARRAYS = {1000: _BOOLEAN, 1003: 19, 1005: _SMALLINT, 1007: _INTEGER, 1009: 25, 1015: 1043, 1016: _BIGINT, 2951: _UUID}
_ON_PAPER |= {oid: _array_of(_ON_PAPER[element]) for oid, element in _ARRAYS.items()}
_BINARY |= dict.fromkeys(_ARRAYS, _array)
_READERS = (_ON_PAPER, _BINARY)
TYPES = tuple(_ON_PAPER)  # the types that are read; a value of any other type stays text
