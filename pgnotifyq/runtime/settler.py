"""The settler: makes outcomes durable, many at once under load and without delay when idle.

It keeps one statement in flight and sends everything that gathered meanwhile as the next one; nothing waits on a timer. When
an outcome is durable its permit is free.

A plain completion, by far the most frequent outcome, goes by a statement of its own with two arrays; the rest shares
one with nine.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import attrs
import psycopg
import trio

from pgnotifyq.ledger import claims
from pgnotifyq.model.events import Event, EventName
from pgnotifyq.model.outcome import PLAIN_COMPLETION, SettleKind, Settlement
from pgnotifyq.runtime.bell import Bell

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pgnotifyq.model.job import JobId
    from pgnotifyq.runtime.holdings import Running
    from pgnotifyq.runtime.parts import Parts
    from pgnotifyq.wire.connection import Connection

# Bounds one statement. A claim can run beside it on the other connection, so the permits of a large worker should not all
# wait for one statement: with 500 slots, 250 were 20 % faster than 1000.
BATCH_MAX = 250

# What each settlement is called in events; the words of the house.
_EVENTS = {
    SettleKind.COMPLETE: EventName.JOB_COMPLETED,
    SettleKind.RETRY: EventName.JOB_RETRIED,
    SettleKind.SNOOZE: EventName.JOB_SNOOZED,
    SettleKind.RELEASE: EventName.JOB_RELEASED,
    SettleKind.CANCEL: EventName.JOB_CANCELLED,
    SettleKind.BURY: EventName.JOB_DEAD,
}
_BECAME = {
    "lost": EventName.LEASE_LOST,
    "cancelled": EventName.JOB_CANCELLED,
    "dead": EventName.JOB_DEAD,
    "completed": EventName.JOB_COMPLETED,
}

Outcome = tuple["Running", Settlement]


class Settler:
    """Outcomes on their way to the database."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._waiting: deque[Outcome] = deque()
        self._in_flight: list[Outcome] = []
        self._bell = Bell()

    def add(self, running: Running, settlement: Settlement | None) -> None:
        """Take an execution's outcome; None when its lease is lost, and nothing may be written."""
        if running.is_settled:
            # Completed, by the handler's own transaction, whatever the handler did afterwards.
            then = settlement.error_message if settlement is not None else None
            self._finish([(running, attrs.evolve(PLAIN_COMPLETION, error_message=then))], {})
        elif settlement is None:
            self._let_go(running)
        else:
            self._waiting.append((running, settlement))
            if not self._parts.slots.is_backed_up or len(self._waiting) >= BATCH_MAX // 2:
                self._bell.ring()

    def go_on(self) -> None:
        """Write what was held back while jobs waited to be started."""
        if self._waiting:
            self._bell.ring()

    def distrust(self, running: Running) -> None:
        """Let go of an execution that has ended, and whose outcome could not be written while the lease was trusted.

        It may still be written, if the fence holds; nobody waits for it.
        """
        if running.has_ended:
            self._let_go(running)

    async def settle_for_ever(self) -> None:
        """Write what gathers, batch after batch, until cancelled."""
        while True:
            if not self._waiting or (self._parts.slots.is_backed_up and len(self._waiting) < BATCH_MAX // 2):
                await self._bell.wait()
                continue
            self._in_flight = [self._waiting.popleft() for _ in range(min(BATCH_MAX, len(self._waiting)))]
            await self._write(self._in_flight)
            self._in_flight = []

    def unwritten(self) -> list[Outcome]:
        """Return the outcomes that are not known to be durable, for a worker that leaves in a hurry."""
        return [*self._in_flight, *self._waiting]

    async def _write(self, batch: list[Outcome]) -> None:
        async def once(connection: Connection) -> list[claims.Surprise]:
            return await claims.settle(
                connection,
                self._parts.config.schema,
                worker_id=self._parts.worker_id,
                settlements=[(running.lease, settlement) for running, settlement in batch],
            )

        try:
            surprises = await self._parts.durable.run(once, shield=True)
        except (psycopg.DataError, psycopg.IntegrityError) as error:
            await self._write_apart(batch, error)
            return
        became = {surprise.job_id: surprise.became for surprise in surprises}
        self._finish(batch, became)

    async def _write_apart(self, batch: list[Outcome], error: psycopg.Error) -> None:
        """Find the outcome that PostgreSQL refuses, so that one bad job delays nobody; store that one without its texts."""
        if len(batch) > 1:
            for outcome in batch:
                await self._write([outcome])
            return
        running, settlement = batch[0]
        told = f"the outcome could not be stored: {type(error).__name__}"
        if settlement.error_message == told:
            raise error
        self._parts.emit(
            Event(name=EventName.OUTCOME_REFUSED, fields={"job_id": running.job.id, "why": str(error).partition("\n")[0]})
        )
        plain = Settlement(
            kind=settlement.kind,
            outcome=settlement.outcome,
            delay_seconds=settlement.delay_seconds,
            error_message=told,
            reason=settlement.reason,
        )
        await self._write([(running, plain)])

    def _finish(self, batch: Sequence[Outcome], became: Mapping[JobId, str]) -> None:
        """Free the permits of a batch that is durable, and tell what became of it.

        Of a lease that was given up for lost, what was written late all the same is told too.
        """
        ended = [outcome for outcome in batch if not outcome[0].is_gone]
        late = [outcome for outcome in batch if outcome[0].is_gone and became.get(outcome[0].job.id) != "lost"]
        self._free([running for running, _ in ended])
        is_quiet = not became and not self._parts.tells_routine
        for running, settlement in [*ended, *late]:
            if not (is_quiet and settlement.kind is SettleKind.COMPLETE and settlement.error_message is None):
                self._tell(running, settlement, became.get(running.job.id))

    def _tell(self, running: Running, settlement: Settlement, became: str | None) -> None:
        is_routine = became is None and settlement.kind is SettleKind.COMPLETE and settlement.error_message is None
        if is_routine and not self._parts.tells_routine:
            return
        fields = running.names()
        if settlement.error_message:
            fields["why"] = settlement.error_message.partition("\n")[0]
        if settlement.kind in {SettleKind.RETRY, SettleKind.SNOOZE} and became is None:
            fields["delay_seconds"] = round(settlement.delay_seconds, 3)
        if running.started_at is not None:
            fields["seconds"] = round(trio.current_time() - running.started_at, 6)
        self._parts.emit(Event(name=_EVENTS[settlement.kind] if became is None else _BECAME[became], fields=fields))

    def _let_go(self, running: Running) -> None:
        """Free the permit of an execution whose lease is lost."""
        if not running.is_gone:
            self._free([running])
            self._parts.emit(Event(name=EventName.LEASE_LOST, fields=running.names()))

    def _free(self, ended: Sequence[Running]) -> None:
        for running in ended:
            running.is_gone = True
        self._parts.holdings.remove(ended)
        self._parts.slots.release(len(ended))


RELEASED = Settlement(kind=SettleKind.RELEASE, outcome="released", error_message="the worker was shut down")
