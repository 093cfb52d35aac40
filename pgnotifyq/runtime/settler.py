"""The settler: makes outcomes durable, many at once under load and without delay when idle.

It keeps one statement in flight and sends everything that gathered meanwhile as the next one; nothing waits on a timer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import psycopg
import trio

from pgnotifyq.ledger import claims
from pgnotifyq.model.events import Event, EventName
from pgnotifyq.model.outcome import Settlement, SettleKind
from pgnotifyq.runtime.bell import Bell

if TYPE_CHECKING:
    from pgnotifyq.model.job import Lease
    from pgnotifyq.runtime.parts import Parts
    from pgnotifyq.wire.connection import Connection

BATCH_MAX = 1000  # bounds one statement; at 40,000 jobs/s it is 25 ms of outcomes


@attrs.define(eq=False)
class _Entry:
    lease: Lease
    settlement: Settlement
    written: trio.Event = attrs.field(factory=trio.Event)
    became: str | None = None


class Settler:
    """Outcomes on their way to the database."""

    def __init__(self) -> None:
        self._waiting: list[_Entry] = []
        self._bell = Bell()

    async def settle(self, lease: Lease, settlement: Settlement) -> str | None:
        """Have one outcome written; return when it is durable.

        Returns: None when the job ended as asked, else what it became: lost, cancelled, dead.

        Cancellation: the outcome is still written when its turn comes; the fence decides whether it counts.
        """
        entry = _Entry(lease, settlement)
        self._waiting.append(entry)
        self._bell.ring()
        await entry.written.wait()
        return entry.became

    async def settle_for_ever(self, parts: Parts) -> None:
        """Write what gathers, batch after batch, until cancelled."""
        while True:
            if not self._waiting:
                await self._bell.wait()
            batch, self._waiting = self._waiting[:BATCH_MAX], self._waiting[BATCH_MAX:]
            if batch:
                await self._write(parts, batch)

    async def _write(self, parts: Parts, batch: list[_Entry]) -> None:
        async def once(connection: Connection) -> list[claims.Surprise]:
            return await claims.settle(
                connection,
                parts.config.schema,
                worker_id=parts.worker_id,
                settlements=[(entry.lease, entry.settlement) for entry in batch],
            )

        try:
            surprises = await parts.durable.run(once, shield=True)
        except (psycopg.DataError, psycopg.IntegrityError) as error:
            await self._write_apart(parts, batch, error)
            return
        became = {surprise.job_id: surprise.became for surprise in surprises}
        for entry in batch:
            entry.became = became.get(entry.lease.job_id)
            entry.written.set()

    async def _write_apart(self, parts: Parts, batch: list[_Entry], error: psycopg.Error) -> None:
        """Find the outcome that PostgreSQL refuses, so that one bad job delays nobody; store that one without its texts."""
        if len(batch) > 1:
            for entry in batch:
                await self._write(parts, [entry])
            return
        entry = batch[0]
        parts.emit(
            Event(
                name=EventName.OUTCOME_REFUSED, fields={"job_id": entry.lease.job_id, "why": str(error).splitlines()[0]}
            )
        )
        told = f"the outcome could not be stored: {type(error).__name__}"
        if entry.settlement.error_message == told:
            raise error
        entry.settlement = attrs.evolve(entry.settlement, result_json=None, error_message=told)
        await self._write(parts, [entry])


RELEASED = Settlement(kind=SettleKind.RELEASE, outcome="released", error_message="the worker was shut down")
