"""What does a test of one's own cost: the first database, the next ones, a drain by a worker, and one within a transaction?

Databases are taken as `pgnotifyq_db` takes them: one after the other, and with a pause in between, as
tests have it that do something; and, beside them, made without spares, in memory and on the disk.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

import pgnotifyq
from bench.support import options, report
from pgnotifyq.embedded import open_temporary_server
from pgnotifyq.sync import open_client
from pgnotifyq.testing import Databases, drain
from pytest_pgnotifyq import MEMORY, SETTINGS

if TYPE_CHECKING:
    from collections.abc import Callable

PAUSE_SECONDS = 0.05  # what a short test takes


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Return the milliseconds of a call, and what it returned."""
    began = time.perf_counter()
    answer = call()
    return (time.perf_counter() - began) * 1000, answer


def of_databases(within: Path, count: int) -> dict[str, float]:
    """Take databases on a server in a folder, and give them back; medians in milliseconds."""
    figures: dict[str, float] = {}
    began = time.perf_counter()
    with open_temporary_server(settings=SETTINGS, within=within) as server, Databases(server.dsn, is_kept=False) as databases:
        databases.give_back(databases.take())
        figures["first_ms"] = (time.perf_counter() - began) * 1000
        for name, pause in (("next_ms", 0.0), ("next_after_pause_ms", PAUSE_SECONDS)):
            taken = []
            for _ in range(count):
                time.sleep(pause)
                milliseconds, dsn = timed(databases.take)
                taken.append(milliseconds)
                databases.give_back(dsn)
            figures[name] = statistics.median(taken)
            figures[f"{name}_p95"] = statistics.quantiles(taken, n=20)[-1]
    return figures


def of_drains(count: int) -> dict[str, float]:
    """Drain one job: by a worker, and within a transaction; medians in milliseconds."""
    registry = pgnotifyq.JobRegistry()

    @registry.handler
    async def noop(payload: dict[str, Any]) -> None: ...

    by_worker, within = [], []
    with open_temporary_server(settings=SETTINGS) as server, Databases(server.dsn, is_kept=False) as databases:
        dsn = databases.take()
        with open_client(dsn) as client, psycopg.connect(dsn) as connection:
            for _ in range(count):
                client.enqueue(noop, {})
                by_worker.append(timed(partial(drain, registry, dsn))[0])
                client.enqueue(noop, {}, connection=connection)
                within.append(timed(partial(drain, registry, connection=connection))[0])
                connection.rollback()
    return {"drain_by_worker_ms": statistics.median(by_worker), "drain_within_ms": statistics.median(within)}


def main() -> None:
    """Measure."""
    question = "What does a test of one's own cost?"
    given = options(question, count=100)
    count = 20 if given.quick else given.count
    figures: dict[str, Any] = {"disk": of_databases(Path(tempfile.gettempdir()), count), **of_drains(count)}
    if MEMORY.is_dir():
        figures["memory"] = of_databases(MEMORY, count)
    best = figures.get("memory", figures["disk"])
    line = f"first {best['first_ms']:.0f} ms, next {best['next_ms']:.1f} ms, after a pause {best['next_after_pause_ms']:.1f} ms"
    report(question, line, figures, given.out)
