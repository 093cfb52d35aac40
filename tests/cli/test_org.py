"""The commands on tenants: settings, credentials that are never printed, the trail, and protected tables."""

from __future__ import annotations

import io
import json
import sys
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from pgnotifyq import ConfigError, CredentialKeys, org
from pgnotifyq.cli import org_credentials
from pgnotifyq.ledger import organisation
from pgnotifyq.model.credentials import FILE_VARIABLE, KEYS_VARIABLE, new_key
from pgnotifyq.wire.asking import ask_blocking

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ACME = str(org("acme"))


@pytest.fixture
def session(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(dsn, autocommit=True) as session:
        yield session


def test_config(run: Callable[..., Any]) -> None:
    """Is set by a name, got by the id, listed with the name, unset; a value that is no JSON is a text; each change is in the trail."""
    assert run("config", "set", "limit", "5", "--org", "acme").out == "limit is set\n"
    assert run("config", "set", "plan", "pro", "--org", ACME).code == 0
    assert run("config", "set", "stripe", '{"rate": -1.5}', "--org", "7").code == 0
    assert run("config", "set", "least", "-3", "--org", "7").code == 0
    assert run("config", "get", "limit", "--org", ACME).data == 5
    assert run("config", "get", "plan", "--org", "acme").data == "pro"
    gone = run("config", "get", "plan", "--org", "7")
    assert (gone.code, gone.out) == (1, "")
    listed = run("config", "list", "--json").data
    assert [(row["org"], row["name"], row["value"]) for row in listed] == [
        ("7", "least", -3), ("7", "stripe", {"rate": -1.5}), ("acme", "limit", 5), ("acme", "plan", "pro"),
    ]  # fmt: skip
    assert [row["name"] for row in run("config", "list", "--org", "acme", "--name", "plan", "--json").data] == ["plan"]
    assert run("config", "unset", "limit", "--org", "acme").code == 0
    assert run("config", "unset", "limit", "--org", "acme").code == 1
    trail = run("audit", "--org", "acme", "--json").data
    assert [(row["action"], row["details"]["name"]) for row in trail] == [
        ("config.unset", "limit"), ("config.set", "plan"), ("config.set", "limit"),
    ]  # fmt: skip


def test_credentials(run: Callable[..., Any], tmp_path: Path, session: psycopg.Connection[Any]) -> None:
    """Come from standard input, are sealed, are listed and never printed, are rotated to a new key, and go."""
    old, new = (run("credentials", "new-key").out.strip() for _ in range(2))
    assert old != new
    ran = [run("credentials", "set", "stripe", "--org", "acme", stdin="sk_live_hush\n", **{KEYS_VARIABLE: old})]
    file = tmp_path / "keys"
    file.write_text(f"{new}\n{old}\n")
    file.chmod(0o600)
    ran += [run("credentials", "list", "--json"), run("credentials", "rotate", "--json", **{FILE_VARIABLE: str(file)})]
    assert [each.code for each in ran] == [0, 0, 0]
    assert ran[1].data[0]["key_id"] == CredentialKeys([old]).key_id
    assert ran[2].data == {"rotated": 1, "left": []}
    (sealed,) = ask_blocking(session, organisation.sealed("pgnotifyq", org("acme")))
    assert CredentialKeys([new]).open(sealed) == "sk_live_hush"
    ran += [run("credentials", "list", "--org", "acme"), run("audit", "--json")]
    assert [row["action"] for row in ran[-1].data] == ["credential.rotated", "credential.set"]
    ran += [run("credentials", "delete", "stripe", "--org", "acme")]
    assert run("credentials", "delete", "stripe", "--org", "acme").code == 1
    everything = "".join(each.out + each.err for each in ran)
    assert "hush" not in everything and old not in everything and new not in everything


def test_rotation_without_the_old_key(run: Callable[..., Any]) -> None:
    """Names what did not open, leaves it, rotates the rest, and fails."""
    old, other, new = new_key(), new_key(), new_key()
    for name, key in (("lost", old), ("kept", other)):
        assert run("credentials", "set", name, "--org", "acme", stdin="secret", **{KEYS_VARIABLE: key}).code == 0
    ran = run("credentials", "rotate", **{KEYS_VARIABLE: f"{new} {other}"})
    assert (ran.code, ran.out) == (1, f"rotated 1 to key {CredentialKeys([new]).key_id}\n")
    assert "credential lost" in ran.err and CredentialKeys([old]).key_id in ran.err


@pytest.mark.parametrize(
    ("arguments", "stdin", "environment", "says"),
    [
        (("credentials", "set", "a", "--org", "acme"), "x", {}, "new-key"),
        (("credentials", "set", "a", "--org", "acme"), "x", {KEYS_VARIABLE: "short"}, "32 bytes"),
        (("credentials", "set", "a", "--org", "acme"), "", {KEYS_VARIABLE: new_key()}, "1 to 65536 bytes"),
        (("credentials", "set", "a b", "--org", "acme"), "x", {KEYS_VARIABLE: new_key()}, "not valid"),
        (("config", "set", "a b", "1", "--org", "acme"), "", {}, "not valid"),
        (("config", "get", "a", "--org", ""), "", {}, "names no tenant"),
        (("config", "get", "a"), "", {}, "--org"),
        (("protect", "public.nothing", "org_id"), "", {}, "is no table"),
        (("protect", "pg_class", "relname", "--rights", "all"), "", {}, "no table of an application"),
        (("audit", "--org", "acme", "--purge-older-than-seconds", "0"), "", {}, "all tenants"),
    ],
    ids=["no key", "bad key", "empty", "name", "setting", "tenant", "no tenant", "table", "catalog", "purge"],
)
def test_mistakes(
    run: Callable[..., Any], arguments: tuple[str, ...], stdin: str, environment: dict[str, str], says: str
) -> None:
    """Are told in one line, and the exit code says that it was the input."""
    ran = run(*arguments, stdin=stdin, **environment)
    assert (ran.code, ran.out) == (2, "")
    assert says in ran.err and len(ran.err.splitlines()) == 1


def test_bytes_for_a_credential(monkeypatch: pytest.MonkeyPatch) -> None:
    """Are refused, and are not in the error: a credential is a text."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hush\xff"), encoding="utf-8"))
    monkeypatch.setenv(KEYS_VARIABLE, new_key())
    with pytest.raises(ConfigError, match="is not a text in UTF-8") as refused:
        org_credentials.set_("stripe", of="acme")
    assert "hush" not in str(refused.value)
    assert refused.value.__cause__ is None and refused.value.__suppress_context__


def test_trail(run: Callable[..., Any], session: psycopg.Connection[Any]) -> None:
    """Is listed, the latest first, by tenant, action and job; is purged of what is old."""
    for each, action in (("acme", "one"), ("acme", "two"), ("umbrella", "one")):
        ask_blocking(session, organisation.audit_for("pgnotifyq", org(each), action, {"n": 1}))
    assert [row["action"] for row in run("audit", "--json").data] == ["one", "two", "one"]
    assert len(run("audit", "--org", "acme", "--action", "one", "--json").data) == 1
    assert run("audit", "--job", ACME, "--json").data == []
    assert run("audit", "--limit", "1").out.count("\n") == 2
    assert run("audit", "--purge-older-than-seconds", "3600").out == "purged 0\n"
    assert json.loads(run("audit", "--purge-older-than-seconds", "0", "--json").out) == {"purged": 3}


def test_protected_tables(run: Callable[..., Any], session: psycopg.Connection[Any]) -> None:
    """Are told of by `doctor`, with each way past the policies, until they are protected no more."""
    session.execute("create table orders (org_id uuid, at date) partition by range (at)")
    session.execute("create table orders_now partition of orders for values from ('2020-01-01') to ('2030-01-01')")
    assert (
        run("protect", "orders", "org_id", "--rights", "select, insert").out
        == "protected orders by org_id, 2 tables with its partitions\n"
    )
    session.execute("create role pgnotifyq_test_clerk")
    session.execute("alter table orders owner to pgnotifyq_test_clerk; alter table orders_now owner to pgnotifyq_test_clerk")
    try:
        found = {each["what"]: each["verdict"] for each in run("doctor", "--json").data if "table orders" in each["what"]}
        assert found == {"table orders is protected by org_id": "ok", "table orders_now is protected by org_id": "ok"}
        (tenant,) = next(session.execute("select role_name from pgnotifyq.roles where kind = 'tenant'"))
        session.execute(f"create view seen as select * from orders; grant select on seen to {tenant}".encode())
        session.execute("alter table orders no force row level security; alter table orders_now disable row level security")
        session.execute("create table orders_later partition of orders for values from ('2030-01-01') to ('2040-01-01')")
        session.execute(f"grant truncate on orders to {tenant}; revoke select on orders_now from {tenant}".encode())
        doctor = run("doctor", "--json")
        said = {each["what"]: each["verdict"] for each in doctor.data if "orders" in each["what"]}
        assert said == {
            "row security of table orders does not bind its owner": "warn",
            "views show all tenants' rows of table orders: seen": "fail",
            "partitions of table orders are not protected: orders_later": "fail",
            f"{tenant} may truncate table orders": "fail",
            "row security of table orders_now is off: its policies do nothing": "fail",
            "table orders_now is protected, and tenants' transactions may not read it": "warn",
        }
        assert doctor.code == 1
        assert run("unprotect", "orders").out == "orders is protected no more, 2 tables with its partitions\n"
        assert run("unprotect", "orders").code == 1
    finally:
        session.execute("drop table orders cascade; drop role pgnotifyq_test_clerk")
