"""A schedule: when jobs of a kind are enqueued, by rules that are text.

A rule's text has one part or several, with semicolons in between. Its ticks are those of all parts
together:

| part | ticks |
|---|---|
| `0 3 * * *` | cron: minute, hour, day of the month, month, day of the week |
| `*/10 * * * * *` | cron with seconds first |
| `every 45m` | each 45 minutes since 1970, in UTC; units s, m, h, d, w, as in `every 1h30m` |
| `09:00`, `17:30:15` | daily |
| `2030-01-01T00:00` | once; with an offset, or in the schedule's time zone |

An exclusion takes ticks away. It is a date, two dates with a slash in between, a time as above, or
cron. Cron takes away each minute that it matches; with six fields, each second. Cron that names no
hour and no minute takes away whole days.

When clocks change, the rules are those of cron on Debian. A part of five fields whose minute and
hour both begin without a star is for times of the day. If such a time falls into an hour that is
skipped, it ticks as soon as that hour is over. If it falls into an hour that comes twice, it ticks
the first time. Every other cron part goes by what the clock shows: an hour that is skipped has no
ticks, and an hour that comes twice has its ticks twice. Intervals know no clock.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeAlias
from zoneinfo import ZoneInfo

import attrs
from cronsim import CronSim, CronSimError

from pgnotifyq.model.errors import InvalidJob
from pgnotifyq.model.headers import SCHEDULE_KEY

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from uuid import UUID

    from pgnotifyq.model.new_job import NewJob

When: TypeAlias = str | datetime | time | timedelta
Excluded: TypeAlias = str | date | datetime

RULE_CHARS_MAX = 10_000
TRIES_MAX = 10_000  # ticks that exclusions take away, one after the other, before we give up
SECONDS_MAX = 10 * 366 * 86_400.0  # ten years; more is a mistake in the unit
AT_ONCE_MAX = 100  # missed ticks that are made up for in one transaction
NONE_WINDOW_SECONDS = 60.0  # if missed="none": a tick that is not later than this is not missed
NEVER = datetime.max.replace(tzinfo=UTC)  # in place of the next tick, if there is none; in SQL, infinity

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@/-]{0,126}", re.ASCII)
_INTERVAL = re.compile(r"every\s+((?:\d+\s*[smhdw]\s*)+)", re.ASCII | re.IGNORECASE)
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_TIME = re.compile(r"(\d{1,2}):(\d{2})(?::(\d{2}))?", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DATE = r"\d{4}-\d{2}-\d{2}"
_DATES = re.compile(rf"({_DATE})(?:\s*/\s*({_DATE}))?", re.ASCII)
_CHANGES_APART = timedelta(days=1)  # the least time between two changes of the clocks
_BACK = tuple(timedelta(seconds=seconds) for seconds in (60, 3600, 86_400, 32 * 86_400, 370 * 86_400))


class Missed(StrEnum):
    """What happens to ticks at which no worker was there."""

    LAST = "last"  # the last of them runs, late
    NONE = "none"  # none runs
    ALL = "all"  # each runs, the oldest first


class Overlap(StrEnum):
    """What happens to a tick while the run before has not ended."""

    SKIP = "skip"  # it is left out
    QUEUE = "queue"  # it runs when the run before has ended
    CANCEL_RUNNING = "cancel_running"  # the run before is cancelled
    ALLOW = "allow"  # both run


@attrs.frozen
class Tick:
    """A time at which a schedule enqueues a job."""

    at: datetime  # in the schedule's time zone
    note: str = ""  # what the clocks do about then; empty: nothing


# Parts of a rule


@attrs.frozen
class _Cron:
    text: str
    zone: ZoneInfo

    def after(self, at: datetime) -> datetime | None:
        if not _is_of_the_day(self.text) or self.zone.key == "UTC":
            return self._by_the_clock(at)
        for tick in CronSim(self.text, at.astimezone(self.zone)):
            found = tick.astimezone(UTC)
            if found > at:  # in an hour that comes twice, cronsim goes by the first
                return found
        return None

    def _by_the_clock(self, at: datetime) -> datetime | None:
        """Return the first moment after `at` at which the clock shows what the text says.

        cronsim is asked without a time zone, between one change of the clocks and the next. With a
        time zone, cronsim takes steps of an hour. Then it leaves out ticks if clocks change by less
        than an hour, or not on the hour.
        """
        while True:
            offset = at.astimezone(self.zone).utcoffset() or timedelta()
            tick = next(CronSim(self.text, (at + offset).replace(tzinfo=None)), None)
            if tick is None:
                return None
            found = tick.replace(tzinfo=UTC) - offset
            change = _change_between(at, found, self.zone)
            if change is None:
                return found
            shown = change.astimezone(self.zone).replace(tzinfo=None)
            if next(CronSim(self.text, shown - timedelta(seconds=1)), None) == shown:
                return change
            at = change


def _is_of_the_day(cron: str) -> bool:
    """Tell whether a part is for times of the day, as Debian's cron has it."""
    minute, hour, *others = cron.split()
    return len(others) == 3 and not minute.startswith("*") and not hour.startswith("*")


def _change_between(after: datetime, until: datetime, zone: ZoneInfo) -> datetime | None:
    """Return the first second after `after`, up to `until`, at which clocks have changed."""
    offset = after.astimezone(zone).utcoffset()
    low = after
    while low < until:
        high = min(low + _CHANGES_APART, until)
        if high.astimezone(zone).utcoffset() != offset:
            while high - low > timedelta(seconds=1):
                middle = low + (high - low) // 2
                if middle.astimezone(zone).utcoffset() == offset:
                    low = middle
                else:
                    high = middle
            return high.replace(microsecond=0)
        low = high
    return None


@attrs.frozen
class _Interval:
    seconds: int

    def after(self, at: datetime) -> datetime | None:
        passed = (at - _EPOCH) // timedelta(seconds=self.seconds)
        return _EPOCH + timedelta(seconds=self.seconds * (passed + 1))


@attrs.frozen
class _Once:
    at: datetime  # in UTC

    def after(self, at: datetime) -> datetime | None:
        return self.at if self.at > at else None


# Exclusions. Each tells until when, at the least, there is no tick; None: `at` may be a tick.


@attrs.frozen
class _Days:
    first: date
    last: date
    zone: ZoneInfo

    def until(self, at: datetime) -> datetime | None:
        if not self.first <= at.astimezone(self.zone).date() <= self.last:
            return None
        return _end_of_day(self.last, self.zone)


@attrs.frozen
class _Moment:
    at: datetime  # in UTC

    def until(self, at: datetime) -> datetime | None:
        return at if at == self.at else None


@attrs.frozen
class _CronMatch:
    sim: CronSim
    has_seconds: bool
    zone: ZoneInfo

    def until(self, at: datetime) -> datetime | None:
        sim, local = self.sim, at.astimezone(self.zone)
        if not (local.month in sim.months and sim.match_day(local.date()) and local.hour in sim.hours):
            return None
        if local.minute not in sim.minutes or (self.has_seconds and local.second not in sim.seconds):
            return None
        if self.has_seconds:
            return at
        if len(sim.hours) == 24 and len(sim.minutes) == 60:
            return _end_of_day(local.date(), self.zone)
        return at + timedelta(seconds=59 - at.second, microseconds=999_999 - at.microsecond)


def _end_of_day(day: date, zone: ZoneInfo) -> datetime:
    """Return the last microsecond of a day."""
    return datetime.combine(day + timedelta(days=1), time(), zone).astimezone(UTC) - timedelta(microseconds=1)


@attrs.frozen
class Rule:
    """When there are ticks. Made by `rule_of`."""

    text: str
    zone: ZoneInfo
    _parts: tuple[_Cron | _Interval | _Once, ...]
    _excluded: tuple[_Days | _Moment | _CronMatch, ...]

    def after(self, at: datetime) -> datetime | None:
        """Return the first tick after a time, in UTC; None: there is none.

        Raises:
            InvalidJob: the exclusions leave none among the ticks that we try (TRIES_MAX).
        """
        start = at = at.astimezone(UTC)
        for _ in range(TRIES_MAX):
            try:
                found = [tick for part in self._parts if (tick := part.after(at)) is not None]
                if not found:
                    return None
                tick = min(found)
                ends = [end for each in self._excluded if (end := each.until(tick)) is not None]
            except OverflowError:  # beyond Python's years
                return None
            if not ends:
                return tick
            at = max(tick, *ends)
        raise InvalidJob(f"the exclusions leave no tick of {self.text!r:.80} between {start} and {at}: exclude less")

    def last(self, after: datetime, until: datetime) -> datetime | None:
        """Return the last tick after `after`, up to `until`; None: there is none."""
        for back in (*_BACK, until - after):
            start = max(after, until - back)
            tick = self.after(start)
            if tick is not None and tick <= until:
                while (later := self.after(tick)) is not None and later <= until:
                    tick = later
                return tick
            if start == after:
                break
        return None

    def between(self, first: datetime, last: datetime) -> Iterator[datetime]:
        """Yield the ticks from a time to another, both included, in UTC."""
        tick = self.after(first - timedelta(microseconds=1))
        while tick is not None and tick <= last:
            yield tick
            tick = self.after(tick)

    def upcoming(self, after: datetime, count: int) -> list[Tick]:
        """Return the next ticks, each with what the clocks do about then."""
        found: list[Tick] = []
        before = after.astimezone(self.zone)
        while len(found) < count and (at := self.after(before)) is not None:
            local = at.astimezone(self.zone)
            found.append(Tick(local, self._note(before, local)))
            before = local
        return found

    def _note(self, before: datetime, local: datetime) -> str:
        notes = []
        if before.utcoffset() != local.utcoffset():
            notes.append(f"clocks change before it: UTC{before:%z} to UTC{local:%z}")
        if local.replace(fold=1 - local.fold).utcoffset() != local.utcoffset():
            notes.append(f"the clock shows this time twice, this is the {('first', 'second')[local.fold]}")
        return "; ".join(notes)


def rule_of(rule: str, tz: str = "UTC", exclude: str = "") -> Rule:
    """Read a rule and its exclusions, as text.

    Raises:
        InvalidJob: it cannot be read, or there is no such time zone.
    """
    if len(rule) + len(exclude) > RULE_CHARS_MAX:
        raise InvalidJob(f"a rule of {len(rule) + len(exclude)} characters is too long: use at most {RULE_CHARS_MAX}")
    return _rule_of(rule, tz, exclude)


@functools.lru_cache(maxsize=2048)
def _rule_of(rule: str, tz: str, exclude: str) -> Rule:
    zone = _zone(tz)
    parts = tuple(_part(text, zone) for each in rule.split(";") if (text := each.strip()))
    if not parts:
        raise InvalidJob("a rule has no part: say '0 3 * * *', 'every 45m' or '09:00', say")
    return Rule(rule, zone, parts, tuple(_exclusion(text, zone) for each in exclude.split(";") if (text := each.strip())))


def _zone(tz: str) -> ZoneInfo:
    try:
        return ZoneInfo(tz)
    except (KeyError, ValueError, OSError, TypeError):  # also for names that are paths
        raise InvalidJob(f"there is no time zone {tz!r:.80}: use a name as 'Europe/Berlin'") from None


def _part(text: str, zone: ZoneInfo) -> _Cron | _Interval | _Once:
    if (interval := _INTERVAL.fullmatch(text)) is not None:
        seconds = sum(int(count) * _UNITS[unit.lower()] for count, unit in re.findall(r"(\d+)\s*(\w)", interval[1]))
        if not 1 <= seconds <= SECONDS_MAX:
            raise InvalidJob(f"the interval {text!r:.80} is out of range: from 1 s to ten years")
        return _Interval(seconds)
    if (daily := _TIME.fullmatch(text)) is not None:
        hour, minute, second = (int(each or 0) for each in daily.groups())
        cron = f"{minute} {hour} * * *" if second == 0 else f"{second} {minute} {hour} * * *"
        return _Cron(_checked(cron, text), zone)
    if (moment := _moment(text, zone)) is not None:
        return _Once(moment)
    return _Cron(_checked(text, text), zone)


def _exclusion(text: str, zone: ZoneInfo) -> _Days | _Moment | _CronMatch:
    if (days := _DATES.fullmatch(text)) is not None:
        try:
            first = date.fromisoformat(days[1])
            last = date.fromisoformat(days[2] or days[1])
        except ValueError as error:
            raise InvalidJob(f"the exclusion {text!r:.80} is no date: {error}") from None
        if not (first <= last and last.year < 9998):
            raise InvalidJob(f"the exclusion {text!r:.80} ends before it begins, or too late")
        return _Days(first, last, zone)
    if (moment := _moment(text, zone)) is not None:
        return _Moment(moment)
    return _CronMatch(CronSim(_checked(text, text), _EPOCH), len(text.split()) == 6, zone)


def _checked(cron: str, text: str) -> str:
    """Return a cron expression that can be read, and that has a tick some day."""
    try:
        sim = CronSim(cron, _EPOCH)
        next(sim)
    except (CronSimError, ValueError, TypeError) as error:
        message = (
            f"the rule {text!r:.80} cannot be read ({error}): use cron of five or six fields, 'every 45m', '09:00' or a time"
        )
        raise InvalidJob(message) from None
    except StopIteration:
        raise InvalidJob(f"the rule {text!r:.80} never comes true") from None
    return cron


def _moment(text: str, zone: ZoneInfo) -> datetime | None:
    if not re.match(_DATE, text):
        return None
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=zone)
        return moment.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise InvalidJob(f"{text!r:.80} is no time: {error}") from None


def _text_of(given: object) -> str:
    if isinstance(given, str):
        return given
    if isinstance(given, timedelta):
        seconds = given / timedelta(seconds=1)
        if seconds != int(seconds):
            raise InvalidJob(f"the interval {given} has a part of a second: use whole ones")
        return f"every {int(seconds)}s"
    if isinstance(given, time):
        if given.microsecond or given.tzinfo is not None:
            raise InvalidJob(f"the time {given!r} has microseconds, or a time zone, which is the schedule's")
        return given.isoformat()
    if isinstance(given, (datetime, date)):
        return given.isoformat()
    raise InvalidJob(f"{given!r:.80} is no rule: pass a text, a datetime, a time, a timedelta, or several of them")


def joined(given: When | Excluded | Iterable[When | Excluded]) -> str:
    """Write a rule, or exclusions, as text, given one part or several.

    Raises:
        InvalidJob: something else was given.
    """
    if isinstance(given, (str, datetime, date, time, timedelta)) or not isinstance(given, Iterable):
        return _text_of(given)
    return "; ".join(_text_of(each) for each in given)


def check_schedule_name(name: object) -> str:
    """Return the name of a schedule.

    Raises:
        InvalidJob: it does not fit.
    """
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise InvalidJob(f"the schedule name {name!r:.80} is not valid: use 1 to 127 letters, digits and _ . : @ / -")
    return name


def _seconds(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= SECONDS_MAX:
        raise InvalidJob(f"{name} {value!r} is out of range: use 0 to {SECONDS_MAX:.0f}")


@attrs.frozen(kw_only=True)
class NewSchedule:
    """A schedule as a program says it. Checked when it is made.

    Raises:
        InvalidJob: a field is out of range, or cannot be read.
    """

    name: str  # a tenant has at most one schedule of this name
    rule: str
    job: NewJob  # what is enqueued at each tick
    tz: str = "UTC"  # for cron, for times without an offset, and for exclusions
    exclude: str = ""
    missed: str = Missed.LAST
    # A tick that is late by more than this is missed for good. None: no limit; with `none`, 60.
    window_seconds: float | None = None
    overlap: str = Overlap.SKIP
    jitter_seconds: float = 0.0  # a job is due at most so long after its tick; the same for a tick
    owner: str | None = None  # the program whose code has the schedule; None: none

    def __attrs_post_init__(self) -> None:
        check_schedule_name(self.name)
        rule_of(self.rule, self.tz, self.exclude).after(_EPOCH)
        for name, value, words in (("missed", self.missed, Missed), ("overlap", self.overlap, Overlap)):
            if value not in set(words):
                raise InvalidJob(f"{name} {value!r} is not known: use {', '.join(words)}")
        if self.window_seconds is not None:
            _seconds("window_seconds", self.window_seconds)
        _seconds("jitter_seconds", self.jitter_seconds)


# What a worker does


@attrs.frozen(kw_only=True)
class Pending:
    """A schedule that a worker has to move on, as the worker sees it."""

    schedule_id: UUID
    name: str
    rule: str
    tz: str
    exclude: str
    missed: str
    overlap: str
    window_seconds: float | None
    next_at: datetime | None  # None: the worker has to find it
    due_at: datetime | None  # when a worker has to see to it; None: now
    done_to: datetime  # all ticks up to then have been seen to
    version: int


@attrs.frozen(kw_only=True)
class Move:
    """What a worker does with a schedule: ticks to enqueue, and the next tick."""

    of: Pending
    ticks: Sequence[datetime] = ()
    next_at: datetime | None = None
    missed_from: datetime | None = None  # the first tick that is left out; None: none is
    error_message: str | None = None  # why the rule cannot be followed

    @property
    def fields(self) -> Mapping[str, Any]:
        """What SQL is given, as JSON."""
        return {
            "schedule_id": str(self.of.schedule_id),
            "version": self.of.version,
            "next_at": None if self.of.next_at is None else self.of.next_at.isoformat(),
            "next_to": "infinity" if self.next_at is None else self.next_at.isoformat(),
            "ticks": [tick.isoformat() for tick in self.ticks],
            "error_message": self.error_message,
        }


def move_of(pending: Pending, now: datetime) -> Move:
    """Tell what is to be done with a schedule at a time, on the database's clock."""
    try:
        rule = rule_of(pending.rule, pending.tz, pending.exclude)
        first = pending.next_at if pending.next_at is not None else rule.after(pending.done_to)
        if first is None or first > now:
            return Move(of=pending, next_at=first)
        if pending.missed == Missed.ALL:
            return _all(pending, rule, first, now)
        last = rule.last(first, now) or first
        window = pending.window_seconds
        if window is None and pending.missed == Missed.NONE:
            window = NONE_WINDOW_SECONDS
        is_too_late = window is not None and (now - last).total_seconds() > window
        left_out = first if is_too_late or last > first else None
        return Move(of=pending, ticks=() if is_too_late else (last,), next_at=rule.after(last), missed_from=left_out)
    except InvalidJob as error:
        return Move(of=pending, error_message=str(error))


def _all(pending: Pending, rule: Rule, first: datetime, now: datetime) -> Move:
    tick: datetime | None = first
    if pending.window_seconds is not None:
        begin = now - timedelta(seconds=pending.window_seconds)
        if first < begin:
            tick = rule.after(begin - timedelta(microseconds=1))
    missed_from = None if tick == first else first
    ticks: list[datetime] = []
    while tick is not None and tick <= now and len(ticks) < AT_ONCE_MAX:
        ticks.append(tick)
        tick = rule.after(tick)
    return Move(of=pending, ticks=ticks, next_at=tick, missed_from=missed_from)


def scheduled_for(headers: Mapping[str, Any]) -> datetime | None:
    """Return the tick that a job was enqueued for, in UTC; None: no schedule enqueued it."""
    said = headers.get(SCHEDULE_KEY)
    if not isinstance(said, dict) or not isinstance(said.get("tick"), str):
        return None
    try:
        tick = datetime.fromisoformat(said["tick"])
        return tick.replace(tzinfo=UTC) if tick.tzinfo is None else tick.astimezone(UTC)
    except (ValueError, OverflowError):  # raw SQL stores anything
        return None
