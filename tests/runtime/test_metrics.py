"""Metrics: what a scrape of a real worker says, read by prometheus_client's own parser."""

from __future__ import annotations

import sys
from bisect import bisect_left
from typing import TYPE_CHECKING, Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from pgnotifyq import ConfigError, Discard, Event, EventName, JobContext, JobRegistry, Metrics, RetryPolicy, Snooze, run_worker
from pgnotifyq.model.job import WorkerId
from pgnotifyq.runtime.meter import BEAT_SECONDS, KNOWN_MAX, LONG_SECONDS, OTHER, Histogram
from pgnotifyq.runtime.metrics import SERIES, close_meter, open_meter
from tests.ledger.support import BOB
from tests.runtime.probing import ask, parsed, until, value

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.runtime.probing import Samples
    from tests.runtime.support import Worker, Workplace

Payload = dict[str, Any]
FREE = "127.0.0.1:0"
DESIGN = {
    "jobs_dequeued_total": set(),
    "jobs_completed_total": {"job_type", "queue"},
    "jobs_failed_total": set(),
    "job_duration_seconds": {"job_type"},
    "dlq_jobs_total": set(),
    "worker_active_jobs": {"worker_id"},
    "dequeue_wait_seconds": set(),
}


def registry_of_all_ends() -> JobRegistry:
    """Handlers that end in each way."""
    registry = JobRegistry()

    @registry.handler()
    async def good(payload: Payload) -> str:
        return "done"

    @registry.handler(retry=RetryPolicy(base_seconds=3600.0))
    async def unlucky(payload: Payload) -> None:
        raise ValueError("no luck")

    @registry.handler(max_attempts=1)
    async def hopeless(payload: Payload) -> None:
        raise ValueError("no hope")

    @registry.handler()
    async def unwanted(payload: Payload) -> Discard:
        return Discard(reason="nobody wants it")

    @registry.handler()
    async def later(payload: Payload) -> Snooze:
        return Snooze(3600)

    @registry.handler(timeout_seconds=0.05, max_attempts=1)
    async def slow(payload: Payload) -> None:
        await trio.sleep_forever()

    @registry.handler()
    async def long(payload: Payload, ctx: JobContext) -> None:
        await trio.sleep_forever()

    @registry.handler()
    async def own(payload: Payload, ctx: JobContext) -> None:
        async with ctx.transaction(complete=True):
            pass

    return registry


async def scraped(worker: Worker, holds: Any = lambda _: True) -> Samples:
    """Scrape a worker until what must be there is there."""
    return parsed((await until(worker, "/metrics", lambda answer: bool(holds(parsed(answer.body))))).body)


async def test_every_way_to_end(place: Workplace) -> None:
    """Each is counted once, by job type and queue; the design's seven series are there, by their names and labels."""
    worker = await place.start(registry_of_all_ends(), http=FREE)
    for job_type in ("good", "unlucky", "hopeless", "unwanted", "later", "slow", "own"):
        await place.enqueue(job_type)
    long = await place.enqueue("long")
    await worker.log.wait(EventName.JOB_CLAIMED, job_id=long)
    running = await scraped(worker, lambda samples: value(samples, "worker_active_jobs", worker_id=str(worker.handle.worker_id)))
    assert value(running, "dequeue_wait_seconds_count", queue="default") == 8
    await place.cancel(long)
    await worker.log.wait(EventName.JOB_CANCELLED, job_id=long)
    await worker.log.wait(EventName.JOB_RETRIED)
    await worker.log.wait(EventName.JOB_SNOOZED)
    await worker.log.wait(EventName.JOB_DEAD, count=3)
    await worker.log.wait(EventName.JOB_COMPLETED, count=2)
    answer = await ask(worker, "/metrics")
    samples = parsed(answer.body)

    def by_type(name: str) -> dict[str, float]:
        return {dict(labels)["job_type"]: number for (sample, labels), number in samples.items() if sample == name and number}

    every = {"good", "unlucky", "hopeless", "unwanted", "later", "slow", "own", "long"}
    assert by_type("jobs_dequeued_total") == dict.fromkeys(every, 1)
    assert by_type("jobs_completed_total") == {"good": 1, "own": 1}
    assert by_type("jobs_failed_total") == {"unlucky": 1, "hopeless": 1, "unwanted": 1, "slow": 1}
    assert by_type("dlq_jobs_total") == {"hopeless": 1, "unwanted": 1, "slow": 1}
    assert by_type("job_duration_seconds_count") == dict.fromkeys(every, 1)
    ended = {
        (labels_["job_type"], labels_["outcome"])
        for (name, labels) in samples
        if name == "executions_ended_total" and (labels_ := dict(labels))
    }
    assert ended == {
        ("good", "completed"), ("own", "completed"), ("unlucky", "failed"), ("hopeless", "failed"), ("unwanted", "discarded"),
        ("later", "snoozed"), ("slow", "timed_out"), ("long", "cancelled"),
    }  # fmt: skip
    assert value(samples, "job_cancel_to_stop_seconds_count", reason="cancelled") == 1
    assert value(samples, "job_cancel_to_stop_seconds_count", reason="timed_out") == 1
    assert value(samples, "job_commit_to_start_seconds_count", queue="default") == 8
    waited = value(samples, "dequeue_wait_seconds_sum", queue="default")
    assert 0 <= waited <= value(samples, "job_commit_to_start_seconds_sum", queue="default")
    assert value(samples, "worker_listener_proven") == value(samples, "worker_database_up") == 1
    assert value(samples, "worker_events_total", event="job.retried") == 1
    kinds = {family.name: family for family in text_string_to_metric_families(answer.body)}
    for name, labels in DESIGN.items():
        family = kinds[name.removesuffix("_total")]
        assert all(labels <= set(sample.labels) for sample in family.samples), name
    assert set(kinds) == {series.name.removesuffix("_total") for series in SERIES}
    assert all(kinds[series.name.removesuffix("_total")].type == series.kind for series in SERIES)


async def test_no_tenant_and_no_id(place: Workplace) -> None:
    """Labels are job types, queues, and words of ours; the one id is the worker's. A scrape is of a bounded length for it."""
    known = {"job_type", "queue", "outcome", "event", "reason", "state", "le", "version", "worker_id"}
    assert {label for series in SERIES for label in series.labels} <= known
    assert {series.name for series in SERIES if "worker_id" in series.labels} == {"worker_active_jobs", "worker_info"}
    worker = await place.start(registry_of_all_ends(), http=FREE)
    for number in range(20):
        await place.enqueue("good", org_id=f"00000000-0000-0000-0000-{number:012}")
    await worker.log.wait(EventName.JOB_COMPLETED, count=20)
    answer = await ask(worker, "/metrics")
    assert "00000000-0000" not in answer.body
    assert value(parsed(answer.body), "jobs_completed_total", job_type="good", queue="default") == 20


async def test_counters_begin_with_nothing(place: Workplace) -> None:
    """The first dead letter is a step from 0 to 1, which `increase()` sees; a series that begins with 1 is no step."""
    worker = await place.start(registry_of_all_ends(), http=FREE, queues=["default", "mail"])
    samples = await scraped(worker)
    for queue in ("default", "mail"):
        assert value(samples, "dlq_jobs_total", job_type="hopeless", queue=queue) == 0


async def test_openmetrics(place: Workplace) -> None:
    """The other format is given to who asks for it, and its parser, which is stricter, reads it."""
    worker = await place.start(registry_of_all_ends(), http=FREE)
    job_id = await place.enqueue("good")
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    answer = await ask(worker, "/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    families = openmetrics(answer.body)  # type: ignore[no-untyped-call]
    assert {family.name for family in families} == {series.name.removesuffix("_total") for series in SERIES}
    assert (await ask(worker, "/metrics")).headers["content-type"].startswith("text/plain")


async def test_two_workers_in_one_process(place: Workplace) -> None:
    """Each counts its own jobs, at its own address."""
    one = await place.start(registry_of_all_ends(), http=FREE, queues=["one"])
    two = await place.start(registry_of_all_ends(), http=FREE, queues=["two"])
    for _ in range(3):
        job_id = await place.enqueue("good", queue_name="two")
        await two.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    assert value(await scraped(one), "jobs_completed_total", job_type="good", queue="one") == 0
    assert value(await scraped(two), "jobs_completed_total", job_type="good", queue="two") == 3


async def test_metrics_of_a_program_that_serves_its_own(place: Workplace) -> None:
    """Workers that share one are added up in the program's own registry; what has ended stays counted, and is no gauge any more."""
    metrics, registry = Metrics(), CollectorRegistry(auto_describe=True)
    registry.register(metrics)
    one = await place.start(registry_of_all_ends(), metrics=metrics, queues=["one"])
    two = await place.start(registry_of_all_ends(), metrics=metrics, queues=["two"])
    for worker, queue in ((one, "one"), (two, "two")):
        job_id = await place.enqueue("good", queue_name=queue)
        await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    both = parsed(generate_latest(registry).decode())
    assert both == {**parsed(metrics.text()[0].decode()), **{key: both[key] for key in both if "_seconds" in key[0]}}
    one.handle.drain()
    await one.ended.wait()
    left = parsed(generate_latest(registry).decode())
    for samples in (both, left):
        assert value(samples, "jobs_completed_total", job_type="good", queue="one") == 1
        assert value(samples, "jobs_completed_total", job_type="good", queue="two") == 1
    assert value(both, "worker_concurrency") == 8 and value(left, "worker_concurrency") == 4
    assert [dict(labels)["worker_id"] for (name, labels) in left if name == "worker_active_jobs"] == [str(two.handle.worker_id)]
    assert one.handle.http is None


async def test_lifespan_that_takes_long(place: Workplace) -> None:
    """A worker that still starts makes no beats, and its event loop is not held for that."""
    metrics, registry = Metrics(), registry_of_all_ends()
    told: list[float] = []

    @registry.lifespan
    async def model() -> AsyncIterator[str]:
        await trio.sleep(3 * BEAT_SECONDS)
        told.append(value(parsed(metrics.text()[0].decode()), "worker_loop_held_seconds"))
        yield "loaded"

    await place.start(registry, metrics=metrics)
    assert told == [0.0]


async def test_what_is_no_metrics(place: Workplace) -> None:
    """The class instead of an object, or a registry of the library's, is refused by name."""
    for wrong in (Metrics, CollectorRegistry()):
        with pytest.raises(ConfigError, match="not a Metrics"):
            await run_worker(registry_of_all_ends(), place.dsn, metrics=wrong)  # type: ignore[arg-type]


async def test_without_the_library(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Probes are answered; a scrape is told what to install; the program's own is raised that."""
    worker = await place.start(registry_of_all_ends(), http=FREE)
    for name in [name for name in sys.modules if name.partition(".")[0] == "prometheus_client"]:
        monkeypatch.setitem(sys.modules, name, None)
    answer = await ask(worker, "/metrics")
    assert answer.status == 501 and "pip install 'pgnotifyq[metrics]'" in answer.body
    assert (await ask(worker, "/live")).status == 200
    with pytest.raises(ConfigError, match="pip install"):
        Metrics().text()
    with pytest.raises(ConfigError, match="pip install"):
        list(Metrics().collect())


async def test_jobs_that_are_older_than_anything(place: Workplace) -> None:
    """What raw SQL stores as a time is counted as ten years at the most, and the scrape can be read."""
    worker = await place.start(registry_of_all_ends(), http=FREE)
    for time in ("-infinity", "4000-01-01 BC", "1970-01-01"):
        job_id = await place.enqueue("good")
        await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
        async with place.connection.transaction():
            job_id = await place.enqueue("good", priority=1)
            await place.connection.execute(
                "update pgnotifyq.jobs set scheduled_at = %s, created_at = %s where id = %s", (time, time, job_id)
            )
        await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    total = value(await scraped(worker), "dequeue_wait_seconds_sum", queue="default")
    assert 3 * 10 * 365 * 86_400 <= total < 3 * 11 * 366 * 86_400


async def test_job_that_died_with_its_worker(place: Workplace) -> None:
    """The worker that reclaims it counts the dead letter; what it has no handler for counts as `other`."""
    await place.connection.execute("select pgnotifyq.enqueue('stranger', queue_name => 'elsewhere', max_attempts => 1)")
    cursor = await place.connection.execute("select id from pgnotifyq.claim(%s, array['elsewhere'], 1, 0.0)", (BOB,))
    assert len(await cursor.fetchall()) == 1
    worker = await place.start(registry_of_all_ends(), http=FREE)
    await worker.log.wait(EventName.JOB_RECLAIMED, became="dead")
    samples = await scraped(worker)
    assert value(samples, "dlq_jobs_total", job_type=OTHER, queue=OTHER) == 1
    assert "stranger" not in (await ask(worker, "/metrics")).body


# Pure parts.


@given(st.lists(st.floats(0, 1e5)))
def test_histogram(values: list[float]) -> None:
    """A bucket has what is not above its bound, as Prometheus has it: compared with counting."""
    histogram = Histogram()
    for each in values:
        histogram.note(each)
    upto = [sum(each <= bound for each in values) for bound in LONG_SECONDS]
    assert [sum(histogram.counts[: place + 1]) for place in range(len(LONG_SECONDS))] == upto
    assert sum(histogram.counts) == len(values)
    assert bisect_left(LONG_SECONDS, LONG_SECONDS[3]) == 3


def test_many_handlers() -> None:
    """What is told before it counts is bounded, however many handlers and queues a worker has."""
    registry = JobRegistry()
    for number in range(KNOWN_MAX + 50):
        registry.handler(f"job{number}", queue="two")(_nothing)
    metrics = Metrics()
    meter = open_meter(metrics, WorkerId(BOB), registry, ("one", "two"))
    assert len(meter.known) == KNOWN_MAX and {queue for _, queue in meter.known} == {"two"}
    close_meter(metrics, meter)


async def _nothing(payload: Payload) -> None: ...


def test_worker_that_ends_during_a_scrape() -> None:
    """Counters never go back: what a worker has counted is there before and after its end."""
    metrics = Metrics()
    meter = open_meter(metrics, WorkerId(BOB), JobRegistry(), ("default",))
    meter.note_event(Event(name=EventName.LISTENER_POLLING, fields={"why": ""}))
    meter.tallies["a", "default"].durations.note(1.0)
    before = parsed(metrics.text()[0].decode())
    close_meter(metrics, meter)
    after = parsed(metrics.text()[0].decode())
    for name, labels in (
        ("worker_events_total", {"event": "listener.polling"}),
        ("job_duration_seconds_count", {"job_type": "a"}),
    ):
        assert value(before, name, **labels) == value(after, name, **labels) == 1
