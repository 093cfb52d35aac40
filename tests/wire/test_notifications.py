"""Notifications: none lost, none twice, and no polling."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest
import trio
import trio.testing

from pgnotifyq.wire.connection import open_connection
from pgnotifyq.wire.notifications import listen, take_notifications_nowait, unlisten, wait_notifications

if TYPE_CHECKING:
    from psycopg.rows import TupleRow

    from pgnotifyq.wire.connection import Connection
    from tests.proxy import Proxy

CHANNEL = 'a "quoted"; channel'


async def notify(dsn: str, *payloads: str) -> None:
    """Send notifications from another session."""
    async with open_connection(dsn) as other:
        for payload in payloads:
            await other.execute("select pg_notify(%s, %s)", (CHANNEL, payload))


async def test_while_waiting(bare: Connection[TupleRow], blank_dsn: str) -> None:
    """A waiting task is woken by a notification."""
    await listen(bare, CHANNEL)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(notify, blank_dsn, "one")
        with trio.fail_after(5):
            (arrived,) = await wait_notifications(bare)
    assert (arrived.channel, arrived.payload) == (CHANNEL, "one")


async def test_while_executing_other_statements(bare: Connection[TupleRow], blank_dsn: str) -> None:
    """Notifications that arrive with other answers are returned, each once, in order."""
    await listen(bare, CHANNEL)
    payloads = [str(n) for n in range(200)]
    arrived: list[str] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(notify, blank_dsn, *payloads)
        with trio.fail_after(10):
            while len(arrived) < len(payloads):
                await bare.execute("select 1")
                arrived += [one.payload for one in await wait_notifications(bare)]
                await bare.execute("select 1")
    assert arrived == payloads
    assert take_notifications_nowait(bare) == []


async def test_own_notification(bare: Connection[TupleRow]) -> None:
    """A session hears itself without waiting."""
    await listen(bare, CHANNEL)
    await bare.execute("select pg_notify(%s, 'me')", (CHANNEL,))
    with trio.fail_after(5):
        assert [one.payload for one in await wait_notifications(bare)] == ["me"]


async def test_cancelled_while_waiting(bare: Connection[TupleRow], blank_dsn: str) -> None:
    """A cancelled waiter loses nothing and the connection stays usable."""
    await listen(bare, CHANNEL)
    with trio.move_on_after(0.05) as scope:
        await wait_notifications(bare)
    assert scope.cancelled_caught
    assert not bare.closed
    await notify(blank_dsn, "later")
    with trio.fail_after(5):
        assert [one.payload for one in await wait_notifications(bare)] == ["later"]


async def test_waiter_wakes_only_when_called(bare: Connection[TupleRow], monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle wait reads the socket once: there is no polling."""
    waits = 0
    wait_readable = trio.lowlevel.wait_readable

    async def counted(fileno: int) -> None:
        nonlocal waits
        waits += 1
        await wait_readable(fileno)

    await listen(bare, CHANNEL)
    monkeypatch.setattr(trio.lowlevel, "wait_readable", counted)
    with trio.move_on_after(0.5):
        await wait_notifications(bare)
    assert waits == 1


async def test_unlisten(bare: Connection[TupleRow]) -> None:
    """After `unlisten` the session hears nothing."""
    await listen(bare, CHANNEL)
    await unlisten(bare)
    await bare.execute("select pg_notify(%s, 'x')", (CHANNEL,))
    assert take_notifications_nowait(bare) == []


async def test_cable_cut_while_waiting(proxy: Proxy) -> None:
    """A broken connection wakes the waiter with an error."""
    async with open_connection(proxy.dsn) as connection, trio.open_nursery() as nursery:
        await listen(connection, CHANNEL)

        async def wait_for_error() -> None:
            with pytest.raises(psycopg.OperationalError):
                await wait_notifications(connection)

        nursery.start_soon(wait_for_error)
        await trio.testing.wait_all_tasks_blocked(0.02)
        proxy.cut()
