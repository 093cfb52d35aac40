"""The fence of a handler's own transaction: it commits only if the execution holds the job.

`fence` binds the transaction to the execution when the transaction begins. `meet_fence` asks when
the block ends whether the transaction may commit. If nothing has asked by then, the commit asks.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING

import attrs
from psycopg import errors

from pgnotifyq.ledger import end
from pgnotifyq.ledger.ask import Ask, Plan, nothing
from pgnotifyq.ledger.columns import rows, word
from pgnotifyq.ledger.errors import SCHEMA_DEFAULT, raise_translated
from pgnotifyq.ledger.statements import call, query, with_values
from pgnotifyq.model.errors import MissingRights

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from pgnotifyq.ledger.ask import Answer, Steps
    from pgnotifyq.ledger.lease import Surprise
    from pgnotifyq.model.job import Lease, OrgId, WorkerId
    from pgnotifyq.model.outcome import Outcome

# The commit of a fenced transaction was refused. The detail says why: cancelled, lost, prepared.
REFUSED = "PNQ03"


def fence(schema: str, lease: Lease, org_id: OrgId | None, tenant_role: str | None) -> bytes:
    """Return what binds a transaction to an execution, and confines it to a tenant.

    It is sent together with the transaction's `begin`.

    The first column of its answer is the transaction's id, for `meet_fence`.

    Source: sql/queries/begin_fence.sql, begin_fence_of_tenant.sql, sql/functions/lease/fence.sql
    """
    whose = (lease.job_id.hex, lease.execution_id.hex)
    if org_id is not None:
        return with_values(query("begin_fence_of_tenant", schema), (*whose, str(org_id), tenant_role or "none"))
    return with_values(query("begin_fence", schema), whose)


def fence_of_login(schema: str, lease: Lease) -> bytes:
    """Return what binds a transaction to an execution, in a session of a tenant's login.

    It is sent together with the transaction's `begin`.

    The columns of its answer are: the transaction's id, for `meet_fence`; what a token has to say,
    in hexadecimal; whether only a token confines the session, `t` or `f`; the session's role.

    Source: sql/queries/begin_fence_of_login.sql
    """
    return with_values(query("begin_fence_of_login", schema), (lease.job_id.hex, lease.execution_id.hex))


def seal_tenant(schema: str, org_id: OrgId, *, key: bytes, says: bytes) -> Ask[None]:
    """Say which tenant a transaction is of, by a token that is valid in that transaction alone.

    Args:
        schema: ours.
        org_id: the tenant.
        key: the key of the tokens (ledger/roles.py).
        says: what the token has to say, as `fence_of_login` returned it.

    Source: sql/queries/seal_tenant.sql, `unsealed` in sql/migrations/0013_tenants_by_token.sql
    """
    tenant = str(org_id)
    digest = hmac.digest(key, tenant.encode() + says, "sha256").hex()
    return Ask(query("seal_tenant", schema), (tenant + digest, tenant), nothing, may_repeat=False)


def meet_fence(schema: str, lease: Lease, *, begun_in: str, stays_confined: bool = False) -> Ask[str]:
    """Lock the job's row, and tell whether the transaction may commit.

    First, what the handler or we have confined the transaction by is taken off. With
    `stays_confined` it is not. Then what runs in the commit itself is confined, too, such as a
    cursor `with hold` and deferred triggers.

    Returns: `held`, `cancelled` or `lost`; `left` if this is not the transaction that was bound.

    Source: sql/queries/meet_fence.sql, sql/functions/lease/fence.sql
    """
    statement = call("meet_fence", "uuid uuid text", schema) if stays_confined else query("meet_fence", schema)
    return Ask(statement, (lease.job_id.hex, lease.execution_id.hex, begun_in), _told, may_repeat=False)


def _told(answer: Answer, encoding: str) -> str:
    ((*_, told),) = rows(answer, encoding)
    return str(told)


def fence_own(schema: str, lease: Lease) -> Ask[str]:
    """Bind a transaction on a connection of the handler's own to an execution.

    This must be the transaction's first statement.

    Returns: the transaction's id, for `meet_own_fence`.

    Source: sql/queries/begin_fence.sql, sql/functions/lease/fence.sql
    """
    whose = (lease.job_id.hex, lease.execution_id.hex)
    return Ask(query("begin_fence", schema), whose, word, on_error=_lacks(schema, FENCE_RIGHTS), may_repeat=False)


def fence_nothing() -> Ask[str]:
    """Begin a transaction as `fence_own` does, but without an execution: for a program's test.

    Source: sql/queries/transaction_id.sql
    """
    return Ask(query("transaction_id", SCHEMA_DEFAULT), (), word, may_repeat=False)


def meet_own_fence(
    schema: str,
    lease: Lease,
    *,
    begun_in: str,
    worker_id: WorkerId,
    outcome: Outcome | None = None,
    save: Ask[bool] | None = None,
) -> Plan[str]:
    """Do what `meet_fence` does on a connection of the handler's own; then write an outcome.

    What the handler has confined the transaction by stays: the handler's own role writes.

    Args:
        schema: ours.
        lease: the execution.
        begun_in: what `fence_own` returned.
        worker_id: the worker that ends the execution.
        outcome: how the execution ends in this transaction; None: it does not end in it.
        save: the verb that keeps what the handler has saved, if the job goes on.

    Returns: as `meet_fence`; or `unwritten`: the execution holds the job, but the outcome could not
        be written. Then the job is another tenant's, or a trigger keeps its row.

    Source: sql/functions/lease/fence.sql, sql/functions/end/complete.sql
    """

    def steps() -> Steps[str]:
        values = (lease.job_id.hex, lease.execution_id.hex, begun_in)
        met = Ask(call("meet_fence", "uuid uuid text", schema), values, word, on_error=_lacks(schema, FENCE_RIGHTS))
        held: str = yield met
        if held == "held" and outcome is not None:
            settled = end.settle(schema, worker_id=worker_id, settlements=[(lease, outcome)])
            assert isinstance(settled, Ask)  # one execution takes one statement
            surprises: list[Surprise] = yield attrs.evolve(settled, on_error=_lacks(schema, COMPLETE_RIGHTS))
            return "unwritten" if surprises else held
        if held == "held" and save is not None:
            yield save
        return held

    return Plan(steps, may_repeat=False)


# What the role of a handler's own connection needs, for people; {schema} is to be filled in.
FENCE_RIGHTS = (
    "it needs usage on the schema {schema}, and the right to its functions fence and meet_fence, which `migrate` gives to all"
    " who have that usage"
)
COMPLETE_RIGHTS = (
    "for complete=True it needs usage on the schema {schema}, select and update on {schema}.jobs, and insert on"
    " {schema}.job_executions"
)


def _lacks(schema: str, rights: str) -> Callable[[Exception], Any]:
    def say(error: Exception) -> Any:
        if isinstance(error, errors.InsufficientPrivilege):
            message = f"the role of the connection lacks a right: {error.diag.message_primary}; {rights.format(schema=schema)}"
            raise MissingRights(message) from error
        raise_translated(error, schema)

    return say


def note_afterthought(schema: str, lease: Lease, message: str) -> Ask[None]:
    """Keep with the attempt what its handler raised after its job was completed.

    The handler's own transaction had completed the job.

    Source: sql/functions/end/note_afterthought.sql
    """
    return Ask(call("note_afterthought", "uuid uuid text", schema), (lease.job_id.hex, lease.execution_id.hex, message), nothing)
