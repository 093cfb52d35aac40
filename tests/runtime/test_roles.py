"""Roles: each has the rights of its kind and no more, however the queue came to be where it is."""

from __future__ import annotations

import functools
import secrets
import subprocess
import sys
import uuid
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import trio
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

import pgnotifyq
from pgnotifyq.embedded import _carried_binaries, _installed_binaries
from pgnotifyq.ledger import roles
from pgnotifyq.ledger.roles import RoleKind
from pgnotifyq.migrating import migrate
from pgnotifyq.model.errors import ConfigError, MissingRights
from pgnotifyq.wire.asking import ask, ask_blocking
from pgnotifyq.wire.connection import Connection, open_connection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Session = psycopg.Connection[Any]
ANN, BOB = uuid.UUID(int=0xA), uuid.UUID(int=0xB)
KINDS = [kind.value for kind in RoleKind]

# What is nobody's but the owner's.
OWNERS = {"fences", "tenant_keys", "tenant_logins"}
# What runs with the owner's rights, and for whom. A trigger's function is called by its table alone.
DEFINERS = {
    "audit": {"tenant"},
    "check_fence": set(),
    "note_cancel": set(),
    "wake_after_insert": set(),
    "wake_after_reschedule": set(),
    "fence": {"producer", "worker", "tenant"},
    "meet_fence": {"producer", "worker", "tenant"},
    "save": {"producer", "worker", "tenant"},
    "key_holder": {"producer"},
    "lock_keys": {"producer", "worker", "tenant", "admin"},
    "pass_key": {"producer", "worker", "tenant", "admin"},
    "pass_keys": {"producer", "worker", "tenant", "admin"},
    "run_after": {"producer", "worker", "tenant", "admin"},
    "unsealed": {"tenant"},
    "tenant_key": {"worker"},
    "tenant_login": {"worker"},
    "forget_followers": {"worker"},
    "follow": {"producer", "tenant", "worker", "admin", "observer"},
    "unfollow": {"producer", "tenant", "worker", "admin", "observer"},
    "follow_events": {"tenant", "worker", "admin", "observer"},
}


@contextmanager
def databases(server_dsn: str, *owners: str) -> Iterator[tuple[Session, list[str]]]:
    """Give a session of the superuser, and for each owner a database and the owner's address; all roles go at the end."""
    with psycopg.connect(server_dsn, autocommit=True) as server:
        if server.execute("select rolsuper from pg_roles where rolname = current_user").fetchone() != (True,):
            pytest.skip("the server's role may not make roles")
        mark = secrets.token_hex(4)
        made = []
        try:
            for place, options in enumerate(owners):
                owner, name = f"owner{place}_{mark}", f"d{place}_{mark}"
                server.execute(f"create role {owner} login {options}".encode())
                server.execute(f"create database {name} owner {owner}".encode())
                made.append(make_conninfo(server_dsn, dbname=name, user=owner))
            yield server, made
        finally:
            for place in range(len(owners)):
                server.execute(f"drop database if exists d{place}_{mark} with (force)".encode())
            found = server.execute("select rolname from pg_roles where position(%s in rolname) > 0 order by 1 desc", (mark,))
            for (name,) in found.fetchall():
                server.execute(sql.SQL("drop owned by {}").format(sql.Identifier(name)))
            for (name,) in server.execute(
                "select rolname from pg_roles where position(%s in rolname) > 0 order by rolname ~ '^owner'", (mark,)
            ).fetchall():
                server.execute(sql.SQL("drop role {}").format(sql.Identifier(name)))


def on(dsn: str, act: Callable[[Any], Any]) -> Any:
    """Do something on a connection of ours."""

    async def main() -> Any:
        async with open_connection(dsn) as connection:
            return await act(connection)

    return trio.run(main)


def migrated(
    dsn: str, schema: str = "pgnotifyq", *, login: bool = False, granted: dict[RoleKind, str] | None = None
) -> list[str]:
    """Do what the command `migrate` does, and return what it says of roles."""

    async def act(connection: Any) -> list[str]:
        await migrate(connection, schema)
        for kind, name in (granted or {}).items():
            await ask(connection, roles.grant(schema, kind, name))
        if login:
            await ask(connection, roles.make_tenant_login(schema))
        said: list[str] = await ask(connection, roles.keep(schema))
        return said

    found: list[str] = on(dsn, act)
    return found


def seen_by(dsn: str, schema: str = "pgnotifyq", worker_dsn: str | None = None) -> tuple[str, Any]:
    """Enqueue for two tenants; run a handler of one. Return the grade, and what it saw: session, role, tenant, tenants of jobs."""
    registry, seen = pgnotifyq.JobRegistry(), list[Any]()

    @registry.handler("look", max_attempts=1)
    async def look(payload: dict[str, Any], ctx: pgnotifyq.JobContext) -> None:
        async with ctx.org.transaction() as connection:
            cursor = await connection.execute(
                f"select session_user::text, current_user::text, {schema}.current_org(), array_agg(distinct org_id)"
                f" from {schema}.jobs".encode()
            )
            seen.append(await cursor.fetchone())

    grades = list[str]()

    def note(event: pgnotifyq.Event) -> None:
        if event.name is pgnotifyq.EventName.WORKER_STARTED:
            grades.append(event.fields["tenants"])

    async def main() -> None:
        async with trio.open_nursery() as nursery, pgnotifyq.open_client(dsn, schema=schema) as client:
            run = functools.partial(pgnotifyq.run_worker, registry, worker_dsn or dsn, on_event=note, schema=schema)
            worker = await nursery.start(run)
            await client.enqueue("elsewhere", {}, org_id=BOB, queue="elsewhere")
            await client.wait(await client.enqueue("look", {}, org_id=ANN), timeout_seconds=20)
            worker.drain()

    trio.run(main)
    return grades[0], seen[0]


# The catalog


def test_every_relation_and_function_is_somebodys(dsn: str) -> None:
    """A new table is in the list of rights, or is the owner's alone; a function with the owner's rights is named here."""
    with psycopg.connect(dsn) as session:
        relations = {
            name for (name,) in session.execute(
                "select relname from pg_class where relnamespace = 'pgnotifyq'::regnamespace and relkind in ('r', 'v', 'p', 'm', 'S')"
            )
        }  # fmt: skip
        wanted = session.execute("select kind, class, object, privilege from pgnotifyq.wanted_rights()").fetchall()
        assert {name for _, kind, name, _ in wanted if kind == "relation"} == relations - OWNERS
        assert {kind for kind, *_ in wanted} == set(KINDS)
        definers = session.execute(
            "select proname, proconfig @> array['search_path=pg_catalog, pg_temp'], has_function_privilege('public', oid, 'execute')"
            " from pg_proc where pronamespace = 'pgnotifyq'::regnamespace and prosecdef"
        ).fetchall()
        assert sorted(definers) == [(name, True, False) for name in sorted(DEFINERS)]
        called = {(kind, name.split("(")[0]) for kind, what, name, _ in wanted if what == "function"}
        assert called == {(kind, name) for name, kinds in DEFINERS.items() for kind in kinds}


def test_nothing_is_everybodys(dsn: str) -> None:
    """Roles have no right by being roles, but for the names of roles, which are no secret."""
    with psycopg.connect(dsn) as session:
        found = session.execute(
            "select c.relname, a.privilege_type from pg_class as c, aclexplode(c.relacl) as a"
            " where c.relnamespace = 'pgnotifyq'::regnamespace and a.grantee = 0"
        ).fetchall()
        assert found == [("roles", "SELECT")]
        assert session.execute("select has_schema_privilege('public', 'pgnotifyq', 'usage')").fetchone() == (False,)


def test_rights_of_each_kind(server_dsn: str) -> None:
    """Each role has what its kind wants, in every table and function, and nothing else: nothing is missing, nothing too much."""
    with databases(server_dsn, "createrole") as (server, [dsn]), ExitStack() as stack:
        names = {}
        mark = conninfo_to_dict(dsn)["dbname"]
        for kind in RoleKind:
            names[kind] = f"{kind}_{mark}"
            server.execute(f"create role {names[kind]} login".encode())
        migrated(dsn, granted=names, login=True)
        session = stack.enter_context(psycopg.connect(dsn, autocommit=True))
        assert ask_blocking(session, roles.faults("pgnotifyq")) == []
        assert migrated(dsn) == []
        for kind, name in names.items():
            # Before PostgreSQL 16, a worker's role reads what the role of tenants does.
            right = "delete" if kind is RoleKind.WORKER else "select"
            session.execute(f"revoke {right} on pgnotifyq.jobs from {name}".encode())
            session.execute(f"grant truncate on pgnotifyq.sleepers to {name}".encode())
            found = {(each.fault, each.what) for each in ask_blocking(session, roles.faults("pgnotifyq")) if each.kind is kind}
            assert ("missing", f"{right} on jobs") in found
            assert ("excess", "truncate on sleepers") in found
        assert all(said.endswith((" granted select on jobs", " granted delete on jobs")) for said in migrated(dsn))
        assert {each.fault for each in ask_blocking(session, roles.faults("pgnotifyq"))} == {"excess"}


def test_role_that_does_not_exist(dsn: str) -> None:
    """It is said, by its name."""
    with psycopg.connect(dsn, autocommit=True) as session, pytest.raises(ConfigError, match=r"nobody_at_all.*does not exist"):
        ask_blocking(session, roles.grant("pgnotifyq", RoleKind.PRODUCER, "nobody_at_all"))


# Where a queue lives


@pytest.mark.parametrize("options", ["createrole", "nocreaterole"])
def test_owner_without_superuser(server_dsn: str, options: str) -> None:
    """With CREATEROLE, migrate makes what confines, and it works at once; without, a setting confines, and that is said."""
    with databases(server_dsn, options) as (_, [dsn]):
        migrated(dsn)
        grade, (session_user, role, org_id, orgs) = seen_by(dsn)
        assert (org_id, orgs) == (ANN, [ANN])
        assert grade.startswith("confined against mistakes, not against SQL of the handler's own: by ")
        name = f"pgnotifyq_{conninfo_to_dict(dsn)['dbname']}_tenant"
        assert role == (name if options == "createrole" else session_user)
        if options == "createrole":
            migrated(dsn, login=True)
            grade, (session_user, role, org_id, orgs) = seen_by(dsn)
            assert grade == f"confined against intent: by sessions of {name}_login"
            assert (session_user, role, org_id, orgs) == (f"{name}_login", f"{name}_login", ANN, [ANN])
        else:
            with pytest.raises(MissingRights, match="--tenant-dsn"):
                migrated(dsn, login=True)


def test_owner_without_a_login(server_dsn: str) -> None:
    """Who deploys is a member of it, and owns nothing; a second migrate acts as it again."""
    with databases(server_dsn, "nocreaterole") as (server, [dsn]):
        name, owner = conninfo_to_dict(dsn)["dbname"], f"nologin_{conninfo_to_dict(dsn)['dbname']}"
        server.execute(f"create role {owner} nologin; grant {owner} to {conninfo_to_dict(dsn)['user']}".encode())
        server.execute(f"grant create on database {name} to {owner}".encode())
        for _ in range(2):
            command = [sys.executable, "-m", "pgnotifyq", "migrate", "--dsn", dsn, "--owner", owner]
            subprocess.run(command, check=True, capture_output=True)
        with psycopg.connect(dsn, autocommit=True) as session:
            found = session.execute(
                "select distinct r.rolname from pg_class as c join pg_roles as r on r.oid = c.relowner"
                " where c.relnamespace = 'pgnotifyq'::regnamespace"
            ).fetchall()
            assert found == [(owner,)]
        command[-1] = "nobody_at_all"
        assert b"does not exist" in subprocess.run(command, check=False, capture_output=True).stderr


def test_role_that_was_made_for_the_owner(server_dsn: str) -> None:
    """An owner who may make no roles uses those that an administrator made, after the first migrate, too."""
    with databases(server_dsn, "nocreaterole") as (server, [dsn]):
        migrated(dsn)
        name = f"pgnotifyq_{conninfo_to_dict(dsn)['dbname']}_tenant"
        server.execute(f"create role {name} nologin; grant {name} to {conninfo_to_dict(dsn)['user']}".encode())
        migrated(dsn)
        grade, (_, role, org_id, orgs) = seen_by(dsn)
        assert grade.endswith(f"by role {name}")
        assert (role, org_id, orgs) == (name, ANN, [ANN])


def test_two_databases_of_one_server(server_dsn: str) -> None:
    """Neither application's roles have anything in the other's queue."""
    with databases(server_dsn, "createrole", "createrole") as (_, [one, other]):
        migrated(one, login=True)
        migrated(other, login=True)
        seen_by(one)
        theirs = conninfo_to_dict(other)["dbname"]
        login = ask_blocking_as(one, roles.tenant_login("pgnotifyq"))
        for user, password in ((conninfo_to_dict(one)["user"], None), (login.role_name, login.password)):
            with psycopg.connect(make_conninfo(one, dbname=theirs, user=user, password=password), autocommit=True) as session:
                for statement in (
                    "select * from pgnotifyq.jobs",
                    "select * from pgnotifyq.tenant_keys",
                    "set role pgnotifyq_tenant",
                ):
                    with pytest.raises((psycopg.errors.InsufficientPrivilege, psycopg.errors.UndefinedObject, psycopg.DataError)):
                        session.execute(statement)
                assert session.execute(
                    "select count(*) from pg_roles as r where pg_has_role(current_user, r.oid, 'usage') and position(%s in r.rolname) > 0",
                    (theirs,),
                ).fetchone() == (0,)  # fmt: skip


def ask_blocking_as(dsn: str, verb: Any) -> Any:
    with psycopg.connect(dsn, autocommit=True) as session:
        return ask_blocking(session, verb)


def test_two_schemas_of_one_database(server_dsn: str) -> None:
    """Each has roles and keys of its own: a login of one has no right in the other, and a token of one is none in the other."""
    with databases(server_dsn, "createrole") as (_, [dsn]):
        migrated(dsn, "first", login=True)
        migrated(dsn, "second", login=True)
        for schema in ("first", "second"):
            grade, seen = seen_by(dsn, schema)
            assert grade.startswith("confined against intent")
            assert seen[2:] == (ANN, [ANN])
        assert ask_blocking_as(dsn, roles.tenant_key("first")) != ask_blocking_as(dsn, roles.tenant_key("second"))
        login = ask_blocking_as(dsn, roles.tenant_login("first"))
        as_first = make_conninfo(dsn, user=login.role_name, password=login.password)
        with psycopg.connect(as_first) as session, pytest.raises(psycopg.errors.InsufficientPrivilege):
            session.execute("select * from second.jobs")


def test_restored_where_the_roles_are_not(server_dsn: str) -> None:
    """A dump is restored into a cluster without its roles, their grants are lost; the next migrate makes and gives them again."""
    with databases(server_dsn, "createrole", "createrole") as (server, [one, other]):
        version = server.info.server_version // 10_000
        binaries = (_installed_binaries if version == 15 else _carried_binaries)(version)
        mark = conninfo_to_dict(one)["dbname"]
        server.execute(f"create role web_{mark} login".encode())
        migrated(one, granted={RoleKind.PRODUCER: f"web_{mark}"}, login=True)
        seen_by(one)
        with psycopg.connect(one, autocommit=True) as session:
            before = session.execute("select count(*) from pgnotifyq.jobs").fetchone()
            made = [name for (name,) in session.execute("select role_name from pgnotifyq.roles where kind = 'tenant'")]
        admin, theirs = (
            make_conninfo(server_dsn, dbname=mark),
            make_conninfo(server_dsn, dbname=conninfo_to_dict(other)["dbname"]),
        )
        dump = subprocess.run([binaries.bin / "pg_dump", "--dbname", admin], capture_output=True, check=True).stdout
        owner, new_owner = conninfo_to_dict(one)["user"], conninfo_to_dict(other)["user"]
        server.execute(f"drop database {mark} with (force)".encode())
        for name in (*made, f"web_{mark}"):
            server.execute(f"drop owned by {name}; drop role {name}".encode())
        restored = dump.replace(str(owner).encode(), str(new_owner).encode())
        subprocess.run([binaries.bin / "psql", "--dbname", theirs, "--quiet"], input=restored, capture_output=True, check=True)
        server.execute(f"create role web_{mark} login".encode())
        migrated(other, login=True)
        with psycopg.connect(other, autocommit=True) as session:
            assert session.execute("select count(*) from pgnotifyq.jobs").fetchone() == before
            assert [each for each in ask_blocking(session, roles.faults("pgnotifyq")) if each.role_name not in made] == []
        grade, seen = seen_by(other, worker_dsn=other)
        assert grade.startswith(
            f"confined against intent: by sessions of pgnotifyq_{conninfo_to_dict(other)['dbname']}_tenant_login"
        )
        assert seen[2:] == (ANN, [ANN])
        with psycopg.connect(make_conninfo(other, user=f"web_{mark}"), autocommit=True) as session:
            session.execute("select pgnotifyq.enqueue('noop')")


@pytest.mark.parametrize("rights", ["", "select", "select, delete"])
async def test_worker_without_hooks_needs_no_right_to_them(connection: Connection[Any], rights: str) -> None:
    """Whatever it has: of a list of rights, PostgreSQL takes any for all."""
    async with connection.transaction(force_rollback=True):
        await connection.execute(
            "create role pgnotifyq_test_hookless; grant usage on schema pgnotifyq to pgnotifyq_test_hookless"
        )
        if rights:
            await connection.execute(f"grant {rights} on pgnotifyq.hooks to pgnotifyq_test_hookless")
        await connection.execute("set local role pgnotifyq_test_hookless")
        await connection.execute("select pgnotifyq.publish_hooks('{a}', '{}', '{}', '{}')")
