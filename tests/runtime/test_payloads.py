"""Payloads of every kind through a real worker: by a client's handler, and by SQL; versions; what a dead letter says."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import json
import uuid
from decimal import Decimal
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, TypedDict, TypeVar

import attrs
import pydantic
import pytest

import pgnotifyq
from pgnotifyq import EventName, Handler, Job, JobContext, JobRegistry, open_client
from pgnotifyq.runtime.executor import TOO_NEW_SECONDS
from tests.asked import value
from tests.runtime.support import Workplace

T = TypeVar("T")
Sku = NewType("Sku", str)


class Colour(enum.Enum):
    RED = "red"


@attrs.frozen
class Item:
    sku: Sku
    price: Decimal = Decimal("1.10")
    colour: Colour = Colour.RED


@dataclasses.dataclass
class Cart:
    items: list[Item]
    by_id: dict[str, Item] = dataclasses.field(default_factory=dict)
    wait: dt.timedelta = dt.timedelta(seconds=1.5)


@attrs.frozen
class Box(Generic[T]):
    inside: T


class Row(TypedDict, total=False):
    at: dt.datetime
    data: bytes


class Point(NamedTuple):
    x: int
    y: float = 0.5


class Order(pydantic.BaseModel):
    sku: str
    count: int = pydantic.Field(gt=0)


class Refund(pydantic.BaseModel):
    order: uuid.UUID


@attrs.frozen
class Buy:
    kind: Literal["buy"]


@attrs.frozen
class Sell:
    kind: Literal["sell"]
    price: Decimal


ITEM, ID, NOW = Item(Sku("a")), uuid.UUID(int=7), dt.datetime(2030, 1, 1, 12, tzinfo=dt.UTC)
KINDS: list[tuple[Any, Any]] = [
    (Item, ITEM),
    (Cart, Cart([ITEM], {"k": ITEM})),
    (Row, {"at": NOW, "data": b"\x00\xff"}),
    (Point, Point(1)),
    (Order, Order(sku="a", count=1)),
    (Order | Refund, Refund(order=ID)),
    (list[Order], [Order(sku="a", count=1)]),
    (Item | None, None),
    (Item | None, ITEM),
    (Buy | Sell, Sell("sell", Decimal(2))),
    (Item | list[Item], [ITEM]),
    (dict[str, Item], {"k": ITEM}),
    (Box[dt.date], Box(dt.date(2030, 1, 1))),
    (Box[list[Item]], Box([ITEM])),
    (uuid.UUID, ID),
    (dt.datetime, NOW),
    (dt.time, dt.time(1, 2, 3, 4)),
    (dt.timedelta, dt.timedelta(days=-1, microseconds=1)),
    (Decimal, Decimal("0.10")),
    (Colour, Colour.RED),
    (bytes, b"\x00"),
    (Literal["a", 5], 5),
    (Sku, Sku("a")),
    (Annotated[int, pydantic.Field(gt=0)], 3),
]


async def test_each_kind(dsn: str, place: Workplace) -> None:
    """What is enqueued reaches the handler equal and of its type; its result is stored as JSON of the same shape."""
    registry, given = JobRegistry(), {}
    handlers: list[tuple[Handler[Any], Any]] = []
    for number, (wanted, enqueued) in enumerate(KINDS):

        async def work(payload: Any, ctx: JobContext) -> Any:
            given[ctx.job.id] = payload
            return payload

        work.__annotations__["payload"] = wanted
        handlers.append((registry.handler(f"kind_{number}")(work), enqueued))
    await place.start(registry)
    async with open_client(dsn, registry=registry) as client:
        for handler, enqueued in handlers:
            job = await client.wait(await client.enqueue(handler, enqueued), timeout_seconds=20)
            assert (given[job.id], type(given[job.id])) == (enqueued, type(enqueued))
            assert job.result == job.payload


async def test_a_model_that_does_not_fit(dsn: str, place: Workplace) -> None:
    """Pydantic's words: refused at the client that has the handler, in the dead letter of a job that came by SQL."""
    registry = JobRegistry()

    @registry.handler
    async def order(payload: list[Order]) -> None:
        """Do nothing."""

    worker = await place.start(registry)
    payload = [{"sku": "a", "count": 1}, {"sku": "secret", "count": -77}]
    async with open_client(dsn, registry=registry) as client:
        with pytest.raises(pgnotifyq.InvalidPayload, match=r"count: Input should be greater than 0 @ payload\[1\]"):
            await client.enqueue("order", payload)
    job_id = await place.enqueue("order", payload=json.dumps(payload))
    await worker.log.wait(EventName.JOB_DEAD, job_id=job_id)
    letter = await place.dead_letter(job_id)
    assert letter["reason"] == "undecodable"
    assert "count: Input should be greater than 0 @ payload[1]" in letter["error_message"]
    assert "secret" not in letter["error_message"] and "77" not in letter["error_message"]


async def test_the_path_of_a_field_in_a_dead_letter(place: Workplace) -> None:
    """Of each field that does not fit; unknown keys are among them if the handler refuses them."""
    registry = JobRegistry(unknown_keys="refuse")

    @registry.handler
    async def cart(payload: Cart) -> None:
        """Do nothing."""

    worker = await place.start(registry)
    job_id = await place.enqueue("cart", payload='{"items": [{"sku": 5}, {"sku": "a", "widht": 1}], "by_id": {"k": []}}')
    await worker.log.wait(EventName.JOB_DEAD, job_id=job_id)
    told = (await place.dead_letter(job_id))["error_message"]
    for each in ("not a text @ payload.items[0].sku", "widht", "payload.items[1]", "not an object @ payload.by_id['k']"):
        assert each in told


def resize_of(version: int, seen: list[Any], **settings: Any) -> JobRegistry:
    """Return a registry as a release has it whose payloads are of a version."""
    registry = JobRegistry()

    def upgrade(payload: Any, version: int) -> Any:
        return {"path": payload["file"]} if version < 2 else payload

    @registry.handler("resize", version=version, upgrade=upgrade if version > 1 else None, **settings)
    async def resize(payload: dict[str, Any]) -> None:
        seen.append(payload)

    return registry


async def test_an_older_payload_is_upgraded(dsn: str, place: Workplace) -> None:
    """One of SQL says no version, and is of the first. What is stored stays as it was enqueued."""
    seen: list[Any] = []
    registry = resize_of(2, seen)
    worker = await place.start(registry)
    older = await place.enqueue("resize", payload='{"file": "a"}')
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=older)
    assert (await place.job(older))["payload"] == {"file": "a"}
    async with open_client(dsn, registry=registry) as client:
        job = await client.wait(await client.enqueue("resize", {"path": "b"}), timeout_seconds=20)
    assert job.payload == {"$version": 2, "path": "b"}
    assert seen == [{"path": "a"}, {"path": "b"}]


async def test_an_upgrade_that_fails(place: Workplace) -> None:
    """A dead letter, with what it raised; once requeued by a release that can, it runs."""
    seen: list[Any] = []
    worker = await place.start(resize_of(2, seen))
    job_id = await place.enqueue("resize", payload='{"fiel": "a"}')
    await worker.log.wait(EventName.JOB_DEAD, job_id=job_id)
    letter = await place.dead_letter(job_id)
    assert (letter["reason"], letter["payload"]) == ("undecodable", {"fiel": "a"})
    assert "cannot be upgraded from version 1 to 2: KeyError: 'file'" in letter["error_message"]


async def test_a_later_payload_waits_for_a_newer_worker(dsn: str, place: Workplace) -> None:
    """In a rolling deploy: an old worker gives it back uncharged, however often, and a new one runs it."""
    old_saw: list[Any] = []
    new_saw: list[Any] = []
    new = resize_of(2, new_saw)
    worker = await place.start(resize_of(1, old_saw, max_attempts=1))
    async with open_client(dsn, registry=new) as client:
        job_id = await client.enqueue("resize", {"path": "a"})
    for time in (1, 2):
        told = await worker.log.wait(EventName.JOB_SNOOZED, job_id=job_id, count=time)
        assert float(told["delay_seconds"]) == TOO_NEW_SECONDS
        job = await place.job(job_id)
        assert (job["status"], job["attempts"]) == ("pending", 0)
        assert "version 2, the handler takes up to 1" in job["error_message"]
        if time == 1:
            await value(place.connection, "update pgnotifyq.jobs set scheduled_at = now() returning true")
    await worker.leave()
    newer = await place.start(new)
    await value(place.connection, "update pgnotifyq.jobs set scheduled_at = now() returning true")
    await newer.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    assert (old_saw, new_saw) == ([], [{"path": "a"}])


class Money:
    def __init__(self, cents: int) -> None:
        self.cents = cents


async def test_a_converter_of_the_programs_own(dsn: str, place: Workplace) -> None:
    """It writes and reads payloads, and writes results, a returned one and one of a transaction; a class handler's too."""
    converter = pgnotifyq.make_converter()
    converter.register_unstructure_hook(Money, lambda money: f"{money.cents} ct")
    converter.register_structure_hook(Money, lambda text, _: Money(int(text.removesuffix(" ct"))))
    registry = JobRegistry(converter=converter)

    @registry.handler
    async def double(payload: dict[str, Money], ctx: JobContext) -> Money:
        return Money(2 * payload["price"].cents)

    @registry.handler
    async def in_transaction(payload: None, ctx: JobContext) -> None:
        async with ctx.transaction(complete=True, result=[Money(5)]):
            """Nothing else."""

    class Store:
        job_type = "store"

        async def handle(self, job: Job, ctx: JobContext) -> list[Any]:
            return [job.payload, Money(1)]

    store = registry.register(Store())
    await place.start(registry)
    async with open_client(dsn, registry=registry) as client:
        assert (await client.wait(await client.enqueue(double, {"price": Money(4)}), timeout_seconds=20)).result == "8 ct"
        assert (await client.wait(await client.enqueue(in_transaction), timeout_seconds=20)).result == ["5 ct"]
        job = await client.wait(await client.enqueue(store, {"price": Money(4)}), timeout_seconds=20)
        assert job.result == [{"price": "4 ct"}, "1 ct"]
