"""The database of the tests: real, always. PGNOTIFYQ_DSN when it is set, else an embedded server for the session.

Every test has a database of its own, cloned from a template that was migrated once.
"""

from __future__ import annotations

import compileall
import os
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
import trio
from hypothesis import HealthCheck, settings
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pgnotifyq.embedded import open_temporary_server
from pgnotifyq.migrating import migrate
from pgnotifyq.wire.connection import connect, open_connection
from pytest_pgnotifyq import roomy_memory

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from pgnotifyq.wire.connection import Connection

# A machine may stand still for a second: no example is judged by its time. And what failed once fails again.
settings.register_profile(
    "pgnotifyq", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("pgnotifyq")

# Of the embedded server. Nothing here asks whether data survives a crash but the tests that start a server of their own.
SETTINGS = {
    "fsync": "off",
    "max_connections": "200",
    "max_wal_size": "128MB",  # its files may be in memory
    "track_functions": "all",
    "deadlock_timeout": "200ms",
}

# Tests start a thousand processes. Where Python is told to keep no bytecode, as in many images, each would compile the package
# anew, which takes as long as all else of its start. What does not change in a session is compiled once; a program that a test
# writes is not.
if sys.dont_write_bytecode and "PYTEST_XDIST_WORKER" not in os.environ:
    compileall.compile_dir(Path(__file__).parent.parent / "pgnotifyq", quiet=2)


@pytest.fixture(scope="session")
def server_dsn() -> Iterator[str]:
    """A server where databases may be made and dropped."""
    given = os.environ.get("PGNOTIFYQ_DSN")
    if given:
        yield given
        _drop_all_but(0, given)
        return
    version = int(os.environ.get("PGNOTIFYQ_TEST_POSTGRES", "18"))
    with open_temporary_server(version=version, settings=SETTINGS, within=roomy_memory()) as server:
        yield server.dsn


@pytest.fixture(scope="session")
def template(server_dsn: str) -> Iterator[str]:
    """The name of a migrated database that others are cloned from."""
    with _database(server_dsn) as dsn:

        async def make() -> None:
            async with open_connection(dsn) as connection:
                await migrate(connection)

        trio.run(make)
        yield _name(dsn)


@pytest.fixture
def blank_dsn(server_dsn: str) -> Iterator[str]:
    """A fresh database without our schema."""
    with _database(server_dsn) as dsn:
        yield dsn


@pytest.fixture
def dsn(server_dsn: str, template: str) -> Iterator[str]:
    """A fresh database with our schema."""
    with _database(server_dsn, template) as dsn:
        yield dsn


@pytest.fixture
async def connection(dsn: str) -> AsyncIterator[Connection[tuple[object, ...]]]:
    """A connection to `dsn`, in autocommit."""
    connection = await connect(dsn)
    yield connection
    await connection.close()


class _database:  # noqa: N801  # reads as a function
    """A database for the length of a block."""

    def __init__(self, server_dsn: str, template: str = "template1") -> None:
        self._server_dsn = server_dsn
        self._template = template
        self._name = f"pgnotifyq_{uuid.uuid4().hex[:12]}"

    def __enter__(self) -> str:
        with psycopg.connect(self._server_dsn, autocommit=True) as server:
            statement = sql.SQL("create database {} template {}")
            server.execute(statement.format(sql.Identifier(self._name), sql.Identifier(self._template)))
        return make_conninfo(self._server_dsn, dbname=self._name)

    def __exit__(self, *_: object) -> None:
        _left.append(self._name)
        _drop_all_but(1, self._server_dsn)


# Databases that are done with. A drop that finds a session waits a tenth of a second for it, and the last sessions of a test have
# been closed this moment. So a database is dropped when the next one is done with; the last goes with the server, or at the end.
_left: list[str] = []


def _drop_all_but(kept: int, server_dsn: str) -> None:
    if len(_left) <= kept:
        return
    with psycopg.connect(server_dsn, autocommit=True) as server:
        while len(_left) > kept:
            name = _left.pop(0)
            server.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))
            # What `migrate` made for it. Roles are the server's.
            for (role,) in server.execute("select rolname from pg_roles where position(%s in rolname) > 0", (name,)).fetchall():
                server.execute(sql.SQL("drop role {}").format(sql.Identifier(role)))


def _name(dsn: str) -> str:
    return str(psycopg.conninfo.conninfo_to_dict(dsn)["dbname"])
