"""An append-only log of every row written to the queue's tables, and a reader that checks what must hold in it.

Triggers that only tests install write down each row before and after. The reader knows what a job's life may look like
(`pgnotifyq/model/states.py` and the invariants), and nothing of how the SQL makes it so: it never says what a call should have
done, only what no call may ever do. A violation is an AssertionError that begins with the invariant's number.

Every entry belongs to a transaction, and what has to happen together is looked for in one: a death is a deleted job, a closed
execution and a dead letter, a requeue a deleted letter and a job.
"""

from __future__ import annotations

import itertools
from collections import Counter
from datetime import datetime
from typing import TYPE_CHECKING, Any

import attrs

from pgnotifyq.model.states import DEAD, FINISHED, LEGAL_STATUS_CHANGES, TRANSITIONS, Status

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Sequence

    import psycopg

Row = dict[str, Any]

LOGGED = ("jobs", "job_executions", "dead_letter_jobs")
# A payload is logged as its digest: hostile ones are deeper than Python's decoder goes.
INSTALL = """
create schema watched;

create table watched.log (
    seq bigint generated always as identity primary key,
    xid text not null default pg_current_xact_id(),
    at timestamptz not null default pgnotifyq.clock(),
    relation text not null,
    op text not null,
    old jsonb,
    new jsonb
);

-- What handlers wrote in their jobs' own transactions.
create table watched.effects (job_id uuid not null, execution_id uuid not null);

create function watched.plain(found jsonb) returns jsonb language sql immutable
as $$ select case when found ? 'payload' then found || jsonb_build_object('payload', md5(found ->> 'payload')) else found end $$;

create function watched.note() returns trigger language plpgsql security definer
as $$
begin
    insert into watched.log (relation, op, old, new)
    values (tg_table_name, lower(tg_op), watched.plain(to_jsonb(old)), watched.plain(to_jsonb(new)));
    return null;
end
$$;
"""
CONTENTS = " union all ".join(
    f"select coalesce(jsonb_agg(watched.plain(to_jsonb(t))), '[]') from {table} as t"
    for table in (*(f"pgnotifyq.{table}" for table in LOGGED), "watched.effects", "(select max(seq) as seq from watched.log)")
)

# What a job is, from enqueue to its end, and again when it has been requeued.
IDENTITY = ("id", "org_id", "queue_name", "job_type", "payload", "priority", "max_attempts", "unique_key", "created_at")
LEASE = ("current_execution_id", "locked_by", "lease_expires_at")
GIVEN_BACK = frozenset({"snoozed", "released"})  # outcomes that do not charge their attempt

# verb -> the changes of status it may make, a death by `retry` and what is two verbs in one statement included.
CHANGES: dict[str, frozenset[tuple[str, str]]] = {
    **TRANSITIONS,
    "enqueue and claim": TRANSITIONS["enqueue"] | {("", Status.RUNNING)},
    "retry": TRANSITIONS["retry"] | TRANSITIONS["bury"],
    "bury": TRANSITIONS["bury"],
    "prune": frozenset((status, "") for status in FINISHED),
    "purge": frozenset({(DEAD, "")}),
}


def install(connection: psycopg.Connection[Any]) -> None:
    """Have every row written to the queue's tables logged, in this database."""
    connection.execute(INSTALL)
    for table in LOGGED:
        connection.execute(
            f"create trigger watched after insert or update or delete on pgnotifyq.{table}"
            " for each row execute function watched.note()".encode()
        )


@attrs.frozen
class Entry:
    """A row written."""

    seq: int
    xid: str
    at: datetime  # on the clock of the session that wrote
    relation: str
    op: str  # insert, update, delete
    old: Row
    new: Row

    @property
    def job_id(self) -> str:
        """The job that the row belongs to."""
        found = self.new or self.old
        return str(found["job_id" if self.relation == "job_executions" else "id"])


class Together:
    """The entries of one transaction, and what it did as a whole."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self.entries = list(entries)
        self.ended = {entry.new["id"]: entry.new for entry in self._those("job_executions", "insert")}
        self.letters = {entry.job_id for entry in self._those("dead_letter_jobs", "insert")}
        self.letters_gone = {entry.job_id for entry in self._those("dead_letter_jobs", "delete")}
        self.jobs = {entry.job_id for entry in self._those("jobs", "insert")}
        self.jobs_gone = {entry.job_id for entry in self._those("jobs", "delete")}
        # Executions that lost their place in `jobs`, each with the row as it was when it did.
        self.closed = {
            entry.old["current_execution_id"]: entry.old
            for entry in self.entries
            if entry.relation == "jobs" and entry.op != "insert" and _ends_an_execution(entry)
        }

    def _those(self, relation: str, op: str) -> list[Entry]:
        return [entry for entry in self.entries if (entry.relation, entry.op) == (relation, op)]


class EventLog:
    """What the log has told so far, each entry checked against all before it."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        self._last_seq = 0
        self.jobs: dict[str, Row] = {}
        self.dead: dict[str, Row] = {}
        self.history: dict[str, Row] = {}  # by execution id, until pruned
        self.claimed: dict[str, Row] = {}  # execution id -> the job as it was claimed; for ever
        self.born: set[str] = set()  # every job there ever was
        self.removed: set[str] = set()  # pruned or purged
        self.effects: list[str] = []  # the jobs whose effects are there, each as often as it happened

    def live(self, job_id: str) -> str | None:
        """Return the execution that holds a job, by what the log tells."""
        found = self.jobs.get(job_id)
        return None if found is None else found["current_execution_id"]

    def held_by(self, worker_id: str) -> set[str]:
        """Return the jobs that a worker holds, by what the log tells."""
        return {job_id for job_id, found in self.jobs.items() if found["locked_by"] == worker_id}

    def read(self, verbs: Sequence[str] = (), dead_workers: Container[str] = ()) -> list[Entry]:
        """Read on to the end, check, and return what was written since the last time.

        Args:
            verbs: what has been called meanwhile; a change of status that is none of theirs is a violation.
            dead_workers: whose leases might be taken before they ran out.
        """
        rows = self._connection.execute(
            "select seq, xid, at, relation, op, coalesce(old, '{}'), coalesce(new, '{}') from watched.log"
            " where seq > %s order by seq",
            (self._last_seq,),
        ).fetchall()
        entries = [Entry(*row) for row in rows]
        for _, together in itertools.groupby(entries, key=lambda entry: entry.xid):
            self._take(Together(together), verbs, dead_workers)
        if entries:
            self._last_seq = entries[-1].seq
        return entries

    def check_tables(self) -> None:
        """Check that the tables hold what the log tells, no more and no less, and what must hold at any one time."""
        tables = [rows for (rows,) in self._connection.execute(CONTENTS.encode()).fetchall()]
        jobs, history, dead = ({row["id"]: row for row in rows} for rows in tables[:3])
        self.effects = [row["job_id"] for row in tables[3]]
        assert (tables[4][0]["seq"] or 0) == self._last_seq, "somebody wrote who was not called"
        assert jobs == self.jobs, "the jobs are not what the log tells"
        assert dead == self.dead, "the dead letters are not what the log tells"
        assert history == self.history, "the history is not what the log tells"

        assert not jobs.keys() & dead.keys(), "I1: a job is alive and dead"
        assert jobs.keys() | dead.keys() | self.removed == self.born, "I1: a job is neither live, finished, dead nor removed"
        by_status = Counter(row["status"] for row in jobs.values())
        assert len(self.born) == by_status.total() + len(dead) + len(self.removed), "I14: the sums do not agree"
        for row in jobs.values():
            held = [row[name] is not None for name in LEASE]
            assert all(held) or not any(held), f"I6: half a lease: {row}"
            assert not held[0] or row["status"] in {Status.RUNNING, Status.CANCELLED}, f"I6: a lease of what does not run: {row}"
            assert held[0] or row["status"] != Status.RUNNING, f"I6: running without a lease: {row}"
            assert row["max_attempts"] is not None or row["attempts"] == 0, (
                f"a claim did not settle how many attempts there are: {row}"
            )
            maximum = row["max_attempts"] or 1
            assert 0 <= row["attempts"] <= maximum, f"I7: more attempts than there may be: {row}"
            assert row["status"] != Status.PENDING or row["attempts"] < maximum, f"I7: exhausted, not dead: {row}"
        executions = [row["current_execution_id"] for row in jobs.values() if row["current_execution_id"]]
        assert len(executions) == len(set(executions)), "I3: an execution holds two jobs"
        assert not self.history.keys() & set(executions), "I3: an execution has ended and holds its job"
        keys = [
            (row["org_id"], row["job_type"], row["unique_key"])
            for row in jobs.values()
            if row["unique_key"] and row["status"] not in FINISHED
        ]
        assert len(keys) == len(set(keys)), "two unfinished jobs have one unique key"

    def _take(self, together: Together, verbs: Sequence[str], dead_workers: Container[str]) -> None:
        allowed: frozenset[tuple[str, str]] = frozenset().union(*(CHANGES.get(verb, ()) for verb in verbs))
        told, true = together.ended.keys(), together.closed.keys()
        assert told == true, f"I3: executions {true} ended, and the history tells of {told}"
        before = {entry.job_id: self._status(entry.job_id) for entry in together.entries}
        for entry in together.entries:
            match entry.relation, entry.op:
                case "jobs", "insert":
                    self._job_inserted(entry, together)
                case "jobs", "update":
                    self._job_updated(entry, together)
                case "jobs", "delete":
                    self._job_deleted(entry, together)
                case "job_executions", "insert":
                    self._execution_inserted(entry, together, dead_workers)
                case "job_executions", "delete":
                    assert entry.job_id in together.jobs_gone | together.letters_gone, (
                        "the history of a job that stays was deleted"
                    )
                    assert self.history.pop(entry.old["id"]) == entry.old
                case "dead_letter_jobs", "insert":
                    self._letter_inserted(entry, together)
                case "dead_letter_jobs", "delete":
                    assert self.dead.pop(entry.job_id) == entry.old
                    if entry.job_id not in together.jobs:
                        self.removed.add(entry.job_id)
                case relation, op:
                    raise AssertionError(f"a row of {relation} saw an {op}: it is append-only")
        for job_id, status in before.items():
            change = (status, self._status(job_id))
            assert change[0] == change[1] or change in allowed, f"I5: {verbs} made {change}"

    def _status(self, job_id: str) -> str:
        if job_id in self.jobs:
            return str(self.jobs[job_id]["status"])
        return DEAD if job_id in self.dead else ""

    def _job_inserted(self, entry: Entry, together: Together) -> None:
        new = entry.new
        assert new["status"] in {Status.PENDING, Status.RUNNING}, f"I5: a job was born as {new}"
        if new["status"] == Status.RUNNING:
            self._opened(new, new["scheduled_at"], 0, entry)
        else:
            assert new["attempts"] == 0 and [new[name] for name in LEASE] == [None] * 3, f"I6: a job was born as {new}"
        if entry.job_id in self.born:
            assert entry.job_id in together.letters_gone, "I2: a job was born twice"
        self.born.add(entry.job_id)
        self.jobs[entry.job_id] = new

    def _job_updated(self, entry: Entry, together: Together) -> None:
        old, new = entry.old, entry.new
        assert self.jobs[entry.job_id] == old, "the log does not tell everything"
        self.jobs[entry.job_id] = new
        changed = {name for name in new if new[name] != old[name]}
        said = {"max_attempts"} if old["max_attempts"] is None and new["status"] == Status.RUNNING else set()
        assert not changed & set(IDENTITY) - said, f"a job became another: {changed}"
        change = (old["status"], new["status"])
        assert change[0] == change[1] or change in LEGAL_STATUS_CHANGES, f"I5: {change}"
        if old["status"] in FINISHED and old["current_execution_id"] is None:
            assert changed <= {"awaited"}, f"I5: a finished job changed: {changed}"
        if old["status"] == Status.CANCELLED:
            assert changed <= {"awaited", "is_held", "progress", "progress_message", "error_message", *LEASE}, f"I10: {changed}"
        assert new["result"] is None or new["status"] == Status.COMPLETED, "I10: a result of what was not completed"

        execution_id = new["current_execution_id"]
        if execution_id is None and old["current_execution_id"] is not None:
            outcome = together.ended[old["current_execution_id"]]["outcome"]
            given_back = int(outcome in GIVEN_BACK and old["status"] == Status.RUNNING)
            why = together.ended[old["current_execution_id"]]["error_message"] or ""
            given_back += why.startswith("the worker died") and "not charged" in why
            # A suspect that is lost with its worker again is charged for the attempt that was given back when it became one.
            given_back -= (
                why == "the worker died" and old["suspicion"] in {"parked", "on_trial"} and old["status"] == Status.RUNNING
            )
            assert new["attempts"] == min(old["attempts"] - given_back, old["max_attempts"]), (
                f"I3: attempts went from {old['attempts']} to {new['attempts']}"
            )
            assert outcome == {Status.COMPLETED: "completed", Status.CANCELLED: "cancelled"}.get(new["status"], outcome) or (
                outcome == "lost" and new["status"] == Status.CANCELLED
            ), f"the history says {outcome} of a job that is {new['status']}"
        elif execution_id != old["current_execution_id"]:
            assert change == (Status.PENDING, Status.RUNNING), f"I3: an execution was opened by {change}"
            self._opened(new, old["scheduled_at"], old["attempts"], entry)
        else:
            assert new["attempts"] == old["attempts"], "I3: attempts grew without a claim"
            is_let_out = (old["suspicion"], new["suspicion"]) == ("parked", "on_trial")
            assert is_let_out or new["scheduled_at"] == old["scheduled_at"], "a job moved in time and was not settled"

    def _opened(self, new: Row, due: str, attempts: int, entry: Entry) -> None:
        assert new["current_execution_id"] not in self.claimed, "I3: an execution id was used again"
        assert new["attempts"] == attempts + 1, f"I3: attempts went from {attempts} to {new['attempts']}"
        assert datetime.fromisoformat(due) <= entry.at, "I12: claimed before its time"
        self.claimed[new["current_execution_id"]] = new

    def _job_deleted(self, entry: Entry, together: Together) -> None:
        assert self.jobs.pop(entry.job_id) == entry.old, "the log does not tell everything"
        if entry.job_id in together.letters:
            return
        assert entry.old["status"] in FINISHED and not entry.old["is_held"], f"I1: a job vanished while it was {entry.old}"
        self.removed.add(entry.job_id)

    def _execution_inserted(self, entry: Entry, together: Together, dead_workers: Container[str]) -> None:
        new = entry.new
        claimed, ended = self.claimed[new["id"]], together.closed[new["id"]]
        told = [new[name] for name in ("job_id", "org_id", "attempt", "started_at")]
        assert told == [claimed[name] for name in ("id", "org_id", "attempts", "started_at")], (
            f"the history tells of another: {new}"
        )
        assert new["id"] not in self.history, "I3: an execution ended twice"
        if new["outcome"] == "lost":
            ran_out = datetime.fromisoformat(ended["lease_expires_at"]) < entry.at
            assert ran_out or ended["locked_by"] in dead_workers, f"I9: lost without a cause: {ended}"
        self.history[new["id"]] = new

    def _letter_inserted(self, entry: Entry, together: Together) -> None:
        new = entry.new
        assert entry.job_id in together.jobs_gone, "I1: a job died and stayed"
        ended = [row for row in together.ended.values() if row["job_id"] == entry.job_id]
        assert len(ended) == 1, f"I7: a job died of {len(ended)} executions"
        claimed = self.claimed[ended[0]["id"]]
        assert [new[name] for name in IDENTITY] == [claimed[name] for name in IDENTITY], f"a dead letter is not the job: {new}"
        owed = claimed["suspicion"] in {"parked", "on_trial"} and ended[0]["error_message"] == "the worker died"
        assert new["attempts"] == min(ended[0]["attempt"] + owed, new["max_attempts"])
        if new["reason"] in {"exhausted", "lost"}:
            assert new["attempts"] == new["max_attempts"], f"I7: {new['reason']} with attempts left: {new}"
        assert (new["reason"] == "lost") == (ended[0]["outcome"] == "lost"), f"I7: died of another reason than told: {new}"
        known = {row["id"] for row in self.history.values() if row["job_id"] == entry.job_id} | {ended[0]["id"]}
        told = [attempt["id"] for attempt in new["history"]]
        assert set(told) == known and len(told) == len(known), "the history of a dead letter is not whole"
        assert told[-1] == ended[0]["id"], "the last attempt of a dead letter is not the last"
        assert all(attempt["ended_at"] and attempt["outcome"] for attempt in new["history"]), f"an attempt never ended: {new}"
        self.dead[entry.job_id] = new


def _ends_an_execution(entry: Entry) -> bool:
    held = entry.old["current_execution_id"]
    return held is not None and entry.new.get("current_execution_id") != held
