"""Whether an event fits the shape that the model gives for its name."""

from __future__ import annotations

import types
import typing
from typing import TYPE_CHECKING, Any, NotRequired

from pgnotifyq.model.events import SHAPES

if TYPE_CHECKING:
    from pgnotifyq.model.events import Event, EventName

# What events of workers in this process did not fit; conftest.py fails the test that they came in.
misfits: list[str] = []


def fields_of(name: EventName) -> dict[str, tuple[tuple[type, ...], bool]]:
    """Return the fields of an event by name: the types that each may have, and whether it is always there."""
    return {
        field: (_types(hint), typing.get_origin(hint) is not NotRequired)
        for field, hint in typing.get_type_hints(SHAPES[name], include_extras=True).items()
    }


def misfit(event: Event) -> str | None:
    """Return in which way an event does not fit its shape; None when it does."""
    shape = fields_of(event.name)
    unknown = event.fields.keys() - shape.keys()
    missing = {field for field, (_, is_always) in shape.items() if is_always} - event.fields.keys()
    wrong = {field: value for field, value in event.fields.items() if field in shape and not _is_one_of(value, shape[field][0])}
    if unknown or missing or wrong:
        return f"{event.name.value}: unknown {unknown or 'none'}, missing {missing or 'none'}, of a wrong type {wrong or 'none'}"
    return None


def note_misfit(event: Event) -> None:
    """Remember an event that does not fit; raising would lose it, as what a sink raises is logged."""
    told = misfit(event)
    if told is not None:
        misfits.append(told)


def misfits_nowait() -> list[str]:
    """Return what did not fit since this was last asked."""
    found = list(misfits)
    misfits.clear()
    return found


def _types(hint: Any) -> tuple[type, ...]:
    """Return the classes that a hint admits: without its units, and of a new type what it is made of."""
    if typing.get_origin(hint) in {NotRequired, typing.Annotated}:
        return _types(typing.get_args(hint)[0])
    if isinstance(hint, types.UnionType):
        return tuple(kind for part in typing.get_args(hint) for kind in _types(part))
    while hasattr(hint, "__supertype__"):
        hint = hint.__supertype__
    return (float, int) if hint is float else (hint,)


def _is_one_of(value: object, kinds: tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
