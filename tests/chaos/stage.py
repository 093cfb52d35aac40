"""Where it happens: a server of its own with fsync on, a cable to each worker, and workers that are started again when they end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import attrs
import psycopg
import trio
from psycopg.conninfo import make_conninfo

from pgnotifyq import EventName
from pgnotifyq.embedded import open_temporary_server
from pgnotifyq.ledger.errors import is_passing
from pgnotifyq.migrating import migrate
from pgnotifyq.wire.connection import open_connection
from tests.chaos.app import POISONED
from tests.chaos.evidence import Book, gather
from tests.chaos.schedule import WORKERS
from tests.proxy import Proxy, run_proxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from pgnotifyq.embedded import TemporaryServer
    from tests.chaos.evidence import Evidence

ROOT = Path(__file__).parents[2]
LEASE_SECONDS = 6.0  # short, so that what outlasts a lease lands within minutes
SHUTDOWN_SECONDS = 4.0
GRACE_SECONDS = 2.0
# Deadline, grace, the settler's last statement and the farewell (cli/ending.py), and some for a busy machine.
END_SECONDS_MAX = SHUTDOWN_SECONDS + GRACE_SECONDS + 4.0 + 5.0
CONCURRENCY = 8
CONNECTIONS = 60  # few, so that they can be filled
START_SECONDS_MAX = 30.0  # of a worker; it may find the server restarting
AGAIN_SECONDS = 0.3  # before a worker that ended is started again
EXIT_DATABASE, EXIT_INTERRUPTED = 3, 4  # as the command line has them
PATIENCE_SECONDS = 20.0  # for the server to come back
LAST_WORDS_LINES = 60  # of a process that ended by itself
DRAIN_SECONDS_MAX = 60.0
GONE_SECONDS_MAX = 10.0  # for sessions to be gone after their clients


class Told(NamedTuple):
    """One event of a worker."""

    at: float  # trio clock, seconds
    name: str
    fields: dict[str, Any]


@attrs.define(eq=False)
class Seat:
    """A place for a worker: one process after the other, always on the same cable."""

    number: int
    cable: Proxy
    process: trio.Process | None = None
    processes: int = 0  # that sat here so far
    worker_id: str | None = None  # None until the process says that it has started
    told: list[Told] = attrs.field(factory=list)  # by all that sat here
    ended: trio.Event = attrs.field(factory=trio.Event)  # the present process has
    exit_code: int | None = None  # of the last one that ended
    expected: set[int] = attrs.field(factory=set)  # exit codes that the nemesis has asked for
    is_closed: bool = False  # no process comes after this one
    # Faults take turns, each with the whole seat to itself.
    lock: trio.Lock = attrs.field(factory=trio.Lock)
    news: trio.Event = attrs.field(factory=trio.Event)

    def signal(self, number: int) -> None:
        """Send a signal to the present process, if it still runs."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    def find(self, name: EventName, since: float = 0.0) -> list[Told]:
        """Return the events of a name told since a time."""
        return [told for told in self.told if told.at >= since and told.name == name]

    async def started(self) -> str:
        """Wait until a worker sits here; return its id."""
        with trio.fail_after(START_SECONDS_MAX):
            while self.worker_id is None:
                await self.news.wait()
        return self.worker_id


@attrs.define(eq=False)
class Stage:
    """Everything that the nemesis can reach."""

    server: TemporaryServer
    folder: Path  # of the handlers' files
    owner_dsn: str  # the database, as the role that producers and workers are
    admin_dsn: str  # the same, as a superuser
    nursery: trio.Nursery
    seats: list[Seat] = attrs.field(factory=list)
    producers_cable: Proxy = attrs.field(init=False)
    book: Book = attrs.field(factory=Book)
    server_lock: trio.Lock = attrs.field(factory=trio.Lock)  # it is restarted by one at a time

    def cable(self, target: int) -> Proxy:
        """Return the cable of a worker, or the producers'."""
        return self.seats[target].cable if target < len(self.seats) else self.producers_cable

    def seat_lock(self, target: int) -> AbstractAsyncContextManager[object]:
        """Return the lock of a target's seat; nobody takes turns at the producers' cable."""
        return self.seats[target].lock if target < len(self.seats) else nullcontext()

    def find(self, name: EventName, since: float = 0.0) -> list[Told]:
        """Return the events of a name that any worker told since a time."""
        return [told for seat in self.seats for told in seat.find(name, since)]

    async def ask(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Ask the server directly, as a superuser; again while it is not there, so only what may be repeated."""
        with trio.fail_after(PATIENCE_SECONDS):
            while True:
                try:
                    async with open_connection(self.admin_dsn, application_name="nemesis") as connection:
                        return await (await connection.execute(statement.encode(), parameters or None)).fetchall()
                except Exception as error:
                    if not is_passing(error):
                        raise
                await trio.sleep(0.1)
        raise AssertionError

    async def value(self, statement: str, *parameters: object) -> Any:
        """Return the one value of a statement."""
        ((found,),) = await self.ask(f"select {statement}", *parameters)
        return found

    async def until(self, condition: str, *parameters: object, seconds: float) -> bool:
        """Wait until a condition in the database holds; False when it does not come true in time."""
        with trio.move_on_after(seconds):
            while not await self.value(condition, *parameters):
                await trio.sleep(0.1)
            return True
        return False

    async def held_by(self, worker_id: str) -> int:
        """Return how many jobs a worker holds."""
        return int(await self.value("count(*) from pgnotifyq.jobs where is_held and locked_by = %s", worker_id))


@asynccontextmanager
async def open_stage(folder: Path, *, workers: int = WORKERS, **settings: Any) -> AsyncIterator[Stage]:
    """Set the stage: server, schema, cables and workers; all ends with the block, however it ends.

    Args:
        folder: for the handlers' files.
        workers: how many.
        settings: of the workers' command line, in place of the ones above; lease_seconds, say.
    """
    server_settings = {"max_connections": str(CONNECTIONS), "superuser_reserved_connections": "5"}
    with open_temporary_server(settings=server_settings) as server:
        admin_dsn = make_conninfo(server.tcp_dsn, dbname="chaos")
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            connection.execute("create role owner login createrole")
            connection.execute("create database chaos owner owner")
        owner_dsn = make_conninfo(admin_dsn, user="owner")
        async with open_connection(owner_dsn) as connection:
            await connection.execute("set client_min_messages = warning")
            await migrate(connection)
            await connection.execute("create table effects (job_id uuid, execution_id uuid); create table orders (token text)")
        async with open_connection(admin_dsn) as connection:
            await connection.execute(TERMINATE)
        async with trio.open_nursery() as nursery:
            stage = Stage(server, folder, owner_dsn, admin_dsn, nursery)
            stage.producers_cable = await nursery.start(run_proxy, owner_dsn)
            for number in range(workers):
                seat = Seat(number, await nursery.start(run_proxy, owner_dsn))
                stage.seats.append(seat)
                nursery.start_soon(_keep_working, stage, seat, settings)
            for seat in stage.seats:
                await seat.started()
            yield stage
            nursery.cancel_scope.cancel()


async def drain(stage: Stage) -> float:
    """Wait, under a deadline, until every job has ended; return how long that took, in seconds."""
    began_at = trio.current_time()
    unfinished = "exists (select from pgnotifyq.jobs where status in ('pending', 'running') or is_held)"
    await stage.until(f"not {unfinished}", seconds=DRAIN_SECONDS_MAX)
    return trio.current_time() - began_at


async def close_down(stage: Stage) -> Evidence:
    """Ask all workers to end, and gather the evidence when they and their sessions have gone."""
    for seat in stage.seats:
        seat.is_closed = True
        seat.expected |= {0, EXIT_INTERRUPTED}
        seat.signal(signal.SIGTERM)
    for seat in stage.seats:
        with trio.move_on_after(END_SECONDS_MAX) as patience:
            await seat.ended.wait()
        if patience.cancelled_caught:
            stage.book.findings.append(f"worker {seat.number} did not end within {END_SECONDS_MAX:g} s of being asked")
            seat.signal(signal.SIGKILL)
    others = "exists (select from pg_stat_activity where datname = current_database() and application_name like 'pgnotifyq%')"
    await stage.until(f"not {others}", seconds=GONE_SECONDS_MAX)
    async with open_connection(stage.admin_dsn, application_name="checker") as connection:
        return await gather(connection, stage.book, stage.folder)


async def _keep_working(stage: Stage, seat: Seat, settings: dict[str, Any]) -> None:
    """Start a worker, and another when it has ended, as a service manager does."""
    while not seat.is_closed:
        seat.ended, seat.worker_id, seat.expected = trio.Event(), None, {POISONED}
        had_started = await _work(stage, seat, settings)
        assert seat.exit_code is not None
        # It may end at its start when the server is not there. Later it ends when it is told to, and never else.
        if seat.exit_code not in seat.expected and (had_started or seat.exit_code != EXIT_DATABASE):
            told = f"worker {seat.number} ended by itself, with exit code {seat.exit_code}"
            stage.book.findings.append(f"{told}; its last words:\n{_last_words(stage, seat)}")
        seat.ended.set()
        await trio.sleep(AGAIN_SECONDS)


def _errors_path(stage: Stage, seat: Seat) -> Path:
    """Return where the standard error of the next process goes; of each its own, until its end is explained."""
    return stage.folder / f"errors-{seat.number}-{seat.processes}"


def _last_words(stage: Stage, seat: Seat) -> str:
    """Return the end of what the last process wrote on its standard error: a traceback, most likely."""
    path = stage.folder / f"errors-{seat.number}-{seat.processes - 1}"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_WORDS_LINES:]
    return "\n".join(f"    {line}" for line in lines) or "    (it said nothing)"


async def _work(stage: Stage, seat: Seat, settings: dict[str, Any]) -> bool:
    """Run one process to its end and note what it tells; True when it had started to work."""
    options = {
        "concurrency": CONCURRENCY,
        "lease_seconds": LEASE_SECONDS,
        "shutdown_seconds": SHUTDOWN_SECONDS,
        "grace_seconds": GRACE_SECONDS,
        **settings,
    }
    command = [sys.executable, "-m", "pgnotifyq", "worker", "--app", "tests.chaos.app:registry", "--log-format", "json"]
    command += [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    command += ["--dsn", seat.cable.dsn]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PGNOTIFYQ_CHAOS_EFFECTS": str(stage.folder / f"effects-{seat.number}-{seat.processes}"),
    }
    with _errors_path(stage, seat).open("wb") as errors:
        process = await trio.lowlevel.open_process(
            command, stdout=subprocess.PIPE, stderr=errors, cwd=ROOT, env=environment, start_new_session=True
        )
    seat.process = process
    seat.processes += 1
    had_started = False
    try:
        assert process.stdout is not None
        rest = b""
        async for chunk in process.stdout:
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                fields = json.loads(line)
                told = Told(trio.current_time(), fields.pop("event"), fields)
                seat.told.append(told)
                if told.name == EventName.WORKER_STARTED:
                    seat.worker_id, had_started = fields["worker_id"], True
            seat.news.set()
            seat.news = trio.Event()
        seat.exit_code = await process.wait()
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            if process.stdout is not None:
                await process.stdout.aclose()
    return had_started


# Terminates one backend of a name, in the middle of a statement or transaction if one is found there within `seconds`. Returns
# whether it was busy; null when there is none.
TERMINATE = """
create function public.terminate_one(name text, seconds float8) returns boolean language plpgsql as $$
declare
    victim integer;
    give_up_at timestamptz := clock_timestamp() + make_interval(secs => seconds);
begin
    loop
        perform pg_stat_clear_snapshot();
        select pid into victim from pg_stat_activity
        where application_name = name and datname = current_database() and state <> 'idle' order by xact_start limit 1;
        if found then
            return pg_terminate_backend(victim);
        end if;
        exit when clock_timestamp() > give_up_at;
    end loop;
    select pid into victim from pg_stat_activity where application_name = name and datname = current_database() limit 1;
    if found then
        perform pg_terminate_backend(victim);
        return false;
    end if;
    return null;
end
$$
"""
