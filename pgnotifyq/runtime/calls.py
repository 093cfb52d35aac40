"""Calls in words: where a coroutine waits, and where a thread is. No values of variables.

The outermost calls lead to the handler, and are ours. They are left out.
"""

from __future__ import annotations

import linecache
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgnotifyq.model.stack import Frame

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import FrameType

CALLS_MAX = 1000  # calls that are walked, at the most
_RUNTIME = Path(__file__).parent
# The functions that call a handler, and that no handler calls: by file, their names. None: all
# functions of the file.
_CALLERS: dict[str, frozenset[str] | None] = {
    str(_RUNTIME / "slots.py"): None,
    str(_RUNTIME / "executor.py"): None,
    str(_RUNTIME / "asyncio_loop.py"): frozenset({"Errand._call", "Errand._call_within"}),
    str(_RUNTIME / "processes_child.py"): frozenset({"_Child._call"}),
    str(_RUNTIME.parent / "model" / "returned.py"): frozenset({"finished"}),
}


def of_coroutine(coroutine: Any) -> list[Frame]:
    """Return the calls of a coroutine that waits, from the handler's own inwards."""
    return _in_words(_awaited(coroutine))


def of_thread(thread_id: int) -> list[Frame]:
    """Return the calls of a thread, from the handler's own inwards."""
    frame = sys._current_frames().get(thread_id)  # noqa: SLF001  # documented, for this very use
    return _in_words(reversed(list(traceback.walk_stack(frame))[:CALLS_MAX]))


def _awaited(coroutine: Any) -> Iterator[tuple[FrameType, int]]:
    """Yield the calls of a coroutine that waits, the outermost first."""
    for _ in range(CALLS_MAX):
        for frame_of, inner_of in (("cr_frame", "cr_await"), ("gi_frame", "gi_yieldfrom"), ("ag_frame", "ag_await")):
            frame = getattr(coroutine, frame_of, None)
            if frame is not None:
                yield frame, frame.f_lineno
                coroutine = getattr(coroutine, inner_of)
                break
        else:
            return


def _in_words(calls: Iterable[tuple[FrameType, int]]) -> list[Frame]:
    """Return calls in words, without those that lead to the handler."""
    told: list[Frame] = []
    for call, line in calls:
        code = call.f_code
        if _leads_to_handler(code.co_filename, code.co_qualname):
            told.clear()
            continue
        told.append(Frame(code.co_qualname, code.co_filename, line, linecache.getline(code.co_filename, line).strip()))
    return told


def _leads_to_handler(file: str, function: str) -> bool:
    names = _CALLERS.get(file, frozenset())
    return names is None or function in names
