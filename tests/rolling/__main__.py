"""`python -m tests.rolling [--times 10]`: rolling deploys under load, by SIGTERM and SIGKILL in turn.

Exit codes: 0 nothing was lost, charged wrongly, dead or done twice; 1 something was; 2 a deploy has
proved nothing.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from pathlib import Path

import attrs
import psycopg
from psycopg.conninfo import make_conninfo

from pgnotifyq.embedded import open_temporary_server
from tests.rolling.stage import roll

GREEN, RED, VOID = 0, 1, 2


def main() -> int:
    """Deploy as often as was asked; print an account of each."""
    parser = argparse.ArgumentParser(prog="python -m tests.rolling")
    parser.add_argument("--times", type=int, default=10)
    times = parser.parse_args().times
    code = GREEN
    with open_temporary_server(settings={"max_connections": "200"}) as server, tempfile.TemporaryDirectory() as scratch:
        for turn in range(times):
            name = f"rolling_{turn}"
            with psycopg.connect(server.dsn, autocommit=True) as session:
                session.execute(f"create database {name}".encode())
            folder = Path(scratch) / name
            folder.mkdir()
            number = (signal.SIGTERM, signal.SIGKILL)[turn % 2]
            told = roll(make_conninfo(server.dsn, dbname=name), folder, number)
            print(turn + 1, number.name, attrs.asdict(told), flush=True)
            code = max(code, RED if not told.is_well else VOID if told.is_void else GREEN, key=(GREEN, VOID, RED).index)
    return code


if __name__ == "__main__":
    sys.exit(main())
