"""Why a job is where it is: the answers, and what each says to people.

The database decides which answers hold (sql/functions/look/explain.sql), for every door and for
psql. This file has the table of what the answers say: one row an answer. docs/explain.md has the
same table for readers. A test compares the two tables.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

import attrs

from pgnotifyq.ledger.ask import Ask
from pgnotifyq.ledger.columns import records
from pgnotifyq.ledger.errors import said_of
from pgnotifyq.ledger.statements import call
from pgnotifyq.model.job import JobId

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgnotifyq.ledger.ask import Answer

UNITS = (("d", 86_400), ("h", 3_600), ("min", 60))  # in seconds

NEVER_SECONDS = 500 * 365 * 86_400.0  # infinity comes as a thousand years


@attrs.frozen(kw_only=True)
class Hindrance:
    """A pause that a job waits for."""

    scope: str  # queue, job_type or everything
    name: str  # the queue's or the job type's; of everything it is empty
    who: str  # empty if a tenant asks
    why: str | None
    for_seconds: float  # since it was paused, or another paused it anew


@attrs.frozen(kw_only=True)
class Explanation:
    """Why a job is where it is. Times are in seconds, on the database's clock."""

    job_id: JobId
    label: str  # its status, or scheduled, retrying, stopping, dead; unknown: it is not there
    # The answers that hold, one word each, as in docs/explain.md. A job may wait for several things
    # at once.
    answers: list[str]
    due_in_seconds: float | None = None  # negative: due for so long; None: it is not pending
    lease_seconds_left: float | None = None  # None: nobody holds it
    # Due jobs of its queue that are claimed first, counted up to 1,000; None: it is not pending.
    jobs_before: int | None = None
    # Live workers that take its queue, have a handler for its type and are not draining.
    workers: int = 0
    # Live workers that take its queue, if none of them has a handler for its type.
    workers_without_handler: int = 0
    # The versions of pgnotifyq that those workers run.
    versions_without_handler: list[str] = attrs.field(factory=list)
    slots_free: int = 0  # free slots of the workers that could take it
    queue_name: str = ""
    job_type: str = ""
    attempts: int = 0
    max_attempts: int | None = None  # None: not said, and not claimed yet
    error_message: str | None = None
    reason: str | None = None  # why it is dead
    is_parked: bool = False  # it waits for other jobs that ran when its worker died
    held_for_seconds: float | None = None  # since its attempt began; None: nobody holds it
    held_on_host: str | None = None
    held_by_pid: int | None = None
    is_holder_alive: bool | None = None
    # Since it ended or died. If it is stopping: since its cancel.
    ended_for_seconds: float | None = None
    # The verb that failed on its row. The job was put aside. None: there is no trouble.
    trouble_with: str | None = None
    trouble: str | None = None  # what the database said of that failure
    trouble_tries: int | None = None
    trouble_look_in_seconds: float | None = None  # until a worker tries again, at the earliest
    # The job whose handler has to end first. That job had the unique key of this one, and was
    # cancelled.
    waits_for: JobId | None = None
    # When this job would be due if that one ended now. Negative: it would be due at once. None: it
    # waits for no such job.
    due_after_wait_in_seconds: float | None = None
    schedule: str | None = None  # the name of the schedule that enqueued it; None: none did
    scheduled_for: str | None = None  # the schedule's tick that it was enqueued for, in UTC
    pauses: list[Hindrance] = attrs.field(factory=list)  # the pauses that hold it back
    # If the job is not there: how old its id is. None: the id does not say.
    id_age_seconds: float | None = None
    # If the job is not there: how long a finished job is kept, at the least.
    kept_seconds: float | None = None
    # Whether one tenant asks (`client.for_org`). Then `jobs_before` counts the tenant's own jobs
    # alone. The tenant is told nothing of free slots, of workers' versions and hosts, and of who
    # paused what and why.
    is_of_tenant: bool = False

    # The first of the pauses, value by value.

    @property
    def paused(self) -> str | None:
        """The scope of the pause that holds it back: queue, job_type or everything; None: none."""
        return self.pauses[0].scope if self.pauses else None

    @property
    def paused_by(self) -> str | None:
        """Who paused it."""
        return self.pauses[0].who if self.pauses else None

    @property
    def paused_why(self) -> str | None:
        """Why, if that was said."""
        return self.pauses[0].why if self.pauses else None

    @property
    def paused_for_seconds(self) -> float | None:
        """For how long."""
        return self.pauses[0].for_seconds if self.pauses else None

    @property
    def sentences(self) -> list[str]:
        """What there is to say of the job, for people."""
        return [line for answer in self.answers for line in _said(answer, self)]


def explain(schema: str, job_id: JobId) -> Ask[Explanation]:
    """Return why a job is where it is, or why it is not there.

    Source: sql/functions/look/explain.sql
    """

    def read(answer: Answer, encoding: str) -> Explanation:
        (found,) = records(answer, encoding)
        return explained(job_id, found)

    return Ask(call("explain", "uuid", schema), (job_id.hex,), read, said_of(schema))


def explained(job_id: JobId, found: dict[str, Any]) -> Explanation:
    """Read a row that `explain` gave."""
    facts: dict[str, Any] = found["facts"]
    facts["pauses"] = [Hindrance(**each) for each in facts.get("pauses", ())]
    if (first := facts.get("waits_for")) is not None:
        facts["waits_for"] = JobId(UUID(first))
    return Explanation(job_id=job_id, label=found["label"], answers=found["answers"], **facts)


# The fields that a tenant is told of its own job. All other fields are not told, and no field that
# is added later: other tenants have a part in them, or they are the operator's.
TOLD_TENANTS = frozenset({
    "job_id", "label", "due_in_seconds", "lease_seconds_left", "workers", "workers_without_handler", "queue_name", "job_type",
    "attempts", "max_attempts", "error_message", "reason", "is_parked", "held_for_seconds", "is_holder_alive", "ended_for_seconds",
    "trouble_with", "trouble", "trouble_tries", "trouble_look_in_seconds", "waits_for", "due_after_wait_in_seconds", "schedule",
    "scheduled_for",
})  # fmt: skip
# If at least one of these holds, a live worker takes the job in its turn.
IN_LINE = ("at_capacity", "behind", "next")


def of_tenant(found: Explanation, jobs_before: int | None) -> Explanation:
    """Return what a tenant is told of its job: nothing that another tenant has a part in.

    `jobs_before` counts the tenant's own jobs alone.
    """
    answers = [answer for answer in found.answers if answer not in IN_LINE]
    if len(answers) < len(found.answers):
        place = found.answers.index(next(answer for answer in found.answers if answer in IN_LINE))
        answers.insert(place, "behind" if jobs_before else "in_line")
    return Explanation(
        answers=answers,
        jobs_before=jobs_before,
        pauses=[attrs.evolve(each, who="", why=None) for each in found.pauses],
        is_of_tenant=True,
        **{name: getattr(found, name) for name in TOLD_TENANTS},
    )


def span(seconds: float) -> str:
    """Return a length of time for people: 2.5 s, 3 min, 4 h, 5 d."""
    seconds = max(seconds, 0.0)
    for unit, size in UNITS:
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} s"


# What each answer says


def _said(answer: str, found: Explanation) -> list[str]:
    say = SAYINGS.get(answer)
    # A newer schema may know answers that this code does not.
    return [f"It is told as {answer}, which this version cannot explain."] if say is None else say(found)


def _attempt(found: Explanation) -> str:
    return f"attempt {found.attempts}" + ("" if found.max_attempts is None else f" of {found.max_attempts}")


def _why(found: Explanation) -> str:
    return f": {found.error_message.partition(chr(10))[0]}" if found.error_message else ""


def _is_never(seconds: float | None) -> bool:
    return seconds is None or seconds > NEVER_SECONDS


def _not_due(found: Explanation) -> list[str]:
    if found.attempts > 0:
        when = "never" if _is_never(found.due_in_seconds) else f"in {span(found.due_in_seconds or 0)}"
        return [f"It is tried again {when}."]
    when = "for ever" if _is_never(found.due_in_seconds) else f"for {span(found.due_in_seconds or 0)}"
    return [f"It is not due {when}."]


def _after_holder(found: Explanation) -> list[str]:
    left = found.due_after_wait_in_seconds or 0
    then = "; then it is due" + (f", in {span(left)} at the earliest" if left > 0 else "")
    return [f"It waits until job {found.waits_for} has ended, which had its unique key and was cancelled{then}."]


def _paused(found: Explanation) -> list[str]:
    lines = []
    for each in found.pauses:
        what, words = {
            "queue": (f"Queue {each.name}", each.name),
            "job_type": (f"Job type {each.name}", f"--type {each.name}"),
        }.get(each.scope, ("Everything", "--everything"))
        if found.is_of_tenant:
            lines.append(f"{what} was paused {span(each.for_seconds)} ago.")
            continue
        why = f": {each.why}" if each.why else ""
        lines += [
            f"{what} was paused {span(each.for_seconds)} ago by {each.who}{why}",
            f"It goes on with python -m pgnotifyq resume {words}",
        ]
    return lines


def _put_aside(found: Explanation) -> list[str]:
    left = found.trouble_look_in_seconds or 0
    when = f"in {span(left)}" if left > 0 else "due"
    failed = f"{found.trouble_with} failed {found.trouble_tries} time(s), the last time with: {found.trouble}"
    return [f"It was put aside: {failed}; the next look is {when}."]


def _no_worker(found: Explanation) -> list[str]:
    queue = found.queue_name
    if found.is_of_tenant:
        return [f"No live worker takes queue {queue}."]
    return [f"No live worker takes queue {queue}: start one with python -m pgnotifyq worker --queue {queue}."]


def _no_handler(found: Explanation) -> list[str]:
    none = (
        f"None of the {found.workers_without_handler} live worker(s) of queue {found.queue_name}"
        f" has a handler for job type {found.job_type}"
    )
    if found.is_of_tenant:
        return [f"{none}; it waits, uncharged, for one that has."]
    seen = ", ".join(found.versions_without_handler) or "of no version"
    return [
        f"{none}; it waits, uncharged, for one that has: register the handler, and start its worker.",
        f"Those workers run pgnotifyq {seen}.",
    ]


def _worker_gone(found: Explanation) -> list[str]:
    left = found.lease_seconds_left or 0
    if left < 0:
        return [f"Its lease ran out {span(-left)} ago; the next live worker that looks takes it back."]
    return [f"That worker is gone; others take the job back, at the latest when its lease runs out, in {span(left)}."]


def _holder(found: Explanation) -> str:
    if found.is_of_tenant:
        return "a worker"
    if found.held_on_host is None:
        return "a worker that has left no trace"
    return f"host {found.held_on_host}, process {found.held_by_pid}"


def _lease(found: Explanation) -> list[str]:
    if "worker_gone" in found.answers:
        return []
    return [f"Its lease lasts another {span(found.lease_seconds_left or 0)} and is renewed while the worker lives."]


def _running(found: Explanation) -> list[str]:
    return [
        f"It has been running for {span(found.held_for_seconds or 0)} on {_holder(found)}, {_attempt(found)}.",
        *_lease(found),
    ]


def _stopping(found: Explanation) -> list[str]:
    since = f"{span(found.ended_for_seconds or 0)} ago"
    stands = "" if found.is_of_tenant else f"; python -m pgnotifyq stack {found.job_id} says where it stands"
    return [
        f"It was cancelled{_why(found)}, and its handler has not stopped yet, on {_holder(found)}.",
        f"It was told to stop {since}{stands}.",
        *_lease(found),
    ]


def _ended(found: Explanation) -> list[str]:
    when = f" {span(found.ended_for_seconds)} ago" if found.ended_for_seconds is not None else ""
    said = f"It was {found.label}{when}"
    return [f"{said}, {_attempt(found)}{_why(found)}" if found.label == "completed" else f"{said}{_why(found)}"]


def _dead(found: Explanation) -> list[str]:
    why = _why(found) or "."
    requeues = "requeues it." if found.is_of_tenant else f"says python -m pgnotifyq requeue {found.job_id}"
    return [
        f"It is dead ({found.reason}) after {found.attempts} of {found.max_attempts} attempts{why}",
        f"It died {span(found.ended_for_seconds or 0)} ago, and stays so until somebody {requeues}",
    ]


def _at_capacity(found: Explanation) -> list[str]:
    return [f"The {found.workers} worker(s) of queue {found.queue_name} are at capacity."]


def _behind(found: Explanation) -> list[str]:
    if found.is_of_tenant:
        return [f"{found.jobs_before or 0} due job(s) of its tenant come first in its queue."]
    return [f"{found.jobs_before or 0} due job(s) of its queue come first."]


def _next(found: Explanation) -> list[str]:
    free = f"{found.workers} worker(s) of queue {found.queue_name} have {found.slots_free} free slot(s)"
    return [f"{free}; 0 due job(s) of its queue come first."]


def _age(found: Explanation) -> str:
    age = found.id_age_seconds or 0
    return f"Its id was made {span(age)} ago" if age >= 0 else f"Its id is of a time to come, in {span(-age)}"


def _never_there(found: Explanation) -> list[str]:
    kept = f"a finished job would be kept for {span(found.kept_seconds or 0)} at least"
    return [
        f"It never was there: {_age(found)}, and {kept}.",
        "Or the transaction that enqueues it has not committed, or was rolled back; or somebody deleted it.",
    ]


def _pruned(found: Explanation) -> list[str]:
    return [f"It was pruned after its retention, or never was there: {_age(found)}."]


def _unknown(_: Explanation) -> list[str]:
    return ["It is not there, and its id says nothing of its age: it never was there, or was pruned after its retention."]


# One row an answer, in the order in which the database gives them. An answer that is added to
# explain.sql gets its row here.
SAYINGS: dict[str, Callable[[Explanation], list[str]]] = {
    "completed": _ended,
    "cancelled": _ended,
    "running": _running,
    "stopping": _stopping,
    "worker_gone": _worker_gone,
    "parked": lambda _: [
        "It ran when its worker died, as others did; they are tried one after the other, and its turn has not come."
    ],
    "retry": lambda found: [f"Its {_attempt(found)} failed{_why(found)}"],
    "after_holder": _after_holder,
    "due": lambda found: [f"It has been due for {span(-(found.due_in_seconds or 0))}."],
    "not_due": _not_due,
    "paused": _paused,
    "put_aside": _put_aside,
    "no_handler": _no_handler,
    "no_worker": _no_worker,
    "at_capacity": _at_capacity,
    "behind": _behind,
    "next": _next,
    # `of_tenant` gives this answer, and not the database.
    "in_line": lambda found: [f"It waits for its turn in queue {found.queue_name}."],
    "of_schedule": lambda found: [f"Schedule {found.schedule} enqueued it, for {found.scheduled_for}."],
    "dead": _dead,
    "never_there": _never_there,
    "pruned": _pruned,
    "unknown": _unknown,
}
