"""Telling events: the one place where a sink is called, so that no sink ends a worker.

A sink is the application's: `on_event`, or logging with whatever handlers it has. It may raise, and
no event is worth the end of a worker.

Rules:

- Whatever a sink raises stays here, `sys.exit()` and asyncio's CancelledError included. The event
  is lost and the worker goes on.
- Ctrl-C is not the sink's. trio holds it back while a sink runs, and delivers it to the main task
  afterwards. So if a KeyboardInterrupt comes out of a sink, the sink has raised it itself.
- The loss is told by logging: the first, the tenth, the hundredth. Else a sink that fails at each
  event would fill the log.
- Logging may raise as well. Then there is nobody left to tell, and the worker goes on.
- A sink that is slow holds the event loop. The watchdog names it.
"""

from __future__ import annotations

import inspect
import logging
from typing import TYPE_CHECKING

import trio

from pgnotifyq.model.errors import ConfigError, quietly, text_of
from pgnotifyq.model.outcome import bounded
from pgnotifyq.runtime.logs import log_event

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgnotifyq.model.events import Event, EventSink

_log = logging.getLogger("pgnotifyq")

# A loss is told when the number of losses has grown by this factor since the last one told.
TOLD_AGAIN_FACTOR = 10


class Telling:
    """A sink that never raises."""

    __slots__ = ("_sink", "_tell_at", "count", "lost")

    def __init__(self, sink: EventSink | None = None) -> None:
        """Guard a sink; the default is logging.

        Raises:
            ConfigError: the sink cannot be called, or only gives a coroutine, which nobody would
                await.
        """
        sink = log_event if sink is None else sink
        if not callable(sink):
            raise ConfigError(f"on_event is a {type(sink).__name__}, which cannot be called: give a function of one event")
        if inspect.iscoroutinefunction(sink) or inspect.iscoroutinefunction(type(sink).__call__):
            raise ConfigError(
                "on_event is an async function, and nobody awaits it: give a plain one, that puts events into a memory channel, say"
            )
        self._sink: Callable[[Event], object] = sink
        self.count: EventSink | None = None  # this package's own sink, which sees each event first
        self._tell_at = 1
        self.lost = 0  # events that the sink did not take

    @property
    def is_logged(self) -> bool:
        """Whether events go to the log."""
        return self._sink is log_event

    def unless_logged(self, event: Event) -> None:
        """Tell an event that the log has already. If events go to the log, only count it."""
        if not self.is_logged:
            self(event)
        elif self.count is not None:
            self.count(event)

    @trio.lowlevel.enable_ki_protection
    def __call__(self, event: Event) -> None:
        """Tell one event."""
        if self.count is not None:
            self.count(event)
        try:
            returned = self._sink(event)
            if returned is not None and inspect.isawaitable(returned):
                _drop(returned)
                raise TypeError("it returned an awaitable, which nobody awaits")  # noqa: TRY301  # told as what it raises itself
        except BaseException as error:  # noqa: BLE001  # see the rules
            self.lost += 1
            if self.lost >= self._tell_at:
                self._tell_at *= TOLD_AGAIN_FACTOR
                self._tell_loss(event, error)

    def _tell_loss(self, event: Event, error: BaseException) -> None:
        what = "logging" if self.is_logged else f"on_event ({getattr(self._sink, '__qualname__', type(self._sink).__name__)})"
        why = f"{type(error).__name__}: {bounded(text_of(error))}"
        # If the network or a disk failed, there is no place in the sink's code to look at.
        trace = None if isinstance(error, OSError) else error
        quietly(_log.error, "%s did not take %s, %d lost so far: %s", what, event.name.value, self.lost, why, exc_info=trace)


def _drop(awaitable: object) -> None:
    """Close a coroutine. Else Python would complain that it was never awaited."""
    close = getattr(awaitable, "close", None)
    if close is not None:
        close()
