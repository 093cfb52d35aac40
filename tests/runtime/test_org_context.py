"""`ctx.org`: the tenant's settings, credentials, trail and jobs, and a library's session that is confined to it."""

from __future__ import annotations

import uuid
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import psycopg
import pydantic
import pytest
import sqlalchemy as sa
import trio
import trio.lowlevel
from psycopg.types.json import Jsonb
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

import pgnotifyq
from pgnotifyq import CredentialKeys, EventName, JobContext, JobRegistry, OrgId, org
from pgnotifyq.ledger import organisation
from pgnotifyq.model.credentials import KEYS_VARIABLE, new_key
from pgnotifyq.wire.asking import ask
from tests.asked import fetch, tenant_role, value
from tests.doors.callers_support import url
from tests.ledger.support import SCHEMA
from tests.runtime.apps import org_in_process
from tests.runtime.support import PATIENCE_SECONDS, Worker, Workplace

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

Payload = dict[str, Any]
OURS, THEIRS = org("acme"), org("umbrella")


@attrs.frozen
class Limits:
    """Of an outside service."""

    requests: int
    burst: int = 1


@attrs.frozen(kw_only=True)
class Settings:
    """What a program wants to know of a tenant."""

    max_mb: int = 10
    is_beta: bool = False
    stripe: Limits = Limits(requests=3)


class Model(pydantic.BaseModel):
    """The same, by pydantic."""

    max_mb: int = pydantic.Field(default=10, ge=1)
    is_beta: bool = False


async def ended(place: Workplace, worker: Worker, job_type: str = "work", **fields: object) -> Any:
    """Run a job of OURS, and return its result."""
    job_id = await place.enqueue(job_type, **{"org_id": OURS, **fields})
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    return (await place.job(job_id))["result"]


async def died(place: Workplace, worker: Worker, job_type: str = "work") -> str:
    """Run a job of OURS that fails, and return its error."""
    job_id = await place.enqueue(job_type, org_id=OURS, max_attempts=1)
    await worker.log.wait(EventName.JOB_DEAD, job_id=job_id)
    return str((await place.dead_letter(job_id))["error_message"])


def set_config(place: Workplace, name: str, given: object, of: OrgId = OURS) -> Awaitable[None]:
    return ask(place.connection, organisation.set_config(SCHEMA, of, name, given))


def in_each_way(registry: JobRegistry) -> Callable[[Callable[[JobContext], Awaitable[Any]]], None]:
    """Register what a handler does on trio, on asyncio, and in a thread."""

    def register(body: Callable[[JobContext], Awaitable[Any]]) -> None:
        @registry.handler("trio")
        async def on_trio(payload: Payload, ctx: JobContext) -> Any:
            return await body(ctx)

        @registry.handler("asyncio", runs_in="asyncio")
        async def on_asyncio(payload: Payload, ctx: JobContext) -> Any:
            return await body(ctx)

        @registry.handler("thread")
        def in_a_thread(payload: Payload, ctx: JobContext) -> Any:
            return ctx.org.blocking(body(ctx))  # type: ignore[arg-type]  # it is a coroutine

    return register


# Settings


@pytest.mark.parametrize("kind", [Settings, Model])
async def test_settings_as_a_type(place: Workplace, kind: Any) -> None:
    """The tenant's values, defaults for the rest, and nobody else's, in each kind of handler."""
    registry = JobRegistry()

    @in_each_way(registry)
    async def body(ctx: JobContext) -> Any:
        settings = await ctx.org.config(kind)
        return [settings.max_mb, settings.is_beta]

    await set_config(place, "max_mb", 25)
    await set_config(place, "is_beta", given=True, of=THEIRS)
    worker = await place.start(registry)
    for way in ("trio", "asyncio", "thread"):
        assert await ended(place, worker, way) == [25, False]
        assert await ended(place, worker, way, org_id=THEIRS) == [10, True]


async def test_settings_one_by_one(place: Workplace) -> None:
    """Nested types, flags that only true turns on, single values, and all of them as a dict that is the handler's own."""
    registry = JobRegistry()

    @registry.handler
    async def work(payload: Payload, ctx: JobContext) -> Any:
        config = ctx.org.config
        mine = await config(dict)
        mine["stripe"]["requests"] = 0  # of this copy
        mine.clear()
        return [
            attrs.asdict((await config(Settings)).stripe), await config.is_on("beta"), await config.is_on("one"),
            await config.is_on("none"), await config.get("one"), await config.get("none", 7), sorted(await config(dict)),
        ]  # fmt: skip

    for name, given in (("stripe", {"requests": 5}), ("beta", True), ("one", 1)):
        await set_config(place, name, given)
    worker = await place.start(registry)
    wanted = [{"requests": 5, "burst": 1}, True, False, False, 1, 7, ["beta", "one", "stripe"]]
    assert await ended(place, worker) == await ended(place, worker) == wanted


@pytest.mark.parametrize("kind", [Settings, Model])
async def test_setting_that_does_not_fit(place: Workplace, kind: Any) -> None:
    """Is an error of the handler's, which names the setting and does not show its value."""
    registry, raised = JobRegistry(), []

    @registry.handler
    async def work(payload: Payload, ctx: JobContext) -> None:
        try:
            await ctx.org.config(kind)
        except pgnotifyq.OrgConfigUnfit as error:
            raised.append(str(error))
            raise

    await set_config(place, "max_mb", "hush")
    worker = await place.start(registry)
    await died(place, worker)
    assert "max_mb" in raised[0] and "hush" not in raised[0] and str(OURS) in raised[0] and kind.__name__ in raised[0]


async def test_setting_with_payload_in_its_name(place: Workplace) -> None:
    """Is named as it is written."""
    registry, raised = JobRegistry(), []

    @attrs.frozen
    class Bounds:
        payload_bytes: int = 1

    @registry.handler
    async def work(payload: Payload, ctx: JobContext) -> None:
        try:
            await ctx.org.config(Bounds)
        except pgnotifyq.OrgConfigUnfit as error:
            raised.append(str(error))
            raise

    await set_config(place, "payload_bytes", "hush")
    worker = await place.start(registry)
    await died(place, worker)
    assert "config.payload_bytes" in raised[0], raised


async def test_settings_are_kept_and_a_change_is_heard(place: Workplace) -> None:
    """A thousand questions read once; after a change, by whomever, the next question sees it. Backstops are an hour."""
    registry = JobRegistry()

    @registry.handler
    async def work(payload: Payload, ctx: JobContext) -> int:
        for _ in range(1000):
            settings = await ctx.org.config(Settings)
        return settings.max_mb

    @registry.handler
    async def waits(payload: Payload, ctx: JobContext) -> None:
        with trio.fail_after(PATIENCE_SECONDS):
            while (await ctx.org.config(Settings)).max_mb != payload["until"]:
                await trio.sleep(0.01)

    worker = await place.start(registry)
    assert await ended(place, worker) == 10
    # If it asked, it would be told: this is not heard.
    await place.connection.execute("alter table pgnotifyq.org_config disable trigger workers_are_told")
    await set_config(place, "max_mb", 11)
    assert await ended(place, worker) == 10
    await place.connection.execute("alter table pgnotifyq.org_config enable trigger workers_are_told")
    for change, until in (("update pgnotifyq.org_config set value = '12'", 12), ("delete from pgnotifyq.org_config", 10)):
        await place.connection.execute(change.encode())
        await ended(place, worker, "waits", payload=f'{{"until": {until}}}')


async def test_change_while_it_is_read(place: Workplace) -> None:
    """What was read before the change, and arrives after it, is not kept."""
    from pgnotifyq.runtime.organisations import Kept

    reads, go_on = [], trio.Event()

    async def read(org_id: OrgId) -> int:
        reads.append(org_id)
        if len(reads) == 1:
            await go_on.wait()
        return len(reads)

    kept = Kept(read, lambda: 3600.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(kept.get, OURS)
        await trio.testing.wait_all_tasks_blocked()
        kept.forget()
        go_on.set()
    assert await kept.get(OURS) == 2
    assert await kept.get(OURS) == 2


async def test_settings_after_the_listener_was_gone(place: Workplace) -> None:
    """A change that nobody heard is seen once the listener is back."""
    registry = JobRegistry()

    @registry.handler
    async def work(payload: Payload, ctx: JobContext) -> int:
        return (await ctx.org.config(Settings)).max_mb

    worker = await place.start(registry)
    assert await ended(place, worker) == 10
    await place.connection.execute("alter table pgnotifyq.org_config disable trigger workers_are_told")
    await set_config(place, "max_mb", 11)
    await place.connection.execute("alter table pgnotifyq.org_config enable trigger workers_are_told")
    await place.connection.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'pgnotifyq listener' and datname = current_database()"
    )
    await worker.log.wait(EventName.LISTENER_CONNECTED, count=2)
    assert await ended(place, worker) == 11


async def test_no_more_tenants_are_kept_than_the_bound(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that were not asked for go first."""
    from pgnotifyq.runtime import organisations

    monkeypatch.setattr(organisations, "TENANTS_MAX", 2)
    reads: list[OrgId] = []

    async def read(org_id: OrgId) -> int:
        reads.append(org_id)
        return 1

    kept = organisations.Kept(read, lambda: 3600.0)
    one, two, three = org(1), org(2), org(3)
    for each in (one, two, one, three, one, two):
        await kept.get(each)
    assert reads == [one, two, three, two]


# Credentials


async def test_credential_of_the_tenant(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is opened with the key of the environment, in each kind of handler; another tenant's is not there; a change is seen."""
    key = new_key()
    monkeypatch.setenv(KEYS_VARIABLE, key)
    registry = JobRegistry()

    @in_each_way(registry)
    async def body(ctx: JobContext) -> Any:
        try:
            return await ctx.org.credentials.get("stripe")
        except pgnotifyq.CredentialNotFound:
            return None

    @registry.handler
    async def waits(payload: Payload, ctx: JobContext) -> None:
        with trio.fail_after(PATIENCE_SECONDS):
            while await ctx.org.credentials.get("stripe") != "changed":
                await trio.sleep(0.01)

    keys = CredentialKeys([key])
    await ask(place.connection, organisation.set_credential(SCHEMA, keys.seal(OURS, "stripe", "ours")))
    worker = await place.start(registry)
    for way in ("trio", "asyncio", "thread"):
        assert await ended(place, worker, way) == "ours"
        assert await ended(place, worker, way, org_id=THEIRS) is None
    await ask(place.connection, organisation.set_credential(SCHEMA, keys.seal(OURS, "stripe", "changed")))
    await ended(place, worker, "waits")


async def test_credential_moved_from_another_tenant(place: Workplace) -> None:
    """Does not open, and the handler is told."""
    keys = CredentialKeys([new_key()])
    registry = JobRegistry(credentials=keys)

    @registry.handler
    async def work(payload: Payload, ctx: JobContext) -> str:
        return await ctx.org.credentials.get("stripe")

    await ask(place.connection, organisation.set_credential(SCHEMA, keys.seal(THEIRS, "stripe", "theirs")))
    await place.connection.execute("update pgnotifyq.org_credentials set org_id = %s", (OURS,))
    worker = await place.start(registry)
    assert "does not open" in await died(place, worker)


async def test_without_a_key(place: Workplace) -> None:
    """The handler is told how to make one, and the worker goes on."""
    registry = JobRegistry()

    @registry.handler
    async def work(payload: Payload, ctx: JobContext) -> str:
        return await ctx.org.credentials.get("stripe")

    worker = await place.start(registry)
    assert "credentials new-key" in await died(place, worker)


async def test_provider_of_the_program(place: Workplace) -> None:
    """Is asked for the job's tenant: awaited if it is async, in a thread if it blocks; what is no text is refused."""
    asked = []

    class Vault:
        async def get(self, org_id: OrgId, name: str) -> str | None:
            asked.append((org_id, name))
            await trio.lowlevel.checkpoint()
            return None if name == "none" else f"{name} of {org_id}"

    class Blocks:
        def get(self, org_id: OrgId, name: str) -> Any:
            return trio.from_thread.run_sync(lambda: 5 if name == "five" else f"{name} of {org_id}")

    for provider in (Vault(), Blocks()):
        registry = JobRegistry(credentials=provider)

        @registry.handler
        async def work(payload: Payload, ctx: JobContext) -> str:
            return await ctx.org.credentials.get(payload["name"])

        worker = await place.start(registry)
        assert await ended(place, worker, payload='{"name": "stripe"}') == f"stripe of {OURS}"
        refused = "five" if isinstance(provider, Blocks) else "none"
        job_id = await place.enqueue("work", org_id=OURS, max_attempts=1, payload=f'{{"name": "{refused}"}}')
        await worker.log.wait(EventName.JOB_DEAD, job_id=job_id)
        await worker.leave()
    assert asked == [(OURS, "stripe"), (OURS, "none")]


# The trail


async def test_trail(place: Workplace) -> None:
    """On its own it is written whatever becomes of the job; in the tenant's transaction it commits with that, and names the job."""
    registry = JobRegistry()

    @in_each_way(registry)
    async def body(ctx: JobContext) -> Any:
        return str(await ctx.org.audit("looked", {"n": 1}))

    @registry.handler
    async def work(payload: Payload, ctx: JobContext) -> None:
        await ctx.org.audit("tried")
        async with ctx.org.transaction() as connection:
            await ctx.org.audit("did", Limits(requests=3), connection=connection)
        async with ctx.org.transaction() as connection:
            await ctx.org.audit("undone", connection=connection)
            raise ValueError("no luck")

    worker = await place.start(registry)
    for way in ("trio", "asyncio", "thread"):
        made = await ended(place, worker, way)
        (row,) = await ask(place.connection, organisation.list_audit(SCHEMA, OURS, limit=1))
        assert (str(row.id), row.action, row.details) == (made, "looked", {"n": 1})
    job_id = await place.enqueue("work", org_id=OURS, max_attempts=1)
    await worker.log.wait(EventName.JOB_DEAD, job_id=job_id)
    rows = await ask(place.connection, organisation.list_audit(SCHEMA, OURS, job_id=job_id))
    assert [(row.action, row.details) for row in rows] == [("did", {"requests": 3, "burst": 1}), ("tried", {})]
    ((execution_id,),) = await fetch(place.connection, "select id from pgnotifyq.job_executions where job_id = %s", job_id)
    assert {row.execution_id for row in rows} == {execution_id}


# Jobs


async def test_children(place: Workplace) -> None:
    """Are of the same tenant, at once or with the handler's transaction; another tenant is refused."""
    registry = JobRegistry()

    @registry.handler("child")
    async def child(payload: Payload, ctx: JobContext) -> str:
        return str(ctx.org.id)

    @in_each_way(registry)
    async def body(ctx: JobContext) -> Any:
        with pytest.raises(pgnotifyq.InvalidJob, match="another tenant"):
            await ctx.org.enqueue("child", org_id=THEIRS)
        return [str(await ctx.org.enqueue(child, {"n": 1}, priority=5)), str(await ctx.org.enqueue("child", org_id="acme"))]

    @registry.handler
    async def undone(payload: Payload, ctx: JobContext) -> None:
        with suppress(ZeroDivisionError):
            async with ctx.org.transaction() as connection:
                await ctx.org.enqueue("child", connection=connection)
                raise ZeroDivisionError

    worker = await place.start(registry)
    for way in ("trio", "asyncio", "thread"):
        for made in await ended(place, worker, way):
            await worker.log.wait(EventName.JOB_COMPLETED, job_id=made)
            assert (await place.job(pgnotifyq.JobId(uuid.UUID(made))))["result"] == str(OURS)
    before = await value(place.connection, "select count(*) from pgnotifyq.jobs where job_type = 'child'")
    await ended(place, worker, "undone")
    assert await value(place.connection, "select count(*) from pgnotifyq.jobs where job_type = 'child'") == before == 6


async def test_repository(place: Workplace) -> None:
    """Has the tenant's jobs, attempts and dead letters, in each kind of handler, and knows of no others."""
    registry = JobRegistry()

    @registry.handler(max_attempts=1)
    async def dies(payload: Payload) -> None:
        raise ValueError

    @in_each_way(registry)
    async def body(ctx: JobContext) -> Any:
        repository = ctx.org.repository
        (letter,) = await repository.dead(job_type="dies")
        theirs = uuid.UUID(await ctx.org.config.get("theirs"))
        for ask_for in (repository.get, repository.get_dead, ctx.org.cancel):
            with pytest.raises(pgnotifyq.JobNotFound):
                await ask_for(theirs)
        assert await repository.history(theirs) == []
        assert (await repository.get_dead(letter.id)).id == letter.id
        assert (await repository.get(letter.id)).status == "dead"
        assert await repository.count_dead() == 1
        assert {job.org_id for job in await repository.jobs()} == {OURS}
        (attempt,) = await repository.history(ctx.job.id)
        assert attempt.outcome == "running"
        return [str((await repository.get(ctx.job.id)).id), await repository.count(status="running")]

    worker = await place.start(registry)
    ids = [await place.enqueue("dies", org_id=each) for each in (OURS, THEIRS)]
    for job_id in ids:
        await worker.log.wait(EventName.JOB_DEAD, job_id=job_id)
    await set_config(place, "theirs", str(ids[1]))
    for way in ("trio", "asyncio", "thread"):
        job_id = await place.enqueue(way, org_id=OURS)
        await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
        assert (await place.job(job_id))["result"] == [str(job_id), 1]


async def test_many_handlers_with_a_transaction_each(place: Workplace) -> None:
    """Who holds all of the handlers' connections asks its tenant all the same: the question needs none of them."""
    registry, inside = JobRegistry(), []
    all_in = trio.Event()

    @registry.handler
    async def work(payload: Payload, ctx: JobContext) -> int:
        async with ctx.org.transaction():
            inside.append(1)
            if len(inside) == 2:
                all_in.set()
            await all_in.wait()
            return await ctx.org.repository.count()

    worker = await place.start(registry, handler_connections_max=2, handler_connection_seconds=0.5)
    jobs = [await place.enqueue("work", org_id=OURS) for _ in range(2)]
    for job_id in jobs:
        await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)


# Libraries of the handler's


@pytest.fixture
async def shop(place: Workplace) -> Workplace:
    """Give a queue beside a protected table of an application's."""
    await place.connection.execute(
        f"""
        drop table if exists notes;
        create table notes (org_id uuid not null default pgnotifyq.current_org(), what text);
        grant select, insert, update, delete on notes to {await tenant_role(place.connection)};
        """.encode()
    )
    await place.connection.execute("insert into notes values (%s, 'ours'), (%s, 'theirs')", (OURS, THEIRS))
    await place.connection.execute("select pgnotifyq.protect('notes', 'org_id')")
    return place


SEEN = sa.text("select array_agg(what order by what) from notes")
ADD = sa.text("insert into notes (what) values (:what)")


@pytest.mark.parametrize("way", ["blocking", "asyncio"])
async def test_session(shop: Workplace, way: str) -> None:
    """Sees and writes the tenant's rows alone, and completes its job; the connection goes back as it was, to the next tenant."""
    registry = JobRegistry()
    if way == "blocking":
        engine = sa.create_engine(url(shop.dsn, "psycopg"), pool_size=1, max_overflow=0)

        @registry.handler("work")
        def work(payload: Payload, ctx: JobContext) -> None:
            with ctx.org.session(partial(Session, engine), complete=True, result="done") as session:
                assert session.scalar(SEEN) == [payload["sees"]]
                session.execute(ADD, {"what": "new"})
            with Session(engine) as plain:
                assert (
                    plain.scalar(sa.text("select current_setting('role') || current_setting('pgnotifyq.org_id', true)")) == "none"
                )
    else:
        async_engine = create_async_engine(url(shop.dsn, "asyncpg"), pool_size=1, max_overflow=0)

        @registry.handler("work", runs_in="asyncio")
        async def work_async(payload: Payload, ctx: JobContext) -> None:
            async with ctx.org.session(partial(AsyncSession, async_engine), complete=True, result="done") as session:
                assert await session.scalar(SEEN) == [payload["sees"]]
                await session.execute(ADD, {"what": "new"})
                await ctx.org.audit("added", connection=session)

        @registry.handler("ends", runs_in="asyncio")
        async def ends(payload: Payload) -> None:
            await async_engine.dispose()

    worker = await shop.start(registry)
    assert await ended(shop, worker, payload='{"sees": "ours"}') == "done"
    assert await ended(shop, worker, payload='{"sees": "theirs"}', org_id=THEIRS) == "done"
    rows = await fetch(shop.connection, "select org_id from notes where what = 'new' order by org_id")
    assert rows == [(each,) for each in sorted((OURS, THEIRS))]
    if way == "blocking":
        engine.dispose()
    else:
        assert len(await ask(shop.connection, organisation.list_audit(SCHEMA, OURS, action="added"))) == 1
        await ended(shop, worker, "ends")


async def test_connection_of_psycopgs(shop: Workplace) -> None:
    """Is confined as a session is."""
    registry = JobRegistry()

    @registry.handler("work")
    def work(payload: Payload, ctx: JobContext) -> Any:
        with psycopg.connect(shop.dsn) as mine, ctx.org.connection(mine) as connection:
            row = connection.execute("select array_agg(what), current_user::text from notes").fetchone()
            connection.execute("select pgnotifyq.audit('looked')")
            return list(row)

    worker = await shop.start(registry)
    assert await ended(shop, worker) == [["ours"], await tenant_role(shop.connection)]
    (row,) = await ask(shop.connection, organisation.list_audit(SCHEMA, OURS))
    assert (row.action, row.job_id is not None) == ("looked", True)


@pytest.mark.parametrize(("attributes", "sees"), [("", ["ours"]), ("bypassrls", None)])
async def test_session_whose_role_may_not_be_the_tenants(shop: Workplace, attributes: str, sees: list[str] | None) -> None:
    """Is confined by the setting, and refused if nothing would confine it."""
    role = f"pgnotifyq_test_{uuid.uuid4().hex[:8]}"
    await shop.connection.execute(f"create role {role} login {attributes}".encode())
    await shop.connection.execute(f"grant usage on schema pgnotifyq to {role}; grant select on notes to {role}".encode())
    await shop.connection.execute("select pgnotifyq.keep_roles()")
    registry = JobRegistry()

    @registry.handler("work")
    def work(payload: Payload, ctx: JobContext) -> Any:
        with psycopg.connect(shop.dsn, user=role) as mine, ctx.org.connection(mine) as connection:
            row = connection.execute("select array_agg(what) from notes").fetchone()
            return row[0]

    try:
        worker = await shop.start(registry)
        if sees is not None:
            assert await ended(shop, worker) == sees
        else:
            assert "nothing would confine" in await died(shop, worker)
    finally:
        await shop.connection.execute(f"drop owned by {role}; drop role {role}".encode())


async def test_in_a_process(shop: Workplace) -> None:
    """A connection that the handler opens is confined, and what ctx.org asks goes over it; without one it is refused."""
    worker = await shop.start(org_in_process.registry)
    await shop.enqueue("other", org_id=THEIRS)
    result = await ended(shop, worker, "in_process", payload=Jsonb({"dsn": shop.dsn}))
    assert result == [3, 1, [["ours"]], str(OURS)]
    (row,) = await ask(shop.connection, organisation.list_audit(SCHEMA, OURS))
    assert (row.action, row.job_id is not None) == ("looked", True)


@pytest.fixture
async def login(shop: Workplace) -> AsyncIterator[str]:
    """Give a login that is a tenant's, as `migrate --tenant-login` makes it. Roles are the server's, so it goes."""
    name = str(await value(shop.connection, "select pgnotifyq.make_tenant_login()"))
    await shop.connection.execute("select pgnotifyq.keep_roles()")
    yield name
    await shop.connection.execute(f"delete from pgnotifyq.roles where role_name = '{name}'".encode())
    await shop.connection.execute("delete from pgnotifyq.tenant_logins")
    await shop.connection.execute(f"drop owned by {name}; drop role {name}".encode())


async def test_confined_by_a_token(shop: Workplace, login: str) -> None:
    """Over sessions of a tenant's login, the worker's and the handler's own, each way into ctx.org works, and a setting changes nothing."""
    registry = JobRegistry()

    @registry.handler("child")
    async def child(payload: Payload, ctx: JobContext) -> None: ...

    @registry.handler("work")
    async def work(payload: Payload, ctx: JobContext) -> Any:
        async with ctx.org.transaction() as connection:
            await ctx.org.audit("did", {"n": 1}, connection=connection)
            made = await ctx.org.enqueue("child", connection=connection)
            assert (await ctx.org.repository.get(made, connection=connection)).org_id == OURS
            assert await ctx.org.repository.count(connection=connection) == 2
            await connection.execute("select set_config('pgnotifyq.org_id', %s, true)", (str(THEIRS),))
            return [
                await value(connection, "select array_agg(what) from notes"),
                await value(connection, "select session_user::text"),
            ]

    @registry.handler("own")
    def own(payload: Payload, ctx: JobContext) -> Any:
        with psycopg.connect(shop.dsn, user=login) as mine, ctx.org.connection(mine) as connection:
            connection.execute("select set_config('pgnotifyq.org_id', %s, true)", (str(THEIRS),))
            connection.execute("select pgnotifyq.audit('looked')")
            row = connection.execute("select array_agg(what), session_user::text from notes").fetchone()
            return list(row or ())

    worker = await shop.start(registry)
    for job_type in ("work", "own"):
        assert await ended(shop, worker, job_type) == [["ours"], login]
    rows = await ask(shop.connection, organisation.list_audit(SCHEMA, OURS))
    assert [row.action for row in rows] == ["looked", "did"]
    assert {row.written_by for row in rows} == {login} and all(row.job_id for row in rows)
    assert await ask(shop.connection, organisation.list_audit(SCHEMA, THEIRS)) == []
