"""What a handler is given of its tenant: `ctx.org`.

The tenant is the job's. A handler does not choose it, and nothing here accepts another tenant.

Each method is awaited, on trio and on asyncio. A handler that is a plain function, in a thread,
says `ctx.org.blocking(ctx.org.config(Settings))`.
"""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, Unpack, overload

import attrs
import trio
import trio.lowlevel

from pgnotifyq.ledger import enqueue, look, organisation
from pgnotifyq.model.credentials import check_credential_name
from pgnotifyq.model.errors import CredentialNotFound, OrgConfigUnfit, PayloadUndecodable, TransactionRefused
from pgnotifyq.model.new_job import JobSettings, job_id_of
from pgnotifyq.model.organisation import of_tenant
from pgnotifyq.model.structuring import structure, understood
from pgnotifyq.runtime import tenants
from pgnotifyq.runtime.fenced import FencedBlock, connection_block, django_block, session_block
from pgnotifyq.wire.callers import ask_on

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Mapping
    from contextlib import AbstractContextManager
    from uuid import UUID

    from cattrs import Converter

    from pgnotifyq.ledger.ask import Verb
    from pgnotifyq.model.handler import Handler, P, R, V
    from pgnotifyq.model.job import DeadLetter, Execution, Job, JobId, OrgId
    from pgnotifyq.model.new_job import NewJob
    from pgnotifyq.model.states import Label, Status
    from pgnotifyq.runtime.fenced import Fence
    from pgnotifyq.runtime.running import Running
    from pgnotifyq.runtime.tenants import OpenTransaction
    from pgnotifyq.wire.kinds import CallersConnection

T = TypeVar("T")
S = TypeVar("S")


class Desk(Protocol):
    """Where questions about a tenant go: to a worker's desk (organisations.py), or to a test's."""

    @property
    def schema(self) -> str:
        """Where the queue lives."""

    async def ask(self, verb: Verb[T]) -> T:
        """Ask a verb about a tenant. The verb names the tenant itself."""

    async def config_of(self, org_id: OrgId) -> Mapping[str, Any]:
        """Return the settings of a tenant by their names."""

    async def credential_of(self, org_id: OrgId, name: str) -> str | None:
        """Return a credential of a tenant, or None."""


class EnqueueForOrg(JobSettings, total=False):
    """What `ctx.org.enqueue` takes besides a job's type and payload."""

    connection: CallersConnection | None


@attrs.frozen(eq=False)
class _Inside:
    """What the parts of `ctx.org` share."""

    org_id: OrgId
    desk: Desk
    converter: Converter | None
    carry: Callable[..., Awaitable[Any]]  # calls an async function in trio's loop

    async def ask(self, verb: Verb[T], connection: CallersConnection | None = None) -> T:
        """Ask on the handler's connection if there is one, else on the worker's."""
        if connection is not None:
            return await ask_on(connection, verb)
        answer: T = await self.carry(self.desk.ask, verb)
        return answer


async def direct(function: Callable[..., Awaitable[T]], *arguments: Any) -> T:
    """Call an async function where trio runs."""
    return await function(*arguments)


class OrgConfig:
    """The settings of the job's tenant: feature flags, limits of outside services.

    `await ctx.org.config(Settings)` gives them as a type of yours. They are read once and kept. A
    change reaches a worker by a notification, at once; the next call sees it.
    """

    def __init__(self, inside: _Inside) -> None:
        self._inside = inside

    async def __call__(self, kind: type[S]) -> S:
        """Return the tenant's settings as a type.

        Args:
            kind: an attrs class, a dataclass, a TypedDict, a model of pydantic's, or dict. What
                the tenant has not set has the default of its field.

        Raises:
            OrgConfigUnfit: a setting does not fit, or one without a default is not set. The message
                does not show the value.
        """
        found = deepcopy(await self._all())
        converter = self._inside.converter
        try:
            made: S = structure(found, understood(kind, converter), converter, what="config")
        except PayloadUndecodable as error:
            raise OrgConfigUnfit(f"{error} (tenant {self._inside.org_id})") from error
        return made

    async def get(self, name: str, default: object = None) -> Any:
        """Return one setting, in Python's types for JSON.

        Args:
            name: of the setting.
            default: what to return if the tenant has not set it.
        """
        return deepcopy((await self._all()).get(name, default))

    async def is_on(self, flag: str) -> bool:
        """Tell whether a feature flag is set to true. No other value counts as on."""
        return (await self._all()).get(flag) is True

    async def _all(self) -> Mapping[str, Any]:
        inside = self._inside
        found: Mapping[str, Any] = await inside.carry(inside.desk.config_of, inside.org_id)
        return found


class OrgCredentials:
    """The credentials of the job's tenant, from the program's provider or the built-in store."""

    def __init__(self, inside: _Inside) -> None:
        self._inside = inside

    async def get(self, name: str) -> str:
        """Return a credential.

        Raises:
            InvalidName: the name does not fit.
            CredentialNotFound: the tenant has none of this name.
            CredentialSealed: the credential does not open: its key is not here, or its row was
                changed.
            ConfigError: there is neither a provider nor a key.
        """
        inside = self._inside
        check_credential_name(name)
        found: str | None = await inside.carry(inside.desk.credential_of, inside.org_id, name)
        if found is None:
            raise CredentialNotFound(
                f"tenant {inside.org_id} has no credential {name}: `python -m pgnotifyq credentials set {name} --org ...` sets it"
            )
        return found


class OrgRepository:
    """The jobs, attempts and dead letters of the job's tenant, and of no other tenant.

    Each method takes `connection`: a connection or session of yours, to see what its transaction
    sees.
    """

    def __init__(self, inside: _Inside) -> None:
        self._inside = inside
        self._whose = (inside.desk.schema, inside.org_id)

    async def get(self, job_id: JobId | UUID | str, *, connection: CallersConnection | None = None) -> Job:
        """Return a job. A dead letter is returned as the job that it was, with the status `dead`.

        Raises:
            JobNotFound: the tenant has no such job.
            MissingRights: the tenant has no such job. It may have such a dead letter, but the role
                of `connection` may not look at dead letters. The connection's transaction is
                aborted.
        """
        return await self._inside.ask(organisation.get_job(*self._whose, job_id_of(job_id)), connection)

    async def jobs(
        self,
        *,
        status: Status | Label | None = None,
        queue: str | None = None,
        job_type: str | None = None,
        limit: int = 50,
        connection: CallersConnection | None = None,
    ) -> list[Job]:
        """Return jobs, newest first.

        Raises:
            ConfigError: `status` is not a status, nor one of scheduled, retrying, stopping.
        """
        schema, org_id = self._whose
        verb = look.list_jobs(schema, status=status, queue=queue, job_type=job_type, org_id=org_id, limit=limit)
        return await self._inside.ask(verb, connection)

    async def count(
        self,
        *,
        status: Status | Label | None = None,
        queue: str | None = None,
        job_type: str | None = None,
        connection: CallersConnection | None = None,
    ) -> int:
        """Return how many jobs there are.

        Raises:
            ConfigError: `status` is not a status, nor one of scheduled, retrying, stopping.
        """
        verb = organisation.count_jobs(*self._whose, status=status, queue=queue, job_type=job_type)
        return await self._inside.ask(verb, connection)

    async def history(self, job_id: JobId | UUID | str, *, connection: CallersConnection | None = None) -> list[Execution]:
        """Return the attempts of a job, oldest first, the one under way included."""
        return await self._inside.ask(organisation.history(*self._whose, job_id_of(job_id)), connection)

    async def get_dead(self, job_id: JobId | UUID | str, *, connection: CallersConnection | None = None) -> DeadLetter:
        """Return a dead letter.

        Raises:
            JobNotFound: the tenant has no such letter.
        """
        return await self._inside.ask(organisation.get_dead(*self._whose, job_id_of(job_id)), connection)

    async def dead(
        self,
        *,
        queue: str | None = None,
        job_type: str | None = None,
        limit: int = 50,
        connection: CallersConnection | None = None,
    ) -> list[DeadLetter]:
        """Return dead letters, the latest first."""
        schema, org_id = self._whose
        verb = look.list_dead(schema, look.DeadFilter(queue=queue, job_type=job_type, org_id=org_id), limit=limit)
        return await self._inside.ask(verb, connection)

    async def count_dead(
        self, *, queue: str | None = None, job_type: str | None = None, connection: CallersConnection | None = None
    ) -> int:
        """Return how many dead letters there are."""
        verb = organisation.count_dead(*self._whose, queue=queue, job_type=job_type)
        return await self._inside.ask(verb, connection)


class OrgContext(tenants.OrgContext):
    """What a handler is given of its tenant."""

    def __init__(
        self,
        running: Running,
        open_transaction: OpenTransaction,
        *,
        desk: Desk,
        fence: Callable[[Running, bool, object], Fence],
        child: Callable[[Any, object, Any], NewJob],
        enqueue_child: Callable[[NewJob], Awaitable[JobId]],
        carry: Callable[..., Awaitable[Any]] = direct,
        token: Callable[[], trio.lowlevel.TrioToken],
        calls_here: bool = False,
    ) -> None:
        super().__init__(running, open_transaction)
        self._fence = fence
        self._child = child
        self._enqueue = enqueue_child
        self._token = token
        self._calls_here = calls_here
        converter = None if running.handler is None else running.handler.converter
        self._inside = _Inside(self.id, desk, converter, carry)

    @property
    def config(self) -> OrgConfig:
        """The tenant's settings: `await ctx.org.config(Settings)`."""
        return OrgConfig(self._inside)

    @property
    def credentials(self) -> OrgCredentials:
        """The tenant's credentials: `await ctx.org.credentials.get("stripe")`."""
        return OrgCredentials(self._inside)

    @property
    def repository(self) -> OrgRepository:
        """The tenant's jobs, attempts and dead letters."""
        return OrgRepository(self._inside)

    async def audit(self, action: str, details: object = None, *, connection: CallersConnection | None = None) -> UUID:
        """Add a row to the tenant's trail, with this job and execution. Nobody changes it later.

        Args:
            action: what was done, 1 to 200 characters.
            details: an object: dict, attrs class, dataclass. JSON in the end, at most 64 KiB.
            connection: what `ctx.org.transaction()` or `ctx.org.session()` gave: the row is written
                if and only if that commits. None: it is written at once, whatever becomes of the
                job.

        Returns: the row's id.

        Raises:
            InvalidPayload, PayloadTooLarge, InvalidJob: the row is refused.
        """
        schema = self._inside.desk.schema
        if connection is not None:
            return await ask_on(connection, organisation.audit(schema, action, details))
        lease = self._running.lease
        verb = organisation.audit_for(schema, self.id, action, details, job_id=lease.job_id, execution_id=lease.execution_id)
        return await self._inside.ask(verb)

    # A type checker takes the first overload that fits, as for a client's enqueue (doors/jobs.py).

    @overload
    async def enqueue(self, job_type: Handler[P, R], payload: P, **settings: Unpack[EnqueueForOrg]) -> JobId[R]: ...
    @overload
    async def enqueue(
        self, job_type: Handler[dict[str, V], R], payload: Mapping[str, V], **settings: Unpack[EnqueueForOrg]
    ) -> JobId[R]: ...
    @overload
    async def enqueue(
        self, job_type: Handler[P | None, R], payload: None = None, **settings: Unpack[EnqueueForOrg]
    ) -> JobId[R]: ...
    @overload
    async def enqueue(self, job_type: str, payload: object = None, **settings: Unpack[EnqueueForOrg]) -> JobId: ...

    async def enqueue(
        self, job_type: str | Handler, payload: object = None, *, connection: CallersConnection | None = None, **settings: Any
    ) -> JobId:
        """Enqueue a child of this job as `ctx.enqueue` does, of the same tenant and of no other.

        Args:
            job_type: which handler runs it: the handler, or its name.
            payload: what the handler takes.
            connection: what `ctx.org.transaction()` or `ctx.org.session()` gave: the job exists if
                and only if that commits. None: as for `ctx.enqueue`.
            settings: as for `ctx.enqueue`: queue, priority, delay_seconds, unique_key, headers, ...

        Raises:
            InvalidJob: the job is refused; also if `org_id` is another tenant.
            InvalidName, InvalidPayload, PayloadTooLarge, LeaseLost, JobCancelled,
                TransactionRefused: as for `ctx.enqueue`.
        """
        of_tenant(self.id, settings)
        job = self._child(job_type, payload, settings)
        if connection is None and not self._calls_here:
            return await self._enqueue(job)
        return await self._inside.ask(enqueue.enqueue(self._inside.desk.schema, job), connection)

    async def cancel(self, job_id: JobId | UUID | str, why: str | None = None) -> str:
        """Ask a job of the tenant to stop: `cancelled`, `stopping` or `finished`.

        Raises:
            JobNotFound: the tenant has no such job.
        """
        return await self._inside.ask(organisation.cancel(self._inside.desk.schema, self.id, job_id_of(job_id), why))

    def session(self, factory: Callable[[], S], *, complete: bool = False, result: object = None) -> FencedBlock[S]:
        """Open a session of SQLAlchemy's as `ctx.session` does, confined to the job's tenant.

        The session's connection takes on the tenants' role, if the connection's own role may do
        that. The tenant is set, too. Both hold for this transaction alone.

        Args:
            factory: makes the session, as for `ctx.session`.
            complete: as for `ctx.session`.
            result: as for `ctx.session`.

        Raises:
            MissingRights: nothing would confine the session: its role is exempt from row security,
                and may not take on the tenants' role.
            TypeError, LeaseLost, JobCancelled, TransactionLeft, TransactionRefused: as for
                `ctx.session`.
        """
        return session_block(self._fence(self._running, complete, result), factory)

    def django(self, alias: str = "default", *, complete: bool = False, result: object = None) -> AbstractContextManager[Any]:
        """Open a transaction of Django's as `ctx.django` does, confined to the job's tenant.

        Args, Raises: as for `session`.
        """
        return django_block(self._fence(self._running, complete, result), alias)

    def connection(self, connection_or_pool: Any, *, complete: bool = False, result: object = None) -> FencedBlock[Any]:
        """Open a transaction as `ctx.connection` does, confined to the job's tenant.

        Args, Raises: as for `session`.
        """
        return connection_block(self._fence(self._running, complete, result), connection_or_pool)

    def blocking(self, asked: Coroutine[Any, Any, T]) -> T:
        """Wait for what was asked, in a handler that is a plain function.

        `settings = ctx.org.blocking(ctx.org.config(Settings))`

        Raises:
            TransactionRefused: the handler is an async function, which awaits instead.
            Exception: what the awaited call raises.
        """
        # In a program's test on a blocking connection (testing/within.py), or in a process.
        if self._calls_here:
            try:
                asked.send(None)
            except StopIteration as done:
                answer: T = done.value
                return answer
            raise AssertionError("a blocking connection has waited")
        if trio.lowlevel.in_trio_task():
            asked.close()
            raise TransactionRefused("ctx.org.blocking() would hold the worker's loop: await it, in a handler that is async")
        return trio.from_thread.run(direct, lambda: asked, trio_token=self._token())
