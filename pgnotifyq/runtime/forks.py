"""A forked child is no second worker: if it comes back into the event loop, it ends there.

If a handler calls `os.fork()` and forgets `os._exit()`, it returns in the child as well, into a
copy of the worker. The copy has the parent's selector, and the parent never hears of what the copy
is told there. So the copy must not take a single step of the loop.

A child may do what it likes until its handler first waits: `multiprocessing` runs its target in
there and exits, `subprocess` becomes another program. If a handler in a thread forks, the child has
that thread alone, and the thread has no loop to come back to.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio
import trio.lowlevel

from pgnotifyq.model.errors import quietly

if TYPE_CHECKING:
    from collections.abc import Iterator

EXIT_COPY = 1
_workers: list[trio.lowlevel.TrioToken] = []  # the loops of this process's workers, one for each of them


@contextmanager
def ending_copies() -> Iterator[None]:
    """While the block lasts, a forked child of this loop's ends when it comes back to the loop."""
    token = trio.lowlevel.current_trio_token()
    _workers.append(token)
    try:
        yield
    finally:
        _workers.remove(token)


class _Ending(trio.abc.Instrument):
    """Ends the process when the step of a task that forked it is over."""

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        line = (
            f"pgnotifyq: process {os.getpid()} was forked by {task.name} and came back from it; it ends here, for there is one worker: "
            "leave a forked child with os._exit()\n"
        )
        quietly(os.write, 2, line.encode("ascii", "backslashreplace"))
        os._exit(EXIT_COPY)


def _leave_to_child() -> None:
    try:
        token = trio.lowlevel.current_trio_token()
    except RuntimeError:  # a thread forked
        return
    if token in _workers:
        trio.lowlevel.add_instrument(_Ending())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_child)
