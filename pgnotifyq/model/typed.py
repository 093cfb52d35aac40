"""For checkers of types: what may be declared as a handler, and what it becomes.

Nothing here is used at run time.
"""

from __future__ import annotations

import datetime as dt
import enum
from collections.abc import Coroutine, Mapping, Sequence
from collections.abc import Set as AbstractSet
from decimal import Decimal
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import PurePath
from typing import Any, ClassVar, Protocol, TypeVar
from uuid import UUID

from pgnotifyq.model.handler import Handler, Payload, Result_co
from pgnotifyq.model.job import Job

Async = Handler[Payload, Result_co, Coroutine[Any, Any, Result_co]]


class _Attrs(Protocol):
    __attrs_attrs__: ClassVar[Any]


class _Dataclass(Protocol):  # pyright takes attrs classes for these
    __dataclass_fields__: ClassVar[dict[str, Any]]


class _Pydantic(Protocol):
    __pydantic_validator__: ClassVar[Any]


class _Context(Protocol):
    """What only a JobContext has. JobContext itself is on a floor above: runtime/context.py."""

    @property
    def job(self) -> Job: ...
    @property
    def attempt(self) -> int: ...
    def is_cancelled(self) -> bool:
        """Tell whether the handler is to stop."""
        ...


# What payloads can be made into: `understood` of model/structuring.py decides.
Decodable = (
    bool | int | float | str | bytes | Decimal | UUID | enum.Enum | None
    | dt.date | dt.time | dt.timedelta | PurePath | IPv4Address | IPv6Address | IPv4Network | IPv6Network
    | Sequence[Any] | AbstractSet[Any] | Mapping[Any, Any] | _Attrs | _Dataclass | _Pydantic
)  # fmt: skip

Fits = TypeVar("Fits", bound=Decodable)
Ctx = TypeVar("Ctx", bound=_Context | None)
