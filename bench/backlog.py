"""Does the claim get slower as the backlog grows? Milliseconds of a claim of 100 at each backlog, without ANALYZE after the load."""

from __future__ import annotations

import statistics
import time
import uuid

import psycopg

from bench.support import open_database, open_server, options, preload, report

BATCH = 100


def claim_ms(server_dsn: str, backlog: int, samples: int) -> float:
    """Return the median milliseconds of a claim."""
    with open_database(server_dsn) as dsn:
        preload(dsn, backlog)
        with psycopg.connect(dsn, autocommit=True) as session:
            taken = []
            for _ in range(samples):
                began = time.perf_counter()
                session.execute("select * from pgnotifyq.claim(%s, '{default}', %s, 60)", (uuid.uuid4(), BATCH)).fetchall()
                taken.append((time.perf_counter() - began) * 1000)
        return statistics.median(taken)


def main() -> None:
    """Ask the question."""
    question = f"milliseconds of a claim of {BATCH}, by backlog"
    asked = options(question, samples=60)
    backlogs = [10_000, 100_000] if asked.quick else [10_000, 100_000, 1_000_000]
    with open_server() as server_dsn:
        medians = {backlog: round(claim_ms(server_dsn, backlog, asked.samples), 3) for backlog in backlogs}
    ratio = medians[backlogs[-1]] / medians[backlogs[0]]
    line = f"backlog: a claim of {BATCH} takes {medians[backlogs[0]]} ms at {backlogs[0]:,} and {ratio:.2f} x that at {backlogs[-1]:,}"
    report(question, line, {"claim_ms": medians, "ratio": round(ratio, 3)}, asked.out)


if __name__ == "__main__":
    main()
