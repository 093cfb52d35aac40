"""docs/upgrading.md: what it says of payloads and of old types."""

from __future__ import annotations

import psycopg
import pytest

from pgnotifyq.testing import run_job
from tests.pages import DOCS, blocks, named

PAGE = DOCS / "upgrading.md"


def test_jobs_left(dsn: str) -> None:
    """The query counts what waits."""
    with psycopg.connect(dsn, autocommit=True) as session:
        session.execute("select pgnotifyq.enqueue('old_name'), pgnotifyq.enqueue('old_name'), pgnotifyq.enqueue('other')")
        assert session.execute(named(PAGE)["left"].encode()).fetchall() == [("pending", 2)]


@pytest.mark.parametrize(
    ("payload", "outcome"),
    [
        ({"path": "a"}, "completed"),
        ({"path": "a", "width": 1}, "completed"),
        ({"path": "a", "gone": 1}, "completed"),
        ({"width": 1}, "undecodable"),
    ],
)
async def test_payloads_of_other_releases(payload: dict[str, object], outcome: str) -> None:
    """A field with a default may be missing, one that is not known is passed over, one that is required is wanted."""
    [text] = [block.text for block in blocks(PAGE) if block.name == "jobs.py"]
    module: dict[str, object] = {}
    exec(text, module)
    assert (await run_job(module["registry"], "resize", payload)).outcome == outcome  # type: ignore[arg-type]
