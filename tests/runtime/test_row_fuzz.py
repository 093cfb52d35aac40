"""Rows of every shape that SQL allows, put in by hand beside live workers, as each role that may: no worker ends, other jobs go on.

A statement that PostgreSQL refuses is fine; one that it takes must be harmless. Each job that is enqueued meanwhile through the door is
completed, and the readers read. One seed here, and as many statements as take a few seconds;

    PGNOTIFYQ_ROW_FUZZ_SECONDS=600 python -m pytest -s tests/runtime/test_row_fuzz.py     # random seeds, and as long as you like
"""

from __future__ import annotations

import os
import random
import time
import uuid
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import trio

from pgnotifyq import JobNotFound, JobRegistry, RetryPolicy, open_client
from pgnotifyq.wire.connection import open_connection
from tests.asked import fetch, tenant_role
from tests.runtime.support import Workplace

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from pgnotifyq.wire.connection import Connection

SECONDS = float(os.environ.get("PGNOTIFYQ_ROW_FUZZ_SECONDS", "0"))
STATEMENTS = 400  # of a run
BATCH = 20  # then a job comes through the door, and must be run
OURS = uuid.UUID(int=0xC)
PASSWORD = "row-fuzz"  # of a role that lives as long as the test
IDS = [uuid.UUID(int=number) for number in range(1, 9)]  # few, so that they meet

DEEP = "[" * 1500 + "]" * 1500
TIMES = ["now", "infinity", "-infinity", "yesterday", "2000-01-01", "4713-01-01 BC", "294276-12-31", "10000-01-01", "0001-01-01 00:00+14",
         "tomorrow", "9999-12-31 23:59:59-12"]  # fmt: skip
QUEUES = [
    "default",
    "default",
    "default",
    "other",
    "nonce",
    "cancel",
    "work",
    "+company",
    "a b",
    " ",
    "\n",
    "x" * 63,
    "\U0001f4a5" * 63,
    ",",
    "'\"\\",
]
TYPES = ["works", "works", "fails", "thread", "unknown", "", " ", "\n", "\u20ac" * 127, "%s", "{schema}"]
DOCUMENTS = [
    "{}",
    "null",
    "1",
    '"x"',
    "[]",
    '{"a": 1e6000}',
    "1e-16000",
    DEEP,
    '{"a":' * 1500 + "1" + "}" * 1500,
    '"' + "x" * 300_000 + '"',
]
TEXTS = [None, "", "x", "\n", "\x1b[31m", "\u202e", "x" * 100_000, "\U0001f4a5"]
HISTORIES = ["[]", "null", "{}", "[1]", '[{"id": "x"}]', DEEP]

Values = dict[str, Any]


def registry() -> JobRegistry:
    """Return handlers, one that fails at times."""
    made = JobRegistry()

    @made.handler()
    async def works(payload: Any) -> object:
        return payload

    @made.handler(retry=RetryPolicy(base_seconds=0.1))
    async def fails(payload: Any) -> None:
        raise ValueError("\u2192 no luck")

    @made.handler(retry=RetryPolicy(base_seconds=0.1))
    def thread(payload: Any) -> None:
        raise KeyboardInterrupt

    @made.handler()
    async def good(payload: Any) -> int:
        return 1

    return made


class Shapes:
    """Makes rows."""

    def __init__(self, seed: int, workers: list[uuid.UUID]) -> None:
        self.random = random.Random(seed)  # of a test
        self.workers = workers
        self.executions = [uuid.UUID(int=number) for number in range(100, 110)]

    def one(self, of: Any) -> Any:
        """Choose."""
        return self.random.choice(of)

    def job(self) -> Values:
        """Make a job's row: one whose columns fit each other, mostly, and then some of them changed."""
        finished = {"completed_at": self.one(TIMES)}
        held = {
            "locked_by": self.one([*self.workers, *IDS, uuid.uuid4()]),
            "current_execution_id": self.one([*self.executions, uuid.uuid4()]),
            "lease_expires_at": self.one(TIMES),
        }
        shape: Values = self.one([
            {"status": "pending", "attempts": self.one([0, 0, 1])},
            {"status": "running", "attempts": self.one([0, 1, 3]), **held},
            {"status": "cancelled", **finished},
            {"status": "cancelled", **finished, **held},
            {"status": "completed", **finished},
        ])  # fmt: skip
        shape |= {
            "id": self.one(IDS) if self.random.random() < 0.2 else uuid.uuid4(),
            "org_id": self.one([OURS, OURS, uuid.UUID(int=0), uuid.uuid4()]),
            "queue_name": self.one(QUEUES),
            "job_type": self.one(TYPES),
            "payload": self.one(DOCUMENTS),
            "max_attempts": self.one([3, 3, 1, 1000]),
        }
        more: Values = {
            "priority": self.one([-32768, -1, 0]),
            "scheduled_at": self.one(TIMES),
            "started_at": self.one([None, *TIMES]),
            "created_at": self.one(TIMES),
            "error_message": self.one(TEXTS),
            "result": self.one([None, *DOCUMENTS]),
            "progress": self.one([None, 0.3, 1]),
            "progress_message": self.one(TEXTS),
            "unique_key": self.one([None, "k", "", "x" * 2600]),
            "awaited": self.one([True, False]),
            "attempts": self.one([0, 1, 1000]),
            "max_attempts": self.one([0, 1, 1000]),
            "suspicion": self.one([None, "parked", "on_trial", "guilty"]),
            "suspected_with": self.one([None, *self.workers, *IDS]),
            "locked_by": self.one([None, *self.workers, *IDS]),
            "current_execution_id": self.one([None, *self.executions]),
            "lease_expires_at": self.one([None, *TIMES]),
            "completed_at": self.one([None, *TIMES]),
        }
        if self.random.random() < 0.3:
            more |= {"suspicion": self.one(["parked", "on_trial", "guilty"]), "suspected_with": self.one([*self.workers, *IDS])}
        names = self.random.sample(list(more), self.random.randrange(5))
        return shape | {name: more[name] for name in names}

    def letter(self) -> Values:
        """Make a dead letter."""
        job = self.job()
        return {
            **{name: job[name] for name in ("id", "org_id", "queue_name", "job_type", "payload", "max_attempts")},
            "priority": 0,
            "scheduled_at": self.one(TIMES),
            "attempts": self.one([0, 1, -1]),
            "unique_key": self.one([None, "k"]),
            "created_at": self.one(TIMES),
            "reason": self.one(["exhausted", "lost"]),
            "error_message": self.one(TEXTS),
            "history": self.one(HISTORIES),
            "died_at": self.one(TIMES),
        }

    def execution(self) -> Values:
        """Make an entry of a history."""
        return {
            "id": self.one(self.executions),
            "job_id": self.one(IDS),
            "org_id": self.one([OURS, uuid.UUID(int=0)]),
            "attempt": self.one([1, 2**31 - 1]),
            "worker_id": self.one([None, *self.workers]),
            "outcome": self.one(["lost", "completed", "failed"]),
            "started_at": self.one(TIMES),
            "ended_at": self.one(TIMES),
            "error_message": self.one(["the worker died", *TEXTS]),
        }

    def worker(self) -> Values:
        """Make the row of a worker that there is not."""
        return {
            "worker_id": self.one(IDS),
            "host": self.one(["", "h", "x" * 10_000]),
            "pid": self.one([-1, 0, 2**31 - 1]),
            "queues": self.one([[], QUEUES, ["default"]]),
            "slots": self.one([-1, 0, 1, 2**31 - 1]),
            "version": "",
            "state": self.one(["running", "draining", "stopped"]),
            "started_at": self.one(TIMES),
            "last_beat_at": self.one(TIMES),
            "has_session": self.one([True, False]),
            "session_lost_at": self.one([None, *TIMES]),
            "lease_seconds": self.one([0, -1, 1, 1e9, 1e300, "Infinity", "NaN"]),
        }

    def sleeper(self) -> Values:
        """Make a sleeper that there is not."""
        return {"queue_name": self.one(QUEUES), "worker_id": self.one([*IDS, uuid.uuid4()]), "expects_at": self.one(TIMES)}

    def statement(self) -> tuple[str, tuple[Any, ...]]:
        """Make a statement that puts a row in, or changes one."""
        kind = self.random.random()
        if kind < 0.5:
            return insert("jobs", self.job())
        if kind < 0.6:
            made = [("dead_letter_jobs", self.letter), ("job_executions", self.execution), ("worker_heartbeats", self.worker),
                    ("sleepers", self.sleeper)]  # fmt: skip
            table, make = self.one(made)
            return insert(table, make())
        if kind < 0.7:
            values = self.job()
            named = {name: values[name] for name in ("job_type", "payload", "org_id", "queue_name", "max_attempts")}
            named |= {"scheduled_at": self.one(TIMES), "unique_key": self.one([None, "k"])}
            return f"select pgnotifyq.enqueue({', '.join(f'{name} => %s' for name in named)})", tuple(named.values())
        if kind < 0.95:
            values = self.job()
            names = self.random.sample(list(values), self.random.randrange(1, 4))
            changed = ", ".join(f"{name} = %s" for name in names)
            where = self.one(["true", "status = 'running'", "is_held", "status = 'pending'", "completed_at is not null"])
            chosen = f"select id from pgnotifyq.jobs where {where} and job_type <> 'good' order by random() limit 1"
            return f"update pgnotifyq.jobs set {changed} where id = ({chosen})", tuple(values[name] for name in names)
        others: list[tuple[str, tuple[Any, ...]]] = [
            (
                "delete from pgnotifyq.jobs where id = (select id from pgnotifyq.jobs where job_type <> 'good' order by random() limit 1)",
                (),
            ),
            ("delete from pgnotifyq.job_executions where job_id = %s", (self.one(IDS),)),
            ("delete from pgnotifyq.worker_heartbeats where worker_id = %s", (self.one(self.workers),)),
            ("select pgnotifyq.requeue(%s)", (self.one(IDS),)),
            ("select pgnotifyq.requeue_all(null, null, 3)", ()),
            ("select pgnotifyq.cancel(%s)", (self.one(IDS),)),
            ("select pgnotifyq.await_job(%s)", (self.one(IDS),)),
            ("select * from pgnotifyq.prune(0, null, 3)", ()),
            ("select pgnotifyq.release_all(%s)", (self.one(IDS),)),
            ("update pgnotifyq.job_troubles set look_at = %s", (self.one(TIMES),)),
        ]
        return others[self.random.randrange(len(others))]


def insert(table: str, values: Values) -> tuple[str, tuple[Any, ...]]:
    """Return an insert of one row."""
    return f"insert into pgnotifyq.{table} ({', '.join(values)}) values ({', '.join(['%s'] * len(values))})", tuple(
        values.values()
    )


@pytest.fixture
async def writers(dsn: str, connection: Connection[Any]) -> AsyncIterator[list[Connection[Any]]]:
    """Give sessions of the roles that may insert: the owner, a worker's own role that is no superuser, and, seldom, a tenant."""
    role = f"row_fuzz_{uuid.uuid4().hex[:8]}"
    await connection.execute(f"create role {role} login password '{PASSWORD}'".encode())
    await connection.execute(f"grant usage on schema pgnotifyq to {role}".encode())
    await connection.execute(f"grant all on all tables in schema pgnotifyq to {role}".encode())
    try:
        async with open_connection(dsn) as owner, open_connection(dsn) as worker, open_connection(dsn) as tenant:
            await worker.execute(f"set role {role}".encode())
            await tenant.execute(f"set role {await tenant_role(owner)}".encode())
            await tenant.execute(f"set pgnotifyq.org_id = '{OURS}'".encode())
            for session in (owner, worker, tenant):
                await session.execute(b"set lock_timeout = '2s'")
            yield [owner, owner, worker, worker, tenant]
    finally:
        with trio.CancelScope(shield=True):
            await connection.execute(f"drop owned by {role}".encode())
            await connection.execute(f"drop role {role}".encode())


async def test_rows_of_every_shape(place: Workplace, writers: list[Connection[Any]]) -> None:
    """Whatever rows there are, no worker ends, what comes through the door is run, and the readers read."""
    ends_at = time.monotonic() + SECONDS
    workers = [
        await place.start(registry(), lease_seconds=2.0, queues=["default", "other"], retention_seconds=1.0) for _ in range(2)
    ]
    seed = 8
    while True:
        shapes = Shapes(seed, [worker.handle.worker_id for worker in workers])
        taken = 0
        for number in range(1, STATEMENTS + 1):
            statement, parameters = shapes.statement()
            writer = shapes.one(writers)
            try:
                await writer.execute(statement.encode(), parameters)
                taken += 1
            except psycopg.Error:
                pass
            assert not writer.closed
            if number % BATCH == 0:
                good = await place.enqueue("good")
                await place.until("exists (select from pgnotifyq.jobs where id = %s and status = 'completed')", good)
                assert not [worker.log.told for worker in workers if worker.ended.is_set()], (seed, statement, parameters)
        assert taken > STATEMENTS / 3
        async with open_client(place.dsn) as client:
            await client.jobs(limit=1000)
            await client.dead(limit=1000)
            await client.stats()
            await client.workers()
            for (job_id,) in await fetch(place.connection, "select id from pgnotifyq.jobs where job_type <> 'good' limit 20"):
                await client.history(job_id)
                try:
                    await client.explain(job_id)
                except JobNotFound:  # it died, or was pruned: the workers go on meanwhile
                    assert not await fetch(place.connection, "select from pgnotifyq.jobs where id = %s", job_id)
        if time.monotonic() >= ends_at:
            return
        seed = random.SystemRandom().randrange(2**32)
        print(f"seed {seed}")  # of the long form
        await place.connection.execute("delete from pgnotifyq.jobs")
