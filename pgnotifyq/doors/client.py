"""The door on trio."""

from __future__ import annotations

import functools
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import trio

from pgnotifyq.doors.awaited import AwaitedVerbs
from pgnotifyq.doors.ends import Ends
from pgnotifyq.doors.gathering import Gatherer
from pgnotifyq.doors.verbs import CONNECTIONS_MAX_DEFAULT, Verbs
from pgnotifyq.migrating import check_schema
from pgnotifyq.runtime.shortcuts import enqueue_and_hand_over, find_taker
from pgnotifyq.wire.connection import connect
from pgnotifyq.wire.loops import need_trio
from pgnotifyq.wire.pool import open_pool
from pgnotifyq.wire.sessions import For

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from pgnotifyq.model.job import JobId
    from pgnotifyq.model.new_job import NewJob
    from pgnotifyq.model.registry import JobRegistry


@asynccontextmanager
async def open_client(
    dsn: str,
    *,
    schema: str = "pgnotifyq",
    connections_max: int = CONNECTIONS_MAX_DEFAULT,
    registry: JobRegistry | None = None,
    listen_dsn: str | None = None,
) -> AsyncIterator[Client]:
    """Open a client for the length of a block.

    If trio does not run here, the call is refused, and the error names the right door.

    Args:
        dsn: the database. If it names several servers, the client uses the first that can write. If
            it says `target_session_attrs`, the client uses the first that this admits, as for
            reading on a standby.
        schema: where the queue lives.
        connections_max: how many connections the client may use, besides one for waiting.
        registry: if given, `enqueue` refuses unknown types and payloads that do not fit, and takes
            the handlers' defaults of queue and max_attempts.
        listen_dsn: an address where LISTEN works, for waiting, if `dsn` leads to a pooler in
            transaction mode.

    Raises:
        DatabaseUnreachable: no server answers.
        SchemaMissing, SchemaOutOfDate, SchemaTooNew, DatabaseTooOld: run
            `python -m pgnotifyq migrate`, or upgrade.
    """
    need_trio("pgnotifyq.open_client", "on asyncio use pgnotifyq.aio.open_client, in blocking code pgnotifyq.sync.open_client")
    pool_of = open_pool(
        dsn, size_max=connections_max, application_name="pgnotifyq client", used_for=For.CALLER, prepare_threshold=0
    )
    listener = functools.partial(
        connect, listen_dsn or dsn, application_name="pgnotifyq client listener", used_for=For.WORKER, must_write=True
    )
    async with pool_of as pool:
        async with pool.connection() as connection:
            await check_schema(connection, schema)
        ends = Ends(pool, listener, schema)
        gatherer = Gatherer(pool, schema, waits=trio, shortcut=HandOver(dsn, schema), is_cancelled_again=True)
        try:
            yield Client(Verbs(schema, registry), pool, gatherer, ends)
        finally:
            ends.close_nowait()


class Client(AwaitedVerbs):
    """A door to the queue for programs that run on trio. Made by `open_client`."""


class HandOver:
    """The shortcut to a worker of this very event loop (runtime/shortcuts.py)."""

    def __init__(self, dsn: str, schema: str) -> None:
        self._dsn = dsn
        self._schema = schema

    def find(self, job: NewJob) -> Any:
        """Return a worker that could start the job as soon as it exists, or None."""
        return find_taker(self._dsn, self._schema, job)

    async def enqueue(self, connection: Any, taker: Any, job: NewJob, payload: str) -> JobId:
        """Enqueue the job, given with its payload's text, and have the worker start it."""
        return await enqueue_and_hand_over(connection, taker, job, payload)
