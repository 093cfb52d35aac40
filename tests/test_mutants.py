"""The list of mutants does not rot: each still fits the code, and the tests that it names are there. Running them is a command."""

from __future__ import annotations

import re

import pytest

from tests.mutants.catalogue import MUTANTS, ROOT, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name for mutant in MUTANTS])
def test_mutant_fits_the_code(mutant: Mutant) -> None:
    """Its text occurs once in its file, it changes something, and it names tests that exist."""
    text = (ROOT / mutant.file).read_text(encoding="utf-8")
    assert mutant.count(text) == 1
    assert mutant.apply(text) != text
    for test in mutant.tests:
        path, _, name = test.partition("::")
        defined = re.findall(r"^(?:async )?def (test_\w+)", (ROOT / "tests" / path).read_text(encoding="utf-8"), re.MULTILINE)
        assert name in defined or (not name and defined), test


def test_names_are_unique() -> None:
    """So that `--only` and the table say which."""
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
