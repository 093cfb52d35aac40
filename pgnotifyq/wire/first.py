"""The first address that answers, on trio: which addresses to try, and for how long.

libpq has a loop over hosts of its own. It blocks on name resolution, and it ignores
`connect_timeout` if it is driven step by step. So here each address is an attempt of its own, with
a deadline of its own.
"""

from __future__ import annotations

import random
import socket
from enum import Enum
from typing import TYPE_CHECKING, Protocol, TypeVar

import psycopg
import trio
from psycopg import errors
from psycopg._conninfo_utils import get_param, is_ip_address, split_attempts
from psycopg.conninfo import make_conninfo, timeout_from_conninfo

from pgnotifyq.wire import waiting
from pgnotifyq.wire.addresses import READ_ONLY, address_of, port_of, reason_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from psycopg.abc import ConnDict, PQGenConn

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
            failures.append(psycopg.OperationalError(f"{address_of(attempt)} is {READ_ONLY}"))
        if spare is not None:
            opened, spare = spare, None
            return opened
    finally:
        if spare is not None:
            spare.close_nowait()
    if len(failures) == 1 and isinstance(failures[0], psycopg.OperationalError):
        raise failures[0].with_traceback(None)
    kind = type(failures[-1]) if isinstance(failures[-1], psycopg.OperationalError) else psycopg.OperationalError
    raise kind("\n".join(reason_of(failure) for failure in failures)) from failures[-1]


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
    raise errors.ConnectionTimeout(f"{address_of(attempt)} did not answer within {seconds} seconds")


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
    found = await trio.socket.getaddrinfo(name, port_of(host), proto=socket.IPPROTO_TCP, type=socket.SOCK_STREAM)
    return [{**host, "hostaddr": str(address[0])} for *_, address in found]
