"""What a worker has handlers for: published in the database, and all that it claims.

The registry may grow while the worker runs. Whoever registers a handler rings for the claimer, which publishes anew before it looks
(claimer.py). The listener publishes too, each time that it registers the worker: its row may have been taken away, and what it had
published with it.
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
    from pgnotifyq.model.registry import JobRegistry
    from pgnotifyq.runtime.parts import Parts
    from pgnotifyq.wire.connection import Connection


class Served:
    """The handlers of one worker as its statements take them, written once for each state of the registry."""

    def __init__(self, registry: JobRegistry) -> None:
        self._registry = registry
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
        """Whether the registry holds what was not published."""
        return self._published != self._registry.generation

    def note_published(self, generation: int) -> None:
        """Note which generation of the registry was published."""
        self._published = generation


async def publish(parts: Parts, connection: Connection) -> None:
    """Publish what the worker has handlers for. Safe to repeat."""
    generation = parts.registry.generation
    await ask(
        connection,
        workers.publish_handlers(
            parts.config.schema,
            parts.worker_id,
            [(each.job_type, each.queue, each.max_attempts) for each in parts.registry.handlers],
        ),
    )
    parts.served.note_published(generation)


@contextmanager
def ring_for_new_handlers(parts: Parts) -> Iterator[None]:
    """Ring for the claimer when a handler is registered, in whatever thread, while the block lasts."""
    token = trio.lowlevel.current_trio_token()

    def ring() -> None:
        with suppress(trio.RunFinishedError):  # the program may register handlers after the worker's end
            token.run_sync_soon(parts.bell.ring)

    parts.registry.watchers.append(ring)
    try:
        yield
    finally:
        parts.registry.watchers.remove(ring)
