"""Migrating with the rights there are, and code and schema that move apart for a while."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest
import trio
from psycopg.conninfo import make_conninfo

from pgnotifyq.ledger import enqueue
from pgnotifyq.ledger.schema import as_script, code_version, steps
from pgnotifyq.ledger.statements import compose, files
from pgnotifyq.migrating import check_schema, migrate
from pgnotifyq.model.errors import ConfigError, MissingRights, SchemaOutOfDate, SchemaTooNew
from pgnotifyq.model.new_job import NewJob
from pgnotifyq.wire.asking import ask
from pgnotifyq.wire.connection import Connection, open_connection
from tests.ledger.support import SCHEMA, fetch, value

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

Link = Connection[Any]
ROLE = "pgnotifyq_test_app"  # may log in, and nothing else


@pytest.fixture
async def admin(blank_dsn: str) -> AsyncIterator[Link]:
    """Give the owner of a database without our schema, in which a role of no rights can log in."""
    async with open_connection(blank_dsn) as admin:
        await admin.execute(f"drop role if exists {ROLE}".encode())
        await admin.execute(f"create role {ROLE} login password 'x'".encode())
        name = await value(admin, "select current_database()")
        await admin.execute(f'revoke create on database "{name}" from public'.encode())
        yield admin
        await admin.execute(f"drop owned by {ROLE} cascade".encode())
        await admin.execute(f"drop role {ROLE}".encode())


def as_app(blank_dsn: str) -> AbstractAsyncContextManager[Link]:
    """Connect as that role."""
    return open_connection(make_conninfo(blank_dsn, user=ROLE, password="x"))


async def test_schema_that_a_dba_has_made(admin: Link, blank_dsn: str) -> None:
    """Its owner needs no right on the database: to install, to install by the script of a dry run, to upgrade, to look."""
    await admin.execute(f"create schema {SCHEMA} authorization {ROLE}".encode())
    async with as_app(blank_dsn) as app:
        script = as_script(await migrate(app, dry_run=True), SCHEMA)
        await app.execute(script.encode())
        assert await check_schema(app) == code_version()
        assert await migrate(app) == []
        await app.execute(f"update {SCHEMA}.schema_migrations set digest = 'older' where version = 0".encode())
        assert [step.name for step in await migrate(app, dry_run=True)] == ["functions"]
        assert [step.name for step in await migrate(app)] == ["functions"]
        assert await ask(app, enqueue.enqueue(SCHEMA, NewJob(job_type="noop")))


async def test_upgrade_after_the_right_was_revoked(admin: Link, blank_dsn: str) -> None:
    """Who made the schema itself upgrades it later without the right to make another."""
    name = await value(admin, "select current_database()")
    await admin.execute(f'grant create on database "{name}" to {ROLE}'.encode())
    async with as_app(blank_dsn) as app:
        await migrate(app)
        await admin.execute(f'revoke create on database "{name}" from {ROLE}'.encode())
        await app.execute(f"delete from {SCHEMA}.schema_migrations where version = 0".encode())
        assert [step.name for step in await migrate(app)] == ["functions"]


@pytest.mark.parametrize("has_schema", [False, True])
async def test_right_that_is_missing(admin: Link, blank_dsn: str, has_schema: bool) -> None:
    """The error names the right, and where."""
    if has_schema:
        await admin.execute(f"create schema {SCHEMA}".encode())
        await admin.execute(f"grant usage on schema {SCHEMA} to {ROLE}".encode())
    where = f"schema {SCHEMA}" if has_schema else f"database {await value(admin, 'select current_database()')}"
    async with as_app(blank_dsn) as app:
        assert await migrate(app, dry_run=True)
        with pytest.raises(MissingRights, match=f"role {ROLE} needs CREATE on the {where}"):
            await migrate(app)


async def test_role_that_another_database_makes(admin: Link, blank_dsn: str) -> None:
    """Roles belong to the server: two databases that are migrated at once both end well, with one role for both."""
    schema = "pgnotifyq_of_two"
    await admin.execute(f"drop role if exists {schema}_tenant".encode())
    try:
        async with open_connection(blank_dsn) as other, open_connection(blank_dsn) as ours, trio.open_nursery() as nursery:
            await other.execute(b"begin")  # as the other migration, which has come that far
            await other.execute(f"create role {schema}_tenant nologin".encode())
            nursery.start_soon(migrate, ours, schema)
            waits = "select wait_event_type = 'Lock' from pg_stat_activity where pid = %s"
            with trio.fail_after(30):
                while not await value(admin, waits, ours.info.backend_pid):
                    await trio.sleep(0.01)
            await other.execute(b"commit")
        async with open_connection(blank_dsn) as ours:
            assert await check_schema(ours, schema) == code_version()
    finally:
        await admin.execute(f"drop schema if exists {schema} cascade; drop role if exists {schema}_tenant".encode())


@pytest.mark.parametrize(
    "table",
    ["jobs (id integer)", "schema_migrations (version bigint primary key, dirty boolean)", "schema_migrations (version text)"],
)
async def test_schema_of_another_program(admin: Link, table: str) -> None:
    """It is left alone, and the error says so instead of asking for what was just done."""
    await admin.execute(f"create schema {SCHEMA}; create table {SCHEMA}.{table}".encode())
    before = await fetch(admin, "select relname from pg_class where relnamespace = %s::regnamespace", SCHEMA)
    for dry_run in (True, False):
        with pytest.raises(ConfigError, match="belongs to another program"):
            await migrate(admin, dry_run=dry_run)
    assert await fetch(admin, "select relname from pg_class where relnamespace = %s::regnamespace", SCHEMA) == before


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


async def rows_of_all(connection: Link) -> list[Any]:
    """Return every row, with its version; without a column that a later migration adds or takes away."""
    return [
        await fetch(
            connection,
            "select t.xmin::text, to_jsonb(t) - array['enqueued_by', 'headers', 'holds_unique_key', 'unique_scope', 'unique_while',"
            " 'unique_until', 'key_passed_on', 'waits_for', 'due_after_wait', 'blanked_at', 'saved']"
            f" from pgnotifyq.{table} as t order by t.id",
        )
        for table in TABLES
    ]


async def test_upgrade_of_functions_whose_parameters_had_other_names(admin: Link) -> None:
    """From version 10, in which they had: no row is touched, each function has one form, and work goes on."""
    before = [step for step in steps(SCHEMA) if 0 < step.version <= 10]
    # PostgreSQL replaces none of these, for names or result differ.
    text = next(text for name, text in files("migrations") if name == "0011_words")
    old = re.findall(r"'(\w+)\(([^)]*)\)'", re.sub(r"'\s*\|\|\s*'", "", text))
    assert len(old) == 43
    await admin.execute(compose("create schema {schema}", SCHEMA))
    await admin.execute(
        "create table pgnotifyq.schema_migrations (version integer primary key, name text not null, digest text not null,"
        " applied_at timestamptz not null default clock_timestamp(), oldest_code integer)"
    )
    for step in before:
        await admin.execute(step.text)
        await admin.execute(
            "insert into pgnotifyq.schema_migrations values (%s, %s, %s, now(), 9)", (step.version, step.name, step.digest)
        )
    for name, types in old:
        parameters = ", ".join(f"was_{place} {kind}" for place, kind in enumerate(types.split(", ")))
        await admin.execute(f"create function pgnotifyq.{name}({parameters}) returns void language sql as ''".encode())
    await admin.execute(ROWS.encode())
    rows = await rows_of_all(admin)

    assert [step.version for step in await migrate(admin)] == [
        step.version for step in steps(SCHEMA) if not 0 < step.version <= 10
    ]
    assert await rows_of_all(admin) == rows
    forms = await fetch(
        admin, "select proname from pg_proc where pronamespace = 'pgnotifyq'::regnamespace group by 1 having count(*) > 1"
    )
    assert forms == [("org",)]  # of a text, and of a number
    claimed = await fetch(admin, "select id, current_execution_id from pgnotifyq.claim(gen_random_uuid(), '{default}', 1, 60)")
    assert len(claimed) == 1
    assert await fetch(admin, "select * from pgnotifyq.complete(gen_random_uuid(), array[%s], array[%s])", *claimed[0]) == []
    assert await value(admin, "select pgnotifyq.cancel(id) from pgnotifyq.jobs where job_type = 'runs'") == "stopping"
    assert await value(admin, "select pgnotifyq.requeue(id) from pgnotifyq.dead_letter_jobs") is True
    assert await migrate(admin) == []


# Code and schema move apart


async def note_newer(connection: Link, *oldest_code: int | None) -> None:
    """Note migrations of newer code, each with the oldest code that it bears."""
    for version, oldest in enumerate(oldest_code, code_version() + 1):
        await connection.execute(
            "insert into pgnotifyq.schema_migrations (version, name, digest, oldest_code) values (%s, 'newer', 'x', %s)",
            (version, oldest),
        )
    await connection.execute("update pgnotifyq.schema_migrations set digest = 'newer functions' where version = 0")


async def test_newer_schema_that_bears_this_code(admin: Link) -> None:
    """The last release runs on the next schema, and its migrate, as a roll-back of code calls it, leaves that alone."""
    await migrate(admin)
    await note_newer(admin, code_version(), 3)
    assert await check_schema(admin) == code_version() + 2
    assert await migrate(admin) == []
    assert await value(admin, "select digest from pgnotifyq.schema_migrations where version = 0") == "newer functions"


@pytest.mark.parametrize("further", [(99,), (None,), (3, 99), (99, 3)])
async def test_newer_schema_that_does_not(admin: Link, further: tuple[int | None, ...]) -> None:
    """One migration that takes something away is enough; so is one that does not say."""
    await migrate(admin)
    await note_newer(admin, *further)
    for look in (check_schema, migrate):
        with pytest.raises(SchemaTooNew):
            await look(admin)


async def test_schema_of_a_time_before_that_was_noted(admin: Link) -> None:
    """A schema without the column is read as ever: out of date, to be migrated."""
    await admin.execute(compose("create schema {schema}", SCHEMA))
    await admin.execute(
        "create table pgnotifyq.schema_migrations (version integer primary key, name text not null, digest text not null,"
        " applied_at timestamptz not null default clock_timestamp())"
    )
    for step in steps(SCHEMA):
        if 0 < step.version < 9:
            await admin.execute(step.text)
            await admin.execute(
                "insert into pgnotifyq.schema_migrations values (%s, %s, %s)", (step.version, step.name, step.digest)
            )
    with pytest.raises(SchemaOutOfDate):
        await check_schema(admin)
    assert [step.version for step in await migrate(admin)] == [step.version for step in steps(SCHEMA) if not 0 < step.version < 9]
    assert await check_schema(admin) == code_version()
