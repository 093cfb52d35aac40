"""Batches: several jobs that one call of a handler works on, each settled by itself.

Each job of a batch is an execution like any other: a permit, a lease that is renewed, an attempt
that counts, an outcome of its own. A batch only says which jobs are in one call. So no other part
of a worker knows of batches.

- A batch is made when a slot takes a job. The slot takes along jobs of the same type and tenant
  that wait in the line, up to `batch_size`. It waits for none. A job of an idle queue starts at
  once, alone; under load the line is full.
- All jobs of a batch belong to one tenant. So what a handler does for all of them at once cannot
  mix two tenants.
- A cancel stops one job: its block (`with item:`) on trio, its flag (`item.ctx.is_cancelled()`)
  elsewhere. The call itself is cancelled as soon as every job that is left is to stop: the last of
  them was cancelled, their time is over, or the worker shuts down.
- A job whose payload cannot be read is settled, and the others never see it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import trio
import trio.lowlevel

from pgnotifyq.model.batch import STOPPED, BatchItem
from pgnotifyq.model.handler import RunsIn
from pgnotifyq.model.outcome import Ended, Raised, Returned, Stopped, ended_by, is_wish

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgnotifyq.model.handler import Handler
    from pgnotifyq.runtime.running import Running


@attrs.define(eq=False, kw_only=True)
class Batch:
    """The jobs of one call of a handler."""

    handler: Handler
    scope: trio.CancelScope  # of the whole call
    hand_over: Callable[[Running, Ended], None]  # takes how a job has ended
    items: dict[BatchItem[Any], Running] = attrs.field(factory=dict)  # in the order of claiming
    is_over: bool = False  # the handler has ended
    _token: trio.lowlevel.TrioToken = attrs.field(factory=trio.lowlevel.current_trio_token, init=False)

    def add(self, running: Running, payload: object, context: object) -> trio.CancelScope:
        """Take a job into the batch; return the job's own scope."""
        running.scope, running.batch = trio.CancelScope(), self
        on_trio = self.handler.runs_in is RunsIn.TRIO
        self.items[BatchItem(payload, context, self._settle, running.scope if on_trio else None)] = running
        return running.scope

    def note_stop(self) -> None:
        """Cancel the call if each job that is left in it is to stop."""
        if self.is_over:
            return
        left = [running for item, running in self.items.items() if not item.is_settled]
        if all(running.scope is None or running.scope.cancel_called for running in left) and left:
            self.scope.cancel(reason="pgnotifyq: every job of the batch is to stop")

    def end(self, value: object) -> None:
        """Settle the jobs that the handler has not settled itself, by what it returned."""
        self.is_over = True
        count = len(self.items)
        values: list[object]
        if value is None or isinstance(value, Raised) or is_wish(type(value)):
            values = [value] * count
        elif type(value) in {list, tuple} and len(value) == count:  # type: ignore[arg-type]  # one of the two
            values = list(value)  # type: ignore[call-overload]  # the same
        else:
            values = [Raised(error=_RETURNED.format(self.handler.name, _told(value), count))] * count
        for (item, running), each in zip(list(self.items.items()), values, strict=True):
            self._end_left(item, running, _as_end(each))

    def end_all(self, ended: Ended) -> None:
        """Settle all jobs that are left, in one way."""
        self.is_over = True
        for item, running in list(self.items.items()):
            self._end_left(item, running, ended)

    def _end_left(self, item: BatchItem[Any], running: Running, ended: Ended) -> None:
        if not item.is_settled:
            item.is_settled = True
            self._finish(running, ended)

    def _settle(self, item: BatchItem[Any], value: object) -> None:
        running, ended = self.items[item], _as_end(value)
        if trio.lowlevel.in_trio_run():
            self._finish(running, ended)
        else:
            self._token.run_sync_soon(self._finish, running, ended)

    def _finish(self, running: Running, ended: Ended) -> None:
        self.hand_over(running, ended)
        running.scope = running.batch = None
        self.note_stop()


def _as_end(value: object) -> Ended:
    if value is STOPPED:
        return Stopped()
    if isinstance(value, Raised):
        return value
    return ended_by(value) if isinstance(value, BaseException) else Returned(value)


_RETURNED = "{} returned {}: return None, or a list with one outcome for each of its {} jobs, in their order"


def _told(value: object) -> str:
    size = f" of {len(value)}" if isinstance(value, (list, tuple)) else ""
    return f"a {type(value).__name__}{size}"
