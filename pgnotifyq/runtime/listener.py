"""The listener: one connection that hears wake-ups and cancels.

It proves that it hears, and shows that the worker lives.

Order on every (re)connect: connect, LISTEN, prove, register, then ring for a scan. Nothing can fall
in the gap.

The listener proves that it hears: a nonce is sent to its channel, and the listener waits for the
nonce, with a deadline. While it has not proved that, the worker polls, and says so.

- The first nonce is sent by another session, the claimer's. A session hears its own notification in
  its own exchange. So behind a pooler in transaction mode, a listener that sent the nonce itself
  would believe that it hears, and would be deaf whenever it sends nothing. The other session also
  shows that a separate address for LISTEN leads to the same database.
- Later nonces are sent by the listener itself, when it has heard nothing for a while. It finds a
  half-open connection that way, and an `unlisten *` in its session that it did not send.

The listener hands on what it hears as typed news (`Calls`), with the connection that heard it. The
session of that connection is awake by then. So this connection reads the row of a cancelled job
(cancels.py), and takes the job that a wake-up names (shortcuts.py). The first only reads; the
second waits for a lock for 20 ms at the most. If one of them fails, the listener begins anew.

The listener's session speaks for the worker's life, and answers for it when trust.py asks. When the
process dies, the session ends, and the other workers see that (sql/functions/worker/watch.sql).
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import attrs
import trio

from pgnotifyq.ledger import workers
from pgnotifyq.ledger.errors import is_passing
from pgnotifyq.model import channels
from pgnotifyq.model.channels import Cancel, Company, ConfigChanged, Nonce, SchedulesChanged, StackAsked, Work
from pgnotifyq.model.errors import first_line_of
from pgnotifyq.model.events import Event, EventName
from pgnotifyq.wire.asking import ask
from pgnotifyq.wire.connection import connect
from pgnotifyq.wire.notifications import listen, unlisten, wait_notifications
from pgnotifyq.wire.sessions import For

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from uuid import UUID

    from psycopg import Notify

    from pgnotifyq.runtime.identity import Identity
    from pgnotifyq.runtime.link import Link
    from pgnotifyq.runtime.wakeups import Wakeups
    from pgnotifyq.wire.connection import Connection

PROOF_EVERY_SECONDS = 12.0  # "a deaf listener is found within 15 s"
PROOF_DEADLINE_SECONDS = 2.5
CONNECT_DEADLINE_SECONDS = 10.0
# If the listener connects but hears nothing, as behind a pooler in transaction mode, it tries again
# this seldom.
DEAF_RETRY_SECONDS = 30.0
# If the server's queue of notifications is full, the listener tries again this often, and not more
# often: a session that begins to listen may have to read all that is in the queue.
FULL_RETRY_SECONDS = 5.0
PAUSE_SECONDS_FIRST = 0.05
PAUSE_SECONDS_MAX = 1.0


class Deaf(Exception):
    """A notification to ourselves did not arrive in time."""


class QueueFull(Exception):
    """The server's queue of notifications is full, and takes no more."""


@attrs.frozen(eq=False, kw_only=True)
class Calls:
    """What the listener calls, and on which news.

    "It is said" means that a notification says so. Anybody can send one, so it may be wrong.
    """

    speak: Callable[[Connection], Awaitable[bool]]
    """Have a session speak for the worker's life; False: others take the worker for dead."""
    catch_up: Callable[[], Awaitable[object]]
    """The session is there: look for what was missed while nobody listened."""
    hear_life: Callable[[float], None]
    """The session has answered a statement that was sent at this time (trio's clock, seconds)."""
    lost: Callable[[], None]
    """The session is gone, and others may have seen it."""
    cancels: Callable[[Sequence[Cancel], Connection], Awaitable[None]]
    """These executions were cancelled, it is said."""
    wake_up: Callable[[Work | None, Connection], Awaitable[None]]
    """There is work, it is said: of this queue, and this job, if it is named."""
    company: Callable[[], None]
    """A worker has come, it is said."""
    config: Callable[[], None]
    """Settings or credentials of some tenant have changed, it is said.

    It is also called when nobody has listened: some may have changed meanwhile.
    """
    schedules: Callable[[], None]
    """Some schedule has changed, it is said.

    It is also called when nobody has listened, or nobody listens: some may change unheard.
    """
    stack: Callable[[UUID], None]
    """Somebody asks where a handler stands, it is said."""


async def listen_for_ever(me: Identity, dsn: str, quick: Link, wakeups: Wakeups, calls: Calls) -> None:
    """Listen, reconnecting as often as it takes, until cancelled."""
    push = wakeups.push
    pause = PAUSE_SECONDS_FIRST
    told = ""  # why the worker polls
    while True:
        why: str
        seldom: float | None = None
        try:
            await _listen(me, dsn, quick, wakeups, calls)
        except Deaf as error:
            why, seldom = str(error), DEAF_RETRY_SECONDS
        except QueueFull as error:
            why, seldom = str(error), FULL_RETRY_SECONDS
        except trio.TooSlowError:
            why = "no answer in time"
        except Exception as error:
            if not is_passing(error):
                raise
            why = first_line_of(error)
        else:
            raise AssertionError("listening ends by cancellation or by an error")
        if push.is_proven:
            me.emit(Event(name=EventName.LISTENER_LOST, fields={"why": why}))
            pause, seldom, told = PAUSE_SECONDS_FIRST, None, ""
        elif why != told:
            me.emit(Event(name=EventName.LISTENER_POLLING, fields={"why": why}))
            told = why
        push.is_proven = False
        push.has_session = False
        calls.lost()
        calls.schedules()
        wakeups.bell.ring()  # the claimer may have planned to sleep until it is told
        await trio.sleep((pause if seldom is None else seldom) * (0.5 + me.random.random()))
        pause = min(pause * 2, PAUSE_SECONDS_MAX) if seldom is None else PAUSE_SECONDS_FIRST


async def _listen(me: Identity, dsn: str, quick: Link, wakeups: Wakeups, calls: Calls) -> None:
    push = wakeups.push
    with trio.fail_after(CONNECT_DEADLINE_SECONDS):
        connection = await connect(dsn, application_name="pgnotifyq listener", used_for=For.WORKER, must_write=True)
    try:
        with trio.fail_after(CONNECT_DEADLINE_SECONDS):
            channel = channels.of_worker(me.schema, me.worker_id)
            both = (channel, channels.of_all_workers(me.schema))
            for name in both:
                await listen(connection, name)
        ears = _Ears(me, wakeups, calls, connection, channel)
        try:
            await ears.prove(by=quick)
        except Deaf:
            # The pooler's session that listens would go on hearing, for nobody. Most likely it is
            # the session that the pooler gives us now.
            with trio.move_on_after(PROOF_DEADLINE_SECONDS):
                for name in both:
                    await unlisten(connection, name)
            raise
        with trio.fail_after(CONNECT_DEADLINE_SECONDS):
            if not await calls.speak(connection):
                raise Deaf("others take this worker for dead")
        connection.prepare_threshold = 0  # it has its session to itself
        push.is_proven = True
        push.has_session = True
        push.generation += 1
        calls.config()
        calls.schedules()
        me.emit(Event(name=EventName.LISTENER_CONNECTED, fields={}))
        wakeups.bell.ring()
        await calls.catch_up()
        heard_at = push.answered_at = trio.current_time()
        while True:
            heard: list[Notify] = []
            if not push.is_asked:
                with trio.move_on_at(heard_at + PROOF_EVERY_SECONDS) as push.waiting:
                    heard = await wait_notifications(connection)
                push.waiting = None
            if push.is_asked:
                await ears.show_life()
            if heard:
                await ears.hear(heard)
            elif trio.current_time() >= heard_at + PROOF_EVERY_SECONDS:
                await ears.prove()
            else:
                continue
            heard_at = push.answered_at = trio.current_time()
    finally:
        push.waiting = None
        with trio.CancelScope(shield=True):
            await connection.close()


@attrs.frozen(eq=False)
class _Ears:
    """One session that listens, and what is done with it."""

    me: Identity
    wakeups: Wakeups
    calls: Calls
    connection: Connection
    channel: str

    async def show_life(self) -> None:
        """Have the session answer the smallest of statements: a proof of life for trust.py.

        Raises:
            trio.TooSlowError: the session does not answer.
        """
        self.wakeups.push.is_asked = False
        sent_at = trio.current_time()
        with trio.fail_after(PROOF_DEADLINE_SECONDS):
            await ask(self.connection, workers.show_life(self.me.schema))
        self.calls.hear_life(sent_at)

    async def prove(self, *, by: Link | None = None) -> None:
        """Have a notification sent to us, by another session or our own, and wait for it.

        Raises:
            Deaf: the notification did not arrive.
            QueueFull: the server's queue is full, and the notification was not sent.
            trio.TooSlowError: it could not be sent in time.
        """
        nonce = channels.write(Nonce(uuid.uuid4().hex))
        notify = workers.prove(self.me.schema, self.channel, nonce)
        with trio.fail_after(PROOF_DEADLINE_SECONDS):
            if not await (ask(self.connection, notify) if by is None else by.ask(notify)):
                raise QueueFull("the server's queue of notifications is full: see doctor")
        with trio.move_on_after(PROOF_DEADLINE_SECONDS):
            while True:
                heard = await wait_notifications(self.connection)
                await self.hear(heard)
                if any(note.payload == nonce for note in heard):
                    return
        message = f"a notification to ourselves did not arrive within {PROOF_DEADLINE_SECONDS:g} s"
        if by is not None:
            message += ": a pooler in transaction mode? give a direct address of the same database with listen_dsn (--listen-dsn)"
        raise Deaf(message)

    async def hear(self, heard: Sequence[Notify]) -> None:
        """Hand on what notifications say, with the connection that heard them.

        Notifications are hints, and never trusted.
        """
        cancels = []
        wake_ups: list[Work | None] = []
        for note in heard:
            match channels.read(note.payload):
                case Cancel() as cancel:
                    cancels.append(cancel)
                case Company():
                    self.calls.company()
                case ConfigChanged():
                    self.calls.config()
                case SchedulesChanged():
                    self.calls.schedules()
                case StackAsked(request_id=request_id):
                    self.calls.stack(request_id)
                case Work(queue=queue) as work if queue in self.me.queues:
                    wake_ups.append(work)
                    self.wakeups.heard_of.add(queue)
                case None:
                    wake_ups.append(None)  # a newer release may have sent it: worth a look
        if len(wake_ups) > 1:
            self.wakeups.bell.ring()
        if cancels:
            await self.calls.cancels(cancels, self.connection)
        if len(wake_ups) == 1:
            await self.calls.wake_up(wake_ups[0], self.connection)
