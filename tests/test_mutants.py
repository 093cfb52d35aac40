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


_CREATED = re.compile(r"create (?:or replace )?function \{schema\}\.(\w+)")


@pytest.mark.parametrize("mutant", [each for each in MUTANTS if "/migrations/" in each.file], ids=lambda each: each.name)
def test_what_a_migration_says_still_counts(mutant: Mutant) -> None:
    """The function that it breaks is not made again by a later file: then nothing would be broken."""
    file = ROOT / mutant.file
    text = file.read_text(encoding="utf-8")
    place = text.index(mutant.old) if isinstance(mutant.old, str) else next(mutant.old.finditer(text)).start()
    before = text[:place]
    within = _CREATED.search(before, before.rfind("$$;") + 1)
    if within is None:
        return  # of a table, or a right
    later = [each for each in file.parent.glob("*.sql") if each.name > file.name] + [*(ROOT / "sql/functions").rglob("*.sql")]
    again = [each.name for each in later if within.group(1) in _CREATED.findall(each.read_text(encoding="utf-8"))]
    assert again == []
