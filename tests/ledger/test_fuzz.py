"""Hostile arguments: every function and every query of the schema, found in the catalog, so that a new one is fuzzed too.

Whatever they are given they answer or refuse with a typed error, at once. Nothing is half-written, no session is left in a
transaction or holding a lock, and what was not named is not touched.
"""

from __future__ import annotations

import functools
import re
import uuid
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import pq, sql

from pgnotifyq.ledger.statements import files, query
from tests.ledger.conftest import TABLES
from tests.ledger.support import SCHEMA

if TYPE_CHECKING:
    from collections.abc import Iterator

Session = psycopg.Connection[Any]
# A function or query that has not answered by then loops for ever.
OPTIONS = "-c statement_timeout=5s -c lock_timeout=1s"
EXAMPLES = 15  # of each

# By the first two characters: arrays of arrays, data exceptions, integrity constraints, program limits.
ALLOWED_CLASSES = {"0A", "22", "23", "54"}
# 42704: there is no such role. 42602: PostgreSQL before 17 says so of what is no table's name.
ALLOWED = {"PNQ01", "PNQ02", "PNQ03", "PNQ06", "42704", "42602"}

# Jobs that exist, in each state; VICTIM is one that nobody names, held under a lease that nobody knows.
JOBS = [uuid.UUID(int=number) for number in range(1, 6)]
VICTIM, HOLDER = uuid.UUID(int=0xFFFF), uuid.UUID(int=0xEEEE)
OURS = uuid.UUID(int=0xC)

UUIDS = [
    *map(str, JOBS),
    str(OURS),
    "00000000-0000-0000-0000-000000000000",
    "ffffffff-ffff-ffff-ffff-ffffffffffff",
    "no uuid",
    "",
]
TEXTS = ["default", "noop", "complete", "", "complete", "retry", "release", "bury", "cancel", "completed", "failed", "no\nname", "x" * 70_000,
         "\U0001f4a5", "'; drop table jobs", "%s", "null", '{"a": 1}', "1e5000", "[" * 20_000]  # fmt: skip
NUMBERS = ["0", "1", "-1", "32767", "32768", "-32769", "2147483647", "-2147483648", "9223372036854775807", "1e9", "no number"]
FLOATS = ["0", "1", "-1", "0.5", "NaN", "Infinity", "-Infinity", "1e308", "-1e308", "1e-320", "1e400", "86400"]
TIMES = ["now", "infinity", "-infinity", "4713-01-01 BC", "294276-12-31", "294277-01-01", "2000-02-30", "no time"]
DOCUMENTS = [
    "{}",
    "null",
    "1e5000",
    "[" * 6000 + "]" * 6000,
    '"\\u0000"',
    '"\\ud800"',
    "{",
    '{"a": ' + "9" * 5000 + "}",
    '"' + "x" * 70_000 + '"',
]
SCALARS: dict[str, list[str]] = {
    "uuid": UUIDS,
    "text": TEXTS,
    "smallint": NUMBERS,
    "integer": NUMBERS,
    "bigint": NUMBERS,
    "oid": NUMBERS,
    "real": FLOATS,
    "double precision": FLOATS,
    "boolean": ["true", "false", "maybe"],
    "timestamp with time zone": TIMES,
    "jsonb": DOCUMENTS,
    "interval": ["1 s", "-1 s", "infinity", "no interval"],
    "bytea": ["", "\\x00", "\\xzz"],
    "pgnotifyq.jobs": ["(" + "," * 29 + ")", "()", "("],
    "pgnotifyq.dead_letter_jobs": ["(" + "," * 17 + ")", "()", "("],
    "pgnotifyq.ended_attempt": [
        f"({JOBS[1]},{OURS},{OURS},1,2020-01-01,failed,no luck)",
        f"({JOBS[1]},{OURS},,,,,)",
        "(,,,,,,)",
        f"({JOBS[1]},{OURS},{OURS},-1,infinity,nonsense,)",
        "(",
    ],
}


# How many of each, from the first on, are good values.
GOOD = {
    "uuid": 5,
    "text": 3,
    "smallint": 2,
    "integer": 2,
    "bigint": 2,
    "oid": 2,
    "real": 2,
    "double precision": 2,
    "boolean": 2,
} | dict.fromkeys(
    (
        "timestamp with time zone",
        "jsonb",
        "interval",
        "bytea",
        "pgnotifyq.jobs",
        "pgnotifyq.dead_letter_jobs",
        "pgnotifyq.ended_attempt",
    ),
    1,
)


SHORT_NAMES = {"timestamptz": "timestamp with time zone", "float8": "double precision"}


def values(kind: str) -> st.SearchStrategy[str | None]:
    """Return values of a type, as text that PostgreSQL is to read: mostly good, so that one bad one is not hidden by another."""
    if kind.endswith("[]"):
        one = values(kind.removesuffix("[]"))
        rows = st.lists(one, max_size=4).map(literal)
        return st.one_of(st.none(), rows, rows, rows, st.sampled_from(["{}", "{NULL}", "{{1,2},{3,4}}", "[5:6]={1,2}", "{"]))
    kind = SHORT_NAMES.get(kind, kind)
    known = SCALARS[kind]
    good = known[: GOOD[kind]]
    return st.sampled_from([*good * (4 * len(known) // len(good)), None, *known])


def literal(items: list[str | None]) -> str:
    """Return an array as PostgreSQL writes it."""
    quoted = ["NULL" if item is None else '"' + item.replace("\\", "\\\\").replace('"', '\\"') + '"' for item in items]
    return "{" + ",".join(quoted) + "}"


def names() -> list[str]:
    """Return the functions of sql/, by the files that make them: tests are collected before there is a database."""
    made = "".join(text for kind in ("migrations", "functions") for _, text in files(kind))
    each = [
        re.match(r"(\w+)\((.*?)\n *(?:as|begin|return)\b", one, re.DOTALL)
        for one in made.split("create or replace function {schema}.")[1:]
    ]
    return sorted({found[1] for found in each if found is not None and "returns trigger" not in found[2]})


@pytest.fixture(scope="module")
def session(dsn_of_file: str) -> Iterator[Session]:
    """Give a session that waits for nothing for long."""
    with psycopg.connect(dsn_of_file, autocommit=True, options=OPTIONS) as session:
        yield session


@pytest.fixture(scope="module")
def other(dsn_of_file: str) -> Iterator[Session]:
    """Give the session of somebody else, whom none of this may disturb."""
    with psycopg.connect(dsn_of_file, autocommit=True, options=OPTIONS) as other:
        yield other


@functools.cache
def signatures(session: Session) -> dict[str, list[list[str]]]:
    """Return the types of the arguments of each function, once for each way to call it."""
    rows = session.execute(
        "select p.proname, coalesce((select array_agg(format_type(t.id, null) order by t.place) from unnest(p.proargtypes)"
        " with ordinality as t(id, place)), '{}') from pg_proc as p join pg_namespace as n on n.oid = p.pronamespace"
        " where n.nspname = %s and p.prorettype <> 'trigger'::regtype",
        (SCHEMA,),
    ).fetchall()
    found: dict[str, list[list[str]]] = {}
    for name, kinds in rows:
        found.setdefault(name, []).append(kinds)
    return found


def set_up(session: Session) -> None:
    """Make jobs in each state, and the victim."""
    for table in TABLES:
        how = "truncate {}" if table == "org_audit" else "delete from {}"  # rows of the trail are not deleted
        session.execute(sql.SQL(how).format(sql.Identifier(SCHEMA, table)))
    session.execute("select pgnotifyq.register_worker(%s, 'here', 1, '{default}', 1, '0', false, 600)", (OURS,))
    for job_id in (VICTIM, *JOBS[1:4], JOBS[0], JOBS[4]):  # each is claimed before the next is there, but for the last two
        session.execute(
            "insert into pgnotifyq.jobs (id, job_type, unique_key) values (%s, 'noop', %s)",
            (job_id, None if job_id == VICTIM else str(job_id)),
        )
        worker = {VICTIM: HOLDER, JOBS[1]: OURS, JOBS[2]: OURS, JOBS[3]: OURS}.get(job_id)
        if worker is not None:
            session.execute("select pgnotifyq.claim(%s, '{default}', 1, 86400)", (worker,))
    session.execute("update pgnotifyq.jobs set status = 'cancelled' where id = any (%s)", (JOBS[2:3],))
    session.execute(
        "select pgnotifyq.settle(%s, array[id], array[current_execution_id], '{bury}', '{failed}', '{0}', '{no luck}', '{null}', '{null}')"
        " from pgnotifyq.jobs where id = %s",
        (OURS, JOBS[3]),
    )
    # Somebody waits for it already; another who does changes nothing.
    session.execute("update pgnotifyq.jobs set awaited = true where id = %s", (VICTIM,))
    held = session.execute("select count(*) filter (where is_held), count(*) from pgnotifyq.jobs").fetchone()
    assert held == (3, 5)


def everything(session: Session, condition: str = "true") -> list[Any]:
    """Return the rows that a wrong write would change, with their versions."""
    tables = [table for table in TABLES if condition == "true" or table == "jobs"]
    return [
        session.execute(f"select xmin::text, ctid::text, t::text from pgnotifyq.{table} as t where {condition} order by ctid".encode()).fetchall()
        for table in tables
    ]  # fmt: skip


def attempt(session: Session, other: Session, statement: sql.Composed | bytes, parameters: Any) -> None:
    """Run a hostile statement in a session, and check that it harmed neither that one nor anybody else."""
    victim = everything(other, f"id = '{VICTIM}'")
    before = everything(other)
    refused = False
    try:
        # Statements of ours number their values; of the others none has any.
        cursor = (psycopg.RawCursor if isinstance(statement, bytes) else psycopg.Cursor)(session)
        cursor.execute(statement, parameters)
        if cursor.description is not None:
            cursor.fetchall()
    except psycopg.Error as error:
        if error.sqlstate not in ALLOWED and (error.sqlstate or "")[:2] not in ALLOWED_CLASSES:
            raise
        refused = True
    if refused:
        assert everything(other) == before
    assert session.info.transaction_status is pq.TransactionStatus.IDLE
    assert session.execute("select 1").fetchone() == (1,)
    assert everything(other, f"id = '{VICTIM}'") == victim
    # Somebody else's work goes on beside it: nothing is locked, and nothing that was put there is in the way.
    with other.transaction(force_rollback=True):
        made = other.execute("select pgnotifyq.enqueue('noop', queue_name => 'other')").fetchone()
        claimed = other.execute(
            "select id, current_execution_id from pgnotifyq.claim(%s, '{other}', 1, 60)", (HOLDER,)
        ).fetchone()
        assert made and claimed and claimed[0] == made[0]
        surprises = other.execute(
            "select pgnotifyq.complete(%s, array[%s]::uuid[], array[%s]::uuid[])", (HOLDER, *claimed)
        ).fetchall()
        assert surprises == []
        other.execute("select from pgnotifyq.jobs for update")


@pytest.mark.parametrize("name", names())
def test_hostile_arguments_of_a_function(session: Session, other: Session, name: str) -> None:
    """It answers, or refuses with a typed error, and harms nobody."""
    calls = []
    for kinds in signatures(session)[name]:
        target = sql.SQL("select * from {}({})").format(
            sql.Identifier(SCHEMA, name), sql.SQL(", ").join(sql.SQL("%s::" + kind) for kind in kinds)
        )
        calls.append(st.tuples(st.just(target), st.tuples(*map(values, kinds))))
    set_up(other)

    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None)
    @given(st.one_of(calls))
    def fuzz(call: tuple[sql.Composed, tuple[str | None, ...]]) -> None:
        attempt(session, other, *call)

    fuzz()


# Of a program's tests: three that want a transaction, and one that is a script with its value within.
SCRIPTS = {"testing/savepoint", "testing/release", "testing/undo", "testing/stop_clock"}
QUERIES = [name for name, text in files("queries") if "\ncopy " not in text and name not in SCRIPTS]


@pytest.mark.parametrize("name", QUERIES)
def test_hostile_filters_of_a_query(session: Session, other: Session, name: str) -> None:
    """The same for the statements of the doors. The first cast of a value says its type; a value without is a number of rows."""
    statement = query(name, SCHEMA)
    kinds: dict[int, str] = {}
    for place, kind in re.findall(rb"\$(\d+)(?:::([\w\[\]]+))?", statement):
        kinds[int(place)] = kinds.get(int(place)) or kind.decode()
    in_order = st.tuples(*(values(kinds[place] or "bigint") for place in sorted(kinds)))
    set_up(other)

    @settings(max_examples=EXAMPLES if kinds else 1, deadline=None, derandomize=True, database=None)
    @given(in_order)
    def fuzz(parameters: tuple[str | None, ...]) -> None:
        attempt(session, other, statement, parameters or None)

    fuzz()


KINDS = st.sampled_from(["complete", "retry", "snooze", "release", "cancel", "bury"])


@settings(
    max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.tuples(
        st.one_of(KINDS, values("text")),
        st.one_of(st.sampled_from(["completed", "failed", "released", "cancelled"]), values("text")),
        values("double precision"),
        values("text"),
        values("jsonb"),
        st.one_of(st.none(), values("text")),
    )
)
def test_hostile_outcome_of_an_execution_that_holds_its_job(session: Session, ending: tuple[str | None, ...]) -> None:
    """Whoever may write cannot write nonsense: the execution has ended, whole and recorded, or nothing has changed."""
    set_up(session)
    lease = session.execute("select id, current_execution_id from pgnotifyq.jobs where id = %s", (JOBS[1],)).fetchone()
    assert lease is not None
    before = everything(session)
    arrays = [literal([value]) for value in ending]
    try:
        surprises = session.execute(
            "select became from pgnotifyq.settle(%s, array[%s]::uuid[], array[%s]::uuid[], %s::text[], %s::text[], %s::float8[],"
            " %s::text[], %s::text[], %s::text[])",
            (OURS, *lease, *arrays),
        ).fetchall()
    except (psycopg.DataError, psycopg.IntegrityError):
        # What the settler sets apart, and stores without its texts. Anything else it would repeat for ever, or end over.
        assert everything(session) == before
        return
    if ending[0] is None:  # no kind of ending: none was asked for
        assert everything(session) == before
        return
    assert surprises in ([], [("dead",)], [("cancelled",)])
    recorded = session.execute("select outcome from pgnotifyq.job_executions where id = %s", (lease[1],)).fetchall()
    held = session.execute("select from pgnotifyq.jobs where id = %s and is_held", (JOBS[1],)).fetchall()
    assert (len(recorded), len(held)) == (1, 0)


def test_every_function_is_fuzzed(session: Session) -> None:
    """What the files were found to make is what the catalog has."""
    assert names() == sorted(signatures(session))
