"""A check before all that a connection of the caller's own sends, for the length of a block."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pgnotifyq.wire.kinds import Kind, kind_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager


def guarded(connection: Any, check: Callable[[], None]) -> AbstractContextManager[None]:
    """Have `check` called before each exchange of a connection of psycopg's or asyncpg's.

    If `check` raises an error, the caller gets the error, and nothing is sent.
    """
    return _asyncpg(connection, check) if kind_of(connection) is Kind.ASYNCPG else _psycopg(connection, check)


@contextmanager
def _psycopg(connection: Any, check: Callable[[], None]) -> Iterator[None]:
    """All goes through the connection's `wait`."""
    wait = connection.wait

    def checked(*arguments: Any, **settings: Any) -> Any:
        check()
        return wait(*arguments, **settings)

    connection.wait = checked  # of this object; its class has the method
    try:
        yield
    finally:
        del connection.wait


class _CheckedProtocol:
    """asyncpg's protocol object, with a check before each call that begins an exchange."""

    _SENDS = frozenset({"bind", "bind_execute", "bind_execute_many", "copy_in", "copy_out", "execute", "prepare", "query"})

    def __init__(self, protocol: Any, check: Callable[[], None]) -> None:
        self._protocol = protocol
        self._check = check

    def __getattr__(self, name: str) -> Any:
        if name in self._SENDS:
            self._check()
        return getattr(self._protocol, name)


@contextmanager
def _asyncpg(connection: Any, check: Callable[[], None]) -> Iterator[None]:
    """All goes through `_protocol`, which is a name of asyncpg's own.

    If another version does not have it, nothing is checked.
    """
    own = getattr(connection, "_con", connection)  # a pool lends a proxy
    protocol = getattr(own, "_protocol", None)
    if protocol is None:
        yield
        return
    own._protocol = checked = _CheckedProtocol(protocol, check)
    try:
        yield
    finally:
        if own._protocol is checked:  # not if the connection was aborted meanwhile
            own._protocol = protocol
