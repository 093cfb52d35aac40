"""A proxy before the test's own database, and an open connection on it without any schema."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pgnotifyq.wire.connection import open_connection
from tests.proxy import run_proxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import trio
    from psycopg.rows import TupleRow

    from pgnotifyq.wire.connection import Connection
    from tests.proxy import Proxy


@pytest.fixture
async def bare(blank_dsn: str) -> AsyncIterator[Connection[TupleRow]]:
    """Give an open connection to an empty database."""
    async with open_connection(blank_dsn, application_name="under test") as connection:
        yield connection


@pytest.fixture
async def proxy(blank_dsn: str, nursery: trio.Nursery) -> Proxy:
    """Give a proxy before an empty database."""
    running: Proxy = await nursery.start(run_proxy, blank_dsn)
    return running
