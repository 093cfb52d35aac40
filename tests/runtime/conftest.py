"""A database a file, emptied for each test, as in tests/ledger; and workers that end with the test."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.ledger.conftest import dsn, dsn_of_file
from tests.runtime.shapes import misfits_nowait
from tests.runtime.support import Workplace, open_workplace

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from pgnotifyq.wire.connection import Connection

__all__ = ["dsn", "dsn_of_file"]


@pytest.fixture
async def place(dsn: str, connection: Connection[Any]) -> AsyncIterator[Workplace]:
    """Give a queue, and means to start workers on it. They and their processes end with the test."""
    async with open_workplace(dsn, connection) as place:
        yield place


@pytest.fixture(autouse=True)
def _events_fit_their_shapes() -> Iterator[None]:
    """Fail a test in which a worker of this process told an event that does not fit its shape (model/events.py)."""
    yield
    assert misfits_nowait() == []
