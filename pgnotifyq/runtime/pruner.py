"""The pruner: finished jobs and their history are kept for the retention, then deleted in bounded batches.

A worker's setting counts for the queues that it serves. What the database says (set_retention) goes before it, for every queue.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from pgnotifyq.ledger import workers
from pgnotifyq.model.events import Event, EventName

if TYPE_CHECKING:
    from pgnotifyq.model.job import JobId
    from pgnotifyq.runtime.parts import Parts
    from pgnotifyq.wire.connection import Connection

BATCH_MAX = 500
EVERY_SECONDS = 600.0  # one pass; retention is counted in days
BETWEEN_BATCHES_SECONDS = 0.05  # leaves the connection to the settler


async def prune_for_ever(parts: Parts) -> None:
    """Make a pass over the finished jobs now and then, until cancelled."""
    while True:
        await trio.sleep(EVERY_SECONDS * (0.5 + parts.random.random()))
        deleted_in_all = 0
        after_id: JobId | None = None
        while True:

            async def once(connection: Connection, after_id: JobId | None = after_id) -> tuple[int, JobId | None]:
                return await workers.prune(
                    connection,
                    parts.config.schema,
                    older_than_seconds=parts.config.retention_seconds,
                    after_id=after_id,
                    jobs_max=BATCH_MAX,
                    queues=parts.config.queues,
                )

            deleted, after_id = await parts.durable.run(once)
            deleted_in_all += deleted
            if after_id is None:
                break
            await trio.sleep(BETWEEN_BATCHES_SECONDS)
        if deleted_in_all:
            parts.emit(Event(name=EventName.JOBS_PRUNED, fields={"jobs": deleted_in_all}))
