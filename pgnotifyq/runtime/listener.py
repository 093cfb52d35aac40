"""The listener: one connection that hears wake-ups and cancels, proves that it does, and shows that the worker lives.

Order on every (re)connect: connect, LISTEN, prove, register, then ring for a scan. Nothing can fall in the gap.

It proves itself: a nonce is sent to its channel, and it waits for it with a deadline. While it is not proven the worker polls,
and says so.

- First by another session, the claimer's. What a session notifies itself it hears in its own exchange, so behind a pooler in
  transaction mode a listener that did both would believe that it hears, and be deaf whenever it says nothing. It also shows
  that a separate address for LISTEN leads to the same database.
- Then by itself, when nothing was heard for a while: a half-open connection and an `unlisten *` behind its back are
  found that way.

What it hears it asks about by the same connection, whose session is awake by then: the row of a cancelled job (heartbeat.py), the job
that a wake-up names (named.py). The one reads, the other waits 20 ms for a lock at the most. When one fails, the listener begins anew.

Its session speaks for the worker's life, and answers for it when it is asked (trust.py). When the process dies the session ends, and
the other workers see it (sql/functions/worker/watch.sql).
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import attrs
import trio

from pgnotifyq.ledger import workers
from pgnotifyq.ledger.errors import is_passing
from pgnotifyq.model import channels
from pgnotifyq.model.channels import Cancel, Company, Nonce, Work
from pgnotifyq.model.events import Event, EventName
from pgnotifyq.runtime.heartbeat import check_cancels, renew
from pgnotifyq.runtime.named import answer
from pgnotifyq.runtime.trust import speak_by
from pgnotifyq.wire.asking import ask
from pgnotifyq.wire.connection import connect
from pgnotifyq.wire.notifications import listen, unlisten, wait_notifications
from pgnotifyq.wire.sessions import For

if TYPE_CHECKING:
    from psycopg import Notify

    from pgnotifyq.runtime.link import Link
    from pgnotifyq.runtime.parts import Parts
    from pgnotifyq.wire.connection import Connection

PROOF_EVERY_SECONDS = 12.0  # "a deaf listener is found within 15 s"
PROOF_DEADLINE_SECONDS = 2.5
CONNECT_DEADLINE_SECONDS = 10.0
# Where LISTEN connects but hears nothing, as behind a pooler in transaction mode, it is tried again this seldom.
DEAF_RETRY_SECONDS = 30.0
PAUSE_SECONDS_FIRST = 0.05
PAUSE_SECONDS_MAX = 1.0


class Deaf(Exception):
    """A notification to ourselves did not arrive in time."""


@attrs.define(eq=False)
class Push:
    """What the worker knows of its listener.

    `trio_util.move_on_when` would end the wait for notifications when the session is asked, without the scope in here: it takes a
    nursery and a task each time, 48 µs, and a wake-up would wait for that. The flags are read and never waited for.
    """

    is_proven: bool = False  # notifications arrive: sleep; otherwise poll
    has_session: bool = False  # the session speaks for the worker's life
    generation: int = 0  # grows with every connection; what was published before may be gone
    is_asked: bool = False  # whether the session is there; see trust.py
    waiting: trio.CancelScope | None = None  # around the wait for notifications

    def ask(self) -> None:
        """Have the session show that it is there."""
        self.is_asked = True
        if self.waiting is not None:
            self.waiting.cancel(reason="pgnotifyq: asked for a proof of life")


async def listen_for_ever(parts: Parts) -> None:
    """Listen, reconnecting as often as it takes, until cancelled."""
    pause = PAUSE_SECONDS_FIRST
    told = ""  # why the worker polls
    while True:
        why: str
        is_deaf = False
        try:
            await _listen(parts)
        except Deaf as error:
            why, is_deaf = str(error), True
        except trio.TooSlowError:
            why = "no answer in time"
        except Exception as error:
            if not is_passing(error):
                raise
            why = str(error).splitlines()[0]
        else:
            raise AssertionError("listening ends by cancellation or by an error")
        if parts.push.is_proven:
            parts.emit(Event(name=EventName.LISTENER_LOST, fields={"why": why}))
            pause, is_deaf, told = PAUSE_SECONDS_FIRST, False, ""
        elif why != told:
            parts.emit(Event(name=EventName.LISTENER_POLLING, fields={"why": why}))
            told = why
        parts.push.is_proven = False
        parts.push.has_session = False
        if len(parts.executions):
            parts.trust.bell.ring()  # others may have seen the session end
        parts.bell.ring()  # the claimer may have planned to sleep until it was told
        await trio.sleep((DEAF_RETRY_SECONDS if is_deaf else pause) * (0.5 + parts.random.random()))
        pause = PAUSE_SECONDS_FIRST if is_deaf else min(pause * 2, PAUSE_SECONDS_MAX)


async def _listen(parts: Parts) -> None:
    with trio.fail_after(CONNECT_DEADLINE_SECONDS):
        connection = await connect(parts.listen_dsn, application_name="pgnotifyq listener", used_for=For.WORKER, must_write=True)
    try:
        with trio.fail_after(CONNECT_DEADLINE_SECONDS):
            channel = channels.of_worker(parts.config.schema, parts.worker_id)
            both = (channel, channels.of_all_workers(parts.config.schema))
            for name in both:
                await listen(connection, name)
        try:
            await _prove(parts, connection, channel, by=parts.quick)
        except Deaf:
            # A pooler's session would go on hearing for nobody. It is the one that we are given now, most likely.
            with trio.move_on_after(PROOF_DEADLINE_SECONDS):
                for name in both:
                    await unlisten(connection, name)
            raise
        with trio.fail_after(CONNECT_DEADLINE_SECONDS):
            if not await speak_by(parts, connection):
                raise Deaf("others take this worker for dead")
        connection.prepare_threshold = 0  # it has its session to itself
        parts.push.is_proven = True
        parts.push.has_session = True
        parts.push.generation += 1
        parts.emit(Event(name=EventName.LISTENER_CONNECTED, fields={}))
        parts.bell.ring()
        # Cancels that were sent while nobody listened.
        await renew(parts, list(parts.executions))
        heard_at = trio.current_time()
        while True:
            heard: list[Notify] = []
            if not parts.push.is_asked:
                with trio.move_on_at(heard_at + PROOF_EVERY_SECONDS) as parts.push.waiting:
                    heard = await wait_notifications(connection)
                parts.push.waiting = None
            if parts.push.is_asked:
                await _show_life(parts, connection)
            if heard:
                await _hear(parts, heard, connection)
            elif trio.current_time() >= heard_at + PROOF_EVERY_SECONDS:
                await _prove(parts, connection, channel)
            else:
                continue
            heard_at = trio.current_time()
    finally:
        parts.push.waiting = None
        with trio.CancelScope(shield=True):
            await connection.close()


async def _show_life(parts: Parts, connection: Connection) -> None:
    """Have the session answer: a proof of life for trust.py, by the least of statements.

    Raises:
        trio.TooSlowError: it does not answer.
    """
    parts.push.is_asked = False
    sent_at = trio.current_time()
    with trio.fail_after(PROOF_DEADLINE_SECONDS):
        await ask(connection, workers.show_life(parts.config.schema))
    parts.trust.hear(sent_at)


async def _prove(parts: Parts, connection: Connection, channel: str, *, by: Link | None = None) -> None:
    """Have ourselves notified, by another session or our own, and wait until it arrives.

    Raises:
        Deaf: it did not.
        trio.TooSlowError: it could not be sent.
    """
    nonce = channels.write(Nonce(uuid.uuid4().hex))
    notify = workers.notify(parts.config.schema, channel, nonce)
    with trio.fail_after(PROOF_DEADLINE_SECONDS):
        await (ask(connection, notify) if by is None else by.ask(notify))
    with trio.move_on_after(PROOF_DEADLINE_SECONDS):
        while True:
            heard = await wait_notifications(connection)
            await _hear(parts, heard, connection)
            if any(note.payload == nonce for note in heard):
                return
    message = f"a notification to ourselves did not arrive within {PROOF_DEADLINE_SECONDS:g} s"
    if by is not None:
        message += ": a pooler in transaction mode? give a direct address of the same database with listen_dsn (--listen-dsn)"
    raise Deaf(message)


async def _hear(parts: Parts, heard: list[Notify], connection: Connection) -> None:
    """Act on notifications, and ask by the connection that heard them.

    They carry keys and are never trusted: a cancel is read again from the job's row.
    """
    stopping = []
    wake_ups = []
    for note in heard:
        match channels.read(note.payload):
            case Cancel(job_id=job_id, execution_id=execution_id):
                running = parts.executions.find(job_id, execution_id)
                if running is not None:
                    stopping.append(running)
            case Company():
                parts.company.ring()
            case Work(queue=queue, job_id=job_id) if queue in parts.config.queues:
                wake_ups.append(job_id)
            case None:
                wake_ups.append(None)  # what a newer release may have to say is worth a look
    if len(wake_ups) > 1:
        parts.bell.ring()
    if stopping:
        await check_cancels(parts, stopping, connection)
    if len(wake_ups) == 1:
        await answer(parts, wake_ups[0], connection)
