"""Going on where the last claim ended, instead of looking from the start of the queue.

Claims take jobs from the front of the index that they read. The entries of taken jobs stay there
until vacuum removes them. While anybody holds an old snapshot, vacuum cannot do that. Then each
claim steps over all of them: a worker that drained 12,000 jobs a second was down to 2,600 after
300,000. A claim that goes on behind the last job of the claim before steps over none.

Such a claim does not see what has come before that job meanwhile: a job of a higher priority, a job
of a transaction that committed late, a job that was given back. So the claimer looks from the start
again and again. After each such look, it may go on for ten times as long as the look took
(RESUMED_SHARE), and for a second at most. That bounds both costs. A tenth of a claimer's time goes
into looks from the start. While these are cheap, which is nearly always, a job of higher priority
is seen within milliseconds.

A claim that goes on has not seen the whole queue. So if it finds too little, that is no reason to
sleep: the next claim is made at once, and from the start. Only workers that are awake go on. A
sleeper must look at the whole queue, to keep its promises (sleep.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pgnotifyq.ledger.claimed import ClaimedJob

RESUMED_SHARE = 10.0
RESUMED_SECONDS_MAX = 1.0


@attrs.define(kw_only=True)
class Resuming:
    """Where one claimer may go on, and until when. Times are elapsed seconds."""

    _last: ClaimedJob | None = None
    _until: float = 0.0

    def after(self, now: float) -> ClaimedJob | None:
        """Return the job behind which the next claim goes on; None: it starts from the start."""
        return self._last if now < self._until else None

    def note(self, jobs: Sequence[ClaimedJob], *, ran_dry: bool, after: ClaimedJob | None, began: float, ended: float) -> None:
        """Note what a claim found that went on behind `after`; None: it started from the start."""
        self._last = jobs[-1] if jobs and not ran_dry else None
        if after is None:
            self._until = ended + min(RESUMED_SHARE * (ended - began), RESUMED_SECONDS_MAX)
