"""From a connection string to a connection: which addresses to try, how long, and what to say.

libpq has a loop over hosts of its own. It blocks on name resolution, and it ignores
`connect_timeout` if it is driven step by step. So here each address is an attempt of its own, with
a deadline of its own.
"""

from __future__ import annotations

import random
import re
import socket
from enum import Enum
from typing import TYPE_CHECKING, Protocol, TypeVar

import psycopg
import trio
from psycopg import errors
from psycopg._conninfo_utils import get_param, get_param_def, is_ip_address, split_attempts
from psycopg.conninfo import conninfo_to_dict, make_conninfo, timeout_from_conninfo

from pgnotifyq.wire import waiting

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from psycopg.abc import ConnDict, ConnParam, PQGenConn

Opened = TypeVar("Opened", bound="Closable")


class Closable(Protocol):
    """What `connect_first` needs of a connection that it does not return."""

    def close_nowait(self) -> None:
        """Close it; never wait."""


class Choice(Enum):
    """Which sessions will do, if the address does not say."""

    ANY = "any"
    RATHER_WRITABLE = "one that can write, else any"
    WRITABLE = "one that can write"


ANY, RATHER_WRITABLE, WRITABLE = Choice

UNTELLABLE = (
    "Cannot connect to PostgreSQL. The address is not shown, for it has an @ or a / where a password may have been cut in two:"
    " write them as %40 and %2F inside of a password. Otherwise check that the server is running and that the address is right."
)
"""This is said in the place of `explain`, if a host, a port or a database may hold a piece of a
password."""

CONNECT_SECONDS = 10
"""Patience for one address if neither the DSN nor PGCONNECT_TIMEOUT says. libpq waits for ever by
default."""

READ_ONLY = "read-only: a standby, or a role, database or server with default_transaction_read_only on"

_DRIVER = re.compile(r"^\s*(postgres(?:ql)?)\+\w+://")

KEEPALIVE_DEFAULTS: dict[str, ConnParam] = {
    "keepalives": 1,
    "keepalives_idle": 20,  # seconds of silence before the first probe
    "keepalives_interval": 5,  # seconds between probes
    # Unanswered probes: a silent peer is given up after 40 s, which is less than the default lease.
    "keepalives_count": 4,
    "tcp_user_timeout": 40_000,  # milliseconds, for bytes sent but not acknowledged: the same 40 s
}
"""Without these, a connection whose peer has vanished (power cut, dropped NAT entry) waits for two
hours. The user's own values win."""


def parameters_from(dsn: str, **parameters: ConnParam) -> ConnDict:
    """Return libpq's parameters for `dsn`, completed with this package's defaults.

    Args:
        dsn: a libpq connection string or URI.
        **parameters: libpq's. They win over `dsn`, but for `application_name`: there the DSN wins.
            None means not given.

    Raises:
        psycopg.ProgrammingError: `dsn` cannot be read.
    """
    application_name = parameters.pop("application_name", None)
    wanted = conninfo_to_dict(normal(dsn), **parameters)
    if application_name is not None:
        wanted.setdefault("application_name", application_name)
    for name, value in KEEPALIVE_DEFAULTS.items():
        wanted.setdefault(name, value)
    if get_param(wanted, "connect_timeout") is None:
        wanted["connect_timeout"] = CONNECT_SECONDS
    return wanted


def normal(dsn: str) -> str:
    """Return the address as libpq reads it. SQLAlchemy's addresses name a driver behind a plus.

    >>> normal("postgresql+asyncpg://ann@localhost/things")
    'postgresql://ann@localhost/things'
    """
    return _DRIVER.sub(r"\1://", dsn, count=1)


def says(parameters: ConnDict, name: str) -> bool:
    """Tell whether the address, or the environment, sets one of libpq's parameters."""
    return bool(get_param(parameters, name))


def hides_a_password(dsn: str) -> bool:
    """Tell whether a piece of a password may be where libpq reads a host, a port or a database.

    libpq takes the text before the first @ for user and password, if no / comes earlier.
    """
    before, is_uri, rest = normal(dsn).strip().partition("://")
    if not is_uri or not before.isalpha() or "@" not in rest:
        return False
    return rest.count("@") > 1 or "/" in rest[: rest.index("@")]


def told_of(error: psycopg.Error, dsn: str) -> str:
    """Return what to say of an error of psycopg's own connections, without a password.

    libpq quotes pieces of the address.
    """
    return UNTELLABLE if hides_a_password(dsn) and error.sqlstate is None else _reason(error)


async def connect_first(
    parameters: ConnDict,
    connect: Callable[[str], PQGenConn[Opened]],
    enter: Callable[[Opened], Awaitable[bool]] | None = None,
    choice: Choice = ANY,
) -> Opened:
    """Return the connection of the first address that answers as wanted.

    Args:
        parameters: libpq's; commas separate several hosts.
        connect: makes psycopg's connecting generator from a connection string for one address.
        enter: makes a session ready, and tells whether the session can write.
        choice: which sessions will do.

    Cancellation: the half-open connection is dropped.

    Raises:
        psycopg.OperationalError: none answered; one line for each address.
    """
    seconds = timeout_from_conninfo(parameters)
    failures: list[psycopg.Error] = []
    spare: Opened | None = None  # the first connection that answered and cannot write
    try:
        for attempt in await _attempts(parameters, seconds, failures):
            try:
                opened, can_write = await _open(attempt, seconds, connect, enter)
            except psycopg.Error as error:
                failures.append(error)
                continue
            if can_write or choice is ANY:
                return opened
            if choice is RATHER_WRITABLE and spare is None:
                spare = opened
                continue
            opened.close_nowait()
            failures.append(psycopg.OperationalError(f"{_name(attempt)} is {READ_ONLY}"))
        if spare is not None:
            opened, spare = spare, None
            return opened
    finally:
        if spare is not None:
            spare.close_nowait()
    if len(failures) == 1 and isinstance(failures[0], psycopg.OperationalError):
        raise failures[0].with_traceback(None)
    kind = type(failures[-1]) if isinstance(failures[-1], psycopg.OperationalError) else psycopg.OperationalError
    raise kind("\n".join(_reason(failure) for failure in failures)) from failures[-1]


async def _open(
    attempt: ConnDict,
    seconds: float,
    connect: Callable[[str], PQGenConn[Opened]],
    enter: Callable[[Opened], Awaitable[bool]] | None,
) -> tuple[Opened, bool]:
    """Open a connection to one address. Return it, and whether it can write (or nobody asks)."""
    opened: Opened | None = None
    is_ready = False
    try:
        with trio.move_on_after(seconds):
            opened = await waiting.drive_connecting(connect(make_conninfo("", **attempt)))
            can_write = enter is None or await enter(opened)
            is_ready = True
            return opened, can_write
    finally:
        if opened is not None and not is_ready:
            opened.close_nowait()
    raise errors.ConnectionTimeout(f"{_name(attempt)} did not answer within {seconds} seconds")


def explain(parameters: ConnDict, error: psycopg.Error) -> str:
    """Return one line: what could not be reached (never a password), why, and what to do."""
    try:
        names = ", ".join(dict.fromkeys(_name(attempt) for attempt in split_attempts(parameters)))
    except psycopg.OperationalError:  # the numbers of hosts and ports differ: `error` says so
        names = str(get_param(parameters, "host"))
    database, user = get_param(parameters, "dbname"), get_param(parameters, "user")
    what = " ".join(
        [f"Cannot connect to PostgreSQL at {names}"]
        + ([f"database {database}"] if database else [])
        + ([f"as {user}"] if user else [])
    )
    reason = _reason(error)
    return f"{what}: {reason.rstrip('.')}. {_advice(reason)}"


async def _attempts(parameters: ConnDict, seconds: float, failures: list[psycopg.Error]) -> list[ConnDict]:
    """Return a set of parameters for each address, in the order to try them.

    If a host's name has no address, add the error to `failures`.
    """
    prefer_standby = get_param(parameters, "target_session_attrs") == "prefer-standby"
    if prefer_standby:
        parameters = {**parameters, "target_session_attrs": "any"}
    attempts: list[ConnDict] = []
    for host in split_attempts(parameters):
        try:
            with trio.fail_after(seconds):
                attempts += await _resolve(host)
        except (OSError, trio.TooSlowError) as error:
            reason = "no answer from the name service" if isinstance(error, trio.TooSlowError) else error.strerror
            failures.append(psycopg.OperationalError(f"the name {host.get('host')!r} cannot be resolved: {reason}"))
    if get_param(parameters, "load_balance_hosts") == "random":
        random.shuffle(attempts)
    if prefer_standby:
        return [{**attempt, "target_session_attrs": "standby"} for attempt in attempts] + attempts
    return attempts


async def _resolve(host: ConnDict) -> list[ConnDict]:
    name = get_param(host, "host")
    if not name or name.startswith(("/", "@")) or name[1:2] == ":" or get_param(host, "hostaddr"):
        return [host]  # a socket's folder, or an address is given
    if is_ip_address(name):
        return [{**host, "hostaddr": name}]
    found = await trio.socket.getaddrinfo(name, _port(host), proto=socket.IPPROTO_TCP, type=socket.SOCK_STREAM)
    return [{**host, "hostaddr": str(address[0])} for *_, address in found]


def _port(attempt: ConnDict) -> str:
    definition = get_param_def("port")
    return get_param(attempt, "port") or (definition and definition.compiled) or "5432"


def _name(attempt: ConnDict) -> str:
    host = get_param(attempt, "host") or get_param(attempt, "hostaddr") or "the local socket"
    return f"[{host}]:{_port(attempt)}" if ":" in host else f"{host}:{_port(attempt)}"


def _reason(error: psycopg.Error) -> str:
    """Return libpq's message in one line, without its guesses (indented lines)."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith("\t")]
    return "; ".join(line.removeprefix("connection failed: ").removeprefix("connection is bad: ") for line in lines)


def _advice(reason: str) -> str:
    if READ_ONLY in reason:
        return (
            "Wait until it leads to the primary, or give the primary's address; target_session_attrs=any in it admits the other."
        )
    if "password" in reason or "authentication" in reason or "pg_hba" in reason:
        return "Check the user, the password and the server's pg_hba.conf."
    if "does not exist" in reason:
        return "Check the name, or create it."
    if "too many" in reason or "remaining connection slots" in reason:
        return "Raise max_connections, or open fewer connections."
    return "Check that the server is running and that the address is right."
