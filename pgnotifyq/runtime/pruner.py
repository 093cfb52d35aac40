"""The pruner: deletes finished jobs and their history, after their retention, in bounded batches.

A worker's setting counts for the queues that it serves. What the database says (set_retention) goes
before it, for every queue.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from pgnotifyq.ledger import end
from pgnotifyq.ledger.look import list_troubles
from pgnotifyq.model.events import Event, EventName
from pgnotifyq.runtime.troubles import bear, tell_troubles

if TYPE_CHECKING:
    from pgnotifyq.ledger.ask import Ask
    from pgnotifyq.model.job import JobId
    from pgnotifyq.runtime.identity import Identity
    from pgnotifyq.runtime.link import Link

BATCH_MAX = 500
EVERY_SECONDS = 600.0  # one pass; retention is counted in days
LATE_SECONDS = 60.0  # between a pass and the look at what it left: the server may be slow
BETWEEN_BATCHES_SECONDS = 0.05  # leaves the connection to the settler


async def prune_for_ever(me: Identity, durable: Link) -> None:
    """Make a pass over the finished jobs now and then, until cancelled."""
    told: set[JobId] = set()
    while True:
        await trio.sleep(EVERY_SECONDS * (0.5 + me.random.random()))
        await bear(me.emit, "prune", lambda: prune(me, durable, told))


async def prune(me: Identity, durable: Link, told: set[JobId]) -> None:
    """Make one pass, batch after batch."""
    deleted_in_all = 0
    began_at = trio.current_time()
    after_id: JobId | None = None
    while True:
        tries = 0

        def batch(after_id: JobId | None = after_id) -> Ask[tuple[int, JobId | None]]:
            nonlocal tries
            jobs_max = max(BATCH_MAX >> (2 * tries), 1)  # what was late is asked for smaller
            tries += 1
            return end.prune(
                me.schema,
                older_than_seconds=me.config.retention_seconds,
                after_id=after_id,
                jobs_max=jobs_max,
                queues=me.queues,
            )

        deleted, after_id = await durable.ask(batch)
        deleted_in_all += deleted
        if after_id is None:
            break
        await trio.sleep(BETWEEN_BATCHES_SECONDS)
    await _tell_troubles(me, durable, trio.current_time() - began_at + LATE_SECONDS, told)
    if deleted_in_all:
        me.emit(Event(name=EventName.JOBS_PRUNED, fields={"jobs": deleted_in_all}))


async def _tell_troubles(me: Identity, durable: Link, within_seconds: float, told: set[JobId]) -> None:
    """Tell of jobs that cannot be deleted: a table of the user's refers to them, say.

    `told` are those of the pass before.
    """
    troubles = await durable.ask(list_troubles(me.schema, verb="prune", within_seconds=within_seconds))
    tell_troubles(me.emit, [trouble for trouble in troubles if trouble.job_id not in told])
    told.clear()
    told.update(trouble.job_id for trouble in troubles)
