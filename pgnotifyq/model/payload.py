"""Payloads: Python values to JSON text for PostgreSQL, and stored text to JSON.

JSON only: no pickle. What PostgreSQL's jsonb would refuse later is refused here. Values that jsonb
would accept but a worker could not digest are refused, too.

The converter writes what JSON lacks (converting.py). structuring.py makes of the JSON what a
handler asks for. docs/payloads.md is the page for users.

A payload may say its version, by a key beside its own keys: `{"$version": 2, "path": "a.png"}`.
Without that key, its version is 1. So a program that enqueues by SQL need not know of versions. A
payload that is no object is put into one: `{"$version": 2, "$payload": [1, 2]}`.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import attrs

from pgnotifyq.model.converting import JSON_KINDS, default_converter, json_text
from pgnotifyq.model.errors import InvalidPayload, PayloadTooLarge, PayloadUndecodable, text_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from cattrs import Converter

PAYLOAD_BYTES_MAX = 1_048_576  # larger data belongs elsewhere, the payload holds a reference
# For payloads that raw SQL stored. The decoder's own bound differs from one Python to the next.
DECODED_DEPTH_MAX = 500
PAYLOAD_DEPTH_MAX = 64  # deeper is a mistake or an attack; Python's own decoder recurses
SMALL_MAX, SMALL_INTEGER_MAX = 64, 2**63  # bounds of values that `_is_small` looks at
# Python refuses to print integers of more than 4,300 digits, PostgreSQL of more than 131,072.
INTEGER_BITS_MAX = 4096
VERSION_KEY, PAYLOAD_KEY = "$version", "$payload"  # reserved, at the top of a stored payload


@attrs.frozen
class Encoded:
    """A payload as checked text. The door that takes it encodes it once; all others pass it on."""

    text: str  # JSON
    size_bytes: int  # of the text in UTF-8; PostgreSQL counts the same


def encoded(value: object, converter: Converter | None = None, wanted: Any = None) -> Encoded:
    """Return a payload as text with its size. It takes and raises what `encode` does."""
    if type(value) is Encoded:
        return value
    text = encode(value, converter=converter, wanted=wanted)
    return Encoded(text, size_of(text))


def encode(
    value: object,
    *,
    bytes_max: int = PAYLOAD_BYTES_MAX,
    depth_max: int = PAYLOAD_DEPTH_MAX,
    converter: Converter | None = None,
    wanted: Any = None,
) -> str:
    """Return a value as JSON text; None becomes an empty object.

    Args:
        value: dict, list, str, number, bool, attrs class, dataclass, or what cattrs' JSON converter
            knows. An `Encoded` stays as it is.
        bytes_max: the most bytes of the text, in UTF-8.
        depth_max: the most levels of nested lists and objects.
        converter: the handler's own, if it has one.
        wanted: the type that the handler asks for; the converter writes the value as that type.

    Raises:
        InvalidPayload: it is not JSON that PostgreSQL can store.
        PayloadTooLarge: it has more bytes than `bytes_max`.
    """
    if value is None:
        return "{}"
    if type(value) is Encoded:
        return value.text
    return encode_value(value, bytes_max=bytes_max, depth_max=depth_max, converter=converter, wanted=wanted)


def _by(converter: Converter, value: object, wanted: Any) -> object:
    """Return what a converter of the program's own makes of a value.

    The value is written as the annotation says: a tagged union has its tag only if the value is
    written as the union. A value that is JSON already cannot be written as a class, and stays.
    """
    if wanted is not None and wanted is not dict:
        try:
            return converter.unstructure(value, unstructure_as=wanted)
        except Exception:  # hooks of the program may raise anything
            if _is_json(value):
                return value
            raise
    return converter.unstructure(value)


def _is_json(value: object) -> bool:
    """Tell whether a value is plain JSON. It was checked before, so it does not hold itself."""
    if type(value) is dict:
        return all(map(_is_json, value.values()))
    return all(map(_is_json, value)) if type(value) is list else type(value) in JSON_KINDS


def mark(payload: Encoded, version: int) -> Encoded:
    """Return a payload with its version. A payload that says a version already stays as it is.

    Raises:
        PayloadTooLarge: with its version, the payload is too large.
    """
    text = payload.text
    if VERSION_KEY in text and isinstance(whole := json.loads(text), dict) and VERSION_KEY in whole:
        return payload
    if not text.startswith("{"):
        text = f'{{"{VERSION_KEY}":{version},"{PAYLOAD_KEY}":{text}}}'
    else:
        text = f'{{"{VERSION_KEY}":{version}{"" if text == "{}" else ","}{text[1:]}'
    made = Encoded(text, payload.size_bytes + len(text) - len(payload.text))  # what was added is ASCII
    if made.size_bytes > PAYLOAD_BYTES_MAX:
        raise PayloadTooLarge(f"the payload has {made.size_bytes} bytes, at most {PAYLOAD_BYTES_MAX} are allowed")
    return made


def unmark(payload: Any) -> tuple[Any, int]:
    """Return a decoded payload without its mark, and its version.

    Raises:
        PayloadUndecodable: its version is not a whole number from 1 on.
    """
    if type(payload) is not dict or VERSION_KEY not in payload:
        return payload, 1
    version = payload[VERSION_KEY]
    if type(version) is not int or version < 1:
        raise PayloadUndecodable(f"the payload's {VERSION_KEY} is not a whole number from 1 on")
    rest = {key: value for key, value in payload.items() if key != VERSION_KEY}
    return (rest[PAYLOAD_KEY] if rest.keys() == {PAYLOAD_KEY} else rest), version


def size_of(text: str) -> int:
    """Return how many bytes a text has in UTF-8.

    In a database with that encoding, PostgreSQL's octet_length counts the same.
    """
    return len(text) if text.isascii() else len(text.encode())


def encode_value(
    value: object,
    *,
    bytes_max: int,
    depth_max: int = PAYLOAD_DEPTH_MAX,
    what: str = "payload",
    converter: Converter | None = None,
    wanted: Any = None,
) -> str:
    """Return a value as JSON text; None becomes null.

    Raises as `encode` does. The messages call the value what `what` says.
    """
    try:
        if not _is_small(value) or (converter is not None and wanted is not None):
            if converter is not None or not _is_plain(value):
                # Check before unstructuring, too. Lists that hold each other ten times over
                # would unfold without end.
                _check(value, depth_max, bytes_max, what, is_final=False)
                value = default_converter().unstructure(value) if converter is None else _by(converter, value, wanted)
            _check(value, depth_max, bytes_max, what, is_final=True)
        text = json_text(value)
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


_read_one = json.JSONDecoder().raw_decode
_REFERENCE = {"payload": "enqueue a reference", "result": "return a reference", "headers": "put it into the payload",
              "saved state": "save a reference"}  # fmt: skip


def _is_small(value: object) -> bool:
    """Tell whether a glance shows that nothing in a value can be refused.

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
        value = _loads(text)
    except (ValueError, RecursionError) as error:  # integers of more than 4,300 digits, nesting
        return Undecodable(f"the payload cannot be decoded: {error}")
    if text.count("[") + text.count("{") > DECODED_DEPTH_MAX and _is_deeper(value, DECODED_DEPTH_MAX):
        return Undecodable(f"the payload cannot be decoded: it is nested deeper than {DECODED_DEPTH_MAX} levels")
    return value


def _loads(text: str) -> Any:
    """Do what `json.loads` does, in half the time.

    `json.loads` looks for space around the value. PostgreSQL puts none there.
    """
    try:
        value, end = _read_one(text)
    except json.JSONDecodeError:
        end = -1
    return value if end == len(text) else json.loads(text)


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


class PayloadTooNew(PayloadUndecodable):
    """A payload is of a later version than the handler knows. Another worker may know it."""


def upgraded(payload: Any, version: int, upgrade: Callable[[Any, int], Any] | None) -> Any:
    """Return a decoded payload without its mark, upgraded to a version.

    Raises:
        PayloadTooNew: it is of a later version.
        PayloadUndecodable: it cannot be upgraded, and why.
    """
    if isinstance(payload, Undecodable):
        return payload
    plain, said = unmark(payload)
    if said > version:
        raise PayloadTooNew(f"the payload is of version {said}, the handler takes up to {version}: a newer worker is to run it")
    if said == version or upgrade is None:
        return plain
    try:
        return upgrade(plain, said)
    except Exception as error:  # the program's own
        why = f"{type(error).__name__}: {text_of(error)}"
        raise PayloadUndecodable(f"the payload cannot be upgraded from version {said} to {version}: {why}") from error


def _is_plain(value: object) -> bool:
    return value is None or (type(value) in {dict, list, str, int, float, bool} and not _holds_objects(value))


def _holds_objects(value: object) -> bool:
    """Tell whether one level down a value needs unstructuring. The converter finds deeper ones."""
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
