"""The settler: makes outcomes durable, many at once under load and without delay when idle.

It keeps one statement in flight and sends everything that gathered meanwhile as the next one;
nothing waits on a timer. When an outcome is durable, the job's permit is free.

A plain completion, by far the most frequent outcome, goes by a statement of its own with two
arrays; the rest shares one with nine.

One row must not hold up the batch. What a batch's first try does not write, for whatever reason, is
settled one by one. A row that cannot be written is put aside with its outcome (`job_troubles`), and
its permit is free. A row that another session has locked is tried again beside the batches that
follow. In the end it is put aside, too.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import attrs
import psycopg
import trio

from pgnotifyq.ledger import end, fences, lease
from pgnotifyq.ledger.errors import Whose, whose
from pgnotifyq.model.errors import DatabaseUnreachable, text_of
from pgnotifyq.model.events import Event, EventName
from pgnotifyq.model.outcome import PLAIN_COMPLETION, Outcome, SettleKind
from pgnotifyq.model.tracing import in_place
from pgnotifyq.runtime.bell import Bell
from pgnotifyq.runtime.cancels import lose

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pgnotifyq.ledger.ask import Plan
    from pgnotifyq.model.job import JobId
    from pgnotifyq.runtime.executions import Executions
    from pgnotifyq.runtime.identity import Identity
    from pgnotifyq.runtime.keeper import Keeper
    from pgnotifyq.runtime.link import Link
    from pgnotifyq.runtime.running import Running

# Bounds one statement. A claim can run beside it on the other connection, so the permits of a large
# worker should not all wait for one statement: with 500 slots, 250 were 20 % faster than 1000.
BATCH_MAX = 250
# For outcomes whose rows are locked: how many are tried again at once, the pause before each try,
# and after how many tries, half a minute, they are put aside.
BUSY_BATCH_MAX = end.APART_JOBS_MAX
BUSY_PAUSE_SECONDS = 0.5
BUSY_TRIES_MAX = 60

# What an outcome is called in events, by the verb that settles it.
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
    "refused": EventName.JOB_PUT_ASIDE,
}


class Settler:
    """Outcomes on their way to the database."""

    def __init__(self, me: Identity, executions: Executions, durable: Link, keeper: Keeper | None = None) -> None:
        self._keeper = keeper  # writes what handlers have said, before their outcomes
        self._me = me
        self._executions = executions
        self._durable = durable
        # Executions whose outcomes are not known to be durable.
        self._waiting: deque[Running] = deque()
        self._in_flight: list[Running] = []
        self._bell = Bell()
        self._busy: deque[tuple[Running, int]] = deque()  # with the tries so far
        self._busy_bell = Bell()

    def add(self, running: Running, outcome: Outcome | None) -> None:
        """Take an execution's outcome; None: its lease is lost, and nothing may be written."""
        if running.is_settled:
            # The handler's own transaction has completed the job, whatever the handler did
            # afterwards.
            then = outcome.error_message if outcome is not None else None
            running.outcome = attrs.evolve(PLAIN_COMPLETION, error_message=then)
            self._finish([running], ())
        elif outcome is None:
            lose(self._me, self._executions, running)
        else:
            running.outcome = outcome
            self._waiting.append(running)
            if not self._executions.is_backed_up or len(self._waiting) >= BATCH_MAX // 2:
                self._bell.ring()

    def go_on(self) -> None:
        """Write what was held back while jobs waited to be started."""
        if self._waiting:
            self._bell.ring()

    async def note_afterthought(self, running: Running, outcome: Outcome | None) -> None:
        """Keep what was raised after the handler's own transaction had completed the job."""
        if outcome is None or outcome.error_message is None:
            return
        verb = fences.note_afterthought(self._me.schema, running.lease, outcome.error_message)
        try:
            await self._durable.ask_once(verb, shield=True)
        except (psycopg.Error, DatabaseUnreachable, trio.TooSlowError) as error:
            why = text_of(error).partition("\n")[0] or "no answer in time"
            self._me.emit(Event(name=EventName.OUTCOME_REFUSED, fields={"job_id": running.job.id, "why": why}))

    async def settle_for_ever(self) -> None:
        """Write what gathers, batch after batch, until cancelled."""
        while True:
            if not self._waiting or (self._executions.is_backed_up and len(self._waiting) < BATCH_MAX // 2):
                await self._bell.wait()
                continue
            self._in_flight = [self._waiting.popleft() for _ in range(min(BATCH_MAX, len(self._waiting)))]
            await self._write(self._in_flight)
            self._in_flight = []

    def unwritten(self) -> list[Running]:
        """Return the executions whose outcomes are not known to be durable.

        A worker that leaves in a hurry asks for them.
        """
        return [*self._in_flight, *self._waiting, *(running for running, _ in self._busy)]

    async def settle_busy_for_ever(self) -> None:
        """Retry outcomes whose rows another session has locked, until cancelled."""
        while True:
            if not self._busy:
                await self._busy_bell.wait()
            await trio.sleep(BUSY_PAUSE_SECONDS)
            some = [self._busy[place] for place in range(min(BUSY_BATCH_MAX, len(self._busy)))]
            # If a lease was given up, this is the last try: nobody but the database keeps its
            # outcome.
            last = [(running, tries) for running, tries in some if tries >= BUSY_TRIES_MAX or running.is_gone]
            for part, is_last in ((last, True), ([entry for entry in some if entry not in last], False)):
                if part:
                    await self._write_busy(part, is_last=is_last)

    async def _write_busy(self, part: list[tuple[Running, int]], *, is_last: bool) -> None:
        batch = [running for running, _ in part]
        surprises = await self._ask(lambda: self._apart(batch, is_last=is_last), batch)
        for entry in part:
            self._busy.remove(entry)
        still = {surprise.job_id for surprise in surprises if surprise.became == "busy"}
        self._busy.extend((running, tries + 1) for running, tries in part if running.job.id in still)
        self._finish([running for running in batch if running.job.id not in still], surprises)

    async def _write(self, batch: list[Running]) -> None:
        if self._keeper is not None and self._keeper.is_used:
            await self._keeper.keep(batch)
        tries = 0

        def settlement() -> Plan[list[lease.Surprise]]:
            nonlocal tries
            tries += 1
            if tries > 1:
                # Each outcome goes by a statement of its own. What was answered is durable, so the
                # next try gets further. If a statement is late, it is cancelled, and its one
                # outcome is put aside (sql/functions/end/settle_apart.sql).
                return self._apart(batch, is_last=False, jobs_max=1)
            return end.settle_surely(
                self._me.schema,
                worker_id=self._me.worker_id,
                settlements=[(running.lease, running.outcome_known) for running in batch],
            )

        surprises = await self._ask(settlement, batch)
        if surprises and (busy := {surprise.job_id for surprise in surprises if surprise.became == "busy"}):
            self._busy.extend((running, 1) for running in batch if running.job.id in busy)
            self._busy_bell.ring()
            batch = [running for running in batch if running.job.id not in busy]
        self._finish(batch, surprises)

    async def _ask(self, make: Callable[[], Plan[list[lease.Surprise]]], batch: list[Running]) -> list[lease.Surprise]:
        try:
            return await self._durable.ask(make, shield=True)
        except Exception as error:
            if whose(error) is not Whose.JOB:
                raise
            # The outcome could not even be put aside. The lease runs out, and the reclaimer sees to
            # the job.
            why = str(error).partition("\n")[0]
            return [lease.Surprise(job_id=running.job.id, became="refused", why=why) for running in batch]

    def _apart(self, batch: list[Running], *, is_last: bool, jobs_max: int = end.APART_JOBS_MAX) -> Plan[list[lease.Surprise]]:
        lock_seconds = self._durable.deadline_seconds / (2 * end.APART_JOBS_MAX)
        return end.settle_apart(
            self._me.schema,
            worker_id=self._me.worker_id,
            settlements=[(running.lease, running.outcome_known) for running in batch],
            lock_seconds=min(lock_seconds, end.APART_LOCK_SECONDS_MAX),
            is_last=is_last,
            jobs_max=jobs_max,
        )

    def _finish(self, batch: Sequence[Running], surprises: Sequence[lease.Surprise]) -> None:
        """Free the permits of a batch that is durable, and tell what became of it.

        If a lease was given up for lost and the outcome was written late all the same, that is told
        too.
        """
        became = {surprise.job_id: surprise for surprise in surprises}
        ended = [running for running in batch if not running.is_gone]
        late = (
            [running for running in batch if running.is_gone and not _is(became.get(running.job.id), "lost")]
            if len(ended) < len(batch)
            else []
        )
        self._executions.let_go(ended)
        if self._me.meter is not None:
            self._me.meter.note_ended([*ended, *late], became)
        if in_place() is not None:
            _trace([*ended, *late], became)
        is_quiet = not became and not self._me.tells_routine
        for running in [*ended, *late]:
            if not (is_quiet and running.outcome is PLAIN_COMPLETION):
                self._tell(running, running.outcome_known, became.get(running.job.id))

    def _tell(self, running: Running, outcome: Outcome, surprise: lease.Surprise | None) -> None:
        if _is(surprise, "bare"):
            assert surprise is not None
            self._me.emit(Event(name=EventName.OUTCOME_REFUSED, fields={"job_id": running.job.id, "why": surprise.why}))
            surprise = None
        is_routine = surprise is None and outcome.kind is SettleKind.COMPLETE and outcome.error_message is None
        if is_routine and not self._me.tells_routine:
            return
        fields = running.names()
        if surprise is not None and surprise.became == "refused":
            fields |= {"verb": outcome.kind.value, "sqlstate": surprise.sqlstate, "why": surprise.why}
        elif outcome.error_message:
            fields["why"] = outcome.error_message.partition("\n")[0]
        if outcome.kind in {SettleKind.RETRY, SettleKind.SNOOZE} and surprise is None:
            fields["delay_seconds"] = round(outcome.delay_seconds, 3)
        if running.started_at is not None:
            fields["seconds"] = round(trio.current_time() - running.started_at, 6)
        self._me.emit(Event(name=_EVENTS[outcome.kind] if surprise is None else _BECAME[surprise.became], fields=fields))


def _trace(batch: Sequence[Running], became: Mapping[JobId, lease.Surprise]) -> None:
    """Tell the traces of what is durable, but for what a handler's own transaction has settled."""
    for running in batch:
        if running.trace is not None and not running.is_settled:
            surprise = became.get(running.job.id)
            told = None if surprise is None or surprise.became == "bare" else surprise.became
            running.trace.settled(running.outcome_known.kind, became=told, batch=len(batch))


def _is(surprise: lease.Surprise | None, became: str) -> bool:
    return surprise is not None and surprise.became == became


RELEASED = Outcome(kind=SettleKind.RELEASE, name="released", error_message="the worker was shut down")
