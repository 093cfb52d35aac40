"""Commands and a database that stops answering: one line, the exit code for a database out of reach, and no waiting for ever."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
from psycopg.conninfo import make_conninfo

from pgnotifyq import DatabaseUnreachable, JobRegistry, run_worker
from pgnotifyq.cli.app import _leaves
from pgnotifyq.wire.connection import open_connection
from tests.cli.support import PATIENCE_SECONDS, PGNOTIFYQ
from tests.proxy import Proxy, run_proxy, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

ID = "00000000-0000-0000-0000-000000000001"
WORKER = ["worker", "--app", "app:registry"]
# One of each way to wait: `jobs` waits as show, dead, workers, stats, enqueue and requeue do.
COMMANDS = [WORKER, ["migrate"], ["jobs"], ["cancel", ID], ["doctor"]]
APP = """
import pgnotifyq
registry = pgnotifyq.JobRegistry()

@registry.handler("x")
async def x(payload: dict) -> None:
    pass
"""
# Every command reads it first: who holds it holds them all, in mid-statement.
HELD = "pgnotifyq.schema_migrations"


class Commands:
    """Commands that run at the same time, by way of a proxy."""

    def __init__(self, dsn: str, proxy: Proxy, folder: Path) -> None:
        self.dsn = dsn
        self.proxy = proxy
        self._folder = folder
        self._running: list[trio.Process] = []

    async def start(self, *commands: list[str], timeout_seconds: int = 2) -> None:
        """Start commands."""
        environment = {**os.environ, "PGNOTIFYQ_DSN": make_conninfo(self.proxy.dsn, connect_timeout=timeout_seconds)}
        for command in commands:
            process = await trio.lowlevel.open_process(
                [*PGNOTIFYQ, *command], cwd=self._folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            )
            self._running.append(process)

    async def until_held(self) -> None:
        """Wait until each waits for a statement."""
        with trio.fail_after(PATIENCE_SECONDS):
            async with open_connection(self.dsn) as connection:
                count = 0
                while count < len(self._running):
                    cursor = await connection.execute(
                        "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
                    )
                    ((count,),) = await cursor.fetchall()
                    await trio.sleep(0.01)

    def interrupt(self) -> None:
        """Do what Ctrl-C does."""
        for process in self._running:
            process.send_signal(signal.SIGINT)

    async def ends(self) -> list[tuple[int, list[str]]]:
        """Wait for their ends; return the exit code and the lines of standard error of each."""
        ends = []
        with trio.fail_after(PATIENCE_SECONDS):
            for process in self._running:
                assert process.stderr is not None
                async with process.stderr as stderr:
                    said = b"".join([chunk async for chunk in stderr]).decode()
                lines = [line for line in said.splitlines() if "a superuser" not in line]
                ends.append((await process.wait(), lines))
        return ends

    async def kill(self) -> None:
        """End what is left."""
        with trio.CancelScope(shield=True):
            for process in self._running:
                process.kill()
                await process.wait()
                if process.stderr is not None:
                    await process.stderr.aclose()


@pytest.fixture
async def commands(dsn: str, tmp_path: Path) -> AsyncIterator[Commands]:
    (tmp_path / "app.py").write_text(APP)
    async with trio.open_nursery() as nursery:
        commands = Commands(dsn, await nursery.start(run_proxy, dsn), tmp_path)
        try:
            yield commands
        finally:
            await commands.kill()
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def held(dsn: str, table: str = HELD) -> AsyncIterator[None]:
    """Hold a table, so that whoever asks for it waits."""
    async with open_connection(dsn) as connection, connection.transaction():
        await connection.execute(f"lock table {table}".encode())
        yield


def is_told(lines: list[str]) -> bool:
    """Tell whether there is one line, which says where the database is."""
    return len(lines) == 1 and lines[0].startswith("pgnotifyq: Cannot connect to PostgreSQL at 127.0.0.1:")


async def test_server_that_says_nothing_from_the_start(commands: Commands) -> None:
    """It takes the connection, and that is all."""
    commands.proxy.freeze()
    await commands.start(WORKER, ["jobs"])
    for code, lines in await commands.ends():
        assert (code, is_told(lines)) == (3, True), lines


async def test_server_that_freezes_in_mid_statement(commands: Commands) -> None:
    """Its kernel goes on answering, so that nothing of TCP tells: each command finds out by itself."""
    await commands.start(*COMMANDS)
    async with held(commands.dsn):
        await commands.until_held()
        commands.proxy.freeze()
        for command, (code, lines) in zip(COMMANDS, await commands.ends(), strict=True):
            assert (code, is_told(lines)) == (3, True), (command, lines)


async def test_answers_that_are_lost(commands: Commands) -> None:
    """The server has answered, and others reach it; the command would wait for ever."""
    await commands.start(["jobs"], ["cancel", ID])
    async with held(commands.dsn):
        await commands.until_held()
        commands.proxy.drop_replies()
    await until(
        commands.dsn,
        "bool_and(state like 'idle%%') from pg_stat_activity where datname = current_database() and application_name = 'pgnotifyq command'",
    )
    commands.proxy.thaw()
    for code, lines in await commands.ends():
        assert (code, is_told(lines)) == (3, True), lines


async def test_connections_that_are_cut_in_mid_statement(commands: Commands) -> None:
    """By the network, or by the server, which says why."""
    await commands.start(["migrate"], WORKER)
    async with held(commands.dsn):
        await commands.until_held()
        commands.proxy.cut()
        for code, lines in await commands.ends():
            assert (code, len(lines)) == (3, 1), lines


async def test_sessions_that_are_ended_in_mid_statement(commands: Commands) -> None:
    """The server says why."""
    await commands.start(["jobs"], WORKER)
    async with held(commands.dsn), open_connection(commands.dsn) as connection:
        await commands.until_held()
        await connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
        )
        for code, lines in await commands.ends():
            assert (code, len(lines), "administrator" in lines[0]) == (3, 1, True), lines


async def test_ctrl_c_in_mid_statement(commands: Commands) -> None:
    """It ends without a word, with the code that shells know."""
    await commands.start(["doctor"], ["cancel", ID], WORKER)
    async with held(commands.dsn):
        await commands.until_held()
        commands.interrupt()
        assert await commands.ends() == [(130, [])] * 3


async def test_statement_that_takes_its_time(commands: Commands) -> None:
    """A server that answers others is not out of reach: the command waits, and ends well."""
    async with held(commands.dsn):
        await commands.start(["jobs"])
        await commands.until_held()
        before = commands.proxy.connections
        looks = 0
        while looks < 3:  # more than would do if nobody answered
            while commands.proxy.connections == before:
                await trio.sleep(0.001)
            looks += 1
            while commands.proxy.connections > before:
                await trio.sleep(0.001)
    assert await commands.ends() == [(0, [])]


async def test_worker_in_a_program_whose_start_is_not_answered(dsn: str) -> None:
    """It raises what it promises: the database is out of reach."""
    registry = JobRegistry()

    @registry.handler("x")
    async def x(payload: dict[str, Any]) -> None:
        raise AssertionError

    async with held(dsn, "pgnotifyq.worker_heartbeats"), trio.open_nursery() as nursery:
        with pytest.raises(DatabaseUnreachable, match="did not answer"):
            await nursery.start(partial(run_worker, registry, dsn, lease_seconds=3.0))


def test_errors_in_groups_of_groups() -> None:
    """However deep, each is found, in order: a group may be deeper than Python's stack."""
    group: BaseException = ValueError("innermost")
    for number in range(5000):
        group = BaseExceptionGroup("", [KeyError(number), group])
    leaves = list(_leaves(group))
    assert len(leaves) == 5001
    assert (repr(leaves[0]), repr(leaves[-1])) == ("KeyError(4999)", "ValueError('innermost')")
