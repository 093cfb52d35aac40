"""When there are ticks: rules, exclusions, changes of the clocks, and what a worker makes of what was missed."""

from __future__ import annotations

import contextlib
import uuid
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgnotifyq.model.errors import ConfigError, InvalidJob
from pgnotifyq.model.headers import SCHEDULE_KEY, Headers, to_carry
from pgnotifyq.model.new_job import NewJob
from pgnotifyq.model.registry import JobRegistry
from pgnotifyq.model.schedule import NewSchedule, Pending, joined, move_of, rule_of, scheduled_for
from tests import schedule_oracle


def at(text: str) -> datetime:
    """Return a time in UTC."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def ticks(rule: str, after: str, count: int = 3, **said: str) -> list[str]:
    """Return the next ticks of a rule, in UTC."""
    return [f"{tick.at.astimezone(UTC):%F %T}" for tick in rule_of(rule, **said).upcoming(at(after), count)]


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [
        ("0 3 * * *", ["2026-05-02 03:00:00", "2026-05-03 03:00:00"]),
        ("*/20 * * * * *", ["2026-05-01 12:00:20", "2026-05-01 12:00:40"]),
        ("every 45m", ["2026-05-01 12:45:00", "2026-05-01 13:30:00"]),
        ("every 1h30m", ["2026-05-01 13:30:00", "2026-05-01 15:00:00"]),
        ("09:00; 17:30:15", ["2026-05-01 17:30:15", "2026-05-02 09:00:00"]),
        ("2026-05-01T13:00; 2020-01-01T00:00", ["2026-05-01 13:00:00"]),
        ("2026-05-01T13:00+02:00; every 2h", ["2026-05-01 14:00:00", "2026-05-01 16:00:00"]),
        ("0 0 L * *", ["2026-05-31 00:00:00", "2026-06-30 00:00:00"]),
    ],
)
def test_ticks_of_a_rule(rule: str, wanted: list[str]) -> None:
    """Each part has its ticks, and several parts have them together."""
    assert ticks(rule, "2026-05-01T12:00:00", 2) == wanted


@pytest.mark.parametrize(
    ("exclude", "wanted"),
    [
        ("2026-12-24/2026-12-26", ["2026-12-27 09:00:00", "2026-12-28 09:00:00"]),
        ("* * * * SAT,SUN", ["2026-12-24 09:00:00", "2026-12-25 09:00:00"]),
        ("2026-12-24; 2026-12-25", ["2026-12-26 09:00:00", "2026-12-27 09:00:00"]),
        ("2026-12-24T09:00", ["2026-12-25 09:00:00", "2026-12-26 09:00:00"]),
        ("* 9 24 12 *", ["2026-12-25 09:00:00", "2026-12-26 09:00:00"]),
    ],
)
def test_exclusions(exclude: str, wanted: list[str]) -> None:
    """No tick falls on what is excluded."""
    assert ticks("0 9 * * *", "2026-12-23T12:00:00", 2, exclude=exclude) == wanted


def test_seconds_of_an_excluded_minute() -> None:
    """Cron of five fields excludes whole minutes, and of six, seconds."""
    assert ticks("every 20s", "2026-05-01T12:00:50", 3, exclude="1 * * * *")[0] == "2026-05-01 12:02:00"
    assert ticks("every 20s", "2026-05-01T12:00:50", 2, exclude="20 1 * * * *") == ["2026-05-01 12:01:00", "2026-05-01 12:01:40"]


def test_exclusions_that_leave_nothing() -> None:
    """They are refused, and do not look for ever."""
    with pytest.raises(InvalidJob, match="leave no tick"):
        rule_of("* * * * * *", exclude="* * * * * *").after(at("2026-05-01T12:00:00"))


@pytest.mark.parametrize(
    "rule",
    [
        "",
        ";",
        "now and then",
        "* * *",
        "60 * * * *",
        "every 0s",
        "every 20y",
        "every",
        "25:00",
        "2026-02-30",
        "0 0 30 2 *",
        "* " * 5000,
    ],
)
def test_what_is_no_rule(rule: str) -> None:
    """It is refused with what to say instead."""
    with pytest.raises(InvalidJob):
        rule_of(rule).after(at("2026-05-01T12:00:00"))


@pytest.mark.parametrize("tz", ["Mars/Olympus", "", "../../etc/passwd", "/etc/passwd", "a\0b", "x" * 5000])
def test_what_is_no_time_zone(tz: str) -> None:
    """It is refused."""
    with pytest.raises(InvalidJob):
        rule_of("0 3 * * *", tz)


@given(st.text(max_size=40), st.text(max_size=20), st.text(max_size=20))
def test_any_text(rule: str, tz: str, exclude: str) -> None:
    """It is a rule, or refused."""
    with contextlib.suppress(InvalidJob):
        rule_of(rule, tz or "UTC", exclude).after(at("2026-05-01T12:00:00"))


def test_an_hour_that_is_skipped() -> None:
    """A time of the day in it comes as soon as it is over; the next ten say so."""
    first, second, third = rule_of("30 2 * * *", "Europe/Berlin").upcoming(at("2026-03-28T00:00:00"), 3)
    assert [f"{tick.at:%d %H:%M %z}" for tick in (first, second, third)] == ["28 02:30 +0100", "29 03:00 +0200", "30 02:30 +0200"]
    assert (first.note, third.note) == ("", "")
    assert "UTC+0100 to UTC+0200" in second.note


def test_an_hour_that_comes_twice() -> None:
    """A time of the day in it comes the first time; what goes by the clock comes twice."""
    rule = rule_of("30 2 * * *", "Europe/Berlin")
    (tick,) = rule.upcoming(at("2026-10-24T12:00:00"), 1)
    assert (f"{tick.at:%d %H:%M %z}", "twice" in tick.note) == ("25 02:30 +0200", True)
    assert ticks("30 * * * *", "2026-10-24T23:59:00", 3, tz="Europe/Berlin") == [
        "2026-10-25 00:30:00",
        "2026-10-25 01:30:00",
        "2026-10-25 02:30:00",
    ]
    # Asked in the second of the two hours, it does not go back to the first.
    assert rule.after(at("2026-10-25T01:10:00")) == at("2026-10-26T01:30:00")


def test_changes_of_the_clocks_by_force() -> None:
    """At changes of all kinds, ticks are those that brute force finds. All changes: `python -m tests.schedule_oracle`."""
    zones = ("Australia/Lord_Howe", "Africa/Monrovia", "America/St_Johns", "Pacific/Apia", "Europe/Berlin")
    made, told = schedule_oracle.differences(zones, schedule_oracle.RULES, every=30)
    assert told == []
    assert made > 90


def test_oracle_sees_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ticks that are an hour off are told."""
    force = schedule_oracle.by_force
    monkeypatch.setattr(schedule_oracle, "by_force", lambda *given: [tick + timedelta(hours=1) for tick in force(*given)])
    _, told = schedule_oracle.differences(("Europe/Berlin",), ("30 2 * * *",), every=60)
    assert told


def test_python_values() -> None:
    """Times, dates and intervals are written as text."""
    rules: list[Any] = [time(9, 30), timedelta(minutes=45), datetime(2026, 5, 1, 12, tzinfo=UTC), "0 3 * * *"]
    assert joined(rules) == "09:30:00; every 2700s; 2026-05-01T12:00:00+00:00; 0 3 * * *"
    assert joined(date(2026, 12, 25)) == "2026-12-25"
    for wrong in (None, 7, timedelta(seconds=0.5), time(1, tzinfo=UTC), [3]):
        with pytest.raises(InvalidJob):
            joined(wrong)  # type: ignore[arg-type]


def pending(**said: Any) -> Pending:
    """Return a schedule as a worker sees it: hourly, its next tick at 12."""
    fields: dict[str, Any] = {
        "schedule_id": uuid.UUID(int=1), "name": "x", "rule": "0 * * * *", "tz": "UTC", "exclude": "", "missed": "last",
        "overlap": "skip", "window_seconds": None, "next_at": at("2026-05-01T12:00:00"), "due_at": None,
        "done_to": at("2026-05-01T11:00:00"), "version": 1,
    }  # fmt: skip
    return Pending(**{**fields, **said})


@pytest.mark.parametrize(
    ("said", "now", "wanted", "next_at", "is_missed"),
    [
        ({}, "12:00:00", ["12:00"], "13:00", False),
        ({}, "11:59:59", [], "12:00", False),
        ({"next_at": None}, "11:30:00", [], "12:00", False),
        ({"next_at": None}, "12:00:00", ["12:00"], "13:00", False),
        ({}, "15:30:00", ["15:00"], "16:00", True),
        ({"missed": "none"}, "15:30:00", [], "16:00", True),
        ({"missed": "none"}, "15:00:59", ["15:00"], "16:00", True),
        ({"missed": "none"}, "12:00:30", ["12:00"], "13:00", False),
        ({"missed": "all"}, "15:30:00", ["12:00", "13:00", "14:00", "15:00"], "16:00", False),
        ({"missed": "all", "window_seconds": 5400.0}, "15:30:00", ["14:00", "15:00"], "16:00", True),
        ({"missed": "last", "window_seconds": 60.0}, "15:30:00", [], "16:00", True),
    ],
)
def test_what_a_worker_makes_of_it(said: dict[str, Any], now: str, wanted: list[str], next_at: str, is_missed: bool) -> None:
    """Which ticks have a job, which is the next, and whether some were missed."""
    move = move_of(pending(**said), at(f"2026-05-01T{now}"))
    assert [f"{tick:%H:%M}" for tick in move.ticks] == wanted
    assert move.next_at is not None
    assert f"{move.next_at:%H:%M}" == next_at
    assert (move.missed_from is not None) is is_missed


def test_more_missed_than_go_at_once() -> None:
    """They are made up for a hundred at a time, in order, without a gap."""
    first = move_of(pending(missed="all", rule="* * * * *"), at("2026-05-01T20:00:00"))
    assert len(first.ticks) == 100
    second = move_of(pending(missed="all", rule="* * * * *", next_at=first.next_at), at("2026-05-01T20:00:00"))
    assert second.ticks[0] - first.ticks[-1] == timedelta(minutes=1)


def test_years_of_seconds_that_were_missed() -> None:
    """The last of a hundred million ticks is found without looking at each."""
    now = at("2030-01-01T00:00:00")
    move = move_of(pending(rule="* * * * * *"), now)
    assert (list(move.ticks), move.next_at) == ([now], now + timedelta(seconds=1))


def test_a_rule_without_another_tick() -> None:
    """It has its last one, and then none."""
    move = move_of(pending(rule="2026-05-01T12:00"), at("2026-05-01T12:00:01"))
    assert (len(move.ticks), move.next_at, move.fields["next_to"]) == (1, None, "infinity")


def test_new_schedules_are_checked() -> None:
    """Each value out of its range is refused."""
    good = NewSchedule(name="x", rule="0 3 * * *", job=NewJob(job_type="x"))
    for wrong in (
        {"name": "no name"}, {"missed": "some"}, {"overlap": "perhaps"}, {"window_seconds": -1.0}, {"jitter_seconds": float("nan")},
        {"tz": "Mars/Olympus"}, {"exclude": "never"}, {"rule": "often"},
    ):  # fmt: skip
        with pytest.raises(InvalidJob):
            attrs.evolve(good, **wrong)


def test_two_schedules_of_one_name() -> None:
    """The second is refused, and tells what to do."""
    registry = JobRegistry()

    @registry.every("0 3 * * *")
    @registry.every("0 4 * * *", name="again")
    @registry.handler("report")
    def report(payload: dict[str, Any]) -> None: ...

    assert [(new.name, new.rule, new.owner) for new in registry.schedules] == [
        ("again", "0 4 * * *", "tests"),
        ("report", "0 3 * * *", "tests"),
    ]
    with pytest.raises(ConfigError, match="name="):
        registry.every("0 5 * * *")(report)
    whole = JobRegistry()
    whole.include(registry)
    assert [new.name for new in whole.schedules] == ["again", "report"]


@pytest.mark.parametrize("said", [None, {}, 7, {"tick": 7}, {"tick": "soon"}])
def test_header_that_says_no_tick(said: object) -> None:
    """Raw SQL stores anything; a handler is told that there is none."""
    assert scheduled_for({SCHEDULE_KEY: said}) is None
    assert scheduled_for({}) is None


def test_what_goes_on_to_children() -> None:
    """All headers but the schedule's."""
    assert dict(to_carry(Headers({SCHEDULE_KEY: {}, "a": 1}))) == {"a": 1}
    headers = Headers({"a": 1})
    assert to_carry(headers) is headers
