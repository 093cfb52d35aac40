"""`explain ID`: a sentence for each thing that a job waits for, and for each way that it may have ended."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from pgnotifyq.cli.app import run as command_line
from pgnotifyq.ledger.explaining import span

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WORKER = "00000000-0000-0000-0000-0000000000aa"
ALIVE = f"select pgnotifyq.register_worker('{WORKER}', 'here', 7, '{{default}}', %s, '0', false, 60)"
HOLD = f"""update pgnotifyq.jobs set status = 'running', attempts = 1, started_at = now() - interval '5 min', locked_by = '{WORKER}',
    current_execution_id = gen_random_uuid(), lease_expires_at = now() + interval '1 min'"""


@pytest.fixture
def session(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(dsn, autocommit=True) as session:
        yield session


STATES = [
    ([], ["It has been due for", "No live worker takes queue default: start one"]),
    ([ALIVE % 2], ["1 worker(s) of queue default have 2 free slot(s); 0 due job(s) of its queue come first."]),
    ([ALIVE % 2, "select pgnotifyq.enqueue('y', priority => 9)"], ["1 due job(s) of its queue come first"]),
    ([ALIVE % 2, "select pgnotifyq.publish_handlers(worker_id, '{y}', '{null}', '{null}') from pgnotifyq.worker_heartbeats"],
     ["None of the 1 live worker(s) of queue default has a handler for job type x; it waits, uncharged"]),
    (["update pgnotifyq.jobs set scheduled_at = 'infinity'"], ["It is not due for ever."]),
    ([ALIVE % 0], ["The 1 worker(s) of queue default are at capacity"]),
    (["update pgnotifyq.jobs set scheduled_at = now() + interval '1 hour'"], ["It is not due for 60 min.", "No live worker"]),
    (["update pgnotifyq.jobs set attempts = 1, error_message = e'boom\nat line 3', scheduled_at = now() + interval '1 hour'"],
     ["Its attempt 1 of 3 failed: boom", "It is tried again in 60 min."]),
    ([ALIVE % 1, HOLD], ["It has been running for 5 min on host here, process 7, attempt 1 of 3.", "Its lease lasts another"]),
    ([HOLD], ["on a worker that has left no trace", "That worker is gone; others take the job back", "No live worker"]),
    ([HOLD, "update pgnotifyq.jobs set lease_expires_at = now() - interval '5 min'"], ["Its lease ran out 5 min ago", "No live worker"]),
    ([ALIVE % 1, HOLD, "update pgnotifyq.jobs set status = 'cancelled', error_message = 'not wanted'"],
     ["It was cancelled: not wanted, and its handler has not stopped yet, on host here, process 7."]),
    (["update pgnotifyq.jobs set status = 'cancelled'"], ["It was cancelled ", " s ago"]),
    ([HOLD, ("update pgnotifyq.jobs set status = 'completed', completed_at = now() - interval '3 days', locked_by = null,"
      " current_execution_id = null, lease_expires_at = null")], ["It was completed 3 d ago, attempt 1 of 3"]),
    (["select pgnotifyq.note_trouble(org_id, id, 'claim', '22008', e'no\x1b[2J time') from pgnotifyq.jobs"],
     ["It was put aside: claim failed 1 time(s), the last time with: no\\x1b[2J time; the next look is in"]),
    ([("update pgnotifyq.jobs set suspicion = 'parked', suspected_with = gen_random_uuid(), attempts = 1,"
      " scheduled_at = now() + interval '1 hour'")], ["its turn has not come"]),
]  # fmt: skip


@pytest.mark.parametrize(("done", "said"), STATES, ids=[said[0] for _, said in STATES])
def test_state(
    dsn: str, session: psycopg.Connection[Any], capsys: pytest.CaptureFixture[str], done: list[str], said: list[str]
) -> None:
    """What is said, in sentences, in lines of printable text."""
    row = session.execute("select pgnotifyq.enqueue('x', max_attempts => 3)").fetchone()
    assert row is not None
    for statement in done:
        session.execute(statement.encode())
    assert command_line(["explain", str(row[0]), "--dsn", dsn]) == 0
    told = capsys.readouterr().out
    assert all(words in told for words in said), told
    assert all(line.isprintable() for line in told.splitlines())


def test_dead_letter(run: Callable[..., Any], session: psycopg.Connection[Any]) -> None:
    """Why it died, and what brings it back; as JSON the same sentences beside the facts."""
    row = session.execute(
        "insert into pgnotifyq.dead_letter_jobs (id, org_id, queue_name, job_type, payload, priority, scheduled_at, attempts,"
        " max_attempts, created_at, reason, error_message, history, died_at) select gen_random_uuid(), gen_random_uuid(), 'images', 'x',"
        " '{}', 0, now(), 3, 3, now(), 'exhausted', 'boom', '[]', now() returning id"
    ).fetchone()
    assert row is not None
    told = run("explain", str(row[0]), "--json").data
    assert (told["label"], told["reason"]) == ("dead", "exhausted")
    assert told["sentences"][0] == "It is dead (exhausted) after 3 of 3 attempts: boom"
    assert f"requeue {row[0]}" in told["sentences"][1]


def test_facts_as_json(run: Callable[..., Any], session: psycopg.Connection[Any]) -> None:
    """With the id, and the trouble."""
    row = session.execute("select pgnotifyq.enqueue('x')").fetchone()
    assert row is not None
    session.execute("select pgnotifyq.note_trouble(org_id, id, 'prune', '23503', 'refers') from pgnotifyq.jobs")
    told = run("explain", str(row[0]), "--json").data
    assert (told["id"], told["label"], told["trouble_with"], told["trouble"]) == (str(row[0]), "pending", "prune", "refers")
    assert told["trouble_look_in_seconds"] > 0


@pytest.mark.parametrize(("job_id", "code"), [(str(uuid.uuid4()), 1), ("nonsense", 2)], ids=["unknown", "nonsense"])
def test_job_that_is_not_there(run: Callable[..., Any], job_id: str, code: int) -> None:
    """One line, and an exit code that says whether it was found or was no id."""
    ran = run("explain", job_id)
    assert (ran.code, len(ran.err.splitlines())) == (code, 1)


@pytest.mark.parametrize(
    ("seconds", "told"), [(-1, "0.0 s"), (0.25, "0.2 s"), (119, "119.0 s"), (120, "2 min"), (7200, "2 h"), (1e6, "12 d")]
)
def test_length_of_time(seconds: float, told: str) -> None:
    """In the largest unit of which there are two."""
    assert span(seconds) == told
