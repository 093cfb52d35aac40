"""Charts as SVG, by hand: bars and lines, labelled where the data is, legible on light and dark backgrounds.

Pure: numbers in, text out. Grey text has a contrast of at least 4 to 1 on white and on GitHub's dark background, for viewers
that do not tell an image which of the two it is on. Ours is told by weight and by an outline as well as by colour.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

WIDTH = 760
LEFT = 130  # of the plot: names of bars
RIGHT = 150  # beside the plot: values, names of lines
ROW = 30
TOP = 74  # title and what is measured
LABEL_APART = 15  # two labels at the ends of lines

STYLE = """
text { font: 13px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #6e7781; }
.title { font-size: 17px; font-weight: 600; }
.ours { font-weight: 700; }
.small { font-size: 11.5px; }
.grid { stroke: #8c959f; stroke-opacity: .3; }
.axis { stroke: #8c959f; }
.bar { fill: #8c959f; }
.bar.ours { fill: #1f7fd4; }
.mark { stroke: #6e7781; stroke-width: 2; }
.line { fill: none; stroke: #8c959f; stroke-width: 1.8; }
.line.ours { stroke: #1f7fd4; stroke-width: 3.2; }
.dot { fill: #8c959f; }
.dot.ours { fill: #1f7fd4; }
@media (prefers-color-scheme: light) { text { fill: #424a53; } }
@media (prefers-color-scheme: dark) { text { fill: #c9d1d9; } .bar.ours, .dot.ours { fill: #4aa3f0; } .line.ours { stroke: #4aa3f0; } }
"""


@attrs.frozen(kw_only=True)
class Bar:
    """A bar, and perhaps a second value that is marked on the same scale."""

    name: str
    value: float | None  # None: there is none, and `note` says why
    note: str  # beside the bar
    mark: float | None = None
    ours: bool = False


@attrs.frozen(kw_only=True)
class Line:
    """A line through points."""

    name: str
    points: Sequence[tuple[float, float]]
    ours: bool = False


def bars(title: str, subtitle: str, axis: str, rows: Sequence[Bar], *, log: bool = False) -> str:
    """Draw horizontal bars, in the order given.

    Args:
        title: what is asked.
        subtitle: how it was taken.
        axis: what the bars measure, with the unit, and what a mark is.
        rows: the bars.
        log: a scale of powers of ten, for values that differ by orders of magnitude.
    """
    known = [value for row in rows for value in (row.value, row.mark) if value is not None]
    ticks = _powers(min(known), max(known)) if log else _ticks(max(known))
    plot = WIDTH - LEFT - RIGHT
    across = _scale(ticks[0], ticks[-1], LEFT, LEFT + plot, log=log)
    bottom = TOP + ROW * len(rows)
    parts = [_grid_line(across(tick), TOP - 4, across(tick), bottom) for tick in ticks]
    parts += [_text(across(tick), bottom + 16, number(tick), "small", anchor="middle") for tick in ticks]
    parts.append(_text(LEFT + plot / 2, bottom + 36, axis, "small", anchor="middle"))
    for index, row in enumerate(rows):
        middle = TOP + ROW * index + ROW / 2
        ours = " ours" if row.ours else ""
        parts.append(_text(LEFT - 10, middle + 4.5, row.name, ours, anchor="end"))
        end = float(LEFT)
        if row.value is not None:
            end = max(across(row.value), LEFT + 1.0)
            parts.append(f'<rect class="bar{ours}" x="{LEFT}" y="{middle - 9:.1f}" width="{end - LEFT:.1f}" height="18" rx="2"/>')
        if row.mark is not None:
            end = max(end, across(row.mark))
            x = across(row.mark)
            parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{middle - 9:.1f}" y2="{middle + 9:.1f}"/>')
            parts.append(
                f'<line class="mark" x1="{across(row.value or ticks[0]):.1f}" x2="{x:.1f}" y1="{middle}" y2="{middle}"/>'
            )
        parts.append(_text(end + 8, middle + 4.5, row.note, f"small{ours}"))
    described = "; ".join(f"{row.name}: {row.note}" for row in rows)
    return _document(title, subtitle, described, bottom + 48, parts)


def lines(
    title: str,
    subtitle: str,
    across_axis: str,
    up_axis: str,
    series: Sequence[Line],
    *,
    log_across: bool = False,
    log_up: bool = False,
) -> str:
    """Draw lines, each with its name at its end.

    Args:
        title: what is asked.
        subtitle: how it was taken.
        across_axis: what goes to the right, with the unit.
        up_axis: what goes up, with the unit.
        series: the lines; ours is drawn last, on top.
        log_across: a scale of powers to the right; every x is a tick.
        log_up: a scale of powers of ten upwards.
    """
    height, left, top = 300, 84, TOP + 14
    ups = [y for line in series for _, y in line.points]
    ticks_up = _powers(min(ups), max(ups)) if log_up else _ticks(max(ups))
    ticks_across = sorted({x for line in series for x, _ in line.points})
    right = WIDTH - RIGHT
    across = _scale(ticks_across[0], ticks_across[-1], left, right - 12, log=log_across)
    up = _scale(ticks_up[0], ticks_up[-1], top + height, top, log=log_up)
    parts = [_text(12, TOP - 2, up_axis, "small")]
    for tick in ticks_up:
        parts += [_grid_line(left, up(tick), right, up(tick)), _text(left - 8, up(tick) + 4, number(tick), "small", anchor="end")]
    for tick in ticks_across:
        parts.append(_text(across(tick), top + height + 18, number(tick), "small", anchor="middle"))
    parts.append(f'<line class="axis" x1="{left}" x2="{right}" y1="{top + height}" y2="{top + height}"/>')
    parts.append(_text((left + right) / 2, top + height + 38, across_axis, "small", anchor="middle"))
    ends = []
    for line in sorted(series, key=lambda line: line.ours):
        ours = " ours" if line.ours else ""
        path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in line.points)
        parts.append(f'<polyline class="line{ours}" points="{path}"/>')
        parts += [
            f'<circle class="dot{ours}" cx="{across(x):.1f}" cy="{up(y):.1f}" r="{3.5 if ours else 2.5}"/>'
            for x, y in line.points
        ]
        ends.append((up(line.points[-1][1]), across(line.points[-1][0]), line))
    for y, (wanted, x, line) in zip(apart([end[0] for end in ends], LABEL_APART), ends, strict=True):
        ours = " ours" if line.ours else ""
        if abs(y - wanted) > 4:
            parts.append(_grid_line(x + 5, wanted, right + 6, y))
        parts.append(_text(right + 8, y + 4, f"{line.name} {number(line.points[-1][1])}", f"small{ours}"))
    described = "; ".join(f"{line.name}: " + ", ".join(f"{number(y)} at {number(x)}" for x, y in line.points) for line in series)
    return _document(title, subtitle, described, top + height + 50, parts)


def apart(wanted: Sequence[float], distance: float) -> list[float]:
    """Return places near those wanted, in the same order, no two closer than a distance."""
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    # Groups of labels that touch, each centred on what its members wanted.
    groups: list[list[int]] = []
    for index in order:
        groups.append([index])
        while len(groups) > 1 and _top(groups[-1], wanted, distance) - _bottom(groups[-2], wanted, distance) < distance:
            last = groups.pop()
            groups[-1] += last
    placed = [0.0] * len(wanted)
    for group in groups:
        for offset, index in enumerate(group):
            placed[index] = _top(group, wanted, distance) + offset * distance
    return placed


def _top(group: Sequence[int], wanted: Sequence[float], distance: float) -> float:
    return sum(wanted[index] for index in group) / len(group) - distance * (len(group) - 1) / 2


def _bottom(group: Sequence[int], wanted: Sequence[float], distance: float) -> float:
    return _top(group, wanted, distance) + distance * (len(group) - 1)


def number(value: float) -> str:
    """Return a number for people: thousands apart, three figures that count."""
    if value == 0 or value >= 100:
        return f"{value:,.0f}"
    if value >= 10:
        return f"{value:.1f}".removesuffix(".0")
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _ticks(most: float) -> list[float]:
    """Return ticks from zero past the largest value: four to seven round ones."""
    rough = most / 5
    step = next(part * 10.0**power for power in range(-4, 12) for part in (1, 2, 2.5, 5) if part * 10.0**power >= rough)
    return [step * index for index in range(math.ceil(most / step) + 1)]


def _powers(least: float, most: float) -> list[float]:
    return [10.0**power for power in range(math.floor(math.log10(least)), math.ceil(math.log10(most)) + 1)]


def _scale(least: float, most: float, begin: float, end: float, *, log: bool) -> Callable[[float], float]:
    def place(value: float) -> float:
        part = math.log(value / least) / math.log(most / least) if log else (value - least) / (most - least)
        return begin + part * (end - begin)

    return place


def _text(x: float, y: float, text: str, kind: str, *, anchor: str = "start") -> str:
    return f'<text class="{kind.strip()}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _grid_line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="grid" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _document(title: str, subtitle: str, described: str, height: float, parts: Sequence[str]) -> str:
    size = f'width="{WIDTH}" height="{height:.0f}"'
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" {size} role="img" aria-labelledby="title desc">',
        f'<title id="title">{escape(title)}</title>',
        f'<desc id="desc">{escape(subtitle)}. {escape(described)}</desc>',
        f"<style>{STYLE}</style>",
        _text(12, 26, title, "title"),
        _text(12, 48, subtitle, "small"),
    ]
    return "\n".join([*head, *parts, "</svg>\n"])
