"""A door that is awaited, on trio (client.py) and on asyncio (aio.py): one body for both loops.

Its verbs are in files of their own: for one job (jobs.py), for many jobs and whole queues
(operating.py), for schedules (schedules.py), for following jobs (watching.py). ends.py tells how a
waiting task hears of a job's end. gathering.py tells how enqueues share a statement.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from pgnotifyq.doors.for_org import OrgClient
from pgnotifyq.doors.jobs import AwaitedJobs
from pgnotifyq.doors.operating import AwaitedOperating
from pgnotifyq.doors.org_verbs import OrgVerbs
from pgnotifyq.doors.schedules import AwaitedSchedules
from pgnotifyq.doors.verbs import SAVEPOINT_ALONE
from pgnotifyq.doors.watching import WatchingVerbs
from pgnotifyq.model.new_job import NewJob
from pgnotifyq.model.organisation import org
from pgnotifyq.wire.asking import ask
from pgnotifyq.wire.callers import ask_on

if TYPE_CHECKING:
    from uuid import UUID

    from pgnotifyq.doors.ends import Ends, Pool
    from pgnotifyq.doors.gathering import Gatherer
    from pgnotifyq.doors.verbs import Verbs
    from pgnotifyq.ledger.ask import Verb
    from pgnotifyq.ledger.pauses import Scope
    from pgnotifyq.model.job import DeadLetter, Job, JobId, OrgId
    from pgnotifyq.model.stack import Stack
    from pgnotifyq.wire.kinds import CallersConnection

T = TypeVar("T")


class AwaitedVerbs(AwaitedJobs, AwaitedOperating, AwaitedSchedules, WatchingVerbs):
    """What a client on trio and a client on asyncio can do."""

    def __init__(self, verbs: Verbs, pool: Pool, gatherer: Gatherer, ends: Ends) -> None:
        self._verbs = verbs
        self._pool = pool
        self._gatherer = gatherer
        self._ends = ends

    async def _ask(self, verb: Verb[T], connection: CallersConnection | None = None, *, savepoint: bool = False) -> T:
        """Ask a verb on the caller's connection if there is one, else on one of the pool."""
        if connection is not None:
            return await ask_on(connection, verb, savepoint=savepoint)
        if savepoint:
            raise TypeError(SAVEPOINT_ALONE)
        async with self._pool.connection() as own:
            return await ask(own, verb)

    async def _enqueue_alone(self, job: NewJob) -> JobId:
        return await self._gatherer.enqueue(job)

    async def _wait(self, job_id: JobId, timeout_seconds: float | None) -> Job | DeadLetter:
        return await self._ends.wait(job_id, timeout_seconds)

    async def _stack(self, job_id: JobId, timeout_seconds: float) -> Stack:
        return await self._ends.stack(job_id, timeout_seconds)

    async def _until_drained(self, scope: Scope, timeout_seconds: float | None) -> None:
        await self._ends.drain(scope, timeout_seconds)

    def for_org(self, org_id: OrgId | UUID | str | int) -> OrgClient:
        """Return a client that sees one tenant: its jobs, its dead letters, and no others.

        It shares this client's connections, and can be used as long as this client.

        Args:
            org_id: the tenant: its id, or its name or number, as `pgnotifyq.org` takes it.

        Raises:
            InvalidJob: `org_id` names no tenant.
        """
        return OrgClient(OrgVerbs(self._verbs, org(org_id)), self._ask, self._enqueue_alone, self._wait, self._watching)
