"""One database a file, emptied for each test: cloning one takes longer than most of these tests. And a second session."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pgnotifyq.wire.blocking import Connection, connect
from tests.conftest import _database
from tests.ledger.support import migrate

if TYPE_CHECKING:
    from collections.abc import Iterator

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
def connection(dsn: str) -> Iterator[Connection[Any]]:
    """Give a connection to `dsn`, in autocommit."""
    connection = connect(dsn)
    yield connection
    connection.close()


@pytest.fixture
def other(dsn: str) -> Iterator[Connection[Any]]:
    """Give a second connection to `dsn`, known to the server as `other`. It waits for no lock for ever: a test fails then."""
    connection = connect(dsn, application_name="other", options="-c lock_timeout=5s")
    yield connection
    connection.close()


@pytest.fixture
def plain(server_dsn: str) -> Iterator[Connection[Any]]:
    """Give a connection as an ordinary role, which owns its database and its schema, as on a managed server. Row security binds it."""
    name = f"plain_{uuid.uuid4().hex[:8]}"
    role, tenant = sql.Identifier(name), sql.Identifier(f"{name}_tenant")
    with connect(server_dsn) as server:
        server.execute(sql.SQL("create role {} createrole").format(role))
        server.execute(sql.SQL("create database {} owner {}").format(role, role))
        try:
            with connect(make_conninfo(server_dsn, dbname=name)) as link:
                link.execute(sql.SQL("set session authorization {}").format(role))
                migrate(link, name)
                yield link
        finally:
            server.execute(sql.SQL("drop database {} with (force)").format(role))
            server.execute(sql.SQL("drop role if exists {}").format(tenant))
            server.execute(sql.SQL("drop role {}").format(role))
