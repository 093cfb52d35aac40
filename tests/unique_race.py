"""`python -m tests.unique_race`: many enqueue one key at once, while its holders start, end and are cancelled.

For each policy 16 clients enqueue one key a thousand times. Beside them a worker claims and ends jobs in every way,
somebody cancels them, and leases run out. Then 1,000 bulks with the same keys in any order race each other, a worker
that ends their jobs, and somebody who requeues those that died. Prints JSON, and a line for people; exit code 1 if something does not hold:

- one execution of a key at a time, and of `pending` one job that waits and has not started
- a job said to be new is new, and there; one said to be kept, replaced or refused over held the key during the call
- what a `replaced` said is what the handler gets, unless a later one said otherwise
- who superseded, superseded one; all that was enqueued ends
- no deadlock
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import sys
import uuid
from collections import Counter
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import attrs
import psycopg
import trio
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pgnotifyq.embedded import open_temporary_server
from pgnotifyq.ledger import bulk, end
from pgnotifyq.ledger import claim as claim_verbs
from pgnotifyq.ledger import enqueue as enqueue_verbs
from pgnotifyq.migrating import migrate
from pgnotifyq.model.errors import UniqueKeyHeld
from pgnotifyq.model.job import JobId, Lease, WorkerId
from pgnotifyq.model.new_job import NewJob
from pgnotifyq.model.outcome import PLAIN_COMPLETION, Outcome, SettleKind
from pgnotifyq.model.unique import Unique
from pgnotifyq.wire.asking import ask
from pgnotifyq.wire.connection import open_connection

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from pgnotifyq.model.job import Job
    from pgnotifyq.wire.connection import Connection

    Link = Connection[Any]

SCHEMA = "pgnotifyq"
WORKER = WorkerId(uuid.UUID(int=0xA))
# Some leases run out on purpose, and the race goes on meanwhile. At the default they would not.
LOST_LEASE_SECONDS = 0.05
ENDINGS = (
    PLAIN_COMPLETION,
    Outcome(kind=SettleKind.RETRY, name="failed", delay_seconds=0, error_message="no luck"),
    Outcome(kind=SettleKind.RELEASE, name="released", error_message="shutdown"),
    Outcome(kind=SettleKind.CANCEL, name="cancelled"),
)
BURIAL = Outcome(kind=SettleKind.BURY, name="discarded", error_message="no use", reason="discarded")
POLICIES: dict[str, dict[str, Any]] = {
    "keep": {},
    "replace": {"on_conflict": "replace"},
    "refuse": {"on_conflict": "refuse"},
    "supersede": {"on_conflict": "supersede"},
    "keep, pending": {"while_": "pending"},
    "replace, pending": {"while_": "pending", "on_conflict": "replace"},
    "supersede, pending": {"while_": "pending", "on_conflict": "supersede"},
    "keep, for a period": {"for_seconds": 0.05},
}


@attrs.frozen
class Call:
    """An enqueue, and what it was told. Times are those of trio's clock."""

    number: int
    began: float
    ended: float
    job_id: UUID
    outcome: str


@attrs.define
class Race:
    """What is noted outside of the database."""

    dsn: str
    unique: Unique
    calls: list[Call] = attrs.field(factory=list)
    starts: list[tuple[UUID, int, float]] = attrs.field(factory=list)  # job, payload's number, before the claim
    ends: dict[UUID, float] = attrs.field(factory=dict)  # when its last end had been told
    running: set[UUID] = attrs.field(factory=set)
    faults: list[str] = attrs.field(factory=list)
    endings: Counter[str] = attrs.field(factory=Counter)
    numbers: itertools.count[int] = attrs.field(factory=itertools.count)
    is_over: bool = False

    @property
    def is_one_at_a_time(self) -> bool:
        """Whether the key is held while its job runs."""
        return self.unique.while_ is None and self.unique.for_seconds is None


async def enqueue(race: Race, count: int) -> None:
    """Be a client."""
    async with open_connection(race.dsn) as connection:
        for _ in range(count):
            number, began = next(race.numbers), trio.current_time()
            job = NewJob(job_type="noop", payload={"n": number}, unique=race.unique)
            try:
                told = await ask(connection, enqueue_verbs.enqueue_told(SCHEMA, job))
                job_id, outcome = told.job_id, str(told.outcome)
            except UniqueKeyHeld as error:
                job_id, outcome = error.job_id or JobId(uuid.UUID(int=0)), "refused"
            race.calls.append(Call(number, began, trio.current_time(), job_id, outcome))


async def claim(connection: Link, jobs_max: int, lease_seconds: float) -> list[Job]:
    """Claim jobs."""
    found = await ask(
        connection,
        claim_verbs.claim(SCHEMA, worker_id=WORKER, queues=["default"], jobs_max=jobs_max, lease_seconds=lease_seconds),
    )
    return [job.whole for job in found.jobs]


async def work(race: Race, chance: random.Random) -> None:
    """Be a worker: run what there is, and end it in some way, or lose it."""
    async with open_connection(race.dsn) as connection:
        while not (race.is_over and await is_idle(connection)):
            is_lost = chance.random() < 0.1
            began = trio.current_time()
            jobs = await claim(connection, 4, LOST_LEASE_SECONDS if is_lost else 60.0)
            for job in jobs:
                race.starts.append((job.id, job.payload["n"], began))
            race.running |= {job.id for job in jobs}
            if race.is_one_at_a_time and len(race.running) > 1:
                race.faults.append(f"at once: {race.running}")
            await trio.sleep(chance.choice((0, 0, 0.002)))
            race.running -= {job.id for job in jobs}
            if is_lost:
                race.endings["lost"] += len(jobs)
                await trio.sleep(LOST_LEASE_SECONDS)
                await connection.execute("select * from pgnotifyq.reclaim(%s, 100)", (WORKER,))
            for job in jobs:
                if is_lost:
                    race.ends[job.id] = trio.current_time()
                    continue
                assert job.current_execution_id is not None
                ending = chance.choice(ENDINGS)
                race.endings[ending.name] += 1
                settlement = [(Lease(job.id, job.current_execution_id), ending)]
                await ask(connection, end.settle(SCHEMA, worker_id=WORKER, settlements=settlement))
                race.ends[job.id] = trio.current_time()


async def is_idle(connection: Link) -> bool:
    """Tell whether all jobs have ended."""
    cursor = await connection.execute("select not exists (select from pgnotifyq.jobs where is_claimable or is_held)")
    return bool((await cursor.fetchall())[0][0])


async def cancel(race: Race, chance: random.Random) -> None:
    """Cancel what waits or runs, now and then."""
    async with open_connection(race.dsn) as connection:
        while not race.is_over:
            await trio.sleep(chance.random() * 0.02)
            cursor = await connection.execute(
                "update pgnotifyq.jobs set status = 'cancelled' where id = (select id from pgnotifyq.jobs"
                " where is_claimable or is_held and status = 'running' limit 1) and status in ('pending', 'running')"
                " returning id"
            )
            for (job_id,) in await cursor.fetchall():
                race.endings["cancelled by somebody"] += 1
                race.ends[job_id] = trio.current_time()


async def watch(race: Race) -> None:
    """Look at all rows, of one moment each time."""
    async with open_connection(race.dsn) as connection:
        while not race.is_over:
            cursor = await connection.execute(
                "select count(*) filter (where is_held), count(*) filter (where is_claimable and started_at is null),"
                " count(*) filter (where pgnotifyq.holds_key(j)) from pgnotifyq.jobs as j"
            )
            ((held, waiting, holders),) = await cursor.fetchall()
            if holders > 1 or (race.is_one_at_a_time and held > 1) or (race.unique.for_seconds is None and waiting > 1):
                race.faults.append(f"{held} run, {waiting} wait, {holders} hold the key")
            await trio.sleep(0.005)


async def race_of(dsn: str, policy: str, clients: int, count: int, seed: int) -> Race:
    """Race them, and judge."""
    race = Race(dsn, Unique(key="k", **POLICIES[policy]))
    chance = random.Random(seed)

    async def be_clients() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(clients):
                nursery.start_soon(enqueue, race, count)
        race.is_over = True

    with trio.fail_after(900):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(work, race, chance)
            nursery.start_soon(cancel, race, chance)
            nursery.start_soon(watch, race)
            nursery.start_soon(be_clients)
    async with open_connection(dsn) as connection:
        cursor = await connection.execute("select id, status, error_message from pgnotifyq.jobs")
        jobs = {job_id: (status, message or "") for job_id, status, message in await cursor.fetchall()}
        cursor = await connection.execute("select id from pgnotifyq.dead_letter_jobs")
        dead = {job_id for (job_id,) in await cursor.fetchall()}
    judge(race, jobs, dead)
    return race


def judge(race: Race, jobs: dict[UUID, tuple[str, str]], dead: set[UUID]) -> None:
    """Compare what callers were told with what is there."""
    made = {call.job_id: call for call in race.calls if call.outcome in {"created", "superseded"}}
    if len(made) != sum(call.outcome in {"created", "superseded"} for call in race.calls):
        race.faults.append("two were told the same new job")
    if made.keys() != jobs.keys() | dead:
        race.faults.append(f"told, and not there: {made.keys() - jobs.keys() - dead}; there: {jobs.keys() - made.keys()}")
    by = Counter(message.removeprefix("superseded by ") for _, message in jobs.values() if message.startswith("superseded by"))
    superseding = {str(call.job_id) for call in race.calls if call.outcome == "superseded"}
    if by != Counter(superseding):
        race.faults.append(f"superseded: {by} by {superseding}")
    for job_id, (_, message) in jobs.items():
        if message.startswith("superseded by") and job_id not in race.ends:
            race.ends[job_id] = made[uuid.UUID(message.removeprefix("superseded by "))].ended
    for call in race.calls:
        if call.outcome in {"kept", "replaced", "refused"}:
            of = made.get(call.job_id)
            if of is None or of.began > call.ended:
                race.faults.append(f"{call}: never made, or later")
            elif race.unique.for_seconds is None and race.ends.get(call.job_id, call.ended) < call.began:
                race.faults.append(f"{call}: it had ended {call.began - race.ends[call.job_id]:.4f} s before")
    judge_starts(race)


def judge_starts(race: Race) -> None:
    """Compare what handlers got with what callers said and were told."""
    by_number = {call.number: call for call in race.calls}
    replaced: dict[UUID, list[Call]] = {}
    for call in race.calls:
        if call.outcome == "replaced":
            replaced.setdefault(call.job_id, []).append(call)
    for job_id, number, began in race.starts:
        of = by_number[number]
        if of.job_id != job_id:
            race.faults.append(f"{job_id} ran with what {of} said")
        elif any(of.ended < other.began and other.ended < began for other in replaced.get(job_id, ())):
            race.faults.append(f"{job_id} ran with what {of} said, and a later one was told that it replaced it")


async def bulks(dsn: str, producers: int, count: int, size: int, seed: int) -> dict[str, int]:
    """Race bulks of the same keys, in any order and with any policy, with each other and with a worker that ends their jobs."""
    told: Counter[str] = Counter()
    policies = [POLICIES[name] for name in POLICIES if name != "refuse"]
    over = 0

    async def produce(number: int) -> None:
        nonlocal over
        chance = random.Random(seed + number)
        async with open_connection(dsn) as connection:
            for _ in range(count // producers):
                jobs = [
                    NewJob(job_type="noop", unique=Unique(key=f"k{key}", **chance.choice(policies)))
                    for key in chance.choices(range(2 * size), k=size)
                ]
                try:
                    for one in await ask(connection, bulk.enqueue_many_told(SCHEMA, jobs)):
                        told[str(one.outcome)] += 1
                except psycopg.errors.DeadlockDetected:
                    told["deadlocks"] += 1
        over += 1

    async def run() -> None:
        chance = random.Random(seed)
        async with open_connection(dsn) as connection:
            while over < producers or not await is_idle(connection):
                jobs = sorted(await claim(connection, 50, 60.0), key=lambda job: job.id)
                settlements = [(Lease(job.id, job.current_execution_id), chance.choice((*ENDINGS, BURIAL))) for job in jobs]  # type: ignore[arg-type]
                if settlements:
                    try:
                        await ask(connection, end.settle(SCHEMA, worker_id=WORKER, settlements=settlements))
                    except psycopg.errors.DeadlockDetected:
                        told["deadlocks of the worker"] += 1
                        await ask(connection, end.settle(SCHEMA, worker_id=WORKER, settlements=settlements))

    async def requeue() -> None:
        async with open_connection(dsn) as connection:
            while over < producers:
                cursor = await connection.execute("select pgnotifyq.requeue_all()")
                told["requeued"] += (await cursor.fetchall())[0][0]
                await trio.sleep(0.01)

    with trio.fail_after(900):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            nursery.start_soon(requeue)
            for number in range(producers):
                nursery.start_soon(produce, number)
    async with open_connection(dsn) as connection:
        # Of these no caller is told: a bulk begins anew, and a letter stays.
        cursor = await connection.execute("select deadlocks from pg_stat_database where datname = current_database()")
        told["begun anew, or left"] = (await cursor.fetchall())[0][0]
    return dict(told)


async def clear(dsn: str) -> None:
    """Take all jobs away."""
    async with open_connection(dsn) as connection:
        await connection.execute(
            "truncate pgnotifyq.jobs, pgnotifyq.job_executions, pgnotifyq.dead_letter_jobs, pgnotifyq.job_troubles"
        )


async def race_all(dsn: str, given: argparse.Namespace) -> dict[str, Any]:
    """Run what was asked for."""
    async with open_connection(dsn) as connection:
        await migrate(connection)
    figures: dict[str, Any] = {}
    for policy in POLICIES:
        if given.only in policy:
            race = await race_of(dsn, policy, given.clients, given.enqueues, given.seed)
            outcomes = Counter(call.outcome for call in race.calls)
            figures[policy] = {"told": outcomes, "ended": race.endings, "faults": race.faults[:5]}
            print(f"{policy}: {dict(outcomes)}; {len(race.faults)} faults {race.faults[:2]}", file=sys.stderr)
            await clear(dsn)
    if given.only in "bulks":
        figures["bulks"] = told = await bulks(dsn, 8, given.bulks, 50, given.seed)
        print(f"bulks: {told}", file=sys.stderr)
    return figures


def main(arguments: Sequence[str] | None = None) -> int:
    """Race, print, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.unique_race", description=__doc__)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--enqueues", type=int, default=1000, help="of each client")
    parser.add_argument("--bulks", type=int, default=1000)
    parser.add_argument("--only", default="", help="policies whose name contains this, or bulks")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args(arguments)
    version = int(os.environ.get("PGNOTIFYQ_TEST_POSTGRES", "18"))
    own = os.environ.get("PGNOTIFYQ_DSN")
    with nullcontext(None) if own else open_temporary_server(version=version, settings={"fsync": "off"}) as server:
        base = own or (server.dsn if server else "")
        name = f"unique_race_{uuid.uuid4().hex[:12]}"
        with psycopg.connect(base, autocommit=True) as session:
            session.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
            try:
                figures = trio.run(race_all, make_conninfo(base, dbname=name), given)
            finally:
                session.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))
    print(json.dumps(figures, indent=2))
    has_faults = any(figure.get("faults") or any("deadlock" in word for word in figure) for figure in figures.values())
    return 1 if has_faults else 0


if __name__ == "__main__":
    sys.exit(main())
