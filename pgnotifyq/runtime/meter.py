"""What one worker counts and measures, in plain numbers, and how it says that it is well.

A worker has a meter only if somebody reads it: `--http`, or `run_worker(metrics=...)`. Without one,
a job costs a comparison with None in three places.

Rules:

- The worker's own loop writes. Any thread reads: a dict and a list of numbers are never seen torn.
- A job counts by its type and its queue, never by its tenant or its id. Both are bounded: a worker
  takes only types that it has a handler for, from its own queues. Jobs of other workers, a dead
  one's say, may have any type and queue: a type or a queue that is not this worker's counts as
  `other`.
- Gauges and probes do not read the worker. They read `Vitals`, which a task of the loop publishes
  at each beat. While the loop is held there is no beat, and the age of the last `Vitals` says so.
- Numbers are kept here, not in prometheus_client's own counters: each of those takes a lock for
  each job, and a worker could not count without that library. `metrics.py` hands the numbers over
  at each scrape.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from time import monotonic
from typing import TYPE_CHECKING, Any

import attrs
import trio

from pgnotifyq.model.events import EventName
from pgnotifyq.model.outcome import InterruptKind, SettleKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pgnotifyq.ledger.lease import Surprise
    from pgnotifyq.model.events import Event
    from pgnotifyq.model.job import WorkerId
    from pgnotifyq.model.registry import JobRegistry
    from pgnotifyq.runtime.running import Running

# The time between two beats: a quarter of the default of `loop_blocked_seconds`. Beats cost 0.02 %
# of a processor.
BEAT_SECONDS = 0.25
KNOWN_MAX = 200  # job types times queues: so many at most are told before they count
OTHER = "other"  # a type or a queue that is not this worker's
# Upper bounds, in seconds. A handler takes a millisecond to an hour, as a wait in a queue does.
LONG_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)
LAG_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

Labels = tuple[str, ...]  # the values of a series' labels

# Every job that goes as planned makes these events. The tallies count what they say.
_NOT_COUNTED = frozenset({EventName.JOB_CLAIMED, EventName.JOB_COMPLETED})
_FAILURES = frozenset({SettleKind.RETRY, SettleKind.BURY})


class Histogram:
    """How many values were up to each bound, and their sum."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float] = LONG_SECONDS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)  # the last: of what is above all bounds
        self.total = 0.0

    def note(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def add(self, other: Histogram) -> None:
        """Add what another has counted, by the same bounds."""
        self.counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]
        self.total += other.total

    @property
    def is_empty(self) -> bool:
        """Whether nothing was counted."""
        return not any(self.counts)


class Tally:
    """What was counted of one job type in one queue.

    An execution keeps a reference to its tally (`Running.tally`), so that the tally is looked up
    once.
    """

    __slots__ = ("completed", "dead", "dequeued", "durations", "failed", "outcomes", "starts", "waits")

    def __init__(self) -> None:
        self.dequeued = 0
        self.completed = 0
        self.failed = 0
        self.dead = 0
        self.outcomes: Counter[str] = Counter()  # all but completed
        self.durations = Histogram()  # of handlers
        self.waits = Histogram()  # from due to claimed
        self.starts = Histogram()  # from due to started

    def add(self, other: Tally) -> None:
        """Add what another has counted."""
        self.dequeued += other.dequeued
        self.completed += other.completed
        self.failed += other.failed
        self.dead += other.dead
        # A copy, made in one step: the loop may count something new meanwhile.
        self.outcomes.update(dict(other.outcomes))
        self.durations.add(other.durations)
        self.waits.add(other.waits)
        self.starts.add(other.starts)


class Tallies(dict[Labels, Tally]):
    """A tally for each job type and queue."""

    def __missing__(self, key: Labels) -> Tally:
        made = self[key] = Tally()
        return made


@attrs.frozen(kw_only=True)
class Vitals:
    """How a worker is, as it said at its last beat."""

    at: float  # of time.monotonic(), seconds
    state: str = "starting"  # starting, working, draining
    is_listening: bool = False  # notifications are proven to arrive; else it polls
    is_database_up: bool = False  # False: a statement has failed, and none has succeeded since
    database_seconds: float | None = None  # since the database last answered; None: it has not yet
    concurrency: int = 0
    running: int = 0  # handlers that run
    unwritten: int = 0  # outcomes on their way to the database
    # Of handlers: how many there may be, how many are lent and how many idle, and how many tasks
    # wait for one.
    connections: tuple[int, int, int, int] = (0, 0, 0, 0)

    def silent_seconds(self) -> float:
        """Return how long a beat is overdue.

        For that long the loop has been held, or the process was frozen. A worker that is starting
        makes no beats yet. It holds no lease, and may wait long for the application's lifespans.
        """
        if self.state == "starting":
            return 0.0
        return max(0.0, monotonic() - self.at - BEAT_SECONDS)


class Counts:
    """What was counted so far."""

    def __init__(self) -> None:
        self.tallies = Tallies()  # by job type and queue
        self.events: Counter[str] = Counter()
        self.stops: dict[InterruptKind, Histogram] = {kind: Histogram() for kind in InterruptKind}
        self.lags = Histogram(LAG_SECONDS)

    def add(self, other: Counts) -> None:
        """Add what another has counted. The loop of that other may go on counting meanwhile."""
        for key, tally in list(other.tallies.items()):
            self.tallies[key].add(tally)
        self.events.update(dict(other.events))
        for kind, histogram in other.stops.items():
            self.stops[kind].add(histogram)
        self.lags.add(other.lags)


class Meter(Counts):
    """What one worker has counted so far. The worker's loop writes; any thread reads."""

    def __init__(self, worker_id: WorkerId, registry: JobRegistry, queues: Sequence[str]) -> None:
        super().__init__()
        self.worker_id = worker_id
        self.vitals = Vitals(at=monotonic())
        self.active = 0  # handlers that run
        self._registry = registry
        self._queues = queues

    @property
    def known(self) -> list[tuple[str, str]]:
        """Every job type and queue that this worker may have, as far as that is a short list.

        A counter that is told before it counts is 0 at first. Else nobody would see its first step.
        """
        queues = self._queues
        handlers = [
            handler for job_type in sorted(self._registry.job_types) if (handler := self._registry.find(job_type)) is not None
        ]
        if len(handlers) * len(queues) <= KNOWN_MAX:
            return [(handler.job_type, queue) for handler in handlers for queue in queues]
        return [(handler.job_type, handler.queue or queues[0]) for handler in handlers[:KNOWN_MAX]]

    # A job's way.

    def note_claimed(self, claimed: Iterable[Running]) -> None:
        """Count jobs that were taken up."""
        for running in claimed:
            job = running.job
            running.tally = tally = self.tallies[job.job_type, job.queue_name]
            running.waited_seconds = waited = job.waited_seconds
            tally.dequeued += 1
            tally.waits.note(waited)

    def note_started(self, running: Running) -> None:
        """Count an execution whose handler starts.

        The database says how long the job waited in its queue. trio's clock measures the rest, from
        when the claim was sent. So the sum is too long by a part of a round trip, and never too
        short.
        """
        assert running.started_at is not None
        self.active += 1
        self._tally_of(running).starts.note(running.waited_seconds + running.started_at - running.claimed_at)

    def note_stopped(self, running: Running) -> None:
        """Count an execution whose handler has ended."""
        if running.started_at is None:
            return
        self.active -= 1
        now = trio.current_time()
        self._tally_of(running).durations.note(now - running.started_at)
        told_at = running.interrupted_at
        if told_at is None or running.interrupt is None:
            return
        if running.interrupt.kind is InterruptKind.TIMED_OUT and running.handler is not None:
            # The scope's own deadline told the handler to stop. The worker noted that afterwards.
            told_at = min(told_at, running.started_at + (running.handler.timeout_seconds or 0.0))
        self.stops[running.interrupt.kind].note(now - told_at)

    def note_ended(self, batch: Iterable[Running], became: Mapping[Any, Surprise]) -> None:
        """Count executions whose outcome the database has, and what became of their jobs."""
        for running in batch:
            tally, outcome = self._tally_of(running), running.outcome_known
            surprise = became.get(running.job.id) if became else None
            if surprise is None or surprise.became == "bare":
                kind, name = outcome.kind, outcome.name
            elif surprise.became in {"lost", "refused"}:
                continue  # nothing was written; a lost lease is told, and counted, as an event
            else:
                kind, name = _BECAME[surprise.became], outcome.name if surprise.became == "dead" else surprise.became
            if kind is SettleKind.COMPLETE:
                tally.completed += 1
                continue
            tally.outcomes[name] += 1
            if kind in _FAILURES:
                tally.failed += 1
                if kind is SettleKind.BURY:
                    tally.dead += 1

    def _tally_of(self, running: Running) -> Tally:
        tally: Tally | None = running.tally
        if tally is None:  # it was held, and did not start
            tally = self.tallies[running.job.job_type, running.job.queue_name]
        return tally

    def note_event(self, event: Event) -> None:
        """Count an event.

        Also count what only events tell: a lost lease, a job that died with its worker.
        """
        name, fields = event.name, event.fields
        if name in _NOT_COUNTED:
            return
        self.events[name.value] += 1
        if name is EventName.LEASE_LOST:
            self.tallies[self._bounded(fields)].outcomes["lost"] += 1
        elif name is EventName.JOB_RECLAIMED and fields["became"] == "dead":
            self.tallies[self._bounded(fields)].dead += 1

    def _bounded(self, fields: Mapping[str, Any]) -> tuple[str, str]:
        job_type, queue = fields["job_type"], fields["queue"]
        return job_type if self._registry.find(job_type) is not None else OTHER, queue if queue in self._queues else OTHER


_BECAME = {"cancelled": SettleKind.CANCEL, "dead": SettleKind.BURY, "completed": SettleKind.COMPLETE}
