"""What rows say and what verbs ask, without a database and without an event loop."""

from __future__ import annotations

import struct
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgnotifyq.ledger import enqueue, lease
from pgnotifyq.ledger.ask import Aside, Ask, array
from pgnotifyq.ledger.columns import records, rows
from pgnotifyq.model.new_job import NewJob
from pgnotifyq.model.payload import Undecodable
from tests.ledger.support import ANN, SCHEMA

if TYPE_CHECKING:
    from collections.abc import Sequence

TEXT, BINARY = 0, 1


@attrs.frozen
class Answer:
    """Rows as libpq would hold them."""

    types: Sequence[int]
    form: int
    values: Sequence[Sequence[bytes | None]]

    @property
    def ntuples(self) -> int:
        return len(self.values)

    @property
    def nfields(self) -> int:
        return len(self.types)

    def get_value(self, row_number: int, column_number: int) -> bytes | None:
        return self.values[row_number][column_number]

    def ftype(self, column_number: int) -> int:
        return self.types[column_number]

    def fformat(self, column_number: int) -> int:
        return self.form

    def fname(self, column_number: int) -> bytes | None:
        return b"column_%d" % column_number


def read(oid: int, form: int, raw: bytes, encoding: str = "utf-8") -> Any:
    """Read one column."""
    ((value,),) = rows(Answer([oid], form, [[raw]]), encoding)
    return value


MOMENT = datetime(2026, 11, 29, 10, 30, 0, 250_000, tzinfo=UTC)
SINCE_2000 = int((MOMENT - datetime(2000, 1, 1, tzinfo=UTC)) / timedelta(microseconds=1))
SAME: list[tuple[int, bytes, bytes, Any]] = [
    (16, b"t", b"\1", True),
    (16, b"f", b"\0", False),
    (20, b"-5", struct.pack("!q", -5), -5),
    (21, b"-5", struct.pack("!h", -5), -5),
    (23, b"70000", struct.pack("!i", 70_000), 70_000),
    (700, b"0.3", struct.pack("!f", 0.3), 0.3),
    (701, b"0.1", struct.pack("!d", 0.1), 0.1),
    (25, "é".encode(), "é".encode(), "é"),
    (2950, str(UUID(int=7)).encode(), UUID(int=7).bytes, UUID(int=7)),
    (3802, b'{"a": [1]}', b'\1{"a": [1]}', {"a": [1]}),
    (1184, b"2026-11-29 16:00:00.25+05:30", struct.pack("!q", SINCE_2000), MOMENT),
    (1184, b"infinity", struct.pack("!q", 2**63 - 1), datetime.max.replace(tzinfo=UTC)),
    (1184, b"-infinity", struct.pack("!q", -(2**63)), datetime.min.replace(tzinfo=UTC)),
    (1184, b"0044-03-15 00:00:00+00 BC", struct.pack("!q", -(2**62)), datetime.min.replace(tzinfo=UTC)),
    (1009, b"{}", struct.pack("!iii", 0, 0, 25), []),
    (1007, b"{1,NULL}", struct.pack("!iiiiiiii", 1, 1, 23, 2, 1, 4, 1, -1), [1, None]),
]


@pytest.mark.parametrize(("oid", "text", "binary", "value"), SAME)
def test_both_forms(oid: int, text: bytes, binary: bytes, value: Any) -> None:
    """A value is the same, whichever form it came in."""
    assert (read(oid, TEXT, text), read(oid, BINARY, binary)) == (value, value)
    assert type(read(oid, BINARY, binary)) is type(value)


@given(st.lists(st.none() | st.text(st.sampled_from("ab\\\",{} \nNULé;'"), max_size=8), max_size=6))
def test_written_array(values: list[str | None]) -> None:
    """An array is read as it was written."""
    assert read(1009, TEXT, array(values).encode()) == values


def test_what_python_cannot_hold() -> None:
    """It hides no other row: bytes are escaped, JSON that is too deep is an `Undecodable`."""
    assert read(25, BINARY, b"a\xff") == "a\\xff"
    assert read(25, TEXT, "é".encode(), "ascii") == "é"
    assert isinstance(read(3802, TEXT, b"[" * 100_000 + b"]" * 100_000), Undecodable)


def test_type_that_nobody_reads() -> None:
    """In text it is what a person would see; in binary it is refused, by name."""
    assert read(1186, TEXT, b"1 day") == "1 day"
    with pytest.raises(TypeError, match="column_0 has the type 1186"):
        read(1186, BINARY, b"\0" * 16)


def test_no_rows() -> None:
    """Nothing is read of types where there is nothing."""
    assert (rows(Answer([1186], BINARY, []), "utf-8"), records(Answer([], BINARY, []), "utf-8")) == ([], [])


def test_verb_is_a_value() -> None:
    """Making one does nothing; its statement numbers its values."""
    beat = lease.heartbeat(SCHEMA, worker_id=ANN, leases=[], lease_seconds=60.0)
    assert beat.statement == b'select * from "pgnotifyq"."heartbeat"($1::uuid, $2::uuid[], $3::uuid[], $4::float8)'
    assert list(beat.parameters) == [ANN.hex, "{}", "{}", "60.0"]


@pytest.mark.parametrize(("is_alone", "begins"), [(True, b"insert into"), (False, b"select * from")])
def test_plan_decides_by_what_it_is_told(is_alone: bool, begins: bytes) -> None:
    """A plan is a conversation, and needs nobody who waits."""
    steps = enqueue.enqueue(SCHEMA, NewJob(job_type="noop")).steps()
    assert next(steps) is Aside.IS_ALONE
    step = steps.send(is_alone)
    assert isinstance(step, Ask) and begins in step.statement
    with pytest.raises(StopIteration) as end:
        steps.send(UUID(int=1))
    assert end.value.value == UUID(int=1)
