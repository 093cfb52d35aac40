"""One execution in this worker, from its claim until its outcome is durable."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import attrs
import trio
import trio.lowlevel

from pgnotifyq.model.job import Lease
from pgnotifyq.model.outcome import Interrupt, InterruptKind

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgnotifyq.ledger.claimed import ClaimedJob
    from pgnotifyq.model.outcome import Outcome
    from pgnotifyq.model.registry import Handler
    from pgnotifyq.model.tracing import Trace
    from pgnotifyq.runtime.said import Said
    from pgnotifyq.runtime.standing import Standing


_new = tuple.__new__


class Batch(Protocol):
    """The jobs that one call of a handler works on (batches.py)."""

    def note_stop(self) -> None:
        """Cancel the call if each job that is left in it is to stop."""


@attrs.define(eq=False, kw_only=True)
class Running:
    """One execution in this worker. Times are trio's, in seconds."""

    job: ClaimedJob
    renewed_at: float  # when the last answered claim or beat was sent
    claimed_at: float = attrs.field(init=False)  # when the claim was sent
    # The task that runs the handler. By it the watchdog knows whose step holds the loop: it looks
    # for this task among the holder and the holder's parents.
    task: trio.lowlevel.Task | None = None
    # The scope around the handler, while it runs. Its task uses the scope for the next job too,
    # unless the scope was cancelled.
    scope: trio.CancelScope | None = None
    has_ended: bool = False  # the handler; the outcome may still be on its way to the database
    outcome: Outcome | None = None  # how it ended; set when the settler is to write that
    is_gone: bool = False  # its permit is free again
    started_at: float | None = None  # when the handler started
    handler: Handler | None = None  # once it starts
    interrupt: Interrupt | None = None
    interrupted_at: float | None = None  # when the worker told it to stop
    tally: Any = None  # where its meter counts it (meter.py), if anybody reads that
    waited_seconds: float = 0.0  # how long its job was due before it was claimed, for the meter
    trace: Trace | None = None  # of this execution, once it starts, if the program wants any
    _interrupted: trio.Event | None = attrs.field(default=None, init=False)
    # Settled by the handler's own transaction (ctx.transaction): the slot has nothing left to
    # write.
    is_settled: bool = False
    # A transaction of the handler's is open that is to complete the job.
    is_completing: bool = False
    # The handler runs on although its own transaction has completed the job. A heartbeat has found
    # that.
    outlives_job: bool = False
    # It was stopped because a proof of life was missing, not because its lease was lost. It is
    # released when its handler has ended.
    is_given_up: bool = False
    # What the handler returned, for the middleware around it. None: it has not returned, or nobody
    # asks.
    returned: object = None
    # The batch that it is in, while its handler runs; `scope` is its own part of that.
    batch: Batch | None = None
    # What its handler, or that of an earlier attempt, has saved, in the handler's type. None:
    # nothing.
    saved: Any = None
    said: Said | None = None  # what the handler has said while it ran (keeper.py), if anything
    # Where its handler runs, for those who ask where it stands: its thread, or its process.
    thread_id: int | None = None
    standing: Standing | None = None
    # Cancels the handler once more, if it runs where a cancel may be caught and forgotten.
    cancel_again: Callable[[], object] | None = None

    @claimed_at.default
    def _as_renewed(self) -> float:
        return self.renewed_at

    @property
    def lease(self) -> Lease:
        """The fence of everything this execution writes."""
        job = self.job
        # Half the time of Lease(...), once a job.
        return _new(Lease, (job.id, job.current_execution_id))

    @property
    def interrupted(self) -> trio.Event:
        """Set when the handler shall stop. Made on demand: most handlers never ask."""
        if self._interrupted is None:
            self._interrupted = trio.Event()
            if self.interrupt is not None:
                self._interrupted.set()
        return self._interrupted

    @property
    def is_cooperative(self) -> bool:
        """Whether the handler stops by itself when a user cancels its job."""
        return self.handler is not None and self.handler.cooperative

    @property
    def is_lost(self) -> bool:
        """Whether it was stopped because its lease is lost, or can be trusted no more."""
        return self.interrupt is not None and self.interrupt.kind is InterruptKind.LEASE_LOST

    @property
    def outcome_known(self) -> Outcome:
        """How it ended, once that is the settler's to write."""
        assert self.outcome is not None
        return self.outcome

    def names(self) -> dict[str, object]:
        """Return what events call this execution by."""
        job = self.job
        return {"job_id": job.id, "job_type": job.job_type, "queue": job.queue_name, "attempt": job.attempts}

    def names_in_logs(self) -> dict[str, object]:
        """Return what records of the handler's log call this execution by."""
        job = self.job
        return {"job_id": job.id, "job_type": job.job_type, "execution_id": self.lease.execution_id,
                "attempt": job.attempts, "org_id": job.whole.org_id, "worker_id": job.whole.locked_by}  # fmt: skip

    def why_stop(self) -> Interrupt | None:
        """Return why the handler shall stop, a deadline that has passed included.

        Returns: None while the handler shall go on. Safe from threads.
        """
        timeout_seconds = self.handler.timeout_seconds if self.handler is not None else None
        if self.interrupt is not None or timeout_seconds is None or self.scope is None:
            return self.interrupt
        try:
            is_late = self.scope.cancel_called
        except RuntimeError:
            # In a thread, which has no trio clock to ask. The loop has not cancelled the scope so
            # far.
            return None
        why = f"timed out after {timeout_seconds:g} s"
        return Interrupt(kind=InterruptKind.TIMED_OUT, why=why) if is_late else None

    def stop(self, interrupt: Interrupt) -> bool:
        """Interrupt the handler, with a reason.

        The first reason stands. Only a lost lease overrules it: then nothing may be written any
        more. A cooperative handler is told of a user's cancel and stops by itself. In all other
        cases its scope is cancelled.

        Returns: whether this is news.
        """
        if self.interrupt is not None and (interrupt.kind is not InterruptKind.LEASE_LOST or self.is_lost):
            return False
        self.interrupt = interrupt
        if self._interrupted is not None:
            self._interrupted.set()
        if not (self.is_cooperative and interrupt.kind is InterruptKind.CANCELLED):
            self.cancel_scope()
        return True

    def cancel_scope(self) -> None:
        """Cancel the handler at its next checkpoint."""
        if self.scope is not None and self.interrupt is not None:
            self.scope.cancel(reason=f"pgnotifyq: {self.interrupt.kind.value}")
            if self.batch is not None:
                self.batch.note_stop()
