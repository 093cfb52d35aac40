# pyright: strict
"""Handlers of every kind, as a program declares them."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import functools
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Generic, NamedTuple, TypedDict, TypeVar
from uuid import UUID

import attrs
import pydantic

import pgnotifyq

registry = pgnotifyq.JobRegistry()


@attrs.frozen
class Resize:
    path: str
    width: int


@attrs.define
class Crop:
    path: str


@dataclasses.dataclass
class Mail:
    to: str


class Order(pydantic.BaseModel):
    number: int


class Point(NamedTuple):
    x: int
    y: int


class Hit(TypedDict):
    page: str


class Colour(enum.Enum):
    RED = "red"


@registry.handler(
    "resize",
    max_attempts=5,
    timeout_seconds=30.0,
    retry=pgnotifyq.RetryPolicy(),
    cooperative=True,
    queue="images",
    retry_on=(OSError,),
    discard_on=LookupError,
)
async def resize(payload: Resize, ctx: pgnotifyq.JobContext) -> dict[str, int]:
    return {"width": payload.width, "attempt": ctx.attempt}


@registry.handler
async def crop(payload: Crop) -> Resize:
    return Resize(payload.path, 1)


@registry.handler("mail")
def mail(payload: Mail, ctx: pgnotifyq.JobContext) -> int:
    return len(payload.to) + ctx.attempt


@registry.handler
def order(payload: Order) -> list[int]:
    return [payload.number]


@registry.handler()
async def hit(payload: Hit) -> None:
    print(payload["page"])


@registry.handler
async def plain(payload: dict[str, object]) -> str:
    return str(payload)


@registry.handler
async def anything(payload: dict[str, Any], ctx: pgnotifyq.JobContext) -> Any:
    return payload["x"]


@registry.handler
async def untold(payload: Any) -> str:
    return str(payload)


@registry.handler
async def nothing(payload: None) -> Hit:
    return {"page": "/"}


@registry.handler
async def perhaps(payload: Resize | None, ctx: pgnotifyq.JobContext | None = None) -> bool:
    return payload is None or ctx is None


@registry.handler
async def several(payload: list[Resize]) -> float:
    return float(len(payload))


@registry.handler
async def whole(job: pgnotifyq.Job, ctx: pgnotifyq.JobContext) -> str:
    return f"{job.job_type} {ctx.attempt}"


@registry.handler
def price(payload: Decimal) -> str:
    return str(payload)


@registry.handler
def day(payload: dt.date) -> str:
    return payload.isoformat()


@registry.handler
def path(payload: Path) -> str:
    return payload.name


@registry.handler
def colour(payload: Colour) -> str:
    return payload.value


@registry.handler
def point(payload: Point) -> int:
    return payload.x


@registry.handler
def one(payload: UUID) -> str:
    return payload.hex


T = TypeVar("T")


@attrs.frozen
class Box(Generic[T]):
    inside: T


def upgrade(payload: Any, version: int) -> Any:
    return payload if version > 1 else {"inside": payload["outside"]}


@registry.handler("box", version=2, upgrade=upgrade, unknown_keys="refuse")
async def box(payload: Box[dt.date]) -> bytes:
    return payload.inside.isoformat().encode()


@registry.handler
async def either(payload: Resize | list[Resize] | UUID) -> None:
    print(payload)


@registry.handler
async def bounded(payload: Annotated[int, pydantic.Field(gt=0)]) -> None:
    print(payload)


strict = pgnotifyq.JobRegistry(unknown_keys="refuse", converter=pgnotifyq.make_converter())


class Sender:
    """An object that is called."""

    async def __call__(self, payload: Mail) -> str:
        return payload.to


async def bound(server: str, payload: Mail, ctx: pgnotifyq.JobContext) -> str:
    return f"{server} {payload.to} {ctx.attempt}"


class Store:
    job_type = "store"

    async def handle(self, job: pgnotifyq.Job, ctx: pgnotifyq.JobContext) -> None: ...


called = registry.handler("called")(Sender())
partial = registry.handler("partial")(functools.partial(bound, "smtp"))
store = registry.register(Store())
images = registry.handler(queue="images", max_attempts=2)


@images("grey", timeout_seconds=5)
async def grey(payload: Resize) -> str:
    return payload.path


@registry.handler("embed", batch_size=100, saved_type=Point)
async def embed(jobs: list[pgnotifyq.BatchItem[Resize]]) -> list[int]:
    return [item.payload.width for item in jobs]


@registry.handler("embed_in_thread", batch_size=100)
def embed_in_thread(jobs: list[pgnotifyq.BatchItem[Mail]]) -> None:
    for item in jobs:
        with item:
            item.settle(str(item.payload))
