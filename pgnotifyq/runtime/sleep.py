"""Only wake sleepers: how a worker sleeps and misses no job, though not every insert pays for that.

The price. A transaction that notifies takes a lock on the whole server at commit and holds it
across the flush, so notifying commits are serialized and group commit is lost (see bench/README.md
for the curves). So the insert trigger notifies only when it sees a sleeper, and a busy worker is
not one.

The race. If an inserter's trigger looked before the sleeper was visible, that inserter notifies
nobody. The job is not visible before the inserter commits. So a worker that looked in between would
sleep, and miss the job. Three steps close the race:

1. The worker publishes itself in `sleepers` and commits. Its LISTEN came long before.
2. In a *new* transaction it takes a transaction id T of its own, and commits.
3. It goes on claiming, at growing intervals, until a claim comes back dry under a snapshot whose
   xmin is above T. Then it sleeps, without polling.

Why it is enough. Take an inserter whose trigger did not see the publication. Its row was inserted,
and so its transaction id assigned, before the trigger took the snapshot that it looked through.
That snapshot was taken before the publication committed: else the trigger would have seen the
publication. T was assigned after that commit. So the inserter's id is below T. A claim under an
xmin above T runs when the inserter has ended. If the inserter committed, its job is visible to the
claim. Every other inserter saw the sleeper.

`pg_snapshot_xmax` will not do for T: it is one past the highest *completed* id, and the id of an
active inserter may lie beyond it. The claim function reads xmin in a statement *before* the one
that looks for jobs. That can only make xmin smaller, which is safe.

Jobs of the future. A sleeper says when it will look again by itself (`expects_at`). That is a
promise: an insert that falls due later does not notify the sleeper. An inserter that relied on the
promise may not have committed when the promise is kept. So a promise stands until its time, even if
the job that it was made for is gone. If a claim finds that a promise of its worker has passed, it
reports no xmin, and the worker takes the barrier anew: steps 2 and 3 above. An inserter that relied
on the promise looked before the promise's time, so the inserter's id is below the new T. The naive
sleeper replaces what it expects at each claim, and sleeps on. It loses such a job until the
backstop.

"Dry" means that no due job was left, not that none could be taken. A claim skips rows that another
session has locked, by another worker's claim or by a mere update, and says so (`is_contended`).
Then the worker looks again, at growing intervals. If it slept instead, and the other session did
not take the job after all, nobody would come for the job.

Under repeatable read or serializable, the trigger may look through a snapshot as old as its
transaction. So there it always notifies, on a channel that all workers hear.

Who is woken. An insert picks two sleepers (or as many as there are jobs), not all: with sixteen
idle workers one job costs two claims. A picked worker that is full takes itself off the list, and
then hands the wake-up on. So each worker hands a wake-up on at most once. A claim that leaves due
work behind wakes further sleepers. If a picked worker dies, the watch covers it (its sleeper rows
go when its session does, and others are woken), and at last the backstop does.

A wake-up may be answered without a look at the queues, by taking the one job it names
(shortcuts.py). Nothing here changes by that: to the claimer it is as if another worker had taken
the job.

A worker publishes "awake" only when it has been busy for a while, so light loads never pay for the
exchange. When an awake worker runs dry, it looks a few more times (HOT_SECONDS) before it publishes
itself as a sleeper: a worker between two bursts is not asleep.
"""

from __future__ import annotations

from enum import Enum

import attrs

# Awake and dry: pauses before the next look. Their sum is how long a burst may pause before the
# worker falls asleep.
HOT_SECONDS = (0.001, 0.001, 0.002, 0.004, 0.008)
# Published and not yet past the barrier: pauses while some older transaction is still open. The
# last one repeats; it is the only polling there is, and it ends when that transaction does.
BARRIER_SECONDS = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0)
# A due job is locked by somebody else: pauses before the next look.
CONTENDED_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5)
# Without a pause of this length a sleeper counts as busy, and after BUSY_SECONDS of that it
# publishes that it is awake.
LULL_SECONDS = 0.005
BUSY_SECONDS = 0.1


class Stage(Enum):
    """How far a worker is on its way to sleep."""

    AWAKE = "awake"  # not published: inserts owe it nothing, it looks by itself
    PUBLISHED = "published"  # in `sleepers`, some older transaction may not have seen it
    ASLEEP = "asleep"  # every inserter from now on sees it


@attrs.define(kw_only=True)
class Sleep:
    """The stage of one worker, and what it does next.

    Pure, so that its interleavings can be searched.

    The claimer calls `next_pause` after each claim. If the answer is None, the claimer publishes
    the worker first, and notes the barrier.
    """

    stage: Stage = Stage.AWAKE
    barrier: int | None = None  # T
    tries: int = 0
    contended_tries: int = 0
    busy_since: float | None = None  # elapsed time, seconds

    def next_pause(self, *, ran_dry: bool, found: bool, is_contended: bool, snapshot_xmin: int | None) -> float | None:
        """Return seconds to wait for a wake-up; inf: sleep; None: publish first."""
        if found:
            self.tries = 0
        if not ran_dry:
            return 0.0
        if self.stage is not Stage.AWAKE and snapshot_xmin is None:
            return None  # a promise has passed
        if is_contended:
            self.contended_tries += 1
            return CONTENDED_SECONDS[min(self.contended_tries, len(CONTENDED_SECONDS)) - 1]
        self.contended_tries = 0
        if self.stage is Stage.AWAKE:
            if self.tries >= len(HOT_SECONDS):
                return None
            self.tries += 1
            return HOT_SECONDS[self.tries - 1]
        if self.stage is Stage.PUBLISHED:
            if self.barrier is not None and snapshot_xmin is not None and snapshot_xmin > self.barrier:
                self.stage = Stage.ASLEEP
                self.tries = 0
                return float("inf")
            self.tries += 1
            return BARRIER_SECONDS[min(self.tries, len(BARRIER_SECONDS)) - 1]
        return float("inf")

    def published(self, barrier: int) -> None:
        """Note that the worker is in `sleepers`, and the transaction id taken after that."""
        self.stage = Stage.PUBLISHED
        self.barrier = barrier
        self.tries = 0

    def woken_up(self) -> None:
        """Note that the worker is not in `sleepers` any more (or must be taken not to be)."""
        self.stage = Stage.AWAKE
        self.barrier = None
        self.tries = 0
        self.busy_since = None

    def is_busy(self, now: float, *, lulled: bool) -> bool:
        """Tell whether a sleeper has been busy for long enough to publish that it is awake."""
        if lulled or self.busy_since is None:
            self.busy_since = now
            return False
        return now - self.busy_since > BUSY_SECONDS
