"""Migrating with the rights there are, and code and schema that move apart for a while."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from psycopg.conninfo import make_conninfo

from pgnotifyq.ledger import enqueue
from pgnotifyq.ledger.schema import as_script, code_version, steps
from pgnotifyq.ledger.statements import compose, files
from pgnotifyq.model.errors import ConfigError, MissingRights, SchemaOutOfDate, SchemaTooNew
from pgnotifyq.model.new_job import NewJob
from pgnotifyq.wire.asking import ask_blocking
from pgnotifyq.wire.blocking import Connection, connect
from tests.ledger.support import SCHEMA, at_once, check_schema, fetch, migrate, until, value

Link = Connection[Any]
ROLE = "pgnotifyq_test_app"  # may log in, and nothing else


@pytest.fixture
def admin(blank_dsn: str) -> Iterator[Link]:
    """Give the owner of a database without our schema, in which a role of no rights can log in."""
    with connect(blank_dsn) as admin:
        admin.execute(f"drop role if exists {ROLE}".encode())
        admin.execute(f"create role {ROLE} login password 'x'".encode())
        name = value(admin, "select current_database()")
        admin.execute(f'revoke create on database "{name}" from public'.encode())
        yield admin
        admin.execute(f"drop owned by {ROLE} cascade".encode())
        admin.execute(f"drop role {ROLE}".encode())


def as_app(blank_dsn: str) -> Link:
    """Connect as that role."""
    return connect(make_conninfo(blank_dsn, user=ROLE, password="x"))


def test_schema_that_a_dba_has_made(admin: Link, blank_dsn: str) -> None:
    """Its owner needs no right on the database: to install, to install by the script of a dry run, to upgrade, to look."""
    admin.execute(f"create schema {SCHEMA} authorization {ROLE}".encode())
    with as_app(blank_dsn) as app:
        script = as_script(migrate(app, dry_run=True), SCHEMA)
        app.execute(script.encode())
        assert check_schema(app) == code_version()
        assert migrate(app) == []
        app.execute(f"update {SCHEMA}.schema_migrations set digest = 'older' where version = 0".encode())
        assert [step.name for step in migrate(app, dry_run=True)] == ["functions"]
        assert [step.name for step in migrate(app)] == ["functions"]
        assert ask_blocking(app, enqueue.enqueue(SCHEMA, NewJob(job_type="noop")))


def test_upgrade_after_the_right_was_revoked(admin: Link, blank_dsn: str) -> None:
    """Who made the schema itself upgrades it later without the right to make another."""
    name = value(admin, "select current_database()")
    admin.execute(f'grant create on database "{name}" to {ROLE}'.encode())
    with as_app(blank_dsn) as app:
        migrate(app)
        admin.execute(f'revoke create on database "{name}" from {ROLE}'.encode())
        app.execute(f"delete from {SCHEMA}.schema_migrations where version = 0".encode())
        assert [step.name for step in migrate(app)] == ["functions"]


@pytest.mark.parametrize("has_schema", [False, True])
def test_right_that_is_missing(admin: Link, blank_dsn: str, has_schema: bool) -> None:
    """The error names the right, and where."""
    if has_schema:
        admin.execute(f"create schema {SCHEMA}".encode())
        admin.execute(f"grant usage on schema {SCHEMA} to {ROLE}".encode())
    where = f"schema {SCHEMA}" if has_schema else f"database {value(admin, 'select current_database()')}"
    with as_app(blank_dsn) as app:
        assert migrate(app, dry_run=True)
        with pytest.raises(MissingRights, match=f"role {ROLE} needs CREATE on the {where}"):
            migrate(app)


def test_role_that_another_database_makes(admin: Link, blank_dsn: str) -> None:
    """Roles belong to the server: two databases that are migrated at once both end well, with one role for both."""
    schema = "pgnotifyq_of_two"
    admin.execute(f"drop role if exists {schema}_tenant".encode())
    try:
        with connect(blank_dsn) as other, connect(blank_dsn) as ours, at_once() as start:
            other.execute(b"begin")  # as the other migration, which has come that far
            other.execute(f"create role {schema}_tenant nologin".encode())
            start(migrate, ours, schema)
            waits = "exists (select from pg_stat_activity where pid = %s and wait_event_type = 'Lock')"
            until(blank_dsn, waits, ours.info.backend_pid)
            other.execute(b"commit")
        with connect(blank_dsn) as ours:
            assert check_schema(ours, schema) == code_version()
    finally:
        admin.execute(f"drop schema if exists {schema} cascade; drop role if exists {schema}_tenant".encode())


@pytest.mark.parametrize(
    "table",
    ["jobs (id integer)", "schema_migrations (version bigint primary key, dirty boolean)", "schema_migrations (version text)"],
)
def test_schema_of_another_program(admin: Link, table: str) -> None:
    """It is left alone, and the error says so instead of asking for what was just done."""
    admin.execute(f"create schema {SCHEMA}; create table {SCHEMA}.{table}".encode())
    before = fetch(admin, "select relname from pg_class where relnamespace = %s::regnamespace", SCHEMA)
    for dry_run in (True, False):
        with pytest.raises(ConfigError, match="belongs to another program"):
            migrate(admin, dry_run=dry_run)
    assert fetch(admin, "select relname from pg_class where relnamespace = %s::regnamespace", SCHEMA) == before


# A schema of the release before, with jobs in it

ROWS = """
insert into pgnotifyq.jobs (job_type, unique_key) values ('waits', 'k');
insert into pgnotifyq.jobs (job_type, status, attempts, locked_by, current_execution_id, started_at, lease_expires_at)
values ('runs', 'running', 1, gen_random_uuid(), gen_random_uuid(), now(), now() + interval '1 hour');
insert into pgnotifyq.jobs (job_type, status, attempts, completed_at) values ('has ended', 'completed', 1, now());
insert into pgnotifyq.job_executions (id, job_id, org_id, attempt, outcome, started_at, ended_at)
select gen_random_uuid(), id, org_id, 1, 'completed', now(), now() from pgnotifyq.jobs where job_type = 'has ended';
insert into pgnotifyq.dead_letter_jobs (
    id, org_id, queue_name, job_type, payload, priority, scheduled_at, attempts, max_attempts, created_at, reason, history, died_at)
select gen_random_uuid(), org_id, queue_name, 'died', payload, 0, now(), 3, 3, now(), 'exhausted', '[]', now()
from pgnotifyq.jobs limit 1;
"""
TABLES = ("jobs", "job_executions", "dead_letter_jobs")


def rows_of_all(connection: Link) -> list[Any]:
    """Return every row, with its version; without a column that a later migration adds or takes away."""
    return [
        fetch(
            connection,
            "select t.xmin::text, to_jsonb(t) - array['enqueued_by', 'headers', 'holds_unique_key', 'unique_scope', 'unique_while',"
            " 'unique_until', 'key_passed_on', 'waits_for', 'due_after_wait', 'blanked_at', 'saved']"
            f" from pgnotifyq.{table} as t order by t.id",
        )
        for table in TABLES
    ]


def test_upgrade_of_functions_whose_parameters_had_other_names(admin: Link) -> None:
    """From version 10, in which they had: no row is touched, each function has one form, and work goes on."""
    before = [step for step in steps(SCHEMA) if 0 < step.version <= 10]
    # PostgreSQL replaces none of these, for names or result differ.
    text = next(text for name, text in files("migrations") if name == "0011_words")
    old = re.findall(r"'(\w+)\(([^)]*)\)'", re.sub(r"'\s*\|\|\s*'", "", text))
    assert len(old) == 43
    admin.execute(compose("create schema {schema}", SCHEMA))
    admin.execute(
        "create table pgnotifyq.schema_migrations (version integer primary key, name text not null, digest text not null,"
        " applied_at timestamptz not null default clock_timestamp(), oldest_code integer)"
    )
    for step in before:
        admin.execute(step.text)
        admin.execute(
            "insert into pgnotifyq.schema_migrations values (%s, %s, %s, now(), 9)", (step.version, step.name, step.digest)
        )
    for name, types in old:
        parameters = ", ".join(f"was_{place} {kind}" for place, kind in enumerate(types.split(", ")))
        admin.execute(f"create function pgnotifyq.{name}({parameters}) returns void language sql as ''".encode())
    admin.execute(ROWS.encode())
    rows = rows_of_all(admin)

    assert [step.version for step in migrate(admin)] == [step.version for step in steps(SCHEMA) if not 0 < step.version <= 10]
    assert rows_of_all(admin) == rows
    forms = fetch(
        admin, "select proname from pg_proc where pronamespace = 'pgnotifyq'::regnamespace group by 1 having count(*) > 1"
    )
    assert forms == [("org",)]  # of a text, and of a number
    claimed = fetch(admin, "select id, current_execution_id from pgnotifyq.claim(gen_random_uuid(), '{default}', 1, 60)")
    assert len(claimed) == 1
    assert fetch(admin, "select * from pgnotifyq.complete(gen_random_uuid(), array[%s], array[%s])", *claimed[0]) == []
    assert value(admin, "select pgnotifyq.cancel(id) from pgnotifyq.jobs where job_type = 'runs'") == "stopping"
    assert value(admin, "select pgnotifyq.requeue(id) from pgnotifyq.dead_letter_jobs") is True
    assert migrate(admin) == []


# Code and schema move apart


def note_newer(connection: Link, *oldest_code: int | None) -> None:
    """Note migrations of newer code, each with the oldest code that it bears."""
    for version, oldest in enumerate(oldest_code, code_version() + 1):
        connection.execute(
            "insert into pgnotifyq.schema_migrations (version, name, digest, oldest_code) values (%s, 'newer', 'x', %s)",
            (version, oldest),
        )
    connection.execute("update pgnotifyq.schema_migrations set digest = 'newer functions' where version = 0")


def test_newer_schema_that_bears_this_code(admin: Link) -> None:
    """The last release runs on the next schema, and its migrate, as a roll-back of code calls it, leaves that alone."""
    migrate(admin)
    note_newer(admin, code_version(), 3)
    assert check_schema(admin) == code_version() + 2
    assert migrate(admin) == []
    assert value(admin, "select digest from pgnotifyq.schema_migrations where version = 0") == "newer functions"


@pytest.mark.parametrize("further", [(99,), (None,), (3, 99), (99, 3)])
def test_newer_schema_that_does_not(admin: Link, further: tuple[int | None, ...]) -> None:
    """One migration that takes something away is enough; so is one that does not say."""
    migrate(admin)
    note_newer(admin, *further)
    for look in (check_schema, migrate):
        with pytest.raises(SchemaTooNew):
            look(admin)


def test_schema_of_a_time_before_that_was_noted(admin: Link) -> None:
    """A schema without the column is read as ever: out of date, to be migrated."""
    admin.execute(compose("create schema {schema}", SCHEMA))
    admin.execute(
        "create table pgnotifyq.schema_migrations (version integer primary key, name text not null, digest text not null,"
        " applied_at timestamptz not null default clock_timestamp())"
    )
    for step in steps(SCHEMA):
        if 0 < step.version < 9:
            admin.execute(step.text)
            admin.execute("insert into pgnotifyq.schema_migrations values (%s, %s, %s)", (step.version, step.name, step.digest))
    with pytest.raises(SchemaOutOfDate):
        check_schema(admin)
    assert [step.version for step in migrate(admin)] == [step.version for step in steps(SCHEMA) if not 0 < step.version < 9]
    assert check_schema(admin) == code_version()
