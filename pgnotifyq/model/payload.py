"""Payloads: Python values to JSON text for PostgreSQL, and back to the type that a handler wants.

JSON only: no pickle. What PostgreSQL's jsonb would refuse later is refused here. Some values are
refused, too, that jsonb would accept and a worker could not digest.
"""

from __future__ import annotations

import binascii
import datetime as dt
import functools
import inspect
import json
import math
import threading
import types
import typing
from collections.abc import Callable
from decimal import Decimal
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import PurePath
from typing import TYPE_CHECKING, Any
from uuid import UUID

import attrs
import cattrs
from cattrs.preconf.json import make_converter

from pgnotifyq.model.errors import ConfigError, InvalidPayload, PayloadTooLarge, PayloadUndecodable, text_of

if TYPE_CHECKING:
    from cattrs import Converter

Hook = Callable[[Any, Any], Any]


class _Unfit(ValueError):
    """A value is not of the wanted kind. The text leaves the value out: payloads are private."""


PAYLOAD_BYTES_MAX = 1_048_576  # larger data belongs elsewhere, the payload holds a reference
# For payloads that raw SQL stored. The decoder's own bound differs from one Python to the next.
DECODED_DEPTH_MAX = 500
PAYLOAD_DEPTH_MAX = 64  # deeper is a mistake or an attack; Python's own decoder recurses
SMALL_MAX, SMALL_INTEGER_MAX = 64, 2**63  # bounds of values that `_is_small` looks at
# Python refuses to print integers of more than 4,300 digits, PostgreSQL of more than 131,072.
INTEGER_BITS_MAX = 4096


@functools.cache
def _converter() -> Converter:
    """Make cattrs' JSON converter, with more types, and with values that are taken as they are.

    By default cattrs calls the type: bool("false") is True, int(1.9) is 1, str({}) is "{}",
    list("ab") is ["a", "b"]. A payload from raw SQL would run with values that nobody wrote.
    """
    # Refuse an unknown type when its hook is made. Some versions of cattrs do it only at the first
    # use.
    converter = make_converter(structure_fallback_factory=_refuse)
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
    # cattrs asks the hook first that was registered last.
    for is_it, made_of in ((_is_array, list), (_is_record, dict)):
        converter.register_structure_hook_factory(*_guarded(converter, is_it, made_of))
    converter.register_structure_hook_factory(*_unambiguous(converter))
    converter.register_structure_hook_factory(_is_named_tuple, lambda wanted: _named_tuple_hook(converter, wanted))
    converter.register_unstructure_hook_func(_is_named_tuple, lambda value: [converter.unstructure(item) for item in value])
    converter.register_structure_hook_func(is_pydantic, _take_pydantic)
    converter.register_unstructure_hook_func(is_pydantic, _dump_pydantic)
    return converter


def _take_none(value: Any, _: Any) -> None:
    if value is not None and value != {}:  # {} is stored when nothing is enqueued
        raise _Unfit("not nothing")


def _refuse(wanted: Any) -> Hook:
    raise cattrs.StructureHandlerNotFoundError("", type_=wanted)


# Values of these types are written as text, and made from it. `wanted` is the type itself.
_AS_TEXT = (UUID, IPv4Address, IPv6Address, IPv4Network, IPv6Network)
_passing = threading.local()  # the types whose guard now looks for cattrs' own hook


def _guarded(
    converter: Converter, is_it: Callable[[Any], bool], made_of: type
) -> tuple[Callable[[Any], bool], Callable[[Any], Hook]]:
    """Return predicate and factory of hooks that take JSON of one kind only: `list` or `dict`."""

    def hook_for(wanted: Any, inner: Hook) -> Hook:
        def take(value: Any, _: Any) -> Any:
            if not isinstance(value, made_of):
                raise _Unfit("not an array" if made_of is list else "not an object")
            return inner(value, wanted)

        return take

    return _around(converter, is_it, hook_for)


def _unambiguous(converter: Converter) -> tuple[Callable[[Any], bool], Callable[[Any], Hook]]:
    """Return the predicate and the factory that refuse a union of two types that are text in JSON.

    Nothing in a text says which of the two was meant.
    """

    def hook_for(wanted: Any, inner: Hook) -> Hook:
        as_text = [kind for kind in typing.get_args(wanted) if _is_text(kind)]
        if len(as_text) > 1:
            raise TypeError(f"{' and '.join(map(name_of, as_text))} are both text in JSON")
        return inner

    return _around(converter, _is_union, hook_for)


def _around(
    converter: Converter, is_it: Callable[[Any], bool], hook_for: Callable[[Any, Hook], Hook]
) -> tuple[Callable[[Any], bool], Callable[[Any], Hook]]:
    """Return a predicate and a factory of hooks that stand around the converter's own hooks.

    The factory asks the converter for the inner hook. The predicate says no meanwhile, so the
    converter finds its own.
    """

    def is_ours(wanted: Any) -> bool:
        return wanted not in getattr(_passing, "types", ()) and is_it(wanted)

    def make(wanted: Any) -> Hook:
        _passing.types = (*getattr(_passing, "types", ()), wanted)
        try:
            inner = converter.get_structure_hook(wanted, cache_result=False)
        finally:
            _passing.types = _passing.types[:-1]
        return hook_for(wanted, inner)

    return is_ours, make


def _is_array(wanted: Any) -> bool:
    kind = typing.get_origin(wanted) or wanted
    return (
        isinstance(kind, type) and issubclass(kind, (typing.Sequence, typing.AbstractSet)) and not issubclass(kind, (str, bytes))
    )


def _is_record(wanted: Any) -> bool:
    return is_structured(typing.get_origin(wanted) or wanted)


def _is_named_tuple(wanted: Any) -> bool:
    return isinstance(wanted, type) and issubclass(wanted, tuple) and hasattr(wanted, "_field_defaults")


def _named_tuple_hook(converter: Converter, wanted: Any) -> Hook:
    """Return the hook of a named tuple, an array in JSON.

    cattrs does not resolve a named tuple's annotations if they are strings. This hook does.
    """
    hints = typing.get_type_hints(wanted)
    hooks = [(hints.get(name, Any), converter.get_structure_hook(hints.get(name, Any))) for name in wanted._fields]
    needed = len(hooks) - len(wanted._field_defaults)

    def take(value: Any, _: Any) -> Any:
        if not isinstance(value, list) or not needed <= len(value) <= len(hooks):
            raise _Unfit(f"not an array of {needed} to {len(hooks)}")
        return wanted(*(hook(item, kind) for item, (kind, hook) in zip(value, hooks, strict=False)))

    return take


def _is_union(wanted: Any) -> bool:
    return typing.get_origin(wanted) in {typing.Union, types.UnionType}


def _is_path(wanted: Any) -> bool:
    return isinstance(wanted, type) and issubclass(wanted, PurePath)


def _is_text(kind: Any) -> bool:
    texts = (str, bytes, Decimal, dt.date, dt.time, dt.timedelta, PurePath, *_AS_TEXT)
    return isinstance(kind, type) and issubclass(kind, texts)


def is_pydantic(wanted: object) -> bool:
    """Tell whether a type is a model or a dataclass of pydantic's, without importing it."""
    return isinstance(wanted, type) and inspect.getattr_static(wanted, "__pydantic_validator__", None) is not None


def _take_pydantic(value: Any, wanted: Any) -> Any:
    # Pydantic reads JSON here, not Python values. A strict model takes a date from a text in JSON
    # only.
    text = _to_text(value)
    try:
        return wanted.__pydantic_validator__.validate_json(text, by_alias=True, by_name=True)
    except TypeError:  # before 2.11
        return wanted.__pydantic_validator__.validate_json(text)


def _dump_pydantic(value: Any) -> Any:
    if callable(dump := getattr(value, "model_dump", None)):
        return dump(mode="json", by_alias=True)
    return type(value).__pydantic_serializer__.to_python(value, mode="json", by_alias=True)


# `wanted` is the type itself, or an enum that inherits from it. Both are made by the same call.


def _take_bool(value: Any, _: Any) -> bool:
    if not isinstance(value, bool):
        raise _Unfit("not a boolean")
    return value


def _take_int(value: Any, wanted: Any) -> Any:
    # A text of digits is taken: keys of JSON objects are texts, and a dict[int, ...] has such keys.
    if isinstance(value, bool) or not isinstance(value, (int, str, float)) or (isinstance(value, float) and value != int(value)):
        raise _Unfit("not a whole number")
    return wanted(value)


def _take_float(value: Any, wanted: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, str, float)) or not math.isfinite(float(value)):
        raise _Unfit("not a number")
    return wanted(value)


def _take_str(value: Any, wanted: Any) -> Any:
    if not isinstance(value, str):
        raise _Unfit("not a text")
    return wanted(value)


def _take_text(value: Any, wanted: Any) -> Any:
    if not isinstance(value, str):  # IPv4Address(5) is 0.0.0.5
        raise _Unfit("not a text")
    return wanted(value)


def _take_decimal(value: Any, _: Any) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, (int, str, float)):
        raise _Unfit("not a number")
    try:
        return Decimal(str(value))
    except ArithmeticError:
        raise _Unfit("not a number") from None


def _take_bytes(value: Any, _: Any) -> bytes:
    if not isinstance(value, str):
        raise _Unfit("not base64")
    return binascii.a2b_base64(value, strict_mode=True)


# Durations are texts of ISO 8601, in seconds only. A float would lose microseconds of a long one.


def _duration_text(value: dt.timedelta) -> str:
    microseconds = value // dt.timedelta(microseconds=1)
    whole, part = divmod(abs(microseconds), 1_000_000)
    return f"{'-' if microseconds < 0 else ''}PT{whole}{f'.{part:06}' if part else ''}S"


def _take_duration(value: Any, _: Any) -> dt.timedelta:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return dt.timedelta(seconds=value)
    digits = str(value).removeprefix("-")
    if not isinstance(value, str) or not (digits.startswith("PT") and digits.endswith("S")):
        raise _Unfit("not a duration in seconds, as PT1.5S is")
    whole, _point, part = digits[2:-1].partition(".")
    length = dt.timedelta(seconds=int(whole), microseconds=int(f"{part:0<6}"[:6]))
    return -length if value.startswith("-") else length


@attrs.frozen
class Encoded:
    """A payload as checked text. The door that took it encodes it once; all others pass it on."""

    text: str  # JSON
    size_bytes: int  # of the text in UTF-8; PostgreSQL counts the same


def encoded(value: object) -> Encoded:
    """Return a payload as text with its size. Raises as `encode` does."""
    if type(value) is Encoded:
        return value
    text = encode(value)
    return Encoded(text, size_of(text))


def encode(value: object, *, bytes_max: int = PAYLOAD_BYTES_MAX, depth_max: int = PAYLOAD_DEPTH_MAX) -> str:
    """Return a value as JSON text; None becomes an empty object.

    Args:
        value: dict, list, str, number, bool, attrs class, dataclass, or what cattrs' JSON converter
            knows. An `Encoded` stays as it is.
        bytes_max: the most bytes of the text, in UTF-8.
        depth_max: the most levels of nested lists and objects.

    Raises:
        InvalidPayload: it is not JSON that PostgreSQL can store.
        PayloadTooLarge: it has more bytes than `bytes_max`.
    """
    if value is None:
        return "{}"
    if type(value) is Encoded:
        return value.text
    return encode_value(value, bytes_max=bytes_max, depth_max=depth_max)


def size_of(text: str) -> int:
    """Return how many bytes a text has in UTF-8.

    In a database with that encoding, PostgreSQL's octet_length counts the same.
    """
    return len(text) if text.isascii() else len(text.encode())


def encode_value(value: object, *, bytes_max: int, depth_max: int = PAYLOAD_DEPTH_MAX, what: str = "payload") -> str:
    """Return a value as JSON text; None becomes null.

    Raises as `encode` does. The messages call the value what `what` says.
    """
    try:
        if not _is_small(value):
            if not _is_plain(value):
                # Check before unstructuring, too. Lists that hold each other ten times over
                # would unfold without end.
                _check(value, depth_max, bytes_max, what, is_final=False)
                value = _converter().unstructure(value)
            _check(value, depth_max, bytes_max, what, is_final=True)
        text = _to_text(value)
        size = size_of(text)
    except InvalidPayload:
        raise
    except RecursionError:
        raise InvalidPayload(f"the {what} is nested too deep: at most {depth_max} levels") from None
    except UnicodeEncodeError:
        raise InvalidPayload(f"the {what} holds a lone surrogate, which is not text: remove it") from None
    # A user's value may raise anything when it is looked into: an attribute was never set, or only
    # type checkers can read an annotation. Handlers' results come this way, too. So the error must
    # not look like a fault of the worker.
    except Exception as error:
        raise InvalidPayload(f"the {what} is not JSON: {type(error).__name__}: {text_of(error)}") from error
    if size > bytes_max:
        message = f"the {what} has {size} bytes, at most {bytes_max} are allowed: store the data elsewhere, {_REFERENCE[what]}"
        raise PayloadTooLarge(message)
    return text


_REFERENCE = {"payload": "enqueue a reference", "result": "return a reference"}
# Made once. json.dumps makes a new encoder at each call that has options.
_to_text = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def _is_small(value: object) -> bool:
    """Tell at a glance that nothing in a value can be refused.

    Most payloads are such: one object with names as keys, short texts and small numbers.
    """
    if type(value) is not dict or len(value) > SMALL_MAX:
        return False
    for key, item in value.items():
        if type(key) is not str or "\x00" in key:
            return False
        kind = type(item)
        if not (
            (kind is str and "\x00" not in item)
            or (kind is int and -SMALL_INTEGER_MAX < item < SMALL_INTEGER_MAX)
            or kind is bool
            or item is None
        ):
            return False
    return True


@attrs.frozen
class Undecodable:
    """Stands for a stored payload that Python cannot decode; only raw SQL stores one."""

    why: str


def decode(text: str) -> Any:
    """Return a stored payload's value, or an Undecodable.

    It does not raise: one bad job must not fail the jobs that were claimed with it.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:  # integers of more than 4,300 digits, nesting
        return Undecodable(f"the payload cannot be decoded: {error}")
    if text.count("[") + text.count("{") > DECODED_DEPTH_MAX and _is_deeper(value, DECODED_DEPTH_MAX):
        return Undecodable(f"the payload cannot be decoded: it is nested deeper than {DECODED_DEPTH_MAX} levels")
    return value


def _is_deeper(value: object, levels: int) -> bool:
    """Tell whether a decoded value nests lists and objects deeper than `levels`; do not recurse."""
    waiting = [(value, 0)]
    while waiting:
        item, depth = waiting.pop()
        if isinstance(item, (dict, list)):
            if depth >= levels:
                return True
            waiting.extend((inner, depth + 1) for inner in (item.values() if isinstance(item, dict) else item))
    return False


def structure(payload: Any, wanted: Any) -> Any:
    """Return a decoded payload as the type a handler asks for; plain JSON when it asks for none.

    Raises:
        PayloadUndecodable: it does not fit, and why.
    """
    if isinstance(payload, Undecodable):
        raise PayloadUndecodable(payload.why)
    if wanted is None or wanted is Any or wanted is object:
        return payload
    if wanted is dict:
        if not isinstance(payload, dict):
            raise PayloadUndecodable(f"the payload is {type(payload).__name__}, the handler asks for an object")
        return payload
    try:
        return _converter().structure(payload, wanted)
    except Exception as error:  # hooks of the user's types may raise anything
        if payload == {} and _is_union(wanted) and types.NoneType in typing.get_args(wanted):
            return None  # nothing was enqueued
        try:
            reasons = "; ".join(cattrs.transform_error(error, path="payload", format_exception=_reason))
        except Exception:  # noqa: BLE001  # the explanation is best effort
            reasons = f"{type(error).__name__}: {text_of(error)}"
        raise PayloadUndecodable(f"the payload does not fit {name_of(wanted)}: {reasons}") from error


def _reason(error: BaseException, wanted: type | None) -> str:
    """Say what is wrong with one value.

    Pydantic's own words stay. The value itself is left out: payloads are private.
    """
    if is_pydantic_error(error):
        told = error.errors(include_url=False, include_context=False, include_input=False)  # type: ignore[attr-defined]
        return "; ".join(f"{'.'.join(map(str, each['loc'])) or 'it'}: {each['msg']}" for each in told)
    if isinstance(error, _Unfit):
        return str(error)
    return cattrs.v.format_exception(error, wanted)


def is_pydantic_error(error: BaseException) -> bool:
    """Tell whether an error is pydantic's account of a value that does not fit."""
    return type(error).__module__.startswith("pydantic") and callable(getattr(error, "errors", None))


def understood(wanted: Any) -> Any:
    """Return what payloads are structured into for an annotation; None: they are given as decoded.

    Raises:
        ConfigError: payloads cannot be made into such a type.
    """
    if wanted is Any or wanted is object:
        return None
    if wanted is dict or (typing.get_origin(wanted) is dict and typing.get_args(wanted) in {(str, Any), (str, object)}):
        return dict
    try:
        _converter().get_structure_hook(wanted)
    except Exception as error:  # reading a type's own annotations runs the program's source
        why = f"{type(error).__name__}: {text_of(error)}"
        if isinstance(error, cattrs.StructureHandlerNotFoundError):
            why = f"nothing says how JSON becomes {name_of(error.type_)}"
        raise ConfigError(
            f"payloads cannot be made into {name_of(wanted)}: {why}; use an attrs class, a dataclass, a pydantic model, "
            "a type that JSON has, or dict"
        ) from error
    return wanted


def name_of(wanted: Any) -> str:
    """Return what people call a type."""
    is_class = isinstance(wanted, type) and typing.get_origin(wanted) is None
    return wanted.__name__ if is_class else repr(wanted).replace("typing.", "")


def _is_plain(value: object) -> bool:
    return value is None or (type(value) in {dict, list, str, int, float, bool} and not _holds_objects(value))


def _holds_objects(value: object) -> bool:
    """Look one level down for values that need unstructuring. The converter finds deeper ones."""
    if type(value) is dict:
        return any(type(item) not in {str, int, float, bool, type(None)} for item in value.values())
    if type(value) is list:
        return any(type(item) not in {str, int, float, bool, type(None)} for item in value)
    return False


def _check(value: object, depth_max: int, bytes_max: int, what: str, *, is_final: bool) -> None:
    """Walk a value without recursion, and refuse what PostgreSQL cannot store.

    `is_final`: the value must be plain JSON by now.
    """
    waiting: list[tuple[object, int]] = [(value, 0)]
    seen = 0
    while waiting:
        item, depth = waiting.pop()
        seen += 1
        if seen > bytes_max:  # each takes a byte at least
            raise PayloadTooLarge(f"the {what} holds more than {bytes_max} values: store the data elsewhere, {_REFERENCE[what]}")
        if isinstance(item, (dict, list, tuple)):
            if depth >= depth_max:
                raise InvalidPayload(f"the {what} is nested too deep: at most {depth_max} levels")
            if isinstance(item, dict) and is_final:
                for key in item:
                    if not isinstance(key, str):
                        raise InvalidPayload(f"the {what} has the key {key!r:.80}, which is not a string")
                    waiting.append((key, depth))
            waiting.extend((inner, depth + 1) for inner in (item.values() if isinstance(item, dict) else item))
        else:
            _check_scalar(item, what)


def _check_scalar(item: object, what: str) -> None:
    if isinstance(item, str):
        if "\x00" in item:
            raise InvalidPayload(f"the {what} holds a NUL character, which PostgreSQL cannot store: remove it")
    elif isinstance(item, float):
        if not math.isfinite(item):
            raise InvalidPayload(f"the {what} holds {item}, which is not JSON: use null or a string")
    elif isinstance(item, int) and item.bit_length() > INTEGER_BITS_MAX:
        raise InvalidPayload(f"the {what} holds an integer of {item.bit_length()} bits, at most {INTEGER_BITS_MAX}")


def is_structured(wanted: object) -> bool:
    """Tell whether payloads are structured into a type: an attrs class or a dataclass."""
    return isinstance(wanted, type) and (attrs.has(wanted) or hasattr(wanted, "__dataclass_fields__"))
