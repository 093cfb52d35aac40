"""What a handler is given besides its payload."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio
import trio.lowlevel

from pgnotifyq.ledger import lease
from pgnotifyq.model.errors import LeaseLost
from pgnotifyq.model.outcome import SettleKind, Settlement, encode_result
from pgnotifyq.runtime.logs import JobLog
from pgnotifyq.runtime.tenants import OrgContext, open_transaction

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Generator

    from psycopg import IsolationLevel

    from pgnotifyq.model.job import ExecutionId, Job
    from pgnotifyq.model.outcome import Interrupt
    from pgnotifyq.runtime.parts import Parts
    from pgnotifyq.runtime.running import Running
    from pgnotifyq.wire.connection import Connection

_log = logging.getLogger("pgnotifyq.job")


class _Done:
    """What is awaited of something that has been done already."""

    def __await__(self) -> Generator[None, None, None]:
        return
        yield


class JobContext:
    """The job under way, its tenant, its cancellation, and its own fenced transaction."""

    def __init__(self, *, parts: Parts, running: Running) -> None:
        self._parts = parts
        self._running = running
        self._org: OrgContext | None = None

    @property
    def job(self) -> Job:
        """The job as it was claimed."""
        return self._running.job.whole

    @property
    def execution_id(self) -> ExecutionId:
        """The id of this attempt, the fence of all it writes. Good as an idempotency key per attempt."""
        return self._running.lease.execution_id

    @property
    def attempt(self) -> int:
        """Which attempt this is; the first is 1."""
        return self._running.job.attempts

    @property
    def org(self) -> OrgContext:
        """The job's tenant: its id, and transactions confined to it."""
        if self._org is None:
            self._org = OrgContext(self._parts, self._running)
        return self._org

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger whose records carry job_id, job_type, execution_id, attempt and org_id."""
        fields = {
            "job_id": str(self.job.id),
            "job_type": self.job.job_type,
            "execution_id": str(self.execution_id),
            "attempt": self.attempt,
            "org_id": str(self.job.org_id),
        }
        return JobLog(_log, fields)

    def is_cancelled(self) -> bool:
        """Tell whether this execution shall stop, for whatever reason; safe from threads."""
        return self._running.why_stop() is not None

    async def cancelled(self) -> Interrupt:
        """Wait until this execution shall stop, and return why. Never returns while it shall go on."""
        await self._running.interrupted.wait()
        assert self._running.interrupt is not None
        return self._running.interrupt

    @property
    def cancel_reason(self) -> Interrupt | None:
        """Why this execution shall stop: cancelled, timed out, lease lost or shutdown; None while it shall go on."""
        return self._running.why_stop()

    @asynccontextmanager
    async def transaction(
        self, *, complete: bool = False, result: object = None, isolation: IsolationLevel | None = None
    ) -> AsyncIterator[Connection]:
        """Open a transaction that commits only while this execution still owns the job.

        Args:
            complete: end the job as completed in the same commit, so that what was written happens exactly once.
            result: stored with it.
            isolation: of the transaction; None: the server's default. By SQL it would come too late.

        Cancellation: rolls back.

        Raises:
            LeaseLost: the execution no longer owns the job; rolled back.
            JobCancelled: a cancel came first; rolled back.
            TransactionLeft: it was committed or rolled back by hand, within the block.
            TransactionRefused: another transaction of this job is open around it, or about to complete it.
            ConnectionsTaken: no connection became free in time.
        """
        ending = None
        if complete:
            ending = Settlement(kind=SettleKind.COMPLETE, outcome="completed", result_json=encode_result(result))
        async with open_transaction(self._parts, self._running, isolation=isolation, ending=ending) as connection:
            yield connection

    def progress(self, fraction: float | None, message: str | None = None) -> Awaitable[None]:
        """Publish how far this execution has come: a fraction from 0 to 1, and a line for people.

        Await it in an async handler. In a thread it is done when the call returns, and there is nothing to await.

        Raises:
            ValueError: the fraction is outside 0 to 1.
            LeaseLost: the execution no longer owns the job.
        """
        if trio.lowlevel.in_trio_task():
            return self._report(fraction, message)
        trio.from_thread.run(self._report, fraction, message, trio_token=self._trio_token())
        return _Done()

    def _trio_token(self) -> trio.lowlevel.TrioToken:
        return self._parts.token

    async def _report(self, fraction: float | None, message: str | None) -> None:
        if fraction is not None and not 0 <= fraction <= 1:
            raise ValueError(f"progress {fraction!r} is not between 0 and 1")
        if message is not None:
            message = message.replace("\x00", "\\x00")

        news = lease.report_progress(self._parts.config.schema, self._running.lease, fraction=fraction, message=message)
        if not await self._parts.quick.ask(news):
            raise LeaseLost(f"execution {self.execution_id} no longer owns job {self.job.id}")
