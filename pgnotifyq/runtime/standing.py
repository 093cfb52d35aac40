"""Where the handler of a process stands: asked by the worker, answered by the process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from pgnotifyq.model.stack import StackTask


@attrs.define(eq=False)
class Standing:
    """One run of a handler in a process, for those who ask where it stands."""

    _say: Callable[[], Awaitable[None]]  # asks the process
    _tasks: tuple[StackTask, ...] = ()
    _told: trio.Event | None = None

    async def ask(self) -> tuple[StackTask, ...]:
        """Ask the process, and return its answer.

        Cancellation: the process is not asked again before it has answered.
        """
        told = self._told
        if told is None:
            told = self._told = trio.Event()
            with trio.CancelScope(shield=True):  # half a line would spoil the next one, too
                await self._say()
        await told.wait()
        return self._tasks

    def hear(self, tasks: tuple[StackTask, ...]) -> None:
        """Take the answer of the process."""
        self._tasks = tasks
        if self._told is not None:
            told, self._told = self._told, None
            told.set()
