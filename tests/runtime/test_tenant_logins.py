"""Tenants' transactions over sessions of a login of their own, at a live worker."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import trio
from psycopg.conninfo import make_conninfo

from pgnotifyq import EventName, JobCancelled, JobContext, JobRegistry
from pgnotifyq.ledger import roles
from pgnotifyq.wire.asking import ask
from tests.asked import fetch, value

if TYPE_CHECKING:
    from tests.runtime.support import Worker, Workplace

Payload = dict[str, Any]
ANN, BOB = uuid.UUID(int=0xA), uuid.UUID(int=0xB)


@pytest.fixture
async def login(place: Workplace) -> str:
    """Give the name of the login that `migrate --tenant-login` makes, beside a table of a user's with a row of each tenant's."""
    name = await ask(place.connection, roles.make_tenant_login("pgnotifyq"))
    await ask(place.connection, roles.keep("pgnotifyq"))
    await place.connection.execute(
        f"""
        drop table if exists notes;
        create table notes (org_id uuid not null default pgnotifyq.current_org(), what text);
        alter table notes enable row level security;
        create policy one_tenant on notes
            using (not (select pgnotifyq.is_confined()) or org_id = (select pgnotifyq.current_org()));
        grant select, insert, update, delete on notes to {name};
        insert into notes values ('{ANN}', 'ann'), ('{BOB}', 'bob');
        """.encode()
    )
    return name


async def ended(place: Workplace, worker: Worker, event: EventName, org_id: uuid.UUID, **fields: object) -> dict[str, Any]:
    """Have a job run for a tenant, and return what the worker told of its end."""
    return await worker.log.wait(event, job_id=await place.enqueue("work", org_id=org_id, max_attempts=1, **fields))


async def test_session_of_the_login(place: Workplace, login: str) -> None:
    """It sees and writes its tenant's rows, enqueues for it, and the worker's start says what confines it."""
    registry, seen = JobRegistry(), list[Any]()

    @registry.handler()
    async def work(payload: Payload, ctx: JobContext) -> None:
        async with ctx.org.transaction() as connection:
            await connection.execute("insert into notes (what) values ('more')")
            await connection.execute("select pgnotifyq.enqueue('child', org_id => %s)", (ctx.org.id,))
            seen.extend(await fetch(connection, "select session_user::text, current_user::text, pgnotifyq.current_org()"))
            seen.append(await fetch(connection, "select what from notes order by what"))

    worker = await place.start(registry)
    assert worker.log.find(EventName.WORKER_STARTED)[0]["tenants"] == f"confined against intent: by sessions of {login}"
    await ended(place, worker, EventName.JOB_COMPLETED, ANN)
    assert seen == [(login, login, ANN), [("ann",), ("more",)]]
    assert await value(place.connection, "select count(*) from pgnotifyq.jobs where job_type = 'child' and org_id = %s", ANN) == 1


async def test_address_of_a_login(place: Workplace, login: str) -> None:
    """A login that somebody else made is given by its address."""
    registry, seen = JobRegistry(), []

    @registry.handler()
    async def work(payload: Payload, ctx: JobContext) -> None:
        async with ctx.org.transaction() as connection:
            seen.extend(await fetch(connection, "select session_user::text"))

    other = f"mine_{uuid.uuid4().hex[:8]}"
    await place.connection.execute(f"create role {other} login".encode())
    try:
        await ask(place.connection, roles.grant("pgnotifyq", roles.RoleKind.TENANT, other))
        await ask(place.connection, roles.keep("pgnotifyq"))
        worker = await place.start(registry, tenant_dsn=make_conninfo(place.dsn, user=other))
        await ended(place, worker, EventName.JOB_COMPLETED, ANN)
        await worker.leave()
        assert seen == [(other,)]
    finally:
        with trio.CancelScope(shield=True):
            await place.connection.execute("delete from pgnotifyq.roles where role_name = %s", (other,))
            await place.connection.execute(
                "select pg_terminate_backend(pid, 5000) from pg_stat_activity where usename = %s", (other,)
            )
            await place.connection.execute(f"drop owned by {other}; drop role {other}".encode())


async def test_address_of_a_role_that_is_no_tenant(place: Workplace, login: str) -> None:
    """A role that sees all is refused: nothing runs in its session."""
    registry = JobRegistry()

    @registry.handler()
    async def work(payload: Payload, ctx: JobContext) -> None:
        async with ctx.org.transaction():
            raise AssertionError("not reached")

    worker = await place.start(registry, tenant_dsn=place.dsn)
    told = await ended(place, worker, EventName.JOB_DEAD, ANN)
    assert "MissingRights" in told["why"]
    assert "--grant-tenant" in told["why"]


async def test_commit_by_hand(place: Workplace, login: str) -> None:
    """It asks the fence: of a job that was cancelled, nothing is written, though the handler says `commit` itself."""
    registry, inside, go_on, raised = JobRegistry(), trio.Event(), trio.Event(), []

    @registry.handler(cooperative=True)
    async def work(payload: Payload, ctx: JobContext) -> None:
        async with ctx.org.transaction() as connection:
            await connection.execute("insert into notes (what) values ('cancelled')")
            inside.set()
            await go_on.wait()
            try:
                await connection.execute("commit")
            except psycopg.Error as error:
                raised.append(error.sqlstate)
                raise

    worker = await place.start(registry)
    job_id = await place.enqueue("work", org_id=ANN, max_attempts=1)
    await inside.wait()
    await place.cancel(job_id)
    await worker.log.wait(EventName.JOB_INTERRUPTED, job_id=job_id)
    go_on.set()
    await worker.log.wait(EventName.JOB_CANCELLED, job_id=job_id)
    assert raised == ["PNQ03"]
    assert await fetch(place.connection, "select from notes where what = 'cancelled'") == []


LOOK = """
select session_user = current_user, coalesce(current_setting('pgnotifyq.kept', true), ''), current_setting('statement_timeout'),
    current_setting('search_path'), current_setting('default_transaction_isolation'), to_regclass('pg_temp.notes') is null,
    to_regproc('pg_temp.evil') is null, to_regtype('pg_temp.uuid') is null, (select count(*) from pg_prepared_statements),
    (select count(*) from pg_cursors), (select count(*) from pg_listening_channels()),
    (select count(*) from pg_locks where pid = pg_backend_pid() and locktype = 'advisory' and objid = 42)
"""
LEAVES = {
    "setting": "set statement_timeout = '59s'; set pgnotifyq.kept = 'x'",
    "search path": "set search_path = pg_temp, public",
    "isolation": "set default_transaction_isolation = 'serializable'",
    "temporary table, and a trigger on it": "create temporary table notes (org_id uuid, what text);"
    " create function pg_temp.evil() returns trigger language plpgsql as 'begin return null; end';"
    " create trigger evil before insert on pg_temp.notes for each row execute function pg_temp.evil()",
    "temporary domain": "create domain pg_temp.uuid as pg_catalog.uuid",
    "prepared statement": "prepare p as select * from notes",
    "held cursor": "declare leak cursor with hold for select * from notes",
    "listening": "listen leak",
    "advisory lock": "select pg_advisory_lock(42)",
}


@pytest.mark.parametrize("way", ["commits", "raises", "is cancelled"])
async def test_left_in_the_session(place: Workplace, login: str, way: str) -> None:
    """What one tenant's handler leaves in a session, however it ends, the next tenant's in that very session does not find."""
    registry, seen = JobRegistry(), []
    inside = trio.Event()

    @registry.handler()
    async def look(payload: Payload, ctx: JobContext) -> None:
        async with ctx.org.transaction() as connection:
            found = await fetch(connection, LOOK)
            rows = await fetch(connection, "select what from notes")
            seen.append((connection.info.backend_pid, found, rows))

    @registry.handler()
    async def work(payload: Payload, ctx: JobContext) -> None:
        async with ctx.org.transaction() as connection:
            for statement in LEAVES.values():
                await connection.execute(statement.encode())
            if way == "raises":
                raise ValueError("no luck")
            if way == "is cancelled":
                inside.set()
                await connection.execute("select pg_sleep(3600)")

    worker = await place.start(registry, concurrency=1)
    name = await value(place.connection, "select current_database()")
    await place.connection.execute(f"grant temporary on database {name} to {login}".encode())
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=await place.enqueue("look", org_id=BOB))
    job_id = await place.enqueue("work", org_id=ANN, max_attempts=1)
    if way == "is cancelled":
        await inside.wait()
        await place.cancel(job_id)
    ends = {"commits": EventName.JOB_COMPLETED, "raises": EventName.JOB_DEAD, "is cancelled": EventName.JOB_CANCELLED}
    await worker.log.wait(ends[way], job_id=job_id)
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=await place.enqueue("look", org_id=BOB))
    assert seen[0] == seen[1], "the session itself, and what is in it"
    assert seen[0][2] == [("bob",)]


async def test_two_tenants_at_once(place: Workplace, login: str) -> None:
    """Each sees its own rows, in sessions that they share by turns."""
    registry, seen = JobRegistry(), set()

    @registry.handler()
    async def work(payload: Payload, ctx: JobContext) -> None:
        for _ in range(5):
            async with ctx.org.transaction() as connection:
                seen.add((ctx.org.id, *(await fetch(connection, "select what from notes"))))

    worker = await place.start(registry, handler_connections_max=2)
    jobs = [await place.enqueue("work", org_id=org_id) for org_id in (ANN, BOB) * 4]
    for job_id in jobs:
        await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    assert seen == {(ANN, ("ann",)), (BOB, ("bob",))}


async def test_cancelled_transaction_says_so(place: Workplace, login: str) -> None:
    """As of a plain transaction: a cancel that came first is told as one."""
    registry, inside, go_on, raised = JobRegistry(), trio.Event(), trio.Event(), []

    @registry.handler(cooperative=True)
    async def work(payload: Payload, ctx: JobContext) -> None:
        try:
            async with ctx.org.transaction():
                inside.set()
                await go_on.wait()
        except JobCancelled:
            raised.append(True)
            raise

    worker = await place.start(registry)
    job_id = await place.enqueue("work", org_id=ANN, max_attempts=1)
    await inside.wait()
    await place.cancel(job_id)
    await worker.log.wait(EventName.JOB_INTERRUPTED, job_id=job_id)
    go_on.set()
    await worker.log.wait(EventName.JOB_CANCELLED, job_id=job_id)
    assert raised == [True]
