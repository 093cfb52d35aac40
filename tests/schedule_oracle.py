"""Rules against brute force, wherever clocks have changed: `python -m tests.schedule_oracle`.

For each change of the clocks of 20 time zones from 1970 to 2037, every minute around it is looked at, one by one, and held
against a cron expression that is read here, by other code than the product's. The ticks of pgnotifyq/model/schedule.py must be
the same. The exit code is the verdict.
"""

from __future__ import annotations

import functools
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from pgnotifyq.model.schedule import rule_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ZONES = (
    "Africa/Cairo", "Africa/Casablanca", "Africa/Monrovia", "America/Caracas", "America/Havana", "America/New_York",
    "America/Sao_Paulo", "America/St_Johns", "Antarctica/Troll", "Asia/Amman", "Asia/Beirut", "Asia/Kathmandu", "Asia/Pyongyang",
    "Asia/Tehran", "Australia/Lord_Howe", "Europe/Berlin", "Europe/Dublin", "Europe/London", "Pacific/Apia", "Pacific/Kwajalein",
)  # fmt: skip
RULES = (
    "30 2 * * *", "0 0 * * *", "15,45 0-3 * * *", "5 */2 * * *", "0 3 * * 0", "*/15 * * * *", "59 23 * * *", "0 1,2,3 * * *",
    "*/20 2 * * *",
)  # fmt: skip
AROUND = timedelta(hours=30)  # Pacific/Apia left out a day
MINUTE = timedelta(minutes=1)
FIRST, LAST = datetime(1970, 1, 1, tzinfo=UTC), datetime(2037, 12, 31, tzinfo=UTC)
RANGES = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))


def changes_of(zone: ZoneInfo) -> Iterator[datetime]:
    """Yield the moments at which the offset changes, in UTC, to the second."""
    at, step = FIRST, timedelta(hours=12)
    while at < LAST:
        before, after = at, at + step
        if before.astimezone(zone).utcoffset() != after.astimezone(zone).utcoffset():
            while after - before > timedelta(seconds=1):
                middle = before + (after - before) // 2
                middle = middle.replace(microsecond=0)
                if middle.astimezone(zone).utcoffset() == before.astimezone(zone).utcoffset():
                    before = middle
                else:
                    after = middle
            yield after
        at += step


def field(text: str, low: int, high: int) -> set[int]:
    """Read one field of a cron expression: lists, ranges and steps of numbers."""
    found: set[int] = set()
    for term in text.split(","):
        span, _, step = term.partition("/")
        if span == "*":
            begin, end = low, high
        elif "-" in span:
            begin, end = map(int, span.split("-"))
        else:
            begin = int(span)
            end = high if step else begin
        found |= set(range(begin, end + 1, int(step or 1)))
    return found


@functools.cache
def fields(rule: str) -> tuple[set[int], ...]:
    """Read a cron expression of five fields."""
    return tuple(field(text, *span) for text, span in zip(rule.split(), RANGES, strict=True))


def fits(rule: str, local: datetime) -> bool:
    """Tell whether a minute that a clock shows is one of the rule's. None of the rules here restricts both kinds of day."""
    minute, hour, day, month, weekday = fields(rule)
    return (
        local.minute in minute
        and local.hour in hour
        and local.day in day
        and local.month in month
        and (local.isoweekday() in weekday or local.isoweekday() % 7 in weekday)
    )


def by_force(rule: str, zone: ZoneInfo, first: datetime, last: datetime) -> list[datetime]:
    """Return the ticks between two moments, both included, by looking at every minute."""
    minute, hour, *_ = rule.split()
    found: set[datetime] = set()
    if minute.startswith("*") or hour.startswith("*"):
        # What the clock shows. Where an offset has seconds, the clock's minutes do not begin with ours.
        step = (
            timedelta(seconds=1)
            if any((at.astimezone(zone).utcoffset() or AROUND).seconds % 60 for at in (first, last))
            else MINUTE
        )
        at = first
        while at <= last:
            local = at.astimezone(zone)
            if local.second == 0 and fits(rule, local):
                found.add(at)
            at += step
        return sorted(found)
    # Times of the day: each minute that a clock could show, also where it does not.
    wall = (first.astimezone(zone).replace(tzinfo=None) - timedelta(days=2)).replace(second=0)
    end = last.astimezone(zone).replace(tzinfo=None) + timedelta(days=2)
    while wall <= end:
        if fits(rule, wall):
            shown = wall
            while shown.replace(tzinfo=zone).astimezone(UTC).astimezone(zone).replace(tzinfo=None) != shown:
                shown += MINUTE  # as soon as the hour that is skipped is over
            at = shown.replace(tzinfo=zone, fold=0).astimezone(UTC)
            if first <= at <= last:
                found.add(at)
        wall += MINUTE
    return sorted(found)


def differences(zones: Sequence[str], rules: Sequence[str], *, every: int = 1) -> tuple[int, list[str]]:
    """Compare at each nth change; return how many comparisons were made, and where they differ."""
    told: list[str] = []
    made = 0
    for name in zones:
        zone = ZoneInfo(name)
        for change in list(changes_of(zone))[::every]:
            first, last = change - AROUND, change + AROUND
            for rule in rules:
                made += 1
                ours, theirs = list(rule_of(rule, name).between(first, last)), by_force(rule, zone, first, last)
                if ours != theirs:
                    only_ours = [f"{at:%F %T}" for at in ours if at not in theirs]
                    only_theirs = [f"{at:%F %T}" for at in theirs if at not in ours]
                    told.append(f"{name} {change:%F %T} {rule!r}: ours alone {only_ours}, by force alone {only_theirs}")
    return made, told


def main() -> int:
    """Run from the command line."""
    made, told = differences(ZONES, RULES)
    print("\n".join(told))
    print(f"{made} comparisons, {len(told)} differences")
    return 1 if told or not made else 0


if __name__ == "__main__":
    sys.exit(main())
