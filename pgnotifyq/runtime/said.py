"""What a handler has said while it runs, until keeper.py has written it."""

from __future__ import annotations

import json
import math
import threading
from collections import deque

import attrs

# Of a log, as JSON: 64 KiB in all.
HEAD_BYTES_MAX = 32_768
TAIL_BYTES_MAX = 32_768
# Of a line; a traceback is one, too. As JSON it has six times as many bytes at the most.
LINE_CHARS_MAX = 4_096


class Lines:
    """The log of one execution, in memory: its first lines and its last. For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._head: list[str] = []
        self._head_bytes = 0
        self._tail: deque[str] = deque()
        self._tail_bytes = 0
        self._left_out = 0
        self._head_is_new = False
        self._tail_is_new = False

    def add(self, at: float, level: str, text: str) -> None:
        """Keep a line. `at` is in seconds since 1970."""
        if len(text) > LINE_CHARS_MAX:
            text = f"{text[:LINE_CHARS_MAX]}... ({len(text) - LINE_CHARS_MAX} characters more)"
        line = json.dumps([round(at, 6), level, text])
        size = len(line) + 2
        with self._lock:
            if not self._tail and self._head_bytes + size <= HEAD_BYTES_MAX - 2:
                self._head.append(line)
                self._head_bytes += size
                self._head_is_new = True
                return
            self._tail.append(line)
            self._tail_bytes += size
            self._tail_is_new = True
            while self._tail_bytes > TAIL_BYTES_MAX - 2:
                self._tail_bytes -= len(self._tail.popleft()) + 2
                self._left_out += 1

    def take(self) -> tuple[str | None, str | None, int] | None:
        """Return what is new, as the ledger wants it; None: nothing is."""
        with self._lock:
            if not (self._head_is_new or self._tail_is_new):
                return None
            head = f"[{', '.join(self._head)}]" if self._head_is_new else None
            tail = f"[{', '.join(self._tail)}]" if self._tail_is_new else None
            self._head_is_new = self._tail_is_new = False
            return head, tail, self._left_out

    def give_back(self) -> None:
        """Have all of it written again: what was taken has not arrived."""
        with self._lock:
            self._head_is_new, self._tail_is_new = bool(self._head), bool(self._tail)


@attrs.define(eq=False)
class Said:
    """What the handler of one execution has said."""

    lines: Lines = attrs.field(factory=Lines)
    unsaid: tuple[float | None, str | None] | None = None  # progress that is not written yet
    report_at: float = -math.inf  # when progress may be written by a statement of its own again
    fraction: float | None = None  # what such a statement wrote last
    keep_at: float = -math.inf  # when its log may be written again
    is_noted: bool = False  # the keeper knows
