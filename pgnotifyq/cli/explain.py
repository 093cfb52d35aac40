"""`python -m pgnotifyq explain ID`: why a job is where it is, and what would change that."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from pgnotifyq.cli.act import run_with
from pgnotifyq.cli.output import print_json, shown
from pgnotifyq.cli.parameters import AsJson, Dsn, OfJob, Schema, job_id_of
from pgnotifyq.ledger import look
from pgnotifyq.ledger.retention import kept
from pgnotifyq.model.errors import JobNotFound
from pgnotifyq.wire.asking import ask

if TYPE_CHECKING:
    from psycopg.rows import TupleRow

    from pgnotifyq.ledger.look import Explanation
    from pgnotifyq.ledger.retention import Kept
    from pgnotifyq.model.job import DeadLetter
    from pgnotifyq.wire.connection import Connection

UNITS = (("d", 86_400), ("h", 3_600), ("min", 60))  # in seconds

NEVER_SECONDS = 500 * 365 * 86_400.0  # infinity comes as a thousand years


def explain(job_id: OfJob, /, *, as_json: AsJson = False, dsn: Dsn = None, schema: Schema = "pgnotifyq") -> int:
    """Say why a job is where it is: what it waits for, who holds it, and what would help."""
    key = job_id_of(job_id)

    async def act(connection: Connection[TupleRow]) -> int:
        found = await ask(connection, look.explain(schema, key))
        letter = await ask(connection, look.get_dead(schema, key)) if found is None else None
        if found is not None:
            lines, data = sentences(found), attrs.asdict(found)
        elif letter is not None:
            lines, data = (
                of_dead_letter(letter),
                {"label": "dead", "reason": letter.reason, "error_message": letter.error_message},
            )
        else:
            raise JobNotFound(f"there is no job {key}: it never was, or was pruned after its retention")
        going = await ask(connection, kept(schema, key))
        if going is not None and going.is_said:
            lines += of_kept(going)
        if as_json:
            print_json({"id": key, **data, "sentences": lines})
        else:
            print("\n".join(shown(line) for line in lines))
        return 0

    return run_with(dsn, schema, act)


def sentences(found: Explanation) -> list[str]:
    """Return what there is to say of a job, as sentences."""
    said = [*_of_state(found), *_of_pause(found)]
    if found.trouble_with is not None:
        when = span(found.trouble_look_in_seconds or 0)
        look = f"in {when}" if (found.trouble_look_in_seconds or 0) > 0 else "due"
        said.append(
            f"It was put aside: {found.trouble_with} failed {found.trouble_tries} time(s), the last time with: {found.trouble}; "
            f"the next look is {look}."
        )
    return said


def _of_pause(found: Explanation) -> list[str]:
    if found.paused is None:
        return []
    what, words = {
        "queue": (f"Queue {found.queue_name}", found.queue_name),
        "job_type": (f"Job type {found.job_type}", f"--type {found.job_type}"),
    }.get(found.paused, ("Everything", "--everything"))
    why = f": {found.paused_why}" if found.paused_why else ""
    by = f"{what} was paused {span(found.paused_for_seconds or 0)} ago by {found.paused_by}{why}"
    return [by, f"It goes on with python -m pgnotifyq resume {words}"]


def _of_state(found: Explanation) -> list[str]:
    attempt = f"attempt {found.attempts}" + ("" if found.max_attempts is None else f" of {found.max_attempts}")
    why = f": {found.error_message.partition(chr(10))[0]}" if found.error_message else ""
    if found.is_parked and found.label in {"pending", "scheduled", "retrying"}:
        return ["It ran when its worker died, as others did; they are tried one after the other, and its turn has not come."]
    match found.label:
        case "pending":
            return [f"It has been due for {span(-(found.due_in_seconds or 0))}.", *_of_waiting(found)]
        case "scheduled" | "retrying" if found.waits_for is not None:
            due = found.due_after_wait_in_seconds or 0
            then = "; then it is due" + (f", in {span(due)} at the earliest" if due > 0 else "")
            return [
                f"It waits until job {found.waits_for} has ended, which had its unique key and was cancelled{then}.",
                *_of_no_worker(found),
            ]
        case "scheduled":
            when = "for ever" if _is_never(found.due_in_seconds) else f"for {span(found.due_in_seconds or 0)}"
            return [f"It is not due {when}.", *_of_no_worker(found)]
        case "retrying":
            when = "never" if _is_never(found.due_in_seconds) else f"in {span(found.due_in_seconds or 0)}"
            return [f"Its {attempt} failed{why}", f"It is tried again {when}.", *_of_no_worker(found)]
        case "running":
            return [
                f"It has been running for {span(found.held_for_seconds or 0)} on {_holder(found)}, {attempt}.",
                *_of_lease(found),
            ]
        case "stopping":
            told = f"It was cancelled{why}, and its handler has not stopped yet, on {_holder(found)}."
            return [told, *_of_lease(found)]
        case label:
            when = f" {span(found.ended_for_seconds)} ago" if found.ended_for_seconds is not None else ""
            said = f"It was {label}{when}"
            return [f"{said}, {attempt}{why}" if label == "completed" else f"{said}{why}"]


def _is_never(seconds: float | None) -> bool:
    return seconds is None or seconds > NEVER_SECONDS


def _of_waiting(found: Explanation) -> list[str]:
    """Say what a job that is due waits for, the first cause first."""
    if found.trouble_with is not None and (found.trouble_look_in_seconds or 0) > 0:
        return []  # told of below
    if found.paused is not None:
        return []  # told of below
    if found.workers == 0:
        return _of_no_worker(found)
    first = f"{found.jobs_before or 0} due job(s) of its queue come first"
    if found.slots_free == 0:
        return [f"The {found.workers} worker(s) of queue {found.queue_name} are at capacity; {first}."]
    return [f"{found.workers} worker(s) of queue {found.queue_name} have {found.slots_free} free slot(s); {first}."]


def _of_no_worker(found: Explanation) -> list[str]:
    if found.workers:
        return []
    queue = found.queue_name
    if found.workers_without_handler:
        none = f"None of the {found.workers_without_handler} live worker(s) of queue {queue} has a handler for job type {found.job_type}"
        return [f"{none}; it waits, uncharged, for one that has: register the handler, and start its worker."]
    return [f"No live worker takes queue {queue}: start one with python -m pgnotifyq worker --queue {queue}."]


def _of_lease(found: Explanation) -> list[str]:
    left = found.lease_seconds_left or 0
    if left < 0:
        ran_out = f"Its lease ran out {span(-left)} ago; the next live worker that looks takes it back."
        return [ran_out] if found.workers else [ran_out, *_of_no_worker(found)]
    if not found.is_holder_alive:
        return [
            f"That worker is gone; others take the job back, at the latest when its lease runs out, in {span(left)}.",
            *_of_no_worker(found),
        ]
    return [f"Its lease lasts another {span(left)} and is renewed while the worker lives."]


def _holder(found: Explanation) -> str:
    if found.held_on_host is None:
        return "a worker that has left no trace"
    return f"host {found.held_on_host}, process {found.held_by_pid}"


def of_dead_letter(letter: DeadLetter) -> list[str]:
    """Return what there is to say of a job that will not be tried again, as sentences."""
    why = f": {letter.error_message.partition(chr(10))[0]}" if letter.error_message else "."
    return [
        f"It is dead ({letter.reason}) after {letter.attempts} of {letter.max_attempts} attempts{why}",
        f"It stays so until somebody says python -m pgnotifyq requeue {letter.id}",
    ]


def of_kept(kept: Kept | None) -> list[str]:
    """Return when a job goes, as sentences."""
    if kept is None or kept.ending is None:
        return []
    said = []
    if kept.goes_in_seconds is not None:
        said.append(f"It goes, with its history, {_when(kept.goes_in_seconds)}.")
    elif kept.ending == "dead":
        said.append("It is kept until somebody deletes it: the retention says nothing of it.")
    else:
        said.append("It is kept as long as the workers of its queue are set to: the retention says nothing of it.")
    for what, seconds in (("payload", kept.payload_goes_in_seconds), ("result", kept.result_goes_in_seconds)):
        if seconds is not None and (kept.goes_in_seconds is None or seconds < kept.goes_in_seconds):
            said.append(f"Its {what} goes {_when(seconds)}.")
    return said


def _when(seconds: float) -> str:
    if seconds <= 0:
        return "with the next pass of a worker's pruner"
    return f"in {span(seconds)}"


def span(seconds: float) -> str:
    """Return a length of time for people: 2.5 s, 3 min, 4 h, 5 d."""
    seconds = max(seconds, 0.0)
    for unit, size in UNITS:
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} s"
