"""Traces: from an HTTP request through the enqueue to the handler and its child, joined in the SDK's collector in memory.

OpenTelemetry's own SDK, propagators and ASGI instrumentation; a FastAPI application; workers and doors as they come.
"""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import attrs
import httpx
import pytest
import trio
from fastapi import FastAPI
from opentelemetry import baggage, context, propagate, trace
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from psycopg.types.json import Jsonb

import pgnotifyq
import pgnotifyq.aio
import pgnotifyq.sync
from pgnotifyq import (
    Discard,
    EventName,
    JobContext,
    JobRegistry,
    NewJob,
    RetryPolicy,
    Snooze,
    open_client,
    otel,
)
from pgnotifyq.ledger.claimed import ClaimedJob
from pgnotifyq.model import tracing
from pgnotifyq.model.headers import Headers
from pgnotifyq.model.job import JobId
from pgnotifyq.runtime.deadlines import Deadlines
from pgnotifyq.runtime.executor import Executor
from pgnotifyq.runtime.logs import JsonFormatter
from pgnotifyq.runtime.running import Running
from pgnotifyq.testing import run_job
from pgnotifyq.testing.alone import Reach, execute
from tests.runtime.apps import in_processes
from tests.runtime.support import PATIENCE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.runtime.support import Workplace

Payload = dict[str, Any]


@attrs.frozen
class Collector:
    """Every span that has ended."""

    exporter: InMemorySpanExporter
    provider: TracerProvider

    @property
    def spans(self) -> list[ReadableSpan]:
        """In the order of their ends."""
        return list(self.exporter.get_finished_spans())

    def named(self, name: str) -> list[ReadableSpan]:
        """Those of a name."""
        return [span for span in self.spans if span.name == name]

    async def wait(self, name: str, count: int = 1) -> ReadableSpan:
        """Wait for the end of so many spans of a name; return the last of them."""
        with trio.move_on_after(PATIENCE_SECONDS):
            while len(found := self.named(name)) < count:
                await trio.sleep(0.01)
            return found[count - 1]
        raise AssertionError(f"{name} did not end; there are {[span.name for span in self.spans]}")


@pytest.fixture
def collector() -> Iterator[Collector]:
    """Give an SDK that collects in memory, with pgnotifyq instrumented."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    otel.instrument(tracer_provider=provider)
    yield Collector(exporter, provider)
    otel.uninstrument()
    provider.shutdown()


def context_of(span: ReadableSpan) -> trace.SpanContext:
    """A span's own ids."""
    found = span.get_span_context()
    assert found is not None
    return found


def parent_of(span: ReadableSpan) -> int | None:
    """The id of a span's parent."""
    return None if span.parent is None else span.parent.span_id


def links_of(span: ReadableSpan) -> list[int]:
    """The ids of the spans that it links to."""
    return [link.context.span_id for link in span.links]


def family() -> JobRegistry:
    """A handler that enqueues a child, by each way there is."""
    registry = JobRegistry()

    @registry.handler(queue="default")
    async def parent(payload: Payload, ctx: JobContext) -> None:
        await ctx.enqueue("child", {})

    @registry.handler(queue="default")
    async def child(payload: Payload) -> dict[str, object]:
        return {
            "baggage": baggage.get_baggage("shop"),
            "trace": format(trace.get_current_span().get_span_context().trace_id, "032x"),
        }

    return registry


async def request(collector: Collector, place: Workplace, **headers: str) -> None:
    """Have an HTTP request enqueue a job, as a web application does."""
    app = FastAPI()

    async with open_client(place.dsn) as client:

        @app.post("/orders")
        async def order() -> str:
            return str(await client.enqueue("parent", {}))

        transport = httpx.ASGITransport(OpenTelemetryMiddleware(app, tracer_provider=collector.provider))
        async with httpx.AsyncClient(transport=transport, base_url="http://shop") as browser:
            assert (await browser.post("/orders", headers=headers)).status_code == 200


async def test_request_to_child_by_links(place: Workplace, collector: Collector) -> None:
    """A handler's span begins a trace of its own, linked to the span that created its job; a child's create is the handler's."""
    await place.start(family())
    caller = "00-11111111111111111111111111111111-2222222222222222-01"
    await request(collector, place, traceparent=caller, baggage="shop=north")
    await collector.wait("complete default", 2)
    (server,) = [span for span in collector.spans if span.kind is SpanKind.SERVER]
    create, child_create = collector.named("create default")
    process, child_process = collector.named("process default")
    assert parent_of(server) == 0x2222222222222222
    assert parent_of(create) == context_of(server).span_id
    assert context_of(create).trace_id == 0x11111111111111111111111111111111
    assert process.parent is None and links_of(process) == [context_of(create).span_id]
    assert parent_of(child_create) == context_of(process).span_id
    assert child_process.parent is None and links_of(child_process) == [context_of(child_create).span_id]
    assert len({context_of(span).trace_id for span in (create, process, child_process)}) == 3
    job = (await fetch_results(place))["child"]
    assert job == {"baggage": "north", "trace": format(context_of(child_process).trace_id, "032x")}


async def test_request_to_child_in_one_trace(place: Workplace, collector: Collector) -> None:
    """With `parent=True` all of it is one trace, from the browser's own span on."""
    otel.instrument(tracer_provider=collector.provider, parent=True)
    await place.start(family())
    await request(collector, place, traceparent="00-11111111111111111111111111111111-2222222222222222-01")
    await collector.wait("complete default", 2)
    ours = [span for span in collector.spans if span.name.endswith(" default")]
    assert {context_of(span).trace_id for span in ours} == {0x11111111111111111111111111111111}
    create, child_create = collector.named("create default")
    process, child_process = collector.named("process default")
    assert parent_of(process) == context_of(create).span_id and not process.links
    assert parent_of(child_create) == context_of(process).span_id
    assert parent_of(child_process) == context_of(child_create).span_id


async def fetch_results(place: Workplace) -> dict[str, Any]:
    """Results by job type."""
    cursor = await place.connection.execute("select job_type, result from pgnotifyq.jobs where result is not null")
    return dict(await cursor.fetchall())


async def test_names_of_the_conventions(place: Workplace, collector: Collector) -> None:
    """Kinds and attributes as the semantic conventions for messaging have them."""
    registry = family()
    worker = await place.start(registry)
    async with open_client(place.dsn) as client:
        job_id = await client.enqueue("child", {})
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    settle = await collector.wait("complete default")
    (create,), (process,) = collector.named("create default"), collector.named("process default")
    same = {"messaging.system": "pgnotifyq", "messaging.destination.name": "default"}

    def told(span: ReadableSpan) -> dict[str, Any]:
        return dict(span.attributes or {})

    assert (create.kind, process.kind, settle.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER, SpanKind.CLIENT)
    assert told(create) == {
        **same, "messaging.operation.name": "create", "messaging.operation.type": "create", "pgnotifyq.job.type": "child",
    }  # fmt: skip
    assert told(process) == {
        **same, "messaging.operation.name": "process", "messaging.operation.type": "process", "messaging.message.id": str(job_id),
        "pgnotifyq.job.type": "child", "pgnotifyq.job.attempt": 1,
    }  # fmt: skip
    assert told(settle) == {
        **same, "messaging.operation.name": "complete", "messaging.operation.type": "settle", "messaging.message.id": str(job_id),
        "messaging.batch.message_count": 1,
    }  # fmt: skip
    assert parent_of(settle) == context_of(process).span_id
    assert process.end_time == settle.start_time and (settle.end_time or 0) >= (settle.start_time or 0)
    scope = process.instrumentation_scope
    assert scope is not None and (scope.name, scope.version) == ("pgnotifyq", pgnotifyq.__version__)
    # Job ids, types and queues: no payload, no tenant.
    assert not any("payload" in name or "org" in name for span in collector.spans for name in told(span))


async def test_every_way_to_end(place: Workplace, collector: Collector) -> None:
    """An error has its type; a wish is none, raised or returned; a cancel of a user's is none, and is told; a timeout is one."""
    registry = JobRegistry()

    @registry.handler(retry=RetryPolicy(base_seconds=3600.0))
    async def unlucky(payload: Payload) -> None:
        raise ValueError("no luck")

    @registry.handler()
    async def later(payload: Payload) -> None:
        raise Snooze(3600)

    @registry.handler()
    async def unwanted(payload: Payload) -> Discard:
        return Discard(reason="nobody wants it")

    @registry.handler(timeout_seconds=0.05, max_attempts=1)
    async def slow(payload: Payload) -> None:
        await trio.sleep_forever()

    @registry.handler()
    async def long(payload: Payload) -> None:
        await trio.sleep_forever()

    @registry.handler()
    async def own(payload: Payload, ctx: JobContext) -> None:
        async with ctx.transaction(complete=True):
            pass

    worker = await place.start(registry, concurrency=10)
    jobs = {name: await place.enqueue(name) for name in ("unlucky", "later", "unwanted", "slow", "own")}
    jobs["long"] = await place.enqueue("long")
    await worker.log.wait(EventName.JOB_CLAIMED, job_id=jobs["long"])
    await place.cancel(jobs["long"])
    for name in ("retry", "snooze", "cancel"):
        await collector.wait(f"{name} default")
    await collector.wait("bury default", 2)
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=jobs["own"])
    ids = {str(job_id): name for name, job_id in jobs.items()}
    processed = {ids[str((span.attributes or {})["messaging.message.id"])]: span for span in collector.named("process default")}
    assert processed.keys() == jobs.keys()
    assert {name: (span.attributes or {}).get("error.type") for name, span in processed.items()} == {
        "unlucky": "ValueError", "later": None, "unwanted": None, "slow": "timed_out", "long": None, "own": None,
    }  # fmt: skip
    assert {name for name, span in processed.items() if span.status.status_code is StatusCode.ERROR} == {"unlucky", "slow"}
    assert (processed["long"].attributes or {})["pgnotifyq.job.interrupt"] == "cancelled"
    (event,) = processed["unlucky"].events
    assert event.name == "exception" and (event.attributes or {})["exception.message"] == "ValueError: no luck"
    # What was created by SQL has nothing to link to.
    assert not any(span.links for span in processed.values())
    # Its own transaction has completed it, within its span.
    assert not collector.named("complete default")


async def test_lease_that_was_lost(place: Workplace, collector: Collector) -> None:
    """The handler's span says so, and nothing was settled."""
    registry = JobRegistry()

    @registry.handler()
    async def long(payload: Payload) -> None:
        await trio.sleep_forever()

    # A heartbeat finds the loss; at the default it comes after 20 s.
    worker = await place.start(registry, lease_seconds=600.0, heartbeat_seconds=0.1)
    job_id = await place.enqueue("long")
    await worker.log.wait(EventName.JOB_CLAIMED, job_id=job_id)
    await place.take_away(job_id)
    span = await collector.wait("process default")
    assert (span.attributes or {})["error.type"] == "lease_lost" and span.status.status_code is StatusCode.ERROR
    await worker.log.wait(EventName.LEASE_LOST)
    assert [each.name for each in collector.spans if each.kind is SpanKind.CLIENT] == []


@pytest.mark.parametrize("runs_in", ["trio", "thread", "asyncio"])
async def test_every_kind_of_handler(place: Workplace, collector: Collector, runs_in: Any) -> None:
    """The span is current in each, in what it starts, and for what it enqueues by any client; and is nobody else's afterwards."""
    registry, dsn = JobRegistry(), place.dsn

    async def in_trio(payload: Payload) -> None:
        async with open_client(dsn) as client, trio.open_nursery() as nursery:
            nursery.start_soon(client.enqueue, "noop", {})

    def in_thread(payload: Payload) -> None:
        with pgnotifyq.sync.open_client(dsn) as client:
            client.enqueue("noop", {})

    async def in_asyncio(payload: Payload) -> None:
        async with pgnotifyq.aio.open_client(dsn) as client:
            await asyncio.create_task(client.enqueue("noop", {}))

    @registry.handler()
    async def noop(payload: Payload) -> bool:
        return bool(trace.get_current_span().get_span_context().is_valid)

    function: Any = {"trio": in_trio, "thread": in_thread, "asyncio": in_asyncio}[runs_in]
    registry.handler("work", runs_in=runs_in)(function)
    await place.start(registry, concurrency=1)
    await place.enqueue("work")
    await collector.wait("complete default", 2)
    first, second = collector.named("process default")
    (create,) = collector.named("create default")
    assert parent_of(create) == context_of(first).span_id
    assert links_of(second) == [context_of(create).span_id]
    assert tracing.ids_in_logs() == {}


@pytest.mark.parametrize("door", ["trio", "aio", "sync", "many", "job", "bulk", "connection"])
async def test_every_door(place: Workplace, collector: Collector, door: str) -> None:
    """Each puts the context of a span of its own into the job's headers, beside what was given, and once."""
    tracer = collector.provider.get_tracer("test")
    given = {"request_id": "r-42", "traceparent": "nonsense"}

    async def on_asyncio() -> None:
        async with pgnotifyq.aio.open_client(place.dsn) as client:
            await client.enqueue("work", {}, headers=given)

    def blocking() -> None:
        with pgnotifyq.sync.open_client(place.dsn) as client:
            client.enqueue("work", {}, headers=given)

    jobs = 1
    with tracer.start_as_current_span("around") as around:
        if door == "aio":
            await trio.to_thread.run_sync(asyncio.run, on_asyncio())
        elif door == "sync":
            await trio.to_thread.run_sync(blocking)
        else:
            async with open_client(place.dsn) as client:
                if door == "trio":
                    await client.enqueue("work", {}, headers=given)
                elif door == "connection":
                    async with place.connection.transaction():
                        await client.enqueue("work", {}, headers=given, connection=place.connection)
                elif door == "many":
                    await client.enqueue_many([{"job_type": "work", "headers": given}])
                elif door == "job":
                    await client.enqueue_many([NewJob(job_type="work", headers=given)])
                else:
                    jobs = 3000
                    await client.enqueue_many([NewJob(job_type="work", headers=given) for _ in range(jobs)])
    cursor = await place.connection.execute("select headers from pgnotifyq.jobs")
    stored = [headers for (headers,) in await cursor.fetchall()]
    created = {propagated(span) for span in collector.named("create default")}
    assert {headers["traceparent"] for headers in stored} == created and len(created) == jobs
    assert {headers["request_id"] for headers in stored} == {"r-42"}
    assert {parent_of(span) for span in collector.named("create default")} == {around.get_span_context().span_id}


def propagated(span: ReadableSpan) -> str:
    """What W3C's propagator writes of a span."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier, trace.set_span_in_context(trace.NonRecordingSpan(context_of(span))))
    return carrier["traceparent"]


async def test_hostile_headers(place: Workplace, collector: Collector) -> None:
    """What others have put into a job's headers is no context, and no harm."""
    worker = await place.start(family())
    for headers in (
        '{"traceparent": 7}',
        '{"traceparent": "zz"}',
        '{"traceparent": null, "baggage": {"a": 1}}',
        '{"tracestate": "=,=,="}',
    ):
        job_id = await place.enqueue("child", headers=headers)
        await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    await collector.wait("complete default", 4)
    assert all(span.parent is None and not span.links for span in collector.named("process default"))


async def test_context_that_is_too_long(place: Workplace, collector: Collector) -> None:
    """A baggage that does not fit stays behind; a job whose own headers leave no room goes without a trace, and is enqueued."""
    tracer = collector.provider.get_tracer("test")
    token = context.attach(baggage.set_baggage("shop", "n" * 5000))
    try:
        with tracer.start_as_current_span("around"):
            async with open_client(place.dsn) as client:
                one = await client.enqueue("work", {})
                two = await client.enqueue("work", {}, headers={"own": "x" * 8150})
    finally:
        context.detach(token)
    assert (await place.job(one))["headers"].keys() == {"traceparent"}
    assert (await place.job(two))["headers"].keys() == {"own"}


class Broken(SpanProcessor):
    """What an application may add to its SDK."""

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        raise RuntimeError("on_start")

    def on_end(self, span: ReadableSpan) -> None:
        raise RuntimeError("on_end")


async def test_processor_that_raises(place: Workplace, collector: Collector, caplog: pytest.LogCaptureFixture) -> None:
    """Jobs are enqueued, run and settled as ever, and it is logged."""
    collector.provider.add_span_processor(Broken())
    worker = await place.start(family())
    async with open_client(place.dsn) as client:
        job_id = await client.enqueue("parent", {})
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    await worker.log.wait(EventName.JOB_COMPLETED, count=2)
    assert any("a span was not made" in record.message for record in caplog.records)


async def test_tracing_that_raises() -> None:
    """A tracing of somebody's own that raises at a handler's begin fails that job, whose scope is let go of."""

    class Raises:
        def begin(self, *_: object) -> tracing.Trace:
            raise RuntimeError("no trace")

        def created(self, job: NewJob) -> NewJob:
            return job

        def ids(self) -> dict[str, str]:
            return {}

    registry = JobRegistry()

    @registry.handler
    async def work(payload: Payload) -> None: ...

    executor = Executor(registry=registry, reach=Reach(None, registry), deadlines=Deadlines(Running.stop), random=lambda: 0.5)
    job = ClaimedJob()
    job.id, job.job_type, job.queue_name, job.attempts, job.max_attempts = JobId(uuid4()), "work", "default", 1, 2
    job.payload_text, job.problem = "{}", ""  # as a claim sets them
    job._headers = job._saved = job._whole = None
    job.is_bare = True
    running = Running(job=job, renewed_at=trio.current_time())
    before = tracing.in_place()
    tracing.put_in_place(Raises())
    try:
        outcome, error = await execute(executor, running)
    finally:
        tracing.put_in_place(before)
    assert outcome is not None and outcome.name == "failed" and str(error) == "no trace"
    assert running.scope is None, "the slot's scope is the next job's"


class BrokenAtTheEnd(Broken):
    """One that bears a span's start."""

    def on_start(self, span: Any, parent_context: Any = None) -> None: ...


def test_processor_that_raises_leaves_no_span_behind(collector: Collector) -> None:
    """What the task does next is in no span of the job's."""
    collector.provider.add_span_processor(BrokenAtTheEnd())
    in_place = tracing.in_place()
    assert in_place is not None
    made = in_place.begin(JobId(uuid4()), "work", "default", 1, Headers({}))
    assert trace.get_current_span().get_span_context().is_valid
    made.leave(None, None)
    assert not trace.get_current_span().get_span_context().is_valid


async def test_logs_are_correlated(place: Workplace, collector: Collector) -> None:
    """A record of the log, as JSON, has the ids of the span in which it was written, from each kind of handler."""
    registry, lines = JobRegistry(), list[dict[str, Any]]()
    log = logging.getLogger("shop")

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(json.loads(JsonFormatter().format(record)))

    handler = Keep()
    log.addHandler(handler)
    log.propagate = False

    @registry.handler()
    async def in_trio(payload: Payload) -> None:
        log.error("in trio")

    @registry.handler()
    def in_thread(payload: Payload) -> None:
        log.error("in a thread")

    @registry.handler(runs_in="asyncio")
    async def in_asyncio(payload: Payload) -> None:
        log.error("on asyncio")

    try:
        await place.start(registry)
        for name in ("in_trio", "in_thread", "in_asyncio"):
            await place.enqueue(name)
        await collector.wait("complete default", 3)
        log.error("outside")
    finally:
        log.removeHandler(handler)
        log.propagate = True
    told = {(line.get("trace_id"), line.get("span_id")) for line in lines if line["message"] != "outside"}
    assert told == {
        (trace.format_trace_id(context_of(span).trace_id), trace.format_span_id(context_of(span).span_id))
        for span in collector.named("process default")
    }
    assert "trace_id" not in next(line for line in lines if line["message"] == "outside")


async def test_worker_that_was_started_in_a_span(place: Workplace, collector: Collector) -> None:
    """Its jobs are not that span's."""
    with collector.provider.get_tracer("test").start_as_current_span("deploy"):
        await place.start(family())
    await place.enqueue("child")
    await collector.wait("complete default")
    assert collector.named("process default")[0].parent is None


async def test_handler_in_a_test_of_its_own(collector: Collector) -> None:
    """`testing.run_job` runs it in its span, too."""
    ran = await run_job(family(), "child", {})
    assert ran.result["trace"] != "0" * 32
    assert len(collector.named("process default")) == 1


def test_not_used_not_imported() -> None:
    """A program that does not instrument has no OpenTelemetry in its process, as far as pgnotifyq goes; and is told what to install."""
    program = (
        "import sys, pgnotifyq, pgnotifyq.sync, pgnotifyq.runtime.worker\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]\n"
        "assert not [name for name in sys.modules if name.startswith('prometheus_client') or name == 'http.server']\n"
        "sys.modules['opentelemetry'] = None\n"
        "try: pgnotifyq.otel\n"
        "except pgnotifyq.ConfigError as error: assert \"pip install 'pgnotifyq[otel]'\" in str(error)\n"
        "else: raise AssertionError\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=60)


async def test_without_an_sdk(place: Workplace) -> None:
    """With OpenTelemetry's API alone nothing is recorded, a context that came along goes on, and jobs have no empty headers."""
    otel.instrument()
    try:
        async with open_client(place.dsn) as client:
            plain = await client.enqueue("work", {})
            sent = "00-11111111111111111111111111111111-2222222222222222-01"
            around = propagate.extract({"traceparent": sent})
            token = context.attach(around)
            try:
                traced = await client.enqueue("work", {})
            finally:
                context.detach(token)
    finally:
        otel.uninstrument()
    assert (await place.job(plain))["headers"] is None
    assert (await place.job(traced))["headers"] == {"traceparent": sent}


async def test_handler_in_a_process(place: Workplace, collector: Collector) -> None:
    """Its span is the worker's: what it enqueues is created in it, and a crash or an error there is an error of the span."""
    await place.start(in_processes.registry)
    for how in ("raise", "kill"):
        await place.enqueue("ends" if how == "raise" else "dies", payload=Jsonb({"how": how, "text": "none"}), max_attempts=1)
    await collector.wait("bury default", 2)
    told = {str((span.attributes or {})["error.type"]): span for span in collector.named("process default")}
    assert set(told) == {"OutOfStock", "HandlerProcessDied"}
    assert all(span.status.status_code is StatusCode.ERROR for span in told.values())
    assert "SIGKILL" in (told["HandlerProcessDied"].status.description or "")
    await place.enqueue("parent")
    await collector.wait("complete default")
    (create,) = collector.named("create default")
    assert parent_of(create) == context_of(collector.named("process default")[-1]).span_id
    await place.until("headers ? 'traceparent' from pgnotifyq.jobs where job_type = 'who'")


def test_propagator_that_raises(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job is enqueued without its context; its span has ended, so it is exported."""

    def inject(*_: object, **__: object) -> None:
        raise RuntimeError("a propagator of the program's")

    monkeypatch.setattr(propagate, "inject", inject)
    job = NewJob(job_type="work", queue_name="q")
    assert tracing.traced(job) is job
    assert [span.name for span in collector.spans] == ["create q"]
