"""The fence of a library's transaction that is confined to the job's tenant.

The fence begins as `ctx.session` does. Then it confines the transaction, until the transaction's
end. If the connection's role is a tenant's login, a token confines. Else the tenant's setting does,
and also the tenants' role if the connection's role may take that on. With `complete=True` these are
taken off at the end: the connection's own role writes the outcome.
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

    # The key of the tokens that confine the sessions of a tenant's login. None: no key is known.
    key: bytes | None = attrs.field(default=None, repr=False)

    def first(self) -> Verb[str]:
        """Bind the transaction to the execution, and confine it; return the transaction's id."""
        return organisation.fence_own(self.schema, self.running.lease, self.running.job.whole.org_id, key=self.key)

    def last(self, begun_in: str) -> Verb[str]:
        """Tell whether the transaction may commit; write the outcome, if there is one."""
        return organisation.meet_own_fence(
            self.schema, self.running.lease, begun_in=begun_in, worker_id=self.worker_id, outcome=self.outcome, save=self.save()
        )
