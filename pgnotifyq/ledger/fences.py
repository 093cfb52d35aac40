"""The fence of a handler's own transaction.

It is raised when the transaction begins, met when its block ends, and asked by its commit in any
case.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgnotifyq.ledger.ask import Ask, nothing
from pgnotifyq.ledger.columns import rows
from pgnotifyq.ledger.statements import call, query, with_values

if TYPE_CHECKING:
    from pgnotifyq.ledger.ask import Answer
    from pgnotifyq.model.job import Lease, OrgId

# The commit of a fenced transaction was refused; why is in the detail: cancelled, lost, prepared.
REFUSED = "PNQ03"


def fence(schema: str, lease: Lease, org_id: OrgId | None, tenant_role: str | None) -> bytes:
    """Return what binds a transaction to an execution, and confines it to a tenant.

    It is sent together with the transaction's `begin`.

    Its first column is the transaction's id, for `meet_fence`.

    Source: sql/queries/begin_fence.sql, begin_fence_of_tenant.sql, sql/functions/lease/fence.sql
    """
    whose = (lease.job_id.hex, lease.execution_id.hex)
    if org_id is not None:
        return with_values(query("begin_fence_of_tenant", schema), (*whose, str(org_id), tenant_role or "none"))
    return with_values(query("begin_fence", schema), whose)


def meet_fence(schema: str, lease: Lease, *, begun_in: str) -> Ask[str]:
    """Lock the job's row, and tell whether the transaction may commit.

    What a handler or we have confined it by is taken off first.

    Returns: `held`, `cancelled` or `lost`; `left` when this is not the transaction that was bound.

    Source: sql/queries/meet_fence.sql, sql/functions/lease/fence.sql
    """
    return Ask(query("meet_fence", schema), (lease.job_id.hex, lease.execution_id.hex, begun_in), _told, may_repeat=False)


def _told(answer: Answer, encoding: str) -> str:
    ((_, _, told),) = rows(answer, encoding)
    return str(told)


def note_afterthought(schema: str, lease: Lease, message: str) -> Ask[None]:
    """Keep with the attempt what its handler raised after its job was completed.

    Its own transaction had completed it.

    Source: sql/functions/end/note_afterthought.sql
    """
    return Ask(call("note_afterthought", "uuid uuid text", schema), (lease.job_id.hex, lease.execution_id.hex, message), nothing)
