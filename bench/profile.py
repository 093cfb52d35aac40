"""Where does the time of a drain go? The worker's Python by py-spy, its two sessions of the server by perf, as text.

Wants py-spy and perf on the PATH, and a kernel that lets perf look (root, or kernel.perf_event_paranoid at most 1). Both slow down
what they watch: shares are what this is for, not rates.
"""

from __future__ import annotations

import collections
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psycopg

from bench.support import machine, open_database, open_server, options, preload

SHARE_MIN = 0.7  # percent; what takes less is left out
SESSIONS = """
select pid from pg_stat_activity
where datname = current_database() and application_name in ('pgnotifyq claimer', 'pgnotifyq settler')
"""


def worker_shares(stacks: Path) -> str:
    """Return each function's share of the worker's samples: its own, and with all that it called."""
    own: collections.Counter[str] = collections.Counter()
    whole: collections.Counter[str] = collections.Counter()
    for line in stacks.read_text(encoding="utf-8").splitlines():
        stack, count = line.rsplit(" ", 1)
        frames = [
            re.sub(r"\((?:.*site-packages/|.*/lib/python[\d.]+/)?(.*?)(?::\d+)?\)", r"(\1)", frame) for frame in stack.split(";")
        ]
        own[frames[-1]] += int(count)
        for frame in set(frames):
            whole[frame] += int(count)
    total = own.total()
    rows = [(100 * count / total, 100 * own[frame] / total, frame) for frame, count in whole.items()]
    shown = sorted((row for row in rows if row[1] >= SHARE_MIN), key=lambda row: -row[1])
    return "\n".join(["  own %  whole %  function", *(f"{mine:7.1f} {whole:8.1f}  {frame}" for whole, mine, frame in shown)])


def server_shares(record: Path) -> str:
    """Return each symbol's share of the samples of the server's sessions."""
    command = ["perf", "report", "--stdio", "--no-children", "-g", "none", "--percent-limit", str(SHARE_MIN), "-i", str(record)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return "\n".join(line.rstrip() for line in told.splitlines() if line.strip() and not line.startswith("#"))


def main() -> None:
    """Ask the question."""
    asked = options("where the time of a drain goes", jobs=200_000, concurrency=500, seconds=3.0)
    jobs = asked.jobs // 4 if asked.quick else asked.jobs
    if missing := [tool for tool in ("py-spy", "perf") if shutil.which(tool) is None]:
        raise SystemExit(f"not on the PATH: {', '.join(missing)}")
    code = "from bench.drain import work; import sys; work(sys.argv[1], int(sys.argv[2]))"
    with open_server() as server_dsn, open_database(server_dsn) as dsn, tempfile.TemporaryDirectory() as folder:
        preload(dsn, jobs)
        stacks, record = Path(folder) / "stacks", Path(folder) / "record"
        spy = ["py-spy", "record", "--rate", "500", "--format", "raw", "--output", str(stacks), "--"]
        worker = subprocess.Popen([*spy, sys.executable, "-c", code, dsn, str(asked.concurrency)], stdout=subprocess.DEVNULL)
        with psycopg.connect(dsn, autocommit=True) as session:
            while len(pids := [str(row[0]) for row in session.execute(SESSIONS)]) < 2:  # claimer and settler
                time.sleep(0.05)
        perf = ["perf", "record", "-F", "999", "-o", str(record), "-p", ",".join(pids), "--", "sleep", str(asked.seconds)]
        subprocess.run(perf, check=True, capture_output=True)
        worker.wait()
        text = (
            f"{machine()}, {jobs:,} no-op jobs, {asked.concurrency} slots; shares below {SHARE_MIN} % are left out\n\n"
            f"The worker (py-spy, Python functions)\n\n{worker_shares(stacks)}\n\n"
            f"The server's two sessions, claimer and settler (perf, symbols)\n\n{server_shares(record)}\n"
        )
    print(text)
    if asked.out is not None:
        asked.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
