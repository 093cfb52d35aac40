"""`retention` and `erase`, and what `explain` and `show` say of when a job goes."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import psycopg

from tests.cli.test_commands import bury

if TYPE_CHECKING:
    from collections.abc import Callable


def complete(dsn: str) -> None:
    """Claim the one job that is due and complete it, as a worker would."""
    with psycopg.connect(dsn, autocommit=True) as session:
        worker = uuid.uuid4()
        session.execute(
            "select pgnotifyq.complete(%s, array[c.id], array[c.current_execution_id])"
            " from pgnotifyq.claim(%s, '{default}', 1, 60) as c where c.id is not null",
            (worker, worker),
        )


def test_what_is_said(run: Callable[..., Any], dsn: str) -> None:
    """Is listed, what is said of every queue first; explained of a job and a dead letter; and cleared."""
    assert run("retention", "list", "--json").data == []
    run("retention", "set", "*", "--keep-seconds", "172800", "--payload-seconds", "3600")
    run("retention", "set", "*", "--ending", "dead", "--keep-seconds", "864000")
    assert (
        run("retention", "set", "images", "--ending", "completed", "--result-seconds", "60").out.strip()
        == "said for queue images"
    )
    rows = [(row["queue_name"], row["ending"], row["keep_seconds"]) for row in run("retention", "list", "--json").data]
    assert rows == [("*", "cancelled", 172800), ("*", "completed", 172800), ("*", "dead", 864000), ("images", "completed", None)]
    job_id = run("enqueue", "x").out.strip()
    assert "It goes" not in run("explain", job_id).out and run("show", job_id, "--json").data["kept"] is None
    complete(dsn)
    said = run("explain", job_id).out
    assert "It goes, with its history, in 48 h." in said and "Its payload goes in 60 min." in said
    assert "in 48 h" in run("show", job_id, "--json").data["kept"]
    letter = run("enqueue", "x").out.strip()
    bury(dsn, letter)
    assert "It goes, with its history, in 10 d." in run("explain", letter).out
    run("retention", "clear", "images")
    run("retention", "clear", "*", "--ending", "dead")
    assert [row["ending"] for row in run("retention", "list", "--json").data] == ["cancelled", "completed"]
    assert "until somebody deletes it" in run("show", letter).out
    assert "It goes" not in run("explain", letter).out
    run("retention", "clear", "*")
    assert "as long as the workers" in run("show", job_id).out
    assert [run("retention", "set", wrong, "--keep-seconds", "1").code for wrong in ("no name", "")] == [2, 2]
    assert run("retention", "set", "images", "--keep-seconds", "-1").code == 2


def test_an_erasure(run: Callable[..., Any], dsn: str) -> None:
    """It counts; with --yes it erases, and says what is left; the trail says who and why, and not what."""
    for _ in range(2):
        run("enqueue", "x", '{"user": 17}', "--org", "00000000-0000-0000-0000-000000000007")
    dead = run("enqueue", "x", '{"user": 17}', "--priority", "5").out.strip()
    bury(dsn, dead)
    assert "2 job(s), of which 0 run, and 1 dead letter(s)" in run("erase", "--payload", '{"user": 17}').out
    with psycopg.connect(dsn, autocommit=True) as session:
        session.execute("select from pgnotifyq.claim(%s, '{default}', 1, 60)", (uuid.uuid4(),))
    ran = run("erase", "--payload", '{"user": 17}', "--why", "request 1", "--yes")
    assert ran.code == 1 and ran.out.startswith("erased 1 job(s) and 1 dead letter(s)") and "left: 1 that still run" in ran.out
    with psycopg.connect(dsn, autocommit=True) as session:
        session.execute(
            "update pgnotifyq.jobs set current_execution_id = null, locked_by = null, lease_expires_at = null where is_held"
        )
    ran = run("erase", "--payload", '{"user": 17}', "--why", "request 1", "--yes", "--json")
    assert (ran.code, ran.data["jobs"], ran.data["held"]) == (0, 1, 0)
    trail = run("audit", "--action", "erase", "--json").data
    assert {(row["details"]["why"], "@" in row["details"]["who"]) for row in trail} == {("request 1", True)}
    assert "17" not in str([row["details"]["by"] for row in trail])
    for wrong in ((), ("--queue", "default"), ("--payload", "{}"), ("--payload", "[1]"), ("--payload", "{"), ("--org", "")):
        assert run("erase", *wrong).code == 2
