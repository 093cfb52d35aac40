"""A terminal that is read key by key, and left as it was."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio

from pgnotifyq.model.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

# What terminals send for a key, and the key's name here. As a rule, one read returns one key.
KEYS = {
    "\x1b[A": "up",
    "\x1b[B": "down",
    "\x1bOA": "up",
    "\x1bOB": "down",
    "\x1b[Z": "backtab",
    "\x1b[5~": "pageup",
    "\x1b[6~": "pagedown",
    "\x1b": "escape",
    "\t": "tab",
    "\r": "enter",
    "\n": "enter",
}


def need_terminal(command: str, instead: str) -> None:
    """Refuse to go on where there is no terminal.

    Raises:
        ConfigError: standard input or output is no terminal, or TERM names none that can be drawn
        on.
    """
    if sys.platform == "win32" or not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ConfigError(f"{command} needs a terminal, and standard input or output is none: use {instead}")
    if os.environ.get("TERM", "dumb") in {"dumb", "unknown"}:
        raise ConfigError(f"{command} needs a terminal that can be drawn on, and TERM does not name one: use {instead}")


@contextmanager
def key_by_key(fileno: int) -> Iterator[None]:
    """Have a terminal give each key as it is pressed, and not show it, while inside.

    Ctrl-C still sends a signal. Ctrl-Z sends none: a stopped program would leave its screen behind.
    """
    import termios
    import tty

    before = termios.tcgetattr(fileno)
    try:
        tty.setcbreak(fileno)
        changed = termios.tcgetattr(fileno)
        changed[6][termios.VSUSP] = b"\0"
        termios.tcsetattr(fileno, termios.TCSANOW, changed)
        yield
    finally:
        termios.tcsetattr(fileno, termios.TCSADRAIN, before)


async def read_keys(fileno: int) -> list[str]:
    """Wait for keys, and return them by their names; none: the terminal is gone."""
    await trio.lowlevel.wait_readable(fileno)
    try:
        data = os.read(fileno, 256)
    except OSError:  # it hung up
        return []
    return keys_in(data.decode("utf-8", "replace"))


def keys_in(text: str) -> list[str]:
    r"""Return the keys of what a terminal has sent.

    >>> keys_in("q\x1b[A\t")
    ['q', 'up', 'tab']
    """
    keys = []
    while text:
        sequence = next((each for each in sorted(KEYS, key=len, reverse=True) if text.startswith(each)), text[0])
        keys.append(KEYS.get(sequence, sequence))
        text = text[len(sequence) :]
    return keys
