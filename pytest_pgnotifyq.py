"""pytest's plugin for programs that use pgnotifyq: the fixture `pgnotifyq_db`.

It is a module beside the package. It imports nothing of the package before a test asks for a
fixture. So a suite that uses no fixture pays a millisecond for the plugin. docs/testing.md is the
guide.
"""

from __future__ import annotations

import os
import shutil
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pgnotifyq.testing import Database, Databases

MEMORY = Path("/dev/shm")  # noqa: S108  # a file system in memory, where there is one: databases are made six times as fast
MEMORY_BYTES_MIN = 2 << 30  # so much must be free: a container may have as little as 64 MB
# The plugin's own server is gone when the session ends. So it need not survive a crash.
SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "max_connections": "200",
    "max_wal_size": "128MB",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the ini file."""
    parser.addini(
        "pgnotifyq_dsn", "A server where pgnotifyq_db may make databases. Default: PGNOTIFYQ_DSN, else an embedded one."
    )
    parser.addini("pgnotifyq_registry", "The handlers that pgnotifyq_db.drain() uses, as package.module:registry.")
    parser.addini("pgnotifyq_schema", "The schema of the queue in pgnotifyq_db.", default="pgnotifyq")


@pytest.fixture(scope="session")
def pgnotifyq_databases(pytestconfig: pytest.Config) -> Iterator[Databases]:
    """Fresh databases, on one server for the session; under xdist, for the session of a worker."""
    from pgnotifyq.testing import Databases

    given = pytestconfig.getini("pgnotifyq_dsn") or os.environ.get("PGNOTIFYQ_DSN")
    schema = pytestconfig.getini("pgnotifyq_schema")
    with ExitStack() as stack:
        server_dsn = given or stack.enter_context(_open_server())
        yield stack.enter_context(Databases(server_dsn, schema=schema, is_kept=bool(given)))


@pytest.fixture
def pgnotifyq_db(pgnotifyq_databases: Databases, pytestconfig: pytest.Config) -> Iterator[Database]:
    """A fresh database with the queue's schema: a `pgnotifyq.testing.Database`."""
    from pgnotifyq.testing import Database

    name = pytestconfig.getini("pgnotifyq_registry")
    registry = _load(name) if name else None
    dsn = pgnotifyq_databases.take()
    database = Database(dsn, schema=pytestconfig.getini("pgnotifyq_schema"), registry=registry)
    yield database
    database.close()
    pgnotifyq_databases.give_back(dsn)


@contextmanager
def _open_server() -> Iterator[str]:
    """Run an embedded server, in memory where there is room for it."""
    from pgnotifyq.embedded import open_temporary_server

    with open_temporary_server(settings=SETTINGS, within=roomy_memory()) as server:
        yield server.dsn


def roomy_memory() -> Path | None:
    """Return a file system in memory that has room for a server; None: there is none."""
    is_roomy = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free >= MEMORY_BYTES_MIN
    return MEMORY if is_roomy else None


def _load(name: str) -> Any:
    import importlib

    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise pytest.UsageError(f"pgnotifyq_registry is {name!r}, and is to be package.module:registry: {error}") from error
