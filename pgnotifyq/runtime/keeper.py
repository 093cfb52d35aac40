"""What handlers say while they run, on its way to the database: progress, and lines of their logs.

A handler may say more in a second than a database should be asked. So what it says is noted here,
and written by statements that all executions of the worker share. Rules:

- A handler that notes something waits for nothing. It may run in a thread, or in another event
  loop.
- Of several reports of progress, the last counts. It is written at once, or `PROGRESS_SECONDS`
  after the statement before.
- Lines are written `LOGS_SECONDS` after they were logged at the latest. Each attempt has one row
  for them, with a head and a tail. If the worker's process dies, the lines of so many seconds are
  lost.
- What is left is written before the execution is settled, however it has ended. If that takes
  longer than `LAST_SECONDS`, the execution is settled all the same.
- A worker whose handlers say nothing opens no connection for this, and asks nothing.
"""

from __future__ import annotations

import math
from contextlib import suppress
from typing import TYPE_CHECKING

import psycopg
import trio
import trio.lowlevel

from pgnotifyq.ledger import watching
from pgnotifyq.ledger.errors import is_passing
from pgnotifyq.model.errors import DatabaseUnreachable
from pgnotifyq.runtime.bell import Bell
from pgnotifyq.runtime.said import Said

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pgnotifyq.runtime.link import Link
    from pgnotifyq.runtime.running import Running

# Between two statements about progress: two of a worker, and also two of one execution.
PROGRESS_SECONDS = 0.25
LOGS_SECONDS = 1.0  # between two statements about the log of an execution
LAST_SECONDS = 2.0  # to write what is left, before an execution is settled
LOGS_MAX = 50  # logs in one statement: 3 MiB at the most


def said_of(running: Running) -> Said:
    """Return what an execution's handler has said; from now on it is kept."""
    if running.said is None:
        running.said = Said()
    return running.said


def take_report(running: Running) -> watching.Report | None:
    """Return the progress that is not written yet."""
    said = said_of(running)
    if said.unsaid is None:
        return None
    (fraction, message), said.unsaid = said.unsaid, None
    return watching.Report(lease=running.lease, fraction=fraction, message=message)


def take_log(running: Running) -> watching.Log | None:
    """Return the log, if it has lines that are not written yet."""
    taken = said_of(running).lines.take()
    if taken is None:
        return None
    head, tail, left_out = taken
    return watching.Log(lease=running.lease, attempt=running.job.attempts, head=head, tail=tail, left_out=left_out)


class Keeper:
    """Writes what handlers say."""

    def __init__(self, schema: str, link: Link) -> None:
        self._schema = schema
        self._link = link
        self._token: trio.lowlevel.TrioToken | None = trio.lowlevel.current_trio_token()
        self._noted: dict[Running, None] = {}
        self._bell = Bell()
        # Held while something is taken and written. So the settler waits for what is on its way.
        self._writing = trio.Lock()
        self.is_used = False  # since the worker's start

    def log(self, running: Running, at: float, level: str, text: str) -> None:
        """Keep a line of a handler's log. Any thread may call this."""
        said_of(running).lines.add(at, level, text)
        self._note(running)

    def note(self, running: Running, fraction: float | None, message: str | None) -> None:
        """Keep how far a handler has come. Any thread may call this."""
        said_of(running).unsaid = fraction, message
        self._note(running)

    def _note(self, running: Running) -> None:
        said = said_of(running)
        if said.is_noted:
            return
        said.is_noted = self.is_used = True
        try:
            is_here = trio.lowlevel.current_trio_token() is self._token
        except RuntimeError:
            is_here = False
        if is_here:
            self._take_up(running)
        elif self._token is not None:
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._take_up, running)

    def _take_up(self, running: Running) -> None:
        self._noted[running] = None
        self._bell.ring()

    async def keep_for_ever(self) -> None:
        """Write what is noted, again and again, until cancelled."""
        while True:
            await self._bell.wait()
            noted, self._noted = list(self._noted), {}
            for running in noted:
                said_of(running).is_noted = False  # first: what is said from now on is noted again
            await self._write(noted, now=trio.current_time())
            await trio.sleep(PROGRESS_SECONDS)

    async def keep(self, batch: Iterable[Running]) -> None:
        """Write what is left of these executions, before they are settled or the worker ends."""
        some = [running for running in batch if running.said is not None]
        if some:
            with trio.move_on_after(LAST_SECONDS):
                await self._write(some, now=math.inf)

    async def keep_rest(self) -> None:
        """Write what is left when the worker has drained."""
        await self.keep(list(self._noted))

    async def _write(self, some: Sequence[Running], *, now: float) -> None:
        """Write progress, and logs whose time has come; note again what could not be written."""
        async with self._writing:
            await self._take_and_write(some, now=now)

    async def _take_and_write(self, some: Sequence[Running], *, now: float) -> None:
        reports: list[watching.Report] = []
        logs: list[watching.Log] = []
        for running in some:
            said = said_of(running)
            if (report := take_report(running)) is not None:
                reports.append(report)
            if now < said.keep_at:
                self._note(running)
            elif (log := take_log(running)) is not None:
                said.keep_at = trio.current_time() + LOGS_SECONDS
                logs.append(log)
        is_over = False
        try:
            if reports:
                await self._link.ask_once(watching.report_all(self._schema, reports))
            for start in range(0, len(logs), LOGS_MAX):
                await self._link.ask_once(watching.keep_logs(self._schema, logs[start : start + LOGS_MAX]))
            is_over = True
        except (psycopg.Error, DatabaseUnreachable, trio.TooSlowError) as error:
            is_over = not (isinstance(error, trio.TooSlowError) or is_passing(error))
        finally:
            if not is_over:
                # Progress is not tried again: the next report will do. A log must be whole, so it
                # is tried again.
                for running in some:
                    said_of(running).lines.give_back()
                    self._note(running)
