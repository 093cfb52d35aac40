"""What does an idle worker cost? Statements, CPU seconds and resident memory, a minute."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import psutil
import psycopg

from bench.support import open_database, open_server, options, report

# What the server does by itself would be counted too.
SETTINGS = {"autovacuum": "off"}
# Each statement of an idle worker is a transaction, and so is each notification that its listener hears: the proof that it does, five a
# minute. A log of all statements had ten in a minute when this counted fifteen.
TRANSACTIONS = "select xact_commit + xact_rollback from pg_stat_database where datname = current_database()"


def _transactions(session: psycopg.Connection[Any], seconds: float) -> int:
    """Return how many transactions the database sees in a while."""
    counts = []
    for pause in (seconds, 0):
        row = session.execute(TRANSACTIONS).fetchone()
        assert row is not None
        counts.append(int(row[0]))
        time.sleep(pause)
    return counts[1] - counts[0]


def main() -> None:
    """Ask the question."""
    question = "the cost of an idle worker, a minute"
    asked = options(question, seconds=60)
    seconds = 20 if asked.quick else asked.seconds
    code = "import sys, trio; from bench.support import noop_registry; from pgnotifyq.runtime.worker import run_worker; trio.run(run_worker, noop_registry(), sys.argv[1])"
    with open_server(SETTINGS) as server_dsn, open_database(server_dsn) as dsn, psycopg.connect(dsn, autocommit=True) as session:
        # A given server stays as it is set: what it does by itself is counted without the worker first.
        alone = _transactions(session, seconds)
        worker = subprocess.Popen([sys.executable, "-c", code, dsn])
        try:
            time.sleep(15)  # it starts and falls asleep, and its sessions report what they did so far
            process = psutil.Process(worker.pid)
            cpu = process.cpu_times()
            transactions = _transactions(session, seconds)
            used = process.cpu_times()
            resident_mib = process.memory_info().rss / 2**20
        finally:
            worker.terminate()
            worker.wait()
    share = 60 / seconds
    figures = {
        "transactions_per_minute": round((transactions - alone) * share, 1),
        "cpu_seconds_per_minute": round((used.user + used.system - cpu.user - cpu.system) * share, 3),
        "resident_mib": round(resident_mib, 1),
    }
    line = "idle: {transactions_per_minute} transactions, {cpu_seconds_per_minute} s CPU a minute, {resident_mib} MiB".format(
        **figures
    )
    report(question, line, figures, asked.out)


if __name__ == "__main__":
    main()
