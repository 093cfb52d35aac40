"""Payloads: what is refused at the door, and what comes back as it went in."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import json
import typing
import uuid
from collections import Counter, defaultdict, deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from ipaddress import IPv4Address, IPv6Network
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, NamedTuple, NewType, TypedDict, TypeVar

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgnotifyq.model.errors import ConfigError, InvalidPayload, PayloadTooLarge, PayloadUndecodable
from pgnotifyq.model.outcome import encode_result
from pgnotifyq.model.payload import PAYLOAD_DEPTH_MAX, Undecodable, decode, encode, encode_value, encoded
from pgnotifyq.model.structuring import structure, understood

if TYPE_CHECKING:
    from fractions import Fraction as OnlyForTypeCheckers

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


T = TypeVar("T")
Sku = NewType("Sku", str)


@attrs.frozen
class Item:
    sku: str
    count: int = 1


class Point(NamedTuple):
    x: int
    y: int = 0


@attrs.frozen
class Node:
    name: str
    left: Node | None = None
    children: list[Node] = attrs.field(factory=list)


class Visit(TypedDict, total=False):
    at: dt.datetime
    pages: list[Item]


class Level(enum.Enum):
    LOW = "low"
    HIGH = 9


class Dated(NamedTuple):
    day: dt.date


class Row(TypedDict):
    sku: str


@attrs.frozen
class Box(Generic[T]):
    value: T


@attrs.frozen
class Buy:
    kind: Literal["buy"]
    at: dt.date


@attrs.frozen
class Sell:
    kind: Literal["sell"]
    price: Decimal


items = st.builds(Item, texts, st.integers(-(10**9), 10**9))
days = st.dates()
# By what a handler's first parameter is annotated with: what is enqueued comes back equal, and of the same type.
UNDERSTOOD: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (Item, items),
    (Item | None, st.none() | items),
    (str | None, texts),
    (int | str, st.integers() | texts),
    (list[int], st.lists(st.integers(-(10**30), 10**30))),
    (list[Item], st.lists(items)),
    (list[Any], st.lists(plain, max_size=3)),
    (list[list[Item] | None], st.lists(st.none() | st.lists(items, max_size=2), max_size=3)),
    (tuple[int, str], st.tuples(st.integers(), texts)),
    (tuple[dt.date, ...], st.lists(days).map(tuple)),
    (set[int], st.sets(st.integers())),
    (frozenset[str], st.frozensets(texts)),
    (dict[str, Item], st.dictionaries(texts, items)),
    (dict[str, object], st.dictionaries(texts, plain, max_size=3)),
    (Mapping[str, dt.date], st.dictionaries(texts, days)),
    (uuid.UUID, st.uuids()),
    (dt.date, days),
    (dt.datetime, st.datetimes(timezones=st.just(dt.UTC))),
    (dt.time, st.times()),
    (dt.timedelta, st.timedeltas()),
    (Decimal, st.decimals(allow_nan=False, allow_infinity=False)),
    (bytes, st.binary()),
    (Path, st.just(Path("/srv/a b"))),
    (IPv4Address, st.ip_addresses(v=4)),
    (IPv6Network, st.just(IPv6Network("fd00::/8"))),
    (Size, st.sampled_from(Size)),
    (Colour, st.sampled_from(Colour)),
    (Colour | None, st.sampled_from(Colour)),
    (Sku, texts),
    (Annotated[Item, "what is sold"], items),
    (Literal["a", "b"], st.sampled_from(["a", "b"])),
    (Point, st.builds(Point, st.integers(), st.integers())),
    (Dated, st.builds(Dated, days)),
    (list[Point], st.lists(st.builds(Point, st.integers(), st.integers()))),
    (Row, st.fixed_dictionaries({"sku": texts})),
    (Box[dt.date], st.builds(Box, days)),
    (Buy | Sell, st.builds(Buy, st.just("buy"), days) | st.builds(Sell, st.just("sell"), st.just(Decimal("1.10")))),
    (type(None), st.none()),
    (
        Node,
        st.recursive(
            st.builds(Node, texts), lambda inner: st.builds(Node, texts, st.none() | inner, st.lists(inner)), max_leaves=5
        ),
    ),
    (Visit, st.fixed_dictionaries({}, optional={"at": st.datetimes(timezones=st.just(dt.UTC)), "pages": st.lists(items)})),
    (Level, st.sampled_from(Level)),
    (dict[uuid.UUID, Decimal], st.dictionaries(st.uuids(), st.decimals(allow_nan=False, allow_infinity=False))),
    (dict[dt.date, bytes], st.dictionaries(days, st.binary())),
    (defaultdict[str, int], st.builds(defaultdict, st.just(int), st.dictionaries(texts, st.integers()))),
    (Counter[str], st.dictionaries(texts, st.integers(1)).map(Counter)),
    (deque[int], st.lists(st.integers()).map(deque)),
    # Unions that JSON tells apart by its own kinds.
    (Item | list[Item] | int | None, st.none() | items | st.lists(items) | st.integers()),
    (uuid.UUID | int | bool, st.uuids() | st.integers() | st.booleans()),
    (Size | str, st.sampled_from(Size) | texts),
    (int | float, st.integers(-(10**15), 10**15) | st.floats(allow_nan=False, allow_infinity=False).filter(lambda x: x % 1 != 0)),
    (Literal["auto"] | Decimal, st.just("auto") | st.decimals(allow_nan=False, allow_infinity=False)),
    (dict[str, int] | list[str] | None, st.dictionaries(texts, st.integers()) | st.lists(texts)),
    (Point | Item, st.builds(Point, st.integers(), st.integers()) | items),
    (list[Buy | Sell | None], st.lists(st.none() | st.builds(Buy, st.just("buy"), days))),
]


@pytest.mark.parametrize(("wanted", "values"), UNDERSTOOD, ids=[str(wanted) for wanted, _ in UNDERSTOOD])
@given(data=st.data())
@settings(max_examples=20)
def test_an_annotation_that_is_understood_gives_what_was_enqueued(
    wanted: Any, values: st.SearchStrategy[Any], data: st.DataObject
) -> None:
    """Equal, and of the same type; a handler that asks for a list of items is not given dicts."""
    value = data.draw(values)
    back = structure(json.loads(encode(value)), understood(wanted))
    assert back == value
    assert type(back) is type(value)


def test_a_sequence_is_a_list_or_a_tuple() -> None:
    """Which of the two is cattrs' affair, and changed."""
    assert list(structure([{"sku": "a"}], understood(Sequence[Item]))) == [Item("a")]


class Plain:
    def __init__(self, sku: str) -> None:
        self.sku = sku


@attrs.frozen
class Holder:
    plain: Plain


@attrs.frozen
class Hidden:
    part: OnlyForTypeCheckers


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        (Plain, "Plain"),
        (Holder, "Plain"),
        (list[Plain], "Plain"),
        (complex, "complex"),
        (T, "T"),
        (set | list, r"set \| list"),
        (Item | dict, "Item"),
        (typing.Callable[[], int], "Callable"),
        (Item | Row, "Item"),
        (Size | int, "Size and int are both a number"),
        (Level | float, "Level"),
        (dt.date | dt.datetime, "date and datetime are both text"),
        (list[int] | set[int], "list"),
        (dict[str, Plain], "Plain"),
        (Annotated[Plain, "what"], "Plain"),
        (type[int], "type"),
        (str | uuid.UUID, "str and UUID are both text"),
        (list[Decimal | str], "both text"),
        (Hidden, "OnlyForTypeCheckers"),
    ],
    ids=str,
)
def test_an_annotation_that_cannot_be_honoured_is_refused(wanted: Any, why: str) -> None:
    """With what is not understood, and what to use; never a dict without a word."""
    with pytest.raises(ConfigError, match=why) as refused:
        understood(wanted)
    assert "pydantic" in str(refused.value)


@pytest.mark.parametrize("wanted", [Any, object, dict, dict[str, Any]])
def test_an_annotation_that_asks_for_plain_json(wanted: Any) -> None:
    """It is given as decoded."""
    assert structure({"a": [1]}, understood(wanted)) == {"a": [1]}


@pytest.mark.parametrize(
    ("wanted", "payload"),
    [
        (list[str], "abc"),
        (list[str], {"a": 1}),
        (set[str], "abc"),
        (tuple[str, str], "ab"),
        (list[list[str]], ["ab"]),
        (Sequence[str], "ab"),
        (Point, "1"),
        (Point, []),
        (Point, [1, 2, 3]),
        (Point, [1, "two"]),
        (list[int] | None, "12"),
        (Item, ["sku"]),
        (Item, "sku"),
        (Box[int], "value"),
        (list[Item], [["sku"]]),
        (bytes, "not base64!"),
        (bytes, 5),
        (IPv4Address, 5),
        (dt.date, 20300101),
        (dt.timedelta, "PT"),
        (dt.timedelta, "1.5"),
        (Decimal, "one"),
        (Decimal, True),
        (type(None), {"a": 1}),
        (dict[str, int], {"a": "b"}),
        (dict[str, int], [["a", 1]]),
        (list[dict[Any, Any]], [[["a", 1]]]),
        (Row, ["sku"]),
        (Visit, []),
        (Counter[str], [["a", 1]]),
        (Decimal, "NaN"),
        (Decimal, "Infinity"),
        (Node, {"name": "a", "left": ["name"]}),
        (Node, {"name": "a", "children": [{"name": "b", "left": {"name": 5}}]}),
        (Item | list[Item], "sku"),
        (Item | list[Item], True),
        (int | None, True),
        (int | None, "1"),
        (uuid.UUID | int, 1.5),
        (Literal["a", "b"], "c"),
    ],
    ids=str,
)
def test_a_value_of_another_kind_is_refused_rather_than_converted(wanted: Any, payload: object) -> None:
    """list("abc") is ["a", "b", "c"], and "sku" in "sku" is true: the handler would run with what nobody wrote."""
    with pytest.raises(PayloadUndecodable):
        structure(payload, understood(wanted))


@attrs.frozen
class Bag:
    mapping: dict  # type: ignore[type-arg]  # it is the situation


def test_a_bare_dict_in_a_class_takes_no_pairs() -> None:
    """Whether or not dict was asked for before: cattrs notes its own hook for dict as it makes it."""
    for _ in range(2):
        with pytest.raises(PayloadUndecodable, match=r"not an object @ payload\.mapping"):
            structure({"mapping": [["a", 1]]}, understood(Bag))
        understood(list[dict])  # type: ignore[type-arg]


ANY_JSON = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.just(10**4000), st.floats(), st.text(max_size=5),
        st.sampled_from(["buy", "red", "1", "P1D", "2030-01-01", "1e999999999", str(uuid.UUID(int=1)), "AA==", "nan"]),
    ),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(
        st.sampled_from(["sku", "count", "name", "left", "children", "kind", "at", "price", "value", "pages", "id"]) | st.text(max_size=3),
        inner,
        max_size=5,
    ),
    max_leaves=12,
)  # fmt: skip


@pytest.mark.parametrize("wanted", [wanted for wanted, _ in UNDERSTOOD], ids=str)
@given(payload=ANY_JSON)
@settings(max_examples=60)
def test_any_json_is_taken_or_refused_with_the_typed_error(wanted: Any, payload: Any) -> None:
    """No other exception; and what is taken is written and taken again as the same."""
    try:
        taken = structure(payload, understood(wanted))
    except PayloadUndecodable:
        return
    try:
        text = encode_value(taken, bytes_max=100_000)
    except InvalidPayload:  # what PostgreSQL would not have stored: NaN, NUL
        return
    assert structure(json.loads(text), understood(wanted)) == taken


@pytest.mark.parametrize("wanted", [wanted for wanted, _ in UNDERSTOOD], ids=str)
@pytest.mark.parametrize("levels", [20, 499])
def test_deep_json_is_taken_or_refused_with_the_typed_error(wanted: Any, levels: int) -> None:
    """As deep as a stored payload may be: lists in lists, and objects in the fields of objects."""
    for outer in (
        lambda inner: [inner],
        lambda inner: {"name": "a", "left": inner},
        lambda inner: {"name": "a", "children": [inner]},
    ):
        payload: Any = {"name": "a"}
        for _ in range(levels):
            payload = outer(payload)
        with suppress(PayloadUndecodable):
            structure(payload, understood(wanted))


def test_a_reason_names_the_field() -> None:
    """By its path, for each field that does not fit."""
    payload = {"name": "a", "children": [{"name": "b"}, {"name": 5, "left": {"children": []}}]}
    with pytest.raises(PayloadUndecodable) as refused:
        structure(payload, understood(Node))
    assert "not a text @ payload.children[1].name" in str(refused.value)
    assert "required field missing @ payload.children[1].left.name" in str(refused.value)


def test_a_reason_holds_no_value() -> None:
    """Payloads stay out of errors, which are logged."""
    for wanted, payload in ((Literal["a"], "secret"), (Colour, "secret"), (uuid.UUID, "secret"), (Literal["a"] | int, "secret")):
        with pytest.raises(PayloadUndecodable) as told:
            structure(payload, understood(wanted))
        assert "secret" not in str(told.value)
    with pytest.raises(PayloadUndecodable, match=r"not an array @ payload\.lines") as refused:
        structure({"lines": "secret"}, attrs.make_class("Order", {"lines": attrs.field(type=list[int])}))
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "value", [float("nan"), "nul \x00", "\ud800", object(), ["x" * 1_100_000], nested(70)], ids=lambda v: str(v)[:9]
)
def test_a_result_that_cannot_be_stored_is_called_a_result(value: object) -> None:
    """It is the handler's; the payload was good."""
    with pytest.raises(InvalidPayload, match="the result ") as refused:
        encode_result(value)
    assert "payload" not in str(refused.value) and "enqueue" not in str(refused.value)


def test_encoded_once() -> None:
    """What is encoded already is carried on as it is, with its size in bytes."""
    once = encoded({"name": "é"})
    assert (once.text, once.size_bytes) == ('{"name":"é"}', 13)
    assert encoded(once) is once and encode(once) is once.text
