"""Whom followers are told of, and who may follow: a tenant and a producer, beside others."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from psycopg import errors

from pgnotifyq.ledger import bulk, end, watching
from pgnotifyq.model.job import JobId, OrgId
from pgnotifyq.model.new_job import NewJob
from pgnotifyq.model.unique import Unique
from pgnotifyq.wire.asking import ask_blocking
from pgnotifyq.wire.blocking import Connection
from tests.ledger.support import SCHEMA, claim_one, enqueue, fetch, lease, value
from tests.ledger.test_tenants import OURS, THEIRS, as_tenant
from tests.ledger.test_watching import ME, Ears, log

Link = Connection[Any]


@pytest.fixture
def ears(other: Link) -> Ears:
    ears = Ears(other)
    ears.open()
    return ears


def test_what_a_tenant_does_is_told_to_all(connection: Link, ears: Ears) -> None:
    """A session that is confined to a tenant tells who follows all, though it may not see who that is."""
    ask_blocking(connection, watching.follow_events(SCHEMA, ME))
    fetch(connection, "select set_config('pgnotifyq.org_id', %s, false)", str(OURS))
    enqueue(connection, org_id=OURS)
    assert value(connection, "select current_setting('pgnotifyq.tells')") == ""
    fetch(connection, "select set_config('pgnotifyq.org_id', '', false)")
    assert ears.hear() == ["enqueued"]


@pytest.mark.parametrize("jobs", [1, 40])
def test_what_a_tenant_does_where_row_security_binds_the_owner(plain: Link, jobs: int) -> None:
    """The same of each thing that a tenant's session can do, where the functions' owner is no superuser."""
    schema = str(value(plain, "select current_user::text"))
    ears = Ears(plain, schema)
    ears.open()
    ask_blocking(plain, watching.follow_events(schema, ME))
    fetch(plain, "select set_config('pgnotifyq.org_id', %s, false)", str(OURS))
    made = [
        NewJob(job_type="noop", org_id=OrgId(OURS), unique=Unique(key=f"k{number}", on_conflict="replace"))
        for number in range(jobs)
    ]
    ids = ask_blocking(plain, bulk.enqueue_many(schema, made))
    assert ears.hear() == ["enqueued"] * jobs
    assert ask_blocking(plain, bulk.enqueue_many(schema, made)) == ids
    assert ears.hear() == ["edited"] * jobs
    ask_blocking(plain, end.cancel(schema, ids[0]))
    assert ears.hear() == ["ended 0 cancelled"]


def test_a_tenant_follows_its_own(connection: Link, ears: Ears) -> None:
    """Whatever tenant its session says; and of another tenant's job it hears nothing."""
    theirs = enqueue(connection, org_id=THEIRS)
    fetch(connection, "select set_config('pgnotifyq.org_id', %s, false)", str(OURS))
    ask_blocking(connection, watching.follow_events(SCHEMA, ME, org_id=THEIRS))  # type: ignore[arg-type]
    ask_blocking(connection, watching.follow(SCHEMA, uuid.uuid4(), JobId(theirs)))
    fetch(connection, "select set_config('pgnotifyq.org_id', '', false)")
    assert value(connection, "select array_agg(distinct org_id) from pgnotifyq.followers") == [OURS]
    claim_one(connection)
    enqueue(connection, org_id=OURS)
    assert ears.hear() == ["enqueued"]


def test_a_tenants_role_sees_no_followers_and_its_own_logs(connection: Link) -> None:
    """The table of followers is closed to it; of logs it reads its own, and writes none."""
    for org_id in (OURS, THEIRS):
        enqueue(connection, org_id=org_id)
        job = claim_one(connection)
        ask_blocking(connection, watching.keep_logs(SCHEMA, [log(lease(job), "[]")]))
    with as_tenant(connection, OURS):
        assert value(connection, "select array_agg(org_id) from pgnotifyq.job_logs") == [OURS]
    for statement in (
        "select from pgnotifyq.followers",
        "delete from pgnotifyq.job_logs",
        "insert into pgnotifyq.followers (id, until) values (gen_random_uuid(), now())",
    ):
        with as_tenant(connection, OURS):
            fetch(connection, "select set_config('pgnotifyq.tells', 'yes', true)")
            with pytest.raises(errors.InsufficientPrivilege):
                fetch(connection, statement)


def test_a_worker_that_may_not_read_followers(connection: Link, ears: Ears) -> None:
    """Claims all the same, as one does whose rights were given by hand before there were followers; nobody is told."""
    role = f"w{uuid.uuid4().hex[:12]}"
    enqueue(connection)
    ask_blocking(connection, watching.follow_events(SCHEMA, ME))
    with connection.transaction(force_rollback=True):
        fetch(connection, f"create role {role}")
        fetch(connection, f"grant usage on schema pgnotifyq to {role}")
        fetch(connection, f"grant all on all tables in schema pgnotifyq to {role}")
        fetch(connection, f"revoke all on pgnotifyq.followers from {role}")
        fetch(connection, f"set local role {role}")
        claim_one(connection)
    assert ears.hear() == []
