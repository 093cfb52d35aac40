"""Settings behind a pooler: none of ours is left in a session that it lends to others, and theirs do us no harm."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import trio
from psycopg.conninfo import conninfo_to_dict

from pgnotifyq import JobRegistry, open_client
from pgnotifyq.wire.connection import open_connection
from pgnotifyq.wire.sessions import For

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.pooler.support import Pooler
    from tests.runtime.support import Workplace

SETTINGS = {
    "DateStyle": "SQL, DMY",
    "default_transaction_isolation": "serializable",
    "statement_timeout": "1min",
    "synchronous_commit": "off",
    "search_path": "public",
}


@pytest.fixture
def theirs(dsn: str, pool: Callable[..., Pooler]) -> Iterator[Pooler]:
    """A pooler with one session, of a database with settings."""
    name = conninfo_to_dict(dsn)["dbname"]
    with psycopg.connect(dsn, autocommit=True) as session:
        for setting, value in SETTINGS.items():
            session.execute(f"alter database {name} set {setting} = '{value}'".encode())
        yield pool(default_pool_size=1)
        session.execute(f"alter database {name} reset all".encode())


async def test_nothing_is_left_in_the_session(theirs: Pooler) -> None:
    """Whoever gets it next finds what its role says."""
    for used_for in For:
        async with open_connection(theirs.dsn, used_for=used_for) as connection:
            await connection.execute("select 1")
        with psycopg.connect(theirs.dsn, autocommit=True, prepare_threshold=None) as next_one:
            for setting, value in SETTINGS.items():
                assert next_one.execute(f"select current_setting('{setting}')".encode()).fetchone() == (value,), used_for


async def test_life_with_their_settings(place: Workplace, theirs: Pooler) -> None:
    """Rows are read, and transactions that the server undoes for each other are said again."""
    registry = JobRegistry()

    @registry.handler("echo")
    async def echo(payload: dict[str, Any]) -> Any:
        return payload

    await place.start(registry, dsn=theirs.dsn, listen_dsn=place.dsn)
    async with open_client(theirs.dsn, listen_dsn=place.dsn) as client:
        job = await client.wait(await client.enqueue("echo", {"text": "é"}))
        assert job.result == {"text": "é"}
        assert len(await client.workers()) == 1
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(partial(client.enqueue, "echo", unique_key="same", delay_seconds=600.0))
        assert len(await client.jobs()) == 2
