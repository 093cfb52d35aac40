"""Where attacks take place: a database that an owner without superuser has migrated, and two tenants.

Ann is the attacker's tenant, Bob the other one. Bob has a row in every table. What must not be seen of him has a mark in it, and
what must not change is compared byte by byte.
"""

from __future__ import annotations

import hmac
import secrets
import uuid
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import attrs
import psycopg
import trio
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pgnotifyq.ledger import roles
from pgnotifyq.ledger.roles import RoleKind
from pgnotifyq.migrating import migrate
from pgnotifyq.wire.asking import ask, ask_blocking
from pgnotifyq.wire.connection import open_connection

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pgnotifyq.ledger.roles import TenantLogin

Session = psycopg.Connection[Any]
ANN, BOB = uuid.UUID(int=0xA), uuid.UUID(int=0xB)
MARK = "bobs_secret"  # in what is Bob's
EXECUTION, WORKER = uuid.UUID(int=0xE), uuid.UUID(int=0xF)
KINDS = ("owner", "worker", "producer", "other_producer", "observer", "admin", "plain")
TABLES = ("jobs", "job_executions", "dead_letter_jobs", "job_troubles", "org_config", "org_credentials", "org_audit")

# What an administrator may do besides, who is a superuser: docs/rights.md, and a test compares.
ADMINISTRATOR = """\
alter role pgnotifyq_shop_tenant_login set track_activities = off;
revoke execute on function pg_terminate_backend(integer, bigint), pg_cancel_backend(integer) from public;
grant execute on function pg_terminate_backend(integer, bigint), pg_cancel_backend(integer) to shop_worker;
"""
ACCOUNTS = """
create table accounts (id serial primary key, org_id uuid not null, secret text, unique (org_id, secret));
alter table accounts enable row level security, force row level security;
create policy one_tenant on accounts
    using (not (select pgnotifyq.is_confined()) or org_id = (select pgnotifyq.current_org()))
    with check (not (select pgnotifyq.is_confined()) or org_id = (select pgnotifyq.current_org()));
grant select, insert, update, delete on accounts to {login};
grant usage on sequence accounts_id_seq to {login};
create table papers (account text, secret text);
create index on papers (pgnotifyq.org_or_null(account));
select pgnotifyq.protect('papers', 'account', 'select, insert, update, delete');
"""
BOBS = """
insert into accounts (org_id, secret) values ('{ann}', 'anns'), ('{bob}', '{mark}');
insert into papers values ('{ann}', 'anns'), ('{bob}', '{mark}');
insert into pgnotifyq.org_config (org_id, name, value) values ('{ann}', 'limit', '5'), ('{bob}', 'limit', '"{mark}"');
insert into pgnotifyq.org_credentials (org_id, name, key_id, sealed)
values ('{ann}', 'bank', 'k', '{mark}'), ('{bob}', 'bank', 'k', '{mark}');
insert into pgnotifyq.org_audit (org_id, action, details) values ('{bob}', 'billed', '{{"card": "{mark}"}}');
select pgnotifyq.enqueue('noop', org_id => '{ann}', queue_name => 'held');
select pgnotifyq.enqueue('noop', '{{"card": "{mark}"}}', '{bob}', 'held', unique_key => 'k');
insert into pgnotifyq.jobs (job_type, org_id, queue_name, payload, status, attempts, locked_by, current_execution_id, started_at,
    lease_expires_at)
values ('noop', '{bob}', 'held', '"{mark}"', 'running', 1, '{worker}', '{execution}', now(), now() + interval '1 hour');
insert into pgnotifyq.jobs (job_type, org_id, payload, status, attempts, completed_at, result)
values ('noop', '{bob}', '"{mark}"', 'completed', 1, now(), '"{mark}"');
insert into pgnotifyq.job_executions (id, job_id, org_id, attempt, outcome, started_at, ended_at, error_message)
select gen_random_uuid(), id, org_id, 1, 'completed', now(), now(), '{mark}' from pgnotifyq.jobs
where status = 'completed' and org_id = '{bob}';
insert into pgnotifyq.dead_letter_jobs (
    id, org_id, queue_name, job_type, payload, priority, scheduled_at, attempts, max_attempts, created_at, reason, history, died_at)
values (pgnotifyq.new_id(), '{bob}', 'held', 'noop', '"{mark}"', 0, now(), 1, 1, now(), 'exhausted', '["{mark}"]', now());
insert into pgnotifyq.job_executions (id, job_id, org_id, attempt, outcome, started_at, ended_at, error_message)
select gen_random_uuid(), id, org_id, 1, 'failed', now(), now(), '{mark}' from pgnotifyq.dead_letter_jobs;
insert into pgnotifyq.job_troubles (org_id, job_id, verb, sqlstate, error_message, first_at, last_at, tries, look_at)
select org_id, id, 'claim', '22000', '{mark}', now(), now(), 1, now() + interval '1 hour' from pgnotifyq.jobs
where org_id = '{bob}' and status = 'pending';
"""
IDS = """
select (select id from pgnotifyq.jobs where org_id = %(bob)s and status = 'pending'),
    (select id from pgnotifyq.jobs where org_id = %(bob)s and status = 'running'),
    (select id from pgnotifyq.jobs where org_id = %(bob)s and status = 'completed'),
    (select id from pgnotifyq.dead_letter_jobs where org_id = %(bob)s)
"""
FENCED = """
select pgnotifyq.fence(%s, %s),
    encode(int4send(pg_backend_pid()) || timestamptz_send(now()) || xid8send(pg_current_xact_id()), 'hex')
"""
SEAL = "select set_config('pgnotifyq.token', %s, true), set_config('pgnotifyq.org_id', %s, true)"


@attrs.frozen(eq=False)
class Stage:
    """A database to be attacked, as its superuser sees it."""

    admin: Session
    dsn: str
    names: dict[str, str]  # roles, by kind
    login: TenantLogin
    key: bytes
    ids: dict[str, uuid.UUID]  # of Bob's jobs and dead letter

    def of(self, kind: str) -> str:
        """Return the address of a role."""
        if kind == "handler":
            return make_conninfo(self.dsn, user=self.login.role_name, password=self.login.password)
        return make_conninfo(self.dsn, user=self.names[kind])

    def fill(self, statement: str) -> str:
        """Write in what a statement names in braces."""
        ids = {name: str(job_id) for name, job_id in self.ids.items()}
        known = {"ann": ANN, "bob": BOB, "execution": EXECUTION, "worker_id": WORKER, "login": self.login.role_name, **ids}
        for name, given in (*self.names.items(), *known.items()):
            statement = statement.replace("{" + name + "}", str(given))
        return statement

    def everything(self) -> list[Any]:
        """Return all that is Bob's, versions of rows included, and how many rows are his."""
        found = [
            self.admin.execute(
                f"select t.ctid::text, t.xmin::text, to_jsonb(t) from pgnotifyq.{table} as t where org_id = %s order by 1".encode(),
                (BOB,),
            ).fetchall()
            for table in TABLES
        ]
        found.append(self.admin.execute("select ctid::text, xmin::text, * from accounts where org_id = %s", (BOB,)).fetchall())
        found.append(
            self.admin.execute("select ctid::text, xmin::text, * from papers where account = %s", (str(BOB),)).fetchall()
        )
        found.append(self.admin.execute("select polname, polroles::text from pg_policy order by 1, 2").fetchall())
        found.append(
            self.admin.execute(
                "select rolname, rolsuper, rolcreaterole, rolbypassrls from pg_roles where rolname = any (%s) order by 1",
                ([*self.names.values(), self.login.role_name],),
            ).fetchall()
        )
        return found

    @contextmanager
    def as_handler(self, key: bytes | None = None) -> Iterator[Session]:
        """Open a session in a transaction of Ann's, as a worker does for a handler's."""
        job_id, execution_id = uuid.uuid4(), uuid.uuid4()
        self.admin.execute(
            "insert into pgnotifyq.jobs (id, job_type, org_id, status, attempts, locked_by, current_execution_id, started_at,"
            " lease_expires_at) values (%s, 'attack', %s, 'running', 1, %s, %s, now(), now() + interval '1 hour')",
            (job_id, ANN, WORKER, execution_id),
        )
        with psycopg.connect(self.of("handler"), autocommit=True) as session:
            session.execute("begin")
            seal(session, key or self.key, ANN, job_id, execution_id)
            yield session
            session.rollback()

    @contextmanager
    def as_role(self, kind: str) -> Iterator[Session]:
        """Open a session of a role's, in a transaction."""
        with psycopg.connect(self.of(kind), autocommit=True) as session:
            session.execute("begin")
            yield session


def seal(session: Session, key: bytes, org_id: uuid.UUID, job_id: uuid.UUID, execution_id: uuid.UUID) -> str:
    """Fence and seal the transaction of a session; return its token."""
    row = session.execute(FENCED, (job_id, execution_id)).fetchone()
    assert row is not None
    token = str(org_id) + hmac.digest(key, str(org_id).encode() + bytes.fromhex(row[1]), "sha256").hex()
    session.execute(SEAL, (token, str(org_id)))
    return token


@contextmanager
def open_stage(admin_dsn: str) -> Iterator[Stage]:
    """Give a stage in a database of its own, which is dropped at the end, and so are its roles."""
    suffix = secrets.token_hex(4)
    database = f"attacked_{suffix}"
    names = {kind: f"{kind}_{suffix}" for kind in KINDS}
    dsn = make_conninfo(admin_dsn, dbname=database)
    with psycopg.connect(admin_dsn, autocommit=True) as server:
        for kind, name in names.items():
            options = "createrole" if kind == "owner" else ""
            server.execute(sql.SQL("create role {} login " + options).format(sql.Identifier(name)))
        server.execute(sql.SQL("create database {} owner {}").format(sql.Identifier(database), sql.Identifier(names["owner"])))
        try:
            with psycopg.connect(dsn, autocommit=True) as admin:
                yield _prepared(admin, dsn, names)
        finally:
            server.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(database)))
            made = server.execute("select rolname from pg_roles where position(%s in rolname) > 0", (suffix,)).fetchall()
            for (name,) in made:
                with suppress(psycopg.errors.DependentObjectsStillExist):
                    server.execute(sql.SQL("drop owned by {}").format(sql.Identifier(name)))
            for (name,) in sorted(made, key=lambda row: row[0] == names["owner"]):
                server.execute(sql.SQL("drop role {}").format(sql.Identifier(name)))


def _prepared(admin: Session, dsn: str, names: dict[str, str]) -> Stage:
    async def make() -> None:
        async with open_connection(make_conninfo(dsn, user=names["owner"])) as owner:
            await migrate(owner)
            for kind in ("producer", "worker", "observer", "admin"):
                await ask(owner, roles.grant("pgnotifyq", RoleKind(kind), names[kind]))
            await ask(owner, roles.grant("pgnotifyq", RoleKind.PRODUCER, names["other_producer"]))
            await ask(owner, roles.make_tenant_login("pgnotifyq"))
            await ask(owner, roles.keep("pgnotifyq"))

    trio.run(make)
    with psycopg.connect(make_conninfo(dsn, user=names["worker"]), autocommit=True) as worker:
        login = ask_blocking(worker, roles.tenant_login("pgnotifyq"))
        key = ask_blocking(worker, roles.tenant_key("pgnotifyq"))
    assert login is not None
    assert key is not None
    said = ADMINISTRATOR.replace("pgnotifyq_shop_tenant_login", login.role_name).replace("shop_worker", names["worker"])
    admin.execute(said.encode())
    with psycopg.connect(make_conninfo(dsn, user=names["owner"]), autocommit=True) as owner:
        owner.execute(ACCOUNTS.format(login=login.role_name).encode())
    admin.execute(BOBS.format(ann=ANN, bob=BOB, mark=MARK, execution=EXECUTION, worker=WORKER).encode())
    admin.execute("analyze")
    row = admin.execute(IDS, {"bob": BOB}).fetchone()
    assert row is not None
    ids = dict(zip(("pending_id", "running_id", "completed_id", "dead_id"), row, strict=True))
    return Stage(admin, dsn, names, login, key, ids)
