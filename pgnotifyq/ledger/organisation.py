"""What belongs to one tenant: its jobs, as it alone sees them; settings, credentials, trail.

Each verb takes the tenant, and asks for nothing of other tenants. A verb answers for a job of
another tenant as for a job that never was: the asker cannot tell the two apart. The filter is in
the statement itself. So it holds for every role, also for one that is exempt from row security.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

import attrs

from pgnotifyq.ledger import end, explaining, fences, look
from pgnotifyq.ledger.ask import Ask, Plan, nothing, text
from pgnotifyq.ledger.columns import number, only, records, rows, truth, word
from pgnotifyq.ledger.enqueue import new_ids
from pgnotifyq.ledger.errors import said_of
from pgnotifyq.ledger.look import checked_limit
from pgnotifyq.ledger.statements import call, query
from pgnotifyq.model.credentials import SealedCredential
from pgnotifyq.model.errors import JobNotFound, MissingRights
from pgnotifyq.model.job import OrgId
from pgnotifyq.model.outcome import bounded
from pgnotifyq.model.payload import encode

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgnotifyq.ledger.ask import Answer, Steps
    from pgnotifyq.ledger.changes import Edit
    from pgnotifyq.ledger.explaining import Explanation
    from pgnotifyq.ledger.lease import Surprise
    from pgnotifyq.model.job import DeadLetter, Execution, ExecutionId, Job, JobId, Lease, WorkerId
    from pgnotifyq.model.outcome import Outcome

T = TypeVar("T")

DETAILS_BYTES_MAX = VALUE_BYTES_MAX = 65_536


@attrs.frozen(kw_only=True)
class AuditRow:
    """A row of a tenant's trail."""

    id: UUID
    at: datetime
    org_id: OrgId
    org: str | None  # the tenant's name, if it is known
    action: str
    details: Any
    job_id: UUID | None  # the job that did it; None: no job did
    execution_id: UUID | None
    written_by: str  # the role of the session


@attrs.frozen(kw_only=True)
class ConfigRow:
    """A setting of a tenant."""

    org_id: OrgId
    org: str | None  # the tenant's name, if it is known
    name: str
    value: Any
    changed_at: datetime
    changed_by: str


@attrs.frozen(kw_only=True)
class CredentialRow:
    """That a tenant has a credential."""

    org_id: OrgId
    org: str | None  # the tenant's name, if it is known
    name: str
    key_id: str  # which key has sealed it
    changed_at: datetime
    changed_by: str


# Its jobs


def cancel(schema: str, org_id: OrgId, job_id: JobId, why: str | None = None) -> Ask[str]:
    """Ask a job of a tenant to stop; return `cancelled`, `stopping` or `finished`.

    Raises:
        JobNotFound: the tenant has no such job.

    Source: sql/queries/org/cancel.sql
    """

    def read(answer: Answer, encoding: str) -> str:
        told = word(answer, encoding)
        if told == "unknown":
            raise no_job(job_id)
        return told

    reason = None if why is None else bounded(why)
    return Ask(query("org/cancel", schema), (org_id.hex, job_id.hex, reason), read, said_of(schema))


def edit(schema: str, org_id: OrgId, job_id: JobId, change: Edit) -> Ask[bool]:
    """Change a waiting job of a tenant; False: a worker holds the job, or it has ended.

    Raises:
        JobNotFound: the tenant has no such job.

    Source: sql/queries/org/edit.sql
    """

    def read(answer: Answer, encoding: str) -> bool:
        told = word(answer, encoding)
        if told == "unknown":
            raise no_job(job_id)
        return told == "edited"

    return Ask(query("org/edit", schema), (org_id.hex, job_id.hex, *change.values), read, said_of(schema))


def own(schema: str, org_id: OrgId, job_id: JobId) -> Ask[None]:
    """Refuse a job, or a dead letter, that is not a tenant's.

    Raises:
        JobNotFound: the tenant has neither.
    """

    def read(answer: Answer, encoding: str) -> None:
        if not truth(answer, encoding):
            raise no_job(job_id)

    return Ask(query("org/of_org", schema), (org_id.hex, job_id.hex), read, said_of(schema))


def get_job(schema: str, org_id: OrgId, job_id: JobId) -> Plan[Job]:
    """Return a job of a tenant; a dead letter as the job that it was, with the status `dead`.

    Raises:
        JobNotFound: the tenant has no such job.
        MissingRights: as of `look.find_job`.
    """

    def steps() -> Steps[Job]:
        job: Job | None = yield look.find_job(schema, job_id, org_id=org_id)
        if job is None:
            raise no_job(job_id)
        return job

    return Plan(steps)


def get_dead(schema: str, org_id: OrgId, job_id: JobId) -> Ask[DeadLetter]:
    """Return a dead letter of a tenant.

    Raises:
        JobNotFound: the tenant has no such letter.

    Source: sql/queries/dead.sql
    """
    one = look.get_dead(schema, job_id, org_id=org_id)

    def read(answer: Answer, encoding: str) -> DeadLetter:
        letter = one.read(answer, encoding)
        if letter is None:
            raise no_letter(job_id)
        return letter

    return Ask(one.statement, one.parameters, read, said_of(schema))


def history(schema: str, org_id: OrgId, job_id: JobId) -> Ask[list[Execution]]:
    """Return the attempts of a job of a tenant, oldest first; none for a job that is not its.

    Source: sql/queries/org/executions.sql
    """
    return Ask(query("org/executions", schema), (org_id.hex, job_id.hex), look.history(schema, job_id).read, said_of(schema))


def explain(schema: str, org_id: OrgId, job_id: JobId) -> Ask[Explanation]:
    """Return why a job of a tenant is where it is, and nothing of other tenants.

    Raises:
        JobNotFound: the tenant has no such job.

    Source: sql/queries/org/explain.sql
    """

    def read(answer: Answer, encoding: str) -> Explanation:
        found = records(answer, encoding)
        if not found or found[0]["label"] == "unknown":  # there is none, or it went just now
            raise no_job(job_id)
        return explaining.of_tenant(explaining.explained(job_id, found[0]), found[0]["own_before"])

    return Ask(query("org/explain", schema), (org_id.hex, job_id.hex), read, said_of(schema))


def count_jobs(
    schema: str, org_id: OrgId, *, status: str | None = None, queue: str | None = None, job_type: str | None = None
) -> Ask[int]:
    """Return how many jobs a tenant has.

    Raises:
        ConfigError: `status` is not a status, nor one of scheduled, retrying, stopping.

    Source: sql/queries/org/count_jobs.sql
    """
    look.check_label(status)
    return Ask(query("org/count_jobs", schema), (org_id.hex, status, queue, job_type), number, said_of(schema))


def count_dead(schema: str, org_id: OrgId, *, queue: str | None = None, job_type: str | None = None) -> Ask[int]:
    """Return how many dead letters a tenant has.

    Source: sql/queries/org/count_dead.sql
    """
    return Ask(query("org/count_dead", schema), (org_id.hex, queue, job_type), number, said_of(schema))


def requeue(schema: str, org_id: OrgId, job_id: JobId, *, from_start: bool = False) -> Ask[None]:
    """Bring a dead letter of a tenant back.

    Raises:
        JobNotFound: the tenant has no such letter.
        UniqueKeyHeld, IllegalTransition: as of `end.requeue`.

    Source: sql/queries/org/requeue.sql
    """

    def read(answer: Answer, encoding: str) -> None:
        if not truth(answer, encoding):
            raise no_letter(job_id)

    on_error: Any = end.requeue(schema, job_id).on_error
    return Ask(query("org/requeue", schema), (org_id.hex, job_id.hex, text(from_start)), read, on_error, may_repeat=False)


def no_job(job_id: JobId) -> JobNotFound:
    """Return the error of a job that a tenant does not have."""
    return JobNotFound(f"the tenant has no job {job_id}: it never was, was pruned after its retention, or is a dead letter")


def no_letter(job_id: JobId) -> JobNotFound:
    """Return the error of a dead letter that a tenant does not have."""
    return JobNotFound(f"the tenant has no dead letter {job_id}")


# Transactions of a library's, confined to the tenant


def fence_own(schema: str, lease: Lease, org_id: OrgId, *, key: bytes | None = None) -> Plan[str]:
    """Bind a transaction on a connection of the handler's own to an execution, and to its tenant.

    This must be the transaction's first statement.

    Args:
        schema: ours.
        lease: the execution.
        org_id: the tenant.
        key: the key of the tokens, if the connection's role may be a tenant's login
            (ledger/roles.py).

    Returns: the transaction's id, for `meet_own_fence`.

    Raises:
        MissingRights: nothing would confine the transaction to the tenant.

    Source: sql/queries/org/begin_own_fence.sql
    """

    def steps() -> Steps[str]:
        values = (lease.job_id.hex, lease.execution_id.hex, str(org_id))
        told = yield Ask(query("org/begin_own_fence", schema), values, rows, said_of(schema), may_repeat=False)
        ((begun_in, _, _, is_confined, says, is_sealed),) = told
        if is_sealed and key is None:
            raise MissingRights("this session's role is a tenant's login, and the worker has no key for it: see --tenant-dsn")
        if is_sealed and key is not None:
            yield fences.seal_tenant(schema, org_id, key=key, says=bytes.fromhex(says))
        elif not is_confined:
            raise MissingRights(
                "nothing would confine this session to its tenant: its role is exempt from row security, and may not take on the role"
                " of tenants; connect as another role, or grant it that one"
            )
        return str(begun_in)

    return Plan(steps, may_repeat=False)


def meet_own_fence(
    schema: str, lease: Lease, *, begun_in: str, worker_id: WorkerId, outcome: Outcome | None, save: Ask[bool] | None = None
) -> Plan[str]:
    """Do what `fences.meet_own_fence` does in a transaction that is confined to a tenant.

    The transaction stays confined up to its commit, unless there is an outcome to write. The
    connection's own role writes the outcome.

    Returns: as `fences.meet_own_fence`.
    """

    def steps() -> Steps[str]:
        held: str = yield fences.meet_fence(schema, lease, begun_in=begun_in, stays_confined=outcome is None)
        if held == "held" and outcome is None and save is not None:
            yield save
        if held != "held" or outcome is None:
            return held
        surprises: list[Surprise] = yield end.settle(schema, worker_id=worker_id, settlements=[(lease, outcome)])
        return "unwritten" if surprises else held

    return Plan(steps, may_repeat=False)


# Its name


def name_org(schema: str, name: str | int) -> Ask[UUID]:
    """Return the id of a tenant, and keep its name for people.

    Source: sql/functions/org/name_org.sql
    """
    return Ask(call("name_org", "text", schema), (str(name),), only, said_of(schema))


# Its settings


def config(schema: str, org_id: OrgId) -> Ask[dict[str, Any]]:
    """Return the settings of a tenant by their names.

    Source: sql/queries/org/config.sql
    """
    return Ask(query("org/config", schema), (org_id.hex,), only, said_of(schema))


def list_config(schema: str, org_id: OrgId | None = None, *, name: str | None = None, limit: int = 1000) -> Ask[list[ConfigRow]]:
    """Return settings, by tenant and name.

    Source: sql/queries/org/list_config.sql
    """
    values = (text(org_id), name, str(checked_limit(limit)))
    return Ask(query("org/list_config", schema), values, _list_of(ConfigRow), said_of(schema))


def set_config(schema: str, org_id: OrgId, name: str, value: object) -> Ask[None]:
    """Set one setting of a tenant. Workers hear of it.

    Raises:
        InvalidPayload, PayloadTooLarge: the value is no JSON, or too large.
        InvalidJob: the name does not fit.

    Source: sql/functions/org/config.sql
    """
    written = "null" if value is None else encode(value, bytes_max=VALUE_BYTES_MAX)
    return Ask(call("set_org_config", "uuid text jsonb", schema), (org_id.hex, name, written), nothing, said_of(schema))


def unset_config(schema: str, org_id: OrgId, name: str) -> Ask[bool]:
    """Take a setting away; False: there was none.

    Source: sql/functions/org/config.sql
    """
    return Ask(call("unset_org_config", "uuid text", schema), (org_id.hex, name), truth, said_of(schema))


# Its credentials


def sealed(schema: str, org_id: OrgId) -> Ask[list[SealedCredential]]:
    """Return the credentials of a tenant, sealed.

    Source: sql/queries/org/sealed.sql
    """
    return Ask(query("org/sealed", schema), (org_id.hex,), _list_of(SealedCredential), said_of(schema))


def set_credential(schema: str, sealed: SealedCredential) -> Ask[None]:
    """Keep a sealed credential, in the place of one of the same tenant and name.

    Source: sql/queries/org/set_credential.sql
    """
    values = (sealed.org_id.hex, sealed.name, sealed.key_id, sealed.sealed)
    return Ask(query("org/set_credential", schema), values, nothing, said_of(schema))


def delete_credential(schema: str, org_id: OrgId, name: str) -> Ask[bool]:
    """Take a credential away; False: there was none.

    Source: sql/queries/org/delete_credential.sql
    """

    def read(answer: Answer, encoding: str) -> bool:
        return number(answer, encoding) > 0

    return Ask(query("org/delete_credential", schema), (org_id.hex, name), read, said_of(schema))


def list_credentials(schema: str, org_id: OrgId | None = None, *, limit: int = 1000) -> Ask[list[CredentialRow]]:
    """Return which credentials there are, but not what they hold.

    Source: sql/queries/org/list_credentials.sql
    """
    values = (text(org_id), str(checked_limit(limit)))
    return Ask(query("org/list_credentials", schema), values, _list_of(CredentialRow), said_of(schema))


def stale_credentials(
    schema: str, key_id: str, *, after: SealedCredential | None = None, limit: int = 100
) -> Ask[list[SealedCredential]]:
    """Return a batch of credentials that another key than `key_id` has sealed, in order.

    Source: sql/queries/org/stale_credentials.sql
    """
    org_id, name = (UUID(int=0), "") if after is None else (after.org_id, after.name)
    values = (key_id, org_id.hex, name, str(checked_limit(limit)))
    return Ask(query("org/stale_credentials", schema), values, _list_of(SealedCredential), said_of(schema))


def reseal_credential(schema: str, before: SealedCredential, after: SealedCredential) -> Ask[bool]:
    """Replace `before` by `after`, sealed anew; False: `before` was changed since it was read.

    Source: sql/queries/org/reseal_credential.sql
    """

    def read(answer: Answer, encoding: str) -> bool:
        return number(answer, encoding) > 0

    values = (before.org_id.hex, before.name, before.sealed, after.key_id, after.sealed)
    return Ask(query("org/reseal_credential", schema), values, read, said_of(schema), may_repeat=False)


# Its trail


def audit(schema: str, action: str, details: object = None) -> Ask[UUID]:
    """Add a row to the trail of the tenant that the connection is confined to.

    Source: sql/functions/org/audit.sql
    """
    values = (_audited(action), encode(details, bytes_max=DETAILS_BYTES_MAX))
    return Ask(call("audit", "text jsonb", schema), values, only, said_of(schema), may_repeat=False)


def audit_for(
    schema: str,
    org_id: OrgId,
    action: str,
    details: object = None,
    *,
    job_id: JobId | None = None,
    execution_id: ExecutionId | None = None,
) -> Ask[UUID]:
    """Add a row to the trail of a tenant. If the verb is asked again, it adds nothing.

    Source: sql/functions/org/audit.sql
    """
    (made,) = new_ids(1)
    values = (
        org_id.hex, _audited(action), encode(details, bytes_max=DETAILS_BYTES_MAX), text(job_id), text(execution_id), made.hex,
    )  # fmt: skip
    return Ask(call("audit_for", "uuid text jsonb uuid uuid uuid", schema), values, only, said_of(schema))


def _audited(action: str) -> str:
    return action.replace("\x00", "\\x00")


def list_audit(
    schema: str, org_id: OrgId | None = None, *, action: str | None = None, job_id: JobId | None = None, limit: int = 50
) -> Ask[list[AuditRow]]:
    """Return rows of the trail, the latest first.

    Source: sql/queries/org/list_audit.sql
    """
    values = (text(org_id), action, text(job_id), str(checked_limit(limit)))
    return Ask(query("org/list_audit", schema), values, _list_of(AuditRow), said_of(schema))


def prune_audit(schema: str, older_than_seconds: float, *, limit: int = 10_000) -> Ask[int]:
    """Delete old rows of the trail, the oldest first; return how many.

    Source: sql/functions/org/audit.sql
    """
    values = (text(older_than_seconds), str(checked_limit(limit)))
    return Ask(call("prune_audit", "float8 integer", schema), values, number, said_of(schema), may_repeat=False)


# The application's own tables


def protect(schema: str, table: str, column: str, rights: str | None = None) -> Ask[int]:
    """Let tenants' transactions see only their rows in a table of the application's.

    `rights`: what they may do there, as in `select, insert`; None: nothing is granted.

    Returns: how many tables have the policies now; more than one if it is partitioned.

    Source: sql/functions/org/protect.sql
    """
    return Ask(call("protect", "text text text", schema), (table, column, rights), number, said_of(schema))


def unprotect(schema: str, table: str) -> Ask[int]:
    """Take away what `protect` has put on a table; return from how many tables.

    Source: sql/functions/org/protect.sql
    """
    return Ask(call("unprotect", "text", schema), (table,), number, said_of(schema))


def protected(schema: str) -> Ask[list[dict[str, Any]]]:
    """Return the protected tables, and what goes past the policies.

    Source: sql/queries/org/protected.sql
    """
    return Ask(query("org/protected", schema), (), records, said_of(schema))


def _list_of(kind: Callable[..., T]) -> Callable[[Answer, str], list[T]]:
    return lambda answer, encoding: [kind(**row) for row in records(answer, encoding)]
