"""The table of tests/README.md names tests that exist, for every defect."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
DEFECTS = range(1, 19)


def rows() -> dict[int, str]:
    """Return the column of tests of each numbered row."""
    found = re.findall(r"^\| (\d+) \|[^|]*\|([^|]*)\|", (TESTS / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    return {int(number): tests for number, tests in found}


def test_every_defect_has_a_test_that_exists() -> None:
    """Each of the eighteen rows names a file, and tests that it defines; `…` stands for the beginning of a name."""
    assert sorted(rows()) == list(DEFECTS)
    for number, named in rows().items():
        defined: list[str] = []
        for name in re.findall(r"`([^`]+)`", named):
            path, _, test = name.rpartition("::") if "::" in name else (name, "", "") if name.endswith(".py") else ("", "", name)
            if path:
                defined = re.findall(r"^(?:async )?def (test_\w+)", (TESTS / path).read_text(encoding="utf-8"), re.MULTILINE)
                assert defined, (number, path)
            assert not test or any(each == test or each.endswith(test.removeprefix("…")) for each in defined), (number, name)
