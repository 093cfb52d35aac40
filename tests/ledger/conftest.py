"""A second session beside `connection`, for whatever takes two."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pgnotifyq.wire.connection import open_connection

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from pgnotifyq.wire.connection import Connection


@pytest.fixture
async def other(dsn: str) -> AsyncIterator[Connection[Any]]:
    """Give a second connection to `dsn`, known to the server as `other`."""
    async with open_connection(dsn, application_name="other") as connection:
        yield connection
