"""What a registry and a handler say of payloads: unknown keys, a converter of the program's own, versions."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple, TypedDict

import attrs
import cattrs
import pytest
from cattrs.preconf.json import make_converter as make_plain_converter
from cattrs.strategies import configure_tagged_union
from hypothesis import given
from hypothesis import strategies as st

import pgnotifyq
from pgnotifyq import ConfigError, Handler, InvalidPayload, JobRegistry, NewJob, PayloadTooLarge, PayloadUndecodable
from pgnotifyq.doors.verbs import Verbs
from pgnotifyq.model.outcome import Returned, decide
from pgnotifyq.model.payload import PAYLOAD_BYTES_MAX, PayloadTooNew, decode, encode
from pgnotifyq.model.retry import RetryPolicy

pydantic = pytest.importorskip("pydantic")


@attrs.frozen
class Resize:
    path: str
    width: int = 64


@dataclasses.dataclass
class Album:
    pictures: list[Resize]


class Row(TypedDict):
    sku: str


class Order(pydantic.BaseModel):  # type: ignore[misc,name-defined]  # not installed everywhere
    sku: str


class Loose(pydantic.BaseModel):  # type: ignore[misc,name-defined]
    model_config = pydantic.ConfigDict(extra="allow")
    sku: str


def stored(job: NewJob) -> Any:
    """Return what a worker decodes of a job."""
    return decode(encode(job.payload))


def handler_of(wanted: Any, registry: JobRegistry | None = None, **settings: Any) -> Handler:
    """Return a handler that asks for a type."""

    def work(payload: Any) -> None:
        """Do nothing."""

    work.__annotations__["payload"] = wanted
    made: Handler = (registry or JobRegistry()).handler("work", **settings)(work)
    return made


# Unknown keys

UNKNOWN: list[tuple[Any, Any, str]] = [
    (Resize, {"path": "a", "widht": 1}, "payload"),
    (Album, {"pictures": [{"path": "a", "widht": 1}]}, r"payload\.pictures\[0\]"),
    (Row, {"sku": "a", "widht": 1}, "payload"),
    (list[Row] | Resize, {"path": "a", "widht": 1}, "payload"),
    (Resize | None, {"path": "a", "widht": 1}, "payload"),
    (dict[str, Row], {"k": {"sku": "a", "widht": 1}}, r"payload\['k'\]"),
    (Order, {"sku": "a", "widht": 1}, "payload"),
]


@pytest.mark.parametrize(("wanted", "payload", "path"), UNKNOWN, ids=str)
def test_unknown_keys(wanted: Any, payload: Any, path: str) -> None:
    """Dropped by default, so that old code runs what new code enqueued; refused where a registry or a handler says so."""
    for handler in (
        handler_of(wanted),
        handler_of(wanted, unknown_keys="drop"),
        handler_of(wanted, JobRegistry(unknown_keys="refuse"), unknown_keys="drop"),
    ):
        assert "widht" not in str(handler.read(stored(handler.job(payload))))
    if wanted is Order and [int(part) for part in pydantic.VERSION.split(".")[:2]] < [2, 12]:
        with pytest.raises(ConfigError, match=r"pydantic before 2\.12"):
            handler_of(wanted, unknown_keys="refuse")
        return
    for handler in (handler_of(wanted, unknown_keys="refuse"), handler_of(wanted, JobRegistry(unknown_keys="refuse"))):
        with pytest.raises(InvalidPayload, match=rf"widht.* @ {path}|widht: .* @ {path}"):
            handler.job(payload)
        with pytest.raises(PayloadUndecodable, match="widht"):
            handler.read(payload)


def test_what_a_model_says_itself_of_unknown_keys_holds() -> None:
    """A registry that refuses them does not overrule it."""
    handler = handler_of(Loose, unknown_keys="refuse")
    assert handler.read({"sku": "a", "more": 1}).more == 1


@pytest.mark.parametrize("wrong", ["ignore", True, [], 5])
def test_a_word_for_unknown_keys_that_is_none(wrong: Any) -> None:
    """It is refused, and told which there are."""
    with pytest.raises(ConfigError, match="'drop' or 'refuse'"):
        JobRegistry(unknown_keys=wrong)
    with pytest.raises(ConfigError, match=r"work: .*'drop' or 'refuse'"):
        handler_of(dict, unknown_keys=wrong)


# A converter of the program's own


class Money:
    """A class that nobody but the program knows."""

    def __init__(self, cents: int) -> None:
        self.cents = cents

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Money) and other.cents == self.cents

    def __hash__(self) -> int:
        return self.cents


def with_money(converter: cattrs.Converter) -> cattrs.Converter:
    converter.register_unstructure_hook(Money, lambda money: f"{money.cents} ct")
    converter.register_structure_hook(Money, lambda value, _: Money(int(value.removesuffix(" ct"))))
    return converter


@attrs.frozen
class Bill:
    total: Money
    due: dt.date = dt.date(2030, 1, 1)


BILL = Bill(Money(250))


@pytest.mark.parametrize("make", [pgnotifyq.make_converter, make_plain_converter], ids=["ours with hooks", "cattrs' own"])
def test_types_of_the_programs_own(make: Any) -> None:
    """What a converter has a hook for is honoured, in classes and by itself; without the converter it is refused."""
    registry = JobRegistry(converter=with_money(make()))
    handler = handler_of(Bill, registry)
    assert stored(handler.job(BILL)) == {"total": "250 ct", "due": "2030-01-01"}
    assert handler.read(stored(handler.job(BILL))) == BILL
    assert handler_of(list[Money], JobRegistry(converter=registry.converter)).read(["5 ct"]) == [Money(5)]
    with pytest.raises(ConfigError, match=r"Money.*converter that has a hook"):
        handler_of(Bill)
    with pytest.raises(InvalidPayload, match="total"):
        handler.job({"total": "free"})


def test_unknown_keys_with_a_converter_of_the_programs_own() -> None:
    """Said, it counts; not said, the converter's own setting does."""
    own = with_money(pgnotifyq.make_converter(forbid_extra_keys=True))
    payload = {"total": "1 ct", "more": 1}
    for settings in ({}, {"unknown_keys": "refuse"}):
        with pytest.raises(InvalidPayload, match="more"):
            handler_of(Bill, JobRegistry(converter=own), **settings).job(payload)
    assert handler_of(Bill, JobRegistry(converter=own), unknown_keys="drop").read(payload) == Bill(Money(1))
    loose = with_money(make_plain_converter())
    with pytest.raises(InvalidPayload, match="more"):
        handler_of(Bill, JobRegistry(converter=loose, unknown_keys="refuse")).job(payload)


@attrs.frozen
class Circle:
    size: int


@attrs.frozen
class Square:
    size: int


def test_a_tagged_union_of_the_programs_own() -> None:
    """Two classes with the same fields are refused, until the converter tags them."""
    with pytest.raises(ConfigError, match="Circle"):
        handler_of(Circle | Square)
    converter = pgnotifyq.make_converter()
    configure_tagged_union(Circle | Square, converter)
    for wanted, value in ((Circle | Square, Square(2)), (list[Circle | Square], [Circle(1), Square(2)])):
        handler = handler_of(wanted, JobRegistry(converter=converter))
        assert "Square" in encode(handler.job(value).payload)
        assert handler.read(stored(handler.job(value))) == value
        assert handler.read(stored(handler.job(stored(handler.job(value))))) == value  # given as JSON


def test_results_of_types_of_the_programs_own() -> None:
    """Written by the same converter; a handler's wish is no result."""
    own = with_money(pgnotifyq.make_converter())

    def settled(value: object) -> Any:
        return decide(Returned(value), None, attempt=1, max_attempts=3, retry=RetryPolicy(), random=lambda: 0.5, converter=own)

    assert json.loads(settled({"bill": BILL}).result_json) == {"bill": {"total": "250 ct", "due": "2030-01-01"}}
    assert settled(pgnotifyq.Snooze(5)).delay_seconds == 5


@pytest.mark.parametrize(
    "wrong",
    ["json", cattrs.Converter, json, cattrs.BaseConverter()],
    ids=lambda given: getattr(given, "__name__", type(given).__name__),
)
def test_a_converter_that_is_none(wrong: Any) -> None:
    """It is refused, with what makes one."""
    with pytest.raises(ConfigError, match="make_converter"):
        JobRegistry(converter=wrong)


def test_an_included_handler_keeps_its_converter() -> None:
    """The registry that takes it in has another."""
    inner, outer = JobRegistry(converter=with_money(pgnotifyq.make_converter())), JobRegistry(unknown_keys="refuse")
    handler = handler_of(Bill, inner)
    outer.include(inner)
    job = Verbs("pgnotifyq", outer).new_job({"job_type": "work", "payload": BILL})
    assert outer.get("work").read(stored(job)) == BILL
    assert outer.get("work") is handler


# Versions


def upgrade(payload: Any, version: int) -> Any:
    """To version 3, from any."""
    if version < 2:
        payload["path"] = payload.pop("file")
    return payload | {"width": 10 * version}


@pytest.fixture
def resize() -> Handler:
    return handler_of(Resize, version=3, upgrade=upgrade)


def test_versions(resize: Handler) -> None:
    """The client says its handler's version; what says none is of version 1; older payloads are upgraded, equal ones are not."""
    assert stored(resize.job(Resize("a"))) == {"$version": 3, "path": "a", "width": 64}
    assert resize.read(stored(resize.job(Resize("a")))) == Resize("a", 64)
    assert resize.read({"file": "a"}) == Resize("a", 10)
    assert resize.read({"$version": 1, "file": "a"}) == Resize("a", 10)
    assert resize.read({"$version": 2, "path": "a", "width": 1}) == Resize("a", 20)


def test_a_payload_of_a_later_version(resize: Handler) -> None:
    """A worker leaves it to a newer one; a client refuses it."""
    for handler in (resize, handler_of(Resize), handler_of(dict)):
        with pytest.raises(PayloadTooNew, match=r"version 4.*takes up to"):
            handler.read({"$version": 4, "path": "a"})
    with pytest.raises(InvalidPayload, match="version 4"):
        resize.job({"$version": 4, "path": "a"})


def test_a_payload_that_says_its_version_is_enqueued_as_it_is(resize: Handler) -> None:
    """It is checked by way of its upgrade. So may an older program's payload be handed on, and a job be made twice."""
    older = {"$version": 2, "path": "a", "width": 1}
    assert stored(resize.job(older)) == older
    registry = JobRegistry()
    handler = handler_of(Resize, registry, version=3, upgrade=upgrade)
    verbs = Verbs("pgnotifyq", registry)
    (jobs,) = verbs.new_jobs([handler.job(Resize("a")), NewJob(job_type="work", payload=Resize("a"))])
    assert [encode(job.payload) for job in jobs] == ['{"$version":3,"path":"a","width":64}'] * 2
    with pytest.raises(InvalidPayload, match="cannot be upgraded from version 1 to 3: KeyError"):
        resize.job({"$version": 1, "path": "a"})


@pytest.mark.parametrize("version", [0, -1, "3", None, 2.0, True, [3], 10**30], ids=str)
def test_a_version_that_is_none(resize: Handler, version: Any) -> None:
    """Undecodable, or too new; never another error."""
    with pytest.raises(PayloadUndecodable, match="version"):
        resize.read({"$version": version, "path": "a"})


@pytest.mark.parametrize("value", [[1, 2], [], 5, "text", None], ids=str)
def test_versions_of_payloads_that_are_no_objects(value: Any) -> None:
    """They stand in an object; raw SQL may leave that out."""
    handler = handler_of(list[int] | int | str | None, version=2, upgrade=lambda payload, _: [payload])
    assert stored(handler.job(value)) == {"$version": 2, "$payload": value}
    assert handler.read(stored(handler.job(value))) == value
    if isinstance(value, int):
        assert handler.read(value) == [value]


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00")), st.integers() | st.none()))
def test_a_dict_comes_back_as_it_went_in(payload: dict[str, Any]) -> None:
    """With a version too, unless its keys are the reserved ones."""
    handler = handler_of(dict, version=2, upgrade=lambda payload, _: payload)
    if not payload.keys() & {"$version", "$payload"}:
        assert handler.read(stored(handler.job(payload))) == payload


def test_an_upgrade_sees_plain_json_and_leaves_the_job_alone() -> None:
    """The payload that it is given is without the version, and is its own at the top."""
    seen: list[Any] = []

    def note(payload: Any, version: int) -> Any:
        seen.append((dict(payload), version))
        payload.clear()
        return {"path": "new"}

    payload = {"$version": 1, "path": "old"}
    assert handler_of(Resize, version=2, upgrade=note).read(payload) == Resize("new")
    assert (seen, payload) == ([({"path": "old"}, 1)], {"$version": 1, "path": "old"})


@pytest.mark.parametrize("given_back", [None, 5, [], {"width": 1}], ids=str)
def test_an_upgrade_whose_payload_does_not_fit(given_back: Any) -> None:
    """Undecodable, as if it had been stored so."""
    with pytest.raises(PayloadUndecodable, match="does not fit Resize"):
        handler_of(Resize, version=2, upgrade=lambda *_: given_back).read({"path": "a"})


def test_a_payload_that_its_version_makes_too_large() -> None:
    """The bytes of the version count."""
    handler = handler_of(dict, version=2, upgrade=upgrade)
    room = PAYLOAD_BYTES_MAX - len('{"$version":2,"a":""}')
    assert handler.job({"a": "x" * room}).payload.size_bytes == PAYLOAD_BYTES_MAX
    assert handler.job({"a": "é" + "x" * (room - 2)}).payload.size_bytes == PAYLOAD_BYTES_MAX
    with pytest.raises(PayloadTooLarge):
        handler.job({"a": "x" * (room + 1)})


async def wait_first(payload: Any, version: int) -> Any:
    return payload


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"version": 2}, "upgrade=a function"),
        ({"upgrade": upgrade}, "at version 1 say none"),
        ({"version": 0}, "out of range"),
        ({"version": "2", "upgrade": upgrade}, "out of range"),
        ({"version": True}, "out of range"),
        ({"version": 2, "upgrade": "upgrade"}, "plain function"),
        ({"version": 2, "upgrade": wait_first}, "plain function"),
    ],
    ids=["no upgrade", "nothing to upgrade", "0", "a text", "a truth", "an upgrade by name", "an async upgrade"],
)
def test_a_version_that_cannot_be_honoured(settings: dict[str, Any], why: str) -> None:
    """It is refused when the handler is registered."""
    with pytest.raises(ConfigError, match=f"work: .*{why}"):
        handler_of(Resize, **settings)


def test_a_version_of_a_whole_job() -> None:
    """Nothing upgrades a payload that nobody reads."""
    with pytest.raises(ConfigError, match="whole job"):
        handler_of(pgnotifyq.Job, version=2, upgrade=upgrade)
    assert handler_of(pgnotifyq.Job).read({"$version": 9}) == {"$version": 9}


def test_nothing_of_versions_is_written_at_version_1() -> None:
    """A handler that asks for nothing is given on what was given."""
    payload = {"a": 1}
    assert handler_of(Any).checked(payload) is payload
    assert stored(handler_of(dict).job(payload)) == payload
    with pytest.raises(InvalidPayload, match="version 2"):
        handler_of(dict).job({"$version": 2})
    with pytest.raises(InvalidPayload, match="asks for an object"):
        handler_of(dict).job([1])
    assert stored(handler_of(Resize).job(Resize("a"))) == {"path": "a", "width": 64}


# None


@attrs.frozen
class AllDefault:
    count: int = 1


def test_none_is_not_a_class_whose_fields_have_defaults() -> None:
    """A handler that takes both is given what was enqueued."""
    handler = handler_of(AllDefault | None)
    assert handler.read(stored(handler.job(None))) is None
    assert handler.read(stored(handler.job(AllDefault()))) == AllDefault()
    assert handler_of(Resize | None).read({}) is None  # as SQL enqueues nothing


# What stands beside a type


class Between(NamedTuple):
    low: Annotated[int, pydantic.Field(ge=0)]


@attrs.frozen
class Part:
    count: Annotated[int, pydantic.Field(gt=0)]
    kind: Literal["part"] = "part"


@pytest.mark.parametrize(
    ("wanted", "good", "bad", "why"),
    [
        (Annotated[int, pydantic.Field(gt=0)], 1, 0, "greater than 0"),
        (Annotated[list[Decimal], pydantic.Field(max_length=1)], ["1.5"], ["1", "2"], "at most 1 item"),
        (Part, {"count": 1}, {"count": 0}, r"greater than 0 @ payload\.count"),
        (Between, [0], [-1], "greater than or equal to 0"),
        (dict[str, Annotated[str, pydantic.Field(pattern="^a")]], {"k": "a"}, {"k": "b"}, "pattern"),
    ],
    ids=str,
)
def test_what_pydantic_says_beside_a_type_is_honoured(wanted: Any, good: Any, bad: Any, why: str) -> None:
    """Not only in models."""
    handler = handler_of(wanted)
    handler.job(good)
    with pytest.raises(InvalidPayload, match=why):
        handler.job(bad)
