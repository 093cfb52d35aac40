"""How many instructions does a worker spend on a no-op job? They are the same on a busy machine.

A whole worker runs under valgrind's cachegrind, once with few jobs and once with more; the difference is the jobs'. Of the same code
two counts differ by less than a percent, where the CPU time of a drain differs by a tenth on a machine that others use. Instructions are
no time: of two ways that differ little in them, only a clock says which is faster.

Another checkout is counted by this file too, under its own interpreter:

    PYTHONPATH=../before ../before/.venv/bin/python bench/instructions.py
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

from bench.support import open_database, open_server, options, preload, report

FEW_JOBS = 1000
COUNT = ("valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null")
WORK = "from bench.drain import work; import sys; work(sys.argv[1], int(sys.argv[2]))"


def instructions(server_dsn: str, jobs: int, concurrency: int) -> int:
    """Return how many instructions a worker's process takes from its start to its end, for so many jobs."""
    with open_database(server_dsn) as dsn:
        preload(dsn, jobs)
        # Else the order of sets of texts differs from run to run.
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        command = [*COUNT, sys.executable, "-c", WORK, dsn, str(concurrency)]
        told = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    found = re.search(r"I\s+refs:\s+([\d,]+)", told.stderr)
    if told.returncode or found is None:
        raise RuntimeError(f"the worker failed:\n{told.stderr}")
    return int(found.group(1).replace(",", ""))


def main() -> None:
    """Ask the question."""
    question = "instructions of a worker for a no-op job"
    asked = options(question, jobs=10_000, concurrency=500)
    jobs = asked.jobs // 10 if asked.quick else asked.jobs
    if shutil.which("valgrind") is None:
        raise SystemExit("not on the PATH: valgrind")
    with open_server() as server_dsn:
        few, many = (instructions(server_dsn, count, asked.concurrency) for count in (FEW_JOBS, FEW_JOBS + jobs))
    figures = {"instructions": round((many - few) / jobs), "jobs": jobs, "concurrency": asked.concurrency}
    report(question, f"{figures['instructions']:,} instructions a job", figures, asked.out)


if __name__ == "__main__":
    main()
