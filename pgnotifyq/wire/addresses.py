"""What a connection string says, and what to say if no connection comes of it.

Which address is tried, and for how long, is told in first.py.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psycopg
from psycopg._conninfo_utils import get_param, get_param_def, split_attempts
from psycopg.conninfo import conninfo_to_dict

from pgnotifyq.model.errors import DatabaseUnreachable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from psycopg.abc import ConnDict, ConnParam

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


def readable(dsn: str, application_name: str | None, **parameters: ConnParam) -> ConnDict:
    """Do what `parameters_from` does, with the encoding of every session of ours.

    Raises:
        DatabaseUnreachable: `dsn` cannot be read.
    """
    try:
        return parameters_from(dsn, application_name=application_name, **{"client_encoding": "utf8", **parameters})
    except psycopg.ProgrammingError:
        # libpq's message quotes what it could not read, which may be a password.
        raise DatabaseUnreachable(
            "The connection string cannot be read. Write it as postgresql://user@host:5432/database,"
            " or as host=... dbname=... user=..."
        ) from None


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
    return UNTELLABLE if hides_a_password(dsn) and error.sqlstate is None else reason_of(error)


@contextmanager
def explained(dsn: str, wanted: ConnDict) -> Iterator[None]:
    """Turn what psycopg raises while it connects into an error that says what was not reached.

    The error never holds a password.

    Raises:
        DatabaseUnreachable: in the place of psycopg's error.
    """
    try:
        yield
    except psycopg.OperationalError as error:
        if hides_a_password(dsn):
            raise DatabaseUnreachable(UNTELLABLE) from None
        raise DatabaseUnreachable(explain(wanted, error)) from error
    # A parameter that must be a number is none. It may come from the environment.
    except (psycopg.ProgrammingError, ValueError):
        raise DatabaseUnreachable("A value of the address, or of a PG... variable of the environment, cannot be read.") from None


def explain(parameters: ConnDict, error: psycopg.Error) -> str:
    """Return one line: what could not be reached (never a password), why, and what to do."""
    try:
        names = ", ".join(dict.fromkeys(address_of(attempt) for attempt in split_attempts(parameters)))
    except psycopg.OperationalError:  # the numbers of hosts and ports differ: `error` says so
        names = str(get_param(parameters, "host"))
    database, user = get_param(parameters, "dbname"), get_param(parameters, "user")
    what = " ".join(
        [f"Cannot connect to PostgreSQL at {names}"]
        + ([f"database {database}"] if database else [])
        + ([f"as {user}"] if user else [])
    )
    reason = reason_of(error)
    return f"{what}: {reason.rstrip('.')}. {_advice(reason)}"


def port_of(attempt: ConnDict) -> str:
    """Return the port of an address, as a text."""
    definition = get_param_def("port")
    return get_param(attempt, "port") or (definition and definition.compiled) or "5432"


def address_of(attempt: ConnDict) -> str:
    """Return an address as people write it."""
    host = get_param(attempt, "host") or get_param(attempt, "hostaddr") or "the local socket"
    return f"[{host}]:{port_of(attempt)}" if ":" in host else f"{host}:{port_of(attempt)}"


def reason_of(error: psycopg.Error) -> str:
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
