"""The pruner: deletes finished jobs and their history, after their retention, in bounded batches.

A worker's setting counts for the queues that the worker serves. What the database says
(set_retention) overrides it, for every queue. Payloads and results that are kept for a shorter time
than their row are blanked, and dead letters are deleted, only if the database says so. If it does
not, each of the two costs one statement a pass. If nobody follows jobs any more, the table of
followers is emptied for good.
"""

from __future__ import annotations

import itertools
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import trio

from pgnotifyq.ledger import end, retention, watching
from pgnotifyq.ledger.look import list_troubles
from pgnotifyq.model.errors import MissingRights
from pgnotifyq.model.events import Event, EventName
from pgnotifyq.runtime.troubles import bear, tell_troubles

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgnotifyq.ledger.ask import Ask
    from pgnotifyq.model.job import JobId
    from pgnotifyq.runtime.identity import Identity
    from pgnotifyq.runtime.link import Link

T = TypeVar("T")

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
        deleted, after_id = await durable.ask(_smaller_each_time(partial(_prune, me, after_id)))
        deleted_in_all += deleted
        if after_id is None:
            break
        await trio.sleep(BETWEEN_BATCHES_SECONDS)
    blanked, letters = await _blank(me, durable)
    # The rights may have been granted by hand, before this function existed. The rest goes on.
    with suppress(MissingRights):
        await durable.ask(watching.forget_followers(me.schema))
    await _tell_troubles(me, durable, trio.current_time() - began_at + LATE_SECONDS, told)
    if deleted_in_all or blanked or letters:
        fields = {"jobs": deleted_in_all, "letters": letters, "blanked": blanked}
        me.emit(Event(name=EventName.JOBS_PRUNED, fields=fields))


def _prune(me: Identity, after_id: JobId | None, *, jobs_max: int) -> Ask[tuple[int, JobId | None]]:
    return end.prune(
        me.schema,
        older_than_seconds=me.config.retention_seconds,
        after_id=after_id,
        jobs_max=jobs_max,
        queues=me.queues,
    )


def _smaller_each_time(batch: Callable[..., Ask[T]]) -> Callable[[], Ask[T]]:
    """Return a function that makes the batch for each try, smaller after each try that was late."""
    tries = itertools.count()
    return lambda: batch(jobs_max=max(BATCH_MAX >> (2 * next(tries)), 1))


async def _blank(me: Identity, durable: Link) -> tuple[int, int]:
    """Blank payloads and results of jobs, and delete or blank dead letters, batch after batch.

    Returns: how many were blanked, and how many letters were deleted.
    """
    blanked_in_all = letters_in_all = 0
    after_id: JobId | None = None
    while True:
        blanked, after_id = await durable.ask(_smaller_each_time(partial(retention.blank, me.schema, after_id=after_id)))
        blanked_in_all += blanked
        if after_id is None:
            break
        await trio.sleep(BETWEEN_BATCHES_SECONDS)
    while True:
        ask = _smaller_each_time(partial(retention.prune_letters, me.schema, after_id=after_id))
        deleted, blanked, after_id = await durable.ask(ask)
        letters_in_all += deleted
        blanked_in_all += blanked
        if after_id is None:
            return blanked_in_all, letters_in_all
        await trio.sleep(BETWEEN_BATCHES_SECONDS)


async def _tell_troubles(me: Identity, durable: Link, within_seconds: float, told: set[JobId]) -> None:
    """Tell of jobs that cannot be deleted: a table of the user's refers to them, say.

    `told` holds the jobs that the pass before has found.
    """
    troubles = await durable.ask(list_troubles(me.schema, verb="prune", within_seconds=within_seconds))
    tell_troubles(me.emit, [trouble for trouble in troubles if trouble.job_id not in told])
    told.clear()
    told.update(trouble.job_id for trouble in troubles)
