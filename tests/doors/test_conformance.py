"""One list of cases through every door: the same answers, the same errors, the same rows left."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

import pgnotifyq
from pgnotifyq.ledger import claim as claim_verbs
from pgnotifyq.ledger import end
from pgnotifyq.model.errors import JobDead, PgnotifyqError, Refused
from pgnotifyq.model.job import NIL_ORG, JobId, Lease
from pgnotifyq.model.registry import JobRegistry
from pgnotifyq.wire.asking import ask_blocking
from tests.doors.every_door import CALLERS, CLIENTS, COARSE, DOORS, Lacks
from tests.doors.test_every_verb import Plainly
from tests.ledger.conftest import TABLES, dsn, dsn_of_file
from tests.ledger.support import ANN, ENDINGS, SCHEMA

__all__ = ["dsn", "dsn_of_file"]

NOBODY = uuid.UUID(int=1)
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
ORG = uuid.UUID(int=3)
TIME = re.compile(r"\d{4}-\d{2}-\d{2}T")
HOSTILE = {"text": 'tab\t "quoted" \\ {a,b} é 🙂', "list": [1, 2.5, None, True], "empty": {}}


class Case:
    """A door under test, what it told, and a worker of SQL beside it."""

    def __init__(self, door: Any, worker: psycopg.Connection[Any]) -> None:
        self._door = door
        self._worker = worker
        self.plainly = Timeless()
        self.told: list[Any] = []

    def do(self, verb: str, *arguments: Any, **named: Any) -> Any:
        """Ask a verb, and note what it told; an error is noted and not raised."""
        answer = None
        try:
            answer = self._door.do(verb, *arguments, **named)
        except Lacks:
            self.told.append(Lacks)
        except (PgnotifyqError, psycopg.Error) as error:
            told = [type(error), self.plainly.put(str(error))]
            if isinstance(error, JobDead):
                told.append(self.plainly.put(error.dead_letter))
            self.told.append(told)
        else:
            self.told.append(self.plainly.put(answer))
        return answer

    def claim(self, queue: str = "default") -> Lease:
        """Have the worker take the one job that is due."""
        found = ask_blocking(
            self._worker, claim_verbs.claim(SCHEMA, worker_id=ANN, queues=[queue], jobs_max=1, lease_seconds=600.0)
        )
        (job,) = found.jobs
        self.plainly.put(job.current_execution_id)  # numbered here, whether or not the door tells of it
        return Lease(job.id, job.current_execution_id)

    def end(self, ending: str, queue: str = "default") -> JobId:
        """Have the worker take the one job that is due, and end it."""
        lease = self.claim(queue)
        ask_blocking(self._worker, end.settle(SCHEMA, worker_id=ANN, settlements=[(lease, ENDINGS[ending])]))
        return lease.job_id

    def rows(self) -> list[Any]:
        """Return what is in the tables, as plain data: ids by order of appearance, no times but each job's delay in seconds."""
        return [[table, *sorted(map(self.plainly.put, self._rows_of(table)), key=repr)] for table in TABLES]

    def _rows_of(self, table: str) -> list[Any]:
        rows = self._worker.execute(
            f"select to_jsonb(t) from pgnotifyq.{table} as t order by coalesce(to_jsonb(t)->>'job_id', to_jsonb(t)->>'id'),"
            " to_jsonb(t)->>'attempt'".encode()
        )
        return [_with_delay(row) for (row,) in rows]


def _with_delay(row: dict[str, Any]) -> dict[str, Any]:
    delay = {}
    if row.get("scheduled_at") == "infinity":
        delay = {"delay": "for ever"}
    elif row.get("scheduled_at") and row.get("created_at"):
        begun, due = (datetime.fromisoformat(row[name]) for name in ("created_at", "scheduled_at"))
        delay = {"delay": str(round((due - begun).total_seconds()))}
    row.pop("awaited", None)  # SQL has no words to wait
    return row | delay


class Timeless(Plainly):
    """Makes answers comparable, times that JSON holds as text included. Ids that each run has have names."""

    def __init__(self) -> None:
        super().__init__()
        self._ids = {str(NIL_ORG): "nil", str(ORG): "org", str(NOBODY): "nobody", str(ANN): "Ann"}

    def put(self, value: Any) -> Any:
        """Return a value as plain data."""
        return "time" if isinstance(value, str) and TIME.match(value) else super().put(value)


def enqueue_with_everything(case: Case) -> None:
    job_id = case.do(
        "enqueue", "resize", HOSTILE, org_id=ORG, queue="images", priority=-5, delay_seconds=600.0, max_attempts=4, unique_key="é"
    )
    case.do("get", job_id)
    case.do("get", str(job_id))
    case.do("explain", job_id)
    case.do("jobs", status="scheduled", queue="images", job_type="resize", org_id=str(ORG), limit=3)
    case.do("stats")


def enqueue_with_nothing(case: Case) -> None:
    case.do("get", case.do("enqueue", "noop"))
    case.do("get", case.do("enqueue", "noop", [1, None]))


def a_key_that_is_held_otherwise(case: Case) -> None:
    by_n = {"unique": pgnotifyq.Unique(by=("n",), on_conflict="replace", while_="pending")}
    first = case.do("enqueue", "noop", {"n": 1, "m": 1}, **by_n)
    assert case.do("enqueue", "noop", {"n": 1, "m": 2}, priority=3, **by_n) == first
    newest = pgnotifyq.Unique(key="k", on_conflict="supersede", scope="global")
    case.do("enqueue", "noop", {"n": 4}, queue="second", unique=newest)
    case.claim("second")
    case.do("enqueue", "noop", {"n": 5}, unique=newest)
    case.do("enqueue_many", [{"job_type": "other", "unique": newest}, {"job_type": "noop"}])
    case.do("enqueue", "noop", unique=pgnotifyq.Unique(key="l", for_seconds=60))


def a_key_that_is_held(case: Case) -> None:
    first = case.do("enqueue", "noop", {"n": 1}, unique_key="k")
    assert case.do("enqueue", "noop", {"n": 2}, unique_key="k") == first
    case.do("enqueue", "noop", {"n": 3}, unique_key="k", org_id=ORG)
    case.do("enqueue_many", [{"job_type": "noop", "unique_key": "k"}, {"job_type": "noop", "unique_key": "l"}])


def many_at_once(case: Case) -> None:
    case.do("enqueue_many", [])
    case.do("enqueue_many", [{"job_type": "noop", "payload": {"n": n}, "priority": n} for n in range(3)])
    case.do("enqueue_many", [{"job_type": "copied", "payload": HOSTILE}] * 101)
    case.do("enqueue_many", [{"job_type": "copied", "unique_key": str(n % 90)} for n in range(102)])


def headers(case: Case) -> None:
    case.do("get", case.do("enqueue", "noop", headers={"trace": "é", "list": [1, None, HOSTILE]}))
    case.do("get", case.do("enqueue", "noop", headers={}))
    case.do("get", case.do("enqueue", "noop", headers={"a": 1}, unique_key="k"))
    case.do("enqueue_many", [{"job_type": "noop", "headers": {"n": n}} if n else {"job_type": "noop"} for n in range(3)])
    case.do("enqueue_many", [{"job_type": "copied", "headers": HOSTILE} if n % 2 else {"job_type": "copied"} for n in range(101)])
    case.do("enqueue", "noop", headers={"long": "x" * 8192})
    case.do("enqueue", "noop", headers=[1])


REFUSALS: list[dict[str, Any]] = [
    {"job_type": "no spaces"},
    {"job_type": ""},
    {"job_type": "a", "queue": ""},
    {"job_type": "a", "priority": 40_000},
    {"job_type": "a", "max_attempts": 0},
    {"job_type": "a", "payload": "x" * 1_048_577},
    {"job_type": "a", "payload": {"nul": "\0"}},
]


def refusals(case: Case) -> None:
    for fields in REFUSALS:
        case.do("enqueue", **fields)
        case.do("enqueue_many", [{"job_type": "fine"}, fields])


def cancels(case: Case) -> None:
    pending = case.do("enqueue", "noop", queue="first")
    case.do("cancel", pending, why="enough é")
    case.do("get", pending)
    case.do("cancel", str(pending))
    running = case.do("enqueue", "noop")
    lease = case.claim()
    case.do("cancel", running, why="enough")
    case.do("cancel", running, wait_seconds=0.05)
    case.do("jobs", status="stopping")
    ask_blocking(case._worker, end.settle(SCHEMA, worker_id=ANN, settlements=[(lease, ENDINGS["cancel"])]))
    case.do("cancel", running, wait_seconds=10.0)
    case.do("cancel", NOBODY)
    case.do("cancel", NOBODY, wait_seconds=1.0)


def waits(case: Case) -> None:
    job_id = case.do("enqueue", "noop")
    case.do("wait", job_id, timeout_seconds=0.05)
    assert case.end("complete") == job_id
    case.do("wait", job_id)
    case.do("wait", str(job_id), 1.0)
    case.do("wait", NOBODY, 1.0)
    case.do("enqueue", "noop")
    case.do("wait", case.end("bury"), 1.0)


def dead_letters(case: Case) -> None:
    case.do("enqueue", "noop", HOSTILE, unique_key="k")
    letter = case.end("bury")
    case.do("get", letter)
    case.do("get_dead", letter)
    case.do("dead", queue="default", job_type="noop", limit=3)
    case.do("dead", org_id="00000000-0000-0000-0000-000000000000", error="OO", died_after=LONG_AGO)
    case.do("dead", error="something else")
    case.do("dead_groups", queue="default", died_after=LONG_AGO)
    case.do("history", letter)
    case.do("requeue", letter)
    case.do("history", letter)
    case.do("requeue", letter)
    case.do("requeue", NOBODY)
    assert case.end("bury") == letter
    case.do("requeue_all")
    assert case.end("bury") == letter
    case.do("purge_dead", job_id=letter)
    case.do("purge_dead", job_id=NOBODY)
    case.do("get_dead", letter)


def letters_that_are_requeued_slowly(case: Case) -> None:
    for _ in range(3):
        case.do("enqueue", "noop")
        case.end("bury")
    case.do("requeue_all", queue="other", per_second=1.0)
    case.do("requeue_all", fingerprint="none")
    case.do("requeue_all", job_type="noop", error="oo", died_after=LONG_AGO, per_second=0.1, limit=2)
    case.do("jobs", status="scheduled")
    case.do("requeue_all", per_second=0.0)
    case.do("dead", died_after=datetime(2000, 1, 1))  # noqa: DTZ001  # it is refused
    case.do("dead", org_id="nobody")
    case.do("dead_groups", limit=-1)


def a_key_that_keeps_a_letter(case: Case) -> None:
    case.do("enqueue", "noop", unique_key="k")
    letter = case.end("bury")
    case.do("enqueue", "noop", unique_key="k")
    case.do("requeue", letter)
    case.do("requeue_all")


def retention(case: Case) -> None:
    case.do("set_retention", "images", 3600.0, ending="cancelled")
    case.do("set_retention", "other", 5.0)
    case.do("set_retention", "images", None)
    case.do("set_retention", "images", -1.0)
    case.do("set_retention", "images", 1.0, ending="nonsense")
    case.do("set_retention", "*", ending="dead", payload_seconds=60.0)
    case.do("set_retention", "*", 1.0, payload_seconds=0.5, result_seconds=0.25)
    case.do("set_retention", "*", ending="dead", result_seconds=60.0)


def looks_at_retention(case: Case) -> None:
    case.do("set_retention", "*", 1e9, ending="completed", payload_seconds=1e8)
    case.do("set_retention", "default", ending="completed", result_seconds=1e7)
    case.do("retention")
    job_id = case.do("enqueue", "noop", {"a": 1})
    case.do("kept", job_id)
    case.do("kept", NOBODY)
    case.do("kept", "no uuid")


def erasures(case: Case) -> None:
    case.do("enqueue", "noop", {"user": 17}, org_id=ORG, unique_key="k")
    case.end("complete")
    case.do("enqueue", "noop", {"user": 17}, org_id=ORG)
    case.end("bury")
    case.do("enqueue", "noop", {"user": 18}, org_id=ORG)
    running = case.claim()
    case.do("enqueue", "noop", {"user": 17})
    whose: list[dict[str, Any]] = [
        {"payload": {"user": 17}, "org_id": ORG}, {"unique_key": "k"}, {"org_id": ORG}, {"payload": {"user": 17}},
    ]  # fmt: skip
    for named in whose:
        case.do("count_erasable", **named)
        case.do("erase", why="request 4711", who="Ann", **named)
    ask_blocking(case._worker, end.settle(SCHEMA, worker_id=ANN, settlements=[(running, ENDINGS["cancel"])]))
    case.do("erase", org_id=ORG, limit=1)
    wrongs: list[dict[str, Any]] = [{}, {"queue": "default"}, {"payload": {}}, {"org_id": ""}, {"org_id": ORG, "limit": 0}]
    for wrong in wrongs:
        case.do("erase", **wrong)


def edits(case: Case) -> None:
    job_id = case.do("enqueue", "noop", {"a": 1}, queue="images")
    case.do("edit", job_id, priority=5, payload={"b": 2})
    case.do("edit", str(job_id), queue="default", delay_seconds=600.0)
    case.do("edit", job_id, delay_seconds=0.0)
    case.do("edit", NOBODY, priority=5)
    case.do("edit", job_id, queue="no such name")
    case.do("edit", job_id, priority=40_000)
    case.claim()
    case.do("edit", job_id, priority=6)


def bulks(case: Case) -> None:
    for n in range(3):
        case.do("enqueue", "noop", {"n": n}, queue="images")
    images = pgnotifyq.JobFilter(queue="images")
    case.do("count", images)
    case.do("count", pgnotifyq.JobFilter())
    case.do("edit_all", images, queue="videos", priority=3, limit=2)
    case.do("cancel_all", images, why="enough")
    case.do("delete_all", pgnotifyq.JobFilter(status="cancelled"))
    case.do("delete_all", images, limit=-1)
    case.do("edit_all", images)
    case.do("jobs")


def pauses(case: Case) -> None:
    waiting = case.do("enqueue", "noop", queue="images")
    case.do("pause", "images", why="S3 is down", who="ann")
    case.do("explain", waiting)
    case.do("pause", "images")
    case.do("pause", job_type="noop")
    case.do("pause", everything=True)
    case.do("pauses")
    for verb in ("pause", "resume"):
        case.do(verb)
        case.do(verb, "images", everything=True)
        case.do(verb, "no such name")
    case.do("resume", "images")
    case.do("resume", "images")
    case.do("resume", job_type="noop")
    case.do("resume", everything=True)


def schedules(case: Case) -> None:
    case.do("schedule", "nightly", "0 3 * * *", "report", {"to": "ann"}, tz="Europe/Berlin", exclude="2026-12-25")
    case.do("schedule", "nightly", "0 3 * * *", "report", {"to": "ann"}, tz="Europe/Berlin", exclude="2026-12-25")
    case.do("schedule", "nightly", ["0 3 * * *", "0 4 * * *"], "report", missed="all", overlap="queue", jitter_seconds=5)
    case.do("schedule", "no name", "0 3 * * *", "report")
    case.do("schedule", "other", "now and then", "report")
    case.do("schedule", "other", "0 3 * * *", "report", tz="Mars/Olympus")
    case.do("schedule", "other", "0 3 * * *", "no type")
    case.do("schedule", "other", "0 3 * * *", "report", missed="some")
    case.do("schedules")
    case.do("upcoming", "nightly", 3)
    case.do("pause_schedule", "nightly", why="holidays", who="ann")
    case.do("resume_schedule", "nightly")
    case.do("resume_schedule", "nightly")
    case.do("run_schedule", "nightly")
    case.do("backfill", "nightly", datetime(2020, 1, 1, tzinfo=UTC), datetime(2020, 1, 3, tzinfo=UTC))
    case.do("backfill", "nightly", datetime(2020, 1, 1, tzinfo=UTC), datetime(2020, 1, 3, tzinfo=UTC))
    case.do("unschedule", "nightly")
    case.do("unschedule", "nightly")
    for verb in ("upcoming", "pause_schedule", "run_schedule"):
        case.do(verb, "nightly")
    case.do("backfill", "nightly", datetime(2020, 1, 1))  # noqa: DTZ001


def drains(case: Case) -> None:
    case.do("drain", "other", timeout_seconds=10.0, why="new disks", who="ann")
    case.do("drain")
    case.do("drain", "no such name")
    case.do("enqueue", "noop")
    lease = case.claim()
    case.do("drain", job_type="noop", timeout_seconds=0.3)
    ask_blocking(case._worker, end.settle(SCHEMA, worker_id=ANN, settlements=[(lease, ENDINGS["retry"])]))
    case.do("drain", job_type="noop", timeout_seconds=10.0)
    case.do("pauses")


def looks_at_nothing(case: Case) -> None:
    for verb in ("get", "get_dead", "explain", "history"):
        case.do(verb, NOBODY)
    for verb in ("jobs", "dead", "workers", "stats"):
        case.do(verb)
    case.do("jobs", status="nonsense")
    case.do("jobs", limit=-1)
    case.do("purge_dead", older_than_seconds=-1.0)
    case.do("purge_dead", older_than_seconds=0.0)


def what_is_no_id(case: Case) -> None:
    for verb in ("get", "get_dead", "history", "explain", "cancel", "wait", "requeue"):
        for wrong in ("no uuid", 7, None):
            case.do(verb, wrong)
    case.do("enqueue", "noop", org_id="nobody")
    case.do("jobs", org_id="nobody")
    case.do("enqueue_many", [{"job_type": "a", "queu": "q"}])
    case.do("enqueue_many", [{"payload": {}}])


def what_became_of_a_key(case: Case) -> None:
    newest = pgnotifyq.Unique(key="k", on_conflict="supersede")
    case.do("enqueue_told", "noop", {"n": 1}, unique=newest)
    case.do("enqueue_told", "noop", {"n": 2}, unique_key="k", queue="q")
    case.do("enqueue_told", "noop", {"n": 3}, unique=newest, priority=2)
    case.do("enqueue_told", "noop")
    mapping = {"job_type": "noop", "unique": pgnotifyq.Unique(by=True, on_conflict="replace")}
    case.do("enqueue_many_told", [mapping, mapping, {"job_type": "noop"}, pgnotifyq.NewJob(job_type="noop", unique=newest)])
    for refused in (pgnotifyq.Unique(key="k", on_conflict="refuse"), pgnotifyq.Unique(by=("n",)), "k"):
        case.do("enqueue", "noop", unique=refused)
        case.do("enqueue_told", "noop", unique=refused)
        case.do("enqueue_many", [{"job_type": "noop"}, {"job_type": "noop", "unique": refused}])
    case.do("enqueue", "noop", unique_key="l", unique=newest)


ENQUEUES: list[Callable[[Case], None]] = [
    enqueue_with_everything, enqueue_with_nothing, a_key_that_is_held, a_key_that_is_held_otherwise, many_at_once, headers, refusals,
]  # fmt: skip
EVERYWHERE: list[Callable[[Case], None]] = [*ENQUEUES, cancels, waits, dead_letters, retention, edits, pauses]
CLIENTS_ONLY: list[Callable[[Case], None]] = [
    a_key_that_keeps_a_letter,
    what_became_of_a_key,
    letters_that_are_requeued_slowly,
    bulks,
    looks_at_retention,
    erasures,
    drains,
    schedules,
    looks_at_nothing,
    what_is_no_id,
]


def told_by(door_name: str, dsn: str, tell: Callable[[Case], None], **options: Any) -> tuple[list[Any], list[Any]]:
    """Go through a case by a door, on empty tables; return what was told, and the rows that are left."""
    with psycopg.connect(dsn, autocommit=True) as worker:
        worker.execute(f"truncate {', '.join(f'pgnotifyq.{table}' for table in TABLES)}".encode())
        with DOORS[door_name](dsn, **options) as door:
            case = Case(door, worker)
            tell(case)
            return case.told, case.rows()


@pytest.mark.parametrize(
    ("door_name", "tell"),
    [(name, tell) for name in DOORS if name != "trio" for tell in (ENQUEUES if name in CALLERS else EVERYWHERE)],
    ids=lambda one: one if isinstance(one, str) else one.__name__,
)
def test_every_door_does_the_same(dsn: str, door_name: str, tell: Callable[[Case], None]) -> None:
    """What a door tells, and what it leaves, is what the client on trio tells and leaves."""
    told, rows = told_by("trio", dsn, tell)
    told_here, rows_here = told_by(door_name, dsn, tell)
    assert rows_here == rows
    if door_name in CLIENTS:
        assert told_here == told
        return
    assert len(told_here) == len(told)
    for here, there in zip(told_here, told, strict=True):
        if here is not Lacks:
            assert coarse(here) == coarse(there)


@pytest.mark.parametrize("tell", CLIENTS_ONLY, ids=lambda tell: str(tell.__name__))
@pytest.mark.parametrize("door_name", [name for name in CLIENTS if name != "trio"])
def test_every_client_does_the_same(dsn: str, door_name: str, tell: Callable[[Case], None]) -> None:
    """Also of what SQL has no words for."""
    assert told_by(door_name, dsn, tell) == told_by("trio", dsn, tell)


def coarse(told: Any) -> Any:
    """Return an answer, or which kind of error it is: SQL words its errors for itself."""
    if isinstance(told, list) and told and isinstance(told[0], type):
        return COARSE.get(told[0], told[0])
    return told


@pytest.mark.parametrize("door_name", CLIENTS)
def test_the_registry_at_every_client(dsn: str, door_name: str, registry: JobRegistry) -> None:
    """A handler's queue and attempts are taken, and what it would refuse is refused."""

    def tell(case: Case) -> None:
        case.do("get", case.do("enqueue", "resize", {"path": "a", "width": 1}))
        case.do("enqueue_many", [{"job_type": "resize", "payload": {"path": "a", "width": 1}, "queue": "q"}])
        case.do("enqueue", "nope")
        case.do("enqueue", "resize", {"path": "a"})
        case.do("enqueue_many", [{"job_type": "plain"}, {"job_type": "resize", "payload": {"path": "a", "width": "wide"}}])

    told, rows = told_by(door_name, dsn, tell, registry=registry)
    assert (told, rows) == told_by("trio", dsn, tell, registry=registry)
    assert told[1]["queue_name"] == "images"
    assert all(issubclass(refused[0], Refused) for refused in told[3:])


def test_a_case_is_told_apart(dsn: str) -> None:
    """The comparison sees another answer, another error and another row."""

    def one(case: Case) -> None:
        case.do("cancel", case.do("enqueue", "noop", {"n": 1}))

    def other(case: Case) -> None:
        case.do("enqueue", "noop", {"n": 2})
        case.do("cancel", NOBODY)

    (told, rows), (told_else, rows_else) = told_by("sync", dsn, one), told_by("sync", dsn, other)
    assert told[1] == "cancelled" and told_else[1] != told[1] and rows != rows_else
