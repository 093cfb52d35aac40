"""Commands on schedules: `schedules`, which lists them, and what is done with one."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from pgnotifyq.cli.act import run_with
from pgnotifyq.cli.output import print_json, print_rows, shown
from pgnotifyq.cli.parameters import AsJson, Dsn, OfAnyOrg, Schema, whole
from pgnotifyq.cli.pauses import Who, Why, me
from pgnotifyq.doors.verbs import Verbs
from pgnotifyq.model.errors import InvalidJob, InvalidPayload
from pgnotifyq.model.job import NIL_ORG
from pgnotifyq.wire.asking import ask

if TYPE_CHECKING:
    from psycopg.rows import TupleRow

    from pgnotifyq.ledger.ask import Verb
    from pgnotifyq.ledger.schedules import ScheduleRow
    from pgnotifyq.wire.connection import Connection

SHOWN_MAX = 10  # findings of doctor
WHAT_CHARS_MAX = 400
LATE = timedelta(seconds=60)
COLUMNS = ["name", "rule", "tz", "job_type", "next_at", "last_at", "owner", "paused_at", "why", "error_message"]
TICK_COLUMNS = ["at", "utc", "note"]

Name = Annotated[str, Parameter(help="The schedule, as `schedules` lists it.")]
Org = Annotated[str | None, Parameter(name="--org", help="The tenant whose it is: its id, its name, or its number.")]

schedules = App(name="schedules", help="List schedules; add, pause, resume, run, backfill and delete them; show the next ticks.")


def _one(dsn: str | None, schema: str, verb: Verb[Any], tell: Any) -> int:
    """Ask one verb, and tell its answer; return the exit code that `tell` says."""

    async def act(connection: Connection[TupleRow]) -> int:
        code: int = tell(await ask(connection, verb))
        return code

    return run_with(dsn, schema, act)


def _told(data: dict[str, Any], line: str, *, as_json: bool, code: int = 0) -> int:
    print_json(data) if as_json else print(line)
    return code


@schedules.default
def list_(*, of: OfAnyOrg = None, as_json: AsJson = False, dsn: Dsn = None, schema: Schema = "pgnotifyq") -> int:
    """List the schedules, by name."""

    def tell(rows: list[Any]) -> int:
        print_rows(rows, COLUMNS, as_json=as_json, nothing="no schedules")
        return 0

    return _one(dsn, schema, Verbs(schema).schedules(org_id=of), tell)


@schedules.command(name="next")
def next_(
    name: Name,
    /,
    *,
    count: Annotated[int, Parameter(converter=whole, help="So many.")] = 10,
    org: Org = None,
    as_json: AsJson = False,
    dsn: Dsn = None,
    schema: Schema = "pgnotifyq",
) -> int:
    """Show the next ticks of a schedule, and where clocks change."""

    def tell(ticks: list[Any]) -> int:
        rows = [{"at": f"{tick.at:%a %Y-%m-%d %H:%M:%S %z}", "utc": tick.at, "note": tick.note} for tick in ticks]
        print_rows(rows, TICK_COLUMNS, as_json=as_json, nothing="no tick comes any more", in_terminal=["at", "note"])
        return 0

    return _one(dsn, schema, Verbs(schema).upcoming(name, count, org_id=_org(org)), tell)


@schedules.command
def add(
    name: Annotated[str, Parameter(help="What it is called.")],
    rule: Annotated[str, Parameter(help="When: '0 3 * * *', 'every 45m', '09:00; 17:30'.")],
    job_type: Annotated[str, Parameter(help="Which handler runs its jobs.")],
    payload: Annotated[str, Parameter(help="JSON.", allow_leading_hyphen=True)] = "{}",
    /,
    *,
    tz: Annotated[str, Parameter(help="The time zone of the rule.")] = "UTC",
    missed: Annotated[str, Parameter(help="Of ticks that no worker was there for: last, none, all.")] = "last",
    window_seconds: Annotated[float | None, Parameter(help="A tick that is later than this is missed for good.")] = None,
    overlap: Annotated[str, Parameter(help="While the run before has not ended: skip, queue, cancel_running, allow.")] = "skip",
    jitter_seconds: Annotated[float, Parameter(help="Each job is due up to so much after its tick.")] = 0.0,
    exclude: Annotated[str, Parameter(help="No tick falls on these: '2026-12-25; * * * * SAT'.")] = "",
    queue: Annotated[str | None, Parameter(help="Of its jobs; default: their handler's, else default.")] = None,
    priority: Annotated[int, Parameter(converter=whole, help="Of its jobs; higher first.")] = 0,
    org: Org = None,
    as_json: AsJson = False,
    dsn: Dsn = None,
    schema: Schema = "pgnotifyq",
) -> int:
    """Make a schedule, or change the one of that name. A pause of it stays."""
    try:
        content = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise InvalidPayload(f"the payload is not JSON: {error}") from None
    verb = Verbs(schema).schedule(
        name, rule, job_type, content, tz=tz, missed=missed, window_seconds=window_seconds, overlap=overlap,
        jitter_seconds=jitter_seconds, exclude=exclude, queue=queue, priority=priority, org_id=_org(org),
    )  # fmt: skip
    return _one(
        dsn, schema, verb, lambda became: _told({"schedule": name, "became": became}, f"{name}: {became}", as_json=as_json)
    )


@schedules.command
def pause(
    name: Name,
    /,
    *,
    why: Why = None,
    who: Who = None,
    org: Org = None,
    as_json: AsJson = False,
    dsn: Dsn = None,
    schema: Schema = "pgnotifyq",
) -> int:
    """Let a schedule have no ticks until it is resumed. No deploy resumes it."""
    verb = Verbs(schema).pause_schedule(name, why=why, who=who or me(), org_id=_org(org))
    return _one(dsn, schema, verb, lambda _: _told({"paused": True}, f"paused {name}", as_json=as_json))


@schedules.command
def resume(name: Name, /, *, org: Org = None, as_json: AsJson = False, dsn: Dsn = None, schema: Schema = "pgnotifyq") -> int:
    """Let a schedule have ticks again, from now on. Exit code 1 if it was not paused."""

    def tell(was_paused: bool) -> int:
        line = f"resumed {name}" if was_paused else f"{name} was not paused"
        return _told({"paused": False, "was_paused": was_paused}, line, as_json=as_json, code=0 if was_paused else 1)

    return _one(dsn, schema, Verbs(schema).resume_schedule(name, org_id=_org(org)), tell)


@schedules.command
def run(name: Name, /, *, org: Org = None, as_json: AsJson = False, dsn: Dsn = None, schema: Schema = "pgnotifyq") -> int:
    """Enqueue the job of a schedule now, and print its id."""
    verb = Verbs(schema).run_schedule(name, org_id=_org(org))
    return _one(dsn, schema, verb, lambda job_id: _told({"id": str(job_id)}, str(job_id), as_json=as_json))


@schedules.command
def backfill(
    name: Name,
    since: Annotated[str, Parameter(help="The first time: ISO 8601 with a time zone.")],
    until: Annotated[str | None, Parameter(help="The last one; default: now.")] = None,
    /,
    *,
    org: Org = None,
    as_json: AsJson = False,
    dsn: Dsn = None,
    schema: Schema = "pgnotifyq",
) -> int:
    """Run a schedule for ticks of the past that had no job, the oldest first."""
    verb = Verbs(schema).backfill(name, _time(since), None if until is None else _time(until), org_id=_org(org))
    return _one(dsn, schema, verb, lambda ticks: _told({"ticks": ticks}, f"{ticks} tick(s) of {name}", as_json=as_json))


@schedules.command
def delete(name: Name, /, *, org: Org = None, as_json: AsJson = False, dsn: Dsn = None, schema: Schema = "pgnotifyq") -> int:
    """Delete a schedule; its jobs stay. Exit code 1 if there was none."""

    def tell(was_there: bool) -> int:
        line = f"deleted {name}" if was_there else f"there was no schedule {name}"
        return _told({"deleted": was_there}, line, as_json=as_json, code=0 if was_there else 1)

    return _one(dsn, schema, Verbs(schema).unschedule(name, org_id=_org(org)), tell)


def judge_schedules(rows: list[ScheduleRow]) -> list[tuple[str, str, str]]:
    """Judge schedules for doctor: (verdict, what, what to do)."""
    found: list[tuple[str, str, str]] = []
    for row in rows:
        if row.error_message is not None:
            hint = "mend its rule, its time zone, or what refuses its job; it is tried again each minute"
            found.append(("warn", f"schedule {row.name} cannot be followed: {shown(row.error_message)}"[:WHAT_CHARS_MAX], hint))
        elif row.paused_at is None and row.next_at is not None and row.read_at - row.next_at > LATE:
            hint = "no worker sees to it: start one: python -m pgnotifyq worker --app package.module:registry"
            found.append(("fail", f"schedule {row.name} is late: its tick was at {row.next_at.isoformat()}", hint))
        if row.unlisted_at is not None:
            what = f"schedule {row.name} is in the code of {row.owner} no more, and goes on"
            found.append(("warn", what, f"if it shall not: python -m pgnotifyq schedules delete {row.name}"))
    if len(found) > SHOWN_MAX:
        found[SHOWN_MAX:] = [("warn", f"{len(found) - SHOWN_MAX} more findings on schedules", "see `schedules`")]
    paused = sum(row.paused_at is not None for row in rows)
    return found or [("ok", f"schedules: {len(rows)}, of which paused: {paused}; none is late", "")]


def _org(of: str | None) -> Any:
    return NIL_ORG if of is None else of


def _time(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise InvalidJob(f"{text!r:.80} is no time: use ISO 8601 with a time zone, as 2030-01-01T00:00+00:00") from None
