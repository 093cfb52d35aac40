"""Whether the event loop that runs here is the one that is needed.

If it is not, trio and asyncio fail somewhere inside, and name neither the call nor a way out.
"""

from __future__ import annotations

import asyncio

from pgnotifyq.model.errors import WrongLoop


def need_trio(what: str, instead: str) -> None:
    """Refuse to go on where trio does not run.

    Args:
        what: the public name that was called.
        instead: what to do, as the end of a sentence.

    Raises:
        WrongLoop: trio does not run in this thread.
    """
    import trio  # a program on asyncio does without

    try:
        trio.current_time()
    except RuntimeError:
        raise WrongLoop(f"{what} needs trio, and trio does not run here: {instead}") from None


def need_asyncio(what: str, instead: str) -> asyncio.AbstractEventLoop:
    """Return asyncio's loop, and refuse to go on where none runs.

    Args:
        what: the public name that was called.
        instead: what to do, as the end of a sentence.

    Raises:
        WrongLoop: asyncio does not run in this thread.
    """
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise WrongLoop(f"{what} needs asyncio, and asyncio does not run here: {instead}") from None


def another_loop() -> WrongLoop:
    """Return what to raise if a client is used on another loop than the one that opened it."""
    return WrongLoop("this client belongs to another event loop: open one in each loop and each process")
