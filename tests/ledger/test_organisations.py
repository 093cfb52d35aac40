"""A tenant's name, settings, credentials and trail in the database; and the application's own tables, protected."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from pgnotifyq import CredentialKeys, InvalidJob, JobId, JobNotFound, PayloadTooLarge, org
from pgnotifyq.ledger import end, look, organisation
from pgnotifyq.model.credentials import new_key
from pgnotifyq.wire.asking import ask_blocking
from pgnotifyq.wire.blocking import wait_notifications
from tests.ledger.support import ENDINGS, PATIENCE_SECONDS, SCHEMA, claim_one, enqueue, fetch, settle, tenant_role, value
from tests.ledger.test_tenants import as_tenant

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pgnotifyq.wire.blocking import Connection

    Link = Connection[Any]

OURS, THEIRS = org("acme"), org("umbrella")
TABLES = ("org_names", "org_config", "org_audit")  # that a tenant may look at
NAMES = [
    "acme", "Acme", "42", "042", "ünïcödé 🙂", "x" * 200, "a b", "-5", "deadbeef", "a-b-c-d", "URN", "İ", "ſ", "K", "ß",
    str(OURS), f"{{{OURS}}}", OURS.hex, OURS.urn, OURS.urn.upper(), "urn:urn:a",
]  # fmt: skip
NO_NAMES = ["", " a", "a ", "a\n", "\x7f", "x" * 201, str(OURS)[:-1], "5d3c0f0e-6a0b-4c3e-9f43-0c1f6f7a8b2"]


def test_same_id_in_sql(connection: Link) -> None:
    """Of each name and number, and the same are refused."""
    for name in NAMES:
        assert value(connection, "select pgnotifyq.org(%s::text)", name) == org(name), name
    for number in (0, 42, -5, 2**63 - 1, -(2**63)):
        assert value(connection, "select pgnotifyq.org(%s::bigint)", number) == org(number)
    assert value(connection, "select pgnotifyq.org('acme')") == OURS
    for name in NO_NAMES:
        assert value(connection, "select pgnotifyq.org_or_null(%s::text)", name) is None, name
        with pytest.raises(psycopg.Error, match="is not valid"):
            connection.execute("select pgnotifyq.org(%s::text)", (name,))
        with pytest.raises(InvalidJob):
            org(name)


def test_names_are_kept_for_people(connection: Link) -> None:
    """Once, and only of what is no uuid; none can be said of another tenant's id."""
    for name in ("acme", "acme", 7, str(THEIRS), THEIRS.hex, THEIRS.urn):
        assert ask_blocking(connection, organisation.name_org(SCHEMA, name)) == org(name)
    assert fetch(connection, "select org_id, name from pgnotifyq.org_names order by name") == [
        (org(7), "7"),
        (OURS, "acme"),
    ]
    with pytest.raises(psycopg.errors.CheckViolation):
        connection.execute("insert into pgnotifyq.org_names (org_id, name) values (%s, 'acme')", (THEIRS,))


# Settings


def test_settings(connection: Link) -> None:
    """Are a tenant's, are replaced, and go; null is a value."""
    for name, given in (("limit", 1), ("limit", 5), ("flag", True), ("nothing", None), ("services", {"stripe": {"rate": 3}})):
        ask_blocking(connection, organisation.set_config(SCHEMA, OURS, name, given))
    ask_blocking(connection, organisation.set_config(SCHEMA, THEIRS, "limit", 9))
    assert ask_blocking(connection, organisation.config(SCHEMA, OURS)) == {
        "limit": 5, "flag": True, "nothing": None, "services": {"stripe": {"rate": 3}}
    }  # fmt: skip
    assert ask_blocking(connection, organisation.config(SCHEMA, org("nobody"))) == {}
    assert ask_blocking(connection, organisation.unset_config(SCHEMA, OURS, "limit")) is True
    assert ask_blocking(connection, organisation.unset_config(SCHEMA, OURS, "limit")) is False
    rows = ask_blocking(connection, organisation.list_config(SCHEMA, OURS, name="flag"))
    assert [(row.org_id, row.name, row.value) for row in rows] == [(OURS, "flag", True)]
    assert len(ask_blocking(connection, organisation.list_config(SCHEMA))) == 4


@pytest.mark.parametrize(("name", "given"), [("", 1), ("a b", 1), ("1a", 1), ("x" * 101, 1), ("a", "x" * 70_000)])
def test_setting_that_does_not_fit(connection: Link, name: str, given: object) -> None:
    """Is refused, by Python or by SQL."""
    with pytest.raises((InvalidJob, PayloadTooLarge)):
        ask_blocking(connection, organisation.set_config(SCHEMA, OURS, name, given))


@pytest.mark.parametrize("table", ["org_config", "org_credentials"])
def test_workers_are_told_of_a_change(connection: Link, other: Link, table: str) -> None:
    """By a message that names nobody, whichever statement has made the change."""
    columns, values = ("value", "'1'") if table == "org_config" else ("key_id, sealed", "'k', 's'")
    other.execute("listen pgnotifyq_work")
    for statement in (
        f"insert into pgnotifyq.{table} (org_id, name, {columns}) values ('{OURS}', 'a', {values})",
        f"update pgnotifyq.{table} set changed_at = now()",
        f"delete from pgnotifyq.{table}",
    ):
        connection.execute(statement.encode())
        (note,) = _heard(other)
        assert note == "+config"


def _heard(listener: Link) -> list[str]:
    return [note.payload for note in wait_notifications(listener, PATIENCE_SECONDS)]


# The trail


def test_trail_of_a_tenants_own_transaction(connection: Link) -> None:
    """Has the tenant of the transaction and the job of its fence, and goes with it if it is rolled back."""
    job_id = enqueue(connection, org_id=OURS)
    job = claim_one(connection)
    with connection.transaction():
        connection.execute("select pgnotifyq.fence(%s, %s)", (job.id, job.current_execution_id))
        connection.execute("select set_config('pgnotifyq.org_id', %s, true)", (str(OURS),))
        connection.execute(f"set local role {tenant_role(connection)}".encode())
        made = ask_blocking(connection, organisation.audit(SCHEMA, "invoice.sent", {"no": 7}))
        assert value(connection, "select count(*) from pgnotifyq.org_audit") == 1
    with as_tenant(connection, OURS):
        connection.execute("select pgnotifyq.audit('undone')")
    (row,) = ask_blocking(connection, organisation.list_audit(SCHEMA))
    assert (row.id, row.org_id, row.action, row.details) == (made, OURS, "invoice.sent", {"no": 7})
    assert (row.job_id, row.execution_id) == (job_id, job.current_execution_id)


def test_trail_without_a_tenant(connection: Link) -> None:
    """Cannot be written: nobody says whose it is."""
    with pytest.raises(InvalidJob, match="no tenant"):
        ask_blocking(connection, organisation.audit(SCHEMA, "anything"))


def test_trail_is_written_once(connection: Link) -> None:
    """A verb that is asked again, because its answer was lost, adds nothing."""
    verb = organisation.audit_for(SCHEMA, OURS, "once", {"n": 1})
    assert ask_blocking(connection, verb) == ask_blocking(connection, verb)
    assert len(ask_blocking(connection, organisation.list_audit(SCHEMA, OURS))) == 1


@pytest.mark.parametrize(("action", "details"), [("", {}), ("x" * 201, {}), ("a", []), ("a", 1)])
def test_trail_that_does_not_fit(connection: Link, action: str, details: object) -> None:
    """Is refused."""
    with pytest.raises(InvalidJob):
        ask_blocking(connection, organisation.audit_for(SCHEMA, OURS, action, details))


@pytest.mark.parametrize(
    "statement",
    [
        "update pgnotifyq.org_audit set action = 'nothing'",
        "delete from pgnotifyq.org_audit",
        "truncate pgnotifyq.org_audit",
        f"insert into pgnotifyq.org_audit (org_id, action) values ('{OURS}', 'forged')",
        f"select pgnotifyq.audit_for('{OURS}', 'forged')",
        "select set_config('pgnotifyq.prunes_audit', 'yes', true), pgnotifyq.prune_audit(0)",
        "alter table pgnotifyq.org_audit disable trigger all",
        f"select pgnotifyq.set_org_config('{OURS}', 'limit', '1000')",
        "update pgnotifyq.org_config set value = '1000'",
        "delete from pgnotifyq.org_config",
        "select * from pgnotifyq.org_credentials",
        f"insert into pgnotifyq.org_credentials (org_id, name, key_id, sealed) values ('{OURS}', 'a', 'k', 's')",
        f"insert into pgnotifyq.org_names (org_id, name) values ('{OURS}', 'acme')",
    ],
)
def test_what_a_tenant_may_not_do(connection: Link, statement: str) -> None:
    """Alter its trail, write it but by the function, set its own limits, see what is sealed, name itself."""
    ask_blocking(connection, organisation.audit_for(SCHEMA, OURS, "true"))
    ask_blocking(connection, organisation.set_config(SCHEMA, OURS, "limit", 5))
    with as_tenant(connection, OURS), pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute(statement.encode())


@pytest.mark.parametrize("statement", ["update pgnotifyq.org_audit set action = 'a'", "delete from pgnotifyq.org_audit"])
def test_trail_is_append_only_for_its_owner_too(connection: Link, statement: str) -> None:
    """Who could, a superuser, is told what there is instead."""
    with pytest.raises(psycopg.Error, match="only added"):
        connection.execute(statement.encode())


def test_old_rows_of_the_trail(connection: Link) -> None:
    """Go by a function, the oldest first; nothing else may delete after it."""
    for action in ("first", "second", "third"):
        ask_blocking(connection, organisation.audit_for(SCHEMA, OURS, action))
    assert ask_blocking(connection, organisation.prune_audit(SCHEMA, 3600.0)) == 0
    with connection.transaction():
        assert ask_blocking(connection, organisation.prune_audit(SCHEMA, 0.0, limit=2)) == 2
        with pytest.raises(psycopg.Error, match="only added"), connection.transaction():
            connection.execute("delete from pgnotifyq.org_audit")
    assert [row.action for row in ask_blocking(connection, organisation.list_audit(SCHEMA))] == ["third"]


@pytest.mark.parametrize("table", TABLES)
def test_tenant_sees_its_own(connection: Link, table: str) -> None:
    """Name, settings and trail, and nobody else's; without a tenant, none."""
    for name in ("acme", "umbrella"):
        ask_blocking(connection, organisation.name_org(SCHEMA, name))
        ask_blocking(connection, organisation.set_config(SCHEMA, org(name), "limit", 5))
        ask_blocking(connection, organisation.audit_for(SCHEMA, org(name), "true"))
    whose = f"select array_agg(distinct org_id) from pgnotifyq.{table}"
    assert set(value(connection, whose)) == {OURS, THEIRS}
    with as_tenant(connection, OURS):
        assert value(connection, whose) == [OURS]
    with as_tenant(connection, None):
        assert value(connection, whose) is None


# Credentials


def test_row_moved_to_another_tenant(connection: Link) -> None:
    """Does not open there: whoever may write to the table cannot have one tenant use another's."""
    keys = CredentialKeys([new_key()])
    ask_blocking(connection, organisation.set_credential(SCHEMA, keys.seal(THEIRS, "stripe", "theirs")))
    connection.execute("update pgnotifyq.org_credentials set org_id = %s", (OURS,))
    (moved,) = ask_blocking(connection, organisation.sealed(SCHEMA, OURS))
    with pytest.raises(Exception, match="does not open"):
        keys.open(moved)


def test_rotation(connection: Link) -> None:
    """Finds what other keys have sealed, a batch at a time, and leaves what was changed meanwhile."""
    old, new = (CredentialKeys([new_key()]) for _ in range(2))
    for place in range(5):
        ask_blocking(connection, organisation.set_credential(SCHEMA, old.seal(org(place), "a", "secret")))
    found, after = [], None
    while batch := ask_blocking(connection, organisation.stale_credentials(SCHEMA, new.key_id, after=after, limit=2)):
        found += batch
        after = batch[-1]
    assert sorted(each.org_id for each in found) == sorted(org(place) for place in range(5))
    anew = [new.seal(each.org_id, each.name, old.open(each)) for each in found]
    changed = old.seal(found[0].org_id, "a", "another")
    ask_blocking(connection, organisation.set_credential(SCHEMA, changed))
    done = [ask_blocking(connection, organisation.reseal_credential(SCHEMA, *pair)) for pair in zip(found, anew, strict=True)]
    assert done == [False, True, True, True, True]
    assert ask_blocking(connection, organisation.sealed(SCHEMA, found[0].org_id)) == [changed]
    rows = ask_blocking(connection, organisation.list_credentials(SCHEMA, found[1].org_id))
    assert [(row.name, row.key_id) for row in rows] == [("a", new.key_id)]
    assert ask_blocking(connection, organisation.delete_credential(SCHEMA, found[1].org_id, "a")) is True
    assert ask_blocking(connection, organisation.delete_credential(SCHEMA, found[1].org_id, "a")) is False


# Jobs of one tenant


@pytest.fixture
def theirs(connection: Link) -> tuple[JobId, JobId]:
    """Give a job and a dead letter of another tenant."""
    letter = enqueue(connection, org_id=THEIRS)
    settle(connection, claim_one(connection), ENDINGS["bury"])
    return enqueue(connection, org_id=THEIRS), letter


def test_job_of_another_tenant(connection: Link, theirs: tuple[JobId, JobId]) -> None:
    """Is told as one that never was, word for word, for a role that sees all rows too; and nothing of it is changed."""
    before = fetch(connection, "select xmin::text, * from pgnotifyq.jobs")
    for verb in (organisation.get_job, organisation.get_dead, organisation.cancel, organisation.requeue, organisation.own):
        told = []
        for job_id in (*theirs, never := JobId(uuid.uuid4())):
            with pytest.raises(JobNotFound) as error:
                ask_blocking(connection, verb(SCHEMA, OURS, job_id))
            told.append(str(error.value).replace(str(job_id), str(never)))
        assert len(set(told)) == 1
    for job_id in theirs:
        assert ask_blocking(connection, organisation.history(SCHEMA, OURS, job_id)) == []
        assert ask_blocking(connection, end.purge_dead(SCHEMA, job_id=job_id, org_id=OURS)) == 0
    assert ask_blocking(connection, end.requeue_all(SCHEMA, look.DeadFilter(org_id=OURS))) == 0
    assert ask_blocking(connection, look.list_dead(SCHEMA, look.DeadFilter(org_id=OURS))) == []
    assert ask_blocking(connection, organisation.count_jobs(SCHEMA, OURS)) == 0
    assert ask_blocking(connection, organisation.count_dead(SCHEMA, OURS)) == 0
    assert fetch(connection, "select xmin::text, * from pgnotifyq.jobs") == before


def test_jobs_of_its_own(connection: Link, theirs: tuple[JobId, JobId]) -> None:
    """Are there, are counted, cancelled and brought back."""
    job_id, letter = theirs
    assert (ask_blocking(connection, organisation.get_job(SCHEMA, THEIRS, job_id))).id == job_id
    assert (ask_blocking(connection, organisation.get_dead(SCHEMA, THEIRS, letter))).id == letter
    assert [each.outcome for each in ask_blocking(connection, organisation.history(SCHEMA, THEIRS, letter))] == ["failed"]
    assert ask_blocking(connection, organisation.count_jobs(SCHEMA, THEIRS, status="pending", queue="default")) == 1
    assert ask_blocking(connection, organisation.count_dead(SCHEMA, THEIRS, job_type="noop")) == 1
    assert [each.id for each in ask_blocking(connection, look.list_dead(SCHEMA, look.DeadFilter(org_id=THEIRS)))] == [letter]
    assert ask_blocking(connection, organisation.cancel(SCHEMA, THEIRS, job_id)) == "cancelled"
    assert ask_blocking(connection, organisation.cancel(SCHEMA, THEIRS, letter)) == "finished"
    ask_blocking(connection, organisation.requeue(SCHEMA, THEIRS, letter))
    assert ask_blocking(connection, organisation.count_jobs(SCHEMA, THEIRS)) == 2


def test_history_under_an_id_used_again(connection: Link) -> None:
    """A job whose id another tenant's dead letter has does not show that one's attempts."""
    letter = enqueue(connection, org_id=THEIRS)
    settle(connection, claim_one(connection), ENDINGS["bury"])
    connection.execute("insert into pgnotifyq.jobs (id, org_id, job_type) values (%s, %s, 'noop')", (letter, OURS))
    assert ask_blocking(connection, organisation.history(SCHEMA, OURS, letter)) == []
    with pytest.raises(JobNotFound):
        ask_blocking(connection, organisation.get_dead(SCHEMA, OURS, letter))


# The application's tables


@pytest.fixture
def shop(connection: Link) -> Iterator[Link]:
    """Give tables of an application's, with a row of each tenant; all of it is rolled back."""
    with connection.transaction(force_rollback=True):
        connection.execute(
            f"""
            create table public.orders (id integer primary key, org_id uuid, what text);
            create table public.bills (account integer, what text);
            create table public.notes (account text, what text);
            create table public.visits (org_id uuid, at date) partition by range (at);
            create table public.visits_now partition of public.visits for values from ('2020-01-01') to ('2030-01-01');
            grant all on public.orders, public.bills, public.notes, public.visits, public.visits_now to {tenant_role(connection)};
            create index on public.orders (org_id);
            """.encode()
        )
        connection.execute("insert into orders values (1, %s, 'ours'), (2, %s, 'theirs'), (3, null, 'nobody')", (OURS, THEIRS))
        connection.execute("insert into visits values (%s, '2025-01-01'), (%s, '2025-01-01')", (OURS, THEIRS))
        connection.execute("insert into bills values (1, 'one'), (2, 'two')")
        connection.execute("insert into notes values ('acme', 'ours'), ('umbrella', 'theirs'), ('', 'odd'), (null, 'nobody')")
        yield connection


@pytest.mark.parametrize(
    ("table", "column", "tenant", "seen", "write"),
    [
        ("orders", "org_id", OURS, ["ours"], "insert into orders values (9, '{}', 'new')"),
        ("bills", "account", org(2), ["two"], "insert into bills values ({}, 'new')"),
        ("notes", "account", OURS, ["ours"], "insert into notes values ('{}', 'new')"),
    ],
    ids=["uuid", "integer", "text"],
)
def test_protected_table(shop: Link, table: str, column: str, tenant: Any, seen: list[str], write: str) -> None:
    """A tenant sees, changes, deletes and adds its own rows; other roles go on as before; afterwards all is as it was."""
    everything = f"select array_agg(what order by what) from {table}"
    was = value(shop, everything)
    own, others = {"orders": (OURS, THEIRS), "bills": (2, 1), "notes": ("acme", "umbrella")}[table]
    shop.execute("create role pgnotifyq_test_app; grant usage on schema pgnotifyq to pgnotifyq_test_app")
    shop.execute(f"grant all on {table} to pgnotifyq_test_app".encode())
    assert ask_blocking(shop, organisation.protect(SCHEMA, f"public.{table}", column)) == 1
    assert ask_blocking(shop, organisation.protect(SCHEMA, table, column)) == 1  # again
    for role in (tenant_role(shop), "pgnotifyq_test_app"):  # the second by the setting alone
        with as_tenant(shop, tenant, role=role):
            assert value(shop, everything) == seen
            assert (shop.execute(f"update {table} set what = what".encode())).rowcount == 1
            assert (shop.execute(f"delete from {table}".encode())).rowcount == 1
            shop.execute(write.format(own).encode())
            for statement in (
                write.format(others),
                f"update {table} set {column} = {_literal(others)}",
                f"insert into {table} (what) values ('a')",
            ):
                refused = pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security")
                with refused, shop.transaction():
                    shop.execute(statement.encode())
    with as_tenant(shop, None):
        assert value(shop, everything) is None
    with as_tenant(shop, None, role="pgnotifyq_test_app"):
        assert value(shop, everything) == was
    assert ask_blocking(shop, organisation.unprotect(SCHEMA, table)) == 1
    assert ask_blocking(shop, organisation.unprotect(SCHEMA, table)) == 0
    assert fetch(shop, "select relrowsecurity, relforcerowsecurity from pg_class where oid = %s::regclass", table) == [
        (False, False)
    ]
    with as_tenant(shop, tenant):
        assert value(shop, everything) == was


def _literal(given: object) -> str:
    return str(given) if isinstance(given, int) else f"'{given}'"


def test_rights_of_tenants(shop: Link) -> None:
    """Are granted if they are said, and no others; what is no right is refused."""
    role = tenant_role(shop)
    shop.execute(f"revoke all on orders from {role}".encode())
    ask_blocking(shop, organisation.protect(SCHEMA, "orders", "org_id", "select, INSERT"))
    held = "select has_table_privilege(%s, 'orders', %s)"
    assert [value(shop, held, role, each) for each in ("select", "insert", "update", "delete")] == [
        True,
        True,
        False,
        False,
    ]
    for rights in ("all", "select; drop table orders", "", "truncate"):
        with pytest.raises(InvalidJob, match="rights"), shop.transaction():
            ask_blocking(shop, organisation.protect(SCHEMA, "orders", "org_id", rights))


def test_roles_of_tenants_that_come_later(shop: Link) -> None:
    """Have the policies and the rights that the others have, once `migrate` has run."""
    ask_blocking(shop, organisation.protect(SCHEMA, "orders", "org_id"))
    shop.execute("create role pgnotifyq_test_late login; select pgnotifyq.grant_role('tenant', 'pgnotifyq_test_late')")
    (row,) = ask_blocking(shop, organisation.protected(SCHEMA))
    assert row["new_roles"] == "pgnotifyq_test_late"
    said = [line for (line,) in fetch(shop, "select * from pgnotifyq.keep_roles()") if "table" in line]
    assert said == ["table public.orders: protected for pgnotifyq_test_late, too"]
    (row,) = ask_blocking(shop, organisation.protected(SCHEMA))
    assert row["new_roles"] is None
    held = "select has_table_privilege('pgnotifyq_test_late', 'orders', %s)"
    assert [value(shop, held, each) for each in ("select", "delete", "truncate")] == [True, True, False]
    assert [line for (line,) in fetch(shop, "select * from pgnotifyq.keep_roles()") if "table" in line] == []


def test_owner_is_bound(shop: Link) -> None:
    """The table's owner is confined by the setting, where no role can be switched to."""
    shop.execute("create role pgnotifyq_test_app; grant usage on schema pgnotifyq to pgnotifyq_test_app")
    shop.execute("grant create on schema public to pgnotifyq_test_app; alter table orders owner to pgnotifyq_test_app")
    ask_blocking(shop, organisation.protect(SCHEMA, "orders", "org_id"))
    with as_tenant(shop, OURS, role="pgnotifyq_test_app"):
        assert value(shop, "select array_agg(what) from orders") == ["ours"]


def test_tenants_query_uses_the_index(shop: Link) -> None:
    """On the column, or on the id that a text says; without it each query of a tenant would read the whole table."""
    shop.execute("insert into orders select g, gen_random_uuid(), 'x' from generate_series(10, 5000) as g")
    shop.execute("insert into notes select g, 'x' from generate_series(10, 5000) as g")
    shop.execute("create index on notes (pgnotifyq.org_or_null(account)); analyze orders, notes")
    for table, column in (("orders", "org_id"), ("notes", "account")):
        ask_blocking(shop, organisation.protect(SCHEMA, table, column))
        with as_tenant(shop, OURS):
            plan = fetch(shop, f"explain (costs off) select what from {table}")
        assert any("Index Cond" in line for (line,) in plan), plan


def test_partitions_are_protected_too(shop: Link) -> None:
    """Whoever names a partition goes past the policies of the table that it is of. One that comes later is told of."""
    assert ask_blocking(shop, organisation.protect(SCHEMA, "visits", "org_id")) == 2
    with as_tenant(shop, OURS):
        for table in ("visits", "visits_now"):
            assert value(shop, f"select array_agg(org_id) from {table}") == [OURS]
    shop.execute("create table visits_later partition of visits for values from ('2030-01-01') to ('2040-01-01')")
    found = {row["table_name"]: row for row in ask_blocking(shop, organisation.protected(SCHEMA))}
    assert found["visits"]["bare_partitions"] == "visits_later"
    assert ask_blocking(shop, organisation.unprotect(SCHEMA, "visits")) == 2


def test_table_with_policies_of_its_own(shop: Link) -> None:
    """They go on to say who sees what; ours take away, and leave them as they were."""
    shop.execute(
        f"alter table orders enable row level security; create policy own on orders to {tenant_role(shop)}"
        " using (id <> 1 or org_id is null)".encode()
    )
    ask_blocking(shop, organisation.protect(SCHEMA, "orders", "org_id"))
    with as_tenant(shop, OURS):
        assert value(shop, "select count(*) from orders") == 0
    with as_tenant(shop, THEIRS):
        assert value(shop, "select array_agg(what) from orders") == ["theirs"]
    ask_blocking(shop, organisation.unprotect(SCHEMA, "orders"))
    assert fetch(shop, "select relrowsecurity, relforcerowsecurity from pg_class where relname = 'orders'") == [(True, False)]
    assert fetch(shop, "select polname from pg_policy where polrelid = 'orders'::regclass") == [("own",)]


@pytest.mark.parametrize(
    ("table", "column"),
    [("orders", "nothing"), ("nothing", "org_id"), ("pgnotifyq.jobs", "org_id"), ("pg_class", "relname"), ("visits", "at"), ("seen", "org_id"), ("", ""), ("'", "org_id")],
)  # fmt: skip
def test_what_cannot_be_protected(shop: Link, table: str, column: str) -> None:
    """Is refused, and nothing is changed."""
    shop.execute("create view seen as select * from orders")
    policies = "select count(*) from pg_policy"
    before = value(shop, policies)
    with pytest.raises((InvalidJob, psycopg.errors.SyntaxError, psycopg.errors.InvalidName)), shop.transaction():
        ask_blocking(shop, organisation.protect(SCHEMA, table, column))
    assert value(shop, policies) == before


def test_what_goes_past_the_policies(shop: Link) -> None:
    """Is told: row security off or not forced, an owner that is exempt, exempt roles, views that lend their owner's rights."""
    ask_blocking(shop, organisation.protect(SCHEMA, "orders", "org_id"))
    me = value(shop, "select current_user::text")
    (row,) = ask_blocking(shop, organisation.protected(SCHEMA))
    assert (row["table_name"], row["column_name"], row["is_on"], row["is_forced"]) == ("orders", "org_id", True, True)
    assert (row["exempt_owner"], row["open_views"], row["bare_partitions"], row["is_granted"]) == (me, None, None, True)
    shop.execute(
        f"""
        create role pgnotifyq_test_app bypassrls;
        grant select on orders to pgnotifyq_test_app;
        create view lends as select * from orders;
        create view asks with (security_invoker = true) as select * from orders;
        create materialized view copies as select * from orders;
        create view hidden as select * from orders;
        grant select on lends, asks, copies to {tenant_role(shop)};
        alter table orders no force row level security;
        """.encode()
    )
    (row,) = ask_blocking(shop, organisation.protected(SCHEMA))
    assert (row["is_forced"], row["exempt_roles"], row["open_views"]) == (False, "pgnotifyq_test_app", "copies, lends")
    with as_tenant(shop, OURS):
        assert value(shop, "select array_agg(what) from asks") == ["ours"]
        assert len(value(shop, "select array_agg(what) from lends")) == 3  # which is why
