"""The jobs of a bulk, made and checked some at a time: other tasks of the loop run in between."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pgnotifyq.wire.plans import pause

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pgnotifyq.doors.org_verbs import OrgVerbs
    from pgnotifyq.doors.verbs import Verbs
    from pgnotifyq.model.new_job import NewJob


async def make_all(verbs: Verbs | OrgVerbs, jobs: Iterable[NewJob | Mapping[str, Any]]) -> list[NewJob]:
    """Return the jobs as they will be enqueued, in order.

    Cancellation: between two parts; nothing was asked of the database yet.

    Raises: as `new_jobs`.
    """
    given = list(jobs)
    made: list[NewJob] = []
    for part in verbs.new_jobs(given):
        made += part
        if len(made) < len(given):
            await pause()
    return made


def make_all_blocking(verbs: Verbs | OrgVerbs, jobs: Iterable[NewJob | Mapping[str, Any]]) -> list[NewJob]:
    """Return the same without a pause: no other task waits for this thread."""
    return [job for part in verbs.new_jobs(list(jobs)) for job in part]
