"""A pgbouncer of the test's own, before the test's database."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgnotifyq.embedded import _free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

BINARY = os.environ.get("PGNOTIFYQ_TEST_PGBOUNCER") or shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
START_SECONDS_MAX = 20.0


def version() -> tuple[int, int]:
    """Return which pgbouncer there is; (0, 0) when there is none."""
    if BINARY is None:
        return (0, 0)
    told = subprocess.run([BINARY, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"PgBouncer (\d+)\.(\d+)", told)
    assert found is not None, told
    return (int(found[1]), int(found[2]))


KEEPS_TRACK = version() >= (1, 21)  # of prepared statements, if told to


@attrs.frozen
class Pooler:
    """A pgbouncer, running."""

    dsn: str  # the server's database, by way of it


@contextmanager
def open_pooler(server_dsn: str, **settings: object) -> Iterator[Pooler]:
    """Run pgbouncer in transaction mode for the length of a block.

    Args:
        server_dsn: the database that it leads to; over TCP on this machine when the DSN names a socket.
        settings: of its section [pgbouncer].
    """
    assert BINARY is not None
    direct = conninfo_to_dict(server_dsn)
    host = str(direct.get("host") or "127.0.0.1")
    server = {
        "host": "127.0.0.1" if host.startswith("/") else host,
        "port": direct.get("port") or 5432,
        "dbname": direct["dbname"],
        "user": direct.get("user") or "postgres",
    }
    if direct.get("password"):
        server["password"] = direct["password"]
    own = {
        "listen_addr": "127.0.0.1",
        "listen_port": _free_port(),
        "unix_socket_dir": "",
        "auth_type": "any",
        "pool_mode": "transaction",
        "default_pool_size": 10,
        **settings,
    }
    with tempfile.TemporaryDirectory(prefix="pgnotifyq-pooler-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        configuration = folder / "pgbouncer.ini"
        lines = ["[databases]", "* = " + " ".join(f"{key}={value}" for key, value in server.items()), "[pgbouncer]"]
        lines += [f"{key} = {value}" for key, value in own.items()]
        configuration.write_text("\n".join(lines) + "\n")
        configuration.chmod(0o644)
        with (folder / "log").open("w+b") as log:
            # It refuses to run as root.
            user = "nobody" if os.geteuid() == 0 else None
            process = subprocess.Popen([BINARY, str(configuration)], stdout=log, stderr=log, user=user, cwd="/")
            try:
                pooled: dict[str, Any] = {"host": "127.0.0.1", "port": own["listen_port"], "user": server["user"]}
                pooler = Pooler(make_conninfo(**pooled, dbname=str(direct["dbname"])))
                _wait_ready(pooler, process, folder / "log")
                yield pooler
            finally:
                process.terminate()  # fast: clients are cut off
                process.wait()


def _wait_ready(pooler: Pooler, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS_MAX
    while True:
        try:
            psycopg.connect(pooler.dsn, connect_timeout=5).close()
        except psycopg.OperationalError:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        else:
            return
