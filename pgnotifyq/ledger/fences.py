"""The fence of a handler's own transaction: raised when it begins, met when its block ends, and asked by its commit in any case."""

from __future__ import annotations

from typing import TYPE_CHECKING

from psycopg import sql

from pgnotifyq.ledger.ask import Ask, nothing
from pgnotifyq.ledger.columns import rows
from pgnotifyq.ledger.statements import call, query

if TYPE_CHECKING:
    from pgnotifyq.ledger.ask import Answer
    from pgnotifyq.model.job import Lease, OrgId

# The commit of a fenced transaction was refused; why is in the detail: cancelled, lost, prepared.
REFUSED = "PNQ03"


def fence(schema: str, lease: Lease, org_id: OrgId | None, tenant_role: str | None) -> bytes:
    """Return what binds a transaction to an execution, to be sent together with its `begin`; and confines it to a tenant.

    Its first column is the transaction's id, for `meet_fence`.

    Source: sql/functions/lease/fence.sql
    """
    words = [sql.SQL("{}.fence({}::uuid, {}::uuid)").format(sql.Identifier(schema), lease.job_id.hex, lease.execution_id.hex)]
    if org_id is not None:
        # Of the transaction, never of the session: a pooled connection would carry one tenant into the work of another.
        words.append(sql.SQL("set_config('pgnotifyq.org_id', {}, true)").format(str(org_id)))
        words.append(sql.SQL("set_config('role', {}, true)").format(tenant_role or "none"))
    return (sql.SQL("select ") + sql.SQL(", ").join(words)).as_bytes(None)


def meet_fence(schema: str, lease: Lease, *, begun_in: str) -> Ask[str]:
    """Take off what a handler or we have confined the transaction by, lock the job's row, and tell whether it may commit.

    Returns: `held`, `cancelled` or `lost`; `left` when this is not the transaction that was bound.

    Source: sql/queries/meet_fence.sql, sql/functions/lease/fence.sql
    """
    return Ask(query("meet_fence", schema), (lease.job_id.hex, lease.execution_id.hex, begun_in), _told, may_repeat=False)


def _told(answer: Answer, encoding: str) -> str:
    ((_, _, told),) = rows(answer, encoding)
    return str(told)


def note_afterthought(schema: str, lease: Lease, message: str) -> Ask[None]:
    """Keep with the attempt what its handler raised after its own transaction had completed the job.

    Source: sql/functions/end/note_afterthought.sql
    """
    return Ask(call("note_afterthought", "uuid uuid text", schema), (lease.job_id.hex, lease.execution_id.hex, message), nothing)
