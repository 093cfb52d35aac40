"""One rolling deploy of an application, by the old release and the new one, and its verdict.

The last release is a wheel in tests/releases. Its files are put first on the path of its processes;
everything else is what this environment has.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import psycopg

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
(WHEEL,) = (HERE.parent / "releases").glob("*.whl")
WORKERS = 3  # of the long run
PATIENCE_SECONDS = 180.0  # a busy machine takes long to start nine processes
SHARED = (*("charge", "mail", "charge", "thumbnail", "mail") * 3, "film")  # job types that both know, in turn
ONLY_NEW = "report"
SECONDS_BETWEEN = 0.06  # jobs of a producer
# A film takes longer than this, so some are cut off and released.
OPTIONS = ("--concurrency", "6", "--shutdown-seconds", "0.5", "--log-format", "json")


@attrs.define(eq=False)
class Worker:
    """A worker process, and what it was."""

    release: str  # old or new
    process: subprocess.Popen[bytes]
    out: Path
    killed: bool = False

    def told(self) -> list[dict[str, Any]]:
        """Return its events so far."""
        lines = self.out.read_text(errors="replace").splitlines()
        told = []
        for line in lines:
            with suppress(ValueError):  # the line that a kill has cut short
                told.append(json.loads(line))
        return told

    @property
    def worker_id(self) -> str:
        """What the database knows it by."""
        return str(next(event["worker_id"] for event in self.told() if event["event"] == "worker.started"))


@attrs.define
class Account:
    """What a deploy has come to."""

    jobs: int = 0  # acknowledged
    lost: list[str] = attrs.field(factory=list)  # acknowledged and not completed
    charged: list[str] = attrs.field(factory=list)  # more attempts than executions that a kill explains
    dead: int = 0
    twice: int = 0  # effects of transactions beyond the first
    outcomes: Counter[str] = attrs.field(factory=Counter)  # of all executions
    by_old_after: int = 0  # executions of the old release on the new schema
    waited: int = 0  # jobs that only the new release knows, uncharged while only the old one ran
    failed: list[str] = attrs.field(factory=list)  # workers that ended otherwise than told to

    @property
    def is_well(self) -> bool:
        """Whether nothing was lost, charged wrongly, dead, or done twice, and no worker failed."""
        return not (self.lost or self.charged or self.dead or self.twice or self.failed)

    @property
    def is_void(self) -> bool:
        """Whether the deploy has proved nothing: the old release did not work on the new schema, or nothing waited."""
        return not self.by_old_after or not self.waited


class Deploy:
    """A database, and the processes of two releases on it."""

    def __init__(self, dsn: str, folder: Path) -> None:
        self.dsn = dsn
        self.folder = folder
        self.session = psycopg.connect(dsn, autocommit=True)
        self.workers: list[Worker] = []
        self.producers: list[tuple[subprocess.Popen[bytes], Path]] = []
        self.old = folder / "old"
        with zipfile.ZipFile(WHEEL) as wheel:
            wheel.extractall(self.old)

    def environment(self, release: str) -> dict[str, str]:
        """Return the environment of a release's processes."""
        path = [str(HERE)] if release == "new" else [str(self.old), str(HERE)]
        return {**os.environ, "PGNOTIFYQ_DSN": self.dsn, "PYTHONPATH": os.pathsep.join(path), "SHOP_RELEASE": release}

    def run(self, release: str, *arguments: str) -> str:
        """Run a program of a release to its end; return what it printed."""
        ran = subprocess.run(
            [sys.executable, *arguments], env=self.environment(release), cwd=self.folder, capture_output=True, text=True,
            check=False, timeout=PATIENCE_SECONDS,
        )  # fmt: skip
        assert ran.returncode == 0, f"{release} {arguments}: {ran.stderr}"
        return ran.stdout

    def produce(self, release: str, *job_types: str) -> None:
        """Start a producer."""
        path = self.folder / f"acknowledged-{len(self.producers)}"
        with path.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, str(HERE / "shop.py"), str(SECONDS_BETWEEN), *job_types],
                env=self.environment(release), cwd=self.folder, stdin=subprocess.PIPE, stdout=out,
            )  # fmt: skip
        self.producers.append((process, path))

    def start(self, release: str) -> Worker:
        """Start a worker, and wait until it takes jobs."""
        out = self.folder / f"worker-{len(self.workers)}"
        with out.open("wb") as told, (self.folder / f"{out.name}.err").open("wb") as said:
            process = subprocess.Popen(
                [sys.executable, "-m", "pgnotifyq", "worker", "--app", "shop:registry", *OPTIONS],
                env=self.environment(release), cwd=self.folder, stdout=told, stderr=said,
            )  # fmt: skip
        worker = Worker(release, process, out)
        self.workers.append(worker)
        self.until(lambda: any(event["event"] == "listener.connected" for event in worker.told()), of=worker)
        return worker

    def end(self, worker: Worker, number: int) -> None:
        """End a worker by a signal; with SIGTERM, wait for its end."""
        worker.killed = number == signal.SIGKILL
        worker.process.send_signal(number)
        worker.process.wait(PATIENCE_SECONDS)

    def replace(self, release: str, number: int) -> None:
        """Replace each worker by one of a release: first the new one starts, then the old one ends."""
        for before in [one for one in self.workers if one.process.poll() is None]:
            self.start(release)
            self.end(before, number)

    def value(self, query: str, *parameters: object) -> Any:
        """Return the one value that a query has."""
        row = self.session.execute(query.encode(), parameters).fetchone()
        assert row is not None
        return row[0]

    def until(self, condition: Any, of: Worker | None = None) -> None:
        """Wait until something is so."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            if of is not None and of.process.poll() is not None:
                said = (self.folder / f"{of.out.name}.err").read_text()
                raise AssertionError(f"the {of.release} worker ended by itself, {of.process.returncode}: {said}")
            if time.monotonic() > deadline:
                stuck = self.session.execute(
                    "select job_type, status, attempts, locked_by, error_message from pgnotifyq.jobs where status <> 'completed' limit 20"
                ).fetchall()
                raise AssertionError(f"not within {PATIENCE_SECONDS:g} s; {stuck}")
            time.sleep(0.02)

    def completed_since(self, since: object, *job_types: str) -> int:
        """Return how many jobs of these types have completed since."""
        return int(
            self.value(
                "select count(*) from pgnotifyq.jobs where completed_at > %s and job_type = any(%s)", since, list(job_types)
            )
        )

    def stop_producing(self) -> dict[str, str]:
        """End the producers; return the job type of each job that was acknowledged, by its id."""
        for process, _ in self.producers:
            process.communicate(timeout=PATIENCE_SECONDS)
            assert process.returncode == 0
        lines = [(line.split()[0], line.split()[1]) for _, path in self.producers for line in path.read_text().splitlines()]
        return dict(lines)

    def account(self, acknowledged: dict[str, str], waited: int) -> Account:
        """Return what the deploy has come to, when all is done."""
        told = Account(jobs=len(acknowledged), waited=waited)
        rows = self.session.execute("select id::text, status, attempts from pgnotifyq.jobs").fetchall()
        states = {job_id: (status, attempts) for job_id, status, attempts in rows}
        history: dict[str, Counter[str]] = {}
        killed = {worker.worker_id for worker in self.workers if worker.killed}
        for job_id, outcome, worker_id in self.session.execute(
            "select job_id::text, outcome, worker_id::text from pgnotifyq.job_executions"
        ):
            told.outcomes[outcome] += 1
            explained = outcome in {"completed", "released"} or (outcome == "lost" and worker_id in killed)
            history.setdefault(job_id, Counter())["lost" if outcome == "lost" and explained else outcome] += 1
            if not explained:
                told.charged.append(f"{job_id} {outcome} by {worker_id}")
        told.lost = [f"{job_id} {acknowledged[job_id]} {states.get(job_id)}" for job_id in acknowledged
                     if states.get(job_id, ("gone", 0))[0] != "completed"]  # fmt: skip
        for job_id, (_, attempts) in states.items():
            if attempts > 1 + history.get(job_id, Counter())["lost"]:
                told.charged.append(f"{job_id}: {attempts} attempts, {history.get(job_id)}")
        told.dead = self.value("select count(*) from pgnotifyq.dead_letter_jobs")
        told.twice = self.value("select count(*) - count(distinct job_id) from effects")
        wanted = sum(job_type in {"charge", ONLY_NEW} for job_type in acknowledged.values())
        told.twice += abs(wanted - self.value("select count(distinct job_id) from effects"))
        old = [worker.worker_id for worker in self.workers if worker.release == "old"]
        told.by_old_after = self.value(
            "select count(*) from pgnotifyq.job_executions where worker_id = any(%s::uuid[]) and started_at >"
            " (select max(applied_at) from pgnotifyq.schema_migrations where version > 0)",
            old,
        )
        for worker in self.workers:
            code = worker.process.returncode
            if code not in ({-signal.SIGKILL} if worker.killed else {0, 4}):  # 4: some jobs were cut off, and released
                said = (self.folder / f"{worker.out.name}.err").read_text()[-2000:]
                told.failed.append(f"{worker.release} ended by {code}: {said}")
        return told


@contextmanager
def open_deploy(dsn: str, folder: Path) -> Iterator[Deploy]:
    """Give a place to deploy on; what is left of its processes ends with the block."""
    deploy = Deploy(dsn, folder)
    try:
        yield deploy
    finally:
        deploy.session.close()
        for process in [worker.process for worker in deploy.workers] + [process for process, _ in deploy.producers]:
            process.kill()
            process.wait()
            if process.stdin is not None:
                process.stdin.close()


def roll(dsn: str, folder: Path, number: int, *, workers: int = WORKERS) -> Account:
    """Deploy the new release over the old one, roll back, and deploy again, under load.

    Args:
        dsn: an empty database.
        folder: an empty folder.
        number: the signal by which workers are ended.
        workers: how many there are.
    """
    with open_deploy(dsn, folder) as deploy:
        deploy.session.execute("create table effects (job_id uuid not null)")
        deploy.run("old", "-m", "pgnotifyq", "migrate")
        for _ in range(workers):
            deploy.start("old")
        deploy.produce("old", *SHARED)
        deploy.until(lambda: deploy.value("select count(*) from pgnotifyq.jobs where status = 'completed'") > 20)

        # Nobody is stopped for the schema. The new program enqueues what the old workers do not know.
        deploy.run("new", "-m", "pgnotifyq", "migrate")
        deploy.produce("new", *SHARED, ONLY_NEW)
        since = deploy.value("select clock_timestamp()")
        deploy.until(lambda: deploy.completed_since(since, *SHARED) > 20)
        deploy.replace("new", number)
        deploy.until(lambda: deploy.completed_since(since, ONLY_NEW) > 2)

        # Back, and nobody touches the schema.
        deploy.replace("old", number)
        since = deploy.value("select clock_timestamp()")
        waiting = "select count(*) from pgnotifyq.jobs where job_type = %s and status = 'pending' and attempts = 0"
        deploy.until(lambda: deploy.completed_since(since, *SHARED) > 20 and deploy.value(waiting, ONLY_NEW) > 0)
        waited = deploy.value(waiting, ONLY_NEW)
        deploy.replace("new", number)
        acknowledged = deploy.stop_producing()
        deploy.until(
            lambda: deploy.value("select not exists (select from pgnotifyq.jobs where status in ('pending', 'running'))")
        )
        for worker in deploy.workers:
            if worker.process.poll() is None:
                deploy.end(worker, signal.SIGTERM)
        return deploy.account(acknowledged, waited)
