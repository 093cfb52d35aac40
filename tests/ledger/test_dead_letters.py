"""Dead letters: which of them are meant, what they have in common, and how they come back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest

from pgnotifyq.ledger import end, look
from pgnotifyq.ledger.look import DeadFilter
from pgnotifyq.model.errors import ConfigError
from pgnotifyq.model.job import JobId, OrgId
from pgnotifyq.wire.asking import ask_blocking
from pgnotifyq.wire.blocking import Connection
from tests.ledger.support import ENDINGS, SCHEMA, claim_one, enqueue, existing, fetch, settle, value

Link = Connection[Any]
ORG = OrgId(UUID(int=7))
THEN = datetime(2026, 1, 1, tzinfo=UTC)


def bury(connection: Link, error: str, *, died_at: datetime = THEN, queue: str = "default", **fields: Any) -> JobId:
    """Make a dead letter with an error and a time of death."""
    job_id = enqueue(connection, **fields)
    settle(connection, claim_one(connection), ENDINGS["bury"])
    connection.execute(
        "update pgnotifyq.dead_letter_jobs set error_message = %s, died_at = %s, queue_name = %s where id = %s",
        (error, died_at, queue, job_id),
    )
    return job_id


OTHERS = {
    "queue": DeadFilter(queue="default"),
    "job type": DeadFilter(job_type="other"),
    "tenant": DeadFilter(org_id=OrgId(UUID(int=8))),
    "error": DeadFilter(error="no route"),
    "time": DeadFilter(died_after=THEN),
    "fingerprint": DeadFilter(fingerprint="0" * 16),
}


@pytest.mark.parametrize("name", OTHERS)
def test_each_filter(connection: Link, name: str) -> None:
    """It is kept by each reader, and by a requeue; all filters together find what fits them all."""
    other = OTHERS[name]
    job_id = bury(connection, "No Host 5", queue="other", job_type="mine", org_id=ORG)
    (group,) = ask_blocking(connection, look.list_dead_groups(SCHEMA))
    mine = DeadFilter(
        queue="other", job_type="mine", org_id=ORG, error="no hOST", died_after=THEN - timedelta(seconds=1),
        fingerprint=group.fingerprint,
    )  # fmt: skip
    assert [letter.id for letter in ask_blocking(connection, look.list_dead(SCHEMA, mine))] == [job_id]
    assert ask_blocking(connection, look.list_dead(SCHEMA, other)) == []
    assert ask_blocking(connection, look.count_dead(SCHEMA, other)) == 0
    if other.fingerprint is None:
        assert ask_blocking(connection, look.list_dead_groups(SCHEMA, other)) == []
    assert ask_blocking(connection, end.requeue_all(SCHEMA, other)) == 0
    assert ask_blocking(connection, look.count_dead(SCHEMA, mine)) == 1
    assert ask_blocking(connection, end.requeue_all(SCHEMA, mine)) == 1


@pytest.mark.parametrize(
    ("one", "other", "are_alike"),
    [
        ("user 17 is gone", "user 18 is gone", True),
        ("KeyError: 'ann'", "KeyError: 'bob é'", True),
        ("no 0190a7b2-1c4d-7f00-8000-0123456789ab", "no 0190a7b2-1c4d-7f00-8000-0123456789ac", True),
        ("at 0x7fe98c4ace00", "at 0x7fe98c4acf11", True),
        ("took 1.5 s\nin line 3", "took 20 s\nin another file", True),
        ("user is gone", "order is gone", False),
        ("KeyError: 'ann'", "ValueError: 'ann'", False),
        ("", "user is gone", False),
    ],
)
def test_fingerprint(connection: Link, one: str, other: str, are_alike: bool) -> None:
    """Errors are of one kind if their first lines differ in ids, numbers and quoted text alone."""
    statement = "select pgnotifyq.fingerprint(%s) = pgnotifyq.fingerprint(%s)"
    assert value(connection, statement, one, other) is are_alike


def test_groups(connection: Link) -> None:
    """The largest first, with what its letters have in common; one without an error has a group, too."""
    first = bury(connection, "no user 1", job_type="a", queue="other")
    last = bury(connection, "no user 2", job_type="b", died_at=THEN + timedelta(hours=1))
    bury(connection, "full")
    connection.execute("update pgnotifyq.dead_letter_jobs set error_message = null where error_message = 'full'")
    users, none = ask_blocking(connection, look.list_dead_groups(SCHEMA))
    assert attrs_of(users) == (
        "no user <n>",
        2,
        ["a", "b"],
        ["default", "other"],
        THEN,
        THEN + timedelta(hours=1),
        last,
        "no user 2",
    )
    assert (none.letters, none.error_message) == (1, None)
    only = DeadFilter(fingerprint=users.fingerprint)
    assert [letter.id for letter in ask_blocking(connection, look.list_dead(SCHEMA, only))] == [last, first]


def attrs_of(group: look.DeadGroup) -> tuple[Any, ...]:
    """Return all of a group but its fingerprint."""
    return (
        group.error_pattern, group.letters, group.job_types, group.queue_names, group.first_died_at, group.last_died_at,
        group.last_id, group.error_message,
    )  # fmt: skip


def test_requeue_at_a_rate(connection: Link) -> None:
    """They fall due one after the other, those that died first first, behind a batch before."""
    ids = [bury(connection, "full", died_at=THEN + timedelta(seconds=n)) for n in range(3)]
    connection.execute("set pgnotifyq.clock = '2026-02-01 00:00:00+00'")
    assert ask_blocking(connection, end.requeue_all(SCHEMA, limit=2, per_second=0.1)) == 2
    assert ask_blocking(connection, end.requeue_all(SCHEMA, per_second=0.1, delay_seconds=20.0)) == 1
    due = [existing(connection, job_id)["scheduled_at"] for job_id in ids]
    assert [datetime.fromisoformat(str(at)).second for at in due] == [0, 10, 20]


@pytest.mark.parametrize(("per_second", "delay_seconds"), [(0.0, 0.0), (-1.0, 0.0), (float("nan"), 0.0), (1.0, -1.0)])
def test_rate_out_of_range(connection: Link, per_second: float, delay_seconds: float) -> None:
    """It is refused before anything is asked."""
    with pytest.raises(ConfigError):
        end.requeue_all(SCHEMA, per_second=per_second, delay_seconds=delay_seconds)


@pytest.mark.parametrize("per_second", ["0", "-1", "NaN", "-Infinity"])
def test_rate_out_of_range_by_sql(connection: Link, per_second: str) -> None:
    """It is refused, also where there is no dead letter, and none is requeued."""
    bury(connection, "full")
    with pytest.raises(psycopg.Error, match="is out of range") as refused:
        connection.execute("select pgnotifyq.requeue_all(per_second => %s::float8)", (per_second,))
    assert refused.value.sqlstate == "PNQ02"
    assert len(ask_blocking(connection, look.list_dead(SCHEMA, DeadFilter()))) == 1


def test_get_finds_the_dead(connection: Link) -> None:
    """As the job that it was; one that is nowhere is None; one that was requeued is a job again."""
    job_id = bury(connection, "full", payload='{"n": 1}', priority=3)
    job = ask_blocking(connection, look.find_job(SCHEMA, job_id))
    assert job is not None and job.is_finished
    assert (job.status, job.label, job.payload, job.priority, job.error_message, job.completed_at) == (
        "dead", "dead", {"n": 1}, 3, "full", THEN,
    )  # fmt: skip
    assert ask_blocking(connection, look.find_job(SCHEMA, JobId(UUID(int=1)))) is None
    fetch(connection, "select pgnotifyq.requeue(%s)", job_id)
    again = ask_blocking(connection, look.find_job(SCHEMA, job_id))
    assert again is not None and again.status == "pending"
