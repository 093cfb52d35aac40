"""What a handler saves of its work (`ctx.save`), so that the next attempt goes on from there.

A state is stored as a payload is: as JSON, written by the handler's own converter if it has one.
The handler declares the state's type (`saved_type`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pgnotifyq.model.errors import InvalidPayload, PayloadTooLarge, PayloadUndecodable, StateTooLarge
from pgnotifyq.model.payload import Undecodable, decode, encode_value
from pgnotifyq.model.structuring import structure

if TYPE_CHECKING:
    from pgnotifyq.model.handler import Handler

# Each claim of a job carries the job's state. So a state is small: it says how far the work has
# come, not what the work has made.
STATE_BYTES_MAX = 65_536


def write_state(state: object, handler: Handler | None) -> tuple[str | None, Any]:
    """Return a state as JSON text, and as the next attempt will be given it.

    None stays None: there is no state any more.

    Raises:
        InvalidPayload: it is not JSON that PostgreSQL can store, or not of the handler's type.
        StateTooLarge: it has more than STATE_BYTES_MAX bytes.
    """
    if state is None:
        return None, None
    converter, wanted = (None, None) if handler is None else (handler.converter, handler.saved_type)
    try:
        text = encode_value(state, bytes_max=STATE_BYTES_MAX, what="saved state", converter=converter, wanted=wanted)
    except PayloadTooLarge as error:
        raise StateTooLarge(str(error)) from error
    try:
        return text, read_state(decode(text), handler)
    except PayloadUndecodable as error:
        raise InvalidPayload(str(error)) from error


def read_state(saved: Any, handler: Handler | None) -> Any:
    """Return a stored state as the handler is given it; None: there is none.

    Raises:
        PayloadUndecodable: it cannot be read, or is not of the handler's type.
    """
    if saved is None:
        return None
    if isinstance(saved, Undecodable):
        raise PayloadUndecodable(f"the saved state cannot be read: {saved.why}; {_WITHOUT}")
    if handler is None:
        return saved
    try:
        return structure(saved, handler.saved_type, handler.converter, what="saved state")
    except PayloadUndecodable as error:
        raise PayloadUndecodable(f"{error}; {_WITHOUT}") from error


_WITHOUT = "to do without it, requeue the dead letter with --from-start"


def too_large() -> StateTooLarge:
    """Return the error for a state that has too many bytes in the form that PostgreSQL writes."""
    return StateTooLarge(
        "the saved state has too many bytes as PostgreSQL writes it, numbers such as 1e300 in full: save less, or a reference"
    )
