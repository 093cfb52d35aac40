"""Tracing: the places where a program's tracing is told of a job, if the program wants one.

Nothing here knows of OpenTelemetry. `pgnotifyq.otel.instrument()` puts a tracing in place; without
one each place costs a comparison with None.

| place | is |
|---|---|
| a job is enqueued, by whatever door | `traced` |
| its handler begins, ends | `Tracing.begin`, `Trace.leave` |
| its outcome is durable | `Trace.settled` |
| something is logged | `ids_in_logs` |
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pgnotifyq.model.headers import Headers
    from pgnotifyq.model.job import JobId
    from pgnotifyq.model.new_job import NewJob
    from pgnotifyq.model.outcome import InterruptKind, Raised, SettleKind


class Trace(Protocol):
    """The trace of one execution."""

    def leave(self, error: BaseException | None, interrupt: InterruptKind | None, raised: Raised | None = None) -> None:
        """The handler has ended. Called in the same task as `begin`.

        Args:
            error: what it raised.
            interrupt: why it was told to stop, if it was.
            raised: its failure, if that has come as text: from a process, say.
        """

    def settled(self, verb: SettleKind, *, became: str | None, batch: int) -> None:
        """The outcome is durable.

        Args:
            verb: how the execution was settled.
            became: what the database did instead, as for a lost lease; None: it did what was asked.
            batch: how many outcomes went in the statement.
        """


class Tracing(Protocol):
    """What makes spans. Its methods do not raise."""

    def created(self, job: NewJob) -> NewJob:
        """A job is about to be enqueued.

        Returns: the job, with the trace's context in its headers.
        """

    def begin(self, job_id: JobId, job_type: str, queue: str, attempt: int, headers: Headers) -> Trace:
        """A handler is about to be called: in this task, and in the tasks that it starts."""

    def ids(self) -> Mapping[str, str]:
        """Return what a log says of the current span: trace_id and span_id, or nothing."""


_in_place: list[Tracing] = []


def put_in_place(tracing: Tracing | None) -> None:
    """Tell this tracing from now on, in the whole process; None: tell none."""
    _in_place[:] = [] if tracing is None else [tracing]


def in_place() -> Tracing | None:
    """Return the tracing that is told; None: there is none."""
    return _in_place[0] if _in_place else None


def traced(job: NewJob) -> NewJob:
    """Return a job as it is enqueued: with the trace's context in its headers, if there is one."""
    return _in_place[0].created(job) if _in_place else job


def ids_in_logs() -> Mapping[str, str]:
    """Return the ids of the current span, for a record of the log."""
    return _in_place[0].ids() if _in_place else {}
