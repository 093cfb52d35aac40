"""How commands show data: JSON, a table that fits the terminal, tabs when piped."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from collections.abc import Sequence

WIDTH_MAX = 60  # of a cell in a terminal
WIDTH_MIN = 8  # to which texts are cut if the terminal is narrow
UNCUT = frozenset({"id", "status", "state", "reason", "outcome"})  # ids are there to be copied
GAP = "  "
BOLD, PLAIN = "\x1b[1m", "\x1b[0m"
UNITS = (("d", 86_400), ("h", 3_600), ("m", 60))  # in seconds
# What columns are called in a terminal. JSON and tabs have the names of the data.
HEADINGS = {
    "queue_name": "queue",
    "job_type": "type",
    "attempts": "tries",
    "scheduled_at": "due",
    "started_at": "started",
    "ended_at": "ended",
    "died_at": "died",
    "last_beat_at": "last beat",
    "error_message": "error",
    "oldest_due_seconds": "waiting s",
}


def is_coloured() -> bool:
    """Tell whether to use colours and bold type.

    They are used in a terminal that has them, unless NO_COLOR says otherwise (no-color.org). With
    FORCE_COLOR they are used in a pipe, too. NO_COLOR is stronger. rich, which draws the demo and
    the help, follows the same rules.
    """
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return sys.stdout.isatty() and os.environ.get("TERM", "").lower() not in {"dumb", "unknown"}


def as_data(row: Any) -> Any:
    """Return an attrs object as what JSON can say."""
    return attrs.asdict(row) if attrs.has(type(row)) else row


def print_json(data: Any) -> None:
    """Print data as JSON: one document, indented."""
    print(json.dumps(data, default=_plain, indent=2, ensure_ascii=True))


def print_json_line(data: Any) -> None:
    """Print data as one line of JSON, where documents come one after the other."""
    print(json.dumps(data, default=_plain, ensure_ascii=True), flush=True)


def _plain(value: object) -> str | dict[Any, Any]:
    """Return a value that JSON has no form for. Times are as in events: ISO 8601, in UTC."""
    if isinstance(value, Mapping):
        return dict(value)
    return _time(value) if isinstance(value, datetime) else str(value)


def _time(value: datetime) -> str:
    return value.astimezone(UTC).isoformat()


def print_rows(
    rows: Sequence[Any], columns: Sequence[str], *, as_json: bool, nothing: str, in_terminal: Sequence[str] | None = None
) -> None:
    """Print objects or dicts.

    JSON has all their fields. A pipe gets some columns, with tabs between them. A terminal gets a
    table of the columns that say something.

    Args:
        rows: attrs objects, or dicts.
        columns: the names of the columns, in a pipe. In a terminal too, if there is no
            `in_terminal`.
        as_json: whether to print JSON.
        nothing: what to say in a terminal if there are no rows.
        in_terminal: the columns that a person needs, the most important first.
    """
    data = [as_data(row) for row in rows]
    if as_json:
        print_json(data)
    elif not sys.stdout.isatty():
        print("\t".join(columns))
        for row in data:
            print("\t".join(shown(row[column]) for column in columns))
    elif not data:
        print(nothing)
    else:
        width = shutil.get_terminal_size().columns
        print("\n".join(as_table(data, in_terminal or columns, width=width, is_bold=is_coloured())))


def as_table(data: Sequence[dict[str, Any]], columns: Sequence[str], *, width: int, is_bold: bool = True) -> list[str]:
    """Return rows as lines that fit a terminal.

    Columns without a value are left out. If room is scarce, columns of noughts go first. Then texts
    are cut, the widest first. Then the last columns go.
    """
    columns = [column for column in columns if any(row[column] not in (None, "") for row in data)]
    cells = {column: [_cut(shown(row[column], in_terminal=True), WIDTH_MAX) for row in data] for column in columns}
    widths = {column: max(len(_heading(column)), *map(len, cells[column])) for column in columns}

    def excess() -> int:
        return sum(widths.values()) + len(GAP) * (len(widths) - 1) - width

    if excess() > 0:
        widths = {column: size for column, size in widths.items() if any(row[column] != 0 for row in data)}
    while excess() > 0 and len(widths) > 1:
        widest = max(widths, key=lambda column: 0 if column in UNCUT else widths[column])
        if widest in UNCUT or widths[widest] <= WIDTH_MIN:
            widths.popitem()
        else:
            widths[widest] -= 1

    def line(texts: Mapping[str, str]) -> str:
        laid = []
        for column, size in widths.items():
            text = _cut(texts[column], size)
            laid.append(text.rjust(size) if _is_number(data, column) else text.ljust(size))
        return GAP.join(laid).rstrip()

    head = line({column: _heading(column) for column in widths})
    body = [line({column: cells[column][number] for column in widths}) for number in range(len(data))]
    return [f"{BOLD}{head}{PLAIN}" if is_bold else head, *body]


def _heading(column: str) -> str:
    return HEADINGS.get(column, column)


def _is_number(data: Sequence[dict[str, Any]], column: str) -> bool:
    return all(isinstance(row[column], (int, float)) or row[column] is None for row in data)


def shown(value: object, *, in_terminal: bool = False) -> str:
    """Return a value as one line of text without control characters."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        return _age(value) if in_terminal else _time(value)
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, (dict, list, tuple)):
        is_names = isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value)
        text = ",".join(value) if is_names else json.dumps(value, default=str, ensure_ascii=False)
    else:
        text = str(value)
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def shown_whole(value: object, *, indent: int) -> str:
    """Return a value as text for a terminal: lines stay lines, such as those of a traceback."""
    if not isinstance(value, str):
        return shown(value)
    return ("\n" + " " * indent).join(shown(line) for line in value.splitlines())


def _age(time: datetime) -> str:
    seconds = (datetime.now(UTC) - time).total_seconds()
    size, unit = next(((size, unit) for unit, size in UNITS if abs(seconds) >= 2 * size), (1, "s"))
    count = f"{abs(seconds) / size:.0f}{unit}"
    return f"{count} ago" if seconds >= 0 else f"in {count}"


def _cut(text: str, size: int) -> str:
    return text if len(text) <= size else text[: size - 1] + "…"
