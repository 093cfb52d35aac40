"""The door on asyncio."""

from __future__ import annotations

import functools
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from pgnotifyq.doors.awaited import AwaitedVerbs
from pgnotifyq.doors.ends import Ends
from pgnotifyq.doors.gathering import Gatherer
from pgnotifyq.doors.verbs import CONNECTIONS_MAX_DEFAULT, Verbs
from pgnotifyq.ledger.schema import check_schema
from pgnotifyq.wire.aio import connect, open_pool
from pgnotifyq.wire.asking import ask
from pgnotifyq.wire.loops import need_asyncio
from pgnotifyq.wire.sessions import For

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

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

    The client belongs to the event loop and to the process that open it. Elsewhere its verbs are
    refused. A forked child opens a client of its own. If asyncio does not run here, the error names
    the right door.

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
    need_asyncio("pgnotifyq.aio.open_client", "on trio use pgnotifyq.open_client, in blocking code pgnotifyq.sync.open_client")
    pool_of = open_pool(
        dsn, size_max=connections_max, application_name="pgnotifyq client", used_for=For.CALLER, prepare_threshold=0
    )
    listener = functools.partial(
        connect, listen_dsn or dsn, application_name="pgnotifyq client listener", used_for=For.WORKER, must_write=True
    )
    async with pool_of as pool:
        async with pool.connection() as connection:
            await ask(connection, check_schema(schema))
        ends = Ends(pool, listener, schema)
        gatherer = Gatherer(pool, schema, is_cancelled_again=False)
        try:
            yield Client(Verbs(schema, registry), pool, gatherer, ends)
        finally:
            ends.close_nowait()


class Client(AwaitedVerbs):
    """A door to the queue for programs that run on asyncio. Made by `open_client`.

    A method's text may say that a cancelled task has done nothing, or is cancelled at its next
    checkpoint. A task on asyncio is always cancelled at once. If the server was faster than the
    cancel, the server has done what the task asked for. So give a `unique_key` if your program may
    repeat an enqueue.
    """
