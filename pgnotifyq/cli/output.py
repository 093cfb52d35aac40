"""How commands show data: JSON, a table in a terminal, tabs when piped."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from collections.abc import Sequence

WIDTH_MAX = 60  # of a cell in a terminal


def as_data(row: Any) -> Any:
    """Return an attrs object as what JSON can say."""
    return attrs.asdict(row) if attrs.has(type(row)) else row


def print_json(data: Any) -> None:
    """Print data as JSON: one document, indented."""
    print(json.dumps(data, default=str, indent=2, ensure_ascii=True))


def print_rows(rows: Sequence[Any], columns: Sequence[str], *, as_json: bool, nothing: str) -> None:
    """Print objects or dicts: all their fields as JSON, or some columns as a table."""
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
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for column in columns:
            is_number = all(isinstance(row[column], (int, float)) or row[column] is None for row in data)
            table.add_column(column, justify="right" if is_number else "left", overflow="fold")
        for row in data:
            table.add_row(*(Text(_cut(shown(row[column], in_terminal=True))) for column in columns))
        Console().print(table)


def shown(value: object, *, in_terminal: bool = False) -> str:
    """Return a value as one line of text without control characters."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        return _age(value) if in_terminal else value.isoformat()
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, (dict, list, tuple)):
        is_names = isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value)
        text = ",".join(value) if is_names else json.dumps(value, default=str)
    else:
        text = str(value)
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _age(time: datetime) -> str:
    seconds = (datetime.now(UTC) - time).total_seconds()
    word, seconds = ("ago", seconds) if seconds >= 0 else ("ahead", -seconds)
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} {word}"
    return f"{seconds:.0f} s {word}"


def _cut(text: str) -> str:
    return text if len(text) <= WIDTH_MAX else text[: WIDTH_MAX - 3] + "..."
