"""Schedules on live workers: each tick has its job once, when it is due, whoever is there."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import trio

from pgnotifyq import EventName, JobContext, JobRegistry
from pgnotifyq.ledger import schedules
from pgnotifyq.model.new_job import NewJob
from pgnotifyq.model.schedule import NewSchedule
from pgnotifyq.wire.asking import ask
from tests.asked import fetch
from tests.ledger.support import SCHEMA

if TYPE_CHECKING:
    from tests.runtime.support import Workplace


def registry_of(seen: list[datetime | None] | None = None) -> JobRegistry:
    """Return a registry with a handler that notes what it was scheduled for."""
    registry = JobRegistry()

    @registry.handler
    async def report(payload: Any, ctx: JobContext) -> None:
        if seen is not None:
            seen.append(ctx.scheduled_for)

    return registry


async def put(place: Workplace, name: str = "report", rule: str = "every 1s", **said: Any) -> str:
    """Make or change a schedule, as anybody does."""
    new = NewSchedule(name=name, rule=rule, job=NewJob(job_type=said.pop("job_type", "report")), **said)
    return await ask(place.connection, schedules.schedule(SCHEMA, new))


async def ago(place: Workplace, seconds: float, name: str = "report") -> None:
    """Have a schedule's ticks been seen to up to some time ago, and to no later time."""
    await place.connection.execute(
        "update pgnotifyq.schedules set next_at = null, version = version + 1, paused_at = null,"
        " done_to = clock_timestamp() - make_interval(secs => %s) where name = %s",
        (seconds, name),
    )


async def ticks(place: Workplace) -> list[tuple[Any, ...]]:
    """Return (tick, state, whether it has a job), in order."""
    return await fetch(place.connection, "select tick, state, job_id is not null from pgnotifyq.schedule_ticks order by tick")


async def test_ticks_of_a_schedule_made_while_the_worker_sleeps(place: Workplace) -> None:
    """A sleeping worker hears of it, and each tick's job runs and knows its tick."""
    seen: list[datetime | None] = []
    worker = await place.start(registry_of(seen))
    await place.until_asleep(worker)
    assert await put(place) == "created"
    for count in (1, 2, 3):
        await worker.log.wait(EventName.JOB_COMPLETED, count=count)
    first, second, third = [tick for tick in seen[:3] if tick is not None]
    assert (second - first, third - second) == (timedelta(seconds=1), timedelta(seconds=1))
    assert first.microsecond == 0
    assert first.tzinfo is UTC


async def test_registry_says_every(place: Workplace) -> None:
    """A worker's start makes the schedules of its registry."""
    registry = JobRegistry()

    @registry.every("every 1s", payload={"to": "Ann"})
    async def greet(payload: dict[str, str]) -> str:
        return payload["to"]

    worker = await place.start(registry)
    await worker.log.wait(EventName.JOB_COMPLETED, job_type="greet")
    ((name, owner, payload),) = await fetch(place.connection, "select name, owner, payload from pgnotifyq.schedules")
    assert (name, owner, payload) == ("greet", "tests", {"to": "Ann"})


@pytest.mark.parametrize(("missed", "count"), [("last", 1), ("all", 5), ("none", 0)])
async def test_ticks_that_were_missed(place: Workplace, missed: str, count: int) -> None:
    """After five hours without a worker, the last tick runs, or all five, or none; what was left out is told."""
    worker = await place.start(registry_of())
    minute = (datetime.now(UTC) - timedelta(minutes=30)).minute
    await place.connection.execute(
        "insert into pgnotifyq.schedules (name, rule, job_type, missed, overlap, done_to)"
        " values ('report', %s, 'report', %s, 'allow', clock_timestamp() - interval '5 hours')",
        (f"{minute} * * * *", missed),
    )
    await place.until("exists (select from pgnotifyq.schedules where next_at > clock_timestamp())")
    assert len(await ticks(place)) == count
    assert len(await fetch(place.connection, "select from pgnotifyq.jobs")) == count
    if missed != "all":
        await worker.log.wait(EventName.SCHEDULE_MISSED)


async def test_window_of_what_was_missed(place: Workplace) -> None:
    """A tick that is later than the window is missed for good, whatever else is made up for."""
    await place.start(registry_of())
    minute = (datetime.now(UTC) - timedelta(minutes=30)).minute
    await place.connection.execute(
        "insert into pgnotifyq.schedules (name, rule, job_type, missed, overlap, window_seconds, done_to)"
        " values ('report', %s, 'report', 'all', 'allow', 7200, clock_timestamp() - interval '5 hours')",
        (f"{minute} * * * *",),
    )
    await place.until("exists (select from pgnotifyq.schedules where next_at > clock_timestamp())")
    assert len(await ticks(place)) == 2


def holding_registry(begun: list[datetime | None], gate: trio.Event, ended: list[str]) -> JobRegistry:
    """Return a registry with a handler that lasts until the gate opens, or it is cancelled."""
    registry = JobRegistry()

    @registry.handler
    async def report(payload: Any, ctx: JobContext) -> None:
        begun.append(ctx.scheduled_for)
        try:
            await gate.wait()
        except trio.Cancelled:
            ended.append("cancelled")
            raise

    return registry


async def test_run_before_has_not_ended_skip(place: Workplace) -> None:
    """Ticks are left out and told, until it has ended; then the next has its job."""
    begun: list[datetime | None] = []
    gate = trio.Event()
    worker = await place.start(holding_registry(begun, gate, []))
    await put(place, overlap="skip")
    await worker.log.wait(EventName.SCHEDULE_SKIPPED, count=2)
    assert len(begun) == 1
    gate.set()
    await worker.log.wait(EventName.JOB_COMPLETED, count=2)
    assert begun[1] is not None
    assert {state for _, state, _ in await ticks(place)} >= {"skipped"}


async def test_run_before_has_not_ended_queue(place: Workplace) -> None:
    """Ticks wait, and run one after the other, each as the one before has ended."""
    begun: list[datetime | None] = []
    gate = trio.Event()
    worker = await place.start(holding_registry(begun, gate, []))
    await put(place, overlap="queue", rule="every 1s")
    await place.until("count(*) >= 2 from pgnotifyq.schedule_ticks where state = 'waiting'")
    assert len(begun) == 1
    await place.connection.execute("update pgnotifyq.schedules set rule = 'every 300d'")
    gate.set()
    await worker.log.wait(EventName.JOB_COMPLETED, count=3)
    assert begun[:3] == sorted(tick for tick, _, _ in (await ticks(place))[:3])
    await place.until("not exists (select from pgnotifyq.schedule_ticks where state = 'waiting')")


async def test_run_before_has_not_ended_cancel_running(place: Workplace) -> None:
    """It is cancelled, and the next runs."""
    begun: list[datetime | None] = []
    ended: list[str] = []
    worker = await place.start(holding_registry(begun, trio.Event(), ended))
    await put(place, overlap="cancel_running")
    await worker.log.wait(EventName.JOB_CANCELLED, count=2)
    assert len(begun) >= 2
    assert ended[:2] == ["cancelled", "cancelled"]


async def test_run_before_has_not_ended_allow(place: Workplace) -> None:
    """Both run."""
    begun: list[datetime | None] = []
    worker = await place.start(holding_registry(begun, trio.Event(), []))
    await put(place, overlap="allow")
    await worker.log.wait(EventName.JOB_CLAIMED, count=2)


async def test_paused_and_resumed(place: Workplace) -> None:
    """A paused schedule has no ticks, a deploy does not resume it, and what was paused is not missed."""
    worker = await place.start(registry_of())
    await put(place)
    await worker.log.wait(EventName.JOB_COMPLETED)
    assert await ask(place.connection, schedules.pause_schedule(SCHEMA, "report", NewJob(job_type="x").org_id, why="holidays"))
    before = len(await ticks(place))
    assert await put(place) == "same"
    assert await put(place, rule="every 2s") == "changed"
    ((who, why),) = await fetch(place.connection, "select who, why from pgnotifyq.schedules where paused_at is not null")
    assert (bool(who), why) == (True, "holidays")
    await ago(place, 0.0)  # resumed, by hand
    await worker.log.wait(EventName.JOB_COMPLETED, count=before + 1)


async def test_rule_that_cannot_be_read(place: Workplace) -> None:
    """What psql says and Python cannot read is told, and is in the way of no other schedule."""
    worker = await place.start(registry_of())
    await place.connection.execute("select pgnotifyq.schedule('bad', 'now and then', 'report')")
    await place.connection.execute("select pgnotifyq.schedule('worse', '* * * * *', 'report', tz => 'Nowhere/At_All')")
    await worker.log.wait(EventName.SCHEDULE_FAILED, schedule="bad")
    await worker.log.wait(EventName.SCHEDULE_FAILED, schedule="worse")
    await place.connection.execute("select pgnotifyq.schedule('good', 'every 1s', 'report')")
    await worker.log.wait(EventName.JOB_COMPLETED, count=2)
    ((said,),) = await fetch(place.connection, "select error_message from pgnotifyq.schedules where name = 'bad'")
    assert "now and then" in said


async def test_job_that_the_database_refuses(place: Workplace) -> None:
    """A trigger of the user's refuses one schedule's jobs: it is noted there, and the others go on."""
    worker = await place.start(registry_of())
    await place.connection.execute(
        "create function pgnotifyq.no() returns trigger language plpgsql as $$ begin"
        " if new.priority = 13 then raise exception 'bad luck'; end if; return new; end $$"
    )
    await place.connection.execute(
        "create trigger no before insert on pgnotifyq.jobs for each row execute function pgnotifyq.no()"
    )
    try:
        await place.connection.execute("select pgnotifyq.schedule('unlucky', 'every 1s', 'report', priority => 13)")
        await place.connection.execute("select pgnotifyq.schedule('lucky', 'every 1s', 'report')")
        await worker.log.wait(EventName.SCHEDULE_FAILED, schedule="unlucky")
        await worker.log.wait(EventName.JOB_COMPLETED, count=2)
        ((said,),) = await fetch(place.connection, "select error_message from pgnotifyq.schedules where name = 'unlucky'")
        assert said == "bad luck"
    finally:
        await place.connection.execute("drop function pgnotifyq.no cascade")


async def test_children_of_a_scheduled_job(place: Workplace) -> None:
    """What its handler enqueues has the job's other headers, and is of no tick."""
    registry = JobRegistry()
    seen: list[datetime | None] = []

    @registry.handler
    async def child(payload: Any, ctx: JobContext) -> None:
        seen.append(ctx.scheduled_for)

    @registry.every("every 1s")
    @registry.handler
    async def report(payload: Any, ctx: JobContext) -> None:
        await ctx.enqueue(child, None)

    worker = await place.start(registry)
    await worker.log.wait(EventName.JOB_COMPLETED, job_type="child")
    assert seen[0] is None


async def test_schedule_of_another_program(place: Workplace) -> None:
    """It is left alone, and the worker that wants its name says so and works on."""
    registry = registry_of()
    registry.every("every 1s", name="nightly")(registry.get("report"))
    await put(place, "nightly", rule="0 3 * * *", owner="accounts")
    worker = await place.start(registry)
    await worker.log.wait(EventName.SCHEDULE_FAILED, schedule="nightly")
    assert await fetch(place.connection, "select rule, owner from pgnotifyq.schedules") == [("0 3 * * *", "accounts")]


async def test_schedule_that_is_in_the_code_no_more(place: Workplace) -> None:
    """It stays and is noted; one that comes back is noted no more; those of others are left alone."""
    await put(place, "old", rule="0 3 * * *", owner="tests")
    await put(place, "other", rule="0 3 * * *", owner="accounts")
    await put(place, "by.hand", rule="0 3 * * *")
    registry = registry_of()
    registry.every("0 4 * * *", name="new")(registry.get("report"))
    worker = await place.start(registry)
    await place.until_asleep(worker)
    assert await fetch(place.connection, "select name from pgnotifyq.schedules where unlisted_at is not null") == [("old",)]
    assert await put(place, "old", rule="0 3 * * *", owner="tests") == "changed"
    assert await fetch(place.connection, "select name from pgnotifyq.schedules where unlisted_at is not null") == []


async def test_a_thousand_daily_schedules(place: Workplace) -> None:
    """An idle worker asks nothing more for them: its sessions fall silent."""
    worker = await place.start(registry_of())
    await place.connection.execute(
        "insert into pgnotifyq.schedules (name, rule, job_type, done_to)"
        " select 'daily.' || n, '0 ' || extract(hour from clock_timestamp() at time zone 'UTC' - interval '2 hours') || ' * * *',"
        " 'report', clock_timestamp() from generate_series(1, 1000) as n"
    )
    await place.until("not exists (select from pgnotifyq.schedules where next_at is null)")
    await place.until_idle(worker)
    await place.until(
        "bool_and(state = 'idle' and state_change < clock_timestamp() - interval '2 s') from pg_stat_activity"
        " where application_name in ('pgnotifyq claimer', 'pgnotifyq scheduler') and datname = current_database()"
    )
