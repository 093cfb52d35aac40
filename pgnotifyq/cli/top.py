"""`python -m pgnotifyq top`: a full-screen view of a queue."""

from __future__ import annotations

from typing import Annotated

import trio
from cyclopts import Parameter

from pgnotifyq.cli.parameters import Dsn, Schema
from pgnotifyq.cli.terminal import need_terminal
from pgnotifyq.model.errors import ConfigError

EVERY_SECONDS_MIN, EVERY_SECONDS_MAX = 0.1, 3600.0

Every = Annotated[float, Parameter(name="--every", help="Seconds between two looks.")]


def top(*, every: Every = 2.0, dsn: Dsn = None, schema: Schema = "pgnotifyq") -> int:
    """Watch queues, workers and jobs on a full screen. Keys cancel, pause, requeue and explain.

    It needs a terminal; 80 x 24 will do.
    """
    need_terminal("top", "`stats`, `workers`, `jobs` and `doctor`")
    if not EVERY_SECONDS_MIN <= every <= EVERY_SECONDS_MAX:
        raise ConfigError(f"--every {every:g} is out of range: use {EVERY_SECONDS_MIN:g} to {EVERY_SECONDS_MAX:g} seconds")
    from pgnotifyq.cli.top_view import watch  # what draws takes a while to import

    trio.run(watch, every, dsn, schema)
    return 0
