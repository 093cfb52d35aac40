"""Does a snapshot that somebody else holds open make the queue collapse? Drain under one; the last tenth against the first."""

from __future__ import annotations

import subprocess
import sys

import psycopg

from bench.support import open_database, open_server, options, preload, report


def main() -> None:
    """Ask the question."""
    question = "jobs/s in each tenth of a drain, while another session holds a snapshot open"
    asked = options(question, jobs=300_000, concurrency=500)
    jobs = asked.jobs // 10 if asked.quick else asked.jobs
    with open_server() as server_dsn, open_database(server_dsn) as dsn:
        preload(dsn, jobs)
        with psycopg.connect(dsn) as holder:
            holder.execute("set transaction isolation level repeatable read")
            holder.execute("select count(*) from pgnotifyq.jobs")
            code = "from bench.drain import work; import sys; work(sys.argv[1], int(sys.argv[2]))"
            subprocess.run([sys.executable, "-c", code, dsn, str(asked.concurrency)], check=True)
        with psycopg.connect(dsn) as session:
            rows = session.execute(
                "select count(*) / extract(epoch from max(completed_at) - min(completed_at))::float8 from ("
                "  select completed_at, ntile(10) over (order by completed_at) as tenth from pgnotifyq.jobs) as t "
                "group by tenth order by tenth"
            ).fetchall()
    tenths = [round(row[0]) for row in rows]
    ratio = tenths[-1] / tenths[0]
    line = f"snapshot: {tenths[0]:,} jobs/s in the first tenth, {tenths[-1]:,} in the last: {ratio:.2f} x"
    report(question, line, {"jobs_per_second_by_tenth": tenths, "ratio": round(ratio, 3)}, asked.out)


if __name__ == "__main__":
    main()
