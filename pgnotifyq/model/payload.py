"""Payloads: Python values to JSON text that PostgreSQL can store, and back to the type a handler asks for.

JSON only: no pickle. Everything is refused here that PostgreSQL's jsonb would refuse later, and more that it would accept
and a worker would choke on.
"""

from __future__ import annotations

import functools
import json
import math
from typing import TYPE_CHECKING, Any
from uuid import UUID

import attrs
import cattrs
from cattrs.preconf.json import make_converter

from pgnotifyq.model.errors import InvalidPayload, PayloadTooLarge, PayloadUndecodable, text_of

if TYPE_CHECKING:
    from cattrs import Converter

PAYLOAD_BYTES_MAX = 1_048_576  # larger data belongs elsewhere, the payload holds a reference
DECODED_DEPTH_MAX = 500  # of what raw SQL stored: the decoder's own bound differs from one Python to the next
PAYLOAD_DEPTH_MAX = 64  # deeper is a mistake or an attack; Python's own decoder recurses
SMALL_MAX, SMALL_INTEGER_MAX = 64, 2**63  # of what is looked at the short way
INTEGER_BITS_MAX = 4096  # Python refuses to print integers of more than 4,300 digits, PostgreSQL of 131,072


@functools.cache
def _converter() -> Converter:
    """Make cattrs' JSON converter, with UUIDs, and with scalars that are taken as they are.

    Left alone, cattrs calls the type: bool("false") is True, int(1.9) is 1, str({}) is "{}". A payload that came by raw SQL
    would run with values that nobody wrote.
    """
    converter = make_converter()
    converter.register_unstructure_hook(UUID, str)
    converter.register_structure_hook(UUID, lambda value, _: value if isinstance(value, UUID) else UUID(value))
    for kind, take in ((bool, _take_bool), (int, _take_int), (float, _take_float), (str, _take_str)):
        converter.register_structure_hook(kind, take)
    return converter


# `wanted` is the type itself or an enum that inherits from it, which are made alike.


def _take_bool(value: Any, _: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("not a boolean")  # noqa: TRY004  # cattrs words a ValueError better
    return value


def _take_int(value: Any, wanted: Any) -> Any:
    # Digits in a text are taken: keys of JSON objects are texts, also those of a dict[int, ...].
    if isinstance(value, bool) or not isinstance(value, (int, str, float)) or (isinstance(value, float) and value != int(value)):
        raise ValueError("not a whole number")
    return wanted(value)


def _take_float(value: Any, wanted: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, str, float)) or not math.isfinite(float(value)):
        raise ValueError("not a number")
    return wanted(value)


def _take_str(value: Any, wanted: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError("not a text")  # noqa: TRY004  # cattrs words a ValueError better
    return wanted(value)


def encode(value: object, *, bytes_max: int = PAYLOAD_BYTES_MAX, depth_max: int = PAYLOAD_DEPTH_MAX) -> str:
    """Return a value as JSON text; None becomes an empty object.

    Args:
        value: dict, list, str, number, bool, attrs class, dataclass, or what cattrs' JSON converter knows.
        bytes_max: of the text, in UTF-8.
        depth_max: of nested lists and objects.

    Raises:
        InvalidPayload: it is not JSON that PostgreSQL can store.
        PayloadTooLarge: it has more bytes than `bytes_max`.
    """
    if value is None:
        return "{}"
    return encode_value(value, bytes_max=bytes_max, depth_max=depth_max)


def encode_value(value: object, *, bytes_max: int, depth_max: int = PAYLOAD_DEPTH_MAX) -> str:
    """Return a value as JSON text; None becomes null. Raises as `encode` does."""
    try:
        if not _is_small(value):
            if not _is_plain(value):
                # Looked at before it is unstructured too: lists that hold each other ten times over unfold without end.
                _check(value, depth_max, bytes_max, is_final=False)
                value = _converter().unstructure(value)
            _check(value, depth_max, bytes_max, is_final=True)
        text = _to_text(value)
        size = len(text) if text.isascii() else len(text.encode())
    except InvalidPayload:
        raise
    except RecursionError:
        raise InvalidPayload(f"the payload is nested too deep: at most {depth_max} levels") from None
    except UnicodeEncodeError:
        raise InvalidPayload("the payload holds a lone surrogate, which is not text: remove it") from None
    # A value of the user's may raise anything when it is looked into: an attribute never set, an annotation that only type
    # checkers see. It must not pass for a fault of the worker, whose handlers' results come this way.
    except Exception as error:
        raise InvalidPayload(f"the payload is not JSON: {type(error).__name__}: {text_of(error)}") from error
    if size > bytes_max:
        message = f"the payload has {size} bytes, at most {bytes_max} are allowed: store the data elsewhere, enqueue a reference"
        raise PayloadTooLarge(message)
    return text


# Made once: json.dumps makes an encoder at each call that wants anything of its own.
_to_text = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def _is_small(value: object) -> bool:
    """Tell at a glance that there is nothing to refuse in a value, as in most payloads: one object of names, and small numbers."""
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
    """Return a stored payload's value, or an Undecodable: one bad job must not fail those that were claimed with it."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:  # integers of more than 4,300 digits, nesting
        return Undecodable(f"the payload cannot be decoded: {error}")
    if text.count("[") + text.count("{") > DECODED_DEPTH_MAX and _is_deeper(value, DECODED_DEPTH_MAX):
        return Undecodable(f"the payload cannot be decoded: it is nested deeper than {DECODED_DEPTH_MAX} levels")
    return value


def _is_deeper(value: object, levels: int) -> bool:
    """Tell, without recursion, whether a decoded value has lists and objects inside each other to more than so many levels."""
    waiting = [(value, 0)]
    while waiting:
        item, depth = waiting.pop()
        if isinstance(item, (dict, list)):
            if depth >= levels:
                return True
            waiting.extend((inner, depth + 1) for inner in (item.values() if isinstance(item, dict) else item))
    return False


def structure(payload: Any, wanted: type | None) -> Any:
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
        try:
            reasons = "; ".join(cattrs.transform_error(error, path="payload"))
        except Exception:  # noqa: BLE001  # the explanation is best effort
            reasons = f"{type(error).__name__}: {text_of(error)}"
        raise PayloadUndecodable(f"the payload does not fit {getattr(wanted, '__name__', wanted)}: {reasons}") from error


def _is_plain(value: object) -> bool:
    return value is None or (type(value) in {dict, list, str, int, float, bool} and not _holds_objects(value))


def _holds_objects(value: object) -> bool:
    """Look one level down for what needs unstructuring; deeper objects are found there by the converter."""
    if type(value) is dict:
        return any(type(item) not in {str, int, float, bool, type(None)} for item in value.values())
    if type(value) is list:
        return any(type(item) not in {str, int, float, bool, type(None)} for item in value)
    return False


def _check(value: object, depth_max: int, bytes_max: int, *, is_final: bool) -> None:
    """Walk a value without recursion and refuse what PostgreSQL cannot store; `is_final` once it is to be plain JSON."""
    waiting: list[tuple[object, int]] = [(value, 0)]
    seen = 0
    while waiting:
        item, depth = waiting.pop()
        seen += 1
        if seen > bytes_max:  # each takes a byte at least
            raise PayloadTooLarge(
                f"the payload holds more than {bytes_max} values: store the data elsewhere, enqueue a reference"
            )
        if isinstance(item, (dict, list, tuple)):
            if depth >= depth_max:
                raise InvalidPayload(f"the payload is nested too deep: at most {depth_max} levels")
            if isinstance(item, dict) and is_final:
                for key in item:
                    if not isinstance(key, str):
                        raise InvalidPayload(f"the payload has the key {key!r:.80}, which is not a string")
                    waiting.append((key, depth))
            waiting.extend((inner, depth + 1) for inner in (item.values() if isinstance(item, dict) else item))
        else:
            _check_scalar(item)


def _check_scalar(item: object) -> None:
    if isinstance(item, str):
        if "\x00" in item:
            raise InvalidPayload("the payload holds a NUL character, which PostgreSQL cannot store: remove it")
    elif isinstance(item, float):
        if not math.isfinite(item):
            raise InvalidPayload(f"the payload holds {item}, which is not JSON: use null or a string")
    elif isinstance(item, int) and item.bit_length() > INTEGER_BITS_MAX:
        raise InvalidPayload(f"the payload holds an integer of {item.bit_length()} bits, at most {INTEGER_BITS_MAX}")


def is_structured(wanted: object) -> bool:
    """Tell whether a type is one that payloads are structured into: an attrs class or a dataclass."""
    return isinstance(wanted, type) and (attrs.has(wanted) or hasattr(wanted, "__dataclass_fields__"))
