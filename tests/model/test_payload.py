"""Payloads: what is refused at the door, and what comes back as it went in."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import json
import uuid
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgnotifyq.model.errors import InvalidPayload, PayloadTooLarge, PayloadUndecodable
from pgnotifyq.model.payload import PAYLOAD_DEPTH_MAX, Undecodable, decode, encode, structure

texts = st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=20)
plain = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(10**30), 10**30), st.floats(allow_nan=False, allow_infinity=False), texts),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=20,
)


@attrs.frozen
class Resize:
    path: str
    width: int


@dataclasses.dataclass
class Crop:
    path: str
    corners: list[int]


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


@given(st.dictionaries(texts, plain, max_size=4))
def test_plain_json_comes_back_as_it_went_in(payload: dict[str, Any]) -> None:
    """What json can say is what is stored."""
    assert json.loads(encode(payload)) == payload


@given(
    st.recursive(
        st.one_of(st.none(), st.floats(), st.text(), st.integers(), st.binary(), st.builds(object)), lambda i: st.lists(i)
    )
)
def test_whatever_is_given_is_encoded_or_refused_with_a_typed_error(payload: object) -> None:
    """No other exception, and nothing that PostgreSQL's jsonb would refuse."""
    try:
        text = encode(payload)
    except InvalidPayload:
        return
    assert "\\u0000" not in text.replace("\\\\", "")
    text.encode()


@pytest.mark.parametrize(
    "payload",
    [
        {"a": "nul \x00"},
        {"nul \x00": 1},
        {"a": "\ud800"},
        {"a": float("nan")},
        {"a": [float("inf")]},
        {"a": 10**5000},
        {1: "a"},
        nested(PAYLOAD_DEPTH_MAX + 1),
        nested(10_000),
        {"a": object()},
        {"a": {1, 2, object()}},
    ],
    ids=[
        "nul",
        "nul in key",
        "surrogate",
        "nan",
        "infinity",
        "huge integer",
        "integer key",
        "deep",
        "very deep",
        "object",
        "set",
    ],
)
def test_hostile_payloads_are_refused(payload: object) -> None:
    """Each with InvalidPayload."""
    with pytest.raises(InvalidPayload):
        encode(payload)


def test_a_payload_over_the_limit_is_refused_with_both_numbers() -> None:
    """The error says how large it is, how large it may be, and what to do."""
    with pytest.raises(PayloadTooLarge, match=r"1048\d+ bytes, at most 1048576 .* reference"):
        encode({"a": "x" * 1_048_576})


@pytest.mark.parametrize("payload", [Resize("a.png", 64), Crop("a.png", [1, 2])])
def test_typed_payloads_come_back_as_their_type(payload: object) -> None:
    """attrs classes and dataclasses, through JSON and back."""
    assert structure(json.loads(encode(payload)), type(payload)) == payload


@pytest.mark.parametrize("payload", [{"path": "a"}, {"path": "a", "width": "wide"}, [], "text", None, 5])
def test_a_payload_that_does_not_fit_says_where(payload: object) -> None:
    """PayloadUndecodable, with a reason, whatever the payload is."""
    with pytest.raises(PayloadUndecodable, match="Resize"):
        structure(payload, Resize)


class Size(enum.IntEnum):
    SMALL = 1


class Colour(enum.StrEnum):
    RED = "red"


@attrs.frozen
class Order:
    id: uuid.UUID
    at: dt.datetime
    size: Size
    colour: Colour
    price: float = 0.0
    is_dry: bool = False
    lines: dict[int, str] = attrs.field(factory=dict)
    note: str | None = None


ORDER: dict[str, Any] = {
    "id": "6ba7b810-9dad-11d1-80b4-00c04fd430c8",
    "at": "2030-01-01T00:00:00+00:00",
    "size": 1,
    "colour": "red",
}


def test_ids_times_and_enums_come_back_as_their_type() -> None:
    """In an attrs class, and in a plain dict on the way out."""
    order = structure(ORDER, Order)
    assert (order.id, order.size, order.colour) == (uuid.UUID(ORDER["id"]), Size.SMALL, Colour.RED)
    assert structure(json.loads(encode(order)), Order) == order
    assert json.loads(encode({"id": order.id, "deeper": [{"at": order.at}]}))["id"] == ORDER["id"]


@pytest.mark.parametrize(
    "field",
    [
        {"is_dry": "false"},
        {"is_dry": None},
        {"is_dry": 1},
        {"size": 1.5},
        {"size": True},
        {"size": 9},
        {"price": "nan"},
        {"price": True},
        {"note": {"a": 1}},
        {"note": 5},
        {"id": 5},
    ],
    ids=str,
)
def test_a_scalar_of_another_kind_is_refused_rather_than_converted(field: dict[str, Any]) -> None:
    """bool("false") is True, int(1.9) is 1, str({}) is "{}": the handler would run with values that nobody wrote."""
    with pytest.raises(PayloadUndecodable, match=next(iter(field))):
        structure(ORDER | field, Order)


def test_a_conversion_that_loses_nothing_is_made() -> None:
    """A whole float is an integer, an integer is a float, and keys of JSON objects are texts."""
    order = structure(ORDER | {"size": 1.0, "price": 2, "lines": {"7": "seven"}, "note": None}, Order)
    assert (order.size, order.price, order.lines, order.note) == (Size.SMALL, 2.0, {7: "seven"}, None)


def test_a_payload_that_unfolds_without_end_is_refused_before_it_is_unfolded() -> None:
    """Sixty lists that hold each other ten times over are 10^60 values; a list that holds itself has no end."""
    laughing: Any = ["x"]
    for _ in range(60):
        laughing = [laughing] * 10
    with pytest.raises(PayloadTooLarge):
        encode(laughing, bytes_max=10_000)
    itself: list[Any] = []
    itself.append(itself)
    with pytest.raises(InvalidPayload, match="too deep"):
        encode(itself)


@pytest.mark.parametrize("levels", [501, 5_000])
def test_payload_of_raw_sql_nested_too_deep(levels: int) -> None:
    """It is undecodable on every Python, whatever the decoder would bear; what is wide is not deep."""
    assert isinstance(decode("[" * levels + "]" * levels), Undecodable)
    assert isinstance(decode('{"a":' * levels + "1" + "}" * levels), Undecodable)
    assert decode("[" + "[1]," * levels + "[1]]") == [[1]] * (levels + 1)
    assert not isinstance(decode("[" * 400 + "]" * 400), Undecodable)
