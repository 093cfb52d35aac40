"""One database a file, emptied for each test: cloning one takes longer than most of these tests. And a second session."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from pgnotifyq.wire.connection import open_connection
from tests.conftest import _database

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from pgnotifyq.wire.connection import Connection

TABLES = (
    "jobs",
    "job_executions",
    "dead_letter_jobs",
    "worker_heartbeats",
    "sleepers",
    "job_troubles",
    "handlers",
    "hooks",
    "retention",
    "pauses",
    "schedules",
    "schedule_ticks",
    "stack_requests",
    "org_names",
    "org_config",
    "org_credentials",
    "org_audit",
    "followers",
    "job_logs",
)


@pytest.fixture(scope="module")
def dsn_of_file(server_dsn: str, template: str) -> Iterator[str]:
    """Give a database with our schema to all tests of a file."""
    with _database(server_dsn, template) as dsn:
        yield dsn


@pytest.fixture
def dsn(dsn_of_file: str) -> str:
    """Give a database with our schema and no rows."""
    with psycopg.connect(dsn_of_file, autocommit=True) as connection:
        connection.execute(f"truncate {', '.join(f'pgnotifyq.{table}' for table in TABLES)}".encode())
    return dsn_of_file


@pytest.fixture
async def other(dsn: str) -> AsyncIterator[Connection[Any]]:
    """Give a second connection to `dsn`, known to the server as `other`. It waits for no lock for ever: a test fails then."""
    async with open_connection(dsn, application_name="other", options="-c lock_timeout=5s") as connection:
        yield connection
