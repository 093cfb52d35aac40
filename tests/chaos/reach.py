"""`python -m tests.chaos.reach NAME`: one fault, often, and measured. Prints JSON, and a line for people.

kill      kill -9 to its jobs running again on another worker, at the default lease
stop      SIGSTOP past the lease, then SIGCONT: what the zombies changed
restart   the server's return to all workers claiming again; acknowledged jobs lost
deaf      notifications swallowed to the loss found; when a job starts meanwhile
poison    how many processes a poison pill takes down, and how often its neighbours are charged for it
shutdown  SIGTERM to the end of the process, with the database up, down and frozen
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
import uuid
from collections import Counter
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import trio

from pgnotifyq import EventName, open_client
from tests.chaos.checker import check
from tests.chaos.evidence import read_begun
from tests.chaos.producers import produce
from tests.chaos.stage import END_SECONDS_MAX, GRACE_SECONDS, SHUTDOWN_SECONDS, Seat, Stage, Told, close_down, drain, open_stage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from pgnotifyq.doors.client import Client
    from pgnotifyq.model.job import JobId

Figures = dict[str, Any]
LONG_LEASE: dict[str, Any] = {"lease_seconds": 60.0}
PATIENCE_SECONDS = 90.0
RESUME_SECONDS_MAX = 2.0
ASLEEP_SECONDS = 3.0  # after it was published a sleeper still looks for a while (runtime/sleep.py)


@asynccontextmanager
async def open_play(**settings: Any) -> AsyncIterator[tuple[Stage, Client]]:
    """Open a stage, and a client that goes past the cables."""
    with tempfile.TemporaryDirectory(prefix="pgnotifyq-reach-") as folder:
        async with open_stage(Path(folder), **settings) as stage, open_client(stage.owner_dsn) as client:
            for seat in stage.seats:
                await heard(seat, EventName.LISTENER_CONNECTED)
            yield stage, client


async def heard(seat: Seat, *names: EventName, since: float = 0.0) -> Told:
    """Wait until a seat tells an event of one of these names; return the first since a time."""
    with trio.fail_after(PATIENCE_SECONDS):
        while not (found := [told for name in names for told in seat.find(name, since)]):
            await seat.news.wait()
    return min(found, key=lambda told: told.at)


async def enqueue(client: Client, job_type: str, count: int, *, seconds: float, **fields: Any) -> list[JobId]:
    """Enqueue jobs whose handlers work for so many seconds."""
    return await client.enqueue_many(
        [
            {"job_type": job_type, "payload": {"token": str(uuid.uuid4()), "seconds": seconds}, "max_attempts": 1000, **fields}
            for _ in range(count)
        ]
    )


async def measure_kill(rounds: int) -> Figures:
    """Kill a worker that holds jobs; count until the last of them runs on another."""
    waits: list[float] = []
    async with open_play(**LONG_LEASE) as (stage, client):
        for _ in range(rounds):
            ids = await enqueue(client, "outside", 4, seconds=600.0)
            await stage.until("count(*) = %s from pgnotifyq.jobs where is_held", len(ids), seconds=PATIENCE_SECONDS)
            holder = await stage.value("locked_by::text from pgnotifyq.jobs where is_held order by id limit 1")
            seat = next(seat for seat in stage.seats if seat.worker_id == holder)
            held = {
                str(job_id) for (job_id,) in await stage.ask("select id from pgnotifyq.jobs where locked_by = %s::uuid", holder)
            }
            seat.expected.add(-signal.SIGKILL)
            killed_at = trio.current_time()
            seat.signal(signal.SIGKILL)
            claims: dict[str, float] = {}
            with trio.fail_after(PATIENCE_SECONDS):
                while claims.keys() != held:
                    await trio.sleep(0.002)
                    for told in stage.find(EventName.JOB_CLAIMED, killed_at):
                        if told.fields["job_id"] in held:
                            claims.setdefault(told.fields["job_id"], told.at)
            waits.append(max(claims.values()) - killed_at)
            await stage.ask("update pgnotifyq.jobs set status = 'cancelled' where status in ('pending', 'running') returning id")
            await stage.until("not exists (select from pgnotifyq.jobs where is_held)", seconds=PATIENCE_SECONDS)
            await seat.started()
            await heard(seat, EventName.LISTENER_CONNECTED, since=killed_at)
            for one in stage.seats:
                one.told.clear()
        return {**spread(waits), "line": f"killed to running again: {told_spread(waits)}"}


async def measure_stop(rounds: int) -> Figures:
    """Stop all workers but one past their leases, have that one do their jobs, and continue them: nothing changes any more."""
    lease_seconds, jobs = 2.0, 12
    zombies = changed = heard = refused = stops = 0
    async with open_play(lease_seconds=lease_seconds, concurrency=4, workers=5) as (stage, client):
        *stopped, last = stage.seats
        while stops < rounds:
            last.signal(signal.SIGSTOP)  # so that the others take all
            await enqueue(client, "zombie", jobs, seconds=0.8)
            await stage.until("count(*) = %s from pgnotifyq.jobs where is_held", jobs, seconds=PATIENCE_SECONDS)
            await trio.sleep(0.1)  # most have begun by then
            began_at = trio.current_time()
            for seat in stopped:
                seat.signal(signal.SIGSTOP)
            # What was claimed and had not begun will not begin any more, and is no zombie.
            begun = {str(one.execution_id) for one in read_begun(stage.folder)}
            last.signal(signal.SIGCONT)
            rows = await stage.ask(
                "select current_execution_id::text from pgnotifyq.jobs where is_held and locked_by <> %s::uuid", last.worker_id
            )
            lost = {execution_id for (execution_id,) in rows} & begun
            await stage.until(
                "not exists (select from pgnotifyq.jobs where status in ('pending', 'running'))", seconds=PATIENCE_SECONDS
            )
            before = await everything(stage)
            for seat in stopped:
                seat.signal(signal.SIGCONT)
            told: dict[str, dict[str, Any]] = {}
            with trio.fail_after(PATIENCE_SECONDS):
                while not lost <= told.keys():
                    await trio.sleep(0.02)
                    handlers = [
                        one.fields for seat in stopped for one in seat.told if one.name == "handler" and one.at >= began_at
                    ]
                    told = {fields["execution_id"]: fields for fields in handlers}
                while len([one for seat in stopped for one in seat.find(EventName.LEASE_LOST, began_at)]) < len(lost):
                    await trio.sleep(0.02)
            after = await everything(stage)
            zombies += len(lost)
            changed += len(set(before) ^ set(after))
            heard += sum(told[one]["reason"] == "lease_lost" for one in lost)
            refused += sum(told[one]["refused"] == ["progress", "transaction"] for one in lost)
            stops += len(stopped)
            for seat in stage.seats:
                seat.told.clear()
    return {
        "stops": stops,
        "zombies": zombies,
        "rows_changed": changed,
        "told_lease_lost": heard,
        "writes_refused": refused,
        "line": f"{stops} stops, {zombies} zombies: {changed} rows changed, {heard} told of the lost lease, {refused} refused",
    }


async def everything(stage: Stage) -> list[str]:
    """Return every row that a zombie could change, with its version."""
    tables = ("pgnotifyq.jobs", "pgnotifyq.job_executions", "pgnotifyq.dead_letter_jobs", "effects")
    parts = [f"select '{table} ' || t.xmin || t.ctid || to_jsonb(t) from {table} as t" for table in tables]
    return [row for (row,) in await stage.ask(" union all ".join(parts))]


async def measure_restart(rounds: int) -> Figures:
    """Restart the server under load, fast and immediate in turn; count until every worker claims again."""
    first: list[float] = []
    every: list[float] = []
    async with open_play() as (stage, _):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(produce, stage.producers_cable.dsn, stage.book, seed=1, jobs=200_000, seconds=10_000.0))
            for number in range(rounds):
                await trio.sleep(1.0)  # of load
                await restart(stage, ("fast", "immediate")[number % 2], down_seconds=0.5 * (number % 3))
                back_at = trio.current_time()
                claims = [(await heard(seat, EventName.JOB_CLAIMED, since=back_at)).at - back_at for seat in stage.seats]
                first.append(min(claims))
                every.append(max(claims))
            nursery.cancel_scope.cancel()
        await drain(stage)
        evidence = await close_down(stage)
    findings = [str(finding) for finding in check(evidence)]
    return {
        "first_worker": spread(first),
        "every_worker": spread(every),
        "within_2_s": sum(seconds <= RESUME_SECONDS_MAX for seconds in every),
        "rounds": rounds,
        "acknowledged": len(evidence.book.acknowledged),
        "findings": findings,
        "line": f"returned to claiming: first {told_spread(first)}; every worker {told_spread(every)};"
        f" {len(evidence.book.acknowledged)} jobs acknowledged, {len(findings)} findings",
    }


async def restart(stage: Stage, mode: str, *, down_seconds: float) -> None:
    """Stop the server, leave it down for a while, start it."""
    began_at = time.time()
    await trio.to_thread.run_sync(stage.server.stop, mode)
    if mode == "immediate":
        stage.book.crashes.append((began_at, time.time()))
    await trio.sleep(down_seconds)
    await trio.to_thread.run_sync(stage.server.start)


async def measure_deaf(rounds: int) -> Figures:
    """Swallow every worker's notifications while the queue is idle; count until each finds out, and until a job starts."""
    found: list[float] = []
    starts: list[float] = []
    async with open_play() as (stage, client):
        for number in range(rounds):
            asleep = "count(*) = %s from pgnotifyq.sleepers"
            await stage.until(asleep, len(stage.seats), seconds=PATIENCE_SECONDS)
            await trio.sleep(ASLEEP_SECONDS)
            began_at = trio.current_time()
            for seat in stage.seats:
                seat.cable.drop_notifications()
            (job_id,) = await enqueue(client, "outside", 1, seconds=0.0)
            enqueued_at = trio.current_time()
            for seat in stage.seats:
                lost = await heard(seat, EventName.LISTENER_LOST, EventName.LISTENER_POLLING, since=began_at)
                found.append(lost.at - began_at)
            claimed = [told.at for told in stage.find(EventName.JOB_CLAIMED, began_at) if told.fields["job_id"] == str(job_id)]
            starts.append(min(claimed) - enqueued_at)
            for seat in stage.seats:
                seat.cable.thaw()
            if number + 1 < rounds:
                for seat in stage.seats:
                    await heard(seat, EventName.LISTENER_CONNECTED, since=began_at)
    return {
        "found": spread(found),
        "job_started": spread(starts),
        "line": f"deaf to found: {told_spread(found)}; a job enqueued meanwhile started after {told_spread(starts)}",
    }


async def measure_poison(rounds: int) -> Figures:
    """Run poison pills beside long jobs; count the processes each takes down, and how often its neighbours are charged."""
    kills: list[int] = []
    charged: Counter[int] = Counter()
    async with open_play(workers=2, **LONG_LEASE) as (stage, client):
        for _ in range(rounds):
            neighbours = await enqueue(client, "outside", 6, seconds=12.0)
            (pill,) = await enqueue(client, "poison", 1, seconds=1.0, priority=9)
            await stage.ask("update pgnotifyq.jobs set max_attempts = 3 where id = %s returning id", pill)
            dead = await stage.until(
                "exists (select from pgnotifyq.dead_letter_jobs where id = %s)", pill, seconds=PATIENCE_SECONDS
            )
            assert dead, "the poison pill is not dead"
            losses = "count(*) from pgnotifyq.job_executions where job_id = %s and outcome = 'lost'"
            kills.append(await stage.value(losses, pill))
            await stage.until("not exists (select from pgnotifyq.jobs where status <> 'completed')", seconds=PATIENCE_SECONDS)
            charged.update(
                [await stage.value(f"{losses} and error_message not like '%%not charged%%'", job_id) for job_id in neighbours]
            )
            for seat in stage.seats:
                await seat.started()
    return {
        "kills": kills,
        "neighbours_by_charges": dict(sorted(charged.items())),
        "line": f"poison pills dead after {kills} kills; neighbours by how often they were charged: {dict(sorted(charged.items()))}",
    }


async def measure_shutdown(rounds: int) -> Figures:
    """Ask workers to end whose jobs take longer than the deadline, one of them deaf; with the database up, down, frozen."""
    seconds: dict[str, list[float]] = {}
    codes: dict[str, Counter[int | None]] = {}
    for state in ("up", "down", "frozen server", "frozen cable"):
        seconds[state], codes[state] = [], Counter()
        for number in range(rounds):
            async with open_play() as (stage, client):
                await enqueue(client, "outside", 16, seconds=600.0)
                if number % 2:
                    await enqueue(client, "shielding", 4, seconds=0.0)
                await stage.until("count(*) >= 16 from pgnotifyq.jobs where is_held", seconds=PATIENCE_SECONDS)
                server = server_processes(stage)
                if state == "down":
                    await trio.to_thread.run_sync(stage.server.stop, "fast")
                elif state == "frozen server":
                    for process in server:
                        process.suspend()
                elif state == "frozen cable":
                    for seat in stage.seats:
                        seat.cable.freeze()
                began_at = trio.current_time()
                for seat in stage.seats:
                    seat.is_closed = True
                    seat.expected |= {0, 4, 5}
                    seat.signal(signal.SIGTERM)
                with trio.move_on_after(END_SECONDS_MAX + 30):
                    for seat in stage.seats:
                        await seat.ended.wait()
                        seconds[state].append(trio.current_time() - began_at)
                        codes[state][seat.exit_code] += 1
                if state == "frozen server":
                    for process in server:
                        process.resume()
    deadline = SHUTDOWN_SECONDS + GRACE_SECONDS + 4.0
    told = "; ".join(f"{state}: longest {max(times):.1f} s of {len(times)}" for state, times in seconds.items())
    return {
        "deadline_seconds": deadline,
        **{state: {**spread(times), "exit_codes": dict(codes[state])} for state, times in seconds.items()},
        "line": f"deadline {deadline:g} s and two for a release; {told}",
    }


def server_processes(stage: Stage) -> list[psutil.Process]:
    """Return the server's processes, children first."""
    pid = int((stage.server.folder / "postmaster.pid").read_text().split("\n", 1)[0])
    postmaster = psutil.Process(pid)
    return [*postmaster.children(recursive=True), postmaster]


def spread(seconds: list[float]) -> Figures:
    """Return median, 99th percentile and maximum."""
    ordered = sorted(seconds)
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    return {
        "p50_s": round(statistics.median(ordered), 3),
        "p99_s": round(p99, 3),
        "max_s": round(ordered[-1], 3),
        "samples": len(ordered),
    }


def told_spread(seconds: list[float]) -> str:
    """Say a spread for people."""
    figures = spread(seconds)
    return f"p50 {figures['p50_s']:.2f} s, p99 {figures['p99_s']:.2f} s, max {figures['max_s']:.2f} s of {figures['samples']}"


MEASUREMENTS: dict[str, tuple[Callable[[int], Awaitable[Figures]], int]] = {
    "kill": (measure_kill, 100),
    "stop": (measure_stop, 100),
    "restart": (measure_restart, 30),
    "deaf": (measure_deaf, 2),
    "poison": (measure_poison, 3),
    "shutdown": (measure_shutdown, 2),
}


def main() -> int:
    """Measure one thing by name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=MEASUREMENTS)
    parser.add_argument(
        "--rounds", type=int, help="how often; the default is what the figures in tests/README.md were taken with"
    )
    options = parser.parse_args()
    measure, rounds = MEASUREMENTS[options.name]
    figures = trio.run(measure, options.rounds or rounds)
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.system()}
    print(figures.pop("line"), file=sys.stderr)
    print(json.dumps({"measured": options.name, "machine": machine, **figures}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
