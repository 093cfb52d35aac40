"""How to wait. psycopg's generators say what to wait for.

psycopg describes each exchange with the server as a generator. The generator yields "readable",
"writable" or "either", and is sent what became true. This file is the only place in the package
that knows trio's low-level calls.

Rules:

- A generator that was not started may be dropped. If it was started, it must be driven to its end,
  or its connection must be closed. So callers of `drive` meet a cancel before it (`meet_cancel`). A
  suspended generator is driven on by another call of `drive`: if a generator is sent nothing, it
  yields the same wish once more.
- One `wait_readable` a round trip is the hot path. No task is started and nothing is allocated.
- A socket is nearly always writable. So the kernel is asked for that first, and trio only if it is
  not.
"""

from __future__ import annotations

import select
import time
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import psycopg
import trio
from psycopg.waiting import Ready, Wait
from trio_util import wait_any

from pgnotifyq.wire import forks

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from psycopg.abc import PQGen, PQGenConn

Result = TypeVar("Result")

BUSY_SECONDS_MAX = 0.005
"""How long exchanges that never block may keep other tasks waiting. A large COPY or pipeline finds
its socket always ready."""

_last_pause = 0.0


async def meet_cancel() -> None:
    """Raise `trio.Cancelled` if a cancel is due; else go on at once."""
    await trio.lowlevel.checkpoint_if_cancelled()


async def drive(gen: PQGen[Result], fileno: int) -> Result:
    """Drive `gen` to its end on the socket `fileno` and return its result.

    Cancellation: `gen` is suspended, and can be driven on by another call.

    Raises:
        psycopg.Error: what the exchange itself raised.
        psycopg.OperationalError: the socket was closed by another task.
    """
    paused = False
    try:
        wish = next(gen)
        while True:
            if wish == Wait.R:
                await trio.lowlevel.wait_readable(fileno)
                ready = Ready.R
                paused = True
            else:
                ready = await _writable_or_either(fileno, Wait(wish))
            wish = gen.send(ready)
    except StopIteration as end:
        result: Result = end.value
    except (OSError, trio.ClosedResourceError) as error:
        raise psycopg.OperationalError("the connection's socket was closed while waiting for the server") from error
    if not paused:
        await _pause_when_busy()
    return result


async def drive_connecting(gen: PQGenConn[Result]) -> Result:
    """Drive a generator that opens a connection, and return its result.

    The connection may be the caller's own, or one that cancels a query.

    The socket may change from step to step: libpq tries one address after another.

    Cancellation: the half-open connection is dropped.
    """
    await trio.lowlevel.checkpoint_if_cancelled()
    fileno = -1
    try:
        fileno, wish = next(gen)
        while True:
            forks.connecting.add(fileno)
            if wish == Wait.R:
                await trio.lowlevel.wait_readable(fileno)
                ready = Ready.R
            else:
                await trio.lowlevel.wait_writable(fileno)
                ready = Ready.W
            forks.connecting.discard(fileno)
            fileno, wish = gen.send(ready)
    except StopIteration as end:
        result: Result = end.value
        return result
    except (OSError, trio.ClosedResourceError) as error:
        raise psycopg.OperationalError("the socket was closed while connecting") from error
    finally:
        forks.connecting.discard(fileno)
        gen.close()


def announce_closing(fileno: int) -> None:
    """Wake every task that waits on `fileno`, which is about to be closed.

    The kernel would forget them.
    """
    trio.lowlevel.notify_closing(fileno)


def is_readable_nowait(fileno: int) -> bool:
    """Return whether bytes, or the end of the stream, wait to be read."""
    return bool(_ready_nowait(fileno, Wait.R))


async def _writable_or_either(fileno: int, wish: Wait) -> Ready:
    """Return what is ready, asking the kernel first."""
    await _pause_when_busy(cancellable=True)
    if ready := _ready_nowait(fileno, wish):
        return Ready(ready)
    if wish is Wait.W:
        await trio.lowlevel.wait_writable(fileno)
        return Ready.W
    return await _wait_either(fileno)


async def _wait_either(fileno: int) -> Ready:
    """Wait until `fileno` is readable or writable. Rare: the send buffer is full."""
    ready = Ready.NONE

    async def wait_one(wait: Callable[[int], Awaitable[None]], state: Ready) -> None:
        nonlocal ready
        await wait(fileno)
        ready = Ready(ready | state)

    try:
        await wait_any(
            partial(wait_one, trio.lowlevel.wait_readable, Ready.R), partial(wait_one, trio.lowlevel.wait_writable, Ready.W)
        )
    except BaseExceptionGroup as group:
        # A cancel from outside may arrive once for each child. The callers of this file expect one
        # error, not a group.
        _, others = group.split(trio.Cancelled)
        if others is not None:
            raise others.exceptions[0] from group
        await trio.lowlevel.checkpoint_if_cancelled()
    return ready


async def _pause_when_busy(*, cancellable: bool = False) -> None:
    """Let other tasks run if this thread's exchanges have not waited for anything for a while."""
    global _last_pause  # noqa: PLW0603  one event loop a thread is the rule; two would only pause a little more often
    if time.monotonic() - _last_pause >= BUSY_SECONDS_MAX:
        if cancellable:
            await trio.lowlevel.checkpoint()
        else:
            await trio.lowlevel.cancel_shielded_checkpoint()
        _last_pause = time.monotonic()


if hasattr(select, "poll"):

    def _ready_nowait(fileno: int, wish: Wait) -> int:
        mask = (select.POLLIN if wish & Wait.R else 0) | (select.POLLOUT if wish & Wait.W else 0)
        poll = select.poll()
        poll.register(fileno, mask)
        ready = 0
        for _, event in poll.poll(0):
            if event & ~select.POLLOUT:  # readable, hung up or in error: reading says which
                ready |= Ready.R
            if event & select.POLLOUT:
                ready |= Ready.W
        return ready & int(wish) or (int(wish) if ready else 0)

else:

    def _ready_nowait(fileno: int, wish: Wait) -> int:
        readable, writable, _ = select.select([fileno] if wish & Wait.R else [], [fileno] if wish & Wait.W else [], [], 0)
        return (Ready.R if readable else 0) | (Ready.W if writable else 0)
