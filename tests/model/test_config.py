"""Settings that cannot work are refused, with what to use instead."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import attrs
import pytest

from pgnotifyq.model.config import WorkerConfig, WorkerSettings, config_of, queue_of
from pgnotifyq.model.errors import ConfigError, InvalidJob, InvalidName
from pgnotifyq.model.events import Event, EventName, as_json, as_line
from pgnotifyq.model.new_job import NewJob


def test_the_defaults_leave_three_beats_a_lease() -> None:
    """Two may fail."""
    config = WorkerConfig()
    assert config.heartbeat_seconds * 3 <= config.lease_seconds


@pytest.mark.parametrize(
    "settings",
    [
        {"lease_seconds": 60, "heartbeat_seconds": 30},
        {"lease_seconds": 60, "heartbeat_seconds": 21},
        {"lease_seconds": 60, "heartbeat_seconds": 60},
        {"lease_seconds": 60, "margin_seconds": 30},
        {"concurrency": 0},
        {"concurrency": 2.5},
        {"concurrency": True},
        {"queues": ()},
        {"queues": ("a", "a")},
        {"queues": "images"},
        {"lease_seconds": float("nan")},
        {"lease_seconds": "60"},
        {"lease_seconds": None},
        {"queues": None},
        {"loop_blocked_seconds": 0},
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any]) -> None:
    """Defect 5 among them: a heartbeat of half a lease leaves one chance to renew."""
    with pytest.raises(ConfigError):
        WorkerConfig(**settings)


def test_bad_names_are_refused() -> None:
    """Of queues and of the schema."""
    with pytest.raises(InvalidName):
        WorkerConfig(queues=("a b",))
    with pytest.raises(InvalidName):
        WorkerConfig(schema='x"; drop')


@pytest.mark.parametrize(
    "fields",
    [
        {"priority": 40_000},
        {"priority": True},
        {"max_attempts": 0},
        {"scheduled_at": datetime(2030, 1, 1)},  # noqa: DTZ001  # naive on purpose
        {"scheduled_at": datetime(2030, 1, 1, tzinfo=UTC), "delay_seconds": 1.0},
        {"delay_seconds": -1.0},
        {"delay_seconds": float("nan")},
        {"delay_seconds": "5"},
        {"scheduled_at": datetime.max.replace(tzinfo=timezone(timedelta(hours=-12)))},
        {"unique_key": ""},
        {"unique_key": "\x00"},
        {"org_id": "5d3c0f0e-6a0b-4c3e-9f43-0c1f6f7a8b2"},  # a digit is missing
    ],
)
def test_a_job_out_of_range_is_refused(fields: dict[str, Any]) -> None:
    """When it is made, before anything is sent."""
    with pytest.raises(InvalidJob):
        NewJob(job_type="x", **fields)


def test_a_line_of_the_log_cannot_be_forged() -> None:
    """Control characters are escaped, long values cut."""
    event = Event(name=EventName.JOB_DEAD, fields={"why": "x\n12:00:00 worker.stopped\x1b[2J", "long": "y" * 10_000})
    line = as_line(event, datetime(2026, 1, 1, tzinfo=UTC))
    assert "\n" not in line
    assert "\x1b" not in line
    assert len(line) < 1_000
    assert "\n" not in as_json(event, datetime(2026, 1, 1, tzinfo=UTC))


def test_an_event_in_json_is_json_and_keeps_its_name() -> None:
    """Numbers that JSON does not have are texts, and no field takes the place of the event's name or time."""
    event = Event(name=EventName.JOB_DEAD, fields={"share": float("nan"), "event": "worker.stopped", "at": "never"})
    told = json.loads(as_json(event, datetime(2026, 1, 1, tzinfo=UTC)), parse_constant=pytest.fail)
    assert told == {"at": "2026-01-01T00:00:00+00:00", "event": "job.dead", "share": "nan"}


def test_the_keywords_are_the_fields() -> None:
    """Those that `run_worker` is typed with."""
    assert set(WorkerSettings.__annotations__) == {field.name for field in attrs.fields(WorkerConfig) if field.init}


def test_settings_given_twice_are_refused() -> None:
    """Both are named: before, the keyword was ignored without a word."""
    with pytest.raises(ConfigError, match=r"config and queues, concurrency are both given"):
        config_of(WorkerConfig(), {"queues": ("images",), "concurrency": 10})
    assert config_of(WorkerConfig(concurrency=3), {}).concurrency == 3
    assert config_of(None, {"concurrency": 3}).concurrency == 3


@pytest.mark.parametrize(
    ("name", "words"), [("lease_second", "did you mean lease_seconds"), ("nonsense", "there are queues, concurrency")]
)
def test_a_setting_that_is_not_known_is_refused(name: str, words: str) -> None:
    """With those there are, and the one that is like it."""
    with pytest.raises(ConfigError, match=words):
        config_of(None, {name: 1})


def test_a_config_of_another_kind_is_refused() -> None:
    """Where it is given, not where it is used."""
    with pytest.raises(ConfigError, match="dict"):
        config_of({"concurrency": 3}, {})  # type: ignore[arg-type]


def test_queues_with_a_concurrency_of_their_own() -> None:
    """A dict says it; what changes another setting keeps it; the total is their sum, and ten for the others."""
    config = WorkerConfig(queues={"images": 3, "mail": None})
    assert (config.queues, config.queue_concurrency, config.concurrency) == (("images", "mail"), {"images": 3}, 13)
    assert attrs.evolve(config, shutdown_seconds=3.0).queue_concurrency == {"images": 3}
    assert WorkerConfig(queues={"images": 3, "mail": 4}).concurrency == 7
    assert WorkerConfig(queues={"images": 3}, concurrency=2).concurrency == 2
    assert config != WorkerConfig(queues=("images", "mail"), concurrency=13)
    assert config_of(None, {"queues": {"images": 3, "mail": None}}) == config


@pytest.mark.parametrize("count", [0, -1, 1.5, True, "3", 10_001])
def test_queues_with_an_odd_concurrency(count: object) -> None:
    """It is refused, by the queue's name."""
    with pytest.raises(ConfigError, match="queue images"):
        WorkerConfig(queues={"images": count})


@pytest.mark.parametrize(
    ("text", "queue"),
    [
        ("images", ("images", None)),
        ("images:10", ("images", 10)),
        ("tenant:7:50", ("tenant:7", 50)),
        ("tenant:x", ("tenant:x", None)),
        ("images:", ("images:", None)),
        ("images:\u0663", ("images:\u0663", None)),
    ],
)
def test_queue_of_the_command_line(text: str, queue: tuple[str, int | None]) -> None:
    """Digits behind the last colon are a concurrency; everything else is the name, good or not."""
    assert queue_of(text) == queue


@pytest.mark.parametrize("text", ["images:0", "images:10001", "images:" + "9" * 5_000])
def test_queue_of_the_command_line_with_an_odd_concurrency(text: str) -> None:
    """It is refused, and the message is short."""
    with pytest.raises(ConfigError, match="use 1 to 10000") as refused:
        queue_of(text)
    assert len(str(refused.value)) < 400
