"""Why a job is where it is: one test an answer, decided by the database, and what each says."""

from __future__ import annotations

import re
import time
import uuid
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from pgnotifyq.ledger.explaining import SAYINGS, TOLD_TENANTS, Explanation, explain
from pgnotifyq.ledger.statements import sql_folder
from pgnotifyq.model.job import JobId
from pgnotifyq.wire.asking import ask_blocking
from tests.ledger.support import SCHEMA, fetch

if TYPE_CHECKING:
    from pgnotifyq.wire.blocking import Connection

WORKER = "00000000-0000-0000-0000-0000000000aa"
ALIVE = f"select pgnotifyq.register_worker('{WORKER}', 'here', 7, '{{default}}', %s, '1.2.3', false, 60)"
HOLD = f"""update pgnotifyq.jobs set status = 'running', attempts = 1, started_at = now() - interval '5 min', locked_by = '{WORKER}',
    current_execution_id = gen_random_uuid(), lease_expires_at = now() + interval '1 min' where job_type = 'x'"""
CANCEL = "update pgnotifyq.jobs set status = 'cancelled', error_message = 'not wanted'"
LATER = "update pgnotifyq.jobs set scheduled_at = now() + interval '1 hour'"
AFTER_HOLDER = (
    "update pgnotifyq.jobs set scheduled_at = 'infinity', due_after_wait = now() + interval '1 hour',"
    " waits_for = '00000000-0000-7000-8000-000000000001'"
)
OF_SCHEDULE = (
    "update pgnotifyq.jobs set headers ="
    """ '{"pgnotifyq_schedule": {"name": "nightly", "tick": "2026-11-29T03:00:00+00:00"}}'"""
)
FAILED = "update pgnotifyq.jobs set attempts = 1, error_message = e'boom\nat line 3'"
OTHER_HANDLER = f"select pgnotifyq.publish_handlers('{WORKER}', '{{y}}', '{{null}}', '{{null}}')"
AHEAD = "select pgnotifyq.enqueue('x', priority => 9)"
AHEAD_LATER = "select pgnotifyq.enqueue('x', priority => 9, scheduled_at => now() + interval '1 hour')"
TROUBLE = "select pgnotifyq.note_trouble(org_id, id, 'claim', '22008', 'no time') from pgnotifyq.jobs"
PARK = "update pgnotifyq.jobs set suspicion = 'parked', suspected_with = gen_random_uuid(), attempts = 1"
BURY = """with gone as (delete from pgnotifyq.jobs returning *)
    insert into pgnotifyq.dead_letter_jobs (id, org_id, queue_name, job_type, payload, priority, scheduled_at, attempts, max_attempts,
    created_at, reason, error_message, history, died_at)
    select id, org_id, queue_name, job_type, payload, priority, scheduled_at, 3, 3, created_at, 'exhausted', 'boom', '[]',
    now() - interval '3 days' from gone"""
COMPLETE = (
    HOLD,
    (
        "update pgnotifyq.jobs set status = 'completed', completed_at = now() - interval '3 days', locked_by = null,"
        " current_execution_id = null, lease_expires_at = null"
    ),
)
PAUSES = [
    "select pgnotifyq.pause('default', who => 'ann', why => 'S3 is down')",
    "select pgnotifyq.pause(job_type => 'x', who => 'bob')",
    "select pgnotifyq.pause(everything => true, who => 'eve')",
]

# What is done to a job of type x, the answers, and words of what is said.
CASES: dict[str, tuple[list[str], list[str], list[str]]] = {
    "no worker": ([], ["due", "no_worker"], ["No live worker takes queue default"]),
    "not due": ([ALIVE % 2, LATER], ["not_due"], ["not due for 60 min"]),
    "never due": ([ALIVE % 2, "update pgnotifyq.jobs set scheduled_at = 'infinity'"], ["not_due"], ["not due for ever"]),
    "not due and no worker": ([LATER], ["not_due", "no_worker"], ["not due for 60 min", "No live worker"]),
    "the holder of its key is stopping": (
        [ALIVE % 2, AFTER_HOLDER],
        ["after_holder"],
        ["It waits until job 00000000-0000-7000-8000-000000000001 has ended, which had its unique key", "in 60 min at the earliest"],
    ),
    "of a schedule": (
        [ALIVE % 2, OF_SCHEDULE],
        ["due", "next", "of_schedule"],
        ["Schedule nightly enqueued it, for 2026-11-29T03:00:00+00:00"],
    ),
    "next": ([ALIVE % 2], ["due", "next"], ["2 free slot(s); 0 due job(s) of its queue come first"]),
    "behind": ([ALIVE % 2, AHEAD], ["due", "behind"], ["1 due job(s) of its queue come first"]),
    "ahead is not due": ([ALIVE % 2, AHEAD_LATER], ["due", "next"], []),
    "at capacity": ([ALIVE % 0], ["due", "at_capacity"], ["at capacity"]),
    "at capacity and behind": ([ALIVE % 0, AHEAD], ["due", "at_capacity", "behind"], []),
    "no handler": ([ALIVE % 2, OTHER_HANDLER], ["due", "no_handler"], ["handler for job type x", "pgnotifyq 1.2.3"]),
    "paused, all three ways, and no worker": (
        PAUSES,
        ["due", "paused", "no_worker"],
        ["Queue default was paused", "by ann: S3 is down", "Job type x was paused", "by bob", "Everything was paused", "by eve"],
    ),
    "paused": ([ALIVE % 2, PAUSES[1]], ["due", "paused"], ["resume --type x"]),
    "retry": ([ALIVE % 2, FAILED, LATER], ["retry", "not_due"], ["attempt 1 of 3 failed: boom", "tried again in 60 min"]),
    "retry that is due": ([ALIVE % 2, FAILED], ["retry", "due", "next"], ["attempt 1 of 3 failed: boom"]),
    "put aside": ([ALIVE % 2, TROUBLE], ["due", "put_aside"], ["claim failed 1 time(s), the last time with: no time"]),
    "parked": ([ALIVE % 2, PARK], ["parked"], ["its turn has not come"]),
    "running": ([ALIVE % 2, HOLD], ["running"], ["running for 5 min on host here, process 7, attempt 1 of 3"]),
    "its worker is gone": ([HOLD], ["running", "worker_gone", "no_worker"], ["That worker is gone; others take the job back"]),
    "its lease has run out": (
        [ALIVE % 2, HOLD, "update pgnotifyq.jobs set lease_expires_at = now() - interval '5 min'"],
        ["running", "worker_gone"],
        ["Its lease ran out 5 min ago"],
    ),
    "stopping": ([ALIVE % 2, HOLD, CANCEL], ["stopping"], ["cancelled: not wanted", "has not stopped yet", "told to stop 0."]),
    "cancelled": ([CANCEL], ["cancelled"], ["It was cancelled"]),
    "completed": ([*COMPLETE], ["completed"], ["It was completed 3 d ago, attempt 1 of 3"]),
    "dead": ([BURY], ["dead"], ["It is dead (exhausted) after 3 of 3 attempts: boom", "It died 3 d ago", "requeue"]),
    "deleted soon": (["delete from pgnotifyq.jobs"], ["never_there"], ["never was there", "kept for 7 d at least"]),
}  # fmt: skip


def explained(connection: Connection[Any], job_id: uuid.UUID) -> Explanation:
    """Return why a job is where it is."""
    return ask_blocking(connection, explain(SCHEMA, JobId(job_id)))


@pytest.mark.parametrize("case", CASES)
def test_an_answer(connection: Connection[Any], case: str) -> None:
    """Each thing that a job may wait for, and each way that it may have ended; several at once if several hold."""
    done, answers, said = CASES[case]
    ((job_id,),) = fetch(connection, "select pgnotifyq.enqueue('x', max_attempts => 3)")
    for statement in done:
        connection.execute(statement.encode())
    found = explained(connection, job_id)
    assert found.answers == answers
    told = "\n".join(found.sentences)
    assert [words for words in said if words not in told] == [], told
    assert len(found.sentences) >= len(answers)


def id_of(seconds_ago: float) -> uuid.UUID:
    """Return an id of version 7 that was made some time ago."""
    milliseconds = int((time.time() - seconds_ago) * 1000)
    return uuid.UUID(f"{milliseconds:012x}70008000000000000000")


@pytest.mark.parametrize(
    ("job_id", "answer", "said"),
    [
        (id_of(8 * 86_400), "pruned", "made 8 d ago"),
        (id_of(60), "never_there", "Its id was made"),
        (id_of(-86_400), "never_there", "of a time to come, in 24 h"),
        (uuid.UUID(int=7), "unknown", "says nothing of its age"),
    ],
    ids=["old", "young", "of the future", "of no time"],
)
def test_a_job_that_is_not_there(connection: Connection[Any], job_id: uuid.UUID, answer: str, said: str) -> None:
    """What its id tells of the time at which it was made decides."""
    found = explained(connection, job_id)
    assert (found.label, found.answers) == ("unknown", [answer])
    assert said in found.sentences[0]


def test_a_shorter_retention(connection: Connection[Any]) -> None:
    """What a queue's retention says counts: a job of a minute ago may be pruned already."""
    connection.execute("select pgnotifyq.set_retention('default', 30)")
    assert (explained(connection, id_of(60))).answers == ["pruned"]


def test_an_answer_of_a_newer_schema(connection: Connection[Any]) -> None:
    """It is told by its name."""
    ((job_id,),) = fetch(connection, "select pgnotifyq.enqueue('x')")
    found = explained(connection, job_id)
    found.answers.append("asleep")
    assert found.sentences[-1] == "It is told as asleep, which this version cannot explain."


def test_every_answer_has_a_test_and_words() -> None:
    """The answers of the SQL function, of the table of what they say, and of the tests are the same."""
    text = (sql_folder() / "functions" / "look" / "explain.sql").read_text(encoding="utf-8")
    body = text.partition("select a.label, array_remove(")[2]
    decided = set(re.findall(r"(?:then|else|array\[) ?'(\w+)'", body)) | {"completed", "cancelled", "running", "stopping"}
    tested = {answer for _, answers, _ in CASES.values() for answer in answers} | {"pruned", "unknown"}
    assert decided == set(SAYINGS) - {"in_line"} == tested  # that one is told to tenants, in the place of three


def test_every_field_is_told_to_tenants_or_kept_from_them() -> None:
    """A new field is kept from tenants until somebody has decided that no other tenant has a part in it."""
    others = {"versions_without_handler", "slots_free", "held_on_host", "held_by_pid", "id_age_seconds", "kept_seconds"}
    changed = {"answers", "jobs_before", "pauses", "is_of_tenant"}
    assert {field.name for field in attrs.fields(Explanation)} == TOLD_TENANTS | others | changed


def test_as_sql(connection: Connection[Any]) -> None:
    """From psql: the label, the answers, and what they are decided by."""
    ((job_id,),) = fetch(connection, "select pgnotifyq.enqueue('x')")
    ((label, answers, jobs_before),) = fetch(
        connection, "select label, answers, (facts->>'jobs_before')::int from pgnotifyq.explain(%s)", job_id
    )
    assert (label, answers, jobs_before) == ("pending", ["due", "no_worker"], 0)
