"""What doctor finds: each thing that it looks at, well and unwell. The states are made by SQL in a database of the test's own."""

from __future__ import annotations

import os
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import trio
from psycopg.conninfo import make_conninfo

from pgnotifyq.cli import doctor, worker
from pgnotifyq.embedded import open_temporary_server
from pgnotifyq.ledger import doctor as asked
from pgnotifyq.ledger import roles
from pgnotifyq.ledger.look import tenant_role
from pgnotifyq.migrating import migrate
from pgnotifyq.wire.asking import ask
from pgnotifyq.wire.connection import open_connection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Look = list[tuple[str, str, str]]
Session = psycopg.Connection[Any]


def look(dsn: str, schema: str = "pgnotifyq") -> Look:
    """Return what doctor finds: verdict, what, hint."""

    async def main() -> list[doctor.Finding]:
        async with open_connection(dsn) as connection, open_connection(dsn) as other:
            return await doctor.examine(connection, other, schema)

    return [(found.verdict, found.what, found.hint) for found in trio.run(main)]


def verdict_of(found: Look, words: str) -> str | None:
    """Return the verdict of the finding that says so, or None where none does."""
    verdicts = [verdict for verdict, what, _ in found if words in what]
    assert len(verdicts) <= 1, found
    return verdicts[0] if verdicts else None


@pytest.fixture
def session(dsn: str) -> Iterator[Session]:
    with psycopg.connect(dsn, autocommit=True) as session:
        yield session


@contextmanager
def role(session: Session, options: str = "login") -> Iterator[str]:
    """A role of the server's, for the length of a block."""
    name = f"doctor_{uuid.uuid4().hex[:8]}"
    session.execute(f"create role {name} {options}".encode())
    try:
        yield name
    finally:
        session.execute(f"drop owned by {name}; drop role {name}".encode())


DUE = "select pgnotifyq.enqueue('x', queue_name => 'images', scheduled_at => now() - interval '2 min')"
WORKER = "select pgnotifyq.register_worker('00000000-0000-0000-0000-0000000000aa', 'here', 1, '{images}', 1, '0', false, 60)"
DEAD = (
    "insert into pgnotifyq.dead_letter_jobs (id, org_id, queue_name, job_type, payload, priority, scheduled_at, attempts, max_attempts,"
    " created_at, reason, history, died_at) select gen_random_uuid(), gen_random_uuid(), 'images', 'x', '{}', 0, now(), 1, 1, now(),"
    " 'exhausted', '[]', now()"
)
CLAIM = (
    "update pgnotifyq.jobs set status = 'running', attempts = 1, started_at = now(), locked_by = gen_random_uuid(),"
    " current_execution_id = gen_random_uuid(), lease_expires_at = now() - interval '1 min'"
)
TRIGGER = (
    "create function public.audit() returns trigger language plpgsql as 'begin return new; end';"
    "create trigger audited before insert on pgnotifyq.jobs for each row execute function public.audit()"
)

# What is done to a healthy database; what is found of it, and how bad that is; what is found without. One after the other.
UNWELL = [
    (f"{DUE}; {CLAIM}", "no worker to take them back: 1", "fail", "jobs whose lease has run out: 0"),
    (DUE, "queue images: 1 due job(s)", "fail", "no due job has been waiting for long"),
    (DEAD, "1 dead letter(s)", "warn", "no dead letters"),
    ("alter table pgnotifyq.jobs set (autovacuum_enabled = off)", "autovacuum of pgnotifyq.jobs is off", "fail", "autovacuum is on"),
    ("create table public.orders (job uuid references pgnotifyq.jobs)", "of orders refers to pgnotifyq.jobs", "warn", "nobody has put"),
    ("create table public.bills (job uuid references pgnotifyq.dead_letter_jobs on delete cascade)",
     "of bills refers to pgnotifyq.dead_letter_jobs", "warn", "nobody has put"),
    (TRIGGER, "trigger audited on pgnotifyq.jobs calls audit", "warn", "nobody has put"),
    ("create rule quiet as on delete to pgnotifyq.sleepers do instead nothing", "rule quiet on pgnotifyq.sleepers", "warn",
     "nobody has put"),
    ("create policy mine on pgnotifyq.jobs as restrictive using (false)", "policy mine on pgnotifyq.jobs, restrictive", "warn",
     "nobody has put"),
    ("select pgnotifyq.note_trouble(gen_random_uuid(), '00000000-0000-0000-0000-0000000000bb', 'prune', '23503', 'refers')",
     "job 00000000-0000-0000-0000-0000000000bb was put aside: prune failed 1 time(s): refers", "warn", "no job was put aside"),
    ("alter table pgnotifyq.jobs disable trigger jobs_wake_after_insert", "jobs_wake_after_insert on pgnotifyq.jobs is disabled", "fail",
     "own triggers are on"),
    ("alter table pgnotifyq.job_executions no force row level security", "row security of pgnotifyq.job_executions is off", "fail",
     "row security is on and forced"),
    ("alter table pgnotifyq.jobs disable row level security", "row security of pgnotifyq.jobs is off", "fail",
     "row security is on and forced"),
    ("drop policy one_tenant on pgnotifyq.dead_letter_jobs", "policy one_tenant of pgnotifyq.dead_letter_jobs is gone", "fail",
     "row security is on and forced"),
]  # fmt: skip


def test_each_finding_well_and_unwell(dsn: str, session: Session) -> None:
    """What is found is not found before, its opposite is not found after, and it comes with a hint."""
    before = look(dsn)
    for done, bad, verdict, good in UNWELL:
        assert (verdict_of(before, bad), verdict_of(before, good)) == (None, "ok"), bad
        session.execute(done.encode())
        after = look(dsn)
        assert (verdict_of(after, bad), verdict_of(after, good)) == (verdict, None), bad
        assert next(hint for _, what, hint in after if bad in what)


def test_workers_make_a_difference(dsn: str, session: Session) -> None:
    """A queue whose jobs wait is another matter where a live worker takes it; one that polls is told."""
    session.execute("select pgnotifyq.enqueue('x')")
    found = look(dsn)
    assert (verdict_of(found, "no worker is alive"), verdict_of(found, "no due job has been waiting")) == ("warn", "ok")
    assert verdict_of(found, "all workers are told of work") == "ok"
    session.execute(DUE.encode())
    session.execute(WORKER.encode())
    found = look(dsn)
    assert (verdict_of(found, "queue images: 1 due job(s)"), verdict_of(found, "workers that poll: 1")) == ("warn", "warn")


def test_job_type_that_nobody_serves(dsn: str, session: Session) -> None:
    """Said while it is due and no live worker has a handler for it."""
    unserved = "queue images: no live worker has a handler for x, 1 job(s) wait"
    publish = "select pgnotifyq.publish_handlers('00000000-0000-0000-0000-0000000000aa', %s::text[], '{null}', '{null}')"
    assert verdict_of(look(dsn), "every due job type has a live worker") == "ok"
    session.execute(DUE)
    session.execute(WORKER)
    session.execute(publish, (["y"],))
    assert verdict_of(look(dsn), unserved) == "warn"
    session.execute(publish, (["x"],))
    assert verdict_of(look(dsn), "every due job type has a live worker") == "ok"


def test_schedules(dsn: str, session: Session) -> None:
    """One that is late, one whose rule cannot be read, and one that its program has no more; and when all is well."""
    assert verdict_of(look(dsn), "schedules: 0") == "ok"
    session.execute(
        "insert into pgnotifyq.schedules (name, rule, job_type, next_at, error_message, owner, unlisted_at) values"
        " ('late', '0 3 * * *', 'noop', now() - interval '1 hour', null, null, null),"
        " ('bad', 'now and then', 'noop', null, 'it cannot be read', null, null),"
        " ('old', '0 3 * * *', 'noop', now() + interval '1 hour', null, 'shop', now())"
    )
    found = look(dsn)
    assert verdict_of(found, "schedule late is late") == "fail"
    assert verdict_of(found, "schedule bad cannot be followed: it cannot be read") == "warn"
    assert verdict_of(found, "schedule old is in the code of shop no more") == "warn"
    session.execute("select pgnotifyq.unschedule(name) from pgnotifyq.schedules where name <> 'late'")
    session.execute("select pgnotifyq.pause_schedule('late')")
    assert verdict_of(look(dsn), "schedules: 1, of which paused: 1") == "ok"


def test_jobs_that_were_put_aside_are_not_waiting(dsn: str, session: Session) -> None:
    """They are told of as what they are; and of many only some are."""
    session.execute(DUE)
    session.execute("select pgnotifyq.note_trouble(org_id, id, 'claim', '22000', 'no') from pgnotifyq.jobs")
    assert verdict_of(look(dsn), "no due job has been waiting") == "ok"
    session.execute(
        "select pgnotifyq.note_trouble(gen_random_uuid(), gen_random_uuid(), 'claim', '22000', e'evil\\x1b[2J') from generate_series(1, 9)"
    )
    found = look(dsn)
    assert verdict_of(found, "more jobs were put aside") == "warn"
    assert all(what.isprintable() for _, what, _ in found)


def test_worker_whose_row_is_all_that_is_left(dsn: str, session: Session) -> None:
    """It is not alive: before, its row passed for a worker."""
    session.execute(WORKER.encode())
    assert verdict_of(look(dsn), "live workers: 1") == "ok"
    session.execute("update pgnotifyq.worker_heartbeats set last_beat_at = now() - interval '1 hour'")
    found = look(dsn)
    assert verdict_of(found, "no worker is alive; rows of workers that are gone: 1") == "warn"
    assert verdict_of(found, "workers that poll") is None


def test_worker_whose_session_lives(dsn: str, session: Session) -> None:
    """By its lock; it is told of work."""
    session.execute(
        "select pgnotifyq.register_worker('00000000-0000-0000-0000-0000000000aa', 'here', 1, '{images}', 1, '0', true, 60)"
    )
    assert verdict_of(look(dsn), "no worker is alive") == "warn"
    session.execute("select pg_advisory_lock(pgnotifyq.session_key('00000000-0000-0000-0000-0000000000aa'))")
    found = look(dsn)
    assert (verdict_of(found, "live workers: 1"), verdict_of(found, "all workers are told of work")) == ("ok", "ok")


def test_role_that_lacks_a_right(dsn: str, session: Session) -> None:
    """One of several is not enough, and the missing ones are named."""
    with role(session) as name:
        session.execute(f"grant usage on schema pgnotifyq to {name}".encode())
        session.execute(f"grant select, insert, update, delete on all tables in schema pgnotifyq to {name}".encode())
        session.execute("select pgnotifyq.keep_roles()")  # as `migrate` does
        theirs = make_conninfo(dsn, user=name)
        assert verdict_of(look(theirs), f"role {name} can write") == "ok"
        session.execute(f"revoke update on pgnotifyq.jobs, pgnotifyq.sleepers from {name}".encode())
        assert verdict_of(look(theirs), "it lacks update on jobs, update on sleepers") == "fail"
        session.execute(f"grant update on pgnotifyq.jobs, pgnotifyq.sleepers to {name}".encode())
        session.execute("revoke execute on function pgnotifyq.has_due from public")
        assert verdict_of(look(theirs), "it lacks execute on 1 function(s)") == "fail"


def test_role_whose_transactions_are_read_only(dsn: str) -> None:
    """Rights alone do not make it write. What counts is what the connection is under, which may choose for itself."""
    found = facts(dsn)
    assert (found["is_read_only"], doctor._judge_role(found)[0].verdict) == (False, "ok")
    judged = doctor._judge_role({**found, "is_read_only": True})[0]
    assert judged.verdict == "fail"
    assert "read-only" in judged.what


def facts(dsn: str) -> dict[str, Any]:
    """Return the facts that doctor judges."""

    async def main() -> dict[str, Any]:
        async with open_connection(dsn) as connection:
            (row,) = await ask(connection, asked.facts("pgnotifyq"))
            return row

    return trio.run(main)


def test_standby_is_told_apart() -> None:
    """Nothing can be written there, whatever the rights."""
    row = {"role_name": "r", "owner_name": "o", "is_standby": True, "is_superuser": True, "bypasses_row_security": True}
    judged = doctor._judge_role({**row, "is_owner_exempt": True})
    assert (judged[0].verdict, judged[0].hint) == ("fail", "connect to the primary")


def test_tenant_role(blank_dsn: str) -> None:
    """That it exists is not enough: it must be one that may be taken on, that has rights, and that row security binds.

    A worker takes it on exactly where doctor says that it may: elsewhere each tenant transaction would fail.
    """
    schema = f"q{uuid.uuid4().hex[:8]}"

    async def make() -> None:
        async with open_connection(make_conninfo(blank_dsn, user=owner)) as connection:
            await migrate(connection, schema)

    async def taken_on() -> str | None:
        async with open_connection(make_conninfo(blank_dsn, user=owner)) as connection:
            return await ask(connection, tenant_role(schema))

    with psycopg.connect(blank_dsn, autocommit=True) as session, role(session) as owner:
        tenant = f"{schema}_{session.info.dbname}_tenant"
        theirs = make_conninfo(blank_dsn, user=owner)
        session.execute(f"grant create on database {session.info.dbname} to {owner}".encode())
        trio.run(make)
        mistakes = "confined against mistakes, not against SQL of the handler's own: by "
        assert verdict_of(look(theirs, schema), f"{mistakes}a setting only, for there is no role") == "warn"
        assert trio.run(taken_on) is None
        session.execute(f"create role {tenant} nologin".encode())
        try:
            trio.run(make)
            assert (
                verdict_of(look(theirs, schema), f"{mistakes}a setting only, for role {owner} may not take on {tenant}") == "warn"
            )
            assert trio.run(taken_on) is None
            session.execute(f"grant {tenant} to {owner}".encode())
            session.execute(f"revoke all on schema {schema} from {tenant}".encode())
            found = look(theirs, schema)
            assert verdict_of(found, f"{mistakes}a setting only, for role {tenant} has no rights") == "warn"
            assert verdict_of(found, f"role {tenant}, tenant, lacks usage on schema {schema}") == "fail"
            assert trio.run(taken_on) is None
            trio.run(make)
            found = look(theirs, schema)
            assert verdict_of(found, f"{mistakes}role {tenant}") == "ok"
            assert verdict_of(found, "the roles that migrate knows have their rights, and no more") == "ok"
            assert trio.run(taken_on) == tenant
            session.execute(f"alter role {tenant} bypassrls".encode())
            found = look(theirs, schema)
            assert verdict_of(found, f"role {tenant} is exempt") == "fail"
            assert verdict_of(found, f"role {tenant}, tenant, has too much: exempt from row security") == "fail"
            assert trio.run(taken_on) == tenant
            if session.info.server_version >= 160_000:
                session.execute(f"alter role {tenant} nobypassrls; grant {tenant} to {owner} with set false".encode())
                assert verdict_of(look(theirs, schema), f"role {owner} may not take on {tenant}") == "warn"
                assert trio.run(taken_on) is None
        finally:
            session.execute(f"drop owned by {tenant}; drop role {tenant}".encode())


def test_tenant_login(blank_dsn: str) -> None:
    """A login of the tenants' confines against intent, and what it has too much is a failure."""

    async def make() -> str:
        async with open_connection(blank_dsn) as connection:
            await migrate(connection)
            name = await ask(connection, roles.make_tenant_login("pgnotifyq"))
            await ask(connection, roles.keep("pgnotifyq"))
            return name

    name = trio.run(make)
    found = look(blank_dsn)
    assert verdict_of(found, f"tenants are confined against intent: by sessions of {name}") == "ok"
    assert verdict_of(found, "the roles that migrate knows have their rights, and no more") == "ok"
    with psycopg.connect(blank_dsn, autocommit=True) as session, role(session, "nologin") as other:
        session.execute(f"grant {other} to {name}; grant delete on pgnotifyq.jobs to {name}".encode())
        session.execute(f"grant update (attempts) on pgnotifyq.jobs to {name}".encode())
        session.execute(f"grant execute on function pgnotifyq.tenant_key to {name}".encode())
        found = look(blank_dsn)
        what = (
            f"role {name}, tenant, has too much: delete on jobs, execute on pgnotifyq.tenant_key(), member of {other},"
            " update (attempts) on jobs"
        )
        assert verdict_of(found, what) == "fail"
        hint = next(hint for _, said, hint in found if what in said)
        session.execute(hint.encode())
        assert verdict_of(look(blank_dsn), "the roles that migrate knows have their rights, and no more") == "ok"


def test_worker_says_it_at_its_start(blank_dsn: str, caplog: pytest.LogCaptureFixture) -> None:
    """What its own role and the tenants' login lack and have too much is in its log."""

    async def main() -> None:
        async with open_connection(blank_dsn) as connection:
            await migrate(connection)
            name = await ask(connection, roles.make_tenant_login("pgnotifyq"))
            await ask(connection, roles.keep("pgnotifyq"))
            await worker._warn_of_powers(connection, "pgnotifyq")
            assert f"role {name}" not in caplog.text
            await connection.execute(f"revoke select on pgnotifyq.jobs from {name}".encode())
            await connection.execute(f"grant delete on pgnotifyq.jobs to {name}".encode())
            await worker._warn_of_powers(connection, "pgnotifyq")
            assert f"role {name}, tenant, lacks: select on jobs" in caplog.text
            assert f"role {name}, tenant, has too much: delete on jobs" in caplog.text

    trio.run(main)


def test_owner_whom_row_security_binds(blank_dsn: str) -> None:
    """Their dump needs an option; a superuser's does not."""

    async def make(dsn: str) -> None:
        async with open_connection(dsn) as connection:
            await migrate(connection)

    with psycopg.connect(blank_dsn, autocommit=True) as session, role(session) as owner:
        theirs = make_conninfo(blank_dsn, user=owner)
        session.execute(f"grant create on database {session.info.dbname} to {owner}".encode())
        trio.run(make, theirs)
        (hint,) = (hint for _, what, hint in look(theirs) if f"row security binds {owner}" in what)
        assert "--enable-row-security" in hint
        session.execute(f"alter role {owner} bypassrls".encode())
        assert verdict_of(look(theirs), "the tables' owner, is whole") == "ok"


def test_role_that_may_not_see_others_sessions(dsn: str, session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not said that there is no old transaction where none could be seen."""
    with role(session) as name:
        session.execute(f"grant usage on schema pgnotifyq to {name}".encode())
        session.execute(f"grant select on all tables in schema pgnotifyq to {name}".encode())
        theirs = make_conninfo(dsn, user=name)
        (hint,) = (hint for _, what, hint in look(theirs) if f"no transaction that role {name} may see" in what)
        assert "pg_read_all_stats" in hint
        session.execute(f"grant pg_read_all_stats to {name}".encode())
        assert verdict_of(look(theirs), "no transaction is older") == "ok"


def fill_notification_queue(session: Session) -> None:
    """Notify until nothing more can be."""
    while True:
        session.execute("select pg_notify('anything', repeat('x', 7000) || n) from generate_series(1, 10) as n")


def test_notification_queue_that_is_full_and_a_forgotten_prepared_transaction(monkeypatch: pytest.MonkeyPatch) -> None:
    """Doctor says so, rather than fail over it: it was the very condition that it looks for."""
    if int(os.environ.get("PGNOTIFYQ_TEST_POSTGRES", "18")) < 17:
        pytest.skip("before PostgreSQL 17 the queue has 8 GiB")
    monkeypatch.setattr(doctor, "SNAPSHOT_SECONDS_MAX", -1.0)
    settings = {"max_notify_queue_pages": "64", "max_prepared_transactions": "1", "fsync": "off"}
    with open_temporary_server(settings=settings) as server:

        async def make() -> None:
            async with open_connection(server.dsn) as connection:
                await migrate(connection)

        trio.run(make)
        with psycopg.connect(server.dsn) as listener, psycopg.connect(server.dsn, autocommit=True) as session:
            listener.execute("listen anything")
            listener.commit()
            listener.execute("select 1")
            with pytest.raises(psycopg.errors.ProgramLimitExceeded):
                fill_notification_queue(session)
            session.execute("begin; select pg_current_xact_id(); prepare transaction 'forgotten'")
            found = look(server.dsn)
            assert verdict_of(found, "a notification to ourselves was refused: too many notifications") == "fail"
            assert any("notification queue" in what and verdict == "fail" for verdict, what, _ in found)
            assert verdict_of(found, "prepared transaction 'forgotten'") == "warn"
            session.execute("rollback prepared 'forgotten'")


def test_backlog_that_nobody_works_on(run: Callable[..., Any], session: Session) -> None:
    """The exit code says so."""
    assert run("doctor").code == 0
    session.execute(DUE.encode())
    assert run("doctor").code == 1


@pytest.mark.parametrize(
    ("environment", "coloured"), [({}, False), ({"FORCE_COLOR": "1"}, True), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False)]
)
def test_colours_are_as_the_environment_says(run: Callable[..., Any], environment: dict[str, str], coloured: bool) -> None:
    """None in a pipe; FORCE_COLOR has them there, NO_COLOR is stronger."""
    ran = run("doctor", **{"NO_COLOR": "", "FORCE_COLOR": "", **environment})
    assert ("\x1b[" in ran.out) is coloured
