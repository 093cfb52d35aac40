"""A fresh database for each test, and the verbs of a test on it."""

from __future__ import annotations

import queue
import threading
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self, Unpack
from urllib.parse import quote, urlencode

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgnotifyq.ledger.schema import migrate
from pgnotifyq.model.errors import ConfigError
from pgnotifyq.testing import clocks, draining, enqueued
from pgnotifyq.wire.asking import ask_blocking

if TYPE_CHECKING:
    from datetime import datetime

    from pgnotifyq.model.config import WorkerSettings
    from pgnotifyq.model.handler import Handler
    from pgnotifyq.model.job import OrgId
    from pgnotifyq.model.registry import JobRegistry
    from pgnotifyq.testing.draining import Drained
    from pgnotifyq.testing.enqueued import Jobs
    from pgnotifyq.wire.kinds import CallersConnection

SPARES_MAX = 2  # databases made ahead, while tests run
FAREWELL_SECONDS = 30.0  # how long the end waits for the thread to drop what is left


class Databases:
    """Fresh databases on a server, each a copy of a template that was migrated once.

    While a test runs, a thread makes a spare database, and drops those that were given back.
    """

    def __init__(self, server_dsn: str, *, schema: str = "pgnotifyq", is_kept: bool = True) -> None:
        self._server_dsn = server_dsn
        self._schema = schema
        self._is_kept = is_kept  # whether the server goes on when this ends
        self._template = ""
        self._names: set[str] = set()  # of the databases that exist
        self._spares: queue.Queue[str | BaseException] = queue.Queue()
        # The thread's work: a name: drop that database; empty: make one; None: end.
        self._work: queue.Queue[str | None] = queue.Queue()
        self._thread = threading.Thread(target=self._keep_house, name="pgnotifyq databases", daemon=True)

    def __enter__(self) -> Self:
        self._template = self._name()
        with self._connect() as server:
            self._create(server, self._template, "template1")
            try:
                self._migrate()
            except BaseException:
                self._drop(server, self._template)
                raise
        self._thread.start()
        for _ in range(SPARES_MAX):
            self._work.put("")
        return self

    def __exit__(self, *_: object) -> None:
        self._work.put(None)
        self._thread.join(FAREWELL_SECONDS)
        if self._is_kept:
            with self._connect() as server:
                for name in list(self._names):
                    self._drop(server, name)

    def take(self) -> str:
        """Return the address of a fresh database.

        Raises:
            psycopg.Error: it could not be made.
        """
        self._work.put("")
        spare = self._spares.get()
        if isinstance(spare, BaseException):
            self._spares.put(spare)  # for the next caller: no spare will come any more
            raise spare
        return self._dsn_of(spare)

    def give_back(self, dsn: str) -> None:
        """Drop a database, some time later. Sessions that are left in it are ended."""
        self._work.put(str(conninfo_to_dict(dsn)["dbname"]))

    def _migrate(self) -> None:
        """Give the template the queue's schema.

        Roles belong to the server. Another process may make the same role at the same moment, for a
        template of its own. Then this migration is undone. When it is tried again, it finds the
        role.
        """
        with psycopg.connect(self._dsn_of(self._template), autocommit=True) as session:
            for is_last in (False, True):
                try:
                    ask_blocking(session, migrate(self._schema))
                except psycopg.errors.UniqueViolation:
                    if is_last:
                        raise
                else:
                    return

    def _keep_house(self) -> None:
        """Make and drop databases until there is no more to do, or until one cannot be made."""
        try:
            with self._connect() as server:
                while (name := self._work.get()) is not None:
                    if name:
                        with suppress(psycopg.Error):  # what is left is dropped at the end
                            self._drop(server, name)
                    else:
                        spare = self._name()
                        self._create(server, spare, self._template)
                        self._spares.put(spare)
        except psycopg.Error as error:
            self._spares.put(error)

    def _connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self._server_dsn, autocommit=True, application_name="pgnotifyq testing")

    def _dsn_of(self, name: str) -> str:
        return make_conninfo(self._server_dsn, dbname=name)

    @staticmethod
    def _name() -> str:
        return f"pgnotifyq_test_{uuid.uuid4().hex}"  # no two processes make the same

    def _create(self, server: psycopg.Connection[Any], name: str, template: str) -> None:
        statement = sql.SQL("create database {} template {} strategy file_copy")
        server.execute(statement.format(sql.Identifier(name), sql.Identifier(template)))
        self._names.add(name)

    def _drop(self, server: psycopg.Connection[Any], name: str) -> None:
        server.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))
        self._names.discard(name)


class Database:
    """A test's own database: what the fixture `pgnotifyq_db` gives.

    Attributes:
        dsn: its address, for clients, workers and psycopg.
        schema: where the queue is in it.
        registry: the handlers that `drain` uses if it is given none.
    """

    def __init__(self, dsn: str, *, schema: str = "pgnotifyq", registry: JobRegistry | None = None) -> None:
        self.dsn = dsn
        self.schema = schema
        self.registry = registry
        self._connection: psycopg.Connection[Any] | None = None

    @property
    def connection(self) -> psycopg.Connection[Any]:
        """A blocking connection of psycopg's, in autocommit; the same connection each time."""
        if self._connection is None or self._connection.closed:
            self._connection = psycopg.connect(self.dsn, autocommit=True)
        return self._connection

    def url(self, driver: str = "psycopg") -> str:
        """Return its address as SQLAlchemy writes it, for a driver: psycopg, asyncpg, psycopg2."""
        parts = conninfo_to_dict(self.dsn)
        known = {name: str(parts[name]) for name in ("host", "port") if parts.get(name)}
        who = ":".join(quote(str(parts[name]), safe="") for name in ("user", "password") if parts.get(name))
        return f"postgresql+{driver}://{who}{'@' if who else ''}/{quote(str(parts['dbname']))}?{urlencode(known)}"

    def assert_enqueued(
        self,
        job_type: str | Handler[Any, Any, Any],
        /,
        *,
        connection: CallersConnection | None = None,
        payload: object = None,
        queue: str | None = None,
        org_id: OrgId | uuid.UUID | None = None,
        priority: int | None = None,
        unique_key: str | None = None,
        scheduled: bool | datetime | str | None = None,
        count: int | None = None,
        **fields: object,
    ) -> Jobs:
        """Assert that a job is enqueued: `pgnotifyq.testing.assert_enqueued`, in this database.

        Without `connection`, it sees what is committed, and is not awaited.
        """
        __tracebackhide__ = True
        return enqueued.assert_enqueued(
            job_type,
            connection=self.connection if connection is None else connection,
            payload=payload,
            queue=queue,
            org_id=org_id,
            priority=priority,
            unique_key=unique_key,
            scheduled=scheduled,
            count=count,
            schema=self.schema,
            **fields,
        )

    def refute_enqueued(
        self,
        job_type: str | Handler[Any, Any, Any],
        /,
        *,
        connection: CallersConnection | None = None,
        payload: object = None,
        queue: str | None = None,
        org_id: OrgId | uuid.UUID | None = None,
        priority: int | None = None,
        unique_key: str | None = None,
        scheduled: bool | datetime | str | None = None,
        **fields: object,
    ) -> Jobs:
        """Assert that no such job is enqueued, as `assert_enqueued` reads it."""
        __tracebackhide__ = True
        return enqueued.refute_enqueued(
            job_type,
            connection=self.connection if connection is None else connection,
            payload=payload,
            queue=queue,
            org_id=org_id,
            priority=priority,
            unique_key=unique_key,
            scheduled=scheduled,
            schema=self.schema,
            **fields,
        )

    def drain(
        self,
        registry: JobRegistry | None = None,
        *,
        connection: CallersConnection | None = None,
        raises: bool = True,
        timeout_seconds: float = draining.IDLE_SECONDS_MAX,
        **settings: Unpack[WorkerSettings],
    ) -> Drained:
        """Run what is due to its end: `pgnotifyq.testing.drain`, in this database.

        In an async test, await it. Without `registry`, it uses `db.registry`. The fixture sets that
        to the registry of the ini option `pgnotifyq_registry`.

        Raises:
            ConfigError: there is no registry.
        """
        registry = self.registry if registry is None else registry
        if registry is None:
            raise ConfigError(
                "drain has no handlers: pass the registry, or name it in pytest's ini option pgnotifyq_registry,"
                " as shop.jobs:registry"
            )
        settings.setdefault("schema", self.schema)
        dsn = self.dsn if connection is None else None
        return draining.drain(registry, dsn, connection=connection, raises=raises, timeout_seconds=timeout_seconds, **settings)

    def at(self, time: datetime | str, *, connection: CallersConnection | None = None) -> clocks.at:
        """Let this database's clock stand at a time: `pgnotifyq.testing.at`."""
        dsn = self.dsn if connection is None else None
        return clocks.at(time, dsn, connection=connection, schema=self.schema)

    def close(self) -> None:
        """Close its connection."""
        if self._connection is not None:
            self._connection.close()
