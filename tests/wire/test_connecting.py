"""Opening connections: addresses, patience, and what is said when nobody answers."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
import trio
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import dict_row

from pgnotifyq.model.errors import DatabaseUnreachable
from pgnotifyq.wire.addresses import parameters_from
from pgnotifyq.wire.connection import connect, open_connection

if TYPE_CHECKING:
    from tests.proxy import Proxy

DEAD_PORT = "1"  # tcpmux: nobody listens there


async def test_dead_port() -> None:
    """A refused connection is one line that names address, reason and remedy, and no password."""
    with pytest.raises(DatabaseUnreachable) as caught:
        await connect(f"postgresql://ann:secret@127.0.0.1:{DEAD_PORT}/things")
    message = str(caught.value)
    assert "127.0.0.1:1" in message
    assert "refused" in message
    assert "Check that the server is running" in message
    assert "secret" not in message
    assert "\n" not in message


async def test_unreadable_dsn() -> None:
    """A connection string that cannot be read is not quoted: it may hold a password."""
    with pytest.raises(DatabaseUnreachable) as caught:
        await connect("postgres//ann:secret@host/things")
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


SECRETS = [
    "postgresql://ann:SEC@RET:pass@127.0.0.1/things",
    "postgresql://ann:SEC/RET@127.0.0.1:1/things",
    "postgresql://ann:SECp@RET:w/pass?#%25@/things?host=/nonexistent",
    "postgres://ann:SEC@RET@nosuch.invalid:1/things",
    "postgresql+psycopg://ann:SEC@RET.invalid@127.0.0.1:1/things",
    "postgresql://ann:SEC@RET?pass@127.0.0.1:1/things",
    "postgresql://ann@SECRET:pass@127.0.0.1:1/things",
    "host=127.0.0.1 port=1 password=SEC@RET/pass",
    "host=127.0.0.1 port=1 password=SEC RET pass",
    "host=127.0.0.1 port=1 password='SEC RET pass",
]


@pytest.mark.parametrize("dsn", SECRETS)
async def test_password_that_cuts_an_address_in_two(dsn: str) -> None:
    """No piece of it is shown, in the message or in what a traceback shows beside it."""
    with pytest.raises(DatabaseUnreachable) as caught:
        await connect(dsn)
    told = "".join(traceback.format_exception(caught.value)).casefold()
    shown = told[told.index("databaseunreachable") :] + repr(caught.value.__cause__).casefold()
    for piece in ("sec", "ret", "pass:", ":w", "pass@", "sec@ret"):
        assert piece not in shown, piece


async def test_addresses_as_other_libraries_write_them(blank_dsn: str) -> None:
    """SQLAlchemy's and others' name a driver behind a plus: they lead to the same database."""
    direct = conninfo_to_dict(blank_dsn)
    host = quote(str(direct["host"]), safe="")
    for scheme in (
        "postgresql",
        "postgres",
        "postgresql+psycopg",
        "postgresql+asyncpg",
        "postgresql+psycopg2",
        "postgres+pg8000",
    ):
        dsn = f"{scheme}://{direct.get('user', '')}@/{direct['dbname']}?host={host}&port={direct.get('port', 5432)}"
        async with open_connection(dsn) as connection:
            assert connection.info.dbname == direct["dbname"]


async def test_value_of_the_environment_that_cannot_be_read(blank_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is one typed error, not one of Python's."""
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "abc")
    with pytest.raises(DatabaseUnreachable, match="environment"):
        await connect(blank_dsn)


async def test_unknown_host_name() -> None:
    """A name that does not resolve is named."""
    with pytest.raises(DatabaseUnreachable, match=r"nosuch\.invalid"):
        await connect("host=nosuch.invalid")


async def test_missing_database(blank_dsn: str) -> None:
    """A database that does not exist is named, with the server's reason."""
    with pytest.raises(DatabaseUnreachable, match=r'"nowhere" does not exist.*create it'):
        await connect(make_conninfo(blank_dsn, dbname="nowhere"))


async def test_dead_host_before_good_one(proxy: Proxy) -> None:
    """The first address that answers is used."""
    dsn = make_conninfo(proxy.dsn, host="127.0.0.1,127.0.0.1", port=f"{DEAD_PORT},{proxy.port}")
    async with open_connection(dsn) as connection:
        assert connection.info.port == proxy.port


async def test_name_is_resolved(proxy: Proxy) -> None:
    """Host names are looked up, and all their addresses tried."""
    async with open_connection(make_conninfo(proxy.dsn, host="localhost")) as connection:
        assert connection.info.host == "localhost"


async def test_only_a_standby_will_do(blank_dsn: str) -> None:
    """`target_session_attrs` refuses a primary."""
    with pytest.raises(DatabaseUnreachable, match="standby"):
        await connect(make_conninfo(blank_dsn, target_session_attrs="standby"))


async def test_standby_preferred_but_absent(blank_dsn: str) -> None:
    """`prefer-standby` takes the primary when there is nothing else."""
    async with open_connection(make_conninfo(blank_dsn, target_session_attrs="prefer-standby")) as connection:
        assert not connection.closed


async def test_silent_address(proxy: Proxy) -> None:
    """An address that accepts and says nothing costs `connect_timeout`, then the next one is tried."""
    proxy.freeze()
    with trio.fail_after(10), pytest.raises(DatabaseUnreachable, match="did not answer within 2 seconds"):
        await connect(make_conninfo(proxy.dsn, connect_timeout=2))


async def test_cancelled_while_connecting(proxy: Proxy) -> None:
    """A cancel while connecting leaves no connection behind."""
    proxy.freeze()
    with trio.move_on_after(0.05) as scope:
        await connect(proxy.dsn)
    assert scope.cancelled_caught


async def test_given_parameters_win(blank_dsn: str) -> None:
    """The package's keepalives are defaults only, and the DSN's application name is the user's."""
    dsn = make_conninfo(blank_dsn, keepalives_idle=7, application_name="mine")
    wanted = parameters_from(dsn, application_name="ours")
    assert (wanted["keepalives_idle"], wanted["application_name"]) == ("7", "mine")
    assert wanted["tcp_user_timeout"] == parameters_from("")["tcp_user_timeout"]
    assert "keepalives" not in conninfo_to_dict(dsn)


async def test_row_factory(blank_dsn: str) -> None:
    """Row factories work, and so do binary results."""
    connection = await connect(blank_dsn, row_factory=dict_row)
    async with connection:
        cursor = await connection.execute("select 1 as one", binary=True)
        assert await cursor.fetchone() == {"one": 1}
    assert connection.closed
