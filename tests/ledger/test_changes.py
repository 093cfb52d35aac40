"""What waits is edited, one job or many; many jobs are cancelled or deleted, a batch at a time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from uuid import UUID

import psycopg
import pytest

from pgnotifyq.ledger import changes, look
from pgnotifyq.ledger.changes import Edit, JobFilter
from pgnotifyq.model.errors import ConfigError, InvalidJob, InvalidName, PayloadTooLarge
from pgnotifyq.model.job import JobId, OrgId
from pgnotifyq.model.new_job import org_id_of
from pgnotifyq.wire.asking import ask_blocking
from pgnotifyq.wire.blocking import Connection
from tests.ledger.support import ENDINGS, SCHEMA, claim_one, enqueue, everything, existing, fetch, history, row, settle, value

Link = Connection[Any]
ORG = OrgId(UUID(int=7))
THEN = datetime(2030, 1, 1, tzinfo=UTC)
ALL = JobFilter()
WRITTEN = {"ctid", "xmin"}  # what differs of any row that was written


def test_each_edit(connection: Link) -> None:
    """It changes what it says, and nothing else."""
    job_id = enqueue(connection, queue_name="default", payload='{"a": 1}')
    before = existing(connection, job_id)
    whole = Edit(queue="other", priority=-5, scheduled_at=THEN, payload={"b": [None]})
    assert ask_blocking(connection, changes.edit(SCHEMA, job_id, whole)) == "edited"
    after = existing(connection, job_id)
    changed = {name: after[name] for name in after if after[name] != before[name] and name not in WRITTEN}
    assert changed.pop("scheduled_at").startswith("2030-01-01")
    assert changed == {"queue_name": "other", "priority": -5, "payload": {"b": [None]}}
    for one in (Edit(queue="default"), Edit(priority=0), Edit(payload={"a": 1}), Edit(delay_seconds=0.0)):
        assert ask_blocking(connection, changes.edit(SCHEMA, job_id, one)) == "edited"
    last = existing(connection, job_id)
    assert {name for name in last if last[name] != before[name]} - WRITTEN == {"scheduled_at"}
    assert claim_one(connection).id == job_id, "it is due now"


def test_what_does_not_wait(connection: Link) -> None:
    """Nothing is written of a job that runs, has ended, is dead, or is nowhere."""
    running = enqueue(connection)
    job = claim_one(connection)
    change = Edit(priority=5)
    before = everything(connection)
    assert ask_blocking(connection, changes.edit(SCHEMA, running, change)) == "running"
    assert ask_blocking(connection, changes.edit(SCHEMA, JobId(UUID(int=1)), change)) == "unknown"
    assert everything(connection) == before
    settle(connection, job, ENDINGS["complete"])
    assert ask_blocking(connection, changes.edit(SCHEMA, running, change)) == "finished"
    dead = enqueue(connection)
    settle(connection, claim_one(connection), ENDINGS["bury"])
    assert ask_blocking(connection, changes.edit(SCHEMA, dead, change)) == "finished"


def test_a_job_that_was_moved_stays_there(connection: Link) -> None:
    """A worker that publishes the handler's queue takes no job out of the queue that somebody has said."""
    job_id = value(connection, "select pgnotifyq.enqueue('noop')")
    ask_blocking(connection, changes.edit(SCHEMA, job_id, Edit(queue="other")))
    assert not existing(connection, job_id)["queue_not_said"]


REFUSED: list[tuple[dict[str, Any], type[Exception]]] = [
    ({}, InvalidJob),
    ({"queue": "no such name"}, InvalidName),
    ({"priority": 40_000}, InvalidJob),
    ({"scheduled_at": datetime(2030, 1, 1)}, InvalidJob),  # noqa: DTZ001  # it is refused
    ({"scheduled_at": THEN, "delay_seconds": 1.0}, InvalidJob),
    ({"delay_seconds": -1.0}, InvalidJob),
    ({"payload": "x" * 1_048_577}, PayloadTooLarge),
]


@pytest.mark.parametrize("place", range(len(REFUSED)))
def test_edits_that_are_refused(place: int) -> None:
    """Before anything is asked."""
    fields, error = REFUSED[place]
    with pytest.raises(error):
        Edit(**fields)


@pytest.mark.parametrize(
    "said",
    [
        "queue_name => 'no such name'",
        "priority => 40000",
        "scheduled_at => 'infinity'",
        "delay_seconds => -1",
        "payload => to_jsonb(repeat('x', 1048577))",
    ],
)
def test_edits_that_sql_refuses(connection: Link, said: str) -> None:
    """With our own state; the job stays as it is."""
    job_id = enqueue(connection)
    before = existing(connection, job_id)
    with pytest.raises(psycopg.Error) as raised:
        fetch(connection, f"select pgnotifyq.edit(%s, {said})", job_id)
    assert raised.value.sqlstate == "PNQ02"
    assert existing(connection, job_id) == before


OTHERS = {
    "queue": {"queue": "default"},
    "job type": {"job_type": "other"},
    "tenant": {"org_id": OrgId(UUID(int=8))},
    "status": {"status": "pending"},
    "error": {"error": "no route"},
    "time after": {"created_after": THEN},
    "time before": {"created_before": datetime(2020, 1, 1, tzinfo=UTC)},
}


@pytest.mark.parametrize("name", OTHERS)
def test_each_filter(connection: Link, name: str) -> None:
    """It is kept by the count and by each action; all filters together find what fits them all."""
    job_id = enqueue(connection, "mine", queue_name="mine", org_id=ORG, scheduled_at=THEN)
    connection.execute("update pgnotifyq.jobs set error_message = 'No Host' where id = %s", (job_id,))
    mine = JobFilter(
        queue="mine", job_type="mine", org_id=ORG, status="scheduled", error="no hOST",
        created_after=datetime(2020, 1, 1, tzinfo=UTC), created_before=datetime(2100, 1, 1, tzinfo=UTC),
    )  # fmt: skip
    other = JobFilter(**OTHERS[name])  # type: ignore[arg-type]  # of each its own
    assert ask_blocking(connection, changes.count_jobs(SCHEMA, mine)) == 1
    assert ask_blocking(connection, changes.count_jobs(SCHEMA, other)) == 0
    before = everything(connection)
    for action in ("cancel", "delete", "edit"):
        batch = ask_blocking(connection, changes.change_all(SCHEMA, action, other, change=Edit(priority=1)))
        assert batch == changes.Batch(done=0, refused=0, after_id=None)
    assert everything(connection) == before
    assert (ask_blocking(connection, changes.change_all(SCHEMA, "edit", mine, change=Edit(priority=1)))).done == 1
    assert (ask_blocking(connection, changes.change_all(SCHEMA, "delete", mine))).done == 1


@pytest.mark.parametrize("name", ["acme", 42, str(ORG), ORG])
def test_tenant_by_any_name(name: str | int | UUID) -> None:
    """It is taken as everywhere: by its id, its name or its number."""
    assert JobFilter(org_id=name).org_id == org_id_of(name)


def test_name_of_no_tenant() -> None:
    """It is refused."""
    with pytest.raises(InvalidJob, match="names no tenant"):
        JobFilter(org_id="")


@pytest.mark.parametrize("given", [{"status": "dead"}, {"status": "nonsense"}])
def test_status_that_is_none(given: dict[str, Any]) -> None:
    """It is refused."""
    with pytest.raises(ConfigError):
        JobFilter(**given)


def test_time_without_a_zone() -> None:
    """It is refused."""
    with pytest.raises(InvalidJob):
        JobFilter(created_after=datetime(2030, 1, 1))  # noqa: DTZ001  # it is refused


def test_bulk_goes_on_where_it_was_stopped(connection: Link) -> None:
    """Batch after batch, each job once; the last says that it is the last."""
    ids = [enqueue(connection) for _ in range(5)]
    done, after_id, batches = 0, None, 0
    while True:
        batch = ask_blocking(connection, changes.change_all(SCHEMA, "cancel", ALL, why="enough", after_id=after_id, limit=2))
        done, after_id, batches = done + batch.done, batch.after_id, batches + 1
        if after_id is None:
            break
        assert after_id == ids[2 * batches - 1]
    assert (done, batches) == (5, 3)
    assert {(job.status, job.error_message) for job in ask_blocking(connection, look.list_jobs(SCHEMA))} == {
        ("cancelled", "enough")
    }


@pytest.mark.parametrize(
    ("action", "left"),
    [("cancel", ["cancelled", "cancelled", "completed"]), ("delete", ["running"]), ("edit", ["completed", "pending", "running"])],
)
def test_what_each_action_leaves(connection: Link, action: Literal["cancel", "delete", "edit"], left: list[str]) -> None:
    """A cancel stops what runs, a delete takes what nobody holds, with its history, and an edit changes what waits."""
    completed = enqueue(connection)
    settle(connection, claim_one(connection), ENDINGS["complete"])
    enqueue(connection)
    claim_one(connection)
    pending = enqueue(connection)
    batch = ask_blocking(connection, changes.change_all(SCHEMA, action, ALL, change=Edit(priority=9)))
    assert (batch.done, batch.refused) == ({"edit": 1}.get(action, 2), 0)
    assert sorted(job.status for job in ask_blocking(connection, look.list_jobs(SCHEMA))) == left
    if action == "delete":
        assert row(connection, completed) is None and history(connection, completed) == []
    if action == "edit":
        assert existing(connection, pending)["priority"] == 9


def test_job_that_a_trigger_keeps(connection: Link) -> None:
    """It is counted as refused, and stays; the others are changed."""
    kept, *others = [enqueue(connection, payload=payload) for payload in ('{"keep": true}', "{}", "{}")]
    with connection.transaction(force_rollback=True):
        connection.execute(
            "create function pgnotifyq.test_keep() returns trigger language plpgsql as"
            " $$ begin if old.payload ? 'keep' then raise 'kept' using errcode = '23514'; end if; return new; end $$;"
            " create trigger test_keep before update on pgnotifyq.jobs for each row execute function pgnotifyq.test_keep()"
        )
        batch = ask_blocking(connection, changes.change_all(SCHEMA, "cancel", ALL))
        assert (batch.done, batch.refused) == (2, 1)
        assert [existing(connection, job_id)["status"] for job_id in (kept, *others)] == [
            "pending",
            "cancelled",
            "cancelled",
        ]


def test_bulk_that_is_not_known(connection: Link) -> None:
    """An action of another name is refused, and so is a value of an edit: no row is to blame."""
    enqueue(connection)
    for said in ("'nonsense'", "null", "'edit', priority => 40000"):
        with pytest.raises(psycopg.Error) as raised:
            fetch(connection, f"select pgnotifyq.change_all({said})")
        assert raised.value.sqlstate == "PNQ02"


def test_delay_is_from_now(connection: Link) -> None:
    """On the database's clock."""
    connection.execute("set pgnotifyq.clock = '2029-12-31 23:59:50+00'")
    job_id = enqueue(connection)
    ask_blocking(connection, changes.edit(SCHEMA, job_id, Edit(delay_seconds=10.0)))
    found = ask_blocking(connection, look.get_job(SCHEMA, job_id))
    assert found is not None and found.scheduled_at - THEN == timedelta(0)
