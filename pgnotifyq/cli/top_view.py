"""The full-screen view of a queue, and keys to act on what it shows.

Rules:

- A look is two statements, which have one second together. One reads the workers. The other reads
  the rest, and its cost does not grow with what waits (sql/functions/look/top.sql). `doctor` looks
  now and then, on connections of its own, under a deadline of its own.
- The terminal is left as it was: at `q`, at Ctrl-C, at SIGTERM, and at an error.
- If the database does not answer, the screen says so, and `top` goes on trying.
- Before a key changes anything, `top` asks once more. It asks about the job or the queue that was
  chosen when the key was pressed.
"""

from __future__ import annotations

import getpass
import signal
import socket
import sys
from typing import TYPE_CHECKING

import psycopg
import trio
from psycopg.conninfo import conninfo_to_dict
from rich.console import Console
from rich.live import Live

from pgnotifyq.cli.act import find_database, open_ledger
from pgnotifyq.cli.doctor import Finding, examine
from pgnotifyq.cli.stack import told
from pgnotifyq.cli.terminal import key_by_key, read_keys
from pgnotifyq.cli.top_screen import State, Wish
from pgnotifyq.doors.client import open_client
from pgnotifyq.ledger import glance, look
from pgnotifyq.ledger.errors import is_passing
from pgnotifyq.model.errors import PgnotifyqError
from pgnotifyq.model.job import JobId
from pgnotifyq.model.new_job import job_id_of
from pgnotifyq.wire.asking import ask
from pgnotifyq.wire.connection import open_connection

if TYPE_CHECKING:
    from pgnotifyq.doors.client import Client
    from pgnotifyq.embedded import Database

LOOK_DEADLINE_SECONDS = 1.0
CONNECT_DEADLINE_SECONDS = 5.0
DOCTOR_EVERY_SECONDS = 30.0
DOCTOR_DEADLINE_SECONDS = 5.0  # one of its looks waits three seconds for a notification
STACK_SECONDS = 2.0
ACT_DEADLINE_SECONDS = 5.0  # of what a key asks for; no key is heard meanwhile


async def watch(every: float, dsn: str | None, schema: str) -> None:
    """Show a queue until `q` is pressed, a signal comes, or the terminal is gone."""
    database = await find_database(dsn)
    async with open_ledger(database, schema):
        pass  # what is wrong from the start is told in a line, before the screen is taken
    wanted = conninfo_to_dict(database.dsn)
    title = f"{wanted.get('dbname') or 'the database'}.{schema}"
    fileno = sys.stdin.fileno()
    async with open_client(database.dsn, schema=schema) as client:
        with key_by_key(fileno), Live(console=Console(), screen=True, auto_refresh=False) as live:
            view = _View(live, State(title), database, schema, client)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(view.look_for_ever, every)
                nursery.start_soon(view.examine_for_ever)
                nursery.start_soon(view.hear_signals, nursery.cancel_scope)
                view.draw()
                await view.hear_keys(fileno)
                nursery.cancel_scope.cancel(reason="pgnotifyq: q was pressed")


class _View:
    """The screen, and the tasks that change what it shows."""

    def __init__(self, live: Live, state: State, database: Database, schema: str, client: Client) -> None:
        self._live = live
        self._state = state
        self._database = database
        self._schema = schema
        self._client = client
        self._look_now = trio.Event()

    def draw(self) -> None:
        """Draw what is to be shown now, in the size that the terminal has now."""
        size = self._live.console.size
        self._live.update(self._state.draw(size.width, size.height), refresh=True)

    async def look_for_ever(self, every: float) -> None:
        """Look at the queue again and again. If the connection breaks, open another."""
        state = self._state
        while True:
            try:
                with trio.fail_after(CONNECT_DEADLINE_SECONDS) as opening:
                    async with open_connection(self._database.dsn, application_name="pgnotifyq top") as connection:
                        opening.deadline = float("inf")
                        while True:
                            with trio.fail_after(LOOK_DEADLINE_SECONDS):
                                state.workers = await ask(connection, look.list_workers(self._schema))
                                state.before, state.glance = state.glance, await ask(connection, glance.top(self._schema))
                            state.trouble = None
                            self.draw()
                            await self._pause(every)
            except trio.TooSlowError:
                state.trouble = f"the database has not answered within {LOOK_DEADLINE_SECONDS:g} s"
            except (psycopg.Error, PgnotifyqError) as error:
                if not is_passing(error):
                    raise
                state.trouble = str(error).partition("\n")[0]
            self.draw()
            await self._pause(every)

    async def _pause(self, seconds: float) -> None:
        """Wait for a while, or until a look is wanted at once."""
        with trio.move_on_after(seconds):
            await self._look_now.wait()
        self._look_now = trio.Event()

    async def examine_for_ever(self) -> None:
        """Have doctor look now and then."""
        while True:
            found: list[Finding] | None = None
            with trio.move_on_after(DOCTOR_DEADLINE_SECONDS):
                try:
                    async with open_connection(self._database.dsn) as one, open_connection(self._database.dsn) as other:
                        found = await examine(one, other, self._schema)
                except (psycopg.Error, PgnotifyqError) as error:
                    found = [Finding("warn", f"doctor cannot look: {error}".partition("\n")[0])]
            if found is None:
                what = f"doctor takes more than {DOCTOR_DEADLINE_SECONDS:g} s here: run it by itself"
                found = [Finding("warn", what)]
            self._state.findings = found
            self.draw()
            await trio.sleep(DOCTOR_EVERY_SECONDS)

    async def hear_signals(self, everything: trio.CancelScope) -> None:
        """Draw anew if the terminal has another size, and end in order if the process shall end."""
        with trio.open_signal_receiver(signal.SIGWINCH, signal.SIGTERM, signal.SIGHUP) as signals:
            async for number in signals:
                if number != signal.SIGWINCH:
                    everything.cancel(reason="pgnotifyq: a signal")
                    return
                self.draw()

    async def hear_keys(self, fileno: int) -> None:
        """Do what keys say, until one says to quit, or the terminal is gone."""
        while keys := await read_keys(fileno):
            for key in keys:
                wish = self._state.press(key)
                if wish is not None and wish.verb == "quit":
                    return
                self.draw()
                if wish is not None:
                    await self._grant(wish)
                    self.draw()

    async def _grant(self, wish: Wish) -> None:
        """Do what was asked for, and say what became of it."""
        state = self._state
        try:
            with trio.fail_after(ACT_DEADLINE_SECONDS):
                if wish.verb in {"explain", "stack"}:
                    state.popup = (f"{wish.verb} {wish.target}", await self._read(wish))
                else:
                    state.said = await self._change(wish)
                    self._look_now.set()
        except trio.TooSlowError:
            state.said = f"{wish.verb}: the database has not answered within {ACT_DEADLINE_SECONDS:g} s; see whether it is done"
        except (PgnotifyqError, psycopg.Error) as error:
            state.said = str(error).partition("\n")[0]

    async def _read(self, wish: Wish) -> list[str]:
        job_id: JobId = job_id_of(wish.target)
        if wish.verb == "explain":
            return (await self._client.explain(job_id)).sentences
        return told(await self._client.stack(job_id, timeout_seconds=STACK_SECONDS))

    async def _change(self, wish: Wish) -> str:
        client, me = self._client, _me()
        match wish.verb:
            case "cancel":
                return f"{wish.target}: {await client.cancel(wish.target, why=f'in top, by {me}')}"
            case "requeue":
                await client.requeue(wish.target)
                return f"{wish.target}: requeued"
            case "pause":
                await client.pause(wish.target, why="in top", who=me)
                return f"queue {wish.target}: paused"
            case _:
                was_paused = await client.resume(wish.target)
                return f"queue {wish.target}: resumed" if was_paused else f"queue {wish.target} itself was not paused"


def _me() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = "somebody"
    return f"{user}@{socket.gethostname()}"
