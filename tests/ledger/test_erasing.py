"""What is kept of somebody is erased: everywhere, in batches, and with a row of the trail that says so without the data."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import psycopg
import pytest

from pgnotifyq.ledger import organisation, retention
from pgnotifyq.ledger.retention import EraseFilter
from pgnotifyq.model.credentials import SealedCredential
from pgnotifyq.model.errors import InvalidJob, MissingRights
from pgnotifyq.model.job import JobId, OrgId
from pgnotifyq.wire.asking import ask_blocking
from pgnotifyq.wire.blocking import Connection
from tests.ledger.conftest import TABLES
from tests.ledger.support import (
    BLOCKED,
    ENDINGS,
    SCHEMA,
    at_once,
    claim,
    claim_one,
    enqueue,
    existing,
    fetch,
    lease,
    row,
    settle,
    until,
    value,
)
from tests.ledger.test_keeping import ORPHANS

Link = Connection[Any]
ORG, OTHER = OrgId(UUID(int=7)), OrgId(UUID(int=8))
MARK = "secret marker"  # what must not be found anywhere afterwards
WHOLE = EraseFilter(org_id=ORG)
# Tables that have rows of a tenant, or of a job. A new one must go with an erasure: put it in here when it does.
OF_SOMEBODY = {
    "jobs", "job_executions", "executions", "dead_letter_jobs", "job_troubles", "org_config", "org_credentials", "org_names", "org_audit",
    "schedules", "schedule_ticks", "job_logs",
    "stack_requests",  # gone after ten minutes
    "fences",  # gone with the transaction
    "followers",  # gone a minute after who followed
}  # fmt: skip


def fill(connection: Link, org_id: OrgId) -> JobId:
    """Leave something of a tenant wherever something can be; return the job that runs."""
    payload = f'{{"user": 17, "text": "{MARK}"}}'
    given: dict[str, Any] = {"org_id": org_id, "payload": payload, "headers": f'{{"h": "{MARK}"}}'}
    enqueue(connection, priority=9, **given)
    settle(connection, claim_one(connection), ENDINGS["bury"])
    done = enqueue(connection, priority=8, **given)
    settle(connection, claim_one(connection), ENDINGS["complete"])
    connection.execute(
        "update pgnotifyq.jobs set result = to_jsonb(%s::text), progress_message = %s where id = %s", (MARK, MARK, done)
    )
    enqueue(connection, priority=7, **given)
    settle(connection, claim_one(connection), ENDINGS["retry"])
    running = enqueue(connection, priority=6, **given)
    claim_one(connection)
    enqueue(connection, unique_key=MARK, **given)
    connection.execute("update pgnotifyq.jobs set saved = to_jsonb(%s::text) where id in (%s, %s)", (MARK, done, running))
    connection.execute("update pgnotifyq.dead_letter_jobs set saved = to_jsonb(%s::text) where org_id = %s", (MARK, org_id))
    connection.execute(
        "insert into pgnotifyq.job_logs (org_id, job_id, execution_id, attempt, head)"
        " select e.org_id, e.job_id, e.id, e.attempt, %s from pgnotifyq.job_executions as e where e.org_id = %s",
        (MARK, org_id),
    )
    connection.execute(
        "select pgnotifyq.schedule('nightly', '0 3 * * *', 'noop', to_jsonb(%s::text), org_id => %s)", (MARK, org_id)
    )
    connection.execute("update pgnotifyq.job_executions set error_message = %s where org_id = %s", (MARK, org_id))
    connection.execute("update pgnotifyq.dead_letter_jobs set error_message = %s where org_id = %s", (MARK, org_id))
    connection.execute("select pgnotifyq.note_trouble(%s, %s, 'prune', '23503', %s)", (org_id, done, MARK))
    # History whose job was deleted by who may not delete history.
    connection.execute(
        "insert into pgnotifyq.job_executions (id, job_id, org_id, attempt, outcome, started_at, ended_at, error_message)"
        " values (gen_random_uuid(), gen_random_uuid(), %s, 1, 'failed', now(), now(), %s)",
        (org_id, MARK),
    )
    ask_blocking(connection, organisation.set_config(SCHEMA, org_id, "greeting", MARK))
    ask_blocking(
        connection, organisation.set_credential(SCHEMA, SealedCredential(org_id=org_id, name="key", key_id="k", sealed=MARK))
    )
    return running


def traces(connection: Link, condition: str = "true") -> dict[str, int]:
    """Return how many rows of each table hold the mark."""
    found: dict[str, int] = {}
    for table in TABLES:
        count = value(
            connection, f"select count(*) from pgnotifyq.{table} as t where {condition} and t::text like '%%' || %s || '%%'", MARK
        )
        found |= {table: count} if count else {}
    return found


def of_tenant(connection: Link, org_id: OrgId) -> dict[str, list[Any]]:
    """Return the rows of a tenant, by table, with their versions."""
    tables = fetch(
        connection,
        "select c.relname::text from pg_class as c join pg_attribute as a on a.attrelid = c.oid"
        " where c.relnamespace = 'pgnotifyq'::regnamespace and c.relkind = 'r' and a.attname = 'org_id' and not a.attisdropped",
    )
    rows = {
        table: fetch(connection, f"select t.xmin::text, t::text from pgnotifyq.{table} as t where org_id = %s", org_id)
        for (table,) in tables
    }
    return {table: found for table, found in rows.items() if found}


def test_every_table_is_thought_of(connection: Link) -> None:
    """A table with rows of a tenant or of a job is one that an erasure knows, or that goes with the job."""
    found = fetch(
        connection,
        "select distinct c.relname::text from pg_class as c join pg_attribute as a on a.attrelid = c.oid"
        " where c.relnamespace = 'pgnotifyq'::regnamespace and c.relkind in ('r', 'v')"
        " and a.attname in ('org_id', 'job_id', 'execution_id', 'payload') and not a.attisdropped",
    )
    assert {table for (table,) in found} == OF_SOMEBODY


def test_whole_tenant(connection: Link) -> None:
    """All of it goes, what ran at last; the trail stays, and says who, why and how many. Another tenant's rows keep their bytes."""
    ask_blocking(connection, organisation.name_org(SCHEMA, "acme"))
    fill(connection, OTHER)
    others = of_tenant(connection, OTHER)
    running = fill(connection, ORG)
    assert ask_blocking(connection, retention.count_erasable(SCHEMA, WHOLE)) == retention.Erasable(jobs=4, held=1, letters=1)
    erased = ask_blocking(connection, retention.erase(SCHEMA, WHOLE, why="request 4711", who="Ann"))
    assert (erased.jobs, erased.letters, erased.held, erased.refused, erased.is_whole) == (3, 1, 1, 0, False)
    stopping = existing(connection, running)
    assert (stopping["status"], stopping["error_message"], stopping["is_held"]) == ("cancelled", "erased", True)
    assert traces(connection, f"to_jsonb(t)->>'org_id' = '{ORG}'") == {"jobs": 1}
    connection.execute(
        "update pgnotifyq.jobs set current_execution_id = null, locked_by = null, lease_expires_at = null where id = %s",
        (running,),
    )
    again = ask_blocking(connection, retention.erase(SCHEMA, WHOLE, why="request 4711", who="Ann"))
    assert (again.jobs, again.letters, again.is_whole) == (1, 0, True)
    assert traces(connection, f"to_jsonb(t)->>'org_id' = '{ORG}'") == {}
    left = of_tenant(connection, ORG)
    assert left.keys() == {"org_audit"}
    trail = ask_blocking(connection, organisation.list_audit(SCHEMA, ORG, action="erase"))
    first = [each.details for each in trail if each.details["erasure"] == str(erased.erasure_id)]
    assert {each["what"]: each.get("erased") for each in first} == {"jobs": 3, "letters": 1, "tenant": None}
    assert all((each["who"], each["why"], each["by"]) == ("Ann", "request 4711", ["org_id"]) for each in first)
    assert {each.written_by for each in trail} == {value(connection, "select session_user::text")}
    assert of_tenant(connection, OTHER) == others


def test_name_of_a_tenant(connection: Link) -> None:
    """It goes with the tenant, and with nothing less."""
    org_id = OrgId(ask_blocking(connection, organisation.name_org(SCHEMA, "acme")))
    ask_blocking(connection, retention.erase(SCHEMA, EraseFilter(org_id=org_id, payload={"user": 17})))
    assert value(connection, "select count(*) from pgnotifyq.org_names") == 1
    ask_blocking(connection, retention.erase(SCHEMA, EraseFilter(org_id=org_id)))
    assert value(connection, "select count(*) from pgnotifyq.org_names") == 0


def test_by_what_the_payload_contains(connection: Link) -> None:
    """Of every tenant, hooks included, each of whom has a row in its trail; what does not contain it keeps its bytes."""
    for org_id in (ORG, OTHER):
        enqueue(connection, org_id=org_id, payload=f'{{"user": 17, "more": ["{MARK}"]}}')
    enqueue(connection, "on_dead.tell", org_id=ORG, payload=f'{{"job_id": 1, "payload": {{"user": 17, "text": "{MARK}"}}}}')
    stays = [enqueue(connection, payload=payload) for payload in ('{"user": 18}', '{"user": "17"}', '[{"user": 17}]', "17")]
    before = [row(connection, job_id) for job_id in stays]
    only = EraseFilter(payload={"user": 17})
    assert (ask_blocking(connection, retention.count_erasable(SCHEMA, only))).jobs == 3
    erased = ask_blocking(connection, retention.erase(SCHEMA, only, why="request 1"))
    assert (erased.jobs, erased.is_whole) == (3, True)
    assert [row(connection, job_id) for job_id in stays] == before
    trail = {each.org_id: each.details for each in ask_blocking(connection, organisation.list_audit(SCHEMA))}
    assert {org_id: (each["erased"], each["by"]) for org_id, each in trail.items()} == {
        ORG: (2, ["payload"]),
        OTHER: (1, ["payload"]),
    }
    assert traces(connection) == {}


def test_by_key_and_all_that_is_given_must_fit(connection: Link) -> None:
    """A key in any state of the job; a queue, a type and a tenant narrow it."""
    for queue in ("default", "other"):
        enqueue(connection, unique_key="k", queue_name=queue, payload='{"user": 17}', org_id=ORG)
        (job,) = claim(connection, queues=[queue])
        settle(connection, job, ENDINGS["complete" if queue == "default" else "bury"])
    for wrong in ({"queue": "third"}, {"job_type": "other"}, {"org_id": OTHER}, {"payload": {"user": 18}}):
        only = EraseFilter(**{"unique_key": "k", **wrong})  # type: ignore[arg-type]  # of each its own
        erased = ask_blocking(connection, retention.erase(SCHEMA, only))
        assert (erased.jobs, erased.letters) == (0, 0)
    assert value(connection, "select count(*) from pgnotifyq.org_audit") == 0
    only = EraseFilter(unique_key="k", queue="default", job_type="noop", org_id=ORG, payload={"user": 17})
    erased = ask_blocking(connection, retention.erase(SCHEMA, only))
    assert (erased.jobs, erased.letters) == (1, 0)
    erased = ask_blocking(connection, retention.erase(SCHEMA, EraseFilter(unique_key="k")))
    assert (erased.jobs, erased.letters) == (0, 1)
    assert value(connection, "select count(*) from pgnotifyq.job_executions") == 0


def test_erasure_that_was_interrupted(connection: Link) -> None:
    """What was erased is gone, and has its row in the trail; the next call finds the rest."""
    for _ in range(5):
        enqueue(connection, org_id=ORG)
    batch = ask_blocking(connection, retention.erase_batch(SCHEMA, WHOLE, erasure_id=UUID(int=1), limit=2))
    assert (batch.jobs_erased, batch.next_stage) == (2, "jobs")
    erased = ask_blocking(connection, retention.erase(SCHEMA, WHOLE, limit=2))
    assert (erased.jobs, erased.is_whole) == (3, True)
    details = [each.details for each in ask_blocking(connection, organisation.list_audit(SCHEMA, ORG))]
    assert sum(each.get("erased", 0) for each in details) == 5
    assert len({each["erasure"] for each in details}) == 2


def test_job_that_somebody_has_locked(connection: Link, other: Link) -> None:
    """Nobody waits for it. It is told as held, and the next call erases it."""
    locked, _ = [enqueue(connection, org_id=ORG) for _ in range(2)]
    with other.transaction():
        other.execute("select from pgnotifyq.jobs where id = %s for update", (locked,))
        erased = ask_blocking(connection, retention.erase(SCHEMA, WHOLE))
        assert (erased.jobs, erased.held) == (1, 1)
    erased = ask_blocking(connection, retention.erase(SCHEMA, WHOLE))
    assert (erased.jobs, erased.is_whole) == (1, True)


def test_job_that_a_table_of_the_users_needs(connection: Link) -> None:
    """It stays, is told as refused, and holds up no other."""
    kept, *_ = [enqueue(connection, org_id=ORG) for _ in range(3)]
    with connection.transaction(force_rollback=True):
        connection.execute("create table public.orders (job_id uuid references pgnotifyq.jobs (id))")
        connection.execute("insert into public.orders values (%s)", (kept,))
        erased = ask_blocking(connection, retention.erase(SCHEMA, WHOLE))
        assert (erased.jobs, erased.held, erased.refused) == (2, 0, 1)
        assert row(connection, kept) is not None


@pytest.mark.parametrize("write", ["claim", "complete", "retry", "bury"])
def test_erasure_that_meets_a_worker(connection: Link, other: Link, write: str) -> None:
    """What a worker has written and not committed is held; when it is over, the next call takes it, and no history is left."""
    job_id = enqueue(connection, org_id=ORG)
    job = None if write == "claim" else claim_one(connection)
    with connection.transaction():
        if job is None:
            job = claim_one(connection)
        else:
            settle(connection, job, ENDINGS[write])
        erased = ask_blocking(other, retention.erase(SCHEMA, WHOLE))
        assert (erased.jobs, erased.letters, erased.held) == (0, 0, 1)
    erased = ask_blocking(other, retention.erase(SCHEMA, WHOLE))
    if write == "claim":
        assert (erased.jobs, erased.held) == (0, 1)
        assert settle(connection, job, ENDINGS["complete"]) == "cancelled"
        erased = ask_blocking(other, retention.erase(SCHEMA, WHOLE))
    assert (erased.jobs + erased.letters, erased.is_whole) == (1, True)
    assert row(connection, job_id) is None
    assert value(connection, ORPHANS) == 0


def test_worker_that_meets_an_erasure(connection: Link, other: Link, dsn: str) -> None:
    """A settlement that waits for an erasure is told that its job was cancelled, and leaves it erasable."""
    enqueue(connection, org_id=ORG)
    job = claim_one(connection)
    became: list[str | None] = []

    def complete() -> None:
        became.append(settle(other, job, ENDINGS["complete"]))

    with at_once() as start, connection.transaction():
        ask_blocking(connection, retention.erase(SCHEMA, WHOLE))
        start(complete)
        until(dsn, BLOCKED, "other")
    assert became == ["cancelled"]
    assert (ask_blocking(connection, retention.erase(SCHEMA, WHOLE))).jobs == 1
    assert value(connection, ORPHANS) == 0
    assert lease(job).job_id == job.id


def test_in_sql(connection: Link) -> None:
    """One statement erases all of it, or counts what it cannot."""
    for _ in range(3):
        enqueue(connection, org_id=ORG, payload='{"user": 17}')
    claim_one(connection)
    told = fetch(
        connection,
        "select jobs_erased, letters_erased, held, refused from pgnotifyq.erase(payload => '{\"user\": 17}', why => 'request 1')",
    )
    assert told == [(2, 0, 1, 0)]
    connection.execute("select pgnotifyq.erase(org_id => %s)", (ORG,))


@pytest.mark.parametrize(
    "said",
    [
        "erase()",
        "erase(queue_name => 'default')",
        "erase(payload => '{{}}')",
        "erase(payload => '17')",
        "erase(payload => '[]')",
        "erase_batch(gen_random_uuid(), '{org}', null, null, null, null, null, null, 'nonsense', null, 1)",
        "erase_batch(gen_random_uuid(), '{org}', null, null, null, null, null, null, 'jobs', null, 0)",
        "erase_batch(null, '{org}', null, null, null, null, null, null, 'jobs', null, 1)",
        "erase_batch(gen_random_uuid(), '{org}', 'k', null, null, null, null, null, 'tenant', null, 1)",
    ],
)
def test_erasures_that_sql_refuses(connection: Link, said: str) -> None:
    """What names nobody, and a stage that is none of this erasure; nothing is written."""
    fill(connection, ORG)
    before = of_tenant(connection, ORG)
    with pytest.raises(psycopg.Error) as raised:
        fetch(connection, f"select pgnotifyq.{said.format(org=ORG)}")
    assert raised.value.sqlstate == "PNQ02"
    assert of_tenant(connection, ORG) == before


@pytest.mark.parametrize("given", [{}, {"queue": "default", "job_type": "noop"}, {"payload": {}}, {"org_id": ""}])
def test_erasures_that_are_refused(given: dict[str, Any]) -> None:
    """Before anything is asked."""
    with pytest.raises(InvalidJob):
        EraseFilter(**given)


@pytest.mark.parametrize(("kind", "may"), [("admin", True), ("worker", False), ("producer", False), ("observer", False)])
def test_who_may(connection: Link, kind: str, may: bool) -> None:
    """An admin may, with the rights that `migrate` gives it. Nobody else who was granted may, by tenant or payload."""
    fill(connection, ORG)
    with connection.transaction(force_rollback=True):
        connection.execute("create role pgnotifyq_test_erases")
        connection.execute("select pgnotifyq.grant_role(%s, 'pgnotifyq_test_erases')", (kind,))
        connection.execute("select pgnotifyq.keep_roles()")
        connection.execute("set local role pgnotifyq_test_erases")
        for only in (EraseFilter(payload={"user": 17}), WHOLE):
            if may:
                ask_blocking(connection, retention.erase(SCHEMA, only))
                continue
            with pytest.raises(MissingRights), connection.transaction():
                ask_blocking(connection, retention.erase(SCHEMA, only))
        connection.execute("reset role")
        assert (of_tenant(connection, ORG)).keys() >= {"org_audit"} if may else {"org_config"}
