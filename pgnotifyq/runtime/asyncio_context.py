"""The context that a handler on asyncio is given: a `JobContext` whose calls asyncio awaits."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import trio.lowlevel

from pgnotifyq.model.errors import TransactionRefused
from pgnotifyq.model.handler import RunsIn
from pgnotifyq.runtime.asyncio_loop import in_trio
from pgnotifyq.runtime.context import JobContext

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import NoReturn

    from pgnotifyq.model.around import Resources
    from pgnotifyq.model.job import JobId
    from pgnotifyq.model.new_job import NewJob
    from pgnotifyq.model.outcome import Interrupt
    from pgnotifyq.runtime.asyncio_loop import AsyncioLoop
    from pgnotifyq.runtime.context import Reach
    from pgnotifyq.runtime.organisation import OrgContext
    from pgnotifyq.runtime.running import Running

_REFUSED = (
    "{} gives a connection that trio drives, and this handler runs on asyncio: use `async with ctx.session(...)` for SQLAlchemy, "
    "`async with ctx.connection(...)` for psycopg's and asyncpg's connections, or run the handler on trio"
)


class AsyncioContext(JobContext):
    """The job under way, for a handler on asyncio."""

    def __init__(self, running: Running, reach: Reach, loop: AsyncioLoop) -> None:
        super().__init__(running, reach)
        self._loop = loop

    @property
    def resources(self) -> Resources:
        """What the registry's lifespans have made, those on asyncio first."""
        return self._loop.resources + self._reach.resources_of(RunsIn.TRIO)

    @property
    def org(self) -> OrgContext:
        """The job's tenant, whose calls asyncio awaits. `ctx.org.transaction()` is refused."""
        if self._org is None:
            self._org = self._org_by(_refuse_of_org, self._carry)
        return self._org

    async def _carry(self, function: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
        if trio.lowlevel.in_trio_task():  # by way of ctx.org.blocking(), in a thread that the handler has started
            return await function(*arguments)
        return await in_trio(self._reach.token, function, *arguments)

    async def cancelled(self) -> Interrupt:
        """Wait until this execution shall stop, and return why."""
        if _is_in_thread():
            return await super().cancelled()
        return await in_trio(self._reach.token, super().cancelled)

    def transaction(self, **_: Any) -> Any:
        """Refuse: trio drives the connection, and this handler runs on asyncio.

        Raises:
            TransactionRefused: always. The message names what to use instead.
        """
        _refuse("ctx.transaction()")

    async def enqueue_made(self, job: NewJob) -> JobId:
        """Enqueue a child that is made already. The worker's loop does it."""
        return await in_trio(self._reach.token, super().enqueue_made, job)

    def progress(self, fraction: float | None, message: str | None = None) -> Awaitable[None]:
        """Publish how far this execution has come, as `JobContext.progress` does. Await it."""
        if _is_in_thread():
            return super().progress(fraction, message)
        return in_trio(self._reach.token, self._report, fraction, message)

    def _save_by(self, text: str | None, kept: Any) -> Awaitable[None]:
        if _is_in_thread():
            return super()._save_by(text, kept)
        return in_trio(self._reach.token, self.save_written, text, kept)


def _is_in_thread() -> bool:
    """Tell whether this thread runs no loop of asyncio's: the handler started it, say."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return True
    return False


def _refuse(what: str) -> NoReturn:
    raise TransactionRefused(_REFUSED.format(what))


def _refuse_of_org(*_: Any, **__: Any) -> Any:
    _refuse("ctx.org.transaction()")
