"""Each command does what it says, prints data on request, and tells a mistake in one line."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

COMMANDS = ["demo", "migrate", "worker", "enqueue", "jobs", "show", "cancel", "dead", "requeue", "workers", "stats", "doctor"]


def bury(dsn: str, job_id: str, **fields: str) -> None:
    """Claim a job and send it to the dead letters, as a worker would."""
    with psycopg.connect(dsn, autocommit=True) as session:
        worker = uuid.uuid4()
        row = session.execute(
            "select current_execution_id from pgnotifyq.claim(%s, '{default}', 1, 60) where id = %s", (worker, job_id)
        ).fetchone()
        assert row is not None
        session.execute(
            "select pgnotifyq.settle(%s, array[%s]::uuid[], array[%s]::uuid[], '{bury}', '{failed}', '{0}', '{boom}', '{null}', '{exhausted}')",
            (worker, job_id, row[0]),
        )


def test_help_names_every_command(run: Callable[..., Any]) -> None:
    """And each command explains itself."""
    ran = run("--help")
    assert ran.code == 0
    assert all(f" {name} " in ran.out for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(run: Callable[..., Any], command: str) -> None:
    """With its options."""
    ran = run(command, "--help")
    assert ran.code == 0
    assert "--dsn" in ran.out


def test_a_job_from_enqueue_to_cancel(run: Callable[..., Any]) -> None:
    """Enqueue prints the id; jobs, show and stats know it; cancel says what became of it, twice."""
    job_id = run("enqueue", "resize", '{"path": "a.png"}', "--priority", "5").out.strip()
    (listed,) = run("jobs", "--status", "pending", "--json").data
    assert (listed["id"], listed["payload"], listed["priority"]) == (job_id, {"path": "a.png"}, 5)
    assert run("show", job_id, "--json").data["status"] == "pending"
    assert '{"path": "a.png"}' in run("show", job_id).out
    assert run("stats", "--json").data[0]["pending"] == 1
    first, second = run("cancel", job_id), run("cancel", job_id)
    assert (first.out.strip(), first.code) == ("cancelled", 0)
    assert (second.out.strip(), second.code) == ("finished", 1)


def test_a_payload_from_standard_input(run: Callable[..., Any]) -> None:
    """With - in its place."""
    run("enqueue", "x", "-", stdin='{"a": [1, 2]}')
    assert run("jobs", "--json").data[0]["payload"] == {"a": [1, 2]}


def test_a_dead_letter_is_shown_requeued_and_purged(run: Callable[..., Any], dsn: str) -> None:
    """List, show with its history, requeue, and purge for good."""
    job_id = run("enqueue", "x").out.strip()
    bury(dsn, job_id)
    assert [letter["id"] for letter in run("dead", "--json").data] == [job_id]
    shown = run("show", job_id, "--json").data
    assert (shown["status"], shown["reason"], [attempt["outcome"] for attempt in shown["history"]]) == (
        "dead",
        "exhausted",
        ["failed"],
    )
    assert run("requeue", job_id).out.strip() == "requeued 1"
    assert run("jobs", "--json").data[0]["attempts"] == 0
    bury(dsn, job_id)
    assert run("requeue", "--all").code == 0
    bury(dsn, job_id)
    assert run("dead", "--purge", job_id).out.strip() == "purged 1"
    assert run("dead", "--json").data == []


def test_piped_output_is_tabs(run: Callable[..., Any]) -> None:
    """One header, one line a row, nothing drawn."""
    run("enqueue", "x")
    lines = run("jobs").out.splitlines()
    assert lines[0].startswith("id\tqueue_name\tjob_type")
    assert len(lines) == 2


def test_migrate_is_repeatable_and_shows_its_sql(run: Callable[..., Any], blank_dsn: str) -> None:
    """Dry run changes nothing; twice is once; another schema's name works."""
    dry = run("migrate", "--dry-run", "--dsn", blank_dsn, "--schema", "other")
    assert 'create table "other".jobs' in dry.out
    assert run("jobs", "--dsn", blank_dsn, "--schema", "other").code == 3
    assert "applied 0001_jobs" in run("migrate", "--dsn", blank_dsn, "--schema", "other").out
    assert "already up to date" in run("migrate", "--dsn", blank_dsn, "--schema", "other").out
    assert run("enqueue", "x", "--dsn", blank_dsn, "--schema", "other").code == 0


def test_code_older_than_the_schema_refuses(run: Callable[..., Any], dsn: str) -> None:
    """With a message that says which is which; nothing is touched."""
    with psycopg.connect(dsn, autocommit=True) as session:
        session.execute("insert into pgnotifyq.schema_migrations (version, name, digest) values (9999, 'later', '')")
    for command in (["jobs"], ["migrate"]):
        ran = run(*command)
        assert ran.code == 3
        assert "9999" in ran.err
        assert "upgrade pgnotifyq" in ran.err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["enqueue", "bad type"], 2, "job type 'bad type' is not valid"),
        (["enqueue", "x", "{bad"], 2, "not JSON"),
        (["enqueue", "x", '{"a": NaN}'], 2, "nan, which is not JSON"),
        (["enqueue", "x", '{"a": "\\u0000"}'], 2, "NUL"),
        (["enqueue", "x", "[" * 5000], 2, "JSON"),
        (["enqueue", "x", "--queue", "a b"], 2, "queue name 'a b' is not valid"),
        (["enqueue", "x", "--at", "tomorrow"], 2, "not a time"),
        (["enqueue", "x", "--at", "2030-01-01T00:00:00"], 2, "no time zone"),
        (["enqueue", "x", "--org", "me"], 2, "not a UUID"),
        (["enqueue", "x", "--priority", "99999"], 2, "out of range"),
        (["show", "nonsense"], 2, "not a job id"),
        (["show", str(uuid.UUID(int=1))], 1, "there is no job"),
        (["cancel", str(uuid.UUID(int=1))], 1, "there is no job"),
        (["requeue", str(uuid.UUID(int=1))], 1, "no such dead letter"),
        (["requeue"], 2, "--all"),
        (["jobs", "--status", "lost"], 2, "use pending"),
        (["jobs", "--dsn", "postgresql://127.0.0.1:1/x"], 3, "127.0.0.1:1"),
        (["jobs", "--schema", "Bad"], 2, "schema name"),
        (["worker"], 2, "package.module:registry"),
        (["worker", "--app", "nocolon"], 2, "package.module:registry"),
        (["worker", "--app", "no.such:thing"], 2, "importing no.such failed"),
        (["worker", "--app", "json:dumps"], 2, "not a JobRegistry"),
        (["worker", "--app", "json:nothing"], 2, "has no 'nothing'"),
        (["worker", "--app", "pgnotifyq.cli.demo_handlers:registry", "--heartbeat-seconds", "30"], 2, "third"),
    ],
)
def test_a_mistake_is_one_line_and_an_exit_code(run: Callable[..., Any], arguments: list[str], code: int, words: str) -> None:
    """It says what happened, the value, and what to do; never a traceback."""
    ran = run(*arguments)
    assert ran.code == code, ran.err
    assert words in ran.err
    assert len(ran.err.strip().splitlines()) == 1


def test_doctor_finds_a_healthy_database_well(run: Callable[..., Any]) -> None:
    """No failure; as JSON one finding an object."""
    ran = run("doctor", "--json")
    assert ran.code == 0
    assert {finding["verdict"] for finding in ran.data} <= {"ok", "warn"}
    assert any("notification to ourselves arrived" in finding["what"] for finding in ran.data)


def test_doctor_names_who_holds_an_old_snapshot(run: Callable[..., Any], dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By pid and application name."""
    from pgnotifyq.cli import doctor

    monkeypatch.setattr(doctor, "SNAPSHOT_SECONDS_MAX", 0.0)
    with psycopg.connect(dsn, application_name="culprit") as session:
        session.execute("set transaction isolation level repeatable read")
        session.execute("select 1")
        found: list[Any] = []
        monkeypatch.setattr(doctor, "_print", found.extend)
        assert doctor.run(dsn, "pgnotifyq", as_json=False) == 0
    assert any("culprit" in finding.what and finding.verdict == "warn" for finding in found)
