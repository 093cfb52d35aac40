"""Charts: where things are drawn, and that they can be read."""

from __future__ import annotations

import itertools
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.charts import LABEL_APART, WIDTH, Bar, Line, apart, bars, lines, number

SVG = "{http://www.w3.org/2000/svg}"


@given(st.lists(st.floats(0, 300), min_size=1, max_size=12))
def test_labels_that_would_overlap(wanted: list[float]) -> None:
    """Labels keep their order and their distance, and one that has room stays where it wanted to be."""
    placed = apart(wanted, LABEL_APART)
    by_wish = sorted(range(len(wanted)), key=lambda index: wanted[index])
    ordered = [placed[index] for index in by_wish]
    assert all(below - above >= LABEL_APART - 1e-6 for above, below in itertools.pairwise(ordered))
    if len(wanted) == 1:
        assert placed == pytest.approx(wanted)


def test_bars_are_to_scale() -> None:
    """A bar of half the value is half as long; a queue without a value has no bar, and its reason instead."""
    rows = [
        Bar(name="a", value=100.0, note="100"),
        Bar(name="b", value=50.0, note="50"),
        Bar(name="c", value=None, note="did not run"),
    ]
    drawn = ET.fromstring(bars("title", "how", "jobs/s", rows))
    widths = [float(rect.attrib["width"]) for rect in drawn.iter(f"{SVG}rect")]
    assert len(widths) == 2
    assert widths[0] == pytest.approx(2 * widths[1], abs=0.2)
    assert "did not run" in [text.text for text in drawn.iter(f"{SVG}text")]


def test_a_log_scale_is_one() -> None:
    """On a scale of powers a tenfold value is one step longer, wherever it begins."""
    rows = [Bar(name=str(value), value=value, note="") for value in (1.0, 10.0, 100.0)] + [Bar(name="least", value=0.1, note="")]
    drawn = ET.fromstring(bars("title", "how", "ms", rows, log=True))
    one, ten, hundred, _ = (float(rect.attrib["width"]) for rect in drawn.iter(f"{SVG}rect"))
    assert hundred - ten == pytest.approx(ten - one, abs=0.2)


def test_a_chart_for_those_who_do_not_see_it() -> None:
    """The title and every figure are in the description, and what others wrote is escaped."""
    drawn = ET.fromstring(
        lines("Fast & slow", "how", "jobs", "jobs/s", [Line(name="<x>", points=[(1.0, 5.0), (10.0, 1234.0)])], log_across=True)
    )
    described = drawn.findtext(f"{SVG}desc") or ""
    assert drawn.findtext(f"{SVG}title") == "Fast & slow"
    assert "<x>: 5 at 1, 1,234 at 10" in described
    assert all(0 <= float(text.attrib["x"]) <= WIDTH for text in drawn.iter(f"{SVG}text"))


@pytest.mark.parametrize(
    ("value", "shown"), [(0, "0"), (0.4567, "0.46"), (1.5, "1.5"), (12.34, "12.3"), (250.4, "250"), (1234567.0, "1,234,567")]
)
def test_numbers_for_people(value: float, shown: str) -> None:
    """Three figures that count, thousands apart."""
    assert number(value) == shown
