"""What the lifespans of a registry make, for as long as a worker, or a test, runs handlers."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import trio

from pgnotifyq.model.around import Resources, enter, failed_at_end
from pgnotifyq.model.errors import LifespanFailed
from pgnotifyq.model.handler import RunsIn

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from pgnotifyq.model.around import Lifespan
    from pgnotifyq.model.registry import JobRegistry

# How long the lifespans on trio may take to close. A worker that is told to end has
# `shutdown_seconds` and its grace before that, and must be gone before a service manager kills it.
CLOSE_SECONDS = 3.0


def lifespans_on(registry: JobRegistry, place: RunsIn) -> list[Lifespan]:
    """Return the lifespans of a registry that run on trio, or on asyncio."""
    return [each for each in registry.lifespans if each.runs_in is place]


@asynccontextmanager
async def open_resources(registry: JobRegistry) -> AsyncIterator[Resources]:
    """Enter the lifespans on trio for the length of a block.

    Cancellation: the lifespans are closed all the same, within CLOSE_SECONDS.

    Raises:
        LifespanFailed: a lifespan raised at its start or when it was closed, or was not closed in
            time.
    """
    has_failed = False
    scope = trio.CancelScope()
    try:
        async with AsyncExitStack() as stack:
            stack.enter_context(scope)
            resources = await enter(stack, lifespans_on(registry, RunsIn.TRIO))
            try:
                yield resources
            except BaseException:
                has_failed = True
                raise
            finally:
                scope.shield = True
                scope.deadline = trio.current_time() + CLOSE_SECONDS
    except Exception as error:
        if has_failed or isinstance(error, LifespanFailed):
            raise
        raise failed_at_end(error) from error
    if scope.cancelled_caught:
        raise LifespanFailed(f"the lifespans were not closed within {CLOSE_SECONDS:g} s, and were cancelled")
