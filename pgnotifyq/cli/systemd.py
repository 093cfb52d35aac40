"""What a worker tells its service manager: systemd's protocol, a datagram of lines to a socket.

- READY=1: jobs that are enqueued now start now. The listener is proven; or the worker polls, and
  its first look at the queues was answered.
- STOPPING=1: the worker was told to end.
- STATUS=...: one line for people, in `systemctl status`.
- WATCHDOG=1: the worker makes progress. See `Progress` for what that is.

If no service manager asks for it (NOTIFY_SOCKET), nothing is sent. The variables are taken out of
the environment, so that no program which a handler starts speaks for the worker.

Source: sd_notify(3), sd_watchdog_enabled(3)
"""

from __future__ import annotations

import logging
import os
import socket
from typing import TYPE_CHECKING, Protocol

import attrs
import trio

from pgnotifyq.model.events import EventName

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from pgnotifyq.model.config import WorkerConfig
    from pgnotifyq.model.events import Event
    from pgnotifyq.runtime.worker import WorkerHandle

_log = logging.getLogger("pgnotifyq")
# A keep-alive is due at each half of the watchdog's time. One may be late.
BEATS_A_WATCHDOG = 3
STATUS_BYTES_MAX = 200
# A listener that has nothing to hear asks something every 12 s, and waits 2.5 s for the answer.
SILENT_SECONDS_MAX = 20.0
# A worker that is full, and hears nothing, asks something at each heartbeat; one may be late.
SILENT_BEATS_MAX = 1.5


class Listener(Protocol):
    """What a worker reports to: the service manager, or the process that supervises this one."""

    @property
    def watchdog_seconds(self) -> float | None:
        """How long the listener bears silence; None: for ever."""

    def say(self, *lines: str) -> None:
        """Tell the listener something, as `READY=1`. Never waits, and never fails."""


@attrs.define(eq=False)
class ServiceManager:
    """The socket of the service manager."""

    address: str
    watchdog_seconds: float | None
    _is_complained_of: bool = False

    def say(self, *lines: str) -> None:
        """Send one datagram. If that fails, log it once: the service manager would wait in vain."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as way:
                way.sendto("\n".join(lines).encode(), socket.MSG_DONTWAIT, self.address)
        except BlockingIOError:
            pass  # its queue is full: it will hear the next one
        except OSError as error:
            if not self._is_complained_of:
                self._is_complained_of = True
                address = self.address.replace("\0", "@", 1)
                _log.warning("the service manager is not told that the worker is ready: NOTIFY_SOCKET=%s: %s", address, error)


def find_service_manager(environment: MutableMapping[str, str] = os.environ) -> ServiceManager | None:
    """Return the service manager that asks, or None. Take its variables out of `environment`."""
    address = environment.pop("NOTIFY_SOCKET", "")
    microseconds, pid = environment.pop("WATCHDOG_USEC", ""), environment.pop("WATCHDOG_PID", "")
    if not address.startswith(("/", "@")):
        return None
    is_for_us = pid in {"", str(os.getpid())} and microseconds.isdigit() and int(microseconds) > 0
    if address.startswith("@"):
        address = "\0" + address[1:]
    return ServiceManager(address, int(microseconds) / 1e6 if is_for_us else None)


@attrs.define(eq=False)
class Progress:
    """Says of one worker that it is ready, what it does, and that it makes progress.

    A worker makes progress if the event loop turns, and if the database answered lately or is known
    to be away. In that case a restart does not help: it brings no database back, and the worker
    comes back by itself. So the watchdog ends a process whose loop is held, and one whose
    statements are neither answered nor given up. The watchdog's time should be longer than a lease
    less its margin (55 s at the defaults): until then a held loop costs nothing but time, and a
    restart charges all jobs of the worker.
    """

    listener: Listener
    config: WorkerConfig
    handle: WorkerHandle | None = None
    _is_ready: bool = False

    def note(self, event: Event) -> None:
        """Take an event of the worker."""
        match event.name:
            case EventName.LISTENER_CONNECTED:
                self._ready("working; notifications arrive")
            case EventName.LISTENER_POLLING:
                self._ready(f"working; polls, for notifications do not arrive: {event.fields['why']}")
            case EventName.LISTENER_LOST:
                self._status(f"working; polls until the listener is back: {event.fields['why']}")
            case EventName.DATABASE_LOST:
                self._status(f"waiting for the database: {event.fields['why']}")
            case EventName.DATABASE_BACK:
                self._status("working; the database is back")
            case EventName.WORKER_STOPPING:
                self.listener.say("STOPPING=1", f"STATUS=draining; {event.fields['running']} jobs run")

    async def say_for_ever(self) -> None:
        """Say again and again that the worker makes progress, as long as it does."""
        if self.listener.watchdog_seconds is None:
            return
        while True:
            if self.is_made():
                self.listener.say("WATCHDOG=1")
            await trio.sleep(self.listener.watchdog_seconds / BEATS_A_WATCHDOG)

    def is_made(self) -> bool:
        """Tell whether the worker makes progress. The event loop turns, because this runs in it."""
        if self.handle is None:
            return True  # it starts, under deadlines of its own
        silent_max = max(SILENT_SECONDS_MAX, SILENT_BEATS_MAX * self.config.heartbeat_seconds)
        return self.handle.silent_seconds() <= silent_max

    def _ready(self, status: str) -> None:
        if self._is_ready:
            self._status(status)
        else:
            self._is_ready = True
            self.listener.say("READY=1", f"STATUS={_line(status)}")

    def _status(self, status: str) -> None:
        self.listener.say(f"STATUS={_line(status)}")


def _line(text: str) -> str:
    return " ".join(text.split())[:STATUS_BYTES_MAX]
