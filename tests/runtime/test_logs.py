"""Events and records as log lines: nothing forges a line, nothing is without end."""

from __future__ import annotations

import datetime as dt
import json
import logging
import uuid
from typing import Any

import pytest

from pgnotifyq import Event, EventName
from pgnotifyq.model.events import FIELD_CHARS_MAX, VALUE_CHARS_MAX, as_json, as_line
from pgnotifyq.runtime.logs import JobLog, JsonFormatter, LineFormatter, log_event

HUGE = "x" * 50_000_000
AT = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)


class Unspeakable:
    """Has no text."""

    def __str__(self) -> str:
        raise ValueError


FIELDS: dict[str, Any] = {
    "why": "a\r\n12:00:00.000 job.completed \x1b[2J\u2028",
    "huge": HUGE,
    "job_id": uuid.UUID(int=1),
    "seconds": 0.30000001,
    "nan": float("nan"),
    "nobody": Unspeakable(),
}


def test_event_under_plain_logging(caplog: pytest.LogCaptureFixture) -> None:
    """One printable line of a bound, and fields of one."""
    with caplog.at_level(logging.DEBUG, "pgnotifyq"):
        log_event(Event(name=EventName.JOB_DEAD, fields=FIELDS))
    (record,) = caplog.records
    assert record.getMessage().isprintable()
    assert len(record.getMessage()) < 10 * VALUE_CHARS_MAX
    fields = record.__dict__["pgnotifyq"]
    assert (fields["job_id"], fields["nan"]) == (str(uuid.UUID(int=1)), "nan")
    assert len(fields["huge"]) <= FIELD_CHARS_MAX


@pytest.mark.parametrize("render", [as_line, as_json])
def test_event_as_a_line(render: Any) -> None:
    """Printable, and bounded, in either format."""
    line = render(Event(name=EventName.JOB_DEAD, fields=FIELDS), AT)
    assert line.isprintable()
    assert len(line) < 2 * FIELD_CHARS_MAX


@pytest.mark.parametrize("formatter", [LineFormatter(), JsonFormatter()], ids=["line", "json"])
def test_record_of_any_text(formatter: logging.Formatter) -> None:
    """Whatever its text, arguments and extras are."""
    for message, arguments in ((HUGE + "\r\x1b[2J", ()), ("%d", ("no number",)), (Unspeakable(), ()), ("%s", (Unspeakable(),))):
        record = logging.LogRecord("app", logging.INFO, __file__, 1, message, arguments, None)
        record.__dict__.update(FIELDS, **{f"more_{number}": number for number in range(1_000)})
        text = formatter.format(record)
        assert len(text) < 20_000
        first, *rest = text.split("\n")
        assert first.isprintable()
        assert all(line.startswith("    ") and line.isprintable() for line in rest)


def test_records_own_fields_are_kept() -> None:
    """An extra that is called like one of ours takes no place of it."""
    record = logging.LogRecord("app", logging.INFO, __file__, 1, "text", (), None)
    record.__dict__.update({"event": "job.completed", "at": "never", "level": "none", "logger": "other"})
    told = json.loads(JsonFormatter().format(record))
    assert (told["event"], told["level"], told["logger"]) == ("log", "info", "app")


def test_extra_of_a_call_joins_the_jobs_fields(caplog: pytest.LogCaptureFixture) -> None:
    """The standard adapter drops it; and the job's fields are not the call's to change."""
    log = JobLog(logging.getLogger("pgnotifyq.job"), {"job_id": "1"})
    with caplog.at_level(logging.INFO):
        log.info("text", extra={"batch": 3, "job_id": "2"})
    (record,) = caplog.records
    assert (record.__dict__["batch"], record.__dict__["job_id"]) == (3, "1")
