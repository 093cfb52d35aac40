"""Schedules in SQL: each tick is seen to once, whoever comes second, and whatever else goes on."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from pgnotifyq.ledger import end, schedules
from pgnotifyq.model.job import NIL_ORG, OrgId
from pgnotifyq.model.new_job import NewJob
from pgnotifyq.model.schedule import Move, NewSchedule, Pending, move_of
from pgnotifyq.wire.asking import ask_blocking
from pgnotifyq.wire.blocking import Connection
from tests.ledger.support import BLOCKED, ENDINGS, SCHEMA, at_once, claim_one, fetch, settle, until, value
from tests.ledger.test_tenants import as_tenant

Link = Connection[Any]
HOURS = [datetime(2026, 5, 1, hour, tzinfo=UTC) for hour in range(24)]
OURS, THEIRS = OrgId(uuid.UUID(int=1)), OrgId(uuid.UUID(int=2))


def put(connection: Link, name: str = "hourly", **said: Any) -> str:
    """Make or change a schedule whose ticks are this test's to say."""
    job = NewJob(job_type="noop", payload={"n": 1}, org_id=said.pop("org_id", NIL_ORG))
    return ask_blocking(
        connection, schedules.schedule(SCHEMA, NewSchedule(**{"name": name, "rule": "0 * * * *", "job": job, **said}))
    )


def seen(connection: Link) -> Pending:
    """Return a schedule as a worker sees it."""
    (one,) = (ask_blocking(connection, schedules.due_schedules(SCHEMA, limit=10))).pending
    return one


def fire(connection: Link, of: Pending, *hours: int, next_hour: int | None = None) -> list[tuple[int, str]]:
    """Fire ticks; return (hour, what became of it)."""
    move = Move(of=of, ticks=[HOURS[hour] for hour in hours], next_at=None if next_hour is None else HOURS[next_hour])
    fired = ask_blocking(connection, schedules.fire_schedules(SCHEMA, [move]))
    return [(each.tick.hour, each.became) for each in fired if each.tick is not None]


def hours_of_jobs(connection: Link) -> list[int]:
    """Return the hours of the ticks that have a job, in the order of the jobs."""
    rows = fetch(connection, "select headers #>> '{pgnotifyq_schedule,tick}' from pgnotifyq.jobs order by id")
    return [datetime.fromisoformat(tick).hour for (tick,) in rows]


def test_second_worker(connection: Link, other: Link) -> None:
    """Who has read the same next tick, and comes second, does nothing."""
    put(connection)
    first = seen(connection)
    assert fire(connection, first, 3, next_hour=4) == [(3, "enqueued")]
    assert fire(other, first, 3, next_hour=4) == []
    assert hours_of_jobs(connection) == [3]


def test_second_worker_beside_the_first(connection: Link, other: Link) -> None:
    """It does not wait for a row that another fires."""
    put(connection)
    one = seen(connection)
    with connection.transaction():
        assert fire(connection, one, 3, next_hour=4) == [(3, "enqueued")]
        assert fire(other, one, 3, next_hour=4) == []
    assert hours_of_jobs(connection) == [3]


def test_tick_after_its_job_was_pruned(connection: Link) -> None:
    """It stays seen to, by its own row and by the next tick."""
    put(connection)
    one = seen(connection)
    fire(connection, one, 3, next_hour=4)
    connection.execute("truncate pgnotifyq.jobs")
    assert fire(connection, one, 3, next_hour=4) == []
    # A worker whose clock is not to be trusted names it once more.
    assert fire(connection, seen(connection), 3, next_hour=4) == [(3, "known")]
    assert hours_of_jobs(connection) == []


def test_tick_of_the_future(connection: Link) -> None:
    """It is not fired, whatever a worker's clock says."""
    put(connection)
    one = seen(connection)
    move = Move(of=one, ticks=[datetime.now(UTC) + timedelta(minutes=5)], next_at=None)
    assert ask_blocking(connection, schedules.fire_schedules(SCHEMA, [move])) == []
    assert hours_of_jobs(connection) == []


def test_tick_that_is_ahead(connection: Link) -> None:
    """The statement waits for it, with the job enqueued: the job has the tick's time, and is not there before it."""
    put(connection)
    one = seen(connection)
    tick = value(connection, "select clock_timestamp() + interval '200 milliseconds'")
    with connection.transaction():
        (fired,) = ask_blocking(connection, schedules.fire_schedules(SCHEMA, [Move(of=one, ticks=[tick], next_at=None)]))
        assert fired.became == "enqueued"
        assert value(connection, "select clock_timestamp()") >= tick
        assert value(connection, "select current_setting('pgnotifyq.clock', true)") == ""
    assert fetch(connection, "select scheduled_at, created_at from pgnotifyq.jobs") == [(tick, tick)]


@pytest.mark.parametrize(
    ("style", "zone"), [("SQL, DMY", "Asia/Kolkata"), ("German", "America/New_York"), ("Postgres", "Asia/Manila")]
)
def test_tick_that_is_ahead_however_times_are_written(connection: Link, style: str, zone: str) -> None:
    """Behind a pooler a session may have any style, and those with names of zones are not read as they were written."""
    put(connection)
    one = seen(connection)
    tick = value(connection, "select clock_timestamp() + interval '200 milliseconds'")
    connection.execute("select set_config('DateStyle', %s, false), set_config('TimeZone', %s, false)", (style, zone))
    (fired,) = ask_blocking(connection, schedules.fire_schedules(SCHEMA, [Move(of=one, ticks=[tick], next_at=None)]))
    assert fired.became == "enqueued"
    assert fetch(connection, "select scheduled_at = %s, created_at = %s from pgnotifyq.jobs", tick, tick) == [(True, True)]


def test_tick_that_is_ahead_and_a_refused_one(connection: Link) -> None:
    """What one schedule's job is refused by takes the tick's time from no other."""
    for name in ("refused", "taken"):
        put(connection, name)
    pending = (ask_blocking(connection, schedules.due_schedules(SCHEMA, limit=10))).pending
    connection.execute(
        "create function pg_temp.refuse() returns trigger language plpgsql as $$ begin raise check_violation; end $$;"
        "create trigger refuse before insert on pgnotifyq.jobs for each row"
        " when (new.headers #>> '{pgnotifyq_schedule,name}' = 'refused') execute function pg_temp.refuse()"
    )
    try:
        tick = value(connection, "select clock_timestamp() + interval '200 milliseconds'")
        moves = [Move(of=one, ticks=[tick], next_at=None) for one in pending]
        fired = ask_blocking(connection, schedules.fire_schedules(SCHEMA, moves))
    finally:
        connection.execute("drop trigger refuse on pgnotifyq.jobs")
    assert sorted(each.became for each in fired) == ["enqueued", "failed"]
    assert value(connection, "select clock_timestamp()") >= tick
    assert value(connection, "select scheduled_at from pgnotifyq.jobs") == tick


@pytest.mark.parametrize("change", [{"rule": "5 * * * *"}, {"tz": "Europe/Berlin"}, {"exclude": "2026-12-25"}])
def test_rule_that_changed_meanwhile(connection: Link, change: dict[str, str]) -> None:
    """What was computed by the rule before does nothing."""
    put(connection)
    one = seen(connection)
    assert put(connection, **change) == "changed"
    assert fire(connection, one, 3, next_hour=4) == []
    again = seen(connection)
    assert (again.version, again.next_at) == (2, None)
    assert again.done_to > one.done_to


def test_what_does_not_change_the_ticks(connection: Link) -> None:
    """A change of payload or overlap leaves the next tick alone, and one of nothing changes nothing."""
    put(connection)
    fire(connection, seen(connection), 3, next_hour=4)
    assert put(connection) == "same"
    assert put(connection, overlap="allow") == "changed"
    assert (seen(connection)).next_at == HOURS[4]


@pytest.mark.parametrize(
    ("overlap", "became", "jobs"),
    [("skip", "skipped", [3]), ("queue", "waiting", [3]), ("cancel_running", "enqueued", [3, 4]), ("allow", "enqueued", [3, 4])],
)
def test_run_before_has_not_ended(connection: Link, overlap: str, became: str, jobs: list[int]) -> None:
    """The tick is left out, waits, or runs; with cancel_running, the run before is cancelled."""
    put(connection, overlap=overlap)
    fire(connection, seen(connection), 3, next_hour=4)
    assert fire(connection, seen(connection), 4, next_hour=5) == [(4, became)]
    assert hours_of_jobs(connection) == jobs
    statuses = [status for (status,) in fetch(connection, "select status from pgnotifyq.jobs order by id")]
    assert statuses[0] == ("cancelled" if overlap == "cancel_running" else "pending")


@pytest.mark.parametrize("ending", ["complete", "bury", "cancel"])
def test_next_run_after_one_that_ended(connection: Link, ending: str) -> None:
    """However it ended, the tick that waits is enqueued, and workers are told of that end."""
    put(connection, overlap="queue")
    fire(connection, seen(connection), 3, 4, 5, next_hour=6)
    one = seen(connection)
    ask_blocking(connection, schedules.start_waiting(SCHEMA, one.schedule_id))
    assert hours_of_jobs(connection) == [3]
    connection.execute("listen pgnotifyq_work")
    if ending == "cancel":
        ask_blocking(connection, end.cancel(SCHEMA, value(connection, "select id from pgnotifyq.jobs")))
    else:
        settle(connection, claim_one(connection), ENDINGS[ending])
    notes = list(connection.notifies(timeout=5, stop_after=1))
    assert [note.payload for note in notes] == ["+schedules"]
    ask_blocking(connection, schedules.start_waiting(SCHEMA, one.schedule_id))
    rows = fetch(connection, "select extract(hour from tick at time zone 'UTC')::integer, state from pgnotifyq.schedule_ticks")
    assert dict(rows) == {3: "enqueued", 4: "open", 5: "waiting"}


def test_end_that_races_with_who_asks_for_it(connection: Link, other: Link, dsn: str) -> None:
    """The run ends while somebody asks whether it has: that one waits, sees it, and starts the next."""
    put(connection, overlap="queue")
    fire(connection, seen(connection), 3, next_hour=4)
    job = claim_one(connection)
    one = seen(connection)
    with at_once() as start, connection.transaction():
        settle(connection, job, ENDINGS["complete"])
        start(fire, other, one, 4)
        until(dsn, BLOCKED, "other")
    assert hours_of_jobs(connection) == [3, 4]


def test_paused(connection: Link) -> None:
    """It is fired by nobody, and comes back with no tick of that time; a deploy does not resume it."""
    put(connection)
    one = seen(connection)
    assert ask_blocking(connection, schedules.pause_schedule(SCHEMA, "hourly", NIL_ORG, why="holidays", who="ann"))
    assert put(connection, owner="shop") == "changed"
    assert fire(connection, one, 3, next_hour=4) == []
    (row,) = ask_blocking(connection, schedules.list_schedules(SCHEMA))
    assert (row.who, row.why, row.owner) == ("ann", "holidays", "shop")
    assert (ask_blocking(connection, schedules.due_schedules(SCHEMA, limit=10))).pending == []
    assert ask_blocking(connection, schedules.resume_schedule(SCHEMA, "hourly", NIL_ORG))
    assert not ask_blocking(connection, schedules.resume_schedule(SCHEMA, "hourly", NIL_ORG))
    assert (seen(connection)).done_to > one.done_to


def test_run_now(connection: Link) -> None:
    """The job is there, its tick is now, and the next tick is where it was; a pause does not hold it back."""
    put(connection)
    fire(connection, seen(connection), 3, next_hour=4)
    ask_blocking(connection, schedules.pause_schedule(SCHEMA, "hourly", NIL_ORG))
    job_id = ask_blocking(connection, schedules.run_schedule(SCHEMA, "hourly", NIL_ORG))
    rows = fetch(
        connection,
        "select id from pgnotifyq.jobs where clock_timestamp() - (headers #>> '{pgnotifyq_schedule,tick}')::timestamptz < interval '1 minute'",
    )
    assert rows == [(job_id,)]
    assert value(connection, "select next_at from pgnotifyq.schedules") == HOURS[4]
    assert ask_blocking(connection, schedules.run_schedule(SCHEMA, "none", NIL_ORG)) is None


@pytest.mark.parametrize(("overlap", "jobs"), [("skip", [3, 4]), ("allow", [3, 4, 5, 6])])
def test_backfill(connection: Link, overlap: str, jobs: list[int]) -> None:
    """Ticks that had no job are run, each once: all at once if they may overlap, else one after the other."""
    put(connection, overlap=overlap)
    fire(connection, seen(connection), 3, next_hour=7)
    settle(connection, claim_one(connection), ENDINGS["complete"])
    wanted = [*HOURS[3:7], datetime.now(UTC) + timedelta(days=1)]
    for taken in (3, 0):
        assert ask_blocking(connection, schedules.backfill_schedule(SCHEMA, "hourly", NIL_ORG, wanted)) == taken
    assert hours_of_jobs(connection) == jobs
    assert ask_blocking(connection, schedules.backfill_schedule(SCHEMA, "none", NIL_ORG, wanted)) is None


def test_jitter(connection: Link) -> None:
    """A job is due after its tick, within the jitter, and at the same moment for the same tick."""
    put(connection, jitter_seconds=7200.0, overlap="allow")
    connection.execute("update pgnotifyq.schedules set rule = 'every 1h'")
    one = seen(connection)
    now = datetime.now(UTC).replace(microsecond=0)
    ask_blocking(
        connection, schedules.fire_schedules(SCHEMA, [Move(of=one, ticks=[now - timedelta(seconds=n) for n in range(50)])])
    )
    late = fetch(
        connection,
        "select extract(epoch from scheduled_at - (headers #>> '{pgnotifyq_schedule,tick}')::timestamptz)::float8 from pgnotifyq.jobs",
    )
    assert all(0 <= seconds <= 7200 for (seconds,) in late)
    assert len({seconds // 600 for (seconds,) in late}) > 5


def test_job_that_a_trigger_refuses(connection: Link) -> None:
    """It is the schedule's own trouble: nothing is half-done, others go on, and it is tried again later."""
    put(connection, "lucky", overlap="allow")
    put(connection, "unlucky", overlap="allow")
    connection.execute("update pgnotifyq.schedules set payload = '{\"n\": 13}' where name = 'unlucky'")
    connection.execute(
        "create function pgnotifyq.no() returns trigger language plpgsql as $$ begin"
        " if new.payload = '{\"n\": 13}' and new.headers #>> '{pgnotifyq_schedule,tick}' like '%T04%' then raise exception 'bad luck'; end if;"
        " return new; end $$"
    )
    connection.execute("create trigger no before insert on pgnotifyq.jobs for each row execute function pgnotifyq.no()")
    try:
        pending = (ask_blocking(connection, schedules.due_schedules(SCHEMA, limit=10))).pending
        moves = [Move(of=each, ticks=HOURS[3:5], next_at=HOURS[5]) for each in pending]
        fired = ask_blocking(connection, schedules.fire_schedules(SCHEMA, moves))
        assert sorted(each.became for each in fired) == ["enqueued", "enqueued", "failed"]
        rows = fetch(
            connection, "select name, next_at, error_message, retry_at > clock_timestamp() from pgnotifyq.schedules order by name"
        )
        assert rows == [("lucky", HOURS[5], None, None), ("unlucky", None, "bad luck", True)]
        assert value(connection, "select count(*) from pgnotifyq.schedule_ticks") == 2
    finally:
        connection.execute("drop function pgnotifyq.no cascade")


def test_whose_it_is(connection: Link) -> None:
    """By hand, a program's, another program's: who may change it, and whose it is then."""
    assert put(connection) == "created"
    assert put(connection, owner="shop") == "changed"
    assert put(connection, rule="5 * * * *") == "changed"
    assert put(connection, owner="accounts") == "refused"
    assert fetch(connection, "select owner, rule from pgnotifyq.schedules") == [("shop", "5 * * * *")]
    assert put(connection, owner="shop") == "changed"


def test_what_psql_says(connection: Link) -> None:
    """Values out of range are refused with a word of ours; names and time zones are read by workers."""
    for said in ("'no name', '0 3 * * *', 'noop'", "'x', ' ; ', 'noop'", "'x', '0 3 * * *', 'no type'", "'x', '0 3 * * *', 'noop', missed => 'some'",
                 "null, '0 3 * * *', 'noop'", "'x', '0 3 * * *', 'noop', jitter_seconds => 'NaN'"):  # fmt: skip
        with pytest.raises(psycopg.Error) as refused:
            connection.execute(f"select pgnotifyq.schedule({said})".encode())
        assert refused.value.sqlstate == "PNQ02"
    connection.execute("select pgnotifyq.schedule('nightly', '0 3 * * *', 'report', '{\"to\": \"ann\"}', tz => 'Europe/Berlin')")
    assert value(connection, "select pgnotifyq.unschedule('nightly')") is True
    assert value(connection, "select pgnotifyq.unschedule('nightly')") is False


def test_schedules_of_two_tenants(connection: Link) -> None:
    """They have a name each; a tenant's jobs are its own; and what a tenant may read is its own."""
    for org in (OURS, THEIRS):
        put(connection, org_id=org)
    pending = (ask_blocking(connection, schedules.due_schedules(SCHEMA, limit=10))).pending
    ask_blocking(connection, schedules.fire_schedules(SCHEMA, [Move(of=each, ticks=[HOURS[3]]) for each in pending]))
    assert {org for (org,) in fetch(connection, "select org_id from pgnotifyq.jobs")} == {OURS, THEIRS}
    assert ask_blocking(connection, schedules.unschedule(SCHEMA, "hourly", NIL_ORG)) is False
    connection.execute("create role reads_schedules")
    try:
        connection.execute("grant usage on schema pgnotifyq to reads_schedules")
        connection.execute("grant select on pgnotifyq.schedules, pgnotifyq.schedule_ticks to reads_schedules")
        with as_tenant(connection, OURS, role="reads_schedules") as tenant:
            assert fetch(tenant, "select org_id from pgnotifyq.schedules") == [(OURS,)]
            assert fetch(tenant, "select org_id from pgnotifyq.schedule_ticks") == [(OURS,)]
    finally:
        connection.execute("drop owned by reads_schedules")
        connection.execute("drop role reads_schedules")


def test_change_is_told(connection: Link) -> None:
    """Workers hear of a new schedule, a changed rule, a pause and its end; not of a tick."""
    connection.execute("listen pgnotifyq_work")
    told: list[str] = []

    def heard() -> int:
        connection.execute("notify pgnotifyq_work, 'end'")
        while not told or told[-1] != "end":
            told.extend([note.payload for note in connection.notifies(timeout=5, stop_after=1)])
        count = told.count("+schedules")
        told.clear()
        return count

    put(connection)
    assert heard() == 1
    fire(connection, seen(connection), 3, next_hour=4)
    assert heard() == 0
    connection.execute("update pgnotifyq.schedules set rule = '5 * * * *'")
    assert heard() == 1
    ask_blocking(connection, schedules.pause_schedule(SCHEMA, "hourly", NIL_ORG))
    assert heard() == 1


def test_old_ticks_go(connection: Link) -> None:
    """Those of more than a week before go, a few with each tick; what waits or runs stays."""
    put(connection, overlap="allow")
    one = seen(connection)
    connection.execute(
        "insert into pgnotifyq.schedule_ticks (schedule_id, tick, state) select %s, %s - n * interval '1 day', case n when 20 then 'waiting' else 'enqueued' end"
        " from generate_series(1, 25) as n",
        (one.schedule_id, HOURS[3]),
    )
    for hour in (3, 4, 5):
        fire(connection, seen(connection), hour, next_hour=hour + 1)
    left = fetch(connection, "select state from pgnotifyq.schedule_ticks where tick < %s", HOURS[3])
    assert len(left) == 7
    assert ("waiting",) in left


def test_moves_that_are_no_moves(connection: Link) -> None:
    """They are refused by PostgreSQL, and change nothing."""
    put(connection)
    wrong: list[Any] = [{}, [7], [{"schedule_id": "x"}], [{"ticks": "never"}]]
    for moves in wrong:
        with pytest.raises(psycopg.DataError):
            connection.execute("select pgnotifyq.fire_schedules(%s)", (json.dumps(moves),))
    assert (connection.execute("select pgnotifyq.fire_schedules('[{}]')")).rowcount == 0
    assert move_of(seen(connection), datetime.now(UTC)).next_at is not None
