"""Is this checkout as quick as another one? Both at once, and a sample of each in turn.

    python -m bench turns ../before --python ../before/.venv/bin/python --samples 600

`bench against` runs whole scripts in turn, minutes apart, and a machine that others use changes meanwhile by more than the few percent
that are asked about. Here one server has a database of each checkout, each has a worker of its own code, and one driver inserts a job
and cancels it, now in this database and now in that one. What drifts, drifts in both.

Of each sample: the insert's commit, from it and from its call to the handler's first line, the cancelling update's commit, and from its
call to the handler's stop. The ratio is that of the medians: above 1, this checkout is quicker. Behind it are those of the quarters of
the run, each by itself. With this checkout as the other one too, it shows what the method can tell apart.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from bench.support import latencies, open_server, report

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).resolve().parent.parent
PARTS = 4  # of which two are of the second round
# Run by each checkout's interpreter: only names that every release has.
WORK = """
import sys, time, trio
from pgnotifyq import JobRegistry, run_worker
registry = JobRegistry()
notes = open(sys.argv[2], "a", buffering=1)
@registry.handler("sleep")
async def sleep(payload: dict[str, int]) -> None:
    began = time.monotonic()
    try:
        await trio.sleep_forever()
    finally:
        ended = time.monotonic()
        notes.write(f"{payload['n']} {began} {ended}\\n")
trio.run(run_worker, registry, sys.argv[1])
"""


@attrs.frozen
class Sample:
    """What the driver knows of one job, by its own monotonic clock, which is the workers' too."""

    inserted_at: float
    committed_at: float
    cancelled_at: float
    cancel_committed_at: float


@attrs.frozen
class Side:
    """A checkout, its database, and the file that its worker writes to."""

    session: psycopg.Connection[Any]
    notes: Path
    samples: list[Sample] = attrs.field(factory=list)

    def take(self) -> None:
        """Have one job started and cancelled."""
        number = len(self.samples)
        inserted_at = time.monotonic()
        row = self.session.execute(
            "insert into pgnotifyq.jobs (job_type, payload) values ('sleep', jsonb_build_object('n', %s::int)) returning id",
            (number,),
        ).fetchone()
        committed_at = time.monotonic()
        assert row is not None
        self._until("status = 'running'", row[0])
        time.sleep(0.01)  # the handler sleeps, and so does the worker
        cancelled_at = time.monotonic()
        self.session.execute("update pgnotifyq.jobs set status = 'cancelled' where id = %s", row)
        self.samples.append(Sample(inserted_at, committed_at, cancelled_at, time.monotonic()))
        self._until("not is_held", row[0])

    def figures(self) -> dict[str, list[float]]:
        """Return milliseconds, by question."""
        told = {int(n): (float(began), float(ended)) for n, began, ended in map(str.split, self.notes.read_text().splitlines())}
        both = [(sample, *told[number]) for number, sample in enumerate(self.samples)]
        seconds = {
            "insert_alone": [sample.committed_at - sample.inserted_at for sample, _, _ in both],
            "start_from_commit": [began - sample.committed_at for sample, began, _ in both],
            "start_from_call": [began - sample.inserted_at for sample, began, _ in both],
            "cancel_alone": [sample.cancel_committed_at - sample.cancelled_at for sample, _, _ in both],
            "stop_from_call": [ended - sample.cancelled_at for sample, _, ended in both],
        }
        return {name: [value * 1000 for value in values] for name, values in seconds.items()}

    def _until(self, condition: str, job_id: Any) -> None:
        query = sql.SQL("select {} from pgnotifyq.jobs where id = %s").format(sql.SQL(condition))
        while True:
            row = self.session.execute(query, (job_id,)).fetchone()
            if row is not None and row[0]:
                return
            time.sleep(0.001)


@contextmanager
def open_side(server_dsn: str, name: str, folder: Path, python: Path, notes: Path) -> Iterator[Side]:
    """Give a side: its database migrated, its worker at work."""
    with psycopg.connect(server_dsn, autocommit=True) as server:
        server.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
    dsn = make_conninfo(server_dsn, dbname=name)
    environment = {**os.environ, "PYTHONPATH": str(folder), "PGNOTIFYQ_DSN": dsn}
    subprocess.run([python, "-m", "pgnotifyq", "migrate"], cwd=folder, env=environment, check=True, stdout=sys.stderr)
    worker = subprocess.Popen([python, "-c", WORK, dsn, notes], cwd=folder, env=environment)
    try:
        with psycopg.connect(dsn, autocommit=True) as session:
            yield Side(session, notes)
    finally:
        worker.terminate()
        worker.wait()
        with psycopg.connect(server_dsn, autocommit=True) as server:
            server.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


def both(server_dsn: str, other: tuple[Path, Path], samples: int, *, is_first: bool) -> tuple[dict[str, list[float]], ...]:
    """Take samples of both in turn; return this checkout's figures, and the other's."""
    checkouts = {"here": (HERE, Path(sys.executable)), "there": other}
    with ExitStack() as stack:
        notes = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="turns-")))
        sides = {
            name: stack.enter_context(open_side(server_dsn, f"turns_{name}", *checkouts[name], notes / name))
            for name in (checkouts if is_first else reversed(checkouts))
        }
        here, there = sides["here"], sides["there"]
        for number in range(samples):
            for side in (here, there) if number % 2 == 0 else (there, here):
                side.take()
                time.sleep(random.uniform(0.005, 0.015))  # of no worker's rhythm
        return here.figures(), there.figures()


def compared(here: list[float], there: list[float]) -> dict[str, Any]:
    """Return both medians, their ratio, and the ratios of the run's parts."""
    size = max(1, len(here) // PARTS)
    parts = [(here[start : start + size], there[start : start + size]) for start in range(0, size * PARTS, size)]
    ratios = [round(statistics.median(theirs) / statistics.median(ours), 3) for ours, theirs in parts if ours]
    ratio = round(statistics.median(there) / statistics.median(here), 3)
    return {"here": latencies(here), "there": latencies(there), "ratio": ratio, "ratios": ratios}


def main() -> None:
    """Ask the question."""
    question = "milliseconds of a start and of a cancel, beside another checkout"
    parser = argparse.ArgumentParser(description=question)
    parser.add_argument("other", type=Path, help="the other checkout's folder")
    parser.add_argument("--python", type=Path, help="its interpreter; default .venv/bin/python in that folder")
    parser.add_argument("--samples", type=int, default=600, help="of each checkout; default 600")
    parser.add_argument("--quick", action="store_true", help="a tenth of the work, for a look")
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    asked = parser.parse_args()
    other = asked.other.resolve()
    python = Path(asked.python or other / ".venv/bin/python").absolute()
    samples = asked.samples // 10 if asked.quick else asked.samples
    with open_server({}) as server_dsn:
        # Which of two databases is made first makes a percent or two of a difference. So each is, once.
        rounds = [both(server_dsn, (other, python), samples // 2, is_first=is_first) for is_first in (True, False)]
    ours, theirs = ({name: [*first[name], *second[name]] for name in first} for first, second in zip(*rounds, strict=True))
    figures = {name: compared(ours[name], theirs[name]) for name in ours}
    lines = [
        f"{name}: {found['ratio']:.3f} x (p50 {found['here']['p50_ms']} ms against {found['there']['p50_ms']}; "
        f"quarters of the run {', '.join(f'{ratio:.3f}' for ratio in found['ratios'])})"
        for name, found in figures.items()
    ]
    report(question, "\n".join(lines), {"questions": figures}, asked.out)


if __name__ == "__main__":
    main()
