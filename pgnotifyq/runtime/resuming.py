"""Going on where the last claim ended, instead of looking from the start of the queue.

The front of the index that claims read is where jobs were taken from. Their entries stay until
vacuum comes, and while anybody holds an old snapshot it cannot come: each claim then steps over all
of them, and a worker that drained 12,000 jobs a second was down to 2,600 after 300,000. A claim
that goes on behind the last job of the one before steps over none.

What it does not see is what came before that job meanwhile: a higher priority, a transaction that
committed late, a job given back. So a look from the start is made again and again: one buys looks
that go on for ten times as long as it took itself (RESUMED_SHARE), a second at most. That bounds
both: a tenth of a claimer's time goes into looks from the start, and while they are cheap, which is
nearly always, a job of higher priority is seen within milliseconds.

A look that goes on and finds too little has not seen the whole queue, so it is no reason to sleep:
the next one, made at once, starts from the start. Only workers that are awake go on; a sleeper owes
its promises a whole look (sleep.py).
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
