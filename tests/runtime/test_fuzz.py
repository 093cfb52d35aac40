"""Hostile payloads that got in by raw SQL: none stops a worker, none is left half-done, and the next job runs."""

from __future__ import annotations

import json
from typing import Any

import attrs
import psycopg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgnotifyq import EventName, Job, JobContext, JobRegistry
from pgnotifyq.wire.connection import open_connection
from tests.asked import fetch
from tests.runtime.support import Workplace, open_workplace

# What PostgreSQL takes for jsonb, and Python or a handler's type may not; some of it PostgreSQL refuses, too.
HOSTILE = [
    "1e5000", "-1e5000", "1e-5000", "9" * 5000, "[" + "1," * 50_000 + "1]", "[" * 1500 + "]" * 1500, "[" * 10_000 + "]" * 10_000,
    '{"a":' * 1500 + "1" + "}" * 1500, '"' + "x" * 2_000_000 + '"', '"\\u0000"', '"\\ud800"', '"\\udc00\\ud800"', '"\\ud83d\\udca5"',
    '{"path": null, "width": 1e400}', '{"path": "a", "width": 1.5}', '{"path": "a", "width": true}', '{"path": "a", "width": 1e5000}',
    '{"path": "a", "width": 1, "tags": [' + "[]," * 9 + "[]]}", '{"__class__": "x", "__proto__": {}}', '{"": ""}', "null", "true", "[]",
]  # fmt: skip


@attrs.frozen
class Resize:
    """A payload with a type that hardly any of these fit."""

    path: str
    width: int = 1
    scale: float = 1.0
    tags: tuple[str, ...] = ()
    more: dict[str, int] = attrs.field(factory=dict)


def registry() -> JobRegistry:
    """Return a handler of each kind, each of which looks at all that it is given."""
    made = JobRegistry()

    @made.handler()
    async def typed(payload: Resize) -> str:
        return repr(payload)[:100]

    @made.handler()
    async def untyped(payload: Any, ctx: JobContext) -> object:
        return payload  # as its result, which has bounds of its own

    @made.handler()
    async def mapping(payload: dict[str, Any]) -> str:
        return repr(payload)[:100]

    @made.handler()
    def thread(payload: str) -> str:
        return payload.upper()

    class Whole:
        job_type = "whole"

        async def handle(self, job: Job) -> object:
            return job.payload

    made.register(Whole())
    return made


TYPES = ["typed", "untyped", "mapping", "thread", "whole"]
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["path", "width", "scale", "tags", "more", ""]), inner)
    ),
    max_leaves=8,
).map(json.dumps)
payloads = st.lists(st.tuples(st.sampled_from(TYPES), st.sampled_from(HOSTILE) | plain), min_size=30, max_size=30)


@settings(max_examples=4, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(payloads)
async def test_hostile_payloads(dsn: str, payloads: list[tuple[str, str]]) -> None:
    """Each is refused by PostgreSQL, or ends: completed, or dead as undecodable or failed. The job behind them is completed."""
    # Fixtures are made once for all examples, and those that are tasks have ended by the second.
    async with open_connection(dsn) as connection, open_workplace(dsn, connection) as place:
        await connection.execute("truncate pgnotifyq.jobs, pgnotifyq.job_executions, pgnotifyq.dead_letter_jobs")
        await run_all(place, payloads)


def is_json_of_pythons(payload: str) -> bool:
    """Tell whether Python can read what PostgreSQL could."""
    try:
        json.loads(payload)
    except (ValueError, RecursionError):
        return False
    return True


async def run_all(place: Workplace, payloads: list[tuple[str, str]]) -> None:
    """Have a worker meet them, and look at what became of each."""
    made: dict[Any, str] = {}
    for job_type, payload in payloads:
        try:
            rows = await fetch(
                place.connection,
                "insert into pgnotifyq.jobs (job_type, payload, max_attempts, priority) values (%s, %s, 1, 9) returning id",
                job_type,
                payload,
            )
        except (psycopg.DataError, psycopg.errors.StatementTooComplex):
            continue
        made[rows[0][0]] = payload
    last = await place.enqueue("mapping")
    worker = await place.start(registry(), concurrency=8)
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=last)
    for job_id in made:
        await place.until("not exists (select from pgnotifyq.jobs where id = %s and completed_at is null)", job_id)
    left = await fetch(place.connection, "select status, count(*) from pgnotifyq.jobs group by status")
    dead = dict(await fetch(place.connection, "select id, reason from pgnotifyq.dead_letter_jobs"))
    assert {status for status, _ in left} == {"completed"}
    assert set(dead.values()) <= {"undecodable", "exhausted"}
    assert sum(count for _, count in left) + len(dead) == len(made) + 1
    for job_id, payload in made.items():
        assert is_json_of_pythons(payload) or dead[job_id] == "undecodable"
    assert not worker.ended.is_set()
