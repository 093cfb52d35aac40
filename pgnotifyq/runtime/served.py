"""What a worker has handlers for. It publishes that in the database, and claims nothing else.

The registry may grow while the worker runs. A thread that registers a handler rings for the
claimer, which publishes anew before it looks (claimer.py). The listener's session publishes too,
each time that it registers the worker: the worker's row may have been taken away, together with
what the worker had published.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import trio.lowlevel

from pgnotifyq.ledger import claim, workers
from pgnotifyq.wire.asking import ask

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pgnotifyq.ledger.claim import Wanted
    from pgnotifyq.model.job import WorkerId
    from pgnotifyq.model.registry import JobRegistry
    from pgnotifyq.runtime.bell import Bell
    from pgnotifyq.wire.connection import Connection


class Served:
    """The handlers of one worker as its statements take them.

    They are written once for each state of the registry.
    """

    def __init__(self, registry: JobRegistry, schema: str, worker_id: WorkerId) -> None:
        self._registry = registry
        self._schema = schema
        self._worker_id = worker_id
        self._made: tuple[int, Wanted] | None = None
        self._published = -1  # the generation of the registry that the database knows

    @property
    def wanted(self) -> Wanted:
        """The job types that may be claimed."""
        generation = self._registry.generation
        if self._made is None or self._made[0] != generation:
            self._made = (generation, claim.wanted({each.job_type: each.max_attempts for each in self._registry.handlers}))
        return self._made[1]

    @property
    def is_news(self) -> bool:
        """Whether the registry holds something that was not published."""
        return self._published != self._registry.generation

    async def publish(self, connection: Connection) -> None:
        """Publish what the worker has handlers for. Safe to repeat."""
        generation = self._registry.generation
        handlers = [(each.job_type, each.queue, each.max_attempts) for each in self._registry.handlers]
        await ask(connection, workers.publish_handlers(self._schema, self._worker_id, handlers))
        await ask(connection, workers.publish_hooks(self._schema, self._registry.job_types, self._registry.hooks))
        self._published = generation


@contextmanager
def ring_for_new_handlers(registry: JobRegistry, bell: Bell) -> Iterator[None]:
    """Ring for the claimer when a handler is registered, in any thread, while the block lasts."""
    token = trio.lowlevel.current_trio_token()

    def ring() -> None:
        # The program may register handlers after the worker's end.
        with suppress(trio.RunFinishedError):
            token.run_sync_soon(bell.ring)

    registry.watchers.append(ring)
    try:
        yield
    finally:
        registry.watchers.remove(ring)
