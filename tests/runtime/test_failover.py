"""A name that leads to a standby for a while: workers and clients that met it there are back when the name is.

A real hot standby, beside its primary; the name is a cable that leads now to the one, now to the other.
"""

from __future__ import annotations

import os
import random
import shlex
import socket
import sys
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import psycopg
import pytest
import trio
from psycopg import errors
from psycopg.conninfo import make_conninfo

from pgnotifyq import DatabaseUnreachable, EventName, JobRegistry, open_client
from pgnotifyq.embedded import TemporaryServer, open_temporary_server
from pgnotifyq.migrating import migrate
from pgnotifyq.runtime.link import Link
from pgnotifyq.wire.connection import open_connection
from pgnotifyq.wire.sessions import For
from tests.proxy import Proxy, run_proxy, until
from tests.runtime.support import Log, open_workplace

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from pgnotifyq.wire.connection import Connection
    from tests.runtime.support import Workplace

Payload = dict[str, Any]
READ_ONLY = "read-only: a standby"


@attrs.frozen
class Pair:
    """A primary, and a standby that follows it."""

    primary: TemporaryServer
    standby: str  # its address

    async def standby_has_all(self) -> None:
        """Wait until the standby has what the primary has written so far."""
        with psycopg.connect(self.primary.dsn) as session:
            row = session.execute("select pg_current_wal_lsn()::text").fetchone()
        assert row is not None
        await until(self.standby, "pg_last_wal_replay_lsn() >= %s::pg_lsn", row[0])


@contextmanager
def open_pair() -> Iterator[Pair]:
    """Run a primary with our schema and a hot standby of it for the length of a block."""
    version = int(os.environ.get("PGNOTIFYQ_TEST_POSTGRES", "18"))
    with open_temporary_server(version=version, settings={"fsync": "off"}) as primary:

        async def prepare() -> None:
            async with open_connection(primary.dsn) as connection:
                await migrate(connection)

        trio.run(prepare)
        folder = primary.folder / "standby"
        run = partial(primary._binaries.run, folder=primary.folder)
        run("pg_basebackup", "-d", primary.dsn, "-D", str(folder), "-R", "-X", "stream", "-c", "fast", "--no-sync")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        options = {"listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": str(folder), "fsync": "off"}
        flags = " ".join(f"-c {shlex.quote(f'{name}={value}')}" for name, value in options.items())
        run("pg_ctl", "-w", "-o", flags, "-l", str(folder / "log"), "-D", str(folder), "start")
        try:
            yield Pair(primary, make_conninfo(primary.dsn, host=str(folder), port=port))
        finally:
            run("pg_ctl", "-w", "-D", str(folder), "-m", "immediate", "stop")


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """Give the two to all tests of the file; the last one promotes the standby."""
    with open_pair() as pair:
        yield pair


@pytest.fixture
async def name(pair: Pair, nursery: trio.Nursery) -> Proxy:
    """Give the name; it leads to the primary."""
    running: Proxy = await nursery.start(run_proxy, pair.primary.dsn)
    return running


@pytest.fixture
async def place(pair: Pair) -> AsyncIterator[Workplace]:
    """Give a place for workers."""
    async with open_connection(pair.primary.dsn) as connection, open_workplace(pair.primary.dsn, connection) as place:
        yield place


def echoing() -> JobRegistry:
    """Return a handler."""
    registry = JobRegistry()

    @registry.handler("echo")
    async def echo(payload: Payload) -> None:
        await trio.lowlevel.checkpoint()

    return registry


async def test_name_that_leads_to_a_standby_for_a_while(pair: Pair, name: Proxy, place: Workplace) -> None:
    """Nobody keeps a session of it: what is said then is refused, and afterwards all goes on, also what has been waiting."""
    worker = await place.start(echoing(), dsn=name.dsn)
    async with open_client(name.dsn) as client, trio.open_nursery() as nursery:
        await client.wait(await client.enqueue("echo"))
        await pair.standby_has_all()
        name.lead_to(pair.standby)
        name.cut()
        await worker.log.wait(EventName.DATABASE_LOST)
        with suppress(psycopg.OperationalError, DatabaseUnreachable):
            await client.enqueue("echo")  # this may still tell of the cut
        with pytest.raises(DatabaseUnreachable, match=READ_ONLY):
            await client.enqueue("echo")
        job_id = await place.enqueue("echo")
        nursery.start_soon(client.wait, job_id, 20.0)
        name.lead_to(pair.primary.dsn)
        await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
        for _ in range(5):
            await client.wait(await client.enqueue("echo"))
    assert not worker.ended.is_set()


async def test_sessions_that_the_address_admits(pair: Pair, name: Proxy) -> None:
    """With target_session_attrs=any sessions on a standby are kept for reading; one that was to write is closed."""
    name.lead_to(pair.standby)
    async with open_client(make_conninfo(name.dsn, target_session_attrs="any"), connections_max=1) as client:
        await client.stats()
        with pytest.raises(errors.ReadOnlySqlTransaction):
            await client.enqueue("echo")
        name.lead_to(pair.primary.dsn)
        await client.enqueue("echo")


async def test_link_whose_address_admits_a_standby(pair: Pair, name: Proxy, nursery: trio.Nursery) -> None:
    """It closes a session that has refused to write before it tries again."""
    log = Log()
    dsn = make_conninfo(name.dsn, target_session_attrs="any")
    link = Link(dsn, name="tried", deadline_seconds=10.0, emit=log, randomness=random.Random(1))
    name.lead_to(pair.standby)
    pids = []

    async def write(connection: Connection) -> None:
        pids.append(connection.info.backend_pid)
        await connection.execute("create table if not exists written ()")

    nursery.start_soon(link.run, write)
    await log.wait(EventName.DATABASE_LOST)
    name.lead_to(pair.primary.dsn)
    await log.wait(EventName.DATABASE_BACK)
    assert len(set(pids)) == len(pids)
    await link.close()


async def test_several_addresses(pair: Pair) -> None:
    """The first that can write is taken, wherever it stands; by those who look, too."""
    both = [
        str(psycopg.conninfo.conninfo_to_dict(dsn)[key]) for key in ("host", "port") for dsn in (pair.standby, pair.primary.dsn)
    ]
    dsn = make_conninfo(pair.primary.dsn, host=",".join(both[:2]), port=",".join(both[2:]))
    for must_write in (True, False):
        async with open_connection(dsn, used_for=For.CALLER, must_write=must_write) as connection:
            assert connection.info.host == str(pair.primary.folder)
    async with open_connection(make_conninfo(dsn, target_session_attrs="prefer-standby"), used_for=For.CALLER) as connection:
        assert connection.info.host == both[0]
    async with open_connection(pair.standby, used_for=For.CALLER) as connection:
        row = await (await connection.execute("select pg_is_in_recovery()")).fetchone()
        assert row == (True,)


async def test_doctor_of_a_standby(pair: Pair) -> None:
    """It looks all the same, and says what it is."""
    command = [sys.executable, "-m", "pgnotifyq", "doctor", "--dsn", pair.standby]
    ran = await trio.run_process(command, capture_stdout=True, check=False)
    assert ran.returncode == 1
    assert "the server is a standby" in ran.stdout.decode()


async def test_standby_that_is_promoted(pair: Pair, name: Proxy, place: Workplace) -> None:
    """The primary is gone for good: worker and client wait at the standby, and are back as soon as it is promoted."""
    worker = await place.start(echoing(), dsn=name.dsn)
    async with open_client(name.dsn) as client:
        await client.wait(await client.enqueue("echo"))
        await pair.standby_has_all()
        name.lead_to(pair.standby)
        pair.primary.stop("immediate")
        await worker.log.wait(EventName.DATABASE_LOST)
        with psycopg.connect(pair.standby, autocommit=True) as session:
            session.execute("select pg_promote()")
        await until(pair.standby, "not pg_is_in_recovery()")
        with trio.fail_after(20):
            while True:
                with suppress(psycopg.OperationalError, DatabaseUnreachable):
                    job_id = await client.enqueue("echo")
                    break
            await client.wait(job_id)
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    await worker.leave()
