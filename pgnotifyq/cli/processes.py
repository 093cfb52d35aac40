"""Several worker processes on one machine, and a parent that does no work: `worker --processes N`.

The parent starts this very command again, N times. It imports no application. Each child has a
socket to it:

- The child tells the parent what it would tell a service manager (systemd.py). Only the parent
  talks to the service manager.
- The parent says how far the end has come: 1 drains the child, 2 interrupts its jobs. A terminal
  and systemd signal the children as well. So a child takes the larger of what the parent said and
  what it has heard by itself (ending.py), and nothing counts twice.
- If the parent is gone, even by SIGKILL, the socket ends, and the child drains.

Rules:

- A process that ends by itself is started again, whatever its end: at once if it has lived for
  STEADY_SECONDS; else after a pause that doubles. Each end is told (`process.ended`).
- If a process cannot be started (there is no memory for it, say), the parent tries again after such
  a pause. The other processes go on.
- If the command or its input is wrong (exit code 2), and no process has ever been ready, the parent
  gives up: the command would be wrong N times more.
- If the watchdog's time passes and a child has said nothing, that child is killed and started
  again, not all of them.
- With `--reload`, a change of a Python file below the current folder starts all processes anew.
  Their jobs are interrupted, and have their grace. If a process cannot start then (for a syntax
  error, say), the parent waits for the next change.
- The exit code is the worst of those that the last processes ended with.
"""

from __future__ import annotations

import math
import os
import random
import signal
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import trio

from pgnotifyq.cli.ending import ECHO_SECONDS, EXIT_STUCK, LAST_WORDS_SECONDS, PATIENCE_SECONDS, START_PATIENCE_SECONDS
from pgnotifyq.model.errors import ConfigError, first_line_of, name_of
from pgnotifyq.model.events import Event, EventName

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, MutableMapping

    from pgnotifyq.cli.ending import Ear
    from pgnotifyq.cli.systemd import Listener
    from pgnotifyq.model.config import WorkerConfig
    from pgnotifyq.model.events import EventSink

    Changes = AsyncIterator[Collection[tuple[object, str]]]

PROCESSES_MAX = 256
VARIABLE = "PGNOTIFYQ_PROCESS"
STEADY_SECONDS = 60.0
PAUSE_SECONDS_FIRST = 0.5
PAUSE_SECONDS_MAX = 30.0
UNWATCHED_SECONDS = 5.0  # until files are watched again that could not be
DRAIN, INTERRUPT = 1, 2
EXIT_WRONG, EXIT_FAILED = 2, 1
# The best first: done; jobs were cut off; a handler did not let go; anything else.
_ORDER = (0, 4, 5)
MESSAGE_BYTES_MAX = 4096
# An application may take long to import. systemd gives a service as long to start.
START_SECONDS_MAX = 90.0


# The child's side.


@attrs.frozen(eq=False)
class Parent:
    """The process that supervises this one."""

    index: int  # of this process, from 0
    link: socket.socket
    watchdog_seconds: float | None

    def say(self, *lines: str) -> None:
        """Tell the parent something."""
        with suppress(OSError):
            self.link.send(("\n".join(lines) + "\n").encode(), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

    def obey(self, ear: Ear) -> None:
        """Heed what the parent says from now on, and its end."""
        threading.Thread(target=self._listen, args=(ear,), name="pgnotifyq parent", daemon=True).start()

    def _listen(self, ear: Ear) -> None:
        while True:
            told = b""  # an error is an end, too
            with suppress(OSError):
                told = self.link.recv(64)
            if not told:
                ear.be_told(DRAIN)
                return
            ear.be_told(max(told) - ord("0"))


def find_parent(environment: MutableMapping[str, str] = os.environ) -> Parent | None:
    """Return the process that supervises this one, or None. Remove its variable."""
    told = environment.pop(VARIABLE, "")
    if not told:
        return None
    index, fileno, watchdog_seconds = told.split(":")
    link = socket.socket(fileno=int(fileno))
    link.set_inheritable(False)
    return Parent(int(index), link, float(watchdog_seconds) or None)


# The parent's side.


@attrs.define(eq=False)
class _Child:
    """A process that runs."""

    process: trio.Process
    link: trio.SocketStream
    is_ready: bool = False
    is_outdated: bool = False
    silence_ends_at: float = math.inf  # by then it must say something
    why: str | None = None  # why the parent killed it

    async def tell(self, level: int) -> None:
        """Say how far the end has come."""
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
            await self.link.send_all(str(level).encode())


@attrs.define(eq=False)
class _Parent:
    """What the parent's tasks share."""

    count: int
    reloads: bool
    config: WorkerConfig
    emit: EventSink
    manager: Listener | None
    children: dict[int, _Child] = attrs.field(factory=dict)
    codes: list[int] = attrs.field(factory=list)
    level: int = 0  # how far the end has come
    was_ready: set[int] = attrs.field(factory=set)
    news: trio.Event = attrs.field(factory=trio.Event)  # the level has grown, or a file has changed

    def is_ending(self) -> bool:
        """Tell whether the processes were told to end."""
        return self.level > 0

    def tell_news(self) -> None:
        """Wake the tasks that pause."""
        self.news.set()
        self.news = trio.Event()

    async def end(self, level: int) -> None:
        """Have all processes end."""
        if level <= self.level:
            return
        self.level = level
        self.tell_news()
        for child in list(self.children.values()):
            await child.tell(level)

    async def keep(self, index: int) -> None:
        """Keep one process running until the end."""
        deaths = 0
        while not self.is_ending():
            began = trio.current_time()
            try:
                child = await self._start(index)
            except OSError as error:  # the machine has no process, file or memory left for it
                deaths += 1
                await self._pause(deaths, {"process": index + 1, "why": f"it could not be started: {error}"})
                continue
            await self._attend(index, child)
            code = child.process.returncode
            assert code is not None
            if self.is_ending():
                self.codes.append(code)
                return
            if child.is_outdated:
                deaths = 0
                continue
            fields: dict[str, object] = {"process": index + 1, "pid": child.process.pid, "exit_code": code}
            if child.why is not None:
                fields["why"] = child.why
            if self.reloads and code in {EXIT_WRONG, EXIT_FAILED}:
                self._tell(EventName.PROCESS_ENDED, fields, why="it is started again when a file changes")
                await self.news.wait()
                continue
            if code == EXIT_WRONG and not self.was_ready:
                self._tell(EventName.PROCESS_ENDED, fields)
                self.codes.append(code)
                await self.end(INTERRUPT)
                return
            deaths = 0 if trio.current_time() - began >= STEADY_SECONDS else deaths + 1
            await self._pause(deaths, fields)

    async def _pause(self, deaths: int, fields: dict[str, object]) -> None:
        """Tell how a process ended, and wait until it may be started again."""
        pause = min(PAUSE_SECONDS_FIRST * 2 ** min(deaths - 1, 10), PAUSE_SECONDS_MAX) if deaths else 0.0
        pause *= 0.75 + 0.5 * random.random()  # noqa: S311  # so that a crowd does not come at once
        self._tell(EventName.PROCESS_ENDED, fields, restart_seconds=round(pause, 2))
        with trio.move_on_after(pause):
            await self.news.wait()

    async def _start(self, index: int) -> _Child:
        """Start a process.

        Raises:
            OSError: no process can be started now.
        """
        ours, theirs = socket.socketpair()
        watchdog_seconds = (self.manager.watchdog_seconds if self.manager is not None else None) or 0.0
        with theirs:
            try:
                process = await trio.lowlevel.open_process(
                    [sys.executable, *sys.orig_argv[1:]],
                    env={**os.environ, VARIABLE: f"{index}:{theirs.fileno()}:{watchdog_seconds}"},
                    pass_fds=[theirs.fileno()],
                )
            except BaseException:
                ours.close()
                raise
        child = _Child(process, trio.SocketStream(trio.socket.from_stdlib_socket(ours)))
        if watchdog_seconds:
            child.silence_ends_at = trio.current_time() + max(START_SECONDS_MAX, watchdog_seconds)
        self.children[index] = child
        self._tell(EventName.PROCESS_STARTED, {"process": index + 1, "pid": process.pid})
        return child

    async def _attend(self, index: int, child: _Child) -> None:
        """Hear what a process says, and wait for its end."""
        try:
            if self.level:
                await child.tell(self.level)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._hear, index, child)
                await child.process.wait()
                nursery.cancel_scope.cancel()
        finally:
            del self.children[index]
            with trio.CancelScope(shield=True):
                await child.link.aclose()
        self._say_status()

    async def _hear(self, index: int, child: _Child) -> None:
        rest = b""
        with suppress(trio.BrokenResourceError):
            async for told in child.link:
                if self.manager is not None and self.manager.watchdog_seconds is not None:
                    child.silence_ends_at = trio.current_time() + self.manager.watchdog_seconds
                *lines, rest = (rest + told).split(b"\n")
                rest = rest[-MESSAGE_BYTES_MAX:]
                if b"READY=1" in lines:
                    child.is_ready = True
                    self.was_ready.add(index)
                    self._say_status(is_ready=len(self.was_ready) == self.count)

    async def watch_for_ever(self) -> None:
        """Say that the parent lives; kill a child that has been silent for the watchdog's time."""
        if self.manager is None or self.manager.watchdog_seconds is None:
            return
        seconds = self.manager.watchdog_seconds
        while True:
            self.manager.say("WATCHDOG=1")
            for child in self.children.values():
                if trio.current_time() > child.silence_ends_at:
                    child.why = "it said nothing for the watchdog's time, and was killed"
                    child.process.kill()
            await trio.sleep(seconds / 6)

    async def heed_signals(self, *, task_status: trio.TaskStatus[None]) -> None:
        """End at signals, and end for good when the time is over."""
        numbers = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
            numbers.append(signal.SIGHUP)
        last_at = -math.inf
        async with trio.open_nursery() as nursery:
            with trio.open_signal_receiver(*numbers) as signals:
                task_status.started()
                async for _ in signals:
                    now = trio.current_time()
                    if now < last_at + ECHO_SECONDS:
                        continue
                    last_at = now
                    if not self.level and self.manager is not None:
                        self.manager.say("STOPPING=1", "STATUS=draining")
                    await self.end(min(self.level + 1, INTERRUPT))
                    nursery.start_soon(self._kill_after, self.level)

    async def _kill_after(self, level: int) -> None:
        """Kill the children that are left when even their last words must have been said.

        As a rule a child ends by itself before that.
        """
        config = self.config
        seconds = (config.shutdown_seconds if level == DRAIN else 0.0) + config.grace_seconds + PATIENCE_SECONDS
        await trio.sleep(seconds + LAST_WORDS_SECONDS + START_PATIENCE_SECONDS)
        for child in self.children.values():
            child.why = "it did not end in time, and was killed"
            child.process.kill()

    async def reload_for_ever(self, changes: Callable[[], Changes]) -> None:
        """Start all processes anew when a file changes.

        The machine may refuse to watch, now or later: it has no watch left, or the folder is gone.
        Then the processes go on, and the watch is tried again.
        """
        while True:
            try:
                await self._reload_on(changes())
            except Exception as error:  # noqa: BLE001  # the library has errors of its own, and the system's
                why = f"{name_of(error)}: {first_line_of(error)}"
                self._tell(EventName.CODE_UNWATCHED, {"why": why, "retry_seconds": UNWATCHED_SECONDS})
                await trio.sleep(UNWATCHED_SECONDS)
            else:
                return

    async def _reload_on(self, changes: Changes) -> None:
        folder = os.getcwd()  # noqa: PTH109  # as text
        async for changed in changes:
            if self.is_ending():
                return
            files = ", ".join(sorted({path.removeprefix(f"{folder}{os.sep}") for _, path in changed})[:10])
            self._tell(EventName.CODE_CHANGED, {"files": files})
            for child in list(self.children.values()):
                child.is_outdated = True
                await child.tell(INTERRUPT)
            self.tell_news()

    def _say_status(self, *, is_ready: bool = False) -> None:
        if self.manager is not None and not self.level:
            ready = sum(child.is_ready for child in self.children.values())
            lines = ["READY=1"] if is_ready else []
            self.manager.say(*lines, f"STATUS={ready} of {self.count} processes work")

    def _tell(self, name: EventName, fields: dict[str, object], **more: object) -> None:
        self.emit(Event(name=name, fields={**fields, **more}))


def supervise(
    count: int, *, reloads: bool, config: WorkerConfig, emit: EventSink, manager: Listener | None
) -> int:  # fmt: skip
    """Run the command of this process in so many processes until told to stop.

    Args:
        count: how many.
        reloads: whether a changed file starts them anew.
        config: what the processes make of the command: how long they may take to end.
        emit: is told what happens.
        manager: the service manager, if one asks.

    Returns: the worst exit code of those that the last processes ended with.

    Raises:
        ConfigError: the count is out of its bounds, or what `reloads` needs is not installed.
    """
    if not 1 <= count <= PROCESSES_MAX:
        raise ConfigError(f"--processes {count}: use 1 to {PROCESSES_MAX}")
    changes = _changes() if reloads else None
    parent = _Parent(count, reloads, config, emit, manager)
    trio.run(_supervise, parent, changes)
    return worst(parent.codes)


async def _supervise(parent: _Parent, changes: Callable[[], Changes] | None) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(parent.heed_signals)
        nursery.start_soon(parent.watch_for_ever)
        if changes is not None:
            nursery.start_soon(parent.reload_for_ever, changes)
        async with trio.open_nursery() as processes:
            for index in range(parent.count):
                processes.start_soon(parent.keep, index)
        nursery.cancel_scope.cancel(reason="pgnotifyq: all processes have ended")


def _changes() -> Callable[[], Changes]:
    """Return a function that waits for changes of Python files below the current folder.

    Raises:
        ConfigError: the library that does it is not installed.
    """
    try:
        import watchfiles
    except ImportError:
        raise ConfigError("--reload needs the extra `reload`: pip install 'pgnotifyq[reload]'") from None

    return lambda: watchfiles.awatch(Path.cwd(), watch_filter=watchfiles.PythonFilter())


def worst(codes: list[int]) -> int:
    """Return the worst of the exit codes of processes that were told to end.

    A process that a signal has ended before it was ready has ended well.
    """
    told = [0 if code in {-signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP} else code for code in codes]
    told = [EXIT_STUCK if code == -signal.SIGKILL else 128 - code if code < 0 else code for code in told]
    return max(told, key=lambda code: (_ORDER.index(code) if code in _ORDER else len(_ORDER), code), default=0)
