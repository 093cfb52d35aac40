"""Traces by OpenTelemetry: from the request that enqueues to the handler, and to its children.

    import pgnotifyq.otel

    pgnotifyq.otel.instrument()

Call it once in each process, where the program sets up OpenTelemetry: in programs that enqueue, and
in the module that `--app` names. It needs the extra `otel`, which is OpenTelemetry's API. The SDK
and an exporter are the program's own.

Spans, by the semantic conventions for messaging:

| span | kind | lasts |
|---|---|---|
| `create <queue>` | producer | a moment: a job is enqueued, by whatever door |
| `process <queue>` | consumer | while a handler runs; one an attempt |
| `<verb> <queue>` | client | from the handler's end until its outcome is durable |

The verb is complete, retry, snooze, release, cancel or bury.

- The job's headers take along what the configured propagator writes: as a rule W3C's `traceparent`
  and `tracestate`, and baggage. This replaces what the job had taken over from its parent.
- A `process` span begins a trace of its own, with a link to `create`: a job may run hours later,
  many times, and beside thousands of others of the same request. `instrument(parent=True)` makes
  the span a child of `create` instead, in one trace.
- Nothing here fails a job. If a propagator or a processor of spans raises, that is logged.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import wraps
from time import time_ns
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import attrs

from pgnotifyq._version import __version__
from pgnotifyq.model import tracing
from pgnotifyq.model.errors import ConfigError, InvalidJob, name_of, quietly
from pgnotifyq.model.headers import Headers
from pgnotifyq.model.new_job import QUEUE_DEFAULT
from pgnotifyq.model.outcome import InterruptKind, Raised, ended_by

try:
    from opentelemetry import context as contexts
    from opentelemetry import propagate, trace
    from opentelemetry.trace import INVALID_SPAN, Link, Span, SpanKind, StatusCode, Tracer, TracerProvider
except ImportError as error:
    raise ConfigError("opentelemetry is not installed: pip install 'pgnotifyq[otel]'") from error

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Token

    from opentelemetry.context import Context

    from pgnotifyq.model.job import JobId
    from pgnotifyq.model.new_job import NewJob
    from pgnotifyq.model.outcome import SettleKind

__all__ = ["instrument", "uninstrument"]

P = ParamSpec("P")
T = TypeVar("T")
_log = logging.getLogger("pgnotifyq")
SCHEMA_URL = "https://opentelemetry.io/schemas/1.37.0"
SYSTEM = "pgnotifyq"
# Of each header that a propagator writes. A baggage may be as long as all headers together.
HEADER_CHARS_MAX = 4096
# Interrupts that are a fault of the job or of its worker. A user's cancel is no fault.
_FAULTS = frozenset({InterruptKind.TIMED_OUT, InterruptKind.LEASE_LOST})
_NO_IDS: Mapping[str, str] = {}  # of a log outside of any span


def instrument(*, tracer_provider: TracerProvider | None = None, parent: bool = False) -> None:
    """Make spans of jobs from now on, in this process.

    Args:
        tracer_provider: whose tracer makes them; None: the global one, also if it is set later.
        parent: True: a handler's span is a child of the span that created its job, in one trace.
            Else the handler's span begins a trace of its own, with a link.

    If it is called again, the last call counts.
    """
    tracer = trace.get_tracer("pgnotifyq", __version__, tracer_provider, SCHEMA_URL)
    tracing.put_in_place(_Tracing(tracer=tracer, parent=parent))


def uninstrument() -> None:
    """Make no more spans."""
    tracing.put_in_place(None)


def _harmless(default: Callable[..., T]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Have a function log an error and return a default, where it would raise."""

    def wrap(function: Callable[P, T]) -> Callable[P, T]:
        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            try:
                return function(*args, **kwargs)
            except Exception:  # noqa: BLE001  # a propagator, a sampler or a processor of the program's
                quietly(_log.error, "a span was not made (%s)", function.__name__, exc_info=True)
                return default(*args)

        return call

    return wrap


@attrs.frozen(eq=False, kw_only=True)
class _Tracing:
    """What `instrument` puts in place."""

    tracer: Tracer
    parent: bool

    @_harmless(lambda _, job: job)
    def created(self, job: NewJob) -> NewJob:
        """Make the span of a job that is about to be enqueued.

        The span's context goes along in the job's headers.
        """
        queue = job.queue_name or QUEUE_DEFAULT
        attributes = {**_named("create", "create", queue), "pgnotifyq.job.type": job.job_type}
        headers = dict(job.headers or {})
        around = None if _is_valid(trace.get_current_span()) else propagate.extract(headers)
        span = self.tracer.start_span(f"create {queue}", around, SpanKind.PRODUCER, attributes)
        carried: dict[str, str] = {}
        try:
            propagate.inject(carried, trace.set_span_in_context(span, around))
        finally:
            span.end()  # a span that has not ended is not exported
        carried = {name: text for name, text in carried.items() if len(text) <= HEADER_CHARS_MAX}
        if not carried:
            return job
        try:
            return attrs.evolve(job, headers={**headers, **carried})
        except InvalidJob:
            # With the program's own headers it is too long. The job goes without its trace: a trace
            # is not worth a job.
            return job

    def begin(self, job_id: JobId, job_type: str, queue: str, attempt: int, headers: Headers) -> _Trace:
        """Make the span of a handler, and have it be the current one."""
        made = _Trace(self.tracer, queue, str(job_id))
        made.enter(job_type, attempt, headers, parent=self.parent)
        return made

    @_harmless(lambda _: _NO_IDS)
    def ids(self) -> Mapping[str, str]:
        """Return what a log calls the current span."""
        found = trace.get_current_span().get_span_context()
        if not found.is_valid:
            return _NO_IDS
        return {"trace_id": trace.format_trace_id(found.trace_id), "span_id": trace.format_span_id(found.span_id)}


class _Trace:
    """One execution's spans."""

    __slots__ = ("_ended_at", "_job_id", "_queue", "_span", "_token", "_tracer")

    def __init__(self, tracer: Tracer, queue: str, job_id: str) -> None:
        self._tracer = tracer
        self._queue = queue
        self._job_id = job_id
        self._span: Span = INVALID_SPAN
        self._token: Token[Context] | None = None
        self._ended_at = 0

    @_harmless(lambda *_: None)
    def enter(self, job_type: str, attempt: int, headers: Headers, *, parent: bool) -> None:
        """Begin the handler's span."""
        carrier = {name: text for name, text in headers.items() if isinstance(text, str)}
        # Not in the task's own context: the worker may have been started inside a span of others.
        sent = propagate.extract(carrier, contexts.Context())
        creator = trace.get_current_span(sent).get_span_context()
        around = sent if parent else trace.set_span_in_context(INVALID_SPAN, sent)
        attributes = {
            **_named("process", "process", self._queue),
            "messaging.message.id": self._job_id,
            "pgnotifyq.job.type": job_type,
            "pgnotifyq.job.attempt": attempt,
        }
        links = [Link(creator)] if creator.is_valid and not parent else []
        self._span = self._tracer.start_span(f"process {self._queue}", around, SpanKind.CONSUMER, attributes, links)
        self._token = contexts.attach(trace.set_span_in_context(self._span, sent))

    @_harmless(lambda *_: None)
    def leave(self, error: BaseException | None, interrupt: InterruptKind | None, raised: Raised | None = None) -> None:
        """End the handler's span."""
        self._ended_at = time_ns()
        span = self._span
        try:
            if interrupt is not None:
                span.set_attribute("pgnotifyq.job.interrupt", interrupt.value)
            if interrupt in _FAULTS:
                assert interrupt is not None
                _fail(span, interrupt.value, "")
            elif interrupt is None and error is not None and isinstance(ended := ended_by(error), Raised):
                _tell(span, error, ended)
            elif interrupt is None and raised is not None and not raised.waited:
                _tell_as_text(span, raised)
        finally:
            # Detach before the span ends. If a processor raises at that end, no task keeps the
            # span's context.
            if self._token is not None:
                contexts.detach(self._token)
            span.end(self._ended_at)

    @_harmless(lambda *_: None)
    def settled(self, verb: SettleKind, *, became: str | None, batch: int) -> None:
        """Make the span of the outcome's way into the database."""
        attributes: dict[str, Any] = {
            **_named(verb.value, "settle", self._queue),
            "messaging.message.id": self._job_id,
            "messaging.batch.message_count": batch,
        }
        around = trace.set_span_in_context(self._span, contexts.Context())
        span = self._tracer.start_span(
            f"{verb.value} {self._queue}", around, SpanKind.CLIENT, attributes, start_time=self._ended_at or None
        )
        if became is not None:
            _fail(span, became, "")
        span.end()


def _named(name: str, kind: str, queue: str) -> dict[str, Any]:
    """Return what the conventions want of every span."""
    return {
        "messaging.system": SYSTEM,
        "messaging.operation.name": name,
        "messaging.operation.type": kind,
        "messaging.destination.name": queue,
    }


def _fail(span: Span, kind: str, says: str) -> None:
    span.set_attribute("error.type", kind)
    span.set_status(StatusCode.ERROR, says or None)


def _tell(span: Span, error: BaseException, ended: Raised) -> None:
    """Tell what a handler raised, in the bounded words of the job's history.

    Not by `record_exception`: an error may be 50 MB long, or raise when it is looked at.
    """
    cause = error
    while isinstance(cause, BaseExceptionGroup) and len(cause.exceptions) == 1:
        cause = cause.exceptions[0]
    kind = name_of(cause)
    first, _, _ = ended.error.partition("\n")
    _fail(span, kind, first)
    span.add_event("exception", {"exception.type": kind, "exception.message": first, "exception.stacktrace": ended.error})


def _tell_as_text(span: Span, raised: Raised) -> None:
    """Tell a failure that has come as text.

    If something was raised, the text begins with its type.
    """
    first, _, _ = raised.error.partition("\n")
    kind = first.partition(":")[0] if raised.kinds else "_OTHER"  # as the conventions call it
    _fail(span, kind, first)
    span.add_event("exception", {"exception.type": kind, "exception.message": first, "exception.stacktrace": raised.error})


def _is_valid(span: Span) -> bool:
    return span.get_span_context().is_valid
