"""The command `demo`: it finds the database, heeds signals, and stops the server that it started.

What the demo plays is in demo_play.py, its handlers are in demo_handlers.py.
"""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import trio
from cyclopts import Parameter

from pgnotifyq.cli.act import find_database
from pgnotifyq.cli.parameters import Dsn
from pgnotifyq.cli.reach import answered
from pgnotifyq.model.errors import ConfigError


def demo(
    folder: Annotated[Path | None, Parameter(help="Default: Python's own standard library.")] = None,
    /,
    *,
    clean: Annotated[
        bool, Parameter(name="--clean", negative="", show_default=False, help="Play nothing; remove what the last demo left.")
    ] = False,
    dsn: Dsn = None,
) -> int:
    """Watch real jobs run, one a file.

    One job is cancelled in mid-flight. One worker is killed, and its work recovered. The jobs are
    left to look at, in a schema of the demo's own, until the next demo or --clean removes them.
    """
    from pgnotifyq.cli.demo_play import play, tidy
    from pgnotifyq.embedded import stop_embedded

    if folder is not None and not folder.is_dir():
        raise ConfigError(f"demo {str(folder)!r}: there is no such folder")

    async def main() -> int:
        database = await find_database(dsn)
        act = partial(tidy, dsn=database.dsn) if clean else partial(play, folder, dsn=database.dsn, dsn_given=dsn)
        try:
            return await _unless_told_to_end(partial(answered, database.dsn, act))
        finally:
            # The demo stops the server again, if the demo had to start it.
            if database.is_embedded and database.source.startswith("started"):
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(stop_embedded)

    return trio.run(main)


async def _unless_told_to_end(act: Callable[[], Awaitable[int]]) -> int:
    """Run an act that has to tidy up.

    If a signal comes, cancel the act, and return the exit code that a shell has for that signal.
    """
    heard: list[int] = []
    code = 0
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGHUP) as signals:
        async with trio.open_nursery() as nursery:

            async def heed() -> None:
                async for number in signals:
                    heard.append(number)
                    nursery.cancel_scope.cancel()

            nursery.start_soon(heed)
            code = await act()
            nursery.cancel_scope.cancel()
    return 128 + heard[0] if heard else code
