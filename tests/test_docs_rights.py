"""docs/rights.md: what it grants is enough for each role, and each right is missed."""

from __future__ import annotations

import functools
import os
import re
import secrets
import subprocess
import sys
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import attrs
import psycopg
import pytest
import trio
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

import pgnotifyq
import pgnotifyq.sync
from pgnotifyq.ledger import doctor, roles
from pgnotifyq.model.credentials import new_key
from pgnotifyq.wire.asking import ask_blocking
from tests.attacks.stage import ADMINISTRATOR
from tests.pages import DOCS, named

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BLOCKS = named(DOCS / "rights.md")
ROLES = ("shop_owner", "shop_web", "shop_worker", "shop_grafana")
GRANT = re.compile(r"grant ([^;]*?) on (?!schema|database)([^;]*?) to ([^;]*?);")
registry = pgnotifyq.JobRegistry(credentials=pgnotifyq.CredentialKeys([new_key()]))


@registry.handler("who", max_attempts=1)
async def who(payload: dict[str, str], ctx: pgnotifyq.JobContext) -> str:
    await ctx.progress(0.5, "half-way")
    async with ctx.org.transaction() as connection:
        row = await (await connection.execute("select current_user::text")).fetchone()
    assert row is not None
    return str(row[0])


@registry.handler("write", max_attempts=1)
async def write(payload: dict[str, str], ctx: pgnotifyq.JobContext) -> None:
    async with ctx.transaction(complete=True) as connection:
        await connection.execute("select 1")


@registry.handler("fail", max_attempts=2)
async def fail(payload: dict[str, str], ctx: pgnotifyq.JobContext) -> pgnotifyq.Retry | pgnotifyq.Discard:
    return pgnotifyq.Retry(seconds=0.01) if ctx.attempt == 1 else pgnotifyq.Discard(reason="that was all")


@registry.handler("ask", max_attempts=1)
async def ask_for_org(payload: dict[str, str], ctx: pgnotifyq.JobContext) -> list[str]:
    found = []
    for ask in (ctx.org.config(dict), ctx.org.credentials.get("bank"), ctx.org.audit("asked")):
        try:
            await ask
        except (pgnotifyq.MissingRights, pgnotifyq.CredentialNotFound) as error:
            found.append(f"{type(error).__name__} {error}")
    return found


@registry.handler("stay")
async def stay(payload: dict[str, str]) -> None:
    await trio.sleep_forever()


@attrs.frozen
class Shop:
    """A database where the page has been followed, with the roles under names of this test's."""

    admin: psycopg.Connection
    dsn: str
    suffix: str

    def say(self, block: str, *, but_not: tuple[str, str] | None = None) -> None:
        """Say a block; then take one right of it back."""
        self.admin.execute(self.ours(BLOCKS[block]))
        if "pgnotifyq." in BLOCKS[block]:
            self.admin.execute("select pgnotifyq.keep_roles()")  # as `migrate` does
        if but_not is not None:
            what, role = but_not
            self.admin.execute(self.ours(f"revoke {what} from {role}"))

    def ours(self, text: str) -> Any:
        database = str(conninfo_to_dict(self.dsn)["dbname"])
        text = text.replace("database shop ", f"database {database} ").replace("pgnotifyq_shop_tenant", self.tenant)
        return re.sub(r"\b(shop_\w+)", rf"\1_{self.suffix}", text)

    @property
    def tenant(self) -> str:
        """Return the role of tenants. It has the name of the database that was migrated, a template of this one perhaps."""
        if self.admin.execute("select to_regclass('pgnotifyq.roles')").fetchone() != (None,):
            row = self.admin.execute("select role_name from pgnotifyq.roles where kind = 'tenant'").fetchone()
            if row is not None:
                return str(row[0])
        return f"pgnotifyq_{self.admin.info.dbname}_tenant"

    def of(self, role: str) -> str:
        return make_conninfo(self.dsn, user=f"{role}_{self.suffix}")


@pytest.fixture
def open_shop() -> Iterator[Callable[[str], Shop]]:
    with ExitStack() as stack:

        def at(dsn: str) -> Shop:
            admin = stack.enter_context(psycopg.connect(dsn, autocommit=True))
            is_superuser = admin.execute("select rolsuper from pg_roles where rolname = current_user").fetchone()
            if is_superuser != (True,):
                pytest.skip("the server's role may not make roles")
            shop = Shop(admin, dsn, secrets.token_hex(4))
            stack.callback(drop, shop)
            shop.say("roles")
            return shop

        yield at


def drop(shop: Shop) -> None:
    for role in ROLES:
        name = sql.Identifier(f"{role}_{shop.suffix}")
        shop.admin.execute(sql.SQL("drop owned by {} cascade").format(name))
        shop.admin.execute(sql.SQL("drop role {}").format(name))


@pytest.fixture
def shop(dsn: str, open_shop: Callable[[str], Shop]) -> Shop:
    shop = open_shop(dsn)
    shop.say("everybody")
    return shop


def rights(block: str) -> list[tuple[str, str]]:
    """Return each right of a block by itself, as `revoke` has it, with its role."""
    found = []
    for privileges, tables, role in GRANT.findall(BLOCKS[block]):
        each = [privileges] if "(" in privileges else privileges.split(", ")
        found += [(f"{privilege} on {table.strip()}", role) for privilege in each for table in tables.split(",")]
    return found


def each_of(*names: str) -> pytest.MarkDecorator:
    cases = [(name, right) for name in names for right in rights(name)]
    return pytest.mark.parametrize(("block", "right"), cases, ids=[f"{name}-{right[0]}" for name, right in cases])


def beside_a_worker(shop: Shop, queue: str, act: Callable[[Shop], None]) -> None:
    """Do something while a worker, of no role of the page's, sleeps and has published its handler."""
    handlers = pgnotifyq.JobRegistry()
    handlers.handler("who", queue=queue)(_nothing)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            worker = await nursery.start(functools.partial(pgnotifyq.run_worker, handlers, shop.dsn, queues=[queue]))
            while shop.admin.execute("select count(*) from pgnotifyq.sleepers").fetchone() == (0,):
                await trio.sleep(0.02)
            try:
                await trio.to_thread.run_sync(act, shop)
            finally:
                worker.drain()

    try:
        trio.run(main)
    except* pgnotifyq.MissingRights as errors:
        raise errors.exceptions[0] from None


def enqueue(shop: Shop) -> None:
    """Enqueue in every way, while a worker is to be woken."""
    beside_a_worker(shop, "default", _enqueue_each)


async def _nothing(payload: object) -> None:
    pass


def _enqueue_each(shop: Shop) -> None:
    with psycopg.connect(shop.of("shop_web")) as session, pgnotifyq.sync.open_client(shop.of("shop_web")) as client:
        client.enqueue("who", {}, connection=session)
        client.enqueue("who", {}, unique_key="once")
        client.enqueue("who", {}, unique_key="once")
        client.enqueue_many([{"job_type": "who"}] * 3)
        client.enqueue_many([{"job_type": "who"}] * 200)
        session.execute("select pgnotifyq.enqueue(job_type => 'who', unique_key => 'twice')")


def cancel(shop: Shop) -> None:
    with pgnotifyq.sync.open_client(shop.of("shop_web")) as client:
        job_id = client.enqueue("who", {})
        with pytest.raises(pgnotifyq.WaitTimeout):
            client.wait(job_id, timeout_seconds=0.05)
        assert client.cancel(job_id) == "cancelled"
        assert client.wait(job_id, timeout_seconds=10).status == "cancelled"
        assert client.get(job_id).status == "cancelled"


def look(shop: Shop) -> None:
    with pgnotifyq.sync.open_client(shop.of("shop_web")) as client:
        job_id = client.enqueue("who", {})
        assert client.history(job_id) == []
        with suppress(pgnotifyq.JobNotFound):
            client.get_dead(job_id)


def observe(shop: Shop) -> None:
    with pgnotifyq.sync.open_client(shop.dsn) as client:
        job_id = client.enqueue("who", {})
    with pgnotifyq.sync.open_client(shop.of("shop_grafana")) as client:
        assert client.jobs()[0].id == job_id
        client.history(job_id)
        client.explain(job_id)
        client.dead()
        client.schedules()
        client.workers()
        client.stats()


def work(shop: Shop, *job_types: str) -> dict[str, Any]:
    """Let a worker of the page's role run jobs; return their rows by type, once all have ended."""
    with pgnotifyq.sync.open_client(shop.dsn) as client:
        for job_type in job_types:
            client.enqueue(job_type, {})

    async def main() -> dict[str, Any]:
        run = functools.partial(pgnotifyq.run_worker, registry, shop.of("shop_worker"))
        async with trio.open_nursery() as nursery, pgnotifyq.open_client(shop.dsn) as client:
            worker = await nursery.start(run)
            ended: dict[str, Any] = {}
            for job in await client.jobs():
                if job.job_type == "stay":
                    while (await client.get(job.id)).status != "running":
                        await trio.sleep(0.02)
                    await client.cancel(job.id, wait_seconds=10)
                with suppress(pgnotifyq.JobDead):
                    await client.wait(job.id, timeout_seconds=30)
                    ended[job.job_type] = await client.get(job.id)
            worker.drain()
        return ended

    return trio.run(main)


def test_every_block_is_said() -> None:
    """Here."""
    assert set(BLOCKS) == {
        "roles", "owner", "tenant role", "everybody", "producer", "producer by name", "producer cancels", "producer looks",
        "worker", "worker tenant", "worker of tenants", "observer", "short way", "superuser",
    }  # fmt: skip


def test_short_way(dsn: str, open_shop: Callable[[str], Shop]) -> None:
    """The command gives each role all that it needs, and nothing that is too much."""
    shop = open_shop(dsn)
    for line in shop.ours(BLOCKS["short way"]).splitlines():
        subprocess.run([sys.executable, *line.split()[1:]], check=True, env={**os.environ, "PGNOTIFYQ_DSN": dsn})
    enqueue(shop)
    cancel(shop)
    look(shop)
    shop.admin.execute("delete from pgnotifyq.jobs")
    assert work(shop, "who")["who"].result == f"pgnotifyq_{shop.admin.info.dbname}_tenant_login"
    with psycopg.connect(dsn, autocommit=True) as session:
        assert [each for each in ask_blocking(session, roles.faults("pgnotifyq")) if shop.suffix in each.role_name] == []
    shop.admin.execute("delete from pgnotifyq.jobs")
    observe(shop)


def test_superuser() -> None:
    """What superusers may say besides is what is said before attacks are made (tests/attacks)."""
    assert BLOCKS["superuser"] == ADMINISTRATOR


def test_owner(blank_dsn: str, open_shop: Callable[[str], Shop]) -> None:
    """Makes the schema, and cannot without the right."""
    shop = open_shop(blank_dsn)

    async def migrate() -> None:
        async with await pgnotifyq.connect(shop.of("shop_owner")) as connection:
            await pgnotifyq.migrate(connection)

    with pytest.raises(pgnotifyq.MissingRights):
        trio.run(migrate)
    shop.say("owner")
    trio.run(migrate)
    shop.admin.execute(shop.ours("revoke create on database shop from shop_owner"))
    trio.run(migrate)


def test_tenant_role_made_before(blank_dsn: str, open_shop: Callable[[str], Shop]) -> None:
    """An owner who makes no roles uses it."""
    shop = open_shop(blank_dsn)
    shop.say("owner")
    shop.say("tenant role")

    async def migrate() -> None:
        async with await pgnotifyq.connect(shop.of("shop_owner")) as connection:
            await pgnotifyq.migrate(connection)

    trio.run(migrate)
    row = shop.admin.execute("select has_any_column_privilege(%s, 'pgnotifyq.jobs', 'insert')", (shop.tenant,)).fetchone()
    assert row == (True,)
    shop.admin.execute(f"drop owned by {shop.tenant}".encode())


def test_producer(shop: Shop) -> None:
    """Enqueues, with the first block; and no more."""
    shop.say("producer")
    enqueue(shop)
    with pytest.raises(pgnotifyq.MissingRights):
        cancel(shop)
    with pytest.raises(pgnotifyq.MissingRights):
        look(shop)
    shop.say("producer cancels")
    cancel(shop)
    shop.say("producer looks")
    look(shop)


def test_producer_by_name(shop: Shop) -> None:
    """The handler's queue is taken where the right is there, else `default`."""
    shop.say("producer")

    def look_twice(shop: Shop) -> None:
        with pgnotifyq.sync.open_client(shop.of("shop_web")) as producer:
            first = producer.enqueue("who", {}, delay_seconds=3600)
            shop.say("producer by name")
            queues.extend(producer.get(job_id).queue_name for job_id in (first, producer.enqueue("who", {}, delay_seconds=3600)))

    queues: list[str] = []
    beside_a_worker(shop, "mail", look_twice)
    assert queues == ["default", "mail"]


DOES = {"producer": enqueue, "producer cancels": cancel, "producer looks": look, "observer": observe}


@each_of("everybody", "producer")
def test_producer_without_one_right(block: str, right: tuple[str, str], shop: Shop) -> None:
    """Is told which."""
    shop.say("producer")
    shop.say(block, but_not=(right[0], "shop_web"))
    with pytest.raises(pgnotifyq.MissingRights, match=right[0].rpartition(".")[2]):
        enqueue(shop)


@each_of("producer cancels", "producer looks", "observer")
def test_without_one_right(block: str, right: tuple[str, str], shop: Shop) -> None:
    """Who looks and cancels is told, too; with all of them, it works."""
    shop.say("producer")
    shop.say(block)
    DOES[block](shop)
    shop.say(block, but_not=right)
    with pytest.raises(pgnotifyq.MissingRights):
        DOES[block](shop)


def test_worker(shop: Shop) -> None:
    """Completes, retries, buries and stops jobs, prunes, and is confined to a tenant once it may take that role on."""
    shop.say("worker")
    ended = work(shop, "who", "write", "fail", "stay")
    assert {kind: str(job.status) for kind, job in ended.items()} == {
        "who": "completed",
        "write": "completed",
        "stay": "cancelled",
    }
    assert ended["who"].result == f"shop_worker_{shop.suffix}"
    assert shop.admin.execute("select count(*) from pgnotifyq.dead_letter_jobs").fetchone() == (1,)
    assert shop.admin.execute("select count(*) from pgnotifyq.job_troubles").fetchone() == (0,)
    shop.say("worker tenant")
    shop.admin.execute("delete from pgnotifyq.jobs")
    assert work(shop, "who")["who"].result == shop.tenant


@pytest.mark.parametrize("kind", ["producer", "tenant"])
def test_roles_that_make_no_schedules(shop: Shop, kind: str) -> None:
    """Nor change or see any: each verb says whose schedules are, and what to do."""
    name = f"shop_web_{shop.suffix}"
    dsn = shop.of("shop_web")
    subprocess.run([sys.executable, "-m", "pgnotifyq", "migrate", "--dsn", shop.dsn, f"--grant-{kind}", name], check=True)
    with pgnotifyq.sync.open_client(dsn) as client:
        verbs: list[Callable[[], object]] = [
            lambda: client.schedule("nightly", "0 3 * * *", "who"),
            lambda: client.pause_schedule("nightly"),
            lambda: client.resume_schedule("nightly"),
            lambda: client.run_schedule("nightly"),
            lambda: client.unschedule("nightly"),
            client.schedules,
        ]
        for verb in verbs:
            with pytest.raises(pgnotifyq.MissingRights, match=r"permission denied.*registry\.every.*--grant-admin"):
                verb()


def test_worker_of_stacks(shop: Shop) -> None:
    """May ask with the block, and is told the right that it lacks without."""
    shop.say("worker", but_not=("insert on pgnotifyq.stack_requests", "shop_worker"))
    with psycopg.connect(shop.of("shop_worker"), autocommit=True) as session:
        ask = b"select is_there from pgnotifyq.ask_stack((select id from pgnotifyq.jobs))"
        shop.admin.execute(
            b"insert into pgnotifyq.jobs (job_type, status, attempts, started_at, locked_by, current_execution_id, lease_expires_at)"
            b" values ('x', 'running', 1, now(), gen_random_uuid(), gen_random_uuid(), now() + interval '1 min')"
        )
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="stack_requests"):
            session.execute(ask)
        shop.say("worker")
        assert session.execute(ask).fetchone() == (True,)


def test_worker_of_tenants(shop: Shop) -> None:
    """Is asked for settings, credentials and the trail with the block, and is told each right that it lacks."""
    shop.say("worker")
    for right in (None, *rights("worker of tenants")):
        shop.say("worker of tenants", but_not=right)
        shop.admin.execute("delete from pgnotifyq.jobs")
        told = [each for each in work(shop, "ask")["ask"].result if not each.startswith("CredentialNotFound ")]
        assert len(told) == (right is not None)
        assert right is None or right[0].partition("pgnotifyq.")[2] in told[0]


def test_worker_without_one_right(shop: Shop) -> None:
    """`doctor` names it, whichever it is; with all of them, it names none."""
    shop.say("worker")
    with psycopg.connect(shop.of("shop_worker"), autocommit=True) as session:
        assert missing(session) == ""
        for right, role in rights("worker"):
            shop.say("worker", but_not=(right, role))
            assert missing(session) == right.replace("pgnotifyq.", "")
            shop.say("worker")


def missing(session: psycopg.Connection) -> str:
    """Return what `doctor` says is missing; where it may not even look, the table."""
    try:
        [facts] = ask_blocking(session, doctor.facts("pgnotifyq"))
    except psycopg.errors.InsufficientPrivilege as error:
        return f"select on {str(error).split()[-1]}"
    return str(facts["rights_missing"])
