"""What a connection of ours keeps besides what psycopg's keeps.

That is: what was prepared, whom the connection is for, and what its server has refused.

The trio connection (connection.py), the asyncio one (aio.py) and the blocking one (blocking.py) are
`Ours`. A connection of the caller's is not: nothing is prepared there, and nothing is sent twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.rows import Row

from pgnotifyq.wire import sessions
from pgnotifyq.wire.sessions import For

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn


class Ours:
    """A mixin of psycopg's connections."""

    # The class of cursors for scripts and COPY, whatever the owner has set as `cursor_factory`.
    own_cursor: Any
    prepare_threshold: int | None
    pgconn: PGconn
    _prepared: Any  # psycopg's

    def become_ours(self) -> None:
        """Set up what is kept. Each class calls this in its `__init__`."""
        # The statements that asking.py prepared, and their names.
        self.statements: dict[bytes, bytes] = {}
        self.used_for = For.ANYBODY
        # Whether this connection has set something in the session. `discard all` undoes that.
        self.was_set = False
        # Whether a statement that the server has undone whole is sent again. See `may_repeat`.
        self.repeats = False
        # Whether the server has refused to write. It may go on doing so while the session lives.
        self.is_read_only = False

    def forget_statements(self) -> None:
        """Forget the prepared statements.

        A table or function has changed, and the server refuses the old plans.
        """
        self.statements.clear()
        self._prepared.clear()
        # psycopg would deallocate all statements some time later, also those that are prepared by
        # then. Without that, the old statements stay on the server, which costs little.
        self._prepared._to_flush.clear()


class Awaited(Ours, psycopg.AsyncConnection[Row]):
    """What the trio connection and the asyncio one share.

    A verb is asked, and a listener listens, on either.
    """

    def close_nowait(self) -> None:
        """Close the connection; never wait. Tasks that wait on it are woken with an error."""
        raise NotImplementedError

    async def enter(self) -> bool:
        """Set what the session needs. Return whether it can write (True if nobody asks).

        Call it again after `discard all`.
        """
        if self.used_for is For.ANYBODY:
            return True
        async with self.lock:
            can_write, self.was_set = await self.wait(sessions.enter(self.pgconn, self.used_for, self.info.encoding))
            return can_write
