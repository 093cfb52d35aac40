"""A session in the hands of a handler's code.

A connection object of psycopg's has state: adapters, factories, handlers, prepared statements,
isolation, a backlog of notifications. One user must not leave it to the next, as with the state of
the session. So each user is lent an object of its own around the session. When the user gives it
back, the object is closed. If the user has kept it, or a cursor of it, that reaches nothing any
more.
"""

from __future__ import annotations

import functools
import secrets
from typing import TYPE_CHECKING, Any, TypeVar

from psycopg import errors, generators, pq
from psycopg.rows import Row, TupleRow

from pgnotifyq.wire.connection import Connection

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg.abc import PQGen
    from psycopg.pq.abc import PGconn, PGresult

Result = TypeVar("Result")


class Lent(Connection[Row]):
    """A connection that is lent for a while."""

    # Called before each exchange. It raises if no exchange may follow.
    guard: Callable[[], None] | None = None
    # A select that goes with the next `begin`, in one message. Its answer comes to `answer`, as
    # text.
    begins_with: bytes | None = None
    answer: PGresult | None = None

    @classmethod
    def of(cls, session: Connection[TupleRow]) -> Lent[TupleRow]:
        """Return a new object around the session of `session`. It commits each statement.

        It prepares nothing.
        """
        lent = Lent[TupleRow](session.pgconn)
        lent._autocommit = True
        lent.prepare_threshold = None
        # For handlers that prepare nevertheless. See connection.py.
        lent._prepared._prepared_idx = secrets.randbits(48)
        return lent

    async def wait(self, gen: PQGen[Result], interval: float = 0.0, timeout: float | None = None) -> Result:  # noqa: ASYNC109
        """Drive one exchange, if the guard lets it."""
        if self.guard is not None:
            self.guard()
        return await super().wait(gen, interval, timeout)

    def _exec_command(self, command: Any, result_format: pq.Format = pq.Format.TEXT) -> PQGen[PGresult | None]:
        if self.begins_with is None:
            return (yield from super()._exec_command(command, result_format))
        begins_with, self.begins_with = self.begins_with, None
        self._check_connection_ok()
        self.pgconn.send_query(bytes(command) + b"; " + begins_with)
        self.answer = (yield from generators.execute(self.pgconn))[-1]
        if self.answer.status != pq.ExecStatus.TUPLES_OK:
            raise errors.error_from_result(self.answer, self.info.encoding)
        return self.answer

    def give_back(self) -> bool:
        """Close this object, and leave the session open.

        Returns: whether the session can be used, because nothing is under way in it.
        """
        pgconn: Any = self.pgconn
        is_usable = (
            not self.closed
            and pgconn.transaction_status == pq.TransactionStatus.IDLE
            and pgconn.pipeline_status == pq.PipelineStatus.OFF
            and not self.lock.locked()
        )
        self._closed = True
        if is_usable:
            self.pgconn = _finished()
        return is_usable

    def let_go(self) -> None:
        """Close this object, and leave the session as it is, with what is open in it."""
        self._closed = True
        self.pgconn = _finished()


@functools.cache
def _finished() -> PGconn:
    """Return a closed libpq connection. A closed object has it in the place of a session."""
    pgconn = pq.PGconn.connect_start(b"port=0")
    pgconn.finish()
    return pgconn
