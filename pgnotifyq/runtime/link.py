"""A connection that comes back: the one place where a worker meets a database that fails.

`ask(verb)` asks a verb of the ledger and repeats it, with jittered pauses, until it is answered. If
a verb depends on something that changes between two tries, `ask` takes a function that makes the
verb, and calls the function at each try. Each try has a deadline: no TCP option finds a frozen peer
whose kernel still answers, only a deadline does. A verb handed to a link must be safe to repeat
after its reply was lost (`may_repeat`); all that are used here are, because of their fences.
`run(operation)` does the same with an operation that asks several verbs and decides between them.

What follows an error depends on whose error it is (ledger/errors.py). If it is the session's, the
verb is not repeated in that session: a session that was opened on a standby refuses to write for as
long as it lives, and the host's name may lead to the primary by now. If it is the server's, the
verb is repeated in the same session, but `FAILURES_MAX` times in a row at the most: what looks like
the server's error may be the session's all the same, as behind a pooler. The link asks for sessions
that can write. If the address has a `target_session_attrs` of its own, that decides instead.

Statements are prepared on the server: a round trip takes half the time (93 against 206 microseconds
for `select 1`). A pooler in transaction mode may lose prepared statements: it prepares in one
session and executes in another. The first error of that kind turns preparing off for good. Two
prepared statements cannot be mixed up, because their names are random (wire/connection.py).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeVar

import trio
from psycopg import errors

from pgnotifyq.ledger.errors import Whose, is_passing, whose
from pgnotifyq.model.errors import first_line_of
from pgnotifyq.model.events import Event, EventName
from pgnotifyq.wire.asking import ask
from pgnotifyq.wire.connection import Lock, connect
from pgnotifyq.wire.sessions import For

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable

    from pgnotifyq.ledger.ask import Verb
    from pgnotifyq.model.events import EventSink
    from pgnotifyq.wire.connection import Connection

T = TypeVar("T")

PAUSE_SECONDS_FIRST = 0.05  # after a restart that takes a moment, the link is back at once
PAUSE_SECONDS_MAX = 1.0  # "workers resume within two seconds of its return"
FAILURES_MAX = 3  # in a row and in one session; then another is tried


class Link:
    """One self-healing connection; operations take turns, first come first served."""

    def __init__(self, dsn: str, *, name: str, deadline_seconds: float, emit: EventSink, randomness: random.Random) -> None:
        self._dsn = dsn
        self._name = name
        self.deadline_seconds = deadline_seconds
        self._emit = emit
        self._random = randomness
        self._lock = Lock()
        self._connection: Connection | None = None
        self._is_down = False
        self._prepares = True
        self._failures = 0  # in a row, in this session
        self.answered_at = -math.inf  # when an operation last succeeded, on trio's clock

    @property
    def is_down(self) -> bool:
        """Whether an operation has failed, and none has succeeded after it."""
        return self._is_down

    async def ask(self, verb: Verb[T] | Callable[[], Verb[T]], *, shield: bool = False) -> T:
        """Ask a verb, or what a function makes at each try, until it is answered. See `run`."""
        return await self.run(_asked(verb), shield=shield)

    async def ask_once(self, verb: Verb[T] | Callable[[], Verb[T]], *, shield: bool = False) -> T:
        """Ask a verb once. See `attempt`."""
        return await self.attempt(_asked(verb), shield=shield)

    async def run(self, operation: Callable[[Connection], Awaitable[T]], *, shield: bool = False) -> T:
        """Run an operation on the connection, again and again until it succeeds.

        Cancellation: the try under way is cancelled on the server and drained, see wire. With
            `shield` that try is finished first, under the deadline. No further try is made.

        Raises: whatever will not pass by itself (a missing schema, a missing right, a bug).
        """
        pause = PAUSE_SECONDS_FIRST
        while True:
            try:
                return await self.attempt(operation, shield=shield)
            except Exception as error:
                if not isinstance(error, trio.TooSlowError) and not is_passing(error):
                    raise
                self._note_loss(error)
            await trio.sleep(pause * (0.5 + self._random.random()))
            pause = min(pause * 2, PAUSE_SECONDS_MAX)

    async def attempt(self, operation: Callable[[Connection], Awaitable[T]], *, shield: bool = False) -> T:
        """Run an operation once, connecting first if need be.

        If a prepared statement was lost, the operation is run a second time, and the link prepares
        nothing any more. A connection whose session has failed, or has failed too often, is closed
        before the error goes on.

        Raises:
            trio.TooSlowError: no answer within the deadline; the connection is closed.
            psycopg.Error, DatabaseUnreachable: as they come.
        """
        async with self._lock:
            while True:
                try:
                    with trio.fail_after(self.deadline_seconds, shield=shield):
                        if self._connection is None or self._connection.closed:
                            self._connection = await self._connect()
                        result = await operation(self._connection)
                    self._failures = 0
                    self.answered_at = trio.current_time()
                    break
                except trio.TooSlowError:
                    await self._drop()
                    raise
                except (errors.InvalidSqlStatementName, errors.DuplicatePreparedStatement):
                    if not self._prepares:
                        raise
                    self._prepares = False
                    await self._drop()
                except Exception as error:
                    self._failures += is_passing(error)
                    if self._failures >= FAILURES_MAX or whose(error) is Whose.SESSION:
                        await self._drop()
                    raise
            if self._is_down:
                self._is_down = False
                self._emit(Event(name=EventName.DATABASE_BACK, fields={"connection": self._name}))
            return result

    async def _connect(self) -> Connection:
        return await connect(
            self._dsn,
            application_name=f"pgnotifyq {self._name}",
            prepare_threshold=0 if self._prepares else None,
            used_for=For.WORKER,
            must_write=True,
        )

    async def close(self) -> None:
        """Close the connection; never waits for the server."""
        await self._drop()

    async def _drop(self) -> None:
        self._failures = 0
        if self._connection is not None:
            connection, self._connection = self._connection, None
            with trio.CancelScope(shield=True):
                await connection.close()

    def _note_loss(self, error: BaseException) -> None:
        if not self._is_down:
            self._is_down = True
            reason = "no answer in time" if isinstance(error, trio.TooSlowError) else first_line_of(error)
            self._emit(Event(name=EventName.DATABASE_LOST, fields={"connection": self._name, "why": reason}))


def _asked(verb: Verb[T] | Callable[[], Verb[T]]) -> Callable[[Connection], Awaitable[T]]:
    """Return an operation that asks a verb."""
    if callable(verb):
        make = verb
        return lambda connection: ask(connection, make())
    assert verb.may_repeat
    return lambda connection: ask(connection, verb)
