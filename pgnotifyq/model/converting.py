"""The converter: how JSON becomes the types that handlers ask for, and how these become JSON.

cattrs makes the types. `make_converter` adds to cattrs what JSON lacks (times, decimals, bytes,
paths, named tuples, models of pydantic's). It also makes cattrs refuse a value of another kind
instead of converting it. docs/payloads.md is the page for users.
"""

from __future__ import annotations

import binascii
import datetime as dt
import functools
import inspect
import json
import math
import operator
import sys
import threading
import types
import typing
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from enum import Enum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

import attrs
import cattrs
from cattrs.gen import mapping_structure_factory
from cattrs.preconf import json as cattrs_json

if TYPE_CHECKING:
    from cattrs import Converter

Hook = Callable[[Any, Any], Any]
# Made once. json.dumps makes a new encoder at each call that has options.
json_text = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


class Unfit(ValueError):
    """A value is not of the wanted kind. The text leaves the value out: payloads are private."""


@functools.cache
def default_converter() -> Converter:
    """Return the converter for handlers that have none of their own."""
    return make_converter()


@functools.cache
def converter_that(unknown_keys: str, own: Converter | None) -> Converter | None:
    """Return the converter that refuses or drops unknown keys; None: pgnotifyq's own, which drops.

    A program's own converter is copied, with the hooks that it has by now.
    """
    if own is None and unknown_keys == "drop":
        return None
    return (own or default_converter()).copy(forbid_extra_keys=unknown_keys == "refuse")


def make_converter(**settings: Any) -> Converter:
    """Make pgnotifyq's converter, to add hooks to: `JobRegistry(converter=...)` takes it.

    It is cattrs' JSON converter with more types, and it refuses a value of another kind. By default
    cattrs converts it by calling the type: bool("false") is True, int(1.9) is 1, str({}) is "{}",
    list("ab") is ["a", "b"]. A payload from raw SQL would run with values that nobody wrote.

    Args:
        settings: of `cattrs.Converter`: `use_alias=True`, `omit_if_default=True`, ...
    """
    # Refuse an unknown type when its hook is made. Some versions of cattrs do it only at the first
    # use.
    converter = cattrs_json.make_converter(**{"structure_fallback_factory": _refuse} | settings)
    for as_text in _AS_TEXT:
        converter.register_unstructure_hook(as_text, str)
        converter.register_structure_hook(as_text, _take_text)
    # Registering the class is not enough: a path is a PosixPath or a WindowsPath.
    converter.register_unstructure_hook_func(_is_path, str)
    converter.register_structure_hook_func(_is_path, _take_text)
    converter.register_unstructure_hook(Decimal, str)
    converter.register_structure_hook(Decimal, _take_decimal)
    converter.register_unstructure_hook(bytes, lambda value: binascii.b2a_base64(value, newline=False).decode("ascii"))
    converter.register_structure_hook(bytes, _take_bytes)
    converter.register_unstructure_hook(dt.time, dt.time.isoformat)
    converter.register_structure_hook(dt.time, lambda value, _: dt.time.fromisoformat(value))
    converter.register_unstructure_hook(dt.timedelta, _duration_text)
    converter.register_structure_hook(dt.timedelta, _take_duration)
    for kind, take in ((bool, _take_bool), (int, _take_int), (float, _take_float), (str, _take_str)):
        converter.register_structure_hook(kind, take)
    converter.register_structure_hook_func(lambda wanted: wanted is object, lambda value, _: value)
    converter.register_structure_hook_func(lambda wanted: wanted is types.NoneType, _take_none)
    # cattrs first asks the hook that was registered last. If a factory has two parameters, cattrs
    # gives it the converter that asks. That may be a copy of this one.
    for is_it, json_kind, name in ((_is_array, list, "an array"), (_is_record, dict, "an object")):
        converter.register_structure_hook_factory(*_around(is_it, functools.partial(_taking, json_kind, name)))
    converter.register_structure_hook_factory(_is_mapping, _mapping_hook)
    converter.register_structure_hook_factory(*_around(is_union, _union_hook))
    converter.register_structure_hook_factory(_is_named_tuple, _named_tuple_hook)
    converter.register_unstructure_hook_factory(_is_named_tuple, _named_tuple_dump)
    converter.register_structure_hook_factory(_is_constrained, _constrained_hook)
    converter.register_structure_hook_factory(is_pydantic, _pydantic_hook)
    converter.register_unstructure_hook_func(is_pydantic, _dump_pydantic)
    return converter


def _take_none(value: Any, _: Any) -> None:
    if value is not None and value != {}:  # {} is stored when nothing is enqueued
        raise Unfit("not nothing")


def _refuse(wanted: Any) -> Hook:
    raise cattrs.StructureHandlerNotFoundError("", type_=wanted)


# Values of these types are written as text, and made from it. `wanted` is the type itself.
_AS_TEXT = (UUID, IPv4Address, IPv6Address, IPv4Network, IPv6Network)
_passing = threading.local()  # the types whose guard now looks for cattrs' own hook


def _around(
    is_it: Callable[[Any], bool], hook_for: Callable[[Any, Converter, Callable[[], Hook]], Hook]
) -> tuple[Callable[[Any], bool], Callable[[Any, Converter], Hook]]:
    """Return a predicate and a factory of hooks that stand around the converter's own hooks.

    `hook_for` is given a function that asks the converter for the inner hook. While that function
    asks, the predicate says no. So the converter finds its own hook.
    """

    def is_ours(wanted: Any) -> bool:
        return (is_it, wanted) not in getattr(_passing, "types", ()) and is_it(wanted)

    def make(wanted: Any, converter: Converter) -> Hook:
        def inner() -> Hook:
            _passing.types = (*getattr(_passing, "types", ()), (is_it, wanted))
            try:
                return converter.get_structure_hook(wanted, cache_result=False)
            finally:
                _passing.types = _passing.types[:-1]

        return hook_for(wanted, converter, inner)

    return is_ours, make


def _taking(kind: type, name: str, wanted: Any, _: Converter, inner_hook: Callable[[], Hook]) -> Hook:
    """Return a hook that takes JSON of one kind only: `list` or `dict`."""
    inner = inner_hook()
    typed = typing.get_origin(wanted) or wanted
    keys = typed.__required_keys__ | typed.__optional_keys__ if typing.is_typeddict(typed) else None

    def take(value: Any, _: Any) -> Any:
        if not isinstance(value, kind):
            raise Unfit(f"not {name}")
        taken = inner(value, wanted)
        if keys is not None and taken.keys() - keys:  # cattrs leaves unknown keys in a TypedDict
            return {key: item for key, item in taken.items() if key in keys}
        return taken

    return take


def _union_hook(wanted: Any, converter: Converter, inner_hook: Callable[[], Hook]) -> Hook:
    """Return the hook of a union: by the kind of JSON first, then as cattrs or pydantic tells.

    cattrs tells attrs classes and dataclasses by a field that only one of them has, or by a field
    of Literals. pydantic tells models.

    Raises:
        TypeError: two types of the union are the same in JSON. Nothing says which one was meant.
    """
    members: dict[str | None, list[Any]] = {}  # by kind
    for member in typing.get_args(wanted):
        members.setdefault(_json_kind(member), []).append(member)
    for kind in ("text", "number"):
        alike = [each for each in members.get(kind, ()) if typing.get_origin(bare(each)) is not Literal]
        if len(alike) > 1 and not set(alike) <= {int, float}:
            raise TypeError(f"{' and '.join(map(name_of, alike))} are both {_AS_SAID[kind]} in JSON")
    some = [kind for kind in members if kind != "null"]
    mixed = [each for each in members.get(None, ()) if isinstance(bare(each), type) and issubclass(bare(each), Enum)]
    if mixed and len(some) > 1:
        raise TypeError(f"{name_of(mixed[0])} is of several kinds in JSON")
    if len(members) == 1 and all(map(is_pydantic, members.get("object", [None]))):
        return _adapter_hook(wanted, wanted, converter)
    if len(members) == 1 or (None in members and len(some) > 1):
        return inner_hook()
    parts = {kind: functools.reduce(operator.or_, alike[1:], alike[0]) for kind, alike in members.items()}
    hooks = {kind: (part, converter.get_structure_hook(part)) for kind, part in parts.items()}
    rest = hooks.get(None)  # the hook of one type, whose values may be of any kind

    def take(value: Any, _: Any) -> Any:
        found = hooks.get(JSON_KINDS.get(type(value)), rest)
        if found is None:
            raise Unfit(f"not {' or '.join(_AS_SAID[kind] for kind in hooks if kind is not None)}")
        part, hook = found
        return hook(value, part)

    return take


JSON_KINDS = {str: "text", bool: "boolean", int: "number", float: "number", list: "array", dict: "object", types.NoneType: "null"}
_AS_SAID = {
    "text": "text", "boolean": "a boolean", "number": "a number", "array": "an array", "object": "an object", "null": "null",
}  # fmt: skip


def _json_kind(wanted: Any) -> str | None:
    """Return the kind of JSON that a type is written as; None: one of several, or not known."""
    plain = bare(wanted)
    kind = typing.get_origin(plain) or plain
    values = typing.get_args(plain) if kind is Literal else ()
    if isinstance(kind, type) and issubclass(kind, Enum):
        values = tuple(each.value for each in kind)
    if values:
        kinds = {JSON_KINDS.get(type(each.value if isinstance(each, Enum) else each)) for each in values}
        return kinds.pop() if len(kinds) == 1 else None
    if _is_text(kind):
        return "text"
    if is_pydantic(kind):
        return None if getattr(kind, "__pydantic_root_model__", False) else "object"
    if _is_array(plain) or _is_named_tuple(kind):
        return "array"
    if _is_record(plain) or _is_mapping(plain):
        return "object"
    return {bool: "boolean", int: "number", float: "number", types.NoneType: "null"}.get(kind)


def bare(wanted: Any) -> Any:
    """Return a type without its NewType and its Annotated."""
    while True:
        if typing.get_origin(wanted) is typing.Annotated:
            wanted = wanted.__origin__
        elif isinstance(wanted, typing.NewType):
            wanted = wanted.__supertype__
        else:
            return wanted


def _is_array(wanted: Any) -> bool:
    kind = typing.get_origin(wanted) or wanted
    return (
        isinstance(kind, type) and issubclass(kind, (typing.Sequence, typing.AbstractSet)) and not issubclass(kind, (str, bytes))
    )


def _is_record(wanted: Any) -> bool:
    kind = typing.get_origin(wanted) or wanted
    return is_structured(kind) or typing.is_typeddict(kind) or (isinstance(kind, type) and issubclass(kind, defaultdict))


def _is_mapping(wanted: Any) -> bool:
    kind = typing.get_origin(wanted) or wanted
    return isinstance(kind, type) and issubclass(kind, Mapping) and not _is_record(kind)


def _mapping_hook(wanted: Any, converter: Converter) -> Hook:
    # cattrs does the same. But it would register its own hook for the type, past the one made here.
    kind = typing.get_origin(wanted) or wanted
    made_of = dict if inspect.isabstract(kind) else kind
    values = int if issubclass(kind, Counter) else attrs.NOTHING
    inner = mapping_structure_factory(wanted, converter, made_of, val_type=values)
    return _taking(dict, "an object", wanted, converter, lambda: inner)


def _is_named_tuple(wanted: Any) -> bool:
    return isinstance(wanted, type) and issubclass(wanted, tuple) and hasattr(wanted, "_field_defaults")


def _named_tuple_hook(wanted: Any, converter: Converter) -> Hook:
    """Return the hook of a named tuple, an array in JSON.

    cattrs does not resolve a named tuple's annotations if they are strings. This hook does.
    """
    hints = typing.get_type_hints(wanted, include_extras=True)
    hooks = [(hints.get(name, Any), converter.get_structure_hook(hints.get(name, Any))) for name in wanted._fields]
    needed = len(hooks) - len(wanted._field_defaults)

    def take(value: Any, _: Any) -> Any:
        if not isinstance(value, list) or not needed <= len(value) <= len(hooks):
            raise Unfit(f"not an array of {needed} to {len(hooks)}")
        return wanted(*(hook(item, kind) for item, (kind, hook) in zip(value, hooks, strict=False)))

    return take


def _named_tuple_dump(_: Any, converter: Converter) -> Callable[[Any], Any]:
    return lambda value: [converter.unstructure(item) for item in value]


def is_union(wanted: Any) -> bool:
    """Tell whether a type is a union."""
    return typing.get_origin(wanted) in {typing.Union, types.UnionType}


def _is_path(wanted: Any) -> bool:
    return isinstance(wanted, type) and issubclass(wanted, PurePath)


def _is_text(kind: Any) -> bool:
    texts = (str, bytes, Decimal, dt.date, dt.time, dt.timedelta, PurePath, *_AS_TEXT)
    return isinstance(kind, type) and issubclass(kind, texts)


def is_pydantic(wanted: object) -> bool:
    """Tell whether a type is a model or a dataclass of pydantic's, without importing it."""
    return isinstance(wanted, type) and inspect.getattr_static(wanted, "__pydantic_validator__", None) is not None


def _pydantic_hook(wanted: Any, converter: Converter) -> Hook:
    """Return the hook of a model. If the model says what to do with unknown keys, that counts."""
    if not getattr(wanted, "__pydantic_complete__", True):
        wanted.model_rebuild()  # or it raises, and names what is not defined
    settings = _pydantic_settings([wanted], converter)

    def take(value: Any, _: Any) -> Any:
        # Pydantic reads JSON here, not Python values. A strict model takes a date from a text only
        # if the text is JSON.
        return wanted.__pydantic_validator__.validate_json(json_text(value), **settings)

    return take


def _pydantic_settings(models: Iterable[Any], converter: Converter) -> dict[str, Any]:
    """Return how models are to validate."""
    version = _pydantic_version()
    said: dict[str, Any] = {"by_alias": True, "by_name": True} if version >= (2, 11) else {}
    configs = [getattr(each, "model_config", None) or getattr(each, "__pydantic_config__", None) or {} for each in models]
    if converter.forbid_extra_keys and not any("extra" in config for config in configs):
        if version < (2, 12):
            raise TypeError("pydantic before 2.12 refuses unknown keys only of models that say extra='forbid'")
        said["extra"] = "forbid"
    return said


def _pydantic_version() -> tuple[int, ...]:
    """Return the version of pydantic. The program has imported it: there is a model."""
    return tuple(int(part) for part in sys.modules["pydantic"].VERSION.split(".")[:2])


def _is_constrained(wanted: Any) -> bool:
    """Tell whether a type is annotated with something that pydantic honours and cattrs ignores."""
    return typing.get_origin(wanted) is typing.Annotated and any(
        (type(each).__module__ or "").startswith(("pydantic", "annotated_types")) for each in wanted.__metadata__
    )


def _constrained_hook(wanted: Any, converter: Converter) -> Hook:
    base = bare(wanted)
    if is_union(base) and all(each is types.NoneType or is_pydantic(each) for each in typing.get_args(base)):
        return _adapter_hook(wanted, base, converter)
    inner, adapter = converter.get_structure_hook(base), _adapter(wanted)
    return lambda value, _: adapter.validate_python(inner(value, base))


def _adapter_hook(wanted: Any, union: Any, converter: Converter) -> Hook:
    """Return the hook of a union of models. Pydantic tells them apart by its own rules."""
    adapter = _adapter(wanted)
    settings = _pydantic_settings(filter(is_pydantic, typing.get_args(union)), converter)
    return lambda value, _: adapter.validate_json(json_text(value), **settings)


def _adapter(wanted: Any) -> Any:
    pydantic = sys.modules.get("pydantic")  # a program without models does not import it
    if pydantic is None:
        raise TypeError(f"only pydantic checks what stands beside the type in {name_of(wanted)}: import pydantic")
    return pydantic.TypeAdapter(wanted)


def _dump_pydantic(value: Any) -> Any:
    if callable(dump := getattr(value, "model_dump", None)):
        return dump(mode="json", by_alias=True)
    return type(value).__pydantic_serializer__.to_python(value, mode="json", by_alias=True)


# `wanted` is the type itself, or an enum that inherits from it. Both are made by the same call.


def _take_bool(value: Any, _: Any) -> bool:
    if not isinstance(value, bool):
        raise Unfit("not a boolean")
    return value


def _take_int(value: Any, wanted: Any) -> Any:
    # A text of digits is taken: keys of JSON objects are texts, and a dict[int, ...] has such keys.
    if isinstance(value, bool) or not isinstance(value, (int, str, float)) or (isinstance(value, float) and value != int(value)):
        raise Unfit("not a whole number")
    return wanted(value)


def _take_float(value: Any, wanted: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, str, float)) or not math.isfinite(float(value)):
        raise Unfit("not a number")
    return wanted(value)


def _take_str(value: Any, wanted: Any) -> Any:
    if not isinstance(value, str):
        raise Unfit("not a text")
    return wanted(value)


def _take_text(value: Any, wanted: Any) -> Any:
    if not isinstance(value, str):  # IPv4Address(5) is 0.0.0.5
        raise Unfit("not a text")
    return wanted(value)


def _take_decimal(value: Any, _: Any) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, (int, str, float)):
        raise Unfit("not a number")
    try:
        number = Decimal(str(value))
    except ArithmeticError:
        raise Unfit("not a number") from None
    if not number.is_finite():
        raise Unfit("not a finite number")
    return number


def _take_bytes(value: Any, _: Any) -> bytes:
    if not isinstance(value, str):
        raise Unfit("not base64")
    return binascii.a2b_base64(value, strict_mode=True)


# Durations are texts of ISO 8601, in seconds only. A float would lose microseconds of long ones.


def _duration_text(value: dt.timedelta) -> str:
    microseconds = value // dt.timedelta(microseconds=1)
    whole, part = divmod(abs(microseconds), 1_000_000)
    return f"{'-' if microseconds < 0 else ''}PT{whole}{f'.{part:06}' if part else ''}S"


def _take_duration(value: Any, _: Any) -> dt.timedelta:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return dt.timedelta(seconds=value)
    digits = str(value).removeprefix("-")
    if not isinstance(value, str) or not (digits.startswith("PT") and digits.endswith("S")):
        raise Unfit("not a duration in seconds, as PT1.5S is")
    whole, _point, part = digits[2:-1].partition(".")
    length = dt.timedelta(seconds=int(whole), microseconds=int(f"{part:0<6}"[:6]))
    return -length if value.startswith("-") else length


def name_of(wanted: Any) -> str:
    """Return what people call a type."""
    is_class = isinstance(wanted, type) and typing.get_origin(wanted) is None
    return wanted.__name__ if is_class else repr(wanted).replace("typing.", "")


def is_structured(wanted: object) -> bool:
    """Tell whether payloads are structured into a type: an attrs class or a dataclass."""
    return isinstance(wanted, type) and (attrs.has(wanted) or hasattr(wanted, "__dataclass_fields__"))
