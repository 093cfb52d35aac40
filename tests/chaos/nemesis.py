"""The nemesis: one async function a fault. Each says whether it landed, that is: in a moment when it could do harm, and what it saw.

A fault that missed proves nothing. So each waits, under a bound, for such a moment: a worker that holds jobs, a backend in mid-
statement.
"""

from __future__ import annotations

import signal
import time
import uuid
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import psycopg
import trio

from pgnotifyq import EventName
from pgnotifyq.ledger.errors import is_passing
from pgnotifyq.model.errors import DatabaseUnreachable
from pgnotifyq.wire.connection import connect, open_connection
from tests.chaos.app import POISONED
from tests.chaos.schedule import Fault
from tests.chaos.stage import CONNECTIONS, END_SECONDS_MAX, EXIT_INTERRUPTED, LEASE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.chaos.schedule import Planned
    from tests.chaos.stage import Seat, Stage

MOMENT_SECONDS = 5.0  # to wait for the moment in which a fault can do harm
BUSY_SECONDS = 1.0  # to look for a backend that is busy
POISON_SECONDS = 60.0  # for a poison pill to end three processes
POISON_ATTEMPTS = 3
CANCELS_AT_ONCE = 3
DELAY_SECONDS = 0.3  # each way
HEARD_SECONDS = 15.0  # a deaf listener is found within this
HEARD_SLACK_SECONDS = 2.0  # of a busy machine
PROGRESS_JOBS = 10  # completed beside an old snapshot: the queue went on


@attrs.frozen
class Struck:
    """What became of a fault."""

    landed: bool
    told: str
    figures: dict[str, float] = attrs.field(factory=dict)  # measured on the way, by name


async def strike(stage: Stage, planned: Planned) -> Struck:
    """Commit one planned fault and return when it is over."""
    try:
        return await STRIKES[planned.fault](stage, planned)
    except (psycopg.Error, DatabaseUnreachable) as error:
        if not is_passing(error):
            raise
        return Struck(landed=False, told=f"another fault came first: {str(error).splitlines()[0]}")


async def kill(stage: Stage, planned: Planned) -> Struck:
    """End a worker that holds jobs, with SIGKILL. Its rows say afterwards what it held."""
    seat = stage.seats[planned.target]
    async with seat.lock:
        worker_id = await _holding(stage, seat)
        ended = seat.ended
        seat.expected.add(-signal.SIGKILL)
        seat.signal(signal.SIGKILL)
        await ended.wait()
        held = await stage.held_by(worker_id)
        await seat.started()
    return Struck(landed=held > 0, told=f"it held {held} jobs")


async def stop(stage: Stage, planned: Planned) -> Struck:
    """Freeze a worker until others have taken back all it held, then let it go on as if nothing had happened."""
    seat = stage.seats[planned.target]
    async with seat.lock:
        worker_id = await _holding(stage, seat)
        began_at = trio.current_time()
        seat.signal(signal.SIGSTOP)
        try:
            held = await stage.held_by(worker_id)
            lost = await stage.until(
                "not exists (select from pgnotifyq.jobs where is_held and locked_by = %s)", worker_id, seconds=3 * LEASE_SECONDS
            )
        finally:
            seat.signal(signal.SIGCONT)
    seconds = trio.current_time() - began_at
    return Struck(landed=held > 0 and lost, told=f"it held {held} jobs, all taken back after {seconds:.1f} s")


async def ask(stage: Stage, planned: Planned) -> Struck:
    """Ask a worker that holds jobs to end, with SIGTERM; it does, by its deadline."""
    seat = stage.seats[planned.target]
    async with seat.lock:
        held = await stage.held_by(await _holding(stage, seat))
        ended, began_at = seat.ended, trio.current_time()
        seat.expected |= {0, EXIT_INTERRUPTED}
        seat.signal(signal.SIGTERM)
        with trio.move_on_after(END_SECONDS_MAX):
            await ended.wait()
        seconds = trio.current_time() - began_at
        if not ended.is_set():
            stage.book.findings.append(f"worker {seat.number} did not end within {END_SECONDS_MAX:g} s of SIGTERM")
            seat.expected.add(-signal.SIGKILL)
            seat.signal(signal.SIGKILL)
            await ended.wait()
        await seat.started()
    return Struck(
        landed=held > 0, told=f"it held {held} jobs and ended after {seconds:.1f} s", figures={"shutdown seconds": seconds}
    )


async def poison(stage: Stage, planned: Planned) -> Struck:
    """Enqueue a job that ends the process it runs in; it is dead when it has done so three times."""
    token = f"poison-{uuid.uuid4()}"
    stage.book.attempted.add(token)
    await stage.ask(
        "select pgnotifyq.enqueue('poison', jsonb_build_object('token', %s::text, 'seconds', 0.5), priority => 9, max_attempts => %s)"
        " where not exists (select from pgnotifyq.jobs where payload->>'token' = %s)",
        token,
        POISON_ATTEMPTS,
        token,
    )
    letter = "exists (select from pgnotifyq.dead_letter_jobs where payload->>'token' = %s)"
    died = await stage.until(letter, token, seconds=POISON_SECONDS)
    poisoned = sum(seat.exit_code == POISONED for seat in stage.seats)
    return Struck(landed=died, told=f"dead after {POISON_ATTEMPTS} attempts" if died else f"not dead; {poisoned} seats poisoned")


async def restart(stage: Stage, planned: Planned, *, mode: str) -> Struck:
    """Stop the server while jobs run, and start it; then workers resume by themselves."""
    async with stage.server_lock:
        await stage.until("exists (select from pgnotifyq.jobs where is_held)", seconds=2 * MOMENT_SECONDS)
        running = await stage.value("count(*) from pgnotifyq.jobs where is_held")
        began_at = time.time()
        await trio.to_thread.run_sync(stage.server.stop, mode)
        ended_at = time.time()
        if mode == "immediate":
            stage.book.crashes.append((began_at, ended_at))
        await trio.sleep(planned.seconds)
        await trio.to_thread.run_sync(stage.server.start)
        back_at = trio.current_time()
        resumed = await _claim_after(stage, back_at)
    told = f"{running} jobs ran; claims again {resumed:.2f} s after its return"
    return Struck(landed=running > 0, told=told, figures={"resume seconds": resumed})


async def terminate(stage: Stage, planned: Planned, *, name: str) -> Struck:
    """Terminate a backend of one of the workers, in the middle of what it does (but for the listener, which mostly waits)."""
    seconds = 0.0 if name == "listener" else BUSY_SECONDS
    was_busy = await stage.value("public.terminate_one(%s, %s)", f"pgnotifyq {name}", seconds)
    landed = was_busy is not None if name == "listener" else bool(was_busy)
    return Struck(landed=landed, told="in mid-statement" if was_busy else "idle" if was_busy is not None else "there was none")


async def freeze(stage: Stage, planned: Planned) -> Struck:
    """Freeze a cable, both ways, with all connections open."""
    cable = stage.cable(planned.target)
    async with AsyncExitStack() as stack:
        held = 1
        if planned.target < len(stage.seats):
            seat = stage.seats[planned.target]
            await stack.enter_async_context(seat.lock)
            held = await stage.held_by(await _holding(stage, seat))
        cable.freeze()
        await trio.sleep(planned.seconds)
        cable.thaw()
    return Struck(landed=held > 0, told=f"{held} jobs were held" if planned.target < len(stage.seats) else "the producers'")


async def cut(stage: Stage, planned: Planned) -> Struck:
    """Break all connections of a cable with a reset."""
    cable = stage.cable(planned.target)
    async with stage.seat_lock(planned.target):
        with trio.move_on_after(MOMENT_SECONDS):
            while not cable.connections:
                await trio.sleep(0.01)
        connections = cable.connections
        cable.cut()
    return Struck(landed=connections > 0, told=f"{connections} connections")


async def delay(stage: Stage, planned: Planned) -> Struck:
    """Make a worker's cable slow: a round trip takes 0.6 s more."""
    seat = stage.seats[planned.target]
    async with seat.lock:
        held = await stage.held_by(await _holding(stage, seat))
        seat.cable.delay_seconds = DELAY_SECONDS
        await trio.sleep(planned.seconds)
        seat.cable.delay_seconds = 0.0
    return Struck(landed=held > 0, told=f"{held} jobs were held")


async def lose_replies(stage: Stage, planned: Planned) -> Struck:
    """Deliver what clients say, lose the answers (a commit is applied and its reply lost), and break the connections."""
    cable = stage.cable(planned.target)
    async with stage.seat_lock(planned.target):
        dropped_before = cable.dropped_bytes
        cable.drop_replies()
        with trio.move_on_after(MOMENT_SECONDS):
            while cable.dropped_bytes == dropped_before:
                await trio.sleep(0.01)
            await trio.sleep(0.1)
        cable.cut()
        cable.thaw()
    dropped = cable.dropped_bytes - dropped_before
    return Struck(landed=dropped > 0, told=f"{dropped} bytes of replies were lost")


async def deafen(stage: Stage, planned: Planned) -> Struck:
    """Swallow a worker's notifications and nothing else; it finds out by itself, and jobs start meanwhile."""
    seat = stage.seats[planned.target]
    async with seat.lock:
        await seat.started()
        began_at = trio.current_time()
        seat.cable.drop_notifications()
        found: float | None = None
        with trio.move_on_after(planned.seconds):
            while found is None:
                await seat.news.wait()
                lost = seat.find(EventName.LISTENER_LOST, began_at) + seat.find(EventName.LISTENER_POLLING, began_at)
                for told in lost:
                    if "did not arrive" in told.fields.get("why", ""):
                        found = told.at - began_at
                        break
                    began_at = told.at  # it lost its connection otherwise, and polls since; the next one is deaf as well
        seat.cable.thaw()
    started = len(seat.find(EventName.JOB_CLAIMED, began_at))
    if found is None:
        return Struck(landed=False, told=f"it was not found in {planned.seconds:g} s; {started} jobs started meanwhile")
    if found > HEARD_SECONDS + HEARD_SLACK_SECONDS:
        stage.book.findings.append(f"a deaf listener was found after {found:.1f} s only")
    account = f"found after {found:.1f} s; {started} jobs started meanwhile"
    return Struck(landed=started > 0, told=account, figures={"deaf seconds": found})


async def hold_snapshot(stage: Stage, planned: Planned) -> Struck:
    """Hold the oldest snapshot of the server, while jobs go on."""
    count = "count(*) from pgnotifyq.job_executions where outcome = 'completed'"
    async with (
        stage.server_lock,
        open_connection(stage.admin_dsn, application_name="old snapshot") as connection,
        connection.transaction(),
    ):
        await connection.execute("set transaction isolation level repeatable read")
        before = await stage.value(count)
        await connection.execute("select count(*) from pgnotifyq.jobs")
        await trio.sleep(planned.seconds)
        done = await stage.value(count) - before
        await connection.execute("select 1")  # if it was not held to the end, this fails
    return Struck(landed=done >= PROGRESS_JOBS, told=f"{done} jobs were completed meanwhile")


async def fill_connections(stage: Stage, planned: Planned) -> Struck:
    """Take all connections that the server has, while a worker has to open its own again."""
    seat = stage.seats[planned.target]
    async with seat.lock, stage.server_lock, AsyncExitStack() as stack:
        await _holding(stage, seat)

        async def fill() -> bool:
            for _ in range(CONNECTIONS):
                try:
                    connection: Any = await connect(stage.owner_dsn, application_name="hog")
                except DatabaseUnreachable as error:
                    return "connection slots" in str(error) or "too many clients" in str(error)
                stack.push_async_callback(connection.close)
            return False

        await fill()
        began_at = trio.current_time()
        seat.cable.cut()
        await trio.sleep(planned.seconds / 3)
        full = await fill()  # whoever was faster in taking a free place has it
        await trio.sleep(planned.seconds * 2 / 3)
    lost = len(seat.find(EventName.DATABASE_LOST, began_at))
    return Struck(landed=full and lost > 0, told=f"{lost} of the worker's connections found no place" if full else "not full")


async def cancel(stage: Stage, planned: Planned) -> Struck:
    """Cancel some unfinished jobs by a plain update."""
    async with open_connection(stage.owner_dsn, application_name="canceller") as connection:
        async with connection.transaction():
            cursor = await connection.execute(
                "select id, is_held from pgnotifyq.jobs where status in ('pending', 'running') and job_type <> 'poison'"
                " order by is_held desc, md5(id::text) limit %s for no key update skip locked",
                (CANCELS_AT_ONCE,),
            )
            found = await cursor.fetchall()
            ids = [job_id for job_id, _ in found]
            stage.book.cancelling |= set(ids)
            await connection.execute("update pgnotifyq.jobs set status = 'cancelled' where id = any (%s)", (ids,))
        stage.book.cancelled |= set(ids)
    running = sum(is_held for _, is_held in found)
    return Struck(landed=running > 0, told=f"{len(ids)} jobs, {running} of them running")


STRIKES: dict[Fault, Callable[[Stage, Planned], Awaitable[Struck]]] = {
    Fault.KILL: kill,
    Fault.STOP: stop,
    Fault.ASK: ask,
    Fault.POISON: poison,
    Fault.RESTART_FAST: partial(restart, mode="fast"),
    Fault.RESTART_IMMEDIATE: partial(restart, mode="immediate"),
    Fault.END_LISTENER: partial(terminate, name="listener"),
    Fault.END_CLAIMER: partial(terminate, name="claimer"),
    Fault.END_SETTLER: partial(terminate, name="settler"),
    Fault.END_HANDLER: partial(terminate, name="handler"),
    Fault.FREEZE: freeze,
    Fault.CUT: cut,
    Fault.DELAY: delay,
    Fault.LOSE_REPLIES: lose_replies,
    Fault.DEAFEN: deafen,
    Fault.SNAPSHOT: hold_snapshot,
    Fault.FILL: fill_connections,
    Fault.CANCEL: cancel,
}


async def _holding(stage: Stage, seat: Seat) -> str:
    """Wait, under a bound, until a worker holds jobs; return its id."""
    worker_id = await seat.started()
    # Several, so that some are left when the fault comes.
    held = "count(*) >= 2 from pgnotifyq.jobs where is_held and locked_by = %s"
    await stage.until(held, worker_id, seconds=MOMENT_SECONDS)
    return worker_id


async def _claim_after(stage: Stage, time_back: float) -> float:
    """Wait until a worker claims a job; return seconds since a time."""
    with trio.fail_after(MOMENT_SECONDS * 2):
        while not (claims := stage.find(EventName.JOB_CLAIMED, time_back)):
            await trio.sleep(0.01)
    return min(told.at for told in claims) - time_back
