"""`python -m pgnotifyq db`: the embedded server, for people."""

from __future__ import annotations

import os
import sys
from typing import Annotated, NoReturn

from cyclopts import App, Parameter

db = App(name="db", help="The embedded PostgreSQL: start it, stop it, say its address, open psql on it.")


@db.command
def start() -> int:
    """Start the embedded PostgreSQL, or find it running, and print its address."""
    from pgnotifyq.embedded import POSTGRES_VERSION, ensure_embedded

    server = ensure_embedded()
    verb = "started" if server.started else "already running:"
    print(f"pgnotifyq: {verb} the embedded PostgreSQL {POSTGRES_VERSION} in {server.folder}", file=sys.stderr)
    print(server.url)
    return 0


@db.command
def stop() -> int:
    """Stop the embedded PostgreSQL. Its data stay, and the next command starts it again."""
    from pgnotifyq.embedded import stop_embedded

    print("stopped" if stop_embedded() else "it was not running")
    return 0


@db.command
def url() -> int:
    """Print the address of the embedded PostgreSQL. Exit code 1 if it does not run."""
    from pgnotifyq.embedded import find_embedded

    server = find_embedded()
    if server is None:
        print("pgnotifyq: the embedded PostgreSQL is not running: start it with `python -m pgnotifyq db start`", file=sys.stderr)
        return 1
    print(server.url)
    return 0


@db.command(help_flags=["--help"], version_flags=[])  # -h and -V are psql's
def psql(
    *arguments: Annotated[str, Parameter(allow_leading_hyphen=True, help="For psql, as they are; its own help is `-- --help`.")],
) -> NoReturn:
    """Open psql on the embedded PostgreSQL, started if need be. The exit code is psql's.

    It is the psql that comes along with the server, else the machine's.
    """
    from pgnotifyq.embedded import POSTGRES_VERSION, ensure_embedded, find_psql

    program = find_psql()
    server = ensure_embedded()
    if server.started:
        print(f"pgnotifyq: started the embedded PostgreSQL {POSTGRES_VERSION} in {server.folder}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    # psql takes this process over: its terminal, its signals and its exit code.
    # PG_COLOR is psql's own. The other variables that begin so would change where it connects.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PG") or name.startswith("PG_COLOR")}
    os.execve(program, [str(program), "--dbname", server.dsn, *arguments], environment)  # noqa: S606  # no shell
