"""Settings, credentials, the audit trail and protected tables, wherever a queue lives, and however it came there."""

from __future__ import annotations

import functools
import shutil
import subprocess
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest
import trio
from psycopg.conninfo import conninfo_to_dict, make_conninfo

import pgnotifyq
from pgnotifyq.embedded import _carried_binaries, _installed_binaries
from pgnotifyq.ledger import organisation, roles
from pgnotifyq.model.credentials import CredentialKeys, new_key
from pgnotifyq.model.job import OrgId
from pgnotifyq.wire.asking import ask, ask_blocking
from pgnotifyq.wire.connection import open_connection
from tests.pooler.support import BINARY, open_pooler
from tests.runtime.test_roles import ANN, BOB, ask_blocking_as, databases, migrated

KEYS = CredentialKeys([new_key()])
ORDERS = "create table public.orders (id uuid primary key default gen_random_uuid(), org_id uuid, what text); create index on public.orders (org_id)"


def furnish(dsn: str, schema: str = "pgnotifyq") -> None:
    """Give both tenants a setting, a credential, a row of the trail, and a row in a table of the application's."""
    with psycopg.connect(dsn, autocommit=True) as owner:
        for each, word in ((OrgId(ANN), "anns"), (OrgId(BOB), "bobs")):
            ask_blocking(owner, organisation.set_config(schema, each, "word", f"{schema} {word}"))
            ask_blocking(owner, organisation.set_credential(schema, KEYS.seal(each, "bank", f"{schema} {word}")))
            ask_blocking(owner, organisation.audit_for(schema, each, f"{schema} {word}"))
        if owner.execute("select to_regclass('public.orders')").fetchone() == (None,):
            owner.execute(ORDERS.encode())
            owner.execute("insert into orders (org_id, what) values (%s, 'anns'), (%s, 'bobs')", (ANN, BOB))
        ask_blocking(owner, organisation.protect(schema, "public.orders", "org_id", "select, insert"))


def found_by(dsn: str, schema: str = "pgnotifyq", *, changes: bool = False, **worker_settings: Any) -> dict[str, Any]:
    """Run a handler of Ann's, and return what it found; with `changes`, once more after her setting was changed."""
    registry = pgnotifyq.JobRegistry(credentials=KEYS)
    found: dict[str, Any] = {}
    again = trio.Event()

    @registry.handler("look", max_attempts=1)
    async def look(payload: dict[str, Any], ctx: pgnotifyq.JobContext) -> None:
        if payload:
            while await ctx.org.config.get("word") != payload["word"]:
                await trio.sleep(0.01)
            found["changed"] = payload["word"]
            return
        found["config"] = await ctx.org.config.get("word")
        found["credential"] = await ctx.org.credentials.get("bank")
        async with ctx.org.transaction() as connection:
            cursor = await connection.execute("select array_agg(distinct what) from orders")
            found["orders"] = await cursor.fetchone()
            await connection.execute("insert into orders (org_id, what) values (%s, 'anns')", (ANN,))
            await ctx.org.audit("looked", connection=connection)
            cursor = await connection.execute(f"select array_agg(distinct org_id) from {schema}.org_audit".encode())
            found["audit"] = await cursor.fetchone()
            for table in ("org_credentials", "tenant_keys", "tenant_logins"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    async with connection.transaction():
                        await connection.execute(f"select * from {schema}.{table}".encode())
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                async with connection.transaction():
                    await connection.execute("insert into orders (org_id, what) values (%s, 'forged')", (BOB,))
        again.set()

    direct = worker_settings.get("listen_dsn") or dsn

    async def main() -> None:
        async with trio.open_nursery() as nursery, pgnotifyq.open_client(direct, schema=schema) as client:
            run = functools.partial(
                pgnotifyq.run_worker, registry, dsn, schema=schema, on_event=lambda _: None, **worker_settings
            )
            worker = await nursery.start(run)
            job = await client.wait(await client.enqueue("look", {}, org_id=ANN), timeout_seconds=30)
            assert job.status == "completed", job
            if changes:
                async with open_connection(direct) as owner:
                    await ask(owner, organisation.set_config(schema, OrgId(ANN), "word", "new"))
                job = await client.wait(await client.enqueue("look", {"word": "new"}, org_id=ANN), timeout_seconds=30)
                assert job.status == "completed", job
            worker.drain()

    trio.run(main)
    return found


def wanted(schema: str = "pgnotifyq") -> dict[str, Any]:
    """Return what a handler of Ann's finds."""
    return {"config": f"{schema} anns", "credential": f"{schema} anns", "orders": (["anns"],), "audit": ([ANN],)}


def test_two_schemas_of_one_database(server_dsn: str) -> None:
    """Each has settings, credentials and a trail of its own; a table that both protect shows a tenant's rows alone to both."""
    with databases(server_dsn, "createrole") as (_, [dsn]):
        for schema in ("first", "second"):
            migrated(dsn, schema, login=True)
            furnish(dsn, schema)
        for schema in ("first", "second"):
            assert found_by(dsn, schema) == wanted(schema)
        login = ask_blocking_as(dsn, roles.tenant_login("first"))
        with psycopg.connect(make_conninfo(dsn, user=login.role_name, password=login.password), autocommit=True) as session:
            assert session.execute("select count(*) from orders").fetchone() == (0,)
            session.execute("select set_config('pgnotifyq.org_id', %s, false)", (str(BOB),))
            assert session.execute("select count(*) from orders").fetchone() == (0,)
            for table in ("org_config", "org_credentials", "org_audit", "org_names"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    session.execute(f"select * from second.{table}".encode())
        ask_blocking_as(dsn, organisation.unprotect("second", "public.orders"))
        assert found_by(dsn, "first") == wanted("first")


def test_two_databases_of_one_server(server_dsn: str) -> None:
    """Each has its own, and the login of one reads nothing of the other's, protected tables included."""
    with databases(server_dsn, "createrole", "createrole") as (_, dsns):
        for dsn in dsns:
            migrated(dsn, login=True)
            furnish(dsn)
        for dsn in dsns:
            assert found_by(dsn) == wanted()
        login = ask_blocking_as(dsns[0], roles.tenant_login("pgnotifyq"))
        there = make_conninfo(dsns[1], user=login.role_name, password=login.password)
        with psycopg.connect(there, autocommit=True) as session:
            for table in (
                "orders",
                "pgnotifyq.org_config",
                "pgnotifyq.org_credentials",
                "pgnotifyq.org_audit",
                "pgnotifyq.org_names",
            ):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    session.execute(f"select * from {table}".encode())


@pytest.mark.skipif(BINARY is None, reason="pgbouncer is not installed: apt-get install pgbouncer")
def test_behind_a_pooler(server_dsn: str) -> None:
    """In transaction mode all of it works, and a setting that changes is told, by the address for LISTEN."""
    with databases(server_dsn, "createrole") as (_, [dsn]), ExitStack() as stack:
        migrated(dsn, login=True)
        furnish(dsn)
        login = ask_blocking_as(dsn, roles.tenant_login("pgnotifyq"))
        pooler = stack.enter_context(open_pooler(dsn, default_pool_size=3))
        tenants = make_conninfo(dsn, user=login.role_name, password=login.password)
        tenant_pooler = stack.enter_context(open_pooler(tenants, default_pool_size=1))
        found = found_by(pooler.dsn, changes=True, listen_dsn=dsn, tenant_dsn=tenant_pooler.dsn)
        assert found == {**wanted(), "changed": "new"}


def test_restored_where_the_roles_are_not(server_dsn: str) -> None:
    """What a tenant has is there after `migrate`; a protected table stays protected, and its rights are given by `protect`."""
    with databases(server_dsn, "createrole", "createrole") as (server, [one, other]):
        version = server.info.server_version // 10_000
        binaries = (_installed_binaries if version == 15 else _carried_binaries)(version)
        assert shutil.which(binaries.bin / "pg_dump")
        migrated(one, login=True)
        furnish(one)
        with psycopg.connect(one, autocommit=True) as session:
            made = [name for (name,) in session.execute("select role_name from pgnotifyq.roles where kind = 'tenant'")]
        names = [str(conninfo_to_dict(dsn)["dbname"]) for dsn in (one, other)]
        owner, new_owner = (str(conninfo_to_dict(dsn)["user"]).encode() for dsn in (one, other))
        admin, theirs = (make_conninfo(server_dsn, dbname=name) for name in names)
        dump = subprocess.run([binaries.bin / "pg_dump", "--dbname", admin], capture_output=True, check=True).stdout
        server.execute(f"drop database {names[0]} with (force)".encode())
        for name in made:
            server.execute(f"drop owned by {name}; drop role {name}".encode())
        psql = [str(binaries.bin / "psql"), "--dbname", theirs, "--quiet"]
        subprocess.run(psql, input=dump.replace(owner, new_owner), capture_output=True, check=True)
        migrated(other, login=True)
        login = ask_blocking_as(other, roles.tenant_login("pgnotifyq"))
        as_tenant = make_conninfo(other, user=login.role_name, password=login.password)
        with psycopg.connect(as_tenant) as session, pytest.raises(psycopg.errors.InsufficientPrivilege):
            session.execute("select * from orders")
        ask_blocking_as(other, organisation.protect("pgnotifyq", "public.orders", "org_id", "select, insert"))
        assert found_by(other) == wanted()
        for statement in ("update pgnotifyq.org_audit set action = 'x'", "delete from pgnotifyq.org_audit"):
            with psycopg.connect(other) as session, pytest.raises(psycopg.Error, match="only added"):
                session.execute(statement.encode())
