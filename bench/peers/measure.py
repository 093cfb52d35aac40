"""How a queue is measured, from outside and the same way for each: its program is told what to do, its notes are read."""

from __future__ import annotations

import itertools
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

import attrs
import psutil
import psycopg
from psycopg.conninfo import conninfo_to_dict

from bench.peers.catalogue import Peer
from bench.peers.environment import ROOT, prepare
from bench.peers.protocol import NOTED_EVERY, Heard
from bench.support import latencies, open_database

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMAND_SECONDS_MAX = 600.0
STOP_SECONDS_MAX = 20.0  # some wait for their poll before they stop
LOOK_SECONDS = 0.005
SETTLE_SECONDS = 1.0  # listeners connect, workers fall asleep
LAST_SECONDS_MAX = 10.0  # for the last job of a latency; some poll

Points = list[tuple[int, float]]  # jobs started so far, and when


@attrs.frozen
class Program:
    """A queue's program, installed."""

    peer: Peer
    command: tuple[str, ...]

    def call(self, *arguments: object) -> str:
        """Run a command of the program to its end, and return what it printed."""
        command = [*self.command, *map(str, arguments)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=COMMAND_SECONDS_MAX, check=False)
        if done.returncode:
            raise RuntimeError(_last_line(done.stderr) or f"{arguments[0]} ended with {done.returncode}")
        return done.stdout

    @contextmanager
    def workers(self, dsn: str, notes: Path, purpose: str, processes: int = 1) -> Iterator[list[subprocess.Popen[str]]]:
        """Run workers for the length of a block; ready when it begins."""
        with tempfile.TemporaryFile("w+") as errors:
            command = [*self.command, "work", dsn, str(notes), purpose]
            running = [
                subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True) for _ in range(processes)
            ]
            try:
                for worker in running:
                    assert worker.stdout is not None
                    if worker.stdout.readline() != "ready\n":
                        errors.seek(0)
                        raise RuntimeError(_last_line(errors.read()) or "the worker did not start")
                yield running
            finally:
                for worker in running:
                    worker.terminate()
                for worker in running:
                    try:
                        worker.wait(STOP_SECONDS_MAX)
                    except subprocess.TimeoutExpired:
                        worker.kill()
                        worker.wait()


def open_program(peer: Peer) -> Program:
    """Install a peer, and return its program.

    Raises:
        CannotInstallError: see `environment.prepare`.
    """
    return Program(peer, tuple(prepare(peer)))


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip()[:200] if lines else ""


@contextmanager
def open_run(program: Program, server_dsn: str) -> Iterator[tuple[str, Path]]:
    """Give a fresh database with the queue's tables, as an address that every driver reads, and a file for notes."""
    with open_database(server_dsn, migrated=False) as dsn, tempfile.TemporaryDirectory() as folder:
        notes = Path(folder) / "notes"
        notes.touch()
        url = as_url(dsn)
        program.call("setup", url)
        yield url, notes


def as_url(dsn: str) -> str:
    """Return a connection string as a URL; a socket's folder goes into the query, where all drivers take it."""
    fields: dict[str, Any] = conninfo_to_dict(dsn)
    user = quote(str(fields.pop("user", "postgres")), safe="")
    password = fields.pop("password", None)
    secret = f":{quote(str(password), safe='')}" if password else ""
    name = quote(str(fields.pop("dbname", "postgres")), safe="")
    host, port = str(fields.pop("host", "localhost")), fields.pop("port", 5432)
    if host.startswith("/"):
        fields = {"host": host, "port": port, **fields}
        place = ""
    else:
        place = f"{host}:{port}"
    query = f"?{urlencode(fields, safe='/')}" if fields else ""
    return f"postgresql://{user}{secret}@{place}/{name}{query}"


def drain(
    program: Program, server_dsn: str, jobs: int, *, processes: int = 1, seconds_max: float = 120.0, snapshot: bool = False
) -> dict[str, Any]:
    """Preload jobs, start workers, and take the time from the first job's start until nothing is left unfinished.

    With `snapshot` another session holds one open all the while. A drain that does not end in time is told by what it did
    until then.
    """
    with open_run(program, server_dsn) as (dsn, notes):
        program.call("preload", dsn, jobs)
        with psycopg.connect(dsn) as holder, psycopg.connect(dsn, autocommit=True) as session:
            if snapshot:
                holder.execute("set transaction isolation level repeatable read")
                holder.execute("select count(*) from pg_class").fetchone()
            with program.workers(dsn, notes, "throughput", processes):
                points, ended = _watch(session, program.peer, notes, jobs, processes, seconds_max)
        done = jobs if ended is not None else points[-1][0]
        last = ended if ended is not None else points[-1][1]
        return {
            "jobs_per_second": done / (last - points[0][1]),
            "finished": ended is not None,
            "by_tenth": rates_by_tenth(points, jobs) if ended is not None else [],
        }


def _watch(
    session: psycopg.Connection[Any], peer: Peer, notes: Path, jobs: int, processes: int, seconds_max: float
) -> tuple[Points, float | None]:
    """Return how the starts grew, and when nothing was left unfinished (None: not in time)."""
    heard, deadline = Heard(str(notes)), time.monotonic() + seconds_max
    finished = peer.finished.format(jobs=jobs)
    while time.monotonic() < deadline:
        heard.look()
        # The database is asked only when all but the last, unnoted jobs have started: a look costs the queue nothing before.
        if sum(number for _, number, _ in heard.lines) >= jobs - NOTED_EVERY * processes:
            row = session.execute(finished).fetchone()
            if row is not None and row[0]:
                return starts(heard), time.monotonic()
        time.sleep(LOOK_SECONDS)
    points = starts(heard)
    if len(points) < 2:
        raise RuntimeError(f"hardly a job started within {seconds_max:.0f} s")
    return points, None


def starts(heard: Heard) -> Points:
    """Return how many no-op jobs had started when, over all processes."""
    total, points = 0, []
    for _, number, seconds in sorted((line for line in heard.lines if line[0] == "noop"), key=lambda line: line[2]):
        total += number
        points.append((total, seconds))
    return points


def rates_by_tenth(points: Points, jobs: int) -> list[float]:
    """Return the jobs a second of each tenth of a drain, between the notes nearest to its ends."""
    nearest = [min(points, key=lambda point: abs(point[0] - jobs * tenth / 10)) for tenth in range(11)]
    return [(until[0] - since[0]) / (until[1] - since[1]) for since, until in itertools.pairwise(nearest) if until[1] > since[1]]


def backlog(program: Program, server_dsn: str, waiting: int, jobs: int, *, seconds_max: float = 60.0) -> float:
    """Return the jobs a second at which a worker starts the first of so many that wait."""
    with open_run(program, server_dsn) as (dsn, notes):
        program.call("preload", dsn, waiting)
        heard, deadline = Heard(str(notes)), time.monotonic() + seconds_max
        with program.workers(dsn, notes, "throughput"):
            while sum(number for _, number, _ in heard.lines) < jobs and time.monotonic() < deadline:
                time.sleep(LOOK_SECONDS)
                heard.look()
        points = starts(heard)
        if len(points) < 2:
            raise RuntimeError(f"hardly a job started within {seconds_max:.0f} s")
        return (points[-1][0] - points[0][0]) / (points[-1][1] - points[0][1])


def pickup(program: Program, server_dsn: str, samples: int) -> dict[str, Any]:
    """Return milliseconds until an idle worker starts a job: from the enqueue's return, and from its call."""
    with open_run(program, server_dsn) as (dsn, notes), program.workers(dsn, notes, "latency"):
        time.sleep(SETTLE_SECONDS)
        program.call("pickup", dsn, notes, samples)
        return _between(Heard(str(notes)), "start", samples)


def cancel(program: Program, server_dsn: str, samples: int) -> dict[str, Any]:
    """Return milliseconds until a running handler has stopped: from the cancel's return, and from its call."""
    with open_run(program, server_dsn) as (dsn, notes), program.workers(dsn, notes, "latency"):
        time.sleep(SETTLE_SECONDS)
        program.call("cancel", dsn, notes, samples)
        return _between(Heard(str(notes)), "stop", samples)


def _between(heard: Heard, event: str, samples: int) -> dict[str, Any]:
    deadline = time.monotonic() + LAST_SECONDS_MAX
    heard.look()
    while heard.when(event, samples - 1) is None and time.monotonic() < deadline:
        time.sleep(LOOK_SECONDS)
        heard.look()
    found: dict[str, list[float]] = {"commit": [], "call": []}
    for number in range(samples):
        ended = heard.when(event, number)
        for base, taken in found.items():
            began = heard.when(base, number)
            if ended is not None and began is not None:
                taken.append((ended - began) * 1000)
    if len(found["call"]) < samples:
        raise RuntimeError(f"only {len(found['call'])} of {samples} jobs were told of")
    return {f"from_{base}": latencies(taken) for base, taken in found.items()}


def enqueue(program: Program, server_dsn: str, producers: int, batch: int, seconds: float, *, served: bool) -> float:
    """Return jobs a second from so many producers, tasks of one process, with a worker that serves them or without."""
    with open_run(program, server_dsn) as (dsn, notes):
        if not served:
            return _enqueued(program.call("enqueue", dsn, producers, batch, seconds))
        with program.workers(dsn, notes, "throughput"):
            time.sleep(SETTLE_SECONDS)
            return _enqueued(program.call("enqueue", dsn, producers, batch, seconds))


def _enqueued(told: str) -> float:
    _, jobs, seconds = told.split()
    return int(jobs) / float(seconds)


# pg_stat_database counts transactions; what the session that asks does is taken off by asking from another database.
TRANSACTIONS = "select xact_commit + xact_rollback from pg_stat_database where datname = %s"


@contextmanager
def _without_autovacuum(session: psycopg.Connection[Any]) -> Iterator[None]:
    """Keep the server's own transactions out of a count, where the role may."""
    try:
        session.execute("alter system set autovacuum = off")
        session.execute("select pg_reload_conf()")
    except psycopg.errors.InsufficientPrivilege:
        yield
        return
    try:
        yield
    finally:
        session.execute("alter system reset autovacuum")
        session.execute("select pg_reload_conf()")


def idle(program: Program, server_dsn: str, seconds: float) -> dict[str, Any]:
    """Return what an idle worker costs a minute: transactions, seconds of CPU; and its resident memory."""
    with open_run(program, server_dsn) as (dsn, notes), psycopg.connect(server_dsn, autocommit=True) as session:
        name = conninfo_to_dict(dsn)["dbname"]

        def transactions() -> int:
            row = session.execute(TRANSACTIONS, (name,)).fetchone()
            assert row is not None
            return int(row[0])

        with _without_autovacuum(session), program.workers(dsn, notes, "latency") as (worker,):
            time.sleep(15)  # it starts, and its sessions report what they did so far, ten seconds later at the latest
            process = psutil.Process(worker.pid)
            cpu, before = process.cpu_times(), transactions()
            time.sleep(seconds)
            used, after = process.cpu_times(), transactions()
            share = 60 / seconds
            return {
                "transactions_per_minute": (after - before) * share,
                "cpu_seconds_per_minute": (used.user + used.system - cpu.user - cpu.system) * share,
                "resident_mib": process.memory_info().rss / 2**20,
            }
