"""The fence of a transaction of a library's that is confined to the job's tenant.

It begins as `ctx.session` does, and then confines the transaction, for its length alone: by a
token, if the connection's role is a tenant's login; else by the tenants' role, if the connection's
role may take it on, and by the tenant's setting. With `complete=True` they are taken off at the
end: the connection's own role writes the outcome.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from pgnotifyq.ledger import organisation
from pgnotifyq.runtime.fenced import WorkerFence

if TYPE_CHECKING:
    from pgnotifyq.ledger.ask import Verb


@attrs.frozen(eq=False, kw_only=True)
class OrgFence(WorkerFence):
    """The fence of an execution that a worker runs, around its tenant's rows."""

    # Of the tokens by which the sessions of a tenant's login are confined. None: none is known.
    key: bytes | None = attrs.field(default=None, repr=False)

    def first(self) -> Verb[str]:
        """Bind the transaction to the execution, and confine it; return the transaction's id."""
        return organisation.fence_own(self.schema, self.running.lease, self.running.job.whole.org_id, key=self.key)

    def last(self, begun_in: str) -> Verb[str]:
        """Tell whether the transaction may commit; write the outcome, if there is one."""
        return organisation.meet_own_fence(
            self.schema, self.running.lease, begun_in=begun_in, worker_id=self.worker_id, outcome=self.outcome, save=self.save()
        )
