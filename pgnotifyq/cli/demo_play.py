"""What the demo plays: one job a file, two worker processes, one cancel, one kill -9.

Every result is checked. All happens in a schema of the demo's own. The demo leaves nothing running.
Its jobs are left to look at. These drop the schema and its role: the next demo, `demo --clean`, and
a demo that does not come to its end.
"""

from __future__ import annotations

import math
import os
import shlex
import signal
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import trio
from psycopg import errors
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from pgnotifyq.cli.demo_handlers import File, Tree, digest, digest_file, digest_for_ever, ping
from pgnotifyq.doors.client import open_client
from pgnotifyq.ledger import demo, look, sessions
from pgnotifyq.migrating import migrate
from pgnotifyq.model.states import Status
from pgnotifyq.wire.asking import ask
from pgnotifyq.wire.connection import open_connection
from pgnotifyq.wire.sessions import For

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from psycopg.rows import TupleRow

    from pgnotifyq.doors.client import Client
    from pgnotifyq.model.job import JobId
    from pgnotifyq.wire.connection import Connection

SCHEMA = "pgnotifyq_demo"
DIGEST = "digest"  # the job type of a file
LOG = "workers.log"
WORKERS = 2
CONCURRENCY = 8
FILES_MAX = 20_000  # keeps the demo under a minute
# With fewer files than this, the workers may be done before the demo cancels a job and kills a
# worker. Then each file is digested several times, by as many jobs.
FEW_FILES = 600
FEW_FILES_JOBS = 2_000
PINGS = 50
SETTLED_SECONDS = 0.03  # for the statements of a stopped worker to end
LOOK_SECONDS = 0.05  # how often the progress bar looks
PATIENCE_SECONDS = 45.0  # for the whole queue to drain; the demo says so and fails after it
START_SECONDS_MAX = 20.0  # for the workers to come, and the long job to start and to stop
LOG_LINES_MAX = 5  # of the workers' log, when they do not do what they should


class Stuck(Exception):
    """The demo waited in vain. The message says for what."""


@attrs.define(kw_only=True)
class Story:
    """What the demo saw, and what it checks at the end."""

    jobs: int
    seconds: float = 0.0
    cancel_ms: float | None = None
    orphans: int = 0  # jobs that the killed worker held
    recovered: int = 0  # of those, finished by the other
    long_job: JobId | None = None  # the one that was cancelled
    one_recovered: JobId | None = None
    recovery_seconds: float | None = None
    pickup_ms: Sequence[float] = ()
    wrong: list[str] = attrs.field(factory=list)  # files of jobs whose hash is missing or differs


async def tidy(*, dsn: str) -> int:
    """Remove what a demo has left. If another is under way, say so and return 1."""
    try:
        async with _open_stage(dsn) as stage:
            await stage.strike()
    except Stuck as stuck:
        print(f"pgnotifyq: {stuck}", file=sys.stderr)
        return 1
    print("nothing is left of the demo")
    return 0


async def play(folder: Path | None, *, dsn: str, dsn_given: str | None = None, console: Console | None = None) -> int:
    """Play the demo on a folder.

    Args:
        folder: each regular file below it becomes a job. None: Python's own standard library.
        dsn: the database; a schema of the demo's own is made in it.
        dsn_given: what `--dsn` said, for the commands that are to be typed next.
        console: where to show it.

    Returns: 0 if every check holds, else 1.
    """
    # The terminal wraps long lines, and a file's name is not markup.
    console = console or Console(soft_wrap=True)
    paths = _files(folder)
    if not paths:
        console.print(escape(f"{folder} holds no files: name a folder that does"))
        return 1
    times = math.ceil(FEW_FILES_JOBS / len(paths)) if len(paths) < FEW_FILES else 1
    each = "one job each" if times == 1 else f"{times} jobs each, for so few would be done at once"
    console.print(
        f"[bold]{len(paths)}[/] files below {escape(str(folder or _standard_library()))}, {each}; {WORKERS} worker processes"
    )
    with tempfile.TemporaryDirectory(prefix="pgnotifyq-demo-") as scratch:
        try:
            async with _open_stage(dsn) as stage:
                await stage.set()
                story = await _perform(console, dsn, stage.connection, paths * times, Path(scratch))
                stage.is_left = True
        except Stuck as stuck:
            console.print(f"[red]{escape(str(stuck))}[/]")
            for line in _last_lines(Path(scratch) / LOG):
                console.print(escape(f"  {line}"))
            return 1
    code = _conclude(console, story)
    _lead_on(console, story, dsn_given)
    return code


async def _perform(console: Console, dsn: str, connection: Connection[TupleRow], paths: list[Path], scratch: Path) -> Story:
    story = Story(jobs=len(paths))
    async with open_client(dsn, schema=SCHEMA) as client, _open_workers(dsn, scratch) as workers:
        await _until("the workers to start and to listen", partial(_all_listen, connection))
        console.print(f"workers: {', '.join(f'pid {worker.pid}' for worker in workers)}")

        report = scratch / "stopped-at"
        long_job = story.long_job = await client.enqueue(
            digest_for_ever, Tree(str(_standard_library()), str(report)), priority=10
        )
        await _until("the long job to start", partial(_has_started, connection, long_job))

        started = time.monotonic()
        ids = await client.enqueue_many([digest.job(File(str(path))) for path in paths])
        await _watch(console, connection, story, workers, long_job, report)
        story.seconds = time.monotonic() - started
        await _check(connection, story, dict(zip(ids, paths, strict=True)))
        story.pickup_ms = await _ping(client)
    return story


async def _watch(
    console: Console,
    connection: Connection[TupleRow],
    story: Story,
    workers: list[subprocess.Popen[bytes]],
    long_job: JobId,
    report: Path,
) -> None:
    """Show progress until all files are done.

    At a sixth of the files, cancel the long job. At a third, kill a worker.
    """
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[told]}"), TimeElapsedColumn()
    )  # fmt: skip
    killed_at: float | None = None
    deadline = trio.current_time() + PATIENCE_SECONDS
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("digest", total=story.jobs, told="")
        while trio.current_time() < deadline:
            done, running = await ask(connection, demo.progress(SCHEMA, DIGEST))
            progress.update(bar, completed=done, told=f"{running} running")
            if story.cancel_ms is None and done >= story.jobs / 6:
                story.cancel_ms = await _cancel(connection, long_job, report)
                progress.console.print(
                    f"cancelled the long job: its handler stopped {story.cancel_ms:.1f} ms after the update began"
                )
            if killed_at is None and done >= story.jobs / 3:
                story.orphans = await _kill(connection, workers[0])
                killed_at = time.monotonic()
                progress.console.print(f"killed worker pid {workers[0].pid} with SIGKILL while it held {story.orphans} jobs")
            if killed_at is not None and story.recovery_seconds is None:
                story.recovered, story.one_recovered = await ask(connection, demo.recovered(SCHEMA))
                if story.recovered >= story.orphans:
                    story.recovery_seconds = time.monotonic() - killed_at
                    progress.console.print(
                        f"{story.recovered} jobs of the killed worker were taken over and done {story.recovery_seconds:.1f} s after it died"
                    )
            if done >= story.jobs and story.recovery_seconds is not None and story.cancel_ms is not None:
                return
            await trio.sleep(LOOK_SECONDS)


async def _cancel(connection: Connection[TupleRow], job_id: JobId, report: Path) -> float:
    """Cancel by a plain status update.

    Returns: milliseconds from before the update until the handler had stopped.
    """
    began = time.monotonic()
    await ask(connection, demo.cancel(SCHEMA, job_id))
    await _until("the long job to stop", partial(_has_stopped, connection, job_id))
    return (float(await trio.Path(report).read_text()) - began) * 1000


async def _kill(connection: Connection[TupleRow], worker: subprocess.Popen[bytes]) -> int:
    """Kill a worker in the middle of its work; return how many jobs it held."""
    held = 0
    for _ in range(100):
        # A stopped worker takes and ends no jobs, so their number stays true. The server still ends
        # a statement that is under way.
        worker.send_signal(signal.SIGSTOP)
        await trio.sleep(SETTLED_SECONDS)
        held = await ask(connection, demo.held(SCHEMA, worker.pid, DIGEST))
        if held:
            break
        worker.send_signal(signal.SIGCONT)
        await trio.sleep(0.01)
    worker.kill()
    return held


async def _ping(client: Client) -> list[float]:
    """Return milliseconds from an enqueue's call to its handler's start.

    The jobs come one at a time, to an idle worker.
    """
    taken = []
    for _ in range(PINGS):
        called = time.monotonic()
        job = await client.wait(await client.enqueue(ping), timeout_seconds=10)
        taken.append((job.result - called) * 1000)
    return taken


async def _check(connection: Connection[TupleRow], story: Story, paths: dict[JobId, Path]) -> None:
    """Compare every recorded hash with one computed here."""
    results = await ask(connection, demo.results(SCHEMA, DIGEST))
    expected: dict[Path, object] = {}
    for job_id, path in paths.items():
        if path not in expected:
            expected[path] = await trio.to_thread.run_sync(digest_file, path)
        if results.get(job_id) != expected[path]:
            story.wrong.append(str(path))


def _conclude(console: Console, story: Story) -> int:
    pickup = sorted(story.pickup_ms)
    checks = {
        "every file's hash equals one computed directly": not story.wrong,
        "the long job stopped in mid-flight": story.cancel_ms is not None,
        "all jobs that the killed worker held ran again": story.recovered >= story.orphans > 0,
    }
    table = Table(title="What happened" if console.is_terminal else None, show_header=False)
    if not console.is_terminal:
        table.box = None
        console.print("What happened:")
    table.add_row("files digested", f"{story.jobs - len(story.wrong)} of {story.jobs}")
    table.add_row("throughput, with a cancel and a kill on the way", f"{story.jobs / max(story.seconds, 1e-9):,.0f} jobs/s")
    if pickup:
        p99 = pickup[min(len(pickup) - 1, round(len(pickup) * 0.99))]
        table.add_row(
            "enqueue called to handler started, idle worker", f"p50 {statistics.median(pickup):.2f} ms, p99 {p99:.2f} ms"
        )
    if story.cancel_ms is not None:
        table.add_row("status update to handler stopped", f"{story.cancel_ms:.1f} ms")
    if story.recovery_seconds is not None:
        table.add_row("kill -9 to all its jobs done by the other", f"{story.recovery_seconds:.1f} s")
    for promise, holds in checks.items():
        table.add_row(promise, "[green]yes[/]" if holds else "[bold red]NO[/]")
    console.print(table)
    for path in story.wrong[:5]:
        console.print(f"[red]wrong or missing:[/] {escape(path)}")
    return 0 if all(checks.values()) else 1


def _lead_on(console: Console, story: Story, dsn_given: str | None) -> None:
    """Say what to type next."""
    where = f"--schema {SCHEMA}" + ("" if dsn_given is None else f" --dsn {shlex.quote(dsn_given)}")
    listed = f"jobs {where} --limit 5"

    def shown(job_id: JobId | None) -> str:
        return listed if job_id is None else " ".join(("show", str(job_id), where))

    nexts = (
        (shown(story.one_recovered), "a job that outlived its worker"),
        (shown(story.long_job), "the job that was cancelled"),
        (f"demo --clean{where.removeprefix(f'--schema {SCHEMA}')}", "remove them all"),
    )
    console.print(f"\nThe jobs are left to look at, in the schema {SCHEMA}. Next, type:\n")
    for command, what in nexts:
        console.print(escape(f"  python -m pgnotifyq {command}   # {what}"), highlight=False)


@attrs.define(kw_only=True)
class _Stage:
    """The demo's schema, which one demo at a time may use."""

    connection: Connection[TupleRow]
    is_left: bool = False  # whether the schema stays when the demo ends

    async def set(self) -> None:
        """Make the schema, fresh."""
        await self.strike()
        await migrate(self.connection, SCHEMA)

    async def strike(self) -> None:
        """Drop the schema. Drop its role, too, unless another database needs it."""
        await ask(self.connection, demo.strike(SCHEMA))
        with suppress(errors.DependentObjectsStillExist, errors.InsufficientPrivilege):
            await ask(self.connection, demo.strike_role(SCHEMA))


@asynccontextmanager
async def _open_stage(dsn: str) -> AsyncIterator[_Stage]:
    """Keep other demos out during the block. At its end, drop the schema unless `is_left` is set.

    Raises:
        Stuck: another demo is under way on this database.
    """
    async with open_connection(dsn, application_name="pgnotifyq demo", used_for=For.CALLER) as connection:
        if not await ask(connection, demo.take_stage(SCHEMA)):
            raise Stuck("another demo is under way on this database: wait for its end")
        await ask(connection, sessions.hush())
        stage = _Stage(connection=connection)
        try:
            yield stage
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 10):
                if not stage.is_left:
                    await stage.strike()
                await ask(connection, demo.leave_stage(SCHEMA))


@asynccontextmanager
async def _open_workers(dsn: str, scratch: Path) -> AsyncIterator[list[subprocess.Popen[bytes]]]:
    """Run the worker processes, started from the command line as users do. Stop them at the end."""
    command = [
        sys.executable, "-m", "pgnotifyq", "worker", "--app", "pgnotifyq.cli.demo_handlers:registry", "--schema", SCHEMA,
        "--queue", "demo", "--concurrency", str(CONCURRENCY), "--shutdown-seconds", "2",
    ]  # fmt: skip
    log = (scratch / LOG).open("wb")
    environment = {**os.environ, "PGNOTIFYQ_DSN": dsn}
    workers = [
        subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)  # noqa: ASYNC220, S603
        for _ in range(WORKERS)
    ]
    try:
        yield workers
    finally:
        for worker in workers:
            if worker.poll() is None:
                worker.terminate()
        with trio.CancelScope(shield=True):
            for worker in workers:
                with trio.move_on_after(10):
                    await trio.to_thread.run_sync(worker.wait, abandon_on_cancel=True)
                worker.kill()
        log.close()


async def _all_listen(connection: Connection[TupleRow]) -> bool:
    return sum(worker.listening == "push" for worker in await ask(connection, look.list_workers(SCHEMA))) == WORKERS


async def _has_started(connection: Connection[TupleRow], job_id: JobId) -> bool:
    job = await ask(connection, look.get_job(SCHEMA, job_id))
    return job is not None and job.status is Status.RUNNING


async def _has_stopped(connection: Connection[TupleRow], job_id: JobId) -> bool:
    job = await ask(connection, look.get_job(SCHEMA, job_id))
    return job is not None and job.current_execution_id is None


async def _until(what: str, holds: Callable[[], Awaitable[bool]]) -> None:
    """Wait until a condition in the database holds.

    Raises:
        Stuck: the condition did not hold in time.
    """
    with trio.move_on_after(START_SECONDS_MAX):
        while not await holds():  # noqa: ASYNC110  # a condition in the database
            await trio.sleep(0.005)
        return
    raise Stuck(f"the demo waited {START_SECONDS_MAX:g} s for {what}; the last lines of the workers' log:")


def _last_lines(log: Path) -> list[str]:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    return lines[-LOG_LINES_MAX:]


def _standard_library() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _files(folder: Path | None) -> list[Path]:
    if folder is not None:
        found = (path for path in folder.rglob("*") if _is_text(path) and path.is_file() and os.access(path, os.R_OK))
    else:
        found = (path for path in _standard_library().rglob("*.py") if "site-packages" not in path.parts)
    return sorted(found)[:FILES_MAX]


def _is_text(path: Path) -> bool:
    """Tell whether JSON can carry a file's name."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True
