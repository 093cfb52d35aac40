"""Attacks on tenants and on roles, by SQL. Each is refused, or finds nothing and changes nothing."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from tests.attacks.catalogue import ATTACKS, JOBS, Attack
from tests.attacks.running import judge, run
from tests.attacks.stage import ANN, BOB, MARK, Stage, open_stage

if TYPE_CHECKING:
    from collections.abc import Iterator

WHO = sorted({attack.who for attack in ATTACKS})


@pytest.fixture(scope="module")
def stage(server_dsn: str) -> Iterator[Stage]:
    with psycopg.connect(server_dsn, autocommit=True) as server:
        if server.execute("select rolsuper from pg_roles where rolname = current_user").fetchone() != (True,):
            pytest.skip("the server's role may not make roles")
    with open_stage(server_dsn) as stage:
        yield stage


def test_there_are_enough() -> None:
    """At least sixty, and no two of one name."""
    assert len({(attack.who, attack.name) for attack in ATTACKS}) == len(ATTACKS) >= 60
    assert set(WHO) == {"admin", "handler", "observer", "plain", "producer", "worker"}


@pytest.mark.parametrize("who", WHO)
def test_attacks(stage: Stage, who: str) -> None:
    """None succeeds, whoever makes it."""
    outcomes = {attack.name: run(attack, stage) for attack in ATTACKS if attack.who == who}
    assert {name: outcome for name, outcome in outcomes.items() if not outcome.is_held_off} == {}


def test_what_a_handler_may_do(stage: Stage) -> None:
    """It sees its own tenant's rows, enqueues and cancels: a session that sees nothing at all would pass every test above."""
    with stage.as_handler() as session:
        assert session.execute("select distinct org_id from pgnotifyq.jobs").fetchall() == [(ANN,)]
        assert session.execute("select secret from accounts").fetchall() == [("anns",)]
        assert session.execute("select secret from papers").fetchall() == [("anns",)]
        assert session.execute("select name, value from pgnotifyq.org_config").fetchall() == [("limit", 5)]
        assert session.execute("select pgnotifyq.audit('looked')").fetchone() is not None
        assert session.execute("select distinct org_id from pgnotifyq.org_audit").fetchall() == [(ANN,)]
        row = session.execute("select pgnotifyq.enqueue('noop', org_id => %s, unique_key => 'mine')", (ANN,)).fetchone()
        assert row is not None
        assert session.execute("select pgnotifyq.enqueue('noop', org_id => %s, unique_key => 'mine')", (ANN,)).fetchone() == row
        assert session.execute("select pgnotifyq.cancel(%s)", row).fetchone() == ("cancelled",)


def test_what_a_producer_may_do(stage: Stage) -> None:
    """It enqueues for every tenant, and sees and cancels what it enqueued; another producer's key is told, and no more."""
    with stage.as_role("producer") as mine, stage.as_role("other_producer") as theirs:
        enqueue = "select pgnotifyq.enqueue('noop', org_id => %s, unique_key => 'ours')"
        row = mine.execute(enqueue, (ANN,)).fetchone()
        assert row is not None
        mine.execute("commit")
        assert mine.execute("select distinct enqueued_by from pgnotifyq.jobs").fetchall() == [(stage.names["producer"],)]
        assert theirs.execute(enqueue, (ANN,)).fetchone() == row
        assert theirs.execute("select pgnotifyq.cancel(%s)", row).fetchone() == ("unknown",)
        assert mine.execute("select pgnotifyq.cancel(%s)", row).fetchone() == ("cancelled",)


def test_token_of_another_session(stage: Stage) -> None:
    """A token that is good in one session at this moment is worth nothing in another."""
    with stage.as_handler() as one, stage.as_handler() as other:
        token = one.execute("select current_setting('pgnotifyq.token')").fetchone()
        assert one.execute("select pgnotifyq.current_org()").fetchone() == (ANN,)
        other.execute("select set_config('pgnotifyq.token', %s, true)", token)
        assert other.execute("select pgnotifyq.current_org()").fetchone() == (None,)


def test_token_of_another_key(stage: Stage) -> None:
    """Who does not know the key makes no token; a key that was there before a new one is still good."""
    with stage.as_handler(b"x" * 32) as session:
        assert session.execute("select pgnotifyq.current_org()").fetchone() == (None,)
    stage.admin.execute("select pgnotifyq.new_tenant_key()")
    with stage.as_handler() as session:
        assert session.execute("select pgnotifyq.current_org()").fetchone() == (ANN,)


@pytest.mark.parametrize("table", ["pgnotifyq.jobs", "pgnotifyq.org_config", "accounts", "papers"])
def test_token_is_checked_once_a_statement(stage: Stage, table: str) -> None:
    """And not once a row: of ours and of the application's tables, as the documentation has them written."""
    with stage.as_handler() as session:
        row = session.execute(f"explain (analyze, verbose, format json) select from {table}".encode()).fetchone()
        assert row is not None
        found = list(_nodes(row[0][0]["Plan"]))
        asks = [node for node in found if "current_org" in str(node.get("Output"))]
        assert asks
        assert {node["Node Type"] for node in asks} == {"Result"}
        assert max(node["Actual Loops"] for node in asks) == 1
        assert not [node for node in found if "current_org()" in str(node.get("Filter")) + str(node.get("Index Cond"))]


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for each in plan.get("Plans", ()):
        yield from _nodes(each)


KEY = "about_to_be_taken"
BY_KEY = (
    ("handler", "select pgnotifyq.enqueue('noop', org_id => '{ann}', unique_key => %s)", False),
    ("handler", "insert into pgnotifyq.jobs (job_type, org_id, unique_key) values ('noop', '{bob}', %s)", True),
    (
        "handler",
        "insert into pgnotifyq.jobs (job_type, org_id, unique_key) values ('noop', '{bob}', %s) on conflict do nothing",
        True,
    ),
    ("handler", "insert into accounts (org_id, secret) values ('{ann}', %s)", False),
    ("handler", "insert into accounts (org_id, secret) values ('{bob}', %s)", True),
    ("producer", "select pgnotifyq.enqueue('noop', org_id => '{ann}', unique_key => %s)", False),
)


@pytest.mark.parametrize(("who", "statement", "refused"), BY_KEY)
def test_timing_of_unique_violations(stage: Stage, who: str, statement: str, refused: bool) -> None:
    """A key that another tenant's open transaction takes makes nobody of this tenant wait, so how long it takes tells nothing.

    A unique index waits for such a transaction. If the statement came so far as to meet Bob's key there, it would end by its
    lock_timeout. An answer, or a refusal by a policy, shows that it did not.
    """
    with stage.as_role("owner") as theirs:
        theirs.execute("select pgnotifyq.enqueue('noop', org_id => %s, unique_key => %s)", (BOB, KEY))
        theirs.execute("select set_config('pgnotifyq.org_id', %s, true)", (str(BOB),))
        theirs.execute("insert into accounts (org_id, secret) values (%s, %s)", (BOB, KEY))
        with stage.as_handler() if who == "handler" else stage.as_role(who) as session:
            session.execute("set local lock_timeout = '2s'")
            with pytest.raises(psycopg.errors.InsufficientPrivilege) if refused else nullcontext():
                session.execute(stage.fill(statement).encode(), (KEY,))
            session.execute("rollback")
        theirs.execute("rollback")


def test_key_that_the_same_tenant_takes_is_waited_for(stage: Stage) -> None:
    """The test above could fail: a key of one's own tenant, in an open transaction, is waited for."""
    with stage.as_role("owner") as mine, stage.as_handler() as session:
        mine.execute("select pgnotifyq.enqueue('noop', org_id => %s, unique_key => %s)", (ANN, KEY))
        session.execute("set local lock_timeout = '100ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            session.execute("select pgnotifyq.enqueue('noop', org_id => %s, unique_key => %s)", (ANN, KEY))
        mine.execute("rollback")


@pytest.mark.parametrize("name", ["other tenant by the setting", "commit by hand"])
def test_attacks_on_the_lesser_grade(stage: Stage, name: str) -> None:
    """The attacks are attacks: where only a setting and a role confine, these succeed."""
    attack = next(attack for attack in ATTACKS if attack.who == "handler" and attack.name == name)
    stage.admin.execute(f"grant select on accounts to {stage.names['worker']}".encode())
    told: list[str] = []
    with stage.as_role("worker") as session:
        session.execute("select set_config('pgnotifyq.org_id', %s, true), set_config('role', r.role_name, true)"
                        " from pgnotifyq.roles as r where r.kind = 'tenant' and r.role_name !~ 'login'", (str(ANN),))  # fmt: skip
        assert MARK not in str(session.execute(JOBS).fetchall())
        for statement in attack.statements[:-3]:
            cursor = session.execute(stage.fill(statement).encode())
            told.extend(str(row) for row in (cursor.fetchall() if cursor.description else ()))
    stage.admin.execute(f"revoke select on accounts from {stage.names['worker']}".encode())
    assert judge(attack, [None], told, is_changed=False).verdict == "leaked"


@pytest.mark.parametrize(
    ("errors", "told", "is_changed", "verdict"),
    [
        ([None], [MARK], False, "leaked"),
        (["42501 no"], ["no", f"it was {MARK}"], False, "leaked"),
        (["42501 no"], [], True, "changed"),
        ([None], [], False, "allowed"),
        (["42501 no"], [], False, "refused"),
    ],
)
def test_judge(errors: list[str | None], told: list[str], is_changed: bool, verdict: str) -> None:
    """What succeeds is seen, in an error's words too."""
    assert (
        judge(Attack("an attack", "plain", ("select 1",), refused=True), errors, told, is_changed=is_changed).verdict == verdict
    )
