"""docs/pgbouncer.md, with a real one before the database."""

from __future__ import annotations

import configparser
from typing import TYPE_CHECKING

from tests.pages import DOCS, as_url, blocks, walk
from tests.pooler.support import KEEPS_TRACK

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.pooler.support import Pooler

PAGE = DOCS / "pgbouncer.md"


def test_page_does_what_it_says(pool: Callable[..., Pooler], dsn: str, tmp_path: Path) -> None:
    """With the pooler set as the page has it; an older one knows nothing of prepared statements."""
    [text] = [block.text for block in blocks(PAGE) if block.name == "pgbouncer.ini"]
    ini = configparser.ConfigParser()
    ini.read_string(text)
    settings = dict(ini["pgbouncer"])
    if not KEEPS_TRACK:
        del settings["max_prepared_statements"]
    pooler = pool(**settings)
    walk(PAGE, tmp_path, pooler.dsn, environment={"DIRECT_DSN": as_url(dsn)})
