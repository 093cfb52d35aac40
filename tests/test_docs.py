"""What the documentation names is there; and every block of it is run."""

from __future__ import annotations

import re
import shutil
import tomllib
from typing import TYPE_CHECKING

import pytest

from tests.pages import DOCS, KINDS, ROOT, as_url, blocks, walk

if TYPE_CHECKING:
    from pathlib import Path

PAGES = sorted(DOCS.glob("*.md"))
ABOUT_THE_HOUSE = {"architecture.md"}
# Pages whose blocks are run whole by a test of their own, without marks.
HAVE_A_TEST = {"django.md": "django/test_docs_page.py", "testing.md": "plugin/test_docs_page.py"}
GUIDES = [page for page in PAGES if page.name not in ABOUT_THE_HOUSE and page.name not in HAVE_A_TEST]
# pgbouncer.md is walked by tests/pooler/test_page.py.
WALKED = [
    page for page in GUIDES if page.name != "pgbouncer.md" and any(block.kind in {"run", "serve"} for block in blocks(page))
]
LINE_LENGTH_MAX = 100


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_files_that_are_named_exist(page: Path) -> None:
    """Every path in code spans, below the package, at the top or made by the page itself, and every link."""
    text = page.read_text(encoding="utf-8")
    own = {block.name for block in blocks(page) if block.kind == "file"}
    named = {name for name in re.findall(r"`([\w./]+/[\w./]*|\w+\.py)`", text) if "::" not in name}
    links = re.findall(r"\]\((?!http)([^)#]+)", text)
    for name in sorted(named - own):
        assert (ROOT / name).exists() or (ROOT / "pgnotifyq" / name).exists(), name
    for link in links:
        assert (page.parent / link).exists(), link


@pytest.mark.parametrize("page", GUIDES, ids=[page.name for page in GUIDES])
def test_every_block_has_a_mark(page: Path) -> None:
    """So that none is left out by mistake; and a test that runs blocks by name says which page's."""
    for block in blocks(page):
        assert block.kind in KINDS, block
        assert block.name or block.kind not in {"file", "test", "not run"}, block
    assert len(blocks(page)) == page.read_text(encoding="utf-8").count("\n```") / 2
    if any(block.kind == "test" for block in blocks(page)):
        assert any(page.name in test.read_text(encoding="utf-8") for test in (ROOT / "tests").rglob("test_*.py"))


@pytest.mark.parametrize("page", GUIDES, ids=[page.name for page in GUIDES])
def test_lines_are_short(page: Path) -> None:
    """Prose has at most a hundred characters a line; tables and links may have more."""
    inside = False
    for line in page.read_text(encoding="utf-8").splitlines():
        inside ^= line.startswith("```")
        assert inside or line.startswith("|") or len(line) <= LINE_LENGTH_MAX, line


def test_every_page_is_listed() -> None:
    """In the index."""
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in PAGES if page.name != "README.md" and f"]({page.name})" not in index] == []


@pytest.mark.parametrize("page", GUIDES, ids=[page.name for page in GUIDES])
def test_what_is_installed_can_be_tested(page: Path) -> None:
    """What a page asks to install is an extra of ours, or in the extra that these tests run with."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    tested = {re.split(r"[^\w-]", one)[0].lower() for one in extras["test"]}
    for block in blocks(page):
        if block.kind != "install":
            continue
        assert block.text.startswith("pip install ") and block.text.count("\n") == 1
        for word in block.text.removeprefix("pip install ").replace("'", "").split():
            name, _, inside = word.rstrip("]").partition("[")
            assert name == "pgnotifyq" or name.lower() in tested, word
            assert name != "pgnotifyq" or not inside or set(inside.split(",")) <= set(extras), word


@pytest.mark.parametrize("page", WALKED, ids=[page.name for page in WALKED])
def test_page_does_what_it_says(page: Path, dsn: str, tmp_path: Path) -> None:
    """From its first block to its last, as a reader does it."""
    if shutil.which("curl") is None and any("curl " in block.text for block in blocks(page)):
        pytest.skip("curl is not installed: the page calls the server with it")
    walk(page, tmp_path, dsn)


def test_addresses() -> None:
    """The address in PGNOTIFYQ_DSN is a URL, as the pages have it."""
    assert as_url("host=h port=5 user=u dbname=d password='p w'") == "postgresql://u:p%20w@h:5/d"
    assert as_url("host=/s user=u dbname=d") == "postgresql://u@/d?host=%2Fs&port=5432"


def test_other_pages_have_a_test() -> None:
    """One that names them."""
    for page, test in HAVE_A_TEST.items():
        if (DOCS / page).exists():
            assert page in (ROOT / "tests" / test).read_text(encoding="utf-8")
