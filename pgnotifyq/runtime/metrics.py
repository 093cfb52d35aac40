"""Metrics: what workers have counted, as Prometheus reads it.

`SERIES` is the one table of them. docs/metrics.md says what each means, and a test compares them.

The numbers are the meters' (`meter.py`). Here they become prometheus_client's metric families, at
each scrape. So no job pays for anything here.
"""

from __future__ import annotations

import threading
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal

import attrs

from pgnotifyq._version import __version__
from pgnotifyq.model.errors import ConfigError
from pgnotifyq.runtime.meter import Counts, Histogram, Labels, Meter

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from pgnotifyq.model.job import WorkerId
    from pgnotifyq.model.registry import JobRegistry
    from pgnotifyq.runtime.meter import Vitals

Kind = Literal["counter", "gauge", "histogram"]


@attrs.frozen
class Series:
    """One metric: its name, kind and labels, and what it says in a line."""

    name: str
    kind: Kind
    labels: Labels
    says: str


_BY_JOB = ("job_type", "queue")
SERIES = (
    Series("jobs_dequeued_total", "counter", _BY_JOB, "Jobs that workers have claimed."),
    Series("jobs_completed_total", "counter", _BY_JOB, "Jobs that were completed."),
    Series("jobs_failed_total", "counter", _BY_JOB, "Attempts that failed: to be tried again, or the last."),
    Series("dlq_jobs_total", "counter", _BY_JOB, "Jobs that became dead letters."),
    Series("executions_ended_total", "counter", (*_BY_JOB, "outcome"), "Attempts that ended, by how."),
    Series("worker_events_total", "counter", ("event",), "Events, but for job.claimed and job.completed."),
    Series("job_duration_seconds", "histogram", ("job_type",), "How long handlers ran."),
    Series("dequeue_wait_seconds", "histogram", ("queue",), "From when a job was due until it was claimed."),
    Series("job_commit_to_start_seconds", "histogram", ("queue",), "From when a job was due until its handler started."),
    Series("job_cancel_to_stop_seconds", "histogram", ("reason",), "From when a handler was told to stop until it had ended."),
    Series("worker_loop_lag_seconds", "histogram", (), "How late the event loop's beats were, four a second."),
    Series("worker_loop_held_seconds", "gauge", (), "How long the event loop has been held by now."),
    Series("worker_active_jobs", "gauge", ("worker_id",), "Handlers that run."),
    Series("worker_concurrency", "gauge", (), "Jobs that may run at once."),
    Series("worker_outcomes_unwritten", "gauge", (), "Outcomes that are on their way to the database."),
    Series("worker_listener_proven", "gauge", (), "1 if notifications are proven to arrive, 0 if the worker polls."),
    Series("worker_database_up", "gauge", (), "0 if a statement has failed, and none has succeeded since."),
    Series("worker_database_answered_seconds", "gauge", (), "How long ago the database last answered."),
    Series("worker_draining", "gauge", (), "1 if the worker was told to stop."),
    Series("worker_handler_connections", "gauge", ("state",), "Database connections of handlers: lent, idle; tasks waiting."),
    Series("worker_handler_connections_max", "gauge", (), "Database connections of handlers, at the most."),
    Series("worker_info", "gauge", ("worker_id", "version"), "1, of each worker that runs."),
)  # fmt: skip
NOT_INSTALLED = "prometheus_client is not installed: pip install 'pgnotifyq[metrics]'"
CONTENT_TYPE = "text/plain; charset=utf-8"

# What a series says of one moment: the values of its labels, and a number or a histogram.
_Samples = dict[str, "Mapping[Labels, Any]"]


@attrs.frozen
class _AllCounts:
    """What there is to add up.

    Both are in one value. Else a scrape would count a worker that is just ending twice, or not at
    all.
    """

    meters: tuple[Meter, ...]  # of workers that run
    ended: Counts  # of those that have ended


class Metrics:
    """What workers of this process count, for a program that serves its own `/metrics`.

    Give it to `run_worker(metrics=...)`, and to a registry of prometheus_client, as its collector:

        metrics = pgnotifyq.Metrics()
        prometheus_client.REGISTRY.register(metrics)

    Several workers may share one `Metrics`: then their counts are added up. A worker's counts stay
    after the worker has ended. The extra `metrics` has to be installed when a `Metrics` is read,
    not before. Any thread may read it.
    """

    def __init__(self) -> None:
        self._counts = _AllCounts((), Counts())
        self._changing = threading.Lock()  # workers may begin and end in several threads

    def text(self, accept: str = "") -> tuple[bytes, str]:
        """Return the metrics as text for a scrape.

        Args:
            accept: the scrape's header `Accept`. It chooses OpenMetrics or, by default,
                Prometheus's own format.

        Returns: the text, and its content type.

        Raises:
            ConfigError: prometheus_client is not installed.
        """
        try:
            from prometheus_client import CollectorRegistry
            from prometheus_client.exposition import choose_encoder
        except ImportError:
            raise ConfigError(NOT_INSTALLED) from None
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        encode, content_type = choose_encoder(accept)
        return encode(registry), content_type

    def collect(self) -> Iterable[Any]:
        """Return prometheus_client's metric families, as its registries ask a collector for them.

        Raises:
            ConfigError: prometheus_client is not installed.
        """
        try:
            from prometheus_client import core
        except ImportError:
            raise ConfigError(NOT_INSTALLED) from None
        samples = self._samples()
        for series in SERIES:
            named = (series.name, series.says)
            found = samples[series.name]
            if series.kind == "counter":
                counter = core.CounterMetricFamily(*named, labels=series.labels)
                for labels, value in found.items():
                    counter.add_metric(labels, value)
                yield counter
            elif series.kind == "gauge":
                gauge = core.GaugeMetricFamily(*named, labels=series.labels)
                for labels, value in found.items():
                    gauge.add_metric(labels, value)
                yield gauge
            else:
                histogram = core.HistogramMetricFamily(*named, labels=series.labels)
                for labels, value in found.items():
                    histogram.add_metric(labels, list(_buckets(value)), value.total)
                yield histogram

    def _samples(self) -> _Samples:
        """Return what each series says now."""
        counts = self._counts
        meters, all_ = counts.meters, Counts()
        all_.add(counts.ended)
        for meter in meters:
            for key in meter.known:
                all_.tallies[key]  # zero, before there is anything to count
            all_.add(meter)
        return {**_counted(all_), **_gauges([(str(meter.worker_id), meter.vitals) for meter in meters])}


def open_meter(metrics: Metrics, worker_id: WorkerId, registry: JobRegistry, queues: tuple[str, ...]) -> Meter:
    """Begin to count for a worker."""
    meter = Meter(worker_id, registry, queues)
    with metrics._changing:  # noqa: SLF001  # this module's own
        counts = metrics._counts  # noqa: SLF001
        metrics._counts = _AllCounts((*counts.meters, meter), counts.ended)  # noqa: SLF001
    return meter


def close_meter(metrics: Metrics, meter: Meter) -> None:
    """Keep the counts of a worker that has ended."""
    with metrics._changing:  # noqa: SLF001  # this module's own
        counts = metrics._counts  # noqa: SLF001
        ended = Counts()
        ended.add(counts.ended)
        ended.add(meter)
        metrics._counts = _AllCounts(tuple(other for other in counts.meters if other is not meter), ended)  # noqa: SLF001


def _counted(counts: Counts) -> _Samples:
    """Return what counters and histograms say. A histogram of nothing is left out."""
    tallies = counts.tallies
    outcomes = {(*key, name): count for key, tally in tallies.items() for name, count in tally.outcomes.items()}
    return {
        "jobs_dequeued_total": {key: tally.dequeued for key, tally in tallies.items()},
        "jobs_completed_total": {key: tally.completed for key, tally in tallies.items()},
        "jobs_failed_total": {key: tally.failed for key, tally in tallies.items()},
        "dlq_jobs_total": {key: tally.dead for key, tally in tallies.items()},
        "executions_ended_total": outcomes
        | {(*key, "completed"): tally.completed for key, tally in tallies.items() if tally.completed},
        "worker_events_total": {(event,): count for event, count in counts.events.items()},
        "job_duration_seconds": _merged((job_type, tally.durations) for (job_type, _), tally in tallies.items()),
        "dequeue_wait_seconds": _merged((queue, tally.waits) for (_, queue), tally in tallies.items()),
        "job_commit_to_start_seconds": _merged((queue, tally.starts) for (_, queue), tally in tallies.items()),
        "job_cancel_to_stop_seconds": _merged((kind.value, histogram) for kind, histogram in counts.stops.items()),
        "worker_loop_lag_seconds": {(): counts.lags},
    }


def _merged(of: Iterable[tuple[str, Histogram]]) -> dict[Labels, Histogram]:
    """Return one histogram for each label: the sum of all that have this label."""
    merged: dict[Labels, Histogram] = {}
    for label, histogram in of:
        if not histogram.is_empty:
            merged.setdefault((label,), Histogram()).add(histogram)
    return merged


def _gauges(of: list[tuple[str, Vitals]]) -> _Samples:
    """Return what gauges say of the workers that run: the worst of their values, or the sum."""
    all_ = [vitals for _, vitals in of]
    most, lent, idle, waiting = (
        (sum(column) for column in zip(*(vitals.connections for vitals in all_), strict=True)) if of else (0,) * 4
    )
    asked = [vitals.database_seconds + vitals.silent_seconds() for vitals in all_ if vitals.database_seconds is not None]
    return {
        "worker_loop_held_seconds": {(): max((vitals.silent_seconds() for vitals in all_), default=0.0)},
        "worker_active_jobs": {(worker_id,): vitals.running for worker_id, vitals in of},
        "worker_concurrency": {(): sum(vitals.concurrency for vitals in all_)},
        "worker_outcomes_unwritten": {(): sum(vitals.unwritten for vitals in all_)},
        "worker_listener_proven": {(): int(all(vitals.is_listening for vitals in all_))} if of else {},
        "worker_database_up": {(): int(all(vitals.is_database_up for vitals in all_))} if of else {},
        "worker_database_answered_seconds": {(): max(asked)} if asked else {},
        "worker_draining": {(): int(any(vitals.state == "draining" for vitals in all_))} if of else {},
        "worker_handler_connections": {("lent",): lent, ("idle",): idle, ("waiting",): waiting},
        "worker_handler_connections_max": {(): most},
        "worker_info": {(worker_id, __version__): 1 for worker_id, _ in of},
    }


def _buckets(of: Histogram) -> Iterator[tuple[str, int]]:
    """Yield the bounds and how many values were up to each, as prometheus_client wants it."""
    from prometheus_client.utils import floatToGoString

    yield from zip((*map(floatToGoString, of.bounds), "+Inf"), accumulate(of.counts), strict=True)
