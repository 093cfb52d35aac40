"""Do finished rows that are kept slow a worker down? Drain with a million of them, against an empty table."""

from __future__ import annotations

import statistics

from bench.drain import drain
from bench.support import open_server, options, report

FINISHED = """
insert into pgnotifyq.jobs (job_type, status, attempts, completed_at)
select 'old', 'completed', 1, now() from generate_series(1, {count})
"""


def main() -> None:
    """Ask the question."""
    question = "drain with finished rows kept, against an empty table"
    asked = options(question, jobs=50_000, finished=1_000_000, concurrency=500, runs=3)
    jobs, finished, runs = (10_000, 100_000, 1) if asked.quick else (asked.jobs, asked.finished, asked.runs)
    empty, full = [], []
    with open_server() as server_dsn:
        for _ in range(runs):
            empty.append(drain(server_dsn, jobs, asked.concurrency, 1))
            full.append(drain(server_dsn, jobs, asked.concurrency, 1, FINISHED.format(count=finished)))
    ratio = statistics.median(full) / statistics.median(empty)
    figures = {"empty": [round(rate) for rate in empty], "full": [round(rate) for rate in full], "ratio": round(ratio, 3)}
    report(
        question,
        f"history: with {finished:,} finished rows a drain runs at {ratio:.2f} x an empty table's rate",
        figures,
        asked.out,
    )


if __name__ == "__main__":
    main()
