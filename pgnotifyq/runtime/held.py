"""Answers to people who ask where handlers stand, while a handler holds the event loop.

The loop cannot answer then, and the handler that holds it is the one that people ask about. The
watchdog's thread (watchdog.py) sees what the loop does. So that thread also looks whether anybody
asks, on a blocking connection of its own. The connection is opened when the loop has been held for
`loop_blocked_seconds`, and closed when the loop is back. A worker whose loop turns has no such
connection.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any

from pgnotifyq.ledger import stacks
from pgnotifyq.model.errors import quietly
from pgnotifyq.model.stack import Stack, StackState, written
from pgnotifyq.runtime.stacks import held_stack
from pgnotifyq.wire.asking import ask_blocking
from pgnotifyq.wire.blocking import connect
from pgnotifyq.wire.sessions import For

if TYPE_CHECKING:
    from pgnotifyq.runtime.executions import Executions
    from pgnotifyq.runtime.identity import Identity
    from pgnotifyq.runtime.running import Running
    from pgnotifyq.wire.blocking import Connection

LOOK_EVERY_SECONDS = 0.5
DEADLINE_SECONDS = 2.0  # for one look; the watchdog does not watch meanwhile
RETRY_SECONDS = 5.0  # after a failure


class HeldLoop:
    """The answers of one worker, for the thread of its watchdog."""

    def __init__(self, me: Identity, executions: Executions, dsn: str) -> None:
        self._me = me
        self._executions = executions
        self._dsn = dsn
        self._connection: Connection[Any] | None = None
        self._next_at = 0.0

    def answer(self, holder: Running | None, thread_id: int, seconds: float) -> None:
        """Look whether anybody asks, and answer. The loop has been held for `seconds`.

        Args:
            holder: the execution that holds the loop; None: no handler holds it.
            thread_id: of the loop's thread.
            seconds: for how long.
        """
        if monotonic() < self._next_at:
            return
        self._next_at = monotonic() + LOOK_EVERY_SECONDS
        try:
            self._answer(holder, thread_id, seconds)
        except Exception:  # noqa: BLE001  # whatever it is: the watchdog goes on, and nobody is answered
            self.close()
            self._next_at = monotonic() + RETRY_SECONDS

    def _answer(self, holder: Running | None, thread_id: int, seconds: float) -> None:
        me = self._me
        if self._connection is None:
            self._connection = connect(
                self._dsn,
                application_name="pgnotifyq watchdog",
                used_for=For.WORKER,
                must_write=True,
                connect_timeout=round(DEADLINE_SECONDS),
            )
        connection = self._connection
        with connection.bounded(DEADLINE_SECONDS):
            for request_id, job_id, execution_id in ask_blocking(connection, stacks.stacks_asked(me.schema, me.worker_id)):
                running = self._executions.find(job_id, execution_id)
                stack = (
                    Stack(job_id=job_id, execution_id=execution_id, state=StackState.ENDED)
                    if running is None
                    else held_stack(running, holder, thread_id, seconds)
                )
                ask_blocking(connection, stacks.answer_stack(me.schema, me.worker_id, request_id, written(stack)))

    def close(self) -> None:
        """Close the connection: the loop is back, or the worker ends."""
        connection, self._connection = self._connection, None
        if connection is not None:
            quietly(connection.close)
