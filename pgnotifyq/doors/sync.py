"""The blocking door, for threads, and for processes that fork.

Its verbs are in files of their own: for one job (jobs_blocking.py), for many jobs and whole queues
(operating_blocking.py), for schedules (schedules_blocking.py), for following jobs
(blocking_watching.py). blocking_ends.py tells how a waiting thread hears of a job's end.
"""

from __future__ import annotations

import atexit
import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakSet

import attrs

from pgnotifyq.doors.blocking_ends import BlockingEnds
from pgnotifyq.doors.blocking_watching import BlockingWatching, BlockingWatchingVerbs
from pgnotifyq.doors.for_org_blocking import OrgClient
from pgnotifyq.doors.jobs_blocking import BlockingJobs
from pgnotifyq.doors.operating_blocking import BlockingOperating
from pgnotifyq.doors.org_verbs import OrgVerbs
from pgnotifyq.doors.schedules_blocking import BlockingSchedules
from pgnotifyq.doors.verbs import CONNECTIONS_MAX_DEFAULT, SAVEPOINT_ALONE, Verbs, enqueue_alone
from pgnotifyq.ledger.schema import check_schema
from pgnotifyq.model.errors import ClientClosed
from pgnotifyq.model.new_job import NewJob
from pgnotifyq.model.organisation import org
from pgnotifyq.wire.asking import ask_blocking
from pgnotifyq.wire.blocking import Pool, connect
from pgnotifyq.wire.callers import ask_on_blocking
from pgnotifyq.wire.sessions import For

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

    from pgnotifyq.ledger.ask import Verb
    from pgnotifyq.ledger.pauses import Scope
    from pgnotifyq.model.job import DeadLetter, Job, JobId, OrgId
    from pgnotifyq.model.registry import JobRegistry
    from pgnotifyq.model.stack import Stack
    from pgnotifyq.wire.blocking import Connection
    from pgnotifyq.wire.kinds import CallersConnection

T = TypeVar("T")


@contextmanager
def open_client(
    dsn: str,
    *,
    schema: str = "pgnotifyq",
    connections_max: int = CONNECTIONS_MAX_DEFAULT,
    registry: JobRegistry | None = None,
    listen_dsn: str | None = None,
) -> Iterator[Client]:
    """Open a client for the length of a block. Any number of threads may use it.

    The client may be opened before a fork, as by a server that preloads its application. Each child
    opens connections of its own when it first uses the client. The parent's connections go on
    undisturbed.

    Args:
        dsn: the database. If it names several servers, the client uses the first that can write. If
            it says `target_session_attrs`, the client uses the first that this admits, as for
            reading on a standby.
        schema: where the queue lives.
        connections_max: how many connections the client may use in each process, besides one for
            waiting.
        registry: if given, `enqueue` refuses unknown types and payloads that do not fit, and takes
            the handlers' defaults of queue and max_attempts.
        listen_dsn: an address where LISTEN works, for waiting, if `dsn` leads to a pooler in
            transaction mode.

    Raises:
        DatabaseUnreachable: no server answers.
        SchemaMissing, SchemaOutOfDate, SchemaTooNew, DatabaseTooOld: run
            `python -m pgnotifyq migrate`, or upgrade.
    """
    client = Client(Verbs(schema, registry), dsn, connections_max=connections_max, listen_dsn=listen_dsn or dsn)
    try:
        client._ask(check_schema(schema))  # noqa: SLF001  # this module's own
        yield client
    finally:
        client._close()  # noqa: SLF001  # this module's own


@attrs.frozen
class _Inside:
    """What a client has in one process."""

    pool: Pool
    ends: BlockingEnds


class Client(BlockingJobs, BlockingOperating, BlockingSchedules, BlockingWatchingVerbs):
    """A door to the queue for programs that block: threads, scripts, WSGI.

    Made by `open_client`.
    """

    def __init__(self, verbs: Verbs, dsn: str, *, connections_max: int, listen_dsn: str) -> None:
        self._verbs = verbs
        self._dsn = dsn
        self._connections_max = connections_max
        self._listen_dsn = listen_dsn
        self._lock = threading.Lock()
        self._opened: _Inside | None = None
        self._is_closed = False
        _clients.add(self)

    def _ask(self, verb: Verb[T], connection: CallersConnection | None = None, *, savepoint: bool = False) -> T:
        """Ask a verb on the caller's connection if there is one, else on one of the pool."""
        if connection is not None:
            return ask_on_blocking(connection, verb, savepoint=savepoint)
        if savepoint:
            raise TypeError(SAVEPOINT_ALONE)
        with self._inside().pool.connection() as own:
            return ask_blocking(own, verb)

    def _inside(self) -> _Inside:
        """Return this process's connections. A forked child opens its own here."""
        if (opened := self._opened) is not None:
            return opened
        with self._lock:
            if self._is_closed:
                raise ClientClosed
            if self._opened is None:
                pool = Pool(
                    self._dsn,
                    size_max=self._connections_max,
                    application_name="pgnotifyq client",
                    used_for=For.CALLER,
                    prepare_threshold=0,
                )
                self._opened = _Inside(pool, BlockingEnds(pool, self._open_listener, self._verbs.schema))
            return self._opened

    @property
    def _ends(self) -> BlockingEnds:
        return self._inside().ends

    def _open_listener(self) -> Connection[Any]:
        return connect(
            self._listen_dsn,
            application_name="pgnotifyq client listener",
            used_for=For.WORKER,
            must_write=True,
            connect_timeout=LISTENER_CONNECT_SECONDS,
        )

    def _close(self) -> None:
        with self._lock:
            self._is_closed = True
            opened, self._opened = self._opened, None
        if opened is not None:
            opened.ends.close()
            opened.pool.close()

    def _forget(self) -> None:
        """In a forked child, let go of what the parent has opened."""
        self._lock = threading.Lock()  # a thread of the parent's may hold the old one for ever
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.ends.forget()
            opened.pool.forget()

    def for_org(self, org_id: OrgId | UUID | str | int) -> OrgClient:
        """Return a client that sees one tenant: its jobs, its dead letters, and no others.

        It shares this client's connections, and can be used as long as this client.

        Args:
            org_id: the tenant: its id, or its name or number, as `pgnotifyq.org` takes it.

        Raises:
            InvalidJob: `org_id` names no tenant.
        """
        return OrgClient(OrgVerbs(self._verbs, org(org_id)), self._ask, self._enqueue_alone, self._wait, self._watching)

    @property
    def _watching(self) -> BlockingWatching:
        return BlockingWatching(lambda: self._ends, self._ask, self._open_listener, self._verbs.schema)

    def _enqueue_alone(self, job: NewJob) -> JobId:
        return self._ask(enqueue_alone(self._verbs.schema, job))

    def _stack(self, job_id: JobId, timeout_seconds: float) -> Stack:
        return self._ends.stack(job_id, timeout_seconds)

    def _until_drained(self, scope: Scope, timeout_seconds: float | None) -> None:
        self._ends.drain(scope, timeout_seconds)

    def _wait(self, job_id: JobId, timeout_seconds: float | None) -> Job | DeadLetter:
        return self._ends.wait(job_id, timeout_seconds)


_clients: WeakSet[Client] = WeakSet()
LISTENER_CONNECT_SECONDS = 3


def _forget_all() -> None:
    for client in list(_clients):
        client._forget()  # noqa: SLF001  # this module's own


@atexit.register
def _close_all() -> None:
    """When the process ends, close the clients that it has left open, as a forked child does.

    Later than this, the threads of a pool cannot be ended.
    """
    for client in list(_clients):
        client._close()  # noqa: SLF001  # this module's own


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
