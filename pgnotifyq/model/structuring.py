"""What a handler asks for: into which types payloads can be made, and how they are made.

When a handler is registered, `understood` decides whether payloads can be made into its annotation.
For each job, `structure` makes them. converting.py tells what the converter makes of each type.
"""

from __future__ import annotations

import types
import typing
from typing import TYPE_CHECKING, Any

import cattrs

from pgnotifyq.model.converting import Unfit, bare, default_converter, is_union, name_of
from pgnotifyq.model.errors import ConfigError, PayloadUndecodable, text_of
from pgnotifyq.model.payload import Undecodable

if TYPE_CHECKING:
    from cattrs import Converter


def understood(wanted: Any, converter: Converter | None = None) -> Any:
    """Return what payloads are structured into for an annotation; None: they are given as decoded.

    Raises:
        ConfigError: payloads cannot be made into such a type.
    """
    if wanted is Any or wanted is object:
        return None
    if wanted is dict or (typing.get_origin(wanted) is dict and typing.get_args(wanted) in {(str, Any), (str, object)}):
        return dict
    try:
        (converter or default_converter()).get_structure_hook(wanted)
    except Exception as error:  # reading a type's own annotations runs the program's source
        why = f"{type(error).__name__}: {text_of(error).partition(chr(10))[0]}"
        if isinstance(error, cattrs.StructureHandlerNotFoundError):
            why = f"nothing says how JSON becomes {name_of(error.type_)}"
        raise ConfigError(
            f"payloads cannot be made into {name_of(wanted)}: {why}; use an attrs class, a dataclass, a pydantic model, "
            "a type that JSON has, or dict, or give the registry a converter that has a hook for it"
        ) from error
    return wanted


def structure(payload: Any, wanted: Any, converter: Converter | None = None, *, what: str = "payload") -> Any:
    """Return a decoded payload as the type that a handler asks for; if it asks for none, as JSON.

    Args:
        payload: as `decode` gave it.
        wanted: as `understood` gave it.
        converter: the handler's own; None: pgnotifyq's.
        what: how an error names it.

    Raises:
        PayloadUndecodable: it does not fit, and why.
    """
    if isinstance(payload, Undecodable):
        raise PayloadUndecodable(payload.why)
    if wanted is None or wanted is Any or wanted is object:
        return payload
    if wanted is dict:
        if not isinstance(payload, dict):
            raise PayloadUndecodable(f"the {what} is {type(payload).__name__}, the handler asks for an object")
        return payload
    try:
        return (converter or default_converter()).structure(payload, wanted)
    except Exception as error:  # hooks of the user's types may raise anything
        if payload == {} and may_be_none(wanted):
            return None  # the job was enqueued without a payload
        try:
            reasons = "; ".join(cattrs.transform_error(error, path=what, format_exception=_reason))
        except Exception:  # noqa: BLE001  # the explanation is best effort
            reasons = f"{type(error).__name__}: {text_of(error)}"
        raise PayloadUndecodable(f"the {what} does not fit {name_of(wanted)}: {reasons}") from error


def _reason(error: BaseException, wanted: type | None) -> str:
    """Say what is wrong with one value.

    Pydantic's own words stay. The value itself is left out: payloads are private.
    """
    if is_pydantic_error(error):
        told = error.errors(include_url=False, include_context=False, include_input=False)  # type: ignore[attr-defined]
        return "; ".join(f"{'.'.join(map(str, each['loc'])) or 'it'}: {each['msg']}" for each in told)
    if isinstance(error, Unfit):
        return str(error)
    if isinstance(error, RecursionError):
        return "nested too deep"
    said = cattrs.v.format_exception(error, bare(wanted))
    if not said.startswith("unknown error"):
        return said
    # cattrs gives the text of an error that it does not know. The value may be in it.
    return "not one of the literals" if " not in literal " in said else type(error).__name__


def is_pydantic_error(error: BaseException) -> bool:
    """Tell whether an error is pydantic's account of a value that does not fit."""
    return type(error).__module__.startswith("pydantic") and callable(getattr(error, "errors", None))


def may_be_none(wanted: Any) -> bool:
    """Tell whether an annotation is a union with None."""
    return is_union(bare(wanted)) and types.NoneType in typing.get_args(bare(wanted))
