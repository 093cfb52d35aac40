"""Compare what was attempted, acknowledged, executed and settled, as multisets: pure functions over the evidence.

Lost and unexpected must be empty, duplicates explained; a job whose enqueue was never answered may be there or not (recovered).
The invariants' numbers are those of the plan: I1 nothing acknowledged is lost, and so on; each check says which it is.

One kind of execution leaves no row, and is right not to: a claim does not wait for the disk, so a server that crashes may
forget it, and with it the attempt. Its handler may have begun. That is explained by a crash that came soon after, and by
nothing else.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

    from tests.chaos.evidence import Begun, Evidence, Execution, Job

WRITES_INSIDE = frozenset(
    {"inside", "stubborn", "flaky", "hasty", "snoozing"}
)  # job types whose completion has one row in `effects`
GIVEN_BACK = frozenset({"snoozed", "released"})  # outcomes that do not charge the attempt
# What sql/functions/lease/reclaim.sql writes of a worker that died: the attempt is charged; or given back, for somebody else is to blame;
# or given back for now, and charged when the job is lost like this again.
DIED = "the worker died"
SUSPECTED = "the worker died again; not charged, to be run apart from what ran beside it"
SPARED = frozenset({SUSPECTED, "the worker died beside a suspect; not charged"})
# A crash loses what was committed without waiting for the disk in the last three rounds of the WAL writer (200 ms each); this is
# that, and some for a busy machine.
FORGOTTEN_SECONDS = 2.0
# Both times are the server's, to the microsecond; some for a clock that is set.
SKEW_SECONDS = 0.005


@attrs.frozen(order=True)
class Finding:
    """Something that must not be."""

    invariant: str
    what: str
    job_id: UUID | None = attrs.field(default=None, order=str)

    def __str__(self) -> str:
        return f"{self.invariant} {self.what}" + (f" (job {self.job_id})" if self.job_id else "")


def check(evidence: Evidence) -> list[Finding]:
    """Return all that is wrong; empty when nothing is."""
    findings = [Finding("run", what) for what in evidence.book.findings]
    for checked in (_enqueued, _executed, _attempts, _endings, _effects, _cancels, _left_behind):
        findings += checked(evidence)
    return findings


def recovered(evidence: Evidence) -> set[str]:
    """Return the tokens whose enqueue was not answered and committed all the same."""
    return {job.token for job in evidence.jobs} - evidence.book.acknowledged.keys()


def forgotten(evidence: Evidence) -> list[Begun]:
    """Return what has begun under a claim that a crash of the server has undone."""
    known = {execution.id for execution in evidence.executions}
    return [begun for begun in evidence.begun if begun.execution_id not in known and _crash_explains(evidence, begun)]


def _enqueued(evidence: Evidence) -> Iterator[Finding]:
    book = evidence.book
    found = Counter(job.token for job in evidence.jobs)
    ids = {job.id: job.token for job in evidence.jobs}
    for token, job_id in book.acknowledged.items():
        if ids.get(job_id) != token:
            yield Finding("I1", f"lost: {token} was acknowledged and is nowhere", job_id)
    for token in found.keys() - book.attempted:
        yield Finding("I2", f"unexpected: nobody enqueued {token}")
    for token in found.keys() & book.rolled_back:
        yield Finding("I2", f"unexpected: {token} was rolled back")
    for token, count in found.items():
        if count > 1:
            yield Finding("I2", f"duplicate: {token} was enqueued once and is there {count} times")
    if len(ids) != len(evidence.jobs):
        yield Finding("I14", "a job is both live and a dead letter")
    there, ordered = set(evidence.orders), found.keys() & book.ordered
    for token in there ^ ordered:
        yield Finding("I1", f"{token} has {'a row in orders and no job' if token in there else 'a job and no row in orders'}")


def _executed(evidence: Evidence) -> Iterator[Finding]:
    tokens = {job.id: job.token for job in evidence.jobs}
    known = {execution.id: execution.job_id for execution in evidence.executions}
    for begun in evidence.begun:
        if tokens.get(begun.job_id) != begun.token:
            yield Finding("I2", f"{begun.token} ran and was never enqueued", begun.job_id)
        if begun.started_at < begun.scheduled_at:
            yield Finding("I12", f"began {begun.scheduled_at - begun.started_at:.3f} s before its time", begun.job_id)
        if known.get(begun.execution_id) != begun.job_id and not _crash_explains(evidence, begun):
            yield Finding("I9", f"execution {begun.execution_id} ran and no loss of it is recorded", begun.job_id)
    for execution_id, count in Counter(begun.execution_id for begun in evidence.begun).items():
        if count > 1:
            yield Finding("I9", f"execution {execution_id} ran {count} times", known.get(execution_id))
    for execution_id, count in Counter(execution.id for execution in evidence.executions).items():
        if count > 1:
            yield Finding("I3", f"execution id {execution_id} was used {count} times", known[execution_id])


def _attempts(evidence: Evidence) -> Iterator[Finding]:
    histories = history(evidence)
    for job in evidence.jobs:
        charged = owed = 0
        before: Execution | None = None
        for execution in histories[job.id]:
            if before is not None and execution.claimed_at < before.ended_at - SKEW_SECONDS:
                yield Finding("I3", f"executions {before.id} and {execution.id} lived at the same time", job.id)
            if execution.attempt != charged + 1:
                yield Finding("I3", f"attempt {execution.attempt} came after {charged} that counted", job.id)
            if execution.why == DIED:
                charged, owed = min(charged + owed, job.max_attempts - 1), 0
            charged += execution.outcome not in GIVEN_BACK and execution.why not in SPARED
            owed += execution.why == SUSPECTED
            before = execution
        if job.attempts != charged:
            yield Finding("I3", f"{job.attempts} attempts in its row, {charged} in its history", job.id)
        if job.attempts > job.max_attempts:
            yield Finding("I7", f"{job.attempts} attempts of {job.max_attempts}", job.id)
        if job.status == "dead" and job.reason in {"lost", "exhausted"} and job.attempts != job.max_attempts:
            yield Finding("I7", f"dead ({job.reason}) after {job.attempts} of {job.max_attempts} attempts", job.id)


def _endings(evidence: Evidence) -> Iterator[Finding]:
    histories = history(evidence)
    for job in evidence.jobs:
        outcomes = [execution.outcome for execution in histories[job.id]]
        if job.status in {"pending", "running"}:
            yield Finding("liveness", f"still {job.status} when all faults had long stopped", job.id)
        elif job.is_held:
            yield Finding("I6", f"{job.status} and still held", job.id)
        if outcomes.count("completed") != (job.status == "completed"):
            yield Finding("I5", f"{job.status}, and completed {outcomes.count('completed')} times", job.id)
        if {"completed", "cancelled"} & set(outcomes[:-1]):
            yield Finding("I5", f"went on after its end: {', '.join(outcomes)}", job.id)
    strays = {execution.job_id for execution in evidence.executions} - {job.id for job in evidence.jobs}
    for job_id in strays:
        yield Finding("I14", "executions of a job that is nowhere", job_id)


def _effects(evidence: Evidence) -> Iterator[Finding]:
    outcomes = {execution.id: (execution.job_id, execution.outcome) for execution in evidence.executions}
    for job_id, execution_id in evidence.effects:
        if outcomes.get(execution_id) != (job_id, "completed"):
            yield Finding("I4", f"execution {execution_id} wrote and did not complete its job", job_id)
    written = Counter(job_id for job_id, _ in evidence.effects)
    for job in evidence.jobs:
        expected = int(job.status == "completed" and job.job_type in WRITES_INSIDE)
        if written[job.id] != expected:
            yield Finding("I8", f"{job.status} {job.job_type} with {written[job.id]} effects, not {expected}", job.id)


def _cancels(evidence: Evidence) -> Iterator[Finding]:
    jobs = {job.id: job for job in evidence.jobs}
    for job_id in evidence.book.cancelled:
        if job_id not in jobs or jobs[job_id].status != "cancelled":
            yield Finding("I10", f"its cancel was accepted, and it is {_state(jobs.get(job_id))}", job_id)
    for job in evidence.jobs:
        if job.status == "cancelled" and job.id not in evidence.book.cancelling:
            yield Finding("I10", "cancelled, and nobody asked for it", job.id)


def _left_behind(evidence: Evidence) -> Iterator[Finding]:
    for what in evidence.left_behind:
        yield Finding("liveness", f"left behind: {what}")


def history(evidence: Evidence) -> defaultdict[UUID, list[Execution]]:
    """Return the executions of each job, in the order of their claims."""
    histories: defaultdict[UUID, list[Execution]] = defaultdict(list)
    for execution in sorted(evidence.executions, key=lambda one: (one.claimed_at, one.attempt, one.id)):
        histories[execution.job_id].append(execution)
    return histories


def _crash_explains(evidence: Evidence, begun: Begun) -> bool:
    return any(began_at - FORGOTTEN_SECONDS <= begun.started_at <= ended_at for began_at, ended_at in evidence.book.crashes)


def _state(job: Job | None) -> str:
    return job.status if job is not None else "nowhere"
