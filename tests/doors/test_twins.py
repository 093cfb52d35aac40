"""The blocking files are what is made from the awaited ones. Compared without their layout, which is the linter's affair."""

from __future__ import annotations

import ast
import io
import tokenize

import pytest

from tests.doors.twins import DOORS, PAIRS, made

IMPORTS = (ast.Import, ast.ImportFrom)


def comments(text: str) -> list[str]:
    return [token.string for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type == tokenize.COMMENT]


def said(text: str) -> tuple[set[str], list[str]]:
    """Return what a module imports, in no order, and all else that it says."""
    tree = ast.parse(text)
    imports = {
        f"{node.module if isinstance(node, ast.ImportFrom) else ''} {name.name}"
        for node in ast.walk(tree)
        if isinstance(node, IMPORTS)
        for name in node.names
    }
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.If)):
            node.body = [inner for inner in node.body if not isinstance(inner, IMPORTS)]
    return imports, ast.unparse(tree).splitlines()


@pytest.mark.parametrize("source", PAIRS)
def test_blocking_file_is_made_from_the_awaited_one(source: str) -> None:
    wanted, found = made(source), (DOORS / PAIRS[source]).read_text(encoding="utf-8")
    assert said(found) == said(wanted), "run `python -m tests.doors.twins`"
    assert comments(found) == comments(wanted), "run `python -m tests.doors.twins`"


@pytest.mark.parametrize("source", PAIRS)
def test_nothing_waits_on_a_loop_in_what_is_made(source: str) -> None:
    text = made(source)
    waits = (ast.AsyncFunctionDef, ast.Await, ast.AsyncWith, ast.AsyncFor)
    assert not [node for node in ast.walk(ast.parse(text)) if isinstance(node, waits)]
    assert "Cancellation:" not in text
    assert "Awaitable" not in text
