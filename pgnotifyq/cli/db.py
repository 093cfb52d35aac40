"""`python -m pgnotifyq db`: start the embedded server, stop it, say its address."""

from __future__ import annotations

import sys

from cyclopts import App

db = App(name="db", help="The embedded PostgreSQL: start it, stop it, say its address, as for psql.")


@db.command
def start() -> int:
    """Start it, or find it running, and print its address."""
    from pgnotifyq.embedded import POSTGRES_VERSION, ensure_embedded

    server = ensure_embedded()
    verb = "started" if server.started else "already running:"
    print(f"pgnotifyq: {verb} the embedded PostgreSQL {POSTGRES_VERSION} in {server.folder}", file=sys.stderr)
    print(server.url)
    return 0


@db.command
def stop() -> int:
    """Stop it. Its data stay, and the next command that needs it starts it again."""
    from pgnotifyq.embedded import stop_embedded

    print("stopped" if stop_embedded() else "it was not running")
    return 0


@db.command
def url() -> int:
    """Print its address. Exit code 1 when it is not running; nothing is started."""
    from pgnotifyq.embedded import find_embedded

    server = find_embedded()
    if server is None:
        print("pgnotifyq: the embedded PostgreSQL is not running: start it with `python -m pgnotifyq db start`", file=sys.stderr)
        return 1
    print(server.url)
    return 0
