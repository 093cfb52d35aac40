"""The tree of errors: what its drawing says."""

from __future__ import annotations

import re

import pytest

from pgnotifyq.model import errors
from pgnotifyq.model.errors import PgnotifyqError, first_line_of

# A branch is four characters wide.
LINE = re.compile(r"^    (?P<branches>(?:│   |    )*(?:[├└]── )?)(?P<name>[A-Z]\w+)(?: {2,}.*)?$")


def drawn() -> list[tuple[str, str | None]]:
    """Return (class, base) as the module's docstring draws them, from the top."""
    path: list[str] = []
    tree = []
    for line in (errors.__doc__ or "").splitlines():
        if (found := LINE.match(line)) is not None:
            depth = len(found["branches"]) // 4
            del path[depth:]
            tree.append((found["name"], path[-1] if path else None))
            path.append(found["name"])
    return tree


def defined() -> list[tuple[str, str | None]]:
    """Return (class, base) as the module defines them."""
    classes = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, PgnotifyqError)]
    return [(kind.__name__, None if kind is PgnotifyqError else kind.__bases__[0].__name__) for kind in classes]


def test_drawing_is_the_classes() -> None:
    """The tree in the docstring has every class of the module, under its base, in the order of the module."""
    assert drawn() == defined()
    assert len(drawn()) > 20


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one\ntwo"), "one"),
        (ValueError(), "ValueError"),
        (ValueError("\n \n"), "ValueError"),
        (ValueError("\ntwo"), "two"),
    ],
    ids=["two lines", "no text", "blank lines", "a blank line first"],
)
def test_first_line(error: ValueError, line: str) -> None:
    """It says something, also of an error without a text: psycopg has such."""
    assert first_line_of(error) == line
