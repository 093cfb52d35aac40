"""What every script needs: a database of its own on a server with default settings, percentiles, and one way to report."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import trio
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pgnotifyq.embedded import open_temporary_server
from pgnotifyq.migrating import migrate
from pgnotifyq.model.registry import JobRegistry
from pgnotifyq.wire.connection import open_connection

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

SCHEMA = "pgnotifyq"


def options(question: str, **defaults: Any) -> argparse.Namespace:
    """Parse a script's options: each default is an option of its type; every script takes --quick and --out."""
    parser = argparse.ArgumentParser(description=question)
    for name, default in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default, help=f"default {default}")
    parser.add_argument("--quick", action="store_true", help="a tenth of the work, for a look")
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    return parser.parse_args()


@contextmanager
def open_server(settings: Mapping[str, str] | None = None) -> Iterator[str]:
    """Give a server: PGNOTIFYQ_DSN, else a temporary embedded PostgreSQL 18 with default settings, fsync on.

    What is counted by scripts of ours alone is counted by function; a comparison passes no settings at all.
    """
    if given := os.environ.get("PGNOTIFYQ_DSN"):
        yield given
        return
    with open_temporary_server(settings={"track_functions": "pl"} if settings is None else settings) as server:
        yield server.dsn


@contextmanager
def open_database(server_dsn: str, *, migrated: bool = True) -> Iterator[str]:
    """Give a fresh database, dropped at the end."""
    name = f"bench_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server_dsn, autocommit=True) as server:
        server.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
    dsn = make_conninfo(server_dsn, dbname=name)
    try:
        if migrated:

            async def make() -> None:
                async with open_connection(dsn) as connection:
                    await migrate(connection)

            trio.run(make)
        yield dsn
    finally:
        with psycopg.connect(server_dsn, autocommit=True) as server:
            server.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


def preload(dsn: str, jobs: int, *, job_type: str = "noop", queue: str = "default") -> None:
    """Insert pending jobs in one statement, with distinct times, without ANALYZE."""
    with psycopg.connect(dsn, autocommit=True) as session:
        session.execute(
            "insert into pgnotifyq.jobs (job_type, queue_name, payload) "
            "select %s, %s, jsonb_build_object('n', i) from generate_series(1, %s) as i",
            (job_type, queue, jobs),
        )


def noop_registry() -> JobRegistry:
    """Return a registry with a handler that does nothing."""
    registry = JobRegistry()

    @registry.handler("noop")
    async def noop(payload: dict[str, Any]) -> None:
        pass

    return registry


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which a share of the values lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def latencies(milliseconds: Sequence[float]) -> dict[str, float]:
    """Return p50, p99 and the number of samples."""
    return {
        "p50_ms": round(statistics.median(milliseconds), 3),
        "p99_ms": round(percentile(milliseconds, 0.99), 3),
        "samples": len(milliseconds),
    }


def report(question: str, line: str, figures: dict[str, Any], out: Path | None) -> None:
    """Print a line for people on standard error and JSON on standard output, and write the JSON if asked to."""
    text = json.dumps({"question": question, "machine": machine(), **figures}, indent=2)
    print(line, file=sys.stderr)
    print(text)
    if out is not None:
        out.write_text(text + "\n", encoding="utf-8")


def machine() -> dict[str, Any]:
    """Return what the figures were taken on."""
    return {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.system()}
