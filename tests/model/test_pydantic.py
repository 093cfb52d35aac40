"""Pydantic's models, where it is installed: they come back as they went in, and its own words say what does not fit."""

from __future__ import annotations

import datetime as dt
import json
import subprocess
import sys

import attrs
import pytest

from pgnotifyq.model.errors import PayloadUndecodable
from pgnotifyq.model.payload import encode
from pgnotifyq.model.structuring import structure, understood

pydantic = pytest.importorskip("pydantic")


class Order(pydantic.BaseModel):  # type: ignore[misc,name-defined]  # not installed everywhere
    model_config = pydantic.ConfigDict(strict=True)

    sku: str
    day: dt.date = dt.date(2030, 1, 1)
    count: int = pydantic.Field(1, alias="n", gt=0)


class Orders(pydantic.RootModel[list[Order]]):  # type: ignore[misc,name-defined]
    """A list, as a model."""


@pydantic.dataclasses.dataclass
class Point:
    day: dt.date


@attrs.frozen
class Cart:
    order: Order
    point: Point | None = None


ORDER = Order(sku="a", n=3)
POINT = Point(dt.date(2031, 1, 1))  # type: ignore[call-arg]  # the decorator is untyped here


@pytest.mark.parametrize(
    ("wanted", "value"),
    [
        (Order, ORDER),
        (Order | None, ORDER),
        (list[Order], [ORDER]),
        (dict[str, Order], {"a": ORDER}),
        (Orders, Orders([ORDER])),
        (Point, POINT),
        (Cart, Cart(ORDER, POINT)),
    ],
    ids=str,
)
def test_models_come_back_as_they_went_in(wanted: object, value: object) -> None:
    """Strict ones, those with aliases, and those in other types too."""
    back = structure(json.loads(encode(value)), understood(wanted))
    assert back == value
    assert type(back) is type(value)


def test_a_model_that_does_not_fit_says_so_in_pydantics_words() -> None:
    """And where; without the value, which is the payload's."""
    with pytest.raises(PayloadUndecodable, match=r"Order.*n: Input should be greater than 0") as refused:
        structure({"sku": "secret", "n": -77}, understood(Order))
    assert "77" not in str(refused.value) and "secret" not in str(refused.value)
    with pytest.raises(PayloadUndecodable, match=r"sku: Field required @ payload.order"):
        structure({"order": {}}, understood(Cart))


def test_pydantic_is_not_imported_for_those_who_do_not_use_it() -> None:
    """It takes a tenth of a second, and may not be there."""
    code = (
        "import sys; from pgnotifyq.model import payload, structuring; structuring.understood(list[int]); payload.encode([{1}]); "
        "assert 'pydantic' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
