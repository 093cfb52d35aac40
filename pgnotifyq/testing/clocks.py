"""The queue's clock, stopped at a time that a test has chosen."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Self

import psycopg

from pgnotifyq.ledger.testing import set_clock, stop_clock
from pgnotifyq.wire.asking import ask_blocking
from pgnotifyq.wire.callers import ask_on, ask_on_blocking
from pgnotifyq.wire.kinds import kind_of

if TYPE_CHECKING:
    from pgnotifyq.wire.kinds import CallersConnection

# The databases and schemas whose clock stands, for blocks within blocks.
_stopped: dict[tuple[str, str], datetime] = {}


class at:  # noqa: N801  # read as a preposition
    """Let the queue's clock stand at a time, for the length of a block: scheduled jobs fall due.

    Only the database's clock stands. Python's clock, which your handlers read, goes on.

    Args:
        time: a datetime, or ISO 8601 text; without a time zone it is UTC.
        dsn: let the clock of this whole database stand, also in sessions that are open already. It
            has to be the test's own database, and the role has to own the schema: the function
            `clock` is replaced meanwhile.
        connection: instead, let the clock of this connection's open transaction stand, and no
            other. If an event loop drives the connection, enter the block by `async with`.
        schema: where the queue is.
    """

    def __init__(
        self,
        time: datetime | str,
        dsn: str | None = None,
        *,
        connection: CallersConnection | None = None,
        schema: str = "pgnotifyq",
    ) -> None:
        if (dsn is None) is (connection is None):
            raise TypeError("at wants a database or a connection: pass dsn, or connection=, and not both")
        self.time = as_time(time)
        self._dsn = dsn
        self._connection = connection
        self._schema = schema
        self._was: Any = None  # the time at which the clock stood before; None or "": it went on

    def move(self, seconds: float) -> None:
        """Let the clock stand so many seconds later, in a block that was entered by `with`."""
        self.time += timedelta(seconds=seconds)
        self._stop_at(self.time)

    def __enter__(self) -> Self:
        self._was = self._stop_at(self.time)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._stop_at(self._was)
        except Exception:
            if self._connection is None:
                raise
            # The transaction was aborted or has ended, and the setting with it.

    async def __aenter__(self) -> Self:
        if self._connection is None or kind_of(self._connection).is_blocking:
            return self.__enter__()
        self._was = await ask_on(self._connection, set_clock(self._schema, _written(self.time)))
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._connection is None or kind_of(self._connection).is_blocking:
            self.__exit__()
            return
        with suppress(Exception):  # as above
            await ask_on(self._connection, set_clock(self._schema, self._was))

    def _stop_at(self, time: Any) -> Any:
        """Stop the clock, or let it go on. Return the time at which it stood before."""
        if self._connection is not None:
            return ask_on_blocking(self._connection, set_clock(self._schema, _written(time)))
        assert self._dsn is not None
        key = (self._dsn, self._schema)
        was = _stopped.pop(key, None)
        with psycopg.connect(self._dsn, autocommit=True) as session:
            ask_blocking(session, stop_clock(self._schema, time))
        if time is not None:
            _stopped[key] = time
        return was


def as_time(time: datetime | str) -> datetime:
    """Return a time with a time zone: UTC, where none is said."""
    if isinstance(time, str):
        time = datetime.fromisoformat(time)
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)


def _written(time: datetime | str | None) -> str:
    return time.isoformat() if isinstance(time, datetime) else time or ""
