"""Row security: no row of one tenant reaches another, and no table can forget it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from pgnotifyq.wire.blocking import Connection
from tests.ledger.support import ENDINGS, claim_one, enqueue, fetch, settle, tenant_role, value

Link = Connection[Any]
OURS, THEIRS = uuid.UUID(int=1), uuid.UUID(int=2)
TABLES = ("jobs", "job_executions", "dead_letter_jobs", "job_troubles")
WATCHED = ("followers", "job_logs")  # test_watching_tenants.py
DEFINERS = (
    "audit", "check_fence", "fence", "follow", "follow_events", "forget_followers", "key_holder", "lock_keys", "meet_fence",
    "note_cancel", "pass_key", "pass_keys", "run_after", "save", "tenant_key", "tenant_login", "unfollow", "unsealed",
    "wake_after_insert", "wake_after_reschedule",
)  # fmt: skip


@contextmanager
def as_tenant(connection: Link, org_id: uuid.UUID | None, *, role: str | None = None) -> Iterator[Link]:
    """Do what a handler's tenant transaction does; rolled back at the end."""
    with connection.transaction(force_rollback=True):
        connection.execute("select set_config('pgnotifyq.org_id', %s, true)", (str(org_id or ""),))
        connection.execute(f"set local role {role or tenant_role(connection)}".encode())
        yield connection


@pytest.fixture
def shared(connection: Link) -> Link:
    """Give a queue in which two tenants have a row in every table, and one job pending."""
    for org_id in (OURS, THEIRS):
        enqueue(connection, org_id=org_id)
        settle(connection, claim_one(connection), ENDINGS["bury"])
    for org_id in (OURS, THEIRS):
        job_id = enqueue(connection, org_id=org_id)
        connection.execute("select pgnotifyq.note_trouble(%s, %s, 'claim', '22008', 'a test')", (org_id, job_id))
    return connection


def test_every_table_with_a_tenant_column(connection: Link) -> None:
    """Every table with org_id has row security enabled and forced, with a policy for reading and one for writing."""
    found = fetch(
        connection,
        "select c.relname, c.relrowsecurity, c.relforcerowsecurity,"
        " exists (select from pg_policy as p where p.polrelid = c.oid and p.polqual is not null and p.polwithcheck is not null)"
        " from pg_class as c join pg_attribute as a on a.attrelid = c.oid and a.attname = 'org_id' and not a.attisdropped"
        " where c.relnamespace = 'pgnotifyq'::regnamespace and c.relkind in ('r', 'p') order by 1",
    )
    ours: tuple[str, ...] = (
        *TABLES,
        *WATCHED,
        "org_audit",
        "org_config",
        "org_credentials",
        "org_names",
    )  # these are looked at in test_organisations.py
    ours += ("schedules", "schedule_ticks", "stack_requests")  # in test_schedules.py, and in runtime/test_stacks.py
    assert found == [(table, True, True, True) for table in sorted(ours)]


def test_views_run_as_who_asks(connection: Link) -> None:
    """No view lends its owner's rights."""
    assert fetch(
        connection,
        "select relname from pg_class where relnamespace = 'pgnotifyq'::regnamespace and relkind = 'v'"
        " and not coalesce(reloptions @> array['security_invoker=true'], false)",
    ) == []  # fmt: skip


def test_functions_run_as_who_calls(connection: Link) -> None:
    """No function lends its owner's rights but those that are named here; their search path is pinned."""
    assert fetch(
        connection,
        "select proname, proconfig[1] from pg_proc where pronamespace = 'pgnotifyq'::regnamespace and prosecdef order by proname",
    ) == [(name, "search_path=pg_catalog, pg_temp") for name in DEFINERS]  # fmt: skip


@pytest.mark.parametrize("relation", [*TABLES, "executions"])
def test_tenant_sees_its_own_rows_only(shared: Link, relation: str) -> None:
    """A tenant's transaction sees its rows in every table and view, and no others."""
    whose = f"select array_agg(distinct org_id) from pgnotifyq.{relation}"
    assert value(shared, whose) == [OURS, THEIRS]
    with as_tenant(shared, OURS):
        assert value(shared, whose) == [OURS]


@pytest.mark.parametrize("relation", [*TABLES, "executions"])
def test_no_tenant_set(shared: Link, relation: str) -> None:
    """The tenant role without a tenant sees nothing."""
    with as_tenant(shared, None):
        assert value(shared, f"select count(*) from pgnotifyq.{relation}") == 0


def test_writing_for_another_tenant(shared: Link) -> None:
    """A tenant can enqueue for itself, and for nobody else."""
    with as_tenant(shared, OURS):
        assert enqueue(shared, org_id=OURS)
    for statement in (
        f"select pgnotifyq.enqueue('noop', org_id => '{THEIRS}')",
        f"insert into pgnotifyq.jobs (job_type, org_id) values ('noop', '{THEIRS}')",
    ):
        with as_tenant(shared, OURS), pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"):
            shared.execute(statement.encode())


@pytest.mark.parametrize(
    "statement",
    [
        "update pgnotifyq.jobs set org_id = org_id",
        "update pgnotifyq.jobs set attempts = 0",
        "delete from pgnotifyq.jobs",
        "insert into pgnotifyq.dead_letter_jobs select * from pgnotifyq.dead_letter_jobs",
        "select from pgnotifyq.worker_heartbeats",
        "select * from pgnotifyq.claim('00000000-0000-0000-0000-000000000001', array['default'], 1, 60)",
    ],
)
def test_what_a_tenant_may_not_do(shared: Link, statement: str) -> None:
    """A tenant has no business with claims, workers, history, or the columns of the lease."""
    shared.execute("delete from pgnotifyq.job_troubles")  # a claim passes over what is in trouble
    with as_tenant(shared, OURS), pytest.raises(psycopg.errors.InsufficientPrivilege):
        shared.execute(statement.encode())


def test_cancelling_for_another_tenant(shared: Link) -> None:
    """Another tenant's job cannot be cancelled, and is not even known to exist."""
    theirs = value(shared, "select id from pgnotifyq.jobs where org_id = %s", THEIRS)
    ours = value(shared, "select id from pgnotifyq.jobs where org_id = %s", OURS)
    with as_tenant(shared, OURS):
        assert value(shared, "select pgnotifyq.cancel(%s)", theirs) == "unknown"
        assert value(shared, "select pgnotifyq.cancel(%s)", uuid.uuid4()) == "unknown"
        assert value(shared, "select pgnotifyq.cancel(%s)", ours) == "cancelled"
        cursor = shared.execute("update pgnotifyq.jobs set status = 'cancelled' where id = %s", (theirs,))
        assert cursor.rowcount == 0


def test_id_that_another_tenant_had(connection: Link) -> None:
    """A job under an id that another tenant's dead job has: neither's history nor letter reaches the other."""
    theirs = enqueue(connection, org_id=THEIRS)
    settle(connection, claim_one(connection), ENDINGS["bury"])
    letter = fetch(connection, "select * from pgnotifyq.dead_letter_jobs")
    for _ in range(2):
        connection.execute("insert into pgnotifyq.jobs (id, org_id, job_type) values (%s, %s, 'noop')", (theirs, OURS))
        settle(connection, claim_one(connection), ENDINGS["complete"])
        connection.execute("delete from pgnotifyq.jobs")
        assert fetch(connection, "select org_id from pgnotifyq.job_executions") == [(THEIRS,)]
    connection.execute("insert into pgnotifyq.jobs (id, org_id, job_type) values (%s, %s, 'noop')", (theirs, OURS))
    settle(connection, claim_one(connection), ENDINGS["bury"])
    assert fetch(connection, "select * from pgnotifyq.dead_letter_jobs where org_id = %s", THEIRS) == letter
    assert value(connection, "select jsonb_array_length(history) from pgnotifyq.dead_letter_jobs where org_id = %s", OURS) == 1
    with as_tenant(connection, OURS):
        assert value(connection, "select count(*) from pgnotifyq.executions") == 1


def test_hook_of_a_job_that_its_tenant_cancels(connection: Link) -> None:
    """It is enqueued for the tenant, though the tenant may neither read hooks nor say what the hook is told."""
    connection.execute("insert into pgnotifyq.hooks (job_type, ending, hook_type) values ('noop', 'cancelled', 'tidy')")
    job_id = enqueue(connection, org_id=OURS)
    with as_tenant(connection, OURS):
        assert value(connection, "select pgnotifyq.cancel(%s)", job_id) == "cancelled"
        with pytest.raises(psycopg.errors.InsufficientPrivilege), connection.transaction():
            connection.execute("select from pgnotifyq.hooks")
        found = fetch(connection, "select org_id, payload ->> 'ending' from pgnotifyq.jobs where job_type = 'tidy'")
        assert found == [(OURS, "cancelled")]


def test_unique_key_of_another_tenant(connection: Link) -> None:
    """One tenant's unique key is free for another, and tells it nothing."""
    theirs = enqueue(connection, org_id=THEIRS, unique_key="k")
    with as_tenant(connection, OURS):
        assert enqueue(connection, org_id=OURS, unique_key="k") != theirs


def test_setting_alone(shared: Link) -> None:
    """Where roles may not be made the setting confines whoever is no superuser, the tables' owner too; without it all is seen."""
    everything = "select array_agg(distinct org_id) from pgnotifyq.jobs"
    with shared.transaction(force_rollback=True):
        shared.execute("create role pgnotifyq_test_owner")
        shared.execute("grant usage on schema pgnotifyq to pgnotifyq_test_owner")
        for table in (*TABLES, "worker_heartbeats"):
            shared.execute(f"alter table pgnotifyq.{table} owner to pgnotifyq_test_owner".encode())
        with as_tenant(shared, None, role="pgnotifyq_test_owner"):
            assert value(shared, everything) == [OURS, THEIRS]
        with as_tenant(shared, OURS, role="pgnotifyq_test_owner"):
            assert value(shared, everything) == [OURS]
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"):
                enqueue(shared, org_id=THEIRS)
