"""What this worker holds: its leases, by job id, and how each can be interrupted.

A worker stops trusting a lease on its own monotonic clock: `sent_at(last answered beat) + lease_seconds - margin_seconds`.
The database's clock is never compared with it. Entries stay in the order of their last renewal, the oldest first, so the
lease that needs attention next is always the first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import trio
import trio.lowlevel

from pgnotifyq.model.job import ExecutionId, JobId, Lease
from pgnotifyq.model.outcome import Interrupt, InterruptKind
from pgnotifyq.runtime.bell import Bell

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pgnotifyq.ledger.claimed import ClaimedJob
    from pgnotifyq.model.registry import Handler


@attrs.define(eq=False, kw_only=True)
class Running:
    """One execution in this worker, from claim until its outcome is durable."""

    job: ClaimedJob
    renewed_at: float  # trio clock, seconds: when the last answered claim or beat was sent
    claimed_at: float = attrs.field(init=False)  # the same of the claim
    # Whose step it is when the handler holds the loop, or a task that it started does.
    task: trio.lowlevel.Task | None = None
    # The scope around the handler, while it runs; its task uses it for the next job too, unless it was cancelled.
    scope: trio.CancelScope | None = None
    has_ended: bool = False  # the handler; its outcome may still be on its way to the database
    is_gone: bool = False  # its permit is free again
    started_at: float | None = None  # trio clock, seconds; when the handler started
    handler: Handler | None = None  # once it starts
    interrupt: Interrupt | None = None
    _interrupted: trio.Event | None = attrs.field(default=None, init=False)
    # Settled by the handler's own transaction (ctx.transaction): the slot has nothing left to write.
    is_settled: bool = False
    # A transaction of the handler's is open that is to complete the job.
    is_completing: bool = False
    # It runs although its job is completed, by its own transaction; a beat has found it so.
    outlives_job: bool = False
    # Stopped for want of a proof of life, not of a lease: it is released when its handler has ended.
    is_given_up: bool = False

    @claimed_at.default
    def _as_renewed(self) -> float:
        return self.renewed_at

    @property
    def lease(self) -> Lease:
        """The fence of everything this execution writes."""
        return Lease(self.job.id, self.job.current_execution_id)

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

    def names(self) -> dict[str, object]:
        """Return what events call this execution by."""
        job = self.job
        return {"job_id": job.id, "job_type": job.job_type, "queue": job.queue_name, "attempt": job.attempts}

    def why_stop(self) -> Interrupt | None:
        """Return why the handler shall stop, a deadline that has passed included; None while it shall go on. Safe from threads."""
        timeout_seconds = self.handler.timeout_seconds if self.handler is not None else None
        if self.interrupt is not None or timeout_seconds is None or self.scope is None:
            return self.interrupt
        try:
            is_late = self.scope.cancel_called
        except RuntimeError:  # in a thread, which has no trio clock to ask; the loop has not cancelled the scope so far
            return None
        why = f"timed out after {timeout_seconds:g} s"
        return Interrupt(kind=InterruptKind.TIMED_OUT, why=why) if is_late else None

    def stop(self, interrupt: Interrupt) -> bool:
        """Interrupt the handler, with a reason; True when this is news.

        The first reason stands, but for a lost lease, which overrules the rest: then nothing may be written any more.
        A cooperative handler is told of a user's cancel and stops by itself; everything else cancels its scope.
        """
        if self.interrupt is not None and (
            interrupt.kind is not InterruptKind.LEASE_LOST or self.interrupt.kind is InterruptKind.LEASE_LOST
        ):
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


class Holdings:
    """The executions of this worker that hold, or did hold, a lease."""

    def __init__(self) -> None:
        self._running: dict[JobId, Running] = {}
        # Rung when the first entry appears: heartbeat and trust wait for it.
        self.taken_up = trio.Event()
        self.emptied = trio.Event()
        self.emptied.set()
        # Executions that were interrupted just now, for whoever counts their grace.
        self.stopped: list[Running] = []
        self.stopped_bell = Bell()
        # Executions that were given up and have ended, for whoever gives them back.
        self.given_up: list[Running] = []
        self.given_up_bell = Bell()

    def __len__(self) -> int:
        return len(self._running)

    def __iter__(self) -> Iterator[Running]:
        return iter(list(self._running.values()))

    def add(self, claimed: Sequence[Running]) -> None:
        """Take up executions just claimed.

        An earlier execution of the same job may still run here, after its lease was lost and reclaimed while this worker did
        not know. Nobody would find it any more, so it is stopped now. And the new one goes to the end of the order.
        """
        if not claimed:
            return
        for running in claimed:
            before = self._running.pop(running.job.id, None)
            if before is not None:
                self.stop(before, Interrupt(kind=InterruptKind.LEASE_LOST, why="this worker claimed the job again"))
            self._running[running.job.id] = running
        self.taken_up.set()
        if self.emptied.is_set():
            self.emptied = trio.Event()

    def remove(self, gone: Sequence[Running]) -> None:
        """Let go of executions whose outcome is durable or whose lease is lost."""
        for running in gone:
            if self._running.get(running.job.id) is running:
                del self._running[running.job.id]
            if running.is_given_up:
                running.is_given_up = False
                self.given_up.append(running)
                self.given_up_bell.ring()
        if not self._running:
            self.emptied.set()
            if self.taken_up.is_set():
                self.taken_up = trio.Event()

    def find(self, job_id: JobId, execution_id: ExecutionId | None = None) -> Running | None:
        """Return the execution of a job, if it is held here (and is this execution)."""
        running = self._running.get(job_id)
        if running is None or (execution_id is not None and running.lease.execution_id != execution_id):
            return None
        return running

    def oldest(self) -> Running | None:
        """Return the execution whose lease was renewed longest ago, of those still trusted."""
        for running in self._running.values():
            if running.interrupt is None or running.interrupt.kind is not InterruptKind.LEASE_LOST:
                return running
        return None

    def renewed_before(self, time: float) -> list[Running]:
        """Return the executions whose lease was renewed before a time, oldest first."""
        found = []
        for running in self._running.values():
            if running.renewed_at > time:
                break
            if running.interrupt is None or running.interrupt.kind is not InterruptKind.LEASE_LOST:
                found.append(running)
        return found

    def renew(self, running: Running, sent_at: float) -> None:
        """Note that a beat sent at `sent_at` was answered for this lease."""
        if self._running.pop(running.job.id, None) is running:
            running.renewed_at = sent_at
            self._running[running.job.id] = running

    def stop(self, running: Running, interrupt: Interrupt) -> bool:
        """Interrupt one execution and have its grace counted; True when this is news."""
        if not running.stop(interrupt):
            return False
        self.stopped.append(running)
        self.stopped_bell.ring()
        return True
