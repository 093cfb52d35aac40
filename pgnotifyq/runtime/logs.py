"""Logs: events as records of the standard library's logging, under `pgnotifyq`.

And the worker command's own set-up of logging.

Rules:

- What comes from jobs, handlers and the database is escaped and bounded where it becomes a line: no
  text forges a line of the log, none moves a cursor, none is 50 MB long.
- The worker command writes events to standard output, and records that are logged to standard
  error, both in the format that was asked for. As JSON, each of them is one line with a field
  `event`. For a record that is logged, `event` is `log`.
- A record names the job that it belongs to. `ctx.log` knows its job. For the application's own
  loggers, it is the job whose task logs, or whose handler started that task.
- An application that has set up logging itself keeps its own set-up.
- A record that cannot be written is lost. A log never ends a worker.
"""

from __future__ import annotations

import json
import logging
import logging.config
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import trio.lowlevel

from pgnotifyq.model.errors import ConfigError, quietly
from pgnotifyq.model.events import ROUTINE, EventName, bounded_value, shown_value
from pgnotifyq.model.outcome import bounded
from pgnotifyq.model.tracing import ids_in_logs

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from pgnotifyq.model.events import Event

_log = logging.getLogger("pgnotifyq")
_LOUD = frozenset(
    {
        EventName.JOB_DEAD,
        EventName.JOB_UNRESPONSIVE,
        EventName.JOB_LEFT_OPEN,
        EventName.LEASE_LOST,
        EventName.LISTENER_POLLING,
        EventName.LISTENER_LOST,
        EventName.DATABASE_LOST,
        EventName.OUTCOME_REFUSED,
        EventName.JOB_PUT_ASIDE,
        EventName.LOOP_BLOCKED,
    }
)
LEVELS = ("debug", "info", "warning", "error", "critical")
EXTRAS_MAX = 50  # fields that a record may bring along

# Returns what the job of a task is called by, or None. Each worker of this process has such a
# function.
NamesOf = Callable[["trio.lowlevel.Task"], "Mapping[str, Any] | None"]
_naming: list[NamesOf] = []
# For code that runs beside trio: a function that returns what its job is called by.
job_names: ContextVar[Callable[[], Mapping[str, Any]] | None] = ContextVar("pgnotifyq_job_names", default=None)


def is_routine_logged() -> bool:
    """Tell whether anybody would see the events that every job makes."""
    return _log.isEnabledFor(logging.DEBUG)


def log_event(event: Event) -> None:
    """Write one event as a log record; its fields are in `extra`."""
    level = logging.DEBUG if event.name in ROUTINE else logging.WARNING if event.name in _LOUD else logging.INFO
    if _log.isEnabledFor(level):
        told = " ".join(f"{name}={shown_value(value)}" for name, value in event.fields.items())
        fields = {name: bounded_value(value) for name, value in event.fields.items()}
        _log.log(level, "%s %s", event.name.value, told, extra={"pgnotifyq": fields})


def log_blocked(fields: Mapping[str, Any]) -> None:
    """Say at once, from the watchdog's thread, which handler or task holds the event loop.

    If nobody set up logging, it is said on standard error.
    """
    who = f"handler {fields['handler']} (job {fields['job_id']})" if "job_id" in fields else f"task {fields['task']}"
    calls = "".join(f"\n  {line}" for line in fields["stack"].splitlines())
    extra = {"pgnotifyq": dict(fields), "pgnotifyq_event": EventName.LOOP_BLOCKED.value}
    _log.warning("%s has held the event loop for %.1f s%s", who, fields["seconds"], calls, extra=extra)


class JobLog(logging.LoggerAdapter[logging.Logger]):
    """A logger whose records carry a job's fields, and what a call adds to them in `extra`."""

    def __init__(
        self, logger: logging.Logger, fields: Mapping[str, Any], keep: Callable[[float, str, str], object] | None = None
    ) -> None:
        super().__init__(logger, fields)
        self._keep = keep  # keeps a line with its attempt: time, level and text

    def log(self, level: int, msg: Any, *args: Any, **kwargs: Any) -> None:
        """Log a line, and keep it: from info on, even if the set-up of logging drops it."""
        if self._keep is not None and (level >= logging.INFO or self.isEnabledFor(level)):
            quietly(self._keep, time.time(), logging.getLevelName(level).lower(), _kept(msg, args, kwargs.get("exc_info")))
        # One frame more: it is the caller that logs, not this method.
        super().log(level, msg, *args, **{**kwargs, "stacklevel": kwargs.get("stacklevel", 1) + 1})

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """Merge the call's `extra` into the job's fields; the standard adapter drops it."""
        return msg, {**kwargs, "extra": {**(kwargs.get("extra") or {}), **(self.extra or {})}}


def _kept(msg: Any, args: tuple[Any, ...], exc_info: Any) -> str:
    """Return the text of a line that is kept, with its traceback if there is one."""
    if isinstance(exc_info, BaseException):
        exc_info = (type(exc_info), exc_info, exc_info.__traceback__)
    elif exc_info and not isinstance(exc_info, tuple):
        exc_info = sys.exc_info()
    record = logging.LogRecord("", 0, "", 0, msg, args, exc_info or None)
    details = _details(record)
    return "\n".join([_message(record), *details.values()])


@contextmanager
def naming(names_of: NamesOf) -> Iterator[None]:
    """While the block lasts, `names_of` names the job of each record by the task that logs."""
    _naming.append(names_of)
    try:
        yield
    finally:
        _naming.remove(names_of)


@attrs.frozen(kw_only=True)
class Logs:
    """How a worker process logs: its format, the least level, and the user's own configuration."""

    format: str = "line"
    level: str | None = None
    config: Mapping[str, Any] | None = None  # for logging.config.dictConfig

    @classmethod
    def read(cls, log_format: str, level: str | None = None, config_file: str | None = None) -> Logs:
        """Check what was given on the command line, and read the file.

        Args:
            log_format: line or json.
            level: the least that is written: debug, info, warning, error or critical; None: info.
            config_file: JSON or TOML, as logging.config.dictConfig takes it.

        Raises:
            ConfigError: there is no such format or level, or the file cannot be used.
        """
        if log_format not in {"line", "json"}:
            raise ConfigError(f"--log-format {log_format!r}: use line or json")
        if level is not None and level.lower() not in LEVELS:
            raise ConfigError(f"--log-level {level!r}: use {', '.join(LEVELS)}")
        return cls(format=log_format, level=level, config=None if config_file is None else _read_config(config_file))

    def set_up(self) -> None:
        """Have all that is logged, warnings included, come on standard error, in lines or as JSON.

        Call it when the application has been imported. If the application has set up logging
        itself, only a level and a configuration that are given count. As JSON, warnings are records
        even then, and so are exceptions that nobody catches, in whatever thread.

        Raises:
            ConfigError: the configuration cannot be used.
        """
        root = logging.getLogger()
        if self.format == "json" or self.config is not None or not root.handlers:
            logging.captureWarnings(capture=True)
        if self.config is not None:
            try:
                logging.config.dictConfig(dict(self.config))
            except Exception as error:
                cause = error.__cause__ or error
                raise ConfigError(f"--log-config: {type(error).__name__}: {error}; {cause}") from error
        elif not root.handlers:
            handler = _Stderr()
            handler.setFormatter(JsonFormatter() if self.format == "json" else LineFormatter())
            root.addHandler(handler)
            root.setLevel("INFO")
        if self.level is not None:
            root.setLevel(self.level.upper())
        if self.format == "json":
            log_what_nobody_catches()


def _read_config(file: str) -> Mapping[str, Any]:
    try:
        data = Path(file).read_bytes()
        found: Any = tomllib.loads(data.decode()) if file.endswith(".toml") else json.loads(data)
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"--log-config {file}: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"--log-config {file} holds a {type(found).__name__}: write an object, as dictConfig takes it")
    return {"version": 1, "disable_existing_loggers": False, **found}


def log_what_nobody_catches() -> None:
    """Turn what Python says of exceptions that nobody catches into records, for all threads."""

    def of_program(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            sys.__excepthook__(kind, error, trace)
        else:
            _log.critical("an exception that nobody caught ends the process", exc_info=(kind, error, trace))

    def of_thread(args: threading.ExceptHookArgs) -> None:
        if args.exc_value is not None and not issubclass(args.exc_type, SystemExit):
            name = args.thread.name if args.thread is not None else "?"
            _log.error("an exception ended thread %s", name, exc_info=(args.exc_type, args.exc_value, args.exc_traceback))

    def of_nowhere(args: sys.UnraisableHookArgs) -> None:
        if args.exc_value is not None:
            text = args.err_msg or "an exception could not be raised"
            _log.error("%s: %r", text, args.object, exc_info=(args.exc_type, args.exc_value, args.exc_traceback))

    # If the application has hooks of its own, they stay.
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = of_program
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = of_thread
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = of_nowhere


def as_json_log(message: str, level: str = "error") -> str:
    """Return a line of JSON for a message that no logger has logged."""
    record = logging.LogRecord("pgnotifyq", getattr(logging, level.upper()), "", 0, message, None, None)
    return JsonFormatter().format(record)


class _Stderr(logging.Handler):
    """Standard error: what `sys.stderr` is when a record is written."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record by one call, so that threads' lines do not mix; lose it if that fails."""
        try:
            encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
            line = self.format(record).encode(encoding, "backslashreplace").decode(encoding)
            sys.stderr.write(line + "\n")
            sys.stderr.flush()
        except Exception:  # noqa: BLE001, S110  # closed, full, or a record whose own text raises: there is nobody to tell
            pass


class LineFormatter(logging.Formatter):
    """A record as a line for people, in the form that events have.

    A traceback or a stack follows in indented lines.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        at = datetime.fromtimestamp(record.created).astimezone()
        told = " ".join(f"{name}={shown_value(value)}" for name, value in _fields(record).items())
        parts = [bounded(part) for part in (_message(record), *_details(record).values())]
        text = "\n".join(parts).replace("\n", "\n    ")
        first, newline, rest = text.partition("\n")
        return f"{at:%H:%M:%S}.{at.microsecond // 1000:03d} {record.levelname:<18} {first} {told}".rstrip() + newline + rest


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        own = {
            "at": datetime.fromtimestamp(record.created, UTC).astimezone().isoformat(),
            "event": getattr(record, "pgnotifyq_event", "log"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": bounded(_message(record)),
            **{name: bounded(text) for name, text in _details(record).items()},
        }
        fields = {name: bounded_value(value) for name, value in _fields(record).items()}
        # Our own come first for the reader, and last again so that no field takes their place.
        return json.dumps({**own, **fields, **own}, default=str, ensure_ascii=True, allow_nan=False)


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception as error:  # noqa: BLE001  # arguments that do not fit: the text alone is better than nothing
        return f"{bounded_value(record.msg)} (its arguments do not fit: {type(error).__name__})"


def _details(record: logging.LogRecord) -> dict[str, str]:
    """Return the traceback and the stack of a record, as far as it has any."""
    details = {}
    if record.exc_info and record.exc_info[0] is not None:
        details["exception"] = _FORMATTER.formatException(record.exc_info)
    elif record.exc_text:  # of a handler in a process, or from a queue: it came as text
        details["exception"] = record.exc_text
    if record.stack_info:
        details["stack"] = record.stack_info
    return details


_FORMATTER = logging.Formatter()
# What every record has; all else was brought along.
_OF_EVERY_RECORD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "pgnotifyq", "pgnotifyq_event"}


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """Return what a record has besides its text: the fields of an event, a job and the call."""
    fields = {**job_under_way(), **ids_in_logs(), **getattr(record, "pgnotifyq", {})}
    for name, value in vars(record).items():
        if name not in _OF_EVERY_RECORD and len(fields) < EXTRAS_MAX:
            fields[name] = value
    return fields


def job_under_way() -> dict[str, Any]:
    """Return what the job of the logging task is called by; nothing if it is no job's task."""
    if (names_here := job_names.get()) is not None:
        return dict(names_here())
    if not _naming or not trio.lowlevel.in_trio_task():
        return {}
    task = trio.lowlevel.current_task()
    for names_of in _naming:
        if (names := names_of(task)) is not None:
            return dict(names)
    return {}
