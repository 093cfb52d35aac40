"""A model of everybody who uses the queue, let loose on the real SQL: whatever they do in whatever order, the invariants hold.

Hypothesis chooses who does what: producers, workers that claim, renew, settle, crash and come back, people who cancel, meddle,
requeue and purge, and a clock that only rules move. Executions are never forgotten, so that each rule that takes one meets zombies
as often as owners; whether one is stale is read off the event log (`eventlog.py`), which also checks every row written. What a rule
adds is what its caller was told.

Here: I1 to I8, I10, I12, I13, I14 and I16. I9 beyond the database, and I11 (limits), belong to running workers; I15 (schedules) to a
feature to come. One session writes at a time; two at once are in `test_races.py`.

    PGNOTIFYQ_EXAMPLES=5000 python -m pytest -s tests/ledger/test_stateful.py     # random, and as long as you like
"""

from __future__ import annotations

import os
import uuid
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import attrs
import psycopg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pgnotifyq.ledger import bulk, end, enqueue
from pgnotifyq.ledger.enqueue import new_ids
from pgnotifyq.ledger.errors import ILLEGAL_TRANSITION, INVALID_JOB, translated
from pgnotifyq.ledger.statements import call
from pgnotifyq.model.errors import InvalidJob
from pgnotifyq.model.job import ExecutionId, JobId, Lease, OrgId, WorkerId
from pgnotifyq.model.new_job import NewJob
from pgnotifyq.model.outcome import PLAIN_COMPLETION, Outcome, SettleKind
from pgnotifyq.model.payload import decode, encode
from pgnotifyq.model.states import FINISHED, LEGAL_STATUS_CHANGES, STORED, Status
from pgnotifyq.wire.asking import ask_blocking
from tests.ledger.conftest import TABLES
from tests.ledger.eventlog import Entry, EventLog, install
from tests.ledger.support import ENDINGS, SCHEMA

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

EXAMPLES = int(os.environ.get("PGNOTIFYQ_EXAMPLES") or 0)
EXAMPLES_CI = 250
STEPS_MAX = 50

BEGINNING = datetime(2030, 1, 1, tzinfo=UTC)
GRACE_SECONDS = 2.0
WORKERS = tuple(WorkerId(uuid.UUID(int=0xA0 + place)) for place in range(3))
WITHOUT_SESSION = WORKERS[-1]  # behind a pooler: only its beats speak for it
TENANTS = tuple(OrgId(uuid.UUID(int=0x10 + place)) for place in range(2))
QUEUES = ("default", "mails")

# What a worker may ask for at an execution's end. Those that bury say why, so that `exhausted` is never said by them.
ASKED: dict[str, Outcome] = {
    **{name: ending for name, ending in ENDINGS.items() if ending.kind is not SettleKind.BURY},
    "retry at once": Outcome(kind=SettleKind.RETRY, name="timed_out", error_message="too slow"),
    "discard": Outcome(kind=SettleKind.BURY, name="discarded", error_message="hopeless", reason="discarded"),
    "undecodable": Outcome(kind=SettleKind.BURY, name="undecodable", error_message="what?", reason="undecodable"),
}
LAST = sorted(name for name, ending in ASKED.items() if ending.kind in {SettleKind.COMPLETE, SettleKind.CANCEL, SettleKind.BURY})

# JSON that nobody means well with, as raw SQL would send it.
HOSTILE = (
    "", "nul", "NaN", '{"a": Infinity}', '"\\u0000"', '"\\ud800"', "1e5000", "-1e-5000", "9" * 5000, "[" * 10_000 + "]" * 10_000,
    "[" * 1500 + "]" * 1500, '{"a": 1, "a": 2}', "null", "[]", '"text"', '{"": ""}', '"' + "x" * 1_048_575 + '"', "\u2028", '"\ufeff"',
)  # fmt: skip
WRONG: tuple[dict[str, Any], ...] = (
    {"job_type": ""}, {"job_type": "no spaces"}, {"queue_name": "x" * 64}, {"priority": 40_000}, {"max_attempts": 0},
)  # fmt: skip
SWITCHES = ("seqscan", "indexscan", "indexonlyscan", "bitmapscan", "nestloop", "hashjoin", "mergejoin", "hashagg", "material",
            "sort")  # fmt: skip
# What a planner comes to that has never seen the table, or believes it to be empty: loops that run a subselect again for each row.
LOOPS_ONLY = frozenset({"hashjoin", "mergejoin", "hashagg", "material", "sort"})

seen: Counter[str] = Counter()  # situations, in all examples of a run

# Rules are chosen alike; what is done now and then would crowd out the work.
now_and_then = precondition(lambda self: self.steps % 4 == 0)


@attrs.frozen
class Execution:
    """What a worker remembers of a claim, for ever."""

    lease: Lease
    worker_id: WorkerId


Whose = JobId | Execution


@attrs.frozen
class Batch:
    """A settlement that was sent, and what was told: the reply may have been lost."""

    worker_id: WorkerId
    asked: tuple[tuple[Execution, Outcome], ...]
    told: dict[JobId, str]


class Everything:
    """Stands for Hypothesis's choice of rules for an example."""

    def is_enabled(self, _: str) -> bool:
        return True


class Everybody(RuleBasedStateMachine):
    """All who use one queue, at one session: what they were told is kept here, what is true in the log."""

    def __init__(self, connection: psycopg.Connection[Any], sessions: psycopg.Connection[Any]) -> None:
        super().__init__()
        self.connection = connection
        self.sessions = sessions  # holds the locks of the workers that are alive
        for each in (connection, sessions):
            each.execute("reset all")
            # The rules switch plans off in this session. Until PostgreSQL 17 what then remains is so dear that a server with LLVM
            # would compile every statement of the test.
            each.execute("set jit = off")
        connection.execute(
            f"truncate {', '.join(f'{SCHEMA}.{table}' for table in TABLES)}, watched.log, watched.effects".encode()
        )
        sessions.execute("select pg_advisory_unlock_all()")
        self.steps = 0  # made
        self.now = BEGINNING
        self._pass_time(0)
        self.log = EventLog(connection)
        self.enqueued: dict[JobId, NewJob | None] = {}  # acknowledged; None: by raw SQL
        self.cancelled: set[JobId] = set()  # accepted
        self.effects: set[JobId] = set()  # acknowledged
        self.last_claimed: dict[WorkerId, tuple[Any, ...]] = {}  # where it may go on: queue, priority, time, id
        self.alive: set[WorkerId] = set()
        self.asleep: set[WorkerId] = set()

    jobs = Bundle("jobs")
    executions = Bundle("executions")
    batches = Bundle("batches")
    somebody = st.one_of(jobs, executions)  # each stands for its job
    workers = st.sampled_from(WORKERS)
    tenants = st.sampled_from(TENANTS)
    queues = st.sampled_from(QUEUES)
    limits = st.integers(1, 4)
    plans = st.one_of(st.just(LOOPS_ONLY), st.frozensets(st.sampled_from(SWITCHES)))
    plan_modes = st.sampled_from(["auto", "force_custom_plan", "force_generic_plan"])
    new_jobs = st.builds(
        NewJob,
        job_type=st.sampled_from(["noop", "resize"]),
        payload=st.sampled_from([None, {"a": [1, None, "x"]}, [], "text", {"": {"b": 0.5}}]),
        org_id=tenants,
        queue_name=queues,
        priority=st.integers(-1, 1),
        delay_seconds=st.sampled_from([None, None, None, 5.0, 100.0]),
        max_attempts=st.integers(1, 3),
        unique_key=st.sampled_from([None, None, "k", "l"]),
    )

    # What everybody does.

    @initialize(target=jobs, new=st.lists(new_jobs, min_size=1, max_size=4), all_come=st.sampled_from([True, True, False]))
    def there_is_work(self, new: list[NewJob], all_come: bool) -> Any:
        if all_come:
            # Left alone, Hypothesis forbids half of the rules, on average, in each example. That finds what needs a crowd of one
            # kind, and seldom what needs several kinds to meet.
            self._rules_strategy.enabled_rules_strategy = st.just(Everything())  # type: ignore[arg-type]
        return multiple(*self._enqueue(new, "at once", "committed"))

    @initialize(off=plans, mode=plan_modes)
    def the_planner_is_as_it_is(self, off: frozenset[str], mode: str) -> None:
        self._turn(off, mode)

    @initialize(target=executions, worker=workers, max_attempts=st.integers(1, 3))
    def somebody_works(self, worker: WorkerId, max_attempts: int) -> Any:
        self._enqueue(
            [NewJob(job_type="noop", org_id=tenant, max_attempts=max_attempts) for tenant in TENANTS], "at once", "committed"
        )
        return multiple(*self._claim(worker, list(QUEUES), 4, 60.0))

    @rule(
        target=jobs,
        new=st.lists(new_jobs, min_size=1, max_size=4),
        how=st.sampled_from(["one by one", "at once"]),
        fate=st.sampled_from(["committed", "rolled back"]),
    )
    def enqueue(self, new: list[NewJob], how: str, fate: str) -> Any:
        return multiple(*self._enqueue(new, how, fate))

    @rule(target=executions, worker=workers, job=new_jobs)
    def enqueue_and_claim(self, worker: WorkerId, job: NewJob) -> Any:
        self._arrive(worker)
        job = attrs.evolve(job, delay_seconds=None, unique_key=None)
        job_id, execution_id = map(JobId, new_ids(2))
        is_taken = any(self._is_due(row) for row in self.log.jobs.values() if row["queue_name"] == job.queue_name)
        ((is_claimed, _),) = self._call(
            "enqueue_claimed", "uuid uuid uuid float8 uuid text text text smallint integer", job_id, execution_id, worker, 60.0,
            job.org_id, job.queue_name, job.job_type, encode(job.payload), job.priority, job.max_attempts,
        )  # fmt: skip
        assert list(self._acknowledged([job], [job_id], self._read("enqueue and claim"))) == [job_id]
        assert is_claimed == (not is_taken) == (self.log.live(str(job_id)) == str(execution_id)), (
            "it jumped the queue, or was left"
        )
        self._saw("enqueued and claimed")
        return Execution(Lease(job_id, ExecutionId(execution_id)), worker) if is_claimed else multiple()

    @now_and_then
    @rule(target=jobs, payload=st.sampled_from(HOSTILE), org_id=tenants)
    def enqueue_something_hostile(self, payload: str, org_id: OrgId) -> Any:
        statement = f"select {SCHEMA}.enqueue('noop', %s::jsonb, %s)".encode()
        refused: psycopg.Error | None = None
        try:
            ((job_id,),) = self.connection.execute(statement, (payload, org_id)).fetchall()
        except psycopg.Error as error:
            refused = error
        if refused is not None:
            is_told_so = isinstance(refused, (psycopg.DataError, psycopg.errors.StatementTooComplex))
            assert is_told_so or refused.sqlstate == INVALID_JOB, f"not a refusal: {refused!r}"
            assert self._read() == [], f"refused, and written: {refused}"
            self._saw("hostile payload refused")
            return multiple()
        self._read("enqueue")
        self.enqueued[job_id] = None
        self._saw("hostile payload let in")
        return job_id

    @now_and_then
    @rule(wrong=st.sampled_from(WRONG))
    def enqueue_something_wrong(self, wrong: dict[str, Any]) -> None:
        arguments = {"job_type": "noop", **wrong}
        named = ", ".join(f"{name} => %s" for name in arguments)
        with pytest.raises(InvalidJob), translated(SCHEMA):
            self.connection.execute(f"select {SCHEMA}.enqueue({named})".encode(), list(arguments.values()))
        assert self._read() == [], "refused, and written"

    @rule(
        target=executions,
        worker=workers,
        wanted=st.lists(queues, min_size=1, unique=True),
        limit=limits,
        lease_seconds=st.sampled_from([10.0, 60.0]),
        goes_on=st.booleans(),
    )
    def claim(self, worker: WorkerId, wanted: list[str], limit: int, lease_seconds: float, goes_on: bool) -> Any:
        after = self.last_claimed.get(worker, ()) if goes_on else ()
        return multiple(*self._claim(worker, wanted, limit, lease_seconds, after))

    @rule(target=executions, worker=workers, whose=somebody, wanted=st.lists(queues, min_size=1, unique=True))
    def claim_by_name(self, worker: WorkerId, whose: Whose, wanted: list[str]) -> Any:
        self._arrive(worker)
        job_id = _job_of(whose)
        row = self.log.jobs.get(str(job_id))
        is_pending = row is not None and row["status"] == Status.PENDING
        is_for_it = row is not None and self._is_due(row) and row["queue_name"] in wanted
        rows = self._call("claim_named", "uuid text[] uuid float8", worker, wanted, job_id, 60.0)
        entries = self._read("claim")
        if is_for_it:
            (entry,) = entries
            assert [(str(row[0]), str(row[1])) for row in rows] == [(str(job_id), entry.new["current_execution_id"])]
            assert entry.new["locked_by"] == str(worker)
            self._saw("claimed by name")
            return Execution(Lease(job_id, rows[0][1]), worker)
        assert entries == [], "another job than the one that was named"
        assert [row[0] for row in rows] == ([] if is_pending else [None]), "whether it is still there was told wrongly"
        self._saw(f"not claimed by name, {'still' if is_pending else 'not'} there")
        return multiple()

    @rule(
        target=batches,
        first=executions,
        more=st.lists(executions, max_size=3),
        endings=st.lists(st.sampled_from(LAST), min_size=4, max_size=4),
    )
    def finish(self, first: Execution, more: list[Execution], endings: list[str]) -> Batch:
        return self._end([first, *more], endings)

    @rule(
        target=batches,
        first=executions,
        more=st.lists(executions, max_size=3),
        endings=st.lists(st.sampled_from(sorted(ASKED)), min_size=4, max_size=4),
    )
    def settle(self, first: Execution, more: list[Execution], endings: list[str]) -> Batch:
        return self._end([first, *more], endings)

    @rule(target=batches, worker=workers, endings=st.lists(st.sampled_from(sorted(ASKED)), min_size=1, max_size=4))
    def settle_what_it_holds(self, worker: WorkerId, endings: list[str]) -> Any:
        rows = [row for row in self.log.jobs.values() if row["locked_by"] == str(worker)]
        held = [Execution(_lease(row), worker) for row in rows[: len(endings)]]
        return self._end(held, endings) if held else multiple()

    @rule(batch=batches)
    def settle_again_because_the_reply_was_lost(self, batch: Batch) -> None:
        told = self._settle(batch.worker_id, batch.asked)
        assert self._read() == [], "I4: a batch was applied twice"
        for execution, _ in batch.asked:
            job_id = execution.lease.job_id
            was_known = str(execution.lease.execution_id) in self.log.history
            if was_known and batch.told.get(job_id) != "lost":
                recognised = {None, "cancelled", batch.told.get(job_id)}
                assert told.get(job_id) in recognised, f"an ending was not recognised: {told}"
                self._saw("an ending recognised")

    @rule(execution=executions, is_to_end=st.booleans())
    def write_in_a_fenced_transaction(self, execution: Execution, is_to_end: bool) -> None:
        job_id, execution_id = execution.lease
        row = self.log.jobs.get(str(job_id))
        owns = self._owners([execution]) == {job_id}
        truth = "lost" if row is None or not owns else "cancelled" if row["status"] == Status.CANCELLED else "held"
        with self.connection.transaction() as transaction:
            if is_to_end:
                self.connection.execute("insert into watched.effects values (%s, %s)", execution.lease)
            ((held,),) = self._call("still_holds", "uuid uuid", job_id, execution_id)
            assert held == truth, f"I8: told {held} where {truth} is true"
            if held != "held":
                raise psycopg.Rollback(transaction)
            if is_to_end:
                assert self._settle(execution.worker_id, ((execution, PLAIN_COMPLETION),)) == {}
                self.effects.add(job_id)
        entries = self._read("complete")
        is_written = is_to_end and truth == "held"
        assert _jobs_of(entries) == ({job_id} if is_written else set()), "I4"
        self._saw(f"fenced transaction: {truth}")

    @rule(first=executions, more=st.lists(executions, max_size=3), lease_seconds=st.sampled_from([10.0, 60.0]))
    def heartbeat(self, first: Execution, more: list[Execution], lease_seconds: float) -> None:
        batch = _of_one_worker([first, *more])
        owners = self._owners(batch)
        before = dict(self.log.jobs)
        rows = self._call(
            "heartbeat", "uuid uuid[] uuid[] float8", first.worker_id,
            [each.lease.job_id for each in batch], [each.lease.execution_id for each in batch], lease_seconds,
        )  # fmt: skip
        told = {row[0]: row[1] for row in rows}
        entries = self._read()
        assert _jobs_of(entries) == owners, f"I4: renewed by their owners: {owners}, written: {_jobs_of(entries)}"
        for entry in entries:
            changed = {name for name in entry.new if entry.new[name] != entry.old[name]}
            assert changed <= {"lease_expires_at"}, f"a beat changed {changed}"
            assert datetime.fromisoformat(entry.new["lease_expires_at"]) == self.now + timedelta(seconds=lease_seconds)
        for each in batch:
            job_id = each.lease.job_id
            is_stopping = job_id in owners and before[str(job_id)]["status"] == Status.CANCELLED
            truth = "lost" if job_id not in owners else "cancelled" if is_stopping else None
            assert told.get(job_id) == truth, f"a beat was told {told.get(job_id)} where {truth} is true"
            self._saw(f"heartbeat: {truth}")

    @now_and_then
    @rule(execution=executions)
    def report_progress(self, execution: Execution) -> None:
        owners = self._owners([execution])
        ((is_ours,),) = self._call("report_progress", "uuid uuid float4 text", *execution.lease, 0.5, "half-way")
        assert is_ours == bool(owners)
        assert _jobs_of(self._read()) == owners, "I4"

    @now_and_then
    @rule(whose=somebody)
    def wait_for(self, whose: Whose) -> None:
        job_id = _job_of(whose)
        row = self.log.jobs.get(str(job_id))
        ((is_to_end,),) = self._call("await_job", "uuid", job_id)
        assert is_to_end == (row is not None and (row["status"] not in FINISHED or row["is_held"]))
        self._read()

    @rule(whose=somebody, why=st.sampled_from([None, "no longer wanted"]))
    def cancel(self, whose: Whose, why: str | None) -> None:
        job_id = _job_of(whose)
        row = self.log.jobs.get(str(job_id))
        ((told,),) = self._call("cancel", "uuid text", job_id, why)
        entries = self._read("cancel")
        self._saw(f"cancel: {told}")
        if told in {"finished", "unknown"}:
            assert entries == []
            assert (told == "unknown") == (str(job_id) in self.log.removed)
            assert row is None or (row["status"] in FINISHED and not row["is_held"])
            return
        assert row is not None and row["status"] != Status.COMPLETED
        assert (told == "stopping") == row["is_held"]
        self.cancelled.add(job_id)

    @rule(whose=somebody)
    def cancel_by_an_update(self, whose: Whose) -> None:
        job_id = _job_of(whose)
        row = self.log.jobs.get(str(job_id))
        statement = f"update {SCHEMA}.jobs set status = 'cancelled' where id = %s".encode()
        if row is not None and row["status"] == Status.COMPLETED:
            with pytest.raises(psycopg.Error) as caught:
                self.connection.execute(statement, (job_id,))
            assert caught.value.sqlstate == ILLEGAL_TRANSITION
            assert self._read() == [], "I5: refused, and written"
            self._saw("cancel refused")
            return
        updated = self.connection.execute(statement, (job_id,)).rowcount
        assert updated == (row is not None)
        self._read("cancel")
        if updated:
            self.cancelled.add(job_id)

    @now_and_then
    @rule(whose=somebody, status=st.sampled_from(sorted(STORED)))
    def meddle_with_a_status(self, whose: Whose, status: Status) -> None:
        job_id = _job_of(whose)
        row = self.log.jobs.get(str(job_id))
        if row is None or status in {row["status"], Status.CANCELLED}:
            return
        with pytest.raises(psycopg.Error) as caught:
            self.connection.execute(f"update {SCHEMA}.jobs set status = %s where id = %s".encode(), (status, job_id))
        is_legal = (row["status"], status) in LEGAL_STATUS_CHANGES  # but a lease or a time is missing
        assert caught.value.sqlstate == ("23514" if is_legal else ILLEGAL_TRANSITION), caught.value
        assert self._read() == [], "I5: refused, and written"
        self._saw("illegal change refused")

    @rule(seconds=st.sampled_from([0.001, 1.0, 5.0, 11.0, 61.0, 500.0]))
    def time_passes(self, seconds: float) -> None:
        self._pass_time(seconds)

    @rule(worker=workers, limit=limits, after_seconds=st.sampled_from([0.0, 11.0, 61.0]))
    def reclaim(self, worker: WorkerId, limit: int, after_seconds: float) -> None:
        self._pass_time(after_seconds)
        self._reclaim(worker, limit, [])

    @rule(worker=workers)
    def crash(self, worker: WorkerId) -> None:
        """Its session is gone; what it claimed is remembered by nobody but its zombies."""
        if worker in self.alive:
            self._leave(worker)

    @rule(worker=workers, limit=limits)
    def look_for_the_dead(self, worker: WorkerId, limit: int) -> None:
        ((_, dead, _),) = self._call("watch", "uuid float8", worker, GRACE_SECONDS)
        assert self.alive & set(dead) <= {WITHOUT_SESSION}, "I9: a living worker was told dead"
        if dead:
            self._saw("a worker told dead")
        self._reclaim(worker, limit, dead)

    @now_and_then
    @rule(worker=workers)
    def release_all(self, worker: WorkerId) -> None:
        held = self.log.held_by(str(worker))
        ((released,),) = self._call("release_all", "uuid", worker)
        assert released == len(held)
        assert {entry.job_id for entry in self._read("release")} == held
        if held:
            self._saw("everything released")
        if worker in self.alive:
            self._leave(worker)
        self.asleep.discard(worker)

    @now_and_then
    @rule(worker=workers)
    def fall_asleep_or_wake_up(self, worker: WorkerId) -> None:
        self._arrive(worker)
        self._call("wake_up" if worker in self.asleep else "fall_asleep", "uuid text[]", worker, list(QUEUES))
        self.asleep ^= {worker}

    @rule(whose=somebody)
    def requeue(self, whose: Whose) -> None:
        job_id = _job_of(whose)
        letter = self.log.dead.get(str(job_id))
        try:
            ((told,),) = self._call("requeue", "uuid", job_id)
        except psycopg.errors.UniqueViolation:
            assert self._read() == [], "refused, and written"
            assert letter is not None and self._holds_key(letter)
            self._saw("requeue against a unique key")
            return
        entries = self._read("requeue")
        assert told == (letter is not None) and bool(entries) == told
        if letter is not None:
            self._check_restored(entries, {str(job_id): letter})
            self._saw("requeued")

    @now_and_then
    @rule(queue=st.sampled_from([None, *QUEUES]), limit=st.integers(0, 3))
    def requeue_all(self, queue: str | None, limit: int) -> None:
        letters = {job_id: row for job_id, row in self.log.dead.items() if queue in {None, row["queue_name"]}}
        ((restored,),) = self._call("requeue_all", "text text integer", queue, None, limit)
        entries = self._read("requeue")
        self._check_restored(entries, letters)
        left = [row for job_id, row in letters.items() if job_id in self.log.dead]
        assert restored == len(letters) - len(left) <= limit
        assert restored == limit or all(self._holds_key(row) for row in left), f"left behind: {left}"

    @rule(age_seconds=st.sampled_from([0.0, 10.0, 400.0]), at_once=st.integers(1, 5), after_seconds=st.sampled_from([0.0, 11.0]))
    def prune(self, age_seconds: float, at_once: int, after_seconds: float) -> None:
        self._pass_time(after_seconds)
        before = self.now - timedelta(seconds=age_seconds)
        deleted, after_id, is_over = 0, None, False
        while not is_over:
            ((here, after_id),) = self._call("prune", "float8 uuid integer", age_seconds, after_id, at_once)
            assert here <= at_once
            deleted, is_over = deleted + here, after_id is None
        removed = len(self.log.removed)
        entries = self._read("prune")
        gone = [entry.old for entry in entries if entry.relation == "jobs"]
        assert deleted == len(gone) == len(self.log.removed) - removed, "I14: pruned in silence"
        assert all(datetime.fromisoformat(row["completed_at"]) < before for row in gone), "pruned before its time"
        for row in self.log.jobs.values():
            is_over_age = row["completed_at"] is not None and datetime.fromisoformat(row["completed_at"]) < before
            assert row["is_held"] or not is_over_age, f"a pass left this behind: {row}"
        if gone:
            self._saw("pruned")

    @rule(whose=somebody, age_seconds=st.sampled_from([None, 0.0, 10.0]))
    def purge_the_dead(self, whose: Whose, age_seconds: float | None) -> None:
        self._pass_time(1.0)
        job_id = _job_of(whose)
        removed = len(self.log.removed)
        purged = ask_blocking(self.connection, end.purge_dead(SCHEMA, job_id=job_id, older_than_seconds=age_seconds))
        entries = self._read("purge")
        assert purged == len(self.log.removed) - removed, "I14: purged in silence"
        for entry in entries:
            if entry.relation == "dead_letter_jobs":
                is_over_age = age_seconds is not None and datetime.fromisoformat(entry.old["died_at"]) < self.now
                assert entry.job_id == str(job_id) or is_over_age
                self._saw("purged")

    @now_and_then
    @rule(off=plans, mode=plan_modes, is_analyzed=st.booleans())
    def the_planner_turns(self, off: frozenset[str], mode: str, is_analyzed: bool) -> None:
        self._turn(off, mode)
        if is_analyzed:
            self.connection.execute(f"analyze {SCHEMA}.jobs".encode())

    @now_and_then
    @rule(org_id=tenants)
    def look_as_a_tenant(self, org_id: OrgId) -> None:
        tables = {
            "jobs": self.log.jobs.values(), "job_executions": self.log.history.values(), "dead_letter_jobs": self.log.dead.values(),
        }  # fmt: skip
        strangers = [job_id for job_id, row in self.log.jobs.items() if row["org_id"] != str(org_id)]
        with self.connection.transaction(force_rollback=True):
            self.connection.execute("select set_config('pgnotifyq.org_id', %s, true)", (str(org_id),))
            self.connection.execute(
                f"select set_config('role', role_name, true) from {SCHEMA}.roles where kind = 'tenant'".encode()
            )
            for table, rows in tables.items():
                found = self.connection.execute(f"select org_id, count(*) from {SCHEMA}.{table} group by 1".encode()).fetchall()
                ours = sum(row["org_id"] == str(org_id) for row in rows)
                assert found == ([(org_id, ours)] if ours else []), f"I13: {table}: {found}"
            for stranger in strangers:
                ((told,),) = self._call("cancel", "uuid text", stranger, None)
                assert told == "unknown", f"I13: told {told} of another tenant's job"
                touched = self.connection.execute(
                    f"update {SCHEMA}.jobs set status = 'cancelled' where id = %s".encode(), (stranger,)
                )
                assert touched.rowcount == 0, "I13"
        if strangers:
            self._saw("a tenant among strangers")
        assert self._read() == []

    # What holds after every step.

    @invariant()
    def tables_hold_what_was_written_and_told(self) -> None:
        self.steps += 1
        self.log.check_tables()
        assert self.log.born == {str(job_id) for job_id in self.enqueued}, "I1, I2: acknowledged and born are not the same"
        for job_id in map(str, self.cancelled):
            row = self.log.jobs.get(job_id)
            assert job_id in self.log.removed or (row is not None and row["status"] == Status.CANCELLED), f"I10: {row}"
        assert sorted(self.log.effects) == sorted(map(str, self.effects)), "I8: an effect is missing, or happened twice"
        for job_id in map(str, self.effects):
            assert job_id in self.log.removed or self.log.jobs[job_id]["status"] == Status.COMPLETED, "I8: ended otherwise"

    def teardown(self) -> None:
        seen["steps"] += self.steps

    # How they do it.

    def _call(self, function: str, types: str, *arguments: object) -> list[tuple[Any, ...]]:
        return psycopg.RawCursor(self.connection).execute(call(function, types, SCHEMA), arguments).fetchall()

    def _read(self, *verbs: str, dead: Sequence[WorkerId] = ()) -> list[Entry]:
        return self.log.read(verbs, [str(worker) for worker in dead])

    def _saw(self, situation: str) -> None:
        seen[situation] += 1

    def _pass_time(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
        self.connection.execute("select set_config('pgnotifyq.clock', %s, false)", (self.now.isoformat(),))

    def _turn(self, off: frozenset[str], mode: str) -> None:
        values = {**{f"enable_{name}": "off" if name in off else "on" for name in SWITCHES}, "plan_cache_mode": mode}
        self.connection.execute(
            "select set_config(s.name, s.value, false) from unnest(%s::text[], %s::text[]) as s(name, value)",
            (list(values), list(values.values())),
        )
        self.connection.execute("discard plans")

    def _arrive(self, worker: WorkerId) -> None:
        """Register a worker that is not there, its session holding its lock."""
        if worker in self.alive:
            return
        has_session = worker != WITHOUT_SESSION
        if has_session:
            self.sessions.execute(f"select pg_advisory_lock({SCHEMA}.session_key(%s))".encode(), (worker,))
        self._call(
            "register_worker", "uuid text integer text[] integer text boolean float8",
            worker, "here", 1, list(QUEUES), 4, "0", has_session, 60.0,
        )  # fmt: skip
        self.alive.add(worker)

    def _leave(self, worker: WorkerId) -> None:
        if worker != WITHOUT_SESSION:
            self.sessions.execute(f"select pg_advisory_unlock({SCHEMA}.session_key(%s))".encode(), (worker,))
        self.alive.discard(worker)

    def _enqueue(self, new: list[NewJob], how: str, fate: str) -> list[JobId]:
        """Enqueue jobs in one transaction, and return those that are there and new."""
        with self.connection.transaction(force_rollback=fate == "rolled back"):
            if how == "at once":
                job_ids = ask_blocking(self.connection, bulk.enqueue_many(SCHEMA, new))
            else:
                job_ids = [ask_blocking(self.connection, enqueue.enqueue(SCHEMA, job)) for job in new]
        entries = self._read("enqueue")
        if fate == "rolled back":
            assert entries == [], "I2: an enqueue that was rolled back left something"
            return []
        return list(self._acknowledged(new, job_ids, entries))

    def _acknowledged(self, new: list[NewJob], job_ids: list[JobId], entries: list[Entry]) -> Iterator[JobId]:
        """Check an enqueue that was acknowledged, and note the jobs that are new."""
        written = {entry.job_id: entry.new for entry in entries}
        for job, job_id in zip(new, job_ids, strict=True):
            row = self.log.jobs[str(job_id)]
            if job_id in self.enqueued:
                assert job.unique_key is not None and row["status"] not in FINISHED, f"an id was given twice: {row}"
                found = (row["org_id"], row["job_type"], row["unique_key"])
                assert found == (str(job.org_id), job.job_type, job.unique_key), "another's job"
                self._saw("a unique key that was held")
                continue
            assert str(job_id) in written, "I1: acknowledged, and not written"
            told = (job.queue_name or "default", job.job_type, job.priority, job.max_attempts, str(job.org_id), job.unique_key)
            names = ("queue_name", "job_type", "priority", "max_attempts", "org_id", "unique_key")
            assert told == tuple(row[name] for name in names)
            assert datetime.fromisoformat(row["scheduled_at"]) == self.now + timedelta(seconds=job.delay_seconds or 0)
            self.enqueued[job_id] = job
            yield job_id

    def _claim(
        self, worker: WorkerId, wanted: list[str], limit: int, lease_seconds: float, after: tuple[Any, ...] = ()
    ) -> list[Execution]:
        self._arrive(worker)
        types = "uuid text[] integer float8 boolean" + (" text integer timestamptz uuid" if after else "")
        rows = self._call("claim", types, worker, wanted, limit, lease_seconds, worker in self.asleep, *after)
        if is_dry := bool(rows) and rows[-1][0] is None:
            rows.pop()
        entries = self._read("claim")
        assert len(rows) <= limit and len(entries) <= limit, f"I16: {len(rows)} were told, {len(entries)} taken of {limit}"
        assert is_dry == (len(rows) < limit)
        assert [(str(row[0]), str(row[1])) for row in rows] == [(e.job_id, e.new["current_execution_id"]) for e in entries], (
            "what was told is not what was claimed"
        )
        for row, entry in zip(rows, entries, strict=True):
            asked = self.enqueued[row[0]]  # I2
            assert entry.new["locked_by"] == str(worker) and row[3] in wanted
            found = decode(row[5])
            assert asked is None or found == ({} if asked.payload is None else asked.payload), "another payload than was enqueued"
        if rows:
            self.last_claimed[worker] = (rows[-1][3], rows[-1][6], rows[-1][7], rows[-1][0])
        if is_dry and not after:
            due = [row for row in self.log.jobs.values() if self._is_due(row) and row["queue_name"] in wanted]
            assert due == [], f"a claim that had room left these behind: {due}"
        self._saw(f"claim of {len(rows)}")
        return [Execution(Lease(row[0], row[1]), worker) for row in rows]

    def _end(self, executions: list[Execution], endings: list[str]) -> Batch:
        """Settle executions, each in its own way, and check what was written and told."""
        batch = _of_one_worker(executions)
        owners = self._owners(batch)
        stopping = {job_id for job_id in owners if self.log.jobs[str(job_id)]["status"] == Status.CANCELLED}
        asked = tuple(zip(batch, [ASKED[name] for name in endings], strict=False))
        told = self._settle(batch[0].worker_id, asked)
        entries = self._read(*(ending.kind for _, ending in asked))
        assert _jobs_of(entries) == owners, f"I4: settled by their owners: {owners}, written: {_jobs_of(entries)}"
        for (execution, ending), name in zip(asked, endings, strict=False):
            job_id, became = execution.lease.job_id, told.get(execution.lease.job_id)
            if job_id not in owners:
                self._saw(f"{name}: stale")
                self._check_stale(execution, became, ending)
            elif job_id in stopping:
                self._saw(f"{name}: cancelled")
                self._saw("an ending after a cancel")
                assert became == (None if ending.kind is SettleKind.CANCEL else "cancelled"), f"I10: told {became}"
            else:
                self._saw(f"{name}: in time")
                is_dead = ending.kind is SettleKind.RETRY and str(job_id) in self.log.dead
                assert became == ("dead" if is_dead else None), f"{name} was told {became}"
        return Batch(batch[0].worker_id, asked, told)

    def _settle(self, worker: WorkerId, asked: Sequence[tuple[Execution, Outcome]]) -> dict[JobId, str]:
        settlements = [(execution.lease, ending) for execution, ending in asked]
        surprises = ask_blocking(self.connection, end.settle(SCHEMA, worker_id=worker, settlements=settlements))
        return {surprise.job_id: surprise.became for surprise in surprises}

    def _reclaim(self, worker: WorkerId, limit: int, dead: list[WorkerId]) -> None:
        rows = self._call("reclaim", "uuid integer uuid[]", worker, limit, dead)
        if is_over := bool(rows) and rows[-1][0] is None:
            rows.pop()
        entries = self._read("reclaim", dead=dead)
        assert {row[0] for row in rows} == _jobs_of(entries) and len(rows) <= limit
        assert is_over == (len(rows) < limit)
        for job_id, _, _, _, _, became, _ in rows:
            found = "dead" if str(job_id) in self.log.dead else self.log.jobs[str(job_id)]["status"]
            assert became == found, f"told {became}, and it is {found}"
            self._saw(f"reclaimed: {became}")
        if is_over:
            for row in self.log.jobs.values():
                assert not row["is_held"] or datetime.fromisoformat(row["lease_expires_at"]) >= self.now, f"left behind: {row}"
                assert row["locked_by"] not in map(str, dead), f"left with the dead: {row}"
            self.asleep -= set(dead)
            self.alive -= set(dead)

    def _owners(self, batch: Sequence[Execution]) -> set[JobId]:
        """Return the jobs of those executions that hold theirs, by what the log tells."""
        return {each.lease.job_id for each in batch if self.log.live(str(each.lease.job_id)) == str(each.lease.execution_id)}

    def _check_stale(self, execution: Execution, became: str | None, ending: Outcome) -> None:
        """Check what a worker is told that settles an execution which has ended: lost, but for an ending of its own.

        That it was completed, when it asks for something else.
        """
        ended = self.log.history.get(str(execution.lease.execution_id))
        if ended is None or ended["outcome"] == "lost":
            assert became == "lost", f"a zombie was told {became}"
            self._saw("a zombie was told")
        else:
            is_news = ended["outcome"] == "completed" and ending.kind is not SettleKind.COMPLETE
            assert became == "completed" if is_news else became in {None, "cancelled"}

    def _check_restored(self, entries: list[Entry], letters: dict[str, dict[str, Any]]) -> None:
        for entry in entries:
            if entry.relation == "jobs":
                letter = letters[entry.job_id]
                names = set(entry.new) & set(letter) - {"attempts", "scheduled_at", "error_message"}
                assert {name: entry.new[name] for name in names} == {name: letter[name] for name in names}, "not the job it was"

    def _holds_key(self, letter: dict[str, Any]) -> bool:
        """Tell whether an unfinished job holds the unique key of a dead letter."""
        key = (letter["org_id"], letter["job_type"], letter["unique_key"])
        held = [
            (row["org_id"], row["job_type"], row["unique_key"]) for row in self.log.jobs.values() if row["status"] not in FINISHED
        ]
        return letter["unique_key"] is not None and key in held

    def _is_due(self, row: dict[str, Any]) -> bool:
        return row["status"] == Status.PENDING and datetime.fromisoformat(row["scheduled_at"]) <= self.now


def _lease(row: dict[str, Any]) -> Lease:
    return Lease(JobId(uuid.UUID(row["id"])), ExecutionId(uuid.UUID(row["current_execution_id"])))


def _job_of(whose: Whose) -> JobId:
    return whose.lease.job_id if isinstance(whose, Execution) else whose


def _of_one_worker(executions: Sequence[Execution]) -> list[Execution]:
    """Return what one worker would send together: its own, and one execution a job (runtime/executions.py)."""
    mine = {each.lease.job_id: each for each in reversed(executions) if each.worker_id == executions[0].worker_id}
    return sorted(mine.values(), key=lambda each: each.lease)


def _jobs_of(entries: Sequence[Entry]) -> set[JobId]:
    return {JobId(uuid.UUID(entry.job_id)) for entry in entries}


# What a run has to have met, or it proves nothing; and what a long one has to have met as well.
SITUATIONS = (
    *(f"{name}: {how}" for name in ASKED for how in ("in time", "stale")),
    *(f"fenced transaction: {how}" for how in ("held", "cancelled", "lost")),
    *(f"heartbeat: {how}" for how in (None, "cancelled", "lost")),
    *(f"cancel: {told}" for told in ("cancelled", "stopping", "finished")),
    *(f"reclaimed: {became}" for became in ("pending", "dead", "cancelled")),
    *(f"claim of {count}" for count in range(5)),
    "hostile payload refused", "hostile payload let in", "an ending after a cancel", "an ending recognised", "a zombie was told",
    "illegal change refused", "requeued", "a unique key that was held", "pruned", "enqueued and claimed",
    "claimed by name", "not claimed by name, still there", "not claimed by name, not there",
    "a tenant among strangers",
)  # fmt: skip
RARE = (
    *(f"{name}: cancelled" for name in ASKED), "cancel: unknown", "cancel refused", "a worker told dead", "everything released",
    "purged", "requeue against a unique key",
)  # fmt: skip
RARE_EXAMPLES_MIN = 2000


@pytest.mark.timeout(0 if EXAMPLES else 300)
def test_whatever_everybody_does(dsn: str) -> None:
    """In whatever order everybody acts, every invariant holds after every step; a run that has not met every situation is void."""
    seen.clear()
    profile = settings(
        max_examples=EXAMPLES or EXAMPLES_CI,
        stateful_step_count=STEPS_MAX,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    with psycopg.connect(dsn, autocommit=True) as connection, psycopg.connect(dsn, autocommit=True) as sessions:
        install(connection)
        run_state_machine_as_test(lambda: Everybody(connection, sessions), settings=profile)  # type: ignore[arg-type,no-untyped-call,unused-ignore]
    if EXAMPLES:
        print(*(f"{count:8} {situation}" for situation, count in sorted(seen.items())), sep="\n")
    wanted = (*SITUATIONS, *RARE) if profile.max_examples >= RARE_EXAMPLES_MIN else SITUATIONS
    missed = [situation for situation in wanted if not seen[situation]]
    assert not missed, f"void: never met {missed}"
