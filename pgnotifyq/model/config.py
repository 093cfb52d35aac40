"""The settings of a worker, their bounds, and why each bound is what it is."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

import attrs

from pgnotifyq.model.errors import ConfigError
from pgnotifyq.model.http_address import HttpAddress
from pgnotifyq.model.names import check_queue_name, check_schema_name

LEASE_SECONDS_DEFAULT = 60.0
HEARTBEATS_A_LEASE_MIN = 3  # two beats may be lost before the lease is
CONCURRENCY_DEFAULT = 10
CONCURRENCY_MAX = 10_000  # one process; beyond it heartbeats alone fill a statement
HANDLER_CONNECTIONS_DEFAULT = 10  # PostgreSQL has 100 for all its clients, by default
QUEUES_MAX = 100  # each costs two index probes in a claim that finds no job


class _Queues(tuple[str, ...]):  # noqa: SLOT001  # a tuple of any length has no slots
    """Names of queues, and how many jobs of a queue may run at once, if that was given."""

    permits: Mapping[str, int]


def _as_queues(queues: Iterable[str] | Mapping[str, int | None]) -> tuple[str, ...]:
    if isinstance(queues, _Queues):
        return queues
    if isinstance(queues, str) or not isinstance(queues, Iterable):
        raise ConfigError(f"queues {queues!r} is not a list: pass a list of names, or a dict of names and concurrencies")
    made = _Queues(queues)
    given = queues.items() if isinstance(queues, Mapping) else ()
    made.permits = {name: count for name, count in given if count is not None}
    return made


def queue_of(text: str) -> tuple[str, int | None]:
    """Return a queue's name and concurrency, as the command line has them: `images`, `images:10`.

    Names of queues may have colons. Digits behind the last colon are a concurrency. So a queue that
    is called `tenant:7` needs a concurrency: `tenant:7:50`.

    Raises:
        ConfigError: the concurrency is out of its bounds.
    """
    name, colon, digits = text.rpartition(":")
    if not colon or not (digits.isascii() and digits.isdigit()):
        return text, None
    if len(digits) > len(str(CONCURRENCY_MAX)) or not 1 <= int(digits) <= CONCURRENCY_MAX:
        raise ConfigError(
            f"queue {text[:80]!r}: {digits[:20]} jobs at once are out of range: use 1 to {CONCURRENCY_MAX}; "
            f"for a queue that is called so, write its concurrency behind it, as in {text[:80]}:10"
        )
    return name, int(digits)


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ConfigError(f"{name} {value!r} is not a number: use seconds")
    return value


def _permits(config: WorkerConfig) -> Mapping[str, int]:
    return getattr(config.queues, "permits", {})


def _permits_of_all(config: WorkerConfig) -> int:
    permits = _permits(config)
    if not all(isinstance(count, int) for count in permits.values()):
        return CONCURRENCY_DEFAULT  # these permits are refused later
    rest = 0 if permits and len(permits) == len(config.queues) else CONCURRENCY_DEFAULT
    return min(sum(permits.values()) + rest, CONCURRENCY_MAX)


# A process has 30 MiB of data when it has imported pgnotifyq; a limit below that would fail each
# job.
_OF_PROCESSES = (
    ("handler_processes_max", 1, 1000),
    ("handler_process_jobs_max", 1, 1_000_000_000),
    ("handler_process_memory_bytes_max", 64 * 2**20, 2**50),
)


def _check_address(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None and not isinstance(value, str):
        raise ConfigError(f"{attribute.name} is a {type(value).__name__}, not an address")


# These functions are used in `attrs.Factory`. pyright sees no default in a method that
# `@field.default` decorates.


def _third_of_the_lease(config: WorkerConfig) -> float:
    return _number("lease_seconds", config.lease_seconds) / HEARTBEATS_A_LEASE_MIN


def _tenth_of_the_lease(config: WorkerConfig) -> float:
    return min(_number("lease_seconds", config.lease_seconds) / 10, 5.0)


@attrs.frozen(kw_only=True)
class WorkerConfig:
    """Everything that can be set about a worker. Times are in seconds.

    Raises:
        ConfigError: a setting is out of its bounds, or contradicts another.
        InvalidName: a queue's or the schema's name.
    """

    # In order of preference. A dict also says how many jobs of a queue may run at once; then
    # `concurrency` holds, too: {"images": 10, "default": None}.
    queues: tuple[str, ...] = attrs.field(default=("default",), converter=_as_queues)
    # How many jobs run at once. Default: 10. If queues have a concurrency of their own, the default
    # is their sum, and 10 more if there are other queues.
    concurrency: int = attrs.field(default=attrs.Factory(_permits_of_all, takes_self=True))
    # How many jobs of a queue run at once, for the queues for which `queues` says it.
    queue_concurrency: Mapping[str, int] = attrs.field(init=False, default=attrs.Factory(_permits, takes_self=True))
    # If a worker is cut off, others take its jobs after this. A dead process is noticed sooner.
    lease_seconds: float = LEASE_SECONDS_DEFAULT
    # Default: a third of the lease; never more.
    heartbeat_seconds: float = attrs.field(default=attrs.Factory(_third_of_the_lease, takes_self=True))
    # A worker stops trusting a lease this long before its end. Default: a tenth of the lease, at
    # most 5.
    margin_seconds: float = attrs.field(default=attrs.Factory(_tenth_of_the_lease, takes_self=True))
    # How long running jobs may go on after the first signal. This, the grace and all that follows
    # take together less than the 30 seconds after which Kubernetes kills a process (cli/ending.py).
    shutdown_seconds: float = 12.0
    # For a handler's clean-up after an interrupt. After that the handler is called unresponsive.
    grace_seconds: float = 5.0
    backstop_seconds: float = 30.0  # longest sleep while notifications are proven to arrive
    poll_seconds: float = 1.0  # longest sleep while they are not
    # How long one handler may hold the event loop before the worker names that handler. Heartbeats
    # bear more. But a handler should feel its cancel within a second, and a cancelled query should
    # be answered within a second. Garbage collection, or a payload of 1 MiB, takes a tenth of that.
    loop_blocked_seconds: float = 1.0
    # If the worker's session is gone, other workers may take its jobs this long after its last sign
    # of life. A worker that hears nothing stops its jobs before that (runtime/trust.py). A value
    # below 0.5 counts as 0.5.
    session_grace_seconds: float = 1.5
    # How long finished jobs of the worker's queues are kept. If set_retention has set another time,
    # that time counts.
    retention_seconds: float = 7 * 86_400.0
    # How many sessions ctx.transaction() and ctx.org.transaction() share. They are opened when a
    # handler asks. If all are taken, the handler waits.
    handler_connections_max: int = HANDLER_CONNECTIONS_DEFAULT
    handler_connection_seconds: float = 30.0  # of that wait; then the job is put back, uncharged
    # The address of a tenant's login (`migrate --grant-tenant`), for ctx.org.transaction(). None:
    # the worker uses the login that `migrate --tenant-login` made. If there is no such login, these
    # transactions share the sessions above, and are confined against mistakes only.
    tenant_dsn: str | None = attrs.field(default=None, repr=False, validator=_check_address)
    # How many processes handlers with runs_in="process" share. None: one for each core that this
    # process may use. The worker does not see a quota of processor time, as containers have.
    handler_processes_max: int | None = None
    # A process of handlers is replaced after this many jobs. None: their number does not matter.
    handler_process_jobs_max: int | None = None
    # How many bytes of data such a process may have while a handler runs. Beyond that, the handler
    # gets a MemoryError. If the process still has more than half of that when the handler has
    # ended, the process is replaced. None: no limit. On Linux only.
    handler_process_memory_bytes_max: int | None = None
    schema: str = "pgnotifyq"
    # Where probes and metrics are answered, as "127.0.0.1:9100" (docs/metrics.md). None: nowhere.
    http: str | None = None

    def __attrs_post_init__(self) -> None:
        if not 1 <= len(self.queues) <= QUEUES_MAX:
            raise ConfigError(f"queues {self.queues!r}: name 1 to {QUEUES_MAX} queues")
        for name in self.queues:
            check_queue_name(name)
        if len(set(self.queues)) != len(self.queues):
            raise ConfigError(f"queues {', '.join(self.queues)}: a queue is named twice")
        for name, count in self.queue_concurrency.items():
            if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= CONCURRENCY_MAX:
                raise ConfigError(
                    f"queue {name}: a concurrency of {count!r}: use a whole number, 1 to {CONCURRENCY_MAX}, or None"
                )
        check_schema_name(self.schema)
        if self.http is not None:
            HttpAddress.read(self.http)
        for name in ("concurrency", "handler_connections_max"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise ConfigError(f"{name} {value!r} is not a whole number")
        for name, low, high in _OF_PROCESSES:
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high):
                raise ConfigError(f"{name} {value!r} is out of range: use a whole number, {low} to {high}, or None")
        self._bound("handler_connections_max", 1, CONCURRENCY_MAX)
        self._bound("handler_connection_seconds", 0.01, 3_600)
        self._bound("concurrency", 1, CONCURRENCY_MAX)
        self._bound("lease_seconds", 0.5, 86_400)
        self._bound("heartbeat_seconds", 0.05, 86_400)
        self._bound("margin_seconds", 0.01, 3_600)
        self._bound("shutdown_seconds", 0, 86_400)
        self._bound("grace_seconds", 0, 3_600)
        self._bound("backstop_seconds", 0.05, 3_600)
        self._bound("poll_seconds", 0.01, 60)
        self._bound("session_grace_seconds", 0.1, 3_600)
        self._bound("loop_blocked_seconds", 0.05, 3_600)
        self._bound("retention_seconds", 0, 10 * 366 * 86_400)
        if self.heartbeat_seconds > self.lease_seconds / HEARTBEATS_A_LEASE_MIN * 1.000001:
            message = (
                f"heartbeat_seconds {self.heartbeat_seconds:g} is more than a third of lease_seconds {self.lease_seconds:g}: "
                f"two beats must be able to fail; use at most {self.lease_seconds / HEARTBEATS_A_LEASE_MIN:g}"
            )
            raise ConfigError(message)
        if self.lease_seconds - self.margin_seconds < 2 * self.heartbeat_seconds:
            message = (
                f"margin_seconds {self.margin_seconds:g} leaves less than two heartbeats of a lease of "
                f"{self.lease_seconds:g}: use at most {self.lease_seconds - 2 * self.heartbeat_seconds:g}"
            )
            raise ConfigError(message)

    def _bound(self, name: str, low: float, high: float) -> None:
        value = getattr(self, name)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not is_number or not low <= value <= high:
            raise ConfigError(f"{name} {value!r} is out of range: use {low:g} to {high:g}")


class WorkerSettings(TypedDict, total=False):
    """The fields of WorkerConfig as keywords, for `run_worker`. A test keeps them the same."""

    queues: Sequence[str] | Mapping[str, int | None]
    concurrency: int
    lease_seconds: float
    heartbeat_seconds: float
    margin_seconds: float
    shutdown_seconds: float
    grace_seconds: float
    backstop_seconds: float
    poll_seconds: float
    loop_blocked_seconds: float
    session_grace_seconds: float
    retention_seconds: float
    handler_connections_max: int
    handler_connection_seconds: float
    tenant_dsn: str | None
    handler_processes_max: int | None
    handler_process_jobs_max: int | None
    handler_process_memory_bytes_max: int | None
    schema: str
    http: str | None


def config_of(config: WorkerConfig | None, settings: Mapping[str, Any]) -> WorkerConfig:
    """Return the configuration that the caller gave, as `config` or as keywords.

    Raises:
        ConfigError: both are given, or a keyword is no setting. The message names them.
    """
    known = [field.name for field in attrs.fields(WorkerConfig) if field.init]
    for name in settings:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            guess = f"did you mean {close[0]}? " if close else ""
            raise ConfigError(f"{name!r} is no setting of a worker: {guess}there are {', '.join(known)}")
    if config is None:
        return WorkerConfig(**settings)
    if not isinstance(config, WorkerConfig):
        raise ConfigError(f"config is a {type(config).__name__}, not a WorkerConfig")
    if settings:
        names = ", ".join(settings)
        raise ConfigError(f"config and {names} are both given: set {names} in the config, as with attrs.evolve(config, ...)")
    return config
