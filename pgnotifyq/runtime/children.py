"""What a handler enqueues: the children of its job."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pgnotifyq.model.handler import make_job
from pgnotifyq.model.headers import to_carry
from pgnotifyq.model.registry import handler_of
from pgnotifyq.model.tracing import traced

if TYPE_CHECKING:
    from pgnotifyq.ledger.claimed import ClaimedJob
    from pgnotifyq.model.handler import Handler
    from pgnotifyq.model.new_job import JobSettings, NewJob
    from pgnotifyq.model.registry import JobRegistry


def child_of(
    parent: ClaimedJob,
    registry: JobRegistry,
    job_type: str | Handler[Any, Any, Any],
    payload: object,
    settings: JobSettings,
) -> NewJob:
    """Make a job to enqueue, with its parent's tenant and headers unless `settings` say others.

    If the registry has no handler for the type, another worker may have one.

    Raises:
        InvalidName, InvalidJob, InvalidPayload, PayloadTooLarge: the job could not be enqueued.
    """
    given: dict[str, Any] = {**settings}
    given.setdefault("org_id", parent.whole.org_id)
    if given.get("headers") is None:
        given["headers"] = to_carry(parent.headers)
    if isinstance(job_type, str):
        return traced(make_job(job_type, payload, given, registry.find(job_type)))
    handler = handler_of(job_type, None)
    assert handler is not None  # a handler was given
    return traced(make_job(handler.job_type, payload, given, handler))
