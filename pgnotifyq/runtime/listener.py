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

Its session holds an advisory lock named after the worker. When the process dies the server frees the lock, and the other
workers see it (sql/functions/reclaim.sql).
"""

from __future__ import annotations

import os
import socket
import uuid
from typing import TYPE_CHECKING

import attrs
import trio

from pgnotifyq._version import __version__
from pgnotifyq.ledger import workers
from pgnotifyq.ledger.errors import is_passing
from pgnotifyq.model.events import Event, EventName
from pgnotifyq.model.job import ExecutionId, JobId, uuid_of
from pgnotifyq.runtime.heartbeat import check_cancels, renew
from pgnotifyq.runtime.named import answer
from pgnotifyq.runtime.served import publish
from pgnotifyq.wire.connection import connect
from pgnotifyq.wire.notifications import listen, unlisten, wait_notifications

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
    """What the worker knows of its listener."""

    is_proven: bool = False  # notifications arrive: sleep; otherwise poll
    has_session: bool = False  # the session lock speaks for the worker's life
    generation: int = 0  # grows with every connection; what was published before may be gone


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
        parts.bell.ring()  # the claimer may have planned to sleep until it was told
        await trio.sleep((DEAF_RETRY_SECONDS if is_deaf else pause) * (0.5 + parts.random.random()))
        pause = PAUSE_SECONDS_FIRST if is_deaf else min(pause * 2, PAUSE_SECONDS_MAX)


async def _listen(parts: Parts) -> None:
    with trio.fail_after(CONNECT_DEADLINE_SECONDS):
        connection = await connect(parts.listen_dsn, application_name="pgnotifyq listener")
    try:
        with trio.fail_after(CONNECT_DEADLINE_SECONDS):
            channel = await workers.worker_channel(connection, parts.config.schema, parts.worker_id)
            channels = (channel, f"{parts.config.schema}_work")
            for name in channels:
                await listen(connection, name)
        try:
            await _prove(parts, connection, channel, by=parts.quick)
        except Deaf:
            # A pooler's session would go on hearing for nobody. It is the one that we are given now, most likely.
            with trio.move_on_after(PROOF_DEADLINE_SECONDS):
                for name in channels:
                    await unlisten(connection, name)
            raise
        with trio.fail_after(CONNECT_DEADLINE_SECONDS):
            await workers.hold_session(connection, parts.config.schema, parts.worker_id)
            await register(parts, connection, has_session=True)
        connection.prepare_threshold = 0  # it has its session to itself
        parts.push.is_proven = True
        parts.push.has_session = True
        parts.push.generation += 1
        parts.emit(Event(name=EventName.LISTENER_CONNECTED, fields={}))
        parts.bell.ring()
        # Cancels that were sent while nobody listened.
        await renew(parts, list(parts.holdings))
        while True:
            heard: list[Notify] = []
            with trio.move_on_after(PROOF_EVERY_SECONDS):
                heard = await wait_notifications(connection)
            if heard:
                await _hear(parts, heard, connection)
            else:
                await _prove(parts, connection, channel)
    finally:
        with trio.CancelScope(shield=True):
            await connection.close()


async def register(parts: Parts, connection: Connection, *, has_session: bool) -> None:
    """Publish this worker in worker_heartbeats."""
    await workers.register(
        connection,
        parts.config.schema,
        worker_id=parts.worker_id,
        host=socket.gethostname(),
        pid=os.getpid(),
        queues=parts.config.queues,
        slots=parts.config.concurrency,
        version=__version__,
        has_session=has_session,
        lease_seconds=parts.config.lease_seconds,
    )
    await publish(parts, connection)


async def _prove(parts: Parts, connection: Connection, channel: str, *, by: Link | None = None) -> None:
    """Have ourselves notified, by another session or our own, and wait until it arrives.

    Raises:
        Deaf: it did not.
        trio.TooSlowError: it could not be sent.
    """
    nonce = f"nonce {uuid.uuid4().hex}"

    async def notify(session: Connection) -> None:
        await session.execute("select pg_notify(%s, %s)", (channel, nonce))

    with trio.fail_after(PROOF_DEADLINE_SECONDS):
        await (notify(connection) if by is None else by.run(notify))
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
        word, _, rest = note.payload.partition(" ")
        if word == "cancel":
            try:
                job_id, execution_id = (uuid_of(int(part.replace("-", ""), 16)) for part in rest.split(" "))
            except ValueError:
                continue  # forged; LISTEN and NOTIFY have no access control
            running = parts.holdings.find(JobId(job_id), ExecutionId(execution_id))
            if running is not None:
                stopping.append(running)
        elif note.payload == "+company":
            parts.company.ring()
        elif word != "nonce":
            wake_ups.append(rest.partition(" ")[2])  # the job, behind the queue, when it names one
    if len(wake_ups) > 1:
        parts.bell.ring()
    if stopping:
        await check_cancels(parts, stopping, connection)
    if len(wake_ups) == 1:
        await answer(parts, wake_ups[0], connection)
